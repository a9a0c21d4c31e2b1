"""The orderer node's LMDB environment, shared by all its channels, and its writer thread.

Writes of all channels that arrive while one commit is under way share the next commit, so that a
hundred channels cost one fsync and not a hundred.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from consortium.storage.environment import (
    DiskError,
    Environment,
    ReadTransaction,
    WriteTransaction,
)

FORMAT_VERSION = 1
RAFT = "raft"
"""Table with each channel's Raft log, hard state, position and snapshot."""

BLOCKS = "blocks"
"""Table that says where in its segments each block of each channel lies."""

TABLES = (RAFT, BLOCKS)

type Write = Callable[[WriteTransaction], None]


def channel_prefix(channel_id: str) -> bytes:
    """What the keys of a channel begin with; no channel's prefix begins another's."""
    return channel_id.encode() + b"\0"


class NodeStore:
    """An environment whose commits are shared. Used from one event loop."""

    def __init__(self, directory: Path) -> None:
        """Open or create it; raises storage.environment.FormatError, StorageError."""
        self._environment = Environment(directory, TABLES, format_version=FORMAT_VERSION)
        self.place = (directory / "data.mdb").stat().st_ino
        """The inode of the database: a copy of it has another one."""
        self.on_disk_error: Callable[[DiskError], None] | None = None
        """Told, on any thread, when the disk refuses a write of the log or of blocks."""
        self._environment.on_disk_error = self.disk_refused
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="orderer-log")
        self._waiting: list[tuple[Write, asyncio.Future[None]]] = []
        self._committer: asyncio.Task[None] | None = None
        self.commits = 0
        """Commits so far, each of them one fsync."""
        self.open_channels: set[str] = set()
        """Those that share what the node may keep in memory."""

    def disk_refused(self, error: DiskError) -> None:
        """The disk refused a write, here or in the segments that belong to this store."""
        if self.on_disk_error is not None:
            self.on_disk_error(error)

    async def write(self, change: Write) -> None:
        """Run `change` in a transaction and return once it is on disk (one commit for many).

        `change` may run more than once (see Environment.write). Raises what the commit raised.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, done))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit_all())
        await done

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await loop.run_in_executor(
                    self._writer, self._commit, [change for change, _ in batch]
                )
            except BaseException as error:
                # Everyone who shares the commit must know that nothing of theirs is on disk.
                for _, done in batch:
                    if not done.done():
                        done.set_exception(
                            error if isinstance(error, Exception) else RuntimeError("stopping")
                        )
                if not isinstance(error, Exception):
                    raise
            else:
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)

    def _commit(self, changes: Sequence[Write]) -> None:
        def apply(transaction: WriteTransaction) -> None:
            for change in changes:
                change(transaction)

        self._environment.write(apply)
        self.commits += 1

    def read[Result](self, query: Callable[[ReadTransaction], Result]) -> Result:
        """Run `query` in a read transaction, on the calling thread."""
        with self._environment.read() as transaction:
            return query(transaction)

    def share(self, node_bytes: int, channel_bytes: int) -> int:
        """How much a channel may keep in memory: its part of `node_bytes`, `channel_bytes` at most.

        So that a node with a hundred channels needs about as much memory as one with ten.
        """
        return min(channel_bytes, node_bytes // max(1, len(self.open_channels)))

    async def forget(self, channel_id: str) -> None:
        """Delete everything about a channel, durably."""
        prefix = channel_prefix(channel_id)

        def write(transaction: WriteTransaction) -> None:
            for table in (RAFT, BLOCKS):
                for key, _ in list(transaction.prefixed(table, prefix)):
                    transaction.delete(table, key)

        await self.write(write)

    def close(self) -> None:
        """Finish what is being written and close the files."""
        self._writer.shutdown(wait=True)
        self._environment.close()
