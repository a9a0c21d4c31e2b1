"""Private data: what members of a collection keep besides the hashes that everyone has.

What was simulated waits in the *transient* table of the members' peers, under the transaction id.
When the transaction commits, each collection that this organization belongs to is looked up there
and among what was fetched for the block (`wanted` says what to fetch): what has the hash that the
block holds becomes private state, the rest goes on the *missing* list, to be asked from members
later (`reconcile`). Commit never waits for the network.

Of collections that this organization does not belong to, the *ineligible* list keeps where they
were written. Once it becomes a member, those places go over to the missing list
(`make_eligible`).

The write sets stay in `private_sets` for other members who miss them. A collection's `blockToLive`
and a contract's purge take values, sets and missing entries away, and soon after that their bytes
are overwritten in the file (`erasing`).
(Rules: Fabric core/ledger/kvledger/txmgmt/pvtstatepurgemgmt, .../validation/batch_preparer.go,
core/ledger/pvtdatastorage, gossip/privdata.)
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from google.protobuf.message import DecodeError

from consortium.storage.environment import ReadTransaction, WriteTransaction
from consortium.wire import kvrwset_pb2, lifecycle_pb2, peer_pb2, rwset_pb2
from consortium.wire.envelopes import parse

from .lifecycle import NAMESPACE as LIFECYCLE
from .lifecycle import Policies, implicit_organization, member_organizations
from .mvcc import Space, Update, UpdateBatch
from .rwset import VALID, CollectionSet, NamespaceSet, Transaction
from .state import (
    STATE,
    LedgerError,
    StoredState,
    Version,
    VersionedValue,
    encode_parts,
    hash_key,
    key_hash,
    private_namespace,
    state_key,
)

TRANSIENT = "transient"
SETS = "private_sets"
SET_KEYS = "private_set_keys"
MISSING = "missing"
EXPIRY = "expiry"
PURGES = "purges"
INELIGIBLE = "ineligible"
ELIGIBLE = "newly_eligible"
SNAPSHOT_HASHES = "snapshot_hashes"
TABLES = (
    TRANSIENT,
    SETS,
    SET_KEYS,
    MISSING,
    EXPIRY,
    PURGES,
    INELIGIBLE,
    ELIGIBLE,
    SNAPSHOT_HASHES,
)

TRANSIENT_SETS_PER_TRANSACTION = 64
"""Sets kept for one transaction id from one organization, as endorsers may disagree."""
TRANSIENT_BYTES = 256 * 1024 * 1024
"""What the transactions that one organization's peers endorsed may have waiting here."""

_DIGEST_BYTES = 8
_POSITION_BYTES = 12  # a block and a transaction


class PrivateDataError(LedgerError):
    """Private data that cannot be taken; the message says why."""


class IncompleteSetError(PrivateDataError):
    """A write set that is right as far as it goes: its sender may have purged more than we have."""


@dataclass(frozen=True, slots=True)
class PrivatePlace:
    """The private write set of one collection in one transaction."""

    block: int
    tx: int
    namespace: str
    collection: str

    def to_key(self) -> bytes:
        """The key in `private_sets` and `missing`, sorted by block and transaction."""
        space = (self.namespace, self.collection)
        return _number(self.block) + self.tx.to_bytes(4) + _space_key(space)

    @classmethod
    def from_key(cls, key: bytes) -> PrivatePlace:
        """The inverse of `to_key`."""
        namespace, collection = key[12:].decode().split("\0")
        return cls(int.from_bytes(key[:8]), int.from_bytes(key[8:12]), namespace, collection)


@dataclass(frozen=True, slots=True)
class WantedSet:
    """A private write set that a block needs and this peer has not got."""

    place: PrivatePlace
    transaction_id: str
    expected: CollectionSet
    """What the block holds of it."""
    endorsers: tuple[bytes, ...]
    """Serialized identities of those who simulated the transaction."""


def _number(number: int) -> bytes:
    return number.to_bytes(8)


def _space_key(space: Space) -> bytes:
    return f"{space[0]}\0{space[1]}".encode()


