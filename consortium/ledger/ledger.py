"""A channel's ledger on one peer: it takes blocks and gives views of what they come to.

Everything a block does (state, indexes, history, private data, the index of the block itself) is
one LMDB transaction. The block's bytes go to a segment file before it, whose valid length is part
of that transaction: after a crash the block is there with all its effects, or not at all.
"""

import hashlib
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from consortium.storage.environment import Environment, ReadTransaction, WriteTransaction
from consortium.storage.segments import End, Location, Segments
from consortium.wire import common_pb2, lifecycle_pb2, peer_pb2
from consortium.wire.blocks import COMMIT_HASH, METADATA_SLOTS, TRANSACTIONS_FILTER, header_hash
from consortium.wire.envelopes import parse

from . import history, private_data
from .channel_config import ChannelConfig
from .history import HISTORY, KeyModification
from .lifecycle import NAMESPACE as LIFECYCLE
from .lifecycle import Policies
from .mvcc import UpdateBatch, encode_field, varint
from .private_data import PrivateEffects, PrivatePlace
from .rwset import VALID, NamespaceSet, Transaction, open_transaction
from .state import (
    STATE,
    LedgerError,
    StoredState,
    VersionedValue,
    encode_value,
    hash_key,
    state_key,
)
from .validator import (
    BlockError,
    Judge,
    Outcome,
    check_block_form,
    genesis_outcome,
    open_block,
    validate_block,
    verify_block_signature,
)

