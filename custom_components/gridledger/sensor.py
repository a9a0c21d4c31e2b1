"""Sensors: what the home measures, and what its ledger says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from typing import Any, override

from homeassistant.components.sensor import (
    SensorDeviceClass,
    SensorEntity,
    SensorEntityDescription,
    SensorStateClass,
)
from homeassistant.const import (
    PERCENTAGE,
    EntityCategory,
    UnitOfEnergy,
    UnitOfMass,
    UnitOfPower,
    UnitOfTime,
)
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback
from homeassistant.helpers.event import async_track_time_interval
from homeassistant.util import dt as dt_util

from .accounts import permit_as_response
from .const import (
    CONF_BATTERY_CAPACITY,
    CONF_BATTERY_LEVEL,
    CONF_BATTERY_POWER,
    CONF_GRID_EXPORT,
    CONF_GRID_IMPORT,
    CONF_GRID_POWER,
    CONF_PV_ENERGY,
    CONF_PV_POWER,
    PERMIT_STATES,
)
from .coordinator import GridLedgerConfigEntry, HomeCoordinator
from .entity import NEWS_W, Device, GridLedgerEntity, Sparing, async_drop_devices
from .figures import Figures
from .figures_sensor import async_setup_figures
from .keeper_sensor import async_setup_sensors
from .models import HomeData, LedgerData
from .session import LedgerSession

PARALLEL_UPDATES = 0


@dataclass(frozen=True, kw_only=True)
class HomeSensorDescription(SensorEntityDescription):
    """A sensor over the home's own measurements, made if the plant has what it needs."""

    device: Device = Device.HOME
    needs: tuple[str, ...] = ()
    """Any of these."""
    needs_too: tuple[str, ...] = ()
    """All of these."""
    news: float = inf
    """A change by so much is news (see :class:`Sparing`)."""
    mirrors: str | None = None
    """The form's field that it repeats where that is one sensor: then disabled by default."""
    value_fn: Callable[[HomeData], float | None]


def _power(
    key: str, needs: str, device: Device, value_fn: Callable[[HomeData], float | None]
) -> HomeSensorDescription:
    return HomeSensorDescription(
        key=key,
        translation_key=key,
        device=device,
        needs=(needs,),
        mirrors=None if key == "consumption_power" else key,
        device_class=SensorDeviceClass.POWER,
        native_unit_of_measurement=UnitOfPower.WATT,
        state_class=SensorStateClass.MEASUREMENT,
        suggested_display_precision=0,
        news=NEWS_W,
        value_fn=value_fn,
    )


def _energy(
    key: str, needs: tuple[str, ...], device: Device, value_fn: Callable[[HomeData], float | None]
) -> HomeSensorDescription:
    return HomeSensorDescription(
        key=key,
        translation_key=key,
        device=device,
        needs=needs,
        mirrors=None if key == "consumption_energy" else key,
        device_class=SensorDeviceClass.ENERGY,
        native_unit_of_measurement=UnitOfEnergy.KILO_WATT_HOUR,
        state_class=SensorStateClass.TOTAL_INCREASING,
        suggested_display_precision=2,
        value_fn=value_fn,
    )


_ANY_GRID = (CONF_GRID_IMPORT, CONF_GRID_EXPORT, CONF_GRID_POWER)

HOME_SENSORS: tuple[HomeSensorDescription, ...] = (
    _power("pv_power", CONF_PV_POWER, Device.PV, lambda home: home.pv_power),
    _energy("pv_energy", (CONF_PV_ENERGY,), Device.PV, lambda home: home.pv_energy),
    HomeSensorDescription(
        key="battery_level",
        translation_key="battery_level",
        device=Device.BATTERY,
        needs=(CONF_BATTERY_LEVEL,),
        mirrors=CONF_BATTERY_LEVEL,
        device_class=SensorDeviceClass.BATTERY,
        native_unit_of_measurement=PERCENTAGE,
        state_class=SensorStateClass.MEASUREMENT,
        suggested_display_precision=0,
        value_fn=lambda home: home.battery_level,
    ),
    HomeSensorDescription(
        key="stored_energy",
        translation_key="stored_energy",
        device=Device.BATTERY,
        needs=(CONF_BATTERY_LEVEL,),
        needs_too=(CONF_BATTERY_CAPACITY,),
        device_class=SensorDeviceClass.ENERGY_STORAGE,
        native_unit_of_measurement=UnitOfEnergy.KILO_WATT_HOUR,
        state_class=SensorStateClass.MEASUREMENT,
        suggested_display_precision=2,
        value_fn=lambda home: home.stored_energy,
    ),
    HomeSensorDescription(
        key="co2_avoided",
        translation_key="co2_avoided",
        device=Device.PV,
        needs=(CONF_PV_ENERGY,),
        device_class=SensorDeviceClass.WEIGHT,
        native_unit_of_measurement=UnitOfMass.KILOGRAMS,
        state_class=SensorStateClass.TOTAL_INCREASING,
        suggested_display_precision=0,
        entity_registry_enabled_default=False,
        value_fn=lambda home: home.co2_avoided_kg,
    ),
    _power("battery_power", CONF_BATTERY_POWER, Device.BATTERY, lambda home: home.battery_power),
    _power("consumption_power", CONF_GRID_POWER, Device.HOME, lambda home: home.consumption_power),
    _energy("consumption_energy", _ANY_GRID, Device.HOME, lambda home: home.consumption_energy),
    _power("grid_power", CONF_GRID_POWER, Device.HOME, lambda home: home.grid_power),
    _energy("grid_import_energy", _ANY_GRID, Device.HOME, lambda home: home.grid_import_energy),
    _energy("grid_export_energy", _ANY_GRID, Device.HOME, lambda home: home.grid_export_energy),
)


