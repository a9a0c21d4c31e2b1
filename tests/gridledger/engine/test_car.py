"""A car that gives back: planned as a battery with a deadline, told by the dispatcher."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC

import pytest

from custom_components.gridledger.engine import (
    Appliance,
    ApplianceReading,
    Battery,
    Car,
    Dispatcher,
    Kind,
    Mode,
    Plan,
    Response,
    RuleKind,
    Settings,
    Slot,
    Snapshot,
    TradingRule,
    due_orders,
    plan_home,
)

from .house import DAY, House

LEAVES_MIN = 7 * 60
EVENING = DAY + 17 * 3600
LEAVES = DAY + 86400 + LEAVES_MIN * 60
BATTERY = Battery(
    capacity_wh=50_000, reserve_wh=20_000, target_wh=40_000, max_charge_w=3680,
    max_discharge_w=5000, drives=True,
)  # fmt: skip
CAR = Appliance(
    id="car", name="Car", kind=Kind.CHARGER, deadline_min=LEAVES_MIN, car=BATTERY, min_off_s=0
)
SELL = TradingRule(
    id="sell", name="Evening", kind=RuleKind.SELL, enabled=True, dry_run=False, price_limit=0.2,
    daily_limit_wh=4000,
)  # fmt: skip


def evening(sell: float = 0.08) -> list[Slot]:
    """From five o'clock on, 24 hours: dear until nine, cheap from eleven to five."""
    slots = []
    for hour in range(24):
        clock = (17 + hour) % 24
        buy = 0.5 if 17 <= clock < 21 else 0.1 if clock >= 23 or clock < 5 else 0.3
        high = sell if buy == 0.5 else 0.08
        slots.append(
            Slot(start=EVENING + 3600 * hour, seconds=3600, load_wh=1500, buy=buy, sell=high)
        )
    return slots


def planned(slots: list[Slot], car_wh: float = 40_000, **changed: object) -> Plan:
    car = Car(appliance_id="car", battery=replace(BATTERY, deadline=LEAVES), stored_wh=car_wh)
    given: dict[str, object] = {
        "rules": (), "battery": None, "stored_wh": None, "cars": [car], **changed
    }  # fmt: skip

    return plan_home(EVENING, slots, zone=UTC, **given)  # type: ignore[arg-type]


def house_of(plan: Plan | None, car_wh: float = 40_000, **changed: object) -> House:
    settings = Settings(appliances=(CAR,))
    base: Callable[[float], float] = lambda now: 1500.0  # noqa: E731
    house = House(settings, lambda now: 0.0, base_w=base, car_wh=car_wh, **changed)  # type: ignore[arg-type]
    house.plan = plan
    house.needed_wh = max(0.0, BATTERY.target_wh - car_wh)
    return house


def test_a_car_feeds_the_house_at_the_peak_and_leaves_charged() -> None:
    plan = planned(evening())
    car = plan.cars["car"]
    assert [slot.mode for slot in car.slots[:4]] == [Mode.AUTO] * 4
    assert car.slots[0].reason.key == "house_from_battery"
    assert car.slots[-1].start + 3600 == LEAVES, "nothing is planned for a car that has left"
    assert 40_000 <= car.slots[-1].stored_wh < 43_500, "in whole hours of charging"
    cheap = {slot.start for slot in evening() if slot.buy == 0.1}
    assert set(plan.runs["car"]) <= cheap
    assert sum(plan.runs["car"].values()) >= 6000 / 0.95**2
    assert [round(slot.grid_wh) for slot in plan.slots[:4]] == [0] * 4
    assert plan.slots[0].load_wh == 1500
    assert plan.slots[0].runs_wh == pytest.approx(-1500)
    assert len(plan.slots) == 24


def test_a_car_never_goes_below_its_reserve_or_misses_its_deadline() -> None:
    low = planned(evening(), car_wh=21_000).cars["car"]
    assert min(slot.stored_wh for slot in low.slots) >= 20_000 - 1
    soon = [slot for slot in evening() if slot.start < EVENING + 3600 * 3]
    battery = replace(BATTERY, deadline=EVENING + 3 * 3600)
    car = Car(appliance_id="car", battery=battery, stored_wh=40_000)
    slots = planned(soon, cars=[car]).cars["car"].slots
    assert slots[-1].stored_wh >= 39_000


def test_a_home_battery_is_asked_first_and_rules_sell_from_it() -> None:
    home = Battery(capacity_wh=10_000, reserve_wh=1000)
    plan = planned(evening(sell=0.6), battery=home, stored_wh=10_000, rules=(SELL,))
    assert sum(slot.sold_wh for slot in plan.slots) == pytest.approx(4000)
    assert not any(slot.sold_wh for slot in plan.cars["car"].slots)


def test_without_a_home_battery_rules_sell_from_the_car() -> None:
    plan = planned(evening(sell=0.6), rules=(SELL,))
    sold = sum(slot.sold_wh for slot in plan.cars["car"].slots)
    assert sold == pytest.approx(4000)
    orders = due_orders(plan.cars["car"], [SELL], EVENING + 7080, zone=UTC, gate_s=60)
    assert sum(order.energy_wh for order in orders) in range(3900, 4001)
    assert not due_orders(plan, [SELL], EVENING + 7080, zone=UTC, gate_s=60)
    assert not any(s.sold_wh for s in planned(evening(sell=0.6)).cars["car"].slots), "no rule"


