"""What can be done for books now: calls that any utility's operator may submit as they are.

Asking writes nothing, and a call that somebody else made first changes nothing. So a utility's
agent asks, submits, and asks again, and decides nothing itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from consortium.chaincode.api import Context, stored_record

from ..common import agreements
from . import gates
from .auctions import PageSum, result_of, revealing_ended
from .matching import MAX_ENTRIES, inbox_names, rests_any
from .orders import closed_state, zone_key
from .products import Product, product_at
from .sealed import revealing_until, waits_any

MAX_CHORES = 50
LOOK_BACK_S = 86_400
"""How long after delivery books are looked at: by then somebody has seen to them."""


@dataclass(frozen=True, slots=True)
class Chore:
    """A call that is due."""

    function: str
    argument: dict[str, Any]


def chores(context: Context, now: int, since: int) -> list[Chore]:
    """Calls that are due for books with delivery from `since` on, the earliest delivery first."""
    found: list[Chore] = []
    for product in agreements.names(context, "product"):
        for interval_start in _traded(context, product, since):
            terms = product_at(context, product, interval_start)
            steps = _continuous if terms.trading == "continuous" else _auction
            found += steps(context, terms, interval_start, now)
    found.sort(key=lambda chore: chore.argument["interval_start"])
    return found[:MAX_CHORES]


def _traded(context: Context, product: str, since: int) -> list[int]:
    """The intervals that any order was ever placed for; one key is read for each."""
    zones = agreements.latest(context, "product", product, Product).zones
    prefixes = [f"o/{zone.zone}/{product}/" for zone in zones]
    prefixes += [f"{kind}/{product}/" for kind in ("seal", "in", "c")]
    intervals: dict[int, None] = {}
    for prefix in prefixes:
        at = since
        while True:
            first = next(context.range(f"{prefix}{at:012d}", f"{prefix[:-1]}0"), None)
            if first is None:
                break
            interval_start = int(first[0].removeprefix(prefix).partition("/")[0])
            intervals[interval_start] = None
            at = interval_start + 1
    return sorted(intervals)


def _continuous(context: Context, terms: Product, interval_start: int, now: int) -> Iterator[Chore]:
    book = {"product": terms.product, "interval_start": interval_start}
    state = closed_state(context, terms.product, interval_start)
    waiting = inbox_names(context, terms.product, interval_start, MAX_ENTRIES)
    begun = now >= interval_start
    if waiting and not begun:
        yield Chore("book:Match", {**book, "entries": waiting})
    if state is None:
        if now >= interval_start - terms.gate_closure_s:
            yield Chore("book:Close", book)
    elif waiting and not begun:
        pass  # what was placed in time is matched before the rest is given back
    elif waiting or rests_any(context, terms.product, interval_start):
        yield Chore("book:Expire", book)


def _auction(context: Context, terms: Product, interval_start: int, now: int) -> Iterator[Chore]:
    book = {"product": terms.product, "interval_start": interval_start}
    state = closed_state(context, terms.product, interval_start)
    if state is None:
        if now >= interval_start - terms.gate_closure_s:
            yield Chore("book:Close", book)
        return
    if terms.sealed:
        if not revealing_ended(context, terms.product, interval_start):
            end = min(revealing_until(state, terms), interval_start)
            if now >= end and gates.is_over(context, end):
                yield Chore("book:EndReveal", book)
            return
        if waits_any(context, terms.product, interval_start):
            yield Chore("book:Forfeit", book)
    cleared = result_of(context, terms.product, interval_start) is not None
    summed = True
    for zone in terms.zones:
        name = zone_key(zone.zone, terms.product, interval_start)
        number = 0
        while True:
            page = {**book, "zone": zone.zone, "page": number}
            stored = context.get_state(f"agg/{name}/{number:06d}")
            if stored is None:
                summed = False
                yield Chore("book:Aggregate", page)
                break
            if cleared and context.get_state(f"applied/{name}/{number:06d}") is None:
                yield Chore("book:Apply", page)
            if not stored_record(PageSum, stored).next_key:
                break
            number += 1
    if summed and not cleared:
        yield Chore("book:Clear", book)
