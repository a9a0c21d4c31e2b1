"""Contract `response`: demand response, from the announcement to the reward.

A grid operator announces an event; homes opt in, themselves, through a trader, or in an
aggregator's pool (`pools`). Before the event begins, each home's metering utility computes its
baseline where the readings are (`baselines`, chaincode `metering`) and the commitment of that is
noted here. Afterwards the utility shows the baseline and what was metered, both as committed to;
every peer works out the response, takes off what of it was sold as energy, and pays.

    event/{event}                   what is asked for
    eventat/{window_start}/{event}  the same by time
    respond/{event}/{connection}    how a home takes part
"""

from collections.abc import Iterator
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

from ..assets.wallet import Ledger, Transfer, grid_account
from ..billing.calendars import Calendar
from ..common import access, agreements, commitments, settings
from ..common.clock import DAY_S, day_of, day_start, utc_text
from ..common.commitments import Commitment
from ..common.money import amount_micro
from ..common.pages import Bookmark, page
from ..oversight import overseers
from ..registry import grid, homes, roles
from ..registry.delegations import actor_for
from ..registry.registry import Connection, connection_of, energy_settings
from ..settlement.settlement import firm_trades
from . import gates
from .baseline import (
    LEAD_S,
    LOOK_BACK_DAYS,
    MAX_HOMES,
    MAX_INTERVALS,
    MAX_OPEN,
    Adjustment,
    Basis,
    Expected,
    HomeBasis,
    Measured,
    OpenPart,
    OpenParts,
    PastWindow,
    change_wh,
    expected_key,
    measured_key,
    sold_beyond_wh,
)

MAX_SEEN = 50_000
"""Participations that are looked through for them, of the latest events first."""
OPEN_DAYS = 7
"""After an event in which its homes are measured, as soon as they are read."""
MAX_EVENTS = 1_000
"""Of the days that similar ones are looked for in."""

Kind = Annotated[str, Choice("reduce", "absorb", "shift")]
"""reduce: use less than the baseline. absorb: use more. shift: use less, and it later."""
Reward = Annotated[int, Integer(0, 10**9, "micro-units per kWh")]


@dataclass(frozen=True, slots=True)
class Event:
    """What is asked for, of whom, and what it pays."""

    event_id: Identifier
    operator: MspId
    """The grid operator that asks and pays."""
    zone: Identifier
    kind: Kind
    window_start: Instant
    window_end: Instant
    reward_micro_per_kwh: Reward
    opt_in_until: Instant
    cancelled: bool = False
    shift_until: Instant | None = None
    """Of a shift: until when, from the window's end on, what was not used may be used."""
    transformer_id: Identifier | None = None
    """Only homes that hang behind it."""
    region: Identifier | None = None
    """Whose calendar says which days are similar; None: UTC days, without holidays."""
    adjustment: Adjustment = "scaled"
    """What the hours before the event change in a baseline."""

    @property
    def end(self) -> int:
        """When all of it is over."""
        return self.window_end if self.shift_until is None else self.shift_until


@dataclass(frozen=True, slots=True)
class Participation:
    """A home that takes part, and how it came out."""

    event_id: Identifier
    connection_id: Identifier
    acted_by: Identifier | None
    pool: Identifier | None = None
    """In which it takes part: its reward comes with the pool's."""
    battery_wh: Annotated[int, Integer(0, 10**12, "Wh")] = 0
    """That it brings to the pool."""
    commitment: Commitment | None = None
    """Of the baseline."""
    state: Annotated[str, Choice("opted_in", "committed", "settled", "left")] = "opted_in"
    change_wh: Annotated[int, Integer(-(10**12), 10**12, "Wh")] = 0
    """What it changed, without what was sold of it; negative: against what was asked for."""
    sold_wh: Annotated[int, Integer(0, 10**12, "Wh")] = 0
    """Of its reduction, what was sold as energy, by its trades on this ledger."""
    response_wh: Annotated[int, Integer(0, 10**12, "Wh")] = 0
    reward_micro: Annotated[int, Integer(0, 10**15, "micro-units")] = 0


def event_of(context: Context, event_id: str) -> Event:
    """An event; raises NotFound."""
    stored = context.get_state(f"event/{event_id}")
    if stored is None:
        raise NotFound(f"no event {event_id} was announced")
    return stored_record(Event, stored)


