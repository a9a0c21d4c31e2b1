"""Checking what a peer keeps of private data: by its hashes, and by what follows from the blocks.

A replay without any private data lists every write set that this organization should have as
missing. So the sets that are kept and those on the missing list must be those together, and each
table beside them follows from blocks and kept sets.
"""

import hashlib
from collections.abc import Callable, Sequence
from itertools import zip_longest

from consortium.storage.environment import ReadTransaction
from consortium.wire import kvrwset_pb2

from . import private_data
from .mvcc import Space
from .private_data import (
    ELIGIBLE,
    EXPIRY,
    INELIGIBLE,
    MISSING,
    PURGES,
    SET_KEYS,
    SETS,
    SNAPSHOT_HASHES,
    TRANSIENT,
    PrivatePlace,
)
from .rwset import NamespaceSet
from .state import (
    STATE,
    LedgerError,
    StoredState,
    Version,
    VersionedValue,
    decode_value,
    key_hash,
    private_namespace,
)

_COUNTERS_END = b"\1"
_DIGEST_BYTES = 8


class Difference(Exception):
    """The first thing found that is not as it should be."""


def check(
    stored: ReadTransaction,
    expected: ReadTransaction,
    writes_of: Callable[[PrivatePlace], Sequence[NamespaceSet]],
    *,
    whole: bool,
) -> int:
    """How many private values fit their hashes; raises Difference.

    `expected` are the tables of a replay without private data. If it did not begin where the
    ledger does (`whole`), only the values and sets themselves are looked at.
    """
    sets = _check_sets(stored, writes_of)
    if whole:
        _check_places(stored, expected, sets)
        for table, name in (
            (PURGES, "purged keys"),
            (SNAPSHOT_HASHES, "hashes from the snapshot"),
        ):
            _compare(table, name, stored, expected)
        _check_expiry(stored, expected)
    _check_transient(stored)
    return _check_values(stored, sets, writes_of)


def _check_sets(
    stored: ReadTransaction, writes_of: Callable[[PrivatePlace], Sequence[NamespaceSet]]
) -> dict[PrivatePlace, list[kvrwset_pb2.KVWrite]]:
    sets = {}
    names: set[tuple[bytes, bytes]] = set()
    for key, data in stored.range(SETS):
        place = _place(key, "a private write set")
        try:
            writes = private_data.check_set(stored, place, data, writes_of(place))
        except LedgerError as error:
            raise Difference(f"a private write set is not the one of its block: {error}") from None
        sets[place] = writes
        names.update(private_data.set_key_entry(place, one.key) for one in writes)
    found = set(stored.range(SET_KEYS))
    for key, name in sorted(found ^ names):
        how = "lacks" if (key, name) in names else "wrongly holds"
        raise Difference(f"the index of private keys {how} the entry {key!r} for {name!r}")
    return sets


def _place(key: bytes, what: str) -> PrivatePlace:
    try:
        place = PrivatePlace.from_key(key)
    except ValueError:
        raise Difference(f"{what} stands under the unreadable key {key!r}") from None
    if place.to_key() != key:
        raise Difference(f"{what} stands under the unreadable key {key!r}")
    return place


def _check_places(
    stored: ReadTransaction,
    expected: ReadTransaction,
    sets: dict[PrivatePlace, list[kvrwset_pb2.KVWrite]],
) -> None:
    """Kept and missing sets together are those that the organization should have."""
    missing = set()
    for key, value in stored.range(MISSING):
        if value:
            raise Difference(f"the missing list holds a value with {key!r}")
        missing.add(key)
    kept = {place.to_key() for place in sets}
    for key in sorted(kept & missing):
        raise Difference(f"{_place(key, 'a private write set')} is kept, and listed as missing")
    for key, value in stored.range(ELIGIBLE):
        if value:
            raise Difference(f"the list of newly joined collections holds a value with {key!r}")
    joining = {key for key, _ in stored.range(ELIGIBLE)}
    others = {}
    for space, key, places in private_data.ineligible_places(stored):
        if space in joining:  # not gone over to the missing list yet
            missing.update(
                key[-8:] + places[at : at + 4] + space for at in range(0, len(places), 4)
            )
        else:
            others[key] = places
    wanted = {key for key, _ in expected.range(MISSING)}
    for key in sorted((kept | missing) ^ wanted):
        place = _place(key, "an entry of the missing list")
        if key in wanted:
            raise Difference(f"the private write set of {place} is neither kept nor missing")
        raise Difference(f"the private write set of {place} is kept or missing, and of no block")
    if others != dict(expected.range(INELIGIBLE)):
        raise Difference("the list of other organizations' private data is not the blocks'")


def _compare(table: str, name: str, stored: ReadTransaction, expected: ReadTransaction) -> None:
    for found, wanted in zip_longest(stored.range(table), expected.range(table)):
        if found != wanted:
            key = (found or wanted or (b"",))[0]
            raise Difference(f"the list of {name} is not what follows from the blocks at {key!r}")


