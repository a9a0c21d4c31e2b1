"""Concurrency control: does what a transaction read still hold, and what do its writes come to?

Transactions are taken in block order. One that read a version which is no longer current is
invalid (MVCC_READ_CONFLICT), as is one whose range would now give other results
(PHANTOM_READ_CONFLICT); the effects of a valid one are seen by those after it in the block.
(Rules: Fabric core/ledger/kvledger/txmgmt/validation.)
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from consortium.wire import kvrwset_pb2, peer_pb2

from .merkle import RangeSummary
from .rwset import NamespaceSet
from .state import StoredState, Version, VersionedValue

RANGE_RESULTS = 1_000_000
"""Results that all ranges of a transaction may have, twice what our endorsers let it read. Anybody
who endorses alone could have each peer go through the whole state 100,000 times."""

Space = tuple[str, str]
"""A namespace with the name of a hashed collection, or "" for its public keys."""

_EMPTY_HASH = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

# What a transaction does with a key, as bits. Fabric adds them up instead of joining them, so that
# two writes of a key in one set look like a metadata write. That decides what state follows, and
# so it is part of the rules (recorded chain, transactions 73/2 to 73/4).
_UPSERT, _SET_METADATA, _CLEAR_METADATA, _DELETE = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class Update:
    """A key's new state; value None: deleted."""

    value: bytes | None
    metadata: bytes
    version: Version


class UpdateBatch:
    """The effects of a block's valid transactions, by space and key.

    Public keys are text; the keys of a hashed collection are the keys' hashes.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.public: dict[str, dict[str, Update]] = {}
        self.hashed: dict[Space, dict[bytes, Update]] = {}

    def to_bytes(self) -> bytes:
        """The bytes of these updates that go into the block's commit hash.

        Sorted by namespace, public keys before collections, then by key. Namespace and collection
        stand on the first row of their run only. The channel configuration (namespace "") and
        metadata are left out. (Fabric core/ledger/kvledger/txmgmt/txmgr/update_batch_bytes.go.)
        """
        rows: list[bytes] = []
        ends: dict[Version, bytes] = {}

        def add(key: bytes, update: Update) -> None:
            end = ends.get(update.version)
            if end is None:
                block, tx = update.version
                end = ends[update.version] = encode_field(6, ordered(block) + ordered(tx))
            value = b"\x20\x01" if update.value is None else encode_field(5, update.value)
            rows.append(encode_field(1, heading + encode_field(3, key) + value + end))

        names = {*self.public, *(name for name, _ in self.hashed)}
        for name in sorted(names - {""}):
            heading = encode_field(1, name.encode())
            for key, update in sorted(self.public.get(name, {}).items()):
                add(key.encode(), update)
                heading = b""
            for space in sorted(s for s in self.hashed if s[0] == name):
                heading += encode_field(2, space[1].encode())
                for key_hash, update in sorted(self.hashed[space].items()):
                    add(key_hash, update)
                    heading = b""
        return b"".join(rows)


def encode_field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field, absent when empty."""
    if not content:
        return b""
    size = len(content)
    if size < 0x80:
        return bytes((number << 3 | 2, size)) + content
    return bytes((number << 3 | 2,)) + varint(size) + content


