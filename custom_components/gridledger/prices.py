"""Prices of the hours ahead: an owner's price sensor, or what suppliers publish on the channel.

An owner's sensor may carry its series as an attribute (custom Nord Pool, Tibber, Amber, ENTSO-e,
EPEX), spread over several event entities (Octopus Energy), or give it by an action (Home
Assistant's own Nord Pool and Tibber). Where a series ends, the same hour of the day before counts:
tomorrow is taken to be like today.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from typing import Any, Final

from homeassistant.config_entries import ConfigEntry
from homeassistant.core import HomeAssistant, State
from homeassistant.helpers import entity_registry as er
from homeassistant.util import dt as dt_util

from .client import GridLedgerError
from .const import CONF_BUY_PRICE, CONF_SELL_PRICE, LOGGER
from .coordinator import number
from .market import async_prices
from .session import LedgerSession

_STARTS: Final = ("start", "start_time", "startsAt", "starts_at", "valid_from", "from", "time")
_HOURS: Final = ("hour", "datetime", "date")
_ENDS: Final = ("end", "end_time", "endsAt", "valid_to", "to", "till")
_VALUES: Final = (
    "value_inc_vat",
    "total",
    "value",
    "price_per_kwh",
    "per_kwh",
    "price",
    "electricity_price",
)
_POINTS_LIMIT: Final = 2000
_APART_S: Final = 900.0
_DAY_S: Final = 86_400.0
_PER_MWH: Final = 0.001


@dataclass(frozen=True, slots=True)
class Price:
    """A price per kWh from one instant to another (epoch seconds)."""

    start: float
    end: float
    per_kwh: float


class Series:
    """Prices by time. It answers beyond its end with the day before."""

    def __init__(self, prices: Iterable[Price] = ()) -> None:
        """Sort the prices; of several for one instant the first counts."""
        by_start: dict[float, Price] = {}
        for price in prices:
            by_start.setdefault(price.start, price)
        self._prices = sorted(by_start.values(), key=lambda price: price.start)
        self._starts = [price.start for price in self._prices]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._prices)

    def at(self, instant: float) -> float | None:
        """Return the price at an instant, else that of a day earlier, None if neither is known."""
        for moment in (instant, instant - _DAY_S):
            index = bisect_right(self._starts, moment) - 1
            if index >= 0 and moment < self._prices[index].end:
                return self._prices[index].per_kwh
        return None


def _instant(value: Any) -> float | None:
    if isinstance(value, str):
        value = dt_util.parse_datetime(value)
    if not isinstance(value, datetime):
        return None
    moment: datetime = value
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt_util.get_default_time_zone())
    return moment.timestamp()


def _first(row: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def prices_of(rows: Iterable[Any], scale: float = 1.0) -> list[Price]:
    """Read rows of prices, whatever their keys; rows that can't be read are left out.

    A row without an end lasts until the next one, the last as long as the one before.
    """
    points: list[tuple[float, float | None, float]] = []
    for row in list(rows)[:_POINTS_LIMIT]:
        if not isinstance(row, Mapping):
            continue
        start = _instant(_first(row, (*_STARTS, *_HOURS)))
        try:
            value = float(_first(row, _VALUES))
        except TypeError, ValueError:
            continue
        if start is not None and isfinite(value):
            points.append((start, _instant(_first(row, _ENDS)), value * scale))
    points.sort(key=lambda point: point[0])
    found: list[Price] = []
    length = 3600.0
    for index, (start, end, value) in enumerate(points):
        if end is None and index + 1 < len(points):
            end = points[index + 1][0]
        if end is None or not start < end <= start + _DAY_S:
            end = start + length
        length = end - start
        found.append(Price(start, end, value))
    return found


def scale_of(state: State) -> float:
    """Return what a sensor's numbers are multiplied by to be a price per kWh in the currency."""
    unit = str(state.attributes.get("unit_of_measurement") or "").strip()
    money, _, energy = unit.partition("/")
    scale = {"mwh": _PER_MWH, "wh": 1000.0}.get(energy.strip().lower(), 1.0)
    cents = money.strip().lower() in {"c", "ct", "cent", "cents", "¢", "öre", "øre", "ore", "p"}
    if cents or state.attributes.get("price_in_cents") is True:
        scale /= 100
    return scale


def series_of(state: State) -> list[Price]:
    """Return all prices that a state's attributes hold."""
    scale, found = scale_of(state), []
    for value in state.attributes.values():
        if isinstance(value, (list, tuple)):
            found += prices_of(value, scale)
    return found


