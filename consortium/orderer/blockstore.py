"""A channel's blocks on this orderer: append-only segments with an index by number.

Blocks are appended without waiting for the disk, since the Raft log holds each of them durably
until the next `checkpoint`; that flushes the segments and then commits the index. After a crash
the blocks past the last checkpoint are cut off and written again from the log. So a block costs
one fsync (the log's) and not two, and nothing may be compacted out of the log before a checkpoint.
"""

import struct
from collections import OrderedDict
from pathlib import Path

from consortium.storage.environment import ReadTransaction, WriteTransaction
from consortium.storage.segments import End, Location, Segments

from .node_store import BLOCKS, NodeStore, channel_prefix

CACHED_BLOCK_BYTES = 16 * 1024 * 1024
"""Newest blocks kept in memory for each channel, for the readers that follow the tip."""

NODE_CACHED_BLOCK_BYTES = 32 * 1024 * 1024
"""All channels' together."""

_NUMBER = struct.Struct(">Q")
_LOCATION = struct.Struct(">LQL")
_END = struct.Struct(">QLQ")


class BlockStoreError(Exception):
    """A block cannot be appended or read."""


def stored_end(transaction: ReadTransaction, channel_id: str) -> tuple[int, End]:
    """How many blocks of a channel are indexed on disk, and where their segments end."""
    stored = transaction.get(BLOCKS, channel_prefix(channel_id) + b"e")
    if stored is None:
        return 0, End()
    height, segment, length = _END.unpack(stored)
    return height, End(segment, length)


class BlockStore:
    """Blocks 0 to height - 1. Appending is for one thread at a time, reading for any."""

    def __init__(self, store: NodeStore, folder: Path, channel_id: str) -> None:
        """Open the channel's segments; raises storage.segments.SegmentError if damaged."""
        self._store = store
        prefix = channel_prefix(channel_id)
        self._block_prefix = prefix + b"b"
        self._end_key = prefix + b"e"
        self._durable_height, end = store.read(
            lambda transaction: stored_end(transaction, channel_id)
        )
        self._segments = Segments(folder, end)
        self._segments.on_disk_error = store.disk_refused
        self._channel_id = channel_id
        store.open_channels.add(channel_id)
        self._height = self._durable_height
        # Where the blocks since the last checkpoint lie.
        self._recent: dict[int, Location] = {}
        self._recent_bytes = 0
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cache_bytes = 0

    @property
    def height(self) -> int:
        """How many blocks there are."""
        return self._height

    @property
    def durable_height(self) -> int:
        """How many of them survive a crash of the machine by themselves."""
        return self._durable_height

    @property
    def unflushed_bytes(self) -> int:
        """Bytes appended since the last checkpoint."""
        return self._recent_bytes

    def append(self, number: int, block: bytes) -> None:
        """Append the serialized block `number`, which must be the next."""
        if number != self._height:
            raise BlockStoreError(
                f"block {number} cannot be appended to a store of height {self._height}"
            )
        self._recent[number] = self._segments.append(block)
        self._recent_bytes += len(block)
        self._cache[number] = block
        self._cache_bytes += len(block)
        limit = self._store.share(NODE_CACHED_BLOCK_BYTES, CACHED_BLOCK_BYTES)
        while self._cache_bytes > limit and len(self._cache) > 1:
            self._cache_bytes -= len(self._cache.popitem(last=False)[1])
        self._height = number + 1

    def cached(self, number: int) -> bytes | None:
        """The block's bytes if they are in memory."""
        return self._cache.get(number)

    def read(self, number: int) -> bytes:
        """The block's bytes as written; raises BlockStoreError, SegmentError."""
        cached = self._cache.get(number)
        if cached is not None:
            return cached
        if not 0 <= number < self._height:
            raise BlockStoreError(f"block {number} is not there; the height is {self._height}")
        location = self._recent.get(number)
        if location is None:
            location = self._store.read(lambda transaction: self._location(transaction, number))
        return self._segments.read(location)

    def _location(self, transaction: ReadTransaction, number: int) -> Location:
        stored = transaction.get(BLOCKS, self._block_prefix + _NUMBER.pack(number))
        if stored is None:
            raise BlockStoreError(f"block {number} is missing from the index")
        return Location(*_LOCATION.unpack(stored))

    def flush(self) -> tuple[int, End]:
        """First half of a checkpoint, for the thread that appends: blocks onto the disk."""
        self._segments.flush()
        return self._height, self._segments.end

    async def commit(self, flushed: tuple[int, End]) -> None:
        """Second half of a checkpoint: the index of what `flush` has made durable."""
        height, end = flushed
        if height == self._durable_height:
            return
        locations = [
            (self._block_prefix + _NUMBER.pack(number), location)
            for number, location in list(self._recent.items())
            if number < height
        ]

        def write(transaction: WriteTransaction) -> None:
            for key, at in locations:
                value = _LOCATION.pack(at.segment, at.offset, at.length)
                transaction.put(BLOCKS, key, value)
            value = _END.pack(height, end.segment, end.length)
            transaction.put(BLOCKS, self._end_key, value)

        await self._store.write(write)
        for number in range(self._durable_height, height):
            self._recent_bytes -= self._recent.pop(number).length
        self._durable_height = height

    def close(self) -> None:
        """Close the files."""
        self._segments.close()
        self._store.open_channels.discard(self._channel_id)
