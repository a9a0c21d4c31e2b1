"""Where the stable part of the log is read from.

The core only reads through `Storage`; the caller writes what a `Ready` asks it to. The methods
are called many times per message, so first_index, last_index and term of recent entries should
come from memory.
"""

from collections.abc import Sequence
from typing import Protocol

from consortium.wire import raftpb_pb2 as raftpb

NO_LIMIT = (1 << 64) - 1
"""A size limit in bytes that nothing reaches."""


class StorageError(Exception):
    """Storage cannot answer."""


class Compacted(StorageError):
    """The entry was compacted away: it lies before the latest snapshot."""


class Unavailable(StorageError):
    """The entry does not exist (yet)."""


class SnapshotTemporarilyUnavailable(StorageError):
    """The snapshot is still being made; ask again later."""


class SnapshotOutOfDate(StorageError):
    """A newer snapshot is already there."""


class Storage(Protocol):
    """The stable log as the core sees it."""

    def initial_state(self) -> tuple[raftpb.HardState, raftpb.ConfState]:
        """Return what was last persisted; empty messages on a fresh node.

        The ConfState is the one in force at `Config.applied`: that of the snapshot, or what
        `apply_conf_change` last returned if the application keeps its state beyond it.
        """

    def entries(self, lo: int, hi: int, max_bytes: int) -> list[raftpb.Entry]:
        """Return entries in [lo, hi), as many as fit `max_bytes` but at least one.

        Nobody may change the returned entries.

        Raises:
            Compacted: `lo` is before first_index.
            Unavailable: the log ends before `hi`.
        """

    def term(self, index: int) -> int:
        """Return the term of an entry in [first_index - 1, last_index].

        Raises:
            Compacted: `index` is before first_index - 1.
            Unavailable: `index` is after last_index.
        """

    def first_index(self) -> int:
        """Return the index of the first entry after the latest compaction."""

    def last_index(self) -> int:
        """Return the index of the last entry, or of the snapshot when no entry follows it."""

    def snapshot(self) -> raftpb.Snapshot:
        """Return the latest snapshot.

        Raises:
            SnapshotTemporarilyUnavailable: it is still being made.
        """


def varint_size(value: int) -> int:
    """Return how many bytes a protobuf varint takes."""
    return max(1, (value.bit_length() + 6) // 7)


def entry_size(entry: raftpb.Entry) -> int:
    """Return the encoded size of an entry in bytes, without encoding it.

    (`ByteSize()` encodes: a thousand times slower for an entry of a megabyte.)
    """
    size = 2 + varint_size(entry.Term) + varint_size(entry.Index)
    if entry.HasField("Type"):
        size += 2
    if entry.HasField("Data"):
        length = len(entry.Data)
        size += 1 + varint_size(length) + length
    return size


def limit_entries(entries: Sequence[raftpb.Entry], max_bytes: int) -> list[raftpb.Entry]:
    """Return the longest prefix of `entries` within `max_bytes`, but at least one entry."""
    if max_bytes >= NO_LIMIT or len(entries) <= 1:
        return list(entries)
    size = 0
    for count, entry in enumerate(entries):
        size += entry_size(entry)
        if size > max_bytes and count:
            return list(entries[:count])
    return list(entries)


class MemoryStorage:
    """Storage in memory: for tests, simulations and as the example of what a storage does."""

    def __init__(self) -> None:
        self._hard_state = raftpb.HardState()
        self._snapshot = raftpb.Snapshot()
        # _entries[0] has index _offset + 1; the term of the entry at _offset is kept, since an
        # append right after it must still be matched.
        self._offset = 0
        self._offset_term = 0
        self._entries: list[raftpb.Entry] = []

    def initial_state(self) -> tuple[raftpb.HardState, raftpb.ConfState]:
        return self._hard_state, self._snapshot.metadata.conf_state

    def entries(self, lo: int, hi: int, max_bytes: int) -> list[raftpb.Entry]:
        if lo <= self._offset:
            raise Compacted(f"entry {lo} was compacted; the log starts at {self._offset + 1}")
        if hi > self.last_index() + 1:
            raise Unavailable(f"entry {hi - 1} is past the end of the log at {self.last_index()}")
        return limit_entries(
            self._entries[lo - self._offset - 1 : hi - self._offset - 1], max_bytes
        )

    def term(self, index: int) -> int:
        if index < self._offset:
            raise Compacted(f"entry {index} was compacted; the log starts at {self._offset + 1}")
        if index == self._offset:
            return self._offset_term
        try:
            return self._entries[index - self._offset - 1].Term
        except IndexError:
            raise Unavailable(
                f"entry {index} is past the end of the log at {self.last_index()}"
            ) from None

    def first_index(self) -> int:
        return self._offset + 1

    def last_index(self) -> int:
        return self._offset + len(self._entries)

    def snapshot(self) -> raftpb.Snapshot:
        return self._snapshot

    def set_hard_state(self, state: raftpb.HardState) -> None:
        """Persist term, vote and commit index."""
        self._hard_state = state

    def append(self, entries: Sequence[raftpb.Entry]) -> None:
        """Persist entries; what follows the first of them in the log is replaced."""
        if not entries:
            return
        skip = self._offset + 1 - entries[0].Index
        if skip > 0:  # the beginning has been compacted since
            entries = entries[skip:]
            if not entries:
                return
        position = entries[0].Index - self._offset - 1
        if position > len(self._entries):
            raise ValueError(
                f"entry {entries[0].Index} doesn't follow the end of the log at"
                f" {self.last_index()}; append without gaps"
            )
        self._entries[position:] = entries

    def apply_snapshot(self, snapshot: raftpb.Snapshot) -> None:
        """Replace the whole log by `snapshot`.

        Raises:
            SnapshotOutOfDate: the present snapshot is as new.
        """
        if self._snapshot.metadata.index and (
            self._snapshot.metadata.index >= snapshot.metadata.index
        ):
            raise SnapshotOutOfDate(
                f"snapshot {snapshot.metadata.index} is not newer than"
                f" {self._snapshot.metadata.index}"
            )
        self._snapshot = snapshot
        self._offset = snapshot.metadata.index
        self._offset_term = snapshot.metadata.term
        self._entries = []

    def create_snapshot(
        self, index: int, conf_state: raftpb.ConfState | None, data: bytes
    ) -> raftpb.Snapshot:
        """Make the snapshot at `index`, which must be applied; the log stays (see `compact`).

        `conf_state` is what the last apply_conf_change returned, None when nothing changed.

        Raises:
            SnapshotOutOfDate: the present snapshot is as new.
        """
        if index <= self._snapshot.metadata.index:
            raise SnapshotOutOfDate(
                f"snapshot {index} is not newer than {self._snapshot.metadata.index}"
            )
        self._snapshot = raftpb.Snapshot(
            data=data,
            metadata=raftpb.SnapshotMetadata(
                index=index,
                term=self.term(index),
                conf_state=conf_state or self._snapshot.metadata.conf_state,
            ),
        )
        return self._snapshot

    def compact(self, index: int) -> None:
        """Discard the entries up to and including `index`, which must be applied.

        Raises:
            Compacted: that has been done already.
            Unavailable: the log ends before `index`.
        """
        if index <= self._offset:
            raise Compacted(f"the log is already compacted to {self._offset}")
        term = self.term(index)
        self._entries = self._entries[index - self._offset :]
        self._offset = index
        self._offset_term = term
