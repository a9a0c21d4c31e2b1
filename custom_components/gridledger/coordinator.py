"""The home's side: listens to its sensors and cuts their energy into intervals.

Nothing here waits for the network.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from homeassistant.config_entries import ConfigEntry
from homeassistant.const import (
    ATTR_UNIT_OF_MEASUREMENT,
    STATE_UNAVAILABLE,
    STATE_UNKNOWN,
    UnitOfEnergy,
    UnitOfPower,
)
from homeassistant.core import (
    CALLBACK_TYPE,
    Event,
    EventStateChangedData,
    EventStateReportedData,
    HomeAssistant,
    State,
    callback,
)
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers import entity_registry as er
from homeassistant.helpers import issue_registry as ir
from homeassistant.helpers.event import (
    async_call_later,
    async_track_point_in_utc_time,
    async_track_state_change_event,
    async_track_state_report_event,
)
from homeassistant.helpers.update_coordinator import DataUpdateCoordinator
from homeassistant.util import dt as dt_util
from homeassistant.util.unit_conversion import EnergyConverter, PowerConverter

from .client.readings import Quality, Reading
from .clock import ChannelClock
from .const import (
    CONF_BATTERY_CAPACITY,
    CONF_BATTERY_CHARGE,
    CONF_BATTERY_DISCHARGE,
    CONF_BATTERY_LEVEL,
    CONF_BATTERY_POWER,
    CONF_GRID_EXPORT,
    CONF_GRID_IMPORT,
    CONF_GRID_POWER,
    CONF_INVERT_BATTERY_POWER,
    CONF_INVERT_GRID_POWER,
    CONF_PV_ENERGY,
    CONF_PV_POWER,
    DOMAIN,
    LOGGER,
    PUBLISH_S,
    RETENTION_S,
)
from .metering import CATCH_UP_LIMIT, Cut, EnergyTracker, Meter
from .models import HomeData
from .outbox import Outbox
from .selling import Seller
from .session import LedgerSession

if TYPE_CHECKING:
    from .keeper import HomeKeeper

type GridLedgerConfigEntry = ConfigEntry[GridLedgerRuntime]

_FACT_METER: Final = "meter"
_FACT_COUNTERS: Final = "counters"
_COUNTED: Final = (CONF_PV_ENERGY, CONF_BATTERY_CHARGE, CONF_BATTERY_DISCHARGE)
"""Energy that is shown and summed, but is no part of the reading."""
_DISAGREE_MWH: Final = 2_000_000
"""By so much a house's consumption falls only if its sensors contradict one another."""
_CO2_G_PER_KWH: Final = 250.0
"""What a kWh from the grid emits where nobody says it: about what it does in Europe, and a round
number on purpose."""
_CO2_INTENSITY: Final = ("co2signal", "{}_co2intensity")
"""Home Assistant's own Electricity Maps: its domain, and the unique id of its intensity (g/kWh)
by the entry's id."""


