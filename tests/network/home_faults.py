"""Kills Home Assistant again and again while its ledger comes and goes, and counts the energy.

`script/faults home --kills 50` runs it whole, the tests run it short. Home Assistant gets
`kill -9` while it runs, while readings are on their way, and in the middle of starting. Meanwhile
the ledger is killed or stopped at random, for random times. Power changes all along. In the end
every interval must be in the ledger once, and they must add up to what the inverter's registers
have counted, to the Wh.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from demo.home_assistant import PID_FILE
from tests.ports import first_port

from .home import (
    DIRECTIONS,
    INTERVAL_S,
    LATENESS_S,
    SAMPLE_S,
    Site,
    check_quality,
    check_series,
    joined_home,
)

MAX_IMPORT_W = 20_000
MAX_EXPORT_W = 10_000
"""A third of what the connection point bears: a sample that is seconds late on a busy machine puts
the energy of several intervals into one, and the ledger refuses what no connection can carry."""
STARTS = 5
BUSY_S = 10.0
"""What nodes that start beside it may add before Home Assistant has a sample."""


@dataclass
class Figures:
    """What was done, and what came of it."""

    kills: int = 0
    kills_while_starting: int = 0
    ledger_killed: int = 0
    ledger_stopped: int = 0
    ledger_starts_failed: int = 0
    seconds: int = 0
    intervals: int = 0
    estimated: int = 0
    import_wh: int = 0
    export_wh: int = 0


async def _start_ledger(site: Site, figures: Figures, say: Callable[[str], None]) -> None:
    """Start it, again where an overloaded machine was too slow for it, as a supervisor does."""
    for _ in range(STARTS):
        try:
            await site.start_ledger()
        except pytest.fail.Exception as failure:
            figures.ledger_starts_failed += 1
            say(str(failure))
        else:
            return
    raise AssertionError(f"the ledger does not start, {STARTS} times in turn")


async def _flap(
    site: Site,
    choose: random.Random,
    figures: Figures,
    enough: asyncio.Event,
    say: Callable[[str], None],
) -> None:
    """Kill or stop the ledger at random, until it is enough; then it runs."""
    while not enough.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(enough.wait(), choose.uniform(2, 12))
            return
        if choose.random() < 0.5:
            figures.ledger_killed += 1
            await site.kill_ledger()
        else:
            figures.ledger_stopped += 1
            with contextlib.suppress(subprocess.TimeoutExpired):  # then it was killed
                await site.stop_ledger()
        await asyncio.sleep(choose.uniform(0.5, 8))
        await _start_ledger(site, figures, say)


async def _kill_while_it_starts(site: Site, after_s: float) -> None:
    """Begin to start Home Assistant, and `kill -9` it in the middle."""
    pid_file = site.house.folder / PID_FILE
    before = pid_file.read_text()
    starting = asyncio.create_task(site.house.start(lambda _: None))
    while pid_file.read_text() == before:  # noqa: ASYNC110 - another process's state
        await asyncio.sleep(0.01)
    await asyncio.sleep(after_s)
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    await site.house.wait()
    await asyncio.gather(starting, return_exceptions=True)
    site.read_log()


async def kill_repeatedly(
    site: Site, kills: int, choose: random.Random, say: Callable[[str], None] = lambda _: None
) -> Figures:
    """Kill Home Assistant so often; check what is in the ledger, and return the figures.

    Raises:
        AssertionError: an interval is missing or twice, or the sums are wrong.
    """
    figures, enough, began = Figures(), asyncio.Event(), time.monotonic()
    flapping = asyncio.create_task(_flap(site, choose, figures, enough, say))
    try:
        while figures.kills < kills:
            site.inverter.flow(choose.randint(0, MAX_IMPORT_W), choose.randint(0, MAX_EXPORT_W))
            await asyncio.sleep(choose.uniform(0, 2 * INTERVAL_S))
            await site.kill_home_assistant()
            figures.kills += 1
            await asyncio.sleep(choose.uniform(0, 2))
            # One in three dies again before it runs.
            while figures.kills < kills and choose.random() < 1 / 3:
                await _kill_while_it_starts(site, choose.uniform(0.2, 6))
                figures.kills += 1
                figures.kills_while_starting += 1
            await site.start_home_assistant()
            if flapping.done():
                break  # it failed: what it raises says why
            say(f"{figures.kills} kills, {site.waiting()} readings wait")
    finally:
        enough.set()
        await flapping
    site.inverter.flow(0, 0)
    await site.catches_up_with(time.time() + 2 * SAMPLE_S + LATENESS_S)
    await check(site, figures)
    figures.seconds = round(time.monotonic() - began)
    return figures


async def check(site: Site, figures: Figures) -> None:
    """Each interval once, and all of them together what the inverter has counted."""
    readings = await site.readings()
    assert not site.refused(), f"the ledger refused {site.refused()}"
    check_series(readings)
    sums = tuple(sum(int(reading[f"{name}_wh"]) for reading in readings) for name in DIRECTIONS)
    now = site.inverter.registers_wh()
    truth = tuple(at - base for at, base in zip(now, site.inverter.base_wh, strict=True))
    assert sums == truth, f"the ledger has {sums} Wh, the inverter counted {truth}"
    assert sums == site.registers_wh(), f"{sums} Wh, the home's own registers {site.registers_wh()}"
    entered = await site.counted_by_events()
    assert entered == len(readings), f"{entered} readings were entered, {len(readings)} are there"
    figures.intervals = len(readings)
    figures.estimated = check_quality(site, readings, lateness_s=BUSY_S)
    figures.import_wh, figures.export_wh = sums
    assert not site.errors, site.errors


async def run(kills: int, seed: int) -> Figures:
    """Make a home and a network of its own, and kill as often as asked."""
    with tempfile.TemporaryDirectory(prefix="gridledger-home-") as folder:
        async with joined_home(Path(folder), first_port()) as site:
            return await kill_repeatedly(
                site,
                kills,
                random.Random(seed),
                lambda text: print(f"home: {text}", file=sys.stderr, flush=True),
            )


def main() -> None:
    """Run the command; see `script/faults --help`."""
    parser = argparse.ArgumentParser(prog="script/faults home", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    figures = asdict(asyncio.run(run(given.kills, given.seed))) | {"seed": given.seed}
    if given.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name.replace('_', ' '):22} {value}")


if __name__ == "__main__":
    main()
