"""Sealed orders: hidden until the close, revealed after it, or their pledge is lost."""

from typing import Any

import pytest

from consortium.chaincode.api import Conflict, Forbidden, InvalidArgument, NotFound
from consortium.contracts.market.gates import SKEW_S
from consortium.contracts.market.sealed import commitment_of
from tests.consortium.contracts.test_books import INTERVAL, TERMS, Exchange
from tests.consortium.contracts.world import BOREAL_OPERATOR, CHANNEL, NOON, OPERATOR, energy_world

SALT = "ab" * 32
DARK = {**TERMS, "product": "DARK", "pledge_micro": 5_000, "reveal_s": 600}


class Dark(Exchange):
    """An exchange with a sealed product."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.world.submit(OPERATOR, "book:ProposeProduct", terms=DARK, effective_from=NOON + 900)
        self.world.submit(BOREAL_OPERATOR, "book:ApproveProduct", product="DARK", version=1)

    @staticmethod
    def hidden(connection_id: str, side: str, price: int, wh: int) -> dict[str, str]:
        return {
            "connection_id": connection_id,
            "energy_wh": str(wh),
            "interval_start": str(INTERVAL),
            "order_id": "o-1",
            "price_micro_per_kwh": str(price),
            "product": "DARK",
            "salt": SALT,
            "side": side,
        }

    def seal(self, connection_id: str, side: str, price: int, wh: int) -> Any:
        return self.call(
            connection_id,
            "book:Seal",
            order_id="o-1",
            product="DARK",
            commitment=commitment_of(CHANNEL, self.hidden(connection_id, side, price, wh)),
        )

    def reveal(self, connection_id: str, side: str, price: int, wh: int, **more: Any) -> Any:
        return self.world.submit(
            self.homes[connection_id],
            "book:Reveal",
            **{**self.hidden(connection_id, side, price, wh), **more},
        )

    def gate(self) -> None:
        """What an agent does at the time: the gates so far."""
        self.world.submit(OPERATOR, "gate:Begin", at=self.world.now - self.world.now % 300)

    def step(self, function: str, **argument: Any) -> Any:
        return self.run(function, product="DARK", **argument)


@pytest.fixture
def dark() -> Dark:
    dark = Dark()
    for connection_id in ("S-1", "B-1", "B-2"):
        dark.add(connection_id)
    return dark


def test_a_sealed_auction(dark: Dark) -> None:
    dark.seal("S-1", "offer", 60_000, 1000)
    sealed = dark.seal("B-1", "bid", 100_000, 1000)
    assert dark.seal("B-1", "bid", 100_000, 1000) == sealed
    dark.seal("B-2", "bid", 500_000, 1000)
    assert set(sealed) & {"side", "price_micro_per_kwh", "energy_wh"} == set()
    assert dark.held("B-1") == 5_000
    with pytest.raises(Conflict, match="has sealed books; book:Seal"):
        dark.call("B-1", "book:Place", order_id="o-2", product="DARK", side="bid",
                  price_micro_per_kwh=1000, energy_wh=1)  # fmt: skip
    with pytest.raises(Conflict, match="is open; book:Close first"):
        dark.reveal("B-1", "bid", 100_000, 1000)
    dark.world.now = INTERVAL - 3600
    dark.step("book:Close")
    with pytest.raises(Conflict, match="was closed at"):
        dark.call("B-2", "book:Seal", order_id="o-9", product="DARK", commitment="0" * 64)
    with pytest.raises(Conflict, match="may still be revealed; book:EndReveal first"):
        dark.step("book:Aggregate", zone="NORTH", page=0)
    with pytest.raises(InvalidArgument, match="is not what was sealed"):
        dark.reveal("B-1", "bid", 101_000, 1000)
    assert dark.reveal("S-1", "offer", 60_000, 1000)["state"] == "open"
    assert dark.reveal("B-1", "bid", 100_000, 1000)["hold_micro"] == "100000"
    assert dark.reveal("B-1", "bid", 100_000, 1000)["state"] == "open"
    assert dark.held("B-1") == 100_000
    with pytest.raises(Conflict, match="may be revealed until"):
        dark.step("book:EndReveal")
    dark.world.now += 600 + SKEW_S
    with pytest.raises(Conflict, match="no agent has written that time's gate"):
        dark.step("book:EndReveal")
    dark.gate()
    late = dark.world.simulate(
        dark.homes["B-2"], "book:Reveal", dark.hidden("B-2", "bid", 500_000, 1000)
    )
    assert dark.step("book:EndReveal")["forfeits"] is True
    assert dark.step("book:EndReveal")["forfeits"] is True
    assert dark.world.state.commit(late.results) == [11]
    with pytest.raises(Conflict, match="has ended"):
        dark.reveal("B-2", "bid", 500_000, 1000)
    assert dark.step("book:Forfeit")["orders"] == "1"
    assert dark.step("book:Forfeit")["orders"] == "0"
    assert dark.world.money()["GRID-AURORA"] == 5_000
    assert dark.held("B-2") == 0
    while due := dark.world.evaluate(OPERATOR, "book:Due"):
        for chore in due:
            dark.world.submit(OPERATOR, chore["function"], frozen=True, **chore["argument"])
    listed = dark.world.evaluate(dark.homes["B-1"], "book:Orders", connection_id="B-1")
    assert listed["orders"][0]["local_wh"] == "1000"
    assert sum(dark.world.money().values()) == 0


def test_nobody_loses_where_there_was_no_time_to_reveal(dark: Dark) -> None:
    dark.seal("B-1", "bid", 100_000, 1000)
    dark.world.now = INTERVAL - 300
    dark.step("book:Close")
    dark.world.now = INTERVAL
    dark.gate()
    assert dark.step("book:EndReveal")["forfeits"] is False
    assert dark.step("book:Forfeit") == {
        "product": "DARK",
        "interval_start": str(INTERVAL),
        "orders": "1",
        "forfeited": False,
    }
    assert dark.held("B-1") == 0
    assert "GRID-AURORA" not in dark.world.money()


def test_no_clock_shortens_the_time_for_revealing(dark: Dark) -> None:
    """Neither who closes the book late and says it was early, nor who ends revealing early."""
    dark.seal("B-1", "bid", 100_000, 1000)
    closing = INTERVAL - 3600
    dark.world.now = closing + 1000  # it is later than the close will say
    dark.gate()
    honest = dark.world.now
    dark.world.now = closing
    closed = dark.step("book:Close")
    assert closed["closed_at"] == str(closing)
    assert closed["reveal_until"] == str(closing + 1200 + 600 + SKEW_S)
    for clock in (closing + 600, closing + 1200 + 600 + SKEW_S, INTERVAL - 1):
        dark.world.now = clock  # a clock that goes ahead
        with pytest.raises(Conflict, match="may be revealed until"):
            dark.step("book:EndReveal")
        functions = [one["function"] for one in dark.world.evaluate(OPERATOR, "book:Due")]
        assert "book:EndReveal" not in functions
    dark.world.now = honest
    dark.reveal("B-1", "bid", 100_000, 1000)
    dark.world.now = closing + 1200 + 600 + SKEW_S
    dark.gate()
    (due,) = dark.world.evaluate(OPERATOR, "book:Due")
    assert due["function"] == "book:EndReveal"
    assert dark.step("book:EndReveal")["forfeits"] is True


def test_without_gates_the_clock_counts() -> None:
    dark = Dark(energy_world(replay={"origin": NOON, "anchor": NOON, "rate": 61}))
    dark.add("B-1")
    dark.seal("B-1", "bid", 100_000, 1000)
    dark.world.now = NOON + (INTERVAL - 3600 - NOON) // 61 + 1
    assert int(dark.step("book:Close")["reveal_until"]) < INTERVAL - 2900
    dark.world.now += 10
    assert dark.step("book:EndReveal")["forfeits"] is True


def test_taking_a_sealed_order_back(dark: Dark) -> None:
    dark.seal("B-1", "bid", 100_000, 1000)
    for ended in (True, False):
        found = dark.call("B-1", "book:Unseal", order_id="o-1", product="DARK")
        assert found["ended"] is ended
    assert dark.held("B-1") == 0


def test_what_is_refused(dark: Dark) -> None:
    dark.seal("B-1", "bid", 100_500, 1000)
    with pytest.raises(Conflict, match="is another sealed order"):
        dark.call("B-1", "book:Seal", order_id="o-1", product="DARK", commitment="0" * 64)
    with pytest.raises(Conflict, match="has open books; book:Place"):
        dark.call("B-1", "book:Seal", order_id="o-2", product="ANY", commitment="0" * 64)
    for commitment in ("0" * 63, "G" * 64, 1, None):
        with pytest.raises(InvalidArgument, match="commitment"):
            dark.call("B-1", "book:Seal", order_id="o-2", product="DARK", commitment=commitment)
    with pytest.raises(Forbidden, match="its home alone"):
        dark.world.submit(
            dark.homes["S-1"], "book:Seal", connection_id="B-1", interval_start=INTERVAL,
            order_id="o-2", product="DARK", commitment="0" * 64,
        )  # fmt: skip
    dark.add("POOR", money=100)
    with pytest.raises(Conflict, match="5000 are needed"):
        dark.seal("POOR", "bid", 1000, 1)
    dark.world.now = INTERVAL - 3600
    dark.step("book:Close")
    with pytest.raises(InvalidArgument, match="must be a multiple of 1000"):
        dark.reveal("B-1", "bid", 100_500, 1000)  # so sealed, so lost
    with pytest.raises(NotFound, match="has no sealed order o-7"):
        dark.reveal("B-1", "bid", 100_000, 1000, order_id="o-7")
    for function in ("book:EndReveal", "book:Forfeit"):
        with pytest.raises(Forbidden, match="operators of any utility"):
            dark.world.submit(dark.homes["B-1"], function, product="DARK", interval_start=INTERVAL)
    with pytest.raises(Conflict, match="may still be revealed"):
        dark.step("book:Forfeit")
    dark.run("book:Close")
    with pytest.raises(Conflict, match="nothing is revealed"):
        dark.run("book:EndReveal")
    for change, said in (
        ({"reveal_s": 0}, "belong together"),
        ({"reveal_s": 3600}, "must be less than gate_closure_s"),
        ({"reveal_s": 2400}, "with 1200 s for what clocks may be off"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            dark.world.submit(
                OPERATOR,
                "book:ProposeProduct",
                terms={**DARK, **change},
                effective_from=NOON + 20 * 86_400,
            )
