"""What the ledger tells a home, as plain data.

Money is micro-units of the currency and energy Wh, as on the ledger.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from google.protobuf.message import DecodeError

from .client import GridLedgerError
from .clock import ChannelClock


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Take an answer apart that may not be what its contract promises.

    Raises:
        GridLedgerError: ``what`` can't be read.
    """
    try:
        yield
    except (AttributeError, DecodeError, LookupError, TypeError, ValueError) as error:
        raise GridLedgerError(f"{what} can't be read: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Quote:
    """What a sale would bring. Times are the channel's."""

    stated: Mapping[str, Any]
    """What the contract said, which authorises the sale exactly as it stands."""
    supplier: str
    first_interval: int
    last_interval: int
    energy_wh: int
    price_micro_per_kwh: int
    gross_micro: int
    grid_fee_micro: int
    net_micro: int
    valid_until: int
    tax_micro: int = 0

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Self:
        """Read a contract's quote.

        Raises:
            KeyError, TypeError, ValueError: something is missing or no number.
        """
        starts = [int(part["interval_start"]) for part in stated["schedule"]]
        return cls(
            stated,
            str(stated["supplier"]),
            min(starts),
            max(starts),
            int(stated["energy_wh"]),
            int(stated["price_micro_per_kwh"]),
            int(stated["gross_micro"]),
            int(stated["grid_fee_micro"]),
            int(stated["net_micro"]),
            int(stated["valid_until"]),
            int(stated.get("tax_micro") or 0),
        )

    def as_response(self, clock: ChannelClock, currency: str) -> dict[str, Any]:
        """Return the quote in the units of people and automations."""
        end = self.last_interval + clock.interval_s
        return {
            **_sale_as_response(self, currency),
            "window_start": clock.real_datetime(self.first_interval).isoformat(),
            "window_end": clock.real_datetime(end).isoformat(),
            "valid_until": clock.real_datetime(self.valid_until).isoformat(),
            "quote": self.stated,
        }


def _sale_as_response(sale: Quote | Trade, currency: str) -> dict[str, Any]:
    """What a sale comes to, in the units of people and automations."""
    return {
        "supplier": sale.supplier,
        "energy_kwh": sale.energy_wh / 1000,
        "price_per_kwh": sale.price_micro_per_kwh / 1e6,
        "gross": sale.gross_micro / 1e6,
        "grid_fee": sale.grid_fee_micro / 1e6,
        "tax": sale.tax_micro / 1e6,
        "net": sale.net_micro / 1e6,
        "currency": currency,
    }


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
    tax_micro: int = 0

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
            int(stated.get("tax_micro") or 0),
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
            **_sale_as_response(self, currency),
            "window_start": clock.real_datetime(self.window_start).isoformat(),
            "window_end": clock.real_datetime(self.window_end(clock.interval_s)).isoformat(),
            "transaction_id": self.transaction_id,
        }


