"""The bands of a tariff as the calendar shows them are the ones that bills go by."""

import random
from datetime import UTC, datetime
from itertools import pairwise

from consortium.contracts.billing.calendars import Calendar, Offset
from consortium.contracts.billing.tariffs import Band as BilledBand
from consortium.contracts.billing.tariffs import Tariff, band_at
from custom_components.gridledger.tariff_bands import Band, Region, spans

from .test_bills import TARIFF

CHANGE = 1_792_890_000
"""2026-10-25T01:00:00Z, when clocks go back in Europe."""
DAY_S = 86_400
PATTERNS = ("EVERY", "WORKDAY", "WEEKEND", "HOLIDAY", "SATURDAY", "SUNDAY")


def test_each_minute_is_in_the_band_that_is_billed() -> None:
    assert datetime.fromtimestamp(CHANGE, UTC).isoformat() == "2026-10-25T01:00:00+00:00"
    offsets = ((CHANGE - 100 * DAY_S, 7200), (CHANGE, 3600))
    until, holidays = CHANGE + 100 * DAY_S, ("2026-10-23", "2026-10-26")
    calendar = Calendar("CET", tuple(Offset(*one) for one in offsets), until, holidays)
    region = Region(offsets, until, frozenset(holidays))
    choose = random.Random(5)
    start = CHANGE - 4 * DAY_S + 1234 * 60
    seen = set()
    for _ in range(30):
        times = [
            (choose.choice(PATTERNS), choose.randrange(1441), choose.randrange(1441))
            for _ in range(choose.randint(1, 4))
        ]
        bands = [Band(f"B{i}", *time, 1000 * i) for i, time in enumerate(times)]
        billed = tuple(
            BilledBand(one.name, *time, 0) for one, time in zip(bands, times, strict=True)
        )
        terms = {**TARIFF, "blocks": (), "taxes": (), "bands": billed}
        tariff = Tariff(**terms)
        found = list(spans(bands, region, start, start + 7 * DAY_S))
        assert all(one[1] <= other[0] for one, other in pairwise(found))
        for at in range(start, start + 7 * DAY_S, 17 * 60):
            expected = band_at(tariff, calendar, at)
            shown = next((band.name for since, end, band in found if since <= at < end), None)
            assert shown == (None if expected is None else expected.name), (times, at)
            seen.add(shown)
    assert len(seen) == 5


def test_what_is_not_known_is_not_shown() -> None:
    region = Region(((CHANGE, 3600),), CHANGE + DAY_S, frozenset())
    band = Band("ALL", "EVERY", 0, 1440, 1)
    assert list(spans([band], region, 0, 2**40)) == [(CHANGE, CHANGE + DAY_S, band)]
    assert list(spans([], region, 0, 2**40)) == []
    assert list(spans([band], Region((), 2**40, frozenset()), 0, 2**40)) == []
