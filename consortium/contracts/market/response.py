"""Contract `response`: demand response, from the announcement to the reward.

A grid operator announces an event; homes opt in, themselves or through a trader. Before the event
begins, each home's utility commits to its baseline: the hash of the numbers it will be measured
by. Afterwards it opens the numbers and the meter's to the contract, which checks the hash, works
out the response and pays. The utility vouches for the readings; whoever may see them can challenge
the opened line.

Several homes can be pooled by an aggregator, which takes a share of the reward that the home
agreed to when it opted in.
"""

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
    MspId,
    NotFound,
    Text,
    TransactionId,
    canonical_json,
    query,
    sha256_hex,
    stored_record,
    transaction,
)

from ..assets.wallet import Ledger, Transfer, grid_account
from ..common import access, settings
from ..common.clock import utc_text
from ..common.money import amount_micro, half_even
from ..common.pages import Bookmark, page
from ..registry import homes
from ..registry.delegations import actor_for
from ..registry.registry import Connection, connection_of, energy_settings
from . import gates
from .baseline import response_wh

MAX_INTERVALS = 96
_MILLION = 1_000_000

Kind = Annotated[str, Choice("reduce", "absorb")]
"""reduce: use less than the baseline. absorb: use more."""
Reward = Annotated[int, Integer(0, 10**9, "micro-units per kWh")]
IntervalEnergy = Annotated[int, Integer(-(10**9), 10**9, "Wh")]
Share = Annotated[int, Integer(0, _MILLION, "ppm")]
Salt = Annotated[str, Text(r"[0-9a-f]{64}", "64 hex digits")]


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


@dataclass(frozen=True, slots=True)
class Participation:
    """A home that takes part, and how it came out."""

    event_id: Identifier
    connection_id: Identifier
    aggregator: Identifier | None
    """A home that pools others' batteries, or a company: its account gets its share."""
    aggregator_share_ppm: Share
    acted_by: Identifier | None
    commitment: TransactionId | None = None
    """SHA-256 of the baseline with its salt, hexadecimal."""
    state: Annotated[str, Choice("opted_in", "committed", "settled", "left")] = "opted_in"
    response_wh: Annotated[int, Integer(0, 10**12, "Wh")] = 0
    reward_micro: Annotated[int, Integer(0, 10**15, "micro-units")] = 0


