"""What holds whatever is called in whatever order."""

import json
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.chaincode.api import ContractError
from consortium.contracts.common.clock import day_of, day_start, utc_text
from consortium.contracts.common.money import amount_micro, half_even
from tests.consortium.contracts.sequences import in_time, sequences
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_SUPPLIER,
    HOME,
    NOON,
    OPERATOR,
    OTHER_HOME,
    SUPPLIER,
    TestMeter,
    World,
    batch,
    energy_world,
)

HOMES = {"CP-0001": HOME, "CP-0002": OTHER_HOME}
SUPPLIERS = {"AuroraMSP": SUPPLIER, "BorealMSP": BOREAL_SUPPLIER}
CALLS = st.one_of(
    st.tuples(st.just("deposit"), st.sampled_from([*HOMES]), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.just("rate"), st.sampled_from([*SUPPLIERS]), st.integers(-300_000, 300_000)),
    st.tuples(
        st.just("sell"),
        st.sampled_from([*HOMES]),
        st.integers(1, 9000),
        st.integers(1, 12),
        st.integers(1, 8),
        st.integers(1, 4),
    ),
    st.tuples(st.just("wait"), st.integers(0, 400)),
)


def call(world: World, step: tuple[Any, ...], kept: dict[str, Any]) -> None:
    match step:
        case "deposit", connection_id, amount, reference:
            world.submit(
                OPERATOR,
                "wallet:Deposit",
                account=connection_id,
                amount_micro=amount,
                bank_reference=f"B-{reference}",
            )
        case "rate", supplier, price:
            world.submit(
                SUPPLIERS[supplier],
                "market:PublishRate",
                supplier=supplier,
                day=day_of(world.now),
                kind="buy",
                price_micro_per_kwh=price,
            )
        case "sell", connection_id, energy_wh, start, intervals, request:
            seller = HOMES[connection_id]
            start = NOON + start * 900
            name = f"{connection_id}/{request}"
            if name not in kept:
                kept[name] = world.evaluate(
                    seller,
                    "market:Quote",
                    connection_id=connection_id,
                    energy_wh=energy_wh,
                    window_start=start,
                    window_end=start + intervals * 900,
                )["quote"]
            world.submit(seller, "market:Authorise", request_id=f"r-{request}", quote=kept[name])
        case "wait", seconds:
            world.now += seconds


@in_time(60)
@settings(max_examples=sequences(60))
@given(st.lists(CALLS, max_size=25))
def test_money_sums_to_zero_and_nothing_is_sold_twice(steps: list[tuple[Any, ...]]) -> None:
    world = energy_world()
    call(world, ("rate", "AuroraMSP", 81_234), {})
    kept: dict[str, Any] = {}
    for step in steps:
        try:
            call(world, step, kept)
        except ContractError:
            continue
        assert sum(world.money().values()) == 0
    sold: dict[tuple[str, str], int] = {}
    for connection_id, seller in HOMES.items():
        listed = world.evaluate(seller, "market:Trades", connection_id=connection_id)["trades"]
        earned = 0
        for trade in listed:
            earned += int(trade["net_micro"])
            assert int(trade["gross_micro"]) == int(trade["net_micro"]) + int(
                trade["grid_fee_micro"]
            )
            for delivery in trade["schedule"]:
                where = (connection_id, delivery["interval_start"])
                sold[where] = sold.get(where, 0) + int(delivery["energy_wh"])
            assert sum(int(d["energy_wh"]) for d in trade["schedule"]) == int(trade["energy_wh"])
        statement = world.evaluate(seller, "wallet:Statement", account=connection_id, limit=200)
        balance = int(
            world.evaluate(seller, "wallet:Balance", account=connection_id)["balance_micro"]
        )
        assert balance == sum(int(entry["amount_micro"]) for entry in statement["entries"])
        deposits = [e for e in statement["entries"] if e["kind"] == "deposit"]
        assert balance == earned + sum(int(entry["amount_micro"]) for entry in deposits)
    assert all(energy_wh <= 2500 for energy_wh in sold.values())


METER = TestMeter()


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.booleans()), min_size=1, max_size=12
    )
)
def test_a_batch_submitted_again_changes_nothing(items: list[tuple[int, int, bool]]) -> None:
    world = World()
    world.submit(ADMIN, "metering:Configure")
    world.submit(
        HOME,
        "metering:RegisterMeter",
        meter_id=METER.meter_id,
        connection_id="CP-0001",
        utility="AuroraMSP",
        source_class="declared",
        public_key=METER.public_key,
    )
    readings = [
        METER.reading(NOON - 7200 + index * 900, import_wh)
        if signed
        else {**METER.reading(NOON - 7200 + index * 900, import_wh), "salt": "0" * 64}
        for index, import_wh, signed in items
    ]

    def submit() -> Any:
        return world.submit(
            HOME,
            "metering:SubmitReadings",
            utility="AuroraMSP",
            transient=batch(*readings),
        )

    try:
        first = submit()
    except ContractError:
        assert not world.state.private
        return
    before = world.state.values()
    second = submit()
    assert world.state.values() == before
    assert second["accepted"] == "0"
    assert int(second["duplicate"]) == int(first["accepted"]) + int(first["duplicate"])
    assert len(second["refused"]) == len(first["refused"])
    stored = [json.loads(value.value) for value in world.state.private.values()]
    assert len(stored) == int(first["accepted"])


@given(st.integers(-(10**15), 10**15), st.sampled_from([1, 2, 3, 7, 1000, 3600]))
def test_rounding_is_half_to_even(numerator: int, denominator: int) -> None:
    exact = Decimal(numerator) / Decimal(denominator)
    assert half_even(numerator, denominator) == int(
        exact.quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
    )


def test_an_amount_is_rounded_once() -> None:
    halves = {500: 0, 1500: 2, 2500: 2, -500: 0, -1500: -2, 501: 1, 499: 0}
    assert {price: amount_micro(1, price) for price in halves} == halves
    assert amount_micro(8000, 81_000) == 648_000


@given(st.integers(0, 253_402_300_799))
def test_the_calendar_is_the_gregorian_one(instant: int) -> None:
    known = datetime.fromtimestamp(instant, UTC)
    assert utc_text(instant) == known.isoformat().replace("+00:00", "Z")
    start = day_start(day_of(instant))
    assert start == instant - instant % 86_400
