"""Contract `market`: suppliers' daily rates, quotes on them, and the trades that follow.

A quote is a function of the rate, the connection's limits and what it has sold already. It is
stored nowhere: authorising computes it again, and anything that differs refuses it. The supplier's
current rate is the gate: who authorises reads that key, so a rate published in between makes the
trade fail validation by itself.

A sale is paid when it is authorised, and taxed then: as sold, at the rate of tax in force when it
was quoted, which no later version changes. So EU law has payments on account (Directive
2006/112/EC, articles 65 and 93). What isn't delivered is bought at settlement, which is another
supply with taxes of its own in its price, and takes nothing of the sale back.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    MspId,
    NotFound,
    RequestId,
    TransactionId,
    canonical_json,
    query,
    sha256_hex,
    stored_record,
    transaction,
)

from ..assets.wallet import Transfer, grid_account, post, supplier_account, tax_account
from ..common import access, agreements, settings
from ..common.agreements import Agreement
from ..common.clock import DAY_S, Day, day_of, day_start, real_seconds, utc_text
from ..common.money import amount_micro, tax_micro
from ..common.pages import Bookmark, page
from ..common.settings import Currency, EnergySettings, Price, TaxRate
from ..registry import homes
from ..registry.delegations import actor_for
from ..registry.registry import Connection, connection_of, energy_settings
from . import gates
from .orders import check_caps, current_position
from .positions import store_position

MAX_WINDOW_INTERVALS = 96
MAX_DAYS_AHEAD = 366
"""How far ahead a rate can be published."""

Energy = Annotated[int, Integer(1, 10**9, "Wh")]
Power = Annotated[int, Integer(1, 10**9, "W")]
Money = Annotated[int, Integer(-(10**15), 10**15, "micro-units")]
Version = Annotated[int, Integer(1, 999_999)]
Kind = Annotated[str, Choice("buy", "sell")]

SALE_TAX = ("tax", "SALES")
"""Kind and name of the agreed terms; the channel has one tax on sales."""


@dataclass(frozen=True, slots=True)
class SaleTax:
    """What is taken of the gross of a sale at a supplier's rate as tax."""

    rate_ppm: TaxRate


@dataclass(frozen=True, slots=True)
class Rate:
    """What a supplier pays homes (buy) or takes from them (sell) on one day."""

    supplier: MspId
    day: Day
    kind: Kind
    version: Version
    price_micro_per_kwh: Price


@dataclass(frozen=True, slots=True)
class Delivery:
    """Energy to be delivered in one interval."""

    interval_start: Instant
    energy_wh: Energy


@dataclass(frozen=True, slots=True)
class Quote:
    """What a supplier pays for a schedule, until when."""

    quote_id: Identifier
    connection_id: Identifier
    supplier: MspId
    rate_version: Version
    day: Day
    energy_wh: Energy
    window_start: Instant
    window_end: Instant
    schedule: Annotated[tuple[Delivery, ...], AtMost(MAX_WINDOW_INTERVALS)]
    price_micro_per_kwh: Price
    gross_micro: Money
    grid_fee_micro: Money
    net_micro: Money
    currency: Currency
    quoted_at: Instant
    valid_until: Instant
    max_power_w: Power | None = None
    """What the home itself can give, where that is less than its connection."""
    tax_micro: Money = 0


@dataclass(frozen=True, slots=True)
class Trade:
    """An authorised quote."""

    trade_id: Identifier
    request_id: RequestId
    quote_id: Identifier
    connection_id: Identifier
    utility: MspId
    supplier: MspId
    rate_version: Version
    day: Day
    energy_wh: Energy
    window_start: Instant
    window_end: Instant
    schedule: Annotated[tuple[Delivery, ...], AtMost(MAX_WINDOW_INTERVALS)]
    price_micro_per_kwh: Price
    gross_micro: Money
    grid_fee_micro: Money
    net_micro: Money
    currency: Currency
    quoted_at: Instant
    authorised_at: Instant
    transaction_id: TransactionId
    status: Annotated[str, Choice("committed")]
    acted_by: Identifier | None = None
    """The trader that authorised it under a delegation; null for the home itself."""
    tax_micro: Money = 0
    """Trades that were stored before there were taxes have none."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What a request id was used for."""

    quote_id: Identifier
    window_start: Instant


