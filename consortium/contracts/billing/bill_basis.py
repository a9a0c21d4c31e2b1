"""What a bill is made from: the public terms of its period, and readings that are private.

Pure: `energy` says what holds in a period (`Basis`), `metering` knows the readings, and this
module joins them to a bill. Whoever has both comes to the same micro-unit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from consortium.chaincode.api import AtMost, Identifier, Integer, MspId

from ..common.clock import Day, day_start
from ..common.commitments import Commitment, Salt
from ..common.settings import IntervalLength
from ..settlement.days import Run as SettlementRun
from .calendars import Calendar
from .tariffs import Bill, Energy, Index, Money, Period, Tariff, Usage, bill

MAX_PERIOD_DAYS = 32
MAX_STRETCHES = 16
MAX_RUNS = 50
MAX_CREDITS = 62
"""Lots of banked credits that one bill uses."""
MAX_OPEN_BILLS = 100
"""Bills to be computed that are named at once."""

Run = Annotated[int, Integer(1, MAX_RUNS)]
"""How often a period was computed: 1 is the first bill, each later one a correction."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Local days of one version of everything."""

    from_day: Day
    to_day: Day
    """The day after the last."""
    calendar: Calendar
    tariff: Tariff
    regulated: Tariff | None
    """The tariff that a regulator has set, for comparison."""
    social: Tariff | None = None
    """What the entitled pay in place of `tariff`; it stands here for every home alike."""


@dataclass(frozen=True, slots=True)
class SettledDay:
    """How a day's energy was settled before it is billed."""

    day: Day
    run: SettlementRun | None
    """The last that was posted; None: this supplier's days aren't settled, all is billed."""
    billed: bool
    """Whether what trades and sharing left is billed; else it was paid at settlement."""


@dataclass(frozen=True, slots=True)
class CreditDraw:
    """Of a banked credit: what sets off import, or still can."""

    lot: Day
    energy_wh: Energy


@dataclass(frozen=True, slots=True)
class Basis:
    """The public part of what a bill is computed from."""

    connection_id: Identifier
    utility: MspId
    """Who meters the connection."""
    supplier: MspId
    """Who bills it."""
    interval_s: IntervalLength
    stretches: Annotated[tuple[Stretch, ...], AtMost(MAX_STRETCHES)]
    indices: Annotated[tuple[Index, ...], AtMost(4 * (MAX_PERIOD_DAYS + 2))]
    settled: Annotated[tuple[SettledDay, ...], AtMost(MAX_PERIOD_DAYS)]
    """Each day of the period."""
    prepaid_wh: Energy
    """Energy that was paid in advance: it covers the first import of the period."""
    credits: Annotated[tuple[CreditDraw, ...], AtMost(MAX_CREDITS)] = ()
    """What earlier bills have banked and this one can use, the oldest first."""

    @property
    def credit_wh(self) -> int:
        """All that credits can set off."""
        return sum(each.energy_wh for each in self.credits)

    def bounds(self) -> tuple[int, int]:
        """Where the period begins and ends."""
        first, last = self.stretches[0], self.stretches[-1]
        return first.calendar.start_of(first.from_day), last.calendar.start_of(last.to_day)


@dataclass(frozen=True, slots=True)
class BillRecord:
    """A bill with all its lines, as its utility keeps it in private."""

    connection_id: Identifier
    from_day: Day
    to_day: Day
    run: Run
    bills: Annotated[tuple[Bill, ...], AtMost(MAX_STRETCHES)]
    """One for each stretch of days under one version of the terms."""
    total_micro: Money
    regulated: Annotated[tuple[Bill, ...], AtMost(MAX_STRETCHES)]
    """What the same usage costs under the regulated tariff; empty without one."""
    regulated_micro: Money | None
    drawn_wh: Energy
    """Import that energy paid in advance has covered; the bills are of the rest."""
    import_wh: Energy
    export_wh: Energy
    estimated_intervals: Annotated[int, Integer(0, 10**6)]
    """Intervals whose readings are estimated or substituted."""
    salt: Salt

    @property
    def credited_wh(self) -> int:
        """Import that banked credits have set off."""
        return sum(each.energy_wh("credit") for each in self.bills)

    @property
    def banked_wh(self) -> int:
        """What is left of the export, for later bills."""
        return sum(each.energy_wh("banked") for each in self.bills)

    def as_drawn(self, basis: Basis) -> Basis:
        """The basis as it was for this record, whatever is left of credits by now."""
        used = (CreditDraw(self.from_day, self.credited_wh),) if self.credited_wh else ()
        return replace(basis, prepaid_wh=self.drawn_wh, credits=used)


