"""What may be promised, and when."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest
from homeassistant.core import HomeAssistant
from homeassistant.exceptions import ServiceValidationError
from homeassistant.util import dt as dt_util
from hypothesis import given
from hypothesis import strategies as st

from custom_components.gridledger.clock import ChannelClock
from custom_components.gridledger.models import LedgerData, Quote, Trade
from custom_components.gridledger.sales import DELIVERED, SETTLED, Sale, Sales
from custom_components.gridledger.selling import Capability, Window, delivery_window

CLOCK = ChannelClock(900)
NOW = 1_750_420_800.0  # on a boundary


def trade(*schedule: tuple[int, int]) -> Trade:
    energy_wh = sum(wh for _, wh in schedule)
    return Trade("T-1", "H-1", "AuroraMSP", schedule, energy_wh, 1, 1, 0, 1, "tx", "R-1")


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW + seconds, UTC)


def window(start: float | None = None, end: float | None = None, energy_wh: int = 100) -> Window:
    return delivery_window(
        CLOCK,
        NOW,
        energy_wh,
        lambda _: 1000,
        None if start is None else at(start),
        None if end is None else at(end),
    )


def test_a_quote_and_a_sale_name_fee_tax_and_net() -> None:
    stated = {
        "trade_id": "T-1", "connection_id": "H-1", "supplier": "AuroraMSP",
        "schedule": [{"interval_start": "1750420800", "energy_wh": "1000"}],
        "energy_wh": "1000", "price_micro_per_kwh": "100000", "gross_micro": "100000",
        "grid_fee_micro": "20000", "tax_micro": "5000", "net_micro": "75000",
        "valid_until": "1750420700",
    }  # fmt: skip
    for read in (Quote, Trade):
        shown = read.from_json(stated).as_response(CLOCK, "EUR")
        assert [shown[name] for name in ("gross", "grid_fee", "tax", "net")] == [
            0.1, 0.02, 0.005, 0.075
        ]  # fmt: skip
        # Of before there were taxes.
        before = {name: value for name, value in stated.items() if name != "tax_micro"}
        assert read.from_json(before).as_response(CLOCK, "EUR")["tax"] == 0


def test_reserve_and_what_is_sold_bound_a_sale() -> None:
    capability = Capability(stored_wh=8000, reserve_wh=2000, max_power_w=None)
    start = int(NOW) + 900
    asked = Window(start, start + 3600)
    assert capability.sellable_wh(asked, CLOCK, LedgerData(), NOW) == 6000
    sold = LedgerData(trades={"T-1": trade((start, 1500), (start + 900, 500))})
    assert capability.sellable_wh(asked, CLOCK, sold, NOW) == 4000


def test_what_was_delivered_is_promised_no_more() -> None:
    capability = Capability(8000, 2000, None)
    start = int(NOW)
    sold = LedgerData(trades={"T-1": trade((start - 900, 1500), (start, 500))})
    asked = Window(start + 900, start + 1800)
    assert capability.sellable_wh(asked, CLOCK, sold, NOW) == 5500


def test_power_bounds_a_sale_interval_by_interval() -> None:
    capability = Capability(8000, 2000, max_power_w=4000)  # 1,000 Wh in a quarter of an hour
    start = int(NOW) + 900
    asked = Window(start, start + 1800)
    assert capability.sellable_wh(asked, CLOCK, LedgerData(), NOW) == 2000
    sold = LedgerData(trades={"T-1": trade((start, 700))})
    assert capability.sellable_wh(asked, CLOCK, sold, NOW) == 1300
    narrow = LedgerData(max_export_w=2000)
    assert capability.sellable_wh(asked, CLOCK, narrow, NOW) == 1000


def test_nothing_is_sold_below_the_reserve() -> None:
    start = int(NOW) + 900
    asked = Window(start, start + 900)
    assert Capability(1500, 2000, None).sellable_wh(asked, CLOCK, LedgerData(), NOW) == 0


@given(
    st.integers(0, 20_000),
    st.integers(0, 20_000),
    st.one_of(st.none(), st.integers(0, 10_000)),
    st.lists(st.tuples(st.integers(-2, 6), st.integers(0, 2000)), max_size=6),
)
def test_a_sale_never_breaks_reserve_or_power(
    stored: int, reserve: int, power: int | None, sold: list[tuple[int, int]]
) -> None:
    capability = Capability(stored, reserve, power)
    base = int(NOW)
    ledger = LedgerData(
        trades={str(i): trade((base + 900 * slot, wh)) for i, (slot, wh) in enumerate(sold)}
    )
    asked = Window(base + 900, base + 4 * 900)
    sellable = capability.sellable_wh(asked, CLOCK, ledger, NOW)
    assert sellable >= 0
    promised = sum(wh for slot, wh in sold if slot >= 0)
    if sellable:
        assert sellable + promised <= stored - reserve
    if power is not None:
        assert sellable <= sum(
            max(0, power * 900 // 3600 - ledger.committed_wh(start))
            for start in range(asked.start, asked.end, 900)
        )


def test_windows() -> None:
    # The next interval by default: the one that begins now has begun.
    assert window() == Window(int(NOW) + 900, int(NOW) + 1800)
    # As long as is needed.
    assert window(energy_wh=2500) == Window(int(NOW) + 900, int(NOW) + 900 + 3 * 900)
    # Widened to whole intervals.
    assert window(1000, 2000) == Window(int(NOW) + 900, int(NOW) + 2700)
    # A window that has begun begins with the next interval.
    assert window(-100, 2700) == Window(int(NOW) + 900, int(NOW) + 2700)


@pytest.mark.parametrize(
    ("start", "end", "key"),
    [
        (-5000, None, "window_in_past"),
        (3600, 1800, "window_empty"),
        (900, 900 + 97 * 900, "window_too_long"),
    ],
)
def test_impossible_windows(start: float, end: float | None, key: str) -> None:
    with pytest.raises(ServiceValidationError) as error:
        window(start, end)
    assert error.value.translation_key == key


def test_a_window_of_its_own_ends_with_the_channels_day() -> None:
    late = CLOCK.day_start(NOW) + 86400 - 1800
    made = delivery_window(CLOCK, late, 10_000, lambda _: 100, None, None)
    assert made.end == CLOCK.day_start(NOW) + 86400


@given(st.floats(0, 2e9), st.floats(0, 2e9), st.floats(0, 2e9), st.integers(1, 3600))
def test_the_clock_goes_there_and_back(
    origin: float, anchor: float, real: float, rate: int
) -> None:
    clock = ChannelClock(900, origin, anchor, rate)
    assert abs(clock.real(clock.channel(real)) - real) < 1e-3


def test_the_clock_of_the_settings() -> None:
    assert ChannelClock.from_settings({"interval_s": "900", "replay": None}) == ChannelClock(900)
    replay = {"origin": "100", "anchor": "1000", "rate": "60"}
    clock = ChannelClock.from_settings({"interval_s": "60", "replay": replay})
    assert clock.channel(1001) == 160
    assert clock.replays
    still = {"interval_s": "60", "replay": {**replay, "rate": "0"}}
    for broken in ({}, {"interval_s": "0"}, {"interval_s": "60", "replay": {"origin": "1"}}, still):
        with pytest.raises((KeyError, ValueError)):
            ChannelClock.from_settings(broken)


class SettledSince:
    """What sales ask of a session whose utility has settled from a day on."""

    clock, connection_id, data = CLOCK, "H-1", LedgerData(connected=True)

    def __init__(self, day: str) -> None:
        self.client, self._day = self, day

    async def evaluate(self, _: str, function: str, argument: dict[str, Any]) -> Any:
        assert function == "settlement:Days"
        return {"days": [{"summary": {"day": max(self._day, argument["from_day"])}}]}


async def test_a_settled_sale_is_seen_after_days_that_never_were(hass: HomeAssistant) -> None:
    """A utility may begin to settle weeks after its homes began to sell."""
    starts = [int(dt_util.utcnow().timestamp()) - days * 86_400 for days in range(10)]
    sold = [
        asdict(Sale("R", f"R-{at}", str(at), "t", "A", ((at, 100),), 100, 1, DELIVERED))
        for at in starts
    ]
    ledger: Any = SettledSince(CLOCK.day(starts[1]))
    sales = Sales(hass, ledger, ledger, sold)
    await sales.async_follow()
    assert [one["trade_id"] for one in sales.as_list() if one["state"] == SETTLED] == [
        str(starts[1])
    ]
