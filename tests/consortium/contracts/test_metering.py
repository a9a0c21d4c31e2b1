"""Meters and readings: what is accepted, what is refused, who may see it."""

import json

import pytest

from consortium.chaincode.api import (
    Conflict,
    ContractError,
    Forbidden,
    InvalidArgument,
    NotFound,
)
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    HOME,
    NOON,
    OPERATOR,
    OTHER_HOME,
    TestMeter,
    World,
    batch,
    writes,
)

FIRST = NOON - 4 * 900


@pytest.fixture
def meter() -> TestMeter:
    return TestMeter()


@pytest.fixture
def world(meter: TestMeter) -> World:
    world = World()
    world.submit(ADMIN, "metering:Configure")
    world.submit(HOME, "metering:RegisterMeter", **registration(meter))
    return world


def registration(meter: TestMeter, **other: str) -> dict[str, str]:
    return {
        "meter_id": meter.meter_id,
        "connection_id": "CP-0001",
        "utility": "AuroraMSP",
        "source_class": "declared",
        "public_key": meter.public_key,
        **other,
    }


def submit(world: World, *readings: object, caller=HOME, utility: str = "AuroraMSP"):  # type: ignore[no-untyped-def]
    return world.submit(
        caller, "metering:SubmitReadings", utility=utility, transient=batch(*readings)
    )


def test_settings_are_written_once() -> None:
    world = World()
    with pytest.raises(NotFound, match=r"an administrator calls metering:Configure"):
        world.evaluate(HOME, "metering:Settings")
    with pytest.raises(Forbidden, match=r"home-CP-0001 \(home of AuroraMSP, connection CP-0001\)"):
        world.submit(HOME, "metering:Configure")
    configured = world.submit(ADMIN, "metering:Configure")
    assert configured == {
        "interval_s": "900",
        "currency": "EUR",
        "replay": None,
        "late_after_s": "21600",
        "silent_after": "4",
        "final_after_s": "1209600",
        "correctable_s": "36720000",
    }
    assert not writes(world.simulate(ADMIN, "metering:Configure").results)
    with pytest.raises(Conflict, match="differently"):
        world.submit(ADMIN, "metering:Configure", interval_s=3600)
    assert world.evaluate(HOME, "metering:Settings") == configured


def test_an_interval_divides_the_hour() -> None:
    with pytest.raises(InvalidArgument, match="interval_s is 700, but must divide an hour"):
        World().submit(ADMIN, "metering:Configure", interval_s=700)


def test_homes_declare_their_meters_and_operators_accredit_theirs(meter: TestMeter) -> None:
    world = World()
    with pytest.raises(Forbidden):
        world.submit(OTHER_HOME, "metering:RegisterMeter", **registration(meter))
    with pytest.raises(Forbidden, match="operators of AuroraMSP may"):
        world.submit(
            HOME, "metering:RegisterMeter", **registration(meter, source_class="accredited")
        )
    with pytest.raises(Forbidden):
        world.submit(
            BOREAL_OPERATOR,
            "metering:RegisterMeter",
            **registration(meter, source_class="accredited"),
        )
    accredited = registration(meter, source_class="accredited")
    registered = world.submit(OPERATOR, "metering:RegisterMeter", **accredited)
    assert registered["public_key"] == meter.public_key
    # Windows line ends in the PEM are the same key, and the same registration changes nothing.
    again = {**accredited, "public_key": meter.public_key.replace("\n", "\r\n")}
    assert not writes(world.simulate(OPERATOR, "metering:RegisterMeter", again).results)
    with pytest.raises(Conflict, match="M-0001 is registered already, and differently"):
        world.submit(
            OPERATOR, "metering:RegisterMeter", **{**accredited, "connection_id": "CP-0009"}
        )
    assert world.evaluate(OTHER_HOME, "metering:Meter", meter_id="M-0001") == registered


def test_a_key_that_is_none_is_refused(meter: TestMeter) -> None:
    for key in ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no key"):
        with pytest.raises(InvalidArgument, match="public_key"):
            World().submit(HOME, "metering:RegisterMeter", **registration(meter, public_key=key))


def test_readings_go_to_the_utilitys_collection_alone(world: World, meter: TestMeter) -> None:
    readings = meter.day(FIRST, 3)
    answer = world.simulate(
        HOME, "metering:SubmitReadings", {"utility": "AuroraMSP"}, transient=batch(*readings)
    )
    assert answer.value == {
        "accepted": "3",
        "duplicate": "0",
        "corrected": "0",
        "late": "0",
        "after_final": "0",
        "refused": [],
    }
    assert writes(answer.results) == [
        f"readings-AuroraMSP:r/M-0001/{FIRST + index * 900:012d}/1" for index in range(3)
    ]
    assert answer.event == (
        "readings",
        {
            "utility": "AuroraMSP",
            "count": "3",
            "meters": "1",
            "first_interval": str(FIRST),
            "last_interval": str(FIRST + 1800),
            "corrected": "0",
            "late": "0",
            "after_final": "0",
        },
    )
    world.state.commit(answer.results)
    found = world.evaluate(HOME, "metering:Readings", meter_id="M-0001", **{"from": 0, "to": NOON})
    assert found == readings


