"""Caps on positions: how much of an interval's energy one participant may hold in a zone.

Several utilities agree on them, so that nobody corners a zone: for each connection of a zone, for
one connection by its id, or for a company, whose plants (connections at which it is the plant
operator) count together. What is capped is what is promised in an interval, sold and bought each
for itself, however it is traded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import (
    Conflict,
    Context,
    Identifier,
    Integer,
    InvalidArgument,
    MspId,
    NotFound,
)

from ..common import agreements
from ..common.clock import utc_text
from ..registry import roles
from ..registry.registry import Connection, connection_of
from .positions import Position

CAP = "cap"
"""The kind of agreement."""
Most = Annotated[int, Integer(0, 10**12, "Wh")]


@dataclass(frozen=True, slots=True)
class Cap:
    """The most of an interval's energy that somebody may hold in a zone."""

    zone: Identifier
    participant: MspId | None
    """A connection or a company; None: each connection of the zone."""
    most_sold_wh: Most | None
    """None: no cap."""
    most_bought_wh: Most | None


def name_of(zone: str, participant: str | None) -> str:
    """Under which name a cap is agreed; a zone's name has no dot."""
    return zone if participant is None else f"{zone}.{participant}"


def check_terms(cap: Cap) -> None:
    """Raise InvalidArgument for a cap of nothing."""
    if cap.most_sold_wh is None and cap.most_bought_wh is None:
        raise InvalidArgument("most_sold_wh and most_bought_wh are both null; cap one at least")


def check(
    context: Context,
    connection: Connection,
    position: Position,
    side: str,
    interval_start: int,
    position_at: Callable[[str], Position],
) -> None:
    """Raise Conflict if a connection's new position is more than a cap allows.

    Args:
        context: The transaction.
        connection: Whose position it is.
        position: What it would be.
        side: offer or bid: what is added to.
        interval_start: Of which interval.
        position_at: The present position of another connection in it.
    """
    name, zone = connection.connection_id, connection.zone
    own = position.promised_wh(side)
    for who in (None, name):
        _require(context, zone, who, side, own, interval_start)
    operator = roles.role_at(context, connection, "plant_operator", interval_start)
    if operator is None or _most(context, zone, operator, side, interval_start) is None:
        return
    together = own
    for other in roles.operated_by(context, operator):
        if other == name:
            continue
        found = connection_of(context, other)
        if (
            found.zone == zone
            and roles.role_at(context, found, "plant_operator", interval_start) == operator
        ):
            together += position_at(other).promised_wh(side)
    _require(context, zone, operator, side, together, interval_start)


def _most(context: Context, zone: str, who: str | None, side: str, at: int) -> int | None:
    try:
        cap = agreements.in_force(context, CAP, name_of(zone, who), at, Cap)
    except NotFound:
        return None
    return cap.most_sold_wh if side == "offer" else cap.most_bought_wh


def _require(
    context: Context, zone: str, who: str | None, side: str, energy_wh: int, at: int
) -> None:
    most = _most(context, zone, who, side, at)
    if most is not None and energy_wh > most:
        verb = "sold" if side == "offer" else "bought"
        whose = "each connection" if who is None else who
        raise Conflict(
            f"in zone {zone} {whose} may have {verb} {most} Wh of the interval starting "
            f"{utc_text(at)}, but {energy_wh} Wh would be promised"
        )
