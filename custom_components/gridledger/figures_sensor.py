"""Sensors for who wants them: the market, the chain, the month, shares, a forecast."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, override

from homeassistant.components.sensor import (
    SensorDeviceClass,
    SensorEntity,
    SensorEntityDescription,
    SensorStateClass,
)
from homeassistant.const import PERCENTAGE, EntityCategory, UnitOfEnergy
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback
from homeassistant.util import dt as dt_util

from .coordinator import GridLedgerConfigEntry
from .entity import Device, GridLedgerEntity
from .figures import Figures


@dataclass(frozen=True, kw_only=True)
class FigureDescription(SensorEntityDescription):
    """A figure; its key is the figure's and its translation's."""

    question: str
    """Which of :data:`.figures.QUESTIONS` answers it."""
    device: Device = Device.MARKET
    currency_unit: str | None = None
    since: str | None = None
    """What it counts from: the ``day``'s or the ``month``'s begin."""


def _figure(key: str, question: str, **more: object) -> FigureDescription:
    return FigureDescription(
        key=key,
        translation_key=key,
        question=question,
        entity_registry_enabled_default=False,
        **more,  # type: ignore[arg-type]
    )


def _money(key: str, question: str, since: str | None = None) -> FigureDescription:
    return _figure(
        key,
        question,
        since=since,
        device_class=SensorDeviceClass.MONETARY,
        state_class=SensorStateClass.TOTAL if key != "bill_forecast" else None,
        currency_unit="{currency}",
        suggested_display_precision=2,
    )


def _energy(key: str, question: str, since: str) -> FigureDescription:
    return _figure(
        key,
        question,
        since=since,
        device_class=SensorDeviceClass.ENERGY,
        state_class=SensorStateClass.TOTAL,
        native_unit_of_measurement=UnitOfEnergy.KILO_WATT_HOUR,
        suggested_display_precision=2,
    )


def _amount(key: str, question: str, unit: str | None, precision: int = 2) -> FigureDescription:
    return _figure(
        key,
        question,
        state_class=SensorStateClass.MEASUREMENT,
        native_unit_of_measurement=unit,
        suggested_display_precision=precision,
    )


def _share(key: str) -> FigureDescription:
    return _figure(
        key,
        "shares",
        device=Device.HOME,
        state_class=SensorStateClass.MEASUREMENT,
        native_unit_of_measurement=PERCENTAGE,
        suggested_display_precision=0,
    )


FIGURES: Final[tuple[FigureDescription, ...]] = (
    _amount("book_offers", "book", UnitOfEnergy.KILO_WATT_HOUR),
    _amount("book_bids", "book", UnitOfEnergy.KILO_WATT_HOUR),
    _figure(
        "clearing_price",
        "price",
        state_class=SensorStateClass.MEASUREMENT,
        currency_unit="{currency}/kWh",
        suggested_display_precision=4,
    ),
    _figure(
        "ledger_height",
        "chain",
        device=Device.HOME,
        state_class=SensorStateClass.MEASUREMENT,
        entity_category=EntityCategory.DIAGNOSTIC,
        suggested_display_precision=0,
    ),
    _money("held", "wallet"),
    _amount("tokens", "tokens", UnitOfEnergy.KILO_WATT_HOUR),
    _amount("certificates", "certificates", None, 0),
    _money("bill_forecast", "bill"),
    _energy("energy_sold_month", "traded", "month"),
    _money("revenue_month", "traded", "month"),
    _energy("bought_today", "traded", "day"),
    _energy("bought_month", "traded", "month"),
    _money("cost_today", "traded", "day"),
    _money("cost_month", "traded", "month"),
    _share("share_own"),
    _share("share_neighbours"),
    _share("share_utility"),
)


def async_setup_figures(
    figures: Figures,
    entry: GridLedgerConfigEntry,
    async_add_entities: AddConfigEntryEntitiesCallback,
) -> None:
    """Set up the sensors of all figures."""
    async_add_entities(
        FigureSensor(entry, figures, description, description.device) for description in FIGURES
    )


class FigureSensor(GridLedgerEntity[Figures], SensorEntity):
    """A figure that is asked for as long as this sensor is there."""

    entity_description: FigureDescription

    def __init__(
        self,
        entry: GridLedgerConfigEntry,
        coordinator: Figures,
        description: FigureDescription,
        device: Device,
    ) -> None:
        """Name its question as what the coordinator is asked."""
        super().__init__(entry, coordinator, description, device)
        self.coordinator_context = description.question

    @override
    async def async_added_to_hass(self) -> None:
        """Ask at once."""
        await super().async_added_to_hass()
        await self.coordinator.async_request_refresh()

    @property
    @override
    def available(self) -> bool:
        """Unavailable while the ledger is away."""
        return self.coordinator.session.data.connected

    @property
    @override
    def native_value(self) -> float | None:
        """Return the figure; None before it is known."""
        return self.coordinator.data.get(self.entity_description.key)

    @property
    @override
    def native_unit_of_measurement(self) -> str | None:
        """Return the unit; money has the channel's currency."""
        if (unit := self.entity_description.currency_unit) is not None:
            return unit.format(currency=self.coordinator.session.data.currency)
        return self.entity_description.native_unit_of_measurement

    @property
    @override
    def last_reset(self) -> datetime | None:
        """Return when the day or the month began for what is counted since."""
        if self.entity_description.since is None:
            return None
        midnight = dt_util.start_of_local_day()
        return midnight if self.entity_description.since == "day" else midnight.replace(day=1)
