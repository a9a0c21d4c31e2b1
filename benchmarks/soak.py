"""Full load for a long time, and how often the leader changed meanwhile: it should not.

A real network of three utilities, all nodes in one process or each in its own, whose one client
keeps many transactions in flight. Elections are counted in the nodes' logs.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from consortium.node.contracts import client
from consortium.node.network import Network, create_network
from gridledger_client import GridLedgerError
from tests.ports import first_port

LEADS = re.compile(r"^(\S+ \S+) .*: (orderer \d+ leads in term \d+) from block", re.MULTILINE)
START_TIMEOUT_S = 120.0


async def _load(network: Network, until: float, in_flight: int) -> tuple[int, int]:
    """How many deposits were committed, and how many failed."""
    done = failed = 0
    run = f"SOAK-{time.time_ns()}"
    async with client(network, network.utilities[0], "operator") as gateway:

        async def worker(number: int) -> None:
            nonlocal done, failed
            turn = 0
            while time.monotonic() < until:
                turn += 1
                try:
                    await gateway.submit(
                        "energy",
                        "wallet:Deposit",
                        {
                            "account": "SUPPLIER-AURORA",
                            "amount_micro": "1000000",
                            "bank_reference": f"{run}-{number}-{turn}",
                        },
                    )
                    done += 1
                except GridLedgerError as error:
                    failed += 1
                    print(f"{type(error).__name__}: {error}", file=sys.stderr)

        await asyncio.gather(*(worker(number) for number in range(in_flight)))
    return done, failed


async def run(minutes: float, in_flight: int, options: Sequence[str]) -> dict[str, object]:
    """Start the network, load it, and read its log."""
    with tempfile.TemporaryDirectory(prefix="gridledger-bench-") as temporary:
        folder = Path(temporary)
        network = create_network(folder / "data", interval_s=60, base_port=first_port())
        log = folder / "log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "consortium.cli.main",
                "--log-level",
                "info",
                "network",
                "up",
                "--data-dir",
                str(network.directory),
                *options,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while " is up. " not in log.read_text():
                    if process.returncode is not None:
                        raise SystemExit(f"the network did not start:\n{log.read_text()[-2000:]}")
                    await asyncio.sleep(0.1)
            before = len(LEADS.findall(log.read_text()))
            started = time.monotonic()
            done, failed = await _load(network, started + 60 * minutes, in_flight)
            seconds = time.monotonic() - started
            leads = LEADS.findall(log.read_text())
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()
    return {
        "nodes": "processes" if options else "one process",
        "minutes": seconds / 60,
        "committed": done,
        "committed_per_s": done / seconds,
        "failed": failed,
        "elections": [f"{at} {what}" for at, what in leads[before:]],
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="script/bench soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--processes", action="store_true", help="each node a process")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = asyncio.run(
        run(options.minutes, options.in_flight, ["--processes"] if options.processes else [])
    )
    if options.json:
        print(json.dumps(found, indent=2))
        return
    elections = found["elections"]
    assert isinstance(elections, list)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(
        f"{found['nodes']}: {found['committed']} transactions in {found['minutes']:.1f} minutes "
        f"({found['committed_per_s']:.0f}/s), {found['failed']} failed, "
        f"{len(elections)} elections after the first"
    )
    for one in elections:
        print(f"  {one}")


if __name__ == "__main__":
    main()
