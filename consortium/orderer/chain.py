"""One channel on this orderer: its Raft member, the envelopes on their way, its blocks.

The core (`consortium.raft`) decides; this drives it. Everything runs on one event loop, except
that the disk is written by worker threads: the loop's `_drive` takes a Ready, has it persisted,
sends its messages, applies its entries, and advances.

How an envelope travels: `submit` puts it among the pending ones of the orderer that the client
called, and hands it to the leader, here or by `Cluster/Step`. The leader cuts blocks and proposes
them. When the block comes back committed and is written here, the client gets its answer. If the
leader changes meanwhile, everything still pending is handed to the new one as soon as an entry of
its term is applied here: from then on it is certain that no earlier leader can commit it. (An
envelope that reached two leaders may then stand in two blocks; peers mark the second as a
duplicate.)
"""

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig, Consenter
from consortium.raft import Config, MessageRefused, ProposalDropped, RawNode, Ready
from consortium.wire import common_pb2
from consortium.wire import raftpb_pb2 as raftpb
from consortium.wire.envelopes import OpenedEnvelope

from .admission import Admission, Admitted, Refused, opened
from .blockstore import BlockStore
from .blockwriter import BlockWriter, Written
from .leading import LeaderQueue, Queued, Refuse
from .pending import Limits, PendingEnvelopes, Submission
from .raft_storage import ChannelLog

_LOGGER = logging.getLogger(__name__)

# What another consenter may send; everything else a node only sends itself.
_FROM_CONSENTERS = frozenset(
    (
        raftpb.MsgApp,
        raftpb.MsgAppResp,
        raftpb.MsgVote,
        raftpb.MsgVoteResp,
        raftpb.MsgSnap,
        raftpb.MsgHeartbeat,
        raftpb.MsgHeartbeatResp,
        raftpb.MsgTimeoutNow,
        raftpb.MsgPreVote,
        raftpb.MsgPreVoteResp,
    )
)
# What a leader may send before its own disk has the entries (Raft thesis 10.2.1).
_BEFORE_PERSISTING = frozenset((raftpb.MsgApp, raftpb.MsgHeartbeat))

MAX_INFLIGHT_BYTES = 32 * 1024 * 1024
"""Entries on their way to one follower."""

EARLY_ENVELOPES = 1_000
"""Envelopes kept for the moment when a new leader has applied its own first entry."""


class Transport(Protocol):
    """Sends to the channel's other consenters; never waits."""

    def send(self, consenter_id: int, message: raftpb.Message) -> bool:
        """Queue a Raft message; False if it was dropped."""

    def forward(self, consenter_id: int, admitted: Admitted) -> bool:
        """Queue an envelope for the leader; False if there is no room for it."""

    def reachable(self, consenter_id: int) -> bool:
        """Whether there is a connection to a consenter."""

    def configure(self, consenters: dict[int, Consenter]) -> None:
        """From now on these are the other consenters."""

    def pull(self, first: int, last: int) -> Awaitable[None]:
        """Fetch blocks from another orderer into `Chain.take_pulled`, as many as it gets."""


@dataclass(slots=True)
class Counters:
    """What this chain has done since it started."""

    blocks: int = 0
    envelopes: int = 0
    elections: int = 0
    """Times that a leader was newly seen."""
    refused: int = 0
    late_ticks: int = 0
    dropped_messages: int = 0


