"""Contract `book`: call auctions for each product and delivery interval.

Homes place orders into a book until it is closed. Placing, amending and cancelling read the book's
state, and closing writes it: an order that comes too late fails validation by itself, whatever its
clock says. A closed book never changes, so it is cleared in pages that any member may run, each
idempotent:

    Close -> Aggregate (pages of each zone) -> Clear -> Apply (the same pages)

Each order's fill is a function of the order, of what stands before it, and of the result.
Applying only shortens holds and notes the fills; energy and money change hands at settlement.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, cast

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    NotFound,
    RequestId,
    Text,
    TransactionId,
    canonical_json,
    query,
    stored_record,
    transaction,
    under,
)

from . import access, agreements, settings
from .agreements import Agreement, Version
from .auction import Clearing, Margin, Side, ZonalClearing, ZoneBook, clear_zones
from .clock import utc_text
from .delegations import Actor, actor_for
from .money import ceiling_micro
from .pages import Bookmark, page
from .positions import (
    OpenOrder,
    Position,
    check_capacity,
    position_of,
    store_position,
)
from .products import Product, check_terms, product_at
from .registry import connection_of, energy_settings
from .settings import Price
from .wallet import Hold, Ledger, Shard, pending_hold

PAGE_ORDERS = 1000
"""Orders of one page: an Apply of so many stays below 2 MB and 2 s."""
MAX_LEVELS = 2 * PAGE_ORDERS
MAX_BEFORE_S = 14 * 86_400
"""How long before delivery an order may be placed."""
_BIAS = 10**10
_KEY_DIGITS = 11

OrderEnergy = Annotated[int, Integer(1, 10**9, "Wh")]
Energy = Annotated[int, Integer(0, 10**15, "Wh")]
OrderSide = Annotated[str, Choice("bid", "offer")]
OrderState = Annotated[str, Choice("open", "cancelled", "cleared", "void")]
PageNumber = Annotated[int, Integer(0, 999_999)]
HubPrice = Annotated[int, Integer(-(10**10), 10**10, "micro-units per kWh")]
_Key = Annotated[str, Text(r"[A-Za-z0-9/-]{0,300}", "a key")]


@dataclass(frozen=True, slots=True)
class Order:
    """An order, and once its book is cleared, what became of it."""

    order_id: RequestId
    connection_id: Identifier
    zone: Identifier
    product: Identifier
    interval_start: Instant
    side: OrderSide
    price_micro_per_kwh: Price
    """A bid's highest price, fees included; an offer's lowest, fees taken off."""
    energy_wh: OrderEnergy
    hold_micro: Annotated[int, Integer(0, 10**15, "micro-units")]
    """What is set aside for it."""
    state: OrderState
    transaction_id: TransactionId
    """Of its last change by its owner."""
    local_wh: Energy = 0
    """Traded within its zone, at `local_price`."""
    local_price: HubPrice | None = None
    """What this order pays or gets for each kWh, fees included."""
    hub_wh: Energy = 0
    hub_price: HubPrice | None = None
    acted_by: Identifier | None = None
    """The trader that placed or changed it last, under a delegation."""

    @property
    def filled_wh(self) -> int:
        """What it trades."""
        return self.local_wh + self.hub_wh

    @property
    def hold_id(self) -> str:
        """Id of its hold; ids of orders are unique for each interval only."""
        return f"order-{self.interval_start}-{self.order_id}"[:80]


@dataclass(frozen=True, slots=True)
class BookState:
    """A closed book; an open one has no state."""

    closed_at: Instant
    product_version: Version


@dataclass(frozen=True, slots=True)
class Level:
    """The energy at one price."""

    price_micro_per_kwh: Price
    energy_wh: Energy


@dataclass(frozen=True, slots=True)
class PageSum:
    """One page of a zone's book, summed."""

    first_key: _Key
    next_key: _Key
    """Where the next page begins; empty on the last."""
    orders: Annotated[int, Integer(0, PAGE_ORDERS)]
    bids: Annotated[tuple[Level, ...], AtMost(MAX_LEVELS)]
    offers: Annotated[tuple[Level, ...], AtMost(MAX_LEVELS)]


