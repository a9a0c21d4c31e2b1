"""Contract `pool`: many homes' batteries and appliances, offered together by an aggregator.

A pool's terms never change: the aggregator's share of a reward, and how the rest is split among
the members, by what each has done (`response`) or by the battery that each brought (`capacity`).
A home that has named the aggregator (roles:Assign) joins by itself, and agrees to them so. The
aggregator then enlists members for an event, all at once. Afterwards each is measured as any home
is (response:Settle), and what they did together is rewarded: who did the contrary takes off.

    pool/{pool}                the terms
    inpool/{connection}/{pool} that a home has joined
    enlisted/{event}/{pool}    who takes part, and what it came to
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
    NotFound,
    canonical_json,
    query,
    stored_record,
    transaction,
    under,
)

from ..assets.wallet import Ledger, Transfer, grid_account
from ..common import access, settings
from ..common.clock import DAY_S, utc_text
from ..common.money import amount_micro, half_even
from ..registry import grid, homes, roles
from ..registry.registry import connection_of, energy_settings
from ..settlement.sharing import pro_rata
from .response import (
    OPEN_DAYS,
    Event,
    Participation,
    check_before,
    check_over,
    check_place,
    event_of,
    events_around,
    participation_of,
    put_participation,
)

MAX_MEMBERS = 500
"""Of a pool that take part in one event."""
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Pool:
    """An aggregator's terms."""

    pool_id: Identifier
    aggregator: Identifier
    """As its certificate says in the attribute gridledger.participant."""
    account: Identifier
    """The connection whose account gets the aggregator's share."""
    share_ppm: Annotated[int, Integer(0, _MILLION, "ppm")]
    """Of each reward."""
    split: Annotated[str, Choice("response", "capacity")]
    """What the rest is split by: what each has done, or what each battery holds."""


@dataclass(frozen=True, slots=True)
class _Joined:
    at: Instant


@dataclass(frozen=True, slots=True)
class Enlisted:
    """The members of a pool that take part in an event, and what they came to together."""

    event_id: Identifier
    pool_id: Identifier
    connections: Annotated[tuple[Identifier, ...], AtMost(MAX_MEMBERS)]
    settled_at: Instant | None = None
    response_wh: Annotated[int, Integer(0, 10**15, "Wh")] = 0
    reward_micro: Annotated[int, Integer(0, 10**15, "micro-units")] = 0
    aggregator_micro: Annotated[int, Integer(0, 10**15, "micro-units")] = 0
    """Of the reward, what the aggregator got."""


def pool_of(context: Context, pool_id: str) -> Pool:
    """A pool's terms; raises NotFound."""
    stored = context.get_state(f"pool/{pool_id}")
    if stored is None:
        raise NotFound(f"there is no pool {pool_id}; see pool:Found")
    return stored_record(Pool, stored)


