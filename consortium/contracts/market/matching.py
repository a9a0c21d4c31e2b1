"""Continuous books of contract `book`: owners append to an inbox, a matcher empties it.

Placing an order, amending and cancelling it each append one entry of their own, so that thousands
may do so in one block. A matcher's transaction names the entries that it takes up; the contract
gives them their sequence and matches them by price, then time, at the resting order's price, and
every peer that endorses does the same. What rests is kept in key order, written by matchers alone,
and one key of the book makes two matchers at a time impossible: the second one fails by itself.

Entries of one round are equal in time. They are drawn by a hash over all of them, so that neither
the matcher nor who chooses a transaction's id decides who is first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

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
    RequestId,
    TransactionId,
    canonical_json,
    query,
    sha256_hex,
    stored_record,
    transaction,
    under,
)

from ..assets.wallet import Hold, Ledger, pending_hold
from ..common import access, settings
from ..common.clock import utc_text
from ..common.money import amount_micro
from ..common.settings import Price
from ..registry.registry import energy_settings
from ..settlement.firm import FirmTrade, note
from ..settlement.settle import MARKET
from . import continuous
from .auctions import closed_terms, matching_paid
from .continuous import ContinuousBook, book_of
from .orders import (
    Amendment,
    Attributes,
    Energy,
    HubPrice,
    Money,
    Order,
    OrderEnergy,
    closed_state,
    due_micro,
    hold_id,
    interval_key,
    needed_micro,
    order_key,
    price_digits,
    read_price,
)
from .products import Product, product_at

MAX_ENTRIES = 200
"""Entries that one Match takes up."""
MAX_FILLS = 200
"""After so many fills, a Match takes up no other entry; an order that meets more than this at once
is cancelled for the rest. Keeps a transaction below 2 MB."""
MAX_EXPIRED = 500

EntryKind = Annotated[str, Choice("cancel", "order", "amend")]
_KINDS = ("cancel", "order", "amend")
"""In the order in which a round takes them up."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What an owner wants of a continuous book."""

    kind: EntryKind
    connection_id: Identifier
    order_id: RequestId
    price_micro_per_kwh: Price = 0
    """Of an amendment, as is what follows."""
    energy_wh: Energy = 0
    hold_micro: Money = 0
    """What the amendment has set aside besides the order's hold."""
    amendment: Amendment = 0
    acted_by: Identifier | None = None


@dataclass(frozen=True, slots=True)
class _Resting:
    connection_id: Identifier
    order_id: RequestId
    energy_wh: OrderEnergy
    """What is left of it."""
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Flow:
    """What has crossed a zone's feeder in a book."""

    zone: Identifier
    in_wh: Energy
    out_wh: Energy


@dataclass(frozen=True, slots=True)
class Ticker:
    """How trading in a continuous book has gone; prices are sellers'."""

    sequence: Annotated[int, Integer(0, 10**12)] = 0
    fills: Annotated[int, Integer(0, 10**12)] = 0
    volume_wh: Energy = 0
    last_price: HubPrice | None = None
    lowest_price: HubPrice | None = None
    highest_price: HubPrice | None = None
    flows: Annotated[tuple[Flow, ...], AtMost(64)] = ()

    def traded(self, energy_wh: int, price: int) -> Ticker:
        """With one trade more."""
        lowest, highest = self.lowest_price, self.highest_price
        return replace(
            self,
            fills=self.fills + 1,
            volume_wh=self.volume_wh + energy_wh,
            last_price=price,
            lowest_price=price if lowest is None else min(lowest, price),
            highest_price=price if highest is None else max(highest, price),
        )

    def crossed(self, zone: str, in_wh: int, out_wh: int) -> Ticker:
        """With what crossed a zone's feeder."""
        flows = {flow.zone: flow for flow in self.flows}
        old = flows.get(zone, Flow(zone, 0, 0))
        flows[zone] = Flow(zone, old.in_wh + in_wh, old.out_wh + out_wh)
        return replace(self, flows=tuple(flows[name] for name in sorted(flows)))


def _book(product: str, interval_start: int) -> str:
    return f"{product}/{interval_start:012d}"


