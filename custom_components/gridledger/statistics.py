"""External statistics: what was sold, settled and billed, by the hour of delivery.

Entities show the moment; these are the truth of what stands on the ledger. They are written anew
from the hour that changed, so late trades land where they belong. The Energy dashboard takes them
as compensation of the grid's export.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from homeassistant.components.recorder.models import (
    StatisticData,
    StatisticMeanType,
    StatisticMetaData,
)
from homeassistant.components.recorder.statistics import (
    StatisticsRow,
    async_add_external_statistics,
    statistics_during_period,
)
from homeassistant.const import UnitOfEnergy
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers.recorder import get_instance
from homeassistant.util import dt as dt_util
from homeassistant.util import slugify
from homeassistant.util.unit_conversion import EnergyConverter

from .accounts import async_bills
from .archive import async_settled_days, async_trades
from .client import GridLedgerError, TransactionRefused
from .clock import ChannelClock
from .const import CHAINCODE_METERING, DOMAIN, LOGGER
from .models import Trade, understood

if TYPE_CHECKING:
    from .coordinator import GridLedgerConfigEntry
    from .session import LedgerSession

_APART_S: Final = 300.0
_AGAIN: Final = timedelta(days=2)
"""How far back sums are written anew at least."""
_MONTH: Final = timedelta(days=31)
_RECORDED_LOOKS: Final = 60
_RECORDED_APART_S: Final = 1.0

Hours = dict[datetime, tuple[int, int]]
"""Wh and micro-units of money by the hour that they belong to."""


def statistic_ids(unique_id: str) -> tuple[str, str]:
    """Return the ids of a home's sold energy and of its revenue."""
    base = f"{DOMAIN}:{slugify(unique_id)}"
    return f"{base}_sold_energy", f"{base}_sold_revenue"


SETTLED: Final = ("settled_import", "settled_export", "settled_cost", "settled_revenue", "billed")
_NAMES: Final = {
    "settled_import": "settled import",
    "settled_export": "settled export",
    "settled_cost": "settled cost",
    "settled_revenue": "settled revenue",
    "billed": "billed",
}
_FACT_SETTLED: Final = "settled_days"
_DAY_S: Final = 86400


def settled_ids(unique_id: str) -> dict[str, str]:
    """Return the ids of what is settled and billed, by what they are."""
    base = f"{DOMAIN}:{slugify(unique_id)}"
    return {key: f"{base}_{key}" for key in SETTLED}


def by_hour(trades: list[Trade], clock: ChannelClock) -> Hours:
    """Spread trades over the hours of their delivery, to the Wh and the micro-unit.

    A trade's money follows its energy; what rounding leaves goes to its last interval.
    """
    sums: dict[datetime, list[int]] = defaultdict(lambda: [0, 0])
    for trade in trades:
        left = trade.net_micro
        for index, (start, energy_wh) in enumerate(trade.schedule):
            last = index == len(trade.schedule) - 1
            part = left if last else trade.net_micro * energy_wh // max(1, trade.energy_wh)
            left -= part
            hour = clock.real_datetime(start).replace(minute=0, second=0, microsecond=0)
            sums[hour][0] += energy_wh
            sums[hour][1] += part
    return {hour: (energy, money) for hour, (energy, money) in sorted(sums.items())}


@callback
def async_keep_statistics(
    hass: HomeAssistant, entry: GridLedgerConfigEntry, session: LedgerSession
) -> None:
    """Write statistics when trades have changed, at most every few minutes."""
    known: dict[str, Any] = {"seen": None, "at": -_APART_S}
    writing: set[asyncio.Task[None]] = set()

    async def write(seen: Any) -> None:
        try:
            await async_write_statistics(hass, entry, session)
            await async_write_settled(hass, entry, session)
        except GridLedgerError as error:
            LOGGER.debug("Statistics wait: %s", error)
        else:
            known["seen"] = seen  # until then again, also if nothing changes any more

    @callback
    def look() -> None:
        data = session.data
        account = data.account
        seen = (
            data.trades,
            session.days_settled,
            None if account is None else (account.billed_to, account.bills),
        )
        if not data.connected or not data.market_known or known["seen"] == seen:
            return
        if writing or hass.loop.time() - known["at"] < _APART_S:
            return
        known["at"] = hass.loop.time()
        task = entry.async_create_background_task(
            hass, write(seen), name=f"{entry.title} statistics", eager_start=False
        )
        writing.add(task)
        task.add_done_callback(writing.discard)

    if "recorder" in hass.config.components:
        entry.async_on_unload(session.async_add_listener(look))


