"""Credits in money and energy: drawn by bills, topped up, forecast, and never cut off by night."""

from datetime import date, timedelta
from functools import cache
from typing import Any

import pytest

from consortium.chaincode.api import Conflict, Forbidden, NotFound
from consortium.contracts.billing.prepayment import days_left, draw_energy
from consortium.contracts.billing.supply import Draw, Lot, Prepaid
from tests.consortium.contracts.billing_world import CONNECTION, SUPPLY, BillingWorld, at
from tests.consortium.contracts.world import (
    BOREAL_SUPPLIER,
    HOME,
    OPERATOR,
    OTHER_HOME,
    SUPPLIER,
)

DAY = 24 * 1000 * 200 + 100_000
"""1 kWh in each hour at 0.20, and 0.10 a day: 4.90."""


def day(number: int) -> str:
    """A day of April 2019 and on."""
    return (date(2019, 4, 1) + timedelta(days=number - 1)).isoformat()


@cache
def _metered(payment: str) -> BillingWorld:
    billing = BillingWorld(
        payment=payment, period="day", from_day="2019-04-01", emergency_micro=2_000_000
    )
    billing.read("2019-04-01", "2019-04-17", 1000)
    billing.world.now = at("2019-04-01")
    billing.submit(HOME, "permit:Consent", connection_id=CONNECTION, remote_control=True)
    billing.protect()
    billing.deposit(100_000_000)
    return billing


def metered(payment: str = "prepaid") -> BillingWorld:
    """A prepaid connection with readings of 16 days."""
    return _metered(payment).clone()


def bill(billing: BillingWorld, number: int, run: int = 1) -> Any:
    """Compute and post the bill of a day."""
    return billing.bill(day(number), day(number + 1), run)


def top_up(billing: BillingWorld, amount: int, request_id: str = "t") -> Any:
    return billing.submit(
        HOME,
        "prepayment:TopUp",
        connection_id=CONNECTION,
        amount_micro=amount,
        request_id=request_id,
    )


def status(billing: BillingWorld) -> Any:
    return billing.evaluate(HOME, "prepayment:Status", connection_id=CONNECTION)


def test_bills_come_out_of_the_credit() -> None:
    billing = metered()
    added = top_up(billing, 20_000_000)
    assert top_up(billing, 20_000_000) == added
    with pytest.raises(Conflict, match="is a top-up of 20000000"):
        top_up(billing, 5)
    assert status(billing)["days_left"] is None
    for number in (1, 2):
        bill(billing, number)
    found = status(billing)
    assert found["credit_micro"] == str(20_000_000 - 2 * DAY)
    assert (found["days_left"], found["low"]) == ("2", True)
    assert billing.account()["open"] == []
    money = billing.world.money()
    assert (money[CONNECTION], money["SUPPLIER-AURORA"]) == (100_000_000 - 2 * DAY, 2 * DAY)


def test_a_credit_becomes_low_once() -> None:
    billing = metered()
    top_up(billing, 4 * DAY + 5)
    events = []
    for number in range(1, 4):
        billing.world.now = at(day(number + 1), 6)
        statement = billing.compute(day(number), day(number + 1))
        answer = billing.world.simulate(OPERATOR, "billing:Post", {"statement": statement})
        assert billing.world.state.commit(answer.results) == [0]
        assert answer.event is not None
        events.append((answer.event[0], answer.event[1].get("days_left")))
    assert events == [("bill", None), ("prepayment_low", "2"), ("bill", None)]


def test_what_is_not_covered_is_paid_by_the_next_top_up() -> None:
    billing = metered()
    top_up(billing, DAY + 1_000_000)
    for number in (1, 2):
        bill(billing, number)
    found = status(billing)
    assert (found["credit_micro"], found["open_micro"], found["days_left"]) == (
        "0",
        str(DAY - 1_000_000),
        "0",
    )
    added = top_up(billing, DAY, "u")
    assert [(part["number"], part["amount_micro"]) for part in added["paid"]] == [
        ("2", str(DAY - 1_000_000))
    ]
    assert status(billing)["credit_micro"] == "1000000"
    # The hold that was used up has ended; the new one is another with the same name.
    bill(billing, 3)
    assert status(billing)["open_micro"] == str(DAY - 1_000_000)


