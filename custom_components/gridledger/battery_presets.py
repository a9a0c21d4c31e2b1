"""How common inverters are told what to do, as actions with blanks.

A preset is data: for each mode a list of Home Assistant actions. ``{mode_entity}``,
``{power_entity}`` and ``{device}`` stand for what the owner chooses in the form; ``power_w``,
``minutes`` and ``until`` are variables at run time. The names of options come from the
integrations' own sources; an owner can change every action afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .engine import Mode


def _select(option: str) -> dict[str, Any]:
    return {
        "action": "select.select_option",
        "target": {"entity_id": "{mode_entity}"},
        "data": {"option": option},
    }


def _number(template: str | float) -> dict[str, Any]:
    return {
        "action": "number.set_value",
        "target": {"entity_id": "{power_entity}"},
        "data": {"value": template},
    }


def _huawei(action: str, **data: Any) -> dict[str, Any]:
    return {"action": f"huawei_solar.{action}", "data": {"device_id": "{device}", **data}}


@dataclass(frozen=True, slots=True)
class Preset:
    """Actions by mode, what has to be filled in, and whether it ends by itself."""

    name: str
    actions: Mapping[Mode, list[dict[str, Any]]]
    blanks: tuple[str, ...] = ()
    falls_back: bool = False
    """Whether the inverter goes back by itself if Home Assistant dies."""
    options: Mapping[str, str] = field(default_factory=dict)


_FORCED: Final = {"duration": "{{ [minutes, 1440] | min }}", "power": "{{ power_w | int }}"}

PRESETS: Final[Mapping[str, Preset]] = {
    "huawei_solar": Preset(
        "Huawei LUNA (Huawei Solar)",
        {
            Mode.AUTO: [_huawei("stop_forcible_charge")],
            Mode.CHARGE: [_huawei("forcible_charge", **_FORCED)],
            Mode.DISCHARGE: [_huawei("forcible_discharge", **_FORCED)],
        },
        ("device",),
        falls_back=True,
    ),
    "homewizard": Preset(
        "HomeWizard Plug-In Battery",
        {
            Mode.AUTO: [_select("zero")],
            Mode.HOLD: [_select("standby")],
            Mode.CHARGE: [_select("to_full")],
        },
        ("mode_entity",),
    ),
    "teslemetry": Preset(
        "Tesla Powerwall (Teslemetry, Tessie)",
        {
            Mode.AUTO: [_select("self_consumption"), _number(20)],
            Mode.HOLD: [_select("self_consumption"), _number(100)],
            Mode.CHARGE: [_select("backup")],
        },
        ("mode_entity", "power_entity"),
    ),
    "goodwe": Preset(
        "GoodWe (with eco modes)",
        {
            Mode.AUTO: [_select("general")],
            Mode.CHARGE: [_select("eco_charge")],
            Mode.DISCHARGE: [_select("eco_discharge")],
        },
        ("mode_entity",),
    ),
    "setpoint": Preset(
        "A number that sets the battery's power (positive: charge)",
        {
            Mode.HOLD: [_number(0)],
            Mode.CHARGE: [_number("{{ power_w | int }}")],
            Mode.DISCHARGE: [_number("{{ -(power_w | int) }}")],
        },
        ("power_entity",),
    ),
}


def fill(actions: Any, values: Mapping[str, str]) -> Any:
    """Return actions with their blanks filled in. Templates stay as they are."""
    if isinstance(actions, str):
        for name, value in values.items():
            actions = actions.replace("{" + name + "}", value) if "{{" not in actions else actions
        return actions
    if isinstance(actions, Mapping):
        return {key: fill(value, values) for key, value in actions.items()}
    if isinstance(actions, list):
        return [fill(value, values) for value in actions]
    return actions