async def async_write_statistics(
    hass: HomeAssistant, entry: GridLedgerConfigEntry, session: LedgerSession
) -> None:
    """Write the sums of the last days anew, all of them where there are none yet.

    Raises:
        GridLedgerError: the ledger is away.
    """
    clock = session.known_clock()
    ids = statistic_ids(str(entry.unique_id))
    begin = dt_util.utcnow().replace(minute=0, second=0, microsecond=0) - _AGAIN
    before = await _written_before(hass, set(ids), begin)
    written = [before.get(one) or [] for one in ids]
    start, sums = dt_util.utc_from_timestamp(0), [0.0, 0.0]
    if all(written):
        # From the last hour that there is on, and so over any time in which nobody wrote.
        start = dt_util.utc_from_timestamp(min(hours_of[-1]["start"] for hours_of in written))
        for index, hours_of in enumerate(written):
            earlier = [row for row in hours_of if row["start"] < start.timestamp()]
            sums[index] = float(earlier[-1].get("sum") or 0) if earlier else 0.0
    # One day more: a delivery that begins before the first hour may reach into it.
    trades = await async_trades(
        session, max(0, int(clock.channel(start.timestamp())) - 86400), 2**40
    )
    hours = {hour: both for hour, both in by_hour(trades, clock).items() if hour >= start}
    rows: tuple[list[StatisticData], list[StatisticData]] = ([], [])
    for hour, (energy_wh, money_micro) in hours.items():
        for index, value in enumerate((energy_wh / 1000, money_micro / 1e6)):
            sums[index] += value
            rows[index].append(StatisticData(start=hour, state=value, sum=sums[index]))
    names = ("sold energy", "sold revenue")
    units = (UnitOfEnergy.KILO_WATT_HOUR, session.data.currency)
    for statistic_id, name, unit, data in zip(ids, names, units, rows, strict=True):
        _add(hass, statistic_id, f"{entry.title} {name}", unit, data)


async def _written_before(
    hass: HomeAssistant, statistic_ids: set[str], end: datetime
) -> dict[str, list[StatisticsRow]]:
    """Return the hours of statistics before an instant, only the latest month's where it has any.

    So whoever needs the last two of them reads a month, and not years.
    """
    found: dict[str, list[StatisticsRow]] = {}
    for since in (end - _MONTH, dt_util.utc_from_timestamp(0)):
        found = await get_instance(hass).async_add_executor_job(
            statistics_during_period, hass, since, end, statistic_ids, "hour", None, {"sum"}
        )
        if all(len(found.get(one, ())) > 1 for one in statistic_ids):
            break
    return found


def _add(
    hass: HomeAssistant, statistic_id: str, name: str, unit: str, rows: list[StatisticData]
) -> None:
    async_add_external_statistics(
        hass,
        StatisticMetaData(
            mean_type=StatisticMeanType.NONE,
            has_sum=True,
            name=name,
            source=DOMAIN,
            statistic_id=statistic_id,
            unit_class=(
                EnergyConverter.UNIT_CLASS if unit == UnitOfEnergy.KILO_WATT_HOUR else None
            ),
            unit_of_measurement=unit,
        ),
        rows,
    )


# What is settled and billed -----------------------------------------------------------------------


