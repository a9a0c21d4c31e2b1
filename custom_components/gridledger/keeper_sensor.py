"""Sensors over what the home does by itself: status and reason, the plan, surplus, rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, override

from homeassistant.components.sensor import (
    SensorDeviceClass,
    SensorEntity,
    SensorEntityDescription,
    SensorStateClass,
)
from homeassistant.config_entries import ConfigSubentry
from homeassistant.const import UnitOfPower, UnitOfTime
from homeassistant.core import callback
from homeassistant.helpers.entity import Entity
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback
from homeassistant.util import dt as dt_util

from .coordinator import GridLedgerConfigEntry
from .engine import Mode, Reason
from .engine.dispatcher import ApplianceDecision
from .entity import NEWS_W, Device, GridLedgerEntity, Sparing
from .keeper import HomeKeeper, KeeperData
from .subentries import APPLIANCE, TRADING_RULE
from .subentry_entity import SubentryEntity, async_add_for

_WAITING: Final = frozenset({"min_off", "averaging", "waits_planned", "sensors_gap"})
_NAMED: Final = {
    "override_on": "override",
    "override_off": "override",
    "by_hand_on": "by_hand",
    "by_hand_off": "by_hand",
    "manual": "manual",
    "no_response": "fault",
    "unavailable": "fault",
    "car_feeds": "gives_back",
    "car_delivers": "gives_back",
    "car_responds": "gives_back",
}
STATUSES: Final = ["on", "off", "waiting", "gives_back", "override", "by_hand", "manual", "fault"]
RULE_STATUSES: Final = ["off", "waiting", "planned", "dry_run", "sold", "delivering"]
_SALES_SHOWN: Final = 5


def status_of(decision: ApplianceDecision) -> str:
    """Return an appliance's status, one of :data:`STATUSES`."""
    key = decision.reason.key
    if key in _NAMED:
        return _NAMED[key]
    if key in _WAITING and not decision.on:
        return "waiting"
    return "on" if decision.on else "off"


def reason_attributes(reason: Reason) -> dict[str, Any]:
    """Return a reason as attributes: its key and numbers for cards, and in English."""
    return {"reason": reason.text, "reason_key": reason.key, "reason_values": dict(reason.values)}


STATUS = SensorEntityDescription(
    key="status",
    translation_key="appliance_status",
    device_class=SensorDeviceClass.ENUM,
    options=STATUSES,
)
RUN_TIME = SensorEntityDescription(
    key="run_time",
    translation_key="run_time",
    device_class=SensorDeviceClass.DURATION,
    native_unit_of_measurement=UnitOfTime.MINUTES,
    state_class=SensorStateClass.TOTAL_INCREASING,
    suggested_display_precision=0,
)
RULE_STATUS = SensorEntityDescription(
    key="rule_status",
    translation_key="rule_status",
    device_class=SensorDeviceClass.ENUM,
    options=RULE_STATUSES,
)


@dataclass(frozen=True, kw_only=True)
class KeeperSensorDescription(SensorEntityDescription):
    """A sensor of the whole home."""

    value_fn: Callable[[KeeperData], float | str | None]
    attributes_fn: Callable[[KeeperData], Mapping[str, Any]] | None = None


def _plan_state(data: KeeperData) -> str | None:
    return None if data.decision.battery is None else str(data.decision.battery.mode)


def _plan_attributes(data: KeeperData) -> Mapping[str, Any]:
    battery, plan = data.decision.battery, data.plan
    found: dict[str, Any] = {} if battery is None else reason_attributes(battery.reason)
    slot = None if plan is None else plan.slot_at(data.decision.now)
    if plan is not None and slot is not None:
        found |= {"house": slot.house, "surplus": slot.surplus, "revision": plan.revision}
    return found


def _surplus(data: KeeperData) -> float | None:
    surplus = data.decision.surplus_w
    return None if surplus is None else round(surplus, -1)


KEEPER_SENSORS: tuple[KeeperSensorDescription, ...] = (
    KeeperSensorDescription(
        key="plan",
        translation_key="plan",
        device_class=SensorDeviceClass.ENUM,
        options=[str(mode) for mode in Mode],
        value_fn=_plan_state,
        attributes_fn=_plan_attributes,
    ),
    KeeperSensorDescription(
        key="surplus",
        translation_key="surplus",
        device_class=SensorDeviceClass.POWER,
        native_unit_of_measurement=UnitOfPower.WATT,
        state_class=SensorStateClass.MEASUREMENT,
        suggested_display_precision=0,
        value_fn=_surplus,
    ),
)


