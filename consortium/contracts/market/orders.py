"""Orders of all books: their records and keys, what they set aside, what they count for.

An order's record is written by its owner while its book is open and by whoever clears the book
afterwards; in a continuous book by its owner once, and then by the matcher alone. What an owner has
standing is in its position (`positions.py`), which the owner alone writes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    ContractError,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    MspId,
    NotFound,
    RequestId,
    TransactionId,
    canonical_json,
    stored_record,
)

from ..assets.wallet import Hold, Ledger, pending_hold
from ..common import settings
from ..common.agreements import Version
from ..common.clock import utc_text
from ..common.money import ceiling_micro
from ..common.settings import Price
from ..registry.delegations import Actor
from ..registry.registry import Connection, energy_settings
from . import caps
from .auction import Side
from .bilateral import contracted
from .positions import OpenOrder, Position, check_capacity, position_of, store_position
from .products import Product, product_at

MAX_BEFORE_S = 14 * 86_400
"""How long before delivery an order may be placed."""
HOLD_AFTER_S = 60 * 86_400
"""How long after delivery an order's hold lasts at most: settlement ends it long before."""
MAX_ATTRIBUTES = 8
_BIAS = 10**10
_KEY_DIGITS = 11

OrderEnergy = Annotated[int, Integer(1, 10**9, "Wh")]
Energy = Annotated[int, Integer(0, 10**15, "Wh")]
OrderSide = Annotated[str, Choice("bid", "offer")]
OrderState = Annotated[str, Choice("open", "cancelled", "cleared", "void")]
HubPrice = Annotated[int, Integer(-(10**10), 10**10, "micro-units per kWh")]
Money = Annotated[int, Integer(0, 10**15, "micro-units")]
Attributes = Annotated[tuple[Identifier, ...], AtMost(MAX_ATTRIBUTES)]
Amendment = Annotated[int, Integer(0, 999)]


@dataclass(frozen=True, slots=True)
class Order:
    """An order, and what became of it."""

    order_id: RequestId
    connection_id: Identifier
    zone: Identifier
    product: Identifier
    interval_start: Instant
    side: OrderSide
    price_micro_per_kwh: Price
    """A bid's highest price, fees included; an offer's lowest, fees taken off."""
    energy_wh: OrderEnergy
    hold_micro: Money
    """What is set aside for it."""
    state: OrderState
    """void: its book was not cleared in time."""
    transaction_id: TransactionId
    """Of its last change by its owner."""
    local_wh: Energy = 0
    """Traded within its zone, at `local_price`."""
    local_price: HubPrice | None = None
    """What this order pays or gets for each kWh, the grid's fees included."""
    hub_wh: Energy = 0
    hub_price: HubPrice | None = None
    acted_by: Identifier | None = None
    """The trader that placed or changed it last, under a delegation."""
    matched_by: MspId | None = None
    """Whose operator cleared it last: it receives the product's matching fee."""
    matching_micro: Money = 0
    """What a bid has paid for matching, out of its hold."""
    attributes: Attributes = ()
    partner: Identifier | None = None
    """Of a continuous book: see `continuous.Order`."""
    sequence: Annotated[int, Integer(0, 10**12)] = 0
    """Of a continuous book: its place in time; 0 before a matcher has taken it up."""
    matched_wh: Energy = 0
    """Of a continuous book: what it has traded; each fill stands under `fill/`."""
    due_micro: Money = 0
    """Of a continuous book: what its fills need set aside."""
    amendment: Amendment = 0
    """Of a continuous book: how many amendments have been taken up."""
    gift: Identifier | None = None
    """Of a continuous book: see `continuous.Order`."""

    @property
    def filled_wh(self) -> int:
        """What it trades."""
        return self.local_wh + self.hub_wh + self.matched_wh

    @property
    def hold_id(self) -> str:
        """Id of its hold; ids of orders are unique for each interval only."""
        return hold_id(self.interval_start, self.order_id)


def hold_id(interval_start: int, order_id: str, amendment: int = 0) -> str:
    """Id of the hold of an order, or of what one of its amendments sets aside besides."""
    number = f"{amendment}-" if amendment else ""
    return f"order-{number}{interval_start}-{order_id}"[:80]


@dataclass(frozen=True, slots=True)
class BookState:
    """A closed book; an open one has no state."""

    closed_at: Instant
    """By the clock of who closed it."""
    product_version: Version
    reveal_until: Instant | None = None
    """Of a sealed book: when revealing may end, counted in gates (`sealed.reveal_until`)."""


@dataclass(frozen=True, slots=True)
class Placed:
    """What stands at an order's place in an auction's book."""

    energy_wh: OrderEnergy


# Keys


