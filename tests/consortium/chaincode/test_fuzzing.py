"""Chaincode streams under spoiled messages, both ways, and worker processes that send rubbish.

A seed makes the inputs the same in each run. Whatever arrives, a transaction ends with a response
or an error within its deadline, nothing is left unhandled in a log, memory stays bounded, and the
next honest transaction works over the same executor, or the same server.
"""

import asyncio
import contextlib
import gc
import itertools
import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
import pytest_asyncio

from consortium.chaincode import remote, serve, worker
from consortium.chaincode.api import Chaincode, Context, Contract, query, transaction
from consortium.chaincode.executor import (
    EXECUTION_DEADLINE_S,
    MAX_EVENT_BYTES,
    MAX_RESULT_BYTES,
    ExecutionError,
    Executor,
    Invocation,
)
from consortium.chaincode.remote import Connection, RemoteChaincode
from consortium.chaincode.requests import ChaincodeMessage, Requests, offer
from consortium.chaincode.serve import ChaincodeServer
from consortium.chaincode.simulator import LimitError, TransactionSimulator
from consortium.chaincode.worker import (
    LENGTH,
    ContractCode,
    WorkerError,
    WorkerExecutor,
    WorkerSettings,
    check_code,
)
from consortium.ledger.history import KeyModification
from consortium.ledger.state import Version, VersionedValue
from consortium.wire import peer_pb2, services
from tests.consortium.chaincode.memory_state import MemoryState
from tests.consortium.chaincode.proposals import CHANNEL, Member, invocation
from tests.fuzz.messages import Words
from tests.fuzz.mutation import mutated
from tests.fuzz.runner import drawn

type Message = peer_pb2.ChaincodeMessage
type Kind = peer_pb2.ChaincodeMessage.Type

SEED = 20261121
LANES = 6
"""Streams that are fuzzed side by side."""
MUTATIONS, INVENTIONS = 5, 2
"""On each lane."""
DEADLINE_S = 0.2
SLACK_S = 30.0
"""What a busy machine may add to a deadline."""
PATIENCE_S = 60.0
"""For an honest transaction on a busy machine."""
MEMORY_GROWTH = 150 * 1024 * 1024
MEMBER = Member("ann")
REGISTER = ChaincodeMessage(
    type=ChaincodeMessage.REGISTER, payload=peer_pb2.ChaincodeID(name="cc:1").SerializeToString()
)


