"""Where amounts come from: the records on the ledger that each kind of amount was computed from.

An amount is explained by the record that holds it, by its inputs, each with the key under which
everybody finds it, by the rule in a sentence, and, where the inputs are public, by computing it
again. What was computed from readings rests on a private record: then its commitment is named, and
who can open it.

To explain another kind of amount, write a function `(Reader, parts of its id) -> Explained` and
enter it in `KINDS`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consortium.chaincode.api import (
    Context,
    ContractError,
    Json,
    NotFound,
    plain,
    stored_json,
    under,
)

from ..assets.wallet import ended_key
from ..billing.bill_basis import record_key
from ..common import agreements, commitments
from ..common.money import amount_micro, half_even, tax_micro
from ..market.market import SALE_TAX, sale_tax_of
from ..settlement.days import rows_key, summary_key
from ..settlement.settlement import day_inputs

_LATEST = 10**12
MAX_SEARCHED = 10_000
"""Records among which the one is looked for that a posting names."""
MAX_PAGES = 1_000


@dataclass(frozen=True, slots=True)
class Input:
    """A record that an amount depends on."""

    name: str
    key: str
    """In chaincode `energy`; empty for what is put together from several records."""
    value: Json


@dataclass(frozen=True, slots=True)
class Document:
    """An amount that can be explained itself."""

    kind: str
    id_: str


@dataclass(frozen=True, slots=True)
class Explained:
    """Where an amount comes from."""

    record: Json
    rule: str
    inputs: tuple[Input, ...] = ()
    recomputed: Mapping[str, Any] | None = None
    """The amount, computed again from the inputs."""
    agrees: bool | None = None
    """Whether that is what the record says; None: it can't be computed from what is public."""
    documents: tuple[Document, ...] = ()
    """What to explain next."""
    connections: tuple[str, ...] = ()
    """Whose amount it is: homes, and their utilities, may ask."""
    utilities: tuple[str, ...] = ()
    """Utilities that are parties to it."""


