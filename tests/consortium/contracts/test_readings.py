"""What becomes of readings: versions, late ones, registers, exchange, gaps, certificates."""

import csv
import json
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from consortium.chaincode.api import (
    ContractError,
    Forbidden,
    InvalidArgument,
    NotFound,
    canonical_json,
    read_item,
)
from consortium.contracts.meters.intake import REFUSALS
from consortium.contracts.meters.readings import (
    Reading,
    RegisterReading,
    Store,
    connection_intervals,
    fields_of,
    signed_bytes,
    stored_bytes,
    transformer_sums,
)
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    CHANNEL,
    HOME,
    NOON,
    OPERATOR,
    OTHER_HOME,
    TestMeter,
    World,
    batch,
    writes,
)

ROOT = Path(__file__).resolve().parents[3]
HOUSEHOLDS = ROOT / "demo/data/ch_households_import_15min_wh.csv"
ANOMALIES = ROOT / "tests/data/metering/ch_real_anomalies.csv"
DAY = 86_400
FIRST = NOON - 8 * 900
WITNESS = TestMeter("M-WITNESS")


@pytest.fixture
def meter() -> TestMeter:
    return TestMeter()


@pytest.fixture
def world(meter: TestMeter) -> World:
    world = World()
    world.submit(ADMIN, "metering:Configure")
    enter(world, meter)
    return world


def enter(world: World, meter: TestMeter, connection_id: str = "CP-0001", **other: object) -> None:
    fields = {
        "meter_id": meter.meter_id,
        "connection_id": connection_id,
        "utility": "AuroraMSP",
        "source_class": "accredited",
        "public_key": meter.public_key,
        "max_power_w": 40_000,
        **other,
    }
    caller = HOME if fields["source_class"] == "declared" else OPERATOR
    world.submit(caller, "metering:RegisterMeter", **fields)


def submit(world: World, *readings: object, caller: Any = OPERATOR) -> Any:
    return world.submit(
        caller, "metering:SubmitReadings", utility="AuroraMSP", transient=batch(*readings)
    )


def codes(world: World, *readings: object, caller: Any = OPERATOR) -> list[str]:
    """What a batch is refused for; a good reading goes along, so that the call succeeds."""
    enter(world, WITNESS, "CP-0099")
    good = WITNESS.reading(FIRST, 0, import_register_wh=0)
    answer = world.simulate(
        caller,
        "metering:SubmitReadings",
        {"utility": "AuroraMSP"},
        transient=batch(*readings, good),
    )
    assert int(answer.value["accepted"]) >= 1
    return [refused["code"] for refused in answer.value["refused"]]


def stored(world: World, meter: TestMeter, **argument: object) -> list[dict[str, str]]:
    found: list[dict[str, str]] = world.evaluate(
        OPERATOR, "metering:Readings", meter_id=meter.meter_id,
        **{"from": 0, "to": 10**11, **argument},
    )  # fmt: skip
    return found


def corrected(meter: TestMeter, reading: dict[str, str], version: int = 2, **other: str) -> Any:
    return meter.sign({**reading, "version": str(version), "salt": f"{version:064x}", **other})


def registers(meter: TestMeter, read_at: int, register_wh: int, **other: object) -> Any:
    return meter.sign(
        {
            "meter_id": meter.meter_id,
            "read_at": str(read_at),
            "version": "1",
            "import_register_wh": str(register_wh),
            "export_register_wh": "0",
            "quality": "measured",
            "salt": f"{read_at:064x}",
            **other,  # type: ignore[dict-item]
        }
    )


@pytest.mark.parametrize("gasp", [{}, {"last_gasp": True}, {"last_gasp": False}])
def test_readings_are_canonical_json(meter: TestMeter, gasp: dict[str, Any]) -> None:
    for record, fields in (
        (Reading, meter.reading(FIRST, **gasp)),
        (RegisterReading, registers(meter, FIRST, 5, **gasp)),
    ):
        reading = read_item(record, fields)
        assert stored_bytes(reading) == canonical_json(fields)
        assert fields_of(reading) == fields
        del fields["signature"]
        for channel in (CHANNEL, 'a"channel', "é"):
            signed = canonical_json({"channel": channel, **fields})
            assert signed_bytes(canonical_json(channel).decode(), reading) == signed


# Versions


def test_a_correction_is_a_new_version_and_history_keeps_both(
    world: World, meter: TestMeter
) -> None:
    first, second, third = meter.day(FIRST, 3)
    submit(world, first, {**meter.sign({**second, "quality": "estimated"})}, third)
    answer = submit(world, corrected(meter, second))
    assert (answer["accepted"], answer["corrected"]) == ("1", "1")
    assert [reading["version"] for reading in stored(world, meter)] == ["1", "2", "1"]
    assert stored(world, meter)[1]["quality"] == "measured"
    versions = stored(world, meter, history=True)
    assert [(one["version"], one["quality"]) for one in versions] == [
        ("1", "measured"),
        ("1", "estimated"),
        ("2", "measured"),
        ("1", "measured"),
    ]
    # The same correction again changes nothing, and stays under the collection's policy.
    again = world.simulate(
        OPERATOR,
        "metering:SubmitReadings",
        {"utility": "AuroraMSP"},
        transient=batch(corrected(meter, second)),
    )
    assert again.value["duplicate"] == "1"
    assert len(writes(again.results)) == 1
    before = world.state.values()
    world.state.commit(again.results)
    assert world.state.values() == before


