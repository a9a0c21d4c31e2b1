"""A Raft cluster with a network, disks, clocks and clients, in one thread and from one seed.

Time is virtual: a heap of events, each with its moment. A seed gives first a *plan*, the list of
acts (crashes, cuts, proposals, membership changes ...) with their moments, and then, from other
generators, the timing of everything else; so acts can be taken out of a failing plan and the rest
runs on as before, which is how a failure is shrunk.

What must hold is checked after every event, on the node that it touched:

- election safety: of a term there is one leader;
- log matching: an (index, term) has the same data and the same predecessor in every log;
- leader completeness: a leader has every entry committed in an earlier term;
- state machine safety: what is committed or applied at an index is the same everywhere, and so is
  the configuration that results;
- durability: when an entry is first committed, a quorum has it on disk;
- reads: a read sees everything that was applied anywhere before it was asked;

and at the end, when all faults are over, the cluster takes proposals again and all its members
reach the same state.
"""

import heapq
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple
from zlib import crc32

from consortium.raft import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    Config,
    InvariantBroken,
    MessageRefused,
    ProposalDropped,
    RawNode,
    Ready,
    StateRole,
    confchange,
)
from consortium.raft.core import Raft
from consortium.raft.messages import sender_of
from consortium.raft.witness import Witness, acknowledged_log_term
from consortium.wire import raftpb_pb2 as raftpb
from tests.simulation.disk import AppState, Disk, DiskFailed

ELECTION_TICK = 8
HEARTBEAT_TICK = 2
STAGES = ("taken", "written", "synced", "half sent", "sent", "applied")


class Violation(AssertionError):
    """Something that must hold does not."""


class Act(NamedTuple):
    """One act of the plan: what happens when; `value` picks whom and how."""

    time: float
    kind: str
    value: int


# What may happen, and how often in proportion.
ACTS = {
    "propose": 40,
    "crash": 6,
    "cut": 5,
    "heal": 4,
    "change": 11,
    "compact": 10,
    "transfer": 3,
    "read": 5,
    "pause": 2,
    "disk": 3,
    "wipe": 3,
    "campaign": 2,
    "weather": 4,
    "coup": 4,
    "usurp": 4,
}


# In every seventh seed leaders follow each other so fast that logs come to differ all the time.
STRIFE = {"propose": 30, "coup": 25, "crash": 8, "usurp": 5, "weather": 3, "compact": 2}


@dataclass(frozen=True, slots=True)
class Options:
    """What a simulation is like, apart from its seed."""

    nodes: int = 3
    ticks: int = 130
    """How long things go wrong; afterwards there is calm."""
    acts: int = 90
    calm_ticks: int = 500
    """How long the cluster may take, once calm, until all is well."""


@dataclass(slots=True)
class Features:
    """Habits of the environment that the mutation tests break."""

    sync_before_send: bool = True
    sync_snapshot: bool = True
    persist_vote: bool = True
    new_id_after_wipe: bool = True
    notices_old_disk: bool = True
    """A node whose disk was replaced by an older copy asks the others what it promised them."""
    leaves_old_connections: bool = True
    """Whoever was asked takes nothing any more that the asker's earlier process had sent."""
    drops_compacted: bool = True
    """A leader drops acknowledgements of entries that it has compacted."""
    lingers: bool = True
    """A removed node answers on until the others have applied its removal."""


class Node:
    """One machine: its disk, and the Raft node on it while it is up."""

    def __init__(self, node: int, disk: Disk, rng: Random) -> None:
        self.id = node
        self.disk = disk
        self.rng = rng
        self.raw: RawNode | None = None
        self.life = 0
        """Counts restarts: what was under way for an earlier life is void."""
        self.connection = 0
        """Counts the disks that it had: what was sent from an earlier one is old."""
        self.lost = False
        """Its disk is gone for ever."""
        self.removed = False
        """It knows that it is no member and has stopped."""
        self.busy = False
        self.crash_at = ""
        self.paused_until = 0.0
        self.tick_length = 1.0
        self.seen_commit = 0
        self.witnesses: dict[int, Witness] = {}
        """What it remembers of the others' promises, durably."""
        self.append_work: list[raftpb.Message] = []
        self.apply_work: list[raftpb.Message] = []

    @property
    def raft(self) -> Raft:
        assert self.raw is not None
        return self.raw._raft


@dataclass(slots=True)
class Committed:
    """One committed entry, as first seen."""

    term: int
    by_term: int
    """The term of the leader that committed it."""
    digest: int | None = None
    conf_state: raftpb.ConfState | None = None


@dataclass(slots=True)
class Outcome:
    """How a simulation went."""

    seed: int
    violation: str = ""
    events: int = 0
    committed: int = 0
    terms: int = 0
    acts: list[Act] = field(default_factory=list)


