"""A channel's ledger on one peer: it takes blocks and gives views of what they come to.

Everything a block does (state, indexes, history, private data, the index of the block itself) is
one LMDB transaction. The block's bytes go to a segment file before it, whose valid length is part
of that transaction: after a crash the block is there with all its effects, or not at all.

A ledger begins with a genesis block, or with a snapshot of another peer's (`snapshot`). Then it
knows the state and the transaction ids up to there, but neither blocks nor history.
"""

import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf.message import DecodeError

from consortium.storage.environment import (
    DiskError,
    Environment,
    ReadTransaction,
    WriteTransaction,
)
from consortium.storage.segments import End, Location, Segments, follows
from consortium.wire import common_pb2, lifecycle_pb2, peer_pb2
from consortium.wire.blocks import COMMIT_HASH, METADATA_SLOTS, TRANSACTIONS_FILTER, header_hash
from consortium.wire.envelopes import parse

from . import history, private_data
from .channel_config import ChannelConfig
from .erasing import Eraser
from .history import HISTORY, KeyModification
from .lifecycle import NAMESPACE as LIFECYCLE
from .lifecycle import Policies
from .mvcc import UpdateBatch, encode_field, varint
from .private_data import PrivateEffects, PrivatePlace, WantedSet
from .rwset import VALID, NamespaceSet, Transaction, open_transaction
from .state import (
    STATE,
    LedgerError,
    RememberedState,
    StoredState,
    encode_parts,
    hash_key,
    state_key,
)
from .validator import (
    CONFIG_KEY,
    BlockError,
    Judge,
    Outcome,
    check_block_form,
    genesis_outcome,
    open_block,
    validate_block,
    verify_block_signature,
)

FORMAT_VERSION = 2
BLOCKS = "blocks"
BLOCK_HASHES = "block_hashes"
TRANSACTIONS = "transactions"
CONFIG_HISTORY = "config_history"
META = "ledger"
TABLES = (
    STATE,
    HISTORY,
    BLOCKS,
    BLOCK_HASHES,
    TRANSACTIONS,
    CONFIG_HISTORY,
    META,
    *private_data.TABLES,
)

HISTORY_LIMIT = 1000
"""Entries of a key's history returned at once."""

MISSING_LIMIT = 1000
"""Missing private write sets listed at once."""

_BLOCK_ENTRY = struct.Struct(">IQI32s32s")  # segment, offset, length, header hash, commit hash
BEFORE_SNAPSHOT = b""
"""Entry of a transaction id that only a snapshot names."""
_TRANSACTION_ENTRY = struct.Struct(">QIB")  # block, index, code
_STATUS = struct.Struct(">QIQ")  # height, last segment, its length
_STATUS_KEY = b"status"
_CHANNEL_KEY = b"channel"  # of a ledger that begins with a snapshot
_BASE = struct.Struct(">Q32s32s32s32s")
# last block, its hash, its predecessor's, its commit hash, the snapshot's hash
_BASE_KEY = b"base"
_MSP_KEY = b"msp"
_REMOVED_KEY = b"private data removed"
SNAPSHOT_REQUEST = b"snapshot\0"
"""What notes of asked-for snapshots begin with; the block's number follows."""
_CHANNEL_CONFIG = b"channel\0"
_COLLECTIONS = b"collections\0"


class BeforeSnapshotError(LedgerError):
    """What was asked for lies before the snapshot that this ledger begins with."""


@dataclass(frozen=True, slots=True)
class Base:
    """The snapshot that a ledger begins with."""

    last_block: int
    last_hash: bytes
    previous_hash: bytes
    commit_hash: bytes
    """Empty if the snapshot was made after block 0."""
    snapshot_hash: bytes
    """SHA-256 of its signable metadata: what its maker vouches for."""

    def to_bytes(self) -> bytes:
        """The base as it is stored."""
        return _BASE.pack(
            self.last_block,
            self.last_hash,
            self.previous_hash,
            self.commit_hash,
            self.snapshot_hash,
        )

    @classmethod
    def from_bytes(cls, stored: bytes) -> Base:
        """The inverse of `to_bytes`."""
        number, last, previous, commit, snapshot = _BASE.unpack(stored)
        return cls(number, last, previous, commit if number else b"", snapshot)


@dataclass(frozen=True, slots=True)
class TransactionRecord:
    """Where a transaction stands and what became of it."""

    block: int
    index: int
    code: int
    """`protos.TxValidationCode`."""


@dataclass(frozen=True, slots=True)
class CommittedBlock:
    """A committed block and what its transactions came to."""

    number: int
    codes: bytes
    """One `protos.TxValidationCode` a transaction."""
    commit_hash: bytes
    """Empty for block 0."""
    transaction_ids: tuple[str, ...]
    events: tuple[tuple[int, peer_pb2.ChaincodeEvent], ...]
    """Chaincode events of valid transactions, with the transaction's index."""
    raw: bytes
    """The block as stored: as ordered, with transaction filter and commit hash filled in."""
    config_changed: bool


