"""How small a theft is found: transformers with measured homes behind meters as bad as real ones.

48 measured homes over two weeks. Every home's meter is of class 1 (wrong by up to 1 %, always the
same way, and by up to 0.2 % more on any one day), the transformer's of class 0.5, all clocks are
off by up to 30 s, and 2 % of all readings are missing, the transformer's own too. A register that
was not read at midnight counts up to its last reading before, as on the ledger. Iron and copper
lose energy; their sizes on the plate are wrong by up to a tenth.

Only registers at midnight are used, so only these are drawn: how long before midnight a meter was
last read is a geometric number.
"""

import argparse
import csv
import random
import statistics
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from consortium.contracts.balance.losses import (
    DayBalance,
    Finding,
    Suspect,
    find,
    learn,
    suspects,
)

HOUSEHOLDS = (
    Path(__file__).resolve().parents[1] / "demo" / "data" / "ch_households_import_15min_wh.csv"
)
DAYS, TRAINING = 14, 10
WINDOW = 28
"""Days in which a loss is looked for (balance.MAX_WATCHED)."""
MISSING = 0.02
NO_LOAD_WH = 24 * 150
COPPER_AT_MEAN_LOAD = 0.01
"""Of what is delivered, when the load is what it is on average."""


@dataclass(frozen=True)
class Measured:
    """What the homes used."""

    rows: list[list[int]]
    """For each quarter hour, Wh of each home."""
    energy: list[list[int]]
    """For each day, Wh of each home."""
    squares: list[int]
    """For each day, the sum over its quarter hours of all homes' Wh squared."""

    @property
    def homes(self) -> int:
        """How many."""
        return len(self.rows[0])


