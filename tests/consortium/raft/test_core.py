"""Rules of the core that are quicker told in Python than as a scenario."""

import ast
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import consortium.raft
from consortium.raft import (
    Compacted,
    ConfChangeRefused,
    Config,
    Configuration,
    InvariantBroken,
    LocalMessageRefused,
    MemoryStorage,
    Progress,
    ProposalDropped,
    RawNode,
    StateRole,
    Unavailable,
    UnknownSenderRefused,
    quorum,
)
from consortium.raft.confchange import Changer, restore
from consortium.raft.messages import new_message
from consortium.raft.storage import entry_size, limit_entries
from consortium.raft.tracker import Inflights
from consortium.wire import raftpb_pb2 as raftpb


def storage_at(index: int, voters: tuple[int, ...] = (1, 2, 3)) -> MemoryStorage:
    storage = MemoryStorage()
    storage.apply_snapshot(
        raftpb.Snapshot(
            metadata=raftpb.SnapshotMetadata(
                index=index, term=1, conf_state=raftpb.ConfState(voters=voters)
            )
        )
    )
    return storage


def new_node(storage: MemoryStorage, node: int = 1, **settings: Any) -> RawNode:
    return RawNode(
        Config(
            id=node,
            election_tick=10,
            heartbeat_tick=1,
            storage=storage,
            random=Random(node),
            **({"applied": storage.first_index() - 1} | settings),
        )
    )


def settle(nodes: dict[int, RawNode], storages: dict[int, MemoryStorage]) -> list[bytes]:
    """Do all work there is; return what node 1 applied."""
    applied = []
    while any(node.has_ready() for node in nodes.values()):
        for number, node in nodes.items():
            if not node.has_ready():
                continue
            ready = node.ready()
            if ready.snapshot is not None:
                storages[number].apply_snapshot(ready.snapshot)
            storages[number].append(ready.entries)
            if ready.hard_state is not None:
                storages[number].set_hard_state(ready.hard_state)
            for message in ready.messages:
                nodes[message.to].step(message)
            if number == 1:
                applied += [entry.Data for entry in ready.committed_entries if entry.Data]
            node.advance()
    return applied


def cluster(**settings: Any) -> tuple[dict[int, RawNode], dict[int, MemoryStorage]]:
    storages = {number: storage_at(1) for number in (1, 2, 3)}
    nodes = {number: new_node(storages[number], number, **settings) for number in storages}
    nodes[1].campaign()
    settle(nodes, storages)
    assert nodes[1].status().role is StateRole.LEADER
    return nodes, storages


# The whole


def test_ticks_alone_elect_one_leader() -> None:
    storages = {number: storage_at(1) for number in (1, 2, 3)}
    nodes = {number: new_node(storages[number], number) for number in storages}
    for _ in range(25):
        for node in nodes.values():
            node.tick()
        settle(nodes, storages)
    roles = sorted(node.status().role.name for node in nodes.values())
    assert roles == ["FOLLOWER", "FOLLOWER", "LEADER"]
    assert len({node.status().leader for node in nodes.values()}) == 1


def test_proposals_come_back_in_order_on_every_node() -> None:
    nodes, storages = cluster()
    sent = [b"%d" % number for number in range(50)]
    for data in sent:
        nodes[1].propose(data)
    assert settle(nodes, storages) == sent
    last = storages[1].last_index() + 1
    logs = [
        [(entry.Term, entry.Data) for entry in storage.entries(2, last, 1 << 30)]
        for storage in storages.values()
    ]
    assert logs[0] == logs[1] == logs[2]


def test_reading_imports_nothing_that_does_io() -> None:
    """No I/O, no threads, no clock, and no randomness but the caller's."""
    allowed = {"random": {"Random"}}  # as a type
    harmless = ("collections", "dataclasses", "enum", "functools", "operator", "typing")
    for path in Path(consortium.raft.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                pytest.fail(f"{path.name} imports {node.names[0].name}")
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = {alias.name for alias in node.names}
                assert (
                    module.startswith((*harmless, "consortium.raft", "consortium.wire"))
                    or module == "google.protobuf.message"
                    or names <= allowed.get(module, set())
                ), f"{path.name} imports {names} of {module}"


# Limits and refusals


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"id": 0}, "reserved"),
        ({"id": (1 << 64) - 1}, "reserved"),
        ({"heartbeat_tick": 0}, "heartbeat_tick"),
        ({"election_tick": 1}, "election_tick"),
        ({"max_inflight_messages": 0}, "max_inflight_messages"),
        ({"max_inflight_bytes": 10}, "max_inflight_bytes"),
        ({"read_only_lease_based": True, "check_quorum": False}, "check_quorum"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], word: str) -> None:
    usual: dict[str, Any] = {
        "id": 1,
        "election_tick": 10,
        "heartbeat_tick": 1,
        "storage": MemoryStorage(),
        "random": Random(0),
    }
    with pytest.raises(ValueError, match=word):
        RawNode(Config(**(usual | settings)))