def order_as_response(
    order: Mapping[str, Any], clock: ChannelClock, currency: str
) -> dict[str, Any]:
    """Return an order in the units of people.

    Raises:
        KeyError, TypeError, ValueError: something is missing or no number.
    """
    start = int(order["interval_start"])
    filled_wh = sum(int(order.get(f"{where}_wh") or 0) for where in ("local", "hub", "matched"))
    return {
        "order_id": str(order["order_id"]),
        "side": str(order["side"]),
        "product": str(order["product"]),
        "state": str(order.get("state") or order.get("status") or ""),
        "energy_kwh": int(order["energy_wh"]) / 1000,
        "filled_kwh": filled_wh / 1000,
        "price_per_kwh": int(order["price_micro_per_kwh"]) / 1e6,
        "currency": currency,
        "start": clock.real_datetime(start).isoformat(),
        "end": clock.real_datetime(start + clock.interval_s).isoformat(),
        "interval_start": start,
        "partner": order.get("partner"),
        "gift": order.get("gift"),
        "transaction_id": str(order.get("transaction_id") or ""),
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


@dataclass(frozen=True, slots=True)
class OpenBill:
    """A bill that isn't paid. Instants are channel time, money micro-units."""

    number: int
    open_micro: int
    disputed_micro: int
    due_at: int
    dunning: int
    """1: reminded. 2: final notice given."""

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Self:
        """Read a contract's standing of a bill.

        Raises:
            KeyError, TypeError, ValueError: something is missing or no number.
        """
        claim = int(stated["total_micro"]) - int(stated["credited_micro"])
        return cls(
            int(stated["number"]),
            claim - int(stated["paid_micro"]),
            int(stated["disputed_micro"]),
            int(stated["due_at"]),
            int(stated["dunning"]),
        )

    def as_response(self, clock: ChannelClock, currency: str) -> dict[str, Any]:
        """Return the bill in the units of people and automations."""
        return {
            "number": self.number,
            "open": self.open_micro / 1e6,
            "disputed": self.disputed_micro / 1e6,
            "currency": currency,
            "due": clock.real_datetime(self.due_at).isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Permit:
    """Whether the home may be supplied, why, and what comes next if nothing is paid."""

    state: str
    reason: str
    next_step: str
    next_at: int | None
    limit_w: int | None
    due_micro: int

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Self:
        """Read a contract's status.

        Raises:
            KeyError, TypeError, ValueError: something is missing or no number.
        """
        next_at, limit_w = stated["next_at"], int(stated.get("limit_w") or 0)
        return cls(
            str(stated["state"]),
            str(stated["reason"]),
            str(stated["next_step"]),
            None if next_at is None else int(next_at),
            limit_w or None,
            int(stated["amount_due_micro"]),
        )


@dataclass(frozen=True, slots=True)
class Prepaid:
    """What is left of a credit that was paid in advance."""

    credit_micro: int
    credit_wh: int
    days_left: int | None
    """None before the first bill."""
    low: bool


@dataclass(frozen=True, slots=True)
class ResponseEvent:
    """What a grid operator asks for. Instants are channel time."""

    event_id: str
    operator: str
    kind: str
    start: int
    end: int
    reward_micro_per_kwh: int
    opt_in_until: int
    cancelled: bool
    participation: str | None
    """How this home takes part: opted_in, committed, settled or left; None: it doesn't."""
    shift_until: int | None = None
    """Of a shift: until when, from its end on, what was not used may be used."""

    @property
    def asks(self) -> list[tuple[int, int, str, int]]:
        """What it asks for, as (start, end, reduce or absorb, reward)."""
        if self.shift_until is None:
            return [(self.start, self.end, self.kind, self.reward_micro_per_kwh)]
        # A shifted kWh counts once: half for not being used, half for being used later.
        half = self.reward_micro_per_kwh // 2
        return [
            (self.start, self.end, "reduce", half),
            (self.end, self.shift_until, "absorb", half),
        ]

    def as_response(self, clock: ChannelClock, currency: str) -> dict[str, Any]:
        """Return the event in the units of people and automations."""
        return {
            "event_id": self.event_id,
            "operator": self.operator,
            "kind": self.kind,
            "start": clock.real_datetime(self.start).isoformat(),
            "end": clock.real_datetime(self.end).isoformat(),
            "opt_in_until": clock.real_datetime(self.opt_in_until).isoformat(),
            "reward_per_kwh": self.reward_micro_per_kwh / 1e6,
            "currency": currency,
            "participation": self.participation,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountData:
    """How the home stands with its supplier and its grid operator."""

    open_micro: int = 0
    due_micro: int = 0
    disputed_micro: int = 0
    billed_to: str | None = None
    bills: tuple[OpenBill, ...] = ()
    permit: Permit | None = None
    """None where the home isn't supplied by a contract of this ledger."""
    prepaid: Prepaid | None = None
    """None where it pays afterwards."""
    responses: tuple[ResponseEvent, ...] = ()
    """Running and to come, in the home's zone."""

    @property
    def next_due(self) -> int | None:
        """When the next open bill is due (channel time)."""
        return min((bill.due_at for bill in self.bills), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerData:
    """What the home knows of its ledger at a moment."""

    connected: bool = False
    currency: str = "EUR"
    balance_micro: int | None = None
    rates: tuple[Rate, ...] = ()
    trades: Mapping[str, Trade] = field(default_factory=dict)
    grid_fee_micro_per_kwh: int = 0
    sale_tax_ppm: int = 0
    """What is taken of the gross of a sale at a supplier's rate as tax, by now."""
    max_export_w: int | None = None
    """What the connection point may give to the grid."""
    orders: Mapping[str, Mapping[str, Any]] | None = None
    """Orders for intervals ahead by id, as the contract states them. None: not known."""
    account: AccountData | None = None
    """Bills, permit and response events. None: not known yet."""
    market_known: bool = False
    """Whether balance, rates and trades have been read since the start."""
    queued: int = 0
    refused: int = 0
    last_committed: datetime | None = None
    """The (real) end of the newest interval in the ledger."""
    reading_delay_s: float | None = None
    """From then until its reading was in the ledger; None before one has got there."""

    @property
    def best_buy_rate(self) -> Rate | None:
        """The supplier rate that pays a home most."""
        buying = [rate for rate in self.rates if rate.kind == "buy"]
        return max(buying, key=lambda rate: rate.price_micro_per_kwh, default=None)

    @property
    def best_sell_rate(self) -> Rate | None:
        """The supplier rate that costs a home least."""
        selling = [rate for rate in self.rates if rate.kind == "sell"]
        return min(selling, key=lambda rate: rate.price_micro_per_kwh, default=None)

    @property
    def open_orders(self) -> int | None:
        """How many orders wait in the books."""
        if self.orders is None:
            return None
        return len([one for one in self.orders.values() if one.get("state") == "open"])

    @property
    def suspended(self) -> bool:
        """Whether the ledger says that the home may not be supplied."""
        permit = None if self.account is None else self.account.permit
        return permit is not None and permit.state == "suspended"

    @property
    def limit_w(self) -> int | None:
        """The most that the permit lets the home draw; None: it has no limit."""
        permit = None if self.account is None else self.account.permit
        return permit.limit_w if permit is not None and permit.state == "limited" else None

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
    co2_avoided_kg: int | None = None
    battery_level: float | None = None
    battery_power: float | None = None
    stored_energy: float | None = None
    consumption_power: float | None = None
    consumption_energy: float | None = None
    grid_power: float | None = None
    grid_import_energy: float | None = None
    grid_export_energy: float | None = None
