"""What owners set up beside the home: appliances, trading rules, battery control.

Turns a subentry's data into what the engine works with. Everything has a default, so that data of
an older version stays good.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import tzinfo
from typing import Any, Final

from homeassistant.config_entries import ConfigEntry, ConfigSubentry

from .const import (
    CONF_BATTERY_CAPACITY,
    CONF_BATTERY_LEVEL,
    CONF_BATTERY_MAX_POWER,
    CONF_BATTERY_RESERVE,
    CONF_PLANT,
    DEFAULT_RESERVE_PERCENT,
)
from .engine import Appliance, Battery, Kind, Mode, RuleKind, Settings, Span, TradingRule

APPLIANCE: Final = "appliance"
TRADING_RULE: Final = "trading_rule"
BATTERY_CONTROL: Final = "battery_control"

CONF_KIND: Final = "kind"
CONF_ENTITY: Final = "entity"
CONF_POWER: Final = "power"
CONF_POWER_SENSOR: Final = "power_sensor"
CONF_PRIORITY: Final = "priority"
CONF_MIN_ON: Final = "minimum_on"
CONF_MIN_OFF: Final = "minimum_off"
CONF_DAILY_MIN: Final = "daily_minimum"
CONF_DAILY_MAX: Final = "daily_maximum"
CONF_WINDOW_START: Final = "window_start"
CONF_WINDOW_END: Final = "window_end"
CONF_DEADLINE: Final = "deadline"
CONF_FAST_OFF: Final = "fast_off"
CONF_RESPONDS: Final = "responds"
CONF_ON_TEMPERATURE: Final = "on_temperature"
CONF_OFF_TEMPERATURE: Final = "off_temperature"
CONF_CURRENT: Final = "current"
CONF_MIN_CURRENT: Final = "minimum_current"
CONF_MAX_CURRENT: Final = "maximum_current"
CONF_PHASES: Final = "phases"
CONF_CONNECTED: Final = "connected"
CONF_CAR_LEVEL: Final = "car_level"
CONF_CAR_CAPACITY: Final = "car_capacity"
CONF_CAR_TARGET: Final = "car_target"
CONF_CAR_RESERVE: Final = "car_reserve"
CONF_CAR_POWER: Final = "car_power"
CONF_GIVE_BACK: Final = "action_give_back"
CONF_STOP_GIVING: Final = "action_stop_giving"

CONF_RESERVE: Final = "reserve"
CONF_PRICE_LIMIT: Final = "price_limit"
CONF_SPREAD: Final = "spread"
CONF_ENERGY_LIMIT: Final = "energy_limit"
CONF_MAX_POWER: Final = "maximum_power"
CONF_DRY_RUN: Final = "dry_run"

CONF_PRESET: Final = "preset"
CONF_ADVISE: Final = "advise_only"
CONF_FALLS_BACK: Final = "falls_back"
CONF_ROUND_TRIP: Final = "round_trip"
CONF_WEAR: Final = "wear"
CONF_CHARGE_POWER: Final = "charge_power"
CONF_ACTIONS: Final[Mapping[Mode, str]] = {
    Mode.AUTO: "action_auto",
    Mode.HOLD: "action_hold",
    Mode.CHARGE: "action_charge",
    Mode.DISCHARGE: "action_discharge",
}
GIVES_BACK: Final = (
    CONF_CAR_LEVEL,
    CONF_CAR_CAPACITY,
    CONF_CAR_POWER,
    CONF_GIVE_BACK,
    CONF_STOP_GIVING,
)
"""What has to be there for a car to give back."""
DEFAULT_CAR_RESERVE: Final = 40


def minute_of_day(text: Any) -> int | None:
    """Return ``HH:MM[:SS]`` as a minute of the day, None for nothing."""
    if not text:
        return None
    hours, minutes, *_ = str(text).split(":")
    return int(hours) * 60 + int(minutes)


def _span(data: Mapping[str, Any]) -> Span | None:
    start = minute_of_day(data.get(CONF_WINDOW_START))
    end = minute_of_day(data.get(CONF_WINDOW_END))
    return None if start is None or end is None else Span(start, end)


def _seconds(data: Mapping[str, Any], key: str, default: float) -> float:
    return float(data.get(key, default)) * 60


def appliance_of(subentry: ConfigSubentry) -> Appliance:
    """Return an appliance's settings."""
    data = subentry.data
    daily_max = data.get(CONF_DAILY_MAX)
    made = Appliance(
        id=subentry.subentry_id,
        name=subentry.title,
        kind=Kind(data.get(CONF_KIND, Kind.SWITCH)),
        power_w=float(data.get(CONF_POWER, 1000)),
        priority=int(data.get(CONF_PRIORITY, 10)),
        min_on_s=_seconds(data, CONF_MIN_ON, 10),
        min_off_s=_seconds(data, CONF_MIN_OFF, 10),
        daily_min_s=_seconds(data, CONF_DAILY_MIN, 0),
        daily_max_s=None if not daily_max else float(daily_max) * 60,
        window=_span(data),
        deadline_min=minute_of_day(data.get(CONF_DEADLINE)),
        fast_off=bool(data.get(CONF_FAST_OFF, False)),
        responds=bool(data.get(CONF_RESPONDS, True)),
        min_current_a=float(data.get(CONF_MIN_CURRENT, 6)),
        max_current_a=float(data.get(CONF_MAX_CURRENT, 16)),
        phases=int(data.get(CONF_PHASES, 1)),
    )
    return replace(made, car=car_of(data, made.most_w))


