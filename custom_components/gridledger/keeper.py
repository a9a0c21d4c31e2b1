"""Keeps the home: reads its sensors, asks the engine, and does what it says.

It steps every minute and soon after a significant change, plans every quarter of an hour in the
executor, and needs no ledger: without one the last prices hold, and nothing is traded. When it
stops, what it switched on is switched off and the battery goes back to automatic.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from functools import partial
from math import inf
from typing import Any, Final, override

from homeassistant.config_entries import ConfigSubentry
from homeassistant.const import (
    ATTR_ENTITY_ID,
    SERVICE_TURN_OFF,
    SERVICE_TURN_ON,
    STATE_OFF,
    STATE_ON,
    STATE_UNAVAILABLE,
    STATE_UNKNOWN,
)
from homeassistant.core import (
    CALLBACK_TYPE,
    Context,
    Event,
    EventStateChangedData,
    HomeAssistant,
    callback,
)
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers import config_validation as cv
from homeassistant.helpers.dispatcher import async_dispatcher_send
from homeassistant.helpers.event import (
    async_call_later,
    async_track_point_in_utc_time,
    async_track_state_change_event,
    async_track_time_interval,
)
from homeassistant.helpers.script import Script
from homeassistant.helpers.update_coordinator import DataUpdateCoordinator
from homeassistant.util import dt as dt_util

from . import vault
from .const import (
    CONF_BATTERY_LEVEL,
    CONF_BATTERY_POWER,
    CONF_GRID_POWER,
    CONF_PV_POWER,
    DOMAIN,
    LOGGER,
    SIGNAL_SURPLUS,
)
from .coordinator import GridLedgerConfigEntry, HomeCoordinator, number, power_w
from .engine import (
    Appliance,
    ApplianceReading,
    Car,
    Decision,
    Dispatcher,
    Kind,
    LoadForecast,
    Mode,
    Need,
    Order,
    Plan,
    Response,
    Settings,
    Slot,
    Snapshot,
    SolarForecast,
    TradingRule,
    due_orders,
    plan_home,
)
from .engine.dispatcher import SafeState, needs_of
from .engine.forecast import STEP_S
from .engine.model import local_time
from .engine.trading import RuleKind
from .entity import async_link_devices
from .models import Trade
from .prices import PriceBook
from .sales import BY_HAND, COMMITTED, DELIVERING, Sales
from .selling import WINDOW_LIMIT_INTERVALS, Seller
from .session import LedgerSession
from .subentries import (
    BATTERY_CONTROL,
    CONF_ACTIONS,
    CONF_CAR_CAPACITY,
    CONF_CAR_LEVEL,
    CONF_CAR_TARGET,
    CONF_CONNECTED,
    CONF_CURRENT,
    CONF_ENTITY,
    CONF_GIVE_BACK,
    CONF_OFF_TEMPERATURE,
    CONF_ON_TEMPERATURE,
    CONF_POWER_SENSOR,
    CONF_STOP_GIVING,
    settings_of,
    subentries_of,
)
from .sun import ChosenForecast

_STEP: Final = timedelta(seconds=60)
_SOON_S: Final = 5.0
_SIGNIFICANT_W: Final = 200.0
_HORIZON: Final = 96
_GATE_S: Final = 60.0
_SAVE_S: Final = 900.0
"""So much of what is learnt and counted a power cut may take; all else is stored at once."""
_ASSUMED_BUY: Final = 0.30
_ASSUMED_SELL: Final = 0.08
"""Prices until the ledger has told any: only their order matters then."""
_COMMITTED_S: Final = 7200.0
_SAFE_S: Final = 60.0
"""How long devices may take to be left as they were found."""
_CANCEL_S: Final = 5.0
"""How long an owner's actions may take to end once something else is to be done."""
_BATTERY: Final = "battery"
_DAYS_KEPT: Final = 3
_WAYS: Final = (CONF_ENTITY, CONF_GIVE_BACK, CONF_STOP_GIVING, *CONF_ACTIONS.values())
_SURPLUS_ON_W: Final = 300.0
_SURPLUS_OFF_W: Final = 100.0


@dataclass(frozen=True, slots=True)
class KeeperData:
    """What the keeper shows."""

    decision: Decision = field(default_factory=lambda: Decision(0.0))
    plan: Plan | None = None
    dry_plan: Plan | None = None
    surplus: bool | None = None
    """The sun leaves more than what is on takes, averaged, with hysteresis. None: not known."""


