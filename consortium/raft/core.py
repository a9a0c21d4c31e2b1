"""The state machine of one Raft node.

The rules are those of the Raft paper's figures 2 and 13 and of the Raft thesis' chapters 3, 4, 6
and 9; the division of work (messages in, `Ready` out) and the names of the messages are
etcd-io/raft's. Nothing here does I/O, waits, reads a clock or draws randomness of its own.

`Raft` is one object in layers, each of which sees those below it: `state` (what a node knows),
`leading`, `elections`, `following`, and here time and the messages that come in.

Use it through `RawNode`, which turns its state into the work for the caller.
"""

from consortium.raft import confchange
from consortium.raft.config import NONE, Config
from consortium.raft.elections import TRANSFER_CONTEXT
from consortium.raft.following import Following
from consortium.raft.log import InvariantBroken
from consortium.raft.messages import sender_of
from consortium.raft.reads import ReadState
from consortium.raft.state import Handlers, ProposalDropped, StateRole
from consortium.wire import raftpb_pb2 as raftpb

__all__ = ["ProposalDropped", "Raft", "ReadState", "StateRole"]

_VOTE_RESPONSES = (raftpb.MsgVoteResp, raftpb.MsgPreVoteResp)


class Raft(Following):
    """One node's state, changed by `step` and `tick` alone."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        everybody: Handlers = {raftpb.MsgHup: lambda _message: self.hup()}
        self._handlers = {
            StateRole.FOLLOWER: everybody | self._as_follower(),
            StateRole.CANDIDATE: everybody | self._as_candidate(),
            StateRole.PRE_CANDIDATE: everybody | self._as_candidate(),
            StateRole.LEADER: everybody | self._as_leader(),
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

    # Messages

    def step(self, message: raftpb.Message) -> None:
        """Take one message.

        Raises:
            ProposalDropped: it was a proposal, and it was not taken.
        """
        term = message.term
        kind = message.type
        if message.reject and message.commit and kind in _VOTE_RESPONSES:
            self._learn_commit(message)
        if term > self.term:
            if not self._meet_higher_term(message):
                return
        elif term and term < self.term:
            self._meet_lower_term(message)
            return
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
            self._refuse_vote(message)
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
