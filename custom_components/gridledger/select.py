"""The override of an appliance: on or off for an hour, then automatic again."""

from typing import Final, override

from homeassistant.components.select import SelectEntity, SelectEntityDescription
from homeassistant.config_entries import ConfigSubentry
from homeassistant.core import HomeAssistant
from homeassistant.helpers.entity import Entity
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback

from .coordinator import GridLedgerConfigEntry
from .subentries import APPLIANCE
from .subentry_entity import SubentryEntity, async_add_for

PARALLEL_UPDATES = 0

OVERRIDE_S: Final = 3600
_NONE: Final = "none"
_CHOICES: Final = {_NONE: None, "on": True, "off": False}

OVERRIDE = SelectEntityDescription(
    key="override", translation_key="override", options=list(_CHOICES)
)


async def async_setup_entry(
    hass: HomeAssistant,
    entry: GridLedgerConfigEntry,
    async_add_entities: AddConfigEntryEntitiesCallback,
) -> None:
    """Set up a select for each appliance."""

    def make(subentry: ConfigSubentry) -> list[Entity]:
        if subentry.subentry_type == APPLIANCE:
            return [OverrideSelect(entry, subentry, OVERRIDE)]
        return []

    async_add_for(entry, async_add_entities, make)


class OverrideSelect(SubentryEntity, SelectEntity):
    """Shows ``none`` again once an override has expired."""

    @property
    @override
    def current_option(self) -> str:
        """Return the override that holds."""
        if self.decision is None or self.decision.override is None:
            return _NONE
        return "on" if self.decision.override else "off"

    @override
    async def async_select_option(self, option: str) -> None:
        """Override for an hour, or end an override."""
        self.coordinator.async_override(self.subentry_id, _CHOICES[option], OVERRIDE_S)