class Pools(Contract):
    """Terms of pools, their members, and what they are paid."""

    name: ClassVar[str] = "pool"

    @transaction
    def found(self, context: Context, *, pool: Pool) -> Pool:
        """Found a pool; the same again changes nothing."""
        self._require_aggregator(context, pool, "found its pools")
        connection_of(context, pool.account)
        stored = context.get_state(f"pool/{pool.pool_id}")
        if stored is None:
            context.put_state(f"pool/{pool.pool_id}", canonical_json(pool))
        elif stored_record(Pool, stored) != pool:
            raise Conflict(f"pool {pool.pool_id} has other terms, and terms never change")
        return pool

    @transaction
    def join(self, context: Context, *, pool_id: Identifier, connection_id: Identifier) -> Pool:
        """Agree to a pool's terms, and let its aggregator enlist one's home; again: no change."""
        pool = pool_of(context, pool_id)
        connection = connection_of(context, connection_id)
        homes.require_home(context, connection, f"join a pool with {connection_id}")
        now = settings.now(context, energy_settings(context))
        named = roles.role_at(context, connection, "aggregator", now)
        if named != pool.aggregator:
            raise Conflict(
                f"pool {pool_id} is {pool.aggregator}'s, but the aggregator of {connection_id} is "
                f"{named or 'nobody'}; roles:Assign comes first"
            )
        if not self._joined(context, pool_id, connection_id):
            context.put_state(f"inpool/{connection_id}/{pool_id}", canonical_json(_Joined(now)))
        return pool

    @staticmethod
    def _joined(context: Context, pool_id: str, connection_id: str) -> bool:
        """Whether who lives there now has joined a pool."""
        stored = context.get_state(f"inpool/{connection_id}/{pool_id}")
        if stored is None:
            return False
        now = settings.now(context, energy_settings(context))
        since = homes.lives_since(context, connection_id, now)
        return since is not None and stored_record(_Joined, stored).at >= since

    @transaction
    def leave(
        self, context: Context, *, pool_id: Identifier, connection_id: Identifier
    ) -> dict[str, Any]:
        """Be enlisted no more; response:Leave takes a home out of an event. Again: no change."""
        connection = connection_of(context, connection_id)
        homes.require_home_or_operator(context, connection, f"leave a pool with {connection_id}")
        key = f"inpool/{connection_id}/{pool_id}"
        if context.get_state(key) is not None:
            context.del_state(key)
        return {"connection_id": connection_id, "pool_id": pool_id, "joined": False}

    @query
    def pool(self, context: Context, *, pool_id: Identifier) -> Pool:
        """A pool's terms."""
        return pool_of(context, pool_id)

    @transaction
    def enlist(
        self,
        context: Context,
        *,
        event_id: Identifier,
        pool_id: Identifier,
        connections: Annotated[tuple[Identifier, ...], AtMost(MAX_MEMBERS)],
    ) -> Enlisted:
        """Let members take part in an event, all at once; the same again changes nothing."""
        pool = pool_of(context, pool_id)
        self._require_aggregator(context, pool, "enlist its members")
        event = event_of(context, event_id)
        if not connections or list(connections) != sorted(dict.fromkeys(connections)):
            raise InvalidArgument("connections must be in order of names, each once, one at least")
        key = f"enlisted/{event_id}/{pool_id}"
        wanted = Enlisted(event_id, pool_id, connections)
        stored = context.get_state(key)
        if stored is not None:
            known = stored_record(Enlisted, stored)
            if known.connections != connections:
                raise Conflict(f"pool {pool_id} has enlisted others for {event_id} already")
            return known
        check_before(context, event, event.opt_in_until, "homes could opt in until")
        for name in connections:
            put_participation(context, self._member(context, pool, event, name))
        context.put_state(key, canonical_json(wanted))
        return wanted

    @classmethod
    def _member(cls, context: Context, pool: Pool, event: Event, name: str) -> Participation:
        """A member's participation; raises Conflict for who can't be enlisted."""
        connection = connection_of(context, name)
        at = event.window_start
        if (
            not cls._joined(context, pool.pool_id, name)
            or roles.role_at(context, connection, "aggregator", at) != pool.aggregator
        ):
            raise Conflict(
                f"{name} has not joined pool {pool.pool_id}, or has another aggregator at "
                f"{utc_text(at)}"
            )
        check_place(context, event, connection)
        found = participation_of(context, event.event_id, name)
        if found is not None and found.state != "left":
            raise Conflict(f"{name} takes part in {event.event_id} already")
        battery = sum(plant.battery_wh for plant in grid.plants_at(context, name, at))
        if pool.split == "capacity" and not battery:
            raise Conflict(
                f"pool {pool.pool_id} splits by what batteries hold, but {name} has none at "
                f"{utc_text(at)}; see grid:RegisterPlant"
            )
        return Participation(event.event_id, name, pool.aggregator, pool.pool_id, battery)

    @transaction
    def settle(self, context: Context, *, event_id: Identifier, pool_id: Identifier) -> Enlisted:
        """Pay what a pool's members did together, once: to the aggregator, and split among them.

        Who was never measured counts for nothing, a week after the event.
        """
        pool = pool_of(context, pool_id)
        self._require_concerned(context, pool, f"settle pool {pool_id}")
        event = event_of(context, event_id)
        enlisted = self._enlisted(context, event_id, pool_id)
        if enlisted.settled_at is not None:
            return enlisted
        now = check_over(context, event)
        waiting, members = self._measured(context, enlisted)
        if waiting and now < event.end + OPEN_DAYS * DAY_S:
            raise Conflict(
                f"{waiting[0]} isn't measured for {event_id} yet; response:Settle comes first, or "
                f"{utc_text(event.end + OPEN_DAYS * DAY_S)}"
            )
        total = max(0, sum(one.change_wh for one in members))
        reward = amount_micro(total, event.reward_micro_per_kwh)
        own = half_even(reward * pool.share_ppm, _MILLION)
        weights = [
            one.response_wh if pool.split == "response" else one.battery_wh for one in members
        ]
        ledger = Ledger(context, now)
        payer = grid_account(event.operator)
        parts = pro_rata(reward - own, weights)
        for one, part in zip(members, parts, strict=True):
            if part:
                ledger.transfer(Transfer(payer, one.connection_id, part, "response", event_id))
                put_participation(context, replace(one, reward_micro=part))
        if own:
            ledger.transfer(Transfer(payer, pool.account, own, "pool", event_id))
        ledger.write()
        settled = replace(
            enlisted, settled_at=now, response_wh=total, reward_micro=reward, aggregator_micro=own
        )
        context.put_state(f"enlisted/{event_id}/{pool_id}", canonical_json(settled))
        context.set_event("pool_settled", canonical_json(settled))
        return settled

    @query
    def enlisted(self, context: Context, *, event_id: Identifier, pool_id: Identifier) -> Enlisted:
        """Who of a pool takes part in an event, and what they came to together."""
        pool = pool_of(context, pool_id)
        self._require_concerned(context, pool, f"read who of pool {pool_id} takes part")
        return self._enlisted(context, event_id, pool_id)

    @query
    def due(self, context: Context) -> list[dict[str, Any]]:
        """Calls that pay pools whose members are measured."""
        access.require_member(context.creator, "see what is due")
        now = settings.now(context, energy_settings(context))
        found = []
        for event in events_around(context, now):
            if now < event.end:
                continue
            for _, value in context.range(*under(f"enlisted/{event.event_id}/")):
                enlisted = stored_record(Enlisted, value)
                if enlisted.settled_at is not None or self._measured(context, enlisted)[0]:
                    continue
                argument = {"event_id": event.event_id, "pool_id": enlisted.pool_id}
                found.append({"function": "pool:Settle", "argument": argument})
        return found

    @staticmethod
    def _measured(context: Context, enlisted: Enlisted) -> tuple[list[str], list[Participation]]:
        """Members that wait to be measured, and those that are."""
        waiting, members = [], []
        for name in enlisted.connections:
            one = participation_of(context, enlisted.event_id, name)
            if one is None or one.pool != enlisted.pool_id:
                continue  # has left, and may have come back by itself
            if one.state == "committed":
                waiting.append(name)
            elif one.state == "settled":
                members.append(one)
        return waiting, members

    @staticmethod
    def _enlisted(context: Context, event_id: str, pool_id: str) -> Enlisted:
        stored = context.get_state(f"enlisted/{event_id}/{pool_id}")
        if stored is None:
            raise NotFound(f"pool {pool_id} has enlisted nobody for {event_id}")
        return stored_record(Enlisted, stored)

    @staticmethod
    def _is_aggregator(context: Context, pool: Pool) -> bool:
        now = settings.now(context, energy_settings(context))
        return access.participant(context.creator) == pool.aggregator and roles.is_participant(
            context, context.creator, "aggregator", now
        )

    def _require_concerned(self, context: Context, pool: Pool, act: str) -> None:
        creator = context.creator
        access.require(
            access.is_operator(creator, creator.msp_id) or self._is_aggregator(context, pool),
            creator,
            act,
            f"{pool.aggregator} and operators of any utility",
        )

    def _require_aggregator(self, context: Context, pool: Pool, act: str) -> None:
        access.require(
            self._is_aggregator(context, pool),
            context.creator,
            act,
            f"the aggregator {pool.aggregator}",
        )
