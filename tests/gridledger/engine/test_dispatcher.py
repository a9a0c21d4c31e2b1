"""Days of a house, minute by minute."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from custom_components.gridledger.engine import (
    REASONS,
    ApplianceReading,
    Battery,
    BatteryDecision,
    Decision,
    Dispatcher,
    Mode,
    Reason,
    Response,
    Settings,
    Snapshot,
    Span,
    make_plan,
)
from custom_components.gridledger.engine.model import Slot

from .house import BOILER, CAR, DAY, PUMP, House, cloudy

BATTERY = Battery(capacity_wh=10_000, reserve_wh=2000, drives=True)
HOME = Settings(appliances=(BOILER, PUMP, CAR), battery=BATTERY)
NOON = DAY + 12 * 3600


class Checker:
    """An independent reading of what reasons claim."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.changed: dict[str, float] = {}
        self.was: dict[str, bool] = {}
        self.surplus: list[tuple[float, float, float]] = []

    def look(self, s: Snapshot, d: Decision) -> None:
        own = sum(r.power_w or 0.0 for r in s.appliances.values() if r.on)
        base = -(s.grid_w or 0.0) - max(s.battery_w or 0.0, s.committed_w, 0.0) + own
        self.surplus.append((s.now, base, max(-(s.battery_w or 0.0), 0.0)))
        for a in self.settings.appliances:
            reading, made = s.appliances[a.id], d.appliances[a.id]
            if a.id in self.was and self.was[a.id] != reading.on:
                self.changed[a.id] = s.now
            self.was[a.id] = reading.on
            v, key = made.reason.values, made.reason.key
            assert made.reason.text, key  # all placeholders are there
            if made.reason.text.startswith("on") or key == "min_on":
                assert made.on, made.reason
            if made.reason.text.startswith(("off", "waits")):
                assert not made.on, made.reason
            if key in ("min_on", "min_off"):
                ago = s.now - self.changed[a.id]
                minimum = a.min_on_s if key == "min_on" else a.min_off_s
                assert v["ago_min"] == ago // 60
                assert v["minimum_min"] * 60 == minimum
                assert 0 <= v["left_min"] * 60 - (minimum - ago) < 60
            if key == "battery_drains":
                assert (s.battery_w or 0) == pytest.approx(v["battery_w"], abs=1)
                assert v["battery_w"] > 0
            if key == "battery_first":
                assert -(s.battery_w or 0) == pytest.approx(v["battery_w"], abs=1)
            if key == "waits_surplus":
                assert v["surplus_w"] <= v["limit_w"]
            if key == "surplus_on":
                assert v["surplus_w"] >= v["power_w"]
            if key == "daily_max":
                assert v["run_min"] >= v["maximum_min"]
            if key == "deadline":
                assert v["need_min"] > 0


@pytest.mark.parametrize("seed", range(6))
def test_cloudy_day_with_battery_and_three_appliances(seed: int) -> None:
    house = House(HOME, cloudy(seed))
    checker = Checker(HOME)
    starts: Counter[str] = Counter()
    draining: dict[str, float] = {}
    reasons: Counter[str] = Counter()
    for now, snapshot, decision in house.live(DAY, 24):
        checker.look(snapshot, decision)
        for a in HOME.appliances:
            made, on = decision.appliances[a.id], snapshot.appliances[a.id].on
            reasons[made.reason.key] += 1
            drains = (snapshot.battery_w or 0) > HOME.drain_tolerance_w
            if made.send and made.on and not on:
                starts[a.id] += 1
                if made.reason.key == "surplus_on":
                    assert not drains, "started while the battery drains"
            # On while the battery drains: only as long as averages and minimum times may take.
            if on and drains and made.reason.key != "deadline":
                draining[a.id] = draining.get(a.id, 0) + 60
                assert draining[a.id] <= max(a.min_on_s, 900) + 120, (a.id, now, made.reason.text)
            else:
                draining[a.id] = 0
            if a.fast_off and on and drains and made.send:
                assert not made.on or a.variable
    assert all(count <= 12 for count in starts.values()), starts
    assert sum(starts.values()) >= 3, "the sun was used"
    assert len(reasons) >= 5, reasons


