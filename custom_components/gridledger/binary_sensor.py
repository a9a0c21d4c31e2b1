"""Whether the ledger is there, the plant's sensors can be relied on, and a bill is overdue."""

from collections.abc import Mapping
from typing import Any, override

from homeassistant.components.binary_sensor import (
    BinarySensorDeviceClass,
    BinarySensorEntity,
    BinarySensorEntityDescription,
)
from homeassistant.const import EntityCategory
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback

from .coordinator import GridLedgerConfigEntry, HomeCoordinator
from .entity import Device, GridLedgerEntity
from .keeper import HomeKeeper
from .plant_form import plant_warnings
from .session import LedgerSession

PARALLEL_UPDATES = 0

CONNECTED = BinarySensorEntityDescription(
    key="ledger_connected",
    translation_key="ledger_connected",
    device_class=BinarySensorDeviceClass.CONNECTIVITY,
    entity_category=EntityCategory.DIAGNOSTIC,
)

FAULT = BinarySensorEntityDescription(
    key="plant_fault",
    translation_key="plant_fault",
    device_class=BinarySensorDeviceClass.PROBLEM,
)

OVERDUE = BinarySensorEntityDescription(
    key="bill_overdue",
    translation_key="bill_overdue",
    device_class=BinarySensorDeviceClass.PROBLEM,
    entity_registry_enabled_default=False,
)


SURPLUS = BinarySensorEntityDescription(
    key="surplus_available", translation_key="surplus_available"
)


async def async_setup_entry(
    hass: HomeAssistant,
    entry: GridLedgerConfigEntry,
    async_add_entities: AddConfigEntryEntitiesCallback,
) -> None:
    """Set up the binary sensors."""
    runtime = entry.runtime_data
    async_add_entities(
        [
            ConnectedSensor(entry, runtime.session, CONNECTED, Device.HOME),
            FaultSensor(entry, runtime.home, FAULT, Device.HOME),
            SurplusSensor(entry, runtime.keeper, SURPLUS, Device.HOME),
            OverdueSensor(entry, runtime.session, OVERDUE, Device.MARKET),
        ]
    )


class ConnectedSensor(GridLedgerEntity[LedgerSession], BinarySensorEntity):
    """On while the session follows the ledger."""

    @property
    @override
    def is_on(self) -> bool:
        """Return whether the ledger is connected."""
        return self.coordinator.data.connected


class FaultSensor(GridLedgerEntity[HomeCoordinator], BinarySensorEntity):
    """On while a sensor of the plant has no value, or one that can't be used."""

    _unrecorded_attributes = frozenset({"sensors"})

    @property
    @override
    def is_on(self) -> bool:
        """Return whether something is wrong, beyond coarse steps or silence."""
        return bool(self._faults())

    @property
    @override
    def extra_state_attributes(self) -> Mapping[str, Any]:
        """Name the sensors and what is wrong with each."""
        return {"sensors": self._faults()}

    def _faults(self) -> dict[str, str]:
        return {
            one.entity_id: one.kind
            for one in plant_warnings(self.hass, self.coordinator.plant)
            if one.kind not in ("coarse", "old")
        }


class OverdueSensor(GridLedgerEntity[LedgerSession], BinarySensorEntity):
    """On while something is due that isn't paid or disputed."""

    @property
    @override
    def is_on(self) -> bool | None:
        """Return whether something is due."""
        account = self.coordinator.data.account
        return None if account is None else account.due_micro > 0


class SurplusSensor(GridLedgerEntity[HomeKeeper], BinarySensorEntity):
    """On while the sun leaves more than what is on takes, averaged, with hysteresis."""

    _shown: bool | None = None

    @property
    @override
    def is_on(self) -> bool | None:
        """Return whether there is surplus, None while the grid's power isn't known."""
        return self.coordinator.data.surplus

    @callback
    @override
    def _handle_coordinator_update(self) -> None:
        if self.is_on is not self._shown:
            self._shown = self.is_on
            self.async_write_ha_state()