@dataclass(slots=True)
class PrivateEffects:
    """What a block does to private data on this peer, prepared before anything is written."""

    values: dict[Space, dict[str, Update]] = field(default_factory=dict)
    sets: dict[PrivatePlace, bytes] = field(default_factory=dict)
    missing: list[PrivatePlace] = field(default_factory=list)
    ineligible: dict[Space, list[int]] = field(default_factory=dict)
    """Transactions that wrote to collections of others."""
    eligible: list[Space] = field(default_factory=list)
    """Collections that this organization belongs to from the next block on."""
    purges: dict[tuple[str, str, bytes], Version] = field(default_factory=dict)
    expiries: dict[bytes, bytes] = field(default_factory=dict)
    expired: list[bytes] = field(default_factory=list)
    """Keys of the `expiry` table that are due in this block."""
    expired_hashes: list[tuple[str, str, bytes]] = field(default_factory=list)
    transaction_ids: list[str] = field(default_factory=list)

    @property
    def removes(self) -> bool:
        """Whether private values are taken away for good."""
        return bool(self.purges or self.expired)


# --- the transient table ---------------------------------------------------------------------


def store_transient(
    transaction: WriteTransaction, transaction_id: str, data: bytes, height: int, source: str
) -> None:
    """Keep `TxPvtReadWriteSet` bytes until their transaction commits or is given up.

    `source` is the MSP id of the endorser's organization, whose share of the space they count to.
    What is kept already is not kept twice. Raises PrivateDataError if they are unreadable, or if
    there are too many of that organization.
    """
    parse(rwset_pb2.TxPvtReadWriteSet, data, "the private read-write set")
    prefix = _transient_prefix(transaction_id)
    owners = []
    for key, value in transaction.prefixed(TRANSIENT, prefix):
        owner = key[len(prefix) + _DIGEST_BYTES :]
        if value[8:] == data:
            since = max(height, int.from_bytes(value[:8]))
            transaction.delete(TRANSIENT, key)
            _put_transient(transaction, prefix, owner, since, data)
            return
        owners.append(owner)
    owner = source.encode()
    stored = owners.count(owner)
    if stored >= TRANSIENT_SETS_PER_TRANSACTION:
        raise PrivateDataError(
            f"transaction {transaction_id} has {stored} private read-write sets of {source} "
            "waiting, which is the limit"
        )
    waiting = _transient_bytes(transaction, owner)
    if waiting + len(data) > TRANSIENT_BYTES:
        raise PrivateDataError(
            f"{waiting} bytes of private data of {source}'s transactions wait here for their "
            f"commit, of at most {TRANSIENT_BYTES}: try again when some of them have committed"
        )
    _count_transient(transaction, owner, len(data))
    _put_transient(transaction, prefix, owner, height, data)


def _put_transient(
    transaction: WriteTransaction, prefix: bytes, owner: bytes, height: int, data: bytes
) -> None:
    value = _number(height) + data
    transaction.put(TRANSIENT, prefix + transient_seal(prefix, owner, value) + owner, value)


def transient_seal(prefix: bytes, owner: bytes, value: bytes) -> bytes:
    """What a waiting set's key says of all that is stored with it: whose, of when, and what."""
    return hashlib.sha256(prefix + owner + b"\0" + value).digest()[:_DIGEST_BYTES]


def purge_transient(transaction: WriteTransaction, below_height: int) -> int:
    """Remove sets stored when the ledger was lower than that; how many were removed."""
    stale = [
        (key, value)
        for key, value in transaction.range(TRANSIENT, _AFTER_COUNTERS)
        if int.from_bytes(value[:8]) < below_height
    ]
    for key, value in stale:
        _remove_transient(transaction, key, value)
    return len(stale)


_COUNTER = b"\0"  # before any transaction id
_AFTER_COUNTERS = b"\1"


def _transient_prefix(transaction_id: str) -> bytes:
    return transaction_id.encode() + b"\0"


def _transient_bytes(transaction: ReadTransaction, owner: bytes) -> int:
    return int.from_bytes(transaction.get(TRANSIENT, _COUNTER + owner) or b"")


