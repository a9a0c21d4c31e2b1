"""Contract `agenda`: what is due at the end of days, for the agents of the utilities.

Asking writes nothing. `metering` asks for the days to settle and the periods to bill, computes them
in private and names the calls (`duties.py`); the calls that need nothing private are named here.
What takes something from a home, a warning or a suspension, is left to people.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from consortium.chaincode.api import (
    Conflict,
    Context,
    Contract,
    InvalidArgument,
    MspId,
    NotFound,
    query,
    stored_record,
    under,
)

from ..common import access, settings
from ..common.clock import DAY_S, day_of, day_start
from ..registry import roles
from ..registry.registry import Connection, connection_of, energy_settings
from ..settlement import communities, settlement
from ..settlement.days import MAX_CELLS, MAX_CONNECTIONS, MAX_OPEN_DAYS, OpenDay, OpenDays
from . import billing, supply
from .bill_basis import MAX_OPEN_BILLS, OpenBill, OpenBills
from .supply import Dues, Supplies
from .supply_terms import basis_of

LOOK_BACK_DAYS = 21
"""How long after a day it is looked at: by then its final run is posted."""
MAX_DUE = 200
_PARTS = ("metering_operator", "supplier", "balance_responsible", "grid_operator")
_UNATTENDED = ("billing:Dun", "permit:Restore")
"""Acts of a supplier that an agent sends by itself."""


def days_before(now: int) -> list[str]:
    """The days that are looked at, the oldest first; the last may not be over yet."""
    last = now - now % DAY_S
    return [day_of(at) for at in range(max(0, last - LOOK_BACK_DAYS * DAY_S), last + 1, DAY_S)]


def _open_parts(
    context: Context,
    utility: str,
    day: str,
    now: int,
    connections: Sequence[tuple[str, Connection]],
    posted: Mapping[str, Sequence[str]],
) -> Iterator[OpenDay]:
    """A day's connections that are to be settled, in parts of which each is one call."""
    interval_s = energy_settings(context).interval_s
    at = day_start(day)
    known: dict[str, tuple[int, int, int] | None] = {}
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, connection in connections:
        held = [str(roles.role_at(context, connection, role, at)) for role in _PARTS]
        if held[0] != utility:
            continue
        supplier = held[1]
        if supplier not in known:
            known[supplier] = settlement.day_times(context, supplier, day)
        times = known[supplier]
        if times is None or now < times[1]:
            continue
        run = "provisional" if now < times[2] else "final"
        if run not in posted.get(name, ()):
            community = communities.community_at(context, name, day) or ""
            groups.setdefault((run, *held, community), []).append(name)
    for (run, _, supplier, *_, community), names in groups.items():
        times = known[supplier]
        assert times is not None
        start, end, _ = times
        size = MAX_CONNECTIONS
        if not community:
            size = min(size, max(1, MAX_CELLS * interval_s // (end - start)))
        for first in range(0, len(names), size):
            part = tuple(names[first : first + size])
            yield OpenDay(day, run, end, start, community != "", part)


def _open_bill(
    context: Context, connection: Connection, supplies: Supplies, now: int
) -> OpenBill | None:
    """The next period of a connection, if it is over and its days are settled."""
    name = connection.connection_id
    first = Dues(context, name).account.billed_to or supplies.versions[0].from_day
    terms = supplies.on(first)
    assert terms is not None
    end = supply.period_end(supplies, first)
    try:
        if supply.calendar_at(context, terms.region, now).start_of(end) > now:
            return None
        basis_of(context, connection, first, end)
    except Conflict, InvalidArgument, NotFound:
        return None  # a day isn't settled, or a calendar, tariff or index isn't there yet
    return OpenBill(name, first, end)


class Agenda(Contract):
    """What is due."""

    name: ClassVar[str] = "agenda"

    @query
    def days(self, context: Context, *, utility: MspId) -> OpenDays:
        """Days of a utility's meters that are over and not posted, as calls settle them."""
        self._require_operator(context, utility)
        now = settings.now(context, energy_settings(context))
        connections = [
            (key.removeprefix("connection/"), stored_record(Connection, value))
            for key, value in context.range(*under("connection/"))
        ]
        found: list[OpenDay] = []
        for day in days_before(now):
            posted: dict[str, list[str]] = {}
            for key, _ in context.range(*under(f"st/{day}/")):
                run, name = key.split("/")[2:]
                posted.setdefault(name, []).append(run)
            left = [
                (name, one)
                for name, one in connections
                if posted.get(name, ["provisional"]) == ["provisional"]
            ]
            found += _open_parts(context, utility, day, now, left, posted)
            if len(found) >= MAX_OPEN_DAYS:
                break
        return OpenDays(tuple(found[:MAX_OPEN_DAYS]))

    @query
    def bills(self, context: Context, *, utility: MspId) -> OpenBills:
        """Periods of a utility's homes that are over, settled, and not billed."""
        self._require_operator(context, utility)
        now = settings.now(context, energy_settings(context))
        found: list[OpenBill] = []
        for key, value in context.range(*under("supply/")):
            connection = connection_of(context, key.removeprefix("supply/"))
            if connection.utility == utility:
                bill = _open_bill(context, connection, stored_record(Supplies, value), now)
                found += [] if bill is None else [bill]
                if len(found) == MAX_OPEN_BILLS:
                    break
        return OpenBills(tuple(found))

    @query
    def due(self, context: Context) -> list[dict[str, Any]]:
        """Calls that the caller's utility may submit now: closing the clearing house, reminding."""
        utility = context.creator.msp_id
        self._require_operator(context, utility)
        now = settings.now(context, energy_settings(context))
        found: list[dict[str, Any]] = []
        for day in days_before(now):
            left, lines, count = settlement.market_left(context, day)
            # More than roundings is left: somebody's day isn't posted yet.
            if count and 2 * abs(left) <= lines and settlement.market_closed(context, day) != left:
                found.append({"function": "settlement:CloseMarket", "argument": {"day": day}})
        for key, value in context.range(*under("supply/")):
            if len(found) >= MAX_DUE:
                break
            name, supplies = key.removeprefix("supply/"), stored_record(Supplies, value)
            found += [
                {
                    "function": act["function"],
                    "argument": act["argument"],
                    "utility": utility,
                    "endorsing": [],
                }
                for act in billing.acts_of(context, name, supplies, utility, now)
                if act["function"] in _UNATTENDED
            ]
        return found[:MAX_DUE]

    @staticmethod
    def _require_operator(context: Context, utility: str) -> None:
        access.require(
            access.is_operator(context.creator, utility),
            context.creator,
            f"see what is due at {utility}",
            f"operators of {utility}",
        )
