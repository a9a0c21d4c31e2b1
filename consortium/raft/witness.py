"""What one member remembers of another's promises, so that a disk that lost some is found out.

A member whose disk was replaced by an older copy, or by nothing, has forgotten votes and
acknowledgements that others rely on (Raft thesis 3.8). It cannot know that by itself; those to
whom it made the promises can tell it. Every promise leaves in a message to one member, after what
it promises was made durable. So each member notes, of every other one, the highest term heard, the
newest acknowledgement and the newest vote that it got, and tells on request; whoever finds its own
disk behind any of this must not take part any more (`contradiction`).

This is exact for each member asked: of one term there is one leader, so in a term the log that was
acknowledged only grows, and whoever is in a later term has been through all that it promised in
earlier ones. A log that is long enough is not enough: entries of an earlier term that the leader
overwrote may stand there, so the leader remembers the term of the entry that was acknowledged.
"""

from collections.abc import Callable
from dataclasses import dataclass

from consortium.raft.core import Raft, StateRole
from consortium.raft.storage import Compacted, Unavailable
from consortium.wire import raftpb_pb2 as raftpb

# Of a term that may never be.
_NOT_A_TERM = frozenset((raftpb.MsgPreVote, raftpb.MsgPreVoteResp))


@dataclass(slots=True)
class Witness:
    """What a member knows of another one. Zeroes: nothing yet."""

    term: int = 0
    """The highest term that it was heard in."""
    acknowledged_term: int = 0
    acknowledged_index: int = 0
    """The newest entry that it acknowledged in the newest term that it acknowledged any in."""
    acknowledged_log_term: int = 0
    """The term of that entry, 0 where the one who remembers could not tell."""
    vote_term: int = 0
    """The newest term in which it voted for the one who remembers."""
    sent_term: int = 0
    sent_index: int = 0
    """The newest entry that it sent as leader, in the newest term in which it sent any."""

    def hear(self, message: raftpb.Message, log_term: int = 0) -> bool:
        """Note what a message of that member says; True if any of it is new.

        Args:
            message: As received, before the node takes it.
            log_term: See `acknowledged_log_term`.
        """
        kind = message.type
        if kind in _NOT_A_TERM:
            return False
        term = message.term
        news = False
        if term > self.term:
            self.term = term
            news = True
        if kind == raftpb.MsgAppResp and not message.reject:
            news |= self._acknowledged(term, message.index, log_term)
        elif kind == raftpb.MsgApp or kind == raftpb.MsgHeartbeat:
            # A leader acknowledges its own entries to itself; what it says to be committed is on
            # its disk, as an entry is sent before it can be, and the next Ready follows a write.
            news |= self._acknowledged(term, message.commit, 0)
            if message.entries:
                last = message.entries[-1].Index
                if (term, last) > (self.sent_term, self.sent_index):
                    self.sent_term, self.sent_index = term, last
                    news = True
        elif kind == raftpb.MsgVoteResp and not message.reject and term > self.vote_term:
            self.vote_term = term
            news = True
        return news

    def _acknowledged(self, term: int, index: int, log_term: int) -> bool:
        if (term, index) <= (self.acknowledged_term, self.acknowledged_index):
            return False
        self.acknowledged_term, self.acknowledged_index = term, index
        self.acknowledged_log_term = log_term
        return True

    def contradiction(
        self,
        remembered_by: int,
        state: raftpb.HardState,
        last_index: int,
        term_at: Callable[[int], int],
        *,
        copy: bool = False,
    ) -> str | None:
        """Say what of this the disk (`state`, and a log up to `last_index`) no longer knows.

        To be asked by the member that it is about; None if all is there. `term_at` gives the term
        of an entry of its log, 0 for one that is compacted, which is committed. `copy`: the files
        are known to be a copy. Then what it sent as leader counts too: it may have been on its
        disk, and counted towards a commit that nobody was told of. (After a mere crash it may as
        well not have been, since a leader sends before it has written.)
        """
        if state.term < self.term:
            return (
                f"orderer {remembered_by} heard it in term {self.term}, and the disk knows of no"
                f" term after {state.term}"
            )
        if self.vote_term == state.term and state.vote != remembered_by and self.vote_term:
            return (
                f"it voted for orderer {remembered_by} in term {self.vote_term}, and the disk knows"
                " nothing of that vote"
            )
        if self.acknowledged_term == state.term and last_index < self.acknowledged_index:
            return (
                f"it acknowledged entry {self.acknowledged_index} to orderer {remembered_by} in"
                f" term {self.acknowledged_term}, and the log on disk ends at {last_index}"
            )
        if self.acknowledged_term == state.term and self.acknowledged_log_term:
            there = term_at(self.acknowledged_index)
            if there not in (0, self.acknowledged_log_term):
                return (
                    f"it acknowledged entry {self.acknowledged_index} of term"
                    f" {self.acknowledged_log_term} to orderer {remembered_by}, and the log on disk"
                    f" holds one of term {there} there"
                )
        if copy and self.sent_term == state.term and last_index < self.sent_index:
            return (
                f"as leader of term {self.sent_term} it sent entry {self.sent_index} to orderer"
                f" {remembered_by}, and the log on this copy of its disk ends at {last_index}"
            )
        return None


def acknowledged_log_term(raft: Raft, message: raftpb.Message) -> int | None:
    """Return the term of the entry that a message acknowledges to this node as its leader.

    0 where it acknowledges nothing, or not to the leader of its term: then nobody counts on it.
    None where this leader has compacted the entry and can't tell any more. Such a message is to be
    dropped: a leader that took it would tell its sender later that the entry is committed, and a
    copy of the sender's disk may hold another one there, which nobody could contradict. Nothing is
    lost, since who is that far behind gets a snapshot, and the acknowledgement of that counts.
    """
    if (
        message.type == raftpb.MsgAppResp
        and not message.reject
        and raft.role is StateRole.LEADER
        and message.term == raft.term
    ):
        try:
            return raft.log.term(message.index)
        except Compacted:
            return None
        except Unavailable:
            return 0
    return 0
