"""The state machine of one Raft node.

The rules are those of the Raft paper's figures 2 and 13 and of the Raft thesis' chapters 3, 4, 6
and 9; the division of work (messages in, `Ready` out) and the names of the messages are
etcd-io/raft's. Nothing here does I/O, waits, reads a clock or draws randomness of its own.

Use it through `RawNode`, which turns its state into the work for the caller.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from google.protobuf.message import DecodeError

from consortium.raft import confchange
from consortium.raft.confchange import Changer, ConfChange
from consortium.raft.config import NONE, Config
from consortium.raft.log import InvariantBroken, RaftLog
from consortium.raft.messages import new_message, sender_of
from consortium.raft.quorum import VoteResult
from consortium.raft.storage import (
    NO_LIMIT,
    Compacted,
    SnapshotTemporarilyUnavailable,
    Unavailable,
    entry_size,
)
from consortium.raft.tracker import Configuration, Progress, ProgressState, Tracker
from consortium.wire import raftpb_pb2 as raftpb

TRANSFER_CONTEXT = b"CampaignTransfer"
"""The context of vote requests that a transfer of leadership causes, as etcd's nodes send it:
such a campaign may interrupt a living leader."""


class ProposalDropped(Exception):
    """The proposal was not taken and will not be; propose again later, or elsewhere."""


class StateRole(Enum):
    """The part a node plays."""

    FOLLOWER = "StateFollower"
    CANDIDATE = "StateCandidate"
    LEADER = "StateLeader"
    PRE_CANDIDATE = "StatePreCandidate"


@dataclass(frozen=True, slots=True)
class ReadState:
    """The answer to `read_index`: what is applied up to `index` may answer the read `context`."""

    index: int
    context: bytes


class ReadOnly:
    """Reads waiting for a quorum to confirm that the leader still leads (thesis 6.4).

    Reads are numbered as they come; a heartbeat carries the number of the latest one, so a
    quorum's answers to one heartbeat confirm all reads up to it.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[raftpb.Message, int]] = deque()
        self.confirmed = 0
        self.acknowledged: dict[int, int] = {}

    def add(self, request: raftpb.Message, commit: int) -> None:
        self.waiting.append((request, commit))

    def acknowledge(self, node: int, context: bytes) -> None:
        if len(context) == 8:
            number = int.from_bytes(context, "little")
            self.acknowledged[node] = max(self.acknowledged.get(node, 0), number)

    def context(self) -> bytes:
        """Return what a heartbeat has to carry: empty while no read waits."""
        if not self.waiting:
            return b""
        return (self.confirmed + len(self.waiting)).to_bytes(8, "little")

    def confirm(self, number: int) -> list[tuple[raftpb.Message, int]]:
        """Take out the reads up to `number`."""
        done = []
        while self.waiting and self.confirmed < number:
            done.append(self.waiting.popleft())
            self.confirmed += 1
        return done


def _copies(entries: Iterable[raftpb.Entry]) -> list[raftpb.Entry]:
    """Copy forwarded entries before they get term and index: the message is the caller's."""
    return [raftpb.Entry(Type=entry.Type, Data=entry.Data) for entry in entries]


