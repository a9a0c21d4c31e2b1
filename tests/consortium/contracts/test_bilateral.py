"""Bilateral contracts: proposed, signed, counted in positions, ended."""

from typing import Any

import pytest

from consortium.chaincode.api import Conflict, ContractError, Forbidden, InvalidArgument, NotFound
from consortium.contracts.market.bilateral import firm_contracts
from tests.consortium.contracts.test_books import Exchange
from tests.consortium.contracts.world import BOREAL_SUPPLIER, HOME, SUPPLIER

TERMS: dict[str, Any] = {
    "contract_id": "PPA-1",
    "seller": "S-1",
    "buyer": "B-1",
    "from_day": "2026-11-23",
    "to_day": "2027-11-23",
    "price_micro_per_kwh": 70_000,
    "profile": [{"from_minute": 600, "to_minute": 960, "energy_wh": 2_000}],
    "notice_days": 30,
}
DAY = 1_795_392_000
"""2026-11-23."""


@pytest.fixture
def exchange() -> Exchange:
    exchange = Exchange()
    for connection_id in ("S-1", "B-1"):
        exchange.add(connection_id)
    return exchange


def propose(exchange: Exchange, side: str = "S-1", **changes: Any) -> Any:
    terms = {**TERMS, **changes}
    return exchange.world.submit(
        exchange.homes[side], "bilateral:Propose", terms=terms, proposed_by=side
    )


def sign(exchange: Exchange, side: str = "B-1", **changes: Any) -> Any:
    return exchange.world.submit(exchange.homes[side], "bilateral:Sign", terms={**TERMS, **changes})


def trades(exchange: Exchange, connection_id: str, start: int, end: int) -> list[Any]:
    """Firm trades, read as settlement does."""

    class View:
        channel_id = ""

        def get_state(self, key: str) -> bytes | None:
            found = exchange.world.state.get("energy", key)
            return None if found is None else found.value

        def range(self, first: str, last: str) -> Any:
            for key, found in exchange.world.state.range("energy", first, last):
                yield key, found.value

    return list(firm_contracts(View(), connection_id, start, end, 20_000))  # type: ignore[arg-type]


def test_a_contract_is_signed_counted_and_ended(exchange: Exchange) -> None:
    assert propose(exchange)["state"] == "proposed"
    assert propose(exchange)["state"] == "proposed"
    with pytest.raises(Forbidden, match="may not sign for B-1"):
        sign(exchange, "S-1")
    with pytest.raises(Conflict, match="terms are not those"):
        sign(exchange, price_micro_per_kwh=69_000)
    signed = sign(exchange)
    assert signed["state"] == "signed"
    assert sign(exchange) == signed

    ten = DAY + 10 * 3600
    sold = trades(exchange, "S-1", ten - 900, ten + 900)
    assert [(one.energy_wh, one.price_micro_per_kwh) for one in sold] == [(-2_000, 70_000)]
    bought = trades(exchange, "B-1", ten, ten + 900)
    assert [(one.energy_wh, one.price_micro_per_kwh, one.fee_micro_per_kwh) for one in bought] == [
        (2_000, 90_000, 20_000)
    ]
    # 2,500 Wh is what the inverter gives in an interval.
    at = {"interval_start": ten, "product": "ANY", "side": "offer", "price_micro_per_kwh": 60_000}
    with pytest.raises(Conflict, match="2501 Wh would be promised"):
        exchange.call("S-1", "book:Place", order_id="o-1", energy_wh=501, **at)
    exchange.call("S-1", "book:Place", order_id="o-1", energy_wh=500, **at)
    quoted = {"connection_id": "S-1", "energy_wh": 1, "window_start": ten, "window_end": ten + 900}
    exchange.world.submit(
        SUPPLIER, "market:PublishRate", supplier="AuroraMSP", day="2026-11-23", kind="buy",
        price_micro_per_kwh=1,
    )  # fmt: skip
    with pytest.raises(Conflict, match="can deliver at most 0 Wh"):
        exchange.world.evaluate(exchange.homes["S-1"], "market:Quote", **quoted)

    with pytest.raises(InvalidArgument, match="with 30 days' notice must be 2026-12-22 or later"):
        exchange.world.submit(
            exchange.homes["S-1"], "bilateral:Terminate", contract_id="PPA-1", to_day="2026-12-21"
        )
    for _ in range(2):
        ended = exchange.world.submit(
            exchange.homes["S-1"], "bilateral:Terminate", contract_id="PPA-1", to_day="2026-12-22"
        )
        assert (ended["terms"]["to_day"], ended["ended_by"]) == ("2026-12-22", "S-1")
    assert trades(exchange, "S-1", ten + 40 * 86_400, ten + 40 * 86_400 + 900) == []
    listed = exchange.world.evaluate(exchange.homes["B-1"], "bilateral:Contracts", account="B-1")
    assert [one["terms"]["contract_id"] for one in listed] == ["PPA-1"]


