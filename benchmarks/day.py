"""A day of many homes on one peer: readings in, settled, the clearing house closed, the disk.

Every home submits its 96 readings in one batch, its meter having signed sixteen at once, and has
traded four times. Then the utility's agent asks what is due and submits it until nothing is.
Aurora's peer, the homes' own utility's, keeps what is private; Boreal's sees hashes. Everything is
endorsed by one peer and committed by two, with every signature checked; each block holds up to 100
transactions.
"""

import argparse
import json
import os
import platform
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contracts import PRODUCT, Spent
from consortium.chaincode.api import canonical_json
from consortium.contracts.common.clock import DAY_S, day_of, day_start
from consortium.contracts.market.auctions import Result
from consortium.contracts.market.orders import Order, interval_key, order_key
from consortium.contracts.meters.meters import Meter
from consortium.contracts.registry.registry import Connection
from consortium.wire import common_pb2
from gridledger_client import MeterKey, Reading, generate_key_pem
from gridledger_client.readings import batch_transient
from tests.consortium.contracts.ledger_world import Endorsed, LedgerWorld
from tests.consortium.contracts.town import DAY, START, TERMS
from tests.consortium.contracts.world import ADMIN, BOREAL_OPERATOR, NOON, OPERATOR, home
from tests.consortium.ledger.channel import CHANNEL_ID

TRADED = (30, 40, 50, 70)
"""Quarter hours of the day in which each home has traded."""
BLOCK = 100
PAST_DAYS = 21


@dataclass(frozen=True)
class Step:
    """What one kind of work took."""

    what: str
    transactions: int
    block_bytes: int
    """Of all its transactions, on every peer."""
    endorsing: Spent
    """Of queries: asking."""
    committing: Spent
    """By the peer that keeps what is private."""
    slowest: Spent
    largest_bytes: int


