"""Continuous books on the ledger: inbox, matcher, holds, feeders, closing."""

import json
import random
from typing import Any

import pytest

from consortium.chaincode.api import (
    Conflict,
    Creator,
    Forbidden,
    InvalidArgument,
    LimitExceeded,
    NotFound,
)
from consortium.contracts.market import matching
from tests.consortium.contracts.test_books import INTERVAL, Exchange
from tests.consortium.contracts.world import BOREAL_OPERATOR, HOME, NOON, OPERATOR

FLOW: dict[str, Any] = {
    "product": "FLOW",
    "zones": [
        {"zone": "NORTH", "local_fee": 10_000, "entry_fee": 15_000, "exit_fee": 5_000},
        {
            "zone": "SOUTH",
            "local_fee": 20_000,
            "entry_fee": 25_000,
            "exit_fee": 0,
            "most_in_w": 4_000,
        },
    ],
    "price_min": -500_000,
    "price_max": 4_000_000,
    "price_tick": 1_000,
    "price_rule": "middle",
    "gate_closure_s": 600,
    "shortfall_margin": 50_000,
    "trading": "continuous",
    "matching_fee": 2_000,
}


class Floor(Exchange):
    """An exchange with a continuous product."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.world.submit(OPERATOR, "book:ProposeProduct", terms=FLOW, effective_from=NOON + 900)
        self.world.submit(BOREAL_OPERATOR, "book:ApproveProduct", product="FLOW", version=1)

    def enter(
        self, connection_id: str, side: str, price: int, wh: int, order_id: str = "o-1", **more: Any
    ) -> Any:
        return self.call(
            connection_id,
            "book:Place",
            order_id=order_id,
            product="FLOW",
            side=side,
            price_micro_per_kwh=price,
            energy_wh=wh,
            **more,
        )

    def waiting(self) -> list[str]:
        found = self.world.evaluate(HOME, "book:Inbox", product="FLOW", interval_start=INTERVAL)
        return list(found["entries"])

    def match(self, entries: list[str] | None = None) -> Any:
        return self.run(
            "book:Match", product="FLOW", entries=self.waiting() if entries is None else entries
        )

    def ticker(self) -> Any:
        found = self.world.evaluate(HOME, "book:Ticker", product="FLOW", interval_start=INTERVAL)
        return found["ticker"]

    def fills(self, connection_id: str) -> list[tuple[str, str, str]]:
        prefix = f"fill/{connection_id}/"
        return [
            (
                record["hold_id"].split("-", 2)[2],
                record["energy_wh"].removeprefix("-"),
                record["price_micro_per_kwh"],
            )
            for (namespace, key), stored in sorted(self.world.state.public.items())
            if namespace == "energy" and key.startswith(prefix)
            for record in [json.loads(stored.value)]
        ]


@pytest.fixture
def floor() -> Floor:
    floor = Floor()
    for connection_id in ("S-1", "S-2", "B-1", "B-2"):
        floor.add(connection_id)
    floor.add("FAR", "SOUTH")
    return floor


def test_orders_meet_by_price_and_then_time(floor: Floor) -> None:
    floor.enter("S-1", "offer", 60_000, 1000)
    floor.match()
    floor.enter("S-2", "offer", 60_000, 1000)
    floor.match()
    assert floor.held("S-1") == 50_000
    placed = floor.enter("B-1", "bid", 100_000, 1500)
    assert (placed["state"], placed["sequence"]) == ("open", "0")
    assert floor.fills("B-1") == []
    names = floor.waiting()
    assert floor.match() == {
        "product": "FLOW",
        "interval_start": str(INTERVAL),
        "taken": "1",
        "fills": "4",
    }
    assert floor.match(names)["taken"] == "0"
    # The resting order's price, the local fee on top; what is paid for matching is paid at once.
    assert floor.fills("B-1") == [("o-1", "1000", "70000"), ("o-1", "500", "70000")]
    assert floor.world.money()["SUPPLIER-BOREAL"] == 3_000
    assert floor.fills("S-1") == [("o-1", "1000", "60000")]
    assert floor.fills("S-2") == [("o-1", "500", "60000")]
    assert floor.order("S-1")["state"] == "cleared"
    assert floor.order("S-2")["state"] == "open"
    assert floor.order("B-1")["matched_by"] == "BorealMSP"
    # The bid is done: what its fills cost stays held, the rest of its limit went back.
    assert floor.held("B-1") == 1500 * 70
    assert floor.held("S-2") == 50_000
    depth = floor.world.evaluate(
        HOME, "book:Depth", product="FLOW", interval_start=INTERVAL, zone="NORTH"
    )
    assert depth["offers"] == [{"price_micro_per_kwh": "60000", "energy_wh": "500"}]
    assert floor.ticker()["last_price"] == "60000"
    assert floor.ticker()["volume_wh"] == "1500"
    prices = floor.world.evaluate(
        HOME, "book:Prices", product="FLOW", **{"from": INTERVAL, "to": INTERVAL + 900}
    )
    assert prices["intervals"][0]["volume_wh"] == "1500"
    assert sum(floor.world.money().values()) == 0


def test_a_thousand_in_flight_and_a_matcher_never_conflict(floor: Floor) -> None:
    """Owners append, the matcher names: whatever is in one block, nothing fails."""
    floor.enter("S-1", "offer", 60_000, 1000)
    floor.match()
    floor.enter("B-1", "bid", 100_000, 500)
    world = floor.world
    at = {"interval_start": INTERVAL, "product": "FLOW"}
    match = world.simulate(BOREAL_OPERATOR, "book:Match", {**at, "entries": floor.waiting()})
    order = {"order_id": "o-1", "interval_start": INTERVAL}
    cancel = world.simulate(floor.homes["S-1"], "book:Cancel", {**order, "connection_id": "S-1"})
    amend = world.simulate(
        floor.homes["B-1"],
        "book:Amend",
        {**order, "connection_id": "B-1", "price_micro_per_kwh": 110_000, "energy_wh": 900},
    )
    place = world.simulate(
        floor.homes["B-2"],
        "book:Place",
        {
            **at,
            "order_id": "x",
            "connection_id": "B-2",
            "side": "bid",
            "price_micro_per_kwh": 90_000,
            "energy_wh": 10,
        },
    )
    second = world.simulate(BOREAL_OPERATOR, "book:Match", {**at, "entries": floor.waiting()})
    block = [cancel, match, amend, place, second]
    # Two matchers at a time are the only ones who can't both be right.
    assert world.state.commit(*(one.results for one in block)) == [0, 0, 0, 0, 11]


def test_cancelling_and_amending(floor: Floor) -> None:
    floor.enter("B-1", "bid", 100_000, 1000)
    asked = floor.call("B-1", "book:Cancel", order_id="o-1")
    assert asked["asked"] == "cancel"
    before = len(floor.waiting())
    assert floor.call("B-1", "book:Cancel", order_id="o-1")["asked"] == "cancel"
    assert len(floor.waiting()) == before == 2
    floor.match()
    assert floor.order("B-1")["state"] == "cancelled"
    assert floor.held("B-1") == 0
    assert floor.call("B-1", "book:Cancel", order_id="o-1")["asked"] == "cancel"

    floor.enter("S-1", "offer", 60_000, 1000)
    floor.enter("S-2", "offer", 60_000, 1000)
    floor.match()
    first = min("S-1", "S-2", key=lambda one: int(floor.order(one)["sequence"]))
    other = "S-2" if first == "S-1" else "S-1"
    change = {"order_id": "o-1", "price_micro_per_kwh": 60_000}
    floor.call(first, "book:Amend", energy_wh=600, **change)  # less keeps its place
    floor.match()
    assert floor.held(first) == 600 * 50
    floor.enter("B-2", "bid", 72_000, 700)
    floor.match()
    assert floor.fills(first) == [("o-1", "600", "60000")]
    assert floor.fills(other) == [("o-1", "100", "60000")]
    floor.call(other, "book:Amend", energy_wh=2000, **change)  # 100 of them are sold
    floor.match()
    assert floor.order(other)["energy_wh"] == "2000"
    assert floor.held(other) == 2000 * 50
    floor.call(other, "book:Amend", energy_wh=50, **change)  # less than is sold
    floor.match()
    assert floor.order(other)["state"] == "cancelled"
    assert floor.held(other) == 100 * 50
    # More than the inverter gives, unless one looks at what became of the first order.
    floor.enter(first, "offer", 73_000, 1_900, "o-2")
    with pytest.raises(Conflict, match="is cleared, not open"):
        floor.call(first, "book:Amend", energy_wh=50, **change)
    assert sum(floor.world.money().values()) == 0


def test_an_amendment_sets_aside_what_it_needs(floor: Floor) -> None:
    floor.enter("B-1", "bid", 100_000, 1000)
    floor.match()
    floor.call("B-1", "book:Amend", order_id="o-1", price_micro_per_kwh=200_000, energy_wh=1000)
    assert floor.held("B-1") == 300_000  # until it is taken up, both
    with pytest.raises(Conflict, match="would trade with the connection's own bid o-1 at 200000"):
        floor.enter("B-1", "offer", 150_000, 10, "o-2")
    floor.match()
    assert floor.held("B-1") == 200_000
    assert floor.order("B-1")["amendment"] == "1"
    floor.call("B-1", "book:Amend", order_id="o-1", price_micro_per_kwh=50_000, energy_wh=1000)
    floor.match()
    assert floor.held("B-1") == 50_000
    floor.enter("B-1", "offer", 150_000, 10, "o-2")  # no longer its own bid's price
    assert sum(floor.world.money().values()) == 0


def test_the_last_amendment_counts_whichever_is_drawn_first(floor: Floor) -> None:
    floor.enter("B-1", "bid", 100_000, 1000)
    floor.match()
    for price in range(50_000, 62_000, 1_000):
        floor.call("B-1", "book:Amend", order_id="o-1", price_micro_per_kwh=price, energy_wh=1000)
    names = floor.waiting()
    floor.match(names[6:])
    floor.match()
    assert floor.order("B-1")["price_micro_per_kwh"] == "61000"
    assert floor.held("B-1") == 61_000
    assert sum(floor.world.money().values()) == 0


def test_across_zones_the_landed_price_counts_and_the_feeder_bounds(floor: Floor) -> None:
    """4,000 W into the south are 1,000 Wh in a quarter of an hour."""
    floor.enter("S-1", "offer", 60_000, 900)
    floor.enter("S-2", "offer", 61_000, 900)
    floor.match()
    floor.enter("FAR", "bid", 200_000, 1500)
    floor.match()
    # Exit 5,000 and entry 25,000.
    assert floor.fills("FAR") == [("o-1", "900", "90000"), ("o-1", "100", "91000")]
    assert floor.ticker()["flows"] == [
        {"zone": "NORTH", "in_wh": "0", "out_wh": "1000"},
        {"zone": "SOUTH", "in_wh": "1000", "out_wh": "0"},
    ]
    floor.enter("FAR", "bid", 300_000, 10, "o-2")
    floor.match()
    assert len(floor.fills("FAR")) == 2


def test_attributes_and_a_preferred_partner(floor: Floor) -> None:
    floor.enter("S-1", "offer", 60_000, 100)
    floor.match()
    floor.enter("S-2", "offer", 60_000, 100, attributes=["GREEN"])
    floor.match()
    floor.enter("B-1", "bid", 80_000, 40, attributes=["GREEN"])
    floor.match()
    assert floor.fills("S-2") == [("o-1", "40", "60000")]
    floor.enter("B-2", "bid", 80_000, 40, partner="S-2")
    floor.match()
    assert floor.fills("S-2")[1:] == [("o-1", "40", "60000")]
    assert floor.fills("S-1") == []
    floor.enter("B-2", "bid", 80_000, 40, "o-2")
    floor.match()
    assert floor.fills("S-1") == [("o-1", "40", "60000")]


def test_a_gift_is_for_one_and_costs_its_fees_alone(floor: Floor) -> None:
    """Whichever came first: the giver's offer, or the wish of who takes what it gives."""
    floor.enter("S-1", "offer", 0, 500, gift="B-1")
    floor.match()
    assert floor.held("S-1") == 500 * 50  # what it may not deliver
    floor.enter("B-2", "bid", 100_000, 200)
    floor.enter("B-2", "bid", 100_000, 200, "o-2", gift="S-2")
    floor.enter("B-2", "bid", 100_000, 200, "o-3", gift="S-1")
    floor.match()
    assert floor.fills("B-2") == []  # nobody else can take it
    held = floor.held("B-2")
    floor.enter("S-2", "offer", 0, 300, gift="B-2")
    floor.match()
    # A local fee of 10,000 and 2,000 for matching, of a limit of 100,000.
    assert floor.fills("B-2") == [("o-2", "200", "10000")]
    assert floor.fills("S-2") == [("o-1", "200", "0")]
    assert held - floor.held("B-2") == 200 * 100 - 200 * 10
    assert floor.world.money()["SUPPLIER-BOREAL"] == 400
    floor.enter("B-1", "bid", 11_000, 100, gift="S-1")
    floor.match()
    assert floor.fills("B-1") == []  # its limit is less than the fees
    floor.call("B-1", "book:Amend", order_id="o-1", price_micro_per_kwh=12_000, energy_wh=100)
    floor.match()
    assert floor.fills("B-1") == [("o-1", "100", "10000")]
    # Nothing of it is seen but what crosses feeders: no volume, no price, no depth.
    assert (floor.ticker()["volume_wh"], floor.ticker()["last_price"]) == ("0", None)
    depth = floor.world.evaluate(
        HOME, "book:Depth", product="FLOW", interval_start=INTERVAL, zone="NORTH"
    )
    assert depth["offers"] == []
    assert depth["bids"] == [{"price_micro_per_kwh": "100000", "energy_wh": "200"}]
    shown = floor.world.evaluate(
        floor.homes["B-1"], "oversight:Explain", kind="order", id=f"B-1/{INTERVAL}/o-1"
    )
    assert [(one["value"]["source"], one["value"]["counterparty"])
            for one in shown["inputs"] if one["name"] == "fill"] == [("gift", "S-1")]  # fmt: skip
    # What is left is taken back, or ends with the book.
    floor.call("S-2", "book:Cancel", order_id="o-1")
    floor.match()
    assert floor.order("S-2")["state"] == "cancelled"
    assert floor.held("S-2") == 200 * 50
    floor.world.now = INTERVAL - 600
    floor.run("book:Close", product="FLOW")
    assert floor.run("book:Expire", product="FLOW")["orders"] == "3"
    assert floor.held("S-1") == 100 * 50
    assert floor.held("B-1") == 100 * 10
    assert floor.held("B-2") == 200 * 10
    assert floor.world.evaluate(OPERATOR, "book:Due") == []
    assert sum(floor.world.money().values()) == 0


