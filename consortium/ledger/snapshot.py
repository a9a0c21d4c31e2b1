"""Snapshots of a ledger, in Hyperledger Fabric's own files: made here or there, they load in both.

A snapshot is a folder with the public state, the hashes of private state, all transaction ids and
the history of collections' configurations after one block. `_snapshot_signable_metadata.json` names
the files' hashes; its own hash is the snapshot's. Every peer of a channel makes the same bytes, so
the operators of a few can be asked whether a snapshot is right.

A peer that begins with one knows the state, but no blocks and no history from before it. Private
data it asks from other members, who are checked against the hashes.
(Format and rules: Fabric core/ledger/kvledger/snapshot.go, snapshot_mgmt.go, and what they call.)
"""

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

from consortium.storage.environment import Environment, ReadTransaction, WriteTransaction
from consortium.wire import common_pb2, peer_pb2
from consortium.wire.envelopes import WireError, parse

from . import private_data
from .channel_config import ChannelConfig, check_channel_id
from .config_update import ConfigError
from .ledger import (
    BEFORE_SNAPSHOT,
    CONFIG_HISTORY,
    FORMAT_VERSION,
    META,
    SNAPSHOT_REQUEST,
    TABLES,
    TRANSACTIONS,
    Base,
    Ledger,
    write_base,
)
from .lifecycle import implicit_organization, member_organizations
from .mvcc import encode_field, ordered, varint
from .private_data import PrivatePlace
from .state import (
    STATE,
    LedgerError,
    Version,
    VersionedValue,
    decode_value,
    encode_value,
    hash_key,
    state_key,
)
from .validator import CONFIG_KEY

_LOGGER = logging.getLogger(__name__)

SIGNABLE = "_snapshot_signable_metadata.json"
ADDITIONAL = "_snapshot_additional_metadata.json"
COMPLETED = "completed"
"""Folder of finished snapshots, by channel and block number, as in Fabric."""
TEMPORARY = "temp"

REQUEST_LIMIT = 100
"""Snapshots that may be waited for at once."""
BATCH = 10_000
"""Entries that one transaction loads."""
RECORD_LIMIT_BYTES = 256 * 1024 * 1024
METADATA_LIMIT_BYTES = 1024 * 1024
IDS_WAITING_BYTES = 16 * 1024 * 1024
"""Transaction ids that are gathered before they are written to their places in a snapshot."""

_FORMAT = b"\x01"
_STATE_TYPE = "SimpleKeyValueDB"
_COUCH = "CouchDB"
_PUBLIC, _HASHES, _IDS, _HISTORY = (
    "public_state",
    "private_state_hashes",
    "txids",
    "confighistory",
)
_CONFIG_HISTORY_PREFIX = b"slscc\0"  # the namespace that Fabric 1.2 kept collections in
_CONFIG_HISTORY_SUFFIX = b"~collection"
_JOINING = "~joining"  # no channel's name has a tilde
_LAST = 2**64 - 1

Progress = Callable[[str, int], None]
"""Told what is being done, and how many entries (or bytes, when checking) are done."""


class SnapshotError(LedgerError):
    """A snapshot that cannot be made or loaded; the message says why."""