def commitment(baseline_wh: tuple[int, ...], salt: str) -> str:
    """What a utility commits to before an event: SHA-256 over canonical JSON, hexadecimal."""
    return sha256_hex(canonical_json({"baseline_wh": baseline_wh, "salt": salt}))


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
        for name, instant in (
            ("window_start", event.window_start),
            ("window_end", event.window_end),
        ):
            if instant % channel.interval_s:
                raise InvalidArgument(
                    f"{name} is {instant}, but must be a multiple of the channel's interval of "
                    f"{channel.interval_s} s"
                )
        intervals = (event.window_end - event.window_start) // channel.interval_s
        if not 1 <= intervals <= MAX_INTERVALS:
            raise InvalidArgument(
                f"the window has {intervals} intervals, but must have 1 to {MAX_INTERVALS}"
            )
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
        context.put_state(key, canonical_json(event))
        context.put_state(f"eventat/{event.window_start:012d}/{event.event_id}", canonical_json({}))
        context.set_event("response_announced", canonical_json(event))
        return event

    @transaction
    def cancel(self, context: Context, *, event_id: Identifier) -> Event:
        """Call an event off before it begins; nobody is rewarded."""
        event = self._event(context, event_id)
        access.require_operator(
            context.creator, event.operator, f"cancel events of {event.operator}"
        )
        if event.cancelled:
            return event
        now = settings.now(context, energy_settings(context))
        if now >= event.window_start:
            raise Conflict(f"event {event_id} has begun, at {utc_text(event.window_start)}")
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
        aggregator: Identifier | None = None,
        aggregator_share_ppm: Share = 0,
        delegation: Identifier | None = None,
    ) -> Participation:
        """Take part with a home; the same again changes nothing."""
        actor = actor_for(context, connection_id, "respond", delegation, f"opt {connection_id} in")
        event = self._event(context, event_id)
        if actor.connection.zone != event.zone:
            raise Conflict(
                f"event {event_id} is for zone {event.zone}, but {connection_id} is in "
                f"{actor.connection.zone}"
            )
        if aggregator is None and aggregator_share_ppm:
            raise InvalidArgument("aggregator_share_ppm needs an aggregator")
        if aggregator is not None:
            connection_of(context, aggregator)
        wanted = Participation(
            event_id, connection_id, aggregator, aggregator_share_ppm, actor.acted_by
        )
        key = f"respond/{event_id}/{connection_id}"
        stored = context.get_state(key)
        if stored is not None:
            found = stored_record(Participation, stored)
            if found.state != "left":
                if replace(found, acted_by=wanted.acted_by, state="opted_in", commitment=None) != (
                    wanted
                ):
                    raise Conflict(
                        f"{connection_id} takes part in {event_id} already, on other terms"
                    )
                return found
        self._before(context, event, event.opt_in_until, "homes could opt in until")
        context.put_state(key, canonical_json(wanted))
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
        event = self._event(context, event_id)
        found = self._participation(context, event_id, connection_id)
        if found.state == "left":
            return found
        self._before(context, event, event.window_start, "homes could leave until")
        left = replace(found, state="left", commitment=None)
        context.put_state(f"respond/{event_id}/{connection_id}", canonical_json(left))
        return left

    @transaction
    def commit_baseline(
        self,
        context: Context,
        *,
        event_id: Identifier,
        connection_id: Identifier,
        commitment: TransactionId,
    ) -> Participation:
        """Commit to a home's baseline before the event begins."""
        connection = self._operated(context, connection_id, "commit baselines")
        event = self._event(context, event_id)
        found = self._participation(context, event_id, connection.connection_id)
        if found.commitment == commitment:
            return found
        if found.state != "opted_in":
            raise Conflict(f"the participation of {connection_id} is {found.state}")
        self._before(context, event, event.window_start, "baselines could be committed until")
        committed = replace(found, commitment=commitment, state="committed")
        context.put_state(f"respond/{event_id}/{connection_id}", canonical_json(committed))
        return committed

    @transaction
    def settle(
        self,
        context: Context,
        *,
        event_id: Identifier,
        connection_id: Identifier,
        baseline_wh: Annotated[tuple[IntervalEnergy, ...], AtMost(MAX_INTERVALS)],
        salt: Salt,
        metered_wh: Annotated[tuple[IntervalEnergy, ...], AtMost(MAX_INTERVALS)],
        sold_wh: Annotated[int, Integer(0, 10**12, "Wh")] = 0,
    ) -> Participation:
        """Open a home's baseline, measure its response, and pay the reward, once.

        `sold_wh` is the part of the response that was sold as energy: it isn't paid twice.
        """
        self._operated(context, connection_id, "settle responses")
        event = self._event(context, event_id)
        found = self._participation(context, event_id, connection_id)
        if found.state == "settled":
            return found
        if found.state != "committed":
            raise Conflict(
                f"the participation of {connection_id} is {found.state}: without a baseline "
                "committed before the event there is no reward"
            )
        channel = energy_settings(context)
        now = settings.now(context, channel)
        if event.cancelled:
            raise Conflict(f"event {event_id} was cancelled")
        if now < event.window_end:
            raise Conflict(f"event {event_id} ends at {utc_text(event.window_end)}")
        intervals = (event.window_end - event.window_start) // channel.interval_s
        for name, values in (("baseline_wh", baseline_wh), ("metered_wh", metered_wh)):
            if len(values) != intervals:
                raise InvalidArgument(
                    f"{name} has {len(values)} values, but the event has {intervals} intervals"
                )
        if commitment(baseline_wh, salt) != found.commitment:
            raise Conflict(
                f"baseline_wh and salt are not what was committed for {connection_id} before the "
                "event"
            )
        responded = max(0, response_wh(baseline_wh, metered_wh, event.kind) - sold_wh)
        reward = amount_micro(responded, event.reward_micro_per_kwh)
        share = half_even(reward * found.aggregator_share_ppm, _MILLION)
        payer = grid_account(event.operator)
        ledger = Ledger(context, now)
        ledger.transfer(Transfer(payer, connection_id, reward - share, "response", event_id))
        if found.aggregator is not None:
            ledger.transfer(Transfer(payer, found.aggregator, share, "response", event_id))
        ledger.write()
        settled = replace(found, state="settled", response_wh=responded, reward_micro=reward)
        context.put_state(f"respond/{event_id}/{connection_id}", canonical_json(settled))
        context.set_event("response_settled", canonical_json(settled))
        return settled

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
            "events": [self._event(context, key.rpartition("/")[2]) for key, _ in items],
            "bookmark": following,
        }

    @query
    def participation(
        self, context: Context, *, event_id: Identifier, connection_id: Identifier
    ) -> Participation:
        """How a home takes part in an event."""
        connection = connection_of(context, connection_id)
        access.require(
            homes.is_home(context, connection)
            or access.is_operator(context.creator, connection.utility),
            context.creator,
            f"read responses of {connection_id}",
            f"its home and operators of {connection.utility}",
        )
        return self._participation(context, event_id, connection_id)

    @staticmethod
    def _event(context: Context, event_id: str) -> Event:
        stored = context.get_state(f"event/{event_id}")
        if stored is None:
            raise NotFound(f"no event {event_id} was announced")
        return stored_record(Event, stored)

    @staticmethod
    def _participation(context: Context, event_id: str, connection_id: str) -> Participation:
        stored = context.get_state(f"respond/{event_id}/{connection_id}")
        if stored is None:
            raise NotFound(f"{connection_id} does not take part in {event_id}")
        return stored_record(Participation, stored)

    @staticmethod
    def _operated(context: Context, connection_id: str, act: str) -> Connection:
        connection = connection_of(context, connection_id)
        access.require_operator(context.creator, connection.utility, f"{act} of {connection_id}")
        return connection

    @staticmethod
    def _before(context: Context, event: Event, limit: int, what: str) -> None:
        if event.cancelled:
            raise Conflict(f"event {event.event_id} was cancelled")
        if settings.now(context, energy_settings(context)) >= limit:
            raise Conflict(f"event {event.event_id}: {what} {utc_text(limit)}")
        gates.before(context, limit)