def memory() -> int:
    """This process's resident bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest_asyncio.fixture(autouse=True)
async def nothing_unhandled(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """No exception that nobody caught, in the loop or in a log, and no memory that stays."""
    loop = asyncio.get_running_loop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    caplog.set_level(logging.WARNING)
    before = memory()
    yield
    await asyncio.sleep(0)
    gc.collect()  # an exception that was never retrieved is reported when its task goes
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert not unhandled, unhandled
    ours = "consortium."
    bad = [
        one
        for one in caplog.records
        if one.exc_info or (one.levelno >= logging.ERROR and not one.name.startswith(ours))
    ]
    assert not bad, [one.getMessage() for one in bad]
    assert all(len(one.getMessage()) < 4_000 for one in caplog.records)
    assert memory() - before < MEMORY_GROWTH


def simulator() -> TransactionSimulator:
    """Over a state with something in every kind of place."""
    state = MemoryState()
    for index in range(150):
        state.public["cc", f"k{index:03d}"] = VersionedValue(b"v", b"", Version(1, index))
    state.private["cc", "secrets", "p"] = VersionedValue(b"v", b"", Version(1, 0))
    return TransactionSimulator(state, CHANNEL, history=history)


def history(_namespace: str, key: str, limit: int) -> list[KeyModification]:
    found = [KeyModification(f"tx{at}", at, 0, b"v", False, 10**18) for at in range(120, 0, -1)]
    return found[:limit] if key else []


def message(
    call: Invocation, kind: Kind, content: Any = b"", **other: Any
) -> peer_pb2.ChaincodeMessage:
    return ChaincodeMessage(
        type=kind,
        payload=content if isinstance(content, bytes) else content.SerializeToString(),
        **{"txid": call.transaction_id, "channel_id": call.channel_id, **other},
    )


def completed(call: Invocation, payload: bytes = b"done", **other: Any) -> Message:
    response = peer_pb2.Response(status=200, payload=payload)
    return message(call, ChaincodeMessage.COMPLETED, response, **other)


def honest_requests(call: Invocation) -> list[Message]:
    """One of each that a chaincode can ask for, and its end."""
    kind, record = ChaincodeMessage, peer_pb2.WriteRecord
    entry = peer_pb2.StateMetadata(metakey="VALIDATION_PARAMETER", value=b"p")
    spec = peer_pb2.ChaincodeSpec(
        chaincode_id=peer_pb2.ChaincodeID(name="other/elsewhere"),
        input=peer_pb2.ChaincodeInput(args=[b"f", b"a"]),
    )
    page = peer_pb2.QueryMetadata(pageSize=3, bookmark="k001").SerializeToString()
    asked: list[tuple[Kind, Any]] = [
        (kind.GET_STATE, peer_pb2.GetState(key="k001")),
        (kind.GET_STATE, peer_pb2.GetState(key="p", collection="secrets")),
        (kind.GET_PRIVATE_DATA_HASH, peer_pb2.GetState(key="p", collection="secrets")),
        (kind.GET_STATE_MULTIPLE, peer_pb2.GetStateMultiple(keys=["k001", "none"])),
        (kind.GET_STATE_METADATA, peer_pb2.GetStateMetadata(key="k001")),
        (kind.GET_STATE_BY_RANGE, peer_pb2.GetStateByRange(startKey="k", endKey="l")),
        (kind.QUERY_STATE_NEXT, peer_pb2.QueryStateNext(id="1")),
        (kind.GET_HISTORY_FOR_KEY, peer_pb2.GetHistoryForKey(key="k001")),
        (kind.QUERY_STATE_CLOSE, peer_pb2.QueryStateClose(id="2")),
        (kind.GET_QUERY_RESULT, peer_pb2.GetQueryResult(query='{"selector":{}}')),
        (kind.INVOKE_CHAINCODE, spec),
        (kind.PUT_STATE, peer_pb2.PutState(key="a", value=b"1")),
        (kind.DEL_STATE, peer_pb2.DelState(key="a")),
        (kind.PURGE_PRIVATE_DATA, peer_pb2.PurgePrivateState(key="p", collection="secrets")),
        (kind.PUT_STATE_METADATA, peer_pb2.PutStateMetadata(key="a", metadata=entry)),
        (
            kind.WRITE_BATCH_STATE,
            peer_pb2.WriteBatchState(
                rec=[
                    record(type=record.PUT_STATE, key="b", value=b"2"),
                    record(type=record.PUT_STATE_METADATA, key="b", metadata=entry),
                ]
            ),
        ),
        (kind.GET_STATE_BY_RANGE, peer_pb2.GetStateByRange(startKey="k", metadata=page)),
    ]
    event = peer_pb2.ChaincodeEvent(event_name="e", payload=b"p")
    return [
        *(message(call, one, content) for one, content in asked),
        completed(call, chaincode_event=event),
    ]


# -- a chaincode server that our peer dials ----------------------------------------------------


class Play:
    """What a chaincode server sends; this one is honest.

    Each of the peer's messages is answered with the next of what there is.
    """

    name = "honest"
    hangs_up = False
    """At the next transaction."""
    fresh = False
    """Whether it begins with a new stream."""

    def opening(self) -> list[bytes]:
        """At once."""
        return [REGISTER.SerializeToString()]

    def ready(self) -> list[bytes]:
        """Once registered."""
        return []

    def requests(self, call: Invocation) -> Iterator[list[bytes]]:
        """One after another, as the peer answers."""
        for one in honest_requests(call):
            yield [one.SerializeToString()]


class Spoiled(Play):
    """The honest stream with one message spoiled, or with one that fits nowhere."""

    def __init__(self, chance: random.Random, inserted: bytes | None = None) -> None:
        self._chance = chance
        self._inserted = inserted
        self._place = chance.randrange(-2, 18)
        self.fresh = self._place < 0
        self.name = f"spoiled at {self._place}"

    def _spoil(self, raw: bytes, place: int) -> list[bytes]:
        if place != self._place:
            return [raw]
        return [mutated(raw, self._chance)] if self._inserted is None else [self._inserted, raw]

    def opening(self) -> list[bytes]:
        return self._spoil(REGISTER.SerializeToString(), -2)

    def ready(self) -> list[bytes]:
        return self._spoil(REGISTER.SerializeToString(), -1) if self._place == -1 else []

    def requests(self, call: Invocation) -> Iterator[list[bytes]]:
        for place, one in enumerate(honest_requests(call)):
            yield self._spoil(one.SerializeToString(), place)


class Fixed(Play):
    """Named messages in one phase."""

    def __init__(
        self,
        name: str,
        *,
        opening: list[bytes] | None = None,
        ready: list[bytes] | None = None,
        during: Callable[[Invocation], list[bytes]] | None = None,
        hangs_up: bool = False,
    ) -> None:
        self.name = name
        self._opening = opening
        self._ready = ready or []
        self._during = during
        self.hangs_up = hangs_up
        self.fresh = opening is not None or ready is not None

    def opening(self) -> list[bytes]:
        return super().opening() if self._opening is None else self._opening

    def ready(self) -> list[bytes]:
        return self._ready

    def requests(self, call: Invocation) -> Iterator[list[bytes]]:
        if self._during is not None:
            yield self._during(call)
        yield from super().requests(call)


def fixed_plays() -> list[Play]:
    """What mutation seldom comes upon."""
    kind = ChaincodeMessage
    invalid_name = REGISTER.SerializeToString().replace(b"cc:1", b"\xc3\x28:1")
    long_name = peer_pb2.ChaincodeID(name="n" * 1_000_000).SerializeToString()
    nobody = ChaincodeMessage(type=kind.GET_STATE, txid="nobody", channel_id="none")
    foreign = peer_pb2.ChaincodeEvent(event_name="e")
    foreign.MergeFromString(b"\xfa\x7f\x80\x80\x80\x01" + b"x" * 2_097_152)  # an unknown field

    def raw(*found: Message) -> list[bytes]:
        return [one.SerializeToString() for one in found]

    def of_kind(number: int) -> Callable[[Invocation], list[bytes]]:
        return lambda call: raw(message(call, number, b"\x0a\x01k"))  # type: ignore[arg-type]

    def renamed(call: Invocation, field: bytes) -> list[bytes]:
        """An id that is not UTF-8."""
        found = message(call, kind.GET_STATE).SerializeToString()
        return [found.replace(field, b"\xed\xa0\x80" + field[3:])]

    def get(call: Invocation, key: str = "k001", **other: Any) -> Message:
        return message(call, kind.GET_STATE, peer_pb2.GetState(key=key), **other)

    return [
        Fixed("nothing at first", opening=[b""]),
        Fixed("no message at first", opening=[b"\xff" * 100]),
        Fixed("completes before it registers", opening=raw(ChaincodeMessage(type=kind.COMPLETED))),
        Fixed("a name that is not UTF-8", opening=[invalid_name]),
        Fixed("a long name", opening=raw(ChaincodeMessage(type=kind.REGISTER, payload=long_name))),
        Fixed("never registers", opening=[]),
        Fixed("registers twice", ready=raw(REGISTER, REGISTER)),
        Fixed("asks for nobody", ready=raw(*[nobody] * 3000)),
        Fixed("ends nothing", ready=raw(*[ChaincodeMessage(type=kind.COMPLETED, txid="x")] * 3000)),
        *(Fixed(f"type {one}", during=of_kind(one)) for one in (-1, 0, 1, 2, 3, 24, 99, 2**31 - 1)),
        Fixed("txid not UTF-8", during=lambda call: renamed(call, call.transaction_id.encode())),
        Fixed("channel not UTF-8", during=lambda call: renamed(call, call.channel_id.encode())),
        Fixed("another's transaction", during=lambda call: raw(get(call, txid="another"))),
        Fixed("another channel", during=lambda call: raw(get(call, channel_id="another"))),
        Fixed("asks a hundred at once", during=lambda call: raw(*[get(call)] * 100)),
        Fixed("a key of 3 MB", during=lambda call: raw(get(call, "k" * 3_000_000))),
        Fixed("completes twice", during=lambda call: raw(completed(call), completed(call))),
        Fixed("asks after its end", during=lambda call: raw(completed(call), get(call))),
        Fixed("no response", during=lambda call: raw(message(call, kind.COMPLETED, b"\xff"))),
        Fixed("a long error", during=lambda call: raw(message(call, kind.ERROR, b"\xff" * 10**6))),
        Fixed(
            "an event of unknown fields",
            during=lambda call: raw(completed(call, chaincode_event=foreign)),
        ),
        Fixed(
            "keeps alive",
            during=lambda call: raw(*[message(call, kind.KEEPALIVE)] * 50),
        ),
    ]


class Lane:
    """A chaincode server that plays what it is told, and the executor that has dialled it."""

    def __init__(self) -> None:
        self.play: Play = Play()
        self.call: Invocation | None = None
        self.dialled: RemoteChaincode

    @classmethod
    @asynccontextmanager
    async def open(cls, deadline_s: float = DEADLINE_S) -> AsyncIterator[Lane]:
        lane = cls()
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(lane._connect)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("protos.Chaincode", {"Connect": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        lane.dialled = RemoteChaincode(
            "cc", Connection(f"127.0.0.1:{port}"), deadline_s=deadline_s, max_waiting=4
        )
        try:
            yield lane
        finally:
            await lane.dialled.close()
            await server.stop(0)

    async def _connect(
        self, requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        for raw in self.play.opening():
            yield raw
        running: Iterator[list[bytes]] = iter(())
        current = ""
        async for received in requests:
            asked = ChaincodeMessage.FromString(received)
            if asked.type == ChaincodeMessage.READY:
                for raw in self.play.ready():
                    yield raw
            elif asked.type == ChaincodeMessage.TRANSACTION:
                if self.play.hangs_up:
                    return
                assert self.call is not None
                current = asked.txid
                running = self.play.requests(self.call)
            if asked.txid == current:
                for raw in next(running, []):
                    yield raw

    async def invoke(self) -> peer_pb2.Response | ExecutionError:
        """One transaction; it ends within its deadline, with a response or an ExecutionError."""
        self.call = call = invocation(MEMBER, "cc", "f")
        began, recorded = time.monotonic(), simulator()
        outcome: peer_pb2.Response | ExecutionError
        try:
            outcome, event = await self.dialled.invoke(call, recorded)
        except ExecutionError as error:
            outcome = error
        else:
            assert outcome.ByteSize() < MAX_RESULT_BYTES + 10_000
            assert event is None or event.ByteSize() < MAX_EVENT_BYTES + 1_000
            if outcome.status == 200:
                with contextlib.suppress(LimitError):
                    recorded.results()
        assert isinstance(outcome, peer_pb2.Response) or 0 < len(str(outcome)) < 4_000
        assert time.monotonic() - began < DEADLINE_S + SLACK_S, self.play.name
        return outcome

    async def works(self) -> None:
        """An honest chaincode, over the same executor."""
        self.play = Play()
        began = time.monotonic()
        while True:
            found = await self.invoke()
            if isinstance(found, peer_pb2.Response) and found.status == 200:
                assert found.payload == b"done"
                return
            assert time.monotonic() - began < PATIENCE_S, found
            await asyncio.sleep(0.02)

    async def try_all(self, plays: list[Play]) -> list[str]:
        """One after another; how each ended."""
        found = []
        for play in plays:
            if play.fresh:
                self.play = Fixed("hangs up", hangs_up=True)
                await self.invoke()
            self.play = play
            outcome = await self.invoke()
            found.append(
                outcome.message if isinstance(outcome, peer_pb2.Response) else str(outcome)
            )
            await self.works()
        return found


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dials again soon, and does not wait long for who never registers."""
    for name, seconds in (
        ("REGISTER_TIMEOUT_S", 0.2),
        ("CONNECT_WAIT_S", 0.15),
        ("RETRY_FIRST_S", 0.01),
        ("RETRY_LONGEST_S", 0.05),
    ):
        monkeypatch.setattr(remote, name, seconds)