def _quiet(_what: str, _done: int) -> None:
    """No progress."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot's metadata, checked against its own hash."""

    folder: Path
    channel_id: str
    last_block: int
    last_block_hash: bytes
    previous_block_hash: bytes
    commit_hash: bytes
    hash: bytes
    files: dict[str, bytes] = field(repr=False)
    """SHA-256 of every data file, by name."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a snapshot's two metadata files; raises SnapshotError. `check` reads the others."""
        try:
            raw = _read_limited(folder / SIGNABLE)
            signable, additional = json.loads(raw), json.loads(_read_limited(folder / ADDITIONAL))
            snapshot = cls(
                folder,
                signable["channel_name"],
                signable["last_block_number"],
                bytes.fromhex(signable["last_block_hash"]),
                bytes.fromhex(signable["previous_block_hash"]),
                bytes.fromhex(additional["last_block_commit_hash"]),
                bytes.fromhex(additional["snapshot_hash"]),
                {
                    name: bytes.fromhex(digest)
                    for name, digest in signable["snapshot_files_raw_hashes"].items()
                },
            )
            kind = signable["state_db_type"]
            check_channel_id(snapshot.channel_id)
            number: object = signable["last_block_number"]
            if not isinstance(number, int) or not 0 <= number < _LAST:
                raise ValueError(f"the block number {number!r} is none")
        except FileNotFoundError as error:
            raise SnapshotError(
                f"{folder} is no snapshot: it lacks {Path(error.filename).name}"
            ) from None
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise SnapshotError(f"the metadata of {folder} are unreadable: {error}") from None
        if hashlib.sha256(raw).digest() != snapshot.hash:
            raise SnapshotError(
                f"{folder / SIGNABLE} does not have the hash that {ADDITIONAL} names: one of them "
                "was changed"
            )
        if kind not in (_STATE_TYPE, _COUCH):
            raise SnapshotError(f"{folder} holds the state of a {kind!r}, which isn't known here")
        for name in snapshot.files:
            if Path(name).name != name:
                raise SnapshotError(f"{folder} names a file {name!r}, outside its folder")
        return snapshot

    def check(self, progress: Progress = _quiet) -> None:
        """Check every file against its hash; raises SnapshotError."""
        done = 0
        for name, expected in self.files.items():
            digest = hashlib.sha256()
            try:
                with (self.folder / name).open("rb") as file:
                    while piece := file.read(1024 * 1024):
                        digest.update(piece)
                        done += len(piece)
                        progress("bytes checked", done)
            except FileNotFoundError:
                raise SnapshotError(f"the snapshot {self.folder} lacks its file {name}") from None
            if digest.digest() != expected:
                raise SnapshotError(
                    f"{self.folder / name} does not have the hash that the snapshot names for it: "
                    "it was changed or cut short. Copy the snapshot again."
                )

    @property
    def base(self) -> Base:
        """What a ledger notes that begins with it."""
        return Base(
            self.last_block,
            self.last_block_hash,
            self.previous_block_hash,
            self.commit_hash,
            self.hash,
        )


