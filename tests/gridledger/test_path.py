"""The whole path of a home: sensors, intervals, outbox, ledger and back, on a real network."""

import asyncio
from typing import Any

from homeassistant.core import HomeAssistant

from .conftest import EXPORT, IMPORT, RunningNetwork, eventually, report_plant, set_state


async def readings_of(network: RunningNetwork, meter_id: str) -> list[dict[str, Any]]:
    async with network.client() as operator:
        return await operator.evaluate(
            "metering",
            "metering:Readings",
            {"meter_id": meter_id, "from": 0, "to": 4_000_000_000},
            endorsing_organizations=["AuroraMSP"],
        )


async def test_energy_reaches_the_ledger_to_the_wh(
    hass: HomeAssistant, home: Any, network: RunningNetwork
) -> None:
    runtime = home.runtime_data
    for step in range(1, 30):
        set_state(hass, IMPORT, 1000.0 + 0.003 * step)
        set_state(hass, EXPORT, 500.0 + 0.001 * step)
        await asyncio.sleep(0.2)
    await eventually(lambda: runtime.session.data.last_committed)
    await eventually(lambda: runtime.session.data.queued == 0)
    readings = await readings_of(network, runtime.session.meter_id)
    assert len(readings) >= 3
    first, last = readings[0], readings[-1]
    imported = sum(int(reading["import_wh"]) for reading in readings[1:])
    assert imported == int(last["import_register_wh"]) - int(first["import_register_wh"])
    assert imported > 0
    starts = [int(reading["interval_start"]) for reading in readings]
    assert starts == list(range(starts[0], starts[-1] + 60, 60))


async def test_sells_stored_energy(hass: HomeAssistant, home: Any) -> None:
    events: list[Any] = []
    report_plant(hass, level=80)
    quote = await hass.services.async_call(
        "gridledger", "quote_sale", {"energy": 1.2}, blocking=True, return_response=True
    )
    assert quote["supplier"] == "BorealMSP"
    assert quote["price_per_kwh"] == 0.13
    sale = await hass.services.async_call(
        "gridledger",
        "sell_energy",
        {"quote": quote["quote"]},
        blocking=True,
        return_response=True,
    )
    assert sale["status"] == "committed"
    assert sale["net"] == quote["net"]
    assert not events
    session = home.runtime_data.session
    await eventually(lambda: session.data.balance_micro == round(sale["net"] * 1e6))
    event = await eventually(
        lambda: next((s for s in hass.states.async_all("event") if s.state != "unknown"), None)
    )
    assert event.attributes["trade_id"] == sale["trade_id"]
