"""Firm trades: what a connection has bought or sold for an interval, however it was traded.

Settlement reads them all in one form, by `settlement.firm_trades`. A supplier's rate, the call
auctions and contracts keep records of their own; what else is traded is noted with `note`, under
`fill/{connection}/{interval_start}/{source}/{reference}`, once and before the interval is over.
"""

from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Context,
    Identifier,
    Instant,
    Integer,
    RequestId,
    Text,
    canonical_json,
    stored_record,
)

MAX_TRADES = 5_000
"""Firm trades of one connection and day."""

Wh = Annotated[int, Integer(-(10**9), 10**9, "Wh")]
TradePrice = Annotated[int, Integer(-(10**11), 10**11, "micro-units per kWh")]
Money = Annotated[int, Integer(-(10**18), 10**18, "micro-units")]
Party = Annotated[str, Text(r"[A-Z0-9-]{1,64}", "an account")]
_HoldId = Annotated[str, Text(r"[A-Za-z0-9-]{1,80}", "a hold id")]


@dataclass(frozen=True, slots=True)
class Paid:
    """What was paid when it was traded, of this interval."""

    amount_micro: Money
    """What the connection received for the energy, taxes taken off."""
    fee_micro: Money
    """What went to the grid; negative, as it was paid."""


@dataclass(frozen=True, slots=True)
class FirmTrade:
    """What a connection has bought or sold for one interval, once and for all."""

    interval_start: Instant
    energy_wh: Wh
    """Positive: bought. Negative: sold."""
    price_micro_per_kwh: TradePrice
    """What the buyer pays, fees included, or what the seller gets, fees taken off."""
    fee_micro_per_kwh: TradePrice
    """What goes to the grid for each kWh."""
    counterparty: Party
    """`settle.MARKET`, or the account of who is named in the trade."""
    source: Annotated[str, Choice("rate", "auction", "continuous", "gift", "bilateral")]
    reference: RequestId
    """The trade's, order's or contract's id."""
    paid: Paid | None = None
    hold_id: _HoldId | None = None
    """The connection's hold that settlement ends with the payment."""
    share_ppm: Annotated[int, Integer(0, 1_000_000, "ppm")] = 0
    """Of a seller as produced: the share of its export that this is."""

    def produced_wh(self, export_wh: int) -> int:
        """What of an export the contract sells, rounded down."""
        return export_wh * self.share_ppm // 1_000_000


def _key(connection_id: str, trade: FirmTrade) -> str:
    place = f"fill/{connection_id}/{trade.interval_start:012d}"
    return f"{place}/{trade.source}/{trade.reference}"


def note(context: Context, connection_id: str, trade: FirmTrade) -> None:
    """Keep a connection's side of a trade for settlement; both sides are noted."""
    context.put_state(_key(connection_id, trade), canonical_json(trade))


def noted(context: Context, connection_id: str, start: int, end: int) -> list[FirmTrade]:
    """The trades that were noted for a connection's intervals in [start, end)."""
    prefix = f"fill/{connection_id}/"
    return [
        stored_record(FirmTrade, value)
        for _, value in context.range(f"{prefix}{start:012d}", f"{prefix}{end:012d}")
    ]


# Contracts as produced


MAX_DELIVERED = 1_500
"""Intervals that are published at once."""
MAX_SELLERS = 40
Delivered = Annotated[int, Integer(0, 10**9, "Wh")]


@dataclass(frozen=True, slots=True)
class Share:
    """A contract that sells a share of what is exported, and what is published of it."""

    contract_id: Identifier
    connection_id: Identifier
    share_ppm: Annotated[int, Integer(1, 1_000_000, "ppm")]
    from_: Instant
    published_wh: Annotated[tuple[Delivered | None, ...], AtMost(MAX_DELIVERED)]
    """By interval; None: not yet."""


@dataclass(frozen=True, slots=True)
class Shares:
    """As `bilateral:Shares` answers."""

    shares: Annotated[tuple[Share, ...], AtMost(MAX_SELLERS * 16)]