def _first_hour(clock: ChannelClock, day: date) -> int:
    """Return when a day's first whole hour begins (channel time), to the owner's own calendar.

    The ledger names days of the supply's region, which is where the home is. On a channel that
    replays there is no such calendar: its days are UTC's. Statistics know hours of UTC alone, and
    in some zones days begin in the middle of one.
    """
    if clock.replays:
        return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    return -(-int(dt_util.start_of_local_day(day).timestamp()) // 3600) * 3600


async def _rows_of(
    session: LedgerSession, clock: ChannelClock, posted: Mapping[str, Any]
) -> list[list[int]]:
    """Return a day's intervals: start, Wh in and out, micro-units paid and received.

    They come from the private record behind the day. Where the utility's peer doesn't have it,
    the day's sums are taken as one interval. Either way they add up to what was posted.
    """
    summary = posted["summary"]
    amounts = [int(one["amount_micro"]) for one in summary["sums"]]
    totals = [
        int(summary["import_wh"]),
        int(summary["export_wh"]),
        -sum(amount for amount in amounts if amount < 0),
        sum(amount for amount in amounts if amount > 0),
    ]
    rows: list[list[int]] = []
    try:
        record = await session.client.evaluate(
            CHAINCODE_METERING,
            "daybook:Record",
            {
                "utility": summary["utility"],
                "day": summary["day"],
                "run": posted["run"],
                "connection_id": session.connection_id,
            },
            endorsing_organizations=[session.msp_id],
        )
    except TransactionRefused as error:
        LOGGER.debug("Day %s by its sums: %s", summary["day"], error)
    else:
        for row in record["opened"]["rows"]:
            parts = [int(line["amount_micro"]) for line in row["lines"]]
            rows.append(
                [
                    int(row["interval_start"]),
                    int(row["import_wh"]),
                    int(row["export_wh"]),
                    -sum(part for part in parts if part < 0),
                    sum(part for part in parts if part > 0),
                ]
            )
    if not rows:
        return [[_first_hour(clock, date.fromisoformat(summary["day"])), *totals]]
    for index, total in enumerate(totals, start=1):
        # A sum over lines of both signs is one amount: what it hides goes to the last interval.
        rows[-1][index] += total - sum(row[index] for row in rows)
    return rows


async def async_write_settled(
    hass: HomeAssistant, entry: GridLedgerConfigEntry, session: LedgerSession
) -> None:
    """Write what was settled, anew from the first day that was posted or corrected since.

    Raises:
        GridLedgerError: the ledger is away or answers nonsense, or the recorder doesn't write.
    """
    clock = session.known_clock()
    with understood("a settled day"):
        await _write_days(hass, entry, session, clock)
        await _write_bills(hass, entry, session, clock)


def _hour(clock: ChannelClock, instant: float) -> datetime:
    return clock.real_datetime(instant).replace(minute=0, second=0, microsecond=0)


async def _write_days(
    hass: HomeAssistant, entry: GridLedgerConfigEntry, session: LedgerSession, clock: ChannelClock
) -> None:
    posted = await async_settled_days(session, "1970-01-01")
    commitments = {day: one["commitment"] for day, one in posted.items()}
    written = await hass.async_add_executor_job(session.outbox.fact, _FACT_SETTLED) or {}
    changed = [day for day, one in commitments.items() if written.get(day) != one]
    if not changed:
        return
    first = datetime.fromisoformat(f"{min(changed)}T00:00:00+00:00").timestamp()
    # A local day begins up to 14 hours off; a demonstration has several days in an hour.
    begin = _hour(clock, first - _DAY_S)
    since = clock.day(clock.channel(begin.timestamp()) - _DAY_S)
    sums: dict[datetime, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for day, one in posted.items():
        if day < since:
            continue
        for start, *values in await _rows_of(session, clock, one):
            hour = sums[_hour(clock, start)]
            for index, value in enumerate(values):
                hour[index] += value
    ids = settled_ids(str(entry.unique_id))
    before = await _written_before(hass, {ids[key] for key in SETTLED[:4]}, begin)
    given: dict[str, list[StatisticData]] = {}
    for index, key in enumerate(SETTLED[:4]):
        earlier = before.get(ids[key])
        energy = index < 2
        unit = UnitOfEnergy.KILO_WATT_HOUR if energy else session.data.currency
        scale = 1e3 if energy else 1e6
        total = round(float(earlier[-1].get("sum") or 0) * scale) if earlier else 0
        rows: list[StatisticData] = []
        given[ids[key]] = rows
        for at, wh_or_micro in sorted(sums.items()):
            if at >= begin:
                value = wh_or_micro[index]
                total += value
                rows.append(StatisticData(start=at, state=value / scale, sum=total / scale))
        _add(hass, ids[key], f"{entry.title} {_NAMES[key]}", unit, rows)
    await _recorded(hass, begin, given)
    await hass.async_add_executor_job(session.outbox.store_fact, _FACT_SETTLED, commitments)


async def _recorded(
    hass: HomeAssistant, begin: datetime, given: Mapping[str, list[StatisticData]]
) -> None:
    """Wait until the recorder has what was given to it from an instant on.

    It only queues them: whoever noted at once that they are written would never write again what
    a power cut has taken, and go on from sums that aren't there yet.

    Raises:
        GridLedgerError: it hasn't within a minute.
    """
    expected = {
        name: {row["start"].timestamp(): row.get("sum") for row in rows}
        for name, rows in given.items()
        if rows
    }
    for _ in range(_RECORDED_LOOKS):
        found = await get_instance(hass).async_add_executor_job(
            statistics_during_period, hass, begin, None, set(expected), "hour", None, {"sum"}
        )
        if all(
            rows.items() <= {row["start"]: row.get("sum") for row in found.get(name, ())}.items()
            for name, rows in expected.items()
        ):
            return
        await asyncio.sleep(_RECORDED_APART_S)
    raise GridLedgerError("the recorder hasn't written what was settled")


async def _write_bills(
    hass: HomeAssistant, entry: GridLedgerConfigEntry, session: LedgerSession, clock: ChannelClock
) -> None:
    """Write what bills and credit notes come to, in equal parts over the days they are of."""
    sums: dict[datetime, int] = defaultdict(int)
    for bill in await async_bills(session):
        first, last = (date.fromisoformat(bill[name]) for name in ("from_day", "to_day"))
        days = max(1, (last - first).days)
        total = round(bill["total"] * 1e6)
        for number in range(days):
            part = total * (number + 1) // days - total * number // days
            starts = _first_hour(clock, first + timedelta(days=number))
            sums[_hour(clock, starts)] += part
    if not sums:
        return
    running, rows = 0, []
    for hour, value in sorted(sums.items()):
        running += value
        rows.append(StatisticData(start=hour, state=value / 1e6, sum=running / 1e6))
    _add(
        hass,
        settled_ids(str(entry.unique_id))["billed"],
        f"{entry.title} {_NAMES['billed']}",
        session.data.currency,
        rows,
    )