@dataclass(frozen=True, slots=True)
class ValidatedBlock:
    """The next block and what it comes to; nothing of it is stored yet."""

    block: common_pb2.Block
    transactions: Sequence[Transaction]
    outcome: Outcome
    wanted: tuple[WantedSet, ...]
    """Private write sets that this peer should keep and has not got."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a ledger stands after its last block."""

    height: int
    last_hash: bytes
    commit_hash: bytes
    previous_hash: bytes = b""


class Ledger:
    """One channel's ledger. Views may be taken from any thread; commits queue up."""

    def __init__(
        self,
        environment: Environment,
        segments: Segments,
        msp_id: str,
        *,
        threads: int | None = None,
    ) -> None:
        """Use `Ledger.open`."""
        self._environment = environment
        self._segments = segments
        self._msp_id = msp_id
        self._commit_lock = threading.Lock()
        self._threads = ThreadPoolExecutor(
            threads or min(4, os.cpu_count() or 1), thread_name_prefix="ledger-verify"
        )
        self._position = Position(0, b"", b"")
        self._judge: Judge | None = None
        self._base: Base | None = None
        self.eraser = Eraser(
            environment, self.commits_paused, lambda: self.note(_REMOVED_KEY, None)
        )
        """Overwrites what was purged or has expired."""
        self.after_commit: Callable[[int], None] | None = None
        """Called with each block's number right after it, before another can be committed."""

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        msp_id: str,
        genesis: common_pb2.Block | None = None,
        durable: bool = True,
        read_only: bool = False,
    ) -> Ledger:
        """Open the ledger in a folder, or start it from a genesis block.

        `msp_id` is this peer's organization: it decides which private data are kept. With
        `durable=False` nothing is flushed to disk (scratch copies). With `read_only` nothing is
        repaired or cut off, so that a peer may be writing at the same time. Raises LedgerError,
        StorageError, SegmentError.
        """
        environment = Environment(
            path / "index",
            TABLES,
            format_version=FORMAT_VERSION,
            migrations=_MIGRATIONS,
            durable=durable,
            read_only=read_only,
        )
        try:
            with environment.read() as transaction:
                height, segment, length = _status(transaction)
                owner = transaction.get(META, _MSP_KEY)
                removed = transaction.get(META, _REMOVED_KEY) is not None
            if owner is not None and owner != msp_id.encode():
                raise LedgerError(
                    f"the ledger at {path} belongs to a peer of {owner.decode()}, not of {msp_id}: "
                    "its private data would not fit. Use another folder."
                )
            segments = Segments(
                path / "blocks", End(segment, length), durable=durable, read_only=read_only
            )
        except BaseException:
            environment.close()
            raise
        ledger = cls(environment, segments, msp_id)
        try:
            if height:
                ledger._resume()
                ledger._check_genesis(genesis)
            elif genesis is not None:
                ledger._start(genesis)
            if removed and not read_only:
                ledger.eraser.request()
        except BaseException:
            ledger.close()
            raise
        return ledger

    @staticmethod
    def owner(path: Path) -> str:
        """The MSP id of the organization whose peer keeps the ledger in a folder."""
        if not (path / "index").is_dir():
            raise LedgerError(f"there is no ledger in {path}: check the path")
        environment = Environment(
            path / "index",
            TABLES,
            format_version=FORMAT_VERSION,
            migrations=_MIGRATIONS,
            read_only=True,
        )
        try:
            with environment.read() as transaction:
                owner = transaction.get(META, _MSP_KEY)
        finally:
            environment.close()
        if owner is None:
            raise LedgerError(f"the ledger in {path} is empty")
        return owner.decode()

    @staticmethod
    def stored_end(path: Path) -> tuple[int, End]:
        """The height of a ledger that nobody has open, and where its segments end."""
        environment = Environment(
            path / "index",
            TABLES,
            format_version=FORMAT_VERSION,
            migrations=_MIGRATIONS,
            read_only=True,
        )
        try:
            with environment.read() as transaction:
                height, segment, length = _status(transaction)
        finally:
            environment.close()
        return height, End(segment, length)

    def close(self) -> None:
        """Close the files; no view may be open."""
        self.eraser.close()
        self._threads.shutdown()
        self._segments.close()
        self._environment.close()

    def __enter__(self) -> Self:
        """The ledger itself."""
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def watch_disk(self, refused: Callable[[DiskError], None]) -> None:
        """Have `refused` told, on any thread, when the disk refuses a write."""
        self._environment.on_disk_error = refused
        self._segments.on_disk_error = refused

    # --- where it stands ---

    @property
    def channel_id(self) -> str:
        """The channel's name."""
        return self.config.channel_id

    @property
    def msp_id(self) -> str:
        """This peer's organization."""
        return self._msp_id

    @property
    def height(self) -> int:
        """Number of blocks, and the number of the next one."""
        return self._position.height

    @property
    def last_block_hash(self) -> bytes:
        """The header hash of the last block, which the next one must name."""
        return self._position.last_hash

    @property
    def previous_block_hash(self) -> bytes:
        """The header hash of the last block but one, empty for a chain of one block."""
        return self._position.previous_hash

    @property
    def base(self) -> Base | None:
        """The snapshot that this ledger begins with; None if it has every block."""
        return self._base

    @property
    def first_block(self) -> int:
        """The number of the first block that is here, or will be."""
        return self._base.last_block + 1 if self._base else 0

    @property
    def commit_hash(self) -> bytes:
        """The commit hash of the last block, empty after block 0."""
        return self._position.commit_hash

    @property
    def config(self) -> ChannelConfig:
        """The configuration that the next block is judged by."""
        if self._judge is None:
            raise LedgerError("the ledger is empty: open it with the channel's genesis block")
        return self._judge.config

    # --- reading ---

    @contextmanager
    def view(self) -> Iterator[StoredState]:
        """A consistent view of the state; keep it short, open views make the file grow."""
        with self._environment.read() as transaction:
            yield StoredState(transaction)

    def block(self, number: int) -> bytes:
        """A stored block's bytes; raises LedgerError if there is none yet."""
        with self._environment.read() as transaction:
            location, _, _ = self._block_entry(transaction, number)
        return self._segments.read(location)

    def block_hash(self, number: int) -> bytes:
        """A stored block's header hash."""
        with self._environment.read() as transaction:
            return self._block_entry(transaction, number)[1]

    def block_commit_hash(self, number: int) -> bytes:
        """A stored block's commit hash."""
        with self._environment.read() as transaction:
            return self._block_entry(transaction, number)[2]

    def block_by_hash(self, digest: bytes) -> bytes | None:
        """The block with a header hash, or None."""
        with self._environment.read() as transaction:
            number = transaction.get(BLOCK_HASHES, digest)
            if number is None and self._environment.stored_format < 2:  # read only, no index yet
                number = next(
                    (
                        key
                        for key, entry in transaction.range(BLOCKS)
                        if _BLOCK_ENTRY.unpack(entry)[3] == digest
                    ),
                    None,
                )
        return None if number is None else self.block(int.from_bytes(number))

    def block_by_transaction(self, transaction_id: str) -> bytes | None:
        """The block that holds a transaction, or None."""
        record = self.transaction(transaction_id)
        return None if record is None else self.block(record.block)

    def transaction(self, transaction_id: str) -> TransactionRecord | None:
        """Where a transaction id stands, or None.

        Of several envelopes with one id, that is the valid one, else the first. Raises
        BeforeSnapshotError for one that a snapshot names: no more is known of it.
        """
        with self._environment.read() as transaction:
            return _transaction_record(transaction, transaction_id, self.first_block)

    def knows_transaction(self, transaction_id: str) -> bool:
        """Whether a transaction id was used, before a snapshot or after it."""
        with self._environment.read() as transaction:
            return _is_known(transaction, transaction_id)

    def transaction_envelope(self, transaction_id: str) -> bytes | None:
        """A transaction's envelope as it was ordered, or None."""
        record = self.transaction(transaction_id)
        if record is None:
            return None
        return bytes(self._parsed(record.block).data.data[record.index])

    def history(
        self, namespace: str, key: str, limit: int = HISTORY_LIMIT
    ) -> list[KeyModification]:
        """The writes of a public key by valid transactions, newest first."""
        with self._environment.read() as transaction:
            found = history.positions(transaction, namespace, key)
            places = list(islice(found, limit))
        modifications = []
        for block, tx in places:
            one = open_transaction(tx, self._parsed(block).data.data[tx])
            modifications.append(history.modification(block, one, namespace, key))
        return modifications

    def config_at(self, number: int) -> ChannelConfig:
        """The configuration that block `number` is judged by (its own for block 0).

        Raises BeforeSnapshotError for a block that a snapshot covers.
        """
        if self._base is not None and number <= self._base.last_block:
            raise self._before_snapshot(f"the configuration of block {number}")
        latest, kept = 0, b""
        with self._environment.read() as transaction:
            for key, value in transaction.prefixed(CONFIG_HISTORY, _CHANNEL_CONFIG):
                changed = int.from_bytes(key[-8:])
                if changed and changed >= number:
                    break
                latest, kept = changed, value
        if kept:
            envelope = parse(common_pb2.ConfigEnvelope, kept, "the snapshot's configuration")
            return ChannelConfig.from_config(self.channel_id, envelope.config)
        return ChannelConfig.from_block(self._parsed(latest))

    def last_config_block(self) -> int:
        """The number of the last configuration block; raises BeforeSnapshotError."""
        number, kept = 0, b""
        with self._environment.read() as transaction:
            for key, value in transaction.prefixed(CONFIG_HISTORY, _CHANNEL_CONFIG):
                number, kept = int.from_bytes(key[-8:]), value
        if kept:
            raise self._before_snapshot("the last configuration block")
        return number

    def _before_snapshot(self, what: str) -> BeforeSnapshotError:
        return BeforeSnapshotError(
            f"{what} is not here: this ledger begins with a snapshot, its first block is "
            f"{self.first_block}. Ask a peer that has the whole chain."
        )

    def collections_at(
        self, chaincode: str, number: int
    ) -> peer_pb2.CollectionConfigPackage | None:
        """A contract's explicit collections as they were before block `number`."""
        found = None
        prefix = _COLLECTIONS + chaincode.encode() + b"\0"
        with self._environment.read() as transaction:
            for key, value in transaction.prefixed(CONFIG_HISTORY, prefix):
                if int.from_bytes(key[-8:]) < number:
                    found = value
        return None if found is None else peer_pb2.CollectionConfigPackage.FromString(found)

    def policies(self, view: StoredState) -> Policies:
        """The endorsement policies that hold in a view."""
        return Policies(view, self.config)

    # --- private data ---

    def store_transient(
        self, transaction_id: str, data: bytes, height: int, source: str = ""
    ) -> None:
        """Keep `TxPvtReadWriteSet` bytes until their transaction commits; raises PrivateDataError.

        `height` is the ledger's height at endorsement, for `purge_transient`; `source` the MSP id
        of the endorser, this peer's own unless given.
        """
        source = source or self._msp_id
        self._environment.write(
            lambda t: private_data.store_transient(t, transaction_id, data, height, source)
        )

    def transient(self, transaction_id: str) -> list[bytes]:
        """The `TxPvtReadWriteSet`s waiting for a transaction."""
        with self._environment.read() as transaction:
            return list(private_data.transient_sets(transaction, transaction_id))

    def waiting_sets(self, transaction_id: str, namespace: str, collection: str) -> list[bytes]:
        """A collection's write sets (`KVRWSet` bytes) that wait for a transaction to commit."""
        with self._environment.read() as transaction:
            space = (namespace, collection)
            return list(private_data.waiting_sets(transaction, transaction_id, space))

    def purge_transient(self, below_height: int) -> int:
        """Remove sets that were stored below that height and never committed; how many."""

        def purge(transaction: WriteTransaction) -> int:
            count = private_data.purge_transient(transaction, below_height)
            if count:
                transaction.put(META, _REMOVED_KEY, b"")
            return count

        with self._commit_lock:
            count = self._environment.write(purge)
            if count:
                self.eraser.request()
        return count

    def missing_private(
        self, limit: int = MISSING_LIMIT, *, after: PrivatePlace | None = None
    ) -> list[PrivatePlace]:
        """Write sets that this peer should have and lacks, oldest first."""
        start = b"" if after is None else after.to_key() + b"\0"
        with self._environment.read() as transaction:
            entries = transaction.range(private_data.MISSING, start)
            return [PrivatePlace.from_key(key) for key, _ in islice(entries, limit)]

    def make_eligible(self, limit: int = MISSING_LIMIT) -> int:
        """List as missing what collections held before this organization joined them.

        Takes `limit` blocks at once; returns how many it took, 0 when there is no more to do.
        """
        with self._environment.read() as transaction:
            if next(transaction.range(private_data.ELIGIBLE), None) is None:
                return 0
        return self._environment.write(lambda t: private_data.make_eligible(t, limit))

    def collection_at(
        self, namespace: str, collection: str, number: int
    ) -> peer_pb2.StaticCollectionConfig | None:
        """A collection's configuration as it was before block `number`; None: there was none."""
        package = self.collections_at(namespace, number)
        for config in package.config if package else ():
            if config.static_collection_config.name == collection:
                return config.static_collection_config
        return None

    def private_set(self, place: PrivatePlace) -> bytes | None:
        """A private write set (`KVRWSet` bytes) that this peer holds, without purged keys."""
        with self._environment.read() as transaction:
            return transaction.get(private_data.SETS, place.to_key())

    def private_sets(self, number: int) -> list[tuple[PrivatePlace, bytes]]:
        """All private write sets of a block that this peer holds, as `private_set` gives them."""
        with self._environment.read() as transaction:
            return list(private_data.sets_of_block(transaction, number))

    def reconcile(self, place: PrivatePlace, data: bytes) -> None:
        """Take a missing private write set; raises PrivateDataError if it does not fit."""
        with self._commit_lock:
            expected = self._private_writes(place)
            height, config = self.height, self.config

            def change(transaction: WriteTransaction) -> None:
                policies = Policies(StoredState(transaction), config)
                private_data.reconcile(transaction, place, data, expected, policies, height)

            self._environment.write(change)

    def _private_writes(self, place: PrivatePlace) -> Sequence[NamespaceSet]:
        if place.block < self.first_block:
            with self._environment.read() as transaction:
                return private_data.snapshot_writes(transaction, place)
        envelopes = self._parsed(place.block).data.data
        if place.tx >= len(envelopes):
            raise private_data.PrivateDataError(
                f"block {place.block} has no transaction {place.tx}"
            )
        return open_transaction(place.tx, envelopes[place.tx]).namespaces

    # --- committing ---

    def commit(
        self,
        block: common_pb2.Block,
        raw: bytes | None = None,
        *,
        verify_signature: bool = True,
    ) -> CommittedBlock:
        """Validate the next block and store it with its effects.

        A block that is committed already is ignored, so a stream may start too early. `raw` is
        what arrived; as the peer adds to the metadata, other bytes are stored, and it is not
        needed. The orderers' signature is checked unless the caller did so. Raises BlockError for
        a gap, a fork, or a block that nobody may commit.
        """
        with self._commit_lock:
            validated = self._validate(block, verify_signature)
            if isinstance(validated, CommittedBlock):
                return validated
            return self._commit(validated, {})

    def validate(self, block: common_pb2.Block) -> ValidatedBlock | CommittedBlock:
        """The first half of `commit`: judge the next block, and say which private data it needs.

        What is committed already is returned as such. Raises as `commit` does.
        """
        with self._commit_lock:
            return self._validate(block, True)

    def commit_validated(
        self, validated: ValidatedBlock, fetched: Mapping[PrivatePlace, bytes]
    ) -> CommittedBlock:
        """The second half of `commit`: store the block, with private write sets that were fetched.

        What does not have the hash that the block holds is ignored, and listed as missing. Raises
        BlockError if another block was committed in between.
        """
        with self._commit_lock:
            number = validated.block.header.number
            if number != self.height:
                raise BlockError(
                    f"block {number} was validated for a ledger of {number} blocks, and there are "
                    f"{self.height} now: validate it again"
                )
            return self._commit(validated, fetched)

    def _validate(
        self, block: common_pb2.Block, verify_signature: bool
    ) -> ValidatedBlock | CommittedBlock:
        number = block.header.number
        if number < self.height:
            return self._already_committed(block)
        if number > self.height:
            raise BlockError(
                f"block {number} cannot be committed: the ledger is at height {self.height}, "
                f"so block {self.height} is next"
            )
        if block.header.previous_hash != self.last_block_hash:
            raise BlockError(
                f"block {number} does not follow block {number - 1} of this ledger: the hashes "
                "differ. It belongs to another channel or another history."
            )
        judge = self._require_judge()
        check_block_form(block)
        if verify_signature:
            verify_block_signature(block, judge.config)
        transactions = open_block(block)
        with self._environment.read(privileged=True) as transaction:
            state = RememberedState(transaction)
            outcome = validate_block(
                number,
                transactions,
                judge,
                state,
                lambda one: _is_known(transaction, one),
                self._threads,
            )
            wanted = private_data.wanted(
                number,
                transactions,
                outcome.codes,
                Policies(state, judge.config),
                transaction,
                self._msp_id,
            )
        return ValidatedBlock(block, transactions, outcome, tuple(wanted))

    def _commit(
        self, validated: ValidatedBlock, fetched: Mapping[PrivatePlace, bytes]
    ) -> CommittedBlock:
        block, transactions, outcome = validated.block, validated.transactions, validated.outcome
        with self._environment.read(privileged=True) as transaction:
            effects = private_data.prepare(
                block.header.number,
                transactions,
                outcome.codes,
                outcome.updates,
                Policies(StoredState(transaction), self._require_judge().config),
                transaction,
                self._msp_id,
                fetched,
            )
        return self._store(block, transactions, outcome, effects)

    def _require_judge(self) -> Judge:
        if self._judge is None:
            raise LedgerError("the ledger is empty: open it with the channel's genesis block")
        return self._judge

    def _store(
        self,
        block: common_pb2.Block,
        transactions: Sequence[Transaction],
        outcome: Outcome,
        effects: PrivateEffects,
    ) -> CommittedBlock:
        number = block.header.number
        commit_hash = b""
        if number > 0:
            commit_hash = hashlib.sha256(
                varint(len(outcome.codes))
                + outcome.codes
                + outcome.updates.to_bytes()
                + self.commit_hash
            ).digest()
        stored = _with_results(block, outcome.codes, commit_hash)
        digest = header_hash(block.header)
        before = self._segments.end
        location = self._segments.append(stored)
        try:
            self._segments.flush()
            end = self._segments.end

            def change(transaction: WriteTransaction) -> None:
                entry = _BLOCK_ENTRY.pack(
                    location.segment, location.offset, location.length, digest, commit_hash
                )
                transaction.put(BLOCKS, number.to_bytes(8), entry)
                transaction.put(BLOCK_HASHES, digest, number.to_bytes(8))
                transaction.put(
                    META, _STATUS_KEY, _STATUS.pack(number + 1, end.segment, end.length)
                )
                _write_transactions(transaction, number, transactions, outcome.codes)
                _write_state(transaction, outcome.updates)
                private_data.write(transaction, number, effects)
                if effects.removes:
                    transaction.put(META, _REMOVED_KEY, b"")
                _write_config_history(transaction, number, outcome)
                if number == 0:
                    transaction.put(META, _MSP_KEY, self._msp_id.encode())

            self._environment.write(change)
        except BaseException:
            self._segments.rewind(before)
            raise
        if outcome.config is not None:
            self._judge = Judge(outcome.config)
        self._position = Position(number + 1, digest, commit_hash, block.header.previous_hash)
        if effects.removes:
            self.eraser.request()
        if self.after_commit is not None:
            self.after_commit(number)
        return _committed(number, transactions, outcome.codes, commit_hash, stored)

    def _start(self, genesis: common_pb2.Block) -> None:
        if genesis.header.number != 0:
            raise BlockError(f"block {genesis.header.number} is no genesis block: that is block 0")
        check_block_form(genesis)
        self._store(genesis, open_block(genesis), genesis_outcome(genesis), PrivateEffects())

    def _resume(self) -> None:
        with self._environment.read() as transaction:
            stored = transaction.get(META, _BASE_KEY)
            self._base = Base.from_bytes(stored) if stored else None
            height = _status(transaction)[0]
            if height > self.first_block:
                _, last_hash, commit_hash = self._block_entry(transaction, height - 1)
            config = StoredState(transaction).get("", CONFIG_KEY)
            channel_id = transaction.get(META, _CHANNEL_KEY) or b""
        if height > self.first_block:
            previous = self._parsed(height - 1).header.previous_hash
            self._position = Position(height, last_hash, commit_hash, previous)
        elif self._base is not None:
            base = self._base
            self._position = Position(height, base.last_hash, base.commit_hash, base.previous_hash)
        if self._base is None:
            block = self._parsed(self.last_config_block())
            self._judge = Judge(ChannelConfig.from_block(block))
            if config is None and not self._environment.read_only:
                # Format 1 lacked the entry where a genesis block has no creator.
                first = genesis_outcome(self._parsed(0)).updates
                self._environment.write(lambda t: _write_state(t, first))
        elif config is None:
            raise LedgerError("the ledger's state lacks the channel's configuration: verify it")
        else:
            envelope = parse(common_pb2.ConfigEnvelope, config.value, "the stored configuration")
            self._judge = Judge(ChannelConfig.from_config(channel_id.decode(), envelope.config))

    def _check_genesis(self, genesis: common_pb2.Block | None) -> None:
        if genesis is None:
            return
        if self._base is not None:
            if ChannelConfig.from_block(genesis).channel_id != self.channel_id:
                raise BlockError(
                    f"the ledger began with a snapshot of channel {self.channel_id}, and the "
                    "genesis block is another channel's: use the folder of the right channel"
                )
        elif header_hash(genesis.header) != self.block_hash(0):
            raise BlockError(
                "the ledger was started from another genesis block: use the folder of the right "
                "channel, or an empty one"
            )

    def _already_committed(self, block: common_pb2.Block) -> CommittedBlock:
        number = block.header.number
        if number < self.first_block:
            raise self._before_snapshot(f"block {number}")
        if header_hash(block.header) != self.block_hash(number):
            raise BlockError(
                f"another block {number} is committed already: the ordering node that sent this "
                "one has forked. Fetch from another node, and tell its operator."
            )
        return self.committed(number)

    def committed(self, number: int) -> CommittedBlock:
        """What became of a committed block."""
        raw = self.block(number)
        block = parse(common_pb2.Block, raw, f"stored block {number}")
        codes = bytes(block.metadata.metadata[TRANSACTIONS_FILTER])
        transactions = open_block(block)
        return _committed(number, transactions, codes, self.block_commit_hash(number), raw)

    # --- helpers ---

    def _parsed(self, number: int) -> common_pb2.Block:
        return parse(common_pb2.Block, self.block(number), f"stored block {number}")

    def _block_entry(
        self, transaction: ReadTransaction, number: int
    ) -> tuple[Location, bytes, bytes]:
        entry = transaction.get(BLOCKS, number.to_bytes(8))
        if entry is None and number < self.first_block:
            raise self._before_snapshot(f"block {number}")
        if entry is None:
            raise LedgerError(
                f"there is no block {number}: the ledger is at height {_status(transaction)[0]}"
            )
        segment, offset, length, digest, commit_hash = _BLOCK_ENTRY.unpack(entry)
        return Location(segment, offset, length), digest, commit_hash if number else b""

    # --- for verification ---

    def private_writes_of(self, place: PrivatePlace) -> Sequence[NamespaceSet]:
        """The hashes that a private write set must have; raises PrivateDataError, LedgerError."""
        return self._private_writes(place)

    @property
    def indexes_hashes(self) -> bool:
        """Whether the index of block hashes is there: not in format 1, opened read only."""
        return self._environment.stored_format >= 2

    @staticmethod
    def stored_hashes(tables: ReadTransaction, number: int) -> tuple[bytes, bytes]:
        """A block's header hash and commit hash as the index holds them (zeros for block 0)."""
        entry = tables.get(BLOCKS, number.to_bytes(8))
        if entry is None:
            raise LedgerError(f"the index lacks block {number}")
        _, _, _, digest, commit_hash = _BLOCK_ENTRY.unpack(entry)
        return digest, commit_hash

    def misplaced(self, tables: ReadTransaction, height: int) -> str:
        """What is wrong with where blocks lie and where the ledger ends; empty if nothing is."""
        end, number = End(), self.first_block
        for key, entry in tables.range(BLOCKS):
            if int.from_bytes(key) != number:
                return f"the index lacks block {number}"
            segment, offset, length, _, _ = _BLOCK_ENTRY.unpack(entry)
            if not follows(end, Location(segment, offset, length)):
                return f"the index holds a wrong place of block {number}"
            end = End(segment, offset + length)
            number += 1
        if _status(tables) != (height, end.segment, end.length):
            return f"the ledger says that it ends elsewhere than with its last block, {height - 1}"
        channel = tables.get(META, _CHANNEL_KEY)
        if channel is not None and channel != self.channel_id.encode():
            return f"the ledger is noted to be of channel {channel!r}"
        return ""

    def tables(self) -> AbstractContextManager[ReadTransaction]:
        """All tables as they are stored, for verification and snapshots."""
        return self._environment.read(privileged=True)

    def position_in(self, tables: ReadTransaction) -> Position:
        """Where the ledger stood when `tables` were opened."""
        height = _status(tables)[0]
        if self._base is not None and height == self.first_block:
            base = self._base
            return Position(height, base.last_hash, base.commit_hash, base.previous_hash)
        location, digest, commit_hash = self._block_entry(tables, height - 1)
        block = parse(common_pb2.Block, self._segments.read(location), "the last block")
        return Position(height, digest, commit_hash, block.header.previous_hash)

    def commits_paused(self) -> AbstractContextManager[object]:
        """Between two commits, for as long as it is held."""
        return self._commit_lock

    def note(self, key: bytes, value: bytes | None) -> None:
        """Keep a note beside the chain, None: no more. Used by `snapshot`, for its requests."""

        def change(transaction: WriteTransaction) -> None:
            if value is None:
                transaction.delete(META, key)
            else:
                transaction.put(META, key, value)

        self._environment.write(change)

    @staticmethod
    def collection_history(tables: ReadTransaction) -> Iterator[tuple[bytes, int, bytes]]:
        """Contract, block and `CollectionConfigPackage` bytes of every change of collections."""
        for key, value in tables.prefixed(CONFIG_HISTORY, _COLLECTIONS):
            yield key[len(_COLLECTIONS) : -9], int.from_bytes(key[-8:]), value

    @staticmethod
    def collection_history_key(chaincode: bytes, number: int) -> bytes:
        """The key of such a change."""
        return _COLLECTIONS + chaincode + b"\0" + number.to_bytes(8)


