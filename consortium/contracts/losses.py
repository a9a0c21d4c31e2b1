"""The balance of a transformer: what went in, what its meters saw, and what is neither.

Pure functions of integers. What a transformer delivers beyond its homes' meters is loss: a part
that is always there (iron), one in proportion to load (meters' errors, mostly), one with its square
(copper). The model of it is learned from days that are believed clean, then what exceeds it for
several days is a non-technical loss. A finding is a reason to look, never an accusation.

Days are balanced by registers, not by intervals: a missing interval leaves a hole in the interval
readings, but none in the register's difference over the day.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .money import half_even

_MILLION = 1_000_000
MIN_TRAINING_DAYS = 7
_THRESHOLD = 5
"""Standard deviations of a day's residual, over the square root of the days, that alarm."""
_FLOOR_PPM = 5_000
"""Losses below 0.5 % of what is delivered are within the meters' classes, however steady."""
MIN_DAYS = 2
"""A single day proves nothing."""


@dataclass(frozen=True, slots=True)
class DayBalance:
    """One day of a transformer."""

    day: str
    delivered_wh: int
    """By the transformer's own meter, less what flowed back."""
    metered_wh: int
    """By all homes' registers: import less export."""
    square: int
    """Sum over the day's intervals of the metered load in Wh, squared."""
    missing: tuple[str, ...] = ()
    """Meters without a register reading at both ends: the day can't be balanced."""

    @property
    def loss_wh(self) -> int:
        """What was delivered and not metered."""
        return self.delivered_wh - self.metered_wh


@dataclass(frozen=True, slots=True)
class LossModel:
    """What a transformer loses for technical reasons."""

    no_load_wh: int
    """A day."""
    proportional_ppm: int
    """Of what is metered. Negative where meters run slow less than the transformer's own."""
    quadratic_num: int
    quadratic_den: int
    """Of `DayBalance.square`: num / den."""
    deviation_wh: int
    """Standard deviation of a clean day's residual."""
    days: int
    """That it was learned from."""

    def expected_wh(self, balance: DayBalance) -> int:
        """The technical loss of a day."""
        return (
            self.no_load_wh
            + half_even(balance.metered_wh * self.proportional_ppm, _MILLION)
            + half_even(balance.square * self.quadratic_num, self.quadratic_den)
        )

    def residual_wh(self, balance: DayBalance) -> int:
        """What a day lost beyond it."""
        return balance.loss_wh - self.expected_wh(balance)


def given_model(
    no_load_wh: int, proportional_ppm: int, quadratic_ppb_per_wh: int, deviation_wh: int
) -> LossModel:
    """A model from the transformer's data sheet; the quadratic part in 10^-9 of each Wh squared."""
    return LossModel(no_load_wh, proportional_ppm, quadratic_ppb_per_wh, 10**9, deviation_wh, 0)


