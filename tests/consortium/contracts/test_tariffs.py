"""Local time from the ledger's calendar, and bills: published ones, and against exact fractions."""

import random
from datetime import date, datetime, timedelta
from fractions import Fraction
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from consortium.chaincode.api import InvalidArgument, NotFound
from consortium.contracts.billing import calendars, tariffs
from consortium.contracts.billing.calendars import Calendar, Offset
from consortium.contracts.billing.tariffs import Band, Block, Period, Tariff, Tax, Usage, bill
from tests.consortium.contracts.cases import cases
from tests.consortium.contracts.local_time import calendar_of

BILLING = cases("billing")
METERING = cases("metering")
SHARING = cases("net_metering_sharing")


@cache
def rome() -> Calendar:
    return calendar_of("Europe/Rome", 2019, 2019, "2019-01-01", "2019-04-22", "2019-12-25")


def tariff(**terms: Any) -> Tariff:
    return Tariff(
        **{
            "tariff": "T",
            "supplier": "AuroraMSP",
            "standing_micro_per_day": 0,
            "bands": (),
            "blocks": (),
            "index": None,
            "index_ppm": 0,
            "markup": 0,
            "capacity_micro_per_kw_month": 0,
            "feed_in": 0,
            "feed_in_index_ppm": 0,
            "taxes": (),
            "rounding": "total",
            **terms,
        }
    )


def flat(price: int, **terms: Any) -> Tariff:
    return tariff(bands=(Band("ALL", "EVERY", 0, 1440, price),), **terms)


# The calendar


@pytest.mark.parametrize(
    "zone",
    ["Europe/Rome", "Europe/London", "America/Sao_Paulo", "Asia/Kolkata", "Australia/Lord_Howe"],
)
def test_days_are_those_of_the_time_zone_database(zone: str) -> None:
    years = (2018, 2018) if zone == "America/Sao_Paulo" else (2019, 2019)
    calendar, local = calendar_of(zone, *years), ZoneInfo(zone)
    day = date(years[0], 1, 1)
    while day.year == years[0]:
        begin, end = calendar.bounds(day.isoformat())
        # The first instant of a day, by looking for it.
        noon = int(datetime(day.year, day.month, day.day, 12, tzinfo=local).timestamp())
        expected = noon - 14 * 3600
        while datetime.fromtimestamp(expected, local).date() < day:
            expected += 900
        assert begin == expected, (zone, day)
        assert calendar.day_at(begin) == day.isoformat() == calendar.day_at(end - 1)
        assert calendar.day_at(begin - 1) < day.isoformat()
        assert calendar.weekday_at(noon) == day.weekday()
        assert calendar.minute_at(noon) == 720
        day += timedelta(days=1)


def test_published_days_of_clock_changes() -> None:
    case = METERING["intervals_per_day"]
    calendar = calendar_of(case["zone"], 2019, 2019)
    for name, day in (
        ("normal", "2019-06-01"),
        ("spring", "2019-03-31"),
        ("autumn", "2019-10-27"),
    ):
        begin, end = calendar.bounds(day)
        assert (end - begin) // 1800 == case["half_hours"][name]
        assert (end - begin) // 900 == case["quarter_hours"][name]


def test_a_calendar_says_where_it_ends() -> None:
    with pytest.raises(NotFound, match=r"EUROPE-ROME is known from 2018-12-30.* to 2020-01-03"):
        rome().day_at(0)
    with pytest.raises(NotFound, match="does not know the day 2021-05-05"):
        rome().bounds("2021-05-05")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"offsets": ()}, "one at least"),
        ({"offsets": (Offset(900, 0), Offset(0, 3600))}, "in order of time"),
        ({"offsets": (Offset(0, 100),)}, "not a multiple of the channel's interval"),
        ({"offsets": (Offset(0, 0), Offset(1000, 3600))}, "lies within an interval"),
        ({"known_until": 0}, "known_until"),
        ({"holidays": ("2019-02-30",)}, "no day"),
        ({"holidays": ("2019-02-03", "2019-02-01")}, "in order"),
    ],
)
def test_calendars_that_are_refused(change: dict[str, Any], said: str) -> None:
    terms = {"region": "R", "offsets": (Offset(0, 0),), "known_until": 10**9, "holidays": ()}
    with pytest.raises(InvalidArgument, match=said):
        calendars.check_terms(Calendar(**{**terms, **change}), 900)


