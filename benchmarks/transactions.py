"""Committed transactions per second, latency, CPU by process, memory and cold start.

Starts a real network (three utilities; each node a process, or all in one), lets a client submit
`wallet:Deposit` transactions with many in flight, and counts what was committed and valid: a
transaction is done when the gateway's peer has told its validation code. Nodes and client share
this machine. Both clients do the same work: our own, and Hyperledger Fabric's for Node.js.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.usage import cpu_s, memory_mb
from consortium.node.contracts import client, ensure_contracts
from consortium.node.network import Network, create_network
from consortium.node.processes import ProcessNetwork
from tests.ports import first_port

FABRIC_CLIENT = Path(__file__).parent.parent / "tests" / "network" / "fabric_client"


@dataclass(frozen=True)
class Result:
    """One run of one client against one arrangement of nodes."""

    nodes: str
    client: str
    in_flight: int
    transactions: int
    committed_per_s: float
    p50_ms: float
    p95_ms: float
    cpu_ms_per_transaction: dict[str, float]
    """By process; the client's own under `client`."""
    memory_mb: dict[str, float]
    """Resident set of each process after the run."""


async def _own_client(network: Network, count: int, in_flight: int, run: str) -> list[float]:
    """Latencies in seconds of `count` transactions through our own client."""
    latencies: list[float] = []
    numbers = iter(range(count))
    async with client(network, network.utilities[0], "operator") as gateway:

        async def worker() -> None:
            for number in numbers:
                started = time.perf_counter()
                await gateway.submit("energy", "wallet:Deposit", _deposit(run, number))
                latencies.append(time.perf_counter() - started)

        await asyncio.gather(*(worker() for _ in range(in_flight)))
    return latencies


def _deposit(run: str, number: int) -> dict[str, str]:
    return {
        "account": "SUPPLIER-AURORA",
        "amount_micro": "1000000",
        "bank_reference": f"{run}-{number}",
    }


def own_client_main() -> None:
    """Entry point of the client's own process: reads its orders from standard input."""
    orders = json.load(sys.stdin)
    network = Network.load(Path(orders["data_dir"]))
    started = time.perf_counter()
    latencies = asyncio.run(
        _own_client(network, orders["count"], orders["in_flight"], orders["run"])
    )
    json.dump({"seconds": time.perf_counter() - started, "latencies": latencies}, sys.stdout)


async def _measure(
    network: Network,
    pids: dict[str, int],
    nodes: str,
    which: str,
    count: int,
    in_flight: int,
) -> Result:
    utility = network.utilities[0]
    if in_flight == 1:
        count = min(count, 100)  # one after another: the batch timeout is most of each
    orders = {
        "data_dir": str(network.directory),
        "count": count,
        "in_flight": in_flight,
        "run": f"{which.upper()}-{time.time_ns()}",
        "address": utility.gateway_address,
        "tlsRoots": str(network.directory / "tls-bundle.pem"),
        "mspId": utility.msp_id,
        "certificate": str(utility.directory / "operator" / "sign.cert.pem"),
        "key": str(utility.directory / "operator" / "sign.key.pem"),
        "channel": network.channel,
    }
    command = (
        [shutil.which("node") or "node", str(FABRIC_CLIENT / "load.mjs")]
        if which == "node"
        else [
            sys.executable,
            "-c",
            "from benchmarks.transactions import own_client_main as main; main()",
        ]
    )
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    children = os.times()
    output, _ = await process.communicate(json.dumps(orders).encode())
    if process.returncode != 0:
        raise SystemExit(f"the {which} client failed with status {process.returncode}")
    after_children = os.times()
    measured = json.loads(output)
    cpu = {name: (cpu_s(pid) - before[name]) * 1000 / count for name, pid in pids.items()}
    cpu["client"] = (
        (
            (after_children.children_user - children.children_user)
            + (after_children.children_system - children.children_system)
        )
        * 1000
        / count
    )
    latencies = sorted(measured["latencies"])
    return Result(
        nodes=nodes,
        client=which,
        in_flight=in_flight,
        transactions=count,
        committed_per_s=count / measured["seconds"],
        p50_ms=statistics.median(latencies) * 1000,
        p95_ms=latencies[int(len(latencies) * 0.95)] * 1000,
        cpu_ms_per_transaction=cpu,
        memory_mb={name: memory_mb(pid) for name, pid in pids.items()},
    )


