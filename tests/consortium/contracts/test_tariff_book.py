"""Calendars, tariffs and indices that utilities agree on, and bills computed under them."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from consortium.chaincode.api import Conflict, Forbidden, InvalidArgument, NotFound
from tests.consortium.contracts.local_time import calendar_of
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    HOME,
    OPERATOR,
    SUPPLIER,
    World,
    energy_world,
)

START = int(datetime(2019, 1, 5, tzinfo=UTC).timestamp())
TARIFF: dict[str, Any] = {
    "tariff": "HOME-DYNAMIC",
    "supplier": "AuroraMSP",
    "standing_micro_per_day": 100_000,
    "bands": [],
    "blocks": [],
    "index": "DAY-AHEAD",
    "index_ppm": 1_000_000,
    "markup": 20_000,
    "capacity_micro_per_kw_month": 0,
    "feed_in": 50_000,
    "feed_in_index_ppm": 0,
    "taxes": [{"name": "VAT", "rate_ppm": 100_000}],
    "rounding": "total",
}


def at(day: str, hour: int = 0) -> int:
    moment = datetime.fromisoformat(day).replace(hour=hour, tzinfo=ZoneInfo("Europe/Rome"))
    return int(moment.timestamp())


def rome() -> dict[str, Any]:
    terms: dict[str, Any] = json.loads(json.dumps(asdict(calendar_of("Europe/Rome", 2019, 2019))))
    terms["offsets"] = [
        {"from": offset["from_"], "offset_s": offset["offset_s"]} for offset in terms["offsets"]
    ]
    return terms


@pytest.fixture
def world() -> World:
    world = energy_world()
    world.now = START
    world.submit(OPERATOR, "tariff:ProposeCalendar", terms=rome(), effective_from=START + 86_400)
    world.submit(BOREAL_OPERATOR, "tariff:ApproveCalendar", region="EUROPE-ROME", version=1)
    world.submit(OPERATOR, "tariff:Propose", terms=TARIFF, effective_from=START + 86_400)
    world.submit(BOREAL_OPERATOR, "tariff:Approve", tariff="HOME-DYNAMIC", version=1)
    for day in ("2019-03-30", "2019-03-31"):
        publish(world, day, [100_000] * 48 + [-50_000] * 48)
    return world


def publish(world: World, day: str, prices: list[int], caller: Any = SUPPLIER) -> Any:
    return world.submit(caller, "tariff:PublishIndex", index="DAY-AHEAD", day=day, prices=prices)


def compute(world: World, usage: list[dict[str, int]], **change: Any) -> Any:
    return world.evaluate(
        HOME,
        "tariff:Compute",
        **{
            "tariff": "HOME-DYNAMIC",
            "region": "EUROPE-ROME",
            "from_day": "2019-03-31",
            "to_day": "2019-04-01",
            "usage": usage,
            **change,
        },
    )


def row(start: int, import_wh: int, export_wh: int = 0) -> dict[str, int]:
    return {"interval_start": start, "import_wh": import_wh, "export_wh": export_wh}


def test_a_bill_over_the_day_of_the_clock_change(world: World) -> None:
    found = compute(world, [row(at("2019-03-31"), 1000), row(at("2019-03-31", 18), 2000, 500)])
    # 1 kWh at -0.05 (22:00 UTC the day before) and 2 at -0.05, each with 0.02 on top.
    assert [(line["kind"], line["amount_micro"]) for line in found["lines"]] == [
        ("standing", "100000"),
        ("index", "-90000"),
        ("feed_in", "-25000"),
        ("tax", "1000"),
        ("rounding", "4000"),
    ]
    assert found["total_micro"] == "-10000"


def test_versions_hold_from_their_day_on(world: World) -> None:
    later = at("2019-07-01")
    dearer = {**TARIFF, "markup": 90_000}
    world.submit(OPERATOR, "tariff:Propose", terms=dearer, effective_from=later)
    world.submit(BOREAL_OPERATOR, "tariff:Approve", tariff="HOME-DYNAMIC", version=2)
    before = world.evaluate(HOME, "tariff:Tariff", tariff="HOME-DYNAMIC", at=later - 1)
    after = world.evaluate(HOME, "tariff:Tariff", tariff="HOME-DYNAMIC", at=later)
    assert (before["markup"], after["markup"]) == ("20000", "90000")
    compute(world, [], from_day="2019-06-30", to_day="2019-07-01")
    compute(world, [], from_day="2019-07-01", to_day="2019-07-02")
    with pytest.raises(InvalidArgument, match="tariff HOME-DYNAMIC changes between"):
        compute(world, [], from_day="2019-06-30", to_day="2019-07-02")


def test_what_is_not_there(world: World) -> None:
    with pytest.raises(NotFound, match="DAY-AHEAD of 2019-05-01 isn't published"):
        compute(
            world,
            [row(at("2019-05-01", 12), 1)],
            from_day="2019-05-01",
            to_day="2019-05-02",
        )
    for change in ({"region": "EUROPE-PARIS"}, {"tariff": "NONE"}):
        with pytest.raises(NotFound, match="is in force at"):
            compute(world, [], **change)
    for to_day in ("2019-03-31", "2019-05-03"):
        with pytest.raises(InvalidArgument, match="1 to 32 days after"):
            compute(world, [], to_day=to_day)
    with pytest.raises(NotFound):
        world.evaluate(HOME, "tariff:Index", index="DAY-AHEAD", day="2019-05-01")
    calendar = world.evaluate(HOME, "tariff:Calendar", region="EUROPE-ROME", at=START + 86_400)
    assert len(calendar["offsets"]) == 3


def test_an_index_never_changes(world: World) -> None:
    prices = [100_000] * 48 + [-50_000] * 48
    assert publish(world, "2019-03-31", prices)["publisher"] == "AuroraMSP"
    with pytest.raises(Conflict, match="prices never change"):
        publish(world, "2019-03-31", prices[::-1])
    with pytest.raises(Conflict, match="is published by AuroraMSP"):
        publish(world, "2019-04-01", prices, BOREAL_OPERATOR)
    with pytest.raises(InvalidArgument, match="has 95 values, but a day has 96"):
        publish(world, "2019-04-01", prices[1:])
    with pytest.raises(Forbidden):
        publish(world, "2019-04-01", prices, HOME)


def test_tariffs_that_are_refused(world: World) -> None:
    with pytest.raises(Forbidden, match="suppliers and operators of AuroraMSP"):
        world.submit(
            BOREAL_OPERATOR, "tariff:Propose", terms=TARIFF, effective_from=at("2019-07-01")
        )
    with pytest.raises(InvalidArgument, match="bands, blocks or an index"):
        world.submit(
            OPERATOR,
            "tariff:Propose",
            terms={**TARIFF, "index": None, "index_ppm": 0},
            effective_from=at("2019-07-01"),
        )
    with pytest.raises(InvalidArgument, match="known_until"):
        world.submit(
            OPERATOR,
            "tariff:ProposeCalendar",
            terms={**rome(), "known_until": 0},
            effective_from=at("2019-07-01"),
        )