def test_a_gift_pays_its_path_and_a_full_feeder_lets_none_through(floor: Floor) -> None:
    floor.enter("FAR", "bid", 100_000, 1500, gift="S-1")
    floor.enter("FAR", "bid", 100_000, 500, "o-2", gift="S-2")
    floor.enter("S-1", "offer", 0, 900, gift="FAR")
    floor.match()
    floor.enter("S-2", "offer", 0, 500, gift="FAR")
    floor.match()
    # Exit 5,000 and entry 25,000; 1,000 Wh fit into the south.
    assert floor.fills("FAR") == [("o-2", "100", "30000"), ("o-1", "900", "30000")]
    assert floor.ticker()["flows"][1] == {"zone": "SOUTH", "in_wh": "1000", "out_wh": "0"}
    # It would never trade with its owner's own order, so it may stand beside it.
    floor.enter("S-1", "bid", 90_000, 10, "o-2")
    assert sum(floor.world.money().values()) == 0


def test_what_is_no_gift(floor: Floor) -> None:
    given = {"gift": "B-1"}
    for change, error, said in (
        ({"price_micro_per_kwh": 1_000, **given}, InvalidArgument, "comes to 1000, but a gift's"),
        ({"gift": "S-1"}, InvalidArgument, "the order's own connection"),
        ({"partner": "B-1", **given}, InvalidArgument, "partner must be left out"),
        ({"gift": "NOBODY"}, NotFound, "connection NOBODY is not registered"),
        ({"gift": "B/1"}, InvalidArgument, "gift is"),
        ({"gift": 7}, InvalidArgument, "gift is"),
        ({"product": "ANY", **given}, InvalidArgument, "traded in auctions, where all trade"),
    ):
        with pytest.raises(error, match=said):
            floor.call(
                "S-1",
                "book:Place",
                **{
                    "order_id": "o-1",
                    "product": "FLOW",
                    "side": "offer",
                    "price_micro_per_kwh": 0,
                    "energy_wh": 10,
                    **change,
                },
            )
    floor.enter("S-1", "offer", 0, 10, gift="B-1")
    with pytest.raises(Conflict, match="o-1 is another order"):
        floor.enter("S-1", "offer", 0, 10, gift="B-2")
    with pytest.raises(InvalidArgument, match="comes to 1000, but a gift's is 0"):
        floor.call("S-1", "book:Amend", order_id="o-1", price_micro_per_kwh=1_000, energy_wh=10)
    delegation = {
        "delegation_id": "D",
        "connection_id": "S-1",
        "trader": "TRADER",
        "acts": ["order"],
        "until": NOON + 86_400,
        "max_energy_wh": 1000,
        "lowest_price": -1,
        "highest_price": 10**6,
    }
    floor.world.submit(floor.homes["S-1"], "delegation:Give", delegation=delegation)
    trader = Creator("AuroraMSP", b"", "t", "client", {"gridledger.participant": "TRADER"})
    order = {"product": "FLOW", "connection_id": "S-1", "interval_start": INTERVAL, "energy_wh": 1,
             "delegation": "D", "gift": "B-1"}  # fmt: skip
    with pytest.raises(Forbidden, match="TRADER trades for S-1 and may not give its energy away"):
        floor.world.submit(trader, "book:Place", **order, order_id="t-1", side="offer",
                           price_micro_per_kwh=0)  # fmt: skip
    more = {"connection_id": "S-1", "interval_start": INTERVAL, "delegation": "D",
            "order_id": "o-1", "price_micro_per_kwh": 0, "energy_wh": 900}  # fmt: skip
    with pytest.raises(Forbidden, match="may not give its energy away"):
        floor.world.submit(trader, "book:Amend", **more)
    floor.world.submit(trader, "book:Place", **order, order_id="t-2", side="bid",
                       price_micro_per_kwh=20_000)  # fmt: skip