def _check_expiry(stored: ReadTransaction, expected: ReadTransaction) -> None:
    """Everything ends when it should; a key's name stands with its hash if the value is here."""
    state = StoredState(stored)
    for found, wanted in zip_longest(stored.range(EXPIRY), expected.range(EXPIRY)):
        if found is None or wanted is None or found[0] != wanted[0]:
            key = (found or wanted or (b"",))[0]
            raise Difference(f"the list of what expires is not the blocks' at {key!r}")
        committed, space, digest = private_data.expiry_digest(found[0])
        value = found[1]
        if value and (value[:1] != b"\1" or hashlib.sha256(value[1:]).digest() != digest):
            raise Difference(f"the list of what expires has a wrong name with {found[0]!r}")
        if value or not digest:
            continue
        for _, name in stored.prefixed(SET_KEYS, f"{space[0]}\0{space[1]}\0".encode() + digest):
            kept = state.get(private_namespace(*space), name.decode())
            if kept is not None and kept.version.block == committed:
                raise Difference(f"the list of what expires lacks the name {name.decode()!r}")


def _check_transient(stored: ReadTransaction) -> None:
    """What waits for its transaction: sums and checksums, which are all that can be said of it."""
    waiting: dict[bytes, int] = {}
    for key, value in stored.range(TRANSIENT, _COUNTERS_END):
        at = key.index(b"\0") + 1
        prefix, seal, owner = key[:at], key[at : at + _DIGEST_BYTES], key[at + _DIGEST_BYTES :]
        # Earlier versions' entries say nothing of whose and of when they are.
        earlier = hashlib.sha256(value[8:]).digest()[:_DIGEST_BYTES]
        if seal not in (private_data.transient_seal(prefix, owner, value), earlier):
            raise Difference(f"private data waiting under {key!r} were changed")
        waiting[owner] = waiting.get(owner, 0) + len(value) - 8
    counted = {
        key[1:]: int.from_bytes(value) for key, value in stored.range(TRANSIENT, b"", _COUNTERS_END)
    }
    if counted != waiting:
        raise Difference("the sums of private data that wait are not those of the data")


def _check_values(
    stored: ReadTransaction,
    sets: dict[PrivatePlace, list[kvrwset_pb2.KVWrite]],
    writes_of: Callable[[PrivatePlace], Sequence[NamespaceSet]],
) -> int:
    """Every private value fits its hash, or is an older one whose successor is missing."""
    state = StoredState(stored)
    written: dict[tuple[Space, str], list[tuple[Version, bytes]]] = {}
    last: dict[tuple[Space, str], kvrwset_pb2.KVWrite] = {}
    for place, writes in sorted(sets.items(), key=lambda one: (one[0].block, one[0].tx)):
        space = (place.namespace, place.collection)
        for one in writes:
            last[space, one.key] = one
            if not one.is_delete and one.value:
                version = Version(place.block, place.tx)
                written.setdefault((space, one.key), []).append((version, one.value))
    for (space, text), one in last.items():
        # The newest that is kept stands, also where what came after it is missing.
        if (
            not one.is_delete
            and one.value
            and state.get_private_hash(*space, key_hash(text)) is not None
            and state.get(private_namespace(*space), text) is None
        ):
            raise Difference(
                f"the state lacks the private value of {text!r} in collection {space[1]} of "
                f"{space[0]}, the newest that is kept"
            )
    count = 0
    for key, raw in stored.range(STATE):
        namespace, _, name = key.partition(b"\0")
        if b"$$p" not in namespace:
            continue
        contract, collection = namespace.decode().split("$$p", 1)
        value = decode_value(raw)
        hashed = state.get_private_hash(contract, collection, hashlib.sha256(name).digest())
        where = (
            f"the private value of {name.decode(errors='replace')!r} in collection {collection} of "
            f"{contract}"
        )
        if value.metadata:
            raise Difference(f"{where} has metadata, which only its hash may have")
        if hashed is not None and hashed.version == value.version:
            if hashlib.sha256(value.value).digest() != hashed.value:
                raise Difference(
                    f"{where} does not fit the hash that block {value.version.block} holds"
                )
            count += 1
        elif not _is_outdated(
            stored, (contract, collection), name.decode(), value, hashed, written, writes_of
        ):
            raise Difference(f"{where} is neither the current one nor one that was")
    return count


def _is_outdated(
    stored: ReadTransaction,
    space: Space,
    name: str,
    value: VersionedValue,
    hashed: VersionedValue | None,
    written: dict[tuple[Space, str], list[tuple[Version, bytes]]],
    writes_of: Callable[[PrivatePlace], Sequence[NamespaceSet]],
) -> bool:
    """Whether a value that doesn't fit its hash was once right, and what came after is missing."""
    known = any(
        data == value.value
        and (
            version == value.version
            or (version < value.version and _changes_metadata(space, name, value, writes_of))
        )
        for version, data in written.get((space, name), ())
    )
    if not known:
        return False
    if hashed is not None:
        place = PrivatePlace(hashed.version.block, hashed.version.tx, *space)
        return stored.get(MISSING, place.to_key()) is not None
    return any(
        (place.namespace, place.collection) == space
        for place in (PrivatePlace.from_key(key) for key, _ in stored.range(MISSING))
    )


def _changes_metadata(
    space: Space,
    name: str,
    value: VersionedValue,
    writes_of: Callable[[PrivatePlace], Sequence[NamespaceSet]],
) -> bool:
    """Whether the transaction of a value's version set that key's metadata, as its version says."""
    place = PrivatePlace(value.version.block, value.version.tx, *space)
    try:
        namespaces = writes_of(place)
    except LedgerError:
        return False
    return any(
        change.key_hash == key_hash(name)
        for namespace in namespaces
        if namespace.name == space[0]
        for collection in namespace.collections
        if collection.name == space[1]
        for change in collection.hashed.metadata_writes
    )
