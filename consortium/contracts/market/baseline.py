"""What a home would have used: the baseline that a demand response is measured against.

Pure functions of integers, energy in Wh, import positive and export negative. The rule is "10 of
10 with a same-day adjustment": the mean of the same hours on the ten most recent similar days
without an event, scaled by how the hours before the event compare with those days, by at most
20 % either way. (California ISO, Baseline Accuracy Work Group Proposal, 2017.) An event may say
that what those hours were above the mean is added instead, or that nothing is adjusted.

`response` says what is public of an event (`Basis`), and takes what chaincode `metering` makes of
it and of readings: `Expected` before the event, `Measured` after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import AtMost, Choice, Identifier, Instant, Integer

from ..common.clock import Day
from ..common.commitments import Salt
from ..common.money import half_even

DAYS = 10
FEWEST_DAYS = 5
"""With fewer similar days there is no baseline, and no reward."""
LOOK_BACK_DAYS = 60
"""So far back similar days are looked for."""
_MILLION = 1_000_000
CAP_PPM = 200_000
MAX_INTERVALS = 96
"""Of an event."""
MAX_HOMES = 10
"""Whose baselines are computed by one call: some 30,000 reads."""
MAX_OPEN = 200
"""Homes named by one answer to what is still to be done."""
LEAD_S = 3600
"""Before an event, in which its utility computes baselines and commits to them."""
COMPARED_S = {"scaled": (4 * 3600, LEAD_S), "added": (2 * 3600, LEAD_S), "none": (0, 0)}
"""Which hours before an event are compared, from and until how long before: the last is left out,
since who knows of the event may use more in it."""

Adjustment = Annotated[str, Choice("scaled", "added", "none")]
EventEnergy = Annotated[int, Integer(-(10**9), 10**9, "Wh")]
Energies = Annotated[tuple[EventEnergy, ...], AtMost(MAX_INTERVALS)]


@dataclass(frozen=True, slots=True)
class PastDay:
    """A day before the event."""

    day: str
    working: bool
    """A working day; else a weekend or a holiday."""
    had_event: bool
    event_hours_wh: tuple[int, ...]
    """The intervals of the event's window."""
    adjust_hours_wh: tuple[int, ...]
    """The intervals of the hours before it that are compared."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What would have been used in each interval of the event."""

    days: tuple[str, ...]
    """That it rests on."""
    raw_wh: tuple[int, ...]
    ratio_ppm: int
    """Of the same-day adjustment, within its cap; 1,000,000 is none."""
    adjusted_wh: tuple[int, ...]
    added_wh: int = 0
    """To each interval, where the event's rule adds."""


@dataclass(frozen=True, slots=True)
class PastWindow:
    """The same hours on an earlier day."""

    day: Day
    start: Instant
    working: bool


@dataclass(frozen=True, slots=True)
class HomeBasis:
    """What is public of a home that takes part."""

    connection_id: Identifier
    since: Instant
    """When who lives there moved in, as far as the registry knows: earlier days don't count."""
    event_days: Annotated[tuple[Day, ...], AtMost(LOOK_BACK_DAYS)]
    """On which it took part in an event."""


@dataclass(frozen=True, slots=True)
class Basis:
    """What is public of an event's baselines."""

    event_id: Identifier
    window_start: Instant
    end: Instant
    adjustment: Adjustment
    working: bool
    """Whether its day is a working day."""
    past: Annotated[tuple[PastWindow, ...], AtMost(LOOK_BACK_DAYS)]
    """The newest first."""
    homes: Annotated[tuple[HomeBasis, ...], AtMost(MAX_HOMES)]


@dataclass(frozen=True, slots=True)
class Expected:
    """A home's baseline, as its utility has committed to it before the event."""

    event_id: Identifier
    connection_id: Identifier
    days: Annotated[tuple[Day, ...], AtMost(DAYS)]
    """That it rests on."""
    adjusted: bool
    """Whether the hours before the event were read by then, all of them."""
    energies_wh: Energies
    """None with too few similar days."""
    salt: Salt


@dataclass(frozen=True, slots=True)
class Measured:
    """What its accredited meters then counted, as its utility has committed to it."""

    event_id: Identifier
    connection_id: Identifier
    energies_wh: Energies
    salt: Salt


