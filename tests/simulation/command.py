"""The command behind `script/simulate`."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from tests.simulation.mutations import MUTATIONS
from tests.simulation.simulator import Options, Outcome, shrink, simulate

BATCH = 50


def run_batch(work: tuple[int, int, tuple[int, ...]]) -> tuple[list[Outcome], float]:
    """Simulate a few seeds in a process of its own."""
    start, count, sizes = work
    begin = time.process_time()
    outcomes = [
        simulate(seed, Options(nodes=sizes[seed % len(sizes)]))
        for seed in range(start, start + count)
    ]
    for outcome in outcomes:
        if not outcome.violation:
            outcome.acts = []  # nobody will ask
    return outcomes, time.process_time() - begin


def replay(seed: int, options: Options, *, as_is: bool) -> int:
    """Run one seed aloud; shrink it first if it fails."""
    outcome = simulate(seed, options)
    if outcome.violation and not as_is:
        before = len(outcome.acts)
        outcome = shrink(outcome, options)
        print(f"shrunk from {before} to {len(outcome.acts)} acts:")
        for act in outcome.acts:
            print(f"{act.time:8.2f}  {act.kind} {act.value:#x}")
    # The same run again, telling what happens.
    again = simulate(seed, options, outcome.acts, log=print)
    print(again.violation or "nothing was violated")
    return 1 if again.violation else 0


def mutate(limit: int) -> int:
    """Say after how many seeds each mutation is found, as the table of docs/raft.md."""
    missed = 0
    for mutation in MUTATIONS:
        with mutation.apply():
            found = ""
            for seed in range(limit):
                outcome = simulate(
                    seed, Options(nodes=(3, 5)[seed % 2]), features=mutation.features
                )
                if outcome.violation:
                    found = outcome.violation
                    break
        missed += not found
        shown = f"{seed + 1}" if found else f"not in {limit}"
        print(f"| {mutation.name} | {mutation.says} | {shown} | {found[:90]} |", flush=True)
    return 1 if missed else 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="script/simulate",
        description=(
            "Runs Raft clusters under faults, one per seed, and checks after every event that"
            " nothing is violated. Prints seeds per second. A failing seed prints the command"
            " that replays it, shrunk to the acts that it takes; the exit status is then 1."
        ),
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--start", type=int, default=0, help="the first one (default 0)")
    parser.add_argument("--nodes", default="3,5,7", help="cluster sizes, by turns (default 3,5,7)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="default: one per core"
    )
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed aloud")
    parser.add_argument("--as-is", action="store_true", help="with --replay: do not shrink")
    parser.add_argument(
        "--mutations", action="store_true", help="find the deliberate mistakes instead"
    )
    given = parser.parse_args()
    sizes = tuple(int(size) for size in given.nodes.split(","))
    if given.mutations:
        return mutate(given.seeds)
    if given.replay is not None:
        options = Options(nodes=sizes[given.replay % len(sizes)])
        return replay(given.replay, options, as_is=given.as_is)

    starts = range(given.start, given.start + given.seeds, BATCH)
    end = given.start + given.seeds
    works = iter([(start, min(BATCH, end - start), sizes) for start in starts])
    begin = time.monotonic()
    total: Counter[str] = Counter()
    cpu = 0.0
    failed: list[Outcome] = []
    with ProcessPoolExecutor(given.processes) as pool:

        def results() -> Iterator[tuple[list[Outcome], float]]:
            # A few batches ahead, not all of them: a hundred thousand seeds are fine.
            waiting = [pool.submit(run_batch, work) for work in islice(works, 2 * given.processes)]
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(run_batch, work) for work in islice(works, 1)]

        for outcomes, seconds in results():
            cpu += seconds
            for outcome in outcomes:
                total["seeds"] += 1
                total["events"] += outcome.events
                total["entries"] += outcome.committed
                total["terms"] += outcome.terms
                if outcome.violation:
                    failed.append(outcome)
                    print(
                        f"seed {outcome.seed}: {outcome.violation}\n  script/simulate --nodes"
                        f" {given.nodes} --replay {outcome.seed}",
                        flush=True,
                    )
            if total["seeds"] % 1000 == 0:
                print(f"… {total['seeds']} seeds, {len(failed)} violations", file=sys.stderr)
    seconds = time.monotonic() - begin
    print(
        f"{total['seeds']} seeds in {seconds:.1f} s: {total['seeds'] / seconds:.1f} seeds/s"
        f" ({total['seeds'] / max(cpu, 1e-9):.1f} per CPU second), {total['events']} events,"
        f" {total['entries']} entries committed in {total['terms']} terms, {len(failed)} violations"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