@dataclass(frozen=True, slots=True)
class MarginRecord:
    """See `auction.Margin`."""

    price: HubPrice
    energy_wh: Energy
    accepted_wh: Energy


@dataclass(frozen=True, slots=True)
class ClearingRecord:
    """See `auction.Clearing`."""

    volume_wh: Energy
    price: HubPrice | None
    lowest_price: HubPrice | None
    highest_price: HubPrice | None
    bid_margin: MarginRecord | None
    offer_margin: MarginRecord | None

    @classmethod
    def of(cls, clearing: Clearing) -> ClearingRecord:
        """As stored."""

        def margin(found: Margin | None) -> MarginRecord | None:
            if found is None:
                return None
            return MarginRecord(found.price, found.energy_wh, found.accepted_wh)

        return cls(
            clearing.volume_wh,
            clearing.price,
            clearing.lowest_price,
            clearing.highest_price,
            margin(clearing.bid_margin),
            margin(clearing.offer_margin),
        )

    def clearing(self) -> Clearing:
        """As computed with."""

        def margin(found: MarginRecord | None) -> Margin | None:
            if found is None:
                return None
            return Margin(found.price, found.energy_wh, found.accepted_wh)

        return Clearing(
            self.volume_wh,
            self.price,
            self.lowest_price,
            self.highest_price,
            margin(self.bid_margin),
            margin(self.offer_margin),
        )


@dataclass(frozen=True, slots=True)
class ZoneResult:
    """What came of one zone's book."""

    zone: Identifier
    local: ClearingRecord
    bids_before_wh: Energy
    """At the hub's margin: what stands before this zone's bids there."""
    offers_before_wh: Energy


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of all zones' books of one product and interval."""

    product: Identifier
    interval_start: Instant
    product_version: Version
    void: bool
    """It wasn't cleared before its interval began: nobody trades."""
    zones: Annotated[tuple[ZoneResult, ...], AtMost(64)]
    hub: ClearingRecord | None


def _interval_key(product: str, interval_start: int) -> str:
    return f"book/{product}/{interval_start:012d}"


def _zone_key(zone: str, product: str, interval_start: int) -> str:
    return f"{zone}/{product}/{interval_start:012d}"


def order_key(connection_id: str, interval_start: int, order_id: str) -> str:
    """Where an order is kept."""
    return f"order/{connection_id}/{interval_start:012d}/{order_id}"


def _place_key(order: Order) -> str:
    """The order's place in its book: in key order the best price comes first, then the owner."""
    biased = _BIAS + order.price_micro_per_kwh
    if order.side == "bid":
        biased = 2 * _BIAS - biased
    return (
        f"o/{_zone_key(order.zone, order.product, order.interval_start)}/{order.side}/"
        f"{biased:0{_KEY_DIGITS}d}/{order.connection_id}/{order.order_id}"
    )


def _read_place(key: str) -> tuple[Side, int, str, str]:
    """(side, price, connection, order) of an order's place."""
    side, digits, connection_id, order_id = key.split("/")[4:]
    biased = int(digits)
    if side == "bid":
        return "bid", 2 * _BIAS - biased - _BIAS, connection_id, order_id
    return "offer", biased - _BIAS, connection_id, order_id


def _hold_micro(product: Product, side: str, price: int, energy_wh: int) -> int:
    """What an order may cost its owner at worst.

    A bid's price has its fees within it. An offer may have to pay for being taken (a negative
    price), and for what it doesn't deliver.
    """
    if side == "bid":
        return ceiling_micro(energy_wh, max(0, price))
    return ceiling_micro(energy_wh, max(0, -price) + product.shortfall_margin)


@dataclass(frozen=True, slots=True)
class _Placed:
    energy_wh: OrderEnergy


