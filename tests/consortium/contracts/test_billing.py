"""Supplies, bills, corrections, credit notes, disputes and payments."""

import json
from typing import Any

import pytest

from consortium.chaincode.api import (
    Conflict,
    ContractError,
    Forbidden,
    InvalidArgument,
    NotFound,
)
from tests.consortium.contracts.billing_world import (
    CONNECTION,
    FLAT,
    HOUR_S,
    MARCH,
    SUPPLY,
    BillingWorld,
    at,
    billed_march,
)
from tests.consortium.contracts.town import DAY, START, TERMS, Town, final_time
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    BOREAL_SUPPLIER,
    HOME,
    OPERATOR,
    OTHER_HOME,
    SUPPLIER,
    ranges,
    writes,
)


@pytest.fixture
def billed() -> BillingWorld:
    """A connection with its bill of March."""
    return billed_march()


def numbers(billing: BillingWorld) -> list[tuple[str, str, int]]:
    """(number, kind, total) of all documents."""
    found = billing.evaluate(HOME, "billing:Bills", connection_id=CONNECTION)["bills"]
    return [
        (each["document"]["number"], each["document"]["kind"], int(each["document"]["total_micro"]))
        for each in found
    ]


def correct(billing: BillingWorld, hour: int, import_wh: int) -> None:
    """Replace the reading of an hour of 1 March."""
    start = at("2019-03-01", hour)
    reading = billing.meter.reading(
        start,
        import_wh,
        import_register_wh=10**6,
        interval_s=str(HOUR_S),
        version="2",
        quality="substituted",
    )
    found = billing.submit(
        OPERATOR,
        "metering:SubmitReadings",
        utility="AuroraMSP",
        transient={"readings": json.dumps({"readings": [reading]}).encode()},
    )
    assert found["accepted"] == "1", found


def test_a_month_from_readings_to_a_posted_bill(billed: BillingWorld) -> None:
    account = billed.account()
    assert account["open_micro"] == str(MARCH)
    assert account["due_micro"] == "0"
    assert account["billed_to"] == "2019-04-01"
    assert account["open"][0]["due_at"] == str(at("2019-04-01", 6) + 14 * 86_400)
    found = billed.evaluate(HOME, "billing:Bill", connection_id=CONNECTION, number=1)
    assert (found["document"]["kind"], found["dispute"]) == ("bill", None)
    record = billed.evaluate(HOME, "bill:Record", connection_id=CONNECTION, from_day="2019-03-01")
    assert [line["kind"] for line in record["bills"][0]["lines"]] == ["standing", "energy"]
    assert record["import_wh"] == "74300"
    # The regulated tariff has no standing charge.
    assert int(record["regulated_micro"]) == MARCH - 3_100_000


def test_only_the_total_is_public(billed: BillingWorld) -> None:
    billed.read("2019-04-01", "2019-05-01", 777)
    billed.world.now = at("2019-05-01", 6)
    answer = billed.world.simulate(
        OPERATOR,
        "bill:Compute",
        {"connection_id": CONNECTION, "from_day": "2019-04-01", "to_day": "2019-05-01"},
    )
    assert writes(answer.results) == [
        f"readings-AuroraMSP:bill/{CONNECTION}/2019-04-01/1",
        f"readings-AuroraMSP:billsum/{CONNECTION}/2019-04-01/1",
    ]
    assert answer.event is None
    assert not ranges(answer.results)
    public = answer.results.rwset + json.dumps(answer.value).encode()
    assert str(720 * 777).encode() not in public
    assert "lines" not in answer.value


def test_a_bill_is_what_was_committed_to(billed: BillingWorld) -> None:
    billed.read("2019-04-01", "2019-05-01", 100)
    billed.world.now = at("2019-05-01", 6)
    statement = billed.compute("2019-04-01", "2019-05-01")
    before = billed.world.state.values()
    for change in ({"total_micro": "1"}, {"estimated": True}, {"commitment": "0" * 64}):
        with pytest.raises(Conflict, match="has committed to"):
            billed.submit(OPERATOR, "billing:Post", statement={**statement, **change})
    other = {**statement, "from_day": "2019-03-01", "to_day": "2019-04-01"}
    with pytest.raises(Conflict, match="is posted already, with another statement"):
        billed.submit(OPERATOR, "billing:Post", statement=other)
    with pytest.raises(NotFound, match="has committed to no record"):
        billed.submit(OPERATOR, "billing:Post", statement={**other, "run": "2"})
    assert billed.world.state.values() == before