@pytest.mark.usefixtures("quickly")
async def test_a_hostile_chaincode_costs_its_own_transactions() -> None:
    fixed, words = fixed_plays(), known_words("x" * 64)
    async with AsyncExitStack() as stack:
        running = []
        for number in range(LANES):
            chance = random.Random(SEED + number)
            invented = drawn(ChaincodeMessage, words, SEED + number, INVENTIONS)
            plays = [
                *(Spoiled(chance) for _ in range(MUTATIONS)),
                *(Spoiled(chance, raw) for raw in invented),
                *fixed[number::LANES],
            ]
            lane = await stack.enter_async_context(Lane.open())
            running.append(lane.try_all(plays))
        outcomes = [said for found in await asyncio.gather(*running) for said in found]
    # They got as far as each of these.
    for said in (
        "its first message is not REGISTER",
        "is not a valid protos.ChaincodeMessage",
        "cannot be reached: ",
        "did not finish within",
        "asked again before it had been answered",
        "the chaincode's response is not a valid",
        "transaction returned with failure",
    ):
        assert any(said in one for one in outcomes), said
    assert outcomes.count("") > 10


@pytest.mark.usefixtures("quickly")
async def test_answers_that_nobody_reads_are_not_kept() -> None:
    """Requests of transactions that are none, with ids of a megabyte, without end."""
    request = ChaincodeMessage(type=ChaincodeMessage.GET_STATE, txid="t" * 1_000_000)
    before = memory()
    async with Lane.open() as lane:
        await lane.try_all([Fixed("endless", ready=[request.SerializeToString()] * 300)])
        assert memory() - before < MEMORY_GROWTH


