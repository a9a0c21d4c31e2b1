"""``script/run``: from nothing to a trading neighbourhood, and on from where it was.

Everything below runs in this one process, except Home Assistant (and, with ``--processes``, each
node of the ledger). What is started is stopped in reverse order, whichever way the end comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp

from consortium.node import network as ledger_network
from consortium.node.agreements import beginning, ensure_agreements
from consortium.node.contracts import client as staff_client
from consortium.node.contracts import ensure_contracts
from consortium.node.network import Network, NetworkError
from consortium.node.nodes import EmbeddedNetwork
from consortium.node.processes import NodeFailed, ProcessNetwork
from demo import history, home_assistant, trading
from demo.files import write_atomically
from demo.home_assistant import HomeAssistant, HomeAssistantError
from demo.homes import (
    ORIGIN,
    STEP_S,
    HomesError,
    Neighbourhood,
    Replay,
    check_interval,
    home_specs,
)
from demo.inverter import Inverter
from demo.meters import Batch, HeadEnd
from demo.neighbours import Neighbours
from gridledger_client import Event, GatewayClient, GridLedgerError

DEFAULT_DATA_DIR: Final = Path(".gridledger")
DEFAULT_HOMES: Final = 12
DEFAULT_INTERVAL_S: Final = 60
DEFAULT_HA_PORT: Final = 8123
MAX_RATE: Final = 720
INVERTER_PORT: Final = 18_080
LEAST_STEP_S: Final = 0.1
"""Real time that passes at least from one move of all homes to the next."""
TELL_READINGS_EVERY_S: Final = 8.0
"""Real seconds, for each utility, where a hurried clock makes intervals shorter than that."""
EVENTS_RETRY_S: Final = 5.0
HOMES_FILE: Final = "homes.json"


class DemoError(Exception):
    """The demonstration cannot go on; the message says why and what to do."""


class Console:
    """One line for each thing that happens, with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Prints a line."""
        print(f"[{time.monotonic() - self._started:6.1f} s] {text}", flush=True)

    def plain(self, text: str) -> None:
        """Prints text as it is."""
        print(text, flush=True)


class Demo:
    """The running demonstration."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options = options
        self.say = console.say
        self.console = console
        self.folder: Path = options.data_dir.resolve()
        self._own = self.folder / "demo"
        self._stack = AsyncExitStack()
        self._saving = asyncio.Lock()
        self._history: list[history.Hour] = []
        self._last_trouble = ""
        self._tell_again: dict[str, float] = {}
        self.is_new = not (self.folder / "network.json").exists()

    async def run(self) -> None:
        """Starts everything and goes on until cancelled; always stops what was started."""
        try:
            async with self._stack:
                await self._start()
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    self.say("stopping; this takes some seconds")
        finally:
            self.say("stopped")

    async def _start(self) -> None:
        house = None if self.options.ledger_only else await self._house()
        self.network = await asyncio.to_thread(self._network)
        replay = self.network.replay
        assert replay is not None
        self.replay = Replay(replay.origin, replay.anchor, replay.rate)
        self.hood = await asyncio.to_thread(self._neighbourhood)
        await self._start_ledger()

        utilities = self.network.utilities
        self.staff = {
            utility.msp_id: self._closed_at_the_end(staff_client(self.network, utility, "operator"))
            for utility in utilities
        }
        self.head_ends = [self._head_end(number) for number in range(len(utilities))]
        self.suppliers = [
            trading.Supplier(number, utility.msp_id, self.staff[utility.msp_id])
            for number, utility in enumerate(utilities)
        ]
        await self._register()
        clients = await self._home_clients()
        sellers = trading.Sellers(self.hood, clients, self._trouble, rate=self.replay.rate)
        neighbours = Neighbours(self.network, self.hood, clients, self._now, self._trouble)

        go_on = await self._stack.enter_async_context(_background())
        go_on(self._let_time_pass())
        for head_end in self.head_ends:
            go_on(head_end.run())
        go_on(self._report_trades())
        go_on(trading.publish_rates(self.suppliers, self._now, self._trouble))
        go_on(sellers.run())
        go_on(neighbours.trade())
        go_on(neighbours.pay_bills())

        inverter = Inverter(self.hood.homes[0], self.replay, on_command=self._save)
        await inverter.start(_free_port(INVERTER_PORT))
        self._stack.push_async_callback(inverter.stop)
        self.say(f"the inverter of {self._connection(0)} answers at {inverter.url}/api/status")

        if house is None:
            await self._invite()
        else:
            await self._start_home_assistant(house, inverter)
            go_on(self._watch(house))

    # The ledger -----------------------------------------------------------------------------

    def _network(self) -> Network:
        """Makes the network where there is none, else reads it and checks the options."""
        wanted = self.options
        if not self.is_new:
            network = Network.load(self.folder)
            if network.replay is None:
                raise DemoError(
                    f"the network in {self.folder} has no replay clock, so it is not the "
                    "demonstration's; choose another --data-dir"
                )
            if wanted.interval not in (None, network.interval_s):
                raise DemoError(
                    f"the neighbourhood in {self.folder} meters each {network.interval_s} s, which "
                    f"cannot become {wanted.interval} s; choose another --data-dir"
                )
            if wanted.rate not in (None, network.replay.rate):
                raise DemoError(
                    f"the clock in {self.folder} runs at {network.replay.rate}, which cannot "
                    f"become {wanted.rate}; choose another --data-dir"
                )
            self.say(f"going on from {self.folder}")
            return network
        interval_s = wanted.interval or DEFAULT_INTERVAL_S
        check_interval(interval_s)
        if wanted.rate is not None and not 1 <= wanted.rate <= MAX_RATE:
            raise DemoError(f"a clock of rate {wanted.rate} is not possible; 1 to {MAX_RATE} are")
        home_specs(wanted.homes or DEFAULT_HOMES)
        self.say(f"making a consortium of three utilities in {self.folder}")
        return ledger_network.create_network(
            self.folder,
            interval_s=interval_s,
            replay=ledger_network.Replay(
                origin=ORIGIN, anchor=int(time.time()), rate=wanted.rate or 1
            ),
            progress=self.say,
        )

    async def _start_ledger(self) -> None:
        network = self.network
        nodes: EmbeddedNetwork | ProcessNetwork
        if self.options.processes:
            self.say("starting each node in a process of its own")
            nodes = ProcessNetwork(network)
        else:
            self.say("starting three authorities, three orderers and three peers")
            nodes = EmbeddedNetwork(network)
        await nodes.start(self.say)
        self._stack.push_async_callback(nodes.stop)
        await ensure_contracts(network, self.say)
        self.say(f"channel {network.channel}: contracts metering and energy are ready")

    def _closed_at_the_end(self, client: GatewayClient) -> GatewayClient:
        self._stack.push_async_callback(client.close)
        return client

    async def _register(self) -> None:
        """Enters homes, meters, first money and rates: once, and again where that broke off."""
        done = self._own / "registered"
        if done.exists():
            return
        self.say(f"entering {len(self.hood.homes)} homes with their accredited meters")
        await asyncio.gather(
            ensure_agreements(self.network, self.say),
            *(head_end.register() for head_end in self.head_ends),
        )
        self.say("opening accounts, agreeing on supplies, publishing the day's rates")
        begin = beginning(self.network)
        await asyncio.gather(
            *(
                head_end.supply(begin, self._connection(0) if self.options.prepaid else None)
                for head_end in self.head_ends
            ),
            *(
                supplier.open_accounts([home.connection_id for home in head_end.homes])
                for supplier, head_end in zip(self.suppliers, self.head_ends, strict=True)
            ),
        )
        today = trading.days(self._now())[0]
        await asyncio.gather(*(supplier.publish(today) for supplier in self.suppliers))
        await asyncio.to_thread(write_atomically, done, "")

    # Homes, meters, market -----------------------------------------------------------------

    def _neighbourhood(self) -> Neighbourhood:
        path = self._own / HOMES_FILE
        wanted: int | None = self.options.homes
        if not path.exists():
            hood = Neighbourhood.create(
                wanted or DEFAULT_HOMES, self.network.interval_s, ORIGIN - history.HISTORY_S
            )
            self._history = history.live_through(hood, self.replay, ORIGIN)
            return hood
        hood = Neighbourhood.from_json(path.read_text(encoding="utf-8"))
        if wanted not in (None, len(hood.homes)):
            raise DemoError(
                f"the neighbourhood in {self.folder} has {len(hood.homes)} homes, not {wanted}; "
                "choose another --data-dir"
            )
        behind_s = self._now() - hood.time
        if behind_s > 3600:
            self.say(f"the homes live through the {behind_s / 3600:.0f} h since the last run")
        hood.advance(self._now())
        return hood

    def _head_end(self, number: int) -> HeadEnd:
        utility = self.network.utilities[number]
        return HeadEnd(
            utility=utility.msp_id,
            channel=self.network.channel,
            client=self.staff[utility.msp_id],
            homes=[home.spec for home in self.hood.homes[number :: len(self.network.utilities)]],
            neighbourhood=self.hood,
            folder=self._own,
            on_batch=self._on_batch,
            on_trouble=self._trouble,
        )

    def _now(self) -> int:
        return self.replay.channel_time(time.time())

    def _connection(self, index: int) -> str:
        return self.hood.homes[index].spec.connection_id

    async def _save(self) -> None:
        async with self._saving:
            await asyncio.to_thread(
                write_atomically, self._own / HOMES_FILE, self.hood.to_json(), 0o600
            )

    async def _let_time_pass(self) -> None:
        """Moves all homes with the channel's clock; wakes the head-ends when intervals end."""
        try:
            while True:
                if self.hood.advance(self._now()):
                    await self._save()  # before anything of it is signed
                    for head_end in self.head_ends:
                        head_end.wake()
                left_s = (STEP_S - self._now() % STEP_S) / self.replay.rate
                await asyncio.sleep(max(LEAST_STEP_S, left_s))
        finally:
            await self._save()

    def _on_batch(self, batch: Batch) -> None:
        self._last_trouble = ""
        now = time.monotonic()
        hurried = self.network.interval_s < TELL_READINGS_EVERY_S * self.replay.rate
        if hurried and now < self._tell_again.get(batch.utility, now) and not batch.refused:
            return  # there would be little else to read
        self._tell_again[batch.utility] = now + TELL_READINGS_EVERY_S
        interval = datetime.fromtimestamp(batch.last_interval, UTC).strftime("%H:%M:%S")
        known = f", {batch.duplicate} known already" if batch.duplicate else ""
        self.say(
            f"block {batch.block_number}: {batch.utility} has {batch.accepted} readings up to "
            f"the interval at {interval}{known}"
        )
        for refused in batch.refused[:3]:
            self.say(f"  refused {refused['meter_id']}: {refused['reason']}")

    def _trouble(self, text: str) -> None:
        """Says what went wrong, once."""
        if text != self._last_trouble:
            self._last_trouble = text
            self.say(text)

    def _told(self, event: Event) -> str | None:
        """An event of the market as a line, None for one that isn't told."""
        found = event.json()
        match event.name:
            case "trade":
                return (
                    f"{found['connection_id']} sold {int(found['energy_wh']) / 1000:.2f} kWh to "
                    f"{found['supplier']} for {int(found['net_micro']) / 1e6:.3f} "
                    f"{found['currency']} net"
                )
            case "book_cleared":
                zones = [zone["local"] for zone in found["zones"]]
                volume_wh = sum(int(zone["volume_wh"]) for zone in zones)
                if not volume_wh:
                    return None
                start = datetime.fromtimestamp(int(found["interval_start"]), UTC)
                return (
                    f"neighbours trade {volume_wh / 1000:.3f} kWh for {start:%H:%M:%S}, "
                    f"at {int(zones[0]['price']) / 1e6:.4f} a kWh"
                )
            case "settled":
                return (
                    f"{found['utility']} has settled {found['day']} ({found['run']}) for "
                    f"{', '.join(found['posted'])}"
                )
            case "bill":
                return (
                    f"bill {found['number']} of {found['connection_id']} for {found['from_day']}: "
                    f"{int(found['total_micro']) / 1e6:.2f}"
                )
            case "payment":
                return f"{found['connection_id']} paid {int(found['amount_micro']) / 1e6:.2f}"
        return None

    async def _report_trades(self) -> None:
        """Prints what happens in the market as the ledger's event stream tells it."""
        client = next(iter(self.staff.values()))
        while True:
            try:
                async for event in client.chaincode_events("energy"):
                    if (line := self._told(event)) is not None:
                        self.say(f"block {event.block_number}: {line}")
            except GridLedgerError as error:
                self._trouble(f"the event stream broke off: {error}")
            await asyncio.sleep(EVENTS_RETRY_S)

    async def _home_clients(self) -> dict[str, GatewayClient]:
        """Enrols every home but the first, which is Home Assistant's; clients by connection."""
        clients = {}
        first = not (self._own / "identities").exists()
        if first:
            self.say("enrolling the homes at their utilities' authorities")
        for index, home in list(enumerate(self.hood.homes))[1:]:
            utility = self.network.utilities[index % len(self.network.utilities)]
            connection_id = home.spec.connection_id

            def register(
                enrollment_id: str, connection_id: str = connection_id, msp: str = utility.msp_id
            ) -> str:
                return self._register_home(enrollment_id, connection_id, msp)

            identity = await trading.enrolled_identity(
                self._own / "identities",
                connection_id,
                utility.msp_id,
                utility.ca_url,
                self.network.tls_bundle_pem,
                register,
            )
            clients[connection_id] = self._closed_at_the_end(
                GatewayClient(
                    [utility.gateway_address],
                    self.network.channel,
                    identity,
                    self.network.tls_bundle_pem,
                )
            )
        return clients

    def _register_home(self, enrollment_id: str, connection_id: str, msp_id: str) -> str:
        return self.network.register_identity(
            msp_id,
            enrollment_id,
            None,
            {"gridledger.role": "home", "gridledger.connection": connection_id},
        )

    # The first home -------------------------------------------------------------------------

    async def _invitation(self) -> str:
        """What the first home's owner gets from the utility: it works once."""
        utility = self.network.utilities[0]
        connection_id = self._connection(0)
        enrollment_id = f"{connection_id.lower()}-{int(time.time()):x}"
        invitation = await asyncio.to_thread(
            self.network.invite, utility, enrollment_id, connection_id
        )
        return invitation.encode()

    async def _invite(self) -> None:
        invitation = await self._invitation()
        self.console.plain(
            f"""
The ledger runs, and {len(self.hood.homes) - 1} homes sell to it. To connect a Home Assistant of
your own on this machine as {self._connection(0)}, add the integration GridLedger with this
invitation:

{invitation}

Or look around:  .venv/bin/gridledger network status --data-dir {self.folder}
                 .venv/bin/gridledger block show newest --data-dir {self.folder}
Ctrl-C stops everything; the next start goes on from disk.
"""
        )

    async def _house(self) -> HomeAssistant:
        """The first home's Home Assistant, not started yet, with a port that is free."""
        house = HomeAssistant(
            self.folder / "home-assistant", self.options.ha_port or DEFAULT_HA_PORT
        )
        await asyncio.to_thread(house.end_left_over_process)
        if not self.options.ha_port:
            house.port = _free_port(DEFAULT_HA_PORT)
        elif not _is_free(house.port):
            raise DemoError(f"port {house.port} is in use; choose another --ha-port")
        return house

    async def _start_home_assistant(self, house: HomeAssistant, inverter: Inverter) -> None:
        new = house.is_new
        if new:
            self.say("making a Home Assistant for the first home")
        await house.prepare(inverter.url)
        self.say(f"starting Home Assistant{' (its first start takes a while)' if new else ''}")
        self._stack.push_async_callback(house.stop)
        first_registers = self.hood.homes[0].registers()
        await house.start(self.say)
        # The file is written when all of it is done; what broke off half-way is done again.
        running = self._own / home_assistant.RUNNING_FILE
        if new or not running.exists():
            async with await house.connect() as api:
                await home_assistant.configure_energy(api)
                await history.import_history(api, self._history, first_registers)
                if not await home_assistant.is_connected(api):
                    await self._connect_first_home(api)
                await home_assistant.deliver_sold_energy(api)
                await home_assistant.open_dashboard_first(
                    api, "GridLedger", {"strategy": {"type": "custom:gridledger"}}
                )
        write_atomically(running, json.dumps({"url": house.url, "folder": str(house.folder)}))
        self.console.plain(
            f"""
  Home Assistant   {house.url}
  user             {home_assistant.USER}
  password         {house.password}

It opens on the GridLedger dashboard: the sun over {self._connection(0)}, its battery, and what the
microgrid pays. Things to try:
  - Developer tools > Actions > "GridLedger: Sell energy", 0.5 kWh. The answer is the trade, as it
    stands in every utility's ledger; watch the battery deliver it in the next minutes.
  - The dashboard's trade view: the neighbours' order book, and an order of your own in it.
  - Settings > Automations > "Deliver sold energy": what sends that command to the inverter.
  - .venv/bin/gridledger block show newest
  - .venv/bin/gridledger verify, after Ctrl-C: walks every utility's chain.
Ctrl-C stops everything; the next script/run goes on from disk.
"""
        )

    async def _connect_first_home(self, api: home_assistant.Api) -> None:
        home = self.hood.homes[0].spec
        self.say(f"connecting Home Assistant to the ledger as {home.connection_id}")
        await home_assistant.connect_home(
            api,
            await self._invitation(),
            self.network.utilities[0].msp_id,
            {
                "battery_capacity": home.battery_capacity_wh / 1000,
                "battery_max_power": home.battery_power_w,
                "battery_reserve": 20,
            },
        )

    async def _watch(self, house: HomeAssistant) -> None:
        """Home Assistant does not end by itself; restarted by its owner, it is started again."""
        while (code := await house.wait()) == home_assistant.RESTART_CODE and not house.stopping:
            self.say("restarting Home Assistant")
            await house.start(self.say)
        if not house.stopping:
            raise DemoError(f"Home Assistant ended with code {code}; see {house.folder}")


