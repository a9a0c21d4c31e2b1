"""What the utilities of a replayed month agree on: tariffs, a product, a community, settlement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from demo.replay_channel import UTILITIES
from demo.replay_data import COMMUNITY_UTILITY, DAY_S, REGION, Home, calendar_terms

HOUR_S: Final = 3600
PRODUCT: Final = "LOCAL"
ZONES: Final = {"Aurora": "NORTH", "Boreal": "EAST", "Cielo": "SOUTH"}
COMMUNITY: Final = "HILLSIDE"
COMMUNITY_PRICE: Final = 120_000
SHARED_FEE: Final = 5_000
VAT_PPM: Final = 190_000
BANDS: Final = (
    {"name": "NIGHT", "days": "EVERY", "from_minute": 1320, "to_minute": 360, "price": 190_000},
    {"name": "DAY", "days": "EVERY", "from_minute": 0, "to_minute": 1440, "price": 260_000},
)


def agreements() -> list[tuple[str, str, dict[str, Any], dict[str, str]]]:
    """What is proposed and approved by which functions: the terms, and what approvals name."""
    found: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
        (
            "tariff:ProposeCalendar",
            "tariff:ApproveCalendar",
            calendar_terms(),
            {"region": REGION},
        ),
        ("book:ProposeProduct", "book:ApproveProduct", _product(), {"product": PRODUCT}),
        (
            "sharing:Propose",
            "sharing:Approve",
            _community_terms(),
            {"community": COMMUNITY},
        ),
    ]
    for utility in UTILITIES:
        supplier = f"{utility}MSP"
        found.append(
            (
                "settlement:ProposeTerms",
                "settlement:ApproveTerms",
                _settlement_terms(supplier),
                {"supplier": supplier},
            )
        )
        found += [
            ("tariff:Propose", "tariff:Approve", terms, {"tariff": terms["tariff"]})
            for terms in tariffs_of(utility)
        ]
    return found


def tariff_of(home: Home) -> str:
    """The tariff of a connection: in turn, three pay the market's price."""
    if home.is_plant:
        return "PLANT"
    number = int(home.connection_id.removeprefix("CP-"))
    kind = "DYNAMIC" if (number - 1) // len(UTILITIES) % 2 else "FLAT"
    return f"{kind}-{home.utility.upper()}"


def feeder_meter(utility: str) -> str:
    """The meter of a utility's transformer."""
    return f"M-T-{utility.upper()}"


def tariffs_of(utility: str) -> list[dict[str, Any]]:
    """A supplier's tariffs."""
    common: dict[str, Any] = {
        "supplier": f"{utility}MSP",
        "standing_micro_per_day": 300_000,
        "bands": [],
        "blocks": [],
        "index": None,
        "index_ppm": 0,
        "markup": 0,
        "capacity_micro_per_kw_month": 0,
        "feed_in": 0,
        "feed_in_index_ppm": 0,
        "taxes": [{"name": "VAT", "rate_ppm": VAT_PPM}],
        "rounding": "total",
    }
    index = {"index": "DAY-AHEAD", "index_ppm": 1_000_000}
    found = [
        {**common, "tariff": f"FLAT-{utility.upper()}", "bands": list(BANDS), "feed_in": 60_000},
        {
            **common,
            "tariff": f"DYNAMIC-{utility.upper()}",
            **index,
            "markup": 140_000,
            "feed_in_index_ppm": 1_000_000,
        },
    ]
    if utility == UTILITIES[0]:
        plant = {"standing_micro_per_day": 0, "taxes": [], "feed_in_index_ppm": 1_000_000}
        found.append({**common, "tariff": "PLANT", **index, **plant})
    return found


def _product() -> dict[str, Any]:
    return {
        "product": PRODUCT,
        "zones": [
            {"zone": zone, "local_fee": 10_000, "entry_fee": 15_000, "exit_fee": 5_000}
            for zone in sorted(ZONES.values())
        ],
        "price_min": -500_000,
        "price_max": 4_000_000,
        "price_tick": 1,
        "price_rule": "middle",
        "gate_closure_s": DAY_S + 2 * HOUR_S,
        "shortfall_margin": 50_000,
    }


def _community_terms() -> dict[str, Any]:
    return {
        "community": COMMUNITY,
        "utility": f"{COMMUNITY_UTILITY}MSP",
        "method": "proportional",
        "price_micro_per_kwh": COMMUNITY_PRICE,
        "keys": [],
    }


def _settlement_terms(supplier: str) -> dict[str, Any]:
    return {
        "supplier": supplier,
        "region": REGION,
        "tariff": 260_000,
        "base_rate": 60_000,
        "rest": "billed",
        "shortfall_price": 300_000,
        "surplus_price": 20_000,
        "import_fee": 0,
        "shared_fee": SHARED_FEE,
        "netting_intervals": 1,
        "final_after_working_days": 10,
        "adjustable_days": 425,
    }


def utility_of(terms: Mapping[str, Any]) -> str:
    """Whose operator proposes terms."""
    supplier = terms.get("supplier") or terms.get("utility")
    return UTILITIES[0] if supplier is None else str(supplier).removesuffix("MSP")
