"""What homes offer and bid for by their forecasts."""

from __future__ import annotations

import random

from demo.homes import ORIGIN, Mode, Neighbourhood
from demo.neighbours import BID_MICRO, LEAST_ORDER_WH, OFFER_MICRO, TICK_MICRO, forecast, order


def test_a_forecast_is_what_comes_if_nobody_interferes() -> None:
    hood = Neighbourhood.create(8, 900)
    hood.advance(ORIGIN + 1800)
    start = hood.time + 3600
    expected = [forecast(home, start, 900) for home in hood.homes]
    before = [home.registers() for home in hood.homes]
    hood.advance(start)
    begun = [home.registers() for home in hood.homes]
    assert all(one != other for one, other in zip(before, begun, strict=True))
    hood.advance(start + 900)
    for home, first, (import_wh, export_wh) in zip(hood.homes, begun, expected, strict=True):
        now = home.registers()
        # In coarse steps; a battery that is full within a step makes the difference.
        assert abs(now.import_wh - first.import_wh - import_wh) <= 60
        assert abs(now.export_wh - first.export_wh - export_wh) <= 60


def test_a_day_has_sellers_and_buyers_whose_prices_meet() -> None:
    hood = Neighbourhood.create(12, 900)
    dice = random.Random(1)
    sides = {"offer": 0, "bid": 0}
    books = 0
    for _ in range(24):
        hood.advance(hood.time + 3600)
        start = hood.time + 1800
        found = [order(home, start, 900, dice) for home in hood.homes]
        there = {one.side for one in found if one is not None}
        books += there == {"offer", "bid"}
        for home, one in zip(hood.homes, found, strict=True):
            if one is None:
                continue
            sides[one.side] += 1
            low, high = OFFER_MICRO if one.side == "offer" else BID_MICRO
            assert low - TICK_MICRO < one.price_micro_per_kwh <= high
            assert one.price_micro_per_kwh % TICK_MICRO == 0
            most_w = home.spec.max_export_w if one.side == "offer" else home.spec.max_import_w
            assert LEAST_ORDER_WH <= one.energy_wh <= most_w // 4
    assert min(sides.values()) > 30
    assert books > 12


def test_a_battery_that_is_sold_is_not_offered_again() -> None:
    hood = Neighbourhood.create(1, 60)
    home = hood.homes[0]
    home.command(Mode.DISCHARGE, 500, home.time + 600, home.time + 300)
    assert order(home, home.time + 300, 60, random.Random(1)) is None
