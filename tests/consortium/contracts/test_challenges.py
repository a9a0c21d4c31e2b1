"""What a utility settles alone can be checked by others: audits, openings, challenges."""

import copy
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
    canonical_json,
    sha256_hex,
    stored_record,
)
from consortium.contracts.common import commitments
from consortium.contracts.common.clock import DAY_S
from consortium.contracts.common.trees import leaf_hash, path, root, root_by_path
from consortium.contracts.settlement.days import DayInputs, Rows, tree_of
from tests.consortium.contracts.billing_world import CONNECTION, BillingWorld, billed_march
from tests.consortium.contracts.town import DAY, START, Town, final_time
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    HOME,
    OPERATOR,
    OTHER_HOME,
    SUPPLIER,
    World,
    oversee,
    writes,
)

AUDITOR = Creator("AuroraMSP", b"", "ada", "client", {})
NOON = START + 48 * 900


def town(**terms: object) -> Town:
    """Two homes that import a little in each interval, and export at noon."""
    made = Town.of("CP-1", "CP-2", terms=terms)
    made.read_day(
        {
            "CP-1": {at: (100 + at, 0) for at in range(96)} | {48: (0, 1001)},
            "CP-2": {48: (603, 0)},
        }
    )
    oversee(made.world, AUDITOR, "auditor")
    return made


def inputs_of(made: Town, *names: str) -> DayInputs:
    answer = made.world.evaluate(
        OPERATOR,
        "settlement:Inputs",
        utility="AuroraMSP",
        day=DAY,
        connections=sorted(names or made.homes),
    )
    return stored_record(DayInputs, canonical_json(answer))


def commit_instead(made: Town, name: str, record: dict[str, Any]) -> None:
    """What a utility can do whose peer runs other code: commit to another day, well-formed."""
    opened, summary = record["opened"], record["summary"]
    rows = stored_record(Rows, canonical_json(opened))
    summary["rows"] = sha256_hex(canonical_json(opened))
    summary["tree"] = tree_of(inputs_of(made), rows)
    context, simulator = made.metering()
    commitments.put(context, "AuroraMSP", f"str/{DAY}/{opened['run']}/{name}", opened)
    commitments.put(context, "AuroraMSP", f"st/{DAY}/{opened['run']}/{name}", summary)
    assert made.world.state.commit(simulator.results()) == [0]


def add_a_micro(record: dict[str, Any], index: int = 10, micro: int = 1) -> None:
    """Alter one line, and the sum with it."""
    line = record["opened"]["rows"][index]["lines"][0]
    line["amount_micro"] = str(int(line["amount_micro"]) - micro)
    (total,) = [one for one in record["summary"]["sums"] if one["kind"] == line["kind"]]
    total["amount_micro"] = str(int(total["amount_micro"]) - micro)


def audit(made: Town, caller: Creator = AUDITOR, run: str = "provisional") -> Any:
    found = made.world.evaluate(
        caller,
        "daybook:Audit",
        utility="AuroraMSP",
        day=DAY,
        run=run,
        connections=sorted(made.homes),
    )
    return {one["connection_id"]: one for one in found}


def opening(made: Town, name: str, start: int, caller: Creator | None = None) -> Any:
    return made.world.evaluate(
        caller or made.homes[name],
        "daybook:Open",
        utility="AuroraMSP",
        day=DAY,
        run="provisional",
        connection_id=name,
        interval_start=start,
    )


def check(made: Town, opened: object, caller: Creator = BOREAL_OPERATOR) -> Any:
    return made.world.evaluate(caller, "challenge:Check", opening=opened)


# The tree


def test_each_leaf_proves_itself_and_nothing_else() -> None:
    for count in (1, 2, 3, 4, 5, 7, 8, 96, 100):
        leaves = [leaf_hash(str(number).encode()) for number in range(count)]
        whole = root(leaves)
        for index in range(count):
            beside = path(leaves, index)
            assert root_by_path(leaves[index], index, count, beside) == whole
            if count > 1:
                other = (index + 1) % count
                assert root_by_path(leaves[other], index, count, beside) != whole
                with pytest.raises(InvalidArgument, match="path has"):
                    root_by_path(leaves[index], index, count, (*beside, whole))
        with pytest.raises(InvalidArgument, match=f"index is {count}, but the tree has {count}"):
            root_by_path(whole, count, count, ())