def _current_rate(context: Context, supplier: str, day: str, kind: str) -> Rate | None:
    stored = context.get_state(f"rate/{supplier}/{day}/{kind}/current")
    return None if stored is None else stored_record(Rate, stored)


def _suppliers(context: Context) -> Iterator[str]:
    """All who ever published a rate, in order; one key is read for each of them."""
    start = "rate/"
    while True:
        key = next((key for key, _ in context.range(start, "rate0")), None)
        if key is None:
            return
        supplier = key.split("/")[1]
        yield supplier
        start = f"rate/{supplier}0"  # the first key after rate/{supplier}/


def _best_rate(context: Context, day: str) -> Rate:
    """The highest buy rate of a day, of equal ones the first supplier's by name."""
    best: Rate | None = None
    for supplier in _suppliers(context):
        rate = _current_rate(context, supplier, day, "buy")
        if rate and (best is None or rate.price_micro_per_kwh > best.price_micro_per_kwh):
            best = rate
    if best is None:
        raise NotFound(
            f"no buy rate is published for {day}, so nothing can be quoted; suppliers publish one "
            "with market:PublishRate"
        )
    return best


def sale_tax_of(context: Context, at: int) -> SaleTax:
    """The tax on sales that are quoted at an instant: as agreed, before that as configured."""
    try:
        return agreements.in_force(context, *SALE_TAX, at, SaleTax)
    except NotFound:
        return SaleTax(energy_settings(context).sale_tax_ppm)


def _check_window(channel: EnergySettings, start: int, end: int) -> None:
    """Raise InvalidArgument unless the window is whole intervals of one day, and not too long."""
    for name, instant in (("window_start", start), ("window_end", end)):
        if instant % channel.interval_s:
            raise InvalidArgument(
                f"{name} is {instant} ({utc_text(instant)}), but must be a multiple of the "
                f"channel's interval of {channel.interval_s} s"
            )
    if end <= start:
        raise InvalidArgument(f"window_end is {end}, but must be after window_start, {start}")
    intervals = (end - start) // channel.interval_s
    if intervals > MAX_WINDOW_INTERVALS:
        raise InvalidArgument(
            f"the window has {intervals} intervals, but may have {MAX_WINDOW_INTERVALS}"
        )
    if start // DAY_S != (end - 1) // DAY_S:
        raise InvalidArgument(
            f"the window reaches from {utc_text(start)} to {utc_text(end)}, but must lie within "
            "one UTC day, since rates are daily; ask for one quote on each day"
        )


def _schedule(
    context: Context,
    channel: EnergySettings,
    connection: Connection,
    energy_wh: int,
    start: int,
    end: int,
    max_power_w: int | None,
) -> tuple[Delivery, ...]:
    """Fill the window from its first interval on; raises Conflict if the energy does not fit."""
    power_w = connection.max_export_w
    if max_power_w is not None:
        power_w = min(power_w, max_power_w)
    capacity = power_w * channel.interval_s // 3600
    left = energy_wh
    deliverable = 0
    schedule = []
    for interval_start in range(start, end, channel.interval_s):
        position = current_position(context, connection.connection_id, interval_start)
        free = capacity - position.promised_wh("offer")
        deliverable += max(0, free)
        take = min(free, left)
        if take > 0:
            schedule.append(Delivery(interval_start, take))
            left -= take
    if left:
        where = (
            f"in the interval starting {utc_text(start)}"
            if end - start == channel.interval_s
            else f"between {utc_text(start)} and {utc_text(end)}"
        )
        sold = (end - start) // channel.interval_s * capacity - deliverable
        raise Conflict(
            f"energy_wh is {energy_wh}, but connection {connection.connection_id} can deliver at "
            f"most {deliverable} Wh {where}: {capacity} Wh in each interval"
            + (f", of which {sold} Wh are sold already" if sold else "")
        )
    return tuple(schedule)


