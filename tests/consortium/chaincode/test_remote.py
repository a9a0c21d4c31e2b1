"""Chaincode servers that do not keep to the protocol cost their own transactions, no more."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest

from consortium.chaincode import remote
from consortium.chaincode.api import Creator
from consortium.chaincode.executor import ExecutionError, Invocation
from consortium.chaincode.remote import ChaincodeUnavailableError, Connection, RemoteChaincode
from consortium.chaincode.requests import ChaincodeMessage
from consortium.chaincode.simulator import TransactionSimulator
from consortium.ledger.state import VersionedValue
from consortium.wire import peer_pb2
from tests.consortium.chaincode.memory_state import MemoryState

REGISTER = ChaincodeMessage(
    type=ChaincodeMessage.REGISTER, payload=peer_pb2.ChaincodeID(name="cc:1").SerializeToString()
)
type Message = peer_pb2.ChaincodeMessage
type Script = Callable[[Message], list[Message | bytes]]


@asynccontextmanager
async def serving(script: Script, opening: bytes | None = None) -> AsyncIterator[RemoteChaincode]:
    """A dialled server that answers each of the peer's messages as the script says."""

    async def connect(
        requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        yield REGISTER.SerializeToString() if opening is None else opening
        async for raw in requests:
            for answer in script(ChaincodeMessage.FromString(raw)):
                yield answer if isinstance(answer, bytes) else answer.SerializeToString()

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(connect)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("protos.Chaincode", {"Connect": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    dialled = RemoteChaincode("cc", Connection(f"127.0.0.1:{port}"), deadline_s=2)
    yield dialled
    await dialled.close()
    await server.stop(0)


async def invoke(
    dialled: RemoteChaincode, tx_id: str = "tx", state: MemoryState | None = None
) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
    creator = Creator("AuroraMSP", b"", "ann", "client", {})
    call = Invocation("cc", "ch", tx_id, 0, creator, [b"f"], {})
    return await dialled.invoke(call, TransactionSimulator(state or MemoryState(), "ch"))


class SlowState(MemoryState):
    """Takes its time over a range."""

    def range(self, namespace: str, start: str, end: str) -> Iterator[tuple[str, VersionedValue]]:
        time.sleep(0.5)
        return super().range(namespace, start, end)


def reply(
    to: Message, kind: peer_pb2.ChaincodeMessage.Type, payload: bytes = b"", **other: object
) -> Message:
    return ChaincodeMessage(
        type=kind,
        payload=payload,
        txid=to.txid,
        channel_id=to.channel_id,
        **other,  # type: ignore[arg-type]
    )


def completing(response: peer_pb2.Response, **other: object) -> Script:
    """Ends every transaction with a response."""

    def script(message: Message) -> list[Message | bytes]:
        if message.type != ChaincodeMessage.TRANSACTION:
            return []
        raw = response.SerializeToString()
        return [reply(message, ChaincodeMessage.COMPLETED, raw, **other)]

    return script


async def test_the_peer_offers_batches_and_names_events() -> None:
    seen: list[Message] = []

    def script(message: Message) -> list[Message | bytes]:
        seen.append(message)
        event = peer_pb2.ChaincodeEvent(chaincode_id="another", tx_id="another", event_name="e")
        done = peer_pb2.Response(status=200, payload=b"done")
        return completing(done, chaincode_event=event)(message)

    async with serving(script) as dialled:
        response, event = await invoke(dialled)
    assert response.payload == b"done"
    assert event == peer_pb2.ChaincodeEvent(chaincode_id="cc", tx_id="tx", event_name="e")
    assert [message.type for message in seen] == [
        ChaincodeMessage.REGISTERED,
        ChaincodeMessage.READY,
        ChaincodeMessage.TRANSACTION,
    ]
    offered = peer_pb2.ChaincodeAdditionalParams.FromString(seen[1].payload)
    assert (offered.use_write_batch, offered.max_size_write_batch) == (True, 1000)
    assert (offered.use_get_multiple_keys, offered.max_size_get_multiple_keys) == (True, 1000)
    assert peer_pb2.ChaincodeInput.FromString(seen[2].payload).args == [b"f"]


async def test_a_transaction_that_ends_in_an_error() -> None:
    def script(message: Message) -> list[Message | bytes]:
        if message.type != ChaincodeMessage.TRANSACTION:
            return []
        return [reply(message, ChaincodeMessage.ERROR, b"no such function")]

    async with serving(script) as dialled:
        with pytest.raises(ExecutionError, match="transaction returned with failure: no such func"):
            await invoke(dialled)


async def test_two_requests_at_once_end_the_transaction() -> None:
    told: list[peer_pb2.ChaincodeMessage.Type] = []

    def script(message: Message) -> list[Message | bytes]:
        told.append(message.type)
        if message.type != ChaincodeMessage.TRANSACTION:
            return []
        get = peer_pb2.GetStateByRange(startKey="a").SerializeToString()
        ask = reply(message, ChaincodeMessage.GET_STATE_BY_RANGE, get)
        return [ask, ask, ask]

    async with serving(script) as dialled:
        with pytest.raises(ExecutionError, match="asked again before it had been answered"):
            await invoke(dialled, state=SlowState())
        await asyncio.sleep(0.1)
    assert told[-1] == ChaincodeMessage.ERROR  # so that it does not wait for ever


async def test_a_write_that_nobody_awaited_still_counts() -> None:
    """A chaincode may end while its last request is under way; requests keep their order."""

    def script(message: Message) -> list[Message | bytes]:
        if message.type != ChaincodeMessage.TRANSACTION:
            return []
        put = peer_pb2.PutState(key="a", value=b"1").SerializeToString()
        return [
            reply(message, ChaincodeMessage.PUT_STATE, put),
            *completing(peer_pb2.Response(status=200))(message),
        ]

    async with serving(script) as dialled:
        creator = Creator("AuroraMSP", b"", "ann", "client", {})
        simulator = TransactionSimulator(MemoryState(), "ch")
        await dialled.invoke(Invocation("cc", "ch", "tx", 0, creator, [b"f"], {}), simulator)
        assert b"a" in simulator.results().rwset


async def test_a_late_request_is_told_that_its_transaction_is_over() -> None:
    told: list[str] = []

    def script(message: Message) -> list[Message | bytes]:
        if message.type == ChaincodeMessage.ERROR:
            told.append(message.payload.decode())
        if message.type != ChaincodeMessage.TRANSACTION:
            return []
        over = completing(peer_pb2.Response(status=200))(message)
        return [*over, reply(message, ChaincodeMessage.GET_STATE)]

    async with serving(script) as dialled:
        await invoke(dialled)
        await invoke(dialled, "tx2")
        await asyncio.sleep(0.1)
    assert told == [f"transaction {name} is over on this peer" for name in ("tx", "tx2")]


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        (peer_pb2.Response(), "answered with status 0; a success has 200"),
        (peer_pb2.Response(status=200, payload=b"x" * 5_000_000), None),
        (peer_pb2.Response(status=404, message="m" * 10_000), None),
    ],
)
async def test_answers_have_limits(response: peer_pb2.Response, problem: str | None) -> None:
    async with serving(completing(response)) as dialled:
        if problem is not None:
            with pytest.raises(ExecutionError, match=problem):
                await invoke(dialled)
            return
        given, _ = await invoke(dialled)
        assert given.status in (404, 500)
        assert len(given.message) <= 2000
        assert not given.payload


async def test_an_event_has_a_limit() -> None:
    event = peer_pb2.ChaincodeEvent(event_name="e", payload=b"x" * 300_000)
    async with serving(completing(peer_pb2.Response(status=200), chaincode_event=event)) as dialled:
        response, given = await invoke(dialled)
    assert (response.status, given) == (500, None)
    assert response.message == "event 'e' has 300001 bytes, but may have 262144"


@pytest.mark.parametrize(
    ("opening", "problem"),
    [
        (b"\xff\xff", "the chaincode's first message is not a valid"),
        (b"", "its first message is not REGISTER; is it a chaincode server"),
    ],
)
async def test_what_is_no_chaincode_server(
    monkeypatch: pytest.MonkeyPatch, opening: bytes, problem: str
) -> None:
    monkeypatch.setattr(remote, "CONNECT_WAIT_S", 0.3)
    async with serving(lambda _message: [], opening) as dialled:
        with pytest.raises(ChaincodeUnavailableError, match=problem):
            await invoke(dialled)


async def test_nonsense_ends_the_stream_and_the_next_one_works() -> None:
    answers = [[b"\xff\xff"]]

    def script(message: Message) -> list[Message | bytes]:
        if message.type == ChaincodeMessage.TRANSACTION and answers:
            return list(answers.pop())
        return completing(peer_pb2.Response(status=200))(message)

    async with serving(script) as dialled:
        with pytest.raises(ChaincodeUnavailableError, match="message is not a valid"):
            await invoke(dialled)
        response, _ = await invoke(dialled)
        assert response.status == 200


async def test_the_same_transaction_twice_at_once() -> None:
    async with serving(lambda _message: []) as dialled:
        first = asyncio.create_task(invoke(dialled))
        await asyncio.sleep(0.2)
        with pytest.raises(ExecutionError, match="tx is being simulated by cc already"):
            await invoke(dialled)
        response, _ = await first
        assert response.message == "cc did not finish within 2 s"


async def test_a_caller_that_goes_away_closes_its_simulation() -> None:
    async with serving(lambda _message: []) as dialled:
        creator = Creator("AuroraMSP", b"", "ann", "client", {})
        simulator = TransactionSimulator(MemoryState(), "ch")
        call = Invocation("cc", "ch", "tx", 0, creator, [b"f"], {})
        waiting = asyncio.create_task(dialled.invoke(call, simulator))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(Exception, match="its caller has gone away"):
            simulator.get_state("cc", "a")
