"""What a leader has and others do not: envelopes to be cut into blocks, and blocks in flight."""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from consortium.ledger.channel_config import ChannelConfig
from consortium.raft import ProposalDropped

from .admission import Admitted
from .blockcutter import BlockCutter, CutLimits
from .blockwriter import proposal
from .pending import Limits
from .room import Room

type Refuse = Callable[[bytes, int, str], None]
"""Tells whoever sent an envelope that it cannot be ordered: its digest, a status, a sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class Queued:
    """An envelope at the leader."""

    admitted: Admitted
    refuse_by_digest: Refuse
    sent_again: bool = True
    """Whether its sender sends it to the next leader too, should this one not order it."""

    @property
    def size_bytes(self) -> int:
        """Size as the block cutter counts it."""
        return self.admitted.size_bytes

    def refuse(self, status: int, info: str) -> None:
        """Tell its sender."""
        self.refuse_by_digest(hashlib.sha256(self.admitted.raw).digest(), status, info)


class LeaderQueue:
    """From arrival at the leader to proposal; thrown away when leadership is lost.

    What waits is kept by utility, and blocks take one of each in turn: one that sends without
    measure makes the others wait for a place in the next block, not for all that it has sent.

    A configuration transaction gets a block of its own, and nothing is proposed after it until
    it is in force: what waits must be checked again under the new configuration (`take_waiting`).
    """

    def __init__(
        self,
        config: ChannelConfig,
        number: int,
        previous_hash: bytes,
        limits: Limits,
        on_cut: Callable[[], None],
    ) -> None:
        """The first block will be `number`, after the one with `previous_hash`.

        `on_cut` is called when the batch timeout has cut a batch.
        """
        self._config = config
        self._number = number
        self._previous_hash = previous_hash
        self._on_cut = on_cut
        self._cutter: BlockCutter[Queued] = BlockCutter(_cut_limits(config))
        self._waiting: dict[str, deque[Queued]] = {}
        self._batches: deque[list[Queued]] = deque()
        self._room = Room("at the leader", limits.pending_envelopes, limits.pending_bytes)
        self._config_in_flight = False
        self._timer: asyncio.TimerHandle | None = None
        self.in_flight = 0
        """Blocks proposed and not yet written."""
        self.held = False
        """Nothing is proposed until the Raft group has followed the configuration."""

    @property
    def envelopes(self) -> int:
        """How many wait to be proposed."""
        return self._room.envelopes

    def no_room(self, utility: str) -> str | None:
        """A sentence for the sender if nothing more of this utility can be taken."""
        return self._room.refusal(utility, len(self._config.application_orgs))

    def add(self, queued: Queued) -> None:
        """Take an envelope that was admitted under the present configuration."""
        utility = queued.admitted.utility
        self._room.take(utility, queued.size_bytes)
        self._waiting.setdefault(utility, deque()).append(queued)
        self._cut()

    def _cut(self) -> None:
        """Cut the next batch, if what waits is enough for one and the one before is proposed."""
        while self._waiting and not self._batches:
            utility, waiting = next(iter(self._waiting.items()))
            del self._waiting[utility]
            queued = waiting.popleft()
            if waiting:
                self._waiting[utility] = waiting  # after the others
            if queued.admitted.is_config:
                if len(self._cutter):
                    self._batches.append(self._cutter.cut())
                self._batches.append([queued])
            else:
                self._batches.extend(self._cutter.ordered(queued))
        if not len(self._cutter):
            self._stop_timer()
        elif self._timer is None:
            self._start_timer()

    def propose(self, propose: Callable[[bytes], None]) -> bool:
        """Propose the batches that may be in flight now; True if there were any.

        A batch that the core does not take (ProposalDropped) stays.
        """
        some = False
        limit = self._config.orderer.raft.max_inflight_blocks
        while self._batches and not self._waits and self.in_flight < limit:
            batch = self._batches[0]
            envelopes = [one.admitted.raw for one in batch]
            data, block_hash = proposal(self._number, self._previous_hash, envelopes)
            try:
                propose(data)
            except ProposalDropped:
                return some  # leadership is being handed over, or lost: the next Ready says
            some = True
            self._batches.popleft()
            self._number += 1
            self._previous_hash = block_hash
            self.in_flight += 1
            for one in batch:
                self._room.give_back(one.admitted.utility, one.size_bytes)
            self._config_in_flight = batch[0].admitted.is_config
            self._cut()
        return some

    @property
    def _waits(self) -> bool:
        return self._config_in_flight or self.held

    def block_written(self) -> None:
        """A block of ours is committed and in the store."""
        if self.in_flight:
            self.in_flight -= 1

    def take_waiting(self, config: ChannelConfig) -> list[Queued]:
        """Go on under a new configuration; what was waiting is handed back to be checked again."""
        waiting = [one for batch in self._batches for one in batch] + self._cutter.cut()
        waiting += [one for queue in self._waiting.values() for one in queue]
        for one in waiting:
            self._room.give_back(one.admitted.utility, one.size_bytes)
        self._stop_timer()
        self._config = config
        self._config_in_flight = False
        self._batches.clear()
        self._waiting.clear()
        self._cutter = BlockCutter(_cut_limits(config))
        return waiting

    def close(self) -> None:
        """Leadership is lost: whoever waits for these envelopes sends them to the next leader."""
        self._stop_timer()

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(
            self._config.orderer.batch_timeout_s, self._batch_timeout
        )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _batch_timeout(self) -> None:
        self._timer = None
        if self._batches:
            # Blocks wait already: a larger one later costs less than another small one.
            self._start_timer()
            return
        self._batches.append(self._cutter.cut())
        self._on_cut()


def _cut_limits(config: ChannelConfig) -> CutLimits:
    return CutLimits(config.orderer.max_message_count, config.orderer.preferred_max_bytes)
