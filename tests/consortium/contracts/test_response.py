"""Demand response: baselines of worked cases, events from announcement to reward, pools."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from consortium.chaincode.api import (
    Conflict,
    Creator,
    Forbidden,
    InvalidArgument,
    NotFound,
)
from consortium.contracts.common.clock import DAY_S, day_of
from consortium.contracts.market.baseline import (
    Baseline,
    PastDay,
    baseline,
    change_wh,
    sold_beyond_wh,
)
from tests.consortium.contracts.cases import cases
from tests.consortium.contracts.town import START, Town
from tests.consortium.contracts.world import BOREAL_OPERATOR, OPERATOR, oversee

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


def response_wh(expected_wh: tuple[int, ...], actual_wh: tuple[int, ...], kind: str) -> int:
    """What a home is rewarded for if it has sold nothing of it."""
    return max(0, change_wh(expected_wh, actual_wh, kind, len(expected_wh)))


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
    """What the hour was above its baseline is added, and nothing is taken off."""
    case = CASES["flex_agreement_pos"]

    def added(usual: int, actual: int) -> Baseline:
        days = [
            PastDay(f"2026-10-{number:02d}", True, False, (2000, 3000), (usual,))
            for number in range(1, 8)
        ]
        found = baseline(days, (actual,), working=True, adjustment="added")
        assert found is not None
        return found

    above = added(case["baseline_kw"] * 1000, case["event_day_kw"] * 1000)
    assert above.added_wh == case["expected_adjust_kw"] * 1000
    assert above.adjusted_wh == (2000 + above.added_wh, 3000 + above.added_wh)
    assert added(600, 500).adjusted_wh == (2000, 3000)


def test_what_was_shifted_is_the_lesser_of_both() -> None:
    assert change_wh((500, 500, 100, 100), (100, 200, 500, 200), "shift", 2) == 500
    assert change_wh((500, 500, 100, 100), (100, 200, 100, 100), "shift", 2) == 0
    assert change_wh((500, 500, 100, 100), (700, 500, 500, 200), "shift", 2) == -200


def test_what_was_sold_of_a_reduction() -> None:
    """What the baseline feeds in anyway would have been sold without the event."""
    assert sold_beyond_wh((300, -200, -200), (100, 100, 500)) == 100 + 0 + 300


# On the ledger

HOUR_S = 3600
EVENT_START = START + 11 * DAY_S + 18 * HOUR_S
"""A Thursday evening; seven working days and three days of a weekend lie before it."""
EVENT: dict[str, Any] = {
    "event_id": "EVENING-1",
    "operator": "AuroraMSP",
    "zone": "NORTH",
    "kind": "reduce",
    "window_start": EVENT_START,
    "window_end": EVENT_START + HOUR_S,
    "reward_micro_per_kwh": 500_000,
    "opt_in_until": EVENT_START - 7200,
}
AGGREGATOR = Creator("AuroraMSP", b"", "amy", "client", {"gridledger.participant": "AGG-1"})
POOL = {
    "pool_id": "EVENINGS",
    "aggregator": "AGG-1",
    "account": "AGG-HOUSE",
    "share_ppm": 200_000,
    "split": "response",
}


class Flexible(Town):
    """Homes that use 400 Wh in each interval, and a little more on weekends."""

    def live(self, *names: str, days: int = 11) -> None:
        for number in range(days):
            start = START + number * DAY_S
            use = 400 if (start // DAY_S + 3) % 7 < 5 else 900
            for name in names:
                each = dict.fromkeys(range(52, 80), (use, 0))
                self.read_intervals(name, each, day_of(start))

    def day_of_event(self, name: str, before: int, energies: tuple[tuple[int, int], ...]) -> None:
        """The four hours before, and those of the event: (import, export)."""
        day = dict.fromkeys(range(52, 72), (before, 0))
        day |= {72 + index: energy for index, energy in enumerate(energies)}
        self.read_intervals(name, day, day_of(EVENT_START))

    def agents(self) -> list[str]:
        """What the utility's agent does now, until nothing is due: the functions called."""
        done: list[str] = []
        while True:
            due = self.world.evaluate(OPERATOR, "baseline:Due")
            due += self.world.evaluate(OPERATOR, "pool:Due")
            if not due:
                return done
            for call in due:
                self.world.submit(OPERATOR, call["function"], frozen=True, **call["argument"])
                done.append(call["function"])

    def part(self, name: str, event_id: str = "EVENING-1") -> Any:
        where = {"event_id": event_id, "connection_id": name}
        return self.world.evaluate(self.homes[name], "response:Participation", **where)


