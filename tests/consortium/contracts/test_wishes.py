"""An order that is never worse than its owner's tariff."""

from typing import Any

import pytest

from consortium.chaincode.api import InvalidArgument, NotFound
from tests.consortium.contracts.test_books import INTERVAL, Exchange
from tests.consortium.contracts.world import BOREAL_OPERATOR, NOON, OPERATOR, SUPPLIER

TARIFF: dict[str, Any] = {
    "tariff": "HOME",
    "supplier": "AuroraMSP",
    "standing_micro_per_day": 0,
    "bands": [{"name": "ALL", "days": "EVERY", "from_minute": 0, "to_minute": 1440,
               "price": 100_300}],
    "blocks": [{"up_to_wh": 1000, "price": 20_000}, {"up_to_wh": 0, "price": 30_000}],
    "index": "SPOT",
    "index_ppm": 500_000,
    "markup": 1_000,
    "capacity_micro_per_kw_month": 0,
    "feed_in": 50_000,
    "feed_in_index_ppm": 100_000,
    "taxes": [],
    "rounding": "total",
}  # fmt: skip
OWN = {"tariff": "HOME", "region": "HERE"}


@pytest.fixture
def exchange() -> Exchange:
    exchange = Exchange()
    exchange.add("H-1")
    world = exchange.world
    calendar = {
        "region": "HERE",
        "offsets": [{"from": NOON - 86_400, "offset_s": 3600}],
        "known_until": NOON + 365 * 86_400,
        "holidays": [],
    }
    for terms, name in ((calendar, "Calendar"), (TARIFF, "")):
        world.submit(OPERATOR, f"tariff:Propose{name}", terms=terms, effective_from=NOON + 900)
    world.submit(BOREAL_OPERATOR, "tariff:ApproveCalendar", region="HERE", version=1)
    world.submit(BOREAL_OPERATOR, "tariff:Approve", tariff="HOME", version=1)
    return exchange


def test_an_order_is_never_worse_than_the_tariff(exchange: Exchange) -> None:
    with pytest.raises(NotFound, match="index SPOT of 2026-11-21 isn't published"):
        exchange.place("H-1", "bid", 200_000, 100, never_worse_than=OWN)
    exchange.world.submit(
        SUPPLIER, "tariff:PublishIndex", index="SPOT", day="2026-11-21", prices=[10_001] * 96
    )
    # 100,300 for the band, 20,000 for the cheapest block, half of 10,001 and 1,000: 126,300.
    dear = exchange.place("H-1", "bid", 200_000, 100, never_worse_than=OWN)
    assert dear["price_micro_per_kwh"] == "126000"
    assert exchange.place("H-1", "bid", 200_000, 100, never_worse_than=OWN) == dear
    cheap = exchange.place("H-1", "bid", 90_000, 100, "o-2", never_worse_than=OWN)
    assert cheap["price_micro_per_kwh"] == "90000"
    # 50,000 and a tenth of the index: 51,001 is what the home gets without the market.
    sold = exchange.place("H-1", "offer", 0, 100, "o-3", interval_start=INTERVAL + 900,
                          never_worse_than=OWN)  # fmt: skip
    assert sold["price_micro_per_kwh"] == "52000"


def test_what_is_refused(exchange: Exchange) -> None:
    for own, error, said in (
        ({"tariff": "NONE", "region": "HERE"}, NotFound, "no tariff NONE"),
        ({"tariff": "HOME"}, InvalidArgument, "region is missing"),
        ({"tariff": "a", "region": "HERE"}, InvalidArgument, "tariff is"),
    ):
        with pytest.raises(error, match=said):
            exchange.place("H-1", "bid", 1000, 100, never_worse_than=own)
    exchange.world.submit(
        SUPPLIER, "tariff:PublishIndex", index="SPOT", day="2026-11-21", prices=[10**9] * 96
    )
    with pytest.raises(InvalidArgument, match="no price between -500000 and 4000000 is as good"):
        exchange.place("H-1", "offer", 0, 100, never_worse_than=OWN)
