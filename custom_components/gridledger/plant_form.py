"""The plant form: what a home measures, what its sensors say now, and what is odd about them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import voluptuous as vol
from homeassistant.components.sensor import SensorDeviceClass
from homeassistant.const import (
    ATTR_UNIT_OF_MEASUREMENT,
    STATE_UNAVAILABLE,
    STATE_UNKNOWN,
    UnitOfEnergy,
)
from homeassistant.core import HomeAssistant, State
from homeassistant.helpers.selector import (
    BooleanSelector,
    EntitySelector,
    EntitySelectorConfig,
    NumberSelector,
    NumberSelectorConfig,
    NumberSelectorMode,
)
from homeassistant.helpers.translation import async_get_translations
from homeassistant.util import dt as dt_util
from homeassistant.util.unit_conversion import EnergyConverter, PowerConverter

from .const import (
    CONF_BATTERY_CAPACITY,
    CONF_BATTERY_CHARGE,
    CONF_BATTERY_DISCHARGE,
    CONF_BATTERY_LEVEL,
    CONF_BATTERY_MAX_POWER,
    CONF_BATTERY_POWER,
    CONF_BATTERY_RESERVE,
    CONF_GRID_EXPORT,
    CONF_GRID_IMPORT,
    CONF_GRID_POWER,
    CONF_INVERT_BATTERY_POWER,
    CONF_INVERT_GRID_POWER,
    CONF_PV_ENERGY,
    CONF_PV_POWER,
    DEFAULT_RESERVE_PERCENT,
    DOMAIN,
)

_OLD_S: Final = 15 * 60
"""A sensor that has said nothing for as long can't tell one interval from the next."""
_COARSE_WH: Final = 500
"""Steps so large that an interval's energy is mostly guessed."""


def _entities(device_class: SensorDeviceClass, *, multiple: bool = False) -> EntitySelector:
    return EntitySelector(
        EntitySelectorConfig(
            filter={"domain": "sensor", "device_class": device_class},
            multiple=multiple,
        )
    )


def _number(low: float, high: float, step: float, unit: str) -> NumberSelector:
    return NumberSelector(
        NumberSelectorConfig(
            min=low, max=high, step=step, unit_of_measurement=unit, mode=NumberSelectorMode.BOX
        )
    )


PLANT_FIELDS: dict[vol.Marker, Any] = {
    vol.Optional(CONF_GRID_IMPORT): _entities(SensorDeviceClass.ENERGY, multiple=True),
    vol.Optional(CONF_GRID_EXPORT): _entities(SensorDeviceClass.ENERGY, multiple=True),
    vol.Optional(CONF_GRID_POWER): _entities(SensorDeviceClass.POWER),
    vol.Optional(CONF_INVERT_GRID_POWER, default=False): BooleanSelector(),
    vol.Optional(CONF_PV_ENERGY): _entities(SensorDeviceClass.ENERGY, multiple=True),
    vol.Optional(CONF_PV_POWER): _entities(SensorDeviceClass.POWER, multiple=True),
    vol.Optional(CONF_BATTERY_LEVEL): _entities(SensorDeviceClass.BATTERY),
    vol.Optional(CONF_BATTERY_CAPACITY): _number(0, 1000, 0.1, "kWh"),
    vol.Optional(CONF_BATTERY_RESERVE, default=DEFAULT_RESERVE_PERCENT): _number(0, 100, 1, "%"),
    vol.Optional(CONF_BATTERY_MAX_POWER): _number(0, 1_000_000, 1, "W"),
    vol.Optional(CONF_BATTERY_POWER): _entities(SensorDeviceClass.POWER),
    vol.Optional(CONF_INVERT_BATTERY_POWER, default=False): BooleanSelector(),
    vol.Optional(CONF_BATTERY_CHARGE): _entities(SensorDeviceClass.ENERGY, multiple=True),
    vol.Optional(CONF_BATTERY_DISCHARGE): _entities(SensorDeviceClass.ENERGY, multiple=True),
}
_ENERGY: Final = frozenset(
    {
        CONF_GRID_IMPORT,
        CONF_GRID_EXPORT,
        CONF_PV_ENERGY,
        CONF_BATTERY_CHARGE,
        CONF_BATTERY_DISCHARGE,
    }
)
SEVERAL_SENSORS: Final = _ENERGY | {CONF_PV_POWER}
"""Fields that hold a list."""
_POWER: Final = frozenset({CONF_GRID_POWER, CONF_PV_POWER, CONF_BATTERY_POWER})
_SENSORS: Final = tuple(
    str(field) for field in PLANT_FIELDS if field in _ENERGY | _POWER | {CONF_BATTERY_LEVEL}
)


