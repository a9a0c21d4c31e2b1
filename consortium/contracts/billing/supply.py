"""What a connection has agreed to pay for its supply, and what it owes.

Not a contract: records and the sums that contracts `billing`, `prepayment` and `permit` share.

A document (bill, adjustment, credit note) is written once. What is still to be paid of it stands
apart, under `due/{connection}/{number}`, and the numbers of the open ones under
`billing/{connection}`. Payments, disputes and credit notes of a connection therefore meet in the
same keys as its permit's: of a payment and a suspension in one block the second fails.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    LimitExceeded,
    MspId,
    NotFound,
    Text,
    canonical_json,
    ensure,
    stored_record,
)

from ..assets import wallet
from ..common import access, agreements
from ..common.clock import DAY_S, Day, day_of, day_start
from ..common.commitments import Commitment
from ..common.residence import EVERYBODY, Residence
from ..registry import homes
from ..registry.registry import Connection, connection_of, energy_settings
from .bill_basis import MAX_CREDITS, MAX_RUNS, CreditDraw, Run
from .calendars import Calendar
from .tariff_book import CALENDAR
from .tariffs import Energy, Money

MAX_SUPPLIES = 200
MAX_OPEN = 400
"""Documents of one connection that are not paid: a year of daily bills."""
MAX_LOTS = 60
DRAWS = 14
"""Days from which it is forecast how long a credit lasts."""
PASSING = "B"
"""Shard of an account that money from the bank passes through on its way to a bill; always 0."""
CREDIT_HOLD = "prepayment"
"""Id of the hold that is a connection's credit in money."""

Mode = Annotated[str, Choice("postpaid", "prepaid", "prepaid_energy")]
"""postpaid: bills are due after a term. prepaid: bills come out of a credit in money.
prepaid_energy: import comes out of energy bought in advance; what is left, out of the credit."""
Owed = Annotated[int, Integer(0, 10**15, "micro-units")]
Number = Annotated[int, Integer(1, 10**6)]
Days = Annotated[int, Integer(0, 365, "days")]
Reason = Annotated[str, Text(r"[^\x00-\x1f]{0,200}", "at most 200 characters on one line")]
Reasoned = Annotated[str, Text(r"[^\x00-\x1f]{1,200}", "1 to 200 characters on one line")]


@dataclass(frozen=True, slots=True)
class Supply:
    """On what terms a supplier supplies a connection, from a local day on."""

    connection_id: Identifier
    supplier: MspId
    region: Identifier
    """Whose calendar its days are cut by, and whose rules its permit keeps to."""
    tariff: Identifier
    regulated_tariff: Identifier | None
    """What its bills are compared with."""
    from_day: Day
    period: Annotated[str, Choice("day", "week", "month")]
    """What a bill covers: local days, weeks from Monday, calendar months."""
    payment: Mode
    term_days: Days
    """From a bill's posting until it is due; a prepaid bill is due at once."""
    emergency_micro: Owed
    """How far a prepaid connection may owe before anything follows, once its home asks for it."""
    low_days: Days
    """A credit that lasts fewer days than this is low."""
    on_site: bool
    """Whether somebody has to be there to close the switch again."""


@dataclass(frozen=True, slots=True)
class Supplies:
    """A connection's versions, the oldest first."""

    versions: Annotated[tuple[Supply, ...], AtMost(MAX_SUPPLIES)] = ()

    def on(self, day: str) -> Supply | None:
        """What holds on a local day."""
        found = None
        for version in self.versions:
            if version.from_day <= day:
                found = version
        return found


@dataclass(frozen=True, slots=True)
class Document:
    """A bill, what a correction adds to it, or what is taken off; never changed."""

    connection_id: Identifier
    number: Number
    kind: Annotated[str, Choice("bill", "adjustment", "credit_note")]
    supplier: MspId
    from_day: Day
    to_day: Day
    """The day after the last."""
    run: Annotated[int, Integer(0, MAX_RUNS)]
    """Which computation of the period it comes from; 0: none."""
    total_micro: Money
    """To be paid; negative: taken off, or paid out."""
    estimated: bool
    """Whether readings were estimated: nothing follows from not paying it yet."""
    commitment: Commitment | None
    corrects: Number | None
    """The document of which it takes something off."""
    paid_out_micro: Owed
    """Of a negative total: what the supplier paid to the home at once."""
    issued_at: Instant
    reason: Reason