def _count_transient(transaction: WriteTransaction, owner: bytes, change: int) -> None:
    total = max(0, _transient_bytes(transaction, owner) + change)
    if total:
        transaction.put(TRANSIENT, _COUNTER + owner, _number(total))
    else:
        transaction.delete(TRANSIENT, _COUNTER + owner)


def _remove_transient(transaction: WriteTransaction, key: bytes, value: bytes) -> None:
    transaction.delete(TRANSIENT, key)
    owner = key[key.index(b"\0") + 1 + _DIGEST_BYTES :]
    _count_transient(transaction, owner, 8 - len(value))


def transient_sets(transaction: ReadTransaction, transaction_id: str) -> Iterator[bytes]:
    """The `TxPvtReadWriteSet`s waiting for a transaction."""
    for _, value in transaction.prefixed(TRANSIENT, _transient_prefix(transaction_id)):
        yield value[8:]


def _transient_collection(
    transaction: ReadTransaction, transaction_id: str, space: Space, expected_hash: bytes
) -> bytes | None:
    """A collection's write set bytes with the expected hash."""
    for data in waiting_sets(transaction, transaction_id, space):
        if hashlib.sha256(data).digest() == expected_hash:
            return data
    return None


def waiting_sets(
    transaction: ReadTransaction, transaction_id: str, space: Space
) -> Iterator[bytes]:
    """A collection's write sets (`KVRWSet` bytes) that wait for a transaction."""
    for data in transient_sets(transaction, transaction_id):
        for namespace in rwset_pb2.TxPvtReadWriteSet.FromString(data).ns_pvt_rwset:
            for collection in namespace.collection_pvt_rwset:
                if (namespace.namespace, collection.collection_name) == space:
                    yield collection.rwset


def sets_of_block(
    transaction: ReadTransaction, number: int
) -> Iterator[tuple[PrivatePlace, bytes]]:
    """The private write sets of a block, by transaction, namespace and collection."""
    for key, data in transaction.prefixed(SETS, _number(number)):
        yield PrivatePlace.from_key(key), data


# --- preparing a block -----------------------------------------------------------------------


def wanted(
    number: int,
    transactions: Sequence[Transaction],
    codes: bytes,
    policies: Policies,
    transaction: ReadTransaction,
    msp_id: str,
) -> list[WantedSet]:
    """What valid transactions of a block wrote to this organization's collections and isn't here.

    Invalid ones have no effect, so nothing is asked for them: else anybody could make every peer
    wait by naming hashes that belong to nothing.
    """
    found = []
    for one in transactions:
        if codes[one.index] != VALID:
            continue
        for namespace in one.namespaces:
            for collection in namespace.collections:
                space = (namespace.name, collection.name)
                if (
                    collection.private_hash
                    and is_member(policies, space, msp_id)
                    and _transient_collection(transaction, one.id, space, collection.private_hash)
                    is None
                ):
                    endorsers = tuple(endorser for endorser, _ in one.endorsements)
                    place = PrivatePlace(number, one.index, *space)
                    found.append(WantedSet(place, one.id, collection, endorsers))
    return found


def prepare(
    number: int,
    transactions: Sequence[Transaction],
    codes: bytes,
    updates: UpdateBatch,
    policies: Policies,
    transaction: ReadTransaction,
    msp_id: str,
    fetched: Mapping[PrivatePlace, bytes],
) -> PrivateEffects:
    """What block `number` does to private data, as seen from the state before it.

    `fetched` are write sets that other members sent for this block.
    """
    effects = PrivateEffects()
    metadata_keys: set[tuple[str, str, str]] = set()
    state = StoredState(transaction)
    for one in transactions:
        if codes[one.index] != VALID:
            continue
        for namespace in one.namespaces:
            if namespace.collections:
                _note_purges(namespace, Version(number, one.index), effects)
                _find_sets(
                    number,
                    one,
                    namespace,
                    policies,
                    transaction,
                    msp_id,
                    fetched,
                    effects,
                    metadata_keys,
                )
        if one.namespaces and any(n.collections for n in one.namespaces):
            effects.transaction_ids.append(one.id)
    effects.eligible = _newly_eligible(updates, policies, msp_id)
    _follow_metadata(metadata_keys, updates, state, effects)
    for (name, collection, digest), version in effects.purges.items():
        key = _raw_key(transaction, (name, collection), digest, effects)
        if key is not None:
            values = effects.values.setdefault((name, collection), {})
            present = values.get(key)
            if present is None or present.version < version:
                values[key] = Update(None, b"", version)
    _schedule_expiry(number, updates, policies, effects)
    _expire(number, updates, transaction, effects)
    return effects