def _is_member(node: int, state: raftpb.ConfState) -> bool:
    return any(node in ids for ids in (state.voters, state.voters_outgoing, state.learners))


def plan(seed: int, options: Options) -> list[Act]:
    """Return the acts of a seed."""
    rng = Random(f"plan {seed}")
    if _is_strife(seed):
        kinds = rng.choices(list(STRIFE), list(STRIFE.values()), k=options.acts)
        return _acts(kinds, rng, options)
    # Every seed has its own climate: some kinds of trouble are frequent, others absent.
    weights = {
        kind: weight * rng.choice((0, 0.5, 1, 1, 2, 4)) if kind != "propose" else weight
        for kind, weight in ACTS.items()
    }
    kinds = rng.choices(list(weights), list(weights.values()), k=options.acts)
    return _acts(kinds, rng, options)


def _is_strife(seed: int) -> bool:
    return seed % 7 == 5


def _acts(kinds: Sequence[str], rng: Random, options: Options) -> list[Act]:
    """Give each act its moment; the first ticks are for the first election."""
    return sorted(Act(rng.uniform(12, options.ticks), kind, rng.getrandbits(32)) for kind in kinds)


class Simulation:
    """One run."""

    def __init__(
        self,
        seed: int,
        options: Options,
        acts: Sequence[Act] | None = None,
        features: Features | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.options = options
        self.seed = seed
        self.acts = plan(seed, options) if acts is None else list(acts)
        self.features = features or Features()
        self.now = 0.0
        self.events = 0
        self._log = log
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._sequence = 0
        self._net = Random(f"net {seed}")
        rng = Random(f"habits {seed}")
        self._async = rng.random() < 0.3
        self._pre_vote = rng.random() < 0.8
        self._check_quorum = rng.random() < 0.8
        self._step_down = rng.random() < 0.8
        self._haste = rng.choice((0.1, 0.3, 1.0))
        """How long crashes and cuts last, in proportion."""
        self._slow_stages = rng.choice((0.05, 0.2, 0.5))
        self._max_inflight = rng.choice((1, 2, 8, 256))
        self._max_size = rng.choice((0, 250, 100_000))
        if _is_strife(seed):
            self._max_size = 0  # one entry a message: a majority may have a part of a log
        self._drop = self._duplicate = 0.0
        self._latency = 0.3
        self._set_weather(rng)
        self._cuts: set[tuple[int, int]] = set()
        self.calm = False
        # What was seen, by the invariants.
        self._leaders: dict[int, int] = {}
        self._entries: dict[tuple[int, int], tuple[int, int]] = {}
        self._reads: dict[bytes, int] = {}
        self._next_payload = 0
        self._applied_anywhere = 1

        conf_state = raftpb.ConfState(voters=range(1, options.nodes + 1))
        initial = AppState(1, 1, 1, conf_state)
        self._committed = [Committed(0, 0), Committed(1, 0, 1, conf_state)]
        """By index; index 1 is where everybody starts, index 0 is nothing."""
        self.nodes: dict[int, Node] = {}
        for node in range(1, options.nodes + 1):
            self._add_node(node, initial)

    def say(self, text: str) -> None:
        if self._log is not None:
            self._log(f"{self.now:8.2f}  {text}")

    # The loop

    def run(self) -> None:
        """Run to the end.

        Raises:
            Violation: something that must hold does not.
        """
        for act in self.acts:
            self._at(act.time, self._act, act)
        self._at(self.options.ticks, self._begin_calm)
        deadline = self.options.ticks + self.options.calm_ticks
        self._done = False
        while self._heap and not self._done:
            self.now, _, what, arguments = heapq.heappop(self._heap)
            if self.now > deadline:
                break
            self.events += 1
            try:
                what(*arguments)
            except InvariantBroken as error:
                raise Violation(f"the core stopped: {error}") from error
        if not self._done:
            raise Violation("no progress after the faults were over: " + self._summary())

    def _at(self, time: float, what: Callable[..., None], *arguments: object) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (time, self._sequence, what, arguments))

    def _after(self, delay: float, what: Callable[..., None], *arguments: object) -> None:
        self._at(self.now + delay, what, *arguments)

    # Nodes

    def _add_node(self, node: int, initial: AppState | None = None) -> None:
        machine = Node(node, Disk(initial or AppState()), Random(f"node {self.seed} {node}"))
        self.nodes[node] = machine
        self._start(machine)

    def _start(self, node: Node) -> None:
        node.life += 1
        node.busy = False
        node.crash_at = ""
        node.append_work = []
        node.apply_work = []
        node.tick_length = node.rng.uniform(0.7, 1.4) if not self.calm else 1.0
        node.seen_commit = 0
        node.disk.failing_writes = 0
        node.raw = RawNode(
            Config(
                id=node.id,
                election_tick=ELECTION_TICK,
                heartbeat_tick=HEARTBEAT_TICK,
                storage=node.disk,
                random=node.rng,
                applied=node.disk.image.app.index,
                max_size_per_message=self._max_size,
                max_committed_size_per_ready=100,
                max_uncommitted_size=2_000,
                max_inflight_messages=self._max_inflight,
                check_quorum=self._check_quorum,
                pre_vote=self._pre_vote,
                step_down_on_removal=self._step_down,
                async_storage_writes=self._async,
            )
        )
        self.say(f"{node.id} starts")
        self._after(node.rng.random() * node.tick_length, self._tick, node, node.life)
        self._observe(node)

    def _crash(self, node: Node, down: float) -> None:
        if node.raw is None:
            return
        self.say(f"{node.id} crashes")
        node.raw = None
        node.life += 1
        node.disk.crash(node.rng)
        if not node.lost:
            self._after(down, self._restart, node, node.life)

    def _restart(self, node: Node, life: int) -> None:
        if node.life == life and not (node.lost or node.removed) and node.raw is None:
            self._start(node)

    def _tick(self, node: Node, life: int) -> None:
        if node.life != life:
            return
        if self.now >= node.paused_until:
            node.raft.tick()
            self._touched(node)
        self._after(node.tick_length, self._tick, node, life)

    def _touched(self, node: Node) -> None:
        self._observe(node)
        self._work(node)

    # Work: what a node does with its Ready

    def _work(self, node: Node) -> None:
        if node.raw is None or node.busy or not node.raw.has_ready():
            return
        node.busy = True
        stages = self._async_stages(node) if self._async else self._stages(node)
        self._go_on(node, node.life, stages)

    def _go_on(self, node: Node, life: int, stages: Generator[str]) -> None:
        """Do stages until one takes time, the node crashes, or the work is done."""
        if node.life != life:
            return
        if self.now < node.paused_until:
            self._at(node.paused_until, self._go_on, node, life, stages)
            return
        try:
            for stage in stages:
                self._observe(node)
                if node.crash_at == stage:
                    self._crash(node, node.rng.uniform(1, 25) * self._haste)
                    return
                if node.rng.random() < self._slow_stages and not self.calm:
                    self._after(node.rng.expovariate(2), self._go_on, node, life, stages)
                    return
        except DiskFailed:
            self.say(f"{node.id}'s disk fails")
            self._crash(node, node.rng.uniform(3, 25) * self._haste)
            return
        if node.life != life:
            return
        node.busy = False
        self._observe(node)
        self._work(node)

    def _stages(self, node: Node) -> Generator[str]:
        raw, disk = node.raw, node.disk
        assert raw is not None
        ready = raw.ready()
        self._check_entries(node, ready.entries)
        self._check_reads(ready)
        yield "taken"
        snapshot = self._installed(node, ready.snapshot)
        if ready.hard_state is not None or ready.entries or snapshot is not None:
            hard_state = ready.hard_state
            if hard_state is not None and not self.features.persist_vote:
                hard_state = raftpb.HardState(term=hard_state.term, commit=hard_state.commit)
            disk.write(hard_state, ready.entries, snapshot)
        yield "written"
        if self._must_sync(ready):
            disk.sync()
        yield "synced"
        half = len(ready.messages) // 2
        for message in ready.messages[:half]:
            self._send(node, message)
        if half:
            yield "half sent"
        for message in ready.messages[half:]:
            self._send(node, message)
        yield "sent"
        for entry in ready.committed_entries:
            self._apply(node, raw, entry)
            yield "applied"
        raw.advance()

    def _must_sync(self, ready: Ready) -> bool:
        if not self.features.sync_before_send:
            return False
        if ready.snapshot is not None:
            return self.features.sync_snapshot
        return ready.must_sync

    def _async_stages(self, node: Node) -> Generator[str]:
        raw = node.raw
        assert raw is not None
        ready = raw.ready()
        self._check_entries(node, ready.entries)
        self._check_reads(ready)
        yield "taken"
        for message in ready.messages:
            if message.to == LOCAL_APPEND_THREAD:
                node.append_work.append(message)
                if len(node.append_work) == 1:
                    self._after(self._write_time(node), self._append_work, node, node.life)
            elif message.to == LOCAL_APPLY_THREAD:
                node.apply_work.append(message)
                if len(node.apply_work) == 1:
                    self._after(self._write_time(node), self._apply_work, node, node.life)
            else:
                self._send(node, message)
        yield "sent"

    def _write_time(self, node: Node) -> float:
        return 0.01 if self.calm else node.rng.expovariate(1 / 0.3)

    def _append_work(self, node: Node, life: int) -> None:
        """Do the oldest write of the append thread."""
        if node.life != life:
            return
        message = node.append_work[0]
        try:
            hard_state = None
            if message.term or message.vote or message.commit:
                hard_state = raftpb.HardState(
                    term=message.term,
                    vote=message.vote if self.features.persist_vote else 0,
                    commit=message.commit,
                )
            has_snapshot = message.HasField("snapshot")
            snapshot = self._installed(node, message.snapshot if has_snapshot else None)
            node.disk.write(hard_state, message.entries, snapshot)
            if node.crash_at == "written":
                self._crash(node, node.rng.uniform(1, 25) * self._haste)
                return
            sync = self.features.sync_snapshot if has_snapshot else bool(message.responses)
            if sync and self.features.sync_before_send:
                node.disk.sync()
        except DiskFailed:
            self._crash(node, node.rng.uniform(3, 25) * self._haste)
            return
        self._respond(node, message)
        if node.life == life:
            node.append_work.pop(0)
            if node.append_work:
                self._after(self._write_time(node), self._append_work, node, life)

    def _apply_work(self, node: Node, life: int) -> None:
        if node.life != life or node.raw is None:
            return
        message = node.apply_work[0]
        for entry in message.entries:
            self._apply(node, node.raw, entry)
        self._respond(node, message)
        if node.life == life:
            node.apply_work.pop(0)
            if node.apply_work:
                self._after(self._write_time(node), self._apply_work, node, life)

    def _respond(self, node: Node, message: raftpb.Message) -> None:
        life = node.life
        for response in message.responses:
            if response.to != node.id:
                self._send(node, response)
            elif node.life == life and node.raw is not None:
                with suppress(MessageRefused):  # it is no member any more
                    node.raw.step(response)
                self._observe(node)
        self._work(node)

    def _installed(self, node: Node, snapshot: raftpb.Snapshot | None) -> AppState | None:
        """Return the application's state of a snapshot."""
        if snapshot is None:
            return None
        metadata = snapshot.metadata
        digest = int.from_bytes(snapshot.data)
        self._check_applied(node, metadata.index, metadata.term, digest, metadata.conf_state)
        return AppState(metadata.index, metadata.term, digest, metadata.conf_state)

    def _apply(self, node: Node, raw: RawNode, entry: raftpb.Entry) -> None:
        app = node.disk.image.app
        if entry.Index != app.index + 1:
            raise Violation(f"{node.id} applies {entry.Index} after {app.index}")
        conf_state = app.conf_state
        change = confchange.from_entry(entry)
        if change is not None:
            conf_state = raw.apply_conf_change(change)
        digest = crc32(b"%d %d %b" % (app.digest, entry.Term, entry.Data))
        self._check_applied(node, entry.Index, entry.Term, digest, conf_state)
        node.disk.apply(AppState(entry.Index, entry.Term, digest, conf_state))
        self._applied_anywhere = max(self._applied_anywhere, entry.Index)
        removed = change is not None and not _is_member(node.id, conf_state)
        if removed and (not self._step_down or node.rng.random() < 0.5):
            # Removed nodes are stopped, sooner or later; soon they must be where the leader would
            # otherwise stay in office.
            self._after(node.rng.uniform(0, 8), self._stop_removed, node, node.life)

    def _stop_removed(self, node: Node, life: int) -> None:
        state = node.disk.image.app.conf_state
        if node.life != life or _is_member(node.id, state):
            return
        if self.features.lingers and not self._can_do_without(node.id, state.voters):
            # Those that stay may need its vote to get out of the configuration that it is part of.
            self._after(1, self._stop_removed, node, life)
            return
        self.say(f"{node.id} was removed and stops")
        node.removed = True
        node.raw = None
        node.life += 1

    def _can_do_without(self, node: int, voters: Sequence[int]) -> bool:
        """Whether a majority of those that stay say that they have durably applied its removal."""
        done = 0
        for voter in voters:
            other = self.nodes[voter]
            if other.raw is None or _is_member(node, other.disk.image.app.conf_state):
                continue
            with suppress(DiskFailed):
                other.disk.sync()  # before it says so
                done += 1
        return done > len(voters) // 2

    # The network

    def _send(self, node: Node, message: raftpb.Message) -> None:
        rng = self._net
        copies = 1
        if (node.id, message.to) in self._cuts or rng.random() < self._drop:
            copies = 0
        elif rng.random() < self._duplicate:
            copies = 2
        if message.type == raftpb.MsgSnap:
            # The transport tells what became of a snapshot, sooner or later.
            self._after(rng.uniform(1, 6), self._report, node, node.life, message.to, copies > 0)
        elif not copies and rng.random() < 0.3:
            self._after(rng.random(), self._report_unreachable, node, node.life, message.to)
        for copy in range(copies):
            sent = message
            if copy:
                sent = raftpb.Message()
                sent.CopyFrom(message)
            delay = rng.expovariate(1 / self._latency)
            if rng.random() < 0.03 and not self.calm:
                delay += rng.uniform(0, 20)
            self._after(delay, self._deliver, sent, node.connection)

    def _deliver(self, message: raftpb.Message, connection: int) -> None:
        node = self.nodes.get(message.to)
        if node is None or node.raw is None:
            return
        newest = self.nodes[sender_of(message)].connection
        if self.features.leaves_old_connections and connection != newest:
            return
        if (sender_of(message), message.to) in self._cuts:
            return
        if self.now < node.paused_until:
            self._at(node.paused_until, self._deliver, message, connection)
            return
        log_term = acknowledged_log_term(node.raft, message)
        if log_term is None:
            if self.features.drops_compacted:
                return
            log_term = 0
        node.witnesses.setdefault(sender_of(message), Witness()).hear(message, log_term)
        try:
            node.raw.step(message)
        except ProposalDropped, MessageRefused:
            return
        self._touched(node)

    def _report(self, node: Node, life: int, to: int, ok: bool) -> None:
        if node.life == life and node.raw is not None:
            node.raw.report_snapshot(to, ok)
            self._touched(node)

    def _report_unreachable(self, node: Node, life: int, to: int) -> None:
        if node.life == life and node.raw is not None:
            node.raw.report_unreachable(to)
            self._touched(node)

    # What happens to them

    def _act(self, act: Act) -> None:
        getattr(self, "_act_" + act.kind)(Random(act.value))

    def _up(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.raw is not None]

    def _leader(self) -> Node | None:
        leaders = [node for node in self._up() if node.raft.role is StateRole.LEADER]
        return max(leaders, key=lambda node: node.raft.term) if leaders else None

    def _some_node(self, rng: Random) -> Node | None:
        """Pick the leader often, else anybody who is up."""
        leader = self._leader()
        up = self._up()
        if not up:
            return None
        chosen = rng.choice(up)
        return leader if leader is not None and rng.random() < 0.4 else chosen

    def _propose(self, node: Node | None) -> None:
        if node is None or node.raw is None:
            return
        self._next_payload += 1
        data = b"%d" % self._next_payload
        try:
            node.raw.propose(data.ljust(self._next_payload % 7 * 60, b"."))
        except ProposalDropped:
            return
        self._touched(node)

    def _act_propose(self, rng: Random) -> None:
        for _ in range(rng.choice((1, 1, 1, 3, 8))):
            self._propose(self._some_node(rng))

    def _act_crash(self, rng: Random) -> None:
        victims = [self._some_node(rng)]
        if rng.random() < 0.15:
            victims = [*self._up()]  # power failure
        for node in victims:
            if node is None:
                continue
            if rng.random() < 0.6:
                node.crash_at = rng.choice(STAGES)
            else:
                self._crash(node, rng.uniform(0.5, 30) * self._haste)

    def _act_cut(self, rng: Random) -> None:
        ids = list(self.nodes)
        cut: set[tuple[int, int]] = set()
        way = rng.random()
        if way < 0.4:  # one node from the rest, in one direction or both
            leader = self._leader()
            lone = leader.id if leader is not None and rng.random() < 0.5 else rng.choice(ids)
            sides = rng.choice(("in", "out", "both"))
            for other in ids:
                if sides != "out":
                    cut.add((other, lone))
                if sides != "in":
                    cut.add((lone, other))
            # Who asks a leader that may be one no more must get nothing, or the truth.
            self._after(rng.uniform(5, 30) * self._haste, self._read_at, self.nodes[lone])
        elif way < 0.75:  # two halves
            half = {node for node in ids if rng.random() < 0.5}
            cut = {(a, b) for a in ids for b in ids if (a in half) != (b in half)}
        else:  # single links, so that some nodes become bridges
            cut = {(rng.choice(ids), rng.choice(ids)) for _ in range(len(ids))}
        self._cuts |= cut
        self.say(f"cut: {sorted(cut)}")
        self._after(rng.uniform(3, 40) * self._haste, self._heal, cut)

    def _act_heal(self, _rng: Random) -> None:
        self._cuts.clear()

    def _heal(self, cut: set[tuple[int, int]]) -> None:
        self._cuts -= cut

    def _act_weather(self, rng: Random) -> None:
        self._set_weather(rng)

    def _set_weather(self, rng: Random) -> None:
        self._drop = rng.choice((0, 0, 0.02, 0.15))
        self._duplicate = rng.choice((0, 0.02, 0.2))
        self._latency = rng.choice((0.05, 0.3, 0.3, 1.5))

    def _act_compact(self, rng: Random) -> None:
        for node in self._up():
            if rng.random() < 0.6:
                node.disk.compact(node.disk.image.app.index - rng.choice((0, 1, 4)))

    def _act_transfer(self, rng: Random) -> None:
        leader, target = self._leader(), self._some_node(rng)
        if leader is not None and leader.raw is not None and target is not None:
            leader.raw.transfer_leader(target.id)
            self._touched(leader)

    def _act_campaign(self, rng: Random) -> None:
        node = self._some_node(rng)
        if node is not None:
            self._campaign(node)

    def _act_coup(self, rng: Random) -> None:
        """Let a leader that reaches hardly anybody take proposals, then replace it.

        This is how logs come to differ (Raft paper, figure 8).
        """
        leader = self._leader()
        if leader is None:
            return
        confidants = rng.sample(list(self.nodes), rng.choice((0, 1, 1)))
        cut = {(leader.id, node) for node in self.nodes if node not in confidants}
        self._cuts |= cut
        for _ in range(rng.choice((1, 2, 4))):
            self._propose(leader)
        others = [node for node in self._up() if node is not leader]
        if others:
            self._after(rng.uniform(0.2, 3), self._rise, leader, rng.choice(others), cut)

    def _rise(self, leader: Node, rival: Node, cut: set[tuple[int, int]]) -> None:
        self._heal(cut)
        self._crash(leader, leader.rng.uniform(0.5, 6))
        self._campaign(rival)

    def _act_usurp(self, rng: Random) -> None:
        """Cut the leader off, let another take its place, and ask the old one."""
        leader = self._leader()
        others = [node for node in self._up() if node is not leader]
        if leader is None or not others:
            return
        cut = {(leader.id, node) for node in self.nodes}
        cut |= {(node, leader.id) for node in self.nodes}
        self._cuts |= cut
        rival = rng.choice(others)
        self._after(rng.uniform(0.2, 3), self._campaign, rival)
        for _ in range(3):
            self._after(rng.uniform(2, 18), self._propose, rival)
            self._after(rng.uniform(3, 22), self._read_at, leader)
        self._after(rng.uniform(8, 25), self._heal, cut)

    def _campaign(self, node: Node) -> None:
        if node.raw is not None:
            node.raw.campaign()
            self._touched(node)

    def _act_read(self, rng: Random) -> None:
        node = self._some_node(rng)
        if node is not None:
            self._read_at(node)

    def _read_at(self, node: Node) -> None:
        if node.raw is not None:
            context = b"read %d" % len(self._reads)
            self._reads[context] = self._applied_anywhere
            node.raw.read_index(context)
            self._touched(node)

    def _act_pause(self, rng: Random) -> None:
        node = self._some_node(rng)
        if node is not None:
            node.paused_until = self.now + rng.uniform(1, 25)

    def _act_disk(self, rng: Random) -> None:
        node = self._some_node(rng)
        if node is not None:
            node.disk.failing_writes = rng.choice((1, 1, 3))

    def _act_wipe(self, rng: Random) -> None:
        """Take a voter's disk away for ever; never so many that a quorum would be gone."""
        node = self._some_node(rng)
        if node is None or not self._may_lose(node):
            return
        if rng.random() < 0.4 and self._restore_copy(node, rng):
            return
        self.say(f"{node.id} loses its disk")
        if not self.features.new_id_after_wipe:
            self._crash(node, 1)
            node.disk = Disk(AppState())
            node.disk.image = node.disk.durable = Disk(
                AppState(1, 1, 1, self._committed[1].conf_state or raftpb.ConfState())
            ).image
            return
        node.lost = True
        self._crash(node, 0)
        self._after(rng.uniform(2, 10), self._replace_lost)

    def _restore_copy(self, node: Node, rng: Random) -> bool:
        """Put an older copy in the disk's place; False if the node is to be given up instead.

        It may go on only if every other voter is up and none remembers a promise that is not on
        the copy.
        """
        copy = rng.choice(node.disk.copies) if node.disk.copies else None
        if copy is None:
            return False
        if self.features.notices_old_disk:
            state = node.disk.image.app.conf_state
            for voter in state.voters:
                other = self.nodes[voter]
                if other is node:
                    continue
                witness = other.witnesses.get(node.id, Witness())
                if other.raw is None or witness.contradiction(
                    voter,
                    copy.hard_state,
                    copy.offset + len(copy.entries),
                    lambda index, copy=copy: (  # type: ignore[misc]
                        copy.entries[index - copy.offset - 1].Term if index > copy.offset else 0
                    ),
                    copy=True,
                ):
                    return False
        self.say(f"{node.id} gets an older copy of its disk")
        self._crash(node, 1)
        node.disk.restore(copy)
        node.connection += 1
        return True

    def _may_lose(self, node: Node) -> bool:
        configurations = set()
        for one in self.nodes.values():
            if one.lost:
                continue
            image = one.disk.image
            state = image.app.conf_state
            configurations.add(state.SerializeToString(deterministic=True))
            entries: Iterable[raftpb.Entry] = image.entries
            if one.raw is not None:
                entries = [*entries, *one.raft.log.unstable.entries]
            if any(entry.Type and entry.Index > image.app.index for entry in entries):
                return False
            if one.disk.durable.app.conf_state != state:
                return False
        state = node.disk.image.app.conf_state
        return (
            len(configurations) == 1
            and len(state.voters) >= 3
            and not state.voters_outgoing
            and node.id in state.voters
            and not any(self.nodes[voter].lost for voter in state.voters)
        )

    def _replace_lost(self) -> None:
        """What an operator does: remove the lost node, and add a new one under a new id."""
        leader = self._leader()
        lost = self._lost_members()
        if leader is not None and lost:
            self._change(leader, [(raftpb.ConfChangeRemoveNode, lost[0])])
        if lost:
            self._after(5, self._replace_lost)

    def _lost_members(self) -> list[int]:
        leader = self._leader()
        if leader is None:
            return []
        members = leader.raft.configuration.all_voters | leader.raft.configuration.learners
        return [node for node in sorted(members) if self.nodes[node].lost]

    def _act_change(self, rng: Random) -> None:
        leader = self._leader()
        if leader is None or self._lost_members():
            return
        configuration = leader.raft.configuration
        if configuration.joint:
            self._change(leader, [])
            return
        voters, learners = sorted(configuration.voters), sorted(configuration.learners)
        changes = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            what = rng.random()
            if what < 0.35 and len(self.nodes) < self.options.nodes + 4:
                kind = rng.choice((raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode))
                changes.append((kind, self._new_node()))
            elif what < 0.55 and learners:
                changes.append((raftpb.ConfChangeAddNode, rng.choice(learners)))
            elif what < 0.75 and len(voters) > 2:
                victim = rng.choice(voters)
                voters.remove(victim)
                changes.append((raftpb.ConfChangeRemoveNode, victim))
            elif what < 0.9 and len(voters) > 2:
                victim = rng.choice(voters)
                voters.remove(victim)
                changes.append((raftpb.ConfChangeAddLearnerNode, victim))
            elif learners:
                changes.append((raftpb.ConfChangeRemoveNode, rng.choice(learners)))
        if changes:
            self._change(leader, changes, explicit=rng.random() < 0.3)

    def _new_node(self) -> int:
        node = max(self.nodes) + 1
        self._add_node(node)
        return node

    def _change(
        self,
        leader: Node,
        changes: Sequence[tuple[raftpb.ConfChangeType, int]],
        *,
        explicit: bool = False,
    ) -> None:
        change: confchange.ConfChange = raftpb.ConfChangeV2(
            changes=[raftpb.ConfChangeSingle(type=kind, node_id=node) for kind, node in changes]
        )
        if explicit and isinstance(change, raftpb.ConfChangeV2):
            change.transition = raftpb.ConfChangeTransitionJointExplicit
        elif len(changes) == 1:
            change = raftpb.ConfChange(type=changes[0][0], node_id=changes[0][1])
        assert leader.raw is not None
        try:
            leader.raw.propose_conf_change(change)
        except ProposalDropped:
            return
        self.say(f"{leader.id} proposes {changes}")
        self._touched(leader)

    # The end

    def _begin_calm(self) -> None:
        self.say("calm")
        self.calm = True
        self._cuts.clear()
        self._drop = self._duplicate = 0
        self._latency = 0.1
        for node in self.nodes.values():
            node.paused_until = 0
            node.crash_at = ""
            node.disk.failing_writes = 0
            node.tick_length = 1.0
            if node.raw is None and not (node.lost or node.removed):
                self._start(node)
        self._calm_target = 0
        self._after(10, self._check_calm)

    def _check_calm(self) -> None:
        """Propose until everybody has what was proposed; finish what changes left open."""
        self._after(4, self._check_calm)
        leader = self._leader()
        if leader is None:
            return
        configuration = leader.raft.configuration
        if configuration.joint:
            self._change(leader, [])
            return
        lost = self._lost_members()
        if lost:
            self._change(leader, [(raftpb.ConfChangeRemoveNode, lost[0])])
            return
        members = configuration.all_voters | configuration.learners
        applied = [self.nodes[node].disk.image.app.index for node in members]
        if self._calm_target and min(applied) >= self._calm_target:
            self._done = True
            return
        before = leader.raft.log.last_index()
        self._propose(leader)
        if not self._calm_target and leader.raft.log.last_index() > before:
            self._calm_target = before + 1

    def _summary(self) -> str:
        parts = []
        for node in self.nodes.values():
            if node.raw is None:
                parts.append(f"{node.id} {'lost' if node.lost else 'down'}")
            else:
                raft = node.raft
                parts.append(
                    f"{node.id} {raft.role.value} term {raft.term} log {raft.log}"
                    f" last={raft.log.last_index()} {raft.configuration}"
                )
        return "; ".join(parts)

    # What must hold

    def _observe(self, node: Node) -> None:
        if node.raw is None:
            return
        raft = node.raft
        if raft.role is StateRole.LEADER and self._leaders.get(raft.term) != node.id:
            self._check_leader(node)
        if raft.log.committed > node.seen_commit:
            self._check_committed(node)

    def _check_leader(self, node: Node) -> None:
        raft = node.raft
        other = self._leaders.setdefault(raft.term, node.id)
        self.say(f"{node.id} leads term {raft.term}")
        if other != node.id:
            raise Violation(f"election safety: {other} and {node.id} both lead term {raft.term}")
        for index in range(len(self._committed) - 1, 0, -1):
            known = self._committed[index]
            if known.by_term < raft.term:
                if index >= raft.log.first_index() - 1 and not raft.log.matches(index, known.term):
                    raise Violation(
                        f"leader completeness: {node.id} leads term {raft.term} without entry"
                        f" {known.term}/{index}, committed in term {known.by_term}"
                    )
                return

    def _check_committed(self, node: Node) -> None:
        raft = node.raft
        log = raft.log
        start = max(node.seen_commit + 1, log.first_index() - 1, 1)
        node.seen_commit = log.committed
        for index in range(start, log.committed + 1):
            term = log.term(index)
            if index < len(self._committed):
                if self._committed[index].term != term:
                    raise Violation(
                        f"state machine safety: {node.id} committed {term}/{index},"
                        f" but {self._committed[index].term}/{index} is committed"
                    )
                continue
            if index > len(self._committed):
                raise Violation(f"{node.id} committed {index}, which nobody committed before")
            self._committed.append(Committed(term, raft.term))
            self._check_durable(node, index, term)

    def _check_durable(self, node: Node, index: int, term: int) -> None:
        configuration = node.raft.configuration
        for half in (configuration.voters, configuration.voters_outgoing):
            holders = [
                voter
                for voter in half
                if self.nodes[voter].lost or self.nodes[voter].disk.durable.has(index, term)
            ]
            if half and len(holders) <= len(half) // 2:
                raise Violation(
                    f"durability: {node.id} committed {term}/{index}, which only {holders} of"
                    f" {sorted(half)} have on disk"
                )

    def _check_entries(self, node: Node, entries: Sequence[raftpb.Entry]) -> None:
        if not entries:
            return
        previous = node.raft.log.term_or_zero(entries[0].Index - 1)
        for entry in entries:
            seen = (previous, crc32(entry.Data) + entry.Type)
            known = self._entries.setdefault((entry.Index, entry.Term), seen)
            if known != seen:
                raise Violation(
                    f"log matching: {node.id} has another entry {entry.Term}/{entry.Index}, or"
                    " another one before it"
                )
            previous = entry.Term

    def _check_applied(
        self, node: Node, index: int, term: int, digest: int, conf_state: raftpb.ConfState
    ) -> None:
        if index >= len(self._committed):
            raise Violation(f"{node.id} applies {term}/{index}, which is not committed")
        known = self._committed[index]
        if known.term != term:
            raise Violation(
                f"state machine safety: {node.id} applies {term}/{index},"
                f" but {known.term}/{index} is committed"
            )
        if known.digest is None:
            known.digest, known.conf_state = digest, conf_state
        elif known.digest != digest or known.conf_state != conf_state:
            raise Violation(
                f"state machine safety: {node.id} has another state than others at {index}"
            )

    def _check_reads(self, ready: Ready) -> None:
        for state in ready.read_states:
            floor = self._reads.get(state.context, 0)
            if state.index < floor:
                raise Violation(
                    f"reads: {state.context.decode()} may see {state.index},"
                    f" but {floor} had been applied before it was asked"
                )


def simulate(
    seed: int,
    options: Options,
    acts: Sequence[Act] | None = None,
    features: Features | None = None,
    log: Callable[[str], None] | None = None,
) -> Outcome:
    """Run one seed."""
    simulation = Simulation(seed, options, acts, features, log)
    outcome = Outcome(seed, acts=simulation.acts)
    try:
        simulation.run()
    except Violation as violation:
        outcome.violation = str(violation)
    except Exception as error:  # an unforeseen exception of the core is a finding as well
        outcome.violation = f"{type(error).__name__}: {error}"
        if log is not None:
            raise
    outcome.events = simulation.events
    outcome.committed = len(simulation._committed) - 1
    outcome.terms = len(simulation._leaders)
    return outcome


def shrink(outcome: Outcome, options: Options, features: Features | None = None) -> Outcome:
    """Take acts out of a failing plan as long as it still fails."""
    best = outcome
    size = max(1, len(best.acts) // 2)
    while size:
        at = 0
        while at < len(best.acts):
            fewer = best.acts[:at] + best.acts[at + size :]
            attempt = simulate(best.seed, options, fewer, features)
            if attempt.violation:
                best = attempt
            else:
                at += size
        size //= 2
    return best
