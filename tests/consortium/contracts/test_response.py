"""Demand response: baselines of worked cases, and an event from announcement to reward."""

import random
from typing import Any

import pytest

from consortium.chaincode.api import Conflict, Forbidden, InvalidArgument, NotFound
from consortium.contracts.market.baseline import (
    Baseline,
    PastDay,
    additive_adjustment,
    baseline,
    response_wh,
)
from consortium.contracts.market.response import commitment
from tests.consortium.contracts.cases import cases
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    HOME,
    NOON,
    OPERATOR,
    OTHER_HOME,
    World,
    energy_world,
)

CASES = cases("dr_baseline")


def past_days(case: dict[str, Any]) -> list[PastDay]:
    return [
        PastDay(
            f"2026-11-{number + 1:02d}",
            True,
            False,
            tuple(int(kwh * 1000) for kwh in event_hours),
            tuple(int(kwh * 1000) for kwh in adjust_hours),
        )
        for number, (event_hours, adjust_hours) in enumerate(
            zip(case["history_event_hours_kwh"], case["history_adjust_hours_kwh"], strict=True)
        )
    ]


def wh(values: list[Any]) -> tuple[int, ...]:
    return tuple(int(value * 1000) for value in values)


@pytest.mark.parametrize("name", ["tenten_flat_no_cap", "tenten_cap_high"])
def test_ten_of_ten_with_the_days_adjustment(name: str) -> None:
    case = CASES[name]
    found = baseline(past_days(case), wh(case["event_adjust_hours_kwh"]), working=True)
    assert found is not None
    expected = case["expected"]
    assert found.ratio_ppm == expected["ratio"] * 10**6
    assert found.adjusted_wh == wh(expected["adjusted"])
    actual = wh(case["actual_event_kwh"])
    assert response_wh(found.adjusted_wh, actual, "reduce") == expected["total"] * 1000
    assert response_wh(actual, found.adjusted_wh, "absorb") == expected["total"] * 1000
    assert response_wh(actual, found.adjusted_wh, "reduce") == 0


def test_days_with_events_and_of_another_kind_are_left_out() -> None:
    """`skip_event_days`: two of twelve weekdays had events, so days 11 and 12 back are used."""
    days = [
        PastDay(f"2026-10-{number:02d}", number % 7 not in (3, 4), number in (28, 30), (1,), (1,))
        for number in range(1, 32)
    ]
    random.Random(1).shuffle(days)
    found = baseline(days, (1,), working=True)
    assert found is not None
    assert len(found.days) == 10
    newest = sorted((d.day for d in days if d.working and not d.had_event), reverse=True)
    assert list(found.days) == newest[:10]


def test_few_days_and_homes_that_export() -> None:
    def day(number: int, event: int, adjust: int) -> PastDay:
        return PastDay(f"2026-10-{number:02d}", True, False, (event,), (adjust,))

    four = [day(number, 100, 100) for number in range(1, 5)]
    assert baseline(four, (100,), working=True) is None
    five = [*four, day(5, 101, 100)]
    assert baseline(five, (50,), working=True) == Baseline(
        tuple(f"2026-10-{number:02d}" for number in (5, 4, 3, 2, 1)), (100,), 800_000, (80,)
    )
    exporting = [day(number, -200, -300) for number in range(1, 7)]
    found = baseline(exporting, (100,), working=True)
    assert found is not None
    assert (found.ratio_ppm, found.adjusted_wh) == (10**6, (-200,))
    assert response_wh((-200,), (-500,), "reduce") == 300


def test_a_published_additive_rule() -> None:
    case = CASES["flex_agreement_pos"]
    added = additive_adjustment(case["baseline_kw"], case["event_day_kw"])
    assert added == case["expected_adjust_kw"]
    assert additive_adjustment(600, 500) == 0


# On the ledger

EVENT: dict[str, Any] = {
    "event_id": "EVENING-1",
    "operator": "AuroraMSP",
    "zone": "NORTH",
    "kind": "reduce",
    "window_start": NOON + 7200,
    "window_end": NOON + 9000,
    "reward_micro_per_kwh": 500_000,
    "opt_in_until": NOON + 3600,
}
WHO = {"event_id": "EVENING-1", "connection_id": "CP-0001"}
BASELINE = (1000, 1200)
SALT = "5a" * 32
OPENED = {**WHO, "baseline_wh": BASELINE, "salt": SALT, "metered_wh": [300, 400]}


@pytest.fixture
def world() -> World:
    world = energy_world()
    world.submit(OPERATOR, "response:Announce", event=EVENT)
    return world


def commit(world: World) -> None:
    world.submit(OPERATOR, "response:CommitBaseline", **WHO, commitment=commitment(BASELINE, SALT))


def test_an_event_from_announcement_to_reward(world: World) -> None:
    joined = world.submit(HOME, "response:OptIn", **WHO)
    assert joined["state"] == "opted_in"
    assert world.submit(HOME, "response:OptIn", **WHO) == joined
    commit(world)
    with pytest.raises(Conflict, match="ends at 2026-11-21T14:30:00Z"):
        world.submit(OPERATOR, "response:Settle", **OPENED)
    world.now = NOON + 9000
    settled = world.submit(OPERATOR, "response:Settle", **OPENED)
    assert (settled["response_wh"], settled["reward_micro"]) == ("1500", "750000")
    assert world.submit(OPERATOR, "response:Settle", **OPENED) == settled  # paid once
    assert world.money() == {"CP-0001": 750_000, "GRID-AURORA": -750_000}
    seen = world.evaluate(HOME, "response:Participation", **WHO)
    assert seen == settled
    [event] = world.evaluate(OTHER_HOME, "response:Events")["events"]
    assert event["event_id"] == "EVENING-1"


