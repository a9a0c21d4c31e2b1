"""Challenges are answered: opened, refuted, put right, or left unanswered for all to see."""

import copy
import json
from typing import Any

import pytest

from consortium.chaincode.api import (
    Conflict,
    ContractError,
    Forbidden,
    InvalidArgument,
    LimitExceeded,
    NotFound,
)
from consortium.contracts.common.clock import DAY_S
from consortium.contracts.meters.readings import Arrival, Store
from consortium.contracts.oversight.challenges import ANSWER_S
from tests.consortium.contracts.billing_world import CONNECTION, BillingWorld, billed_march
from tests.consortium.contracts.test_challenges import (
    AUDITOR,
    add_a_micro,
    bill_record,
    commit_bill,
    commit_instead,
    raise_,
    town,
)
from tests.consortium.contracts.town import DAY, START, Town, final_time
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    BOREAL_SUPPLIER,
    HOME,
    OPERATOR,
    SUPPLIER,
    home,
    oversee,
)

TEN = START + 10 * 900
PROVED = f"settlement/{DAY}/provisional"
DEMANDED = f"{PROVED}/{TEN:012d}"


def opened(made: Town, start: int, run: str = "provisional", **more: object) -> Any:
    return made.world.evaluate(
        OPERATOR,
        "daybook:Open",
        utility="AuroraMSP",
        day=DAY,
        run=run,
        connection_id="CP-1",
        interval_start=start,
        **more,
    )


def demand(made: Town, caller: Any = BOREAL_OPERATOR, start: int = TEN, **more: object) -> Any:
    return made.world.submit(
        caller,
        "challenge:Demand",
        frozen=True,
        **{
            "connection_id": "CP-1",
            "utility": "AuroraMSP",
            "day": DAY,
            "run": "provisional",
            "interval_start": start,
            **more,
        },
    )


def answer(made: Town, challenge_id: str, opening: object, caller: Any = OPERATOR) -> Any:
    return made.world.submit(
        caller,
        "challenge:Answer",
        frozen=True,
        transient={} if opening is None else {"opening": json.dumps(opening).encode()},
        connection_id="CP-1",
        challenge_id=challenge_id,
    )


def unresolved(made: Town) -> list[str]:
    found = made.world.evaluate(HOME, "challenge:Unresolved", utility="AuroraMSP")
    return [one["challenge_id"] for one in found["challenges"]]


def altered_by_a_micro() -> Town:
    """A peer of Aurora that runs other code has committed to a day, and it is posted."""
    made = town()
    made.world.now = START + DAY_S
    made.commit()
    record = made.record("CP-1")
    add_a_micro(record)
    commit_instead(made, "CP-1", record)
    made.post()
    return made


def test_a_demanded_interval_is_opened_and_holds() -> None:
    made = town()
    made.settle()
    asked = demand(made)
    assert (asked["challenge_id"], asked["begun"], asked["outcome"]) == (
        DEMANDED,
        "demanded",
        "open",
    )
    assert int(asked["answer_by"]) == made.world.now + ANSWER_S
    assert unresolved(made) == [DEMANDED]
    state = made.world.state.values()
    assert demand(made) == asked
    assert made.world.state.values() == state
    opening = opened(made, TEN)
    for wrong, caller, error, sentence in (
        (opening, BOREAL_OPERATOR, Forbidden, "operators of AuroraMSP"),
        (opening, SUPPLIER, Forbidden, "answer challenges of AuroraMSP"),
        (None, OPERATOR, InvalidArgument, "no entry named opening"),
        (opened(made, TEN + 900), OPERATOR, InvalidArgument, "which is in question"),
        ({**opening, "readings": []}, OPERATOR, InvalidArgument, "none of meter M-CP-1"),
    ):
        with pytest.raises(error, match=sentence):
            answer(made, DEMANDED, wrong, caller)
    other = copy.deepcopy(opening)
    other["summary"]["import_wh"] = "1"
    with pytest.raises(Conflict, match="is not the one that AuroraMSP has committed to"):
        answer(made, DEMANDED, other)
    assert made.world.state.values() == state
    made.world.now += 3600
    answered = answer(made, DEMANDED, opening)
    assert (answered["outcome"], answered["late"], answered["difference"]) == ("holds", False, None)
    assert answered["answered_at"] == str(made.world.now)
    assert "110" not in json.dumps({**answered, "commitment": ""})  # no energy becomes public
    assert unresolved(made) == []
    assert answer(made, DEMANDED, None) == answered
    listed = made.world.evaluate(AUDITOR, "challenge:List", connection_id="CP-1")["challenges"]
    assert listed == [answered]