def test_posting_twice_changes_nothing(billed: BillingWorld) -> None:
    statement = billed.compute("2019-03-01", "2019-04-01")
    before = billed.world.state.values()
    answer = billed.submit(OPERATOR, "billing:Post", statement=statement)
    assert (answer["number"], answer["difference_micro"]) == ("1", str(MARCH))
    assert billed.world.state.values() == before


def test_periods_leave_no_day_out_and_bill_none_twice(billed: BillingWorld) -> None:
    billed.read("2019-04-01", "2019-06-01", 100)
    billed.world.now = at("2019-06-01", 6)
    statement = billed.compute("2019-05-01", "2019-06-01")
    with pytest.raises(Conflict, match="billed up to 2019-04-01, and the next bill begins there"):
        billed.submit(OPERATOR, "billing:Post", statement=statement)
    with pytest.raises(InvalidArgument, match="to_day is 2019-04-02, but a bill"):
        billed.compute("2019-03-01", "2019-04-02")
    with pytest.raises(InvalidArgument, match="1 to 32 days after"):
        billed.compute("2019-04-01", "2019-04-01")
    with pytest.raises(InvalidArgument, match="a bill is of days that are over"):
        billed.compute("2019-06-01", "2019-07-01")
    # A shorter period is allowed: for instance a final one.
    billed.bill("2019-04-01", "2019-04-11")
    billed.bill("2019-04-11", "2019-05-01")
    with pytest.raises(Conflict, match="the next bill begins there"):
        billed.submit(
            OPERATOR, "billing:Post", statement=billed.compute("2019-05-11", "2019-06-01")
        )


def test_a_bill_waits_for_readings() -> None:
    billing = BillingWorld()
    billing.read("2019-03-01", "2019-03-31", 100)
    billing.world.now = at("2019-04-01", 6)
    with pytest.raises(Conflict, match="23 intervals of CP-0001 have no accredited reading"):
        billing.compute("2019-03-01", "2019-04-01")
    preview = billing.evaluate(
        HOME,
        "bill:Preview",
        connection_id=CONNECTION,
        from_day="2019-03-01",
        to_day="2019-04-01",
    )
    assert (preview["missing"], preview["record"]["import_wh"]) == ("23", "72000")


def test_a_correction_posts_the_difference_only(billed: BillingWorld) -> None:
    correct(billed, 3, 1100)
    with pytest.raises(Conflict, match="compute run 2"):
        billed.compute("2019-03-01", "2019-04-01")
    more = billed.bill("2019-03-01", "2019-04-01", 2)
    assert (more["number"], more["difference_micro"]) == ("2", "200000")
    document = billed.evaluate(HOME, "billing:Bill", connection_id=CONNECTION, number=2)["document"]
    assert (document["kind"], document["estimated"], document["corrects"]) == (
        "adjustment",
        True,
        "1",
    )
    same = billed.bill("2019-03-01", "2019-04-01", 3)
    assert (same["number"], same["difference_micro"]) == (None, "0")
    assert int(billed.account()["open_micro"]) == MARCH + 200_000


def test_a_correction_downwards_of_a_paid_bill_pays_back(billed: BillingWorld) -> None:
    billed.deposit(MARCH)
    billed.submit(HOME, "billing:Pay", connection_id=CONNECTION, amount_micro=MARCH, request_id="p")
    correct(billed, 3, 0)
    found = billed.bill("2019-03-01", "2019-04-01", 2)
    assert found["difference_micro"] == "-20000"
    assert numbers(billed)[-1] == ("2", "credit_note", -20_000)
    assert billed.world.money()[CONNECTION] == 20_000
    assert billed.account()["open"] == []


def test_a_total_below_zero_is_paid_out() -> None:
    billing = BillingWorld()
    billing.read("2019-03-01", "2019-04-01", 0, 1000)
    found = billing.bill("2019-03-01", "2019-04-01")
    total = 31 * 100_000 - 743 * 50_000
    assert int(found["difference_micro"]) == total
    assert billing.world.money() == {CONNECTION: -total, "SUPPLIER-AURORA": total}
    standing = billing.evaluate(HOME, "billing:Bill", connection_id=CONNECTION, number=1)
    assert standing["standing"] is None
    assert standing["document"]["paid_out_micro"] == str(-total)