@dataclass(frozen=True, slots=True)
class Today:
    """The local day, as the channel counts time."""

    start: float
    end: float
    now: float
    midnight: datetime


def _today(session: LedgerSession) -> Today | None:
    if session.clock is None:
        return None
    midnight = dt_util.start_of_local_day()
    tomorrow = dt_util.start_of_local_day(midnight.date() + timedelta(days=1))
    channel = session.clock.channel
    now = dt_util.utcnow().timestamp()
    return Today(
        channel(midnight.timestamp()), channel(tomorrow.timestamp()), channel(now), midnight
    )


@dataclass(frozen=True, kw_only=True)
class LedgerSensorDescription(SensorEntityDescription):
    """A sensor over what the ledger says. ``live`` ones mean nothing while it is away."""

    device: Device = Device.MARKET
    live: bool = True
    currency_unit: str | None = None
    daily: bool = False
    value_fn: Callable[[LedgerSession, LedgerData, Today | None], float | str | datetime | None]
    attributes_fn: Callable[[LedgerSession, LedgerData], Mapping[str, Any]] | None = None


def _sold_today(session: LedgerSession, data: LedgerData, today: Today | None) -> float | None:
    if today is None or not data.market_known:
        return None
    return sum(trade.energy_wh for trade in data.trades_from(today.start, today.end)) / 1000


def _revenue_today(session: LedgerSession, data: LedgerData, today: Today | None) -> float | None:
    if today is None or not data.market_known:
        return None
    return sum(trade.net_micro for trade in data.trades_from(today.start, today.end)) / 1e6


def _delivery_power(session: LedgerSession, data: LedgerData, today: Today | None) -> float | None:
    """The mean power that trades promise for the running interval."""
    if today is None or session.clock is None or not data.market_known:
        return None
    current = session.clock.interval_at(today.now)
    return round(data.committed_wh(current) * 3600 / session.clock.interval_s)


def _permit_attributes(session: LedgerSession, data: LedgerData) -> Mapping[str, Any]:
    if data.account is None or data.account.permit is None or session.clock is None:
        return {}
    shown = permit_as_response(data.account.permit, session.clock, data.currency)
    return {key: shown[key] for key in ("reason", "next_step", "next_at", "limit_w", "due")}


def _prepaid_attributes(session: LedgerSession, data: LedgerData) -> Mapping[str, Any]:
    if data.account is None or (prepaid := data.account.prepaid) is None:
        return {}
    return {
        "credit": prepaid.credit_micro / 1e6,
        "credit_kwh": prepaid.credit_wh / 1000,
        "low": prepaid.low,
    }


def _bill_due(session: LedgerSession, data: LedgerData, today: Today | None) -> datetime | None:
    if session.clock is None or data.account is None or data.account.next_due is None:
        return None
    return session.clock.real_datetime(data.account.next_due)


def _best_rate(session: LedgerSession, data: LedgerData, today: Today | None) -> float | None:
    best = data.best_buy_rate
    return None if best is None else best.price_micro_per_kwh / 1e6


def _best_rate_attributes(session: LedgerSession, data: LedgerData) -> Mapping[str, Any]:
    best = data.best_buy_rate
    return {
        "supplier": None if best is None else best.supplier,
        "rates": {
            rate.supplier: rate.price_micro_per_kwh / 1e6
            for rate in data.rates
            if rate.kind == "buy"
        },
    }