def interval_key(product: str, interval_start: int) -> str:
    """Where what concerns a product's books of an interval is kept, in all zones."""
    return f"book/{product}/{interval_start:012d}"


def zone_key(zone: str, product: str, interval_start: int) -> str:
    """The name of one zone's book."""
    return f"{zone}/{product}/{interval_start:012d}"


def order_key(connection_id: str, interval_start: int, order_id: str) -> str:
    """Where an order is kept."""
    return f"order/{connection_id}/{interval_start:012d}/{order_id}"


def price_digits(side: str, price: int) -> str:
    """A price as digits that sort as priority does: a side's best price comes first."""
    return f"{_BIAS + (price if side == 'offer' else -price):0{_KEY_DIGITS}d}"


def read_price(side: str, digits: str) -> int:
    """The price of `price_digits`."""
    biased = int(digits) - _BIAS
    return biased if side == "offer" else -biased


def place_key(order: Order) -> str:
    """The order's place in its book: in key order the best price comes first, then the owner."""
    return (
        f"o/{zone_key(order.zone, order.product, order.interval_start)}/{order.side}/"
        f"{price_digits(order.side, order.price_micro_per_kwh)}/{order.connection_id}/"
        f"{order.order_id}"
    )


def read_place(key: str) -> tuple[Side, int, str, str]:
    """(side, price, connection, order) of an order's place."""
    side, digits, connection_id, order_id = key.split("/")[4:]
    return ("bid" if side == "bid" else "offer"), read_price(side, digits), connection_id, order_id


# Rules


def needed_micro(product: Product, side: str, price: int, energy_wh: int) -> int:
    """What an order, or a fill, may cost its owner at worst.

    A bid's price has its fees within it, and the matching fee is paid whatever the price is. An
    offer may have to pay for being taken (a negative price), and for what it doesn't deliver.
    """
    if side == "bid":
        return ceiling_micro(energy_wh, max(price, product.matching_fee))
    return ceiling_micro(energy_wh, max(0, -price) + product.shortfall_margin)


def due_micro(product: Product, side: str, price: int, energy_wh: int) -> int:
    """What a fill keeps set aside until settlement, its matching fee paid."""
    if side == "bid":
        return ceiling_micro(energy_wh, max(0, price))
    return needed_micro(product, side, price, energy_wh)


def hold_for(
    connection_id: str, interval_start: int, order_id: str, amount_micro: int, amendment: int = 0
) -> Hold:
    """What sets money aside for an order, or for one of its amendments."""
    return Hold(
        connection_id,
        hold_id(interval_start, order_id, amendment),
        amount_micro,
        "ORDER",
        interval_start + HOLD_AFTER_S,
        "pending",
    )


def stored_order(context: Context, connection_id: str, interval_start: int, order_id: str) -> Order:
    """An order; raises NotFound."""
    stored = context.get_state(order_key(connection_id, interval_start, order_id))
    if stored is None:
        raise NotFound(
            f"{connection_id} has no order {order_id} in the interval starting "
            f"{utc_text(interval_start)}"
        )
    return stored_record(Order, stored)


def closed_state(context: Context, product: str, interval_start: int) -> BookState | None:
    """When a book was closed; None if it is open."""
    stored = context.get_state(f"{interval_key(product, interval_start)}/state")
    return None if stored is None else stored_record(BookState, stored)


def check_interval(context: Context, interval_start: int) -> None:
    """Raise InvalidArgument unless an interval is the channel's and may be traded now."""
    channel = energy_settings(context)
    if interval_start % channel.interval_s:
        raise InvalidArgument(
            f"interval_start is {interval_start} ({utc_text(interval_start)}), but must be a "
            f"multiple of the channel's interval of {channel.interval_s} s"
        )
    now = settings.now(context, channel)
    if not now < interval_start <= now + MAX_BEFORE_S:
        raise InvalidArgument(
            f"interval_start is {utc_text(interval_start)}, but must lie after the channel's "
            f"time, {utc_text(now)}, and within {MAX_BEFORE_S // 86_400} days of it"
        )


def open_book(context: Context, product: str, interval_start: int) -> Product:
    """The book's terms; reads its state, so that closing it makes this transaction fail.

    Raises:
        InvalidArgument: the interval isn't the channel's, or can't be traded now.
        NotFound: there is no such product.
        Conflict: the book is closed.
    """
    check_interval(context, interval_start)
    terms = product_at(context, product, interval_start)
    state = closed_state(context, product, interval_start)
    if state is not None:
        raise Conflict(
            f"the book of {product} for {utc_text(interval_start)} was closed at "
            f"{utc_text(state.closed_at)}"
        )
    return terms


# Positions