class HomeKeeper(DataUpdateCoordinator[KeeperData]):
    """The one dispatcher of a home."""

    config_entry: GridLedgerConfigEntry

    def __init__(
        self,
        hass: HomeAssistant,
        entry: GridLedgerConfigEntry,
        session: LedgerSession,
        home: HomeCoordinator,
        seller: Seller,
    ) -> None:
        """Remember what to work with; :meth:`async_start` begins."""
        super().__init__(hass, LOGGER, config_entry=entry, name=f"{entry.title} keeper")
        self.data = KeeperData()
        self._session = session
        self._home = home
        self._seller = seller
        self._store = vault.keeper_store(hass, str(entry.unique_id))
        self._zone = dt_util.get_default_time_zone()
        self.dispatcher = Dispatcher(Settings(zone=self._zone))
        self._sun = SolarForecast(hass.config.latitude, hass.config.longitude)
        self._load = LoadForecast(self._zone)
        self._plan: Plan | None = None
        self._dry_plan: Plan | None = None
        self._enabled: dict[str, bool] = {}
        self._prices = PriceBook(hass, entry, session)
        self._chosen_sun = ChosenForecast(hass)
        self.sales = Sales(hass, session, session.outbox)
        self._counted: dict[str, float] = {}
        """Wh by ``rule|day``: what the ledger doesn't know, dry orders and what was bought."""
        self._ordered: dict[str, float] = {}
        """Request ids of orders and when they begin."""
        self.earned: dict[str, float] = {}
        """What each rule has earned, or would have earned dry."""
        self._quarter = 0
        self._energy = [0.0, 0.0]
        self._measured_at: float | None = None
        self._measured_s = 0.0
        self._unsubscribe: list[CALLBACK_TYPE] = []
        self._cancel_soon: CALLBACK_TYPE | None = None
        self._cancel_change: CALLBACK_TYPE | None = None
        self._watched: CALLBACK_TYPE | None = None
        self._linking: CALLBACK_TYPE | None = None
        self._seen_w: dict[str, float] = {}
        self._ledger_seen: tuple[object, ...] = ()
        self._adders: list[Callable[[ConfigSubentry], None]] = []
        self._known: set[str] = set()
        self._data: dict[str, Mapping[str, Any]] = {}
        """Subentries' data; a deleted one's is needed once more, to turn it off."""
        self._control: Mapping[str, Any] = {}
        """The battery control's among them."""
        self._planning = asyncio.Lock()
        self._planned_connected = False
        """Whether the last plan could know what the ledger says of prices."""
        self._context = Context()
        self._loaded = False
        """Whether what was stored is known; nothing is stored in its place before."""
        self._saved_at = -inf
        self._saved_going: tuple[SafeState, tuple[str, ...]] | None = None
        self._commands: dict[asyncio.Task[None], tuple[str, str, bool]] = {}
        """What is being told: to which device, what, and whether it sets the device going."""
        self._stopped = False
        self._told: dict[str, str] = {}

    # Life -----------------------------------------------------------------------------------

    async def async_start(self) -> None:
        """Go on from what was stored, and begin to step."""
        stored = await self._store.async_load() or {}
        self._enabled = dict(stored.get("enabled", {}))
        self._counted = dict(stored.get("counted", {}))
        self.sales = Sales(self.hass, self._session, self._session.outbox, stored.get("sales", ()))
        self._ordered = dict(stored.get("ordered", {}))
        self.earned = dict(stored.get("earned", {}))
        settings = settings_of(self.config_entry, self._zone, self._enabled)
        self.dispatcher = Dispatcher(settings, stored.get("dispatcher"))
        with suppress(TypeError, ValueError):
            config = self.hass.config
            self._sun = SolarForecast.from_list(
                config.latitude, config.longitude, stored.get("sun", ())
            )
            self._load = LoadForecast.from_list(self._zone, stored.get("load", ()))
        self._known = set(self.config_entry.subentries)
        self._remember()
        self._loaded = True
        self._watch()
        self._unsubscribe = [
            async_track_time_interval(self.hass, self._tick, _STEP),
            self._session.async_add_listener(self._ledger_told),
        ]
        self._step()

    async def async_stop(self) -> None:
        """Leave the home in a safe state."""
        if self._stopped:
            return
        self._stopped = True
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []
        for cancel in (self._cancel_soon, self._cancel_change, self._watched, self._linking):
            if cancel is not None:
                cancel()
        self._cancel_soon = self._cancel_change = self._watched = self._linking = None
        # What sets a device going must not come after what leaves it safe.
        await _ended(self._running(forcing=True))
        work = self._left_safe(self.dispatcher.settings, self._data, self._control)
        await self._within_time({*map(self.hass.async_create_task, work), *self._running()})
        if self._loaded:
            await self._store.async_save(self._state())

    def _left_safe(
        self,
        settings: Settings,
        data: Mapping[str, Mapping[str, Any]],
        control: Mapping[str, Any],
        only: Collection[str] | None = None,
    ) -> list[Coroutine[Any, Any, None]]:
        """Return what leaves devices safe: all of ``settings``, or those that are named."""
        safe = self.dispatcher.safe_state()
        by_id = {a.id: a for a in settings.appliances if only is None or a.id in only}
        work = [
            self._async_switch(by_id[key], data[key], False, None)
            for key in safe.turn_off
            if key in by_id
        ]
        work += [
            self._async_give_back(by_id[key], data[key], 0.0, 0.0)
            for key in safe.stop_giving
            if key in by_id
        ]
        driven = settings.battery is not None and settings.battery.drives and safe.battery_auto
        if driven and (only is None or _BATTERY in only):
            work.append(self._async_battery(control, Mode.AUTO, 0.0, inf))
        return work

    @staticmethod
    async def _within_time(tasks: Collection[asyncio.Task[None]]) -> None:
        """Wait for devices. One that doesn't answer holds up no other one."""
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_SAFE_S)
            for task in late:
                task.cancel()

    @callback
    def _save(self, *, at_once: bool = False) -> None:
        """Store what a restart needs, now and then or at once.

        A store that is asked each minute to wait for two never writes.
        """
        now = self.hass.loop.time()
        if not self._stopped and (at_once or now - self._saved_at >= _SAVE_S):
            self._saved_at = now
            self._store.async_delay_save(self._state)

    def _state(self) -> dict[str, Any]:
        return {
            "dispatcher": self.dispatcher.as_dict(),
            "enabled": self._enabled,
            "counted": self._counted,
            "sales": self.sales.as_list(),
            "ordered": self._ordered,
            "earned": self.earned,
            "sun": self._sun.as_list(),
            "load": self._load.as_list(),
        }

    @callback
    def async_add_for(self, adder: Callable[[ConfigSubentry], None]) -> Callable[[], None]:
        """Call ``adder`` for each subentry there is, and for each that is added later."""
        self._adders.append(adder)
        for subentry in self.config_entry.subentries.values():
            adder(subentry)
        return lambda: self._adders.remove(adder)

    async def async_configure(self) -> None:
        """Apply subentries that were added, changed or deleted, without a restart.

        All is applied before the first wait: another change, or the end, may come meanwhile.
        """
        if self._stopped:
            return
        old, data, control = self.dispatcher.settings, self._data, self._control
        self._remember()
        settings = settings_of(self.config_entry, self._zone, self._enabled)
        # What now stands for another device is left as if it were deleted.
        left = {
            a.id for a in old.appliances if _told_by(data[a.id]) != _told_by(self._data.get(a.id))
        }
        drives = settings.battery is not None and settings.battery.drives
        driven = old.battery is not None and old.battery.drives
        if driven and (not drives or _told_by(control) != _told_by(self._control)):
            left.add(_BATTERY)
        work = self._left_safe(old, data, control, left)
        begun = self._running(left, forcing=True)
        self.dispatcher.configure(settings)
        self.dispatcher.forget_devices(left)
        present = set(self.config_entry.subentries)
        if added := present - self._known:
            for key in added:
                for adder in list(self._adders):
                    adder(self.config_entry.subentries[key])
            # Their devices are there only after this.
            if self._linking is not None:
                self._linking()
            self._linking = async_call_later(self.hass, 1.0, self._link)
        self._known = present
        for key in [key for key in self._enabled if key not in present]:
            del self._enabled[key]
        self._plan = None
        self._watch()
        self._save(at_once=True)
        await _ended(begun)
        await self._within_time([self.hass.async_create_task(one) for one in work])
        if drives and _BATTERY in left:
            self.dispatcher.battery_untold()  # by the actions that it has now
        self._step()

    def _remember(self) -> None:
        """Know the subentries' data from here on."""
        self._data = {sub.subentry_id: sub.data for sub in self.config_entry.subentries.values()}
        controls = subentries_of(self.config_entry, BATTERY_CONTROL)
        self._control = controls[0].data if controls else {}

    @callback
    def _link(self, _: datetime) -> None:
        self._linking = None
        async_link_devices(self.hass, self.config_entry)

    # What the owner says --------------------------------------------------------------------

    @callback
    def async_override(self, appliance_id: str, on: bool | None, seconds: float) -> None:
        """Keep an appliance on or off for a while; None decides again."""
        if on is None:
            self.dispatcher.clear_override(appliance_id)
        else:
            self.dispatcher.override(appliance_id, on, dt_util.utcnow().timestamp(), seconds)
        self._save(at_once=True)
        self._step()

    @callback
    def async_set_automatic(self, appliance_id: str, automatic: bool) -> None:
        """Say whether an appliance is switched at all."""
        self.dispatcher.set_automatic(appliance_id, automatic)
        self._save(at_once=True)
        self._step()

    def rule_enabled(self, rule_id: str) -> bool:
        """Return whether a trading rule is turned on."""
        return self._enabled.get(rule_id, False)

    @callback
    def async_enable_rule(self, rule_id: str, enabled: bool) -> None:
        """Turn a trading rule on or off."""
        self._enabled[rule_id] = enabled
        settings = settings_of(self.config_entry, self._zone, self._enabled)
        self.dispatcher.configure(settings)
        self._plan = None
        self._save(at_once=True)
        self._step()

    def traded_wh(self, rule_id: str) -> float:
        """Return what a rule has traded for today, or would have (Wh)."""
        return self._traded().get((rule_id, dt_util.now().date()), 0.0)

    def _traded(self) -> dict[tuple[str, date], float]:
        """Return what each rule has traded for each day: what it sold is on the ledger."""
        traded = self.sales.traded_wh(self._zone)
        for key, energy in self._counted.items():
            rule_id, _, day = key.partition("|")
            spot = (rule_id, date.fromisoformat(day))
            traded[spot] = traded.get(spot, 0.0) + energy
        return traded

    def _count(self, rule_id: str, instant: float, energy_wh: float) -> None:
        key = f"{rule_id}|{local_time(instant, self._zone).date().isoformat()}"
        self._counted[key] = self._counted.get(key, 0.0) + energy_wh

    # Measurements ---------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._watched is not None:
            self._watched()
        plant = self._home.plant
        entities: set[str] = set()
        for key in (CONF_GRID_POWER, CONF_PV_POWER, CONF_BATTERY_POWER, CONF_BATTERY_LEVEL):
            given = plant.get(key) or []
            entities.update([given] if isinstance(given, str) else given)
        for a in self.dispatcher.settings.appliances:
            data = self._data[a.id]
            for key in (CONF_ENTITY, CONF_POWER_SENSOR, CONF_CONNECTED):
                if data.get(key):
                    entities.add(data[key])
        self._watched = async_track_state_change_event(self.hass, entities, self._changed)

    @callback
    def _changed(self, event: Event[EventStateChangedData]) -> None:
        """Step soon if it matters."""
        new = event.data["new_state"]
        entity_id = event.data["entity_id"]
        power = power_w(new)
        if power is not None and new is not None and new.attributes.get("unit_of_measurement"):
            if abs(power - self._seen_w.get(entity_id, inf)) < _SIGNIFICANT_W:
                return
            self._seen_w[entity_id] = power
        self._step_soon()

    @callback
    def _ledger_told(self) -> None:
        """Step soon if more or less was sold, or the permit is another one."""
        ledger = self._session.data
        told = (ledger.trades, ledger.suspended, ledger.limit_w)
        if told != self._ledger_seen:
            self._ledger_seen = told
            self._step_soon()

    @callback
    def _step_soon(self) -> None:
        if self._cancel_soon is None:
            self._cancel_soon = async_call_later(self.hass, _SOON_S, self._soon)

    @callback
    def _soon(self, _: datetime) -> None:
        self._cancel_soon = None
        self._step()

    @callback
    def _tick(self, _: datetime) -> None:
        self._step()

    def _is_on(self, a: Appliance, data: Mapping[str, Any]) -> bool | None:
        state = self.hass.states.get(data[CONF_ENTITY])
        if state is None or state.state in (STATE_UNAVAILABLE, STATE_UNKNOWN):
            return None
        warm = data.get(CONF_ON_TEMPERATURE)
        if a.kind in (Kind.CLIMATE, Kind.WATER_HEATER) and warm is not None:
            aim = state.attributes.get("temperature")
            cold = data.get(CONF_OFF_TEMPERATURE)
            if state.state == STATE_OFF or aim is None or cold is None:
                return state.state != STATE_OFF and aim == warm
            # Nearer to which of the two: cooling has its warm temperature below.
            return bool(abs(aim - warm) < abs(aim - cold))
        return state.state != STATE_OFF

    def _reading(self, a: Appliance) -> ApplianceReading:
        data = self._data[a.id]
        on = self._is_on(a, data)
        if on is None:
            return ApplianceReading(available=False)
        power = None
        if data.get(CONF_POWER_SENSOR):
            power = power_w(self.hass.states.get(data[CONF_POWER_SENSOR]))
        if not a.variable:
            return ApplianceReading(on=on, power_w=power)
        connected = True
        if data.get(CONF_CONNECTED):
            state = self.hass.states.get(data[CONF_CONNECTED])
            connected = state is not None and state.state in (STATE_ON, "home", "connected")
        needed = stored = None
        level = number(self.hass.states.get(data.get(CONF_CAR_LEVEL) or ""))
        if level is not None and data.get(CONF_CAR_CAPACITY):
            missing = float(data.get(CONF_CAR_TARGET, 80)) - level
            needed = max(0.0, missing / 100 * float(data[CONF_CAR_CAPACITY]) * 1000)
            if a.car is not None:
                stored = a.car.capacity_wh * level / 100
        return ApplianceReading(
            on=on,
            power_w=power,
            current_a=number(self.hass.states.get(data.get(CONF_CURRENT) or "")),
            connected=connected,
            needed_wh=needed,
            stored_wh=stored,
        )

    def _snapshot(self, now: float) -> Snapshot:
        settings, measured = self.dispatcher.settings, self._home.measure()
        stored = None
        if settings.battery is not None and measured.battery_level is not None:
            stored = settings.battery.capacity_wh * measured.battery_level / 100
        committed, until = 0.0, now + STEP_S
        response = None
        clock, ledger = self._session.clock, self._session.data
        if clock is not None:
            interval = clock.interval_at(clock.channel(now))
            sold = ledger.committed_wh(interval)
            committed = sold * 3600 / clock.interval_s
            interval += clock.interval_s
            # One command for as long as it stays the same: inverters keep them in flash memory.
            while (
                sold > 0
                and ledger.committed_wh(interval) == sold
                and clock.real(interval) < now + _COMMITTED_S
            ):
                interval += clock.interval_s
            until = clock.real(interval)
            response = next((e for e in self._responses() if e.start <= now < e.end), None)
        return Snapshot(
            now=now,
            grid_w=measured.grid_power,
            battery_w=measured.battery_power,
            stored_wh=stored,
            appliances={a.id: self._reading(a) for a in settings.appliances},
            committed_w=committed,
            committed_until=until,
            permit=not ledger.suspended,
            limit_w=ledger.limit_w,
            response=response,
            buy=self._price_at(now)[0],
        )

    def _responses(self) -> list[Response]:
        """Return the response events that the home takes part in."""
        clock, account = self._session.clock, self._session.data.account
        if clock is None or account is None:
            return []
        return [
            Response(
                start=clock.real(start), end=clock.real(end), kind=kind, reward=reward_micro / 1e6
            )
            for event in account.responses
            if event.participation not in (None, "left") and not event.cancelled
            for start, end, kind, reward_micro in event.asks
        ]

    def _learn(self, snapshot: Snapshot) -> None:
        """Sum up sun and load by quarters of an hour, for the forecasts."""
        now, measured = snapshot.now, self._home.measure()
        quarter = int(now // STEP_S) * STEP_S
        if quarter != self._quarter:
            # A quarter that was mostly seen counts for all of it.
            if self._quarter and self._measured_s >= 0.8 * STEP_S:
                whole = STEP_S / self._measured_s
                self._sun.add(self._quarter, self._energy[0] * whole)
                self._load.add(self._quarter, self._energy[1] * whole)
            self._quarter, self._energy, self._measured_s = quarter, [0.0, 0.0], 0.0
            self._measured_at = max(quarter, self._measured_at or quarter)
        if self._measured_at is not None and measured.consumption_power is not None:
            seconds = min(180.0, max(0.0, now - self._measured_at))  # a clock may be set back
            own = 0.0
            for a in self.dispatcher.settings.appliances:
                reading = snapshot.appliances[a.id]
                if reading.on:
                    own += a.power_w if reading.power_w is None else reading.power_w
            load = max(0.0, measured.consumption_power - own)
            self._count_bought(now, seconds)
            self._energy[0] += (measured.pv_power or 0.0) * seconds / 3600
            self._energy[1] += load * seconds / 3600
            self._measured_s += seconds
        self._measured_at = now

    def _count_bought(self, now: float, seconds: float) -> None:
        """Count what the battery takes from the microgrid under a rule for the rule's limit."""
        battery, measured = self.data.decision.battery, self._home.measure()
        slot = None if self._plan is None else self._plan.slot_at(now)
        if battery is None or battery.mode is not Mode.CHARGE or slot is None:
            return
        taken = min(-(measured.battery_power or 0.0), measured.grid_power or 0.0)
        at = Slot(start=slot.start, seconds=slot.seconds, buy=slot.buy, sell=slot.sell)
        buying = [
            rule
            for rule in self._earnest()
            if rule.kind is RuleKind.BUY and rule.permits(at, self._zone)
        ]
        if buying and slot.bought_wh > 0 and taken > 0:
            self._count(min(buying, key=lambda rule: rule.spread).id, now, taken * seconds / 3600)

    def _earnest(self) -> list[TradingRule]:
        """Return the rules that trade."""
        rules = self.dispatcher.settings.rules
        return [rule for rule in rules if rule.enabled and not rule.dry_run]

    def solar_forecast(self, hours: int = 48) -> dict[str, float]:
        """Return Wh by the hour (ISO time) that the panels are expected to give."""
        start = int(dt_util.utcnow().timestamp()) // 3600 * 3600
        return {
            dt_util.utc_from_timestamp(start + 3600 * hour).isoformat(): round(
                self._sun.forecast(start + 3600 * hour, 3600)
            )
            for hour in range(hours)
        }

    # Deciding -------------------------------------------------------------------------------

    @callback
    def _step(self) -> None:
        if self._stopped:
            return
        now = dt_util.utcnow().timestamp()
        self._take_up_sales()
        try:
            snapshot = self._snapshot(now)
            self._learn(snapshot)
            decision = self.dispatcher.step(snapshot, self._plan)
        except Exception:
            # A mistake of ours must not leave the home without its next minute.
            LOGGER.exception("%s: the minute of %s can't be decided", self.name, now)
            return
        self._expect_change(now)
        for a in self.dispatcher.settings.appliances:
            made, data = decision.appliances[a.id], self._data[a.id]
            if made.send:
                switch = partial(self._async_switch, a, data, made.on, made.current_a)
                self._command(a.id, f"switch {a.name}", switch, forces=made.on)
            if made.send_given:
                give = partial(self._async_give_back, a, data, made.given_w, made.given_until)
                self._command(a.id, f"give back {a.name}", give, forces=made.given_w > 0)
        if decision.battery is not None and decision.battery.send:
            b = decision.battery
            tell = partial(self._async_battery, self._control, b.mode, b.power_w, b.until)
            self._command(_BATTERY, _BATTERY, tell, forces=b.mode is not Mode.AUTO)
        before, surplus = self.data.surplus, self._has_surplus(decision.surplus_w)
        self.async_set_updated_data(KeeperData(decision, self._plan, self._dry_plan, surplus))
        if None not in (before, surplus) and surplus is not before:
            told = {"available": surplus, "surplus_w": round(decision.surplus_w or 0.0)}
            async_dispatcher_send(self.hass, SIGNAL_SURPLUS, self.config_entry.entry_id, told)
        # Whoever is killed now has to know what he has set going.
        going = self.dispatcher.set_going()
        self._save(at_once=going != self._saved_going)
        self._saved_going = going
        due = self._plan is None or int(now // STEP_S) != int(self._plan.made_at // STEP_S)
        due = due or (self._session.data.connected and not self._planned_connected)
        if due and not self._planning.locked():
            self._do(self.async_replan(), "plan")

    def _expect_change(self, now: float) -> None:
        """Step at the very moment when what is sold begins or ends, if the next minute is later.

        A delivery that began with the minute would lack up to a fifteenth of a quarter of an hour.
        """
        if self._cancel_change is not None:
            self._cancel_change()
            self._cancel_change = None
        clock, ledger = self._session.clock, self._session.data
        if clock is None or clock.interval_s < _SOON_S * clock.rate:
            return  # a replay whose intervals pass too quickly for any device
        interval = clock.interval_at(clock.channel(now))
        sold = ledger.committed_wh(interval)
        while (begins := clock.real(interval + clock.interval_s)) <= now + _STEP.total_seconds():
            interval += clock.interval_s
            if ledger.committed_wh(interval) != sold:
                past = dt_util.utc_from_timestamp(begins + 0.001)  # however it was rounded
                self._cancel_change = async_track_point_in_utc_time(self.hass, self._change, past)
                return

    @callback
    def _change(self, _: datetime) -> None:
        self._cancel_change = None
        self._step()

    def _has_surplus(self, surplus_w: float | None) -> bool | None:
        if surplus_w is None:
            return None
        return surplus_w >= (_SURPLUS_OFF_W if self.data.surplus else _SURPLUS_ON_W)

    def _do(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        return self.config_entry.async_create_background_task(
            self.hass, work, name=f"{self.name} {what}", eager_start=False
        )

    def _command(
        self, device: str, what: str, work: Callable[[], Coroutine[Any, Any, None]], *, forces: bool
    ) -> None:
        """Tell a device something in place of what it is still being told."""
        known = self._commands.items()
        before = {task for task, (told, how, _) in known if (told, how) == (device, what)}

        async def tell() -> None:
            await _ended(before)
            await work()

        task = self._do(tell(), what)
        self._commands[task] = (device, what, forces)
        task.add_done_callback(lambda done: self._commands.pop(done, None))

    def _running(
        self, devices: Collection[str] | None = None, *, forcing: bool = False
    ) -> set[asyncio.Task[None]]:
        """Return what devices are being told, or only what sets them going."""
        return {
            task
            for task, (device, _, forces) in self._commands.items()
            if (devices is None or device in devices) and (forces or not forcing)
        }

    # Planning -------------------------------------------------------------------------------

    def _price_at(self, instant: float) -> tuple[float, float]:
        """Return what a kWh costs and brings at an instant, after fees."""
        buy, sell = self._prices.at(instant)
        return _ASSUMED_BUY if buy is None else buy, _ASSUMED_SELL if sell is None else sell

    def _slots(self, now: float) -> list[Slot]:
        clock, ledger = self._session.clock, self._session.data
        first = int(now // STEP_S) * STEP_S
        events = self._responses()
        slots = []
        for index in range(_HORIZON):
            start = first + STEP_S * index
            buy, sell = self._price_at(start)
            chosen = self._chosen_sun.energy_wh(start, STEP_S)
            event = next((e for e in events if e.start < start + STEP_S and start < e.end), None)
            committed = 0
            if clock is not None and not clock.replays:
                committed = sum(
                    ledger.committed_wh(at)
                    for at in range(
                        clock.next_boundary(start), start + STEP_S, max(1, clock.interval_s)
                    )
                )
            slots.append(
                Slot(
                    start=start,
                    seconds=STEP_S,
                    pv_wh=self._sun.forecast(start) if chosen is None else chosen,
                    load_wh=self._load.forecast(start),
                    buy=buy,
                    sell=sell,
                    committed_wh=committed,
                    limit_w=ledger.limit_w,
                    response="" if event is None else event.kind,
                    reward=0.0 if event is None else event.reward,
                )
            )
        return slots

    def _cars(self, snapshot: Snapshot) -> list[Car]:
        """Return the cars that are there and may give back."""
        found = []
        for a in self.dispatcher.settings.appliances:
            reading = snapshot.appliances[a.id]
            if a.car is None or reading.stored_wh is None or not reading.connected:
                continue
            if self.dispatcher.is_automatic(a):
                deadline = self.dispatcher.deadline(a, snapshot.now)
                battery = replace(a.car, deadline=deadline)
                found.append(Car(appliance_id=a.id, battery=battery, stored_wh=reading.stored_wh))
        return found

    async def async_replan(self) -> None:
        """Plan the next 24 hours anew, in the executor, and place the orders that are due."""
        async with self._planning:
            self._planned_connected = self._session.data.connected
            await self._prices.async_refresh(dt_util.utcnow().timestamp())
            await self._chosen_sun.async_refresh()
            if self._stopped:
                return
            self._take_up_sales()
            await self.sales.async_follow()
            now = dt_util.utcnow().timestamp()
            oldest = dt_util.now().date() - timedelta(days=_DAYS_KEPT)
            self._counted = {
                key: energy
                for key, energy in self._counted.items()
                if date.fromisoformat(key.partition("|")[2]) > oldest
            }
            settings, session = self.dispatcher.settings, self._session
            snapshot = self._snapshot(now)
            needs = [
                Need(
                    appliance_id=a.id,
                    energy_wh=need * a.most_w / 3600,
                    power_w=a.most_w,
                    earliest=now,
                    deadline=deadline,
                    whole=not a.variable and need <= 4 * 3600,
                    least_w=a.least_w,
                )
                for a, need, deadline in needs_of(self.dispatcher, snapshot.appliances, now)
            ]
            old, traded, cars = self._plan, self._traded(), self._cars(snapshot)

            def plan(slots: list[Slot], *, dry: bool) -> Plan:
                return plan_home(
                    now,
                    slots,
                    settings.rules,
                    settings.battery,
                    snapshot.stored_wh,
                    zone=self._zone,
                    cars=cars,
                    traded_wh=traded,
                    max_export_w=session.data.max_export_w,
                    dry=dry,
                    needs=needs,
                    old=None if dry else old,
                )

            def plans() -> tuple[Plan, Plan | None]:
                slots = self._slots(now)
                dry = any(rule.enabled and rule.dry_run for rule in settings.rules)
                return plan(slots, dry=False), plan(slots, dry=True) if dry else None

            made, dry = await self.hass.async_add_executor_job(plans)
            if not self._may_trade(settings):
                return  # the next step plans with what was changed meanwhile
            self._plan, self._dry_plan = made, dry
            self.async_set_updated_data(replace(self.data, plan=made, dry_plan=dry))
            await self._async_trade(now)

    async def _async_trade(self, now: float) -> None:
        """Place orders that are due; note what dry rules would have earned."""
        settings, clock = self.dispatcher.settings, self._session.clock
        longest = inf
        if clock is not None:
            longest = WINDOW_LIMIT_INTERVALS * clock.interval_s / clock.rate
        self._ordered = {key: at for key, at in self._ordered.items() if at > now - 86400}
        for plan, dry in ((self._plan, False), (self._dry_plan, True)):
            if plan is None:
                continue
            # Rules sell from the home's battery, or where there is none, from a car.
            for order in [
                order
                for source in (plan, *plan.cars.values())
                for order in due_orders(
                    source,
                    settings.rules,
                    now,
                    zone=self._zone,
                    gate_s=_GATE_S,
                    longest_s=longest,
                    traded_wh=self._traded(),
                )
            ]:
                if order.dry_run is not dry or order.request_id in self._ordered:
                    continue
                if dry:
                    earned = order.energy_wh / 1000 * self._price_at(order.start)[1]
                    self._count(order.rule_id, order.start, order.energy_wh)
                    self.earned[order.rule_id] = self.earned.get(order.rule_id, 0.0) + earned
                elif not self._may_trade(settings) or not await self._async_sell(order, settings):
                    continue
                self._ordered[order.request_id] = order.start
                self._save(at_once=True)

    @callback
    def _take_up_sales(self) -> None:
        """See what the ledger says was sold, in this run or an earlier one."""
        new = self.sales.adopt(self.dispatcher.settings.rules)
        for sale in new:
            if sale.rule_id == BY_HAND:
                continue
            earned = self.earned.get(sale.rule_id, 0.0)
            self.earned[sale.rule_id] = earned + sale.net_micro / 1e6
        self.sales.advance()
        if new:
            self._save(at_once=True)

    def _sold(self, request_id: str) -> Trade | None:
        trades = self._session.data.trades.values()
        return next((trade for trade in trades if trade.request_id == request_id), None)

    def _may_trade(self, settings: Settings) -> bool:
        """Return whether the rules are still those, and somebody is left to deliver."""
        return not self._stopped and settings is self.dispatcher.settings

    async def _async_sell(self, order: Order, settings: Settings) -> bool:
        """Sell under a rule, once; return whether it is sold."""
        clock = self._session.clock
        if clock is None or clock.replays or not self._session.data.connected:
            return False
        battery = self.data.decision.battery
        if self._session.data.suspended or (battery is not None and battery.fault):
            return False
        start, end = (dt_util.utc_from_timestamp(at) for at in (order.start, order.end))
        try:
            # Intervals hold whole Wh, and earlier sales are in them.
            most = self._seller.sellable_wh(start, end, order.max_power_w)
            if (wanted := min(order.energy_wh, most)) <= 0:
                return False
            quote = await self._seller.quote(wanted, start, end, max_power_w=order.max_power_w)
            # The quote has read the market anew: an earlier attempt's answer may have been lost.
            if not self._may_trade(settings):
                return False
            if self._sold(order.request_id) is None:
                energy_wh = quote.energy_wh
                if energy_wh <= 0 or quote.net_micro / energy_wh / 1000 < order.least_price:
                    return False
                await self._seller.sell(quote, order.request_id)
        except HomeAssistantError as error:
            self._tell(order.request_id, f"Nothing was sold: {error}")
            return False
        self._take_up_sales()
        return True

    def _tell(self, what: str, said: str) -> None:
        """Log a failure once, until it is another one."""
        if self._told.get(what) != said:
            self._told = {**dict(list(self._told.items())[-20:]), what: said}
            LOGGER.warning("%s: %s", self.config_entry.title, said)

    # Doing: what others' integrations and an owner's actions raise may be anything ------------

    async def _async_switch(
        self, a: Appliance, data: Mapping[str, Any], on: bool, current_a: float | None
    ) -> None:
        if on and self._stopped:
            return  # it has been left in its safe state since this was decided
        entity_id = data[CONF_ENTITY]
        domain = entity_id.partition(".")[0]
        temperature = data.get(CONF_ON_TEMPERATURE if on else CONF_OFF_TEMPERATURE)
        try:
            if on and current_a is not None and data.get(CONF_CURRENT):
                await self._async_call("number", "set_value", data[CONF_CURRENT], value=current_a)
            if a.kind in (Kind.CLIMATE, Kind.WATER_HEATER) and temperature is not None:
                await self._async_call(
                    domain, "set_temperature", entity_id, temperature=temperature
                )
                state = self.hass.states.get(entity_id)
                if not on or (state is not None and state.state != STATE_OFF):
                    return
            service = SERVICE_TURN_ON if on else SERVICE_TURN_OFF
            await self._async_call(domain, service, entity_id)
        except Exception as error:
            self._tell(a.id, f"{a.name} can't be switched: {_said(error)}")

    async def _async_call(self, domain: str, service: str, entity_id: str, **data: Any) -> None:
        await self.hass.services.async_call(
            domain,
            service,
            {ATTR_ENTITY_ID: entity_id, **data},
            blocking=True,
            context=self._context,
        )

    async def _async_battery(
        self, control: Mapping[str, Any], mode: Mode, power: float, until: float
    ) -> None:
        """Run the owner's actions of a mode."""
        if mode is not Mode.AUTO and not await self._async_noted():
            return
        actions = control.get(CONF_ACTIONS[mode])
        try:
            await self._async_run(actions, f"battery {mode}", power, until, mode=str(mode))
        except Exception as error:
            self.dispatcher.battery_untold()
            self._tell("battery", f"The battery can't be told {mode}: {_said(error)}")

    async def _async_give_back(
        self, a: Appliance, data: Mapping[str, Any], power: float, until: float
    ) -> None:
        """Run the owner's actions that let a car give back, or with no power those that end it."""
        if power > 0 and not await self._async_noted():
            return
        actions = data.get(CONF_GIVE_BACK if power > 0 else CONF_STOP_GIVING)
        try:
            await self._async_run(actions, f"{a.name} gives back", power, until)
        except Exception as error:
            self._tell(a.id, f"{a.name} can't be told to give back {power:.0f} W: {_said(error)}")

    async def _async_noted(self) -> bool:
        """Store that a command is running, for whoever is killed; return whether it may still."""
        if not self._stopped:
            await self._store.async_save(self._state())
        return not self._stopped

    async def _async_run(
        self, actions: Any, name: str, power: float, until: float, **variables: Any
    ) -> None:
        """Run an owner's actions with the power and the time that a command holds."""
        now = dt_util.utcnow().timestamp()
        ends = now + 86400 if until == inf else max(until, now)
        variables |= {
            "power_w": round(power),
            "until": dt_util.utc_from_timestamp(ends).isoformat(),
            "minutes": max(1, int((ends - now + 1) // 60)),
        }
        sequence = cv.SCRIPT_SCHEMA(actions)
        script = Script(self.hass, sequence, f"{self.config_entry.title} {name}", DOMAIN)
        await script.async_run(variables, context=self._context)

    # What is shown --------------------------------------------------------------------------

    def rule_status(self, rule_id: str) -> str:
        """Return what a rule does, one of ``keeper_sensor.RULE_STATUSES``."""
        rule = next((r for r in self.dispatcher.settings.rules if r.id == rule_id), None)
        states = {sale.state for sale in self.sales.of_rule(rule_id)}
        if DELIVERING in states:
            return DELIVERING  # what is sold is delivered, whether or not the rule is on
        if COMMITTED in states:
            return "sold"
        if rule is None or not rule.enabled:
            return "off"
        plan = self._dry_plan if rule.dry_run else self._plan
        if plan is not None and any(
            slot.sell_rule == rule_id if rule.kind is RuleKind.SELL else slot.bought_wh > 0
            for source in (plan, *plan.cars.values())
            for slot in source.slots
        ):
            return "dry_run" if rule.dry_run else "planned"
        return "waiting"

    @override
    async def _async_update_data(self) -> KeeperData:
        """Step when somebody asks for it."""
        self._step()
        return self.data


async def _ended(tasks: Collection[asyncio.Task[None]]) -> None:
    """Have tasks end, and wait until they have."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL_S)


def _told_by(data: Mapping[str, Any] | None) -> tuple[Any, ...]:
    """Return what tells an appliance's or battery's device what to do; other ways, another one."""
    return tuple((data or {}).get(key) for key in _WAYS)


def _said(error: Exception) -> str:
    """Return what an error says, or what it is called where it says nothing."""
    return str(error) or type(error).__name__