class Bench:
    """One channel, two of its peers."""

    def __init__(self, folder: Path, homes: int) -> None:
        self.folder = folder
        self.world = LedgerWorld(folder, NOON)
        self.names = [f"CP-{number:06d}" for number in range(homes)]
        self.boreal = self.world.channel.open(folder / "boreal", "Boreal")
        self._key = MeterKey(generate_key_pem(), secrets.token_bytes(32))
        self._prepare()

    def close(self) -> None:
        self.boreal.close()
        self.world.close()

    def _prepare(self) -> None:
        world = self.world
        for contract in ("registry", "metering"):
            world.submit(ADMIN, f"{contract}:Configure")
        world.submit(OPERATOR, "book:ProposeProduct", terms=PRODUCT, effective_from=NOON + 900)
        world.submit(BOREAL_OPERATOR, "book:ApproveProduct", product="ANY", version=1)
        world.submit(OPERATOR, "settlement:ProposeTerms", terms=TERMS, effective_from=START)
        world.submit(BOREAL_OPERATOR, "settlement:ApproveTerms", supplier="AuroraMSP", version=1)
        starts = [START + 900 * index for index in TRADED]
        world.write(
            {
                f"{interval_key('ANY', start)}/result": canonical_json(
                    Result("ANY", start, 1, False, (), None)
                )
                for start in starts
            }
        )
        for some in _parts(self.names, 1_000):
            energy: dict[str, bytes] = {}
            metering: dict[str, bytes] = {}
            for name in some:
                connection = Connection(name, "AuroraMSP", "NORTH", 10_000, 20_000)
                energy[f"connection/{name}"] = canonical_json(connection)
                for at, start in enumerate(starts):
                    # A bid pays the offer's price and the zone's fee.
                    side, price = ("bid", 100_000) if at % 2 else ("offer", 90_000)
                    order = Order(
                        "o", name, "NORTH", "ANY", start, side, price, 100, 0, "cleared",
                        "0" * 64, 100, price,
                    )  # fmt: skip
                    energy[order_key(name, start, "o")] = canonical_json(order)
                meter = Meter(
                    f"M-{name}", name, "AuroraMSP", "accredited", self._key.public_key_pem, 30_000
                )
                metering[f"meter/{meter.meter_id}"] = canonical_json(meter)
                metering[f"meters/{name}/accredited"] = canonical_json({"meters": [meter.meter_id]})
            world.write(energy)
            world.write(metering, "metering")
        self.follow()

    def follow(self) -> None:
        """Boreal's peer commits what Aurora's has."""
        while self.boreal.height < self.world.ledger.height:
            raw = self.world.ledger.block(self.boreal.height)
            committed = self.boreal.commit(common_pb2.Block.FromString(raw))
            assert not any(committed.codes)

    def sizes(self) -> dict[str, int]:
        """Bytes of the two peers' folders: blocks, and pages of the index that are in use."""
        found = {}
        for peer, ledger, folder in (
            ("aurora", self.world.ledger, self.folder / "ledger"),
            ("boreal", self.boreal, self.folder / "boreal"),
        ):
            environment = ledger._environment
            with environment.read():
                pages = environment._environment.info()["last_pgno"] + 1
            found[f"{peer} index"] = pages * environment._page_bytes
            found[f"{peer} blocks"] = sum(
                file.stat().st_size for file in (folder / "blocks").iterdir()
            )
        return found

    def run(self, what: str, calls: Iterator[tuple[Any, str, Any, Any]]) -> Step:
        """Endorse calls and commit them, a block's worth at a time."""
        endorsing: list[Spent] = []
        committing: list[Spent] = []
        sizes: list[int] = []
        for block in _blocks(calls):
            envelopes: list[bytes] = []
            with self.world.view() as view:
                for caller, function, argument, transient in block:
                    endorsed: list[Endorsed] = []

                    def endorse(
                        caller: Any = caller,
                        function: str = function,
                        argument: Any = argument,
                        transient: Any = transient,
                        into: list[Endorsed] = endorsed,
                    ) -> None:
                        into.append(
                            self.world.simulate(view, caller, function, argument, transient)
                        )

                    endorsing.append(Spent.by(endorse))
                    envelopes.append(self.world.envelope(endorsed[0]))
            sizes += map(len, envelopes)

            def commit(envelopes: list[bytes] = envelopes) -> None:
                codes = self.world.channel.commit(self.world.ledger, *envelopes).codes
                assert not any(codes), codes

            committing.append(Spent.by(commit))
        self.follow()
        return Step(
            what,
            len(sizes),
            sum(sizes),
            Spent.of_all(endorsing),
            Spent.of_all(committing),
            max(endorsing, key=lambda one: one.cpu_s),
            max(sizes),
        )

    def ask(self, what: str, function: str, **argument: Any) -> tuple[Step, Any]:
        """Evaluate a query."""
        answers: list[Any] = []
        spent = Spent.by(
            lambda: answers.append(self.world.evaluate(OPERATOR, function, **argument))
        )
        return Step(what, 0, 0, spent, Spent(0, 0), spent, 0), answers[0]

    def readings(self) -> Iterator[tuple[Any, str, Any, Any]]:
        """Each home's day, in one batch."""
        for number, name in enumerate(self.names):
            day, register_wh = [], 10_000
            for index in range(96):
                energy_wh = (number * 7 + index * 13) % 300
                register_wh += energy_wh
                day.append(
                    Reading(f"M-{name}", START + 900 * index, 900, energy_wh, 0, register_wh, 0)
                )
            signed = self._key.sign_together(day, CHANNEL_ID)
            yield (
                home(name),
                "metering:SubmitReadings",
                {"utility": "AuroraMSP"},
                batch_transient(signed),
            )


def _parts(names: list[str], size: int) -> Iterator[list[str]]:
    for first in range(0, len(names), size):
        yield names[first : first + size]


def _blocks(calls: Iterator[Any]) -> Iterator[list[Any]]:
    block: list[Any] = []
    for call in calls:
        block.append(call)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


@contextmanager
def _bench(homes: int) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="gridledger-bench-") as folder:
        bench = Bench(Path(folder), homes)
        try:
            yield bench
        finally:
            bench.close()


