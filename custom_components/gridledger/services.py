"""The actions: quote and sell, orders, prices, the archive, and leaving.

Registered once, at start, so this module imports nothing that needs installed requirements.
"""

from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import voluptuous as vol
from homeassistant.config_entries import ConfigEntryState
from homeassistant.core import (
    HomeAssistant,
    ServiceCall,
    ServiceResponse,
    SupportsResponse,
    callback,
)
from homeassistant.helpers import config_validation as cv
from homeassistant.util import dt as dt_util

from .account_services import account_actions
from .actions import HOME, Action, async_check_trader, async_is_administrator, invalid
from .const import (
    ATTR_CONFIG_ENTRY,
    ATTR_CONFIRM,
    ATTR_DAYS,
    ATTR_END,
    ATTR_ENERGY,
    ATTR_FORMAT,
    ATTR_GIFT,
    ATTR_MIN_PRICE,
    ATTR_ORDER_ID,
    ATTR_PARTNER,
    ATTR_PRICE,
    ATTR_PRODUCT,
    ATTR_QUOTE,
    ATTR_REQUEST_ID,
    ATTR_SIDE,
    ATTR_START,
    ATTR_SUPPLIER,
    ATTR_TRANSACTION_ID,
    ATTR_WINDOW_END,
    ATTR_WINDOW_START,
    DEFAULT_PRODUCT,
    DOMAIN,
    SERVICE_CANCEL_ORDER,
    SERVICE_EXPORT_DATA,
    SERVICE_GET_ARCHIVE,
    SERVICE_GET_PRICES,
    SERVICE_GET_PROOF,
    SERVICE_LEAVE_NETWORK,
    SERVICE_LIST_ORDERS,
    SERVICE_PLACE_ORDER,
    SERVICE_QUOTE_SALE,
    SERVICE_SELL_ENERGY,
)
from .keeper_services import keeper_actions

if TYPE_CHECKING:
    from .coordinator import GridLedgerConfigEntry, GridLedgerRuntime
    from .models import Quote, Trade
    from .session import LedgerSession

# The contract's own limit is the connection's; this catches Wh given for kWh.
_ENERGY_LIMIT_KWH = 10_000

_WISH: dict[vol.Marker, Any] = {
    **HOME,
    vol.Optional(ATTR_WINDOW_START): cv.datetime,
    vol.Optional(ATTR_WINDOW_END): cv.datetime,
    vol.Optional(ATTR_SUPPLIER): cv.string,
}
_ENERGY = vol.All(vol.Coerce(float), vol.Range(min=0.001, max=_ENERGY_LIMIT_KWH))

QUOTE_SCHEMA: Any = vol.Schema({**_WISH, vol.Required(ATTR_ENERGY): _ENERGY})
SELL_SCHEMA: Any = vol.All(
    vol.Schema(
        {
            **_WISH,
            vol.Exclusive(ATTR_ENERGY, "what"): _ENERGY,
            vol.Exclusive(ATTR_QUOTE, "what"): dict,
            vol.Optional(ATTR_MIN_PRICE): vol.Coerce(float),
            vol.Optional(ATTR_REQUEST_ID): vol.All(
                cv.string, vol.Match(r"^[A-Z0-9-]{1,64}$", msg="use A-Z, 0-9 and -")
            ),
        }
    ),
    cv.has_at_least_one_key(ATTR_ENERGY, ATTR_QUOTE),
)


_ID = vol.All(cv.string, vol.Match(r"^[A-Za-z0-9-]{1,64}$", msg="use letters, digits and -"))
ORDER_SCHEMA: Any = vol.Schema(
    {
        **HOME,
        vol.Required(ATTR_SIDE): vol.In(["buy", "sell"]),
        vol.Required(ATTR_ENERGY): _ENERGY,
        vol.Required(ATTR_PRICE): vol.All(vol.Coerce(float), vol.Range(min=-100, max=100)),
        vol.Required(ATTR_START): cv.datetime,
        vol.Optional(ATTR_PRODUCT, default=DEFAULT_PRODUCT): cv.string,
        vol.Optional(ATTR_ORDER_ID): _ID,
        vol.Exclusive(ATTR_PARTNER, "whom"): _ID,
        vol.Exclusive(ATTR_GIFT, "whom"): _ID,
    }
)
CANCEL_SCHEMA: Any = vol.Schema({**HOME, vol.Required(ATTR_ORDER_ID): _ID})
LIST_SCHEMA: Any = vol.Schema(HOME)
PRICES_SCHEMA: Any = vol.Schema(
    {
        **HOME,
        vol.Optional(ATTR_DAYS, default=2): vol.All(vol.Coerce(int), vol.Range(min=1, max=14)),
    }
)
ARCHIVE_SCHEMA: Any = vol.Schema(
    {
        **HOME,
        vol.Required(ATTR_START): cv.datetime,
        vol.Optional(ATTR_END): cv.datetime,
        vol.Optional(ATTR_FORMAT, default="data"): vol.In(["data", "csv"]),
    }
)
PROOF_SCHEMA: Any = vol.Schema(
    {
        **HOME,
        vol.Required(ATTR_TRANSACTION_ID): vol.All(
            cv.string, vol.Match(r"^[0-9a-f]{64}$", msg="64 hexadecimal digits")
        ),
    }
)
LEAVE_SCHEMA: Any = vol.Schema({**HOME, vol.Required(ATTR_CONFIRM): cv.boolean})


