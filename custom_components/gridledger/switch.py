"""Switches: whether an appliance is automatic, and whether a trading rule is on."""

from typing import Any, override

from homeassistant.components.switch import SwitchEntity, SwitchEntityDescription
from homeassistant.config_entries import ConfigSubentry
from homeassistant.core import HomeAssistant
from homeassistant.helpers.entity import Entity
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback

from .actions import async_check_trader
from .coordinator import GridLedgerConfigEntry
from .subentries import APPLIANCE, TRADING_RULE
from .subentry_entity import SubentryEntity, async_add_for

PARALLEL_UPDATES = 0

AUTOMATIC = SwitchEntityDescription(key="automatic", translation_key="automatic")
RULE = SwitchEntityDescription(key="enabled", translation_key="rule_enabled")


async def async_setup_entry(
    hass: HomeAssistant,
    entry: GridLedgerConfigEntry,
    async_add_entities: AddConfigEntryEntitiesCallback,
) -> None:
    """Set up the switches of appliances and rules."""

    def make(subentry: ConfigSubentry) -> list[Entity]:
        if subentry.subentry_type == APPLIANCE:
            return [AutomaticSwitch(entry, subentry, AUTOMATIC)]
        if subentry.subentry_type == TRADING_RULE:
            return [RuleSwitch(entry, subentry, RULE)]
        return []

    async_add_for(entry, async_add_entities, make)


class AutomaticSwitch(SubentryEntity, SwitchEntity):
    """Off: GridLedger never touches the appliance."""

    @property
    @override
    def is_on(self) -> bool | None:
        """Return whether the appliance is switched by GridLedger."""
        return None if self.decision is None else self.decision.automatic

    @override
    async def async_turn_on(self, **kwargs: Any) -> None:
        """Let GridLedger switch the appliance."""
        self.coordinator.async_set_automatic(self.subentry_id, True)

    @override
    async def async_turn_off(self, **kwargs: Any) -> None:
        """Leave the appliance alone."""
        self.coordinator.async_set_automatic(self.subentry_id, False)


class RuleSwitch(SubentryEntity, SwitchEntity):
    """Off until the owner turns it on. Who may sell may turn it on; anybody may turn it off."""

    @property
    @override
    def is_on(self) -> bool:
        """Return whether the rule counts."""
        return self.coordinator.rule_enabled(self.subentry_id)

    @override
    async def async_turn_on(self, **kwargs: Any) -> None:
        """Let GridLedger trade under this rule.

        Raises:
            ServiceValidationError: only administrators may, and this is none.
        """
        await async_check_trader(self.hass, self.coordinator.config_entry, self._context)
        self.coordinator.async_enable_rule(self.subentry_id, True)
        self.async_write_ha_state()

    @override
    async def async_turn_off(self, **kwargs: Any) -> None:
        """Stop trading under this rule."""
        self.coordinator.async_enable_rule(self.subentry_id, False)
        self.async_write_ha_state()