def test_closing_and_what_is_left(floor: Floor) -> None:
    floor.enter("S-1", "offer", 60_000, 1000)
    floor.match()
    floor.enter("B-1", "bid", 72_000, 400)
    with pytest.raises(Conflict, match="is open; book:Close first"):
        floor.run("book:Expire", product="FLOW")
    with pytest.raises(Conflict, match="stays open until"):
        floor.run("book:Close", product="FLOW")
    floor.world.now = INTERVAL - 600
    late = floor.world.simulate(
        floor.homes["B-2"],
        "book:Place",
        {
            "connection_id": "B-2",
            "interval_start": INTERVAL,
            "order_id": "late",
            "product": "FLOW",
            "side": "bid",
            "price_micro_per_kwh": 72_000,
            "energy_wh": 1,
        },
    )
    floor.run("book:Close", product="FLOW")
    assert floor.world.state.commit(late.results) == [11]
    with pytest.raises(Conflict, match="were not taken up; book:Match first"):
        floor.run("book:Expire", product="FLOW")
    with pytest.raises(Conflict, match="traded continuously"):
        floor.run("book:Clear", product="FLOW")
    floor.match()
    assert floor.run("book:Expire", product="FLOW")["orders"] == "1"
    assert floor.run("book:Expire", product="FLOW")["orders"] == "0"
    assert floor.order("S-1")["state"] == "cleared"
    assert floor.held("S-1") == 400 * 50
    assert floor.held("B-1") == 400 * 70
    assert sum(floor.world.money().values()) == 0


