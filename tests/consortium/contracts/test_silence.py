"""Silent meters told apart, and how long it takes to see them."""

import random
from typing import Any

import pytest

from consortium.chaincode.api import ContractError, Forbidden, InvalidArgument, NotFound
from consortium.contracts.common.clock import DAY_S
from consortium.contracts.meters.silence import Fault, Watched, classify, silent_since
from consortium.wire import kvrwset_pb2, rwset_pb2
from tests.consortium.contracts.town import START, Town
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    HOME,
    NOON,
    OPERATOR,
    TestMeter,
    World,
    batch,
    writes,
)

SINCE = NOON - 6 * 900


def street(
    silent: dict[int, int], gasps: tuple[int, ...] = (), homes: int = 10, gateways: int = 2
) -> list[Watched]:
    """Homes behind one transformer, by turns behind its gateways; some silent since an instant."""
    return [
        Watched(f"M-{i}", "T-1", f"G-{i % gateways}", silent.get(i), i in gasps)
        for i in range(homes)
    ]


def kinds(faults: list[Fault]) -> list[tuple[str, str, int]]:
    return [(fault.kind, fault.name, len(fault.meters)) for fault in faults]


def test_one_meter_is_one_fault() -> None:
    assert classify(street({}), 900) == []
    assert kinds(classify(street({3: 0}), 900)) == [("single", "M-3", 1)]


def test_all_meters_of_a_gateway_are_the_gateways_fault() -> None:
    odd = dict.fromkeys(range(1, 10, 2), SINCE)
    assert kinds(classify(street(odd), 900)) == [("gateway", "G-1", 5)]
    # One of them that still gets through speaks for the gateway.
    del odd[1]
    assert [kind for kind, _, _ in kinds(classify(street(odd), 900))] == ["single"] * 4


def test_many_meters_under_one_transformer_are_its_outage() -> None:
    every = dict.fromkeys(range(10), SINCE)
    (fault,) = classify(street(every), 900)
    assert (fault.kind, fault.name, fault.since, fault.alive) == ("transformer", "T-1", SINCE, 0)
    # One or two of ten that go on may be wrongly placed, three prove power.
    assert classify(street(dict.fromkeys(range(8), SINCE)), 900)[0].kind == "transformer"
    assert all(
        f.kind != "transformer" for f in classify(street(dict.fromkeys(range(7), SINCE)), 900)
    )


def test_behind_one_gateway_last_gasps_decide() -> None:
    every = dict.fromkeys(range(10), SINCE)
    assert kinds(classify(street(every, gateways=1), 900)) == [("gateway", "G-0", 10)]
    assert kinds(classify(street(every, gasps=(4,), gateways=1), 900)) == [
        ("transformer", "T-1", 10)
    ]


def test_meters_that_fell_silent_long_before_are_no_part_of_an_outage() -> None:
    silent = {**dict.fromkeys(range(10), SINCE), 7: SINCE - 40 * 86_400}
    faults = classify(street(silent), 900)
    assert kinds(faults) == [("transformer", "T-1", 9), ("single", "M-7", 1)]
    assert faults[0].since == SINCE


def test_meters_without_a_place_are_single_faults() -> None:
    nowhere = [Watched(f"M-{i}", None, None, SINCE) for i in range(5)]
    assert [fault.kind for fault in classify(nowhere, 900)] == ["single"] * 5


def test_every_silent_meter_is_in_one_fault() -> None:
    chance = random.Random(5)
    for _ in range(300):
        meters = [
            Watched(
                f"M-{i:02d}",
                chance.choice((None, "T-1", "T-2")),
                chance.choice((None, "G-1", "G-2", "G-3")),
                chance.choice((None, SINCE, SINCE + 900, SINCE + 9000)),
                chance.random() < 0.1,
            )
            for i in range(chance.randint(0, 25))
        ]
        faults = classify(meters, 900)
        named = sorted(name for fault in faults for name in fault.meters)
        assert named == sorted(m.meter_id for m in meters if m.silent_since is not None)
        chance.shuffle(meters)
        assert classify(meters, 900) == faults


def test_a_last_gasp_is_silence_at_once() -> None:
    assert silent_since(1000, None, 4599, 3600) is None
    assert silent_since(1000, None, 4600, 3600) == 1000
    assert silent_since(1000, 1200, 1300, 3600) == 1200
    assert silent_since(1000, 900, 1300, 3600) is None  # it has been read since


@pytest.fixture
def keys() -> dict[str, TestMeter]:
    return {f"M-{i}": TestMeter(f"M-{i}") for i in range(6)}


