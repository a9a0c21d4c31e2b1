"""Call auctions with one price: how much trades, at what price, and each order's share.

Pure functions of integers. A book is cleared from its histogram (energy by price), so that a
large one can be summed in pages; an order's fill is a function of the order, of what stands before
it at its price, and of the result, so fills need not be stored.

Energy in Wh, prices in micro-units per kWh; prices may be negative.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["bid", "offer"]
PriceRule = Literal["middle", "lowest", "highest"]
"""Which price of the interval of clearing prices is taken."""


@dataclass(frozen=True, slots=True)
class Margin:
    """The last price level of a side that trades: what stands there, and how much of it trades."""

    price: int
    energy_wh: int
    accepted_wh: int

    def accepted_up_to(self, running_wh: int) -> int:
        """How much of the first `running_wh` of this level trades.

        Rounded half up on the running sum, never by order: shares add up exactly, and whoever
        splits an order into several that stand side by side gets the same in total.
        """
        return (2 * running_wh * self.accepted_wh + self.energy_wh) // (2 * self.energy_wh)


@dataclass(frozen=True, slots=True)
class Clearing:
    """The outcome of one auction; with no volume there is no price and no margin."""

    volume_wh: int
    price: int | None = None
    lowest_price: int | None = None
    """The interval of prices at which just this volume trades and nobody would rather not."""
    highest_price: int | None = None
    bid_margin: Margin | None = None
    offer_margin: Margin | None = None

    def fill_wh(self, side: Side, price: int, energy_wh: int, before_wh: int) -> int:
        """How much of an order trades.

        Args:
            side: Whether it buys or sells.
            price: Its limit.
            energy_wh: What it asks for or offers.
            before_wh: The sum of the orders before it at the same price and side. All orders of
                one owner stand together in that sequence.
        """
        margin = self.bid_margin if side == "bid" else self.offer_margin
        if margin is None:
            return 0
        if price == margin.price:
            return margin.accepted_up_to(before_wh + energy_wh) - margin.accepted_up_to(before_wh)
        better = price > margin.price if side == "bid" else price < margin.price
        return energy_wh if better else 0

    def left_before_wh(self, side: Side, price: int, before_wh: int) -> int:
        """How much of the first `before_wh` at a price and side is left unfilled."""
        return before_wh - self.fill_wh(side, price, before_wh, 0)


def histogram(orders: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Energy by price of `(price, energy_wh)` pairs."""
    levels: dict[int, int] = {}
    for price, energy_wh in orders:
        levels[price] = levels.get(price, 0) + energy_wh
    return levels


def clear(
    demand: Mapping[int, int], supply: Mapping[int, int], rule: PriceRule = "middle"
) -> Clearing:
    """Find the largest volume that one price can trade, and that price.

    Bids from the highest price down meet offers from the lowest up until they no longer cross.
    The price lies between `max(last accepted offer, best bid not wholly filled)` and
    `min(last accepted bid, best offer not wholly filled)`; `rule` picks it ("middle" rounds down).

    Args:
        demand: Bids' energy by price.
        supply: Offers' energy by price.
        rule: Which price of the interval.
    """
    bids = sorted(((price, wh) for price, wh in demand.items() if wh > 0), reverse=True)
    offers = sorted((price, wh) for price, wh in supply.items() if wh > 0)
    bid_at = offer_at = volume = 0
    bid_taken = offer_taken = 0  # of the levels bid_at and offer_at
    bid_margin = offer_margin = None
    while bid_at < len(bids) and offer_at < len(offers):
        (bid_price, bid_wh), (offer_price, offer_wh) = bids[bid_at], offers[offer_at]
        if bid_price < offer_price:
            break
        trade = min(bid_wh - bid_taken, offer_wh - offer_taken)
        volume += trade
        bid_taken += trade
        offer_taken += trade
        bid_margin = Margin(bid_price, bid_wh, bid_taken)
        offer_margin = Margin(offer_price, offer_wh, offer_taken)
        if bid_taken == bid_wh:
            bid_at, bid_taken = bid_at + 1, 0
        if offer_taken == offer_wh:
            offer_at, offer_taken = offer_at + 1, 0
    if bid_margin is None or offer_margin is None:
        return Clearing(0)
    lowest, highest = offer_margin.price, bid_margin.price
    if bid_at < len(bids):
        lowest = max(lowest, bids[bid_at][0])
    if offer_at < len(offers):
        highest = min(highest, offers[offer_at][0])
    match rule:
        case "lowest":
            price = lowest
        case "highest":
            price = highest
        case "middle":
            price = (lowest + highest) // 2
    return Clearing(volume, price, lowest, highest, bid_margin, offer_margin)


@dataclass(frozen=True, slots=True)
class ZoneBook:
    """The orders of one zone and what its grid charges for each kWh delivered.

    Prices are the orders' own: what a buyer pays at most, fees included, and what a seller gets
    at least.
    """

    demand: Mapping[int, int]
    supply: Mapping[int, int]
    local_fee: int
    """For energy that stays in the zone; the buyer pays it."""
    entry_fee: int
    """For energy that enters the zone; the buyer pays it."""
    exit_fee: int
    """For energy that leaves the zone; taken from what the seller gets."""
    most_in_wh: int | None = None
    """What the zone's feeder can bring in; None: no limit."""
    most_out_wh: int | None = None
    """What its feeder can carry away."""


