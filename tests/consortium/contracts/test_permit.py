"""The supply permit: every step down needs all that the rules ask for, the step up none."""

from dataclasses import replace
from typing import Any

import pytest

from consortium.chaincode.api import Conflict, Forbidden, InvalidArgument, NotFound
from consortium.contracts.billing.permit import Season
from tests.consortium.contracts.billing_world import (
    CONNECTION,
    MARCH,
    RULES,
    SUPPLY,
    BillingWorld,
    at,
    billed_march,
)
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    HOME,
    OPERATOR,
    OTHER_HOME,
    SUPPLIER,
    writes,
)

REMINDED, FINAL, WARNED = at("2019-04-23"), at("2019-05-08"), at("2019-05-16")
LIMITED, SUSPENDED = at("2019-06-03", 10), at("2019-06-10", 10)
"""Limits begin on 30 May, a Thursday; suspensions on 6 June. 5 June is a holiday here."""


@pytest.fixture
def billed() -> BillingWorld:
    found = billed_march()
    found.submit(HOME, "permit:Consent", connection_id=CONNECTION, remote_control=True)
    found.protect()
    return found


def remind(billing: BillingWorld, number: int = 1) -> None:
    """Reminder and final notice."""
    for step, now in ((1, REMINDED), (2, FINAL)):
        billing.world.now = now
        billing.submit(SUPPLIER, "billing:Dun", connection_id=CONNECTION, number=number, step=step)


def warn(billing: BillingWorld) -> Any:
    remind(billing)
    billing.world.now = WARNED
    return billing.submit(SUPPLIER, "permit:Warn", connection_id=CONNECTION)


def clear(billing: BillingWorld) -> int:
    found = billing.submit(OPERATOR, "protection:Clear", connection_id=CONNECTION)
    return int(found["cleared_at"])


def step(billing: BillingWorld, function: str, now: int, cleared_at: int | None = None) -> Any:
    billing.world.now = now
    if cleared_at is None:
        cleared_at = clear(billing)
    return billing.submit(
        SUPPLIER, f"permit:{function}", connection_id=CONNECTION, cleared_at=cleared_at
    )


def pay(billing: BillingWorld, amount: int = MARCH, request_id: str = "p") -> Any:
    return billing.submit(
        HOME, "billing:Pay", connection_id=CONNECTION, amount_micro=amount, request_id=request_id
    )


def next_step(billing: BillingWorld, now: int) -> tuple[str, int | None]:
    billing.world.now = now
    found = billing.status()
    return found["next_step"], found["next_at"] and int(found["next_at"])


def acts(billing: BillingWorld) -> list[str]:
    found = billing.evaluate(SUPPLIER, "billing:Acts")["acts"]
    return [act["function"] for act in found if act["function"] != "bill:Compute"]


def test_from_a_bill_to_a_suspension_and_back(billed: BillingWorld) -> None:
    due = at("2019-04-01", 6) + 14 * 86_400
    assert next_step(billed, at("2019-04-02")) == ("payment", due)
    assert next_step(billed, at("2019-04-16")) == ("reminder", due + 7 * 86_400)
    assert acts(billed) == []
    billed.world.now = REMINDED
    assert acts(billed) == ["billing:Dun"]
    billed.submit(SUPPLIER, "billing:Dun", connection_id=CONNECTION, number=1, step=1)
    assert next_step(billed, REMINDED) == ("final_notice", REMINDED + 14 * 86_400)
    billed.world.now = FINAL
    billed.submit(SUPPLIER, "billing:Dun", connection_id=CONNECTION, number=1, step=2)
    assert next_step(billed, FINAL) == ("warning", FINAL + 7 * 86_400)
    billed.world.now = WARNED
    assert acts(billed) == ["permit:Warn"]

    warned = billed.submit(SUPPLIER, "permit:Warn", connection_id=CONNECTION)
    assert (warned["state"], warned["reason"], warned["case"]) == ("warned", "unpaid", "1")
    assert next_step(billed, WARNED) == ("limitation", WARNED + 14 * 86_400)
    assert acts(billed) == []
    assert billed.submit(SUPPLIER, "permit:Warn", connection_id=CONNECTION) == warned

    limited = step(billed, "Limit", LIMITED)
    assert (limited["state"], limited["limit_w"]) == ("limited", "1000")
    assert next_step(billed, LIMITED) == ("suspension", WARNED + 21 * 86_400)

    billed.world.now = SUSPENDED
    assert acts(billed) == ["protection:Clear"]
    suspended = step(billed, "Suspend", SUSPENDED)
    assert (suspended["state"], suspended["due_micro"]) == ("suspended", str(MARCH))
    status = billed.status()
    assert (status["state"], status["reason"], status["amount_due_micro"]) == (
        "suspended",
        "unpaid",
        str(MARCH),
    )
    assert status["next_step"] == "none"

    # At night, on a Sunday: the payment itself restores it.
    billed.world.now = at("2019-06-16", 3)
    billed.deposit(MARCH)
    answer = billed.world.simulate(
        HOME,
        "billing:Pay",
        {"connection_id": CONNECTION, "amount_micro": MARCH, "request_id": "p"},
    )
    assert answer.event is not None
    name, permit = answer.event
    assert (name, permit["state"], permit["reason"]) == ("permit", "granted", "paid")
    assert billed.world.state.commit(answer.results) == [0]
    status = billed.status()
    assert (status["state"], status["limit_w"], status["amount_due_micro"]) == (
        "granted",
        None,
        "0",
    )


