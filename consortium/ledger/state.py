r"""World state: versioned keys in namespaces, and the read-only view that everything else uses.

Keys in the `state` table are `namespace\0key`. A private collection has two namespaces of its own:
`namespace$$h<collection>` holds SHA-256 of key and value on every peer, `namespace$$p<collection>`
the key and value themselves on the peers of its members. (Fabric's layout,
core/ledger/kvledger/txmgmt/privacyenabledstate.)
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from consortium.storage.environment import ReadTransaction
from consortium.wire import kvrwset_pb2

STATE = "state"
VALIDATION_PARAMETER = "VALIDATION_PARAMETER"
"""Name of the metadata entry that holds a key's own endorsement policy."""

_VALUE_HEAD = struct.Struct(">QII")  # block, transaction, bytes of metadata


class LedgerError(Exception):
    """The ledger cannot do what was asked; the message says why and what to do."""


class PrivateDataUnavailableError(LedgerError):
    """This peer does not hold the private value that belongs to the current hash."""


class Version(NamedTuple):
    """Block and transaction that wrote a value."""

    block: int
    tx: int


@dataclass(frozen=True, slots=True)
class VersionedValue:
    """A value with its metadata (`KVMetadataWrite` bytes, empty for none) and version."""

    value: bytes
    metadata: bytes
    version: Version


class StateView(Protocol):
    """A consistent picture of the world state."""

    def get(self, namespace: str, key: str) -> VersionedValue | None:
        """The public value of a key."""

    def range(self, namespace: str, start: str, end: str) -> Iterator[tuple[str, VersionedValue]]:
        """Public keys with start <= key < end in order; end "": to the namespace's last key."""

    def get_private(self, namespace: str, collection: str, key: str) -> VersionedValue | None:
        """A private value; raises PrivateDataUnavailableError if only its hash is known here."""

    def range_private(
        self, namespace: str, collection: str, start: str, end: str
    ) -> Iterator[tuple[str, VersionedValue]]:
        """Private keys in order, as far as this peer holds them."""

    def get_private_hash(
        self, namespace: str, collection: str, key_hash: bytes
    ) -> VersionedValue | None:
        """The hash of a private value, under the SHA-256 of its key."""


def hashed_namespace(namespace: str, collection: str) -> str:
    """The namespace of a collection's hashes."""
    return f"{namespace}$$h{collection}"


def private_namespace(namespace: str, collection: str) -> str:
    """The namespace of a collection's private values."""
    return f"{namespace}$$p{collection}"


def state_key(namespace: str, key: str) -> bytes:
    """The table's key for a public or private key."""
    return f"{namespace}\0{key}".encode()


def hash_key(namespace: str, collection: str, key_hash: bytes) -> bytes:
    """The table's key for a hashed key."""
    return f"{namespace}$$h{collection}\0".encode() + key_hash


def key_hash(key: str) -> bytes:
    """SHA-256 of a private key's name."""
    return hashlib.sha256(key.encode()).digest()


def encode_value(value: VersionedValue) -> bytes:
    """The table's value."""
    return encode_parts(value.value, value.metadata, value.version)


def encode_parts(value: bytes, metadata: bytes, version: Version) -> bytes:
    """The same, of a value's parts."""
    return _VALUE_HEAD.pack(version.block, version.tx, len(metadata)) + metadata + value


def decode_value(stored: bytes) -> VersionedValue:
    """The inverse of `encode_value`."""
    block, tx, length = _VALUE_HEAD.unpack_from(stored)
    start = _VALUE_HEAD.size
    return VersionedValue(
        stored[start + length :], stored[start : start + length], Version(block, tx)
    )


def metadata_entry(metadata: bytes, name: str) -> bytes:
    """An entry of a key's metadata, empty if it isn't there."""
    if not metadata:
        return b""
    value = b""
    for entry in kvrwset_pb2.KVMetadataWrite.FromString(metadata).entries:
        if entry.name == name:
            value = entry.value
    return value


class StoredState:
    """The view of the committed state inside one read transaction."""

    def __init__(self, transaction: ReadTransaction) -> None:
        self._transaction = transaction

    def get(self, namespace: str, key: str) -> VersionedValue | None:
        stored = self._transaction.get(STATE, state_key(namespace, key))
        return None if stored is None else decode_value(stored)

    def version(self, namespace: str, key: str) -> Version | None:
        """The version of a public key."""
        stored = self._transaction.get(STATE, state_key(namespace, key))
        return None if stored is None else Version(*_VALUE_HEAD.unpack_from(stored)[:2])

    def range(self, namespace: str, start: str, end: str) -> Iterator[tuple[str, VersionedValue]]:
        skip = len(namespace.encode()) + 1
        last = state_key(namespace, end) if end else namespace.encode() + b"\x01"
        for key, stored in self._transaction.range(STATE, state_key(namespace, start), last):
            yield key[skip:].decode(), decode_value(stored)

    def get_private(self, namespace: str, collection: str, key: str) -> VersionedValue | None:
        value = self.get(private_namespace(namespace, collection), key)
        hashed = self.get_private_hash(namespace, collection, key_hash(key))
        if (value and value.version) != (hashed and hashed.version):
            raise PrivateDataUnavailableError(
                f"the private value of {key!r} in collection {collection} of {namespace} is not on "
                "this peer: it is no member of the collection, or the value has yet to arrive. Ask "
                "a member's peer, or try again later."
            )
        return value

    def range_private(
        self, namespace: str, collection: str, start: str, end: str
    ) -> Iterator[tuple[str, VersionedValue]]:
        return self.range(private_namespace(namespace, collection), start, end)

    def get_private_hash(
        self, namespace: str, collection: str, key_hash: bytes
    ) -> VersionedValue | None:
        stored = self._transaction.get(STATE, hash_key(namespace, collection, key_hash))
        return None if stored is None else decode_value(stored)


class RememberedState(StoredState):
    """The same, for one block: its keys are looked at by policies, by readers and by writers."""

    def __init__(self, transaction: ReadTransaction) -> None:
        super().__init__(transaction)
        self._values: dict[tuple[str, str], VersionedValue | None] = {}
        self._hashes: dict[tuple[str, str, bytes], VersionedValue | None] = {}

    def get(self, namespace: str, key: str) -> VersionedValue | None:
        place = (namespace, key)
        if place not in self._values:
            self._values[place] = super().get(namespace, key)
        return self._values[place]

    def version(self, namespace: str, key: str) -> Version | None:
        """The version of a public key."""
        place = (namespace, key)
        if place not in self._values:
            return super().version(namespace, key)  # keys that are read may not be written
        found = self._values[place]
        return None if found is None else found.version

    def get_private_hash(
        self, namespace: str, collection: str, key_hash: bytes
    ) -> VersionedValue | None:
        place = (namespace, collection, key_hash)
        if place not in self._hashes:
            self._hashes[place] = super().get_private_hash(namespace, collection, key_hash)
        return self._hashes[place]
