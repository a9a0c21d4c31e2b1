"""Call auctions: published cases, and properties against a search of all prices."""

import random
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.contracts.market.auction import (
    Clearing,
    Side,
    ZoneBook,
    clear,
    clear_zones,
    histogram,
)
from tests.consortium.contracts.cases import cases
from tests.consortium.contracts.sequences import in_time, sequences

type Orders = Sequence[tuple[int, int]]
"""(price, energy_wh) of one side."""

UNIFORM = cases("uniform_price")
FEES = cases("grid_fees")

# What a published answer is to ours: the same, within our interval of prices, or refuted.
EXPECTED = {
    "gsy_unit_2": "same",
    "gsy_unit_3": "same",
    "gsy_market2_UNDERCLEARS": "refuted",  # 25 units that one price could trade are left
    "assume_short_supply": "refuted",  # 100 leaves 200 units of bids at 3000 unfilled
    "assume_surplus": "same",
    "dauction_avg_1": "same",
    "dauction_avg_3": "within",
    "dauction_avg_4": "same",
    "pymarket_ds0": "same",
    "pymarket_ds1": "same",
    "simply_three": "refuted",  # a price of 1 is below the bid of 3 that gets nothing
    "tie_bids": "unpublished",
}


def scaled(rows: list[dict[str, object]]) -> list[tuple[int, int]]:
    """A case's orders in integers: prices by hundredths, quantities by thousandths."""
    return [(int(row["price"] * 100), int(row["qty"] * 1000)) for row in rows]  # type: ignore[operator]


@pytest.mark.parametrize("name", UNIFORM)
def test_published_cases(name: str) -> None:
    case = UNIFORM[name]
    clearing = clear(histogram(scaled(case["bids"])), histogram(scaled(case["offers"])))
    checked = case["checked"]
    assert clearing.volume_wh == checked["max_volume"] * 1000
    assert clearing.lowest_price == checked["equilibrium_price_low"] * 100
    assert clearing.highest_price == checked["equilibrium_price_high"] * 100
    if EXPECTED[name] == "unpublished":
        return
    price, volume = case["published"]["price"] * 100, case["published"]["volume"] * 1000
    assert clearing.lowest_price is not None
    assert clearing.highest_price is not None
    within = clearing.lowest_price <= price <= clearing.highest_price
    assert (within and volume == clearing.volume_wh) == (EXPECTED[name] != "refuted")
    assert (price == clearing.price and within) == (EXPECTED[name] == "same")


def test_a_tie_at_the_margin_is_shared_exactly() -> None:
    """The case's own orders in one unit: 3, 5 and 2 share 6."""
    clearing = clear(histogram([(20, 3), (20, 5), (20, 2)]), histogram([(10, 6)]))
    assert fills(clearing, "bid", [(20, 3), (20, 5), (20, 2)]) == [2, 3, 1]


@pytest.mark.parametrize("name", ["simply_fee_blocks_match", "simply_fee_once"])
def test_published_local_fees(name: str) -> None:
    case = FEES[name]
    bids, offers = scaled(case["bids"]), scaled(case["asks"])
    book = ZoneBook(histogram(bids), histogram(offers), int(case["fee"] * 100), 0, 0)
    result = clear_zones({"Z": book})
    local = result.local["Z"]
    expected = case["expected"]
    quantities = expected.get("trades_qty") or [trade["qty"] for trade in expected["trades"]]
    price = expected.get("price") or expected["trades"][0]["price"]
    assert local.volume_wh == sum(quantities) * 1000
    assert local.price is not None
    assert local.price + book.local_fee == price * 100  # what buyers pay


def fills(clearing: Clearing, side: Side, orders: Orders) -> list[int]:
    """Each order's fill, in the sequence given."""
    before: dict[int, int] = {}
    result = []
    for price, energy_wh in orders:
        result.append(clearing.fill_wh(side, price, energy_wh, before.get(price, 0)))
        before[price] = before.get(price, 0) + energy_wh
    return result


def volume_at(bids: Orders, offers: Orders, price: int) -> int:
    demand = sum(wh for limit, wh in bids if limit >= price)
    supply = sum(wh for limit, wh in offers if limit <= price)
    return min(demand, supply)


orders = st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 50)), max_size=25)


@in_time(500)
@settings(max_examples=sequences(500), deadline=None)
@given(orders, orders)
def test_agrees_with_a_search_of_all_prices(bids: Orders, offers: Orders) -> None:
    check_against_all_prices(bids, offers)


def test_many_books_agree_with_a_search_of_all_prices() -> None:
    chance = random.Random(1)
    for _ in range(sequences(2_000)):
        spread = chance.choice((1, 3, 20))
        bids, offers = (
            [
                (chance.randint(-spread, spread), chance.randint(1, 50))
                for _ in range(chance.randint(0, 12))
            ]
            for _ in range(2)
        )
        check_against_all_prices(bids, offers)