@dataclass(frozen=True, slots=True)
class Standing:
    """What has become of a document with something to pay."""

    number: Number
    supplier: MspId
    total_micro: Owed
    credited_micro: Owed
    paid_micro: Owed
    disputed_micro: Owed
    """Frozen: not due until the dispute ends."""
    due_at: Instant
    prepaid: bool
    estimated: bool
    dunning: Annotated[int, Integer(0, 2)]
    """1: reminded. 2: final notice given."""
    dunned_at: Instant

    @property
    def claim_micro(self) -> int:
        """The total without what was credited."""
        return self.total_micro - self.credited_micro

    @property
    def open_micro(self) -> int:
        """What is not paid, disputed or not."""
        return self.claim_micro - self.paid_micro

    @property
    def undisputed_micro(self) -> int:
        """What is to be paid."""
        return max(0, self.open_micro - self.disputed_micro)


@dataclass(frozen=True, slots=True)
class Account:
    """How far a connection's billing has come."""

    last: Annotated[int, Integer(0, 10**6)] = 0
    """Number of the last document."""
    billed_to: Day | None = None
    open: Annotated[tuple[Number, ...], AtMost(MAX_OPEN)] = ()


@dataclass(frozen=True, slots=True)
class BilledPeriod:
    """What was billed for a period, all its runs together."""

    from_day: Day
    to_day: Day
    run: Run
    total_micro: Money
    drawn_wh: Energy
    numbers: Annotated[tuple[Number, ...], AtMost(MAX_RUNS)]
    """Its documents with something to pay."""
    banked_wh: Energy = 0
    draws: Annotated[tuple[CreditDraw, ...], AtMost(MAX_CREDITS)] = ()
    """What it takes of earlier bills' credits."""


@dataclass(frozen=True, slots=True)
class Lot:
    """Energy bought in advance."""

    supplier: MspId
    """Who sold it, and whose bills alone it covers."""
    energy_wh: Energy
    """What is left of it."""
    price: Annotated[int, Integer(0, 10**9, "micro-units per kWh")]


@dataclass(frozen=True, slots=True)
class Draw:
    """What a posted bill took out of a credit, or would have."""

    from_day: Day
    days: Annotated[int, Integer(1, 366)]
    amount_micro: Money
    energy_wh: Energy


@dataclass(frozen=True, slots=True)
class Prepaid:
    """What was paid in advance, besides the hold `prepayment` in money."""

    lots: Annotated[tuple[Lot, ...], AtMost(MAX_LOTS)] = ()
    draws: Annotated[tuple[Draw, ...], AtMost(DRAWS)] = ()
    emergency: bool = False
    """Whether the home has asked for its emergency credit."""
    low: bool = False

    def energy_wh(self, supplier: str) -> int:
        """What is left of a supplier's energy."""
        return sum(lot.energy_wh for lot in self.lots if lot.supplier == supplier)


def supplies_of(context: Context, connection_id: str) -> Supplies:
    """What was agreed for a connection; empty if nothing was."""
    stored = context.get_state(f"supply/{connection_id}")
    return Supplies() if stored is None else stored_record(Supplies, stored)


def supply_on(context: Context, connection_id: str, day: str) -> Supply:
    """What holds for a connection on a local day; raises NotFound."""
    found = supplies_of(context, connection_id).on(day)
    if found is None:
        raise NotFound(
            f"connection {connection_id} has no supply on {day}; its supplier calls "
            "billing:AgreeSupply"
        )
    return found


def latest_supply(context: Context, connection_id: str) -> Supply:
    """The last version that was agreed, in force or to come; raises NotFound."""
    versions = supplies_of(context, connection_id).versions
    if not versions:
        raise NotFound(
            f"connection {connection_id} has no supply; its supplier calls billing:AgreeSupply"
        )
    return versions[-1]


