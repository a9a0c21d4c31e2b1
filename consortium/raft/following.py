"""What candidates and followers do with what they are sent."""

from collections.abc import Callable

from consortium.raft import confchange
from consortium.raft.config import NONE
from consortium.raft.elections import Elections
from consortium.raft.messages import sender_of
from consortium.raft.reads import ReadState
from consortium.raft.state import ProposalDropped, StateRole
from consortium.wire import raftpb_pb2 as raftpb


class Following(Elections):
    """The candidate's and the follower's part of a node."""

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