def _find_sets(
    number: int,
    one: Transaction,
    namespace: NamespaceSet,
    policies: Policies,
    transaction: ReadTransaction,
    msp_id: str,
    fetched: Mapping[PrivatePlace, bytes],
    effects: PrivateEffects,
    metadata_keys: set[tuple[str, str, str]],
) -> None:
    """Take this peer's share of a transaction's private writes in one namespace."""
    for collection in namespace.collections:
        space = (namespace.name, collection.name)
        if not collection.private_hash:
            continue
        if not is_member(policies, space, msp_id):
            if implicit_organization(collection.name) is None:
                effects.ineligible.setdefault(space, []).append(one.index)
            continue
        place = PrivatePlace(number, one.index, *space)
        data = _transient_collection(transaction, one.id, space, collection.private_hash)
        if data is None:
            data = fetched.get(place)
        if data is None or hashlib.sha256(data).digest() != collection.private_hash:
            effects.missing.append(place)
            continue
        try:
            written = kvrwset_pb2.KVRWSet.FromString(data)
        except DecodeError:
            continue  # endorsed like this by enough members; there is nothing to have
        effects.sets[place] = data
        values = effects.values.setdefault(space, {})
        hashes = {write.key_hash: write.value_hash for write in collection.hashed.hashed_writes}
        for write in written.writes:
            gone = write.is_delete or not write.value
            expected = hashes.get(key_hash(write.key))
            if expected is None:
                continue  # the block does not know of it: the others' state keeps it
            if gone or expected == hashlib.sha256(write.value).digest():
                value = None if gone else write.value
                values[write.key] = Update(value, b"", Version(number, one.index))
        metadata_keys.update((*space, metadata.key) for metadata in written.metadata_writes)


def is_member(policies: Policies, space: Space, msp_id: str) -> bool:
    """Whether an organization belongs to a collection."""
    owner = implicit_organization(space[1])
    if owner is not None:
        return owner == msp_id
    config = policies.collection_config(*space)
    return config is not None and msp_id in member_organizations(config)


def _newly_eligible(updates: UpdateBatch, policies: Policies, msp_id: str) -> list[Space]:
    """Collections that were there before the block, and that it makes this organization join."""
    found = []
    for key, update in updates.public.get(LIFECYCLE, {}).items():
        parts = key.split("/")
        if update.value is None or len(parts) != 4 or parts[3] != "Collections":
            continue
        try:
            package = peer_pb2.CollectionConfigPackage.FromString(
                lifecycle_pb2.StateData.FromString(update.value).Bytes
            )
        except DecodeError:
            continue
        for config in package.config:
            after = config.static_collection_config
            before = policies.collection_config(parts[2], after.name)
            if (
                before is not None
                and msp_id not in member_organizations(before)
                and msp_id in member_organizations(after)
            ):
                found.append((parts[2], after.name))
    return found


def _follow_metadata(
    keys: Iterable[tuple[str, str, str]],
    updates: UpdateBatch,
    state: StoredState,
    effects: PrivateEffects,
) -> None:
    """A change of a key's policy moves its hash's version; the value goes along."""
    for namespace, collection, key in keys:
        hashed = updates.hashed.get((namespace, collection), {}).get(key_hash(key))
        if hashed is None or hashed.value is None:
            continue
        values = effects.values.setdefault((namespace, collection), {})
        latest: Update | VersionedValue | None = values.get(key) or state.get(
            private_namespace(namespace, collection), key
        )
        if (
            latest is not None
            and latest.value is not None
            and latest.version != hashed.version
            and hashlib.sha256(latest.value).digest() == hashed.value
        ):
            values[key] = Update(latest.value, b"", hashed.version)