async def _cold_start(folder: Path) -> float:
    """Seconds from an empty folder to the first committed transaction, all nodes in one process."""
    started = time.perf_counter()
    process = await _start_embedded(folder)
    network = Network.load(folder)
    async with client(network, network.utilities[0], "operator") as gateway:
        await gateway.submit("energy", "wallet:Deposit", _deposit("COLD", 0))
    seconds = time.perf_counter() - started
    process.terminate()
    await process.wait()
    return seconds


async def _start_embedded(folder: Path) -> asyncio.subprocess.Process:
    if not (folder / "network.json").exists():
        create_network(folder, interval_s=60, base_port=first_port())
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "consortium.cli.main",
        "network",
        "up",
        "--data-dir",
        str(folder),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def run(options: argparse.Namespace) -> dict[str, object]:
    """Everything; progress goes to standard error."""
    clients = [which for which in ("own", "node") if which in options.clients]
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="gridledger-bench-") as temporary:
        folder = Path(temporary)
        _say("cold start, three times")
        cold = [await _cold_start(folder / f"cold{number}") for number in range(3)]
        _say("all nodes in one process")
        process = await _start_embedded(folder / "embedded")
        network = Network.load(folder / "embedded")
        for which in clients:
            for in_flight in options.in_flight:
                _say(f"  {which} client, {in_flight} in flight")
                pids = {"all nodes": process.pid}
                results.append(
                    await _measure(network, pids, "one process", which, options.count, in_flight)
                )
        process.terminate()
        await process.wait()
        _say("each node in its own process")
        network = create_network(folder / "processes", interval_s=60, base_port=first_port())
        nodes = ProcessNetwork(network)
        await nodes.start()
        try:
            await ensure_contracts(network)
            pids = {
                f"{kind} {utility}": started.pid
                for (utility, kind), started in nodes.processes.items()
                if kind != "ca"
            }
            for which in clients:
                for in_flight in options.in_flight:
                    _say(f"  {which} client, {in_flight} in flight")
                    results.append(
                        await _measure(network, pids, "processes", which, options.count, in_flight)
                    )
        finally:
            await nodes.stop()
    return {
        "machine": (
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        ),
        "cold_start_s": cold,
        "results": [asdict(result) for result in results],
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _report(measured: dict[str, object], results: list[Result]) -> str:
    cold = measured["cold_start_s"]
    assert isinstance(cold, list)
    lines = [
        str(measured["machine"]),
        f"cold start, nothing to first committed transaction: {min(cold):.1f} to {max(cold):.1f} s",
        "",
    ]
    lines.append(
        f"{'nodes':12} {'client':7} {'in flight':>9} {'tx/s':>7} {'p50 ms':>7} {'p95 ms':>7} "
        f"{'server CPU ms/tx':>17} {'client CPU ms/tx':>17} {'memory MB':>10}"
    )
    for result in results:
        cpu = result.cpu_ms_per_transaction
        server = sum(value for name, value in cpu.items() if name != "client")
        lines.append(
            f"{result.nodes:12} {result.client:7} {result.in_flight:9} "
            f"{result.committed_per_s:7.0f} {result.p50_ms:7.0f} {result.p95_ms:7.0f} "
            f"{server:17.2f} {cpu['client']:17.2f} {sum(result.memory_mb.values()):10.0f}"
        )
    last = results[-1]
    if len(last.memory_mb) > 1:
        lines += ["", f"by process ({last.client} client, {last.in_flight} in flight):"]
        lines += [
            f"  {name:16} {last.cpu_ms_per_transaction[name]:6.2f} ms/tx  {memory:6.0f} MB"
            for name, memory in last.memory_mb.items()
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="script/bench", description=__doc__)
    parser.add_argument("--count", type=int, default=3000, help="transactions per run")
    parser.add_argument(
        "--in-flight", type=lambda text: [int(part) for part in text.split(",")], default=[1, 256]
    )
    parser.add_argument("--clients", default="own,node", help="own, node or both")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if "node" in options.clients and not (FABRIC_CLIENT / "node_modules").exists():
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=FABRIC_CLIENT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    measured = asyncio.run(run(options))
    if options.json:
        print(json.dumps(measured, indent=2))
    else:
        found = measured["results"]
        assert isinstance(found, list)
        print(_report(measured, [Result(**result) for result in found]))


if __name__ == "__main__":
    main()
