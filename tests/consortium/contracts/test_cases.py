"""Every worked case is held against the contracts, and docs/contracts.md says how it compares.

Here are the cases that no contract's own test takes, and the account of all of them.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from consortium.contracts.market.auction import clear, histogram
from tests.consortium.contracts.cases import CASES, cases
from tests.consortium.contracts.test_readings import corrected, enter, intervals, registers, submit
from tests.consortium.contracts.world import ADMIN, HOME, NOON, OPERATOR, TestMeter, World

ROOT = Path(__file__).resolve().parents[3]
TABLE = re.compile(r"^\| (`[^|]+) \| (published|rule|data) \| ([^|]+) \| `(test_\w+)` \|$", re.M)
METERING = cases("metering")
MECHANISMS = cases("mechanisms")


def accounted() -> dict[str, tuple[str, str]]:
    """Of each case in docs/contracts.md, its kind and the test that takes it."""
    page = (ROOT / "docs/contracts.md").read_text()
    return {
        name: (kind, test)
        for names, kind, _, test in TABLE.findall(page)
        for name in re.findall(r"`([^`]+)`", names)
    }


def test_every_case_stands_in_the_documentation_with_its_test() -> None:
    kinds = {"published": "published", "rule-derived": "rule", "invariant": "rule"}
    found = {}
    for path in sorted(CASES.glob("*.json")):
        for case in json.loads(path.read_text())["cases"]:
            found[case["id"]] = path.stem, kinds.get(case["kind"], "data")
    table = accounted()
    assert sorted(table) == sorted(found)
    for name, (kind, test) in table.items():
        file, expected = found[name]
        assert kind == expected, name
        text = (Path(__file__).parent / f"{test}.py").read_text()
        # Named there, or taken with all others of its file.
        assert name in text or f'cases("{file}")' in text, (name, test)


# Metering


@pytest.fixture
def meter() -> TestMeter:
    return TestMeter()


@pytest.fixture
def world(meter: TestMeter) -> World:
    world = World()
    world.submit(ADMIN, "metering:Configure")
    enter(world, meter)
    return world


def settled(world: World, start: int, end: int) -> list[tuple[int, str]]:
    """What settles of a connection: import and quality of each interval."""
    return [(one.import_wh, one.quality) for one in intervals(world, start, end)]


def test_a_reading_counts_where_its_meter_says_however_late_it_arrives(
    world: World, meter: TestMeter
) -> None:
    """`late_hour_label`: the sum of an hour that arrives seconds after it, in the next one."""
    hour = NOON - 3600
    readings = meter.day(hour, 4)
    world.now = NOON + 13
    submit(world, *readings)
    assert [wh for wh, _ in settled(world, hour, NOON + 900)] == [100, 101, 102, 103, 0]


def test_a_later_version_replaces_the_former_and_the_sum_follows(
    world: World, meter: TestMeter
) -> None:
    """`late_revision`."""
    start = NOON - 3600
    first, second, third, fourth = meter.day(start, 4)
    guessed = meter.sign({**second, "import_wh": "500", "quality": "estimated"})
    submit(world, first, guessed, third, fourth)
    assert sum(wh for wh, _ in settled(world, start, NOON)) == 100 + 500 + 102 + 103
    submit(world, corrected(meter, second))
    assert sum(wh for wh, _ in settled(world, start, NOON)) == 100 + 101 + 102 + 103
    checked = check(world, start)
    assert (checked["import_wh"], checked["differences"]) == ("406", [])


def check(world: World, start: int) -> dict[str, Any]:
    found: dict[str, Any] = world.evaluate(
        HOME, "metering:Check", meter_id="M-0001", **{"from": start, "to": NOON}
    )
    return found


def test_quality_is_of_each_interval_and_a_final_substitute_replaces_an_estimate(
    world: World, meter: TestMeter
) -> None:
    """`nem12_substitution`: a range of a day is estimated, then substituted for good."""
    start = NOON - 4 * 900
    first, second, third, fourth = meter.day(start, 4)
    estimates = [{**one, "quality": "estimated", "signature": ""} for one in (second, third)]
    submit(world, first, *estimates, fourth)
    assert [quality for _, quality in settled(world, start, NOON)] == [
        "measured",
        "estimated",
        "estimated",
        "measured",
    ]
    final = {**estimates[0], "quality": "substituted", "version": "2", "import_wh": "90"}
    submit(world, final)
    assert settled(world, start, NOON)[1:3] == [(90, "substituted"), (102, "estimated")]


def test_a_six_digit_register_rolls_over(world: World) -> None:
    case = METERING["register_rollover_6digit"]
    meter = TestMeter("M-ROLL")
    enter(world, meter, "CP-0007", rollover_wh=10 ** case["digits"] * 1000, max_power_w=250_000)
    risen_wh = case["expected_delta_kwh"] * 1000
    answer = submit(
        world,
        meter.reading(NOON - 1800, 0, import_register_wh=case["previous_kwh"] * 1000),
        meter.reading(NOON - 900, risen_wh, import_register_wh=case["current_kwh"] * 1000),
    )
    assert (answer["accepted"], answer["refused"]) == ("2", [])


def test_an_exchange_of_meters_loses_nothing(world: World, meter: TestMeter) -> None:
    case = METERING["meter_replacement"]
    old, new = case["old"], case["new"]
    successor = TestMeter("M-0002")
    at = NOON - 1800
    before, after = old["final"] - old["start"], new["reading"] - new["initial"]
    submit(
        world,
        registers(meter, at - 900, old["start"]),
        meter.reading(at - 900, before, import_register_wh=old["final"]),
    )
    world.submit(
        OPERATOR,
        "metering:ExchangeMeter",
        meter_id="M-0001",
        at=at,
        new_meter_id="M-0002",
        public_key=successor.public_key,
    )
    answer = submit(
        world,
        registers(successor, at, new["initial"]),
        successor.reading(at, after, import_register_wh=new["reading"]),
    )
    assert answer["refused"] == []
    counted = sum(wh for wh, _ in settled(world, at - 900, at + 900))
    assert counted == case["expected_delta_kwh"]


@pytest.mark.parametrize(("digit_wh", "agrees"), [(1000, True), (1, False)])
def test_intervals_agree_with_the_register_within_its_digit(
    world: World, meter: TestMeter, digit_wh: int, agrees: bool
) -> None:
    """The case's register counts whole kWh: its 3 Wh are within a digit. Ours count Wh."""
    case = METERING["interval_vs_register_check"]
    start = NOON - 96 * 900
    total = register = case["register_delta_wh"]
    readings = []
    for number, energy_wh in enumerate(case["interval_wh"]):
        register = 10**6 + sum(case["interval_wh"][: number + 1])
        quality = "measured" if number in (0, 95) else "estimated"
        readings.append(
            meter.reading(
                start + number * 900, energy_wh, import_register_wh=register, quality=quality
            )
        )
    readings[-1] = meter.reading(
        NOON - 900, case["interval_wh"][-1], import_register_wh=10**6 + total
    )
    submit(world, registers(meter, start, 10**6), *readings)
    differences = check(world, start)["differences"]
    off = [abs(int(one["counted_wh"]) - int(one["risen_wh"])) for one in differences]
    assert all(wh <= digit_wh for wh in off) == agrees
    assert off == [3]


