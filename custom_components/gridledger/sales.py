"""What was sold, by trading rules and by hand, followed from the ledger's block to the settlement.

A rule's sales are known by their request ids, so a Home Assistant that died between selling and
storing finds them again: the ledger, and not a memory of ours, says what counts for a daily limit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, tzinfo
from typing import Any, Final, Self

from homeassistant.core import HomeAssistant
from homeassistant.util import dt as dt_util

from .archive import async_settled_days
from .client import GridLedgerError
from .clock import ChannelClock
from .const import LOGGER
from .engine import TradingRule
from .engine.model import local_time
from .engine.trading import request_prefix
from .models import Trade
from .outbox import Outbox
from .session import LedgerSession

COMMITTED: Final = "committed"
"""In the ledger; its delivery has not begun."""
DELIVERING: Final = "delivering"
OVER: Final = "over"
"""Its readings are not all there yet."""
DELIVERED: Final = "delivered"
SHORT: Final = "short"
"""Less was exported than sold."""
SETTLED: Final = "settled"
"""The utility has posted the day."""

BY_HAND: Final = ""
"""In place of a rule's id: the owner or an automation sold."""

_KEPT: Final = 200
_KEPT_S: Final = 35 * 86_400
_INTERVALS: Final = 1000


@dataclass(slots=True)
class Sale:
    """One sale. Times are the channel's."""

    rule_id: str
    """The rule that sold, or :data:`BY_HAND`."""
    request_id: str
    trade_id: str
    transaction_id: str
    supplier: str
    schedule: tuple[tuple[int, int], ...]
    energy_wh: int
    net_micro: int
    state: str = COMMITTED
    delivered_wh: int | None = None
    """What the home's own readings show as exported, at most what was sold."""

    @classmethod
    def of(cls, rule_id: str, trade: Trade) -> Self:
        """Begin to follow a trade."""
        return cls(
            rule_id,
            trade.request_id,
            trade.trade_id,
            trade.transaction_id,
            trade.supplier,
            trade.schedule,
            trade.energy_wh,
            trade.net_micro,
        )

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Go on with a stored one."""
        schedule = tuple((int(start), int(wh)) for start, wh in stored["schedule"])
        return cls(**{**stored, "schedule": schedule})

    @property
    def start(self) -> int:
        """When delivery begins."""
        return self.schedule[0][0]

    def end(self, clock: ChannelClock) -> int:
        """When delivery ends."""
        return self.schedule[-1][0] + clock.interval_s

    def as_response(self, clock: ChannelClock) -> dict[str, Any]:
        """Return the sale in the units of people."""
        return {
            "state": self.state,
            "start": clock.real_datetime(self.start).isoformat(),
            "end": clock.real_datetime(self.end(clock)).isoformat(),
            "energy_kwh": self.energy_wh / 1000,
            "delivered_kwh": None if self.delivered_wh is None else self.delivered_wh / 1000,
            "net": self.net_micro / 1e6,
            "supplier": self.supplier,
            "trade_id": self.trade_id,
            "transaction_id": self.transaction_id,
        }


class Sales:
    """The sales of a home."""

    def __init__(
        self,
        hass: HomeAssistant,
        session: LedgerSession,
        outbox: Outbox,
        stored: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Go on with what was stored."""
        self._hass = hass
        self._session = session
        self._outbox = outbox
        self._sales: dict[str, Sale] = {}
        for one in stored:
            try:
                sale = Sale.from_dict(one)
            except (KeyError, TypeError, ValueError) as error:
                LOGGER.debug("A stored sale can't be read: %r", error)
                continue
            if sale.schedule:
                self._sales[sale.trade_id] = sale

    @property
    def clock(self) -> ChannelClock | None:
        """The channel's clock, None before the ledger was first reached."""
        return self._session.clock

    def as_list(self) -> list[dict[str, Any]]:
        """Return what a restart needs."""
        return [asdict(sale) for sale in self._sales.values()]

    def of_rule(self, rule_id: str) -> list[Sale]:
        """Return a rule's sales, the newest first."""
        return sorted(
            (sale for sale in self._sales.values() if sale.rule_id == rule_id),
            key=lambda sale: sale.start,
            reverse=True,
        )

    def find(self, trade_id: str) -> Sale | None:
        """Return the sale of a trade."""
        return self._sales.get(trade_id)

    def state_of(self, trade_id: str) -> str | None:
        """Return how far the sale of a trade is, None where it isn't followed."""
        sale = self._sales.get(trade_id)
        return None if sale is None else sale.state

    def adopt(self, rules: Sequence[TradingRule]) -> list[Sale]:
        """Take up what the ledger says was sold; return what is new of it."""
        new: list[Sale] = []
        clock = self._session.clock
        if clock is None:
            return new
        oldest = clock.channel(dt_util.utcnow().timestamp()) - _KEPT_S
        for trade in self._session.data.trades.values():
            if trade.trade_id in self._sales or not trade.schedule or trade.window_start <= oldest:
                continue
            sold_by = (
                rule.id for rule in rules if trade.request_id.startswith(request_prefix(rule.id))
            )
            sale = Sale.of(next(sold_by, BY_HAND), trade)
            self._sales[trade.trade_id] = sale
            new.append(sale)
        return new

    def traded_wh(self, zone: tzinfo) -> dict[tuple[str, date], float]:
        """Return what each rule has sold for each local day (Wh)."""
        traded: dict[tuple[str, date], float] = {}
        clock = self._session.clock
        if clock is None:
            return traded
        for sale in self._sales.values():
            key = (sale.rule_id, local_time(clock.real(sale.start), zone).date())
            traded[key] = traded.get(key, 0.0) + sale.energy_wh
        return traded

    def advance(self) -> bool:
        """Let sales begin and end with time; return whether any did."""
        clock = self._session.clock
        if clock is None:
            return False
        now, changed = clock.channel(dt_util.utcnow().timestamp()), False
        for sale in self._sales.values():
            if sale.state not in (COMMITTED, DELIVERING):
                continue
            state = COMMITTED
            if now >= sale.end(clock):
                state = OVER
            elif now >= sale.start:
                state = DELIVERING
            changed |= state != sale.state
            sale.state = state
        oldest = now - _KEPT_S
        newest = sorted(self._sales.values(), key=lambda sale: sale.start)[-_KEPT:]
        # What the session still tells of would be taken up again, and counted twice.
        kept = {sale.trade_id for sale in newest} | self._session.data.trades.keys()
        self._sales = {
            name: sale for name, sale in self._sales.items() if name in kept and sale.start > oldest
        }
        return changed

    async def async_follow(self) -> None:
        """Hold what is over against the home's readings, and ask whether its day is settled."""
        clock = self._session.clock
        if clock is None:
            return
        self.advance()
        for sale in [sale for sale in self._sales.values() if sale.state == OVER]:
            await self._measure(sale, clock)
        waiting: dict[str, list[Sale]] = {}
        for sale in self._sales.values():
            if sale.state in (OVER, DELIVERED, SHORT):
                waiting.setdefault(clock.day(sale.start), []).append(sale)
        if not waiting or not self._session.data.connected:
            return
        try:
            settled = await async_settled_days(self._session, min(waiting))
        except GridLedgerError as error:
            LOGGER.debug("What is settled can't be read: %s", error)
            return
        for day in settled:
            for sale in waiting.get(day, ()):
                sale.state = SETTLED

    async def _measure(self, sale: Sale, clock: ChannelClock) -> None:
        """Say what was exported in a sale's intervals, once all of their readings are there."""
        readings = await self._hass.async_add_executor_job(
            self._outbox.between, sale.start, sale.end(clock), _INTERVALS
        )
        exported = {one.interval_start: int(one.fields["export_wh"]) for one in readings}
        if any(start not in exported for start, _ in sale.schedule):
            return
        sale.delivered_wh = sum(min(wh, exported[start]) for start, wh in sale.schedule)
        sale.state = DELIVERED if sale.delivered_wh >= sale.energy_wh else SHORT
