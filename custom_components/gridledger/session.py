"""The home's connection to its ledger.

It owns the gateway client, follows the market's events from a stored checkpoint, sends readings
from the outbox, asks again every quarter of an hour in case an event was missed, and begins anew
by itself whenever the connection breaks. Readings go to the home's own utility alone: while its
peer is away they wait, and the market goes on through any other member's gateway. Nothing else of
the integration waits for the network.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from homeassistant.config_entries import ConfigEntry
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers import issue_registry as ir
from homeassistant.helpers.dispatcher import async_dispatcher_send
from homeassistant.helpers.update_coordinator import DataUpdateCoordinator
from homeassistant.util import dt as dt_util

from . import accounts
from .client import (
    AuthenticationFailed,
    ConnectionFailed,
    Event,
    GatewayClient,
    GridLedgerError,
    InvalidInput,
    MeterKey,
    SignedTransaction,
    Timeout,
    TransactionRefused,
)
from .client.readings import Reading, SignedReading, batch_transient
from .clock import ChannelClock
from .const import (
    BATCH_READINGS,
    CHAINCODE_ENERGY,
    CHAINCODE_METERING,
    DOMAIN,
    LOGGER,
    ORDER_EVENTS,
    RECONCILE_S,
    RETENTION_S,
    SIGNAL_ORDER,
    SIGNAL_PRICE,
    SIGNAL_TRADE,
    TRADES_KEPT,
)
from .models import LedgerData, Rate, Trade, order_as_response, understood
from .outbox import Outbox, StoredReading

if TYPE_CHECKING:
    from .coordinator import HomeCoordinator

_FACT_SETTINGS: Final = "settings"
_FACT_CHECKPOINT: Final = "checkpoint"
_FACT_METER_ID: Final = "meter_id"
_FACT_METER_KEY: Final = "meter_public_key"

_ASK_FIRST_S: Final = 5.0
"""How long an earlier run's transaction is asked for before it is sent again."""
_RETRY_FIRST_S: Final = 1.0
_RETRY_LONGEST_S: Final = 60.0
_RETRY_REFUSED_S: Final = 300.0
_REFRESH_APART_S: Final = 2.0
_CHECKPOINT_APART_S: Final = 30.0
_OLD_EVENT_S: Final = 300.0
_COMPARED_AT_ONCE: Final = 1000
_PRUNE_APART_S: Final = 3600.0
_TRADE_PAGES: Final = 50
_ORDERS_SHOWN: Final = 200
_WINDOW_INTERVALS: Final = 96
"""A sale's window is at most this long, so older trades deliver nothing any more."""


