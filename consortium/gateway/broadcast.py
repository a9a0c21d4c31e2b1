"""Submitting envelopes to the ordering service over one long-lived stream.

A gateway keeps one stream open with many envelopes in flight: to our orderers in batches, which
costs both sides a fraction of the time, to Fabric's by Broadcast, one by one. Orderers answer in
order, and our orderers answer SUCCESS only for what Raft has committed. When a stream ends,
whatever was unanswered is sent again to the next orderer: an envelope ordered twice is valid once.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import grpc

from consortium.peer.channel import ChannelPeer
from consortium.wire import common_pb2, gridledger_pb2, orderer_pb2, services

_LOGGER = logging.getLogger(__name__)

MAX_IN_FLIGHT = 500
MAX_WAITING = 5_000
MAX_WAITING_BYTES = 128 * 1024 * 1024
BATCH_BYTES = 1024 * 1024
"""A batch of more has one envelope only."""
RETRY_S = 0.1
ANSWER_TIMEOUT_S = 5.0
"""An orderer that answers none of the envelopes it was sent for so long is left for another.

Shorter than what clients wait for Submit, so that the next orderer is asked in their time.
"""
MAX_ORDERER_FAULTS = 3
"""How many orderers may fail over one envelope before it is given back to its sender."""
FABRICS_UNKNOWN_CHANNEL = "channel does not exist"


def another_may_take_it(answer: orderer_pb2.BroadcastResponse) -> bool:
    """Whether a refusal is about the orderer and not about the envelope.

    It has no leader or is too busy, or it has left the channel or is about to join, which Fabric's
    orderers call a bad request.
    """
    return answer.status in (common_pb2.SERVICE_UNAVAILABLE, common_pb2.NOT_FOUND) or (
        answer.status == common_pb2.BAD_REQUEST and answer.info == FABRICS_UNKNOWN_CHANNEL
    )


class BroadcastRefused(Exception):
    """An orderer says that the envelope itself is at fault; sending it elsewhere won't help."""

    def __init__(self, status: int, info: str) -> None:
        super().__init__(
            f"received unsuccessful response from orderer: status={_name(status)}, info={info}"
        )


class TooManyWaiting(Exception):
    """More envelopes wait for the orderers than the gateway keeps."""


class OrdererStuck(Exception):
    """An orderer that is there but does not answer; the sentence says for how long."""


