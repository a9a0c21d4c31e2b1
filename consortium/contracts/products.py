"""Products: what is traded in call auctions, in which zones, within which prices, by when."""

from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Context,
    Identifier,
    Integer,
    InvalidArgument,
    NotFound,
)

from . import agreements
from .settings import Price

MAX_ZONES = 64
Fee = Annotated[int, Integer(0, 10**9, "micro-units per kWh")]


@dataclass(frozen=True, slots=True)
class Zone:
    """A part of the grid and what it charges for each kWh that is delivered.

    Fees are in micro-units per kWh. A zone without a hub trades by itself.
    """

    zone: Identifier
    local_fee: Fee
    """For energy that stays in the zone; the buyer pays it."""
    entry_fee: Fee
    """For energy that comes from another zone; the buyer pays it."""
    exit_fee: Fee
    """For energy that goes to another zone; the seller pays it."""


@dataclass(frozen=True, slots=True)
class Product:
    """The terms of one product."""

    product: Identifier
    zones: Annotated[tuple[Zone, ...], AtMost(MAX_ZONES)]
    price_min: Price
    price_max: Price
    price_tick: Annotated[int, Integer(1, 10**9, "micro-units per kWh")]
    price_rule: Annotated[str, Choice("middle", "lowest", "highest")]
    """Which price of those that clear."""
    gate_closure_s: Annotated[int, Integer(0, 7 * 86_400, "s")]
    """How long before delivery begins a book may be closed."""
    shortfall_margin: Fee
    """What a seller sets aside for each kWh in case it delivers less."""

    def zone_of(self, zone: str) -> Zone:
        """Its terms in a zone; raises NotFound."""
        for terms in self.zones:
            if terms.zone == zone:
                return terms
        raise NotFound(f"product {self.product} is not traded in zone {zone}")

    def check_price(self, price: int) -> None:
        """Raise InvalidArgument for a price outside of the limits or between two ticks."""
        if not self.price_min <= price <= self.price_max:
            raise InvalidArgument(
                f"price_micro_per_kwh is {price}, but {self.product} trades between "
                f"{self.price_min} and {self.price_max}"
            )
        if price % self.price_tick:
            raise InvalidArgument(
                f"price_micro_per_kwh is {price}, but must be a multiple of {self.price_tick}, "
                f"the tick of {self.product}"
            )


def check_terms(product: Product) -> None:
    """Raise InvalidArgument for terms that make no market."""
    if product.price_min > product.price_max:
        raise InvalidArgument(
            f"price_min is {product.price_min}, above price_max, {product.price_max}"
        )
    names = [zone.zone for zone in product.zones]
    if not names:
        raise InvalidArgument("zones is empty; a product is traded in one at least")
    if names != sorted(names) or any(names.count(name) > 1 for name in names):
        raise InvalidArgument("zones must be in order of their names, each once")


def product_at(context: Context, product: str, at: int) -> Product:
    """The terms of a product for delivery at an instant; raises NotFound."""
    return agreements.in_force(context, "product", product, at, Product)