def test_what_nobody_matched_in_time_goes_back(floor: Floor) -> None:
    floor.enter("S-1", "offer", 60_000, 1000)
    floor.match()
    floor.enter("B-1", "bid", 72_000, 400)
    floor.call("S-1", "book:Amend", order_id="o-1", price_micro_per_kwh=90_000, energy_wh=1500)
    names = floor.waiting()
    floor.world.now = INTERVAL
    floor.run("book:Close", product="FLOW")
    with pytest.raises(Conflict, match="has begun"):
        floor.match(names)
    assert floor.run("book:Expire", product="FLOW")["orders"] == "2"
    assert (floor.order("B-1")["state"], floor.order("S-1")["state"]) == ("void", "cleared")
    assert floor.held("B-1") == floor.held("S-1") == 0
    assert sum(floor.world.money().values()) == 0


def test_chores_run_a_book_from_first_to_last(floor: Floor) -> None:
    """What book:Due names is all that anybody has to call."""

    def work() -> list[str]:
        done = []
        while due := floor.world.evaluate(OPERATOR, "book:Due"):
            for chore in due:
                floor.world.submit(OPERATOR, chore["function"], frozen=True, **chore["argument"])
                done.append(chore["function"])
            assert len(done) < 50
        return done

    floor.enter("S-1", "offer", 60_000, 1000)
    floor.enter("B-1", "bid", 72_000, 400)
    floor.place("S-2", "offer", 60_000, 1000)
    floor.place("B-2", "bid", 100_000, 1000)
    assert work() == ["book:Match"]
    floor.world.now = INTERVAL - 3600
    assert work() == [
        "book:Close",
        "book:Aggregate",
        "book:Aggregate",
        "book:Clear",
        "book:Apply",
        "book:Apply",
    ]
    assert floor.order("B-2")["local_wh"] == "1000"
    floor.world.now = INTERVAL - 600
    assert work() == ["book:Close", "book:Expire"]
    assert floor.order("S-1")["matched_wh"] == "400"