def test_the_same_readings_again_change_nothing(world: World, meter: TestMeter) -> None:
    readings = meter.day(FIRST, 3)
    submit(world, *readings)
    before = world.state.values()
    # Signed anew: an ECDSA signature differs each time, the reading is the same.
    answer = submit(world, *[meter.sign(reading) for reading in readings])
    assert (answer["accepted"], answer["duplicate"], answer["refused"]) == ("0", "3", [])
    assert world.state.values() == before


def test_a_resubmission_stays_under_the_collections_policy(world: World, meter: TestMeter) -> None:
    """Without any write the transaction would need the chaincode's policy: several utilities."""
    submit(world, *meter.day(FIRST, 3))
    answer = world.simulate(
        HOME,
        "metering:SubmitReadings",
        {"utility": "AuroraMSP"},
        transient=batch(*meter.day(FIRST, 3)),
    )
    assert writes(answer.results) == [f"readings-AuroraMSP:r/M-0001/{FIRST:012d}/1"]
    assert answer.event is None


def test_a_bad_reading_does_not_lose_the_good_ones(world: World, meter: TestMeter) -> None:
    good = meter.day(FIRST, 3)
    submit(world, good[0])
    stranger = TestMeter("M-0001")
    answer = submit(
        world,
        good[1],
        "no reading",
        meter.reading(FIRST, 999),
        stranger.reading(FIRST + 2700),
        meter.reading(FIRST + 1),
        meter.reading(FIRST + 2700, version="2"),
        meter.reading(FIRST + 2700, 30_000),
        meter.reading(FIRST + 2700, -5),
        meter.reading(NOON),
        {**good[2], "comment": "hello"},
        TestMeter("M-0404").reading(FIRST),
        good[2],
    )
    assert (answer["accepted"], answer["duplicate"]) == ("2", "0")
    assert [(refused["code"], refused["reason"]) for refused in answer["refused"]] == [
        ("malformed", "the reading must be a JSON object"),
        (
            "different",
            (
                "the interval already has a different reading of version 1; a correction names the "
                "next version"
            ),
        ),
        (
            "signature",
            (
                "signature does not hold for the registered public key over this channel and these "
                "fields"
            ),
        ),
        ("misaligned", f"interval_start is {FIRST + 1}, but must be a multiple of 900"),
        (
            "version",
            "version is 2, but the interval has no version 1 that it could replace",
        ),
        (
            "over_power",
            (
                "import_wh is too much: meter M-0001 (100000 W) can count at most 25000 Wh in the "
                "interval starting 2026-11-21T11:45:00Z"
            ),
        ),
        (
            "malformed",
            (
                "import_wh must be an integer from 0 to 1000000000 Wh, as a string (its value is "
                "private and not repeated here)"
            ),
        ),
        (
            "future",
            (
                "the interval ends at 2026-11-21T12:15:00Z, but the channel's time is "
                "2026-11-21T12:00:00Z"
            ),
        ),
        (
            "malformed",
            (
                "comment is not a field of the reading; known are meter_id, interval_start, "
                "interval_s, version, import_wh, export_wh, import_register_wh, "
                "export_register_wh, quality, salt, signature, last_gasp"
            ),
        ),
        ("unknown_meter", "meter M-0404 is not registered; see metering:RegisterMeter"),
    ]
    assert answer["refused"][0]["meter_id"] == ""
    assert answer["refused"][2] == {
        "meter_id": "M-0001",
        "interval_start": str(FIRST + 2700),
        "code": "signature",
        "reason": answer["refused"][2]["reason"],
    }


def test_a_reading_of_another_channel_is_refused(world: World, meter: TestMeter) -> None:
    foreign = meter.sign(meter.reading(FIRST), channel="elsewhere")
    with pytest.raises(InvalidArgument, match=r"none of 1 readings is acceptable.*signature"):
        submit(world, foreign)


def test_registers_agree_with_intervals(world: World, meter: TestMeter) -> None:
    submit(world, meter.reading(FIRST, 100, import_register_wh=1000))
    with pytest.raises(
        ContractError,
        match=r"import_register_wh has risen since the interval before by something else than "
        r"import_wh, by more than 1 Wh",
    ):
        submit(world, meter.reading(FIRST + 900, 100, import_register_wh=1500))
    with pytest.raises(
        ContractError, match="import_register_wh has fallen since the interval before"
    ):
        submit(world, meter.reading(FIRST + 900, 100, import_register_wh=900))
    # A digit of rounding is allowed, and in one batch too.
    answer = submit(
        world,
        meter.reading(FIRST + 900, 100, import_register_wh=1101),
        meter.reading(FIRST + 1800, 100, import_register_wh=1300),
        meter.reading(FIRST + 2700, 100, import_register_wh=1300, quality="estimated"),
    )
    assert (answer["accepted"], len(answer["refused"])) == ("2", 1)