# Auditing


def test_an_audit_agrees_with_an_honest_day() -> None:
    made = town()
    made.settle()
    for caller in (AUDITOR, OPERATOR):
        for found in audit(made, caller).values():
            assert (found["verdict"], found["findings"], found["changed"]) == ("agrees", [], [])


def test_a_day_altered_by_one_micro_is_named() -> None:
    """It is within what 96 roundings may come to, so it can be posted; not so unseen."""
    made = town()
    made.world.now = START + DAY_S
    made.commit()
    record = made.record("CP-1")
    add_a_micro(record)
    commit_instead(made, "CP-1", record)
    made.post()

    found = audit(made)
    assert found["CP-2"]["verdict"] == "agrees"
    assert found["CP-1"]["verdict"] == "altered"
    (line,) = found["CP-1"]["findings"]
    assert (line["interval_start"], line["kind"]) == (str(START + 10 * 900), "import")
    assert (line["counterparty"], line["off_by_micro"]) == ("SUPPLIER-AURORA", "-1")
    assert line["expected"] == "110 Wh at 300000: -33000 micro-units"

    # The home shows that interval alone, and every member's peer comes to the same.
    opened = opening(made, "CP-1", START + 10 * 900)
    answer = made.world.simulate(
        made.homes["CP-1"],
        "challenge:Raise",
        {},
        transient={"opening": json.dumps(opened).encode()},
    )
    assert writes(answer.results) == [
        f"challenge/CP-1/settlement/{DAY}/provisional",
        f"challenged/AuroraMSP/CP-1/settlement/{DAY}/provisional",
    ]
    raised = answer.value
    assert raised["utility"] == "AuroraMSP"
    assert raised["difference"] == {
        "interval_start": str(START + 10 * 900),
        "kind": "import",
        "name": "SUPPLIER-AURORA",
        "off_by_micro": "-1",
    }
    assert "110" not in json.dumps(raised["difference"])  # no energy becomes public
    assert answer.event == ("challenge", raised)


def test_what_readings_have_changed_since_is_no_alteration() -> None:
    made = town()
    made.settle()
    made.read("CP-1", 20, 7)
    found = audit(made)["CP-1"]
    assert (found["verdict"], found["findings"]) == ("changed_since", [])
    assert found["changed"] == [str(START + 20 * 900)]
    made.world.now = final_time()
    made.settle("final")
    assert audit(made, run="final")["CP-1"]["verdict"] == "agrees"


def test_energy_that_nobody_read_is_named_whatever_salt_it_has() -> None:
    made = town()
    made.world.now = START + DAY_S
    made.commit()
    honest = made.record("CP-1")
    for salt in (honest["opened"]["salt"], "5" * 64):
        record = copy.deepcopy(honest)
        record["opened"]["salt"] = salt
        row = record["opened"]["rows"][10]
        row["import_wh"] = row["lines"][0]["energy_wh"] = "111"
        row["lines"][0]["amount_micro"] = "-33300"
        record["summary"]["import_wh"] = str(int(record["summary"]["import_wh"]) + 1)
        for one in record["summary"]["sums"]:
            if one["kind"] == "import":
                one["energy_wh"] = str(int(one["energy_wh"]) + 1)
                one["amount_micro"] = str(int(one["amount_micro"]) - 300)
        commit_instead(made, "CP-1", record)
        found = audit(made)["CP-1"]
        assert found["verdict"] == "altered"
        assert [(one["interval_start"], one["kind"]) for one in found["findings"]] == [
            (str(START + 10 * 900), "reading")
        ]
        # The home, too: its signed reading is held by the utility itself.
        opened = opening(made, "CP-1", START + 10 * 900)
        difference = check(made, opened)["difference"]
        assert (difference["kind"], difference["counterparty"]) == ("reading", "M-CP-1")
        assert difference["expected"] == "110 Wh imported, 0 Wh exported"