def enter(context: Context, product: str, interval_start: int, entry: Entry) -> None:
    """Append an entry to a book's inbox; a transaction has one."""
    context.put_state(
        f"in/{_book(product, interval_start)}/{context.transaction_id}", canonical_json(entry)
    )


def ticker_of(context: Context, product: str, interval_start: int) -> Ticker:
    """How a continuous book has gone so far."""
    stored = context.get_state(f"{interval_key(product, interval_start)}/match")
    return Ticker() if stored is None else stored_record(Ticker, stored)


def inbox_names(context: Context, product: str, interval_start: int, limit: int) -> list[str]:
    """Transaction ids of what was not taken up yet."""
    names: list[str] = []
    for key, _ in context.range(*under(f"in/{_book(product, interval_start)}/")):
        if len(names) == limit:
            break
        names.append(key.rpartition("/")[2])
    return names


def rests_any(context: Context, product: str, interval_start: int) -> bool:
    """Whether any order rests in a continuous book."""
    first = next(context.range(*under(f"c/{_book(product, interval_start)}/")), None)
    return first is not None


def levels_of(
    context: Context, product: str, interval_start: int, zone: str, side: str
) -> Iterator[tuple[int, int]]:
    """(price, energy) of what rests, the best price first."""
    for key, value in context.range(*under(f"c/{_book(product, interval_start)}/{zone}/{side}/")):
        yield (
            read_price(side, key.split("/")[5]),
            stored_record(_Resting, value).energy_wh,
        )


class Matching(Contract):
    """Matching by anybody who operates a utility."""

    @transaction
    def match(
        self,
        context: Context,
        *,
        product: Identifier,
        interval_start: Instant,
        entries: Annotated[tuple[TransactionId, ...], AtMost(MAX_ENTRIES)],
    ) -> dict[str, Any]:
        """Take up entries of a continuous book and match them; what was taken up is left out."""
        access.require_member(context.creator, "run matching")
        for index, name in enumerate(entries):
            if name in entries[:index]:
                raise InvalidArgument(f"entries names {name} twice")
        terms = _continuous(context, product, interval_start)
        now = settings.now(context, energy_settings(context))
        if now >= interval_start:
            raise Conflict(
                f"the interval starting {utc_text(interval_start)} has begun, and the channel's "
                f"time is {utc_text(now)}; book:Close and book:Expire give its orders back"
            )
        book = _book(product, interval_start)
        found: dict[str, Entry] = {}
        for name in entries:
            entry = _waiting(context, book, name)
            if entry is None:
                continue
            # An order comes before its amendments, or 200 of them could keep a book from moving.
            first = _order_before(context, interval_start, entry)
            ordered = None if first is None else _waiting(context, book, first)
            if first is not None and ordered is not None:
                found[first] = ordered
            found[name] = entry
            if len(found) >= MAX_ENTRIES:
                break
        if not found:
            return {"product": product, "interval_start": interval_start, "taken": 0, "fills": 0}
        rounds = _Round(context, terms, interval_start, ticker_of(context, product, interval_start))
        taken = rounds.run(_drawn(list(found.items())))
        for name in taken:
            context.del_state(f"in/{book}/{name}")
        rounds.write(now)
        return {
            "product": product,
            "interval_start": interval_start,
            "taken": len(taken),
            "fills": len(rounds.fills),
        }

    @transaction
    def expire(
        self, context: Context, *, product: Identifier, interval_start: Instant
    ) -> dict[str, Any]:
        """Give back what a closed continuous book left unfilled, 500 orders at a time."""
        access.require_member(context.creator, "run matching")
        _, terms = closed_terms(context, product, interval_start)
        if terms.trading != "continuous":
            raise Conflict(f"{product} is traded in auctions; book:Apply gives back what is left")
        now = settings.now(context, energy_settings(context))
        book = _book(product, interval_start)
        rounds = _Round(context, terms, interval_start, ticker_of(context, product, interval_start))
        waiting = inbox_names(context, product, interval_start, MAX_EXPIRED)
        if waiting and now < interval_start:
            raise Conflict(
                f"the book of {product} for {utc_text(interval_start)} has entries that were not "
                "taken up; book:Match first"
            )
        # The book is closed, so nobody appends to these ranges any more.
        for name in waiting:
            stored = context.get_state(f"in/{book}/{name}")
            assert stored is not None
            rounds.drop(stored_record(Entry, stored))
            context.del_state(f"in/{book}/{name}")
        for count, (_, value) in enumerate(context.range(*under(f"c/{book}/"))):
            if len(waiting) + count >= MAX_EXPIRED:
                break
            resting = stored_record(_Resting, value)
            rounds.finish(rounds.order(resting.connection_id, resting.order_id), "cleared")
        given_back = len(rounds.orders)
        if given_back:
            rounds.write(now)
        return {"product": product, "interval_start": interval_start, "orders": given_back}

    @query
    def inbox(
        self,
        context: Context,
        *,
        product: Identifier,
        interval_start: Instant,
        limit: Annotated[int, Integer(1, MAX_ENTRIES)] = MAX_ENTRIES,
    ) -> dict[str, Any]:
        """What a matcher can take up: entries to name in book:Match."""
        _continuous(context, product, interval_start)
        return {
            "product": product,
            "interval_start": interval_start,
            "entries": inbox_names(context, product, interval_start, limit),
        }

    @query
    def ticker(
        self, context: Context, *, product: Identifier, interval_start: Instant
    ) -> dict[str, Any]:
        """How trading in a continuous book has gone: prices and volume, without names."""
        _continuous(context, product, interval_start)
        return {
            "product": product,
            "interval_start": interval_start,
            "closed": closed_state(context, product, interval_start),
            "ticker": ticker_of(context, product, interval_start),
        }


