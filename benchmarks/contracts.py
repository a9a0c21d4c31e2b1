"""What the energy contracts cost: readings, a book of 100,000 orders, bytes for each home.

One peer's work, without a network: contracts run through the simulator on a ledger on disk, the
envelopes are signed and endorsed as on a network, and committed in blocks with every signature
checked. Readings carry their meters' signatures, which the contract checks.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import batched
from pathlib import Path
from typing import Any

from benchmarks.usage import cpu_s
from consortium import contracts
from consortium.chaincode.api import canonical_json, verify_p256
from consortium.chaincode.executor import Executor, InProcessExecutor, Invocation
from consortium.chaincode.worker import ContractCode, WorkerExecutor, WorkerSettings
from consortium.contracts.common.clock import DAY_S
from consortium.contracts.market.auction import ZoneBook, clear_zones, histogram
from consortium.contracts.market.continuous import ContinuousBook, Order
from consortium.contracts.market.orders import Order as StoredOrder
from consortium.contracts.market.orders import hold_for, order_key, place_key
from consortium.contracts.meters.meters import Meter
from consortium.contracts.registry.registry import Connection
from consortium.contracts.settlement.days import (
    MAX_CONNECTIONS,
    ConnectionDay,
    DayInputs,
    DayTerms,
    MeteredInterval,
    compute,
)
from consortium.contracts.settlement.firm import FirmTrade
from consortium.contracts.settlement.settle import MARKET
from consortium.ledger.state import StateView
from gridledger_client import MeterKey, Reading, SignedReading, generate_key_pem
from gridledger_client.readings import BATCH_LIMIT, batch_transient
from tests.consortium.chaincode.proposals import Member, invocation
from tests.consortium.contracts.ledger_world import Endorsed, LedgerWorld
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    NOON,
    OPERATOR,
    TestMeter,
    batch,
    home,
)
from tests.consortium.ledger.channel import CHANNEL_ID

INTERVAL = NOON + 4 * 3600
READINGS_OF_METER = 10
ENDORSED_AT_ONCE = 4
ENDORSED_WAITING = 32
"""Transactions that wait for the next block."""
BLOCK_BYTES = 2 * 1024 * 1024
"""What orderers put into one block by default."""
PRODUCT: dict[str, Any] = {
    "product": "ANY",
    "zones": [{"zone": "NORTH", "local_fee": 10_000, "entry_fee": 15_000, "exit_fee": 5_000}],
    "price_min": 0,
    "price_max": 1_000_000,
    "price_tick": 100,
    "price_rule": "middle",
    "gate_closure_s": 3600,
    "shortfall_margin": 50_000,
}


@dataclass(frozen=True)
class Spent:
    """What some work took; CPU time is what a quiet machine would take, or less with threads."""

    wall_s: float
    cpu_s: float

    @classmethod
    def by(cls, work: Callable[[], object]) -> Spent:
        """Do it and look at both clocks."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return cls(time.perf_counter() - wall, time.process_time() - cpu)

    @classmethod
    def of_all(cls, parts: Sequence[Spent]) -> Spent:
        """All of them together."""
        return cls(sum(one.wall_s for one in parts), sum(one.cpu_s for one in parts))

    def each(self, count: int) -> float:
        """CPU time for one of `count`, in µs."""
        return 1e6 * self.cpu_s / count


@contextmanager
def _world(*, durable: bool = False) -> Iterator[LedgerWorld]:
    with tempfile.TemporaryDirectory(prefix="gridledger-bench-") as folder:
        world = LedgerWorld(Path(folder), NOON, durable=durable)
        try:
            for contract in ("registry", "metering"):
                world.submit(ADMIN, f"{contract}:Configure")
            world.submit(OPERATOR, "book:ProposeProduct", terms=PRODUCT, effective_from=NOON + 900)
            world.submit(BOREAL_OPERATOR, "book:ApproveProduct", product="ANY", version=1)
            yield world
        finally:
            world.close()


# Readings