def test_versions_of_a_tariff_cut_a_bill_in_parts() -> None:
    billing = BillingWorld()
    dearer = {**FLAT, "bands": [{**FLAT["bands"][0], "price": 300_000}]}
    billing.submit(OPERATOR, "tariff:Propose", terms=dearer, effective_from=at("2019-03-11", 13))
    billing.submit(BOREAL_OPERATOR, "tariff:Approve", tariff="FLAT", version=2)
    billing.read("2019-03-01", "2019-04-01", 100)
    found = billing.bill("2019-03-01", "2019-04-01")
    # A day goes by what holds when it begins: the dearer one from the 12th on.
    assert int(found["difference_micro"]) == (
        31 * 100_000 + 11 * 24 * 100 * 200 + (20 * 24 - 1) * 100 * 300
    )
    record = billing.evaluate(HOME, "bill:Record", connection_id=CONNECTION, from_day="2019-03-01")
    assert [part["to_day"] for part in record["bills"]] == ["2019-03-12", "2019-04-01"]


# Days that are settled first


def town_with_tariff(rest: str) -> Town:
    """A seller of 1,000 Wh at noon and a buyer of 600 of them, who takes 900 and 200 later."""
    town = Town.of("BUY-1", "SELL", product=True, terms={"rest": rest})
    calendar = {
        "region": "UTC",
        "offsets": [{"from": 0, "offset_s": 0}],
        "known_until": START + 10 * 86_400,
        "holidays": [],
    }
    town.agree("tariff:ProposeCalendar", "tariff:ApproveCalendar", calendar, region="UTC")
    tariff = {**FLAT, "capacity_micro_per_kw_month": 1_000_000}
    town.agree("tariff:Propose", "tariff:Approve", tariff, tariff="FLAT")
    for name in town.homes:
        supply = {
            **SUPPLY,
            "connection_id": name,
            "region": "UTC",
            "regulated_tariff": None,
            "from_day": DAY,
            "period": "day",
        }
        town.world.submit(OPERATOR, "billing:AgreeSupply", supply=supply)
    town.order("SELL", "offer", 600, 90_000, 50)
    town.order("BUY-1", "bid", 600, 100_000, 50)
    town.clear(50)
    town.read_day({"SELL": {50: (0, 1000)}, "BUY-1": {50: (900, 0), 60: (200, 0)}})
    return town


@pytest.mark.parametrize("rest", ["billed", "settled"])
def test_bills_are_of_what_trades_have_left(rest: str) -> None:
    town = town_with_tariff(rest)
    compute = {"connection_id": "BUY-1", "from_day": DAY, "to_day": "2026-11-23"}
    town.world.now = START + 86_400 + 3600
    with pytest.raises(Conflict, match="day 2026-11-22 of BUY-1 isn't settled yet"):
        town.world.submit(OPERATOR, "bill:Compute", **compute)
    town.settle()
    statement = town.world.submit(OPERATOR, "bill:Compute", **compute)
    record = town.world.evaluate(
        town.homes["BUY-1"], "bill:Record", connection_id="BUY-1", from_day=DAY
    )
    # 600 of 1,100 Wh were bought; where settlement pays for the rest, no energy is billed. The
    # capacity is that of all that was taken: 900 Wh in a quarter hour are 3.6 kW.
    billed = 500 if rest == "billed" else 0
    assert record["import_wh"] == str(billed)
    capacity = [line for line in record["bills"][0]["lines"] if line["kind"] == "capacity"]
    assert capacity[0]["quantity"] == "3600"
    before = town.world.money()
    town.world.submit(OPERATOR, "billing:Post", statement=statement)
    assert town.world.money() == before
    seller = town.world.submit(OPERATOR, "bill:Compute", **{**compute, "connection_id": "SELL"})
    # 0.10 a day; the 400 Wh that nobody bought bring 0.02.
    assert int(seller["total_micro"]) == 100_000 - (20_000 if rest == "billed" else 0)


