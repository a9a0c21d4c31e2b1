"""Plans: what they promise, on made-up and on measured days."""

import ast
import csv
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from custom_components.gridledger import engine
from custom_components.gridledger.engine import (
    Battery,
    LoadForecast,
    Mode,
    Need,
    Plan,
    RuleKind,
    Slot,
    SolarForecast,
    Span,
    TradingRule,
    due_orders,
    make_plan,
)
from custom_components.gridledger.engine.forecast import clear_sky, sun_elevation
from custom_components.gridledger.engine.trading import plan_with_rules

from .house import DAY, LATITUDE, LONGITUDE

DATE = datetime.fromtimestamp(DAY, UTC).date()

BATTERY = Battery(capacity_wh=10_000, reserve_wh=1000)
SELL = TradingRule(
    id="sell",
    name="Evening",
    kind=RuleKind.SELL,
    enabled=True,
    dry_run=False,
    price_limit=0.1,
    reserve_percent=20,
    daily_limit_wh=3000,
)
BUY = replace(SELL, id="buy", kind=RuleKind.BUY, price_limit=0.15, daily_limit_wh=4000)


def day(
    pv_w: float = 5000, load_w: float = 500, buy: float = 0.3, sell: float = 0.08, **peak: float
) -> list[Slot]:
    """A sunny day in hours; between 18 and 21 o'clock ``peak`` prices hold."""
    slots = []
    for hour in range(24):
        start = DAY + 3600 * hour
        evening = peak if 18 <= hour < 21 else {}
        slots.append(
            Slot(
                start=start,
                seconds=3600,
                pv_wh=pv_w * clear_sky(start + 1800, LATITUDE, LONGITUDE) / 1000,
                load_wh=load_w,
                **{"buy": buy, "sell": sell, **evening},
            )
        )
    return slots


def check(plan: Plan, battery: Battery) -> None:
    """Physics and reasons."""
    stored = None
    for slot in plan.slots:
        assert -1e-6 <= slot.stored_wh <= battery.capacity_wh + 1e-6
        assert slot.reason.text
        if stored is not None and slot.stored_wh < stored:
            assert slot.stored_wh >= battery.reserve_wh - 1e-6
        stored = slot.stored_wh
        v = {k: float(x) for k, x in slot.reason.values.items() if k in ("buy", "sell", "worth")}
        match slot.reason.key:
            case "house_from_battery":
                assert v["worth"] <= v["buy"] + 2e-4
            case "house_from_microgrid":
                assert v["worth"] >= v["buy"] - 2e-4
            case "surplus_charges":
                assert v["worth"] >= v["sell"] - 2e-4
            case "surplus_sells":
                assert v["worth"] <= v["sell"] + 2e-4
            case "buys_to_charge":
                assert v["worth"] >= v["buy"] - 2e-4
            case "sells_stored":
                assert v["worth"] <= v["sell"] + 2e-4


def test_flat_prices_leave_the_battery_alone() -> None:
    plan = make_plan(DAY, day(), battery=BATTERY, stored_wh=3000)
    check(plan, BATTERY)
    assert {slot.mode for slot in plan.slots} == {Mode.AUTO}
    assert plan.cost == pytest.approx(plan.cost_automatic)


def test_a_dear_evening_is_fed_from_the_battery() -> None:
    slots = day(pv_w=0, load_w=1500, buy=0.1)[:18] + day(pv_w=0, load_w=1500, buy=0.6)[18:]
    plan = make_plan(DAY, slots, battery=BATTERY, stored_wh=6000)
    check(plan, BATTERY)
    assert all(s.house == "battery" for s in plan.slots[18:20])
    assert all(s.mode is Mode.HOLD for s in plan.slots[10:18])
    assert plan.cost < plan.cost_automatic


def test_nothing_is_sold_or_bought_without_a_rule() -> None:
    slots = day(sell=0.1, buy=0.12)[:18] + day(sell=0.9, buy=1.0)[18:]
    plan = make_plan(DAY, slots, battery=BATTERY, stored_wh=8000)
    assert not any(slot.sold_wh or slot.bought_wh for slot in plan.slots)


