"""Simulating a transaction: reads come from one view of the state, writes are only recorded.

What comes out is a read-write set, equal to the byte on every peer that has the same state: keys,
collections and namespaces in order of their UTF-8 bytes, versions of all that was read, and for
ranges either the reads one by one or a Merkle summary. A read never sees the transaction's own
writes. (Rules: Fabric core/ledger/kvledger/txmgmt/txmgr/tx_simulator.go and rwsetutil/.)
"""

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Protocol

from google.protobuf.message import DecodeError

from consortium.ledger.history import KeyModification
from consortium.ledger.merkle import RangeSummary
from consortium.ledger.state import (
    VALIDATION_PARAMETER,
    StateView,
    Version,
    VersionedValue,
    key_hash,
    metadata_entry,
)
from consortium.wire import kvrwset_pb2, rwset_pb2

MAX_RANGE_RESULTS = 100_000
"""Results of one range read (Fabric's `totalQueryLimit`)."""
MAX_PAGE_BYTES = 64 * 1024 * 1024
"""Keys and values of one page."""
MAX_HISTORY = 10_000
"""Modifications of one key that a transaction can look back on."""
_FIRST_HISTORY = 101  # what a chaincode gets to see before it asks for more
MAX_READS = 100_000
"""Single keys and ranges read by one transaction."""
MAX_READ_BYTES = 64 * 1024 * 1024
"""Their names together."""
MAX_RESULTS = 500_000
"""Results of all range reads of one transaction."""
MAX_RWSET_BYTES = 10 * 1024 * 1024
"""The read-write set of one transaction; it goes to the client and back, and into a block."""
MAX_WRITE_BYTES = 10 * 1024 * 1024
"""Keys and values written by one transaction; no block could hold more (`AbsoluteMaxBytes`)."""


class SimulationError(Exception):
    """The transaction asked for something that no transaction may do; the message says what."""


class LimitError(SimulationError):
    """The transaction has too much of something; the message names the limit and the amount."""


def check_write_bytes(written: int, limit: int) -> None:
    """Raises LimitError if a transaction has written more than it may."""
    if written > limit:
        raise LimitError(
            f"the transaction writes {written} bytes or more, but may write {limit}; split it"
        )


class SimulationClosedError(SimulationError):
    """The simulation was given up, for instance at its deadline."""


@dataclass(frozen=True, slots=True)
class SimulationResults:
    """What a transaction read and wrote."""

    rwset: bytes
    """`rwset.TxReadWriteSet`: public sets and the hashes of private ones."""
    private: rwset_pb2.TxPvtReadWriteSet | None
    """Private keys and values written, for members of the collections alone."""
    private_reads: tuple[tuple[str, str], ...]
    """(namespace, collection) of the private values read; only members could."""
    written_policies: Mapping[tuple[str, str], tuple[bytes, ...]]
    """Whose policies judge the writes, by (namespace, collection or ""): the keys' own policies
    (`SignaturePolicyEnvelope` bytes, each once), and empty bytes if some key has none."""


class StateReader(Protocol):
    """The part of a simulator that looks collections up; its reads are recorded too."""

    def get_state(self, namespace: str, key: str) -> bytes | None:
        """A public value."""


class HistoryLookup(Protocol):
    """`Ledger.history`: the newest writes of a public key, newest first, as many as `limit`."""

    def __call__(self, namespace: str, key: str, limit: int) -> Sequence[KeyModification]: ...


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a range, and the key that the next one begins with (empty: there is none)."""

    items: list[tuple[str, bytes]]
    bookmark: str


@dataclass(frozen=True, slots=True)
class Access:
    """What the transaction's creator may do with a collection by way of a contract."""

    read: bool
    write: bool


type AccessLookup = Callable[[str, str], Access]
"""What the creator may do with the collection of a namespace."""

type CollectionLookup = Callable[[StateReader, str], Collection[str]]
"""Names the collections that a namespace has, from its definition."""


@dataclass(slots=True)
class _Range:
    namespace: str
    info: kvrwset_pb2.RangeQueryInfo
    summary: RangeSummary = field(default_factory=RangeSummary)


@dataclass(slots=True)
class _Collection:
    reads: dict[str, Version | None] = field(default_factory=dict)
    writes: dict[str, bytes] = field(default_factory=dict)
    purged: dict[str, bool] = field(default_factory=dict)
    metadata: dict[str, dict[str, bytes]] = field(default_factory=dict)


