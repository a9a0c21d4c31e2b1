"""The inverter over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from demo.homes import ORIGIN, Home, Neighbourhood, Replay
from demo.inverter import Inverter

NOW = 1_795_000_000


class Site:
    """A home, its inverter, and how often a command was kept."""

    def __init__(self) -> None:
        self.hood = Neighbourhood.create(1, 60)
        self.kept = 0
        self.inverter = Inverter(self.home, Replay(ORIGIN, NOW), on_command=self._keep)

    @property
    def home(self) -> Home:
        return self.hood.homes[0]

    async def _keep(self) -> None:
        self.kept += 1

    async def post(self, body: Any, **arguments: Any) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{self.inverter.url}/api/battery",
                **(arguments or {"json": body}),
            ) as response,
        ):
            return response.status, await response.json()

    async def status(self) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.inverter.url}/api/status") as response,
        ):
            status: dict[str, Any] = await response.json()
            return status


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    await site.inverter.start(0)
    yield site
    await site.inverter.stop()


async def test_status_balances(site: Site) -> None:
    site.hood.advance(ORIGIN + 600)
    status = await site.status()
    assert status["pv_power_w"] > 3000
    balance = (
        status["grid_power_w"]
        + status["pv_power_w"]
        + status["battery_power_w"]
        - status["load_power_w"]
    )
    assert abs(balance) <= 2
    assert status["battery_mode"] == "auto"
    assert status["battery_mode_until"] is None
    assert datetime.fromisoformat(status["time"]).timestamp() == NOW + 600


async def test_discharge_until_and_back_to_auto(site: Site) -> None:
    until = datetime.fromtimestamp(NOW + 300, UTC).isoformat()
    status, answer = await site.post({"mode": "discharge", "power_w": 2500, "until": until})
    assert (status, answer["mode"], answer["until"]) == (200, "discharge", until)
    assert site.kept == 1
    site.hood.advance(ORIGIN + 295)
    assert (await site.status())["battery_mode"] == "discharge"
    assert (await site.status())["battery_power_w"] == 2500
    site.hood.advance(ORIGIN + 305)
    assert (await site.status())["battery_mode"] == "auto"
    assert (await site.status())["battery_power_w"] < 0


async def test_a_command_may_begin_later(site: Site) -> None:
    command = {"mode": "charge", "power_w": 900, "from": NOW + 60, "until": NOW + 120}
    assert (await site.post(command))[0] == 200
    site.hood.advance(ORIGIN + 30)
    assert (await site.status())["battery_mode"] == "auto"
    site.hood.advance(ORIGIN + 65)
    assert (await site.status())["battery_mode"] == "charge"


async def test_auto_ends_a_command(site: Site) -> None:
    await site.post({"mode": "hold", "until": NOW + 3600})
    assert (await site.post({"mode": "auto"}))[0] == 200
    assert not site.home.commands


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"mode": "sell"}, "one of auto, hold, charge, discharge"),
        ({"mode": ["auto"]}, "one of auto"),
        ({}, "mode is None"),
        ([], "must be a JSON object"),
        ({"mode": "discharge", "power_w": 100}, "needs until"),
        ({"mode": "discharge", "power_w": 9000, "until": NOW + 60}, "1 to 5000 W"),
        ({"mode": "discharge", "power_w": 1.5, "until": NOW + 60}, "whole watts"),
        ({"mode": "discharge", "power_w": True, "until": NOW + 60}, "whole watts"),
        ({"mode": "hold", "until": "soon"}, "ISO 8601 with an offset"),
        ({"mode": "hold", "until": "2026-11-21T10:00:00"}, "ISO 8601 with an offset"),
        ({"mode": "hold", "until": True}, "epoch seconds"),
        ({"mode": "hold", "until": 1e300}, "epoch seconds"),
        ({"mode": "hold", "until": NOW - 60}, "ends by itself"),
        ({"mode": "hold", "until": NOW + 60, "watts": 3}, "unknown field 'watts'"),
    ],
)
async def test_bad_commands(site: Site, body: Any, sentence: str) -> None:
    status, answer = await site.post(body)
    assert status == 400
    assert sentence in answer["error"]
    assert not site.home.commands
    assert not site.kept


async def test_only_json(site: Site) -> None:
    headers = {"Content-Type": "text/plain"}
    status, _ = await site.post(None, data='{"mode":"auto"}', headers=headers)
    assert status == 415
    headers = {"Content-Type": "application/json"}
    status, answer = await site.post(None, data="{", headers=headers)
    assert status == 400
    assert "not JSON" in answer["error"]
