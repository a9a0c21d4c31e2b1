"""What energy costs under a tariff: a pure function of readings, tariff and calendar.

Energy in Wh, prices in micro-units per kWh, money in micro-units, power in W. Whoever may see the
readings can compute a bill again and comes to the same micro-unit.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Identifier,
    Integer,
    InvalidArgument,
    MspId,
)

from ..common.clock import DAY_S, Day, day_of, day_start
from ..common.money import MICRO, amount_micro, half_even
from ..common.settings import Price
from .calendars import Calendar

MAX_PARTS = 24
MAX_BANKING_DAYS = 1_000
_MILLION = 1_000_000

DayPattern = Annotated[str, Choice("EVERY", "WORKDAY", "WEEKEND", "HOLIDAY", "SATURDAY", "SUNDAY")]
"""WORKDAY and SATURDAY leave holidays out; WEEKEND and SUNDAY have them with them."""
Minute = Annotated[int, Integer(0, 1440, "minutes")]
Money = Annotated[int, Integer(-(10**15), 10**15, "micro-units")]
Energy = Annotated[int, Integer(0, 10**12, "Wh")]


@dataclass(frozen=True, slots=True)
class Band:
    """A time of use and its price; of several that hold, the first counts."""

    name: Identifier
    days: DayPattern
    from_minute: Minute
    """Of the wall clock's day; a band that ends before it begins goes over midnight."""
    to_minute: Minute
    price: Price


@dataclass(frozen=True, slots=True)
class Block:
    """A price for the energy of a billing period up to an amount, 0 for the last: no limit."""

    up_to_wh: Energy
    price: Price


@dataclass(frozen=True, slots=True)
class Tax:
    """A share of the lines before it."""

    name: Identifier
    rate_ppm: Annotated[int, Integer(0, 10**6, "ppm")]
    """Parts per million: 22 % are 220,000."""
    exempt_up_to_wh: Energy = 0
    """No tax on a period whose import is no more than this."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """The terms of one tariff. Parts that are empty or 0 don't apply.

    Import costs, per kWh: the band's price, plus the block's, plus the index with its markup.
    """

    tariff: Identifier
    supplier: MspId
    """Whose it is."""
    standing_micro_per_day: Money
    bands: Annotated[tuple[Band, ...], AtMost(MAX_PARTS)]
    blocks: Annotated[tuple[Block, ...], AtMost(MAX_PARTS)]
    index: Identifier | None
    """A published series of prices by interval, such as a day-ahead market's."""
    index_ppm: Annotated[int, Integer(0, 10**7, "ppm")]
    """Of the index: 1,000,000 is the index itself."""
    markup: Price
    capacity_micro_per_kw_month: Money
    """For the highest mean power of an interval; a month is 365.25 / 12 days."""
    feed_in: Price
    """What is paid for each kWh of export."""
    feed_in_index_ppm: Annotated[int, Integer(0, 10**7, "ppm")]
    """Of the index, on top of `feed_in`."""
    taxes: Annotated[tuple[Tax, ...], AtMost(MAX_PARTS)]
    rounding: Annotated[str, Choice("total", "line")]
    """What is rounded to the minor unit: the sum, or each line."""
    netting: Annotated[str, Choice("none", "period")] = "none"
    """period: a bill's export is set off against its import first, the dearest band before the
    others; what is left is fed in."""
    social: Identifier | None = None
    """The tariff of who is entitled to a social one, in place of this one."""
    banking_days: Annotated[int, Integer(0, MAX_BANKING_DAYS, "days")] = 0
    """Above 0, with netting: what a bill leaves of its export isn't fed in but set off against
    import of later bills, for so many days; `feed_in` is paid for what nobody used by then."""


@dataclass(frozen=True, slots=True)
class Index:
    """One UTC day of a series of prices, one for each interval of the channel."""

    index: Identifier
    day: Day
    publisher: MspId
    prices: Annotated[tuple[Price, ...], AtMost(DAY_S)]


@dataclass(frozen=True, slots=True)
class Usage:
    """A connection's interval."""

    interval_start: int
    import_wh: int
    export_wh: int


@dataclass(frozen=True, slots=True)
class BillLine:
    """One line: a quantity at a price."""

    kind: Annotated[
        str,
        Choice(
            "standing", "energy", "block", "index", "capacity", "netted", "credit", "banked",
            "feed_in", "tax", "rounding",
        ),
    ]  # fmt: skip
    name: Identifier
    quantity: Annotated[int, Integer(-(10**15), 10**15)]
    """Wh; days for standing; W for capacity; micro-units for a tax."""
    price: Annotated[int, Integer(-(10**15), 10**15)]
    """Micro-units per kWh, per day or per kW and month; ppm for a tax. 0 for an index: each
    interval has its own."""
    amount_micro: Money
    """What is to be paid; negative: received."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What a period costs."""

    tariff: Identifier
    from_day: Day
    to_day: Day
    """The day after the last."""
    lines: Annotated[tuple[BillLine, ...], AtMost(200)]
    total_micro: Money
    """A whole number of the currency's minor unit."""
    import_wh: Energy
    export_wh: Energy

    def energy_wh(self, kind: str) -> int:
        """Of all its lines of a kind whose quantity is energy."""
        return sum(line.quantity for line in self.lines if line.kind == kind)


