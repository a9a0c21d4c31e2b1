"""Products: what is traded, how, in which zones, within which prices, by when."""

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

from ..common import agreements
from ..common.settings import Price
from .gates import GATE_S, SKEW_S

MAX_ZONES = 64
MAX_PATHS = 1024
REVEAL_DOUBT_S = SKEW_S + GATE_S
"""How much longer than `reveal_s` revealing may last: time is counted in gates."""
Fee = Annotated[int, Integer(0, 10**9, "micro-units per kWh")]
FeederPower = Annotated[int, Integer(0, 10**10, "W")]


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
    most_in_w: FeederPower | None = None
    """What its feeder or transformer can bring in; None: no limit."""
    most_out_w: FeederPower | None = None


@dataclass(frozen=True, slots=True)
class Path:
    """What the grid charges between two zones in a continuous book; the buyer pays it."""

    seller_zone: Identifier
    buyer_zone: Identifier
    fee: Fee


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
    trading: Annotated[str, Choice("auction", "continuous")] = "auction"
    """All orders cleared at once at one price, or each matched as it comes."""
    matching_fee: Fee = 0
    """What buyers pay for each kWh to the utility whose operator ran the matching."""
    paths: Annotated[tuple[Path, ...], AtMost(MAX_PATHS)] = ()
    """Of a continuous book: the paths there are; none: all, at the zones' own fees."""
    pledge_micro: Annotated[int, Integer(0, 10**12, "micro-units")] = 0
    """Above 0: orders are sealed until the book is closed; who doesn't reveal loses this."""
    reveal_s: Annotated[int, Integer(0, 86_400, "s")] = 0
    """How long after the close sealed orders may be revealed at least."""
    green: bool = False
    """What is sold in it is sold as green: no certificate is issued for it any more."""

    @property
    def sealed(self) -> bool:
        """Whether orders are hidden until the book is closed."""
        return self.pledge_micro > 0

    def fees(self) -> dict[tuple[str, str], int]:
        """What lies between seller and buyer in a continuous book, by their zones."""
        if self.paths:
            found = {(path.seller_zone, path.buyer_zone): path.fee for path in self.paths}
        else:
            found = {
                (seller.zone, buyer.zone): seller.local_fee
                if seller.zone == buyer.zone
                else seller.exit_fee + buyer.entry_fee
                for seller in self.zones
                for buyer in self.zones
            }
        return {path: fee + self.matching_fee for path, fee in found.items()}

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
    if product.trading == "auction" and product.paths:
        raise InvalidArgument("paths are for a continuous product; an auction has the zones' fees")
    if product.trading == "continuous" and (product.sealed or product.reveal_s):
        raise InvalidArgument("pledge_micro and reveal_s are for auctions; resting orders are seen")
    if product.sealed != bool(product.reveal_s):
        raise InvalidArgument("pledge_micro and reveal_s belong together: both, or neither")
    if product.sealed and product.reveal_s + REVEAL_DOUBT_S >= product.gate_closure_s:
        raise InvalidArgument(
            f"reveal_s is {product.reveal_s}, but with {REVEAL_DOUBT_S} s for what clocks may be "
            f"off must be less than gate_closure_s, {product.gate_closure_s}, or no time is left "
            "for clearing"
        )
    pairs = [(path.seller_zone, path.buyer_zone) for path in product.paths]
    for index, pair in enumerate(pairs):
        if pair in pairs[:index] or pair[0] not in names or pair[1] not in names:
            raise InvalidArgument(
                f"paths names {pair[0]} to {pair[1]} twice, or a zone that isn't among zones"
            )


def product_at(context: Context, product: str, at: int) -> Product:
    """The terms of a product for delivery at an instant; raises NotFound."""
    return agreements.in_force(context, "product", product, at, Product)
