"""Contract `book`: homes, plants and suppliers trade the energy of an interval in a product.

Owners place orders into a book until it is closed. Placing, amending and cancelling read the book's
state, and closing writes it: an order that comes too late fails validation by itself, whatever its
clock says. A product is traded in call auctions (`auctions.py`), whose orders are seen or sealed
(`sealed.py`), or continuously (`matching.py`). Here is what owners do, and what can be looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    Conflict,
    Context,
    Forbidden,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    MspId,
    RequestId,
    query,
    stored_record,
    transaction,
    under,
)

from ..assets.wallet import Ledger, Shard, pending_hold
from ..common import agreements, settings
from ..common.agreements import Agreement, Version
from ..common.clock import utc_text
from ..common.pages import Bookmark, listed
from ..common.settings import Price
from ..registry import homes
from ..registry.delegations import Actor, actor_for
from ..registry.registry import connection_of, energy_settings
from . import caps
from .auctions import Auctions, Level, Result, result_of
from .caps import Cap
from .chores import LOOK_BACK_S, Chore, chores
from .matching import Entry, Matching, Ticker, enter, levels_of
from .orders import (
    MAX_BEFORE_S,
    Attributes,
    Order,
    OrderEnergy,
    OrderSide,
    Placed,
    closed_state,
    enter_auction,
    entered_position,
    hold_for,
    needed_micro,
    open_book,
    order_key,
    place_key,
    read_place,
    standing,
    store_order,
    stored_order,
    zone_key,
)
from .positions import OpenOrder, position_of, store_position
from .products import Product, check_terms, product_at
from .sealed import Sealing
from .wishes import OwnTariff, never_worse

MAX_AMENDMENTS = 999
MAX_PRICES = 1000
"""Intervals of one query."""


@dataclass(frozen=True, slots=True)
class Requested:
    """What a matcher will do with an order of a continuous book."""

    order_id: RequestId
    connection_id: Identifier
    interval_start: Instant
    product: Identifier
    asked: str
    """amend or cancel."""


class Books(Auctions, Matching, Sealing):
    """Products, orders, and what can be seen of books."""

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

    @transaction
    def propose_cap(self, context: Context, *, terms: Cap, effective_from: Instant) -> Agreement:
        """Propose a cap on what somebody may hold of an interval in a zone."""
        caps.check_terms(terms)
        name = caps.name_of(terms.zone, terms.participant)
        return agreements.propose(context, caps.CAP, name, effective_from, terms)

    @transaction
    def approve_cap(
        self,
        context: Context,
        *,
        zone: Identifier,
        version: Version,
        participant: MspId | None = None,
    ) -> Agreement:
        """Approve a cap for the caller's utility."""
        return agreements.approve(context, caps.CAP, caps.name_of(zone, participant), version)

    @query
    def cap(
        self,
        context: Context,
        *,
        zone: Identifier,
        participant: MspId | None = None,
        at: Instant | None = None,
    ) -> Cap:
        """The cap that holds for delivery at an instant; without one, now."""
        if at is None:
            at = settings.now(context, energy_settings(context))
        return agreements.in_force(context, caps.CAP, caps.name_of(zone, participant), at, Cap)

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
        attributes: Attributes = (),
        partner: Identifier | None = None,
        never_worse_than: OwnTariff | None = None,
        gift: Identifier | None = None,
    ) -> Order:
        """Place an order; the same again gives the same order."""
        actor = self._actor(context, connection_id, delegation)
        price = price_micro_per_kwh
        if never_worse_than is not None:
            of_product = product_at(context, product, interval_start)
            price = never_worse(context, never_worse_than, of_product, interval_start, side, price)
        stored = context.get_state(order_key(connection_id, interval_start, order_id))
        if stored is not None:
            order = stored_record(Order, stored)
            if (
                order.product,
                order.side,
                order.price_micro_per_kwh,
                order.energy_wh,
                order.gift,
            ) != (product, side, price, energy_wh, gift):
                raise Conflict(
                    f"order_id {order_id} is another order of {connection_id} in this interval; "
                    "give each its own"
                )
            return order
        terms = open_book(context, product, interval_start)
        if terms.sealed:
            raise Conflict(f"{product} has sealed books; book:Seal puts a hidden order into one")
        terms.check_price(price)
        terms.zone_of(actor.connection.zone)
        self._check_wishes(terms, connection_id, attributes, partner)
        if gift is not None:
            _check_gift(context, actor, terms, gift, side, price, partner)
        order = Order(
            order_id,
            connection_id,
            actor.connection.zone,
            product,
            interval_start,
            side,
            price,
            energy_wh,
            needed_micro(terms, side, price, energy_wh),
            "open",
            context.transaction_id,
            acted_by=actor.acted_by,
            attributes=attributes,
            partner=partner,
            gift=gift,
        )
        if terms.trading == "auction":
            return enter_auction(context, actor, order, str(shard))
        position = entered_position(context, actor, interval_start, standing(order))
        store_position(context, connection_id, interval_start, position)
        if order.hold_micro:
            ledger = Ledger(context, settings.now(context, energy_settings(context)))
            ledger.hold(
                hold_for(connection_id, interval_start, order_id, order.hold_micro), str(shard)
            )
            ledger.write()
        store_order(context, order)
        enter(context, product, interval_start, Entry("order", connection_id, order_id))
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
    ) -> Order | Requested:
        """Change an open order's price and energy; a continuous book's matcher takes it up."""
        actor = self._actor(context, connection_id, delegation)
        found = self._standing(context, connection_id, interval_start, order_id)
        if (found.price_micro_per_kwh, found.energy_wh) == (price_micro_per_kwh, energy_wh) and (
            not found.amendments
        ):
            return stored_order(context, connection_id, interval_start, order_id)
        terms = open_book(context, found.product, interval_start)
        terms.check_price(price_micro_per_kwh)
        if found.gift is not None:
            _check_giving(actor, found.side, price_micro_per_kwh)
        if terms.trading == "continuous":
            return self._ask_to_amend(
                context,
                actor,
                terms,
                interval_start,
                found,
                price_micro_per_kwh,
                energy_wh,
                str(shard),
            )
        old = stored_order(context, connection_id, interval_start, order_id)
        order = replace(
            old,
            price_micro_per_kwh=price_micro_per_kwh,
            energy_wh=energy_wh,
            hold_micro=needed_micro(terms, old.side, price_micro_per_kwh, energy_wh),
            transaction_id=context.transaction_id,
            acted_by=actor.acted_by,
        )
        return enter_auction(context, actor, order, str(shard), old=old)

    @transaction
    def cancel(
        self,
        context: Context,
        *,
        order_id: RequestId,
        connection_id: Identifier,
        interval_start: Instant,
        delegation: Identifier | None = None,
    ) -> Order | Requested:
        """Take an open order back; again changes nothing."""
        actor = self._actor(context, connection_id, delegation)
        position = position_of(context, connection_id, interval_start)
        found = position.order(order_id)
        if found is None:
            order = stored_order(context, connection_id, interval_start, order_id)
            if order.state == "cancelled":
                return order
            raise Conflict(f"order {order_id} of {connection_id} is {order.state}, not open")
        if found.cancelling:
            return Requested(order_id, connection_id, interval_start, found.product, "cancel")
        terms = open_book(context, found.product, interval_start)
        if terms.trading == "continuous":
            entry = Entry("cancel", connection_id, order_id, acted_by=actor.acted_by)
            enter(context, found.product, interval_start, entry)
            position = position.with_changed(replace(found, cancelling=True))
            store_position(context, connection_id, interval_start, position)
            return Requested(order_id, connection_id, interval_start, found.product, "cancel")
        old = stored_order(context, connection_id, interval_start, order_id)
        order = replace(
            old,
            state="cancelled",
            transaction_id=context.transaction_id,
            acted_by=actor.acted_by,
        )
        context.del_state(place_key(old))
        store_position(context, connection_id, interval_start, position.without_order(order_id))
        if old.hold_micro:
            ledger = Ledger(context, settings.now(context, energy_settings(context)))
            ledger.end_hold(pending_hold(context, connection_id, old.hold_id), "voided")
            ledger.write()
        store_order(context, order)
        return order

    @staticmethod
    def _actor(context: Context, connection_id: str, delegation: str | None) -> Actor:
        return actor_for(context, connection_id, "order", delegation, f"trade for {connection_id}")

    @staticmethod
    def _check_wishes(
        terms: Product, connection_id: str, attributes: tuple[str, ...], partner: str | None
    ) -> None:
        if terms.trading == "auction" and (attributes or partner is not None):
            raise InvalidArgument(
                f"{terms.product} is traded in auctions, where orders have neither attributes nor "
                "partner: all trade at one price with one another; a product of its own can be "
                "green"
            )
        if list(attributes) != sorted(attributes) or any(
            attributes.count(one) > 1 for one in attributes
        ):
            raise InvalidArgument("attributes must be in order of their names, each once")
        if partner == connection_id:
            raise InvalidArgument(f"partner is {partner}, the order's own connection")

    @staticmethod
    def _standing(
        context: Context, connection_id: str, interval_start: int, order_id: str
    ) -> OpenOrder:
        """An order as its owner's position has it; raises NotFound, Conflict if it isn't open.

        The record of an order in a continuous book is the matcher's, so it isn't looked at.
        """
        found = position_of(context, connection_id, interval_start).order(order_id)
        if found is None:
            order = stored_order(context, connection_id, interval_start, order_id)
            raise Conflict(f"order {order_id} of {connection_id} is {order.state}, not open")
        if found.cancelling:
            raise Conflict(f"order {order_id} of {connection_id} is to be cancelled")
        return found

    @staticmethod
    def _ask_to_amend(
        context: Context,
        actor: Actor,
        terms: Product,
        interval_start: int,
        found: OpenOrder,
        price: int,
        energy_wh: int,
        shard: str,
    ) -> Requested:
        """Append an amendment, with a hold of its own unless it only asks for less energy.

        Until a matcher takes it up, the order counts with the larger energy and the price that is
        more ready to trade.
        """
        connection_id, order_id = actor.connection.connection_id, found.order_id
        number = found.amendments + 1
        if number > MAX_AMENDMENTS:
            raise Conflict(
                f"order {order_id} was amended {MAX_AMENDMENTS} times, the limit; cancel it and "
                "place another"
            )
        more_ready = max if found.side == "bid" else min
        counted = replace(
            found,
            price_micro_per_kwh=more_ready(price, found.price_micro_per_kwh),
            energy_wh=max(energy_wh, found.energy_wh),
            amendments=number,
        )
        position = entered_position(
            context,
            actor,
            interval_start,
            counted,
            lambda before: before.without_order(order_id),
        )
        store_position(context, connection_id, interval_start, position)
        hold = 0
        less = price == found.price_micro_per_kwh and energy_wh <= found.energy_wh
        if found.amendments or not less:
            hold = needed_micro(terms, found.side, price, energy_wh)
        if hold:
            ledger = Ledger(context, settings.now(context, energy_settings(context)))
            ledger.hold(hold_for(connection_id, interval_start, order_id, hold, number), shard)
            ledger.write()
        entry = Entry(
            "amend", connection_id, order_id, price, energy_wh, hold, number, actor.acted_by
        )
        enter(context, terms.product, interval_start, entry)
        return Requested(order_id, connection_id, interval_start, terms.product, "amend")

    # Looking

    @query
    def state(
        self, context: Context, *, product: Identifier, interval_start: Instant
    ) -> dict[str, Any]:
        """How far a product's books of an interval are."""
        return {
            "product": product,
            "interval_start": interval_start,
            "closed": closed_state(context, product, interval_start),
            "result": result_of(context, product, interval_start),
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
        terms = product_at(context, product, interval_start)
        terms.zone_of(zone)
        sides: dict[str, list[Level]] = {}
        for name, side in (("bids", "bid"), ("offers", "offer")):
            found: list[Level] = []
            for price, energy_wh in self._placed(context, terms, interval_start, zone, side):
                if found and found[-1].price_micro_per_kwh == price:
                    found[-1] = Level(price, found[-1].energy_wh + energy_wh)
                elif len(found) == levels:
                    break
                else:
                    found.append(Level(price, energy_wh))
            sides[name] = found
        return {"book": zone_key(zone, product, interval_start), **sides}

    @staticmethod
    def _placed(
        context: Context, terms: Product, interval_start: int, zone: str, side: str
    ) -> Iterator[tuple[int, int]]:
        """(price, energy) of a zone's orders, the best price first."""
        if terms.trading == "continuous":
            yield from levels_of(context, terms.product, interval_start, zone, side)
            return
        book = zone_key(zone, terms.product, interval_start)
        for place, value in context.range(*under(f"o/{book}/{side}/")):
            yield read_place(place)[1], stored_record(Placed, value).energy_wh

    @query
    def prices(
        self,
        context: Context,
        *,
        product: Identifier,
        from_: Instant,
        to: Instant,
    ) -> dict[str, Any]:
        """Prices and volumes of a product's intervals in [from, to), without names."""
        channel = energy_settings(context)
        if not from_ < to <= from_ + MAX_PRICES * channel.interval_s:
            raise InvalidArgument(
                f"to is {to}, but must lie after from, {from_}, by {MAX_PRICES} intervals at most"
            )
        prefix = f"book/{product}/"
        intervals: list[dict[str, Any]] = []
        for key, value in context.range(f"{prefix}{from_:012d}", f"{prefix}{to:012d}"):
            _, _, digits, what = key.split("/")
            if what == "result":
                intervals.append(_auction_prices(int(digits), stored_record(Result, value)))
            elif what == "match":
                ticker = stored_record(Ticker, value)
                intervals.append(
                    {
                        "interval_start": int(digits),
                        "volume_wh": ticker.volume_wh,
                        "zones": [],
                        "hub_price": None,
                        "last_price": ticker.last_price,
                        "lowest_price": ticker.lowest_price,
                        "highest_price": ticker.highest_price,
                    }
                )
        return {"product": product, "intervals": intervals}

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
        seen = homes.seen(context, connection_of(context, connection_id), "read orders")
        found = listed(
            context, "orders", Order, f"order/{connection_id}/", f"{from_:012d}", limit, bookmark
        )
        orders = [order for order in found["orders"] if seen.at(order.interval_start)]
        return {**found, "orders": orders}

    @query
    def due(self, context: Context, *, since: Instant | None = None) -> list[Chore]:
        """Calls that any utility's operator may submit now, as they are."""
        now = settings.now(context, energy_settings(context))
        return chores(context, now, max(0, now - LOOK_BACK_S) if since is None else since)


def _check_gift(
    context: Context,
    actor: Actor,
    terms: Product,
    gift: str,
    side: str,
    price: int,
    partner: str | None,
) -> None:
    """Raise unless an order may give to a connection (offer), or take what that one gives (bid).

    Raises:
        InvalidArgument: auctions know no gifts, or the terms contradict one another.
        NotFound: there is no such connection.
        Forbidden: a trader would give the home's energy away.
    """
    if terms.trading == "auction":
        raise InvalidArgument(
            f"{terms.product} is traded in auctions, where all trade at one price with one "
            "another; gifts are for continuous books, and over days for contracts at a price of 0 "
            "(bilateral:Propose)"
        )
    if partner is not None:
        raise InvalidArgument(f"gift names {gift}, who alone is met; partner must be left out")
    if gift == actor.connection.connection_id:
        raise InvalidArgument(f"gift is {gift}, the order's own connection")
    connection_of(context, gift)
    _check_giving(actor, side, price)


def _check_giving(actor: Actor, side: str, price: int) -> None:
    """Raise InvalidArgument if an offer is no gift, Forbidden if a trader would give."""
    if side == "offer" and price != 0:
        raise InvalidArgument(f"price_micro_per_kwh comes to {price}, but a gift's is 0")
    if side == "offer" and actor.delegation is not None:
        raise Forbidden(
            f"{actor.delegation.trader} trades for {actor.connection.connection_id} and may not "
            "give its energy away; its home may"
        )


def _auction_prices(interval_start: int, result: Result) -> dict[str, Any]:
    volume = sum(zone.local.volume_wh for zone in result.zones)
    if result.hub is not None:
        volume += result.hub.volume_wh
    return {
        "interval_start": interval_start,
        "volume_wh": volume,
        "zones": [
            {
                "zone": zone.zone,
                "volume_wh": zone.local.volume_wh,
                "price_micro_per_kwh": zone.local.price,
            }
            for zone in result.zones
        ],
        "hub_price": None if result.hub is None else result.hub.price,
        "last_price": None,
        "lowest_price": None,
        "highest_price": None,
    }
