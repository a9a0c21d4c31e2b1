"""Membership changes: from one valid configuration to the next, or a refusal.

Two protocols of the Raft thesis: one voter at a time (section 4.1, `simple`), and joint consensus
(section 4.3, `enter_joint` and `leave_joint`) for any change at once. A change is a
`raftpb.ConfChangeV2`; the older `raftpb.ConfChange` is the same with a single operation.
"""

from collections.abc import Callable, Iterable

from consortium.raft.tracker import Configuration, Inflights, Progress
from consortium.wire import raftpb_pb2 as raftpb

type ConfChange = raftpb.ConfChange | raftpb.ConfChangeV2
type Changed = tuple[Configuration, dict[int, Progress]]


class ConfChangeRefused(ValueError):
    """The change doesn't lead from the active configuration to a valid one."""


def as_v2(change: ConfChange) -> raftpb.ConfChangeV2:
    """Return the change in its general form."""
    if isinstance(change, raftpb.ConfChangeV2):
        return change
    return raftpb.ConfChangeV2(
        changes=[raftpb.ConfChangeSingle(type=change.type, node_id=change.node_id)],
        context=change.context,
    )


def entry_for(change: ConfChange | None) -> raftpb.Entry:
    """Return the log entry that carries `change`; None leaves a joint configuration.

    The entry that leaves has no data, so that no limit on sizes can ever refuse it.
    """
    if change is None:
        return raftpb.Entry(Type=raftpb.EntryConfChangeV2)
    kind = (
        raftpb.EntryConfChange
        if isinstance(change, raftpb.ConfChange)
        else raftpb.EntryConfChangeV2
    )
    return raftpb.Entry(Type=kind, Data=change.SerializeToString())


def from_entry(entry: raftpb.Entry) -> ConfChange | None:
    """Return the membership change that `entry` carries, or None for an ordinary entry.

    Raises:
        google.protobuf.message.DecodeError: the entry's data is not a membership change.
    """
    if entry.Type == raftpb.EntryNormal:
        return None
    if entry.Type == raftpb.EntryConfChange:
        return raftpb.ConfChange.FromString(entry.Data)
    return raftpb.ConfChangeV2.FromString(entry.Data)


def leaves_joint(change: raftpb.ConfChangeV2) -> bool:
    """Say whether the change does nothing but end a joint configuration."""
    return not change.changes and change.transition == raftpb.ConfChangeTransitionAuto


def uses_joint(change: raftpb.ConfChangeV2) -> bool:
    """Say whether the change goes through a joint configuration: asked for, or more than one."""
    return change.transition != raftpb.ConfChangeTransitionAuto or len(change.changes) > 1


