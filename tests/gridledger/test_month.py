"""Thirty days of a home, over a change of the clocks: the Energy dashboard's days are the bill's.

The ledger's clock passes a day in a second. What it holds then is looked at as on a channel in
earnest, where those days have really passed, and Home Assistant's days are the supply's.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import batched
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

import pytest
import pytest_socket
from homeassistant.config_entries import ConfigEntryState
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component

from consortium.identity.certificates import generate_key, key_pem
from consortium.node import agreements
from consortium.node.agreements import beginning, channel_time, supply
from consortium.node.network import Network, Replay, create_network
from custom_components.gridledger.accounts import async_bill_lines, async_bills
from custom_components.gridledger.clock import ChannelClock
from custom_components.gridledger.statistics import async_write_settled, settled_ids
from gridledger_client import GatewayClient
from gridledger_client.readings import MeterKey, Reading, batch_transient
from tests.gridledger.asking import statistics
from tests.ports import first_port

from .conftest import PLANT, RunningNetwork, eventually, join, report_plant
from .test_bills import submit

HOUR_S = 3600
DAY_S = 86_400
_A_DAY = timedelta(days=1)
DAYS = 30
RATE = DAY_S
ORIGIN = 1_788_566_400
"""2026-09-05T00:00:00Z: agreements hold from some days later on, and clocks change in October."""
ZONE = ZoneInfo("Europe/Zurich")
HOME = "CP-MONTH"
METER = "M-MONTH"
LATE_DAY = 6
"""The day whose last hour is corrected when the month is over, at the cost of the next."""
LATE_WH = 137


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """A network with a fast clock, for this file alone."""
    directory = tmp_path_factory.mktemp("month")
    pytest_socket.enable_socket()
    made = create_network(
        directory / "data",
        interval_s=HOUR_S,
        base_port=first_port(),
        replay=Replay(origin=ORIGIN, anchor=int(time.time()), rate=RATE),
    )
    for utility in made.utilities:  # days are settled here by hand
        (utility.directory / "peer" / "agent.json").write_text('{"enabled": false}')
    running = RunningNetwork(made, directory / "log")
    running.start()
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield running
    running.kill()


@pytest.fixture(autouse=True)
def _our_integration(recorder_mock: Any, enable_custom_integrations: None) -> None:
    """As everywhere here, with a recorder before Home Assistant's core."""


def midnight(day: date) -> int:
    """When a local day begins."""
    return int(datetime(day.year, day.month, day.day, tzinfo=ZONE).timestamp())


def changes_clocks(day: date) -> bool:
    return midnight(day + timedelta(days=1)) - midnight(day) != DAY_S


