"""Wishes that an order can carry; what they come to is in the order before it reaches a book."""

from dataclasses import dataclass

from consortium.chaincode.api import Context, Identifier, InvalidArgument

from ..billing.calendars import Calendar
from ..billing.tariff_book import CALENDAR, TARIFF, index_of
from ..billing.tariffs import Tariff, band_at
from ..common import agreements
from ..common.clock import day_of, day_start, utc_text
from ..registry.registry import energy_settings
from .products import Product

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class OwnTariff:
    """What its owner pays and gets without the market."""

    tariff: Identifier
    region: Identifier


def tariff_price(context: Context, own: OwnTariff, interval_start: int, side: str) -> int:
    """What a tariff takes for a kWh of an interval (bid), or pays for one (offer), without taxes.

    Of blocks, the cheapest counts: then it is never worse whatever the period comes to. Raises
    NotFound without tariff, calendar or index.
    """
    terms = agreements.in_force(context, TARIFF, own.tariff, interval_start, Tariff)
    index = 0
    if terms.index is not None:
        day = day_of(interval_start)
        prices = index_of(context, terms.index, day).prices
        index = prices[(interval_start - day_start(day)) // energy_settings(context).interval_s]
    if side == "offer":
        return terms.feed_in - -index * terms.feed_in_index_ppm // _MILLION
    calendar = agreements.in_force(context, CALENDAR, own.region, interval_start, Calendar)
    band = band_at(terms, calendar, interval_start)
    price = 0 if band is None else band.price
    if terms.blocks:
        price += min(block.price for block in terms.blocks)
    if terms.index is not None:
        price += index * terms.index_ppm // _MILLION + terms.markup
    return price


def never_worse(
    context: Context, own: OwnTariff, product: Product, interval_start: int, side: str, price: int
) -> int:
    """An order's price, or the tariff's where that is better for its owner; on the product's tick.

    Raises InvalidArgument where the product's prices allow none.
    """
    tick = product.price_tick
    of_tariff = tariff_price(context, own, interval_start, side)
    if side == "bid":
        best = min(price, of_tariff // tick * tick)
        allowed = best >= product.price_min
    else:
        best = max(price, -(-of_tariff // tick) * tick)
        allowed = best <= product.price_max
    if not allowed:
        raise InvalidArgument(
            f"never_worse_than is tariff {own.tariff}, whose price is {of_tariff} at "
            f"{utc_text(interval_start)}; no price between {product.price_min} and "
            f"{product.price_max} is as good"
        )
    return best