# Bills


def test_published_time_of_use_bill() -> None:
    case = BILLING["ergon_t12_tou"]
    peak, _, rest = case["lines"]
    found = bill(
        tariff(
            standing_micro_per_day=int(case["supply_c_per_day"] * 10_000),
            bands=(
                Band("PEAK", "WORKDAY", 15 * 60, 21 * 60, int(peak["c_per_kwh"] * 10_000)),
                Band("REST", "EVERY", 0, 1440, int(rest["c_per_kwh"] * 10_000)),
            ),
            taxes=(Tax("GST", int(case["gst"] * 10**6)),),
        ),
        rome(),
        Period("2019-07-01", "2019-08-01"),
        [
            Usage(at("2019-07-03", 16), int(peak["kwh"] * 1000), 0),
            Usage(at("2019-07-03", 22), int(rest["kwh"] * 1000), 0),
        ],
    )
    expected = case["expected"]
    before_tax = sum(line.amount_micro for line in found.lines if line.kind != "tax")
    before_tax -= sum(line.amount_micro for line in found.lines if line.kind == "rounding")
    assert abs(before_tax - expected["total_ex_gst_cents"] * 10_000) <= 1
    exact = sum(line.amount_micro for line in found.lines if line.kind != "rounding")
    assert abs(exact - expected["total_inc_gst_cents"] * 10_000) <= 1
    assert found.total_micro == expected["published_rounded_cents"] * 10_000


def test_published_demand_bill() -> None:
    case = BILLING["ergon_t14_demand_peak"]
    [line] = case["lines"]
    energy_wh = int(line["kwh"] * 1000)
    peak_wh = int(case["demand_kw"] * 250)  # 0.7 kW over a quarter of an hour
    usage = [
        Usage(at("2019-07-01") + number * 900, wh, 0)
        for number, wh in enumerate(_spread(energy_wh, peak_wh))
    ]
    found = bill(
        tariff(
            standing_micro_per_day=int(case["supply_c_per_day"] * 10_000),
            bands=(Band("ALL", "EVERY", 0, 1440, int(line["c_per_kwh"] * 10_000)),),
            capacity_micro_per_kw_month=int(case["demand_dollar_per_kw_month"] * 10**6),
            taxes=(Tax("GST", int(case["gst"] * 10**6)),),
        ),
        rome(),
        Period("2019-07-01", "2019-08-01"),
        usage,
    )
    gst = 1 + case["gst"]
    expected = case["expected"]
    for kind, name in (
        ("standing", "supply"),
        ("energy", "usage"),
        ("capacity", "demand"),
    ):
        [found_line] = [line for line in found.lines if line.kind == kind]
        assert (
            round(found_line.amount_micro * gst / 10_000)
            == (expected["published_rounded_cents"][name])
        )
    assert found.total_micro == expected["published_rounded_cents"]["total"] * 10_000


def _spread(energy_wh: int, most: int) -> list[int]:
    """An energy over intervals of at most so much."""
    whole, rest = divmod(energy_wh, most)
    return [most] * whole + ([rest] if rest else [])


def test_published_tax_exemption() -> None:
    case = BILLING["tnb_at_exempt_limit"]
    price = int(case["base_bill"] * 10**6 * 1000 / (case["kwh"] * 1000))
    terms = flat(
        price,
        taxes=(Tax("SERVICE", int(case["rate_pct"] * 10_000), int(case["exempt_kwh"] * 1000)),),
    )
    period = Period("2019-07-01", "2019-08-01")
    at_limit = bill(terms, rome(), period, [Usage(at("2019-07-01"), case["kwh"] * 1000, 0)])
    taxed = [line.amount_micro for line in at_limit.lines if line.kind == "tax"]
    assert sum(taxed) == case["expected"]
    over = bill(terms, rome(), period, [Usage(at("2019-07-01"), case["kwh"] * 1000 + 1, 0)])
    assert [line.kind for line in over.lines if line.kind == "tax"] == ["tax"]


