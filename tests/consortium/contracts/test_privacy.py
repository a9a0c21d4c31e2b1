"""What is kept of a home: all of it in an export, and none of it after it was erased."""

import json
from typing import Any

import pytest

from consortium.chaincode.api import (
    Conflict,
    Creator,
    Forbidden,
    InvalidArgument,
    LimitExceeded,
    NotFound,
)
from consortium.contracts.common.clock import DAY_S, day_of
from consortium.ledger.state import Version, VersionedValue
from tests.consortium.contracts.billing_world import CONNECTION, billed_march
from tests.consortium.contracts.town import DAY, START, Town
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    HOME,
    OPERATOR,
    SUPPLIER,
    World,
    home,
    writes,
)

CORRECTABLE_S = 425 * DAY_S
FINAL_S = 14 * DAY_S
COLLECTION = "readings-AuroraMSP"


def town() -> Town:
    """Two homes with a settled day and a correction."""
    made = Town.of("CP-1", "CP-2")
    made.read_day({"CP-1": {48: (0, 1001)}, "CP-2": {48: (603, 0)}})
    made.read("CP-1", 48, 0, 1000)
    made.settle()
    return made


def exported(world: World, caller: Creator, function: str, name: str, limit: int) -> dict[str, Any]:
    """All pages of an export; each key comes once."""
    found: dict[str, Any] = {}
    bookmark = None
    while True:
        page = world.evaluate(caller, function, connection_id=name, limit=limit, bookmark=bookmark)
        assert len(page["records"]) <= limit
        for record in page["records"]:
            assert record["key"] not in found
            found[record["key"]] = record["value"]
        bookmark = page["bookmark"]
        if bookmark is None:
            return found


def private_keys(world: World) -> list[str]:
    return sorted(key for _, collection, key in world.state.private if collection == COLLECTION)


def purgeable(made: Town, name: str = "CP-1", caller: Creator = OPERATOR, **changed: object) -> Any:
    period = {"from_day": DAY, "to_day": "2026-11-24", **changed}
    return made.world.evaluate(caller, "privacy:Purgeable", connection_id=name, **period)


def purge(made: Town, keys: object, name: str = "CP-1", caller: Creator = OPERATOR) -> Any:
    return made.world.submit(
        caller,
        "privacy:Purge",
        connection_id=name,
        transient={"keys": json.dumps({"keys": keys}).encode()},
    )


# Export


def test_all_private_records_of_a_home_are_exported() -> None:
    made = town()
    world = made.world
    everything = exported(world, made.homes["CP-1"], "privacy:Export", "CP-1", 2_000)
    of_both = private_keys(world)
    assert sorted(everything) == [key for key in of_both if "CP-1" in key]
    assert everything[f"r/M-CP-1/{START + 48 * 900:012d}/2"]["export_wh"] == "1000"
    assert everything[f"str/{DAY}/provisional/CP-1"]["rows"][0]["export_wh"] == "1000"
    for limit in (1, 7, 96):
        paged = exported(world, OPERATOR, "privacy:Export", "CP-1", limit)
        assert paged == everything


def test_an_export_shows_a_home_its_own_time_alone() -> None:
    made = town()
    world = made.world
    begin = START + 40 * 900
    world.now = START + DAY_S
    for resident, start, end in (("ANN", 0, world.now + 900), ("BEN", world.now + 900, None)):
        world.submit(
            OPERATOR,
            "roles:MoveIn",
            **{"connection_id": "CP-1", "resident": resident, "from": start or begin},
        )
        if end is not None:
            world.submit(OPERATOR, "roles:MoveOut", connection_id="CP-1", at=end)
    world.now += 1800
    attributes = dict(made.homes["CP-1"].attributes)
    ann = Creator("AuroraMSP", b"", "ann", "client", {**attributes, "gridledger.resident": "ANN"})
    ben = Creator("AuroraMSP", b"", "ben", "client", {**attributes, "gridledger.resident": "BEN"})
    hers = exported(world, ann, "privacy:Export", "CP-1", 50)
    starts = sorted(int(key.split("/")[2]) for key in hers if key.startswith("r/"))
    assert starts[0] == begin
    assert len(hers) > 50
    assert exported(world, ben, "privacy:Export", "CP-1", 50) == {}


def test_a_bill_and_its_statement_are_exported() -> None:
    billing = billed_march()
    everything = exported(billing.world, HOME, "privacy:Export", CONNECTION, 500)
    assert {"bill/CP-0001/2019-03-01/1", "billsum/CP-0001/2019-03-01/1"} <= set(everything)


