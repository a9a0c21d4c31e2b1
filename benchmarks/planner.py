"""The planner on measured homes: kWh and money against four other ways to run a battery.

Each home has a battery, a solar plant, and a boiler that needs an hour a day. Every strategy pays
for the same house in the same weather:

  no battery   the sun feeds the house, the rest is sold
  automatic    the inverter's own: surplus charges, the battery feeds the house (doing nothing)
  threshold    an owner's template: charge in the cheapest quarter of yesterday's prices, sell in
               the dearest, else automatic; the boiler runs when surplus suffices, else at 21:00
  gridledger   the engine with its own forecasts from what it has seen so far, and its rules
  foresight    the same choices with the whole fortnight known in advance

Prices, the battery and (for the Swiss homes) the sun are assumptions, printed with the result.
"""

import argparse
import csv
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from custom_components.gridledger.engine.forecast import LoadForecast, SolarForecast
from custom_components.gridledger.engine.model import Battery, Mode, Need, Slot, local_time
from custom_components.gridledger.engine.planner import (
    Allowance,
    Plan,
    flow_in,
    make_plan,
    money,
)
from custom_components.gridledger.engine.trading import RuleKind, TradingRule, plan_with_rules

DATA: Final = Path(__file__).parent / "data"
DEMO_DATA: Final = Path(__file__).parents[1] / "demo" / "data"
BATTERY: Final = Battery(
    capacity_wh=10_000, reserve_wh=1000, max_charge_w=5000, max_discharge_w=5000
)
BOILER_W: Final = 2000.0
BOILER_HOUR: Final = 21
WARM_UP_DAYS: Final = 3
"""The first days teach the forecasts; every strategy is automatic then, and nothing is counted."""
_SELL = TradingRule(
    id="sell",
    name="",
    kind=RuleKind.SELL,
    enabled=True,
    dry_run=False,
    price_limit=0.0,
    spread=0.02,  # what the form suggests
    reserve_percent=10,
    daily_limit_wh=20_000,
)
_BUY = replace(_SELL, id="buy", kind=RuleKind.BUY, price_limit=10.0)


@dataclass(frozen=True, slots=True)
class Home:
    """A measured home: slots with what really happened, without its boiler."""

    name: str
    slots: tuple[Slot, ...]
    zone: timezone
    latitude: float
    longitude: float


@dataclass(slots=True)
class Result:
    """What a strategy made of a home. kWh and money over the counted days."""

    cost: float = 0.0
    bought: float = 0.0
    exported: float = 0.0
    used: float = 0.0
    cycled: float = 0.0
    changes: int = 0
    revisions: int = 0
    least_wh: float = 1e9
    days: float = 0.0
    seconds: float = 0.0
    modes: dict[str, int] = field(default_factory=dict)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fontana(data: Path) -> list[Home]:
    """Seventeen houses in California with their own panels: hourly, time-of-use prices."""
    rows = _rows(data / "us_fontana_17homes_hourly_wh.csv")[1:]
    zone = timezone(timedelta(hours=-8))
    first = datetime(2022, 8, 1, tzinfo=zone).timestamp()
    homes = []
    for number in range(1, 18):
        name = f"US{number:02d}"
        slots = []
        for index, row in enumerate(rows):
            buy = int(row["tou_price_milli_usd_per_kwh"]) / 1000
            slots.append(
                Slot(
                    start=first + 3600 * index,
                    seconds=3600,
                    pv_wh=float(row[f"{name}_pv_wh"]),
                    load_wh=float(row[f"{name}_load_wh"]),
                    buy=buy,
                    sell=0.6 * buy,
                )
            )
        homes.append(Home(name, tuple(slots), zone, 34.1, -117.4))
    return homes


def swiss(data: Path, peak_w: float) -> list[Home]:
    """Forty-eight Swiss houses: measured load, a German roof's sun, day-ahead prices with fees."""
    loads = _rows(DEMO_DATA / "ch_households_import_15min_wh.csv")
    suns = _rows(DEMO_DATA / "simbench_pv_autumn_15min.csv")[4:]
    # The same fortnight of 2019: the measured year has no prices here.
    prices = _rows(data / "smard_dayahead_2019_autumn_hourly.csv")
    by_hour = {row["hour_start_utc"]: int(row["DE_LU_eurocent_per_MWh"]) / 1e5 for row in prices}
    homes = []
    for number in range(1, 49):
        name, slots = f"CH{number:02d}", []
        for load, sun in zip(loads, suns, strict=False):
            at = datetime.fromisoformat(load["interval_start_utc"])
            hour = at.replace(year=2019, minute=0) - timedelta(days=1)
            spot = by_hour[hour.strftime("%Y-%m-%dT%H:00:00Z")]
            slots.append(
                Slot(
                    start=at.timestamp(),
                    pv_wh=peak_w * int(sun[f"PV{1 + number % 8}_per_mille"]) / 1000 / 4,
                    load_wh=float(load[name]),
                    buy=1.08 * spot + 0.16,
                    sell=spot - 0.01,
                )
            )
        homes.append(Home(name, tuple(slots), timezone(timedelta(hours=1)), 47.0, 8.0))
    return homes


