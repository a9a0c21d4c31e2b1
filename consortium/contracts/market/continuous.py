"""Continuous trading: price first, then time; the resting order's price; partial fills.

Pure functions of integers. The sequence of orders is the matcher's, not a client's clock. Energy
in Wh, prices in micro-units per kWh, may be negative. Between zones the grid's fee of that path
comes on top: a bid meets an offer whose landed price (offer plus fee) it covers, and of those
the one that lands cheapest; at one landed price the partner that an order wishes for goes first.
A gift and a bid that takes it name one another, and meet nobody else.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Side = Literal["bid", "offer"]


@dataclass(frozen=True, slots=True)
class Order:
    """An order as the matcher numbers it."""

    order_id: str
    side: Side
    owner: str
    """Connection point; never trades with itself."""
    zone: str
    price: int
    energy_wh: int
    sequence: int
    attributes: tuple[str, ...] = ()
    """Such as GREEN: what an offer's energy is, or what a bid's must be."""
    partner: str = ""
    """The connection it would rather trade with, at the same price."""
    gift: str = ""
    """The connection that it gives to (offer) or takes from (bid), and no other."""


@dataclass(frozen=True, slots=True)
class Fill:
    """One trade: what the buyer pays for each kWh, what the seller gets, the grid's fee between."""

    bid_id: str
    offer_id: str
    energy_wh: int
    buyer_price: int
    seller_price: int


@dataclass(slots=True)
class _Resting:
    order: Order
    left_wh: int

    def __lt__(self, other: _Resting) -> bool:
        return self._rank() < other._rank()

    def _rank(self) -> tuple[int, int]:
        price = self.order.price
        return (-price if self.order.side == "bid" else price, self.order.sequence)


def _compatible(order: Order, other: Order) -> bool:
    bid, offer = (order, other) if order.side == "bid" else (other, order)
    given = bid.gift or offer.gift
    if given and (bid.gift, offer.gift) != (offer.owner, bid.owner):
        return False
    return bid.owner != offer.owner and all(
        attribute in offer.attributes for attribute in bid.attributes
    )


