"""Contract `sharing`: energy communities, and how they share what their members export.

A community's terms (method, keys, price) are agreed by utilities and come in dated versions. Homes
join and leave by themselves, from a later UTC day on, so that who was a member on a day that has
begun never changes. Its members are metered by one utility, which settles them together.

    community/{community}            what it is, once
    member/{connection}              the spans of a home's memberships; its home writes it
    cm/{community}/{connection}      that it ever was a member, and its last seat
    seat/{community}/{seat}          who has the seat: there are as many as may be members
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    LimitExceeded,
    MspId,
    NotFound,
    canonical_json,
    query,
    sha256_hex,
    stored_record,
    transaction,
    under,
)

from ..common import access, agreements, settings
from ..common.agreements import Agreement, Version
from ..common.clock import DAY_S, Day, day_start, utc_text
from ..common.settings import Price
from ..market import gates
from ..registry import homes
from ..registry.registry import connection_of, energy_settings
from .days import MAX_MEMBERS, CommunityDay, Key, most_members

MAX_SPANS = 100
_TERMS = "community"


@dataclass(frozen=True, slots=True)
class CommunityTerms:
    """How a community shares."""

    community: Identifier
    utility: MspId
    """Who meters its members."""
    method: Annotated[str, Choice("static", "proportional")]
    """static: each member's key; proportional: by what each imports."""
    price_micro_per_kwh: Price
    """What who takes pays to who gives."""
    keys: Annotated[tuple[Key, ...], AtMost(MAX_MEMBERS)]
    """For static: in order of names; who isn't named takes nothing."""


@dataclass(frozen=True, slots=True)
class Membership:
    """A home's time in a community."""

    community: Identifier
    from_day: Day
    until_day: Day | None
    """The first day on which it isn't a member any more."""

    def holds(self, at: int) -> bool:
        """Whether it is a member at an instant."""
        return day_start(self.from_day) <= at and (
            self.until_day is None or at < day_start(self.until_day)
        )


@dataclass(frozen=True, slots=True)
class _Seated:
    seat: Annotated[int, Integer(0, MAX_MEMBERS - 1)]


@dataclass(frozen=True, slots=True)
class _Memberships:
    spans: Annotated[tuple[Membership, ...], AtMost(MAX_SPANS)]


def memberships_of(context: Context, connection_id: str) -> tuple[Membership, ...]:
    """All communities that a home has joined, in order."""
    stored = context.get_state(f"member/{connection_id}")
    return () if stored is None else stored_record(_Memberships, stored).spans


def community_at(context: Context, connection_id: str, day: str) -> str | None:
    """The community that a home is a member of on a day."""
    return community_of(memberships_of(context, connection_id), day)


def community_of(memberships: Sequence[Membership], day: str) -> str | None:
    """The same, by all that a home has joined."""
    for span in memberships:
        if span.holds(day_start(day)):
            return span.community
    return None


def all_memberships(context: Context) -> dict[str, tuple[Membership, ...]]:
    """All communities that homes have joined, by home."""
    return {
        key.removeprefix("member/"): stored_record(_Memberships, value).spans
        for key, value in context.range(*under("member/"))
    }


def members_at(context: Context, community: str, day: str) -> tuple[str, ...]:
    """Who is a member on a day, in order of names."""
    members = []
    for key, _ in context.range(*under(f"cm/{community}/")):
        name = key.rpartition("/")[2]
        if community_at(context, name, day) == community:
            members.append(name)
    if len(members) > MAX_MEMBERS:
        raise LimitExceeded(f"community {community} has more than {MAX_MEMBERS} members")
    return tuple(members)


def day_of_community(context: Context, community: str, day: str) -> CommunityDay:
    """How a community shares on a day; raises NotFound."""
    terms = agreements.in_force(context, _TERMS, community, day_start(day), CommunityTerms)
    return CommunityDay(
        community,
        terms.method,
        terms.price_micro_per_kwh,
        terms.keys,
        members_at(context, community, day),
    )


def with_members(context: Context, connection_id: str, day: str) -> tuple[str, ...]:
    """A connection, with the members of its community: who is settled together at least."""
    community = community_at(context, connection_id, day)
    return (connection_id,) if community is None else members_at(context, community, day)


