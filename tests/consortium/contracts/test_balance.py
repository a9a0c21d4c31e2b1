"""The balance on the ledger: sums that hide homes, models, alerts and what becomes of them."""

import hashlib
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest

from benchmarks.theft import DAYS, TRAINING, Feeder
from consortium.chaincode.api import (
    Conflict,
    ContractError,
    Creator,
    Forbidden,
    InvalidArgument,
    NotFound,
    canonical_json,
    plain,
)
from consortium.contracts.balance.sums import Delivered, Share, delivered_key, hides_each, share_key
from consortium.ledger.state import Version, VersionedValue
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    HOME,
    NOON,
    OPERATOR,
    World,
)

DAY_S = 86_400
START = NOON // DAY_S * DAY_S - 20 * DAY_S
SALT = "5a" * 32
AURORA_HOMES = range(30)
BOREAL_HOMES = range(30, 48)


def commit_private(world: World, utility: str, key: str, record: object) -> None:
    """What a computation of chaincode metering leaves behind: a private record and its hash."""
    value, name = canonical_json(record), f"readings-{utility}"
    world.state.private["metering", name, key] = VersionedValue(value, b"", Version(1, 0))
    place = ("metering", name, hashlib.sha256(key.encode()).digest())
    world.state.hashes[place] = VersionedValue(hashlib.sha256(value).digest(), b"", Version(1, 0))


@cache
def _grid() -> World:
    """A transformer of Aurora's with 30 homes that Aurora meters and 18 that Boreal does."""
    world = World(now=START - DAY_S)
    begin: dict[str, Any] = {"from": START}
    world.submit(ADMIN, "registry:Configure")
    world.submit(
        OPERATOR,
        "grid:RegisterTransformer",
        transformer={
            "transformer_id": "T-1",
            "utility": "AuroraMSP",
            "zone": "NORTH",
            "rated_va": 400_000,
            "no_load_w": 150,
        },
    )
    source = {"source_id": "PLANT", "utility": "AuroraMSP", "kind": "plant", "zone": "NORTH"}
    world.submit(OPERATOR, "grid:RegisterSource", source=source)
    for home in (*AURORA_HOMES, *BOREAL_HOMES):
        world.submit(
            OPERATOR,
            "registry:RegisterConnection",
            connection_id=f"CP-{home:02d}",
            utility="AuroraMSP",
            zone="NORTH",
            max_export_w=10_000,
            max_import_w=20_000,
        )
    world.submit(
        BOREAL_OPERATOR,
        "roles:RegisterParticipant",
        participant_id="BorealMSP",
        utility="BorealMSP",
        name="Boreal",
        kinds=["metering_operator"],
    )
    for home in BOREAL_HOMES:
        world.submit(
            OPERATOR,
            "roles:Assign",
            connection_id=f"CP-{home:02d}",
            role="metering_operator",
            holder="BorealMSP",
            **begin,
        )
    names = [f"CP-{home:02d}" for home in range(48)]
    world.submit(OPERATOR, "grid:Connect", transformer_id="T-1", connections=names, **begin)
    world.submit(OPERATOR, "grid:Feed", source_id="PLANT", transformers=["T-1"], **begin)
    world.now = NOON
    return world


@dataclass
class Watch:
    """A transformer whose balance is kept, fed with what a feeder's registers counted."""

    world: World = field(default_factory=lambda: deepcopy(_grid()))

    def share(self, feeder: Feeder, day: int, utility: str) -> Share:
        homes = AURORA_HOMES if utility == "AuroraMSP" else BOREAL_HOMES
        energies = [feeder.registers[day][home] for home in homes]
        return Share(
            "T-1",
            utility,
            START + day * DAY_S,
            START + (day + 1) * DAY_S,
            sum(energies),
            len(homes),
            0,
            hides_each(energies),
            SALT,
            SALT,
        )

    def delivered(self, feeder: Feeder, day: int) -> Delivered:
        figures = feeder.days[day]
        return Delivered(
            "T-1",
            "AuroraMSP",
            START + day * DAY_S,
            START + (day + 1) * DAY_S,
            figures.delivered_wh,
            figures.square,
            SALT,
        )

    def report(self, feeder: Feeder, day: int) -> None:
        for utility, operator in (("AuroraMSP", OPERATOR), ("BorealMSP", BOREAL_OPERATOR)):
            share = self.share(feeder, day, utility)
            commit_private(self.world, utility, share_key("T-1", share.to), share)
            self.world.submit(operator, "balance:Report", share=plain(share))

    def close(self, feeder: Feeder, day: int) -> Any:
        self.report(feeder, day)
        delivered = self.delivered(feeder, day)
        commit_private(self.world, "AuroraMSP", delivered_key("T-1", delivered.to), delivered)
        return self.world.submit(OPERATOR, "balance:Close", delivered=plain(delivered))

    def until(self, feeder: Feeder, days: int) -> list[Any]:
        answers = []
        for day in range(days):
            answers.append(self.close(feeder, day))
            if day + 1 == TRAINING:
                self.world.submit(OPERATOR, "balance:Learn", node_id="T-1", first=1, last=TRAINING)
        return answers


