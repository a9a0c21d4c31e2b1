"""Contract `roles`: participants, and who plays which part at a connection point, by date.

A connection point has a grid operator, a metering operator, a supplier, a balance responsible
party and a home; plants, traders and aggregators where there are any. Until somebody else is
named, its utility is all of the first three, and the supplier is responsible for the balance.
Parts change hands at instants between two intervals, half-open, never two at once and never back
in time. Regulators and auditors are nobody's part: see oversight:ProposeOverseer.

    participant/{participant_id}      Participant
    role/{connection_id}/{role}       the spans of a part; one role writes each
    operates/{participant_id}         at which connections it was ever named plant operator
    switch/{connection_id}            a switch of supplier that its home has asked for
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Contract,
    Creator,
    Forbidden,
    Identifier,
    Instant,
    InvalidArgument,
    LimitExceeded,
    MspId,
    NotFound,
    Text,
    canonical_json,
    query,
    stored_record,
    transaction,
    under,
)

from ..common import access, dated, settings
from ..common.clock import DAY_S, utc_text
from ..common.dated import Span
from ..market import gates
from . import homes
from .registry import Connection, connection_of, energy_settings

SWITCH_LEAD_S = DAY_S
"""A supplier is switched a day ahead at least (Directive (EU) 2019/944, article 12: 24 hours)."""
SWITCH_AHEAD_S = 366 * DAY_S
"""And a year at most."""

MAX_OPERATED = 200
"""Connections at which one company is plant operator, over all times."""

KINDS = (
    "grid_operator",
    "metering_operator",
    "supplier",
    "balance_responsible",
    "plant_operator",
    "trader",
    "aggregator",
)
Kind = Annotated[str, Choice(*KINDS)]
Assigned = Annotated[
    str,
    Choice(
        "grid_operator",
        "metering_operator",
        "balance_responsible",
        "plant_operator",
        "trader",
        "aggregator",
    ),
]
Role = Annotated[str, Choice(*KINDS, "home")]
Name = Annotated[str, Text(r"[^\x00-\x1f]{1,100}", "1 to 100 characters")]


@dataclass(frozen=True, slots=True)
class Participant:
    """A company: a utility itself, by its MSP id, or one that a utility has admitted."""

    participant_id: MspId
    """As certificates say in their attribute gridledger.participant, or the MSP id."""
    utility: MspId
    """Whose CA certifies it."""
    name: Name
    kinds: Annotated[tuple[Kind, ...], AtMost(len(KINDS))]
    until: Instant | None = None


@dataclass(frozen=True, slots=True)
class _Spans:
    spans: Annotated[tuple[Span, ...], AtMost(dated.MAX_SPANS)]


@dataclass(frozen=True, slots=True)
class _Operated:
    connections: Annotated[tuple[Identifier, ...], AtMost(MAX_OPERATED)]


@dataclass(frozen=True, slots=True)
class Switch:
    """A switch of supplier that a home has asked for."""

    connection_id: Identifier
    supplier: MspId
    from_: Instant


@dataclass(frozen=True, slots=True)
class Parts:
    """Who plays which part at a connection at an instant."""

    connection_id: Identifier
    at: Instant
    grid_operator: MspId
    metering_operator: MspId
    supplier: MspId
    balance_responsible: MspId
    home: MspId | None
    plant_operator: MspId | None
    trader: MspId | None
    aggregator: MspId | None


# What other contracts of chaincode `energy` read


def participant_of(context: Context, participant_id: str) -> Participant | None:
    """A participant, if there is one."""
    stored = context.get_state(f"participant/{participant_id}")
    return None if stored is None else stored_record(Participant, stored)


def is_participant(context: Context, creator: Creator, kind: str, at: int) -> bool:
    """Whether the caller is of a kind of participant at an instant, such as a trader."""
    name = access.participant(creator)
    found = None if name is None else participant_of(context, name)
    return (
        found is not None
        and found.utility == creator.msp_id
        and kind in found.kinds
        and (found.until is None or at < found.until)
    )


def spans_of(context: Context, connection_id: str, role: str) -> tuple[Span, ...]:
    """All who were named for a part, in order."""
    stored = context.get_state(f"role/{connection_id}/{role}")
    return () if stored is None else stored_record(_Spans, stored).spans


def all_spans(context: Context) -> dict[tuple[str, str], tuple[Span, ...]]:
    """The same of all connections: by connection and part, where somebody was named."""
    found = {}
    for key, value in context.range(*under("role/")):
        _, connection_id, role = key.split("/")
        found[connection_id, role] = stored_record(_Spans, value).spans
    return found


def role_at(context: Context, connection: Connection, role: str, at: int) -> str | None:
    """Who plays a part at an instant; None for parts that nobody plays."""

    def spans(one: str) -> Sequence[Span]:
        return spans_of(context, connection.connection_id, one)

    return holder(spans, connection, role, at)


def holder(
    spans: Callable[[str], Sequence[Span]], connection: Connection, role: str, at: int
) -> str | None:
    """The same, by the spans of each of a connection's parts."""
    named = dated.holder_at(spans(role), at)
    if named is not None:
        return named
    if role == "balance_responsible":
        return holder(spans, connection, "supplier", at)
    if role in ("grid_operator", "metering_operator", "supplier"):
        return connection.utility
    return None


