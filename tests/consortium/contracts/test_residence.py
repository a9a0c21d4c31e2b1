"""Who has left a home neither acts for it nor reads what came later, and keeps its own past."""

from typing import Any

import pytest

from consortium.chaincode.api import ContractError, Creator, Forbidden
from consortium.contracts.common.clock import DAY_S
from tests.consortium.contracts.town import DAY, START, Town
from tests.consortium.contracts.world import NOON, OPERATOR, TestMeter, World, home

BEFORE = "2026-11-22"
AFTER = "2026-11-23"
MOVE = START + DAY_S
"""ANN lives there on the first of the two days that are settled, BEN on the second."""


def resident(name: str | None) -> Creator:
    attributes = dict(home("CP-1").attributes)
    if name is not None:
        attributes["gridledger.resident"] = name
    return Creator("AuroraMSP", b"", f"{name}", "client", attributes)


ANN, BEN, NAMELESS = resident("ANN"), resident("BEN"), resident(None)


def moved() -> Town:
    town = Town.of("CP-1", "CP-2")
    for name, start, end in (("ANN", NOON - 900, MOVE), ("BEN", MOVE, None)):
        entry = {"connection_id": "CP-1", "resident": name, "from": start}
        town.world.submit(OPERATOR, "roles:MoveIn", **entry)
        if end is not None:
            town.world.submit(OPERATOR, "roles:MoveOut", connection_id="CP-1", at=end)
    for day in (BEFORE, AFTER):
        town.read_day({"CP-1": dict.fromkeys(range(96), (100, 0))}, day)
        town.settle(day=day)
    return town


@pytest.fixture(scope="module")
def settled() -> Town:
    return moved()


def days_of(town: Town, caller: Creator) -> list[str]:
    found = town.world.evaluate(caller, "settlement:Days", connection_id="CP-1")
    return [one["summary"]["day"] for one in found["days"]]


def test_days_are_seen_by_who_lived_there_then(settled: Town) -> None:
    assert days_of(settled, ANN) == [BEFORE]
    assert days_of(settled, BEN) == [AFTER]
    assert days_of(settled, OPERATOR) == [BEFORE, AFTER]
    with pytest.raises(Forbidden):
        days_of(settled, NAMELESS)
    with pytest.raises(Forbidden):
        days_of(settled, resident("EVE"))
    record = {"utility": "AuroraMSP", "run": "provisional", "connection_id": "CP-1"}
    for caller, own, others in ((ANN, BEFORE, AFTER), (BEN, AFTER, BEFORE)):
        of_own: tuple[tuple[str, dict[str, Any]], ...] = (
            ("settlement:Posted", {"connection_id": "CP-1", "day": own}),
            ("daybook:Record", {**record, "day": own}),
            ("daybook:Open", {**record, "day": own,
                              "interval_start": START + (own == AFTER) * DAY_S}),
            ("settlement:Net", {"connection_id": "CP-1", "from_day": own,
                                "to_day": AFTER if own == BEFORE else "2026-11-24"}),
        )  # fmt: skip
        for function, argument in of_own:
            settled.world.evaluate(caller, function, **argument)
            foreign = dict(argument)
            foreign["from_day" if "from_day" in foreign else "day"] = others
            if "to_day" in foreign:
                foreign["to_day"] = "2026-11-24"
            with pytest.raises(Forbidden, match="who lived there then may"):
                settled.world.evaluate(caller, function, **foreign)
        entries = settled.world.evaluate(caller, "wallet:Statement", account="CP-1")["entries"]
        assert all(NOON - 900 <= int(one["at"]) < MOVE for one in entries) is (caller is ANN)
    page = settled.world.evaluate(ANN, "wallet:Statement", account="CP-1", limit=1)
    assert page["bookmark"] is None


ACTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("wallet:Pay", {"account": "CP-1", "payee": "CP-2", "amount_micro": 1, "request_id": "r"}),
    ("wallet:Withdraw", {"account": "CP-1", "amount_micro": 1, "request_id": "r"}),
    ("wallet:Balance", {"account": "CP-1"}),
    ("wallet:Holds", {"account": "CP-1"}),
    ("delegation:Give", {"delegation": {
        "delegation_id": "D-1", "connection_id": "CP-1", "trader": "T-1", "acts": ["sell"],
        "until": START + 90 * DAY_S, "max_energy_wh": 1, "lowest_price": 0, "highest_price": 1}}),
    ("delegation:Given", {"connection_id": "CP-1"}),
    ("roles:RequestSwitch", {"connection_id": "CP-1", "supplier": "BorealMSP",
                             "from": START + 60 * DAY_S}),
    ("permit:Consent", {"connection_id": "CP-1", "remote_control": True}),
    ("permit:Status", {"connection_id": "CP-1"}),
    ("billing:Account", {"connection_id": "CP-1"}),
    ("billing:Pay", {"connection_id": "CP-1", "amount_micro": 1, "request_id": "r"}),
    ("sharing:Join", {"community": "C-1", "connection_id": "CP-1", "from_day": "2027-01-01"}),
    ("book:Place", {"order_id": "o", "connection_id": "CP-1", "product": "ANY",
                    "interval_start": START + 3 * DAY_S, "side": "bid",
                    "price_micro_per_kwh": 1, "energy_wh": 1}),
    ("market:Quote", {"connection_id": "CP-1", "energy_wh": 1, "window_start": START + 3 * DAY_S,
                      "window_end": START + 3 * DAY_S + 900}),
    ("settlement:UseCredits", {"connection_id": "CP-1", "day": DAY, "lots": []}),
    ("credit:Lots", {"connection_id": "CP-1"}),
    ("export:Home", {"connection_id": "CP-1"}),
    ("metering:RegisterMeter", {"meter_id": "M-9", "connection_id": "CP-1", "utility": "AuroraMSP",
                                "source_class": "declared", "public_key": TestMeter().public_key}),
)  # fmt: skip


def refusal(town: Town, caller: Creator, function: str, argument: dict[str, Any]) -> type | None:
    try:
        town.world.simulate(caller, function, argument)
    except ContractError as error:
        return type(error)
    return None


@pytest.mark.parametrize(("function", "argument"), ACTS, ids=[name for name, _ in ACTS])
def test_who_has_left_acts_no_more(settled: Town, function: str, argument: dict[str, Any]) -> None:
    state = settled.world.state.values()
    for caller in (ANN, NAMELESS, resident("EVE")):
        with pytest.raises(Forbidden):
            settled.world.simulate(caller, function, argument)
    assert refusal(settled, BEN, function, argument) is not Forbidden
    assert settled.world.state.values() == state


def test_one_resident_needs_no_name_until_somebody_else_comes() -> None:
    town = Town.of("CP-1")
    world = town.world

    def may(caller: Creator) -> bool:
        try:
            world.evaluate(caller, "wallet:Balance", account="CP-1")
        except Forbidden:
            return False
        return True

    assert may(NAMELESS)
    assert may(ANN), "nobody is entered yet"
    world.submit(OPERATOR, "roles:MoveIn", **{"connection_id": "CP-1", "resident": "ANN",
                                              "from": NOON})  # fmt: skip
    assert (may(NAMELESS), may(ANN), may(BEN)) == (True, True, False)
    world.submit(OPERATOR, "roles:MoveOut", connection_id="CP-1", at=MOVE)
    assert may(NAMELESS), "until then"
    world.now = MOVE
    assert (may(NAMELESS), may(ANN)) == (False, False)
    world.submit(OPERATOR, "roles:MoveIn", **{"connection_id": "CP-1", "resident": "BEN",
                                              "from": MOVE + 900})  # fmt: skip
    assert (may(NAMELESS), may(ANN), may(BEN)) == (False, False, False)
    world.now = MOVE + 900
    assert (may(NAMELESS), may(ANN), may(BEN)) == (False, False, True)


def test_a_transaction_in_flight_over_a_move_fails() -> None:
    """Endorsed while she still lived there, and submitted after her move was entered."""
    town = Town.of("CP-1", "CP-2")
    world: World = town.world
    world.submit(OPERATOR, "roles:MoveIn", **{"connection_id": "CP-1", "resident": "ANN",
                                              "from": NOON})  # fmt: skip
    pay = {"account": "CP-1", "payee": "CP-2", "amount_micro": 1, "request_id": "r"}
    kept = world.simulate(ANN, "wallet:Pay", pay).results
    world.submit(OPERATOR, "roles:MoveOut", connection_id="CP-1", at=MOVE)
    assert world.state.commit(kept) == [11]