@pytest.mark.usefixtures("quickly")
async def test_a_message_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = (("grpc.max_receive_message_length", 100_000),)
    monkeypatch.setattr(services, "NODE_CHANNEL_OPTIONS", limits)
    async with Lane.open() as lane:
        huge = Fixed(
            "huge", during=lambda call: [completed(call, b"x" * 200_000).SerializeToString()]
        )
        (said,) = await lane.try_all([huge])
    assert "went away during this transaction" in said
    assert "larger than max" in said


async def asked_without_end(kind: Kind, content: Callable[[int], Any]) -> str:
    """The first refusal."""
    requests = Requests(invocation(MEMBER, "cc", "f"), simulator())
    for index in range(500):
        payload = content(index).SerializeToString()
        answer = await requests.answer(ChaincodeMessage(type=kind, payload=payload))
        if answer.type == ChaincodeMessage.ERROR:
            return answer.payload.decode()
    raise AssertionError("all were answered")


@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        (
            ChaincodeMessage.GET_STATE,
            lambda index: peer_pb2.GetState(key=f"{index}" + "k" * 1_000_000),
            "the keys that the transaction reads have 6",
        ),
        (
            ChaincodeMessage.GET_STATE_BY_RANGE,
            lambda index: peer_pb2.GetStateByRange(startKey=f"x{index}" + "k" * 1_000_000),
            "the keys that the transaction reads have 6",
        ),
        (
            ChaincodeMessage.PUT_STATE_METADATA,
            lambda index: peer_pb2.PutStateMetadata(
                key=f"{index}", metadata=peer_pb2.StateMetadata(metakey="m", value=b"m" * 1_000_000)
            ),
            "the transaction writes 1",
        ),
        (
            ChaincodeMessage.QUERY_STATE_NEXT,
            lambda index: peer_pb2.QueryStateNext(id="q" * 1_000_000),
            "there is no open query 'qqq",
        ),
    ],
)
async def test_what_one_transaction_asks_for_is_bounded(
    kind: Kind, content: Callable[[int], Any], problem: str
) -> None:
    said = await asked_without_end(kind, content)
    assert problem in said
    assert len(said) < 4_500