def check_terms(tariff: Tariff) -> None:
    """Raise InvalidArgument for a tariff that prices nothing or contradicts itself."""
    if not tariff.bands and not tariff.blocks and tariff.index is None:
        raise InvalidArgument("a tariff has bands, blocks or an index: something that has a price")
    if tariff.index is None and (tariff.index_ppm or tariff.feed_in_index_ppm):
        raise InvalidArgument("index_ppm and feed_in_index_ppm need an index")
    if tariff.netting == "period" and tariff.index is not None:
        raise InvalidArgument(
            "netting is period, but an index has a price for each interval, so that what is set "
            "off against what would matter"
        )
    if tariff.banking_days and tariff.netting != "period":
        raise InvalidArgument(
            f"banking_days is {tariff.banking_days}, but without netting nothing is left over"
        )
    if tariff.social == tariff.tariff:
        raise InvalidArgument(f"social is {tariff.social}, the tariff itself; name another one")
    limits = [block.up_to_wh for block in tariff.blocks]
    if limits and (limits[-1] != 0 or 0 in limits[:-1] or limits[:-1] != sorted(limits[:-1])):
        raise InvalidArgument("blocks must rise in up_to_wh, and the last have 0: it has no limit")
    if tariff.bands:
        last = tariff.bands[-1]
        if (last.days, last.from_minute, last.to_minute) != ("EVERY", 0, 1440):
            raise InvalidArgument(
                "the last band must hold every day from 0 to 1440, or some hour has no price"
            )


def band_at(tariff: Tariff, calendar: Calendar, instant: int) -> Band | None:
    """The band that holds at an instant; None for a tariff without."""
    minute = calendar.minute_at(instant)
    weekday = calendar.weekday_at(instant)
    holiday = calendar.is_holiday(calendar.day_at(instant))
    for band in tariff.bands:
        if band.from_minute <= band.to_minute:
            within = band.from_minute <= minute < band.to_minute
        else:
            within = minute >= band.from_minute or minute < band.to_minute
        if within and _holds(band.days, weekday, holiday=holiday):
            return band
    return None


def _holds(days: str, weekday: int, *, holiday: bool) -> bool:
    match days:
        case "WORKDAY":
            return weekday < 5 and not holiday
        case "SATURDAY":
            return weekday == 5 and not holiday
        case "SUNDAY":
            return weekday == 6 or holiday
        case "WEEKEND":
            return weekday >= 5 or holiday
        case "HOLIDAY":
            return holiday
        case _:
            return True


@dataclass(frozen=True, slots=True)
class Period:
    """Local days of a bill, under one tariff."""

    from_day: str
    to_day: str
    """The day after the last."""

    @property
    def days(self) -> int:
        """How many."""
        return (day_start(self.to_day) - day_start(self.from_day)) // DAY_S


def bill(
    tariff: Tariff,
    calendar: Calendar,
    period: Period,
    usage: Sequence[Usage],
    index: Mapping[int, int] | None = None,
    *,
    interval_s: int = 900,
    minor_micro: int = MICRO // 100,
    peak_wh: int | None = None,
    credit_wh: int = 0,
) -> Bill:
    """Compute a bill.

    Args:
        tariff: Its terms.
        calendar: Of the connection's region.
        period: Whole local days.
        usage: Each interval of the period that has energy, in any order.
        index: The index's price by interval start; needed for intervals with energy.
        interval_s: Length of an interval.
        minor_micro: The currency's smallest coin, 10,000 for a cent.
        peak_wh: Import of the interval with the highest, where not all of it is in `usage`.
        credit_wh: What banked credits can set off of the import, if the tariff has them.

    Raises:
        InvalidArgument: an interval lies outside of the period, comes twice, or has no index.
    """
    start, end = calendar.start_of(period.from_day), calendar.start_of(period.to_day)
    seen: dict[int, Usage] = {}
    for each in usage:
        if not start <= each.interval_start < end or each.interval_start in seen:
            raise InvalidArgument(
                f"interval_start {each.interval_start} is outside of the bill's period, or twice"
            )
        seen[each.interval_start] = each
    ordered = [seen[instant] for instant in sorted(seen)]
    lines = list(_energy_lines(tariff, calendar, ordered, index or {}, credit_wh))
    if tariff.standing_micro_per_day:
        lines.insert(
            0,
            BillLine(
                "standing",
                "STANDING",
                period.days,
                tariff.standing_micro_per_day,
                period.days * tariff.standing_micro_per_day,
            ),
        )
    if peak_wh is None:
        peak_wh = max((each.import_wh for each in ordered), default=0)
    if tariff.capacity_micro_per_kw_month and peak_wh:
        peak_w = peak_wh * 3600 // interval_s
        price = tariff.capacity_micro_per_kw_month
        # A month's price for each kW, over the period's part of a year: 12 / 365.25 of it a day.
        amount = half_even(peak_w * price * 1200 * period.days, 36_525 * 1000)
        lines.append(BillLine("capacity", "CAPACITY", peak_w, price, amount))
    imported = sum(each.import_wh for each in ordered)
    for tax in tariff.taxes:
        if tax.exempt_up_to_wh and imported <= tax.exempt_up_to_wh:
            continue
        base = sum(line.amount_micro for line in lines if line.kind not in ("tax", "feed_in"))
        amount = half_even(base * tax.rate_ppm, _MILLION)
        lines.append(BillLine("tax", tax.name, base, tax.rate_ppm, amount))
    if tariff.rounding == "line":
        exact = sum(half_even(line.amount_micro, minor_micro) * minor_micro for line in lines)
    else:
        total = sum(line.amount_micro for line in lines)
        exact = half_even(total, minor_micro) * minor_micro
    if rest := exact - sum(line.amount_micro for line in lines):
        lines.append(BillLine("rounding", "ROUNDING", 0, 0, rest))
    return Bill(
        tariff.tariff,
        period.from_day,
        period.to_day,
        tuple(lines),
        exact,
        imported,
        sum(each.export_wh for each in ordered),
    )


