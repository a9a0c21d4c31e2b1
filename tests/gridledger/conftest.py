"""A real Home Assistant core in the test's loop, and a real network of utilities beside it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_socket
from homeassistant.config_entries import ConfigEntryState
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.setup import async_setup_component

from consortium.node.contracts import client as utility_client
from consortium.node.network import Network, Replay, create_network
from gridledger_client import GatewayClient
from tests.ports import first_port

RATE = 60
"""The test network's clock: a minute, its interval, passes in a second."""
ORIGIN = 1_750_420_800  # 2025-06-20 12:00 UTC: far from the end of a channel day
INTERVAL_S = 60
START_TIMEOUT_S = 90

IMPORT = "sensor.meter_import"
EXPORT = "sensor.meter_export"
GRID_POWER = "sensor.meter_power"
PV_ENERGY = "sensor.pv_energy"
PV_POWER = "sensor.pv_power"
LEVEL = "sensor.battery_level"
BATTERY_POWER = "sensor.battery_power"

PLANT: dict[str, Any] = {
    "grid_import_energy": [IMPORT],
    "grid_export_energy": [EXPORT],
    "grid_power": GRID_POWER,
    "invert_grid_power": False,
    "pv_energy": [PV_ENERGY],
    "pv_power": [PV_POWER],
    "battery_level": LEVEL,
    "battery_power": BATTERY_POWER,
    "invert_battery_power": False,
    "battery_capacity": 10.0,
    "battery_reserve": 20,
    "battery_max_power": 5000,
}


@dataclass
class RunningNetwork:
    """Three utilities in a process of their own."""

    network: Network
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start all nodes; return once they are up."""
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "consortium.cli.main", "network", "up"),
                    *("--data-dir", str(self.network.directory)),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while " is up. " not in (text := self.log.read_text()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"the network did not come up:\n{text}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End all nodes at once, as a power cut does."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def client(self, utility: str = "Aurora") -> GatewayClient:
        """A client that acts as a utility's operator."""
        return utility_client(self.network, self.network.utility(utility), "operator")

    def invite(self, enrollment_id: str, connection_id: str) -> dict[str, Any]:
        """Let a home enrol at Aurora; return what its owner types into the first form."""
        aurora = self.network.utility("Aurora")
        invitation = self.network.invite(aurora, enrollment_id, connection_id)
        return {
            "gateways": ", ".join(invitation.gateways),
            "ca_url": invitation.ca_url,
            "channel": invitation.channel,
            "enrollment_id": enrollment_id,
            "secret": invitation.secret,
            "fingerprint": invitation.fingerprint,
        }

    def invitation(self, enrollment_id: str, connection_id: str) -> str:
        """Let a home enrol at Aurora; return the text that its owner pastes."""
        aurora = self.network.utility("Aurora")
        return self.network.invite(aurora, enrollment_id, connection_id).encode()


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """One network for all tests of this folder."""
    directory = tmp_path_factory.mktemp("network")
    pytest_socket.enable_socket()
    made = create_network(
        directory / "data",
        interval_s=INTERVAL_S,
        base_port=first_port(),
        replay=Replay(origin=ORIGIN, anchor=int(time.time()), rate=RATE),
    )
    running = RunningNetwork(made, directory / "log")
    running.start()
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield running
    running.kill()


@pytest.fixture(autouse=True)
def _our_integration(enable_custom_integrations: None) -> None:
    """Let Home Assistant load what lies in custom_components."""


@pytest.fixture
def hass_config_dir(tmp_path: Path) -> str:
    """A configuration folder of each test's own."""
    return str(tmp_path)


@pytest.fixture
def sockets() -> Iterator[None]:
    """Let the config flow talk to a certificate authority on this machine."""
    pytest_socket.enable_socket()
    yield
    pytest_socket.disable_socket(allow_unix_socket=True)


def set_state(
    hass: HomeAssistant, entity_id: str, value: float | str, unit: str = "kWh", **attributes: Any
) -> None:
    """Report a sensor's value, as its own integration would."""
    hass.states.async_set(entity_id, str(value), {"unit_of_measurement": unit, **attributes})