class Reader:
    """Reads records with their keys."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def find(self, name: str, key: str) -> Input | None:
        """A record, or None."""
        stored = self.context.get_state(key)
        return None if stored is None else Input(name, key, stored_json(stored))

    def get(self, name: str, key: str) -> Input:
        """A record; raises NotFound."""
        found = self.find(name, key)
        if found is None:
            raise NotFound(f"there is no {name} under {key}")
        return found

    def known(self, *wanted: tuple[str, str]) -> tuple[Input, ...]:
        """Of these (name, key), the records that there are."""
        found = [self.find(name, key) for name, key in wanted]
        return tuple(one for one in found if one is not None)

    def all(self, name: str, prefix: str, limit: int) -> Iterator[Input]:
        """Records under a prefix."""
        for count, (key, value) in enumerate(self.context.range(*under(prefix))):
            if count == limit:
                return
            yield Input(name, key, stored_json(value))


def text(record: Json, field: str) -> str:
    """A field of a record, as text; empty if it has none."""
    value = record.get(field) if isinstance(record, dict) else None
    return value if isinstance(value, str) else ""


def number(record: Json, field: str) -> int:
    """A field of a record, as a number; 0 if it has none."""
    value = text(record, field)
    return int(value) if value.removeprefix("-").isdigit() else 0


def _posting(reader: Reader, parts: Sequence[str]) -> Explained:
    *account_parts, at, transaction_id = parts
    account = "/".join(account_parts)
    instant = int(at) if at.isdigit() and len(at) <= 12 else -1
    prefix = f"acct/{account}/post/{_LATEST - instant:012d}/{transaction_id}/"
    postings = tuple(reader.all("posting", prefix, MAX_PAGES))
    if not postings:
        raise NotFound(f"account {account} has no posting of transaction {transaction_id} at {at}")
    documents: list[Document] = []
    for posting in postings:
        found = _leads_to(reader, account, posting.value)
        if found is not None and found not in documents:
            documents.append(found)
    return Explained(
        [posting.value for posting in postings],
        "each posting has its counterpart of the same amount with the other sign in the same "
        "transaction; all accounts together are zero",
        postings,
        {"amount_micro": sum(number(posting.value, "amount_micro") for posting in postings)},
        None,
        tuple(documents),
        (account,),
    )


def _leads_to(reader: Reader, account: str, posting: Json) -> Document | None:
    """What a posting was made for, as far as its kind and reference tell."""
    kind, reference = text(posting, "kind"), text(posting, "reference")
    other = text(posting, "counterparty")
    received = number(posting, "amount_micro") > 0
    payer = other if received else account
    if kind in ("deposit", "withdrawal"):
        bank = (account if account.startswith("ext/bank/") else other).removeprefix("ext/bank/")
        return Document("bank", f"{bank}/{reference}")
    if kind == "payment":
        return Document("payment", f"{payer}/{reference}")
    if kind in ("sale", "grid_fee", "tax"):
        return _sale(reader, reference)
    if kind == "rounding":
        return Document("rounding", reference)
    home = _home(reader, account) or _home(reader, other)
    if home is None:
        return None
    if kind == "response":
        return Document("response", f"{reference}/{home}")
    if kind == "pool":
        for found in reader.all("enlisted", f"enlisted/{reference}/", MAX_SEARCHED):
            pool = reader.find("pool", f"pool/{text(found.value, 'pool_id')}")
            if pool is not None and text(pool.value, "account") == home:
                return Document("pool", found.key.removeprefix("enlisted/"))
        return None
    for word, prefix in (("bill_payment", "billpayment"), ("top_up", "topup"), ("order", "order")):
        for found in reader.all(word, f"{prefix}/{home}/", MAX_SEARCHED):
            if found.key.endswith(f"/{reference}"):
                return Document(word, found.key.removeprefix(f"{prefix}/"))
    count = reference.removeprefix("bill-")
    if kind in ("bill", "credit_note", "credit_reversed", "credit_returned") and count.isdigit():
        return Document("bill", f"{home}/{count}")
    if reference[4:5] == reference[7:8] == reference[10:11] == "-":
        return Document("settlement", f"{home}/{reference[:10]}")
    return None


def _home(reader: Reader, account: str) -> str | None:
    return account if reader.context.get_state(f"connection/{account}") is not None else None


def _sale(reader: Reader, trade_id: str) -> Document | None:
    for sale in reader.all("sale", "sale/", MAX_SEARCHED):
        if text(sale.value, "trade_id") == trade_id:
            _, _, window_start, connection_id, request_id = sale.key.split("/")
            return Document("trade", f"{connection_id}/{int(window_start)}/{request_id}")
    return None


def _trade(reader: Reader, parts: Sequence[str]) -> Explained:
    connection_id, window_start, request_id = parts
    place = window_start.zfill(12)
    trade = reader.get("trade", f"trade/{connection_id}/{place}/{request_id}")
    record = trade.value
    supplier, day = text(record, "supplier"), text(record, "day")
    version = number(record, "rate_version")
    taxes = "/".join(("terms", *SALE_TAX))
    inputs = reader.known(
        ("rate", f"rate/{supplier}/{day}/buy/{version:06d}"),
        ("settings", "settings"),
        ("connection", f"connection/{connection_id}"),
        ("versions of the tax on sales", f"{taxes}/versions"),
    )
    quoted_at = number(record, "quoted_at")
    try:
        taxed_by = agreements.version_at(reader.context, *SALE_TAX, quoted_at)
    except NotFound:
        pass  # Before the first version the settings say it.
    else:
        inputs += reader.known(("tax on sales", f"{taxes}/{taxed_by:06d}"))
    values = {one.name: one.value for one in inputs}
    energy = number(record, "energy_wh")
    gross = amount_micro(energy, number(values.get("rate"), "price_micro_per_kwh"))
    fee = amount_micro(energy, number(values.get("settings"), "grid_fee_micro_per_kwh"))
    tax = tax_micro(gross, sale_tax_of(reader.context, quoted_at).rate_ppm)
    again = {
        "gross_micro": gross,
        "grid_fee_micro": fee,
        "tax_micro": tax,
        "net_micro": gross - fee - tax,
    }
    return Explained(
        record,
        "gross = energy x the supplier's rate of that day and version; grid fee = energy x the "
        "channel's fee; each divided by 1000 and rounded half to even once; tax = gross x the "
        "parts per million in force when it was quoted, rounded likewise, none of a gross below "
        "zero; net = gross - fee - tax",
        inputs,
        again,
        all(number(record, name) == value for name, value in again.items()),
        (),
        (connection_id,),
        (supplier,),
    )


def _order(reader: Reader, parts: Sequence[str]) -> Explained:
    connection_id, interval_start, order_id = parts
    place = interval_start.zfill(12)
    order = reader.get("order", f"order/{connection_id}/{place}/{order_id}")
    product = text(order.value, "product")
    book = f"book/{product}/{place}"
    inputs = list(
        reader.known(("state of the book", f"{book}/state"), ("result", f"{book}/result"))
    )
    state = next((one.value for one in inputs if one.key.endswith("/state")), None)
    if state is not None:
        version = number(state, "product_version")
        inputs += reader.known(("product", f"terms/product/{product}/{version:06d}"))
    hold_id = f"order-{int(interval_start)}-{order_id}"[:80]
    for fill in reader.all("fill", f"fill/{connection_id}/{place}/", MAX_PAGES):
        names = (order_id, text(fill.value, "reference"), text(fill.value, "hold_id"))
        if f"/{order_id}/" in fill.key or hold_id in names or names[0] == names[1]:
            inputs.append(fill)
    inputs += reader.known(
        ("hold", f"acct/{connection_id}/hold/{hold_id}"),
        ("hold", ended_key(connection_id, hold_id)),
    )
    return Explained(
        order.value,
        "local_wh at local_price and hub_wh at hub_price, fees included: the clearing prices of "
        "the book's result, and at the margin the order's part by its owner's running sum; in a "
        "continuous book its fills, and what is given costs the fee alone; money moves when the "
        "day is settled",
        tuple(inputs),
        documents=(Document("auction", f"{product}/{int(interval_start)}"),),
        connections=(connection_id,),
    )


def _auction(reader: Reader, parts: Sequence[str]) -> Explained:
    product, interval_start = parts
    place = interval_start.zfill(12)
    book = f"book/{product}/{place}"
    result = reader.get("result", f"{book}/result")
    version = number(result.value, "product_version")
    inputs = list(
        reader.known(
            ("state of the book", f"{book}/state"),
            ("product", f"terms/product/{product}/{version:06d}"),
        )
    )
    zones = result.value.get("zones", []) if isinstance(result.value, dict) else []
    for zone in zones if isinstance(zones, list) else []:
        inputs += reader.all(
            "page of the book, by price", f"agg/{text(zone, 'zone')}/{product}/{place}/", MAX_PAGES
        )
    return Explained(
        result.value,
        "the largest volume that one price can trade, at a price in [lowest_price, highest_price] "
        "by the product's rule; first within each zone, then what is left at the hub",
        tuple(inputs),
    )


def _settlement(reader: Reader, parts: Sequence[str]) -> Explained:
    connection_id, day = parts
    posted = reader.get("posted day", f"day/{connection_id}/{day}")
    summary = posted.value.get("summary") if isinstance(posted.value, dict) else None
    utility, run = text(summary, "utility"), text(summary, "run")
    keys = [summary_key(day, run, connection_id), rows_key(day, run, connection_id)]
    found = commitments.commitments(reader.context, utility, keys)
    shown = {"summary": text(posted.value, "commitment"), "rows": text(summary, "rows")}
    again = {"summary": found[keys[0]], "rows": found[keys[1]]}
    inputs = list(reader.known(("gate of the run", f"st/{day}/{run}/{connection_id}")))
    inputs += reader.known(("taken in by the clearing house", f"clear/{day}/{connection_id}"))
    try:
        public = day_inputs(reader.context, utility, day, [connection_id])
    except ContractError:
        pass  # Settled together with its community: settlement:Inputs has them for all of it.
    else:
        inputs.append(Input("terms, prices and trades of the day", "", plain(public)))
    return Explained(
        posted.value,
        "per interval trades first, then sharing, then base rate and tariff; the day's sums by "
        f"counterparty are posted. {utility} opens the day's rows to the home (daybook:Record), "
        "which checks them with settlement:Verify and may open parts of them to others "
        "(daybook:Open); auditors compute them again (daybook:Audit); their hash is the "
        f"commitment under {keys[1]} in chaincode metering",
        tuple(inputs),
        again,
        # What its utility has erased can't be compared any more; what was posted stays.
        None if None in again.values() else again == shown,
        (),
        (connection_id,),
        (utility,),
    )


def _rounding(reader: Reader, parts: Sequence[str]) -> Explained:
    (day,) = parts
    closed = reader.get("closed day", f"cleared/{day}")
    inputs = tuple(reader.all("taken in and paid out", f"clear/{day}/", MAX_SEARCHED))
    left = -sum(number(one.value, "amount_micro") for one in inputs)
    return Explained(
        # Homes of all utilities stand in it, so it shows how many there are and their sum alone.
        closed.value,
        "what the clearing house took in less what it paid out that day, over "
        f"{len(inputs)} connections: their roundings, half a micro-unit a line at most",
        (closed,),
        {"amount_micro": left},
        left == number(closed.value, "amount_micro"),
    )


def _token(reader: Reader, parts: Sequence[str]) -> Explained:
    origin, day = parts
    lot = reader.get("lot of tokens", f"tok/{origin}/{day}")
    holdings = lot.value.get("holdings", []) if isinstance(lot.value, dict) else []
    listed = holdings if isinstance(holdings, list) else []
    held = sum(number(one, "energy_wh") for one in listed)
    minted, back = number(lot.value, "minted_wh"), number(lot.value, "reversed_wh")
    return Explained(
        lot.value,
        "minted = outstanding + retired + reversed; what was exported that day, in the hands to "
        "which settlement assigned it",
        recomputed={"minted_wh": held + back},
        agrees=held + back == minted,
        documents=(Document("settlement", f"{origin}/{day}"),),
        connections=(origin, *(text(one, "holder") for one in listed)),
    )


def _contract(reader: Reader, parts: Sequence[str]) -> Explained:
    (contract_id,) = parts
    contract = reader.get("contract", f"bilateral/{contract_id}")
    terms = contract.value.get("terms") if isinstance(contract.value, dict) else None
    return Explained(
        contract.value,
        "the energy of its profile in each interval, at its price or its index; settled with the "
        "days of seller and buyer",
        connections=(text(terms, "seller"), text(terms, "buyer")),
    )


def _bill(reader: Reader, parts: Sequence[str]) -> Explained:
    connection_id, count = parts
    bill = reader.get("bill", f"bill/{connection_id}/{count.zfill(6)}")
    supplier = text(bill.value, "supplier")
    inputs = reader.known(
        ("billed period", f"billperiod/{connection_id}/{text(bill.value, 'from_day')}"),
        ("what is due", f"due/{connection_id}/{count.zfill(6)}"),
        ("connection", f"connection/{connection_id}"),
    )
    corrected = text(bill.value, "corrects")
    documents = (Document("bill", f"{connection_id}/{corrected}"),) if corrected else ()
    committed = text(bill.value, "commitment")
    found: dict[str, str | None] | None = None
    if committed:
        key = record_key(connection_id, text(bill.value, "from_day"), number(bill.value, "run"))
        metered_by = next(
            (text(one.value, "utility") for one in inputs if one.name == "connection"), ""
        )
        found = {"record": commitments.commitments(reader.context, metered_by, [key])[key]}
    return Explained(
        bill.value,
        "a function of readings, tariff version and calendar: billing:Basis has all that is "
        "public of it, bill:Record its lines for whoever may see the readings; their hash is the "
        "commitment",
        inputs,
        found,
        None if found is None else found["record"] == committed,
        documents,
        (connection_id,),
        (supplier,),
    )


def _bill_payment(reader: Reader, parts: Sequence[str]) -> Explained:
    connection_id, payer, reference = parts
    payment = reader.get("payment of bills", f"billpayment/{connection_id}/{payer}/{reference}")
    paid = payment.value.get("paid", []) if isinstance(payment.value, dict) else []
    numbers = [number(part, "number") for part in paid] if isinstance(paid, list) else []
    return Explained(
        payment.value,
        "open bills are paid in the order in which they are due; what is over stays in the account",
        tuple(
            found
            for one in numbers
            for found in reader.known(("what is due", f"due/{connection_id}/{one:06d}"))
        ),
        documents=tuple(Document("bill", f"{connection_id}/{one}") for one in numbers),
        connections=(connection_id,),
    )


def _top_up(reader: Reader, parts: Sequence[str]) -> Explained:
    connection_id, payer, reference = parts
    top_up = reader.get("top-up", f"topup/{connection_id}/{payer}/{reference}")
    return Explained(
        top_up.value,
        "what was paid in advance: in money as it is, in energy at the supplier's published price",
        reader.known(("what is left", f"prepaid/{connection_id}")),
        connections=(connection_id,),
    )


def _bank(reader: Reader, parts: Sequence[str]) -> Explained:
    utility, reference = parts
    movement = reader.get("bank movement", f"bank/{utility}/{reference}")
    currency = text(movement.value, "currency")
    return Explained(
        movement.value,
        "what the bank moved, in its currency; another one than the channel's at the utility's "
        "published rate, rounded half to even once",
        reader.known(
            ("settings", "settings"),
            *((("conversion", f"conversion/{utility}/{currency}"),) if currency else ()),
        ),
        connections=(text(movement.value, "account"),),
        utilities=(utility,),
    )


def _payment(reader: Reader, parts: Sequence[str]) -> Explained:
    account, request_id = parts
    payment = reader.get("payment", f"payment/{account}/{request_id}")
    return Explained(
        payment.value,
        "what its payer chose to pay",
        connections=(account, text(payment.value, "payee")),
    )


def _response(reader: Reader, parts: Sequence[str]) -> Explained:
    event_id, connection_id = parts
    taking_part = reader.get("participation", f"respond/{event_id}/{connection_id}")
    event = reader.get("event", f"event/{event_id}")
    pool_id = text(taking_part.value, "pool")
    measured = (
        "the response is the baseline, as committed to before, against what was metered, without "
        "what was sold as energy"
    )
    if pool_id:
        return Explained(
            taking_part.value,
            f"the reward is this home's part of its pool's; {measured}",
            (event, *reader.known(("pool", f"pool/{pool_id}"))),
            documents=(Document("pool", f"{event_id}/{pool_id}"),),
            connections=(connection_id,),
            utilities=(text(event.value, "operator"),),
        )
    reward = amount_micro(
        number(taking_part.value, "response_wh"), number(event.value, "reward_micro_per_kwh")
    )
    settled = text(taking_part.value, "state") == "settled"
    return Explained(
        taking_part.value,
        "reward = response x the event's reward, divided by 1000 and rounded half to even once; "
        + measured,
        (event,),
        {"reward_micro": reward} if settled else None,
        reward == number(taking_part.value, "reward_micro") if settled else None,
        (),
        (connection_id,),
        (text(event.value, "operator"),),
    )


def _pool(reader: Reader, parts: Sequence[str]) -> Explained:
    event_id, pool_id = parts
    enlisted = reader.get("enlisted", f"enlisted/{event_id}/{pool_id}")
    pool = reader.get("pool", f"pool/{pool_id}")
    event = reader.get("event", f"event/{event_id}")
    record = enlisted.value
    names = record["connections"] if isinstance(record, dict) else ()
    assert isinstance(names, list)
    known = reader.known(*(("participation", f"respond/{event_id}/{name}") for name in names))
    members = [
        one
        for one in known
        if text(one.value, "pool") == pool_id and text(one.value, "state") == "settled"
    ]
    total = max(0, sum(number(one.value, "change_wh") for one in members))
    reward = amount_micro(total, number(event.value, "reward_micro_per_kwh"))
    own = half_even(reward * number(pool.value, "share_ppm"), 1_000_000)
    again = {"response_wh": total, "reward_micro": reward, "aggregator_micro": own}
    settled = bool(text(record, "settled_at"))
    return Explained(
        record,
        "the members' changes together x the event's reward; the aggregator's share of it, and the "
        "rest split by what each has done, or by the battery that each brought, rounded on the "
        "running sum in order of names",
        (event, pool, *members),
        again if settled else None,
        all(number(record, name) == value for name, value in again.items()) if settled else None,
        connections=(text(pool.value, "account"), *(str(name) for name in names)),
        utilities=(text(event.value, "operator"),),
    )


def _balance(reader: Reader, parts: Sequence[str]) -> Explained:
    node_id, count = parts
    balance = reader.get("balance", f"balance/{node_id}/{count.zfill(8)}")
    record = balance.value
    to = number(record, "to")
    inputs = [
        share
        for share in _shares(reader, node_id, to)
        if number(share.value, "from") == number(record, "from")
    ]
    metered = sum(number(share.value, "net_wh") for share in inputs)
    source = reader.find("source", f"source/{node_id}")
    node = source or reader.get("transformer", f"transformer/{node_id}")
    return Explained(
        record,
        "metered = sum of what each utility has committed to for its homes; loss = delivered by "
        "the node's own meter - metered",
        (node, *inputs),
        None if source else {"metered_wh": metered},
        None if source else metered == number(record, "metered_wh"),
    )


def _shares(reader: Reader, node_id: str, to: int) -> Iterator[Input]:
    """What all utilities have reported of a node's period."""
    start = "share/"
    while True:  # One key is read for each utility that ever reported.
        first = next((key for key, _ in reader.context.range(start, "share0")), None)
        if first is None:
            return
        utility = first.split("/")[1]
        share = reader.find("share", f"share/{utility}/{to:012d}/{node_id}")
        if share is not None:
            yield share
        start = f"share/{utility}0"


