"""Contract `settlement`: turns committed days into postings and tokens.

Chaincode `metering` settles each connection's day in private (`daybook`) and every peer holds the
commitment. Posting takes the day's public sums, checks that they are what was committed, that each
rests on this ledger's trades and prices, and moves the money, once for each run:

    preview      computed, never posted
    provisional  when the day is over; what wasn't read is estimated
    final        after the terms' working days
    adjustment   for corrections that come later, numbered

A later run posts the difference to the one before and nothing else. Trades never clear again.

    st/{day}/{run}/{connection}   what was posted, once
    day/{connection}/{day}        the last run, with its sums
    clear/{day}/{connection}      what the clearing house took in and paid out for it
    deviation/{msp}/{day}         published shortfall and surplus prices
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    LimitExceeded,
    MspId,
    NotFound,
    TransactionId,
    canonical_json,
    query,
    sha256_hex,
    stored_record,
    transaction,
    under,
)

from ..assets import credits, tokens
from ..assets.wallet import (
    Ledger,
    Transfer,
    balance_account,
    find_hold,
    grid_account,
    supplier_account,
)
from ..billing.bill_basis import MAX_CREDITS
from ..billing.calendars import Calendar
from ..common import access, agreements, commitments, settings
from ..common.agreements import Agreement, Version
from ..common.clock import DAY_S, Day, day_of, day_start, utc_text
from ..common.commitments import Commitment
from ..common.pages import Bookmark, listed
from ..common.residence import require_day
from ..common.settings import Price
from ..market import gates
from ..market.auctions import result_of
from ..market.bilateral import firm_contracts
from ..market.market import Trade
from ..market.orders import Order
from ..market.products import Product
from ..oversight import overseers
from ..registry import homes, roles
from ..registry.registry import connection_of, energy_settings
from . import communities
from .days import (
    MAX_CONNECTIONS,
    ConnectionDay,
    DayInputs,
    DayTerms,
    Rows,
    Run,
    Sum,
    Summary,
    check_run,
    check_shared,
    check_summary,
    first_difference,
    follows,
    rows_key,
    summary_key,
)
from .firm import MAX_TRADES, FirmTrade, Money, Paid, noted
from .settle import MARKET, ROUNDING
from .sharing import pro_rata

MAX_CLEARED = 100_000
"""Connections of one day of the clearing house."""
_TERMS = "settlement"
_CALENDAR = "calendar"


@dataclass(frozen=True, slots=True)
class Deviation:
    """What a balance responsible party asks and pays for deviations on a day."""

    balance_responsible: MspId
    day: Day
    shortfall_price: Price
    surplus_price: Price


@dataclass(frozen=True, slots=True)
class Posted:
    """A day of a connection as it was posted last."""

    run: Run
    commitment: Commitment
    """Of the summary."""
    summary: Summary
    posted_at: Instant
    transaction_id: TransactionId


@dataclass(frozen=True, slots=True)
class _Gate:
    commitment: Commitment
    transaction_id: TransactionId


@dataclass(frozen=True, slots=True)
class _Cleared:
    """What a connection received from the clearing house on a day, in how many lines."""

    amount_micro: Money
    lines: Annotated[int, Integer(0, 10**9)]


@dataclass(frozen=True, slots=True)
class _Closed:
    amount_micro: Money


# Firm trades


def _rate_sales(
    context: Context, connection_id: str, start: int, end: int, fee_price: int
) -> Iterator[FirmTrade]:
    """Sales to suppliers at a day's rate: paid when they were authorised."""
    prefix = f"trade/{connection_id}/"
    # A window lies within one UTC day, so none that began earlier reaches into this day.
    first = f"{prefix}{max(0, start - DAY_S):012d}"
    for _, value in context.range(first, f"{prefix}{end:012d}"):
        trade = stored_record(Trade, value)
        energies = [delivery.energy_wh for delivery in trade.schedule]
        received = pro_rata(trade.gross_micro - trade.tax_micro, energies)
        fees = pro_rata(trade.grid_fee_micro, energies)
        for delivery, amount, fee in zip(trade.schedule, received, fees, strict=True):
            if start <= delivery.interval_start < end:
                yield FirmTrade(
                    delivery.interval_start,
                    -delivery.energy_wh,
                    trade.price_micro_per_kwh - fee_price,
                    fee_price,
                    supplier_account(trade.supplier),
                    "rate",
                    trade.trade_id,
                    Paid(amount, -fee),
                )


