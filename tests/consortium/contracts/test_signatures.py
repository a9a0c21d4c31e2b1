"""Readings that a meter signs together, each of which still proves itself alone."""

import secrets
from typing import Any

import pytest

from consortium.contracts.meters import signatures
from gridledger_client import InvalidInput, MeterKey, Reading, generate_key_pem
from tests.consortium.contracts.world import ADMIN, CHANNEL, HOME, NOON, World, batch

KEY = MeterKey(generate_key_pem(), secrets.token_bytes(32))
COUNTS = (1, 2, 3, 5, 8, 13, 16, 33, 96, 100)


@pytest.fixture
def world() -> World:
    world = World()
    world.submit(ADMIN, "metering:Configure")
    for meter_id in ("M-0001", "M-0002"):
        world.submit(
            HOME,
            "metering:RegisterMeter",
            meter_id=meter_id,
            connection_id="CP-0001",
            utility="AuroraMSP",
            source_class="declared",
            public_key=KEY.public_key_pem,
        )
    return world


def readings(count: int, meter_id: str = "M-0001") -> list[Reading]:
    first = NOON - count * 900
    return [
        Reading(meter_id, first + 900 * at, 900, 100, 0, 1000 + 100 * at, 0) for at in range(count)
    ]


def together(count: int, at_once: int, channel: str = CHANNEL) -> list[dict[str, str]]:
    signed = KEY.sign_together(readings(count), channel, at_once)
    return [dict(one.fields) for one in signed]


def submit(world: World, *rows: dict[str, str]) -> Any:
    return world.submit(
        HOME, "metering:SubmitReadings", utility="AuroraMSP", transient=batch(*rows)
    )


def refusals(world: World, row: dict[str, str]) -> list[str]:
    """What a reading is refused for, beside a good one."""
    good = dict(KEY.sign(readings(1, "M-0002")[0], CHANNEL).fields)
    return [one["code"] for one in submit(world, row, good)["refused"]]


@pytest.mark.parametrize("count", COUNTS)
def test_one_signature_is_enough_for_many(
    world: World, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = 0
    verify = signatures.verify_p256

    def counted(*arguments: Any) -> bool:
        nonlocal checks
        checks += 1
        return verify(*arguments)

    monkeypatch.setattr(signatures, "verify_p256", counted)
    assert submit(world, *together(count, count))["accepted"] == str(count)
    assert checks == 1


@pytest.mark.parametrize("count", COUNTS)
def test_each_reading_proves_itself_alone(world: World, count: int) -> None:
    for at in {0, count // 2, count - 1}:
        assert submit(world, together(count, count)[at])["accepted"] == "1"


def test_who_signed_alone_and_together_said_the_same(world: World) -> None:
    rows = together(20, 16)
    alone = [dict(KEY.sign(one, CHANNEL).fields) for one in readings(20)]
    assert submit(world, *rows)["accepted"] == "20"
    assert submit(world, *alone)["duplicate"] == "20"
    assert submit(world, *together(20, 7))["duplicate"] == "20"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda own, index, count, way: f"{own}:{int(index) + 1}:{count}:{way}",
        lambda own, index, count, way: f"{own}:{index}:{int(count) + 1}:{way}",
        lambda own, index, count, way: f"{own}:{index}:{int(count) - 1}:{way}",
        lambda own, index, count, way: f"{own}:{count}:{count}:{way}",
        lambda own, index, count, way: f"{own}:0:1:",
        lambda own, index, count, way: f"{own}:{index}:{count}:",
        lambda own, index, count, way: f"{own}:{index}:{count}:{way[:-4]}",
        lambda own, index, count, way: f"{own}:{index}:{count}:AAAA{way[4:]}",
        lambda own, index, count, way: f"{own}:{index}:{count}:A",
        lambda own, index, count, way: f":{index}:{count}:{way}",
        lambda own, index, count, way: own,
    ],
)
def test_another_way_to_the_root_is_none(world: World, spoil: Any) -> None:
    row = together(12, 12)[5]
    own, index, count, way = row["signature"].split(":")
    assert refusals(world, {**row, "signature": spoil(own, index, count, way)}) == ["signature"]


def test_what_was_not_signed_is_refused(world: World) -> None:
    row = together(12, 12)[5]
    assert refusals(world, {**row, "import_wh": "99"}) == ["signature"]
    # The same key, but another meter's name under the root.
    assert refusals(world, {**row, "meter_id": "M-0002"}) == ["signature"]
    assert refusals(world, together(12, 12, "elsewhere")[5]) == ["signature"]
    # A root that was signed says nothing of another tree.
    other = together(11, 11)[5]["signature"]
    assert refusals(world, {**row, "signature": other}) == ["signature"]


@pytest.mark.parametrize(
    "signature", ["a:01:2:", "a:1:0:", "a:1:1000:", "a:1:2:b:", ":", "a:b:c:d"]
)
def test_no_other_form_is_read(world: World, signature: str) -> None:
    row = {**together(2, 2)[0], "signature": signature}
    assert refusals(world, row) == ["malformed"]


def test_a_client_signs_what_belongs_together() -> None:
    with pytest.raises(InvalidInput, match="several meters"):
        KEY.sign_together([*readings(1), *readings(1, "M-0002")], CHANNEL)
    for at_once in (0, 1000):
        with pytest.raises(InvalidInput, match="1 to 999"):
            KEY.sign_together(readings(1), CHANNEL, at_once)
    assert KEY.sign_together([], CHANNEL) == []
