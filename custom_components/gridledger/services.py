"""The actions ``gridledger.quote_sale`` and ``gridledger.sell_energy``.

Registered once, at start, so this module imports nothing that needs installed requirements.
"""

from datetime import datetime
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
from homeassistant.exceptions import ServiceValidationError
from homeassistant.helpers import config_validation as cv
from homeassistant.util import dt as dt_util

from .const import (
    ATTR_CONFIG_ENTRY,
    ATTR_ENERGY,
    ATTR_MIN_PRICE,
    ATTR_QUOTE,
    ATTR_REQUEST_ID,
    ATTR_SUPPLIER,
    ATTR_WINDOW_END,
    ATTR_WINDOW_START,
    DOMAIN,
    SERVICE_QUOTE_SALE,
    SERVICE_SELL_ENERGY,
)

if TYPE_CHECKING:
    from .coordinator import GridLedgerConfigEntry, GridLedgerRuntime
    from .models import Trade
    from .session import LedgerSession

# The contract's own limit is the connection's; this catches Wh given for kWh.
_ENERGY_LIMIT_KWH = 10_000

_WISH: dict[vol.Marker, Any] = {
    vol.Optional(ATTR_CONFIG_ENTRY): cv.string,
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


@callback
def async_setup_services(hass: HomeAssistant) -> None:
    """Register the actions."""
    hass.services.async_register(
        DOMAIN,
        SERVICE_QUOTE_SALE,
        _quote_sale,
        schema=QUOTE_SCHEMA,
        supports_response=SupportsResponse.ONLY,
    )
    hass.services.async_register(
        DOMAIN,
        SERVICE_SELL_ENERGY,
        _sell_energy,
        schema=SELL_SCHEMA,
        supports_response=SupportsResponse.OPTIONAL,
    )


def _runtime(call: ServiceCall) -> GridLedgerRuntime:
    """Return the home that a call means: the named one, or the only one."""
    entries: list[GridLedgerConfigEntry] = call.hass.config_entries.async_entries(DOMAIN)
    if (wanted := call.data.get(ATTR_CONFIG_ENTRY)) is not None:
        entries = [entry for entry in entries if entry.entry_id == wanted]
        if not entries:
            raise _invalid("entry_not_found")
    loaded = [entry for entry in entries if entry.state is ConfigEntryState.LOADED]
    if not loaded:
        raise _invalid("entry_not_loaded")
    if len(loaded) > 1:
        raise _invalid("entry_ambiguous")
    return loaded[0].runtime_data


def _instant(call: ServiceCall, name: str) -> datetime | None:
    """Return a time that was given; without a zone it is local."""
    given: datetime | None = call.data.get(name)
    return None if given is None else dt_util.as_utc(given)


async def _quote(call: ServiceCall, runtime: GridLedgerRuntime) -> dict[str, Any]:
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
    assert session.clock is not None
    clock = session.clock
    starts = [int(part["interval_start"]) for part in quote["schedule"]]
    return {
        "supplier": quote["supplier"],
        "energy_kwh": int(quote["energy_wh"]) / 1000,
        "price_per_kwh": int(quote["price_micro_per_kwh"]) / 1e6,
        "gross": int(quote["gross_micro"]) / 1e6,
        "grid_fee": int(quote["grid_fee_micro"]) / 1e6,
        "net": int(quote["net_micro"]) / 1e6,
        "currency": session.data.currency,
        "window_start": clock.real_datetime(min(starts)).isoformat(),
        "window_end": clock.real_datetime(max(starts) + clock.interval_s).isoformat(),
        "valid_until": clock.real_datetime(int(quote["valid_until"])).isoformat(),
        "quote": quote,
    }


async def _sell_energy(call: ServiceCall) -> ServiceResponse:
    """Sell: a quote exactly as given, or as much energy as asked at today's best rate."""
    runtime = _runtime(call)
    session = runtime.session
    quote, request_id = call.data.get(ATTR_QUOTE), call.data.get(ATTR_REQUEST_ID)
    if quote is None:
        # A repeated request is answered with its sale: a new quote would count it as promised.
        if request_id is not None and (known := await runtime.seller.known(request_id)):
            return _sold(session, *known)
        quote = await _quote(call, runtime)
    minimum = call.data.get(ATTR_MIN_PRICE)
    try:
        price = int(quote["price_micro_per_kwh"]) / 1e6
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid("unreadable_quote") from error
    if minimum is not None and price < minimum:
        raise _invalid(
            "price_too_low",
            price=f"{price:.4f}",
            minimum=f"{minimum:.4f}",
            currency=session.data.currency,
        )
    return _sold(session, *await runtime.seller.sell(quote, request_id))


def _sold(session: LedgerSession, trade: Trade, block: int) -> ServiceResponse:
    assert session.clock is not None
    return {
        **trade.as_response(session.clock, session.data.currency),
        "status": "committed",
        "block": block,
    }


def _invalid(key: str, **placeholders: str) -> ServiceValidationError:
    return ServiceValidationError(
        translation_domain=DOMAIN, translation_key=key, translation_placeholders=placeholders
    )
