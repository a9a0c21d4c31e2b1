"""What becomes of a contract's answer, refusal, fault, and of one that does not end."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Annotated, ClassVar

import pytest

from consortium.chaincode.api import (
    Chaincode,
    Conflict,
    Context,
    Contract,
    Creator,
    Integer,
    Text,
    transaction,
)
from consortium.chaincode.executor import (
    ExecutionError,
    ExecutorBusyError,
    InProcessExecutor,
    Invocation,
    UnknownChaincodeError,
)
from consortium.chaincode.simulator import SimulationClosedError, TransactionSimulator
from tests.consortium.chaincode.memory_state import MemoryState

CREATOR = Creator("AuroraMSP", b"", "ann", "client", {})
GO = threading.Event()


class Demo(Contract):
    name: ClassVar[str] = "demo"

    @transaction
    def store(self, context: Context, *, text: Annotated[str, Text(".*", "text")]) -> object:
        context.put_state("key", text.encode())
        context.set_event("stored", b"1")
        return {"creator": context.creator.common_name, "at": context.timestamp, "text": text}

    @transaction
    def refuse(self, context: Context) -> object:
        context.set_event("never", b"1")
        raise Conflict("taken already")

    @transaction
    def fail(self, context: Context) -> object:
        raise RuntimeError("the secret is 42")

    @transaction
    def query_and_write(self, context: Context) -> object:
        list(context.range_private("coll", "a", "b"))
        context.put_state("key", b"1")
        return None

    @transaction
    def fill(self, context: Context, *, size: Annotated[int, Integer(0, 10**7)]) -> object:
        return "x" * size

    @transaction
    def wait(self, context: Context) -> object:
        GO.wait(10)
        context.put_state("key", b"too late")
        return None


@pytest.fixture
def executor() -> Iterator[InProcessExecutor]:
    GO.clear()
    executor = InProcessExecutor(
        {"demo": Chaincode("demo", (Demo(),))},
        threads=1,
        deadline_s=0.2,
        max_result_bytes=1000,
        max_waiting=2,
    )
    yield executor
    GO.set()
    executor.close()


def invocation(function: str, argument: bytes = b"{}", chaincode: str = "demo") -> Invocation:
    args = [f"demo:{function}".encode(), argument]
    return Invocation(chaincode, "ch", "ab" * 32, 1000, CREATOR, args, {})


async def test_success(executor: InProcessExecutor) -> None:
    simulator = TransactionSimulator(MemoryState())
    response, event = await executor.invoke(invocation("Store", b'{"text":"hi"}'), simulator)
    assert (response.status, response.message) == (200, "")
    assert response.payload == b'{"at":"1000","creator":"ann","text":"hi"}'
    assert event is not None
    assert (event.chaincode_id, event.tx_id, event.event_name, event.payload) == (
        "demo",
        "ab" * 32,
        "stored",
        b"1",
    )
    assert b"key" in simulator.results().rwset


@pytest.mark.parametrize(
    ("function", "argument", "status", "message"),
    [
        ("Refuse", b"{}", 409, "taken already"),
        ("Fail", b"{}", 500, "demo failed; the peer's log has details"),
        ("QueryAndWrite", b"{}", 500, "this transaction queried private data by range"),
        ("Fill", b'{"size":2000}', 500, "the answer has 2002 bytes, but may have 1000"),
        ("Store", b"{}", 400, "text is missing"),
        ("Store", b'{"\\ud800":1}', 400, "the argument is not JSON"),
        ("Nothing", b"{}", 404, 'demo has no function "demo:Nothing"; it has demo:Fail'),
    ],
)
async def test_refusals_and_faults(
    executor: InProcessExecutor, function: str, argument: bytes, status: int, message: str
) -> None:
    simulator = TransactionSimulator(MemoryState())
    response, event = await executor.invoke(invocation(function, argument), simulator)
    assert response.status == status
    assert response.message.startswith(message)
    assert event is None
    assert response.IsInitialized()
    assert response.SerializeToString()


async def test_an_invocation_has_a_deadline(executor: InProcessExecutor) -> None:
    simulator = TransactionSimulator(MemoryState())
    response, event = await executor.invoke(invocation("Wait"), simulator)
    assert (response.status, event) == (500, None)
    assert response.message == "demo did not finish within 0.2 s"
    with pytest.raises(SimulationClosedError):
        simulator.get_state("demo", "key")
    GO.set()
    response, _ = await executor.invoke(
        invocation("Store", b'{"text":""}'), TransactionSimulator(MemoryState())
    )
    assert response.status == 200


async def test_too_many_at_once(executor: InProcessExecutor) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(
                executor.invoke(invocation("Wait"), TransactionSimulator(MemoryState()))
            )
        await asyncio.sleep(0.05)
        with pytest.raises(ExecutorBusyError, match="2 transactions are being simulated"):
            await executor.invoke(invocation("Fail"), TransactionSimulator(MemoryState()))
        GO.set()


async def test_a_chaincode_without_code_here(executor: InProcessExecutor) -> None:
    with pytest.raises(UnknownChaincodeError, match="no code for chaincode gold; it has demo"):
        await executor.invoke(
            invocation("X", chaincode="gold"), TransactionSimulator(MemoryState())
        )
    assert issubclass(UnknownChaincodeError, ExecutionError)
