"""Contract `protection` of chaincode `metering`: who must not be cut off, and who may be.

That a home is protected (a medical device, say) is health data. It stands in the private collection
of the home's utility. Before a permit is limited or suspended, the utility gives a *clearance*: a
private record that it can only write for a home that isn't protected, whose content everybody
knows, so that every peer checks its hash. A new mark takes the clearance away: a suspension that
is still in flight then fails validation by itself.

The hash of a mark's key is public and can be guessed, so the existence of a mark must tell nothing:
every home has one, most of them `none`, and they are declared many at a time. Beside it stands on
which days the home is entitled to the social tariff, for the same reasons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

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
    MspId,
    Text,
    query,
    read_item,
    read_list,
    transaction,
)

from ..common import access, commitments, settings
from ..common.clock import DAY_S, day_start
from ..common.commitments import Salt, called
from ..common.residence import residence
from ..common.settings import MeteringSettings
from .bill_basis import EntitledDays

MAX_MARKS = 500
MAX_STEPS = 100
MAX_ENTITLED = 24
"""Times of one home's entitlement to the social tariff."""
CLEARANCE_S = 3 * DAY_S
"""How long a clearance can be used."""

Case = Annotated[int, Integer(1, 10**6)]


@dataclass(frozen=True, slots=True)
class Mark:
    """Whether a home is protected, and when it is entitled to the social tariff."""

    connection_id: Identifier
    kind: Annotated[str, Choice("none", "medical", "vulnerable")]
    until: Instant
    """Channel time at which a protection ends."""
    salt: Salt
    social: Annotated[tuple[EntitledDays, ...], AtMost(MAX_ENTITLED)] = ()
    """In order, none of them twice."""


@dataclass(frozen=True, slots=True)
class Clearance:
    """The utility's word that a home may be limited or suspended; its content is no secret."""

    connection_id: Identifier
    case: Case
    """Which notice it is for."""
    cleared_at: Instant


@dataclass(frozen=True, slots=True)
class PermitCase:
    """What `energy` says of a connection's permit (permit:Case)."""

    connection_id: Identifier
    utility: MspId
    """Who meters the connection and keeps its mark."""
    case: Annotated[int, Integer(0, 10**6)]
    """Number of the last notice; 0 before the first."""
    noticed: bool
    """Whether it is in force."""


@dataclass(frozen=True, slots=True)
class PermitReady:
    """What `permit:Ready` of `energy` answers."""

    connection_id: Identifier
    case: Annotated[int, Integer(0, 10**6)]
    function: Annotated[str, Choice("permit:Limit", "permit:Suspend")] | None
    """The step that is next; None: no step that takes supply away."""
    hindrance: Annotated[str, Text(r"[^\x00-\x1f]{1,1000}", "a sentence")] | None
    """Why it can't be taken now; None: a clearance is all that is lacking."""


@dataclass(frozen=True, slots=True)
class ReadySteps:
    """What `agenda:Steps` of `energy` answers."""

    steps: Annotated[tuple[PermitReady, ...], AtMost(MAX_STEPS)]


def mark_of(context: Context, utility: str, connection_id: str) -> Mark | None:
    """Whether a home is protected, on a peer of its utility; None if nobody has said."""
    return commitments.opened(context, utility, _mark_key(connection_id), Mark)


def clearance_of(context: Context, utility: str, connection_id: str) -> Clearance | None:
    """The clearance that stands, on a peer of its utility."""
    return commitments.opened(context, utility, clearance_key(connection_id), Clearance)


def clearance_key(connection_id: str) -> str:
    """Where a connection's clearance stands among the private records."""
    return f"clear/{connection_id}"


def _mark_key(connection_id: str) -> str:
    return f"protected/{connection_id}"


def _check_entitled(social: Sequence[EntitledDays]) -> None:
    """Raise InvalidArgument unless each follows the one before."""
    before = ""
    for number, each in enumerate(social):
        day_start(each.from_day)
        day_start(each.to_day)
        if not before <= each.from_day < each.to_day:
            raise InvalidArgument(
                f"social[{number}] must end after it begins, and begin after the one before ends"
            )
        before = each.to_day


def _now(context: Context) -> int:
    channel = settings.read(context, MeteringSettings, "metering:Configure")
    return settings.now(context, channel)


class Protections(Contract):
    """Marks, and clearances."""

    name: ClassVar[str] = "protection"

    @transaction
    def declare(self, context: Context, *, utility: MspId) -> dict[str, Any]:
        """Say of up to 500 homes whether they are protected; it travels as transient data."""
        access.require_operator(context.creator, utility, f"declare who is protected at {utility}")
        if "protections" not in context.transient:
            raise InvalidArgument("the transient data has no entry named protections")
        items = read_list(context.transient["protections"], "protections", "protections", MAX_MARKS)
        marks: dict[str, Mark] = {}
        for item in items:
            mark = read_item(Mark, item)
            if mark.connection_id in marks:
                raise InvalidArgument(f"protections names {mark.connection_id} twice")
            _check_entitled(mark.social)
            marks[mark.connection_id] = mark
        for connection_id, mark in marks.items():
            commitments.put(context, utility, _mark_key(connection_id), mark)
            # Of every home, protected or not, or its absence would tell.
            context.del_private(commitments.collection(utility), clearance_key(connection_id))
        return {"utility": utility, "declared": len(marks)}

    @transaction
    def clear(self, context: Context, *, connection_id: Identifier) -> Clearance:
        """Let a home that isn't protected be limited or suspended, for one case and three days."""
        found = called(context, "energy", "permit:Case", PermitCase, connection_id=connection_id)
        utility, case = found.utility, found.case
        access.require_operator(context.creator, utility, f"clear {connection_id} for suspension")
        if not found.noticed:
            raise Conflict(f"connection {connection_id} has been given no notice; nothing to clear")
        now = _now(context)
        mark = commitments.opened(context, utility, _mark_key(connection_id), Mark)
        if mark is None:
            raise Conflict(
                f"nobody has declared whether {connection_id} is protected; protection:Declare "
                "comes first"
            )
        if mark.kind != "none" and now < mark.until:
            raise Conflict(f"connection {connection_id} is protected; it may not be cut off")
        key = clearance_key(connection_id)
        clearance = commitments.opened(context, utility, key, Clearance)
        if (
            clearance is None
            or clearance.case != case
            or not clearance.cleared_at <= now < clearance.cleared_at + CLEARANCE_S // 2
        ):
            clearance = Clearance(connection_id, case, now)
        commitments.put(context, utility, key, clearance)
        return clearance

    @query
    def mark(self, context: Context, *, connection_id: Identifier) -> Mark | None:
        """Whether a home is protected, on a peer of its utility; null if nobody has said."""
        utility = called(
            context, "energy", "permit:Case", PermitCase, connection_id=connection_id
        ).utility
        access.require(
            residence(context, utility, connection_id).at(_now(context))
            or access.is_operator(context.creator, utility),
            context.creator,
            f"see whether {connection_id} is protected",
            f"its home and operators of {utility}",
        )
        return mark_of(context, utility, connection_id)
