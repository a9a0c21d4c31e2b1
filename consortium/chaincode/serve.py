"""Chaincode as a service, the chaincode's side: our contracts for any peer that dials.

A peer opens a stream (`protos.Chaincode/Connect`), we register with the chaincode's package id, and
it sends transactions. A contract runs in a thread, and asks the peer through `stub`. Each peer has
threads of its own: one that leaves contracts waiting for answers keeps none of another's waiting.
"""

import asyncio
import contextlib
import logging
import queue
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc

from consortium.wire import peer_pb2, services
from consortium.wire.envelopes import WireError, brief, parse

from .api import Chaincode
from .executor import ERROR, EXECUTION_DEADLINE_S, failure
from .requests import MAX_NAME_CHARACTERS, ChaincodeMessage
from .stub import PeerError, completed, offered_at_once, run_transaction

_LOGGER = logging.getLogger(__name__)

THREADS = 16
"""Contracts of one peer that run at once."""
MAX_WAITING = 1000
"""Transactions of one peer that run or wait for a thread."""
MAX_WAITING_BYTES = 256 * 1024 * 1024
"""Of these transactions' arguments and proposals."""
MAX_OUTGOING = 4 * MAX_WAITING
"""Messages that wait for one peer to read; a transaction has one under way."""
MAX_OUTGOING_BYTES = 128 * 1024 * 1024
MAX_PEERS = 64
STOP_GRACE_S = 1.0


@dataclass(slots=True)
class _Running:
    """A transaction that runs or waits for a thread."""

    size: int
    answers: queue.SimpleQueue[peer_pb2.ChaincodeMessage | None] = field(
        default_factory=queue.SimpleQueue
    )
    asked: bool = False
    """Whether an answer is due; none else is taken."""


