"""Who plays which part at a connection, by date: never two at once, never back in time."""

import random
from itertools import pairwise
from typing import Any

import pytest

from consortium.chaincode.api import Conflict, ContractError, Forbidden, InvalidArgument, NotFound
from consortium.contracts.common import dated
from consortium.contracts.common.dated import Span
from consortium.contracts.registry.registry import connection_of
from consortium.contracts.registry.roles import is_participant, periods
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    BOREAL_SUPPLIER,
    CHANNEL,
    HOME,
    NOON,
    OPERATOR,
    OTHER_HOME,
    SUPPLIER,
    TestMeter,
    World,
    energy_world,
    writes,
)

DAY = 86_400
SOON = NOON + 2 * DAY
CP = {"connection_id": "CP-0001"}


def person(participant: str, utility: str = "AuroraMSP") -> Any:
    return type(HOME)(utility, b"", "p", "client", {"gridledger.participant": participant})


@pytest.fixture
def world() -> World:
    world = energy_world()
    kinds = ["supplier", "balance_responsible", "metering_operator"]
    participant(world, "BorealMSP", kinds, BOREAL_OPERATOR, "BorealMSP")
    return world


def participant(
    world: World, name: str, kinds: list[str], caller: Any = OPERATOR, utility: str = "AuroraMSP"
) -> Any:
    return world.submit(
        caller, "roles:RegisterParticipant", participant_id=name, utility=utility, name="A company",
        kinds=kinds,
    )  # fmt: skip


def parts(world: World, at: int) -> Any:
    return world.evaluate(HOME, "roles:Parts", **CP, at=at)


def context_of(world: World, caller: Any = OPERATOR) -> Any:
    from consortium.chaincode.executor import Invocation
    from consortium.chaincode.simulator import TransactionSimulator
    from tests.consortium.contracts.world import _Context

    invocation = Invocation("energy", CHANNEL, "0" * 64, world.now, caller, [], {})
    return _Context(invocation, TransactionSimulator(world.state, CHANNEL))


def test_spans_never_overlap_and_never_leave_the_past_changed() -> None:
    chance = random.Random(11)
    for _ in range(200):
        spans: tuple[Span, ...] = ()
        now = 0
        for _ in range(30):
            now += chance.randrange(3)
            before = [dated.holder_at(spans, at) for at in range(now)]
            at, holder = now + chance.randrange(-3, 8), chance.choice("ABC")
            try:
                match chance.randrange(3):
                    case 0:
                        spans = dated.begin(spans, "it", holder, at, now)
                    case 1:
                        spans = dated.finish(spans, "it", at, now)
                    case _:
                        spans = dated.cancel(spans, "it", at, now)
            except Conflict:
                pass
            assert [dated.holder_at(spans, at) for at in range(now)] == before
            for one, following in pairwise(spans):
                assert one.until is not None
                assert one.from_ < one.until <= following.from_


def test_a_utility_plays_all_parts_until_somebody_else_is_named(world: World) -> None:
    found = parts(world, NOON)
    assert found == {
        "connection_id": "CP-0001",
        "at": str(NOON),
        **dict.fromkeys(
            ("grid_operator", "metering_operator", "supplier", "balance_responsible"), "AuroraMSP"
        ),
        **dict.fromkeys(("home", "plant_operator", "trader", "aggregator")),
    }


