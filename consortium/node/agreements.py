"""What utilities agree on before homes can trade and be billed, for a pilot or a demo.

Several utilities approve each of these terms; who proposes and approves here has all utilities'
operators in one folder. A consortium whose utilities run apart does the same by hand, with terms of
its own: docs/contracts.md, `…:Propose…` and `…:Approve…`.

Every step looks first whether it was done: what is agreed stays as it is.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from gridledger_client import (
    CommitFailed,
    Committed,
    GatewayClient,
    GridLedgerError,
    TransactionRefused,
)

from .contracts import client
from .network import Network, NetworkError

DAY_S = 86_400
ZONE = "NORTH"
REGION = "CET"
PRODUCT = "ANY"
"""Every neighbour's energy, whatever it comes from: what the integration trades by default."""
REGULATED = "REGULATED"
FIRST_MARGIN_S = 15.0
"""Real seconds from proposing to the instant from which terms hold."""
LONGEST_MARGIN_S = 240.0
APPROVAL_TIMEOUT_S = 30.0
RETRY_S = 0.2
LOCAL_AHEAD_S = 2 * 3600
"""How far local days begin before UTC's."""
YEARS_KNOWN = 6


@dataclass(frozen=True, slots=True)
class Beginning:
    """From when on what is agreed now can hold, in the channel's time."""

    at: int
    """On a boundary of intervals."""
    first_day: str
    """The first whole day after it, which is settled and billed."""


def channel_time(network: Network, real: float | None = None) -> int:
    """The channel's time now, or at an instant."""
    real = time.time() if real is None else real
    replay = network.replay
    if replay is None:
        return int(real)
    return replay.origin + int((real - replay.anchor) * replay.rate)


