"""Days of 2019 through the whole ledger: the days on which clocks change, with a few homes."""

import time
from pathlib import Path

import pytest

from demo.replay import LEAD_S, RATE, Replay
from demo.replay_channel import UTILITIES, ReplayChannel
from demo.replay_data import (
    DAY_S,
    YIELD_WH_PER_KWP,
    calendar_terms,
    local_days,
    read_month,
    utc_days,
)
from demo.replay_report import page


@pytest.mark.slow
@pytest.mark.parametrize(("name", "day", "intervals"), [("2019-03", 31, 92), ("2019-10", 27, 100)])
def test_days_around_a_clock_change_from_readings_to_certificates(
    tmp_path: Path, name: str, day: int, intervals: int
) -> None:
    month = read_month(name, first=day - 1, days=2, homes=6)
    origin = month.start // DAY_S * DAY_S - LEAD_S
    with ReplayChannel(tmp_path, origin=origin, anchor=int(time.time()), rate=RATE) as channel:
        replay = Replay(channel, month, auctions=2)
        outcome = replay.run()
        assert [check.name for check in outcome.checks if not check.holds] == []
        assert len(outcome.checks) == 9
        assert [one["intervals"] for one in outcome.days] == [96, intervals]
        assert len(outcome.hours) == (96 + intervals) // 4
        assert len({channel.ledgers[name].commit_hash for name in UTILITIES}) == 1
        # What is settled and billed covers each quarter hour, the one that comes twice as well.
        assert len(outcome.bills) == 7
        metered = sum(sum(home.import_wh.values()) for home in month.homes)
        energy = outcome.facts["energy"]
        assert energy["import"] + energy["bought"] - energy.get("surplus", 0) == metered
        assert energy["bought"] > 0
        html = page(outcome)
        assert f"has {intervals} quarter hours" in html
        assert "http" not in html

        # The checks see a Wh that is not what went in.
        start = month.days[1].at(20)
        month.homes[0].import_wh[start] += 1
        replay.check()
        wrong = [check.name for check in outcome.checks if not check.holds]
        assert wrong == [
            "Metered = traded + rest",
            "Each bill is what its readings and trades come to",
        ]


@pytest.mark.parametrize(
    ("month", "odd", "negative"),
    [("2019-03", ("2019-03-31", 92), 46), ("2019-10", ("2019-10-27", 100), 5)],
)
def test_a_month_is_laid_out_by_the_wall_clock(
    month: str, odd: tuple[str, int], negative: int
) -> None:
    found = read_month(month)
    assert len(found.days) == 31
    assert [(day.day, len(day.intervals)) for day in found.days if len(day.intervals) != 96] == [
        odd
    ]
    assert all(a.end == b.start for a, b in zip(found.days, found.days[1:], strict=False))
    hours = range(found.start, found.end, 3600)
    assert sum(found.price(hour) < 0 for hour in hours) == negative
    assert len(found.homes) == 48
    assert len({home.column for home in found.homes}) == 48
    # The plant yields what the method says, but for the order in which thirteen days repeat.
    yielded = sum(found.plant.export_wh.values()) / 500
    assert yielded == pytest.approx(YIELD_WH_PER_KWP[month], rel=0.1)


def test_the_hour_that_comes_twice_repeats_what_was_measured() -> None:
    month = read_month("2019-10", first=27, days=1, homes=3)
    two = month.days[0].at(2)
    for home in month.homes:
        if not home.peak_w:
            first = [home.import_wh[two + at * 900] for at in range(4)]
            assert first == [home.import_wh[two + 3600 + at * 900] for at in range(4)]


def test_what_cannot_be_replayed_is_refused() -> None:
    with pytest.raises(ValueError, match="month is 2019-04, but 2019-03 and 2019-10"):
        read_month("2019-04")
    with pytest.raises(ValueError, match="homes is 2, but 3 to 48"):
        read_month("2019-03", homes=2)
    with pytest.raises(ValueError, match="2019-03 has no day 32"):
        read_month("2019-03", first=32)


def test_days_and_calendar() -> None:
    assert utc_days(local_days("2019-03", 1, 1)) == ["2019-02-28", "2019-03-01"]
    assert [one["offset_s"] for one in calendar_terms()["offsets"]] == [3600, 7200, 3600]