class Raft:
    """One node's state, changed by `step` and `tick` alone."""

    def __init__(self, config: Config) -> None:
        config.check()
        self.id = config.id
        self.term = 0
        self.vote = NONE
        self.leader = NONE
        self.role = StateRole.FOLLOWER
        self.is_learner = False
        self.read_states: list[ReadState] = []
        self.messages: list[raftpb.Message] = []
        """Messages that may leave at once (with asynchronous writes) or with the next Ready."""
        self.messages_after_append: list[raftpb.Message] = []
        """Messages that promise something: they leave when all that is unstable now is durable."""
        self.transferee = NONE
        self.pending_change_index = 0
        """No later than this stands the latest membership change in the log."""
        self.uncommitted_size = 0
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.randomized_election_timeout = 0

        self._config = config
        self._trace = config.trace
        self._uncommitted: deque[tuple[int, int]] = deque()
        self._max_uncommitted_size = config.max_uncommitted_size or NO_LIMIT
        self._read_only = ReadOnly()
        self._early_reads: list[raftpb.Message] = []
        """Reads that came before this leader has committed an entry of its term."""
        self.tracker = Tracker(config.max_inflight_messages, config.max_inflight_bytes)
        self.log = RaftLog(
            config.storage,
            config.max_committed_size_per_ready or max(config.max_size_per_message, 1),
            self._note,
        )
        self._handlers = {
            StateRole.FOLLOWER: self._as_follower(),
            StateRole.CANDIDATE: self._as_candidate(),
            StateRole.PRE_CANDIDATE: self._as_candidate(),
            StateRole.LEADER: self._as_leader(),
        }

        hard_state, conf_state = config.storage.initial_state()
        last_index, last_term = self.log.last_id()
        self._switch_to(*confchange.restore(conf_state, last_index, self.tracker.new_inflights))
        if hard_state.commit > last_index:
            raise InvariantBroken(
                f"storage says that {hard_state.commit} is committed, but its log ends at"
                f" {last_index}: entries were lost. Remove this node from the cluster and add it"
                " under a new id"
            )
        # The persisted commit index may lag behind what was compacted or applied: it alone is
        # never worth a sync, and both imply it.
        self.log.commit_to(hard_state.commit)
        self.term = hard_state.term
        self.vote = hard_state.vote
        if config.applied:
            self.log.commit_to(config.applied)
            self.log.applied_to(config.applied, 0)
        self._become_follower(self.term, NONE)
        self._note(
            "started",
            voters=sorted(self.tracker.configuration.all_voters),
            term=self.term,
            commit=self.log.committed,
            applied=self.log.applied,
            last_index=last_index,
            last_term=last_term,
        )

    def _note(self, event: str, **fields: object) -> None:
        if self._trace is not None:
            self._trace(event, {"id": self.id, **fields})

    @property
    def configuration(self) -> Configuration:
        return self.tracker.configuration

    @property
    def promotable(self) -> bool:
        """Say whether this node may be elected."""
        own = self.tracker.progress.get(self.id)
        return own is not None and not own.is_learner and self.log.unstable.snapshot is None

    # Time

    def tick(self) -> None:
        """Let one tick pass."""
        self.election_elapsed += 1
        if self.role is StateRole.LEADER:
            self._tick_leader()
        elif self.election_elapsed >= self.randomized_election_timeout and self.promotable:
            self.election_elapsed = 0
            self.hup()

    def _tick_leader(self) -> None:
        self.heartbeat_elapsed += 1
        if self.election_elapsed >= self._config.election_tick:
            self.election_elapsed = 0
            if self._config.check_quorum:
                self._check_quorum()
            # A transfer that takes longer has failed: proposals are taken again.
            self.transferee = NONE
        if self.role is not StateRole.LEADER:
            return
        if self.heartbeat_elapsed >= self._config.heartbeat_tick:
            self.heartbeat_elapsed = 0
            self._broadcast_heartbeat()

    def _check_quorum(self) -> None:
        if not self.tracker.quorum_active():
            self._note("quorum_lost")
            self._become_follower(self.term, NONE)
        for node, progress in self.tracker.progress.items():
            if node != self.id:
                progress.recently_active = False

    # Sending

    def _send(
        self, kind: raftpb.MessageType, to: int, term: int | None = None, **fields: object
    ) -> None:
        """Queue a message of our term (or of `term`) to `to`."""
        message = new_message(
            kind, self.id, to=to, term=self.term if term is None else term, **fields
        )
        # Votes and acknowledgements promise what must survive a crash (thesis 3.8), so they wait
        # until everything unstable is durable; refusals do too, as they may rest on the same.
        if kind == raftpb.MsgAppResp or kind == raftpb.MsgVoteResp or kind == raftpb.MsgPreVoteResp:
            self.messages_after_append.append(message)
        else:
            assert to != self.id, "a message to oneself"
            self.messages.append(message)

    def _pass_to_leader(self, message: raftpb.Message) -> None:
        """Pass a message on to the leader as it is: it belongs to no term."""
        passed = raftpb.Message()
        passed.CopyFrom(message)
        passed.to = self.leader
        if not sender_of(passed):
            setattr(passed, "from", self.id)
        self.messages.append(passed)

    def _send_append(self, to: int, *, even_empty: bool = True) -> bool:
        """Send entries, or a snapshot where they are gone; an empty append tells the commit index.

        Returns:
            Whether anything was sent.
        """
        progress = self.tracker.progress[to]
        if progress.paused:
            return False
        log = self.log
        previous = progress.next - 1
        entries: list[raftpb.Entry] = []
        try:
            previous_term = log.term(previous)
            # A full window lets only empty appends through: should everything under way be lost,
            # the answer to one of those gets replication going again.
            if not (progress.state is ProgressState.REPLICATE and progress.inflights.full):
                entries = log.entries_from(progress.next, self._config.max_size_per_message)
        except Compacted, Unavailable:
            return self._send_snapshot(to, progress)
        if not entries and not even_empty:
            return False
        self._send(
            raftpb.MsgApp,
            to,
            index=previous,
            logTerm=previous_term,
            entries=entries,
            commit=log.committed,
        )
        size = 0
        if self._config.max_inflight_bytes:
            size = sum(len(entry.Data) for entry in entries)
        progress.sent_entries(len(entries), size)
        progress.sent_commit = log.committed
        return True

    def _send_snapshot(self, to: int, progress: Progress) -> bool:
        if not progress.recently_active:
            self._note("snapshot_not_sent", peer=to)
            return False
        try:
            snapshot = self.log.snapshot()
        except SnapshotTemporarilyUnavailable:
            self._note("snapshot_not_ready", peer=to)
            return False
        index = snapshot.metadata.index
        if not index:
            raise InvariantBroken(f"storage compacted its log but has no snapshot for {to}")
        self._note(
            "snapshot_sent",
            first_index=self.log.first_index(),
            commit=self.log.committed,
            index=index,
            term=snapshot.metadata.term,
            peer=to,
            progress=str(progress),
        )
        progress.become_snapshot(index)
        self._note("snapshot_pauses", peer=to, progress=str(progress))
        self._send(raftpb.MsgSnap, to, snapshot=snapshot)
        return True

    def _broadcast_append(self) -> None:
        for node in self.tracker.progress:
            if node != self.id:
                self._send_append(node)

    def _broadcast_heartbeat(self) -> None:
        context = self._read_only.context()
        for node, progress in self.tracker.progress.items():
            if node == self.id:
                continue
            # Never beyond what is known to match: the receiver's log may differ after that.
            commit = min(progress.match, self.log.committed)
            self._send(raftpb.MsgHeartbeat, node, commit=commit, context=context or None)
            progress.sent_commit = commit

    # Roles

    def _reset(self, term: int) -> None:
        if self.term != term:
            self.term = term
            self.vote = NONE
        self.leader = NONE
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        election_tick = self._config.election_tick
        self.randomized_election_timeout = election_tick + self._config.random.randrange(
            election_tick
        )
        self.transferee = NONE
        tracker = self.tracker
        tracker.votes = {}
        last = self.log.last_index()
        for node, progress in tracker.progress.items():
            tracker.progress[node] = Progress(
                last if node == self.id else 0,
                last + 1,
                tracker.new_inflights(),
                is_learner=progress.is_learner,
            )
        self.pending_change_index = 0
        self.uncommitted_size = 0
        self._uncommitted.clear()
        self._read_only = ReadOnly()
        self._early_reads = []

    def _become_follower(self, term: int, leader: int) -> None:
        self._reset(term)
        self.leader = leader
        self.role = StateRole.FOLLOWER
        self._note("became_follower", term=term)

    def _become_candidate(self) -> None:
        assert self.role is not StateRole.LEADER, "a leader became a candidate"
        self._reset(self.term + 1)
        self.vote = self.id
        self.role = StateRole.CANDIDATE
        self._note("became_candidate", term=self.term)

    def _become_pre_candidate(self) -> None:
        # Term, vote and timers stay as they are: nothing has happened yet.
        assert self.role is not StateRole.LEADER, "a leader became a pre-candidate"
        self.tracker.votes = {}
        self.leader = NONE
        self.role = StateRole.PRE_CANDIDATE
        self._note("became_pre_candidate", term=self.term)

    def _become_leader(self) -> None:
        assert self.role is not StateRole.FOLLOWER, "a follower became leader"
        self._reset(self.term)
        self.leader = self.id
        self.role = StateRole.LEADER
        own = self.tracker.progress[self.id]
        own.become_replicate()
        own.recently_active = True
        # There may be a membership change in what this leader inherits; to refuse new ones until
        # all of that is applied is simpler than to look for it.
        self.pending_change_index = self.log.last_index()
        # The entry of its own term by which a leader commits those of earlier ones (3.6.2).
        self._append([raftpb.Entry()])
        self._note("became_leader", term=self.term)

    # Elections

    def hup(self, *, transfer: bool = False) -> None:
        """Stand for election, if this node may."""
        if self.role is StateRole.LEADER:
            self._note("campaign_leads")
        elif not self.promotable:
            self._note("campaign_unpromotable")
        elif self._has_unapplied_change():
            # An election by a configuration that is out of date could make a second leader.
            self._note("campaign_unapplied_change", term=self.term)
        else:
            self._note("campaign", term=self.term)
            # A transfer is asked for by the leader itself; there is nobody to protect from it.
            self._campaign(pre=self._config.pre_vote and not transfer, transfer=transfer)

    def _has_unapplied_change(self) -> bool:
        log = self.log
        index = log.applied + 1
        while index <= log.committed:
            page = log.slice(index, log.committed + 1, log.max_applying_bytes)
            if any(entry.Type != raftpb.EntryNormal for entry in page):
                return True
            index += len(page)
        return False

    def _campaign(self, *, pre: bool = False, transfer: bool = False) -> None:
        if pre:
            self._become_pre_candidate()
            kind, response, term = raftpb.MsgPreVote, raftpb.MsgPreVoteResp, self.term + 1
        else:
            self._become_candidate()
            kind, response, term = raftpb.MsgVote, raftpb.MsgVoteResp, self.term
        last_index, last_term = self.log.last_id()
        for node in sorted(self.configuration.all_voters):
            if node == self.id:
                # The own vote counts when it is durable, like anybody's.
                self._send(response, node, term)
                continue
            self._note(
                "vote_asked",
                last_term=last_term,
                last_index=last_index,
                kind=raftpb.MessageType.Name(kind),
                to=node,
                term=self.term,
            )
            self._send(
                kind,
                node,
                term,
                index=last_index,
                logTerm=last_term,
                context=TRANSFER_CONTEXT if transfer else None,
            )

    def _on_vote_request(self, message: raftpb.Message) -> None:
        sender = sender_of(message)
        kind = message.type
        pre = kind == raftpb.MsgPreVote
        can_vote = (
            self.vote == sender
            or (self.vote == NONE and self.leader == NONE)
            or (pre and message.term > self.term)
        )
        # Learners vote too: one may have been made a voter and not know it yet, and the
        # candidate that asks knows better.
        granted = can_vote and self.log.is_up_to_date(message.index, message.logTerm)
        if self._trace is not None:
            self._note(
                "vote_cast" if granted else "vote_rejected",
                sender=sender,
                kind=raftpb.MessageType.Name(kind),
                term=self.term,
                **self._vote_fields(message),
            )
        response = raftpb.MsgPreVoteResp if pre else raftpb.MsgVoteResp
        if granted:
            # The term asked for, which for a pre-vote is not ours.
            self._send(response, sender, message.term)
            if not pre:
                self.election_elapsed = 0
                self.vote = sender
        else:
            self._send(response, sender, self.term, reject=True)

    def _vote_fields(self, message: raftpb.Message) -> dict[str, object]:
        last_index, last_term = self.log.last_id()
        return {
            "last_term": last_term,
            "last_index": last_index,
            "vote": self.vote,
            "message_log_term": message.logTerm,
            "index": message.index,
        }

    def _on_vote_response(self, message: raftpb.Message) -> None:
        pre = self.role is StateRole.PRE_CANDIDATE
        if message.type != (raftpb.MsgPreVoteResp if pre else raftpb.MsgVoteResp):
            return  # of the other phase
        sender = sender_of(message)
        kind = raftpb.MessageType.Name(message.type)
        self._note(
            "vote_refused" if message.reject else "vote_received",
            kind=kind,
            sender=sender,
            term=self.term,
        )
        self.tracker.record_vote(sender, not message.reject)
        granted, refused, result = self.tracker.tally()
        self._note("vote_tally", granted=granted, kind=kind, refused=refused)
        if result is VoteResult.WON:
            if pre:
                self._campaign()
            else:
                self._become_leader()
                self._broadcast_append()
        elif result is VoteResult.LOST:
            self._become_follower(self.term, NONE)

    # Messages

    def step(self, message: raftpb.Message) -> None:
        """Take one message.

        Raises:
            ProposalDropped: it was a proposal, and it was not taken.
        """
        term = message.term
        if term > self.term:
            if not self._meet_higher_term(message):
                return
        elif term and term < self.term:
            self._meet_lower_term(message)
            return
        kind = message.type
        if kind == raftpb.MsgVote or kind == raftpb.MsgPreVote:
            self._on_vote_request(message)
            return
        handler = self._handlers[self.role].get(kind)
        if handler is not None:
            handler(message)

    def _meet_higher_term(self, message: raftpb.Message) -> bool:
        """Follow a later term; False when the message is to be ignored instead."""
        kind = message.type
        sender = sender_of(message)
        if kind == raftpb.MsgVote or kind == raftpb.MsgPreVote:
            election_tick = self._config.election_tick
            in_lease = (
                self._config.check_quorum
                and self.leader != NONE
                and self.election_elapsed < election_tick
            )
            if in_lease and message.context != TRANSFER_CONTEXT:
                # Whoever hears a leader neither votes nor follows (thesis 4.2.3).
                if self._trace is not None:
                    self._note(
                        "vote_in_lease",
                        sender=sender,
                        kind=raftpb.MessageType.Name(kind),
                        term=self.term,
                        remaining=election_tick - self.election_elapsed,
                        **self._vote_fields(message),
                    )
                return False
        if kind == raftpb.MsgPreVote or (kind == raftpb.MsgPreVoteResp and not message.reject):
            return True  # of a term that may never be
        self._note(
            "higher_term",
            term=self.term,
            kind=raftpb.MessageType.Name(kind),
            sender=sender,
            message_term=message.term,
        )
        from_leader = kind in (raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap)
        self._become_follower(message.term, sender if from_leader else NONE)
        return True

    def _meet_lower_term(self, message: raftpb.Message) -> None:
        kind = message.type
        sender = sender_of(message)
        if kind in (raftpb.MsgHeartbeat, raftpb.MsgApp) and (
            self._config.check_quorum or self._config.pre_vote
        ):
            # A leader of the past: either late mail, or we have raised our term alone and nobody
            # will vote for us while they hear that leader. Our answer tells it our term, so that
            # an election brings us back.
            self._send(raftpb.MsgAppResp, sender)
        elif kind == raftpb.MsgPreVote:
            # Answered, not ignored: else nodes with higher terms and shorter logs, from before
            # pre-vote was switched on, could deadlock with the others.
            if self._trace is not None:
                self._note(
                    "vote_rejected",
                    sender=sender,
                    kind=raftpb.MessageType.Name(kind),
                    term=self.term,
                    **self._vote_fields(message),
                )
            self._send(raftpb.MsgPreVoteResp, sender, self.term, reject=True)
        elif kind == raftpb.MsgStorageAppendResp:
            if message.index:
                # A later term may have begun to overwrite these entries.
                self._note(
                    "stale_append_done",
                    term=self.term,
                    kind=raftpb.MessageType.Name(kind),
                    message_term=message.term,
                )
            if message.HasField("snapshot"):
                # A snapshot is of committed entries, whatever the term.
                self.snapshot_applied(message.snapshot.metadata.index)
        else:
            self._note(
                "lower_term",
                term=self.term,
                kind=raftpb.MessageType.Name(kind),
                sender=sender,
                message_term=message.term,
            )

    def _as_everybody(self) -> dict[int, Callable[[raftpb.Message], None]]:
        return {
            raftpb.MsgHup: lambda _message: self.hup(),
            raftpb.MsgStorageAppendResp: self._on_storage_append_response,
            raftpb.MsgStorageApplyResp: self._on_storage_apply_response,
        }

    def _on_storage_append_response(self, message: raftpb.Message) -> None:
        if message.index:
            self.log.unstable.stable_to(message.index, message.logTerm)
        if message.HasField("snapshot"):
            self.snapshot_applied(message.snapshot.metadata.index)

    def _on_storage_apply_response(self, message: raftpb.Message) -> None:
        if message.entries:
            self.entries_applied(message.entries[-1].Index, sum(map(entry_size, message.entries)))

    # What only a leader does

    def _as_leader(self) -> dict[int, Callable[[raftpb.Message], None]]:
        return self._as_everybody() | {
            raftpb.MsgBeat: lambda _message: self._broadcast_heartbeat(),
            raftpb.MsgCheckQuorum: lambda _message: self._check_quorum(),
            raftpb.MsgProp: lambda message: self._lead_proposal(_copies(message.entries)),
            raftpb.MsgReadIndex: self._lead_read,
            raftpb.MsgAppResp: self._on_append_response,
            raftpb.MsgHeartbeatResp: self._on_heartbeat_response,
            raftpb.MsgSnapStatus: self._on_snapshot_status,
            raftpb.MsgUnreachable: self._on_unreachable,
            raftpb.MsgTransferLeader: self._lead_transfer,
        }

    def _progress_of(self, message: raftpb.Message) -> Progress | None:
        sender = sender_of(message)
        progress = self.tracker.progress.get(sender)
        if progress is None:
            self._note("no_progress", sender=sender)
        return progress

    def propose(self, entries: Sequence[raftpb.Entry]) -> None:
        """Propose entries without term and index; they become the log's.

        Raises:
            ProposalDropped: they were not taken.
        """
        if self.role is StateRole.LEADER:
            self._lead_proposal(entries)
        else:
            message = new_message(raftpb.MsgProp, self.id, entries=entries)
            self._handlers[self.role][raftpb.MsgProp](message)

    def _lead_proposal(self, entries: Sequence[raftpb.Entry]) -> None:
        if self.id not in self.tracker.progress:
            raise ProposalDropped("this node has been removed from the cluster")
        if self.transferee != NONE:
            self._note("proposal_in_transfer", term=self.term, transferee=self.transferee)
            raise ProposalDropped(f"leadership is being handed to node {self.transferee:x}")
        accepted = list(entries)
        for position, entry in enumerate(accepted):
            if entry.Type == raftpb.EntryNormal:
                continue
            try:
                change = confchange.from_entry(entry)
            except DecodeError as error:
                raise ProposalDropped("the proposal is not a valid membership change") from error
            assert change is not None
            if self._change_allowed(confchange.as_v2(change)):
                self.pending_change_index = self.log.last_index() + position + 1
            else:
                # An empty entry takes its place, as others may be proposed with it.
                accepted[position] = raftpb.Entry(Type=raftpb.EntryNormal)
        if not self._append(accepted):
            raise ProposalDropped(
                f"{self.uncommitted_size} bytes wait to be committed, the limit is"
                f" {self._max_uncommitted_size}; propose again when they are"
            )
        self._broadcast_append()

    def _change_allowed(self, change: raftpb.ConfChangeV2) -> bool:
        configuration = self.configuration
        leaves = not change.changes
        reason = ""
        if self.pending_change_index > self.log.applied:
            reason = (
                f"possible unapplied conf change at index {self.pending_change_index}"
                f" (applied to {self.log.applied})"
            )
        elif configuration.joint and not leaves:
            reason = "must transition out of joint config first"
        elif not configuration.joint and leaves:
            reason = "not in joint state; refusing empty conf change"
        if not reason or self._config.disable_conf_change_validation:
            return True
        self._note("change_ignored", change=change, configuration=str(configuration), reason=reason)
        return False

    def _append(self, entries: Iterable[raftpb.Entry]) -> bool:
        """Append proposed entries in this term; False when too much is uncommitted."""
        entries = list(entries)
        size = sum(len(entry.Data) for entry in entries)
        # A first proposal is taken whatever its size, and an empty one always: a new leader's
        # first entry and the end of a joint configuration must not fail.
        if (
            self.uncommitted_size
            and size
            and (self.uncommitted_size + size > self._max_uncommitted_size)
        ):
            self._note("proposal_too_large")
            return False
        index = self.log.last_index()
        for entry in entries:
            index += 1
            entry.Term = self.term
            entry.Index = index
        if size:
            self.uncommitted_size += size
            self._uncommitted.append((index, size))
        self.log.append(entries)
        # The leader's own acknowledgement, once the entries are durable here.
        self._send(raftpb.MsgAppResp, self.id, index=index)
        return True

    def _maybe_commit(self) -> bool:
        return self.log.maybe_commit(self.tracker.committed(), self.term)

    def _on_append_response(self, message: raftpb.Message) -> None:
        progress = self._progress_of(message)
        if progress is None:
            return
        progress.recently_active = True
        if message.reject:
            self._on_append_rejected(message, progress)
        else:
            self._on_append_accepted(message, progress)

    def _on_append_rejected(self, message: raftpb.Message, progress: Progress) -> None:
        sender = sender_of(message)
        hint = message.rejectHint
        self._note(
            "append_was_rejected",
            hint=hint,
            term=message.logTerm,
            sender=sender,
            index=message.index,
        )
        if message.logTerm > 0:
            # The peer's log ends (at or before where we probed) in an entry of that term. Where
            # our terms are larger its log cannot match, so one probe per term of ours is enough.
            hint, _ = self.log.find_conflict_by_term(hint, message.logTerm)
        if progress.maybe_decrease_to(message.index, hint):
            self._note("progress_decreased", peer=sender, progress=str(progress))
            if progress.state is ProgressState.REPLICATE:
                progress.become_probe()
            self._send_append(sender)

    def _on_append_accepted(self, message: raftpb.Message, progress: Progress) -> None:
        sender = sender_of(message)
        index = message.index
        updated = progress.maybe_update(index)
        # A peer being probed may confirm what we knew, and yet show that it is back.
        if not updated and not (progress.match == index and progress.state is ProgressState.PROBE):
            return
        if progress.state is ProgressState.REPLICATE:
            progress.inflights.free_up_to(index)
        elif progress.state is ProgressState.PROBE:
            progress.become_replicate()
        elif progress.match + 1 >= self.log.first_index():
            # Whichever snapshot it got, from here on the log is enough.
            self._note("snapshot_recovered", peer=sender, progress=str(progress))
            progress.become_probe()
            progress.become_replicate()
        if self._maybe_commit():
            self._release_early_reads()
            self._broadcast_append()
        elif sender != self.id and progress.can_bump_commit(self.log.committed):
            self._send_append(sender)
        if sender != self.id:
            # Room in the window, or the end of probing: send all that fits.
            while self._send_append(sender, even_empty=False):
                pass
        if sender == self.transferee and progress.match == self.log.last_index():
            self._note("transfer_caught_up", peer=sender)
            self._send(raftpb.MsgTimeoutNow, sender)

    def _on_heartbeat_response(self, message: raftpb.Message) -> None:
        progress = self._progress_of(message)
        if progress is None:
            return
        sender = sender_of(message)
        progress.recently_active = True
        progress.flow_paused = False
        # Behind, or reported unreachable and back: the answer to an append tells where it stands.
        if progress.match < self.log.last_index() or progress.state is ProgressState.PROBE:
            self._send_append(sender)
        if self._config.read_only_lease_based or not message.context:
            return
        self._read_only.acknowledge(sender, message.context)
        self._answer_confirmed_reads()

    def _on_snapshot_status(self, message: raftpb.Message) -> None:
        progress = self._progress_of(message)
        if progress is None or progress.state is not ProgressState.SNAPSHOT:
            return
        sender = sender_of(message)
        if message.reject:
            progress.pending_snapshot = 0
            progress.become_probe()
            self._note("snapshot_failed", peer=sender, progress=str(progress))
        else:
            progress.become_probe()
            self._note("snapshot_succeeded", peer=sender, progress=str(progress))
        # The peer's own acknowledgement goes on from here, or else the next heartbeat.
        progress.flow_paused = True

    def _on_unreachable(self, message: raftpb.Message) -> None:
        progress = self._progress_of(message)
        if progress is None:
            return
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()  # what was under way is probably lost
        self._note("unreachable", peer=sender_of(message), progress=str(progress))

    def _lead_transfer(self, message: raftpb.Message) -> None:
        progress = self._progress_of(message)
        if progress is None:
            return
        transferee = sender_of(message)
        if progress.is_learner:
            self._note("transfer_to_learner")
            return
        if self.transferee != NONE:
            if self.transferee == transferee:
                self._note("transfer_in_progress", term=self.term, peer=transferee)
                return
            self._note("transfer_replaced", term=self.term, peer=self.transferee)
            self.transferee = NONE
        if transferee == self.id:
            self._note("transfer_to_self")
            return
        self._note("transfer_begins", term=self.term, peer=transferee)
        # It has an election timeout to succeed (thesis 3.10).
        self.election_elapsed = 0
        self.transferee = transferee
        if progress.match == self.log.last_index():
            self._send(raftpb.MsgTimeoutNow, transferee)
            self._note("transfer_now", peer=transferee)
        else:
            self._send_append(transferee)

    # Reads

    def _lead_read(self, message: raftpb.Message) -> None:
        if self.tracker.is_singleton and self.id in self.configuration.voters:
            self._answer_read(message, self.log.committed)
        elif self.log.term_or_zero(self.log.committed) != self.term:
            # Until then this leader doesn't know what its predecessors had committed.
            if len(self._early_reads) < self._config.max_pending_reads:
                self._early_reads.append(message)
            else:
                self._note("read_limit", limit=self._config.max_pending_reads)
        else:
            self._confirm_read(message)

    def _release_early_reads(self) -> None:
        if self._early_reads:
            waiting, self._early_reads = self._early_reads, []
            for message in waiting:
                self._confirm_read(message)

    def _confirm_read(self, message: raftpb.Message) -> None:
        if self._config.read_only_lease_based:
            self._answer_read(message, self.log.committed)
            return
        if len(self._read_only.waiting) >= self._config.max_pending_reads:
            self._note("read_limit", limit=self._config.max_pending_reads)
            return
        self._read_only.add(message, self.log.committed)
        self._read_only.acknowledge(self.id, self._read_only.context())
        self._answer_confirmed_reads()  # by this node alone, where it is a quorum
        self._broadcast_heartbeat()

    def _answer_confirmed_reads(self) -> None:
        number = self.tracker.quorum_index(self._read_only.acknowledged)
        for request, index in self._read_only.confirm(number):
            self._answer_read(request, index)

    def _answer_read(self, request: raftpb.Message, index: int) -> None:
        sender = sender_of(request)
        if sender in (NONE, self.id):
            self.read_states.append(ReadState(index, request.entries[0].Data))
        else:
            self._send(raftpb.MsgReadIndexResp, sender, index=index, entries=request.entries)

    # What candidates do

    def _as_candidate(self) -> dict[int, Callable[[raftpb.Message], None]]:
        def followed_by(
            handler: Callable[[raftpb.Message], None],
        ) -> Callable[[raftpb.Message], None]:
            """Give up for the leader that this term has after all."""

            def handle(message: raftpb.Message) -> None:
                self._become_follower(message.term, sender_of(message))
                handler(message)

            return handle

        return self._as_everybody() | {
            raftpb.MsgProp: self._refuse_proposal,
            raftpb.MsgApp: followed_by(self._handle_append),
            raftpb.MsgHeartbeat: followed_by(self._handle_heartbeat),
            raftpb.MsgSnap: followed_by(self._handle_snapshot),
            raftpb.MsgPreVoteResp: self._on_vote_response,
            raftpb.MsgVoteResp: self._on_vote_response,
            raftpb.MsgTimeoutNow: lambda message: self._note(
                "timeout_now_ignored",
                term=self.term,
                role=self.role.value,
                sender=sender_of(message),
            ),
        }

    def _refuse_proposal(self, _message: raftpb.Message) -> None:
        self._note("proposal_no_leader", term=self.term)
        raise ProposalDropped(f"there is no leader in term {self.term}")

    # What followers do

    def _as_follower(self) -> dict[int, Callable[[raftpb.Message], None]]:
        def from_leader(
            handler: Callable[[raftpb.Message], None],
        ) -> Callable[[raftpb.Message], None]:
            """Note that the leader lives."""

            def handle(message: raftpb.Message) -> None:
                self.election_elapsed = 0
                self.leader = sender_of(message)
                handler(message)

            return handle

        return self._as_everybody() | {
            raftpb.MsgProp: self._forward_proposal,
            raftpb.MsgApp: from_leader(self._handle_append),
            raftpb.MsgHeartbeat: from_leader(self._handle_heartbeat),
            raftpb.MsgSnap: from_leader(self._handle_snapshot),
            raftpb.MsgTransferLeader: self._forward_transfer,
            raftpb.MsgForgetLeader: self._forget_leader,
            raftpb.MsgTimeoutNow: self._on_timeout_now,
            raftpb.MsgReadIndex: self._forward_read,
            raftpb.MsgReadIndexResp: self._on_read_response,
        }

    def _forward_proposal(self, message: raftpb.Message) -> None:
        if self.leader == NONE:
            self._refuse_proposal(message)
        if self._config.disable_proposal_forwarding:
            self._note("proposal_not_forwarded", leader=self.leader, term=self.term)
            raise ProposalDropped(
                f"the leader is node {self.leader:x}, and this node forwards no proposals"
            )
        self._pass_to_leader(message)

    def _forward_transfer(self, message: raftpb.Message) -> None:
        if self.leader == NONE:
            self._note("transfer_no_leader", term=self.term)
        else:
            self._pass_to_leader(message)

    def _forget_leader(self, _message: raftpb.Message) -> None:
        if self._config.read_only_lease_based:
            self._note("forget_leader_lease")
        elif self.leader != NONE:
            self._note("forget_leader", leader=self.leader, term=self.term)
            self.leader = NONE

    def _on_timeout_now(self, message: raftpb.Message) -> None:
        self._note("timeout_now", term=self.term, sender=sender_of(message))
        self.hup(transfer=True)

    def _forward_read(self, message: raftpb.Message) -> None:
        if self.leader == NONE:
            self._note("read_no_leader", term=self.term)
        else:
            self._pass_to_leader(message)

    def _on_read_response(self, message: raftpb.Message) -> None:
        if len(message.entries) != 1:
            self._note("read_malformed", sender=sender_of(message), entries=len(message.entries))
            return
        self.read_states.append(ReadState(message.index, message.entries[0].Data))

    def _handle_append(self, message: raftpb.Message) -> None:
        sender = sender_of(message)
        log = self.log
        if message.index < log.committed:
            self._send(raftpb.MsgAppResp, sender, index=log.committed)
            return
        last = log.maybe_append(message.index, message.logTerm, message.entries, message.commit)
        if last is not None:
            self._send(raftpb.MsgAppResp, sender, index=last)
            return
        if self._trace is not None:
            self._note(
                "append_rejected",
                term=log.term_or_zero(message.index),
                index=message.index,
                message_log_term=message.logTerm,
                sender=sender,
            )
        # Where the logs may match: at or before the probe and our end, and with a term not above
        # the probe's, since the leader has none larger up to there.
        hint, hint_term = log.find_conflict_by_term(
            min(message.index, log.last_index()), message.logTerm
        )
        self._send(
            raftpb.MsgAppResp,
            sender,
            index=message.index,
            reject=True,
            rejectHint=hint,
            logTerm=hint_term,
        )

    def _handle_heartbeat(self, message: raftpb.Message) -> None:
        self.log.commit_to(message.commit)
        self._send(raftpb.MsgHeartbeatResp, sender_of(message), context=message.context or None)

    def _handle_snapshot(self, message: raftpb.Message) -> None:
        metadata = message.snapshot.metadata
        restored = self._restore(message.snapshot)
        self._note(
            "snapshot_handled" if restored else "snapshot_ignored",
            commit=self.log.committed,
            index=metadata.index,
            term=metadata.term,
        )
        index = self.log.last_index() if restored else self.log.committed
        self._send(raftpb.MsgAppResp, sender_of(message), index=index)

    def _restore(self, snapshot: raftpb.Snapshot) -> bool:
        """Replace log and configuration by the snapshot's; False when there is no need to."""
        metadata = snapshot.metadata
        log = self.log
        if metadata.index <= log.committed:
            return False
        if self.role is not StateRole.FOLLOWER:
            self._note("snapshot_not_follower")
            self._become_follower(self.term + 1, NONE)
            return False
        if log.applying > log.applied:
            # A membership change among the entries being applied would be applied on top of the
            # snapshot's configuration. The leader will offer the snapshot again.
            self._note("snapshot_deferred", applying=log.applying)
            return False
        state = metadata.conf_state
        if not any(self.id in ids for ids in (state.voters, state.learners, state.voters_outgoing)):
            self._note("snapshot_not_member")
            return False
        if log.matches(metadata.index, metadata.term):
            last_index, last_term = log.last_id()
            self._note(
                "snapshot_fast_forward",
                commit=log.committed,
                last_index=last_index,
                last_term=last_term,
                index=metadata.index,
                term=metadata.term,
            )
            log.commit_to(metadata.index)
            return False
        log.restore(snapshot)
        self._switch_to(*confchange.restore(state, log.last_index(), self.tracker.new_inflights))
        last_index, last_term = log.last_id()
        self._note(
            "snapshot_restored",
            commit=log.committed,
            last_index=last_index,
            last_term=last_term,
            index=metadata.index,
            term=metadata.term,
        )
        return True

    # Applying

    def entries_applied(self, index: int, size: int) -> None:
        """Note that entries up to `index` have been applied (`size` bytes, encoded)."""
        self._applied_to(index, size)
        uncommitted = self._uncommitted
        while uncommitted and uncommitted[0][0] <= index:
            self.uncommitted_size -= uncommitted.popleft()[1]

    def snapshot_applied(self, index: int) -> None:
        """Note that storage and application have the snapshot at `index`."""
        self.log.unstable.stable_snapshot_to(index)
        self._applied_to(index, 0)

    def _applied_to(self, index: int, size: int) -> None:
        applied = max(index, self.log.applied)
        self.log.applied_to(applied, size)
        configuration = self.configuration
        if (
            configuration.auto_leave
            and applied >= self.pending_change_index
            and self.role is StateRole.LEADER
        ):
            # The joint configuration is in force: its end can be proposed. Where that is refused
            # now (a transfer is under way), the next entry applied tries again.
            try:
                self._lead_proposal([confchange.entry_for(None)])
            except ProposalDropped as error:
                self._note("leave_refused", configuration=str(configuration), error=error)
            else:
                self._note("leave_begins", configuration=str(configuration))

    def apply_conf_change(self, change: ConfChange) -> raftpb.ConfState:
        """Make a committed membership change effective.

        Raises:
            confchange.ConfChangeRefused: it is not possible in the present configuration.
        """
        changer = Changer(
            self.configuration,
            self.tracker.progress,
            self.log.last_index(),
            self.tracker.new_inflights,
        )
        return self._switch_to(*changer.apply(confchange.as_v2(change)))

    def _switch_to(
        self, configuration: Configuration, progress: dict[int, Progress]
    ) -> raftpb.ConfState:
        self.tracker.switch_to(configuration, progress)
        self._note("configuration", configuration=str(configuration))
        state = configuration.conf_state()
        own = self.tracker.progress.get(self.id)
        self.is_learner = own is not None and own.is_learner
        if self.role is not StateRole.LEADER:
            return state
        if own is None or own.is_learner:
            if self._config.step_down_on_removal:
                self._become_follower(self.term, NONE)
            return state
        if not configuration.voters:
            return state
        if self._maybe_commit():
            # A smaller quorum may have committed more.
            self._broadcast_append()
        else:
            for node in self.tracker.progress:
                if node != self.id:
                    self._send_append(node, even_empty=False)
        if self.transferee not in configuration.all_voters:
            self.transferee = NONE
        return state