def _continuous(context: Context, product: str, interval_start: int) -> Product:
    terms = product_at(context, product, interval_start)
    if terms.trading != "continuous":
        raise Conflict(f"{product} is traded in auctions; book:Aggregate and book:Clear clear it")
    return terms


def _waiting(context: Context, book: str, name: str) -> Entry | None:
    """An entry that nobody has taken up."""
    stored = context.get_state(f"in/{book}/{name}")
    return None if stored is None else stored_record(Entry, stored)


def _order_before(context: Context, interval_start: int, entry: Entry) -> str | None:
    """The name of the order's own entry, of an amendment of one that was not taken up yet."""
    if entry.kind != "amend":
        return None
    stored = context.get_state(order_key(entry.connection_id, interval_start, entry.order_id))
    order = None if stored is None else stored_record(Order, stored)
    return None if order is None or order.sequence else order.transaction_id


def _drawn(found: Sequence[tuple[str, Entry]]) -> list[tuple[str, Entry]]:
    """A round's entries as they are taken up: cancellations, orders, amendments, each drawn."""
    lots = "".join(sorted(name for name, _ in found))

    def rank(one: tuple[str, Entry]) -> tuple[int, str]:
        return _KINDS.index(one[1].kind), sha256_hex(f"{lots}{one[0]}".encode())

    return sorted(found, key=rank)


def _id(connection_id: str, order_id: str) -> str:
    return f"{connection_id}/{order_id}"


