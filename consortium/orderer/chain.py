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

The Raft group follows the channel's configuration (`membership`): when a block has changed the
consenters, the leader proposes the change of the group, step by step. A consenter that was removed
goes on answering until a majority of those that stay have applied its removal, since until then
they may need its vote; then `Hooks.removed` is called.
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
from consortium.ledger.config_update import ConfigError
from consortium.raft import (
    Config,
    InvariantBroken,
    MessageRefused,
    ProgressState,
    ProposalDropped,
    RawNode,
    Ready,
)
from consortium.raft.witness import Witness
from consortium.wire import common_pb2, etcdraft_pb2, gridledger_pb2
from consortium.wire import raftpb_pb2 as raftpb
from consortium.wire.envelopes import OpenedEnvelope, WireError, open_envelope, parse

from .admission import Admission, Admitted, Refused, opened
from .blockstore import BlockStore
from .blockwriter import BlockWriter, Written, last_config_of, raft_metadata_of
from .leading import LeaderQueue, Queued, Refuse
from .membership import (
    MembershipChange,
    certificate_hash,
    is_forced,
    membership_change,
    next_change,
    quorum_loss,
    unfinished,
)
from .pending import Limits, PendingEnvelopes, Submission
from .raft_storage import Acquaintance, ChannelLog, MemberRecord

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

CAUGHT_UP_ENTRIES = 100
"""A learner that lacks no more of the leader's entries than this may vote."""

ABDICATIONS = 3
"""How often a leader tries to hand over before it orders its own removal or rotation itself."""

SENT_ON_S = 30.0
"""So long a transaction that was put off before leadership went over is sent to the new leader."""

SUSPICION_S = 5.0
"""After so long without leader a consenter asks the others whether it was removed."""

LINGER_POLL_S = 0.5
"""How often a removed consenter asks whether the others still need it."""