def test_other_totals_and_tokens_are_named() -> None:
    made = town()
    made.world.now = START + DAY_S
    made.commit()
    honest = made.record("CP-1")
    record = copy.deepcopy(honest)
    record["summary"]["estimated"] = "3"
    commit_instead(made, "CP-1", record)
    assert [one["kind"] for one in audit(made)["CP-1"]["findings"]] == ["total"]
    record = copy.deepcopy(honest)
    record["opened"]["rows"][48]["tokens"][0]["holder"] = "CP-2"
    commit_instead(made, "CP-1", record)
    assert audit(made)["CP-1"]["findings"][0]["kind"] == "tokens"


def test_who_may_audit() -> None:
    made = town()
    made.settle()
    for caller in (BOREAL_OPERATOR, made.homes["CP-1"], SUPPLIER):
        with pytest.raises(Forbidden, match="may not audit days of AuroraMSP"):
            audit(made, caller)
    with pytest.raises(NotFound, match="AuroraMSP has no final settlement of CP-1"):
        audit(made, run="final")
    with pytest.raises(InvalidArgument, match="run is"):
        audit(made, run="last")
    with pytest.raises(Conflict, match="is metered by AuroraMSP, not by BorealMSP"):
        made.world.evaluate(
            AUDITOR,
            "daybook:Audit",
            utility="BorealMSP",
            day=DAY,
            run="provisional",
            connections=["CP-1"],
        )


# Opening


def test_one_interval_is_opened_and_nothing_else_of_the_day() -> None:
    made = town()
    made.settle()
    opened = opening(made, "CP-1", NOON)
    found = check(made, opened)
    assert (found["committed"], found["holds"], found["difference"]) == (True, True, None)
    (window,) = opened["windows"]
    assert [row["interval_start"] for row in window["rows"]] == [str(NOON)]
    assert [one["interval_start"] for one in opened["readings"]] == [str(NOON)]
    # Neither the day's salt nor another row's content is in it.
    record = made.record("CP-1")
    assert record["opened"]["salt"] not in json.dumps(opened)
    salts = {opening(made, "CP-1", START + at * 900)["windows"][0]["salt"] for at in range(4)}
    assert len(salts | {window["salt"]}) == 5
    shown = json.dumps(opened["windows"])
    assert not any(f'"{100 + at}"' in shown for at in range(96))


def test_an_opening_that_was_tampered_with_is_not_the_committed_one() -> None:
    made = town()
    made.settle()
    honest = opening(made, "CP-1", NOON)

    def tampered(change: Any) -> Any:
        opened = copy.deepcopy(honest)
        change(opened)
        return check(made, opened)["committed"]

    assert tampered(lambda one: None)
    window = "windows"
    assert not tampered(lambda one: one[window][0].update(salt="0" * 64))
    assert not tampered(lambda one: one[window][0]["rows"][0].update(export_wh="1002"))
    assert not tampered(lambda one: one[window][0].update(path=one[window][0]["path"][::-1]))
    assert not tampered(lambda one: one["summary"].update(import_wh="1"))
    assert not tampered(lambda one: one["summary"].update(tree="0" * 64))
    with pytest.raises(InvalidArgument, match=r"path has 6 hashes, but"):
        tampered(lambda one: one[window][0]["path"].pop())
    with pytest.raises(InvalidArgument, match="index is 96, but the tree has 96 leaves"):
        tampered(lambda one: one[window][0].update(index="96"))
    with pytest.raises(InvalidArgument, match="must be the intervals of one netting window"):
        tampered(lambda one: one[window][0]["rows"][0].update(interval_start=str(NOON + 1)))
    with pytest.raises(InvalidArgument, match="windows is empty"):
        tampered(lambda one: one.update(windows=[]))
    with pytest.raises(InvalidArgument, match="in order, each once"):
        tampered(lambda one: one.update(windows=one[window] * 2))
    with pytest.raises(InvalidArgument, match="of one tree: count differs"):
        tampered(
            lambda one: one.update(
                windows=[*one[window], {**one[window][0], "index": "60", "count": "95"}]
            )
        )
    with pytest.raises(InvalidArgument, match="which isn't opened"):
        tampered(lambda one: one.update(readings=opening(made, "CP-1", NOON + 900)["readings"]))
    with pytest.raises(Conflict, match="is not the one that AuroraMSP holds"):
        tampered(lambda one: one["readings"][0].update(import_wh="9"))
    with pytest.raises(LimitExceeded, match=r"opening.readings has 201 items"):
        tampered(lambda one: one.update(readings=one["readings"] * 201))


