"""What the simulator records, beyond what the recorded proposals show."""

import hashlib

import pytest

from consortium.chaincode.simulator import (
    SimulationClosedError,
    SimulationError,
    SimulationResults,
    TransactionSimulator,
)
from consortium.ledger.state import Version
from consortium.wire import kvrwset_pb2, rwset_pb2
from tests.consortium.chaincode.memory_state import (
    MVCC_READ_CONFLICT,
    PHANTOM_READ_CONFLICT,
    VALID,
    MemoryState,
)


def state(**values: str) -> MemoryState:
    state = MemoryState()
    writing = TransactionSimulator(state)
    for key, value in values.items():
        writing.put_state("cc", key, value.encode())
    assert state.commit(writing.results()) == [VALID]
    return state


def numbered(count: int) -> MemoryState:
    return state(**{f"k{number:05d}": "v" for number in range(count)})


def public(results: SimulationResults, namespace: str = "cc") -> kvrwset_pb2.KVRWSet:
    for recorded in rwset_pb2.TxReadWriteSet.FromString(results.rwset).ns_rwset:
        if recorded.namespace == namespace:
            return kvrwset_pb2.KVRWSet.FromString(recorded.rwset)
    raise AssertionError(f"nothing recorded in {namespace}")


def test_a_read_does_not_see_the_transactions_own_write() -> None:
    simulator = TransactionSimulator(state(a="old"))
    simulator.put_state("cc", "a", b"new")
    simulator.put_state("cc", "b", b"new")
    assert simulator.get_state("cc", "a") == b"old"
    assert simulator.get_state("cc", "b") is None
    assert [key for key, _ in simulator.range("cc", "", "")] == ["a"]


def test_the_last_write_of_a_key_counts_and_order_makes_no_difference() -> None:
    view = state(a="1", b="2")
    one, two = TransactionSimulator(view), TransactionSimulator(view)
    one.get_state("cc", "a")
    one.get_state("cc", "zz")
    one.put_state("cc", "x", b"0")
    one.put_state("cc", "x", b"1")
    one.put_private("cc", "coll", "p", b"1")
    one.put_state("aa", "y", b"1")
    two.put_state("aa", "y", b"1")
    two.put_private("cc", "coll", "p", b"1")
    two.put_state("cc", "x", b"1")
    two.get_state("cc", "zz")
    two.get_state("cc", "a")
    first, second = one.results(), two.results()
    assert first.rwset == second.rwset
    assert first.private == second.private
    reads = public(first).reads
    assert [(read.key, read.HasField("version")) for read in reads] == [("a", True), ("zz", False)]


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 102, 103, 2550, 2601])
def test_ranges_list_fifty_reads_and_summarise_more(count: int) -> None:
    view = numbered(count)
    simulator = TransactionSimulator(view)
    assert len(list(simulator.range("cc", "k", "l"))) == count
    (info,) = public(results := simulator.results()).range_queries_info
    assert (info.start_key, info.end_key, info.itr_exhausted) == ("k", "l", True)
    assert info.WhichOneof("reads_info") == (
        None if count == 0 else "raw_reads" if count <= 50 else "reads_merkle_hashes"
    )
    if count > 50:
        assert len(info.reads_merkle_hashes.max_level_hashes) <= 50
    if count == 51:
        leaf = kvrwset_pb2.QueryReads(
            kv_reads=[
                kvrwset_pb2.KVRead(key=f"k{number:05d}", version=kvrwset_pb2.Version(block_num=1))
                for number in range(51)
            ]
        )
        digest = hashlib.sha256(leaf.SerializeToString()).digest()
        assert list(info.reads_merkle_hashes.max_level_hashes) == [digest]
    assert view.commit(results) == [VALID]


def test_what_was_read_must_still_hold_at_commit() -> None:
    view = numbered(60)
    reading, ranging, stopping = (TransactionSimulator(view) for _ in range(3))
    reading.get_state("cc", "k00003")
    list(ranging.range("cc", "k", "l"))
    early = stopping.range("cc", "k", "l")
    next(early)
    next(early)
    stopped = stopping.results()
    (info,) = public(stopped).range_queries_info
    assert (info.end_key, info.itr_exhausted) == ("k00001", False)

    changing = TransactionSimulator(view)
    changing.put_state("cc", "k00003", b"changed")
    view.commit(changing.results())
    assert view.commit(reading.results(), ranging.results(), stopped) == [
        MVCC_READ_CONFLICT,
        PHANTOM_READ_CONFLICT,
        VALID,  # it stopped before the key that changed
    ]


