"""A hundred channels on three orderers, one of them dead, with a reader that does not read.

Every channel gets a few envelopes a second, one of them many more, which the idle reader has asked
for. Printed for each orderer that runs: memory, Raft messages and heartbeats it sends, fsyncs of
its log, CPU; and how much the memory has grown since the first half minute.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

from benchmarks.failover import Stream
from benchmarks.orderers import OrdererCluster, on_loopback
from consortium.ledger.channel_config import RaftOptions
from consortium.wire import services

EVERY_S = 30.0
START_TIMEOUT_S = 400.0


async def _load(cluster: OrdererCluster, rate: float, numbers: list[int]) -> None:
    """Half of the envelopes go to one channel, the others to all in turn."""
    streams = [Stream(cluster, number) for number in numbers]
    draw = random.Random(1)  # noqa: S311
    busy = cluster.channels[0]
    due = time.monotonic()
    turn = 0
    try:
        while True:
            due = max(due + 1 / rate, time.monotonic() - 1)
            await asyncio.sleep(due - time.monotonic())
            turn += 1
            channel = busy if turn % 2 else cluster.channels[turn // 2 % len(cluster.channels)]
            stream = draw.choice(streams)
            await stream.send(cluster.envelope(os.urandom(2000), channel))
            stream.acknowledged.clear()
    finally:
        await asyncio.gather(*(stream.close() for stream in streams))


async def _idle_reader(cluster: OrdererCluster, number: int) -> None:
    """Asks for all blocks of the busy channel, and reads one."""
    async with cluster.connect(number) as channel:
        await channel.channel_ready()
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(
            services.ORDERER_DELIVER
        )()
        await call.write(cluster.seek(0))
        await call.read()
        await asyncio.Event().wait()


def _totals(status: dict[str, Any]) -> dict[str, float]:
    return {
        "fsyncs": status["log_commits"],
        "messages": sum(status["sent"].values()),
        "heartbeats": status["sent"].get("MsgHeartbeat", 0),
        "elections": sum(one["leader_changes"] for one in status["channels"]),
        "envelopes": sum(one["envelopes_written"] for one in status["channels"]),
        "late_ticks": sum(one["late_ticks"] for one in status["channels"]),
    }


async def run(options: argparse.Namespace) -> list[dict[str, float]]:
    """One row for each orderer that runs and each half minute."""
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="gridledger-bench-") as folder:
        cluster = OrdererCluster(
            Path(folder) / "cluster",
            on_loopback(3),
            channels=[f"region{number:03}" for number in range(options.channels)],
            batch_timeout="100ms",
            raft=RaftOptions(tick_interval_s=options.tick_s, snapshot_interval_bytes=1024 * 1024),
        )
        async with cluster:
            await cluster.leader(timeout_s=START_TIMEOUT_S)
            await cluster.leader(cluster.channels[-1], timeout_s=START_TIMEOUT_S)
            dead = 2
            await cluster.kill(dead)
            running = [0, 1]
            for channel in cluster.channels:
                await cluster.leader(channel, timeout_s=START_TIMEOUT_S)
            others = [
                asyncio.create_task(_load(cluster, options.rate, running)),
                asyncio.create_task(_idle_reader(cluster, running[0])),
            ]
            started = time.monotonic()
            before = [_totals(await cluster.orderers[n].status()) for n in running]
            cpu = [cluster.orderers[n].cpu_s() for n in running]
            at = started
            while time.monotonic() - started < options.minutes * 60:
                await asyncio.sleep(EVERY_S)
                for task in others:
                    if task.done():
                        task.result()
                now = time.monotonic()
                for place, number in enumerate(running):
                    one = cluster.orderers[number]
                    totals, used = _totals(await one.status()), one.cpu_s()
                    row: dict[str, float] = {
                        "minute": (now - started) / 60,
                        "orderer": number,
                        "heap_mb": one.memory_mb("RssAnon"),
                        "resident_mb": one.memory_mb(),
                        "cpu_percent": 100 * (used - cpu[place]) / (now - at),
                    }
                    for key, total in totals.items():
                        row[key] = (total - before[place][key]) / (now - at)
                    row["elections"] = totals["elections"] - before[place]["elections"]
                    before[place], cpu[place] = totals, used
                    rows.append(row)
                    if not options.json:
                        print(line(row), flush=True)
                at = now
            for task in others:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
    return rows


def heading() -> str:
    """Of the table."""
    return (
        f"{'minute':>6} {'orderer':>7} {'heap MB':>7} {'MB':>6} {'CPU %':>6} "
        f"{'env/s':>6} {'fsyncs/s':>8} {'heartbeats/s':>12} "
        f"{'messages/s':>10} {'elections':>9} {'late ticks/s':>12}"
    )


def line(row: dict[str, float]) -> str:
    """One of it."""
    return (
        f"{row['minute']:6.1f} {row['orderer']:7.0f} {row['heap_mb']:7.1f} "
        f"{row['resident_mb']:6.0f} {row['cpu_percent']:6.0f} "
        f"{row['envelopes']:6.0f} {row['fsyncs']:8.1f} {row['heartbeats']:12.0f} "
        f"{row['messages']:10.0f} {row['elections']:9.0f} "
        f"{row['late_ticks']:12.1f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="script/bench channels", description=__doc__)
    parser.add_argument("--channels", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0, help="envelopes of 2 kB a second")
    parser.add_argument(
        "--tick-s", type=float, default=RaftOptions().tick_interval_s, help="the channels' tick"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if not options.json:
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(heading(), flush=True)
    rows = asyncio.run(run(options))
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for number in (0, 1):
        heap = [row["heap_mb"] for row in rows if row["orderer"] == number]
        middle = heap[len(heap) // 2]
        print(
            f"orderer {number}: heap of {heap[0]:.0f} MB at first, {middle:.0f} MB halfway, "
            f"{heap[-1]:.0f} MB at last"
        )


if __name__ == "__main__":
    main()
