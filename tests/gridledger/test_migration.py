"""Entries of older and newer versions."""

from typing import Any

import pytest
from homeassistant.config_entries import ConfigEntryState
from homeassistant.core import HomeAssistant
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.gridledger import vault
from custom_components.gridledger.config_flow import GridLedgerConfigFlow
from custom_components.gridledger.const import DOMAIN

from .conftest import EXPORT, GRID_POWER, IMPORT, PV_POWER
from .test_keeper import UNIQUE_ID
from .test_keeper import entry as home  # noqa: F401 - one whose ledger is away

OLD_PLANT = {
    "grid_import_energy": IMPORT,
    "grid_export_energy": [EXPORT],
    "grid_power": GRID_POWER,
    "pv_power": PV_POWER,
    "battery_reserve": 20,
}


async def again(hass: HomeAssistant, known: Any, **changed: Any) -> MockConfigEntry:
    """The same home's entry, as another version has left it."""
    await hass.config_entries.async_unload(known.entry_id)
    left = {"data": {**known.data, "plant": OLD_PLANT}, "minor_version": 1, **changed}
    made = MockConfigEntry(domain=DOMAIN, title="H-2", unique_id=f"{UNIQUE_ID}2", **left)
    secrets = await vault.async_load_secrets(hass, UNIQUE_ID)
    assert secrets is not None
    await vault.async_save_secrets(hass, str(made.unique_id), secrets)
    made.add_to_hass(hass)
    await hass.config_entries.async_setup(made.entry_id)
    await hass.async_block_till_done()
    return made


async def test_an_entry_of_the_first_version_is_brought_up_to_date(
    hass: HomeAssistant,
    home: Any,  # noqa: F811
) -> None:
    made = await again(hass, home)
    assert made.state is ConfigEntryState.LOADED
    assert (made.version, made.minor_version) == (
        GridLedgerConfigFlow.VERSION,
        GridLedgerConfigFlow.MINOR_VERSION,
    )
    assert made.data["plant"] == {
        **OLD_PLANT,
        "grid_import_energy": [IMPORT],
        "pv_power": [PV_POWER],
    }
    assert made.runtime_data.home.measure().pv_power == 2500
    await hass.config_entries.async_unload(made.entry_id)


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({"version": 2}, ConfigEntryState.MIGRATION_ERROR),
        # A newer minor version only adds what this one doesn't know.
        ({"minor_version": 99}, ConfigEntryState.LOADED),
    ],
)
async def test_an_entry_of_a_newer_version(
    hass: HomeAssistant,
    home: Any,  # noqa: F811
    changed: dict[str, Any],
    state: ConfigEntryState,
) -> None:
    made = await again(hass, home, **changed)
    assert made.state is state
    assert made.data["plant"] == OLD_PLANT, "left as it was"
    if state is ConfigEntryState.LOADED:
        await hass.config_entries.async_unload(made.entry_id)