async def test_many_large_values_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consortium.chaincode.requests.MAX_MESSAGE_BYTES", 50)
    said = await asked_without_end(
        ChaincodeMessage.GET_STATE_MULTIPLE,
        lambda _: peer_pb2.GetStateMultiple(keys=["k001"] * 51),
    )
    assert "the values have more than 50 bytes; ask for fewer at once" in said


# -- a peer that dials our server ---------------------------------------------------------------


GATE = threading.Event()


class Demo(Contract):
    """Asks for all that its context has."""

    name: ClassVar[str] = "demo"

    @transaction
    def all(self, context: Context) -> object:
        found = [context.get_state("k001"), context.get_private_hash("secrets", "p")]
        found.append(context.get_private("secrets", "p"))
        count = len(list(context.range("k", "l")))
        context.put_state("a", b"1")
        context.del_state("b")
        context.put_private("secrets", "q", b"1")
        context.set_event("e", b"p")
        return [count, len([one for one in found if one])]

    @query
    def big(self, context: Context) -> object:
        return "x" * 500_000

    @query
    def gated(self, context: Context) -> object:
        """Goes on when the test says so."""
        GATE.wait(PATIENCE_S)
        return (context.get_state("k001") or b"").decode()


def known_words(transaction_id: str) -> Words:
    """The transaction that runs, and every kind of message."""
    prefix = "protos.ChaincodeMessage."
    return Words(
        by_field={
            f"{prefix}txid": (transaction_id, transaction_id, "another"),
            f"{prefix}channel_id": (CHANNEL,),
            f"{prefix}type": (*ChaincodeMessage.Type.values(), 99),
        }
    )


@asynccontextmanager
async def served(threads: int = serve.THREADS) -> AsyncIterator[tuple[grpc.aio.Channel, Executor]]:
    """Our server; a channel for a hostile peer, and an honest one that stays."""
    # Rows read from `cc`, whose state has something in it.
    server = ChaincodeServer(Chaincode("cc", (Demo(),)), "cc:1", "127.0.0.1:0", threads=threads)
    port = await server.start()
    honest = RemoteChaincode("cc", Connection(f"127.0.0.1:{port}"))
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=services.NODE_CHANNEL_OPTIONS
    ) as channel:
        try:
            yield channel, honest
            await serves(honest)
        finally:
            await honest.close()
            await server.stop()


