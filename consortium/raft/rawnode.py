"""The face of the core: messages and ticks in, `Ready` out.

The caller's loop is

    while node.has_ready():
        ready = node.ready()
        persist(ready.hard_state, ready.entries, ready.snapshot)   # durable if ready.must_sync
        send(ready.messages)                                       # only after that
        apply(ready.committed_entries)                             # or the snapshot
        node.advance()
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from consortium.raft import confchange
from consortium.raft.confchange import ConfChange
from consortium.raft.config import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, NONE, Config
from consortium.raft.core import Raft, ReadState, StateRole
from consortium.raft.log import InvariantBroken
from consortium.raft.messages import new_message, sender_of
from consortium.raft.storage import entry_size
from consortium.raft.tracker import Configuration, Progress
from consortium.raft.witness import acknowledged_log_term
from consortium.wire import raftpb_pb2 as raftpb

_LOCAL_MESSAGES = frozenset(
    {
        raftpb.MsgHup,
        raftpb.MsgBeat,
        raftpb.MsgUnreachable,
        raftpb.MsgSnapStatus,
        raftpb.MsgCheckQuorum,
        raftpb.MsgStorageAppend,
        raftpb.MsgStorageAppendResp,
        raftpb.MsgStorageApply,
        raftpb.MsgStorageApplyResp,
    }
)
_RESPONSES = frozenset(
    {
        raftpb.MsgAppResp,
        raftpb.MsgVoteResp,
        raftpb.MsgHeartbeatResp,
        raftpb.MsgUnreachable,
        raftpb.MsgReadIndexResp,
        raftpb.MsgPreVoteResp,
        raftpb.MsgStorageAppendResp,
        raftpb.MsgStorageApplyResp,
    }
)
_LOCAL_THREADS = frozenset({LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD})


class MessageRefused(ValueError):
    """The message may not come from the network, or from that sender."""


class LocalMessageRefused(MessageRefused):
    """The message is one that a node only ever sends itself."""


class UnknownSenderRefused(MessageRefused):
    """An answer came from a node that is no member (any more)."""


@dataclass(frozen=True, slots=True)
class SoftState:
    """What is worth knowing and not worth persisting."""

    leader: int
    role: StateRole


@dataclass(slots=True)
class Ready:
    """Work for the caller, to be done in this order before `advance`. Nothing may be changed.

    Attributes:
        soft_state: leader and role, when they changed.
        read_states: reads that may be answered once their index is applied.
        hard_state: to be persisted, when it changed.
        entries: to be appended to the persisted log, replacing what is there from their first
            index on.
        snapshot: to be persisted and installed, replacing the log; before `messages` are sent,
            as one of them acknowledges it.
        messages: to be sent after the above is persisted. A MsgSnap among them asks for a later
            `report_snapshot`.
        committed_entries: to be applied. Membership changes among them go to
            `apply_conf_change`.
        must_sync: whether hard_state and entries must be durable before `messages` are sent;
            without it only the commit index moved, which a crash may forget. A snapshot must
            always be.
    """

    soft_state: SoftState | None = None
    hard_state: raftpb.HardState | None = None
    entries: list[raftpb.Entry] = field(default_factory=list)
    snapshot: raftpb.Snapshot | None = None
    committed_entries: list[raftpb.Entry] = field(default_factory=list)
    messages: list[raftpb.Message] = field(default_factory=list)
    read_states: list[ReadState] = field(default_factory=list)
    must_sync: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """A node as it sees itself; `progress` is empty unless it leads."""

    id: int
    term: int
    vote: int
    committed: int
    applied: int
    last_index: int
    leader: int
    role: StateRole
    transferee: int
    configuration: Configuration
    progress: dict[int, Progress]


class RawNode:
    """One member of a Raft group. Not thread-safe; every method returns at once.

    Messages given to `step` belong to the node from then on: their entries become its log's.
    """

    def __init__(self, config: Config) -> None:
        """Start, or restart from what `config.storage` holds.

        Raises:
            ValueError: a setting cannot work.
            InvariantBroken: storage contradicts itself.
        """
        self._raft = Raft(config)
        self._async = config.async_storage_writes
        self._soft_state = self._current_soft_state()
        self._hard_state = self._current_hard_state()
        self._on_advance: list[Callable[[], None]] | None = None

    # Input

    @property
    def id(self) -> int:
        """This node's id."""
        return self._raft.id

    def tick(self) -> None:
        """Let one tick pass; its length is the caller's choice."""
        self._raft.tick()

    def campaign(self) -> None:
        """Stand for election now."""
        self._raft.hup()

    def propose(self, data: bytes) -> None:
        """Propose `data` for the log.

        Nothing is promised: the entry is committed when it comes back in `committed_entries`,
        and lost if another leader's entry comes in its place.

        Raises:
            ProposalDropped: there is no leader, or it doesn't take the proposal.
        """
        self._raft.propose([raftpb.Entry(Data=data)])

    def propose_conf_change(self, change: ConfChange | None) -> None:
        """Propose a membership change; None leaves a joint configuration.

        A change that may not be made now becomes an empty entry (as others may wait for its
        place in the log); `apply_conf_change` is then not called.

        Raises:
            ProposalDropped: there is no leader, or it doesn't take the proposal.
        """
        self._raft.propose([confchange.entry_for(change)])

    def apply_conf_change(self, change: ConfChange) -> raftpb.ConfState:
        """Make a membership change effective, when applying its entry.

        Returns:
            The new configuration, to be kept with the next snapshot.

        Raises:
            ConfChangeRefused: the change is not possible.
        """
        return self._raft.apply_conf_change(change)

    def step(self, message: raftpb.Message) -> None:
        """Take a message from the network.

        Raises:
            MessageRefused: it cannot come from there.
            ProposalDropped: it was a proposal, and it was not taken.
        """
        kind = message.type
        sender = sender_of(message)
        if sender not in _LOCAL_THREADS:
            if kind in _LOCAL_MESSAGES:
                raise LocalMessageRefused(
                    f"{raftpb.MessageType.Name(kind)} is a local message; node {sender:x} sent it"
                )
            if kind in _RESPONSES and sender not in self._raft.tracker.progress:
                raise UnknownSenderRefused(
                    f"{raftpb.MessageType.Name(kind)} came from node {sender:x}, which is no member"
                )
        self._raft.step(message)

    def transfer_leader(self, node: int) -> None:
        """Ask that `node` become leader; it may fail silently within an election timeout."""
        self._raft.step(new_message(raftpb.MsgTransferLeader, node))

    def forget_leader(self) -> None:
        """Make a follower forget its leader, so that it votes for others."""
        self._raft.step(new_message(raftpb.MsgForgetLeader, NONE))

    def read_index(self, context: bytes) -> None:
        """Ask for a linearizable read; the answer comes as a `ReadState` with that `context`.

        No answer comes when there is no leader or it loses its place: ask again after a while.
        """
        self._raft.step(
            new_message(raftpb.MsgReadIndex, NONE, entries=[raftpb.Entry(Data=context)])
        )

    def report_unreachable(self, node: int) -> None:
        """Tell that a message to `node` could not be sent."""
        self._raft.step(new_message(raftpb.MsgUnreachable, node))

    def report_snapshot(self, node: int, ok: bool) -> None:
        """Tell whether the snapshot sent to `node` has arrived there."""
        self._raft.step(new_message(raftpb.MsgSnapStatus, node, reject=not ok))

    # Output

    def has_ready(self) -> bool:
        """Say whether `ready` would return any work."""
        raft = self._raft
        unstable = raft.log.unstable
        return bool(
            raft.messages
            or raft.messages_after_append
            or unstable.in_progress < unstable.offset + len(unstable.entries)
            or raft.log.has_next_committed(not self._async)
            or raft.read_states
            or unstable.next_snapshot() is not None
            or self._current_hard_state() != self._hard_state
            or self._current_soft_state() != self._soft_state
        )

    def ready(self) -> Ready:
        """Return the work to do; `advance` must follow before the next call.

        With asynchronous storage writes there is no `advance`, and the work on storage is among
        the messages.
        """
        if self._on_advance is not None:
            raise InvariantBroken("ready() was called twice without advance() in between")
        raft = self._raft
        log = raft.log
        unstable = log.unstable
        soft_state = self._current_soft_state()
        hard_state = self._current_hard_state()
        ready = Ready(
            entries=unstable.next_entries(),
            snapshot=unstable.next_snapshot(),
            committed_entries=log.next_committed(not self._async),
            messages=raft.messages,
            read_states=raft.read_states,
        )
        ready.must_sync = bool(ready.entries) or hard_state[:2] != self._hard_state[:2]
        if soft_state != self._soft_state:
            self._soft_state = soft_state
            ready.soft_state = SoftState(*soft_state)
        if hard_state != self._hard_state:
            self._hard_state = hard_state
            term, vote, commit = hard_state
            ready.hard_state = raftpb.HardState(term=term, vote=vote, commit=commit)
        promises = raft.messages_after_append
        if self._async:
            self._add_storage_messages(ready, promises)
        else:
            self._on_advance = self._steps_on_advance(ready, promises)
            ready.messages += [message for message in promises if message.to != raft.id]
        raft.messages = []
        raft.messages_after_append = []
        raft.read_states = []
        unstable.accept()
        if ready.committed_entries:
            # Only asynchronous writes leave more than one batch unapplied; without them there is
            # no sum of sizes to keep.
            size = sum(map(entry_size, ready.committed_entries)) if self._async else 0
            log.accept_applying(ready.committed_entries[-1].Index, size, not self._async)
        return ready

    def advance(self) -> None:
        """Tell that the last `Ready` is persisted, sent and applied."""
        if self._async:
            raise InvariantBroken("advance() has no place with asynchronous storage writes")
        steps, self._on_advance = self._on_advance or [], None
        for step in steps:
            step()

    def acknowledged_log_term(self, message: raftpb.Message) -> int | None:
        """See `witness.acknowledged_log_term`."""
        return acknowledged_log_term(self._raft, message)

    def status(self) -> Status:
        """Return what this node knows; `progress` is shared and must not be changed."""
        raft = self._raft
        leads = raft.role is StateRole.LEADER
        return Status(
            id=raft.id,
            term=raft.term,
            vote=raft.vote,
            committed=raft.log.committed,
            applied=raft.log.applied,
            last_index=raft.log.last_index(),
            leader=raft.leader,
            role=raft.role,
            transferee=raft.transferee,
            configuration=raft.configuration,
            progress=dict(raft.tracker.progress) if leads else {},
        )

    def _current_soft_state(self) -> tuple[int, StateRole]:
        return self._raft.leader, self._raft.role

    def _current_hard_state(self) -> tuple[int, int, int]:
        raft = self._raft
        return raft.term, raft.vote, raft.log.committed

    def _steps_on_advance(
        self, ready: Ready, promises: list[raftpb.Message]
    ) -> list[Callable[[], None]]:
        """Return what to do once `ready` is done, in order."""
        raft = self._raft
        own = [message for message in promises if message.to == raft.id]
        has_unstable = bool(raft.log.unstable.entries)
        term = raft.term
        last_index, last_term = raft.log.last_id() if has_unstable else (0, 0)
        steps: list[Callable[[], None]] = [partial(raft.step, message) for message in own]

        def storage_done() -> None:
            if has_unstable:
                if raft.term == term:
                    raft.log.unstable.stable_to(last_index, last_term)
                else:
                    raft._note("stale_append_done", term=raft.term, message_term=term)
            if ready.snapshot is not None:
                raft.snapshot_applied(ready.snapshot.metadata.index)

        if has_unstable or ready.snapshot is not None:
            steps.append(storage_done)
        if ready.committed_entries:
            last = ready.committed_entries[-1].Index
            steps.append(lambda: raft.entries_applied(last, 0))
        return steps

    def _add_storage_messages(self, ready: Ready, promises: list[raftpb.Message]) -> None:
        raft = self._raft
        log = raft.log
        has_unstable = bool(log.unstable.entries)
        if ready.entries or ready.hard_state or ready.snapshot is not None or promises:
            write = new_message(
                raftpb.MsgStorageAppend,
                raft.id,
                to=LOCAL_APPEND_THREAD,
                entries=ready.entries,
                snapshot=ready.snapshot,
                responses=promises,
            )
            if ready.hard_state is not None:
                # All three or none, so that the receiver can tell a change from none.
                write.term = ready.hard_state.term
                write.vote = ready.hard_state.vote
                write.commit = ready.hard_state.commit
            if has_unstable or ready.snapshot is not None:
                done = new_message(
                    raftpb.MsgStorageAppendResp,
                    LOCAL_APPEND_THREAD,
                    to=raft.id,
                    # The answer counts only if the term is still the same when it comes: until
                    # then a later leader may have begun to overwrite these entries.
                    term=raft.term,
                    snapshot=ready.snapshot,
                )
                if has_unstable:
                    # The end of the log rather than of this batch: so entries whose own answer
                    # was of a past term become stable with the next write of this one.
                    done.index, done.logTerm = log.last_id()
                write.responses.append(done)
            ready.messages.append(write)
        if ready.committed_entries:
            applied = new_message(
                raftpb.MsgStorageApplyResp,
                LOCAL_APPLY_THREAD,
                to=raft.id,
                entries=ready.committed_entries,
            )
            ready.messages.append(
                new_message(
                    raftpb.MsgStorageApply,
                    raft.id,
                    to=LOCAL_APPLY_THREAD,
                    entries=ready.committed_entries,
                    responses=[applied],
                )
            )
