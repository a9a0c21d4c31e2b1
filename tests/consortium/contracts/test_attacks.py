"""What somebody would try who knows the contracts: each was possible once."""

from typing import Any

import pytest

from consortium.chaincode.api import Conflict, Creator, Forbidden, InvalidArgument, LimitExceeded
from consortium.contracts.assets.wallet import balance_account, grid_account, supplier_account
from consortium.contracts.billing.prepayment import draw_energy
from consortium.contracts.billing.supply import Lot, Prepaid
from consortium.contracts.common import commitments
from consortium.contracts.common.clock import DAY_S
from tests.consortium.contracts.test_books import INTERVAL, Exchange
from tests.consortium.contracts.test_tariff_book import TARIFF
from tests.consortium.contracts.town import DAY, START, TERMS, Town, final_time
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    HOME,
    NOON,
    OPERATOR,
    SUPPLIER,
    TestMeter,
    World,
    energy_world,
    home,
)


def forged(town: Town, name: str, change: Any) -> Any:
    """Post a summary that the utility has written into its own collection as it likes."""
    summary = town.record(name)["summary"]
    change(summary)
    context, simulator = town.metering()
    commitments.put(context, "AuroraMSP", f"st/{DAY}/provisional/{name}", summary)
    assert town.world.state.commit(simulator.results()) == [0]
    return town.world.submit(
        OPERATOR,
        "settlement:Post",
        frozen=True,
        utility="AuroraMSP",
        day=DAY,
        run="provisional",
        summaries=[summary],
    )


def sold() -> Town:
    """A home that has sold 1,000 Wh in an auction, and delivered 800; committed, not posted."""
    town = Town.of("BUY", "SELL", product=True)
    town.order("SELL", "offer", 1000, 90_000, 50)
    town.order("BUY", "bid", 1000, 100_000, 50)
    town.clear(50)
    town.read_day({"SELL": {50: (0, 800)}, "BUY": {50: (1000, 0)}})
    town.world.now = START + DAY_S
    town.commit()
    return town


def _sum(summary: Any, kind: str) -> Any:
    return next(one for one in summary["sums"] if one["kind"] == kind)


def test_a_sale_is_not_paid_twice() -> None:
    def twice(summary: Any) -> None:
        summary["sums"] = [*summary["sums"], _sum(summary, "sold")]
        summary["export_wh"] = "1800"
        summary["tokens"][0]["energy_wh"] = "1800"

    with pytest.raises(Conflict, match="or twice"):
        forged(sold(), "SELL", twice)


def test_a_shortfall_costs_no_more_than_its_price() -> None:
    def dear(summary: Any) -> None:
        _sum(summary, "shortfall")["amount_micro"] = str(-(10**14))

    with pytest.raises(Conflict, match="shortfall"):
        forged(sold(), "SELL", dear)


def test_roundings_are_of_a_days_intervals() -> None:
    def rounded(summary: Any) -> None:
        one = _sum(summary, "shortfall")
        one["lines"] = "600000"
        one["amount_micro"] = str(int(one["amount_micro"]) + 60_000)

    with pytest.raises(Conflict, match="lines"):
        forged(sold(), "SELL", rounded)


def test_a_company_has_no_account_of_a_utility() -> None:
    """A participant of Boreal by the name of AURORA makes up for Boreal's deviations."""
    for account in (balance_account, grid_account, supplier_account):
        for name in ("AURORA", "AURORAMSP"):
            assert account(name) != account("AuroraMSP")


def test_a_trader_is_certified_by_whom_the_home_trusts() -> None:
    exchange = Exchange()
    exchange.add("S-1")
    exchange.world.submit(
        exchange.homes["S-1"],
        "delegation:Give",
        delegation={
            "delegation_id": "D-1",
            "connection_id": "S-1",
            "trader": "TRADER-HELIO",
            "acts": ["order"],
            "until": START + 86_400,
            "max_energy_wh": 1000,
            "lowest_price": 50_000,
            "highest_price": 100_000,
        },
    )
    forger = Creator("CieloMSP", b"", "eve", "client", {"gridledger.participant": "TRADER-HELIO"})
    with pytest.raises(Forbidden):
        exchange.world.submit(
            forger,
            "book:Place",
            order_id="o-1",
            connection_id="S-1",
            interval_start=INTERVAL,
            product="ANY",
            side="offer",
            price_micro_per_kwh=60_000,
            energy_wh=800,
            delegation="D-1",
        )


