"""Homes with accredited meters and settlement terms, ready to trade and to be settled."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from consortium.chaincode.api import Creator
from consortium.chaincode.executor import Invocation, SimulatorContext
from consortium.chaincode.simulator import TransactionSimulator
from consortium.contracts.common.clock import DAY_S, day_start
from consortium.contracts.meters import meters
from consortium.contracts.meters.meters import Meter
from consortium.contracts.meters.readings import Reading, Store
from tests.consortium.chaincode.memory_state import MemoryState
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    CHANNEL,
    OPERATOR,
    World,
    home,
)

DAY = "2026-11-22"
"""The day that is settled: the one after the world begins."""
START = day_start(DAY)
TERMS = {
    "supplier": "AuroraMSP",
    "region": None,
    "tariff": 300_000,
    "base_rate": 50_000,
    "rest": "settled",
    "shortfall_price": 350_000,
    "surplus_price": 40_000,
    "import_fee": 0,
    "shared_fee": 0,
    "netting_intervals": 1,
    "final_after_working_days": 2,
    "adjustable_days": 425,
}
PRODUCT = {
    "product": "ANY",
    "zones": [
        {"zone": "NORTH", "local_fee": 10_000, "entry_fee": 30_000, "exit_fee": 20_000},
        {"zone": "SOUTH", "local_fee": 12_000, "entry_fee": 5_000, "exit_fee": 1_000},
    ],
    "price_min": -500_000,
    "price_max": 4_000_000,
    "price_tick": 1,
    "price_rule": "middle",
    "gate_closure_s": 3600,
    "shortfall_margin": 100_000,
}


@dataclass
class Town:
    """A channel with homes of Aurora."""

    world: World = field(default_factory=World)
    homes: dict[str, Creator] = field(default_factory=dict)
    interval_s: int = 900

    @classmethod
    def of(
        cls,
        *names: str,
        terms: Mapping[str, object] | None = None,
        product: bool = False,
        fee: int = 20_000,
        sale_tax_ppm: int = 0,
        deposit: int = 10_000_000,
        interval_s: int = 900,
        south: tuple[str, ...] = (),
        keys: Mapping[str, str] | None = None,
    ) -> Town:
        town = cls(interval_s=interval_s)
        world = town.world
        world.submit(ADMIN, "metering:Configure", interval_s=interval_s)
        world.submit(
            ADMIN,
            "registry:Configure",
            interval_s=interval_s,
            grid_fee_micro_per_kwh=fee,
            sale_tax_ppm=sale_tax_ppm,
        )
        for name in names:
            town.homes[name] = home(name)
            world.submit(
                OPERATOR,
                "registry:RegisterConnection",
                connection_id=name,
                utility="AuroraMSP",
                zone="SOUTH" if name in south else "NORTH",
                max_export_w=10_000,
                max_import_w=20_000,
            )
            if deposit:
                world.submit(
                    OPERATOR,
                    "wallet:Deposit",
                    account=name,
                    amount_micro=deposit,
                    bank_reference=f"IN-{name}",
                )
                town.sweep(name)
        town._enter(names, keys or {})
        town.agree("settlement:ProposeTerms", "settlement:ApproveTerms", {**TERMS, **(terms or {})},
                   supplier="AuroraMSP")  # fmt: skip
        if product:
            town.agree("book:ProposeProduct", "book:ApproveProduct", PRODUCT, product="ANY")
        return town

    def agree(
        self, propose: str, approve: str, terms: Mapping[str, object], **named: object
    ) -> None:
        """Terms that hold from the settled day on, by two utilities."""
        agreement = self.world.submit(OPERATOR, propose, terms=terms, effective_from=START)
        self.world.submit(BOREAL_OPERATOR, approve, version=agreement["version"], **named)

    def found_community(
        self, name: str, price_micro_per_kwh: int, keys: Mapping[str, int] | None = None
    ) -> None:
        """A community that shares by these static keys, or else in proportion to consumption."""
        terms = {
            "community": name,
            "utility": "AuroraMSP",
            "method": "static" if keys else "proportional",
            "price_micro_per_kwh": price_micro_per_kwh,
            "keys": [
                {"connection_id": member, "parts": parts} for member, parts in (keys or {}).items()
            ],
        }
        self.agree("sharing:Propose", "sharing:Approve", terms, community=name)

    def sweep(self, name: str) -> None:
        entries = self.world.evaluate(self.homes[name], "wallet:Incoming", account=name)["entries"]
        names = [one if isinstance(one, str) else one["entry"] for one in entries]
        self.world.submit(self.homes[name], "wallet:Sweep", account=name, entries=names)

    # Readings: as metering:SubmitReadings leaves them, without the cost of signatures

    def metering(self) -> tuple[SimulatorContext, TransactionSimulator]:
        simulator = TransactionSimulator(self.world.state, CHANNEL)
        invocation = Invocation("metering", CHANNEL, "0" * 64, self.world.now, OPERATOR, [], {})
        return SimulatorContext(invocation, simulator), simulator

    def _enter(self, names: Iterable[str], keys: Mapping[str, str]) -> None:
        for name in names:
            context, simulator = self.metering()
            key = keys.get(name, "key")
            meters.enter(context, Meter(f"M-{name}", name, "AuroraMSP", "accredited", key, 30_000))
            assert self.world.state.commit(simulator.results()) == [0]

    def read(
        self, name: str, index: int, import_wh: int = 0, export_wh: int = 0, day: str = DAY
    ) -> None:
        """A reading of the day's interval; another one of it is a correction."""
        self.read_intervals(name, {index: (import_wh, export_wh)}, day)

    def read_intervals(
        self, name: str, energies: Mapping[int, tuple[int, int]], day: str = DAY
    ) -> None:
        """Readings of some of the day's intervals: (import, export)."""
        context, simulator = self.metering()
        store = Store(context, "AuroraMSP")
        corrections = []
        for index, energy in energies.items():
            meter, start = f"M-{name}", day_start(day) + index * self.interval_s
            before = store.latest(meter, start)
            version = 1 if before is None else before.version + 1
            if before is not None and (before.import_wh, before.export_wh) == energy:
                continue
            salt = hashlib.sha256(f"secret/{meter}/{start}/{version}".encode()).hexdigest()
            reading = Reading(
                meter, start, self.interval_s, version, *energy, 0, 0, "measured", salt, ""
            )
            store.put(reading)
            if version > 1:
                corrections.append(reading)
        store.put_corrected(corrections)
        assert self.world.state.commit(simulator.results()) == [0]

    def read_day(
        self, energies: Mapping[str, Mapping[int, tuple[int, int]]], day: str = DAY
    ) -> None:
        """All intervals of all homes: (import, export) where given, else nothing."""
        count = DAY_S // self.interval_s
        for name in self.homes:
            given = energies.get(name, {})
            self.read_intervals(name, {at: given.get(at, (0, 0)) for at in range(count)}, day)

    def copy(self) -> Town:
        """The same town, to go on with in another way."""
        state = MemoryState()
        state.block = self.world.state.block
        state.public = dict(self.world.state.public)
        state.private = dict(self.world.state.private)
        state.hashes = dict(self.world.state.hashes)
        world = World(state, self.world.now, self.world.calls)
        return Town(world, self.homes, self.interval_s)

    # Settling

    def commit(self, run: str = "provisional", *names: str, day: str = DAY) -> Any:
        return self.world.submit(
            OPERATOR,
            "daybook:Commit",
            frozen=True,
            utility="AuroraMSP",
            day=day,
            run=run,
            connections=sorted(names or self.homes),
        )

    def record(self, name: str, run: str = "provisional", day: str = DAY) -> Any:
        return self.world.evaluate(
            OPERATOR,
            "daybook:Record",
            utility="AuroraMSP",
            day=day,
            run=run,
            connection_id=name,
        )

    def post(self, run: str = "provisional", *names: str, day: str = DAY) -> Any:
        summaries = [self.record(name, run, day)["summary"] for name in sorted(names or self.homes)]
        return self.world.submit(
            OPERATOR,
            "settlement:Post",
            frozen=True,
            utility="AuroraMSP",
            day=day,
            run=run,
            summaries=summaries,
        )

    def settle(self, run: str = "provisional", *names: str, day: str = DAY) -> Any:
        """Commit and post, as soon as the day is over."""
        self.world.now = max(self.world.now, day_start(day) + DAY_S)
        self.commit(run, *names, day=day)
        return self.post(run, *names, day=day)

    def lot(self, origin: str, day: str = DAY) -> Any:
        return self.world.evaluate(OPERATOR, "token:Lot", origin=origin, day=day)

    def sums(self, name: str, day: str = DAY) -> dict[str, tuple[int, int]]:
        """What was posted, by kind: Wh and micro-units."""
        posted = self.world.evaluate(OPERATOR, "settlement:Posted", connection_id=name, day=day)
        found: dict[str, tuple[int, int]] = {}
        for one in posted["summary"]["sums"]:
            wh, amount = found.get(one["kind"], (0, 0))
            found[one["kind"]] = (wh + int(one["energy_wh"]), amount + int(one["amount_micro"]))
        return found

    # Trading

    def order(
        self, name: str, side: str, energy_wh: int, price: int, index: int, number: int = 1
    ) -> Any:
        return self.world.submit(
            self.homes[name],
            "book:Place",
            order_id=f"o-{number}",
            connection_id=name,
            product="ANY",
            interval_start=START + index * self.interval_s,
            side=side,
            price_micro_per_kwh=price,
            energy_wh=energy_wh,
        )

    def clear(self, index: int) -> Any:
        """Close the book of an interval and clear it, an hour before delivery at the latest."""
        where = {"product": "ANY", "interval_start": START + index * self.interval_s}
        self.world.now = max(self.world.now, START + index * self.interval_s - 3600)
        self.world.submit(OPERATOR, "book:Close", **where)
        for step in ("book:Aggregate", "book:Clear", "book:Apply"):
            for zone in ("NORTH", "SOUTH") if step != "book:Clear" else ("",):
                page = {"zone": zone, "page": 0} if zone else {}
                result = self.world.submit(OPERATOR, step, frozen=True, **page, **where)
        return result


def final_time(day: str = DAY) -> int:
    """When the day is final under two working days (2026-11-22 is a Sunday)."""
    return day_start(day) + 3 * DAY_S
