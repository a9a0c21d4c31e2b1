"""Caps on positions, by zone and participant, whatever energy is traded through."""

from typing import Any

import pytest

from consortium.chaincode.api import Conflict, ContractError, Forbidden, InvalidArgument, NotFound
from tests.consortium.contracts.test_books import INTERVAL, Exchange
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    NOON,
    OPERATOR,
    SUPPLIER,
)

SOON = NOON + 900


class Capped(Exchange):
    """An exchange whose utilities cap positions."""

    def cap(self, participant: str | None, sold: int | None, bought: int | None) -> None:
        terms = {"zone": "NORTH", "participant": participant, "most_sold_wh": sold,
                 "most_bought_wh": bought}  # fmt: skip
        made = self.world.submit(OPERATOR, "book:ProposeCap", terms=terms, effective_from=SOON)
        assert made["in_force"] is False
        named: dict[str, Any] = {} if participant is None else {"participant": participant}
        made = self.world.submit(
            BOREAL_OPERATOR, "book:ApproveCap", zone="NORTH", version=1, **named
        )
        assert made["in_force"] is True
        assert self.world.evaluate(OPERATOR, "book:Cap", zone="NORTH", at=SOON, **named) == {
            **terms,
            "most_sold_wh": sold if sold is None else str(sold),
            "most_bought_wh": bought if bought is None else str(bought),
        }

    def operated(self, *connections: str) -> None:
        self.world.submit(
            OPERATOR,
            "roles:RegisterParticipant",
            participant_id="SUNPOWER",
            utility="AuroraMSP",
            name="A company",
            kinds=["plant_operator"],
        )
        for name in connections:
            self.world.submit(
                self.homes[name],
                "roles:Assign",
                connection_id=name,
                role="plant_operator",
                holder="SUNPOWER",
                **{"from": SOON},
            )


@pytest.fixture
def capped() -> Capped:
    exchange = Capped()
    for name in ("P-1", "P-2", "P-3"):
        exchange.add(name)
    exchange.add("S-1", zone="SOUTH")
    return exchange


def test_each_connection_of_a_zone_is_capped_on_each_side(capped: Capped) -> None:
    capped.cap(None, 1_000, 2_000)
    capped.place("P-1", "offer", 50_000, 600, "a")
    with pytest.raises(Conflict, match="zone NORTH each connection may have sold 1000 Wh"):
        capped.place("P-1", "offer", 60_000, 401, "b")
    capped.place("P-1", "offer", 60_000, 400, "b")
    capped.place("P-2", "bid", 50_000, 2_000, "a")
    with pytest.raises(Conflict, match=r"may have bought 2000 Wh .* but 2001 Wh"):
        capped.place("P-3", "bid", 50_000, 2_001, "a")
    capped.place("S-1", "offer", 50_000, 2_400, "a")
    with pytest.raises(Conflict, match="but 1001 Wh would be promised"):
        capped.call("P-1", "book:Amend", order_id="a", price_micro_per_kwh=50_000, energy_wh=601)


def test_sales_at_a_rate_and_in_books_count_together(capped: Capped) -> None:
    capped.cap("P-1", 1_000, None)
    capped.world.submit(SUPPLIER, "market:PublishRate", supplier="AuroraMSP", day="2026-11-21",
                        kind="buy", price_micro_per_kwh=80_000)  # fmt: skip
    capped.place("P-1", "offer", 50_000, 700, "a")
    window = {"connection_id": "P-1", "window_start": INTERVAL, "window_end": INTERVAL + 900}
    quotes = {
        wh: capped.world.evaluate(capped.homes["P-1"], "market:Quote", energy_wh=wh, **window)
        for wh in (300, 301)
    }
    with pytest.raises(Conflict, match="P-1 may have sold 1000 Wh"):
        capped.world.submit(
            capped.homes["P-1"], "market:Authorise", request_id="r-1", **quotes[301]
        )
    capped.world.submit(capped.homes["P-1"], "market:Authorise", request_id="r-1", **quotes[300])
    with pytest.raises(Conflict, match="P-1 may have sold 1000 Wh"):
        capped.place("P-1", "offer", 50_000, 1, "b")
    capped.place("P-2", "offer", 50_000, 2_400, "a")


def test_a_companys_plants_count_together(capped: Capped) -> None:
    capped.operated("P-1", "P-2", "S-1")
    capped.cap("SUNPOWER", 3_000, None)
    capped.place("P-1", "offer", 50_000, 2_000, "a")
    capped.place("S-1", "offer", 50_000, 2_400, "a")  # of another zone
    capped.place("P-3", "offer", 50_000, 2_400, "a")  # another's
    with pytest.raises(Conflict, match=r"SUNPOWER may have sold 3000 Wh .* but 3001 Wh"):
        capped.place("P-2", "offer", 50_000, 1_001, "a")
    capped.place("P-2", "offer", 50_000, 1_000, "a")
    capped.call("P-1", "book:Cancel", order_id="a")
    capped.call("P-2", "book:Amend", order_id="a", price_micro_per_kwh=50_000, energy_wh=2_500)


def test_contracts_are_capped_too(capped: Capped) -> None:
    capped.cap(None, 1_000, None)
    terms = {
        "contract_id": "PPA-1",
        "seller": "P-1",
        "buyer": "P-2",
        "from_day": "2026-11-23",
        "to_day": "2026-11-24",
        "profile": [{"from_minute": 0, "to_minute": 1440, "energy_wh": 1_001}],
        "price_micro_per_kwh": 70_000,
    }
    capped.world.submit(capped.homes["P-1"], "bilateral:Propose", terms=terms, proposed_by="P-1")
    with pytest.raises(Conflict, match="each connection may have sold 1000 Wh"):
        capped.world.submit(capped.homes["P-2"], "bilateral:Sign", terms=terms)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"most_sold_wh": None}, InvalidArgument, "cap one at least"),
        ({"most_sold_wh": -1}, InvalidArgument, "most_sold_wh is -1"),
        ({"most_sold_wh": str(2**63)}, InvalidArgument, "most_sold_wh"),
        ({"zone": "NO/RTH"}, InvalidArgument, "zone is"),
        ({"participant": "P/1"}, InvalidArgument, "participant is"),
    ],
)
def test_bad_caps(
    capped: Capped, change: dict[str, Any], error: type[ContractError], sentence: str
) -> None:
    terms = {"zone": "NORTH", "participant": None, "most_sold_wh": 5, "most_bought_wh": None}
    state = capped.world.state.values()
    with pytest.raises(error, match=sentence):
        capped.world.submit(
            OPERATOR, "book:ProposeCap", terms={**terms, **change}, effective_from=SOON
        )
    with pytest.raises(Forbidden, match="may not propose a cap"):
        capped.world.submit(
            capped.homes["P-1"], "book:ProposeCap", terms=terms, effective_from=SOON
        )
    with pytest.raises(Conflict, match="never back in time"):
        capped.world.submit(OPERATOR, "book:ProposeCap", terms=terms, effective_from=NOON)
    with pytest.raises(NotFound):
        capped.world.submit(OPERATOR, "book:ApproveCap", zone="SOUTH", version=1)
    with pytest.raises(NotFound):
        capped.world.evaluate(OPERATOR, "book:Cap", zone="NORTH")
    assert capped.world.state.values() == state