def unknown_notes(tables: ReadTransaction) -> Iterator[bytes]:
    """Keys among the ledger's notes that nothing of ours writes, or not like that."""
    known = {_STATUS_KEY, _CHANNEL_KEY, _BASE_KEY, _MSP_KEY}
    for key, value in tables.range(META):
        is_note = key == _REMOVED_KEY or (
            key.startswith(SNAPSHOT_REQUEST) and len(key) == len(SNAPSHOT_REQUEST) + 8
        )
        if key not in known and not (is_note and not value):
            yield key


def write_base(
    transaction: WriteTransaction, base: Base, channel_id: str, msp_id: str, config: bytes
) -> None:
    """Make the tables those of a ledger that begins after a snapshot's last block.

    `config` is the configuration in force (`ConfigEnvelope` bytes).
    """
    transaction.put(META, _BASE_KEY, base.to_bytes())
    transaction.put(META, _CHANNEL_KEY, channel_id.encode())
    transaction.put(META, _MSP_KEY, msp_id.encode())
    transaction.put(META, _STATUS_KEY, _STATUS.pack(base.last_block + 1, 0, 0))
    transaction.put(CONFIG_HISTORY, _CHANNEL_CONFIG + base.last_block.to_bytes(8), config)


def _status(transaction: ReadTransaction) -> tuple[int, int, int]:
    stored = transaction.get(META, _STATUS_KEY)
    if stored is None:
        return 0, 0, 0
    height, segment, length = _STATUS.unpack(stored)
    return height, segment, length