def town(event: Mapping[str, object] | None = None, *names: str) -> Flexible:
    made = Flexible.of("CP-1", "CP-2", *names, deposit=0)
    assert isinstance(made, Flexible)
    made.world.submit(OPERATOR, "response:Announce", event={**EVENT, **(event or {})})
    return made


def opt_in(made: Flexible, name: str) -> Any:
    where = {"event_id": "EVENING-1", "connection_id": name}
    return made.world.submit(made.homes[name], "response:OptIn", **where)


def test_an_event_from_announcement_to_reward() -> None:
    made = town()
    world = made.world
    joined = opt_in(made, "CP-1")
    assert joined["state"] == "opted_in"
    assert opt_in(made, "CP-1") == joined
    made.live("CP-1")
    # Half as much again as usual in the hours before: a fifth is the cap.
    made.day_of_event("CP-1", 600, ((0, 0), (0, 50), (100, 0), (300, 0)))
    world.now = EVENT_START - HOUR_S - 1
    assert made.agents() == []
    world.now = EVENT_START - HOUR_S
    assert made.agents() == ["baseline:Commit", "response:CommitBaseline"]
    where = {"event_id": "EVENING-1", "connection_id": "CP-1"}
    assert world.submit(OPERATOR, "response:CommitBaseline", **where) == made.part("CP-1")
    own = {"utility": "AuroraMSP", **where}
    record = world.evaluate(made.homes["CP-1"], "baseline:Record", **own)
    assert record["baseline"]["energies_wh"] == ["480"] * 4
    # Working days alone count, and of these all that were read.
    assert record["baseline"]["days"][-1] == "2026-11-23"
    assert len(record["baseline"]["days"]) == 8
    assert record["measured"] is None
    world.now = EVENT_START + HOUR_S - 1
    assert made.agents() == []
    world.now = EVENT_START + HOUR_S
    assert made.agents() == ["baseline:Measure", "response:Settle"]
    settled = made.part("CP-1")
    assert (settled["response_wh"], settled["reward_micro"]) == ("1570", "785000")
    assert world.money() == {"CP-1": 785_000, "GRID-AURORA": -785_000}
    record = world.evaluate(made.homes["CP-1"], "baseline:Record", **own)
    assert record["measured"]["energies_wh"] == ["0", "-50", "100", "300"]
    assert world.submit(OPERATOR, "response:Settle", **record) == settled  # paid once
    # Both records are its home's to have, and go when nobody needs them any more.
    page = world.evaluate(made.homes["CP-1"], "privacy:Export", connection_id="CP-1", limit=2000)
    kept = [one["key"] for one in page["records"] if one["key"].startswith("dr/")]
    assert [key.rpartition("/")[2] for key in kept] == ["expected", "measured"]
    before, world.now = world.now, EVENT_START + 427 * DAY_S
    days = {"from_day": day_of(EVENT_START), "to_day": day_of(EVENT_START + DAY_S)}
    purgeable = world.evaluate(OPERATOR, "privacy:Purgeable", connection_id="CP-1", **days)
    assert [key for key in purgeable["keys"] if key.startswith("dr/")] == kept
    world.now = before
    [event] = world.evaluate(made.homes["CP-2"], "response:Events")["events"]
    assert event["event_id"] == "EVENING-1"
    explained = world.evaluate(
        made.homes["CP-1"], "oversight:Explain", kind="response", id="EVENING-1/CP-1"
    )
    assert explained["recomputed"] == {"reward_micro": "785000"}
    assert explained["agrees"]


