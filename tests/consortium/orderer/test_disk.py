"""The Raft log and the block store on disk: what is there after a restart, and after a crash."""

import asyncio
from pathlib import Path

import pytest

from consortium.orderer.blockstore import BlockStore, BlockStoreError
from consortium.orderer.node_store import NodeStore
from consortium.orderer.raft_storage import ChannelLog
from consortium.raft import Compacted, Unavailable
from consortium.wire import raftpb_pb2 as raftpb


def entry(index: int, term: int, data: bytes = b"block") -> raftpb.Entry:
    return raftpb.Entry(Type=raftpb.EntryNormal, Index=index, Term=term, Data=data)


def hard_state(term: int, commit: int) -> raftpb.HardState:
    return raftpb.HardState(term=term, vote=1, commit=commit)


def contents(log: ChannelLog) -> list[tuple[int, int, bytes]]:
    first, last = log.first_index(), log.last_index()
    return [(e.Index, e.Term, e.Data) for e in log.entries(first, last + 1, 1 << 40)]


async def reopened(store: NodeStore, folder: Path) -> NodeStore:
    store.close()
    return NodeStore(folder)


async def test_a_log_is_read_back(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    log = ChannelLog(store, "one")
    assert log.fresh
    await log.bootstrap([1, 2, 3])
    await log.persist(hard_state(2, 3), [entry(4, 2), entry(5, 2, b"x" * 100_000)], None)
    expected = contents(log)
    store = await reopened(store, tmp_path)
    log = ChannelLog(store, "one")
    assert not log.fresh
    assert contents(log) == expected
    state, conf_state = log.initial_state()
    assert (state.term, state.vote, state.commit) == (2, 1, 3)
    assert list(conf_state.voters) == [1, 2, 3]
    assert [log.term(index) for index in range(6)] == [0, 1, 1, 1, 2, 2]
    with pytest.raises(Unavailable):
        log.term(6)
    # Channels do not see each other, whatever their names.
    assert ChannelLog(store, "on").fresh
    assert ChannelLog(store, "onee").fresh
    store.close()


async def test_later_entries_replace_earlier_ones(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    log = ChannelLog(store, "one")
    await log.bootstrap([1])
    await log.persist(None, [entry(2, 2, b"a"), entry(3, 2, b"b"), entry(4, 2, b"c")], None)
    await log.persist(hard_state(3, 2), [entry(3, 3, b"d")], None)
    for one in (log, ChannelLog(store, "one")):
        assert contents(one)[1:] == [(2, 2, b"a"), (3, 3, b"d")]
    with pytest.raises(ValueError, match="doesn't follow"):
        await log.persist(None, [entry(5, 3)], None)
    store.close()


async def test_a_commit_index_alone_waits_for_the_next_write(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    log = ChannelLog(store, "one")
    await log.bootstrap([1])
    await log.persist(hard_state(2, 1), [entry(2, 2)], None)
    before = store.commits
    await log.persist(hard_state(2, 2), [], None, must_sync=False)
    assert store.commits == before
    assert log.initial_state()[0].commit == 2
    assert ChannelLog(store, "one").initial_state()[0].commit == 1
    await log.flush()
    assert ChannelLog(store, "one").initial_state()[0].commit == 2
    store.close()


async def test_compaction_keeps_the_snapshot_and_the_rest(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    log = ChannelLog(store, "one")
    await log.bootstrap([1, 2, 3])
    entries = [entry(index, 2, bytes([index])) for index in range(4, 11)]
    await log.persist(hard_state(2, 10), entries, None)
    await log.compact(9, b"block nine", drop_to=6)
    for one in (log, ChannelLog(store, "one")):
        assert one.first_index() == 7
        assert one.term(6) == 2
        assert [index for index, _, _ in contents(one)] == [7, 8, 9, 10]
        snapshot = one.snapshot()
        assert (snapshot.metadata.index, snapshot.data) == (9, b"block nine")
        assert list(snapshot.metadata.conf_state.voters) == [1, 2, 3]
        with pytest.raises(Compacted):
            one.entries(6, 8, 100)
    await log.persist(None, [entry(11, 2)], None)
    assert ChannelLog(store, "one").last_index() == 11
    store.close()


async def test_a_snapshot_replaces_the_log(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    log = ChannelLog(store, "one")
    await log.bootstrap([1, 2])
    await log.persist(hard_state(2, 2), [entry(3, 2)], None)
    snapshot = raftpb.Snapshot(
        data=b"far ahead",
        metadata=raftpb.SnapshotMetadata(
            index=50, term=4, conf_state=raftpb.ConfState(voters=[1, 2, 3])
        ),
    )
    await log.persist(hard_state(4, 50), [], snapshot)
    for one in (log, ChannelLog(store, "one")):
        assert (one.first_index(), one.last_index(), one.term(50)) == (51, 50, 4)
        assert list(one.initial_state()[1].voters) == [1, 2, 3]
    await log.persist(None, [entry(51, 4)], None)
    assert contents(ChannelLog(store, "one")) == [(51, 4, b"block")]
    store.close()


async def test_entries_past_the_cache_come_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consortium.orderer.raft_storage.CACHED_ENTRY_BYTES", 1000)
    store = NodeStore(tmp_path)
    log = ChannelLog(store, "one")
    await log.bootstrap([1])
    for index in range(2, 30):
        await log.persist(None, [entry(index, 2, bytes([index]) * 100)], None)
    assert [index for index, _, _ in contents(log)] == list(range(1, 30))
    assert all(data == bytes([index]) * 100 for index, _, data in contents(log)[1:])
    # Limits hold across the border between disk and memory.
    assert [e.Index for e in log.entries(2, 30, 350)] == [2, 3, 4]
    assert [e.Index for e in log.entries(2, 30, 1)] == [2]
    store.close()


async def test_blocks_survive_a_crash_up_to_the_checkpoint(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "raft")
    blocks = BlockStore(store, tmp_path / "blocks", "one")
    for number in range(5):
        blocks.append(number, b"block %d" % number)
    await blocks.commit(blocks.flush())
    for number in range(5, 8):
        blocks.append(number, b"block %d" % number)
    assert (blocks.height, blocks.durable_height) == (8, 5)
    assert [blocks.read(number) for number in (0, 7)] == [b"block 0", b"block 7"]
    with pytest.raises(BlockStoreError, match="height 8"):
        blocks.append(9, b"")
    with pytest.raises(BlockStoreError, match="not there"):
        blocks.read(8)
    blocks.close()
    # The crash: what came after the checkpoint is gone, to be written again from the Raft log.
    store = await reopened(store, tmp_path / "raft")
    blocks = BlockStore(store, tmp_path / "blocks", "one")
    assert blocks.height == 5
    assert [blocks.read(number) for number in range(5)] == [b"block %d" % n for n in range(5)]
    blocks.append(5, b"another five")
    await blocks.commit(blocks.flush())
    assert blocks.read(5) == b"another five"
    blocks.close()
    store.close()


async def test_writes_share_commits(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    logs = [ChannelLog(store, f"channel{number}") for number in range(50)]
    before = store.commits
    await asyncio.gather(*(log.bootstrap([1, 2, 3]) for log in logs))
    assert store.commits - before <= 2
    store.close()