def car_of(data: Mapping[str, Any], charge_w: float) -> Battery | None:
    """Return the battery of a car that can give back, None where it or its charger can't."""
    if not all(data.get(key) for key in GIVES_BACK):
        return None
    capacity_wh = float(data[CONF_CAR_CAPACITY]) * 1000
    return Battery(
        capacity_wh=capacity_wh,
        reserve_wh=capacity_wh * float(data.get(CONF_CAR_RESERVE, DEFAULT_CAR_RESERVE)) / 100,
        target_wh=capacity_wh * float(data.get(CONF_CAR_TARGET, 80)) / 100,
        max_charge_w=charge_w,
        max_discharge_w=float(data[CONF_CAR_POWER]),
        drives=True,
    )


def rule_of(subentry: ConfigSubentry, *, enabled: bool) -> TradingRule:
    """Return a trading rule."""
    data = subentry.data
    power = data.get(CONF_MAX_POWER)
    return TradingRule(
        id=subentry.subentry_id,
        name=subentry.title,
        kind=RuleKind(data.get(CONF_KIND, RuleKind.SELL)),
        enabled=enabled,
        dry_run=bool(data.get(CONF_DRY_RUN, True)),
        price_limit=float(data.get(CONF_PRICE_LIMIT, 0)),
        spread=float(data.get(CONF_SPREAD, 0)),
        reserve_percent=float(data.get(CONF_RESERVE, DEFAULT_RESERVE_PERCENT)),
        hours=_span(data),
        daily_limit_wh=float(data.get(CONF_ENERGY_LIMIT, 5)) * 1000,
        max_power_w=None if not power else float(power),
    )


def battery_of(plant: Mapping[str, Any], control: ConfigSubentry | None) -> Battery | None:
    """Return the home's battery, None if the plant has none that is known well enough.

    Without battery control it is planned, and left alone.
    """
    capacity = plant.get(CONF_BATTERY_CAPACITY)
    if not capacity or not plant.get(CONF_BATTERY_LEVEL):
        return None
    data: Mapping[str, Any] = {} if control is None else control.data
    most = float(plant.get(CONF_BATTERY_MAX_POWER) or 5000)
    one_way = (float(data.get(CONF_ROUND_TRIP, 90)) / 100) ** 0.5
    given = {mode for mode, key in CONF_ACTIONS.items() if data.get(key)}
    return Battery(
        capacity_wh=float(capacity) * 1000,
        reserve_wh=float(capacity)
        * 10
        * float(plant.get(CONF_BATTERY_RESERVE, DEFAULT_RESERVE_PERCENT)),
        max_charge_w=float(data.get(CONF_CHARGE_POWER) or most),
        max_discharge_w=most,
        charge_efficiency=one_way,
        discharge_efficiency=one_way,
        wear_per_kwh=float(data.get(CONF_WEAR, 0)),
        priority=int(data.get(CONF_PRIORITY, 5)),
        modes=frozenset(given | {Mode.AUTO}) if control is not None else frozenset(Mode),
        # Without a way back to automatic nothing is forced.
        drives=Mode.AUTO in given and not data.get(CONF_ADVISE, True),
    )


def subentries_of(entry: ConfigEntry[Any], kind: str) -> list[ConfigSubentry]:
    """Return an entry's subentries of a kind."""
    return [sub for sub in entry.subentries.values() if sub.subentry_type == kind]


def settings_of(entry: ConfigEntry[Any], zone: tzinfo, enabled: Mapping[str, bool]) -> Settings:
    """Return the home's settings; ``enabled`` says which trading rules are turned on."""
    controls = subentries_of(entry, BATTERY_CONTROL)
    return Settings(
        zone=zone,
        appliances=tuple(appliance_of(sub) for sub in subentries_of(entry, APPLIANCE)),
        battery=battery_of(entry.data[CONF_PLANT], controls[0] if controls else None),
        rules=tuple(
            rule_of(sub, enabled=enabled.get(sub.subentry_id, False))
            for sub in subentries_of(entry, TRADING_RULE)
        ),
    )