@callback
def async_setup_sensors(
    entry: GridLedgerConfigEntry,
    async_add_entities: AddConfigEntryEntitiesCallback,
) -> None:
    """Set up the home's, the appliances' and the rules' sensors."""
    keeper = entry.runtime_data.keeper
    async_add_entities(
        KeeperSensor(entry, keeper, description, Device.HOME)
        for description in KEEPER_SENSORS
        if description.key != "plan" or keeper.dispatcher.settings.battery is not None
    )

    def make(subentry: ConfigSubentry) -> list[Entity]:
        if subentry.subentry_type == APPLIANCE:
            return [
                StatusSensor(entry, subentry, STATUS),
                RunTimeSensor(entry, subentry, RUN_TIME),
            ]
        if subentry.subentry_type == TRADING_RULE:
            return [RuleSensor(entry, subentry, RULE_STATUS)]
        return []

    async_add_for(entry, async_add_entities, make)


class KeeperSensor(Sparing, GridLedgerEntity[HomeKeeper], SensorEntity):
    """A sensor of the whole home."""

    entity_description: KeeperSensorDescription
    _unrecorded_attributes = frozenset({"reason", "reason_values", "revision"})

    @property
    @override
    def native_value(self) -> float | str | None:
        """Return the value."""
        return self.entity_description.value_fn(self.coordinator.data)

    @property
    @override
    def extra_state_attributes(self) -> Mapping[str, Any] | None:
        """Return why."""
        attributes_fn = self.entity_description.attributes_fn
        return None if attributes_fn is None else attributes_fn(self.coordinator.data)

    @callback
    @override
    def _handle_coordinator_update(self) -> None:
        value = self.native_value
        if self.device_class == SensorDeviceClass.POWER:
            due = self._is_due(value is None, value or 0.0, news=NEWS_W)
        else:
            due = self._is_due(value, (self.extra_state_attributes or {}).get("reason_key"))
        if due:
            self.async_write_ha_state()


class StatusSensor(Sparing, SubentryEntity, SensorEntity):
    """What an appliance does, and why."""

    _unrecorded_attributes = frozenset({"reason", "reason_values"})

    @property
    @override
    def native_value(self) -> str | None:
        """Return the status."""
        return None if self.decision is None else status_of(self.decision)

    @property
    @override
    def extra_state_attributes(self) -> Mapping[str, Any] | None:
        """Return why, and until when an override holds."""
        if (decision := self.decision) is None:
            return None
        until: datetime | None = None
        if decision.override_until is not None:
            until = dt_util.utc_from_timestamp(decision.override_until)
        return {**reason_attributes(decision.reason), "override_until": until}

    @callback
    @override
    def _handle_coordinator_update(self) -> None:
        if (decision := self.decision) is None:
            due = self._is_due(None)
        else:
            key = decision.reason.key
            due = self._is_due((decision.on, _NAMED.get(key)), key)
        if due:
            self.async_write_ha_state()


class RunTimeSensor(SubentryEntity, SensorEntity):
    """How long an appliance has run since its day began."""

    @property
    @override
    def native_value(self) -> float | None:
        """Return minutes, in steps of five while it runs."""
        if self.decision is None:
            return None
        return self.decision.run_s // 300 * 5


class RuleSensor(SubentryEntity, SensorEntity):
    """What a trading rule does, and what it has earned or would have."""

    _unrecorded_attributes = frozenset({"sales"})

    @property
    @override
    def native_value(self) -> str:
        """Return the status."""
        return self.coordinator.rule_status(self.subentry_id)

    @property
    @override
    def extra_state_attributes(self) -> Mapping[str, Any]:
        """Return what it has traded today, its earnings, and how its last sales stand."""
        keeper = self.coordinator
        clock = keeper.sales.clock
        sales = keeper.sales.of_rule(self.subentry_id)[:_SALES_SHOWN]
        return {
            "traded_today": round(keeper.traded_wh(self.subentry_id) / 1000, 3),
            "earned": round(keeper.earned.get(self.subentry_id, 0.0), 2),
            "sales": [] if clock is None else [sale.as_response(clock) for sale in sales],
        }