@dataclass(frozen=True, slots=True)
class Statement:
    """The part of a bill that is posted in public, with the commitment to the rest."""

    connection_id: Identifier
    from_day: Day
    to_day: Day
    run: Run
    total_micro: Money
    drawn_wh: Energy
    estimated: bool
    commitment: Commitment
    """Of the `BillRecord`."""
    banked_wh: Energy = 0
    """What it leaves as a credit for later bills."""
    draws: Annotated[tuple[CreditDraw, ...], AtMost(MAX_CREDITS)] = ()
    """What it takes of earlier bills' credits."""


@dataclass(frozen=True, slots=True)
class EntitledDays:
    """Local days on which a home is entitled to the social tariff."""

    from_day: Day
    to_day: Day
    """The day after the last."""


@dataclass(frozen=True, slots=True)
class Relief:
    """What the supplier owes a home for its bill, because it is entitled to the social tariff.

    Private, and there is one for each home whose tariff has a social one, most of them of nothing:
    its key's hash is public, and so are a bill's total and each day's energy, from which everybody
    could tell at which price it was billed. So bills stay what they are for all.
    """

    connection_id: Identifier
    from_day: Day
    to_day: Day
    run: Run
    entitled: Annotated[tuple[EntitledDays, ...], AtMost(MAX_PERIOD_DAYS)]
    """Within the period."""
    bills: Annotated[tuple[Bill, ...], AtMost(2 * MAX_PERIOD_DAYS)]
    """The period's usage, on these days under the social tariff; none without such days."""
    relief_micro: Money
    """By how much these are less than under the usual tariff alone; never below 0."""
    salt: Salt


@dataclass(frozen=True, slots=True)
class OpenBill:
    """A period that is over, whose days are settled, and that isn't billed."""

    connection_id: Identifier
    from_day: Day
    to_day: Day


@dataclass(frozen=True, slots=True)
class BilledDay:
    """By which bill a day was billed: its period and last run; None where it wasn't."""

    connection_id: Identifier
    from_day: Day | None
    to_day: Day | None
    run: Run | None


@dataclass(frozen=True, slots=True)
class OpenBills:
    """What is to be billed."""

    bills: Annotated[tuple[OpenBill, ...], AtMost(MAX_OPEN_BILLS)]


def record_key(connection_id: str, from_day: str, run: int) -> str:
    """Where a bill's record stands among the private records."""
    return f"bill/{connection_id}/{from_day}/{run}"


def statement_key(connection_id: str, from_day: str, run: int) -> str:
    """Where its public part stands, so that every peer can check what is posted."""
    return f"billsum/{connection_id}/{from_day}/{run}"


def relief_key(connection_id: str, from_day: str, run: int) -> str:
    """Where a bill's relief stands among the private records."""
    return f"relief/{connection_id}/{from_day}/{run}"


def period_days(from_day: str, to_day: str) -> int:
    """How many days a period has; negative where it ends before it begins."""
    return (day_start(to_day) - day_start(from_day)) // 86_400


def draw(usage: Sequence[Usage], prepaid_wh: int) -> tuple[list[Usage], int]:
    """Cover import with energy paid in advance, interval by interval, until it is used up.

    Returns:
        The usage that is left to bill, and what was drawn in Wh.
    """
    left, drawn = prepaid_wh, 0
    rest = []
    for each in sorted(usage, key=lambda one: one.interval_start):
        covered = min(left, each.import_wh)
        left -= covered
        drawn += covered
        rest.append(replace(each, import_wh=each.import_wh - covered))
    return rest, drawn


def draw_credits(credits: Sequence[CreditDraw], energy_wh: int) -> tuple[CreditDraw, ...]:
    """Take energy out of credits, in their order."""
    found = []
    for each in credits:
        part = min(energy_wh, each.energy_wh)
        energy_wh -= part
        if part:
            found.append(replace(each, energy_wh=part))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Metered:
    """What the readings of a period come to."""

    usage: tuple[Usage, ...]
    """What is to be billed: without what was traded, shared or paid at settlement."""
    peaks: Mapping[int, int]
    """Highest import of each local day's intervals, all of it, by the day's first instant."""
    estimated: int
    """How many readings are not measured."""
    secrets: tuple[str, ...]
    """Salts of what it was read from."""