def test_only_the_next_version_of_something_else_is_a_correction(
    world: World, meter: TestMeter
) -> None:
    (reading,) = meter.day(FIRST, 1)
    submit(world, reading)
    other = {"import_wh": "90", "import_register_wh": "500090"}
    assert codes(
        world,
        corrected(meter, reading, 3, **other),
        corrected(meter, reading),
        meter.sign({**reading, **other}),
        corrected(meter, reading, 10, **other),
    ) == ["version", "no_change", "different", "malformed"]


def test_a_correction_of_what_is_in_the_same_batch_waits(world: World, meter: TestMeter) -> None:
    (reading,) = meter.day(FIRST, 1)
    both = (reading, corrected(meter, reading, import_wh="90", import_register_wh="500090"))
    assert codes(world, *both) == ["version"]
    assert submit(world, *both)["accepted"] == "1"
    assert submit(world, *both)["corrected"] == "1"


def test_nine_versions_are_the_limit(world: World, meter: TestMeter) -> None:
    submit(world, meter.reading(FIRST, 1, import_register_wh=1))
    for version in range(2, 10):
        number = str(version)
        changed = {"import_wh": number, "import_register_wh": number}
        submit(world, corrected(meter, meter.reading(FIRST), version, **changed))
    assert [one["import_wh"] for one in stored(world, meter)] == ["9"]


def test_corrections_fit_their_neighbours(world: World, meter: TestMeter) -> None:
    first, second, third = meter.day(FIRST, 3)
    submit(world, first, second, third)
    more = str(int(second["import_wh"]) + 50), str(int(second["import_register_wh"]) + 50)
    alone = corrected(meter, second, import_wh=more[0], import_register_wh=more[1])
    assert codes(world, alone) == ["register_sum"]
    # With the next interval corrected as well, sums and registers agree.
    following = corrected(meter, third, import_wh=str(int(third["import_wh"]) - 50))
    answer = submit(world, following, alone)
    assert (answer["corrected"], answer["refused"]) == ("2", [])


def test_an_operator_puts_a_value_in_the_place_of_a_missing_one(
    world: World, meter: TestMeter
) -> None:
    first, second, third = meter.day(FIRST, 3)
    unsigned = {**second, "quality": "substituted", "signature": ""}
    submit(world, first, third)
    assert codes(world, {**unsigned, "quality": "measured"}) == ["signature"]
    with pytest.raises(InvalidArgument, match="signature is empty: only operators"):
        submit(world, unsigned, caller=HOME)
    submit(world, unsigned)
    assert [one["quality"] for one in stored(world, meter)] == [
        "measured",
        "substituted",
        "measured",
    ]
    # What the meter finds in its memory afterwards is a correction of it.
    assert submit(world, corrected(meter, second))["corrected"] == "1"


# Deadlines


def test_late_corrected_and_adjusted_readings_are_listed_by_day(
    world: World, meter: TestMeter
) -> None:
    readings = meter.day(FIRST, 3)
    submit(world, readings[0])
    world.now = FIRST + 900 + 21_601
    late = submit(world, readings[1])
    assert (late["late"], late["after_final"]) == ("0", "0")
    world.now += 900
    assert submit(world, readings[2])["late"] == "0"
    world.now += 1
    estimate = meter.sign({**readings[0], "version": "2", "quality": "substituted"})
    assert submit(world, estimate)["corrected"] == "1"
    world.now = FIRST + 14 * DAY + 901
    adjusted = meter.sign({**readings[0], "version": "3"})
    answer = submit(world, adjusted)
    assert (answer["corrected"], answer["after_final"]) == ("1", "1")

    def arrivals(day: str) -> list[tuple[str, str]]:
        found = world.evaluate(OPERATOR, "metering:Arrivals", utility="AuroraMSP", day=day)
        return [(arrival["version"], arrival["kind"]) for arrival in found]

    assert arrivals("2026-11-21") == [("2", "correction")]
    assert arrivals("2026-12-05") == [("3", "adjustment")]
    with pytest.raises(Forbidden):
        world.evaluate(HOME, "metering:Arrivals", utility="AuroraMSP", day="2026-12-05")


def test_a_reading_that_comes_hours_later_is_late(world: World, meter: TestMeter) -> None:
    world.now = NOON + 7 * 3600
    answer = submit(world, *meter.day(FIRST, 2))
    assert (answer["accepted"], answer["late"], answer["after_final"]) == ("2", "2", "0")
    found = world.evaluate(OPERATOR, "metering:Arrivals", utility="AuroraMSP", day="2026-11-21")
    assert [arrival["kind"] for arrival in found] == ["late", "late"]


