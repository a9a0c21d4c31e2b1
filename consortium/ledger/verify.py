"""Checking a stored ledger, believing nothing that can be computed.

It begins with block 0, or with a snapshot that whoever checks has reason to trust. Every block is
committed anew to a scratch ledger: its link to the block before, its data hash, the orderers'
signatures under the configuration of its time, each transaction's code, and the commit hash. Then
the tables that follow are compared with the stored ones, entry by entry. Private data are not in
the blocks; they are checked against their hashes (`verify_private`). What waits for a transaction
that has not committed is no part of the ledger: its checksums are looked at, which its transaction,
its sender and the height since which it waits are part of.

Before anything else the database's file is walked page by page, since LMDB trusts what it reads.
"""

import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from consortium.storage.environment import ReadTransaction, StorageError, check_environment
from consortium.storage.pages import PageError
from consortium.storage.segments import SegmentError
from consortium.wire import common_pb2, peer_pb2
from consortium.wire.blocks import TRANSACTIONS_FILTER
from consortium.wire.envelopes import WireError, parse

from . import verify_private
from .config_update import ConfigError
from .history import HISTORY
from .ledger import (
    BEFORE_SNAPSHOT,
    BLOCK_HASHES,
    BLOCKS,
    CONFIG_HISTORY,
    TABLES,
    TRANSACTIONS,
    Ledger,
    unknown_notes,
)
from .snapshot import Snapshot, join_by_snapshot
from .state import STATE, LedgerError, decode_value
from .verify_private import Difference

Progress = Callable[[int, int], None]
"""Told how many blocks are done, and how many there are."""

