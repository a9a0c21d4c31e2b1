"""What settlement keeps to, whatever is called, and in whatever order readings come."""

import functools
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consortium.chaincode.api import ContractError, NotFound
from consortium.contracts.common.clock import DAY_S
from tests.consortium.contracts.sequences import in_time, sequences
from tests.consortium.contracts.town import DAY, START, Town, final_time
from tests.consortium.contracts.world import OPERATOR, SUPPLIER, TestMeter

HOMES = ("CP-1", "CP-2", "CP-3")
HOUR_S = 3600
RUNS = ("provisional", "final", *(f"adjustment-{number}" for number in range(1, 10)))


@functools.cache
def _fresh() -> Town:
    """Three homes in hours, with little money, all read on the day before."""
    town = Town.of(*HOMES, product=True, interval_s=HOUR_S, deposit=300_000)
    town.found_community("C", 123_457)
    town.world.submit(
        SUPPLIER,
        "market:PublishRate",
        supplier="AuroraMSP",
        day=DAY,
        kind="buy",
        price_micro_per_kwh=81_001,
    )
    for name in HOMES:
        town.read_intervals(name, dict.fromkeys(range(24), (333, 77)), "2026-11-21")
    town.world.now = START - 15 * HOUR_S
    for name in HOMES[:2]:
        town.world.submit(
            town.homes[name], "sharing:Join", community="C", connection_id=name, from_day=DAY
        )
    town.world.now = START - 2 * HOUR_S
    return town


def check(town: Town) -> None:
    """Postings sum to zero (case `zero_sum`), and each lot adds up."""
    assert sum(town.world.money().values()) == 0
    exported: dict[str, int] = {}
    for (namespace, key), stored in town.world.state.public.items():
        if namespace != "energy":
            continue
        if key.startswith("tok/"):
            lot = json.loads(stored.value)
            held = sum(int(one["energy_wh"]) for one in lot["holdings"])
            retired = sum(int(one["retired_wh"]) for one in lot["holdings"])
            minted, taken_back = int(lot["minted_wh"]), int(lot["reversed_wh"])
            assert 0 <= retired <= held
            assert minted == (held - retired) + retired + taken_back
            exported[lot["origin"]] = held
        elif key.startswith("day/"):
            summary = json.loads(stored.value)["summary"]
            exported.setdefault(summary["connection_id"], 0)
    for name, held in exported.items():
        posted = town.world.evaluate(OPERATOR, "settlement:Posted", connection_id=name, day=DAY)
        assert int(posted["summary"]["export_wh"]) == held


NAME = st.sampled_from(HOMES)
HOUR = st.integers(0, 23)
READ = st.tuples(st.just("read"), NAME, HOUR, st.integers(0, 4000), st.integers(0, 4000))
MONEY = (
    st.tuples(st.just("pay"), NAME, NAME, st.integers(1, 400_000), st.integers(1, 9)),
    st.tuples(st.just("sweep"), NAME),
)
BEFORE = st.one_of(
    st.tuples(
        st.just("order"),
        NAME,
        st.sampled_from(["bid", "offer"]),
        st.integers(-1, 3000),
        st.integers(-90_000, 300_000),
        st.integers(3, 7),
        st.integers(1, 5),
    ),
    st.tuples(
        st.just("sell"), NAME, st.integers(1, 9000), HOUR, st.integers(1, 4), st.integers(1, 3)
    ),
    st.tuples(st.just("clear"), st.integers(3, 7)),
    READ,
    *MONEY,
    st.tuples(st.just("wait"), st.just(HOUR_S)),
)
AFTER = st.one_of(
    READ,
    st.tuples(
        st.just("settle"),
        st.sampled_from([HOMES, HOMES, HOMES[:2], HOMES[2:], HOMES[:1]]),
        st.sampled_from(["next", "next", "next", "again", *RUNS[:3]]),
    ),
    st.tuples(st.just("close")),
    *MONEY,
    st.tuples(st.just("wait"), st.just(DAY_S)),
)


def next_run(town: Town, name: str) -> int:
    """Which run comes next for a home."""
    try:
        posted = town.world.evaluate(OPERATOR, "settlement:Posted", connection_id=name, day=DAY)
    except NotFound:
        return 0
    return RUNS.index(posted["run"]) + 1


