"""Prices of the hours ahead, in the shapes that owners' sensors have."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest
from homeassistant.core import HomeAssistant, State, SupportsResponse
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers import entity_registry as er
from homeassistant.util import dt as dt_util
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.gridledger.models import LedgerData, Rate
from custom_components.gridledger.prices import PriceBook, Series, series_of

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def iso(hours: int) -> str:
    return (NOON + hours * HOUR).isoformat()


SHAPES: dict[str, tuple[dict[str, Any], float]] = {
    "Nord Pool, custom": (
        {
            "unit_of_measurement": "EUR/kWh",
            "raw_today": [
                {"start": NOON, "end": NOON + HOUR, "value": 0.1},
                {"start": NOON + HOUR, "end": NOON + 2 * HOUR, "value": 0.3},
            ],
            "raw_tomorrow": [],
            "today": [0.1, 0.3],
        },
        0.3,
    ),
    "Nord Pool in cents per MWh's thousandth": (
        {
            "unit_of_measurement": "öre/kWh",
            "raw_today": [{"start": iso(1), "end": iso(2), "value": 30}],
        },
        0.3,
    ),
    "Tibber": (
        {"today": [{"total": 0.2, "startsAt": iso(0)}, {"total": 0.3, "startsAt": iso(1)}]},
        0.3,
    ),
    "Octopus Energy": (
        {"rates": [{"start": iso(0), "end": iso(2), "value_inc_vat": 0.3, "is_capped": False}]},
        0.3,
    ),
    "Amber": (
        {"forecasts": [{"start_time": iso(1), "end_time": iso(2), "per_kwh": 0.3}]},
        0.3,
    ),
    "ENTSO-e, per MWh": (
        {
            "unit_of_measurement": "EUR/MWh",
            "prices": [{"time": iso(1), "price": 300}, {"time": iso(2), "price": 400}],
        },
        0.3,
    ),
    "negative": ({"prices": [{"start": iso(1), "price": -0.05}]}, -0.05),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_price_sensors(name: str) -> None:
    attributes, expected = SHAPES[name]
    series = Series(series_of(State("sensor.price", "0.25", attributes)))
    assert series.at((NOON + 1.5 * HOUR).timestamp()) == pytest.approx(expected)


def test_the_day_before_counts_beyond_the_end() -> None:
    series = Series(series_of(State("sensor.price", "1", SHAPES["Nord Pool, custom"][0])))
    assert series.at((NOON + 25.5 * HOUR).timestamp()) == 0.3
    assert series.at((NOON + 3 * HOUR).timestamp()) is None
    assert series.at((NOON - HOUR).timestamp()) is None


@pytest.mark.parametrize(
    "rows", [["x"], [{"start": "soon", "value": 1}], [{"start": iso(0), "value": "much"}], [{}]]
)
def test_nonsense_is_left_out(rows: list[Any]) -> None:
    assert series_of(State("sensor.price", "1", {"prices": rows})) == []


class Session:
    """What a price book asks of a session that has no ledger."""

    data = LedgerData(
        rates=(Rate("A", "d", "buy", 100_000), Rate("A", "d", "sell", 250_000)),
        grid_fee_micro_per_kwh=20_000,
    )


async def book(hass: HomeAssistant, **options: Any) -> PriceBook:
    entry = MockConfigEntry(domain="gridledger", options=options)
    made: Any = PriceBook(hass, entry, Session())  # type: ignore[arg-type]
    await made.async_refresh(NOON.timestamp())
    return made  # type: ignore[no-any-return]


async def test_published_rates_count_without_a_sensor(hass: HomeAssistant) -> None:
    prices = await book(hass)
    assert prices.at(NOON.timestamp()) == pytest.approx((0.27, 0.08))
    prices._session.data = replace(Session.data, sale_tax_ppm=250_000)  # type: ignore[misc]
    assert prices.at(NOON.timestamp()) == pytest.approx((0.27, 0.055))


async def test_a_clock_that_was_ahead_holds_up_no_prices(
    hass: HomeAssistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = await book(hass)
    prices._session.data = replace(Session.data, connected=True)  # type: ignore[misc]
    read = AsyncMock()
    monkeypatch.setattr(prices, "_read_channel", read)
    for at, reads in ((365, 1), (0, 2)):
        await prices.async_refresh((NOON + timedelta(days=at)).timestamp())
        await prices.async_refresh((NOON + timedelta(days=at)).timestamp() + 60)
        assert read.await_count == reads


async def test_an_owners_sensor_comes_first_and_its_value_where_no_series_is(
    hass: HomeAssistant,
) -> None:
    hass.states.async_set("sensor.price", "0.5", SHAPES["Tibber"][0])
    prices = await book(hass, buy_price=["sensor.price"])
    assert prices.at((NOON + HOUR).timestamp()) == pytest.approx((0.3, 0.08))
    assert prices.at((NOON + 9 * HOUR).timestamp())[0] == 0.5
    hass.states.async_set("event.today", "x", SHAPES["Octopus Energy"][0])
    prices = await book(hass, sell_price=["event.today", "event.tomorrow"])
    assert prices.at(NOON.timestamp())[1] == 0.3


@pytest.mark.parametrize(
    ("platform", "action", "answer"),
    [
        (
            "nordpool",
            "get_prices_for_date",
            {"NO2": [{"start": iso(0), "end": iso(2), "price": 300.0}]},
        ),
        ("tibber", "get_prices", {"prices": {"Home": [{"start_time": iso(0), "price": 0.3}]}}),
    ],
)
async def test_home_assistants_own_integrations_are_asked(
    hass: HomeAssistant, platform: str, action: str, answer: Any
) -> None:
    known = er.async_get(hass).async_get_or_create("sensor", platform, "price")
    hass.states.async_set(known.entity_id, "0.1", {"unit_of_measurement": "EUR/kWh"})
    hass.services.async_register(
        platform, action, lambda _: answer, supports_response=SupportsResponse.ONLY
    )
    prices = await book(hass, buy_price=[known.entity_id])
    assert prices.at(NOON.timestamp())[0] == pytest.approx(0.3)


@pytest.mark.parametrize("failure", [HomeAssistantError("no subscription"), KeyError("today")])
async def test_what_cannot_be_asked_leaves_the_sensors_own_value(
    hass: HomeAssistant, failure: Exception
) -> None:
    registry = er.async_get(hass)

    def refuse(_: Any) -> Any:
        raise failure

    hass.services.async_register(
        "tibber", "get_prices", refuse, supports_response=SupportsResponse.ONLY
    )
    for platform in ("tibber", "of_somebody_else"):
        known = registry.async_get_or_create("sensor", platform, "price")
        hass.states.async_set(known.entity_id, "21", {"unit_of_measurement": "ct/kWh"})
        prices = await book(hass, buy_price=known.entity_id)
        assert prices.at(NOON.timestamp())[0] == pytest.approx(0.21), platform
    # A sensor that is gone, or has no number, says nothing: what suppliers publish counts.
    hass.states.async_set("sensor.mute", "unknown")
    prices = await book(hass, buy_price=["sensor.gone", "sensor.mute"])
    assert prices.at(NOON.timestamp()) == pytest.approx((0.27, 0.08))


async def test_a_sensor_that_its_owner_no_longer_names_is_forgotten(hass: HomeAssistant) -> None:
    hass.states.async_set("sensor.price", "0.5", SHAPES["Tibber"][0])
    entry = MockConfigEntry(domain="gridledger", options={"buy_price": "sensor.price"})
    entry.add_to_hass(hass)
    made: Any = PriceBook(hass, entry, Session())  # type: ignore[arg-type]
    await made.async_refresh(NOON.timestamp())
    assert made.at(NOON.timestamp())[0] == 0.2
    hass.config_entries.async_update_entry(entry, options={})
    await made.async_refresh(NOON.timestamp())
    assert made.at(NOON.timestamp())[0] == pytest.approx(0.27)


def test_times_without_a_zone_are_the_homes() -> None:
    rows = [
        {"start": "2026-11-21 12:00:00", "price": 0.1},
        {"start": "2026-11-21 12:30:00", "price": 0.2},
    ]
    series = Series(series_of(State("sensor.price", "1", {"prices": rows})))
    noon = datetime(2026, 11, 21, 12, tzinfo=dt_util.get_default_time_zone())
    # Without ends, each lasts until the next, and the last as long as the one before.
    ahead = [series.at((noon + timedelta(minutes=minutes)).timestamp()) for minutes in (0, 45, 61)]
    assert ahead == [0.1, 0.2, None]


def test_nothing_is_known_without_suppliers_and_sensors(hass: HomeAssistant) -> None:
    nobody: Any = type("Nobody", (), {"data": LedgerData()})
    assert PriceBook(hass, MockConfigEntry(), nobody).at(0) == (None, None)