def test_only_the_home_and_its_operator_submit_and_read(world: World, meter: TestMeter) -> None:
    reading = meter.reading(FIRST)
    with pytest.raises(Forbidden, match="may not submit readings to AuroraMSP"):
        submit(world, reading, caller=BOREAL_OPERATOR)
    with pytest.raises(InvalidArgument, match="may not submit readings of meter M-0001"):
        submit(world, reading, caller=OTHER_HOME)
    submit(world, reading, caller=OPERATOR)
    for caller in (HOME, OPERATOR):
        assert world.evaluate(
            caller, "metering:Readings", meter_id="M-0001", **{"from": 0, "to": NOON}
        )
    for caller in (OTHER_HOME, BOREAL_OPERATOR):
        for function, argument in (
            ("metering:Readings", {"from": 0, "to": NOON}),
            ("metering:LastReading", {}),
        ):
            with pytest.raises(Forbidden, match="may not read meter M-0001"):
                world.evaluate(caller, function, meter_id="M-0001", **argument)


def test_the_last_reading_is_found_however_old(world: World, meter: TestMeter) -> None:
    nothing = world.evaluate(HOME, "metering:LastReading", meter_id="M-0001")
    assert nothing == {
        "meter_id": "M-0001",
        "interval_start": None,
        "import_register_wh": None,
        "export_register_wh": None,
    }
    submit(world, *meter.day(FIRST, 4))
    for elapsed in (0, 86_400, 40 * 86_400, 3 * 365 * 86_400):
        world.now = NOON + elapsed
        last = world.evaluate(HOME, "metering:LastReading", meter_id="M-0001")
        assert last["interval_start"] == str(FIRST + 2700)
        assert last["import_register_wh"] == str(500_000 + 100 + 101 + 102 + 103)


def test_readings_come_in_pages(world: World, meter: TestMeter) -> None:
    submit(world, *meter.day(FIRST, 4))

    def starts(**argument: int) -> list[int]:
        found = world.evaluate(HOME, "metering:Readings", meter_id="M-0001", **argument)
        return [int(reading["interval_start"]) - FIRST for reading in found]

    assert starts(**{"from": FIRST, "to": NOON, "limit": 2}) == [0, 900]
    assert starts(**{"from": FIRST + 1800, "to": NOON, "limit": 2}) == [1800, 2700]
    assert starts(**{"from": FIRST, "to": FIRST + 900}) == [0]


def test_a_submission_has_a_limit(world: World, meter: TestMeter) -> None:
    with pytest.raises(
        ContractError, match="holds 1001 readings, but a call may have 1000"
    ) as refused:
        submit(world, *[{}] * 1001)
    assert refused.value.status == 413
    for transient in (
        {},
        {"readings": b"[]"},
        {"readings": b'{"readings":[]}'},
        {"readings": b"{"},
    ):
        with pytest.raises(InvalidArgument, match="readings"):
            world.submit(HOME, "metering:SubmitReadings", utility="AuroraMSP", transient=transient)


def test_a_thousand_homes_in_one_block_do_not_conflict(world: World) -> None:
    answers = []
    for number in range(50):
        meter = TestMeter(f"M-{number:04d}A")
        world.submit(
            OPERATOR, "metering:RegisterMeter", **registration(meter, source_class="accredited")
        )
        readings = batch(*meter.day(FIRST, 4))
        answers.append(
            world.simulate(
                OPERATOR, "metering:SubmitReadings", {"utility": "AuroraMSP"}, transient=readings
            ).results
        )
    assert world.state.commit(*answers) == [0] * 50


def test_a_replay_clock_takes_past_data(meter: TestMeter) -> None:
    world = World()
    origin = 1_600_000_200
    world.submit(
        ADMIN,
        "metering:Configure",
        replay={"origin": origin, "anchor": str(NOON), "rate": 60},
    )
    world.submit(HOME, "metering:RegisterMeter", **registration(meter))
    world.now += 60
    assert submit(world, meter.reading(origin + 1800))["accepted"] == "1"
    # A minute of a meter's clock is an hour of the channel's.
    later = meter.reading(origin + 3600, import_register_wh=1_000_400)
    assert submit(world, later)["accepted"] == "1"
    with pytest.raises(InvalidArgument, match="the channel's time is 2020-09-13T13:30:00Z"):
        submit(world, meter.reading(origin + 7200))
    stored = json.loads(world.state.public["metering", "settings"].value)
    assert stored["replay"] == {"origin": str(origin), "anchor": str(NOON), "rate": "60"}