def test_a_supplier_is_switched_in_mid_period(world: World) -> None:
    wanted = {**CP, "supplier": "BorealMSP", "from": SOON}
    world.submit(HOME, "roles:RequestSwitch", **wanted)
    assert not writes(world.simulate(HOME, "roles:RequestSwitch", wanted).results)
    assert world.evaluate(OTHER_HOME, "roles:Switch", **CP)["supplier"] == "BorealMSP"
    for caller in (SUPPLIER, OPERATOR, HOME):
        with pytest.raises(Forbidden, match="confirm the switch of CP-0001"):
            world.submit(caller, "roles:ConfirmSwitch", **CP, **{"from": SOON})
    answer = world.simulate(BOREAL_SUPPLIER, "roles:ConfirmSwitch", {**CP, "from": SOON})
    assert answer.event is not None
    assert answer.event[0] == "supplier_switch"
    world.state.commit(answer.results)
    assert world.evaluate(HOME, "roles:Switch", **CP) is None
    assert parts(world, SOON - 1)["supplier"] == "AuroraMSP"
    after = parts(world, SOON)
    assert (after["supplier"], after["balance_responsible"]) == ("BorealMSP", "BorealMSP")
    assert (after["grid_operator"], after["metering_operator"]) == ("AuroraMSP", "AuroraMSP")
    with pytest.raises(NotFound, match="has asked for no switch"):
        world.submit(BOREAL_SUPPLIER, "roles:ConfirmSwitch", **CP, **{"from": SOON})
    # Back again, which ends the other at the same instant.
    world.now = SOON + DAY
    back = {**CP, "from": SOON + 3 * DAY}
    world.submit(HOME, "roles:RequestSwitch", supplier="AuroraMSP", **back)
    spans = world.submit(OPERATOR, "roles:ConfirmSwitch", **back)
    assert [(span["holder"], span["until"]) for span in spans] == [
        ("BorealMSP", str(SOON + 3 * DAY)),
        ("AuroraMSP", None),
    ]
    cut = periods(context_of(world), connection_of(context_of(world), "CP-0001"),
                  "supplier", NOON, NOON + 30 * DAY)  # fmt: skip
    assert cut == [
        (NOON, SOON, "AuroraMSP"),
        (SOON, SOON + 3 * DAY, "BorealMSP"),
        (SOON + 3 * DAY, NOON + 30 * DAY, "AuroraMSP"),
    ]
    assert [holder for _, _, holder in periods(
        context_of(world), connection_of(context_of(world), "CP-0001"),
        "balance_responsible", NOON, NOON + 30 * DAY)] == [
        "AuroraMSP", "BorealMSP", "AuroraMSP"]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"from": NOON + DAY - 900}, Conflict, "24 hours ahead"),
        ({"from": NOON - 900}, Conflict, "24 hours ahead"),
        ({"from": NOON + 367 * DAY}, Conflict, "a supplier is switched between"),
        ({"from": SOON + 1}, InvalidArgument, "from is .* must be a multiple of 900"),
        ({"from": "tomorrow"}, InvalidArgument, "from is"),
        ({"from": str(2**63)}, InvalidArgument, "from is"),
        ({"supplier": "AuroraMSP"}, Conflict, "supplies CP-0001 at"),
        ({"supplier": "NobodyMSP"}, NotFound, "participant NobodyMSP is not registered"),
        ({"supplier": "Bo/real"}, InvalidArgument, "supplier is"),
        ({"supplier": "TRADER-1"}, Conflict, "registered as trader, and so can't be supplier"),
        ({"connection_id": "CP-0404"}, NotFound, "CP-0404 is not registered"),
        ({"connection_id": "CP/1"}, InvalidArgument, "connection_id"),
        ({"reason": "cheaper"}, InvalidArgument, "reason is not a field"),
    ],
)
def test_bad_switches_change_nothing(
    world: World, change: dict[str, Any], error: type[ContractError], sentence: str
) -> None:
    participant(world, "TRADER-1", ["trader"])
    before = world.state.values()
    with pytest.raises(error, match=sentence):
        world.submit(
            HOME, "roles:RequestSwitch", **{**CP, "supplier": "BorealMSP", "from": SOON, **change}
        )
    with pytest.raises(Forbidden, match="its home alone"):
        world.submit(OTHER_HOME, "roles:RequestSwitch", **CP, supplier="BorealMSP",
                     **{"from": SOON})  # fmt: skip
    assert world.state.values() == before


def test_a_switch_is_confirmed_in_time_or_not_at_all(world: World) -> None:
    world.submit(HOME, "roles:RequestSwitch", **CP, supplier="BorealMSP", **{"from": SOON})
    world.now = SOON - DAY + 1
    with pytest.raises(Conflict, match="24 hours ahead"):
        world.submit(BOREAL_SUPPLIER, "roles:ConfirmSwitch", **CP, **{"from": SOON})


def test_a_switch_is_taken_back_before_it_comes_into_effect(world: World) -> None:
    switch = {**CP, "from": SOON}
    with pytest.raises(NotFound, match="has no switch at"):
        world.submit(HOME, "roles:CancelSwitch", **switch)
    world.submit(HOME, "roles:RequestSwitch", supplier="BorealMSP", **switch)
    with pytest.raises(Forbidden, match="its home and BorealMSP may"):
        world.submit(SUPPLIER, "roles:CancelSwitch", **switch)
    world.submit(HOME, "roles:CancelSwitch", **switch)
    assert world.evaluate(HOME, "roles:Switch", **CP) is None
    world.submit(HOME, "roles:RequestSwitch", supplier="BorealMSP", **switch)
    world.submit(BOREAL_SUPPLIER, "roles:ConfirmSwitch", **switch)
    assert world.submit(BOREAL_SUPPLIER, "roles:CancelSwitch", **switch) == []
    assert parts(world, SOON)["supplier"] == "AuroraMSP"
    world.submit(HOME, "roles:RequestSwitch", supplier="BorealMSP", **switch)
    world.submit(BOREAL_SUPPLIER, "roles:ConfirmSwitch", **switch)
    world.now = SOON + 1
    with pytest.raises(Conflict, match="never changes back in time"):
        world.submit(HOME, "roles:CancelSwitch", **switch)


