"""What flows in the replayed months, from measured series. The method, in full.

* **Homes.** The 48 measured houses, of which there are two weeks, are laid over the month by
  weekday and local time of day; odd and even ISO weeks take the one and the other week. So a day
  of 23 hours lacks what the houses use between two and three, one of 25 hours has it twice.
* **Sun.** The sun knows no weekdays: thirteen measured autumn days follow one another, by UTC time
  of day. They are scaled to what a kWp yields in a month in the middle of Germany (80 kWh in March,
  55 in October), bounded by the rated power. Every second home has panels, of a power that follows
  from its use; a plant of 500 kWp has the mean of all profiles.
* **Meters.** What a home uses beyond its panels it imports, what it doesn't use it exports, in each
  quarter hour: a synthetic prosumer on a measured consumption.
* **Batteries.** Every second home with panels has one, of 1 kWh and 0.5 kW for each kWp. It keeps
  what the panels leave over, gives it back when the home needs it, with 4 % lost either way, and
  from seven to eight in the evening sells what is above half of its capacity.
* **Prices.** The day-ahead market of Germany and Luxembourg, hour by hour, negative hours included.
* **Losses.** A transformer delivers what the homes behind it take, and loses 160 W without load and
  1.2 % of the load besides; of its load nothing was measured.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from demo.homes import DATA, QUARTER_S, Series, _columns
from demo.replay_channel import UTILITIES

ZONE: Final = ZoneInfo("Europe/Berlin")
REGION: Final = "EUROPE-BERLIN"
DAY_S: Final = 86_400
PRICES: Final = DATA / "smard_dayahead_de_2019_hourly.csv"
AUTUMN: Final = DATA / "simbench_pv_autumn_15min.csv"
AUTUMN_SKIPPED: Final = 8
"""Quarter hours before the first whole UTC day of the series."""
AUTUMN_DAYS: Final = 13
YIELD_WH_PER_KWP: Final = {"2019-03": 80_000, "2019-10": 55_000}
MONTHS: Final = tuple(YIELD_WH_PER_KWP)
MAX_HOMES: Final = 48
PLANT_W: Final = 500_000
NO_LOAD_W: Final = 160
LOSS_PPM: Final = 12_000
BATTERY_EVERY: Final = 4
"""Homes; of those every second one has panels."""
BATTERY_PER_MILLE: Final = 960
"""Of what goes into a battery, or out of it, what arrives."""
SELLING_HOUR: Final = 19
"""In which batteries sell, by the wall clock."""
COMMUNITY_HOMES: Final = 6
COMMUNITY_UTILITY: Final = UTILITIES[1]
MICRO_PER_EUROCENT_PER_MWH: Final = 10
"""One euro cent per MWh is ten micro-euros per kWh."""


@dataclass(frozen=True, slots=True)
class LocalDay:
    """A day of the wall clock: 92, 96 or 100 quarter hours."""

    day: str
    start: int
    end: int

    @property
    def intervals(self) -> range:
        """Starts of its quarter hours."""
        return range(self.start, self.end, QUARTER_S)

    def at(self, hour: int, minute: int = 0) -> int:
        """An instant by the wall clock (the first of two)."""
        moment = datetime.fromisoformat(self.day).replace(hour=hour, minute=minute, tzinfo=ZONE)
        return int(moment.timestamp())


@dataclass(slots=True)
class Battery:
    """A home's battery, quarter hour by quarter hour. Energy in Wh at its terminals."""

    capacity_wh: int
    stored_wh: int = 0

    @property
    def power_wh(self) -> int:
        """What it can take or give in a quarter hour."""
        return self.capacity_wh // 2 * QUARTER_S // 3600

    def step(self, surplus_wh: int, *, selling: bool) -> int:
        """What it takes of a surplus, or gives (negative) to a need and, when selling, beyond."""
        if surplus_wh > 0 and not selling:
            room = (self.capacity_wh - self.stored_wh) * 1000 // BATTERY_PER_MILLE
            taken = min(surplus_wh, self.power_wh, room)
            self.stored_wh += taken * BATTERY_PER_MILLE // 1000
            return taken
        above_half = max(0, self.stored_wh - self.capacity_wh // 2) * BATTERY_PER_MILLE // 1000
        need = max(0, -surplus_wh)
        wanted = max(need, above_half) if selling else need
        given = min(wanted, self.power_wh, self.stored_wh * BATTERY_PER_MILLE // 1000)
        self.stored_wh -= -(-given * 1000 // BATTERY_PER_MILLE)
        return -given


@dataclass(slots=True)
class Home:
    """A connection with its meter, and what flows there."""

    connection_id: str
    utility: str
    column: str
    """Of the measured house; empty for the plant."""
    peak_w: int
    battery_wh: int = 0
    """What its battery holds; 0 without one."""
    import_wh: dict[int, int] = field(default_factory=dict)
    """By interval start."""
    export_wh: dict[int, int] = field(default_factory=dict)
    stored_wh: dict[int, int] = field(default_factory=dict)
    """What its battery holds at each interval's end."""

    @property
    def meter_id(self) -> str:
        """Its meter's name."""
        return f"M-{self.connection_id}"

    @property
    def is_plant(self) -> bool:
        """Whether it is the plant."""
        return not self.column


@dataclass(frozen=True, slots=True)
class Month:
    """A month, or some days of it, with all that flows and costs."""

    name: str
    days: tuple[LocalDay, ...]
    homes: tuple[Home, ...]
    plant: Home
    prices: Mapping[int, int]
    """Day-ahead, micro-euros per kWh, by hour start; some days around are there too."""

    @property
    def connections(self) -> tuple[Home, ...]:
        """All homes, and the plant."""
        return (*self.homes, self.plant)

    @property
    def start(self) -> int:
        """Where the first day begins."""
        return self.days[0].start

    @property
    def end(self) -> int:
        """Where the last day ends."""
        return self.days[-1].end

    @property
    def to_day(self) -> str:
        """The day after the last."""
        return (date.fromisoformat(self.days[-1].day) + timedelta(days=1)).isoformat()

    @property
    def community(self) -> tuple[Home, ...]:
        """The homes that share what they have left, all of one utility."""
        found = [one for one in self.homes if one.utility == COMMUNITY_UTILITY]
        return tuple(found[:COMMUNITY_HOMES])

    def of(self, utility: str) -> list[Home]:
        """A utility's connections, by name."""
        return sorted(
            (one for one in self.connections if one.utility == utility),
            key=lambda one: one.connection_id,
        )

    def price(self, instant: int) -> int:
        """The day-ahead price of an interval, micro-euros per kWh."""
        return self.prices[instant - instant % 3600]

    def delivered_wh(self, utility: str, start: int) -> int:
        """What a utility's transformer delivers in an interval, lost energy with it; signed."""
        load = sum(
            home.import_wh[start] - home.export_wh[start]
            for home in self.homes
            if home.utility == utility
        )
        lost = NO_LOAD_W * QUARTER_S / 3600 + abs(load) * LOSS_PPM / 1_000_000
        return load + round(lost)


def local_days(month: str, first: int = 1, count: int | None = None) -> tuple[LocalDay, ...]:
    """Days of a month, from its `first` on, `count` of them or all."""
    begin = date.fromisoformat(f"{month}-01") + timedelta(days=first - 1)
    found: list[LocalDay] = []
    current = begin
    while f"{current:%Y-%m}" == month and (count is None or len(found) < count):
        following = current + timedelta(days=1)
        start, end = (
            int(datetime(day.year, day.month, day.day, tzinfo=ZONE).timestamp())
            for day in (current, following)
        )
        found.append(LocalDay(current.isoformat(), start, end))
        current = following
    return tuple(found)


def calendar_terms() -> dict[str, Any]:
    """The region's calendar of 2019 as utilities would enter it, from this host's zone database."""
    first, last = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2019, 2020))
    offsets: list[dict[str, int]] = []
    for instant in range(first - 2 * DAY_S, last + 2 * DAY_S, QUARTER_S):
        found = datetime.fromtimestamp(instant, ZONE).utcoffset()
        assert found is not None
        offset_s = int(found.total_seconds())
        if not offsets or offsets[-1]["offset_s"] != offset_s:
            offsets.append({"from": instant, "offset_s": offset_s})
    return {
        "region": REGION,
        "offsets": offsets,
        "known_until": last + 2 * DAY_S,
        "holidays": ["2019-01-01", "2019-04-19", "2019-04-22", "2019-10-03"],
    }


def read_month(
    month: str, *, first: int = 1, days: int | None = None, homes: int = MAX_HOMES
) -> Month:
    """Lay the measured series over a month; raises ValueError for one that isn't there."""
    if month not in MONTHS:
        raise ValueError(f"month is {month}, but {' and '.join(MONTHS)} can be replayed")
    if not 3 <= homes <= MAX_HOMES:
        raise ValueError(f"homes is {homes}, but 3 to {MAX_HOMES} were measured")
    span = local_days(month, first, days)
    if not span:
        raise ValueError(f"{month} has no day {first}, or none are asked for")
    load = Series.read().load_wh
    sun = _sun(month)
    columns = [f"CH{1 + (index * MAX_HOMES) // homes:02d}" for index in range(homes)]
    made = []
    for index, column in enumerate(columns):
        # About what the house uses in a year, at 950 kWh for each kWp and half of its use.
        peak_w = min(12_000, max(3_000, sum(load[column]) * 26 // 1_900 // 100 * 100))
        made.append(
            Home(
                f"CP-{index + 1:04d}",
                UTILITIES[index % len(UTILITIES)],
                column,
                peak_w if index % 2 == 0 else 0,
                peak_w if index % BATTERY_EVERY == 0 else 0,
            )
        )
    plant = Home("PLANT-1", UTILITIES[0], "", PLANT_W)
    names = list(sun)
    for index, home in enumerate((*made, plant)):
        profiles = names if home.is_plant else [names[index // 2 % len(names)]]
        battery = Battery(home.battery_wh)
        for day in span:
            selling = range(day.at(SELLING_HOUR), day.at(SELLING_HOUR + 1))
            for start in day.intervals:
                shade = sum(sun[name][_sun_index(start)] for name in profiles)
                generated = home.peak_w * shade // len(profiles) // 4000
                used = 0 if home.is_plant else load[home.column][_load_index(start)]
                surplus = generated - used
                if battery.capacity_wh:
                    surplus -= battery.step(surplus, selling=start in selling)
                    home.stored_wh[start] = battery.stored_wh
                home.import_wh[start] = max(0, -surplus)
                home.export_wh[start] = max(0, surplus)
    return Month(month, span, tuple(made), plant, _prices())


def _load_index(instant: int) -> int:
    """The place of an instant in two weeks from a Monday on, by the wall clock."""
    local = datetime.fromtimestamp(instant, ZONE)
    _, week, weekday = local.isocalendar()
    return (week % 2 * 7 + weekday - 1) * 96 + local.hour * 4 + local.minute // 15


def _sun_index(instant: int) -> int:
    return instant // DAY_S % AUTUMN_DAYS * 96 + instant % DAY_S // QUARTER_S


def _sun(month: str) -> dict[str, list[int]]:
    """Per mille of the rated power, by profile, scaled to the month's usual yield."""
    measured = {
        name: column[AUTUMN_SKIPPED : AUTUMN_SKIPPED + AUTUMN_DAYS * 96]
        for name, column in _columns(AUTUMN, suffix="_per_mille").items()
    }
    # Wh of one kWp in 31 days, by the mean of all profiles.
    total = sum(sum(column) for column in measured.values()) * 31
    wanted = YIELD_WH_PER_KWP[month] * 4 * AUTUMN_DAYS * len(measured)
    return {
        name: [min(1000, value * wanted // total) for value in column]
        for name, column in measured.items()
    }


def _prices() -> dict[int, int]:
    with PRICES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return {
        int(datetime.fromisoformat(at).timestamp()): int(cents) * MICRO_PER_EUROCENT_PER_MWH
        for at, cents in rows
    }


def utc_days(days: Sequence[LocalDay]) -> list[str]:
    """The UTC days that local days reach into."""
    first, last = days[0].start // DAY_S, (days[-1].end - 1) // DAY_S
    return [
        datetime.fromtimestamp(number * DAY_S, UTC).date().isoformat()
        for number in range(first, last + 1)
    ]


def utc_start(day: str) -> int:
    """When a UTC day begins."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
