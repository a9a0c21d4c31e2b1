"""External statistics of what was sold, in a real recorder."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

import pytest
from homeassistant.core import HomeAssistant

from custom_components.gridledger.archive import async_trades
from custom_components.gridledger.client import ConnectionFailed
from custom_components.gridledger.clock import ChannelClock
from custom_components.gridledger.models import Trade
from custom_components.gridledger.statistics import (
    _first_hour,
    async_write_statistics,
    by_hour,
    statistic_ids,
)
from tests.gridledger.asking import recorded, statistics

from .conftest import eventually
from .test_actions import call


@pytest.fixture(autouse=True)
def _our_integration(recorder_mock: Any, enable_custom_integrations: None) -> None:
    """As everywhere here, with a recorder before Home Assistant's core."""


def test_money_follows_energy_to_the_micro_unit() -> None:
    clock = ChannelClock(900)
    start = 1_750_420_800
    schedule = tuple((start + 900 * index, wh) for index, wh in enumerate((333, 333, 334, 7, 0)))
    trade = Trade("T", "H", "S", schedule, 1007, 1, 1, 0, 100_001, "t", "r")
    hours = by_hour([trade, trade], clock)
    assert [hour.minute for hour in hours] == [0, 0]
    assert sum(energy for energy, _ in hours.values()) == 2014
    assert sum(money for _, money in hours.values()) == 200_002


@pytest.mark.parametrize("zone", ["Europe/Zurich", "America/Sao_Paulo", "Asia/Kolkata"])
async def test_a_day_of_the_ledger_is_the_owners(hass: HomeAssistant, zone: str) -> None:
    await hass.config.async_set_time_zone(zone)
    day = date(2026, 10, 25)
    hour = _first_hour(ChannelClock(900), day)
    local = datetime.fromtimestamp(hour, ZoneInfo(zone))
    assert (local.date(), local.hour) == (day, 0)
    assert hour % 3600 == 0
    replayed = _first_hour(ChannelClock(900, origin=5.0, rate=60.0), day)
    assert datetime.fromtimestamp(replayed, UTC) == datetime(2026, 10, 25, tzinfo=UTC)


async def test_statistics_equal_the_ledger(
    hass: HomeAssistant, home: Any, caplog: pytest.LogCaptureFixture
) -> None:
    session = home.runtime_data.session
    ids = statistic_ids(home.unique_id)

    net = 0.0
    for energy in (0.3, 0.2):  # written anew, not added
        net += (await call(hass, "sell_energy", energy=energy))["net"]
        await async_write_statistics(hass, home, session)
    # What was sold while Home Assistant was away for longer than sums are written anew.
    net += (await call(hass, "sell_energy", energy=0.1))["net"]
    with patch("custom_components.gridledger.statistics._AGAIN", timedelta(days=-1)):
        await recorded(hass)
        await async_write_statistics(hass, home, session)
    # A ledger that is away is no reason to complain: they are written the next time, though
    # nothing has changed since.
    caplog.set_level("DEBUG", "custom_components.gridledger")
    asked = 0

    async def away_at_first(*arguments: Any) -> list[Trade]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ConnectionFailed("gone")
        return await async_trades(*arguments)

    def look() -> int:
        session.async_set_updated_data(session.data)
        return asked

    with (
        patch("custom_components.gridledger.statistics._APART_S", 0.0),
        patch("custom_components.gridledger.statistics.async_trades", away_at_first),
    ):
        session.days_settled += 1
        await eventually(look)
        await eventually(lambda: "Statistics wait: gone" in caplog.text)
        await eventually(lambda: look() > 1)
    rows = await statistics(hass, ids, "hour", "sum")
    assert rows[ids[0]][-1]["sum"] == pytest.approx(0.6)
    assert rows[ids[1]][-1]["sum"] == pytest.approx(net)