def first_days(home: Home, days: int) -> Home:
    """Return a home with its first days alone."""
    end = home.slots[0].start + days * 86400
    return replace(home, slots=tuple(slot for slot in home.slots if slot.start < end))


class Run:
    """Lives through a home's slots, whatever a strategy says."""

    def __init__(self, home: Home, battery: Battery) -> None:
        self.home = home
        self.battery = battery
        self.stored = battery.reserve_wh
        self.result = Result()
        self.boiler_left = BOILER_W
        self.mode = Mode.AUTO
        slot = home.slots[0]
        self.counted_from = slot.start + WARM_UP_DAYS * 86400

    def step(self, slot: Slot, mode: Mode, boiler_wh: float, allow: Allowance) -> None:
        """Let one slot happen."""
        result, b = self.result, self.battery
        net = slot.load_wh + boiler_wh - slot.pv_wh
        flow = flow_in(mode, self.stored, slot, net, b, allow)
        self.stored = flow.stored
        self.boiler_left -= boiler_wh
        if slot.start < self.counted_from:
            return
        result.cost += money(flow, slot)
        result.bought += max(0.0, flow.grid) / 1000
        result.exported += max(0.0, -flow.grid) / 1000
        result.used += (slot.load_wh + boiler_wh) / 1000
        result.cycled += flow.given / 1000
        result.changes += mode is not self.mode
        result.least_wh = min(result.least_wh, self.stored)
        result.days += slot.seconds / 86400
        result.modes[mode] = result.modes.get(mode, 0) + 1
        self.mode = mode

    def new_day(self, slot: Slot) -> bool:
        """At local midnight the boiler is cold again."""
        local = local_time(slot.start, self.home.zone)
        return local.hour == 0 and local.minute == 0

    def finish(self) -> Result:
        """Value what is left in the battery at what selling brought on average."""
        slots = self.home.slots
        worth = sum(slot.sell for slot in slots) / len(slots)
        left = max(0.0, self.stored - self.battery.reserve_wh) * self.battery.discharge_efficiency
        self.result.cost -= left * worth / 1000
        return self.result


def _boiler_fixed(run: Run, slot: Slot) -> float:
    local = local_time(slot.start, run.home.zone)
    if local.hour < BOILER_HOUR:
        return 0.0
    return min(run.boiler_left, BOILER_W * slot.seconds / 3600)


def automatic(home: Home, battery: Battery) -> Result:
    """The inverter's own way."""
    run = Run(home, battery)
    for slot in home.slots:
        if run.new_day(slot):
            run.boiler_left = BOILER_W
        run.step(slot, Mode.AUTO, _boiler_fixed(run, slot), Allowance())
    return run.finish()


def no_battery(home: Home) -> Result:
    """Without a battery."""
    none = Battery(capacity_wh=1e-6, max_charge_w=0, max_discharge_w=0)
    return automatic(home, none)


