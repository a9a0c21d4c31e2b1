"""The neighbours' order book, with a product that the utilities have agreed on."""

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from homeassistant.core import HomeAssistant
from homeassistant.exceptions import ServiceValidationError
from homeassistant.helpers import entity_registry as er
from homeassistant.util import dt as dt_util

from gridledger_client import TransactionRefused

from .conftest import ORIGIN, RATE, RunningNetwork, eventually, prepare_connection
from .test_actions import call

TERMS: dict[str, Any] = {
    "product": "ANY",
    "zones": [{"zone": "NORTH", "local_fee": 0, "entry_fee": 0, "exit_fee": 0}],
    "price_min": -500_000,
    "price_max": 4_000_000,
    "price_tick": 1000,
    "price_rule": "middle",
    "gate_closure_s": 60,
    "shortfall_margin": 0,
}


DIRECT = {**TERMS, "product": "DIRECT", "trading": "continuous"}


async def agree(network: RunningNetwork) -> None:
    """Two utilities agree on the products, which hold a few seconds later."""
    replay = network.network.replay
    assert replay is not None
    async with network.client() as aurora, network.client("Boreal") as boreal:

        async def agreed(terms: dict[str, Any]) -> bool:
            now = ORIGIN + (time.time() - replay.anchor) * RATE
            try:
                proposed = await aurora.submit(
                    "energy",
                    "book:ProposeProduct",
                    {"terms": terms, "effective_from": (int(now) // 60 + 6) * 60},
                )
                await boreal.submit(
                    "energy",
                    "book:ApproveProduct",
                    {"product": terms["product"], "version": proposed.result["version"]},
                )
            except TransactionRefused:  # its time had come, or a peer lags behind
                return False
            return True

        for terms in (TERMS, DIRECT):
            await eventually(lambda terms=terms: agreed(terms))
    await asyncio.sleep(6)


async def test_an_order_is_placed_seen_and_taken_back(
    hass: HomeAssistant, home: Any, network: RunningNetwork, hass_ws_client: Any
) -> None:
    client = await hass_ws_client(hass)

    async def market() -> Any:
        await client.send_json_auto_id({"type": "gridledger/market", "entry_id": home.entry_id})
        return await client.receive_json()

    assert (await market())["result"]["book"] is None, "nobody has agreed on a product yet"
    registry = er.async_get(hass)
    order_event = registry.async_get_entity_id("event", "gridledger", f"{home.unique_id}_order")
    registry.async_update_entity(order_event, disabled_by=None)
    assert await hass.config_entries.async_reload(home.entry_id)
    session = home.runtime_data.session
    await agree(network)
    book = (await market())["result"]["book"]
    assert (book["product"], book["offers"]) == ("ANY", [])

    start = dt_util.utcnow() + timedelta(seconds=40)
    order = {
        "side": "sell",
        "energy": 0.05,
        "price": 0.15,
        "start": start.isoformat(),
        "order_id": "EVENING-1",
    }
    placed = await call(hass, "place_order", **order)
    assert (placed["state"], placed["energy_kwh"], placed["side"]) == ("open", 0.05, "offer")
    again = await call(hass, "place_order", **order)
    assert again["order_id"] == placed["order_id"]
    await eventually(lambda: session.data.open_orders == 1)
    listed = (await call(hass, "list_orders"))["orders"]
    assert [(one["order_id"], one["price_per_kwh"]) for one in listed] == [("EVENING-1", 0.15)]

    cancelled = await call(hass, "cancel_order", order_id="EVENING-1")
    assert cancelled["state"] == "cancelled"
    await eventually(lambda: session.data.open_orders == 0)
    with pytest.raises(ServiceValidationError) as error:
        await call(hass, "place_order", **{**order, "order_id": "DEAR", "price": 90})
    assert error.value.translation_key == "refused"

    # A gift is for one neighbour; a preferred one is met at the same price.
    await prepare_connection(network, "H-NEXT")
    direct = {**order, "product": "DIRECT", "energy": 0.01}
    given = {**direct, "order_id": "GIFT", "gift": "H-NEXT", "price": 0}
    assert (await call(hass, "place_order", **given))["gift"] == "H-NEXT"
    wished = await call(hass, "place_order", **{**direct, "order_id": "WISH", "partner": "H-NEXT"})
    assert wished["partner"] == "H-NEXT"
    with pytest.raises(ServiceValidationError, match="gift's is 0"):
        await call(hass, "place_order", **{**given, "order_id": "SOLD", "price": 0.1})

    taken_back = await call(hass, "cancel_order", order_id="WISH")
    assert (taken_back["order_id"], taken_back["state"]) == ("WISH", "cancelling")

    # The archive keeps it, and nothing of it went to neighbours.
    ahead = {"start": dt_util.utcnow().isoformat(), "end": (start + timedelta(hours=1)).isoformat()}
    found = await call(hass, "get_archive", **ahead)
    kept = {one["order_id"]: one["amount"] for one in found["orders"]}
    assert kept == {"EVENING-1": 0.0, "GIFT": 0.0, "WISH": 0.0}
    await client.send_json_auto_id({"type": "gridledger/neighbours", "entry_id": home.entry_id})
    traded = (await client.receive_json())["result"]
    assert traded == {"from_neighbours_kwh": 0, "to_neighbours_kwh": 0}
    await client.send_json_auto_id({"type": "gridledger/rules", "entry_id": home.entry_id})
    assert (await client.receive_json())["result"]["rules"] == []

    # Whoever leaves takes what is open back.
    assert (await call(hass, "place_order", **{**order, "order_id": "LAST"}))["state"] == "open"
    told = hass.states.get(order_event).attributes["order_id"]
    assert told in ("EVENING-1", "GIFT", "WISH", "LAST")

    async def leave() -> Any:
        try:
            return await call(hass, "leave_network", confirm=True)
        except ServiceValidationError:  # while a reading is on its way
            return None

    left = await eventually(leave)
    assert left["orders_cancelled"] in (2, 3), "WISH may be gone by now"
    assert not hass.config_entries.async_entries("gridledger")