def at(day: str, hour: int = 0) -> int:
    moment = datetime.fromisoformat(day).replace(hour=hour, tzinfo=ZoneInfo("Europe/Rome"))
    return int(moment.timestamp())


def test_blocks_are_filled_one_after_another() -> None:
    terms = tariff(blocks=(Block(1000, 100_000), Block(3000, 200_000), Block(0, 300_000)))
    for imported, expected in (
        (500, [(500, 50_000)]),
        (1000, [(1000, 100_000)]),
        (2500, [(1000, 100_000), (1500, 300_000)]),
        (9000, [(1000, 100_000), (2000, 400_000), (6000, 1_800_000)]),
    ):
        found = bill(
            terms,
            rome(),
            Period("2019-07-01", "2019-07-02"),
            [Usage(at("2019-07-01"), imported, 0)],
        )
        assert [(line.quantity, line.amount_micro) for line in found.lines] == expected


def test_bands_follow_the_wall_clock_through_a_clock_change() -> None:
    """A night band from 23 to 7 has 28 quarter hours in the short night, 36 in the long one."""
    night = Band("NIGHT", "EVERY", 23 * 60, 7 * 60, 100_000)
    terms = tariff(bands=(night, Band("DAY", "EVERY", 0, 1440, 300_000)))
    for day, quarters in (("2019-03-31", 92), ("2019-06-01", 96), ("2019-10-27", 100)):
        begin, end = rome().bounds(day)
        usage = [Usage(start, 10, 0) for start in range(begin, end, 900)]
        assert len(usage) == quarters
        following = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
        found = bill(terms, rome(), Period(day, following), usage)
        energy = {line.name: line.quantity for line in found.lines if line.kind == "energy"}
        assert energy == {"NIGHT": (quarters - 64) * 10, "DAY": 640}


def test_holidays_are_sundays() -> None:
    weekend = Band("LOW", "SUNDAY", 0, 1440, 1)
    saturday = Band("MIDDLE", "SATURDAY", 0, 1440, 2)
    terms = tariff(bands=(weekend, saturday, Band("HIGH", "EVERY", 0, 1440, 3)))
    for day, name in (
        ("2019-04-19", "HIGH"),
        ("2019-04-20", "MIDDLE"),
        ("2019-04-21", "LOW"),
        ("2019-04-22", "LOW"),
        ("2019-04-23", "HIGH"),
    ):
        band = tariffs.band_at(terms, rome(), at(day, 12))
        assert band is not None
        assert band.name == name


def test_a_dynamic_tariff_with_negative_prices() -> None:
    terms = tariff(index="DAY-AHEAD", index_ppm=10**6, markup=20_000, feed_in_index_ppm=900_000)
    start = at("2019-06-02", 12)
    index = {start: -90_010, start + 900: 40_000}
    usage = [Usage(start, 1000, 0), Usage(start + 900, 500, 2000)]
    period = Period("2019-06-02", "2019-06-03")
    found = bill(terms, rome(), period, usage, index)
    assert [(line.kind, line.amount_micro) for line in found.lines] == [
        ("index", -70_010 + 30_000),
        ("feed_in", -72_000),
        ("rounding", 2010),
    ]
    with pytest.raises(InvalidArgument, match="DAY-AHEAD has no price at"):
        bill(terms, rome(), period, usage, {start: 1})