def test_who_computes_again_finds_what_was_altered() -> None:
    made = town()
    world = made.world
    opt_in(made, "CP-1")
    made.live("CP-1")
    made.day_of_event("CP-1", 400, ((100, 0),) * 4)
    world.now = EVENT_START - HOUR_S
    made.agents()
    auditor = Creator("BorealMSP", b"", "ada", "client", {})
    where = {"utility": "AuroraMSP", "event_id": "EVENING-1", "connection_id": "CP-1"}
    with pytest.raises(Forbidden, match="its home and operators of AuroraMSP"):
        world.evaluate(made.homes["CP-2"], "baseline:Audit", **where)
    oversee(world, auditor, "auditor")
    for caller in (auditor, OPERATOR, made.homes["CP-1"]):
        found = world.evaluate(caller, "baseline:Audit", **where)
        assert (found["verdict"], found["newer"], found["adjusted"]) == ("agrees", [], True)
    key = ("metering", "readings-AuroraMSP", f"dr/CP-1/{EVENT_START:012d}/EVENING-1/expected")
    stored = world.state.private[key]
    world.state.private[key] = type(stored)(
        stored.value.replace(b'"400"', b'"401"', 1), stored.metadata, stored.version
    )
    assert world.evaluate(auditor, "baseline:Audit", **where)["verdict"] == "altered"
    world.state.private[key] = stored
    made.read_intervals("CP-1", {73: (300, 0)}, "2026-12-01")
    assert world.evaluate(auditor, "baseline:Audit", **where)["verdict"] == "changed_since"


def test_what_is_sold_is_not_paid_twice() -> None:
    made = town()
    world = made.world
    opt_in(made, "CP-1")
    made.live("CP-1")
    made.day_of_event("CP-1", 400, ((0, 500), (0, 0), (0, 0), (0, 0)))
    world.now = EVENT_START - HOUR_S
    made.agents()
    day = day_of(EVENT_START)
    rate = {"supplier": "AuroraMSP", "day": day, "kind": "buy", "price_micro_per_kwh": 80_000}
    world.submit(OPERATOR, "market:PublishRate", **rate)
    window = {"window_start": EVENT_START, "window_end": EVENT_START + 900}
    quote = world.evaluate(
        made.homes["CP-1"], "market:Quote", connection_id="CP-1", energy_wh=450, **window
    )
    world.submit(made.homes["CP-1"], "market:Authorise", request_id="r", **quote)
    world.now = EVENT_START + HOUR_S
    made.agents()
    part = made.part("CP-1")
    assert (part["change_wh"], part["sold_wh"], part["response_wh"]) == ("1650", "450", "1650")


def test_a_record_that_is_not_on_this_peer_keeps_no_others_waiting() -> None:
    """As after an old backup was put back, of a utility that has one peer."""
    made = town()
    world = made.world
    for name in ("CP-1", "CP-2"):
        opt_in(made, name)
    made.live("CP-1", "CP-2")
    for name in ("CP-1", "CP-2"):
        made.day_of_event(name, 400, ((0, 0),))
    world.now = EVENT_START - HOUR_S
    [commit] = world.evaluate(OPERATOR, "baseline:Due")
    world.submit(OPERATOR, commit["function"], frozen=True, **commit["argument"])
    [lost] = [
        key for key in world.state.private if "CP-1" in key[2] and key[2].endswith("/expected")
    ]
    del world.state.private[lost]
    [publish] = world.evaluate(OPERATOR, "baseline:Due")
    assert publish["argument"]["connection_id"] == "CP-2"