def test_the_first_local_day_of_settlement_terms_is_not_paid_twice() -> None:
    """It begins before the terms do, which begin with the UTC day of its name."""
    town = Town.of("BUY-1")
    hour = 3600
    calendar = {
        "region": "CET",
        "offsets": [{"from": 0, "offset_s": hour}],
        "known_until": START + 10 * 86_400,
        "holidays": [],
    }
    # In force before the settlement terms.
    for function, terms in (("ProposeCalendar", calendar), ("Propose", FLAT)):
        town.world.submit(
            OPERATOR, f"tariff:{function}", terms=terms, effective_from=START - 2 * hour
        )
    town.world.submit(BOREAL_OPERATOR, "tariff:ApproveCalendar", region="CET", version=1)
    town.world.submit(BOREAL_OPERATOR, "tariff:Approve", tariff="FLAT", version=1)
    local = {**TERMS, "supplier": "AuroraMSP", "region": "CET", "rest": "settled"}
    day = "2026-11-23"
    agreed = town.world.submit(
        OPERATOR, "settlement:ProposeTerms", terms=local, effective_from=START + 86_400
    )
    town.world.submit(
        BOREAL_OPERATOR,
        "settlement:ApproveTerms",
        supplier="AuroraMSP",
        version=agreed["version"],
    )
    supply = {
        **SUPPLY,
        "connection_id": "BUY-1",
        "region": "CET",
        "regulated_tariff": None,
        "from_day": day,
        "period": "day",
    }
    town.world.submit(OPERATOR, "billing:AgreeSupply", supply=supply)
    for each in (DAY, day):
        town.read_intervals("BUY-1", dict.fromkeys(range(96), (100, 0)), each)
    town.settle(day=day)
    town.world.submit(
        OPERATOR, "bill:Compute", connection_id="BUY-1", from_day=day, to_day="2026-11-24"
    )
    record = town.world.evaluate(
        town.homes["BUY-1"], "bill:Record", connection_id="BUY-1", from_day=day
    )
    assert record["import_wh"] == "0"


def test_a_day_settled_anew_is_billed_anew() -> None:
    town = town_with_tariff("billed")
    town.world.now = START + 86_400 + 3600
    town.settle()
    compute = {"connection_id": "BUY-1", "from_day": DAY, "to_day": "2026-11-23"}
    first = town.world.submit(OPERATOR, "bill:Compute", **compute)
    town.world.submit(OPERATOR, "billing:Post", statement=first)
    town.read("BUY-1", 60, 1200)
    town.world.now = final_time()
    town.settle("final")
    second = town.world.submit(OPERATOR, "bill:Compute", **compute, run=2)
    posted = town.world.submit(OPERATOR, "billing:Post", statement=second)
    # One more kWh, and 4.8 kW instead of 3.6 on one of 30.4375 days, each rounded to the cent.
    assert int(posted["difference_micro"]) == 200_000 + 40_000


# Supplies


def test_a_supply_needs_both(billed: BillingWorld) -> None:
    other = {**SUPPLY, "from_day": "2019-05-01", "supplier": "BorealMSP"}
    before = billed.clone()
    before.submit(BOREAL_SUPPLIER, "billing:AgreeSupply", supply=other)
    with pytest.raises(Conflict, match="but AuroraMSP supplies CP-0001 on 2019-05-01; first its"):
        before.submit(HOME, "billing:AgreeSupply", supply=other)
    billed.switch("BorealMSP", "2019-05-01")
    offer = billed.submit(BOREAL_SUPPLIER, "billing:AgreeSupply", supply=other)
    assert (offer["by_supplier"], offer["in_force"]) == (True, False)
    with pytest.raises(Forbidden):
        billed.submit(OTHER_HOME, "billing:AgreeSupply", supply=other)
    # Other terms are another offer, which the supplier hasn't made.
    changed = billed.submit(HOME, "billing:AgreeSupply", supply={**other, "term_days": 60})
    assert (changed["by_supplier"], changed["by_home"]) == (False, True)
    billed.submit(BOREAL_SUPPLIER, "billing:AgreeSupply", supply=other)
    agreed = billed.submit(HOME, "billing:AgreeSupply", supply=other)
    assert agreed["in_force"]
    assert billed.submit(HOME, "billing:AgreeSupply", supply=other) == agreed
    versions = billed.evaluate(HOME, "billing:Supplies", connection_id=CONNECTION)["versions"]
    assert [each["supplier"] for each in versions] == ["AuroraMSP", "BorealMSP"]
    with pytest.raises(Conflict, match="has another supply from 2019-05-01 on already"):
        billed.submit(HOME, "billing:AgreeSupply", supply={**other, "term_days": 60})
    with pytest.raises(Conflict, match="a new one begins later"):
        billed.submit(SUPPLIER, "billing:AgreeSupply", supply={**SUPPLY, "from_day": "2019-03-15"})