class Chain:
    """One channel's chain on this orderer. `start` it on the loop that it is used from."""

    def __init__(
        self,
        *,
        own_place: Callable[[ChannelConfig], int],
        log: ChannelLog,
        store: BlockStore,
        signer: Signer,
        transport: Transport,
        writer_threads: Executor,
        limits: Limits,
        tick_interval_s: float | None = None,
    ) -> None:
        """`own_place` finds this orderer's place, from 1, among a configuration's consenters.

        `tick_interval_s` replaces the channel's own. `log` and `store` must have begun.
        """
        self._log = log
        self._store = store
        self._signer = signer
        self._transport = transport
        self._threads = writer_threads
        self._limits = limits
        self._writer = BlockWriter(store, signer)
        self.config: ChannelConfig = self._writer.config
        self.raft_id = self._writer.raft.consenter_ids[own_place(self.config) - 1]
        self.channel_id = self.config.channel_id
        self.admission = Admission(self.config)
        self.counters = Counters()
        self.failure: str | None = None
        options = self.config.orderer.raft
        self._tick_s = tick_interval_s or options.tick_interval_s
        # Blocks that were fetched may be ahead of the log, the log ahead of the blocks.
        hard_state, _ = log.initial_state()
        applied = min(hard_state.commit, self._writer.raft.raft_index)
        self._applied = max(applied, log.first_index() - 1)
        self._applied_term = log.term(self._applied)
        preferred_bytes = self.config.orderer.preferred_max_bytes + 64 * 1024
        self._node = RawNode(
            Config(
                id=self.raft_id,
                election_tick=options.election_tick,
                heartbeat_tick=options.heartbeat_tick,
                storage=log,
                random=random.Random(),  # noqa: S311  spreads election timeouts
                applied=self._applied,
                # A message with one block of preferred size; a larger block goes alone.
                max_size_per_message=preferred_bytes,
                # Blocks in flight are counted here (max_inflight_blocks), not in bytes there.
                max_uncommitted_size=0,
                max_inflight_bytes=max(MAX_INFLIGHT_BYTES, 2 * preferred_bytes),
                check_quorum=True,
                pre_vote=True,
                disable_proposal_forwarding=True,
            )
        )
        self._leader = 0
        self._leader_term = 0
        self._ready_leader = 0
        self._leaderless_since = time.monotonic()
        self._leading: LeaderQueue | None = None
        self._early: list[Queued] = []
        self._pending = PendingEnvelopes(limits)
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._bytes_since_snapshot = 0
        self._handing_over = False
        self._stopping = False

    # What others ask

    @property
    def height(self) -> int:
        """How many blocks this orderer has."""
        return self._store.height

    @property
    def leader(self) -> int:
        """Raft id of the leader, 0 if none is known."""
        return self._leader

    @property
    def is_leader(self) -> bool:
        """Whether this orderer leads and takes envelopes."""
        return self._leading is not None

    def leaderless_for_s(self) -> float:
        """How long there has been no leader; 0 while there is one."""
        return 0.0 if self._leader else time.monotonic() - self._leaderless_since

    @property
    def available(self) -> bool:
        """Whether this orderer takes part: it has not failed and knows a leader, or did lately."""
        return (
            self.failure is None
            and not self._stopping
            and not self._handing_over
            and self.leaderless_for_s() <= self._limits.leaderless_grace_s
        )

    def block(self, number: int) -> bytes:
        """The stored bytes of a block (from memory if it is recent); may read the disk."""
        return self._store.read(number)

    def cached_block(self, number: int) -> bytes | None:
        """The stored bytes of a block if they are in memory."""
        return self._store.cached(number)

    async def grown(self, height: int) -> None:
        """Return once there are more than `height` blocks, or the chain's availability changed."""
        if self._store.height <= height:
            await self._changed.wait()

    def consenters(self) -> dict[int, Consenter]:
        """The channel's consenters by Raft id."""
        ids = self._writer.raft.consenter_ids
        return dict(zip(ids, self.config.orderer.consenters, strict=True))

    def status(self) -> dict[str, object]:
        """State for operators, as plain values."""
        node = self._node.status()
        leading = self._leading
        return {
            "channel": self.channel_id,
            "raft_id": self.raft_id,
            "role": node.role.name.lower(),
            "leader": node.leader,
            "term": node.term,
            "height": self._store.height,
            "config_sequence": self.config.sequence,
            "raft_applied": node.applied,
            "raft_committed": node.committed,
            "raft_last": node.last_index,
            "raft_first": self._log.first_index(),
            "consenters": list(self._writer.raft.consenter_ids),
            "pending": len(self._pending),
            "queued": leading.envelopes if leading else 0,
            "blocks_in_flight": leading.in_flight if leading else 0,
            "blocks_written": self.counters.blocks,
            "envelopes_written": self.counters.envelopes,
            "leader_changes": self.counters.elections,
            "refused": self.counters.refused,
            "late_ticks": self.counters.late_ticks,
            "dropped_messages": self.counters.dropped_messages,
            "failure": self.failure,
        }

    # Life

    def start(self) -> None:
        """Begin taking part."""
        self._transport.configure(self._others())
        self._tasks = [
            asyncio.create_task(self._guarded(self._drive), name=f"{self.channel_id}-drive"),
            asyncio.create_task(self._guarded(self._tick), name=f"{self.channel_id}-tick"),
        ]
        self._wake.set()

    async def stop(self) -> None:
        """Stop taking part, answer who waits, and leave the files so that a start is quick."""
        if self._leading is not None and self.failure is None:
            await self._hand_over()
        self._stopping = True
        self._signal_change()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._stop_leading()
        self._pending.settle_all(
            common_pb2.SERVICE_UNAVAILABLE,
            "this orderer is stopping; send the envelope to another one",
        )
        if self.failure is None:
            await self._checkpoint()
        self._store.close()

    async def _hand_over(self) -> None:
        """Before a leader stops: let another one lead, and have what is pending ordered by it."""
        heirs = [
            (progress.match, key)
            for key, progress in self._node.status().progress.items()
            if progress.recently_active and self._transport.reachable(key)
        ]
        if not heirs:
            return
        self._handing_over = True
        self._node.transfer_leader(max(heirs)[1])
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.hand_over_s):
                while self._pending or self._leader in (0, self.raft_id):
                    await self._changed.wait()

    def _others(self) -> dict[int, Consenter]:
        return {key: one for key, one in self.consenters().items() if key != self.raft_id}

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:
            _LOGGER.exception("channel %s", self.channel_id)
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, what: str) -> None:
        """Stop taking part because of something that only an operator can mend."""
        self.failure = what
        _LOGGER.error("channel %s: this orderer stops taking part: %s", self.channel_id, what)
        self._stop_leading()
        self._leader = 0
        self._pending.settle_all(
            common_pb2.SERVICE_UNAVAILABLE,
            "this orderer cannot order at the moment; send the envelope to another one",
        )
        self._signal_change()

    # Envelopes from clients

    def admit(self, envelope: OpenedEnvelope) -> Admitted:
        """Check an envelope of this channel, in any thread; raises Refused.

        A CONFIG_UPDATE becomes the CONFIG transaction to be ordered in its place.
        """
        admission = self.admission
        admitted = admission.check(envelope)
        if envelope.channel_header.type == common_pb2.CONFIG_UPDATE:
            return admission.config_transaction(envelope, self._signer)
        return admitted

    def submit(self, submission: Submission, admitted: Admitted) -> None:
        """Take an admitted envelope; the submission is answered when its fate is known."""
        if self.available:
            problem = self._pending.no_room()
        else:
            problem = (
                f"channel {self.channel_id} has no leader at the moment; try again, or another"
                " orderer"
            )
        if problem is not None:
            self.counters.refused += 1
            submission.answer(common_pb2.SERVICE_UNAVAILABLE, problem)
            return
        self._pending.add(submission, admitted)
        self._dispatch(submission)

    def _dispatch(self, submission: Submission) -> None:
        """Hand a pending envelope to the leader, if there is one that takes envelopes."""
        admitted = submission.admitted
        if admitted is None or not self._ready_leader:
            return
        if self._ready_leader == self.raft_id:
            self.order(admitted, self.refuse_pending)
        elif not self._transport.forward(self._ready_leader, admitted):
            self.refuse_pending(
                submission.digest,
                common_pb2.SERVICE_UNAVAILABLE,
                "the queue to the leader is full; send more slowly and try again in a second",
            )

    def redispatch(self, leader: int) -> None:
        """The way to a consenter is open (again): what was sent there before may be lost."""
        if leader == self._ready_leader and leader != self.raft_id:
            self._dispatch_all()

    def _dispatch_all(self) -> None:
        for submission in self._pending:
            self._dispatch(submission)

    def refuse_pending(self, digest: bytes, status: int, info: str) -> None:
        """Answer one pending envelope other than by success."""
        if self._pending.settle(digest, status, info):
            self.counters.refused += 1

    # The leader's side

    def order(self, admitted: Admitted, refuse: Refuse) -> None:
        """Order an envelope that this or another orderer has admitted.

        `refuse` is called with its digest, a status and a sentence if it cannot be ordered; when
        it can, nobody is told but by the block itself.
        """
        leading = self._leading
        queued = Queued(admitted, refuse)
        if leading is None:
            # Others may know before this orderer itself that its first entry is committed. If it
            # doesn't lead, whoever sent this hears of the new leader and sends it there.
            if self._leader == self.raft_id and len(self._early) < EARLY_ENVELOPES:
                self._early.append(queued)
            return
        problem = leading.no_room(self._limits)
        if problem is not None:
            queued.refuse(common_pb2.SERVICE_UNAVAILABLE, problem)
        elif self._still_admitted(queued):
            leading.add(queued)
            self._propose()

    def _still_admitted(self, queued: Queued) -> bool:
        """Check again what was admitted under an earlier configuration; refuse it if need be."""
        admitted = queued.admitted
        if admitted.sequence >= self.config.sequence:
            return True
        try:
            if admitted.is_config:
                raise Refused(
                    common_pb2.SERVICE_UNAVAILABLE,
                    "another configuration update came first; compute this one again",
                )
            self.admission.check(opened(admitted.raw))
        except Refused as refused:
            queued.refuse(refused.status, refused.info)
            return False
        return True

    def _propose(self) -> None:
        """Propose the batches that may be in flight now."""
        if self._leading is not None and self._leading.propose(self._node.propose):
            self._wake.set()

    def _start_leading(self) -> None:
        self._leading = LeaderQueue(
            self.config, self._writer.height, self._writer.tip_hash, self._propose
        )
        _LOGGER.info(
            "channel %s: orderer %d leads in term %d from block %d on",
            self.channel_id,
            self.raft_id,
            self._applied_term,
            self._writer.height,
        )

    def _stop_leading(self) -> None:
        leading, self._leading = self._leading, None
        if leading is not None:
            leading.close()

    # Raft: messages and time in

    def step(self, sender: int, message: raftpb.Message) -> None:
        """Take a Raft message that consenter `sender` sent."""
        if (
            self.failure is not None
            or self._stopping
            or message.type not in _FROM_CONSENTERS
            or message.to != self.raft_id
            or getattr(message, "from") != sender
        ):
            self.counters.dropped_messages += 1
            return
        try:
            self._node.step(message)
        except MessageRefused, ProposalDropped:
            self.counters.dropped_messages += 1
        except Exception as error:
            # The core has found that what it was promised does not hold; it must not go on.
            _LOGGER.exception("channel %s", self.channel_id)
            self._fail(f"{type(error).__name__}: {error}")
        self._wake.set()

    async def _tick(self) -> None:
        """Feed time to the core, and to what waits here.

        One tick for each wake-up, however late it comes: when the whole process was busy, time
        passes more slowly for its orderers instead of in a burst that looks like a dead leader.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + self._tick_s
        candidate = self._is_first_candidate()
        ticks = 0
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            now = loop.time()
            if now - due > self._tick_s:
                self.counters.late_ticks += 1
                due = now
            due += self._tick_s
            if self.failure is not None:
                return
            self._node.tick()
            ticks += 1
            options = self.config.orderer.raft
            if candidate and ticks % (2 * options.heartbeat_tick) == 0:
                # As in Fabric, one consenter does not wait for a timeout when all start anew.
                candidate = not self._leader and ticks <= 4 * options.election_tick
                if candidate:
                    self._node.campaign()
            self.counters.refused += self._pending.expire()
            if not self._leader and self.leaderless_for_s() > self._limits.leaderless_grace_s:
                self._signal_change()
            self._wake.set()

    def _is_first_candidate(self) -> bool:
        ids = sorted(self._writer.raft.consenter_ids)
        digest = hashlib.sha256(self.channel_id.encode()).digest()
        return self.raft_id == ids[int.from_bytes(digest[:8], "big") % len(ids)]

    # Raft: work out

    async def _drive(self) -> None:
        while self.failure is None:
            await self._wake.wait()
            self._wake.clear()
            while self._node.has_ready():
                ready = self._node.ready()
                await self._handle(ready)
                self._node.advance()
                self._follow_leader()
                self._propose()
            await self._tidy()

    async def _handle(self, ready: Ready) -> None:
        leads = (
            self._leading is not None
            and ready.soft_state is None
            and (ready.hard_state is None or ready.hard_state.term == self._leader_term)
        )
        later = ready.messages
        if leads and ready.entries:
            for message in ready.messages:
                if message.type in _BEFORE_PERSISTING:
                    self._send(message)
            later = [m for m in ready.messages if m.type not in _BEFORE_PERSISTING]
        if ready.snapshot is not None:
            await self._catch_up(ready.snapshot)
        if ready.hard_state is not None or ready.entries or ready.snapshot is not None:
            await self._log.persist(
                ready.hard_state, ready.entries, ready.snapshot, must_sync=ready.must_sync
            )
        for message in later:
            self._send(message)
        if ready.committed_entries:
            await self._apply(ready.committed_entries)

    def _send(self, message: raftpb.Message) -> None:
        sent = self._transport.send(message.to, message)
        if not sent:
            self.counters.dropped_messages += 1
            self._node.report_unreachable(message.to)
        if message.type == raftpb.MsgSnap:
            self._node.report_snapshot(message.to, sent)

    async def _apply(self, entries: Sequence[raftpb.Entry]) -> None:
        loop = asyncio.get_running_loop()
        run: list[tuple[int, bytes]] = []

        async def write() -> None:
            if run:
                for written in await loop.run_in_executor(
                    self._threads, self._write_blocks, tuple(run), bool(self._pending)
                ):
                    self._written(written)
                run.clear()

        for entry in entries:
            if entry.Type == raftpb.EntryNormal:
                if entry.Data:
                    run.append((entry.Index, entry.Data))
                    self._bytes_since_snapshot += len(entry.Data)
            else:
                await write()
                self._apply_conf_change(entry)
        await write()
        self._applied = entries[-1].Index
        self._applied_term = entries[-1].Term

    def _write_blocks(
        self, entries: Sequence[tuple[int, bytes]], want_digests: bool
    ) -> list[Written]:
        """In a writer thread: append the blocks of committed entries."""
        written = []
        for index, data in entries:
            one = self._writer.write(index, data, want_digests=want_digests)
            if one is not None:
                written.append(one)
        return written

    def _written(self, written: Written) -> None:
        """A block is in the store: take over its configuration, answer who waits for it."""
        self.counters.blocks += 1
        self.counters.envelopes += written.envelopes
        if self._leading is not None:
            self._leading.block_written()
        if written.config is not None:
            self._take_config(written.config)
        for digest in written.digests:
            self._pending.settle(digest, common_pb2.SUCCESS)
        self._signal_change()

    def _take_config(self, config: ChannelConfig) -> None:
        self.config = config
        self.admission = Admission(config)
        self._transport.configure(self._others())
        leading = self._leading
        if leading is None:
            return
        for queued in leading.take_waiting(config):
            if self._still_admitted(queued):
                leading.add(queued)

    def _apply_conf_change(self, entry: raftpb.Entry) -> None:
        if entry.Index <= self._log.conf_index:
            return  # part of the stored configuration already
        change: raftpb.ConfChange | raftpb.ConfChangeV2
        if entry.Type == raftpb.EntryConfChange:
            change = raftpb.ConfChange.FromString(entry.Data)
        else:
            change = raftpb.ConfChangeV2.FromString(entry.Data)
        self._log.set_conf_state(self._node.apply_conf_change(change), entry.Index)

    def _follow_leader(self) -> None:
        """Notice who leads and whether they take envelopes already."""
        status = self._node.status()
        if status.leader != self._leader or status.term != self._leader_term:
            if status.leader and not self._leader:
                self.counters.elections += 1
            if self._leader and not status.leader:
                self._leaderless_since = time.monotonic()
            self._leader = status.leader
            self._leader_term = status.term
        # An entry of the leader's own term is applied: so is everything from before it.
        ready = status.leader if self._applied_term == status.term else 0
        if self._leading is not None and ready != self.raft_id:
            self._stop_leading()
        if ready == self._ready_leader:
            return
        self._ready_leader = ready
        self._signal_change()
        early, self._early = self._early, []
        if ready == self.raft_id:
            self._start_leading()
            for queued in early:
                self.order(queued.admitted, queued.refuse_by_digest)
        if ready:
            self._dispatch_all()

    def _signal_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # Disk

    async def _tidy(self) -> None:
        """Checkpoint and compact when enough has gathered."""
        snapshot_bytes = self.config.orderer.raft.snapshot_interval_bytes or 16 * 1024 * 1024
        if self._bytes_since_snapshot >= snapshot_bytes:
            await self._checkpoint()
            await self._compact()
        elif (
            self._store.unflushed_bytes >= self._limits.checkpoint_bytes
            or self._store.height - self._store.durable_height >= self._limits.checkpoint_blocks
        ):
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        # The commit index first: blocks on disk that the log doesn't know to be committed would
        # look as if they had been fetched.
        await self._log.flush()
        flushed = await asyncio.get_running_loop().run_in_executor(self._threads, self._store.flush)
        await self._store.commit(flushed)

    async def _compact(self) -> None:
        """Take a snapshot at the newest block and drop what lies before the last snapshot."""
        index = self._writer.raft.raft_index
        previous = self._log.snapshot().metadata.index
        if previous < index <= self._log.last_index():
            await self._log.compact(index, self._store.read(self._store.height - 1), previous)
        self._bytes_since_snapshot = 0

    async def _catch_up(self, snapshot: raftpb.Snapshot) -> None:
        """Fetch the blocks up to a snapshot, durably; only then may it be acknowledged."""
        target = common_pb2.Block.FromString(snapshot.data).header
        _LOGGER.info(
            "channel %s: behind the leader's log; fetching blocks %d to %d",
            self.channel_id,
            self._store.height,
            target.number,
        )
        wait_s = 0.1
        while self._store.height <= target.number:
            before = self._store.height
            await self._transport.pull(before, target.number)
            if self._store.height > before:
                wait_s = 0.1
            if self._store.height <= target.number:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, 5.0)
        await self._checkpoint()
        self._applied = snapshot.metadata.index
        self._applied_term = snapshot.metadata.term
        self._bytes_since_snapshot = 0

    async def take_pulled(self, raw: bytes) -> None:
        """Append a fetched block; raises BlockRefused if it cannot follow."""
        self._written(
            await asyncio.get_running_loop().run_in_executor(
                self._threads, self._append_pulled, raw, bool(self._pending)
            )
        )
        if self._store.unflushed_bytes >= self._limits.checkpoint_bytes:
            await self._checkpoint()

    def _append_pulled(self, raw: bytes, want_digests: bool) -> Written:
        return self._writer.append_pulled(raw, want_digests=want_digests)