@pytest.fixture
def world(keys: dict[str, TestMeter]) -> World:
    """Six homes: four behind T-1 through two gateways, two behind T-2."""
    world = World(now=NOON - 86_400)
    world.submit(ADMIN, "metering:Configure")
    world.submit(ADMIN, "registry:Configure")
    for name in ("T-1", "T-2"):
        world.submit(
            OPERATOR,
            "grid:RegisterTransformer",
            transformer={
                "transformer_id": name, "utility": "AuroraMSP", "zone": "NORTH",
                "rated_va": 100_000, "no_load_w": 100,
            },
        )  # fmt: skip
    for i, (name, meter) in enumerate(keys.items()):
        world.submit(
            OPERATOR, "registry:RegisterConnection", connection_id=f"CP-{i}", utility="AuroraMSP",
            zone="NORTH", max_export_w=10_000, max_import_w=20_000,
        )  # fmt: skip
        world.submit(
            OPERATOR, "metering:RegisterMeter", meter_id=name, connection_id=f"CP-{i}",
            utility="AuroraMSP", source_class="accredited", public_key=meter.public_key,
            gateway=f"G-{i % 2}", installed_at=NOON - 86_400,
        )  # fmt: skip
    for transformer, names in (("T-1", range(4)), ("T-2", (4, 5))):
        connections = [f"CP-{i}" for i in names]
        world.submit(
            OPERATOR, "grid:Connect", transformer_id=transformer, connections=connections,
            **{"from": NOON - 86_400},
        )  # fmt: skip
    world.now = NOON
    return world


def read(world: World, keys: dict[str, TestMeter], names: list[str], until: int) -> None:
    """Readings of the meters' last eight intervals before `until`."""
    readings = [
        keys[name].reading(start, 0, import_register_wh=0)
        for name in names
        for start in range(until - 7200, until, 900)
    ]
    world.submit(
        OPERATOR, "metering:SubmitReadings", utility="AuroraMSP", transient=batch(*readings)
    )


def faults(world: World) -> list[tuple[str, str, int, int]]:
    found = world.evaluate(OPERATOR, "metering:Silent", utility="AuroraMSP")
    return [
        (one["kind"], one["name"], int(one["silent_s"]), int(one["last_gasps"]))
        for one in found["faults"]
    ]


def test_silence_is_seen_after_its_deadline(world: World, keys: dict[str, TestMeter]) -> None:
    read(world, keys, list(keys), NOON)
    assert faults(world) == []
    world.now = NOON + 3600
    read(world, keys, ["M-1", "M-4", "M-5"], NOON + 3600)
    world.now = NOON + 3600 - 1
    assert faults(world) == []
    world.now = NOON + 3600
    assert faults(world) == [(
        "single", "M-0", 3600, 0), ("single", "M-2", 3600, 0), ("single", "M-3", 3600, 0)
    ]  # fmt: skip
    found = world.evaluate(OPERATOR, "metering:Silent", utility="AuroraMSP")
    assert (found["meters"], found["deadline_intervals"]) == ("6", "4")
    for caller in (HOME, BOREAL_OPERATOR):
        with pytest.raises(Forbidden, match="look after meters of AuroraMSP"):
            world.evaluate(caller, "metering:Silent", utility="AuroraMSP")