def run(homes: int, told: Callable[[str], None]) -> dict[str, Any]:
    """Everything, with the bytes that each step adds to both peers' disks."""
    steps: list[Step] = []
    grown: dict[str, Mapping[str, int]] = {}
    with _bench(homes) as bench:

        def noted(step: Step) -> None:
            steps.append(step)
            told(f"{step.what}: {step.endorsing.cpu_s:.1f} + {step.committing.cpu_s:.1f} s CPU")

        before = bench.sizes()
        bench.world.now = START + DAY_S + 3600
        noted(bench.run("readings", bench.readings()))
        after = bench.sizes()
        grown["readings"] = {name: after[name] - before[name] for name in after}
        asked: list[Step] = []
        done: dict[str, list[Step]] = {}
        while True:
            step, due = bench.ask("what is due to settle", "duties:Due")
            asked.append(step)
            if not due:
                break
            calls = [(OPERATOR, one["function"], one["argument"], None) for one in due]
            for function in sorted({call[1] for call in calls}):
                some = [call for call in calls if call[1] == function]
                done.setdefault(function, []).append(bench.run(function, iter(some)))
        for parts in (*done.values(), asked):
            noted(_together(parts))
        noted(bench.run("close", iter([(OPERATOR, "settlement:CloseMarket", {"day": DAY}, None)])))
        settled = bench.sizes()
        grown["settlement"] = {name: settled[name] - after[name] for name in settled}
        # Three weeks in which every home's day was posted by both runs.
        now = bench.world.now = START + (PAST_DAYS + 1) * DAY_S + 12 * 3600
        for at in range(START + DAY_S, START + (PAST_DAYS + 1) * DAY_S, DAY_S):
            day = day_of(at)
            for kind in ("provisional", "final"):
                for names in _parts(bench.names, 5_000):
                    bench.world.write(
                        {f"st/{day}/{kind}/{name}": b'{"posted":"1"}' for name in names}
                    )
        for names in _parts(bench.names, 5_000):
            bench.world.write({f"st/{DAY}/final/{name}": b'{"posted":"1"}' for name in names})
        assert day_start(day_of(now)) <= now
        for what, function, argument in (
            ("three weeks, nothing due to settle", "agenda:Days", {"utility": "AuroraMSP"}),
            ("three weeks, nothing else due", "agenda:Due", {}),
        ):
            noted(bench.ask(what, function, **argument)[0])
    return {"homes": homes, "steps": [asdict(step) for step in steps], "grown": grown}


def _together(parts: list[Step]) -> Step:
    return Step(
        parts[0].what,
        sum(one.transactions for one in parts) or len(parts),
        sum(one.block_bytes for one in parts),
        Spent.of_all([one.endorsing for one in parts]),
        Spent.of_all([one.committing for one in parts]),
        max((one.slowest for one in parts), key=lambda one: one.cpu_s),
        max(one.largest_bytes for one in parts),
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="script/bench day", description=__doc__)
    parser.add_argument("--homes", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    found = run(options.homes, lambda text: print(text, flush=True) if not options.json else None)
    if options.json:
        print(json.dumps({"load": load, **found}, indent=2))
        return
    homes = found["homes"]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load "
        f"average {load:.0f} before; a day of {homes} homes (CPU seconds)"
    )
    print(f"{'what':36s} calls  endorsed  committed  slowest  blocks MB  largest kB")
    for step in found["steps"]:
        print(
            f"{step['what']:36s} {step['transactions']:5d} {step['endorsing']['cpu_s']:9.2f} "
            f"{step['committing']['cpu_s']:10.2f} {step['slowest']['cpu_s']:8.2f} "
            f"{step['block_bytes'] / 1e6:10.2f} {step['largest_bytes'] / 1e3:11.1f}"
        )
    for what, sizes in found["grown"].items():
        told = ", ".join(f"{name} {size / homes / 1e3:.1f}" for name, size in sizes.items())
        print(f"kB for each home, {what}: {told}")


if __name__ == "__main__":
    main()
