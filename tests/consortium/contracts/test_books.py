"""Call auctions on the ledger: orders, holds, closing, clearing in pages, fills."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from consortium.chaincode.api import (
    Conflict,
    ContractError,
    Creator,
    Forbidden,
    InvalidArgument,
    NotFound,
)
from consortium.contracts.common.money import ceiling_micro
from consortium.contracts.market import auctions
from consortium.contracts.market.auction import ZoneBook, clear_zones, histogram
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    HOME,
    NOON,
    OPERATOR,
    World,
    energy_world,
    home,
)

INTERVAL = NOON + 4 * 3600
TERMS: dict[str, Any] = {
    "product": "ANY",
    "zones": [
        {"zone": "NORTH", "local_fee": 10_000, "entry_fee": 15_000, "exit_fee": 5_000},
        {"zone": "SOUTH", "local_fee": 20_000, "entry_fee": 25_000, "exit_fee": 0},
    ],
    "price_min": -500_000,
    "price_max": 4_000_000,
    "price_tick": 1_000,
    "price_rule": "middle",
    "gate_closure_s": 3600,
    "shortfall_margin": 50_000,
}


@dataclass
class Exchange:
    """A channel with a product and homes that have money."""

    world: World = field(default_factory=energy_world)
    homes: dict[str, Creator] = field(default_factory=dict)

    def __post_init__(self) -> None:
        proposed = self.world.submit(
            OPERATOR, "book:ProposeProduct", terms=TERMS, effective_from=NOON + 900
        )
        assert proposed["in_force"] is False
        approved = self.world.submit(
            BOREAL_OPERATOR, "book:ApproveProduct", product="ANY", version=1
        )
        assert approved["in_force"] is True

    def add(self, connection_id: str, zone: str = "NORTH", money: int = 10**9) -> None:
        self.world.submit(
            OPERATOR,
            "registry:RegisterConnection",
            connection_id=connection_id,
            utility="AuroraMSP",
            zone=zone,
            max_export_w=10_000,
            max_import_w=20_000,
        )
        self.homes[connection_id] = home(connection_id)
        self.world.submit(
            OPERATOR,
            "wallet:Deposit",
            account=connection_id,
            amount_micro=money,
            bank_reference=f"B-{connection_id}",
        )
        caller = self.homes[connection_id]
        entries = self.world.evaluate(caller, "wallet:Incoming", account=connection_id)["entries"]
        self.world.submit(caller, "wallet:Sweep", account=connection_id, entries=entries)

    def call(self, connection_id: str, function: str, **argument: Any) -> Any:
        argument = {"connection_id": connection_id, "interval_start": INTERVAL, **argument}
        return self.world.submit(self.homes[connection_id], function, **argument)

    def place(
        self,
        connection_id: str,
        side: str,
        price: int,
        wh: int,
        order_id: str = "o-1",
        **other: Any,
    ) -> Any:
        return self.call(
            connection_id,
            "book:Place",
            order_id=order_id,
            product="ANY",
            side=side,
            price_micro_per_kwh=price,
            energy_wh=wh,
            **other,
        )

    def run(self, function: str, **argument: Any) -> Any:
        argument = {"product": "ANY", "interval_start": INTERVAL, **argument}
        return self.world.submit(BOREAL_OPERATOR, function, frozen=True, **argument)

    def clear(self, zones: Sequence[str] = ("NORTH", "SOUTH")) -> Any:
        """Run the whole auction, each step twice."""
        self.world.now = max(self.world.now, INTERVAL - 3600)
        pages: dict[str, int] = {}
        for _ in range(2):
            self.run("book:Close")
        for zone in zones:
            pages[zone] = 0
            while self.run("book:Aggregate", zone=zone, page=pages[zone])["next_key"]:
                pages[zone] += 1
            again = self.run("book:Aggregate", zone=zone, page=pages[zone])
            assert again["next_key"] == ""
        for _ in range(2):
            result = self.run("book:Clear")
        for zone in zones:
            for page in range(pages[zone] + 1):
                self.run("book:Apply", zone=zone, page=page)
                assert self.run("book:Apply", zone=zone, page=page)["orders"] == "0"
        return result

    def order(self, connection_id: str, order_id: str = "o-1") -> Any:
        listed = self.world.evaluate(
            self.homes[connection_id], "book:Orders", connection_id=connection_id
        )
        [found] = [order for order in listed["orders"] if order["order_id"] == order_id]
        return found

    def held(self, connection_id: str) -> int:
        found = self.world.evaluate(OPERATOR, "wallet:Balance", account=connection_id)
        return int(found["held_micro"])


@pytest.fixture
def exchange() -> Exchange:
    exchange = Exchange()
    for connection_id in ("S-1", "S-2", "B-1", "B-2"):
        exchange.add(connection_id)
    exchange.add("FAR", "SOUTH")
    return exchange


def test_an_auction(exchange: Exchange) -> None:
    exchange.place("S-1", "offer", 60_000, 1000)
    exchange.place("S-2", "offer", 90_000, 1000)
    exchange.place("B-1", "bid", 150_000, 800)
    exchange.place("B-2", "bid", 110_000, 500)
    exchange.place("FAR", "bid", 140_000, 400)
    assert exchange.held("B-1") == 120_000
    assert exchange.held("S-1") == 50_000
    depth = exchange.world.evaluate(
        HOME, "book:Depth", product="ANY", interval_start=INTERVAL, zone="NORTH"
    )
    assert depth["bids"] == [
        {"price_micro_per_kwh": "150000", "energy_wh": "800"},
        {"price_micro_per_kwh": "110000", "energy_wh": "500"},
    ]
    assert depth["offers"][0] == {"price_micro_per_kwh": "60000", "energy_wh": "1000"}

    result = exchange.clear()
    north, south = result["zones"]
    # With the local fee of 10,000, bids are worth 140,000 and 100,000 to a seller. 1,300 Wh trade:
    # at most what the dearest offer asks, 90,000, at least what the cheapest bid leaves.
    assert (north["local"]["volume_wh"], north["local"]["price"]) == ("1300", "90000")
    assert south["local"]["volume_wh"] == "0"
    # 700 Wh at 90,000 + 5,000 exit meet FAR's bid at 140,000 - 25,000 entry.
    assert (result["hub"]["volume_wh"], result["hub"]["price"]) == ("400", "95000")

    first, second, far = (exchange.order(name) for name in ("S-1", "S-2", "FAR"))
    assert (first["state"], first["local_wh"], first["local_price"]) == ("cleared", "1000", "90000")
    assert (second["local_wh"], second["hub_wh"], second["hub_price"]) == ("300", "400", "90000")
    assert (far["local_wh"], far["hub_wh"], far["hub_price"]) == ("0", "400", "120000")
    assert exchange.order("B-1")["local_price"] == "100000"  # with the fee
    # What is still set aside is what they will pay, or the margin on what they must deliver.
    assert exchange.held("B-1") == 80_000
    assert exchange.held("S-2") == 700 * 50
    assert exchange.held("FAR") == 48_000
    assert sum(exchange.world.money().values()) == 0


def test_an_order_that_comes_too_late_fails_by_itself(exchange: Exchange) -> None:
    """500 orders in flight while the book closes: each is in the auction or fails with 11."""
    world = exchange.world
    names = [f"H-{number}" for number in range(100)]
    for name in names:
        exchange.add(name)
    placed = [
        world.simulate(
            exchange.homes[name],
            "book:Place",
            {
                "connection_id": name,
                "interval_start": INTERVAL,
                "order_id": f"o-{index}",
                "product": "ANY",
                "side": "bid",
                "price_micro_per_kwh": 100_000 + 1000 * index,
                "energy_wh": 100,
                "shard": 0,
            },
        )
        for index in range(1)
        for name in names
    ]
    world.now = INTERVAL - 3600
    close = world.simulate(
        BOREAL_OPERATOR, "book:Close", {"product": "ANY", "interval_start": INTERVAL}
    )
    block = [*placed[:60], close, *placed[60:]]
    codes = world.state.commit(*(answer.results for answer in block))
    assert codes == [0] * 61 + [11] * 40
    assert exchange.clear()["zones"][0]["local"]["volume_wh"] == "0"
    states = {
        name: world.evaluate(exchange.homes[name], "book:Orders", connection_id=name)["orders"]
        for name in names
    }
    assert [len(states[name]) for name in names] == [1] * 60 + [0] * 40
    assert all(order["state"] == "cleared" for orders in states.values() for order in orders)
    assert all(exchange.held(name) == 0 for name in names)
    world.now = INTERVAL
    with pytest.raises(InvalidArgument, match="interval_start is"):
        exchange.place("B-1", "bid", 100_000, 100)
    world.now = INTERVAL - 60
    with pytest.raises(Conflict, match="was closed at 2026-11-21T15:00:00Z"):
        exchange.place("B-1", "bid", 100_000, 100)


def test_orders_that_are_refused(exchange: Exchange) -> None:
    exchange.place("S-1", "offer", 60_000, 1000)
    for price, wh, error, said in (
        (60_500, 1, InvalidArgument, "must be a multiple of 1000"),
        (4_001_000, 1, InvalidArgument, "trades between -500000 and 4000000"),
        (60_000, 0, InvalidArgument, "energy_wh is 0"),
        (60_000, 1501, Conflict, "can deliver 2500 Wh in the interval .* 2501 Wh would be"),
    ):
        with pytest.raises(error, match=said):
            exchange.place("S-1", "offer", price, wh, "o-2")
    with pytest.raises(Conflict, match="would trade with the connection's own offer o-1 at 60000"):
        exchange.place("S-1", "bid", 60_000, 10, "o-2")
    exchange.place("S-1", "bid", 59_000, 10, "o-2")
    with pytest.raises(Conflict, match="o-1 is another order"):
        exchange.place("S-1", "offer", 61_000, 1000)
    assert exchange.place("S-1", "offer", 60_000, 1000)["state"] == "open"
    exchange.add("POOR", money=100)
    with pytest.raises(Conflict, match="has 100 micro-units in shard 0, but 100000 are needed"):
        exchange.place("POOR", "bid", 100_000, 1000)
    with pytest.raises(NotFound, match="no product SOLAR is in force"):
        exchange.call(
            "S-1",
            "book:Place",
            order_id="o-3",
            product="SOLAR",
            side="bid",
            price_micro_per_kwh=0,
            energy_wh=1,
        )
    with pytest.raises(Forbidden, match="its home alone"):
        exchange.world.submit(
            exchange.homes["S-2"],
            "book:Cancel",
            connection_id="S-1",
            interval_start=INTERVAL,
            order_id="o-1",
        )
    for start in (INTERVAL + 1, NOON - 900, NOON + 15 * 86_400):
        with pytest.raises(InvalidArgument, match="interval_start"):
            exchange.place("S-1", "bid", 1000, 1, "o-4", interval_start=start)


def test_cancelling_and_amending(exchange: Exchange) -> None:
    exchange.place("B-1", "bid", 100_000, 1000)
    amended = exchange.call(
        "B-1", "book:Amend", order_id="o-1", price_micro_per_kwh=120_000, energy_wh=500
    )
    assert (amended["price_micro_per_kwh"], exchange.held("B-1")) == ("120000", 60_000)
    exchange.call("B-1", "book:Amend", order_id="o-1", price_micro_per_kwh=120_000, energy_wh=2000)
    assert exchange.held("B-1") == 240_000
    with pytest.raises(Conflict, match="can take 5000 Wh"):
        exchange.call(
            "B-1", "book:Amend", order_id="o-1", price_micro_per_kwh=120_000, energy_wh=5001
        )
    assert exchange.call("B-1", "book:Cancel", order_id="o-1")["state"] == "cancelled"
    assert exchange.call("B-1", "book:Cancel", order_id="o-1")["state"] == "cancelled"
    assert exchange.held("B-1") == 0
    with pytest.raises(Conflict, match="is cancelled, not open"):
        exchange.call("B-1", "book:Amend", order_id="o-1", price_micro_per_kwh=1000, energy_wh=1)
    with pytest.raises(NotFound):
        exchange.call("B-1", "book:Cancel", order_id="o-9")
    exchange.place("B-1", "bid", 100_000, 5000, "o-2")  # the cancelled one takes no room
    assert exchange.clear()["zones"][0]["local"]["volume_wh"] == "0"
    assert exchange.order("B-1")["state"] == "cancelled"
    assert sum(exchange.world.money().values()) == 0


def test_the_steps_of_an_auction_have_an_order(exchange: Exchange) -> None:
    with pytest.raises(Conflict, match="stays open until 2026-11-21T15:00:00Z"):
        exchange.run("book:Close")
    exchange.world.now = INTERVAL - 3600
    with pytest.raises(Conflict, match="is open; book:Close first"):
        exchange.run("book:Aggregate", zone="NORTH", page=0)
    exchange.run("book:Close")
    with pytest.raises(Conflict, match=r"page 0 of the book NORTH/ANY/\d+ isn't summed"):
        exchange.run("book:Clear")
    with pytest.raises(Conflict, match="isn't summed"):
        exchange.run("book:Aggregate", zone="NORTH", page=1)
    exchange.run("book:Aggregate", zone="NORTH", page=0)
    with pytest.raises(Conflict, match="is the last"):
        exchange.run("book:Aggregate", zone="NORTH", page=1)
    with pytest.raises(NotFound, match="not traded in zone WEST"):
        exchange.run("book:Aggregate", zone="WEST", page=0)
    with pytest.raises(Conflict, match="isn't cleared"):
        exchange.run("book:Apply", zone="NORTH", page=0)
    with pytest.raises(Forbidden, match="operators of any utility"):
        exchange.world.submit(
            exchange.homes["S-1"], "book:Close", product="ANY", interval_start=INTERVAL
        )


def test_a_book_not_cleared_in_time_is_void(exchange: Exchange) -> None:
    exchange.place("S-1", "offer", 60_000, 1000)
    exchange.place("B-1", "bid", 150_000, 800)
    exchange.world.now = INTERVAL
    result = exchange.clear()
    assert result["void"] is True
    assert exchange.order("S-1")["state"] == exchange.order("B-1")["state"] == "void"
    assert exchange.held("S-1") == exchange.held("B-1") == 0


def test_what_came_out_counts_against_the_connection(exchange: Exchange) -> None:
    """An order that was filled in part frees the rest of the connection's capacity."""
    exchange.place("S-1", "offer", 60_000, 2500)
    exchange.place("B-1", "bid", 150_000, 800)
    exchange.clear()
    exchange.world.submit(
        OPERATOR,
        "market:PublishRate",
        supplier="AuroraMSP",
        day="2026-11-21",
        kind="buy",
        price_micro_per_kwh=1,
    )
    window = {"window_start": INTERVAL, "window_end": INTERVAL + 900}

    def quote(energy_wh: int) -> Any:
        return exchange.world.evaluate(
            exchange.homes["S-1"],
            "market:Quote",
            connection_id="S-1",
            energy_wh=energy_wh,
            **window,
        )

    quote(1700)
    with pytest.raises(Conflict, match="at most 1700 Wh"):
        quote(1701)