def _auction_fills(
    context: Context, connection_id: str, start: int, end: int
) -> Iterator[FirmTrade]:
    """What call auctions have filled; paid out of the orders' holds by settlement."""
    prefix = f"order/{connection_id}/"
    for _, value in context.range(f"{prefix}{start:012d}", f"{prefix}{end:012d}"):
        order = stored_record(Order, value)
        if order.state not in ("open", "cleared"):
            continue
        result = result_of(context, order.product, order.interval_start)
        if result is None or result.void:
            continue  # never cleared, or of a continuous book, whose fills are noted
        if order.state == "open":
            raise Conflict(
                f"the book of {order.product} for {utc_text(order.interval_start)} is cleared, "
                f"but order {order.order_id} of {connection_id} isn't applied; book:Apply first"
            )
        terms = agreements.terms_of(
            context, "product", order.product, result.product_version, Product
        )
        zone = terms.zone_of(order.zone)
        bought = order.side == "bid"
        for energy_wh, price, fee in (
            (order.local_wh, order.local_price, zone.local_fee if bought else 0),
            (order.hub_wh, order.hub_price, zone.entry_fee if bought else zone.exit_fee),
        ):
            if energy_wh:
                assert price is not None, "what is filled has a price"
                yield FirmTrade(
                    order.interval_start,
                    energy_wh if bought else -energy_wh,
                    price,
                    fee,
                    MARKET,
                    "auction",
                    order.order_id,
                    None,
                    order.hold_id if order.hold_micro else None,
                )


def firm_trades(
    context: Context, connection_id: str, start: int, end: int
) -> tuple[FirmTrade, ...]:
    """All that a connection has bought and sold for intervals in [start, end), in one order.

    For intervals that are over nobody can add to it any more.

    Raises:
        Conflict: a book is cleared, but its fills aren't noted yet.
        LimitExceeded: more than 5,000.
    """
    fee_price = energy_settings(context).grid_fee_micro_per_kwh
    found = [
        *_rate_sales(context, connection_id, start, end, fee_price),
        *_auction_fills(context, connection_id, start, end),
        *firm_contracts(context, connection_id, start, end, fee_price),
        *noted(context, connection_id, start, end),
    ]
    if len(found) > MAX_TRADES:
        raise LimitExceeded(f"{connection_id} has {len(found)} trades, but {MAX_TRADES} may settle")
    return tuple(
        sorted(
            found,
            key=lambda one: (
                one.interval_start,
                one.source,
                one.reference,
                one.fee_micro_per_kwh,
                one.energy_wh,
            ),
        )
    )


# Days


def _terms_at(context: Context, supplier: str, at: int) -> tuple[int, DayTerms]:
    version = agreements.version_at(context, _TERMS, supplier, at)
    return version, agreements.terms_of(context, _TERMS, supplier, version, DayTerms)


def terms_on(context: Context, supplier: str, at: int) -> DayTerms | None:
    """What a supplier's homes settle at, None where its days aren't settled."""
    try:
        return _terms_at(context, supplier, at)[1]
    except NotFound:
        return None


def posted_day(context: Context, connection_id: str, day: str) -> Posted | None:
    """A connection's day as it was posted last, None if it wasn't."""
    stored = context.get_state(day_key(connection_id, day))
    return None if stored is None else stored_record(Posted, stored)


def day_times(context: Context, supplier: str, day: str) -> tuple[int, int, int] | None:
    """When a supplier's day begins, ends and becomes final; None where it isn't settled.

    Raises NotFound where no calendar of its region says so yet.
    """
    at = day_start(day)
    terms = terms_on(context, supplier, at)
    return None if terms is None else _times(context, terms, day)


