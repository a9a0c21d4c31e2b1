"""Deliberate mistakes, each of which the simulator must find.

A mutation breaks one rule of the core, or one thing that the core asks of whoever runs it. It is
a context manager: the mistake is there inside of it. `docs/raft.md` lists after how many seeds
each was found.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from consortium.raft import NONE, RawNode, StateRole, confchange, quorum
from consortium.raft.core import Raft
from consortium.raft.log import RaftLog, Unstable
from consortium.raft.tracker import Inflights, Progress, Tracker
from consortium.wire import raftpb_pb2 as raftpb
from tests.simulation.simulator import Features


@dataclass(frozen=True, slots=True)
class Mutation:
    """One mistake."""

    name: str
    says: str
    apply: Callable[[], AbstractContextManager[object]] = nullcontext
    features: Features = field(default_factory=Features)

    @property
    def found_at(self) -> int | None:
        """The first seed known to find it; None for the few that take too many."""
        return FOUND_AT.get(self.name)


MUTATIONS: list[Mutation] = []

# The first seed, from 0 on, that finds each (`script/simulate --mutations` says so anew).
FOUND_AT: dict[str, int] = {
    "vote forgotten": 0,
    "vote for any log": 0,
    "pre votes counted": 63,
    "vote not loaded": 222,
    "half is a majority": 30,
    "old term committed": 61,
    "previous entry unchecked": 4,
    "conflicts kept": 1,
    "heartbeat commits unmatched": 13,
    "old leader obeyed": 13,
    "leader counts itself early": 1,
    "rejection acknowledges": 0,
    "applied uncommitted": 0,
    "window never freed": 0,
    "no backtracking": 0,
    "snapshot without configuration": 14,
    "joint by one half": 14,
    "learners vote": 22,
    "configuration at append": 10,
    "two changes at once": 2,
    "inherited change overlooked": 14,
    "many changes without joint": 176,
    "read without quorum": 49,
    "read before own commit": 10,
    "messages before fsync": 0,
    "snapshot acknowledged early": 293,
    "vote not persisted": 222,
    "id reused after a wipe": 7,
    "old disk believed": 106,
    "stale write counts": 227,
    "election with old configuration": 293,
}


def mutation[F: Callable[[], AbstractContextManager[object]]](says: str) -> Callable[[F], F]:
    """Register a function that returns the patch."""

    def register(function: F) -> F:
        name = function.__name__.replace("_", " ")
        MUTATIONS.append(Mutation(name, says, function))
        return function

    return register


def environment(name: str, says: str, **features: bool) -> None:
    MUTATIONS.append(Mutation(name, says, features=Features(**features)))


# Elections


@mutation("a vote is granted but not remembered (thesis 3.4)")
def vote_forgotten() -> AbstractContextManager[object]:
    original = Raft._on_vote_request

    def mutated(self: Raft, message: raftpb.Message) -> None:
        vote = self.vote
        original(self, message)
        self.vote = vote

    return patch.object(Raft, "_on_vote_request", mutated)


@mutation("a vote is granted whatever the candidate's log (thesis 3.6.1)")
def vote_for_any_log() -> AbstractContextManager[object]:
    return patch.object(RaftLog, "is_up_to_date", lambda *_: True)


@mutation("answers to a pre-vote are counted as votes (thesis 9.6)")
def pre_votes_counted() -> AbstractContextManager[object]:
    original = Raft._on_vote_response

    def mutated(self: Raft, message: raftpb.Message) -> None:
        if self.role is StateRole.CANDIDATE:
            message.type = raftpb.MsgVoteResp
        original(self, message)

    return patch.object(Raft, "_on_vote_response", mutated)


@mutation("a node restarts with the term but without the vote that it had persisted")
def vote_not_loaded() -> AbstractContextManager[object]:
    original = Raft.__init__

    def mutated(self: Raft, config: Any) -> None:
        original(self, config)
        self.vote = NONE

    return patch.object(Raft, "__init__", mutated)


@mutation("half of the votes are a majority")
def half_is_a_majority() -> AbstractContextManager[object]:
    def mutated(voters: Sequence[int], votes: dict[int, bool]) -> quorum.VoteResult:
        if sum(votes.get(voter, False) for voter in voters) * 2 >= len(voters):
            return quorum.VoteResult.WON
        refused = sum(votes.get(voter) is False for voter in voters)
        return quorum.VoteResult.LOST if refused * 2 > len(voters) else quorum.VoteResult.PENDING

    return patch.object(quorum, "majority_vote", mutated)


# Replication


@mutation("an old term's entry is committed by counting copies (paper, figure 8)")
def old_term_committed() -> AbstractContextManager[object]:
    def mutated(self: Raft) -> bool:
        index = min(self.tracker.committed(), self.log.last_index())
        return self.log.maybe_commit(index, self.log.term_or_zero(index))

    return patch.object(Raft, "_maybe_commit", mutated)


@mutation("entries are appended without a look at the one before them (thesis 3.5)")
def previous_entry_unchecked() -> AbstractContextManager[object]:
    original = RaftLog.maybe_append

    def mutated(
        self: RaftLog, index: int, term: int, entries: Sequence[raftpb.Entry], commit: int
    ) -> int | None:
        return original(self, index, self.term_or_zero(index) or term, entries, commit)

    return patch.object(RaftLog, "maybe_append", mutated)


@mutation("entries that contradict the leader's are kept (paper, figure 2, AppendEntries 3)")
def conflicts_kept() -> AbstractContextManager[object]:
    original = RaftLog.maybe_append

    def mutated(
        self: RaftLog, index: int, term: int, entries: Sequence[raftpb.Entry], commit: int
    ) -> int | None:
        last = self.last_index()
        known = [entry for entry in entries if entry.Index <= last]
        if len(known) < len(entries) or not known:
            return (
                original(
                    self,
                    max(index, min(last, index + len(known))),
                    self.term_or_zero(index + len(known)),
                    entries[len(known) :],
                    commit,
                )
                if self.matches(index, term)
                else None
            )
        if not self.matches(index, term):
            return None
        self.commit_to(min(commit, index + len(entries)))
        return index + len(entries)

    return patch.object(RaftLog, "maybe_append", mutated)


@mutation("a follower commits up to the leader's index, whatever of its log was compared")
def commit_beyond_compared() -> AbstractContextManager[object]:
    original = RaftLog.maybe_append

    def mutated(
        self: RaftLog, index: int, term: int, entries: Sequence[raftpb.Entry], commit: int
    ) -> int | None:
        last = original(self, index, term, entries, commit)
        if last is not None:
            self.commit_to(min(commit, self.last_index()))
        return last

    return patch.object(RaftLog, "maybe_append", mutated)


@mutation("a heartbeat carries a commit index beyond what is known to match")
def heartbeat_commits_unmatched() -> AbstractContextManager[object]:
    original = Raft._handle_heartbeat

    def mutated(self: Raft, message: raftpb.Message) -> None:
        message.commit = min(message.commit, self.log.last_index())
        original(self, message)

    @contextmanager
    def both() -> Iterator[None]:
        def broadcast(self: Raft) -> None:
            context = self._read_only.context()
            for node in self.tracker.progress:
                if node != self.id:
                    self._send(
                        raftpb.MsgHeartbeat,
                        node,
                        commit=self.log.committed,
                        context=context or None,
                    )

        with (
            patch.object(Raft, "_broadcast_heartbeat", broadcast),
            patch.object(Raft, "_handle_heartbeat", mutated),
        ):
            yield

    return both()


@mutation("appends of a deposed leader are accepted (thesis 3.3)")
def old_leader_obeyed() -> AbstractContextManager[object]:
    original = Raft._meet_lower_term

    def mutated(self: Raft, message: raftpb.Message) -> None:
        if message.type == raftpb.MsgApp and self.role is StateRole.FOLLOWER:
            self._handle_append(message)
        else:
            original(self, message)

    return patch.object(Raft, "_meet_lower_term", mutated)


@mutation("a leader counts its own entry before it is on its disk")
def leader_counts_itself_early() -> AbstractContextManager[object]:
    original = Raft._append

    def mutated(self: Raft, entries: Sequence[raftpb.Entry]) -> bool:
        taken = original(self, entries)
        if taken and self.id in self.tracker.progress:
            self.tracker.progress[self.id].maybe_update(self.log.last_index())
        return taken

    return patch.object(Raft, "_append", mutated)


@mutation("a rejected append counts as an acknowledged one")
def rejection_acknowledges() -> AbstractContextManager[object]:
    original = Raft._on_append_response

    def mutated(self: Raft, message: raftpb.Message) -> None:
        message.reject = False
        message.index = min(message.index, self.log.last_index())
        original(self, message)

    return patch.object(Raft, "_on_append_response", mutated)


@mutation("entries are applied before they are committed")
def applied_uncommitted() -> AbstractContextManager[object]:
    def mutated(self: RaftLog, _allow_unstable: bool) -> int:
        return self.unstable.offset - 1

    return patch.object(RaftLog, "max_appliable", mutated)


@mutation("room in the in-flight window is never given back")
def window_never_freed() -> AbstractContextManager[object]:
    return patch.object(Inflights, "free_up_to", lambda *_: None)


@mutation("after a rejection the leader goes on where it was")
def no_backtracking() -> AbstractContextManager[object]:
    return patch.object(Progress, "maybe_decrease_to", lambda *_: False)


@mutation("a finished write of a past term counts for what has replaced it since")
def stale_write_counts() -> AbstractContextManager[object]:
    def mutated(self: Unstable, index: int, _term: int) -> None:
        position = index - self.offset
        if 0 <= position < len(self.entries):
            del self.entries[: position + 1]
            self.offset = index + 1
            self.in_progress = max(self.in_progress, self.offset)

    return patch.object(Unstable, "stable_to", mutated)


# Snapshots


@mutation("a snapshot replaces the log but not the configuration")
def snapshot_without_configuration() -> AbstractContextManager[object]:
    original = Raft._restore

    def mutated(self: Raft, snapshot: raftpb.Snapshot) -> bool:
        configuration, progress = self.tracker.configuration, self.tracker.progress
        restored = original(self, snapshot)
        if restored and configuration.voters:
            self.tracker.switch_to(configuration, progress)
        return restored

    return patch.object(Raft, "_restore", mutated)


# Membership


@mutation("a joint configuration decides by the majority of its new half (thesis 4.3)")
def joint_by_one_half() -> AbstractContextManager[object]:
    @contextmanager
    def both() -> Iterator[None]:
        def index(incoming: Any, _outgoing: Any, acknowledged: Any) -> int:
            return quorum.majority_committed_index(incoming, acknowledged)

        def vote(incoming: Any, _outgoing: Any, votes: Any) -> quorum.VoteResult:
            return quorum.majority_vote(incoming, votes)

        with (
            patch.object(quorum, "joint_committed_index", index),
            patch.object(quorum, "joint_vote", vote),
        ):
            yield

    return both()


@mutation("learners count towards the quorum (thesis 4.2.1)")
def learners_vote() -> AbstractContextManager[object]:
    def mutated(self: Tracker, acknowledged: dict[int, int]) -> int:
        configuration = self.configuration
        return quorum.joint_committed_index(
            configuration.voters | configuration.learners,
            configuration.voters_outgoing,
            acknowledged,
        )

    return patch.object(Tracker, "quorum_index", mutated)


@mutation("a leader makes a configuration effective when it appends it, and never takes it back")
def configuration_at_append() -> AbstractContextManager[object]:
    original = Raft._append
    applied = RawNode.apply_conf_change

    @contextmanager
    def both() -> Iterator[None]:
        def append(self: Raft, entries: Sequence[raftpb.Entry]) -> bool:
            taken = original(self, entries)
            if taken:
                for entry in entries:
                    change = confchange.from_entry(entry)
                    if change is not None:
                        self.apply_conf_change(change)
                        self._config_done = entry.Index  # type: ignore[attr-defined]
            return taken

        def apply(self: RawNode, change: confchange.ConfChange) -> raftpb.ConfState:
            if self._raft.role is StateRole.LEADER and hasattr(self._raft, "_config_done"):
                return self._raft.configuration.conf_state()
            return applied(self, change)

        with (
            patch.object(Raft, "_append", append),
            patch.object(RawNode, "apply_conf_change", apply),
        ):
            yield

    return both()


@mutation("a second change is taken while the first is not applied (thesis 4.1)")
def two_changes_at_once() -> AbstractContextManager[object]:
    def mutated(self: Raft, change: raftpb.ConfChangeV2) -> bool:
        return self.configuration.joint == (not change.changes)

    return patch.object(Raft, "_change_allowed", mutated)


@mutation("a new leader takes changes before it has applied those that it inherited")
def inherited_change_overlooked() -> AbstractContextManager[object]:
    original = Raft._become_leader

    def mutated(self: Raft) -> None:
        original(self)
        self.pending_change_index = 0

    return patch.object(Raft, "_become_leader", mutated)


@mutation("several voters change at once without a joint configuration")
def many_changes_without_joint() -> AbstractContextManager[object]:
    def mutated(self: confchange.Changer, change: raftpb.ConfChangeV2) -> confchange.Changed:
        if not change.changes:
            return self.leave_joint()
        self._operate(change.changes)
        return self._result(auto_leave=False)

    return patch.object(confchange.Changer, "apply", mutated)


@mutation("a node stands for election with a committed change not yet applied")
def election_with_old_configuration() -> AbstractContextManager[object]:
    return patch.object(Raft, "_has_unapplied_change", lambda _self: False)


# Reads


@mutation("a leader answers reads without asking whether it still leads (thesis 6.4)")
def read_without_quorum() -> AbstractContextManager[object]:
    def mutated(self: Raft, message: raftpb.Message) -> None:
        self._answer_read(message, self.log.committed)

    return patch.object(Raft, "_confirm_read", mutated)


@mutation("a leader answers reads before it has committed in its term (thesis 6.4)")
def read_before_own_commit() -> AbstractContextManager[object]:
    return patch.object(Raft, "_lead_read", lambda self, message: self._confirm_read(message))


# What the core asks of its surroundings

environment(
    "messages before fsync", "votes and acknowledgements leave unsynced", sync_before_send=False
)
environment(
    "snapshot acknowledged early", "a snapshot is acknowledged unsynced", sync_snapshot=False
)
environment("vote not persisted", "the vote is not written at all", persist_vote=False)
environment(
    "id reused after a wipe",
    "a node whose disk was lost comes back under its old id",
    new_id_after_wipe=False,
)
environment(
    "old disk believed",
    "a node goes on with an older copy of its disk",
    notices_old_disk=False,
)
environment(
    "removed nodes stop at once",
    "removed nodes stop before those that stay have applied their removal",
    lingers=False,
)