def test_every_public_record_of_a_home_is_exported() -> None:
    """Whatever key names the home is in the export, or repeats what is in it."""
    made = Town.of("CP-1", "CP-2", product=True)
    made.order("CP-1", "offer", 1000, 90_000, 50)
    made.order("CP-2", "bid", 500, 100_000, 50)
    made.clear(50)
    made.read_day({"CP-1": {50: (0, 800)}, "CP-2": {50: (500, 0)}})
    made.settle()
    billing = billed_march()
    repeats = ("st/", "clear/", "o/", "held/CP-2/", "held/SUPPLIER", "held/CLEARING", "agg/")
    for world, name, caller in (
        (made.world, "CP-1", made.homes["CP-1"]),
        (billing.world, CONNECTION, HOME),
    ):
        everything = exported(world, caller, "export:Home", name, 2_000)
        for namespace, key in world.state.public:
            if namespace == "energy" and name in key.split("/"):
                assert key in everything or key.startswith(repeats), key
        assert not any(key.split("/")[1] != name for key in everything if "c/" not in key)
        for limit in (1, 13):
            assert exported(world, OPERATOR, "export:Home", name, limit) == everything
        assert everything[f"connection/{name}"]["utility"] == "AuroraMSP"


def test_responses_are_exported_with_their_events() -> None:
    made = Town.of("CP-1", "CP-2")
    for event in ("E-1", "E-2", "E-3"):
        for key in (f"event/{event}", f"respond/{event}/CP-1"):
            made.world.state.public["energy", key] = VersionedValue(b"{}", b"", Version(1, 0))
    for limit in (1, 2, 50):
        found = exported(made.world, OPERATOR, "export:Home", "CP-1", limit)
        assert [key for key in found if key.startswith("respond/")] == [
            f"respond/E-{number}/CP-1" for number in (1, 2, 3)
        ]


def test_who_may_export() -> None:
    made = town()
    for function in ("privacy:Export", "export:Home"):
        for caller in (made.homes["CP-2"], BOREAL_OPERATOR, SUPPLIER, home("CP-1", "BorealMSP")):
            with pytest.raises(Forbidden, match="may not export what is kept of CP-1"):
                made.world.evaluate(caller, function, connection_id="CP-1")
        with pytest.raises(NotFound, match="connection CP-9 is not registered"):
            made.world.evaluate(OPERATOR, function, connection_id="CP-9")
        for wrong in ("CP/1", "cp-1", "", 7):
            with pytest.raises(InvalidArgument, match="connection_id is"):
                made.world.evaluate(OPERATOR, function, connection_id=wrong)
        for wrong in (0, 2_001):
            with pytest.raises(InvalidArgument, match="limit is"):
                made.world.evaluate(OPERATOR, function, connection_id="CP-1", limit=wrong)


# Erasing


def test_what_is_past_its_time_is_erased_and_its_commitment_stays() -> None:
    made = town()
    record = made.record("CP-1")
    assert purgeable(made) == {"connection_id": "CP-1", "keys": [], "more": False}
    made.world.now = START + DAY_S + CORRECTABLE_S + 2 * DAY_S
    others = [key for key in private_keys(made.world) if "CP-2" in key]
    keys: list[str] = []
    while True:
        found = purgeable(made, limit=40)
        keys += found["keys"]
        assert purge(made, sorted(found["keys"])) == {
            "connection_id": "CP-1",
            "erased": str(len(found["keys"])),
        }
        if not found["more"]:
            break
    # 96 intervals and a correction, which day has it, and the settled day in two records.
    assert len(keys) == 96 + 1 + 1 + 2
    assert private_keys(made.world) == others
    assert exported(made.world, OPERATOR, "privacy:Export", "CP-1", 100) == {}
    # Whoever kept the record can still show that it is the one that was posted.
    verified = made.world.evaluate(
        BOREAL_OPERATOR, "settlement:Verify", opened=record["opened"], summary=record["summary"]
    )
    assert (verified["committed"], verified["holds"]) == (True, True)
    explained = made.world.evaluate(
        made.homes["CP-1"], "oversight:Explain", kind="settlement", id=f"CP-1/{DAY}"
    )
    assert explained["agrees"] is None


def test_who_has_moved_out_is_forgotten_when_nothing_changes_any_more() -> None:
    made = town()
    world = made.world
    world.now = START + DAY_S
    begin = {"connection_id": "CP-1", "resident": "ANN", "from": START - 900}
    world.submit(OPERATOR, "roles:MoveIn", **begin)
    out = START + 2 * DAY_S
    world.submit(OPERATOR, "roles:MoveOut", connection_id="CP-1", at=out)
    key = f"r/M-CP-1/{START:012d}/1"
    world.now = out - 1
    with pytest.raises(Conflict, match="who lived there hasn't moved out"):
        purge(made, [key])
    world.now = START + FINAL_S - 1
    with pytest.raises(Conflict, match=f"becomes final at {day_of(START + FINAL_S)}T00:00:00Z"):
        purge(made, [key])
    world.now += 1
    purge(made, [key])
    world.now += 2 * DAY_S
    found = purgeable(made)["keys"]
    assert f"str/{DAY}/provisional/CP-1" in found
    assert f"v/M-CP-1/{DAY}" in found
    purge(made, sorted(found))
    assert not [one for one in private_keys(world) if "CP-1" in one]
    # CP-2's people live on.
    assert purgeable(made, "CP-2")["keys"] == []