class Changer:
    """Computes configurations; what it was given stays as it was."""

    def __init__(
        self,
        configuration: Configuration,
        progress: dict[int, Progress],
        last_index: int,
        new_inflights: Callable[[], Inflights],
    ) -> None:
        self._before = configuration
        self._voters = set(configuration.voters)
        self._outgoing = set(configuration.voters_outgoing)
        self._learners = set(configuration.learners)
        self._learners_next = set(configuration.learners_next)
        # Copies, as is_learner changes before the result is known to be valid.
        self._progress = {node: known.copy() for node, known in progress.items()}
        self._last_index = last_index
        self._new_inflights = new_inflights
        self._check(configuration)

    def apply(self, change: raftpb.ConfChangeV2) -> Changed:
        """Carry out `change` by the protocol that it asks for.

        Raises:
            ConfChangeRefused: the change is not possible here.
        """
        if leaves_joint(change):
            return self.leave_joint()
        if uses_joint(change):
            explicit = change.transition == raftpb.ConfChangeTransitionJointExplicit
            return self.enter_joint(change.changes, auto_leave=not explicit)
        return self.simple(change.changes)

    def simple(self, changes: Iterable[raftpb.ConfChangeSingle]) -> Changed:
        """Change at most one voter, directly."""
        if self._before.joint:
            raise ConfChangeRefused("can't apply simple config change in joint config")
        self._operate(changes)
        if len(self._before.voters ^ self._voters) > 1:
            raise ConfChangeRefused("more than one voter changed without entering joint config")
        return self._result(auto_leave=False)

    def enter_joint(
        self, changes: Iterable[raftpb.ConfChangeSingle], *, auto_leave: bool
    ) -> Changed:
        """Make the present voters the outgoing half, and change the incoming half."""
        if self._before.joint:
            raise ConfChangeRefused("config is already joint")
        if not self._voters:
            raise ConfChangeRefused("can't make a zero-voter config joint")
        self._outgoing = set(self._voters)
        self._operate(changes)
        return self._result(auto_leave=auto_leave)

    def leave_joint(self) -> Changed:
        """Drop the outgoing half; voters that were to become learners do so now."""
        if not self._before.joint:
            raise ConfChangeRefused("can't leave a non-joint config")
        for node in self._learners_next:
            self._learners.add(node)
            self._progress[node].is_learner = True
        self._learners_next.clear()
        for node in self._outgoing - self._voters - self._learners:
            self._progress.pop(node, None)
        self._outgoing.clear()
        return self._result(auto_leave=False)

    def _operate(self, changes: Iterable[raftpb.ConfChangeSingle]) -> None:
        operations: dict[int, Callable[[int], None]] = {
            raftpb.ConfChangeAddNode: self._make_voter,
            raftpb.ConfChangeAddLearnerNode: self._make_learner,
            raftpb.ConfChangeRemoveNode: self._remove,
            raftpb.ConfChangeUpdateNode: lambda _node: None,
        }
        for change in changes:
            # A zero id is what an application leaves of a change that it decided not to make.
            if change.node_id:
                operations[change.type](change.node_id)
        if not self._voters:
            raise ConfChangeRefused("removed all voters")

    def _make_voter(self, node: int) -> None:
        known = self._progress.get(node)
        if known is None:
            self._begin(node, is_learner=False)
        else:
            known.is_learner = False
            self._learners.discard(node)
            self._learners_next.discard(node)
        self._voters.add(node)

    def _make_learner(self, node: int) -> None:
        known = self._progress.get(node)
        if known is None:
            self._begin(node, is_learner=True)
            self._learners.add(node)
            return
        if known.is_learner:
            return
        self._remove(node)
        self._progress[node] = known
        if node in self._outgoing:
            self._learners_next.add(node)
        else:
            known.is_learner = True
            self._learners.add(node)

    def _remove(self, node: int) -> None:
        if node not in self._progress:
            return
        self._voters.discard(node)
        self._learners.discard(node)
        self._learners_next.discard(node)
        if node not in self._outgoing:
            del self._progress[node]

    def _begin(self, node: int, *, is_learner: bool) -> None:
        # Probing starts at our last entry: the newcomer answers where its log really ends. It
        # counts as active at first, else the next check of the quorum could depose the leader
        # before the newcomer had a chance to say a word.
        self._progress[node] = Progress(
            0,
            max(self._last_index, 1),
            self._new_inflights(),
            is_learner=is_learner,
            recently_active=True,
        )

    def _result(self, *, auto_leave: bool) -> Changed:
        configuration = Configuration(
            voters=frozenset(self._voters),
            voters_outgoing=frozenset(self._outgoing),
            learners=frozenset(self._learners),
            learners_next=frozenset(self._learners_next),
            auto_leave=auto_leave,
        )
        self._check(configuration)
        return configuration, self._progress

    def _check(self, configuration: Configuration) -> None:
        progress = self._progress
        for node in configuration.all_voters | configuration.learners | configuration.learners_next:
            if node not in progress:
                raise ConfChangeRefused(f"no progress for {node}")
        for node in configuration.learners_next:
            if node not in configuration.voters_outgoing:
                raise ConfChangeRefused(f"{node} is to become a learner but does not vote now")
            if progress[node].is_learner:
                raise ConfChangeRefused(f"{node} is to become a learner but is one already")
        for node in configuration.learners:
            if node in configuration.all_voters:
                raise ConfChangeRefused(f"{node} is both voter and learner")
            if not progress[node].is_learner:
                raise ConfChangeRefused(f"{node} is a learner but not tracked as one")
        if not configuration.joint and (configuration.learners_next or configuration.auto_leave):
            raise ConfChangeRefused("a configuration that is not joint has nothing to leave")


def restore(
    state: raftpb.ConfState, last_index: int, new_inflights: Callable[[], Inflights]
) -> Changed:
    """Return the configuration that `state` (of a snapshot or of storage) describes.

    Raises:
        ConfChangeRefused: `state` describes no valid configuration.
    """

    def single(kind: int, node: int) -> raftpb.ConfChangeSingle:
        return raftpb.ConfChangeSingle(type=kind, node_id=node)  # type: ignore[arg-type]

    wanted = [single(raftpb.ConfChangeAddNode, node) for node in state.voters]
    wanted += [
        single(raftpb.ConfChangeAddLearnerNode, node)
        for node in (*state.learners, *state.learners_next)
    ]
    changed: Changed = (Configuration(), {})
    if not state.voters_outgoing:
        for change in wanted:
            changed = Changer(*changed, last_index, new_inflights).simple([change])
        return changed
    # First what is to become the outgoing half, one by one; then in one joint step everything of
    # it out and everything wanted in.
    for node in state.voters_outgoing:
        add = single(raftpb.ConfChangeAddNode, node)
        changed = Changer(*changed, last_index, new_inflights).simple([add])
    removed = [single(raftpb.ConfChangeRemoveNode, node) for node in state.voters_outgoing]
    return Changer(*changed, last_index, new_inflights).enter_joint(
        removed + wanted, auto_leave=state.auto_leave
    )
