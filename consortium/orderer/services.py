"""orderer.AtomicBroadcast: taking envelopes (Broadcast) and handing out blocks (Deliver).

Our own gateways send envelopes in batches (BroadcastBatches), which is the same but for the frames.

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

from consortium.wire import common_pb2, gridledger_pb2, orderer_pb2, services
from consortium.wire.envelopes import OpenedEnvelope, WireError, field_prefix, parse

from .admission import Admitted, Refused, check_timestamp, opened
from .blockwriter import header_type
from .chain import Chain
from .follower import Follower
from .pending import Submission
from .streams import read

_LOGGER = logging.getLogger(__name__)

MAX_BLOCK = 2**64 - 1
_SUCCEEDED = orderer_pb2.BroadcastResponse(status=common_pb2.SUCCESS)
_SUCCESS = _SUCCEEDED.SerializeToString()
_INLINE_CHECKS = 8
"""So few envelopes are checked on the loop, in less than a millisecond: a thread costs more.

Gathering more of them for a thread was tried: it takes 65 µs for each envelope off the loop, but
where the machine is busy every batch waits for the thread's turn, and a third fewer were ordered.
"""

type _Responses = Sequence[orderer_pb2.BroadcastResponse]
type ServerContext = grpc.aio.ServicerContext[bytes, bytes]


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Bounds of the client-facing services."""

    stream_window: int = 4_096
    """Envelopes of one Broadcast stream on their way; past it the stream is not read."""
    stream_window_bytes: int = 32 * 1024 * 1024
    check_batch: int = 64
    """Envelopes checked together in a worker thread."""
    checks_waiting: int = 16_384
    """Envelopes of all streams that wait to be checked; further ones are refused."""
    taken_bytes: int = 512 * 1024 * 1024
    """Envelopes of all streams and channels on their way; further ones are refused."""
    readers: int = 500
    """Deliver requests served at once."""
    writers: int = 2_000
    """Broadcast streams open at once; a gateway needs one for each channel."""


@dataclass(frozen=True, slots=True)
class _Framing:
    """How envelopes and answers stand in the messages of a stream."""

    envelopes: Callable[[bytes], Sequence[bytes]]
    """Those of a message; raises WireError."""
    message: Callable[[_Responses], bytes]
    answers: int
    """How many a message holds, at most."""


def _one_answer(responses: _Responses) -> bytes:
    (response,) = responses
    return _SUCCESS if response is _SUCCEEDED else response.SerializeToString()


def _batch(raw: bytes) -> Sequence[bytes]:
    envelopes = parse(gridledger_pb2.EnvelopeBatch, raw, "the batch").envelopes
    if len(envelopes) > services.BROADCAST_BATCH:
        raise WireError(
            f"the batch has {len(envelopes)} envelopes and the limit is"
            f" {services.BROADCAST_BATCH}; send several"
        )
    return envelopes


def _answers(responses: _Responses) -> bytes:
    return gridledger_pb2.BroadcastAnswers(answers=responses).SerializeToString()


_SINGLY = _Framing(lambda raw: (raw,), _one_answer, 1)
_IN_BATCHES = _Framing(_batch, _answers, services.BROADCAST_BATCH)


class BroadcastService:
    """Handler of orderer.AtomicBroadcast/Broadcast, and of the same with many in a message."""

    def __init__(
        self, chains: Mapping[str, Chain | Follower], threads: Executor, limits: ServiceLimits
    ) -> None:
        """`threads` checks signatures; `chains` are the node's channels."""
        self._chains = chains
        self._threads = threads
        self._limits = limits
        # Streams with envelopes to be checked, which get their turn one after another.
        self._streams: deque[_BroadcastStream] = deque()
        self._unchecked = 0
        self._taken_bytes = 0
        self._checking = False
        self._open = 0

    async def handle(self, _: object, context: ServerContext) -> None:
        """Serve one stream, an envelope in each message."""
        await self._handle(_SINGLY, context)

    async def handle_batches(self, _: object, context: ServerContext) -> None:
        """Serve one stream, an EnvelopeBatch in each message."""
        await context.send_initial_metadata((services.BATCHES_TAKEN,))
        await self._handle(_IN_BATCHES, context)

    async def _handle(self, framing: _Framing, context: ServerContext) -> None:
        if self._open >= self._limits.writers:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._open} streams of envelopes are open, which is this orderer's limit; use"
                " another orderer, or one stream for many envelopes",
            )
        self._open += 1
        try:
            await self._serve(framing, context)
        finally:
            self._open -= 1

    async def _serve(self, framing: _Framing, context: ServerContext) -> None:
        stream = _BroadcastStream(framing, self._limits, self._give_back)
        reader = asyncio.create_task(self._read(stream, context))
        try:
            await stream.answer(context)
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
                await reader
            self._forget(stream)

    def _give_back(self, size_bytes: int) -> None:
        self._taken_bytes -= size_bytes

    def _forget(self, stream: _BroadcastStream) -> None:
        """Its client is gone: what has not been checked is not ordered."""
        self._give_back(stream.bytes)
        self._unchecked -= len(stream.unchecked)
        if stream.unchecked:
            self._streams.remove(stream)
            stream.unchecked.clear()

    def _no_room(self) -> str | None:
        limits = self._limits
        if self._unchecked >= limits.checks_waiting:
            return (
                f"{limits.checks_waiting} envelopes wait to be checked here, which is the limit;"
                " send more slowly and try again in a second"
            )
        if self._taken_bytes >= limits.taken_bytes:
            return (
                f"envelopes of {self._taken_bytes} bytes are on their way here, and the limit is"
                f" {limits.taken_bytes}; send more slowly and try again in a second"
            )
        return None

    async def _read(self, stream: _BroadcastStream, context: ServerContext) -> None:
        try:
            while (raw := await read(context)) is not None:
                try:
                    envelopes = stream.framing.envelopes(raw)
                except WireError as error:
                    stream.add(b"").answer(common_pb2.BAD_REQUEST, str(error))
                    return
                for envelope in envelopes:
                    if not self._take(stream, envelope):
                        return
                if stream.full:
                    await stream.room()
        finally:
            stream.end()

    def _take(self, stream: _BroadcastStream, raw: bytes) -> bool:
        """Let an envelope wait to be checked; False if it has got the last answer of its stream."""
        problem = self._no_room()
        submission = stream.add(raw)
        self._taken_bytes += len(raw)
        if problem is not None:
            submission.answer(common_pb2.SERVICE_UNAVAILABLE, problem)
            return False
        if not stream.unchecked:
            self._streams.append(stream)
        stream.unchecked.append(submission)
        self._unchecked += 1
        if not self._checking:
            self._checking = True
            # Not at once: what other streams have for us now is checked together.
            asyncio.get_running_loop().call_soon(self._check_next)
        return True

    def _check_next(self) -> None:
        """Check what has come in, of each stream in turn: a little here, more in a thread."""
        count = min(self._unchecked, self._limits.check_batch)
        if not count:
            self._checking = False
            return
        batch = []
        for _ in range(count):
            stream = self._streams.popleft()
            batch.append(stream.unchecked.popleft())
            if stream.unchecked:
                self._streams.append(stream)
        self._unchecked -= count
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


