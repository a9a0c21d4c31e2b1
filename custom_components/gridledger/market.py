"""The market beyond one's own trades: prices by day, the order book, and own orders."""

import asyncio
from collections.abc import Mapping
from secrets import token_hex
from typing import Any, Final

from homeassistant.util import dt as dt_util

from .accounts import async_have_money, async_submit
from .archive import async_orders as async_past_orders
from .archive import async_settled_days
from .client import TransactionRefused
from .const import CHAINCODE_ENERGY
from .models import Rate, order_as_response, understood
from .sales import DELIVERING, OVER, SETTLED
from .session import LedgerSession

DAYS_LIMIT: Final = 14
_ORDERS: Final = 200
_FOLLOWED: Final = 6
_FOLLOWED_S: Final = 3 * 86_400
_LEVELS: Final = 20
_AT_ONCE: Final = 7
_FEES_MICRO: Final = 10_000


async def async_prices(session: LedgerSession, days: int) -> list[dict[str, Any]]:
    """Return suppliers' rates of today and the days after it, as spans of real time.

    Raises:
        GridLedgerError: the ledger is away or answers nonsense.
    """
    clock = session.known_clock()
    first = clock.day_start(clock.channel(dt_util.utcnow().timestamp()))
    spans: list[dict[str, Any]] = []
    for begin in range(0, min(days, DAYS_LIMIT), _AT_ONCE):
        starts = [first + 86400 * day for day in range(begin, min(days, begin + _AT_ONCE))]
        answers = await asyncio.gather(
            *(
                session.client.evaluate(CHAINCODE_ENERGY, "market:Rates", {"day": clock.day(start)})
                for start in starts
            )
        )
        for start, answer in zip(starts, answers, strict=True):
            with understood("a rate"):
                rates = [Rate.from_json(rate) for rate in answer]
            spans.extend(
                {
                    "start": clock.real_datetime(start).isoformat(),
                    "end": clock.real_datetime(start + 86400).isoformat(),
                    "supplier": rate.supplier,
                    "kind": rate.kind,
                    "price_per_kwh": rate.price_micro_per_kwh / 1e6,
                }
                for rate in rates
            )
    return spans


async def async_orders(session: LedgerSession) -> list[dict[str, Any]]:
    """Return the home's orders for intervals that aren't over.

    Raises:
        GridLedgerError: the ledger is away or answers nonsense.
    """
    clock = session.known_clock()
    now = clock.interval_at(clock.channel(dt_util.utcnow().timestamp()))
    answer = await session.client.evaluate(
        CHAINCODE_ENERGY,
        "book:Orders",
        {"connection_id": session.connection_id, "from": now, "limit": _ORDERS},
    )
    with understood("an order"):
        return [
            order_as_response(order, clock, session.data.currency) for order in answer["orders"]
        ]


async def async_followed_orders(session: LedgerSession) -> list[dict[str, Any]]:
    """Return the orders of intervals ahead, then the latest that were filled before, newest first.

    ``progress`` says how far a filled one is, in the words of :mod:`.sales`.

    Raises:
        GridLedgerError: the ledger is away or answers nonsense.
    """
    clock = session.known_clock()
    now = clock.channel(dt_util.utcnow().timestamp())
    current = clock.interval_at(now)
    ahead, before = await asyncio.gather(
        async_orders(session), async_past_orders(session, current - _FOLLOWED_S, current)
    )
    filled = [order for order in before if order["filled_kwh"]][: -_FOLLOWED - 1 : -1]
    settled = (
        await async_settled_days(session, clock.day(filled[-1]["interval_start"])) if filled else {}
    )
    for order in ahead:
        running = order["filled_kwh"] and order["interval_start"] <= now
        order["progress"] = DELIVERING if running else None
    for order in filled:
        is_settled = clock.day(order["interval_start"]) in settled
        order["progress"] = SETTLED if is_settled else OVER
    return ahead + filled


async def async_depth(session: LedgerSession, product: str) -> dict[str, Any] | None:
    """Return the book of the next interval that can still be traded, None without one.

    Raises:
        GridLedgerError: the ledger is away.
    """
    clock = session.known_clock()
    try:
        terms = await session.client.evaluate(
            CHAINCODE_ENERGY, "book:Product", {"product": product}
        )
        with understood("a product of the order book"):
            gate = int(terms.get("terms", terms)["gate_closure_s"])
        if session.zone is None:
            return None  # the home's connection isn't entered yet
        now = clock.channel(dt_util.utcnow().timestamp())
        start = clock.next_boundary(now + gate + 5 * clock.rate)
        depth = await session.client.evaluate(
            CHAINCODE_ENERGY,
            "book:Depth",
            {"product": product, "interval_start": start, "zone": session.zone, "levels": _LEVELS},
        )
    except TransactionRefused as error:
        if error.status == 404:
            return None  # nobody has agreed on such a product here
        raise
    with understood("the order book"):
        return {
            "product": product,
            "start": clock.real_datetime(start).isoformat(),
            "interval_start": start,
            **{
                side: [
                    {
                        "price_per_kwh": int(level["price_micro_per_kwh"]) / 1e6,
                        "energy_kwh": int(level["energy_wh"]) / 1000,
                    }
                    for level in depth[side]
                ]
                for side in ("bids", "offers")
            },
        }


async def async_place(
    session: LedgerSession,
    side: str,
    energy_wh: int,
    price_micro: int,
    product: str,
    start: float,
    order_id: str | None,
    whom: Mapping[str, str],
) -> dict[str, Any]:
    """Place an order for the interval that holds a real instant.

    ``whom`` names the ``partner`` it prefers, or who it gives to or takes from (``gift``).

    Raises:
        GridLedgerError: the ledger is away, or the contract says no.
    """
    clock = session.known_clock()
    # What an order may cost is set aside: its worth, and as much again for fees.
    worth_micro = abs(price_micro) * energy_wh // 1000
    await async_have_money(session, 2 * worth_micro + _FEES_MICRO)
    committed = await async_submit(
        session,
        "book:Place",
        {
            "order_id": order_id or f"HA-{token_hex(8).upper()}",
            "connection_id": session.connection_id,
            "product": product,
            "interval_start": clock.interval_at(clock.channel(start)),
            "side": side,
            "price_micro_per_kwh": price_micro,
            "energy_wh": energy_wh,
            **whom,
        },
    )
    session.async_look_again()
    with understood("the order"):
        order = order_as_response(committed.result, clock, session.data.currency)
    return {**order, "transaction_id": committed.transaction_id, "block": committed.block_number}


async def async_cancel(session: LedgerSession, order_id: str) -> dict[str, Any]:
    """Take an open order back. In a continuous book its matcher does so soon: ``cancelling``.

    Raises:
        GridLedgerError: the ledger is away, there is no such order, or its book is closed.
    """
    clock = session.known_clock()
    for order in await async_orders(session):
        if order["order_id"] == order_id:
            break
    else:
        raise TransactionRefused(f"there is no order {order_id} for an interval ahead")
    committed = await async_submit(
        session,
        "book:Cancel",
        {
            "order_id": order_id,
            "connection_id": session.connection_id,
            "interval_start": order["interval_start"],
        },
    )
    session.async_look_again()
    with understood("the order"):
        if committed.result.get("asked"):
            answer = {**order, "state": "cancelling"}
        else:
            answer = order_as_response(committed.result, clock, session.data.currency)
    return {**answer, "transaction_id": committed.transaction_id, "block": committed.block_number}
