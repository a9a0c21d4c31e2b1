"""A home whose ledger is away for a day, on a real network whose clock is fast.

Channel time passes a day in twelve seconds, with quarter hours as intervals.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_socket
from homeassistant.config_entries import ConfigEntryState, ConfigSubentry
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component
from homeassistant.util import dt as dt_util

from consortium.node.network import Replay, create_network
from tests.ports import first_port

from .conftest import ORIGIN, PLANT, RunningNetwork, eventually, join, report_plant
from .test_path import House

INTERVAL_S = 900
RATE = 7200
DAY_S = 86_400
CONNECTION = "H-AWAY"
BOILER = "input_boolean.boiler"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """A network with a fast clock, for this file alone."""
    directory = tmp_path_factory.mktemp("away")
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


@pytest.fixture
async def home(hass: HomeAssistant, network: RunningNetwork, sockets: None) -> AsyncIterator[Any]:
    """A home that has joined and metered, and whose ledger and entry are away."""
    async with network.client() as aurora:
        await aurora.submit(
            "energy",
            "registry:RegisterConnection",
            {
                "connection_id": CONNECTION,
                "utility": "AuroraMSP",
                "zone": "NORTH",
                "max_export_w": 5000,
                "max_import_w": 10_000,
            },
        )
    assert await async_setup_component(hass, "homeassistant", {})
    assert await async_setup_component(hass, "input_boolean", {"input_boolean": {"boiler": {}}})
    report_plant(hass)
    entry = await join(hass, network.invitation("h-away", CONNECTION), PLANT)
    session = entry.runtime_data.session
    await eventually(lambda: session.data.last_committed)
    assert await hass.config_entries.async_unload(entry.entry_id)
    await asyncio.to_thread(network.kill)
    yield entry
    if entry.state is ConfigEntryState.LOADED:
        await hass.config_entries.async_unload(entry.entry_id)
        await hass.async_block_till_done()


async def all_readings(network: RunningNetwork, meter_id: str) -> list[dict[str, Any]]:
    """What the ledger holds, page by page."""
    found: list[dict[str, Any]] = []
    async with network.client() as operator:
        while True:
            page = await operator.evaluate(
                "metering",
                "metering:Readings",
                {
                    "meter_id": meter_id,
                    "from": int(found[-1]["interval_start"]) + 1 if found else 0,
                    "to": 4_000_000_000,
                },
                endorsing_organizations=["AuroraMSP"],
            )
            if not page:
                return found
            found += page


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an owner finds of us in the log, who has turned nothing on."""
    return [
        record.getMessage()
        for record in caplog.records
        if "gridledger" in record.name and record.levelno >= logging.INFO
    ]


@pytest.mark.timeout(300)
async def test_a_day_without_the_ledger(
    hass: HomeAssistant, home: Any, network: RunningNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    assert await hass.config_entries.async_setup(home.entry_id)
    assert home.state is ConfigEntryState.LOADED
    session, house = home.runtime_data.session, House(hass)
    began = time.time()

    # What has to be done by a deadline is done.
    soon = dt_util.now() + timedelta(minutes=2)
    boiler = {
        "kind": "switch",
        "entity": BOILER,
        "power": 1000,
        "priority": 1,
        "daily_minimum": 10,
        "deadline": soon.strftime("%H:%M:%S"),
    }
    hass.config_entries.async_add_subentry(
        home, ConfigSubentry(data=boiler, subentry_type="appliance", title="Boiler", unique_id=None)
    )
    await eventually(lambda: hass.states.is_state(BOILER, "on"), within_s=90)

    await house.live(max(0.0, DAY_S / RATE - (time.time() - began)))
    # Nothing flows from here on: what flowed is in intervals that end later.
    stopped = dt_util.utcnow() + timedelta(seconds=1)
    await eventually(lambda: session.data.queued >= DAY_S // INTERVAL_S - 1)
    assert not session.data.connected
    [down] = said(caplog)
    assert "the ledger is away" in down

    await asyncio.to_thread(network.start)
    await eventually(lambda: session.data.connected, within_s=90)
    await eventually(lambda: session.data.last_committed > stopped, within_s=90)
    readings = await all_readings(network, session.meter_id)
    starts = [int(reading["interval_start"]) for reading in readings]
    assert starts == list(range(starts[0], starts[-1] + 1, INTERVAL_S))
    assert len(starts) >= DAY_S // INTERVAL_S
    for name, now, at_first in (
        ("import", house.imported_wh, 1_000_000),
        ("export", house.exported_wh, 500_000),
    ):
        energy = [int(reading[f"{name}_wh"]) for reading in readings]
        assert min(energy) >= 0
        assert sum(energy) == now - at_first > 0
        assert sum(energy) == int(readings[-1][f"{name}_register_wh"])
    assert session.data.refused == 0
    [_, up] = said(caplog)
    assert "the ledger is back" in up
