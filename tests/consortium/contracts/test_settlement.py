"""Settlement on the ledger: private days, public sums, postings and tokens."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consortium.chaincode.api import (
    Conflict,
    Forbidden,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    canonical_json,
)
from consortium.contracts.common import commitments
from consortium.contracts.common.clock import DAY_S, day_start
from consortium.contracts.settlement import days
from consortium.contracts.settlement.days import MAX_COMMUNITY_CELLS, most_members
from consortium.ledger.state import VersionedValue
from consortium.wire import kvrwset_pb2, rwset_pb2
from tests.consortium.contracts.cases import cases
from tests.consortium.contracts.town import DAY, PRODUCT, START, TERMS, Town, final_time
from tests.consortium.contracts.world import BOREAL_OPERATOR, OPERATOR, SUPPLIER, writes


def test_a_seller_that_delivers_less_than_it_sold() -> None:
    """1,000 Wh sold to three, 800 delivered: buyers pay once, the seller makes up for 200."""
    town = Town.of("BUY-1", "BUY-2", "BUY-3", "SELL", product=True)
    town.order("SELL", "offer", 1000, 90_000, 50)
    for name, energy_wh in (("BUY-1", 500), ("BUY-2", 300), ("BUY-3", 200)):
        town.order(name, "bid", energy_wh, 100_000, 50)
    town.clear(50)
    town.read_day(
        {
            "SELL": {50: (0, 800)},
            "BUY-1": {50: (500, 0)},
            "BUY-2": {50: (300, 0)},
            "BUY-3": {50: (200, 0)},
        }
    )
    before = town.world.money()
    town.settle()
    after = town.world.money()
    paid = {name: after[name] - before[name] for name in town.homes}
    # At 90,000 and a local fee of 10,000; 200 Wh at the shortfall price of 350,000.
    assert paid == {"SELL": 90_000 - 70_000, "BUY-1": -50_000, "BUY-2": -30_000, "BUY-3": -20_000}
    assert after["BALANCE-AURORA"] == 70_000
    assert after["GRID-AURORA"] == 10_000
    assert after.get("CLEARING-MARKET", 0) == 0
    assert sum(after.values()) == 0
    lot = town.lot("SELL")
    assert [(one["holder"], one["energy_wh"], one["retired_wh"]) for one in lot["holdings"]] == [
        ("BUY-1", "400", "400"),
        ("BUY-2", "240", "240"),
        ("BUY-3", "160", "160"),
    ]
    assert (lot["minted_wh"], lot["retired_wh"], lot["outstanding_wh"]) == ("800", "800", "0")


def two(**terms: object) -> Town:
    """Two homes: one exports 1,000 Wh at noon, the other imports 600."""
    town = Town.of("CP-1", "CP-2", terms=terms)
    town.read_day({"CP-1": {48: (0, 1000)}, "CP-2": {48: (600, 0)}})
    return town


def moved(town: Town, before: dict[str, int]) -> dict[str, int]:
    after = town.world.money()
    assert sum(after.values()) == 0
    found = {name: after[name] - before.get(name, 0) for name in after}
    return {name: amount for name, amount in found.items() if amount}


def test_what_is_not_traded_goes_at_base_rate_and_tariff() -> None:
    town = two(import_fee=20_000)
    before = town.world.money()
    town.settle()
    assert moved(town, before) == {
        "CP-1": 50_000,
        "CP-2": -180_000 - 12_000,
        "GRID-AURORA": 12_000,
        "SUPPLIER-AURORA": 130_000,
    }
    assert town.lot("CP-1")["holdings"] == [
        {"holder": "SUPPLIER-AURORA", "energy_wh": "1000", "retired_wh": "0"}
    ]
    held = town.world.evaluate(OPERATOR, "token:Held", holder="SUPPLIER-AURORA")
    assert [(one["origin"], one["energy_wh"]) for one in held["tokens"]] == [("CP-1", "1000")]


def test_a_later_run_posts_the_difference() -> None:
    town = two()
    before = town.world.money()
    town.settle()
    first = moved(town, before)
    state = town.world.state.values()
    assert town.post() == {
        "day": DAY,
        "run": "provisional",
        "posted": [],
        "known": ["CP-1", "CP-2"],
    }
    assert town.world.state.values() == state

    # Corrected after the provisional run: 700 Wh of export instead of 1,000.
    town.read("CP-1", 48, 0, 700)
    with pytest.raises(Conflict, match="becomes final at 2026-11-25T00:00:00Z"):
        town.settle("final")
    town.world.now = final_time()
    before = town.world.money()
    town.settle("final")
    assert moved(town, before) == {"CP-1": -15_000, "SUPPLIER-AURORA": 15_000}
    lot = town.lot("CP-1")
    assert (lot["minted_wh"], lot["reversed_wh"], lot["outstanding_wh"]) == ("1000", "300", "700")

    # Corrected after finality: one adjustment, of one posting on each side.
    town.read("CP-1", 48, 0, 900)
    before = town.world.money()
    posted = len([key for _, key in town.world.state.public if key.startswith("acct/CP-1/post/")])
    town.settle("adjustment-1", "CP-1")
    assert moved(town, before) == {"CP-1": 10_000, "SUPPLIER-AURORA": -10_000}
    entries = town.world.evaluate(town.homes["CP-1"], "wallet:Statement", account="CP-1")["entries"]
    assert [one["kind"] for one in entries].count("adjustment") == 1
    assert posted + 1 == len(
        [key for _, key in town.world.state.public if key.startswith("acct/CP-1/post/")]
    )
    lot = town.lot("CP-1")
    assert (lot["minted_wh"], lot["reversed_wh"], lot["outstanding_wh"]) == ("1200", "300", "900")
    assert first["CP-1"] == 50_000
    for run in ("provisional", "final", "adjustment-1", "adjustment-3"):
        with pytest.raises(Conflict, match=f"is adjustment-1, which {run} doesn't follow"):
            town.commit(run, "CP-1")


def test_what_is_not_read_is_estimated_until_it_comes() -> None:
    town = Town.of("CP-1")
    for index in range(96):
        town.read("CP-1", index, 100, day="2026-11-21")
        if index != 50:
            town.read("CP-1", index, 40)
    town.settle()
    assert town.sums("CP-1")["import"] == (95 * 40 + 100, -(95 * 12_000 + 30_000))
    record = town.record("CP-1")
    assert record["summary"]["estimated"] == "1"
    assert [row["quality"] for row in record["opened"]["rows"]].index("estimated") == 50
    town.read("CP-1", 50, 40)
    town.world.now = final_time()
    before = town.world.money()
    town.settle("final")
    assert moved(town, before) == {"CP-1": 18_000, "SUPPLIER-AURORA": -18_000}
    assert town.record("CP-1", "final")["summary"]["estimated"] == "0"


def test_nothing_is_settled_without_accredited_readings() -> None:
    town = Town.of("CP-1")
    town.world.now = START + DAY_S
    with pytest.raises(Conflict, match="CP-1 has no reading of 2026-11-22, nor of a day before"):
        town.commit()
    town.world.now = START + DAY_S - 1
    with pytest.raises(Conflict, match="day 2026-11-22 ends at 2026-11-23T00:00:00Z, but"):
        town.commit()


def test_what_is_posted_is_what_was_committed() -> None:
    town = two()
    town.world.now = START + DAY_S
    town.commit()
    summaries = [town.record(name)["summary"] for name in ("CP-1", "CP-2")]
    state = town.world.state.values()

    def post(**changed: object) -> None:
        argument = {
            "utility": "AuroraMSP",
            "day": DAY,
            "run": "provisional",
            "summaries": summaries,
            **changed,
        }
        town.world.submit(OPERATOR, "settlement:Post", frozen=True, **argument)

    altered = json.loads(json.dumps(summaries))
    altered[0]["sums"][0]["amount_micro"] = "50001"
    with pytest.raises(Conflict, match=r"the record st/.*CP-1 has the hash .* has committed to"):
        post(summaries=altered)
    with pytest.raises(NotFound, match=r"committed to no record st/2026-11-22/final/CP-1"):
        post(run="final", summaries=[{**one, "run": "final"} for one in summaries])
    with pytest.raises(InvalidArgument, match="connections must be in order"):
        post(summaries=summaries[::-1])
    with pytest.raises(InvalidArgument, match="the summary of CP-1 is of AuroraMSP, 2026-11-22"):
        post(run="final")
    with pytest.raises(Forbidden, match="may not post settlements of AuroraMSP"):
        town.world.simulate(BOREAL_OPERATOR, "settlement:Post", {
            "utility": "AuroraMSP", "day": DAY, "run": "provisional", "summaries": summaries,
        })  # fmt: skip
    assert town.world.state.values() == state
    post()


def test_an_opened_day_is_recomputed_to_the_line() -> None:
    town = two()
    town.settle()
    record = town.record("CP-2")
    verify = {"opened": record["opened"], "summary": record["summary"]}
    home = town.homes["CP-2"]
    found = town.world.evaluate(home, "settlement:Verify", **verify)
    assert (found["committed"], found["holds"], found["difference"]) == (True, True, None)

    row = record["opened"]["rows"][0]
    row["lines"][0]["amount_micro"] = str(int(row["lines"][0]["amount_micro"]) - 1)
    found = town.world.evaluate(home, "settlement:Verify", **verify)
    assert (found["committed"], found["holds"]) == (False, False)
    difference = found["difference"]
    assert (difference["interval_start"], difference["kind"]) == (str(START + 48 * 900), "import")
    assert difference["shown"] == "600 Wh at 300000: -180001 micro-units"
    assert difference["expected"] == "600 Wh at 300000: -180000 micro-units"


def test_a_utility_that_alters_a_day_is_named() -> None:
    """Its peer commits to what it likes; the public check and the opened rows tell."""
    town = two()
    town.world.now = START + DAY_S
    town.commit()
    record = town.record("CP-2")
    opened, summary = record["opened"], record["summary"]
    opened["rows"][0]["lines"][0]["amount_micro"] = "-180001"
    summary["sums"][0]["amount_micro"] = "-180001"
    summary["rows"] = hashlib.sha256(canonical_json(opened)).hexdigest()
    context, simulator = town.metering()
    for key, value in (("str", opened), ("st", summary)):
        commitments.put(context, "AuroraMSP", f"{key}/{DAY}/provisional/CP-2", value)
    assert town.world.state.commit(simulator.results()) == [0]
    # Half a micro-unit a line could be rounding, but this is one line.
    with pytest.raises(Conflict, match="import with SUPPLIER-AURORA: 600 Wh for -180001"):
        town.post()
    found = town.world.evaluate(
        town.homes["CP-2"], "settlement:Verify", opened=opened, summary=summary
    )
    assert found["committed"]
    assert found["difference"]["interval_start"] == str(START + 48 * 900)


@pytest.mark.parametrize(("sale_tax_ppm", "tax"), [(0, 0), (200_000, 64_817)])
def test_a_sale_to_a_supplier_was_paid_and_is_settled_for_what_is_missing(
    sale_tax_ppm: int, tax: int
) -> None:
    town = Town.of("CP-1", deposit=0, sale_tax_ppm=sale_tax_ppm)
    world, home = town.world, town.homes["CP-1"]
    world.submit(
        SUPPLIER,
        "market:PublishRate",
        supplier="AuroraMSP",
        day=DAY,
        kind="buy",
        price_micro_per_kwh=81_001,
    )
    world.now = START - 100
    quote = world.evaluate(
        home,
        "market:Quote",
        connection_id="CP-1",
        energy_wh=4001,
        window_start=START + 900 * 40,
        window_end=START + 900 * 44,
    )["quote"]
    world.submit(home, "market:Authorise", request_id="r", quote=quote)
    town.read_day({"CP-1": {40: (0, 2500), 41: (0, 1400), 42: (0, 77)}})
    before = world.money()
    assert before["CP-1"] == int(quote["net_micro"])
    town.settle()
    sums = town.sums("CP-1")
    assert int(quote["tax_micro"]) == tax
    assert sums["sold"] == (4001, int(quote["gross_micro"]) - tax)
    assert sums["fee"] == (4001, -int(quote["grid_fee_micro"]))
    assert sums["shortfall"] == (101, -35_350)
    # 77 Wh that nobody bought, 101 Wh short: nothing else moves, and no tax: the sale is firm.
    assert moved(town, before) == {
        "CP-1": -35_350 + 3_850,
        "BALANCE-AURORA": 35_350,
        "SUPPLIER-AURORA": -3_850,
    }
    assert town.lot("CP-1")["holdings"] == [
        {"holder": "SUPPLIER-AURORA", "energy_wh": "3977", "retired_wh": "0"}
    ]
    record = town.record("CP-1")
    found = world.evaluate(home, "settlement:Verify", **record)
    assert found["holds"], found
    net = world.evaluate(
        home, "settlement:Net", connection_id="CP-1", from_day=DAY, to_day="2026-11-23"
    )
    assert int(net["net_micro"]) == world.money()["CP-1"]
    # Nor when corrections say that less, or all, was delivered.
    for run, wh, at in (("final", 900, final_time()), ("adjustment-1", 1501, final_time() + 1)):
        town.read("CP-1", 41, 0, wh)
        world.now = at
        town.settle(run)
        assert town.sums("CP-1")["sold"] == sums["sold"]
        assert world.money().get("TAX-AURORA", 0) == tax
    assert "shortfall" not in town.sums("CP-1")
    assert sum(world.money().values()) == 0


def test_a_community_is_no_larger_than_can_be_settled() -> None:
    """It is computed as a whole, so very short intervals leave room for fewer members."""
    assert [most_members(seconds) for seconds in (60, 150, 300, 900)] == [8, 20, 40, 40]
    for seconds in (60, 300, 900, 3600):
        assert most_members(seconds) * 25 * 3600 // seconds <= MAX_COMMUNITY_CELLS
    names = [f"CP-{number}" for number in range(9)]
    town = Town.of(*names, interval_s=60, deposit=0)
    town.found_community("C", 120_000)
    town.world.now = START - 15 * 3600

    def join(name: str) -> None:
        town.world.submit(
            town.homes[name], "sharing:Join", community="C", connection_id=name, from_day=DAY
        )

    for name in names[:8]:
        join(name)
    with pytest.raises(LimitExceeded, match=f"C has 8 members from {DAY} on, as many as are "):
        join("CP-8")


def test_a_large_community_is_settled_by_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to the same as by one; and what is read between two of them is taken by all."""

    def made() -> Town:
        town = Town.of("SUN", "USE-1", "USE-2", deposit=0)
        town.found_community("HILL", 120_000)
        town.world.now = START - 15 * 3600
        for name, creator in town.homes.items():
            argument = {"community": "HILL", "connection_id": name, "from_day": DAY}
            town.world.submit(creator, "sharing:Join", **argument)
        town.read_day({"SUN": {40: (0, 900)}, "USE-1": {40: (300, 0)}, "USE-2": {40: (400, 0)}})
        town.world.now = START + DAY_S
        return town

    def agent(town: Town) -> list[Any]:
        return [
            (one["function"], one["argument"].get("only"))
            for one in town.world.evaluate(OPERATOR, "duties:Due")
        ]

    def act(town: Town) -> None:
        call = town.world.evaluate(OPERATOR, "duties:Due")[0]
        town.world.submit(OPERATOR, call["function"], frozen=True, **call["argument"])

    whole = made()
    assert agent(whole) == [("daybook:Commit", None)]
    act(whole)
    act(whole)
    # Two members' quarter hours in each call.
    monkeypatch.setattr(days, "MAX_WRITTEN_CELLS", 2 * 96)
    parted = made()
    both = [("daybook:Commit", ["SUN", "USE-1"]), ("daybook:Commit", ["USE-2"])]
    assert agent(parted) == both
    everybody = {"utility": "AuroraMSP", "day": DAY, "run": "provisional",
                 "connections": ["SUN", "USE-1", "USE-2"]}  # fmt: skip
    for only, said in (
        (None, "3 days of 96 intervals would be written, but one call writes 2"),
        ([], "in order, one at least"),
        (["USE-1", "SUN"], "in order, one at least"),
        (["OTHER"], "some of connections"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            parted.world.submit(OPERATOR, "daybook:Commit", **everybody, only=only)
    interrupted = parted.copy()
    act(parted)
    assert agent(parted) == both[1:]
    act(parted)
    assert agent(parted) == [("settlement:Post", None)]
    act(parted)
    for name in parted.homes:
        assert parted.record(name) == whole.record(name)
    assert parted.world.money() == whole.world.money()
    assert agent(parted) == []
    # More sun is read between the two calls.
    act(interrupted)
    interrupted.read("SUN", 40, 0, 600)
    act(interrupted)
    with pytest.raises(Conflict, match="differ in what they share"):
        interrupted.post()
    assert agent(interrupted) == both
    act(interrupted)
    assert agent(interrupted) == [("settlement:Post", None)]
    act(interrupted)
    assert interrupted.sums("USE-2")["taken"] == (343, -41_160)
    assert agent(interrupted) == []


@pytest.mark.parametrize(
    ("keys", "use_1", "use_2", "sun"),
    [
        ({}, 250, 750, 0),  # in proportion to consumption
        ({"USE-1": 1, "USE-2": 1}, 300, 500, 200),
    ],
)
def test_a_community_shares(keys: dict[str, int], use_1: int, use_2: int, sun: int) -> None:
    town = Town.of("OTHER", "SUN", "USE-1", "USE-2", terms={"shared_fee": 10_000})
    world = town.world
    town.found_community("C", 120_000, keys)
    world.now = START - 15 * 3600
    for name in ("SUN", "USE-1", "USE-2"):
        world.submit(
            town.homes[name], "sharing:Join", community="C", connection_id=name, from_day=DAY
        )
    assert world.evaluate(OPERATOR, "sharing:Members", community="C", day=DAY)["members"] == [
        "SUN",
        "USE-1",
        "USE-2",
    ]
    assert world.evaluate(OPERATOR, "sharing:Members", community="C", day="2026-11-21")[
        "members"
    ] == []  # fmt: skip
    town.read_day(
        {
            "SUN": {50: (0, 1000)},
            "USE-1": {50: (300, 0)},
            "USE-2": {50: (900, 0)},
            "OTHER": {50: (100, 0)},
        }
    )
    world.now = START + DAY_S
    with pytest.raises(Conflict, match="USE-2 is a member of community C"):
        town.commit("provisional", "SUN", "USE-1")
    before = world.money()
    town.settle()
    money = moved(town, before)
    assert money["SUN"] == 120 * (use_1 + use_2) + 50 * sun
    assert money["USE-1"] == -130 * use_1 - 300 * (300 - use_1)
    assert money["USE-2"] == -130 * use_2 - 300 * (900 - use_2)
    assert money["GRID-AURORA"] == 10 * (use_1 + use_2)
    holders = {one["holder"]: one["energy_wh"] for one in town.lot("SUN")["holdings"]}
    expected = {"USE-1": str(use_1), "USE-2": str(use_2), "SUPPLIER-AURORA": str(sun)}
    assert holders == {name: wh for name, wh in expected.items() if wh != "0"}
    for name in town.homes:
        assert world.evaluate(OPERATOR, "settlement:Verify", **town.record(name))["holds"]
    net = world.evaluate(
        town.homes["USE-1"],
        "settlement:Net",
        connection_id="USE-1",
        from_day=DAY,
        to_day="2026-11-24",
    )
    assert int(net["net_micro"]) == money["USE-1"]
    assert int(net["grid_fees_micro"]) == -10 * use_1
    assert net["open_days"] == ["2026-11-23"]


@pytest.mark.parametrize(("window", "names"), [(1, ("q", "q")), (4, ("hour_net", "hour_net"))])
def test_the_netting_window_is_a_term(window: int, names: tuple[str, str]) -> None:
    case = cases("net_metering_sharing")["hourly_vs_quarter_netting"]
    town = Town.of("CP-1", terms={"netting_intervals": window})
    town.read_day(
        {
            "CP-1": {
                48 + index: (max(0, net), max(0, -net))
                for index, net in enumerate(case["quarter_net_wh"])
            }
        }
    )
    town.settle()
    sums = town.sums("CP-1")
    expected = case["expected"]
    assert sums.get("import", (0, 0))[0] == expected[f"import_{names[0]}"]
    assert sums.get("feed_in", (0, 0))[0] == expected[f"export_{names[1]}"]
    assert sums.get("netted", (0, 0))[0] == (0 if window == 1 else 1100)
    assert town.world.evaluate(OPERATOR, "settlement:Verify", **town.record("CP-1"))["holds"]


def test_what_is_left_may_be_billed_instead() -> None:
    town = two(rest="billed")
    before = town.world.money()
    town.settle()
    assert moved(town, before) == {}
    assert town.sums("CP-2")["import"] == (600, 0)


def test_published_prices_of_deviations() -> None:
    town = Town.of("BUY-1", "SELL", product=True)
    world = town.world
    publish = {"day": DAY, "shortfall_price": 600_000, "surplus_price": 45_000}
    world.submit(OPERATOR, "settlement:PublishPrices", **publish)
    state = world.state.values()
    world.submit(OPERATOR, "settlement:PublishPrices", **publish)
    assert world.state.values() == state
    with pytest.raises(Conflict, match="has published other prices"):
        world.submit(OPERATOR, "settlement:PublishPrices", **{**publish, "surplus_price": 1})
    town.order("SELL", "offer", 1000, 90_000, 50)
    town.order("BUY-1", "bid", 1000, 100_000, 50)
    town.clear(50)
    town.read_day({"SELL": {50: (0, 900)}, "BUY-1": {50: (700, 0)}})
    with pytest.raises(Conflict, match="before the day"):
        world.submit(
            OPERATOR,
            "settlement:PublishPrices",
            **{**publish, "day": "2026-11-21"},
        )
    before = world.money()
    town.settle()
    assert town.sums("SELL")["shortfall"] == (100, -60_000)
    assert town.sums("BUY-1")["surplus"] == (300, 13_500)
    assert moved(town, before)["BALANCE-AURORA"] == 60_000 - 13_500
    # The order's hold has ended with the payment.
    assert world.evaluate(town.homes["BUY-1"], "wallet:Holds", account="BUY-1") == []
    assert world.evaluate(town.homes["SELL"], "wallet:Holds", account="SELL") == []


def test_the_clearing_house_is_left_with_roundings() -> None:
    town = Town.of("BUY-1", "BUY-2", "BUY-3", "SELL", product=True)
    town.order("SELL", "offer", 1000, 90_001, 50)
    for name, energy_wh in (("BUY-1", 333), ("BUY-2", 333), ("BUY-3", 334)):
        town.order(name, "bid", energy_wh, 100_001, 50)
    town.clear(50)
    town.read_day({"SELL": {50: (0, 1000)}})
    town.world.now = START + DAY_S
    town.settle("provisional", "SELL")
    with pytest.raises(Conflict, match="not all days are posted"):
        town.world.submit(OPERATOR, "settlement:CloseMarket", frozen=True, day=DAY)
    town.settle("provisional", "BUY-1", "BUY-2", "BUY-3")
    left = town.world.money()["CLEARING-MARKET"]
    assert abs(left) <= 2
    closed = town.world.submit(OPERATOR, "settlement:CloseMarket", frozen=True, day=DAY)
    assert int(closed["rounding_micro"]) == left
    assert town.world.money().get("CLEARING-MARKET", 0) == 0
    assert town.world.money().get("CLEARING-ROUNDING", 0) == left
    state = town.world.state.values()
    town.world.submit(OPERATOR, "settlement:CloseMarket", frozen=True, day=DAY)
    assert town.world.state.values() == state


def test_a_preview_shows_the_day_so_far() -> None:
    town = two()
    town.world.now = START + 49 * 900
    ask = {"utility": "AuroraMSP", "day": DAY}
    (own,) = town.world.evaluate(town.homes["CP-2"], "daybook:Preview", connections=["CP-2"], **ask)
    assert own["import_wh"] == "600"
    assert [one["amount_micro"] for one in own["sums"]] == ["-180000"]
    with pytest.raises(Forbidden, match="may not read trades of these connections"):
        town.world.evaluate(town.homes["CP-2"], "daybook:Preview", connections=["CP-1"], **ask)
    both = town.world.evaluate(OPERATOR, "daybook:Preview", connections=["CP-1", "CP-2"], **ask)
    assert [one["connection_id"] for one in both] == ["CP-1", "CP-2"]


def test_a_transaction_that_settles_tells_no_reading() -> None:
    """What daybook:Commit leaves on every peer: two hashes a home, and nothing to guess from."""
    town = two()
    town.world.now = START + DAY_S
    answer = town.world.simulate(
        OPERATOR,
        "daybook:Commit",
        {"utility": "AuroraMSP", "day": DAY, "run": "provisional", "connections": ["CP-1"]},
    )
    assert answer.event is None
    assert sorted(writes(answer.results)) == [
        f"readings-AuroraMSP:st/{DAY}/provisional/CP-1",
        f"readings-AuroraMSP:str/{DAY}/provisional/CP-1",
    ]
    public = rwset_pb2.TxReadWriteSet.FromString(answer.results.rwset)
    assert all(not kvrwset_pb2.KVRWSet.FromString(n.rwset).writes for n in public.ns_rwset)
    (record,) = answer.value["records"]
    assert sorted(record) == ["commitment", "connection_id", "key"]


def test_energy_that_crosses_zones_pays_both_grids() -> None:
    town = Town.of("BUY", "SELL", product=True, south=("BUY",))
    town.order("SELL", "offer", 1000, 60_000, 50)
    town.order("BUY", "bid", 1000, 100_000, 50)
    town.clear(50)
    town.read_day({"SELL": {50: (0, 1000)}, "BUY": {50: (1000, 0)}})
    before = town.world.money()
    town.settle()
    money = moved(town, before)
    # The hub clears between 60,000 + 20,000 and 100,000 - 5,000: at 87,500.
    assert money == {"SELL": 67_500, "BUY": -92_500, "GRID-AURORA": 25_000}
    for name in town.homes:
        assert town.world.evaluate(OPERATOR, "settlement:Verify", **town.record(name))["holds"]


def test_a_contract_between_homes_is_settled_with_the_clearing_house() -> None:
    town = Town.of("BUY", "OTHER", "SELL")
    terms = {
        "contract_id": "PPA-1",
        "seller": "SELL",
        "buyer": "BUY",
        "from_day": DAY,
        "to_day": "2026-12-22",
        "price_micro_per_kwh": 70_000,
        "profile": [{"from_minute": 720, "to_minute": 735, "energy_wh": 800}],
    }
    town.world.submit(town.homes["SELL"], "bilateral:Propose", terms=terms, proposed_by="SELL")
    town.world.submit(town.homes["BUY"], "bilateral:Sign", terms=terms)
    town.read_day({"SELL": {48: (0, 500)}, "BUY": {48: (1000, 0)}, "OTHER": {48: (900, 0)}})
    before = town.world.money()
    town.settle()
    assert moved(town, before) == {
        "SELL": 56_000 - 105_000,
        "BUY": -(56_000 + 16_000) - 60_000,
        "OTHER": -270_000,
        "GRID-AURORA": 16_000,
        "BALANCE-AURORA": 105_000,
        "SUPPLIER-AURORA": 330_000,
    }
    # What was delivered is the named buyer's, whoever else used energy at that time.
    assert town.lot("SELL")["holdings"] == [
        {"holder": "BUY", "energy_wh": "500", "retired_wh": "500"}
    ]


def test_what_is_given_is_firm_and_of_who_gave_it() -> None:
    """600 Wh given, 500 delivered: fees and the missing 100 are paid, the energy is free."""
    town = Town.of("GIVE", "OTHER", "TAKE")
    terms = {**PRODUCT, "product": "FLOW", "trading": "continuous"}
    town.agree("book:ProposeProduct", "book:ApproveProduct", terms, product="FLOW")
    where = {"product": "FLOW", "interval_start": START + 48 * 900}
    for giver, taker, side, price in (
        ("GIVE", "TAKE", "offer", 0),
        ("TAKE", "GIVE", "bid", 15_000),
    ):
        town.world.submit(
            town.homes[giver],
            "book:Place",
            order_id="o-1",
            connection_id=giver,
            side=side,
            price_micro_per_kwh=price,
            energy_wh=600,
            gift=taker,
            **where,
        )
    waiting = town.world.evaluate(OPERATOR, "book:Inbox", **where)["entries"]
    town.world.submit(OPERATOR, "book:Match", frozen=True, entries=waiting, **where)
    town.read_day({"GIVE": {48: (0, 500)}, "TAKE": {48: (550, 0)}, "OTHER": {48: (900, 0)}})
    before = town.world.money()
    town.settle()
    assert moved(town, before) == {
        "GIVE": -35_000,
        "TAKE": -6_000 + 2_000,  # 50 Wh that it didn't use are sold at the surplus price
        "OTHER": -270_000,
        "GRID-AURORA": 6_000,
        "BALANCE-AURORA": 35_000 - 2_000,
        "SUPPLIER-AURORA": 270_000,
    }
    assert town.sums("GIVE") == {"sold": (600, 0), "shortfall": (100, -35_000)}
    assert town.sums("TAKE") == {"bought": (600, 0), "fee": (600, -6_000), "surplus": (50, 2_000)}
    assert town.lot("GIVE")["holdings"] == [
        {"holder": "TAKE", "energy_wh": "500", "retired_wh": "500"}
    ]
    # Read again: what wasn't delivered at first was.
    town.read("GIVE", 48, 0, 600)
    town.world.now = final_time()
    town.settle("final")
    assert town.sums("GIVE") == {"sold": (600, 0)}
    lot = town.lot("GIVE")
    assert (lot["minted_wh"], lot["retired_wh"], lot["outstanding_wh"]) == ("600", "550", "50")
    found = town.world.evaluate(
        town.homes["TAKE"], "settlement:Verify",
        **{name: town.record("TAKE", "final")[name] for name in ("opened", "summary")},
    )  # fmt: skip
    assert (found["committed"], found["holds"]) == (True, True)
    for name in ("GIVE", "TAKE"):
        assert town.world.evaluate(town.homes[name], "wallet:Holds", account=name) == []
    assert sum(town.world.money().values()) == 0


CALL: dict[str, dict[str, object]] = {
    "daybook:Commit": {"utility": "AuroraMSP", "day": DAY, "run": "provisional",
                       "connections": ["CP-1"]},
    "daybook:Record": {"utility": "AuroraMSP", "day": DAY, "run": "provisional",
                       "connection_id": "CP-1"},
    "daybook:Preview": {"utility": "AuroraMSP", "day": DAY, "connections": ["CP-1"]},
    "settlement:Inputs": {"utility": "AuroraMSP", "day": DAY, "connections": ["CP-1"]},
    "settlement:Trades": {"connection_id": "CP-1", "from": START, "to": START + 900},
    "settlement:Terms": {"supplier": "AuroraMSP", "day": DAY},
    "settlement:Posted": {"connection_id": "CP-1", "day": DAY},
    "settlement:Days": {"connection_id": "CP-1"},
    "settlement:Net": {"connection_id": "CP-1", "from_day": DAY, "to_day": "2026-11-23"},
    "settlement:PublishPrices": {"day": "2026-12-01", "shortfall_price": 2, "surplus_price": 1},
    "settlement:CloseMarket": {"day": DAY},
    "settlement:ProposeTerms": {"terms": TERMS, "effective_from": START + 7 * DAY_S},
    "settlement:ApproveTerms": {"supplier": "AuroraMSP", "version": 1},
    "settlement:Post": {"utility": "AuroraMSP", "day": DAY, "run": "provisional",
                        "summaries": []},
    "settlement:UseCredits": {"connection_id": "CP-1", "day": DAY, "lots": [DAY]},
    "credit:Lots": {"connection_id": "CP-1"},
    "credit:Expire": {"connection_id": "CP-1", "day": DAY},
    "token:Lot": {"origin": "CP-1", "day": DAY},
    "token:Held": {"holder": "SUPPLIER-AURORA"},
    "token:Supply": {"origin": "CP-1", "from_day": DAY, "to_day": "2026-11-23"},
    "sharing:Propose": {"terms": {"community": "C", "utility": "AuroraMSP", "method": "static",
                                  "price_micro_per_kwh": 1,
                                  "keys": [{"connection_id": "CP-1", "parts": 1}]},
                        "effective_from": START + 7 * DAY_S},
    "sharing:Approve": {"community": "C", "version": 1},
    "sharing:Terms": {"community": "C", "day": DAY},
    "sharing:Join": {"community": "C", "connection_id": "CP-1", "from_day": "2026-12-01"},
    "sharing:Leave": {"connection_id": "CP-1", "until_day": "2026-12-01"},
    "sharing:Members": {"community": "C", "day": DAY},
    "commitment:Of": {"utility": "AuroraMSP", "keys": ["st/x"]},
}  # fmt: skip
BAD = [
    ("daybook:Commit", {"connections": []}, InvalidArgument, "connections must be in order"),
    ("daybook:Commit", {"connections": ["CP-2", "CP-1"]}, InvalidArgument, "in order of"),
    ("daybook:Commit", {"connections": ["CP-1/x"]}, InvalidArgument, r"connections\[0\] is"),
    ("daybook:Commit", {"connections": ["CP-9"]}, NotFound, "connection CP-9 is not registered"),
    ("daybook:Commit", {"connections": ["CP-1"] * 41}, LimitExceeded, "connections has 41 items"),
    ("daybook:Commit", {"run": "adjustment-100"}, InvalidArgument, "run is"),
    ("daybook:Commit", {"run": "final"}, Conflict, "becomes final at 2026-11-25T00:00:00Z"),
    ("daybook:Commit", {"day": "2026-02-30"}, InvalidArgument, "which is no day"),
    ("daybook:Commit", {"day": "2026-11-20"}, NotFound, "no settlement AuroraMSP is in force"),
    ("daybook:Commit", {"utility": "BorealMSP"}, Forbidden, "may not settle days of BorealMSP"),
    ("daybook:Record", {"run": "final"}, NotFound, "no final settlement of CP-1"),
    ("daybook:Record", {"connection_id": "CP-9"}, NotFound, "settlement of CP-9"),
    ("settlement:Trades", {"to": START}, InvalidArgument, "to is"),
    ("settlement:Trades", {"to": START + 3 * DAY_S}, InvalidArgument, "two days at most"),
    ("settlement:Trades", {"from": -1}, InvalidArgument, "from is -1"),
    ("settlement:Trades", {"connection_id": "CP-9"}, NotFound, "CP-9 is not registered"),
    ("settlement:Terms", {"supplier": "BorealMSP"}, NotFound, "no settlement BorealMSP"),
    ("settlement:Posted", {}, NotFound, "day 2026-11-22 of CP-1 isn't settled"),
    ("settlement:Days", {"limit": 101}, InvalidArgument, "limit is 101"),
    ("settlement:Net", {"to_day": DAY}, InvalidArgument, "to_day is 2026-11-22"),
    ("settlement:PublishPrices", {"surplus_price": 3}, InvalidArgument, "above shortfall_price"),
    ("settlement:PublishPrices", {"shortfall_price": 2**63}, InvalidArgument, "beyond 64 bits"),
    ("settlement:PublishPrices", {"shortfall_price": str(2**63)}, InvalidArgument,
     "must be between"),
    ("settlement:PublishPrices", {"shortfall_price": 1.5}, InvalidArgument, "1.5 is not an int"),
    ("settlement:PublishPrices", {"shortfall_price": float("nan")}, InvalidArgument, "NaN is not"),
    ("settlement:PublishPrices", {"day": DAY}, Conflict, "before the day"),
    ("settlement:ProposeTerms", {"terms": {**TERMS, "shortfall_price": 1}}, InvalidArgument,
     "below the tariff"),
    ("settlement:ProposeTerms", {"terms": {**TERMS, "surplus_price": 60_000}}, InvalidArgument,
     "above the base rate"),
    ("settlement:ProposeTerms", {"terms": {**TERMS, "netting_intervals": 0}}, InvalidArgument,
     "terms.netting_intervals is 0"),
    ("settlement:ProposeTerms", {"terms": {**TERMS, "region": "NOWHERE"}}, NotFound,
     "no calendar NOWHERE"),
    ("settlement:ProposeTerms", {"effective_from": START + 1}, InvalidArgument, "UTC day"),
    ("settlement:ProposeTerms", {"effective_from": START}, Conflict, "effective_from is"),
    ("settlement:ApproveTerms", {"version": 9}, NotFound, "has no version 9"),
    ("settlement:Post", {}, InvalidArgument, "one at least"),
    ("settlement:Post", {"utility": "BorealMSP"}, Forbidden, "post settlements of BorealMSP"),
    ("settlement:UseCredits", {}, Conflict, "isn't final"),
    ("settlement:UseCredits", {"lots": [DAY] * 63}, LimitExceeded, "lots has 63 items"),
    ("credit:Expire", {}, NotFound, "CP-1 has no credit of 2026-11-22"),
    ("credit:Lots", {"connection_id": "CP-9"}, NotFound, "CP-9 is not registered"),
    ("token:Lot", {}, NotFound, "no tokens of 2026-11-22"),
    ("token:Supply", {"to_day": "2028-11-23"}, InvalidArgument, "1 to 400 days"),
    ("token:Held", {"holder": "ext/bank/AuroraMSP"}, InvalidArgument, "holder is"),
    ("sharing:Propose", {"effective_from": START + 1}, InvalidArgument, "UTC day"),
    ("sharing:Approve", {}, NotFound, "community C has no version 1"),
    ("sharing:Terms", {}, NotFound, "no community C is in force"),
    ("sharing:Join", {}, NotFound, "no community C is in force"),
    ("sharing:Join", {"connection_id": "CP-2"}, Forbidden, "its home alone"),
    ("sharing:Leave", {}, NotFound, "CP-1 is a member of no community"),
    ("commitment:Of", {"keys": ["st/x"] * 201}, LimitExceeded, "keys has 201 items"),
    ("commitment:Of", {"unknown": 1}, InvalidArgument, "unknown is not a field"),
]  # fmt: skip


@pytest.fixture(scope="module")
def quiet() -> Town:
    """Two homes whose day is over, with nothing settled yet."""
    town = two()
    town.world.now = START + DAY_S
    return town


@pytest.mark.parametrize(("function", "changed", "kind", "message"), BAD)
def test_bad_input_changes_nothing(
    quiet: Town, function: str, changed: dict[str, object], kind: type[Exception], message: str
) -> None:
    home = function in ("sharing:Join", "sharing:Leave")
    caller = quiet.homes["CP-1"] if home else OPERATOR
    before = quiet.world.state.values()
    argument = json.dumps({**CALL[function], **changed}).encode()
    with pytest.raises(kind, match=message):
        quiet.world.simulate(caller, function, argument)
    assert quiet.world.state.values() == before


OTHERS_MAY = (
    "settlement:Terms", "settlement:PublishPrices", "settlement:CloseMarket",
    "settlement:ApproveTerms", "token:Lot", "token:Held", "token:Supply", "sharing:Approve",
    "sharing:Terms", "sharing:Members", "commitment:Of",
)  # fmt: skip
"""What any utility's operator may call."""


@pytest.mark.parametrize("function", [name for name in CALL if name not in OTHERS_MAY])
def test_another_utility_may_not(quiet: Town, function: str) -> None:
    before = quiet.world.state.values()
    with pytest.raises(Forbidden, match="may not"):
        quiet.world.simulate(BOREAL_OPERATOR, function, CALL[function])
    assert quiet.world.state.values() == before


def credit(town: Town, day: str = DAY) -> tuple[int, ...]:
    """Of a day's export: banked, outstanding, used, expired, reversed."""
    lots = town.world.evaluate(OPERATOR, "credit:Lots", connection_id="CP-1")["lots"]
    (lot,) = [one for one in lots if one["day"] == day]
    names = ("banked_wh", "outstanding_wh", "used_wh", "expired_wh", "reversed_wh")
    found = tuple(int(lot[name]) for name in names)
    assert found[0] == sum(found[1:])
    return found


def test_credits_are_banked_used_corrected_and_expire() -> None:
    town = Town.of("CP-1", terms={"banking_days": 30, "expired_price": 10_000})
    following = "2026-11-23"
    town.read_day({"CP-1": {48: (0, 1000)}})
    town.read_day({"CP-1": {48: (600, 0)}}, following)
    before = town.world.money()
    town.settle()
    assert moved(town, before) == {}
    assert credit(town) == (1000, 1000, 0, 0, 0)
    assert town.lot("CP-1")["minted_wh"] == "1000"
    town.settle(day=following)
    assert moved(town, before) == {"CP-1": -180_000, "SUPPLIER-AURORA": 180_000}
    use = {"connection_id": "CP-1", "day": following, "lots": [DAY]}
    with pytest.raises(Conflict, match="isn't final"):
        town.world.submit(OPERATOR, "settlement:UseCredits", **use)
    town.world.now = final_time(following)
    town.settle("final")
    town.settle("final", day=following)
    with pytest.raises(Forbidden, match="may not use credits of CP-1"):
        town.world.submit(BOREAL_OPERATOR, "settlement:UseCredits", **use)
    billed = town.copy()
    place = ("energy", f"credit/CP-1/{DAY}")
    stored = billed.world.state.public[place]
    lot = canonical_json({**json.loads(stored.value), "billed": True})
    billed.world.state.public[place] = VersionedValue(lot, b"", stored.version)
    with pytest.raises(Conflict, match="is a bill's; the next bills use it by themselves"):
        billed.world.submit(OPERATOR, "settlement:UseCredits", **use)
    used = town.world.submit(OPERATOR, "settlement:UseCredits", **use)
    assert (used["energy_wh"], used["amount_micro"]) == ("600", "180000")
    assert moved(town, before) == {}
    assert credit(town) == (1000, 400, 600, 0, 0)
    state = town.world.state.values()
    town.world.submit(OPERATOR, "settlement:UseCredits", **use)
    assert town.world.state.values() == state

    # Only 500 Wh were exported: 400 are taken back, 100 that were used are paid.
    town.read("CP-1", 48, 0, 500)
    town.settle("adjustment-1")
    assert credit(town) == (1000, 0, 500, 0, 500)
    assert moved(town, before) == {"CP-1": -30_000, "SUPPLIER-AURORA": 30_000}
    # And only 450 Wh were imported: 150 are given back, their 45,000 too, and not paid for.
    town.read("CP-1", 48, 450, 0, following)
    town.settle("adjustment-1", day=following)
    assert credit(town) == (1000, 150, 350, 0, 500)
    assert moved(town, before) == {"CP-1": -30_000, "SUPPLIER-AURORA": 30_000}

    expire = {"connection_id": "CP-1", "day": DAY}
    with pytest.raises(Conflict, match="holds until 2026-12-23"):
        town.world.submit(OPERATOR, "credit:Expire", **expire)
    town.world.now = START + 31 * DAY_S
    town.world.submit(OPERATOR, "credit:Expire", **expire)
    assert credit(town) == (1000, 0, 350, 150, 500)
    assert moved(town, before) == {"CP-1": -28_500, "SUPPLIER-AURORA": 28_500}
    state = town.world.state.values()
    town.world.submit(OPERATOR, "credit:Expire", **expire)
    assert town.world.state.values() == state
    with pytest.raises(NotFound, match="no credit of 2026-11-24"):
        town.world.submit(OPERATOR, "credit:Expire", **{**expire, "day": "2026-11-24"})


def test_a_local_day_has_its_own_intervals() -> None:
    """2027-03-28 in Rome: 23 hours, from 23:00 to 22:00 in UTC; and Easter Monday is no workday."""
    spring = "2027-03-28"
    town = Town.of("CP-1")
    calendar = {
        "region": "EUROPE-ROME",
        "offsets": [
            {"from": day_start("2026-10-25") + 3600, "offset_s": 3600},
            {"from": day_start(spring) + 3600, "offset_s": 7200},
        ],
        "known_until": day_start("2027-10-31") + 3600,
        "holidays": ["2027-03-29"],
    }
    town.agree("tariff:ProposeCalendar", "tariff:ApproveCalendar", calendar, region="EUROPE-ROME")
    for function, changed, named in (
        ("settlement:ProposeTerms", {**TERMS, "region": "EUROPE-ROME"}, {}),
        ("settlement:ApproveTerms", None, {"supplier": "AuroraMSP", "version": 2}),
    ):
        caller = OPERATOR if changed else BOREAL_OPERATOR
        proposal = {"terms": changed, "effective_from": START + DAY_S} if changed else {}
        town.world.submit(caller, function, **proposal, **named)
    inputs = town.world.evaluate(
        OPERATOR, "settlement:Inputs", utility="AuroraMSP", day=spring, connections=["CP-1"]
    )
    start, end = int(inputs["from"]), int(inputs["to"])
    assert (start, end) == (day_start(spring) - 3600, day_start(spring) + 22 * 3600)
    assert (end - start) // 900 == 92
    # Tuesday and Wednesday, local time.
    assert int(inputs["final_at"]) == day_start("2027-04-01") - 7200
    first = -4  # the intervals are counted from midnight in UTC
    town.read_intervals("CP-1", dict.fromkeys(range(first - 1, 89), (10, 0)), spring)
    town.world.now = end - 1
    with pytest.raises(Conflict, match="day 2027-03-28 ends at 2027-03-28T22:00:00Z"):
        town.commit(day=spring)
    town.world.now = end
    town.commit(day=spring)
    town.post(day=spring)
    assert town.sums("CP-1", spring)["import"] == (920, -920 * 300)


SCENARIO = """
import hashlib
from tests.consortium.contracts.test_settlement_properties import _fresh, call, HOMES, START
town = _fresh().copy()
for step in (
    ("order", "CP-1", "offer", 900, 80_000, 5, 1), ("order", "CP-2", "bid", 700, 120_000, 5, 1),
    ("order", "CP-3", "bid", 400, 120_000, 5, 1), ("clear", 5),
    *(("read", name, hour, 100 * hour, 2500 - 100 * hour) for name in HOMES for hour in range(23)),
    ("until", START + 86_400), ("settle", HOMES, "provisional"), ("close",),
):
    call(town, step)
digest = hashlib.sha256()
for key, value in sorted(town.world.state.values().items()):
    digest.update(repr((key, value)).encode())
print(digest.hexdigest())
"""


def test_every_peer_settles_alike() -> None:
    answers = {
        subprocess.run(
            [sys.executable, "-c", SCENARIO],
            cwd=Path(__file__).resolve().parents[3],
            env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed, locale, zone in (("0", "C", "UTC"), ("4242", "de_DE.UTF-8", "Asia/Kathmandu"))
    }
    assert len(answers) == 1


def test_no_reading_can_be_guessed_from_a_commitment() -> None:
    """Whoever tries all energies up to 6,000 Wh in what it may know of a day finds none."""
    town = Town.of("CP-1")
    town.read_day({"CP-1": {48: (0, 1234)}})
    town.world.now = START + DAY_S
    town.commit()
    record = town.record("CP-1")
    hashes = {stored.value.hex() for stored in town.world.state.hashes.values()}
    opened = record["opened"]
    assert hashlib.sha256(canonical_json(opened)).hexdigest() in hashes
    row = opened["rows"][0]
    for energy_wh in range(6001):
        row["export_wh"] = row["lines"][0]["energy_wh"] = str(energy_wh)
        row["tokens"][0]["energy_wh"] = str(energy_wh)
        row["lines"][0]["amount_micro"] = str(energy_wh * 50)
        for salt in ("0" * 64, hashlib.sha256(b"").hexdigest()):
            guessed = canonical_json({**opened, "salt": salt})
            assert hashlib.sha256(guessed).hexdigest() not in hashes


def test_settling_disturbs_nobody() -> None:
    """In one block: two postings, and an order, a payment and a sweep of the homes they concern."""
    town = Town.of("CP-1", "CP-2", "CP-3", product=True)
    town.read_day({"CP-1": {48: (0, 1000)}, "CP-2": {48: (600, 0)}})
    world, home = town.world, town.homes["CP-2"]
    world.now = START + DAY_S
    town.commit()
    where = {"utility": "AuroraMSP", "day": DAY, "run": "provisional"}
    calls = [
        world.simulate(
            OPERATOR,
            "settlement:Post",
            {**where, "summaries": [town.record(name)["summary"] for name in names]},
        )
        for names in (("CP-1",), ("CP-2", "CP-3"))
    ]
    order = {
        "order_id": "o-9",
        "connection_id": "CP-2",
        "product": "ANY",
        "interval_start": world.now + 7200,
        "side": "bid",
        "price_micro_per_kwh": 100_000,
        "energy_wh": 500,
    }
    calls.append(world.simulate(home, "book:Place", order))
    payment = {"account": "CP-1", "payee": "CP-2", "amount_micro": 5, "request_id": "p"}
    calls.append(world.simulate(town.homes["CP-1"], "wallet:Pay", payment))
    calls.append(world.simulate(OPERATOR, "wallet:Sweep", {"account": "CP-2", "entries": []}))
    assert world.state.commit(*(call.results for call in calls)) == [0] * 5
    assert sum(world.money().values()) == 0


def do_due(town: Town) -> list[str]:
    """Make all calls that are due at Aurora, as its agent does, until there are none."""
    done: list[str] = []
    while True:
        due = [
            one
            for asked in ("duties:Due", "agenda:Due", "book:Due")
            for one in town.world.evaluate(OPERATOR, asked)
        ]
        if not due:
            return done
        for one in due:
            assert one.get("endorsing", ["AuroraMSP"]) in ([], ["AuroraMSP"])
            town.world.submit(OPERATOR, one["function"], frozen=True, **one["argument"])
            done.append(one["function"])
        assert len(done) < 100


def test_an_agent_settles_days_by_itself() -> None:
    town = Town.of("BUY", "SELL", product=True)
    town.order("SELL", "offer", 1000, 90_000, 50)
    town.order("BUY", "bid", 1000, 100_000, 50)
    town.clear(50)
    for index in range(95):
        at = {50: (1000, 0)}
        town.read_intervals("BUY", {index: at.get(index, (0, 0))})
        town.read_intervals("SELL", {index: (0, 1000) if index == 50 else (0, 0)})
    town.world.now = START + DAY_S
    assert do_due(town) == []  # the last interval isn't read yet
    town.read("BUY", 95)
    assert do_due(town) == ["daybook:Commit", "settlement:Post"]
    town.read("SELL", 95)
    assert do_due(town) == ["daybook:Commit", "settlement:Post", "settlement:CloseMarket"]
    assert town.sums("SELL")["sold"] == (1000, 90_000)
    town.world.now = final_time()
    assert do_due(town) == ["daybook:Commit", "settlement:Post"]
    posted = town.world.evaluate(OPERATOR, "settlement:Posted", connection_id="BUY", day=DAY)
    assert posted["run"] == "final"
    assert town.world.evaluate(BOREAL_OPERATOR, "duties:Due") == []
    with pytest.raises(Forbidden, match="may not see what is due at AuroraMSP"):
        town.world.evaluate(town.homes["BUY"], "duties:Due")


def test_what_never_came_is_estimated_once_it_would_be_late() -> None:
    town = Town.of("CP-1", "CP-2")
    town.read_intervals("CP-1", {at: (0, 1000 if at == 48 else 0) for at in range(96)})
    town.read_intervals("CP-2", dict.fromkeys(range(95), (0, 0)))
    town.read("CP-2", 95, 100, day="2026-11-21")
    town.world.submit(  # without a meter, which must not keep the others
        OPERATOR,
        "registry:RegisterConnection",
        connection_id="CP-3",
        utility="AuroraMSP",
        zone="NORTH",
        max_export_w=10_000,
        max_import_w=20_000,
    )
    town.world.now = START + DAY_S
    assert do_due(town) == ["daybook:Commit", "settlement:Post"]
    assert town.sums("CP-1")["feed_in"] == (1000, 50_000)
    town.world.now += 6 * 3600
    assert do_due(town) == ["daybook:Commit", "settlement:Post"]
    record = town.record("CP-2")
    assert record["summary"]["estimated"] == "1"
