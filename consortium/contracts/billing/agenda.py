"""Contract `agenda`: what is due at the end of days, for the agents of the utilities.

Asking writes nothing. `metering` asks for the days to settle and the periods to bill, computes them
in private and names the calls (`duties.py`); the calls that need nothing private are named here:
reminders, final notices and warnings among them, which take nothing from a home. What does,
limiting and suspending, is named apart (`Steps`), and an agent asks for it only where its utility
wants that.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    InvalidArgument,
    MspId,
    NotFound,
    query,
    stored_record,
    under,
)

from ..assets import certificates
from ..assets.guarantees import MAX_OPEN_MONTHS, OpenMonth, OpenMonths, months_before
from ..common import access, settings
from ..common.clock import DAY_S, day_of, day_start
from ..common.dated import Span
from ..common.pages import Bookmark
from ..common.remembered import remembered
from ..market.bilateral import sold_as_produced
from ..oversight import challenges
from ..registry import roles
from ..registry.registry import Connection, connection_of, energy_settings
from ..settlement import communities, settlement
from ..settlement.communities import Membership
from ..settlement.days import (
    MAX_CELLS,
    MAX_CONNECTIONS,
    MAX_OPEN_DAYS,
    OPEN_FOR_DAYS,
    TURN_S,
    OpenDay,
    OpenDays,
    RevisedDay,
    RevisedDays,
)
from . import billing, permit, supply
from .bill_basis import MAX_OPEN_BILLS, BilledDay, OpenBill, OpenBills
from .protections import MAX_STEPS, PermitReady, ReadySteps
from .supply import BilledPeriod, Dues, Supplies
from .supply_terms import basis_of

LOOK_BACK_MONTHS = 2
"""How long plants' months are looked at."""
MAX_DUE = 200
_OF_EACH_HOME = ("billing", "connection", "permit", "prepaid", "supply")
"""Kinds of keys of which each home has one."""
_PARTS = ("metering_operator", "supplier", "balance_responsible", "grid_operator")
_UNATTENDED = ("billing:Dun", "permit:Warn", "permit:Restore")
"""Acts of a supplier that an agent sends by itself."""


def days_before(now: int) -> list[str]:
    """The days that are looked at, the oldest first; the last may not be over yet."""
    last = now - now % DAY_S
    return [day_of(at) for at in range(max(0, last - OPEN_FOR_DAYS * DAY_S), last + 1, DAY_S)]


def _open_parts(
    context: Context,
    utility: str,
    day: str,
    now: int,
    connections: Sequence[Connection],
    spans: Mapping[tuple[str, str], Sequence[Span]],
    memberships: Mapping[str, Sequence[Membership]],
) -> Iterator[OpenDay]:
    """A day's connections that are to be settled, in parts of which each is one call.

    Of each connection's runs only the one whose time has come is looked for.
    """
    interval_s = energy_settings(context).interval_s
    at = day_start(day)
    known: dict[str, tuple[int, int, int] | None] = {}
    groups: dict[tuple[str, ...], list[str]] = {}
    posted: dict[str, dict[str, None]] = {}
    for connection in connections:
        name = connection.connection_id

        def spans_of(role: str, name: str = name) -> Sequence[Span]:
            return spans.get((name, role), ())

        operator, supplier = (
            str(roles.holder(spans_of, connection, role, at)) for role in _PARTS[:2]
        )
        if operator != utility:
            continue
        if supplier not in known:
            known[supplier] = _day_times(context, supplier, day)
        times = known[supplier]
        if times is None or now < times[1]:
            continue
        run = "provisional" if now < times[2] else "final"
        if run not in posted:
            posted[run] = _posted(context, day, run)
        if name not in posted[run]:
            held = [str(roles.holder(spans_of, connection, role, at)) for role in _PARTS]
            community = communities.community_of(memberships.get(name, ()), day) or ""
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


def _day_times(context: Context, supplier: str, day: str) -> tuple[int, int, int] | None:
    """As settlement has them; None too while no calendar knows the day: others' days go on."""
    try:
        return settlement.day_times(context, supplier, day)
    except NotFound:
        return None


def _is_over(context: Context, connection_id: str, day: str) -> bool:
    """Whether a local day that a UTC day may touch has had its final run, or a bill."""
    at = day_start(day)
    touched = [day_of(near) for near in (max(0, at - DAY_S), at, at + DAY_S)]
    billed_to = Dues(context, connection_id).account.billed_to
    if billed_to is not None and billed_to > touched[0]:
        return True
    posted = (settlement.posted_day(context, connection_id, name) for name in touched)
    return any(one is not None and one.run != "provisional" for one in posted)


