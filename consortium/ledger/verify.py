"""Checking a stored ledger from its first block on, believing nothing that can be computed.

Every block is committed anew to a scratch ledger: its link to the block before, its data hash, the
orderers' signatures under the configuration of its time, each transaction's code, and the commit
hash. Then the state that follows is compared with the stored one, entry by entry. Private values
are not in the blocks; they are checked against their hashes.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from consortium.storage.environment import ReadTransaction
from consortium.storage.segments import SegmentError
from consortium.wire import common_pb2, peer_pb2
from consortium.wire.blocks import TRANSACTIONS_FILTER
from consortium.wire.envelopes import WireError, parse

from .history import HISTORY
from .ledger import BLOCKS, CONFIG_HISTORY, TRANSACTIONS, Ledger
from .state import STATE, LedgerError, decode_value, hash_key

Progress = Callable[[int, int], None]
"""Told how many blocks are done, and how many there are."""

_DERIVED_TABLES = (STATE, HISTORY, TRANSACTIONS, CONFIG_HISTORY)
_TABLE_NAMES = {
    STATE: "the state",
    HISTORY: "the history index",
    TRANSACTIONS: "the transaction index",
    CONFIG_HISTORY: "the configuration history",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found."""

    height: int
    blocks: int
    """Blocks found good, from block 0."""
    transactions: int
    entries: int
    """Stored entries found equal to what the blocks give."""
    private_values: int
    """Private values found to fit their hashes."""
    problem: str | None
    """The first difference in a sentence; None if there is none."""


class _Difference(Exception):
    """The first thing found that is not as it should be."""


def verify_ledger(
    ledger: Ledger | Path, progress: Progress | None = None, *, scratch: Path | None = None
) -> Report:
    """Verify a ledger, open or in a folder; it may be in use meanwhile.

    Needs disk space for a second copy in `scratch` (default: the system's temporary folder), and
    keeps one view of the ledger open, so that it grows until this ends.
    """
    if isinstance(ledger, Path):
        with Ledger.open(ledger, msp_id=Ledger.owner(ledger), read_only=True) as opened:
            return verify_ledger(opened, progress, scratch=scratch)
    check = _Verification(ledger, progress or (lambda _done, _total: None))
    with (
        tempfile.TemporaryDirectory(prefix="gridledger-verify-", dir=scratch) as folder,
        ledger.tables() as stored,
    ):
        return check.run(stored, Path(folder))