def test_steps_come_one_after_the_other(billed: BillingWorld) -> None:
    billed.world.now = SUSPENDED
    for function in ("Limit", "Suspend"):
        with pytest.raises(Conflict, match="was not warned; permit:Warn comes first"):
            step(billed, function, SUSPENDED, SUSPENDED)
    with pytest.raises(Conflict, match="has been given no notice"):
        clear(billed)
    with pytest.raises(Conflict, match="see billing:Dun"):
        billed.submit(SUPPLIER, "permit:Warn", connection_id=CONNECTION)
    with pytest.raises(Conflict, match="which is step 1"):
        billed.submit(SUPPLIER, "billing:Dun", connection_id=CONNECTION, number=1, step=2)
    warn(billed)
    with pytest.raises(Conflict, match="the notice to CP-0001 ends at"):
        step(billed, "Suspend", LIMITED)
    with pytest.raises(Conflict, match="the notice to CP-0001 ends at"):
        step(billed, "Limit", WARNED + 14 * 86_400 + 3599)


def test_reminders_wait_for_their_time(billed: BillingWorld) -> None:
    due = at("2019-04-01", 6) + 21 * 86_400
    dun = {"connection_id": CONNECTION, "number": 1}
    billed.world.now = due + 3599
    with pytest.raises(Conflict, match="an hour more"):
        billed.submit(SUPPLIER, "billing:Dun", **dun, step=1)
    billed.world.now = due + 3600
    standing = billed.submit(SUPPLIER, "billing:Dun", **dun, step=1)
    assert billed.submit(SUPPLIER, "billing:Dun", **dun, step=1) == standing
    with pytest.raises(Conflict, match="step 2 of bill 1 comes at"):
        billed.submit(SUPPLIER, "billing:Dun", **dun, step=2)
    with pytest.raises(Forbidden):
        billed.submit(HOME, "billing:Dun", **dun, step=1)


@pytest.mark.parametrize(
    ("day", "hour", "minute", "why"),
    [
        ("2019-06-10", 3, 0, "minute 120"),
        ("2019-06-10", 8, 59, "minute 479"),
        ("2019-06-10", 13, 0, "minute 840"),
        ("2019-06-10", 22, 0, "minute 1260"),
        ("2019-06-14", 10, 0, "no working day"),
        ("2019-06-15", 10, 0, "no working day"),
        ("2019-06-16", 10, 0, "no working day"),
        ("2019-06-04", 10, 0, "the day after is none"),
        ("2019-06-05", 10, 0, "no working day"),
        ("2019-11-04", 10, 0, "by the seasons of"),
    ],
)
def test_hours_and_days_when_nobody_is_cut_off(
    billed: BillingWorld, day: str, hour: int, minute: int, why: str
) -> None:
    warn(billed)
    function = "Limit" if day < "2019-06-06" else "Suspend"
    with pytest.raises(Conflict, match=why):
        step(billed, function, at(day, hour, minute))
    assert billed.status()["state"] == "warned"
    assert step(billed, "Suspend", SUSPENDED)["state"] == "suspended"


