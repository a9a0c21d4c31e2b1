"""External statistics of what was sold, in a real recorder."""

from datetime import UTC, datetime
from typing import Any

import pytest
from homeassistant.components.recorder.statistics import statistics_during_period
from homeassistant.core import HomeAssistant
from homeassistant.helpers.recorder import get_instance

from custom_components.gridledger.clock import ChannelClock
from custom_components.gridledger.models import Trade
from custom_components.gridledger.statistics import (
    async_write_statistics,
    by_hour,
    statistic_ids,
)

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


async def test_statistics_equal_the_ledger(hass: HomeAssistant, home: Any) -> None:
    session = home.runtime_data.session
    ids = statistic_ids(home.unique_id)

    async def stored() -> Any:
        await get_instance(hass).async_block_till_done()
        return await get_instance(hass).async_add_executor_job(
            statistics_during_period,
            hass,
            datetime.fromtimestamp(0, UTC),
            None,
            set(ids),
            "hour",
            None,
            {"sum"},
        )

    net = 0.0
    for energy in (0.3, 0.2):  # written anew, not added
        net += (await call(hass, "sell_energy", energy=energy))["net"]
        await async_write_statistics(hass, home, session)
    rows = await stored()
    assert rows[ids[0]][-1]["sum"] == pytest.approx(0.5)
    assert rows[ids[1]][-1]["sum"] == pytest.approx(net)
