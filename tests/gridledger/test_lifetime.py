"""A home that lives long: reloads leave nothing behind, and a day without its ledger is caught up.

``GRIDLEDGER_RELOADS=100`` reloads as often; few are enough to find what leaks each time.
"""

import asyncio
import gc
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from homeassistant.core import HomeAssistant

from custom_components.gridledger.client import GatewayClient
from custom_components.gridledger.coordinator import HomeCoordinator
from custom_components.gridledger.keeper import HomeKeeper
from custom_components.gridledger.outbox import Outbox
from custom_components.gridledger.session import LedgerSession

from .conftest import eventually
from .test_path import House

RELOADS = int(os.environ.get("GRIDLEDGER_RELOADS", "12"))
GROWTH_KB = 60
"""What a reload may leave in memory on average: Home Assistant's own registries and logs too."""
KEPT = (GatewayClient, HomeCoordinator, HomeKeeper, LedgerSession, Outbox)


def descriptors() -> Counter[str]:
    """What this process has open, sockets and pipes by their kind alone."""
    found: Counter[str] = Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found[str(descriptor.readlink()).partition(":[")[0]] += 1
        except FileNotFoundError:  # the listing's own
            continue
    return found


def resident_kb() -> int:
    """The process's resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def alive() -> Counter[str]:
    """Count what must exist once for a loaded home, and channels of gRPC."""
    gc.collect()
    found: Counter[str] = Counter()
    for one in gc.get_objects():
        kind = type(one)
        if kind in KEPT or (kind.__name__ == "Channel" and kind.__module__.startswith("grpc")):
            found[kind.__name__] += 1
    return found


@pytest.mark.timeout(900)
async def test_reloads_leave_nothing_behind(hass: HomeAssistant, home: Any) -> None:
    house = House(hass)

    async def reload() -> None:
        """Reload as soon as the ledger is there again, so that each has opened a channel."""
        assert await hass.config_entries.async_reload(home.entry_id)
        await eventually(lambda: home.runtime_data.session.data.connected)
        await house.live(0.2)

    async def at_rest() -> tuple[int, int, Counter[str], Counter[str]]:
        await asyncio.sleep(1)
        tasks = sum(not task.done() for task in asyncio.all_tasks())
        return tasks, threading.active_count(), descriptors(), alive()

    for _ in range(3):  # caches fill, threads of pools start
        await reload()
    before, memory_kb = await at_rest(), resident_kb()
    assert before[3].pop("Channel") <= 2, before
    assert set(before[3].values()) == {1}, before
    for _ in range(RELOADS):
        await reload()
    # gRPC closes connections some seconds later.
    open_before = sum(before[2].values())
    await eventually(lambda: sum(descriptors().values()) <= open_before + 2)
    after, grown_kb = await at_rest(), resident_kb() - memory_kb
    print(f"{RELOADS} reloads: {before} -> {after}, {grown_kb} kB more")
    assert after[3].pop("Channel") <= 2, after
    assert after[0] <= before[0] + 2, "tasks go on"
    assert after[1] <= before[1] + 2, "threads go on"
    assert after[3] == before[3], "something holds on to what was unloaded"
    assert grown_kb <= 4_000 + GROWTH_KB * RELOADS, "memory grows"


async def test_a_meter_that_would_begin_once_its_home_has_stopped(
    hass: HomeAssistant, home: Any
) -> None:
    runtime = home.runtime_data
    asked, go_on = threading.Event(), threading.Event()
    fact = runtime.outbox.fact

    def slow(name: str) -> Any:
        asked.set()
        go_on.wait(60)
        return fact(name)

    runtime.home.meter = None  # as before the ledger was reached for the first time
    with patch.object(runtime.outbox, "fact", slow):
        runtime.home.async_adopt_clock(runtime.session.clock)
        await hass.async_add_executor_job(asked.wait, 60)
        await runtime.home.async_stop()
        go_on.set()
        await hass.async_block_till_done()
    assert runtime.home.meter is None
    assert runtime.home._cancel_tick is None
