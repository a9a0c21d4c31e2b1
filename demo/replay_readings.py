"""How a month's readings reach the ledger: most of them the next morning, some not so well.

* **Late.** 5 % come two mornings after the others; until then their intervals are estimated.
* **Repeated.** 2 % come a second time, the morning after they came first.
* **Corrected.** 1 % are substituted by the operator at first, with too much, and corrected five
  mornings later by what the meter itself counted; a few of them only after their day was final.

Each morning's readings are shuffled. What becomes of a reading follows from its meter and interval,
so two runs are alike. The transformers' own meters are always read in time.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from demo.homes import QUARTER_S
from gridledger_client import MeterKey, Quality, Reading

REGISTER_WH: Final = 1_000_000
"""What all registers show before the month."""
LATE_MORNINGS: Final = 2
CORRECTED_MORNINGS: Final = 5
SUBSTITUTED_WH: Final = 37
"""What is counted too much until a reading is corrected, of import; less than half of export."""
LOOK_BACK: Final = 16
"""Quarter hours before a period's end within which a home is read, to be balanced then."""

type Row = dict[str, str]
"""A reading's fields, as they are submitted."""


@dataclass(frozen=True, slots=True)
class Disorder:
    """How many of a million readings don't simply come."""

    late_ppm: int = 50_000
    repeated_ppm: int = 20_000
    corrected_ppm: int = 10_000
    after_final_ppm: int = 300
    """Of all; these are among the corrected."""
    shuffled: bool = True


CLEAN: Final = Disorder(0, 0, 0, 0, shuffled=False)
"""Every reading in time, once and right, in order."""


@dataclass(slots=True)
class Counts:
    """Readings, by what the ledger says of them."""

    accepted: int = 0
    duplicate: int = 0
    corrected: int = 0
    late: int = 0
    after_final: int = 0


def draw_ppm(*parts: object) -> int:
    """A number below a million that is the same in every run."""
    text = "/".join(str(one) for one in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 1_000_000


class Readings:
    """Signs what meters count, and says on which morning it reaches the ledger.

    A morning's number is its day's: morning 0 comes after day 0.
    """

    def __init__(self, keys: Mapping[str, MeterKey], channel: str, disorder: Disorder) -> None:
        """`keys` of all meters by name."""
        self._keys = keys
        self._channel = channel
        self._disorder = disorder
        self._counted: dict[str, tuple[int, int]] = {}
        self._waiting: dict[tuple[int, str], list[Row]] = {}
        self._after_final: dict[str, list[Row]] = {}
        self._shown: dict[str, dict[int, tuple[int, int]]] = {}
        self.expected = Counts()
        """What the ledger should have said, once everything has reached it."""
        self.adjusted: list[tuple[str, int]] = []
        """Meters and intervals that are corrected after their day was final."""

    def count(
        self, utility: str, meter: str, morning: int, start: int, import_wh: int, export_wh: int
    ) -> None:
        """Take what a meter counted in an interval, and send it without fail on a morning."""
        self._send(utility, morning, self._sign(meter, start, import_wh, export_wh))

    def count_in_disorder(
        self, utility: str, meter: str, morning: int, start: int, import_wh: int, export_wh: int
    ) -> None:
        """Take what a meter counted in an interval; when it comes, and how, is drawn."""
        rules = self._disorder
        drawn = draw_ppm("reading", meter, start) - rules.late_ppm
        row = self._sign(meter, start, import_wh, export_wh)
        if drawn < 0:
            self.expected.late += 1
            morning += LATE_MORNINGS
        elif drawn < rules.corrected_ppm:
            self.expected.corrected += 1
            self.expected.accepted += 1
            right = self._signed(meter, start, import_wh, export_wh, version=2)
            if drawn < rules.after_final_ppm:
                self.expected.after_final += 1
                self.adjusted.append((meter, start))
                self._after_final.setdefault(utility, []).append(right)
            else:
                self._wait(utility, morning + CORRECTED_MORNINGS, right)
            row = _substituted(row)
        self._send(utility, morning, row)
        if draw_ppm("again", meter, start) < rules.repeated_ppm:
            self.expected.duplicate += 1
            self._wait(utility, morning + 1, row)

    def of_morning(self, utility: str, morning: int) -> list[Row]:
        """What reaches a utility's ledger on a morning, in the order in which it does."""
        rows = self._waiting.pop((morning, utility), [])
        if self._disorder.shuffled:
            random.Random(f"{utility}/{morning}").shuffle(rows)  # noqa: S311
        return self._showing(rows)

    def is_waiting(self) -> bool:
        """Whether a later morning brings anything."""
        return bool(self._waiting)

    def after_final(self, utility: str) -> list[Row]:
        """A utility's corrections that come when all days are final."""
        return self._showing(self._after_final.pop(utility, []))

    def last_shown(self, meter: str, at: int) -> tuple[int, int]:
        """A meter's registers, import and export, as the ledger knows them at an instant."""
        shown = self._shown[meter]
        return shown[max(start for start in shown if start < at)]

    def _send(self, utility: str, morning: int, row: Row) -> None:
        self.expected.accepted += 1
        self._wait(utility, morning, row)

    def _wait(self, utility: str, morning: int, row: Row) -> None:
        self._waiting.setdefault((morning, utility), []).append(row)

    def _showing(self, rows: list[Row]) -> list[Row]:
        for row in rows:
            shown = self._shown.setdefault(row["meter_id"], {})
            # Registers are right in a substituted reading as well: they were read later.
            shown[int(row["interval_start"])] = (
                int(row["import_register_wh"]),
                int(row["export_register_wh"]),
            )
        for meter in {row["meter_id"] for row in rows}:
            oldest = max(self._shown[meter]) - LOOK_BACK * QUARTER_S
            self._shown[meter] = {
                start: registers
                for start, registers in self._shown[meter].items()
                if start >= oldest
            }
        return rows

    def _sign(self, meter: str, start: int, import_wh: int, export_wh: int) -> Row:
        before = self._counted.get(meter, (REGISTER_WH, REGISTER_WH))
        self._counted[meter] = before[0] + import_wh, before[1] + export_wh
        return self._signed(meter, start, import_wh, export_wh)

    def _signed(
        self, meter: str, start: int, import_wh: int, export_wh: int, version: int = 1
    ) -> Row:
        reading = Reading(
            meter,
            start,
            QUARTER_S,
            import_wh,
            export_wh,
            *self._counted[meter],
            version=version,
        )
        return dict(self._keys[meter].sign(reading, self._channel).fields)


def _substituted(row: Row) -> Row:
    """What an operator puts in a reading's place: unsigned, its transaction vouches for it."""
    export_wh = int(row["export_wh"])
    return {
        **row,
        "import_wh": str(int(row["import_wh"]) + SUBSTITUTED_WH),
        "export_wh": str(export_wh - min(export_wh, SUBSTITUTED_WH) // 2),
        "quality": Quality.SUBSTITUTED.value,
        "signature": "",
    }
