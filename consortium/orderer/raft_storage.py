"""A channel's Raft log, hard state and snapshot on disk, as the core reads them.

What is durable when: entries, term and vote before `persist` returns. A hard state whose only
news is the commit index is written along with whatever is written next: the commit index can be
learned again, and blocks that were written because of it say so themselves (`BlockMetadata`).
"""

import json
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from consortium.raft import Compacted, Unavailable
from consortium.raft.witness import Witness
from consortium.storage.environment import ReadTransaction, WriteTransaction
from consortium.wire import raftpb_pb2 as raftpb

from .node_store import RAFT, NodeStore, channel_prefix

CACHED_ENTRY_BYTES = 32 * 1024 * 1024
"""Entries kept in memory for each channel; older ones are read from disk again."""

NODE_CACHED_ENTRY_BYTES = 32 * 1024 * 1024
"""All channels' together."""

_INDEX = struct.Struct(">Q")
_POSITION = struct.Struct(">QQQ")
_WITNESS = struct.Struct(">QQQQQQQQQ16s16s")
_RECORD_FORMAT = 1


class RaftStorageError(Exception):
    """The channel's Raft log cannot be used."""


@dataclass(slots=True)
class MemberRecord:
    """As whom this orderer takes part in a channel, on disk beside the log."""

    raft_id: int = 0
    """0 while it has been no consenter."""
    incarnation: bytes = b""
    """Made when it began with an empty log under this Raft id (16 bytes)."""
    start: int = 0
    """How often it has started since."""
    process: bytes = b""
    """Which process the last start was (16 bytes)."""
    place: int = 0
    """The inode of the database file: another one means that the files are a copy."""
    refused: list[int] = field(default_factory=list)
    """Raft ids under which something was promised that this disk has lost; never used again."""
    why: str = ""
    """How that was noticed."""

    def begin(self, raft_id: int) -> None:
        """Begin under a Raft id with an empty log."""
        self.raft_id, self.incarnation, self.start = raft_id, os.urandom(16), 0

    def refuse(self, raft_id: int, why: str) -> None:
        """Never take part under a Raft id again."""
        self.refused.append(raft_id)
        self.why = why

    def serialized(self) -> bytes:
        """For the disk."""
        return json.dumps(
            {
                "format": _RECORD_FORMAT,
                "raft_id": self.raft_id,
                "incarnation": self.incarnation.hex(),
                "start": self.start,
                "process": self.process.hex(),
                "place": self.place,
                "refused": self.refused,
                "why": self.why,
            }
        ).encode()

    @classmethod
    def parse(cls, stored: bytes) -> MemberRecord:
        """Read what `serialized` wrote; raises RaftStorageError."""
        found = json.loads(stored)
        if found["format"] != _RECORD_FORMAT:
            raise RaftStorageError(
                f"the record of a consenter has format {found['format']}; this version reads"
                f" {_RECORD_FORMAT}"
            )
        return cls(
            found["raft_id"],
            bytes.fromhex(found["incarnation"]),
            found["start"],
            bytes.fromhex(found["process"]),
            found["place"],
            found["refused"],
            found["why"],
        )


@dataclass(slots=True)
class Acquaintance:
    """What this orderer remembers of another consenter."""

    witness: Witness = field(default_factory=Witness)
    incarnation: bytes = b""
    start: int = 0
    process: bytes = b""