def test_fourteen_months_are_the_end(world: World, meter: TestMeter) -> None:
    readings = meter.day(FIRST, 2)
    world.now = FIRST + 900 + 425 * DAY
    assert submit(world, readings[0])["after_final"] == "1"
    world.now += 901
    witness_first = TestMeter("M-NEW")
    enter(world, witness_first, "CP-0050")
    answer = submit(world, readings[1], witness_first.reading(world.now // 900 * 900 - 900))
    assert [refused["code"] for refused in answer["refused"]] == ["too_late"]


def test_deadlines_come_in_order() -> None:
    with pytest.raises(InvalidArgument, match="must come in this order"):
        World().submit(ADMIN, "metering:Configure", late_after_s=100, final_after_s=99)


# Registers


def test_a_late_reading_fits_what_follows_it(world: World, meter: TestMeter) -> None:
    readings = meter.day(FIRST, 3)
    submit(world, readings[0], readings[2])
    world.now += DAY
    less = int(readings[1]["import_register_wh"]) - 50
    wrong = meter.reading(FIRST + 900, 51, import_register_wh=less)
    assert codes(world, wrong) == ["register_sum"]
    assert submit(world, readings[1])["late"] == "1"


def test_two_readings_under_way_at_once_are_both_valid(world: World, meter: TestMeter) -> None:
    answers = [
        world.simulate(
            OPERATOR,
            "metering:SubmitReadings",
            {"utility": "AuroraMSP"},
            transient=batch(reading),
        ).results
        for reading in meter.day(FIRST, 2)
    ]
    assert world.state.commit(answers[1]) == [0]
    assert world.state.commit(answers[0]) == [0]


def test_a_declared_rollover_is_no_step_back(world: World) -> None:
    old = TestMeter("M-ROLL")
    enter(world, old, rollover_wh=1_000_000)
    readings = [
        old.reading(FIRST, 100, import_register_wh=999_950),
        old.reading(FIRST + 900, 100, import_register_wh=50),
        old.reading(FIRST + 1800, 100, import_register_wh=150),
    ]
    assert submit(world, *readings)["accepted"] == "3"
    assert codes(world, old.reading(FIRST + 2700, 100, import_register_wh=1_000_000)) == [
        "register_width"
    ]


def test_a_register_that_runs_backwards_is_refused(world: World, meter: TestMeter) -> None:
    submit(world, meter.reading(FIRST, 100, import_register_wh=999_950))
    backwards = meter.reading(FIRST + 900, 100, import_register_wh=50)
    assert codes(world, backwards) == ["register_backwards"]
    # Over a gap, too.
    assert codes(world, meter.reading(FIRST + 2700, 1, import_register_wh=999_000)) == [
        "register_backwards"
    ]
    assert codes(world, meter.reading(FIRST + 2700, 100, import_register_wh=999_955)) == [
        "register_sum"
    ]
    assert submit(world, meter.reading(FIRST + 2700, 100, import_register_wh=1_000_600))


def test_a_refused_interval_costs_those_after_it_nothing(world: World, meter: TestMeter) -> None:
    """A counter that jumped: that interval can't be, those after it can."""
    submit(world, meter.reading(FIRST, 100, import_register_wh=1000))
    jump = meter.reading(FIRST + 900, 90_000, import_register_wh=91_000)
    after = meter.reading(FIRST + 1800, 100, import_register_wh=91_100)
    answer = submit(world, jump, after)
    assert [refused["code"] for refused in answer["refused"]] == ["over_power"]
    assert answer["accepted"] == "1"


def test_readings_of_a_batch_may_come_in_any_order(world: World, meter: TestMeter) -> None:
    readings = meter.day(FIRST, 8)
    random.Random(7).shuffle(readings)
    assert submit(world, *readings[:5])["refused"] == []
    assert submit(world, *readings)["refused"] == []
    assert len(stored(world, meter)) == 8


def test_registers_at_an_instant_agree_with_the_interval_before(
    world: World, meter: TestMeter
) -> None:
    readings = meter.day(FIRST, 2)
    submit(world, *readings)
    end = FIRST + 1800
    total = int(readings[1]["import_register_wh"])
    assert codes(world, registers(meter, end, total + 40)) == ["register_sum"]
    assert codes(world, registers(meter, end + 60, total - 40)) == ["register_backwards"]
    assert submit(world, registers(meter, end, total), registers(meter, end + 60, total + 5))
    found = world.evaluate(
        OPERATOR, "metering:Registers", meter_id="M-0001", **{"from": 0, "to": NOON}
    )
    assert [one["read_at"] for one in found] == [str(end), str(end + 60)]
    assert submit(world, registers(meter, end, total))["duplicate"] == "1"
    assert codes(world, registers(meter, NOON + 61, total)) == ["future"]


def test_no_answer_repeats_an_energy(world: World, meter: TestMeter) -> None:
    """Answers of transactions stand in blocks, which other utilities have."""
    submit(world, meter.reading(FIRST, 100, import_register_wh=731_000))
    witness = TestMeter("M-WITNESS")
    enter(world, witness, "CP-0099")
    bad = [
        meter.reading(FIRST, 4711, import_register_wh=734_711),
        meter.reading(FIRST + 900, 4711, import_register_wh=734_711 + 40),
        meter.reading(FIRST + 900, 4711, import_register_wh=4711),
        {**meter.reading(FIRST + 900), "import_wh": "471.1"},
        {**meter.reading(FIRST + 900), "import_wh": 4711.5},
        {**meter.reading(FIRST + 900), "import_register_wh": "-4711"},
        {**meter.reading(FIRST + 900), "salt": "4711"},
        {**meter.reading(FIRST + 900), "export_wh": "4711", "signature": "AAAA"},
    ]
    text = json.dumps(bad[:4] + bad[5:])  # a float makes the whole batch no JSON of ours
    answer = world.simulate(
        OPERATOR,
        "metering:SubmitReadings",
        {"utility": "AuroraMSP"},
        transient=batch(*json.loads(text), witness.reading(FIRST, 0)),
    )
    assert len(answer.value["refused"]) == 7
    assert "471" not in json.dumps(answer.value)
    assert b"471" not in answer.results.rwset


def test_codes_are_enumerable_and_documented() -> None:
    page = (ROOT / "docs/contracts.md").read_text()
    section = page[page.index("### metering:SubmitReadings") : page.index("### metering:Readings")]
    for code in REFUSALS:
        assert f"`{code}`" in section


# Meters


def test_a_meter_is_exchanged_at_one_instant(world: World, meter: TestMeter) -> None:
    at = FIRST + 2 * 900
    old = meter.day(FIRST, 4)
    submit(world, *old[:2])
    new = TestMeter("M-0002")
    fields = {
        "meter_id": "M-0001", "at": at, "new_meter_id": "M-0002", "public_key": new.public_key,
    }  # fmt: skip
    for caller in (HOME, BOREAL_OPERATOR):
        with pytest.raises(Forbidden, match="exchange accredited meter M-0001"):
            world.submit(caller, "metering:ExchangeMeter", **fields)
    with pytest.raises(ContractError, match="has a reading of the interval that begins then"):
        world.submit(OPERATOR, "metering:ExchangeMeter", **{**fields, "at": FIRST})
    with pytest.raises(InvalidArgument, match="must be a multiple of 900"):
        world.submit(OPERATOR, "metering:ExchangeMeter", **{**fields, "at": at + 1})
    exchanged = world.submit(OPERATOR, "metering:ExchangeMeter", **fields)
    assert (exchanged["connection_id"], exchanged["installed_at"]) == ("CP-0001", str(at))
    assert not writes(world.simulate(OPERATOR, "metering:ExchangeMeter", fields).results)
    gone = world.evaluate(HOME, "metering:Meter", meter_id="M-0001")
    assert (gone["removed_at"], gone["replaced_by"]) == (str(at), "M-0002")
    # The head-end registers its meters at every start.
    enter(world, meter)

    final = registers(meter, at, int(old[1]["import_register_wh"]))
    answer = submit(world, old[2], final, registers(new, at, 7), new.reading(at - 900),
                    new.reading(at, 100, import_register_wh=107))  # fmt: skip
    assert [refused["code"] for refused in answer["refused"]] == ["after_meter", "before_meter"]
    assert codes(world, registers(meter, at + 60, 10**6)) == ["after_meter"]
    # The new meter's registers go on from its own first ones.
    other = TestMeter("M-0003")
    enter(world, other, "CP-0003", installed_at=at)
    wrong = other.reading(at, 100, import_register_wh=50)
    assert codes(world, registers(other, at, 7), wrong) == ["register_sum"]
    assert [one["meter_id"] for one in world.evaluate(
        HOME, "metering:Meters", connection_id="CP-0001")] == ["M-0001", "M-0002"]  # fmt: skip
    with pytest.raises(ContractError, match="was removed at"):
        world.submit(OPERATOR, "metering:RemoveMeter", meter_id="M-0001", at=at + 900)


def test_readings_over_an_exchange_are_one_series(world: World, meter: TestMeter) -> None:
    at = FIRST + 900
    new = TestMeter("M-0002")
    submit(world, meter.reading(FIRST, 111, import_register_wh=1111))
    world.submit(
        OPERATOR, "metering:ExchangeMeter", meter_id="M-0001", at=at, new_meter_id="M-0002",
        public_key=new.public_key,
    )  # fmt: skip
    submit(world, new.reading(at, 222, import_register_wh=222))
    found = intervals(world, FIRST, FIRST + 2700)
    assert [(one.import_wh, one.missing) for one in found] == [
        (111, ()),
        (222, ()),
        (0, ("M-0002",)),
    ]


def intervals(world: World, from_: int, to: int, connection_id: str = "CP-0001") -> Any:
    """What settles, read both ways."""
    single = connection_intervals(store(world), connection_id, from_, to, 900)
    assert single == connection_intervals(store(world), connection_id, from_, to, 900, scan=True)
    return single


def store(world: World) -> Store:
    from consortium.chaincode.executor import Invocation
    from consortium.chaincode.simulator import TransactionSimulator
    from tests.consortium.contracts.world import _Context

    invocation = Invocation("metering", CHANNEL, "0" * 64, world.now, OPERATOR, [], {})
    return Store(_Context(invocation, TransactionSimulator(world.state, CHANNEL)), "AuroraMSP")


def test_money_settles_on_accredited_and_verified_readings_alone(world: World) -> None:
    certified = TestMeter("M-CERT")
    enter(world, certified, "CP-0005", certificate="PTB-1", certified_until=FIRST + 900)
    declared = TestMeter("M-DECL")
    world.submit(
        HOME, "metering:RegisterMeter", meter_id="M-DECL", connection_id="CP-0001",
        utility="AuroraMSP", source_class="declared", public_key=declared.public_key,
    )  # fmt: skip
    plant = TestMeter("M-PV")
    enter(world, plant, "CP-0005", purpose="generation")
    submit(world, *certified.day(FIRST, 3), *plant.day(FIRST, 3), *declared.day(FIRST, 3))
    assert [one.missing for one in intervals(world, FIRST, FIRST + 2700, "CP-0005")] == [
        (),
        ("",),
        ("",),
    ]
    assert [one.import_wh for one in intervals(world, FIRST, FIRST + 900)] == [0]


def test_a_certificate_is_renewed_and_withdrawn_in_time(world: World, meter: TestMeter) -> None:
    def certify(caller: Any = OPERATOR, **fields: object) -> Any:
        argument = {"meter_id": "M-0001", "certificate": "METAS-7", **fields}
        return world.submit(caller, "metering:CertifyMeter", **argument)

    for caller in (HOME, BOREAL_OPERATOR):
        with pytest.raises(Forbidden):
            certify(caller, **{"from": NOON})
    with pytest.raises(ContractError, match="what has settled stays so"):
        certify(**{"from": NOON - 900})
    with pytest.raises(InvalidArgument, match="until is"):
        certify(**{"from": NOON + 900, "until": NOON})
    made = certify(**{"from": NOON + 900, "until": NOON + 9000})
    assert made["verifications"] == [
        {"certificate": "registration", "from": "0", "until": str(NOON + 900)},
        {"certificate": "METAS-7", "from": str(NOON + 900), "until": str(NOON + 9000)},
    ]
    assert certify(**{"from": NOON + 900, "until": NOON + 9000}) == made
    withdrawn = world.submit(
        OPERATOR, "metering:WithdrawCertificate", meter_id="M-0001", at=NOON + 1800
    )
    assert withdrawn["verifications"][-1]["until"] == str(NOON + 1800)
    world.now = NOON + 2700
    submit(world, *meter.day(NOON, 3))
    found = intervals(world, NOON, NOON + 2700)
    assert [one.missing for one in found] == [(), (), ("",)]


def test_declared_meters_have_no_certificates(world: World) -> None:
    with pytest.raises(InvalidArgument, match="of accredited meters alone"):
        enter(world, TestMeter("M-D"), source_class="declared", certificate="X")
    enter(world, TestMeter("M-D"), source_class="declared")
    with pytest.raises(InvalidArgument, match="never certified"):
        world.submit(
            OPERATOR, "metering:CertifyMeter", meter_id="M-D", certificate="X", **{"from": NOON}
        )


# Gaps and comparisons


def test_gaps_are_named_and_registers_tell_what_was_in_them(world: World, meter: TestMeter) -> None:
    readings = meter.day(FIRST, 8)
    submit(world, *readings[:2], *readings[5:])
    checked = world.evaluate(
        HOME, "metering:Check", meter_id="M-0001", **{"from": FIRST, "to": NOON}
    )
    assert (checked["expected"], checked["found"], checked["differences"]) == ("8", "5", [])
    assert checked["missing"] == [
        {
            "from": str(FIRST + 1800),
            "to": str(FIRST + 4500),
            "import_wh": str(102 + 103 + 104),
            "export_wh": "0",
        }
    ]
    with pytest.raises(ContractError, match="intervals apart, but may be 10000"):
        world.evaluate(HOME, "metering:Check", meter_id="M-0001", **{"from": 0, "to": NOON})


def test_estimates_that_dont_add_up_are_found(world: World, meter: TestMeter) -> None:
    readings = meter.day(FIRST, 4)
    wrong = meter.sign({**readings[1], "import_wh": "500", "quality": "estimated"})
    submit(world, readings[0], wrong, *readings[2:], registers(meter, FIRST + 1800, 10**6))
    checked = world.evaluate(
        OPERATOR, "metering:Check", meter_id="M-0001", **{"from": FIRST, "to": NOON}
    )
    assert (checked["estimated"], checked["import_wh"]) == ("1", str(100 + 500 + 102 + 103))
    assert checked["differences"] == [
        {
            "from": str(FIRST + 900),
            "to": str(FIRST + 2700),
            "direction": "import",
            "counted_wh": "602",
            "risen_wh": "203",
        }
    ]


def test_declared_meters_are_held_against_accredited_ones(world: World, meter: TestMeter) -> None:
    declared = TestMeter("HA-CP-0001")
    enter(world, declared, source_class="declared")
    submit(world, *meter.day(FIRST, 8))

    def compared(factor: float) -> Any:
        total, readings = 0, []
        for index in range(8):
            energy = round((100 + index) * factor)
            total += energy
            readings.append(declared.reading(FIRST + index * 900, energy, import_register_wh=total))
        version = 1 + int(factor > 1)
        submit(world, *[corrected(declared, one, version) for one in readings], caller=HOME)
        (row,) = world.evaluate(
            HOME, "metering:Compare", connection_id="CP-0001", **{"from": FIRST, "to": NOON}
        )
        assert (row["intervals"], row["accredited_import_wh"]) == ("8", "828")
        return row["import_differs"]

    assert compared(0.95) is False  # 5 %, but 42 Wh
    assert compared(1.10) is True


def test_sums_over_a_transformer_name_what_is_missing(world: World, meter: TestMeter) -> None:
    other = TestMeter("M-0002")
    enter(world, other, "CP-0002")
    submit(world, *meter.day(FIRST, 2), *other.day(FIRST, 1))
    names = ["CP-0001", "CP-0002", "CP-0003"]
    sums = transformer_sums(store(world), names, FIRST, FIRST + 1800, 900)
    assert [(one.import_wh, one.missing) for one in sums] == [
        (200, ("CP-0003/",)),
        (101, ("M-0002", "CP-0003/")),
    ]


# Who sees what


def test_who_moves_in_sees_nothing_from_before(world: World, meter: TestMeter) -> None:
    world.submit(ADMIN, "registry:Configure")
    world.submit(
        OPERATOR, "registry:RegisterConnection", connection_id="CP-0001", utility="AuroraMSP",
        zone="NORTH", max_export_w=10_000, max_import_w=20_000,
    )  # fmt: skip
    submit(world, *meter.day(FIRST, 8))
    asked = {"meter_id": "M-0001", "from": 0, "to": NOON + 9000}
    assert len(world.evaluate(HOME, "metering:Readings", **asked)) == 8
    moved = {"connection_id": "CP-0001"}
    world.submit(OPERATOR, "roles:MoveIn", resident="R-1", **moved, **{"from": FIRST - 900})
    world.submit(OPERATOR, "roles:MoveOut", at=NOON, **moved)
    world.submit(OPERATOR, "roles:MoveIn", resident="R-2", **moved, **{"from": NOON})
    world.now = NOON + 900
    more = meter.reading(NOON, 10, import_register_wh=500_838)
    with pytest.raises(InvalidArgument, match="may not submit readings"):
        submit(world, more, caller=HOME)  # after a move a certificate says whose it is
    now = {**HOME.attributes, "gridledger.resident": "R-2"}
    comer = type(HOME)(HOME.msp_id, b"", "comer", "client", now)
    assert submit(world, more, caller=comer)["accepted"] == "1"
    assert world.evaluate(comer, "metering:Readings", **asked) == [more]
    before = {**HOME.attributes, "gridledger.resident": "R-1"}
    leaver = type(HOME)(HOME.msp_id, b"", "leaver", "client", before)
    assert len(world.evaluate(leaver, "metering:Readings", **asked)) == 8
    stranger = {**HOME.attributes, "gridledger.resident": "R-9"}
    never = type(HOME)(HOME.msp_id, b"", "never", "client", stranger)
    with pytest.raises(Forbidden, match="may not read meter M-0001"):
        world.evaluate(never, "metering:LastReading", meter_id="M-0001")
    last = world.evaluate(leaver, "metering:LastReading", meter_id="M-0001")
    assert last["interval_start"] is None


def test_a_plants_exact_place_stays_with_the_utility(world: World) -> None:
    place = {"latitude_udeg": 47_376_887, "longitude_udeg": -8_541_694, "salt": "5" * 64}
    answer = world.simulate(
        OPERATOR,
        "metering:PlacePlant",
        {"plant_id": "PV-1", "utility": "AuroraMSP"},
        transient={"place": json.dumps(place).encode()},
    )
    assert answer.value == {
        "plant_id": "PV-1",
        "latitude_udeg": "47380000",
        "longitude_udeg": "-8540000",
    }
    assert writes(answer.results) == ["readings-AuroraMSP:place/PV-1"]
    assert b"47376887" not in answer.results.rwset
    world.state.commit(answer.results)
    asked = {"plant_id": "PV-1", "utility": "AuroraMSP"}
    exact = world.evaluate(OPERATOR, "metering:PlantPlace", **asked)
    assert exact["latitude_udeg"] == "47376887"
    with pytest.raises(Forbidden):
        world.evaluate(BOREAL_OPERATOR, "metering:PlantPlace", **asked)
    with pytest.raises(NotFound):
        world.evaluate(OPERATOR, "metering:PlantPlace", **{**asked, "plant_id": "PV-2"})


# Measured homes


def test_measured_homes_add_up_however_their_readings_arrive() -> None:
    """Two days of twelve measured homes: late, doubled, shuffled and corrected against clean."""
    with HOUSEHOLDS.open() as file:
        rows = list(csv.DictReader(file))[:192]
    homes = [f"CH{number:02d}" for number in range(1, 13)]
    begin = int(datetime.fromisoformat(rows[0]["interval_start_utc"]).timestamp())
    chance = random.Random(20181029)

    def channel() -> tuple[World, dict[str, TestMeter]]:
        world = World(now=begin + 192 * 900)
        world.submit(ADMIN, "metering:Configure")
        meters = {home: TestMeter(f"M-{home}") for home in homes}
        for home, meter in meters.items():
            enter(world, meter, f"CP-{home}")
        return world, meters

    def readings(meter: TestMeter, home: str) -> list[dict[str, str]]:
        total, found = 0, []
        for index, row in enumerate(rows):
            total += int(row[home])
            found.append(
                meter.reading(begin + index * 900, int(row[home]), import_register_wh=total)
            )
        return found

    clean, clean_meters = channel()
    rough, rough_meters = channel()
    batches, late = [], []
    for home in homes:
        assert submit(clean, *readings(clean_meters[home], home))["accepted"] == "192"
        for reading in readings(rough_meters[home], home):
            draw = chance.random()
            if draw < 0.05:
                late.append(reading)
            elif draw < 0.06:
                meter = rough_meters[home]
                batches.append(meter.sign({**reading, "quality": "estimated", "import_wh": "1"}))
                late.append(corrected(meter, reading))
            else:
                batches += [reading] * (2 if draw < 0.08 else 1)
    chance.shuffle(batches)
    for first in range(0, len(batches), 1000):
        assert submit(rough, *batches[first : first + 1000])["refused"] == []
    rough.now += DAY
    chance.shuffle(late)
    answer = submit(rough, *late)
    assert answer["refused"] == []
    assert int(answer["corrected"]) > 5
    for home in homes:
        expected = sum(int(row[home]) for row in rows)
        sums = [
            intervals(world, begin, begin + 192 * 900, f"CP-{home}") for world in (clean, rough)
        ]
        for found in sums:
            assert sum(one.import_wh for one in found) == expected
            assert not any(one.missing for one in found)
        assert [one.import_wh for one in sums[0]] == [one.import_wh for one in sums[1]]


def test_no_real_anomaly_gets_in(world: World) -> None:
    """Negative quarter hours and 34 to 80 kWh in one, as a real utility's meters sent them."""
    with ANOMALIES.open() as file:
        anomalies = [round(float(row["kwh"]) * 1000) for row in csv.DictReader(file)]
    assert len(anomalies) == 60
    real = TestMeter("M-REAL")
    enter(world, real, "CP-0079")
    refused = codes(
        world,
        *[
            real.reading(FIRST - index * 900, energy, import_register_wh=10**7 - index)
            for index, energy in enumerate(anomalies)
        ],
    )
    assert refused == ["malformed" if energy < 0 else "over_power" for energy in anomalies]


# Bad input, and nothing changed


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"meter_id": "M-0404"}, "unknown_meter"),
        ({"meter_id": "M/0001"}, "malformed"),
        ({"meter_id": "M-0001/../r"}, "malformed"),
        ({"meter_id": 7}, "malformed"),
        ({"import_wh": "-1"}, "malformed"),
        ({"import_wh": str(2**63)}, "malformed"),
        ({"import_wh": "NaN"}, "malformed"),
        ({"import_wh": "1.0"}, "malformed"),
        ({"import_wh": True}, "malformed"),
        ({"import_wh": None}, "malformed"),
        ({"import_wh": "00"}, "malformed"),
        ({"import_wh": "10001"}, "over_power"),
        ({"export_wh": "10001"}, "over_power"),
        ({"import_register_wh": str(10**15 + 1)}, "malformed"),
        ({"interval_start": str(FIRST + 1)}, "misaligned"),
        ({"interval_start": "-900"}, "malformed"),
        ({"interval_start": str(10**11 + 900)}, "malformed"),
        ({"interval_start": str(NOON)}, "future"),
        ({"interval_s": "300"}, "interval_length"),
        ({"interval_s": "0"}, "malformed"),
        ({"version": "0"}, "malformed"),
        ({"version": "2"}, "version"),
        ({"quality": "guessed"}, "malformed"),
        ({"salt": "AB" * 32}, "malformed"),
        ({"last_gasp": "yes"}, "malformed"),
        ({"extra": "1"}, "malformed"),
    ],
)
def test_bad_readings_change_nothing(
    world: World, meter: TestMeter, change: dict[str, Any], code: str
) -> None:
    reading = {**meter.reading(FIRST), **change}
    if all(isinstance(value, str) for value in reading.values()):
        reading = meter.sign(reading)
    before = world.state.values()
    with pytest.raises(InvalidArgument, match="none of 1 readings is acceptable"):
        submit(world, reading)
    assert world.state.values() == before
    assert codes(world, reading) == [code]