_DERIVED_TABLES = (STATE, HISTORY, TRANSACTIONS, CONFIG_HISTORY, BLOCK_HASHES)
_TABLE_NAMES = {
    STATE: "the state",
    HISTORY: "the history index",
    TRANSACTIONS: "the transaction index",
    CONFIG_HISTORY: "the configuration history",
    BLOCK_HASHES: "the index of block hashes",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found."""

    height: int
    blocks: int
    """Blocks found good, from block 0 or the snapshot on."""
    transactions: int
    entries: int
    """Stored entries found equal to what the blocks give."""
    private_values: int
    """Private values found to fit their hashes."""
    problem: str | None
    """The first difference in a sentence; None if there is none."""


def verify_ledger(
    ledger: Ledger | Path,
    progress: Progress | None = None,
    *,
    scratch: Path | None = None,
    snapshot: Path | None = None,
) -> Report:
    """Verify a ledger, open or in a folder; it may be in use meanwhile.

    `snapshot` is one to begin from instead of block 0; it is trusted, and a ledger that began with
    a snapshot itself can't be verified without. Needs disk space for a second copy in `scratch`
    (default: the system's temporary folder), and keeps one view of the ledger open, so that it
    grows until this ends. Raises LedgerError for a snapshot that does not fit.
    """
    if isinstance(ledger, Path):
        try:
            check_environment(ledger / "index")
            opened = Ledger.open(ledger, msp_id=Ledger.owner(ledger), read_only=True)
        except (PageError, StorageError, SegmentError, WireError, ConfigError) as error:
            return Report(0, 0, 0, 0, 0, f"the ledger cannot be opened: {error}")
        with opened:
            return verify_ledger(opened, progress, scratch=scratch, snapshot=snapshot)
    begin = Snapshot.read(snapshot) if snapshot else None
    _check_beginning(ledger, begin)
    if begin is not None:
        begin.check()
    check = _Verification(ledger, progress or (lambda _done, _total: None), begin)
    with (
        tempfile.TemporaryDirectory(prefix="gridledger-verify-", dir=scratch) as folder,
        ledger.tables() as stored,
    ):
        return check.run(stored, Path(folder))


def _check_beginning(ledger: Ledger, snapshot: Snapshot | None) -> None:
    """Raises LedgerError where there is nothing to begin from."""
    base = ledger.base
    if base is not None and snapshot is None:
        raise LedgerError(
            f"this ledger begins after block {base.last_block}, with the snapshot "
            f"{base.snapshot_hash.hex()}: give that snapshot, or one of a later block, to begin "
            "verifying from"
        )
    if snapshot is None:
        return
    if snapshot.channel_id != ledger.channel_id:
        raise LedgerError(
            f"{snapshot.folder} is a snapshot of {snapshot.channel_id}, and the ledger is one of "
            f"{ledger.channel_id}"
        )
    if snapshot.last_block >= ledger.height or snapshot.last_block + 1 < ledger.first_block:
        raise LedgerError(
            f"the snapshot was made after block {snapshot.last_block}, and the ledger holds blocks "
            f"{ledger.first_block} to {ledger.height - 1}"
        )


class _Verification:
    def __init__(self, ledger: Ledger, progress: Progress, begin: Snapshot | None) -> None:
        self._ledger = ledger
        self._begin = begin
        self._first = begin.last_block + 1 if begin else 0
        base = ledger.base
        # Whether the scratch ledger begins where the stored one does, so that all must be equal.
        self._whole = base == (begin.base if begin else None)
        self._members: set[str] = set()
        self._progress = progress
        self._blocks = 0
        self._transactions = 0
        self._entries = 0
        self._private_values = 0

    def run(self, stored: ReadTransaction, folder: Path) -> Report:
        height = self._ledger.first_block + sum(1 for _ in stored.range(BLOCKS))
        problem = None
        try:
            self._check_places(stored, height)
            self._replay(height, stored, folder)
        except Difference as difference:
            problem = str(difference)
        except (LedgerError, StorageError, SegmentError) as error:
            problem = f"the ledger cannot be read: {error}"
        except (UnicodeDecodeError, struct.error, DecodeError, KeyError, ValueError) as error:
            problem = f"the ledger holds an entry that cannot be read: {error}"
        return Report(
            height,
            self._blocks,
            self._transactions,
            self._entries,
            self._private_values,
            problem,
        )

    def _check_places(self, stored: ReadTransaction, height: int) -> None:
        """Blocks lie one behind the other, up to where the ledger says that it ends."""
        for table in TABLES:
            piece = stored.stray_branch(table)
            if piece is not None:
                raise Difference(f"table {table} holds a piece {piece!r} of no key, or lacks one")
        problem = self._ledger.misplaced(stored, height)
        if problem:
            raise Difference(problem)
        base = self._ledger.base
        if base is not None and self._begin is not None:
            same = base.last_block == self._begin.last_block
            if same and base != self._begin.base:
                raise Difference(
                    "the ledger's note of the snapshot that it begins with is not that of the "
                    f"snapshot in {self._begin.folder}"
                )
        for key in unknown_notes(stored):
            raise Difference(f"the ledger holds a note {key!r} that nothing has written")

    def _scratch(self, folder: Path) -> Ledger:
        msp_id = self._ledger.msp_id
        if self._begin is not None:
            join_by_snapshot(self._begin.folder, folder / "ledger", msp_id=msp_id, durable=False)
            return Ledger.open(folder / "ledger", msp_id=msp_id, durable=False)
        genesis = self._read(0)
        try:
            return Ledger.open(
                folder / "ledger",
                msp_id=msp_id,
                genesis=_parsed(0, genesis),
                durable=False,
            )
        except (LedgerError, ValueError) as error:
            raise Difference(f"block 0 is not a genesis block: {error}") from None

    def _replay(self, height: int, stored: ReadTransaction, folder: Path) -> None:
        if height == 0:
            return
        with self._scratch(folder) as scratch:
            self._note_members(scratch)
            if self._first == 0:
                self._compare_block(0, self._read(0), scratch, stored)
            for number in range(max(1, self._first), height):
                raw = self._read(number)
                try:
                    committed = scratch.commit(_parsed(number, raw))
                except LedgerError as error:
                    raise Difference(f"block {number} is not valid: {error}") from None
                if committed.config_changed:
                    self._note_members(scratch)
                self._compare_block(number, raw, scratch, stored)
                self._progress(number + 1, height)
            if self._ledger.msp_id not in self._members:
                raise Difference(
                    f"the ledger says that it is of {self._ledger.msp_id}, which was never a "
                    "member of the channel"
                )
            while self._whole and scratch.make_eligible():
                pass
            with scratch.tables() as expected:
                for table in _DERIVED_TABLES:
                    if table != BLOCK_HASHES or self._ledger.indexes_hashes:
                        self._compare_table(table, stored, expected)
                self._private_values = verify_private.check(
                    stored, expected, self._ledger.private_writes_of, whole=self._whole
                )

    def _note_members(self, scratch: Ledger) -> None:
        self._members.update(scratch.config.application_orgs)

    def _read(self, number: int) -> bytes:
        try:
            return self._ledger.block(number)
        except (SegmentError, LedgerError) as error:
            raise Difference(f"block {number} cannot be read: {error}") from None

    def _compare_block(
        self, number: int, raw: bytes, scratch: Ledger, stored: ReadTransaction
    ) -> None:
        committed = scratch.committed(number)
        codes = bytes(_parsed(number, raw).metadata.metadata[TRANSACTIONS_FILTER])
        for index, code in enumerate(committed.codes):
            kept = codes[index] if index < len(codes) else None
            if kept != code:
                raise Difference(
                    f"transaction {index} of block {number} is stored as {_code_name(kept)}, but "
                    f"validation gives {_code_name(code)}"
                )
        if committed.raw != raw:
            raise Difference(
                f"the metadata of block {number} are not those that follow from the chain: its "
                "commit hash or its transaction filter was changed"
            )
        with scratch.tables() as expected:
            wanted = Ledger.stored_hashes(expected, number)
        found = Ledger.stored_hashes(stored, number)
        if found[0] != wanted[0]:
            raise Difference(f"the index holds another hash of block {number} than it has")
        if found[1] != wanted[1]:
            raise Difference(f"the index holds another commit hash of block {number} than it has")
        self._blocks += 1
        self._transactions += len(committed.codes)

    def _compare_table(
        self, table: str, stored: ReadTransaction, expected: ReadTransaction
    ) -> None:
        name = _TABLE_NAMES[table]
        entries = self._comparable(table, stored)
        wanted = self._comparable(table, expected)
        while True:
            entry, want = next(entries, None), next(wanted, None)
            if entry == want:
                if entry is None:
                    return
                self._entries += 1
                continue
            if want is None or (entry is not None and entry[0] < want[0]):
                assert entry is not None
                raise Difference(f"{name} holds {_describe(table, entry[0])}, which no block wrote")
            if entry is None or entry[0] > want[0]:
                raise Difference(f"{name} lacks {_describe(table, want[0])}, which a block wrote")
            where = ""
            if table == STATE:
                version = decode_value(want[1]).version
                where = f" by transaction {version.tx} of block {version.block}"
            raise Difference(
                f"{name} holds {_describe(table, entry[0])} otherwise than it was written{where}"
            )

    def _comparable(self, table: str, tables: ReadTransaction) -> Iterator[tuple[bytes, bytes]]:
        """A table's entries that follow from the blocks that are replayed."""
        for key, value in tables.range(table):
            if table == STATE and b"$$p" in key.partition(b"\0")[0]:
                continue
            if not self._whole and self._is_earlier(table, key, value):
                continue
            if not self._whole and table == TRANSACTIONS and self._in_snapshot(value):
                yield key, BEFORE_SNAPSHOT
                continue
            yield key, value

    def _is_earlier(self, table: str, key: bytes, value: bytes) -> bool:
        """Whether an index entry is of a block before the snapshot that is begun with."""
        if table == HISTORY:
            return 2**64 - 1 - int.from_bytes(key[-12:-4]) < self._first
        if table == CONFIG_HISTORY:
            return key.startswith(b"channel\0") and int.from_bytes(key[-8:]) < self._first
        return table == BLOCK_HASHES and int.from_bytes(value) < self._first

    def _in_snapshot(self, record: bytes) -> bool:
        return record == BEFORE_SNAPSHOT or int.from_bytes(record[:8]) < self._first


def _parsed(number: int, raw: bytes) -> common_pb2.Block:
    try:
        block = parse(common_pb2.Block, raw, f"stored block {number}")
    except WireError as error:
        raise Difference(f"block {number} cannot be read: {error}") from None
    if block.header.number != number:
        raise Difference(f"in the place of block {number} there is block {block.header.number}")
    return block


def _describe(table: str, key: bytes) -> str:
    if table == STATE:
        namespace, _, name = key.partition(b"\0")
        if b"$$h" in namespace:
            contract, collection = namespace.decode(errors="replace").split("$$h", 1)
            return f"the hashed key {name.hex()} in collection {collection} of {contract}"
        of = namespace.decode(errors="replace") or "the channel"
        return f"the key {name.decode(errors='replace')!r} of {of}"
    if table == HISTORY:
        namespace, _, rest = key.partition(b"\0")
        written = rest[4:-12].decode(errors="replace")
        return f"a write of the key {written!r} of {namespace.decode(errors='replace')}"
    if table == TRANSACTIONS:
        return f"transaction {key.decode(errors='replace')}"
    if table == BLOCK_HASHES:
        return f"the hash {key.hex()}"
    return f"the entry {key!r}"


def _code_name(code: int | None) -> str:
    if code is None:
        return "nothing"
    return f"{peer_pb2.TxValidationCode.Name(code)} ({code})"
