"""Cutting intervals: whatever the sensors do, intervals add up to the register."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from custom_components.gridledger.metering import Cut, Meter

KEY = "sensor.import"
WH = 1000  # a Wh in mWh


def meter(interval_s: int = 900, stored: Any = None) -> Meter:
    return Meter(interval_s, [KEY], [], stored)


def run(samples: list[tuple[float, int]], interval_s: int = 900) -> tuple[Meter, list[Cut]]:
    made, cuts = meter(interval_s), []
    for at, raw in samples:
        made.sample(KEY, at, raw)
        cuts += made.cut()
    return made, cuts


def check(made: Meter, cuts: list[Cut]) -> None:
    """What must hold for any series of cuts."""
    register = None
    for previous, cut in zip([None, *cuts], cuts, strict=False):
        assert cut.import_wh >= 0
        if previous is not None:
            assert cut.interval_start == previous.interval_start + previous.interval_s
            assert cut.import_register_wh - previous.import_register_wh == cut.import_wh
        register = cut.import_register_wh
    if register is not None:
        assert made.registers_wh[0] == register


def test_steady_power_gives_equal_intervals() -> None:
    # 1,200 W from a sensor every 60 s, whose samples never meet a boundary: 300 Wh each.
    made, cuts = run([(37 + 60 * i, 20 * WH * i) for i in range(80)])
    assert [cut.import_wh for cut in cuts[1:]] == [300] * (len(cuts) - 1)
    assert all(cut.measured for cut in cuts)
    check(made, cuts)


def test_a_day_that_starts_again_goes_on() -> None:
    samples = [(60.0 * i, 20 * WH * (i % 40)) for i in range(120)]  # a counter that resets
    made, cuts = run(samples)
    check(made, cuts)
    # Each reset loses at most what flowed between its last and first sample.
    assert made.totals_wh[0] == 20 * (39 + 39 + 39)


def test_a_small_dip_is_noise() -> None:
    made, _ = run([(0, 1000 * WH), (60, 1010 * WH), (120, 1009 * WH), (180, 1012 * WH)])
    assert made.totals_wh[0] == 12


def test_another_meter_moves_the_start_not_the_register() -> None:
    made, cuts = run([(0, 5 * WH), (60, 6 * WH), (120, 9_000_000 * WH), (180, 9_000_001 * WH)])
    assert made.totals_wh[0] == 2
    check(made, cuts)


def test_a_clock_that_is_set_back_loses_nothing() -> None:
    """It ran an hour ahead; what is drawn until it is there again is counted, as an estimate."""
    ahead = [(7200 + 10 * i, 8 * WH * i) for i in range(360)]
    right = [(7200 + 10 * i, 8 * WH * (360 + i)) for i in range(720)]
    made, cuts = run([*ahead, *right])
    check(made, cuts)
    assert made.totals_wh[0] == 8 * (360 + 720 - 1)
    assert {cut.interval_start for cut in cuts if not cut.measured} == {9900}
    assert sum(cut.import_wh for cut in cuts if cut.interval_start > 9900) > 0


def test_last_reset_says_that_the_total_began_anew() -> None:
    made = meter()
    made.sample(KEY, 0, 100 * WH, "a")
    made.sample(KEY, 60, 105 * WH, "a")
    made.sample(KEY, 120, 104 * WH, "b")
    assert made.totals_wh[0] == 5 + 104


def test_a_gap_is_spread_and_marked() -> None:
    samples = [(60.0 * i, 20 * WH * i) for i in range(16)]
    samples.append((900 + 4 * 900, 20 * WH * 75))
    made, cuts = run(samples)
    assert [cut.import_wh for cut in cuts] == [300] * 5
    assert [cut.measured for cut in cuts] == [True, False, False, False, False]
    check(made, cuts)


def test_short_intervals_that_nobody_saw_are_estimates() -> None:
    made, cuts = run([(i, i * WH) for i in range(9)] + [(i, i * WH) for i in range(23, 30)], 5)
    assert [cut.import_wh for cut in cuts] == [5] * 5
    assert [cut.measured for cut in cuts] == [True, False, False, False, False]
    check(made, cuts)


def test_unavailable_is_not_zero() -> None:
    made = meter()
    made.sample(KEY, 0, 0)
    made.sample(KEY, 850, 100 * WH)
    assert made.cut() == []  # nothing is known of the boundary, so nothing is said
    made.sample(KEY, 950, 120 * WH)
    assert [cut.import_wh for cut in made.cut()] == [110]


def test_a_silent_sensor_that_is_there_stands_still() -> None:
    made = meter()
    made.sample(KEY, 0, 100 * WH)
    made.hold(KEY, 900)
    cuts = made.cut()
    assert [cut.import_wh for cut in cuts] == [0]
    assert made.registers_wh == (0, 0)


def test_a_long_silence_is_doubted() -> None:
    made = meter(60)
    made.sample(KEY, 0, 100 * WH)
    cuts = []
    for boundary in range(60, 1260, 60):
        made.hold(KEY, boundary)
        cuts += made.cut()
    assert [cut.measured for cut in cuts] == [True] * 10 + [False] * 10


def test_power_alone_is_integrated_as_an_estimate() -> None:
    made = Meter(900, ["+sensor.p"], ["-sensor.p"])
    for i in range(31):
        made.sample("+sensor.p", 60.0 * i, 1200 if i <= 15 else 0)
        made.sample("-sensor.p", 60.0 * i, 0 if i <= 15 else 600)
    cuts = made.cut()
    # At the change of sign both directions show half of one step.
    assert [(cut.import_wh, cut.export_wh) for cut in cuts] == [(300, 0), (10, 145)]
    assert not any(cut.measured for cut in cuts)


def test_restart_goes_on_where_it_was() -> None:
    made, cuts = run([(60.0 * i, 20 * WH * i) for i in range(20)])
    again = meter(stored=made.as_dict())
    again.sample(KEY, 60.0 * 50, 20 * WH * 50)
    later = again.cut()
    check(again, cuts + later)
    assert sum(cut.import_wh for cut in cuts + later) == 900


def test_a_sensor_that_was_replaced_leaves_its_count() -> None:
    made, cuts = run([(60.0 * i, 20 * WH * i) for i in range(20)])
    other = Meter(900, ["sensor.new"], [], made.as_dict())
    other.sample("sensor.new", 60.0 * 21, 7)
    assert other.totals_wh[0] == made.totals_wh[0]
    other.sample("sensor.new", 60.0 * 40, 7 + 100 * WH)
    check(other, cuts + other.cut())


def test_goes_on_after_foreign_readings() -> None:
    made, _ = run([(60.0 * i, 20 * WH * i) for i in range(20)])
    made.skip_to(3600, 5_000, 40)
    assert made.registers_wh == (5_000, 40)
    for i in range(60, 80):
        made.sample(KEY, 60.0 * i, 20 * WH * i)
    cuts = made.cut()
    assert cuts[0].interval_start == 3600
    assert cuts[0].import_register_wh == 5_000 + cuts[0].import_wh


@st.composite
def days(draw: st.DrawFn) -> list[tuple[float, int | None]]:
    """Samples of a sensor on a bad day: uneven, missing, resetting, coarse."""
    at, raw, samples = draw(st.floats(0, 1000)), draw(st.integers(0, 10**9)), []
    resolution = draw(st.sampled_from([1, 1000, 10_000, 100_000]))
    for _ in range(draw(st.integers(2, 60))):
        at += draw(st.sampled_from([1.0, 5.0, 30.0, 61.5, 300.0, 899.9, 4000.0]))
        kind = draw(st.sampled_from(["rise", "rise", "rise", "same", "reset", "dip", "gone"]))
        if kind == "rise":
            raw += draw(st.integers(0, 20_000))
        elif kind == "reset":
            raw = draw(st.integers(0, 1000))
        elif kind == "dip":
            raw = max(0, raw - draw(st.integers(0, 50)))
        samples.append((at, None if kind == "gone" else raw // resolution * resolution))
    return samples


@settings(max_examples=300)
@given(days(), st.sampled_from([60, 300, 900]), st.data())
def test_intervals_add_up_to_the_register(
    samples: list[tuple[float, int | None]], interval_s: int, data: st.DataObject
) -> None:
    made, cuts = meter(interval_s), []
    for at, raw in samples:
        if raw is not None:
            made.sample(KEY, at, raw)
        if data.draw(st.integers(0, 9)) == 0:
            made = meter(interval_s, made.as_dict())  # a restart
        if data.draw(st.booleans()):
            if raw is not None:
                made.hold(KEY, at // interval_s * interval_s)
            cuts += made.cut()
    cuts += made.cut()
    check(made, cuts)
    if cuts:
        start = cuts[0].import_register_wh - cuts[0].import_wh
        assert sum(cut.import_wh for cut in cuts) == made.registers_wh[0] - start
    assert made.registers_wh[0] <= made.totals_wh[0]