def _read_limited(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(METADATA_LIMIT_BYTES)


# --- the files -------------------------------------------------------------------------------


class _Writer:
    """One file: a format byte, then numbers and length-prefixed bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
        self._file = os.fdopen(descriptor, "wb", buffering=1024 * 1024)
        self._digest = hashlib.sha256()
        self._write(_FORMAT)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)

    def number(self, number: int) -> None:
        self._write(varint(number))

    def record(self, data: bytes) -> None:
        self._write(varint(len(data)) + data)

    def finish(self) -> dict[str, bytes]:
        """Bring it to the disk; its name and hash."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {self._path.name: self._digest.digest()}


class _Reader:
    """The inverse of `_Writer`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb", buffering=1024 * 1024)
        found = self._file.read(1)
        if found != _FORMAT:
            newer = bool(found) and found > _FORMAT
            self._file.close()
            raise SnapshotError(
                f"{path} is " + ("of a newer format than 1" if newer else "no snapshot file")
            )

    def number(self) -> int:
        number = shift = 0
        while True:
            one = self._file.read(1)
            if not one or shift > 63:
                raise SnapshotError(f"{self._path} ends too soon or holds no number")
            number |= (one[0] & 0x7F) << shift
            if one[0] < 0x80:
                return number
            shift += 7

    def record(self) -> bytes:
        length = self.number()
        if length > RECORD_LIMIT_BYTES:
            raise SnapshotError(f"{self._path} holds a record of {length} bytes, which is too long")
        data = self._file.read(length)
        if len(data) != length:
            raise SnapshotError(f"{self._path} ends too soon")
        return data

    def close(self) -> None:
        self._file.close()


class _StateWriter:
    """Entries of state in one file, and in another how many each namespace has."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._data: _Writer | None = None
        self._counts: dict[bytes, int] = {}

    def add(self, namespace: bytes, key: bytes, value: VersionedValue) -> None:
        if self._data is None:
            self._data = _Writer(self._folder / f"{self._name}.data")
        self._counts[namespace] = self._counts.get(namespace, 0) + 1
        version = ordered(value.version.block) + ordered(value.version.tx)
        self._data.record(
            encode_field(1, key)
            + encode_field(2, value.value)
            + encode_field(3, value.metadata)
            + encode_field(4, version)
        )

    def finish(self) -> dict[str, bytes]:
        if self._data is None:
            return {}
        counts = _Writer(self._folder / f"{self._name}.metadata")
        counts.number(len(self._counts))
        for namespace, count in self._counts.items():
            counts.record(namespace)
            counts.number(count)
        return self._data.finish() | counts.finish()


def _state_entries(folder: Path, name: str) -> Iterator[tuple[bytes, bytes, VersionedValue]]:
    """Namespace, key and value of each entry of a file."""
    counts = _Reader(folder / f"{name}.metadata")
    data = _Reader(folder / f"{name}.data")
    try:
        for _ in range(counts.number()):
            namespace = counts.record()
            for _ in range(counts.number()):
                fields = _fields(data.record(), data)
                version = fields.get(4, b"")
                block, rest = _ordered_number(version)
                tx, rest = _ordered_number(rest)
                if rest:
                    raise SnapshotError(f"{folder / name}.data holds an unreadable version")
                value = VersionedValue(fields.get(2, b""), fields.get(3, b""), Version(block, tx))
                yield namespace, fields.get(1, b""), value
    finally:
        counts.close()
        data.close()


def _fields(record: bytes, source: _Reader) -> dict[int, bytes]:
    """The length-delimited fields of a `SnapshotRecord` (key, value, metadata, version)."""
    found: dict[int, bytes] = {}
    position = 0
    while position < len(record):
        tag = record[position]
        if tag & 7 != 2 or not 1 <= tag >> 3 <= 4:
            raise SnapshotError(f"a snapshot's record has an unknown field {tag >> 3}")
        length, position = _varint_at(record, position + 1)
        found[tag >> 3] = record[position : position + length]
        if len(found[tag >> 3]) != length:
            raise SnapshotError("a snapshot's record ends too soon")
        position += length
    return found


def _varint_at(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while position < len(data) and shift <= 63:
        one = data[position]
        number |= (one & 0x7F) << shift
        position += 1
        if one < 0x80:
            return number, position
        shift += 7
    raise SnapshotError("a snapshot's record ends too soon")


def _ordered_number(data: bytes) -> tuple[int, bytes]:
    if not data or data[0] > 8 or len(data) <= data[0]:
        raise SnapshotError("a snapshot's record has an unreadable version")
    return int.from_bytes(data[1 : 1 + data[0]]), data[1 + data[0] :]


# --- making one ------------------------------------------------------------------------------


def snapshot_folder(root: Path, channel_id: str, number: int) -> Path:
    """Where the finished snapshot of a block lies under a peer's snapshot folder."""
    return root / COMPLETED / channel_id / str(number)


def completed(root: Path) -> list[Snapshot]:
    """The finished snapshots under a peer's snapshot folder, by channel and block."""
    found = [Snapshot.read(path.parent) for path in (root / COMPLETED).glob(f"*/*/{SIGNABLE}")]
    return sorted(found, key=lambda one: (one.channel_id, one.last_block))


def create_snapshot(ledger: Ledger, root: Path, progress: Progress = _quiet) -> Snapshot:
    """Make a snapshot after the ledger's last block under `root`; raises SnapshotError, OSError.

    Blocks may be committed meanwhile; the view that this holds makes the ledger's file grow.
    """
    with ledger.tables() as tables:
        return _create(ledger, tables, root, progress)


def _create(ledger: Ledger, tables: ReadTransaction, root: Path, progress: Progress) -> Snapshot:
    position = ledger.position_in(tables)
    channel_id, last_block = ledger.channel_id, position.height - 1
    folder = snapshot_folder(root, channel_id, last_block)
    if folder.exists():
        raise SnapshotError(f"snapshot already generated for block number {last_block}: {folder}")
    unfinished = root / TEMPORARY / f"{channel_id}-{last_block}"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True, mode=0o700)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        files = _export_ids(tables, unfinished, progress)
        files |= _export_config_history(tables, unfinished)
        files |= _export_state(tables, unfinished, progress)
        signable = _json(
            {
                "channel_name": channel_id,
                "last_block_number": last_block,
                "last_block_hash": position.last_hash.hex(),
                "previous_block_hash": position.previous_hash.hex(),
                "snapshot_files_raw_hashes": {name: files[name].hex() for name in sorted(files)},
                "state_db_type": _STATE_TYPE,
            }
        )
        additional = _json(
            {
                "snapshot_hash": hashlib.sha256(signable).hexdigest(),
                "last_block_commit_hash": position.commit_hash.hex(),
            }
        )
        _write_file(unfinished / SIGNABLE, signable)
        _write_file(unfinished / ADDITIONAL, additional)
        _flush_folder(unfinished)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _flush_folder(folder.parent)
    return Snapshot.read(folder)


def _export_ids(tables: ReadTransaction, folder: Path, progress: Progress) -> dict[str, bytes]:
    """All transaction ids, shorter ones first, those of one length in the order of their bytes.

    Who may write to a channel puts ids of any length on it, so neither time nor memory may grow
    with how many lengths there are. Ids of one length all take the same room in the file, so one
    pass counts them, which says where each length begins, and a second puts every id in its place.
    """
    lengths: dict[int, int] = {}
    for seen, (key, _) in enumerate(tables.range(TRANSACTIONS), 1):
        lengths[len(key)] = lengths.get(len(key), 0) + 1
        progress("transaction ids counted", seen)
    if not lengths:
        return {}
    path = folder / f"{_IDS}.data"
    # Read again at the end: what is written here and there can't be hashed on the way.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o444)
    with os.fdopen(descriptor, "w+b") as file:
        file.write(_FORMAT)
        _place_ids(tables, file, lengths, progress)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
    counts = _Writer(folder / f"{_IDS}.metadata")
    counts.number(sum(lengths.values()))
    return {path.name: digest} | counts.finish()


def _place_ids(
    tables: ReadTransaction, file: BinaryIO, lengths: dict[int, int], progress: Progress
) -> None:
    """Write every id to its length's part of the file; `lengths`: how many ids each length has."""
    ends: dict[int, int] = {}
    end = len(_FORMAT)
    for length in sorted(lengths):
        ends[length] = end
        end += lengths[length] * (len(varint(length)) + length)
    waiting: dict[int, bytearray] = {}
    waiting_bytes = 0

    def write() -> None:
        for length, records in waiting.items():
            file.seek(ends[length])
            file.write(records)
            ends[length] += len(records)
        waiting.clear()

    for count, (key, _) in enumerate(tables.range(TRANSACTIONS), 1):
        record = varint(len(key)) + key
        waiting.setdefault(len(key), bytearray()).extend(record)
        waiting_bytes += len(record)
        if waiting_bytes >= IDS_WAITING_BYTES:
            write()
            waiting_bytes = 0
        progress("transaction ids written", count)
    write()
    # The places of the second pass were reckoned from the first: both saw the same ids.
    assert end == max(ends.values())


def _export_config_history(tables: ReadTransaction, folder: Path) -> dict[str, bytes]:
    """Contracts' explicit collections, under the keys of Fabric's own database."""
    entries = {
        _CONFIG_HISTORY_PREFIX
        + name
        + _CONFIG_HISTORY_SUFFIX
        + (_LAST - number).to_bytes(8): package
        for name, number, package in Ledger.collection_history(tables)
        if package
    }
    if not entries:
        return {}
    writer = _Writer(folder / f"{_HISTORY}.data")
    for key in sorted(entries):
        writer.record(key)
        writer.record(entries[key])
    counts = _Writer(folder / f"{_HISTORY}.metadata")
    counts.number(len(entries))
    return writer.finish() | counts.finish()


def _export_state(tables: ReadTransaction, folder: Path, progress: Progress) -> dict[str, bytes]:
    """Public state and hashes of private state; private values stay where they are."""
    public, hashes = _StateWriter(folder, _PUBLIC), _StateWriter(folder, _HASHES)
    for count, (place, stored) in enumerate(tables.range(STATE), 1):
        namespace, _, key = place.partition(b"\0")
        if b"$$p" not in namespace:
            writer = hashes if b"$$h" in namespace else public
            writer.add(namespace, key, decode_value(stored))
        progress("entries of state written", count)
    return public.finish() | hashes.finish()


def _json(value: dict[str, object]) -> bytes:
    return json.dumps(value, indent=4).encode()


def _write_file(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- loading one -----------------------------------------------------------------------------


def join_by_snapshot(
    folder: Path,
    path: Path,
    *,
    msp_id: str,
    progress: Progress = _quiet,
    durable: bool = True,
) -> Snapshot:
    """Make the ledger in the new folder `path` from a snapshot; it goes on with the next block.

    `msp_id` is the organization of the peer, as for `Ledger.open`. Every file is checked first; a
    folder that was half filled when this ended is not taken for a ledger. Raises SnapshotError,
    OSError, StorageError.
    """
    snapshot = Snapshot.read(folder)
    snapshot.check(progress)
    if path.exists():
        raise SnapshotError(
            f"there is a ledger in {path} already: a snapshot fills a new folder only"
        )
    unfinished = path.with_name(path.name + _JOINING)
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True, mode=0o700)
    try:
        environment = Environment(
            unfinished / "index", TABLES, format_version=FORMAT_VERSION, durable=durable
        )
        try:
            _Loading(snapshot, environment, msp_id, progress).run()
        finally:
            environment.close()
        with Ledger.open(unfinished, msp_id=msp_id, durable=durable):
            pass  # it has a configuration that can be used
        _flush_folder(unfinished)
        unfinished.rename(path)
        _flush_folder(path.parent)
    except ConfigError as error:
        raise SnapshotError(f"the snapshot's configuration cannot be used: {error}") from None
    except UnicodeDecodeError as error:
        raise SnapshotError(f"{folder} holds a name that is not UTF-8: {error.reason}") from None
    except WireError as error:
        raise SnapshotError(f"{folder} holds a message that cannot be read: {error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return snapshot


def is_unfinished(name: str) -> bool:
    """Whether a folder beside the ledgers is one that a snapshot was to fill and did not."""
    return name.endswith(_JOINING)


class _Loading:
    """Fills an empty environment from a checked snapshot."""

    def __init__(
        self, snapshot: Snapshot, environment: Environment, msp_id: str, progress: Progress
    ) -> None:
        self._snapshot = snapshot
        self._environment = environment
        self._msp_id = msp_id
        self._progress = progress
        self._collections: dict[bytes, list[tuple[int, peer_pb2.CollectionConfigPackage]]] = {}
        self._waiting: list[Callable[[WriteTransaction], None]] = []
        self._config = b""

    def run(self) -> None:
        """Load everything; the ledger's position comes last."""
        self._load_collections()
        self._load_ids()
        self._load_public()
        self._load_hashes()
        self._flush()
        if not self._config:
            raise SnapshotError(f"{self._snapshot.folder} lacks the channel's configuration")
        envelope = parse(common_pb2.ConfigEnvelope, self._config, "the snapshot's configuration")
        ChannelConfig.from_config(self._snapshot.channel_id, envelope.config)
        self._environment.write(
            lambda t: write_base(
                t, self._snapshot.base, self._snapshot.channel_id, self._msp_id, self._config
            )
        )

    def _put(self, change: Callable[[WriteTransaction], None]) -> None:
        self._waiting.append(change)
        if len(self._waiting) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        batch, self._waiting = self._waiting, []

        def write(transaction: WriteTransaction) -> None:
            for change in batch:
                change(transaction)

        self._environment.write(write)

    def _has(self, name: str) -> bool:
        return f"{name}.data" in self._snapshot.files

    def _load_collections(self) -> None:
        if not self._has(_HISTORY):
            return
        folder = self._snapshot.folder
        counts = _Reader(folder / f"{_HISTORY}.metadata")
        data = _Reader(folder / f"{_HISTORY}.data")
        try:
            for _ in range(counts.number()):
                key, value = data.record(), data.record()
                start, end = key[:-8], _CONFIG_HISTORY_SUFFIX
                name = start[len(_CONFIG_HISTORY_PREFIX) : -len(end)]
                if start != _CONFIG_HISTORY_PREFIX + name + end:
                    raise SnapshotError(f"{folder} holds an unknown configuration entry {key!r}")
                number = _LAST - int.from_bytes(key[-8:])
                package = parse(peer_pb2.CollectionConfigPackage, value, "a contract's collections")
                self._collections.setdefault(name, []).append((number, package))
                self._put(
                    lambda t, name=name, number=number, value=value: t.put(  # type: ignore[misc]
                        CONFIG_HISTORY, Ledger.collection_history_key(name, number), value
                    )
                )
        finally:
            counts.close()
            data.close()
        for history in self._collections.values():
            history.sort(key=lambda one: one[0], reverse=True)

    def _load_ids(self) -> None:
        if not self._has(_IDS):
            return
        folder = self._snapshot.folder
        counts, data = _Reader(folder / f"{_IDS}.metadata"), _Reader(folder / f"{_IDS}.data")
        try:
            for count in range(1, counts.number() + 1):
                one = data.record()
                self._put(lambda t, one=one: t.put(TRANSACTIONS, one, BEFORE_SNAPSHOT))  # type: ignore[misc]
                self._progress("transaction ids loaded", count)
        finally:
            counts.close()
            data.close()

    def _load_public(self) -> None:
        if not self._has(_PUBLIC):
            return
        entries = _state_entries(self._snapshot.folder, _PUBLIC)
        for count, (namespace, key, value) in enumerate(entries, 1):
            if b"$$" in namespace or b"\0" in namespace:
                raise SnapshotError(f"the public state holds the namespace {namespace!r}")
            if not namespace and key == CONFIG_KEY.encode():
                self._config = value.value
            place, stored = state_key(namespace.decode(), key.decode()), encode_value(value)
            self._put(lambda t, place=place, stored=stored: t.put(STATE, place, stored))  # type: ignore[misc]
            self._progress("entries of state loaded", count)

    def _load_hashes(self) -> None:
        if not self._has(_HASHES):
            return
        entries = _state_entries(self._snapshot.folder, _HASHES)
        for count, (space, digest, value) in enumerate(entries, 1):
            name, marker, collection = space.partition(b"$$h")
            if not marker or not name or not collection or b"\0" in space:
                raise SnapshotError(f"the private hashes hold the namespace {space!r}")
            place = hash_key(name.decode(), collection.decode(), digest)
            stored = encode_value(value)
            self._put(lambda t, place=place, stored=stored: t.put(STATE, place, stored))  # type: ignore[misc]
            where = PrivatePlace(*value.version, name.decode(), collection.decode())
            self._put(self._private_entry(where, digest, value.value))
            self._progress("private hashes loaded", count)

    def _private_entry(
        self, place: PrivatePlace, digest: bytes, value_hash: bytes
    ) -> Callable[[WriteTransaction], None]:
        """List a private write set as missing, or as another organization's, until it expires."""
        member = self._is_member(place)
        lives = self._block_to_live(place)

        def write(transaction: WriteTransaction) -> None:
            private_data.note_snapshot_hash(
                transaction, place, digest, value_hash, member=member, block_to_live=lives
            )

        return write

    def _is_member(self, place: PrivatePlace) -> bool:
        """Whether this organization belonged to a collection when it was written, or soon after.

        (Fabric core/ledger/pvtdatastorage/snapshot_data_importer.go.)
        """
        owner = implicit_organization(place.collection)
        if owner is not None:
            return owner == self._msp_id
        for number, package in self._collections.get(place.namespace.encode(), ()):
            for config in package.config:
                collection = config.static_collection_config
                if collection.name == place.collection:
                    member = self._msp_id in member_organizations(collection)
                    if member or number < place.block:
                        return member
        return False

    def _block_to_live(self, place: PrivatePlace) -> int:
        for _number, package in self._collections.get(place.namespace.encode(), ())[:1]:
            for config in package.config:
                if config.static_collection_config.name == place.collection:
                    return config.static_collection_config.block_to_live
        return 0


# --- requests --------------------------------------------------------------------------------


class Snapshots:
    """The snapshots that a running peer was asked for: now, or after a block still to come.

    Requests are kept in the ledger. A snapshot is made in a thread of its own, from the view after
    its block, while further blocks are committed.
    """

    def __init__(self, ledger: Ledger, root: Path) -> None:
        """Take up requests that were open when the peer stopped."""
        self._ledger = ledger
        self.root = root
        self._lock = threading.Lock()
        self._making: dict[int, threading.Thread] = {}
        self._closing = False
        ledger.after_commit = self._committed
        last = ledger.height - 1
        for number in self.pending():
            if number < last or snapshot_folder(root, ledger.channel_id, number).exists():
                _LOGGER.warning("the snapshot after block %d was not made in time", number)
                ledger.note(SNAPSHOT_REQUEST + number.to_bytes(8), None)
            elif number == last:
                self._make(number)

    def submit(self, number: int) -> int:
        """Ask for a snapshot after a block, 0: the last one; the block's number.

        Raises SnapshotError for a block that is past, or asked for already.
        """
        with self._ledger.commits_paused():
            last = self._ledger.height - 1
            number = number or last
            if number < last:
                raise SnapshotError(
                    f"requested snapshot for block number {number} cannot be less than the last "
                    f"committed block number {last}"
                )
            folder = snapshot_folder(self.root, self._ledger.channel_id, number)
            pending = self.pending()
            if number in pending:
                raise SnapshotError(f"duplicate snapshot request for block number {number}")
            if number == last and folder.exists():
                raise SnapshotError(f"snapshot already generated for block number {number}")
            if len(pending) >= REQUEST_LIMIT:
                raise SnapshotError(
                    f"{len(pending)} snapshots are asked for, which is the limit: cancel one first"
                )
            self._ledger.note(SNAPSHOT_REQUEST + number.to_bytes(8), b"")
            if number == last:
                self._make(number)
        return number

    def cancel(self, number: int) -> None:
        """Take a request back; raises SnapshotError if there is none, or it is under way."""
        with self._lock:
            if number in self._making:
                raise SnapshotError(
                    "cannot cancel the snapshot request because it is under processing"
                )
        if number not in self.pending():
            raise SnapshotError(f"no snapshot request exists for block number {number}")
        self._ledger.note(SNAPSHOT_REQUEST + number.to_bytes(8), None)

    def pending(self) -> list[int]:
        """The blocks whose snapshots are asked for and not finished."""
        with self._ledger.tables() as tables:
            return [
                int.from_bytes(key[len(SNAPSHOT_REQUEST) :])
                for key, _ in tables.prefixed(META, SNAPSHOT_REQUEST)
            ]

    def close(self) -> None:
        """Give up what is being made; it is begun again at the next start."""
        with self._lock:
            self._closing = True
            making = list(self._making.values())
        self._ledger.after_commit = None
        for thread in making:
            thread.join()

    def _committed(self, number: int) -> None:
        """Called between two commits."""
        if number in self.pending():
            self._make(number)

    def _make(self, number: int) -> None:
        """Begin one; returns once its view of the ledger is open. No commit may be under way."""
        opened = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(number, opened), name=f"snapshot {number}", daemon=True
        )
        with self._lock:
            self._making[number] = thread
        thread.start()
        opened.wait()

    def _run(self, number: int, opened: threading.Event) -> None:
        try:
            with self._ledger.tables() as tables:
                opened.set()
                snapshot = _create(self._ledger, tables, self.root, self._go_on)
            _LOGGER.info("snapshot after block %d: %s", number, snapshot.hash.hex())
        except _Closing:
            return
        except Exception as error:
            _LOGGER.error("the snapshot after block %d was not made: %s", number, error)
        finally:
            opened.set()
            with self._lock:
                closing = self._closing
                if closing:
                    self._making.pop(number, None)
        if not closing:
            self._ledger.note(SNAPSHOT_REQUEST + number.to_bytes(8), None)
            with self._lock:
                self._making.pop(number, None)

    def _go_on(self, _what: str, _done: int) -> None:
        if self._closing:
            raise _Closing


class _Closing(Exception):
    """The peer stops while a snapshot is being made."""
