"""Contracts that call each other, wherever each of the two runs."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from consortium.chaincode.executor import ExecutionError
from consortium.chaincode.simulator import TransactionSimulator
from consortium.ledger.state import Version, VersionedValue
from consortium.wire import lifecycle_pb2, peer_pb2, rwset_pb2
from tests.consortium.chaincode.executors import KINDS, Router, running
from tests.consortium.chaincode.memory_state import MemoryState
from tests.consortium.chaincode.proposals import CHANNEL, Member, invocation

MEMBER = Member("ann")


def state(*defined: str) -> MemoryState:
    found = MemoryState()
    sequence = lifecycle_pb2.StateData(Int64=1).SerializeToString()
    for name in defined:
        found.public["_lifecycle", f"namespaces/fields/{name}/Sequence"] = VersionedValue(
            sequence, b"", Version(1, 0)
        )
    return found


def namespaces(simulator: TransactionSimulator) -> list[str]:
    results = rwset_pb2.TxReadWriteSet.FromString(simulator.results().rwset)
    return [namespace.namespace for namespace in results.ns_rwset]


async def call(
    router: Router,
    simulator: TransactionSimulator,
    chaincode: str,
    function: str,
    argument: dict[str, Any],
    channel: str = "",
    elsewhere: Any = None,
) -> peer_pb2.Response:
    asked = invocation(
        MEMBER,
        "outer",
        "unruly:Call",
        {
            "chaincode": chaincode,
            "function": f"unruly:{function}",
            "argument": json.dumps(argument),
            "channel": channel,
        },
    )
    response, _ = await router.invoke(replace(asked, other_channels=elsewhere), simulator)
    return response


@pytest.mark.parametrize("callee", KINDS)
@pytest.mark.parametrize("caller", KINDS)
async def test_calls(caller: str, callee: str) -> None:
    """One transaction, each in its namespace; the same bytes for all nine ways."""
    world = state("outer", "inner")
    there = state("inner", "outer")
    there.public["inner", "k"] = VersionedValue(b"from there", b"", Version(1, 1))
    opened: list[TransactionSimulator] = []

    @contextlib.contextmanager
    def elsewhere(channel_id: str) -> Iterator[TransactionSimulator]:
        if channel_id != "region":
            raise ExecutionError(f"failed to find ledger for channel: {channel_id}")
        simulator = TransactionSimulator(there, channel_id)
        opened.append(simulator)
        yield simulator
        simulator.close()

    async with running(caller, "outer") as outer, running(callee, "inner") as inner:
        router = Router({"outer": outer, "inner": inner})
        simulator = TransactionSimulator(world, CHANNEL)
        put = {"key": "k", "value": "v"}
        response = await call(router, simulator, "inner", "Put", put)
        assert json.loads(response.payload) == {"status": "200", "message": "", "payload": '""'}
        results = simulator.results()
        assert world.commit(results) == [0]
        assert world.values()["inner", "k"] == b"v"
        assert world.values()["outer", "caller"] == b"wrote"
        assert _FIRST.setdefault("rwset", results.rwset) == results.rwset

        # A refusal is an answer like another, and its writes stay.
        simulator = TransactionSimulator(world, CHANNEL)
        response = await call(router, simulator, "inner", "Nothing", {})
        assert json.loads(response.payload)["status"] == "404"

        # What the caller has written is not what the callee reads.
        simulator = TransactionSimulator(world, CHANNEL)
        for name, problem in (
            ("outer", "chaincode outer is called by outer; a chaincode takes part in"),
            ("nowhere", f"chaincode nowhere is not defined on channel {CHANNEL}"),
        ):
            simulator = TransactionSimulator(world, CHANNEL)
            response = await call(router, simulator, name, "Get", {"key": "k"})
            assert response.status == 500
            assert problem in response.message

        # Another channel: read, nothing kept of it, whatever it writes there.
        for function, argument in (("Get", {"key": "k"}), ("Put", {"key": "k", "value": "lost"})):
            simulator = TransactionSimulator(world, CHANNEL)
            response = await call(
                router, simulator, "inner", function, argument, "region", elsewhere
            )
            assert json.loads(json.loads(response.payload)["payload"]) == "from there"
            assert namespaces(simulator) == ["outer"]
        assert len(opened) == 2
        assert there.values()["inner", "k"] == b"from there"
        for channel, hook, problem in (
            ("nowhere", elsewhere, "failed to find ledger for channel: nowhere"),
            ("region", None, f"a transaction stays on its own, {CHANNEL}"),
        ):
            simulator = TransactionSimulator(world, CHANNEL)
            response = await call(router, simulator, "inner", "Get", {"key": "k"}, channel, hook)
            assert response.status == 500
            assert problem in response.message


_FIRST: dict[str, bytes] = {}


@pytest.mark.parametrize("kind", KINDS)
async def test_one_chaincode_on_two_channels(kind: str) -> None:
    """It may call itself there: that is another transaction's state."""
    there = state("outer")
    there.public["outer", "k"] = VersionedValue(b"there", b"", Version(1, 1))

    @contextlib.contextmanager
    def elsewhere(channel_id: str) -> Iterator[TransactionSimulator]:
        simulator = TransactionSimulator(there, channel_id)
        yield simulator
        simulator.close()

    async with running(kind, "outer") as outer:
        router = Router({"outer": outer})
        simulator = TransactionSimulator(state("outer"), CHANNEL)
        response = await call(router, simulator, "outer", "Get", {"key": "k"}, "region", elsewhere)
        assert json.loads(json.loads(response.payload)["payload"]) == "there"
