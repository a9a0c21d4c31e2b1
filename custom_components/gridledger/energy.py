"""The solar forecast for the Energy dashboard, learnt from the home's own past."""

from typing import Any

from homeassistant.config_entries import ConfigEntryState
from homeassistant.core import HomeAssistant

from .const import CONF_PLANT, CONF_PV_POWER, DOMAIN


async def async_get_solar_forecast(
    hass: HomeAssistant, config_entry_id: str
) -> dict[str, dict[str, Any]] | None:
    """Return Wh by the hour for two days, None where nothing is known of a plant."""
    entry = hass.config_entries.async_get_entry(config_entry_id)
    if entry is None or entry.domain != DOMAIN or entry.state is not ConfigEntryState.LOADED:
        return None
    if not entry.data[CONF_PLANT].get(CONF_PV_POWER):
        return None
    return {"wh_hours": entry.runtime_data.keeper.solar_forecast()}
