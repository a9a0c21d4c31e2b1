"""What a home would have used: the baseline that a demand response is measured against.

Pure functions of integers, energy in Wh, import positive and export negative. The rule is "10 of
10 with a same-day adjustment": the mean of the same hours on the ten most recent similar days
without an event, scaled by how the hours before the event compare with those days, by at most
20 % either way. (California ISO, Baseline Accuracy Work Group Proposal, 2017.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..common.money import half_even

DAYS = 10
FEWEST_DAYS = 5
"""With fewer similar days there is no baseline, and no reward."""
_MILLION = 1_000_000
CAP_PPM = 200_000


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


def similar_days(past: Sequence[PastDay], *, working: bool) -> list[PastDay]:
    """The most recent days of the same kind without an event, ten at most, the newest first."""
    found = [day for day in past if day.working == working and not day.had_event]
    found.sort(key=lambda day: day.day, reverse=True)
    return found[:DAYS]


def baseline(
    past: Sequence[PastDay], adjust_hours_wh: Sequence[int], *, working: bool
) -> Baseline | None:
    """Compute a baseline; None with fewer than five similar days.

    A home that exports in the hours compared, on that day or on the mean of the others, isn't
    adjusted: the ratio of numbers of different sign says nothing.

    Args:
        past: Days before the event, in any order.
        adjust_hours_wh: The hours before the event, on its day.
        working: Whether the event's day is a working day.
    """
    days = similar_days(past, working=working)
    if len(days) < FEWEST_DAYS:
        return None
    intervals = range(len(days[0].event_hours_wh))
    sums = [sum(day.event_hours_wh[index] for day in days) for index in intervals]
    usual = sum(sum(day.adjust_hours_wh) for day in days)
    actual = sum(adjust_hours_wh) * len(days)
    if usual > 0 and actual > 0:
        ratio = half_even(actual * _MILLION, usual)
        ratio = min(max(ratio, _MILLION - CAP_PPM), _MILLION + CAP_PPM)
    else:
        ratio = _MILLION
    return Baseline(
        tuple(day.day for day in days),
        tuple(half_even(total, len(days)) for total in sums),
        ratio,
        tuple(half_even(total * ratio, len(days) * _MILLION) for total in sums),
    )


def additive_adjustment(baseline_w: int, actual_w: int) -> int:
    """Another rule in use: what the hour before the event was above its baseline, never below."""
    return max(0, actual_w - baseline_w)


def response_wh(expected_wh: Sequence[int], actual_wh: Sequence[int], kind: str) -> int:
    """What a home changed in an event's intervals, summed; never negative in sum.

    Args:
        expected_wh: The adjusted baseline.
        actual_wh: What was metered.
        kind: "reduce" counts what was used less, "absorb" what was used more.
    """
    change = sum(expected_wh) - sum(actual_wh)
    return max(0, change if kind == "reduce" else -change)
