"""Traders who act for homes: within limits, visibly, and no longer than the home likes."""

from typing import Any

import pytest

from consortium.chaincode.api import Conflict, Creator, Forbidden, InvalidArgument, NotFound
from tests.consortium.contracts.test_books import INTERVAL, Exchange
from tests.consortium.contracts.world import NOON, OPERATOR

TRADER = Creator("BorealMSP", b"", "helio", "client", {"gridledger.participant": "TRADER-HELIO"})
OTHER_TRADER = Creator("BorealMSP", b"", "eve", "client", {"gridledger.participant": "TRADER-EVE"})
TERMS: dict[str, Any] = {
    "delegation_id": "D-1",
    "connection_id": "S-1",
    "trader": "TRADER-HELIO",
    "acts": ["order"],
    "until": NOON + 86_400,
    "max_energy_wh": 1000,
    "lowest_price": 50_000,
    "highest_price": 100_000,
    "certified_by": "BorealMSP",
}


@pytest.fixture
def exchange() -> Exchange:
    exchange = Exchange()
    exchange.add("S-1")
    exchange.add("S-2")
    give(exchange)
    return exchange


def give(exchange: Exchange, **change: Any) -> Any:
    caller = exchange.homes["S-1"]
    return exchange.world.submit(caller, "delegation:Give", delegation={**TERMS, **change})


def order(**change: Any) -> dict[str, Any]:
    return {
        "order_id": "o-1",
        "connection_id": "S-1",
        "interval_start": INTERVAL,
        "product": "ANY",
        "side": "offer",
        "price_micro_per_kwh": 60_000,
        "energy_wh": 800,
        "delegation": "D-1",
        **change,
    }


def test_a_trader_acts_within_its_limits(exchange: Exchange) -> None:
    placed = exchange.world.submit(TRADER, "book:Place", **order())
    assert (placed["connection_id"], placed["acted_by"]) == ("S-1", "TRADER-HELIO")
    assert exchange.held("S-1") == 40_000  # the home's money, not the trader's
    for change, said in (
        ({"price_micro_per_kwh": 49_000}, "no sale below 50000, but the price is 49000"),
        ({"side": "bid", "price_micro_per_kwh": 101_000}, "no purchase above 100000"),
        ({"energy_wh": 201}, "allows 1000 Wh in an interval, but 1001 would be promised"),
    ):
        if change.get("side") == "bid":
            exchange.world.submit(
                TRADER,
                "book:Cancel",
                order_id="o-1",
                connection_id="S-1",
                interval_start=INTERVAL,
                delegation="D-1",
            )
        with pytest.raises(Forbidden, match=said):
            exchange.world.submit(TRADER, "book:Place", **order(order_id=f"o-{said}"[:3], **change))
        if change.get("side") == "bid":
            exchange.world.submit(TRADER, "book:Place", **order(order_id="o-9"))
    own = exchange.place("S-1", "offer", 61_000, 200, "own")
    assert own["acted_by"] is None


def test_who_has_no_delegation_cannot_act(exchange: Exchange) -> None:
    with pytest.raises(NotFound, match=r"has given eve .* no delegation D-1"):
        exchange.world.submit(OTHER_TRADER, "book:Place", **order())
    with pytest.raises(NotFound, match="no delegation D-2"):
        exchange.world.submit(TRADER, "book:Place", **order(delegation="D-2"))
    with pytest.raises(NotFound):
        exchange.world.submit(TRADER, "book:Place", **order(connection_id="S-2"))
    with pytest.raises(Forbidden, match="its home alone"):
        exchange.world.submit(TRADER, "book:Place", **order(delegation=None))
    give(exchange, delegation_id="D-3", acts=["sell"])
    with pytest.raises(Forbidden, match="D-3 is for sell, not for order"):
        exchange.world.submit(TRADER, "book:Place", **order(delegation="D-3"))
    give(exchange, delegation_id="D-4", until=NOON + 60)
    exchange.world.now = NOON + 60
    with pytest.raises(Forbidden, match="D-4 ended at 2026-11-21T12:01:00Z"):
        exchange.world.submit(TRADER, "book:Place", **order(delegation="D-4"))