@dataclass(slots=True)
class _Namespace:
    reads: dict[str, Version | None] = field(default_factory=dict)
    writes: dict[str, bytes] = field(default_factory=dict)
    metadata: dict[str, dict[str, bytes]] = field(default_factory=dict)
    collections: dict[str, _Collection] = field(default_factory=dict)


class TransactionSimulator:
    """Records one transaction over `view`.

    Used by one thread at a time; `close` may come from another, after which every access raises
    SimulationClosedError, so that the view can be closed even if a contract does not return.
    `collections` is asked once for each namespace whose private data is touched; without it any
    collection's name is taken. `access` is asked once for each collection; without it the creator
    may do everything. Without `history` no key's history can be asked for. `purging` says whether
    the channel's capabilities allow private data to be purged.
    """

    def __init__(
        self,
        view: StateView,
        channel_id: str = "",
        *,
        collections: CollectionLookup | None = None,
        access: AccessLookup | None = None,
        purging: bool = True,
        history: HistoryLookup | None = None,
        max_range_results: int = MAX_RANGE_RESULTS,
        max_write_bytes: int = MAX_WRITE_BYTES,
        max_reads: int = MAX_READS,
        max_results: int = MAX_RESULTS,
        max_rwset_bytes: int = MAX_RWSET_BYTES,
    ) -> None:
        self.channel_id = channel_id
        self._view = view
        self._lookup = collections
        self._access_lookup = access
        self._purging = purging
        self._access: dict[tuple[str, str], Access] = {}
        self._history = history
        self._known_collections: dict[str, Collection[str]] = {}
        self._max_range_results = max_range_results
        self._max_write_bytes = max_write_bytes
        self._max_reads = max_reads
        self._max_results = max_results
        self._max_rwset_bytes = max_rwset_bytes
        self._read_count = 0
        self._read_bytes = 0
        self._result_count = 0
        self._namespaces: dict[str, _Namespace] = {}
        self._ranges: list[_Range] = []
        self._private_reads: dict[tuple[str, str], None] = {}
        self._hashes: dict[str, bytes] = {}
        self._written_bytes = 0
        self._wrote = False
        self._read_only = ""  # why, once the transaction may not write any more
        self._closed = ""
        self._lock = threading.Lock()

    @property
    def view(self) -> StateView:
        """The state itself: what is read there is no part of the transaction."""
        self._check_open()
        return self._view

    # public state

    def get_state(self, namespace: str, key: str) -> bytes | None:
        """The committed value of a key, None if it has none; its version is recorded."""
        found = self._read(namespace, key)
        return None if found is None else found.value

    def get_metadata(self, namespace: str, key: str) -> dict[str, bytes]:
        """The committed metadata of a key; recorded as a read of the key."""
        found = self._read(namespace, key)
        return {} if found is None else _metadata(found.metadata)

    def range(self, namespace: str, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        """Keys with start <= key < end in order; an empty end means the namespace's last key.

        Recorded as far as the caller has iterated: whoever stops early depends on those keys alone.
        """
        self._check_open()
        self._count_read(len(start) + len(end))
        self._namespace(namespace)
        recorded = _Range(namespace, kvrwset_pb2.RangeQueryInfo(start_key=start))
        self._ranges.append(recorded)
        return self._iterate(recorded, end)

    def page(self, namespace: str, start: str, end: str, size: int, bookmark: str = "") -> Page:
        """A page of a range, for transactions that write nothing; `bookmark` is the last page's.

        What comes after the page is no part of what the transaction depends on. A size of 0 takes
        as many results as a range may have.
        """
        if self._wrote:
            raise SimulationError(
                "a range can be read in pages only in a transaction that writes nothing; "
                "read the range as a whole instead"
            )
        if size < 0:
            raise SimulationError(f"a page cannot have {size} results; ask for 1 or more")
        self._read_only = "read a range in pages, so it may not write; read the range as a whole"
        size = min(size or self._max_range_results, self._max_range_results)
        items: list[tuple[str, bytes]] = []
        page_bytes = 0
        for key, value in self.range(namespace, bookmark or start, end):
            items.append((key, value))
            page_bytes += len(key) + len(value)
            if page_bytes > MAX_PAGE_BYTES:
                raise SimulationError(
                    f"a page of {size} results has more than {MAX_PAGE_BYTES} bytes; ask for less"
                )
            if len(items) == size:
                return Page(items, self._next_key(namespace, key, end))
        return Page(items, "")

    def history(self, namespace: str, key: str) -> Iterator[KeyModification]:
        """What valid transactions made of a key, newest first; nothing of it is recorded.

        Peers may be at different heights, so nothing that is written should depend on it.
        """
        self._check_open()
        if self._history is None:
            raise SimulationError("the history of keys is not kept here; ask another peer")
        return self._modifications(self._history, namespace, key)

    def put_state(self, namespace: str, key: str, value: bytes) -> None:
        """Record a write; an empty value is a deletion."""
        self._before_write(len(key) + len(value))
        self._namespace(namespace).writes[key] = value

    def del_state(self, namespace: str, key: str) -> None:
        """Record a deletion, whether the key exists or not."""
        self.put_state(namespace, key, b"")

    def put_metadata(self, namespace: str, key: str, metadata: Mapping[str, bytes]) -> None:
        """Record a key's whole metadata anew; nothing in it takes the metadata away."""
        self._before_write(len(key) + sum(map(len, metadata.values())))
        self._namespace(namespace).metadata[key] = dict(metadata)

    # private state

    def get_private(self, namespace: str, collection: str, key: str) -> bytes | None:
        """A private value, None if it has none.

        Raises the ledger's PrivateDataUnavailableError where this peer has not the value that the
        current hash belongs to.
        """
        return self.get_privates(namespace, collection, (key,))[0]

    def get_privates(
        self, namespace: str, collection: str, keys: Sequence[str]
    ) -> list[bytes | None]:
        """The same of many keys, in their order."""
        if not keys:
            return []
        recorded = self._collection(namespace, collection)
        self._check_read(namespace, collection)
        self._count_read(sum(map(len, keys)), len(keys))
        values: list[bytes | None] = []
        with self._lock:
            self._check_open()
            for key in keys:
                found = self._view.get_private(namespace, collection, key)
                recorded.reads[key] = None if found is None else found.version
                values.append(None if found is None else found.value)
        self._private_reads[namespace, collection] = None
        return values

    def get_private_hash(self, namespace: str, collection: str, key: str) -> bytes | None:
        """SHA-256 of a private value; every peer has it."""
        found = self._read_hash(namespace, collection, key)
        return None if found is None else found.value

    def get_private_metadata(self, namespace: str, collection: str, key: str) -> dict[str, bytes]:
        """The metadata of a private key; it stands with the hash."""
        self._check_collection(namespace, collection)
        self._check_read(namespace, collection)
        found = self._read_hash(namespace, collection, key)
        return {} if found is None else _metadata(found.metadata)

    def range_private(
        self, namespace: str, collection: str, start: str, end: str
    ) -> Iterator[tuple[str, bytes]]:
        """Private keys in order, for transactions that write nothing: the reads are not recorded.

        Peers may hold different private data, so nothing that is written may depend on it.
        """
        self._check_collection(namespace, collection)
        self._check_read(namespace, collection)
        self._check_open()
        if self._wrote:
            raise SimulationError(
                "private data can be queried by range only in a transaction that writes nothing; "
                "read single private keys instead"
            )
        self._read_only = (
            "queried private data by range, so it may not write; read single private keys"
        )
        self._private_reads[namespace, collection] = None
        return self._iterate_private(namespace, collection, start, end)

    def put_private(self, namespace: str, collection: str, key: str, value: bytes) -> None:
        """Record a private write; an empty value is a deletion."""
        recorded = self._collection(namespace, collection)
        self._check_write(namespace, collection)
        self._before_write(len(key) + len(value))
        recorded.writes[key] = value
        recorded.purged.pop(key, None)

    def del_private(self, namespace: str, collection: str, key: str) -> None:
        """Record the deletion of a private key."""
        self.put_private(namespace, collection, key, b"")

    def purge_private(self, namespace: str, collection: str, key: str) -> None:
        """Record a deletion that takes the key's history away too, from every peer's disk."""
        if not self._purging:
            raise SimulationError(
                "purge private data is not enabled, channel application capability of V2_5 or "
                "later is required"
            )
        self.put_private(namespace, collection, key, b"")
        self._collection(namespace, collection).purged[key] = True

    def put_private_metadata(
        self, namespace: str, collection: str, key: str, metadata: Mapping[str, bytes]
    ) -> None:
        """Record a private key's whole metadata anew."""
        recorded = self._collection(namespace, collection)
        self._check_write(namespace, collection)
        self._before_write(len(key) + sum(map(len, metadata.values())))
        recorded.metadata[key] = dict(metadata)

    # the end

    def close(self, reason: str = "the simulation is over") -> None:
        """Refuse every later access; returns when no access is under way."""
        with self._lock:
            self._closed = self._closed or reason

    def results(self) -> SimulationResults:
        """The read-write sets. Call once, at the end: later reads and writes are refused."""
        with self._lock:
            self._check_open()
            self._closed = "its results were already taken"
        private = self._private()
        ranges = self._finished_ranges()
        namespaces = rwset_pb2.TxReadWriteSet(data_model=rwset_pb2.TxReadWriteSet.KV)
        for name, public in _in_order(self._namespaces):
            added = namespaces.ns_rwset.add(
                namespace=name,
                rwset=_bytes(
                    kvrwset_pb2.KVRWSet(
                        reads=[_read(key, version) for key, version in _in_order(public.reads)],
                        range_queries_info=[r.info for r in ranges if r.namespace == name],
                        writes=[_write(key, value) for key, value in _in_order(public.writes)],
                        metadata_writes=[
                            kvrwset_pb2.KVMetadataWrite(key=key, entries=_entries(metadata))
                            for key, metadata in _in_order(public.metadata)
                        ],
                    )
                ),
            )
            for collection, hashed in _in_order(public.collections):
                added.collection_hashed_rwset.add(
                    collection_name=collection,
                    hashed_rwset=_bytes(self._hashed(hashed)),
                    pvt_rwset_hash=_private_hash(private, name, collection),
                )
        rwset = _bytes(namespaces)
        if len(rwset) > self._max_rwset_bytes:
            raise LimitError(
                f"the transaction's read-write set has {len(rwset)} bytes, but may have "
                f"{self._max_rwset_bytes}; read and write fewer keys in one transaction"
            )
        return SimulationResults(
            rwset=rwset,
            private=private if private.ns_pvt_rwset else None,
            private_reads=tuple(sorted(self._private_reads)),
            written_policies=self._written_policies(),
        )

    def _hashed(self, recorded: _Collection) -> kvrwset_pb2.HashedRWSet:
        """A collection's hashed set, in order of the keys themselves."""
        hashed = kvrwset_pb2.HashedRWSet(
            metadata_writes=[
                kvrwset_pb2.KVMetadataWriteHash(
                    key_hash=self._hash(key), entries=_entries(metadata)
                )
                for key, metadata in _in_order(recorded.metadata)
            ]
        )
        # A field that has its default is left out on the wire, so it needs not be set.
        reads, writes = hashed.hashed_reads, hashed.hashed_writes
        for key, version in _in_order(recorded.reads):
            if version is None:
                reads.add(key_hash=self._hash(key))
            else:
                reads.add(key_hash=self._hash(key), version=_version(version))
        for key, value in _in_order(recorded.writes):
            if value:
                writes.add(key_hash=self._hash(key), value_hash=hashlib.sha256(value).digest())
            else:
                purge = key in recorded.purged
                writes.add(key_hash=self._hash(key), is_delete=True, is_purge=purge)
        return hashed

    def _written_policies(self) -> dict[tuple[str, str], tuple[bytes, ...]]:
        """Looked up in the state, without being recorded as reads."""
        found: dict[tuple[str, str], dict[bytes, None]] = {}
        with self._lock:
            for name, public in _in_order(self._namespaces):
                for key in sorted({*public.writes, *public.metadata}):
                    own = _own_policy(self._view.get(name, key))
                    found.setdefault((name, ""), {})[own] = None
                for collection, recorded in _in_order(public.collections):
                    own_policies: dict[bytes, None] = {}
                    for key in sorted({*recorded.writes, *recorded.metadata}):
                        # A key that isn't there, as was read before, has no policy.
                        if recorded.reads.get(key, key) is None:
                            own = b""
                        else:
                            own = _own_policy(
                                self._view.get_private_hash(name, collection, self._hash(key))
                            )
                        own_policies[own] = None
                    if own_policies:
                        found[name, collection] = own_policies
        return {place: tuple(policies) for place, policies in found.items()}

    def _private(self) -> rwset_pb2.TxPvtReadWriteSet:
        private = rwset_pb2.TxPvtReadWriteSet(data_model=rwset_pb2.TxReadWriteSet.KV)
        for name, public in _in_order(self._namespaces):
            written = [
                (collection, recorded)
                for collection, recorded in _in_order(public.collections)
                if recorded.writes or recorded.metadata
            ]
            if not written:
                continue
            namespace = private.ns_pvt_rwset.add(namespace=name)
            for collection, recorded in written:
                # Only keys of metadata: they themselves stand with the hash.
                writes = kvrwset_pb2.KVRWSet(
                    metadata_writes=[
                        kvrwset_pb2.KVMetadataWrite(key=key)
                        for key, _ in _in_order(recorded.metadata)
                    ]
                )
                added = writes.writes
                for key, value in _in_order(recorded.writes):
                    if value:
                        added.add(key=key, value=value)
                    else:
                        added.add(key=key, is_delete=True)
                namespace.collection_pvt_rwset.add(collection_name=collection, rwset=_bytes(writes))
        return private

    def _finished_ranges(self) -> list[_Range]:
        """Ranges in the order they were asked for, the same range only once."""
        finished: dict[tuple[str, str, str, bool], _Range] = {}
        for recorded in self._ranges:
            info = recorded.info
            reads, summary = recorded.summary.finish()
            if summary is not None:
                info.reads_merkle_hashes.CopyFrom(summary)
            elif reads:
                info.raw_reads.kv_reads.extend(reads)
            identity = (recorded.namespace, info.start_key, info.end_key, info.itr_exhausted)
            finished.setdefault(identity, recorded)
        return list(finished.values())

    # recording

    def _check_open(self) -> None:
        if self._closed:
            raise SimulationClosedError(f"the transaction cannot go on: {self._closed}")

    def _namespace(self, name: str) -> _Namespace:
        found = self._namespaces.get(name)
        if found is None:
            found = self._namespaces[name] = _Namespace()
        return found

    def _check_collection(self, namespace: str, collection: str) -> None:
        if self._lookup is None:
            return
        if namespace not in self._known_collections:
            self._known_collections[namespace] = self._lookup(self, namespace)
        if collection not in self._known_collections[namespace]:
            raise SimulationError(
                f"chaincode {namespace} has no collection {collection!r}; it has "
                f"{', '.join(sorted(self._known_collections[namespace])) or 'none'}"
            )

    def _may(self, namespace: str, collection: str) -> Access:
        space = (namespace, collection)
        access = self._access.get(space)
        if access is None:
            access = self._access[space] = (
                Access(True, True) if self._access_lookup is None else self._access_lookup(*space)
            )
        return access

    def _check_read(self, namespace: str, collection: str) -> None:
        if not self._may(namespace, collection).read:
            raise SimulationError(
                "tx creator does not have read access permission on privatedata in "
                f"chaincodeName:{namespace} collectionName: {collection}"
            )

    def _check_write(self, namespace: str, collection: str) -> None:
        if not self._may(namespace, collection).write:
            raise SimulationError(
                "tx creator does not have write access permission on privatedata in "
                f"chaincodeName:{namespace} collectionName: {collection}"
            )

    def _collection(self, namespace: str, collection: str) -> _Collection:
        collections = self._namespace(namespace).collections
        recorded = collections.get(collection)
        if recorded is None:  # else it has been checked before
            self._check_collection(namespace, collection)
            recorded = collections[collection] = _Collection()
        return recorded

    def _read(self, namespace: str, key: str) -> VersionedValue | None:
        self._count_read(len(key))
        with self._lock:
            self._check_open()
            found = self._view.get(namespace, key)
        self._namespace(namespace).reads[key] = None if found is None else found.version
        return found

    def _read_hash(self, namespace: str, collection: str, key: str) -> VersionedValue | None:
        recorded = self._collection(namespace, collection)
        self._count_read(len(key))
        with self._lock:
            self._check_open()
            found = self._view.get_private_hash(namespace, collection, self._hash(key))
        recorded.reads[key] = None if found is None else found.version
        return found

    def _hash(self, key: str) -> bytes:
        found = self._hashes.get(key)
        if found is None:
            found = self._hashes[key] = key_hash(key)
        return found

    def _count_read(self, characters: int, reads: int = 1) -> None:
        self._read_count += reads
        if self._read_count > self._max_reads:
            raise LimitError(
                f"the transaction reads {self._read_count} keys or more, but may read "
                f"{self._max_reads}; split it"
            )
        self._read_bytes += characters
        if self._read_bytes > MAX_READ_BYTES:
            raise LimitError(
                f"the keys that the transaction reads have {self._read_bytes} characters or more, "
                f"but may have {MAX_READ_BYTES}; split it"
            )

    def _before_write(self, size: int) -> None:
        self._check_open()
        if self._read_only:
            raise SimulationError(f"this transaction {self._read_only} instead")
        self._wrote = True
        self._written_bytes += size
        check_write_bytes(self._written_bytes, self._max_write_bytes)

    def _iterate(self, recorded: _Range, end: str) -> Iterator[tuple[str, bytes]]:
        info = recorded.info
        results = self._view.range(recorded.namespace, info.start_key, end)
        for key, found in self._bounded(results):
            recorded.summary.add(key, found.version)
            info.end_key = key
            yield key, found.value
        info.itr_exhausted = True
        info.end_key = end

    def _next_key(self, namespace: str, key: str, end: str) -> str:
        with self._lock:
            self._check_open()
            after = next(self._view.range(namespace, key + "\0", end), None)
        return "" if after is None else after[0]

    def _modifications(
        self, lookup: HistoryLookup, namespace: str, key: str
    ) -> Iterator[KeyModification]:
        oldest: tuple[int, int] | None = None
        seen = 0
        # Each modification is read from its block, so the first few are asked for alone.
        for limit in (_FIRST_HISTORY, MAX_HISTORY + 1):
            with self._lock:
                self._check_open()
                found = lookup(namespace, key, limit)
            for modification in found:
                position = (modification.block, modification.tx)
                if oldest is not None and position >= oldest:
                    continue  # seen, or committed since
                if seen == MAX_HISTORY:
                    raise SimulationError(
                        f"the key was written more than {MAX_HISTORY} times, further back than a "
                        "transaction can look"
                    )
                oldest = position
                seen += 1
                yield modification
            if len(found) < limit:
                return

    def _iterate_private(
        self, namespace: str, collection: str, start: str, end: str
    ) -> Iterator[tuple[str, bytes]]:
        for key, found in self._bounded(
            self._view.range_private(namespace, collection, start, end)
        ):
            yield key, found.value

    def _bounded(
        self, results: Iterator[tuple[str, VersionedValue]]
    ) -> Iterator[tuple[str, VersionedValue]]:
        count = 0
        while True:
            with self._lock:
                self._check_open()
                result = next(results, None)
            if result is None:
                return
            count += 1
            if count > self._max_range_results:
                raise LimitError(
                    f"a range has {count} results or more, but may have "
                    f"{self._max_range_results}; ask for less"
                )
            self._result_count += 1
            if self._result_count > self._max_results:
                raise LimitError(
                    f"the transaction's ranges have {self._result_count} results or more, but may "
                    f"have {self._max_results}; ask for less"
                )
            yield result


def _in_order[V](items: Mapping[str, V]) -> list[tuple[str, V]]:
    """By the keys' UTF-8 bytes, which is also the order of their code points."""
    return sorted(items.items(), key=itemgetter(0))


def _bytes(
    message: kvrwset_pb2.KVRWSet
    | kvrwset_pb2.HashedRWSet
    | rwset_pb2.TxReadWriteSet
    | rwset_pb2.TxPvtReadWriteSet,
) -> bytes:
    return message.SerializeToString(deterministic=True)


def _version(version: Version | None) -> kvrwset_pb2.Version | None:
    """None, which leaves the field out, means that the key did not exist."""
    if version is None:
        return None
    return kvrwset_pb2.Version(block_num=version.block, tx_num=version.tx)


def _read(key: str, version: Version | None) -> kvrwset_pb2.KVRead:
    return kvrwset_pb2.KVRead(key=key, version=_version(version))


def _write(key: str, value: bytes) -> kvrwset_pb2.KVWrite:
    return kvrwset_pb2.KVWrite(key=key, is_delete=not value, value=value)


def _entries(metadata: Mapping[str, bytes]) -> list[kvrwset_pb2.KVMetadataEntry]:
    return [
        kvrwset_pb2.KVMetadataEntry(name=name, value=value) for name, value in _in_order(metadata)
    ]


def _own_policy(stored: VersionedValue | None) -> bytes:
    return b"" if stored is None else metadata_entry(stored.metadata, VALIDATION_PARAMETER)


def _metadata(stored: bytes) -> dict[str, bytes]:
    try:
        entries = kvrwset_pb2.KVMetadataWrite.FromString(stored).entries
    except DecodeError as error:
        raise SimulationError("the stored metadata of a key cannot be read") from error
    return {entry.name: entry.value for entry in entries}


def _private_hash(private: rwset_pb2.TxPvtReadWriteSet, namespace: str, collection: str) -> bytes:
    for recorded in private.ns_pvt_rwset:
        if recorded.namespace == namespace:
            for written in recorded.collection_pvt_rwset:
                if written.collection_name == collection:
                    return hashlib.sha256(written.rwset).digest()
    return b""