def stored_config(envelope: bytes) -> ChannelConfig:
    """The configuration in the state's entry for it (`ConfigEnvelope` bytes)."""
    config = parse(common_pb2.ConfigEnvelope, envelope, "the stored configuration")
    opened = parse(common_pb2.Payload, config.last_update.payload, "the last configuration update")
    header = parse(common_pb2.ChannelHeader, opened.header.channel_header, "its channel header")
    return ChannelConfig.from_config(header.channel_id, config.config)


def _transaction_record(
    transaction: ReadTransaction, transaction_id: str, first_block: int = 0
) -> TransactionRecord | None:
    stored = transaction.get(TRANSACTIONS, transaction_id.encode()) if transaction_id else None
    if stored == BEFORE_SNAPSHOT:
        raise BeforeSnapshotError(
            f"details of transaction {transaction_id} are not here: this ledger begins with a "
            f"snapshot, its first block is {first_block}. Ask a peer that has the whole chain."
        )
    return None if stored is None else TransactionRecord(*_TRANSACTION_ENTRY.unpack(stored))


def _is_known(transaction: ReadTransaction, transaction_id: str) -> bool:
    return bool(transaction_id) and (
        transaction.get(TRANSACTIONS, transaction_id.encode()) is not None
    )


def _index_block_hashes(transaction: WriteTransaction) -> None:
    """From format 1 to 2: blocks are found by their hash."""
    for number, entry in transaction.range(BLOCKS):
        transaction.put(BLOCK_HASHES, _BLOCK_ENTRY.unpack(entry)[3], number)


