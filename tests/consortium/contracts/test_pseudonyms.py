"""Homes that trade under another name: their utility settles them, others can't tell who it was."""

import json
import re
from typing import Any

import pytest

from consortium.chaincode.api import (
    Conflict,
    Creator,
    Forbidden,
    InvalidArgument,
    LimitExceeded,
)
from consortium.contracts.common.clock import DAY_S
from consortium.contracts.meters.pseudonyms import together
from consortium.contracts.settlement.days import OpenDay
from tests.consortium.contracts.town import DAY, START, Town
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    OPERATOR,
    SUPPLIER,
    World,
    home,
    writes,
)

NAME = "X-7Q2K"
"""The pseudonym of CP-1, which sells."""
SALT = "ab" * 32
LINK = {
    "pseudonym": NAME,
    "connection_id": "CP-1",
    "from_day": DAY,
    "until_day": None,
    "salt": SALT,
}


def link(world: World, *links: object, caller: Creator = OPERATOR) -> Any:
    return world.submit(
        caller,
        "privacy:Link",
        utility="AuroraMSP",
        transient={"links": json.dumps({"links": links}).encode()},
    )


def town() -> Town:
    """CP-1 has sold 1,000 Wh under a pseudonym to CP-2; at noon it exports 1,300."""
    made = Town.of("CP-1", "CP-2", "CP-3", product=True)
    made.world.submit(
        OPERATOR,
        "registry:RegisterConnection",
        connection_id=NAME,
        utility="AuroraMSP",
        zone="NORTH",
        max_export_w=10_000,
        max_import_w=10_000,
    )
    made.world.submit(
        OPERATOR,
        "wallet:Deposit",
        account=NAME,
        amount_micro=10_000_000,
        bank_reference="IN-7Q2K",
    )
    made.homes[NAME] = home(NAME)  # as its market certificate says
    made.sweep(NAME)
    link(made.world, LINK)
    made.order(NAME, "offer", 1000, 90_000, 50)
    made.order("CP-2", "bid", 1000, 100_000, 50)
    made.clear(50)
    return made


def read(made: Town, energies: dict[str, dict[int, tuple[int, int]]]) -> None:
    """The homes' meters; the pseudonym has none."""
    for name in ("CP-1", "CP-2", "CP-3"):
        given = energies.get(name, {})
        made.read_intervals(name, {at: given.get(at, (0, 0)) for at in range(96)})


def moved(made: Town, before: dict[str, int]) -> dict[str, int]:
    after = made.world.money()
    assert sum(after.values()) == 0
    found = {name: amount - before.get(name, 0) for name, amount in after.items()}
    return {name: amount for name, amount in found.items() if amount}


def test_what_is_sold_under_a_pseudonym_is_delivered_by_its_home() -> None:
    made = town()
    read(made, {"CP-1": {50: (0, 1300)}, "CP-2": {50: (1000, 0)}})
    before = made.world.money()
    made.settle()
    # 1,000 at the auction's price under the one name, the other 300 at the base rate under the own.
    assert moved(made, before) == {
        NAME: 90_000,
        "CP-1": 15_000,
        "CP-2": -100_000,
        "GRID-AURORA": 10_000,
        "SUPPLIER-AURORA": -15_000,
    }
    posted = {
        name: made.world.evaluate(OPERATOR, "settlement:Posted", connection_id=name, day=DAY)
        for name in (NAME, "CP-1")
    }
    assert posted[NAME]["summary"]["export_wh"] == "1000"
    assert posted["CP-1"]["summary"]["export_wh"] == "300"
    rows = made.record("CP-1")["opened"]["rows"]
    assert [row["elsewhere"] for row in rows] == [{"import_wh": "0", "export_wh": "1000"}]
    (market,) = made.record(NAME)["opened"]["rows"]
    assert market["export_wh"] == "1000"


def test_what_is_not_delivered_is_the_pseudonyms_shortfall() -> None:
    made = town()
    read(made, {"CP-1": {50: (0, 800)}, "CP-2": {50: (1000, 0)}})
    before = made.world.money()
    made.settle()
    found = moved(made, before)
    assert found[NAME] == 90_000 - 70_000
    assert "CP-1" not in found
    assert found["BALANCE-AURORA"] == 70_000


