"""Standing for election, and voting."""

from consortium.raft.config import NONE
from consortium.raft.leading import Leading
from consortium.raft.messages import sender_of
from consortium.raft.quorum import VoteResult
from consortium.raft.state import StateRole
from consortium.wire import raftpb_pb2 as raftpb

TRANSFER_CONTEXT = b"CampaignTransfer"
"""The context of vote requests that a transfer of leadership causes, as etcd's nodes send it:
such a campaign may interrupt a living leader."""


class Elections(Leading):
    """The candidate's and the voter's part of a node."""

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
        if index < log.first_index():
            return True  # applied and compacted by the caller, who is about to say so
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
            self._refuse_vote(message)

    def _refuse_vote(self, request: raftpb.Message) -> None:
        """Refuse, and tell how much is committed if this node is no voter (any more).

        Its log may be the longest, so that nobody can be elected against it; and it doesn't stand
        itself. What it lets others commit is the change that left it out: after that they don't ask
        it any more (TiKV's raft-rs tells it with every vote).
        """
        pre = request.type == raftpb.MsgPreVote
        response, sender = raftpb.MsgPreVoteResp if pre else raftpb.MsgVoteResp, sender_of(request)
        # No further than the candidate's log, which is where it can see that the two agree.
        committed = min(self.log.committed, request.index)
        if committed and self.id not in self.configuration.all_voters:
            term = self.log.term_or_zero(committed)
            self._send(response, sender, self.term, reject=True, commit=committed, logTerm=term)
        else:
            self._send(response, sender, self.term, reject=True)

    def _learn_commit(self, message: raftpb.Message) -> None:
        """Commit what a refusal says is committed, if the entry there is the same one.

        Whatever the terms of sender and receiver: equal entries follow equal logs (the paper's log
        matching), and what is committed stays so.
        """
        if self.role is StateRole.LEADER:
            return
        if not self.log.maybe_commit(message.commit, message.logTerm):
            return
        self._note("commit_learned", sender=sender_of(message), index=message.commit)
        if self.role is not StateRole.FOLLOWER and self._has_unapplied_change():
            # The election was by a configuration that is out of date.
            self._become_follower(self.term, NONE)

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