def test_a_line_that_was_altered_by_a_micro_comes_to_light_by_a_demand() -> None:
    made = altered_by_a_micro()
    demand(made, made.homes["CP-1"])
    answered = answer(made, DEMANDED, opened(made, TEN))
    assert answered["outcome"] == "wrong"
    assert answered["difference"] == {
        "interval_start": str(TEN),
        "kind": "import",
        "name": "SUPPLIER-AURORA",
        "off_by_micro": "-1",
    }
    assert unresolved(made) == [DEMANDED]
    # It is put right by the final run, which counts for the money too.
    made.world.now = final_time()
    made.settle("final")
    corrected = answer(made, DEMANDED, opened(made, TEN, "final"))
    assert (corrected["outcome"], corrected["by_run"]) == ("corrected", "final")
    assert corrected["difference"] == answered["difference"]
    assert unresolved(made) == []


def test_what_was_proved_wrong_is_answered_by_a_run_that_is_right_and_posted() -> None:
    made = altered_by_a_micro()
    raised = raise_(made, opened(made, TEN), made.homes["CP-1"])
    assert (raised["begun"], raised["outcome"]) == ("proved", "open")
    with pytest.raises(Conflict, match="was shown to be wrong; what answers that is a later run"):
        answer(made, PROVED, opened(made, TEN))
    made.world.now = final_time()
    made.commit("final")
    with pytest.raises(Conflict, match="run final, is not posted"):
        answer(made, PROVED, opened(made, TEN, "final"))
    made.post("final")
    with pytest.raises(InvalidArgument, match="doesn't show"):
        answer(made, PROVED, opened(made, TEN + 900, "final"))
    answered = answer(made, PROVED, opened(made, TEN, "final"))
    assert (answered["outcome"], answered["by_run"], answered["late"]) == (
        "corrected",
        "final",
        False,
    )


def test_a_later_run_that_is_wrong_itself_answers_nothing() -> None:
    made = altered_by_a_micro()
    raise_(made, opened(made, TEN))
    made.world.now = final_time()
    made.commit("final")
    record = made.record("CP-1", "final")
    add_a_micro(record)
    commit_instead(made, "CP-1", record)
    made.post("final")
    with pytest.raises(Conflict, match=r"is wrong itself, at .* import SUPPLIER-AURORA"):
        answer(made, PROVED, opened(made, TEN, "final"))
    assert unresolved(made) == [PROVED]


def correct(made: Town, accepted_at: int, import_wh: int = 7) -> None:
    """A correction of the tenth interval, accepted at a time."""
    made.read("CP-1", 10, import_wh)
    context, simulator = made.metering()
    Store(context, "AuroraMSP").put_arrival(Arrival("M-CP-1", TEN, 2, accepted_at, "correction"))
    assert made.world.state.commit(simulator.results()) == [0]


def test_who_challenges_what_was_corrected_only_afterwards_is_refuted() -> None:
    made = town()
    made.settle()
    posted_at = made.world.now
    correct(made, posted_at + 60)
    raised = raise_(made, opened(made, TEN), made.homes["CP-1"])
    assert raised["difference"]["kind"] == "reading"
    refutation = opened(made, TEN, as_posted=True)
    assert [one["version"] for one in refutation["readings"]] == ["1"]
    lacking = {**refutation, "arrivals": [{**refutation["arrivals"][0], "version": "3"}]}
    with pytest.raises(InvalidArgument, match=r"doesn't say when .* was accepted"):
        answer(made, PROVED, lacking)
    moved = {**refutation["arrivals"][0], "accepted_at": str(posted_at + 61)}
    with pytest.raises(Conflict, match=r"arrival .* is not the one that AuroraMSP holds"):
        answer(made, PROVED, {**refutation, "arrivals": [moved]})
    with pytest.raises(InvalidArgument, match="has none of meter M-CP-1"):
        answer(made, PROVED, {**refutation, "readings": []})
    answered = answer(made, PROVED, refutation)
    assert (answered["outcome"], answered["difference"]) == ("refuted", raised["difference"])
    assert unresolved(made) == []


def test_a_correction_that_should_have_counted_refutes_nothing() -> None:
    made = town()
    made.settle()
    correct(made, made.world.now - 1)
    raise_(made, opened(made, TEN))
    with pytest.raises(Conflict, match="so it should have counted"):
        answer(made, PROVED, opened(made, TEN, as_posted=True))
    assert unresolved(made) == [PROVED]