@dataclass
class Month:
    """A home's accredited meter, and what its utility makes of it."""

    network: Network
    aurora: GatewayClient
    first: date
    key: MeterKey = field(default_factory=lambda: MeterKey(key_pem(generate_key()), b"m" * 32))
    readings: dict[int, Reading] = field(default_factory=dict)

    @property
    def days(self) -> list[date]:
        return [self.first + timedelta(days=number) for number in range(DAYS)]

    async def over(self, day: date) -> None:
        """Wait until a day is over on the ledger."""
        end = midnight(day + timedelta(days=1)) + 2 * HOUR_S
        await asyncio.sleep(max(0.0, (end - channel_time(self.network)) / RATE))

    async def begin(self) -> None:
        """The connection, its supply and its meter."""
        await submit(
            self.aurora,
            "energy",
            "registry:RegisterConnection",
            {
                "connection_id": HOME,
                "utility": "AuroraMSP",
                "zone": "NORTH",
                "max_export_w": 10_000,
                "max_import_w": 20_000,
            },
        )
        await submit(
            self.aurora,
            "energy",
            "billing:AgreeSupply",
            {"supply": supply(HOME, "AuroraMSP", self.first.isoformat())},
        )
        await submit(
            self.aurora,
            "metering",
            "metering:RegisterMeter",
            {
                "meter_id": METER,
                "connection_id": HOME,
                "utility": "AuroraMSP",
                "source_class": "accredited",
                "public_key": self.key.public_key_pem,
            },
        )

    async def send(self, readings: list[Reading]) -> None:
        answer = await submit(
            self.aurora,
            "metering",
            "metering:SubmitReadings",
            {"utility": "AuroraMSP"},
            transient=batch_transient(
                [self.key.sign(reading, self.network.channel) for reading in readings]
            ),
            endorsing_organizations=["AuroraMSP"],
        )
        assert not answer.result["refused"], answer.result

    async def read(self, days: list[date]) -> None:
        """All readings of some days: no two hours alike, the sun shines at noon."""
        last = max(self.readings, default=None)
        registers = [0, 0]
        if last is not None:
            before = self.readings[last]
            registers = [before.import_register_wh, before.export_register_wh]
        end = midnight(days[-1] + timedelta(days=1))
        new = range(midnight(days[0]), end, HOUR_S)
        for start in new:
            hour = start // HOUR_S
            import_wh, export_wh = 101 + 37 * hour % 613, 0
            if 9 <= hour % 24 < 14:
                import_wh, export_wh = 7 * hour % 11, 800 + 53 * hour % 1201
            registers[0] += import_wh
            registers[1] += export_wh
            self.readings[start] = Reading(
                METER, start, HOUR_S, import_wh, export_wh, registers[0], registers[1]
            )
        for some in batched(new, 240, strict=False):
            await self.send([self.readings[start] for start in some])

    async def correct(self) -> None:
        """What the meter finds in its memory: energy flowed in the hour before midnight."""
        after = midnight(self.days[LATE_DAY + 1])
        corrected = []
        for start, more_wh, register_wh in (
            (after - HOUR_S, LATE_WH, LATE_WH),
            (after, -LATE_WH, 0),
        ):
            old = self.readings[start]
            corrected.append(
                Reading(
                    METER,
                    start,
                    HOUR_S,
                    old.import_wh + more_wh,
                    old.export_wh,
                    old.import_register_wh + register_wh,
                    old.export_register_wh,
                    version=2,
                )
            )
        self.readings |= {reading.interval_start: reading for reading in corrected}
        await self.send(corrected)

    async def settle(self, day: date, run: str = "provisional") -> None:
        where = {"utility": "AuroraMSP", "day": day.isoformat(), "run": run}
        await submit(
            self.aurora,
            "metering",
            "daybook:Commit",
            {**where, "connections": [HOME]},
            endorsing_organizations=["AuroraMSP"],
        )
        record = await self.aurora.evaluate(
            "metering", "daybook:Record", {**where, "connection_id": HOME}
        )
        await submit(
            self.aurora, "energy", "settlement:Post", {**where, "summaries": [record["summary"]]}
        )

    async def bill(self, day: date, run: int = 1) -> None:
        statement = await submit(
            self.aurora,
            "metering",
            "bill:Compute",
            {
                "connection_id": HOME,
                "from_day": day.isoformat(),
                "to_day": (day + timedelta(days=1)).isoformat(),
                "run": run,
            },
            endorsing_organizations=["AuroraMSP"],
        )
        await submit(self.aurora, "energy", "billing:Post", {"statement": statement.result})

    async def settle_and_bill(self, days: list[date]) -> None:
        """Once they are over, days are settled side by side, and billed one after another."""
        await self.over(days[-1])
        await self.read(days)
        for some in batched(days, 8, strict=False):
            await asyncio.gather(*(self.settle(day) for day in some))
        for day in days:
            await self.bill(day)

    def energy_wh(self, day: date, name: str) -> int:
        """What the meter counted on a local day."""
        end = midnight(day + timedelta(days=1))
        return sum(
            getattr(self.readings[start], f"{name}_wh")
            for start in range(midnight(day), end, HOUR_S)
        )


async def dashboard(hass: HomeAssistant, entry: Any) -> dict[str, dict[date, float]]:
    """What the Energy dashboard asks for: each statistic's change by local day."""
    ids = settled_ids(entry.unique_id)
    rows = await statistics(hass, ids.values(), "day", "change")
    return {
        key: {
            datetime.fromtimestamp(row["start"], ZONE).date(): row["change"]
            for row in rows.get(one, [])
        }
        for key, one in ids.items()
    }


