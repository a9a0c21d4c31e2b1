"""The log as one node sees it: what is in storage, and what is on its way there.

    first_index ........ offset - 1 | offset ........... last_index
    in Storage                      | unstable: handed out by Ready, or about to be

Invariant: applied <= applying <= committed <= last_index. Entries are never copied here and
never changed once they are in the log.
"""

from collections.abc import Callable, Sequence

from consortium.raft.storage import (
    NO_LIMIT,
    Compacted,
    Storage,
    Unavailable,
    entry_size,
    limit_entries,
)
from consortium.wire import raftpb_pb2 as raftpb

type Note = Callable[..., None]


class InvariantBroken(RuntimeError):
    """Something that Raft rules out has happened: lost or corrupt storage, or a bug.

    The node must stop; going on could lose or fork what was committed.
    """


class Unstable:
    """The entries and the snapshot that storage may not have yet.

    `entries[i]` has index `offset + i`. Those below `in_progress` have been handed out to be
    written; the snapshot, when there is one, replaces everything before `offset`.
    """

    __slots__ = ("entries", "in_progress", "note", "offset", "snapshot", "snapshot_in_progress")

    def __init__(self, offset: int, note: Note) -> None:
        self.offset = offset
        self.in_progress = offset
        self.entries: list[raftpb.Entry] = []
        self.snapshot: raftpb.Snapshot | None = None
        self.snapshot_in_progress = False
        self.note = note

    def next_entries(self) -> list[raftpb.Entry]:
        """Return the entries that nobody has begun to write."""
        return self.entries[self.in_progress - self.offset :]

    def next_snapshot(self) -> raftpb.Snapshot | None:
        return None if self.snapshot_in_progress else self.snapshot

    def accept(self) -> None:
        """Note that everything is being written now."""
        if self.entries:
            self.in_progress = self.offset + len(self.entries)
        if self.snapshot is not None:
            self.snapshot_in_progress = True

    def stable_to(self, index: int, term: int) -> None:
        """Drop the entries up to (index, term).

        Storage has them, and no write under way can replace them.
        """
        position = index - self.offset
        if position < 0:
            snapshot = self.snapshot
            if snapshot is not None and snapshot.metadata.index == index:
                self.note("stable_is_snapshot", index=index)
            else:
                self.note("stable_is_missing", index=index)
            return
        if position >= len(self.entries):
            self.note("stable_is_missing", index=index)
            return
        if self.entries[position].Term != term:
            # Replaced while the write was under way.
            self.note("stable_is_replaced", index=index, term=term, now=self.entries[position].Term)
            return
        del self.entries[: position + 1]
        self.offset = index + 1
        self.in_progress = max(self.in_progress, self.offset)

    def stable_snapshot_to(self, index: int) -> None:
        if self.snapshot is not None and self.snapshot.metadata.index == index:
            self.snapshot = None
            self.snapshot_in_progress = False

    def restore(self, snapshot: raftpb.Snapshot) -> None:
        self.offset = snapshot.metadata.index + 1
        self.in_progress = self.offset
        self.entries = []
        self.snapshot = snapshot
        self.snapshot_in_progress = False

    def truncate_and_append(self, entries: Sequence[raftpb.Entry]) -> None:
        """Append `entries`, replacing what is there from the first one's index on."""
        start = entries[0].Index
        position = start - self.offset
        if position == len(self.entries):
            self.entries.extend(entries)
        elif position <= 0:
            self.note("unstable_replaced", index=start)
            self.entries = list(entries)
            self.offset = start
            self.in_progress = start
        else:
            self.note("unstable_truncated", index=start)
            self.entries[position:] = entries
            self.in_progress = min(self.in_progress, start)