type _Checked = tuple[Chain | Follower, Admitted] | Refused


def unknown_channel(envelope: OpenedEnvelope) -> Refused:
    """The refusal for a channel that this orderer does not serve."""
    name = envelope.channel_header.channel_id[:250]
    return Refused(
        common_pb2.NOT_FOUND, f"channel {name!r} is not served by this orderer; check its name"
    )


class _BroadcastStream:
    """The envelopes of one stream that are not answered yet, oldest first."""

    def __init__(
        self, framing: _Framing, limits: ServiceLimits, give_back: Callable[[int], None]
    ) -> None:
        self.framing = framing
        self._limits = limits
        self._give_back = give_back
        self.unchecked: deque[Submission] = deque()
        self.bytes = 0
        """Of the envelopes that are not answered."""
        self._submissions: deque[Submission] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False

    def add(self, raw: bytes) -> Submission:
        submission = Submission(raw, self._changed.set)
        self._submissions.append(submission)
        self.bytes += len(raw)
        return submission

    @property
    def full(self) -> bool:
        limits = self._limits
        return (
            len(self._submissions) >= limits.stream_window
            or self.bytes >= limits.stream_window_bytes
        )

    async def room(self) -> None:
        """Return when there is room in the window again."""
        while self.full:
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        """The client sends no more."""
        self._ended = True
        self._changed.set()

    def _responses(self) -> _Responses:
        """To the oldest envelopes, up to the first that is not settled or did not succeed."""
        waiting = self._submissions
        responses: list[orderer_pb2.BroadcastResponse] = []
        while waiting and len(responses) < self.framing.answers:
            status = waiting[0].status
            if status is None:
                break
            submission = waiting.popleft()
            self.bytes -= len(submission.raw)
            self._give_back(len(submission.raw))
            self._room.set()
            if status != common_pb2.SUCCESS:
                responses.append(
                    orderer_pb2.BroadcastResponse(
                        status=common_pb2.Status.Name(status), info=submission.info
                    )
                )
                break
            responses.append(_SUCCEEDED)
        return responses

    async def answer(self, context: ServerContext) -> None:
        """Send the answers until the stream has ended or one is not SUCCESS."""
        waiting = self._submissions
        while True:
            responses = self._responses()
            if responses:
                await context.write(self.framing.message(responses))
                if responses[-1] is not _SUCCEEDED:
                    return
                continue
            if self._ended and not waiting:
                return
            self._changed.clear()
            if not waiting or waiting[0].status is None:
                await self._changed.wait()


class DeliverService:
    """Handler of orderer.AtomicBroadcast/Deliver; Fabric's `common/deliver` semantics."""

    def __init__(
        self, chains: Mapping[str, Chain | Follower], threads: Executor, limits: ServiceLimits
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
                    # Followers ask again and again for what comes next.
                    usual = refused.status == common_pb2.NOT_FOUND
                    level = logging.DEBUG if usual else logging.INFO
                    _LOGGER.log(level, "a Deliver request was refused: %s", refused.info)
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
    def _check_available(chain: Chain | Follower, strict: bool) -> None:
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
    return field_prefix(2, len(block)) + block


def headers_with_signatures(raw: bytes) -> bytes:
    """A block without its data, for who only wants to know that it exists; config blocks whole."""
    block = common_pb2.Block.FromString(raw)
    if len(block.data.data) == 1:
        with contextlib.suppress(WireError):
            if header_type(block.data.data[0]) == common_pb2.CONFIG:
                return raw
    return common_pb2.Block(header=block.header, metadata=block.metadata).SerializeToString()
