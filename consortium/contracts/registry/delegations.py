"""Contract `delegation`: a home lets a trader act for it, within limits, until it takes that back.

Whoever acts under a delegation reads its key, and taking it back deletes the key: what is still in
flight then fails validation by itself.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Contract,
    Forbidden,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    MspId,
    NotFound,
    canonical_json,
    query,
    stored_record,
    transaction,
)

from ..common import access, settings
from ..common.clock import utc_text
from ..common.pages import Bookmark, listed
from ..common.settings import Price
from ..market import gates
from . import homes
from .registry import Connection, connection_of, energy_settings

Act = Annotated[str, Choice("order", "sell", "respond")]
"""order: place, amend and cancel orders. sell: authorise quotes. respond: demand response."""
Energy = Annotated[int, Integer(1, 10**9, "Wh")]


@dataclass(frozen=True, slots=True)
class Delegation:
    """What a trader may do for a home."""

    delegation_id: Identifier
    connection_id: Identifier
    trader: Identifier
    """As the trader's certificate says in its attribute gridledger.participant."""
    acts: Annotated[tuple[Act, ...], AtMost(3)]
    until: Instant
    max_energy_wh: Energy
    """Promised in one interval at most, in each direction, the home's own acts included."""
    lowest_price: Price
    """No sale below it."""
    highest_price: Price
    """No purchase above it."""
    certified_by: MspId | None = None
    """Whose CA certifies the trader; None: the home's own utility. Any CA can write any name."""
    given_at: Instant | None = None
    """When, as the ledger notes it: it ends when who gave it moves out."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts for a connection: its home, or a trader under a delegation."""

    connection: Connection
    delegation: Delegation | None

    @property
    def acted_by(self) -> str | None:
        """The trader; None for the home itself."""
        return None if self.delegation is None else self.delegation.trader

    def check(self, side: str, price: int, promised_wh: int) -> None:
        """Raise Forbidden if a price or an interval's energy is outside of the delegation."""
        found = self.delegation
        if found is None:
            return
        if side == "offer" and price < found.lowest_price:
            raise Forbidden(
                f"delegation {found.delegation_id} allows no sale below {found.lowest_price}, but "
                f"the price is {price}"
            )
        if side == "bid" and price > found.highest_price:
            raise Forbidden(
                f"delegation {found.delegation_id} allows no purchase above {found.highest_price}, "
                f"but the price is {price}"
            )
        if promised_wh > found.max_energy_wh:
            raise Forbidden(
                f"delegation {found.delegation_id} allows {found.max_energy_wh} Wh in an interval, "
                f"but {promised_wh} would be promised"
            )


def actor_for(
    context: Context, connection_id: str, act: str, delegation_id: str | None, doing: str
) -> Actor:
    """Return who acts for a connection.

    Raises:
        Forbidden: neither its home nor a trader with a delegation for this act.
        NotFound: there is no such connection or delegation.
    """
    connection = connection_of(context, connection_id)
    creator = context.creator
    if delegation_id is None:
        homes.require_home(context, connection, doing)
        return Actor(connection, None)
    trader = access.participant(creator)
    stored = trader and context.get_state(_key(connection_id, trader, delegation_id))
    if not stored:
        raise NotFound(
            f"{connection_id} has given {access.described(creator)} no delegation {delegation_id}, "
            "or has taken it back"
        )
    delegation = stored_record(Delegation, stored)
    certifier = delegation.certified_by or connection.utility
    access.require(
        creator.msp_id == certifier,
        creator,
        f"act under delegation {delegation_id} to {trader}",
        f"who {certifier} certifies as {trader}",
    )
    now = settings.now(context, energy_settings(context))
    if now >= delegation.until:
        raise Forbidden(f"delegation {delegation_id} ended at {utc_text(delegation.until)}")
    since = homes.lives_since(context, connection_id, now)
    if since is None or (delegation.given_at or 0) < since:
        raise Forbidden(
            f"delegation {delegation_id} was given by who lived at {connection_id} before; who "
            "lives there now has not given it"
        )
    gates.before(context, delegation.until)
    if act not in delegation.acts:
        raise Forbidden(
            f"delegation {delegation_id} is for {', '.join(delegation.acts)}, not for {act}"
        )
    return Actor(connection, delegation)


def _key(connection_id: str, trader: str, delegation_id: str) -> str:
    return f"deleg/{connection_id}/{trader}/{delegation_id}"


class Delegations(Contract):
    """Giving delegations and taking them back."""

    name: ClassVar[str] = "delegation"

    @transaction
    def give(self, context: Context, *, delegation: Delegation) -> Delegation:
        """Let a trader act for the caller's home; the same again changes nothing."""
        connection_id = delegation.connection_id
        connection = connection_of(context, connection_id)
        homes.require_home(context, connection, f"give delegations of {connection_id}")
        if not delegation.acts:
            raise InvalidArgument("acts is empty; name one of order, sell and respond at least")
        now = settings.now(context, energy_settings(context))
        if delegation.until <= now:
            raise InvalidArgument(
                f"until is {utc_text(delegation.until)}, but the channel's time is {utc_text(now)}"
            )
        if delegation.given_at is not None:
            raise InvalidArgument("given_at is what the ledger notes; leave it out")
        key = _key(connection_id, delegation.trader, delegation.delegation_id)
        stored = context.get_state(key)
        known = None if stored is None else stored_record(Delegation, stored)
        since = homes.lives_since(context, connection_id, now)
        if known is None or (since is not None and (known.given_at or 0) < since):
            known = replace(delegation, given_at=now)
            context.put_state(key, canonical_json(known))
        elif replace(known, given_at=None) != delegation:
            raise Conflict(
                f"delegation {delegation.delegation_id} to {delegation.trader} is another one; "
                "take it back first, or give this one its own id"
            )
        return known

    @transaction
    def take_back(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        trader: Identifier,
        delegation_id: Identifier,
    ) -> dict[str, Any]:
        """End a delegation at once; again changes nothing."""
        connection = connection_of(context, connection_id)
        homes.require_home_or_operator(
            context, connection, f"take back delegations of {connection_id}"
        )
        key = _key(connection_id, trader, delegation_id)
        given = context.get_state(key) is not None
        if given:
            context.del_state(key)
        return {"connection_id": connection_id, "delegation_id": delegation_id, "ended": given}

    @query
    def given(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """The delegations of a connection."""
        connection = connection_of(context, connection_id)
        homes.require_home_or_operator(context, connection, f"read delegations of {connection_id}")
        return listed(
            context, "delegations", Delegation, f"deleg/{connection_id}/", "", limit, bookmark
        )
