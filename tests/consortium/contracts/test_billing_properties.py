"""What holds of bills, credits and permits whatever is called in whatever order."""

import hashlib
from contextlib import suppress
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.chaincode.api import ContractError, canonical_json
from consortium.contracts.billing.bill_basis import draw, statement_key
from consortium.contracts.billing.tariffs import Usage
from consortium.ledger.state import Version, VersionedValue
from tests.consortium.contracts.billing_world import CONNECTION, RULES, BillingWorld, at
from tests.consortium.contracts.world import HOME, OPERATOR, SUPPLIER

DAY_S = 86_400
MIN_DUE = int(RULES["min_due_micro"])

AMOUNTS = st.integers(1, 60) | st.integers(1, 60_000_000)
NUMBERS = st.integers(1, 8)
STEPS = st.one_of(
    st.tuples(st.just("post"), st.integers(-5_000_000, 30_000_000), st.booleans()),
    st.tuples(st.just("post"), st.integers(1_000_000, 30_000_000), st.just(False)),
    st.tuples(st.just("correct"), st.integers(0, 5), st.integers(-5_000_000, 30_000_000)),
    st.tuples(st.sampled_from(["pay", "receive", "top_up", "buy", "take_back"]), AMOUNTS),
    st.tuples(st.sampled_from(["credit", "dispute", "resolve"]), NUMBERS, AMOUNTS),
    st.tuples(st.sampled_from(["cancel", "withdraw", "remind", "final"]), NUMBERS),
    st.tuples(st.sampled_from(["warn", "limit", "suspend", "down", "restore", "emergency"])),
    st.tuples(st.sampled_from(["warn", "suspend", "down"])),
    st.tuples(st.just("protect"), st.booleans()),
    st.tuples(st.just("wait"), st.integers(1, 40)),
)


@cache
def _channel(payment: str) -> BillingWorld:
    emergency = 0 if payment == "postpaid" else 3_000_000
    billing = BillingWorld(
        payment=payment, period="day", from_day="2019-04-01", emergency_micro=emergency
    )
    billing.world.now = at("2019-04-01", 10)
    billing.submit(HOME, "permit:Consent", connection_id=CONNECTION, remote_control=True)
    billing.submit(
        SUPPLIER, "prepayment:PublishPrice", supplier="AuroraMSP", price_micro_per_kwh=100_000
    )
    billing.protect()
    billing.deposit(10**9)
    return billing


