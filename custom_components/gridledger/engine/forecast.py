"""Guessing sun and load from the home's own past.

The sun: clear-sky irradiance from geometry (Haurwitz 1945: 1098 cos z exp(-0.057 / cos z) W/m2)
gives the shape of a day anywhere; how much of it this plant turns into energy is learnt for each
quarter of an hour of the solar day, so that roof angles and shadows need not be entered. Clouds
are persistence: the last days' clearness, and in the next hours the last hour's. The load is the
mean of the same quarter of an hour on days like it, newer days counting more.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import tzinfo
from math import cos, exp, pi, radians, sin
from typing import Any, Final, Self

from .model import DAY_S, local_time

STEP_S: Final = 900
BINS: Final = DAY_S // STEP_S
DAYS_KEPT: Final = 35
_LEAST_CLEAR: Final = 30.0
"""Clear-sky W/m2 below which the ratio of energy to irradiance says nothing."""
_DAY_DECAY: Final = 0.8
_HOUR_DECAY: Final = 0.6


def sun_elevation(instant: float, latitude: float, longitude: float) -> float:
    """Return the sine of the sun's elevation (Spencer's series; good to half a degree)."""
    days = instant / DAY_S
    # 1970-01-01 began the year; a quarter of a day's drift a year does not matter here.
    gamma = 2 * pi * ((days % 365.2425) / 365.2425)
    declination = (
        0.006918
        - 0.399912 * cos(gamma)
        + 0.070257 * sin(gamma)
        - 0.006758 * cos(2 * gamma)
        + 0.000907 * sin(2 * gamma)
    )
    equation_min = 229.18 * (
        0.000075
        + 0.001868 * cos(gamma)
        - 0.032077 * sin(gamma)
        - 0.014615 * cos(2 * gamma)
        - 0.040849 * sin(2 * gamma)
    )
    solar_min = (instant % DAY_S) / 60 + equation_min + 4 * longitude
    hour_angle = radians(solar_min / 4 - 180)
    lat = radians(latitude)
    return sin(lat) * sin(declination) + cos(lat) * cos(declination) * cos(hour_angle)


def clear_sky(instant: float, latitude: float, longitude: float) -> float:
    """Return the clear-sky global irradiance on the flat (W/m2)."""
    height = sun_elevation(instant, latitude, longitude)
    return 0.0 if height <= 0.01 else 1098 * height * exp(-0.057 / height)


def _solar_bin(instant: float, longitude: float) -> int:
    return int(((instant + longitude * 240) % DAY_S) // STEP_S)


class SolarForecast:
    """Learns a plant from quarters of an hour: :meth:`add` in order, then :meth:`forecast`."""

    def __init__(self, latitude: float, longitude: float) -> None:
        """Begin with a place (degrees north and east)."""
        self.latitude = latitude
        self.longitude = longitude
        self._history: deque[tuple[int, float]] = deque(maxlen=DAYS_KEPT * BINS)
        self._made: tuple[int, list[float], float, float] | None = None

    def add(self, start: float, energy_wh: float) -> None:
        """Add what the plant gave in the quarter of an hour from ``start`` (epoch seconds)."""
        at = int(start) // STEP_S * STEP_S
        if self._history and at <= self._history[-1][0]:
            return
        self._history.append((at, max(0.0, energy_wh)))
        self._made = None

    def _clear(self, start: float) -> float:
        return clear_sky(start + STEP_S / 2, self.latitude, self.longitude)

    def _learn(self) -> tuple[int, list[float], float, float]:
        """Return the last quarter, best ratios by bin, clearness by day and of the last hour."""
        if self._made is not None:
            return self._made
        # A copy: plans are made in another thread than the one that adds.
        history = list(self._history)
        ratios: list[list[float]] = [[] for _ in range(BINS)]
        for at, energy in history:
            if (clear := self._clear(at)) >= _LEAST_CLEAR:
                ratios[_solar_bin(at, self.longitude)].append(energy / clear)
        best = []
        for values in ratios:
            values.sort()
            # A clear day's ratio, but not the one freak reading above it.
            best.append(values[int(0.9 * (len(values) - 1))] if values else 0.0)
        got: dict[int, list[float]] = {}
        recent_got = recent_could = 0.0
        last = history[-1][0] if history else 0
        for at, energy in history:
            clear = self._clear(at)
            could = best[_solar_bin(at, self.longitude)] * clear
            if clear < _LEAST_CLEAR or could <= 0:
                continue
            day = got.setdefault(int((at + self.longitude * 240) // DAY_S), [0.0, 0.0])
            day[0] += energy
            day[1] += could
            if at > last - 3600:
                recent_got += energy
                recent_could += could
        weighted = weights = 0.0
        for age, day_number in enumerate(sorted(got, reverse=True)):
            weight = _DAY_DECAY**age * got[day_number][1]
            weighted += weight * got[day_number][0] / got[day_number][1]
            weights += weight
        daily = weighted / weights if weights else 0.0
        peak = max((value[1] for value in got.values()), default=0.0) / BINS
        recent = recent_got / recent_could if recent_could > peak else daily
        self._made = (last, best, daily, min(recent, 1.3))
        return self._made

    def forecast(self, start: float, seconds: float = STEP_S) -> float:
        """Return the energy expected from ``start`` on (Wh); 0 before anything is known."""
        if not self._history:
            return 0.0
        last, best, daily, recent = self._learn()
        total, at = 0.0, start
        while at < start + seconds - 1e-6:
            part = min(STEP_S - at % STEP_S, start + seconds - at)
            hours_ahead = max(0.0, (at - last) / 3600 - 1)
            weight = _HOUR_DECAY**hours_ahead
            clearness = weight * recent + (1 - weight) * daily
            begin = at // STEP_S * STEP_S
            ratio = best[_solar_bin(begin, self.longitude)]
            total += ratio * self._clear(begin) * clearness * part / STEP_S
            at += part
        return total

    def as_list(self) -> list[list[float]]:
        """Return the history for storing."""
        return [[at, round(energy, 1)] for at, energy in self._history]

    @classmethod
    def from_list(cls, latitude: float, longitude: float, stored: Iterable[Sequence[Any]]) -> Self:
        """Go on from a stored history."""
        made = cls(latitude, longitude)
        for at, energy in stored:
            made.add(float(at), float(energy))
        return made


class LoadForecast:
    """Learns a house's load from quarters of an hour."""

    def __init__(self, zone: tzinfo) -> None:
        """Begin with the home's time zone: people live by local time."""
        self.zone = zone
        self._history: deque[tuple[int, float]] = deque(maxlen=DAYS_KEPT * BINS)
        self._made: tuple[list[float], list[float], float] | None = None

    def add(self, start: float, energy_wh: float) -> None:
        """Add what the house used in the quarter of an hour from ``start``."""
        at = int(start) // STEP_S * STEP_S
        if self._history and at <= self._history[-1][0]:
            return
        self._history.append((at, max(0.0, energy_wh)))
        self._made = None

    def _bin(self, at: float) -> tuple[bool, int]:
        local = local_time(at, self.zone)
        return local.weekday() >= 5, (local.hour * 3600 + local.minute * 60) // STEP_S

    def _learn(self) -> tuple[list[float], list[float], float]:
        """Return means by quarter for weekdays and weekends, and the last hour beside its mean."""
        if self._made is not None:
            return self._made
        sums = [[[0.0, 0.0] for _ in range(BINS)] for _ in range(2)]
        history = list(self._history)
        last = history[-1][0] if history else 0
        for at, energy in history:
            weekend, index = self._bin(at)
            weight = _DAY_DECAY ** ((last - at) / DAY_S / 2)
            # The other kind of day counts a little, so that a new home has both.
            for kind in range(2):
                share = weight * (1.0 if kind == weekend else 0.2)
                sums[kind][index][0] += share * energy
                sums[kind][index][1] += share
        known = [wh for _, wh in history]
        mean = sum(known) / len(known) if known else 0.0
        means = [[got / n if n else mean for got, n in kind] for kind in sums]
        # One evening's oven is not every evening's: neighbours smooth a short history.
        smooth = [
            [(k[i - 1] + 2 * k[i] + k[(i + 1) % BINS]) / 4 for i in range(BINS)] for k in means
        ]
        tail = [(at, wh) for at, wh in history if at > last - 3600]
        beyond = 0.0
        if tail:
            beyond = sum(wh - smooth[self._bin(at)[0]][self._bin(at)[1]] for at, wh in tail)
            beyond /= len(tail)
        self._made = (smooth[0], smooth[1], beyond)
        return self._made

    def forecast(self, start: float, seconds: float = STEP_S) -> float:
        """Return the energy expected from ``start`` on (Wh)."""
        if not self._history:
            return 0.0
        weekday, weekend, beyond = self._learn()
        last = self._history[-1][0]
        total, at = 0.0, start
        while at < start + seconds - 1e-6:
            part = min(STEP_S - at % STEP_S, start + seconds - at)
            is_weekend, index = self._bin(at)
            hours_ahead = max(0.0, (at - last) / 3600)
            expected = (weekend if is_weekend else weekday)[index]
            expected = max(0.0, expected + beyond * 0.4 ** (1 + hours_ahead))
            total += expected * part / STEP_S
            at += part
        return total

    def as_list(self) -> list[list[float]]:
        """Return the history for storing."""
        return [[at, round(energy, 1)] for at, energy in self._history]

    @classmethod
    def from_list(cls, zone: tzinfo, stored: Iterable[Sequence[Any]]) -> Self:
        """Go on from a stored history."""
        made = cls(zone)
        for at, energy in stored:
            made.add(float(at), float(energy))
        return made