@dataclass(slots=True, eq=False)
class _Pending:
    envelope: bytes
    faults: int = 0
    answered: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Broadcaster:
    """Sends envelopes of one channel to its orderers."""

    def __init__(self, channel: ChannelPeer) -> None:
        self._channel = channel
        self._waiting: deque[_Pending] = deque()
        self._in_flight: deque[_Pending] = deque()
        self._callers = 0
        self._bytes = 0
        self._work = asyncio.Event()
        self._answer_due: asyncio.Timeout | None = None
        self._preferred: str | None = None
        self._last_errors: dict[str, tuple[str, str]] = {}
        self._without_batches: set[str] = set()
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
        if self._callers >= MAX_WAITING or self._bytes + len(envelope) > MAX_WAITING_BYTES:
            raise TooManyWaiting(
                f"{self._callers} transactions of {self._bytes} bytes wait for the orderers, which "
                "is this gateway's limit; send the same transaction again in a second"
            )
        pending = _Pending(envelope)
        self._callers += 1
        self._bytes += len(envelope)
        self._waiting.append(pending)
        self._work.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="broadcast")
        try:
            await pending.answered
        finally:
            self._callers -= 1
            self._bytes -= len(envelope)
            # Nobody is told any more: it need not be sent, if it was not yet.
            with contextlib.suppress(ValueError):
                self._waiting.remove(pending)

    async def stop(self) -> None:
        """Close the stream; what waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for pending in (*self._in_flight, *self._waiting):
            pending.answered.cancel()

    def _orderers(self) -> list[tuple[str, str]]:
        """(address, MSP id) of every orderer: the one that served last first."""
        settings = self._channel.ledger.config.orderer
        orderers = [(address, msp_id) for msp_id, address in settings.addresses()]
        orderers.sort(key=lambda item: item[0] != self._preferred)
        return orderers

    async def _run(self) -> None:
        while True:
            while not self._waiting:
                self._work.clear()
                await self._work.wait()
            for address, msp_id in self._orderers():
                problem = await self._attempt(address, msp_id)
                if problem:
                    self._last_errors[address] = (msp_id, problem)
                    _LOGGER.info("orderer %s: %s", address, problem)
                if not self._waiting:
                    break
            else:
                await asyncio.sleep(RETRY_S)

    async def _attempt(self, address: str, msp_id: str) -> str:
        """Send to one orderer for as long as it goes well; returns what ended that."""
        while True:
            batches = address not in self._without_batches
            try:
                return await self._stream(address, msp_id, batches=batches)
            except grpc.aio.AioRpcError as error:
                if batches and address in self._without_batches:
                    continue
                return error.details() or error.code().name
            except OrdererStuck as error:
                return str(error)
            except Exception as error:
                # Whatever an orderer sends, the queue of everybody's envelopes goes on.
                _LOGGER.exception("broadcasting to orderer %s", address)
                return f"{type(error).__name__}: {error}"
            finally:
                if self._preferred == address:
                    self._preferred = None
                # What was sent and not answered goes first to the next orderer, in order.
                unanswered = [one for one in self._in_flight if not one.answered.done()]
                self._waiting.extendleft(reversed(unanswered))
                self._in_flight.clear()

    async def _stream(self, address: str, msp_id: str, *, batches: bool) -> str:
        credentials = grpc.ssl_channel_credentials(
            self._channel.ledger.config.msps.tls_roots_pem(msp_id)
        )
        async with grpc.aio.secure_channel(
            address, credentials, options=services.NODE_CHANNEL_OPTIONS
        ) as connection:
            broadcast: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = connection.stream_stream(
                services.BROADCAST_BATCHES if batches else services.BROADCAST
            )
            call = broadcast()
            try:
                if batches:
                    async with asyncio.timeout(ANSWER_TIMEOUT_S):
                        await self._check_batches(call, address)
                async with asyncio.timeout(None) as self._answer_due:
                    return await self._exchange(call, address, batches=batches)
            except TimeoutError:
                raise OrdererStuck(
                    f"it was sent envelopes and answered none for {ANSWER_TIMEOUT_S:g} s"
                ) from None
            finally:
                self._answer_due = None
                call.cancel()

    async def _check_batches(
        self, call: grpc.aio.StreamStreamCall[bytes, bytes], address: str
    ) -> None:
        """Wait for the orderer to say that it takes batches; raises AioRpcError.

        Nothing is written before: gRPC puts an error of its own in the place of what the orderer
        says where a write fails.
        """
        said = await call.initial_metadata()
        if services.BATCHES_TAKEN in tuple(said or ()):
            return
        if await call.code() is grpc.StatusCode.UNIMPLEMENTED:
            self._without_batches.add(address)
        await call.read()  # raises what the call ended with

    async def _exchange(
        self, call: grpc.aio.StreamStreamCall[bytes, bytes], address: str, *, batches: bool
    ) -> str:
        writer = asyncio.create_task(self._write(call, batches=batches))
        try:
            while isinstance(raw := await call.read(), bytes):
                for answer in _answers(raw) if batches else (_answer(raw),):
                    if not self._answer(answer):
                        return f"{_name(answer.status)}: {answer.info}"
                self._preferred = address
                self._last_errors.pop(address, None)
                self._expect_answer()
            return "it closed the stream"
        finally:
            writer.cancel()
            # Its errors are the call's, which reading reports.
            await asyncio.gather(writer, return_exceptions=True)

    def _expect_answer(self) -> None:
        """Let the time for an answer begin anew, if there is anything to answer."""
        if self._answer_due is not None and not self._answer_due.expired():
            now = asyncio.get_running_loop().time()
            self._answer_due.reschedule(now + ANSWER_TIMEOUT_S if self._in_flight else None)

    def _answer(self, answer: orderer_pb2.BroadcastResponse) -> bool:
        """Settle the oldest envelope in flight; False where the stream ends with this answer."""
        if not self._in_flight:
            return False
        if answer.status == common_pb2.SUCCESS:
            pending = self._in_flight.popleft()
            if not pending.answered.done():
                pending.answered.set_result(None)
            self._work.set()
            return True
        if another_may_take_it(answer):
            return False
        pending = self._in_flight.popleft()
        refused = common_pb2.BAD_REQUEST <= answer.status < common_pb2.INTERNAL_SERVER_ERROR
        if not refused:
            # An orderer failed over this envelope. Others' must not queue up behind it.
            pending.faults += 1
            refused = pending.faults >= MAX_ORDERER_FAULTS
        if pending.answered.done():
            return False
        if refused:
            pending.answered.set_exception(BroadcastRefused(answer.status, answer.info))
        else:
            self._waiting.append(pending)
        return False

    async def _write(self, call: grpc.aio.StreamStreamCall[bytes, bytes], *, batches: bool) -> None:
        while True:
            while batch := self._next(services.BROADCAST_BATCH if batches else 1):
                if batches:
                    message = gridledger_pb2.EnvelopeBatch(envelopes=batch).SerializeToString()
                else:
                    (message,) = batch
                await call.write(message)
            self._work.clear()
            if not self._waiting or len(self._in_flight) >= MAX_IN_FLIGHT:
                await self._work.wait()

    def _next(self, count: int) -> list[bytes]:
        """Up to so many of the envelopes that wait, in flight from now on."""
        batch: list[bytes] = []
        size = 0
        while self._waiting and len(self._in_flight) < MAX_IN_FLIGHT and len(batch) < count:
            if batch and size + len(self._waiting[0].envelope) > BATCH_BYTES:
                break
            pending = self._waiting.popleft()
            if pending.answered.done():
                continue  # its caller gave up
            self._in_flight.append(pending)
            if len(self._in_flight) == 1:
                self._expect_answer()
            batch.append(pending.envelope)
            size += len(pending.envelope)
        return batch


def _answer(raw: bytes) -> orderer_pb2.BroadcastResponse:
    return orderer_pb2.BroadcastResponse.FromString(raw)


def _answers(raw: bytes) -> Iterable[orderer_pb2.BroadcastResponse]:
    return gridledger_pb2.BroadcastAnswers.FromString(raw).answers


def _name(status: int) -> str:
    try:
        return common_pb2.Status.Name(status)
    except ValueError:
        return str(status)
