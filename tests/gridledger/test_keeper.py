"""What a home does by itself, in a real Home Assistant whose ledger is away."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import Mock, patch

import pytest
from homeassistant.config_entries import ConfigEntryState, ConfigSubentry
from homeassistant.const import EVENT_HOMEASSISTANT_STOP
from homeassistant.core import HomeAssistant, ServiceCall
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.helpers import device_registry as dr
from homeassistant.helpers import entity_registry as er
from homeassistant.setup import async_setup_component
from homeassistant.util import dt as dt_util
from pytest_homeassistant_custom_component.common import (
    MockConfigEntry,
    async_capture_events,
    async_fire_time_changed,
    async_mock_service,
)

from consortium.identity.certificates import CertificateAuthority, certificate_pem, generate_key
from consortium.identity.certificates import key_pem as pem_of
from custom_components.gridledger import vault
from custom_components.gridledger.battery_presets import PRESETS, fill
from custom_components.gridledger.client import generate_key_pem
from custom_components.gridledger.clock import ChannelClock
from custom_components.gridledger.const import DOMAIN
from custom_components.gridledger.energy import async_get_solar_forecast
from custom_components.gridledger.engine import REASONS, Mode
from custom_components.gridledger.models import AccountData, Permit, ResponseEvent, Trade
from tests.gridledger.asking import calendar_events, holds

from .conftest import BATTERY_POWER, GRID_POWER, LEVEL, PLANT, PV_POWER, report_plant, set_state
from .test_automations import automation
from .test_texts import LANGUAGES, read

BOILER = "input_boolean.boiler"
UNIQUE_ID = "neighbourhood:H-1"
APPLIANCE = {"kind": "switch", "entity": BOILER, "power": 1000, "priority": 1}
RULE = {
    "kind": "sell",
    "price_limit": 0.05,
    "spread": 0.0,
    "reserve": 30,
    "energy_limit": 4,
    "dry_run": True,
}


@pytest.fixture
async def entry(hass: HomeAssistant, sockets: None) -> AsyncIterator[MockConfigEntry]:
    """A home that has joined; nobody listens at its gateway's address."""
    authority = CertificateAuthority.create("Aurora", "aurora.example")
    key = generate_key()
    certificate = authority.issue("h-1", "client", key.public_key())
    await vault.async_save_secrets(
        hass,
        UNIQUE_ID,
        {
            "msp_id": "AuroraMSP",
            "certificate": certificate_pem(certificate).decode(),
            "key": pem_of(key).decode(),
            "meter_key": generate_key_pem().decode(),
            "salt_secret": "00" * 32,
        },
    )
    assert await async_setup_component(hass, "homeassistant", {})
    assert await async_setup_component(
        hass, "input_boolean", {"input_boolean": {"boiler": {}, "pump": {}}}
    )
    report_plant(hass, level=50)
    made = MockConfigEntry(
        domain=DOMAIN,
        title="H-1",
        unique_id=UNIQUE_ID,
        data={
            "gateways": ["127.0.0.1:9"],
            "channel": "neighbourhood",
            "ca_url": "https://127.0.0.1:9",
            "connection_id": "H-1",
            "enrollment_id": "h-1",
            "msp_id": "AuroraMSP",
            "ca_bundle": certificate_pem(authority.certificate).decode(),
            "plant": PLANT,
        },
    )
    made.add_to_hass(hass)
    assert await hass.config_entries.async_setup(made.entry_id)
    await hass.async_block_till_done()
    yield made
    if made.state is ConfigEntryState.LOADED:
        await hass.config_entries.async_unload(made.entry_id)
        await hass.async_block_till_done()


def sun(hass: HomeAssistant, surplus_w: float, battery_w: float = 0) -> None:
    """Report a surplus, of which the boiler takes its part."""
    own = 1000 if hass.states.is_state(BOILER, "on") else 0
    set_state(hass, GRID_POWER, own - surplus_w, "W")
    set_state(hass, PV_POWER, 4.0, "kW")
    set_state(hass, BATTERY_POWER, battery_w, "W")


async def live(hass: HomeAssistant, freezer: Any, minutes: int, surplus_w: float) -> None:
    """Let minutes pass, one by one."""
    for _ in range(minutes):
        sun(hass, surplus_w)
        freezer.tick(timedelta(seconds=60))
        async_fire_time_changed(hass)
        await hass.async_block_till_done(wait_background_tasks=False)
        for _ in range(3):
            await hass.async_block_till_done(wait_background_tasks=False)


async def add(hass: HomeAssistant, entry: Any, kind: str, title: str, data: Any) -> str:
    subentry = ConfigSubentry(data=data, subentry_type=kind, title=title, unique_id=None)
    hass.config_entries.async_add_subentry(entry, subentry)
    await hass.async_block_till_done()
    return str(subentry.subentry_id)


def entity(hass: HomeAssistant, platform: str, sub: str, key: str) -> str:
    found = er.async_get(hass).async_get_entity_id(platform, DOMAIN, f"{UNIQUE_ID}_{sub}_{key}")
    assert found is not None
    return found