def test_private_writes_leave_only_hashes_in_public() -> None:
    view = state()
    simulator = TransactionSimulator(view)
    simulator.put_private("cc", "coll", "secret-key", b"secret-value")
    simulator.del_private("cc", "coll", "other-key")
    results = simulator.results()
    assert b"secret" not in results.rwset
    (namespace,) = rwset_pb2.TxReadWriteSet.FromString(results.rwset).ns_rwset
    (collection,) = namespace.collection_hashed_rwset
    written = kvrwset_pb2.HashedRWSet.FromString(collection.hashed_rwset).hashed_writes
    assert [(w.key_hash, w.is_delete, w.value_hash) for w in written] == [
        (hashlib.sha256(b"other-key").digest(), True, b""),
        (
            hashlib.sha256(b"secret-key").digest(),
            False,
            hashlib.sha256(b"secret-value").digest(),
        ),
    ]
    assert results.private is not None
    private = results.private.ns_pvt_rwset[0].collection_pvt_rwset[0].rwset
    assert collection.pvt_rwset_hash == hashlib.sha256(private).digest()
    assert view.commit(results) == [VALID]

    reading = TransactionSimulator(view)
    assert reading.get_private("cc", "coll", "secret-key") == b"secret-value"
    digest = hashlib.sha256(b"secret-value").digest()
    assert reading.get_private_hash("cc", "coll", "secret-key") == digest
    assert reading.get_private_hash("cc", "coll", "none") is None
    assert reading.results().private_reads == (("cc", "coll"),)


def test_private_ranges_are_for_transactions_that_write_nothing() -> None:
    view = state()
    simulator = TransactionSimulator(view)
    simulator.put_private("cc", "coll", "k", b"v")
    with pytest.raises(SimulationError, match="writes nothing"):
        simulator.range_private("cc", "coll", "", "~")
    view.commit(simulator.results())
    simulator = TransactionSimulator(view)
    assert list(simulator.range_private("cc", "coll", "", "~")) == [("k", b"v")]
    with pytest.raises(SimulationError, match="may not write"):
        simulator.put_state("cc", "k", b"v")


def test_metadata() -> None:
    view = state(a="1")
    simulator = TransactionSimulator(view)
    simulator.put_metadata("cc", "a", {"Z": b"2", "A": b"1"})
    simulator.put_private_metadata("cc", "coll", "p", {"A": b"1"})
    results = simulator.results()
    (write,) = public(results).metadata_writes
    assert [(entry.name, entry.value) for entry in write.entries] == [("A", b"1"), ("Z", b"2")]
    view.commit(results)
    assert TransactionSimulator(view).get_metadata("cc", "a") == {"A": b"1", "Z": b"2"}
    assert view.public["cc", "a"].version == Version(2, 0)


def test_collections_are_looked_up_once_and_checked() -> None:
    asked = []

    def lookup(reader: object, namespace: str) -> tuple[str, ...]:
        asked.append(namespace)
        return ("known",)

    simulator = TransactionSimulator(state(), collections=lookup)
    simulator.put_private("cc", "known", "k", b"v")
    with pytest.raises(SimulationError, match="cc has no collection 'other'; it has known"):
        simulator.get_private("cc", "other", "k")
    assert asked == ["cc"]


def test_limits() -> None:
    view = numbered(11)
    with pytest.raises(SimulationError, match="a range has 11 results or more, but may have 10"):
        list(TransactionSimulator(view, max_range_results=10).range("cc", "", ""))
    simulator = TransactionSimulator(view, max_write_bytes=10)
    with pytest.raises(SimulationError, match="writes 11 bytes or more, but may write 10"):
        simulator.put_state("cc", "k", b"0123456789")


def test_nothing_is_possible_after_the_end() -> None:
    simulator = TransactionSimulator(numbered(3))
    results = simulator.range("cc", "", "")
    next(results)
    simulator.close("the deadline has passed")
    for act in (
        lambda: simulator.get_state("cc", "k"),
        lambda: simulator.put_state("cc", "k", b"v"),
        lambda: next(results),
        simulator.results,
    ):
        with pytest.raises(SimulationClosedError, match="the deadline has passed"):
            act()