class Communities(Contract):
    """Communities and their members."""

    name: ClassVar[str] = "sharing"

    @transaction
    def propose(
        self, context: Context, *, terms: CommunityTerms, effective_from: Instant
    ) -> Agreement:
        """Propose a community, or a new version of its terms."""
        access.require_operator(
            context.creator, terms.utility, f"propose communities of {terms.utility}"
        )
        names = [key.connection_id for key in terms.keys]
        if names != sorted(dict.fromkeys(names)):
            raise InvalidArgument("terms.keys must be in order of names, each once")
        if terms.method == "static" and not sum(key.parts for key in terms.keys):
            raise InvalidArgument("terms.keys gives no part to anybody, but the method is static")
        if terms.method == "proportional" and terms.keys:
            raise InvalidArgument("terms.keys is for static keys; proportional ones follow import")
        if effective_from % DAY_S:
            raise InvalidArgument(
                f"effective_from is {utc_text(effective_from)}, but terms begin with a UTC day"
            )
        place = f"community/{terms.community}"
        stored = context.get_state(place)
        owner = canonical_json({"utility": terms.utility})
        if stored is None:
            context.put_state(place, owner)
        elif stored != owner:
            raise Conflict(f"community {terms.community} is another utility's")
        return agreements.propose(context, _TERMS, terms.community, effective_from, terms)

    @transaction
    def approve(self, context: Context, *, community: Identifier, version: Version) -> Agreement:
        """Approve a version of a community's terms for the caller's utility."""
        return agreements.approve(context, _TERMS, community, version)

    @query
    def terms(self, context: Context, *, community: Identifier, day: Day) -> CommunityTerms:
        """How a community shares on a day."""
        return agreements.in_force(context, _TERMS, community, day_start(day), CommunityTerms)

    @transaction
    def join(
        self, context: Context, *, community: Identifier, connection_id: Identifier, from_day: Day
    ) -> Membership:
        """Become a member from a later day on; the same again changes nothing."""
        connection = connection_of(context, connection_id)
        homes.require_home(context, connection, f"join a community with {connection_id}")
        spans = memberships_of(context, connection_id)
        joined = Membership(community, from_day, None)
        if spans and spans[-1] == joined:
            return joined
        self._check_later(context, "from_day", from_day)
        at = day_start(from_day)
        terms = agreements.in_force(context, _TERMS, community, at, CommunityTerms)
        if terms.utility != connection.utility:
            raise Conflict(
                f"community {community} is of homes that {terms.utility} meters, but "
                f"{connection_id} is {connection.utility}'s"
            )
        if spans and (spans[-1].until_day is None or at < day_start(spans[-1].until_day)):
            raise Conflict(
                f"{connection_id} is a member of {spans[-1].community}; sharing:Leave first"
            )
        if len(spans) == MAX_SPANS:
            raise LimitExceeded(f"{connection_id} has joined {MAX_SPANS} times, the limit")
        seat = self._seat(context, community, connection_id, from_day)
        context.put_state(f"seat/{community}/{seat:02d}", connection_id.encode())
        seated = canonical_json(_Seated(seat))
        ever = f"cm/{community}/{connection_id}"
        if context.get_state(ever) != seated:
            context.put_state(ever, seated)
        self._store(context, connection_id, (*spans, joined))
        return joined

    @transaction
    def leave(self, context: Context, *, connection_id: Identifier, until_day: Day) -> Membership:
        """Be no member from a later day on; the same again changes nothing."""
        connection = connection_of(context, connection_id)
        homes.require_home_or_operator(
            context, connection, f"leave a community with {connection_id}"
        )
        spans = memberships_of(context, connection_id)
        if not spans:
            raise NotFound(f"{connection_id} is a member of no community")
        if spans[-1].until_day == until_day:
            return spans[-1]
        if spans[-1].until_day is not None:
            raise Conflict(
                f"{connection_id} leaves {spans[-1].community} on {spans[-1].until_day} already"
            )
        self._check_later(context, "until_day", until_day)
        if day_start(until_day) < day_start(spans[-1].from_day):
            raise InvalidArgument(
                f"until_day is {until_day}, before it joins, {spans[-1].from_day}"
            )
        left = replace(spans[-1], until_day=until_day)
        self._store(context, connection_id, (*spans[:-1], left))
        return left

    @query
    def members(self, context: Context, *, community: Identifier, day: Day) -> dict[str, Any]:
        """Who is a member on a day."""
        return {
            "community": community,
            "day": day,
            "members": list(members_at(context, community, day)),
        }

    @query
    def together(self, context: Context, *, connection_id: Identifier, day: Day) -> dict[str, Any]:
        """A connection and the members of its community: who is settled with it at least."""
        connection_of(context, connection_id)
        return {"connections": list(with_members(context, connection_id, day))}

    @staticmethod
    def _seat(context: Context, community: str, connection_id: str, from_day: str) -> int:
        """The place that a home takes among the members, who are so many at most.

        By single reads, from a place of its own on: homes that join at once seldom meet.

        Raises:
            LimitExceeded: all places are taken, and with one more nobody could be settled.
        """
        at = day_start(from_day)
        interval_s = energy_settings(context).interval_s
        places = most_members(interval_s)
        first = int(sha256_hex(connection_id.encode())[:8], 16)
        known = context.get_state(f"cm/{community}/{connection_id}")
        if known is not None:
            first = stored_record(_Seated, known).seat
        for number in range(first, first + places):
            seat = number % places
            stored = context.get_state(f"seat/{community}/{seat:02d}")
            if stored is None:
                return seat
            holder = stored.decode()
            if holder == connection_id or not any(
                span.community == community
                and (span.until_day is None or at < day_start(span.until_day))
                for span in memberships_of(context, holder)
            ):
                return seat
        raise LimitExceeded(
            f"community {community} has {places} members from {from_day} on, as many as are "
            f"settled together at intervals of {interval_s} s; join another, or found one"
        )

    @staticmethod
    def _store(context: Context, connection_id: str, spans: tuple[Membership, ...]) -> None:
        context.put_state(f"member/{connection_id}", canonical_json(_Memberships(spans)))

    @staticmethod
    def _check_later(context: Context, field: str, day: str) -> None:
        now = settings.now(context, energy_settings(context))
        # A local day of this name may have begun up to 14 hours before the UTC day.
        if now >= day_start(day) - 14 * 3600:
            raise InvalidArgument(
                f"{field} is {day}, but the channel's time is {utc_text(now)}: memberships change "
                "with a later day, 14 hours ahead at least"
            )
        gates.before(context, day_start(day) - 14 * 3600)
