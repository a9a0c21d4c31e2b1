"""A home for tests: a real Home Assistant, an inverter whose truth is known, and a real ledger.

`hass` is a process of its own that reads the inverter over HTTP, joins a network of utilities
through its config flow, and meters intervals of five seconds. The inverter's registers are known
at every instant, so what reaches the ledger can be held against the truth.
"""

import asyncio
import json
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from consortium.node.network import Replay, create_network
from demo import trading
from demo.home_assistant import (
    LOG_FILE,
    PID_FILE,
    Api,
    HomeAssistant,
    configure_energy,
    connect_home,
)
from demo.homes import ORIGIN
from gridledger_client import GatewayClient, GridLedgerError
from tests.ports import first_port

from .conftest import RunningNetwork, start_network, stop_network

INTERVAL_S = 5
SAMPLE_S = 1
"""How often Home Assistant reads the inverter here."""
LATENESS_S = 2.0
"""What a busy machine may add before a value that was read has its time."""
CONNECTION = "H-0001"
METER = f"HA-{CONNECTION}"
CAPACITY_KWH = 10.0
RESERVE_PERCENT = 20
BATTERY_W = 5000
EFFICIENCY = 0.95
PLANT = {
    "battery_capacity": CAPACITY_KWH,
    "battery_max_power": BATTERY_W,
    "battery_reserve": RESERVE_PERCENT,
}
"""What the owner states in the plant's form."""
WITHIN_S = 90
MISTAKES = (" ERROR ", "Detected ", "was never awaited", "was never retrieved")
"""Signs of a mistake in a line of the log: Home Assistant begins with "Detected" what an
integration must not do, such as to block the event loop or to call it from another thread."""
DIRECTIONS = ("import", "export")


@dataclass(frozen=True)
class Flow:
    """What flows from an instant (real epoch seconds) on, in W."""

    since: float
    import_w: int
    export_w: int


@dataclass(frozen=True)
class Command:
    """What the battery was told: it ends by itself. Instants are real epoch seconds."""

    at: float
    mode: str
    power_w: int
    until: float


class Inverter:
    """An inverter whose registers, in Wh, are a function of time.

    Its battery does nothing by itself; told to discharge, it does so until the command ends.
    """

    base_wh = (12_345_678, 2_345_678)

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self._level = (time.time(), 80.0)
        self._flows = [Flow(time.time(), 0, 0)]
        self._runner: web.AppRunner | None = None

    def flow(self, import_w: int, export_w: int) -> None:
        """Draw and give so much from now on."""
        self._flows.append(Flow(time.time(), import_w, export_w))

    def energy_wh(self, at: float) -> tuple[float, float]:
        """Import and export since the start, exactly."""
        ends = [flow.since for flow in self._flows[1:]] + [at]
        imported = exported = 0.0
        for flow, end in zip(self._flows, ends, strict=True):
            seconds = max(0.0, min(end, at) - flow.since)
            imported += flow.import_w * seconds / 3600
            exported += flow.export_w * seconds / 3600
        return imported, exported

    def steepest_w(self, name: str, since: float, until: float) -> int:
        """The most that flowed at any instant of a time."""
        ends = [flow.since for flow in self._flows[1:]] + [until]
        return max(
            getattr(flow, name)
            for flow, end in zip(self._flows, ends, strict=True)
            if flow.since <= until and end >= since
        )

    @property
    def level_percent(self) -> float:
        """How full the battery is now."""
        since, level = self._level
        drawn = 0.0
        now = time.time()
        ends = [command.at for command in self.commands[1:]] + [now]
        for command, end in zip(self.commands, ends[: len(self.commands)], strict=True):
            seconds = max(0.0, min(end, command.until, now) - max(since, command.at))
            if command.mode == "discharge":
                drawn += command.power_w * seconds / 3600 / EFFICIENCY
        return level - drawn / (10 * CAPACITY_KWH)

    @level_percent.setter
    def level_percent(self, level: float) -> None:
        self._level = (time.time(), level)

    @property
    def command(self) -> Command | None:
        """The command that holds, None in automatic."""
        last = self.commands[-1] if self.commands else None
        if last is None or last.mode == "auto" or last.until <= time.time():
            return None
        return last

    def registers_wh(self) -> tuple[int, int]:
        """What the registers show now."""
        now = self.energy_wh(time.time())
        return self.base_wh[0] + int(now[0]), self.base_wh[1] + int(now[1])

    async def start(self) -> str:
        """Listen on loopback; return the address."""
        application = web.Application()
        application.router.add_get("/api/status", self._status)
        application.router.add_post("/api/battery", self._battery)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _battery(self, request: web.Request) -> web.Response:
        told = await request.json()
        until = datetime.fromisoformat(told["until"]).timestamp()
        self.commands.append(
            Command(time.time(), told["mode"], int(told.get("power_w") or 0), until)
        )
        return web.json_response({})

    async def _status(self, _request: web.Request) -> web.Response:
        flow, command = self._flows[-1], self.command
        given = command.power_w if command is not None and command.mode == "discharge" else 0
        imported, exported = self.registers_wh()
        return web.json_response(
            {
                "pv_power_w": 0,
                "pv_energy_wh": 0,
                "load_power_w": 0,
                "load_energy_wh": 0,
                "grid_power_w": flow.import_w - flow.export_w - given,
                "import_energy_wh": imported,
                "export_energy_wh": exported,
                "battery_power_w": given,
                "battery_soc_percent": self.level_percent,
                "battery_charge_energy_wh": 0,
                "battery_discharge_energy_wh": 0,
                "battery_mode": "auto" if command is None else command.mode,
            }
        )


