"""Call auctions of contract `book`: closing a product's books, clearing them, applying the result.

A closed book never changes, so it is cleared in pages that any member may run, each idempotent:

    Close -> Aggregate (pages of each zone) -> Clear -> Apply (the same pages)

Each order's fill is a function of the order, of what stands before it, and of the result.
Applying only shortens holds and notes the fills; energy and money change hands at settlement.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    Integer,
    Text,
    canonical_json,
    stored_record,
    transaction,
    under,
)

from ..assets.wallet import Ledger, Transfer, pending_hold, supplier_account
from ..common import access, agreements, settings
from ..common.agreements import Version
from ..common.clock import utc_text
from ..common.money import amount_micro
from ..common.settings import Price
from ..registry.registry import energy_settings
from . import gates
from .auction import Clearing, Margin, Side, ZonalClearing, ZoneBook, clear_zones
from .orders import (
    BookState,
    Energy,
    HubPrice,
    Order,
    Placed,
    closed_state,
    due_micro,
    interval_key,
    order_key,
    read_place,
    zone_key,
)
from .products import Product, Zone, product_at

PAGE_ORDERS = 400
"""Orders of one page: an Apply of so many stays far below 2 MB and 2 s, on a slow machine too."""
MAX_LEVELS = 1000
"""Of a stored page; also the most orders that pages have had."""
PageNumber = Annotated[int, Integer(0, 999_999)]
_Key = Annotated[str, Text(r"[A-Za-z0-9/-]{0,300}", "a key")]


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
    orders: Annotated[int, Integer(0, MAX_LEVELS)]
    bids: Annotated[tuple[Level, ...], AtMost(MAX_LEVELS)]
    offers: Annotated[tuple[Level, ...], AtMost(MAX_LEVELS)]


@dataclass(frozen=True, slots=True)
class MarginRecord:
    """See `auction.Margin`."""

    price: HubPrice
    energy_wh: Energy
    accepted_wh: Energy

    @classmethod
    def of(cls, margin: Margin | None) -> MarginRecord | None:
        """As stored."""
        if margin is None:
            return None
        return cls(margin.price, margin.energy_wh, margin.accepted_wh)

    def margin(self) -> Margin:
        """As computed with."""
        return Margin(self.price, self.energy_wh, self.accepted_wh)


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
        return cls(
            clearing.volume_wh,
            clearing.price,
            clearing.lowest_price,
            clearing.highest_price,
            MarginRecord.of(clearing.bid_margin),
            MarginRecord.of(clearing.offer_margin),
        )

    def clearing(self) -> Clearing:
        """As computed with."""
        return Clearing(
            self.volume_wh,
            self.price,
            self.lowest_price,
            self.highest_price,
            None if self.bid_margin is None else self.bid_margin.margin(),
            None if self.offer_margin is None else self.offer_margin.margin(),
        )


@dataclass(frozen=True, slots=True)
class ZoneResult:
    """What came of one zone's book."""

    zone: Identifier
    local: ClearingRecord
    bids_before_wh: Energy
    """At the hub's margin: what stands before this zone's bids there."""
    offers_before_wh: Energy
    bids_cap: MarginRecord | None = None
    """Where the zone's feeder let only the best of what was left go to the hub."""
    offers_cap: MarginRecord | None = None


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