async def serves(honest: Executor) -> None:
    """An honest peer's transaction."""
    async with asyncio.timeout(PATIENCE_S):
        response, event = await honest.invoke(invocation(MEMBER, "cc", "demo:All"), simulator())
    assert (response.status, json.loads(response.payload)) == (200, ["150", "2"])
    assert event is not None


type Spoil = Callable[[int, bytes], list[bytes]]


async def converse(
    channel: grpc.aio.Channel, call: Invocation, spoil: Spoil
) -> tuple[str, list[Message]]:
    """One transaction as a peer runs it, spoiled; the stream's status, and what was said."""
    stream = channel.stream_stream(services.CHAINCODE_CONNECT)()
    requests, count = Requests(call, simulator()), itertools.count()
    said: list[Message] = []

    async def send(one: Message) -> None:
        for raw in spoil(next(count), one.SerializeToString()):
            await stream.write(raw)

    try:
        async with asyncio.timeout(DEADLINE_S):
            await stream.read()
            await send(ChaincodeMessage(type=ChaincodeMessage.REGISTERED))
            await send(message(call, ChaincodeMessage.READY, offer(), txid="", channel_id=""))
            await send(requests.opening())
            while isinstance(raw := await stream.read(), bytes):
                asked = ChaincodeMessage.FromString(raw)
                said.append(asked)
                if asked.type in (ChaincodeMessage.COMPLETED, ChaincodeMessage.ERROR):
                    return "ended", said
                await send(await requests.answer(asked))
            return status(await stream.code(), await stream.details() or ""), said
    except TimeoutError:
        return "waits", said
    except grpc.aio.AioRpcError as error:
        return status(error.code(), error.details() or ""), said
    except asyncio.InvalidStateError:
        return status(await stream.code(), await stream.details() or ""), said
    finally:
        stream.cancel()


def status(code: grpc.StatusCode, said: str) -> str:
    """A server's own status; gRPC's client has one for a write to a stream that has just ended."""
    assert len(said) < 4_000
    assert said or code is grpc.StatusCode.OK
    if code is grpc.StatusCode.INTERNAL:
        assert said == "Internal error from Core", said
        return "OK"
    return code.name


async def test_a_hostile_peer_costs_its_own_stream() -> None:
    async with served() as (channel, honest):

        async def lane(number: int) -> list[str]:
            chance = random.Random(SEED + number)
            call = invocation(MEMBER, "cc", "demo:All")
            invented = iter(invented_by_lane[number])
            found = []
            for index in range(2 * (MUTATIONS + INVENTIONS)):
                place = chance.randrange(9)
                inserted = next(invented, None) if index % 3 == 0 else None

                def spoil(
                    at: int, raw: bytes, place: int = place, inserted: bytes | None = inserted
                ) -> list[bytes]:
                    if at != place:
                        return [raw]
                    return [mutated(raw, chance)] if inserted is None else [inserted, raw]

                how, said = await converse(channel, call, spoil)
                assert how in ("ended", "waits", "OK", "INVALID_ARGUMENT"), how
                for one in said:
                    assert one.ByteSize() < 200_000
                found.append(how)
                if said and said[-1].type == ChaincodeMessage.COMPLETED:
                    response = peer_pb2.Response.FromString(said[-1].payload)
                    found.append(response.message or str(response.status))
            return found

        words = known_words(invocation(MEMBER, "cc", "demo:All").transaction_id)
        invented_by_lane = [
            drawn(ChaincodeMessage, words, SEED + number, INVENTIONS) for number in range(LANES)
        ]
        found = await asyncio.gather(*map(lane, range(LANES)))
        await serves(honest)
    outcomes = {one for each in found for one in each}
    assert {"ended", "waits", "INVALID_ARGUMENT", "200"} <= outcomes
    assert any("the peer's answer is not a valid" in one for one in outcomes)


async def opened(channel: grpc.aio.Channel) -> grpc.aio.StreamStreamCall[bytes, bytes]:
    """A stream on which the chaincode has registered."""
    stream = channel.stream_stream(services.CHAINCODE_CONNECT)()
    assert ChaincodeMessage.FromString(await stream.read()).type == ChaincodeMessage.REGISTER
    return stream


