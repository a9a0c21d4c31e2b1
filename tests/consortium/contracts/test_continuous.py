"""Continuous trading: published sequences, and priority as a property."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.contracts.market.continuous import ContinuousBook, Fill, Order, Side, book_of
from tests.consortium.contracts.cases import cases

CASES = cases("pay_as_bid_continuous")
# These rest on other rules than price, time and the resting order's price.
OTHER_RULES = {
    "ew_ask_price_even_if_bid_first": "the offer's price, whichever rests",
    "gsy_pab_min_energy": "dearest offer first, which maximises volume and not welfare",
}
ONE_ZONE = {("Z", "Z"): 0}


def order_of(row: dict[str, Any]) -> Order:
    side: Side = "bid" if row["side"] == "bid" else "offer"
    return Order(row["id"], side, row["owner"], "Z", int(row["price"] * 10), row["qty"], row["seq"])


@pytest.mark.parametrize("name", [name for name in CASES if name not in OTHER_RULES])
def test_published_sequences(name: str) -> None:
    case = CASES[name]
    book = ContinuousBook(ONE_ZONE)
    fills = [fill for row in case["orders"] for fill in book.enter(order_of(row))]
    expected = [
        (row["bid"], row["ask"], row["qty"], int(row["price"] * 10)) for row in case["trades"]
    ]
    assert [(fill.bid_id, fill.offer_id, fill.energy_wh, fill.buyer_price) for fill in fills] == (
        expected
    )
    left = {order.order_id: wh for order, wh in book.resting()}
    for order_id, wh in case.get("remaining", {}).items():
        assert left[order_id] == wh
    if "left" in case:
        assert sorted(left) == sorted(case["left"])


def test_the_resting_orders_price_holds() -> None:
    """Where a published case has the offer's price even if the bid rested."""
    case = CASES["ew_ask_price_even_if_bid_first"]
    book = ContinuousBook(ONE_ZONE)
    fills = [fill for row in case["orders"] for fill in book.enter(order_of(row))]
    assert fills == [Fill("b1", "a1", 1000, 30, 30)]


@pytest.mark.parametrize(("first", "buyer", "seller"), [("offer", 140, 100), ("bid", 300, 260)])
def test_published_fees_of_a_path(first: str, buyer: int, seller: int) -> None:
    """`pay_as_offer_constant` and `pay_as_bid_constant`: three grids take 40 on the way."""
    book = ContinuousBook({("N2", "N1"): 40})
    offer = Order("a1", "offer", "House2", "N2", 100, 1000, 1)
    bid = Order("b1", "bid", "House1", "N1", 300, 1000, 2)
    sequence = (offer, bid) if first == "offer" else (bid, offer)
    assert [fill for order in sequence for fill in book.enter(order)] == [
        Fill("b1", "a1", 1000, buyer, seller)
    ]


def test_the_cheapest_landed_price_goes_first() -> None:
    book = ContinuousBook({("NEAR", "NEAR"): 5, ("FAR", "NEAR"): 30})
    book.enter(Order("far", "offer", "F", "FAR", 80, 500, 1))
    book.enter(Order("near", "offer", "N", "NEAR", 100, 500, 2))
    book.enter(Order("unreachable", "offer", "U", "ISLAND", 1, 500, 3))
    fills = book.enter(Order("b", "bid", "B", "NEAR", 120, 2000, 4))
    assert fills == [Fill("b", "near", 500, 105, 100), Fill("b", "far", 500, 110, 80)]


def test_attributes() -> None:
    book = ContinuousBook(ONE_ZONE)
    book.enter(Order("grey", "offer", "G", "Z", 1, 500, 1))
    book.enter(Order("green", "offer", "S", "Z", 5, 500, 2, ("GREEN", "LOCAL")))
    assert book.enter(Order("b", "bid", "B", "Z", 9, 500, 3, ("GREEN",))) == [
        Fill("b", "green", 500, 5, 5)
    ]


def test_amending_and_cancelling() -> None:
    book = ContinuousBook(ONE_ZONE)
    for number, order_id in enumerate(("first", "second"), 1):
        book.enter(Order(order_id, "offer", order_id.upper(), "Z", 10, 1000, number))
    assert book.amend("first", 10, 600, 3) == []  # less keeps its place
    assert book.enter(Order("b1", "bid", "B", "Z", 10, 700, 4)) == [
        Fill("b1", "first", 600, 10, 10),
        Fill("b1", "second", 100, 10, 10),
    ]
    book.enter(Order("third", "offer", "T", "Z", 10, 100, 5))
    assert book.amend("second", 10, 1000, 6) == []  # more goes to the end
    assert book.enter(Order("b2", "bid", "B", "Z", 10, 150, 7)) == [
        Fill("b2", "third", 100, 10, 10),
        Fill("b2", "second", 50, 10, 10),
    ]
    book.enter(Order("b3", "bid", "B", "Z", 8, 100, 8))
    assert book.amend("second", 8, 950, 9) == [Fill("b3", "second", 100, 8, 8)]
    assert book.cancel("second") == 850
    assert book.cancel("second") == 0
    with pytest.raises(ValueError, match="rest"):
        book.amend("second", 8, 1, 10)