def test_bad_input(floor: Floor) -> None:
    floor.enter("S-1", "offer", 60_000, 1000)
    names = floor.waiting()
    cases: tuple[tuple[Creator, type[Exception], str, dict[str, Any]], ...] = (
        (floor.homes["S-1"], Forbidden, "operators of any utility", {"entries": names}),
        (OPERATOR, InvalidArgument, "twice", {"entries": names * 2}),
        (OPERATOR, InvalidArgument, "entries", {"entries": ["x"]}),
        (OPERATOR, LimitExceeded, "may have 200", {"entries": [f"{n:064x}" for n in range(201)]}),
        (OPERATOR, Conflict, "traded in auctions", {"entries": names, "product": "ANY"}),
        (OPERATOR, NotFound, "no product NONE", {"entries": names, "product": "NONE"}),
    )
    for caller, error, said, argument in cases:
        with pytest.raises(error, match=said):
            floor.world.simulate(
                caller, "book:Match", {"product": "FLOW", "interval_start": INTERVAL, **argument}
            )
    unknown = floor.match(["0" * 64])
    assert unknown["taken"] == "0"
    with pytest.raises(InvalidArgument, match="the order's own connection"):
        floor.enter("B-1", "bid", 60_000, 1, partner="B-1")
    with pytest.raises(InvalidArgument, match="in order of their names"):
        floor.enter("B-1", "bid", 60_000, 1, attributes=["B", "A"])
    with pytest.raises(InvalidArgument, match="neither attributes nor partner"):
        floor.place("B-1", "bid", 60_000, 1, partner="S-1")
    floor.enter("S-1", "bid", 59_000, 10, "o-2")
    with pytest.raises(Conflict, match="own offer o-1"):
        floor.enter("S-1", "bid", 60_000, 10, "o-3")
    for change, said in (
        ({"paths": [{"seller_zone": "NORTH", "buyer_zone": "WEST", "fee": 1}]}, "isn't among"),
        ({"trading": "auction", "paths": [
            {"seller_zone": "NORTH", "buyer_zone": "NORTH", "fee": 1}]}, "paths are for"),
        ({"pledge_micro": 1, "reveal_s": 1}, "are for auctions"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument, match=said):
            floor.world.submit(
                OPERATOR,
                "book:ProposeProduct",
                terms={**FLOW, **change},
                effective_from=NOON + 20 * 86_400,
            )


def test_an_order_that_meets_too_many_is_cut_off(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "MAX_FILLS", 2)
    for number in range(4):
        floor.enter("S-1", "offer", 60_000, 10, f"s-{number}")
    floor.match()
    floor.enter("B-1", "bid", 72_000, 100)
    floor.enter("B-2", "bid", 72_000, 5)
    floor.match()
    assert len(floor.waiting()) <= 1  # the next one waits for the next round
    floor.match()
    assert floor.order("B-1")["state"] == "cancelled"
    assert int(floor.order("B-1")["matched_wh"]) in (15, 20)
    assert floor.held("B-1") == int(floor.order("B-1")["matched_wh"]) * 70


@pytest.mark.parametrize("seed", range(6))
def test_the_ledger_matches_as_the_book_in_memory(seed: int) -> None:
    """Random orders in random rounds: reading only a part of the book makes no difference."""
    floor = Floor()
    chance = random.Random(seed)
    names = [f"H-{number}" for number in range(6)]
    for number, name in enumerate(names):
        floor.add(name, "SOUTH" if number == 5 else "NORTH")
    entered = 0
    for _ in range(12):
        for _ in range(chance.randrange(1, 5)):
            name = chance.choice(names)
            side = chance.choice(["bid", "offer"])
            try:
                floor.enter(
                    name,
                    side,
                    1000 * chance.randrange(50, 90),
                    chance.randrange(1, 300),
                    f"o-{entered}",
                    **({"partner": names[0]} if chance.random() < 0.2 and name != names[0] else {}),
                )
                entered += 1
            except Conflict:
                pass  # its own order
        floor.match()
        best: dict[str, list[int]] = {}
        for zone in ("NORTH", "SOUTH"):
            depth = floor.world.evaluate(
                HOME, "book:Depth", product="FLOW", interval_start=INTERVAL, zone=zone
            )
            for side in ("bids", "offers"):
                levels = [int(level["price_micro_per_kwh"]) for level in depth[side]]
                assert levels == sorted(levels, reverse=side == "bids")
                best[zone + side] = levels
        # Nothing that could trade within a zone is left: owners' own orders never cross.
        if best["NORTHbids"] and best["NORTHoffers"]:
            assert best["NORTHbids"][0] < best["NORTHoffers"][0] + 12_000
    orders = [
        order
        for name in names
        for order in floor.world.evaluate(
            floor.homes[name], "book:Orders", connection_id=name, limit=200
        )["orders"]
    ]
    assert len(orders) == entered
    bought = sum(int(order["matched_wh"]) for order in orders if order["side"] == "bid")
    sold = sum(int(order["matched_wh"]) for order in orders if order["side"] == "offer")
    assert bought == sold == int(floor.ticker()["volume_wh"]) > 0
    for order in orders:
        assert int(order["matched_wh"]) <= int(order["energy_wh"])
        filled = sum(
            int(wh)
            for name, wh, _ in floor.fills(order["connection_id"])
            if name == order["order_id"]
        )
        assert filled == int(order["matched_wh"])
    floor.world.now = INTERVAL
    floor.run("book:Close", product="FLOW")
    floor.run("book:Expire", product="FLOW")
    for name in names:
        due = sum(int(order["due_micro"]) for order in orders if order["connection_id"] == name)
        assert floor.held(name) <= due
    assert sum(floor.world.money().values()) == 0


def test_amendments_do_not_come_before_their_order(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent names what it sees first, by transaction ids, which their clients can choose."""
    monkeypatch.setattr(matching, "MAX_ENTRIES", 2)
    order = floor.enter("B-1", "bid", 50_000, 1000)["transaction_id"]
    for price in range(51_000, 65_000, 1_000):
        floor.call("B-1", "book:Amend", order_id="o-1", price_micro_per_kwh=price, energy_wh=1000)
    ahead = [name for name in floor.waiting() if name != order][:2]
    assert floor.match(ahead)["taken"] == "2"
    assert order not in floor.waiting()
    while floor.waiting():
        assert int(floor.match(floor.waiting()[:2])["taken"])
    assert floor.order("B-1")["price_micro_per_kwh"] == "64000"