@dataclass(slots=True)
class ContinuousBook:
    """The resting orders of one product and interval, in all zones.

    Args:
        fees: The grid's fee by (seller's zone, buyer's zone); a pair that is missing has no path.
        room: What may still enter ("in") or leave ("out") a zone over its feeder, in Wh, by (zone,
            direction), written down as orders trade; a pair that is missing has no limit.
    """

    fees: Mapping[tuple[str, str], int]
    room: dict[tuple[str, str], int] = field(default_factory=dict)
    _resting: dict[tuple[Side, str], list[_Resting]] = field(default_factory=dict)
    _by_id: dict[str, _Resting] = field(default_factory=dict)

    def enter(self, order: Order, most: int | None = None) -> list[Fill]:
        """Match an order with what rests, best for it first; what is left of it rests.

        After `most` fills it rests with what is left, although it may cross: the caller takes it
        out.

        Raises:
            ValueError: its id rests already, or its energy isn't positive.
        """
        if order.order_id in self._by_id or order.energy_wh <= 0:
            raise ValueError(f"order {order.order_id} rests already, or has no energy")
        left = order.energy_wh
        met: list[_Resting] = []
        fills: list[Fill] = []
        for resting in self._opposite(order):
            traded = min(left, resting.left_wh, self._carry(order, resting.order, None))
            if traded <= 0:
                continue
            self._carry(order, resting.order, traded)
            fills.append(self._fill(order, resting.order, traded))
            met.append(resting)
            left -= traded
            resting.left_wh -= traded
            if left == 0 or len(fills) == most:
                break
        for resting in met:
            if resting.left_wh == 0:
                self._remove(resting)
        if left:
            self._rest(_Resting(order, left))
        return fills

    def cancel(self, order_id: str) -> int:
        """Take an order out; return the energy that was left of it, 0 if it doesn't rest."""
        resting = self._by_id.get(order_id)
        if resting is None:
            return 0
        self._remove(resting)
        return resting.left_wh

    def amend(
        self, order_id: str, price: int, energy_wh: int, sequence: int, most: int | None = None
    ) -> list[Fill]:
        """Change a resting order: `energy_wh` is what shall be left of it.

        Less energy at the same price keeps its place in time; anything else takes a new one.

        Raises:
            ValueError: it doesn't rest, or no energy would be left (cancel it).
        """
        resting = self._by_id.get(order_id)
        if resting is None or energy_wh <= 0:
            raise ValueError(f"order {order_id} doesn't rest here, or would have no energy left")
        order = resting.order
        if price == order.price and energy_wh <= resting.left_wh:
            resting.left_wh = energy_wh
            return []
        self._remove(resting)
        return self.enter(replace(order, price=price, energy_wh=energy_wh, sequence=sequence), most)

    def left_of(self, order_id: str) -> int:
        """What is left of an order that rests; 0 if it doesn't."""
        resting = self._by_id.get(order_id)
        return 0 if resting is None else resting.left_wh

    def resting(self) -> Iterator[tuple[Order, int]]:
        """All resting orders and what is left of each, by id."""
        for order_id in sorted(self._by_id):
            resting = self._by_id[order_id]
            yield resting.order, resting.left_wh

    def _opposite(self, order: Order) -> Iterator[_Resting]:
        """Resting orders that it can trade with, the best first. Nothing is removed meanwhile."""
        same: list[_Resting] = []
        level: int | None = None
        for cost, resting in self._by_cost(order):
            if not order.partner:
                yield resting
                continue
            if cost != level:
                yield from self._partner_first(order, same)
                same, level = [], cost
            same.append(resting)
        yield from self._partner_first(order, same)

    @staticmethod
    def _partner_first(order: Order, same: list[_Resting]) -> list[_Resting]:
        return sorted(same, key=lambda resting: resting.order.owner != order.partner)

    def _by_cost(self, order: Order) -> Iterator[tuple[int, _Resting]]:
        """Resting orders that it can trade with by cost and then time, each with its cost."""
        heads: list[tuple[int, int, _Resting, Iterator[tuple[int, _Resting]]]] = []
        for side, zone in sorted(self._resting):
            if side != order.side and (fee := self._fee(order, zone)) is not None:
                self._push(heads, self._crossing(order, self._resting[side, zone], fee))
        while heads:
            cost, _, resting, rest = heads.pop(0)
            yield cost, resting
            self._push(heads, rest)

    @staticmethod
    def _push(
        heads: list[tuple[int, int, _Resting, Iterator[tuple[int, _Resting]]]],
        rest: Iterator[tuple[int, _Resting]],
    ) -> None:
        """Put the next order of one zone among the heads of the others."""
        for cost, resting in rest:
            insort(
                heads,
                (cost, resting.order.sequence, resting, rest),
                key=lambda head: (head[0], head[1]),
            )
            return

    @staticmethod
    def _crossing(
        order: Order, queue: Iterable[_Resting], fee: int
    ) -> Iterator[tuple[int, _Resting]]:
        """What an order can trade with in one zone, the best first, each with its cost to it."""
        for resting in queue:
            if order.side == "bid":
                cost, limit = resting.order.price + fee, order.price
            else:
                cost, limit = fee - resting.order.price, -order.price
            if cost > limit:
                return
            if _compatible(order, resting.order):
                yield cost, resting

    def _carry(self, order: Order, resting: Order, traded_wh: int | None) -> int:
        """What the feeders between two zones can still carry; less what is traded, if told."""
        if order.zone == resting.zone:
            return order.energy_wh
        bid, offer = (order, resting) if order.side == "bid" else (resting, order)
        most = order.energy_wh
        for feeder in ((bid.zone, "in"), (offer.zone, "out")):
            if feeder in self.room:
                if traded_wh is not None:
                    self.room[feeder] -= traded_wh
                most = min(most, self.room[feeder])
        return most

    def _fee(self, order: Order, zone: str) -> int | None:
        path = (zone, order.zone) if order.side == "bid" else (order.zone, zone)
        return self.fees.get(path)

    def _fill(self, order: Order, resting: Order, energy_wh: int) -> Fill:
        fee = self._fee(order, resting.zone)
        assert fee is not None
        bid, offer = (order, resting) if order.side == "bid" else (resting, order)
        # The resting order's price. What a gift costs is the fee, whichever came first.
        if offer is resting or offer.gift:
            return Fill(bid.order_id, offer.order_id, energy_wh, offer.price + fee, offer.price)
        return Fill(bid.order_id, offer.order_id, energy_wh, bid.price, bid.price - fee)

    def _rest(self, resting: _Resting) -> None:
        order = resting.order
        insort(self._resting.setdefault((order.side, order.zone), []), resting)
        self._by_id[order.order_id] = resting

    def _remove(self, resting: _Resting) -> None:
        order = resting.order
        queue = self._resting[order.side, order.zone]
        del queue[bisect_left(queue, resting)]
        del self._by_id[order.order_id]


def book_of(
    fees: Mapping[tuple[str, str], int],
    resting: Iterable[tuple[Order, int]],
    room: Mapping[tuple[str, str], int] | None = None,
) -> ContinuousBook:
    """Make a book anew from resting orders and what is left of each. No two of them may cross."""
    book = ContinuousBook(fees, dict(room or {}))
    for order, left_wh in resting:
        book._rest(_Resting(order, left_wh))
    return book