def market_left(context: Context, day: str) -> tuple[int, int, int]:
    """What the clearing house has left of a day; of how many lines and connections."""
    left = lines = count = 0
    for _, value in context.range(*under(f"clear/{day}/")):
        if count == MAX_CLEARED:
            raise LimitExceeded(f"day {day} has more than {MAX_CLEARED} connections")
        cleared = stored_record(_Cleared, value)
        left -= cleared.amount_micro
        lines += cleared.lines
        count += 1
    return left, lines, count


def market_closed(context: Context, day: str) -> int | None:
    """What was moved to the roundings when the clearing house's day was closed; None: open."""
    stored = context.get_state(f"cleared/{day}")
    return None if stored is None else stored_record(_Closed, stored).amount_micro


def _times(context: Context, terms: DayTerms, day: str) -> tuple[int, int, int]:
    """When a day begins, ends and becomes final.

    Some weeks before the end of what a region's calendar knows, it doesn't know any more when days
    become final. Then the next version that does says so: calendars can't be changed back in time,
    and without a run nothing was settled by the first one.
    """
    at = day_start(day)
    if terms.region is None:
        return at, at + DAY_S, _final_at(terms, None, day)
    refusal: NotFound | None = None
    for calendar in agreements.from_then_on(context, _CALENDAR, terms.region, at, Calendar):
        try:
            return *calendar.bounds(day), _final_at(terms, calendar, day)
        except NotFound as unknown:
            refusal = refusal or unknown
    assert refusal is not None, "one version holds at least"
    raise refusal


def day_inputs(
    context: Context, utility: str, day: str, connection_ids: Sequence[str]
) -> DayInputs:
    """What is public of a day of some connections.

    Raises:
        NotFound: no terms are in force, or a connection doesn't exist.
        Conflict: the connections don't belong together: not one metering operator, one supplier,
            one balance responsible party and one grid operator, or a community isn't whole.
    """
    names = list(connection_ids)
    if not names or names != sorted(dict.fromkeys(names)):
        raise InvalidArgument("connections must be in order of their names, one at least")
    at = day_start(day)
    parts: dict[str, str | None] = {}
    for name in names:
        connection = connection_of(context, name)
        for role in ("metering_operator", "supplier", "balance_responsible", "grid_operator"):
            holder = roles.role_at(context, connection, role, at)
            if parts.setdefault(role, holder) != holder:
                raise Conflict(
                    f"{name} has the {role.replace('_', ' ')} {holder} on {day}, but {names[0]} "
                    f"has {parts[role]}; settle them by separate calls"
                )
    if parts["metering_operator"] != utility:
        raise Conflict(f"{names[0]} is metered by {parts['metering_operator']}, not by {utility}")
    supplier, responsible = str(parts["supplier"]), str(parts["balance_responsible"])
    version, terms = _terms_at(context, supplier, at)
    start, end, final_at = _times(context, terms, day)
    channel = energy_settings(context)
    if start % channel.interval_s or end % channel.interval_s:
        raise Conflict(f"day {day} of calendar {terms.region} cuts an interval in two")
    published = context.get_state(f"deviation/{responsible}/{day}")
    deviation = None if published is None else stored_record(Deviation, published)
    memberships = {name: communities.community_at(context, name, day) for name in names}
    shared = []
    for community in sorted(dict.fromkeys(one for one in memberships.values() if one)):
        found = communities.day_of_community(context, community, day)
        missing = [name for name in found.members if name not in names]
        if missing:
            raise Conflict(
                f"{missing[0]} is a member of community {community} on {day}; its members are "
                "settled together"
            )
        shared.append(found)
    each = []
    for name in names:
        stored = context.get_state(day_key(name, day))
        each.append(
            ConnectionDay(
                name,
                memberships[name],
                firm_trades(context, name, start, end),
                None if stored is None else stored_record(Posted, stored).run,
            )
        )
    return DayInputs(
        utility,
        day,
        start,
        end,
        final_at,
        end + terms.adjustable_days * DAY_S,
        channel.interval_s,
        version,
        terms,
        terms.shortfall_price if deviation is None else deviation.shortfall_price,
        terms.surplus_price if deviation is None else deviation.surplus_price,
        supplier_account(supplier),
        balance_account(responsible),
        grid_account(str(parts["grid_operator"])),
        tuple(each),
        tuple(shared),
    )