FORMAT_VERSION = 1
BLOCKS = "blocks"
TRANSACTIONS = "transactions"
CONFIG_HISTORY = "config_history"
META = "ledger"
TABLES = (
    STATE,
    HISTORY,
    BLOCKS,
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
_TRANSACTION_ENTRY = struct.Struct(">QIB")  # block, index, code
_STATUS = struct.Struct(">QIQ")  # height, last segment, its length
_STATUS_KEY = b"status"
_CHANNEL_KEY = b"channel"
_MSP_KEY = b"msp"
_REMOVED_KEY = b"private data removed"
_CHANNEL_CONFIG = b"channel\0"
_COLLECTIONS = b"collections\0"


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
class _Position:
    height: int
    last_hash: bytes
    commit_hash: bytes


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
        self._position = _Position(0, b"", b"")
        self._judge: Judge | None = None

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
            durable=durable,
            read_only=read_only,
        )
        try:
            if not read_only:
                environment = _without_removed_data(environment)
            with environment.read() as transaction:
                height, segment, length = _status(transaction)
                owner = transaction.get(META, _MSP_KEY)
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
            path / "index", TABLES, format_version=FORMAT_VERSION, read_only=True
        )
        try:
            with environment.read() as transaction:
                owner = transaction.get(META, _MSP_KEY)
        finally:
            environment.close()
        if owner is None:
            raise LedgerError(f"the ledger in {path} is empty")
        return owner.decode()

    def close(self) -> None:
        """Close the files; no view may be open."""
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
        """The block with a header hash; searches from the newest, so not for hot paths."""
        for number in reversed(range(self.height)):
            if self.block_hash(number) == digest:
                return self.block(number)
        return None

    def block_by_transaction(self, transaction_id: str) -> bytes | None:
        """The block that holds a transaction, or None."""
        record = self.transaction(transaction_id)
        return None if record is None else self.block(record.block)

    def transaction(self, transaction_id: str) -> TransactionRecord | None:
        """Where a transaction id stands, or None.

        Of several envelopes with one id, that is the valid one, else the first.
        """
        with self._environment.read() as transaction:
            return _transaction_record(transaction, transaction_id)

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
        """The configuration that block `number` is judged by (its own for block 0)."""
        latest = 0
        with self._environment.read() as transaction:
            for key, _ in transaction.prefixed(CONFIG_HISTORY, _CHANNEL_CONFIG):
                changed = int.from_bytes(key[-8:])
                if changed and changed >= number:
                    break
                latest = changed
        return ChannelConfig.from_block(self._parsed(latest))

    def last_config_block(self) -> int:
        """The number of the last configuration block."""
        with self._environment.read() as transaction:
            keys = [key for key, _ in transaction.prefixed(CONFIG_HISTORY, _CHANNEL_CONFIG)]
        return int.from_bytes(keys[-1][-8:])

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

    def store_transient(self, transaction_id: str, data: bytes, height: int) -> None:
        """Keep `TxPvtReadWriteSet` bytes until their transaction commits; raises PrivateDataError.

        `height` is the ledger's height at endorsement, for `purge_transient`.
        """
        self._environment.write(
            lambda t: private_data.store_transient(t, transaction_id, data, height)
        )

    def transient(self, transaction_id: str) -> list[bytes]:
        """The `TxPvtReadWriteSet`s waiting for a transaction."""
        with self._environment.read() as transaction:
            return list(private_data.transient_sets(transaction, transaction_id))

    def purge_transient(self, below_height: int) -> int:
        """Remove sets that were stored below that height and never committed; how many."""
        return self._environment.write(lambda t: private_data.purge_transient(t, below_height))

    def missing_private(self, limit: int = MISSING_LIMIT) -> list[PrivatePlace]:
        """Write sets that this peer should have and lacks, oldest first."""
        with self._environment.read() as transaction:
            entries = transaction.range(private_data.MISSING)
            return [PrivatePlace.from_key(key) for key, _ in islice(entries, limit)]

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
                state = StoredState(transaction)
                outcome = validate_block(
                    number,
                    transactions,
                    judge,
                    state,
                    lambda one: _transaction_record(transaction, one) is not None,
                    self._threads,
                )
                effects = private_data.prepare(
                    number,
                    transactions,
                    outcome.codes,
                    outcome.updates,
                    Policies(state, judge.config),
                    transaction,
                    self._msp_id,
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
                transaction.put(
                    META, _STATUS_KEY, _STATUS.pack(number + 1, end.segment, end.length)
                )
                _write_transactions(transaction, number, transactions, outcome.codes)
                _write_state(transaction, outcome.updates)
                private_data.write(transaction, effects)
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
        self._position = _Position(number + 1, digest, commit_hash)
        return _committed(number, transactions, outcome.codes, commit_hash, stored)

    def _start(self, genesis: common_pb2.Block) -> None:
        if genesis.header.number != 0:
            raise BlockError(f"block {genesis.header.number} is no genesis block: that is block 0")
        check_block_form(genesis)
        self._store(genesis, open_block(genesis), genesis_outcome(genesis), PrivateEffects())

    def _resume(self) -> None:
        with self._environment.read() as transaction:
            height = _status(transaction)[0]
            _, last_hash, commit_hash = self._block_entry(transaction, height - 1)
        self._position = _Position(height, last_hash, commit_hash)
        self._judge = Judge(ChannelConfig.from_block(self._parsed(self.last_config_block())))

    def _check_genesis(self, genesis: common_pb2.Block | None) -> None:
        if genesis is not None and header_hash(genesis.header) != self.block_hash(0):
            raise BlockError(
                "the ledger was started from another genesis block: use the folder of the right "
                "channel, or an empty one"
            )

    def _already_committed(self, block: common_pb2.Block) -> CommittedBlock:
        number = block.header.number
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
        if entry is None:
            raise LedgerError(
                f"there is no block {number}: the ledger is at height {_status(transaction)[0]}"
            )
        segment, offset, length, digest, commit_hash = _BLOCK_ENTRY.unpack(entry)
        return Location(segment, offset, length), digest, commit_hash if number else b""

    def tables(self) -> AbstractContextManager[ReadTransaction]:
        """All tables as they are stored, for verification."""
        return self._environment.read()


def _without_removed_data(environment: Environment) -> Environment:
    """Rewrite the file if private data were removed, whose bytes may still be in free pages."""
    with environment.read() as transaction:
        removed = transaction.get(META, _REMOVED_KEY) is not None
    if removed:
        environment.write(lambda t: t.delete(META, _REMOVED_KEY))
        environment.compact()
    return environment


def _status(transaction: ReadTransaction) -> tuple[int, int, int]:
    stored = transaction.get(META, _STATUS_KEY)
    if stored is None:
        return 0, 0, 0
    height, segment, length = _STATUS.unpack(stored)
    return height, segment, length


def _transaction_record(
    transaction: ReadTransaction, transaction_id: str
) -> TransactionRecord | None:
    stored = transaction.get(TRANSACTIONS, transaction_id.encode()) if transaction_id else None
    return None if stored is None else TransactionRecord(*_TRANSACTION_ENTRY.unpack(stored))


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
            known = _transaction_record(transaction, one.id)
            if known is None or (known.code != VALID and code == VALID):
                record = _TRANSACTION_ENTRY.pack(number, one.index, code)
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
            value = VersionedValue(update.value, update.metadata, update.version)
            transaction.put(STATE, place, encode_value(value))


def _write_config_history(transaction: WriteTransaction, number: int, outcome: Outcome) -> None:
    position = number.to_bytes(8)
    if outcome.config is not None:
        transaction.put(CONFIG_HISTORY, _CHANNEL_CONFIG + position, b"")
    for key, update in outcome.updates.public.get(LIFECYCLE, {}).items():
        parts = key.split("/")
        if update.value is not None and len(parts) == 4 and parts[3] == "Collections":
            collections = lifecycle_pb2.StateData.FromString(update.value).Bytes
            entry = _COLLECTIONS + parts[2].encode() + b"\0" + position
            transaction.put(CONFIG_HISTORY, entry, collections)
