"""Selling stored energy: what can be promised, the quote, and its authorisation."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import floor
from secrets import token_hex
from typing import Any

from homeassistant.core import HomeAssistant
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.util import dt as dt_util

from .actions import invalid
from .client import (
    AuthenticationFailed,
    CommitFailed,
    ConnectionFailed,
    GridLedgerError,
    Timeout,
    TransactionRefused,
)
from .clock import ChannelClock
from .const import (
    CHAINCODE_ENERGY,
    CONF_BATTERY_CAPACITY,
    CONF_BATTERY_LEVEL,
    CONF_BATTERY_MAX_POWER,
    CONF_BATTERY_RESERVE,
    CONF_DAILY_LIMIT,
    DEFAULT_RESERVE_PERCENT,
    DOMAIN,
)
from .models import LedgerData, Quote, Trade, understood
from .session import LedgerSession

WINDOW_LIMIT_INTERVALS = 96
_LEAD_S = 5
"""Real seconds between asking and the earliest delivery: a sale begins in the future."""
_OUTCOME_S = 30.0
_NO_LIMIT_WH = 10**9


@dataclass(frozen=True, slots=True)
class Window:
    """Whole delivery intervals, in channel time."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Capability:
    """What a home's battery can promise. Energy in Wh, power in W."""

    stored_wh: float
    reserve_wh: float
    max_power_w: float | None

    def sellable_wh(
        self, window: Window, clock: ChannelClock, ledger: LedgerData, now: float
    ) -> int:
        """Return the most that can still be sold for a window, beside what is sold already."""
        current = clock.interval_at(now)
        promised = sum(trade.energy_from(current) for trade in ledger.trades.values())
        by_energy = self.stored_wh - self.reserve_wh - promised
        by_power = sum(
            self.free_wh(start, clock, ledger)
            for start in range(window.start, window.end, clock.interval_s)
        )
        return max(0, floor(min(by_energy, by_power)))

    def free_wh(self, interval_start: int, clock: ChannelClock, ledger: LedgerData) -> int:
        """Return what power and earlier sales leave of one interval."""
        limits = [limit for limit in (self.max_power_w, ledger.max_export_w) if limit is not None]
        if not limits:
            return _NO_LIMIT_WH
        whole = floor(min(limits) * clock.interval_s / 3600)
        return max(0, whole - ledger.committed_wh(interval_start))


def delivery_window(
    clock: ChannelClock,
    now: float,
    energy_wh: int,
    free_wh: Callable[[int], int],
    start: datetime | None,
    end: datetime | None,
) -> Window:
    """Align a wished window (real time) to whole intervals of the channel.

    Without a start it begins with the next interval; without an end it is as long as is needed
    with what ``free_wh`` says of each interval. It is widened to whole intervals, but begins in
    the future.

    Raises:
        ServiceValidationError: it lies in the past, is empty or too long.
    """
    earliest = clock.next_boundary(now + _LEAD_S * clock.rate)
    if start is None:
        first = earliest
    else:
        first = clock.interval_at(clock.channel(start.timestamp()))
        ends = first + clock.interval_s if end is None else clock.channel(end.timestamp())
        if first < earliest and ends <= now:
            raise invalid("window_in_past")
        first = max(first, earliest)
    if end is None:
        # Rates are daily, so one sale lies within one day of the channel.
        day_end = clock.day_start(first) + 86400
        limit = min(day_end, first + WINDOW_LIMIT_INTERVALS * clock.interval_s)
        last, left = first, energy_wh
        while left > 0 and last < limit:
            left -= free_wh(last)
            last += clock.interval_s
    else:
        last = clock.next_boundary(clock.channel(end.timestamp()))
    if last <= first:
        raise invalid("window_empty")
    if (last - first) // clock.interval_s > WINDOW_LIMIT_INTERVALS:
        raise invalid("window_too_long", limit=str(WINDOW_LIMIT_INTERVALS))
    return Window(first, last)