def test_who_may_open_and_what() -> None:
    made = town()
    made.settle()
    assert opening(made, "CP-1", NOON, OPERATOR) == opening(made, "CP-1", NOON)
    for caller in (made.homes["CP-2"], BOREAL_OPERATOR, AUDITOR):
        with pytest.raises(Forbidden, match="may not read the days of CP-1"):
            opening(made, "CP-1", NOON, caller)
    for start in (START - 900, START + DAY_S, NOON + 1):
        with pytest.raises(InvalidArgument, match=f"interval_start is {start}, but must be"):
            opening(made, "CP-1", start)
    with pytest.raises(NotFound, match="CP-2 had neither energy nor trades at"):
        opening(made, "CP-2", START)


def test_a_netting_window_is_opened_as_a_whole() -> None:
    """Its rest is priced in its last interval, so no less than that can be computed again."""
    made = town(netting_intervals=4)
    made.settle()
    opened = opening(made, "CP-1", NOON)
    assert [row["interval_start"] for row in opened["windows"][0]["rows"]] == [
        str(NOON + at * 900) for at in range(4)
    ]
    found = check(made, opened)
    assert (found["committed"], found["holds"]) == (True, True)


def test_a_member_of_a_community_opens_its_interval() -> None:
    made = Town.of("CP-1", "CP-2")
    made.found_community("SUN", 123_457)
    made.world.now = START
    for name in made.homes:
        made.world.submit(
            made.homes[name],
            "sharing:Join",
            community="SUN",
            connection_id=name,
            from_day="2026-11-24",
        )
    day = "2026-11-24"
    made.read_day({"CP-1": {48: (0, 1001)}, "CP-2": {48: (603, 0)}}, day)
    made.settle(day=day)
    start = NOON + 2 * DAY_S
    opened = made.world.evaluate(
        made.homes["CP-2"],
        "daybook:Open",
        utility="AuroraMSP",
        day=day,
        run="provisional",
        connection_id="CP-2",
        interval_start=start,
    )
    assert {line["kind"] for line in opened["windows"][0]["rows"][0]["lines"]} == {"taken"}
    assert check(made, opened)["holds"]
    together = made.world.evaluate(HOME, "sharing:Together", connection_id="CP-1", day=day)
    assert together == {"connections": ["CP-1", "CP-2"]}
    with pytest.raises(NotFound, match="connection NO is not registered"):
        made.world.evaluate(HOME, "sharing:Together", connection_id="NO", day=day)


# Challenging


def raise_(made: Town, opened: object, caller: Creator = BOREAL_OPERATOR) -> Any:
    return made.world.submit(
        caller,
        "challenge:Raise",
        transient={"opening": json.dumps(opened).encode()},
        frozen=True,  # what was traded for a day that is over, as for posting it
    )


def test_a_challenge_stands_once_and_is_everybodys_to_see() -> None:
    made = town()
    made.world.now = START + DAY_S
    made.commit()
    record = made.record("CP-1")
    add_a_micro(record, 10)
    add_a_micro(record, 11)
    commit_instead(made, "CP-1", record)
    first = raise_(made, opening(made, "CP-1", START + 10 * 900))
    state = made.world.state.values()
    assert raise_(made, opening(made, "CP-1", START + 11 * 900)) == first
    assert made.world.state.values() == state
    found = made.world.evaluate(BOREAL_OPERATOR, "challenge:List", connection_id="CP-1")
    assert found == {"challenges": [first], "bookmark": None}
    assert (first["raised_by"], first["of"], first["run"]) == (
        "BorealMSP",
        "settlement",
        "provisional",
    )
    with pytest.raises(NotFound, match="connection NO is not registered"):
        made.world.evaluate(HOME, "challenge:List", connection_id="NO")