async def eventually(
    check: Callable[[], Any] | Callable[[], Awaitable[Any]], *, within_s: float = WITHIN_S
) -> Any:
    """Return what ``check`` returns once it is true; a ledger that is away is not yet."""
    deadline = time.monotonic() + within_s
    trouble: GridLedgerError | None = None
    while True:
        try:
            result = check()
            if asyncio.iscoroutine(result):
                result = await result
        except GridLedgerError as error:
            result, trouble = None, error
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {within_s} s (last trouble: {trouble})")
        await asyncio.sleep(0.1)


@dataclass
class Site:
    """One home: its inverter, its Home Assistant, and the ledger that it belongs to."""

    network: RunningNetwork
    house: HomeAssistant
    inverter: Inverter
    operator: GatewayClient
    away: list[tuple[float, float]] = field(default_factory=list)
    """When Home Assistant was not there to see, from the kill to some samples later (real)."""
    errors: list[str] = field(default_factory=list)
    """What the integration has logged as an error, or Home Assistant about it as a mistake."""
    _killed_at: float = 0.0

    def real(self, channel: int) -> float:
        """Real time of a channel time: the clock has an offset only."""
        replay = self.network.network.replay
        assert replay is not None
        return replay.anchor + channel - replay.origin

    # What dies and comes back ---------------------------------------------------------------

    async def kill_home_assistant(self) -> None:
        """`kill -9`."""
        self._killed_at = time.time()
        os.kill(int((self.house.folder / PID_FILE).read_text()), signal.SIGKILL)
        await self.house.wait()
        self.read_log()

    def read_log(self) -> None:
        """Note errors, and what debug mode finds; each start begins the log anew."""
        self.errors += [
            line
            for line in (self.house.folder / LOG_FILE).read_text().splitlines()
            if "gridledger" in line
            and any(sign in line for sign in MISTAKES)
            and "Error during service call" not in line  # an answer to who called it
        ]

    async def start_home_assistant(self) -> None:
        await self.house.start(lambda _: None)
        # What it does while it starts may hold up the first samples.
        self.away.append((self._killed_at, time.time() + 3 * SAMPLE_S + LATENESS_S))

    async def kill_ledger(self) -> None:
        """All nodes at once, as a power cut does."""
        self._check_ledger_runs()
        os.killpg(self.network.process.pid, signal.SIGKILL)
        await asyncio.to_thread(self.network.process.wait)

    async def stop_ledger(self) -> None:
        """In order, as Ctrl-C does."""
        self._check_ledger_runs()
        await asyncio.to_thread(stop_network, self.network)

    def _check_ledger_runs(self) -> None:
        ended = self.network.process.poll()
        assert ended is None, (
            f"the ledger ended by itself ({ended}): {self.network.log.read_text()}"
        )

    async def start_ledger(self) -> None:
        started = await asyncio.to_thread(start_network, self.network.network, self.network.log)
        self.network.process = started.process

    # What the home has on disk --------------------------------------------------------------

    def _outbox_rows(self, sql: str) -> list[Any]:
        [path] = (self.house.folder / ".storage").glob("gridledger.*.db")
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return database.execute(sql).fetchall()
        finally:
            database.close()

    def _outbox(self, sql: str) -> Any:
        return self._outbox_rows(sql)[0][0]

    def waiting(self) -> int:
        """Readings that are cut and not known to be in the ledger."""
        return int(self._outbox("SELECT COUNT(*) FROM reading WHERE state IN ('queued', 'sent')"))

    def refused(self) -> list[Any]:
        """Readings that the ledger won't take, and why."""
        return self._outbox_rows(
            "SELECT interval_start, note, fields FROM reading WHERE state = 'refused'"
        )

    def registers_wh(self) -> tuple[int, int]:
        """The meter's registers as the integration keeps them, from zero."""
        meter = json.loads(self._outbox("SELECT value FROM fact WHERE name = 'meter'"))
        return meter["import"]["register_wh"], meter["export"]["register_wh"]

    async def batch_is_on_its_way(self) -> None:
        """Return while the outcome of a signed and stored transaction is open."""
        deadline = time.monotonic() + WITHIN_S
        while not self._outbox("SELECT COUNT(*) FROM envelope"):
            assert time.monotonic() < deadline, "no readings were sent"
            await asyncio.sleep(0.002)

    # What the ledger has --------------------------------------------------------------------

    async def last_interval(self) -> int | None:
        """The start of the newest interval in the ledger (channel time)."""
        last = await self.operator.evaluate(
            "metering",
            "metering:LastReading",
            {"meter_id": METER},
            endorsing_organizations=["AuroraMSP"],
        )
        return None if last["interval_start"] is None else int(last["interval_start"])

    async def readings(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.operator.evaluate(
            "metering",
            "metering:Readings",
            {"meter_id": METER, "from": 0, "to": 4_000_000_000},
            endorsing_organizations=["AuroraMSP"],
        )
        return found

    async def counted_by_events(self) -> int:
        """How many readings all valid transactions together have entered."""
        count, last = 0, await self.last_interval()
        async with asyncio.timeout(WITHIN_S):
            async for event in self.operator.chaincode_events("metering", start_block=0):
                if event.name == "readings":
                    count += int(event.json()["count"])
                    if int(event.json()["last_interval"]) == last:
                        return count
        raise AssertionError("the stream of events ended")

    async def catches_up_with(self, real: float) -> None:
        """Return once an interval that ends after an instant is in the ledger, and all before."""

        async def is_there() -> bool:
            last = await self.last_interval()
            return last is not None and self.real(last + INTERVAL_S) > real and self.waiting() == 0

        await eventually(is_there)

    # What Home Assistant says ---------------------------------------------------------------

    async def states(self, api: Api) -> dict[str, dict[str, Any]]:
        """States of the integration's entities, by their key."""
        keys = {
            entity["entity_id"]: entity["translation_key"]
            for entity in await api.command("config/entity_registry/list")
            if entity["platform"] == "gridledger"
        }
        return {
            keys[state["entity_id"]]: state
            for state in await api.get("/api/states")
            if state["entity_id"] in keys
        }


async def prepare(running: RunningNetwork, now: int = ORIGIN) -> None:
    """What operators do: the connection point, money, and the day's rates."""
    suppliers = [
        trading.Supplier(number, utility.msp_id, running.client(utility.name))
        for number, utility in enumerate(running.network.utilities)
    ]
    await suppliers[0].client.submit(
        "energy",
        "registry:RegisterConnection",
        {
            "connection_id": CONNECTION,
            "utility": "AuroraMSP",
            "zone": "NORTH",
            "max_export_w": 30_000,
            "max_import_w": 60_000,
        },
    )
    for supplier in suppliers:
        await supplier.open_accounts([CONNECTION] if supplier is suppliers[0] else [])
        await supplier.publish(trading.days(now)[0])
        await supplier.client.close()


def invitation(running: RunningNetwork) -> str:
    """What the home's owner gets from its utility."""
    network = running.network
    return network.invite(network.utility("Aurora"), CONNECTION.lower(), CONNECTION).encode()


async def sample_each_second(house: HomeAssistant) -> None:
    path = house.folder / "inverter.yaml"
    text = path.read_text()
    assert text.count("scan_interval: 5") == 1
    path.write_text(text.replace("scan_interval: 5", f"scan_interval: {SAMPLE_S}"))


@asynccontextmanager
async def joined_home(folder: Path, base_port: int, *options: str) -> AsyncIterator[Site]:
    """A home that has joined through the config flow; ``options`` are those of ``hass``."""
    network = create_network(
        folder / "data",
        interval_s=INTERVAL_S,
        base_port=base_port,
        # Of the channel it is noon, so that no sale meets the end of a day.
        replay=Replay(origin=ORIGIN, anchor=int(time.time())),
    )
    inverter, house = Inverter(), HomeAssistant(folder / "house", first_port(1), *options)
    running = await asyncio.to_thread(start_network, network, folder / "network.log")
    operator = running.client()
    there = Site(running, house, inverter, operator)
    try:
        await prepare(running)
        await house.prepare(await inverter.start())
        await sample_each_second(house)
        await house.start(lambda _: None)
        async with await house.connect() as api:
            await configure_energy(api)
            await connect_home(
                api,
                await asyncio.to_thread(invitation, running),
                "AuroraMSP",
                PLANT,
            )
        # Nothing flows before the ledger has the first interval: all that flows is metered.
        await eventually(there.last_interval)
        yield there
    finally:
        await house.stop()
        await inverter.stop()
        await operator.close()
        if running.process.poll() is None:
            await there.stop_ledger()


def check_series(readings: list[dict[str, Any]]) -> None:
    """Each interval once, none missing, and registers that rise by each interval's energy."""
    starts = [int(reading["interval_start"]) for reading in readings]
    assert starts == list(range(starts[0], starts[-1] + 1, INTERVAL_S)), starts
    for name in DIRECTIONS:
        register = 0
        for reading in readings:
            register += int(reading[f"{name}_wh"])
            assert int(reading[f"{name}_register_wh"]) == register, reading


def check_quality(
    site: Site, readings: list[dict[str, Any]], *, lateness_s: float = LATENESS_S
) -> int:
    """What nobody saw is an estimate; what is measured is right but for the sampling.

    A boundary's register lies between two samples, an interval apart at most (a wider gap is an
    estimate), each of which is late by its way to Home Assistant: ``lateness_s`` at most. Return
    how many readings are estimates.
    """
    estimated = 0
    for reading in readings:
        start = site.real(int(reading["interval_start"]))
        end = start + INTERVAL_S
        if reading["quality"] != "measured":
            estimated += 1
            seen = not any(
                start < back + lateness_s and gone - lateness_s < end for gone, back in site.away
            )
            assert not seen, f"an estimate although Home Assistant was there: {reading}"
            continue
        for name, truth_wh in zip(DIRECTIONS, site.inverter.energy_wh(end), strict=True):
            steepest_w = site.inverter.steepest_w(f"{name}_w", start - lateness_s, end + INTERVAL_S)
            tolerance_wh = steepest_w / 3600 * (SAMPLE_S + lateness_s) + 1
            off_wh = int(reading[f"{name}_register_wh"]) - truth_wh
            assert abs(off_wh) <= tolerance_wh, (reading, off_wh)
    return estimated