async def test_appliance_runs_on_surplus_and_stops_without(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    sub = await add(hass, entry, "appliance", "Boiler", {**APPLIANCE, "minimum_on": 5})
    await live(hass, freezer, 10, 2500)
    assert hass.states.is_state(BOILER, "on")
    status = hass.states.get(entity(hass, "sensor", sub, "status"))
    assert status is not None
    assert status.state == "on"
    assert status.attributes["reason"].startswith("on: ")
    assert status.attributes["reason_key"] in REASONS
    await live(hass, freezer, 20, 0)
    assert hass.states.is_state(BOILER, "off")


async def test_four_entities_that_come_and_go_without_a_reload(
    hass: HomeAssistant, entry: Any
) -> None:
    runtime = entry.runtime_data
    sub = await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    registry = er.async_get(hass)
    ours = [e for e in registry.entities.values() if e.config_subentry_id == sub]
    assert len(ours) == 4
    assert all(hass.states.get(e.entity_id) is not None for e in ours)
    devices = dr.async_entries_for_config_entry(dr.async_get(hass), entry.entry_id)
    identifier = (DOMAIN, f"{UNIQUE_ID}_{sub}")
    assert [device.name for device in devices if identifier in device.identifiers] == ["Boiler"]

    hass.config_entries.async_update_subentry(
        entry, entry.subentries[sub], data={**APPLIANCE, "power": 1500}
    )
    await hass.async_block_till_done()
    assert runtime.keeper.dispatcher.settings.appliances[0].power_w == 1500

    hass.config_entries.async_remove_subentry(entry, sub)
    await hass.async_block_till_done()
    assert not [e for e in registry.entities.values() if e.config_subentry_id == sub]
    assert runtime.keeper.dispatcher.settings.appliances == ()
    assert entry.runtime_data is runtime, "the entry was not reloaded"
    assert entry.state is ConfigEntryState.LOADED


async def test_override_by_action_and_select_expires(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    sub = await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    answer = await hass.services.async_call(
        DOMAIN,
        "run_appliance",
        {"appliance": "boiler", "duration": {"minutes": 10}},
        blocking=True,
        return_response=True,
    )
    assert answer is not None
    assert answer["on"] is True
    assert answer["until"]
    await live(hass, freezer, 2, 0)
    assert hass.states.is_state(BOILER, "on")
    select = entity(hass, "select", sub, "override")
    assert hass.states.is_state(select, "on")
    await live(hass, freezer, 12, 0)
    assert hass.states.is_state(BOILER, "off")
    assert hass.states.is_state(select, "none")

    await hass.services.async_call(
        "select", "select_option", {"entity_id": select, "option": "on"}, blocking=True
    )
    await live(hass, freezer, 1, 0)
    assert hass.states.is_state(BOILER, "on")
    answer = await hass.services.async_call(
        DOMAIN,
        "override",
        {"appliance": BOILER, "mode": "automatic"},
        blocking=True,
        return_response=True,
    )
    assert answer is not None
    assert answer["until"] is None


async def test_unknown_appliance_is_named(hass: HomeAssistant, entry: Any) -> None:
    await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    with pytest.raises(ServiceValidationError) as raised:
        await hass.services.async_call(
            DOMAIN, "run_appliance", {"appliance": "sauna"}, blocking=True
        )
    assert raised.value.translation_key == "appliance_not_found"
    assert raised.value.translation_placeholders == {"appliance": "sauna", "known": "Boiler"}


async def test_automatic_off_leaves_the_appliance_alone(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    sub = await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    switch = entity(hass, "switch", sub, "automatic")
    assert hass.states.is_state(switch, "on")
    await hass.services.async_call("switch", "turn_off", {"entity_id": switch}, blocking=True)
    await live(hass, freezer, 10, 3000)
    assert hass.states.is_state(BOILER, "off")
    assert hass.states.is_state(entity(hass, "sensor", sub, "status"), "manual")
    await hass.services.async_call("switch", "turn_on", {"entity_id": switch}, blocking=True)
    await live(hass, freezer, 5, 3000)
    assert hass.states.is_state(BOILER, "on")


async def test_unload_turns_off_what_was_switched_on_and_remembers(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    sub = await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    await live(hass, freezer, 15, 3000)
    assert hass.states.is_state(BOILER, "on")
    assert await hass.config_entries.async_unload(entry.entry_id)
    await hass.async_block_till_done()
    assert hass.states.is_state(BOILER, "off")

    assert await hass.config_entries.async_setup(entry.entry_id)
    await hass.async_block_till_done()
    decision = entry.runtime_data.keeper.data.decision.appliances[sub]
    assert decision.run_s > 0


async def test_deleted_appliance_is_turned_off(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    sub = await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    await live(hass, freezer, 10, 3000)
    assert hass.states.is_state(BOILER, "on")
    hass.config_entries.async_remove_subentry(entry, sub)
    await hass.async_block_till_done()
    assert hass.states.is_state(BOILER, "off")


async def test_plan_is_made_without_a_ledger_and_told(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    freezer.move_to(dt_util.start_of_local_day() + timedelta(days=1, hours=9))  # a whole day ahead
    await add(hass, entry, "appliance", "Boiler", {**APPLIANCE, "daily_minimum": 30})
    await live(hass, freezer, 2, 0)
    await entry.runtime_data.keeper.async_replan()
    answer = await hass.services.async_call(
        DOMAIN, "get_plan", {}, blocking=True, return_response=True
    )
    assert answer is not None
    plan = answer["plan"]
    assert isinstance(plan, dict)
    assert len(plan["slots"]) == 96
    assert all(slot["reason"] and slot["reason_key"] in REASONS for slot in plan["slots"])
    assert sum(run["energy_kwh"] for run in plan["runs"]["Boiler"]) == pytest.approx(0.5, abs=0.01)


async def test_rule_is_off_until_turned_on_and_dry_until_told(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    set_state(hass, LEVEL, 90, "%")
    sub = await add(hass, entry, "trading_rule", "Evening", RULE)
    switch, status = (
        entity(hass, "switch", sub, "enabled"),
        entity(hass, "sensor", sub, "rule_status"),
    )
    assert hass.states.is_state(switch, "off")
    assert hass.states.is_state(status, "off")
    keeper = entry.runtime_data.keeper
    await keeper.async_replan()
    assert not any(slot.sold_wh for slot in keeper.data.plan.slots)
    await hass.services.async_call("switch", "turn_on", {"entity_id": switch}, blocking=True)
    await keeper.async_replan()
    assert not any(slot.sold_wh for slot in keeper.data.plan.slots), "dry"
    assert keeper.data.dry_plan is not None
    await hass.services.async_call("switch", "turn_off", {"entity_id": switch}, blocking=True)
    await keeper.async_replan()
    assert keeper.data.dry_plan is None
    assert hass.states.is_state(status, "off")


BATTERY_ACTIONS = {
    "advise_only": False,
    "round_trip": 90,
    "action_auto": [{"action": "test.auto"}],
    "action_hold": [{"action": "test.hold"}],
    "action_charge": [
        {"action": "test.charge", "data": {"power": "{{ power_w }}", "until": "{{ until }}"}}
    ],
}


async def test_battery_is_driven_by_the_owners_actions_and_left_in_automatic(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    held = async_mock_service(hass, "test", "hold")
    automatic = async_mock_service(hass, "test", "auto")
    await add(hass, entry, "battery_control", "Battery", BATTERY_ACTIONS)
    set_state(hass, LEVEL, 20, "%")  # at its reserve, and the house draws
    await live(hass, freezer, 2, -500)
    assert len(held) == 1
    plan = hass.states.get(
        str(er.async_get(hass).async_get_entity_id("sensor", DOMAIN, f"{UNIQUE_ID}_plan"))
    )
    assert plan is not None
    assert plan.state == "hold"
    assert plan.attributes["reason_key"] == "at_reserve"
    assert await hass.config_entries.async_unload(entry.entry_id)
    await hass.async_block_till_done()
    assert len(automatic) == 1


async def test_what_was_sold_is_delivered_from_its_first_second_to_its_last(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    """A step each minute would begin and end up to a minute late."""
    discharged = async_mock_service(hass, "test", "discharge")
    automatic = async_mock_service(hass, "test", "auto")
    async_mock_service(hass, "test", "hold")
    actions = BATTERY_ACTIONS | {"action_discharge": [{"action": "test.discharge"}]}
    await add(hass, entry, "battery_control", "Battery", actions)
    session = entry.runtime_data.session
    session.clock = ChannelClock(900)
    begins = (int(dt_util.utcnow().timestamp()) // 900 + 2) * 900
    set_state(hass, LEVEL, 80, "%")

    async def at(second: float) -> None:
        freezer.move_to(dt_util.utc_from_timestamp(second))
        power = 1600 if len(discharged) > len(automatic) else 0
        sun(hass, power, power)
        async_fire_time_changed(hass)
        for _ in range(4):
            await hass.async_block_till_done(wait_background_tasks=False)

    await at(begins - 90)
    sold = Trade("T", "H-1", "X", ((begins, 400), (begins + 900, 400)), 800, *[0] * 4, "TX", "R")
    session.async_set_updated_data(replace(session.data, trades={"T": sold}))
    # Told by the ledger, and not only by the next minute.
    await at(begins - 45)
    await at(begins - 29)
    assert not discharged
    await at(begins + 0.5)
    assert len(discharged) == 1
    await at(begins + 900.5)
    assert len(discharged) == 1, "one command for all of it"
    await at(begins + 1800 - 20)
    assert not automatic
    await at(begins + 1800.5)
    assert len(automatic) == 1


async def test_battery_is_left_in_automatic_when_its_control_is_deleted(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    held = async_mock_service(hass, "test", "hold")
    automatic = async_mock_service(hass, "test", "auto")
    sub = await add(hass, entry, "battery_control", "Battery", BATTERY_ACTIONS)
    set_state(hass, LEVEL, 20, "%")
    await live(hass, freezer, 2, -500)
    assert (len(held), len(automatic)) == (1, 0)
    hass.config_entries.async_remove_subentry(entry, sub)
    await hass.async_block_till_done()
    assert len(automatic) == 1


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_device_that_fails_leaves_no_other_one_on(
    hass: HomeAssistant, entry: Any, freezer: Any, hangs: bool
) -> None:
    """Whatever its integration raises, and also where it never answers."""
    async_mock_service(hass, "test", "hold")
    automatic = async_mock_service(hass, "test", "auto")
    await add(hass, entry, "battery_control", "Battery", BATTERY_ACTIONS)
    fan = await add(hass, entry, "appliance", "Attic", {**APPLIANCE, "entity": "fan.attic"})
    boiler = await add(hass, entry, "appliance", "Boiler", APPLIANCE)

    async def turn(call: ServiceCall) -> None:
        if call.service == "turn_off":
            if hangs:
                await asyncio.Event().wait()
            raise ZeroDivisionError
        hass.states.async_set("fan.attic", "on")

    for service in ("turn_on", "turn_off"):
        hass.services.async_register("fan", service, turn)
    hass.states.async_set("fan.attic", "off")
    set_state(hass, LEVEL, 20, "%")  # at its reserve, and the house draws
    for sub in (fan, boiler):
        entry.runtime_data.keeper.async_override(sub, True, 3600)
    await live(hass, freezer, 2, -500)
    assert hass.states.is_state("fan.attic", "on")
    assert hass.states.is_state(BOILER, "on")
    unloading = hass.async_create_task(hass.config_entries.async_unload(entry.entry_id))
    for _ in range(1000):
        freezer.tick(timedelta(seconds=1))
        await asyncio.sleep(0)
        if unloading.done():
            break
    assert unloading.result()
    assert hass.states.is_state(BOILER, "off")
    assert len(automatic) == 1
    assert entry.state is ConfigEntryState.NOT_LOADED


async def test_what_was_decided_before_the_stop_is_not_done_after_it(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    held = async_mock_service(hass, "test", "hold")
    automatic = async_mock_service(hass, "test", "auto")
    given = async_mock_service(hass, "test", "give")
    await add(hass, entry, "battery_control", "Battery", BATTERY_ACTIONS)
    sub = await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    car = await add(hass, entry, "appliance", "Car", CAR)
    set_state(hass, LEVEL, 20, "%")
    await live(hass, freezer, 2, -500)
    keeper, stored = entry.runtime_data.keeper, asyncio.Event()
    assert (len(held), len(automatic)) == (1, 0)
    save = keeper._store.async_save

    async def slowly(state: Any) -> None:
        await stored.wait()
        await save(state)

    by_id = {a.id: a for a in keeper.dispatcher.settings.appliances}
    until = dt_util.utcnow().timestamp() + 900
    with patch.object(keeper._store, "async_save", slowly):
        late = [
            hass.async_create_task(keeper._async_battery(keeper._control, Mode.HOLD, 0.0, until)),
            hass.async_create_task(keeper._async_give_back(by_id[car], CAR, 1000.0, until)),
        ]
        unloading = hass.async_create_task(hass.config_entries.async_unload(entry.entry_id))
        await asyncio.sleep(0)
        late.append(hass.async_create_task(keeper._async_switch(by_id[sub], APPLIANCE, True, None)))
        stored.set()
        await asyncio.gather(unloading, *late)
    assert (len(held), len(automatic), len(given)) == (1, 1, 0)
    assert hass.states.is_state(BOILER, "off")


async def test_home_assistant_stops(hass: HomeAssistant, entry: Any, freezer: Any) -> None:
    await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    await live(hass, freezer, 10, 3000)
    assert hass.states.is_state(BOILER, "on")
    hass.bus.async_fire(EVENT_HOMEASSISTANT_STOP)
    await hass.async_block_till_done()
    assert hass.states.is_state(BOILER, "off")
    await live(hass, freezer, 5, 3000)
    assert hass.states.is_state(BOILER, "off"), "nothing is decided any more"


async def test_a_mistake_costs_one_minute(
    hass: HomeAssistant,
    entry: Any,
    freezer: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    with monkeypatch.context() as broken:
        broken.setattr(entry.runtime_data.keeper.dispatcher, "step", lambda *_: 1 / 0)
        await live(hass, freezer, 1, 3000)
    assert "can't be decided" in caplog.text
    await live(hass, freezer, 10, 3000)
    assert hass.states.is_state(BOILER, "on")


async def test_a_dry_rule_counts_what_it_would_have_sold_once(
    hass: HomeAssistant, entry: Any, freezer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    freezer.move_to("2026-06-20T10:00:00+00:00")
    set_state(hass, LEVEL, 90, "%")
    keeper = entry.runtime_data.keeper
    peak = dt_util.utcnow().timestamp() + 1800
    monkeypatch.setattr(keeper._prices, "at", lambda at: (0.2, 0.5 if at < peak else 0.05))
    sub = await add(hass, entry, "trading_rule", "Evening", {**RULE, "energy_limit": 1})
    keeper.async_enable_rule(sub, True)
    await keeper.async_replan()
    assert keeper.rule_status(sub) == "dry_run"
    await live(hass, freezer, 16, 0)
    await keeper.async_replan()
    would = keeper.traded_wh(sub)
    assert 0 < would <= 1000
    assert keeper.earned[sub] == pytest.approx(would / 1000 * 0.5)
    await keeper.async_replan()
    assert keeper.traded_wh(sub) == would
    # In earnest it sells nothing without a ledger; deleted, it leaves nothing behind.
    hass.config_entries.async_update_subentry(
        entry, entry.subentries[sub], data={**RULE, "dry_run": False}
    )
    await hass.async_block_till_done()
    await keeper.async_replan()
    assert keeper.traded_wh(sub) == would
    hass.config_entries.async_remove_subentry(entry, sub)
    await hass.async_block_till_done()
    assert not keeper.rule_enabled(sub)


async def test_killed_home_assistant_finds_its_command_again(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    await add(hass, entry, "battery_control", "Battery", BATTERY_ACTIONS)
    held = async_mock_service(hass, "test", "hold")
    set_state(hass, LEVEL, 20, "%")
    await live(hass, freezer, 2, -500)
    assert len(held) == 1
    # What is on disk now is all that a killed process leaves.
    store = vault.keeper_store(hass, UNIQUE_ID)
    stored = await store.async_load()
    assert stored is not None
    assert stored["dispatcher"]["battery"]["mode"] == "hold"
    hass.services.async_remove("test", "hold")
    assert await hass.config_entries.async_unload(entry.entry_id)
    await store.async_save(stored)
    set_state(hass, LEVEL, 60, "%")

    # The inverter's integration isn't up yet when it begins again: it is told as soon as it is.
    assert await hass.config_entries.async_setup(entry.entry_id)
    await live(hass, freezer, 1, 0)
    automatic = async_mock_service(hass, "test", "auto")
    await live(hass, freezer, 2, 0)
    assert len(automatic) == 1


async def test_suspended_permit_and_response_events_are_followed(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    sub = await add(hass, entry, "appliance", "Boiler", APPLIANCE)
    session = entry.runtime_data.session
    session.clock = ChannelClock(900)
    now = int(dt_util.utcnow().timestamp())

    def reason() -> str:
        return str(entry.runtime_data.keeper.data.decision.appliances[sub].reason.key)

    def tell(**account: Any) -> None:
        session.async_set_updated_data(replace(session.data, account=AccountData(**account)))

    asked = ResponseEvent("E-1", "A", "reduce", now - 60, now + 3600, 1, now - 90, False, None)
    tell(responses=(asked,))
    await live(hass, freezer, 1, 0)
    assert reason() != "response", "the home doesn't take part"
    tell(responses=(replace(asked, participation="committed"),))
    await live(hass, freezer, 1, 3000)
    assert reason() == "response"
    # What is shifted isn't used in the window, and may be used after it.
    shift = replace(asked, kind="shift", participation="committed", shift_until=now + 7200)
    tell(responses=(shift,))
    await live(hass, freezer, 1, 3000)
    assert reason() == "response"
    tell(responses=(replace(shift, start=now - 7200, end=now - 3600),))
    await live(hass, freezer, 1, -200)
    assert reason() == "absorb"
    tell(permit=Permit("suspended", "unpaid", "none", None, None, 1))
    await live(hass, freezer, 1, 0)
    decision = entry.runtime_data.keeper.data.decision
    assert decision.battery.reason.key == "permit_battery"

    # A permit that limits, and an event that asks to use more.
    more = replace(asked, kind="absorb", participation="opted_in")
    tell(responses=(more,), permit=Permit("limited", "unpaid", "none", None, 1500, 1))
    await live(hass, freezer, 1, -200)
    assert reason() == "absorb"
    assert hass.states.is_state(BOILER, "on")
    plan = entry.runtime_data.keeper
    await plan.async_replan()
    (first, *_, last) = plan._slots(dt_util.utcnow().timestamp())
    assert (first.limit_w, first.response, first.reward) == (1500, "absorb", 1e-6)
    assert (last.limit_w, last.response) == (1500, "")
    await live(hass, freezer, 1, -900)
    assert reason() == "limited"
    assert hass.states.is_state(BOILER, "off")
    # The number holds only while the permit limits.
    tell(permit=Permit("warned", "unpaid", "limitation", None, 1500, 1))
    assert session.data.limit_w is None


async def test_what_a_rule_buys_counts_for_its_day(
    hass: HomeAssistant, entry: Any, freezer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    freezer.move_to("2026-06-20T10:00:00+00:00")
    charged = async_mock_service(hass, "test", "charge")
    async_mock_service(hass, "test", "auto")
    keeper = entry.runtime_data.keeper
    start = dt_util.utcnow().timestamp()

    def prices(at: float) -> tuple[float, float]:
        return (0.05 if at < start + 900 else 0.08 if at < start + 1800 else 0.6), 0.02

    monkeypatch.setattr(keeper._prices, "at", prices)
    monkeypatch.setattr(keeper._load, "forecast", lambda at: 300.0)
    await add(hass, entry, "battery_control", "Battery", BATTERY_ACTIONS)
    rule = {**RULE, "kind": "buy", "price_limit": 0.1, "energy_limit": 0.4, "dry_run": False}
    sub = await add(hass, entry, "trading_rule", "Cheap hours", rule)
    keeper.async_enable_rule(sub, True)
    await keeper.async_replan()
    assert keeper.rule_status(sub) == "planned"

    async def minutes(count: int, battery_w: float) -> None:
        for _ in range(count):
            set_state(hass, GRID_POWER, 500 - battery_w, "W")
            set_state(hass, BATTERY_POWER, battery_w, "W")
            freezer.tick(timedelta(seconds=60))
            async_fire_time_changed(hass)
            for _ in range(4):
                await hass.async_block_till_done(wait_background_tasks=False)

    await minutes(2, 0)
    assert charged
    assert keeper.traded_wh(sub) == 0
    await minutes(6, -3000)
    assert keeper.traded_wh(sub) == pytest.approx(300, abs=60)
    # What the sun gives isn't bought.
    before = keeper.traded_wh(sub)
    for _ in range(3):
        set_state(hass, GRID_POWER, -200, "W")
        set_state(hass, BATTERY_POWER, -3000, "W")
        freezer.tick(timedelta(seconds=60))
        async_fire_time_changed(hass)
        await hass.async_block_till_done(wait_background_tasks=False)
    assert keeper.traded_wh(sub) == pytest.approx(before, abs=51)
    await minutes(6, -3000)
    await keeper.async_replan()
    assert keeper.traded_wh(sub) >= 400
    assert keeper.rule_status(sub) == "waiting", "its limit for the day is used up"
    assert not any(slot.bought_wh for slot in keeper.data.plan.slots[:4])
    freezer.tick(timedelta(days=1))
    assert keeper.traded_wh(sub) == 0


CAR = {
    "kind": "charger",
    "entity": "input_boolean.pump",
    "power_sensor": "sensor.car_power",
    "car_level": "sensor.car_level",
    "car_capacity": 50,
    "car_target": 80,
    "car_reserve": 40,
    "car_power": 5000,
    "deadline": "07:00:00",
    "action_give_back": [
        {"action": "test.give", "data": {"power": "{{ power_w }}", "until": "{{ until }}"}}
    ],
    "action_stop_giving": [{"action": "test.stop"}],
}


async def test_a_car_gives_back_at_the_peak_and_is_stopped(
    hass: HomeAssistant, entry: Any, freezer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = async_mock_service(hass, "test", "give")
    stopped = async_mock_service(hass, "test", "stop")
    hass.config.time_zone = "UTC"
    freezer.move_to("2026-06-20T17:00:00+00:00")
    keeper = entry.runtime_data.keeper
    peak = dt_util.utcnow().timestamp() + 4 * 3600
    monkeypatch.setattr(keeper._prices, "at", lambda at: (0.6 if at < peak else 0.1, 0.05))
    monkeypatch.setattr(keeper._load, "forecast", lambda at: 500.0)
    set_state(hass, LEVEL, 20, "%")  # the home's own battery has nothing to give
    set_state(hass, "sensor.car_level", 80, "%")
    set_state(hass, "sensor.car_power", 0, "W")
    sub = await add(hass, entry, "appliance", "Car", CAR)

    async def minutes(count: int) -> None:
        for _ in range(count):
            back = given[-1].data["power"] if len(given) > len(stopped) else 0
            set_state(hass, "sensor.car_power", -back, "W")
            set_state(hass, GRID_POWER, 2000 - back, "W")
            set_state(hass, PV_POWER, 0, "W")
            set_state(hass, BATTERY_POWER, 0, "W")
            freezer.tick(timedelta(seconds=60))
            async_fire_time_changed(hass)
            for _ in range(4):
                await hass.async_block_till_done(wait_background_tasks=False)

    await minutes(1)
    await keeper.async_replan()
    await minutes(3)
    assert given[0].data["power"] == 2000
    assert given[0].data["until"].startswith("2026-06-20T17:")
    state = hass.states.get(entity(hass, "sensor", sub, "status"))
    assert state is not None
    assert (state.state, state.attributes["reason_key"]) == ("gives_back", "car_feeds")
    stored = await vault.keeper_store(hass, UNIQUE_ID).async_load()
    assert stored is not None
    assert stored["dispatcher"]["appliances"][sub]["given_w"] == 2000
    answer = await hass.services.async_call(
        DOMAIN, "get_plan", {}, blocking=True, return_response=True
    )
    assert answer is not None
    plan: Any = answer["plan"]
    assert plan["cars"]["Car"][0]["reason_key"] == "house_from_battery"
    assert sum(run["energy_kwh"] for run in plan["runs"]["Car"]) > 5

    # The owner's word ends it at once, and so does deleting the car, and unloading.
    keeper.async_override(sub, False, 600)
    await minutes(1)
    assert len(stopped) == 1
    keeper.async_override(sub, None, 0)
    await minutes(2)
    assert len(given) == 2
    hass.config_entries.async_remove_subentry(entry, sub)
    await hass.async_block_till_done()
    assert len(stopped) == 2
    await add(hass, entry, "appliance", "Car", CAR)
    await keeper.async_replan()
    await minutes(3)
    assert len(given) == 3
    assert await hass.config_entries.async_unload(entry.entry_id)
    await hass.async_block_till_done()
    assert len(stopped) == 3


async def test_a_heat_pump_is_set_and_only_then_switched(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    aims = async_mock_service(hass, "climate", "set_temperature")
    started = async_mock_service(hass, "climate", "turn_on")
    pump = "climate.heat_pump"
    keeper = entry.runtime_data.keeper
    data = {
        **APPLIANCE,
        "kind": "climate",
        "entity": pump,
        "on_temperature": 22,
        "off_temperature": 19,
    }
    hass.states.async_set(pump, "heat", {"temperature": 19.5})
    sub = await add(hass, entry, "appliance", "Heat pump", data)
    assert not keeper.data.decision.appliances[sub].on
    keeper.async_override(sub, True, 3600)
    await live(hass, freezer, 1, 0)
    assert aims[-1].data["temperature"] == 22
    assert started == [], "it heats already"
    hass.states.async_set(pump, "heat", {"temperature": 21.5})
    asked = len(aims)
    await live(hass, freezer, 2, 0)
    assert len(aims) == asked, "nearer to 22 than to 19: it is on"
    keeper.async_override(sub, False, 3600)
    await live(hass, freezer, 1, 0)
    assert aims[-1].data["temperature"] == 19
    # Off altogether: set, and turned on.
    hass.states.async_set(pump, "off", {"temperature": 19})
    keeper.async_override(sub, True, 3600)
    await live(hass, freezer, 1, 0)
    assert aims[-1].data["temperature"] == 22
    assert len(started) >= 1


async def test_a_charger_follows_its_car(hass: HomeAssistant, entry: Any, freezer: Any) -> None:
    amperes = async_mock_service(hass, "number", "set_value")
    keeper = entry.runtime_data.keeper
    data = {
        "kind": "charger",
        "entity": BOILER,
        "current": "number.amperes",
        "priority": 1,
        "connected": "binary_sensor.plugged",
        "minimum_on": 0,
        "maximum_current": 16,
        "car_level": "sensor.car_level",
        "car_capacity": 50,
        "car_target": 60,
    }
    hass.states.async_set("number.amperes", "6")
    hass.states.async_set("binary_sensor.plugged", "off")
    set_state(hass, "sensor.car_level", 50, "%")
    sub = await add(hass, entry, "appliance", "Car", data)

    def decision() -> Any:
        return keeper.data.decision.appliances[sub]

    assert decision().reason.key == "not_connected"
    hass.states.async_set("binary_sensor.plugged", "on")
    keeper.async_override(sub, True, 3600)
    await live(hass, freezer, 1, 4000)
    assert amperes[0].data == {"entity_id": "number.amperes", "value": 16}
    assert hass.states.is_state(BOILER, "on")
    keeper.async_override(sub, None, 0)
    set_state(hass, "sensor.car_level", 60, "%")
    await live(hass, freezer, 1, 4000)
    assert decision().reason.key == "satisfied"
    hass.states.async_set(BOILER, "unavailable")
    await live(hass, freezer, 1, 4000)
    assert decision().reason.key == "unavailable"


async def test_what_cannot_be_told_is_said_once(
    hass: HomeAssistant, entry: Any, freezer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    jammed = HomeAssistantError("it is jammed")
    async_mock_service(hass, "fan", "turn_on", raise_exception=jammed)
    async_mock_service(hass, "test", "give", raise_exception=jammed)
    hass.states.async_set("fan.attic", "off")
    data = {**APPLIANCE, "entity": "fan.attic"}
    sub = await add(hass, entry, "appliance", "Attic", data)
    car = await add(hass, entry, "appliance", "Car", CAR)
    keeper = entry.runtime_data.keeper
    keeper.async_override(sub, True, 3600)
    await live(hass, freezer, 8, 0)
    assert caplog.text.count("Attic can't be switched: it is jammed") == 1
    (appliance,) = [a for a in keeper.dispatcher.settings.appliances if a.id == car]
    for _ in range(2):
        await keeper._async_give_back(appliance, CAR, 1000.0, dt_util.utcnow().timestamp() + 900)
    assert caplog.text.count("Car can't be told to give back 1000 W: it is jammed") == 1


async def test_surplus_sensor_and_planned_runs(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    pump = await add(hass, entry, "appliance", "Pump", {**APPLIANCE, "daily_minimum": 30})
    registry = er.async_get(hass)
    surplus = registry.async_get_entity_id(
        "binary_sensor", DOMAIN, f"{UNIQUE_ID}_surplus_available"
    )
    calendar = registry.async_get_entity_id("calendar", DOMAIN, f"{UNIQUE_ID}_calendar")
    assert surplus is not None
    assert calendar is not None
    assert await async_setup_component(
        hass,
        "automation",
        {
            "automation": [
                {
                    "triggers": {"trigger": f"gridledger.surplus_{change}"},
                    "conditions": {
                        "condition": "template",
                        "value_template": "{{ trigger.surplus_w is number }}",
                    },
                    "actions": {"event": f"surplus_{change}"},
                }
                for change in ("started", "ended")
            ]
        },
    )
    events = {c: async_capture_events(hass, f"surplus_{c}") for c in ("started", "ended")}

    is_surplus = {"condition": "gridledger.is_surplus"}
    await live(hass, freezer, 8, 0)
    assert hass.states.is_state(surplus, "off")
    assert not await holds(hass, is_surplus)
    assert (len(events["started"]), len(events["ended"])) == (0, 1)  # there was sun before
    await entry.runtime_data.keeper.async_replan()
    (event,) = await calendar_events(hass, calendar, after=timedelta(days=2))
    assert event["summary"].startswith("Pump is planned: 0.")  # a part may have run already

    # Runs apart are events apart.
    keeper = entry.runtime_data.keeper
    plan = keeper.data.plan
    runs = {slot.start: 250.0 for slot in (plan.slots[4], plan.slots[5], plan.slots[8])}
    keeper.async_set_updated_data(replace(keeper.data, plan=replace(plan, runs={pump: runs})))
    events_apart = await calendar_events(hass, calendar, after=timedelta(days=2))
    assert [event["summary"] for event in events_apart] == [
        "Pump is planned: 0.50 kWh",
        "Pump is planned: 0.25 kWh",
    ]
    await live(hass, freezer, 12, 2500)
    assert hass.states.is_state(surplus, "on")
    assert await holds(hass, is_surplus)
    assert (len(events["started"]), len(events["ended"])) == (1, 1)
    await live(hass, freezer, 12, -2500)
    assert hass.states.is_state(surplus, "off")
    assert not await holds(hass, is_surplus)
    assert (len(events["started"]), len(events["ended"])) == (1, 2)


async def test_advice_runs_no_action(hass: HomeAssistant, entry: Any, freezer: Any) -> None:
    held = async_mock_service(hass, "test", "hold")
    await add(hass, entry, "battery_control", "Battery", {**BATTERY_ACTIONS, "advise_only": True})
    set_state(hass, LEVEL, 20, "%")
    await live(hass, freezer, 2, -500)
    assert held == []


async def test_forms_add_and_change(hass: HomeAssistant, entry: Any) -> None:
    flows = hass.config_entries.subentries
    step: Any = await flows.async_init((entry.entry_id, "appliance"), context={"source": "user"})
    assert step["type"] is FlowResultType.MENU
    step = await flows.async_configure(step["flow_id"], {"next_step_id": "charger"})
    step = await flows.async_configure(
        step["flow_id"], {"name": "Car", "entity": BOILER, "window_start": "22:00:00"}
    )
    assert step["errors"] == {"window_end": "half_window"}
    step = await flows.async_configure(
        step["flow_id"],
        {"name": "Car", "entity": BOILER, "minimum_current": 20, "maximum_current": 10},
    )
    assert step["errors"] == {"maximum_current": "less_than_minimum"}
    step = await flows.async_configure(
        step["flow_id"], {"name": "Car", "entity": BOILER, "deadline": "07:00:00"}
    )
    assert step["type"] is FlowResultType.CREATE_ENTRY
    await hass.async_block_till_done()
    appliance = entry.runtime_data.keeper.dispatcher.settings.appliances[0]
    assert appliance.deadline_min == 7 * 60
    assert appliance.variable

    step = await entry.start_subentry_reconfigure_flow(hass, appliance.id)
    car = {"name": "Car", "entity": BOILER, "car_power": 5000, "car_level": "sensor.car"}
    step = await flows.async_configure(
        step["flow_id"], {**car, "action_give_back": [{"action": "not an action"}]}
    )
    assert step["errors"] == {
        "car_capacity": "needed",
        "action_stop_giving": "needed",
        "action_give_back": "invalid_action",
    }
    whole = {key: CAR[key] for key in ("car_capacity", "action_give_back", "action_stop_giving")}
    step = await flows.async_configure(step["flow_id"], {**car, **whole})
    assert step["reason"] == "reconfigure_successful"
    await hass.async_block_till_done()
    battery = entry.runtime_data.keeper.dispatcher.settings.appliances[0].car
    assert (battery.capacity_wh, battery.reserve_wh, battery.target_wh) == (50_000, 20_000, 40_000)
    assert battery.max_discharge_w == 5000

    step = await flows.async_init((entry.entry_id, "appliance"), context={"source": "user"})
    step = await flows.async_configure(step["flow_id"], {"next_step_id": "switch"})
    step = await flows.async_configure(step["flow_id"], {"name": "Again", "entity": BOILER})
    assert step["errors"] == {"entity": "already_used"}

    step = await entry.start_subentry_reconfigure_flow(hass, appliance.id)
    step = await flows.async_configure(step["flow_id"], {"name": "E-car", "entity": BOILER})
    assert step["type"] is FlowResultType.ABORT
    await hass.async_block_till_done()
    assert entry.runtime_data.keeper.dispatcher.settings.appliances[0].name == "E-car"


async def test_battery_form_fills_in_a_preset(hass: HomeAssistant, entry: Any) -> None:
    flows = hass.config_entries.subentries
    begin = (entry.entry_id, "battery_control")
    step: Any = await flows.async_init(begin, context={"source": "user"})
    step = await flows.async_configure(step["flow_id"], {"preset": "goodwe"})
    assert step["errors"] == {"mode_entity": "needed"}
    step = await flows.async_configure(
        step["flow_id"], {"preset": "goodwe", "mode_entity": "select.goodwe_mode"}
    )
    assert step["step_id"] == "actions"
    suggested = {
        str(key): key.description["suggested_value"]
        for key in step["data_schema"].schema
        if key.description and "suggested_value" in key.description
    }
    charge = suggested["action_charge"][0]
    assert charge["target"]["entity_id"] == "select.goodwe_mode"
    assert charge["data"]["option"] == "eco_charge"
    step = await flows.async_configure(
        step["flow_id"], {"advise_only": False, "action_charge": suggested["action_charge"]}
    )
    assert step["errors"] == {"action_auto": "automatic_needed"}
    actions = {key: value for key, value in suggested.items() if key.startswith("action_")}
    step = await flows.async_configure(step["flow_id"], {"advise_only": False, **actions})
    assert step["type"] is FlowResultType.CREATE_ENTRY
    await hass.async_block_till_done()
    battery = entry.runtime_data.keeper.dispatcher.settings.battery
    assert battery.drives
    assert sorted(battery.modes) == ["auto", "charge", "discharge"]
    step = await flows.async_init(begin, context={"source": "user"})
    assert step["reason"] == "already_configured"
    (sub,) = entry.subentries
    step = await entry.start_subentry_reconfigure_flow(hass, sub)
    step = await flows.async_configure(step["flow_id"], {"advise_only": True, **actions})
    assert step["reason"] == "reconfigure_successful"
    await hass.async_block_till_done()
    assert not entry.runtime_data.keeper.dispatcher.settings.battery.drives


async def test_a_preset_keeps_its_numbers(hass: HomeAssistant) -> None:
    actions = fill(PRESETS["teslemetry"].actions[Mode.HOLD], {"power_entity": "number.reserve"})
    assert actions[1]["data"] == {"value": 100}
    assert actions[1]["target"] == {"entity_id": "number.reserve"}


async def test_rule_form(hass: HomeAssistant, entry: Any) -> None:
    flows = hass.config_entries.subentries
    step: Any = await flows.async_init((entry.entry_id, "trading_rule"), context={"source": "user"})
    step = await flows.async_configure(step["flow_id"], {"name": "Evening", "price_limit": 0.1})
    assert step["type"] is FlowResultType.CREATE_ENTRY
    await hass.async_block_till_done()
    (rule,) = entry.runtime_data.keeper.dispatcher.settings.rules
    assert not rule.enabled
    assert rule.dry_run
    step = await entry.start_subentry_reconfigure_flow(hass, rule.id)
    step = await flows.async_configure(
        step["flow_id"], {"name": "Night", "price_limit": 0.2, "window_end": "06:00:00"}
    )
    assert step["errors"] == {"window_end": "half_window"}
    step = await flows.async_configure(step["flow_id"], {"name": "Night", "price_limit": 0.2})
    assert step["reason"] == "reconfigure_successful"
    await hass.async_block_till_done()
    (rule,) = entry.runtime_data.keeper.dispatcher.settings.rules
    assert (rule.name, rule.price_limit) == ("Night", 0.2)


async def test_forms_of_heat_and_of_homes_without_a_battery(
    hass: HomeAssistant, entry: Any
) -> None:
    flows = hass.config_entries.subentries
    keeper = entry.runtime_data.keeper
    for kind, heater in (("climate", "climate.pump"), ("water_heater", "water_heater.tank")):
        step: Any = await flows.async_init(
            (entry.entry_id, "appliance"), context={"source": "user"}
        )
        step = await flows.async_configure(step["flow_id"], {"next_step_id": kind})
        given = {"name": kind, "entity": heater, "on_temperature": 55, "off_temperature": 45}
        step = await flows.async_configure(
            step["flow_id"], {**given, "daily_minimum": 90, "daily_maximum": 60}
        )
        assert step["errors"] == {"daily_maximum": "less_than_minimum"}
        step = await flows.async_configure(step["flow_id"], given)
        assert step["type"] is FlowResultType.CREATE_ENTRY
        await hass.async_block_till_done()
        assert keeper.dispatcher.settings.appliances[-1].kind == kind

    plant = {name: given for name, given in PLANT.items() if not name.startswith("battery_")}
    hass.config_entries.async_update_entry(entry, data={**entry.data, "plant": plant})
    await hass.async_block_till_done()
    for kind in ("trading_rule", "battery_control"):
        step = await flows.async_init((entry.entry_id, kind), context={"source": "user"})
        assert step["reason"] == "no_battery"
    assert entry.runtime_data.seller.battery() is None
    with pytest.raises(ServiceValidationError) as raised:
        await hass.services.async_call(
            DOMAIN, "quote_sale", {"energy": 1}, blocking=True, return_response=True
        )
    assert raised.value.translation_key == "no_battery"


async def test_solar_forecast_for_the_energy_dashboard(hass: HomeAssistant, entry: Any) -> None:
    answer = await async_get_solar_forecast(hass, entry.entry_id)
    assert answer is not None
    assert len(answer["wh_hours"]) == 48
    assert set(answer["wh_hours"].values()) == {0}, "nothing has been seen yet"
    plant = {name: given for name, given in PLANT.items() if not name.startswith("pv_")}
    hass.config_entries.async_update_entry(entry, data={**entry.data, "plant": plant})
    await hass.async_block_till_done()
    assert entry.state is ConfigEntryState.LOADED
    assert await async_get_solar_forecast(hass, entry.entry_id) is None, "it has no panels"
    assert await async_get_solar_forecast(hass, "no such entry") is None


async def test_a_ledger_never_reached_is_said_so(
    hass: HomeAssistant, entry: Any, hass_ws_client: Any
) -> None:
    ahead = (dt_util.utcnow() + timedelta(hours=1)).isoformat()
    order = {"side": "buy", "energy": 1, "price": 0.1, "start": ahead}
    given = {"trader": "T", "acts": ["sell"], "until": ahead, "max_energy": 1}
    for name, data in (
        ("quote_sale", {"energy": 0.5}),
        ("sell_energy", {"energy": 0.5}),
        ("sell_energy", {"energy": 0.5, "request_id": "R-1"}),
        ("place_order", order),
        ("cancel_order", {"order_id": "A"}),
        ("list_orders", {}),
        ("get_prices", {}),
        ("get_archive", {"start": ahead}),
        ("get_proof", {"transaction_id": "0" * 64}),
        ("export_data", {}),
        ("get_bills", {}),
        ("pay_bill", {}),
        ("claim_certificate", {"count": 1, "claimed_for": "Us"}),
        ("delegate", {**given, "lowest_price": 0.1, "highest_price": 0.2}),
        ("leave_network", {"confirm": True}),
    ):
        with pytest.raises(HomeAssistantError) as raised:
            await hass.services.async_call(DOMAIN, name, data, blocking=True, return_response=True)
        assert raised.value.translation_key == "not_connected", name
    for kind in ("sell", "buy"):
        config = {
            "condition": "gridledger.is_price",
            "options": {"kind": kind, "above": -1.0},
        }
        assert not await holds(hass, config)
    # A trigger that waits for what nobody knows yet, and one for another home, stay quiet.
    ran = await automation(
        hass,
        [
            {"trigger": "gridledger.bill_due"},
            {"trigger": "gridledger.bill_due", "options": {"config_entry": "another"}},
        ],
    )
    await hass.services.async_call(
        "automation", "turn_off", {"entity_id": "automation.test"}, blocking=True
    )
    assert ran == []
    client = await hass_ws_client(hass)

    async def ask(name: str, **data: Any) -> Any:
        asked = {"type": f"gridledger/{name}", "entry_id": entry.entry_id, **data}
        await client.send_json_auto_id(asked)
        return await client.receive_json()

    span = {"start": dt_util.utcnow().isoformat(), "end": ahead}
    for name, data in (
        *((name, {}) for name in ("market", "neighbours", "bills", "supply")),
        ("archive", span),
        ("proof", {"transaction_id": "0" * 64}),
        ("bill", {"from_day": "2026-06-20", "run": 1}),
    ):
        assert (await ask(name, **data))["error"]["code"] == "ledger_away", name
    # What needs no ledger is shown all the same.
    overview = (await ask("overview"))["result"]
    assert (overview["connected"], overview["interval_s"], overview["trades"]) == (False, None, [])
    plant = (await ask("plant"))["result"]
    assert (plant["permit"], plant["metering"]) == (None, False)
    assert (plant["battery"]["stored_kwh"], plant["battery"]["sellable_kwh"]) == (5, None)
    await add(hass, entry, "trading_rule", "Evening", RULE)
    [rule] = (await ask("rules"))["result"]["rules"]
    assert (rule["name"], rule["sales"]) == ("Evening", [])

    # Of two homes one has to be named.
    secrets = await vault.async_load_secrets(hass, UNIQUE_ID)
    assert secrets is not None
    await vault.async_save_secrets(hass, f"{UNIQUE_ID}2", secrets)
    other = MockConfigEntry(
        domain=DOMAIN, title="H-2", unique_id=f"{UNIQUE_ID}2", data=dict(entry.data)
    )
    other.add_to_hass(hass)
    assert await hass.config_entries.async_setup(other.entry_id)
    await hass.async_block_till_done()
    with pytest.raises(ServiceValidationError) as ambiguous:
        await hass.services.async_call(DOMAIN, "get_plan", {}, blocking=True, return_response=True)
    assert ambiguous.value.translation_key == "entry_ambiguous"
    assert await hass.config_entries.async_unload(other.entry_id)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_reason_has_its_text(language: str) -> None:
    texts = read(f"translations/{language}.json")["common"]
    assert {key.removeprefix("reason_") for key in texts if key.startswith("reason_")} == set(
        REASONS
    )
    if language == "en":
        assert all(texts[f"reason_{key}"] == text for key, text in REASONS.items())


async def test_a_chosen_forecast_is_planned_with(
    hass: HomeAssistant, entry: Any, freezer: Any
) -> None:
    """Two roofs, one by the half-hour; what can't be read, or isn't known, is as before."""
    freezer.move_to("2026-06-01T12:00:00+00:00")
    await hass.config.async_set_time_zone("Europe/Zurich")
    others = [MockConfigEntry(domain=name) for name in ("roofs", "roofs", "broken", "gone")]
    for one in others[:3]:
        one.add_to_hass(hass)
    chosen = [one.entry_id for one in others]
    sources = [
        {"type": "solar", "config_entry_solar_forecast": [*chosen, entry.entry_id]},
        {"type": "solar", "config_entry_solar_forecast": None},
        {"type": "grid"},
    ]
    hours = {
        "2026-06-01T10:00:00+00:00": "no number",
        "no time": 5,
        "2026-06-01T13:00:00+00:00": 400,
        "2026-06-01T19:00:00+00:00": 0,
    }
    halves = {"2026-06-01T15:00:00+02:00": 100, "2026-06-01T15:30:00+02:00": 300}
    asked: list[str] = []

    async def roofs(_: HomeAssistant, entry_id: str) -> dict[str, Any] | None:
        asked.append(entry_id)
        return {"wh_hours": hours if entry_id == chosen[0] else halves}

    async def broken(_: HomeAssistant, __: str) -> dict[str, Any] | None:
        raise ValueError("no sun")

    hass.config.components.add("energy")
    manager = Mock(data={"energy_sources": sources})
    with (
        patch("custom_components.gridledger.sun.async_get_manager", return_value=manager),
        patch(
            "custom_components.gridledger.sun.async_get_energy_platforms",
            return_value={"roofs": roofs, "broken": broken, DOMAIN: async_get_solar_forecast},
        ),
    ):
        for _ in range(2):  # asked once in half an hour
            await entry.runtime_data.keeper.async_replan()
    assert asked == chosen[:2]
    answer: Any = await hass.services.async_call(
        DOMAIN, "get_plan", {}, blocking=True, return_response=True
    )
    sun = {
        dt_util.as_utc(dt_util.parse_datetime(slot["start"])).strftime("%H:%M"): slot["pv_kwh"]
        for slot in answer["plan"]["slots"]
    }
    quarters = [sun[f"13:{minute:02}"] for minute in (0, 15, 30, 45)]
    assert quarters == [0.15, 0.15, 0.25, 0.25]
    assert sun["16:00"] == 0