def test_a_supplier_buys_at_an_index(exchange: Exchange) -> None:
    changes: dict[str, Any] = {"buyer": "SUPPLIER-AURORA", "index": "SPOT", "index_ppm": 900_000}
    propose(exchange, **changes)
    with pytest.raises(ContractError):
        exchange.world.submit(BOREAL_SUPPLIER, "bilateral:Sign", terms={**TERMS, **changes})
    exchange.world.submit(SUPPLIER, "bilateral:Sign", terms={**TERMS, **changes})
    ten = DAY + 10 * 3600
    with pytest.raises(NotFound, match="index SPOT of 2026-11-23 isn't published"):
        trades(exchange, "S-1", ten, ten + 900)
    exchange.world.submit(
        SUPPLIER, "tariff:PublishIndex", index="SPOT", day="2026-11-23", prices=[50_000] * 96
    )
    [sold] = trades(exchange, "S-1", ten, ten + 900)
    assert sold.price_micro_per_kwh == 45_000 + 70_000
    assert sold.counterparty == "SUPPLIER-AURORA"


def test_two_contracts_share_an_inverter(exchange: Exchange) -> None:
    exchange.world.now = DAY - 3600
    later: dict[str, Any] = {"from_day": "2026-11-24"}
    propose(exchange, **later)
    sign(exchange, **later)
    second = {**later, "contract_id": "PPA-2"}
    propose(exchange, **second)
    with pytest.raises(Conflict, match=r"can deliver 2500 Wh .* but 4000 Wh would be promised"):
        sign(exchange, **second)
    withdrawn = exchange.world.submit(
        exchange.homes["B-1"], "bilateral:Withdraw", contract_id="PPA-2"
    )
    assert withdrawn["state"] == "withdrawn"
    with pytest.raises(Conflict, match="was withdrawn"):
        sign(exchange, **second)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"buyer": "S-1"}, InvalidArgument, "seller and buyer are both S-1"),
        ({"buyer": "NOBODY"}, NotFound, "NOBODY is not registered"),
        ({"buyer": "GRID-AURORA"}, InvalidArgument, "buys nothing"),
        ({"to_day": "2026-11-23"}, InvalidArgument, "to_day is 2026-11-23"),
        ({"from_day": "2026-11-21"}, InvalidArgument, "must be after 2026-11-21"),
        ({"from_day": "2026-02-30"}, InvalidArgument, "no day"),
        ({"profile": []}, InvalidArgument, "profile is empty"),
        ({"share_ppm": 1}, InvalidArgument, "but there is a profile, too"),
        ({"index_ppm": 5}, InvalidArgument, "belong together"),
        ({"price_micro_per_kwh": str(2**63)}, InvalidArgument, "price_micro_per_kwh"),
        ({"price_micro_per_kwh": "1e3"}, InvalidArgument, "price_micro_per_kwh"),
        ({"contract_id": "a/b"}, InvalidArgument, "contract_id"),
        (
            {"profile": [{"from_minute": 7, "to_minute": 15, "energy_wh": 1}]},
            InvalidArgument,
            "cuts an interval",
        ),
        (
            {"profile": [{"from_minute": 30, "to_minute": 15, "energy_wh": 1}]},
            InvalidArgument,
            "don't overlap",
        ),
        (
            {"profile": [{"from_minute": 0, "to_minute": 15, "energy_wh": -1}]},
            InvalidArgument,
            "energy_wh is -1",
        ),
    ],
)
def test_terms_that_are_refused(
    exchange: Exchange, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    before = dict(exchange.world.state.public)
    with pytest.raises(error, match=said):
        propose(exchange, **changes)
    assert exchange.world.state.public == before


def test_who_may(exchange: Exchange) -> None:
    with pytest.raises(InvalidArgument, match="proposed_by is X"):
        exchange.world.submit(HOME, "bilateral:Propose", terms=TERMS, proposed_by="X")
    with pytest.raises(Forbidden):
        exchange.world.submit(HOME, "bilateral:Propose", terms=TERMS, proposed_by="S-1")
    with pytest.raises(NotFound, match="no bilateral contract PPA-1"):
        sign(exchange)
    propose(exchange)
    for function, argument in (
        ("bilateral:Withdraw", {"contract_id": "PPA-1"}),
        ("bilateral:Terminate", {"contract_id": "PPA-1", "to_day": "2027-01-01"}),
        ("bilateral:Contract", {"contract_id": "PPA-1"}),
    ):
        with pytest.raises(Forbidden, match="S-1 and B-1 may"):
            exchange.world.simulate(HOME, function, argument)
    with pytest.raises(Conflict, match="is another contract"):
        propose(exchange, price_micro_per_kwh=1)
    with pytest.raises(Conflict, match="is proposed, not signed"):
        exchange.world.submit(
            exchange.homes["S-1"], "bilateral:Terminate", contract_id="PPA-1", to_day="2027-01-01"
        )
    exchange.world.now = DAY
    with pytest.raises(Conflict, match="was to begin at"):
        sign(exchange)