LEDGER_SENSORS: tuple[LedgerSensorDescription, ...] = (
    LedgerSensorDescription(
        key="last_reading",
        translation_key="last_reading",
        device=Device.HOME,
        live=False,
        device_class=SensorDeviceClass.TIMESTAMP,
        entity_category=EntityCategory.DIAGNOSTIC,
        value_fn=lambda session, data, today: data.last_committed,
    ),
    LedgerSensorDescription(
        key="readings_queued",
        translation_key="readings_queued",
        device=Device.HOME,
        live=False,
        state_class=SensorStateClass.MEASUREMENT,
        entity_category=EntityCategory.DIAGNOSTIC,
        value_fn=lambda session, data, today: data.queued,
    ),
    LedgerSensorDescription(
        key="reading_delay",
        translation_key="reading_delay",
        device=Device.HOME,
        live=False,
        device_class=SensorDeviceClass.DURATION,
        native_unit_of_measurement=UnitOfTime.SECONDS,
        state_class=SensorStateClass.MEASUREMENT,
        suggested_display_precision=0,
        entity_category=EntityCategory.DIAGNOSTIC,
        entity_registry_enabled_default=False,
        value_fn=lambda session, data, today: data.reading_delay_s,
    ),
    LedgerSensorDescription(
        key="balance",
        translation_key="balance",
        device_class=SensorDeviceClass.MONETARY,
        state_class=SensorStateClass.TOTAL,
        currency_unit="{currency}",
        suggested_display_precision=2,
        value_fn=lambda session, data, today: (
            None if data.balance_micro is None else data.balance_micro / 1e6
        ),
    ),
    LedgerSensorDescription(
        key="best_rate",
        translation_key="best_rate",
        currency_unit="{currency}/kWh",
        state_class=SensorStateClass.MEASUREMENT,
        suggested_display_precision=4,
        value_fn=_best_rate,
        attributes_fn=_best_rate_attributes,
    ),
    LedgerSensorDescription(
        key="buy_price",
        translation_key="buy_price",
        currency_unit="{currency}/kWh",
        state_class=SensorStateClass.MEASUREMENT,
        suggested_display_precision=4,
        value_fn=lambda session, data, today: (
            None if data.best_sell_rate is None else data.best_sell_rate.price_micro_per_kwh / 1e6
        ),
    ),
    LedgerSensorDescription(
        key="open_orders",
        translation_key="open_orders",
        state_class=SensorStateClass.MEASUREMENT,
        value_fn=lambda session, data, today: data.open_orders,
    ),
    LedgerSensorDescription(
        key="permit",
        translation_key="permit",
        live=False,
        device_class=SensorDeviceClass.ENUM,
        options=list(PERMIT_STATES),
        value_fn=lambda session, data, today: (
            None
            if data.account is None or data.account.permit is None
            else data.account.permit.state
        ),
        attributes_fn=_permit_attributes,
    ),
    LedgerSensorDescription(
        key="bill_open",
        translation_key="bill_open",
        live=False,
        device_class=SensorDeviceClass.MONETARY,
        state_class=SensorStateClass.TOTAL,
        currency_unit="{currency}",
        suggested_display_precision=2,
        entity_registry_enabled_default=False,
        value_fn=lambda session, data, today: (
            None if data.account is None else data.account.open_micro / 1e6
        ),
    ),
    LedgerSensorDescription(
        key="bill_due",
        translation_key="bill_due",
        live=False,
        device_class=SensorDeviceClass.TIMESTAMP,
        entity_registry_enabled_default=False,
        value_fn=_bill_due,
    ),
    LedgerSensorDescription(
        key="prepaid_days",
        translation_key="prepaid_days",
        live=False,
        device_class=SensorDeviceClass.DURATION,
        native_unit_of_measurement=UnitOfTime.DAYS,
        state_class=SensorStateClass.MEASUREMENT,
        entity_registry_enabled_default=False,
        value_fn=lambda session, data, today: (
            None
            if data.account is None or data.account.prepaid is None
            else data.account.prepaid.days_left
        ),
        attributes_fn=_prepaid_attributes,
    ),
    LedgerSensorDescription(
        key="certificate_expires",
        translation_key="certificate_expires",
        device=Device.HOME,
        live=False,
        device_class=SensorDeviceClass.TIMESTAMP,
        entity_category=EntityCategory.DIAGNOSTIC,
        entity_registry_enabled_default=False,
        value_fn=lambda session, data, today: (
            session.client.identity.certificate.not_valid_after_utc
        ),
    ),
    LedgerSensorDescription(
        key="readings_refused",
        translation_key="readings_refused",
        device=Device.HOME,
        live=False,
        state_class=SensorStateClass.MEASUREMENT,
        entity_category=EntityCategory.DIAGNOSTIC,
        entity_registry_enabled_default=False,
        value_fn=lambda session, data, today: data.refused,
    ),
    LedgerSensorDescription(
        key="energy_sold_today",
        translation_key="energy_sold_today",
        daily=True,
        live=False,
        device_class=SensorDeviceClass.ENERGY,
        native_unit_of_measurement=UnitOfEnergy.KILO_WATT_HOUR,
        state_class=SensorStateClass.TOTAL,
        suggested_display_precision=2,
        value_fn=_sold_today,
    ),
    LedgerSensorDescription(
        key="revenue_today",
        translation_key="revenue_today",
        daily=True,
        live=False,
        device_class=SensorDeviceClass.MONETARY,
        state_class=SensorStateClass.TOTAL,
        currency_unit="{currency}",
        suggested_display_precision=2,
        value_fn=_revenue_today,
    ),
    LedgerSensorDescription(
        key="delivery_power",
        translation_key="delivery_power",
        live=False,
        device_class=SensorDeviceClass.POWER,
        native_unit_of_measurement=UnitOfPower.WATT,
        state_class=SensorStateClass.MEASUREMENT,
        suggested_display_precision=0,
        value_fn=_delivery_power,
    ),
)