def test_an_audit_and_an_opening_take_both_names_into_account() -> None:
    made = town()
    read(made, {"CP-1": {50: (0, 1300)}, "CP-2": {50: (1000, 0)}})
    made.settle()
    found = made.world.evaluate(
        OPERATOR,
        "daybook:Audit",
        utility="AuroraMSP",
        day=DAY,
        run="provisional",
        connections=sorted(made.homes),
    )
    assert [one["verdict"] for one in found] == ["agrees"] * 4
    for name in ("CP-1", NAME):
        opening = made.world.evaluate(
            made.homes[name],
            "daybook:Open",
            utility="AuroraMSP",
            day=DAY,
            run="provisional",
            connection_id=name,
            interval_start=START + 50 * 900,
        )
        checked = made.world.evaluate(BOREAL_OPERATOR, "challenge:Check", opening=opening)
        assert (checked["committed"], checked["holds"]) == (True, True)


def test_nothing_public_names_both() -> None:
    """No record on the channel has home and pseudonym together."""
    made = town()
    read(made, {"CP-1": {50: (0, 1300)}, "CP-2": {50: (1000, 0)}})
    made.settle()
    for (_, key), stored in made.world.state.public.items():
        text = f"{key} {stored.value.decode()}"
        names = re.findall(r"(?<![A-Z0-9-])(?:M-)?CP-1(?![0-9])", text)
        assert not (names and NAME in text), key
    answer = made.world.simulate(
        OPERATOR,
        "privacy:Link",
        {"utility": "AuroraMSP"},
        transient={"links": json.dumps({"links": [{**LINK, "until_day": "2026-12-01"}]}).encode()},
    )
    assert answer.value == {"utility": "AuroraMSP", "linked": "1"}
    assert writes(answer.results) == [f"readings-AuroraMSP:alias/{NAME}"]
    assert b"CP-1" not in answer.results.rwset


def test_its_own_utility_can_tell_and_others_can_not() -> None:
    made = town()
    ask = {"utility": "AuroraMSP", "pseudonym": NAME}
    for caller in (OPERATOR, made.homes[NAME]):
        assert made.world.evaluate(caller, "privacy:Linked", **ask) == LINK
    assert made.world.evaluate(OPERATOR, "privacy:Linked", **{**ask, "pseudonym": "CP-1"}) is None
    for stranger in (BOREAL_OPERATOR, made.homes["CP-2"], SUPPLIER, home(NAME, "BorealMSP")):
        with pytest.raises(Forbidden, match=f"may not see whose pseudonym {NAME} is"):
            made.world.evaluate(stranger, "privacy:Linked", **ask)
    # Under its market certificate it has its own orders and account, and not its home's.
    market = made.homes[NAME]
    assert made.world.evaluate(market, "book:Orders", connection_id=NAME)["orders"]
    with pytest.raises(Forbidden):
        made.world.evaluate(market, "book:Orders", connection_id="CP-1")
    with pytest.raises(Forbidden):
        made.world.evaluate(made.homes["CP-1"], "book:Orders", connection_id=NAME)


def test_a_pseudonym_is_settled_with_its_home_alone() -> None:
    made = town()
    read(made, {"CP-1": {50: (0, 1300)}, "CP-2": {50: (1000, 0)}})
    made.world.now = START + DAY_S
    with pytest.raises(Conflict, match="its home isn't settled with it"):
        made.commit("provisional", NAME, "CP-2")
    # Once the home is posted without it, nothing of it can be counted a second time.
    made.settle("provisional", "CP-1")
    with pytest.raises(Conflict, match="the last settlement of CP-1"):
        made.commit()


def test_a_pseudonym_ends() -> None:
    made = town()
    ended = {**LINK, "until_day": "2026-12-01"}
    link(made.world, ended)
    link(made.world, ended)
    for changed in (
        {**LINK, "until_day": "2026-12-02"},
        LINK,
        {**LINK, "connection_id": "CP-2"},
        {**LINK, "salt": "0" * 64},
        {**LINK, "from_day": "2026-11-01"},
    ):
        with pytest.raises(Conflict, match="is linked already"):
            link(made.world, changed)
    made.world.now = START + 30 * DAY_S
    with pytest.raises(Conflict, match=f"{NAME} is nobody's pseudonym on 2026-12-05"):
        made.commit("provisional", day="2026-12-05")
    # Who it was is erased when its last day can't be corrected any more.
    keys = json.dumps({"keys": [f"alias/{NAME}"]}).encode()
    with pytest.raises(Conflict, match="its days can be corrected until"):
        made.world.submit(OPERATOR, "privacy:Purge", connection_id=NAME, transient={"keys": keys})
    made.world.now = START + 450 * DAY_S
    period = {"from_day": "2027-01-01", "to_day": "2027-01-02"}
    found = made.world.evaluate(OPERATOR, "privacy:Purgeable", connection_id=NAME, **period)
    assert found["keys"] == [f"alias/{NAME}"]
    made.world.submit(OPERATOR, "privacy:Purge", connection_id=NAME, transient={"keys": keys})
    ask = {"utility": "AuroraMSP", "pseudonym": NAME}
    assert made.world.evaluate(OPERATOR, "privacy:Linked", **ask) is None


