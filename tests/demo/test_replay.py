"""Days of 2019 through the whole ledger: the days on which clocks change, with a few homes."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.replay import LEAD_S, RATE, Replay
from demo.replay_channel import UTILITIES, ReplayChannel
from demo.replay_checks import Checks, split_exactly
from demo.replay_data import (
    DAY_S,
    YIELD_WH_PER_KWP,
    Battery,
    Month,
    calendar_terms,
    local_days,
    read_month,
    utc_days,
)
from demo.replay_outcome import Outcome
from demo.replay_readings import CLEAN, Disorder
from demo.replay_report import page

DISORDER = replace(Disorder(), after_final_ppm=4_000)
"""As in a whole month, but with enough of everything in a thousand readings."""


def opened(folder: Path, month: Month) -> ReplayChannel:
    origin = month.start // DAY_S * DAY_S - LEAD_S
    return ReplayChannel(folder, origin=origin, anchor=int(time.time()), rate=RATE)


def wrong(outcome: Outcome) -> list[str]:
    return [check.name for check in outcome.checks if not check.holds]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_days_around_a_clock_change_from_readings_to_certificates(tmp_path: Path) -> None:
    month = read_month("2019-03", first=30, days=2, homes=6)
    with opened(tmp_path, month) as channel:
        replay = Replay(channel, month, auctions=2, disorder=DISORDER)
        outcome = replay.run()
        assert wrong(outcome) == []
        assert len(outcome.checks) == 14
        assert [one["intervals"] for one in outcome.days] == [96, 92]
        assert len(outcome.hours) == (96 + 92) // 4
        assert len({channel.ledgers[name].commit_hash for name in UTILITIES}) == 1
        assert len(outcome.bills) == 7
        assert all(bill["open_micro"] == 0 for bill in outcome.bills)
        energy = outcome.facts["energy"]
        assert min(energy["bought"], energy["sold"], energy["shared"]) > 0
        # Something of each kind has come, and days that weren't read in time were estimated.
        found = outcome.readings
        assert found["accepted"] == (7 + 3) * (96 + 92 + 1) + found["corrected"]
        for kind in ("late", "duplicate", "corrected", "after_final"):
            assert found[kind] > 0
        assert found["days_changed"] > 0
        assert found["bills_raised"] + found["bills_credited"] > 0
        html = page(outcome)
        assert "Sunday, 31 March has 92 quarter hours" in html
        assert "http" not in html

        # The checks see a Wh that is not what went in.
        month.homes[0].import_wh[month.days[1].at(20)] += 1
        Checks(replay).run()
        assert wrong(outcome) == [
            "Metered = traded + shared + rest",
            "Each bill is what its readings and trades come to",
        ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_late_repeated_and_corrected_readings_change_no_balance(tmp_path: Path) -> None:
    """5 % late, 2 % twice, 1 % corrected, shuffled: all comes to the same to the micro-unit."""
    month = read_month("2019-10", first=26, days=2, homes=6)
    found: dict[str, Any] = {}
    for name, disorder in (("clean", CLEAN), ("disorder", DISORDER)):
        with opened(tmp_path / name, month) as channel:
            outcome = Replay(channel, month, auctions=1, disorder=disorder).run()
            assert wrong(outcome) == []
            assert [one["intervals"] for one in outcome.days] == [96, 100]
            money: dict[str, int] = {}
            for key, record in channel.values("acct/"):
                account, place, _ = key.partition("/post/")
                if place:
                    money[account] = money.get(account, 0) + int(record["amount_micro"])
            held = {
                key: {
                    one["holder"]: (one["energy_wh"], one["retired_wh"])
                    for one in lot["holdings"]
                    if one["energy_wh"] != "0"
                }
                for key, lot in channel.values("tok/")
                if any(one["energy_wh"] != "0" for one in lot["holdings"])
            }
            bills = [(one["connection_id"], one["total_micro"]) for one in outcome.bills]
            days = {key: posted["summary"]["sums"] for key, posted in channel.values("day/")}
            kept = {account: amount for account, amount in money.items() if amount}
            found[name] = kept, held, bills, days
            kinds = "late", "duplicate", "corrected", "after_final", "days_changed"
            came = [outcome.readings[kind] for kind in kinds]
            assert not any(came) if disorder is CLEAN else all(came)
    assert found["clean"] == found["disorder"]


def test_shares_are_rounded_on_running_sums() -> None:
    assert split_exactly(10, [1, 1, 1]) == [3, 4, 3]
    assert split_exactly(1, [0, 5, 5]) == [0, 1, 0]
    assert split_exactly(7, [7]) == [7]


def test_a_battery_keeps_what_is_left_over_and_loses_a_little() -> None:
    battery = Battery(1000)
    assert battery.step(500, selling=False) == 125  # 500 W for a quarter hour
    assert battery.stored_wh == 120
    assert battery.step(-200, selling=False) == -115
    assert battery.stored_wh == 0
    assert battery.step(-200, selling=False) == 0
    battery.stored_wh = 995
    assert battery.step(500, selling=False) == 5
    assert battery.stored_wh <= battery.capacity_wh
    # In the evening it gives what is above its half, and what the home needs below that as well.
    assert battery.step(0, selling=True) == -125
    battery.stored_wh = 500
    assert battery.step(0, selling=True) == 0
    assert battery.step(-30, selling=True) == -30


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
    assert sum(home.battery_wh > 0 for home in found.homes) == 12
    assert len(found.community) == 6
    assert {home.utility for home in found.community} == {"Boreal"}
    assert any(home.battery_wh for home in found.community)
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