def _alert(reader: Reader, parts: Sequence[str]) -> Explained:
    node_id, count = parts
    alert = reader.get("alert", f"lossalert/{node_id}/{count.zfill(8)}")
    first, last = number(alert.value, "first"), number(alert.value, "last")
    inputs = list(
        reader.known(("model", f"lossmodel/{node_id}/{number(alert.value, 'model'):08d}"))
    )
    if first:
        inputs += reader.known(
            *(("balance", f"balance/{node_id}/{one:08d}") for one in range(first, last + 1))
        )
    return Explained(
        alert.value,
        "the balances from its beginning on have lost more than the model expects by at least "
        "five standard deviations of their mean, and half a percent of what was delivered",
        tuple(inputs),
        documents=tuple(
            Document("balance", f"{node_id}/{one}") for one in range(first, last + 1) if first
        ),
    )


Explainer = Callable[[Reader, Sequence[str]], Explained]

KINDS: Mapping[str, tuple[str, Explainer]] = {
    "posting": ("ACCOUNT/AT/TRANSACTION", _posting),
    "trade": ("CONNECTION/WINDOW_START/REQUEST", _trade),
    "order": ("CONNECTION/INTERVAL_START/ORDER", _order),
    "auction": ("PRODUCT/INTERVAL_START", _auction),
    "settlement": ("CONNECTION/DAY", _settlement),
    "rounding": ("DAY", _rounding),
    "token": ("CONNECTION/DAY", _token),
    "contract": ("CONTRACT", _contract),
    "bill": ("CONNECTION/NUMBER", _bill),
    "bill_payment": ("CONNECTION/PAYER/REFERENCE", _bill_payment),
    "top_up": ("CONNECTION/PAYER/REFERENCE", _top_up),
    "bank": ("MSP/BANK_REFERENCE", _bank),
    "payment": ("ACCOUNT/REQUEST", _payment),
    "response": ("EVENT/CONNECTION", _response),
    "pool": ("EVENT/POOL", _pool),
    "balance": ("NODE/NUMBER", _balance),
    "alert": ("NODE/NUMBER", _alert),
}
"""What can be explained: the shape of its id, and how."""