def test_taking_it_back_stops_what_is_in_flight(exchange: Exchange) -> None:
    world = exchange.world
    in_flight = world.simulate(TRADER, "book:Place", order())
    back = world.simulate(
        exchange.homes["S-1"],
        "delegation:TakeBack",
        {"connection_id": "S-1", "trader": "TRADER-HELIO", "delegation_id": "D-1"},
    )
    assert world.state.commit(back.results, in_flight.results) == [0, 11]
    with pytest.raises(NotFound, match="or has taken it back"):
        world.submit(TRADER, "book:Place", **order())
    again = world.submit(
        exchange.homes["S-1"],
        "delegation:TakeBack",
        connection_id="S-1",
        trader="TRADER-HELIO",
        delegation_id="D-1",
    )
    assert again["ended"] is False


def test_a_trader_sells_at_a_suppliers_rate(exchange: Exchange) -> None:
    world = exchange.world
    give(exchange, delegation_id="D-2", acts=["sell"])
    world.submit(
        OPERATOR,
        "market:PublishRate",
        supplier="AuroraMSP",
        day="2026-11-21",
        kind="buy",
        price_micro_per_kwh=81_000,
    )
    quote = world.evaluate(
        exchange.homes["S-1"],
        "market:Quote",
        connection_id="S-1",
        energy_wh=900,
        window_start=INTERVAL,
        window_end=INTERVAL + 900,
    )["quote"]
    sale = {"request_id": "r-1", "quote": quote, "delegation": "D-2"}
    assert world.submit(TRADER, "market:Authorise", **sale)["acted_by"] == "TRADER-HELIO"
    with pytest.raises(NotFound):
        world.submit(OTHER_TRADER, "market:Authorise", **{**sale, "request_id": "r-2"})


def test_giving(exchange: Exchange) -> None:
    give(exchange)
    with pytest.raises(Conflict, match="D-1 to TRADER-HELIO is another one"):
        give(exchange, max_energy_wh=5)
    with pytest.raises(InvalidArgument, match="acts is empty"):
        give(exchange, delegation_id="D-2", acts=[])
    with pytest.raises(InvalidArgument, match="until is"):
        give(exchange, delegation_id="D-2", until=NOON)
    with pytest.raises(Forbidden, match="its home alone"):
        exchange.world.submit(TRADER, "delegation:Give", delegation=TERMS)
    listed = exchange.world.evaluate(exchange.homes["S-1"], "delegation:Given", connection_id="S-1")
    assert [each["delegation_id"] for each in listed["delegations"]] == ["D-1"]
    with pytest.raises(Forbidden):
        exchange.world.evaluate(TRADER, "delegation:Given", connection_id="S-1")


def test_a_delegation_ends_when_who_gave_it_moves_out(exchange: Exchange) -> None:
    """Else a trader sells, and spends, what is of who lives there then."""
    world = exchange.world
    entry: dict[str, object] = {"connection_id": "S-1"}
    world.submit(OPERATOR, "roles:MoveIn", resident="ANN", **{**entry, "from": NOON - 900})
    world.submit(TRADER, "book:Place", **order())
    world.submit(OPERATOR, "roles:MoveOut", at=NOON + 1800, **entry)
    world.now = NOON + 1800
    with pytest.raises(Forbidden, match="was given by who lived at S-1 before"):
        world.submit(TRADER, "book:Place", **order(order_id="o-2", energy_wh=200))
    world.submit(OPERATOR, "roles:MoveIn", resident="BEN", **{**entry, "from": NOON + 2700})
    world.now = NOON + 2700
    with pytest.raises(Forbidden, match="was given by who lived at S-1 before"):
        world.submit(TRADER, "book:Cancel", connection_id="S-1", order_id="o-1",
                     interval_start=INTERVAL, delegation="D-1")  # fmt: skip
    ben = exchange.homes["S-1"]
    ben = Creator(ben.msp_id, b"", "ben", "client",
                  {**ben.attributes, "gridledger.resident": "BEN"})  # fmt: skip
    given = world.submit(ben, "delegation:Give", delegation=TERMS)
    assert given["given_at"] == str(world.now)
    with pytest.raises(InvalidArgument, match="given_at is what the ledger notes"):
        world.submit(ben, "delegation:Give", delegation=given)
    world.submit(TRADER, "book:Place", **order(order_id="o-2", energy_wh=200))