def test_a_clean_transformer_is_balanced_and_raises_no_alert() -> None:
    watch = Watch()
    feeder = Feeder(7)
    answers = watch.until(feeder, DAYS)
    assert [answer["alert"] for answer in answers] == [None] * DAYS
    balance = answers[3]["balance"]
    assert int(balance["delivered_wh"]) == feeder.days[3].delivered_wh
    assert int(balance["metered_wh"]) == sum(feeder.registers[3])
    assert balance["homes"] == "48"
    assert int(answers[3]["loss_wh"]) == feeder.days[3].loss_wh
    assert answers[3]["expected_wh"] is None, "no model yet"
    loss, expected = (int(answers[12][name]) for name in ("loss_wh", "expected_wh"))
    assert abs(loss - expected) < 0.005 * feeder.days[12].delivered_wh
    first = watch.world.evaluate(HOME, "balance:Periods", node_id="T-1", limit=10)
    rest = watch.world.evaluate(HOME, "balance:Periods", node_id="T-1", bookmark=first["bookmark"])
    numbers = [int(one["balance"]["number"]) for one in first["balances"] + rest["balances"]]
    assert numbers == list(range(1, DAYS + 1))


def test_a_theft_raises_one_alert_that_grows_more_certain_and_is_followed_up() -> None:
    watch, feeder = Watch(), Feeder(7, tap=0.03)
    answers = watch.until(feeder, DAYS)
    assert [answer["alert"] for answer in answers[TRAINING:]] == [None, "1", "1", "1"]
    world = watch.world
    (alert,) = world.evaluate(HOME, "balance:Alerts", node_id="T-1")["alerts"]
    assert alert["since"] == str(START + TRAINING * DAY_S)
    assert (alert["first"], alert["last"]) == ("11", "14")
    assert int(alert["loss_ppm"]) == pytest.approx(30_000, rel=0.1)
    assert int(alert["confidence_ppm"]) > 800_000
    assert (alert["state"], alert["outcome"], alert["basis"]) == ("raised", None, "balances")
    assert "CP-" not in str(alert)

    with pytest.raises(Conflict, match=r"belong to alert 1, which is raised"):
        world.submit(OPERATOR, "balance:Learn", node_id="T-1", first=5, last=12)
    place: dict[str, Any] = {"node_id": "T-1", "number": 1}
    with pytest.raises(Conflict, match="is raised, but must be acknowledged to become invest"):
        world.submit(OPERATOR, "balance:Investigate", **place, note="looked at the cabinet")
    world.submit(OPERATOR, "balance:Acknowledge", **place, note="crew on Monday")
    again = world.simulate(OPERATOR, "balance:Acknowledge", {**place, "note": "crew on Monday"})
    assert len(again.value["steps"]) == 2, "the same again changes nothing"
    with pytest.raises(Conflict, match="must be investigated to become closed"):
        world.submit(OPERATOR, "balance:Conclude", **place, outcome="theft", note="x")
    world.submit(OPERATOR, "balance:Investigate", **place, note="a tap before all meters")
    closed = world.submit(OPERATOR, "balance:Conclude", **place, outcome="theft", note="removed")
    assert [(step["state"], step["utility"], step["by"]) for step in closed["steps"]] == [
        ("raised", "AuroraMSP", ""),
        ("acknowledged", "AuroraMSP", "olga"),
        ("investigated", "AuroraMSP", "olga"),
        ("closed", "AuroraMSP", "olga"),
    ]
    with pytest.raises(Conflict, match="which is theft"):
        world.submit(OPERATOR, "balance:Learn", node_id="T-1", first=5, last=12)


def test_what_was_technical_after_all_may_be_learned() -> None:
    watch = Watch()
    watch.until(Feeder(7, tap=0.03), 12)
    place: dict[str, Any] = {"node_id": "T-1", "number": 1}
    for act in ("Acknowledge", "Investigate"):
        watch.world.submit(OPERATOR, f"balance:{act}", **place, note="a hot cable")
    watch.world.submit(OPERATOR, "balance:Conclude", **place, outcome="technical", note="cable")
    learned = watch.world.submit(OPERATOR, "balance:Learn", node_id="T-1", first=2, last=12)
    assert learned["version"] == "2"
    assert watch.world.evaluate(HOME, "balance:Model", node_id="T-1") == learned
    assert watch.close(Feeder(7, tap=0.03), 12)["alert"] is None


