"""orderer.AtomicBroadcast: taking envelopes (Broadcast) and handing out blocks (Deliver).

Broadcast reads on while earlier envelopes are still being ordered; answers keep the order of the
stream, SUCCESS means that the envelope stands in a block, and the first answer that is not SUCCESS
is the last one: what the client sent after it may or may not be ordered, so it sends again
whatever was not answered.

Both handlers take and give bytes: blocks and envelopes pass as they are stored or received.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import grpc

from consortium.wire import common_pb2, orderer_pb2
from consortium.wire.envelopes import OpenedEnvelope, WireError, parse

from .admission import Admitted, Refused, check_timestamp, opened
from .blockwriter import header_type
from .chain import Chain
from .pending import Submission
from .streams import read

_LOGGER = logging.getLogger(__name__)

MAX_BLOCK = 2**64 - 1
_SUCCESS = orderer_pb2.BroadcastResponse(status=common_pb2.SUCCESS).SerializeToString()
_INLINE_CHECKS = 8
"""So few envelopes are checked on the loop, in less than a millisecond: a thread costs more."""

type ServerContext = grpc.aio.ServicerContext[bytes, bytes]


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Bounds of the client-facing services."""

    stream_window: int = 4_096
    """Envelopes of one Broadcast stream on their way; past it the stream is not read."""
    check_batch: int = 64
    """Envelopes checked together in a worker thread."""
    checks_waiting: int = 16_384
    """Envelopes of all streams that wait to be checked."""
    readers: int = 500
    """Deliver requests served at once."""


class BroadcastService:
    """Handler of orderer.AtomicBroadcast/Broadcast."""

    def __init__(
        self, chains: Mapping[str, Chain], threads: Executor, limits: ServiceLimits
    ) -> None:
        """`threads` checks signatures; `chains` are the node's channels."""
        self._chains = chains
        self._threads = threads
        self._limits = limits
        self._unchecked: deque[Submission] = deque()
        self._checking = False

    async def handle(self, _: object, context: ServerContext) -> None:
        """Serve one stream."""
        stream = _BroadcastStream(self._limits.stream_window)
        reader = asyncio.create_task(self._read(stream, context))
        try:
            await stream.answer(context)
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
                await reader

    async def _read(self, stream: _BroadcastStream, context: ServerContext) -> None:
        try:
            while (raw := await read(context)) is not None:
                submission = stream.add(raw)
                if len(self._unchecked) >= self._limits.checks_waiting:
                    submission.answer(
                        common_pb2.SERVICE_UNAVAILABLE,
                        f"{self._limits.checks_waiting} envelopes wait to be checked here, which"
                        " is the limit; send more slowly and try again in a second",
                    )
                    continue
                self._unchecked.append(submission)
                if not self._checking:
                    self._checking = True
                    # Not at once: what other streams have for us now is checked together.
                    asyncio.get_running_loop().call_soon(self._check_next)
                if stream.full:
                    await stream.room()
        finally:
            stream.end()

    def _check_next(self) -> None:
        """Check what has come in, in order: a little here, more of it in a thread."""
        count = min(len(self._unchecked), self._limits.check_batch)
        batch = [self._unchecked.popleft() for _ in range(count)]
        if count <= _INLINE_CHECKS:
            self._checked(batch, self._check(batch))
            return
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._check, batch)
        future.add_done_callback(lambda done: self._checked(batch, done.result()))

    def _checked(self, batch: Sequence[Submission], results: Sequence[_Checked]) -> None:
        for submission, result in zip(batch, results, strict=True):
            if isinstance(result, Refused):
                submission.answer(result.status, result.info)
                continue
            try:
                result[0].submit(submission, result[1])
            except Exception:
                # The next ones must not wait for ever because of this one.
                _LOGGER.exception("submitting an envelope of %d bytes", len(submission.raw))
                submission.answer(
                    common_pb2.INTERNAL_SERVER_ERROR, "the envelope was not ordered; see the log"
                )
        if self._unchecked:
            asyncio.get_running_loop().call_soon(self._check_next)
        else:
            self._checking = False

    def _check(self, batch: Sequence[Submission]) -> Sequence[_Checked]:
        """In a worker thread, or on the loop when there are few."""
        return [self._check_one(submission.raw) for submission in batch]

    def _check_one(self, raw: bytes) -> _Checked:
        try:
            envelope = opened(raw)
            chain = self._chains.get(envelope.channel_header.channel_id)
            if chain is None:
                raise unknown_channel(envelope)
            return chain, chain.admit(envelope)
        except Refused as refused:
            return refused
        except Exception:
            # One strange envelope must not stop the checking of everybody else's.
            _LOGGER.exception("checking an envelope of %d bytes", len(raw))
            return Refused(
                common_pb2.INTERNAL_SERVER_ERROR, "the envelope could not be checked; see the log"
            )


type _Checked = tuple[Chain, Admitted] | Refused


def unknown_channel(envelope: OpenedEnvelope) -> Refused:
    """The refusal for a channel that this orderer does not serve."""
    name = envelope.channel_header.channel_id[:250]
    return Refused(
        common_pb2.NOT_FOUND, f"channel {name!r} is not served by this orderer; check its name"
    )