def check_against_all_prices(bids: Orders, offers: Orders) -> None:
    clearing = clear(histogram(bids), histogram(offers))
    volume = max(volume_at(bids, offers, price) for price in range(-21, 22))
    assert clearing.volume_wh == volume
    bid_fills, offer_fills = fills(clearing, "bid", bids), fills(clearing, "offer", offers)
    assert sum(bid_fills) == sum(offer_fills) == volume
    if volume == 0:
        assert clearing == Clearing(0)
        return

    # Every price of the interval, and no other, lets just these fills stand: nobody strictly in
    # the money is left unfilled, nobody out of it is filled.
    def stands(price: int) -> bool:
        return all(
            (wh == filled if limit > price else filled == 0 if limit < price else True)
            for (limit, wh), filled in zip(bids, bid_fills, strict=True)
        ) and all(
            (wh == filled if limit < price else filled == 0 if limit > price else True)
            for (limit, wh), filled in zip(offers, offer_fills, strict=True)
        )

    assert clearing.lowest_price is not None
    assert clearing.highest_price is not None
    standing = [price for price in range(-21, 22) if stands(price)]
    assert standing == list(range(clearing.lowest_price, clearing.highest_price + 1))
    assert clearing.price == (clearing.lowest_price + clearing.highest_price) // 2
    for (_, wh), filled in zip([*bids, *offers], [*bid_fills, *offer_fills], strict=True):
        assert 0 <= filled <= wh


@in_time(300)
@settings(max_examples=sequences(300), deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 200)), min_size=2, max_size=12),
    st.integers(1, 500),
    st.data(),
)
def test_splitting_an_order_gains_nothing(
    owners: list[tuple[int, int]], supply: int, data: st.DataObject
) -> None:
    """At the margin an owner's share depends on its sum alone."""
    whole: dict[int, int] = {}
    for owner, wh in owners:
        whole[owner] = whole.get(owner, 0) + wh
    splitter = data.draw(st.sampled_from(sorted(whole)))
    cuts = sorted(data.draw(st.sets(st.integers(0, whole[splitter]), max_size=6)))
    edges = [0, *cuts, whole[splitter]]
    parts = [end - start for start, end in pairwise(edges) if end > start]

    def share(split: bool) -> dict[int, int]:
        listed = [
            (owner, part)
            for owner in sorted(whole)
            for part in (parts if split and owner == splitter else [whole[owner]])
        ]
        clearing = clear(histogram([(7, wh) for _, wh in listed]), {7: supply})
        got: dict[int, int] = {}
        taken = fills(clearing, "bid", [(7, wh) for _, wh in listed])
        for (owner, _), wh in zip(listed, taken, strict=True):
            got[owner] = got.get(owner, 0) + wh
        return got

    assert share(split=True) == share(split=False)


zone_books = st.dictionaries(
    st.sampled_from(["A", "B", "C"]),
    st.tuples(
        orders,
        orders,
        st.integers(0, 5),
        st.integers(0, 5),
        st.integers(0, 5),
        st.none() | st.integers(0, 60),
        st.none() | st.integers(0, 60),
    ),
    min_size=1,
)


@in_time(500)
@settings(max_examples=sequences(500), deadline=None)
@given(zone_books)
def test_zones_and_hub_add_up(
    books: dict[str, tuple[Orders, Orders, int, int, int, int | None, int | None]],
) -> None:
    """Whatever feeders carry, and no more goes over one than it can."""
    zones = {
        zone: ZoneBook(histogram(bids), histogram(offers), *terms)
        for zone, (bids, offers, *terms) in books.items()
    }
    result = clear_zones(zones)
    hub = {"bid": 0, "offer": 0}
    for zone, (bids, offers, *_) in books.items():
        local = result.local[zone]
        sides: tuple[tuple[Side, Orders], ...] = (("bid", bids), ("offer", offers))
        for side, listed in sides:
            before: dict[int, int] = {}
            in_zone = over_feeder = 0
            for price, wh in listed:
                fill = result.fill(zone, side, price, wh, before.get(price, 0))
                before[price] = before.get(price, 0) + wh
                assert min(fill.local_wh, fill.hub_wh) >= 0
                assert fill.local_wh + fill.hub_wh <= wh
                in_zone += fill.local_wh
                hub[side] += fill.hub_wh
                over_feeder += fill.hub_wh
                # Nobody pays more or gets less than its limit, fees included.
                if fill.local_wh:
                    assert local.price is not None
                    paid = local.price + (zones[zone].local_fee if side == "bid" else 0)
                    assert paid <= price if side == "bid" else paid >= price
                if fill.hub_wh:
                    assert result.hub.price is not None
                    if side == "bid":
                        assert result.hub.price + zones[zone].entry_fee <= price
                    else:
                        assert result.hub.price - zones[zone].exit_fee >= price
            assert in_zone == local.volume_wh
            most = zones[zone].most_in_wh if side == "bid" else zones[zone].most_out_wh
            assert most is None or over_feeder <= most
    assert hub["bid"] == hub["offer"] == result.hub.volume_wh


def test_a_feeder_lets_the_best_of_a_zone_pass() -> None:
    far = ZoneBook({90: 100, 80: 100, 70: 100}, {}, 0, 10, 0, most_in_wh=150)
    result = clear_zones({"FAR": far, "SUN": ZoneBook({}, {20: 1000}, 0, 0, 5)})
    assert result.hub.volume_wh == 150
    assert [result.fill("FAR", "bid", price, 100, 0).hub_wh for price in (90, 80, 70)] == [
        100, 50, 0,
    ]  # fmt: skip
    halves = [result.fill("FAR", "bid", 80, 50, before).hub_wh for before in (0, 50)]
    assert halves == [25, 25]


def test_a_book_summed_in_pages_gives_the_same_fills() -> None:
    """The sum before each order is all that a page needs of the pages before it."""
    listed = [(7, wh) for wh in (13, 1, 8, 40, 3, 5, 21)]
    clearing = clear(histogram(listed), {5: 50})
    starts = [0, *accumulate(wh for _, wh in listed)]
    paged = [
        clearing.fill_wh("bid", 7, wh, start)
        for (_, wh), start in zip(listed, starts, strict=False)
    ]
    assert paged == fills(clearing, "bid", listed)
    assert sum(paged) == 50