def community(town: Town, *names: str) -> None:
    town.found_community("GREEN", 100_000)
    for name in names:
        join(town, name)


def join(town: Town, name: str) -> Any:
    return town.world.submit(
        town.homes[name],
        "sharing:Join",
        community="GREEN",
        connection_id=name,
        from_day="2026-11-23",
    )


def test_a_home_of_another_utility_reads_no_communitys_trades() -> None:
    town = Town.of("CP-1", "CP-2")
    community(town, "CP-1", "CP-2")
    asked: dict[str, Any] = {
        "utility": "AuroraMSP",
        "day": "2026-11-23",
        "connections": ["CP-1", "CP-2"],
    }
    assert town.world.evaluate(town.homes["CP-1"], "settlement:Inputs", **asked)
    with pytest.raises(Forbidden):
        town.world.evaluate(home("CP-1", "CieloMSP"), "settlement:Inputs", **asked)


def test_a_community_can_not_be_flooded() -> None:
    names = [f"CP-{number:02d}" for number in range(41)]
    town = Town.of(*names, deposit=0)
    community(town, *names[:40])
    with pytest.raises(LimitExceeded, match="40 members"):
        join(town, names[40])
    town.world.now = START + 2 * DAY_S
    assert (
        len(
            town.world.evaluate(OPERATOR, "sharing:Members", community="GREEN", day="2026-11-23")[
                "members"
            ]
        )
        == 40
    )


def test_a_credit_is_not_paid_back_twice() -> None:
    """It was used, taken back by a correction of the export, and returned by one of the import."""
    town = Town.of("CP-1", terms={"banking_days": 30, "expired_price": 10_000})
    following = "2026-11-23"
    town.read_day({"CP-1": {48: (0, 600)}})
    town.read_day({"CP-1": {48: (600, 0)}}, following)
    before = town.world.money()
    for run in ("provisional", "final"):
        town.world.now = max(town.world.now, final_time(following) if run == "final" else 0)
        town.settle(run)
        town.settle(run, day=following)
    use: dict[str, Any] = {"connection_id": "CP-1", "day": following, "lots": [DAY]}
    town.world.submit(OPERATOR, "settlement:UseCredits", **use)
    town.read("CP-1", 48, 0, 500)
    town.settle("adjustment-1")
    town.read("CP-1", 48, 0, 0, following)
    town.settle("adjustment-1", day=following)
    # All in all 500 Wh exported, which are credit, and nothing imported.
    (lot,) = town.world.evaluate(OPERATOR, "credit:Lots", connection_id="CP-1")["lots"]
    assert lot["outstanding_wh"] == "500"
    assert town.world.money()["CP-1"] == before["CP-1"]


def test_what_was_converted_is_an_amount() -> None:
    world: World = energy_world()
    world.submit(OPERATOR, "wallet:PublishConversion", currency="JPY", rate_micro=10**12)
    world.submit(OPERATOR, "wallet:PublishConversion", currency="XXX", rate_micro=1)
    for currency, amount in (("JPY", 10**15), ("XXX", 1)):
        with pytest.raises(Conflict, match="come to"):
            world.submit(
                OPERATOR,
                "wallet:Deposit",
                account="CP-0001",
                amount_micro=str(amount),
                bank_reference=f"R-{currency}",
                currency=currency,
            )
    assert world.money() == {}


