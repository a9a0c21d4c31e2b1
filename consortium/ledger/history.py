"""The history of public keys: which transactions wrote a key, newest first.

The table holds positions only; what was written is read from the block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from consortium.storage.environment import ReadTransaction, WriteTransaction

from .rwset import Transaction

HISTORY = "history"
_LAST_BLOCK = 2**64 - 1
_LAST_TX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class KeyModification:
    """One write of a key."""

    transaction_id: str
    block: int
    tx: int
    value: bytes
    is_delete: bool
    timestamp_ns: int
    """From the transaction's channel header, since the epoch (UTC)."""


def _prefix(namespace: str, key: str) -> bytes:
    encoded = key.encode()
    return namespace.encode() + b"\0" + len(encoded).to_bytes(4) + encoded


def add(transaction: WriteTransaction, block: int, one: Transaction) -> None:
    """Note every public key that a valid transaction writes."""
    position = (_LAST_BLOCK - block).to_bytes(8) + (_LAST_TX - one.index).to_bytes(4)
    for namespace in one.namespaces:
        for write in namespace.public.writes:
            transaction.put(HISTORY, _prefix(namespace.name, write.key) + position, b"")


def positions(transaction: ReadTransaction, namespace: str, key: str) -> Iterator[tuple[int, int]]:
    """(block, transaction) pairs that wrote the key, newest first."""
    for entry, _ in transaction.prefixed(HISTORY, _prefix(namespace, key)):
        block, tx = int.from_bytes(entry[-12:-4]), int.from_bytes(entry[-4:])
        yield _LAST_BLOCK - block, _LAST_TX - tx


def modification(block: int, one: Transaction, namespace: str, key: str) -> KeyModification:
    """The first write of the key in a transaction that is known to write it."""
    write = next(
        write
        for part in one.namespaces
        if part.name == namespace
        for write in part.public.writes
        if write.key == key
    )
    return KeyModification(one.id, block, one.index, write.value, write.is_delete, one.timestamp_ns)
