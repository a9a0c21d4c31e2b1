"""Clients of a cluster of orderers, and what they were told: registers and a set on the ledger.

Every act is an envelope, reads too, and takes effect where it stands in the blocks: followers of
the chain, one at each orderer, apply them in order. An envelope that stands there twice counts
once, the first time: that is what peers do with a transaction's id. A client's act is complete when
its orderer has answered SUCCESS and that orderer's own blocks say what came of it; it is without
answer when either fails, for then nobody knows.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from benchmarks.orderers import OrdererCluster
from consortium.wire import blocks, common_pb2, orderer_pb2, services
from consortium.wire.envelopes import open_envelope

from .linearizability import NEVER, Operation, applied, linearizable

CLIENTS = 6
ACT_TIMEOUT_S = 4.0
RESULT_TIMEOUT_S = 2.0
ACTS_PER_REGISTER = 40
"""Then a fresh one is used: histories stay short enough to be searched."""
PAUSE_S = 0.1
ACTS_AWAY = 20
"""At another orderer than its own; then a client goes back, so that they stay spread."""


class Violation(AssertionError):
    """The ledger has broken its promise."""


@dataclass
class _Act:
    """One envelope of a client."""

    name: str
    kind: str
    register: int
    argument: object
    called: float
    answered: float = NEVER
    result: object = None
    acknowledged: bool = False


@dataclass
class Replica:
    """The registers as one orderer's blocks have them."""

    height: int = 1
    previous: bytes = b""
    registers: dict[int, object] = field(default_factory=dict)
    results: dict[str, object] = field(default_factory=dict)
    hashes: list[bytes] = field(default_factory=list)
    twice: int = 0
    waiting: dict[str, asyncio.Future[object]] = field(default_factory=dict)

    def take(self, block: common_pb2.Block) -> None:
        """Apply the next block; raises Violation if it does not follow."""
        header = block.header
        if header.number != self.height:
            raise Violation(f"block {header.number} came after block {self.height - 1}")
        if self.previous and header.previous_hash != self.previous:
            raise Violation(f"block {header.number} follows another block than was delivered")
        if blocks.data_hash(block.data.data) != header.data_hash:
            raise Violation(f"block {header.number} holds other data than its header says")
        self.previous = blocks.header_hash(header)
        self.hashes.append(self.previous)
        self.height += 1
        for raw in block.data.data:
            act = json.loads(open_envelope(raw).payload.data)
            if act["name"] in self.results:
                self.twice += 1
                continue
            result = self._apply(act)
            self.results[act["name"]] = result
            future = self.waiting.get(act["name"])
            if future is not None and not future.done():
                future.set_result(result)

    def _apply(self, act: dict[str, object]) -> object:
        register = act["register"]
        assert isinstance(register, int)
        state = self.registers.get(register)
        operation = Operation(str(act["kind"]), act["argument"], None, 0)
        _, self.registers[register] = applied(state, operation)
        match act["kind"]:
            case "read":
                return state
            case "cas":
                expected, _ = act["argument"]  # type: ignore[misc]
                return state == expected
            case _:
                return None

    async def result(self, name: str) -> object:
        """What came of an act, once its block has been delivered."""
        if name in self.results:
            return self.results[name]
        future = self.waiting.setdefault(name, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(RESULT_TIMEOUT_S):
                return await future
        finally:
            self.waiting.pop(name, None)


class Workload:
    """Clients that go on whatever happens, and the check of what they saw."""

    def __init__(self, cluster: OrdererCluster, seed: int = 0) -> None:
        self.cluster = cluster
        self.acts: list[_Act] = []
        self.replicas = [Replica() for _ in cluster.orderers]
        self.acknowledged = 0
        self.longest_pause_s = 0.0
        """Between two acknowledgements, since the last `goes_on` began."""
        self.problem: Exception | None = None
        self.on_acknowledged: Callable[[], None] | None = None
        """Called once, at the very moment when the next act is acknowledged."""
        self._last = time.monotonic()
        self._random = random.Random(seed)
        self._stopped = False
        self._channels: list[grpc.aio.Channel] = []

    @property
    def unanswered(self) -> int:
        return sum(one.answered == NEVER for one in self.acts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send meanwhile; afterwards wait until all that may be on its way has come or is lost."""
        self._channels = [self.cluster.connect(number) for number in range(len(self.replicas))]
        followers = [
            asyncio.create_task(self._follow(number)) for number in range(len(self.replicas))
        ]
        clients = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
        try:
            await self.goes_on()
            yield
            await self.goes_on()
            self._stopped = True
            async with asyncio.timeout(ACT_TIMEOUT_S + RESULT_TIMEOUT_S + 10):
                await asyncio.gather(*clients)
            await self._settled()
            if self.problem is not None:
                raise self.problem
        finally:
            self._stopped = True
            for task in (*followers, *clients):
                task.cancel()
            await asyncio.gather(*followers, *clients, return_exceptions=True)
            await asyncio.gather(*(one.close() for one in self._channels))

    async def goes_on(self, acts: int = 15, timeout_s: float = 45.0) -> float:
        """Return once so many more acts are acknowledged; the longest wait for one of them, s."""
        self.longest_pause_s = 0.0
        self._last = time.monotonic()
        goal = self.acknowledged + acts
        async with asyncio.timeout(timeout_s):
            while self.acknowledged < goal:
                if self.problem is not None:
                    raise self.problem
                await asyncio.sleep(0.01)
        return self.longest_pause_s

    # Clients

    async def _client(self, number: int) -> None:
        orderer, acts = number, 0
        stream: grpc.aio.StreamStreamCall[bytes, bytes] | None = None
        while not self._stopped:
            try:
                if stream is None:
                    stream = self._channels[orderer % len(self._channels)].stream_stream(
                        services.BROADCAST
                    )()
                await self._act(stream, orderer % len(self._channels))
                acts += 1
                if orderer != number and acts >= ACTS_AWAY:
                    stream.cancel()
                    stream, orderer, acts = None, number, 0
            except grpc.RpcError, asyncio.InvalidStateError, TimeoutError, ConnectionError:
                if stream is not None:
                    stream.cancel()
                stream = None
                orderer += 1
                await asyncio.sleep(PAUSE_S)
        if stream is not None:
            stream.cancel()

    def _new_act(self) -> _Act:
        draw = self._random
        register = len(self.acts) // ACTS_PER_REGISTER
        kind = draw.choice(["write", "write", "read", "cas"])
        value = len(self.acts)
        argument: object = None
        if kind == "write":
            argument = value
        elif kind == "cas":
            recent = [one.argument for one in self.acts[-8:] if one.kind == "write"]
            argument = (draw.choice(recent) if recent else None, value)
        act = _Act(f"{value}", kind, register, argument, time.monotonic())
        self.acts.append(act)
        return act

    async def _act(self, stream: grpc.aio.StreamStreamCall[bytes, bytes], orderer: int) -> None:
        act = self._new_act()
        raw = self.cluster.envelope(
            json.dumps(
                {
                    "name": act.name,
                    "kind": act.kind,
                    "register": act.register,
                    "argument": act.argument,
                }
            ).encode()
        )
        async with asyncio.timeout(ACT_TIMEOUT_S):
            await stream.write(raw)
            answer = await stream.read()
        if answer is grpc.aio.EOF:
            raise ConnectionError("the orderer ended the stream")
        response = orderer_pb2.BroadcastResponse.FromString(answer)
        if response.status != common_pb2.SUCCESS:
            raise ConnectionError(response.info)
        now = time.monotonic()
        self.acknowledged += 1
        self.longest_pause_s = max(self.longest_pause_s, now - self._last)
        self._last = now
        act.acknowledged = True
        hook, self.on_acknowledged = self.on_acknowledged, None
        if hook is not None:
            hook()
        if act.kind == "write":
            act.answered = now
            return
        with contextlib.suppress(TimeoutError):
            act.result = await self.replicas[orderer].result(act.name)
            act.answered = time.monotonic()

    # Followers

    async def _follow(self, number: int) -> None:
        replica = self.replicas[number]
        while True:
            call = self._channels[number].stream_stream(services.ORDERER_DELIVER)()
            try:
                await call.write(self.cluster.seek(replica.height))
                while (raw := await call.read()) is not grpc.aio.EOF:
                    response = orderer_pb2.DeliverResponse.FromString(raw)
                    if response.WhichOneof("Type") != "block":
                        break
                    replica.take(response.block)
            except grpc.RpcError, asyncio.InvalidStateError:
                pass
            except Violation as violation:
                self.problem = violation
                return
            finally:
                call.cancel()
            await asyncio.sleep(PAUSE_S)

    async def _settled(self) -> None:
        """Every orderer that runs holds the same blocks, and no more are made."""
        running = [
            replica
            for replica, one in zip(self.replicas, self.cluster.orderers, strict=True)
            if one.process is not None
        ]
        quiet_since = time.monotonic()
        heights: list[int] = []
        async with asyncio.timeout(60):
            while time.monotonic() - quiet_since < 1.0:
                await asyncio.sleep(0.05)
                now = [one.height for one in running]
                if now != heights or len(set(now)) > 1:
                    heights, quiet_since = now, time.monotonic()

    # What must hold

    def check(self) -> dict[str, int]:
        """Raise Violation if a promise was broken; else what was seen."""
        chains = [one.hashes for one in self.replicas]
        longest = max(chains, key=len)
        for number, chain in enumerate(chains):
            if chain != longest[: len(chain)]:
                raise Violation(f"orderer {number} delivered another chain than the others")
        ledger = self.replicas[chains.index(longest)]
        known = {one.name for one in self.acts}
        strange = set(ledger.results) - known
        if strange:
            raise Violation(f"nobody sent {sorted(strange)[:3]}")
        # The set: what was acknowledged is there. (That it counts once is the replicas' rule.)
        lost = [
            one.name for one in self.acts if one.acknowledged and one.name not in ledger.results
        ]
        if lost:
            raise Violation(f"{len(lost)} acknowledged acts are lost, the first one {lost[0]}")
        for register in {one.register for one in self.acts}:
            history = [
                Operation(one.kind, one.argument, one.result, one.called, one.answered)
                for one in self.acts
                if one.register == register
            ]
            if not linearizable(history):
                raise Violation(f"what clients saw of register {register} is not linearizable")
        return {
            "acts": len(self.acts),
            "acknowledged": self.acknowledged,
            "unanswered": self.unanswered,
            "twice": ledger.twice,
            "blocks": len(longest),
        }
