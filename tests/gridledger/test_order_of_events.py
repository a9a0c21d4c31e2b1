"""Whatever comes first: what is stored, sold and switched where events meet one another."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock, patch

import pytest
from homeassistant.config_entries import ConfigEntryState, ConfigSubentry
from homeassistant.core import HomeAssistant, ServiceCall
from homeassistant.helpers.storage import Store
from homeassistant.util import dt as dt_util
from homeassistant.util.file import WriteError
from pytest_homeassistant_custom_component.common import async_fire_time_changed

from custom_components.gridledger import vault
from custom_components.gridledger.client.enrolment import Credentials
from custom_components.gridledger.client.errors import TransactionRefused
from custom_components.gridledger.clock import ChannelClock
from custom_components.gridledger.engine.trading import Order
from custom_components.gridledger.models import Trade
from custom_components.gridledger.outbox import Outbox
from custom_components.gridledger.renewal import async_renew_if_due
from custom_components.gridledger.session import LedgerSession

from .conftest import BATTERY_POWER, GRID_POWER, LEVEL, set_state
from .test_keeper import (
    APPLIANCE,
    BATTERY_ACTIONS,
    BOILER,
    RULE,
    UNIQUE_ID,
    add,
    entity,
    entry,
    live,
    sun,
)

__all__ = ["entry"]  # the fixture


async def stored(hass: HomeAssistant) -> dict[str, Any]:
    """What a process that is killed now leaves of what the home does by itself."""
    return await vault.keeper_store(hass, UNIQUE_ID).async_load() or {}


class Slow:
    """A device whose answer is waited for."""

    def __init__(self, hass: HomeAssistant, domain: str, *services: str) -> None:
        self.asked, self.answers, self.calls = asyncio.Event(), asyncio.Event(), list[str]()
        for service in services:
            hass.services.async_register(domain, service, self.call)

    async def call(self, call: ServiceCall) -> None:
        self.calls.append(call.service)
        self.asked.set()
        await self.answers.wait()


def a_fan(hass: HomeAssistant) -> None:
    """A fan that can be turned on."""

    async def turn_on(_: ServiceCall) -> None:
        hass.states.async_set("fan.attic", "on")

    hass.services.async_register("fan", "turn_on", turn_on)
    hass.states.async_set("fan.attic", "off")


async def until(check: Callable[[], Any]) -> None:
    """Let others go on, the disk too, until something has happened; the clock stands still."""
    for _ in range(6000):
        if check():
            return
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.01)
    pytest.fail("waited in vain")


class Disk:
    """A function of the disk that takes its time, once."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.asked, self.go_on, self.function = threading.Event(), threading.Event(), function

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self.asked.is_set():
            self.asked.set()
            self.go_on.wait(60)
        return self.function(*arguments, **options)


# What is stored -----------------------------------------------------------------------------------


async def test_a_start_that_fails_stores_nothing_over_what_there_was(
    hass: HomeAssistant, entry: Any
) -> None:
    rule = await add(hass, entry, "trading_rule", "Evening", RULE)
    entry.runtime_data.keeper.async_enable_rule(rule, True)
    assert await hass.config_entries.async_unload(entry.entry_id)
    before = await stored(hass)
    assert before["enabled"] == {rule: True}
    with patch.object(LedgerSession, "async_load", side_effect=OSError("the disk is busy")):
        assert not await hass.config_entries.async_setup(entry.entry_id)
    assert entry.state is ConfigEntryState.SETUP_ERROR
    assert await stored(hass) == before
    assert await hass.config_entries.async_reload(entry.entry_id)
    assert entry.runtime_data.keeper.rule_enabled(rule)