@callback
def async_setup_services(hass: HomeAssistant) -> None:
    """Register the actions."""
    only, optional = SupportsResponse.ONLY, SupportsResponse.OPTIONAL
    actions: tuple[Action, ...] = (
        (SERVICE_QUOTE_SALE, _quote_sale, QUOTE_SCHEMA, only),
        (SERVICE_SELL_ENERGY, _sell_energy, SELL_SCHEMA, optional),
        (SERVICE_PLACE_ORDER, _place_order, ORDER_SCHEMA, optional),
        (SERVICE_CANCEL_ORDER, _cancel_order, CANCEL_SCHEMA, optional),
        (SERVICE_LIST_ORDERS, _list_orders, LIST_SCHEMA, only),
        (SERVICE_GET_PRICES, _get_prices, PRICES_SCHEMA, only),
        (SERVICE_GET_ARCHIVE, _get_archive, ARCHIVE_SCHEMA, only),
        (SERVICE_GET_PROOF, _get_proof, PROOF_SCHEMA, only),
        (SERVICE_EXPORT_DATA, _export_data, LIST_SCHEMA, only),
        (SERVICE_LEAVE_NETWORK, _leave_network, LEAVE_SCHEMA, optional),
        *account_actions(_runtime, _trading, _asked),
        *keeper_actions(_runtime),
    )
    for name, handler, schema, response in actions:
        hass.services.async_register(
            DOMAIN, name, handler, schema=schema, supports_response=response
        )


def _entry(call: ServiceCall) -> GridLedgerConfigEntry:
    """Return the home that a call means: the named one, or the only one."""
    entries: list[GridLedgerConfigEntry] = call.hass.config_entries.async_entries(DOMAIN)
    if (wanted := call.data.get(ATTR_CONFIG_ENTRY)) is not None:
        entries = [entry for entry in entries if entry.entry_id == wanted]
        if not entries:
            raise invalid("entry_not_found")
    loaded = [entry for entry in entries if entry.state is ConfigEntryState.LOADED]
    if not loaded:
        raise invalid("entry_not_loaded")
    if len(loaded) > 1:
        raise invalid("entry_ambiguous")
    return loaded[0]


def _runtime(call: ServiceCall) -> GridLedgerRuntime:
    return _entry(call).runtime_data


async def _trading(call: ServiceCall) -> GridLedgerRuntime:
    """Return the home, if whoever calls may trade in its name."""
    entry = _entry(call)
    await async_check_trader(call.hass, entry, call.context)
    return entry.runtime_data


async def _asked[T](question: Awaitable[T]) -> T:
    """Wait for the ledger's answer, or say in the owner's words why there is none."""
    from .client import GridLedgerError
    from .selling import translated

    try:
        return await question
    except GridLedgerError as error:
        raise translated(error) from error


def _instant(call: ServiceCall, name: str) -> datetime | None:
    """Return a time that was given; without a zone it is local."""
    given: datetime | None = call.data.get(name)
    return None if given is None else dt_util.as_utc(given)


async def _quote(call: ServiceCall, runtime: GridLedgerRuntime) -> Quote:
    return await runtime.seller.quote(
        round(call.data[ATTR_ENERGY] * 1000),
        _instant(call, ATTR_WINDOW_START),
        _instant(call, ATTR_WINDOW_END),
        call.data.get(ATTR_SUPPLIER),
    )


async def _quote_sale(call: ServiceCall) -> ServiceResponse:
    """Say what a sale would bring. Nothing is sold."""
    runtime = _runtime(call)
    quote = await _quote(call, runtime)
    session = runtime.session
    return quote.as_response(session.known_clock(), session.data.currency)


async def _sell_energy(call: ServiceCall) -> ServiceResponse:
    """Sell: a quote exactly as given, or as much energy as asked at today's best rate."""
    from .models import Quote

    runtime = await _trading(call)
    session = runtime.session
    given, request_id = call.data.get(ATTR_QUOTE), call.data.get(ATTR_REQUEST_ID)
    if given is None:
        # A repeated request is answered with its sale: a new quote would count it as promised.
        if request_id is not None and (known := await runtime.seller.known(request_id)):
            return _sold(session, *known)
        quote = await _quote(call, runtime)
    else:
        try:
            quote = Quote.from_json(given)
        except (KeyError, TypeError, ValueError) as error:
            raise invalid("unreadable_quote") from error
    minimum, price = call.data.get(ATTR_MIN_PRICE), quote.price_micro_per_kwh / 1e6
    if minimum is not None and price < minimum:
        raise invalid(
            "price_too_low",
            price=f"{price:.4f}",
            minimum=f"{minimum:.4f}",
            currency=session.data.currency,
        )
    return _sold(session, *await runtime.seller.sell(quote, request_id))