def test_rules_sell_at_the_peak_and_buy_before_it() -> None:
    slots = day(load_w=100, buy=0.1, sell=0.05)[:18] + day(load_w=100, buy=0.6, sell=0.5)[18:]
    plan = plan_with_rules(DAY, slots, (SELL, BUY), BATTERY, 2000, zone=UTC)
    check(plan, BATTERY)
    assert sum(s.sold_wh for s in plan.slots) == pytest.approx(3000, abs=1)
    assert sum(s.bought_wh for s in plan.slots) <= 4000
    assert all(s.start >= DAY + 18 * 3600 for s in plan.slots if s.sold_wh)
    assert plan.cost < plan.cost_automatic


def test_negative_prices_fill_the_battery() -> None:
    slots = day(pv_w=0, buy=0.3)[:12] + day(pv_w=0, buy=-0.1, sell=-0.2)[12:15] + day(pv_w=0)[15:]
    plan = plan_with_rules(
        DAY, slots, (replace(BUY, daily_limit_wh=20_000),), BATTERY, 1000, zone=UTC
    )
    assert any(slot.mode is Mode.CHARGE for slot in plan.slots[12:15])
    surplus = day(pv_w=8000, sell=-0.2, load_w=0)
    plan = plan_with_rules(DAY, surplus, (replace(SELL, price_limit=-1),), BATTERY, 9000, zone=UTC)
    assert not any(slot.sold_wh for slot in plan.slots), "nobody pays to sell what is stored"


def test_a_sale_has_to_earn_its_spread() -> None:
    slots = day(pv_w=0, buy=0.2, sell=0.25)
    cheap = plan_with_rules(DAY, slots, (SELL,), BATTERY, 9000, zone=UTC)
    dear = plan_with_rules(DAY, slots, (replace(SELL, spread=0.5),), BATTERY, 9000, zone=UTC)
    assert sum(s.sold_wh for s in cheap.slots) > 0
    assert sum(s.sold_wh for s in dear.slots) == 0


def test_committed_energy_is_delivered_first() -> None:
    slots = [
        replace(s, committed_wh=1500.0 if 18 <= i < 20 else 0.0) for i, s in enumerate(day(pv_w=0))
    ]
    plan = make_plan(DAY, slots, battery=BATTERY, stored_wh=9000)
    for slot in plan.slots[18:20]:
        assert slot.mode is Mode.DISCHARGE
        assert slot.missed_wh == 0
        assert slot.reason.key == "delivers"
    assert (
        sum(s.missed_wh for s in make_plan(DAY, slots, battery=BATTERY, stored_wh=1000).slots) > 0
    )


def test_car_leaves_charged_and_gives_back_at_the_peak() -> None:
    car = Battery(
        capacity_wh=50_000,
        reserve_wh=10_000,
        max_charge_w=7000,
        max_discharge_w=7000,
        deadline=DAY + 24 * 3600,
        target_wh=35_000,
    )
    slots = day(pv_w=0, buy=0.5, sell=0.45)[:6] + day(pv_w=0, buy=0.1, sell=0.05)[6:]
    v2g = plan_with_rules(
        DAY,
        slots,
        (replace(SELL, daily_limit_wh=50_000, reserve_percent=20),),
        car,
        30_000,
        zone=UTC,
    )
    assert sum(s.sold_wh for s in v2g.slots[:6]) > 5000
    assert v2g.slots[-1].stored_wh >= 35_000 - 50_000 / 40
    one_way = make_plan(DAY, slots, battery=replace(car, max_discharge_w=0), stored_wh=10_000)
    assert one_way.slots[-1].stored_wh >= 35_000 - 50_000 / 40
    assert all(s.bought_wh == 0 for s in one_way.slots[:6]), "it waits for the cheap hours"


