"""The simulated homes: exact books, the battery's rules, and going on from a file."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.homes import (
    DATA_START,
    JOULES_PER_WH,
    ORIGIN,
    PROFILE_MEMORY_S,
    QUARTER_S,
    EnergyCurve,
    HomesError,
    Mode,
    Neighbourhood,
    Replay,
    Series,
    check_interval,
    home_specs,
)

SERIES = Series.read()


def neighbourhood(count: int = 3, interval_s: int = 60, time: int = ORIGIN) -> Neighbourhood:
    return Neighbourhood.create(count, interval_s, time, SERIES)


@given(st.lists(st.integers(0, 20_000_000), min_size=1, max_size=12), st.integers(0, 20_000))
def test_curve_rises_and_keeps_each_quarter_hour(quarters: list[int], second: int) -> None:
    curve = EnergyCurve(quarters)
    for index, quarter in enumerate(quarters * 2):
        begin = index * QUARTER_S
        assert curve.joules(begin + QUARTER_S) - curve.joules(begin) == quarter
    assert curve.joules(second + 1) >= curve.joules(second)


def test_load_is_the_measured_one_to_the_wh() -> None:
    hood = neighbourhood(1, time=DATA_START)
    home = hood.homes[0]
    measured = SERIES.load_wh[home.spec.load_column]
    for quarter in range(96):
        before = home.flows.load_j
        hood.advance(DATA_START + (quarter + 1) * QUARTER_S)
        assert home.flows.load_j - before == measured[quarter] * JOULES_PER_WH


def test_data_wraps_around() -> None:
    curve = EnergyCurve([w * JOULES_PER_WH for w in SERIES.load_wh["CH02"]])
    hour = curve.joules(3600)
    assert curve.joules(curve.period_s + 3600) - curve.joules(curve.period_s) == hour


def test_first_start_is_sunny_and_somebody_has_something_to_sell() -> None:
    hood = neighbourhood(12)
    hood.advance(ORIGIN + 300)
    assert hood.homes[0].power.pv_w > 3000
    assert hood.homes[0].available_wh > 4000
    assert sum(home.power.pv_w for home in hood.homes) > 20_000


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(Mode)), st.integers(1, 5000), st.integers(1, 40), st.booleans()
        ),
        max_size=8,
    ),
    st.integers(0, 13 * 24),
)
def test_no_joule_is_lost_whatever_is_commanded(
    commands: list[tuple[Mode, int, int, bool]], hour: int
) -> None:
    hood = neighbourhood(1, time=DATA_START + hour * 3600)
    home = hood.homes[0]
    stored_before = home.stored_j
    for mode, power_w, minutes, later in commands:
        start = home.time + 60 if later else None
        power = 0 if mode in (Mode.AUTO, Mode.HOLD) else power_w
        home.command(mode, power, home.time + 61 + minutes * 60, start)
        hood.advance(home.time + 600)
        flows = home.flows
        assert (
            flows.import_j + flows.pv_j + flows.discharge_j
            == flows.export_j + flows.load_j + flows.charge_j
        )
        assert home.capacity_j // 10 <= home.stored_j <= home.capacity_j
        gained = home.stored_j - stored_before
        assert gained <= flows.charge_j * 0.96 - flows.discharge_j / 0.96 + 1
        assert abs(home.power.battery_w) <= home.spec.battery_power_w


def test_intervals_add_up_to_the_registers() -> None:
    hood = neighbourhood(3)
    first = {home.spec.meter_id: home.registers() for home in hood.homes}
    assert hood.advance(ORIGIN + 3600 + 59) == 60
    for home in hood.homes:
        intervals = hood.profiles[home.spec.meter_id]
        begin = first[home.spec.meter_id]
        assert [i.start for i in intervals] == list(range(ORIGIN, ORIGIN + 3600, 60))
        last = intervals[-1]
        assert begin.import_wh + sum(i.import_wh for i in intervals) == last.import_register_wh
        assert begin.export_wh + sum(i.export_wh for i in intervals) == last.export_register_wh
        assert all(i.import_wh >= 0 and i.export_wh >= 0 for i in intervals)


def test_commands_start_and_end_by_themselves() -> None:
    hood = neighbourhood(1)
    home = hood.homes[0]
    home.command(Mode.DISCHARGE, 2000, ORIGIN + 120, ORIGIN + 60)
    hood.advance(ORIGIN + 60)
    assert home.power.battery_w < 0  # the sun charges
    hood.advance(ORIGIN + 120)
    assert home.power.battery_w == 2000
    hood.advance(ORIGIN + 180)
    assert home.power.battery_w < 0
    home.command(Mode.HOLD, 0, home.time + 600)
    hood.advance(home.time + 60)
    assert home.power.battery_w == 0
    home.command(Mode.AUTO, 0, home.time + 60)
    hood.advance(home.time + 60)
    assert home.power.battery_w < 0


def test_battery_stops_at_its_reserve() -> None:
    hood = neighbourhood(1)
    home = hood.homes[0]
    home.command(Mode.DISCHARGE, 5000, ORIGIN + 7200)
    hood.advance(ORIGIN + 7200)
    assert home.available_wh == 0
    assert home.soc_percent in (9, 10)
    assert home.power.battery_w == 0


@pytest.mark.parametrize(
    ("mode", "power_w", "seconds", "message"),
    [
        (Mode.DISCHARGE, 5001, 60, "1 to 5000 W"),
        (Mode.CHARGE, 0, 60, "1 to 5000 W"),
        (Mode.HOLD, 5, 60, "takes none"),
        (Mode.HOLD, 0, 0, "ends by itself"),
        (Mode.HOLD, 0, 86_401, "within 86400 s"),
    ],
)
def test_bad_commands_are_refused(mode: Mode, power_w: int, seconds: int, message: str) -> None:
    home = neighbourhood(1).homes[0]
    with pytest.raises(HomesError, match=message):
        home.command(mode, power_w, home.time + seconds)
    assert not home.commands


def test_a_second_run_goes_on_as_if_there_was_no_pause() -> None:
    whole, first = neighbourhood(), neighbourhood()
    for hood in (whole, first):
        hood.homes[0].command(Mode.DISCHARGE, 1500, ORIGIN + 900, ORIGIN + 300)
    first.advance(ORIGIN + 420)
    second = Neighbourhood.from_json(first.to_json(), SERIES)
    whole.advance(ORIGIN + 1800)
    second.advance(ORIGIN + 1800)
    assert second.to_json() == whole.to_json()


def test_a_long_pause_keeps_a_bounded_profile_and_right_registers() -> None:
    hood = neighbourhood(1, interval_s=900)
    begin = hood.homes[0].registers()
    hood.advance(ORIGIN + PROFILE_MEMORY_S + 86_400)
    profile = hood.profiles["METER-01"]
    assert len(profile) == PROFILE_MEMORY_S // 900
    assert profile[0].import_register_wh > begin.import_wh
    assert hood.homes[0].registers().import_wh == profile[-1].import_register_wh


def test_profiles_stay_until_they_were_stored() -> None:
    hood = neighbourhood(2)
    hood.advance(ORIGIN + 120)
    read = hood.read_profiles(["METER-01"])
    hood.advance(ORIGIN + 180)
    hood.forget_profiles(read)
    assert [i.start for i in hood.profiles["METER-01"]] == [ORIGIN + 120]
    assert len(hood.profiles["METER-02"]) == 3


@pytest.mark.parametrize("text", ["", "{}", '{"format":1,"interval_s":60,"homes":[{}]}', "[]"])
def test_a_broken_state_is_refused(text: str) -> None:
    with pytest.raises(HomesError):
        Neighbourhood.from_json(text, SERIES)


def test_a_newer_state_is_refused_in_a_sentence() -> None:
    text = neighbourhood(1).to_json().replace('"format":1', '"format":2')
    with pytest.raises(HomesError, match="this version reads 1"):
        Neighbourhood.from_json(text, SERIES)


def test_specs_are_distinct_and_have_data() -> None:
    specs = home_specs(40)
    assert len({spec.load_column for spec in specs}) == 40
    assert {spec.load_column for spec in specs} <= set(SERIES.load_wh)
    with pytest.raises(HomesError, match="1 to 40"):
        home_specs(41)


@pytest.mark.parametrize("interval_s", [0, 5, 7, 12, 61, 72, 1800])
def test_bad_intervals(interval_s: int) -> None:
    with pytest.raises(HomesError):
        check_interval(interval_s)


def test_replay_clock() -> None:
    replay = Replay(origin=ORIGIN, anchor=1_000, rate=2)
    assert replay.channel_time(1_000.9) == ORIGIN + 1
    assert replay.channel_time(999.9) == ORIGIN - 1
    assert replay.real_time(ORIGIN + 10) == 1_005