class PriceBook:
    """What a kWh costs and brings, now and in the hours ahead."""

    def __init__(
        self, hass: HomeAssistant, entry: ConfigEntry[Any], session: LedgerSession
    ) -> None:
        """Begin knowing nothing; :meth:`async_refresh` reads."""
        self._hass = hass
        self._entry = entry
        self._session = session
        self._own: dict[str, Series] = {}
        self._now: dict[str, float] = {}
        self._channel: dict[str, Series] = {}
        self._read_at = 0.0

    async def async_refresh(self, now: float) -> None:
        """Read the owner's sensors anew, and the channel's series at most each quarter of an hour.

        What can't be read stays as it was.
        """
        for option in (CONF_BUY_PRICE, CONF_SELL_PRICE):
            await self._read_own(option, now)
        # Whatever the clock has done since.
        if self._session.data.connected and not 0 <= now - self._read_at < _APART_S:
            try:
                await self._read_channel()
            except GridLedgerError as error:
                LOGGER.debug("The published prices can't be read: %s", error)
            else:
                self._read_at = now

    async def _read_own(self, option: str, now: float) -> None:
        given = self._entry.options.get(option) or []
        entities = [given] if isinstance(given, str) else list(given)
        if not entities:
            self._own.pop(option, None)
            self._now.pop(option, None)
            return
        found: list[Price] = []
        current: float | None = None
        for entity_id in entities:
            state = self._hass.states.get(entity_id)
            if state is None:
                continue
            found += series_of(state)
            value = number(state)
            if current is None and value is not None and entity_id.startswith("sensor."):
                current = value * scale_of(state)
            if not found:
                found += await self._asked(entity_id)
        if found:
            self._own[option] = Series(found)
        if current is None:
            self._now.pop(option, None)
        else:
            self._now[option] = current

    async def _asked(self, entity_id: str) -> list[Price]:
        """Ask Home Assistant's own Nord Pool or Tibber for the series of one of its sensors."""
        known = er.async_get(self._hass).async_get(entity_id)
        if known is None:
            return []
        today = dt_util.now().date()
        days = (today, today + timedelta(days=1))
        if known.platform == "nordpool":
            asked = [
                ("get_prices_for_date", {"config_entry": known.config_entry_id, "date": str(day)})
                for day in days
            ]
            scale = _PER_MWH
        elif known.platform == "tibber":
            asked = [("get_prices", {"start": str(days[0]), "end": str(today + timedelta(days=2))})]
            scale = 1.0
        else:
            return []
        found: list[Price] = []
        for action, data in asked:
            try:
                answer: Any = await self._hass.services.async_call(
                    known.platform, action, data, blocking=True, return_response=True
                )
            except Exception as error:  # of whatever kind: it is another integration's
                LOGGER.debug("%s can't tell its prices: %s", entity_id, error)
                continue
            places = answer.get("prices", answer) if isinstance(answer, Mapping) else {}
            rows: Any = next(iter(places.values()), []) if isinstance(places, Mapping) else []
            found += prices_of(rows, scale)
        return found

    async def _read_channel(self) -> None:
        """Read the rates of today and tomorrow; the best of each side counts."""
        best: dict[str, dict[tuple[float, float], float]] = {"buy": {}, "sell": {}}
        for span in await async_prices(self._session, 2):
            start, end = _instant(span["start"]), _instant(span["end"])
            if start is None or end is None or span["kind"] not in best:
                continue
            known, price = best[span["kind"]], float(span["price_per_kwh"])
            choose = max if span["kind"] == "buy" else min
            known[start, end] = choose(known.get((start, end), price), price)
        self._channel = {
            kind: Series(Price(*span, price) for span, price in known.items())
            for kind, known in best.items()
        }

    def at(self, instant: float) -> tuple[float | None, float | None]:
        """Return what a kWh costs and brings at an instant, all taken off; None where unknown."""
        data = self._session.data
        fee = data.grid_fee_micro_per_kwh / 1e6
        buy, sell = (self._own_at(key, instant) for key in (CONF_BUY_PRICE, CONF_SELL_PRICE))
        if buy is None:
            asked = self._of_channel("sell", instant)
            if asked is None and data.best_sell_rate is not None:
                asked = data.best_sell_rate.price_micro_per_kwh / 1e6
            buy = None if asked is None else asked + fee
        if sell is None:
            paid = self._of_channel("buy", instant)
            if paid is None and data.best_buy_rate is not None:
                paid = data.best_buy_rate.price_micro_per_kwh / 1e6
            tax = data.sale_tax_ppm / 1e6
            sell = None if paid is None else paid - fee - max(0.0, paid) * tax
        return buy, sell

    def _own_at(self, option: str, instant: float) -> float | None:
        series = self._own.get(option)
        price = None if series is None else series.at(instant)
        return self._now.get(option) if price is None else price

    def _of_channel(self, kind: str, instant: float) -> float | None:
        series = self._channel.get(kind)
        return None if series is None else series.at(instant)
