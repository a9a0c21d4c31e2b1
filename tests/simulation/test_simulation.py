"""The simulator, run for as long as a test suite may take; `script/simulate` runs more."""

import time

import pytest

from consortium.raft.core import Raft
from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.simulator import Features, Options, Outcome, plan, shrink, simulate

SEEDS = {3: 180, 5: 90, 7: 40}


def failures(outcomes: list[Outcome]) -> str:
    return "\n".join(
        f"seed {outcome.seed}: {outcome.violation}" for outcome in outcomes if outcome.violation
    )


@pytest.mark.parametrize("nodes", SEEDS)
def test_nothing_is_violated(nodes: int) -> None:
    begin = time.process_time()
    outcomes = [simulate(seed, Options(nodes=nodes)) for seed in range(SEEDS[nodes])]
    assert not failures(outcomes)
    # The runs must not be idle ones.
    assert sum(outcome.committed for outcome in outcomes) > 8 * len(outcomes)
    assert sum(outcome.terms for outcome in outcomes) > 2 * len(outcomes)
    print(f"{len(outcomes) / (time.process_time() - begin):.0f} seeds/s with {nodes} nodes")


def test_a_seed_always_gives_the_same_run() -> None:
    told: list[list[str]] = [[], []]
    outcomes = [simulate(11, Options(nodes=5), log=lines.append) for lines in told]
    assert told[0] == told[1]
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "mutation",
    [mutation for mutation in MUTATIONS if mutation.found_at is not None],
    ids=lambda mutation: mutation.name,
)
def test_a_mistake_is_found(mutation: Mutation) -> None:
    """From the first seed that is known to find it, as earlier ones take too long."""
    first = mutation.found_at
    assert first is not None
    with mutation.apply():
        for seed in range(max(0, first - 3), first + 2):
            outcome = simulate(seed, Options(nodes=(3, 5)[seed % 2]), features=mutation.features)
            if outcome.violation:
                return
    pytest.fail(f"{mutation.name} was not found near seed {first}: {mutation.says}")


def test_removed_nodes_linger() -> None:
    """Three of five voters go in one change; one that stays has not applied it yet."""
    assert not simulate(9573, Options(nodes=3)).violation
    outcome = simulate(9573, Options(nodes=3), features=Features(lingers=False))
    assert "no progress" in outcome.violation


def test_a_leaders_own_promise_counts_on_a_copy() -> None:
    """It counted itself for a commit that it told nobody of, and came back without the entry."""
    assert not simulate(1269, Options(nodes=3)).violation


def test_a_copy_whose_log_is_long_enough_but_not_what_was_acknowledged() -> None:
    """It held an overwritten entry of an earlier term where the acknowledged one had stood."""
    assert not simulate(26582, Options(nodes=7)).violation


def test_what_was_sent_before_the_disk_was_replaced() -> None:
    """An acknowledgement was under way when its sender's disk was replaced by an older copy.

    Nobody remembered it yet when the copy asked, and it counted for a commit when it came.
    """
    assert not simulate(106732, Options(nodes=5)).violation
    features = Features(leaves_old_connections=False)
    assert "durability" in simulate(106732, Options(nodes=5), features=features).violation


def test_an_acknowledgement_of_what_the_leader_had_compacted() -> None:
    """The leader could not tell which entry it was, and counted on a copy that holds another."""
    assert not simulate(149193, Options(nodes=3)).violation
    features = Features(drops_compacted=False)
    violation = simulate(149193, Options(nodes=3), features=features).violation
    assert "state machine safety" in violation


def test_who_was_left_out_tells_what_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members left out by a committed change had the longest logs, and refused those that stay.

    These still needed their votes: they had the change, and did not know that it is committed.
    """
    assert not simulate(228295, Options(nodes=5)).violation
    monkeypatch.setattr(Raft, "_learn_commit", lambda _self, _message: None)
    assert "no progress" in simulate(228295, Options(nodes=5)).violation


def test_who_has_compacted_what_it_has_not_told_to_be_applied_stands_later() -> None:
    """It looked for changes of the configuration among entries that were gone."""
    assert not simulate(445515, Options(nodes=3)).violation


def test_enough_mistakes_are_found() -> None:
    assert sum(mutation.found_at is not None for mutation in MUTATIONS) >= 25


def test_a_failure_is_shrunk_and_replays() -> None:
    mutation = next(one for one in MUTATIONS if one.name == "vote forgotten")
    with mutation.apply():
        seed = mutation.found_at
        assert seed is not None
        options = Options(nodes=(3, 5)[seed % 2])
        outcome = simulate(seed, options)
        shrunk = shrink(outcome, options)
        again = simulate(seed, options, shrunk.acts)
    assert len(shrunk.acts) < len(outcome.acts) == len(plan(seed, options))
    assert again.violation == shrunk.violation