def _note_purges(namespace: NamespaceSet, version: Version, effects: PrivateEffects) -> None:
    for collection in namespace.collections:
        for write in collection.hashed.hashed_writes:
            if write.is_purge:
                effects.purges[namespace.name, collection.name, write.key_hash] = version


def _raw_key(
    transaction: ReadTransaction, space: Space, digest: bytes, effects: PrivateEffects
) -> str | None:
    """The name of a private key whose hash is known, if any set that this peer holds has it."""
    for key in effects.values.get(space, ()):
        if key_hash(key) == digest:
            return key
    prefix = _space_key(space) + b"\0" + digest
    for entry, name in transaction.prefixed(SET_KEYS, prefix):
        if len(entry) == len(prefix) + _POSITION_BYTES:  # else it only begins like the digest
            return name.decode()
    return None


# --- expiry ----------------------------------------------------------------------------------


def _expiring_block(policies: Policies, space: Space, committed: int) -> int | None:
    """The block that takes away what block `committed` wrote, None for never."""
    config = policies.collection_config(*space)
    if config is None or config.block_to_live == 0:
        return None
    block = committed + config.block_to_live + 1
    return block if block < 2**64 else None


def _expiry_key(expiring: int, committed: int, space: Space, digest: bytes) -> bytes:
    return _number(expiring) + _number(committed) + _space_key(space) + b"\0" + digest


def _schedule_expiry(
    number: int, updates: UpdateBatch, policies: Policies, effects: PrivateEffects
) -> None:
    """Note when this block's hashes, values, sets and missing entries end."""
    spaces = {*updates.hashed, *effects.values, *effects.ineligible}
    spaces.update((p.namespace, p.collection) for p in (*effects.sets, *effects.missing))
    for space in spaces:
        expiring = _expiring_block(policies, space, number)
        if expiring is None:
            continue
        effects.expiries[_expiry_key(expiring, number, space, b"")] = b""
        for digest, update in updates.hashed.get(space, {}).items():
            if update.value is not None:
                effects.expiries[_expiry_key(expiring, number, space, digest)] = b""
        for key, value in effects.values.get(space, {}).items():
            if value.value is not None:
                entry = _expiry_key(expiring, number, space, key_hash(key))
                effects.expiries[entry] = b"\x01" + key.encode()


def _expire(
    number: int, updates: UpdateBatch, transaction: ReadTransaction, effects: PrivateEffects
) -> None:
    """Find what ends with this block, unless the block writes it anew."""
    state = StoredState(transaction)
    for entry, raw in transaction.prefixed(EXPIRY, _number(number)):
        effects.expired.append(entry)
        committed, space, digest = _read_expiry_key(entry)
        if not digest:
            continue
        hashed = state.get_private_hash(*space, digest)
        current = hashed is not None and hashed.version.block == committed
        if current and digest not in updates.hashed.get(space, {}):
            effects.expired_hashes.append((*space, digest))
        if raw:
            key = raw[1:].decode()
            value = state.get(private_namespace(*space), key)
            values = effects.values.setdefault(space, {})
            if value is not None and value.version.block == committed and key not in values:
                values[key] = Update(None, b"", Version(number, 0))


def _read_expiry_key(entry: bytes) -> tuple[int, Space, bytes]:
    namespace, collection, digest = entry[16:].split(b"\0", 2)
    return int.from_bytes(entry[8:16]), (namespace.decode(), collection.decode()), digest


# --- writing ---------------------------------------------------------------------------------


