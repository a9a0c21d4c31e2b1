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
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig, Consenter
from consortium.ledger.config_update import ConfigError
from consortium.raft import Config, MessageRefused, ProposalDropped, RawNode, Ready
from consortium.wire import common_pb2
from consortium.wire import raftpb_pb2 as raftpb
from consortium.wire.envelopes import OpenedEnvelope, channel_header, signed_envelope

from .admission import Admission, Admitted, Refused, opened
from .blockcutter import BlockCutter, CutLimits
from .blockstore import BlockStore
from .blockwriter import BlockWriter, Written, proposal
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

EARLY_ENVELOPES = 1_000
"""Envelopes kept for the moment when a new leader has applied its own first entry."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one channel on one orderer."""

    pending_envelopes: int = 20_000
    """Envelopes taken from clients here and not yet in a block."""
    pending_bytes: int = 128 * 1024 * 1024
    submit_timeout_s: float = 10.0
    """After this an envelope that is not in a block is answered SERVICE_UNAVAILABLE."""
    leaderless_grace_s: float = 3.0
    """How long a channel may be without leader before clients and readers are told."""
    checkpoint_bytes: int = 8 * 1024 * 1024
    """Blocks that are written again from the Raft log after a crash, at most."""
    checkpoint_blocks: int = 1_000


class Transport(Protocol):
    """Sends to the channel's other consenters; never waits."""

    def send(self, consenter_id: int, message: raftpb.Message) -> bool:
        """Queue a Raft message; False if it was dropped."""

    def forward(self, consenter_id: int, admitted: Admitted) -> bool:
        """Queue an envelope for the leader; False if there is no room for it."""

    def configure(self, consenters: dict[int, Consenter]) -> None:
        """From now on these are the other consenters."""

    def pull(self, first: int, last: int) -> Awaitable[None]:
        """Fetch blocks from another orderer into `Chain.take_pulled`, as many as it gets."""


@dataclass(slots=True, eq=False)
class Submission:
    """An envelope that a client waits for. `status` is None until it is answered."""

    raw: bytes
    notify: Callable[[], None]
    status: int | None = None
    info: str = ""
    digest: bytes = b""
    admitted: Admitted | None = None
    deadline: float = 0.0

    def answer(self, status: int, info: str = "") -> None:
        """Settle it, once."""
        if self.status is None:
            self.status = status
            self.info = info
            self.notify()


@dataclass(slots=True, eq=False)
class _Queued:
    """An envelope at the leader, with the way to tell its sender of a late refusal."""

    admitted: Admitted
    refuse: Callable[[bytes, int, str], None]

    @property
    def size_bytes(self) -> int:
        return self.admitted.size_bytes


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


