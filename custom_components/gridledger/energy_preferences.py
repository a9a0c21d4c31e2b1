"""Prefill the plant form from the Energy dashboard's preferences, of 2026.6 to 2026.11."""

from collections.abc import Mapping
from typing import Any

from homeassistant.core import valid_entity_id

from .const import (
    CONF_BATTERY_CAPACITY,
    CONF_BATTERY_CHARGE,
    CONF_BATTERY_DISCHARGE,
    CONF_BATTERY_LEVEL,
    CONF_BATTERY_POWER,
    CONF_GRID_EXPORT,
    CONF_GRID_IMPORT,
    CONF_GRID_POWER,
    CONF_INVERT_BATTERY_POWER,
    CONF_INVERT_GRID_POWER,
    CONF_PV_ENERGY,
    CONF_PV_POWER,
)


def plant_from_preferences(preferences: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return suggestions for the plant form.

    A grid source lists its meters in ``flow_from`` and ``flow_to``, or is one pair of them; a
    power sensor is ``stat_rate``, or described by ``power_config``. What is no entity (external
    statistics) can't be listened to and is left out.
    """
    plant: dict[str, Any] = {}

    def several(field: str, statistic: Any) -> None:
        if isinstance(statistic, str) and valid_entity_id(statistic):
            known = plant.setdefault(field, [])
            if statistic not in known:
                known.append(statistic)

    def one(field: str, statistic: Any) -> bool:
        if field in plant or not isinstance(statistic, str) or not valid_entity_id(statistic):
            return False
        plant[field] = statistic
        return True

    def power(field: str, invert_field: str, source: Mapping[str, Any]) -> None:
        config = source.get("power_config") or {}
        if one(field, config.get("stat_rate_inverted")):
            plant[invert_field] = True
        elif not one(field, config.get("stat_rate")):
            one(field, source.get("stat_rate"))

    for source in (preferences or {}).get("energy_sources", []):
        match source.get("type"):
            case "grid":
                several(CONF_GRID_IMPORT, source.get("stat_energy_from"))
                several(CONF_GRID_EXPORT, source.get("stat_energy_to"))
                for flow in source.get("flow_from") or []:
                    several(CONF_GRID_IMPORT, flow.get("stat_energy_from"))
                for flow in source.get("flow_to") or []:
                    several(CONF_GRID_EXPORT, flow.get("stat_energy_to"))
                power(CONF_GRID_POWER, CONF_INVERT_GRID_POWER, source)
                for meter in source.get("power") or []:
                    power(CONF_GRID_POWER, CONF_INVERT_GRID_POWER, meter)
            case "solar":
                several(CONF_PV_ENERGY, source.get("stat_energy_from"))
                several(CONF_PV_POWER, source.get("stat_rate"))
            case "battery":
                several(CONF_BATTERY_DISCHARGE, source.get("stat_energy_from"))
                several(CONF_BATTERY_CHARGE, source.get("stat_energy_to"))
                power(CONF_BATTERY_POWER, CONF_INVERT_BATTERY_POWER, source)
                one(CONF_BATTERY_LEVEL, source.get("stat_soc"))
                if CONF_BATTERY_CAPACITY not in plant and source.get("capacity"):
                    plant[CONF_BATTERY_CAPACITY] = float(source["capacity"])
    return plant
