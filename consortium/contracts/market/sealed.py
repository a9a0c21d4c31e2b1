"""Sealed orders of contract `book`: nobody sees side, price or energy until the book is closed.

While the book is open an owner seals: it writes the hash of an order and pledges money. Once the
book is closed it reveals the order, which then stands in the book like any other, and has its
pledge back. Who reveals nothing loses the pledge to its grid operator: else one could wait for what
others reveal and pick.

The time for revealing is counted in gates (`gates.py`) at both ends, not by the clocks of who
closes the book and who ends revealing: from the first gate that wasn't written when the book was
closed, to the first one that is `reveal_s` and `gates.SKEW_S` later. So owners have `reveal_s`
whatever one clock says.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    InvalidArgument,
    NotFound,
    RequestId,
    Text,
    TransactionId,
    canonical_json,
    sha256_hex,
    stored_record,
    transaction,
    under,
)

from ..assets.wallet import Hold, Ledger, Shard, Transfer, grid_account, pending_hold
from ..common import access, settings
from ..common.clock import utc_text
from ..common.settings import Price
from ..registry.delegations import actor_for
from ..registry.registry import connection_of, energy_settings
from . import gates
from .auctions import closed_terms, revealing_ended
from .orders import (
    HOLD_AFTER_S,
    BookState,
    Money,
    Order,
    OrderEnergy,
    OrderSide,
    check_interval,
    closed_state,
    enter_auction,
    interval_key,
    needed_micro,
    open_book,
    order_key,
)
from .products import Product

MAX_FORFEITED = 500
Commitment = Annotated[str, Text(r"[0-9a-f]{64}", "a SHA-256: 64 hex digits")]


@dataclass(frozen=True, slots=True)
class SealedOrder:
    """What is known of an order before it is revealed."""

    order_id: RequestId
    connection_id: Identifier
    product: Identifier
    interval_start: Instant
    commitment: Commitment
    pledge_micro: Money
    transaction_id: TransactionId
    acted_by: Identifier | None = None


@dataclass(frozen=True, slots=True)
class Revealed:
    """From when on nothing can be revealed any more."""

    ended_at: Instant
    forfeits: bool
    """False where the book was closed too late for its owners to reveal: then nobody loses."""


def _key(product: str, interval_start: int, connection_id: str, order_id: str) -> str:
    return f"seal/{product}/{interval_start:012d}/{connection_id}/{order_id}"


def _pledge_id(interval_start: int, order_id: str) -> str:
    return f"pledge-{interval_start}-{order_id}"[:80]


def commitment_of(channel: str, order: dict[str, str]) -> str:
    """The hash of an order's fields, salt included, all as strings."""
    return sha256_hex(canonical_json({"channel": channel, **order}))