def _final_at(terms: DayTerms, calendar: Calendar | None, day: str) -> int:
    """When a day can become final: the end of the n-th working day after it."""
    current = day_start(day)
    left = terms.final_after_working_days
    while left:
        current += DAY_S
        working = (current // DAY_S + 3) % 7 < 5
        if working and not (calendar is not None and calendar.is_holiday(day_of(current))):
            left -= 1
    if calendar is None:
        return current + DAY_S
    return calendar.bounds(day_of(current))[1]


def day_key(connection_id: str, day: str) -> str:
    """Where a connection's day stands as it was posted last."""
    return f"day/{connection_id}/{day}"


def _differences(before: Sequence[Sum], after: Sequence[Sum]) -> dict[tuple[str, str], int]:
    """What is still to be paid by kind and counterparty; what was paid before is left out."""
    left: dict[tuple[str, str], int] = {}
    for sums, sign in ((before, -1), (after, 1)):
        for one in sums:
            if not one.paid:
                key = one.kind, one.counterparty
                left[key] = left.get(key, 0) + sign * one.amount_micro
    return {key: amount for key, amount in sorted(left.items()) if amount}


class Settlement(Contract):
    """Terms, prices of deviations, postings, and what was posted."""

    name: ClassVar[str] = "settlement"

    # Terms

    @transaction
    def propose_terms(
        self, context: Context, *, terms: DayTerms, effective_from: Instant
    ) -> Agreement:
        """Propose what a supplier's homes settle at; it holds once enough utilities approve."""
        access.require_supplier(
            context.creator, terms.supplier, f"propose terms of {terms.supplier}"
        )
        if terms.shortfall_price < terms.tariff:
            raise InvalidArgument(
                f"terms.shortfall_price is {terms.shortfall_price}, below the tariff, "
                f"{terms.tariff}: who sells what it doesn't have would gain"
            )
        if terms.surplus_price > terms.base_rate:
            raise InvalidArgument(
                f"terms.surplus_price is {terms.surplus_price}, above the base rate, "
                f"{terms.base_rate}: who buys what it doesn't need would gain"
            )
        if effective_from % DAY_S:
            raise InvalidArgument(
                f"effective_from is {utc_text(effective_from)}, but terms begin with a UTC day"
            )
        if terms.region is not None:
            agreements.in_force(context, _CALENDAR, terms.region, effective_from, Calendar)
        return agreements.propose(context, _TERMS, terms.supplier, effective_from, terms)

    @transaction
    def approve_terms(self, context: Context, *, supplier: MspId, version: Version) -> Agreement:
        """Approve a version of a supplier's terms for the caller's utility."""
        return agreements.approve(context, _TERMS, supplier, version)

    @query
    def terms(self, context: Context, *, supplier: MspId, day: Day) -> DayTerms:
        """What a supplier's homes settle at on a day."""
        return _terms_at(context, supplier, day_start(day))[1]

    @transaction
    def publish_prices(
        self, context: Context, *, day: Day, shortfall_price: Price, surplus_price: Price
    ) -> Deviation:
        """Publish a day's prices of deviations, once, before the day begins."""
        party = context.creator.msp_id
        access.require(
            access.is_supplier(context.creator, party),
            context.creator,
            f"publish prices of {party}",
            "suppliers and operators of a balance responsible party",
        )
        if surplus_price > shortfall_price:
            raise InvalidArgument(
                f"surplus_price is {surplus_price}, above shortfall_price, {shortfall_price}"
            )
        deviation = Deviation(party, day, shortfall_price, surplus_price)
        key = f"deviation/{party}/{day}"
        stored = context.get_state(key)
        if stored is not None:
            if stored_record(Deviation, stored) != deviation:
                raise Conflict(f"{party} has published other prices for {day}")
            return deviation
        now = settings.now(context, energy_settings(context))
        if now >= day_start(day):
            raise Conflict(
                f"day is {day}, but the channel's time is {utc_text(now)}: prices of deviations "
                "are published before the day, or the terms' hold"
            )
        gates.before(context, day_start(day))
        context.put_state(key, canonical_json(deviation))
        return deviation

    # What `metering` asks

    @query
    def inputs(
        self,
        context: Context,
        *,
        utility: MspId,
        day: Day,
        connections: Annotated[tuple[Identifier, ...], AtMost(MAX_CONNECTIONS)],
    ) -> DayInputs:
        """What is public of a day of some connections: prices, firm trades, communities."""
        creator = context.creator
        found = day_inputs(context, utility, day, connections)
        ours = [name for name in connections if homes.lived_on(context, utility, name, day)]
        own = next(iter(ours), None)
        together = [
            one.connection_id
            for one in found.connections
            if one.community is not None
            and any(other.connection_id == own for other in found.connections)
            and one.community
            == next(x.community for x in found.connections if x.connection_id == own)
        ]
        access.require(
            access.is_operator(creator, utility)
            or overseers.is_overseer(context)
            or all(name in ours or name in together for name in connections),
            creator,
            "read trades of these connections",
            f"operators of {utility}, auditors, and a home for itself with its community",
        )
        return found

    @query
    def trades(
        self, context: Context, *, connection_id: Identifier, from_: Instant, to: Instant
    ) -> list[FirmTrade]:
        """A connection's firm trades for intervals that begin in [from, to), of every kind."""
        seen = homes.seen(context, connection_of(context, connection_id), "read trades")
        if not from_ < to <= from_ + 2 * DAY_S:
            raise InvalidArgument(
                f"to is {to}, but must be after from, {from_}, by two days at most"
            )
        found = firm_trades(context, connection_id, from_, to)
        return [trade for trade in found if seen.at(trade.interval_start)]

    # Posting

    @transaction
    def post(
        self,
        context: Context,
        *,
        utility: MspId,
        day: Day,
        run: Run,
        summaries: Annotated[tuple[Summary, ...], AtMost(MAX_CONNECTIONS)],
    ) -> dict[str, Any]:
        """Pay what the committed days of some connections come to, once for each run."""
        access.require_operator(context.creator, utility, f"post settlements of {utility}")
        names = [one.connection_id for one in summaries]
        for one in summaries:
            if (one.utility, one.day, one.run) != (utility, day, run):
                raise InvalidArgument(
                    f"the summary of {one.connection_id} is of {one.utility}, {one.day}, {one.run}"
                )
        inputs = day_inputs(context, utility, day, names)
        shown = {summary_key(day, run, one.connection_id): one for one in summaries}
        commitments.check_all(context, utility, shown)
        now = settings.now(context, energy_settings(context))
        check_run(inputs, run, now)
        ledger = Ledger(context, now)
        posted = []
        known = []
        for summary, connection in zip(summaries, inputs.connections, strict=True):
            hashed = sha256_hex(canonical_json(summary))
            gate = context.get_state(f"st/{day}/{run}/{summary.connection_id}")
            if gate is not None:
                if stored_record(_Gate, gate).commitment != hashed:
                    raise Conflict(
                        f"another {run} settlement of {summary.connection_id} for {day} is posted"
                    )
                known.append(summary.connection_id)
                continue
            if not follows(connection.posted, run):
                raise Conflict(
                    f"the last settlement of {summary.connection_id} for {day} is "
                    f"{connection.posted or 'none'}, which {run} doesn't follow"
                )
            check_summary(inputs, summary)
            self._post(context, ledger, now, summary, hashed, connection)
            credits.settle_day(context, ledger, inputs, summary)
            posted.append(summary.connection_id)
        check_shared(summaries)
        ledger.write()
        if posted:
            context.set_event(
                "settled",
                canonical_json({"utility": utility, "day": day, "run": run, "posted": posted}),
            )
        return {"day": day, "run": run, "posted": posted, "known": known}

    def _post(
        self,
        context: Context,
        ledger: Ledger,
        now: int,
        summary: Summary,
        hashed: str,
        connection: ConnectionDay,
    ) -> None:
        name, day = summary.connection_id, summary.day
        stored = context.get_state(day_key(name, day))
        before = None if stored is None else stored_record(Posted, stored).summary
        transfers = []
        due = _differences(() if before is None else before.sums, summary.sums)
        for (kind, counterparty), amount in due.items():
            payer, payee = (counterparty, name) if amount > 0 else (name, counterparty)
            word = "adjustment" if summary.run.startswith("adjustment-") else kind
            reference = f"{day}-{summary.run}"
            transfers.append(Transfer(payer, payee, abs(amount), word, reference))
        holds = []
        for hold_id in sorted({one.hold_id: None for one in connection.trades if one.hold_id}):
            hold = find_hold(context, name, hold_id)
            if hold is not None and hold.state == "pending":
                holds.append(hold)
        if holds:
            ledger.end_holds(holds, [one for one in transfers if one.payer == name])
            transfers = [one for one in transfers if one.payer != name]
        for transfer in transfers:
            ledger.transfer(transfer)
        tokens.assign(context, name, day, summary.tokens)
        cleared = [one for one in summary.sums if one.counterparty == MARKET and not one.paid]
        if cleared:
            amount = sum(one.amount_micro for one in cleared)
            context.put_state(
                f"clear/{day}/{name}",
                canonical_json(_Cleared(amount, sum(one.lines for one in cleared))),
            )
        context.put_state(
            f"st/{day}/{summary.run}/{name}", canonical_json(_Gate(hashed, context.transaction_id))
        )
        context.put_state(
            day_key(name, day),
            canonical_json(Posted(summary.run, hashed, summary, now, context.transaction_id)),
        )

    @transaction
    def use_credits(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        day: Day,
        lots: Annotated[tuple[Day, ...], AtMost(MAX_CREDITS)],
    ) -> dict[str, Any]:
        """Set off a final day's import with credits of some days; again changes nothing."""
        homes.require_home_or_operator(
            context, connection_of(context, connection_id), f"use credits of {connection_id}"
        )
        stored = context.get_state(day_key(connection_id, day))
        if stored is None or stored_record(Posted, stored).run == "provisional":
            raise Conflict(
                f"day {day} of {connection_id} isn't final; credits set off final days alone"
            )
        at = day_start(day)
        connection = connection_of(context, connection_id)
        supplier = str(roles.role_at(context, connection, "supplier", at))
        terms = _terms_at(context, supplier, at)[1]
        summary = stored_record(Posted, stored).summary
        found = credits.use(
            context, connection_id, summary, supplier_account(supplier), terms.tariff, lots
        )
        return {
            "connection_id": connection_id,
            "day": day,
            "energy_wh": found.energy_wh,
            "amount_micro": found.amount_micro,
            "draws": found.draws,
        }

    @transaction
    def close_market(self, context: Context, *, day: Day) -> dict[str, Any]:
        """Move what is left of the clearing house's day to its account of roundings.

        Buyers and sellers are rounded each for itself, by half a micro-unit a line at most. If more
        is left, somebody's day isn't posted yet.
        """
        access.require_member(context.creator, "close the clearing house's day")
        left, lines, count = market_left(context, day)
        if 2 * abs(left) > lines:
            raise Conflict(
                f"the clearing house has {left} micro-units left of {day}, but its {lines} lines "
                f"can be rounded by {lines // 2} at most: not all days are posted"
            )
        closed = market_closed(context, day)
        before = closed or 0
        if left != before:
            now = settings.now(context, energy_settings(context))
            ledger = Ledger(context, now)
            ledger.transfer(Transfer(MARKET, ROUNDING, left - before, "rounding", day))
            ledger.write()
        if left != closed:
            context.put_state(f"cleared/{day}", canonical_json(_Closed(left)))
        return {"day": day, "connections": count, "lines": lines, "rounding_micro": left}

    # Looking

    @query
    def posted(self, context: Context, *, connection_id: Identifier, day: Day) -> Posted:
        """A connection's day as it was posted last."""
        seen = homes.seen(context, connection_of(context, connection_id), "read settlements")
        require_day(context.creator, seen, day, f"read settlements of {connection_id}")
        stored = context.get_state(day_key(connection_id, day))
        if stored is None:
            raise NotFound(f"day {day} of {connection_id} isn't settled")
        return stored_record(Posted, stored)

    @query
    def days(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        from_day: Day = "1970-01-01",
        limit: Annotated[int, Integer(1, 100)] = 31,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """A connection's settled days from a day on, the oldest first."""
        seen = homes.seen(context, connection_of(context, connection_id), "read settlements")
        found = listed(context, "days", Posted, f"day/{connection_id}/", from_day, limit, bookmark)
        return {**found, "days": [one for one in found["days"] if seen.on(one.summary.day)]}

    @query
    def net(
        self, context: Context, *, connection_id: Identifier, from_day: Day, to_day: Day
    ) -> dict[str, Any]:
        """What a connection's days in [from_day, to_day) come to: one amount, by what it is of."""
        seen = homes.seen(context, connection_of(context, connection_id), "read settlements")
        days = (day_start(to_day) - day_start(from_day)) // DAY_S
        if not 0 < days <= 366:
            raise InvalidArgument(
                f"to_day is {to_day}, but must be 1 to 366 days after from_day, {from_day}"
            )
        total: dict[str, Sum] = {}
        open_days = []
        for number in range(days):
            day = day_of(day_start(from_day) + number * DAY_S)
            require_day(context.creator, seen, day, f"read settlements of {connection_id}")
            stored = context.get_state(day_key(connection_id, day))
            if stored is None:
                open_days.append(day)
                continue
            for one in stored_record(Posted, stored).summary.sums:
                if one.kind == "taken":
                    one = replace(one, paid=False)
                name = f"{one.kind}/{one.counterparty}"
                before = total.get(name, replace(one, lines=0, energy_wh=0, amount_micro=0))
                total[name] = replace(
                    before,
                    lines=before.lines + one.lines,
                    energy_wh=before.energy_wh + one.energy_wh,
                    amount_micro=before.amount_micro + one.amount_micro,
                )
        return {
            "connection_id": connection_id,
            "from_day": from_day,
            "to_day": to_day,
            "net_micro": sum(one.amount_micro for one in total.values()),
            "grid_fees_micro": sum(one.amount_micro for one in total.values() if one.kind == "fee"),
            "sums": [total[name] for name in sorted(total)],
            "open_days": open_days,
        }

    @query
    def verify(self, context: Context, *, opened: Rows, summary: Summary) -> dict[str, Any]:
        """Compute an opened day again, from its first row to its posted sums."""
        name = opened.connection_id
        inputs = day_inputs(
            context,
            summary.utility,
            opened.day,
            communities.with_members(context, name, opened.day),
        )
        keys = [
            rows_key(opened.day, opened.run, name),
            summary_key(opened.day, opened.run, name),
        ]
        found = commitments.commitments(context, summary.utility, keys)
        # Whoever kept a day that its utility has erased since can still show that it was posted.
        gate = context.get_state(f"st/{opened.day}/{opened.run}/{name}")
        posted = None if gate is None else stored_record(_Gate, gate).commitment
        hashed = sha256_hex(canonical_json(opened))
        committed = (found[keys[0]] or summary.rows) == hashed == summary.rows and (
            found[keys[1]] or posted
        ) == sha256_hex(canonical_json(summary))
        difference = first_difference(inputs, opened, summary)
        return {
            "connection_id": name,
            "day": opened.day,
            "run": opened.run,
            "committed": committed,
            "holds": difference is None,
            "difference": difference,
        }
