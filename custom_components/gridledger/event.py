"""Events: sales, orders, bills, the permit, response events, and faults of the plant."""

from collections.abc import Mapping
from typing import Any, override

from homeassistant.components.event import EventEntity, EventEntityDescription
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers.dispatcher import async_dispatcher_connect
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback

from .const import (
    EVENT_TRADE_COMMITTED,
    EVENTS_BILL,
    EVENTS_FAULT,
    EVENTS_ORDER,
    EVENTS_RESPONSE,
    ORDER_EVENTS,
    PERMIT_STATES,
    SIGNAL_BILL,
    SIGNAL_PERMIT,
    SIGNAL_RESPONSE,
)
from .coordinator import GridLedgerConfigEntry, HomeCoordinator
from .entity import Device, GridLedgerEntity
from .models import Trade, order_as_response
from .plant_form import plant_warnings
from .session import LedgerSession

PARALLEL_UPDATES = 0

TRADE = EventEntityDescription(
    key="trade", translation_key="trade", event_types=[EVENT_TRADE_COMMITTED]
)

BILL = EventEntityDescription(
    key="bill",
    translation_key="bill",
    event_types=list(EVENTS_BILL),
    entity_registry_enabled_default=False,
)
PERMIT = EventEntityDescription(
    key="permit",
    translation_key="permit",
    event_types=list(PERMIT_STATES),
    entity_registry_enabled_default=False,
)
RESPONSE = EventEntityDescription(
    key="response",
    translation_key="response",
    event_types=list(EVENTS_RESPONSE),
    entity_registry_enabled_default=False,
)
FAULT = EventEntityDescription(
    key="fault",
    translation_key="fault",
    event_types=list(EVENTS_FAULT),
    entity_registry_enabled_default=False,
)

ORDER = EventEntityDescription(
    key="order",
    translation_key="order",
    event_types=list(EVENTS_ORDER),
    entity_registry_enabled_default=False,
)


async def async_setup_entry(
    hass: HomeAssistant,
    entry: GridLedgerConfigEntry,
    async_add_entities: AddConfigEntryEntitiesCallback,
) -> None:
    """Set up the event entities."""
    session = entry.runtime_data.session
    async_add_entities(
        [
            TradeEvent(entry, session, TRADE, Device.MARKET),
            OrderEvent(entry, session, ORDER, Device.MARKET),
            SignalEvent(entry, session, BILL, Device.MARKET, SIGNAL_BILL),
            SignalEvent(entry, session, PERMIT, Device.MARKET, SIGNAL_PERMIT),
            SignalEvent(entry, session, RESPONSE, Device.MARKET, SIGNAL_RESPONSE),
            FaultEvent(entry, entry.runtime_data.home, FAULT, Device.HOME),
        ]
    )


class TradeEvent(GridLedgerEntity[LedgerSession], EventEntity):
    """Fires when a sale of this home is in the ledger."""

    @override
    async def async_added_to_hass(self) -> None:
        """Listen to the session."""
        await super().async_added_to_hass()
        self.async_on_remove(self.coordinator.async_on_trade(self._committed))

    @callback
    def _committed(self, trade: Trade) -> None:
        session = self.coordinator
        shown = trade.as_response(session.known_clock(), session.data.currency)
        self._trigger_event(EVENT_TRADE_COMMITTED, shown)
        self.async_write_ha_state()

    @callback
    @override
    def _handle_coordinator_update(self) -> None:
        """An event has no state beyond itself: nothing to write."""


class OrderEvent(GridLedgerEntity[LedgerSession], EventEntity):
    """Fires when an order of this home is placed, cleared or cancelled."""

    @override
    async def async_added_to_hass(self) -> None:
        """Listen to the session."""
        await super().async_added_to_hass()
        self.async_on_remove(self.coordinator.async_on_order(self._changed))

    @callback
    def _changed(self, order: Mapping[str, Any]) -> None:
        session = self.coordinator
        shown = order_as_response(order, session.known_clock(), session.data.currency)
        self._trigger_event(ORDER_EVENTS.get(shown["state"], "changed"), shown)
        self.async_write_ha_state()

    @callback
    @override
    def _handle_coordinator_update(self) -> None:
        """An event has no state beyond itself: nothing to write."""


class SignalEvent(GridLedgerEntity[LedgerSession], EventEntity):
    """Fires when the session tells a change of this home's account."""

    def __init__(
        self,
        entry: GridLedgerConfigEntry,
        session: LedgerSession,
        description: EventEntityDescription,
        device: Device,
        signal: str,
    ) -> None:
        """Remember which signal."""
        super().__init__(entry, session, description, device)
        self._signal = signal
        self._entry_id = entry.entry_id

    @override
    async def async_added_to_hass(self) -> None:
        """Listen to the signal."""
        await super().async_added_to_hass()
        self.async_on_remove(async_dispatcher_connect(self.hass, self._signal, self._told))

    @callback
    def _told(self, entry_id: str, data: dict[str, Any]) -> None:
        if entry_id == self._entry_id:
            shown = {key: value for key, value in data.items() if key != "change"}
            self._trigger_event(data["change"], shown)
            self.async_write_ha_state()

    @callback
    @override
    def _handle_coordinator_update(self) -> None:
        """An event has no state beyond itself: nothing to write."""


class FaultEvent(GridLedgerEntity[HomeCoordinator], EventEntity):
    """Fires when a sensor of the plant fails, and when it is back."""

    _known: dict[str, str] | None = None

    @callback
    @override
    def _handle_coordinator_update(self) -> None:
        """Compare with what was wrong before. What is wrong at the start is told too."""
        faults = {
            one.entity_id: one.kind
            for one in plant_warnings(self.hass, self.coordinator.plant)
            if one.kind not in ("coarse", "old")
        }
        known, self._known = self._known or {}, faults
        for kind, these in (
            ("appeared", {k: v for k, v in faults.items() if k not in known}),
            ("cleared", {k: v for k, v in known.items() if k not in faults}),
        ):
            for sensor, fault in these.items():
                self._trigger_event(kind, {"sensor": sensor, "fault": fault})
                self.async_write_ha_state()