def threshold(home: Home, battery: Battery) -> Result:
    """What owners build from templates."""
    run = Run(home, battery)
    prices: list[float] = []
    for slot in home.slots:
        if run.new_day(slot):
            run.boiler_left = BOILER_W
        day = sorted(prices[-int(86400 / slot.seconds) :]) or [slot.buy]
        low, high = day[len(day) // 4], day[3 * len(day) // 4]
        mode = Mode.AUTO
        if slot.start >= run.counted_from and low < high:
            if slot.buy <= low:
                mode = Mode.CHARGE
            elif slot.buy >= high:
                mode = Mode.DISCHARGE
        most = BOILER_W * slot.seconds / 3600
        surplus = slot.pv_wh - slot.load_wh >= most
        boiler = min(run.boiler_left, most) if surplus else _boiler_fixed(run, slot)
        sell = Allowance(sell_wh=battery.max_discharge_w * slot.seconds / 3600, buy=True)
        run.step(slot, mode, boiler, sell)
        prices.append(slot.buy)
    return run.finish()


def gridledger(
    home: Home,
    battery: Battery,
    rules: Sequence[TradingRule],
    *,
    every_s: float,
    oracle: bool = False,
) -> Result:
    """The engine. ``oracle``: with the next 24 hours known instead of forecast."""
    run = Run(home, battery)
    sun = SolarForecast(home.latitude, home.longitude)
    load = LoadForecast(home.zone)
    seconds = home.slots[0].seconds
    horizon = int(86400 / seconds)
    plan: Plan | None = None
    traded = {rule.id: 0.0 for rule in rules}
    first = home.slots[0].start
    for index, slot in enumerate(home.slots):
        if run.new_day(slot):
            run.boiler_left = BOILER_W
            traded = dict.fromkeys(traded, 0.0)
        if slot.start < run.counted_from:
            run.step(slot, Mode.AUTO, _boiler_fixed(run, slot), Allowance())
        else:
            began = time.perf_counter()
            due = plan is None or (slot.start - first) % every_s == 0
            if due:
                ahead = [
                    known
                    if oracle
                    else replace(
                        known,
                        pv_wh=sun.forecast(known.start, seconds),
                        load_wh=load.forecast(known.start, seconds),
                    )
                    for known in home.slots[index : index + horizon]
                ]
                local = local_time(slot.start, home.zone)
                midnight = slot.start + 86400 - (local.hour * 60 + local.minute) * 60
                needs = (
                    [
                        Need(
                            appliance_id="boiler",
                            energy_wh=run.boiler_left,
                            power_w=BOILER_W,
                            earliest=slot.start,
                            deadline=midnight,
                        )
                    ]
                    if run.boiler_left > 0.5
                    else []
                )
                if rules:
                    plan = plan_with_rules(
                        slot.start,
                        ahead,
                        rules,
                        battery,
                        run.stored,
                        zone=home.zone,
                        traded_wh={
                            (rule, local_time(slot.start, home.zone).date()): energy
                            for rule, energy in traded.items()
                        },
                        needs=needs,
                        old=plan,
                    )
                else:
                    plan = make_plan(
                        slot.start,
                        ahead,
                        battery=battery,
                        stored_wh=run.stored,
                        needs=needs,
                        zone=home.zone,
                        old=plan,
                    )
            run.result.seconds += time.perf_counter() - began
            assert plan is not None
            planned = plan.slot_at(slot.start)
            mode = Mode.AUTO if planned is None else planned.mode
            sold = 0.0 if planned is None else planned.sold_wh
            boiler = min(run.boiler_left, plan.run_wh("boiler", slot.start))
            before = run.stored
            run.step(slot, mode, boiler, Allowance(sell_wh=sold, buy=True))
            if mode is Mode.DISCHARGE:
                traded["sell"] += sold
            elif mode is Mode.CHARGE:
                traded["buy"] += max(0.0, run.stored - before)
        # The forecasts know quarters of an hour; an hourly meter gives four equal ones.
        for part in range(int(seconds // 900)):
            share = 900 / seconds
            sun.add(slot.start + 900 * part, slot.pv_wh * share)
            load.add(slot.start + 900 * part, slot.load_wh * share)
    if plan is not None:
        run.result.revisions = plan.revision
    return run.finish()


def foresight(home: Home, battery: Battery, *, trade: bool) -> Result:
    """Everything known in advance: one plan for all counted days, boilers placed by day."""
    run = Run(home, battery)
    counted = [slot for slot in home.slots if slot.start >= run.counted_from]
    for slot in home.slots[: len(home.slots) - len(counted)]:
        if run.new_day(slot):
            run.boiler_left = BOILER_W
        run.step(slot, Mode.AUTO, _boiler_fixed(run, slot), Allowance())
    needs = []
    for slot in counted:
        if run.new_day(slot) or slot is counted[0]:
            end = slot.start + 86400
            if slot is counted[0]:
                local = local_time(slot.start, home.zone)
                end -= (local.hour * 60 + local.minute) * 60
            needs.append(
                Need(
                    appliance_id=f"boiler {slot.start}",
                    energy_wh=BOILER_W,
                    power_w=BOILER_W,
                    earliest=slot.start,
                    deadline=end,
                )
            )
    rule = Allowance()
    if trade:
        most = battery.max_discharge_w * counted[0].seconds / 3600
        rule = Allowance(sell_wh=most, sell_reserve_wh=battery.reserve_wh, buy=True)
    plan = make_plan(
        counted[0].start,
        counted,
        battery=battery,
        stored_wh=run.stored,
        allowances=[rule] * len(counted),
        needs=needs,
        zone=home.zone,
    )
    for slot, planned in zip(counted, plan.slots, strict=True):
        run.boiler_left = planned.runs_wh
        run.step(slot, planned.mode, planned.runs_wh, rule)
    return run.finish()


def measure(homes: Sequence[Home], battery: Battery, every_s: float) -> dict[str, list[Result]]:
    """Run every strategy over every home."""
    strategies: dict[str, Callable[[Home], Result]] = {
        "no battery": no_battery,
        "automatic": lambda home: automatic(home, battery),
        "threshold": lambda home: threshold(home, battery),
        "gridledger, no trading": lambda home: gridledger(home, battery, (), every_s=every_s),
        "gridledger": lambda home: gridledger(home, battery, (_SELL, _BUY), every_s=every_s),
        "gridledger, 24 h known": lambda home: gridledger(
            home, battery, (_SELL, _BUY), every_s=every_s, oracle=True
        ),
        "foresight, no trading": lambda home: foresight(home, battery, trade=False),
        "foresight": lambda home: foresight(home, battery, trade=True),
    }
    return {name: [run(home) for home in homes] for name, run in strategies.items()}


def table(results: dict[str, list[Result]], currency: str) -> str:
    """Return the results as text: means by home and day."""
    columns = ("saved", "of best", "bought", "export", "own use", "cycled", "modes", "revised")
    lines = [
        f"{'strategy':<24}{currency + '/day':>9}"
        + "".join(f"{column:>8}" for column in columns)
        + f"{'ms/slot':>9}"
    ]

    def mean(name: str, pick: Callable[[Result], float]) -> float:
        return sum(pick(result) / result.days for result in results[name]) / len(results[name])

    base = mean("automatic", lambda r: r.cost)
    best = base - mean("foresight", lambda r: r.cost)
    for name, found in results.items():
        cost = mean(name, lambda r: r.cost)
        used = sum(r.used for r in found)
        share = 1 - sum(min(r.bought, r.used) for r in found) / used
        plans = sum(r.seconds for r in found) * 1000
        steps = sum(sum(r.modes.values()) for r in found)
        lines.append(
            f"{name:<24}{cost:>9.3f}{base - cost:>8.3f}{(base - cost) / best:>8.0%}"
            f"{mean(name, lambda r: r.bought):>8.2f}{mean(name, lambda r: r.exported):>8.2f}"
            f"{share:>8.0%}{mean(name, lambda r: r.cycled):>8.2f}"
            f"{mean(name, lambda r: r.changes):>8.1f}{mean(name, lambda r: r.revisions):>8.1f}"
            f"{plans / steps:>9.1f}"
        )
    return "\n".join(lines)


def spread(results: dict[str, list[Result]]) -> str:
    """Return how differently homes fare with the engine, beside doing nothing."""
    saved = sorted(
        (still.cost - engine.cost) / still.days
        for still, engine in zip(results["automatic"], results["gridledger"], strict=True)
    )
    gaining = sum(one > 0.0005 for one in saved)
    losing = sum(one < -0.0005 for one in saved)
    return (
        f"gridledger against automatic, by home and day: least {saved[0]:.3f}, "
        f"median {saved[len(saved) // 2]:.3f}, most {saved[-1]:.3f}; "
        f"{gaining} gain, {losing} lose, {len(saved) - gaining - losing} neither"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="script/bench planner", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, default=DATA, help="where the measured homes lie")
    parser.add_argument("--homes", type=int, default=6, help="of each set, picked evenly (6)")
    parser.add_argument("--days", type=int, default=14, help="that count (all: 11)")
    parser.add_argument("--every", type=int, default=1, help="hours between two plans (1)")
    parser.add_argument("--set", default="", help="only sets whose name begins so")
    parser.add_argument("--peak", type=float, default=6000, help="W of the Swiss roofs (6000)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    sets = {
        "Fontana, USD, hourly": (fontana(given.data), "USD"),
        "Switzerland, EUR, 15 min": (swiss(given.data, given.peak), "EUR"),
    }
    out: dict[str, Any] = {}
    for title, (homes, currency) in sets.items():
        if not title.startswith(given.set):
            continue
        homes = [first_days(home, WARM_UP_DAYS + given.days) for home in homes]
        count = min(given.homes, len(homes))
        picked = random.Random(1).sample(homes, count)  # noqa: S311
        results = measure(picked, BATTERY, 3600.0 * given.every)
        out[title] = {
            name: [{"cost": r.cost, "bought": r.bought, "exported": r.exported} for r in found]
            for name, found in results.items()
        }
        if not given.json:
            names = " ".join(sorted(home.name for home in picked))
            print(f"{title}: {count} homes ({names})\n{table(results, currency)}")
            print(f"{spread(results)}\n", flush=True)
    if given.json:
        print(json.dumps(out))


if __name__ == "__main__":
    main()