def test_the_baseline_is_committed_before_the_event() -> None:
    made = town()
    world = made.world
    opt_in(made, "CP-1")
    opt_in(made, "CP-2")
    made.live("CP-1", "CP-2")
    where = {"event_id": "EVENING-1", "connection_id": "CP-1"}
    compute = {"utility": "AuroraMSP", "event_id": "EVENING-1", "connections": ["CP-1"]}
    with pytest.raises(NotFound, match="baseline:Commit comes first"):
        world.submit(OPERATOR, "response:CommitBaseline", **where)
    with pytest.raises(Conflict, match="are computed from 2026-12-03T17:00:00Z until it begins"):
        world.submit(OPERATOR, "baseline:Commit", **compute)
    # Nobody read the hours before: it waits half an hour for them, and is not adjusted then.
    world.now = EVENT_START - HOUR_S
    assert made.agents() == []
    world.now = EVENT_START - HOUR_S // 2
    assert made.agents() == ["baseline:Commit", *["response:CommitBaseline"] * 2]
    with pytest.raises(Conflict, match="ends at 2026-12-03T19:00:00Z"):
        world.submit(OPERATOR, "baseline:Measure", **compute)
    own = {"utility": "AuroraMSP", **where}
    record = world.evaluate(OPERATOR, "baseline:Record", **own)["baseline"]
    assert (record["adjusted"], record["energies_wh"]) == (False, ["400"] * 4)
    world.now = EVENT_START + HOUR_S
    assert made.agents() == []  # not read yet
    with pytest.raises(Conflict, match="CP-1 wasn't read in full"):
        world.submit(OPERATOR, "baseline:Measure", **compute)
    for name in ("CP-1", "CP-2"):
        made.day_of_event(name, 400, ((100, 0),) * 4)
    measured = world.submit(OPERATOR, "baseline:Measure", **compute)
    assert measured["measured"] == ["CP-1"]
    found = world.evaluate(OPERATOR, "baseline:Audit", **own)
    assert (found["verdict"], found["adjusted"]) == ("agrees", False)
    shown = world.evaluate(OPERATOR, "baseline:Record", **own)
    for part, change, said in (
        ("baseline", {"energies_wh": ["401", "400", "400", "400"]}, "not what was committed for"),
        ("baseline", {"salt": "00" * 32}, "not what was committed for"),
        ("measured", {"energies_wh": ["99", "100", "100", "100"]}, "has committed to"),
        ("measured", {"connection_id": "CP-2"}, "of another event or home"),
    ):
        changed = {**shown, part: {**shown[part], **change}}
        with pytest.raises((Conflict, InvalidArgument), match=said):
            world.submit(OPERATOR, "response:Settle", **changed)
    with pytest.raises(Forbidden, match="operators of AuroraMSP"):
        world.submit(BOREAL_OPERATOR, "response:Settle", **shown)
    assert made.agents() == ["response:Settle", "baseline:Measure", "response:Settle"]
    assert made.part("CP-2")["response_wh"] == "1200"


def test_with_few_days_there_is_no_baseline_and_no_reward() -> None:
    made = town()
    opt_in(made, "CP-1")
    made.live("CP-1", days=5)
    made.day_of_event("CP-1", 400, ((0, 0),) * 4)
    made.world.now = EVENT_START - HOUR_S
    assert made.agents() == ["baseline:Commit", "response:CommitBaseline"]
    made.world.now = EVENT_START + HOUR_S
    assert made.agents() == []
    assert made.part("CP-1")["state"] == "committed"


def test_days_with_events_do_not_count_and_holidays_are_no_working_days() -> None:
    made = Flexible.of("CP-1", deposit=0)
    world = made.world
    terms = {
        "region": "HERE",
        "offsets": [{"from": START - 90 * DAY_S, "offset_s": 3600}],
        "known_until": START + 90 * DAY_S,
        "holidays": ["2026-11-24"],
    }
    made.agree("tariff:ProposeCalendar", "tariff:ApproveCalendar", terms, region="HERE")
    monday = EVENT_START - 3 * DAY_S
    earlier = {
        "event_id": "MONDAY",
        "window_start": monday,
        "window_end": monday + HOUR_S,
        "opt_in_until": monday,
    }
    evening = {**EVENT, "region": "HERE", "adjustment": "added"}
    for event in (evening, {**EVENT, **earlier}):
        world.submit(OPERATOR, "response:Announce", event=event)
    for event_id in ("EVENING-1", "MONDAY"):
        where = {"event_id": event_id, "connection_id": "CP-1"}
        world.submit(made.homes["CP-1"], "response:OptIn", **where)
    made.live("CP-1")
    made.day_of_event("CP-1", 450, ((0, 0),) * 4)
    world.now = EVENT_START - HOUR_S
    made.agents()
    record = world.evaluate(
        OPERATOR,
        "baseline:Record",
        utility="AuroraMSP",
        event_id="EVENING-1",
        connection_id="CP-1",
    )["baseline"]
    assert record["days"] == [f"2026-{day}" for day in ("12-02", "12-01", "11-27", "11-26",
                                                        "11-25", "11-23")]  # fmt: skip
    assert record["energies_wh"] == ["450"] * 4


