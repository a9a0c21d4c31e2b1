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

import errno
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from .pages import Grown, PageError, PageFile

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
QUIET_S = 0.05
"""How long new readers are held off to reopen the file for erasing; then it is tried later."""
CLOSE_WAIT_S = 5.0
"""How long closing waits for open transactions."""
PROCESS_READER_SLOTS = 510
"""Reader slots in LMDB's lock file, shared by all processes of a node."""

GROW_AT = 0.5
"""Share of the map in use from which it is grown as soon as nobody reads, before it must be."""

_DISK_REFUSALS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file may not grow any further",
    errno.EROFS: "the disk is read-only",
    errno.EIO: "the disk reports errors",
    errno.EACCES: "this process may not write there",
    errno.EPERM: "this process may not write there",
    errno.EBADF: "the file was opened read-only",
}

_META = "storage"
_FORMAT_KEY = b"format"
_PIECE = 511  # LMDB's longest key
_LINK = 8  # bytes of a branch number
_BRANCH_PIECE = _PIECE - _LINK
_NO_BRANCH = bytes(_LINK)  # branches count from 1; here earlier versions kept the last one


class StorageError(Exception):
    """The storage cannot do what was asked; the message says why and what to do."""


class FormatError(StorageError):
    """The files were written in a format that this version does not read."""


class DiskError(StorageError):
    """The disk refuses a write. Nothing of it is stored, what was stored before is intact.

    The node must stop: it can't promise anything any more. It may start again once the disk takes
    writes.
    """


def disk_error(path: Path, error: OSError) -> DiskError:
    """The sentence for a refused write."""
    number = error.errno or 0
    if number == errno.EIO and _is_full(path):
        number = errno.ENOSPC  # LMDB calls a write that was cut short an I/O error
    reason = _DISK_REFUSALS.get(number) or os.strerror(number)
    return DiskError(
        f"{path} cannot be written: {reason}. What was stored before is intact: make room or "
        "repair the disk, then start the node again."
    )


def _is_full(path: Path) -> bool:
    """Whether the file system has no whole page left."""
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < mmap.PAGESIZE


def _refused_write(error: lmdb.Error) -> OSError | None:
    """What the operating system said to LMDB, if it was a write that it refused."""
    for number in _DISK_REFUSALS:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    if isinstance(error, lmdb.PanicError):
        # The disk refused the last step of a commit, and LMDB lets nobody go on, readers included.
        return OSError(errno.EIO, "")
    return OSError(errno.ENOSPC, "") if isinstance(error, lmdb.DiskError) else None


class StorageBusyError(StorageError):
    """Too many read transactions are open; try again."""


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    entries: Any  # lmdb database handle
    overflow: Any