def compute(basis: Basis, metered: Metered, run: int, salt: str) -> BillRecord:
    """Compute the bill of a period.

    Args:
        basis: What holds in the period.
        metered: What its readings come to.
        run: Which computation of the period it is.
        salt: Of the record's commitment.

    Raises:
        InvalidArgument: an interval is outside of the period, or lacks the price of an index.
    """
    rest, drawn = draw(metered.usage, basis.prepaid_wh)
    prices = _prices(basis)
    own = _bills(basis, metered, _usual(basis), rest, prices)
    compared = [(each, each.regulated) for each in basis.stretches if each.regulated is not None]
    regulated = (
        _bills(basis, metered, compared, metered.usage, prices)
        if len(compared) == len(basis.stretches)
        else ()
    )
    return BillRecord(
        basis.connection_id,
        basis.stretches[0].from_day,
        basis.stretches[-1].to_day,
        run,
        own,
        sum(each.total_micro for each in own),
        regulated,
        sum(each.total_micro for each in regulated) if regulated else None,
        drawn,
        sum(each.import_wh for each in metered.usage),
        sum(each.export_wh for each in metered.usage),
        metered.estimated,
        salt,
    )


def relieve(
    basis: Basis, metered: Metered, run: int, entitled: Sequence[EntitledDays], salt: str
) -> Relief:
    """Compute what a home has less to pay for a period on whose days it is entitled.

    Of all its usage, what was paid in advance at the usual price included. Where the social tariff
    begins or ends, the period is cut as where any tariff changes.

    Args:
        basis: What holds in the period.
        metered: What its readings come to.
        run: Which computation of the period it is.
        entitled: Days, in order; those outside of the period are left out.
        salt: Of the record's commitment.
    """
    first, last = basis.stretches[0].from_day, basis.stretches[-1].to_day
    within = tuple(
        EntitledDays(max(first, each.from_day), min(last, each.to_day))
        for each in entitled
        if each.from_day < last and first < each.to_day
    )
    made: tuple[Bill, ...] = ()
    relief = 0
    if within:
        prices = _prices(basis)
        made = _bills(basis, metered, _entitled(basis, within), metered.usage, prices)
        usual = _bills(basis, metered, _usual(basis), metered.usage, prices)
        relief = sum(each.total_micro for each in usual) - sum(each.total_micro for each in made)
    return Relief(basis.connection_id, first, last, run, within, made, max(0, relief), salt)


def _usual(basis: Basis) -> list[tuple[Stretch, Tariff]]:
    return [(each, each.tariff) for each in basis.stretches]


def _entitled(basis: Basis, entitled: Sequence[EntitledDays]) -> list[tuple[Stretch, Tariff]]:
    """The stretches, cut where the social tariff begins or ends, each with what holds in it."""
    found: list[tuple[Stretch, Tariff]] = []
    for stretch in basis.stretches:
        day = stretch.from_day
        for each in entitled if stretch.social is not None else ():
            first, last = max(day, each.from_day), min(stretch.to_day, each.to_day)
            if first >= last:
                continue
            if day < first:
                found.append((replace(stretch, from_day=day, to_day=first), stretch.tariff))
            assert stretch.social is not None
            found.append((replace(stretch, from_day=first, to_day=last), stretch.social))
            day = last
        if day < stretch.to_day:
            found.append((replace(stretch, from_day=day), stretch.tariff))
    return found


def _prices(basis: Basis) -> Mapping[str, Mapping[int, int]]:
    """The prices of each index, by the start of their interval."""
    prices: dict[str, dict[int, int]] = {}
    for found in basis.indices:
        of_index = prices.setdefault(found.index, {})
        for number, price in enumerate(found.prices):
            of_index[day_start(found.day) + number * basis.interval_s] = price
    return prices


def _bills(
    basis: Basis,
    metered: Metered,
    terms: Sequence[tuple[Stretch, Tariff]],
    usage: Sequence[Usage],
    prices: Mapping[str, Mapping[int, int]],
) -> tuple[Bill, ...]:
    """A bill of each of these stretches; what the credits have left is for the next one."""
    credit_wh = basis.credit_wh
    made = []
    for stretch, tariff in terms:
        start = stretch.calendar.start_of(stretch.from_day)
        end = stretch.calendar.start_of(stretch.to_day)
        made.append(
            bill(
                tariff,
                stretch.calendar,
                Period(stretch.from_day, stretch.to_day),
                [each for each in usage if start <= each.interval_start < end],
                prices.get(tariff.index or "", {}),
                interval_s=basis.interval_s,
                peak_wh=max(
                    (peak for at, peak in metered.peaks.items() if start <= at < end), default=0
                ),
                credit_wh=credit_wh,
            )
        )
        credit_wh -= made[-1].energy_wh("credit")
    return tuple(made)