def participation_of(context: Context, event_id: str, connection_id: str) -> Participation | None:
    """How a home takes part; None if it never did."""
    stored = context.get_state(f"respond/{event_id}/{connection_id}")
    return None if stored is None else stored_record(Participation, stored)


def put_participation(context: Context, part: Participation) -> None:
    """Write how a home takes part."""
    context.put_state(f"respond/{part.event_id}/{part.connection_id}", canonical_json(part))


def check_place(context: Context, event: Event, connection: Connection) -> None:
    """Raise Conflict for a home that an event isn't for."""
    name = connection.connection_id
    if connection.zone != event.zone:
        raise Conflict(
            f"event {event.event_id} is for zone {event.zone}, but {name} is in {connection.zone}"
        )
    if event.transformer_id is not None:
        behind = grid.path_of(context, name, event.window_start).transformer_id
        if behind != event.transformer_id:
            raise Conflict(
                f"event {event.event_id} is for homes behind {event.transformer_id}, but {name} "
                f"hangs behind {behind or 'no known transformer'}"
            )


def check_before(context: Context, event: Event, limit: int, what: str) -> None:
    """Raise Conflict unless it is before an instant, and see that it is when this is committed."""
    if event.cancelled:
        raise Conflict(f"event {event.event_id} was cancelled")
    if settings.now(context, energy_settings(context)) >= limit:
        raise Conflict(f"event {event.event_id}: {what} {utc_text(limit)}")
    gates.before(context, limit)


def check_over(context: Context, event: Event) -> int:
    """The channel's time; raises Conflict before an event is over, or if it was cancelled."""
    if event.cancelled:
        raise Conflict(f"event {event.event_id} was cancelled")
    now = settings.now(context, energy_settings(context))
    if now < event.end:
        raise Conflict(f"event {event.event_id} ends at {utc_text(event.end)}")
    return now


def events_around(context: Context, now: int) -> Iterator[Event]:
    """Events that begin within the hour, or were over in the last week."""
    # An event with what is shifted lasts a day at most, where intervals are quarter hours.
    first = max(0, now - (OPEN_DAYS + 1) * DAY_S)
    places = context.range(f"eventat/{first:012d}", f"eventat/{now + LEAD_S + 1:012d}")
    for key in [key for key, _ in places]:
        event = event_of(context, key.rpartition("/")[2])
        if not event.cancelled and now < event.end + OPEN_DAYS * DAY_S:
            yield event


