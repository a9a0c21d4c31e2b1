"""The balance of a transformer: what went in, what its meters saw, and what is neither.

Pure functions of integers. What a transformer delivers beyond its homes' meters is loss: a part
that is always there (iron), one in proportion to load (meters' errors, mostly), one with its square
(copper). The model of it is learned from days that are believed clean, then what exceeds it for
several days is a non-technical loss. A finding is a reason to look, never an accusation.

Days are balanced by registers, not by intervals: a missing interval leaves a hole in the interval
readings, but none in the register's difference over the day.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..common.clock import DAY_S
from ..common.money import half_even

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
    """One day of a transformer, or several that could only be balanced together."""

    day: str
    """Its name, for findings."""
    delivered_wh: int
    """By the transformer's own meter, less what flowed back."""
    metered_wh: int
    """By all homes' registers: import less export."""
    square: int
    """Sum over the day's intervals of the transformer's load in Wh, squared."""
    missing: tuple[str, ...] = ()
    """Meters without a register reading at both ends: the day can't be balanced."""
    seconds: int = DAY_S

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
            half_even(self.no_load_wh * balance.seconds, DAY_S)
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


def learn(
    days: Sequence[DayBalance], no_load_wh: int = 0, quadratic_ppb_per_wh: int = 0
) -> LossModel | None:
    """Learn a model from clean days; None if there are fewer than seven that can be balanced.

    The proportional part is the ratio of sums, which is what meters' errors come to. A constant
    and a square can't be told from it within two weeks of much the same days, so both are given
    (they stand on the transformer's plate); without them the ratio takes their mean.

    Args:
        days: Believed to be clean.
        no_load_wh: A day.
        quadratic_ppb_per_wh: In 10^-9 of `DayBalance.square`.
    """
    whole = [day for day in days if not day.missing]
    metered = sum(day.metered_wh for day in whole)
    seconds = sum(day.seconds for day in whole)
    if len(whole) < MIN_TRAINING_DAYS or metered <= 0:
        return None
    given = given_model(no_load_wh, 0, quadratic_ppb_per_wh, 0)
    proportional = half_even(sum(given.residual_wh(day) for day in whole) * _MILLION, metered)
    model = replace(given, proportional_ppm=proportional, days=max(1, half_even(seconds, DAY_S)))
    squares = sum(model.residual_wh(day) ** 2 * DAY_S // day.seconds for day in whole)
    # One parameter was fitted, so one degree of freedom less.
    deviation = _root(squares // (len(whole) - 1))
    return replace(model, deviation_wh=max(1, deviation))


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
    running = seconds = 0
    for first in range(len(whole) - 1, -1, -1):
        running += model.residual_wh(whole[first])
        seconds += whole[first].seconds
        if len(whole) - first < MIN_DAYS or running <= 0:
            continue
        # running / (deviation * sqrt(count * (1 + count / learned))), squared; count in days
        learned = model.days * DAY_S or seconds
        score = running**2 * learned * DAY_S
        scale = model.deviation_wh**2 * seconds * (learned + seconds)
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
    seconds = sum(day.seconds for day in found)
    return Finding(
        found[0].day,
        found[-1].day,
        len(found),
        half_even(total * DAY_S, seconds),
        half_even(total * _MILLION, delivered),
        _MILLION - half_even(_THRESHOLD**2 * scale * _MILLION, score),
    )


@dataclass(frozen=True, slots=True)
class Suspect:
    """A meter whose behaviour changed when a loss began."""

    meter: str
    changed: int
    """The day from which it behaves otherwise, counted from the first that was looked at."""
    change_ppm: int
    """Of its share of all that was used, after against before: -300,000 is 30 % less."""
    explains_ppm: int
    """Of the loss: what would be missing if it had gone on as before."""


_LEAST_CHANGE_PPM = 200_000
_EXPLAINS_PPM = (250_000, 1_600_000)
"""Who explains less is no suspect, and who lacks more than was lost has used less in truth."""
_STANDS_OUT = 4
"""Standard errors by which a meter's share must have fallen."""


def suspects(
    daily: Mapping[str, Sequence[int]], since: int, loss_wh: int, at_most: int = 5
) -> list[Suspect]:
    """Meters whose share fell as a loss began, the best explanation first.

    A tap before any meter changes no meter, so the list may be empty. A home that has honestly
    used less, on the very day on which somebody else began to take, can't be told from a thief by
    its register: being named is a reason to look at the meter, no more.

    Args:
        daily: Energy of each meter on each day, best with whole weeks before `since`.
        since: The day in it on which the loss began.
        loss_wh: On all days from then on together.
        at_most: How many to name.
    """
    length = min((len(days) for days in daily.values()), default=0)
    if not 0 < since < length or loss_wh <= 0:
        return []
    totals = [sum(days[day] for days in daily.values()) for day in range(length)]
    for day in range(since, length):
        totals[day] += loss_wh // (length - since)
    whole_before, whole_after = sum(totals[:since]), sum(totals[since:])
    if min(totals) <= 0:
        return []
    found = []
    for meter in sorted(daily):
        before, after = sum(daily[meter][:since]), sum(daily[meter][since:length])
        # What it would have metered: its former share of all that was used since.
        expected = before * whole_after // whole_before
        if before <= 0 or expected <= 0:
            continue
        change = half_even((after - expected) * _MILLION, expected)
        explains = half_even((expected - after) * _MILLION, loss_wh)
        if change > -_LEAST_CHANGE_PPM or not _EXPLAINS_PPM[0] < explains < _EXPLAINS_PPM[1]:
            continue
        shares = [daily[meter][day] * _MILLION // totals[day] for day in range(length)]
        changed = _changed(shares)
        if abs(changed - since) <= 1 and _stands_out(shares, since):
            found.append(Suspect(meter, changed, change, explains))
    found.sort(key=lambda suspect: (abs(suspect.explains_ppm - _MILLION), suspect.meter))
    return found[:at_most]


def _stands_out(shares: Sequence[int], since: int) -> bool:
    """Whether a fall is more than what goes up and down in a home anyhow (Student's t)."""
    before, after = shares[:since], shares[since:]
    fall = sum(before) * len(after) - sum(after) * len(before)  # of the means, times both counts
    counts = len(before) * len(after)
    # Squared deviations from the means, times both counts.
    within = sum((share * len(before) - sum(before)) ** 2 for share in before) * len(after) ** 2
    within += sum((share * len(after) - sum(after)) ** 2 for share in after) * len(before) ** 2
    # t^2 = fall^2 (n - 2) / (within (1/a + 1/b)), with all of it over the counts squared
    freedom = len(shares) - 2
    return fall**2 * freedom * counts >= _STANDS_OUT**2 * within * len(shares)


def _changed(shares: Sequence[int]) -> int:
    """Where a series falls most: the cut that leaves the least variance on its two sides."""
    best, cut, left = -1, 0, 0
    whole, length = sum(shares), len(shares)
    for count in range(1, length):
        left += shares[count - 1]
        fall = left * (length - count) - (whole - left) * count
        between = fall**2 // (count * (length - count))
        if fall > 0 and between > best:
            best, cut = between, count
    return cut