async def read_all(stream: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while isinstance(await stream.read(), bytes):
            pass


def transactions(function: str, count: int) -> list[tuple[Invocation, bytes]]:
    calls = [invocation(MEMBER, "cc", function) for _ in range(count)]
    return [(call, Requests(call, simulator()).opening().SerializeToString()) for call in calls]


@pytest.mark.parametrize(("name", "limit"), [("MAX_OUTGOING", 20), ("MAX_OUTGOING_BYTES", 10**7)])
async def test_a_peer_that_does_not_read_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    monkeypatch.setattr(serve, name, limit)
    async with served() as (channel, honest):
        stream = await opened(channel)
        for _, raw in transactions("demo:Big", 100):
            await stream.write(raw)
        await serves(honest)
        await asyncio.sleep(0.2)
        with pytest.raises(grpc.aio.AioRpcError, match="wait for this peer to read") as ended:
            await read_all(stream)
        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_silent_peer_keeps_no_other_from_being_served() -> None:
    """As many transactions as there are threads ask it something, and it says nothing."""
    async with served() as (channel, honest):
        silent = [await opened(channel) for _ in range(3)]
        for stream in silent:
            for _, raw in transactions("demo:All", 2 * serve.THREADS):
                await stream.write(raw)
            for _ in range(serve.THREADS):
                assert await stream.read()  # each thread's question
        began = time.monotonic()
        await serves(honest)
        assert time.monotonic() - began < EXECUTION_DEADLINE_S / 2
        for stream in silent:
            stream.cancel()
        # Who hangs up leaves no thread behind.
        async with asyncio.timeout(PATIENCE_S):
            while sum(one.name.startswith("contract") for one in threading.enumerate()) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_answers_that_were_not_asked_for_are_not_taken() -> None:
    """They neither fill the memory nor answer what is asked later."""
    before = memory()
    GATE.clear()
    async with served() as (channel, _):
        stream = await opened(channel)
        ((call, raw),) = transactions("demo:Gated", 1)
        planted = message(call, ChaincodeMessage.RESPONSE, b"x" * 1_000_000).SerializeToString()
        await stream.write(raw)
        for _ in range(200):
            await stream.write(planted)
        # All of them have been looked at once this one is answered.
        ((_, marker),) = transactions("demo:Big", 1)
        await stream.write(marker)
        assert ChaincodeMessage.FromString(await stream.read()).type == ChaincodeMessage.COMPLETED
        GATE.set()
        assert memory() - before < MEMORY_GROWTH
        assert ChaincodeMessage.FromString(await stream.read()).type == ChaincodeMessage.GET_STATE
        await stream.write(message(call, ChaincodeMessage.RESPONSE, b"true").SerializeToString())
        ended = ChaincodeMessage.FromString(await stream.read())
        assert peer_pb2.Response.FromString(ended.payload).payload == b'"true"'
        stream.cancel()


async def test_transactions_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their bytes too; the names that come back with each answer have a limit of their own."""
    monkeypatch.setattr(serve, "MAX_WAITING_BYTES", 3_000)
    GATE.clear()
    async with served(threads=1) as (channel, _):
        stream = await opened(channel)
        for _, raw in transactions("demo:Gated", 10):
            await stream.write(raw)
        async with asyncio.timeout(PATIENCE_S / 2):
            first = await stream.read()
        GATE.set()
        refused = ChaincodeMessage.FromString(first)
        response = peer_pb2.Response.FromString(refused.payload)
        assert response.status == 500
        assert "are under way, which is this server's limit; try again" in response.message
        await stream.write(
            ChaincodeMessage(type=ChaincodeMessage.INIT, txid="t" * 2000).SerializeToString()
        )
        with pytest.raises(grpc.aio.AioRpcError, match="have 2000 characters, but may have 1024"):
            await read_all(stream)


async def test_a_query_without_end() -> None:
    """Pages with nothing in them, and always one more."""
    page = peer_pb2.QueryResponse(has_more=True, id="1").SerializeToString()
    call = invocation(MEMBER, "cc", "demo:All")

    def spoil(_: int, raw: bytes) -> list[bytes]:
        one = ChaincodeMessage.FromString(raw)
        if one.type == ChaincodeMessage.RESPONSE and len(one.payload) > 1_000:
            one.payload = page
        return [one.SerializeToString()]

    async with served() as (channel, _):
        how, said = await converse(channel, call, spoil)
    assert how == "ended"
    response = peer_pb2.Response.FromString(said[-1].payload)
    assert response.message == "the peer's answer to a query has no end: 0 results so far"


# -- worker processes ---------------------------------------------------------------------------

SCRIPT = """
import json, pathlib, socket, struct, sys
plan = pathlib.Path(sys.argv[2])
node = socket.socket(fileno=int(sys.argv[1]))
def exactly(count):
    received = b""
    while len(received) < count:
        chunk = node.recv(count - len(received))
        if not chunk:
            sys.exit()
        received += chunk
    return received
node.sendall(bytes.fromhex(json.loads(plan.read_text())[0]))
while True:
    (length,) = struct.unpack(">I", exactly(4))
    if exactly(length)[:2] == TRANSACTION:
        rest = iter(json.loads(plan.read_text())[1:])
    elif "rest" not in globals():
        continue
    node.sendall(bytes.fromhex(next(rest, "")))
"""
"""A process that sends what a file says: at its start, then at each of the node's messages."""


class FakeWorker:
    """An executor whose processes run the script."""

    def __init__(self, plan: Path) -> None:
        self._plan = plan
        settings = WorkerSettings(workers=1, deadline_s=DEADLINE_S)
        self.executor = WorkerExecutor("cc", ContractCode(plan.parent, "none"), settings)

    def command(self, descriptor: int, *_: object) -> tuple[str, ...]:
        kind = bytes((8, ChaincodeMessage.TRANSACTION))
        script = SCRIPT.replace("TRANSACTION", repr(kind))
        return (sys.executable, "-I", "-S", "-c", script, str(descriptor), str(self._plan))

    def write(self, frames: list[bytes]) -> None:
        self._plan.write_text(json.dumps([frame.hex() for frame in frames]))

    async def run(self, call: Invocation, frames: list[bytes]) -> str:
        """How the transaction ended: empty, or with what problem."""
        self.write(frames)
        began = time.monotonic()
        try:
            response, event = await self.executor.invoke(call, simulator())
        except ExecutionError as error:
            found = str(error)
            assert 0 < len(found) < 4_000
        else:
            assert event is None or event.ByteSize() < MAX_EVENT_BYTES + 1_000
            found = response.message or str(response.status)
        assert time.monotonic() - began < 2 * DEADLINE_S + SLACK_S
        return found

    async def works(self) -> None:
        """The next honest one, in whichever process."""
        began = time.monotonic()
        while True:
            call = invocation(MEMBER, "cc", "f")
            found = await self.run(call, frames_of(call))
            if found == "200":
                return
            assert time.monotonic() - began < PATIENCE_S, found


def frame(raw: bytes) -> bytes:
    return LENGTH.pack(len(raw)) + raw


def frames_of(call: Invocation) -> list[bytes]:
    """An honest worker's."""
    return [frame(one.SerializeToString()) for one in (REGISTER, *honest_requests(call))]


@pytest.fixture
async def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeWorker]:
    made = FakeWorker(tmp_path / "plan.json")
    monkeypatch.setattr(worker, "_command", made.command)
    monkeypatch.setattr(worker, "START_TIMEOUT_S", 0.4)
    monkeypatch.setattr(worker, "HANG_UP_S", 0.1)
    yield made
    await made.executor.close()