def test_runs_go_where_energy_is_cheapest_and_stay_there() -> None:
    slots = day(pv_w=3000)
    need = Need(
        appliance_id="boiler", energy_wh=2000, power_w=1000, earliest=DAY, deadline=DAY + 86400
    )
    plan = make_plan(DAY, slots, needs=[need])
    assert all(5 <= (start - DAY) // 3600 <= 15 for start in plan.runs["boiler"])
    # Half a cent elsewhere is no reason to move.
    moved = [
        replace(s, buy=s.buy - 0.005, sell=s.sell - 0.005) if i < 8 else s
        for i, s in enumerate(slots)
    ]
    assert make_plan(DAY, moved, needs=[need], old=plan).runs == plan.runs


def test_run_that_does_not_fit_says_so() -> None:
    need = Need(
        appliance_id="a",
        energy_wh=5000,
        power_w=1000,
        earliest=DAY,
        deadline=DAY + 7200,
        whole=True,
    )
    assert make_plan(DAY, day(), needs=[need]).short_wh["a"] == pytest.approx(3000)


def test_pennies_do_not_change_a_plan() -> None:
    slots = day(pv_w=0, load_w=1500, buy=0.1)[:18] + day(pv_w=0, load_w=1500, buy=0.6)[18:]
    old = make_plan(DAY, slots, battery=BATTERY, stored_wh=6000)
    noisy = [replace(s, load_wh=s.load_wh * (1.01 if i % 2 else 0.99)) for i, s in enumerate(slots)]
    new = make_plan(DAY + 60, noisy, battery=BATTERY, stored_wh=5990, old=old)
    assert new.revision == old.revision
    assert [s.mode for s in new.slots] == [s.mode for s in old.slots]
    turned = [replace(s, buy=0.7 - s.buy) for s in slots]
    assert make_plan(DAY, turned, battery=BATTERY, stored_wh=6000, old=old).revision == 1


def test_orders_follow_gate_closure_and_are_named_once() -> None:
    slots = day(load_w=100, buy=0.1, sell=0.05)[:18] + day(load_w=100, buy=0.6, sell=0.5)[18:]
    plan = plan_with_rules(DAY, slots, (SELL,), BATTERY, 9000, zone=UTC)
    first = next(s.start for s in plan.slots if s.sold_wh)
    asked: dict[str, Any] = {"zone": UTC, "gate_s": 300.0}
    assert due_orders(plan, (SELL,), first - 4000, **asked) == []
    (order,) = due_orders(plan, (SELL,), first - 3000, **asked)
    assert order.energy_wh <= 3000
    assert order.least_price >= SELL.price_limit
    assert due_orders(plan, (SELL,), first - 2000, **asked)[0].request_id == order.request_id
    late = due_orders(plan, (SELL,), first - 200, **asked)
    assert all(o.start > first for o in late), "its gate has closed"
    assert due_orders(plan, (replace(SELL, enabled=False),), first - 3000, **asked) == []
    spent = due_orders(plan, (SELL,), first - 3000, traded_wh={("sell", DATE): 3000.0}, **asked)
    assert spent == []


prices = st.floats(-0.2, 1.0)


@given(
    slots=st.lists(
        st.tuples(st.floats(0, 6000), st.floats(0, 4000), prices, prices), min_size=24, max_size=24
    ),
    stored=st.floats(0, 10_000),
    floor=prices,
    ceiling=prices,
    reserve=st.integers(0, 100),
    limit=st.floats(100, 8000),
    hours=st.tuples(st.integers(0, 23), st.integers(0, 23)),
    traded=st.floats(0, 9000),
)
@hypothesis_settings(max_examples=25, deadline=None)
def test_limits_always_hold(
    slots: list[tuple[float, float, float, float]],
    stored: float,
    floor: float,
    ceiling: float,
    reserve: int,
    limit: float,
    hours: tuple[int, int],
    traded: float,
) -> None:
    span = Span(hours[0] * 60, hours[1] * 60)
    sell = replace(
        SELL, price_limit=floor, reserve_percent=reserve, daily_limit_wh=limit, hours=span
    )
    buy = replace(BUY, price_limit=ceiling, daily_limit_wh=limit)
    made = [
        Slot(start=DAY + 3600 * i, seconds=3600, pv_wh=pv, load_wh=load, buy=b, sell=s)
        for i, (pv, load, b, s) in enumerate(slots)
    ]
    plan = plan_with_rules(
        DAY, made, (sell, buy), BATTERY, stored, zone=UTC, traded_wh={("sell", DATE): traded}
    )
    check(plan, BATTERY)
    sold = bought = 0.0
    for slot, hour in zip(plan.slots, range(24), strict=True):
        sold += slot.sold_wh
        bought += slot.bought_wh
        if slot.sold_wh:
            assert slot.sell >= floor
            assert slot.stored_wh >= max(1000, reserve * 100) - 1e-6
            assert hours[0] == hours[1] or span.holds(
                __import__("datetime").datetime(2026, 1, 1, hour)
            )
        if slot.bought_wh:
            assert slot.buy <= ceiling
    assert sold <= max(0.0, limit - traded) + 1e-3
    assert bought <= limit + 1e-3
    orders = due_orders(
        plan, (sell, buy), DAY, zone=UTC, gate_s=0, lead_s=86400, traded_wh={("sell", DATE): traded}
    )
    assert sum(order.energy_wh for order in orders) <= max(0.0, limit - traded)


def test_the_sun_stands_where_it_stands() -> None:
    # 20 March 2026, noon at Greenwich: nearly the equator's zenith.
    equinox = 1774008000.0
    assert sun_elevation(equinox, 0, 0) == pytest.approx(1, abs=0.005)
    assert sun_elevation(equinox, 51.5, 0) == pytest.approx(0.62, abs=0.02)
    assert sun_elevation(equinox + 43200, 51.5, 0) < 0
    assert clear_sky(equinox, 0, 0) == pytest.approx(1037, abs=5)


DATA = Path(__file__).parents[3] / "demo" / "data"


def test_measured_days_are_forecast_better_than_by_yesterday() -> None:
    """The sun of a measured German week in June, from three days of history on."""
    with (DATA / "simbench_pv_summer_15min.csv").open() as file:
        rows = [int(row["PV1_per_mille"]) * 5.0 / 4 for row in csv.DictReader(file)]
    start = 1466373600.0  # 2016-06-19T22:00Z
    sun = SolarForecast(51.0, 10.0)
    ours = yesterday = total = 0.0
    for index, energy in enumerate(rows):
        at = start + 900 * index
        if index >= 3 * 96:
            ours += abs(sun.forecast(at) - energy)
            yesterday += abs(rows[index - 96] - energy)
            total += energy
        sun.add(at, energy)
    assert ours < yesterday
    assert ours / total < 0.5
    again = SolarForecast.from_list(51.0, 10.0, sun.as_list())
    assert again.forecast(at + 7200) == pytest.approx(sun.forecast(at + 7200), rel=0.01)


def test_load_is_learnt_by_time_of_day() -> None:
    load = LoadForecast(UTC)
    for index in range(96 * 7):
        load.add(DAY + 900 * index, 500.0 if 72 <= index % 96 < 80 else 50.0)
    start = DAY + 7 * 86400
    assert load.forecast(start + 19 * 3600) > 350
    assert load.forecast(start + 4 * 3600) == pytest.approx(50, abs=5)
    assert SolarForecast(0, 0).forecast(start) == 0
    assert LoadForecast(UTC).forecast(start) == 0


def test_the_engine_is_pure() -> None:
    """No Home Assistant, no network, no clock of its own."""
    folder = Path(engine.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            for name in names:
                assert name.partition(".")[0] not in {"homeassistant", "time", "grpc", "asyncio"}
            assert not (isinstance(node, ast.ImportFrom) and node.level > 1), path
