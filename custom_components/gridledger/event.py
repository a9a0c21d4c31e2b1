"""An event for each sale of this home as it is committed."""

from typing import override

from homeassistant.components.event import EventEntity, EventEntityDescription
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback

from .const import EVENT_TRADE_COMMITTED
from .coordinator import GridLedgerConfigEntry
from .entity import Device, GridLedgerEntity
from .models import Trade
from .session import LedgerSession

PARALLEL_UPDATES = 0

TRADE = EventEntityDescription(
    key="trade", translation_key="trade", event_types=[EVENT_TRADE_COMMITTED]
)


async def async_setup_entry(
    hass: HomeAssistant,
    entry: GridLedgerConfigEntry,
    async_add_entities: AddConfigEntryEntitiesCallback,
) -> None:
    """Set up the one event entity."""
    async_add_entities([TradeEvent(entry, entry.runtime_data.session, TRADE, Device.MARKET)])


class TradeEvent(GridLedgerEntity[LedgerSession], EventEntity):
    """Fires when a sale of this home is in the ledger."""

    @override
    async def async_added_to_hass(self) -> None:
        """Listen to the session."""
        await super().async_added_to_hass()
        self.async_on_remove(self.coordinator.async_on_trade(self._committed))

    @callback
    def _committed(self, trade: Trade) -> None:
        clock = self.coordinator.clock
        if clock is None:
            return
        self._trigger_event(
            EVENT_TRADE_COMMITTED, trade.as_response(clock, self.coordinator.data.currency)
        )
        self.async_write_ha_state()

    @callback
    @override
    def _handle_coordinator_update(self) -> None:
        """An event has no state beyond itself: nothing to write."""
