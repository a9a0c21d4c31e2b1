"""Rates by formula, and what a home offers for sale."""

from __future__ import annotations

import random
from datetime import date, timedelta

from demo.homes import ORIGIN, Mode, Neighbourhood
from demo.trading import LEAST_SALE_WH, days, offer, rates


def test_every_day_has_rates_that_leave_something_to_earn() -> None:
    for number in range(2 * 366):
        day = str(date(2016, 1, 1) + timedelta(days=number))
        for supplier in range(3):
            price = rates(day, supplier)
            assert 50_000 < price["buy"] < price["sell"] < 400_000


def test_the_best_supplier_changes() -> None:
    best = {
        max(range(3), key=lambda supplier: rates(f"2016-06-{day}", supplier)["buy"])
        for day in range(20, 23)
    }
    assert best == {0, 1, 2}


def test_days() -> None:
    assert days(ORIGIN) == ("2016-06-22", "2016-06-23")


def test_offers_can_be_delivered() -> None:
    hood = Neighbourhood.create(12, 60)
    dice = random.Random(1)
    seen = 0
    for _ in range(48):
        hood.advance(hood.time + 1800)
        for home in hood.homes:
            if (wanted := offer(home, 60, dice)) is None:
                continue
            seen += 1
            hours = (wanted.window_end - wanted.window_start) / 3600
            assert home.time < wanted.window_start < wanted.window_end
            assert wanted.window_start % 60 == wanted.window_end % 60 == 0
            assert wanted.window_start // 86_400 == (wanted.window_end - 1) // 86_400
            assert LEAST_SALE_WH <= wanted.energy_wh <= home.spec.max_export_w * hours
            assert (
                wanted.energy_wh <= home.available_wh
                or wanted.energy_wh <= -home.power.grid_w * hours
            )
    assert seen > 20


def test_one_sale_at_a_time() -> None:
    hood = Neighbourhood.create(1, 60)
    hood.advance(ORIGIN + 60)
    home = hood.homes[0]
    assert offer(home, 60, random.Random(1))
    home.command(Mode.DISCHARGE, 500, home.time + 600, home.time + 300)
    assert offer(home, 60, random.Random(1)) is None


def test_nothing_to_sell_at_night_with_an_empty_battery() -> None:
    hood = Neighbourhood.create(1, 60, ORIGIN + 16 * 3600)
    home = hood.homes[0]
    home.stored_j = 0
    assert offer(home, 60, random.Random(1)) is None