def test_sums_that_are_not_their_lines_are_named_by_the_whole_day() -> None:
    made = town()
    made.world.now = START + DAY_S
    made.commit()
    record = made.record("CP-1")
    record["summary"]["sums"][1]["amount_micro"] = str(
        int(record["summary"]["sums"][1]["amount_micro"]) - 1
    )
    commit_instead(made, "CP-1", record)
    parts = [opening(made, "CP-1", START + at * 900) for at in range(96)]
    whole = {
        "summary": parts[0]["summary"],
        "windows": [one["windows"][0] for one in parts],
        "readings": [],
    }
    raised = raise_(made, whole)
    assert (raised["difference"]["interval_start"], raised["difference"]["kind"]) == (
        None,
        record["summary"]["sums"][1]["kind"],
    )
    assert raised["difference"]["off_by_micro"] == "-1"


def test_what_can_not_be_challenged() -> None:
    made = town()
    made.settle()
    honest = opening(made, "CP-1", NOON)
    state = made.world.state.values()
    with pytest.raises(Conflict, match="holds as far as it was opened; there is nothing to"):
        raise_(made, honest)
    altered = copy.deepcopy(honest)
    altered["windows"][0]["rows"][0]["lines"][0]["amount_micro"] = "1"
    with pytest.raises(Conflict, match="is not the one that AuroraMSP has committed to"):
        raise_(made, altered)
    with pytest.raises(InvalidArgument, match="transient data has no entry named opening"):
        made.world.submit(HOME, "challenge:Raise")
    for raw, sentence in (
        (b"{", "opening is not JSON"),
        (b"{}", "summary is missing"),
        (b'{"summary":1.5}', "is not an integer"),
    ):
        with pytest.raises(InvalidArgument, match=sentence):
            made.world.submit(HOME, "challenge:Raise", transient={"opening": raw})
    for field, wrong in (
        ("connection_id", "CP/1"),
        ("import_wh", "-1"),
        ("import_wh", str(2**63)),
        ("day", "2026-13-01"),
        ("tree", "xyz"),
    ):
        bad = copy.deepcopy(honest)
        bad["summary"][field] = wrong
        with pytest.raises(InvalidArgument):
            raise_(made, bad)
    bad = copy.deepcopy(honest)
    bad["summary"]["connection_id"] = "CP-9"
    with pytest.raises(NotFound, match="CP-9 is not registered"):
        raise_(made, bad)
    assert made.world.state.values() == state


# Bills


@pytest.fixture
def billed() -> BillingWorld:
    made = billed_march()
    oversee(made.world, AUDITOR, "auditor")
    return made


def bill_record(billing: BillingWorld) -> Any:
    return billing.evaluate(HOME, "bill:Record", connection_id=CONNECTION, from_day="2019-03-01")


def commit_bill(world: World, record: Any, run: int = 1) -> None:
    made = Town(world)
    context, simulator = made.metering()
    commitments.put(context, "AuroraMSP", f"bill/{CONNECTION}/2019-03-01/{run}", record)
    assert world.state.commit(simulator.results()) == [0]


def audit_bill(billing: BillingWorld, caller: Creator = AUDITOR, **changed: object) -> Any:
    argument = {
        "connection_id": CONNECTION,
        "from_day": "2019-03-01",
        "to_day": "2019-04-01",
        **changed,
    }
    return billing.evaluate(caller, "bill:Audit", **argument)


def test_a_bill_is_audited_to_its_line(billed: BillingWorld) -> None:
    assert audit_bill(billed) == {
        "connection_id": CONNECTION,
        "verdict": "agrees",
        "findings": [],
    }
    record = bill_record(billed)
    record["bills"][0]["lines"][1]["amount_micro"] = str(
        int(record["bills"][0]["lines"][1]["amount_micro"]) + 1
    )
    commit_bill(billed.world, record)
    found = audit_bill(billed)
    assert found["verdict"] == "altered"
    (line,) = found["findings"]
    assert (line["bill"], line["line"], line["kind"], line["off_by_micro"]) == (
        "0",
        "1",
        "energy",
        "1",
    )
    for caller in (OTHER_HOME, BOREAL_OPERATOR):
        with pytest.raises(Forbidden, match="may not audit bills of CP-0001"):
            audit_bill(billed, caller)
    with pytest.raises(NotFound, match="run 2 of a bill of CP-0001"):
        audit_bill(billed, run=2)
    with pytest.raises(InvalidArgument, match="to_day is 2019-02-01, but must be 1 to"):
        audit_bill(billed, to_day="2019-02-01")