def test_people_move_in_and_out(world: World) -> None:
    move = {**CP, "from": NOON - 400 * DAY}
    for caller in (HOME, BOREAL_OPERATOR, SUPPLIER):
        with pytest.raises(Forbidden, match="enter moves at CP-0001"):
            world.submit(caller, "roles:MoveIn", resident="R-1", **move)
    world.submit(OPERATOR, "roles:MoveIn", resident="R-1", **move)
    assert not writes(world.simulate(OPERATOR, "roles:MoveIn", {**move, "resident": "R-1"}).results)
    with pytest.raises(Conflict, match="roles:MoveOut comes first"):
        world.submit(OPERATOR, "roles:MoveIn", resident="R-2", **CP, **{"from": SOON})
    with pytest.raises(Conflict, match="never changes back in time"):
        world.submit(OPERATOR, "roles:MoveOut", at=NOON - 900, **CP)
    world.submit(HOME, "roles:RequestSwitch", **CP, supplier="BorealMSP", **{"from": SOON})
    world.submit(OPERATOR, "roles:MoveOut", at=SOON, **CP)
    assert world.evaluate(HOME, "roles:Switch", **CP) is None
    with pytest.raises(Conflict, match="roles:MoveOut comes first"):
        world.submit(OPERATOR, "roles:MoveIn", resident="R-2", **CP, **{"from": SOON - 900})
    world.submit(OPERATOR, "roles:MoveIn", resident="R-2", **CP, **{"from": SOON + DAY})
    homes = [parts(world, at)["home"] for at in (NOON, SOON - 1, SOON, SOON + DAY)]
    assert homes == ["R-1", "R-1", None, "R-2"]
    history = world.evaluate(HOME, "roles:History", **CP, role="home")
    assert [span["holder"] for span in history] == ["R-1", "R-2"]
    for change in ({"resident": "Jane Doe"}, {"resident": "R/1"}, {"from": SOON + 1}):
        with pytest.raises(InvalidArgument):
            world.submit(OPERATOR, "roles:MoveIn", **{**move, "resident": "R-3", **change})


def test_parts_are_named_by_whom_they_concern(world: World) -> None:
    participant(world, "TRADER-1", ["trader", "aggregator"])

    def assign(caller: Any, role: str, holder: str, from_: int = SOON) -> Any:
        fields = {**CP, "role": role, "holder": holder, "from": from_}
        return world.submit(caller, "roles:Assign", **fields)

    assign(OPERATOR, "metering_operator", "BorealMSP")
    assign(HOME, "trader", "TRADER-1")
    assign(OPERATOR, "balance_responsible", "BorealMSP")
    for caller, role in (
        (HOME, "metering_operator"),
        (BOREAL_OPERATOR, "grid_operator"),
        (SUPPLIER, "grid_operator"),
        (OPERATOR, "trader"),
        (OTHER_HOME, "trader"),
    ):
        with pytest.raises(Forbidden, match=f"may not name the {role} at CP-0001"):
            assign(caller, role, "AuroraMSP", SOON + DAY)
    with pytest.raises(Conflict, match="can't be grid_operator"):
        assign(OPERATOR, "grid_operator", "BorealMSP")
    with pytest.raises(Conflict, match="never changes back in time"):
        assign(HOME, "aggregator", "TRADER-1", NOON - 900)
    with pytest.raises(InvalidArgument, match="role"):
        assign(HOME, "supplier", "BorealMSP")
    with pytest.raises(InvalidArgument, match="role"):
        assign(HOME, "home", "R-1")
    with pytest.raises(Conflict, match="spans never overlap"):
        assign(HOME, "trader", "TRADER-1", SOON - 900)
    found = parts(world, SOON)
    assert (found["metering_operator"], found["trader"]) == ("BorealMSP", "TRADER-1")
    ended = world.submit(HOME, "roles:End", **CP, role="trader", at=SOON + DAY)
    assert ended[-1]["until"] == str(SOON + DAY)
    assert parts(world, SOON + DAY)["trader"] is None
    with pytest.raises(Conflict, match="has no holder that could end"):
        world.submit(HOME, "roles:End", **CP, role="trader", at=SOON + 2 * DAY)


