"""Reads that no longer hold, and what writes come to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consortium.ledger import mvcc
from consortium.ledger.merkle import RangeSummary
from consortium.ledger.mvcc import Update, UpdateBatch, apply_writes, read_conflict, varint
from consortium.ledger.rwset import CollectionSet, NamespaceSet
from consortium.ledger.state import (
    STATE,
    StoredState,
    Version,
    VersionedValue,
    encode_value,
    state_key,
)
from consortium.storage.environment import Environment, WriteTransaction
from consortium.wire import kvrwset_pb2, peer_pb2

NS = "ns"


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    opened = Environment(tmp_path, [STATE], format_version=1, durable=False)
    yield opened
    opened.close()


def _store(environment: Environment, keys: dict[str, Version]) -> None:
    def change(transaction: WriteTransaction) -> None:
        for key, _ in list(transaction.range(STATE)):
            transaction.delete(STATE, key)
        for key, version in keys.items():
            value = encode_value(VersionedValue(b"value", b"", version))
            transaction.put(STATE, state_key(NS, key), value)

    environment.write(change)


def _version(version: Version) -> kvrwset_pb2.Version:
    return kvrwset_pb2.Version(block_num=version.block, tx_num=version.tx)


def _range(
    found: list[tuple[str, Version]], start: str, end: str, degree: int, limit: int | None
) -> kvrwset_pb2.RangeQueryInfo:
    """What an endorser records that reads a range, wholly or only `limit` results of it."""
    query = kvrwset_pb2.RangeQueryInfo(start_key=start, end_key=end, itr_exhausted=True)
    if limit is not None and limit <= len(found):
        found = found[:limit]
        query.itr_exhausted = False
        query.end_key = found[-1][0]
    summary = RangeSummary(degree)
    for key, version in found:
        summary.add(key, version)
    reads, merkle = summary.finish()
    if merkle is None:
        query.raw_reads.kv_reads.extend(reads)
    else:
        query.reads_merkle_hashes.CopyFrom(merkle)
    return query


def _in_range(keys: dict[str, Version], start: str, end: str) -> list[tuple[str, Version]]:
    return [
        (key, version)
        for key, version in sorted(keys.items())
        if key >= start and (not end or key < end)
    ]


KEYS = st.text("abc", min_size=1, max_size=2)
VERSIONS = st.builds(Version, st.integers(0, 1), st.integers(0, 1))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stored=st.dictionaries(KEYS, VERSIONS, max_size=9),
    written=st.dictionaries(KEYS, st.booleans(), max_size=3),
    start=st.text("abc", max_size=2),
    end=st.text("abc", max_size=2),
    degree=st.sampled_from([2, 3, 50]),
    limit=st.one_of(st.none(), st.integers(1, 9)),
)
def test_a_range_holds_exactly_if_it_would_be_read_the_same(
    environment: Environment,
    stored: dict[str, Version],
    written: dict[str, bool],
    start: str,
    end: str,
    degree: int,
    limit: int | None,
) -> None:
    _store(environment, stored)
    query = _range(_in_range(stored, start, end), start, end, degree, limit)
    reading = NamespaceSet(NS, kvrwset_pb2.KVRWSet(range_queries_info=[query]), ())
    now = Version(5, 0)
    updates = UpdateBatch()
    present = dict(stored)
    for key, deleted in written.items():
        updates.public.setdefault(NS, {})[key] = Update(None if deleted else b"new", b"", now)
        present.pop(key, None)
        if not deleted:
            present[key] = now
    with environment.read() as transaction:
        code = read_conflict([reading], StoredState(transaction), updates)
    if not query.itr_exhausted:
        # Read again up to the last key that was read then, which is part of the range.
        after = [one for one in _in_range(present, start, "") if one[0] <= query.end_key]
        before = [one for one in _in_range(stored, start, "") if one[0] <= query.end_key]
    else:
        after, before = _in_range(present, start, end), _in_range(stored, start, end)
    assert (code == peer_pb2.VALID) == (after == before)
    assert code in (peer_pb2.VALID, peer_pb2.PHANTOM_READ_CONFLICT)


@pytest.mark.parametrize("degree", [3, 50])
def test_ranges_of_a_transaction_have_so_many_results_at_most(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, degree: int
) -> None:
    """Else one transaction could have each peer go through the whole state for hours."""
    stored = {f"k{number}": Version(0, 0) for number in range(10)}
    _store(environment, stored)
    monkeypatch.setattr(mvcc, "RANGE_RESULTS", 25)
    query = _range(_in_range(stored, "", ""), "", "", degree, None)
    with environment.read() as transaction:
        codes = [
            read_conflict(
                [NamespaceSet(NS, kvrwset_pb2.KVRWSet(range_queries_info=[query] * times), ())],
                StoredState(transaction),
                UpdateBatch(),
            )
            for times in (2, 3)
        ]
    assert codes == [peer_pb2.VALID, peer_pb2.PHANTOM_READ_CONFLICT]


def test_a_summary_needs_a_degree() -> None:
    with pytest.raises(ValueError, match="2 is the least"):
        RangeSummary(1)


def test_levels_of_a_summary() -> None:
    """Leaves hold one read more than the degree; a level above the degree rises as one hash."""
    for count, level, hashes in (
        (2, None, 0),
        (3, 1, 1),
        (6, 1, 2),
        (7, 2, 1),
        (9, 2, 1),
        (18, 2, 2),
    ):
        summary = RangeSummary(2)
        for number in range(count):
            summary.add(f"{number:03}", Version(1, number))
        reads, merkle = summary.finish()
        if merkle is None:
            assert (level, len(reads)) == (None, count)
        else:
            assert (merkle.max_level, len(merkle.max_level_hashes)) == (level, hashes), count


def test_a_namespace_may_name_a_collection_twice(environment: Environment) -> None:
    """Both sets add up as one, like two writes of a key in one set (recorded chain, 73/3)."""
    write = kvrwset_pb2.KVWriteHash(key_hash=b"h" * 32, value_hash=b"v" * 32)
    once = CollectionSet("c", kvrwset_pb2.HashedRWSet(hashed_writes=[write]), b"")
    updates = UpdateBatch()
    with environment.read() as transaction:
        state = StoredState(transaction)
        twice = NamespaceSet(NS, kvrwset_pb2.KVRWSet(), (once, once))
        apply_writes([twice], Version(1, 0), state, updates)
        assert updates.hashed == {}
        single = NamespaceSet(NS, kvrwset_pb2.KVRWSet(), (once,))
        apply_writes([single], Version(1, 1), state, updates)
    assert updates.hashed[NS, "c"][b"h" * 32] == Update(b"v" * 32, b"", Version(1, 1))


def test_metadata_after_a_deletion_in_the_same_block_do_nothing(environment: Environment) -> None:
    _store(environment, {"k": Version(0, 0)})
    entry = kvrwset_pb2.KVMetadataEntry(name="n", value=b"v")
    metadata = kvrwset_pb2.KVMetadataWrite(key="k", entries=[entry])
    updates = UpdateBatch()
    with environment.read() as transaction:
        state = StoredState(transaction)
        deletion = kvrwset_pb2.KVRWSet(writes=[kvrwset_pb2.KVWrite(key="k", is_delete=True)])
        apply_writes([NamespaceSet(NS, deletion, ())], Version(1, 0), state, updates)
        change = kvrwset_pb2.KVRWSet(metadata_writes=[metadata])
        apply_writes([NamespaceSet(NS, change, ())], Version(1, 1), state, updates)
    assert updates.public[NS]["k"] == Update(None, b"", Version(1, 0))


def test_varint_is_protobufs() -> None:
    for number in (0, 1, 127, 128, 300, 2**32, 2**64 - 1):
        message = kvrwset_pb2.Version(block_num=number)
        assert message.SerializeToString()[1:] == (varint(number) if number else b"")