def test_nobody_bills_days_that_the_registry_says_another_supplies(billed: BillingWorld) -> None:
    """The home has switched, and nobody has agreed on a supply with the new company yet."""
    billed.read("2019-04-01", "2019-05-01", 100)
    billed.world.now = at("2019-05-01", 6)
    billed.switch("BorealMSP", "2019-04-11")
    with pytest.raises(Conflict, match="BorealMSP supplies CP-0001 on 2019-04-11, but the supply"):
        billed.compute("2019-04-01", "2019-05-01")
    assert billed.evaluate(OPERATOR, "duties:Due") == []
    billed.bill("2019-04-01", "2019-04-11")
    with pytest.raises(Conflict, match="BorealMSP supplies CP-0001 on 2019-04-11"):
        billed.compute("2019-04-11", "2019-05-01")
    other = {**SUPPLY, "from_day": "2019-04-11", "supplier": "BorealMSP"}
    billed.submit(BOREAL_SUPPLIER, "billing:AgreeSupply", supply=other)
    billed.submit(HOME, "billing:AgreeSupply", supply=other)
    billed.compute("2019-04-11", "2019-05-01")


def test_a_bill_ends_where_another_supplier_begins(billed: BillingWorld) -> None:
    other = {**SUPPLY, "from_day": "2019-04-11", "supplier": "BorealMSP"}
    billed.switch("BorealMSP", "2019-04-11")
    billed.submit(BOREAL_SUPPLIER, "billing:AgreeSupply", supply=other)
    billed.submit(HOME, "billing:AgreeSupply", supply=other)
    billed.read("2019-04-01", "2019-05-01", 100)
    billed.world.now = at("2019-05-01", 6)
    acts = billed.evaluate(SUPPLIER, "billing:Acts")["acts"]
    computing = [act["argument"] for act in acts if act["function"] == "bill:Compute"]
    assert [(each["from_day"], each["to_day"]) for each in computing] == [
        ("2019-04-01", "2019-04-11")
    ]
    with pytest.raises(InvalidArgument, match="ends by 2019-04-11"):
        billed.compute("2019-04-01", "2019-05-01")
    billed.bill("2019-04-01", "2019-04-11")
    statement = billed.compute("2019-04-11", "2019-05-01")
    billed.submit(BOREAL_SUPPLIER, "billing:Post", statement=statement)
    billed.deposit(100_000_000)
    billed.submit(
        HOME, "billing:Pay", connection_id=CONNECTION, amount_micro=MARCH + 1, request_id="p"
    )
    money = billed.world.money()
    assert money["SUPPLIER-AURORA"] + money.get("SUPPLIER-BOREAL", 0) == MARCH + 1


# Payment


def test_payments(billed: BillingWorld) -> None:
    billed.deposit(MARCH + 5)
    pay = {"connection_id": CONNECTION, "amount_micro": 1_000_000, "request_id": "p-1"}
    first = billed.submit(HOME, "billing:Pay", **pay)
    assert billed.submit(HOME, "billing:Pay", **pay) == first
    with pytest.raises(Conflict, match="p-1 is a payment of 1000000"):
        billed.submit(HOME, "billing:Pay", **{**pay, "amount_micro": 2})
    with pytest.raises(Conflict, match="are open for CP-0001"):
        billed.submit(HOME, "billing:Pay", **{**pay, "request_id": "p-2", "amount_micro": MARCH})
    with pytest.raises(Forbidden):
        billed.submit(OPERATOR, "billing:Pay", **{**pay, "request_id": "p-2"})
    received = billed.submit(
        OPERATOR,
        "billing:Receive",
        connection_id=CONNECTION,
        amount_micro=MARCH,
        bank_reference="B-2",
        number=1,
    )
    assert (received["paid"][0]["amount_micro"], received["left_micro"]) == (
        str(MARCH - 1_000_000),
        "1000000",
    )
    assert billed.account()["open_micro"] == "0"
    assert billed.world.money()[CONNECTION] == MARCH + 5
    with pytest.raises(Conflict, match="bank_reference B-2 of AuroraMSP"):
        billed.submit(
            OPERATOR,
            "wallet:Deposit",
            account=CONNECTION,
            amount_micro=1,
            bank_reference="B-2",
        )
    with pytest.raises(Conflict, match="BANK-1 of AuroraMSP is in use"):
        billed.submit(
            OPERATOR,
            "billing:Receive",
            connection_id=CONNECTION,
            amount_micro=5,
            bank_reference="BANK-1",
        )
    with pytest.raises(Forbidden, match="operators of its suppliers"):
        billed.submit(
            BOREAL_OPERATOR,
            "billing:Receive",
            connection_id=CONNECTION,
            amount_micro=5,
            bank_reference="B-3",
        )