class LedgerSession(DataUpdateCoordinator[LedgerData]):
    """Keeps :class:`LedgerData` true for as long as the ledger can be reached."""

    config_entry: ConfigEntry[Any]

    def __init__(
        self,
        hass: HomeAssistant,
        entry: ConfigEntry[Any],
        client: GatewayClient,
        outbox: Outbox,
        meter_key: MeterKey,
        connection_id: str,
    ) -> None:
        """Remember what to work with; :meth:`async_start` begins."""
        super().__init__(hass, LOGGER, config_entry=entry, name=f"{entry.title} ledger")
        self.client = client
        self.outbox = outbox
        self.connection_id = connection_id
        self.clock: ChannelClock | None = None
        self.meter_id: str | None = None
        self.home: HomeCoordinator | None = None
        self.data = LedgerData()
        self._meter_key = meter_key
        self._task: asyncio.Task[None] | None = None
        self._readings_waiting = asyncio.Event()
        self._refresh_wanted = asyncio.Event()
        self._trade_listeners: list[Callable[[Trade], None]] = []
        self._order_listeners: list[Callable[[Mapping[str, Any]], None]] = []
        self._checkpoint_stored_at = 0.0
        self._batch_limit = BATCH_READINGS
        self._told_down = False
        self._told_unexpected = ""
        self._market_lock = asyncio.Lock()
        self.days_settled = 0
        """Grows with each day of this home that is settled or corrected."""
        self.zone: str | None = None
        """The home's zone of prices, once its operator has entered the connection."""
        self._account_wanted = True
        self._account_read_at: float | None = None
        self._pruned_at = -_PRUNE_APART_S

    @property
    def msp_id(self) -> str:
        """The home's utility."""
        return self.client.identity.msp_id

    def known_clock(self) -> ChannelClock:
        """Return the channel's clock.

        Raises:
            ConnectionFailed: the ledger was never reached, so nobody knows it yet.
        """
        if self.clock is None:
            raise ConnectionFailed("the ledger has not been reached yet")
        return self.clock

    # Life -----------------------------------------------------------------------------------

    async def async_load(self) -> None:
        """Read what earlier runs have stored; no network."""
        settings = await self._disk(self.outbox.fact, _FACT_SETTINGS)
        if settings:
            self._adopt_settings(settings)
        self.meter_id = await self._disk(self.outbox.fact, _FACT_METER_ID)
        key = await self._disk(self.outbox.fact, _FACT_METER_KEY)
        if key not in (None, self._meter_key.public_key_pem):
            self.meter_id = None  # keys were lost and made anew: this is another meter
        await self._update_summary()

    @callback
    def async_start(self) -> None:
        """Begin to connect, in the background."""
        self._task = self.config_entry.async_create_background_task(
            self.hass, self._run(), name=f"{self.name} session"
        )

    async def async_stop(self) -> None:
        """End all tasks and close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        await self.client.close()

    @callback
    def async_on_trade(self, listener: Callable[[Trade], None]) -> Callable[[], None]:
        """Call ``listener`` for each trade of this home as it is committed."""
        self._trade_listeners.append(listener)
        return lambda: self._trade_listeners.remove(listener)

    @callback
    def async_on_order(self, listener: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
        """Call ``listener`` for each order of this home whose state has changed."""
        self._order_listeners.append(listener)
        return lambda: self._order_listeners.remove(listener)

    async def _run(self) -> None:
        """Stay connected; after a failure wait a little longer each time, up to a minute."""
        wait_s = _RETRY_FIRST_S
        task = asyncio.current_task()
        while True:
            try:
                await self._serve()
            except Exception as error:  # whatever it is, a later try may do better
                if task is not None and task.cancelling():
                    return  # one of several calls failed at that moment, which hides the end
                cause = _first(error)
                if self.data.connected:
                    wait_s = _RETRY_FIRST_S
                self._went_down(cause)
                if isinstance(cause, AuthenticationFailed):
                    self.config_entry.async_start_reauth(self.hass)
                    wait_s = _RETRY_REFUSED_S
                elif isinstance(cause, Timeout):
                    await self.client.leave_gateway()
                elif not isinstance(cause, GridLedgerError):
                    self._tell_unexpected(cause)
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))  # noqa: S311
            wait_s = min(wait_s * 2, _RETRY_LONGEST_S)

    def _tell_unexpected(self, cause: BaseException) -> None:
        """Log a mistake of ours once, not at each retry."""
        if repr(cause) != self._told_unexpected:
            self._told_unexpected = repr(cause)
            LOGGER.error("The ledger session failed unexpectedly", exc_info=cause)

    def _went_down(self, cause: BaseException) -> None:
        if not self._told_down:
            LOGGER.info("%s: the ledger is away: %s", self.config_entry.title, cause)
            self._told_down = True
        self.async_set_updated_data(replace(self.data, connected=False))

    def _went_up(self) -> None:
        if self._told_down:
            LOGGER.info("%s: the ledger is back", self.config_entry.title)
            self._told_down = False
        self.async_set_updated_data(replace(self.data, connected=True))

    async def _serve(self) -> None:
        """Connect, and then follow, send and ask until something fails."""
        settings = await self.client.evaluate(CHAINCODE_METERING, "metering:Settings")
        currency = await self.client.evaluate(CHAINCODE_ENERGY, "registry:Settings")
        settings = {
            **settings,
            "currency": currency.get("currency", "EUR"),
            "grid_fee_micro_per_kwh": currency.get("grid_fee_micro_per_kwh", 0),
        }
        if not self._adopt_settings(settings):
            raise GridLedgerError(f"the ledger's settings can't be used: {settings}")
        await self._disk(self.outbox.store_fact, _FACT_SETTINGS, settings)
        await self._read_connection()
        await self.async_refresh_market()
        self._went_up()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_events())
            group.create_task(self._keep_sending())
            group.create_task(self._keep_asking())

    def _adopt_settings(self, settings: Mapping[str, Any]) -> bool:
        """Take the channel's clock and currency; tell the home when they change."""
        try:
            clock = ChannelClock.from_settings(settings)
        except KeyError, TypeError, ValueError:
            return False
        self.data = replace(
            self.data,
            currency=str(settings.get("currency") or "EUR"),
            grid_fee_micro_per_kwh=int(settings.get("grid_fee_micro_per_kwh") or 0),
        )
        if clock != self.clock:
            self.clock = clock
            if self.home is not None:
                self.home.async_adopt_clock(clock)
        return True

    async def _disk[T](self, function: Callable[..., T], *arguments: Any) -> T:
        return await self.hass.async_add_executor_job(function, *arguments)

    async def _read_connection(self) -> None:
        """Read what the home's connection point may deliver."""
        try:
            connection = await self.client.evaluate(
                CHAINCODE_ENERGY,
                "registry:Connection",
                {"connection_id": self.connection_id},
            )
        except TransactionRefused as error:
            # Its operator hasn't entered it yet: readings flow, sales are refused with the reason.
            LOGGER.debug("No connection point %s: %s", self.connection_id, error)
            return
        self.zone = str(connection["zone"])
        self.data = replace(self.data, max_export_w=int(connection["max_export_w"]))

    # The market -----------------------------------------------------------------------------

    async def async_refresh_market(self) -> None:
        """Read balance, rates and trades.

        Raises:
            GridLedgerError: one of them couldn't be read; nothing has changed.
        """
        async with self._market_lock:  # or an older answer could replace a newer one
            with understood("the market's answer"):
                await self._refresh_market()
                if self._account_wanted:
                    await self._refresh_account()

    async def _refresh_market(self) -> None:
        clock = self.known_clock()
        now = clock.channel(dt_util.utcnow().timestamp())
        local_midnight = clock.channel(dt_util.start_of_local_day().timestamp())
        since = min(local_midnight, now - _WINDOW_INTERVALS * clock.interval_s)
        evaluate = self.client.evaluate
        balance, rates, tax, trades, orders = await asyncio.gather(
            evaluate(CHAINCODE_ENERGY, "wallet:Balance", {"account": self.connection_id}),
            evaluate(CHAINCODE_ENERGY, "market:Rates", {"day": clock.day(now)}),
            evaluate(CHAINCODE_ENERGY, "market:Tax"),
            self._read_trades(int(since)),
            self._read_orders(clock.interval_at(now)),
        )
        before = self.data
        # What is committed stays so: a peer that lags behind may not know the latest yet.
        sold = {key: one for key, one in before.trades.items() if one.window_start >= since}
        rates = rates.get("rates", []) if isinstance(rates, dict) else rates
        self.async_set_updated_data(
            replace(
                self.data,
                balance_micro=int(balance["balance_micro"]),
                rates=tuple(Rate.from_json(rate) for rate in rates),
                sale_tax_ppm=int(tax["rate_ppm"]),
                trades={**sold, **trades},
                orders=orders,
                market_known=True,
            )
        )
        for order_id, order in (orders or {}).items():
            # What the first look finds is no news.
            known = before.orders
            if known is None or order.get("state") == known.get(order_id, {}).get("state"):
                continue
            for listener in list(self._order_listeners):
                listener(order)
            self._signal(
                SIGNAL_ORDER,
                {
                    **order_as_response(order, clock, self.data.currency),
                    "change": ORDER_EVENTS.get(str(order.get("state")), "changed"),
                },
            )
        for kind, old, new in (
            ("sell", before.best_buy_rate, self.data.best_buy_rate),
            ("buy", before.best_sell_rate, self.data.best_sell_rate),
        ):
            prices = [
                None if rate is None else rate.price_micro_per_kwh / 1e6 for rate in (old, new)
            ]
            if prices[0] != prices[1]:
                self._signal(
                    SIGNAL_PRICE, {"kind": kind, "from_price": prices[0], "price": prices[1]}
                )

    @callback
    def async_sold(self, trade: Trade) -> None:
        """Know a committed sale of this home at once; its event comes later."""
        trades = {**self.data.trades, trade.trade_id: trade}
        self.async_set_updated_data(replace(self.data, trades=trades))

    @callback
    def async_look_again(self) -> None:
        """Read the market again soon: what this home does itself makes no event always."""
        self._refresh_wanted.set()

    @callback
    def async_account_changed(self) -> None:
        """Say that bills, permit or response events may have changed: read them again soon."""
        self._account_wanted = True
        self._refresh_wanted.set()

    async def async_read_account_changes(self) -> None:
        """Read the account at once where it is known to have changed.

        Raises:
            GridLedgerError: it couldn't be read.
        """
        if self._account_wanted:
            await self.async_refresh_market()

    async def _refresh_account(self) -> None:
        """Read bills, permit and response events, and tell what has changed."""
        clock = self.known_clock()
        self._account_wanted = False
        try:
            found = await accounts.async_read_account(self, self.zone)
        except BaseException:
            self._account_wanted = True
            raise
        now = clock.channel(dt_util.utcnow().timestamp())
        since = now if self._account_read_at is None else self._account_read_at
        told = accounts.news(self.data, found, clock, since, now)
        self._account_read_at = now
        self.async_set_updated_data(replace(self.data, account=found))
        accounts.async_show_issue(self.hass, self, self.data)
        for name, change, data in told:
            self._signal(name, {**data, "change": change})

    @callback
    def _signal(self, name: str, data: dict[str, Any]) -> None:
        """Tell triggers."""
        async_dispatcher_send(self.hass, name, self.config_entry.entry_id, data)

    async def _read_orders(self, since: int) -> dict[str, Mapping[str, Any]] | None:
        """Read the orders of intervals ahead, the first page; None where there are no books."""
        try:
            page = await self.client.evaluate(
                CHAINCODE_ENERGY,
                "book:Orders",
                {"connection_id": self.connection_id, "from": since, "limit": _ORDERS_SHOWN},
            )
        except TransactionRefused as error:
            LOGGER.debug("No orders of %s: %s", self.connection_id, error)
            return None
        return {str(order["order_id"]): order for order in page["orders"]}

    async def _read_trades(self, since: int) -> dict[str, Trade]:
        trades: dict[str, Trade] = {}
        bookmark = ""
        for _ in range(_TRADE_PAGES):
            page = await self.client.evaluate(
                CHAINCODE_ENERGY,
                "market:Trades",
                {
                    "connection_id": self.connection_id,
                    "from": since,
                    "limit": TRADES_KEPT,
                    **({"bookmark": bookmark} if bookmark else {}),
                },
            )
            for stated in page["trades"]:
                trade = Trade.from_json(stated)
                trades[trade.trade_id] = trade
            bookmark = str(page.get("bookmark") or "")
            if not bookmark or len(page["trades"]) < TRADES_KEPT:
                break
        return trades

    async def _keep_asking(self) -> None:
        """Refresh after events, and now and then without any: rates make none.

        They are published by day, so a new day of the channel is a reason of its own.
        """
        clock = self.known_clock()
        apart_s = min(RECONCILE_S, max(60.0, 5 * clock.interval_s / clock.rate))
        while True:
            now = clock.channel(dt_util.utcnow().timestamp())
            until_day_s = (clock.day_start(now) + 86400 - now) / clock.rate
            try:
                async with asyncio.timeout(min(apart_s, until_day_s + _REFRESH_APART_S)):
                    await self._refresh_wanted.wait()
            except TimeoutError:
                self._account_wanted = True
            self._refresh_wanted.clear()
            await self.async_refresh_market()
            await asyncio.sleep(_REFRESH_APART_S)

    async def _follow_events(self) -> None:
        """Follow the market's events from where the last run ended."""
        checkpoint = await self._disk(self.outbox.fact, _FACT_CHECKPOINT) or {}
        async for event in self.client.chaincode_events(
            CHAINCODE_ENERGY,
            start_block=checkpoint.get("block"),
            after_transaction_id=checkpoint.get("transaction"),
        ):
            ours = self._handle_event(event)
            now = self.hass.loop.time()
            if ours or now - self._checkpoint_stored_at > _CHECKPOINT_APART_S:
                self._checkpoint_stored_at = now
                await self._disk(
                    self.outbox.store_fact,
                    _FACT_CHECKPOINT,
                    {"block": event.block_number, "transaction": event.transaction_id},
                )

    def _handle_event(self, event: Event) -> bool:
        """Take one event; return whether it concerned this home."""
        if event.name != "trade":
            if event.name in accounts.EVENTS and self._is_ours(event):
                self._account_wanted = True
            if event.name == "settled" and self.connection_id.encode() in event.payload:
                self.days_settled += 1
            self._refresh_wanted.set()
            return False
        try:
            trade = Trade.from_json({"transaction_id": event.transaction_id, **event.json()})
        except (KeyError, TypeError, ValueError) as error:
            LOGGER.warning(
                "Transaction %s has an unreadable event: %r", event.transaction_id, error
            )
            return False
        if trade.connection_id != self.connection_id:
            return False
        clock = self.known_clock()
        now = clock.channel(dt_util.utcnow().timestamp())
        old = trade.window_end(clock.interval_s) < now - _OLD_EVENT_S
        self.async_sold(trade)
        if not old:
            for listener in list(self._trade_listeners):
                listener(trade)
            self._signal(SIGNAL_TRADE, trade.as_response(clock, self.data.currency))
        self._refresh_wanted.set()
        return True

    def _is_ours(self, event: Event) -> bool:
        """Whether an event names this home, or none."""
        try:
            told = event.json()
            return told.get("connection_id") in (None, self.connection_id)
        except ValueError, AttributeError:
            return True  # then read what there is

    # Readings -------------------------------------------------------------------------------

    def sign(self, reading: Reading) -> SignedReading:
        """Sign a reading for this channel with the home's meter key."""
        return self._meter_key.sign(reading, self.client.channel)

    async def async_readings_stored(self) -> None:
        """Say that new readings wait in the outbox; drop those that are past keeping."""
        self._readings_waiting.set()
        if self.hass.loop.time() - self._pruned_at >= _PRUNE_APART_S:
            self._pruned_at = self.hass.loop.time()
            await self._prune()
        else:
            await self._update_summary()

    async def _update_summary(self) -> None:
        summary = await self._disk(self.outbox.summary)
        last = None
        if summary.last_committed is not None and self.clock is not None:
            last = self.clock.real_datetime(summary.last_committed + self.clock.interval_s)
        delay_s = self.data.reading_delay_s
        if last is not None and self.data.last_committed not in (None, last):
            delay_s = round((dt_util.utcnow() - last).total_seconds())
        self.async_set_updated_data(
            replace(
                self.data,
                queued=summary.queued,
                refused=summary.refused,
                last_committed=last,
                reading_delay_s=delay_s,
            )
        )

    async def _register_meter(self) -> None:
        """Register the home's own meter, once.

        A name that is taken belongs to an earlier installation, whose key is gone: a meter
        exchange, so the next name.
        """
        if self.meter_id is not None:
            return
        base = f"HA-{self.connection_id}"
        for number in range(1, 100):
            meter_id = base if number == 1 else f"{base}-{number}"
            try:
                await self.client.submit(
                    CHAINCODE_METERING,
                    "metering:RegisterMeter",
                    {
                        "meter_id": meter_id,
                        "connection_id": self.connection_id,
                        "utility": self.msp_id,
                        "source_class": "declared",
                        "public_key": self._meter_key.public_key_pem,
                    },
                )
            except TransactionRefused as error:
                if error.status == 409:
                    continue
                raise
            facts = {_FACT_METER_KEY: self._meter_key.public_key_pem, _FACT_METER_ID: meter_id}
            await self._disk(self.outbox.store_facts, facts)
            self.meter_id = meter_id
            if self.home is not None:
                self.home.async_meter_named()
            return
        raise GridLedgerError(f"every meter name from {base} on is taken")

    async def _reconcile_readings(self) -> None:
        """Ask for our last committed interval; go on after it if it isn't from here."""
        last = await self.client.evaluate(
            CHAINCODE_METERING,
            "metering:LastReading",
            {"meter_id": self.meter_id},
            endorsing_organizations=[self.msp_id],
        )
        issue_id = f"foreign_reading_{self.config_entry.entry_id}"
        if self.home is None or not last or last.get("interval_start") is None:
            return
        boundary = int(last["interval_start"]) + self.known_clock().interval_s
        await self.home.async_save()
        skipped = await self.home.async_skip_to(
            boundary, int(last["import_register_wh"]), int(last["export_register_wh"])
        )
        if await self._compare_with_ledger(boundary) or skipped:
            ir.async_create_issue(
                self.hass,
                DOMAIN,
                issue_id,
                is_fixable=False,
                is_persistent=True,
                severity=ir.IssueSeverity.WARNING,
                translation_key="foreign_reading",
                translation_placeholders={"meter": str(self.meter_id)},
            )

    async def _compare_with_ledger(self, boundary: int) -> bool:
        """Sort out waiting readings of intervals that the ledger has passed.

        Return whether it holds others than ours there.
        """
        foreign = False
        while True:
            waiting = [
                reading
                for reading in await self._disk(self.outbox.queued, _COMPARED_AT_ONCE)
                if reading.interval_start < boundary
            ]
            if not waiting:
                return foreign
            held = await self.client.evaluate(
                CHAINCODE_METERING,
                "metering:Readings",
                {
                    "meter_id": self.meter_id,
                    "from": waiting[0].interval_start,
                    "to": waiting[-1].interval_start + 1,
                },
                endorsing_organizations=[self.msp_id],
            )
            by_start = {int(reading["interval_start"]): reading for reading in held}
            same, missing = [], 0
            for reading in waiting:
                theirs = by_start.get(reading.interval_start)
                if theirs is None:
                    missing += 1
                elif all(
                    str(theirs.get(name)) == value
                    for name, value in reading.fields.items()
                    if name != "signature"
                ):
                    same.append(reading.interval_start)
                else:
                    foreign = True
                    await self._disk(
                        self.outbox.refuse,
                        reading.interval_start,
                        "the ledger holds another reading of this interval",
                    )
            await self._disk(self.outbox.found_in_ledger, same)
            if missing:
                return foreign  # they are still to be sent

    async def _settle_undecided(self) -> None:
        """Find out what became of transactions that an earlier run may have sent."""
        for stored in await self._disk(self.outbox.undecided):
            await self._settle(stored.transaction_id, stored.envelope, first_wait_s=_ASK_FIRST_S)

    async def _settle(self, transaction_id: str, envelope: bytes, *, first_wait_s: float) -> bool:
        """Ask for a transaction, if unknown send it again; return whether it is valid."""
        try:
            status = await self.client.commit_status(transaction_id, timeout_s=first_wait_s)
        except Timeout:
            try:
                await self.client.submit_signed(SignedTransaction(transaction_id, envelope))
            except (InvalidInput, TransactionRefused) as error:
                # The orderers will never take it; readings are idempotent, so a new transaction
                # with the same readings is safe.
                LOGGER.debug("Transaction %s was refused: %s", transaction_id, error)
                await self._disk_decide(transaction_id, committed=False)
                return False
            status = await self.client.commit_status(transaction_id)
        if not status.valid:
            LOGGER.debug("Transaction %s was found invalid: %s", transaction_id, status.code)
        await self._disk_decide(transaction_id, committed=status.valid)
        return status.valid

    async def _disk_decide(self, transaction_id: str, *, committed: bool) -> None:
        await self.hass.async_add_executor_job(
            lambda: self.outbox.decide(transaction_id, committed=committed)
        )
        await self._update_summary()

    async def _keep_sending(self) -> None:
        """Settle what is open and send what waits; while that fails, the rest goes on.

        Raises:
            AuthenticationFailed: the ledger doesn't take our identity.
        """
        wait_s, settled = _RETRY_FIRST_S, False
        while True:
            try:
                if not settled:
                    await self._register_meter()
                    await self._reconcile_readings()
                    await self._settle_undecided()
                    settled = True
                if await self._send_oldest():
                    wait_s = _RETRY_FIRST_S
                    continue
            except AuthenticationFailed:
                raise
            except GridLedgerError as error:
                LOGGER.debug("Readings wait: %s", error)
                settled = False
                self._refresh_wanted.set()  # tells whether the gateway itself is away
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))  # noqa: S311
            wait_s = min(wait_s * 2, _RETRY_LONGEST_S)

    async def _send_oldest(self) -> bool:
        """Wait for readings and send the oldest; return whether they got anywhere."""
        while True:
            self._readings_waiting.clear()
            if waiting := await self._disk(self.outbox.queued, self._batch_limit):
                return await self._send_batch(waiting)
            await self._readings_waiting.wait()

    async def _send_batch(self, waiting: list[StoredReading]) -> bool:
        """Send one batch; return whether it got anywhere.

        Raises:
            GridLedgerError: the connection failed; the outbox knows where it stood.
        """
        prepared = self.client.prepare(
            CHAINCODE_METERING,
            "metering:SubmitReadings",
            {"utility": self.msp_id},
            transient=batch_transient([reading.fields for reading in waiting]),
            endorsing_organizations=[self.msp_id],
        )
        try:
            signed = await self.client.endorse(prepared)
        except TransactionRefused as error:
            return await self._batch_refused(waiting, error)
        self._batch_limit = BATCH_READINGS
        refused = {
            int(row["interval_start"]): str(row["reason"])
            for row in (signed.result or {}).get("refused", [])
        }
        carried = [r.interval_start for r in waiting if r.interval_start not in refused]
        await self._disk(
            self.outbox.store_envelope, signed.transaction_id, signed.envelope, carried
        )
        if refused:
            await self._refuse(refused)
        await self.client.submit_signed(signed)
        return await self._settle(
            signed.transaction_id,
            signed.envelope,
            first_wait_s=self.client.deadlines.commit_s,
        )

    async def _batch_refused(self, waiting: list[StoredReading], error: TransactionRefused) -> bool:
        """Narrow a refused batch down to the readings that the contract won't take."""
        if error.status == 404:  # the ledger was begun anew and doesn't know our meter
            self.meter_id = None
            await self._disk(self.outbox.store_fact, _FACT_METER_ID, None)
            raise error
        if error.status is None or not 400 <= error.status < 500 or error.status == 403:
            LOGGER.debug("Readings can't be sent now: %s", error)
            return False
        if len(waiting) > 1:
            self._batch_limit = max(1, len(waiting) // 2)
            return True
        await self._refuse({waiting[0].interval_start: error.reason})
        return True

    async def _refuse(self, reasons: Mapping[int, str]) -> None:
        """Set readings aside that the ledger will never take; ``reasons`` by interval start."""
        reason = next(iter(reasons.values()))
        LOGGER.warning("The ledger refused %s readings, the first: %s", len(reasons), reason)
        for interval_start, said in reasons.items():
            await self._disk(self.outbox.refuse, interval_start, said)
        await self._update_summary()
        ir.async_create_issue(
            self.hass,
            DOMAIN,
            f"readings_refused_{self.config_entry.entry_id}",
            is_fixable=False,
            severity=ir.IssueSeverity.WARNING,
            translation_key="readings_refused",
            translation_placeholders={"reason": reason, "meter": str(self.meter_id)},
        )

    async def _prune(self) -> None:
        now = self.known_clock().channel(dt_util.utcnow().timestamp())
        before = int(now) - RETENTION_S
        if lost := await self._disk(self.outbox.prune, before):
            LOGGER.warning("%s readings older than 35 days never reached the ledger", lost)
        await self._update_summary()


def _first(error: BaseException) -> BaseException:
    """Return what a group of failures began with; a refused identity before all else."""
    while isinstance(error, BaseExceptionGroup):
        refused = [e for e in error.exceptions if isinstance(e, AuthenticationFailed)]
        error = refused[0] if refused else error.exceptions[0]
    return error