def test_surplus_is_used_and_the_boiler_has_its_hour() -> None:
    house = House(HOME, cloudy(1))
    ran: Counter[str] = Counter()
    for _, snapshot, _ in house.live(DAY, 24):
        for key, reading in snapshot.appliances.items():
            ran[key] += reading.on
    assert ran["boiler"] >= 60
    assert ran["pump"] <= 6 * 60 + 10  # its minimum on time may end after its maximum


def test_deadline_is_met_without_any_sun() -> None:
    settings = replace(HOME, appliances=(replace(BOILER, deadline_min=18 * 60),), battery=None)
    house = House(settings, lambda now: 0.0)
    first, seen = None, 0
    for now, snapshot, decision in house.live(DAY, 18):
        seen += snapshot.appliances["boiler"].on
        if decision.appliances["boiler"].on and first is None:
            first = now
            assert decision.appliances["boiler"].reason.key == "deadline"
    assert seen >= 59
    assert first is not None
    assert DAY + 16.8 * 3600 <= first <= DAY + 17 * 3600


def test_override_wins_and_expires() -> None:
    settings = replace(HOME, appliances=(PUMP,), battery=None)
    house = House(settings, lambda now: 0.0)
    house.dispatcher.override("pump", True, DAY, 30 * 60)
    on = []
    for now, snapshot, decision in house.live(DAY, 2):
        made = decision.appliances["pump"]
        if snapshot.appliances["pump"].on:
            on.append(now)
        if now < DAY + 1800:
            assert made.on
            assert made.reason.key == "override_on"
            assert abs(made.reason.values["left_min"] * 60 - (DAY + 1800 - now)) < 60
            assert made.override_until == DAY + 1800
        else:
            assert made.override is None
    assert len(on) in range(28, 32), "on for its half hour, and not left running"


def test_override_off_beats_the_sun_and_a_cleared_one_ends_at_once() -> None:
    settings = replace(HOME, appliances=(PUMP,), battery=None)
    house = House(settings, lambda now: 4000.0)
    house.dispatcher.override("pump", False, NOON, 3 * 3600)
    steps = list(house.live(NOON, 1))
    assert not any(decision.appliances["pump"].on for _, _, decision in steps)
    now = steps[-1][0]
    house.dispatcher.clear_override("pump")
    assert any(d.appliances["pump"].on for _, _, d in house.live(now, 0.2))


def test_what_the_owner_switches_by_hand_is_left_alone_for_an_hour() -> None:
    settings = replace(HOME, appliances=(PUMP,), battery=None)
    house = House(settings, lambda now: 0.0)
    list(house.live(DAY, 0.5))
    house.on["pump"] = True  # the owner
    on = 0
    for _, snapshot, decision in house.live(DAY + 1800, 2):
        on += snapshot.appliances["pump"].on
        if decision.appliances["pump"].reason.key == "by_hand_on":
            assert "automatic again in" in decision.appliances["pump"].reason.text
    assert 58 <= on <= 62


def test_automatic_off_is_never_touched() -> None:
    settings = replace(HOME, appliances=(PUMP,), battery=None)
    house = House(settings, lambda now: 5000.0)
    house.dispatcher.set_automatic("pump", False)
    for _, _, decision in house.live(NOON, 1):
        assert not decision.appliances["pump"].send
        assert decision.appliances["pump"].reason.key == "manual"


def test_short_cloud_passes_and_long_cloud_does_not() -> None:
    settings = replace(HOME, appliances=(PUMP,), battery=None)
    for cloud_min, stays in ((2, True), (15, False)):

        def pv(now: float, cloud_min: int = cloud_min) -> float:
            return 200.0 if 0 <= now - (NOON + 3600) < cloud_min * 60 else 2500.0

        house = House(settings, pv, base_w=lambda now: 300)
        after = [
            s.appliances["pump"].on
            for now, s, _ in house.live(NOON, 1.5)
            if NOON + 3600 <= now < NOON + 3600 + 16 * 60
        ]
        assert all(after) is stays


def test_fast_off_ends_a_large_load_at_once() -> None:
    settings = replace(HOME, appliances=(replace(CAR, max_current_a=6),), battery=None)
    house = House(settings, lambda now: 200.0 if now >= NOON + 1860 else 2500.0)
    for now, snapshot, decision in house.live(NOON, 0.7):
        if now > NOON + 1920:
            assert not snapshot.appliances["car"].on or decision.appliances["car"].send
    assert decision.appliances["car"].reason.key in ("min_off", "waits_surplus")