def test_numbers_that_are_no_integers_refuse_the_batch(world: World, meter: TestMeter) -> None:
    for text in (b"NaN", b"1.5", b"1e3", b"Infinity", str(2**64).encode()):
        raw = b'{"readings":[{"meter_id":"M-0001","import_wh":' + text + b"}]}"
        with pytest.raises(InvalidArgument, match=r"not an integer|beyond 64 bits"):
            world.submit(
                OPERATOR,
                "metering:SubmitReadings",
                utility="AuroraMSP",
                transient={"readings": raw},
            )


def test_strangers_and_other_meters_change_nothing(world: World, meter: TestMeter) -> None:
    foreign = TestMeter("M-BOREAL")
    world.submit(
        BOREAL_OPERATOR, "metering:RegisterMeter", meter_id="M-BOREAL", connection_id="CP-0007",
        utility="BorealMSP", source_class="accredited", public_key=foreign.public_key,
    )  # fmt: skip
    assert codes(world, foreign.reading(FIRST)) == ["foreign_meter"]
    with pytest.raises(InvalidArgument, match="may not submit readings of meter M-0001"):
        submit(world, meter.reading(FIRST), caller=OTHER_HOME)
    with pytest.raises(Forbidden, match="may not submit readings to AuroraMSP"):
        submit(world, meter.reading(FIRST), caller=BOREAL_OPERATOR)


