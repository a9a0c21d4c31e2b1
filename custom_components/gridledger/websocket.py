"""Websocket commands that the dashboard's cards read from.

Imported at start: nothing here needs installed requirements.
"""

from typing import TYPE_CHECKING, Any, Final

import voluptuous as vol
from homeassistant.components import websocket_api
from homeassistant.config_entries import ConfigEntryState
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers import entity_registry as er
from homeassistant.util import dt as dt_util

from .const import DOMAIN

if TYPE_CHECKING:
    from .coordinator import GridLedgerConfigEntry

_READINGS_SHOWN: Final = 30
_TRADES_SHOWN: Final = 50

_HOMES: Any = {vol.Required("type"): f"{DOMAIN}/homes"}
_OVERVIEW: Any = {vol.Required("type"): f"{DOMAIN}/overview", vol.Required("entry_id"): str}


@callback
def async_setup_commands(hass: HomeAssistant) -> None:
    """Register the commands."""
    websocket_api.async_register_command(hass, ws_homes)
    websocket_api.async_register_command(hass, ws_overview)


def _loaded(hass: HomeAssistant) -> list[GridLedgerConfigEntry]:
    return [
        entry
        for entry in hass.config_entries.async_entries(DOMAIN)
        if entry.state is ConfigEntryState.LOADED
    ]


@websocket_api.websocket_command(_HOMES)
@callback
def ws_homes(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """List the homes: their entities by key, and the owner's sensors by what they measure."""
    registry = er.async_get(hass)
    homes = []
    for entry in _loaded(hass):
        prefix = f"{entry.unique_id}_"
        homes.append(
            {
                "entry_id": entry.entry_id,
                "title": entry.title,
                "entities": {
                    entity.unique_id.removeprefix(prefix): entity.entity_id
                    for entity in er.async_entries_for_config_entry(registry, entry.entry_id)
                    if entity.disabled_by is None
                },
                "sources": entry.runtime_data.home.sources(),
                "inverted": {
                    name: bool(entry.runtime_data.home.plant.get(f"invert_{name}"))
                    for name in ("grid_power", "battery_power")
                },
            }
        )
    connection.send_result(msg["id"], {"homes": homes})


@websocket_api.websocket_command(_OVERVIEW)
@websocket_api.async_response
async def ws_overview(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """Return a home's latest trades, rates and readings."""
    for entry in _loaded(hass):
        if entry.entry_id == msg["entry_id"]:
            break
    else:
        connection.send_error(msg["id"], websocket_api.ERR_NOT_FOUND, "No such home is loaded")
        return
    runtime = entry.runtime_data
    session = runtime.session
    clock, data = session.clock, session.data
    readings = await hass.async_add_executor_job(runtime.outbox.recent, _READINGS_SHOWN)
    trades = sorted(data.trades.values(), key=lambda trade: trade.window_start, reverse=True)
    connection.send_result(
        msg["id"],
        {
            "connected": data.connected,
            "currency": data.currency,
            "utility": session.msp_id,
            "channel": session.client.channel,
            "interval_s": None if clock is None else clock.interval_s,
            "channel_time": (
                None
                if clock is None or not clock.replays
                else dt_util.utc_from_timestamp(
                    clock.channel(dt_util.utcnow().timestamp())
                ).isoformat()
            ),
            "trades": (
                []
                if clock is None
                else [trade.as_response(clock, data.currency) for trade in trades[:_TRADES_SHOWN]]
            ),
            "rates": [
                {
                    "supplier": rate.supplier,
                    "kind": rate.kind,
                    "price_per_kwh": rate.price_micro_per_kwh / 1e6,
                }
                for rate in data.rates
            ],
            "readings": [
                {
                    "start": (
                        None
                        if clock is None
                        else clock.real_datetime(reading.interval_start).isoformat()
                    ),
                    "import_wh": int(reading.fields["import_wh"]),
                    "export_wh": int(reading.fields["export_wh"]),
                    "quality": reading.fields["quality"],
                    "state": reading.state,
                    "transaction_id": reading.transaction_id,
                }
                for reading in readings
            ],
        },
    )