def write(transaction: WriteTransaction, number: int, effects: PrivateEffects) -> None:
    """Write a block's private effects, in the block's own transaction."""
    for transaction_id in effects.transaction_ids:
        for key, value in list(transaction.prefixed(TRANSIENT, _transient_prefix(transaction_id))):
            _remove_transient(transaction, key, value)
    for place, data in effects.sets.items():
        _put_set(transaction, place, data)
    for place in effects.missing:
        transaction.put(MISSING, place.to_key(), b"")
    for space, indexes in effects.ineligible.items():
        places = b"".join(index.to_bytes(4) for index in indexes)
        transaction.put(INELIGIBLE, _space_key(space) + b"\0" + _number(number), places)
    for space in effects.eligible:
        transaction.put(ELIGIBLE, _space_key(space), b"")
    for (namespace, collection, digest), version in effects.purges.items():
        _purge_sets(transaction, (namespace, collection), digest, version)
    for space, values in effects.values.items():
        _put_values(transaction, space, values)
    for namespace, collection, digest in effects.expired_hashes:
        transaction.delete(STATE, hash_key(namespace, collection, digest))
    for entry, raw in effects.expiries.items():
        transaction.put(EXPIRY, entry, raw)
    for entry in effects.expired:
        transaction.delete(EXPIRY, entry)
        committed, space, digest = _read_expiry_key(entry)
        if not digest:
            _remove_places(transaction, committed, space)


def _put_values(transaction: WriteTransaction, space: Space, values: dict[str, Update]) -> None:
    namespace = private_namespace(*space)
    for key, update in values.items():
        place = state_key(namespace, key)
        if update.value is None:
            transaction.delete(STATE, place)
        else:
            value = encode_parts(update.value, update.metadata, update.version)
            transaction.put(STATE, place, value)


def _put_set(transaction: WriteTransaction, place: PrivatePlace, data: bytes) -> None:
    transaction.put(SETS, place.to_key(), data)
    for one in kvrwset_pb2.KVRWSet.FromString(data).writes:
        transaction.put(SET_KEYS, _set_key(place, key_hash(one.key)), one.key.encode())


def _set_key(place: PrivatePlace, digest: bytes) -> bytes:
    space = _space_key((place.namespace, place.collection))
    return space + b"\0" + digest + place.to_key()[:12]


def _purge_sets(
    transaction: WriteTransaction, space: Space, digest: bytes, version: Version
) -> None:
    """Take a key out of all sets up to a version, and remember that for later arrivals."""
    prefix = _space_key(space) + b"\0" + digest
    last = _number(version.block) + version.tx.to_bytes(4)
    transaction.put(PURGES, prefix, last)
    for entry, _ in list(transaction.prefixed(SET_KEYS, prefix)):
        position = entry[len(prefix) :]
        if len(position) != len(last) or position > last:
            continue
        place = PrivatePlace(int.from_bytes(position[:8]), int.from_bytes(position[8:]), *space)
        transaction.delete(SET_KEYS, entry)
        stored = transaction.get(SETS, place.to_key())
        if stored is not None:
            remaining = kvrwset_pb2.KVRWSet.FromString(stored)
            kept = [one for one in remaining.writes if key_hash(one.key) != digest]
            data = kvrwset_pb2.KVRWSet(writes=kept).SerializeToString()
            transaction.put(SETS, place.to_key(), data)


def _remove_places(transaction: WriteTransaction, block: int, space: Space) -> None:
    """Forget the sets and missing entries of a collection in one block."""
    ending = _space_key(space)
    transaction.delete(INELIGIBLE, ending + b"\0" + _number(block))
    for table in (SETS, MISSING):
        for key, data in list(transaction.prefixed(table, _number(block))):
            if key[12:] != ending:
                continue
            transaction.delete(table, key)
            if table == SETS:
                place = PrivatePlace.from_key(key)
                for one in kvrwset_pb2.KVRWSet.FromString(data).writes:
                    transaction.delete(SET_KEYS, _set_key(place, key_hash(one.key)))


# --- reconciliation --------------------------------------------------------------------------


def make_eligible(transaction: WriteTransaction, limit: int) -> int:
    """Put places of newly joined collections on the missing list; how many blocks were looked at.

    0 once there is nothing left to do.
    """
    seen = 0
    for space, _ in list(transaction.range(ELIGIBLE)):
        blocks = list(islice(transaction.prefixed(INELIGIBLE, space + b"\0"), limit - seen))
        for key, places in blocks:
            for at in range(0, len(places), 4):
                transaction.put(MISSING, key[-8:] + places[at : at + 4] + space, b"")
            transaction.delete(INELIGIBLE, key)
        seen += len(blocks)
        if seen >= limit:
            break
        transaction.delete(ELIGIBLE, space)
    return seen