def learn(days: Sequence[DayBalance], no_load_wh: int = 0) -> LossModel | None:
    """Learn a model from clean days; None if there are fewer than seven that can be balanced.

    The proportional part is the ratio of sums, which is what meters' errors come to. A constant
    and a square can't be told from it within two weeks of much the same days, so the constant is
    given (it stands on the transformer's plate) and the square is left to the data sheet.
    """
    whole = [day for day in days if not day.missing]
    metered = sum(day.metered_wh for day in whole)
    if len(whole) < MIN_TRAINING_DAYS or metered <= 0:
        return None
    loss = sum(day.loss_wh - no_load_wh for day in whole)
    proportional = half_even(loss * _MILLION, metered)
    model = LossModel(no_load_wh, proportional, 0, 1, 0, len(whole))
    squares = sum(model.residual_wh(day) ** 2 for day in whole)
    # One parameter was fitted, so one degree of freedom less.
    deviation = _root(squares // (len(whole) - 1))
    return LossModel(no_load_wh, proportional, 0, 1, max(1, deviation), len(whole))


def _root(number: int) -> int:
    """The integer square root."""
    if number < 2:
        return number
    guess = 1 << ((number.bit_length() + 1) // 2)
    while True:
        better = (guess + number // guess) // 2
        if better >= guess:
            return guess
        guess = better


@dataclass(frozen=True, slots=True)
class Finding:
    """A non-technical loss."""

    since: str
    """Its first day."""
    until: str
    days: int
    loss_wh: int
    """A day, on average."""
    loss_ppm: int
    """Of what was delivered."""
    confidence_ppm: int
    """1,000,000 less the squared alarm threshold over the squared deviation: 0 at the threshold."""


def find(model: LossModel, days: Sequence[DayBalance]) -> Finding | None:
    """Look for a loss that has lasted until the last of these days.

    Of all beginnings, the one whose days deviate most from the model is taken, measured in
    standard deviations of their mean. The model's own uncertainty counts as that of its days.

    Args:
        model: Of the transformer.
        days: In order; days that can't be balanced are left out.
    """
    whole = [day for day in days if not day.missing]
    best: tuple[int, int, int] | None = None  # (score numerator, denominator, first index)
    running = 0
    for first in range(len(whole) - 1, -1, -1):
        running += model.residual_wh(whole[first])
        count = len(whole) - first
        if count < MIN_DAYS or running <= 0:
            continue
        # running / (deviation * sqrt(count * (1 + count / learned))), squared
        learned = model.days or count
        score = running**2 * learned
        scale = model.deviation_wh**2 * count * (learned + count)
        if best is None or score * best[1] > best[0] * scale:
            best = (score, scale, first)
    if best is None:
        return None
    score, scale, first = best
    found = whole[first:]
    total = sum(model.residual_wh(day) for day in found)
    delivered = sum(day.delivered_wh for day in found)
    if score < _THRESHOLD**2 * scale or total * _MILLION < _FLOOR_PPM * delivered:
        return None
    return Finding(
        found[0].day,
        found[-1].day,
        len(found),
        half_even(total, len(found)),
        half_even(total * _MILLION, delivered),
        _MILLION - half_even(_THRESHOLD**2 * scale * _MILLION, score),
    )


@dataclass(frozen=True, slots=True)
class Suspect:
    """A meter whose behaviour changed when a loss began."""

    meter: str
    change_ppm: int
    """Of its share of all that was metered, after against before: -300,000 is 30 % less."""
    explains_ppm: int
    """Of the loss: what would be missing if it had gone on as before."""


def suspects(
    before: Mapping[str, int], after: Mapping[str, int], loss_ppm: int, at_most: int = 5
) -> list[Suspect]:
    """Meters whose share fell as a loss began, the best explanation first.

    A tap before any meter changes no meter, so the list may be empty.

    Args:
        before: Energy of each meter over some days before, best whole weeks.
        after: And since.
        loss_ppm: Of what is delivered, from the finding.
        at_most: How many to name.
    """
    whole_before, whole_after = sum(before.values()), sum(after.values())
    if whole_before <= 0 or whole_after <= 0 or loss_ppm <= 0:
        return []
    found = []
    for meter in sorted(before):
        if before[meter] <= 0:
            continue
        # What it would have metered: its former share of all that was delivered since.
        expected = (
            before[meter] * whole_after * _MILLION // (whole_before * max(1, _MILLION - loss_ppm))
        )
        missing = expected - after.get(meter, 0)
        delivered = whole_after * _MILLION // max(1, _MILLION - loss_ppm)
        explains = half_even(missing * _MILLION * _MILLION, max(1, delivered * loss_ppm))
        change = half_even((after.get(meter, 0) - expected) * _MILLION, max(1, expected))
        if change < -200_000 and explains > 250_000:
            found.append(Suspect(meter, change, explains))
    found.sort(key=lambda suspect: (abs(suspect.explains_ppm - _MILLION), suspect.meter))
    return found[:at_most]