class _Peer:
    """One peer's stream and the transactions that run for it."""

    def __init__(self, chaincode: Chaincode, threads: int) -> None:
        self.writes_at_once = self.reads_at_once = 1
        self._gone = False
        self._chaincode = chaincode
        # They begin as they are needed.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="contract")
        self._loop = asyncio.get_running_loop()
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._outgoing_bytes = 0
        self._running: dict[tuple[str, str], _Running] = {}
        self._running_bytes = 0
        self.overrun: asyncio.Future[None] = self._loop.create_future()
        """Done once the peer has let more wait than it may."""

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        """Take the peer's messages until it hangs up; raises WireError for what is none."""
        async for raw in requests:
            message = parse(ChaincodeMessage, raw, "the peer's message")
            if message.type == ChaincodeMessage.READY:
                self.writes_at_once, self.reads_at_once = offered_at_once(message)
            elif message.type in (ChaincodeMessage.TRANSACTION, ChaincodeMessage.INIT):
                self._start(message)
            elif message.type in (ChaincodeMessage.RESPONSE, ChaincodeMessage.ERROR):
                running = self._running.get((message.channel_id, message.txid))
                if running is not None and running.asked:
                    running.asked = False
                    running.answers.put(message)

    async def write(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """Send what is queued until the peer is gone."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                raw = await self._outgoing.get()
                await context.write(raw)
                self._outgoing_bytes -= len(raw)

    def hang_up(self) -> None:
        """The peer is gone: whoever waits for it waits no more, and nothing is kept for it."""
        self._gone = True
        self._outgoing = asyncio.Queue()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for running in self._running.values():
            running.answers.put(None)

    def send(self, message: peer_pb2.ChaincodeMessage) -> None:
        """Queue a message for the peer."""
        self._queue(message.SerializeToString())

    def send_from_thread(self, message: peer_pb2.ChaincodeMessage) -> None:
        """As `send`, from a contract's thread; raises PeerError once the server has stopped."""
        try:
            self._loop.call_soon_threadsafe(self._queue, message.SerializeToString())
        except RuntimeError:
            raise PeerError("the server has stopped") from None

    def _queue(self, raw: bytes) -> None:
        if self._gone or self.overrun.done():
            return
        self._outgoing_bytes += len(raw)
        if self._outgoing.qsize() >= MAX_OUTGOING or self._outgoing_bytes > MAX_OUTGOING_BYTES:
            self.overrun.set_result(None)
            return
        self._outgoing.put_nowait(raw)

    def _start(self, opening: peer_pb2.ChaincodeMessage) -> None:
        key = (opening.channel_id, opening.txid)
        if sum(map(len, key)) > MAX_NAME_CHARACTERS:
            raise WireError(
                f"a transaction's channel and id have {sum(map(len, key))} characters, but may "
                f"have {MAX_NAME_CHARACTERS}"
            )
        if key in self._running:
            _LOGGER.debug("%s was sent again while it runs; ignored", brief(opening.txid))
            return
        size = opening.ByteSize()
        if len(self._running) >= MAX_WAITING or (
            self._running and self._running_bytes + size > MAX_WAITING_BYTES
        ):
            busy = (
                f"{len(self._running)} transactions with {self._running_bytes} bytes are under "
                "way, which is this server's limit; try again"
            )
            self.send(completed(opening, failure(ERROR, busy), None))
            return
        self._running[key] = running = _Running(size)
        self._running_bytes += size
        self._threads.submit(self._run, opening, running)

    def _run(self, opening: peer_pb2.ChaincodeMessage, running: _Running) -> None:
        outcome = run_transaction(self._chaincode, opening, _Conversation(self, running))
        with contextlib.suppress(RuntimeError):  # the server has stopped: nobody waits
            self._loop.call_soon_threadsafe(self._finish, outcome)

    def _finish(self, outcome: peer_pb2.ChaincodeMessage) -> None:
        self._running_bytes -= self._running.pop((outcome.channel_id, outcome.txid)).size
        self.send(outcome)


class _Conversation:
    """A contract's thread asks, the peer's stream answers."""

    def __init__(self, peer: _Peer, running: _Running) -> None:
        self._peer = peer
        self._running = running
        self._over = ""

    @property
    def writes_at_once(self) -> int:
        return self._peer.writes_at_once

    @property
    def reads_at_once(self) -> int:
        return self._peer.reads_at_once

    def ask(self, request: peer_pb2.ChaincodeMessage) -> peer_pb2.ChaincodeMessage:
        if self._over:
            raise PeerError(self._over)
        self._running.asked = True
        self._peer.send_from_thread(request)
        try:
            answer = self._running.answers.get(timeout=EXECUTION_DEADLINE_S)
        except queue.Empty:
            # A late answer must not be taken for the next one.
            self._over = f"the peer did not answer within {EXECUTION_DEADLINE_S:g} s"
            raise PeerError(self._over) from None
        if answer is None:
            self._over = "the peer has gone away"
            raise PeerError(self._over)
        return answer


class ChaincodeServer:
    """Serves one chaincode to any number of peers at one address.

    `package_id` is what peers know it by: the one that their organizations approved.
    """

    def __init__(
        self,
        chaincode: Chaincode,
        package_id: str,
        address: str,
        *,
        credentials: grpc.ServerCredentials | None = None,
        threads: int = THREADS,
    ) -> None:
        self._chaincode = chaincode
        self._package_id = package_id
        self._address = address
        self._credentials = credentials
        self._threads = threads
        self._server: grpc.aio.Server | None = None
        self._peers = 0

    async def start(self) -> int:
        """Listen; returns the port. Raises RuntimeError if the address is taken."""
        server = grpc.aio.server(options=services.NODE_SERVER_OPTIONS)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Connect": grpc.stream_stream_rpc_method_handler(self._connect)
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("protos.Chaincode", handlers),)
        )
        if self._credentials is None:
            port = server.add_insecure_port(self._address)
        else:
            port = server.add_secure_port(self._address, self._credentials)
        await server.start()
        self._server = server
        return port

    async def stop(self) -> None:
        """Hang up on all peers after a second; contracts that still run are left behind."""
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)

    async def _connect(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        if self._peers >= MAX_PEERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_PEERS} peers are connected, the limit"
            )
        self._peers += 1
        peer = _Peer(self._chaincode, self._threads)
        package_id = peer_pb2.ChaincodeID(name=self._package_id).SerializeToString()
        peer.send(ChaincodeMessage(type=ChaincodeMessage.REGISTER, payload=package_id))
        reading = asyncio.create_task(peer.read(requests))
        writing = asyncio.create_task(peer.write(context))
        try:
            try:
                await asyncio.wait(
                    (reading, writing, peer.overrun), return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                peer.hang_up()
                ended = reading.done()
                reading.cancel()
                writing.cancel()
                await asyncio.gather(reading, writing, return_exceptions=True)
            if peer.overrun.done():
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"more than {MAX_OUTGOING} messages or {MAX_OUTGOING_BYTES} bytes wait for "
                    "this peer to read them",
                )
            if ended:
                reading.result()
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self._peers -= 1