class Transport(Protocol):
    """Sends to the channel's other consenters; never waits."""

    def send(self, consenter_id: int, message: raftpb.Message, metadata: bytes = b"") -> bool:
        """Queue a Raft message, `metadata` (a ClusterMetadata) with it; False if it was dropped."""

    def forward(self, consenter_id: int, admitted: Admitted) -> bool:
        """Queue an envelope for the leader; False if there is no room for it."""

    def reachable(self, consenter_id: int) -> bool:
        """Whether there is a connection to a consenter."""

    def configure(self, consenters: dict[int, Consenter]) -> None:
        """From now on these are the other consenters."""

    def pull(self, first: int, last: int) -> Awaitable[None]:
        """Fetch blocks from another orderer into `Chain.take_pulled`, as many as it gets."""

    def recall(self, consenter_id: int) -> Awaitable[gridledger_pb2.RecallMemory | None]:
        """Ask a consenter what it remembers of this one; None without an answer."""

    def expect_all(self) -> None:
        """Send nothing until every other consenter was asked what it remembers."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who is told, on the event loop, what a chain cannot handle itself."""

    removed: Callable[[str], None]
    """This orderer is no consenter any more, and nobody needs it."""
    stale: Callable[[str, str], None]
    """The disk lacks what this consenter promised: channel, and why."""
    configured: Callable[[], None]
    """A channel has a new configuration."""


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
        record: MemberRecord,
        place: int,
        log: ChannelLog,
        store: BlockStore,
        signer: Signer,
        transport: Transport,
        writer_threads: Executor,
        limits: Limits,
        hooks: Hooks,
        beside_fabric: bool = False,
        tick_interval_s: float | None = None,
    ) -> None:
        """`record` says as whom this orderer takes part; `log` and `store` must have begun.

        `place` is where the files are now; if the record has another place, they are a copy, and
        all other consenters are asked before anything is said. `tick_interval_s` replaces the
        channel's own. `beside_fabric`: some of the consenters are Fabric's orderers, who know no
        learners.
        """
        self._log = log
        self._store = store
        self._signer = signer
        self._transport = transport
        self._threads = writer_threads
        self._limits = limits
        self._hooks = hooks
        self._beside_fabric = beside_fabric
        self._writer = BlockWriter(store, signer)
        self.config: ChannelConfig = self._writer.config
        self.record = record
        self._place = place
        self.raft_id = record.raft_id
        self.channel_id = self.config.channel_id
        self.admission = Admission(self.config)
        self.counters = Counters()
        self.failure: str | None = None
        options = self.config.orderer.raft
        self.tick_s = tick_interval_s or options.tick_interval_s
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
        self._candidate = self._is_first_candidate()
        self._ticks = 0
        # The consenters, and what the Raft group has of them.
        self._consenters = self.consenters()
        self._leaving: dict[int, Consenter] = {}
        self._members: frozenset[int] = frozenset()
        """Raft ids in the group as it was last durably applied."""
        self._settled = True
        self._change_proposed = 0.0
        self._heard: dict[int, float] = {}
        self._to_be_told: set[int] = set()
        """Consenters that are told with the next message to them who is active."""
        self._active_at_leader: frozenset[int] = frozenset()
        """Whom the leader hears of, as it told last."""
        self._deferred: list[Queued] = []
        self._sent_on_until = 0.0
        self._abdications = 0
        self._suspects = False
        self._asked_about_removal = 0.0
        self._lingering = False

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

    @property
    def removed(self) -> bool:
        """Whether this orderer was removed from the consenters and only answers the others."""
        return self._lingering

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
            and not self._lingering
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
            "voters": sorted(node.configuration.all_voters),
            "learners": sorted(node.configuration.learners),
            "removed": self._lingering,
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
        """Begin taking part. Time comes from outside: `tick` is to be called every `tick_s`."""
        self._find_leaving()
        self._group_changed()
        if self.record.place != self._place:
            _LOGGER.warning(
                "channel %s: the files of this orderer are a copy; it takes part once every other"
                " consenter has confirmed that nothing is missing",
                self.channel_id,
            )
            self._transport.expect_all()
        self._tasks.append(
            asyncio.create_task(self._guarded(self._drive), name=f"{self.channel_id}-drive")
        )
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
        heir = self._heir()
        if not heir:
            return
        self._handing_over = True
        self._node.transfer_leader(heir)
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.hand_over_s):
                while self._pending or self._leader in (0, self.raft_id):
                    await self._changed.wait()

    def _heir(self) -> int:
        """The consenter that could lead best in this one's place; 0 if there is none."""
        wanted = self._writer.raft.consenter_ids
        status = self._node.status()
        heirs = [
            (key in wanted, progress.match, key)
            for key, progress in status.progress.items()
            if key != self.raft_id
            and key in status.configuration.voters
            and progress.recently_active
            and self._transport.reachable(key)
        ]
        return max(heirs)[2] if heirs else 0

    def _others(self) -> dict[int, Consenter]:
        """Those configured, and those who were but are still in the group."""
        known = self._leaving | self._consenters
        return {key: one for key, one in known.items() if key != self.raft_id}

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
            problem = self._pending.no_room(admitted.utility, len(self.config.application_orgs))
        else:
            problem = (
                f"channel {self.channel_id} has no leader at the moment; try again, or another"
                " orderer"
            )
        if problem is not None:
            self.counters.refused += 1
            submission.answer(common_pb2.SERVICE_UNAVAILABLE, problem)
            return
        loss = self._loss_under_fabrics_leader(admitted)
        if loss is not None:
            self.counters.refused += 1
            submission.answer(common_pb2.BAD_REQUEST, f"configuration update: {loss}")
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
        self._send_on()

    def _send_on(self) -> None:
        """Give the new leader what was put off until it leads, if nobody else sends it there.

        Again and again, since nobody says that it arrived: the second of two is out of date.
        """
        if time.monotonic() > self._sent_on_until:
            self._deferred.clear()
        if self._ready_leader not in (0, self.raft_id):
            for queued in self._deferred:
                _LOGGER.info(
                    "channel %s: a configuration update that was put off goes on to orderer %d",
                    self.channel_id,
                    self._ready_leader,
                )
                self._transport.forward(self._ready_leader, queued.admitted)

    def refuse_pending(self, digest: bytes, status: int, info: str) -> None:
        """Answer one pending envelope other than by success."""
        if self._pending.settle(digest, status, info):
            self.counters.refused += 1

    # The leader's side

    def order(self, admitted: Admitted, refuse: Refuse, *, sent_again: bool = True) -> None:
        """Order an envelope that this or another orderer has admitted.

        `refuse` is called with its digest, a status and a sentence if it cannot be ordered; when
        it can, nobody is told but by the block itself. `sent_again`: its sender sends it to the
        next leader too, should there be another one first.
        """
        leading = self._leading
        queued = Queued(admitted, refuse, sent_again)
        if leading is None:
            # Others may know before this orderer itself that its first entry is committed. If it
            # doesn't lead, whoever sent this hears of the new leader and sends it there.
            if self._leader == self.raft_id and len(self._early) < EARLY_ENVELOPES:
                self._early.append(queued)
            return
        problem = leading.no_room(admitted.utility)
        if problem is not None:
            queued.refuse(common_pb2.SERVICE_UNAVAILABLE, problem)
        elif self._still_admitted(queued) and (
            not admitted.is_config or self._consenters_may_change(queued)
        ):
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
            self.config, self._writer.height, self._writer.tip_hash, self._limits, self._propose
        )
        _LOGGER.info(
            "channel %s: orderer %d leads in term %d from block %d on",
            self.channel_id,
            self.raft_id,
            self._applied_term,
            self._writer.height,
        )

        self._change_proposed = 0.0
        self._abdications = 0
        self._leading.held = self._beside_fabric and not self._settled

    def _stop_leading(self) -> None:
        # Whoever waits for the others sends them to the next leader.
        self._deferred = [one for one in self._deferred if not one.sent_again]
        leading, self._leading = self._leading, None
        if leading is not None:
            leading.close()

    # Raft: messages and time in

    def step(self, sender: int, message: raftpb.Message, metadata: bytes = b"") -> None:
        """Take a Raft message that consenter `sender` sent, and what came with it.

        Raises WireError for metadata that cannot be read.
        """
        if (
            self.failure is not None
            or self._stopping
            or message.type not in _FROM_CONSENTERS
            or message.to != self.raft_id
            or getattr(message, "from") != sender
        ):
            self.counters.dropped_messages += 1
            return
        self._heard[sender] = time.monotonic()
        log_term = self._node.acknowledged_log_term(message)
        if log_term is None:
            self.counters.dropped_messages += 1
            return
        if self._acquaintance(sender).witness.hear(message, log_term):
            self._log.remember(sender)
        try:
            self._node.step(message)
        except MessageRefused, ProposalDropped:
            self.counters.dropped_messages += 1
        except InvariantBroken as error:
            # A leader counts on entries that are not here: it was quicker than the question.
            self._lost(str(error))
        except Exception as error:
            # The core has found that what it was promised does not hold; it must not go on.
            _LOGGER.exception("channel %s", self.channel_id)
            self._fail(f"{type(error).__name__}: {error}")
        if metadata and sender == self._leader:
            told = parse(etcdraft_pb2.ClusterMetadata, metadata, "what a leader says of the others")
            self._active_at_leader = frozenset(told.active_nodes) & self._consenters.keys()
        self._wake.set()

    def tick(self, *, late: bool = False) -> None:
        """Let one tick pass, for the core and for what waits here."""
        if late:
            self.counters.late_ticks += 1
        if self.failure is not None or self._stopping:
            return
        self._node.tick()
        self._ticks += 1
        options = self.config.orderer.raft
        if self._candidate and self._ticks % (2 * options.heartbeat_tick) == 0:
            # As in Fabric, one consenter does not wait for a timeout when all start anew.
            self._candidate = not self._leader and self._ticks <= 4 * options.election_tick
            if self._candidate:
                self._node.campaign()
        self.counters.refused += self._pending.expire()
        if self._deferred and not self.is_leader and self._ticks % options.election_tick == 0:
            self._send_on()
        if not self._leader:
            if self.leaderless_for_s() > self._limits.leaderless_grace_s:
                self._signal_change()
            if self.leaderless_for_s() > SUSPICION_S:
                self._suspects = True
        elif self._leading is not None:
            if self._ticks % max(1, options.election_tick // 2) == 0:
                self._to_be_told = set(self._consenters) - {self.raft_id}
            self._retry_deferred()
            self._reconcile()
        if self._node.has_ready() or self._suspects:
            self._wake.set()

    def _is_first_candidate(self) -> bool:
        ids = sorted(self._writer.raft.consenter_ids) or [0]
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
                self._reconcile()
                self._propose()
            await self._tidy()
            if self._suspects:
                await self._look_for_removal()

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
            if ready.snapshot is not None:
                self._group_changed()
        for message in later:
            self._send(message)
        if ready.committed_entries:
            await self._apply(ready.committed_entries)

    def _send(self, message: raftpb.Message) -> None:
        metadata = b""
        if message.to in self._to_be_told and self._leading is not None:
            # A Fabric orderer judges by it whether a change of the consenters would lose the
            # quorum, and takes none while it knows of nobody.
            self._to_be_told.discard(message.to)
            active = etcdraft_pb2.ClusterMetadata(active_nodes=sorted(self._active()))
            metadata = active.SerializeToString()
        sent = self._transport.send(message.to, message, metadata)
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
                await self._apply_conf_change(entry)
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
        before, self._consenters = self._consenters, self.consenters()
        gone = before.keys() - self._consenters.keys()
        self._leaving |= {raft_id: before[raft_id] for raft_id in gone}
        self._group_changed()
        self._hooks.configured()
        leading = self._leading
        if leading is None:
            self._deferred.clear()  # made for the configuration before
            return
        leading.held = self._beside_fabric and not self._settled
        for queued in leading.take_waiting(config):
            if self._still_admitted(queued) and (
                not queued.admitted.is_config or self._consenters_may_change(queued)
            ):
                leading.add(queued)

    async def _apply_conf_change(self, entry: raftpb.Entry) -> None:
        if entry.Index <= self._log.conf_index:
            return  # part of the stored configuration already
        change: raftpb.ConfChange | raftpb.ConfChangeV2
        if entry.Type == raftpb.EntryConfChange:
            change = raftpb.ConfChange.FromString(entry.Data)
        else:
            change = raftpb.ConfChangeV2.FromString(entry.Data)
        self._log.set_conf_state(self._node.apply_conf_change(change), entry.Index)
        # Others may stop because of what we say that we have applied: it must be on disk.
        await self._log.flush()
        self._change_proposed = 0.0
        status = self._node.status()
        if self._log.first_index() > 1 and status.configuration.voters:
            # A snapshot from before would not have the newcomer among the members.
            self._bytes_since_snapshot = max(self._bytes_since_snapshot, self._snapshot_bytes)
        _LOGGER.info("channel %s: the Raft group is %s now", self.channel_id, status.configuration)
        self._group_changed()

    # Membership

    def _group_changed(self) -> None:
        """The configuration, or the Raft group as applied here, is another one than before."""
        configuration = self._node.status().configuration
        self._members = frozenset(configuration.all_voters | configuration.learners)
        wanted = self._writer.raft.consenter_ids
        self._settled = not unfinished(wanted, configuration)
        self._leaving = {
            raft_id: one
            for raft_id, one in self._leaving.items()
            if raft_id in self._members and raft_id not in wanted
        }
        if self._settled and self._leading is not None:
            self._leading.held = False
        gone = self._log.acquaintances.keys() - self._members - set(wanted)
        if gone and self._members:
            self._log.forget(gone)
        self._transport.configure(self._others())
        if self.raft_id not in wanted and self.raft_id not in self._members:
            self._begin_lingering()

    def _find_leaving(self) -> None:
        """After a start between a configuration and its effect: who is still in the group?"""
        configuration = self._node.status().configuration
        missing = (configuration.all_voters | configuration.learners) - self._consenters.keys()
        number = self._writer.last_config
        while missing - self._leaving.keys() and number > 0:
            # The block before a configuration block names the configuration before it.
            before = parse(common_pb2.Block, self._store.read(number - 1), "an earlier block")
            number = last_config_of(before)
            config = ChannelConfig.from_block(
                parse(common_pb2.Block, self._store.read(number), "an earlier configuration")
            )
            consenters = config.orderer.consenters
            found = raft_metadata_of(before)
            ids = found.consenter_ids if found else range(1, len(consenters) + 1)
            for raft_id, one in zip(ids, consenters, strict=True):
                if raft_id in missing:
                    self._leaving.setdefault(raft_id, one)

    def _consenters_may_change(self, queued: Queued) -> bool:
        """Whether a configuration transaction may be ordered now; refuses or defers it if not."""
        try:
            change, update = self._change_in(queued.admitted)
        except (WireError, ConfigError) as error:
            queued.refuse(common_pb2.BAD_REQUEST, f"configuration update: {error}")
            return False
        if not change.subject:
            return True
        waiting = unfinished(self._writer.raft.consenter_ids, self._node.status().configuration)
        if waiting - {change.subject}:
            queued.refuse(
                common_pb2.SERVICE_UNAVAILABLE,
                f"consenter {min(waiting)} is still being added or removed, and two changes at once"
                " could lose blocks; wait until it is done, or remove it, then try again",
            )
            return False
        loss = quorum_loss(change, self._active(), beside_fabric=self._beside_fabric)
        if loss is not None:
            if not is_forced(update):
                queued.refuse(common_pb2.BAD_REQUEST, f"configuration update: {loss}")
                return False
            _LOGGER.warning("channel %s: ordered although %s", self.channel_id, loss)
        return change.subject != self.raft_id or not self._abdicates(queued)

    def _change_in(self, admitted: Admitted) -> tuple[MembershipChange, common_pb2.Envelope]:
        """What a configuration transaction does to the consenters, and the update that it is for.

        Raises WireError, ConfigError.
        """
        data = open_envelope(admitted.raw).payload.data
        proposed = parse(common_pb2.ConfigEnvelope, data, "the configuration")
        after = ChannelConfig.from_config(self.channel_id, proposed.config)
        change = membership_change(
            self._writer.raft, self.config.orderer.consenters, after.orderer.consenters
        )
        return change, proposed.last_update

    def _loss_under_fabrics_leader(self, admitted: Admitted) -> str | None:
        """Why a change would lose the quorum, where the leader may be one that does not look.

        A leader of ours does; one of Fabric's leaves it to whoever took the update.
        """
        active = self._active_at_leader
        if not (admitted.is_config and self._beside_fabric and active) or self.is_leader:
            return None
        try:
            change, update = self._change_in(admitted)
        except (WireError, ConfigError) as error:
            return str(error)
        loss = quorum_loss(change, active, beside_fabric=True)
        return None if loss is None or is_forced(update) else loss

    def _abdicates(self, queued: Queued | None) -> bool:
        """Hand leadership over before this orderer's own removal or rotation, if anyone can lead.

        What is `queued` comes again to whoever leads then, or here if nobody takes over.
        """
        heir = self._heir()
        if not heir or self._abdications >= ABDICATIONS:
            return False
        if queued is not None:
            self._deferred.append(queued)
            self._sent_on_until = time.monotonic() + SENT_ON_S
        if not self._node.status().transferee:
            self._abdications += 1
            _LOGGER.info(
                "channel %s: orderer %d hands leadership to %d before its own place changes",
                self.channel_id,
                self.raft_id,
                heir,
            )
            self._node.transfer_leader(heir)
            self._wake.set()
        return True

    def _retry_deferred(self) -> None:
        status = self._node.status()
        # It may have been deposed already, and not have noticed yet.
        if self._deferred and not status.transferee and status.leader == self.raft_id:
            deferred, self._deferred = self._deferred, []
            for queued in deferred:
                self.order(queued.admitted, queued.refuse_by_digest, sent_again=queued.sent_again)

    def _active(self) -> set[int]:
        """Raft ids that were heard of within two election timeouts, this orderer's included."""
        options = self.config.orderer.raft
        since = time.monotonic() - max(1.0, 2 * options.election_tick * self.tick_s)
        return {self.raft_id} | {key for key, when in self._heard.items() if when >= since}

    def _reconcile(self) -> None:
        """As leader, bring the Raft group a step nearer to the channel's consenters."""
        if self._settled or self._leading is None:
            return
        now = time.monotonic()
        options = self.config.orderer.raft
        if now - self._change_proposed < 2 * options.election_tick * self.tick_s:
            return  # one change at a time; after that long it was lost on its way
        status = self._node.status()
        if status.transferee:
            return
        active = self._active()
        caught_up = {
            key: progress.state is ProgressState.REPLICATE
            and progress.match + CAUGHT_UP_ENTRIES >= status.last_index
            and key in active
            for key, progress in status.progress.items()
        }
        change = next_change(
            self._writer.raft.consenter_ids,
            status.configuration,
            caught_up,
            beside_fabric=self._beside_fabric,
        )
        if change is None:
            return
        own_end = change.type == raftpb.ConfChangeRemoveNode and change.node_id == self.raft_id
        if own_end and self._abdicates(None):
            return
        try:
            self._node.propose_conf_change(change)
        except ProposalDropped:
            return
        self._change_proposed = now
        self._wake.set()

    def _begin_lingering(self) -> None:
        if self._lingering or self._stopping:
            return
        self._lingering = True
        _LOGGER.warning(
            "channel %s: this orderer (Raft id %d) was removed from the consenters; it orders no"
            " more, and stops once the others can do without it",
            self.channel_id,
            self.raft_id,
        )
        self._stop_leading()
        self._pending.settle_all(
            common_pb2.SERVICE_UNAVAILABLE,
            "this orderer was removed from the channel; send the envelope to another one",
        )
        self._signal_change()
        self._tasks.append(
            asyncio.create_task(self._guarded(self._linger), name=f"{self.channel_id}-linger")
        )

    async def _linger(self) -> None:
        """Answer on until a majority of those that stay have applied the removal."""
        while True:
            stay = [key for key in self._writer.raft.consenter_ids if key != self.raft_id]
            memories = await asyncio.gather(*(self._transport.recall(key) for key in stay))
            done = sum(memory is not None and not memory.member for memory in memories)
            if done > len(stay) // 2:
                self._hooks.removed(self.channel_id)
                return
            await asyncio.sleep(LINGER_POLL_S)

    async def _look_for_removal(self) -> None:
        """Without a leader for long: fetch what the others have, if they say we were removed."""
        self._suspects = False
        now = time.monotonic()
        if self._lingering or now - self._asked_about_removal < SUSPICION_S:
            return
        self._asked_about_removal = now
        memories = await asyncio.gather(
            *(self._transport.recall(key) for key in self._others() if key in self._members)
        )
        if any(memory is not None and not memory.member for memory in memories):
            _LOGGER.warning(
                "channel %s: another consenter says that this one was removed; looking for the"
                " block that did it",
                self.channel_id,
            )
            await self._transport.pull(self._store.height, 2**63)
            if self.raft_id not in self._writer.raft.consenter_ids:
                # The Raft group's own change will never come: nobody sends us anything.
                self._members -= {self.raft_id}
                self._begin_lingering()

    # What the others remember of this consenter, and this one of them

    def _acquaintance(self, raft_id: int) -> Acquaintance:
        known = self._log.acquaintances.get(raft_id)
        if known is None:
            known = self._log.acquaintances[raft_id] = Acquaintance()
        return known

    def claim(self) -> gridledger_pb2.RecallClaim:
        """Who this consenter says that it is."""
        record = self.record
        return gridledger_pb2.RecallClaim(
            channel=self.channel_id,
            raft_id=self.raft_id,
            incarnation=record.incarnation,
            start=record.start,
            process=record.process,
        )

    async def remembered(
        self, sender: int, claim: gridledger_pb2.RecallClaim
    ) -> gridledger_pb2.RecallMemory:
        """What this consenter remembers of another one (0: of nobody); notes what that claims."""
        if sender == 0 or claim.raft_id != sender:
            return gridledger_pb2.RecallMemory(channel=self.channel_id, raft_id=self.raft_id)
        known = self._acquaintance(sender)
        witness = known.witness
        memory = gridledger_pb2.RecallMemory(
            channel=self.channel_id,
            raft_id=self.raft_id,
            member=sender in self._members,
            incarnation=known.incarnation,
            start=known.start,
            process=known.process,
            term=witness.term,
            acknowledged_term=witness.acknowledged_term,
            acknowledged_index=witness.acknowledged_index,
            acknowledged_log_term=witness.acknowledged_log_term,
            vote_term=witness.vote_term,
            sent_term=witness.sent_term,
            sent_index=witness.sent_index,
        )
        newer = known.incarnation == claim.incarnation and claim.start > known.start
        if newer or not known.incarnation:
            known.incarnation, known.start = claim.incarnation, claim.start
            known.process = claim.process
            self._log.remember(sender)
            await self._log.save_acquaintances()
        return memory

    def recalled(self, consenter_id: int, memory: gridledger_pb2.RecallMemory) -> bool:
        """Take what a consenter remembers of this one; True if the disk knows all of it."""
        if self.failure is not None or memory.raft_id != consenter_id:
            return False
        record = self.record
        state, _ = self._log.initial_state()
        if memory.incarnation and memory.incarnation != record.incarnation:
            problem: str | None = (
                f"orderer {consenter_id} knew it with another log, so the one it had was lost"
            )
        elif memory.incarnation and (
            memory.start > record.start
            or (memory.start == record.start and memory.process != record.process)
        ):
            problem = (
                f"orderer {consenter_id} saw its start {memory.start}, and by the disk this is"
                f" start {record.start}"
            )
        else:
            witness = Witness(
                memory.term,
                memory.acknowledged_term,
                memory.acknowledged_index,
                memory.acknowledged_log_term,
                memory.vote_term,
                memory.sent_term,
                memory.sent_index,
            )
            problem = witness.contradiction(
                consenter_id,
                state,
                self._log.last_index(),
                self._log.term_or_zero,
                copy=record.place != self._place,
            )
        if problem is None:
            return True
        self._lost(problem)
        return False

    def _lost(self, problem: str) -> None:
        """The disk lacks what this consenter promised: it must not take part under this id."""
        said = (
            f"this data is older than what consenter {self.raft_id} has acknowledged: {problem}."
            " Under this Raft id it must not vote again: remove this consenter from the channel and"
            " add it again (gridledger orderer remove, then add)"
        )
        self._fail(said)
        self._hooks.stale(self.channel_id, said)

    async def trusted(self) -> None:
        """Every other consenter was asked, and the disk knows all that they remember."""
        self.record.place = self._place
        await self._log.save_record(self.record)

    def transfer_leadership(self, to: int) -> int:
        """Hand leadership to a consenter (0: the best one); returns to whom.

        Raises ValueError, with a sentence, when this orderer cannot.
        """
        if self._leading is None:
            raise ValueError(
                f"this orderer does not lead channel {self.channel_id}; the leader is"
                f" {self._leader or 'not known'}"
            )
        status = self._node.status()
        heir = to or self._heir()
        if not heir:
            raise ValueError("no other consenter is alive that could lead")
        if heir == self.raft_id:
            raise ValueError(f"consenter {heir} leads already")
        if heir not in status.configuration.voters:
            raise ValueError(f"{heir} is no voting consenter of channel {self.channel_id}")
        if heir not in self._active():
            raise ValueError(f"consenter {heir} was not heard of lately; is it running?")
        self._node.transfer_leader(heir)
        self._wake.set()
        return heir

    def members(self) -> list[gridledger_pb2.OrdererMember]:
        """The consenters, configured and in the group, as this orderer sees them."""
        status = self._node.status()
        configuration = status.configuration
        active = self._active()
        found = []
        known = self._leaving | self._consenters
        for raft_id in sorted(known.keys() | self._members):
            one = known.get(raft_id)
            progress = status.progress.get(raft_id)
            if raft_id not in self._consenters:
                part = "leaving"
            elif raft_id in configuration.all_voters:
                part = "voter"
            else:
                part = "learner" if raft_id in configuration.learners else "missing"
            own = raft_id == self.raft_id
            found.append(
                gridledger_pb2.OrdererMember(
                    raft_id=raft_id,
                    address=f"{one.host}:{one.port}" if one else "",
                    part=part,
                    active=raft_id in active,
                    matched=status.last_index if own else progress.match if progress else 0,
                    last=status.last_index,
                    certificate_hash=(
                        certificate_hash(one.server_tls_certificate_pem) if one else b""
                    ),
                )
            )
        return found

    def _follow_leader(self) -> None:
        """Notice who leads and whether they take envelopes already."""
        status = self._node.status()
        if status.leader != self._leader or status.term != self._leader_term:
            if status.leader and not self._leader:
                self.counters.elections += 1
            if self._leader and not status.leader:
                self._leaderless_since = time.monotonic()
            self._active_at_leader = frozenset()
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
                self.order(queued.admitted, queued.refuse_by_digest, sent_again=queued.sent_again)
        if ready:
            self._dispatch_all()

    def _signal_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # Disk

    async def _tidy(self) -> None:
        """Checkpoint and compact when enough has gathered."""
        if self._bytes_since_snapshot >= self._snapshot_bytes:
            await self._checkpoint()
            await self._compact()
        elif (
            self._store.unflushed_bytes >= self._limits.checkpoint_bytes
            or self._store.height - self._store.durable_height >= self._limits.checkpoint_blocks
        ):
            await self._checkpoint()

    @property
    def _snapshot_bytes(self) -> int:
        return self.config.orderer.raft.snapshot_interval_bytes or 16 * 1024 * 1024

    async def _checkpoint(self) -> None:
        # The commit index first: blocks on disk that the log doesn't know to be committed would
        # look as if they had been fetched.
        await self._log.flush()
        flushed = await asyncio.get_running_loop().run_in_executor(self._threads, self._store.flush)
        await self._store.commit(flushed)

    async def _compact(self) -> None:
        """Take a snapshot at the newest block and drop what lies before the last snapshot."""
        # As far as everything is applied, changes of the group after that block included: the
        # snapshot's configuration is the one in force there.
        index = self._applied
        previous = self._log.snapshot().metadata.index
        if previous < index <= self._log.last_index() and self._writer.raft.raft_index <= index:
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