def current_supply(context: Context, connection_id: str, now: int) -> Supply:
    """What holds for a connection today, or first will; raises NotFound.

    Where the region's calendar has run out the day is UTC's: no payment waits for a calendar.
    """
    latest = latest_supply(context, connection_id)
    try:
        today = calendar_at(context, latest.region, now).day_at(now)
    except NotFound:
        today = day_of(now)
    supplies = supplies_of(context, connection_id)
    return supplies.on(today) or supplies.versions[0]


def calendar_at(context: Context, region: str, at: int) -> Calendar:
    """A region's calendar in force at an instant; raises NotFound."""
    return agreements.in_force(context, CALENDAR, region, at, Calendar)


def period_end(supplies: Supplies, from_day: str) -> str:
    """The day after the last of the bill that begins on a day of a supply.

    A bill ends with its period, and where another supplier or another way to pay begins.
    """
    terms = supplies.on(from_day)
    assert terms is not None, "a bill's first day has a supply"
    start = day_start(from_day)
    if terms.period == "month":
        # A month's first day and 31 more are always in the next one.
        end = day_of(day_start(from_day[:8] + "01") + 31 * DAY_S)[:8] + "01"
    elif terms.period == "week":
        end = day_of(start + (7 - (start // DAY_S + 3) % 7) * DAY_S)
    else:
        end = day_of(start + DAY_S)
    for version in supplies.versions:
        if from_day < version.from_day < end and (version.supplier, version.payment) != (
            terms.supplier,
            terms.payment,
        ):
            return version.from_day
    return end


def document_of(context: Context, connection_id: str, number: int) -> Document:
    """A document; raises NotFound."""
    stored = context.get_state(f"bill/{connection_id}/{number:06d}")
    if stored is None:
        raise NotFound(f"connection {connection_id} has no bill {number}")
    return stored_record(Document, stored)


def period_of(context: Context, connection_id: str, from_day: str) -> BilledPeriod | None:
    """What was billed for the period that begins on a day."""
    stored = context.get_state(f"billperiod/{connection_id}/{from_day}")
    return None if stored is None else stored_record(BilledPeriod, stored)


def prepaid_of(context: Context, connection_id: str) -> Prepaid:
    """What a connection has paid in advance."""
    stored = context.get_state(f"prepaid/{connection_id}")
    return Prepaid() if stored is None else stored_record(Prepaid, stored)


def credit_of(context: Context, connection_id: str) -> wallet.Hold | None:
    """The credit in money, None if there is none."""
    stored = context.get_state(f"acct/{connection_id}/hold/{CREDIT_HOLD}")
    hold = None if stored is None else stored_record(wallet.Hold, stored)
    return hold if hold is not None and hold.state == "pending" else None


def require_sight(context: Context, connection_id: str) -> Connection:
    """The connection; raises Forbidden unless the caller may see what it owes."""
    connection = connection_of(context, connection_id)
    creator = context.creator
    suppliers = [connection.utility]
    suppliers += [each.supplier for each in supplies_of(context, connection_id).versions]
    access.require(
        homes.is_home(context, connection)
        or (creator.msp_id in suppliers and access.is_supplier(creator, creator.msp_id)),
        creator,
        f"see what {connection_id} owes",
        f"its home, operators of {connection.utility} and its suppliers",
    )
    return connection


def seen_bills(context: Context, connection_id: str) -> Residence:
    """Whose time's bills the caller may see: a home its own, who bills it all; raises Forbidden."""
    own = homes.residence(context, connection_of(context, connection_id))
    if own.ever and not access.is_supplier(context.creator, context.creator.msp_id):
        return own
    require_sight(context, connection_id)
    return EVERYBODY


def require_home(context: Context, connection_id: str, act: str) -> Connection:
    """The connection; raises Forbidden unless its home calls."""
    connection = connection_of(context, connection_id)
    homes.require_home(context, connection, act)
    return connection


def take_bank_reference(
    context: Context, supplier: str, bank_reference: str, connection_id: str, amount_micro: int
) -> wallet.Transfer:
    """Use a bank reference up, deposits' included, and return what moves the money to the home.

    Raises Conflict for one that was used before.
    """
    key = f"bank/{supplier}/{bank_reference}"
    if context.get_state(key) is not None:
        raise Conflict(f"bank_reference {bank_reference} of {supplier} is in use already")
    currency = energy_settings(context).currency
    context.put_state(
        key,
        canonical_json(
            wallet.Deposit(
                connection_id,
                amount_micro,
                bank_reference,
                context.transaction_id,
                currency,
                amount_micro,
            )
        ),
    )
    return wallet.Transfer(
        wallet.bank_account(supplier), connection_id, amount_micro, "deposit", bank_reference
    )


@dataclass(frozen=True, slots=True)
class Creditor:
    """On whose bills a permit depends: the present supplier's alone, not an earlier one's."""

    supplier: str
    emergency_micro: int
    """What prepaid bills may leave open."""


class Dues:
    """What a connection owes, with the changes of this transaction; `write` once at the end."""

    def __init__(self, context: Context, connection_id: str) -> None:
        """Begin with what is on the ledger."""
        self._context = context
        self._connection_id = connection_id
        stored = context.get_state(f"billing/{connection_id}")
        self.account = Account() if stored is None else stored_record(Account, stored)
        self._before = self.account
        self._standings: dict[int, Standing] = {}
        self._changed: dict[int, Standing] = {}
        self._documents: list[Document] = []

    def standing(self, number: int) -> Standing:
        """What has become of a document; raises NotFound for one with nothing to pay."""
        if number not in self._standings:
            stored = self._context.get_state(f"due/{self._connection_id}/{number:06d}")
            if stored is None:
                raise NotFound(
                    f"connection {self._connection_id} has no bill {number} that is to be paid"
                )
            self._standings[number] = stored_record(Standing, stored)
        return self._standings[number]

    def open(self) -> list[Standing]:
        """Those that are not paid, by when they are due."""
        found = [self.standing(number) for number in self.account.open]
        return sorted(found, key=lambda each: (each.due_at, each.number))

    def open_micro(self) -> int:
        """What is not paid, disputed or not."""
        return sum(each.open_micro for each in self.open())

    def due_micro(self, now: int) -> int:
        """What should be paid by now."""
        return sum(each.undisputed_micro for each in self.open() if each.due_at <= now)

    def prepaid_over_micro(self, now: int, creditor: Creditor) -> int:
        """What prepaid bills leave open by now, beyond what they may; estimates don't count."""
        prepaid = sum(
            each.undisputed_micro for each in self.enforceable(now, creditor) if each.prepaid
        )
        return max(0, prepaid - creditor.emergency_micro)

    def enforceable_micro(self, now: int, creditor: Creditor) -> int:
        """Of what is due: what may cost a connection its permit."""
        later = sum(
            each.undisputed_micro for each in self.enforceable(now, creditor) if not each.prepaid
        )
        return later + self.prepaid_over_micro(now, creditor)

    def enforceable(self, now: int, creditor: Creditor) -> list[Standing]:
        """Bills that may have consequences: due, not estimated, of the present supplier.

        And of who lives there now: what was used before they came is others' to pay.
        """
        found = [
            each
            for each in self.open()
            if each.due_at <= now and not each.estimated and each.supplier == creditor.supplier
        ]
        since = homes.lives_since(self._context, self._connection_id, now) if found else 0
        if since == 0:
            return found
        return [] if since is None else [each for each in found if self._begins(each) >= since]

    def show(self, seen: Residence) -> None:
        """Leave out bills that aren't of some times. In queries only."""
        if seen != EVERYBODY:
            shown = (each.number for each in self.open() if seen.at(self._begins(each)))
            self.account = replace(self.account, open=tuple(sorted(shown)))

    def _begins(self, standing: Standing) -> int:
        """When a bill's time begins; local days are told apart by the noon of the UTC day."""
        document = document_of(self._context, self._connection_id, standing.number)
        return day_start(document.from_day) + DAY_S // 2

    def put(self, standing: Standing) -> None:
        """Change what has become of a document."""
        ensure(0 <= standing.paid_micro <= standing.claim_micro, "no claim is paid twice")
        ensure(0 <= standing.disputed_micro <= standing.claim_micro, "claims alone are disputed")
        self._standings[standing.number] = self._changed[standing.number] = standing
        others = tuple(number for number in self.account.open if number != standing.number)
        if standing.open_micro:
            if len(others) == MAX_OPEN:
                raise LimitExceeded(
                    f"connection {self._connection_id} has {MAX_OPEN} unpaid bills, the limit; "
                    "bill longer periods, or take a credit note and bill them together"
                )
            others = (*others, standing.number)
        self.account = replace(self.account, open=tuple(sorted(others)))

    def next_number(self) -> int:
        """The number of the next document."""
        return self.account.last + 1

    def add(self, document: Document) -> None:
        """Enter a document under the next number."""
        ensure(document.number == self.next_number(), "documents are numbered without a gap")
        self.account = replace(self.account, last=document.number)
        self._documents.append(document)

    def billed_to(self, day: str) -> None:
        """Note up to where the connection is billed."""
        self.account = replace(self.account, billed_to=day)

    def write(self) -> None:
        """Write what changed."""
        for document in self._documents:
            self._context.put_state(
                f"bill/{self._connection_id}/{document.number:06d}", canonical_json(document)
            )
        for number, standing in sorted(self._changed.items()):
            self._context.put_state(
                f"due/{self._connection_id}/{number:06d}", canonical_json(standing)
            )
        if self.account != self._before:
            self._context.put_state(f"billing/{self._connection_id}", canonical_json(self.account))

    # Money

    def pay(
        self,
        ledger: wallet.Ledger,
        amount_micro: int,
        *,
        number: int | None = None,
        supplier: str | None = None,
        shard: str | None = None,
        reference: str,
    ) -> list[tuple[int, int]]:
        """Pay open documents, those due first first; (number, amount) of each.

        Args:
            ledger: Moves the money to each document's supplier.
            amount_micro: At most this; what is over is not taken.
            number: Only this document.
            supplier: Only this supplier's.
            shard: Out of this shard of the account, else charged to it.
            reference: Of the postings.
        """
        paid = []
        for standing in self.open():
            if (number is not None and standing.number != number) or (
                supplier is not None and standing.supplier != supplier
            ):
                continue
            part = min(amount_micro, standing.open_micro)
            if not part:
                continue
            amount_micro -= part
            ledger.transfer(
                wallet.Transfer(
                    self._connection_id,
                    wallet.supplier_account(standing.supplier),
                    part,
                    "bill",
                    reference,
                ),
                from_shard=shard,
            )
            self.put(replace(standing, paid_micro=standing.paid_micro + part))
            paid.append((standing.number, part))
        return paid

    def credit(self, ledger: wallet.Ledger, number: int, amount_micro: int, reference: str) -> int:
        """Take something off a document; what was paid too much goes back at once, and is returned.

        Raises InvalidArgument for more than there is.
        """
        standing = self.standing(number)
        if amount_micro > standing.claim_micro:
            raise InvalidArgument(
                f"amount_micro is {amount_micro}, but bill {number} has {standing.claim_micro} "
                "micro-units left to credit"
            )
        changed = replace(standing, credited_micro=standing.credited_micro + amount_micro)
        back = max(0, changed.paid_micro - changed.claim_micro)
        self.put(
            replace(
                changed,
                paid_micro=changed.paid_micro - back,
                disputed_micro=min(changed.disputed_micro, changed.claim_micro),
            )
        )
        self.pay_out(ledger, standing.supplier, back, reference)
        return back

    def pay_out(
        self, ledger: wallet.Ledger, supplier: str, amount_micro: int, reference: str
    ) -> None:
        """Pay from a supplier to the home, whatever the supplier's balance is."""
        ledger.transfer(
            wallet.Transfer(
                wallet.supplier_account(supplier),
                self._connection_id,
                amount_micro,
                "credit_note",
                reference,
            )
        )
