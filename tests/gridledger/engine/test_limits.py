"""A permit's limit and response events, as inputs of planner and dispatcher."""

from dataclasses import replace

import pytest

from custom_components.gridledger.engine import (
    Battery,
    Mode,
    Need,
    Response,
    Settings,
    Slot,
    make_plan,
)

from .house import BOILER, CAR, DAY, PUMP, House

BATTERY = Battery(capacity_wh=10_000, reserve_wh=1000, drives=True)
NOON = DAY + 12 * 3600


def slots(count: int = 24, **of_all: float) -> list[Slot]:
    values = {"load_wh": 500.0, "buy": 0.3, "sell": 0.08, **of_all}
    return [Slot(start=DAY + 3600 * hour, seconds=3600, **values) for hour in range(count)]


def at(given: list[Slot], hours: range, **changed: object) -> list[Slot]:
    return [replace(s, **changed) if i in hours else s for i, s in enumerate(given)]  # type: ignore[arg-type]


# The permit's limit ----------------------------------------------------------------------------


def test_appliances_stay_within_the_permits_limit_by_priority() -> None:
    settings = Settings(appliances=(BOILER, PUMP))
    house = House(settings, lambda now: 0.0, base_w=lambda now: 300.0, limit_w=1500)
    for key in ("boiler", "pump"):
        house.dispatcher.override(key, True, NOON, 7200)
    seen = set()
    for _, snapshot, decision in house.live(NOON, 1):
        assert snapshot.grid_w is not None
        assert snapshot.grid_w <= 1500
        seen.add(decision.appliances["boiler"].reason.key)
        assert decision.appliances["pump"].reason.key == "override_on"
    # 2,000 W fit beside nothing; the pump comes later, and fits.
    assert seen == {"limited"}
    reason = decision.appliances["boiler"].reason
    assert reason.values["limit_w"] == 1500
    assert reason.values["power_w"] == 2000
    assert reason.text.startswith("off: at most 1500 W")


def test_a_limit_that_comes_ends_what_is_too_much_at_once() -> None:
    settings = Settings(appliances=(replace(BOILER, min_on_s=3600), PUMP))
    house = House(settings, lambda now: 5000.0, base_w=lambda now: 300.0)
    list(house.live(NOON, 0.5))
    assert house.on == {"boiler": True, "pump": True}
    house.pv, house.limit_w = (lambda now: 0.0), 1200
    (_, _, decision), *_, (_, later, _) = house.live(NOON + 1800, 0.2)
    assert decision.appliances["boiler"].reason.key == "limited", "whatever its minimum on time"
    assert later.grid_w is not None
    assert later.grid_w <= 1200


def test_what_the_owner_switches_by_hand_counts_and_is_left_alone() -> None:
    settings = Settings(appliances=(PUMP, replace(BOILER, power_w=1000, priority=9)))
    house = House(settings, lambda now: 0.0, base_w=lambda now: 200.0, limit_w=1500)
    list(house.live(NOON, 0.2))
    house.on["pump"] = True
    house.dispatcher.override("boiler", True, NOON + 720, 7200)
    *_, (_, _, decision) = house.live(NOON + 720, 0.2)
    assert decision.appliances["pump"].reason.key == "by_hand_on"
    assert decision.appliances["boiler"].reason.key == "limited"


def test_a_charger_takes_what_the_limit_leaves() -> None:
    settings = Settings(appliances=(CAR,))
    house = House(settings, lambda now: 0.0, base_w=lambda now: 500.0, limit_w=3000)
    house.dispatcher.override("car", True, NOON, 7200)
    *_, (_, snapshot, decision) = house.live(NOON, 0.3)
    assert decision.appliances["car"].current_a == 10  # 2,300 W of 2,500
    assert snapshot.grid_w == pytest.approx(2800)
    house.limit_w = 1000
    *_, (_, _, decision) = house.live(NOON + 1080, 0.1)
    assert decision.appliances["car"].reason.key == "limited", "6 A are too much"


def test_the_battery_charges_within_the_limit_and_feeds_the_house_above_it() -> None:
    settings = Settings(battery=BATTERY)
    plan = make_plan(NOON, [Slot(start=NOON, seconds=7200, buy=0.1)], battery=BATTERY)
    charging = replace(plan, slots=(replace(plan.slots[0], mode=Mode.CHARGE, power_w=5000),))
    house = House(settings, lambda now: 0.0, base_w=lambda now: 400.0, limit_w=2000)
    house.plan = charging
    *_, (_, snapshot, decision) = house.live(NOON, 0.2)
    assert decision.battery is not None
    assert decision.battery.power_w == 1600
    assert snapshot.grid_w == pytest.approx(2000)
    house.base_w = lambda now: 1950.0
    *_, (_, _, decision) = house.live(NOON + 720, 0.1)
    assert decision.battery is not None
    assert decision.battery.reason.key == "limited_battery"
    house.plan = replace(plan, slots=(replace(plan.slots[0], mode=Mode.HOLD),))
    house.base_w = lambda now: 2500.0
    *_, (_, snapshot, decision) = house.live(NOON + 1080, 0.3)
    assert decision.battery is not None
    assert (decision.battery.mode, decision.battery.reason.key) == (Mode.AUTO, "limited_battery")
    assert snapshot.battery_w == pytest.approx(2500)


def test_plans_keep_energy_for_hours_with_a_limit_and_charge_within_it() -> None:
    given = at(slots(), range(18, 21), load_wh=2400.0, limit_w=1000.0)
    plan = make_plan(DAY, given, battery=BATTERY, stored_wh=9000)
    assert all(slot.grid_wh <= 1001 for slot in plan.slots[18:21])
    # Prices are flat: without the limit the battery is emptied at once.
    assert make_plan(DAY, slots(), battery=BATTERY, stored_wh=9000).slots[18].grid_wh > 400
    cheap = at(slots(limit_w=2000.0), range(2, 5), buy=0.0, response="absorb", reward=0.1)
    plan = make_plan(DAY, cheap, battery=BATTERY, stored_wh=1000)
    assert max(slot.grid_wh for slot in plan.slots) == pytest.approx(2000)


