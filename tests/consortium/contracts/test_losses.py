"""A transformer's balance on measured homes with the noise of real meters.

The feeders are those of `script/bench theft`, which runs a thousand of them (docs/benchmarks.md).
"""

import statistics

import pytest

from benchmarks.theft import DAYS, TRAINING, Feeder
from consortium.contracts.balance.losses import DayBalance, LossModel, given_model, learn, suspects
from tests.consortium.contracts.cases import cases


def test_a_worked_balance() -> None:
    case = cases("loss_detection")["four_meters"]
    balance = DayBalance("d", case["transformer_wh"], sum(case["meters_wh"]), 0)
    model = given_model(0, int(case["technical_loss_pct_of_load"] * 10_000), 0, 1)
    expected = case["expected"]
    assert balance.metered_wh == expected["sum_meters"]
    assert model.expected_wh(balance) == expected["expected_loss"]
    assert model.residual_wh(balance) == expected["residual"]
    share = model.residual_wh(balance) / balance.delivered_wh * 100
    assert share == pytest.approx(expected["residual_pct"] / 1, abs=0.01)


def test_the_three_parts_of_a_technical_loss() -> None:
    model = given_model(3600, 10_000, 2_000, 1)  # 2 ppm of the square
    balance = DayBalance("d", 0, 1_000_000, 50_000_000)
    assert model.expected_wh(balance) == 3600 + 10_000 + 100


def test_a_day_that_could_not_be_balanced_is_balanced_with_the_next() -> None:
    two = DayBalance("d", 2_200, 2_000, 0, seconds=2 * 86_400)
    assert given_model(50, 0, 0, 1).expected_wh(two) == 100
    days = [DayBalance("d", 1_100, 1_000, 0)] * 6
    model = learn([*days, two], no_load_wh=50)
    assert model == LossModel(50, 50_000, 0, 10**9, 1, 8)


def test_clean_feeders_raise_no_alert() -> None:
    for seed in range(60):
        for known_plate in (True, False):
            feeder = Feeder(seed, known_plate=known_plate)
            for until in range(TRAINING + 1, DAYS + 1):
                assert feeder.found(until) is None, (seed, until)


def test_two_percent_are_found_within_three_days_and_sized_within_a_tenth() -> None:
    sizes = []
    for seed in range(40):
        feeder = Feeder(seed, tap=0.02)
        finding = feeder.found(TRAINING + 3)
        assert finding is not None, seed
        assert int(finding.since) in (TRAINING, TRAINING + 1), seed
        assert feeder.suspects(finding) == [], "a tap before all meters accuses nobody"
        sizes.append(finding.loss_ppm / 20_000)
    assert min(sizes) >= 0.9
    assert max(sizes) <= 1.1
    assert statistics.mean(sizes) == pytest.approx(1, abs=0.02)


def test_what_is_too_small_to_be_told_from_noise_raises_no_alert() -> None:
    assert not any(Feeder(seed, tap=0.0025).found(DAYS) for seed in range(40))


@pytest.mark.parametrize(("home", "counts"), [(8, 0.0), (16, 0.0), (32, 0.0), (8, 0.5), (32, 0.5)])
def test_a_meter_that_was_tampered_with_is_the_only_suspect(home: int, counts: float) -> None:
    feeder = Feeder(1, tampered=home, tampered_counts=counts)
    finding = feeder.found(TRAINING + 3)
    assert finding is not None
    (named,) = feeder.suspects(finding)
    assert named.meter == f"{home:02d}"
    assert named.changed == TRAINING
    assert named.change_ppm / 1e6 == pytest.approx(counts - 1, abs=0.15)
    assert named.explains_ppm / 1e6 == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize("times", [0, 0.3, 2, 3])
def test_a_home_that_honestly_uses_more_or_less_is_no_thief(times: float) -> None:
    for home in range(0, 48, 4):
        feeder = Feeder(home, honest={home: times})
        assert not any(feeder.found(until) for until in range(TRAINING + 1, DAYS + 1))


def test_suspects_are_those_that_changed_then() -> None:
    steady = [100, 101, 99, 100, 102, 98, 100]
    daily = {"A": [*steady, 100, 101, 99], "B": [*steady, 40, 41, 39], "C": [*steady] * 2}
    (named,) = suspects(daily, 7, 180)
    assert (named.meter, named.changed) == ("B", 7)
    assert suspects(daily, 4, 360) == [], "B changed on another day"
    assert suspects(daily, 7, 60) == [], "B lacks more than was lost: it used less"
    assert suspects({"A": steady}, 0, 100) == suspects({}, 1, 100) == suspects(daily, 7, 0) == []


def test_too_few_days_teach_nothing() -> None:
    day = DayBalance("d", 1_100, 1_000, 0)
    assert learn([day] * 6) is None
    assert learn([day] * 6 + [DayBalance("d", 1, 1, 0, ("M",))] * 4) is None
    assert learn([day] * 7) == LossModel(0, 100_000, 0, 10**9, 1, 7)