def test_messages_that_cannot_come_from_the_network_are_refused() -> None:
    node = new_node(storage_at(1))
    with pytest.raises(LocalMessageRefused):
        node.step(new_message(raftpb.MsgHup, 2))
    with pytest.raises(UnknownSenderRefused):
        node.step(new_message(raftpb.MsgAppResp, 9, term=1))


def test_a_membership_change_that_is_none_is_refused() -> None:
    nodes, _ = cluster()
    bad = new_message(
        raftpb.MsgProp,
        2,
        to=1,
        entries=[raftpb.Entry(Type=raftpb.EntryConfChange, Data=b"\xff\xff")],
    )
    with pytest.raises(ProposalDropped, match="membership"):
        nodes[1].step(bad)


def test_a_forwarded_message_stays_the_callers() -> None:
    nodes, storages = cluster()
    message = new_message(raftpb.MsgProp, 2, to=1, entries=[raftpb.Entry(Data=b"twice")])
    before = message.SerializeToString()
    nodes[1].step(message)
    nodes[1].step(message)
    assert message.SerializeToString() == before
    assert settle(nodes, storages) == [b"twice", b"twice"]


def test_waiting_reads_are_bounded() -> None:
    nodes, _ = cluster(max_pending_reads=2)
    for number in range(5):
        nodes[1].read_index(b"%d" % number)
    reads = nodes[1]._raft._read_only.waiting
    assert [request.entries[0].Data for request, _ in reads] == [b"0", b"1"]


def test_ready_twice_without_advance_is_a_mistake() -> None:
    node = new_node(storage_at(1))
    node.campaign()
    node.ready()
    with pytest.raises(InvariantBroken, match="advance"):
        node.ready()


# Restarts


def test_applied_beyond_the_persisted_commit_index() -> None:
    """The commit index alone is not synced: what was applied tells more."""
    storage = storage_at(1)
    storage.append([raftpb.Entry(Term=1, Index=2), raftpb.Entry(Term=1, Index=3)])
    storage.set_hard_state(raftpb.HardState(term=1, commit=2))
    status = new_node(storage, applied=3).status()
    assert (status.committed, status.applied) == (3, 3)


def test_compacted_beyond_the_persisted_commit_index() -> None:
    storage = storage_at(1)
    storage.append([raftpb.Entry(Term=1, Index=2), raftpb.Entry(Term=1, Index=3)])
    storage.set_hard_state(raftpb.HardState(term=1, commit=1))
    storage.compact(3)
    assert new_node(storage).status().committed == 3


def test_a_log_shorter_than_what_was_committed_is_refused() -> None:
    storage = storage_at(1)
    storage.set_hard_state(raftpb.HardState(term=1, commit=7))
    with pytest.raises(InvariantBroken, match="new id"):
        new_node(storage)


def test_who_has_compacted_what_it_is_applying_stands_once_it_is_applied() -> None:
    """It asks its log for changes of the configuration; what is gone may have been one."""
    storage = storage_at(1)
    storage.append([raftpb.Entry(Index=index, Term=1) for index in (2, 3)])
    storage.set_hard_state(raftpb.HardState(term=1, commit=3))
    node = new_node(storage)
    assert [entry.Index for entry in node.ready().committed_entries] == [2, 3]
    storage.create_snapshot(3, None, b"")
    storage.compact(3)
    for _ in range(20):
        node.tick()
    assert node.status().role is StateRole.FOLLOWER
    node.advance()
    for _ in range(20):
        node.tick()
    assert node.status().role is StateRole.PRE_CANDIDATE


def test_no_snapshot_is_taken_while_entries_are_being_applied() -> None:
    """A change among them would be applied on top of the snapshot's configuration."""
    nodes, storages = cluster()
    nodes[1].propose_conf_change(raftpb.ConfChange(type=raftpb.ConfChangeAddLearnerNode, node_id=4))
    node, storage = nodes[2], storages[2]
    for _ in range(6):  # node 2 gets the change committed, but does not apply it yet
        for number in (1, 3):
            ready = nodes[number].ready()
            storages[number].append(ready.entries)
            for message in ready.messages:
                if message.to != 4:
                    nodes[message.to].step(message)
            nodes[number].advance()
        ready = node.ready()
        storage.append(ready.entries)
        for message in ready.messages:
            nodes[message.to].step(message)
        if ready.committed_entries:
            break
        node.advance()
    assert ready.committed_entries[-1].Type == raftpb.EntryConfChange
    snapshot = raftpb.Snapshot(
        metadata=raftpb.SnapshotMetadata(
            index=50, term=1, conf_state=raftpb.ConfState(voters=(1, 2, 3), learners=(4, 5))
        )
    )
    node.step(new_message(raftpb.MsgSnap, 1, to=2, term=1, snapshot=snapshot))
    assert node.status().last_index < 50
    node.apply_conf_change(raftpb.ConfChange(type=raftpb.ConfChangeAddLearnerNode, node_id=4))
    node.advance()
    node.step(new_message(raftpb.MsgSnap, 1, to=2, term=1, snapshot=snapshot))
    assert node.status().last_index == 50
    assert node.status().configuration.learners == {4, 5}


