"""Chaincode as a service, the chaincode's side: our contracts for any peer that dials.

A peer opens a stream (`protos.Chaincode/Connect`), we register with the chaincode's package id, and
it sends transactions. A contract runs in a thread, and asks the peer through `stub`.
"""

import asyncio
import contextlib
import logging
import queue
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from consortium.wire import peer_pb2, services
from consortium.wire.envelopes import WireError, parse

from .api import Chaincode
from .executor import ERROR, EXECUTION_DEADLINE_S, failure
from .requests import ChaincodeMessage
from .stub import PeerError, completed, run_transaction

_LOGGER = logging.getLogger(__name__)

THREADS = 16
"""Contracts that run at once, for all peers together."""
MAX_WAITING = 1000
"""Transactions of one peer that run or wait for a thread."""
MAX_PEERS = 64
STOP_GRACE_S = 1.0


class _Peer:
    """One peer's stream and the transactions that run for it."""

    def __init__(self, chaincode: Chaincode, threads: ThreadPoolExecutor) -> None:
        self.writes_at_once = 1
        self._chaincode = chaincode
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        # Bounded by what runs: each transaction has one message under way.
        self.outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._running: dict[
            tuple[str, str], queue.SimpleQueue[peer_pb2.ChaincodeMessage | None]
        ] = {}

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        """Take the peer's messages until it hangs up; raises WireError for what is none."""
        async for raw in requests:
            message = parse(ChaincodeMessage, raw, "the peer's message")
            if message.type == ChaincodeMessage.READY:
                offered = parse(
                    peer_pb2.ChaincodeAdditionalParams, message.payload, "the peer's offer"
                )
                self.writes_at_once = offered.max_size_write_batch if offered.use_write_batch else 1
            elif message.type in (ChaincodeMessage.TRANSACTION, ChaincodeMessage.INIT):
                self._start(message)
            elif message.type in (ChaincodeMessage.RESPONSE, ChaincodeMessage.ERROR):
                answers = self._running.get((message.channel_id, message.txid))
                if answers is not None:
                    answers.put(message)

    def hang_up(self) -> None:
        """The peer is gone: whoever waits for it waits no more."""
        for answers in self._running.values():
            answers.put(None)

    def send(self, message: peer_pb2.ChaincodeMessage) -> None:
        """Queue a message for the peer."""
        self.outgoing.put_nowait(message.SerializeToString())

    def send_from_thread(self, message: peer_pb2.ChaincodeMessage) -> None:
        """As `send`, from a contract's thread; raises PeerError once the server has stopped."""
        try:
            self._loop.call_soon_threadsafe(self.outgoing.put_nowait, message.SerializeToString())
        except RuntimeError:
            raise PeerError("the server has stopped") from None

    def _start(self, opening: peer_pb2.ChaincodeMessage) -> None:
        key = (opening.channel_id, opening.txid)
        if key in self._running:
            _LOGGER.warning("%s was sent again while it runs; ignored", opening.txid)
            return
        if len(self._running) >= MAX_WAITING:
            busy = f"{MAX_WAITING} transactions are under way, which is this server's limit"
            self.send(completed(opening, failure(ERROR, f"{busy}; try again"), None))
            return
        answers: queue.SimpleQueue[peer_pb2.ChaincodeMessage | None] = queue.SimpleQueue()
        self._running[key] = answers
        self._threads.submit(self._run, opening, answers)

    def _run(
        self,
        opening: peer_pb2.ChaincodeMessage,
        answers: queue.SimpleQueue[peer_pb2.ChaincodeMessage | None],
    ) -> None:
        outcome = run_transaction(self._chaincode, opening, _Conversation(self, answers))
        with contextlib.suppress(RuntimeError):  # the server has stopped: nobody waits
            self._loop.call_soon_threadsafe(self._finish, outcome)

    def _finish(self, outcome: peer_pb2.ChaincodeMessage) -> None:
        del self._running[outcome.channel_id, outcome.txid]
        self.send(outcome)


class _Conversation:
    """A contract's thread asks, the peer's stream answers."""

    def __init__(
        self, peer: _Peer, answers: queue.SimpleQueue[peer_pb2.ChaincodeMessage | None]
    ) -> None:
        self._peer = peer
        self._answers = answers

    @property
    def writes_at_once(self) -> int:
        return self._peer.writes_at_once

    def ask(self, request: peer_pb2.ChaincodeMessage) -> peer_pb2.ChaincodeMessage:
        self._peer.send_from_thread(request)
        try:
            answer = self._answers.get(timeout=EXECUTION_DEADLINE_S)
        except queue.Empty:
            raise PeerError(f"the peer did not answer within {EXECUTION_DEADLINE_S:g} s") from None
        if answer is None:
            raise PeerError("the peer has gone away")
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
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="contract")
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
        self._threads.shutdown(wait=False, cancel_futures=True)

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
        writing = asyncio.create_task(_write(context, peer.outgoing))
        try:
            await peer.read(requests)
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self._peers -= 1
            writing.cancel()
            peer.hang_up()


async def _write(
    context: grpc.aio.ServicerContext[bytes, bytes], outgoing: asyncio.Queue[bytes]
) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while True:
            await context.write(await outgoing.get())