def current_position(context: Context, connection_id: str, interval_start: int) -> Position:
    """A connection's position, with those orders that are done with as they came out."""
    position = with_contracts(
        context, connection_id, interval_start, position_of(context, connection_id, interval_start)
    )
    for standing in position.orders:
        stored = context.get_state(order_key(connection_id, interval_start, standing.order_id))
        assert stored is not None, "a position's orders are kept"
        found = stored_record(Order, stored)
        if found.state != "open":
            position = position.without_order(standing.order_id)
            if found.side == "offer":
                position = replace(position, sold_wh=position.sold_wh + found.filled_wh)
            else:
                position = replace(position, bought_wh=position.bought_wh + found.filled_wh)
        elif standing.amendments and standing.amendments == found.amendment:
            # The amendment was taken up: from now on it counts for what it is.
            position = position.without_order(standing.order_id)
            settled = replace(
                standing,
                price_micro_per_kwh=found.price_micro_per_kwh,
                energy_wh=found.energy_wh,
            )
            position = replace(position, orders=(*position.orders, settled))
    return position


def with_contracts(
    context: Context, connection_id: str, interval_start: int, position: Position
) -> Position:
    """A position with what bilateral contracts promise in its interval."""
    sold, bought = contracted(context, connection_id, interval_start)
    return replace(position, contract_sold_wh=sold, contract_bought_wh=bought)


def check_caps(
    context: Context, connection: Connection, position: Position, side: str, interval_start: int
) -> None:
    """Raise Conflict if a connection's new position is more than the agreed caps allow."""
    caps.check(
        context,
        connection,
        position,
        side,
        interval_start,
        lambda name: current_position(context, name, interval_start),
    )


def entered_position(
    context: Context,
    actor: Actor,
    interval_start: int,
    order: OpenOrder,
    change: Callable[[Position], Position] = lambda position: position,
) -> Position:
    """A connection's position with an order more, checked; `change` is applied before.

    What stands in the position counts in full at first, so that whoever clears or matches its other
    orders at the same time doesn't make this transaction fail; only where it doesn't fit so are
    those orders looked at.

    Raises:
        Conflict: the connection can't carry it, or it would trade with its owner's own order.
        LimitExceeded: too many orders.
        Forbidden: it is outside of a delegation.
    """
    connection_id = actor.connection.connection_id

    def entered(position: Position) -> Position:
        position = change(position).with_order(order)
        check_capacity(
            actor.connection,
            position,
            order.side,
            interval_start,
            energy_settings(context).interval_s,
        )
        check_caps(context, actor.connection, position, order.side, interval_start)
        actor.check(order.side, order.price_micro_per_kwh, position.promised_wh(order.side))
        return position

    position = with_contracts(
        context, connection_id, interval_start, position_of(context, connection_id, interval_start)
    )
    try:
        return entered(position)
    except ContractError:
        if not position.orders:
            raise
    return entered(current_position(context, connection_id, interval_start))


def standing(order: Order) -> OpenOrder:
    """An order as its owner's position has it."""
    return OpenOrder(
        order.order_id,
        order.product,
        order.side,
        order.price_micro_per_kwh,
        order.energy_wh,
        gift=order.gift,
    )


def set_aside(
    ledger: Ledger, context: Context, order: Order, old: Order | None, shard: str
) -> None:
    """Hold what an order needs, or the difference to what it needed before."""
    if old is not None and old.hold_micro:
        hold = pending_hold(context, old.connection_id, old.hold_id)
        if order.hold_micro:
            ledger.change_hold(hold, order.hold_micro, shard)
        else:
            ledger.end_hold(hold, "voided")
    elif order.hold_micro:
        hold = hold_for(order.connection_id, order.interval_start, order.order_id, order.hold_micro)
        ledger.hold(hold, shard)


def store_order(context: Context, order: Order) -> None:
    """Write an order's record."""
    context.put_state(
        order_key(order.connection_id, order.interval_start, order.order_id), canonical_json(order)
    )


def enter_auction(
    context: Context,
    actor: Actor,
    order: Order,
    shard: str,
    *,
    old: Order | None = None,
    ending: Hold | None = None,
) -> Order:
    """Put an order into an auction's book in place of `old`, with its hold and position.

    A hold that is `ending`, such as a pledge, goes back to its owner.
    """
    position = entered_position(
        context,
        actor,
        order.interval_start,
        standing(order),
        lambda before: before.without_order(order.order_id),
    )
    if old is not None:
        context.del_state(place_key(old))
    context.put_state(place_key(order), canonical_json(Placed(order.energy_wh)))
    store_position(context, order.connection_id, order.interval_start, position)
    ledger = Ledger(context, settings.now(context, energy_settings(context)))
    set_aside(ledger, context, order, old, shard)
    if ending is not None:
        ledger.end_hold(ending, "voided")
    ledger.write()
    store_order(context, order)
    return order