@dataclass(slots=True)
class _Round:
    """One transaction of a matcher: reads what it needs, matches, and writes once at the end."""

    context: Context
    terms: Product
    interval_start: int
    ticker: Ticker
    orders: dict[str, Order] = field(default_factory=dict)
    """Records of orders that are touched, by id, as they will be."""
    before: dict[str, Order] = field(default_factory=dict)
    """The same as they were."""
    extra_holds: dict[str, list[Hold]] = field(default_factory=dict)
    """What amendments have set aside, to become part of their orders' holds."""
    resized: list[str] = field(default_factory=list)
    """Ids of orders whose hold changes."""
    fills: list[tuple[str, FirmTrade]] = field(default_factory=list)
    """With the connection of each."""
    bought_wh: dict[str, int] = field(default_factory=dict)
    """By bids in this round, for which they pay the matching fee."""
    book: ContinuousBook = field(default_factory=lambda: ContinuousBook({}))

    @property
    def _name(self) -> str:
        return _book(self.terms.product, self.interval_start)

    def order(self, connection_id: str, order_id: str) -> Order:
        """An order's record, as it will be."""
        name = _id(connection_id, order_id)
        if name not in self.orders:
            stored = self.context.get_state(order_key(connection_id, self.interval_start, order_id))
            assert stored is not None, "what stands in a book is kept"
            self.before[name] = self.orders[name] = stored_record(Order, stored)
        return self.orders[name]

    def run(self, entries: Sequence[tuple[str, Entry]]) -> list[str]:
        """Take up entries until there are too many fills; return their names."""
        self._load([entry for _, entry in entries])
        taken = []
        for name, entry in entries:
            if len(self.fills) >= 2 * MAX_FILLS:
                break
            if self._take(entry):
                taken.append(name)
        return taken

    def drop(self, entry: Entry) -> None:
        """Give back what an entry set aside that nobody took up in time."""
        order = self.order(entry.connection_id, entry.order_id)
        self._absorb(order, entry)
        if order.state == "open" and order.sequence == 0:
            self.finish(order, "void")

    def finish(self, order: Order, state: str) -> None:
        """Take an order out of the book for good."""
        if order.state == "open":
            self._store(replace(order, state=state))
            self._resize(order)

    def _take(self, entry: Entry) -> bool:
        order = self.order(entry.connection_id, entry.order_id)
        name = _id(order.connection_id, order.order_id)
        if entry.kind == "amend" and order.state == "open" and order.sequence == 0:
            return False  # its order comes first
        self._absorb(order, entry)
        if order.state != "open" or (entry.kind == "amend" and entry.amendment <= order.amendment):
            return True  # too late, or overtaken by a later amendment
        match entry.kind:
            case "cancel":
                self.book.cancel(name)
                self.finish(order, "cancelled")
            case "order" if order.sequence == 0:
                order = self._numbered(order)
                self._matched(order, self.book.enter(_for_matching(order), MAX_FILLS))
            case "amend":
                self._amend(name, order, entry)
            case _:
                pass  # an order is taken up once
        return True

    def _amend(self, name: str, order: Order, entry: Entry) -> None:
        price, energy_wh = entry.price_micro_per_kwh, entry.energy_wh
        left = energy_wh - order.matched_wh
        keeps_place = price == order.price_micro_per_kwh and left <= self.book.left_of(name)
        order = replace(
            order,
            price_micro_per_kwh=price,
            energy_wh=max(energy_wh, order.matched_wh),
            amendment=entry.amendment,
            acted_by=entry.acted_by,
        )
        if left <= 0:
            self.book.cancel(name)
            self._store(order)
            self.finish(order, "cancelled")
            return
        if not keeps_place:
            order = self._numbered(order)
        self._store(order)
        self._resize(order)
        self._matched(order, self.book.amend(name, price, left, order.sequence, MAX_FILLS))

    def _numbered(self, order: Order) -> Order:
        sequence = self.ticker.sequence + 1
        self.ticker = replace(self.ticker, sequence=sequence)
        order = replace(order, sequence=sequence)
        self._store(order)
        return order

    def _matched(self, order: Order, fills: Sequence[continuous.Fill]) -> None:
        """Note an order's fills on both sides. What is given has no price that others go by."""
        for fill in fills:
            if order.gift is None:
                self.ticker = self.ticker.traded(fill.energy_wh, fill.seller_price)
            bid = self.order(*fill.bid_id.split("/"))
            offer = self.order(*fill.offer_id.split("/"))
            fee = fill.buyer_price - fill.seller_price - self.terms.matching_fee
            self._filled(bid, fill.energy_wh, fill.seller_price + fee, fee)
            self._filled(offer, fill.energy_wh, fill.seller_price, 0)
            if bid.zone != offer.zone:
                self.ticker = self.ticker.crossed(bid.zone, fill.energy_wh, 0)
                self.ticker = self.ticker.crossed(offer.zone, 0, fill.energy_wh)
        name = _id(order.connection_id, order.order_id)
        if len(fills) >= MAX_FILLS and self.book.cancel(name):
            self.finish(self.orders[name], "cancelled")

    def _filled(self, order: Order, energy_wh: int, price: int, fee: int) -> None:
        name = _id(order.connection_id, order.order_id)
        due = due_micro(self.terms, order.side, price, energy_wh)
        matched = order.matched_wh + energy_wh
        order = replace(
            order,
            matched_wh=matched,
            due_micro=order.due_micro + due,
            matched_by=self.context.creator.msp_id,
        )
        self._store(order)
        if order.side == "bid" and self.terms.matching_fee:
            self.bought_wh[name] = self.bought_wh.get(name, 0) + energy_wh
            self._resize(order)
        if matched == order.energy_wh:
            self.finish(order, "cleared")
        self.fills.append(
            (
                order.connection_id,
                FirmTrade(
                    order.interval_start,
                    energy_wh if order.side == "bid" else -energy_wh,
                    price,
                    fee,
                    order.gift or MARKET,
                    "gift" if order.gift else "continuous",
                    # An order may have many fills; ids of transactions make the reference unique.
                    f"{self.context.transaction_id[:16]}-{len(self.fills)}-{order.order_id}"[:64],
                    hold_id=order.hold_id,
                ),
            )
        )

    def _absorb(self, order: Order, entry: Entry) -> None:
        """Make what an amendment set aside a part of its order's hold."""
        if not entry.hold_micro:
            return
        name = _id(order.connection_id, order.order_id)
        hold = pending_hold(
            self.context,
            order.connection_id,
            hold_id(self.interval_start, order.order_id, entry.amendment),
        )
        self.extra_holds.setdefault(name, []).append(hold)
        self._resize(order)

    def _resize(self, order: Order) -> None:
        name = _id(order.connection_id, order.order_id)
        if name not in self.resized:
            self.resized.append(name)

    def _store(self, order: Order) -> None:
        self.orders[_id(order.connection_id, order.order_id)] = order

    # What it reads of the book

    def _load(self, entries: Sequence[Entry]) -> None:
        """Read as much of the book as these entries can meet, and no more."""
        resting: dict[str, tuple[continuous.Order, int]] = {}
        incoming: list[continuous.Order] = []
        for entry in entries:
            order = self.order(entry.connection_id, entry.order_id)
            name = _id(order.connection_id, order.order_id)
            if order.state != "open":
                continue
            if order.sequence:
                resting[name] = (_for_matching(order), order.energy_wh - order.matched_wh)
            if entry.kind == "order":
                incoming.append(_for_matching(order))
            elif entry.kind == "amend" and entry.energy_wh > order.matched_wh:
                incoming.append(
                    replace(
                        _for_matching(order),
                        price=entry.price_micro_per_kwh,
                        energy_wh=entry.energy_wh,
                    )
                )
        fees = self.terms.fees()
        changed = sorted(resting)
        for zone in self.terms.zones:
            for side in ("bid", "offer"):
                others = [order for order in incoming if order.side != side and not order.gift]
                for there, left in self._opposite(others, zone.zone, side, fees, changed):
                    resting.setdefault(there.order_id, (there, left))
        for one in incoming:
            for name in filter(None, (one.partner, one.gift)):
                for theirs in self._resting_of(name):
                    wanted = _for_matching(theirs)
                    resting.setdefault(wanted.order_id, (wanted, wanted.energy_wh))
        self.book = book_of(fees, [resting[name] for name in sorted(resting)], self._room())

    def _opposite(
        self,
        incoming: Sequence[continuous.Order],
        zone: str,
        side: str,
        fees: dict[tuple[str, str], int],
        changed: Sequence[str],
    ) -> Iterator[tuple[continuous.Order, int]]:
        """Resting orders of one zone and side that incoming ones may meet, the best first.

        Enough is enough once all that comes in could be filled from here alone.
        """
        reach: int | None = None  # how far a resting order's price may be
        for order in incoming:
            fee = fees.get((zone, order.zone) if side == "offer" else (order.zone, zone))
            if fee is None:
                continue
            limit = order.price - fee if side == "offer" else -(order.price + fee)
            reach = limit if reach is None else max(reach, limit)
        if reach is None:
            return
        owners = [order.owner for order in incoming]
        wishes = [order.attributes for order in incoming if order.side == "bid"]
        needed = sum(order.energy_wh for order in incoming)
        for key, value in self.context.range(*under(f"c/{self._name}/{zone}/{side}/")):
            digits, sequence = key.split("/")[5:]
            price = read_price(side, digits)
            if (price if side == "offer" else -price) > reach or needed <= 0:
                return
            found = stored_record(_Resting, value)
            order = continuous.Order(
                _id(found.connection_id, found.order_id),
                "offer" if side == "offer" else "bid",
                found.connection_id,
                zone,
                price,
                found.energy_wh,
                int(sequence),
                found.attributes,
            )
            if side == "offer":
                for_all = all(one in order.attributes for wish in wishes for one in wish)
            else:
                for_all = not order.attributes
            if for_all and order.owner not in owners and order.order_id not in changed:
                needed -= found.energy_wh
            yield order, found.energy_wh

    def _resting_of(self, connection_id: str) -> Iterator[Order]:
        """What a connection has resting in this book; kept by matchers alone."""
        for key, _ in self.context.range(*under(f"own/{self._name}/{connection_id}/")):
            order = self.order(connection_id, key.rpartition("/")[2])
            if order.state == "open" and order.sequence:
                yield order

    def _room(self) -> dict[tuple[str, str], int]:
        """What zones' feeders can still carry, in Wh."""
        interval_s = energy_settings(self.context).interval_s
        flows = {flow.zone: flow for flow in self.ticker.flows}
        room: dict[tuple[str, str], int] = {}
        for zone in self.terms.zones:
            flow = flows.get(zone.zone, Flow(zone.zone, 0, 0))
            if zone.most_in_w is not None:
                room[zone.zone, "in"] = zone.most_in_w * interval_s // 3600 - flow.in_wh
            if zone.most_out_w is not None:
                room[zone.zone, "out"] = zone.most_out_w * interval_s // 3600 - flow.out_wh
        return room

    # What it writes

    def write(self, now: int) -> None:
        """Write orders, places, fills, holds and the ticker."""
        put, delete = self.context.put_state, self.context.del_state
        ledger = Ledger(self.context, now)
        for name in sorted(self.orders):
            before, order = self.before[name], self.orders[name]
            if name in self.resized:
                order = self._with_hold(ledger, name, before, order)
            if order == before:
                continue
            put(
                order_key(order.connection_id, self.interval_start, order.order_id),
                canonical_json(order),
            )
            old, new = self._place(before), self._place(order)
            own = f"own/{self._name}/{name}"
            if old and old != new:
                delete(old)
            if new:
                resting = _Resting(
                    order.connection_id,
                    order.order_id,
                    order.energy_wh - order.matched_wh,
                    order.attributes,
                )
                put(new, canonical_json(resting))
                if not old:
                    put(own, b"{}")
            elif old:
                delete(own)
        for connection_id, fill in self.fills:
            note(self.context, connection_id, fill)
        ledger.write()
        put(
            f"{interval_key(self.terms.product, self.interval_start)}/match",
            canonical_json(self.ticker),
        )

    def _place(self, order: Order) -> str:
        """Where an order rests; empty if it doesn't.

        Gifts and who takes them stand apart: nobody else looks for them by their price.
        """
        if order.state != "open" or not order.sequence:
            return ""
        return (
            f"c/{self._name}/{order.zone}/{'gift' if order.gift else order.side}/"
            f"{price_digits(order.side, order.price_micro_per_kwh)}/{order.sequence:012d}"
        )

    def _with_hold(self, ledger: Ledger, name: str, before: Order, order: Order) -> Order:
        """Give back what an order no longer needs; what it has traded stays set aside."""
        extra = self.extra_holds.get(name, [])
        paid = amount_micro(self.bought_wh.get(name, 0), self.terms.matching_fee)
        there = before.hold_micro + sum(hold.amount_micro for hold in extra) - paid
        needed = order.due_micro
        if order.state == "open":
            needed += needed_micro(
                self.terms,
                order.side,
                order.price_micro_per_kwh,
                order.energy_wh - order.matched_wh,
            )
        needed = min(needed, max(0, there))
        hold = None
        if before.hold_micro:
            hold = pending_hold(self.context, order.connection_id, order.hold_id)
        if hold is not None or extra:
            transfers = matching_paid(order, paid)
            ledger.gather_holds(hold, extra, order.hold_id, needed, transfers)
        return replace(order, hold_micro=needed, matching_micro=order.matching_micro + paid)


def _for_matching(order: Order) -> continuous.Order:
    return continuous.Order(
        _id(order.connection_id, order.order_id),
        "bid" if order.side == "bid" else "offer",
        order.connection_id,
        order.zone,
        order.price_micro_per_kwh,
        order.energy_wh - order.matched_wh,
        order.sequence,
        order.attributes,
        order.partner or "",
        order.gift or "",
    )