def test_charger_follows_the_sun() -> None:
    settings = replace(HOME, appliances=(CAR,), battery=None)
    house = House(settings, lambda now: 2200 + (now - NOON) / 3, base_w=lambda now: 300)
    currents = [
        s.appliances["car"].current_a for _, s, _ in house.live(NOON, 1.5) if s.appliances["car"].on
    ]
    assert currents == sorted(currents)
    assert currents[0] <= 9
    assert currents[-1] >= 13
    assert abs(house.grid_w) < 300


def test_battery_first_or_appliances_first() -> None:
    for priority, used in ((9, False), (1, True)):
        battery = replace(BATTERY, priority=5)
        settings = replace(HOME, appliances=(replace(PUMP, priority=priority),), battery=battery)
        house = House(settings, lambda now: 2500.0, stored_wh=3000, base_w=lambda now: 300)
        decisions = [d.appliances["pump"] for _, _, d in house.live(NOON, 1)]
        assert any(made.on for made in decisions) is used
        if not used:
            assert decisions[-1].reason.key == "battery_first"


def test_commitments_are_not_spent_on_appliances() -> None:
    settings = replace(HOME, appliances=(PUMP,), battery=None)
    house = House(settings, lambda now: 2500.0, base_w=lambda now: 300, committed=lambda now: 2000)
    assert not any(d.appliances["pump"].on for _, _, d in house.live(NOON, 1))


def test_response_event_pauses_what_may_pause() -> None:
    settings = replace(HOME, appliances=(PUMP,), battery=None)
    event = Response(start=NOON + 1800, end=NOON + 3000)
    house = House(settings, lambda now: 4000.0, response=event)
    keys = []
    for now, _, decision in house.live(NOON, 1.5):
        if event.start <= now < event.end:
            keys.append(decision.appliances["pump"].reason.key)
    assert set(keys) <= {"response", "min_on"}
    assert keys[-1] == "response"
    assert house.on["pump"]


def test_lost_sensors_end_surplus_and_no_deadline() -> None:
    settings = replace(HOME, appliances=(PUMP, replace(BOILER, deadline_min=14 * 60)), battery=None)
    house = House(settings, lambda now: 1700.0, grid_known=lambda now: now < NOON + 1800)
    keys, heated = [], 0
    for now, snapshot, decision in house.live(NOON, 2):
        heated += snapshot.appliances["boiler"].on
        keys.append(decision.appliances["pump"].reason.key)
        if now > NOON + 1800 + 300 + 700:
            assert not decision.appliances["pump"].on
    assert {"surplus_on", "sensors_gap", "sensors_lost"} <= set(keys)
    assert heated >= 58, "its deadline comes all the same"


def test_unavailable_appliance_is_left_alone() -> None:
    dispatcher = Dispatcher(replace(HOME, appliances=(PUMP,)))
    decision = dispatcher.step(Snapshot(now=NOON, grid_w=-3000))
    assert decision.appliances["pump"].reason.key == "unavailable"
    assert not decision.appliances["pump"].send


def test_deaf_appliance_is_asked_a_few_times() -> None:
    settings = replace(HOME, appliances=(PUMP,), battery=None)
    house = House(settings, lambda now: 3000.0)
    sent = 0
    for _, _, decision in house.live(NOON, 0.75):
        sent += decision.appliances["pump"].send
        house.on["pump"] = False
        last = decision.appliances["pump"].reason
        decision.appliances.clear()  # type: ignore[attr-defined]
    assert 3 <= sent <= 7
    assert last.key == "no_response"


def test_restart_goes_on_and_safe_state_turns_off_only_ours() -> None:
    house = House(replace(HOME, appliances=(PUMP, BOILER)), lambda now: 3500.0, stored_wh=9900)
    *_, (now, snapshot, _) = house.live(NOON, 0.5)
    assert snapshot.appliances["pump"].on
    again = Dispatcher(house.settings, house.dispatcher.as_dict())
    decision = again.step(house.snapshot(now + 60))
    assert decision.appliances["pump"].reason.key != "by_hand_on"
    assert "pump" in again.safe_state().turn_off
    stranger = Dispatcher(house.settings)
    stranger.step(house.snapshot(now + 60))
    assert stranger.safe_state().turn_off == ()