def _quote(
    context: Context,
    channel: EnergySettings,
    connection: Connection,
    rate: Rate,
    energy_wh: int,
    window_start: int,
    window_end: int,
    quoted_at: int,
    max_power_w: int | None,
) -> Quote:
    """The quote for these terms, a function of them and of the state alone."""
    schedule = _schedule(
        context, channel, connection, energy_wh, window_start, window_end, max_power_w
    )
    gross = amount_micro(energy_wh, rate.price_micro_per_kwh)
    fee = amount_micro(energy_wh, channel.grid_fee_micro_per_kwh)
    tax = tax_micro(gross, sale_tax_of(context, quoted_at).rate_ppm)
    validity_s = real_seconds(channel.replay, channel.quote_validity_s)
    terms = {
        "connection_id": connection.connection_id,
        "supplier": rate.supplier,
        "rate_version": rate.version,
        "day": rate.day,
        "energy_wh": energy_wh,
        "window_start": window_start,
        "window_end": window_end,
        "schedule": schedule,
        "price_micro_per_kwh": rate.price_micro_per_kwh,
        "gross_micro": gross,
        "grid_fee_micro": fee,
        "net_micro": gross - fee - tax,
        "currency": channel.currency,
        "quoted_at": quoted_at,
        "valid_until": min(quoted_at + validity_s, window_start),
        "max_power_w": max_power_w,
        "tax_micro": tax,
    }
    quote_id = f"Q-{sha256_hex(canonical_json(terms))[:32].upper()}"
    return Quote(quote_id=quote_id, **terms)  # type: ignore[arg-type]


