"""From `kill -9` of the leader to the next committed block, again and again, under load.

Three orderers as processes with the timeouts of `gridledger network create`. The clock starts with
the kill and stops when a surviving orderer has acknowledged, and so committed, an envelope that was
sent after it. Meanwhile other clients keep sending to the survivors.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import grpc

from benchmarks.orderers import OrdererCluster, channel_status, on_loopback
from consortium.ledger.channel_config import RaftOptions
from consortium.node.network import RAFT_TICK_S
from consortium.wire import common_pb2, orderer_pb2, services

PROBE_EVERY_S = 0.01
_SUCCESS = orderer_pb2.BroadcastResponse(status=common_pb2.SUCCESS).SerializeToString()


class Stream:
    """A client's Broadcast stream, opened again when it breaks."""

    def __init__(self, cluster: OrdererCluster, number: int) -> None:
        self._channel = cluster.connect(number)
        self._sent: deque[float] = deque()
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] | None = None
        self._reading: asyncio.Task[None] | None = None
        self.acknowledged: list[tuple[float, float]] = []
        """When each was sent and when it was answered SUCCESS, `time.monotonic()`."""

    async def send(self, raw: bytes) -> None:
        """Send without waiting for the answer; lost if the stream is broken."""
        if self._reading is None or self._reading.done():
            self._call = self._channel.stream_stream(services.BROADCAST)()
            self._sent.clear()
            self._reading = asyncio.create_task(self._read(self._call))
        self._sent.append(time.monotonic())
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            assert self._call is not None
            await self._call.write(raw)

    async def _read(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            while await call.read() == _SUCCESS:
                self.acknowledged.append((self._sent.popleft(), time.monotonic()))

    async def close(self) -> None:
        """Give up what is under way."""
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        await self._channel.close()


async def _trial(cluster: OrdererCluster, rate: int) -> float:
    """Kill the leader once; seconds until an envelope sent afterwards was acknowledged."""
    leader = await cluster.leader()
    survivors = [number for number in range(len(cluster.orderers)) if number != leader]
    streams = [Stream(cluster, number) for number in survivors]
    stopped = False

    async def load(stream: Stream) -> None:
        due = time.monotonic()
        while not stopped:
            due += len(streams) / rate
            await asyncio.sleep(due - time.monotonic())
            await stream.send(cluster.envelope(os.urandom(1000)))

    sending = [asyncio.create_task(load(stream)) for stream in streams]
    try:
        async with asyncio.timeout(30):
            while not all(len(one.acknowledged) > rate // 10 for one in streams):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        killed = time.monotonic()
        await cluster.kill(leader)
        async with asyncio.timeout(60):
            while True:
                answered = [
                    at for stream in streams for sent, at in stream.acknowledged if sent > killed
                ]
                if answered:
                    return min(answered) - killed
                await asyncio.sleep(PROBE_EVERY_S)
    finally:
        stopped = True
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        await asyncio.gather(*(stream.close() for stream in streams))


async def _caught_up(cluster: OrdererCluster) -> None:
    async with asyncio.timeout(60):
        while True:
            states = [channel_status(await one.status()) for one in cluster.orderers]
            heights = {state["height"] for state in states}
            if len(heights) == 1 and len({state["leader"] for state in states}) == 1:
                return
            await asyncio.sleep(0.05)


async def run(trials: int, rate: int, orderers: int) -> list[float]:
    """Durations, s, in the order in which they were measured."""
    durations = []
    with tempfile.TemporaryDirectory(prefix="gridledger-bench-") as folder:
        cluster = OrdererCluster(
            Path(folder) / "cluster",
            on_loopback(orderers),
            batch_timeout="100ms",
            raft=RaftOptions(tick_interval_s=RAFT_TICK_S),
        )
        async with cluster:
            for number in range(trials):
                leader = await cluster.leader()
                durations.append(await _trial(cluster, rate))
                print(f"{number + 1:3}: {durations[-1]:.2f} s", file=sys.stderr, flush=True)
                await cluster.start(leader)
                await _caught_up(cluster)
    return durations


def summary(durations: list[float]) -> dict[str, float]:
    """Median, 95th percentile and worst."""
    ordered = sorted(durations)
    return {
        "median_s": ordered[len(ordered) // 2],
        "p95_s": ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))],
        "worst_s": ordered[-1],
    }


def histogram(durations: list[float], width_s: float = 0.1) -> str:
    """The distribution as text."""
    lines: list[str] = []
    last = int(max(durations) / width_s)
    for step in range(last + 1):
        count = sum(int(one / width_s) == step for one in durations)
        if count or lines:
            lines.append(f"{step * width_s:4.1f} to {(step + 1) * width_s:3.1f} s  {'█' * count}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="script/bench failover", description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--rate", type=int, default=400, help="envelopes of 1 kB a second")
    parser.add_argument("--orderers", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    durations = asyncio.run(run(options.trials, options.rate, options.orderers))
    found = summary(durations)
    if options.json:
        print(json.dumps(found | {"durations_s": durations}, indent=2))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(
        f"{options.trials} trials, {options.orderers} orderers, {options.rate} envelopes/s: "
        f"median {found['median_s']:.2f} s, p95 {found['p95_s']:.2f} s, "
        f"worst {found['worst_s']:.2f} s"
    )
    print(histogram(durations))


if __name__ == "__main__":
    main()