def _sold(session: LedgerSession, trade: Trade, block: int) -> ServiceResponse:
    return {
        **trade.as_response(session.known_clock(), session.data.currency),
        "status": "committed",
        "block": block,
    }


async def _place_order(call: ServiceCall) -> ServiceResponse:
    """Place an order in the neighbours' book."""
    from .market import async_place

    runtime = await _trading(call)
    start = _instant(call, ATTR_START)
    assert start is not None
    return await _asked(
        async_place(
            runtime.session,
            "bid" if call.data[ATTR_SIDE] == "buy" else "offer",
            round(call.data[ATTR_ENERGY] * 1000),
            round(call.data[ATTR_PRICE] * 1e6),
            call.data[ATTR_PRODUCT],
            start.timestamp(),
            call.data.get(ATTR_ORDER_ID),
            {key: call.data[key] for key in (ATTR_PARTNER, ATTR_GIFT) if key in call.data},
        )
    )


async def _cancel_order(call: ServiceCall) -> ServiceResponse:
    """Take an open order back."""
    from .market import async_cancel

    runtime = await _trading(call)
    return await _asked(async_cancel(runtime.session, call.data[ATTR_ORDER_ID]))


async def _list_orders(call: ServiceCall) -> ServiceResponse:
    """List the orders of intervals ahead."""
    from .market import async_orders

    orders = await _asked(async_orders(_runtime(call).session))
    return {"orders": orders}  # type: ignore[dict-item]


async def _get_prices(call: ServiceCall) -> ServiceResponse:
    """List suppliers' rates, today and ahead."""
    from .market import async_prices

    session = _runtime(call).session
    prices = await _asked(async_prices(session, call.data[ATTR_DAYS]))
    return {"currency": session.data.currency, "prices": prices}  # type: ignore[dict-item]


async def _get_archive(call: ServiceCall) -> ServiceResponse:
    """Return a span's readings, trades and postings, as data or as CSV."""
    from .archive import as_csv, async_archive

    runtime = _runtime(call)
    start, end = _instant(call, ATTR_START), _instant(call, ATTR_END)
    assert start is not None
    if end is None:
        end = start + timedelta(days=1)
    if end <= start:
        raise invalid("window_empty")
    found = await _asked(async_archive(runtime.session, runtime.outbox, start, end))
    if call.data[ATTR_FORMAT] == "csv":
        for name in ("readings", "trades", "orders", "postings"):
            found[name] = as_csv(found[name])
    return found


async def _get_proof(call: ServiceCall) -> ServiceResponse:
    """Say where a transaction stands in the chain, and who endorsed it."""
    from .archive import async_proof

    return await _asked(async_proof(_runtime(call).session, call.data[ATTR_TRANSACTION_ID]))


async def _export_data(call: ServiceCall) -> ServiceResponse:
    """Return everything that is kept of the home, here and on the ledger."""
    from .archive import async_archive

    entry = _entry(call)
    runtime = entry.runtime_data
    archive = await _asked(
        async_archive(
            runtime.session,
            runtime.outbox,
            dt_util.utc_from_timestamp(0),
            dt_util.utcnow() + timedelta(days=366),
        )
    )
    plant: Any = dict(runtime.home.plant)
    return {
        "home": entry.title,
        "network": runtime.session.client.channel,
        "utility": runtime.session.msp_id,
        "meter": runtime.session.meter_id,
        "plant": plant,
        **archive,
    }


async def _leave_network(call: ServiceCall) -> ServiceResponse:
    """End what is open, delete the keys, and remove the home."""
    from .market import async_cancel, async_orders

    entry = _entry(call)
    if not await async_is_administrator(call.hass, call.context):
        raise invalid("administrators_only")
    if not call.data[ATTR_CONFIRM]:
        raise invalid("not_confirmed")
    session = entry.runtime_data.session
    await _asked(session.async_refresh_market())
    clock, data = session.known_clock(), session.data
    now = clock.interval_at(clock.channel(dt_util.utcnow().timestamp()))
    if promised := sum(trade.energy_from(now) for trade in data.trades.values()):
        raise invalid("still_promised", energy=f"{promised / 1000:.3f}")
    if data.queued:
        raise invalid("still_queued", readings=str(data.queued))
    orders = [
        order
        for order in await _asked(async_orders(session))
        if order["state"] == "open" and order["interval_start"] >= now
    ]
    for order in orders:
        await _asked(async_cancel(session, order["order_id"]))
    # Its owner may still ask the utility for it: the account is the connection's, not the key's.
    balance = (data.balance_micro or 0) / 1e6
    await call.hass.config_entries.async_remove(entry.entry_id)
    return {"left": True, "orders_cancelled": len(orders), "balance": balance}