_MIGRATIONS = {1: _index_block_hashes}


def _with_results(block: common_pb2.Block, codes: bytes, commit_hash: bytes) -> bytes:
    """The block with what the peer adds: the transaction filter and the commit hash."""
    slots = list(block.metadata.metadata)
    slots += [b""] * (METADATA_SLOTS - len(slots))
    slots[TRANSACTIONS_FILTER] = codes
    if commit_hash:
        slots[COMMIT_HASH] = common_pb2.Metadata(value=commit_hash).SerializeToString()
    # Put together by hand: copying the envelopes into a new message takes longer than all of it.
    return (
        encode_field(1, block.header.SerializeToString())
        + encode_field(2, block.data.SerializeToString())
        + encode_field(3, common_pb2.BlockMetadata(metadata=slots).SerializeToString())
    )


def _committed(
    number: int,
    transactions: Sequence[Transaction],
    codes: bytes,
    commit_hash: bytes,
    raw: bytes,
) -> CommittedBlock:
    return CommittedBlock(
        number,
        codes,
        commit_hash,
        tuple(one.id for one in transactions),
        tuple(
            (one.index, one.event)
            for one in transactions
            if one.event is not None and codes[one.index] == VALID
        ),
        raw,
        any(one.type == common_pb2.CONFIG for one in transactions),
    )


