"""What is due is found by ranges: for 10,000 homes as for ten."""

from consortium.contracts.common.clock import DAY_S
from consortium.wire import kvrwset_pb2, rwset_pb2
from tests.consortium.contracts.town import START, Town
from tests.consortium.contracts.world import OPERATOR


def single_reads(town: Town, function: str, **argument: object) -> int:
    """How many keys a query reads one by one: a transaction may read 100,000."""
    answer = town.world.simulate(OPERATOR, function, argument)
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
        reads.append(single_reads(town, "agenda:Days", utility="AuroraMSP"))
        [part] = town.world.evaluate(OPERATOR, "agenda:Days", utility="AuroraMSP")["days"]
        assert part["connections"] == sorted(town.homes)
        assert part["run"] == "provisional"
    assert reads[0] == reads[1]
