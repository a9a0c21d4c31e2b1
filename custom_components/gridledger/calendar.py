"""A calendar of what is to come: deliveries, response events, planned runs, bands of the tariff."""

from datetime import datetime
from typing import Any, Final, override

from homeassistant.components.calendar import (
    CalendarEntity,
    CalendarEntityDescription,
    CalendarEvent,
)
from homeassistant.core import HomeAssistant
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback
from homeassistant.helpers.translation import async_get_translations
from homeassistant.util import dt as dt_util

from .archive import async_trades
from .client import GridLedgerError
from .const import CHAINCODE_ENERGY, DOMAIN, LOGGER
from .coordinator import GridLedgerConfigEntry
from .entity import Device, GridLedgerEntity
from .models import Trade, understood
from .session import LedgerSession
from .tariff_bands import async_bands

PARALLEL_UPDATES = 0

_EVENTS: Final = 200
DELIVERIES = CalendarEntityDescription(key="calendar", translation_key="calendar")


async def async_setup_entry(
    hass: HomeAssistant,
    entry: GridLedgerConfigEntry,
    async_add_entities: AddConfigEntryEntitiesCallback,
) -> None:
    """Set up the home's calendar."""
    async_add_entities([HomeCalendar(entry, entry.runtime_data.session, DELIVERIES, Device.MARKET)])


class HomeCalendar(GridLedgerEntity[LedgerSession], CalendarEntity):
    """On while the home delivers what it has sold."""

    _texts: dict[str, str]

    @override
    async def async_added_to_hass(self) -> None:
        """Load the texts that events are named with."""
        self._texts = await async_get_translations(
            self.hass, self.hass.config.language, "common", {DOMAIN}
        )
        await super().async_added_to_hass()

    @property
    @override
    def event(self) -> CalendarEvent | None:
        """Return the running delivery, or the next one."""
        now = dt_util.utcnow()
        ahead = map(self._delivery, self.coordinator.data.trades.values())
        return min(
            (event for event in ahead if event.end > now),
            key=lambda event: event.start,
            default=None,
        )

    @override
    async def async_get_events(
        self, hass: HomeAssistant, start_date: datetime, end_date: datetime
    ) -> list[CalendarEvent]:
        """Return what a span holds; what is known while the ledger is away."""
        session = self.coordinator
        trades = list(session.data.trades.values())
        found: list[CalendarEvent] = []
        clock = session.clock
        if clock is not None and session.data.connected:
            first, last = (int(clock.channel(at.timestamp())) for at in (start_date, end_date))
            try:
                trades = await async_trades(session, first - 86400, last)
                found.extend(await self._responses(first - 86400))
                found.extend(await self._bands(first, last))
            except GridLedgerError as error:
                LOGGER.debug("The calendar shows what is known: %s", error)
        found.extend(map(self._delivery, trades))
        found.extend(self._planned_runs())
        return sorted(
            (event for event in found if event.end > start_date and event.start < end_date),
            key=lambda event: event.start,
        )

    def _delivery(self, trade: Trade) -> CalendarEvent:
        clock = self.coordinator.known_clock()
        return CalendarEvent(
            start=clock.real_datetime(trade.window_start),
            end=clock.real_datetime(trade.window_end(clock.interval_s)),
            summary=self._text(
                "calendar_delivery",
                energy=f"{trade.energy_wh / 1000:.2f}",
                supplier=trade.supplier.removesuffix("MSP"),
            ),
            uid=trade.trade_id,
        )

    def _planned_runs(self) -> list[CalendarEvent]:
        """Return when appliances are planned to run, slots in a row as one event."""
        keeper = self.coordinator.config_entry.runtime_data.keeper
        names = {a.id: a.name for a in keeper.dispatcher.settings.appliances}
        plan = keeper.data.plan
        if plan is None:
            return []
        lengths = {slot.start: slot.seconds for slot in plan.slots}
        found: list[CalendarEvent] = []

        def close(appliance_id: str, start: float, end: float, energy_wh: float) -> None:
            found.append(
                CalendarEvent(
                    start=dt_util.utc_from_timestamp(start),
                    end=dt_util.utc_from_timestamp(end),
                    summary=self._text(
                        "calendar_run",
                        appliance=names[appliance_id],
                        energy=f"{energy_wh / 1000:.2f}",
                    ),
                    uid=f"{appliance_id}-{start:.0f}",
                )
            )

        for appliance_id in names:
            start, end, energy = 0.0, 0.0, 0.0
            for at, energy_wh in sorted(plan.runs.get(appliance_id, {}).items()):
                if energy and at != end:
                    close(appliance_id, start, end, energy)
                    energy = 0.0
                if not energy:
                    start = at
                end, energy = at + lengths[at], energy + energy_wh
            if energy:
                close(appliance_id, start, end, energy)
        return found

    async def _responses(self, since: int) -> list[CalendarEvent]:
        """Return the events by which the zone's grid operators ask for less or more use."""
        clock = self.coordinator.known_clock()
        page: Any = await self.coordinator.client.evaluate(
            CHAINCODE_ENERGY, "response:Events", {"from": max(0, since), "limit": _EVENTS}
        )
        with understood("an event"):
            return [
                CalendarEvent(
                    start=clock.real_datetime(int(event["window_start"])),
                    end=clock.real_datetime(int(event["window_end"])),
                    summary=self._text(
                        "calendar_response",
                        kind=self._text(f"response_{event['kind']}"),
                        reward=f"{int(event['reward_micro_per_kwh']) / 1e6:.3f}",
                        currency=self.coordinator.data.currency,
                    ),
                    uid=str(event["event_id"]),
                )
                for event in (stated.get("event", stated) for stated in page["events"])
                if event["zone"] == self.coordinator.zone and not event.get("cancelled")
            ]

    async def _bands(self, start: int, end: int) -> list[CalendarEvent]:
        """Return which band of the tariff holds when."""
        clock = self.coordinator.known_clock()
        return [
            CalendarEvent(
                start=clock.real_datetime(since),
                end=clock.real_datetime(until),
                summary=self._text(
                    "calendar_band",
                    band=band.name,
                    price=f"{band.price_micro_per_kwh / 1e6:.4f}",
                    currency=self.coordinator.data.currency,
                ),
                uid=f"band-{since}",
            )
            for since, until, band in await async_bands(self.coordinator, start, end)
        ]

    def _text(self, key: str, **values: str) -> str:
        return self._texts.get(f"component.{DOMAIN}.common.{key}", key).format(**values)
