"""Append-only segment files for large records whose valid length is committed elsewhere.

The owner keeps an `End` (segment and length) in the same database transaction as the index of its
records. What lies beyond that end after a crash was never committed: it is cut off when the
segments are opened again. A finished segment is never written to again, so it may be archived;
reading it then says which file to bring back.

A record is stored as length (4 bytes, big endian), CRC-32 (4 bytes) and data.
"""

import contextlib
import errno
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .environment import DiskError, disk_error

SEGMENT_LIMIT_BYTES = 256 * 1024 * 1024
"""A record that would make a segment longer than this starts the next one."""

OPEN_FILES = 8
_MAGIC = b"GLSEG\x00\x00\x01"  # the last byte is the format's version
_FRAME_BYTES = 8
_COPIED_AT_ONCE = 4 * 1024 * 1024


class SegmentError(Exception):
    """A segment is missing, too short or damaged; the message names the file and the place."""


@dataclass(frozen=True, slots=True)
class End:
    """Where committed data ends: the last segment's number and its valid length in bytes."""

    segment: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Location:
    """Where a record's data lies."""

    segment: int
    offset: int
    length: int


def follows(end: End, location: Location) -> bool:
    """Whether a record lies right behind `end`, or first in the next segment."""
    first = len(_MAGIC) + _FRAME_BYTES
    if location.segment == end.segment and end.length:
        return location.offset == end.length + _FRAME_BYTES
    return location.segment == end.segment + bool(end.length) and location.offset == first


class Segments:
    """The segment files of one folder. Appending is for one thread, reading for any."""

    def __init__(
        self,
        folder: Path,
        end: End,
        *,
        limit_bytes: int = SEGMENT_LIMIT_BYTES,
        durable: bool = True,
        read_only: bool = False,
    ) -> None:
        """Open the files and cut off what lies beyond `end`.

        Raises SegmentError if committed bytes are missing.
        """
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._durable = durable
        self._read_only = read_only
        self.on_disk_error: Callable[[DiskError], None] | None = None
        """Told, on the thread that writes, of a write that the disk refused."""
        self._end = end
        self._lock = threading.RLock()
        self._files: OrderedDict[int, int] = OrderedDict()
        if not read_only:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._cut()

    @property
    def end(self) -> End:
        """The end to commit with the records appended so far."""
        return self._end

    def append(self, data: bytes) -> Location:
        """Write a record; it counts once `flush` was called and `end` is committed.

        Raises environment.DiskError if the disk refuses it; `rewind` then forgets the attempt.
        """
        try:
            return self._append(data)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> DiskError:
        sentence = disk_error(self._folder, error)
        if self.on_disk_error is not None:
            self.on_disk_error(sentence)
        return sentence

    def _append(self, data: bytes) -> Location:
        end = self._end
        if end.length == 0:
            end = self._start(end.segment)
        elif end.length + _FRAME_BYTES + len(data) > self._limit_bytes:
            end = self._start(end.segment + 1)
        frame = len(data).to_bytes(4) + zlib.crc32(data).to_bytes(4)
        with self._lock:
            _write_all(self._open(end.segment), frame + data, end.length)
        offset = end.length + _FRAME_BYTES
        self._end = End(end.segment, offset + len(data))
        return Location(end.segment, offset, len(data))

    def flush(self) -> None:
        """Make what was appended durable; call it before committing `end`.

        Raises environment.DiskError.
        """
        if self._durable and self._end.length:
            with self._lock:
                descriptor = self._open(self._end.segment)
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                raise self._refused(error) from error

    def rewind(self, end: End) -> None:
        """Forget records appended after `end`, since their commit failed."""
        self._end = end
        # A disk that refuses writes may refuse this too; then it is done at the next opening.
        with contextlib.suppress(OSError):
            self._cut()

    def read(self, location: Location) -> bytes:
        """A record's data, checked against its CRC; raises SegmentError."""
        with self._lock:
            descriptor = self._open(location.segment)
            stored = os.pread(
                descriptor, location.length + _FRAME_BYTES, location.offset - _FRAME_BYTES
            )
        data = stored[_FRAME_BYTES:]
        expected = location.length.to_bytes(4) + zlib.crc32(data).to_bytes(4)
        if len(data) != location.length or stored[:_FRAME_BYTES] != expected:
            raise SegmentError(
                f"{self._file(location.segment)} is damaged at byte {location.offset}: the record "
                f"of {location.length} bytes there does not fit its checksum. Restore the file "
                "from a backup or another peer."
            )
        return data

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def _file(self, segment: int) -> Path:
        return self._folder / f"{segment:06d}.segment"

    def _open(self, segment: int) -> int:
        descriptor = self._files.get(segment)
        if descriptor is not None:
            self._files.move_to_end(segment)
            return descriptor
        path = self._file(segment)
        # Only the last segment is ever written to.
        writable = segment == self._end.segment and not self._read_only
        try:
            descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except FileNotFoundError:
            raise SegmentError(
                f"{path} is missing. If it was archived, bring it back to read these blocks."
            ) from None
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            descriptor = os.open(path, os.O_RDONLY)
        magic = os.pread(descriptor, len(_MAGIC), 0)
        if magic != _MAGIC:
            os.close(descriptor)
            newer = magic[:5] == _MAGIC[:5]
            raise SegmentError(
                f"{path} is "
                + ("of a newer format than this version reads." if newer else "no segment file.")
            )
        self._files[segment] = descriptor
        for open_segment in list(self._files)[: max(0, len(self._files) - OPEN_FILES)]:
            if open_segment not in (segment, self._end.segment):
                os.close(self._files.pop(open_segment))
        return descriptor

    def _start(self, segment: int) -> End:
        """Create a segment file; the one before it is complete and made durable."""
        self.flush()
        with self._lock:
            previous = self._files.pop(self._end.segment, None)
            if previous is not None:
                os.close(previous)
            descriptor = os.open(
                self._file(segment), os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode=0o600
            )
            _write_all(descriptor, _MAGIC, 0)
            self._files[segment] = descriptor
            if self._durable:
                folder = os.open(self._folder, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        self._end = End(segment, len(_MAGIC))
        return self._end

    def _cut(self) -> None:
        path = self._file(self._end.segment)
        size = path.stat().st_size if path.exists() else 0
        if size < self._end.length:
            raise SegmentError(
                f"{path} has {size} bytes, but {self._end.length} were committed. Restore the "
                "file from a backup or another peer."
            )
        with self._lock:
            if size > self._end.length:
                os.truncate(path, self._end.length)
            later = self._end.segment + 1
            while (path := self._file(later)).exists():
                descriptor = self._files.pop(later, None)
                if descriptor is not None:
                    os.close(descriptor)
                path.unlink()
                later += 1


def copy_segments(
    source: Path, target: Path, end: End, progress: Callable[[int], None] = lambda _count: None
) -> None:
    """Copy a folder's segments up to a committed `end`, beside an owner who goes on appending.

    Segments that were archived are left out. `progress` is told of each piece's bytes. Raises
    SegmentError if committed bytes are missing.
    """
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in sorted(source.glob("*.segment")):
        number = int(path.stem)
        if number > end.segment or not end.length:
            continue
        left = end.length if number == end.segment else path.stat().st_size
        with path.open("rb") as reading, (target / path.name).open("xb") as writing:
            os.fchmod(writing.fileno(), 0o600)
            while left:
                piece = reading.read(min(left, _COPIED_AT_ONCE))
                if not piece:
                    raise SegmentError(f"{path} ends {left} bytes before what was committed")
                writing.write(piece)
                left -= len(piece)
                progress(len(piece))


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written
