"""What a home costs its recorder: states written in an hour in which everything always changes."""

import random
from collections import Counter
from datetime import timedelta
from typing import Any

from homeassistant.const import EVENT_STATE_CHANGED
from homeassistant.core import Event, HomeAssistant, callback
from homeassistant.helpers import entity_registry as er
from pytest_homeassistant_custom_component.common import async_fire_time_changed

from custom_components.gridledger.const import DOMAIN

from .conftest import (
    BATTERY_POWER,
    EXPORT,
    GRID_POWER,
    IMPORT,
    LEVEL,
    PV_ENERGY,
    PV_POWER,
    set_state,
)
from .test_keeper import APPLIANCE, add, entry  # noqa: F401

A_DAY = 5_000
HOURS = 24
WARM_UP = 15
"""Minutes: Home Assistant reloads what was enabled, and news may come in a row for a while."""


async def test_rows_in_a_day(hass: HomeAssistant, entry: Any, freezer: Any) -> None:  # noqa: F811
    """No house changes as much, and all minutes of a day as much as in this hour are few rows.

    Everything is enabled, also what only repeats one of the owner's sensors.
    """
    await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    registry = er.async_get(hass)
    ours = {one.entity_id for one in er.async_entries_for_config_entry(registry, entry.entry_id)}
    for entity_id in ours:
        registry.async_update_entity(entity_id, disabled_by=None)
    rows: Counter[str] = Counter()

    @callback
    def count(event: Event[Any]) -> None:
        if event.data["entity_id"] in ours:
            rows[event.data["entity_id"]] += 1

    hass.bus.async_listen(EVENT_STATE_CHANGED, count)
    choose, energy = random.Random(3), 1000.0
    for minute in range(WARM_UP + 60):
        if minute == WARM_UP:
            rows.clear()
        for _ in range(6):
            energy += 0.02
            for entity_id in (IMPORT, EXPORT, PV_ENERGY):
                set_state(hass, entity_id, round(energy, 3))
            set_state(hass, GRID_POWER, choose.randint(-4000, 4000), "W")
            set_state(hass, PV_POWER, choose.randint(0, 5000), "W")
            set_state(hass, BATTERY_POWER, choose.randint(-3000, 3000), "W")
            set_state(hass, LEVEL, choose.randint(200, 990) / 10, "%")
            freezer.tick(timedelta(seconds=10))
            async_fire_time_changed(hass)
            await hass.async_block_till_done(wait_background_tasks=False)
    for key in ("surplus", "grid_power", "pv_power", "battery_power", "consumption_power"):
        found = registry.async_get_entity_id("sensor", DOMAIN, f"{entry.unique_id}_{key}")
        assert found is not None
        assert 10 <= rows[found] <= 25, (key, rows)
    assert sum(rows.values()) * HOURS < A_DAY, rows.most_common()