def test_window_over_midnight_and_empty_window() -> None:
    night = Span(22 * 60, 6 * 60)
    assert night.holds(datetime(2026, 1, 1, 23, tzinfo=UTC))
    assert night.holds(datetime(2026, 1, 1, 5, 59, tzinfo=UTC))
    assert not night.holds(datetime(2026, 1, 1, 6, tzinfo=UTC))
    assert Span(0, 0).holds(datetime(2026, 1, 1, 6, tzinfo=UTC))


def flat_plan(now: float, mode: Mode, battery: Battery = BATTERY, **slot: float) -> object:
    plan = make_plan(
        now,
        [Slot(start=now + 900 * i, buy=0.3, sell=0.1, **slot) for i in range(96)],
        battery=battery,
        stored_wh=5000,
    )
    return replace(plan, slots=tuple(replace(s, mode=mode, power_w=2000) for s in plan.slots))


def test_delivery_never_goes_below_the_reserve() -> None:
    settings = replace(HOME, appliances=())
    house = House(settings, lambda now: 0.0, stored_wh=3000, committed=lambda now: 1500)
    modes = []
    for _, _, decision in house.live(DAY, 3):
        assert decision.battery is not None
        modes.append(decision.battery.mode)
        assert house.stored_wh >= BATTERY.reserve_wh - 60
    assert modes[0] is Mode.DISCHARGE
    assert modes[-1] is Mode.HOLD
    assert decision.battery.reason.key == "at_reserve"


def test_a_plan_alone_sells_nothing() -> None:
    house = House(replace(HOME, appliances=()), lambda now: 0.0)
    house.plan = flat_plan(DAY, Mode.DISCHARGE)  # type: ignore[assignment]
    for _, _, decision in house.live(DAY, 1):
        assert decision.battery is not None
        assert decision.battery.mode is Mode.AUTO
        assert decision.battery.reason.key == "sale_missing"


def test_inverter_that_does_not_follow_is_left_to_itself() -> None:
    house = House(replace(HOME, appliances=()), lambda now: 0.0)
    house.plan = flat_plan(DAY, Mode.CHARGE)  # type: ignore[assignment]
    faults = []
    for now, _, decision in house.live(DAY, 0.5):
        assert decision.battery is not None
        house.mode = Mode.AUTO  # whatever it is told
        faults.append((now, decision.battery.fault))
    first = next(now for now, fault in faults if fault)
    assert first - DAY <= 300
    assert decision.battery.mode is Mode.AUTO
    assert decision.battery.reason.key == "battery_fault"


def test_battery_commands_are_few_and_expire() -> None:
    house = House(replace(HOME, appliances=()), lambda now: 0.0)
    house.plan = flat_plan(DAY, Mode.HOLD)  # type: ignore[assignment]
    sent = 0
    for now, _, decision in house.live(DAY, 12):
        assert decision.battery is not None
        sent += decision.battery.send
        house.plan = replace(house.plan, made_at=now)  # type: ignore[type-var]
        assert decision.battery.until > now
        assert decision.battery.until <= now + 7200
    assert sent <= 8


def test_old_plan_and_no_plan_mean_automatic() -> None:
    dispatcher = Dispatcher(replace(HOME, appliances=()))
    plan = flat_plan(DAY, Mode.HOLD)
    s = Snapshot(now=DAY, grid_w=100, battery_w=0, stored_wh=5000)
    assert dispatcher.step(s).battery.reason.key == "no_plan"  # type: ignore[union-attr]
    late = replace(s, now=DAY + 3 * 3600)
    assert dispatcher.step(late, plan).battery.reason.key == "plan_old"  # type: ignore[union-attr,arg-type]
    lost = replace(s, now=DAY + 4 * 3600, stored_wh=None)
    assert dispatcher.step(lost, plan).battery.reason.key == "battery_unknown"  # type: ignore[union-attr,arg-type]