def test_energy_that_no_meter_said_is_not_refuted() -> None:
    made = altered_by_a_micro()
    raise_(made, opened(made, TEN))
    refutation = opened(made, TEN, as_posted=True)
    assert refutation["arrivals"] == []
    arrival = {"meter_id": "M-CP-1", "at": str(TEN), "version": "2", "kind": "late",
               "accepted_at": str(made.world.now)}  # fmt: skip
    with pytest.raises(InvalidArgument, match="is for a line of kind reading"):
        answer(made, PROVED, {**refutation, "arrivals": [arrival]})
    made = town()
    made.world.now = START + DAY_S
    made.commit()
    record = made.record("CP-1")
    record["opened"]["rows"][10]["import_wh"] = "111"
    line = record["opened"]["rows"][10]["lines"][0]
    line.update(energy_wh="111", amount_micro="-33300")
    record["summary"]["import_wh"] = str(int(record["summary"]["import_wh"]) + 1)
    (total,) = [one for one in record["summary"]["sums"] if one["kind"] == "import"]
    total["energy_wh"] = str(int(total["energy_wh"]) + 1)
    total["amount_micro"] = str(int(total["amount_micro"]) - 300)
    commit_instead(made, "CP-1", record)
    made.post()
    raised = raise_(made, opened(made, TEN))
    assert raised["difference"]["kind"] == "reading"
    with pytest.raises(NotFound, match="no versions of the readings"):
        opened(made, TEN, as_posted=True)
    with pytest.raises(Conflict, match="doesn't count what its meters said"):
        answer(made, PROVED, {**opened(made, TEN), "arrivals": [arrival]})


def test_who_does_not_answer_in_time_is_named_by_any_utility() -> None:
    made = town()
    made.settle()
    asked = demand(made)
    end = int(asked["answer_by"])
    lapse = {"connection_id": "CP-1", "challenge_id": DEMANDED}
    with pytest.raises(Conflict, match="may answer until"):
        made.world.submit(BOREAL_OPERATOR, "challenge:Lapse", **lapse)
    # One clock that goes ahead is not enough: the time's gate must have been written.
    made.world.now = end + 3600
    with pytest.raises(Conflict, match="no agent has written that time's gate"):
        made.world.submit(BOREAL_OPERATOR, "challenge:Lapse", **lapse)
    assert [one["function"] for one in made.world.evaluate(OPERATOR, "agenda:Due")] == []
    made.world.submit(BOREAL_OPERATOR, "gate:Begin", at=made.world.now - made.world.now % 300)
    with pytest.raises(Forbidden, match="operators of any utility"):
        made.world.submit(HOME, "challenge:Lapse", **lapse)
    (due,) = made.world.evaluate(BOREAL_OPERATOR, "agenda:Due")
    assert due == {"function": "challenge:Lapse", "argument": lapse}
    lapsed = made.world.submit(BOREAL_OPERATOR, "challenge:Lapse", **lapse)
    assert lapsed["outcome"] == "unanswered"
    assert made.world.submit(OPERATOR, "challenge:Lapse", **lapse) == lapsed
    assert unresolved(made) == [DEMANDED]
    assert made.world.evaluate(BOREAL_OPERATOR, "agenda:Due") == []
    answered = answer(made, DEMANDED, opened(made, TEN))
    assert (answered["outcome"], answered["late"]) == ("holds", True)
    with pytest.raises(NotFound, match="CP-1 has no challenge bill"):
        answer(made, "bill/2026-11-22/1", None)


def test_an_interval_of_nothing_is_proved_by_those_beside_it() -> None:
    made = Town.of("CP-1")
    made.read_day({"CP-1": dict.fromkeys((3, 8, 12, 90), (100, 0))})
    made.settle()
    for index, shown in ((0, [3]), (5, [3, 8]), (10, [8, 12]), (95, [90])):
        start = START + index * 900
        challenge = demand(made, made.homes["CP-1"], start)
        with pytest.raises(NotFound, match="neither energy nor trades"):
            opened(made, start)
        opening = opened(made, start, beside=True)
        assert [int(w["rows"][0]["interval_start"]) for w in opening["windows"]] == [
            START + at * 900 for at in shown
        ]
        if len(shown) == 2:
            less = {**opening, "windows": opening["windows"][:1]}
            with pytest.raises(InvalidArgument, match="which is in question"):
                answer(made, challenge["challenge_id"], less)
        beyond = opened(made, START + 8 * 900)
        if index != 8:
            with pytest.raises(InvalidArgument, match="which is in question"):
                answer(made, challenge["challenge_id"], beyond)
        assert answer(made, challenge["challenge_id"], opening)["outcome"] == "holds"