def test_an_opened_bill_is_checked_by_anybody(billed: BillingWorld) -> None:
    record = bill_record(billed)
    found = billed.evaluate(BOREAL_OPERATOR, "challenge:CheckBill", bill=record)
    assert found == {"committed": True, "holds": True, "difference": None}
    with pytest.raises(Conflict, match="holds as far as it was opened"):
        billed.submit(HOME, "challenge:RaiseBill", transient={"bill": json.dumps(record).encode()})
    altered = copy.deepcopy(record)
    altered["bills"][0]["lines"][1]["amount_micro"] = "1"
    found = billed.evaluate(BOREAL_OPERATOR, "challenge:CheckBill", bill=altered)
    assert not found["committed"]
    with pytest.raises(InvalidArgument, match="transient data has no entry named bill"):
        billed.submit(HOME, "challenge:RaiseBill")
    with pytest.raises(InvalidArgument, match="salt is"):
        billed.evaluate(HOME, "challenge:CheckBill", bill={**record, "salt": "x"})


def test_a_wrong_bill_is_challenged_before_and_after_it_is_posted(billed: BillingWorld) -> None:
    record = {**bill_record(billed), "run": "2"}
    lines = record["bills"][0]["lines"]
    for place, kind in ((0, "standing"), (1, "energy")):
        altered = copy.deepcopy(record)
        line = altered["bills"][0]["lines"][place]
        line["amount_micro"] = str(int(line["amount_micro"]) + 1)
        altered["bills"][0]["total_micro"] = str(int(altered["bills"][0]["total_micro"]) + 1)
        altered["total_micro"] = str(int(altered["total_micro"]) + 1)
        other = billed.clone()
        commit_bill(other.world, altered, 2)
        raised = other.submit(
            HOME, "challenge:RaiseBill", transient={"bill": json.dumps(altered).encode()}
        )
        assert (raised["of"], raised["period"], raised["run"]) == ("bill", "2019-03-01", "2")
        assert raised["difference"] == {
            "interval_start": None,
            "kind": kind,
            "name": lines[place]["name"],
            "off_by_micro": "1",
        }
    record["total_micro"] = str(int(record["total_micro"]) + 1)
    commit_bill(billed.world, record, 2)
    found = billed.evaluate(OTHER_HOME, "challenge:CheckBill", bill=record)
    assert (found["committed"], found["difference"]["kind"]) == (True, "total")


# The zero sum


def test_anybody_sums_all_accounts_to_zero() -> None:
    made = town()
    made.settle()

    def summed(limit: int) -> tuple[int, int, int]:
        accounts = total = pages = 0
        bookmark = None
        while True:
            found = made.world.evaluate(
                BOREAL_OPERATOR, "oversight:ZeroSum", limit=limit, bookmark=bookmark
            )
            accounts += int(found["accounts"])
            total += int(found["sum_micro"])
            pages += 1
            bookmark = found["bookmark"]
            if bookmark is None:
                return accounts, total, pages

    money = made.world.money()
    assert summed(500) == (len(money), 0, 1)
    assert summed(1) == (len(money), 0, len(money))
    (key, stored), *_ = [
        (key, stored)
        for key, stored in made.world.state.public.items()
        if key[1].startswith("acct/CP-1/avail/")
    ]
    record = json.loads(stored.value)
    record["amount_micro"] = str(int(record["amount_micro"]) + 1)
    made.world.state.public[key] = type(stored)(
        canonical_json(record), stored.metadata, stored.version
    )
    assert summed(2)[1] == 1
    for wrong in (0, 2_001):
        with pytest.raises(InvalidArgument, match="limit is"):
            made.world.evaluate(HOME, "oversight:ZeroSum", limit=wrong)