@dataclass(slots=True)
class GridLedgerRuntime:
    """What a loaded entry works with."""

    session: LedgerSession
    home: HomeCoordinator
    seller: Seller
    outbox: Outbox
    keeper: HomeKeeper


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def meter_keys(plant: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the sensors of the import and the export register.

    A home without energy sensors at the grid has its grid power integrated.
    """
    imports, exports = _list(plant.get(CONF_GRID_IMPORT)), _list(plant.get(CONF_GRID_EXPORT))
    power = plant.get(CONF_GRID_POWER)
    if not imports and not exports and power:
        signs = "-+" if plant.get(CONF_INVERT_GRID_POWER) else "+-"
        return [signs[0] + power], [signs[1] + power]
    return imports, exports


def number(state: State | None) -> float | None:
    """Return a state's number, None for one that has none. Unavailable isn't zero."""
    if state is None or state.state in (STATE_UNAVAILABLE, STATE_UNKNOWN):
        return None
    try:
        value = float(state.state)
    except ValueError:
        return None
    return value if isfinite(value) else None


def energy_mwh(state: State | None) -> int | None:
    """Return an energy sensor's total in mWh."""
    value = number(state)
    if value is None or state is None:
        return None
    unit = state.attributes.get(ATTR_UNIT_OF_MEASUREMENT) or UnitOfEnergy.KILO_WATT_HOUR
    try:
        return round(EnergyConverter.convert(value, unit, UnitOfEnergy.WATT_HOUR) * 1000)
    except HomeAssistantError:
        return None


def power_w(state: State | None) -> float | None:
    """Return a power sensor's value in W."""
    value = number(state)
    if value is None or state is None:
        return None
    unit = state.attributes.get(ATTR_UNIT_OF_MEASUREMENT) or UnitOfPower.WATT
    try:
        return PowerConverter.convert(value, unit, UnitOfPower.WATT)
    except HomeAssistantError:
        return None


class HomeCoordinator(DataUpdateCoordinator[HomeData]):
    """Keeps :class:`HomeData` and the home's meter."""

    config_entry: GridLedgerConfigEntry

    def __init__(
        self,
        hass: HomeAssistant,
        entry: GridLedgerConfigEntry,
        session: LedgerSession,
        outbox: Outbox,
        plant: Mapping[str, Any],
    ) -> None:
        """Remember the plant; :meth:`async_start` begins."""
        super().__init__(hass, LOGGER, config_entry=entry, name=f"{entry.title} home")
        self.plant = plant
        self.data = HomeData()
        self.meter: Meter | None = None
        self._session = session
        self._outbox = outbox
        self._imports, self._exports = meter_keys(plant)
        self._counters: dict[str, dict[str, EnergyTracker]] = {}
        self._consumed_mwh = 0
        self._co2_avoided_g = 0.0
        self._co2_counted_mwh = 0
        """Solar energy of which it is known what it has avoided."""
        self._co2_g_per_kwh = _CO2_G_PER_KWH
        self._most_mwh: int | None = None
        """The most that was consumed since the home was loaded, by its sensors."""
        self._disagree = False
        self._disagree_issue = f"sensors_disagree_{entry.entry_id}"
        self._unsaved: list[Cut] = []
        self._save_lock = asyncio.Lock()
        self._beginning: asyncio.Task[None] | None = None
        self._unsubscribe: list[CALLBACK_TYPE] = []
        self._cancel_tick: CALLBACK_TYPE | None = None
        self._cancel_publish: CALLBACK_TYPE | None = None
        self._published_at = 0.0
        self._stopped = False

    # Life -----------------------------------------------------------------------------------

    async def async_start(self) -> None:
        """Go on from the stored meter and listen to the sensors."""
        ir.async_delete_issue(self.hass, DOMAIN, self._disagree_issue)  # they may be others now
        await self.hass.async_add_executor_job(self._load_counters)
        if self._session.clock is not None:
            await self._begin_meter(self._session.clock)
        entities = {key.lstrip("+-") for key in (*self._imports, *self._exports)}
        for field in (*_COUNTED, CONF_PV_POWER, CONF_GRID_POWER, CONF_BATTERY_POWER):
            entities.update(_list(self.plant.get(field)))
        entities.update(_list(self.plant.get(CONF_BATTERY_LEVEL)))
        self._unsubscribe = [
            async_track_state_change_event(self.hass, entities, self._state_changed),
            async_track_state_report_event(self.hass, entities, self._state_reported),
        ]
        for entity_id in entities:
            if (state := self.hass.states.get(entity_id)) is not None:
                self._sample(state, state.last_reported.timestamp())
        self._publish()

    async def async_stop(self) -> None:
        """Stop listening; store what was cut."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []
        self._cancel_timers()
        await self.async_save()
        self._stopped = True
        self._cancel_timers()  # those of a meter that began meanwhile

    def _cancel_timers(self) -> None:
        for cancel in (self._cancel_tick, self._cancel_publish):
            if cancel is not None:
                cancel()
        self._cancel_tick = self._cancel_publish = None

    def _load_counters(self) -> None:
        stored = self._outbox.fact(_FACT_COUNTERS) or {}
        self._consumed_mwh = int(stored.get("consumed_mwh", 0))
        self._co2_avoided_g = float(stored.get("co2_avoided_g", 0))
        self._co2_counted_mwh = int(stored.get("co2_counted_mwh", 0))
        self._counters = {  # last: nothing is stored before all is loaded
            field: {
                key: EnergyTracker.from_dict(known) if known else EnergyTracker()
                for key in _list(self.plant.get(field))
                for known in (stored.get(field, {}).get(key),)
            }
            for field in _COUNTED
        }

    @callback
    def async_adopt_clock(self, clock: ChannelClock) -> None:
        """Begin to meter once the ledger has told its interval."""
        if self.meter is None and self._counters:  # else async_start does
            self._beginning = self.config_entry.async_create_task(
                self.hass, self._begin_meter(clock), name=f"{self.name} meter"
            )

    async def _begin_meter(self, clock: ChannelClock) -> None:
        stored = await self.hass.async_add_executor_job(self._outbox.fact, _FACT_METER)
        if self.meter is not None or self._stopped:
            return
        self.meter = Meter(clock.interval_s, self._imports, self._exports, stored)
        oldest = clock.next_boundary(clock.channel(dt_util.utcnow().timestamp()) - RETENTION_S)
        if self.meter.cut_at is not None:
            self.meter.skip_to(oldest, 0, 0)  # does nothing unless the last cut is older
        for entity_id in {key.lstrip("+-") for key in self.meter.keys}:
            if (state := self.hass.states.get(entity_id)) is not None:
                self._sample(state, dt_util.utcnow().timestamp())
        self._schedule_tick()

    @callback
    def async_meter_named(self) -> None:
        """Sign what was cut before the ledger knew our meter."""
        if self._unsaved:
            self._save_soon()

    async def async_skip_to(self, boundary: int, import_wh: int, export_wh: int) -> bool:
        """Go on after intervals that the ledger has from elsewhere; return whether it had any."""
        if self._beginning is not None:
            await asyncio.wait([self._beginning])  # what it reads is older
        meter = self.meter
        if meter is None or (meter.cut_at is not None and meter.cut_at >= boundary):
            return False
        meter.skip_to(boundary, import_wh, export_wh)
        await self.async_save()
        return True

    # Samples --------------------------------------------------------------------------------

    @callback
    def _state_changed(self, event: Event[EventStateChangedData]) -> None:
        if (state := event.data["new_state"]) is not None:
            self._sample(state, state.last_reported.timestamp())
            self._published_soon()

    @callback
    def _state_reported(self, event: Event[EventStateReportedData]) -> None:
        self._sample(event.data["new_state"], event.data["last_reported"].timestamp())

    def _sample(self, state: State, real: float) -> None:
        """Show a sensor's value to everything that counts it."""
        clock, entity_id = self._session.clock, state.entity_id
        reset = state.attributes.get("last_reset")
        reset_mark = None if reset is None else str(reset)
        energy = energy_mwh(state)
        if energy is not None:
            for trackers in self._counters.values():
                if entity_id in trackers:
                    trackers[entity_id].add(real, energy, PUBLISH_S, reset_mark)
                    trackers[entity_id].forget_before(real)
        if self.meter is None or clock is None:
            return
        at = clock.channel(real)
        keys = self.meter.keys
        if entity_id in keys and energy is not None:
            self.meter.sample(entity_id, at, energy, reset_mark)
        if "+" + entity_id in keys or "-" + entity_id in keys:
            power = power_w(state)
            if power is not None:
                self.meter.sample("+" + entity_id, at, round(max(power, 0)))
                self.meter.sample("-" + entity_id, at, round(max(-power, 0)))
        self._cut()

    @property
    def _grace_s(self) -> float:
        """Real seconds that sensors have to report what they had at a boundary."""
        clock = self._session.known_clock()
        return min(30.0, max(2.0, clock.interval_s / clock.rate / 4))

    @callback
    def _schedule_tick(self, *, soon: bool = False) -> None:
        clock = self._session.known_clock()
        if self._cancel_tick is not None:
            self._cancel_tick()
        now = clock.channel(dt_util.utcnow().timestamp() - self._grace_s)
        boundary = clock.interval_at(now) + clock.interval_s
        at = dt_util.utc_from_timestamp(clock.real(boundary) + self._grace_s)
        if soon:
            at = dt_util.utcnow() + timedelta(milliseconds=100)
        self._cancel_tick = async_track_point_in_utc_time(self.hass, self._tick, at)

    @callback
    def _tick(self, now: datetime) -> None:
        """After a boundary: sensors that are there but silent stand where they stood."""
        self._cancel_tick = None
        assert self.meter is not None
        clock = self._session.known_clock()
        boundary = clock.interval_at(clock.channel(now.timestamp() - self._grace_s / 2))
        for key in self.meter.keys:
            if number(self.hass.states.get(key.lstrip("+-"))) is not None:
                self.meter.hold(key, boundary)
        self._schedule_tick()
        self._cut()

    @callback
    def _cut(self) -> None:
        assert self.meter is not None
        if cuts := self.meter.cut():
            self._unsaved.extend(cuts)
            # They wait here only while the ledger has never been reached.
            del self._unsaved[: -(RETENTION_S // self.meter.interval_s)]
            if len(cuts) == CATCH_UP_LIMIT:
                self._schedule_tick(soon=True)  # more are due; let others run in between
            self._save_soon()
            self._publish()

    @callback
    def _save_soon(self) -> asyncio.Task[None]:
        return self.config_entry.async_create_task(
            self.hass, self._save(), name=f"{self.name} save", eager_start=False
        )

    async def async_save(self) -> None:
        """Sign what was cut and store it together with the meter's state, in order.

        Whoever waits for it may be cancelled: what is being stored is stored to its end, or the
        next could be stored before it.
        """
        await asyncio.shield(self._save_soon())

    async def _save(self) -> None:
        """Store; what is counted also where the ledger was never reached."""
        async with self._save_lock:
            if self._stopped or not self._counters:
                return
            meter, meter_id = self.meter, self._session.meter_id
            if self._unsaved and meter_id is None:
                meter = None  # nothing may be stored as cut before it can be signed
            cuts, state = (list(self._unsaved), meter.as_dict()) if meter else ([], None)
            readings = [
                Reading(
                    str(meter_id),
                    cut.interval_start,
                    cut.interval_s,
                    cut.import_wh,
                    cut.export_wh,
                    cut.import_register_wh,
                    cut.export_register_wh,
                    Quality.MEASURED if cut.measured else Quality.ESTIMATED,
                )
                for cut in cuts
            ]
            counters = {
                "consumed_mwh": self._consumed_mwh,
                "co2_avoided_g": self._co2_avoided_g,
                "co2_counted_mwh": self._co2_counted_mwh,
                **{
                    field: {key: tracker.as_dict() for key, tracker in trackers.items()}
                    for field, trackers in self._counters.items()
                },
            }

            def store() -> None:
                if state is not None:
                    signed = [self._session.sign(reading).fields for reading in readings]
                    self._outbox.append(signed, state)
                self._outbox.store_fact(_FACT_COUNTERS, counters)

            try:
                await self.hass.async_add_executor_job(store)
            except Exception:
                # They stay in memory and go with the next interval.
                LOGGER.exception("Readings can't be stored")
                return
            del self._unsaved[: len(cuts)]
            if cuts:  # within the lock: a home that has stopped doesn't ask its outbox any more
                await self._session.async_readings_stored()

    # What is shown --------------------------------------------------------------------------

    @callback
    def _published_soon(self) -> None:
        """Publish at most once a minute."""
        if self._cancel_publish is None:
            since_s = dt_util.utcnow().timestamp() - self._published_at
            wait = min(PUBLISH_S, max(0.0, PUBLISH_S - since_s))  # whatever the clock has done
            self._cancel_publish = async_call_later(self.hass, wait, self._publish_later)

    @callback
    def _publish_later(self, _: datetime) -> None:
        self._publish()

    @callback
    def _publish(self) -> None:
        if self._cancel_publish is not None:
            self._cancel_publish()
            self._cancel_publish = None
        self._published_at = dt_util.utcnow().timestamp()
        self.async_set_updated_data(self.measure())

    def _sum_power(self, field: str, sign: int = 1) -> float | None:
        values = [power_w(self.hass.states.get(key)) for key in _list(self.plant.get(field))]
        if not values or None in values:
            return None
        return sign * sum(value for value in values if value is not None)

    def _counted(self, field: str) -> int | None:
        trackers = self._counters.get(field) or {}
        if not trackers or not all(tracker.points for tracker in trackers.values()):
            return None
        return sum(tracker.total for tracker in trackers.values())

    def measure(self) -> HomeData:
        """Read the home as it is now."""
        plant = self.plant
        pv = self._sum_power(CONF_PV_POWER)
        battery = self._sum_power(
            CONF_BATTERY_POWER, -1 if plant.get(CONF_INVERT_BATTERY_POWER) else 1
        )
        grid = self._sum_power(CONF_GRID_POWER, -1 if plant.get(CONF_INVERT_GRID_POWER) else 1)
        parts = [
            value
            for field, value in (
                (CONF_PV_POWER, pv),
                (CONF_BATTERY_POWER, battery),
                (CONF_GRID_POWER, grid),
            )
            if plant.get(field)
        ]
        consumption = None
        if grid is not None and None not in parts:
            consumption = max(0.0, sum(part for part in parts if part is not None))
        level = number(self.hass.states.get(plant.get(CONF_BATTERY_LEVEL) or ""))
        capacity = plant.get(CONF_BATTERY_CAPACITY)
        imported: int | None = None
        exported: int | None = None
        if self.meter is not None and self.meter.started:
            imported, exported = self.meter.totals_wh
        pv_energy = self._counted(CONF_PV_ENERGY)
        return HomeData(
            pv_power=pv,
            pv_energy=_kwh(pv_energy),
            co2_avoided_kg=self._co2_avoided(pv_energy),
            battery_level=level,
            battery_power=battery,
            stored_energy=(
                None if level is None or not capacity else round(capacity * level / 100, 3)
            ),
            consumption_power=consumption,
            consumption_energy=self._consumption_energy(imported, exported),
            grid_power=grid,
            grid_import_energy=None if imported is None else imported / 1000,
            grid_export_energy=None if exported is None else exported / 1000,
        )

    def _consumption_energy(self, imported: int | None, exported: int | None) -> float | None:
        """Import + PV + discharge - export - charge: kWh, and never less than was shown."""
        if imported is None or exported is None:
            return None
        total = (imported - exported) * 1000
        for field, sign in (
            (CONF_PV_ENERGY, 1),
            (CONF_BATTERY_DISCHARGE, 1),
            (CONF_BATTERY_CHARGE, -1),
        ):
            if self.plant.get(field):
                counted = self._counted(field)
                if counted is None:
                    return None
                total += sign * counted
        self._consumed_mwh = max(self._consumed_mwh, total)
        self._most_mwh = total if self._most_mwh is None else max(total, self._most_mwh)
        self._tell_contradiction(self._most_mwh - total)
        return _kwh(self._consumed_mwh)

    def _co2_avoided(self, pv_mwh: int | None) -> int | None:
        """Count what solar energy has kept the grid from emitting, in kg: each kWh as it came."""
        if pv_mwh is None:
            return None
        domain, unique_id = _CO2_INTENSITY
        registry = er.async_get(self.hass)
        for source in self.hass.config_entries.async_loaded_entries(domain)[:1]:
            entity_id = registry.async_get_entity_id(
                "sensor", domain, unique_id.format(source.entry_id)
            )
            said = number(self.hass.states.get(entity_id or ""))
            if said is not None and said >= 0:
                self._co2_g_per_kwh = said  # kept while it is unavailable
        # A panel that is no longer chosen has taken its count with it, and not what it avoided.
        new_mwh = max(0, pv_mwh - self._co2_counted_mwh)
        self._co2_avoided_g += new_mwh / 1e6 * self._co2_g_per_kwh
        self._co2_counted_mwh = pv_mwh
        return round(self._co2_avoided_g / 1000)

    @callback
    def _tell_contradiction(self, back_mwh: int) -> None:
        """Raise an issue while a house seems to have given back what it had used."""
        plant = self.plant
        both = plant.get(CONF_BATTERY_CHARGE) and plant.get(CONF_BATTERY_DISCHARGE)
        battery = plant.get(CONF_BATTERY_LEVEL) or plant.get(CONF_BATTERY_POWER)
        if not plant.get(CONF_PV_ENERGY) or (battery and not both):
            return  # what isn't counted may well come from there
        # Sensors that report at different times differ for a while by less.
        disagree = back_mwh > (0 if self._disagree else _DISAGREE_MWH)
        if disagree is self._disagree:
            return
        self._disagree = disagree
        if not disagree:
            ir.async_delete_issue(self.hass, DOMAIN, self._disagree_issue)
            return
        ir.async_create_issue(
            self.hass,
            DOMAIN,
            self._disagree_issue,
            is_fixable=False,
            severity=ir.IssueSeverity.WARNING,
            translation_key="sensors_disagree",
            translation_placeholders={
                "home": self.config_entry.title,
                "energy": f"{back_mwh / 1e6:.1f} kWh",
            },
        )

    def sources(self) -> dict[str, Iterable[str]]:
        """Return the owner's sensors by what they measure, for the live card."""
        return {
            field: _list(self.plant.get(field))
            for field in (
                CONF_PV_POWER,
                CONF_GRID_POWER,
                CONF_BATTERY_POWER,
                CONF_BATTERY_LEVEL,
                CONF_PV_ENERGY,
                CONF_GRID_IMPORT,
                CONF_GRID_EXPORT,
                CONF_BATTERY_CHARGE,
                CONF_BATTERY_DISCHARGE,
            )
            if self.plant.get(field)
        }


def _kwh(mwh: int | None) -> float | None:
    return None if mwh is None else mwh // 1000 / 1000