async def test_a_power_cut_takes_nothing_that_the_owner_said(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    rule = await add(hass, entry, "trading_rule", "Evening", RULE)
    boiler = await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    switch = entity(hass, "switch", rule, "enabled")
    for service, expected in (("turn_on", True), ("turn_off", False)):
        await hass.services.async_call("switch", service, {"entity_id": switch}, blocking=True)
        await live(hass, freezer, 1, 0)
        assert (await stored(hass))["enabled"] == {rule: expected}
    await live(hass, freezer, 10, 3000)
    assert hass.states.is_state(BOILER, "on")
    assert (await stored(hass))["dispatcher"]["appliances"][boiler]["ours"]
    # And little of what is counted and learnt.
    await live(hass, freezer, 60, 3000)
    now = dt_util.utcnow().timestamp()
    assert now - (await stored(hass))["dispatcher"]["last_step"] <= 900
    assert (await stored(hass))["load"]


async def test_what_is_deleted_stays_deleted(hass: HomeAssistant, entry: Any) -> None:
    keeper, session = entry.runtime_data.keeper, entry.runtime_data.session
    assert await hass.config_entries.async_unload(entry.entry_id)
    assert await stored(hass)
    assert await hass.config_entries.async_remove(entry.entry_id)
    assert not await stored(hass)
    # A plan that was being made takes up what was sold, and a device is told.
    session.clock = ChannelClock(900)
    start = int(dt_util.utcnow().timestamp()) // 900 * 900
    sold = Trade("T", "H-1", "X", ((start, 400),), 400, *[0] * 4, "TX", "R")
    session.data = replace(session.data, trades={"T": sold})
    keeper._take_up_sales()
    assert not await keeper._async_noted()
    async_fire_time_changed(hass, dt_util.utcnow() + timedelta(hours=1))
    await hass.async_block_till_done()
    assert not await stored(hass)


async def test_a_renewal_ends_before_its_home_is_removed(
    hass: HomeAssistant, entry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a thread has begun to write is written, whoever is cancelled."""
    secrets = await vault.async_load_secrets(hass, UNIQUE_ID)
    assert secrets is not None
    again = Credentials(secrets["certificate"].encode(), secrets["key"].encode())
    session = entry.runtime_data.session
    begun = session.client.identity.certificate.not_valid_before_utc
    renewal = "custom_components.gridledger.renewal"
    monkeypatch.setattr(f"{renewal}.reenroll", AsyncMock(return_value=again))
    monkeypatch.setattr(f"{renewal}.renewal_due", Mock(return_value=begun))
    key, write = vault._store(hass, UNIQUE_ID).key, Store._async_write_data
    slow = Disk(lambda writing: asyncio.run_coroutine_threadsafe(writing, hass.loop).result())

    async def writes(self: Store[Any], data: dict[str, Any]) -> None:
        if self.key != key:
            return await write(self, data)
        return await hass.async_add_executor_job(slow, write(self, data))

    with patch.object(Store, "_async_write_data", writes):
        entry.async_create_background_task(
            hass, async_renew_if_due(hass, entry, session), "renewal"
        )
        await hass.async_add_executor_job(slow.asked.wait, 60)
        removing = hass.async_create_task(hass.config_entries.async_remove(entry.entry_id))
        await asyncio.wait([removing], timeout=2)
        slow.go_on.set()
        await removing
        await hass.async_block_till_done()
    assert await vault.async_load_secrets(hass, UNIQUE_ID) is None


async def test_homes_that_join_at_once_keep_all_their_keys(
    hass: HomeAssistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Store.async_load

    async def slowly(self: Store[Any]) -> Any:
        found = await load(self)
        await asyncio.sleep(0.01)  # as a disk
        return found

    monkeypatch.setattr(Store, "async_load", slowly)
    names = [f"home-{number}" for number in range(5)]
    keys = await asyncio.gather(
        *(vault.async_pending_key(hass, "https://ca", one, "s", one.encode()) for one in names)
    )
    assert keys == [one.encode() for one in names]
    await asyncio.gather(
        vault.async_forget_pending(hass, names[0]),
        vault.async_pending_key(hass, "https://ca", "late", "s", b"late"),
        vault.async_forget_pending(hass, names[1]),
    )
    for one in (*names[2:], "late"):
        kept = await vault.async_pending_key(hass, "https://ca", one, "s", b"another")
        assert kept == one.encode()


async def test_a_key_that_is_not_on_disk_is_not_used(hass: HomeAssistant) -> None:
    """Home Assistant's store says so in its log alone."""
    full = patch.object(Store, "_async_write_data", side_effect=WriteError("full"))
    with full, pytest.raises(vault.NotStored, match="whether the disk is full"):
        await vault.async_pending_key(hass, "https://ca", "home", "s", b"key")
    assert await vault.async_pending_key(hass, "https://ca", "home", "s", b"new") == b"new"


async def test_a_meters_name_is_stored_with_its_key_or_not_at_all(
    hass: HomeAssistant, entry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings that are signed with one key for another's meter would all be refused."""
    session, outbox = entry.runtime_data.session, entry.runtime_data.outbox
    outbox.store_fact("meter_id", "HA-H-1")
    outbox.store_fact("meter_public_key", "an earlier one")
    await session.async_load()
    assert session.meter_id is None

    async def submit(_: str, __: str, asked: dict[str, Any]) -> None:
        if asked["meter_id"] == "HA-H-1":
            raise TransactionRefused("chaincode response 409, it has another key")

    monkeypatch.setattr(session.client, "submit", submit)
    transaction, done = Outbox._transaction, list[bool]()

    def power_cut(self: Outbox, statements: Any) -> None:
        if done:
            raise OSError("no power")
        done.append(True)
        transaction(self, statements)

    with patch.object(Outbox, "_transaction", power_cut), suppress(OSError):
        await session._register_meter()
    await session.async_load()
    assert session.meter_id in (None, "HA-H-1-2")


async def test_what_was_counted_first_is_stored_first(hass: HomeAssistant, entry: Any) -> None:
    """Also where whoever stored it has been cancelled meanwhile, as a session whose ledger went."""
    home, outbox = entry.runtime_data.home, entry.runtime_data.outbox
    slow = Disk(outbox.store_fact)
    with patch.object(outbox, "store_fact", slow):
        first = hass.async_create_task(home.async_save())
        await hass.async_add_executor_job(slow.asked.wait, 60)
        first.cancel()
        home._consumed_mwh = 7_000
        second = hass.async_create_task(home.async_save())
        await asyncio.wait([second], timeout=0.5)
        slow.go_on.set()
        await second
        await hass.async_block_till_done()
    assert outbox.fact("counters")["consumed_mwh"] == 7_000


async def test_a_meter_goes_on_after_its_ledger_once_it_has_begun(
    hass: HomeAssistant, entry: Any
) -> None:
    """The ledger may answer sooner than the disk."""
    home, session, outbox = (getattr(entry.runtime_data, n) for n in ("home", "session", "outbox"))
    session.clock = ChannelClock(900)
    boundary = int(dt_util.utcnow().timestamp()) // 900 * 900
    slow = Disk(outbox.fact)
    with patch.object(outbox, "fact", slow):
        home.async_adopt_clock(session.clock)
        await hass.async_add_executor_job(slow.asked.wait, 60)
        skipping = hass.async_create_task(home.async_skip_to(boundary, 5_000, 6_000))
        await asyncio.wait([skipping], timeout=0.2)
        slow.go_on.set()
        assert await skipping
    assert home.meter is not None
    assert (home.meter.cut_at, home.meter.registers_wh) == (boundary, (5_000, 6_000))


async def test_one_part_that_fails_to_end_holds_up_no_other(
    hass: HomeAssistant, entry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = entry.runtime_data
    runtime.home._consumed_mwh = 5_000
    monkeypatch.setattr(runtime.keeper._store, "async_save", AsyncMock(side_effect=OSError("full")))
    assert not await hass.config_entries.async_unload(entry.entry_id)
    assert runtime.session._task is None
    outbox = Outbox(Path(vault.outbox_path(hass, UNIQUE_ID)))
    assert outbox.fact("counters")["consumed_mwh"] == 5_000
    outbox.close()
    with pytest.raises(Exception, match="closed"):
        runtime.outbox.fact("counters")


# What is switched ---------------------------------------------------------------------------------


async def test_a_change_that_waits_for_a_device_undoes_no_later_one(
    hass: HomeAssistant, entry: Any, freezer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = entry.runtime_data.keeper
    slow = Slow(hass, "fan", "turn_off")
    a_fan(hass)
    attic = await add(hass, entry, "appliance", "Attic", {**APPLIANCE, "entity": "fan.attic"})
    keeper.async_override(attic, True, 3600)
    await live(hass, freezer, 2, 0)
    assert hass.states.is_state("fan.attic", "on")
    hass.config_entries.async_remove_subentry(entry, attic)
    await slow.asked.wait()
    for kind, title, data in (
        ("trading_rule", "Evening", RULE),
        ("appliance", "Boiler", APPLIANCE),
    ):
        subentry = ConfigSubentry(data=data, subentry_type=kind, title=title, unique_id=None)
        hass.config_entries.async_add_subentry(entry, subentry)
    rules = [one.id for one in keeper.dispatcher.settings.rules]
    for rule in rules:
        keeper.async_enable_rule(rule, True)
    keeper._step()  # a minute in between
    slow.answers.set()
    await hass.async_block_till_done()
    await add(hass, entry, "appliance", "Pump", {**APPLIANCE, "entity": "input_boolean.pump"})
    assert [keeper.rule_enabled(rule) for rule in rules] == [True]
    assert len(keeper.dispatcher.settings.appliances) == 2
    assert "unique" not in caplog.text
    assert "can't be decided" not in caplog.text


async def test_a_change_that_waits_for_a_device_leaves_nothing_behind_the_end(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    keeper = entry.runtime_data.keeper
    slow = Slow(hass, "fan", "turn_off")
    a_fan(hass)
    attic = await add(hass, entry, "appliance", "Attic", {**APPLIANCE, "entity": "fan.attic"})
    keeper.async_override(attic, True, 3600)
    await live(hass, freezer, 2, 0)
    hass.config_entries.async_remove_subentry(entry, attic)
    await slow.asked.wait()
    assert await hass.config_entries.async_unload(entry.entry_id)
    slow.answers.set()
    await hass.async_block_till_done()
    await keeper.async_configure()
    assert keeper._watched is None
    assert keeper._linking is None
    assert keeper._cancel_soon is None


@pytest.mark.parametrize("by", ["unload", "delete"])
async def test_actions_that_take_their_time_end_before_the_battery_is_left(
    hass: HomeAssistant, entry: Any, freezer: Any, by: str
) -> None:
    """Or their last step would come after what leaves it in automatic."""
    told: list[str] = []
    released = asyncio.Event()

    async def say(call: ServiceCall) -> None:
        told.append(call.service)
        if call.service == "auto":
            released.set()
        if call.service == "wake":
            await released.wait()

    for service in ("wake", "hold", "auto"):
        hass.services.async_register("test", service, say)
    actions = BATTERY_ACTIONS | {"action_hold": [{"action": "test.wake"}, {"action": "test.hold"}]}
    battery = await add(hass, entry, "battery_control", "Battery", actions)
    set_state(hass, LEVEL, 20, "%")
    set_state(hass, GRID_POWER, 500, "W")
    set_state(hass, BATTERY_POWER, 0, "W")
    freezer.tick(timedelta(seconds=60))
    async_fire_time_changed(hass)
    await until(lambda: "wake" in told)
    if by == "delete":
        hass.config_entries.async_remove_subentry(entry, battery)
    else:
        assert await hass.config_entries.async_unload(entry.entry_id)
    await hass.async_block_till_done()
    assert told == ["wake", "auto"]


async def test_what_stops_a_device_is_told_to_its_end(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    """Home Assistant cancels what an entry does in the background; the rest of it would be lost."""
    told: list[str] = []
    go_on = asyncio.Event()

    async def say(call: ServiceCall) -> None:
        told.append(call.service)
        if call.service == "auto":
            await go_on.wait()
            told.append("done")

    for service in ("hold", "auto"):
        hass.services.async_register("test", service, say)
    await add(hass, entry, "battery_control", "Battery", BATTERY_ACTIONS)
    set_state(hass, LEVEL, 20, "%")
    await live(hass, freezer, 2, -500)
    assert told == ["hold"]
    set_state(hass, LEVEL, 60, "%")
    freezer.tick(timedelta(minutes=30))
    sun(hass, 0)
    async_fire_time_changed(hass)
    await until(lambda: "auto" in told)
    unloading = hass.async_create_task(hass.config_entries.async_unload(entry.entry_id))
    await until(lambda: entry.runtime_data.keeper._stopped)
    for _ in range(50):
        await asyncio.sleep(0)
    go_on.set()
    assert await unloading
    assert told[-1] == "done"


async def test_a_newer_command_takes_the_place_of_one_that_hangs(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    slow = Slow(hass, "fan", "turn_on", "turn_off")
    hass.states.async_set("fan.attic", "off")
    keeper = entry.runtime_data.keeper
    attic = await add(hass, entry, "appliance", "Attic", {**APPLIANCE, "entity": "fan.attic"})
    for _ in range(3):  # is told again
        keeper.async_override(attic, True, 3600)
        freezer.tick(timedelta(seconds=61))
        async_fire_time_changed(hass)
        for _ in range(20):
            await asyncio.sleep(0)
    assert slow.calls.count("turn_on") > 1
    assert len(keeper._commands) == 1
    slow.answers.set()


async def test_a_charger_that_is_deleted_while_it_is_told_is_not_turned_on(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    slow = Slow(hass, "number", "set_value")
    hass.states.async_set("number.amperes", "6")
    data = {"kind": "charger", "entity": BOILER, "current": "number.amperes", "priority": 1}
    car = await add(hass, entry, "appliance", "Car", data)
    entry.runtime_data.keeper.async_override(car, True, 3600)
    await slow.asked.wait()
    hass.config_entries.async_remove_subentry(entry, car)
    await asyncio.sleep(0)
    slow.answers.set()
    await hass.async_block_till_done()
    assert hass.states.is_state(BOILER, "off")


async def test_an_appliance_that_gets_another_switch_leaves_the_old_one_off(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    boiler = await add(hass, entry, "appliance", "Boiler", {**APPLIANCE, "daily_minimum": 60})
    await live(hass, freezer, 10, 3000)
    assert hass.states.is_state(BOILER, "on")
    before = entry.runtime_data.keeper.data.decision.appliances[boiler]
    hass.config_entries.async_update_subentry(
        entry, entry.subentries[boiler], data={**APPLIANCE, "entity": "input_boolean.pump"}
    )
    await hass.async_block_till_done()
    assert hass.states.is_state(BOILER, "off")
    after = entry.runtime_data.keeper.data.decision.appliances[boiler]
    assert after.run_s >= before.run_s > 0
    await live(hass, freezer, 15, 3000)
    assert hass.states.is_state("input_boolean.pump", "on"), "nobody has switched it by hand"


async def test_a_battery_that_gets_other_actions_is_left_by_its_old_ones(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    told: list[str] = []

    async def say(call: ServiceCall) -> None:
        told.append(call.service)

    for service in ("hold", "auto", "hold_two", "auto_two"):
        hass.services.async_register("test", service, say)
    battery = await add(hass, entry, "battery_control", "Battery", BATTERY_ACTIONS)
    set_state(hass, LEVEL, 20, "%")
    await live(hass, freezer, 2, -500)
    assert told == ["hold"]
    other = {f"action_{mode}": [{"action": f"test.{mode}_two"}] for mode in ("auto", "hold")}
    hass.config_entries.async_update_subentry(
        entry, entry.subentries[battery], data={**BATTERY_ACTIONS, **other}
    )
    await live(hass, freezer, 1, -500)
    assert told == ["hold", "auto", "hold_two"]


async def test_devices_that_hang_hold_up_nothing_that_was_measured(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    slow = Slow(hass, "fan", "turn_off")
    a_fan(hass)
    keeper, runtime = entry.runtime_data.keeper, entry.runtime_data
    attic = await add(hass, entry, "appliance", "Attic", {**APPLIANCE, "entity": "fan.attic"})
    keeper.async_override(attic, True, 3600)
    await live(hass, freezer, 2, 0)
    runtime.home._consumed_mwh = 9_000
    unloading = hass.async_create_task(hass.config_entries.async_unload(entry.entry_id))
    await slow.asked.wait()
    await hass.async_add_executor_job(time.sleep, 0.5)
    assert runtime.home._stopped
    assert not unloading.done()
    assert runtime.outbox.fact("counters")["consumed_mwh"] == 9_000
    slow.answers.set()
    assert await unloading


# What is sold -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["turned off", "stopped"])
async def test_nothing_is_sold_under_a_rule_that_ends_while_a_quote_is_asked_for(
    hass: HomeAssistant, entry: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    rule = await add(hass, entry, "trading_rule", "Evening", {**RULE, "dry_run": False})
    keeper, session = entry.runtime_data.keeper, entry.runtime_data.session
    keeper.async_enable_rule(rule, True)
    session.clock = ChannelClock(900)
    session.data = replace(session.data, connected=True)
    now = dt_util.utcnow().timestamp()
    sell = AsyncMock()

    async def quote(*_: Any, **__: Any) -> Any:
        if what == "stopped":
            await keeper.async_stop()
        else:
            keeper.async_enable_rule(rule, False)
        return Mock(energy_wh=500, net_micro=10**9)

    monkeypatch.setattr(keeper._seller, "sellable_wh", lambda *_: 500)
    monkeypatch.setattr(keeper._seller, "quote", quote)
    monkeypatch.setattr(keeper._seller, "sell", sell)
    order = Order(
        rule_id=rule,
        request_id="R",
        start=now + 900,
        end=now + 1800,
        energy_wh=500,
        least_price=0.01,
        dry_run=False,
    )
    assert not await keeper._async_sell(order, keeper.dispatcher.settings)
    sell.assert_not_awaited()


# What the clock does ------------------------------------------------------------------------------


async def test_a_clock_that_is_set_back_takes_nothing_from_a_count(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    keeper = entry.runtime_data.keeper
    await live(hass, freezer, 3, 2000)
    before = keeper._measured_s
    freezer.move_to(dt_util.utcnow() - timedelta(seconds=100))
    sun(hass, 2000)
    keeper._step()
    assert keeper._measured_s >= before or keeper._measured_s == 0
    assert min(keeper._energy) >= 0


async def test_a_session_ends_though_one_of_its_calls_fails_at_that_moment(
    hass: HomeAssistant, entry: Any
) -> None:
    """Of several calls at once the failure is told, and nobody would learn of the end."""
    session = entry.runtime_data.session
    await session.async_stop()
    asked, refused = asyncio.Event(), asyncio.Event()

    async def evaluate(_: str, function: str, *__: Any, **___: Any) -> Any:
        match function:
            case "metering:Settings":
                return {"interval_s": 900}
            case "registry:Settings":
                return {"currency": "EUR"}
            case "registry:Connection":
                raise TransactionRefused("it is not registered")
            case "wallet:Balance":
                asked.set()
                await refused.wait()
                raise TransactionRefused("it is not registered")
        return await asyncio.Event().wait()

    with patch.object(session.client, "evaluate", evaluate):
        session.async_start()
        await asked.wait()
        refused.set()
        await asyncio.sleep(0)  # it has failed, and is not told yet
        await asyncio.wait_for(session.async_stop(), 60)