@dataclass(frozen=True, slots=True)
class OpenPart:
    """A home whose baseline is to be committed to, or who is to be measured."""

    event_id: Identifier
    connection_id: Identifier
    window_start: Instant
    end: Instant
    adjustment: Adjustment
    state: Annotated[str, Choice("opted_in", "committed")]


@dataclass(frozen=True, slots=True)
class OpenParts:
    """As `response:Open` answers, in order of events."""

    parts: Annotated[tuple[OpenPart, ...], AtMost(MAX_OPEN)]


def expected_key(connection_id: str, window_start: int, event_id: str) -> str:
    """Where a baseline stands among its utility's private records."""
    return f"dr/{connection_id}/{window_start:012d}/{event_id}/expected"


def measured_key(connection_id: str, window_start: int, event_id: str) -> str:
    """Where what was counted stands."""
    return f"dr/{connection_id}/{window_start:012d}/{event_id}/measured"


def similar_days(past: Sequence[PastDay], *, working: bool) -> list[PastDay]:
    """The most recent days of the same kind without an event, ten at most, the newest first."""
    found = [day for day in past if day.working == working and not day.had_event]
    found.sort(key=lambda day: day.day, reverse=True)
    return found[:DAYS]


def baseline(
    past: Sequence[PastDay],
    adjust_hours_wh: Sequence[int],
    *,
    working: bool,
    adjustment: str = "scaled",
) -> Baseline | None:
    """Compute a baseline; None with fewer than five similar days.

    A home that exports in the hours compared, on that day or on the mean of the others, isn't
    scaled: the ratio of numbers of different sign says nothing.

    Args:
        past: Days before the event, in any order.
        adjust_hours_wh: The hours before the event, on its day; none: nothing is adjusted.
        working: Whether the event's day is a working day.
        adjustment: "scaled" by the ratio of those hours, "added" their mean difference, or "none".
    """
    days = similar_days(past, working=working)
    if len(days) < FEWEST_DAYS:
        return None
    intervals = range(len(days[0].event_hours_wh))
    sums = [sum(day.event_hours_wh[index] for day in days) for index in intervals]
    usual = sum(sum(day.adjust_hours_wh) for day in days)
    actual = sum(adjust_hours_wh) * len(days)
    ratio, added = _MILLION, 0
    if adjustment == "scaled" and usual > 0 and actual > 0:
        ratio = half_even(actual * _MILLION, usual)
        ratio = min(max(ratio, _MILLION - CAP_PPM), _MILLION + CAP_PPM)
    elif adjustment == "added" and adjust_hours_wh:
        more = additive_adjustment(usual, actual)
        added = half_even(more, len(days) * len(adjust_hours_wh))
    return Baseline(
        tuple(day.day for day in days),
        tuple(half_even(total, len(days)) for total in sums),
        ratio,
        tuple(half_even(total * ratio, len(days) * _MILLION) + added for total in sums),
        added,
    )


def additive_adjustment(baseline: int, actual: int) -> int:
    """What the hours before the event were above their baseline, never below; of one unit both.

    (Source: Flexibility Services Standard Agreement.)
    """
    return max(0, actual - baseline)


def change_wh(expected_wh: Sequence[int], actual_wh: Sequence[int], kind: str, first: int) -> int:
    """What a home changed in an event's intervals, summed; negative: against what was asked for.

    Args:
        expected_wh: The baseline.
        actual_wh: What was metered.
        kind: "reduce" counts what was used less, "absorb" what was used more, "shift" the lesser of
            what was used less in the first intervals and more in the others.
        first: How many intervals its window has, for "shift".
    """
    less = [expected - actual for expected, actual in zip(expected_wh, actual_wh, strict=True)]
    match kind:
        case "reduce":
            return sum(less)
        case "absorb":
            return -sum(less)
        case _:
            return min(sum(less[:first]), -sum(less[first:]))


def sold_beyond_wh(expected_wh: Sequence[int], sold_wh: Sequence[int]) -> int:
    """Of what was sold as energy, what the baseline wouldn't have fed in anyway.

    That much of a reduction is paid by its buyer already.
    """
    return sum(
        max(0, sold - max(0, -expected))
        for expected, sold in zip(expected_wh, sold_wh, strict=True)
    )
