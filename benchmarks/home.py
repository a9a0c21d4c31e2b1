"""What the integration costs a Home Assistant: start-up, memory, event loop, recorder.

A real `hass` reads an inverter every second whose values all change each time, which is more than
any home does. It is measured without the integration and then with it: joined through its config
flow to a real network of three utilities, metering quarter hours. The event loop's time is the CPU
time of the main thread, where Home Assistant's loop runs, over the same number of sensor updates.
Rows are counted in the recorder's own database.
"""

import argparse
import asyncio
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from benchmarks.usage import memory_mb
from consortium.node.network import create_network
from demo.home_assistant import (
    PID_FILE,
    Api,
    HomeAssistant,
    configure_energy,
    connect_home,
)
from tests.network.conftest import start_network, stop_network
from tests.network.home import PLANT, Inverter, invitation, prepare, sample_each_second
from tests.ports import first_port

INTERVAL_S: Final = 900
DAY_S: Final = 86_400
NEWS_S: Final = 900
"""For so long entities may write more than they do in the long run."""
_MOST_SHOWN: Final = 10
"""Entities that write the most rows."""
SENSORS: Final = 11
"""That change with each look at the inverter."""


@dataclass
class Cost:
    """One Home Assistant, without the integration or with it."""

    start_s: float
    """From the process's start until it says that it runs: the median."""
    setup_s: float
    """Of the integration, as Home Assistant itself counts it."""
    memory_mb: float
    """Resident, some time after the start."""
    loop_us: float
    """CPU time of the event loop's thread for each change of a sensor."""
    process_us: float
    """The same of all threads."""


@dataclass
class Rows:
    """What the integration's entities write."""

    entities: int
    most_each: int
    """Of the busiest entity, in a day."""
    a_day: int
    """Of all entities."""


class ChangingInverter(Inverter):
    """Everything that it shows changes with each look."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self._random = random.Random(7)  # noqa: S311 - no secret
        self._energy = dict.fromkeys(
            ("pv", "load", "import", "export", "battery_charge", "battery_discharge"), 10_000
        )

    async def _status(self, _request: web.Request) -> web.Response:
        self.looks += 1
        draw = self._random.randint
        for name in self._energy:
            self._energy[name] += draw(1, 2)
        return web.json_response(
            {f"{name}_energy_wh": energy for name, energy in self._energy.items()}
            | {
                "pv_power_w": draw(100, 5000),
                "load_power_w": draw(200, 4000),
                "grid_power_w": draw(-4000, 4000),
                "battery_power_w": draw(-3000, 3000),
                "battery_soc_percent": 50 + draw(-300, 300) / 10,
                "battery_mode": "auto",
            }
        )


def _cpu_s(pid: int) -> tuple[float, float]:
    """CPU seconds of a process's main thread, and of all of its threads."""
    main, every = 0.0, 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        used = int((task / "schedstat").read_text().split()[0]) / 1e9
        every += used
        if task.name == str(pid):
            main = used
    return main, every


async def _setup_s(api: Api) -> float:
    found = await api.command("integration/setup_info")
    return next((one["seconds"] for one in found if one["domain"] == "gridledger"), 0.0)


async def _cost(
    house: HomeAssistant, inverter: ChangingInverter, starts: int, seconds: float
) -> Cost:
    """Start so often, and measure the last one for so long."""
    took, setup = [], []
    for _ in range(starts):
        await house.stop()
        began = time.monotonic()
        await house.start(lambda _: None)
        took.append(time.monotonic() - began)
        async with await house.connect() as api:
            setup.append(await _setup_s(api))
    pid = int((house.folder / PID_FILE).read_text())
    await asyncio.sleep(min(60.0, seconds))
    looks, (main_s, every_s) = inverter.looks, _cpu_s(pid)
    await asyncio.sleep(seconds)
    changes = (inverter.looks - looks) * SENSORS
    main_after_s, every_after_s = _cpu_s(pid)
    return Cost(
        round(statistics.median(took), 2),
        round(statistics.median(setup), 3),
        round(memory_mb(pid), 1),
        round((main_after_s - main_s) / changes * 1e6, 1),
        round((every_after_s - every_s) / changes * 1e6, 1),
    )