@dataclass(frozen=True, slots=True)
class ZonalFill:
    """What one order trades in its own zone and across the hub."""

    local_wh: int
    hub_wh: int


@dataclass(frozen=True, slots=True)
class ZonalClearing:
    """The outcome of all zones' books and of the hub where what they left meets.

    A local clearing's price is what sellers get; buyers pay the zone's local fee on top. Of the
    hub's price, sellers get it less their zone's exit fee and buyers pay their entry fee on top.
    """

    local: Mapping[str, Clearing]
    hub: Clearing
    zones: Mapping[str, ZoneBook]
    hub_offsets: Mapping[tuple[str, Side], int]
    """What stands before a zone's orders at the hub's margin, by zone and side."""
    caps: Mapping[tuple[str, Side], Margin] = field(default_factory=dict)
    """Where a zone's feeder let only a part of what it left go to the hub: the last price (the
    hub's) that could, and how much of it."""

    def fill(self, zone: str, side: Side, price: int, energy_wh: int, before_wh: int) -> ZonalFill:
        """Return an order's fills; arguments as of `Clearing.fill_wh`, the price the order's own.

        Raises:
            KeyError: the zone has no book here.
        """
        book, local = self.zones[zone], self.local[zone]
        local_price = _local_price(book, side, price)
        local_wh = local.fill_wh(side, local_price, energy_wh, before_wh)
        left_before = local.left_before_wh(side, local_price, before_wh)
        hub_price = _hub_price(book, side, price)
        cap = self.caps.get((zone, side))
        admitted_before = _admitted(cap, side, hub_price, left_before)
        admitted = _admitted(cap, side, hub_price, left_before + energy_wh - local_wh)
        hub_wh = self.hub.fill_wh(
            side,
            hub_price,
            admitted - admitted_before,
            self.hub_offsets.get((zone, side), 0) + admitted_before,
        )
        return ZonalFill(local_wh, hub_wh)


def _local_price(book: ZoneBook, side: Side, price: int) -> int:
    return price - book.local_fee if side == "bid" else price


def _hub_price(book: ZoneBook, side: Side, price: int) -> int:
    return price - book.entry_fee if side == "bid" else price + book.exit_fee


def _admitted(cap: Margin | None, side: Side, price: int, running_wh: int) -> int:
    """How much of the first `running_wh` of what a zone left at a price may go to the hub."""
    if cap is None:
        return running_wh
    if price == cap.price:
        return cap.accepted_up_to(running_wh)
    better = price > cap.price if side == "bid" else price < cap.price
    return running_wh if better else 0


def _capped(part: dict[int, int], side: Side, most_wh: int | None) -> Margin | None:
    """Leave the best `most_wh` of what goes to the hub; return where it was cut, None if not."""
    if most_wh is None or sum(part.values()) <= most_wh:
        return None
    room = most_wh
    cut: Margin | None = None
    for price in sorted(part, reverse=side == "bid"):
        energy_wh = part[price]
        if cut is None and energy_wh <= room:
            room -= energy_wh
            continue
        if cut is None:
            cut = Margin(price, energy_wh, room)
        part[price], room = room, 0
    return cut


def clear_zones(zones: Mapping[str, ZoneBook], rule: PriceRule = "middle") -> ZonalClearing:
    """Clear each zone's book by itself, then what is left of all of them at the hub.

    This prefers what is near and is not the optimum over all zones together: an order filled in
    its zone might have found a better price across the hub. Where a zone's feeder carries less
    than what it left, the best of it goes to the hub, so that no more than that can be cleared.
    """
    local: dict[str, Clearing] = {}
    left: dict[Side, dict[int, int]] = {"bid": {}, "offer": {}}
    parts: dict[tuple[str, Side], dict[int, int]] = {}
    caps: dict[tuple[str, Side], Margin] = {}
    for zone, book in sorted(zones.items()):
        demand = {price - book.local_fee: wh for price, wh in book.demand.items()}
        clearing = local[zone] = clear(demand, book.supply, rule)
        sides: tuple[tuple[Side, Mapping[int, int]], ...] = (
            ("bid", book.demand),
            ("offer", book.supply),
        )
        for side, levels in sides:
            part = parts[zone, side] = {}
            for price, wh in levels.items():
                rest = clearing.left_before_wh(side, _local_price(book, side, price), wh)
                if rest > 0:
                    part[_hub_price(book, side, price)] = rest
            cap = _capped(part, side, book.most_in_wh if side == "bid" else book.most_out_wh)
            if cap is not None:
                caps[zone, side] = cap
            for hub_price, wh in part.items():
                left[side][hub_price] = left[side].get(hub_price, 0) + wh
    hub = clear(left["bid"], left["offer"], rule)
    offsets: dict[tuple[str, Side], int] = {}
    for side, margin in (("bid", hub.bid_margin), ("offer", hub.offer_margin)):
        running = 0
        for zone in sorted(zones):
            key: tuple[str, Side] = (zone, "bid" if side == "bid" else "offer")
            offsets[key] = running
            running += parts[key].get(margin.price, 0) if margin else 0
    return ZonalClearing(local, hub, dict(zones), offsets, caps)