class Auctions(Contract):
    """Clearing by anybody who operates a utility."""

    @transaction
    def close(self, context: Context, *, product: Identifier, interval_start: Instant) -> BookState:
        """Close the books of a product and interval in all zones; again changes nothing."""
        access.require_member(context.creator, "close books")
        state = closed_state(context, product, interval_start)
        if state is not None:
            return state
        terms = product_at(context, product, interval_start)
        now = settings.now(context, energy_settings(context))
        gate = interval_start - terms.gate_closure_s
        if now < gate:
            raise Conflict(
                f"the book of {product} for {utc_text(interval_start)} stays open until "
                f"{utc_text(gate)}, and the channel's time is {utc_text(now)}"
            )
        state = BookState(
            now,
            agreements.version_at(context, "product", product, interval_start),
            reveal_until(context, terms, now),
        )
        context.put_state(f"{interval_key(product, interval_start)}/state", canonical_json(state))
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
        access.require_member(context.creator, "run auctions")
        _, terms = self._closed(context, product, interval_start)
        terms.zone_of(zone)
        book = zone_key(zone, product, interval_start)
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
            side, price, _, _ = read_place(place)
            energy_wh = stored_record(Placed, value).energy_wh
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
        access.require_member(context.creator, "run auctions")
        key = f"{interval_key(product, interval_start)}/result"
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
                for summed in self._pages(context, zone_key(zone.zone, product, interval_start)):
                    for levels, total in ((summed.bids, demand), (summed.offers, supply)):
                        for level in levels:
                            price = level.price_micro_per_kwh
                            total[price] = total.get(price, 0) + level.energy_wh
                books[zone.zone] = _zone_book(
                    terms, zone, energy_settings(context).interval_s, demand, supply
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
                        MarginRecord.of(outcome.caps.get((zone.zone, "bid"))),
                        MarginRecord.of(outcome.caps.get((zone.zone, "offer"))),
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
        access.require_member(context.creator, "run auctions")
        book = zone_key(zone, product, interval_start)
        applied = f"applied/{book}/{page:06d}"
        result = self._result(context, product, interval_start)
        if context.get_state(applied) is not None:
            return {"book": book, "page": page, "orders": 0}
        summed = self._page(context, book, page)
        terms = agreements.terms_of(context, "product", product, result.product_version, Product)
        outcome = None if result.void else outcome_of(terms, result)
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        count = 0
        for order, before_wh in self._orders_of(context, book, page, summed):
            filled = _filled(terms, outcome, order, before_wh, context.creator.msp_id)
            if order.hold_micro:
                hold = pending_hold(context, order.connection_id, order.hold_id)
                paid = matching_paid(filled, filled.matching_micro)
                ledger.gather_holds(hold, (), order.hold_id, filled.hold_micro, paid)
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
            side, price, connection_id, order_id = read_place(place)
            if running is None:
                before_wh = self._sum_before(context, book, number, side, price)
            elif running != (side, price):
                before_wh = 0
            running = side, price
            stored = context.get_state(order_key(connection_id, interval_start, order_id))
            assert stored is not None, "what stands in a book is kept by its owner"
            yield stored_record(Order, stored), before_wh
            before_wh += stored_record(Placed, value).energy_wh

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
    def _closed(context: Context, product: str, interval_start: int) -> tuple[int, Product]:
        """The version of the terms that an auction was closed under, and the terms.

        Sealed orders may be revealed until that was ended too.
        """
        version, terms = closed_terms(context, product, interval_start)
        if terms.trading != "auction":
            raise Conflict(f"{product} is traded continuously; book:Match and book:Expire clear it")
        if terms.sealed and not revealing_ended(context, product, interval_start):
            raise Conflict(
                f"sealed orders of {product} for {utc_text(interval_start)} may still be revealed; "
                "book:EndReveal first"
            )
        return version, terms

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
        result = result_of(context, product, interval_start)
        if result is None:
            raise Conflict(
                f"the book of {product} for {utc_text(interval_start)} isn't cleared; "
                "book:Clear first"
            )
        return result


def closed_terms(context: Context, product: str, interval_start: int) -> tuple[int, Product]:
    """The version of the terms that a book was closed under, and the terms.

    Raises Conflict for an open book.
    """
    state = closed_state(context, product, interval_start)
    if state is None:
        raise Conflict(
            f"the book of {product} for {utc_text(interval_start)} is open; book:Close first"
        )
    version = state.product_version
    return version, agreements.terms_of(context, "product", product, version, Product)


def reveal_until(context: Context, terms: Product, closed_at: int) -> int | None:
    """When revealing a book that is closed now may end; None for an open book's orders.

    Counted from the first gate that isn't written yet, and with what clocks may be off.
    """
    if not terms.sealed:
        return None
    begin = gates.first_unwritten(context, closed_at)
    skew = 0 if gates.length_s(energy_settings(context)) is None else gates.SKEW_S
    return begin + terms.reveal_s + skew


def revealing_ended(context: Context, product: str, interval_start: int) -> bool:
    """Whether sealed orders can be revealed no longer."""
    return context.get_state(f"{interval_key(product, interval_start)}/revealed") is not None


def result_of(context: Context, product: str, interval_start: int) -> Result | None:
    """The outcome of an auction; None before it was cleared."""
    stored = context.get_state(f"{interval_key(product, interval_start)}/result")
    return None if stored is None else stored_record(Result, stored)


def _zone_book(
    terms: Product, zone: Zone, interval_s: int, demand: dict[int, int], supply: dict[int, int]
) -> ZoneBook:
    most_in, most_out = zone.most_in_w, zone.most_out_w
    return ZoneBook(
        demand,
        supply,
        zone.local_fee + terms.matching_fee,
        zone.entry_fee + terms.matching_fee,
        zone.exit_fee,
        None if most_in is None else most_in * interval_s // 3600,
        None if most_out is None else most_out * interval_s // 3600,
    )


def outcome_of(terms: Product, result: Result) -> ZonalClearing:
    """A stored result as what fills are computed with; the books' histograms aren't needed."""
    assert result.hub is not None
    offsets: dict[tuple[str, Side], int] = {}
    caps: dict[tuple[str, Side], Margin] = {}
    for zone in result.zones:
        offsets[zone.zone, "bid"] = zone.bids_before_wh
        offsets[zone.zone, "offer"] = zone.offers_before_wh
        if zone.bids_cap is not None:
            caps[zone.zone, "bid"] = zone.bids_cap.margin()
        if zone.offers_cap is not None:
            caps[zone.zone, "offer"] = zone.offers_cap.margin()
    return ZonalClearing(
        {zone.zone: zone.local.clearing() for zone in result.zones},
        result.hub.clearing(),
        {zone.zone: _zone_book(terms, zone, 0, {}, {}) for zone in terms.zones},
        offsets,
        caps,
    )


def _filled(
    terms: Product, outcome: ZonalClearing | None, order: Order, before_wh: int, by: str
) -> Order:
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
        matched_by=by if fill.local_wh or fill.hub_wh else None,
    )
    paid = amount_micro(filled.filled_wh, terms.matching_fee) if side == "bid" else 0
    left = max(0, order.hold_micro - paid)
    return replace(filled, matching_micro=paid, hold_micro=min(left, _still_held(terms, filled)))


def _still_held(terms: Product, order: Order) -> int:
    """What a cleared order must keep set aside until settlement."""
    parts = ((order.local_wh, order.local_price), (order.hub_wh, order.hub_price))
    return sum(due_micro(terms, order.side, price or 0, wh) for wh, price in parts)


def matching_paid(order: Order, amount_micro: int) -> tuple[Transfer, ...]:
    """What a bid pays to the utility that cleared or matched it."""
    if not amount_micro:
        return ()
    assert order.matched_by is not None, "somebody has matched it"
    payee = supplier_account(order.matched_by)
    return (Transfer(order.connection_id, payee, amount_micro, "matching", order.order_id),)
