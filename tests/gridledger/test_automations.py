"""Triggers and conditions, as automations use them, on a real network."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import voluptuous as vol
from homeassistant.core import HomeAssistant, SupportsResponse
from homeassistant.helpers import condition as condition_helper
from homeassistant.helpers import config_validation as cv
from homeassistant.helpers import entity_registry as er
from homeassistant.helpers import trigger as trigger_helper
from homeassistant.setup import async_setup_component
from homeassistant.util import dt as dt_util
from pytest_homeassistant_custom_component.common import async_fire_time_changed

from custom_components.gridledger.const import DOMAIN
from custom_components.gridledger.models import Rate
from tests.gridledger.asking import LISTED_ORDER

from .conftest import PV_POWER, RunningNetwork, eventually
from .test_actions import call


@pytest.fixture(autouse=True)
async def _no_automation_stays(hass: HomeAssistant) -> AsyncIterator[None]:
    """Turn automations off, so that they leave no timer behind."""
    yield
    for state in hass.states.async_all("automation"):
        await hass.services.async_call(
            "automation", "turn_off", {"entity_id": state.entity_id}, blocking=True
        )


async def automation(
    hass: HomeAssistant,
    trigger: dict[str, Any] | list[dict[str, Any]],
    conditions: list[Any] | None = None,
) -> list[dict[str, Any]]:
    """Set an automation up; return what it will be run with."""
    ran: list[dict[str, Any]] = []

    async def note(call: Any) -> None:
        ran.append(dict(call.data))

    hass.services.async_register("test", "note", note)
    assert await async_setup_component(
        hass,
        "automation",
        {
            "automation": {
                "alias": "test",
                "triggers": trigger,
                "conditions": conditions or [],
                "actions": [{"action": "test.note", "data": {"trigger": "{{ trigger }}"}}],
            }
        },
    )
    await hass.async_block_till_done()
    [state] = hass.states.async_all("automation")
    assert state.state == "on"  # not unavailable: its configuration was taken
    return ran


async def test_a_committed_sale_triggers(hass: HomeAssistant, home: Any) -> None:
    ran = await automation(
        hass, {"trigger": "gridledger.trade_committed", "options": {"config_entry": home.entry_id}}
    )
    sale = await call(hass, "sell_energy", energy=0.1)
    await eventually(lambda: ran)
    assert sale["trade_id"] in str(ran)
    assert len(ran) == 1


async def publish(session: Any, kind: str, price_micro: int | None) -> None:
    """Have the next look at the market find one price, as published by a supplier."""
    rates = () if price_micro is None else (Rate("AuroraMSP", "2025-06-20", kind, price_micro),)
    session.data = replace(session.data, rates=rates)


async def test_a_price_crosses_a_limit(
    hass: HomeAssistant, home: Any, network: RunningNetwork
) -> None:
    session = home.runtime_data.session
    ran = await automation(
        hass,
        {"trigger": "gridledger.price_crossed", "options": {"kind": "sell", "above": 0.12}},
        [
            {
                "condition": "gridledger.is_price",
                "options": {"kind": "sell", "above": 0.12, "below": 0.2},
            },
            {"condition": "gridledger.is_connected"},
        ],
    )
    # The ledger says 0.13; before that it said 0.11, more than that, and nothing.
    for before, times in ((110_000, 1), (125_000, 1), (None, 1), (119_999, 2)):
        await publish(session, "buy", before)
        await session.async_refresh_market()
        await hass.async_block_till_done()
        assert len(ran) == times, before
    assert "0.13" in str(ran)


@pytest.mark.parametrize(
    ("trigger", "taken"),
    [
        ({"trigger": "gridledger.order_changed"}, True),
        ({"trigger": "gridledger.order_changed", "options": {"change": ["cleared"]}}, True),
        ({"trigger": "gridledger.order_changed", "options": {"change": ["eaten"]}}, False),
        ({"trigger": "gridledger.price_crossed", "options": {"kind": "sell"}}, False),
        ({"trigger": "gridledger.price_crossed", "options": {"kind": "x", "below": 1}}, False),
    ],
)
async def test_options_are_checked(
    hass: HomeAssistant, home: Any, trigger: dict[str, Any], taken: bool
) -> None:
    config = cv.TRIGGER_SCHEMA(trigger)
    if taken:
        await trigger_helper.async_validate_trigger_config(hass, config)
        return
    with pytest.raises(vol.Invalid):
        await trigger_helper.async_validate_trigger_config(hass, config)


async def test_an_orders_changes_are_told(hass: HomeAssistant, home: Any) -> None:
    session = home.runtime_data.session
    ran = await automation(
        hass, {"trigger": "gridledger.order_changed", "options": {"change": ["cleared"]}}
    )
    listed: dict[str, Any] = {}

    async def orders(since: int) -> dict[str, Any]:
        return dict(listed)

    session._read_orders = orders
    told: list[Any] = []
    session.async_on_order(told.append)
    for state in ("open", "open", "cleared"):
        listed["A"] = {**LISTED_ORDER, "state": state}
        await session.async_refresh_market()
        await hass.async_block_till_done()
    assert [one["state"] for one in told] == ["open", "cleared"]
    assert len(ran) == 1
    assert session.data.open_orders == 0


async def test_a_home_that_is_not_loaded_meets_no_condition(hass: HomeAssistant, home: Any) -> None:
    config = await condition_helper.async_validate_condition_config(
        hass, {"condition": "gridledger.is_connected", "options": {"config_entry": home.entry_id}}
    )
    check = await condition_helper.async_from_config(hass, config)
    assert check(hass) is True
    await hass.config_entries.async_unload(home.entry_id)
    assert check(hass) is False
    assert DOMAIN in hass.config.components


BLUEPRINTS = sorted((Path(__file__).parents[2] / "blueprints/automation/gridledger").glob("*.yaml"))


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_blueprints_have_links(path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "automation.md").read_text()
    assert f"blueprints%2Fautomation%2Fgridledger%2F{path.name}" in docs
    assert path.name in path.read_text()  # its own source


async def from_blueprint(hass: HomeAssistant, name: str, inputs: dict[str, Any]) -> str:
    """Set an automation up from one of our blueprints; return its entity."""
    folder = Path(hass.config.path("blueprints", "automation", "gridledger"))
    await hass.async_add_executor_job(lambda: folder.mkdir(parents=True, exist_ok=True))
    for path in BLUEPRINTS:
        await hass.async_add_executor_job(shutil.copy, path, folder)
    assert await async_setup_component(
        hass,
        "automation",
        {
            "automation": {
                "alias": "from blueprint",
                "use_blueprint": {"path": f"gridledger/{name}.yaml", "input": inputs},
            }
        },
    )
    await hass.async_block_till_done()
    [state] = hass.states.async_all("automation")
    assert state.state == "on"
    return state.entity_id


async def test_the_evening_peak_is_sold_once_a_day(hass: HomeAssistant, home: Any) -> None:
    entity_id = await from_blueprint(
        hass, "sell_at_evening_peak", {"energy": 0.2, "minimum_price": 0.12}
    )
    session = home.runtime_data.session
    for _ in range(2):
        await hass.services.async_call(
            "automation",
            "trigger",
            {"entity_id": entity_id, "skip_condition": False},
            blocking=True,
        )
        await eventually(lambda: session.data.trades)
        await hass.async_block_till_done()
    [trade] = session.data.trades.values()
    assert trade.energy_wh == 200
    assert trade.request_id.startswith("PEAK-")
    await hass.services.async_call(
        "automation", "turn_off", {"entity_id": entity_id}, blocking=True
    )


async def test_faults_are_told(hass: HomeAssistant, home: Any) -> None:
    told: list[str] = []

    async def tell(call: Any) -> None:
        told.append(call.data["message"])

    hass.services.async_register("test", "tell", tell)
    registry = er.async_get(hass)
    fault, connected = (
        registry.async_get_entity_id("binary_sensor", DOMAIN, f"{home.unique_id}_{key}")
        for key in ("plant_fault", "ledger_connected")
    )
    await from_blueprint(
        hass,
        "tell_of_faults",
        {
            "fault": fault,
            "connected": connected,
            "tell": [{"action": "test.tell", "data": {"message": "{{ message }}"}}],
        },
    )
    hass.states.async_set(PV_POWER, "unavailable")
    home.runtime_data.home._publish()
    await hass.async_block_till_done()
    assert hass.states.get(fault).state == "on"
    async_fire_time_changed(hass, dt_util.utcnow() + timedelta(minutes=3))
    await eventually(lambda: told)
    assert PV_POWER in told[0]


async def fire(hass: HomeAssistant, entity_id: str) -> None:
    """Run an automation as its trigger would."""
    await hass.services.async_call(
        "automation", "trigger", {"entity_id": entity_id, "skip_condition": False}, blocking=True
    )
    await hass.async_block_till_done()


async def test_the_car_is_charged_on_surplus_or_in_cheap_hours(
    hass: HomeAssistant, home: Any
) -> None:
    await async_setup_component(hass, "input_boolean", {"input_boolean": {"charger": {}}})
    inputs = {
        "surplus": "sensor.surplus",
        "charger": "input_boolean.charger",
        "power": 1400,
        "hours": 0,
    }
    entity_id = await from_blueprint(hass, "charge_ev", inputs)
    for surplus, wanted in ((2000, "on"), (0, "on"), (-300, "off"), (1300, "off"), (1400, "on")):
        hass.states.async_set("sensor.surplus", str(surplus), {"unit_of_measurement": "W"})
        await fire(hass, entity_id)
        assert hass.states.get("input_boolean.charger").state == wanted, surplus


async def test_the_car_is_charged_in_the_cheapest_hours(hass: HomeAssistant, home: Any) -> None:
    await async_setup_component(hass, "input_boolean", {"input_boolean": {"charger": {}}})
    now = dt_util.utcnow().replace(second=0, microsecond=0)
    prices = [0.2, 0.1, 0.3, 0.4]
    hass.services.async_remove(DOMAIN, "get_plan")

    async def plan(call: Any) -> Any:
        slots = [
            {
                "start": (now + timedelta(minutes=15 * index)).isoformat(),
                "end": (now + timedelta(minutes=15 * (index + 1))).isoformat(),
                "buy_price": price,
            }
            for index, price in enumerate(prices)
        ]
        return {"plan": {"slots": slots}}

    hass.services.async_register(DOMAIN, "get_plan", plan, supports_response=SupportsResponse.ONLY)
    hass.states.async_set("sensor.surplus", "-500", {"unit_of_measurement": "W"})
    deadline = dt_util.as_local(now + timedelta(minutes=60)).strftime("%H:%M:%S")
    entity_id = await from_blueprint(
        hass,
        "charge_ev",
        {
            "surplus": "sensor.surplus",
            "charger": "input_boolean.charger",
            "hours": 0.25,
            "deadline": deadline,
        },
    )
    await fire(hass, entity_id)
    assert hass.states.get("input_boolean.charger").state == "off"  # a cheaper hour comes
    prices[1] = 0.5
    await fire(hass, entity_id)
    assert hass.states.get("input_boolean.charger").state == "on"


async def test_a_machine_runs_once_a_day(hass: HomeAssistant, home: Any) -> None:
    await async_setup_component(hass, "input_boolean", {"input_boolean": {"done": {}}})
    started: list[Any] = []

    async def start(call: Any) -> None:
        started.append(call)

    hass.services.async_register("test", "start", start)
    hass.states.async_set("sensor.surplus", "0", {"unit_of_measurement": "W"})
    await from_blueprint(
        hass,
        "run_on_surplus",
        {
            "surplus": "sensor.surplus",
            "steady": "00:00:01",
            "from": "00:00:00",
            "latest": "23:59:59",
            "done_today": "input_boolean.done",
            "start": [{"action": "test.start"}],
        },
    )
    for times in (1, 1):
        hass.states.async_set("sensor.surplus", "1800", {"unit_of_measurement": "W"})
        await hass.async_block_till_done()
        async_fire_time_changed(hass, dt_util.utcnow() + timedelta(seconds=2))
        await hass.async_block_till_done()
        await eventually(lambda times=times: len(started) == times)
        hass.states.async_set("sensor.surplus", "0", {"unit_of_measurement": "W"})
        await hass.async_block_till_done()
    assert hass.states.get("input_boolean.done").state == "on"


async def test_a_heat_pump_is_boosted(hass: HomeAssistant, home: Any) -> None:
    wanted: list[Any] = []

    async def set_temperature(call: Any) -> None:
        wanted.append((call.data["entity_id"], call.data["temperature"]))

    hass.services.async_register("climate", "set_temperature", set_temperature)
    hass.states.async_set("sensor.surplus", "0", {"unit_of_measurement": "W"})
    await from_blueprint(
        hass, "boost_heat_pump", {"surplus": "sensor.surplus", "heater": "climate.pump"}
    )
    for watts, times in ((1500, 1), (-100, 2)):
        hass.states.async_set("sensor.surplus", str(watts), {"unit_of_measurement": "W"})
        await hass.async_block_till_done()
        async_fire_time_changed(hass, dt_util.utcnow() + timedelta(minutes=11))
        await eventually(lambda times=times: len(wanted) == times)
    assert wanted == [(["climate.pump"], 22), (["climate.pump"], 20)]
