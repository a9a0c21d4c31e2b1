"""A TCP proxy between two orderers: delay, silence in one direction, connections reset.

One `Link` stands for the way from one node to another: the connections that the first one opens.
It knows nothing of what it carries.
"""

import asyncio
import contextlib
import socket
import struct

CHUNK_BYTES = 64 * 1024
WAITING_CHUNKS = 256
"""Read and not yet due; past it the sender is not read, as with a full pipe."""
# Linger for no time: closing sends a reset.
_RESET = struct.pack("ii", 1, 0)


class Link:
    """Listens on a port of 127.0.0.1 and carries every connection to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.delay_s = 0.0
        """For each direction."""
        self.resets = 0
        self._server: asyncio.Server | None = None
        self._sockets: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()

    async def start(self) -> str:
        """Listen; returns the address to connect to."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    def cut(self) -> None:
        """From now on nothing passes, in neither direction, and nobody is told."""
        self._open.clear()

    def heal(self) -> None:
        """What was held back goes on its way, as after a lost packet is sent again."""
        self._open.set()

    def reset(self) -> None:
        """Break all connections; both ends see a reset."""
        for writer in [*self._sockets, *self._sockets.values()]:
            self.resets += 1
            end = writer.get_extra_info("socket")
            if end is not None:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def close(self) -> None:
        """Break all connections and listen no more."""
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._open.wait()
            there_reader, there_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._sockets[writer] = there_writer
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, there_writer))
                pumps.create_task(self._pump(there_reader, writer))
        except* OSError:
            pass
        finally:
            del self._sockets[writer]
            writer.transport.abort()
            there_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAITING_CHUNKS)

        async def write() -> None:
            while True:
                due, chunk = await waiting.get()
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                await self._open.wait()
                if not chunk:
                    raise ConnectionResetError("the other end has closed")
                writer.write(chunk)
                await writer.drain()

        writing = asyncio.create_task(write())
        try:
            while True:
                reading = asyncio.create_task(reader.read(CHUNK_BYTES))
                try:
                    await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
                    if writing.done():
                        writing.result()
                finally:
                    if not reading.done():
                        reading.cancel()
                chunk = await reading
                await waiting.put((loop.time() + self.delay_s, chunk))
                if not chunk:
                    await writing
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await writing