def test_opting_in_and_leaving() -> None:
    made = town()
    world, who = made.world, {"event_id": "EVENING-1", "connection_id": "CP-1"}
    mine = made.homes["CP-1"]
    with pytest.raises(NotFound, match="does not take part"):
        world.submit(mine, "response:Leave", **who)
    opt_in(made, "CP-1")
    assert world.submit(mine, "response:Leave", **who)["state"] == "left"
    assert world.submit(mine, "response:Leave", **who)["state"] == "left"
    opt_in(made, "CP-1")
    for caller in (made.homes["CP-2"], OPERATOR):
        with pytest.raises(Forbidden, match="its home alone"):
            world.submit(caller, "response:OptIn", **who)
    world.now = EVENT_START - 7200
    with pytest.raises(Conflict, match="homes could opt in until"):
        opt_in(made, "CP-2")
    world.now = EVENT_START
    with pytest.raises(Conflict, match="homes could leave until"):
        world.submit(mine, "response:Leave", **who)


def test_events_that_are_refused() -> None:
    made = town()
    world = made.world
    for change, error, said in (
        ({"window_start": EVENT_START + 1}, InvalidArgument, "multiple of the channel's interval"),
        ({"window_end": EVENT_START}, InvalidArgument, "0 intervals"),
        ({"opt_in_until": world.now}, InvalidArgument, "opt_in_until"),
        ({"opt_in_until": EVENT_START + 900}, InvalidArgument, "opt_in_until"),
        ({"operator": "BorealMSP"}, Forbidden, "operators of BorealMSP"),
        ({"event_id": "EVENING-1", "zone": "SOUTH"}, Conflict, "announced already"),
        ({"kind": "shift"}, InvalidArgument, "a shift says until when"),
        ({"shift_until": EVENT_START + 7200}, InvalidArgument, "a shift says until when"),
        (
            {"kind": "shift", "shift_until": EVENT_START + HOUR_S},
            InvalidArgument,
            "shift_until is 2026-12-03T19:00:00Z, but must lie after window_end",
        ),
        (
            {"kind": "shift", "shift_until": EVENT_START + DAY_S + 900},
            InvalidArgument,
            "with those that are shifted to",
        ),
        ({"transformer_id": "T-9"}, NotFound, "T-9"),
        ({"region": "NOWHERE"}, NotFound, "NOWHERE"),
        ({"cancelled": True}, InvalidArgument, "cancelled is true"),
    ):
        with pytest.raises(error, match=said):
            world.submit(
                OPERATOR, "response:Announce", event={**EVENT, "event_id": "E-2", **change}
            )
    world.submit(OPERATOR, "response:Announce", event={**EVENT, "event_id": "S", "zone": "SOUTH"})
    with pytest.raises(Conflict, match="is for zone SOUTH, but CP-1 is in NORTH"):
        world.submit(made.homes["CP-1"], "response:OptIn", event_id="S", connection_id="CP-1")