@given(
    pv=st.lists(st.floats(0, 8000), min_size=20, max_size=60),
    seed=st.integers(0, 1000),
    every=st.sampled_from([10, 30, 60]),
)
@hypothesis_settings(max_examples=40, deadline=None)
def test_minimum_times_always_hold(pv: list[float], seed: int, every: int) -> None:
    """Whatever the sun does: no appliance without fast-off changes within its minimum times."""
    slow = (replace(BOILER, daily_min_s=7200.0), PUMP)
    house = House(
        replace(HOME, appliances=slow), lambda now: pv[int((now - NOON) // 120) % len(pv)]
    )
    changed: dict[str, float] = {}
    was = {a.id: False for a in slow}
    for now, snapshot, decision in house.live(NOON, 3, every):
        for a in slow:
            on = snapshot.appliances[a.id].on
            if on != was[a.id]:
                minimum = a.min_off_s if on else a.min_on_s
                assert now - changed.get(a.id, -1e9) >= minimum - every
                changed[a.id] = now
            was[a.id] = on
            assert decision.appliances[a.id].reason.text
    _ = seed


def test_every_reason_can_be_said() -> None:
    for key, text in REASONS.items():
        import re

        values = dict.fromkeys(re.findall(r"\{(\w+)\}", text), 1)
        assert "{" not in Reason(key, values).text


def test_a_forced_discharge_ends_before_the_reserve_whoever_dies() -> None:
    battery = Battery(capacity_wh=10_000, reserve_wh=2000, drives=True)
    settings = Settings(battery=battery)

    def decide(stored: float, grid_w: float = 0.0) -> BatteryDecision:
        sold = {"committed_w": 4000.0, "committed_until": DAY + 3600}
        made = Dispatcher(settings).step(
            Snapshot(now=DAY, grid_w=grid_w, battery_w=0.0, stored_wh=stored, **sold)
        )
        assert made.battery is not None
        return made.battery

    ample = decide(9000)
    assert (ample.mode, ample.until) == (Mode.DISCHARGE, DAY + 3600)
    for stored in (2100, 2500, 4000):
        made = decide(stored)
        taken = made.power_w * (made.until - DAY) / 3600 / battery.discharge_efficiency
        assert made.mode is Mode.DISCHARGE
        assert stored - taken >= battery.reserve_wh - 1
    # Too little to begin with, also while the sun leaves something.
    for grid_w in (300.0, -300.0):
        made = decide(2010, grid_w)
        assert (made.mode, made.reason.key) == (Mode.HOLD, "at_reserve")


def test_a_level_that_was_wrong_ends_the_command_earlier() -> None:
    """Whoever dies now leaves an inverter that stops above the reserve as it is known now."""
    battery = Battery(capacity_wh=10_000, reserve_wh=2000, drives=True)
    dispatcher = Dispatcher(Settings(battery=battery))
    sold = {"committed_w": 4000.0, "committed_until": DAY + 3600}

    def decide(at: float, stored: float) -> BatteryDecision:
        made = dispatcher.step(
            Snapshot(now=DAY + at, grid_w=-4000.0, battery_w=4000.0, stored_wh=stored, **sold)
        )
        assert made.battery is not None
        return made.battery

    assert decide(0, 9000).until == DAY + 3600
    assert not decide(60, 8930).send  # as expected, so not told again
    lower = decide(120, 3000)
    assert lower.send
    taken = lower.power_w * (lower.until - DAY - 120) / 3600 / battery.discharge_efficiency
    assert 3000 - taken >= battery.reserve_wh - 1
    assert not decide(180, 2960).send  # a coarse sensor's step


def test_a_command_that_outlived_its_process_is_told_again() -> None:
    settings = Settings(battery=Battery(capacity_wh=10_000, reserve_wh=2000, drives=True))
    sold = {"committed_w": 4000.0, "committed_until": DAY + 3600}
    first = Dispatcher(settings)
    first.step(Snapshot(now=DAY, grid_w=0.0, stored_wh=9000, **sold))
    stored = first.as_dict()
    again = Dispatcher(settings, stored).step(
        Snapshot(now=DAY + 60, grid_w=0.0, stored_wh=9000, **sold)
    )
    assert again.battery is not None
    assert (again.battery.mode, again.battery.send) == (Mode.DISCHARGE, True)
    dispatcher = Dispatcher(settings, stored)
    over = dispatcher.step(Snapshot(now=DAY + 60, grid_w=0.0, stored_wh=9000))
    assert over.battery is not None
    assert (over.battery.mode, over.battery.send) == (Mode.AUTO, True)
    dispatcher.battery_untold()  # nobody heard it
    retried = dispatcher.step(Snapshot(now=DAY + 120, grid_w=0.0, stored_wh=9000))
    assert retried.battery is not None
    assert retried.battery.send


def test_a_window_and_a_daily_maximum_hold_in_the_best_sun() -> None:
    pump = replace(PUMP, window=Span(10 * 60, 14 * 60), daily_max_s=3600.0)
    house = House(replace(HOME, appliances=(pump,), battery=None), lambda now: 5000.0)
    ran, keys = 0, []
    for now, snapshot, decision in house.live(DAY + 8 * 3600, 8):
        made, on = decision.appliances["pump"], snapshot.appliances["pump"].on
        ran += on
        keys.append(made.reason.key)
        assert not on or DAY + 10 * 3600 <= now <= DAY + 14 * 3600
    assert 59 <= ran <= 61
    assert (keys[0], keys[3 * 60 + 30], keys[-1]) == (
        "outside_window",
        "daily_max",
        "outside_window",
    )


def test_what_a_day_needs_begins_in_time_for_its_window() -> None:
    """The window's end is its deadline where none is named; hours outside of it don't count."""
    boiler = replace(BOILER, window=Span(20 * 60, 22 * 60), deadline_min=None)
    house = House(replace(HOME, appliances=(boiler,), battery=None), lambda now: 0.0)
    on = [
        now
        for now, snapshot, _ in house.live(DAY + 12 * 3600, 10)
        if snapshot.appliances["boiler"].on
    ]
    assert DAY + 20.9 * 3600 <= on[0] <= DAY + 21 * 3600
    assert 59 <= len(on) <= 61


def test_a_suspended_home_runs_nothing_for_a_deadline_and_says_so() -> None:
    boiler = replace(BOILER, deadline_min=13 * 60)
    dispatcher = Dispatcher(replace(HOME, appliances=(boiler,), battery=None))
    readings = {"boiler": ApplianceReading(on=False)}
    s = Snapshot(now=NOON + 1800, grid_w=500, appliances=readings, permit=False)
    made = dispatcher.step(s).appliances["boiler"]
    assert (made.on, made.reason.key) == (False, "permit")
    made = dispatcher.step(replace(s, now=s.now + 60, permit=True)).appliances["boiler"]
    assert (made.on, made.reason.key) == (True, "deadline")


def test_a_mind_that_changed_before_the_appliance_did_is_told_when_it_changes_again() -> None:
    dispatcher = Dispatcher(replace(HOME, appliances=(PUMP,), battery=None))
    readings = {"pump": ApplianceReading(on=False)}

    def sent(minute: int, grid_w: float) -> tuple[bool, bool]:
        s = Snapshot(now=NOON + 60 * minute, grid_w=grid_w, appliances=readings)
        made = dispatcher.step(s).appliances["pump"]
        return made.on, made.send

    first = next(minute for minute in range(20) if sent(minute, -3000) == (True, True))
    assert sent(first + 1, 2000) == (False, False), "it is off already"
    assert sent(first + 2, -6000) == (True, True), "and not a minute later"


def test_a_mode_that_the_battery_lacks_is_said_and_left_out() -> None:
    battery = replace(BATTERY, modes=frozenset({Mode.AUTO, Mode.DISCHARGE}))
    house = House(replace(HOME, appliances=(), battery=battery), lambda now: 0.0)
    house.plan = flat_plan(DAY, Mode.CHARGE)  # type: ignore[assignment]
    for _, _, decision in house.live(DAY, 0.2):
        assert decision.battery is not None
        assert (decision.battery.mode, decision.battery.send) == (Mode.AUTO, False)
        assert decision.battery.reason.text.endswith("charge")


def test_a_battery_is_told_so_often_a_day_and_then_left_in_automatic() -> None:
    """It may change its mind every quarter of an hour, its memory wears out."""
    battery = replace(BATTERY, max_writes=5, min_mode_s=0.0)
    house = House(replace(HOME, appliances=(), battery=battery), lambda now: 0.0)
    charge, hold = flat_plan(DAY, Mode.CHARGE), flat_plan(DAY, Mode.HOLD)
    sent, keys = Counter[int](), set()
    for now, _, decision in house.live(DAY, 36):
        assert decision.battery is not None
        sent[int((now - DAY) // 86400)] += decision.battery.send
        keys.add(decision.battery.reason.key)
        if decision.battery.reason.key == "write_limit":
            assert decision.battery.mode is Mode.AUTO
        house.stored_wh = 5000
        plan = charge if (now // 900) % 2 else hold
        begin = DAY if now < DAY + 86400 else DAY + 86400
        moved = tuple(replace(slot, start=slot.start - DAY + begin) for slot in plan.slots)  # type: ignore[attr-defined]
        house.plan = replace(plan, made_at=now, slots=moved)  # type: ignore[type-var]
    assert "write_limit" in keys
    assert sent[0] == battery.max_writes + 1, "the last one ends the last command"
    assert 0 < sent[1] <= battery.max_writes + 1, "another day"


def test_what_the_sun_delivers_the_battery_keeps() -> None:
    dispatcher = Dispatcher(replace(HOME, appliances=()))
    sold = {"committed_w": 1000.0, "committed_until": NOON + 900}
    made = dispatcher.step(
        Snapshot(now=NOON, grid_w=-2500.0, battery_w=0.0, stored_wh=5000, **sold)
    )
    assert made.battery is not None
    assert (made.battery.mode, made.battery.reason.key) == (Mode.HOLD, "delivers")


def test_a_full_battery_is_not_charged() -> None:
    dispatcher = Dispatcher(replace(HOME, appliances=()))
    s = Snapshot(now=NOON, grid_w=-2500.0, battery_w=0.0, stored_wh=9990)
    made = dispatcher.step(s, flat_plan(NOON, Mode.CHARGE))  # type: ignore[arg-type]
    assert made.battery is not None
    assert (made.battery.mode, made.battery.reason.key) == (Mode.AUTO, "battery_full")


def test_what_was_told_to_go_on_and_is_not_seen_to_yet_is_turned_off() -> None:
    """Whoever stops seconds after a command leaves nothing that then begins to run."""
    house = House(replace(HOME, appliances=(PUMP,), battery=None), lambda now: 3000.0)
    told = next(now for now, _, d in house.live(NOON, 1) if d.appliances["pump"].send)
    assert not house.snapshot(told).appliances["pump"].on
    assert house.dispatcher.safe_state().turn_off == ("pump",)
    by_hand = Dispatcher(house.settings, house.dispatcher.as_dict())
    for minute in range(8, 10):  # its answer never came; then its owner switches it
        house.on["pump"] = minute == 9
        by_hand.step(house.snapshot(told + 60 * minute))
    assert by_hand.safe_state().turn_off == ()


def test_a_clock_that_is_set_back_binds_nobody_to_what_is_yet_to_come() -> None:
    """A year ahead at first: what was switched then is decided again, and a day's need met."""
    year = 365 * 86_400.0
    house = House(Settings(appliances=(BOILER,)), lambda now: 0.0)
    dispatcher = house.dispatcher
    boiler = ApplianceReading(on=False, power_w=0.0)

    def at(now: float, *, on: bool, grid_w: float) -> Decision:
        reading = replace(boiler, on=on, power_w=2000.0 if on else 0.0)
        return dispatcher.step(Snapshot(now=now, grid_w=grid_w, appliances={"boiler": reading}))

    on = False
    for minute in range(15):
        made = at(NOON + year + 60 * minute, on=on, grid_w=-1000.0 if on else -3000.0)
        on = made.appliances["boiler"].on
    assert on
    back = NOON + 900
    for minute in range(30):
        decision = at(back + 60 * minute, on=True, grid_w=4000.0)
    assert not decision.appliances["boiler"].on, decision.appliances["boiler"].reason
    stored = dispatcher.as_dict()["appliances"]["boiler"]
    assert max(v for v in stored.values() if isinstance(v, float)) < NOON + 3 * 86_400
    at(NOON + 2 * 86_400, on=False, grid_w=300.0)
    assert dispatcher.as_dict()["appliances"]["boiler"]["run_s"] == 0