entries = st.lists(
    st.tuples(
        st.sampled_from(["bid", "offer"]),
        st.sampled_from("ABCD"),
        st.sampled_from("XY"),
        st.integers(-5, 5),
        st.integers(1, 20),
    ),
    max_size=40,
)
FEES = {("X", "X"): 0, ("Y", "Y"): 1, ("X", "Y"): 2, ("Y", "X"): 3}


@settings(max_examples=300, deadline=None)
@given(entries)
def test_priority_holds(rows: list[tuple[Side, str, str, int, int]]) -> None:
    """Each fill is with the best that the order could have met, found by looking at all."""
    book = ContinuousBook(FEES)
    orders: dict[str, Order] = {}
    left: dict[str, int] = {}
    for number, (side, owner, zone, price, wh) in enumerate(rows):
        order = orders[str(number)] = Order(str(number), side, owner, zone, price, wh, number)
        expected: list[tuple[str, int]] = []
        open_wh = wh
        while open_wh:
            best: tuple[int, int, str] | None = None
            for other_id, other_wh in left.items():
                other = orders[other_id]
                if other_wh and other.side != side and other.owner != owner:
                    path = (other.zone, zone) if side == "bid" else (zone, other.zone)
                    gain = (price - other.price if side == "bid" else other.price - price) - FEES[
                        path
                    ]
                    if gain >= 0:
                        rank = (-gain, other.sequence, other_id)
                        best = rank if best is None else min(best, rank)
            if best is None:
                break
            traded = min(open_wh, left[best[2]])
            expected.append((best[2], traded))
            left[best[2]] -= traded
            open_wh -= traded
        left[str(number)] = open_wh
        fills = book.enter(order)
        met = [(fill.offer_id if side == "bid" else fill.bid_id, fill.energy_wh) for fill in fills]
        assert met == expected
        for fill in fills:
            bid, offer = orders[fill.bid_id], orders[fill.offer_id]
            assert fill.buyer_price <= bid.price
            assert fill.seller_price >= offer.price
            assert fill.buyer_price - fill.seller_price == FEES[offer.zone, bid.zone]
    resting = list(book.resting())
    assert {order.order_id: wh for order, wh in resting} == {
        order_id: wh for order_id, wh in left.items() if wh
    }
    assert list(book_of(FEES, resting).resting()) == resting


@settings(max_examples=200, deadline=None)
@given(entries, st.lists(st.sampled_from(["", *"ABCD"]), min_size=40, max_size=40))
def test_gifts_disturb_nobody(
    rows: list[tuple[Side, str, str, int, int]], named: list[str]
) -> None:
    """They meet by name, for the fee alone; all others trade as if there were none."""
    book, without = ContinuousBook(FEES), ContinuousBook(FEES)
    orders: dict[str, Order] = {}
    given_wh: dict[str, int] = {}
    for number, ((side, owner, zone, price, wh), gift) in enumerate(zip(rows, named, strict=False)):
        price = 0 if gift and side == "offer" else price
        order = Order(str(number), side, owner, zone, price, wh, number, gift=gift)
        orders[order.order_id] = order
        fills = book.enter(order)
        if not gift:
            assert fills == without.enter(order)
            continue
        for fill in fills:
            bid, offer = orders[fill.bid_id], orders[fill.offer_id]
            assert (bid.gift, offer.gift) == (offer.owner, bid.owner)
            assert bid.owner != offer.owner
            assert fill.seller_price == 0
            assert fill.buyer_price == FEES[offer.zone, bid.zone] <= bid.price
            for order_id in (fill.bid_id, fill.offer_id):
                given_wh[order_id] = given_wh.get(order_id, 0) + fill.energy_wh
    left = {order.order_id: wh for order, wh in book.resting()}
    for order_id, order in orders.items():
        if order.gift:
            assert left.get(order_id, 0) + given_wh.get(order_id, 0) == order.energy_wh
    assert {name: wh for name, wh in left.items() if not orders[name].gift} == {
        order.order_id: wh for order, wh in without.resting()
    }