def test_products_are_agreed_upon() -> None:
    world = energy_world()
    later = {"terms": TERMS, "effective_from": NOON + 900}
    with pytest.raises(Forbidden, match="operators of a utility"):
        world.submit(HOME, "book:ProposeProduct", **later)
    with pytest.raises(Conflict, match="never back in time"):
        world.submit(OPERATOR, "book:ProposeProduct", **{**later, "effective_from": NOON})
    for change, said in (
        ({"zones": []}, "zones is empty"),
        ({"zones": TERMS["zones"][::-1]}, "in order of their names"),
        ({"zones": [TERMS["zones"][0]] * 2}, "each once"),
        ({"price_min": 5_000_000}, "above price_max"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            world.submit(OPERATOR, "book:ProposeProduct", **{**later, "terms": {**TERMS, **change}})
    world.submit(OPERATOR, "book:ProposeProduct", **later)
    again = world.submit(OPERATOR, "book:ApproveProduct", product="ANY", version=1)
    assert again["approved_by"] == ["AuroraMSP"]
    assert again["in_force"] is False
    with pytest.raises(NotFound, match="no product ANY is in force"):
        world.evaluate(HOME, "book:Product", product="ANY", at=NOON + 900)
    world.submit(BOREAL_OPERATOR, "book:ApproveProduct", product="ANY", version=1)
    found = world.evaluate(HOME, "book:Product", product="ANY", at=NOON + 900)
    assert found["price_tick"] == "1000"
    with pytest.raises(NotFound):
        world.evaluate(HOME, "book:Product", product="ANY", at=NOON + 899)
    with pytest.raises(InvalidArgument, match="orders may stand in books"):
        world.submit(
            OPERATOR, "book:ProposeProduct", **{**later, "effective_from": NOON + 14 * 86_400}
        )
    # Another version, approved too late for its time.
    second = {"terms": {**TERMS, "price_tick": 10}, "effective_from": NOON + 15 * 86_400}
    assert world.submit(OPERATOR, "book:ProposeProduct", **second)["version"] == "2"
    world.now += 16 * 86_400
    with pytest.raises(Conflict, match="never back in time"):
        world.submit(BOREAL_OPERATOR, "book:ApproveProduct", product="ANY", version=2)
    assert world.evaluate(HOME, "book:Product", product="ANY")["price_tick"] == "1000"


@pytest.mark.parametrize("seed", range(8))
def test_pages_come_to_what_the_whole_book_does(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random books in small pages: fills, holds and sums are those of the auction in memory."""
    monkeypatch.setattr(auctions, "PAGE_ORDERS", 3)
    chance = random.Random(seed)
    exchange = Exchange()
    placed: list[tuple[str, str, str, int, int]] = []
    for number in range(14):
        name, zone = f"H-{number:02d}", chance.choice(["NORTH", "SOUTH"])
        exchange.add(name, zone)
        for side in chance.choice([["bid"], ["offer"], ["bid", "offer"]]):
            price = 1000 * chance.randint(-20, 20) + (30_000 if side == "offer" else 0)
            wh = chance.randint(1, 2500)
            try:
                exchange.place(name, side, price, wh, f"o-{side}")
            except ContractError:
                continue
            placed.append((zone, side, name, price, wh))
    exchange.clear()

    def levels(zone: str, side: str) -> dict[int, int]:
        return histogram([(p, wh) for z, s, _, p, wh in placed if (z, s) == (zone, side)])

    outcome = clear_zones(
        {
            zone["zone"]: ZoneBook(
                levels(zone["zone"], "bid"),
                levels(zone["zone"], "offer"),
                zone["local_fee"],
                zone["entry_fee"],
                zone["exit_fee"],
            )
            for zone in TERMS["zones"]
        }
    )
    before: dict[tuple[str, str, int], int] = {}
    bought = sold = 0
    for zone, side, name, price, wh in sorted(placed):
        fill = outcome.fill(zone, side, price, wh, before.get((zone, side, price), 0))  # type: ignore[arg-type]
        before[zone, side, price] = before.get((zone, side, price), 0) + wh
        order = exchange.order(name, f"o-{side}")
        assert (order["local_wh"], order["hub_wh"]) == (str(fill.local_wh), str(fill.hub_wh))
        filled = fill.local_wh + fill.hub_wh
        if side == "bid":
            bought += filled
            needed = sum(
                ceiling_micro(int(order[f"{where}_wh"]), max(0, int(order[f"{where}_price"] or 0)))
                for where in ("local", "hub")
            )
            assert int(order["hold_micro"]) == needed
        else:
            sold += filled
            assert int(order["hold_micro"]) >= ceiling_micro(filled, 50_000)
    assert bought == sold
    assert sum(exchange.world.money().values()) == 0
    for name in exchange.homes:
        listed = exchange.world.evaluate(exchange.homes[name], "book:Orders", connection_id=name)
        assert exchange.held(name) == sum(int(order["hold_micro"]) for order in listed["orders"])


def test_a_bid_holds_all_that_it_can_cost_where_sales_are_taxed() -> None:
    """No tax falls on what neighbours trade: the limit has the fees in it, and that is held."""
    world = energy_world(sale_tax_ppm=200_000)
    exchange = Exchange(world)
    for name in ("BUY", "SELL"):
        exchange.add(name)
    exchange.place("SELL", "offer", 70_000, 1_000)
    exchange.place("BUY", "bid", 80_000, 1_000)
    assert exchange.held("BUY") == 80_000
    exchange.clear()
    [trade] = world.evaluate(exchange.homes["BUY"], "settlement:Trades", connection_id="BUY",
                             **{"from": INTERVAL, "to": INTERVAL + 900})  # fmt: skip
    assert int(trade["price_micro_per_kwh"]) == exchange.held("BUY") <= 80_000


def test_terms_that_are_only_proposed_disturb_nobody(exchange: Exchange) -> None:
    """Any utility may propose any time; what reads the terms in force goes on in that block."""
    world = exchange.world
    order = {
        "order_id": "o-1",
        "connection_id": "S-1",
        "product": "ANY",
        "interval_start": INTERVAL,
        "side": "offer",
        "price_micro_per_kwh": 60_000,
        "energy_wh": 100,
    }
    placed = world.simulate(exchange.homes["S-1"], "book:Place", order)
    terms = {**TERMS, "price_max": 5_000_000}
    proposal = {"terms": terms, "effective_from": INTERVAL + 30 * 86_400}
    proposed = world.simulate(BOREAL_OPERATOR, "book:ProposeProduct", proposal)
    again = world.simulate(BOREAL_OPERATOR, "book:ProposeProduct", proposal)
    codes = world.state.commit(proposed.results, placed.results, again.results)
    assert codes == [0, 0, 11]
    assert world.submit(BOREAL_OPERATOR, "book:ProposeProduct", **proposal)["version"] == "3"