def test_cash_at_the_till() -> None:
    billing = metered()
    receive = {"connection_id": CONNECTION, "amount_micro": DAY, "bank_reference": "TILL-1"}
    billing.submit(SUPPLIER, "prepayment:Receive", **receive)
    again = billing.submit(SUPPLIER, "prepayment:Receive", **receive)
    assert again["request_id"] == "TILL-1"
    assert status(billing)["credit_micro"] == str(DAY)
    for caller in (HOME, BOREAL_SUPPLIER):
        with pytest.raises(Forbidden):
            billing.submit(caller, "prepayment:Receive", **receive)
    with pytest.raises(Conflict, match="BANK-1 of AuroraMSP is in use"):
        billing.submit(SUPPLIER, "prepayment:Receive", **{**receive, "bank_reference": "BANK-1"})


def test_money_is_taken_back() -> None:
    billing = metered()
    top_up(billing, DAY)
    take = {"connection_id": CONNECTION}
    with pytest.raises(Conflict, match=f"the credit of CP-0001 is {DAY}"):
        billing.submit(HOME, "prepayment:TakeBack", **take, amount_micro=DAY + 1)
    with pytest.raises(Forbidden):
        billing.submit(OTHER_HOME, "prepayment:TakeBack", **take, amount_micro=1)
    billing.submit(HOME, "prepayment:TakeBack", **take, amount_micro=1_000_000)
    assert status(billing)["credit_micro"] == str(DAY - 1_000_000)
    left = billing.submit(HOME, "prepayment:TakeBack", **take, amount_micro=DAY - 1_000_000)
    assert left["credit_micro"] == "0"
    top_up(billing, 5, "again")
    assert status(billing)["credit_micro"] == "5"
    billing.world.money()


# Energy in advance


def buy(billing: BillingWorld, energy_wh: int, request_id: str = "e", price: int = 180_000) -> Any:
    return billing.submit(
        HOME,
        "prepayment:BuyEnergy",
        connection_id=CONNECTION,
        energy_wh=energy_wh,
        price_micro_per_kwh=price,
        request_id=request_id,
    )


def publish(billing: BillingWorld, price: int = 180_000) -> Any:
    return billing.submit(
        SUPPLIER, "prepayment:PublishPrice", supplier="AuroraMSP", price_micro_per_kwh=price
    )


def test_energy_in_advance_covers_import_first() -> None:
    billing = metered("prepaid_energy")
    with pytest.raises(NotFound, match="has published no price"):
        billing.evaluate(HOME, "prepayment:Price", supplier="AuroraMSP")
    with pytest.raises(Conflict, match="AuroraMSP is none"):
        buy(billing, 30_000)
    published = publish(billing)
    assert publish(billing) == published
    with pytest.raises(Conflict, match="is 180000"):
        buy(billing, 30_000, price=179_999)
    bought = buy(billing, 30_000)
    assert buy(billing, 30_000) == bought
    assert bought["amount_micro"] == "5400000"
    top_up(billing, 10_000_000)
    # 24 kWh on the first day: covered, only the standing charge is left.
    assert bill(billing, 1)["difference_micro"] == "100000"
    found = status(billing)
    assert (found["credit_wh"], found["credit_micro"]) == ("6000", "9900000")
    # On the second 6 kWh are covered, 18 at the tariff.
    assert int(bill(billing, 2)["difference_micro"]) == 100_000 + 18_000 * 200
    assert status(billing)["credit_wh"] == "0"
    record = billing.evaluate(HOME, "bill:Record", connection_id=CONNECTION, from_day=day(2))
    assert (record["drawn_wh"], record["import_wh"]) == ("6000", "24000")
    # The regulated tariff is of all of it.
    assert int(record["regulated_micro"]) == 24_000 * 200