def test_no_suspension_without_consent() -> None:
    billed = billed_march()
    billed.protect()
    warn(billed)
    with pytest.raises(Forbidden, match="has not consented"):
        step(billed, "Suspend", SUSPENDED)
    billed.submit(HOME, "permit:Consent", connection_id=CONNECTION, remote_control=True)
    with pytest.raises(Conflict, match="is taken back once that is paid"):
        billed.submit(HOME, "permit:Consent", connection_id=CONNECTION, remote_control=False)
    with pytest.raises(Forbidden):
        billed.submit(OPERATOR, "permit:Consent", connection_id=CONNECTION, remote_control=True)
    billed.deposit(MARCH)
    pay(billed)
    taken = billed.submit(HOME, "permit:Consent", connection_id=CONNECTION, remote_control=False)
    assert not taken["remote_control"]


def test_an_alert_protects_a_zone(billed: BillingWorld) -> None:
    warn(billed)
    alert = {
        "alert_id": "HEAT-1",
        "zone": "NORTH",
        "kind": "heat",
        "from": at("2019-06-09"),
        "until": at("2019-06-12"),
        "declared_by": "BorealMSP",
    }
    declared = billed.submit(BOREAL_OPERATOR, "permit:DeclareAlert", alert=alert)
    assert billed.submit(BOREAL_OPERATOR, "permit:DeclareAlert", alert=alert) == declared
    with pytest.raises(Conflict, match="is another one"):
        billed.submit(
            BOREAL_OPERATOR, "permit:DeclareAlert", alert={**alert, "until": at("2019-06-13")}
        )
    with pytest.raises(Conflict, match="protected by the heat alert HEAT-1"):
        step(billed, "Suspend", SUSPENDED)
    with pytest.raises(Forbidden):
        billed.submit(OPERATOR, "permit:EndAlert", zone="NORTH", alert_id="HEAT-1")
    with pytest.raises(Forbidden):
        billed.submit(OPERATOR, "permit:DeclareAlert", alert=alert)
    with pytest.raises(InvalidArgument, match="an alert lasts up to"):
        billed.submit(
            BOREAL_OPERATOR, "permit:DeclareAlert", alert={**alert, "until": at("2019-09-13")}
        )
    assert len(billed.evaluate(HOME, "permit:Alerts", zone="NORTH")) == 1
    ended = billed.submit(BOREAL_OPERATOR, "permit:EndAlert", zone="NORTH", alert_id="HEAT-1")
    assert ended["ended"]
    assert step(billed, "Suspend", SUSPENDED)["state"] == "suspended"


# Protection


@pytest.mark.parametrize("kind", ["medical", "vulnerable"])
def test_a_protected_home_is_never_suspended(billed: BillingWorld, kind: str) -> None:
    warn(billed)
    billed.protect(kind)
    with pytest.raises(Conflict, match="is protected; it may not be cut off"):
        step(billed, "Suspend", SUSPENDED)
    with pytest.raises(NotFound, match="has committed to no record clear/CP-0001"):
        step(billed, "Suspend", SUSPENDED, SUSPENDED)
    assert billed.status()["state"] == "warned"
    mark = billed.evaluate(HOME, "protection:Mark", connection_id=CONNECTION)
    assert mark["kind"] == kind
    with pytest.raises(Forbidden):
        billed.evaluate(OTHER_HOME, "protection:Mark", connection_id=CONNECTION)


def test_a_protection_that_has_ended(billed: BillingWorld) -> None:
    warn(billed)
    billed.protect("medical", until=SUSPENDED)
    with pytest.raises(Conflict, match="is protected"):
        step(billed, "Suspend", SUSPENDED - 1)
    assert step(billed, "Suspend", SUSPENDED)["state"] == "suspended"


def test_nobody_is_cleared_whom_nobody_asked_about() -> None:
    billed = billed_march()
    warn(billed)
    with pytest.raises(Conflict, match="nobody has declared"):
        clear(billed)