def call(town: Town, step: tuple[Any, ...]) -> None:
    world = town.world
    match step:
        case "order", name, side, energy_wh, price, hour, number:
            town.order(name, side, energy_wh, price, hour, number)
        case "sell", name, energy_wh, hour, hours, request:
            start = START + hour * HOUR_S
            quote = world.evaluate(
                town.homes[name],
                "market:Quote",
                connection_id=name,
                energy_wh=energy_wh,
                window_start=start,
                window_end=start + hours * HOUR_S,
            )["quote"]
            world.submit(
                town.homes[name], "market:Authorise", request_id=f"r-{request}", quote=quote
            )
        case "clear", hour:
            town.clear(hour)
        case "read", name, hour, import_wh, export_wh:
            town.read(name, hour, import_wh, export_wh)
        case "settle", names, wanted:
            run = wanted
            if wanted in ("next", "again"):
                run = RUNS[next_run(town, names[-1]) - (wanted == "again")]
            if wanted != "again":
                town.commit(run, *names)
            town.post(run, *names)
        case ("close",):
            world.submit(OPERATOR, "settlement:CloseMarket", frozen=True, day=DAY)
        case "pay", payer, payee, amount, request:
            world.submit(
                town.homes[payer],
                "wallet:Pay",
                account=payer,
                payee=payee,
                amount_micro=amount,
                request_id=f"p-{request}",
            )
        case "sweep", name:
            town.sweep(name)
        case "wait", seconds:
            world.now += seconds
        case "until", instant:
            world.now = max(world.now, instant)


@in_time(200)
@settings(max_examples=sequences(200), deadline=None, suppress_health_check=[*HealthCheck])
@given(st.lists(BEFORE, min_size=4, max_size=25), st.lists(AFTER, min_size=4, max_size=25))
def test_money_and_tokens_add_up_after_every_call(
    before: list[tuple[Any, ...]], after: list[tuple[Any, ...]]
) -> None:
    town = _fresh().copy()
    for step in (*before, ("until", START + DAY_S), *after):
        try:
            call(town, step)
        except ContractError:
            continue
        check(town)
    for name in HOMES:
        if next_run(town, name):
            recompute(town, name)


def recompute(town: Town, name: str) -> None:
    """What was posted is what the opened rows come to, line by line, and what was paid."""
    run = RUNS[next_run(town, name) - 1]
    found = town.world.evaluate(OPERATOR, "settlement:Verify", **town.record(name, run))
    assert found["committed"], found
    assert found["holds"], found
    statement = town.world.evaluate(OPERATOR, "wallet:Statement", account=name, limit=200)
    posted = town.world.evaluate(OPERATOR, "settlement:Posted", connection_id=name, day=DAY)
    due = sum(int(x["amount_micro"]) for x in posted["summary"]["sums"] if not x["paid"])
    # What a member took from the community stands with the giver's lines.
    due += sum(
        int(one["amount_micro"]) for one in posted["summary"]["sums"] if one["kind"] == "taken"
    )
    paid = [x for x in statement["entries"] if x["reference"].startswith(f"{DAY}-")]
    assert statement["bookmark"] is None
    assert sum(int(one["amount_micro"]) for one in paid) == due


def _traded(chance: random.Random) -> Town:
    """A day on which each home has bought and sold, in books and to a supplier."""
    town = _fresh().copy()
    for number in range(1, 9):
        name, hour = chance.choice(HOMES), chance.randrange(3, 20)
        side = chance.choice(["bid", "offer"])
        try:
            town.order(name, side, chance.randint(1, 900), chance.randint(1, 200_000), hour, number)
        except ContractError:
            continue
    for hour in range(3, 20):
        town.clear(hour)
    town.world.now = START + DAY_S
    return town


