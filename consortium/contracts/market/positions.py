"""What a connection has sold and bought in each interval, and its open orders there.

One key for each connection and interval, written by its owner alone; all sales together stay
within what inverter or fuse can deliver, whatever they are sold through.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Identifier,
    Integer,
    LimitExceeded,
    RequestId,
    canonical_json,
    stored_record,
)

from ..common.clock import utc_text
from ..common.settings import Price
from ..registry.registry import Connection

MAX_OPEN_ORDERS = 50
"""Open orders of one connection in one interval."""

Energy = Annotated[int, Integer(0, 10**9, "Wh")]
Side = Annotated[str, Choice("bid", "offer")]


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """An order that stands in a book."""

    order_id: RequestId
    product: Identifier
    side: Side
    price_micro_per_kwh: Price
    energy_wh: Annotated[int, Integer(1, 10**9, "Wh")]
    amendments: Annotated[int, Integer(0, 999)] = 0
    """Of a continuous book: how many its owner has asked for."""
    cancelling: bool = False
    """Of a continuous book: its owner wants it out."""
    gift: Identifier | None = None
    """Of a continuous book: it meets this connection's alone, so never one of its owner's."""


@dataclass(frozen=True, slots=True)
class Position:
    """What a connection has promised in one interval."""

    sold_wh: Energy = 0
    """For certain, to suppliers or in books that are cleared."""
    bought_wh: Energy = 0
    orders: Annotated[tuple[OpenOrder, ...], AtMost(MAX_OPEN_ORDERS)] = ()
    """May be filled, so they count in full."""
    contract_sold_wh: Energy = 0
    """In bilateral contracts; read anew each time."""
    contract_bought_wh: Energy = 0

    def promised_wh(self, side: str) -> int:
        """What may have to be delivered (offer) or taken (bid), all orders filled."""
        if side == "offer":
            certain = self.sold_wh + self.contract_sold_wh
        else:
            certain = self.bought_wh + self.contract_bought_wh
        return certain + sum(order.energy_wh for order in self.orders if order.side == side)

    def with_order(self, order: OpenOrder) -> Position:
        """With one order more.

        Raises:
            Conflict: it would trade with its owner's own order.
            LimitExceeded: too many.
        """
        for other in self.orders:
            if other.product != order.product or other.side == order.side:
                continue
            if order.gift or other.gift:
                continue
            bid, offer = (order, other) if order.side == "bid" else (other, order)
            if bid.price_micro_per_kwh >= offer.price_micro_per_kwh:
                raise Conflict(
                    f"the {order.side} at {order.price_micro_per_kwh} would trade with the "
                    f"connection's own {other.side} {other.order_id} at "
                    f"{other.price_micro_per_kwh}; cancel that one first"
                )
        if len(self.orders) == MAX_OPEN_ORDERS:
            raise LimitExceeded(
                f"the connection has {MAX_OPEN_ORDERS} open orders in this interval, the limit"
            )
        return replace(self, orders=(*self.orders, order))

    def order(self, order_id: str) -> OpenOrder | None:
        """An order that stands."""
        return next((order for order in self.orders if order.order_id == order_id), None)

    def with_changed(self, order: OpenOrder) -> Position:
        """With an order in place of the one of its id."""
        orders = tuple(
            order if other.order_id == order.order_id else other for other in self.orders
        )
        return replace(self, orders=orders)

    def without_order(self, order_id: str) -> Position:
        """Without an order."""
        return replace(
            self, orders=tuple(order for order in self.orders if order.order_id != order_id)
        )


def _key(connection_id: str, interval_start: int) -> str:
    return f"position/{connection_id}/{interval_start:012d}"


def position_of(context: Context, connection_id: str, interval_start: int) -> Position:
    """What a connection has promised in an interval."""
    stored = context.get_state(_key(connection_id, interval_start))
    return Position() if stored is None else stored_record(Position, stored)


def store_position(
    context: Context, connection_id: str, interval_start: int, position: Position
) -> None:
    """Write what a connection has promised in an interval."""
    context.put_state(_key(connection_id, interval_start), canonical_json(position))


def capacity_wh(connection: Connection, side: str, interval_s: int) -> int:
    """What a connection can deliver (offer) or take (bid) in one interval."""
    power_w = connection.max_export_w if side == "offer" else connection.max_import_w
    return power_w * interval_s // 3600


def check_capacity(
    connection: Connection, position: Position, side: str, interval_start: int, interval_s: int
) -> None:
    """Raise Conflict if a position is more than its connection can carry."""
    capacity = capacity_wh(connection, side, interval_s)
    promised = position.promised_wh(side)
    if promised > capacity:
        verb = "deliver" if side == "offer" else "take"
        raise Conflict(
            f"connection {connection.connection_id} can {verb} {capacity} Wh in the interval "
            f"starting {utc_text(interval_start)}, but {promised} Wh would be promised"
        )