def reconcile(
    transaction: WriteTransaction,
    place: PrivatePlace,
    data: bytes,
    expected: Sequence[NamespaceSet],
    policies: Policies,
    height: int,
) -> None:
    """Take a missing write set that a member sent; raises PrivateDataError if it isn't the one.

    `expected` are the read-write sets that the block holds for the transaction. Keys purged since
    may be absent. A value becomes state only if its hash is still the current one. What is not on
    the missing list (any more) is ignored.
    """
    if transaction.get(MISSING, place.to_key()) is None:
        return
    collection = next(
        (
            c
            for n in expected
            if n.name == place.namespace
            for c in n.collections
            if c.name == place.collection
        ),
        None,
    )
    if collection is None:
        raise PrivateDataError(f"{place} has no private writes in the block")
    try:
        received = kvrwset_pb2.KVRWSet.FromString(data)
        writes, metadata_writes = list(received.writes), list(received.metadata_writes)
    except DecodeError as error:
        raise PrivateDataError(f"the private write set of {place} is unreadable: {error}") from None
    exact = hashlib.sha256(data).digest() == collection.private_hash
    if not exact:
        writes = _check_writes(transaction, place, writes, collection.hashed)
        metadata_writes = []
    # What was purged since is not kept, whoever still has it.
    kept = [one for one in writes if not _is_purged(transaction, place, key_hash(one.key))]
    if not exact or len(kept) < len(writes):
        writes = kept
        metadata_writes = [
            one for one in metadata_writes if not _is_purged(transaction, place, key_hash(one.key))
        ]
        data = kvrwset_pb2.KVRWSet(
            writes=writes, metadata_writes=metadata_writes
        ).SerializeToString()
    space = (place.namespace, place.collection)
    expiring = _expiring_block(policies, space, place.block)
    transaction.delete(MISSING, place.to_key())
    if expiring is not None and expiring < height:
        return
    _put_set(transaction, place, data)
    state = StoredState(transaction)
    values: dict[str, Update] = {}
    for one in writes:
        gone = one.is_delete or not one.value
        digest = key_hash(one.key)
        hashed = state.get_private_hash(*space, digest)
        if gone:
            if hashed is None:
                values[one.key] = Update(None, b"", Version(place.block, place.tx))
        elif hashed is not None and hashlib.sha256(one.value).digest() == hashed.value:
            values[one.key] = Update(one.value, b"", hashed.version)
            if expiring is not None:
                entry = _expiry_key(expiring, place.block, space, digest)
                transaction.put(EXPIRY, entry, b"\x01" + one.key.encode())
    for metadata in metadata_writes:
        # The hash's version moved with the key's policy; the value follows if it is the same.
        value = state.get(private_namespace(*space), metadata.key)
        hashed = state.get_private_hash(*space, key_hash(metadata.key))
        if (
            value is not None
            and hashed is not None
            and metadata.key not in values
            and hashlib.sha256(value.value).digest() == hashed.value
        ):
            values[metadata.key] = Update(value.value, b"", hashed.version)
    _put_values(transaction, space, values)


def note_snapshot_hash(
    transaction: WriteTransaction,
    place: PrivatePlace,
    digest: bytes,
    value_hash: bytes,
    *,
    member: bool,
    block_to_live: int,
) -> None:
    """Take in a private key's hashes from a snapshot: its set is missing, or another's.

    What was written with it may be reconciled without the block, which isn't here.
    """
    space = (place.namespace, place.collection)
    transaction.put(SNAPSHOT_HASHES, place.to_key() + b"\0" + digest, value_hash)
    if member:
        transaction.put(MISSING, place.to_key(), b"")
    elif implicit_organization(place.collection) is None:
        key = _space_key(space) + b"\0" + _number(place.block)
        places = transaction.get(INELIGIBLE, key) or b""
        one = place.tx.to_bytes(4)
        if one not in (places[at : at + 4] for at in range(0, len(places), 4)):
            transaction.put(INELIGIBLE, key, places + one)
    expiring = place.block + block_to_live + 1
    if block_to_live and expiring < 2**64:
        transaction.put(EXPIRY, _expiry_key(expiring, place.block, space, b""), b"")
        transaction.put(EXPIRY, _expiry_key(expiring, place.block, space, digest), b"")


