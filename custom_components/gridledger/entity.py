"""What all entities share: which device they belong to, and their names."""

from enum import StrEnum
from typing import override

from homeassistant.helpers.device_registry import DeviceEntryType, DeviceInfo
from homeassistant.helpers.entity import EntityDescription
from homeassistant.helpers.update_coordinator import CoordinatorEntity, DataUpdateCoordinator

from .const import CONF_CHANNEL, CONF_CONNECTION, DOMAIN
from .coordinator import GridLedgerConfigEntry


class Device(StrEnum):
    """The devices of one home."""

    HOME = "home"
    PV = "pv"
    BATTERY = "battery"
    MARKET = "market"


class GridLedgerEntity[C: DataUpdateCoordinator](CoordinatorEntity[C]):
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
                via_device=(DOMAIN, base),
            )

    @property
    @override
    def available(self) -> bool:
        """Coordinators here never fail as a whole; entities decide by their value."""
        return True