class _Verification:
    def __init__(self, ledger: Ledger, progress: Progress) -> None:
        self._ledger = ledger
        self._progress = progress
        self._blocks = 0
        self._transactions = 0
        self._entries = 0
        self._private_values = 0

    def run(self, stored: ReadTransaction, folder: Path) -> Report:
        height = sum(1 for _ in stored.range(BLOCKS))
        problem = None
        try:
            self._replay(height, stored, folder)
        except _Difference as difference:
            problem = str(difference)
        return Report(
            height,
            self._blocks,
            self._transactions,
            self._entries,
            self._private_values,
            problem,
        )

    def _replay(self, height: int, stored: ReadTransaction, folder: Path) -> None:
        if height == 0:
            return
        genesis = self._read(0)
        try:
            scratch = Ledger.open(
                folder / "ledger",
                msp_id=self._ledger.msp_id,
                genesis=_parsed(0, genesis),
                durable=False,
            )
        except (LedgerError, ValueError) as error:
            raise _Difference(f"block 0 is not a genesis block: {error}") from None
        with scratch:
            self._compare_block(0, genesis, scratch)
            for number in range(1, height):
                raw = self._read(number)
                try:
                    scratch.commit(_parsed(number, raw))
                except LedgerError as error:
                    raise _Difference(f"block {number} is not valid: {error}") from None
                self._compare_block(number, raw, scratch)
                self._progress(number + 1, height)
            with scratch.tables() as expected:
                for table in _DERIVED_TABLES:
                    self._compare_table(table, stored, expected)
        self._check_private_values(stored)

    def _read(self, number: int) -> bytes:
        try:
            return self._ledger.block(number)
        except (SegmentError, LedgerError) as error:
            raise _Difference(f"block {number} cannot be read: {error}") from None

    def _compare_block(self, number: int, raw: bytes, scratch: Ledger) -> None:
        committed = scratch.committed(number)
        codes = bytes(_parsed(number, raw).metadata.metadata[TRANSACTIONS_FILTER])
        for index, code in enumerate(committed.codes):
            found = codes[index] if index < len(codes) else None
            if found != code:
                raise _Difference(
                    f"transaction {index} of block {number} is stored as {_code_name(found)}, but "
                    f"validation gives {_code_name(code)}"
                )
        if committed.raw != raw:
            raise _Difference(
                f"the metadata of block {number} are not those that follow from the chain: its "
                "commit hash or its transaction filter was changed"
            )
        if self._ledger.block_hash(number) != scratch.block_hash(number):
            raise _Difference(f"the index holds another hash of block {number} than it has")
        if self._ledger.block_commit_hash(number) != scratch.block_commit_hash(number):
            raise _Difference(f"the index holds another commit hash of block {number} than it has")
        self._blocks += 1
        self._transactions += len(committed.codes)

    def _compare_table(
        self, table: str, stored: ReadTransaction, expected: ReadTransaction
    ) -> None:
        name = _TABLE_NAMES[table]
        entries = _without_private_values(table, stored)
        wanted = expected.range(table)
        while True:
            entry, want = next(entries, None), next(wanted, None)
            if entry == want:
                if entry is None:
                    return
                self._entries += 1
                continue
            if want is None or (entry is not None and entry[0] < want[0]):
                assert entry is not None
                raise _Difference(
                    f"{name} holds {_describe(table, entry[0])}, which no block wrote"
                )
            if entry is None or entry[0] > want[0]:
                raise _Difference(f"{name} lacks {_describe(table, want[0])}, which a block wrote")
            where = ""
            if table == STATE:
                version = decode_value(want[1]).version
                where = f" by transaction {version.tx} of block {version.block}"
            raise _Difference(
                f"{name} holds {_describe(table, entry[0])} otherwise than it was written{where}"
            )

    def _check_private_values(self, stored: ReadTransaction) -> None:
        for key, raw in stored.range(STATE):
            namespace, _, name = key.partition(b"\0")
            if b"$$p" not in namespace:
                continue
            contract, collection = namespace.decode().split("$$p", 1)
            digest = hashlib.sha256(name).digest()
            hashed = stored.get(STATE, hash_key(contract, collection, digest))
            value = decode_value(raw)
            # A value with an older version than its hash waits to be replaced: reading refuses it.
            if hashed is not None and decode_value(hashed).version == value.version:
                if hashlib.sha256(value.value).digest() != decode_value(hashed).value:
                    raise _Difference(
                        f"the private value of {name.decode()!r} in collection {collection} of "
                        f"{contract} does not fit the hash that block {value.version.block} holds"
                    )
                self._private_values += 1


def _parsed(number: int, raw: bytes) -> common_pb2.Block:
    try:
        block = parse(common_pb2.Block, raw, f"stored block {number}")
    except WireError as error:
        raise _Difference(f"block {number} cannot be read: {error}") from None
    if block.header.number != number:
        raise _Difference(f"in the place of block {number} there is block {block.header.number}")
    return block


def _without_private_values(table: str, stored: ReadTransaction) -> Iterator[tuple[bytes, bytes]]:
    for entry in stored.range(table):
        if table != STATE or b"$$p" not in entry[0].partition(b"\0")[0]:
            yield entry


def _describe(table: str, key: bytes) -> str:
    if table == STATE:
        namespace, _, name = key.partition(b"\0")
        if b"$$h" in namespace:
            contract, collection = namespace.decode().split("$$h", 1)
            return f"the hashed key {name.hex()} in collection {collection} of {contract}"
        return f"the key {name.decode()!r} of {namespace.decode() or 'the channel'}"
    if table == HISTORY:
        namespace, _, rest = key.partition(b"\0")
        return f"a write of the key {rest[4:-12].decode()!r} of {namespace.decode()}"
    if table == TRANSACTIONS:
        return f"transaction {key.decode()}"
    return f"the entry {key!r}"


def _code_name(code: int | None) -> str:
    if code is None:
        return "nothing"
    return f"{peer_pb2.TxValidationCode.Name(code)} ({code})"