# Mechanisms that the channel doesn't use, beside the one that it does


def test_uniform_prices_balance_where_vcg_has_a_deficit() -> None:
    case = MECHANISMS["vcg_deficit"]
    expected = case["expected"]
    clearing = clear(
        histogram([(price, 1) for price in case["bids"]]),
        histogram([(price, 1) for price in case["offers"]]),
    )
    assert clearing.volume_wh == expected["trades"]
    # The rule's two prices are the ends of ours, which buyers pay and sellers get alike.
    assert (clearing.lowest_price, clearing.highest_price) == (
        expected["buyers_pay"],
        expected["sellers_get"],
    )
    deficit = clearing.volume_wh * (expected["sellers_get"] - expected["buyers_pay"])
    assert deficit == expected["operator_deficit"]
    assert clearing.price == 87


def test_pairs_can_trade_more_than_one_price_can() -> None:
    case = MECHANISMS["pymarket_max_volume_ds0"]
    bids, offers = (
        histogram([(row["price"], row["qty"]) for row in case[side]]) for side in ("bids", "offers")
    )
    clearing = clear(bids, offers)
    assert clearing.volume_wh == 3 < case["expected"]["max_individually_rational_pairwise_volume"]


@pytest.mark.parametrize("number", range(4))
def test_all_offers_at_the_lowest_price_are_curtailed_alike(number: int) -> None:
    """`curtail_at_min_price`: the executed part is what is bought over what is offered."""
    curtailed = cases("settlement_imbalance")["curtail_at_min_price"]["published_curtailment"]
    offers = [(-500, 3_000_000_000), (-500, 1), (-500, 6_999_999_999)]
    offered = sum(wh for _, wh in offers)
    bought = offered - round(offered * curtailed[number])
    clearing = clear(histogram([(0, bought)]), histogram(offers))
    before = 0
    for price, energy_wh in offers:
        filled = clearing.fill_wh("offer", price, energy_wh, before)
        assert abs(filled - energy_wh * (1 - curtailed[number])) <= 1.5
        before += energy_wh
    assert clearing.volume_wh == bought