def beginning(network: Network, margin_s: float = FIRST_MARGIN_S) -> Beginning:
    """The beginning that lies `margin_s` real seconds ahead."""
    at = channel_time(network, time.time() + margin_s)
    at = -(-at // network.interval_s) * network.interval_s
    # Local days begin before UTC's, and a tariff has to hold from the local day's begin on.
    day = -(-(at + LOCAL_AHEAD_S) // DAY_S) * DAY_S
    return Beginning(at, str(datetime.fromtimestamp(day, UTC).date()))


# Terms


def central_european_time(at: int) -> dict[str, Any]:
    """The calendar around an instant: clocks change on the last Sundays of March and October."""
    first = datetime.fromtimestamp(at, UTC).year - 1
    years = range(first, first + YEARS_KNOWN + 1)
    offsets = [{"from": _instant(date(first, 1, 1)), "offset_s": 3600}]
    for year in years:
        for month, offset_s in ((3, 7200), (10, 3600)):
            last = date(year, month, 31)
            sunday = last - timedelta(days=(last.weekday() + 1) % 7)
            offsets.append({"from": _instant(sunday) + 3600, "offset_s": offset_s})
    return {
        "region": REGION,
        "offsets": offsets,
        "known_until": _instant(date(years[-1] + 1, 1, 1)),
        "holidays": [
            f"{year}-{day}" for year in years for day in ("01-01", "05-01", "12-25", "12-26")
        ],
    }


def _instant(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def product(network: Network) -> dict[str, Any]:
    """Neighbours trade each interval in a call auction, which the agents then have time to clear.

    Energy that stays in the zone pays two fifths of the grid fee.
    """
    rate = network.replay.rate if network.replay else 1
    return {
        "product": PRODUCT,
        "zones": [{"zone": ZONE, "local_fee": 20_000, "entry_fee": 50_000, "exit_fee": 0}],
        "price_min": 0,
        "price_max": 1_000_000,
        "price_tick": 100,
        "price_rule": "middle",
        "gate_closure_s": max(60 * rate, min(900, network.interval_s)),
        "shortfall_margin": 50_000,
    }


def tariff(name: str, supplier: str, number: int) -> dict[str, Any]:
    """A tariff by day and night; suppliers differ a little, and the regulated one is dearer."""
    day = 286_000 + 7_000 * number
    return {
        "tariff": name,
        "supplier": supplier,
        "standing_micro_per_day": 230_000,
        "bands": [
            {
                "name": "DAY",
                "days": "WORKDAY",
                "from_minute": 420,
                "to_minute": 1320,
                "price": day,
            },
            {
                "name": "NIGHT",
                "days": "EVERY",
                "from_minute": 0,
                "to_minute": 1440,
                "price": day - 62_000,
            },
        ],
        "blocks": [],
        "index": None,
        "index_ppm": 0,
        "markup": 0,
        "capacity_micro_per_kw_month": 0,
        "feed_in": 62_000,
        "feed_in_index_ppm": 0,
        "taxes": [{"name": "VAT", "rate_ppm": 81_000}],
        "rounding": "total",
    }


def tariff_of(msp_id: str) -> str:
    """The name of a utility's tariff for homes."""
    return f"HOME-{msp_id.removesuffix('MSP').upper()}"


def settlement_terms(supplier: str) -> dict[str, Any]:
    """Trades settle by the day; what they leave is billed by the tariff."""
    return {
        "supplier": supplier,
        "region": REGION,
        "tariff": 300_000,
        "base_rate": 60_000,
        "rest": "billed",
        "shortfall_price": 340_000,
        "surplus_price": 40_000,
        "import_fee": 0,
        "shared_fee": 20_000,
        "netting_intervals": 1,
        "final_after_working_days": 10,
        "adjustable_days": 425,
    }


PERMIT_RULES: Mapping[str, Any] = {
    "region": REGION,
    "min_due_micro": 25_000_000,
    "reminder_days": 7,
    "final_days": 14,
    "warning_days": 7,
    "notice_days": 25,
    "prepaid_notice_days": 2,
    "grace_days": 15,
    "limit_w": 1000,
    "from_minute": 480,
    "to_minute": 840,
    "seasons": [{"from": "11-01", "to": "03-31"}],
}


def supply(connection_id: str, supplier: str, from_day: str) -> dict[str, Any]:
    """A home's supply by the utility that meters it, billed by the day and paid later."""
    return {
        "connection_id": connection_id,
        "supplier": supplier,
        "region": REGION,
        "tariff": tariff_of(supplier),
        "regulated_tariff": REGULATED,
        "from_day": from_day,
        "period": "day",
        "payment": "postpaid",
        "term_days": 14,
        "emergency_micro": 0,
        "low_days": 3,
        "on_site": False,
    }


# Agreeing


@dataclass(frozen=True, slots=True)
class _Topic:
    """Something to agree on."""

    what: str
    proposer: int
    """Which utility proposes it, by its number."""
    propose: str
    approve: str
    named: Mapping[str, str]
    """What `approve` calls it."""
    terms: Callable[[Beginning], Mapping[str, Any]]
    known: Callable[[Beginning], tuple[str, Mapping[str, Any]]]
    """A query that answers if it is agreed."""
    by_the_day: bool = False
    """Holds from the first day on, not from the beginning."""


def _topics(network: Network) -> tuple[list[_Topic], list[_Topic]]:
    """What is agreed first, and what rests on that."""

    def at(function: str, **named: str) -> Callable[[Beginning], tuple[str, Mapping[str, Any]]]:
        return lambda begin: (function, {**named, "at": begin.at})

    def always(terms: Mapping[str, Any]) -> Callable[[Beginning], Mapping[str, Any]]:
        return lambda _: terms

    def settled(supplier: str) -> Callable[[Beginning], tuple[str, Mapping[str, Any]]]:
        return lambda begin: (
            "settlement:Terms",
            {"supplier": supplier, "day": begin.first_day},
        )

    calendar = _Topic(
        f"calendar {REGION}", 0, "tariff:ProposeCalendar", "tariff:ApproveCalendar",
        {"region": REGION}, lambda begin: central_european_time(begin.at),
        at("tariff:Calendar", region=REGION),
    )  # fmt: skip
    first = network.utilities[0].msp_id
    zone = {"zone": ZONE, "grid_operator": first, "region": REGION}
    topics = [
        _Topic(
            f"zone {ZONE}", 0, "grid:ProposeZone", "grid:ApproveZone",
            {"zone": ZONE}, always(zone), at("grid:Zone", zone=ZONE),
        ),
        _Topic(
            f"product {PRODUCT}", 0, "book:ProposeProduct", "book:ApproveProduct",
            {"product": PRODUCT}, always(product(network)), at("book:Product", product=PRODUCT),
        ),
        _Topic(
            f"permit rules of {REGION}", 0, "permit:ProposeRules", "permit:ApproveRules",
            {"region": REGION}, always(PERMIT_RULES), at("permit:Rules", region=REGION),
        ),
        _Topic(
            f"tariff {REGULATED}", 0, "tariff:Propose", "tariff:Approve",
            {"tariff": REGULATED}, always(tariff(REGULATED, first, 4)),
            at("tariff:Tariff", tariff=REGULATED),
        ),
    ]  # fmt: skip
    for number, utility in enumerate(network.utilities):
        name, msp_id = tariff_of(utility.msp_id), utility.msp_id
        own, rules = tariff(name, msp_id, number), settlement_terms(msp_id)
        topics += [
            _Topic(
                f"tariff {name}", number, "tariff:Propose", "tariff:Approve", {"tariff": name},
                always(own), at("tariff:Tariff", tariff=name),
            ),
            _Topic(
                f"settlement terms of {msp_id}", number, "settlement:ProposeTerms",
                "settlement:ApproveTerms", {"supplier": msp_id}, always(rules),
                settled(msp_id), by_the_day=True,
            ),
        ]  # fmt: skip
    return [calendar], topics


async def ensure_agreements(
    network: Network,
    progress: Callable[[str], None] = lambda _message: None,
    *,
    margin_s: float = FIRST_MARGIN_S,
) -> Sequence[str]:
    """Have the utilities agree on a first market, as far as they haven't.

    It begins `margin_s` real seconds later, or as much later as it takes them.

    Returns:
        What was agreed now.

    Raises:
        NetworkError: more utilities must approve than there are.
        GridLedgerError: a utility refuses or doesn't answer.
    """
    operators = [client(network, utility, "operator") for utility in network.utilities]
    try:
        settings = await operators[0].evaluate("energy", "registry:Settings")
        needed = int(settings["approvals"])
        if needed > len(operators):
            raise NetworkError(
                f"{needed} utilities must approve terms here, but {len(operators)} are in "
                f"{network.directory}"
            )
        progress("the utilities agree on calendar, zone, product, tariffs and terms")
        agreed: list[str] = []
        for topics in _topics(network):
            done = await asyncio.gather(
                *(_ensure(network, operators, topic, needed, margin_s) for topic in topics)
            )
            agreed += [topic.what for topic, new in zip(topics, done, strict=True) if new]
        await asyncio.gather(
            *(
                operator.submit(
                    "energy",
                    "roles:RegisterParticipant",
                    {
                        "participant_id": utility.msp_id,
                        "utility": utility.msp_id,
                        "name": utility.name,
                        "kinds": [
                            "grid_operator",
                            "metering_operator",
                            "supplier",
                            "balance_responsible",
                        ],
                    },
                )
                for operator, utility in zip(operators, network.utilities, strict=True)
            )
        )
    finally:
        await asyncio.gather(*(operator.close() for operator in operators))
    return agreed


async def _ensure(
    network: Network,
    operators: Sequence[GatewayClient],
    topic: _Topic,
    needed: int,
    margin_s: float,
) -> bool:
    """Agree on one topic; whether that was needed."""
    proposer = operators[topic.proposer]
    while True:
        begin = beginning(network, margin_s)
        if await _is_agreed(proposer, topic, begin):
            return False
        from_ = _instant(date.fromisoformat(begin.first_day)) if topic.by_the_day else begin.at
        try:
            terms = {"terms": topic.terms(begin), "effective_from": from_}
            proposed = await _patiently(proposer, topic.propose, terms, network, from_)
            approved = {**topic.named, "version": proposed.result["version"]}
            for number in range(1, needed):
                approver = operators[(topic.proposer + number) % len(operators)]
                await _patiently(
                    approver, topic.approve, approved, network, from_, again=GridLedgerError
                )
        except TransactionRefused, CommitFailed:
            # The instant came first: this machine, or a utility, is slower than was thought.
            margin_s *= 2
            if margin_s > LONGEST_MARGIN_S or channel_time(network) < from_:
                raise
        else:
            return True


async def _is_agreed(operator: GatewayClient, topic: _Topic, begin: Beginning) -> bool:
    function, argument = topic.known(begin)
    try:
        await operator.evaluate("energy", function, argument)
    except TransactionRefused as error:
        if error.status != 404:
            raise
        return False
    return True


async def _patiently(
    operator: GatewayClient,
    function: str,
    argument: Mapping[str, Any],
    network: Network,
    from_: int,
    *,
    again: type[GridLedgerError] = TransactionRefused,
) -> Committed:
    """Submit what a peer refuses that is a block behind, until its instant (channel time) comes.

    `again`: what it is submitted again after.
    """
    deadline = time.monotonic() + APPROVAL_TIMEOUT_S
    while True:
        try:
            return await operator.submit("energy", function, dict(argument))
        except again:
            if time.monotonic() > deadline or channel_time(network) >= from_:
                raise
            await asyncio.sleep(RETRY_S)
