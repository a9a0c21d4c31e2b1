"""Accounts: shards, holds, sweeps, withdrawals, limits, defaults; and money that is never made."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.chaincode.api import Conflict, ContractError, Forbidden, InvalidArgument, NotFound
from consortium.contracts.assets import wallet
from consortium.contracts.assets.wallet import Ledger, Transfer, energy_settings
from consortium.contracts.common.settings import now
from tests.consortium.contracts.sequences import in_time, sequences
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    HOME,
    NOON,
    OPERATOR,
    OTHER_HOME,
    SUPPLIER,
    World,
    energy_world,
    writes,
)

HOMES = {"CP-0001": HOME, "CP-0002": OTHER_HOME}


def deposit(world: World, amount: int, account: str = "CP-0001", reference: str = "B-1") -> None:
    world.submit(
        OPERATOR,
        "wallet:Deposit",
        account=account,
        amount_micro=amount,
        bank_reference=reference,
    )


def sweep(world: World, account: str = "CP-0001", caller: Any = None, shard: int = 0) -> Any:
    caller = caller or HOMES[account]
    entries = world.evaluate(caller, "wallet:Incoming", account=account)["entries"]
    return world.submit(caller, "wallet:Sweep", account=account, entries=entries, shard=shard)


def balance(world: World, account: str = "CP-0001") -> dict[str, Any]:
    found = world.evaluate(OPERATOR, "wallet:Balance", account=account)
    return {
        name.removesuffix("_micro"): int(found[name])
        for name in ("balance_micro", "available_micro", "incoming_micro", "held_micro")
    }


def pay(world: World, amount: int, request_id: str = "p-1", **other: Any) -> Any:
    argument = {
        "account": "CP-0001",
        "payee": "CP-0002",
        "amount_micro": amount,
        "request_id": request_id,
        **other,
    }
    return world.submit(HOMES.get(argument["account"], SUPPLIER), "wallet:Pay", **argument)


@pytest.fixture
def world() -> World:
    world = energy_world()
    deposit(world, 1000)
    sweep(world)
    return world


def test_what_came_in_is_swept_before_it_is_spent() -> None:
    world = energy_world()
    deposit(world, 1000)
    assert balance(world) == {"balance": 1000, "available": 0, "incoming": 1000, "held": 0}
    with pytest.raises(Conflict, match="has 0 micro-units in shard 0, but 400 are needed; sweep"):
        pay(world, 400)
    assert sweep(world) == {
        "account": "CP-0001",
        "shard": "0",
        "swept": "1",
        "amount_micro": "1000",
    }
    paid = pay(world, 400)
    assert balance(world) == {"balance": 600, "available": 600, "incoming": 0, "held": 0}
    assert balance(world, "CP-0002")["incoming"] == 400
    assert pay(world, 400) == paid
    with pytest.raises(Conflict, match="p-1 is a payment of 400 to CP-0002 already"):
        pay(world, 401)
    with pytest.raises(Conflict, match="has 600 micro-units"):
        pay(world, 601, "p-2")
    assert sum(world.money().values()) == 0


def test_a_sweep_again_finds_nothing(world: World) -> None:
    deposit(world, 50, reference="B-2")
    entries = world.evaluate(HOME, "wallet:Incoming", account="CP-0001")["entries"]
    argument = {"account": "CP-0001", "entries": entries}
    assert world.submit(HOME, "wallet:Sweep", **argument)["amount_micro"] == "50"
    again = world.simulate(HOME, "wallet:Sweep", argument)
    assert again.value["swept"] == "0"
    assert not writes(again.results)
    with pytest.raises(InvalidArgument, match="twice"):
        world.submit(HOME, "wallet:Sweep", account="CP-0001", entries=entries * 2)


def test_two_payments_and_a_credit_in_one_block_do_not_meet(world: World) -> None:
    """Each out of its own shard; the credit touches none."""
    deposit(world, 500, reference="B-2")
    sweep(world, shard=3)
    pay_0 = {"account": "CP-0001", "payee": "CP-0002", "amount_micro": 300, "request_id": "a"}
    together = [
        world.simulate(HOME, "wallet:Pay", pay_0),
        world.simulate(HOME, "wallet:Pay", {**pay_0, "request_id": "b", "shard": 3}),
        world.simulate(
            OPERATOR,
            "wallet:Deposit",
            {"account": "CP-0001", "amount_micro": 7, "bank_reference": "B-3"},
        ),
        world.simulate(HOME, "wallet:Pay", {**pay_0, "request_id": "c"}),  # shard 0 once more
    ]
    assert world.state.commit(*(answer.results for answer in together)) == [0, 0, 0, 11]
    assert balance(world) == {"balance": 907, "available": 900, "incoming": 7, "held": 0}


def test_withdrawals(world: World) -> None:
    asked = {"account": "CP-0001", "amount_micro": 600, "request_id": "w-1"}
    assert world.submit(HOME, "wallet:Withdraw", **asked)["state"] == "requested"
    assert not writes(world.simulate(HOME, "wallet:Withdraw", asked).results)
    assert balance(world) == {"balance": 1000, "available": 400, "incoming": 0, "held": 600}
    with pytest.raises(Conflict):
        world.submit(HOME, "wallet:Withdraw", **{**asked, "request_id": "w-2"})
    with pytest.raises(Conflict, match="in use already"):
        confirm(world, "w-1", "B-1")
    assert confirm(world, "w-1", "OUT-1")["state"] == "paid"
    assert confirm(world, "w-1", "OUT-1")["state"] == "paid"
    with pytest.raises(Conflict, match="was posted already"):
        confirm(world, "w-1", "OUT-2")
    assert balance(world) == {"balance": 400, "available": 400, "incoming": 0, "held": 0}
    assert balance(world, "ext/bank/AuroraMSP")["balance"] == -400

    world.submit(HOME, "wallet:Withdraw", **{**asked, "amount_micro": 400, "request_id": "w-3"})
    rejected = world.submit(
        OPERATOR,
        "wallet:RejectWithdrawal",
        account="CP-0001",
        request_id="w-3",
        reason="no such bank account",
    )
    assert rejected["state"] == "rejected"
    assert balance(world) == {"balance": 400, "available": 0, "incoming": 400, "held": 0}
    with pytest.raises(Conflict):
        confirm(world, "w-3", "OUT-3")
    with pytest.raises(NotFound, match="no withdrawal w-9"):
        confirm(world, "w-9", "OUT-3")
    with pytest.raises(Forbidden):
        world.submit(OPERATOR, "wallet:Withdraw", **{**asked, "request_id": "w-4"})


def confirm(world: World, request_id: str, reference: str) -> Any:
    return world.submit(
        OPERATOR,
        "wallet:ConfirmWithdrawal",
        account="CP-0001",
        request_id=request_id,
        bank_reference=reference,
    )


def test_a_hold_ends_with_its_time(world: World) -> None:
    world.submit(HOME, "wallet:Withdraw", account="CP-0001", amount_micro=600, request_id="w-1")
    release = {"account": "CP-0001", "hold_id": "withdrawal-w-1"}
    assert [hold["amount_micro"] for hold in holds(world)] == ["600"]
    with pytest.raises(Conflict, match="ends at"):
        world.submit(HOME, "wallet:ReleaseHold", **release)
    world.now += 30 * 86_400
    assert world.submit(HOME, "wallet:ReleaseHold", **release)["state"] == "expired"
    assert holds(world) == []
    assert balance(world)["incoming"] == 600
    with pytest.raises(Conflict, match="was expired already"):
        world.submit(HOME, "wallet:ReleaseHold", **release)


def holds(world: World) -> Any:
    return world.evaluate(HOME, "wallet:Holds", account="CP-0001")


def test_a_credit_limit_binds_shard_0(world: World) -> None:
    world.submit(OPERATOR, "wallet:SetCreditLimit", account="CP-0001", limit_micro=500)
    with pytest.raises(Conflict, match="and a credit limit of 500, but 1501 are needed"):
        pay(world, 1501)
    pay(world, 1500)
    assert balance(world)["available"] == -500
    with pytest.raises(Conflict, match="shard 1, but 1"):
        pay(world, 1, "p-2", shard=1)
    with pytest.raises(Forbidden, match="operators of the account's utility"):
        world.submit(BOREAL_OPERATOR, "wallet:SetCreditLimit", account="CP-0001", limit_micro=1)


def charge(world: World, amount: int, payee: str = "GRID-AURORA") -> None:
    """What a settlement does: it posts, whatever the balance is."""
    from consortium.chaincode.executor import Invocation, SimulatorContext
    from consortium.chaincode.simulator import TransactionSimulator

    world.calls += 1
    invocation = Invocation(
        "energy", "neighbourhood", f"{world.calls:064x}", world.now, OPERATOR, [b"", b""], {}
    )
    simulator = TransactionSimulator(world.state, "neighbourhood")
    context = SimulatorContext(invocation, simulator)
    ledger = Ledger(context, now(context, energy_settings(context)))
    ledger.transfer(Transfer("CP-0001", payee, amount, "shortfall", "ST-1"))
    ledger.write()
    assert world.state.commit(simulator.results()) == [0]


def test_a_default_is_covered_by_collateral_then_by_the_supplier(world: World) -> None:
    pledge = {"account": "CP-0001", "amount_micro": 300}
    assert world.submit(HOME, "wallet:Pledge", **pledge)["hold_id"] == "collateral"
    with pytest.raises(Conflict, match="has a hold collateral already"):
        world.submit(HOME, "wallet:Pledge", **pledge)
    pay(world, 700)
    charge(world, 1000)
    assert balance(world) == {"balance": -700, "available": 0, "incoming": -1000, "held": 300}
    with pytest.raises(Conflict, match="owes nothing in shard U; sweep its charges first"):
        world.submit(OPERATOR, "wallet:CoverDefault", account="CP-0001")
    assert sweep(world, caller=OPERATOR)["shard"] == "U"
    assert world.submit(OPERATOR, "wallet:CoverDefault", account="CP-0001") == {
        "account": "CP-0001",
        "owed_micro": "1000",
        "from_collateral_micro": "300",
        "by_guarantor_micro": "0",
        "by_supplier_micro": "700",
    }
    assert balance(world) == {"balance": 0, "available": 0, "incoming": 0, "held": 0}
    assert world.money()["SUPPLIER-AURORA"] == -700
    with pytest.raises(Conflict, match="owes nothing"):
        world.submit(OPERATOR, "wallet:CoverDefault", account="CP-0001")


def test_a_guarantor_answers_after_the_collateral(world: World) -> None:
    """1,000 are owed twice: 300 by collateral, 900 by the guarantor, the rest by the supplier."""
    deposit(world, 2000, "CP-0002", "B-2")
    sweep(world, "CP-0002")
    world.submit(HOME, "wallet:Pledge", account="CP-0001", amount_micro=300)
    wanted = {"account": "CP-0001", "guarantor": "CP-0002", "amount_micro": 900}
    with pytest.raises(Forbidden, match="its home alone"):
        world.submit(HOME, "wallet:Guarantee", **wanted)
    with pytest.raises(InvalidArgument, match="the guarantor itself"):
        world.submit(OTHER_HOME, "wallet:Guarantee", **{**wanted, "account": "CP-0002"})
    with pytest.raises(NotFound, match="nobody answers for account CP-0001"):
        world.submit(OPERATOR, "wallet:ReleaseGuarantee", account="CP-0001")
    made = world.submit(OTHER_HOME, "wallet:Guarantee", **wanted)
    assert world.submit(OTHER_HOME, "wallet:Guarantee", **wanted) == made
    with pytest.raises(Conflict, match="CP-0002 answers for CP-0001 already"):
        world.submit(OTHER_HOME, "wallet:Guarantee", **{**wanted, "amount_micro": 901})
    pay(world, 700)
    covered = []
    for _ in range(2):
        charge(world, 1000)
        sweep(world, caller=OPERATOR)
        found = world.submit(OPERATOR, "wallet:CoverDefault", account="CP-0001")
        covered.append([int(found[f"{by}_micro"]) for by in ("from_collateral", "by_guarantor",
                                                             "by_supplier")])  # fmt: skip
    assert covered == [[300, 700, 0], [0, 200, 800]]
    assert balance(world) == {"balance": 0, "available": 0, "incoming": 0, "held": 0}
    money = world.money()
    assert money["CP-0002"] == 2000 + 700 - 900
    assert sum(money.values()) == 0
    # Used up: another may answer. It is given back when it isn't needed any more.
    world.submit(OTHER_HOME, "wallet:Guarantee", **{**wanted, "amount_micro": 5})
    with pytest.raises(Forbidden):
        world.submit(OTHER_HOME, "wallet:ReleaseGuarantee", account="CP-0001")
    world.submit(OPERATOR, "wallet:ReleaseGuarantee", account="CP-0001")
    assert world.evaluate(OTHER_HOME, "wallet:Holds", account="CP-0002") == []
    assert world.money() == money


def test_collateral_is_given_back(world: World) -> None:
    world.submit(HOME, "wallet:Pledge", account="CP-0001", amount_micro=300)
    with pytest.raises(Forbidden):
        world.submit(HOME, "wallet:ReleaseCollateral", account="CP-0001")
    world.submit(OPERATOR, "wallet:ReleaseCollateral", account="CP-0001")
    assert balance(world) == {"balance": 1000, "available": 700, "incoming": 300, "held": 0}
    world.submit(HOME, "wallet:Pledge", account="CP-0001", amount_micro=1)


def test_who_may_pay_whom(world: World) -> None:
    for payee, error in (
        ("CP-0001", InvalidArgument),
        ("CP-9999", NotFound),
        ("SUPPLIER-BOREAL", Forbidden),
        ("ext/bank/AuroraMSP", Forbidden),
    ):
        with pytest.raises(error):
            pay(world, 1, payee=payee)
    pay(world, 1, payee="SUPPLIER-AURORA")
    with pytest.raises(Forbidden, match="its home alone"):
        world.submit(
            OTHER_HOME,
            "wallet:Pay",
            account="CP-0001",
            payee="CP-0002",
            amount_micro=1,
            request_id="theft",
        )
    for shard in (-1, 16):
        with pytest.raises(InvalidArgument, match="shard"):
            pay(world, 1, "p-3", shard=shard)


def test_deposits_in_another_currency() -> None:
    world = energy_world()
    francs = {
        "account": "CP-0001",
        "amount_micro": 3_000_001,
        "bank_reference": "CH-1",
        "currency": "CHF",
    }
    with pytest.raises(NotFound, match="no conversion rate of CHF"):
        world.submit(OPERATOR, "wallet:Deposit", **francs)
    with pytest.raises(InvalidArgument, match="own"):
        world.submit(OPERATOR, "wallet:PublishConversion", currency="EUR", rate_micro=1)
    published = world.submit(
        OPERATOR, "wallet:PublishConversion", currency="CHF", rate_micro=1_071_500
    )
    assert published["published_at"] == str(NOON)
    made = world.submit(OPERATOR, "wallet:Deposit", **francs)
    assert made["amount_micro"] == "3214501"  # 3,214,501.0715
    world.submit(OPERATOR, "wallet:PublishConversion", currency="CHF", rate_micro=2_000_000)
    assert world.submit(OPERATOR, "wallet:Deposit", **francs) == made  # at its own rate
    with pytest.raises(Conflict):
        world.submit(OPERATOR, "wallet:Deposit", **{**francs, "currency": "EUR"})


def test_withdrawals_in_another_currency(world: World) -> None:
    asked = {"account": "CP-0001", "amount_micro": 1000, "request_id": "w"}
    world.submit(HOME, "wallet:Withdraw", **asked)
    paid = {"account": "CP-0001", "request_id": "w", "bank_reference": "O-1", "currency": "CHF"}
    with pytest.raises(NotFound, match="no conversion rate of CHF"):
        world.submit(OPERATOR, "wallet:ConfirmWithdrawal", **paid)
    world.submit(OPERATOR, "wallet:PublishConversion", currency="CHF", rate_micro=1_071_500)
    found = world.submit(OPERATOR, "wallet:ConfirmWithdrawal", **paid)
    assert (found["currency"], found["paid_micro"]) == ("CHF", "933")  # 933.27
    assert world.submit(OPERATOR, "wallet:ConfirmWithdrawal", **paid) == found
    assert world.money()["ext/bank/AuroraMSP"] == 0


STEPS = st.one_of(
    st.tuples(st.just("deposit"), st.sampled_from([*HOMES]), st.integers(1, 1000)),
    st.tuples(st.just("sweep"), st.sampled_from([*HOMES]), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("pay"), st.sampled_from([*HOMES]), st.integers(1, 900), st.integers(0, 1)),
    st.tuples(st.just("withdraw"), st.sampled_from([*HOMES]), st.integers(1, 900)),
    st.tuples(st.just("confirm"), st.integers(0, 9)),
    st.tuples(st.just("reject"), st.integers(0, 9)),
    st.tuples(st.just("pledge"), st.sampled_from([*HOMES]), st.integers(1, 900)),
    st.tuples(st.just("guarantee"), st.sampled_from([*HOMES]), st.integers(1, 900)),
    st.tuples(st.just("charge"), st.integers(1, 1500)),
    st.tuples(st.just("cover"), st.sampled_from([*HOMES])),
    st.tuples(st.just("limit"), st.sampled_from([*HOMES]), st.integers(0, 300)),
    st.tuples(st.just("wait"), st.sampled_from([60, 31 * 86_400])),
    st.tuples(st.just("release"), st.integers(0, 9)),
)


def step(world: World, act: tuple[Any, ...], asked: list[tuple[str, str]]) -> None:
    unique = f"r-{world.calls}"
    match act:
        case "deposit", account, amount:
            deposit(world, amount, account, f"B-{world.calls}")
        case "sweep", account, shard, by_operator:
            sweep(world, account, OPERATOR if by_operator else None, shard)
        case "pay", account, amount, shard:
            payee = "CP-0002" if account == "CP-0001" else "CP-0001"
            pay(world, amount, unique, account=account, payee=payee, shard=shard)
        case "withdraw", account, amount:
            asked.append((account, unique))
            world.submit(
                HOMES[account],
                "wallet:Withdraw",
                account=account,
                amount_micro=amount,
                request_id=unique,
            )
        case ("confirm" | "reject" | "release") as what, which if which < len(asked):
            account, request_id = asked[which]
            argument = {"account": account, "request_id": request_id}
            if what == "confirm":
                argument["bank_reference"] = f"OUT-{which}"
                world.submit(OPERATOR, "wallet:ConfirmWithdrawal", **argument)
            elif what == "reject":
                world.submit(OPERATOR, "wallet:RejectWithdrawal", reason="no", **argument)
            else:
                world.submit(
                    OPERATOR,
                    "wallet:ReleaseHold",
                    account=account,
                    hold_id=f"withdrawal-{request_id}",
                )
        case "pledge", account, amount:
            world.submit(HOMES[account], "wallet:Pledge", account=account, amount_micro=amount)
        case "guarantee", account, amount:
            other = "CP-0002" if account == "CP-0001" else "CP-0001"
            argument = {"account": account, "guarantor": other, "amount_micro": amount}
            world.submit(HOMES[other], "wallet:Guarantee", **argument)
        case "charge", amount:
            charge(world, amount)
        case "cover", account:
            world.submit(OPERATOR, "wallet:CoverDefault", account=account)
        case "limit", account, amount:
            world.submit(OPERATOR, "wallet:SetCreditLimit", account=account, limit_micro=amount)
        case "wait", seconds:
            world.now += seconds


@in_time(60)
@settings(max_examples=sequences(60), deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_money_is_moved_never_made(acts: list[tuple[Any, ...]]) -> None:
    """After every call, valid or not: all accounts sum to zero, and each account's postings are
    what it holds (`World.money` compares)."""
    world = energy_world()
    asked: list[tuple[str, str]] = []
    lowest = 0
    for act in acts:
        before = world.money()
        try:
            step(world, act, asked)
        except ContractError:
            assert world.money() == before
        assert sum(world.money().values()) == 0
        if act[0] == "limit":
            lowest = min(lowest, -act[2])
    for account in HOMES:
        found = world.evaluate(OPERATOR, "wallet:Balance", account=account)
        for shard, amount in found["shards"].items():
            if shard != "U" and "charge" not in {act[0] for act in acts}:
                assert int(amount) >= (lowest if shard == "0" else 0)
        assert int(found["balance_micro"]) == world.money().get(account, 0)


def test_charges_that_the_owner_swept_are_covered_too(world: World) -> None:
    """Else a home keeps its debt from its collateral and guarantor by where it sweeps it."""
    charge(world, 700)
    sweep(world, shard=5)
    covered = world.submit(OPERATOR, "wallet:CoverDefault", account="CP-0001")
    assert (covered["owed_micro"], covered["by_supplier_micro"]) == ("700", "700")
    with pytest.raises(Conflict, match="owes nothing"):
        world.submit(OPERATOR, "wallet:CoverDefault", account="CP-0001")
    assert sum(world.money().values()) == 0


def test_accounts_that_nobody_sweeps_are_swept_by_agents(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody could sum them any more: each home's day leaves the clearing house an entry."""
    monkeypatch.setattr(wallet, "MAX_SWEPT", 3)
    for number in range(4):
        charge(world, 10)
        charge(world, 7, "CLEARING-MARKET")
        deposit(world, 100, reference=f"B-9{number}")
    before = world.money()
    due = world.evaluate(OPERATOR, "wallet:Due")
    swept = [(one["argument"]["account"], one.get("utility")) for one in due]
    assert swept == [
        ("GRID-AURORA", "AuroraMSP"),
        ("ext/bank/AuroraMSP", "AuroraMSP"),
        ("CLEARING-MARKET", None),
    ]
    others = world.evaluate(BOREAL_OPERATOR, "wallet:Due")
    assert [one["argument"]["account"] for one in others] == ["CLEARING-MARKET"]
    with pytest.raises(Forbidden):
        world.submit(HOME, "wallet:Sweep", **due[2]["argument"])
    shards = [world.submit(OPERATOR, one["function"], **one["argument"])["shard"] for one in due]
    assert shards == ["15", "U", "U"]
    assert world.evaluate(OPERATOR, "wallet:Due") == []
    assert world.money() == before


def test_holds_of_years_are_not_in_the_way(world: World) -> None:
    """Each order has one: who trades each quarter hour ends 35,000 a year."""
    for number in range(3):
        asked = {"account": "CP-0001", "request_id": f"w-{number}"}
        world.submit(HOME, "wallet:Withdraw", amount_micro=10, **asked)
        world.submit(OPERATOR, "wallet:RejectWithdrawal", reason="no such account", **asked)
        sweep(world)
    world.submit(HOME, "wallet:Withdraw", account="CP-0001", amount_micro=10, request_id="w-9")
    under = [key for _, key in world.state.public if key.startswith("acct/CP-0001/hold/")]
    assert under == ["acct/CP-0001/hold/withdrawal-w-9"]
    with pytest.raises(Conflict, match="withdrawal-w-1 of account CP-0001 was voided already"):
        world.submit(HOME, "wallet:ReleaseHold", account="CP-0001", hold_id="withdrawal-w-1")
    assert balance(world) == {"balance": 1000, "available": 990, "incoming": 0, "held": 10}
