"""How reliable a grid was: indices of interruptions as IEEE 1366 defines them, in integers.

Pure functions. Sustained interruptions are those of more than three minutes (EN 50160); shorter
ones count separately. Nothing here names a home.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..common.money import half_even

SUSTAINED_S = 180
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Interruption:
    """Homes without power from one instant to another."""

    since: int
    until: int
    homes: int


@dataclass(frozen=True, slots=True)
class Indices:
    """Figures of a period."""

    homes_served: int
    interruptions: int
    """Sustained ones."""
    momentary: int
    homes_interrupted: int
    """A home counts as often as it was interrupted."""
    home_seconds: int
    saifi_ppm: int
    """Interruptions of a home on average, times a million."""
    saidi_s: int
    """Seconds without power of a home on average."""
    caidi_s: int
    """Seconds until power was back, on average over those who were interrupted."""
    asai_ppm: int
    """The share of the time that a home had power."""


def indices(
    interruptions: Sequence[Interruption], homes_served: int, from_: int, to: int
) -> Indices:
    """The figures of [from_, to); what lasted longer counts within it only.

    An interruption counts where it began; one that began before counts with its seconds alone.
    """
    count = momentary = homes = seconds = 0
    for one in interruptions:
        if one.until <= from_ or one.since >= to:
            continue
        if one.until - one.since <= SUSTAINED_S:
            momentary += one.since >= from_
            continue
        seconds += one.homes * (min(one.until, to) - max(one.since, from_))
        if one.since >= from_:
            count += 1
            homes += one.homes
    served = max(1, homes_served)
    return Indices(
        homes_served,
        count,
        momentary,
        homes,
        seconds,
        half_even(homes * _MILLION, served),
        half_even(seconds, served),
        half_even(seconds, homes) if homes else 0,
        _MILLION - half_even(seconds * _MILLION, served * max(1, to - from_)),
    )
