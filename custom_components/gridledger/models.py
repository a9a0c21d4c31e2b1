"""What the ledger tells a home, as plain data.

Money is micro-units of the currency and energy Wh, as on the ledger.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from .clock import ChannelClock


@dataclass(frozen=True, slots=True)
class Trade:
    """A committed sale: its schedule holds (interval start in channel time, Wh)."""

    trade_id: str
    connection_id: str
    supplier: str
    schedule: tuple[tuple[int, int], ...]
    energy_wh: int
    price_micro_per_kwh: int
    gross_micro: int
    grid_fee_micro: int
    net_micro: int
    transaction_id: str
    request_id: str

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Self:
        """Read a contract's trade.

        Raises:
            KeyError, TypeError, ValueError: something is missing or no number.
        """
        return cls(
            str(stated["trade_id"]),
            str(stated["connection_id"]),
            str(stated["supplier"]),
            tuple(
                (int(part["interval_start"]), int(part["energy_wh"])) for part in stated["schedule"]
            ),
            int(stated["energy_wh"]),
            int(stated["price_micro_per_kwh"]),
            int(stated["gross_micro"]),
            int(stated["grid_fee_micro"]),
            int(stated["net_micro"]),
            str(stated.get("transaction_id", "")),
            str(stated.get("request_id", "")),
        )

    @property
    def window_start(self) -> int:
        """When delivery begins (channel time)."""
        return self.schedule[0][0] if self.schedule else 0

    def window_end(self, interval_s: int) -> int:
        """When delivery ends (channel time)."""
        return self.schedule[-1][0] + interval_s if self.schedule else 0

    def energy_from(self, instant: float) -> int:
        """Return the Wh of the intervals that begin at or after a channel time."""
        return sum(energy_wh for start, energy_wh in self.schedule if start >= instant)

    def as_response(self, clock: ChannelClock, currency: str) -> dict[str, Any]:
        """Return the trade in the units of people and automations."""
        return {
            "trade_id": self.trade_id,
            "supplier": self.supplier,
            "energy_kwh": self.energy_wh / 1000,
            "price_per_kwh": self.price_micro_per_kwh / 1e6,
            "gross": self.gross_micro / 1e6,
            "grid_fee": self.grid_fee_micro / 1e6,
            "net": self.net_micro / 1e6,
            "currency": currency,
            "window_start": clock.real_datetime(self.window_start).isoformat(),
            "window_end": clock.real_datetime(self.window_end(clock.interval_s)).isoformat(),
            "transaction_id": self.transaction_id,
        }


@dataclass(frozen=True, slots=True)
class Rate:
    """What a supplier pays (``buy``) or asks (``sell``) for a kWh on one day."""

    supplier: str
    day: str
    kind: str
    price_micro_per_kwh: int

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Self:
        """Read a contract's rate.

        Raises:
            KeyError, TypeError, ValueError: something is missing or no number.
        """
        return cls(
            str(stated["supplier"]),
            str(stated["day"]),
            str(stated["kind"]),
            int(stated["price_micro_per_kwh"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerData:
    """What the home knows of its ledger at a moment."""

    connected: bool = False
    currency: str = "EUR"
    balance_micro: int | None = None
    rates: tuple[Rate, ...] = ()
    trades: Mapping[str, Trade] = field(default_factory=dict)
    max_export_w: int | None = None
    """What the connection point may give to the grid."""
    market_known: bool = False
    """Whether balance, rates and trades have been read since the start."""
    queued: int = 0
    refused: int = 0
    last_committed: datetime | None = None
    """The (real) end of the newest interval in the ledger."""

    @property
    def best_buy_rate(self) -> Rate | None:
        """The supplier rate that pays a home most."""
        buying = [rate for rate in self.rates if rate.kind == "buy"]
        return max(buying, key=lambda rate: rate.price_micro_per_kwh, default=None)

    def trades_from(self, start: float, end: float) -> Sequence[Trade]:
        """Return trades whose delivery begins within channel times ``[start, end)``."""
        return [trade for trade in self.trades.values() if start <= trade.window_start < end]

    def committed_wh(self, interval_start: int) -> int:
        """Return the energy sold in one interval (Wh)."""
        return sum(
            energy_wh
            for trade in self.trades.values()
            for start, energy_wh in trade.schedule
            if start == interval_start
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeData:
    """The home's own measurements. None: not configured, or not known now.

    Powers are W: PV production, battery discharge (charge is negative), grid import (export is
    negative), consumption. Energies are kWh, from counters of our own that never fall.
    """

    pv_power: float | None = None
    pv_energy: float | None = None
    battery_level: float | None = None
    battery_power: float | None = None
    stored_energy: float | None = None
    consumption_power: float | None = None
    consumption_energy: float | None = None
    grid_power: float | None = None
    grid_import_energy: float | None = None
    grid_export_energy: float | None = None