def test_a_mark_in_the_same_block_wins(billed: BillingWorld) -> None:
    warn(billed)
    billed.world.now = SUSPENDED
    cleared_at = clear(billed)
    suspension = billed.world.simulate(
        SUPPLIER, "permit:Suspend", {"connection_id": CONNECTION, "cleared_at": cleared_at}
    )
    billed.protect("medical")
    assert billed.world.state.commit(suspension.results) == [11]
    assert billed.status()["state"] == "warned"


def test_a_mark_that_comes_late_restores(billed: BillingWorld) -> None:
    warn(billed)
    step(billed, "Suspend", SUSPENDED)
    with pytest.raises(Conflict, match="still has"):
        billed.submit(HOME, "permit:Restore", connection_id=CONNECTION)
    billed.protect("medical")
    restored = billed.submit(HOME, "permit:Restore", connection_id=CONNECTION)
    assert (restored["state"], restored["reason"]) == ("granted", "review")
    assert billed.submit(HOME, "permit:Restore", connection_id=CONNECTION) == restored


def test_marks_tell_nothing_in_public(billed: BillingWorld) -> None:
    """The same keys are written whatever is declared, and a salt hides what."""
    hashes = []
    for kind in ("none", "medical"):
        before = dict(billed.world.state.hashes)
        billed.protect(kind)
        changed = {
            key: value
            for key, value in billed.world.state.hashes.items()
            if before.get(key) != value
        }
        hashes.append(sorted(changed))
    assert hashes[0] == hashes[1]


def test_a_clearance_is_for_one_case_and_three_days(billed: BillingWorld) -> None:
    warn(billed)
    billed.world.now = SUSPENDED
    cleared_at = clear(billed)
    assert clear(billed) == cleared_at
    with pytest.raises(Conflict, match="has committed to"):
        step(billed, "Suspend", SUSPENDED, cleared_at - 1)
    with pytest.raises(Conflict, match="a clearance is used within 3 days"):
        step(billed, "Suspend", SUSPENDED + 3 * 86_400, cleared_at)
    billed.world.now = SUSPENDED
    billed.submit(SUPPLIER, "permit:Restore", connection_id=CONNECTION, goodwill=True)
    billed.submit(SUPPLIER, "permit:Warn", connection_id=CONNECTION)
    later = at("2019-07-03", 10)
    billed.world.now = later
    # Of the case before; the new one needs its own word.
    with pytest.raises(Conflict):
        step(billed, "Suspend", later, cleared_at)
    assert step(billed, "Suspend", later)["case"] == "2"


# What takes a warning or a suspension back


def test_a_payment_and_a_suspension_in_one_block(billed: BillingWorld) -> None:
    warn(billed)
    billed.deposit(MARCH)
    billed.world.now = SUSPENDED
    suspension = billed.world.simulate(
        SUPPLIER, "permit:Suspend", {"connection_id": CONNECTION, "cleared_at": clear(billed)}
    )
    payment = billed.world.simulate(
        HOME,
        "billing:Pay",
        {"connection_id": CONNECTION, "amount_micro": MARCH, "request_id": "p"},
    )
    other = billed.clone()
    assert billed.world.state.commit(payment.results, suspension.results) == [0, 11]
    assert billed.status()["state"] == "granted"
    # The other way round the payment is to be sent again, and restores it.
    assert other.world.state.commit(suspension.results, payment.results) == [0, 11]
    pay(other)
    assert other.status()["state"] == "granted"


def test_a_part_that_leaves_too_little_due(billed: BillingWorld) -> None:
    billed.deposit(MARCH)
    warn(billed)
    pay(billed, MARCH - 1_000_000)
    assert billed.status()["state"] == "warned"
    pay(billed, 1, "q")
    status = billed.status()
    assert (status["state"], status["reason"], status["amount_due_micro"]) == (
        "granted",
        "paid",
        "999999",
    )


@pytest.mark.parametrize("function", ["Cancel", "Credit"])
def test_a_credit_note_takes_a_warning_back(billed: BillingWorld, function: str) -> None:
    warn(billed)
    fields = {"connection_id": CONNECTION, "number": 1, "reason": "sorry"}
    if function == "Credit":
        fields |= {"amount_micro": MARCH, "request_id": "c"}
    billed.submit(SUPPLIER, f"billing:{function}", **fields)
    assert billed.status()["reason"] == "credited"