class ChannelLog:
    """One channel's Raft log (`raft.Storage`). Used by one task; only `_write` runs elsewhere."""

    def __init__(self, store: NodeStore, channel_id: str) -> None:
        """Read what is there; `fresh` says that the channel has no log yet."""
        self._store = store
        prefix = channel_prefix(channel_id)
        self._entry_prefix = prefix + b"e"
        self._hard_state_key = prefix + b"h"
        self._conf_state_key = prefix + b"c"
        self._position_key = prefix + b"p"
        self._snapshot_key = prefix + b"s"
        self._record_key = prefix + b"m"
        self._acquaintance_prefix = prefix + b"w"
        self._hard_state = raftpb.HardState()
        self._state_dirty = False
        self._conf_state = raftpb.ConfState()
        # Index of the last entry whose configuration change is part of _conf_state.
        self.conf_index = 0
        self._snapshot = raftpb.Snapshot()
        self._offset = 0  # index of the last entry that was compacted away
        self._offset_term = 0
        self._terms: list[int] = []  # of the entries after _offset
        self._cache: list[raftpb.Entry] = []  # the newest entries, up to the last
        self._cache_bytes = 0
        self.acquaintances: dict[int, Acquaintance] = {}
        """Other consenters by Raft id; `remember` those that changed."""
        self._to_remember: set[int] = set()
        self.record: MemberRecord | None = None
        """Written with `save_record`."""
        self.fresh = not store.read(self._load)

    def _load(self, transaction: ReadTransaction) -> bool:
        record = transaction.get(RAFT, self._record_key)
        if record is not None:
            self.record = MemberRecord.parse(record)
        for key, value in transaction.prefixed(RAFT, self._acquaintance_prefix):
            *promises, start, length, incarnation, process = _WITNESS.unpack(value)
            (raft_id,) = _INDEX.unpack(key[len(self._acquaintance_prefix) :])
            self.acquaintances[raft_id] = Acquaintance(
                Witness(*promises), incarnation[:length], start, process[:length]
            )
        stored = transaction.get(RAFT, self._hard_state_key)
        if stored is None:
            return False
        self._hard_state = raftpb.HardState.FromString(stored)
        position = transaction.get(RAFT, self._position_key)
        conf_state = transaction.get(RAFT, self._conf_state_key)
        if position is None or conf_state is None:
            raise RaftStorageError("the Raft log has a hard state without position; restore it")
        self._offset, self._offset_term, self.conf_index = _POSITION.unpack(position)
        self._conf_state = raftpb.ConfState.FromString(conf_state)
        snapshot = transaction.get(RAFT, self._snapshot_key)
        if snapshot is not None:
            self._snapshot = raftpb.Snapshot.FromString(snapshot)
        for _, value in transaction.prefixed(RAFT, self._entry_prefix):
            entry = raftpb.Entry.FromString(value)
            if entry.Index != self.last_index() + 1:
                raise RaftStorageError(
                    f"the Raft log misses entry {self.last_index() + 1}: it was damaged;"
                    " remove this orderer from the channel and add it anew"
                )
            self._terms.append(entry.Term)
            self._remember(entry)
        return True

    def _remember(self, entry: raftpb.Entry) -> None:
        self._cache.append(entry)
        self._cache_bytes += len(entry.Data)
        limit = self._store.share(NODE_CACHED_ENTRY_BYTES, CACHED_ENTRY_BYTES)
        if self._cache_bytes > limit:
            # Forget half of it at once: dropping from the front of a list is not free.
            drop = 0
            while self._cache_bytes > limit // 2 and drop < len(self._cache) - 1:
                self._cache_bytes -= len(self._cache[drop].Data)
                drop += 1
            del self._cache[:drop]

    # What the core reads

    def initial_state(self) -> tuple[raftpb.HardState, raftpb.ConfState]:
        """Return what was last persisted."""
        return self._hard_state, self._conf_state

    def first_index(self) -> int:
        """Return the index of the first entry that is still there."""
        return self._offset + 1

    def last_index(self) -> int:
        """Return the index of the last entry."""
        return self._offset + len(self._terms)

    def term(self, index: int) -> int:
        """Return an entry's term; raises Compacted or Unavailable."""
        if index < self._offset:
            raise Compacted(f"entry {index} was compacted; the log starts at {self._offset + 1}")
        if index == self._offset:
            return self._offset_term
        if index > self.last_index():
            raise Unavailable(f"entry {index} is past the end of the log at {self.last_index()}")
        return self._terms[index - self._offset - 1]

    def term_or_zero(self, index: int) -> int:
        """Return an entry's term, 0 where the log doesn't have it (any more)."""
        return self.term(index) if self._offset <= index <= self.last_index() else 0

    def entries(self, lo: int, hi: int, max_bytes: int) -> list[raftpb.Entry]:
        """Return entries in [lo, hi) within `max_bytes`, at least one."""
        if lo <= self._offset:
            raise Compacted(f"entry {lo} was compacted; the log starts at {self._offset + 1}")
        if hi > self.last_index() + 1:
            raise Unavailable(f"entry {hi - 1} is past the end of the log at {self.last_index()}")
        if hi <= lo:
            return []
        cached_from = self.last_index() + 1 - len(self._cache)
        found: list[raftpb.Entry] = []
        size = 0
        if lo < cached_from:
            found, size = self._store.read(
                lambda transaction: self._stored(transaction, lo, min(hi, cached_from), max_bytes)
            )
            if len(found) < min(hi, cached_from) - lo:
                return found
            lo = cached_from
        for entry in self._cache[lo - cached_from : hi - cached_from]:
            # As protobuf would frame it; Data is all that matters for size.
            size += len(entry.Data) + 16
            if found and size > max_bytes:
                break
            found.append(entry)
        return found

    def _stored(
        self, transaction: ReadTransaction, lo: int, hi: int, max_bytes: int
    ) -> tuple[list[raftpb.Entry], int]:
        found: list[raftpb.Entry] = []
        size = 0
        for index in range(lo, hi):
            data = transaction.get(RAFT, self._entry_prefix + _INDEX.pack(index))
            if data is None:
                raise Unavailable(f"entry {index} is not in the log on disk")
            size += len(data)
            if found and size > max_bytes:
                break
            found.append(raftpb.Entry.FromString(data))
        return found, size

    def snapshot(self) -> raftpb.Snapshot:
        """Return the latest snapshot: the channel's position as the block written there."""
        return self._snapshot

    # Who it is, and what it knows of the others

    async def save_record(self, record: MemberRecord) -> None:
        """Make the record durable."""
        self.record = record
        value = record.serialized()
        await self._store.write(lambda transaction: transaction.put(RAFT, self._record_key, value))

    async def clear(self, record: MemberRecord) -> None:
        """Forget the log on disk, to begin anew as `record` says; open it again afterwards."""
        value = record.serialized()

        def write(transaction: WriteTransaction) -> None:
            for key in (
                self._hard_state_key,
                self._conf_state_key,
                self._position_key,
                self._snapshot_key,
            ):
                transaction.delete(RAFT, key)
            for prefix in (self._entry_prefix, self._acquaintance_prefix):
                for key, _ in list(transaction.prefixed(RAFT, prefix)):
                    transaction.delete(RAFT, key)
            transaction.put(RAFT, self._record_key, value)

        await self._store.write(write)

    def remember(self, raft_id: int) -> None:
        """Note that what is known of a consenter changed; written with what is next."""
        self._to_remember.add(raft_id)

    def forget(self, raft_ids: Iterable[int]) -> None:
        """Drop what is known of consenters that are no members any more."""
        for raft_id in raft_ids:
            self.acquaintances.pop(raft_id, None)
            self._to_remember.add(raft_id)

    async def save_acquaintances(self) -> None:
        """Make what changed about others durable now."""
        remembered = self._remembered()
        await self._store.write(lambda transaction: _put_all(transaction, remembered))

    def _remembered(self) -> list[tuple[bytes, bytes | None]]:
        """Keys and values of what changed about others since the last write; None deletes."""
        if not self._to_remember:
            return []
        changed: list[tuple[bytes, bytes | None]] = []
        for raft_id in self._to_remember:
            key = self._acquaintance_prefix + _INDEX.pack(raft_id)
            known = self.acquaintances.get(raft_id)
            if known is None:
                changed.append((key, None))
                continue
            witness = known.witness
            value = _WITNESS.pack(
                witness.term,
                witness.acknowledged_term,
                witness.acknowledged_index,
                witness.acknowledged_log_term,
                witness.vote_term,
                witness.sent_term,
                witness.sent_index,
                known.start,
                len(known.incarnation),
                known.incarnation,
                known.process,
            )
            changed.append((key, value))
        self._to_remember.clear()
        return changed

    # What the chain writes

    async def bootstrap(self, consenter_ids: Sequence[int]) -> None:
        """Begin the log of a new channel as etcd's library does.

        The first entries, of term 1 and committed, add the consenters one by one, so that every
        orderer of the channel, Fabric's included, starts from the same log.
        """
        entries = [
            raftpb.Entry(
                Type=raftpb.EntryConfChange,
                Term=1,
                Index=index,
                Data=raftpb.ConfChange(
                    id=0, type=raftpb.ConfChangeAddNode, node_id=consenter_id
                ).SerializeToString(),
            )
            for index, consenter_id in enumerate(consenter_ids, 1)
        ]
        self._conf_state = raftpb.ConfState(voters=sorted(consenter_ids), auto_leave=False)
        self.conf_index = len(entries)
        hard_state = raftpb.HardState(term=1, vote=0, commit=len(entries))
        await self.persist(hard_state, entries, None)
        self.fresh = False

    async def persist(
        self,
        hard_state: raftpb.HardState | None,
        entries: Sequence[raftpb.Entry],
        snapshot: raftpb.Snapshot | None,
        *,
        must_sync: bool = True,
    ) -> None:
        """Make a Ready's news durable, then visible to the core.

        A hard state alone that need not be synced waits for the next write.
        """
        if hard_state is not None:
            self._hard_state = hard_state
            self._state_dirty = True
        if snapshot is None and not entries and not must_sync:
            return
        if snapshot is None and not entries and not (self._state_dirty or self._to_remember):
            return
        last = self.last_index()
        first_new = entries[0].Index if entries else last + 1
        if snapshot is None:
            if not self._offset < first_new <= last + 1:
                raise ValueError(
                    f"entry {first_new} doesn't follow the log from {self._offset + 1} to {last}"
                )
            offset, offset_term = self._offset, self._offset_term
        else:
            offset, offset_term = snapshot.metadata.index, snapshot.metadata.term
            self._conf_state = snapshot.metadata.conf_state
            self.conf_index = offset
        first_deleted = first_new if snapshot is None else self.first_index()
        values = self._state_values(offset, offset_term)
        if snapshot is not None:
            values.append((self._snapshot_key, snapshot.SerializeToString()))
        for entry in entries:
            key = self._entry_prefix + _INDEX.pack(entry.Index)
            values.append((key, entry.SerializeToString()))

        remembered = self._remembered()

        def write(transaction: WriteTransaction) -> None:
            self._delete_entries(transaction, first_deleted, last)
            for key, value in values:
                transaction.put(RAFT, key, value)
            _put_all(transaction, remembered)

        self._state_dirty = False
        await self._store.write(write)
        if snapshot is not None:
            self._snapshot = snapshot
            self._offset, self._offset_term = offset, offset_term
            self._terms, self._cache, self._cache_bytes = [], [], 0
        elif entries:
            self._replace_from(first_new)
        for entry in entries:
            self._terms.append(entry.Term)
            self._remember(entry)

    def _state_values(self, offset: int, offset_term: int) -> list[tuple[bytes, bytes]]:
        return [
            (self._hard_state_key, self._hard_state.SerializeToString()),
            (self._conf_state_key, self._conf_state.SerializeToString()),
            (self._position_key, _POSITION.pack(offset, offset_term, self.conf_index)),
        ]

    def _replace_from(self, index: int) -> None:
        """Forget entries from `index` on: the new ones replace them."""
        surplus = self.last_index() + 1 - index
        if surplus <= 0:
            return
        del self._terms[-surplus:]
        for entry in self._cache[-surplus:]:
            self._cache_bytes -= len(entry.Data)
        del self._cache[-surplus:]

    def _delete_entries(self, transaction: WriteTransaction, first: int, last: int) -> None:
        for index in range(first, last + 1):
            transaction.delete(RAFT, self._entry_prefix + _INDEX.pack(index))

    def set_conf_state(self, conf_state: raftpb.ConfState, index: int) -> None:
        """Note the configuration that the change at `index` led to; written with what is next."""
        self._conf_state = conf_state
        self.conf_index = index
        self._state_dirty = True

    async def compact(self, index: int, data: bytes, drop_to: int) -> None:
        """Take a snapshot at `index` (applied, its block durable), drop entries up to `drop_to`.

        `data` is the block at that position; the entries between `drop_to` and `index` stay for
        followers that are a little behind.
        """
        snapshot = raftpb.Snapshot(
            data=data,
            metadata=raftpb.SnapshotMetadata(
                index=index, term=self.term(index), conf_state=self._conf_state
            ),
        )
        offset = max(self._offset, min(drop_to, index))
        offset_term = self.term(offset)
        values = self._state_values(offset, offset_term)
        values.append((self._snapshot_key, snapshot.SerializeToString()))
        first = self.first_index()

        def write(transaction: WriteTransaction) -> None:
            for key, value in values:
                transaction.put(RAFT, key, value)
            self._delete_entries(transaction, first, offset)

        await self._store.write(write)
        self._snapshot = snapshot
        dropped = offset - self._offset
        del self._terms[:dropped]
        surplus = len(self._cache) - len(self._terms)
        if surplus > 0:
            for entry in self._cache[:surplus]:
                self._cache_bytes -= len(entry.Data)
            del self._cache[:surplus]
        self._offset, self._offset_term = offset, offset_term

    async def flush(self) -> None:
        """Write a hard state that was waiting; for an orderly stop."""
        await self.persist(None, [], None)


def _put_all(transaction: WriteTransaction, values: Iterable[tuple[bytes, bytes | None]]) -> None:
    """Write keys with their values; None deletes."""
    for key, value in values:
        if value is None:
            transaction.delete(RAFT, key)
        else:
            transaction.put(RAFT, key, value)