def without_empty(plant: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was filled in."""
    return {key: value for key, value in plant.items() if value not in (None, "", [])}


def plant_errors(plant: Mapping[str, Any]) -> dict[str, str]:
    """A home without any measurement at the grid has nothing to report."""
    if not any(plant.get(key) for key in (CONF_GRID_IMPORT, CONF_GRID_EXPORT, CONF_GRID_POWER)):
        return {CONF_GRID_IMPORT: "grid_needed"}
    return {}


@dataclass(frozen=True, slots=True)
class Warned:
    """What is odd about a sensor: ``kind`` names a text ``warn_<kind>``."""

    field: str
    entity_id: str
    kind: str


def plant_sensors(plant: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Go through the form's sensors: (field, entity)."""
    for field in _SENSORS:
        given = plant.get(field) or []
        for entity_id in [given] if isinstance(given, str) else given:
            yield field, entity_id


def plant_warnings(hass: HomeAssistant, plant: Mapping[str, Any]) -> list[Warned]:
    """Return what an owner should know before going on; nothing here forbids it."""
    found = []
    for field, entity_id in plant_sensors(plant):
        if kind := _odd(field, hass.states.get(entity_id)):
            found.append(Warned(field, entity_id, kind))
    return found


def _odd(field: str, state: State | None) -> str | None:
    if state is None or state.state in (STATE_UNAVAILABLE, STATE_UNKNOWN):
        return "no_value"
    try:
        value = float(state.state)
    except ValueError:
        return "no_number"
    unit = state.attributes.get(ATTR_UNIT_OF_MEASUREMENT)
    if field in _ENERGY and unit not in EnergyConverter.VALID_UNITS:
        return "unit"
    if field in _POWER and unit not in PowerConverter.VALID_UNITS:
        return "unit"
    if field == CONF_BATTERY_LEVEL and not 0 <= value <= 100:
        return "unit"
    if field in _ENERGY and state.attributes.get("state_class") == "measurement":
        return "no_counter"
    if field in _ENERGY and value and float(value).is_integer() and "." not in state.state:
        step_wh = EnergyConverter.convert(1, unit, UnitOfEnergy.WATT_HOUR)
        if step_wh >= _COARSE_WH:
            return "coarse"
    if (dt_util.utcnow() - state.last_reported).total_seconds() > _OLD_S:
        return "old"
    return None


async def async_live_text(
    hass: HomeAssistant, plant: Mapping[str, Any], warned: Iterable[Warned]
) -> str:
    """Return the sensors' values now, and the warnings, as a list in Markdown."""
    language = hass.config.language
    names = await async_get_translations(hass, language, "config", {DOMAIN})
    texts = await async_get_translations(hass, language, "common", {DOMAIN})
    odd = {(one.field, one.entity_id): one.kind for one in warned}
    lines = []
    for field, entity_id in plant_sensors(plant):
        name = names.get(f"component.{DOMAIN}.config.step.plant.data.{field}", field)
        state = hass.states.get(entity_id)
        value = "–"
        if state is not None and state.state not in (STATE_UNAVAILABLE, STATE_UNKNOWN):
            unit = state.attributes.get(ATTR_UNIT_OF_MEASUREMENT, "")
            value = f"{state.state} {unit}".strip()
        line = f"- {name}: **{value}**"
        if kind := odd.get((field, entity_id)):
            line += f" ⚠️ {texts.get(f'component.{DOMAIN}.common.warn_{kind}', kind)}"
        lines.append(line)
    return "\n".join(lines)
