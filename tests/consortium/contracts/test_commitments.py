"""Private records and their commitments: what is shown must be what was committed."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest

from consortium.chaincode.api import (
    Conflict,
    Integer,
    InvalidArgument,
    NotFound,
    canonical_json,
    sha256_hex,
)
from consortium.chaincode.executor import Invocation
from consortium.chaincode.simulator import TransactionSimulator
from consortium.contracts.common import commitments
from consortium.contracts.common.commitments import Salt
from tests.consortium.contracts.world import CHANNEL, HOME, NOON, World, _Context

KEY = "st/2026-11-21/final/CP-0001"


@dataclass(frozen=True, slots=True)
class Record:
    energy_wh: Annotated[int, Integer()]
    salt: Salt


def context_of(world: World, chaincode: str) -> tuple[Any, TransactionSimulator]:
    simulator = TransactionSimulator(world.state, CHANNEL)
    invocation = Invocation(chaincode, CHANNEL, "0" * 64, NOON, HOME, [], {})
    return _Context(invocation, simulator), simulator


@pytest.fixture
def committed() -> tuple[World, Record]:
    world = World()
    context, simulator = context_of(world, "metering")
    record = Record(1234, commitments.salt(context, KEY, ["00" * 32]))
    shown = commitments.put(context, "AuroraMSP", KEY, record)
    assert world.state.commit(simulator.results()) == [0]
    context, _ = context_of(world, "metering")
    assert commitments.commitment(context, "AuroraMSP", KEY) == shown
    assert commitments.opened(context, "AuroraMSP", KEY, Record) == record
    return world, record


def test_a_record_passes_only_as_it_was_committed(committed: tuple[World, Record]) -> None:
    world, record = committed
    context, simulator = context_of(world, "energy")
    commitments.check(context, "AuroraMSP", KEY, record)
    with pytest.raises(Conflict, match="has committed to"):
        commitments.check(context, "AuroraMSP", KEY, replace(record, energy_wh=1235))
    with pytest.raises(NotFound, match="AuroraMSP has committed to no record st/other"):
        commitments.check(context, "AuroraMSP", "st/other", record)
    # What was checked is read: a record that changes meanwhile makes the transaction fail.
    checked = simulator.results()
    context, later = context_of(world, "metering")
    commitments.put(context, "AuroraMSP", KEY, replace(record, energy_wh=1))
    assert world.state.commit(later.results(), checked) == [0, 11]


def test_a_salt_is_of_its_record_and_its_secrets_alone(committed: tuple[World, Record]) -> None:
    world, _ = committed
    context, _ = context_of(world, "metering")
    secrets = ["1" * 64, "2" * 64]
    salt = commitments.salt(context, KEY, secrets)
    assert salt == commitments.salt(context, KEY, secrets)
    assert salt != commitments.salt(context, KEY, secrets[::-1])
    assert salt != commitments.salt(context, "st/other", secrets)
    with pytest.raises(InvalidArgument, match="nothing secret"):
        commitments.salt(context, KEY, [])


def test_any_member_is_told_commitments(committed: tuple[World, Record]) -> None:
    world, record = committed
    answer = world.evaluate(HOME, "commitment:Of", utility="AuroraMSP", keys=[KEY, "st/other"])
    assert answer["commitments"] == [
        {"commitment": sha256_hex(canonical_json(record)), "key": KEY},
        {"commitment": None, "key": "st/other"},
    ]
    with pytest.raises(InvalidArgument, match=r"keys\[0\] is"):
        world.evaluate(HOME, "commitment:Of", utility="AuroraMSP", keys=["../x"])


def test_a_chaincode_that_refuses(committed: tuple[World, Record]) -> None:
    world, _ = committed
    context, _ = context_of(world, "energy")
    with pytest.raises(NotFound, match="metering refused metering:Meter: meter M-1 is not"):
        commitments.called(context, "metering", "metering:Meter", Record, meter_id="M-1")
