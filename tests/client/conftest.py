"""A real network of three utilities, in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from consortium.node.network import Network, create_network
from tests.ports import first_port

START_TIMEOUT_S = 90
CONNECTION = "H-CLIENT"


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """One network for all tests of this folder."""
    directory: Path = tmp_path_factory.mktemp("client-network")
    made = create_network(directory / "data", interval_s=60, base_port=first_port())
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "consortium.cli.main", "network", "up"),
                *("--data-dir", str(made.directory)),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while " is up. " not in (text := log.read_text()):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the network did not come up:\n{text}")
            time.sleep(0.05)
        yield made
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
