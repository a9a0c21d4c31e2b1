"""What a node knows, and what every role does with it: notes, messages, the change of roles."""

from collections import deque
from collections.abc import Callable
from enum import Enum

from consortium.raft.config import NONE, Config
from consortium.raft.log import RaftLog
from consortium.raft.messages import new_message, sender_of
from consortium.raft.reads import ReadOnly, ReadState
from consortium.raft.storage import NO_LIMIT
from consortium.raft.tracker import Configuration, Progress, Tracker
from consortium.wire import raftpb_pb2 as raftpb


class ProposalDropped(Exception):
    """The proposal was not taken and will not be; propose again later, or elsewhere."""


class StateRole(Enum):
    """The part a node plays."""

    FOLLOWER = "StateFollower"
    CANDIDATE = "StateCandidate"
    LEADER = "StateLeader"
    PRE_CANDIDATE = "StatePreCandidate"


type Handlers = dict[int, Callable[[raftpb.Message], None]]
"""What to do with each kind of message."""


class NodeState:
    """One node's state. What the roles do is in the classes that build on it, up to `core.Raft`."""

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

        self._handlers: dict[StateRole, Handlers]
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