# Credit notes


def test_credit_notes_cancel_a_bill_to_zero(billed: BillingWorld) -> None:
    note = {"connection_id": CONNECTION, "number": 1, "reason": "we were late"}
    first = billed.submit(
        SUPPLIER, "billing:Credit", **note, amount_micro=1_000_000, request_id="c"
    )
    again = billed.submit(
        SUPPLIER, "billing:Credit", **note, amount_micro=1_000_000, request_id="c"
    )
    assert first == again
    cancelled = billed.submit(SUPPLIER, "billing:Cancel", **note)
    assert cancelled["total_micro"] == str(1_000_000 - MARCH)
    assert billed.submit(SUPPLIER, "billing:Cancel", **note) == cancelled
    assert billed.account()["open_micro"] == "0"
    assert sum(total for _, _, total in numbers(billed)) == 0
    for function, more in (("Credit", {"amount_micro": 1, "request_id": "d"}),):
        with pytest.raises(InvalidArgument, match="has 0 micro-units left to credit"):
            billed.submit(SUPPLIER, f"billing:{function}", **note, **more)
    # The period is billed anew, without what was a present.
    found = billed.bill("2019-03-01", "2019-04-01", 2)
    assert int(found["difference_micro"]) == MARCH - 1_000_000


def test_who_may_credit(billed: BillingWorld) -> None:
    note = {"connection_id": CONNECTION, "number": 1, "reason": "x"}
    for caller in (HOME, BOREAL_SUPPLIER):
        with pytest.raises(Forbidden):
            billed.submit(caller, "billing:Cancel", **note)
    with pytest.raises(NotFound):
        billed.submit(SUPPLIER, "billing:Cancel", **{**note, "number": 9})


# Disputes


def dispute(billing: BillingWorld, amount: int = 3_000_000, **change: Any) -> Any:
    argument = {
        "connection_id": CONNECTION,
        "number": 1,
        "amount_micro": amount,
        "reason": "I was not at home",
    }
    return billing.submit(HOME, "billing:Dispute", **{**argument, **change})


def test_a_dispute_freezes_its_amount(billed: BillingWorld) -> None:
    dispute(billed)
    assert dispute(billed)["state"] == "open"
    billed.world.now = at("2019-05-01")
    account = billed.account()
    assert (account["open_micro"], account["due_micro"]) == (str(MARCH), str(MARCH - 3_000_000))
    answer = {"connection_id": CONNECTION, "number": 1, "answer": "one million was wrong"}
    with pytest.raises(InvalidArgument, match="3000000 are disputed"):
        billed.submit(SUPPLIER, "billing:Resolve", **answer, credited_micro=3_000_001)
    with pytest.raises(Forbidden):
        billed.submit(HOME, "billing:Resolve", **answer, credited_micro=1)
    found = billed.submit(SUPPLIER, "billing:Resolve", **answer, credited_micro=1_000_000)
    assert billed.submit(SUPPLIER, "billing:Resolve", **answer, credited_micro=1_000_000) == found
    with pytest.raises(Conflict, match="differently"):
        billed.submit(SUPPLIER, "billing:Resolve", **answer, credited_micro=2)
    account = billed.account()
    # The rest is due after a new term.
    assert (account["open_micro"], account["due_micro"]) == (str(MARCH - 1_000_000), "0")
    with pytest.raises(Conflict, match="disputed already: once each"):
        dispute(billed, 5)


def test_a_dispute_that_is_withdrawn(billed: BillingWorld) -> None:
    dispute(billed, MARCH)
    withdraw = {"connection_id": CONNECTION, "number": 1}
    found = billed.submit(HOME, "billing:WithdrawDispute", **withdraw)
    assert billed.submit(HOME, "billing:WithdrawDispute", **withdraw) == found
    assert billed.account()["disputed_micro"] == "0"
    with pytest.raises(Conflict, match="was withdrawn already"):
        billed.submit(
            SUPPLIER,
            "billing:Resolve",
            connection_id=CONNECTION,
            number=1,
            credited_micro=1,
            answer="x",
        )