def test_a_backdated_clock_finds_the_interval_not_over(world: World, meter: TestMeter) -> None:
    submit(world, meter.reading(FIRST))
    world.now = FIRST - 3600
    with pytest.raises(InvalidArgument, match="but the channel's time is"):
        submit(world, meter.reading(FIRST + 900, import_register_wh=1_000_100))


BAD_METERS: list[tuple[dict[str, Any], str]] = [
    ({"meter_id": "m 1"}, "meter_id"),
    ({"meter_id": "M" * 65}, "meter_id"),
    ({"connection_id": "CP/1"}, "connection_id"),
    ({"max_power_w": 0}, "max_power_w is 0 W, but must be between 1 and 10000000 W"),
    ({"max_power_w": str(2**63)}, "max_power_w"),
    ({"rollover_wh": 999}, "rollover_wh is 999 Wh, but must be between 1000"),
    ({"installed_at": 901}, "installed_at is 901, but must be a multiple of 900"),
    ({"purpose": "heating"}, "purpose"),
    ({"gateway": "gw 1"}, "gateway"),
    ({"certified_until": NOON}, "until when a certificate holds"),
    ({"certificate": "X", "certified_until": 0}, "certified_until is 0, but must lie after"),
    ({"certificate": "a\nb"}, "certificate"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD_METERS, ids=lambda item: str(item)[:30])
def test_bad_meters_change_nothing(world: World, change: dict[str, Any], sentence: str) -> None:
    before = world.state.values()
    with pytest.raises(InvalidArgument, match=sentence):
        enter(world, TestMeter("M-BAD"), **change)
    assert world.state.values() == before


def test_bad_changes_of_meters_change_nothing(world: World, meter: TestMeter) -> None:
    key = TestMeter("M-NEW").public_key
    exchange = {"meter_id": "M-0001", "at": NOON, "new_meter_id": "M-NEW", "public_key": key}
    enter(world, TestMeter("M-OTHER"), "CP-0002")
    before = world.state.values()
    for function, argument, error, sentence in (
        ("ExchangeMeter", {**exchange, "meter_id": "M-404"}, NotFound, "not registered"),
        (
            "ExchangeMeter",
            {**exchange, "new_meter_id": "M-0001"},
            InvalidArgument,
            "a name of its own",
        ),
        ("ExchangeMeter", {**exchange, "new_meter_id": "M-OTHER"}, ContractError, "registered al"),
        ("ExchangeMeter", {**exchange, "public_key": "no"}, InvalidArgument, "public_key"),
        ("ExchangeMeter", {**exchange, "at": NOON + 367 * DAY}, ContractError, "366 days ahead"),
        ("ExchangeMeter", {**exchange, "at": NOON - 15 * DAY}, ContractError, "14 days ago"),
        ("ExchangeMeter", {**exchange, "at": "soon"}, InvalidArgument, "at is"),
        ("RemoveMeter", {"meter_id": "M-404", "at": NOON}, NotFound, "not registered"),
        ("RemoveMeter", {"meter_id": "M-0001", "at": NOON + 1}, InvalidArgument, "multiple"),
        ("WithdrawCertificate", {"meter_id": "M-0001", "at": NOON - 900}, ContractError, "settled"),
    ):
        with pytest.raises(error, match=sentence):
            world.submit(OPERATOR, f"metering:{function}", **argument)
    assert world.state.values() == before
