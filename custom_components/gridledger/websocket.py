"""Websocket commands that the dashboard's cards read from.

Imported at start: nothing here needs installed requirements.
"""

import asyncio
from collections.abc import Awaitable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import voluptuous as vol
from homeassistant.components import websocket_api
from homeassistant.config_entries import ConfigEntryState
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers import entity_registry as er
from homeassistant.helpers import issue_registry as ir
from homeassistant.util import dt as dt_util

from .const import CONF_CA_URL, DEFAULT_PRODUCT, DOMAIN

if TYPE_CHECKING:
    from .coordinator import GridLedgerConfigEntry

_LEDGER_AWAY: Final = "ledger_away"
"""An error's code, which the cards put into words."""
_READINGS_SHOWN: Final = 30
_TRADES_SHOWN: Final = 50
_BILLS_SHOWN: Final = 50
_SALES_SHOWN: Final = 3
_SPAN_LIMIT: Final = timedelta(days=32)

_HOMES: Any = {vol.Required("type"): f"{DOMAIN}/homes"}
_OVERVIEW: Any = {vol.Required("type"): f"{DOMAIN}/overview", vol.Required("entry_id"): str}


_MARKET: Any = {vol.Required("type"): f"{DOMAIN}/market", vol.Required("entry_id"): str}
_ARCHIVE: Any = {
    vol.Required("type"): f"{DOMAIN}/archive",
    vol.Required("entry_id"): str,
    vol.Required("start"): str,
    vol.Required("end"): str,
}
_PROOF: Any = {
    vol.Required("type"): f"{DOMAIN}/proof",
    vol.Required("entry_id"): str,
    vol.Required("transaction_id"): str,
}
_BILLS: Any = {vol.Required("type"): f"{DOMAIN}/bills", vol.Required("entry_id"): str}
_BILL: Any = {
    vol.Required("type"): f"{DOMAIN}/bill",
    vol.Required("entry_id"): str,
    vol.Required("from_day"): str,
    vol.Required("run"): int,
}
_PLANT: Any = {vol.Required("type"): f"{DOMAIN}/plant", vol.Required("entry_id"): str}
_SUPPLY: Any = {vol.Required("type"): f"{DOMAIN}/supply", vol.Required("entry_id"): str}
_NEIGHBOURS: Any = {vol.Required("type"): f"{DOMAIN}/neighbours", vol.Required("entry_id"): str}
_SALE: Any = {
    vol.Required("type"): f"{DOMAIN}/sale",
    vol.Required("entry_id"): str,
    vol.Required("trade_id"): str,
}
_RULES: Any = {vol.Required("type"): f"{DOMAIN}/rules", vol.Required("entry_id"): str}


@callback
def async_setup_commands(hass: HomeAssistant) -> None:
    """Register the commands."""
    for command in (
        ws_homes,
        ws_overview,
        ws_market,
        ws_plant,
        ws_archive,
        ws_proof,
        ws_bills,
        ws_bill,
        ws_supply,
        ws_rules,
        ws_sale,
        ws_neighbours,
    ):
        websocket_api.async_register_command(hass, command)


def _loaded(hass: HomeAssistant) -> list[GridLedgerConfigEntry]:
    return [
        entry
        for entry in hass.config_entries.async_entries(DOMAIN)
        if entry.state is ConfigEntryState.LOADED
    ]