def test_what_is_no_link() -> None:
    made = Town.of("CP-1", "CP-2", NAME)
    state = made.world.state.values()
    for caller in (made.homes["CP-1"], BOREAL_OPERATOR, SUPPLIER):
        with pytest.raises(Forbidden, match="may not link pseudonyms of AuroraMSP"):
            link(made.world, LINK, caller=caller)
    for wrong in (
        {**LINK, "pseudonym": "X/1"},
        {**LINK, "pseudonym": "CP-1"},
        {**LINK, "connection_id": None},
        {**LINK, "from_day": "2026-13-01"},
        {**LINK, "from_day": 7},
        {**LINK, "until_day": DAY},
        {**LINK, "until_day": "2026-11-01"},
        {**LINK, "salt": "short"},
        {**LINK, "more": "1"},
        {name: value for name, value in LINK.items() if name != "salt"},
    ):
        with pytest.raises(InvalidArgument):
            link(made.world, wrong)
    with pytest.raises(InvalidArgument, match="in order of pseudonyms, each once"):
        link(made.world)
    with pytest.raises(InvalidArgument, match="in order of pseudonyms, each once"):
        link(made.world, LINK, LINK)
    with pytest.raises(InvalidArgument, match="must be the pseudonym of a home"):
        link(made.world, LINK, {**LINK, "pseudonym": "X-8", "connection_id": NAME})
    with pytest.raises(LimitExceeded, match="links has 501 items"):
        link(made.world, *[LINK] * 501)
    with pytest.raises(InvalidArgument, match="transient data has no entry named links"):
        made.world.submit(OPERATOR, "privacy:Link", utility="AuroraMSP")
    assert made.world.state.values() == state


def test_an_agent_settles_a_pseudonym_beside_its_home() -> None:
    made = town()
    read(made, {"CP-1": {50: (0, 1300)}, "CP-2": {50: (1000, 0)}})
    made.world.now = START + DAY_S

    def due() -> list[Any]:
        return list(made.world.evaluate(OPERATOR, "duties:Due"))

    (commit,) = due()
    assert commit["function"] == "daybook:Commit"
    assert commit["argument"]["connections"] == ["CP-1", "CP-2", "CP-3", NAME]
    made.world.submit(OPERATOR, commit["function"], frozen=True, **commit["argument"])
    (post,) = due()
    assert post["function"] == "settlement:Post"
    made.world.submit(OPERATOR, post["function"], frozen=True, **post["argument"])
    assert due() == []
    # One that was linked after its home was settled waits for the final run.
    made.world.now = START + 3 * DAY_S
    (commit,) = [one for one in due() if one["argument"]["run"] == "final"]
    assert NAME in commit["argument"]["connections"]


def test_parts_of_a_day_stay_as_large_as_they_were() -> None:
    made = town()
    names = ["CP-1", "CP-2", "CP-3"]
    for number in range(2, 4):
        link(
            made.world,
            {**LINK, "pseudonym": f"X-{number}", "connection_id": f"CP-{number}", "salt": "1" * 64},
        )
    context, _ = made.metering()

    def parts(shared: bool, *each: tuple[str, ...]) -> list[tuple[tuple[str, ...], dict[str, str]]]:
        days = [OpenDay(DAY, "provisional", START + DAY_S, START, shared, one) for one in each]
        return [(one.connections, homes) for one, homes in together(context, "AuroraMSP", days)]

    assert parts(False, ("CP-1", "CP-2"), ("CP-3", NAME)) == [
        (("CP-1", NAME), {NAME: "CP-1"}),
        (("CP-2",), {}),
        (("CP-3",), {}),
    ]
    assert parts(False, ("X-2", "X-3", NAME), tuple(names)) == [
        (("CP-1", NAME), {NAME: "CP-1"}),
        (("CP-2", "X-2"), {"X-2": "CP-2"}),
        (("CP-3", "X-3"), {"X-3": "CP-3"}),
    ]
    assert parts(True, ("CP-1", "CP-2"), (NAME, "X-2")) == [
        (("CP-1", "CP-2", "X-2", NAME), {NAME: "CP-1", "X-2": "CP-2"})
    ]
    assert parts(False, (NAME,)) == []
