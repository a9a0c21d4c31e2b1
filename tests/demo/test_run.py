"""The demonstration as a newcomer runs it: a process, its output, and what the ledger then has."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from consortium.node.contracts import client as staff_client
from consortium.node.network import Network
from demo.home_assistant import REPOSITORY, USER, Api, HomeAssistant
from demo.homes import ORIGIN
from demo.run import parse
from tests.ports import first_port

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(400)]
INTERVAL_S = 60
RATE = 12
"""So that an interval takes five seconds."""
DELIVERED_RATE = 6
"""Where Home Assistant delivers: it asks its inverter every few seconds."""


class Run:
    """One run of the demonstration and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until(self, what: Callable[[str], bool], *, within_s: float = 200) -> str:
        """Reads on to the first line that is wanted."""
        assert self.process.stdout is not None
        async with asyncio.timeout(within_s):
            while line := (await self.process.stdout.readline()).decode():
                self.lines.append(line)
                if what(line):
                    return line
        raise AssertionError("the run ended:\n" + "".join(self.lines))

    async def interrupt(self) -> int:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        output, _ = await asyncio.wait_for(self.process.communicate(), 100)
        self.lines.append(output.decode())
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def run(folder: Path, *arguments: str) -> AsyncIterator[Run]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "demo.run", "--data-dir", str(folder), *arguments),
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Run(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def new_run(folder: Path, *arguments: str, rate: int = RATE) -> Any:
    return run(folder, "--homes", "3", "--rate", str(rate), *arguments)


def says(text: str) -> Callable[[str], bool]:
    return lambda line: text in line


async def committed(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Every accredited meter's readings, as its utility's operator reads them."""
    network = Network.load(folder)
    readings = {}
    for number, utility in enumerate(network.utilities, 1):
        async with staff_client(network, utility, "operator") as client:
            readings[f"METER-{number:02d}"] = await client.evaluate(
                "metering",
                "metering:Readings",
                {"meter_id": f"METER-{number:02d}", "from": 0, "to": 10**11, "limit": 1000},
            )
    return readings


async def test_killed_and_started_again_each_interval_is_there_once(tmp_path: Path) -> None:
    async with new_run(tmp_path, "--ledger-only") as first:
        for _ in range(6):  # of each utility, twice; a slow machine sends several at once
            await first.until(says("the interval at"))
        first.process.kill()
    await asyncio.sleep(2 * INTERVAL_S / RATE)
    async with run(tmp_path, "--ledger-only") as second:
        await second.until(says("going on from"))
        await second.until(says("Ctrl-C stops everything"))
        for _ in range(6):  # of each utility: what was missed, and the next interval
            await second.until(says("the interval at"))
        readings = await committed(tmp_path)
        assert await second.interrupt() == 0
    for meter, rows in readings.items():
        starts = [int(row["interval_start"]) for row in rows]
        assert starts == list(range(ORIGIN, starts[-1] + 1, INTERVAL_S)), meter
        assert len(starts) >= 5
        for direction in ("import", "export"):
            counted = sum(int(row[f"{direction}_wh"]) for row in rows[1:])
            register = f"{direction}_register_wh"
            assert counted == int(rows[-1][register]) - int(rows[0][register])
    assert not any("refused" in line for line in second.lines)


async def test_options_that_do_not_fit_the_folder(tmp_path: Path) -> None:
    async with new_run(tmp_path, "--ledger-only") as first:
        await first.until(says("the interval at"))
        assert await first.interrupt() == 0
        assert "stopped" in first.lines[-1]
    for arguments, sentence in {
        ("--homes", "5"): "has 3 homes, not 5; choose another --data-dir",
        ("--interval", "300"): "meters each 60 s, which cannot become 300 s",
        ("--rate", "2"): f"runs at {RATE}, which cannot become 2",
    }.items():
        async with run(tmp_path, "--ledger-only", *arguments) as refused:
            await refused.until(says(sentence))
            assert await refused.process.wait() == 1


async def test_each_node_in_its_own_process(tmp_path: Path) -> None:
    async with new_run(tmp_path, "--ledger-only", "--processes") as first:
        await first.until(says("the interval at "))
        assert await first.interrupt() == 0


async def test_ctrl_c_while_starting(tmp_path: Path) -> None:
    async with new_run(tmp_path, "--ledger-only") as first:
        await first.until(says("peer0.aurora.example is up"))
        assert await first.interrupt() == 0
    async with run(tmp_path, "--ledger-only") as second:
        await second.until(says("the interval at"))
        assert await second.interrupt() == 0


async def test_home_assistant_sells_and_delivers(tmp_path: Path) -> None:
    port = first_port(1)
    async with new_run(tmp_path, "--ha-port", str(port), rate=DELIVERED_RATE) as first:
        await first.until(says("Ctrl-C stops everything"))
        running = json.loads((tmp_path / "demo" / "home-assistant.json").read_text())
        password = HomeAssistant(Path(running["folder"]), 0).password
        async with await Api.login(running["url"], USER, password) as api:
            await _state(api, "binary_sensor.home_01_ledger_connected", "on")
            trade = await api.call_service("gridledger", "sell_energy", {"energy": 0.05})
            assert trade["status"] == "committed"
            assert trade["energy_kwh"] == 0.05
            await _state(api, "sensor.inverter_battery_mode", "discharge")
            await _state(api, "sensor.inverter_battery_mode", "auto")
            panels = await api.command("get_panels")
            assert "grid-ledger" in panels
            validated = await api.command("energy/validate")
            assert [len(source) for source in validated["energy_sources"]] == [0, 0, 0]
        first.process.kill()  # leaves Home Assistant behind, which the next run ends
        await first.process.wait()
    async with run(tmp_path, "--ha-port", str(port)) as second:
        await second.until(says("Ctrl-C stops everything"))
        async with await Api.login(running["url"], USER, password) as api:
            await _state(api, "binary_sensor.home_01_ledger_connected", "on")
        assert await second.interrupt() == 0


async def _state(api: Api, entity_id: str, wanted: str, *, within_s: float = 90) -> None:
    state = None
    async with asyncio.timeout(within_s):
        while state != wanted:
            await asyncio.sleep(0.5)
            state = (await api.get(f"/api/states/{entity_id}"))["state"]


def test_command_line() -> None:
    options = parse(["--homes", "5", "--processes"])
    assert (options.homes, options.interval, options.processes) == (5, None, True)
    with pytest.raises(SystemExit):
        parse(["--homes", "many"])