class Seller:
    """Quotes and sells for one home. Sales of one home go one after another."""

    def __init__(
        self, hass: HomeAssistant, session: LedgerSession, plant: Mapping[str, Any]
    ) -> None:
        """Remember the home's session and plant."""
        self.hass = hass
        self._session = session
        self._plant = plant
        self._lock = asyncio.Lock()

    def capability(self) -> Capability:
        """Read what the battery can promise now.

        Raises:
            ServiceValidationError: there is no battery, or its level isn't known.
        """
        capacity_kwh = self._plant.get(CONF_BATTERY_CAPACITY)
        level_id = self._plant.get(CONF_BATTERY_LEVEL)
        if not capacity_kwh or not level_id:
            raise invalid("no_battery")
        state = self.hass.states.get(level_id)
        try:
            level = float(state.state) if state is not None else None
        except ValueError:
            level = None
        if level is None or not 0 <= level <= 100:
            raise invalid("battery_unknown", entity_id=str(level_id))
        reserve = self._plant.get(CONF_BATTERY_RESERVE, DEFAULT_RESERVE_PERCENT)
        return Capability(
            capacity_kwh * 10 * level,
            capacity_kwh * 10 * reserve,
            self._plant.get(CONF_BATTERY_MAX_POWER),
        )

    def battery(self) -> dict[str, float | None] | None:
        """Return what is stored (kWh) and what of it could be promised now, None without any."""
        try:
            capability = self.capability()
        except ServiceValidationError:
            return None
        sellable = None
        if (clock := self._session.clock) is not None:
            now = clock.channel(dt_util.utcnow().timestamp())
            current = clock.interval_at(now)
            promised = sum(
                trade.energy_from(current) for trade in self._session.data.trades.values()
            )
            sellable = max(0.0, capability.stored_wh - capability.reserve_wh - promised) / 1000
        return {
            "stored_kwh": capability.stored_wh / 1000,
            "reserve_kwh": capability.reserve_wh / 1000,
            "capacity_kwh": self._plant.get(CONF_BATTERY_CAPACITY),
            "sellable_kwh": sellable,
            "max_power_w": capability.max_power_w,
        }

    def _clock(self) -> ChannelClock:
        if self._session.clock is None:
            raise _failed("not_connected")
        return self._session.clock

    def _check(self, energy_wh: int, window: Window, capability: Capability) -> None:
        clock = self._clock()
        sellable = capability.sellable_wh(window, clock, self._session.data, self._now())
        if energy_wh > sellable:
            raise invalid(
                "too_much_energy",
                energy=f"{energy_wh / 1000:.3f}",
                sellable=f"{sellable / 1000:.3f}",
                stored=f"{capability.stored_wh / 1000:.3f}",
                reserve=f"{capability.reserve_wh / 1000:.3f}",
            )
        limit_kwh = self._session.config_entry.options.get(CONF_DAILY_LIMIT)
        if limit_kwh is None:
            return
        midnight = dt_util.start_of_local_day(dt_util.as_local(clock.real_datetime(window.start)))
        start, end = (
            clock.channel(day.timestamp())
            for day in (
                midnight,
                dt_util.start_of_local_day(midnight.date() + timedelta(days=1)),
            )
        )
        sold = sum(trade.energy_wh for trade in self._session.data.trades_from(start, end))
        if sold + energy_wh > limit_kwh * 1000:
            raise invalid(
                "daily_limit_reached", limit=f"{limit_kwh:.1f}", sold=f"{sold / 1000:.3f}"
            )

    def _now(self) -> float:
        return self._clock().channel(dt_util.utcnow().timestamp())

    def _within(self, max_power_w: float | None) -> Capability:
        capability = self.capability()
        if max_power_w is None:
            return capability
        most = min(max_power_w, capability.max_power_w or max_power_w)
        return replace(capability, max_power_w=most)

    def sellable_wh(self, start: datetime, end: datetime, max_power_w: float | None = None) -> int:
        """Return the most that can be sold for a window, in whole Wh of each interval.

        Raises:
            ServiceValidationError: there is no battery, or the window can't be sold for.
            HomeAssistantError: the ledger was never reached.
        """
        capability, clock, ledger = self._within(max_power_w), self._clock(), self._session.data
        window = delivery_window(clock, self._now(), 1, lambda _: 1, start, end)
        return capability.sellable_wh(window, clock, ledger, self._now())

    async def quote(
        self,
        energy_wh: int,
        start: datetime | None = None,
        end: datetime | None = None,
        supplier: str | None = None,
        max_power_w: float | None = None,
    ) -> Quote:
        """Return the contract's quote for a sale that the battery can deliver.

        ``max_power_w`` asks for less than the battery's greatest power.

        Raises:
            ServiceValidationError: it can't be delivered, or the contract says no.
            HomeAssistantError: the ledger is away.
        """
        capability, clock = self._within(max_power_w), self._clock()
        await self._read_market()
        ledger = self._session.data
        window = delivery_window(
            clock,
            self._now(),
            energy_wh,
            lambda interval_start: capability.free_wh(interval_start, clock, ledger),
            start,
            end,
        )
        self._check(energy_wh, window, capability)
        argument: dict[str, Any] = {
            "connection_id": self._session.connection_id,
            "energy_wh": energy_wh,
            "window_start": window.start,
            "window_end": window.end,
        }
        if supplier:
            argument["supplier"] = supplier
        if capability.max_power_w is not None:
            # A connection may bear more than the battery gives: the schedule must not ask for it.
            argument["max_power_w"] = floor(capability.max_power_w)
        try:
            answer = await self._session.client.evaluate(CHAINCODE_ENERGY, "market:Quote", argument)
            with understood("the quote"):
                return Quote.from_json(answer["quote"])
        except GridLedgerError as error:
            raise translated(error) from error

    async def known(self, request_id: str) -> tuple[Trade, int] | None:
        """Return the trade and block of a request that the ledger has taken already.

        Raises:
            HomeAssistantError: the ledger is away.
        """
        self._clock()
        await self._read_market()
        for trade in self._session.data.trades.values():
            if trade.request_id == request_id:
                return trade, await self._outcome(trade.transaction_id, request_id)
        return None

    async def sell(self, quote: Quote, request_id: str | None = None) -> tuple[Trade, int]:
        """Authorise a quote exactly as it stands; return the trade and its block.

        ``request_id`` makes it safe to repeat: the ledger knows one trade for it.

        Raises:
            ServiceValidationError: it can't be delivered any more, or the contract says no.
            HomeAssistantError: the ledger is away, or the outcome isn't known yet.
        """
        request_id = request_id or f"HA-{token_hex(12).upper()}"
        session, clock = self._session, self._clock()
        async with self._lock:
            await self._read_market()
            known = {trade.request_id for trade in session.data.trades.values()}
            if request_id not in known:
                window = Window(quote.first_interval, quote.last_interval + clock.interval_s)
                self._check(quote.energy_wh, window, self.capability())
            try:
                committed = await session.client.submit(
                    CHAINCODE_ENERGY,
                    "market:Authorise",
                    {"request_id": request_id, "quote": dict(quote.stated)},
                )
                transaction_id, block = committed.transaction_id, committed.block_number
                with understood("the sale"):
                    result = committed.result.get("trade", committed.result)
                    sold = Trade.from_json({"transaction_id": transaction_id, **result})
            except Timeout as error:
                if not error.transaction_id:
                    raise translated(error) from error
                sold, transaction_id = None, error.transaction_id
                block = await self._outcome(transaction_id, request_id)
            except GridLedgerError as error:
                raise translated(error) from error
            await self._read_market()
            if sold is not None:
                session.async_sold(sold)
                return sold, block
            for trade in session.data.trades.values():
                if trade.transaction_id == transaction_id:
                    return trade, block
        raise _failed("outcome_unknown", request_id=request_id)

    async def _outcome(self, transaction_id: str, request_id: str) -> int:
        """Ask what became of a transaction whose answer was lost."""
        try:
            status = await self._session.client.commit_status(transaction_id, timeout_s=_OUTCOME_S)
        except GridLedgerError as error:
            raise _failed("outcome_unknown", request_id=request_id) from error
        if not status.valid:
            raise translated(CommitFailed(transaction_id, status.code, status.block_number))
        return status.block_number

    async def _read_market(self) -> None:
        """Know what is sold as of now, not as of the last event."""
        try:
            await self._session.async_refresh_market()
        except GridLedgerError as error:
            raise translated(error) from error


def translated(error: GridLedgerError) -> HomeAssistantError:
    """Return an error of the client in the owner's language."""
    if isinstance(error, TransactionRefused):
        return invalid("refused", reason=error.reason)
    if isinstance(error, CommitFailed):
        return _failed("commit_failed", code=error.code)
    if isinstance(error, AuthenticationFailed):
        return _failed("not_accepted", reason=str(error))
    if isinstance(error, (ConnectionFailed, Timeout)):
        return _failed("not_connected")
    return _failed("unexpected", reason=str(error))


def _failed(key: str, **placeholders: str) -> HomeAssistantError:
    return HomeAssistantError(
        translation_domain=DOMAIN, translation_key=key, translation_placeholders=placeholders
    )