async def test_a_worker_process_that_sends_rubbish(fake: FakeWorker) -> None:
    chance = random.Random(SEED)
    await fake.works()
    outcomes = []
    for index in range(10):
        call = invocation(MEMBER, "cc", "f")
        frames = frames_of(call)
        place = chance.randrange(1, len(frames))
        if index % 2:
            frames[place] = frame(mutated(frames[place][LENGTH.size :], chance))
        else:
            frames[place] = mutated(frames[place], chance)  # the length is spoiled too
        outcomes.append(await fake.run(call, frames))
        await fake.works()
    assert any("is not a valid protos.ChaincodeMessage" in one for one in outcomes)


async def test_a_worker_process_that_starts_with_rubbish(fake: FakeWorker) -> None:
    chance = random.Random(SEED)
    for _ in range(3):
        call = invocation(MEMBER, "cc", "f")
        first, *rest = frames_of(call)
        spoiled = mutated(first, chance)
        await fake.run(call, [spoiled, *rest])
        with contextlib.suppress(WorkerError):
            await asyncio.to_thread(check_code, fake.executor.code)
    await fake.works()


async def test_what_a_transaction_left_behind_answers_no_other(fake: FakeWorker) -> None:
    """A worker that ends its transaction twice: the second end is not the next one's."""
    call = invocation(MEMBER, "cc", "f")
    end = frame(completed(call, b"planted").SerializeToString())
    assert await fake.run(call, [frame(REGISTER.SerializeToString()), end + end]) == "200"
    following = invocation(MEMBER, "cc", "f")
    said = await fake.run(following, frames_of(following))
    assert "its worker process speaks of another transaction" in said
    await fake.works()