def periods(
    context: Context, connection: Connection, role: str, from_: int, to: int
) -> list[tuple[int, int, str | None]]:
    """Cut [from_, to) where a part changes hands: (start, end, holder), in order."""
    cuts = [from_]
    others = ("supplier", role) if role == "balance_responsible" else (role,)
    for one in others:
        for span in spans_of(context, connection.connection_id, one):
            cuts += [cut for cut in (span.from_, span.until) if cut and from_ < cut < to]
    cuts = sorted(dict.fromkeys(cuts))
    return [
        (start, end, role_at(context, connection, role, start))
        for start, end in zip(cuts, [*cuts[1:], to], strict=True)
    ]


def acts_for(context: Context, creator: Creator, holder: str | None) -> bool:
    """Whether the caller may act for who plays a part: as its operator, or as the participant."""
    if holder is None:
        return False
    if access.is_operator(creator, holder):
        return True
    found = participant_of(context, holder)
    return (
        found is not None
        and found.utility == creator.msp_id
        and access.participant(creator) == holder
    )


def operated_by(context: Context, operator: str) -> tuple[str, ...]:
    """The connections at which a company was ever named plant operator, in order."""
    stored = context.get_state(f"operates/{operator}")
    return () if stored is None else stored_record(_Operated, stored).connections


def _note_operator(context: Context, operator: str, connection_id: str) -> None:
    before = operated_by(context, operator)
    if connection_id in before:
        return
    if len(before) == MAX_OPERATED:
        raise LimitExceeded(
            f"{operator} was plant operator at {MAX_OPERATED} connections, the limit"
        )
    named = _Operated(tuple(sorted((*before, connection_id))))
    context.put_state(f"operates/{operator}", canonical_json(named))