def report_plant(
    hass: HomeAssistant, *, imported: float = 1000.0, exported: float = 500.0, level: float = 80.0
) -> None:
    """Report all sensors of a home."""
    set_state(hass, IMPORT, imported)
    set_state(hass, EXPORT, exported)
    set_state(hass, GRID_POWER, -1500, "W")
    set_state(hass, PV_ENERGY, 7000.0)
    set_state(hass, PV_POWER, 2.5, "kW")
    set_state(hass, LEVEL, level, "%")
    set_state(hass, BATTERY_POWER, -400, "W")


async def eventually(
    check: Callable[[], Any] | Callable[[], Awaitable[Any]], *, within_s: float = 60.0
) -> Any:
    """Return what ``check`` returns once it is true; fail if it never is."""
    deadline = time.monotonic() + within_s
    while True:
        result = check()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail("waited in vain")
        await asyncio.sleep(0.05)


async def prepare_connection(running: RunningNetwork, connection_id: str) -> None:
    """Enter a connection point and publish today's rates, as operators do."""
    async with running.client() as aurora:
        await aurora.submit(
            "energy",
            "registry:RegisterConnection",
            {
                "connection_id": connection_id,
                "utility": "AuroraMSP",
                "zone": "NORTH",
                "max_export_w": 5000,
                "max_import_w": 10_000,
            },
        )
    for utility, price in (("Aurora", 110_000), ("Boreal", 130_000)):
        async with running.client(utility) as supplier:
            now = ORIGIN + (time.time() - running.network.replay.anchor) * RATE
            await supplier.submit(
                "energy",
                "market:PublishRate",
                {
                    "supplier": f"{utility}MSP",
                    "day": time.strftime("%Y-%m-%d", time.gmtime(now)),
                    "kind": "buy",
                    "price_micro_per_kwh": price,
                },
            )


async def first_form(hass: HomeAssistant, given: dict[str, Any] | str) -> Any:
    """Fill in the first screen: an invitation, or by hand what it would say."""
    flows = hass.config_entries.flow
    step = await flows.async_init("gridledger", context={"source": "user"})
    assert (step["type"], step["step_id"]) == (FlowResultType.FORM, "user")
    if isinstance(given, str):
        return await flows.async_configure(step["flow_id"], {"invitation": given})
    step = await flows.async_configure(step["flow_id"], {"other": {"way": "manual"}})
    assert (step["type"], step["step_id"]) == (FlowResultType.FORM, "manual")
    return await flows.async_configure(step["flow_id"], given)


async def confirm(hass: HomeAssistant, step: Any) -> Any:
    """Go past the second screen."""
    assert step["step_id"] == "confirm", step
    return await hass.config_entries.flow.async_configure(step["flow_id"], {})


async def fill_in(hass: HomeAssistant, step: Any, plant: dict[str, Any]) -> Any:
    """Fill in the plant, and go on where it only warns."""
    assert step["step_id"] == "plant", step
    step = await hass.config_entries.flow.async_configure(step["flow_id"], plant)
    if step.get("errors") == {"base": "look_again"}:
        step = await hass.config_entries.flow.async_configure(step["flow_id"], plant)
    return step


async def join(hass: HomeAssistant, invitation: dict[str, Any] | str, plant: dict[str, Any]) -> Any:
    """Walk through the config flow; return its entry, loaded."""
    step = await confirm(hass, await first_form(hass, invitation))
    step = await fill_in(hass, step, plant)
    assert step["type"] is FlowResultType.CREATE_ENTRY, step
    await hass.async_block_till_done()
    assert step["result"].state is ConfigEntryState.LOADED
    return step["result"]


@pytest.fixture
async def home(
    hass: HomeAssistant, network: RunningNetwork, sockets: None, request: pytest.FixtureRequest
) -> AsyncIterator[Any]:
    """A home that has joined, with its entry loaded and its ledger connected."""
    connection_id = f"H-{abs(hash(request.node.name)) % 10**9}"
    await prepare_connection(network, connection_id)
    assert await async_setup_component(hass, "homeassistant", {})
    report_plant(hass)
    entry = await join(hass, network.invitation(connection_id.lower(), connection_id), PLANT)
    await eventually(lambda: entry.runtime_data.session.data.connected)
    yield entry
    if entry.state is ConfigEntryState.LOADED:
        await hass.config_entries.async_unload(entry.entry_id)
        await hass.async_block_till_done()
