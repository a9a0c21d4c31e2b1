"""What all entities share: which device they belong to, and their names."""

from collections.abc import Collection
from enum import StrEnum
from typing import Any, override

from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers import device_registry as dr
from homeassistant.helpers.device_registry import DeviceEntryType, DeviceInfo
from homeassistant.helpers.entity import EntityDescription
from homeassistant.helpers.update_coordinator import CoordinatorEntity, DataUpdateCoordinator

from .const import CONF_CHANNEL, CONF_CONNECTION, DOMAIN
from .coordinator import GridLedgerConfigEntry


@callback
def async_link_devices(hass: HomeAssistant, entry: GridLedgerConfigEntry) -> None:
    """Hang the home's other devices below the home."""
    registry = dr.async_get(hass)
    base = str(entry.unique_id)
    devices = dr.async_entries_for_config_entry(registry, entry.entry_id)
    home = next((d for d in devices if (DOMAIN, base) in d.identifiers), None)
    for device in devices:
        if home is not None and device.id != home.id and device.via_device_id != home.id:
            registry.async_update_device(device.id, via_device_id=home.id)


class Device(StrEnum):
    """The devices of one home."""

    HOME = "home"
    PV = "pv"
    BATTERY = "battery"
    MARKET = "market"


@callback
def async_drop_devices(
    hass: HomeAssistant, entry: GridLedgerConfigEntry, kept: Collection[Device]
) -> None:
    """Take the home's devices out that its plant has no sensors for any more."""
    registry = dr.async_get(hass)
    base = str(entry.unique_id)
    stale = {
        (DOMAIN, f"{base}_{device}") for device in (Device.PV, Device.BATTERY) if device not in kept
    }
    for device in dr.async_entries_for_config_entry(registry, entry.entry_id):
        if device.identifiers & stale:
            registry.async_update_device(device.id, remove_config_entry_id=entry.entry_id)


class GridLedgerEntity[C: DataUpdateCoordinator[Any]](CoordinatorEntity[C]):
    """Base of all entities."""

    _attr_has_entity_name = True

    def __init__(
        self,
        entry: GridLedgerConfigEntry,
        coordinator: C,
        description: EntityDescription,
        device: Device,
    ) -> None:
        """Name the entity after its entry and description."""
        super().__init__(coordinator)
        self.entity_description = description
        base = str(entry.unique_id)
        self._attr_unique_id = f"{base}_{description.key}"
        if device is Device.HOME:
            self._attr_device_info = DeviceInfo(
                identifiers={(DOMAIN, base)},
                name=entry.title,
                manufacturer="GridLedger",
                model=f"Home {entry.data[CONF_CONNECTION]}",
            )
        else:
            self._attr_device_info = DeviceInfo(
                identifiers={(DOMAIN, f"{base}_{device}")},
                manufacturer="GridLedger",
                model=f"Channel {entry.data[CONF_CHANNEL]}" if device is Device.MARKET else None,
                translation_key=device,
                translation_placeholders={"home": entry.title},
                entry_type=DeviceEntryType.SERVICE if device is Device.MARKET else None,
            )

    @property
    @override
    def available(self) -> bool:
        """Coordinators here never fail as a whole; entities decide by their value."""
        return True