def test_a_sale_kept_back_comes_too_late() -> None:
    """Endorsed before its window and submitted when the sun has shone."""
    world = energy_world()
    world.submit(SUPPLIER, "market:PublishRate", supplier="AuroraMSP", day="2026-11-21", kind="buy",
                 price_micro_per_kwh=90_000)  # fmt: skip
    start = NOON + 1800
    window = {"window_start": start, "window_end": start + 1800}
    quoted = world.evaluate(
        HOME, "market:Quote", connection_id="CP-0001", energy_wh=1000, **window
    )["quote"]
    kept = world.simulate(HOME, "market:Authorise", {"request_id": "R-1", "quote": quoted}).results
    world.now = NOON + 3600
    (due,) = world.evaluate(BOREAL_OPERATOR, "gate:Due")
    assert due == {"function": "gate:Begin", "argument": {"at": str(NOON + 3600)}}
    assert world.submit(BOREAL_OPERATOR, due["function"], **due["argument"])["written"] == "288"
    assert world.evaluate(BOREAL_OPERATOR, "gate:Due") == []
    assert world.state.commit(kept) == [11]
    state = world.state.values()
    assert world.submit(OPERATOR, due["function"], **due["argument"])["written"] == "0"
    assert world.state.values() == state
    # Nor is it endorsed by a clock that goes after.
    world.now = NOON + 60
    with pytest.raises(Conflict, match="has begun"):
        world.submit(HOME, "market:Authorise", request_id="R-1", quote=quoted)


