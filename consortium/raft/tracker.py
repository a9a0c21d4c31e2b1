"""What a node knows of the others: the configuration, each peer's progress, the votes.

A leader keeps one `Progress` per peer. It is a small state machine of its own:

    PROBE      the end of the peer's log is not known; one append at a time, then wait
    REPLICATE  appends are pipelined, up to the limits of `Inflights`
    SNAPSHOT   the peer needs what was compacted away; nothing is sent until it has the snapshot
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

from consortium.raft import quorum
from consortium.wire import raftpb_pb2 as raftpb


class ProgressState(Enum):
    """How a leader replicates to a peer."""

    PROBE = "StateProbe"
    REPLICATE = "StateReplicate"
    SNAPSHOT = "StateSnapshot"


class Inflights:
    """The window of appends sent and not yet acknowledged, bounded in messages and in bytes.

    The bound in bytes is soft: the message that crosses it is let through, the next one waits.
    """

    __slots__ = ("_window", "bytes", "max_bytes", "max_messages")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.bytes = 0
        self._window: deque[tuple[int, int]] = deque()

    def __len__(self) -> int:
        return len(self._window)

    @property
    def full(self) -> bool:
        return len(self._window) >= self.max_messages or (
            self.max_bytes != 0 and self.bytes >= self.max_bytes
        )

    def add(self, last_index: int, size: int) -> None:
        """Note an append whose last entry is `last_index`; ask `full` first."""
        assert not self.full, "an append was sent although the in-flight window is full"
        self._window.append((last_index, size))
        self.bytes += size

    def free_up_to(self, index: int) -> None:
        """Forget the appends that `index` acknowledges."""
        window = self._window
        while window and window[0][0] <= index:
            self.bytes -= window.popleft()[1]

    def clear(self) -> None:
        self._window.clear()
        self.bytes = 0


class Progress:
    """How far one peer has come, as the leader sees it. Invariant: match < next."""

    __slots__ = (
        "flow_paused",
        "inflights",
        "is_learner",
        "match",
        "next",
        "pending_snapshot",
        "recently_active",
        "sent_commit",
        "state",
    )

    def __init__(
        self,
        match: int,
        next_index: int,
        inflights: Inflights,
        *,
        is_learner: bool = False,
        recently_active: bool = False,
    ) -> None:
        self.match = match
        """The peer's log equals ours up to here."""
        self.next = next_index
        """The next index to send; everything in (match, next) is under way."""
        self.sent_commit = 0
        """The highest commit index sent; may fall back when a message is known to be lost."""
        self.state = ProgressState.PROBE
        self.pending_snapshot = 0
        self.recently_active = recently_active
        """Heard of since the last check of the quorum."""
        self.flow_paused = False
        """No append until a heartbeat is answered: a probe is out or the window is full."""
        self.inflights = inflights
        self.is_learner = is_learner

    def copy(self) -> Progress:
        """Return a copy that shares the in-flight window."""
        other = Progress.__new__(Progress)
        for name in Progress.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    @property
    def paused(self) -> bool:
        return self.flow_paused or self.state is ProgressState.SNAPSHOT

    def become_probe(self) -> None:
        if self.state is ProgressState.SNAPSHOT:
            # The snapshot arrived: go on right after it. Where it failed, the caller has set
            # pending_snapshot to 0 first.
            pending = self.pending_snapshot
            self._reset(ProgressState.PROBE)
            self.next = max(self.match + 1, pending + 1)
        else:
            self._reset(ProgressState.PROBE)
            self.next = self.match + 1
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def become_replicate(self) -> None:
        self._reset(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        self._reset(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def sent_entries(self, count: int, size: int) -> None:
        """Note that an append with `count` entries of `size` bytes in all has been sent."""
        if self.state is ProgressState.REPLICATE:
            if count:
                self.next += count
                self.inflights.add(self.next - 1, size)
            self.flow_paused = self.inflights.full
        elif count:
            self.flow_paused = True

    def can_bump_commit(self, commit: int) -> bool:
        """Say whether telling the peer of `commit` now can move its own commit index."""
        return commit > self.sent_commit and self.sent_commit < self.next - 1

    def maybe_update(self, index: int) -> bool:
        """Take an acknowledgement up to `index`; False when it says nothing new."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.flow_paused = False
        return True

    def maybe_decrease_to(self, rejected: int, hint: int) -> bool:
        """Take a rejection of the append after `rejected`; False when it is an old one.

        `hint` is where the logs may match at best.
        """
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
        else:
            # Probes go out one at a time, so any other index is an answer to an older one.
            if self.next - 1 != rejected:
                return False
            self.next = max(min(rejected, hint + 1), self.match + 1)
            self.flow_paused = False
        self.sent_commit = min(self.sent_commit, self.next - 1)
        return True

    def _reset(self, state: ProgressState) -> None:
        self.flow_paused = False
        self.pending_snapshot = 0
        self.state = state
        self.inflights.clear()

    def __str__(self) -> str:
        words = [self.state.value, f"match={self.match}", f"next={self.next}"]
        if self.is_learner:
            words.append("learner")
        if self.paused:
            words.append("paused")
        if self.pending_snapshot:
            words.append(f"pendingSnap={self.pending_snapshot}")
        if not self.recently_active:
            words.append("inactive")
        if self.inflights:
            words.append(f"inflight={len(self.inflights)}{'[full]' if self.inflights.full else ''}")
        return " ".join(words)


def _ids(ids: frozenset[int]) -> str:
    return "(" + " ".join(f"{node:x}" for node in sorted(ids)) + ")"


@dataclass(frozen=True, slots=True)
class Configuration:
    """Who votes and who only learns. Immutable; changes come from `confchange`.

    `voters_outgoing` is not empty exactly while the configuration is joint. A voter that is to
    become a learner but still votes in the outgoing half waits in `learners_next`, so that no
    node is ever voter and learner at once.
    """

    voters: frozenset[int] = frozenset()
    voters_outgoing: frozenset[int] = frozenset()
    learners: frozenset[int] = frozenset()
    learners_next: frozenset[int] = frozenset()
    auto_leave: bool = False

    @property
    def joint(self) -> bool:
        return bool(self.voters_outgoing)

    @property
    def all_voters(self) -> frozenset[int]:
        return self.voters | self.voters_outgoing

    def conf_state(self) -> raftpb.ConfState:
        return raftpb.ConfState(
            voters=sorted(self.voters),
            voters_outgoing=sorted(self.voters_outgoing),
            learners=sorted(self.learners),
            learners_next=sorted(self.learners_next),
            auto_leave=self.auto_leave,
        )

    def __str__(self) -> str:
        text = f"voters={_ids(self.voters)}"
        if self.voters_outgoing:
            text += f"&&{_ids(self.voters_outgoing)}"
        if self.learners:
            text += f" learners={_ids(self.learners)}"
        if self.learners_next:
            text += f" learners_next={_ids(self.learners_next)}"
        if self.auto_leave:
            text += " autoleave"
        return text


class Tracker:
    """The active configuration with everybody's progress, and the votes of an election."""

    def __init__(self, max_inflight_messages: int, max_inflight_bytes: int) -> None:
        self.max_inflight_messages = max_inflight_messages
        self.max_inflight_bytes = max_inflight_bytes
        self.votes: dict[int, bool] = {}
        self.configuration = Configuration()
        self.progress: dict[int, Progress] = {}

    def switch_to(self, configuration: Configuration, progress: dict[int, Progress]) -> None:
        """Make `configuration` the active one; peers are kept (and visited) in order of id."""
        self.configuration = configuration
        self.progress = {node: progress[node] for node in sorted(progress)}

    def new_inflights(self) -> Inflights:
        return Inflights(self.max_inflight_messages, self.max_inflight_bytes)

    @property
    def is_singleton(self) -> bool:
        """Say whether one voter alone makes every decision."""
        return len(self.configuration.voters) == 1 and not self.configuration.joint

    def committed(self) -> int:
        """Return the index that a quorum has acknowledged."""
        matches = {node: progress.match for node, progress in self.progress.items()}
        return self.quorum_index(matches)

    def quorum_index(self, acknowledged: dict[int, int]) -> int:
        configuration = self.configuration
        return quorum.joint_committed_index(
            configuration.voters, configuration.voters_outgoing, acknowledged
        )

    def quorum_active(self) -> bool:
        """Say whether a quorum has been heard of since the activity flags were last cleared."""
        active = {
            node: progress.recently_active
            for node, progress in self.progress.items()
            if not progress.is_learner
        }
        return self._result(active) is quorum.VoteResult.WON

    def record_vote(self, node: int, granted: bool) -> None:
        """Note a vote; the first word of a node counts."""
        self.votes.setdefault(node, granted)

    def tally(self) -> tuple[int, int, quorum.VoteResult]:
        """Return the votes granted and refused by present voters, and the outcome."""
        cast = [
            self.votes[node]
            for node, progress in self.progress.items()
            if not progress.is_learner and node in self.votes
        ]
        granted = sum(cast)
        return granted, len(cast) - granted, self._result(self.votes)

    def _result(self, votes: dict[int, bool]) -> quorum.VoteResult:
        configuration = self.configuration
        return quorum.joint_vote(configuration.voters, configuration.voters_outgoing, votes)
