"""Submitting envelopes to the ordering service over one long-lived stream.

A gateway keeps one Broadcast stream open with many envelopes in flight. Orderers answer in order,
and our orderers answer SUCCESS only for what Raft has committed. When a stream ends, whatever was
unanswered is sent again to the next orderer: an envelope ordered twice is valid once.
"""

import asyncio
import contextlib
import logging
import random
from collections import deque
from dataclasses import dataclass, field

import grpc

from consortium.peer.channel import ChannelPeer
from consortium.wire import common_pb2, orderer_pb2, services

_LOGGER = logging.getLogger(__name__)

MAX_IN_FLIGHT = 500
MAX_WAITING = 5_000
RETRY_S = 0.1
CONNECT_TIMEOUT_S = 3.0
IDLE_CHECK_S = 0.5


class BroadcastRefused(Exception):
    """An orderer says that the envelope itself is at fault; sending it elsewhere won't help."""

    def __init__(self, status: int, info: str) -> None:
        name = common_pb2.Status.Name(status)
        super().__init__(f"received unsuccessful response from orderer: status={name}, info={info}")


class TooManyWaiting(Exception):
    """More envelopes wait for the orderers than the gateway keeps."""


@dataclass(slots=True, eq=False)
class _Pending:
    envelope: bytes
    answered: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Broadcaster:
    """Sends envelopes of one channel to its orderers."""

    def __init__(self, channel: ChannelPeer) -> None:
        self._channel = channel
        self._waiting: deque[_Pending] = deque()
        self._in_flight: deque[_Pending] = deque()
        self._work = asyncio.Event()
        self._last_errors: dict[str, tuple[str, str]] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def last_errors(self) -> list[tuple[str, str, str]]:
        """(address, MSP id, message) of each orderer that failed us most recently."""
        return [(address, *error) for address, error in self._last_errors.items()]

    async def submit(self, envelope: bytes) -> None:
        """Return once an orderer has answered SUCCESS.

        Raises BroadcastRefused or TooManyWaiting; tries one orderer after another until the
        caller's own deadline cancels it.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise TooManyWaiting(
                f"{MAX_WAITING} transactions wait for the orderers; send again in a second"
            )
        pending = _Pending(envelope)
        self._waiting.append(pending)
        self._work.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="broadcast")
        await pending.answered

    async def stop(self) -> None:
        """Close the stream; what waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for pending in (*self._in_flight, *self._waiting):
            pending.answered.cancel()

    async def _run(self) -> None:
        preferred: str | None = None
        while True:
            await self._work.wait()
            orderers = [
                (address, msp_id)
                for msp_id, addresses in self._channel.ledger.config.orderer.endpoints.items()
                for address in addresses
            ]
            random.shuffle(orderers)
            orderers.sort(key=lambda item: item[0] != preferred)
            for address, msp_id in orderers:
                try:
                    await self._stream(address, msp_id)
                except grpc.aio.AioRpcError as error:
                    self._last_errors[address] = (msp_id, error.details() or error.code().name)
                    _LOGGER.info("orderer %s: %s", address, error.details())
                except TimeoutError:
                    self._last_errors[address] = (msp_id, "no connection within 3 s")
                else:
                    preferred = address
                # What was sent and not answered goes first to the next orderer, in order.
                self._waiting.extendleft(reversed(self._in_flight))
                self._in_flight.clear()
            await asyncio.sleep(RETRY_S)

    async def _stream(self, address: str, msp_id: str) -> None:
        credentials = grpc.ssl_channel_credentials(
            self._channel.ledger.config.msps.tls_roots_pem(msp_id)
        )
        async with grpc.aio.secure_channel(
            address, credentials, options=services.NODE_CHANNEL_OPTIONS
        ) as connection:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.channel_ready()
            broadcast: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = connection.stream_stream(
                services.BROADCAST
            )
            call = broadcast()
            writer = asyncio.create_task(self._write(call))
            try:
                while isinstance(raw := await call.read(), bytes):
                    answer = orderer_pb2.BroadcastResponse.FromString(raw)
                    if not self._answer(answer):
                        self._last_errors[address] = (
                            msp_id,
                            f"{common_pb2.Status.Name(answer.status)}: {answer.info}",
                        )
                        return
                    self._last_errors.pop(address, None)
            finally:
                writer.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                    await writer
                call.cancel()

    def _answer(self, answer: orderer_pb2.BroadcastResponse) -> bool:
        """Settle the oldest envelope in flight; False where the stream ends with this answer."""
        if not self._in_flight:
            return False
        pending = self._in_flight[0]
        if answer.status == common_pb2.SUCCESS:
            self._in_flight.popleft()
            if not pending.answered.done():
                pending.answered.set_result(None)
            self._work.set()
            return True
        if common_pb2.BAD_REQUEST <= answer.status < common_pb2.INTERNAL_SERVER_ERROR:
            self._in_flight.popleft()
            if not pending.answered.done():
                pending.answered.set_exception(BroadcastRefused(answer.status, answer.info))
        return False

    async def _write(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        while True:
            while self._waiting and len(self._in_flight) < MAX_IN_FLIGHT:
                pending = self._waiting.popleft()
                if pending.answered.done():
                    continue  # its caller gave up
                self._in_flight.append(pending)
                await call.write(pending.envelope)
            self._work.clear()
            if not self._waiting or len(self._in_flight) >= MAX_IN_FLIGHT:
                await self._work.wait()