def test_the_periods_of_an_alert_tell_where_to_look() -> None:
    watch = Watch()
    watch.until(Feeder(7, tap=0.03), 13)
    basis = watch.world.evaluate(OPERATOR, "balance:Basis", node_id="T-1", number=1)
    assert len(basis["ends"]) == 13
    assert basis["since"] == str(TRAINING)
    assert int(basis["loss_wh"]) > 0


def test_a_plant_is_balanced_with_its_transformers() -> None:
    watch, feeder = Watch(), Feeder(7)
    watch.until(feeder, 3)
    world = watch.world
    sent = sum(day.delivered_wh for day in feeder.days[:2])
    delivered = Delivered("PLANT", "AuroraMSP", START, START + 2 * DAY_S, sent + 700, 1, SALT)
    commit_private(world, "AuroraMSP", delivered_key("PLANT", delivered.to), delivered)
    answer = world.submit(OPERATOR, "balance:Close", delivered=plain(delivered))
    assert answer["loss_wh"] == "700"
    assert answer["balance"]["homes"] == "48"
    ahead = replace(delivered, from_=delivered.to, to=START + 5 * DAY_S)
    commit_private(world, "AuroraMSP", delivered_key("PLANT", ahead.to), ahead)
    with pytest.raises(Conflict, match="node T-1 has no balances from"):
        world.submit(OPERATOR, "balance:Close", delivered=plain(ahead))


def test_only_what_was_committed_to_counts_and_only_once() -> None:
    watch, feeder = Watch(), Feeder(7)
    world = watch.world
    share = watch.share(feeder, 0, "AuroraMSP")
    with pytest.raises(NotFound, match="has committed to no record feeder/T-1/"):
        world.submit(OPERATOR, "balance:Report", share=plain(share))
    commit_private(world, "AuroraMSP", share_key("T-1", share.to), share)
    with pytest.raises(Conflict, match="AuroraMSP has committed to"):
        world.submit(
            OPERATOR, "balance:Report", share=plain(replace(share, net_wh=share.net_wh + 1))
        )
    world.submit(OPERATOR, "balance:Report", share=plain(share))
    with pytest.raises(Conflict, match="a published sum is never revised"):
        world.submit(OPERATOR, "balance:Report", share=plain(replace(share, late=1)))
    delivered = watch.delivered(feeder, 0)
    commit_private(world, "AuroraMSP", delivered_key("T-1", delivered.to), delivered)
    with pytest.raises(Conflict, match="BorealMSP has not published its sum of node T-1"):
        world.submit(OPERATOR, "balance:Close", delivered=plain(delivered))
    watch.report(feeder, 0)
    world.submit(OPERATOR, "balance:Close", delivered=plain(delivered))
    homes = world.evaluate(HOME, "balance:Homes", node_id="T-1", utility="BorealMSP", at=START)
    assert homes["connections"] == [f"CP-{home:02d}" for home in BOREAL_HOMES]
    again = world.simulate(OPERATOR, "balance:Close", {"delivered": plain(delivered)})
    assert again.value["balance"]["number"] == "1"
    later = plain(watch.delivered(feeder, 2))
    with pytest.raises(Conflict, match="periods follow each other"):
        world.submit(OPERATOR, "balance:Close", delivered=later)


def test_a_sum_must_be_of_all_homes_behind_the_node() -> None:
    watch, feeder = Watch(), Feeder(7)
    share = replace(watch.share(feeder, 0, "AuroraMSP"), homes=29)
    commit_private(watch.world, "AuroraMSP", share_key("T-1", share.to), share)
    watch.world.submit(OPERATOR, "balance:Report", share=plain(share))
    share = watch.share(feeder, 0, "BorealMSP")
    commit_private(watch.world, "BorealMSP", share_key("T-1", share.to), share)
    watch.world.submit(BOREAL_OPERATOR, "balance:Report", share=plain(share))
    delivered = watch.delivered(feeder, 0)
    commit_private(watch.world, "AuroraMSP", delivered_key("T-1", delivered.to), delivered)
    with pytest.raises(Conflict, match="has summed 29 homes behind node T-1, but meters 30"):
        watch.world.submit(OPERATOR, "balance:Close", delivered=plain(delivered))