def test_gates_are_written_in_time_by_operators() -> None:
    world = energy_world()
    for caller, at, error in (
        (HOME, NOON, Forbidden),
        (OPERATOR, NOON + 3600, Conflict),
        (OPERATOR, NOON - 1, InvalidArgument),
    ):
        with pytest.raises(error):
            world.submit(caller, "gate:Begin", at=at)
    for wrong in (NOON - 299, NOON + 1, NOON - 3599):
        with pytest.raises(InvalidArgument, match="must be a multiple of 300 s"):
            world.submit(OPERATOR, "gate:Begin", at=wrong)
    for rate, gate_s in ((5, 300), (6, 3600), (60, 3600), (61, None), (3600, None)):
        fast = energy_world(replay={"origin": NOON, "anchor": NOON, "rate": rate})
        if gate_s is None:
            assert fast.evaluate(OPERATOR, "gate:Due") == []
            with pytest.raises(InvalidArgument, match="faster than 60 no gates are written"):
                fast.submit(OPERATOR, "gate:Begin", at=NOON)
        else:
            fast.submit(OPERATOR, "gate:Begin", at=NOON)
            with pytest.raises(InvalidArgument, match=f"must be a multiple of {gate_s} s"):
                fast.submit(OPERATOR, "gate:Begin", at=NOON + gate_s // 2)


def test_a_sale_of_the_hour_that_has_begun_is_late_after_five_minutes() -> None:
    """Backdated, or kept back: the hour's next gate ends it, not the hour after."""
    world = energy_world()
    world.submit(SUPPLIER, "market:PublishRate", supplier="AuroraMSP", day="2026-11-21", kind="buy",
                 price_micro_per_kwh=90_000)  # fmt: skip
    window = {"window_start": NOON + 900, "window_end": NOON + 1800}
    quoted = world.evaluate(
        HOME, "market:Quote", connection_id="CP-0001", energy_wh=1000, **window
    )["quote"]
    sale = {"request_id": "R-1", "quote": quoted}
    kept = world.simulate(HOME, "market:Authorise", sale).results
    world.now = NOON + 899
    world.submit(OPERATOR, "gate:Begin", at=NOON + 600)
    backdated = World(world.state, NOON + 299)
    backdated.simulate(HOME, "market:Authorise", sale)
    world.now = NOON + 900
    world.submit(OPERATOR, "gate:Begin", at=NOON + 900)
    with pytest.raises(Conflict, match=r"until 2026-11-21T12:15:00Z, and the time from"):
        backdated.simulate(HOME, "market:Authorise", sale)
    assert world.state.commit(kept) == [11]


@pytest.mark.parametrize(
    "kept",
    [
        ("settlement:PublishPrices", {"day": DAY, "shortfall_price": 10**9, "surplus_price": 0}),
        ("sharing:Join", {"community": "GREEN", "connection_id": "CP-1", "from_day": "2026-11-23"}),
    ],
)
def test_what_may_happen_before_a_day_is_not_submitted_after_it(
    kept: tuple[str, dict[str, Any]],
) -> None:
    town = Town.of("CP-1")
    community(town)
    function, argument = kept
    caller = town.homes["CP-1"] if function == "sharing:Join" else OPERATOR
    results = town.world.simulate(caller, function, argument).results
    town.world.now = START + DAY_S
    for hour in range(25):
        town.world.submit(OPERATOR, "gate:Begin", at=START + hour * 3600)
    assert town.world.state.commit(results) == [11]


def test_terms_kept_back_do_not_hold_from_the_past_on() -> None:
    town = Town.of("CP-1")
    terms = {**TERMS, "tariff": 310_000}
    held = town.world.submit(
        OPERATOR, "settlement:ProposeTerms", terms=terms, effective_from=START + DAY_S
    )
    kept = town.world.simulate(
        BOREAL_OPERATOR,
        "settlement:ApproveTerms",
        {"supplier": "AuroraMSP", "version": held["version"]},
    ).results
    town.world.now = START + 2 * DAY_S
    town.world.submit(OPERATOR, "gate:Begin", at=START + DAY_S)
    assert town.world.state.commit(kept) == [11]


def test_a_stranger_fills_no_list_of_meters() -> None:
    world = energy_world()
    world.submit(ADMIN, "metering:Configure")
    meter: dict[str, Any] = {"connection_id": "CP-0001", "public_key": TestMeter().public_key}
    for caller, kind, utility in (
        (BOREAL_OPERATOR, "accredited", "BorealMSP"),
        (home("CP-0001", "CieloMSP"), "declared", "CieloMSP"),
    ):
        with pytest.raises(Conflict, match="CP-0001 is AuroraMSP's"):
            world.submit(
                caller,
                "metering:RegisterMeter",
                meter_id="M-1",
                source_class=kind,
                utility=utility,
                **meter,
            )
    for caller, kind in ((OPERATOR, "accredited"), (HOME, "declared")):
        world.submit(
            caller,
            "metering:RegisterMeter",
            meter_id=f"M-{kind.upper()}",
            source_class=kind,
            utility="AuroraMSP",
            **meter,
        )


def test_a_tariff_stays_its_suppliers() -> None:
    world = energy_world()
    world.submit(OPERATOR, "tariff:Propose", terms=TARIFF, effective_from=NOON + 3600)
    with pytest.raises(Conflict, match="HOME-DYNAMIC is AuroraMSP's"):
        world.submit(
            BOREAL_OPERATOR,
            "tariff:Propose",
            terms={**TARIFF, "supplier": "BorealMSP"},
            effective_from=NOON + 7200,
        )


def test_energy_given_back_is_worth_what_it_was_bought_for() -> None:
    prepaid = Prepaid((Lot("AuroraMSP", 1000, 200_000), Lot("BorealMSP", 500, 100_000)))
    prepaid = draw_energy(prepaid, "AuroraMSP", 1000)
    assert prepaid.energy_wh("AuroraMSP") == 0
    prepaid = draw_energy(prepaid, "AuroraMSP", -400)
    assert [(lot.energy_wh, lot.price) for lot in prepaid.lots if lot.energy_wh] == [
        (500, 100_000),
        (400, 200_000),
    ]


def test_a_report_of_an_outage_reads_so_much_at_most() -> None:
    world = World()
    world.submit(ADMIN, "metering:Configure", silent_after=96)
    with pytest.raises(LimitExceeded, match="name fewer meters"):
        world.submit(
            OPERATOR,
            "metering:ReportOutage",
            utility="AuroraMSP",
            kind="gateway",
            name="G-1",
            since=NOON - DAY_S,
            meters=[f"M-{number:04d}" for number in range(200)],
        )
