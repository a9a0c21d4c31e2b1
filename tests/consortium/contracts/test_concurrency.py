"""A thousand homes at once, in real blocks of a real ledger: nothing that they do is in the way."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consortium.chaincode.api import Creator, canonical_json
from consortium.contracts.registry.registry import Connection
from tests.consortium.contracts.ledger_world import Endorsed, LedgerWorld
from tests.consortium.contracts.test_books import INTERVAL, TERMS
from tests.consortium.contracts.test_matching import FLOW
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    NOON,
    OPERATOR,
    TestMeter,
    batch,
    home,
)

HOMES = 1_000
BLOCK = 500
SHARD_MONEY = 10**9
SHARDS = 3
ASK = {"side": "offer", "price_micro_per_kwh": 60_000}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[LedgerWorld]:
    """A channel with an auction and a continuous product."""
    world = LedgerWorld(tmp_path, NOON)
    for contract in ("registry", "metering"):
        world.submit(ADMIN, f"{contract}:Configure")
    for terms in (TERMS, FLOW):
        world.submit(OPERATOR, "book:ProposeProduct", terms=terms, effective_from=NOON + 900)
        name = terms["product"]
        world.submit(BOREAL_OPERATOR, "book:ApproveProduct", product=name, version=1)
    yield world
    world.close()


def settle_in(world: LedgerWorld, count: int) -> list[tuple[str, Creator]]:
    """Homes with a connection and money in three shards."""
    homes = [(f"CP-{number:04d}", home(f"CP-{number:04d}")) for number in range(count)]
    values: dict[str, bytes] = {}
    for name, _ in homes:
        connection = Connection(name, "AuroraMSP", "NORTH", 10_000, 20_000)
        values[f"connection/{name}"] = canonical_json(connection)
        for shard in range(SHARDS):
            values[f"acct/{name}/avail/{shard}"] = canonical_json({"amount_micro": SHARD_MONEY})
    world.write(values)
    return homes


def order(name: str, order_id: str, product: str, later: int, shard: int, **more: Any) -> Any:
    return {
        "order_id": order_id,
        "connection_id": name,
        "product": product,
        "interval_start": INTERVAL + 900 * later,
        "side": "bid",
        "price_micro_per_kwh": 100_000,
        "energy_wh": 100,
        "shard": shard,
        **more,
    }


@pytest.mark.timeout(900)
def test_a_thousand_homes_never_conflict(world: LedgerWorld) -> None:
    """Two orders, a payment out and one in, a cancellation and a batch of readings of each home.

    All of it is endorsed on one state and committed in twelve blocks in any order: pairs of the
    same two homes, orders of the same book and acts of one home stand in one block.
    """
    homes = settle_in(world, HOMES)
    meters = [TestMeter(f"M-{number:04d}") for number in range(HOMES)]
    world.write(
        {
            f"meter/{meter.meter_id}": value
            for meter, (name, caller) in zip(meters, homes, strict=True)
            for value in [meter_record(world, meter, name, caller)]
        },
        "metering",
    )
    with world.view() as view:
        first = [
            world.simulate(view, caller, "book:Place", order(name, "old", product, 8, 0))
            for name, caller in homes
            for product in [("ANY", "FLOW")[int(name[-1]) % 2]]
        ]
    for start in range(0, HOMES, BLOCK):
        assert set(world.commit(first[start : start + BLOCK]).codes) == {0}

    acts: list[Endorsed] = []
    with world.view() as view:
        for number, (name, caller) in enumerate(homes):
            # Each pays its neighbour and is paid by it: both at once, in one block perhaps.
            payee = homes[number ^ 1][0]
            payment = {
                "account": name,
                "payee": payee,
                "amount_micro": 1_000 + number,
                "request_id": "p",
                "shard": 2,
            }
            cancel = {
                "order_id": "old",
                "connection_id": name,
                "interval_start": INTERVAL + 900 * 8,
            }
            readings = batch(*meters[number].day(NOON - 4 * 900, 4))
            acts += [
                world.simulate(view, caller, "book:Place", order(name, "a", "ANY", 0, 0)),
                world.simulate(view, caller, "book:Place", order(name, "b", "FLOW", 1, 1)),
                world.simulate(view, caller, "wallet:Pay", payment),
                world.simulate(view, caller, "book:Cancel", cancel),
                world.simulate(
                    view,
                    caller,
                    "metering:SubmitReadings",
                    {"utility": "AuroraMSP"},
                    readings,
                ),
            ]
            deposit = {"account": name, "amount_micro": 500, "bank_reference": f"B-{number}"}
            acts.append(world.simulate(view, OPERATOR, "wallet:Deposit", deposit))
    random.Random(5).shuffle(acts)
    blocks = [acts[start : start + BLOCK] for start in range(0, len(acts), BLOCK)]
    assert (len(acts), len(blocks)) == (6 * HOMES, 12)
    codes = b"".join(world.commit(block).codes for block in blocks)
    assert codes == bytes(6 * HOMES)

    begun = SHARDS * SHARD_MONEY
    postings = world.money()
    assert sum(postings.values()) == 0
    kept = world.kept()
    for name, _ in homes:
        assert kept[name] - begun == postings[name]
    assert postings["CP-0000"] == 500 + 1  # it paid 1,000 and was paid 1,001
    waiting = world.evaluate(OPERATOR, "book:Inbox", product="FLOW", interval_start=INTERVAL + 900)
    assert len(waiting["entries"]) == 200


def meter_record(world: LedgerWorld, meter: TestMeter, name: str, caller: Creator) -> bytes:
    """What registering a meter would store, without a block for each."""
    argument = {
        "meter_id": meter.meter_id,
        "connection_id": name,
        "utility": "AuroraMSP",
        "source_class": "declared",
        "public_key": meter.public_key,
    }
    with world.view() as view:
        return canonical_json(
            world.simulate(view, caller, "metering:RegisterMeter", argument).value
        )


def test_orders_in_flight_over_a_close(world: LedgerWorld) -> None:
    """500 orders around a close: each is in the auction or fails with 11; no hold is left."""
    homes = settle_in(world, 500)
    world.now = INTERVAL - 3600
    with world.view() as view:
        placed = [
            world.simulate(
                view,
                caller,
                "book:Place",
                order(name, "o", "ANY", 0, 0, **(ASK if number % 2 else {})),
            )
            for number, (name, caller) in enumerate(homes)
        ]
        close = world.simulate(
            view, BOREAL_OPERATOR, "book:Close", {"product": "ANY", "interval_start": INTERVAL}
        )
    random.Random(6).shuffle(placed)
    codes = world.commit([*placed[:300], close, *placed[300:]]).codes
    assert codes == bytes(301) + bytes([11] * 200)
    while due := world.evaluate(OPERATOR, "book:Due"):
        with world.view() as view:
            # One by one: a step may need what the step before has written.
            one = world.simulate(view, OPERATOR, due[0]["function"], due[0]["argument"])
        assert world.commit([one]).codes == b"\0"
    states = [record for _, record in world.values("order/")]
    assert len(states) == 300
    assert {record["state"] for record in states} == {"cleared"}
    bought, sold = (
        sum(int(one["local_wh"]) for one in states if one["side"] == side)
        for side in ("bid", "offer")
    )
    assert bought == sold > 0
    held = {
        key: int(record["amount_micro"])
        for key, record in world.values("acct/")
        if "/hold/" in key and record["state"] == "pending"
    }
    # What is still held is what the filled orders will pay, and nothing else.
    needed = {
        f"acct/{one['connection_id']}/hold/order-{INTERVAL}-o": int(one["hold_micro"])
        for one in states
        if int(one["hold_micro"])
    }
    assert held == needed
    assert all(int(one["hold_micro"]) == 0 for one in states if int(one["local_wh"]) == 0)
