"""Entities of an appliance or a trading rule, which come and go while Home Assistant runs."""

from collections.abc import Callable
from typing import override

from homeassistant.config_entries import ConfigSubentry
from homeassistant.core import callback
from homeassistant.helpers.device_registry import DeviceEntryType, DeviceInfo
from homeassistant.helpers.entity import Entity, EntityDescription
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback
from homeassistant.helpers.update_coordinator import CoordinatorEntity

from .const import DOMAIN
from .coordinator import GridLedgerConfigEntry
from .engine.dispatcher import ApplianceDecision
from .keeper import HomeKeeper
from .subentries import TRADING_RULE


@callback
def async_add_for(
    entry: GridLedgerConfigEntry,
    async_add_entities: AddConfigEntryEntitiesCallback,
    make: Callable[[ConfigSubentry], list[Entity]],
) -> None:
    """Add what ``make`` makes of each subentry, now and when one is added later."""

    @callback
    def add(subentry: ConfigSubentry) -> None:
        if entities := make(subentry):
            async_add_entities(entities, config_subentry_id=subentry.subentry_id)

    entry.async_on_unload(entry.runtime_data.keeper.async_add_for(add))


class SubentryEntity(CoordinatorEntity[HomeKeeper]):
    """Base of the entities of one subentry."""

    _attr_has_entity_name = True

    def __init__(
        self,
        entry: GridLedgerConfigEntry,
        subentry: ConfigSubentry,
        description: EntityDescription,
    ) -> None:
        """Name the entity after its subentry's device."""
        super().__init__(entry.runtime_data.keeper)
        self.entity_description = description
        self.subentry_id = subentry.subentry_id
        base = str(entry.unique_id)
        self._attr_unique_id = f"{base}_{subentry.subentry_id}_{description.key}"
        self._attr_device_info = DeviceInfo(
            identifiers={(DOMAIN, f"{base}_{subentry.subentry_id}")},
            name=subentry.title,
            manufacturer="GridLedger",
            entry_type=(
                DeviceEntryType.SERVICE if subentry.subentry_type == TRADING_RULE else None
            ),
        )

    @property
    def decision(self) -> ApplianceDecision | None:
        """What was decided last for this appliance."""
        return self.coordinator.data.decision.appliances.get(self.subentry_id)

    @property
    @override
    def available(self) -> bool:
        """The keeper always has something to say; an appliance may have been deleted."""
        return self.subentry_id in self.coordinator.config_entry.subentries
