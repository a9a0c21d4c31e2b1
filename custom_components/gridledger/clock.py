"""The channel's clock.

A channel of a demonstration replays past data: its time is ``origin + (real - anchor) * rate``.
A channel in earnest keeps real time. This is the only place where one becomes the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ChannelClock:
    """Converts between real epoch seconds and the channel's, and knows its intervals."""

    interval_s: int
    origin: float = 0.0
    anchor: float = 0.0
    rate: float = 1.0

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Read the answer of the contract's ``Settings``.

        Raises:
            ValueError, KeyError, TypeError: it doesn't hold what it must.
        """
        interval_s = int(settings["interval_s"])
        if interval_s <= 0:
            raise ValueError(f"an interval of {interval_s} s")
        replay = settings.get("replay")
        if not replay:
            return cls(interval_s)
        rate = float(replay["rate"])
        if rate <= 0:
            raise ValueError(f"a clock that runs at {rate}")
        return cls(interval_s, float(replay["origin"]), float(replay["anchor"]), rate)

    @property
    def replays(self) -> bool:
        """Whether channel time differs from real time."""
        return (self.origin, self.rate) != (self.anchor, 1.0)

    def channel(self, real: float) -> float:
        """Return channel time for a real one (both epoch seconds)."""
        return self.origin + (real - self.anchor) * self.rate

    def real(self, channel: float) -> float:
        """Return real time for a channel one (both epoch seconds)."""
        return self.anchor + (channel - self.origin) / self.rate

    def real_datetime(self, channel: float) -> datetime:
        """Return the real instant of a channel time, in UTC."""
        return datetime.fromtimestamp(self.real(channel), UTC)

    def interval_at(self, channel: float) -> int:
        """Return the start of the interval that holds a channel time."""
        return floor(channel / self.interval_s) * self.interval_s

    def next_boundary(self, channel: float) -> int:
        """Return the first interval boundary at or after a channel time."""
        return ceil(channel / self.interval_s) * self.interval_s

    def day(self, channel: float) -> str:
        """Return the channel's UTC day of a channel time, ``YYYY-MM-DD``."""
        return datetime.fromtimestamp(channel, UTC).strftime("%Y-%m-%d")

    def day_start(self, channel: float) -> int:
        """Return the start of the channel's UTC day that holds a channel time."""
        return floor(channel / 86400) * 86400