class Roles(Contract):
    """Participants, parts, moves and switches."""

    name: ClassVar[str] = "roles"

    @transaction
    def register_participant(
        self,
        context: Context,
        *,
        participant_id: MspId,
        utility: MspId,
        name: Name,
        kinds: Annotated[tuple[Kind, ...], AtMost(len(KINDS))],
    ) -> Participant:
        """Enter a company and what it may be; again with other kinds changes them."""
        access.require_operator(context.creator, utility, f"register participants of {utility}")
        if participant_id != utility and not participant_id.replace("-", "").isupper():
            raise InvalidArgument(
                f"participant_id is {participant_id}, but must be the utility's own MSP id, "
                f"{utility}, or have capital letters, digits and hyphens alone"
            )
        if not kinds or list(kinds) != list(dict.fromkeys(kinds)):
            raise InvalidArgument("kinds must name one kind at least, each once")
        known = participant_of(context, participant_id)
        if known is not None and known.utility != utility:
            raise Conflict(f"participant {participant_id} is of {known.utility}")
        made = Participant(participant_id, utility, name, tuple(sorted(kinds)))
        if known != made:
            context.put_state(f"participant/{participant_id}", canonical_json(made))
        return made

    @transaction
    def end_participant(
        self, context: Context, *, participant_id: MspId, at: Instant
    ) -> Participant:
        """Let a company be none of its kinds from an instant on, which doesn't lie in the past."""
        known = self._participant(context, participant_id)
        access.require_operator(
            context.creator, known.utility, f"end participants of {known.utility}"
        )
        now = self._now(context)
        if at < now and known.until != at:
            raise Conflict(
                f"at is {utc_text(at)}, but the channel's time is {utc_text(now)}: what a company "
                "did stays valid"
            )
        ended = replace(known, until=at)
        if ended != known:
            context.put_state(f"participant/{participant_id}", canonical_json(ended))
        return ended

    @query
    def participant(self, context: Context, *, participant_id: MspId) -> Participant:
        """A participant."""
        return self._participant(context, participant_id)

    @transaction
    def assign(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        role: Assigned,
        holder: MspId,
        from_: Instant,
    ) -> list[Span]:
        """Name who plays a part from an instant on; who played it before ends then."""
        connection = connection_of(context, connection_id)
        self._require_authority(context, connection, role, from_)
        dated.check_instant("from", from_, energy_settings(context).interval_s)
        self._check_holder(context, connection, role, holder, from_)
        if role == "plant_operator":
            _note_operator(context, holder, connection_id)
        spans = spans_of(context, connection_id, role)
        what = f"the part {role} at {connection_id}"
        return self._store(
            context,
            connection_id,
            role,
            dated.begin(spans, what, holder, from_, self._now(context)),
            from_,
        )

    @transaction
    def end(
        self, context: Context, *, connection_id: Identifier, role: Assigned, at: Instant
    ) -> list[Span]:
        """Let a named part end: the part is the utility's again, or nobody's."""
        connection = connection_of(context, connection_id)
        self._require_authority(context, connection, role, at)
        dated.check_instant("at", at, energy_settings(context).interval_s)
        spans = spans_of(context, connection_id, role)
        what = f"the part {role} at {connection_id}"
        return self._store(
            context, connection_id, role, dated.finish(spans, what, at, self._now(context)), at
        )

    @transaction
    def move_in(
        self, context: Context, *, connection_id: Identifier, resident: Identifier, from_: Instant
    ) -> list[Span]:
        """Let somebody move into an empty home."""
        connection = connection_of(context, connection_id)
        self._require_utility(context, connection, "enter moves")
        dated.check_instant("from", from_, energy_settings(context).interval_s)
        spans = spans_of(context, connection_id, "home")
        if spans and spans[-1] != Span(resident, from_):
            last = spans[-1]
            if last.until is None or from_ < last.until:
                raise Conflict(
                    f"{connection_id} is {last.holder}'s home from {utc_text(last.from_)}"
                    + (" on" if last.until is None else f" to {utc_text(last.until)}")
                    + f", but from is {utc_text(from_)}; roles:MoveOut comes first"
                )
        what = f"the home at {connection_id}"
        return self._store(
            context,
            connection_id,
            "home",
            dated.begin(spans, what, resident, from_, self._now(context), known_before=True),
            from_ if spans else None,
        )

    @transaction
    def move_out(self, context: Context, *, connection_id: Identifier, at: Instant) -> list[Span]:
        """Let who lives there move out; a switch that was asked for falls away."""
        connection = connection_of(context, connection_id)
        self._require_utility(context, connection, "enter moves")
        dated.check_instant("at", at, energy_settings(context).interval_s)
        spans = spans_of(context, connection_id, "home")
        changed = dated.finish(spans, f"the home at {connection_id}", at, self._now(context))
        if context.get_state(f"switch/{connection_id}") is not None:
            context.del_state(f"switch/{connection_id}")
        return self._store(context, connection_id, "home", changed, at)

    @transaction
    def request_switch(
        self, context: Context, *, connection_id: Identifier, supplier: MspId, from_: Instant
    ) -> Switch:
        """Ask to be supplied by another company; it confirms. A later wish replaces an earlier."""
        connection = connection_of(context, connection_id)
        homes.require_home(context, connection, f"switch the supplier of {connection_id}")
        self._check_lead(context, from_)
        self._check_holder(context, connection, "supplier", supplier, from_)
        if role_at(context, connection, "supplier", from_) == supplier:
            raise Conflict(f"{supplier} supplies {connection_id} at {utc_text(from_)} anyway")
        wanted = Switch(connection_id, supplier, from_)
        if self._switch(context, connection_id) != wanted:
            context.put_state(f"switch/{connection_id}", canonical_json(wanted))
        return wanted

    @transaction
    def confirm_switch(
        self, context: Context, *, connection_id: Identifier, from_: Instant
    ) -> list[Span]:
        """Take a home over that has asked for it, from the instant that it has asked for."""
        wanted = self._switch(context, connection_id)
        if wanted is None or wanted.from_ != from_:
            raise NotFound(f"{connection_id} has asked for no switch at {utc_text(from_)}")
        access.require(
            access.is_supplier(context.creator, wanted.supplier)
            or acts_for(context, context.creator, wanted.supplier),
            context.creator,
            f"confirm the switch of {connection_id}",
            f"suppliers and operators of {wanted.supplier}",
        )
        self._check_lead(context, from_)
        connection = connection_of(context, connection_id)
        self._check_holder(context, connection, "supplier", wanted.supplier, from_)
        spans = spans_of(context, connection_id, "supplier")
        now = self._now(context)
        changed = dated.begin(spans, f"the supply of {connection_id}", wanted.supplier, from_, now)
        context.del_state(f"switch/{connection_id}")
        context.set_event("supplier_switch", canonical_json(wanted))
        return self._store(context, connection_id, "supplier", changed, from_)

    @transaction
    def cancel_switch(
        self, context: Context, *, connection_id: Identifier, from_: Instant
    ) -> list[Span]:
        """Take a switch back that hasn't come into effect, asked for or confirmed."""
        connection = connection_of(context, connection_id)
        wanted = self._switch(context, connection_id)
        spans = spans_of(context, connection_id, "supplier")
        pending = wanted is not None and wanted.from_ == from_
        if pending:
            assert wanted is not None
            supplier = wanted.supplier
        elif spans and spans[-1].from_ == from_:
            supplier = spans[-1].holder
        else:
            raise NotFound(f"{connection_id} has no switch at {utc_text(from_)}")
        creator = context.creator
        access.require(
            homes.is_home(context, connection)
            or access.is_supplier(creator, supplier)
            or acts_for(context, creator, supplier),
            creator,
            f"cancel the switch of {connection_id}",
            f"its home and {supplier}",
        )
        if pending:
            context.del_state(f"switch/{connection_id}")
            return list(spans)
        changed = dated.cancel(spans, f"the supply of {connection_id}", from_, self._now(context))
        return self._store(context, connection_id, "supplier", changed, from_)

    @query
    def switch(self, context: Context, *, connection_id: Identifier) -> Switch | None:
        """The switch that a home has asked for and nobody has confirmed yet; null if none."""
        return self._switch(context, connection_id)

    @query
    def parts(
        self, context: Context, *, connection_id: Identifier, at: Instant | None = None
    ) -> Parts:
        """Who plays which part at an instant; without one, now."""
        connection = connection_of(context, connection_id)
        instant = self._now(context) if at is None else at

        def part(role: str) -> str | None:
            return role_at(context, connection, role, instant)

        def always(role: str) -> str:
            holder = part(role)
            assert holder is not None
            return holder

        return Parts(
            connection_id,
            instant,
            always("grid_operator"),
            always("metering_operator"),
            always("supplier"),
            always("balance_responsible"),
            part("home"),
            part("plant_operator"),
            part("trader"),
            part("aggregator"),
        )

    @query
    def history(self, context: Context, *, connection_id: Identifier, role: Role) -> list[Span]:
        """All who were named for a part, in order."""
        connection_of(context, connection_id)
        return list(spans_of(context, connection_id, role))

    @query
    def residence(self, context: Context, *, connection_id: Identifier) -> dict[str, list[Span]]:
        """Who has lived at a connection, in order; `metering` asks it whose readings are whose."""
        connection_of(context, connection_id)
        return {"spans": list(spans_of(context, connection_id, "home"))}

    def _now(self, context: Context) -> int:
        return settings.now(context, energy_settings(context))

    def _participant(self, context: Context, participant_id: str) -> Participant:
        found = participant_of(context, participant_id)
        if found is None:
            raise NotFound(
                f"participant {participant_id} is not registered; see roles:RegisterParticipant"
            )
        return found

    def _switch(self, context: Context, connection_id: str) -> Switch | None:
        stored = context.get_state(f"switch/{connection_id}")
        return None if stored is None else stored_record(Switch, stored)

    def _store(
        self,
        context: Context,
        connection_id: str,
        role: str,
        spans: tuple[Span, ...],
        until: int | None,
    ) -> list[Span]:
        """Write spans if they changed, which may happen until an instant."""
        if spans != spans_of(context, connection_id, role):
            if until is not None:
                gates.before(context, until)
            context.put_state(f"role/{connection_id}/{role}", canonical_json(_Spans(spans)))
        return list(spans)

    def _require_utility(self, context: Context, connection: Connection, act: str) -> None:
        access.require_operator(
            context.creator, connection.utility, f"{act} at {connection.connection_id}"
        )

    def _require_authority(
        self, context: Context, connection: Connection, role: str, at: int
    ) -> None:
        """Raise Forbidden unless the caller names this part.

        The grid operator names its successor and the metering operator, the supplier the balance
        responsible party, the home who trades for it and runs its plant.
        """
        creator = context.creator
        if role in ("grid_operator", "metering_operator"):
            by = role_at(context, connection, "grid_operator", at)
            allowed = by is not None and acts_for(context, creator, by)
            who = f"the grid operator, {by},"
        elif role == "balance_responsible":
            by = role_at(context, connection, "supplier", at)
            allowed = acts_for(context, creator, by)
            who = f"the supplier, {by},"
        else:
            allowed = homes.is_home(context, connection)
            who = "its home"
        if not allowed:
            raise Forbidden(
                f"{access.described(creator)} may not name the {role} at "
                f"{connection.connection_id}; {who} may"
            )

    def _check_holder(
        self, context: Context, connection: Connection, role: str, holder: str, at: int
    ) -> None:
        if holder == connection.utility:
            return
        found = self._participant(context, holder)
        if role not in found.kinds or (found.until is not None and at >= found.until):
            raise Conflict(
                f"{holder} is registered as {', '.join(found.kinds)}"
                + ("" if found.until is None else f" until {utc_text(found.until)}")
                + f", and so can't be {role} at {utc_text(at)}"
            )

    def _check_lead(self, context: Context, from_: int) -> None:
        channel = energy_settings(context)
        dated.check_instant("from", from_, channel.interval_s)
        now = settings.now(context, channel)
        if not now + SWITCH_LEAD_S <= from_ <= now + SWITCH_AHEAD_S:
            raise Conflict(
                f"from is {utc_text(from_)}, but a supplier is switched between "
                f"{utc_text(now + SWITCH_LEAD_S)}, {SWITCH_LEAD_S // 3600} hours ahead, and "
                f"{utc_text(now + SWITCH_AHEAD_S)}"
            )
        gates.before(context, from_ - SWITCH_LEAD_S)