async def async_setup_entry(
    hass: HomeAssistant,
    entry: GridLedgerConfigEntry,
    async_add_entities: AddConfigEntryEntitiesCallback,
) -> None:
    """Set up the sensors that this home can have."""
    runtime = entry.runtime_data
    plant = runtime.home.plant
    possible = [
        description
        for description in HOME_SENSORS
        if any(plant.get(need) for need in description.needs)
        and all(plant.get(need) for need in description.needs_too)
    ]
    async_drop_devices(hass, entry, {description.device for description in possible})
    async_add_entities(
        [
            *(
                HomeSensor(entry, runtime.home, description, description.device)
                for description in possible
            ),
            *(
                LedgerSensor(entry, runtime.session, description, description.device)
                for description in LEDGER_SENSORS
            ),
        ]
    )
    async_setup_sensors(entry, async_add_entities)
    async_setup_figures(Figures(hass, entry), entry, async_add_entities)


class HomeSensor(Sparing, GridLedgerEntity[HomeCoordinator], SensorEntity):
    """A sensor over the home's own measurements."""

    entity_description: HomeSensorDescription

    @callback
    @override
    def _handle_coordinator_update(self) -> None:
        value = self.native_value
        if self._is_due(value is None, value or 0.0, news=self.entity_description.news):
            self.async_write_ha_state()

    @property
    @override
    def entity_registry_enabled_default(self) -> bool:
        """What only repeats one of the owner's sensors is there for who wants it."""
        if not self.entity_description.entity_registry_enabled_default:
            return False
        field, plant = self.entity_description.mirrors, self.coordinator.plant
        given = plant.get(field) if field else None
        if not given or plant.get(f"invert_{field}"):
            return True
        return not isinstance(given, str) and len(given) > 1

    @property
    @override
    def available(self) -> bool:
        """Unavailable while a sensor that it is made of is."""
        return self.native_value is not None

    @property
    @override
    def native_value(self) -> float | None:
        """Return the value."""
        return self.entity_description.value_fn(self.coordinator.data)


class LedgerSensor(GridLedgerEntity[LedgerSession], SensorEntity):
    """A sensor over what the ledger says."""

    entity_description: LedgerSensorDescription
    _unrecorded_attributes = frozenset({"rates"})

    @override
    async def async_added_to_hass(self) -> None:
        """Look again each interval where the value depends on the time of day."""
        await super().async_added_to_hass()
        if self.entity_description.daily or self.entity_description.key == "delivery_power":
            self.async_on_remove(
                async_track_time_interval(self.hass, self._time_passed, timedelta(seconds=10))
            )

    @callback
    def _time_passed(self, _: datetime) -> None:
        shown = (self.native_value, self.last_reset)
        if shown != self._shown:
            self._shown = shown
            self.async_write_ha_state()

    _shown: tuple[Any, Any] = (None, None)

    @property
    @override
    def available(self) -> bool:
        """Live values are unavailable while the ledger is away."""
        if self.entity_description.live and not self.coordinator.data.connected:
            return False
        return super().available

    @property
    @override
    def native_value(self) -> float | str | datetime | None:
        """Return the value; None before the ledger has told it."""
        session = self.coordinator
        return self.entity_description.value_fn(session, session.data, _today(session))

    @property
    @override
    def native_unit_of_measurement(self) -> str | None:
        """Return the unit; money has the channel's currency."""
        if (unit := self.entity_description.currency_unit) is not None:
            return unit.format(currency=self.coordinator.data.currency)
        return self.entity_description.native_unit_of_measurement

    @property
    @override
    def last_reset(self) -> datetime | None:
        """Return local midnight for what is counted by day."""
        return dt_util.start_of_local_day() if self.entity_description.daily else None

    @property
    @override
    def extra_state_attributes(self) -> Mapping[str, Any] | None:
        """Return what explains the value."""
        if (attributes_fn := self.entity_description.attributes_fn) is None:
            return None
        return attributes_fn(self.coordinator, self.coordinator.data)