def test_a_sum_that_would_show_a_home_is_not_published() -> None:
    assert hides_each([100] * 10)
    assert not hides_each([100] * 9)
    assert not hides_each([100] * 10 + [200])
    assert hides_each([100, -100] * 10), "what is exported counts by its size"
    assert not hides_each([])
    watch = Watch()
    share = replace(watch.share(Feeder(7), 0, "AuroraMSP"), public=False)
    with pytest.raises(Conflict, match="would show a home, so it is not published"):
        watch.world.submit(OPERATOR, "balance:Report", share=plain(share))


def test_sums_that_are_not_public_can_be_assessed_and_an_alert_declared() -> None:
    watch, feeder = Watch(), Feeder(7, tap=0.03)
    days = [
        {"delivered_wh": d.delivered_wh, "metered_wh": d.metered_wh, "square": d.square}
        for d in feeder.days
    ]
    answer = watch.world.evaluate(
        OPERATOR, "balance:Assess", training=days[:10], watched=days[10:13], no_load_w=150
    )
    finding = answer["finding"]
    assert (finding["first"], finding["last"]) == ("0", "2")
    assert int(finding["loss_ppm"]) == pytest.approx(30_000, rel=0.1)
    declared: dict[str, Any] = {
        "node_id": "T-1",
        "since": START,
        "until": START + 3 * DAY_S,
        "loss_wh": finding["loss_wh"],
        "confidence_ppm": finding["confidence_ppm"],
        "commitment": "ab" * 32,
    }
    alert = watch.world.submit(OPERATOR, "balance:Declare", **declared)
    assert (alert["basis"], alert["number"]) == ("declared", "1")
    assert watch.world.submit(OPERATOR, "balance:Declare", **declared) == alert
    with pytest.raises(Conflict, match="is closed before another"):
        watch.world.submit(OPERATOR, "balance:Declare", **{**declared, "commitment": "cd" * 32})
    with pytest.raises(Conflict, match="not on the ledger"):
        watch.world.evaluate(OPERATOR, "balance:Basis", node_id="T-1", number=1)