def test_what_a_dispute_may_not(billed: BillingWorld) -> None:
    with pytest.raises(InvalidArgument, match=f"comes to {MARCH}"):
        dispute(billed, MARCH + 1)
    with pytest.raises(Forbidden):
        billed.submit(
            OPERATOR,
            "billing:Dispute",
            connection_id=CONNECTION,
            number=1,
            amount_micro=1,
            reason="x",
        )
    with pytest.raises(NotFound, match="is not disputed"):
        billed.submit(HOME, "billing:WithdrawDispute", connection_id=CONNECTION, number=1)
    billed.world.now = at("2019-04-23")
    billed.submit(SUPPLIER, "billing:Dun", connection_id=CONNECTION, number=1, step=1)
    billed.world.now = at("2019-05-08")
    # Both at once: the dispute that comes after the final notice in a block fails by itself.
    late = billed.world.simulate(
        HOME,
        "billing:Dispute",
        {"connection_id": CONNECTION, "number": 1, "amount_micro": 5, "reason": "late"},
    )
    billed.submit(SUPPLIER, "billing:Dun", connection_id=CONNECTION, number=1, step=2)
    assert billed.world.state.commit(late.results) == [11]
    with pytest.raises(Conflict, match="had its final notice at"):
        dispute(billed)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("billing:Pay", {"amount_micro": 0, "request_id": "p"}, "amount_micro is 0"),
    ("billing:Pay", {"amount_micro": -5, "request_id": "p"}, "amount_micro is -5"),
    ("billing:Pay", {"amount_micro": 1.5, "request_id": "p"}, "1.5 is not an integer"),
    ("billing:Pay", {"amount_micro": str(2**63), "request_id": "p"}, "between 1 and"),
    ("billing:Pay", {"amount_micro": 1, "request_id": "a/b"}, "request_id is"),
    ("billing:Pay", {"amount_micro": 1, "request_id": "p", "shard": 16}, "shard is 16"),
    ("billing:Credit", {"number": 1, "amount_micro": 1, "reason": ""}, "reason is"),
    ("billing:Dispute", {"number": 0, "amount_micro": 1, "reason": "x"}, "number is 0"),
    ("billing:Dun", {"number": 1, "step": 3}, "step is 3"),
    ("billing:Basis", {"from_day": "2019-3-1", "to_day": "2019-04-01"}, "from_day is"),
    ("billing:Basis", {"from_day": "2019-03-01", "to_day": "2019-02-31"}, "day is 2019-02-31"),
    ("billing:Bills", {"limit": 201}, "limit is 201"),
    ("billing:Account", {"more": 1}, "more is not a field"),
    ("billing:Resolve", {"number": 1, "credited_micro": -1, "answer": "x"}, "credited_micro is -1"),
    ("prepayment:TopUp", {"amount_micro": 0, "request_id": "p"}, "amount_micro is 0"),
    ("prepayment:BuyEnergy", {"energy_wh": 0, "price_micro_per_kwh": 1}, "energy_wh is 0"),
    ("prepayment:TakeBack", {"amount_micro": "x"}, "amount_micro is"),
    ("permit:Consent", {"remote_control": 1}, "must be true or false"),
    ("permit:Suspend", {"cleared_at": -1}, "cleared_at is -1"),
    ("permit:Restore", {"goodwill": "yes"}, "must be true or false"),
    ("bill:Compute", {"from_day": "2019-03-01", "to_day": "2019-04-01", "run": 51}, "run is 51"),
    ("bill:Record", {"from_day": "1-2-3"}, "from_day is"),
]


@pytest.mark.parametrize(("function", "fields", "sentence"), BAD)
def test_bad_fields(
    billed_once: BillingWorld, function: str, fields: dict[str, Any], sentence: str
) -> None:
    before = billed_once.world.state.values()
    with pytest.raises(InvalidArgument, match=sentence.replace("(", r"\(")):
        billed_once.submit(HOME, function, connection_id=CONNECTION, **fields)
    assert billed_once.world.state.values() == before


