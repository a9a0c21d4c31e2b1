"""A measured home behind sensors of 5 to 300 s that fail in every way sensors fail.

The registers of a real house and roof are known at every instant. Sensors show them seldom or
often, coarsely, start again from zero, fall silent, are unavailable, and Home Assistant restarts.
Whatever they do: each interval once, nothing negative, sums equal to what the sensors counted to
the Wh, and "measured" said exactly where it was.
"""

import csv
import json
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

from custom_components.gridledger.metering import Cut, Meter

DATA = Path(__file__).parents[2] / "demo" / "data"
QUARTER_S = 900
DAY_S = 86_400
DAYS = 2
ROOF_W = 6_000
NAMES = ("import", "export")


@dataclass(frozen=True)
class Truth:
    """A register in mWh, exact at each quarter hour and even in between."""

    at_quarters: tuple[int, ...]

    def mwh(self, at: float) -> float:
        """What the register has counted at an instant."""
        quarter = min(int(at // QUARTER_S), len(self.at_quarters) - 2)
        begin, end = self.at_quarters[quarter : quarter + 2]
        return begin + (end - begin) * (at - quarter * QUARTER_S) / QUARTER_S


@cache
def measured_home(name: str, roof: str) -> tuple[Truth, Truth]:
    """Import and export of a house and a roof, both measured in autumn."""
    with (DATA / "ch_households_import_15min_wh.csv").open() as houses:
        load = [int(row[name]) for row in csv.DictReader(houses)]
    with (DATA / "simbench_pv_autumn_15min.csv").open() as roofs:
        sun = [int(row[f"{roof}_per_mille"]) * ROOF_W // 4000 for row in csv.DictReader(roofs)]
    net = [(wh - pv) * 1000 for wh, pv in zip(load, sun, strict=False)][: DAYS * 96 + 1]
    return tuple(  # type: ignore[return-value]
        Truth((0, *accumulate(max(0, sign * one) for one in net))) for sign in (1, -1)
    )


@dataclass
class Sensor:
    """Shows a register as sensors do, and remembers what a meter could know of it."""

    truth: Truth
    resolution_mwh: int
    fresh_s: int
    """For so long a sensor that is there and says nothing is believed to stand still."""
    zero: float = 0.0
    """What the register had when the sensor began to count."""
    raw: int | None = None
    counted: int = 0
    """The sum of its rises: what has to be in the intervals."""
    seen_at: float = 0.0
    """Its last report."""
    known_at: float = 0.0
    """The last instant that something is said of: a report, or that it stood still."""
    doubtful: list[tuple[float, float, float]] = field(default_factory=list)
    """Spans between known instants, and how long nobody saw what flowed."""

    def shows(self, at: float) -> int:
        """The sensor's total."""
        counted = self.truth.mwh(at) - self.zero
        return int(counted // self.resolution_mwh) * self.resolution_mwh

    def report(self, at: float) -> int:
        """Report the sensor's total, and remember what is known by that."""
        raw = self.shows(at)
        rise = 0 if self.raw is None else raw - self.raw
        if rise < 0:
            rise = raw  # it began anew
        if rise:
            self.doubtful.append((self.known_at, at, at - self.seen_at))
        self.counted += rise
        self.raw, self.seen_at, self.known_at = raw, at, at
        return raw

    def stand(self, at: float) -> None:
        """It is there, and has nothing new to say."""
        if self.raw is None or at <= self.known_at:
            return
        if at - self.seen_at > self.fresh_s:
            self.doubtful.append((self.known_at, at, at - self.seen_at))
        self.known_at = at

    def unseen_s(self, start: float, end: float) -> float:
        """The longest time without a look, with energy in it, that touches an interval."""
        return max(
            (gap for begin, until, gap in self.doubtful if until > start and begin < end),
            default=0.0,
        )


def faults(choose: random.Random, until: float) -> Iterator[tuple[float, float]]:
    """Times at which a sensor is gone: seconds to hours."""
    at = 0.0
    while True:
        at += choose.expovariate(1 / 14_000)
        length = choose.choice((20, 90, 400, 1_200, 9_000))
        if at + length > until:
            return
        yield at, at + length
        at += length


@pytest.mark.parametrize("period_s", [5, 10, 30, 60, 120, 300])
@pytest.mark.parametrize(
    ("house", "roof", "interval_s", "resolution_mwh", "on_change"),
    [
        ("CH06", "PV1", 900, 1_000, False),
        ("CH16", "PV3", 900, 100_000, True),
        ("CH09", "PV5", 300, 10_000, True),
    ],
)
def test_whatever_the_sensors_do(
    period_s: int, house: str, roof: str, interval_s: int, resolution_mwh: int, on_change: bool
) -> None:
    choose = random.Random(f"{period_s} {house}")
    until = float(DAYS * DAY_S)
    truths = measured_home(house, roof)
    sensors = {
        name: Sensor(truth, resolution_mwh, max(600, interval_s))
        for name, truth in zip(NAMES, truths, strict=True)
    }
    gone = {name: list(faults(choose, until)) for name in NAMES}
    restarts = sorted(choose.uniform(0, until) for _ in range(20))
    resets = sorted([*(choose.uniform(0, until) for _ in range(5)), float(DAY_S)])
    meter = Meter(interval_s, ["import"], ["export"])
    cuts: list[Cut] = []

    def is_there(name: str, at: float) -> bool:
        spot = bisect_right(gone[name], (at, until)) - 1
        return spot < 0 or at >= gone[name][spot][1]

    def tick(boundary: float) -> None:
        """What the home does soon after a boundary."""
        for name, sensor in sensors.items():
            if is_there(name, at):
                meter.hold(name, boundary)
                sensor.stand(boundary)

    at = choose.uniform(0, period_s)
    boundary = interval_s
    while at < until:
        while resets and resets[0] <= at:  # one after another, or both at midnight
            when = resets.pop(0)
            for name in NAMES if when == DAY_S else choose.sample(NAMES, 1):
                sensors[name].zero = sensors[name].truth.mwh(when)
        if restarts and restarts[0] <= at:
            restarts.pop(0)
            stored = json.loads(json.dumps(meter.as_dict()))
            meter = Meter(interval_s, ["import"], ["export"], stored)
        if at > boundary + period_s:
            tick(boundary)
            boundary += interval_s
        for name, sensor in sensors.items():
            if not is_there(name, at):
                continue
            if on_change and sensor.raw == sensor.shows(at):
                continue  # nothing is reported unless it has changed
            meter.sample(name, at, sensor.report(at))
        cuts += meter.cut()
        at += period_s
    for name, sensor in sensors.items():
        meter.sample(name, until, sensor.report(until))
    while more := meter.cut():
        cuts += more

    assert len(cuts) >= DAYS * DAY_S // interval_s - 15
    for before, cut in pairwise(cuts):
        assert cut.interval_start == before.interval_start + interval_s
        assert cut.import_register_wh - before.import_register_wh == cut.import_wh
        assert cut.export_register_wh - before.export_register_wh == cut.export_wh
    assert min(min(cut.import_wh, cut.export_wh) for cut in cuts) >= 0
    # All that the sensors have shown is in the registers, and all of them but the first cut's
    # beginning in intervals.
    assert meter.registers_wh == tuple(sensors[name].counted // 1000 for name in NAMES)
    first = cuts[0]
    began = (
        first.import_register_wh - first.import_wh,
        first.export_register_wh - first.export_wh,
    )
    sums = (sum(cut.import_wh for cut in cuts), sum(cut.export_wh for cut in cuts))
    assert tuple(map(sum, zip(began, sums, strict=True))) == meter.registers_wh
    assert min(sums) > 0

    limit_s = max(interval_s / 2, 45)
    for cut in cuts[1:]:
        start, end = cut.interval_start, cut.interval_start + interval_s
        unseen_s = max(sensor.unseen_s(start, end) for sensor in sensors.values())
        assert cut.measured == (unseen_s <= limit_s), (cut, unseen_s)
    if period_s <= limit_s and not on_change:
        assert sum(cut.measured for cut in cuts) > 0.7 * len(cuts)
