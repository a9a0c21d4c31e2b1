"""Too much of anything fails the proposal and says of what, however much, and what is allowed."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from consortium.chaincode.executor import MAX_EVENT_BYTES, MAX_RESULT_BYTES, Executor
from consortium.chaincode.simulator import (
    MAX_WRITE_BYTES,
    LimitError,
    SimulationError,
    TransactionSimulator,
)
from consortium.ledger.state import Version, VersionedValue
from consortium.wire import peer_pb2
from tests.consortium.chaincode.executors import KINDS, running
from tests.consortium.chaincode.memory_state import MemoryState
from tests.consortium.chaincode.proposals import Member, invocation

MEMBER = Member("ann")
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def executor(request: pytest.FixtureRequest) -> AsyncIterator[Executor]:
    async with running(request.param) as executor:
        yield executor


async def ask(
    executor: Executor, function: str, simulator: TransactionSimulator, **argument: object
) -> peer_pb2.Response:
    asked = invocation(MEMBER, "unruly", f"unruly:{function}", argument)
    response, event = await executor.invoke(asked, simulator)
    assert response.status == 200 or event is None
    return response


def state(keys: int = 0) -> MemoryState:
    found = MemoryState()
    for index in range(keys):
        found.public["unruly", f"{index:08d}"] = VersionedValue(b"v", b"", Version(1, index))
    return found


@pytest.mark.parametrize(
    ("function", "argument", "problem"),
    [
        (
            "Answer",
            {"size": MAX_RESULT_BYTES},
            f"the answer has {MAX_RESULT_BYTES + 2} bytes, but may have {MAX_RESULT_BYTES}",
        ),
        (
            "Announce",
            {"size": MAX_EVENT_BYTES},
            f"event 'big' has {MAX_EVENT_BYTES + 3} bytes, but may have {MAX_EVENT_BYTES}",
        ),
        (
            "Write",
            {"count": 11, "size": 1_000_000},
            f"the transaction writes 11000077 bytes or more, but may write {MAX_WRITE_BYTES}",
        ),
        (
            "Write",
            {"count": 1, "size": 50_000_000},
            f"the transaction writes 50000007 bytes or more, but may write {MAX_WRITE_BYTES}",
        ),
    ],
)
async def test_what_a_contract_gives(
    executor: Executor, function: str, argument: dict[str, Any], problem: str
) -> None:
    response = await ask(executor, function, TransactionSimulator(state()), **argument)
    assert response.status == 500
    assert problem in response.message
    simulator = TransactionSimulator(state())
    assert (await ask(executor, "Put", simulator, key="k", value="v")).status == 200
    assert b"k" in simulator.results().rwset


@pytest.mark.parametrize(
    ("function", "argument", "limits", "problem"),
    [
        (
            "Read",
            {"count": 101},
            {"max_reads": 100},
            "the transaction reads 101 keys or more, but may read 100",
        ),
        (
            "Scan",
            {"times": 1},
            {"max_range_results": 140},
            "a range has 141 results or more, but may have 140",
        ),
        (
            "Scan",
            {"times": 3},
            {"max_results": 400},
            "the transaction's ranges have 401 results or more, but may have 400",
        ),
        (
            "Write",
            {"count": 3, "size": 400},
            {"max_write_bytes": 1000},
            "the transaction writes 1221 bytes or more, but may write 1000",
        ),
    ],
)
async def test_what_a_contract_reads_and_writes(
    executor: Executor,
    function: str,
    argument: dict[str, Any],
    limits: dict[str, Any],
    problem: str,
) -> None:
    """With smaller limits of the peer, which the contract's side does not know."""
    for limit, enough in ((limits, False), (dict.fromkeys(limits, 10**6), True)):
        simulator = TransactionSimulator(state(150), **limit)
        response = await ask(executor, function, simulator, **argument)
        assert response.status == (200 if enough else 500)
        assert enough or problem in response.message


async def test_the_read_write_set_as_a_whole(executor: Executor) -> None:
    """Found out at its end, when the peer builds it."""
    simulator = TransactionSimulator(state(), max_rwset_bytes=1000)
    assert (await ask(executor, "Read", simulator, count=200)).status == 200
    with pytest.raises(LimitError, match=r"read-write set has \d+ bytes, but may have 1000"):
        simulator.results()
    assert issubclass(LimitError, SimulationError)  # which a peer answers with


async def test_private_keys_read_at_once_are_read_one_by_one(executor: Executor) -> None:
    """What the transaction depends on doesn't tell how, nor where, it was read."""
    known = state()
    for key in ("a", "c"):
        place = ("unruly", "secrets", key)
        known.private[place] = VersionedValue(key.encode(), b"", Version(1, 0))
    at_once = TransactionSimulator(known, "neighbourhood")
    answer = await ask(executor, "Privates", at_once, keys=["c", "b", "a"])
    assert answer.payload == b'["c",null,"a"]'
    single = TransactionSimulator(known, "neighbourhood")
    for key in ("a", "b", "c"):
        single.get_private("unruly", "secrets", key)
    assert at_once.results() == single.results()
    nothing = TransactionSimulator(known, "neighbourhood")
    assert (await ask(executor, "Privates", nothing, keys=[])).payload == b"[]"
    assert (await ask(executor, "Privates", nothing, keys=["a", ""])).status == 500