def _write_transactions(
    transaction: WriteTransaction, number: int, transactions: Sequence[Transaction], codes: bytes
) -> None:
    for one in transactions:
        code = codes[one.index]
        if one.id:
            record = _TRANSACTION_ENTRY.pack(number, one.index, code)
            known = transaction.get(TRANSACTIONS, one.id.encode())
            if known is None or (
                known != BEFORE_SNAPSHOT
                and _TRANSACTION_ENTRY.unpack(known)[2] != VALID
                and code == VALID
            ):
                transaction.put(TRANSACTIONS, one.id.encode(), record)
        if code == VALID:
            history.add(transaction, number, one)


def _write_state(transaction: WriteTransaction, updates: UpdateBatch) -> None:
    places = [
        (state_key(namespace, key), update)
        for namespace, keys in updates.public.items()
        for key, update in keys.items()
    ]
    places += [
        (hash_key(*space, digest), update)
        for space, hashes in updates.hashed.items()
        for digest, update in hashes.items()
    ]
    for place, update in places:
        if update.value is None:
            transaction.delete(STATE, place)
        else:
            value = encode_parts(update.value, update.metadata, update.version)
            transaction.put(STATE, place, value)


def _write_config_history(transaction: WriteTransaction, number: int, outcome: Outcome) -> None:
    position = number.to_bytes(8)
    if outcome.config is not None:
        transaction.put(CONFIG_HISTORY, _CHANNEL_CONFIG + position, b"")
    for key, update in outcome.updates.public.get(LIFECYCLE, {}).items():
        parts = key.split("/")
        if update.value is not None and len(parts) == 4 and parts[3] == "Collections":
            try:
                collections = lifecycle_pb2.StateData.FromString(update.value).Bytes
                peer_pb2.CollectionConfigPackage.FromString(collections)
            except DecodeError:
                continue  # enough members have agreed to a contract that nobody can use
            entry = _COLLECTIONS + parts[2].encode() + b"\0" + position
            transaction.put(CONFIG_HISTORY, entry, collections)