def test_a_computed_bill_stays_what_it_is_when_energy_is_bought() -> None:
    billing = metered("prepaid_energy")
    publish(billing)
    buy(billing, 6_000)
    billing.world.now = at(day(2), 6)
    statement = billing.compute(day(1), day(2))
    buy(billing, 50_000, "more")
    assert billing.compute(day(1), day(2)) == statement
    billing.submit(OPERATOR, "billing:Post", statement=statement)
    assert billing.compute(day(1), day(2)) == statement
    assert status(billing)["credit_wh"] == "50000"
    # A correction may use what has come since.
    second = billing.compute(day(1), day(2), 2)
    assert second["drawn_wh"] == "24000"
    posted = billing.submit(OPERATOR, "billing:Post", statement=second)
    assert int(posted["difference_micro"]) == -18_000 * 200
    assert status(billing)["credit_wh"] == "32000"


def test_energy_of_an_earlier_supplier_is_paid_back() -> None:
    billing = metered("prepaid_energy")
    publish(billing)
    buy(billing, 30_000)
    bill(billing, 1)
    refund = {"connection_id": CONNECTION, "supplier": "AuroraMSP"}
    with pytest.raises(Conflict, match="still supplies CP-0001"):
        billing.submit(HOME, "prepayment:RefundEnergy", **refund)
    other = {**SUPPLY, "supplier": "BorealMSP", "from_day": day(3)}
    billing.switch("BorealMSP", day(3))
    billing.submit(BOREAL_SUPPLIER, "billing:AgreeSupply", supply=other)
    billing.submit(HOME, "billing:AgreeSupply", supply=other)
    billing.world.now = at(day(3), 6)
    with pytest.raises(Conflict, match="is billed up to 2019-04-02"):
        billing.submit(HOME, "prepayment:RefundEnergy", **refund)
    assert bill(billing, 2)["statement"]["drawn_wh"] == "6000"
    back = billing.submit(HOME, "prepayment:RefundEnergy", **refund)
    assert (back["energy_wh"], back["amount_micro"]) == ("0", "0")

    billing = metered("prepaid_energy")
    publish(billing)
    buy(billing, 30_000)
    bill(billing, 1)
    other["from_day"] = day(2)
    billing.switch("BorealMSP", day(2))
    billing.submit(BOREAL_SUPPLIER, "billing:AgreeSupply", supply=other)
    billing.submit(HOME, "billing:AgreeSupply", supply=other)
    basis = billing.evaluate(
        HOME, "billing:Basis", connection_id=CONNECTION, from_day=day(2), to_day=day(3)
    )
    assert (basis["supplier"], basis["prepaid_wh"]) == ("BorealMSP", "0")
    before = billing.world.money()[CONNECTION]
    back = billing.submit(HOME, "prepayment:RefundEnergy", **refund)
    assert (back["energy_wh"], back["amount_micro"]) == ("6000", "1080000")
    assert billing.submit(HOME, "prepayment:RefundEnergy", **refund)["amount_micro"] == "0"
    assert billing.world.money()[CONNECTION] == before + 1_080_000


def test_lots() -> None:
    full = Prepaid((Lot("A", 5, 1), Lot("B", 9, 1), Lot("A", 7, 2)))
    assert full.energy_wh("A") == 12
    assert draw_energy(full, "A", 6).lots == (Lot("B", 9, 1), Lot("A", 6, 2))
    assert draw_energy(full, "A", 12).lots == (Lot("B", 9, 1), Lot("A", 0, 2))
    assert draw_energy(full, "A", -3).lots[-1] == Lot("A", 10, 2)
    assert draw_energy(full, "B", -3).lots[-1] == Lot("B", 3, 1)
    assert draw_energy(full, "A", 0) == full
    with pytest.raises(Conflict, match="the bill draws 13 Wh, but 12 are left"):
        draw_energy(full, "A", 13)


def test_days_left() -> None:
    draws = (Draw("2019-04-01", 1, 1000, 10), Draw("2019-04-02", 2, 2000, 20))
    assert days_left(Prepaid((), draws), "A", 2999, 0) == 2
    lots = (Lot("A", 15, 0), Lot("B", 10**9, 0))
    assert days_left(Prepaid(lots, draws), "A", 10**9, 0) == 1
    assert days_left(Prepaid((), draws), "A", 2999, 1) == 0
    assert days_left(Prepaid(), "A", 2999, 0) is None
    # Days that bring more than they cost last for ever.
    assert days_left(Prepaid((), (Draw("2019-04-01", 1, -5, 0),)), "A", 2999, 0) is None