def test_the_dispatcher_follows_the_house_and_renews_its_command() -> None:
    house = house_of(planned(evening()))
    told = 0
    for now, snapshot, decision in house.live(EVENING, 1):
        made = decision.appliances["car"]
        told += made.send_given
        assert not made.send
        if now > EVENING + 120:
            assert made.reason.key == "car_feeds"
            assert made.reason.text.startswith("gives back 1500 W: buying costs 0.5")
            assert snapshot.grid_w == pytest.approx(0, abs=1)
            assert now < made.given_until <= now + 900
    assert told == 5, "at once, and every quarter of an hour"
    house.base_w = lambda now: 4000.0
    *_, (_, snapshot, decision) = house.live(EVENING + 3600, 0.1)
    assert decision.appliances["car"].given_w == 4000
    house.base_w = lambda now: 100.0
    *_, (_, _, decision) = house.live(EVENING + 3960, 0.1)
    assert (decision.appliances["car"].given_w, house.given_w) == (0, 0), "too little"


def test_after_the_peak_it_stops_and_is_charged_in_time() -> None:
    house = house_of(planned(evening()))
    for _ in house.live(EVENING, 13.9):
        pass
    assert house.car_wh is not None
    assert house.car_wh >= 39_500
    assert house.given_w == 0


def test_what_is_sold_is_delivered_from_the_car() -> None:
    house = house_of(planned(evening()))
    house.committed = lambda now: 2000.0
    *_, (_, snapshot, decision) = house.live(EVENING, 0.2)
    made = decision.appliances["car"]
    assert (made.reason.key, made.given_w) == ("car_delivers", 3500)
    assert snapshot.grid_w == pytest.approx(-2000)


def test_an_event_that_asks_for_less_is_helped() -> None:
    plan = planned([replace(slot, buy=0.3) for slot in evening()])
    house = house_of(plan, response=Response(start=EVENING, end=EVENING + 3600))
    *_, (_, _, decision) = house.live(EVENING, 0.2)
    assert decision.appliances["car"].reason.text == (
        "gives back 1500 W: a response event asks for less until 18:00"
    )


def reading(**changed: object) -> ApplianceReading:
    known: dict[str, object] = {"stored_wh": 40_000, "needed_wh": 0, "power_w": 0.0, **changed}
    return ApplianceReading(**known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ({}, {"stored_wh": 20_000}),
        ({}, {"stored_wh": None}),
        ({}, {"connected": False}),
        ({"permit": False}, {}),
        ({"grid_w": None}, {}),
        ({"now": EVENING + 3 * 3600}, {}),
        # It could not be charged again in time: 13,000 Wh at 3,680 W, and it leaves at seven.
        ({"now": DAY + 86400 + 4 * 3600}, {"stored_wh": 27_000, "needed_wh": 13_000}),
    ],
    ids=["reserve", "level unknown", "gone", "suspended", "grid unknown", "old plan", "deadline"],
)
def test_when_a_car_does_not_give_back(changed: dict[str, object], seen: dict[str, object]) -> None:
    known: dict[str, object] = {"now": EVENING + 60, "grid_w": 1500.0, **changed}
    plan = planned(evening())
    if known["now"] == DAY + 86400 + 4 * 3600:
        plan = replace(plan, made_at=DAY + 86400 + 4 * 3600 - 60)
    dispatcher = Dispatcher(Settings(appliances=(CAR,)))
    snapshot = Snapshot(appliances={"car": reading(**seen)}, **known)  # type: ignore[arg-type]
    made = dispatcher.step(snapshot, plan).appliances["car"]
    assert (made.given_w, made.send_given) == (0, False)


def test_a_charger_that_does_not_follow_is_left_alone() -> None:
    plan, dispatcher = planned(evening()), Dispatcher(Settings(appliances=(CAR,)))
    given = []
    for minute in range(1, 20):
        snapshot = Snapshot(now=EVENING + 60 * minute, grid_w=1500.0, appliances={"car": reading()})
        given.append(dispatcher.step(snapshot, plan).appliances["car"].given_w)
    assert given[0] == 1500
    assert set(given[4:]) == {0}, "for an hour"


def test_its_switch_may_show_anything_while_it_gives_back_and_a_restart_ends_it() -> None:
    plan, dispatcher = planned(evening()), Dispatcher(Settings(appliances=(CAR,)))

    def step(minute: int, plan: Plan | None = plan, **seen: object) -> object:
        snapshot = Snapshot(
            now=EVENING + 60 * minute, grid_w=0.0 if minute > 1 else 1500.0,
            appliances={"car": reading(**seen)},
        )  # fmt: skip
        return dispatcher.step(snapshot, plan).appliances["car"]

    step(1)
    made = step(2, on=True, power_w=-1500.0)
    assert made.reason.key == "car_feeds"  # type: ignore[attr-defined]
    assert not made.send  # type: ignore[attr-defined]
    assert dispatcher.safe_state().stop_giving == ("car",)
    dispatcher = Dispatcher(Settings(appliances=(CAR,)), dispatcher.as_dict())
    made = step(3, None, power_w=-1500.0)
    assert (made.given_w, made.send_given) == (0, True)  # type: ignore[attr-defined]
    assert dispatcher.safe_state().stop_giving == ()