ANYWHERE = [
    ("billing:Pay", HOME, {"amount_micro": 1, "request_id": "p"}),
    ("billing:Receive", OPERATOR, {"amount_micro": 1, "bank_reference": "B"}),
    (
        "billing:Credit",
        OPERATOR,
        {"number": 1, "amount_micro": 1, "reason": "x", "request_id": "c"},
    ),
    ("billing:Cancel", OPERATOR, {"number": 1, "reason": "x"}),
    ("billing:Dispute", HOME, {"number": 1, "amount_micro": 1, "reason": "x"}),
    ("billing:WithdrawDispute", HOME, {"number": 1}),
    ("billing:Resolve", OPERATOR, {"number": 1, "credited_micro": 1, "answer": "x"}),
    ("billing:Dun", OPERATOR, {"number": 1, "step": 1}),
    ("billing:Bill", HOME, {"number": 1}),
    ("billing:Bills", HOME, {}),
    ("billing:Account", HOME, {}),
    ("billing:Supplies", HOME, {}),
    ("billing:Offer", HOME, {"from_day": "2019-03-02"}),
    ("billing:Basis", HOME, {"from_day": "2019-03-01", "to_day": "2019-04-01"}),
    ("prepayment:TopUp", HOME, {"amount_micro": 1, "request_id": "p"}),
    ("prepayment:Receive", OPERATOR, {"amount_micro": 1, "bank_reference": "B"}),
    ("prepayment:UseEmergency", HOME, {}),
    ("prepayment:TakeBack", HOME, {"amount_micro": 1}),
    ("prepayment:Status", HOME, {}),
    ("permit:Consent", HOME, {"remote_control": True}),
    ("permit:Warn", OPERATOR, {}),
    ("permit:Limit", OPERATOR, {"cleared_at": 1}),
    ("permit:Suspend", OPERATOR, {"cleared_at": 1}),
    ("permit:Restore", HOME, {}),
    ("permit:Status", HOME, {}),
    ("permit:Case", HOME, {}),
    ("bill:Compute", OPERATOR, {"from_day": "2019-03-01", "to_day": "2019-04-01"}),
    ("bill:Record", HOME, {"from_day": "2019-03-01"}),
    ("bill:Preview", HOME, {"from_day": "2019-03-01", "to_day": "2019-04-01"}),
    ("protection:Clear", OPERATOR, {}),
    ("protection:Mark", HOME, {}),
]


@pytest.fixture(scope="module")
def billed_once() -> BillingWorld:
    """Like `billed`, for tests that change nothing."""
    return billed_march()


@pytest.mark.parametrize(("function", "caller", "fields"), ANYWHERE)
def test_unknown_connections_and_strangers(
    billed_once: BillingWorld, function: str, caller: Any, fields: dict[str, Any]
) -> None:
    before = billed_once.world.state.values()
    with pytest.raises(ContractError, match="CP-9999") as unknown:
        billed_once.submit(caller, function, connection_id="CP-9999", **fields)
    assert unknown.value.status in (403, 404, 409)
    for stranger in (OTHER_HOME, BOREAL_SUPPLIER):
        if function != "permit:Case":
            with pytest.raises(ContractError) as refused:
                billed_once.submit(stranger, function, connection_id=CONNECTION, **fields)
            assert refused.value.status in (403, 409)
    for field in ("CP/0001", "cp-0001", "", 5):
        with pytest.raises(InvalidArgument, match="connection_id is"):
            billed_once.submit(caller, function, connection_id=field, **fields)
    assert billed_once.world.state.values() == before


def test_an_agent_bills_what_is_over_and_settled(billed: BillingWorld) -> None:
    billed.read("2019-04-01", "2019-05-01", 100)
    assert billed.evaluate(OPERATOR, "duties:Due") == []
    billed.world.now = at("2019-05-01", 6)
    [compute] = billed.evaluate(OPERATOR, "duties:Due")
    assert (compute["function"], compute["utility"]) == ("bill:Compute", "AuroraMSP")
    statement = billed.submit(OPERATOR, "bill:Compute", **compute["argument"])
    [post] = billed.evaluate(OPERATOR, "duties:Due")
    assert (post["chaincode"], post["function"]) == ("energy", "billing:Post")
    assert post["argument"] == {"statement": statement}
    billed.submit(OPERATOR, "billing:Post", **post["argument"])
    assert [number for number, _, _ in numbers(billed)] == ["1", "2"]
    assert billed.evaluate(OPERATOR, "duties:Due") == []
    # March's bill is due and nobody has paid it.
    [remind] = billed.evaluate(OPERATOR, "agenda:Due")
    assert remind["function"] == "billing:Dun"
    billed.submit(OPERATOR, "billing:Dun", **remind["argument"])
    assert billed.evaluate(OPERATOR, "agenda:Due") == []