class Responses(Contract):
    """Events, participation and rewards."""

    name: ClassVar[str] = "response"

    @transaction
    def announce(self, context: Context, *, event: Event) -> Event:
        """Announce an event; the same again changes nothing."""
        access.require_operator(
            context.creator, event.operator, f"announce events of {event.operator}"
        )
        channel = energy_settings(context)
        self._check_windows(event, channel.interval_s)
        key = f"event/{event.event_id}"
        stored = context.get_state(key)
        if stored is not None:
            if stored_record(Event, stored) == event:
                return event
            raise Conflict(f"event {event.event_id} was announced already, and differently")
        now = settings.now(context, channel)
        if not now < event.opt_in_until <= event.window_start:
            raise InvalidArgument(
                f"opt_in_until is {utc_text(event.opt_in_until)}, but must lie after the channel's "
                f"time, {utc_text(now)}, and not after the window begins"
            )
        if event.cancelled:
            raise InvalidArgument("cancelled is true in a new event")
        if event.transformer_id is not None:
            grid.transformer_of(context, event.transformer_id)
        _local(context, event)
        context.put_state(key, canonical_json(event))
        context.put_state(f"eventat/{event.window_start:012d}/{event.event_id}", canonical_json({}))
        context.set_event("response_announced", canonical_json(event))
        return event

    @transaction
    def cancel(self, context: Context, *, event_id: Identifier) -> Event:
        """Call an event off before it begins; nobody is rewarded."""
        event = event_of(context, event_id)
        access.require_operator(
            context.creator, event.operator, f"cancel events of {event.operator}"
        )
        if event.cancelled:
            return event
        now = settings.now(context, energy_settings(context))
        if now >= event.window_start:
            raise Conflict(f"event {event_id} has begun, at {utc_text(event.window_start)}")
        gates.before(context, event.window_start)
        cancelled = replace(event, cancelled=True)
        context.put_state(f"event/{event_id}", canonical_json(cancelled))
        context.set_event("response_cancelled", canonical_json(cancelled))
        return cancelled

    @transaction
    def opt_in(
        self,
        context: Context,
        *,
        event_id: Identifier,
        connection_id: Identifier,
        delegation: Identifier | None = None,
    ) -> Participation:
        """Take part with a home; the same again changes nothing."""
        actor = actor_for(context, connection_id, "respond", delegation, f"opt {connection_id} in")
        event = event_of(context, event_id)
        check_place(context, event, actor.connection)
        found = participation_of(context, event_id, connection_id)
        if found is not None and found.state != "left":
            if found.pool is not None:
                raise Conflict(f"{connection_id} takes part in {event_id} already, in {found.pool}")
            return found
        check_before(context, event, event.opt_in_until, "homes could opt in until")
        wanted = Participation(event_id, connection_id, actor.acted_by)
        put_participation(context, wanted)
        return wanted

    @transaction
    def leave(
        self,
        context: Context,
        *,
        event_id: Identifier,
        connection_id: Identifier,
        delegation: Identifier | None = None,
    ) -> Participation:
        """Take no part after all, until the event begins."""
        actor_for(context, connection_id, "respond", delegation, f"take {connection_id} out")
        event = event_of(context, event_id)
        found = self._participation(context, event_id, connection_id)
        if found.state == "left":
            return found
        check_before(context, event, event.window_start, "homes could leave until")
        left = replace(found, state="left", commitment=None)
        put_participation(context, left)
        return left

    @transaction
    def commit_baseline(
        self, context: Context, *, event_id: Identifier, connection_id: Identifier
    ) -> Participation:
        """Note the commitment to a home's baseline, as its utility computed it, before the event.

        It stays what it is now, whatever the utility computes later.
        """
        utility = self._metered_by(context, event_id, connection_id, "commit baselines")
        event = event_of(context, event_id)
        found = self._participation(context, event_id, connection_id)
        if found.state != "opted_in":
            if found.state == "committed":
                return found
            raise Conflict(f"the participation of {connection_id} is {found.state}")
        check_before(context, event, event.window_start, "baselines could be committed until")
        key = expected_key(connection_id, event.window_start, event_id)
        commitment = commitments.commitments(context, utility, [key])[key]
        if commitment is None:
            raise NotFound(
                f"{utility} has computed no baseline of {connection_id} for {event_id}; "
                "baseline:Commit comes first"
            )
        committed = replace(found, commitment=commitment, state="committed")
        put_participation(context, committed)
        return committed

    @transaction
    def settle(self, context: Context, *, baseline: Expected, measured: Measured) -> Participation:
        """Measure a home's response by what its utility has committed to, and pay it, once.

        What it sold as energy on this ledger isn't paid twice. In a pool, pool:Settle pays.
        """
        event_id, connection_id = baseline.event_id, baseline.connection_id
        if (measured.event_id, measured.connection_id) != (event_id, connection_id):
            raise InvalidArgument("measured is of another event or home than baseline")
        utility = self._metered_by(context, event_id, connection_id, "settle responses")
        event = event_of(context, event_id)
        found = self._participation(context, event_id, connection_id)
        if found.state == "settled":
            return found
        if found.state != "committed":
            raise Conflict(
                f"the participation of {connection_id} is {found.state}: without a baseline "
                "committed before the event there is no reward"
            )
        now = check_over(context, event)
        if sha256_hex(canonical_json(baseline)) != found.commitment:
            raise Conflict(
                f"baseline is not what was committed for {connection_id} before the event"
            )
        key = measured_key(connection_id, event.window_start, event_id)
        commitments.check(context, utility, key, measured)
        interval_s = energy_settings(context).interval_s
        intervals = (event.end - event.window_start) // interval_s
        if not baseline.energies_wh:
            raise Conflict(
                f"{connection_id} has no baseline for {event_id}: too few similar days were read"
            )
        for name, values in (("baseline", baseline), ("measured", measured)):
            if len(values.energies_wh) != intervals:
                raise Conflict(
                    f"{name} has {len(values.energies_wh)} values, but the event has {intervals} "
                    "intervals"
                )
        first = (event.window_end - event.window_start) // interval_s
        change = change_wh(baseline.energies_wh, measured.energies_wh, event.kind, first)
        sold = 0
        if event.kind != "absorb":
            sold = min(
                max(0, change),
                sold_beyond_wh(
                    baseline.energies_wh[:first],
                    _sold(context, connection_id, event, interval_s),
                ),
            )
        change -= sold
        responded = max(0, change)
        reward = 0
        if found.pool is None:
            reward = amount_micro(responded, event.reward_micro_per_kwh)
            payer = grid_account(event.operator)
            ledger = Ledger(context, now)
            ledger.transfer(Transfer(payer, connection_id, reward, "response", event_id))
            ledger.write()
        settled = replace(
            found,
            state="settled",
            change_wh=change,
            sold_wh=sold,
            response_wh=responded,
            reward_micro=reward,
        )
        put_participation(context, settled)
        context.set_event("response_settled", canonical_json(settled))
        return settled

    # What `metering` and the utilities' agents ask

    @query
    def basis(
        self,
        context: Context,
        *,
        event_id: Identifier,
        connections: Annotated[tuple[Identifier, ...], AtMost(MAX_HOMES)],
        past: bool = True,
    ) -> Basis:
        """What is public of an event's baselines: its hours, and similar days.

        With `past` false the days before it are left out, and not read.
        """
        event = event_of(context, event_id)
        overseer = overseers.is_overseer(context)
        each = []
        for name in connections:
            connection = connection_of(context, name)
            metering = str(
                roles.role_at(context, connection, "metering_operator", event.window_start)
            )
            access.require(
                overseer
                or access.is_operator(context.creator, metering)
                or homes.residence(context, connection).at(event.window_start),
                context.creator,
                f"read responses of {name}",
                f"its home, operators of {metering}, and auditors",
            )
            if self._participation(context, event_id, name).state == "left":
                raise Conflict(f"{name} doesn't take part in {event_id} any more")
            lived = roles.spans_of(context, name, "home")
            since = [one.from_ for one in lived if one.from_ <= event.window_start]
            each.append((name, since[-1] if len(since) > 1 else 0))
        calendar = _local(context, event)
        day = _day_at(calendar, event.window_start)
        offset = event.window_start - _start_of(calendar, day)
        windows: list[PastWindow] = []
        for number in range(1, LOOK_BACK_DAYS + 1) if past else ():
            name = day_of(day_start(day) - number * DAY_S)
            try:
                start = _start_of(calendar, name) + offset
            except NotFound:
                break  # the calendar begins later
            windows.append(PastWindow(name, start, _is_working(calendar, name)))
        with_events: dict[str, list[str]] = {}
        if windows:
            with_events = self._event_days(
                context,
                calendar,
                [name for name, _ in each],
                windows[-1].start - DAY_S,
                event.window_start - offset,
            )
        return Basis(
            event_id,
            event.window_start,
            event.end,
            event.adjustment,
            _is_working(calendar, day),
            tuple(windows),
            tuple(HomeBasis(name, at, tuple(with_events.get(name, ()))) for name, at in each),
        )

    def _event_days(
        self,
        context: Context,
        calendar: Calendar | None,
        connections: list[str],
        start: int,
        end: int,
    ) -> dict[str, list[str]]:
        """The days on which each took part in an event that began in [start, end).

        That is over: nobody can announce an event for it any more.
        """
        found: dict[str, dict[str, None]] = {name: {} for name in connections}
        events = context.range(f"eventat/{max(0, start):012d}", f"eventat/{end:012d}")
        for count, (key, _) in enumerate(events):
            if count == MAX_EVENTS:
                raise LimitExceeded(
                    f"more than {MAX_EVENTS} events were announced for the {LOOK_BACK_DAYS} days "
                    f"before {utc_text(end)}"
                )
            event = event_of(context, key.rpartition("/")[2])
            if event.cancelled:
                continue
            day = _day_at(calendar, event.window_start)
            for name in connections:
                part = participation_of(context, event.event_id, name)
                if part is not None and part.state != "left":
                    found[name][day] = None
        return {name: sorted(days)[-LOOK_BACK_DAYS:] for name, days in found.items()}

    @query
    def open_(self, context: Context, *, utility: MspId) -> OpenParts:
        """Homes that a utility meters whose baseline, or response, is to be computed now."""
        access.require_operator(context.creator, utility, f"see what is due at {utility}")
        now = settings.now(context, energy_settings(context))
        found: list[OpenPart] = []
        seen = 0
        for event in reversed(list(events_around(context, now))):
            if event.window_start <= now < event.end:
                continue
            wanted = "opted_in" if now < event.window_start else "committed"
            for _, value in context.range(*under(f"respond/{event.event_id}/")):
                seen += 1
                if seen > MAX_SEEN:
                    return OpenParts(tuple(found))  # the older ones were seen before
                if f'"state":"{wanted}"'.encode() not in value:
                    continue
                part = stored_record(Participation, value)
                connection = connection_of(context, part.connection_id)
                at = event.window_start
                if roles.role_at(context, connection, "metering_operator", at) != utility:
                    continue
                found.append(
                    OpenPart(
                        event.event_id,
                        part.connection_id,
                        event.window_start,
                        event.end,
                        event.adjustment,
                        wanted,
                    )
                )
                if len(found) == MAX_OPEN:
                    return OpenParts(tuple(found))
        return OpenParts(tuple(found))

    @query
    def events(
        self,
        context: Context,
        *,
        from_: Instant = 0,
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """Events whose windows begin at `from` or later."""
        items, following = page(context, "eventat/", f"{from_:012d}", limit, bookmark)
        return {
            "events": [event_of(context, key.rpartition("/")[2]) for key, _ in items],
            "bookmark": following,
        }

    @query
    def participation(
        self, context: Context, *, event_id: Identifier, connection_id: Identifier
    ) -> Participation:
        """How a home takes part in an event."""
        connection = connection_of(context, connection_id)
        homes.require_home_or_operator(context, connection, f"read responses of {connection_id}")
        return self._participation(context, event_id, connection_id)

    @staticmethod
    def _participation(context: Context, event_id: str, connection_id: str) -> Participation:
        found = participation_of(context, event_id, connection_id)
        if found is None:
            raise NotFound(f"{connection_id} does not take part in {event_id}")
        return found

    @staticmethod
    def _metered_by(context: Context, event_id: str, connection_id: str, act: str) -> str:
        """The utility that meters a home at an event, whose operator the caller must be."""
        at = event_of(context, event_id).window_start
        connection = connection_of(context, connection_id)
        utility = str(roles.role_at(context, connection, "metering_operator", at))
        access.require_operator(context.creator, utility, f"{act} of {connection_id}")
        return utility

    @staticmethod
    def _check_windows(event: Event, interval_s: int) -> None:
        for name, instant in (
            ("window_start", event.window_start),
            ("window_end", event.window_end),
            ("shift_until", event.end),
        ):
            if instant % interval_s:
                raise InvalidArgument(
                    f"{name} is {instant}, but must be a multiple of the channel's interval of "
                    f"{interval_s} s"
                )
        if (event.shift_until is not None) != (event.kind == "shift"):
            raise InvalidArgument(
                f"kind is {event.kind}, and shift_until {event.shift_until}: a shift says until "
                "when what was not used may be used, and no other kind does"
            )
        if event.shift_until is not None and event.shift_until <= event.window_end:
            raise InvalidArgument(
                f"shift_until is {utc_text(event.shift_until)}, but must lie after window_end, "
                f"{utc_text(event.window_end)}"
            )
        intervals = (event.window_end - event.window_start) // interval_s
        if intervals < 1 or (event.end - event.window_start) // interval_s > MAX_INTERVALS:
            raise InvalidArgument(
                f"the window has {intervals} intervals, but must have 1 to {MAX_INTERVALS}, with "
                "those that are shifted to"
            )


def _sold(context: Context, connection_id: str, event: Event, interval_s: int) -> list[int]:
    """What a home has sold for each interval of an event's window, however it was traded."""
    sold = [0] * ((event.window_end - event.window_start) // interval_s)
    for trade in firm_trades(context, connection_id, event.window_start, event.window_end):
        if trade.energy_wh < 0:
            sold[(trade.interval_start - event.window_start) // interval_s] -= trade.energy_wh
    return sold


def _local(context: Context, event: Event) -> Calendar | None:
    """The calendar of an event's region; None: UTC."""
    if event.region is None:
        return None
    return agreements.in_force(context, "calendar", event.region, event.window_start, Calendar)


def _day_at(calendar: Calendar | None, instant: int) -> str:
    return day_of(instant) if calendar is None else calendar.day_at(instant)


def _start_of(calendar: Calendar | None, day: str) -> int:
    return day_start(day) if calendar is None else calendar.start_of(day)


def _is_working(calendar: Calendar | None, day: str) -> bool:
    holiday = calendar is not None and calendar.is_holiday(day)
    return (day_start(day) // DAY_S + 3) % 7 < 5 and not holiday