def test_a_mark_of_protection_goes_with_the_people() -> None:
    made = town()
    world = made.world
    mark = {"connection_id": "CP-1", "kind": "medical", "until": 10**10, "salt": "1" * 64}
    world.submit(
        OPERATOR,
        "protection:Declare",
        utility="AuroraMSP",
        transient={"protections": json.dumps({"protections": [mark]}).encode()},
    )
    with pytest.raises(Conflict, match="protected/CP-1 may not be erased: somebody lives there"):
        purge(made, ["protected/CP-1"])
    world.submit(
        OPERATOR, "roles:MoveIn", **{"connection_id": "CP-1", "resident": "ANN", "from": START}
    )
    at = -(-world.now // 900) * 900
    world.submit(OPERATOR, "roles:MoveOut", connection_id="CP-1", at=at)
    world.now = at
    assert purgeable(made)["keys"] == ["protected/CP-1"]
    purge(made, ["protected/CP-1"])
    assert "protected/CP-1" not in private_keys(world)


def test_sums_of_several_homes_go_when_nobody_needs_them() -> None:
    made = town()
    for name, children in (("T-1", ["CP-1"]), ("T-2", ["CP-2"])):
        transformer = {"transformer_id": name, "utility": "AuroraMSP", "zone": "NORTH",
                       "rated_va": 400_000, "no_load_w": 150}  # fmt: skip
        made.world.submit(OPERATOR, "grid:RegisterTransformer", transformer=transformer)
        begin = {"connections": children, "from": -(-made.world.now // 900) * 900}
        made.world.submit(OPERATOR, "grid:Connect", transformer_id=name, **begin)
    assert made.world.evaluate(HOME, "grid:Above", connection_id="CP-1") == {"nodes": ["T-1"]}
    lines = [
        {"connection_id": name, "import_register_wh": "12345"} for name in ("CP-1", "CP-2", "CP-3")
    ]
    context, simulator = made.metering()
    key = f"feeder/T-1/{START}/lines"
    context.put_private(COLLECTION, key, json.dumps({"lines": lines, "salt": "1" * 64}).encode())
    assert made.world.state.commit(simulator.results()) == [0]
    own = exported(made.world, made.homes["CP-1"], "privacy:Export", "CP-1", 500)[key]
    others = exported(made.world, made.homes["CP-2"], "privacy:Export", "CP-2", 500)
    assert key not in others, "sums of other transformers aren't looked through"
    assert own == {"lines": [lines[0]], "salt": None}
    with pytest.raises(Conflict, match="others need it until"):
        purge(made, [key])
    made.world.now = START + CORRECTABLE_S
    assert key in purgeable(made)["keys"]
    purge(made, [key])
    assert key not in private_keys(made.world)


def test_what_can_not_be_erased() -> None:
    made = town()
    made.world.now = START + CORRECTABLE_S + 10 * DAY_S
    key = f"r/M-CP-1/{START:012d}/1"
    state = made.world.state.values()
    for caller in (made.homes["CP-1"], BOREAL_OPERATOR, SUPPLIER):
        with pytest.raises(Forbidden, match="may not erase what is kept of CP-1"):
            purge(made, [key], caller=caller)
        with pytest.raises(Forbidden, match="may not erase what is kept of CP-1"):
            purgeable(made, caller=caller)
    for other in (key.replace("CP-1", "CP-2"), f"st/{DAY}/final/CP-2", "bill/CP-2/2026-11-01/1"):
        with pytest.raises(InvalidArgument, match="is not of CP-1"):
            purge(made, [other])
    with pytest.raises(NotFound, match="meter M-NO is not registered"):
        purge(made, [key.replace("CP-1", "NO")])
    for keys in ([], [key, key], [key, f"g/M-CP-1/{START:012d}/1"]):
        with pytest.raises(InvalidArgument, match="keys must be in order, each once"):
            purge(made, keys)
    for wrong in ("settings", "r/../1", f"r/M-CP-1/{START}/1", f"{key}/x", 7, None, "place/P-1"):
        with pytest.raises(InvalidArgument, match=r"keys\[0\] is"):
            purge(made, [wrong])
    with pytest.raises(InvalidArgument, match="which is no day"):
        purge(made, ["str/2026-13-01/final/CP-1"])
    with pytest.raises(LimitExceeded, match="keys has 2001 items, but may have 2000"):
        purge(made, [key] * 2_001)
    with pytest.raises(InvalidArgument, match="transient data has no entry named keys"):
        made.world.submit(OPERATOR, "privacy:Purge", connection_id="CP-1")
    for period in (
        {"to_day": DAY},
        {"to_day": "2026-12-24"},
        {"from_day": "2026-11-25"},
        {"from_day": "2026-02-30"},
    ):
        with pytest.raises(InvalidArgument):
            purgeable(made, **period)
    assert made.world.state.values() == state
    answer = made.world.simulate(
        OPERATOR,
        "privacy:Purge",
        {"connection_id": "CP-1"},
        transient={"keys": json.dumps({"keys": [key]}).encode()},
    )
    assert writes(answer.results) == [f"{COLLECTION}:{key}"]
    assert answer.event is not None
    assert answer.event[0] == "erased"
