"""Figures that few owners look at: each is asked for only while its sensor is enabled.

A sensor names the question that its value comes from, and a round asks the questions of those that
are there. What the ledger doesn't know, or can't be read, stays as it was.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import date, datetime, timedelta
from typing import Final, override

from homeassistant.components.recorder import get_instance
from homeassistant.components.recorder.statistics import statistics_during_period
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers import entity_registry as er
from homeassistant.helpers.update_coordinator import DataUpdateCoordinator
from homeassistant.util import dt as dt_util

from .accounts import async_bills, async_certificates
from .archive import async_orders, async_trades
from .client import GridLedgerError
from .client.wire import common_pb2
from .const import CHAINCODE_ENERGY, DEFAULT_PRODUCT, DOMAIN, LOGGER
from .coordinator import GridLedgerConfigEntry
from .market import async_depth
from .models import understood
from .session import LedgerSession

EVERY: Final = timedelta(minutes=15)
_PRICES_BEFORE, _PRICES_AHEAD = 300, 600
"""Intervals around now among which the last price is looked for."""
_TOKEN_DAYS: Final = 60
_PAGE: Final = 200
_BILLED_DAYS: Final = 31
"""The newest billed days that a forecast goes by."""

type Found = dict[str, float | None]


class Figures(DataUpdateCoordinator[Mapping[str, float | None]]):
    """The figures by the key of their sensor."""

    config_entry: GridLedgerConfigEntry

    def __init__(self, hass: HomeAssistant, entry: GridLedgerConfigEntry) -> None:
        """Ask nothing yet: a round begins when a sensor is there."""
        super().__init__(
            hass,
            LOGGER,
            config_entry=entry,
            name=f"{entry.title} figures",
            update_interval=EVERY,
            always_update=False,
        )
        self.data = {}
        self.session: LedgerSession = entry.runtime_data.session
        self._connected = False
        entry.async_on_unload(self.session.async_add_listener(self._session_changed))

    @callback
    def _session_changed(self) -> None:
        """Ask as soon as the ledger is there, or is back."""
        connected = self.session.data.connected
        if connected and not self._connected and any(self.async_contexts()):
            self.config_entry.async_create_task(
                self.hass, self.async_request_refresh(), name=self.name
            )
        self._connected = connected

    @override
    async def _async_update_data(self) -> Mapping[str, float | None]:
        found: Found = dict(self.data)
        for question in sorted(set(self.async_contexts())):
            if not self.session.data.connected or self.session.clock is None:
                break
            try:
                found |= await QUESTIONS[question](self)
            except GridLedgerError as error:
                LOGGER.debug("The figures of %s wait: %s", question, error)
        return found


# Questions ----------------------------------------------------------------------------------------


async def _book(figures: Figures) -> Found:
    """The book of the next interval that can be traded."""
    depth = await async_depth(figures.session, DEFAULT_PRODUCT)
    return {
        f"book_{side}": None if depth is None else sum(one["energy_kwh"] for one in depth[side])
        for side in ("bids", "offers")
    }


async def _price(figures: Figures) -> Found:
    """What neighbours traded at last, in the home's zone."""
    session = figures.session
    clock, client = session.known_clock(), session.client
    now = clock.interval_at(clock.channel(dt_util.utcnow().timestamp()))
    page = await client.evaluate(
        CHAINCODE_ENERGY,
        "book:Prices",
        {
            "product": DEFAULT_PRODUCT,
            "from": max(0, now - _PRICES_BEFORE * clock.interval_s),
            "to": now + _PRICES_AHEAD * clock.interval_s,
        },
    )
    with understood("the market's prices"):
        prices = [
            int(price)
            for interval in page["intervals"]
            for price in (
                interval["last_price"],
                *(
                    zone["price_micro_per_kwh"]
                    for zone in interval["zones"]
                    if zone["zone"] == session.zone
                ),
            )
            if price is not None
        ]
    return {"clearing_price": prices[-1] / 1e6 if prices else None}


async def _chain(figures: Figures) -> Found:
    """How long the chain is."""
    client = figures.session.client
    raw = await client.evaluate("qscc", "GetChainInfo", [client.channel.encode()])
    with understood("the chain"):
        return {"ledger_height": common_pb2.BlockchainInfo.FromString(raw).height}


async def _wallet(figures: Figures) -> Found:
    """What is set aside for orders, sales and as credit."""
    session = figures.session
    answer = await session.client.evaluate(
        CHAINCODE_ENERGY, "wallet:Balance", {"account": session.connection_id}
    )
    with understood("the wallet"):
        return {"held": int(answer["held_micro"]) / 1e6}


