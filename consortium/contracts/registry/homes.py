"""Who lives at a connection: whether the caller is its home now, and when it was.

role/{connection_id}/home      the spans of all who have lived there; see `roles.py`
"""

from consortium.chaincode.api import Context, stored_record

from ..common import access, settings
from ..common.residence import EVERYBODY, NOBODY, Residence, Residents, residence_of
from .registry import Connection, energy_settings


def residence(context: Context, connection: Connection) -> Residence:
    """When the caller has lived at a connection, in chaincode `energy`."""
    name = connection.connection_id
    if not access.is_home(context.creator, connection.utility, name):
        return NOBODY
    stored = context.get_state(f"role/{name}/home")
    spans = () if stored is None else stored_record(Residents, stored).spans
    return residence_of(context.creator, connection.utility, name, spans)


def is_home(context: Context, connection: Connection) -> bool:
    """Whether the caller lives at a connection now: then it may act for it."""
    found = residence(context, connection)
    return found.ever and found.at(settings.now(context, energy_settings(context)))


def lives_since(context: Context, connection_id: str, now: int) -> int | None:
    """Since when who lives at a connection now has, None if nobody does.

    0 for the first who was entered, and where nobody was: what was agreed before is theirs.
    """
    stored = context.get_state(f"role/{connection_id}/home")
    spans = () if stored is None else stored_record(Residents, stored).spans
    for number, span in enumerate(spans):
        if span.from_ <= now and (span.until is None or now < span.until):
            others = [one for one in spans[:number] if one.holder != span.holder]
            return span.from_ if others else 0
    return None if spans and now >= spans[0].from_ else 0


def require_home(context: Context, connection: Connection, act: str) -> None:
    """Raise Forbidden unless the caller lives at a connection now."""
    access.require(is_home(context, connection), context.creator, act, "its home alone")


def require_home_or_operator(context: Context, connection: Connection, act: str) -> None:
    """Raise Forbidden unless the caller lives at a connection now, or operates it."""
    access.require(
        is_home(context, connection) or access.is_operator(context.creator, connection.utility),
        context.creator,
        act,
        f"its home and operators of {connection.utility}",
    )


def seen(context: Context, connection: Connection, act: str) -> Residence:
    """Of which times the caller may see a connection's records: a home its own, operators all.

    Raises Forbidden for anybody else.
    """
    if access.is_operator(context.creator, connection.utility):
        return EVERYBODY
    found = residence(context, connection)
    access.require(
        found.ever,
        context.creator,
        f"{act} of {connection.connection_id}",
        f"its home and operators of {connection.utility}",
    )
    return found


def lived_on(context: Context, utility: str, connection_id: str, day: str) -> bool:
    """Whether the caller was the home at a connection of this utility on a day."""
    if not access.is_home(context.creator, utility, connection_id):
        return False
    stored = context.get_state(f"connection/{connection_id}")
    return stored is not None and residence(context, stored_record(Connection, stored)).on(day)