@cache
def measured() -> Measured:
    """The homes' two weeks."""
    with HOUSEHOLDS.open() as file:
        rows = [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    homes = range(len(rows[0]))
    days = [rows[day * 96 : (day + 1) * 96] for day in range(DAYS)]
    return Measured(
        rows,
        [[sum(row[home] for row in day) for home in homes] for day in days],
        [sum(sum(row) ** 2 for row in day) for day in days],
    )


@dataclass
class Feeder:
    """A transformer and its homes, with theft from day `TRAINING` on."""

    seed: int
    tap: float = 0
    """Taken before any meter, of all that is delivered."""
    tampered: int | None = None
    """A home whose meter counts less."""
    tampered_counts: float = 0
    """What is left of it."""
    honest: dict[int, float] = field(default_factory=dict)
    """Homes that really use so many times as much."""
    known_plate: bool = True
    """Whether the transformer's no-load and copper losses are known at all."""
    length: int = DAYS
    """Days; past the measured two weeks these come again, every home's day up to 30 % more or less
    and all of them together up to 25 %."""
    days: list[DayBalance] = field(default_factory=list)
    registers: list[list[int]] = field(default_factory=list)
    """For each day, what each home's register counted."""

    def __post_init__(self) -> None:
        homes = measured()
        chance = random.Random(self.seed)  # noqa: S311
        gains = [chance.uniform(-0.01, 0.01) for _ in range(homes.homes)]
        gain = chance.uniform(-0.005, 0.005)
        clocks = [chance.uniform(-30, 30) for _ in range(homes.homes)]
        clock = chance.uniform(-30, 30)
        mean_square = sum(homes.squares) / sum(map(sum, homes.energy))
        resistance = COPPER_AT_MEAN_LOAD / mean_square
        self.plate = (
            int(NO_LOAD_WH * chance.uniform(0.9, 1.1)),
            int(resistance * chance.uniform(0.9, 1.1) * 1e9),
        )
        # What the register misses of a day, when read at its end, in Wh before midnight.
        early = [0.0] * homes.homes
        early_transformer = 0.0
        for number in range(self.length):
            day = number % DAYS
            cut = self._before(chance, 0)
            stealing = number >= TRAINING
            factors = [1.0] * homes.homes
            if number >= DAYS:
                weather = chance.uniform(0.75, 1.25)
                factors = [weather * chance.uniform(0.7, 1.3) for _ in factors]
            if stealing:
                for home, factor in self.honest.items():
                    factors[home] *= factor
            used = [energy * factors[i] for i, energy in enumerate(homes.energy[day])]
            load = sum(used) / (1 - (self.tap if stealing else 0))
            scale = load / sum(homes.energy[day])
            square = homes.squares[day] * scale**2
            delivered = load + NO_LOAD_WH + resistance * square
            seen = []
            for home in range(homes.homes):
                late = self._before(chance, cut + clocks[home])
                now_early = _energy_before(day, home, late) * factors[home]
                counted = used[home] - now_early + early[home]
                early[home] = now_early
                if stealing and home == self.tampered:
                    counted *= self.tampered_counts
                seen.append(int(counted * (1 + gains[home] + chance.uniform(-0.002, 0.002))))
            now_early = scale * sum(
                _energy_before(day, home, cut + clock) for home in range(homes.homes)
            )
            counted = delivered - now_early + early_transformer
            early_transformer = now_early
            counted *= 1 + gain + chance.uniform(-0.0005, 0.0005)
            self.registers.append(seen)
            self.days.append(DayBalance(f"{number:02d}", int(counted), sum(seen), int(square)))

    @staticmethod
    def _before(chance: random.Random, seconds: float) -> float:
        """How many seconds before midnight a register was read that ought to be at `seconds`."""
        while chance.random() < MISSING:
            seconds += 900
        return seconds

    def found(self, until: int) -> Finding | None:
        """What the model of the first days finds on the evening before day `until`."""
        no_load_wh, quadratic = self.plate if self.known_plate else (0, 0)
        model = learn(self.days[:TRAINING], no_load_wh, quadratic)
        return None if model is None else find(model, self.days[TRAINING:until])

    def suspects(self, finding: Finding) -> list[Suspect]:
        """Meters whose behaviour changed as the loss began."""
        since, until = int(finding.since), int(finding.until)
        days = self.registers[: until + 1]
        return suspects(
            {f"{home:02d}": [day[home] for day in days] for home in range(measured().homes)},
            since,
            finding.loss_wh * finding.days,
        )


def _energy_before(day: int, home: int, seconds: float) -> float:
    """What a home used in the seconds before a day's end; negative seconds lie after it."""
    rows = measured().rows
    quarter = (day + 1) * 96
    energy = 0.0
    while seconds > 900:
        quarter -= 1
        energy += rows[quarter][home]
        seconds -= 900
    row = quarter - 1 if seconds > 0 else min(quarter, len(rows) - 1)
    return energy + rows[row][home] * seconds / 900


def curve(
    tap: float, seeds: int, *, known_plate: bool = True
) -> tuple[int, list[int], list[float]]:
    """How many of so many feeders are found within three days and four, and sized how."""
    found, waited, sizes = 0, [], []
    for seed in range(seeds):
        feeder = Feeder(seed, tap=tap, known_plate=known_plate)
        for until in range(TRAINING + 1, DAYS + 1):
            finding = feeder.found(until)
            if finding is None:
                continue
            if until <= TRAINING + 3:
                found += 1
                waited.append(until - TRAINING)
            break
        final = feeder.found(TRAINING + 3)
        if final is not None and tap:
            sizes.append(final.loss_ppm / 1e6 / tap)
    return found, waited, sizes


def tampered(counts: float) -> str:
    """What becomes of meters that count less from one day on, each of the homes in turn."""
    homes = range(measured().homes)
    found = first = others = 0
    for home in homes:
        feeder = Feeder(1000 + home, tampered=home, tampered_counts=counts)
        finding = feeder.found(TRAINING + 3)
        if finding is None:
            continue
        found += 1
        named = [suspect.meter for suspect in feeder.suspects(finding)]
        first += named[:1] == [f"{home:02d}"]
        others += any(name != f"{home:02d}" for name in named)
    return (
        f"a meter that counts {counts:.0%}: {found} of {len(homes)} found within three days, "
        f"{first} named first, another home named in {others}"
    )


def false_alerts(seeds: int, length: int) -> tuple[int, int]:
    """How many clean feeders raise an alert when watched for long, and the days that is."""
    alerts = 0
    for seed in range(seeds):
        feeder = Feeder(seed, length=length)
        model = learn(feeder.days[:TRAINING], *feeder.plate)
        assert model is not None
        alerts += any(
            find(model, feeder.days[max(TRAINING, until - WINDOW) : until])
            for until in range(TRAINING + 1, length + 1)
        )
    return alerts, seeds * (length - TRAINING)


def main() -> int:
    """Print the curve; 1 if an honest feeder raised an alert."""
    parser = argparse.ArgumentParser(prog="script/bench theft", description=__doc__)
    parser.add_argument("--clean", type=int, default=1000, help="clean feeders (default 1000)")
    parser.add_argument("--seeds", type=int, default=200, help="feeders with each theft (200)")
    options = parser.parse_args()
    alerts = 0
    for known_plate in (True, False):
        raised = sum(
            any(
                Feeder(seed, known_plate=known_plate).found(until)
                for until in range(TRAINING + 1, DAYS + 1)
            )
            for seed in range(options.clean)
        )
        alerts += raised
        plate = "plate known" if known_plate else "plate unknown"
        print(f"clean, {plate}: {raised} alerts in {options.clean} feeders", flush=True)
        for tap in (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04):
            found, waited, sizes = curve(tap, options.seeds, known_plate=known_plate)
            line = f"{tap:7.2%}: {found:4d} of {options.seeds} found within three days"
            if sizes:
                line += (
                    f", after {statistics.mean(waited):.1f} days (at most {max(waited)}), size "
                    f"{min(sizes):.2f} to {max(sizes):.2f} (mean {statistics.mean(sizes):.3f}), "
                    f"{sum(abs(size - 1) <= 0.1 for size in sizes)} within a tenth"
                )
            print(line, flush=True)
    alerts_long, days = false_alerts(options.clean // 5, 100)
    print(
        f"clean, watched for 90 days: alerts in {alerts_long} of {options.clean // 5}, {days} days"
    )
    taps = [Feeder(seed, tap=0.02) for seed in range(options.seeds)]
    findings = [(feeder, feeder.found(TRAINING + 3)) for feeder in taps]
    accused = sum(bool(feeder.suspects(finding)) for feeder, finding in findings if finding)
    print(f"2% before all meters: a home is named in {accused} of {options.seeds}")
    for counts in (0.0, 0.5):
        print(tampered(counts), flush=True)
    changes = [(home, times) for home in range(measured().homes) for times in (0, 0.3, 2, 3)]
    raised = sum(
        any(feeder.found(until) for until in range(TRAINING + 1, DAYS + 1))
        for feeder in (Feeder(home, honest={home: times}) for home, times in changes)
    )
    print(f"a home that honestly uses 0, 0.3, 2 or 3 times as much: {raised} of {len(changes)}")
    return 1 if alerts + raised else 0


if __name__ == "__main__":
    sys.exit(main())
