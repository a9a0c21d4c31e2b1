"""Faults of network, processes, disks and clocks, each briefly; `script/faults` does more of it.

Each arrangement is a process of its own, since it may need a network and mounts of its own.
"""

import json
import subprocess
import sys

import pytest

from .faults import ARRANGEMENTS

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_nothing_acknowledged_is_lost_and_clients_see_one_register(arrangement: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.network.faults",
            "--short",
            "--json",
            "--only",
            arrangement,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=220,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    (result,) = json.loads(done.stdout)
    if "left_out" in result:
        pytest.skip(f"this machine {result['left_out']}")
    faults = [outcome["fault"] for outcome in result["outcomes"]]
    assert faults == list(ARRANGEMENTS[arrangement].faults)
    assert all(outcome["acknowledged"] for outcome in result["outcomes"])
    assert result["seen"]["acknowledged"] > 50
