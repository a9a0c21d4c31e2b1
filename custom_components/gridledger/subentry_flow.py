"""Forms for appliances, trading rules and battery control; all of them apply at once."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import voluptuous as vol
from homeassistant.config_entries import SOURCE_USER, ConfigSubentryFlow, SubentryFlowResult
from homeassistant.const import CONF_NAME
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers import config_validation as cv
from homeassistant.helpers.selector import (
    ActionSelector,
    BooleanSelector,
    DeviceSelector,
    EntitySelector,
    EntitySelectorConfig,
    NumberSelector,
    NumberSelectorConfig,
    NumberSelectorMode,
    SelectOptionDict,
    SelectSelector,
    SelectSelectorConfig,
    TextSelector,
    TimeSelector,
)

from .battery_presets import PRESETS, fill
from .const import CONF_BATTERY_CAPACITY, CONF_BATTERY_LEVEL, CONF_PLANT, DEFAULT_RESERVE_PERCENT
from .engine import Kind, Mode, RuleKind
from .subentries import (
    APPLIANCE,
    BATTERY_CONTROL,
    CONF_ACTIONS,
    CONF_ADVISE,
    CONF_CAR_CAPACITY,
    CONF_CAR_LEVEL,
    CONF_CAR_POWER,
    CONF_CAR_RESERVE,
    CONF_CAR_TARGET,
    CONF_CHARGE_POWER,
    CONF_CONNECTED,
    CONF_CURRENT,
    CONF_DAILY_MAX,
    CONF_DAILY_MIN,
    CONF_DEADLINE,
    CONF_DRY_RUN,
    CONF_ENERGY_LIMIT,
    CONF_ENTITY,
    CONF_FALLS_BACK,
    CONF_FAST_OFF,
    CONF_GIVE_BACK,
    CONF_KIND,
    CONF_MAX_CURRENT,
    CONF_MAX_POWER,
    CONF_MIN_CURRENT,
    CONF_MIN_OFF,
    CONF_MIN_ON,
    CONF_OFF_TEMPERATURE,
    CONF_ON_TEMPERATURE,
    CONF_PHASES,
    CONF_POWER,
    CONF_POWER_SENSOR,
    CONF_PRESET,
    CONF_PRICE_LIMIT,
    CONF_PRIORITY,
    CONF_RESERVE,
    CONF_RESPONDS,
    CONF_ROUND_TRIP,
    CONF_SPREAD,
    CONF_STOP_GIVING,
    CONF_WEAR,
    CONF_WINDOW_END,
    CONF_WINDOW_START,
    DEFAULT_CAR_RESERVE,
    GIVES_BACK,
    TRADING_RULE,
    subentries_of,
)

_CUSTOM: Final = "custom"


def _number(low: float, high: float, step: float, unit: str | None = None) -> NumberSelector:
    config = NumberSelectorConfig(min=low, max=high, step=step, mode=NumberSelectorMode.BOX)
    if unit is not None:
        config["unit_of_measurement"] = unit
    return NumberSelector(config)


def _entity(*domains: str, device_class: str | None = None) -> EntitySelector:
    if device_class is None:
        return EntitySelector(EntitySelectorConfig(domain=list(domains)))
    return EntitySelector(
        EntitySelectorConfig(filter={"domain": list(domains), "device_class": device_class})
    )


_DOMAINS: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.SWITCH: ("switch", "input_boolean", "light", "fan", "humidifier"),
    Kind.CLIMATE: ("climate",),
    Kind.WATER_HEATER: ("water_heater", "switch"),
    Kind.CHARGER: ("switch", "input_boolean"),
}
_COMMON: Final[dict[vol.Marker, Any]] = {
    vol.Optional(CONF_POWER_SENSOR): _entity("sensor", device_class="power"),
    vol.Required(CONF_PRIORITY, default=10): _number(1, 99, 1),
    vol.Required(CONF_MIN_ON, default=10): _number(0, 1440, 1, "min"),
    vol.Required(CONF_MIN_OFF, default=10): _number(0, 1440, 1, "min"),
    vol.Required(CONF_DAILY_MIN, default=0): _number(0, 1440, 1, "min"),
    vol.Optional(CONF_DAILY_MAX): _number(1, 1440, 1, "min"),
    vol.Optional(CONF_WINDOW_START): TimeSelector(),
    vol.Optional(CONF_WINDOW_END): TimeSelector(),
    vol.Optional(CONF_DEADLINE): TimeSelector(),
    vol.Required(CONF_FAST_OFF, default=False): BooleanSelector(),
    vol.Required(CONF_RESPONDS, default=True): BooleanSelector(),
}
_HEAT: Final[dict[vol.Marker, Any]] = {
    vol.Optional(CONF_ON_TEMPERATURE): _number(5, 90, 0.5, "°"),
    vol.Optional(CONF_OFF_TEMPERATURE): _number(5, 90, 0.5, "°"),
}
_CHARGER: Final[dict[vol.Marker, Any]] = {
    vol.Optional(CONF_CURRENT): _entity("number", "input_number"),
    vol.Required(CONF_MIN_CURRENT, default=6): _number(1, 32, 1, "A"),
    vol.Required(CONF_MAX_CURRENT, default=16): _number(1, 80, 1, "A"),
    vol.Required(CONF_PHASES, default=1): _number(1, 3, 1),
    vol.Optional(CONF_CONNECTED): _entity("binary_sensor", "device_tracker", "sensor"),
    vol.Optional(CONF_CAR_LEVEL): _entity("sensor", device_class="battery"),
    vol.Optional(CONF_CAR_CAPACITY): _number(1, 300, 0.1, "kWh"),
    vol.Optional(CONF_CAR_TARGET, default=80): _number(10, 100, 1, "%"),
    vol.Optional(CONF_CAR_RESERVE, default=DEFAULT_CAR_RESERVE): _number(0, 100, 1, "%"),
    vol.Optional(CONF_CAR_POWER): _number(300, 50_000, 100, "W"),
    vol.Optional(CONF_GIVE_BACK): ActionSelector(),
    vol.Optional(CONF_STOP_GIVING): ActionSelector(),
}


def appliance_schema(kind: Kind) -> Any:
    """Return the form of an appliance of a kind."""
    fields: dict[vol.Marker, Any] = {
        vol.Required(CONF_NAME): TextSelector(),
        vol.Required(CONF_ENTITY): _entity(*_DOMAINS[kind]),
    }
    if kind is Kind.CHARGER:
        fields |= _CHARGER
    else:
        fields[vol.Required(CONF_POWER, default=1000)] = _number(10, 50_000, 10, "W")
    if kind in (Kind.CLIMATE, Kind.WATER_HEATER):
        fields |= _HEAT
    return vol.Schema({**fields, **_COMMON})


RULE_SCHEMA: Any = vol.Schema(
    {
        vol.Required(CONF_NAME): TextSelector(),
        vol.Required(CONF_KIND, default=str(RuleKind.SELL)): SelectSelector(
            SelectSelectorConfig(options=[str(kind) for kind in RuleKind], translation_key="rule")
        ),
        vol.Required(CONF_DRY_RUN, default=True): BooleanSelector(),
        vol.Required(CONF_PRICE_LIMIT): _number(-10, 10, 0.001),
        vol.Required(CONF_SPREAD, default=0.02): _number(0, 10, 0.001),
        vol.Required(CONF_RESERVE, default=DEFAULT_RESERVE_PERCENT): _number(0, 100, 1, "%"),
        vol.Required(CONF_ENERGY_LIMIT, default=5): _number(0.1, 1000, 0.1, "kWh"),
        vol.Optional(CONF_MAX_POWER): _number(100, 1_000_000, 100, "W"),
        vol.Optional(CONF_WINDOW_START): TimeSelector(),
        vol.Optional(CONF_WINDOW_END): TimeSelector(),
    }
)
PRESET_SCHEMA: Any = vol.Schema(
    {
        vol.Required(CONF_PRESET, default=_CUSTOM): SelectSelector(
            SelectSelectorConfig(
                options=[
                    *(
                        SelectOptionDict(value=key, label=preset.name)
                        for key, preset in PRESETS.items()
                    ),
                    SelectOptionDict(value=_CUSTOM, label="…"),
                ]
            )
        ),
        vol.Optional("mode_entity"): _entity("select", "input_select"),
        vol.Optional("power_entity"): _entity("number", "input_number"),
        vol.Optional("device"): DeviceSelector(),
    }
)
CONTROL_SCHEMA: Any = vol.Schema(
    {
        vol.Required(CONF_ADVISE, default=True): BooleanSelector(),
        vol.Required(CONF_FALLS_BACK, default=False): BooleanSelector(),
        vol.Required(CONF_ROUND_TRIP, default=90): _number(50, 100, 1, "%"),
        vol.Required(CONF_WEAR, default=0): _number(0, 1, 0.001),
        vol.Optional(CONF_CHARGE_POWER): _number(100, 1_000_000, 100, "W"),
        vol.Required(CONF_PRIORITY, default=5): _number(1, 99, 1),
        vol.Optional(CONF_ACTIONS[Mode.AUTO]): ActionSelector(),
        vol.Optional(CONF_ACTIONS[Mode.HOLD]): ActionSelector(),
        vol.Optional(CONF_ACTIONS[Mode.CHARGE]): ActionSelector(),
        vol.Optional(CONF_ACTIONS[Mode.DISCHARGE]): ActionSelector(),
    }
)


class _Flow(ConfigSubentryFlow):
    """What the three forms share: adding and reconfiguring are the same form."""

    def _known(self) -> dict[str, Any]:
        if self.source == SOURCE_USER:
            return {}
        subentry = self._get_reconfigure_subentry()
        return {CONF_NAME: subentry.title, **subentry.data}

    def _finish(self, data: Mapping[str, Any], title: str) -> SubentryFlowResult:
        kept = {
            key: value
            for key, value in data.items()
            if key != CONF_NAME and value not in (None, "", [])
        }
        if self.source == SOURCE_USER:
            return self.async_create_entry(title=title, data=kept)
        return self.async_update_and_abort(
            self._get_entry(), self._get_reconfigure_subentry(), title=title, data=kept
        )


def _window_errors(data: Mapping[str, Any]) -> dict[str, str]:
    if bool(data.get(CONF_WINDOW_START)) != bool(data.get(CONF_WINDOW_END)):
        return {CONF_WINDOW_END: "half_window"}
    return {}


class ApplianceFlow(_Flow):
    """Adds an appliance, or changes one."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._kind = Kind.SWITCH

    async def async_step_user(self, user_input: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Ask what kind of appliance it is."""
        return self.async_show_menu(step_id="user", menu_options=[str(kind) for kind in Kind])

    async def async_step_switch(
        self, user_input: dict[str, Any] | None = None
    ) -> SubentryFlowResult:
        """Something that is on or off."""
        return await self._details(Kind.SWITCH, user_input)

    async def async_step_climate(
        self, user_input: dict[str, Any] | None = None
    ) -> SubentryFlowResult:
        """A heat pump or an air conditioner."""
        return await self._details(Kind.CLIMATE, user_input)

    async def async_step_water_heater(
        self, user_input: dict[str, Any] | None = None
    ) -> SubentryFlowResult:
        """A boiler."""
        return await self._details(Kind.WATER_HEATER, user_input)

    async def async_step_charger(
        self, user_input: dict[str, Any] | None = None
    ) -> SubentryFlowResult:
        """An EV charger by current."""
        return await self._details(Kind.CHARGER, user_input)

    async def async_step_reconfigure(
        self, user_input: dict[str, Any] | None = None
    ) -> SubentryFlowResult:
        """Change an appliance; its kind stays."""
        kind = Kind(self._get_reconfigure_subentry().data[CONF_KIND])
        return await self._details(kind, user_input)

    async def _details(self, kind: Kind, given: dict[str, Any] | None) -> SubentryFlowResult:
        errors: dict[str, str] = {}
        if given is not None:
            errors = self._errors(kind, given)
            if not errors:
                return self._finish({**given, CONF_KIND: str(kind)}, given[CONF_NAME].strip())
        schema = appliance_schema(kind)
        return self.async_show_form(
            step_id=str(kind) if self.source == SOURCE_USER else "reconfigure",
            data_schema=self.add_suggested_values_to_schema(schema, given or self._known()),
            errors=errors,
        )

    def _errors(self, kind: Kind, given: Mapping[str, Any]) -> dict[str, str]:
        errors = _window_errors(given)
        entry = self._get_entry()
        own = None if self.source == SOURCE_USER else self._get_reconfigure_subentry().subentry_id
        for other in subentries_of(entry, APPLIANCE):
            if other.subentry_id != own and other.data[CONF_ENTITY] == given[CONF_ENTITY]:
                errors[CONF_ENTITY] = "already_used"
        most = given.get(CONF_DAILY_MAX)
        if most and given[CONF_DAILY_MIN] > most:
            errors[CONF_DAILY_MAX] = "less_than_minimum"
        if kind is Kind.CHARGER and given[CONF_MIN_CURRENT] > given[CONF_MAX_CURRENT]:
            errors[CONF_MAX_CURRENT] = "less_than_minimum"
        if given.get(CONF_CAR_POWER):
            errors |= {key: "needed" for key in GIVES_BACK if not given.get(key)}
        return errors | _action_errors(given, (CONF_GIVE_BACK, CONF_STOP_GIVING))


class TradingRuleFlow(_Flow):
    """Adds a trading rule, or changes one. A new rule is off until its switch is turned on."""

    async def async_step_user(self, user_input: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Ask for the rule."""
        return self._rule("user", user_input)

    async def async_step_reconfigure(
        self, user_input: dict[str, Any] | None = None
    ) -> SubentryFlowResult:
        """Change the rule."""
        return self._rule("reconfigure", user_input)

    def _rule(self, step: str, given: dict[str, Any] | None) -> SubentryFlowResult:
        entry = self._get_entry()
        cars = [sub for sub in subentries_of(entry, APPLIANCE) if sub.data.get(CONF_CAR_POWER)]
        if not cars and not _has_battery(entry.data[CONF_PLANT]):
            return self.async_abort(reason="no_battery")
        errors: dict[str, str] = {}
        if given is not None:
            errors = _window_errors(given)
            if not errors:
                return self._finish(given, given[CONF_NAME].strip())
        return self.async_show_form(
            step_id=step,
            data_schema=self.add_suggested_values_to_schema(RULE_SCHEMA, given or self._known()),
            errors=errors,
        )


class BatteryControlFlow(_Flow):
    """How the battery is told what to do: a preset, then its actions."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._suggested: dict[str, Any] = {}

    async def async_step_user(self, user_input: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Choose a preset."""
        entry = self._get_entry()
        if not _has_battery(entry.data[CONF_PLANT]):
            return self.async_abort(reason="no_battery")
        if subentries_of(entry, BATTERY_CONTROL):
            return self.async_abort(reason="already_configured")
        errors: dict[str, str] = {}
        if user_input is not None:
            preset = PRESETS.get(user_input[CONF_PRESET])
            if preset is not None:
                errors = {blank: "needed" for blank in preset.blanks if not user_input.get(blank)}
                values = {blank: str(user_input.get(blank, "")) for blank in preset.blanks}
                self._suggested = {
                    CONF_ACTIONS[mode]: fill(actions, values)
                    for mode, actions in preset.actions.items()
                }
                self._suggested[CONF_FALLS_BACK] = preset.falls_back
            if not errors:
                return await self.async_step_actions()
        return self.async_show_form(
            step_id="user",
            data_schema=self.add_suggested_values_to_schema(PRESET_SCHEMA, user_input or {}),
            errors=errors,
            last_step=False,
        )

    async def async_step_actions(
        self, user_input: dict[str, Any] | None = None
    ) -> SubentryFlowResult:
        """Look at the actions, and say whether they are to be run."""
        return self._actions("actions", user_input, self._suggested)

    async def async_step_reconfigure(
        self, user_input: dict[str, Any] | None = None
    ) -> SubentryFlowResult:
        """Change the actions."""
        return self._actions("reconfigure", user_input, self._known())

    def _actions(
        self, step: str, given: dict[str, Any] | None, known: Mapping[str, Any]
    ) -> SubentryFlowResult:
        errors: dict[str, str] = {}
        if given is not None:
            errors = _action_errors(given, CONF_ACTIONS.values())
            if not given[CONF_ADVISE] and not given.get(CONF_ACTIONS[Mode.AUTO]):
                errors[CONF_ACTIONS[Mode.AUTO]] = "automatic_needed"
            if not errors:
                return self._finish(given, self._get_entry().title)
        return self.async_show_form(
            step_id=step,
            data_schema=self.add_suggested_values_to_schema(CONTROL_SCHEMA, given or known),
            errors=errors,
        )


def _action_errors(given: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
    errors = {}
    for key in keys:
        if given.get(key):
            try:
                cv.SCRIPT_SCHEMA(given[key])
            except vol.Invalid, HomeAssistantError:
                errors[key] = "invalid_action"
    return errors


def _has_battery(plant: Mapping[str, Any]) -> bool:
    return bool(plant.get(CONF_BATTERY_CAPACITY) and plant.get(CONF_BATTERY_LEVEL))


SUBENTRY_FLOWS: Final[dict[str, type[ConfigSubentryFlow]]] = {
    APPLIANCE: ApplianceFlow,
    TRADING_RULE: TradingRuleFlow,
    BATTERY_CONTROL: BatteryControlFlow,
}
