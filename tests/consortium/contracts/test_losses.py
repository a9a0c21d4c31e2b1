"""A transformer's balance on measured homes with the noise of real meters.

48 measured homes over two weeks. Meters of class 1 (each wrong by up to 1 %, always the same way),
a transformer's of class 0.5, clocks off by up to 30 s, and the transformer's own losses. Of 100
registers two are not read on a day; a day is then balanced over the days that are.
"""

import csv
import random
import statistics
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from consortium.contracts.losses import (
    DayBalance,
    Finding,
    LossModel,
    Suspect,
    find,
    given_model,
    learn,
    suspects,
)
from tests.consortium.contracts.cases import cases

HOUSEHOLDS = (
    Path(__file__).resolve().parents[3] / "demo" / "data" / "ch_households_import_15min_wh.csv"
)
DAYS, TRAINING = 14, 10
NO_LOAD_WH = 24 * 150


@dataclass(frozen=True)
class Measured:
    """Energy by day and home, and how it would move with a clock that is off by a second."""

    homes: int
    energy: list[list[int]]
    drift: list[list[float]]
    squares: list[int]


@cache
def measured() -> Measured:
    with HOUSEHOLDS.open() as file:
        rows = [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    homes = len(rows[0])
    energy, drift, squares = [], [], []
    for day in range(DAYS):
        quarters = rows[day * 96 : (day + 1) * 96]
        following = rows[min(len(rows) - 1, (day + 1) * 96)]
        energy.append([sum(row[home] for row in quarters) for home in range(homes)])
        drift.append([(following[home] - quarters[0][home]) / 900 for home in range(homes)])
        squares.append(sum(sum(row) ** 2 for row in quarters))
    return Measured(homes, energy, drift, squares)


@dataclass
class Feeder:
    """A feeder of noisy meters, with theft from day `TRAINING` on."""

    seed: int
    tap_ppm: int = 0
    """Taken before any meter, of what is used."""
    tampered: int | None = None
    """A home whose meter counts nothing any more."""
    away: int | None = None
    """A home that really uses less."""
    days: list[DayBalance] = field(default_factory=list)
    registers: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        homes = measured()
        chance = random.Random(self.seed)
        gain = [chance.uniform(-0.01, 0.01) for _ in range(homes.homes)]
        transformer_gain = chance.uniform(-0.005, 0.005)
        clock = [chance.uniform(-30, 30) for _ in range(homes.homes)]
        carried: tuple[int, int, int] | None = None
        for day in range(DAYS):
            used = list(homes.energy[day])
            stealing = day >= TRAINING
            if stealing and self.away is not None:
                used[self.away] = used[self.away] * 3 // 10
            load = sum(used) * (1 + (self.tap_ppm / 1e6 if stealing else 0))
            copper = 0.01 * load + 0.000_02 * homes.squares[day] / load * 96
            delivered = int((load + NO_LOAD_WH + copper) * (1 + transformer_gain))
            seen = [
                0
                if stealing and home == self.tampered
                else int((used[home] + clock[home] * homes.drift[day][home]) * (1 + gain[home]))
                for home in range(homes.homes)
            ]
            self.registers.append(seen)
            balance = (delivered, sum(seen), homes.squares[day])
            if carried is not None:
                balance = (
                    balance[0] + carried[0],
                    balance[1] + carried[1],
                    balance[2] + carried[2],
                )
            missing = sum(chance.random() < 0.02 / 96 for _ in range(homes.homes))
            if missing and day not in (TRAINING - 1, DAYS - 1):
                # A register wasn't read at the end of this day: it is balanced with the next.
                carried = balance
                self.days.append(DayBalance(f"{day:02d}", *balance, missing=("M",)))
                continue
            carried = None
            self.days.append(DayBalance(f"{day:02d}", *balance))

    def found(self, until: int) -> Finding | None:
        model = learn(self.days[:TRAINING], NO_LOAD_WH)
        return model and find(model, self.days[TRAINING:until])


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


def test_a_thousand_clean_feeders_raise_no_alert() -> None:
    for seed in range(1000):
        feeder = Feeder(seed)
        for until in range(TRAINING + 1, DAYS + 1):
            assert feeder.found(until) is None, (seed, until)


def test_two_percent_are_found_within_three_days_and_sized_within_a_tenth() -> None:
    sizes = []
    for seed in range(200):
        feeder = Feeder(seed, tap_ppm=20_000)
        finding = feeder.found(TRAINING + 3)
        assert finding is not None, seed
        assert int(finding.since) in (TRAINING, TRAINING + 1), seed
        sizes.append(finding.loss_ppm / (20_000 / 1.02))
    assert min(sizes) >= 0.9
    assert max(sizes) <= 1.1
    assert statistics.mean(sizes) == pytest.approx(1, abs=0.01)


def test_what_is_too_small_to_be_told_from_noise_raises_no_alert() -> None:
    assert not any(Feeder(seed, tap_ppm=2000).found(DAYS) for seed in range(100))


@pytest.mark.parametrize("home", [8, 16, 32])
def test_a_meter_that_was_tampered_with_is_the_first_suspect(home: int) -> None:
    feeder = Feeder(1, tampered=home)
    finding = feeder.found(TRAINING + 3)
    assert finding is not None
    named = suspects(
        sums(feeder, range(TRAINING - 7, TRAINING)),
        sums(feeder, range(TRAINING, TRAINING + 3)),
        finding.loss_ppm,
    )
    assert named[0].meter == f"{home:02d}"
    assert named[0].change_ppm == -1_000_000


def sums(feeder: Feeder, days: range) -> dict[str, int]:
    return {
        f"{home:02d}": sum(feeder.registers[day][home] for day in days)
        for home in range(measured().homes)
    }


def test_a_home_that_uses_less_is_no_thief() -> None:
    for home in range(0, 48, 4):
        feeder = Feeder(home, away=home)
        assert feeder.found(DAYS) is None


def test_a_tap_before_all_meters_has_no_suspect() -> None:
    assert suspects({"A": 1000, "B": 500}, {"A": 1000, "B": 500}, 20_000) == []
    assert suspects({"A": 1000, "B": 500}, {"A": 1000, "B": 100}, 250_000) == [
        Suspect("B", -795_082, 1_058_663)
    ]


def test_too_few_days_teach_nothing() -> None:
    day = DayBalance("d", 1_100, 1_000, 0)
    assert learn([day] * 6) is None
    assert learn([day] * 6 + [DayBalance("d", 1, 1, 0, ("M",))] * 4) is None
    assert learn([day] * 7) == LossModel(0, 100_000, 0, 1, 1, 7)