class RaftLog:
    """The log of one node."""

    def __init__(self, storage: Storage, max_applying_bytes: int, note: Note) -> None:
        first = storage.first_index()
        self.storage = storage
        self.unstable = Unstable(storage.last_index() + 1, note)
        self.note = note
        # Whatever was compacted away had been committed and applied.
        self.committed = first - 1
        self.applying = first - 1
        self.applied = first - 1
        self.max_applying_bytes = max_applying_bytes
        self._applying_bytes = 0
        self._applying_paused = False

    def __str__(self) -> str:
        unstable = self.unstable
        return (
            f"committed={self.committed}, applied={self.applied}, applying={self.applying},"
            f" unstable.offset={unstable.offset},"
            f" unstable.offsetInProgress={unstable.in_progress},"
            f" len(unstable.Entries)={len(unstable.entries)}"
        )

    # Reading

    def first_index(self) -> int:
        snapshot = self.unstable.snapshot
        return snapshot.metadata.index + 1 if snapshot is not None else self.storage.first_index()

    def last_index(self) -> int:
        unstable = self.unstable
        if unstable.entries:
            return unstable.offset + len(unstable.entries) - 1
        if unstable.snapshot is not None:
            return unstable.snapshot.metadata.index
        return self.storage.last_index()

    def term(self, index: int) -> int:
        """Return the term of the entry at `index`.

        Raises:
            Compacted: the entry is before the log's beginning.
            Unavailable: the entry is after the log's end.
        """
        unstable = self.unstable
        position = index - unstable.offset
        if position >= 0:
            try:
                return unstable.entries[position].Term
            except IndexError:
                raise Unavailable(f"entry {index} is past the end of the log") from None
        snapshot = unstable.snapshot
        if snapshot is not None:
            if index == snapshot.metadata.index:
                return snapshot.metadata.term
            raise Compacted(f"entry {index} is before the snapshot")
        return self.storage.term(index)

    def term_or_zero(self, index: int) -> int:
        """Return the term at `index`, 0 where the log doesn't have it."""
        try:
            return self.term(index)
        except Compacted, Unavailable:
            return 0

    def last_id(self) -> tuple[int, int]:
        """Return (index, term) of the last entry."""
        index = self.last_index()
        try:
            return index, self.term(index)
        except (Compacted, Unavailable) as error:
            raise InvariantBroken(f"storage has no term for its last entry {index}") from error

    def matches(self, index: int, term: int) -> bool:
        try:
            return self.term(index) == term
        except Compacted, Unavailable:
            return False

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Say whether a log ending in (index, term) is at least as complete (thesis 3.6.1)."""
        last_index, last_term = self.last_id()
        return term > last_term or (term == last_term and index >= last_index)

    def entries_from(self, index: int, max_bytes: int) -> list[raftpb.Entry]:
        """Return entries from `index` to the end, as many as fit.

        Raises:
            Compacted: `index` is before the log's beginning.
        """
        last = self.last_index()
        return [] if index > last else self.slice(index, last + 1, max_bytes)

    def slice(self, lo: int, hi: int, max_bytes: int) -> list[raftpb.Entry]:
        """Return entries in [lo, hi), as many as fit but at least one.

        Raises:
            Compacted: `lo` is before the log's beginning.
        """
        if lo > hi or hi > self.last_index() + 1:
            raise InvariantBroken(
                f"entries [{lo}, {hi}) asked of a log that ends at {self.last_index()}"
            )
        if lo == hi:
            return []
        unstable = self.unstable
        offset = unstable.offset
        if lo >= offset:
            return limit_entries(unstable.entries[lo - offset : hi - offset], max_bytes)
        if lo < self.first_index():
            raise Compacted(f"entry {lo} was compacted; the log starts at {self.first_index()}")
        cut = min(hi, offset)
        try:
            entries = self.storage.entries(lo, cut, max_bytes)
        except Unavailable as error:
            raise InvariantBroken(f"storage has lost entries of [{lo}, {cut})") from error
        if hi <= offset or len(entries) < cut - lo:
            return entries
        room = NO_LIMIT
        if max_bytes < NO_LIMIT:
            room = max_bytes - sum(map(entry_size, entries))
            if room <= 0 or entry_size(unstable.entries[0]) > room:
                return entries
        return entries + limit_entries(unstable.entries[: hi - offset], room)

    # Appending

    def append(self, entries: Sequence[raftpb.Entry]) -> None:
        """Append, replacing what is there from the first entry's index on."""
        if not entries:
            return
        if entries[0].Index <= self.committed:
            raise InvariantBroken(
                f"entry {entries[0].Index} would replace one committed up to {self.committed}"
            )
        self.unstable.truncate_and_append(entries)

    def maybe_append(
        self, previous_index: int, previous_term: int, entries: Sequence[raftpb.Entry], commit: int
    ) -> int | None:
        """Append what a leader sent, if the log has its (previous_index, previous_term).

        Returns:
            The index of the last entry known to equal the leader's, or None for no match.
        """
        if not self.matches(previous_index, previous_term):
            return None
        last = self.last_index()
        last_new = previous_index + len(entries)
        for position, entry in enumerate(entries):
            index = entry.Index
            if index <= last and self.matches(index, entry.Term):
                continue
            # The first entry that is new or contradicts: from here on the leader's log counts.
            if index <= last:
                self.note("conflict", index=index, ours=self.term_or_zero(index), theirs=entry.Term)
            if index <= self.committed:
                raise InvariantBroken(
                    f"entry {index} of term {entry.Term} contradicts the log,"
                    f" which is committed up to {self.committed}"
                )
            self.append(entries[position:])
            break
        self.commit_to(min(commit, last_new))
        return last_new

    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """Return the last (index, term) up to `index` whose term is not above `term`.

        That is the best guess where this log ends equalling another one, of which only one
        entry's (index, term) is known: terms only grow along a log, so what has a larger term
        here cannot be there. The term is 0 where this log doesn't have it.
        """
        while index > 0:
            ours = self.term_or_zero(index)
            if ours <= term:
                return index, ours
            index -= 1
        return 0, 0

    # Committing and applying

    def commit_to(self, index: int) -> None:
        """Raise the commit index; it never falls."""
        if index <= self.committed:
            return
        last = self.last_index()
        if index > last:
            raise InvariantBroken(
                f"told that entry {index} is committed, but the log ends at {last}: entries were"
                " lost. Remove this node from the cluster and add it under a new id"
            )
        self.committed = index

    def maybe_commit(self, index: int, term: int) -> bool:
        """Commit up to `index` if the entry there is of `term` (thesis 3.6.2)."""
        if index <= self.committed or not self.matches(index, term):
            return False
        self.commit_to(index)
        return True

    def next_committed(self, allow_unstable: bool) -> list[raftpb.Entry]:
        """Return the committed entries to apply next, within the limit on their size."""
        if not self.has_next_committed(allow_unstable):
            return []
        hi = self.max_appliable(allow_unstable) + 1
        return self.slice(self.applying + 1, hi, self.max_applying_bytes - self._applying_bytes)

    def has_next_committed(self, allow_unstable: bool) -> bool:
        # A snapshot is applied first, and alone.
        return (
            not self._applying_paused
            and self.unstable.snapshot is None
            and self.applying < self.max_appliable(allow_unstable)
        )

    def max_appliable(self, allow_unstable: bool) -> int:
        """Return up to where entries may be applied: committed, and if need be stable here."""
        if allow_unstable:
            return self.committed
        return min(self.committed, self.unstable.offset - 1)

    def accept_applying(self, index: int, size: int, allow_unstable: bool) -> None:
        """Note that entries up to `index`, of `size` bytes, have been handed out."""
        self.applying = index
        self._applying_bytes += size
        # Fewer handed out than there are means that the next one did not fit.
        self._applying_paused = (
            self._applying_bytes >= self.max_applying_bytes
            or index < self.max_appliable(allow_unstable)
        )

    def applied_to(self, index: int, size: int) -> None:
        """Note that entries up to `index` have been applied, `size` bytes in this step."""
        if index > self.committed or index < self.applied:
            raise InvariantBroken(
                f"applied index {index} is outside [{self.applied}, {self.committed}]"
            )
        self.applied = index
        self.applying = max(self.applying, index)
        self._applying_bytes = max(0, self._applying_bytes - size)
        self._applying_paused = self._applying_bytes >= self.max_applying_bytes

    # Snapshots

    def snapshot(self) -> raftpb.Snapshot:
        return self.unstable.snapshot or self.storage.snapshot()

    def restore(self, snapshot: raftpb.Snapshot) -> None:
        """Replace the log by `snapshot`."""
        self.note(
            "snapshot_begins",
            log=str(self),
            index=snapshot.metadata.index,
            term=snapshot.metadata.term,
        )
        self.committed = snapshot.metadata.index
        self.unstable.restore(snapshot)
