"""What certificates of origin are issued for: plants, months, and what was metered of them.

Pure records of both chaincodes: `origin`, where the readings are, makes `Produced` of what
`certificate` says of a plant's month in public (`ProducedBasis`).
"""

from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import AtMost, Choice, Identifier, Instant, Integer, MspId, Text

from ..common.clock import Day, day_of, day_start
from ..common.commitments import Salt
from ..common.pages import Bookmark

Month = Annotated[str, Text(r"[0-9]{4}-(0[1-9]|1[0-2])", "a month as YYYY-MM")]
Energy = Annotated[int, Integer(0, 10**15, "Wh")]
Source = Annotated[str, Choice("solar", "wind", "hydro", "biomass")]
Words = Annotated[str, Text(r"[^\x00-\x1f]{1,200}", "1 to 200 characters")]


@dataclass(frozen=True, slots=True)
class Plant:
    """A plant that certificates are issued for."""

    plant_id: Identifier
    connection_id: Identifier
    utility: MspId
    source: Source
    capacity_w: Annotated[int, Integer(1, 10**12, "W")]
    commissioned: Day
    support: Words
    """What public support it received; 'none' if none."""
    place: Words
    """As exact as its owner wants it public, such as a municipality."""


@dataclass(frozen=True, slots=True)
class ProducedBasis:
    """What is public of a plant's month."""

    plant_id: Identifier
    connection_id: Identifier
    utility: MspId
    """Who meters it when the month begins."""
    from_: Instant
    to: Instant
    battery: bool
    """Whether a battery stands behind the connection, as far as `grid` knows."""


@dataclass(frozen=True, slots=True)
class Produced:
    """A plant's month by its accredited meters, as its utility has committed to it."""

    plant_id: Identifier
    connection_id: Identifier
    month: Month
    generation_wh: Energy
    export_wh: Energy
    """Of each interval the lesser of export and generation, summed: what is renewable."""
    missing: Annotated[int, Integer(0, 10**6, "intervals")]
    """That weren't read, or whose generation nobody metered beside a battery; they count 0."""
    salt: Salt


MAX_OPEN_MONTHS = 200
"""Months of plants that are named at once."""


@dataclass(frozen=True, slots=True)
class OpenMonth:
    """A plant's month that is over and for which nothing is issued."""

    plant_id: Identifier
    month: Month


@dataclass(frozen=True, slots=True)
class OpenMonths:
    """As `agenda:Plants` answers, in order of plants."""

    months: Annotated[tuple[OpenMonth, ...], AtMost(MAX_OPEN_MONTHS)]
    bookmark: Bookmark | None


def months_before(at: int, count: int) -> list[str]:
    """The last months (UTC) that are over at an instant, the oldest first."""
    day = day_of(at)
    this = int(day[:4]) * 12 + int(day[5:7]) - 1
    return [f"{one // 12:04d}-{one % 12 + 1:02d}" for one in range(this - count, this)]


def month_end(month: str, later: int = 0) -> int:
    """The instant (UTC) at which a month, or the one so many months later, has ended."""
    year, number = int(month[:4]), int(month[5:])
    months = year * 12 + number + later  # number is 1 for January: the month after
    return day_start(f"{months // 12:04d}-{months % 12 + 1:02d}-01")


def produced_key(connection_id: str, month: str, plant_id: str) -> str:
    """Where a plant's month stands among its utility's private records."""
    return f"gen/{connection_id}/{month}/{plant_id}"