def _home(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> GridLedgerConfigEntry | None:
    """Return the home that a command names; say so where there is none."""
    for entry in _loaded(hass):
        if entry.entry_id == msg["entry_id"]:
            return entry
    connection.send_error(msg["id"], websocket_api.ERR_NOT_FOUND, "No such home is loaded")
    return None


async def _answer(
    connection: websocket_api.ActiveConnection,
    msg: dict[str, Any],
    question: Awaitable[dict[str, Any]],
) -> None:
    """Answer with what the ledger says, or with why it says nothing."""
    from .client import ConnectionFailed, GridLedgerError, Timeout

    try:
        connection.send_result(msg["id"], await question)
    except (ConnectionFailed, Timeout) as error:
        connection.send_error(msg["id"], _LEDGER_AWAY, str(error))
    except GridLedgerError as error:
        connection.send_error(msg["id"], websocket_api.ERR_HOME_ASSISTANT_ERROR, str(error))


async def _ask(
    entry: GridLedgerConfigEntry,
    connection: websocket_api.ActiveConnection,
    msg: dict[str, Any],
    question: Coroutine[Any, Any, dict[str, Any]],
) -> None:
    """Answer as the ledger does; while it is known to be away nobody waits for it."""
    if entry.runtime_data.session.data.connected:
        await _answer(connection, msg, question)
    else:
        question.close()
        connection.send_error(msg["id"], _LEDGER_AWAY, "The ledger is away")


@websocket_api.websocket_command(_MARKET)
@websocket_api.async_response
async def ws_market(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """Return rates, the book, own orders, and what the battery could sell."""
    if (entry := _home(hass, connection, msg)) is None:
        return
    from .market import async_depth, async_followed_orders, async_prices

    runtime = entry.runtime_data
    session = runtime.session

    async def read() -> dict[str, Any]:
        prices, depth, orders = await asyncio.gather(
            async_prices(session, 2),
            async_depth(session, DEFAULT_PRODUCT),
            async_followed_orders(session),
        )
        return {
            "currency": session.data.currency,
            "prices": prices,
            "book": depth,
            "orders": orders,
            "battery": runtime.seller.battery(),
            "max_export_w": session.data.max_export_w,
        }

    await _ask(entry, connection, msg, read())


@websocket_api.websocket_command(_ARCHIVE)
@websocket_api.async_response
async def ws_archive(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """Return a span's readings by the hour, its trades and postings."""
    if (entry := _home(hass, connection, msg)) is None:
        return
    start, end = (dt_util.parse_datetime(msg[name]) for name in ("start", "end"))
    if start is None or end is None or not start < end <= start + _SPAN_LIMIT:
        connection.send_error(msg["id"], websocket_api.ERR_INVALID_FORMAT, "start or end")
        return
    from .archive import async_archive
    from .client import ConnectionFailed, Timeout

    runtime = entry.runtime_data
    session, outbox = runtime.session, runtime.outbox

    async def read() -> dict[str, Any]:
        if session.data.connected:
            try:
                return await async_archive(session, outbox, start, end)
            except ConnectionFailed, Timeout:
                pass  # what the home keeps itself is there all the same
        return {**await async_archive(session, outbox, start, end, ledger=False), "away": True}

    await _answer(connection, msg, read())


@websocket_api.websocket_command(_PROOF)
@websocket_api.async_response
async def ws_proof(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """Return where a transaction stands in the chain, and who endorsed it."""
    if (entry := _home(hass, connection, msg)) is None:
        return
    from .archive import async_proof

    session = entry.runtime_data.session
    await _ask(entry, connection, msg, async_proof(session, msg["transaction_id"]))


@websocket_api.websocket_command(_BILLS)
@websocket_api.async_response
async def ws_bills(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """Return the home's bills and credit notes, the newest first."""
    if (entry := _home(hass, connection, msg)) is None:
        return
    from .accounts import async_bills

    session = entry.runtime_data.session

    async def read() -> dict[str, Any]:
        return {"bills": (await async_bills(session))[:_BILLS_SHOWN]}

    await _ask(entry, connection, msg, read())


@websocket_api.websocket_command(_BILL)
@websocket_api.async_response
async def ws_bill(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """Return all lines of a bill."""
    if (entry := _home(hass, connection, msg)) is None:
        return
    from .accounts import async_bill_lines

    session = entry.runtime_data.session
    await _ask(entry, connection, msg, async_bill_lines(session, msg["from_day"], msg["run"]))


@websocket_api.websocket_command(_SUPPLY)
@websocket_api.async_response
async def ws_supply(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """Return permit, open bills, credit, response events and guarantees of origin."""
    if (entry := _home(hass, connection, msg)) is None:
        return
    from .accounts import async_certificates

    session = entry.runtime_data.session

    async def read() -> dict[str, Any]:
        await session.async_read_account_changes()
        clock, account, currency = session.clock, session.data.account, session.data.currency
        prepaid = None if account is None else account.prepaid
        return {
            "currency": currency,
            "supplied": account is not None and account.permit is not None,
            "permit": _permit(entry),
            "open": 0.0 if account is None else account.open_micro / 1e6,
            "due": 0.0 if account is None else account.due_micro / 1e6,
            "billed_to": None if account is None else account.billed_to,
            "bills": (
                []
                if account is None or clock is None
                else [bill.as_response(clock, currency) for bill in account.bills]
            ),
            "prepaid": (
                None
                if prepaid is None
                else {
                    "credit": prepaid.credit_micro / 1e6,
                    "credit_kwh": prepaid.credit_wh / 1000,
                    "days_left": prepaid.days_left,
                    "low": prepaid.low,
                }
            ),
            "responses": (
                []
                if account is None or clock is None
                else [
                    event.as_response(clock, currency)
                    for event in account.responses
                    if not event.cancelled
                ]
            ),
            "certificates": await async_certificates(session),
        }

    await _ask(entry, connection, msg, read())


def _permit(entry: GridLedgerConfigEntry) -> dict[str, Any] | None:
    """Return the supply permit in the units of people, None where there is none."""
    from .accounts import permit_as_response

    session = entry.runtime_data.session
    account = session.data.account
    if account is None or account.permit is None or session.clock is None:
        return None
    return permit_as_response(account.permit, session.clock, session.data.currency)


@websocket_api.websocket_command(_NEIGHBOURS)
@websocket_api.async_response
async def ws_neighbours(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """Return what was traded with neighbours since midnight (kWh)."""
    if (entry := _home(hass, connection, msg)) is None:
        return
    from .archive import async_traded_with_neighbours

    session = entry.runtime_data.session
    midnight = dt_util.start_of_local_day()
    await _ask(entry, connection, msg, async_traded_with_neighbours(session, midnight))


@websocket_api.websocket_command(_RULES)
@callback
def ws_rules(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """Return the trading rules: whether they are on, dry, and what they have brought."""
    if (entry := _home(hass, connection, msg)) is None:
        return
    keeper = entry.runtime_data.keeper
    clock = keeper.sales.clock
    registry = er.async_get(hass)
    entities = {
        entity.config_subentry_id: entity.entity_id
        for entity in er.async_entries_for_config_entry(registry, entry.entry_id)
        if entity.translation_key == "rule_status"
    }
    connection.send_result(
        msg["id"],
        {
            "currency": entry.runtime_data.session.data.currency,
            "rules": [
                {
                    "name": rule.name,
                    "dry_run": rule.dry_run,
                    "entity_id": entities.get(rule.id),
                    "traded_kwh": round(keeper.traded_wh(rule.id) / 1000, 3),
                    "earned": keeper.earned.get(rule.id, 0.0),
                    "sales": (
                        []
                        if clock is None
                        else [
                            sale.as_response(clock)
                            for sale in keeper.sales.of_rule(rule.id)[:_SALES_SHOWN]
                        ]
                    ),
                }
                for rule in keeper.dispatcher.settings.rules
            ],
        },
    )


@websocket_api.websocket_command(_SALE)
@websocket_api.async_response
async def ws_sale(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """Return how far a sale is: in the ledger, delivering, over, delivered or short, settled."""
    if (entry := _home(hass, connection, msg)) is None:
        return
    sales = entry.runtime_data.keeper.sales
    await sales.async_follow()
    sale, clock = sales.find(msg["trade_id"]), sales.clock
    connection.send_result(
        msg["id"], {"sale": None if sale is None or clock is None else sale.as_response(clock)}
    )


@websocket_api.websocket_command(_PLANT)
@websocket_api.async_response
async def ws_plant(
    hass: HomeAssistant, connection: websocket_api.ActiveConnection, msg: dict[str, Any]
) -> None:
    """Return the plant's sensors, what is odd about them, and how metering and ledger stand."""
    if (entry := _home(hass, connection, msg)) is None:
        return
    from .plant_form import plant_sensors, plant_warnings
    from .renewal import renewal_due

    runtime = entry.runtime_data
    session, plant = runtime.session, runtime.home.plant
    odd = {(one.field, one.entity_id): one.kind for one in plant_warnings(hass, plant)}
    certificate = session.client.identity.certificate
    summary = await hass.async_add_executor_job(runtime.outbox.summary)
    issues = ir.async_get(hass).issues
    connection.send_result(
        msg["id"],
        {
            "sensors": [
                {"field": field, "entity_id": entity_id, "odd": odd.get((field, entity_id))}
                for field, entity_id in plant_sensors(plant)
            ],
            "connected": session.data.connected,
            "gateway": session.client.address,
            "gateways": list(session.client.addresses),
            "utility": session.msp_id,
            "channel": session.client.channel,
            "connection_id": session.connection_id,
            "meter_id": session.meter_id,
            "metering": bool(runtime.home.meter and runtime.home.meter.started),
            "queued": summary.queued,
            "refused": summary.refused,
            "certificate_until": certificate.not_valid_after_utc.isoformat(),
            "renewal_at": renewal_due(session.client.identity).isoformat(),
            "renews_itself": CONF_CA_URL in entry.data,
            "permit": _permit(entry),
            "battery": runtime.seller.battery(),
            "max_export_w": session.data.max_export_w,
            "issues": [
                issue.translation_key
                for (domain, issue_id), issue in issues.items()
                if domain == DOMAIN
                and issue_id.endswith(entry.entry_id)
                and issue.active
                and not issue_id.startswith("permit_")  # said by the permit itself
            ],
        },
    )


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
    if (entry := _home(hass, connection, msg)) is None:
        return
    runtime = entry.runtime_data
    session = runtime.session
    clock, data = session.clock, session.data
    readings = await hass.async_add_executor_job(runtime.outbox.recent, _READINGS_SHOWN)
    trades = sorted(data.trades.values(), key=lambda trade: trade.window_start, reverse=True)
    sales = runtime.keeper.sales
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
                else [
                    {
                        **trade.as_response(clock, data.currency),
                        "state": sales.state_of(trade.trade_id),
                    }
                    for trade in trades[:_TRADES_SHOWN]
                ]
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