def _energy_lines(
    tariff: Tariff,
    calendar: Calendar,
    usage: Iterable[Usage],
    index: Mapping[int, int],
    credit_wh: int,
) -> Iterator[BillLine]:
    """Lines for energy: by band, by block, by index, and for export; each rounded once."""
    bands = [0] * len(tariff.bands)
    imported = exported = 0
    indexed = fed_in = 0  # in micro-units times 1000 (Wh per kWh) times a million (ppm)
    for each in usage:
        imported += each.import_wh
        exported += each.export_wh
        if tariff.bands and each.import_wh:
            band = band_at(tariff, calendar, each.interval_start)
            assert band is not None, "the last band always holds"
            bands[tariff.bands.index(band)] += each.import_wh
        if tariff.index is not None and (each.import_wh or each.export_wh):
            if each.interval_start not in index:
                raise InvalidArgument(
                    f"index {tariff.index} has no price at {each.interval_start}; it is published "
                    "before a bill can be made"
                )
            price = index[each.interval_start]
            indexed += each.import_wh * (price * tariff.index_ppm + tariff.markup * _MILLION)
            fed_in += each.export_wh * price * tariff.feed_in_index_ppm
    if tariff.netting == "period":
        netted = min(imported, exported)
        credited = min(imported - netted, credit_wh) if tariff.banking_days else 0
        banked = exported - netted if tariff.banking_days else 0
        for kind, energy_wh in (("netted", netted), ("credit", credited), ("banked", banked)):
            if energy_wh:
                yield BillLine(kind, kind.upper(), energy_wh, 0, 0)
        dearest = sorted(range(len(bands)), key=lambda at: (-tariff.bands[at].price, at))
        matched, _ = net_metering([bands[at] for at in dearest], netted + credited)
        for at, energy_wh in zip(dearest, matched, strict=True):
            bands[at] -= energy_wh
        imported, exported = imported - netted - credited, exported - netted - banked
    for band, energy_wh in zip(tariff.bands, bands, strict=True):
        if energy_wh:
            yield BillLine(
                "energy", band.name, energy_wh, band.price, amount_micro(energy_wh, band.price)
            )
    below = 0
    for number, block in enumerate(tariff.blocks, 1):
        upper = block.up_to_wh or max(imported, below)
        energy_wh = max(0, min(imported, upper) - below)
        below = upper
        if energy_wh:
            yield BillLine(
                "block",
                f"BLOCK-{number}",
                energy_wh,
                block.price,
                amount_micro(energy_wh, block.price),
            )
    if tariff.index is not None and imported:
        yield BillLine("index", tariff.index, imported, 0, half_even(indexed, 1000 * _MILLION))
    if exported and (tariff.feed_in or fed_in):
        received = half_even(exported * tariff.feed_in * _MILLION + fed_in, 1000 * _MILLION)
        yield BillLine("feed_in", "FEED-IN", exported, tariff.feed_in, -received)


def net_metering(imports_by_band: Sequence[int], exported: int) -> tuple[list[int], int]:
    """Set one export off against imports by price band, in their order.

    Returns:
        What was set off in each band, and what is left of the export.
    """
    left = exported
    matched = []
    for imported in imports_by_band:
        taken = min(imported, left)
        matched.append(taken)
        left -= taken
    return matched, left


def local_days(calendar: Calendar, start: int, end: int) -> Iterator[str]:
    """The local days that begin within a stretch of time."""
    day = calendar.day_at(start)
    while (begin := calendar.start_of(day)) < end:
        if begin >= start:
            yield day
        day = day_of(day_start(day) + DAY_S)