def test_what_is_disputed_leads_to_nothing(billed: BillingWorld) -> None:
    billed.submit(
        HOME,
        "billing:Dispute",
        connection_id=CONNECTION,
        number=1,
        amount_micro=MARCH,
        reason="x",
    )
    billed.world.now = SUSPENDED
    assert acts(billed) == []
    with pytest.raises(Conflict, match="has nothing open that isn't disputed"):
        billed.submit(SUPPLIER, "billing:Dun", connection_id=CONNECTION, number=1, step=1)
    assert billed.status()["next_step"] == "none"


def test_estimates_lead_to_nothing() -> None:
    billed = BillingWorld()
    billed.read("2019-03-01", "2019-04-01", 100, quality="estimated")
    billed.bill("2019-03-01", "2019-04-01")
    billed.world.now = REMINDED
    billed.submit(SUPPLIER, "billing:Dun", connection_id=CONNECTION, number=1, step=1)
    billed.world.now = SUSPENDED
    with pytest.raises(Conflict, match="waits for measured readings"):
        billed.submit(SUPPLIER, "billing:Dun", connection_id=CONNECTION, number=1, step=2)
    with pytest.raises(Conflict, match="has 0 micro-units due"):
        billed.submit(SUPPLIER, "permit:Warn", connection_id=CONNECTION)
    status = billed.status()
    assert (status["amount_due_micro"], status["enforceable_micro"]) == (str(MARCH), "0")


def test_debts_to_an_earlier_supplier_keep_no_permit(billed: BillingWorld) -> None:
    warn(billed)
    step(billed, "Suspend", SUSPENDED)
    other = {**SUPPLY, "supplier": "BorealMSP", "from_day": "2019-06-11"}
    billed.switch("BorealMSP", "2019-06-11")
    billed.submit(BOREAL_OPERATOR, "billing:AgreeSupply", supply=other)
    billed.submit(HOME, "billing:AgreeSupply", supply=other)
    with pytest.raises(Conflict, match="still has"):
        billed.submit(HOME, "permit:Restore", connection_id=CONNECTION)
    billed.world.now = at("2019-06-11", 1)
    assert billed.submit(HOME, "permit:Restore", connection_id=CONNECTION)["state"] == "granted"
    status = billed.status()
    assert (status["amount_due_micro"], status["enforceable_micro"]) == (str(MARCH), "0")
    with pytest.raises(Conflict, match="has 0 micro-units due"):
        billed.submit(BOREAL_OPERATOR, "permit:Warn", connection_id=CONNECTION)


def test_without_rules_nothing_happens() -> None:
    billed = billed_march()
    del billed.world.state.public["energy", "terms/permitrules/EUROPE-ROME/versions"]
    billed.world.now = SUSPENDED
    for function, more in (("billing:Dun", {"number": 1, "step": 1}), ("permit:Warn", {})):
        with pytest.raises(NotFound, match="no permitrules EUROPE-ROME is in force"):
            billed.submit(SUPPLIER, function, connection_id=CONNECTION, **more)
    assert acts(billed) == []
    assert billed.status()["next_step"] == "none"


def test_payments_go_on_where_the_calendar_ends(billed: BillingWorld) -> None:
    warn(billed)
    billed.deposit(MARCH)
    billed.world.now = at("2020-06-08", 10)
    with pytest.raises(NotFound, match="the calendar EUROPE-ROME is known from"):
        step(billed, "Suspend", at("2020-06-08", 10))
    assert billed.status()["state"] == "warned"
    assert acts(billed) == ["protection:Clear"]
    pay(billed)
    assert billed.status()["state"] == "granted"


def test_who_may(billed: BillingWorld) -> None:
    warn(billed)
    for caller in (HOME, BOREAL_OPERATOR, OTHER_HOME):
        for function, more in (
            ("permit:Warn", {}),
            ("permit:Suspend", {"cleared_at": 1}),
            ("permit:Restore", {"goodwill": True}),
            ("protection:Clear", {}),
        ):
            with pytest.raises(Forbidden):
                billed.submit(caller, function, connection_id=CONNECTION, **more)
    with pytest.raises(Forbidden):
        billed.submit(SUPPLIER, "protection:Declare", utility="AuroraMSP")
    with pytest.raises(InvalidArgument, match="no entry named protections"):
        billed.submit(OPERATOR, "protection:Declare", utility="AuroraMSP")