@asynccontextmanager
async def _background() -> AsyncIterator[Callable[[Coroutine[Any, Any, None]], None]]:
    """A place for tasks that run until the end; one that fails is a bug, and ends everything."""
    owner = asyncio.current_task()
    tasks: set[asyncio.Task[None]] = set()
    failed: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            failed.append(error)
            assert owner is not None
            owner.cancel()

    def start(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(ended)

    try:
        yield start
    except asyncio.CancelledError:
        if failed:
            if isinstance(failed[0], DemoError):
                raise failed[0] from None
            raise DemoError(f"something broke: {failed[0]!r}") from failed[0]
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(first: int) -> int:
    for port in range(first, first + 100):
        if _is_free(port):
            return port
    raise DemoError(f"no free port from {first} to {first + 99}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="script/run",
        description="Runs a whole trading neighbourhood on this machine: a ledger of three "
        "utilities, homes that replay measured households, and a real Home Assistant as one of "
        "them. The first run makes everything, later runs go on from disk. Ctrl-C stops it.",
    )
    parser.add_argument(
        "--ledger-only", action="store_true", help="without Home Assistant; prints an invitation"
    )
    parser.add_argument("--homes", type=int, metavar="N", help=f"homes ({DEFAULT_HOMES}, up to 40)")
    parser.add_argument(
        "--interval",
        type=int,
        metavar="SECONDS",
        help=f"market and metering interval ({DEFAULT_INTERVAL_S})",
    )
    parser.add_argument(
        "--rate",
        type=int,
        metavar="N",
        help=f"how fast the channel's clock runs (1, up to {MAX_RATE}: a day in two minutes)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=DEFAULT_DATA_DIR,
        metavar="FOLDER",
        help=f"where everything is kept ({DEFAULT_DATA_DIR})",
    )
    parser.add_argument(
        "--ha-port",
        type=int,
        metavar="PORT",
        help=f"Home Assistant's port ({DEFAULT_HA_PORT}, or the next free one)",
    )
    parser.add_argument(
        "--prepaid", action="store_true", help="the first home's supply is paid in advance"
    )
    parser.add_argument(
        "--processes", action="store_true", help="each node of the ledger in its own process"
    )
    return parser.parse_args(arguments)


async def _main(options: argparse.Namespace) -> int:
    demo = asyncio.create_task(Demo(options, Console()).run())
    interrupts = 0

    def interrupted() -> None:
        """Once is enough, and whoever insists gets out at once."""
        nonlocal interrupts
        interrupts += 1
        if interrupts == 1:
            demo.cancel()
        elif interrupts == 2:
            print("stopping already; Ctrl-C once more leaves everything as it is", flush=True)
        else:
            os._exit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted)
    try:
        await demo
    except asyncio.CancelledError:
        return 0
    except (DemoError, NetworkError, HomesError, NodeFailed, HomeAssistantError) as error:
        print(f"script/run: {error}", file=sys.stderr)
    except GridLedgerError as error:
        print(f"script/run: the ledger did not do its part: {error}", file=sys.stderr)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        print(f"script/run: {type(error).__name__}: {error}", file=sys.stderr)
    return 1


def main() -> None:
    """The entry point of ``python -m demo.run``."""
    options = parse()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(asyncio.run(_main(options)))


if __name__ == "__main__":
    main()