# Emergency credit, friendly hours


def exhaust(billing: BillingWorld, days: int) -> None:
    top_up(billing, DAY)
    for number in range(1, days + 1):
        bill(billing, number)


def warn(billing: BillingWorld) -> Any:
    return billing.submit(SUPPLIER, "permit:Warn", connection_id=CONNECTION)


def test_emergency_credit() -> None:
    billing = metered()
    emergency = {"connection_id": CONNECTION}
    with pytest.raises(Conflict, match="is not low"):
        billing.submit(HOME, "prepayment:UseEmergency", **emergency)
    top_up(billing, 2 * DAY - 1_500_000)
    for number in (1, 2):
        bill(billing, number)
    billing.world.now += 7200
    assert warn(billing)["reason"] == "credit_used_up"
    with pytest.raises(Forbidden):
        billing.submit(SUPPLIER, "prepayment:UseEmergency", **emergency)
    used = billing.submit(HOME, "prepayment:UseEmergency", **emergency)
    assert billing.submit(HOME, "prepayment:UseEmergency", **emergency) == used
    # It covers the 1.50 that are open: the warning is taken back.
    assert billing.status()["state"] == "granted"
    assert status(billing)["emergency_left_micro"] == "500000"
    with pytest.raises(Conflict, match="has 0 micro-units due"):
        warn(billing)
    bill(billing, 3)
    billing.world.now += 7200
    assert warn(billing)["due_micro"] == str(1_500_000 + DAY - 2_000_000)
    # The next top-up pays all that is open, and ends the emergency.
    top_up(billing, 20_000_000, "u")
    found = status(billing)
    assert (found["emergency"], found["open_micro"]) == (False, "0")
    assert billing.status()["state"] == "granted"


def test_friendly_hours() -> None:
    """The credit is used up on Tuesday the 2nd; notice is two days, grace seven."""
    billing = metered()
    exhaust(billing, 2)
    billing.world.now = at("2019-04-03", 8)
    assert billing.status()["next_step"] == "warning"
    warn(billing)
    for now in (at("2019-04-12", 10), at("2019-04-15", 3), at("2019-04-15", 20)):
        billing.world.now = now
        cleared = billing.submit(OPERATOR, "protection:Clear", connection_id=CONNECTION)
        with pytest.raises(Conflict, match="nobody is cut off"):
            billing.submit(
                SUPPLIER,
                "permit:Suspend",
                connection_id=CONNECTION,
                cleared_at=cleared["cleared_at"],
            )
    billing.world.now = at("2019-04-15", 10)
    cleared = billing.submit(OPERATOR, "protection:Clear", connection_id=CONNECTION)
    suspended = billing.submit(
        SUPPLIER, "permit:Suspend", connection_id=CONNECTION, cleared_at=cleared["cleared_at"]
    )
    assert suspended["state"] == "suspended"
    with pytest.raises(Conflict, match="is suspended already"):
        billing.submit(HOME, "prepayment:UseEmergency", connection_id=CONNECTION)
    billing.world.now = at("2019-04-15", 23)
    top_up(billing, 2 * DAY, "u")
    assert billing.status()["reason"] == "paid"


def test_a_postpaid_connection_has_no_credit() -> None:
    billing = BillingWorld()
    billing.deposit(100)
    with pytest.raises(Conflict, match="is supplied postpaid; see billing:Pay"):
        top_up(billing, 5)
    with pytest.raises(Conflict, match="has no emergency credit"):
        billing.submit(HOME, "prepayment:UseEmergency", connection_id=CONNECTION)
    with pytest.raises(Conflict, match="is supplied postpaid, not prepaid_energy"):
        buy(billing, 5)
    with pytest.raises(Forbidden):
        billing.submit(
            BOREAL_SUPPLIER,
            "prepayment:PublishPrice",
            supplier="AuroraMSP",
            price_micro_per_kwh=1,
        )