def test_a_utility_that_bills_more_than_it_delivered_is_seen() -> None:
    watch, feeder = Watch(), Feeder(7)
    watch.until(feeder, 3)
    world = watch.world
    delivered = sum(feeder.registers[day][home] for day in range(3) for home in AURORA_HOMES)
    period: dict[str, Any] = {"from": START, "to": START + 3 * DAY_S}
    with pytest.raises(NotFound, match="has not reported what it billed"):
        world.evaluate(HOME, "balance:Overselling", utility="AuroraMSP", **period)
    billed = {"utility": "AuroraMSP", **period, "net_wh": delivered * 102 // 100, "homes": 30}
    world.submit(OPERATOR, "balance:ReportBilled", billed=billed)
    with pytest.raises(Conflict, match="has reported other bills"):
        world.submit(OPERATOR, "balance:ReportBilled", billed={**billed, "homes": 31})
    seen = world.evaluate(HOME, "balance:Overselling", utility="AuroraMSP", **period)
    assert (seen["comparable"], seen["oversold"]) == (True, True)
    assert int(seen["excess_wh"]) == delivered * 102 // 100 - delivered

    days: dict[str, Any] = {"from": START, "to": START + 2 * DAY_S}
    two = sum(feeder.registers[day][home] for day in range(2) for home in AURORA_HOMES)
    world.submit(OPERATOR, "balance:ReportBilled", billed={**billed, **days, "net_wh": two})
    seen = world.evaluate(HOME, "balance:Overselling", utility="AuroraMSP", **days)
    assert (seen["excess_wh"], seen["oversold"]) == ("0", False)
    day: dict[str, Any] = {"from": START, "to": START + DAY_S}
    others = {**billed, **day, "net_wh": 10**9, "homes": 40}
    world.submit(OPERATOR, "balance:ReportBilled", billed=others)
    seen = world.evaluate(HOME, "balance:Overselling", utility="AuroraMSP", **day)
    assert (seen["comparable"], seen["oversold"]) == (False, False), "not the same homes"


BILLED = {"utility": "AuroraMSP", "from": START, "to": START + 1, "net_wh": 1, "homes": 10}
DECLARED = {
    "node_id": "T-1",
    "since": START,
    "until": START + DAY_S,
    "loss_wh": 1,
    "confidence_ppm": 1,
    "commitment": "ab" * 32,
}
NOTE = {"node_id": "T-1", "number": 1, "note": "x"}
SHARE = plain(Share("T-1", "AuroraMSP", START, START + DAY_S, 1, 10, 0, True, SALT, SALT))
DELIVERED = plain(Delivered("T-1", "AuroraMSP", START, START + DAY_S, 1, 1, SALT))
assert isinstance(SHARE, dict)
assert isinstance(DELIVERED, dict)


@pytest.mark.parametrize(
    ("caller", "function", "argument", "error", "message"),
    [
        (BOREAL_OPERATOR, "Report", {"share": SHARE}, Forbidden, "may not report sums"),
        (OPERATOR, "Report", {"share": {**SHARE, "homes": 501}}, InvalidArgument, "share.homes"),
        (OPERATOR, "Report", {"share": {**SHARE, "homes": 9}}, Conflict, "would show a home"),
        (OPERATOR, "Report", {"share": {**SHARE, "node_id": "T-9"}}, NotFound, "no transformer or"),
        (OPERATOR, "Report", {"share": {**SHARE, "net_wh": "NaN"}}, InvalidArgument, "an integer"),
        (OPERATOR, "Report", {"share": {**SHARE, "salt": "5A"}}, InvalidArgument, "share.salt"),
        (BOREAL_OPERATOR, "Close", {"delivered": DELIVERED}, Forbidden, "may not close balances"),
        (OPERATOR, "Close", {"delivered": DELIVERED}, NotFound, "has committed to no record"),
        (OPERATOR, "Close", {"delivered": {**DELIVERED, "utility": "BorealMSP"}},
         InvalidArgument, "delivered.utility is BorealMSP"),
        (BOREAL_OPERATOR, "Learn", {"node_id": "T-1", "first": 1, "last": 7}, Forbidden, "learn"),
        (HOME, "Homes", {"node_id": "T-9", "utility": "A", "at": 0}, NotFound, "no transformer"),
        (HOME, "Homes", {"node_id": "a/b", "utility": "A", "at": 0}, InvalidArgument, "node_id"),
        (HOME, "Homes", {"node_id": "T-1", "utility": "A", "at": 2**63}, ContractError, "2"),
        (OPERATOR, "Learn", {"node_id": "T-1", "first": 7, "last": 1}, InvalidArgument, "last is"),
        (OPERATOR, "Learn", {"node_id": "T-1", "first": 1, "last": 61}, InvalidArgument, "60"),
        (OPERATOR, "Learn", {"node_id": "T-1", "first": 1, "last": 7}, NotFound, "no balance 1"),
        (HOME, "Model", {"node_id": "T-1"}, NotFound, "has no model yet"),
        (HOME, "Periods", {"node_id": "T-9"}, NotFound, "no transformer or"),
        (HOME, "Periods", {"node_id": "T-1", "limit": 201}, InvalidArgument, "limit is 201"),
        (HOME, "Assess", {"training": [], "watched": []}, InvalidArgument, "7 are needed"),
        (HOME, "Declare", DECLARED, Forbidden, "may not declare alerts"),
        (OPERATOR, "Declare", {**DECLARED, "until": START}, InvalidArgument, "until is"),
        (OPERATOR, "Declare", {**DECLARED, "until": NOON + 1}, InvalidArgument, "until is"),
        (OPERATOR, "Declare", {**DECLARED, "commitment": "x"}, InvalidArgument, "commitment is"),
        (BOREAL_OPERATOR, "Acknowledge", NOTE, Forbidden, "may not follow alerts"),
        (OPERATOR, "Acknowledge", NOTE, NotFound, "node T-1 has no alert 1"),
        (OPERATOR, "Investigate", {**NOTE, "note": ""}, InvalidArgument, "note is"),
        (OPERATOR, "Conclude", {**NOTE, "outcome": "guilty"}, InvalidArgument, "outcome is"),
        (HOME, "Alerts", {"node_id": "T-9"}, NotFound, "no transformer or"),
        (HOME, "Basis", {"node_id": "T-1", "number": 1}, NotFound, "no alert 1"),
        (HOME, "ReportBilled", {"billed": BILLED}, Forbidden, "may not report"),
        (OPERATOR, "ReportBilled", {"billed": {**BILLED, "to": START}}, InvalidArgument, "after"),
        (OPERATOR, "ReportBilled", {"billed": {**BILLED, "homes": 9}}, InvalidArgument, "homes"),
        (HOME, "Overselling", {"utility": "A", "from": 0, "to": 1}, NotFound, "has not reported"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name_and_changes_nothing(
    caller: Creator,
    function: str,
    argument: dict[str, object],
    error: type[ContractError],
    message: str,
) -> None:
    world = Watch().world
    before = world.state.values()
    with pytest.raises(error, match=message):
        world.simulate(caller, f"balance:{function}", argument)
    assert world.state.values() == before