def varint(number: int) -> bytes:
    """Protobuf's encoding of an unsigned integer."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def ordered(number: int) -> bytes:
    """Fabric's integer that sorts as bytes: a length byte, then big endian without zeros."""
    digits = number.to_bytes((number.bit_length() + 7) // 8)
    return bytes((len(digits),)) + digits


def read_conflict(
    namespaces: Iterable[NamespaceSet], state: StoredState, updates: UpdateBatch
) -> int:
    """VALID, MVCC_READ_CONFLICT or PHANTOM_READ_CONFLICT, whichever comes first in the set."""
    left = RANGE_RESULTS
    for namespace in namespaces:
        name = namespace.name
        changed = updates.public.get(name, {})
        for read in namespace.public.reads:
            if read.key in changed or _read_version(read) != state.version(name, read.key):
                return peer_pb2.MVCC_READ_CONFLICT
        queries = namespace.public.range_queries_info
        written: list[str] = []
        if queries:
            written = sorted(key for key, one in changed.items() if one.value is not None)
        for query in queries:
            results = _range_holds(name, query, state, changed, written, left)
            if results is None:
                return peer_pb2.PHANTOM_READ_CONFLICT
            left -= results
        for collection in namespace.collections:
            changed_hashes = updates.hashed.get((name, collection.name), {})
            for hashed in collection.hashed.hashed_reads:
                current = state.get_private_hash(name, collection.name, hashed.key_hash)
                if hashed.key_hash in changed_hashes or _read_version(hashed) != (
                    current and current.version
                ):
                    return peer_pb2.MVCC_READ_CONFLICT
    return peer_pb2.VALID


def _read_version(read: kvrwset_pb2.KVRead | kvrwset_pb2.KVReadHash) -> Version | None:
    if not read.HasField("version"):
        return None
    return Version(read.version.block_num, read.version.tx_num)


def _range_holds(
    namespace: str,
    query: kvrwset_pb2.RangeQueryInfo,
    state: StoredState,
    changed: dict[str, Update],
    written: Sequence[str],
    limit: int,
) -> int | None:
    """How many results the range has, if they are those of endorsement and not more than `limit`.

    In-block changes are included.
    """
    present = _present_range(namespace, query, state, changed, written)
    count = 0
    if query.HasField("reads_merkle_hashes"):
        try:
            summary = RangeSummary(query.reads_merkle_hashes.max_degree)
        except ValueError:
            return None
        for key, version in present:
            if count == limit:
                return None
            summary.add(key, version)
            count += 1
        return count if summary.finish()[1] == query.reads_merkle_hashes else None
    for read in query.raw_reads.kv_reads:
        if next(present, None) != (read.key, _read_version(read)):
            return None
        count += 1
    return count if count <= limit and next(present, None) is None else None


def _present_range(
    namespace: str,
    query: kvrwset_pb2.RangeQueryInfo,
    state: StoredState,
    changed: dict[str, Update],
    written: Sequence[str],
) -> Iterator[tuple[str, Version]]:
    """Keys and versions of the range as the block so far leaves it.

    `written` are the changed keys that are there, in order. A range that was closed before its end
    counts its end key: it is the last key that was read.
    """
    start, end = query.start_key, query.end_key
    position = bisect_left(written, start)
    last = bisect_left(written, end) if end else len(written)
    for key, value in state.range(namespace, start, end):
        while position < last and written[position] < key:
            yield written[position], changed[written[position]].version
            position += 1
        if key not in changed:
            yield key, value.version
    while position < last:
        yield written[position], changed[written[position]].version
        position += 1
    if not query.itr_exhausted:
        if end in changed:
            if changed[end].value is not None:
                yield end, changed[end].version
        elif (version := state.version(namespace, end)) is not None:
            yield end, version


class _Operation:
    """What one transaction does with one key."""

    __slots__ = ("_flags", "_metadata", "_value")

    def __init__(self) -> None:
        self._flags = 0
        self._value = b""
        self._metadata = b""

    def write(self, value: bytes, deleted: bool) -> None:
        if deleted:
            self._flags += _DELETE
        else:
            self._flags += _UPSERT
            self._value = value

    def write_metadata(self, entries: Sequence[kvrwset_pb2.KVMetadataEntry]) -> None:
        if entries:
            self._flags += _SET_METADATA
            self._metadata = kvrwset_pb2.KVMetadataWrite(entries=entries).SerializeToString(
                deterministic=True
            )
        else:
            self._flags += _CLEAR_METADATA

    def outcome(self, before: Update | VersionedValue | None, version: Version) -> Update | None:
        """The key's new state, or None if nothing changes."""
        flags = self._flags & 0xFF  # Fabric counts in eight bits
        if flags & _DELETE:
            return Update(None, b"", version)
        if flags & _UPSERT and flags & (_SET_METADATA | _CLEAR_METADATA):
            return Update(self._value, self._metadata, version)
        if flags | _UPSERT == _UPSERT:
            return Update(self._value, before.metadata if before else b"", version)
        # Metadata alone: the value stays. Where there is none (nor after a deletion earlier in
        # the block), nothing happens.
        if before is None or before.value is None:
            return None
        return Update(before.value, self._metadata, version)


def apply_writes(
    namespaces: Iterable[NamespaceSet], version: Version, state: StoredState, updates: UpdateBatch
) -> None:
    """Add a valid transaction's effects to `updates`."""
    public: defaultdict[tuple[str, str], _Operation] = defaultdict(_Operation)
    hashed: defaultdict[tuple[str, str, bytes], _Operation] = defaultdict(_Operation)
    for namespace in namespaces:
        name = namespace.name
        for write in namespace.public.writes:
            gone = write.is_delete or not write.value
            public[name, write.key].write(write.value, gone)
        for metadata in namespace.public.metadata_writes:
            public[name, metadata.key].write_metadata(metadata.entries)
        for collection in namespace.collections:
            for hashed_write in collection.hashed.hashed_writes:
                value_hash = hashed_write.value_hash
                gone = hashed_write.is_delete or value_hash in (b"", _EMPTY_HASH)
                hashed[name, collection.name, hashed_write.key_hash].write(value_hash, gone)
            for hashed_metadata in collection.hashed.metadata_writes:
                place = (name, collection.name, hashed_metadata.key_hash)
                hashed[place].write_metadata(hashed_metadata.entries)
    for (name, key), operation in public.items():
        before = updates.public.get(name, {}).get(key) or state.get(name, key)
        after = operation.outcome(before, version)
        if after is not None:
            updates.public.setdefault(name, {})[key] = after
    for (name, coll, key_hash), operation in hashed.items():
        space = (name, coll)
        hash_before = updates.hashed.get(space, {}).get(key_hash) or state.get_private_hash(
            name, coll, key_hash
        )
        after = operation.outcome(hash_before, version)
        if after is not None:
            updates.hashed.setdefault(space, {})[key_hash] = after