def _posted(context: Context, day: str, run: str) -> dict[str, None]:
    """Connections whose day was posted by a run."""
    prefix = f"st/{day}/{run}/"
    return {key.removeprefix(prefix): None for key, _ in context.range(*under(prefix))}


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
        # Most that are over wait for their last day: one look, in place of one for each day.
        last = day_of(day_start(end) - DAY_S)
        if (
            settlement.terms_on(context, terms.supplier, day_start(last)) is not None
            and settlement.posted_day(context, name, last) is None
        ):
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
        # By ranges: a query of 10,000 homes may not read each of their records by itself.
        connections = [
            stored_record(Connection, value) for _, value in context.range(*under("connection/"))
        ]
        spans, memberships = roles.all_spans(context), communities.all_memberships(context)
        # Each turn begins with another day: homes that are never read, of all days together, would
        # else keep those of the last days from being looked at.
        days = days_before(now)
        first = now // TURN_S % len(days)
        found: list[OpenDay] = []
        for day in days[first:] + days[:first]:
            parts = [*_open_parts(context, utility, day, now, connections, spans, memberships)]
            if found and len(found) + len(parts) > MAX_OPEN_DAYS:
                break
            found += parts
        found.sort(key=lambda one: one.day)
        return OpenDays(tuple(found[:MAX_OPEN_DAYS]))

    @query
    def revised(
        self,
        context: Context,
        *,
        utility: MspId,
        since: Instant,
        bookmark: Bookmark | None = None,
    ) -> RevisedDays:
        """Days of buyers that were adjusted for their sellers as produced since an instant."""
        self._require_operator(context, utility)
        contract_id, _, after = (bookmark or "").partition("/")
        found: list[RevisedDay] = []
        for terms in sold_as_produced(context):
            if terms.contract_id < contract_id:
                continue
            buyer = connection_of(context, terms.buyer)
            for key, value in context.range(*under(f"day/{terms.seller}/")):
                day, posted = key.rpartition("/")[2], stored_record(settlement.Posted, value)
                if terms.contract_id == contract_id and day <= after:
                    continue
                if (
                    posted.run.startswith("adjustment-")
                    and posted.posted_at >= since
                    and day_start(terms.from_day) <= day_start(day) < day_start(terms.to_day)
                    and roles.role_at(context, buyer, "metering_operator", day_start(day))
                    == utility
                ):
                    found.append(RevisedDay(terms.buyer, day))
                    if len(found) == MAX_OPEN_DAYS:
                        return RevisedDays(tuple(found), f"{terms.contract_id}/{day}")
        return RevisedDays(tuple(found), None)

    @query
    def settled(
        self,
        context: Context,
        *,
        utility: MspId,
        days: Annotated[tuple[RevisedDay, ...], AtMost(MAX_OPEN_DAYS)],
    ) -> RevisedDays:
        """Which of these UTC days touch a local one that is settled for good, or billed."""
        self._require_operator(context, utility)
        context = remembered(context)
        return RevisedDays(
            tuple(one for one in days if _is_over(context, one.connection_id, one.day)), None
        )

    @query
    def bills(self, context: Context, *, utility: MspId) -> OpenBills:
        """Periods of a utility's homes that are over, settled, and not billed."""
        self._require_operator(context, utility)
        context = remembered(context, *_OF_EACH_HOME)
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
    def plants(
        self, context: Context, *, utility: MspId, bookmark: Bookmark | None = None
    ) -> OpenMonths:
        """The last months of plants that a utility meters, as long as nothing is issued."""
        self._require_operator(context, utility)
        months = months_before(settings.now(context, energy_settings(context)), LOOK_BACK_MONTHS)
        found: list[OpenMonth] = []
        for one in certificates.open_months(context, utility, months, bookmark or ""):
            if len(found) > MAX_OPEN_MONTHS - LOOK_BACK_MONTHS and one.plant_id != (
                found[-1].plant_id
            ):
                return OpenMonths(tuple(found), found[-1].plant_id)
            found.append(one)
        return OpenMonths(tuple(found), None)

    @query
    def billed(self, context: Context, *, connection_id: Identifier, at: Instant) -> BilledDay:
        """By which bill an instant of a connection was billed last, if it was."""
        connection = connection_of(context, connection_id)
        self._require_operator(context, connection.utility)
        versions = supply.supplies_of(context, connection_id).versions
        if not versions:
            return BilledDay(connection_id, None, None, None)
        day = supply.calendar_at(context, versions[-1].region, at).day_at(at)
        found: BilledPeriod | None = None
        for key, value in context.range(*under(f"billperiod/{connection_id}/")):
            if key.rpartition("/")[2] > day:
                break
            found = stored_record(BilledPeriod, value)
        if found is None or not found.from_day <= day < found.to_day:
            return BilledDay(connection_id, None, None, None)
        return BilledDay(connection_id, found.from_day, found.to_day, found.run)

    @query
    def steps(self, context: Context, *, utility: MspId) -> ReadySteps:
        """Limits and suspensions of a utility's homes that lack nothing but a clearance."""
        self._require_operator(context, utility)
        context = remembered(context, *_OF_EACH_HOME)
        now = settings.now(context, energy_settings(context))
        found: list[PermitReady] = []
        for key, value in context.range(*under("supply/")):
            name = key.removeprefix("supply/")
            if len(found) == MAX_STEPS:
                break
            if connection_of(context, name).utility != utility:
                continue
            acts = billing.acts_of(context, name, stored_record(Supplies, value), utility, now)
            if any(act["function"] == "protection:Clear" for act in acts):
                ready = permit.Permits().ready(context, connection_id=name)
                found += [ready] if ready.hindrance is None else []
        return ReadySteps(tuple(found))

    @query
    def due(self, context: Context) -> list[dict[str, Any]]:
        """Calls that the caller's utility may submit now: closing the clearing house, reminders."""
        utility = context.creator.msp_id
        self._require_operator(context, utility)
        context = remembered(context, *_OF_EACH_HOME)
        now = settings.now(context, energy_settings(context))
        found: list[dict[str, Any]] = []
        for day in days_before(now):
            left, lines, count = settlement.market_left(context, day)
            # More than roundings is left: somebody's day isn't posted yet.
            if count and 2 * abs(left) <= lines and settlement.market_closed(context, day) != left:
                found.append({"function": "settlement:CloseMarket", "argument": {"day": day}})
        found += challenges.overdue(context)
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
        access.require_operator(context.creator, utility, f"see what is due at {utility}")
