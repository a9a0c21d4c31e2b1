"""Settlement and sharing: worked examples, and that nothing is paid twice or left out."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.contracts.settlement.settle import (
    MARKET,
    ROUNDING,
    Community,
    Fill,
    Metered,
    Settlement,
    Terms,
    settle,
)
from consortium.contracts.settlement.sharing import net_windows, pro_rata, share
from tests.consortium.contracts.cases import cases

TERMS = Terms(
    tariff=300_000,
    base_rate=50_000,
    shortfall_price=350_000,
    surplus_price=40_000,
    supplier="SUPPLIER-AURORA",
    balancer="BALANCE-AURORA",
    grid="GRID-AURORA",
)
SHARING = cases("net_metering_sharing")


def home(
    connection: str, import_wh: int, export_wh: int, *fills: Fill, community: str = ""
) -> Metered:
    return Metered(connection, import_wh, export_wh, fills, TERMS, community)


def lines(settlement: Settlement, connection: str) -> list[tuple[str, int, int]]:
    return [
        (line.kind, line.energy_wh, line.amount_micro)
        for line in settlement.lines
        if line.connection == connection
    ]


def test_a_seller_that_delivers_less_than_it_sold() -> None:
    """1,000 Wh sold to three, 800 delivered: buyers pay once, the seller makes up for 200."""
    settlement = settle(
        [
            home("SELLER", 0, 800, Fill(-1000, 90_000)),
            home("B-1", 500, 0, Fill(500, 100_000, fee=10_000)),
            home("B-2", 300, 0, Fill(300, 100_000, fee=10_000)),
            home("B-3", 200, 0, Fill(200, 100_000, fee=10_000)),
        ]
    )
    assert lines(settlement, "SELLER") == [("sold", 1000, 90_000), ("shortfall", 200, -70_000)]
    for buyer, energy_wh in (("B-1", 500), ("B-2", 300), ("B-3", 200)):
        assert lines(settlement, buyer) == [
            ("bought", energy_wh, -90 * energy_wh),
            ("fee", energy_wh, -10 * energy_wh),
        ]
    assert [(token.holder, token.energy_wh) for token in settlement.tokens] == [
        ("B-1", 400),
        ("B-2", 240),
        ("B-3", 160),
    ]
    assert all(token.retired_wh == token.energy_wh for token in settlement.tokens)
    amounts = settlement.amounts()
    assert sum(amounts.values()) == 0
    assert amounts[MARKET] == 0
    assert settlement.rounding_micro == 0
    assert amounts["BALANCE-AURORA"] == 70_000


def test_a_buyer_that_takes_less_than_it_bought() -> None:
    settlement = settle(
        [
            home("SELLER", 0, 1200, Fill(-1000, 90_000)),
            home("BUYER", 600, 0, Fill(1000, 90_000)),
        ]
    )
    assert lines(settlement, "BUYER") == [("bought", 1000, -90_000), ("surplus", 400, 16_000)]
    assert lines(settlement, "SELLER") == [("sold", 1000, 90_000), ("feed_in", 200, 10_000)]
    bought, rest = settlement.tokens
    assert (bought.holder, bought.energy_wh, bought.retired_wh) == ("BUYER", 1000, 600)
    assert (rest.holder, rest.energy_wh, rest.retired_wh) == ("SUPPLIER-AURORA", 200, 0)


def test_a_sale_to_a_supplier_is_with_the_supplier() -> None:
    sale = Fill(-500, 81_000, counterparty="SUPPLIER-BOREAL")
    settlement = settle([home("SELLER", 0, 700, sale)])
    assert settlement.amounts() == {
        "SELLER": 40_500 + 10_000,
        "SUPPLIER-BOREAL": -40_500,
        "SUPPLIER-AURORA": -10_000,
    }
    assert [(token.holder, token.energy_wh) for token in settlement.tokens] == [
        ("SUPPLIER-BOREAL", 500),
        ("SUPPLIER-AURORA", 200),
    ]


def test_a_community_shares_before_tariff_and_base_rate() -> None:
    homes = [
        home("SUN", 0, 1000, community="C"),
        home("USE-1", 300, 0, community="C"),
        home("USE-2", 900, 0, community="C"),
        home("OTHER", 100, 0),
    ]
    proportional = settle(homes, {"C": Community(120_000, "proportional")})
    assert lines(proportional, "USE-1") == [("import", 50, -15_000)]
    assert lines(proportional, "USE-2") == [("import", 150, -45_000)]
    assert lines(proportional, "SUN") == [("shared", 250, 30_000), ("shared", 750, 90_000)]
    static = settle(homes, {"C": Community(120_000, "static", {"USE-1": 1, "USE-2": 1})})
    # USE-1 can't use its half whole; what it leaves goes to the base rate.
    assert lines(static, "SUN") == [
        ("shared", 300, 36_000),
        ("shared", 500, 60_000),
        ("feed_in", 200, 10_000),
    ]
    assert sum(static.amounts().values()) == 0


def test_a_community_of_all_shares_what_is_used_at_once() -> None:
    """The Italian rule: per hour, the lesser of what is fed in and what is drawn."""
    case = SHARING["it_cer_shared"]
    exports = {f"E{index}": wh for index, wh in enumerate(case["injected_wh"])}
    imports = {f"I{index}": wh for index, wh in enumerate(case["withdrawn_wh"])}
    assert share(exports, imports, "proportional").total == case["expected"]["shared"]


def test_the_netting_window_changes_the_bill() -> None:
    case = SHARING["hourly_vs_quarter_netting"]
    net = case["quarter_net_wh"]
    imports, exports = [max(0, wh) for wh in net], [max(0, -wh) for wh in net]
    quarters, hour = net_windows(imports, exports, 1), net_windows(imports, exports, 4)
    expected = case["expected"]
    assert sum(wh for wh in quarters if wh > 0) == expected["import_q"]
    assert -sum(wh for wh in quarters if wh < 0) == expected["export_q"]
    assert [max(0, hour[0]), max(0, -hour[0])] == [
        expected["import_hour_net"],
        expected["export_hour_net"],
    ]


@given(st.integers(-(10**9), 10**9), st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_shares_add_up(total: int, weights: list[int]) -> None:
    shares = pro_rata(total, weights)
    whole = sum(weights)
    assert sum(shares) == (total if whole else 0)
    for weight, part in zip(weights, shares, strict=True):
        assert abs(part * whole - total * weight) <= whole


def random_interval(chance: random.Random) -> list[Metered]:
    """Homes with fills of one auction (equal volumes on both sides), whatever they metered."""
    names = [f"H-{number:02d}" for number in range(chance.randint(1, 12))]
    fills: dict[str, list[Fill]] = {name: [] for name in names}
    price = chance.randint(-50_000, 200_000)
    for _ in range(chance.randint(0, 8)):
        seller, buyer = chance.choice(names), chance.choice(names)
        energy_wh, fee = chance.randint(1, 2500), chance.choice([0, 10_001])
        fills[seller].append(Fill(-energy_wh, price))
        fills[buyer].append(Fill(energy_wh, price + fee, fee))
    for name in names:
        if chance.random() < 0.2:
            fills[name].append(Fill(-chance.randint(1, 900), 81_000, 0, "SUPPLIER-BOREAL"))
    return [
        home(
            name,
            chance.choice([0, chance.randint(0, 3000)]),
            chance.choice([0, chance.randint(0, 3000)]),
            *fills[name],
            community=chance.choice(["", "C", "D"]),
        )
        for name in names
    ]


COMMUNITIES = {
    "C": Community(123_457, "proportional"),
    "D": Community(99_999, "static", {f"H-{number:02d}": number for number in range(12)}),
}


@pytest.mark.parametrize("seeds", [range(500), range(500, 1000)])
def test_every_wh_and_every_micro_is_settled_once(seeds: range) -> None:
    for seed in seeds:
        check_interval(random_interval(random.Random(seed)))


def check_interval(homes: list[Metered]) -> None:
    settlement = settle(homes, COMMUNITIES)
    amounts = settlement.amounts()
    assert sum(amounts.values()) == 0
    assert amounts.get(MARKET, 0) == 0
    fills = sum(len(each.fills) for each in homes)
    assert abs(amounts.get(ROUNDING, 0)) * 2 <= fills
    check_energy(homes, settlement)
    assert settle(homes[::-1], COMMUNITIES) == settlement


def check_energy(homes: Sequence[Metered], settlement: Settlement) -> None:
    """Each home's meter is accounted for, and each exported Wh is one token's."""

    def energy(connection: str, *kinds: str) -> int:
        return sum(
            line.energy_wh
            for line in settlement.lines
            if line.connection == connection and line.kind in kinds
        )

    for each in homes:
        name = each.connection
        taken = sum(
            line.energy_wh
            for line in settlement.lines
            if line.kind == "shared" and line.counterparty == name
        )
        assert (
            energy(name, "sold") - energy(name, "shortfall") + energy(name, "shared", "feed_in")
        ) == each.export_wh
        assert (
            energy(name, "bought") - energy(name, "surplus") + taken + energy(name, "import")
        ) == each.import_wh
        tokens = [token for token in settlement.tokens if token.origin == name]
        assert sum(token.energy_wh for token in tokens) == each.export_wh
        retired = sum(t.retired_wh for t in settlement.tokens if t.holder == name)
        assert retired <= each.import_wh
    assert all(token.energy_wh > 0 for token in settlement.tokens)
    assert all(0 <= token.retired_wh <= token.energy_wh for token in settlement.tokens)
