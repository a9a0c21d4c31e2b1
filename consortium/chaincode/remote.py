"""Chaincode as a service, the peer's side: dials a chaincode server and runs transactions on it.

One stream carries the transactions of all channels, told apart by (channel, transaction id). The
peer keeps it open, and dials again, less and less often, when it ends. A transaction whose stream
ends fails at once: the server's memory of it is gone, and the client may propose it again.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass

import grpc

from consortium.wire import peer_pb2, services
from consortium.wire.envelopes import WireError, brief, parse, shortened

from .executor import (
    ERROR,
    EXECUTION_DEADLINE_S,
    MAX_RESULT_BYTES,
    MAX_WAITING,
    ExecutionError,
    ExecutorBusyError,
    Invocation,
    failure,
    read_outcome,
)
from .requests import MAX_NAME_CHARACTERS, ChaincodeMessage, Requests, offer
from .simulator import TransactionSimulator

_LOGGER = logging.getLogger(__name__)

REGISTER_TIMEOUT_S = 3.0
"""To connect and be registered with (Fabric's dial timeout)."""
CONNECT_WAIT_S = 5.0
"""How long a transaction waits for a server that is being dialled, a restart for instance."""
RETRY_FIRST_S = 0.1
RETRY_LONGEST_S = 5.0
MAX_OUTGOING = 1024
"""Messages of one stream that wait to be sent."""

_ENDS = (ChaincodeMessage.COMPLETED, ChaincodeMessage.ERROR)


class ChaincodeUnavailableError(ExecutionError):
    """The chaincode's server is not there, or went away."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a chaincode is served, and how it is dialled."""

    address: str
    tls_root_pem: bytes | None = None
    """Trusted for the server's certificate; None dials without TLS."""
    certificate_pem: bytes | None = None
    key_pem: bytes | None = None
    """With the certificate: what this peer shows to a server that asks (mutual TLS)."""
    server_name: str = ""
    """The name in the server's certificate, where it is not the address's."""
    package_id: str = ""
    """What the server must register as; empty takes any."""

    def dial(self) -> grpc.aio.Channel:
        """A channel, which connects when it is first used."""
        options = list(services.NODE_CHANNEL_OPTIONS)
        if self.tls_root_pem is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        credentials = grpc.ssl_channel_credentials(
            self.tls_root_pem, self.key_pem, self.certificate_pem
        )
        return grpc.aio.secure_channel(self.address, credentials, options=options)


class _Transaction:
    """What has arrived for one transaction: one request at a time, at last its end."""

    def __init__(self) -> None:
        self._inbox: asyncio.Queue[peer_pb2.ChaincodeMessage | ExecutionError] = asyncio.Queue()
        self._over = False
        self.unanswered = 0

    def take(self, message: peer_pb2.ChaincodeMessage) -> None:
        """A message from the chaincode; it may send its end before its request is answered."""
        if message.type in _ENDS:
            if not self._over:
                self._over = True
                self._inbox.put_nowait(message)
            return
        self.unanswered += 1
        if self._over:
            return
        if self.unanswered > 1:
            self.end(ExecutionError("the chaincode asked again before it had been answered"))
            return
        self._inbox.put_nowait(message)

    def end(self, error: ExecutionError) -> None:
        """The transaction cannot go on."""
        self._over = True
        self._inbox.put_nowait(error)

    async def next(self) -> peer_pb2.ChaincodeMessage:
        """The chaincode's next message; raises ExecutionError."""
        message = await self._inbox.get()
        if isinstance(message, ExecutionError):
            raise message
        return message


class _Stream:
    """One stream to a chaincode that has registered."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        self._call = call
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue(MAX_OUTGOING)
        self.transactions: dict[tuple[str, str], _Transaction] = {}

    async def send(self, message: peer_pb2.ChaincodeMessage) -> None:
        """Queue a message; waits while the chaincode does not read."""
        await self._outgoing.put(message.SerializeToString())

    async def write(self) -> None:
        """Send what is queued, until cancelled; a call takes one writer."""
        while True:
            await self._call.write(await self._outgoing.get())

    async def read(self) -> None:
        """Hand on what arrives until the stream ends; raises WireError for what is no message."""
        while isinstance(raw := await self._call.read(), bytes):
            message = parse(ChaincodeMessage, raw, "a chaincode's message")
            transaction = self.transactions.get((message.channel_id, message.txid))
            if transaction is not None:
                transaction.take(message)
            elif message.type not in (*_ENDS, ChaincodeMessage.KEEPALIVE):
                self.send_over(message.channel_id, message.txid)

    def send_over(self, channel_id: str, transaction_id: str) -> None:
        """Answer a request of a transaction that is over: the chaincode would wait on."""
        if len(channel_id) + len(transaction_id) > MAX_NAME_CHARACTERS:
            return  # no transaction's; a thousand answers as long would fill the memory
        message = ChaincodeMessage(
            type=ChaincodeMessage.ERROR,
            txid=transaction_id,
            channel_id=channel_id,
            payload=f"transaction {transaction_id} is over on this peer".encode(),
        )
        with contextlib.suppress(asyncio.QueueFull):
            self._outgoing.put_nowait(message.SerializeToString())


class RemoteChaincode:
    """An Executor for one chaincode, which a server at `connection` runs.

    It dials when it is first used.
    """

    def __init__(
        self,
        name: str,
        connection: Connection,
        *,
        deadline_s: float = EXECUTION_DEADLINE_S,
        max_waiting: int = MAX_WAITING,
        max_result_bytes: int = MAX_RESULT_BYTES,
    ) -> None:
        self.name = name
        self.connection = connection
        self._deadline_s = deadline_s
        self._max_waiting = max_waiting
        self._max_result_bytes = max_result_bytes
        self._waiting = 0
        self._stream: _Stream | None = None
        self._connected = asyncio.Event()
        self._problem = "it has not answered yet"
        self._task: asyncio.Task[None] | None = None

    async def invoke(
        self, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        """See Executor. Raises ExecutionError, ChaincodeUnavailableError, ExecutorBusyError."""
        if self._waiting >= self._max_waiting:
            raise ExecutorBusyError(
                f"{self._waiting} transactions of chaincode {self.name} are being simulated, which "
                "is this node's limit; try again, or ask another peer"
            )
        self._waiting += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._invoke(invocation, simulator)
        except TimeoutError:
            message = f"{self.name} did not finish within {self._deadline_s:g} s"
            _LOGGER.warning("%s: %s", invocation.transaction_id, message)
            await asyncio.to_thread(simulator.close, message)
            return failure(ERROR, message), None
        except asyncio.CancelledError:
            simulator.close("its caller has gone away")
            raise
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Hang up; what is under way fails."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._problem = "this peer is stopping"
        self._hang_up()

    # one transaction

    async def _invoke(
        self, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        stream = await self._live_stream()
        key = (invocation.channel_id, invocation.transaction_id)
        if key in stream.transactions:
            raise ExecutionError(
                f"transaction {invocation.transaction_id} is being simulated by {self.name} already"
            )
        transaction = stream.transactions[key] = _Transaction()
        try:
            requests = Requests(invocation, simulator)
            await stream.send(requests.opening())
            while (message := await transaction.next()).type not in _ENDS:
                answer = await requests.answer(message)
                await stream.send(answer)
                transaction.unanswered -= 1
        finally:
            del stream.transactions[key]
            if transaction.unanswered:
                stream.send_over(*key)
        return read_outcome(invocation, message, self._max_result_bytes)

    # the stream

    async def _live_stream(self) -> _Stream:
        if self._task is None:
            self._task = asyncio.create_task(
                self._keep_connected(), name=f"chaincode {self.name} at {self.connection.address}"
            )
        if self._stream is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._connected.wait(), CONNECT_WAIT_S)
        if self._stream is None:
            raise ChaincodeUnavailableError(
                f"chaincode {self.name} at {self.connection.address} cannot be reached: "
                f"{self._problem}; start it, or install and approve a package with its new address"
            )
        return self._stream

    async def _keep_connected(self) -> None:
        delay = RETRY_FIRST_S
        while True:
            # Until it is known how this dialling went, what the last one met is the best answer.
            try:
                async with self.connection.dial() as channel:
                    await self._converse(channel)
                self._problem = "it closed the connection"
            except grpc.aio.AioRpcError as error:
                self._problem = shortened(error.details() or error.code().name)
            except TimeoutError:
                self._problem = f"it did not register within {REGISTER_TIMEOUT_S:g} s"
            except (WireError, ExecutionError, OSError) as error:
                self._problem = str(error)
            except Exception as error:
                _LOGGER.exception("chaincode %s", self.name)
                self._problem = f"dialling it failed: {error}"
            if self._stream is not None:
                delay = RETRY_FIRST_S
            self._hang_up()
            # Once is enough: every transaction that needs it says it again.
            _LOGGER.log(
                logging.WARNING if delay == RETRY_FIRST_S else logging.DEBUG,
                "chaincode %s at %s: %s",
                self.name,
                self.connection.address,
                self._problem,
            )
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_LONGEST_S)

    async def _converse(self, channel: grpc.aio.Channel) -> None:
        connect: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            services.CHAINCODE_CONNECT
        )
        call = connect()
        try:
            async with asyncio.timeout(REGISTER_TIMEOUT_S):
                await self._register(call)
            self._stream = stream = _Stream(call)
            self._connected.set()
            tasks = [asyncio.create_task(stream.read()), asyncio.create_task(stream.write())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                # Both may have failed; asyncio logs a failure that nobody has looked at.
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                # A write to a stream that has just ended says nothing of why it did.
                with contextlib.suppress(asyncio.InvalidStateError):
                    task.result()
            await _raise_status(call)
        finally:
            call.cancel()

    async def _register(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        raw = await call.read()
        if not isinstance(raw, bytes):
            await _raise_status(call)
            raise ExecutionError("it closed the connection before it registered")
        message = parse(ChaincodeMessage, raw, "the chaincode's first message")
        if message.type != ChaincodeMessage.REGISTER:
            raise ExecutionError("its first message is not REGISTER; is it a chaincode server?")
        package_id = parse(peer_pb2.ChaincodeID, message.payload, "its registration").name
        if self.connection.package_id not in ("", package_id):
            raise ExecutionError(
                f"it registered as {package_id[:200]!r}, but {self.connection.package_id!r} is "
                "expected there"
            )
        for answer in (
            ChaincodeMessage(type=ChaincodeMessage.REGISTERED),
            ChaincodeMessage(type=ChaincodeMessage.READY, payload=offer().SerializeToString()),
        ):
            await call.write(answer.SerializeToString())
        _LOGGER.info("chaincode %s at %s registered", brief(package_id), self.connection.address)

    def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        self._connected.clear()
        for transaction in list(stream.transactions.values()) if stream else ():
            transaction.end(
                ChaincodeUnavailableError(
                    f"chaincode {self.name} at {self.connection.address} went away during this "
                    f"transaction: {self._problem}; propose it again"
                )
            )


async def _raise_status(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
    """Raises AioRpcError if a stream that came to its end did not end well."""
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code,
            await call.initial_metadata(),
            await call.trailing_metadata(),
            details=await call.details(),
        )
