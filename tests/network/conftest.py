"""A real network for tests: three utilities on loopback, started as a user starts them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from consortium.node.contracts import client as utility_client
from consortium.node.network import Network, create_network
from gridledger_client import Credentials, GatewayClient, Identity, enroll
from tests.ports import first_port

from .tools import Ledgers, Wire

START_TIMEOUT_S = 90


def without_agents(network: Network) -> None:
    """Nothing is ordered but what a test sends: some show that nothing was."""
    for utility in network.utilities:
        (utility.directory / "peer" / "agent.json").write_text('{"enabled": false}')


@dataclass
class RunningNetwork:
    """A network that `gridledger network up` runs, and its process."""

    network: Network
    process: subprocess.Popen[bytes]
    log: Path
    operations_port: int = 0
    """Where it tells of itself; 0: nowhere."""

    def client(self, utility: str = "Aurora", who: str = "operator") -> GatewayClient:
        """A client acting as a utility's operator or admin."""
        return utility_client(self.network, self.network.utility(utility), who)

    def register(self, utility: str, enrollment_id: str, **attributes: str) -> str:
        """Let someone enrol; attribute names are given without their `gridledger.` prefix."""
        return self.network.register_identity(
            self.network.utility(utility).msp_id,
            enrollment_id,
            None,
            {f"gridledger.{name}": value for name, value in attributes.items()},
        )

    async def enrolled(
        self, utility: str, enrollment_id: str, **attributes: str
    ) -> tuple[Credentials, GatewayClient]:
        """Register and enrol over REST, as a home does; returns credentials and a client."""
        secret = await asyncio.to_thread(self.register, utility, enrollment_id, **attributes)
        member = self.network.utility(utility)
        credentials = await enroll(
            member.ca_url, enrollment_id, secret, self.network.tls_bundle_pem
        )
        identity = Identity(member.msp_id, credentials.certificate_pem, credentials.key_pem)
        return credentials, GatewayClient(
            [member.gateway_address],
            self.network.channel,
            identity,
            self.network.tls_bundle_pem,
        )


def run_cli(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `gridledger` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "consortium.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=check,
        timeout=120,
    )


def start_network(network: Network, log: Path, *options: str) -> RunningNetwork:
    """`gridledger network up` in the background; returns once it says that it is up."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "consortium.cli.main",
                "network",
                "up",
                "--data-dir",
                str(network.directory),
                *options,
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while " is up. " not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"the network did not come up:\n{log.read_text()}")
        time.sleep(0.05)
    return RunningNetwork(network, process, log)


def stop_network(running: RunningNetwork) -> None:
    """Ctrl-C, and everything is gone."""
    running.process.send_signal(signal.SIGINT)
    try:
        running.process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(running.process.pid, signal.SIGKILL)
        raise


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """One network in one process, shared by the tests that leave it running."""
    directory = tmp_path_factory.mktemp("network")
    network = create_network(directory / "data", interval_s=60, base_port=first_port())
    without_agents(network)
    port = first_port(1)
    started = start_network(network, directory / "log", "--operations", str(port))
    started.operations_port = port
    yield started
    stop_network(started)


@pytest.fixture
async def operator(running: RunningNetwork) -> AsyncIterator[GatewayClient]:
    """Aurora's operator."""
    async with running.client() as client:
        yield client


@pytest.fixture
async def wire(running: RunningNetwork) -> AsyncIterator[Wire]:
    """Calls with raw bytes."""
    calls = Wire(running.network)
    yield calls
    await calls.close()


@pytest.fixture
async def ledgers(running: RunningNetwork) -> AsyncIterator[Ledgers]:
    """A look into every peer's ledger."""
    utilities = running.network.utilities
    clients = {utility.msp_id: running.client(utility.name, "admin") for utility in utilities}
    yield Ledgers(running.network, clients)
    await asyncio.gather(*(client.close() for client in clients.values()))