class Books(Contract):
    """Orders and auctions."""

    name: ClassVar[str] = "book"

    # Terms

    @transaction
    def propose_product(
        self, context: Context, *, terms: Product, effective_from: Instant
    ) -> Agreement:
        """Propose a version of a product; it holds once enough utilities have approved it."""
        check_terms(terms)
        channel = energy_settings(context)
        if effective_from % channel.interval_s:
            raise InvalidArgument(
                f"effective_from is {effective_from}, but must be a multiple of the channel's "
                f"interval of {channel.interval_s} s"
            )
        if effective_from <= settings.now(context, channel) + MAX_BEFORE_S and (
            agreements.exists(context, "product", terms.product)
        ):
            raise InvalidArgument(
                f"effective_from is {utc_text(effective_from)}, but orders may stand in books of "
                f"the next {MAX_BEFORE_S // 86_400} days already; let the new terms begin later"
            )
        return agreements.propose(context, "product", terms.product, effective_from, terms)

    @transaction
    def approve_product(
        self, context: Context, *, product: Identifier, version: Version
    ) -> Agreement:
        """Approve a version of a product for the caller's utility."""
        return agreements.approve(context, "product", product, version)

    @query
    def product(
        self, context: Context, *, product: Identifier, at: Instant | None = None
    ) -> Product:
        """The terms of a product for delivery at an instant; without one, now."""
        if at is None:
            at = settings.now(context, energy_settings(context))
        return product_at(context, product, at)

    # Orders

    @transaction
    def place(
        self,
        context: Context,
        *,
        order_id: RequestId,
        connection_id: Identifier,
        product: Identifier,
        interval_start: Instant,
        side: OrderSide,
        price_micro_per_kwh: Price,
        energy_wh: OrderEnergy,
        shard: Shard = 0,
        delegation: Identifier | None = None,
    ) -> Order:
        """Place an order; the same again gives the same order."""
        actor = self._actor(context, connection_id, delegation)
        key = order_key(connection_id, interval_start, order_id)
        stored = context.get_state(key)
        if stored is not None:
            order = stored_record(Order, stored)
            if (
                order.product,
                order.side,
                order.price_micro_per_kwh,
                order.energy_wh,
            ) != (product, side, price_micro_per_kwh, energy_wh):
                raise Conflict(
                    f"order_id {order_id} is another order of {connection_id} in this interval; "
                    "give each its own"
                )
            return order
        terms = self._open_book(context, product, interval_start)
        terms.check_price(price_micro_per_kwh)
        hold = _hold_micro(terms, side, price_micro_per_kwh, energy_wh)
        order = Order(
            order_id,
            connection_id,
            actor.connection.zone,
            product,
            interval_start,
            side,
            price_micro_per_kwh,
            energy_wh,
            hold,
            "open",
            context.transaction_id,
            acted_by=actor.acted_by,
        )
        position = current_position(context, connection_id, interval_start)
        self._enter(context, actor, order, position)
        if hold:
            self._ledger_of_hold(context, order, None, str(shard)).write()
        context.put_state(key, canonical_json(order))
        return order

    @transaction
    def amend(
        self,
        context: Context,
        *,
        order_id: RequestId,
        connection_id: Identifier,
        interval_start: Instant,
        price_micro_per_kwh: Price,
        energy_wh: OrderEnergy,
        shard: Shard = 0,
        delegation: Identifier | None = None,
    ) -> Order:
        """Change an open order's price and energy."""
        actor = self._actor(context, connection_id, delegation)
        old = self._open_order(context, connection_id, interval_start, order_id)
        if (old.price_micro_per_kwh, old.energy_wh) == (price_micro_per_kwh, energy_wh):
            return old
        terms = self._open_book(context, old.product, interval_start)
        terms.check_price(price_micro_per_kwh)
        order = replace(
            old,
            price_micro_per_kwh=price_micro_per_kwh,
            energy_wh=energy_wh,
            hold_micro=_hold_micro(terms, old.side, price_micro_per_kwh, energy_wh),
            transaction_id=context.transaction_id,
            acted_by=actor.acted_by,
        )
        context.del_state(_place_key(old))
        position = current_position(context, connection_id, interval_start).without_order(order_id)
        self._enter(context, actor, order, position)
        if old.hold_micro or order.hold_micro:
            self._ledger_of_hold(context, order, old, str(shard)).write()
        context.put_state(order_key(connection_id, interval_start, order_id), canonical_json(order))
        return order

    @transaction
    def cancel(
        self,
        context: Context,
        *,
        order_id: RequestId,
        connection_id: Identifier,
        interval_start: Instant,
        delegation: Identifier | None = None,
    ) -> Order:
        """Take an open order back; again changes nothing."""
        actor = self._actor(context, connection_id, delegation)
        key = order_key(connection_id, interval_start, order_id)
        stored = context.get_state(key)
        if stored is not None and stored_record(Order, stored).state == "cancelled":
            return stored_record(Order, stored)
        old = self._open_order(context, connection_id, interval_start, order_id)
        self._open_book(context, old.product, interval_start)
        order = replace(
            old,
            state="cancelled",
            transaction_id=context.transaction_id,
            acted_by=actor.acted_by,
        )
        context.del_state(_place_key(old))
        position = current_position(context, connection_id, interval_start).without_order(order_id)
        store_position(context, connection_id, interval_start, position)
        if old.hold_micro:
            ledger = Ledger(context, settings.now(context, energy_settings(context)))
            ledger.end_hold(pending_hold(context, connection_id, old.hold_id), "voided")
            ledger.write()
        context.put_state(key, canonical_json(order))
        return order

    @staticmethod
    def _actor(context: Context, connection_id: str, delegation: str | None) -> Actor:
        return actor_for(context, connection_id, "order", delegation, f"trade for {connection_id}")

    @staticmethod
    def _open_order(
        context: Context, connection_id: str, interval_start: int, order_id: str
    ) -> Order:
        stored = context.get_state(order_key(connection_id, interval_start, order_id))
        if stored is None:
            raise NotFound(
                f"{connection_id} has no order {order_id} in the interval starting "
                f"{utc_text(interval_start)}"
            )
        order = stored_record(Order, stored)
        if order.state != "open":
            raise Conflict(f"order {order_id} of {connection_id} is {order.state}, not open")
        return order

    @staticmethod
    def _open_book(context: Context, product: str, interval_start: int) -> Product:
        """The book's terms; reads its state, so that closing it makes this transaction fail."""
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
        terms = product_at(context, product, interval_start)
        state = context.get_state(f"{_interval_key(product, interval_start)}/state")
        if state is not None:
            closed_at = stored_record(BookState, state).closed_at
            raise Conflict(
                f"the book of {product} for {utc_text(interval_start)} was closed at "
                f"{utc_text(closed_at)}"
            )
        return terms

    @staticmethod
    def _enter(context: Context, actor: Actor, order: Order, position: Position) -> None:
        """Put an order into its book and its owner's position."""
        position = position.with_order(
            OpenOrder(
                order.order_id,
                order.product,
                order.side,
                order.price_micro_per_kwh,
                order.energy_wh,
            )
        )
        check_capacity(
            actor.connection,
            position,
            order.side,
            order.interval_start,
            energy_settings(context).interval_s,
        )
        actor.check(order.side, order.price_micro_per_kwh, position.promised_wh(order.side))
        store_position(context, order.connection_id, order.interval_start, position)
        context.put_state(_place_key(order), canonical_json(_Placed(order.energy_wh)))

    @staticmethod
    def _ledger_of_hold(context: Context, order: Order, old: Order | None, shard: str) -> Ledger:
        """Set aside what an order needs, or the difference to what it needed before."""
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        if old is not None and old.hold_micro:
            hold = pending_hold(context, old.connection_id, old.hold_id)
            if order.hold_micro:
                ledger.change_hold(hold, order.hold_micro, shard)
            else:
                ledger.end_hold(hold, "voided")
            return ledger
        ledger.hold(
            Hold(
                order.connection_id,
                order.hold_id,
                order.hold_micro,
                "ORDER",
                order.interval_start + HOLD_AFTER_S,
                "pending",
            ),
            shard,
        )
        return ledger

    # Auctions

    @transaction
    def close(self, context: Context, *, product: Identifier, interval_start: Instant) -> BookState:
        """Close the books of a product and interval in all zones; again changes nothing."""
        self._require_member(context)
        key = f"{_interval_key(product, interval_start)}/state"
        stored = context.get_state(key)
        if stored is not None:
            return stored_record(BookState, stored)
        terms = product_at(context, product, interval_start)
        now = settings.now(context, energy_settings(context))
        gate = interval_start - terms.gate_closure_s
        if now < gate:
            raise Conflict(
                f"the book of {product} for {utc_text(interval_start)} stays open until "
                f"{utc_text(gate)}, and the channel's time is {utc_text(now)}"
            )
        state = BookState(now, agreements.version_at(context, "product", product, interval_start))
        context.put_state(key, canonical_json(state))
        context.set_event(
            "book_closed",
            canonical_json({"product": product, "interval_start": interval_start}),
        )
        return state

    @transaction
    def aggregate(
        self,
        context: Context,
        *,
        product: Identifier,
        interval_start: Instant,
        zone: Identifier,
        page: PageNumber,
    ) -> PageSum:
        """Sum the next page of a closed book by price; again changes nothing."""
        self._require_member(context)
        _, terms = self._closed(context, product, interval_start)
        terms.zone_of(zone)
        book = _zone_key(zone, product, interval_start)
        key = f"agg/{book}/{page:06d}"
        stored = context.get_state(key)
        if stored is not None:
            return stored_record(PageSum, stored)
        first, end = under(f"o/{book}/")
        if page:
            before = self._page(context, book, page - 1)
            if not before.next_key:
                raise Conflict(f"page {page - 1} is the last of the book {book}")
            first = before.next_key
        levels: dict[Side, dict[int, int]] = {"bid": {}, "offer": {}}
        count = 0
        following = ""
        for place, value in context.range(first, end):
            if count == PAGE_ORDERS:
                following = place
                break
            side, price, _, _ = _read_place(place)
            energy_wh = stored_record(_Placed, value).energy_wh
            levels[side][price] = levels[side].get(price, 0) + energy_wh
            count += 1
        summed = PageSum(
            first,
            following,
            count,
            tuple(Level(price, wh) for price, wh in sorted(levels["bid"].items())),
            tuple(Level(price, wh) for price, wh in sorted(levels["offer"].items())),
        )
        context.put_state(key, canonical_json(summed))
        return summed

    @transaction
    def clear(self, context: Context, *, product: Identifier, interval_start: Instant) -> Result:
        """Find prices and volumes once all pages are summed; again changes nothing."""
        self._require_member(context)
        key = f"{_interval_key(product, interval_start)}/result"
        stored = context.get_state(key)
        if stored is not None:
            return stored_record(Result, stored)
        version, terms = self._closed(context, product, interval_start)
        now = settings.now(context, energy_settings(context))
        if now >= interval_start:
            result = Result(product, interval_start, version, True, (), None)
        else:
            books: dict[str, ZoneBook] = {}
            for zone in terms.zones:
                demand: dict[int, int] = {}
                supply: dict[int, int] = {}
                for summed in self._pages(context, _zone_key(zone.zone, product, interval_start)):
                    for levels, total in ((summed.bids, demand), (summed.offers, supply)):
                        for level in levels:
                            price = level.price_micro_per_kwh
                            total[price] = total.get(price, 0) + level.energy_wh
                books[zone.zone] = ZoneBook(
                    demand, supply, zone.local_fee, zone.entry_fee, zone.exit_fee
                )
            outcome = clear_zones(
                books, cast("Literal['middle', 'lowest', 'highest']", terms.price_rule)
            )
            result = Result(
                product,
                interval_start,
                version,
                False,
                tuple(
                    ZoneResult(
                        zone.zone,
                        ClearingRecord.of(outcome.local[zone.zone]),
                        outcome.hub_offsets[zone.zone, "bid"],
                        outcome.hub_offsets[zone.zone, "offer"],
                    )
                    for zone in terms.zones
                ),
                ClearingRecord.of(outcome.hub),
            )
        context.put_state(key, canonical_json(result))
        context.set_event("book_cleared", canonical_json(result))
        return result

    @transaction
    def apply(
        self,
        context: Context,
        *,
        product: Identifier,
        interval_start: Instant,
        zone: Identifier,
        page: PageNumber,
    ) -> dict[str, Any]:
        """Note the fills of one page and give back what its orders no longer need set aside."""
        self._require_member(context)
        book = _zone_key(zone, product, interval_start)
        applied = f"applied/{book}/{page:06d}"
        result = self._result(context, product, interval_start)
        if context.get_state(applied) is not None:
            return {"book": book, "page": page, "orders": 0}
        summed = self._page(context, book, page)
        terms = agreements.terms_of(context, "product", product, result.product_version, Product)
        outcome = None if result.void else _outcome(terms, result)
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        count = 0
        for order, before_wh in self._orders_of(context, book, page, summed):
            filled = _filled(terms, outcome, order, before_wh)
            if order.hold_micro:
                hold = pending_hold(context, order.connection_id, order.hold_id)
                if filled.hold_micro:
                    ledger.change_hold(hold, filled.hold_micro, "0")
                else:
                    ledger.end_hold(hold, "voided")
            context.put_state(
                order_key(order.connection_id, interval_start, order.order_id),
                canonical_json(filled),
            )
            count += 1
        ledger.write()
        context.put_state(applied, canonical_json({"orders": count}))
        return {"book": book, "page": page, "orders": count}

    def _orders_of(
        self, context: Context, book: str, number: int, summed: PageSum
    ) -> Iterator[tuple[Order, int]]:
        """The orders of a page, each with the sum before it at its side and price."""
        running: tuple[Side, int] | None = None
        before_wh = 0
        end = summed.next_key or under(f"o/{book}/")[1]
        interval_start = int(book.rpartition("/")[2])
        for place, value in context.range(summed.first_key, end):
            side, price, connection_id, order_id = _read_place(place)
            if running is None:
                before_wh = self._sum_before(context, book, number, side, price)
            elif running != (side, price):
                before_wh = 0
            running = side, price
            stored = context.get_state(order_key(connection_id, interval_start, order_id))
            assert stored is not None, "what stands in a book is kept by its owner"
            yield stored_record(Order, stored), before_wh
            before_wh += stored_record(_Placed, value).energy_wh

    def _sum_before(self, context: Context, book: str, number: int, side: Side, price: int) -> int:
        """What earlier pages hold at a price: its orders may reach over several."""
        total = 0
        for earlier in range(number - 1, -1, -1):
            summed = self._page(context, book, earlier)
            levels = summed.bids if side == "bid" else summed.offers
            found = [level.energy_wh for level in levels if level.price_micro_per_kwh == price]
            if not found:
                break
            total += found[0]
        return total

    @staticmethod
    def _require_member(context: Context) -> None:
        utility = context.creator.msp_id
        access.require(
            access.is_operator(context.creator, utility),
            context.creator,
            "run auctions",
            "operators of any utility",
        )

    @staticmethod
    def _closed(context: Context, product: str, interval_start: int) -> tuple[int, Product]:
        """The version of the terms that a book was closed under, and the terms."""
        stored = context.get_state(f"{_interval_key(product, interval_start)}/state")
        if stored is None:
            raise Conflict(
                f"the book of {product} for {utc_text(interval_start)} is open; book:Close first"
            )
        version = stored_record(BookState, stored).product_version
        return version, agreements.terms_of(context, "product", product, version, Product)

    @staticmethod
    def _page(context: Context, book: str, number: int) -> PageSum:
        stored = context.get_state(f"agg/{book}/{number:06d}")
        if stored is None:
            raise Conflict(f"page {number} of the book {book} isn't summed; book:Aggregate first")
        return stored_record(PageSum, stored)

    def _pages(self, context: Context, book: str) -> Iterator[PageSum]:
        """All pages of a zone's book; raises Conflict unless the last is there."""
        number = 0
        while True:
            summed = self._page(context, book, number)
            yield summed
            if not summed.next_key:
                return
            number += 1

    @staticmethod
    def _result(context: Context, product: str, interval_start: int) -> Result:
        stored = context.get_state(f"{_interval_key(product, interval_start)}/result")
        if stored is None:
            raise Conflict(
                f"the book of {product} for {utc_text(interval_start)} isn't cleared; "
                "book:Clear first"
            )
        return stored_record(Result, stored)

    # Looking

    @query
    def state(
        self, context: Context, *, product: Identifier, interval_start: Instant
    ) -> dict[str, Any]:
        """How far a product's books of an interval are."""
        state = context.get_state(f"{_interval_key(product, interval_start)}/state")
        result = context.get_state(f"{_interval_key(product, interval_start)}/result")
        return {
            "product": product,
            "interval_start": interval_start,
            "closed": None if state is None else stored_record(BookState, state),
            "result": None if result is None else stored_record(Result, result),
        }

    @query
    def depth(
        self,
        context: Context,
        *,
        product: Identifier,
        interval_start: Instant,
        zone: Identifier,
        levels: Annotated[int, Integer(1, 100)] = 20,
    ) -> dict[str, Any]:
        """The best price levels of a zone's book, without names."""
        product_at(context, product, interval_start).zone_of(zone)
        book = _zone_key(zone, product, interval_start)
        sides: dict[str, list[Level]] = {}
        for name, side in (("bids", "bid"), ("offers", "offer")):
            found: list[Level] = []
            for place, value in context.range(*under(f"o/{book}/{side}/")):
                price = _read_place(place)[1]
                energy_wh = stored_record(_Placed, value).energy_wh
                if found and found[-1].price_micro_per_kwh == price:
                    found[-1] = Level(price, found[-1].energy_wh + energy_wh)
                elif len(found) == levels:
                    break
                else:
                    found.append(Level(price, energy_wh))
            sides[name] = found
        return {"book": book, **sides}

    @query
    def orders(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        from_: Instant = 0,
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """A connection's orders for intervals from `from` on, with what became of them."""
        connection = connection_of(context, connection_id)
        access.require(
            access.is_home(context.creator, connection.utility, connection_id)
            or access.is_operator(context.creator, connection.utility),
            context.creator,
            f"read orders of {connection_id}",
            f"its home and operators of {connection.utility}",
        )
        items, following = page(
            context, f"order/{connection_id}/", f"{from_:012d}", limit, bookmark
        )
        return {
            "orders": [stored_record(Order, value) for _, value in items],
            "bookmark": following,
        }


HOLD_AFTER_S = 60 * 86_400
"""How long after delivery an order's hold lasts at most: settlement ends it long before."""


def current_position(context: Context, connection_id: str, interval_start: int) -> Position:
    """A connection's position, with the orders of books that have cleared as they came out."""
    position = position_of(context, connection_id, interval_start)
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
    return position


def _outcome(terms: Product, result: Result) -> ZonalClearing:
    """A stored result as what fills are computed with; the books' histograms aren't needed."""
    assert result.hub is not None
    offsets: dict[tuple[str, Side], int] = {}
    for zone in result.zones:
        offsets[zone.zone, "bid"] = zone.bids_before_wh
        offsets[zone.zone, "offer"] = zone.offers_before_wh
    return ZonalClearing(
        {zone.zone: zone.local.clearing() for zone in result.zones},
        result.hub.clearing(),
        {
            zone.zone: ZoneBook({}, {}, zone.local_fee, zone.entry_fee, zone.exit_fee)
            for zone in terms.zones
        },
        offsets,
    )


def _filled(terms: Product, outcome: ZonalClearing | None, order: Order, before_wh: int) -> Order:
    """An order with what it trades and what it still needs set aside; no outcome: void."""
    if outcome is None:
        return replace(order, state="void", hold_micro=0)
    side = cast("Side", order.side)
    fill = outcome.fill(order.zone, side, order.price_micro_per_kwh, order.energy_wh, before_wh)
    zone = terms.zone_of(order.zone)
    local, hub = outcome.local[order.zone].price, outcome.hub.price
    if side == "bid":
        local_price = None if local is None else local + zone.local_fee
        hub_price = None if hub is None else hub + zone.entry_fee
    else:
        local_price = local
        hub_price = None if hub is None else hub - zone.exit_fee
    filled = replace(
        order,
        state="cleared",
        local_wh=fill.local_wh,
        local_price=local_price if fill.local_wh else None,
        hub_wh=fill.hub_wh,
        hub_price=hub_price if fill.hub_wh else None,
    )
    return replace(filled, hold_micro=min(order.hold_micro, _still_held(terms, filled)))


def _still_held(terms: Product, order: Order) -> int:
    """What a cleared order must keep set aside until settlement."""
    if order.side == "bid":
        parts = ((order.local_wh, order.local_price), (order.hub_wh, order.hub_price))
        return sum(ceiling_micro(wh, max(0, price or 0)) for wh, price in parts)
    return sum(
        ceiling_micro(wh, max(0, -(price or 0)) + terms.shortfall_margin)
        for wh, price in (
            (order.local_wh, order.local_price),
            (order.hub_wh, order.hub_price),
        )
    )