@dataclass(slots=True)
class _Leading:
    """What only a leader has."""

    number: int
    previous_hash: bytes
    cutter: BlockCutter[_Queued]
    batches: deque[list[_Queued]] = field(default_factory=deque)
    queued: int = 0
    queued_bytes: int = 0
    in_flight: int = 0
    config_in_flight: bool = False
    timer: asyncio.TimerHandle | None = None


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
        self._node = RawNode(
            Config(
                id=self.raft_id,
                election_tick=options.election_tick,
                heartbeat_tick=options.heartbeat_tick,
                storage=log,
                random=random.Random(),  # noqa: S311  spreads election timeouts
                applied=self._applied,
                # A message with one block of preferred size; a larger block goes alone.
                max_size_per_message=self.config.orderer.preferred_max_bytes + 64 * 1024,
                # Blocks in flight are counted here (max_inflight_blocks), not in bytes there.
                max_uncommitted_size=0,
                check_quorum=True,
                pre_vote=True,
                disable_proposal_forwarding=True,
            )
        )
        self._leader = 0
        self._leader_term = 0
        self._ready_leader = 0
        self._leaderless_since = time.monotonic()
        self._leading: _Leading | None = None
        self._early: list[_Queued] = []
        self._pending: dict[bytes, list[Submission]] = {}
        self._pending_count = 0
        self._pending_bytes = 0
        self._wake = asyncio.Event()
        self._grown = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._bytes_since_snapshot = 0
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
            await self._grown.wait()

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
            "pending": self._pending_count,
            "queued": leading.queued if leading else 0,
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
            asyncio.create_task(self._drive(), name=f"orderer-{self.channel_id}-drive"),
            asyncio.create_task(self._tick(), name=f"orderer-{self.channel_id}-tick"),
        ]
        self._wake.set()

    async def stop(self) -> None:
        """Stop taking part, answer who waits, and leave the files so that a start is quick."""
        self._stopping = True
        self._signal_growth()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._stop_leading()
        for submissions in self._pending.values():
            for submission in submissions:
                submission.answer(
                    common_pb2.SERVICE_UNAVAILABLE,
                    "this orderer is stopping; send the envelope to another one",
                )
        self._pending.clear()
        if self.failure is None:
            await self._checkpoint()
        self._store.close()

    def _others(self) -> dict[int, Consenter]:
        return {key: one for key, one in self.consenters().items() if key != self.raft_id}

    def _fail(self, what: str) -> None:
        """Stop taking part because of something that only an operator can mend."""
        self.failure = what
        _LOGGER.error("channel %s: this orderer stops taking part: %s", self.channel_id, what)
        self._stop_leading()
        self._leader = 0
        for submissions in self._pending.values():
            for submission in submissions:
                submission.answer(
                    common_pb2.SERVICE_UNAVAILABLE,
                    "this orderer cannot order at the moment; send the envelope to another one",
                )
        self._pending.clear()
        self._pending_count = self._pending_bytes = 0
        self._signal_growth()

    # Envelopes from clients

    def admit(self, envelope: OpenedEnvelope) -> Admitted:
        """Check an envelope of this channel, in any thread; raises Refused.

        A CONFIG_UPDATE becomes the CONFIG transaction to be ordered in its place.
        """
        admission = self.admission
        if admission.config.orderer.in_maintenance and (
            envelope.channel_header.type != common_pb2.CONFIG_UPDATE
        ):
            raise Refused(
                common_pb2.SERVICE_UNAVAILABLE,
                f"channel {self.channel_id} is in maintenance; only configuration updates are"
                " taken",
            )
        admitted = admission.check(envelope)
        if envelope.channel_header.type == common_pb2.CONFIG_UPDATE:
            return self._admit_config(admission, envelope)
        return admitted

    def _admit_config(self, admission: Admission, envelope: OpenedEnvelope) -> Admitted:
        config = admission.config
        try:
            proposed = config.propose_update(envelope.envelope)
            successor = config.validate(proposed)
        except ConfigError as error:
            raise Refused(common_pb2.BAD_REQUEST, f"configuration update: {error}") from None
        if successor.orderer.consenters != config.orderer.consenters:
            raise Refused(
                common_pb2.BAD_REQUEST,
                "configuration update: consenters cannot be changed yet; leave"
                " /Channel/Orderer/ConsensusType as it is",
            )
        if successor.orderer.consensus_type != config.orderer.consensus_type:
            raise Refused(
                common_pb2.BAD_REQUEST, "configuration update: only etcdraft can order here"
            )
        signed = signed_envelope(
            self._signer,
            channel_header(common_pb2.CONFIG, self.channel_id),
            proposed.SerializeToString(),
        )
        size = len(signed.payload) + len(signed.signature)
        if size > config.orderer.absolute_max_bytes:
            raise Refused(
                common_pb2.BAD_REQUEST,
                f"the new configuration has {size} bytes, more than the channel's limit"
                f" (AbsoluteMaxBytes) of {config.orderer.absolute_max_bytes}",
            )
        return Admitted(signed.SerializeToString(), size, admission.sequence, is_config=True)

    def submit(self, submission: Submission, admitted: Admitted) -> None:
        """Take an admitted envelope; the submission is answered when its fate is known."""
        problem = None
        if not self.available:
            problem = self.failure or (
                f"channel {self.channel_id} has no leader at the moment; try again, or another"
                " orderer"
            )
        elif (
            self._pending_count >= self._limits.pending_envelopes
            or self._pending_bytes >= self._limits.pending_bytes
        ):
            problem = (
                f"{self._pending_count} envelopes ({self._pending_bytes} bytes) wait to be ordered"
                f" here, and the limit is {self._limits.pending_envelopes} envelopes or"
                f" {self._limits.pending_bytes} bytes; send more slowly and try again in a second"
            )
        if problem is not None:
            self.counters.refused += 1
            submission.answer(common_pb2.SERVICE_UNAVAILABLE, problem)
            return
        submission.admitted = admitted
        submission.digest = hashlib.sha256(admitted.raw).digest()
        submission.deadline = time.monotonic() + self._limits.submit_timeout_s
        self._pending.setdefault(submission.digest, []).append(submission)
        self._pending_count += 1
        self._pending_bytes += len(admitted.raw)
        self._dispatch(submission)

    def _dispatch(self, submission: Submission) -> None:
        """Hand a pending envelope to the leader, if there is one that takes envelopes."""
        admitted = submission.admitted
        if admitted is None or not self._ready_leader:
            return
        if self._ready_leader == self.raft_id:
            self.order(admitted, self._refuse_pending)
        elif not self._transport.forward(self._ready_leader, admitted):
            self._refuse_pending(
                submission.digest,
                common_pb2.SERVICE_UNAVAILABLE,
                "the queue to the leader is full; send more slowly and try again in a second",
            )

    def redispatch(self, leader: int) -> None:
        """The way to a consenter is open (again): what was sent there before may be lost."""
        if leader == self._ready_leader and leader != self.raft_id:
            self._dispatch_all()

    def _dispatch_all(self) -> None:
        for submissions in list(self._pending.values()):
            for submission in submissions:
                self._dispatch(submission)

    def _refuse_pending(self, digest: bytes, status: int, info: str) -> None:
        """Answer one pending envelope other than by success."""
        submission = self._take_pending(digest)
        if submission is not None:
            self.counters.refused += 1
            submission.answer(status, info)

    refuse_pending = _refuse_pending

    def _take_pending(self, digest: bytes) -> Submission | None:
        submissions = self._pending.get(digest)
        if not submissions:
            return None
        submission = submissions.pop(0)
        if not submissions:
            del self._pending[digest]
        self._pending_count -= 1
        if submission.admitted is not None:
            self._pending_bytes -= len(submission.admitted.raw)
        return submission

    def _expire_pending(self) -> None:
        now = time.monotonic()
        expired = []
        for digest, submissions in self._pending.items():
            if submissions[0].deadline > now:
                break  # the rest came later
            expired.append(digest)
        for digest in expired:
            self._refuse_pending(
                digest,
                common_pb2.SERVICE_UNAVAILABLE,
                f"the envelope was not ordered within {self._limits.submit_timeout_s:g} s; it may"
                " be yet: look for its transaction before sending it again",
            )

    # The leader's side

    def order(self, admitted: Admitted, refuse: Callable[[bytes, int, str], None]) -> None:
        """Order an envelope that this or another orderer has admitted.

        `refuse` is called with its digest, a status and a sentence if it cannot be ordered; when
        it can, nobody is told but by the block itself.
        """
        leading = self._leading
        queued = _Queued(admitted, refuse)
        if leading is None:
            # Others may know before this orderer itself that its first entry is committed. If it
            # doesn't lead, whoever sent this hears of the new leader and sends it there.
            if self._leader == self.raft_id and len(self._early) < EARLY_ENVELOPES:
                self._early.append(queued)
            return
        if (
            leading.queued >= self._limits.pending_envelopes
            or leading.queued_bytes >= self._limits.pending_bytes
        ):
            self._refuse_queued(
                queued,
                common_pb2.SERVICE_UNAVAILABLE,
                f"{leading.queued} envelopes wait at the leader, and the limit is"
                f" {self._limits.pending_envelopes} envelopes or {self._limits.pending_bytes}"
                " bytes; send more slowly and try again in a second",
            )
            return
        if admitted.sequence < self.config.sequence:
            checked = self._check_again(queued)
            if checked is None:
                return
            queued = checked
        leading.queued += 1
        leading.queued_bytes += queued.size_bytes
        self._cut(leading, queued)
        self._propose()

    def _cut(self, leading: _Leading, queued: _Queued) -> None:
        if queued.admitted.is_config:
            if len(leading.cutter):
                leading.batches.append(leading.cutter.cut())
            leading.batches.append([queued])
        else:
            leading.batches.extend(leading.cutter.ordered(queued))
        if not len(leading.cutter):
            self._stop_timer(leading)
        elif leading.timer is None:
            self._start_timer(leading)

    def _start_timer(self, leading: _Leading) -> None:
        leading.timer = asyncio.get_running_loop().call_later(
            self.config.orderer.batch_timeout_s, self._batch_timeout, leading
        )

    @staticmethod
    def _stop_timer(leading: _Leading) -> None:
        if leading.timer is not None:
            leading.timer.cancel()
            leading.timer = None

    def _batch_timeout(self, leading: _Leading) -> None:
        leading.timer = None
        if leading is not self._leading or not len(leading.cutter):
            return
        if leading.batches:
            # Blocks wait already: a larger one later costs less than another small one.
            self._start_timer(leading)
            return
        leading.batches.append(leading.cutter.cut())
        self._propose()

    def _propose(self) -> None:
        """Propose the batches that may be in flight now."""
        leading = self._leading
        if leading is None:
            return
        while (
            leading.batches
            and not leading.config_in_flight
            and leading.in_flight < self.config.orderer.raft.max_inflight_blocks
        ):
            batch = leading.batches[0]
            data, block_hash = proposal(
                leading.number, leading.previous_hash, [one.admitted.raw for one in batch]
            )
            try:
                self._node.propose(data)
            except ProposalDropped:
                return  # a transfer is under way, or leadership is lost: the next Ready says
            leading.batches.popleft()
            leading.number += 1
            leading.previous_hash = block_hash
            leading.in_flight += 1
            leading.queued -= len(batch)
            leading.queued_bytes -= sum(one.size_bytes for one in batch)
            leading.config_in_flight = batch[0].admitted.is_config
            self._wake.set()

    def _check_again(self, queued: _Queued) -> _Queued | None:
        """Check an envelope under a newer configuration than it was admitted by."""
        try:
            if queued.admitted.is_config:
                raise Refused(
                    common_pb2.SERVICE_UNAVAILABLE,
                    "another configuration update came first; compute this one again",
                )
            return _Queued(self.admission.check(opened(queued.admitted.raw)), queued.refuse)
        except Refused as refused:
            self._refuse_queued(queued, refused.status, refused.info)
            return None

    def _refuse_queued(self, queued: _Queued, status: int, info: str) -> None:
        queued.refuse(hashlib.sha256(queued.admitted.raw).digest(), status, info)

    def _start_leading(self) -> None:
        self._leading = _Leading(
            number=self._writer.height,
            previous_hash=self._writer.tip_hash,
            cutter=BlockCutter(self._cut_limits()),
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
            self._stop_timer(leading)

    def _cut_limits(self) -> CutLimits:
        orderer = self.config.orderer
        return CutLimits(orderer.max_message_count, orderer.preferred_max_bytes)

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
            if self._pending:
                self._expire_pending()
            if not self._leader and self.leaderless_for_s() > self._limits.leaderless_grace_s:
                self._signal_growth()
            self._wake.set()

    def _is_first_candidate(self) -> bool:
        ids = sorted(self._writer.raft.consenter_ids)
        digest = hashlib.sha256(self.channel_id.encode()).digest()
        return self.raft_id == ids[int.from_bytes(digest[:8], "big") % len(ids)]

    # Raft: work out

    async def _drive(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._node.has_ready():
                    ready = self._node.ready()
                    await self._handle(ready)
                    self._node.advance()
                    self._follow_leader()
                    self._propose()
                await self._tidy()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            _LOGGER.exception("channel %s", self.channel_id)
            self._fail(f"{type(error).__name__}: {error}")

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
        leading = self._leading
        if leading is not None and leading.in_flight:
            leading.in_flight -= 1
        if written.config is not None:
            self._take_config(written.config)
        for digest in written.digests:
            if digest in self._pending:
                submission = self._take_pending(digest)
                if submission is not None:
                    submission.answer(common_pb2.SUCCESS)
        self._signal_growth()

    def _take_config(self, config: ChannelConfig) -> None:
        self.config = config
        self.admission = Admission(config)
        self._transport.configure(self._others())
        leading = self._leading
        if leading is None:
            return
        # Whatever waits was admitted under the configuration before this one.
        leading.config_in_flight = False
        waiting = [one for batch in leading.batches for one in batch] + leading.cutter.cut()
        self._stop_timer(leading)
        leading.batches.clear()
        leading.queued = leading.queued_bytes = 0
        leading.cutter = BlockCutter(self._cut_limits())
        for queued in waiting:
            checked = self._check_again(queued)
            if checked is not None:
                leading.queued += 1
                leading.queued_bytes += checked.size_bytes
                self._cut(leading, checked)

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
        early, self._early = self._early, []
        if ready == self.raft_id:
            self._start_leading()
            for queued in early:
                self.order(queued.admitted, queued.refuse)
        if ready:
            self._dispatch_all()

    def _signal_growth(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

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
