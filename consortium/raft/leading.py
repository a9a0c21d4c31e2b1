"""What a leader does: replication, commitment, membership, transfer, reads."""

from collections.abc import Callable, Iterable, Sequence

from google.protobuf.message import DecodeError

from consortium.raft import confchange
from consortium.raft.confchange import Changer, ConfChange
from consortium.raft.config import NONE
from consortium.raft.log import InvariantBroken
from consortium.raft.messages import new_message, sender_of
from consortium.raft.reads import ReadState
from consortium.raft.state import NodeState, ProposalDropped, StateRole
from consortium.raft.storage import (
    Compacted,
    SnapshotTemporarilyUnavailable,
    Unavailable,
    entry_size,
)
from consortium.raft.tracker import Configuration, Progress, ProgressState
from consortium.wire import raftpb_pb2 as raftpb


def _copies(entries: Iterable[raftpb.Entry]) -> list[raftpb.Entry]:
    """Copy forwarded entries before they get term and index: the message is the caller's."""
    return [raftpb.Entry(Type=entry.Type, Data=entry.Data) for entry in entries]


class Leading(NodeState):
    """The leader's part of a node."""

    # Replication

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

    def _check_quorum(self) -> None:
        if not self.tracker.quorum_active():
            self._note("quorum_lost")
            self._become_follower(self.term, NONE)
        for node, progress in self.tracker.progress.items():
            if node != self.id:
                progress.recently_active = False

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

    # Finished writes, which come to every role as messages

    def _as_everybody(self) -> dict[int, Callable[[raftpb.Message], None]]:
        return {
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