def _further(key: bytes) -> Iterator[bytes]:
    """The pieces of a long key after its first; the last one is shorter than the others."""
    return (key[at : at + _BRANCH_PIECE] for at in range(_PIECE, len(key) + 1, _BRANCH_PIECE))


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
        for piece in _further(key):
            if link is None:
                return None
            link = self._get(place.overflow, link + piece)
        return link

    def range(
        self, table: str, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Entries with start <= key < end in key order (bytes compared); end None: to the last.

        Do not write to the table while iterating.
        """
        place = self._tables[table]
        # One frame for each piece of a long key on the way to the present entry: where it stands,
        # and how much of the key comes before.
        frames = [(b"", 0, self._scan(place.entries, start[:_PIECE]))]
        key = bytearray()
        while frames:
            link, before, entries = frames[-1]
            piece = _BRANCH_PIECE if link else _PIECE
            for stored, value in entries:
                if link and not stored.startswith(link):
                    frames.pop()
                    break
                key[before:] = stored[len(link) :]
                if end is not None and key >= end:
                    return
                if len(stored) - len(link) == piece:
                    lower = b""
                    if start.startswith(key):
                        lower = start[len(key) : len(key) + _BRANCH_PIECE]
                    frames.append((value, len(key), self._scan(place.overflow, value + lower)))
                    break
                if key >= start:
                    yield bytes(key), value
            else:
                frames.pop()

    def prefixed(self, table: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Entries whose key starts with `prefix`, in key order."""
        for key, value in self.range(table, prefix):
            if not key.startswith(prefix):
                return
            yield key, value

    def stray_branch(self, table: str) -> bytes | None:
        """A stored piece of a long key that leads nowhere or comes from nowhere, or None."""
        place = self._tables[table]
        links = {
            bytes(value) for key, value in self._scan(place.entries, b"") if len(key) == _PIECE
        }
        pieces = [one for one in self._scan(place.overflow, b"") if one[0] != _NO_BRANCH]
        links.update(value for key, value in pieces if len(key) == _PIECE)
        for key, _ in pieces:
            if key[:_LINK] not in links:
                return key
        return min(links - {key[:_LINK] for key, _ in pieces}, default=None)

    def _scan(self, database: Any, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        if database is None:
            return iter(())  # a table that this file's format does not have yet
        cursor = self._transaction.cursor(db=database)
        if cursor.set_range(start) if start else cursor.first():
            return cursor.iternext(keys=True, values=True)  # type: ignore[return-value]
        return iter(())

    def _get(self, database: Any, stored: bytes) -> bytes | None:
        if database is None:
            return None
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
        for piece in _further(key):
            if len(piece) < _BRANCH_PIECE:
                self._transaction.put(link + piece, value, db=place.overflow)
            else:
                link = self._branch(place, place.overflow, link + piece)

    def delete(self, table: str, key: bytes) -> bool:
        """Remove `key`; False if it was not there."""
        place = self._tables[table]
        if len(key) < _PIECE:
            return bool(self._transaction.delete(key, db=place.entries))
        path: list[tuple[Any, bytes]] = [(place.entries, key[:_PIECE])]
        for piece in _further(key):
            link = self._get(*path[-1])
            if link is None:
                return False
            path.append((place.overflow, link + piece))
        if not self._transaction.delete(path.pop()[1], db=place.overflow):
            return False
        # Take away links that lead nowhere now, innermost first.
        for database, stored in reversed(path):
            link = self._get(database, stored) or b""
            if next(self._scan(place.overflow, link), (b"", b""))[0].startswith(link):
                break
            self._transaction.delete(stored, db=database)
        return True

    def note_format(self, database: Any, format_version: int) -> None:
        """Note in the environment's own table which format the others have."""
        self._transaction.put(_FORMAT_KEY, format_version.to_bytes(4), db=database)

    def _branch(self, place: _Table, database: Any, stored: bytes) -> bytes:
        """Where the entries that share a piece go on; a branch after all others if it is new."""
        link = self._get(database, stored)
        if link is None:
            cursor = self._transaction.cursor(db=place.overflow)
            last: bytes = cursor.key()[:_LINK] if cursor.last() else _NO_BRANCH  # type: ignore[assignment]
            if database is place.overflow:
                last = max(last, stored[:_LINK])  # a branch that has nothing in it yet
            link = (int.from_bytes(last) + 1).to_bytes(_LINK)
            self._transaction.delete(_NO_BRANCH, db=place.overflow)
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
        migrations: Mapping[int, Callable[[WriteTransaction], None]] | None = None,
        durable: bool = True,
        read_only: bool = False,
        reader_limit: int = READER_LIMIT,
        map_bytes: int = MAP_BYTES,
    ) -> None:
        """Open or create the folder `path`.

        `migrations` says for each older format how its tables become the next one's; all steps
        that are due run in one transaction. A file opened `read_only` is read as it is, if its
        format is among those, and tables that it lacks are empty. `durable=False` leaves flushing
        to the operating system: for scratch copies and tests. Raises FormatError if the files were
        written by a newer version, or by an older one that is not read any more.
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
        self.read_only = read_only
        self.on_disk_error: Callable[[DiskError], None] | None = None
        """Told, on the thread that writes, of a write that the disk refused."""
        if not read_only:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._map_bytes = max(map_bytes, _stored_bytes(path) + map_bytes // 2)
        self.stored_format = format_version
        """The format of the files: `format_version`, or an older one if they are read only."""
        self._format_version = format_version
        self._migrations = migrations or {}
        self._environment = self._open()
        self._page_bytes: int = self._environment.stat()["psize"]
        try:
            self._migrate()
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
                readonly=self.read_only,
                create=not self.read_only,
                mode=0o600,
                max_spare_txns=8,
            )
        except lmdb.Error as error:
            if not self.read_only and _refused_write(error) is not None:
                raise self._unwritten(error) from error
            raise StorageError(
                f"the storage at {self.path} cannot be opened: {error}. "
                "Check that the folder exists, is writable and is on a local disk."
            ) from error
        try:
            self._meta = self._database(environment, _META)
            self._refuse_unknown_format(environment)
            for name in self._names:
                self._tables[name] = _Table(
                    name, self._database(environment, name), self._database(environment, f"{name}~")
                )
        except lmdb.Error as error:
            environment.close()
            raise self._unwritten(error) from error
        except FormatError:
            environment.close()
            raise
        return environment

    def _database(self, environment: lmdb.Environment, name: str) -> Any:
        try:
            return environment.open_db(name.encode(), create=not self.read_only)
        except lmdb.NotFoundError:
            return None

    def _refuse_unknown_format(self, environment: lmdb.Environment) -> None:
        """Look at the format before anything is written."""
        newest = self._format_version
        self.stored_format = newest
        if self._meta is None:
            return
        with environment.begin() as transaction:
            stored = transaction.get(_FORMAT_KEY, db=self._meta)
        if stored is None:
            if environment.stat()["entries"] > 1:
                raise FormatError(
                    f"{self.path} does not say which storage format it has: it is damaged, or was "
                    "not made by GridLedger"
                )
            return
        found = self.stored_format = int.from_bytes(stored)
        if found > newest:
            raise FormatError(
                f"{self.path} has storage format {found}, and this version reads up to {newest}: "
                "run the version that wrote it, or a newer one."
            )
        if not all(step in self._migrations for step in range(found, newest)):
            raise FormatError(
                f"{self.path} has storage format {found}, and this version reads "
                f"{min(self._migrations, default=newest)} to {newest}: open it once with a version "
                "in between, or fill a new folder from the other nodes."
            )

    def _migrate(self) -> None:
        """Bring the tables to the present format, and note it."""
        if self.read_only:
            return
        found, newest = self.stored_format, self._format_version
        if found < newest:
            _LOGGER.warning("%s: migrating from storage format %d to %d", self.path, found, newest)

        def migrate(transaction: WriteTransaction) -> None:
            for step in range(found, newest):
                self._migrations[step](transaction)
            transaction.note_format(self._meta, newest)

        with self._environment.begin() as reading:
            noted = reading.get(_FORMAT_KEY, db=self._meta)
        if noted is None or found < newest:
            self.write(migrate)
        self.stored_format = newest

    @contextmanager
    def read(self, *, privileged: bool = False) -> Iterator[ReadTransaction]:
        """A read transaction; raises StorageBusyError when too many are open for too long.

        A privileged one does not wait for others to end: the writer must not starve. Raises
        DiskError once the disk has refused the last step of a commit.
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
        except lmdb.PanicError as error:
            raise self._unwritten(error) from error

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
                        result = change(WriteTransaction(transaction, self._tables))
                except lmdb.MapFullError:
                    self._grow()
                except lmdb.Error as error:
                    raise self._unwritten(error) from error
                else:
                    self._grow_early()
                    return result

    def _unwritten(self, error: lmdb.Error) -> StorageError:
        refused = _refused_write(error)
        if refused is not None:
            sentence = disk_error(self.path, refused)
            if self.on_disk_error is not None:
                self.on_disk_error(sentence)
            return sentence
        return StorageError(
            f"{self.path} cannot be written: {error}. Verify the ledger, and restore it from a "
            "backup or another node if it is damaged."
        )

    def _grow_early(self) -> None:
        """Grow a map that fills up while nobody reads, so that nobody ever has to wait for it."""
        used = (self._environment.info()["last_pgno"] + 1) * self._page_bytes
        if used < self._map_bytes * GROW_AT:
            return
        with self._gate:
            if not self._open_transactions:
                self._enlarge()

    def _grow(self) -> None:
        with self._gate:
            self._growing = True
            try:
                while self._open_transactions:
                    if not self._gate.wait(READER_WAIT_S):
                        _LOGGER.warning(
                            "%s is full and cannot grow while %d views of it are open",
                            self.path,
                            self._open_transactions,
                        )
                self._enlarge()
            finally:
                self._growing = False
                self._gate.notify_all()

    def _enlarge(self) -> None:
        self._map_bytes += min(self._map_bytes, MAP_GROWTH_LIMIT_BYTES)
        self._environment.set_mapsize(self._map_bytes)

    def erase(self) -> bool:
        """Overwrite what was deleted with zeros, wherever the file still holds it.

        False if somebody reads: call it again. Takes about a second for a gigabyte, and writers
        wait meanwhile; readers wait a moment at its beginning. Raises StorageError.
        """
        with self._writer:
            self._check_open()
            if not self._drop_buffers():
                return False
            until = self._environment.info()["last_txnid"]
            try:
                # A transaction more, so that both meta pages come after the deletion.
                with self._environment.begin(write=True) as transaction:
                    WriteTransaction(transaction, {}).note_format(self._meta, self._format_version)
                self._environment.reader_check()
                with self._environment.begin(write=True) as transaction:
                    oldest = min(self._readers(), default=until + 1)
                    with PageFile(self.path / "data.mdb", writable=True) as file:
                        finished = file.erase(oldest, until)
                    transaction.abort()
            except lmdb.Error as error:
                raise self._unwritten(error) from error
            except OSError as error:
                raise disk_error(self.path, error) from error
            except PageError as error:
                raise StorageError(f"deleted data cannot be erased: {error}") from error
        return finished

    def _drop_buffers(self) -> bool:
        """Have LMDB forget the memory that it puts new pages together in.

        What lies there from before would get into the gaps of pages to come. Only reopening does
        it, and that takes a moment without readers in this process; False if there is none.
        """
        with self._gate:
            self._growing = True
            try:
                deadline = time.monotonic() + QUIET_S
                while self._open_transactions:
                    left = deadline - time.monotonic()
                    if left <= 0 or self._closed:
                        return False
                    self._gate.wait(left)
                self._environment.close()
                self._environment = self._open()
            finally:
                self._growing = False
                self._gate.notify_all()
        return True

    def _readers(self) -> Iterator[int]:
        """The transactions that readers of any process see."""
        for line in self._environment.readers().splitlines()[1:]:
            fields = line.split()
            if len(fields) == 3 and fields[2].isdigit():
                yield int(fields[2])

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


def check_environment(path: Path) -> None:
    """Walk an environment's file, for what LMDB would stumble over; others may use it meanwhile.

    Raises pages.PageError for damage, StorageError if it can't be opened.
    """
    # What the newest transaction refers to is neither changed nor reused while this one reads.
    try:
        with PageFile(path / "data.mdb") as file:
            file.check_metas()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    try:
        environment = lmdb.open(
            str(path), readonly=True, create=False, max_readers=PROCESS_READER_SLOTS
        )
        try:
            with environment.begin():
                while not _checked(path / "data.mdb"):
                    pass
        finally:
            environment.close()
    except lmdb.Error as error:
        raise StorageError(f"{path} cannot be opened: {error}") from error


def _checked(path: Path) -> bool:
    """Whether a file could be walked before somebody made it grow; raises PageError for damage."""
    with PageFile(path) as file:
        try:
            file.check()
        except Grown:
            return False
    return True


def copy_environment(source: Path, target: Path) -> None:
    """Copy an environment's file, without its free pages, beside processes that use it.

    Not for a process that has it open itself. Raises StorageError.
    """
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        environment = lmdb.open(
            str(source), readonly=True, create=False, max_readers=PROCESS_READER_SLOTS
        )
        try:
            environment.copy(str(target), compact=True)
        finally:
            environment.close()
    except lmdb.Error as error:
        raise StorageError(f"{source} cannot be copied to {target}: {error}") from error
    (target / "data.mdb").chmod(0o600)


def _stored_bytes(path: Path) -> int:
    try:
        return (path / "data.mdb").stat().st_size
    except FileNotFoundError:
        return 0
