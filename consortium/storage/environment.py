"""An LMDB environment with named tables, a map that grows, and keys of any length.

LMDB gives one writer, many readers that never wait for it, and commits that are whole or absent
after a crash. Three of its limits are lifted here:

* **The map has a fixed size.** When a write finds it full, the transaction is undone, the map
  grows once no transaction is open, and the write runs again. So a write is given as a function,
  which must be free of effects outside its transaction.
* **A pinned reader keeps old pages alive** and makes the file grow. Readers are counted, and past
  the limit the next one waits briefly and is then refused.
* **Keys end at 511 bytes.** A longer key is cut into pieces that are linked: the first 511 bytes
  lead to a numbered branch of the table's overflow, the next 503 perhaps to another one. Scan order
  is kept, because an entry shorter than a piece and an entry that leads on sort as their keys do.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

_LOGGER = logging.getLogger(__name__)

MAP_BYTES = 1024 * 1024 * 1024
"""First size of the map, which takes address space only; the file grows as it is filled.

It doubles each time it is full, later it grows by `MAP_GROWTH_LIMIT_BYTES`. Growing has to wait
for readers, so it should be rare.
"""

MAP_GROWTH_LIMIT_BYTES = 16 * 1024 * 1024 * 1024
READER_LIMIT = 96
"""Read transactions open at once in one process."""

READER_WAIT_S = 5.0
CLOSE_WAIT_S = 5.0
"""How long closing waits for open transactions."""
PROCESS_READER_SLOTS = 510
"""Reader slots in LMDB's lock file, shared by all processes of a node."""

_META = "storage"
_FORMAT_KEY = b"format"
_PIECE = 511  # LMDB's longest key
_LINK = 8  # bytes of a branch number
_BRANCH_PIECE = _PIECE - _LINK
_NEXT_BRANCH = bytes(_LINK)  # key of the branch counter; branches count from 1


class StorageError(Exception):
    """The storage cannot do what was asked; the message says why and what to do."""


class FormatError(StorageError):
    """The files were written in a format that this version does not read."""


class StorageBusyError(StorageError):
    """Too many read transactions are open; try again."""


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    entries: Any  # lmdb database handle
    overflow: Any