def test_who_may_demand_what() -> None:
    made = town()
    made.settle()
    for caller in (made.homes["CP-2"], SUPPLIER, BOREAL_SUPPLIER, home("CP-1", "BorealMSP")):
        with pytest.raises(Forbidden, match="demand intervals of CP-1 to be opened"):
            demand(made, caller)
    wrong: tuple[tuple[dict[str, object], type[ContractError], str], ...] = (
        ({"start": TEN + 1}, InvalidArgument, "must be an interval of"),
        ({"start": START - 900}, InvalidArgument, "must be an interval of"),
        ({"run": "final"}, NotFound, "has committed to no final settlement"),
        ({"run": "FINAL/"}, InvalidArgument, "run is"),
        ({"day": "2026-11-31"}, InvalidArgument, "day"),
        ({"utility": "BorealMSP"}, Conflict, "metered by AuroraMSP, not by BorealMSP"),
        ({"connection_id": "CP-9"}, NotFound, "CP-9 is not registered"),
        ({"connection_id": "CP/1"}, InvalidArgument, "connection_id"),
    )
    state = made.world.state.values()
    for argument, error, sentence in wrong:
        with pytest.raises(error, match=sentence):
            demand(made, **argument)  # type: ignore[arg-type]
    assert made.world.state.values() == state
    for index in range(4):
        demand(made, (BOREAL_OPERATOR, AUDITOR)[index % 2], START + index * 900)
    with pytest.raises(LimitExceeded, match="have demanded 4 intervals of CP-1"):
        demand(made, OPERATOR, START + 5 * 900)
    for index in range(8):
        demand(made, made.homes["CP-1"], START + index * 900)
    made.world.now = START + 427 * DAY_S
    with pytest.raises(Conflict, match="could be put in question until"):
        demand(made, made.homes["CP-1"], START + 50 * 900)


def bill_answer(billing: BillingWorld, challenge_id: str, record: object) -> Any:
    return billing.submit(
        OPERATOR,
        "challenge:Answer",
        transient={"bill": json.dumps(record).encode()},
        connection_id=CONNECTION,
        challenge_id=challenge_id,
    )


def test_a_bill_is_demanded_and_answered() -> None:
    billing = billed_march()
    oversee(billing.world, AUDITOR, "auditor")
    record = bill_record(billing)
    what = {"connection_id": CONNECTION, "from_day": "2019-03-01"}
    for caller in (OPERATOR, BOREAL_OPERATOR, SUPPLIER):
        with pytest.raises(Forbidden, match="demand a bill of"):
            billing.submit(caller, "challenge:DemandBill", **what)
    with pytest.raises(NotFound, match="no run 2 of a bill"):
        billing.submit(AUDITOR, "challenge:DemandBill", **what, run=2)
    asked = billing.submit(HOME, "challenge:DemandBill", **what)
    place = "bill/2019-03-01/1/demand"
    assert asked["challenge_id"] == place
    assert billing.submit(AUDITOR, "challenge:DemandBill", **what) == asked
    with pytest.raises(Conflict, match="is not the one that AuroraMSP has committed to"):
        bill_answer(billing, place, {**record, "total_micro": "1"})
    with pytest.raises(InvalidArgument, match="bill is of another connection or period"):
        bill_answer(billing, place, {**record, "from_day": "2019-04-01"})
    assert bill_answer(billing, place, record)["outcome"] == "holds"


def test_a_wrong_bill_is_put_right_by_its_next_run() -> None:
    billing = billed_march()
    record = bill_record(billing)
    wrong = copy.deepcopy(record)
    wrong["bills"][0]["lines"][0]["amount_micro"] = "1"
    wrong["run"] = "2"
    commit_bill(billing.world, wrong, 2)
    raised = billing.submit(
        HOME, "challenge:RaiseBill", transient={"bill": json.dumps(wrong).encode()}
    )
    place = raised["challenge_id"]
    assert place == "bill/2019-03-01/2"
    with pytest.raises(Conflict, match="was shown to be wrong"):
        bill_answer(billing, place, wrong)
    with pytest.raises(InvalidArgument, match="run 1 doesn't come after 2"):
        bill_answer(billing, place, record)
    right = {**record, "run": "3"}
    commit_bill(billing.world, right, 3)
    with pytest.raises(Conflict, match="run 3, is not posted"):
        bill_answer(billing, place, right)
