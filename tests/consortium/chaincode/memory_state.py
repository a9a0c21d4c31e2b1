"""A world state in memory that takes simulation results as a peer's commit would."""

from collections.abc import Iterator

from consortium.chaincode.simulator import SimulationResults
from consortium.ledger.merkle import RangeSummary
from consortium.ledger.state import (
    PrivateDataUnavailableError,
    Version,
    VersionedValue,
    key_hash,
)
from consortium.wire import kvrwset_pb2, rwset_pb2

VALID, MVCC_READ_CONFLICT, PHANTOM_READ_CONFLICT = 0, 11, 12


class MemoryState:
    """Implements StateView; `commit` validates versions and applies a block."""

    def __init__(self) -> None:
        self.block = 0
        self.public: dict[tuple[str, str], VersionedValue] = {}
        self.private: dict[tuple[str, str, str], VersionedValue] = {}
        self.hashes: dict[tuple[str, str, bytes], VersionedValue] = {}

    # StateView

    def get(self, namespace: str, key: str) -> VersionedValue | None:
        return self.public.get((namespace, key))

    def range(self, namespace: str, start: str, end: str) -> Iterator[tuple[str, VersionedValue]]:
        for (name, key), value in sorted(self.public.items()):
            if name == namespace and key >= start and (not end or key < end):
                yield key, value

    def get_private(self, namespace: str, collection: str, key: str) -> VersionedValue | None:
        value = self.private.get((namespace, collection, key))
        if value is None and self.get_private_hash(namespace, collection, key_hash(key)):
            raise PrivateDataUnavailableError(f"the private value of {key!r} is not on this peer")
        return value

    def range_private(
        self, namespace: str, collection: str, start: str, end: str
    ) -> Iterator[tuple[str, VersionedValue]]:
        for (name, where, key), value in sorted(self.private.items()):
            if (name, where) == (namespace, collection) and start <= key and key < end:
                yield key, value

    def get_private_hash(
        self, namespace: str, collection: str, key_hash: bytes
    ) -> VersionedValue | None:
        return self.hashes.get((namespace, collection, key_hash))

    # committing

    def commit(self, *transactions: SimulationResults) -> list[int]:
        """Validate and apply a block of transactions; their validation codes."""
        self.block += 1
        codes = []
        for index, results in enumerate(transactions):
            code = self._validate(results)
            if code == VALID:
                self.apply(results.rwset, results.private, Version(self.block, index))
            codes.append(code)
        return codes

    def apply(
        self, rwset: bytes, private: rwset_pb2.TxPvtReadWriteSet | None, version: Version
    ) -> None:
        for namespace in rwset_pb2.TxReadWriteSet.FromString(rwset).ns_rwset:
            name = namespace.namespace
            public = kvrwset_pb2.KVRWSet.FromString(namespace.rwset)
            for write in public.writes:
                self._put(self.public, (name, write.key), write.is_delete, write.value, version)
            for metadata in public.metadata_writes:
                old = self.public.get((name, metadata.key))
                if old is not None:
                    stored = kvrwset_pb2.KVMetadataWrite(
                        key="", entries=metadata.entries
                    ).SerializeToString()
                    self.public[name, metadata.key] = VersionedValue(old.value, stored, version)
            for collection in namespace.collection_hashed_rwset:
                hashed = kvrwset_pb2.HashedRWSet.FromString(collection.hashed_rwset)
                for write_hash in hashed.hashed_writes:
                    where = (name, collection.collection_name, write_hash.key_hash)
                    self._put(
                        self.hashes, where, write_hash.is_delete, write_hash.value_hash, version
                    )
        for private_namespace in private.ns_pvt_rwset if private else ():
            for written in private_namespace.collection_pvt_rwset:
                for write in kvrwset_pb2.KVRWSet.FromString(written.rwset).writes:
                    place = (private_namespace.namespace, written.collection_name, write.key)
                    self._put(self.private, place, write.is_delete, write.value, version)

    def values(self) -> dict[tuple[str, ...], bytes]:
        """All values, public and private, without versions."""
        return {key: value.value for key, value in (*self.public.items(), *self.private.items())}

    @staticmethod
    def _put[K](
        table: dict[K, VersionedValue], key: K, delete: bool, value: bytes, version: Version
    ) -> None:
        if delete:
            table.pop(key, None)
        else:
            old = table.get(key)
            table[key] = VersionedValue(value, old.metadata if old else b"", version)

    def _validate(self, results: SimulationResults) -> int:
        for namespace in rwset_pb2.TxReadWriteSet.FromString(results.rwset).ns_rwset:
            name = namespace.namespace
            public = kvrwset_pb2.KVRWSet.FromString(namespace.rwset)
            for read in public.reads:
                if _version(read) != _stored(self.public.get((name, read.key))):
                    return MVCC_READ_CONFLICT
            for info in public.range_queries_info:
                if not self._same_range(name, info):
                    return PHANTOM_READ_CONFLICT
            for collection in namespace.collection_hashed_rwset:
                hashed = kvrwset_pb2.HashedRWSet.FromString(collection.hashed_rwset)
                for read_hash in hashed.hashed_reads:
                    where = (name, collection.collection_name, read_hash.key_hash)
                    if _version(read_hash) != _stored(self.hashes.get(where)):
                        return MVCC_READ_CONFLICT
        return VALID

    def _same_range(self, namespace: str, info: kvrwset_pb2.RangeQueryInfo) -> bool:
        end = info.end_key if info.itr_exhausted else info.end_key + "\0"
        summary = RangeSummary()
        for key, value in self.range(namespace, info.start_key, end):
            summary.add(key, value.version)
        reads, merkle = summary.finish()
        if merkle is not None:
            return merkle == info.reads_merkle_hashes
        return list(info.raw_reads.kv_reads) == reads


def _version(read: kvrwset_pb2.KVRead | kvrwset_pb2.KVReadHash) -> Version | None:
    if not read.HasField("version"):
        return None
    return Version(read.version.block_num, read.version.tx_num)


def _stored(value: VersionedValue | None) -> Version | None:
    return None if value is None else value.version