@dataclass(frozen=True)
class Readings:
    """Of batches of one size."""

    batch: int
    together: int
    """How many each signature of a meter is for."""
    readings: int
    endorsing: Spent
    """By one peer: meters' signatures checked, values compared, sets made."""
    waiting: Spent
    """By the same peer: what is private laid aside until the block comes."""
    committing: Spent
    """By one peer, every signature of the transactions checked."""
    block_bytes_per_reading: float
    signature_us: float
    """Of checking one signature, meanwhile: what figures of a busy machine compare with."""


def _batches(
    world: LedgerWorld, name: str, size: int, together: int, count: int
) -> list[dict[str, bytes]]:
    """Batches of `size` readings that are in time, ten of each meter, which was read before."""
    per_meter = min(size, READINGS_OF_METER)
    world.now = NOON
    meters = [f"M-{name}-{number:05d}" for number in range(-(-count // per_meter))]
    key = MeterKey(generate_key_pem(), secrets.token_bytes(32))
    records = {
        f"meter/{name}": canonical_json(
            Meter(name, f"CP-{name}", "AuroraMSP", "accredited", key.public_key_pem, 100_000)
        )
        for name in meters
    }
    world.write(records, "metering")
    first = NOON - per_meter * 900
    before = [
        key.sign(Reading(name, first - 900, 900, 100, 0, 900, 0), CHANNEL_ID) for name in meters
    ]
    for some in batched(before, BATCH_LIMIT, strict=False):
        with world.view() as view:
            world.commit([_endorse(world, view, batch_transient(some))])
    signed: list[SignedReading] = []
    for name in meters:
        day = [
            Reading(name, first + 900 * at, 900, 100, 0, 1000 + 100 * at, 0)
            for at in range(per_meter)
        ]
        signed += (
            [key.sign(one, CHANNEL_ID) for one in day]
            if together == 1
            else key.sign_together(day, CHANNEL_ID, together)
        )
    return [batch_transient(some) for some in batched(signed[:count], size, strict=False)]


def _endorse(world: LedgerWorld, view: StateView, transient: dict[str, bytes]) -> Endorsed:
    return world.simulate(
        view, OPERATOR, "metering:SubmitReadings", {"utility": "AuroraMSP"}, transient
    )


def readings(world: LedgerWorld, size: int, together: int, count: int) -> Readings:
    """Endorse and commit `count` readings in batches of `size`, one after the other."""
    batches = _batches(world, f"{size}-{together}", size, together, count)
    endorsed: list[Endorsed] = []

    def endorse(transient: dict[str, bytes]) -> Endorsed:
        with world.view() as view:
            return _endorse(world, view, transient)

    def endorse_all() -> None:
        # Two threads, as a peer's executor has: checking signatures releases the interpreter.
        with ThreadPoolExecutor(2) as pool:
            endorsed.extend(pool.map(endorse, batches))

    before = signature_us()
    endorsing = Spent.by(endorse_all)
    between = signature_us()
    assert all(int(one.value["accepted"]) for one in endorsed), endorsed[0].value
    envelopes: list[bytes] = []

    def lay_aside() -> None:
        envelopes.extend(world.envelope(one) for one in endorsed)

    waiting = Spent.by(lay_aside)
    blocks = [envelopes[at : at + 100] for at in range(0, len(envelopes), 100)]

    def commit() -> None:
        for block in blocks:
            codes = world.channel.commit(world.ledger, *block).codes
            assert codes == bytes(len(block))

    committing = Spent.by(commit)
    written = sum(map(len, envelopes)) / count
    checking = (before + between + signature_us()) / 3
    return Readings(size, together, count, endorsing, waiting, committing, written, checking)


@dataclass(frozen=True)
class Beside:
    """Batches endorsed and committed at the same time, as a peer does: what counts is wall time."""

    workers: int
    """Processes that the contract ran in beside the peer's; 0: in the peer's own."""
    batch: int
    together: int
    readings: int
    wall_s: float
    """From the first proposal to the last commit."""
    peer_cpu_s: float
    workers_cpu_s: float
    blocks: int


async def beside(world: LedgerWorld, workers: int, size: int, together: int, count: int) -> Beside:
    """Endorse `count` readings in batches and commit them in blocks meanwhile.

    A block holds what was endorsed while the one before was committed, and at most what orderers
    put into one.
    """
    name = f"{workers}-{size}-{together}"
    operator = Member("operator", role="operator")
    calls = [
        invocation(
            operator,
            "metering",
            "metering:SubmitReadings",
            {"utility": "AuroraMSP"},
            transient,
            world.now,
        )
        for transient in _batches(world, name, size, together, count)
    ]
    executor: Executor
    if workers:
        code = ContractCode(Path(contracts.__file__).parent, "metering")
        executor = WorkerExecutor("metering", code, WorkerSettings(workers=workers))
    else:
        executor = InProcessExecutor(contracts.chaincodes())
    waiting = iter(calls)
    endorsed: list[bytes] = []
    news = asyncio.Condition()
    under_way = ENDORSED_AT_ONCE
    blocks = 0

    async def endorse() -> None:
        nonlocal under_way
        for call in waiting:
            one = await _through(world, executor, call)
            envelope = await asyncio.to_thread(world.envelope, one)
            async with news:
                await news.wait_for(lambda: len(endorsed) < ENDORSED_WAITING)
                endorsed.append(envelope)
                news.notify_all()
        async with news:
            under_way -= 1
            news.notify_all()

    async def commit() -> None:
        nonlocal blocks
        while True:
            async with news:
                await news.wait_for(lambda: endorsed or not under_way)
                if not endorsed:
                    return
                block, taken = [endorsed.pop(0)], 0
                while endorsed and (taken := taken + len(block[-1])) < BLOCK_BYTES:
                    block.append(endorsed.pop(0))
                news.notify_all()
            done = await asyncio.to_thread(world.channel.commit, world.ledger, *block)
            assert done.codes == bytes(len(block))
            blocks += 1

    try:
        # Of no effect, but that the workers have started and loaded the contract.
        await asyncio.gather(*(_through(world, executor, one) for one in calls[: workers or 1]))
        wall, own, others = time.perf_counter(), time.process_time(), _children_cpu_s()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(commit())
            for _ in range(ENDORSED_AT_ONCE):
                tasks.create_task(endorse())
        return Beside(
            workers,
            size,
            together,
            count,
            time.perf_counter() - wall,
            time.process_time() - own,
            _children_cpu_s() - others,
            blocks,
        )
    finally:
        if isinstance(executor, WorkerExecutor):
            await executor.close()
        else:
            executor.close()


async def _through(world: LedgerWorld, executor: Executor, call: Invocation) -> Endorsed:
    """One transaction through an executor, as a peer's endorser has it run."""
    with world.view() as view:
        simulator = world.simulator(view)
        response, _ = await executor.invoke(call, simulator)
        assert response.status == 200, response.message
        results = simulator.results()
    return Endorsed(call.chaincode, results.rwset, json.loads(response.payload), results.private)


def _children_cpu_s() -> float:
    """CPU time of the processes that this one started, as far as they run."""
    return sum(
        cpu_s(int(child))
        for task in Path("/proc/self/task").iterdir()
        for child in (task / "children").read_text().split()
    )


def signature_us() -> float:
    """CPU time of checking one signature here and now: what other figures compare with."""
    meter = TestMeter()
    reading = meter.reading(NOON)
    message = json.dumps(reading, sort_keys=True).encode()
    signature = meter.sign({"text": message.decode()})["signature"]
    checks = [
        Spent.by(lambda: [verify_p256(meter.public_key, signature, message) for _ in range(200)])
        for _ in range(5)
    ]
    return min(one.each(200) for one in checks)


# A large book


def _book(count: int) -> list[tuple[str, int, int]]:
    chance = random.Random(count)  # noqa: S311 - the same book each time
    return [
        (
            "bid" if number % 2 else "offer",
            100 * chance.randrange(500, 1500),
            chance.randrange(10, 400),
        )
        for number in range(count)
    ]


@dataclass(frozen=True)
class Matching:
    """100,000 orders matched in memory."""

    orders: int
    call_auction: Spent
    """Histogram, price and volume."""
    fills: Spent
    """Each order's share."""
    continuous: Spent
    """One by one, each as it comes."""


def matching(count: int) -> Matching:
    """Match a book in plain Python."""
    book = _book(count)

    def clear() -> Any:
        bids = histogram((price, wh) for side, price, wh in book if side == "bid")
        offers = histogram((price, wh) for side, price, wh in book if side == "offer")
        return clear_zones({"NORTH": ZoneBook(bids, offers, 0, 0, 0)})

    auction = min((Spent.by(clear) for _ in range(3)), key=lambda one: one.cpu_s)
    outcome = clear()

    def fill() -> None:
        before: dict[tuple[str, int], int] = {}
        for side, price, wh in book:
            running = before.get((side, price), 0)
            outcome.fill("NORTH", side, price, wh, running)
            before[side, price] = running + wh

    flow = ContinuousBook({("NORTH", "NORTH"): 0})
    orders = [
        Order(str(number), "bid" if side == "bid" else "offer", str(number), "NORTH", price, wh,
              number)
        for number, (side, price, wh) in enumerate(book)
    ]  # fmt: skip

    def enter() -> None:
        for order in orders:
            flow.enter(order)

    return Matching(count, auction, Spent.by(fill), Spent.by(enter))


@dataclass(frozen=True)
class Cleared:
    """The same book cleared on the ledger."""

    orders: int
    transactions: int
    bytes: int
    largest_bytes: int
    endorsing: Spent
    """By one peer, all of it."""
    slowest: Spent
    committing: Spent
    by_function: dict[str, tuple[int, float, int]]
    """Calls, CPU seconds of endorsing in all, bytes of the largest."""


def cleared(world: LedgerWorld, count: int) -> Cleared:
    """Put orders into the state and run the auction, as the agents do."""
    values: dict[str, bytes] = {}
    for number, (side, price, wh) in enumerate(_book(count)):
        name = f"CP-{number:06d}"
        micro = -(-wh * (price if side == "bid" else 50_000) // 1000)
        order = StoredOrder(
            "o", name, "NORTH", "ANY", INTERVAL, side, price, wh, micro, "open", "0" * 64
        )
        values[order_key(name, INTERVAL, "o")] = canonical_json(order)
        values[place_key(order)] = canonical_json({"energy_wh": wh})
        hold = hold_for(name, INTERVAL, "o", micro)
        values[f"acct/{name}/hold/{hold.hold_id}"] = canonical_json(hold)
        if len(values) >= 9_000:
            world.write(values)
            values.clear()
    if values:
        world.write(values)
    world.now = INTERVAL - 3600
    spent: dict[str, list[tuple[Spent, int]]] = {}
    committing: list[Spent] = []
    while due := world.evaluate(OPERATOR, "book:Due"):
        for step in due:
            endorsed: list[Endorsed] = []

            def endorse(step: Any = step, into: list[Endorsed] = endorsed) -> None:
                with world.view() as view:
                    into.append(world.simulate(view, OPERATOR, step["function"], step["argument"]))

            taken = Spent.by(endorse)
            envelope = world.envelope(endorsed[0])
            spent.setdefault(step["function"], []).append((taken, len(envelope)))

            def commit(envelope: bytes = envelope) -> None:
                assert world.channel.commit(world.ledger, envelope).codes == b"\0"

            committing.append(Spent.by(commit))
    every = [one for calls in spent.values() for one in calls]
    return Cleared(
        count,
        len(every),
        sum(size for _, size in every),
        max(size for _, size in every),
        Spent.of_all([one for one, _ in every]),
        max((one for one, _ in every), key=lambda one: one.cpu_s),
        Spent.of_all(committing),
        {
            function: (
                len(calls),
                sum(one.cpu_s for one, _ in calls),
                max(size for _, size in calls),
            )
            for function, calls in spent.items()
        },
    )


# A day's settlement


@dataclass(frozen=True)
class Settled:
    """Days of participants, four trades each, computed from their intervals."""

    participants: int
    computing: Spent
    private_bytes: int
    """Of all rows, as their utility keeps them."""


def settled(count: int) -> Settled:
    """Settle a day of `count` participants in groups, as one call of daybook:Commit does each."""
    chance = random.Random(count)  # noqa: S311 - the same day each time
    terms = DayTerms(
        supplier="AuroraMSP",
        region=None,
        tariff=250_000,
        base_rate=60_000,
        rest="settled",
        shortfall_price=300_000,
        surplus_price=50_000,
        import_fee=20_000,
        shared_fee=5_000,
        netting_intervals=1,
        final_after_working_days=10,
        adjustable_days=420,
    )
    start = NOON // DAY_S * DAY_S
    groups: list[tuple[DayInputs, dict[str, list[MeteredInterval]]]] = []
    for first in range(0, count, MAX_CONNECTIONS):
        names = [f"CP-{at:06d}" for at in range(first, min(count, first + MAX_CONNECTIONS))]
        connections = tuple(
            ConnectionDay(
                name,
                None,
                tuple(
                    FirmTrade(
                        start + 900 * hour,
                        chance.choice((-1, 1)) * chance.randrange(50, 500),
                        100_000,
                        0,
                        MARKET,
                        "auction",
                        f"o-{hour}",
                    )
                    for hour in (30, 40, 50, 70)
                ),
                None,
            )
            for name in names
        )
        metered = {
            name: [
                MeteredInterval(chance.randrange(300), chance.randrange(300), "measured")
                for _ in range(96)
            ]
            for name in names
        }
        inputs = DayInputs(
            "AuroraMSP", "2026-11-21", start, start + DAY_S, start + 20 * DAY_S,
            start + 430 * DAY_S, 900, 1, terms, 300_000, 50_000, "SUPPLIER-AURORA",
            "SUPPLIER-AURORA", "GRID-AURORA", connections, (),
        )  # fmt: skip
        groups.append((inputs, metered))
    size = 0

    def work() -> None:
        nonlocal size
        for inputs, metered in groups:
            size += sum(len(canonical_json(rows)) for rows in compute(inputs, metered).values())

    return Settled(count, Spent.by(work), size)


# A home's day


def bytes_of_a_day(world: LedgerWorld) -> dict[str, int]:
    """Bytes that a home's day adds to the blocks of every peer, by what it does."""
    name, caller = "CP-DAY", home("CP-DAY")
    world.now = NOON
    meter = TestMeter("M-DAY")
    register = {
        "meter_id": "M-DAY",
        "connection_id": name,
        "utility": "AuroraMSP",
        "source_class": "declared",
        "public_key": meter.public_key,
    }
    world.submit(caller, "metering:RegisterMeter", **register)
    connection = Connection(name, "AuroraMSP", "NORTH", 10_000, 20_000)
    world.write(
        {
            f"connection/{name}": canonical_json(connection),
            f"acct/{name}/avail/0": canonical_json({"amount_micro": 10**9}),
        }
    )
    at = {"connection_id": name, "interval_start": INTERVAL + 900, "order_id": "o"}
    order = {
        **at, "product": "ANY", "side": "bid", "price_micro_per_kwh": 100_000, "energy_wh": 100,
    }  # fmt: skip
    found: dict[str, int] = {}
    with world.view() as view:
        for what, function, argument, transient in (
            (
                "a day's 96 readings in one batch",
                "metering:SubmitReadings",
                {"utility": "AuroraMSP"},
                batch(*meter.day(NOON - 96 * 900)),
            ),
            ("an order", "book:Place", order, None),
            (
                "a payment",
                "wallet:Pay",
                {"account": name, "payee": "GRID-AURORA", "amount_micro": 1, "request_id": "p"},
                None,
            ),
        ):
            endorsed = world.simulate(view, caller, function, argument, transient)
            found[what] = len(world.envelope(endorsed))
    return found


def run(count: int, orders: int, participants: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Measure everything."""

    def told(what: str) -> None:
        print(what, file=sys.stderr)

    told(f"matching {orders} orders in memory")
    found: dict[str, Any] = {
        "signature_us": signature_us(),
        "matching": asdict(matching(orders)),
        "readings": [],
    }
    told(f"settling a day of {participants} participants")
    found["settled"] = asdict(settled(participants))
    with _world() as world:
        for size in sizes:
            told(f"readings in batches of {size}")
            for together in dict.fromkeys((1, min(size, READINGS_OF_METER))):
                some = min(count, 2_000 * size)
                found["readings"].append(asdict(readings(world, size, together, some)))
        found["bytes"] = bytes_of_a_day(world)
    found["beside"] = []
    with _world(durable=True) as world:
        for workers in (0, 1, 2):
            told(f"readings endorsed and committed at once, {workers} workers")
            size, before = max(sizes), signature_us()
            one = asyncio.run(beside(world, workers, size, min(size, READINGS_OF_METER), count))
            us = (before + signature_us()) / 2
            found["beside"].append({**asdict(one), "signature_us": us})
    with _world() as world:
        told(f"clearing {orders} orders on the ledger")
        found["cleared"] = asdict(cleared(world, orders))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="script/bench contracts", description=__doc__)
    parser.add_argument("--readings", type=int, default=20_000)
    parser.add_argument("--orders", type=int, default=100_000)
    parser.add_argument("--participants", type=int, default=10_000)
    parser.add_argument("--batches", default="1,100,1000")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    sizes = [int(one) for one in options.batches.split(",")]
    found = run(options.readings, options.orders, options.participants, sizes)
    if options.json:
        print(json.dumps({"load": load, **found}, indent=2))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load average {load:.0f} before"
    )
    alone = found["signature_us"]
    print(f"checking one signature: {alone:.0f} µs")
    print("readings, CPU for each (laying aside includes two signatures of its transaction)")
    print(
        "batch  signed  count  endorse µs  lay aside µs  commit µs  a signature µs   /s core  "
        "bytes of block"
    )
    for one in found["readings"]:
        endorsing, committing = Spent(**one["endorsing"]), Spent(**one["committing"])
        waiting, count = Spent(**one["waiting"]), one["readings"]
        each = endorsing.each(count) + committing.each(count)
        print(
            f"{one['batch']:5d} {one['together']:7d} {count:6d} {endorsing.each(count):11.0f} "
            f"{waiting.each(count):13.0f} {committing.each(count):10.0f} "
            f"{one['signature_us']:15.0f} {1e6 / each:9.0f} "
            f"{one['block_bytes_per_reading']:15.0f}"
        )
    print("readings endorsed and committed at the same time, flushed to disk; CPU for each")
    print("workers  batch  signed  count  blocks  /s (wall)  peer µs  workers µs  a signature µs")
    for one in found["beside"]:
        count = one["readings"]
        print(
            f"{one['workers']:7d} {one['batch']:6d} {one['together']:7d} {count:6d} "
            f"{one['blocks']:7d} {count / one['wall_s']:10.0f} "
            f"{1e6 * one['peer_cpu_s'] / count:8.0f} {1e6 * one['workers_cpu_s'] / count:11.0f} "
            f"{one['signature_us']:15.0f}"
        )
    alone = found["matching"]
    print(
        f"{alone['orders']} orders in memory (CPU): call auction "
        f"{alone['call_auction']['cpu_s']:.3f} s, fills {alone['fills']['cpu_s']:.2f} s, "
        f"continuous {alone['continuous']['cpu_s']:.2f} s"
    )
    ledger = found["cleared"]
    print(
        f"{ledger['orders']} orders on the ledger: {ledger['transactions']} transactions, "
        f"{ledger['bytes'] / 1e6:.1f} MB, endorsed in {ledger['endorsing']['cpu_s']:.1f} s CPU "
        f"({ledger['endorsing']['wall_s']:.1f} s), committed in "
        f"{ledger['committing']['cpu_s']:.1f} s CPU ({ledger['committing']['wall_s']:.1f} s); the "
        f"largest {ledger['largest_bytes'] / 1e6:.2f} MB, the slowest "
        f"{ledger['slowest']['cpu_s']:.2f} s CPU ({ledger['slowest']['wall_s']:.2f} s)"
    )
    for function, (calls, seconds, largest) in ledger["by_function"].items():
        print(f"  {function}: {calls} calls, {seconds:.2f} s CPU, at most {largest / 1e6:.2f} MB")
    day = found["settled"]
    print(
        f"a day of {day['participants']} participants settled in {day['computing']['cpu_s']:.1f} s "
        f"CPU, {day['private_bytes'] / day['participants']:.0f} bytes of rows for each"
    )
    for what, size in found["bytes"].items():
        print(f"{what}: {size} bytes")


if __name__ == "__main__":
    main()