def test_participants_are_admitted_and_ended(world: World) -> None:
    for caller in (HOME, BOREAL_OPERATOR, SUPPLIER):
        with pytest.raises(Forbidden, match="register participants of AuroraMSP"):
            participant(world, "REG-1", ["trader"], caller)
    participant(world, "REG-1", ["trader", "aggregator"])
    with pytest.raises(Conflict, match="participant REG-1 is of AuroraMSP"):
        participant(world, "REG-1", ["trader"], BOREAL_OPERATOR, "BorealMSP")
    for name, kinds in (
        ("reg 1", ["trader"]),
        ("Reg-1", ["trader"]),
        ("BorealMSP", ["supplier"]),
        ("REG-2", []),
        ("REG-2", ["trader", "trader"]),
        ("REG-2", ["king"]),
        ("REG-2", ["regulator"]),
        ("REG-2", ["auditor"]),
    ):
        with pytest.raises(InvalidArgument):
            participant(world, name, kinds)
    company = person("REG-1")
    assert is_participant(context_of(world), company, "trader", NOON)
    assert not is_participant(context_of(world), company, "supplier", NOON)
    assert not is_participant(context_of(world), person("REG-1", "BorealMSP"), "trader", NOON)
    assert not is_participant(context_of(world), HOME, "trader", NOON)
    with pytest.raises(Conflict, match="what a company did stays valid"):
        world.submit(OPERATOR, "roles:EndParticipant", participant_id="REG-1", at=NOON - 1)
    world.submit(OPERATOR, "roles:EndParticipant", participant_id="REG-1", at=SOON)
    assert is_participant(context_of(world), company, "trader", SOON - 1)
    assert not is_participant(context_of(world), company, "trader", SOON)
    with pytest.raises(NotFound):
        world.submit(OPERATOR, "roles:EndParticipant", participant_id="REG-9", at=SOON)
    with pytest.raises(NotFound, match="see roles:RegisterParticipant"):
        world.evaluate(HOME, "roles:Participant", participant_id="REG-9")


def test_moves_and_switches_of_many_homes_do_not_conflict(world: World) -> None:
    world.submit(OPERATOR, "registry:RegisterConnection", connection_id="CP-0003",
                 utility="AuroraMSP", zone="NORTH", max_export_w=1, max_import_w=1)  # fmt: skip
    answers = [
        world.simulate(OPERATOR, "roles:MoveIn", {"connection_id": name, "resident": "R-1",
                                                  "from": NOON}).results
        for name in ("CP-0002", "CP-0003")
    ]  # fmt: skip
    wanted = {**CP, "supplier": "BorealMSP", "from": SOON}
    answers.append(world.simulate(HOME, "roles:RequestSwitch", wanted).results)
    assert world.state.commit(*answers) == [0, 0, 0]


def test_meters_are_registered_by_who_operates_the_metering(world: World) -> None:
    key = TestMeter().public_key

    def register(caller: Any, utility: str, meter_id: str, installed_at: int = 0) -> Any:
        return world.submit(
            caller,
            "metering:RegisterMeter",
            **CP,
            meter_id=meter_id,
            utility=utility,
            source_class="accredited",
            public_key=key,
            installed_at=installed_at,
        )

    world.submit(ADMIN, "metering:Configure")
    assert register(OPERATOR, "AuroraMSP", "M-1")["utility"] == "AuroraMSP"
    with pytest.raises(Conflict, match="connection CP-0001 is AuroraMSP's, not BorealMSP's"):
        register(BOREAL_OPERATOR, "BorealMSP", "M-2")
    world.submit(
        OPERATOR, "roles:Assign", **CP, role="metering_operator", holder="BorealMSP",
        **{"from": SOON},
    )  # fmt: skip
    assert register(BOREAL_OPERATOR, "BorealMSP", "M-2", SOON)["utility"] == "BorealMSP"
    with pytest.raises(Conflict, match="connection CP-0001 is BorealMSP's, not AuroraMSP's"):
        register(OPERATOR, "AuroraMSP", "M-3", SOON)
    assert register(OPERATOR, "AuroraMSP", "M-3", SOON - 900)["utility"] == "AuroraMSP"
    world.now = SOON
    for installed_at in (0, NOON, SOON, SOON + 900):
        with pytest.raises(Conflict, match="connection CP-0001 is BorealMSP's, not AuroraMSP's"):
            register(OPERATOR, "AuroraMSP", "M-4", installed_at)
    state = world.state.values()
    assert register(OPERATOR, "AuroraMSP", "M-1")["meter_id"] == "M-1"  # again changes nothing
    assert world.state.values() == state
    assert register(BOREAL_OPERATOR, "BorealMSP", "M-4")["utility"] == "BorealMSP"
