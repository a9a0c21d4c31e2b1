"""What is due is found by ranges: for 10,000 homes as for ten."""

from dataclasses import replace

from consortium.contracts.common.clock import DAY_S
from consortium.wire import kvrwset_pb2, rwset_pb2
from tests.consortium.contracts.billing_world import CONNECTION, BillingWorld, at
from tests.consortium.contracts.town import START, Town
from tests.consortium.contracts.world import OPERATOR, World


def single_reads(world: World, function: str, **argument: object) -> int:
    """How many keys a query reads one by one: a transaction may read 100,000."""
    answer = world.simulate(OPERATOR, function, argument)
    return sum(
        len(kvrwset_pb2.KVRWSet.FromString(one.rwset).reads)
        for one in rwset_pb2.TxReadWriteSet.FromString(answer.results.rwset).ns_rwset
    )


def test_more_homes_are_no_more_single_reads() -> None:
    reads = []
    for count in (2, 9):
        town = Town.of(*(f"CP-{number}" for number in range(count)), interval_s=3600)
        town.read_day({})
        town.world.now = START + DAY_S + 7 * 3600
        town.settle()
        # The day after is open, the first waits for its final run.
        town.world.now += DAY_S
        reads.append(single_reads(town.world, "agenda:Days", utility="AuroraMSP"))
        [part] = town.world.evaluate(OPERATOR, "agenda:Days", utility="AuroraMSP")["days"]
        assert part["connections"] == sorted(town.homes)
        assert part["run"] == "provisional"
    assert reads[0] == reads[1]


def test_more_supplies_are_hardly_more_single_reads() -> None:
    """Reminders, bills and steps of 10,000 homes are asked for in one query."""
    found: dict[tuple[str, str], list[int]] = {}
    for count in (2, 9):
        one = BillingWorld()
        state = one.world.state.public
        for kind in ("connection", "supply"):
            stored = state["energy", f"{kind}/{CONNECTION}"]
            for number in range(count):
                name = f"CP-{number:05d}"
                record = stored.value.replace(CONNECTION.encode(), name.encode())
                state["energy", f"{kind}/{name}"] = replace(stored, value=record)
        for day in ("2019-03-20", "2019-04-02"):
            one.world.now = at(day)
            found.setdefault((day, "Due"), []).append(single_reads(one.world, "agenda:Due"))
            for name in ("Bills", "Steps"):
                reads = single_reads(one.world, f"agenda:{name}", utility="AuroraMSP")
                found.setdefault((day, name), []).append(reads)
    few, many = found.pop(("2019-04-02", "Bills"))
    assert many - few == 7 * 2, "periods that are over: their roles and what was posted"
    assert [many - few for few, many in found.values()] == [0] * 5
