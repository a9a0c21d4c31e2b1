"""What Home Assistant's statistics get to know of the days before the first start."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

import pytest

from demo.history import ENERGY, HISTORY_S, Hour, live_through, statistics
from demo.homes import ORIGIN, Neighbourhood, Replay

ANCHOR = 1_795_001_234


@pytest.fixture(scope="module")
def lived() -> tuple[Neighbourhood, list[Hour]]:
    hood = Neighbourhood.create(2, 60, ORIGIN - HISTORY_S)
    hours = live_through(hood, Replay(ORIGIN, ANCHOR), ORIGIN)
    return hood, hours


def test_it_ends_where_the_ledger_begins(lived: tuple[Neighbourhood, list[Hour]]) -> None:
    hood, hours = lived
    assert hood.time == ORIGIN
    assert not any(hood.profiles.values())
    assert len(hours) == 47
    assert all(hour.start % 3600 == 0 for hour in hours)
    assert ANCHOR - 7200 < hours[-1].start <= ANCHOR - 3600
    hood.advance(ORIGIN + 60)
    assert [len(profile) for profile in hood.profiles.values()] == [1, 1]


def test_sums_end_where_the_recorder_begins(lived: tuple[Neighbourhood, list[Hour]]) -> None:
    hood, hours = lived
    imports = {
        each["metadata"]["statistic_id"]: each["stats"]
        for each in statistics(hours, hours[-1].registers)
    }
    for sensor in ENERGY:
        rows = imports[sensor]
        assert rows[-1]["sum"] == 0
        for before, after in pairwise(rows):
            assert after["sum"] - before["sum"] == after["state"] - before["state"] >= 0
            started = datetime.fromisoformat(after["start"])
            assert (started - datetime.fromisoformat(before["start"])).total_seconds() == 3600
    for row in imports["sensor.inverter_pv_power"]:
        assert 0 <= row["min"] <= row["mean"] <= row["max"] <= 8000
    assert 0 < hood.homes[0].soc_percent < 100


@pytest.mark.parametrize("rate", [60, 720])
def test_with_a_fast_clock_it_ends_there_too(rate: int) -> None:
    hood = Neighbourhood.create(1, 900, ORIGIN - HISTORY_S)
    live_through(hood, Replay(ORIGIN, ANCHOR, rate), ORIGIN)
    assert hood.time == ORIGIN