@pytest.mark.parametrize("seed", range(12))
def test_late_repeated_and_corrected_readings_come_to_the_same(seed: int) -> None:
    """5 % late, 2 % twice, 1 % corrected, shuffled: balances are equal to the micro-unit."""
    chance = random.Random(seed)
    clean = _traded(chance)
    other = clean.copy()
    values = {
        (name, hour): (chance.randint(0, 3000), chance.randint(0, 3000))
        for name in HOMES
        for hour in range(24)
    }
    for (name, hour), energy in values.items():
        clean.read(name, hour, *energy)
    clean.settle("provisional")
    clean.world.now = final_time()
    clean.settle("final")

    places = list(values)
    chance.shuffle(places)
    late = chance.sample(places, 4)  # of 72: 5 %
    corrected = [place for place in chance.sample(places, 2) if place not in late]
    for name, hour in places:
        energy = values[name, hour]
        if (name, hour) in corrected:
            energy = energy[0] + 17, max(0, energy[1] - 5)
        if (name, hour) not in late:
            other.read(name, hour, *energy)
    for name, hour in chance.sample(places, 2):
        if (name, hour) not in (*late, *corrected):
            other.read(name, hour, *values[name, hour])
    other.settle("provisional")
    for name, hour in late:
        other.read(name, hour, *values[name, hour])
    other.world.now = final_time()
    other.settle("final")
    for name, hour in corrected:
        other.read(name, hour, *values[name, hour])
    before = len(_postings(other))
    other.settle("adjustment-1")
    adjustments = _postings(other)[before:]
    assert all(kind == "adjustment" for kind in adjustments)
    assert bool(adjustments) == bool(corrected)

    assert _money(other) == _money(clean)
    for name in HOMES:
        assert other.sums(name) == clean.sums(name)
    check(other)
    check(clean)


def test_signed_readings_late_repeated_and_corrected() -> None:
    """The same through metering:SubmitReadings: batches, signatures, registers and versions."""
    chance = random.Random(7)
    meters = {name: TestMeter(f"M-{name}") for name in HOMES}
    keys = {name: meter.public_key for name, meter in meters.items()}
    readings: dict[tuple[str, int], dict[str, str]] = {}
    for name, meter in meters.items():
        registers = [0, 0]
        for hour in range(24):
            energy = chance.randint(0, 3000), chance.randint(0, 3000)
            registers = [before + more for before, more in zip(registers, energy, strict=True)]
            readings[name, hour] = meter.reading(
                START + hour * HOUR_S, *energy, *registers, interval_s=str(HOUR_S)
            )

    def submit(town: Town, batch: list[dict[str, str]]) -> None:
        found = town.world.submit(
            OPERATOR,
            "metering:SubmitReadings",
            utility="AuroraMSP",
            transient={"readings": json.dumps({"readings": batch}).encode()},
        )
        assert not found["refused"], found["refused"]

    def corrected(place: tuple[str, int]) -> dict[str, str]:
        meter, again = meters[place[0]], {**readings[place], "version": "2"}
        return meter.sign({**again, "salt": "ab" * 32})

    clean = Town.of(*HOMES, interval_s=HOUR_S, keys=keys)
    clean.world.now = START + DAY_S
    other = clean.copy()
    submit(clean, list(readings.values()))
    clean.settle("provisional")
    clean.world.now = final_time()
    clean.settle("final")

    places = list(readings)
    chance.shuffle(places)
    late, wrong = places[:4], places[4]
    first = [readings[place] for place in places[5:]]
    guessed = {**readings[wrong], "import_wh": "1", "export_wh": "2", "quality": "estimated"}
    submit(other, [*first, meters[wrong[0]].sign(guessed), *first[:2]])
    other.settle("provisional")
    submit(other, [readings[place] for place in late])
    other.world.now = final_time()
    other.settle("final")
    submit(other, [corrected(wrong)])
    other.settle("adjustment-1")
    assert _money(other) == _money(clean)
    for name in HOMES:
        assert other.sums(name) == clean.sums(name)
    check(other)


def _postings(town: Town) -> list[str]:
    """Kinds of all postings, in the order in which they were made."""
    found = [
        (stored.version, json.loads(stored.value)["kind"])
        for (namespace, key), stored in town.world.state.public.items()
        if namespace == "energy" and "/post/" in key
    ]
    return [kind for _, kind in sorted(found, key=lambda one: (one[0].block, one[0].tx))]


def _money(town: Town) -> dict[str, int]:
    """Balances; an account that came to zero is as good as one that never was."""
    return {account: amount for account, amount in town.world.money().items() if amount}
