"""Whether the ledger can be reached."""

from typing import override

from homeassistant.components.binary_sensor import (
    BinarySensorDeviceClass,
    BinarySensorEntity,
    BinarySensorEntityDescription,
)
from homeassistant.const import EntityCategory
from homeassistant.core import HomeAssistant
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback

from .coordinator import GridLedgerConfigEntry
from .entity import Device, GridLedgerEntity
from .session import LedgerSession

PARALLEL_UPDATES = 0

CONNECTED = BinarySensorEntityDescription(
    key="ledger_connected",
    translation_key="ledger_connected",
    device_class=BinarySensorDeviceClass.CONNECTIVITY,
    entity_category=EntityCategory.DIAGNOSTIC,
)


async def async_setup_entry(
    hass: HomeAssistant,
    entry: GridLedgerConfigEntry,
    async_add_entities: AddConfigEntryEntitiesCallback,
) -> None:
    """Set up the one binary sensor."""
    async_add_entities([ConnectedSensor(entry, entry.runtime_data.session, CONNECTED, Device.HOME)])


class ConnectedSensor(GridLedgerEntity[LedgerSession], BinarySensorEntity):
    """On while the session follows the ledger."""

    @property
    @override
    def is_on(self) -> bool:
        """Return whether the ledger is connected."""
        return self.coordinator.data.connected