async def check_days(hass: HomeAssistant, entry: Any, month: Month, days: list[date]) -> None:
    """The dashboard's days are the meter's and the bill's, to the Wh and the micro-unit."""
    session = entry.runtime_data.session
    await async_write_settled(hass, entry, session)
    shown = await dashboard(hass, entry)
    bills = await async_bills(session)
    billed: dict[str, int] = defaultdict(int)
    for bill in bills:
        billed[bill["from_day"]] += round(bill["total"] * 1e6)
    newest = {bill["from_day"]: bill for bill in sorted(bills, key=lambda one: one["run"])}
    assert sorted(billed) == [day.isoformat() for day in days]
    for name in ("import", "export"):
        assert sorted(day for day, change in shown[f"settled_{name}"].items() if change) == days
    for day in days:
        text = day.isoformat()
        record = await async_bill_lines(session, text, newest[text]["run"])
        for name in ("import", "export"):
            energy_wh = month.energy_wh(day, name)
            assert round(shown[f"settled_{name}"][day] * 1000) == energy_wh, (day, name)
            assert round(record[f"{name}_kwh"] * 1000) == energy_wh, (day, name)
        assert round(shown["billed"][day] * 1e6) == billed[text], day
    assert round(sum(shown["billed"].values()) * 1e6) == sum(billed.values())


async def check_bands(hass: HomeAssistant, entry: Any, day: date) -> None:
    """The calendar shows each hour in its band of the tariff, on the wall clock."""
    [calendar] = hass.data["calendar"].entities
    start, end = (datetime.fromtimestamp(midnight(one), ZONE) for one in (day, day + _A_DAY))
    events = [
        one
        for one in await calendar.async_get_events(hass, start, end)
        if one.uid.startswith("band-")
    ]
    assert [one.end for one in events[:-1]] == [one.start for one in events[1:]]
    assert (events[0].start, events[-1].end) == (start, end)
    for hour in range(midnight(day), midnight(day + _A_DAY), HOUR_S):
        at = datetime.fromtimestamp(hour, ZONE)
        shown = next(one.summary for one in events if one.start <= at < one.end)
        band = "DAY" if day.weekday() < 5 and 7 <= at.hour < 22 else "NIGHT"
        assert shown.startswith(f"Tariff {band}: 0."), at


@pytest.mark.timeout(600)
async def test_the_dashboards_days_are_the_bills(
    hass: HomeAssistant,
    network: RunningNetwork,
    sockets: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Pages as short as those of a home of many years.
    monkeypatch.setattr("custom_components.gridledger.archive._DAY_PAGE", 8)
    monkeypatch.setattr("custom_components.gridledger.accounts._PAGE", 8)
    made = network.network
    usual = agreements.product  # whose gate's minute would be months here
    with patch.object(agreements, "product", lambda made: {**usual(made), "gate_closure_s": 3600}):
        await agreements.ensure_agreements(made, margin_s=2)
    agreed = date.fromisoformat(beginning(made, 2).first_day) + timedelta(days=2)
    change = next(
        day for number in range(10, 400) if changes_clocks(day := agreed + timedelta(days=number))
    )
    first = max(agreed, change - timedelta(days=DAYS - 6))
    async with network.client() as aurora:
        month = Month(made, aurora, first)
        assert change in month.days
        await month.begin()
        await hass.config.async_set_time_zone(str(ZONE))
        assert await async_setup_component(hass, "homeassistant", {})
        report_plant(hass)
        with patch.object(ChannelClock, "from_settings", lambda _settings: ChannelClock(HOUR_S)):
            entry = await join(hass, network.invitation("month", HOME), PLANT)
            await eventually(lambda: entry.runtime_data.session.data.connected)
            some = month.days[: DAYS // 2]
            await month.settle_and_bill(some)
            await check_days(hass, entry, month, some)

            # A restart in the middle changes nothing: what is written anew is not added.
            assert await hass.config_entries.async_reload(entry.entry_id)
            await eventually(lambda: entry.runtime_data.session.data.connected)
            await check_days(hass, entry, month, some)
            await month.settle_and_bill(month.days[DAYS // 2 :])
            await check_days(hass, entry, month, month.days)

            # A late correction moves energy from one day to the day before, and so their bills.
            await month.correct()
            for day in month.days[LATE_DAY : LATE_DAY + 2]:
                await month.settle(day, "final")
                await month.bill(day, 2)
            await check_days(hass, entry, month, month.days)
            for day in (change, change + _A_DAY):  # a Sunday of 25 or 23 hours, and a Monday
                await check_bands(hass, entry, day)
            assert entry.state is ConfigEntryState.LOADED
            assert await hass.config_entries.async_unload(entry.entry_id)
