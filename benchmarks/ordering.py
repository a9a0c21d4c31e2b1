"""Ordering alone: envelopes committed per second, latency, and what an envelope costs.

One, three and five orderers as processes, and a client, all on this machine; envelopes of several
sizes, blocks of several lengths. An envelope counts when its orderer has answered SUCCESS: its
block is committed by Raft and written there. First as many as `--in-flight` allows are sent, for
the rate; then at half that rate, for the latency.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.orderers import CHANNEL, OrdererCluster, channel_status, on_loopback
from consortium.ledger.channel_config import RaftOptions
from consortium.node.network import RAFT_TICK_S

STREAMS = 4


@dataclass(frozen=True)
class Result:
    """One arrangement, measured."""

    orderers: int
    to: str
    via: str
    envelope_bytes: int
    batch: int
    envelopes: int
    committed_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    leader_us: float
    """CPU time for each envelope, µs."""
    follower_us: float
    client_us: float
    fsyncs_per_s: float
    """Of the leader's log."""
    elections: int
    """While measuring; there should be none."""
    profile: list[tuple[str, int, float]] | None = None


async def send(
    folder: Path, msp_id: str, addresses: list[str], orders: dict[str, Any]
) -> dict[str, Any]:
    """Run a broadcaster to its end; `folder` holds the client's keys and the roots it trusts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.broadcaster",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=64 * 1024 * 1024,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    whole = {
        "folder": str(folder),
        "msp_id": msp_id,
        "channel": CHANNEL,
        "addresses": addresses,
        "streams": STREAMS,
        "rate": None,
        "batches": False,
    } | orders
    process.stdin.write(json.dumps(whole).encode() + b"\n")
    await process.stdout.readline()
    process.stdin.write(b"go\n")
    line = await process.stdout.readline()
    code = await process.wait()
    if not line.endswith(b"\n"):
        raise SystemExit(f"the client ended with exit status {code} and told {len(line)} bytes")
    measured: dict[str, Any] = json.loads(line)
    return measured


async def measure(
    orderers: int,
    size: int,
    batch: int,
    *,
    count: int,
    in_flight: int,
    to: str,
    via: str,
    profile: bool,
) -> Result:
    """Start a cluster and measure one arrangement."""
    with tempfile.TemporaryDirectory(prefix="gridledger-bench-") as folder:
        cluster = OrdererCluster(
            Path(folder) / "cluster",
            on_loopback(orderers),
            max_message_count=batch,
            preferred_max_bytes=max(2 * 1024 * 1024, batch * size + 1024 * 1024),
            absolute_max_bytes=20 * 1024 * 1024,
            batch_timeout="100ms",
            raft=RaftOptions(tick_interval_s=RAFT_TICK_S),
        )
        async with cluster:
            leader = await cluster.leader()
            addresses = [one.client_address for one in cluster.orderers]
            if to == "leader":
                addresses = [addresses[leader]]
            orders = {
                "count": count,
                "size": size,
                "in_flight": in_flight,
                "batches": via == "batches",
            }
            client = (cluster.folder, cluster.client.msp_id)
            # Connections, caches and allocators as they are in the long run.
            await send(*client, addresses, orders | {"count": count // 10})
            before = [await one.status() for one in cluster.orderers]
            cpu = [one.cpu_s() for one in cluster.orderers]
            measured = await send(*client, addresses, orders)
            cpu = [(one.cpu_s() - was) for one, was in zip(cluster.orderers, cpu, strict=True)]
            if measured["refusals"]:
                raise SystemExit(f"an orderer refused: {measured['refusals'][0]}")
            after = [await one.status() for one in cluster.orderers]
            rate = count / measured["seconds"]
            found = None
            if profile:
                await cluster.orderers[leader].ask("profile")
                await send(*client, addresses, orders)
                found = (await cluster.orderers[leader].ask("profiled"))["profile"]
            at_half = await send(
                *client, addresses, orders | {"count": max(200, int(rate)), "rate": rate / 2}
            )
            latencies = sorted(at_half["latencies"])
            last = [await one.status() for one in cluster.orderers]
    followers = [cpu[n] for n in range(orderers) if n != leader]
    fsyncs = after[leader]["log_commits"] - before[leader]["log_commits"]
    return Result(
        orderers=orderers,
        to=to,
        via=via,
        envelope_bytes=size,
        batch=batch,
        envelopes=count,
        committed_per_s=rate,
        p50_ms=1000 * latencies[len(latencies) // 2],
        p95_ms=1000 * latencies[int(len(latencies) * 0.95)],
        p99_ms=1000 * latencies[int(len(latencies) * 0.99)],
        leader_us=1e6 * cpu[leader] / count,
        follower_us=1e6 * sum(followers) / max(1, len(followers)) / count,
        client_us=1e6 * measured["cpu_s"] / count,
        fsyncs_per_s=fsyncs / measured["seconds"],
        elections=sum(
            channel_status(now)["leader_changes"] - channel_status(then)["leader_changes"]
            for now, then in zip(last, before, strict=True)
        ),
        profile=found,
    )


def heading() -> str:
    """Of the table."""
    return (
        f"{'orderers':>8} {'to':6} {'via':8} {'bytes':>6} {'batch':>5} {'env/s':>7} {'p50 ms':>7} "
        f"{'p95 ms':>7} {'p99 ms':>7} {'leader':>7} {'follower':>8} {'client':>7} "
        f"{'fsyncs/s':>8} {'elections':>9}   (CPU in µs for each envelope)"
    )


def row(result: Result) -> str:
    """One line of the table."""
    return (
        f"{result.orderers:8} {result.to:6} {result.via:8} {result.envelope_bytes:6} "
        f"{result.batch:5} {result.committed_per_s:7.0f} {result.p50_ms:7.1f} {result.p95_ms:7.1f} "
        f"{result.p99_ms:7.1f} {result.leader_us:7.0f} {result.follower_us:8.0f} "
        f"{result.client_us:7.0f} {result.fsyncs_per_s:8.0f} {result.elections:9}"
    )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="script/bench ordering", description=__doc__)
    parser.add_argument("--orderers", type=_numbers, default=[1, 3, 5])
    parser.add_argument("--sizes", type=_numbers, default=[1000, 4000, 10_000], help="bytes")
    parser.add_argument("--batches", type=_numbers, default=[10, 100, 500], help="envelopes")
    parser.add_argument("--count", type=int, default=10_000, help="envelopes for each measurement")
    parser.add_argument("--in-flight", type=int, default=1000)
    parser.add_argument("--to", choices=("leader", "all"), default="leader", help="who gets them")
    parser.add_argument(
        "--via",
        choices=("single", "batches"),
        default="single",
        help="an envelope a message as Fabric's clients send them, or many as our gateways do",
    )
    parser.add_argument("--profile", action="store_true", help="of the leader's event loop")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    results = []
    if not options.json:
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(heading(), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        for orderers in options.orderers:
            for size in options.sizes:
                for batch in options.batches:
                    result = asyncio.run(
                        measure(
                            orderers,
                            size,
                            batch,
                            count=options.count,
                            in_flight=options.in_flight,
                            to=options.to,
                            via=options.via,
                            profile=options.profile,
                        )
                    )
                    results.append(result)
                    if options.json:
                        continue
                    print(row(result), flush=True)
                    for place, calls, seconds in result.profile or ():
                        per = 1e6 * seconds / options.count
                        print(f"    {per:7.1f} µs {calls / options.count:7.2f} calls  {place}")
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))


if __name__ == "__main__":
    main()