class Sealing(Contract):
    """Sealing, revealing, and what comes of not revealing."""

    _delegated: ClassVar[str] = "order"

    @transaction
    def seal(
        self,
        context: Context,
        *,
        order_id: RequestId,
        connection_id: Identifier,
        product: Identifier,
        interval_start: Instant,
        commitment: Commitment,
        shard: Shard = 0,
        delegation: Identifier | None = None,
    ) -> SealedOrder:
        """Put a hidden order into a sealed book; the same again changes nothing."""
        actor = actor_for(
            context, connection_id, self._delegated, delegation, f"trade for {connection_id}"
        )
        key = _key(product, interval_start, connection_id, order_id)
        stored = context.get_state(key)
        if stored is not None:
            found = stored_record(SealedOrder, stored)
            if found.commitment != commitment:
                raise Conflict(f"order_id {order_id} is another sealed order of {connection_id}")
            return found
        terms = open_book(context, product, interval_start)
        if not terms.sealed:
            raise Conflict(f"{product} has open books; book:Place puts an order into one")
        sealed = SealedOrder(
            order_id,
            connection_id,
            product,
            interval_start,
            commitment,
            terms.pledge_micro,
            context.transaction_id,
            actor.acted_by,
        )
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        ledger.hold(
            Hold(
                connection_id,
                _pledge_id(interval_start, order_id),
                terms.pledge_micro,
                "PLEDGE",
                interval_start + HOLD_AFTER_S,
                "pending",
            ),
            str(shard),
        )
        ledger.write()
        context.put_state(key, canonical_json(sealed))
        return sealed

    @transaction
    def unseal(
        self,
        context: Context,
        *,
        order_id: RequestId,
        connection_id: Identifier,
        product: Identifier,
        interval_start: Instant,
        delegation: Identifier | None = None,
    ) -> dict[str, Any]:
        """Take a hidden order and its pledge back while the book is open; again changes nothing."""
        actor_for(context, connection_id, self._delegated, delegation, f"trade for {connection_id}")
        check_interval(context, interval_start)
        key = _key(product, interval_start, connection_id, order_id)
        there = context.get_state(key) is not None
        if there:
            open_book(context, product, interval_start)
            self._end_pledge(context, connection_id, interval_start, order_id)
            context.del_state(key)
        return {"connection_id": connection_id, "order_id": order_id, "ended": there}

    @transaction
    def reveal(
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
        salt: Commitment,
        shard: Shard = 0,
        delegation: Identifier | None = None,
    ) -> Order:
        """Show a hidden order once its book is closed; it then stands in the book."""
        actor = actor_for(
            context, connection_id, self._delegated, delegation, f"trade for {connection_id}"
        )
        revealed = context.get_state(order_key(connection_id, interval_start, order_id))
        stored = context.get_state(_key(product, interval_start, connection_id, order_id))
        if stored is None:
            if revealed is not None:
                return stored_record(Order, revealed)
            raise NotFound(f"{connection_id} has no sealed order {order_id} in that book")
        _, terms = closed_terms(context, product, interval_start)
        if revealing_ended(context, product, interval_start):
            raise Conflict(
                f"revealing orders of {product} for {utc_text(interval_start)} has ended"
            )
        if revealed is not None:
            raise Conflict(
                f"order_id {order_id} is an order of {connection_id} in this interval already, of "
                "another product"
            )
        commitment = commitment_of(
            context.channel_id,
            {
                "connection_id": connection_id,
                "energy_wh": str(energy_wh),
                "interval_start": str(interval_start),
                "order_id": order_id,
                "price_micro_per_kwh": str(price_micro_per_kwh),
                "product": product,
                "salt": salt,
                "side": side,
            },
        )
        if commitment != stored_record(SealedOrder, stored).commitment:
            raise InvalidArgument(
                f"order {order_id} is not what was sealed: side, price_micro_per_kwh, energy_wh or "
                "salt differs"
            )
        terms.check_price(price_micro_per_kwh)
        order = Order(
            order_id,
            connection_id,
            actor.connection.zone,
            product,
            interval_start,
            side,
            price_micro_per_kwh,
            energy_wh,
            needed_micro(terms, side, price_micro_per_kwh, energy_wh),
            "open",
            context.transaction_id,
            acted_by=actor.acted_by,
        )
        pledge = pending_hold(context, connection_id, _pledge_id(interval_start, order_id))
        enter_auction(context, actor, order, str(shard), ending=pledge)
        context.del_state(_key(product, interval_start, connection_id, order_id))
        return order

    @transaction
    def end_reveal(
        self, context: Context, *, product: Identifier, interval_start: Instant
    ) -> Revealed:
        """End revealing, so that the book can be cleared; again changes nothing."""
        access.require_member(context.creator, "run auctions")
        key = f"{interval_key(product, interval_start)}/revealed"
        stored = context.get_state(key)
        if stored is not None:
            return stored_record(Revealed, stored)
        _, terms = closed_terms(context, product, interval_start)
        if not terms.sealed:
            raise Conflict(f"{product} has open books; nothing is revealed")
        state = closed_state(context, product, interval_start)
        assert state is not None
        now = settings.now(context, energy_settings(context))
        until = revealing_until(state, terms)
        end = min(until, interval_start)
        if now < end or not gates.is_over(context, end):
            raise Conflict(
                f"orders of {product} for {utc_text(interval_start)} may be revealed until "
                f"{utc_text(end)}, and the channel's time is {utc_text(now)}, or no agent has "
                "written that time's gate yet (gate:Begin)"
            )
        revealed = Revealed(now, until <= interval_start)
        context.put_state(key, canonical_json(revealed))
        return revealed

    @transaction
    def forfeit(
        self, context: Context, *, product: Identifier, interval_start: Instant
    ) -> dict[str, Any]:
        """Take the pledges of what was not revealed, 500 at a time; again changes nothing."""
        access.require_member(context.creator, "run auctions")
        stored = context.get_state(f"{interval_key(product, interval_start)}/revealed")
        if stored is None:
            raise Conflict(
                f"orders of {product} for {utc_text(interval_start)} may still be revealed; "
                "book:EndReveal first"
            )
        forfeits = stored_record(Revealed, stored).forfeits
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        count = 0
        # Sealing ended with the close and revealing with what was just read: nobody writes here.
        prefix = f"seal/{product}/{interval_start:012d}/"
        for key, value in context.range(*under(prefix)):
            if count == MAX_FORFEITED:
                break
            sealed = stored_record(SealedOrder, value)
            account = sealed.connection_id
            hold = pending_hold(context, account, _pledge_id(interval_start, sealed.order_id))
            if forfeits:
                grid = grid_account(connection_of(context, account).utility)
                lost = Transfer(account, grid, hold.amount_micro, "pledge", sealed.order_id)
                ledger.end_hold(hold, "posted", [lost])
                context.put_state(f"forfeited/{key.removeprefix('seal/')}", value)
            else:
                ledger.end_hold(hold, "voided")
            context.del_state(key)
            count += 1
        ledger.write()
        return {
            "product": product,
            "interval_start": interval_start,
            "orders": count,
            "forfeited": forfeits,
        }

    @staticmethod
    def _end_pledge(
        context: Context, connection_id: str, interval_start: int, order_id: str
    ) -> None:
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        hold = pending_hold(context, connection_id, _pledge_id(interval_start, order_id))
        ledger.end_hold(hold, "voided")
        ledger.write()


def revealing_until(state: BookState, terms: Product) -> int:
    """When revealing may end, unless delivery begins before."""
    return state.closed_at + terms.reveal_s if state.reveal_until is None else state.reveal_until


def waits_any(context: Context, product: str, interval_start: int) -> bool:
    """Whether any sealed order was neither revealed nor forfeited."""
    first = next(context.range(*under(f"seal/{product}/{interval_start:012d}/")), None)
    return first is not None