def test_a_transformers_outage_is_seen_reported_and_ended(
    world: World, keys: dict[str, TestMeter]
) -> None:
    read(world, keys, list(keys), NOON)
    world.now = NOON + 4500
    read(world, keys, ["M-4", "M-5"], NOON + 4500)
    assert faults(world) == [("transformer", "T-1", 4500, 0)]
    report = {
        "utility": "AuroraMSP", "kind": "transformer", "name": "T-1", "since": NOON,
        "meters": ["M-0", "M-1", "M-2", "M-3"],
    }  # fmt: skip
    before = world.state.values()
    for change, error, sentence in (
        ({"meters": ["M-0", "M-4"]}, ContractError, "M-4 has a reading of the interval starting"),
        ({"name": "T-2"}, ContractError, "M-0 was not behind transformer T-2"),
        ({"kind": "gateway", "name": "G-0"}, ContractError, "M-1 was not behind gateway G-0"),
        ({"since": NOON - 900}, ContractError, "so it wasn't silent since"),
        ({"since": NOON + 4500}, ContractError, "no whole interval has passed"),
        ({"meters": ["M-0"]}, InvalidArgument, "meters must name two at least"),
        ({"meters": ["M-1", "M-0"]}, InvalidArgument, "in order"),
        ({"meters": ["M-0", "M-404"]}, NotFound, "M-404 is not registered"),
        ({"meters": ["M-0", "M/1"]}, InvalidArgument, r"meters\[1\]"),
        ({"kind": "single"}, InvalidArgument, "kind"),
    ):
        with pytest.raises(error, match=sentence):
            world.submit(OPERATOR, "metering:ReportOutage", **{**report, **change})
    with pytest.raises(Forbidden):
        world.submit(BOREAL_OPERATOR, "metering:ReportOutage", **report)
    assert world.state.values() == before

    answer = world.simulate(OPERATOR, "metering:ReportOutage", report)
    assert (answer.value["delay_s"], answer.value["ended_at"]) == ("4500", None)
    assert answer.event is not None
    assert answer.event[1]["meters"] == "4"
    world.state.commit(answer.results)
    assert not writes(world.simulate(OPERATOR, "metering:ReportOutage", report).results)
    ending: dict[str, Any] = {name: report[name] for name in ("utility", "kind", "name", "since")}
    for at in (NOON, NOON + 4501):
        with pytest.raises(ContractError, match="an outage ends once"):
            world.submit(OPERATOR, "metering:EndOutage", **ending, at=at)
    with pytest.raises(NotFound):
        world.submit(OPERATOR, "metering:EndOutage", **{**ending, "name": "T-2"}, at=NOON + 60)
    world.submit(OPERATOR, "metering:EndOutage", **ending, at=NOON + 4200)
    (known,) = world.evaluate(HOME, "metering:Outages", utility="AuroraMSP")["outages"]
    assert known["ended_at"] == str(NOON + 4200)


def test_last_gasps_cut_the_detection_delay(world: World, keys: dict[str, TestMeter]) -> None:
    read(world, keys, list(keys), NOON)
    gasp_at = NOON + 100
    world.now = gasp_at + 5

    def gasp(name: str) -> dict[str, Any]:
        return keys[name].sign(
            {
                "meter_id": name,
                "read_at": str(gasp_at),
                "version": "1",
                "import_register_wh": "0",
                "export_register_wh": "0",
                "quality": "measured",
                "salt": "7" * 64,
                "last_gasp": True,  # type: ignore[dict-item]
            }
        )

    gasps = [gasp(f"M-{i}") for i in range(4)]
    world.submit(OPERATOR, "metering:SubmitReadings", utility="AuroraMSP", transient=batch(*gasps))
    assert faults(world) == [("transformer", "T-1", 5, 4)]
    # Power is back, and so are the readings.
    world.now = NOON + 1800
    read(world, keys, list(keys), NOON + 1800)
    assert faults(world) == []


def test_removed_and_never_read_meters(world: World, keys: dict[str, TestMeter]) -> None:
    read(world, keys, list(keys)[:5], NOON)
    assert faults(world) == [("single", "M-5", 86_400, 0)]
    world.submit(OPERATOR, "metering:RemoveMeter", meter_id="M-5", at=NOON)
    assert faults(world) == []


def test_detection_delay_over_a_month_of_outages() -> None:
    """Published: quarter hours, four of them as deadline, a look every quarter hour."""
    chance = random.Random(30)
    delays = []
    for _ in range(1000):
        began = chance.randrange(0, 30 * 86_400)
        last_end = began // 900 * 900
        look = chance.randrange(900)
        now = next(
            now
            for now in range(look, 31 * 86_400, 900)
            if now >= began and silent_since(last_end, None, now, 3600) is not None
        )
        delays.append(now - began)
    assert min(delays) >= 2700
    assert max(delays) < 4500


@pytest.mark.parametrize("last", [None, 0, 95])
def test_an_outage_of_all_meters_is_found_by_ranges(last: int | None) -> None:
    """Single keys for each silent interval are more than a query may read for 20,000 meters."""
    town = Town.of("CP-1", "CP-2")
    for name in town.homes if last is not None else ():
        town.read(name, last or 0)
    town.world.now = START + DAY_S + 4 * 3600
    answer = town.world.simulate(OPERATOR, "metering:Silent", {"utility": "AuroraMSP"})
    sets = rwset_pb2.TxReadWriteSet.FromString(answer.results.rwset).ns_rwset
    assert not any(
        kvrwset_pb2.HashedRWSet.FromString(private.hashed_rwset).hashed_reads
        for one in sets
        for private in one.collection_hashed_rwset
    )
    since = 0 if last is None else START + (last + 1) * 900
    assert {int(fault["since"]) for fault in answer.value["faults"]} == {since}