def check_set(
    transaction: ReadTransaction,
    place: PrivatePlace,
    data: bytes,
    expected: Sequence[NamespaceSet],
) -> list[kvrwset_pb2.KVWrite]:
    """The writes of a set that is kept; raises PrivateDataError if it isn't the block's."""
    for namespace in expected:
        for collection in namespace.collections:
            if (namespace.name, collection.name) != (place.namespace, place.collection):
                continue
            try:
                found = kvrwset_pb2.KVRWSet.FromString(data)
            except DecodeError as error:
                raise PrivateDataError(f"the private write set of {place} is unreadable") from error
            if hashlib.sha256(data).digest() == collection.private_hash:
                return list(found.writes)
            # Keys were purged from it, or it came from a member that had purged some.
            kept = _check_writes(transaction, place, found.writes, collection.hashed)
            moved = {one.key_hash for one in collection.hashed.metadata_writes}
            whole = kvrwset_pb2.KVRWSet(writes=kept, metadata_writes=found.metadata_writes)
            if whole.SerializeToString() != data or any(
                key_hash(one.key) not in moved for one in found.metadata_writes
            ):
                raise PrivateDataError(f"the private write set of {place} was changed")
            return kept
    raise PrivateDataError(f"{place} has no private writes in the block")


def set_key_entry(place: PrivatePlace, name: str) -> tuple[bytes, bytes]:
    """The entry by which a key of a kept set is found again by its hash."""
    return _set_key(place, key_hash(name)), name.encode()


def expiry_digest(entry: bytes) -> tuple[int, Space, bytes]:
    """Block, space and key hash (empty for a whole space) of an entry of the expiry table."""
    return _read_expiry_key(entry)


def ineligible_places(transaction: ReadTransaction) -> Iterator[tuple[bytes, bytes, bytes]]:
    """The ineligible list's entries: space, key, and places as keys of the missing list joined."""
    for key, places in transaction.range(INELIGIBLE):
        yield key[:-9], key, places


def snapshot_writes(transaction: ReadTransaction, place: PrivatePlace) -> list[NamespaceSet]:
    """What a snapshot tells of a transaction's private writes: the hashes that still held."""
    prefix = place.to_key() + b"\0"
    hashed = kvrwset_pb2.HashedRWSet(
        hashed_writes=[
            kvrwset_pb2.KVWriteHash(key_hash=key[len(prefix) :], value_hash=value)
            for key, value in transaction.prefixed(SNAPSHOT_HASHES, prefix)
        ]
    )
    collection = CollectionSet(place.collection, hashed, b"")
    return [NamespaceSet(place.namespace, kvrwset_pb2.KVRWSet(), (collection,))]


def _is_purged(transaction: ReadTransaction, place: PrivatePlace, digest: bytes) -> bool:
    """Whether a key was purged after a place was written, or there."""
    space = _space_key((place.namespace, place.collection))
    purged = transaction.get(PURGES, space + b"\0" + digest)
    return purged is not None and place.to_key()[:12] <= purged


def _check_writes(
    transaction: ReadTransaction,
    place: PrivatePlace,
    writes: Iterable[kvrwset_pb2.KVWrite],
    hashed: kvrwset_pb2.HashedRWSet,
) -> list[kvrwset_pb2.KVWrite]:
    """The writes that are expected; raises PrivateDataError if one is wrong or lacks.

    Those purged since may lack.
    """
    expected = {one.key_hash: one.value_hash for one in hashed.hashed_writes}
    kept = []
    for write_ in writes:
        wanted = expected.pop(key_hash(write_.key), None)
        if wanted is not None:
            value_hash = hashlib.sha256(write_.value).digest() if write_.value else b""
            if wanted != value_hash:
                raise PrivateDataError(f"the private write set of {place} has a wrong value")
            kept.append(write_)
    lacking = [digest for digest in expected if not _is_purged(transaction, place, digest)]
    if lacking:
        raise IncompleteSetError(f"the private write set of {place} lacks {len(lacking)} keys")
    return kept