def test_runs_are_placed_where_the_limit_has_room() -> None:
    need = Need(
        appliance_id="car", energy_wh=4000, power_w=3680, least_w=1380, earliest=DAY,
        deadline=DAY + 86400,
    )  # fmt: skip
    given = at(slots(limit_w=2500.0), range(3), load_wh=1500.0, buy=0.1)
    plan = make_plan(DAY, given, needs=[need])
    starts = [(start - DAY) / 3600 for start in plan.runs["car"]]
    assert min(starts) >= 3, "the cheapest hours have only 1,000 W left"
    assert max(plan.runs["car"].values()) <= 2000
    switched = make_plan(DAY, given, needs=[replace(need, least_w=None)])
    assert switched.short_wh == {"car": 4000}, "what can't be lowered doesn't fit at all"


# Response events -------------------------------------------------------------------------------


def test_absorbing_runs_what_responds_and_charges() -> None:
    stubborn = replace(PUMP, responds=False)
    settings = Settings(appliances=(BOILER, stubborn), battery=BATTERY)
    house = House(settings, lambda now: 0.0, stored_wh=3000)
    house.response = Response(start=NOON, end=NOON + 3600, kind="absorb", reward=0.1)
    *_, (_, snapshot, decision) = house.live(NOON, 0.5)
    assert decision.appliances["boiler"].reason.key == "absorb"
    assert decision.appliances["boiler"].reason.text == (
        "on: a response event asks to use more until 13:00"
    )
    assert not decision.appliances["pump"].on
    assert decision.battery is not None
    assert (decision.battery.mode, decision.battery.power_w) == (Mode.CHARGE, 5000)
    assert decision.battery.until == NOON + 3600
    assert snapshot.grid_w is not None
    assert snapshot.grid_w > 7000
    *_, (_, _, decision) = house.live(NOON + 1800, 0.75)
    assert not decision.appliances["boiler"].on, "the event is over"
    assert decision.battery is not None
    assert decision.battery.mode is Mode.AUTO


def test_absorbing_respects_permit_limit_delivery_and_a_full_battery() -> None:
    settings = Settings(appliances=(BOILER,), battery=BATTERY)
    event = Response(start=NOON, end=NOON + 3600, kind="absorb")
    house = House(settings, lambda now: 0.0, stored_wh=5000, response=event, limit_w=1000)
    *_, (_, snapshot, decision) = house.live(NOON, 0.2)
    assert decision.appliances["boiler"].reason.key == "limited"
    assert decision.battery is not None
    assert decision.battery.reason.key == "absorb_charges"
    assert snapshot.grid_w is not None
    assert snapshot.grid_w <= 1150  # its base load moves by 150 W between two steps

    house = House(settings, lambda now: 0.0, stored_wh=9990, response=event)
    *_, (_, _, decision) = house.live(NOON, 0.2)
    assert decision.battery is not None
    assert (decision.battery.mode, decision.battery.reason.key) == (Mode.HOLD, "absorb_holds")

    house = House(settings, lambda now: 0.0, stored_wh=5000, response=event)
    house.committed = lambda now: 1000.0
    *_, (_, _, decision) = house.live(NOON, 0.1)
    assert not decision.appliances["boiler"].on
    assert decision.battery is not None
    assert decision.battery.reason.key == "delivers"


def test_reducing_neither_charges_nor_spares_the_battery() -> None:
    settings = Settings(battery=BATTERY)
    plan = make_plan(NOON, [Slot(start=NOON, seconds=7200, buy=0.1)], battery=BATTERY)
    event = Response(start=NOON, end=NOON + 3600)
    for mode in (Mode.CHARGE, Mode.HOLD):
        house = House(settings, lambda now: 0.0, response=event)
        house.plan = replace(plan, slots=(replace(plan.slots[0], mode=mode, power_w=3000),))
        *_, (_, snapshot, decision) = house.live(NOON, 0.2)
        assert decision.battery is not None
        assert decision.battery.reason.key == "response_battery"
        assert snapshot.grid_w == pytest.approx(0, abs=1)


def test_plans_follow_the_rewards_of_events() -> None:
    given = at(slots(), range(10, 12), response="reduce", reward=0.5, load_wh=2000.0)
    plan = make_plan(DAY, given, battery=BATTERY, stored_wh=5500)
    assert all(slot.grid_wh < 100 for slot in plan.slots[10:12])
    plain = make_plan(
        DAY, at(slots(), range(10, 12), load_wh=2000.0), battery=BATTERY, stored_wh=5500
    )
    assert sum(slot.grid_wh for slot in plain.slots[10:12]) > 1000

    given = at(slots(), range(10, 12), response="absorb", reward=0.5)
    plan = make_plan(DAY, given, battery=BATTERY, stored_wh=1000)
    assert plan.slots[10].mode is Mode.CHARGE, "no rule is needed: the home takes part"
    assert plan.slots[10].reason.key == "absorb_planned"
    need = Need(
        appliance_id="boiler", energy_wh=2000, power_w=2000, earliest=DAY, deadline=DAY + 86400
    )
    assert list(make_plan(DAY, given, needs=[need]).runs["boiler"]) == [DAY + 10 * 3600]
    reduce = at(slots(), range(12), response="reduce", reward=0.1)
    assert min(make_plan(DAY, reduce, needs=[need]).runs["boiler"]) >= DAY + 12 * 3600