def test_an_aggregators_share(world: World) -> None:
    world.submit(HOME, "response:OptIn", **WHO, aggregator="CP-0002", aggregator_share_ppm=100_000)
    commit(world)
    world.now = NOON + 9000
    world.submit(OPERATOR, "response:Settle", **OPENED, sold_wh=500)
    assert world.money() == {"CP-0001": 450_000, "CP-0002": 50_000, "GRID-AURORA": -500_000}


def test_the_baseline_is_committed_before_the_event(world: World) -> None:
    world.submit(HOME, "response:OptIn", **WHO)
    world.now = NOON + 7200
    with pytest.raises(Conflict, match="baselines could be committed until 2026-11-21T14:00:00Z"):
        commit(world)
    world.now = NOON + 9000
    with pytest.raises(Conflict, match="without a baseline committed before the event"):
        world.submit(OPERATOR, "response:Settle", **OPENED)
    world.now = NOON
    commit(world)
    world.now = NOON + 9000
    for change in ({"baseline_wh": (1001, 1200)}, {"salt": "00" * 32}):
        with pytest.raises(Conflict, match="not what was committed"):
            world.submit(OPERATOR, "response:Settle", **{**OPENED, **change})
    with pytest.raises(InvalidArgument, match="has 1 values, but the event has 2 intervals"):
        world.submit(OPERATOR, "response:Settle", **{**OPENED, "metered_wh": [1]})


def test_opting_in_and_leaving(world: World) -> None:
    with pytest.raises(NotFound, match="does not take part"):
        world.submit(HOME, "response:Leave", **WHO)
    world.submit(HOME, "response:OptIn", **WHO)
    with pytest.raises(Conflict, match="on other terms"):
        world.submit(HOME, "response:OptIn", **WHO, aggregator="CP-0002")
    assert world.submit(HOME, "response:Leave", **WHO)["state"] == "left"
    assert world.submit(HOME, "response:Leave", **WHO)["state"] == "left"
    world.submit(HOME, "response:OptIn", **WHO, aggregator="CP-0002")
    for caller in (OTHER_HOME, OPERATOR):
        with pytest.raises(Forbidden, match="its home alone"):
            world.submit(caller, "response:OptIn", **WHO)
    with pytest.raises(InvalidArgument, match="needs an aggregator"):
        world.submit(HOME, "response:OptIn", **WHO, aggregator_share_ppm=1)
    world.now = NOON + 3600
    with pytest.raises(Conflict, match="homes could opt in until"):
        world.submit(OTHER_HOME, "response:OptIn", **{**WHO, "connection_id": "CP-0002"})
    world.now = NOON + 7200
    with pytest.raises(Conflict, match="homes could leave until"):
        world.submit(HOME, "response:Leave", **WHO)


def test_events_that_are_refused(world: World) -> None:
    for change, error, said in (
        ({"window_start": NOON + 1}, InvalidArgument, "multiple of the channel's interval"),
        ({"window_end": NOON + 7200}, InvalidArgument, "0 intervals"),
        ({"opt_in_until": NOON}, InvalidArgument, "opt_in_until"),
        ({"opt_in_until": NOON + 9000}, InvalidArgument, "opt_in_until"),
        ({"operator": "BorealMSP"}, Forbidden, "operators of BorealMSP"),
        ({"event_id": "EVENING-1", "zone": "SOUTH"}, Conflict, "announced already"),
    ):
        with pytest.raises(error, match=said):
            world.submit(
                OPERATOR, "response:Announce", event={**EVENT, "event_id": "E-2", **change}
            )
    world.submit(OPERATOR, "response:Announce", event={**EVENT, "event_id": "S", "zone": "SOUTH"})
    with pytest.raises(Conflict, match="is for zone SOUTH, but CP-0001 is in NORTH"):
        world.submit(HOME, "response:OptIn", **{**WHO, "event_id": "S"})


def test_a_cancelled_event_pays_nobody(world: World) -> None:
    world.submit(HOME, "response:OptIn", **WHO)
    commit(world)
    with pytest.raises(Forbidden):
        world.submit(BOREAL_OPERATOR, "response:Cancel", event_id="EVENING-1")
    assert world.submit(OPERATOR, "response:Cancel", event_id="EVENING-1")["cancelled"] is True
    world.now = NOON + 9000
    with pytest.raises(Conflict, match="was cancelled"):
        world.submit(OPERATOR, "response:Settle", **OPENED)
    world.submit(
        OPERATOR,
        "response:Announce",
        event={
            **EVENT,
            "event_id": "E-3",
            "opt_in_until": NOON + 10_000,
            "window_start": NOON + 10_800,
            "window_end": NOON + 11_700,
        },
    )
    world.now = NOON + 10_800
    with pytest.raises(Conflict, match="has begun"):
        world.submit(OPERATOR, "response:Cancel", event_id="E-3")