class Sequence:
    """Random calls, and what must hold after each."""

    def __init__(self, payment: str) -> None:
        self.billing = _channel(payment).clone()
        self.payment = payment
        self.protected = False
        self.runs: list[int] = []
        self.drawn: list[int] = []
        self.bought_wh = 0
        self.paid_for_energy = 0
        self.count = 0

    def submit(self, caller: Any, function: str, **argument: Any) -> Any:
        """A call that changes nothing when it is sent again."""
        if function not in ("protection:Declare", "prepayment:TakeBack"):
            argument = {"connection_id": CONNECTION, **argument}
        answer = self.billing.submit(caller, function, **argument)
        if function != "prepayment:TakeBack":
            before = self.billing.world.state.values()
            assert self.billing.submit(caller, function, **argument) == answer
            assert self.billing.world.state.values() == before, function
        return answer

    def post(self, index: int, total: int, *, estimated: bool) -> None:
        """Post a run of a day's bill, as if its utility had computed it so."""
        first = date(2019, 4, 1) + timedelta(days=index)
        run = self.runs[index] + 1 if index < len(self.runs) else 1
        drawn = 0
        if self.payment == "prepaid_energy":
            drawn = min(total % 30_000, self.credit_wh() + sum(self.drawn[index : index + 1]))
        statement = {
            "connection_id": CONNECTION,
            "from_day": first.isoformat(),
            "to_day": (first + timedelta(days=1)).isoformat(),
            "run": str(run),
            "total_micro": str(total),
            "drawn_wh": str(drawn),
            "estimated": estimated,
            "commitment": hashlib.sha256(f"{index}/{run}".encode()).hexdigest(),
        }
        key = statement_key(CONNECTION, statement["from_day"], run)
        place = ("metering", "readings-AuroraMSP", hashlib.sha256(key.encode()).digest())
        committed = hashlib.sha256(canonical_json(statement)).digest()
        self.billing.world.state.hashes[place] = VersionedValue(committed, b"", Version(0, 0))
        self.billing.world.now = max(self.billing.world.now, at(statement["to_day"], 10))
        posted = self.billing.submit(OPERATOR, "billing:Post", statement=statement)
        before = self.billing.world.state.values()
        assert self.billing.submit(OPERATOR, "billing:Post", statement=statement) == posted
        assert self.billing.world.state.values() == before
        self.runs[index : index + 1] = [run]
        self.drawn[index : index + 1] = [drawn]

    def credit_wh(self) -> int:
        found = self.billing.evaluate(HOME, "prepayment:Status", connection_id=CONNECTION)
        return int(found["credit_wh"])

    def step(self, step: tuple[Any, ...]) -> None:
        self.count += 1
        request = {"request_id": f"r-{self.count}"}
        match step:
            case "post", total, estimated:
                self.post(len(self.runs), total, estimated=estimated)
            case "correct", index, total:
                if index < len(self.runs):
                    self.post(index, total, estimated=False)
            case "pay", amount:
                owed = int(self.billing.account()["open_micro"])
                amount = min(amount, max(owed, 1))
                self.submit(HOME, "billing:Pay", amount_micro=amount, **request)
            case "receive", amount:
                reference = f"R-{self.count}"
                self.submit(
                    OPERATOR, "billing:Receive", amount_micro=amount, bank_reference=reference
                )
            case "top_up", amount:
                self.submit(HOME, "prepayment:TopUp", amount_micro=amount, **request)
            case "take_back", amount:
                self.submit(
                    HOME, "prepayment:TakeBack", connection_id=CONNECTION, amount_micro=amount
                )
            case "buy", amount:
                bought = self.submit(
                    HOME,
                    "prepayment:BuyEnergy",
                    energy_wh=min(amount, 40_000),
                    price_micro_per_kwh=100_000,
                    **request,
                )
                self.bought_wh += int(bought["energy_wh"])
                self.paid_for_energy += int(bought["amount_micro"])
            case "credit", number, amount:
                self.submit(
                    SUPPLIER,
                    "billing:Credit",
                    number=number,
                    amount_micro=amount,
                    reason="x",
                    **request,
                )
            case "cancel", number:
                self.submit(SUPPLIER, "billing:Cancel", number=number, reason="x")
            case "dispute", number, amount:
                self.submit(HOME, "billing:Dispute", number=number, amount_micro=amount, reason="x")
            case "withdraw", number:
                self.submit(HOME, "billing:WithdrawDispute", number=number)
            case "resolve", number, amount:
                self.submit(
                    SUPPLIER, "billing:Resolve", number=number, credited_micro=amount, answer="x"
                )
            case ("remind" | "final") as which, number:
                level = 1 if which == "remind" else 2
                self.submit(SUPPLIER, "billing:Dun", number=number, step=level)
            case ("warn",):
                self.submit(SUPPLIER, "permit:Warn")
            case (("limit" | "suspend") as which,):
                self.down(which)
            case ("down",):
                self.all_the_way()
            case ("restore",):
                self.submit(HOME, "permit:Restore")
            case ("emergency",):
                self.submit(HOME, "prepayment:UseEmergency")
            case "protect", protected:
                self.billing.protect("medical" if protected else "none")
                self.protected = protected
            case "wait", days:
                self.billing.world.now += days * DAY_S

    def down(self, which: str) -> None:
        before = self.billing.status()["state"]
        cleared = self.submit(OPERATOR, "protection:Clear")
        after = self.submit(
            SUPPLIER, f"permit:{which.capitalize()}", cleared_at=cleared["cleared_at"]
        )
        if after["state"] != before:
            assert not self.protected
            assert int(after["due_micro"]) >= MIN_DUE

    def all_the_way(self) -> None:
        """Let a quarter pass and send every act when it is due, Mondays at ten."""
        for _ in range(13):
            local = datetime.fromtimestamp(self.billing.world.now, ZoneInfo("Europe/Rome"))
            monday = local.date() + timedelta(days=7 - local.weekday())
            self.billing.world.now = at(monday.isoformat(), 10)
            if monday.year > 2019:
                break  # The calendar has run out, and nobody is cut off any more.
            for act in self.billing.evaluate(SUPPLIER, "billing:Acts")["acts"]:
                if act["function"] == "protection:Clear":
                    if not self.protected and monday.isoformat() != "2019-11-04":
                        self.down(act["then"].removeprefix("permit:").lower())
                elif act["function"] != "bill:Compute":
                    self.billing.submit(SUPPLIER, act["function"], **act["argument"])
        self.check()

    def check(self) -> None:
        billing = self.billing
        money = billing.world.money()
        assert sum(money.values()) == 0
        found = billing.evaluate(HOME, "billing:Bills", connection_id=CONNECTION, limit=200)
        assert found["bookmark"] is None
        documents = [each["document"] for each in found["bills"]]
        standings = [each["standing"] for each in found["bills"] if each["standing"]]
        total = sum(int(document["total_micro"]) for document in documents)
        account = billing.account()
        status = billing.status()
        # No micro-unit is lost: all documents together are what is open and what was paid.
        earned = money.get("SUPPLIER-AURORA", 0) - self.paid_for_energy
        assert total == int(account["open_micro"]) + earned
        for standing in standings:
            claim = int(standing["total_micro"]) - int(standing["credited_micro"])
            assert 0 <= int(standing["paid_micro"]) <= claim
            assert 0 <= int(standing["disputed_micro"]) <= claim
        open_numbers = {
            standing["number"]
            for standing in standings
            if int(standing["total_micro"])
            > int(standing["credited_micro"]) + int(standing["paid_micro"])
        }
        assert {standing["number"] for standing in account["open"]} == open_numbers
        assert self.bought_wh == self.credit_wh() + sum(self.drawn)
        assert int(status["enforceable_micro"]) <= int(status["amount_due_micro"])
        if status["state"] != "granted":
            assert int(status["enforceable_micro"]) >= MIN_DUE
        if not int(account["open_micro"]):
            assert status["state"] == "granted"


@pytest.mark.parametrize("payment", ["postpaid", "prepaid", "prepaid_energy"])
@given(steps=st.lists(STEPS, min_size=4, max_size=16))
@settings(max_examples=6, deadline=None)
def test_random_sequences(payment: str, steps: list[tuple[Any, ...]]) -> None:
    sequence = Sequence(payment)
    for step in steps:
        with suppress(ContractError):
            sequence.step(step)
        sequence.check()


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=50), st.integers(0))
def test_drawing_keeps_all_energy(rows: list[tuple[int, int]], prepaid: int) -> None:
    usage = [Usage(index * 900, imported, out) for index, (imported, out) in enumerate(rows)]
    rest, drawn = draw(usage, prepaid)
    assert drawn == min(prepaid, sum(each.import_wh for each in usage))
    assert sum(each.import_wh for each in rest) + drawn == sum(each.import_wh for each in usage)
    assert [each.export_wh for each in rest] == [each.export_wh for each in usage]
    # It covers from the beginning: nothing is left before the last interval it reached.
    used = [index for index, each in enumerate(rest) if each != usage[index]]
    assert all(rest[index].import_wh == 0 for index in range(max(used, default=0)))
