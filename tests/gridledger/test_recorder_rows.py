"""What a home costs its recorder: states written in an hour in which everything always changes."""

import random
from collections import Counter
from datetime import timedelta
from typing import Any

from homeassistant.const import EVENT_STATE_CHANGED
from homeassistant.core import Event, HomeAssistant, callback
from homeassistant.helpers import entity_registry as er
from pytest_homeassistant_custom_component.common import async_fire_time_changed

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


async def test_rows_in_a_day(hass: HomeAssistant, entry: Any, freezer: Any) -> None:  # noqa: F811
    """No house changes as much, and all minutes of a day as much as in this hour are few rows."""
    await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    ours = {
        one.entity_id
        for one in er.async_entries_for_config_entry(er.async_get(hass), entry.entry_id)
        if one.disabled_by is None
    }
    rows: Counter[str] = Counter()

    @callback
    def count(event: Event[Any]) -> None:
        if event.data["entity_id"] in ours:
            rows[event.data["entity_id"]] += 1

    hass.bus.async_listen(EVENT_STATE_CHANGED, count)
    choose, energy = random.Random(3), 1000.0
    for _ in range(60):
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
    assert rows, "nothing was written"
    assert sum(rows.values()) * HOURS < A_DAY, rows.most_common()
    assert max(rows.values()) <= 61, rows.most_common(3)