class Market(Contract):
    """Rates, quotes and trades."""

    name: ClassVar[str] = "market"

    @transaction
    def publish_rate(
        self,
        context: Context,
        *,
        supplier: MspId,
        day: Day,
        kind: Kind,
        price_micro_per_kwh: Price,
    ) -> Rate:
        """Set a supplier's price for a day; the same price again changes nothing."""
        access.require_supplier(context.creator, supplier, f"publish rates of {supplier}")
        today = day_start(day_of(settings.now(context, energy_settings(context))))
        start = day_start(day)
        if not today <= start <= today + MAX_DAYS_AHEAD * DAY_S:
            raise InvalidArgument(
                f"day is {day}, but must be between {day_of(today)}, the channel's current day, "
                f"and {day_of(today + MAX_DAYS_AHEAD * DAY_S)}"
            )
        current = _current_rate(context, supplier, day, kind)
        if current is not None and current.price_micro_per_kwh == price_micro_per_kwh:
            return current
        version = 1 if current is None else current.version + 1
        rate = Rate(supplier, day, kind, version, price_micro_per_kwh)
        prefix = f"rate/{supplier}/{day}/{kind}"
        context.put_state(f"{prefix}/{version:06d}", canonical_json(rate))
        context.put_state(f"{prefix}/current", canonical_json(rate))
        return rate

    @query
    def rates(self, context: Context, *, day: Day | None = None) -> list[Rate]:
        """All suppliers' current rates of a day; without one, of the channel's current day."""
        if day is None:
            day = day_of(settings.now(context, energy_settings(context)))
        day_start(day)
        rates = []
        for supplier in _suppliers(context):
            for kind in ("buy", "sell"):
                rate = _current_rate(context, supplier, day, kind)
                if rate is not None:
                    rates.append(rate)
        return rates

    @transaction
    def propose_tax(
        self, context: Context, *, terms: SaleTax, effective_from: Instant
    ) -> Agreement:
        """Propose another tax on sales; it holds once enough utilities have approved it."""
        return agreements.propose(context, *SALE_TAX, effective_from, terms)

    @transaction
    def approve_tax(self, context: Context, *, version: agreements.Version) -> Agreement:
        """Approve a version of the tax on sales for the caller's utility."""
        return agreements.approve(context, *SALE_TAX, version)

    @query
    def tax(self, context: Context, *, at: Instant | None = None) -> SaleTax:
        """The tax on sales that are quoted at an instant; without one, now."""
        if at is None:
            at = settings.now(context, energy_settings(context))
        return sale_tax_of(context, at)

    @query
    def quote(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        energy_wh: Energy,
        window_start: Instant,
        window_end: Instant,
        supplier: MspId | None = None,
        max_power_w: Power | None = None,
    ) -> dict[str, Quote]:
        """What the best supplier, or the one named, pays for energy delivered in a window.

        The schedule stays within the connection's limit, and `max_power_w` where that is less.
        """
        connection = connection_of(context, connection_id)
        homes.require_home_or_operator(context, connection, f"ask for quotes of {connection_id}")
        channel = energy_settings(context)
        now = settings.now(context, channel)
        _check_window(channel, window_start, window_end)
        if window_start <= now:
            raise InvalidArgument(
                f"window_start is {window_start} ({utc_text(window_start)}), but the channel's "
                f"time is {utc_text(now)}; ask for a window that begins later"
            )
        day = day_of(window_start)
        if supplier is None:
            rate = _best_rate(context, day)
        else:
            named = _current_rate(context, supplier, day, "buy")
            if named is None:
                raise NotFound(
                    f"{supplier} has published no buy rate for {day}; leave supplier out for the "
                    "best one, or see market:Rates"
                )
            rate = named
        return {
            "quote": _quote(
                context,
                channel,
                connection,
                rate,
                energy_wh,
                window_start,
                window_end,
                now,
                max_power_w,
            )
        }

    @transaction
    def authorise(
        self,
        context: Context,
        *,
        request_id: RequestId,
        quote: Quote,
        delegation: Identifier | None = None,
    ) -> Trade:
        """Sell exactly what a quote says; the same request again gives the same trade."""
        connection_id = quote.connection_id
        actor = actor_for(context, connection_id, "sell", delegation, f"sell for {connection_id}")
        connection = actor.connection
        request_key = f"request/{connection_id}/{request_id}"
        used = context.get_state(request_key)
        if used is not None:
            request = stored_record(_Request, used)
            stored = context.get_state(
                f"trade/{connection_id}/{request.window_start:012d}/{request_id}"
            )
            if request.quote_id != quote.quote_id or stored is None:
                raise Conflict(
                    f"request_id {request_id} was used for another quote, {request.quote_id}; "
                    "give each sale an id of its own"
                )
            trade = stored_record(Trade, stored)
            if any(
                getattr(trade, field.name) != getattr(quote, field.name)
                for field in fields(quote)
                if field.name not in ("valid_until", "max_power_w")
            ):
                raise Conflict(f"the quote is not {quote.quote_id} as it was authorised")
            return trade
        channel = energy_settings(context)
        now = settings.now(context, channel)
        rate = self._check(context, channel, connection, quote, now)
        trade = Trade(
            trade_id=f"T-{context.transaction_id[:32].upper()}",
            request_id=request_id,
            quote_id=quote.quote_id,
            connection_id=connection_id,
            utility=connection.utility,
            supplier=rate.supplier,
            rate_version=rate.version,
            day=rate.day,
            energy_wh=quote.energy_wh,
            window_start=quote.window_start,
            window_end=quote.window_end,
            schedule=quote.schedule,
            price_micro_per_kwh=rate.price_micro_per_kwh,
            gross_micro=quote.gross_micro,
            grid_fee_micro=quote.grid_fee_micro,
            net_micro=quote.net_micro,
            currency=quote.currency,
            quoted_at=quote.quoted_at,
            authorised_at=now,
            transaction_id=context.transaction_id,
            status="committed",
            acted_by=actor.acted_by,
            tax_micro=quote.tax_micro,
        )
        answer = canonical_json(trade)
        place = f"{quote.window_start:012d}"
        context.put_state(request_key, canonical_json(_Request(quote.quote_id, quote.window_start)))
        context.put_state(f"trade/{connection_id}/{place}/{request_id}", answer)
        context.put_state(
            f"sale/{rate.supplier}/{place}/{connection_id}/{request_id}",
            canonical_json({"trade_id": trade.trade_id}),
        )
        for delivery in quote.schedule:
            position = current_position(context, connection_id, delivery.interval_start)
            position = replace(position, sold_wh=position.sold_wh + delivery.energy_wh)
            actor.check("offer", rate.price_micro_per_kwh, position.promised_wh("offer"))
            check_caps(context, connection, position, "offer", delivery.interval_start)
            store_position(context, connection_id, delivery.interval_start, position)
        payer = supplier_account(rate.supplier)
        grid = grid_account(connection.utility)
        post(
            context,
            now,
            [
                Transfer(payer, connection_id, quote.net_micro, "sale", trade.trade_id),
                Transfer(payer, grid, quote.grid_fee_micro, "grid_fee", trade.trade_id),
                Transfer(payer, tax_account(rate.supplier), quote.tax_micro, "tax", trade.trade_id),
            ],
        )
        context.set_event("trade", answer)
        return trade

    def _check(
        self,
        context: Context,
        channel: EnergySettings,
        connection: Connection,
        quote: Quote,
        now: int,
    ) -> Rate:
        """The quote's rate; raises unless the quote holds now, to the last field."""
        again = "ask for a new quote"
        if quote.quoted_at > now:
            raise InvalidArgument(
                f"quoted_at is {quote.quoted_at} ({utc_text(quote.quoted_at)}), but the channel's "
                f"time is {utc_text(now)}; {again}"
            )
        if now >= quote.valid_until:
            raise Conflict(
                f"the quote was valid until {utc_text(quote.valid_until)}, and the channel's time "
                f"is {utc_text(now)}; {again}"
            )
        gates.before(context, quote.window_start)
        _check_window(channel, quote.window_start, quote.window_end)
        if quote.day != day_of(quote.window_start):
            raise InvalidArgument(
                f"day is {quote.day}, but the window is on {day_of(quote.window_start)}"
            )
        rate = _current_rate(context, quote.supplier, quote.day, "buy")
        if rate is None:
            raise NotFound(f"{quote.supplier} has published no buy rate for {quote.day}")
        if rate.version != quote.rate_version:
            raise Conflict(
                f"rate_version is {quote.rate_version}, but {quote.supplier} has published version "
                f"{rate.version} for {quote.day}; {again}"
            )
        expected = _quote(
            context,
            channel,
            connection,
            rate,
            quote.energy_wh,
            quote.window_start,
            quote.window_end,
            quote.quoted_at,
            quote.max_power_w,
        )
        for field in fields(Quote):
            if field.name != "quote_id" and getattr(expected, field.name) != getattr(
                quote, field.name
            ):
                raise Conflict(
                    f"quote.{field.name} is not what it would be now, for instance because part "
                    f"of the window was sold since; {again}"
                )
        if expected.quote_id != quote.quote_id:
            raise Conflict(f"quote_id does not belong to the quote's terms; {again}")
        return rate

    @query
    def trades(
        self,
        context: Context,
        *,
        connection_id: Identifier | None = None,
        supplier: MspId | None = None,
        from_: Instant = 0,
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """Trades of a connection or a supplier with windows that begin at `from` or later."""
        if (connection_id is None) == (supplier is None):
            raise InvalidArgument("give either connection_id or supplier, not both")
        first = f"{from_:012d}"
        if connection_id is not None:
            seen = homes.seen(context, connection_of(context, connection_id), "read trades")
            items, following = page(context, f"trade/{connection_id}/", first, limit, bookmark)
            trades = [stored_record(Trade, value) for _, value in items]
            trades = [trade for trade in trades if seen.at(trade.window_start)]
        else:
            assert supplier is not None
            access.require_supplier(context.creator, supplier, f"read trades of {supplier}")
            items, following = page(context, f"sale/{supplier}/", first, limit, bookmark)
            trades = []
            for key, _ in items:
                place, connection, request_id = key.split("/")[2:]
                stored = context.get_state(f"trade/{connection}/{place}/{request_id}")
                assert stored is not None, "a sale has its trade"
                trades.append(stored_record(Trade, stored))
        return {"trades": trades, "bookmark": following}