def test_what_is_used_later_instead() -> None:
    """1,600 Wh less in the hour, 900 more in the one after it: 900 were shifted."""
    made = town({"kind": "shift", "shift_until": EVENT_START + 2 * HOUR_S})
    opt_in(made, "CP-1")
    made.live("CP-1")
    made.day_of_event("CP-1", 400, (*((0, 0),) * 4, *((625, 0),) * 4))
    made.world.now = EVENT_START - HOUR_S
    made.agents()
    made.world.now = EVENT_START + HOUR_S
    assert made.agents() == []
    made.world.now = EVENT_START + 2 * HOUR_S
    assert made.agents() == ["baseline:Measure", "response:Settle"]
    assert made.part("CP-1")["response_wh"] == "900"


def test_an_event_behind_one_transformer() -> None:
    made = Flexible.of("CP-1", "CP-2", deposit=0)
    world = made.world
    plate = {"utility": "AuroraMSP", "zone": "NORTH", "rated_va": 400_000, "no_load_w": 600}
    world.submit(
        OPERATOR, "grid:RegisterTransformer", transformer={"transformer_id": "T-1", **plate}
    )
    world.submit(
        OPERATOR, "grid:Connect", transformer_id="T-1", connections=["CP-1"],
        **{"from": world.now // 900 * 900 + 900},
    )  # fmt: skip
    world.submit(OPERATOR, "response:Announce", event={**EVENT, "transformer_id": "T-1"})
    assert opt_in(made, "CP-1")["state"] == "opted_in"
    with pytest.raises(Conflict, match="CP-2 hangs behind no known transformer"):
        opt_in(made, "CP-2")


def test_a_cancelled_event_pays_nobody() -> None:
    made = town()
    world = made.world
    opt_in(made, "CP-1")
    made.live("CP-1")
    made.day_of_event("CP-1", 400, ((0, 0),) * 4)
    world.now = EVENT_START - HOUR_S
    made.agents()
    with pytest.raises(Forbidden):
        world.submit(BOREAL_OPERATOR, "response:Cancel", event_id="EVENING-1")
    assert world.submit(OPERATOR, "response:Cancel", event_id="EVENING-1")["cancelled"] is True
    world.now = EVENT_START + HOUR_S
    assert made.agents() == []
    compute = {"utility": "AuroraMSP", "event_id": "EVENING-1", "connections": ["CP-1"]}
    world.submit(OPERATOR, "baseline:Measure", **compute)
    shown = world.evaluate(
        OPERATOR,
        "baseline:Record",
        utility="AuroraMSP",
        event_id="EVENING-1",
        connection_id="CP-1",
    )
    with pytest.raises(Conflict, match="was cancelled"):
        world.submit(OPERATOR, "response:Settle", **shown)
    later = {"window_start": EVENT_START + DAY_S, "window_end": EVENT_START + DAY_S + 900}
    event = {**EVENT, **later, "event_id": "E-3", "opt_in_until": EVENT_START + DAY_S}
    world.submit(OPERATOR, "response:Announce", event=event)
    world.now = EVENT_START + DAY_S
    with pytest.raises(Conflict, match="has begun"):
        world.submit(OPERATOR, "response:Cancel", event_id="E-3")


# Pools


def pooled(split: str = "response", *battery_wh: int) -> Flexible:
    """Three homes in a pool, whose aggregator they have named."""
    made = Flexible.of("AGG-HOUSE", "CP-1", "CP-2", "CP-3", "CP-4", deposit=0)
    world = made.world
    agreed = {"participant_id": "AGG-1", "utility": "AuroraMSP", "name": "Evenings",
              "kinds": ["aggregator"]}  # fmt: skip
    world.submit(OPERATOR, "roles:RegisterParticipant", **agreed)
    world.submit(OPERATOR, "response:Announce", event=EVENT)
    at = world.now // 900 * 900 + 900
    for name, battery in zip(("CP-1", "CP-2", "CP-3"), battery_wh or (0, 0, 0), strict=True):
        if battery:
            plant = {"plant_id": f"B-{name}", "connection_id": name, "kind": "battery",
                     "peak_w": 0, "inverter_w": 5000, "battery_wh": battery,
                     "battery_efficiency_ppm": 900_000}  # fmt: skip
            world.submit(OPERATOR, "grid:RegisterPlant", plant=plant, **{"from": at})
        named = {"connection_id": name, "role": "aggregator", "holder": "AGG-1", "from": at}
        world.submit(made.homes[name], "roles:Assign", **named)
    world.now = at
    world.submit(AGGREGATOR, "pool:Found", pool={**POOL, "split": split})
    for name in ("CP-1", "CP-2", "CP-3"):
        world.submit(made.homes[name], "pool:Join", pool_id="EVENINGS", connection_id=name)
    return made


MEMBERS = {"event_id": "EVENING-1", "pool_id": "EVENINGS", "connections": ["CP-1", "CP-2", "CP-3"]}


@pytest.mark.parametrize(
    ("split", "parts"),
    [("response", (304_762, 95_238)), ("capacity", (100_000, 100_000))],
)
def test_a_pool_is_rewarded_for_what_it_did_together(split: str, parts: tuple[int, int]) -> None:
    """1,600 and 500 Wh less, 1,100 Wh more: 1,000 Wh at 0.5, a fifth of it the aggregator's."""
    made = pooled(split, 5000, 5000, 10_000)
    world = made.world
    enlisted = world.submit(AGGREGATOR, "pool:Enlist", **MEMBERS)
    assert world.submit(AGGREGATOR, "pool:Enlist", **MEMBERS) == enlisted
    made.live("CP-1", "CP-2", "CP-3")
    made.day_of_event("CP-1", 400, ((0, 0),) * 4)
    made.day_of_event("CP-2", 400, ((400, 0), (400, 0), (400, 0), (0, 100)))
    made.day_of_event("CP-3", 400, ((400, 0), (400, 0), (400, 0), (1500, 0)))
    world.now = EVENT_START - HOUR_S
    made.agents()
    world.now = EVENT_START + HOUR_S
    pool = {"event_id": "EVENING-1", "pool_id": "EVENINGS"}
    with pytest.raises(Conflict, match="CP-1 isn't measured for EVENING-1 yet"):
        world.submit(AGGREGATOR, "pool:Settle", **pool)
    done = made.agents()
    assert done.count("response:Settle") == 3
    assert done[-1] == "pool:Settle"
    settled = world.evaluate(AGGREGATOR, "pool:Enlisted", **pool)
    assert (settled["response_wh"], settled["reward_micro"]) == ("1000", "500000")
    assert settled["aggregator_micro"] == "100000"
    money = world.money()
    assert money["AGG-HOUSE"] == 100_000
    assert money["GRID-AURORA"] == -500_000
    assert (money["CP-1"], money["CP-2"]) == parts
    assert money.get("CP-3", 0) == 400_000 - sum(parts)
    assert [int(made.part(name)["reward_micro"]) for name in ("CP-1", "CP-2")] == list(parts)
    assert world.submit(OPERATOR, "pool:Settle", **pool) == settled
    assert world.money() == money
    explained = world.evaluate(
        made.homes["AGG-HOUSE"], "oversight:Explain", kind="pool", id="EVENING-1/EVENINGS"
    )
    assert explained["agrees"] is True
    entry = world.evaluate(made.homes["AGG-HOUSE"], "wallet:Statement", account="AGG-HOUSE")
    [posting] = entry["entries"]
    leads = world.evaluate(
        made.homes["AGG-HOUSE"],
        "oversight:Explain",
        kind="posting",
        id=f"AGG-HOUSE/{posting['at']}/{posting['transaction_id']}",
    )
    assert leads["documents"] == [{"kind": "pool", "id": "EVENING-1/EVENINGS"}]


def test_who_is_never_measured_keeps_no_pool_waiting_for_ever() -> None:
    made = pooled()
    world = made.world
    world.submit(AGGREGATOR, "pool:Enlist", **MEMBERS)
    world.submit(made.homes["CP-3"], "response:Leave", event_id="EVENING-1", connection_id="CP-3")
    made.live("CP-1", "CP-2")
    made.day_of_event("CP-1", 400, ((0, 0),) * 4)
    world.now = EVENT_START - HOUR_S // 2
    made.agents()
    world.now = EVENT_START + HOUR_S
    assert "pool:Settle" not in made.agents()  # CP-2 wasn't read
    world.now = EVENT_START + HOUR_S + 7 * DAY_S
    pool = {"event_id": "EVENING-1", "pool_id": "EVENINGS"}
    assert world.submit(OPERATOR, "pool:Settle", **pool)["response_wh"] == "1600"
    assert world.money() == {"AGG-HOUSE": 160_000, "CP-1": 640_000, "GRID-AURORA": -800_000}


def test_who_may_be_pooled_and_by_whom() -> None:
    made = pooled("capacity", 5000, 5000, 5000)
    world = made.world
    with pytest.raises(Forbidden, match="the aggregator AGG-1 may"):
        world.submit(OPERATOR, "pool:Found", pool=POOL)
    with pytest.raises(Forbidden, match="the aggregator AGG-1 may"):
        world.submit(made.homes["CP-1"], "pool:Enlist", **MEMBERS)
    with pytest.raises(Conflict, match="terms never change"):
        world.submit(AGGREGATOR, "pool:Found", pool={**POOL, "share_ppm": 900_000})
    with pytest.raises(NotFound, match="no pool NONE"):
        world.evaluate(OPERATOR, "pool:Pool", pool_id="NONE")
    stranger = {"pool_id": "EVENINGS", "connection_id": "CP-4"}
    with pytest.raises(Conflict, match="the aggregator of CP-4 is nobody; roles:Assign"):
        world.submit(made.homes["CP-4"], "pool:Join", **stranger)
    with pytest.raises(Forbidden, match="its home alone"):
        world.submit(AGGREGATOR, "pool:Join", **stranger)
    with pytest.raises(Conflict, match="CP-4 has not joined pool EVENINGS"):
        world.submit(AGGREGATOR, "pool:Enlist", **{**MEMBERS, "connections": ["CP-1", "CP-4"]})
    with pytest.raises(InvalidArgument, match="in order of names"):
        world.submit(AGGREGATOR, "pool:Enlist", **{**MEMBERS, "connections": ["CP-2", "CP-1"]})
    leave = {"pool_id": "EVENINGS", "connection_id": "CP-3"}
    assert world.submit(made.homes["CP-3"], "pool:Leave", **leave)["joined"] is False
    with pytest.raises(Conflict, match="CP-3 has not joined"):
        world.submit(AGGREGATOR, "pool:Enlist", **MEMBERS)
    opt_in(made, "CP-2")
    with pytest.raises(Conflict, match="CP-2 takes part in EVENING-1 already"):
        world.submit(AGGREGATOR, "pool:Enlist", **{**MEMBERS, "connections": ["CP-1", "CP-2"]})
    world.submit(AGGREGATOR, "pool:Enlist", **{**MEMBERS, "connections": ["CP-1"]})
    with pytest.raises(Conflict, match="in EVENINGS"):
        opt_in(made, "CP-1")
    with pytest.raises(Conflict, match="enlisted others"):
        world.submit(AGGREGATOR, "pool:Enlist", **MEMBERS)


def test_who_moves_out_takes_the_home_out_of_pools() -> None:
    made = pooled()
    world = made.world
    moved = world.now + 1800
    entry: dict[str, object] = {"connection_id": "CP-2"}
    world.submit(OPERATOR, "roles:MoveIn", resident="ANN", **{**entry, "from": world.now})
    world.submit(OPERATOR, "roles:MoveOut", at=moved, **entry)
    world.submit(OPERATOR, "roles:MoveIn", resident="BEN", **{**entry, "from": moved})
    world.now = moved
    with pytest.raises(Conflict, match="CP-2 has not joined pool EVENINGS"):
        world.submit(AGGREGATOR, "pool:Enlist", **MEMBERS)
    home = made.homes["CP-2"]
    ben = replace(home, attributes={**home.attributes, "gridledger.resident": "BEN"})
    world.submit(ben, "pool:Join", pool_id="EVENINGS", connection_id="CP-2")
    world.submit(AGGREGATOR, "pool:Enlist", **MEMBERS)