async def _rows(house: HomeAssistant, seconds: float, *, everything: bool) -> Rows:
    """Count what is written while all values change, as if they did for a whole day."""
    async with await house.connect() as api:
        ours = [
            entity
            for entity in await api.command("config/entity_registry/list")
            if entity["platform"] == "gridledger"
        ]
        if everything:
            for entity in ours:
                if entity["disabled_by"]:
                    await api.command(
                        "config/entity_registry/update",
                        entity_id=entity["entity_id"],
                        disabled_by=None,
                    )
            [entry] = await api.get("/api/config/config_entries/entry?domain=gridledger")
            await api.post(f"/api/config/config_entries/entry/{entry['entry_id']}/reload", {})
    counted = [e["entity_id"] for e in ours if everything or not e["disabled_by"]]
    await asyncio.sleep(NEWS_S)  # what a start writes once is no measure of a day either
    since = time.time()
    await asyncio.sleep(seconds)
    until = time.time()
    await asyncio.sleep(10)  # the recorder commits every five seconds
    database = sqlite3.connect(f"file:{house.folder}/home-assistant_v2.db?mode=ro", uri=True)
    rows = dict(
        database.execute(
            "SELECT meta.entity_id, COUNT(*) FROM states JOIN states_meta AS meta "
            "USING (metadata_id) WHERE last_updated_ts >= ? AND last_updated_ts < ? "
            "GROUP BY meta.entity_id",
            (since, until),
        ).fetchall()
    )
    database.close()
    each = {name: rows.get(name, 0) * DAY_S / seconds for name in counted}
    for name, count in sorted(each.items(), key=lambda one: -one[1])[:_MOST_SHOWN]:
        print(f"{count:8.0f} rows a day: {name}", file=sys.stderr)
    return Rows(len(counted), round(max(each.values())), round(sum(each.values())))


async def run(starts: int, seconds: float, *, rows_only: bool) -> dict[str, Any]:
    """Measure without the integration, then with it."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gridledger-bench-") as folder:
        inverter = ChangingInverter()
        house = HomeAssistant(Path(folder) / "house", first_port(1))
        try:
            await house.prepare(await inverter.start())
            await sample_each_second(house)
            await house.start(lambda _: None)  # a first start compiles
            async with await house.connect() as api:
                await configure_energy(api)
            if not rows_only:
                found["without"] = asdict(await _cost(house, inverter, starts, seconds))
                print(found, file=sys.stderr)
            network = create_network(
                Path(folder) / "data", interval_s=INTERVAL_S, base_port=first_port()
            )
            running = await asyncio.to_thread(start_network, network, Path(folder) / "network.log")
            try:
                await prepare(running, int(time.time()))
                async with await house.connect() as api:
                    text = await asyncio.to_thread(invitation, running)
                    await connect_home(api, text, "AuroraMSP", PLANT)
                if not rows_only:
                    found["with"] = asdict(await _cost(house, inverter, starts, seconds))
                    print(found, file=sys.stderr)
                found["rows"] = asdict(await _rows(house, seconds, everything=False))
                found["rows of every entity"] = asdict(await _rows(house, seconds, everything=True))
                await house.stop()
            finally:
                await asyncio.to_thread(stop_network, running)
        finally:
            await house.stop()
            await inverter.stop()
    return found


def _print_costs(without: dict[str, float], with_it: dict[str, float]) -> None:
    print("                                     without      with     added")
    for name, title in (
        ("start_s", "start until it runs, s"),
        ("setup_s", "  of it the integration's set-up, s"),
        ("memory_mb", "resident memory, MB"),
        ("loop_us", "event loop for each change, µs"),
        ("process_us", "all threads for each change, µs"),
    ):
        added = with_it[name] - without[name]
        print(f"{title:36} {without[name]:8.2f}  {with_it[name]:8.2f}  {added:8.2f}")


def main() -> None:
    """Run the command; see `script/bench home --help`."""
    parser = argparse.ArgumentParser(prog="script/bench home", description=__doc__)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600, help="of each measurement")
    parser.add_argument("--rows", action="store_true", help="count the recorder's rows alone")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = asyncio.run(run(given.starts, given.seconds, rows_only=given.rows))
    if given.json:
        print(json.dumps(found))
        return
    if "with" in found:
        _print_costs(found["without"], found["with"])
    for name in ("rows", "rows of every entity"):
        rows = found[name]
        print(
            f"{name}: {rows['a_day']} in a day by {rows['entities']} entities, "
            f"{rows['most_each']} by the busiest"
        )


if __name__ == "__main__":
    main()
