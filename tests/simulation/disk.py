"""A disk that forgets what was not synced, fails, fills up and tears its last write."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random

from consortium.raft import Compacted, MemoryStorage, Unavailable
from consortium.wire import raftpb_pb2 as raftpb


class DiskFailed(Exception):
    """A write or a sync did not succeed. The node must stop."""


@dataclass(frozen=True, slots=True)
class AppState:
    """The application: how far it is, and a digest of everything that it applied."""

    index: int = 0
    term: int = 0
    digest: int = 0
    conf_state: raftpb.ConfState = field(default_factory=raftpb.ConfState)


@dataclass(frozen=True, slots=True)
class _Image:
    """What is on the disk."""

    hard_state: raftpb.HardState
    app: AppState
    offset: int
    offset_term: int
    entries: tuple[raftpb.Entry, ...]

    def written(
        self,
        hard_state: raftpb.HardState | None,
        entries: Sequence[raftpb.Entry],
        snapshot: AppState | None,
    ) -> _Image:
        image = self
        if snapshot is not None:
            image = replace(
                image, app=snapshot, offset=snapshot.index, offset_term=snapshot.term, entries=()
            )
        if entries:
            keep = max(0, entries[0].Index - image.offset - 1)
            skip = max(0, image.offset + 1 - entries[0].Index)
            kept = image.entries[:keep]
            assert len(kept) == keep, "a gap in the log on disk"
            image = replace(image, entries=kept + tuple(entries[skip:]))
        if hard_state is not None:
            image = replace(image, hard_state=hard_state)
        return image

    def has(self, index: int, term: int) -> bool:
        """Say whether the entry is here, or was applied and compacted away."""
        if index <= self.offset:
            return True
        position = index - self.offset - 1
        return position < len(self.entries) and self.entries[position].Term == term


class Disk(MemoryStorage):
    """Storage with two layers: what was written, and what of it survives a crash.

    Writes since the last sync may survive too, in order, the last of them torn (its first
    entries there, the rest and the hard state not), as with a write-ahead log whose records carry
    checksums.
    """

    def __init__(self, initial: AppState) -> None:
        super().__init__()
        self.image = _Image(raftpb.HardState(), initial, initial.index, initial.term, ())
        self.durable = self.image
        self._since_sync: list[_Image] = []
        self.failing_writes = 0
        self.copies: list[_Image] = []
        """Backups of what was durable, from time to time."""
        self._syncs = 0

    # Reading (raft.Storage)

    def initial_state(self) -> tuple[raftpb.HardState, raftpb.ConfState]:
        return self.image.hard_state, self.image.app.conf_state

    def entries(self, lo: int, hi: int, max_bytes: int) -> list[raftpb.Entry]:
        image = self.image
        if lo <= image.offset:
            raise Compacted(f"entry {lo}")
        if hi > image.offset + len(image.entries) + 1:
            raise Unavailable(f"entry {hi - 1}")
        found = image.entries[lo - image.offset - 1 : hi - image.offset - 1]
        # Every entry counts as a hundred bytes here, so that limits take effect.
        return list(found[: max(1, max_bytes // 100)])

    def term(self, index: int) -> int:
        image = self.image
        if index < image.offset:
            raise Compacted(f"entry {index}")
        if index == image.offset:
            return image.offset_term
        position = index - image.offset - 1
        if position >= len(image.entries):
            raise Unavailable(f"entry {index}")
        return image.entries[position].Term

    def first_index(self) -> int:
        return self.image.offset + 1

    def last_index(self) -> int:
        return self.image.offset + len(self.image.entries)

    def snapshot(self) -> raftpb.Snapshot:
        """Make a snapshot of the application as it is now."""
        app = self.image.app
        return raftpb.Snapshot(
            data=app.digest.to_bytes(8),
            metadata=raftpb.SnapshotMetadata(
                index=app.index, term=app.term, conf_state=app.conf_state
            ),
        )

    # Writing

    def write(
        self,
        hard_state: raftpb.HardState | None,
        entries: Sequence[raftpb.Entry],
        snapshot: AppState | None = None,
    ) -> None:
        """Write what a Ready asks for; durable after the next `sync`."""
        self._check()
        if entries and snapshot is None:
            # What a crash in the middle of this write may leave.
            torn = self.image.written(None, entries[: (len(entries) + 1) // 2], None)
            self._since_sync.append(torn)
        self._put(self.image.written(hard_state, entries, snapshot))

    def apply(self, app: AppState) -> None:
        """Write the application's state."""
        self._put(replace(self.image, app=app))

    def compact(self, index: int) -> None:
        """Drop entries up to `index`; never more than the application has durably applied."""
        image = self.image
        index = min(index, self.durable.app.index)
        if index <= image.offset or index > self.last_index():
            return
        self._put(
            replace(
                image,
                offset_term=self.term(index),
                entries=image.entries[index - image.offset :],
                offset=index,
            )
        )

    def sync(self) -> None:
        """Make everything written durable."""
        self._check()
        self.durable = self.image
        self._since_sync.clear()
        self._syncs += 1
        if self._syncs % 7 == 0:
            self.copies.append(self.durable)

    def restore(self, copy: _Image) -> None:
        """Be what this copy is; to be done while the node is down."""
        self.image = self.durable = copy
        self._since_sync.clear()

    def crash(self, rng: Random) -> None:
        """Lose what was not synced, or a part of it."""
        if self._since_sync and rng.random() < 0.5:
            self.durable = rng.choice(self._since_sync)
        self._since_sync.clear()
        self.image = self.durable

    def _put(self, image: _Image) -> None:
        self.image = image
        self._since_sync.append(image)

    def _check(self) -> None:
        if self.failing_writes:
            self.failing_writes -= 1
            raise DiskFailed