def test_a_bill_refuses_readings_of_other_days_and_doubles() -> None:
    period = Period("2019-06-02", "2019-06-03")
    for usage in ([Usage(at("2019-06-03"), 1, 0)], [Usage(at("2019-06-02"), 1, 0)] * 2):
        with pytest.raises(InvalidArgument, match="outside of the bill's period, or twice"):
            bill(flat(1), rome(), period, usage)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({}, "bands, blocks or an index"),
        ({"bands": (Band("DAY", "EVERY", 0, 720, 1),)}, "some hour has no price"),
        ({"blocks": (Block(0, 1), Block(5, 1))}, "blocks must rise"),
        ({"blocks": (Block(5, 1),)}, "blocks must rise"),
        ({"blocks": (Block(0, 1),), "feed_in_index_ppm": 1}, "need an index"),
        ({"index": "I", "netting": "period"}, "netting is period, but an index"),
    ],
)
def test_tariffs_that_are_refused(terms: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        tariffs.check_terms(tariff(**terms))


@pytest.mark.parametrize("name", ["tnb_nem_peak_first", "tnb_nem_partial", "tnb_nem_excess"])
def test_published_netting(name: str) -> None:
    """A month's export is set off against the dearest band first; what is left is fed in."""
    case = SHARING[name]
    begin, _ = rome().bounds("2019-06-03")
    peak, off = begin + 12 * 3600, begin + 2 * 3600
    usage = [
        Usage(off, case["import_kwh"]["off"] * 1000, 0),
        Usage(peak, case["import_kwh"]["peak"] * 1000, case["export_kwh"] * 1000),
    ]
    terms = tariff(
        bands=(Band("PEAK", "WORKDAY", 480, 1200, 400_000), Band("OFF", "EVERY", 0, 1440, 200_000)),
        feed_in=50_000,
        netting="period",
    )
    found = bill(terms, rome(), Period("2019-06-01", "2019-07-01"), usage)
    billed = {line.name: line.quantity for line in found.lines}
    expected = case["expected"]
    matched_peak, matched_off = expected["matched_peak"] * 1000, expected["matched_off"] * 1000
    assert billed.get("PEAK", 0) == case["import_kwh"]["peak"] * 1000 - matched_peak
    assert billed.get("OFF", 0) == case["import_kwh"]["off"] * 1000 - matched_off
    assert billed["NETTED"] == matched_peak + matched_off
    assert billed.get("FEED-IN", 0) == expected["excess"] * 1000
    assert found.import_wh == sum(each.import_wh for each in usage)
    assert found.total_micro == sum(
        line.quantity * line.price // 1000 * (-1 if line.kind == "feed_in" else 1)
        for line in found.lines
    )
    # Blocks count what is left of import.
    blocks = tariff(blocks=(Block(100_000, 1_000_000), Block(0, 2_000_000)), netting="period")
    again = bill(blocks, rome(), Period("2019-06-01", "2019-07-01"), usage)
    left = found.import_wh - billed["NETTED"]
    assert again.total_micro == (min(left, 100_000) + 2 * max(0, left - 100_000)) * 1000


@pytest.mark.parametrize("seed", range(20))
def test_a_bill_is_what_fractions_say(seed: int) -> None:
    chance = random.Random(seed)
    begin, end = rome().bounds("2019-10-27")
    index = {start: chance.randint(-90_000, 300_000) for start in range(begin, end, 900)}
    usage = [
        Usage(start, chance.randint(0, 900), chance.randint(0, 900))
        for start in range(begin, end, 900)
    ]
    terms = tariff(
        standing_micro_per_day=chance.randint(0, 10**6),
        blocks=(Block(20_000, chance.randint(0, 10**5)), Block(0, chance.randint(0, 10**5))),
        index="I",
        index_ppm=chance.randint(0, 2 * 10**6),
        markup=chance.randint(-1000, 10**5),
        feed_in=chance.randint(0, 10**5),
        feed_in_index_ppm=chance.randint(0, 10**6),
        taxes=(Tax("VAT", 220_000),),
    )
    chance.shuffle(usage)
    found = bill(terms, rome(), Period("2019-10-27", "2019-10-28"), usage, index)
    imported = sum(each.import_wh for each in usage)
    first = min(imported, 20_000)
    costs = (
        Fraction(terms.standing_micro_per_day)
        + Fraction(first * terms.blocks[0].price, 1000)
        + Fraction((imported - first) * terms.blocks[1].price, 1000)
        + sum(
            Fraction(each.import_wh, 1000)
            * (Fraction(index[each.interval_start] * terms.index_ppm, 10**6) + terms.markup)
            for each in usage
        )
    )
    feed_in = sum(
        Fraction(each.export_wh, 1000)
        * (terms.feed_in + Fraction(index[each.interval_start] * terms.feed_in_index_ppm, 10**6))
        for each in usage
    )
    exact = costs * Fraction(122, 100) - feed_in
    assert sum(line.amount_micro for line in found.lines) == found.total_micro
    assert found.total_micro % 10_000 == 0
    assert abs(found.total_micro - exact) <= 5000 + len(found.lines)