# Quorums


@given(
    st.frozensets(st.integers(1, 7), max_size=5),
    st.dictionaries(st.integers(1, 7), st.integers(1, 9)),
)
def test_committed_is_what_some_majority_has(
    voters: frozenset[int], acknowledged: dict[int, int]
) -> None:
    index = quorum.majority_committed_index(voters, acknowledged)
    size = len(voters) // 2 + 1
    best = max(
        (
            min(acknowledged.get(voter, 0) for voter in majority)
            for majority in combinations(voters, size)
        ),
        default=quorum.INFINITE_INDEX,
    )
    assert index == best


def test_any_two_joint_majorities_meet() -> None:
    """No two decisions can be taken by disjoint sets of nodes, of one joint configuration."""
    incoming, outgoing = {1, 2, 3}, {3, 4, 5}
    everybody = sorted(incoming | outgoing)
    winners = []
    for answers in product((True, False), repeat=len(everybody)):
        votes = dict(zip(everybody, answers, strict=True))
        if quorum.joint_vote(incoming, outgoing, votes) is quorum.VoteResult.WON:
            winners.append({voter for voter, yes in votes.items() if yes})
    assert winners
    assert all(one & other for one, other in combinations(winners, 2))


# Configurations


def changes(draw: Callable[..., Any]) -> list[raftpb.ConfChangeSingle]:
    return [
        raftpb.ConfChangeSingle(type=draw(st.integers(0, 3)), node_id=draw(st.integers(1, 6)))
        for _ in range(draw(st.integers(1, 4)))
    ]


@given(st.data())
def test_changes_lead_from_valid_to_valid_or_are_refused(data: st.DataObject) -> None:
    state: tuple[Configuration, dict[int, Progress]] = (Configuration(), {})

    def window() -> Inflights:
        return Inflights(10, 0)

    first = raftpb.ConfChangeSingle(type=raftpb.ConfChangeAddNode, node_id=1)
    state = Changer(*state, 1, window).simple([first])
    for _ in range(data.draw(st.integers(1, 6))):
        before = state[0]
        changer = Changer(*state, 1, window)
        try:
            if before.joint and data.draw(st.booleans()):
                state = changer.leave_joint()
            elif data.draw(st.booleans()):
                state = changer.simple(changes(data.draw))
            else:
                state = changer.enter_joint(changes(data.draw), auto_leave=False)
        except ConfChangeRefused:
            assert state[0] == before
            continue
        after = state[0]
        assert after.voters
        assert not after.learners & after.all_voters
        assert set(state[1]) == after.all_voters | after.learners
        if not before.joint and not after.joint:
            assert len(before.voters ^ after.voters) <= 1
        # What a snapshot carries restores the same configuration.
        restored = restore(after.conf_state(), 1, window)
        assert restored[0] == after
        assert set(restored[1]) == set(state[1])


# Sizes and storage


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 40), st.binary(max_size=300))
def test_entry_size_is_the_encoded_size(term: int, index: int, data: bytes) -> None:
    for entry in (
        raftpb.Entry(Term=term, Index=index, Data=data),
        raftpb.Entry(Term=term, Index=index, Type=raftpb.EntryConfChange),
    ):
        assert entry_size(entry) == entry.ByteSize()


def test_limits_let_at_least_one_entry_through() -> None:
    entries = [raftpb.Entry(Term=1, Index=index, Data=b"x" * 100) for index in range(1, 6)]
    one = entry_size(entries[0])
    assert len(limit_entries(entries, 0)) == 1
    assert len(limit_entries(entries, 3 * one)) == 3
    assert len(limit_entries(entries, 3 * one - 1)) == 2


def test_memory_storage_replaces_compacts_and_refuses() -> None:
    storage = MemoryStorage()
    storage.append([raftpb.Entry(Term=1, Index=index) for index in (1, 2, 3)])
    storage.append([raftpb.Entry(Term=2, Index=2)])
    assert [storage.term(index) for index in (0, 1, 2)] == [0, 1, 2]
    assert storage.last_index() == 2
    storage.compact(1)
    assert (storage.first_index(), storage.term(1), storage.last_index()) == (2, 1, 2)
    storage.append([raftpb.Entry(Term=1, Index=1), raftpb.Entry(Term=2, Index=2)])
    assert storage.last_index() == 2
    with pytest.raises(Compacted):
        storage.entries(1, 2, 100)
    with pytest.raises(Unavailable):
        storage.term(3)
    with pytest.raises(ValueError, match="gaps"):
        storage.append([raftpb.Entry(Term=2, Index=5)])