class ReadTransaction:
    """A consistent picture of all tables. Valid inside the `with` block that opened it."""

    def __init__(self, transaction: lmdb.Transaction, tables: dict[str, _Table]) -> None:
        self._transaction = transaction
        self._tables = tables

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value under `key`, or None."""
        place = self._tables[table]
        if len(key) < _PIECE:
            return self._get(place.entries, key)
        link = self._get(place.entries, key[:_PIECE])
        rest = key[_PIECE:]
        while link is not None:
            if len(rest) < _BRANCH_PIECE:
                return self._get(place.overflow, link + rest)
            link = self._get(place.overflow, link + rest[:_BRANCH_PIECE])
            rest = rest[_BRANCH_PIECE:]
        return None

    def range(
        self, table: str, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Entries with start <= key < end in key order (bytes compared); end None: to the last.

        Do not write to the table while iterating.
        """
        place = self._tables[table]
        # One frame for each piece of a long key on the way to the present entry.
        frames = [(b"", b"", self._scan(place.entries, start[:_PIECE]))]
        while frames:
            link, prefix, entries = frames[-1]
            piece = _BRANCH_PIECE if link else _PIECE
            for stored, value in entries:
                if link and not stored.startswith(link):
                    frames.pop()
                    break
                key = prefix + stored[len(link) :]
                if len(stored) - len(link) == piece:
                    if end is not None and key >= end:
                        return
                    lower = start[len(key) :] if start.startswith(key) else b""
                    scan = self._scan(place.overflow, value + lower[:_BRANCH_PIECE])
                    frames.append((value, key, scan))
                    break
                if end is not None and key >= end:
                    return
                if key >= start:
                    yield key, value
            else:
                frames.pop()

    def prefixed(self, table: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Entries whose key starts with `prefix`, in key order."""
        for key, value in self.range(table, prefix):
            if not key.startswith(prefix):
                return
            yield key, value

    def _scan(self, database: Any, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._transaction.cursor(db=database)
        if cursor.set_range(start) if start else cursor.first():
            return cursor.iternext(keys=True, values=True)  # type: ignore[return-value]
        return iter(())

    def _get(self, database: Any, stored: bytes) -> bytes | None:
        # lmdb's stub allows for memoryviews, which it returns with buffers=True only.
        return self._transaction.get(stored, db=database)  # type: ignore[return-value]


class WriteTransaction(ReadTransaction):
    """The one transaction that may change tables; reads see its own writes."""

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Store `value` under `key`, replacing what was there."""
        place = self._tables[table]
        if len(key) < _PIECE:
            self._transaction.put(key, value, db=place.entries)
            return
        link = self._branch(place, place.entries, key[:_PIECE])
        rest = key[_PIECE:]
        while len(rest) >= _BRANCH_PIECE:
            link = self._branch(place, place.overflow, link + rest[:_BRANCH_PIECE])
            rest = rest[_BRANCH_PIECE:]
        self._transaction.put(link + rest, value, db=place.overflow)

    def delete(self, table: str, key: bytes) -> bool:
        """Remove `key`; False if it was not there."""
        place = self._tables[table]
        if len(key) < _PIECE:
            return bool(self._transaction.delete(key, db=place.entries))
        path: list[tuple[Any, bytes]] = [(place.entries, key[:_PIECE])]
        rest = key[_PIECE:]
        while True:
            link = self._get(*path[-1])
            if link is None:
                return False
            if len(rest) < _BRANCH_PIECE:
                break
            path.append((place.overflow, link + rest[:_BRANCH_PIECE]))
            rest = rest[_BRANCH_PIECE:]
        if not self._transaction.delete(link + rest, db=place.overflow):
            return False
        # Take away links that lead nowhere now, innermost first.
        for database, stored in reversed(path):
            link = self._get(database, stored) or b""
            if next(self._scan(place.overflow, link), (b"", b""))[0].startswith(link):
                break
            self._transaction.delete(stored, db=database)
        return True

    def _branch(self, place: _Table, database: Any, stored: bytes) -> bytes:
        link = self._get(database, stored)
        if link is None:
            last = self._get(place.overflow, _NEXT_BRANCH) or bytes(_LINK)
            link = (int.from_bytes(last) + 1).to_bytes(_LINK)
            self._transaction.put(_NEXT_BRANCH, link, db=place.overflow)
            self._transaction.put(stored, link, db=database)
        return link


class Environment:
    """One LMDB file with named tables. Safe for threads; one process writes, others may read."""

    def __init__(
        self,
        path: Path,
        tables: Sequence[str],
        *,
        format_version: int,
        durable: bool = True,
        read_only: bool = False,
        reader_limit: int = READER_LIMIT,
        map_bytes: int = MAP_BYTES,
    ) -> None:
        """Open or create the folder `path`.

        `durable=False` leaves flushing to the operating system: for scratch copies and tests.
        Raises FormatError if the files were written by a newer version, or by an older one whose
        format needs a migration.
        """
        self.path = path
        self._tables: dict[str, _Table] = {}
        self._gate = threading.Condition()
        self._open_transactions = 0
        self._growing = False
        self._closed = False
        self._reader_limit = reader_limit
        self._writer = threading.Lock()
        self._names = tuple(tables)
        self._durable = durable
        self._read_only = read_only
        if not read_only:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._map_bytes = max(map_bytes, _stored_bytes(path) + map_bytes // 2)
        self._environment = self._open()
        try:
            self._check_format(format_version)
        except BaseException:
            self._environment.close()
            raise

    def _open(self) -> lmdb.Environment:
        try:
            environment = lmdb.open(
                str(self.path),
                map_size=self._map_bytes,
                max_dbs=2 * len(self._names) + 1,
                max_readers=PROCESS_READER_SLOTS,
                sync=self._durable,
                readonly=self._read_only,
                create=not self._read_only,
                mode=0o600,
                max_spare_txns=8,
            )
        except lmdb.Error as error:
            raise StorageError(
                f"the storage at {self.path} cannot be opened: {error}. "
                "Check that the folder exists, is writable and is on a local disk."
            ) from error
        for name in self._names:
            create = not self._read_only
            self._tables[name] = _Table(
                name,
                environment.open_db(name.encode(), create=create),
                environment.open_db(f"{name}~".encode(), create=create),
            )
        self._meta = environment.open_db(_META.encode(), create=not self._read_only)
        return environment

    def _check_format(self, format_version: int) -> None:
        with self._environment.begin(db=self._meta) as transaction:
            stored = transaction.get(_FORMAT_KEY)
        if stored is None:
            if not self._read_only:
                with self._environment.begin(write=True, db=self._meta) as transaction:
                    transaction.put(_FORMAT_KEY, format_version.to_bytes(4))
            return
        found = int.from_bytes(stored)
        if found > format_version:
            raise FormatError(
                f"{self.path} has storage format {found}, and this version reads up to "
                f"{format_version}: run the version that wrote it, or a newer one."
            )
        if found < format_version:
            raise FormatError(
                f"{self.path} has storage format {found}, and this version writes "
                f"{format_version}: migrate it first."
            )

    @contextmanager
    def read(self, *, privileged: bool = False) -> Iterator[ReadTransaction]:
        """A read transaction; raises StorageBusyError when too many are open for too long.

        A privileged one does not wait for others to end: the writer must not starve.
        """
        with self._gate:
            deadline = time.monotonic() + READER_WAIT_S
            while self._growing or (
                self._open_transactions >= self._reader_limit and not privileged
            ):
                if not self._gate.wait(max(0.0, deadline - time.monotonic())):
                    raise StorageBusyError(
                        f"{self._reader_limit} read transactions are open on {self.path}, which "
                        "is the limit: close views sooner or try again."
                    )
            self._check_open()
            self._open_transactions += 1
        try:
            transaction = self._begin()
            try:
                yield ReadTransaction(transaction, self._tables)
            finally:
                transaction.abort()
        finally:
            with self._gate:
                self._open_transactions -= 1
                self._gate.notify_all()

    def _begin(self) -> lmdb.Transaction:
        try:
            return self._environment.begin(buffers=False)
        except lmdb.MapResizedError:
            # Another process has grown the map: take over its size, once nobody reads here.
            with self._gate:
                while self._growing or self._open_transactions > 1:
                    self._gate.wait(READER_WAIT_S)
                self._environment.set_mapsize(0)
            return self._environment.begin(buffers=False)
        except lmdb.ReadersFullError:
            raise StorageBusyError(
                f"all {PROCESS_READER_SLOTS} reader slots of {self.path} are taken: a process that "
                "reads it may have died or may keep views open."
            ) from None

    def write[Result](self, change: Callable[[WriteTransaction], Result]) -> Result:
        """Run `change` in a write transaction and commit it durably.

        `change` runs again from the start if the map had to grow, so it must have no effect but
        on its transaction. If it raises, nothing is stored. The caller must not hold a read
        transaction in the same thread: growing waits until none is open.
        """
        with self._writer:
            self._check_open()
            while True:
                try:
                    with self._environment.begin(write=True, buffers=False) as transaction:
                        return change(WriteTransaction(transaction, self._tables))
                except lmdb.MapFullError:
                    self._grow()
                except lmdb.DiskError as error:
                    raise StorageError(
                        f"{self.path} cannot be written: {error}. Check the disk's free space."
                    ) from error

    def _grow(self) -> None:
        with self._gate:
            self._growing = True
            try:
                while self._open_transactions:
                    self._gate.wait()
                self._map_bytes += min(self._map_bytes, MAP_GROWTH_LIMIT_BYTES)
                self._environment.set_mapsize(self._map_bytes)
            finally:
                self._growing = False
                self._gate.notify_all()

    def compact(self) -> None:
        """Rewrite the file without its free pages, which may still hold deleted values.

        Only for an environment that nobody else uses at the moment (as a node starts).
        """
        copy = self.path.with_name(self.path.name + ".compacting")
        with self._writer:
            _remove_folder(copy)
            copy.mkdir(mode=0o700)
            self._environment.copy(str(copy), compact=True)
            _flush(copy / "data.mdb")
            self._environment.close()
            (copy / "data.mdb").replace(self.path / "data.mdb")
            (self.path / "lock.mdb").unlink(missing_ok=True)
            _flush(self.path)
            _remove_folder(copy)
            self._environment = self._open()

    @property
    def map_bytes(self) -> int:
        """Present size of the map, an upper bound of the file's size."""
        return self._map_bytes

    def close(self) -> None:
        """Close the files, once every open transaction has ended; new ones are refused.

        LMDB unmaps the file, so whoever still read from it would take the process down. If a
        transaction stays open for longer than CLOSE_WAIT_S, the file stays mapped instead.
        """
        deadline = time.monotonic() + CLOSE_WAIT_S
        with self._writer, self._gate:
            self._closed = True
            while self._open_transactions:
                if not self._gate.wait(max(0.0, deadline - time.monotonic())):
                    _LOGGER.warning(
                        "%s: %d transactions are still open; the file stays mapped",
                        self.path,
                        self._open_transactions,
                    )
                    return
            self._environment.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self.path} is closed: the node that used it is stopping")


def _stored_bytes(path: Path) -> int:
    try:
        return (path / "data.mdb").stat().st_size
    except FileNotFoundError:
        return 0


def _remove_folder(path: Path) -> None:
    if path.exists():
        for entry in path.iterdir():
            entry.unlink()
        path.rmdir()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