async def _tokens(figures: Figures) -> Found:
    """Energy tokens of the last days."""
    session = figures.session
    clock = session.known_clock()
    since = clock.channel(dt_util.utcnow().timestamp()) - _TOKEN_DAYS * 86_400
    answer = await session.client.evaluate(
        CHAINCODE_ENERGY,
        "token:Held",
        {"holder": session.connection_id, "from_day": clock.day(max(0.0, since)), "limit": _PAGE},
    )
    with understood("the tokens"):
        return {"tokens": sum(int(one["energy_wh"]) for one in answer["tokens"]) / 1000}


async def _certificates(figures: Figures) -> Found:
    """Guarantees of origin that can still be used up."""
    held = await async_certificates(figures.session)
    return {"certificates": sum(one["count"] for one in held if one["state"] == "issued")}


async def _bill(figures: Figures) -> Found:
    """What this month will cost if its days are like the newest billed ones."""
    totals: dict[date, float] = {}
    documents = await async_bills(figures.session)
    with understood("a bill"):
        for bill in documents:
            first, end = (date.fromisoformat(bill[key]) for key in ("from_day", "to_day"))
            for number in range(days := (end - first).days):
                day = first + timedelta(days=number)
                totals[day] = totals.get(day, 0.0) + bill["total"] / days
    newest = sorted(totals)[-_BILLED_DAYS:]
    if not newest:
        return {"bill_forecast": None}
    midnight = dt_util.start_of_local_day()
    following = (midnight.replace(day=28) + timedelta(days=4)).replace(day=1)
    month = (following.date() - midnight.replace(day=1).date()).days
    return {"bill_forecast": round(sum(totals[day] for day in newest) / len(newest) * month, 2)}


async def _traded(figures: Figures) -> Found:
    """What was sold to suppliers and bought of neighbours, this month and today."""
    session = figures.session
    clock = session.known_clock()
    midnight = dt_util.start_of_local_day()
    month = midnight.replace(day=1)
    # What is sold or bought for tomorrow, or for another month, is not theirs.
    tomorrow = dt_util.start_of_local_day(midnight.date() + timedelta(days=1))
    start, today, ahead = (int(clock.channel(at.timestamp())) for at in (month, midnight, tomorrow))
    trades = await async_trades(session, start, ahead)
    filled = [
        (int(order["interval_start"]), order)
        for order in await async_orders(session, start, ahead)
        if order["side"] == "bid"
    ]
    found: Found = {
        "energy_sold_month": sum(trade.energy_wh for trade in trades) / 1000,
        "revenue_month": sum(trade.net_micro for trade in trades) / 1e6,
    }
    for name, since in (("today", today), ("month", start)):
        bought = [order for at, order in filled if at >= since]
        found[f"bought_{name}"] = sum(order["filled_kwh"] for order in bought)
        found[f"cost_{name}"] = -sum(order["amount"] for order in bought)
    return found


async def _shares(figures: Figures) -> Found:
    """Where today's use came from, in per cent: own production, neighbours, utility."""
    nothing: Found = dict.fromkeys(("share_own", "share_neighbours", "share_utility"))
    midnight = dt_util.start_of_local_day()
    used = await _used_since(figures, midnight)
    if not used:
        return nothing
    session = figures.session
    clock = session.known_clock()
    start, now = (int(clock.channel(at.timestamp())) for at in (midnight, dt_util.utcnow()))
    readings = await figures.hass.async_add_executor_job(session.outbox.between, start, now, 86_400)
    with understood("a reading"):
        taken = sum(int(one.fields["import_wh"]) for one in readings) / 1000
    orders = await async_orders(session, start, now)
    neighbours = sum(one["filled_kwh"] for one in orders if one["side"] == "bid")
    taken = min(taken, used)
    neighbours = min(neighbours, taken)
    parts = {
        "share_own": used - taken,
        "share_neighbours": neighbours,
        "share_utility": taken - neighbours,
    }
    return {key: round(100 * part / used) for key, part in parts.items()}


async def _used_since(figures: Figures, since: datetime) -> float | None:
    """What the house has used, by the recorder's sums (kWh); None where there are none."""
    hass, entry = figures.hass, figures.config_entry
    entity_id = er.async_get(hass).async_get_entity_id(
        "sensor", DOMAIN, f"{entry.unique_id}_consumption_energy"
    )
    if entity_id is None or "recorder" not in hass.config.components:
        return None
    rows = await get_instance(hass).async_add_executor_job(
        statistics_during_period, hass, since, None, {entity_id}, "5minute", None, {"change"}
    )
    return sum(row.get("change") or 0.0 for row in rows.get(entity_id, ()))


QUESTIONS: Final[Mapping[str, Callable[[Figures], Awaitable[Found]]]] = {
    "book": _book,
    "price": _price,
    "chain": _chain,
    "wallet": _wallet,
    "tokens": _tokens,
    "certificates": _certificates,
    "bill": _bill,
    "traded": _traded,
    "shares": _shares,
}