def test_rules_that_are_refused(billed: BillingWorld) -> None:
    for change, why in (
        ({"from_minute": 700}, "three hours at least"),
        ({"min_due_micro": 0}, "min_due_micro is 0"),
        ({"notice_days": 0}, "notice_days is 0"),
        ({"seasons": [{"from": "13-01", "to": "01-01"}]}, "a day as MM-DD"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            billed.submit(
                OPERATOR,
                "permit:ProposeRules",
                terms={**RULES, **change},
                effective_from=at("2019-09-01"),
            )
    assert billed.evaluate(HOME, "permit:Rules", region="EUROPE-ROME")["limit_w"] == "1000"


def test_a_switch_that_somebody_has_to_close() -> None:
    billed = BillingWorld(on_site=True)
    billed.read("2019-03-01", "2019-04-01", 100)
    billed.bill("2019-03-01", "2019-04-01")
    billed.submit(HOME, "permit:Consent", connection_id=CONNECTION, remote_control=True)
    billed.protect()
    warn(billed)
    assert not billed.status()["on_site"]
    step(billed, "Suspend", SUSPENDED)
    billed.deposit(MARCH)
    pay(billed)
    status = billed.status()
    assert (status["state"], status["on_site"]) == ("granted", True)


def test_a_season_over_the_new_year() -> None:
    season = Season("11-15", "03-31")
    held = [day for day in ("2019-11-15", "2020-01-01", "2020-03-31") if season.holds(day)]
    assert len(held) == 3
    assert not season.holds("2019-11-14")
    assert not season.holds("2019-04-01")
    assert Season("07-01", "07-31").holds("2019-07-31")


def test_a_permit_of_a_connection_without_a_supply() -> None:
    billing = BillingWorld(agree=False)
    status = billing.status()
    assert (status["state"], status["next_step"]) == ("granted", "none")
    with pytest.raises(NotFound, match="has no supply"):
        billing.submit(SUPPLIER, "permit:Warn", connection_id=CONNECTION)
    answer = billing.world.simulate(OPERATOR, "billing:AgreeSupply", {"supply": SUPPLY})
    assert f"supply/{CONNECTION}" in writes(answer.results)


def test_who_moves_in_is_not_cut_off_for_what_others_owe(billed: BillingWorld) -> None:
    warn(billed)
    world = billed.world
    moved = WARNED - WARNED % 3600 + 3600
    entry: dict[str, object] = {"connection_id": CONNECTION}
    world.submit(OPERATOR, "roles:MoveIn", resident="ANN", **{**entry, "from": moved - 3600})
    world.submit(OPERATOR, "roles:MoveOut", at=moved, **entry)
    world.submit(OPERATOR, "roles:MoveIn", resident="BEN", **{**entry, "from": moved})
    status = billed.evaluate(SUPPLIER, "permit:Status", connection_id=CONNECTION)
    assert (status["consent"], status["enforceable_micro"]) == (True, str(MARCH))
    world.now = SUSPENDED
    status = billed.evaluate(SUPPLIER, "permit:Status", connection_id=CONNECTION)
    assert (status["consent"], status["enforceable_micro"]) == (False, "0")
    assert status["amount_due_micro"] == str(MARCH), "it is owed all the same"
    ben = replace(HOME, attributes={**HOME.attributes, "gridledger.resident": "BEN"})
    status = billed.evaluate(ben, "permit:Status", connection_id=CONNECTION)
    assert (status["open_micro"], status["amount_due_micro"]) == ("0", "0"), "not his to know"
    with pytest.raises(Conflict):
        step(billed, "Suspend", SUSPENDED)
    assert acts(billed) == ["permit:Restore"]
    billed.submit(SUPPLIER, "permit:Restore", connection_id=CONNECTION)
    assert (
        billed.evaluate(SUPPLIER, "permit:Status", connection_id=CONNECTION)["state"] == "granted"
    )