class _BroadcastStream:
    """The envelopes of one stream that are not answered yet, oldest first."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._submissions: deque[Submission] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False

    def add(self, raw: bytes) -> Submission:
        submission = Submission(raw, self._changed.set)
        self._submissions.append(submission)
        return submission

    @property
    def full(self) -> bool:
        return len(self._submissions) >= self._window

    async def room(self) -> None:
        """Return when there is room in the window again."""
        while self.full:
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        """The client sends no more."""
        self._ended = True
        self._changed.set()

    async def answer(self, context: ServerContext) -> None:
        """Send the answers until the stream has ended or one is not SUCCESS."""
        waiting = self._submissions
        while True:
            while waiting and (status := waiting[0].status) is not None:
                submission = waiting.popleft()
                self._room.set()
                if status == common_pb2.SUCCESS:
                    await context.write(_SUCCESS)
                    continue
                response = orderer_pb2.BroadcastResponse(
                    status=common_pb2.Status.Name(status), info=submission.info
                )
                await context.write(response.SerializeToString())
                return
            if self._ended and not waiting:
                return
            self._changed.clear()
            if not waiting or waiting[0].status is None:
                await self._changed.wait()


class DeliverService:
    """Handler of orderer.AtomicBroadcast/Deliver; Fabric's `common/deliver` semantics."""

    def __init__(
        self, chains: Mapping[str, Chain], threads: Executor, limits: ServiceLimits
    ) -> None:
        """`threads` reads older blocks from the disk."""
        self._chains = chains
        self._threads = threads
        self._limits = limits
        self._readers = 0

    async def handle(self, _: object, context: ServerContext) -> None:
        """Serve one stream: requests one after another until one ends other than in SUCCESS."""
        if self._readers >= self._limits.readers:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._readers} readers are connected, which is this orderer's limit; use"
                " another orderer",
            )
        self._readers += 1
        try:
            while (raw := await read(context)) is not None:
                try:
                    await self._serve(raw, context)
                    status: int = common_pb2.SUCCESS
                except Refused as refused:
                    _LOGGER.info("a Deliver request was refused: %s", refused.info)
                    status = refused.status
                response = orderer_pb2.DeliverResponse(status=common_pb2.Status.Name(status))
                await context.write(response.SerializeToString())
                if status != common_pb2.SUCCESS:
                    return
        finally:
            self._readers -= 1

    async def _serve(self, raw: bytes, context: ServerContext) -> None:
        """Send the blocks of one request; raises Refused."""
        envelope = opened(raw)
        check_timestamp(envelope, time.time())
        chain = self._chains.get(envelope.channel_header.channel_id)
        if chain is None:
            raise unknown_channel(envelope)
        try:
            seek = parse(orderer_pb2.SeekInfo, envelope.payload.data, "the seek request")
        except WireError as error:
            raise Refused(common_pb2.BAD_REQUEST, str(error)) from None
        strict = seek.error_response == orderer_pb2.SeekInfo.STRICT
        self._check_available(chain, strict)
        admission = chain.admission
        admission.check_reader(envelope)
        number, stop = seek_range(seek, chain.height)
        headers_only = seek.content_type == orderer_pb2.SeekInfo.HEADER_WITH_SIG
        while True:
            while number >= chain.height:
                if seek.behavior == orderer_pb2.SeekInfo.FAIL_IF_NOT_READY:
                    raise Refused(
                        common_pb2.NOT_FOUND,
                        f"block {number} is not there yet; the height is {chain.height}",
                    )
                await chain.grown(number)
                self._check_available(chain, strict)
            block = chain.cached_block(number)
            if block is None:
                block = await asyncio.get_running_loop().run_in_executor(
                    self._threads, chain.block, number
                )
            if chain.admission is not admission:
                # The configuration has changed: may this reader still read?
                admission = chain.admission
                admission.check_reader(envelope)
            await context.write(framed(headers_with_signatures(block) if headers_only else block))
            if number == stop:
                return
            number += 1

    @staticmethod
    def _check_available(chain: Chain, strict: bool) -> None:
        if strict and not chain.available:
            raise Refused(
                common_pb2.SERVICE_UNAVAILABLE,
                f"this orderer is cut off from the others of channel {chain.channel_id}; use"
                " another one",
            )


def seek_range(seek: orderer_pb2.SeekInfo, height: int) -> tuple[int, int]:
    """First and last block of a request, both included; raises Refused (BAD_REQUEST)."""
    start, stop = seek.start.WhichOneof("Type"), seek.stop.WhichOneof("Type")
    if start is None or stop is None:
        raise Refused(common_pb2.BAD_REQUEST, "the seek request needs a start and a stop")
    positions: dict[str, Callable[[orderer_pb2.SeekPosition], int]] = {
        "oldest": lambda _: 0,
        "newest": lambda _: height - 1,
        "next_commit": lambda _: height,
        "specified": lambda position: position.specified.number,
    }
    first = positions[start](seek.start)
    if stop == "oldest":
        last = first
    elif stop == "next_commit":
        last = MAX_BLOCK  # Fabric knows it as a start only and then never stops
    else:
        last = positions[stop](seek.stop)
    if last < first:
        if stop == "newest":
            last = first
        else:
            raise Refused(
                common_pb2.BAD_REQUEST, f"the start, {first}, is greater than the stop, {last}"
            )
    return first, last


def framed(block: bytes) -> bytes:
    """A DeliverResponse with this block, without parsing it (field 2, length-delimited)."""
    length = len(block)
    prefix = bytearray(b"\x12")
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + block


def headers_with_signatures(raw: bytes) -> bytes:
    """A block without its data, for who only wants to know that it exists; config blocks whole."""
    block = common_pb2.Block.FromString(raw)
    if len(block.data.data) == 1:
        with contextlib.suppress(WireError):
            if header_type(block.data.data[0]) == common_pb2.CONFIG:
                return raw
    return common_pb2.Block(header=block.header, metadata=block.metadata).SerializeToString()
