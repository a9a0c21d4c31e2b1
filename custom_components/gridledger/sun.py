"""The forecast of the sun that the owner has chosen in the Energy dashboard, where there is one.

Forecast.Solar, Solcast and the like give Wh by the hour or half-hour. Without one, or beyond its
end, what the home has learnt from its own past counts (:mod:`.engine.forecast`).
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from datetime import timedelta
from math import isfinite
from typing import Any, Final

from homeassistant.components.energy.data import async_get_manager
from homeassistant.components.energy.websocket_api import async_get_energy_platforms
from homeassistant.core import HomeAssistant
from homeassistant.util import dt as dt_util

from .const import DOMAIN, LOGGER

_APART_S: Final = 1800.0
_LONGEST_S: Final = 3600.0
_STEPS_LIMIT: Final = 2000


class Curve:
    """One forecast: energy by steps, which end where the next begins, after an hour at most."""

    def __init__(self, wh_hours: Mapping[Any, Any]) -> None:
        """Read what an integration answers; what is no time or no number is left out."""
        found: dict[float, float] = {}
        for at, energy in list(wh_hours.items())[:_STEPS_LIMIT]:
            start = dt_util.parse_datetime(str(at))
            try:
                value = float(energy)
            except TypeError, ValueError:
                continue
            if start is not None and isfinite(value):
                found[dt_util.as_utc(start).timestamp()] = max(0.0, value)
        self._starts = sorted(found)
        # The last step is as long as the one before.
        gap_s = self._starts[-1] - self._starts[-2] if len(found) > 1 else _LONGEST_S
        self._end = self._starts[-1] + gap_s if found else 0.0
        self._energy = [found[start] for start in self._starts]
        self.since, self.until = 0.0, 0.0
        if self._starts:
            # Nights are left out by some: whole days are known.
            first, last = (
                dt_util.start_of_local_day(dt_util.as_local(dt_util.utc_from_timestamp(at)))
                for at in (self._starts[0], self._starts[-1])
            )
            self.since = first.timestamp()
            self.until = dt_util.start_of_local_day(last.date() + timedelta(days=1)).timestamp()

    def energy_wh(self, start: float, end: float) -> float:
        """Return the energy between two instants."""
        total = 0.0
        for index in range(max(0, bisect_right(self._starts, start) - 1), len(self._starts)):
            begin = self._starts[index]
            if begin >= end:
                break
            following = self._starts[index + 1] if index + 1 < len(self._starts) else self._end
            stop = min(following, begin + _LONGEST_S)
            overlap_s = min(end, stop) - max(start, begin)
            if overlap_s > 0:
                total += self._energy[index] * overlap_s / (stop - begin)
        return total


class ChosenForecast:
    """The sum of the forecasts that are chosen for the home's roofs."""

    def __init__(self, hass: HomeAssistant) -> None:
        """Know nothing yet."""
        self._hass = hass
        self._curves: list[Curve] = []
        self._read_at = float("-inf")

    async def async_refresh(self) -> None:
        """Ask anew, every half-hour at most. What fails is as if it weren't there."""
        now = dt_util.utcnow().timestamp()
        if 0 <= now - self._read_at < _APART_S or "energy" not in self._hass.config.components:
            return
        self._read_at = now
        preferences: Mapping[str, Any] = (await async_get_manager(self._hass)).data or {}
        platforms = await async_get_energy_platforms(self._hass)
        self._curves = []
        for entry_id in _chosen(preferences.get("energy_sources", ())):
            entry = self._hass.config_entries.async_get_entry(entry_id)
            if entry is None or entry.domain == DOMAIN or entry.domain not in platforms:
                continue  # our own is what there is without
            try:
                forecast = await platforms[entry.domain](self._hass, entry_id)
            except Exception as error:
                LOGGER.debug("The forecast of %s can't be read: %s", entry.title, error)
                continue
            if forecast:
                self._curves.append(Curve(forecast.get("wh_hours") or {}))

    def energy_wh(self, start: float, seconds: float) -> float | None:
        """Return what all roofs give from an instant on; None where any isn't known."""
        end = start + seconds
        if not self._curves or any(
            start < curve.since or end > curve.until for curve in self._curves
        ):
            return None
        return sum(curve.energy_wh(start, end) for curve in self._curves)


def _chosen(sources: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the config entries of forecasts, each once."""
    return list(
        dict.fromkeys(
            str(entry_id)
            for source in sources
            if source.get("type") == "solar"
            for entry_id in source.get("config_entry_solar_forecast") or ()
        )
    )
