"""Cut a home's energy sensors into the intervals of its ledger.

Pure: no clock, no Home Assistant. All times are channel seconds, all energy is integer mWh until
an interval is cut, where registers are rounded down to the Wh once. An interval is the difference
of two registers, so intervals add up to the register whatever the sensors did.

The register is our own and only rises. It follows each sensor's *increase*: a sensor that starts
again from zero (a daily counter, a new inverter) goes on where it was, one that is unavailable
says nothing (which is not zero), and a value that no connection could have delivered moves the
starting point instead of the register. Between the two samples around a boundary the register is
interpolated.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

RESET_BELOW: Final = 0.9
"""A total below this share of the last one has started again; above, it is a dip of noise.

Home Assistant's own rule for ``total_increasing``.
"""
IMPLAUSIBLE_POWER_W: Final = 250_000
"""No home's connection delivers more; a faster rise is another meter's total."""
IMPLAUSIBLE_SLACK_MWH: Final = 2_000_000
"""Coarse counters step by up to 1 kWh at once: tolerated beside the power limit."""
CATCH_UP_LIMIT: Final = 500
"""Intervals cut at once after a gap; call again for the rest."""


@dataclass(slots=True)
class Point:
    """The register's value at an instant, and the widest doubtful gap just before it.

    A gap is doubtful if energy flowed in it: a register that didn't move needs no guess.
    """

    at: float
    total: int
    gap: float = 0.0


@dataclass(slots=True)
class EnergyTracker:
    """Follows one energy sensor with a total of its own (mWh, from zero, never falling)."""

    raw: int | None = None
    reset_mark: str | None = None
    reported_at: float = 0.0
    points: list[Point] = field(default_factory=list)

    @property
    def total(self) -> int:
        """The latest total."""
        return self.points[-1].total if self.points else 0

    def add(self, at: float, raw: int, interval_s: int, reset_mark: str | None = None) -> None:
        """Take a sample of the sensor: its total ``raw`` in mWh at ``at``.

        ``reset_mark`` is the sensor's ``last_reset``: where it changes, the total began anew.
        """
        if self.raw is None or not self.points:
            self.points = [*self.points[-1:], Point(at, self.total)]
            self.raw, self.reset_mark, self.reported_at = raw, reset_mark, at
            return
        last = self.points[-1]
        # A clock that was set back: what is drawn until it is there again counts from where it was.
        back, at = last.at - at, max(at, last.at)
        silence, self.reported_at = max(at - self.reported_at, back), at
        rise = raw - self.raw
        if reset_mark != self.reset_mark or (rise < 0 and raw < RESET_BELOW * self.raw):
            rise = max(raw, 0)
        elif rise < 0:
            self._append(Point(at, last.total), interval_s)
            return  # noise: wait until the sensor is back where it was
        possible = IMPLAUSIBLE_POWER_W * (at - last.at) / 3.6 + IMPLAUSIBLE_SLACK_MWH
        implausible = rise > possible
        self.raw, self.reset_mark = raw, reset_mark
        if implausible:
            rise = 0
        doubtful = silence if rise or implausible else 0.0
        self._append(Point(at, last.total + rise, doubtful), interval_s)

    def hold(self, at: float, interval_s: int, *, fresh_s: float) -> None:
        """Say that the sensor is there and has reported nothing new until ``at``.

        That its total stands where it stood is certain only while its last report is younger
        than ``fresh_s``.
        """
        if not self.points or at <= self.points[-1].at:
            return
        last = self.points[-1]
        age = at - self.reported_at
        self._append(Point(at, last.total, age if age > fresh_s else 0.0), interval_s)

    def _append(self, point: Point, interval_s: int) -> None:
        """Add a point, keeping two in each interval: the first and the latest."""
        if len(self.points) >= 2:
            before, last = self.points[-2], self.points[-1]
            if before.at // interval_s == last.at // interval_s == point.at // interval_s:
                point.gap = max(point.gap, last.gap)
                self.points[-1] = point
                return
        self.points.append(point)

    def at_boundary(self, boundary: float) -> int:
        """Return the total at an instant not after the last point, interpolated."""
        previous = self.points[0]
        for point in self.points:
            if point.at >= boundary:
                if point.at == previous.at:
                    return point.total
                share = (boundary - previous.at) / (point.at - previous.at)
                return previous.total + int((point.total - previous.total) * max(share, 0.0))
            previous = point
        return previous.total

    def widest_gap(self, start: float, end: float) -> float:
        """Return the widest doubtful gap that touches ``[start, end]``, in seconds."""
        widest = 0.0
        for point in self.points:
            if point.at > start:
                widest = max(widest, point.gap)
            if point.at >= end:
                break
        return max(widest, self.points[0].at - start)

    def forget_before(self, boundary: float) -> None:
        """Drop what lies before a boundary that has been cut, keeping its value."""
        value = self.at_boundary(boundary)
        later = [point for point in self.points if point.at > boundary]
        self.points = [Point(boundary, value), *later]

    def as_dict(self) -> dict[str, Any]:
        """Return what has to survive a restart."""
        return {
            "raw": self.raw,
            "reset_mark": self.reset_mark,
            "reported_at": self.reported_at,
            "points": [[point.at, point.total, point.gap] for point in self.points],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Go on from what :meth:`as_dict` gave."""
        points = [Point(float(at), int(total), float(gap)) for at, total, gap in stored["points"]]
        return cls(stored["raw"], stored["reset_mark"], stored["reported_at"], points)


@dataclass(slots=True)
class PowerTracker(EnergyTracker):
    """Integrates a power sensor where a home has no energy sensor. Always an estimate.

    ``raw`` is the latest power in W, already of the direction that is counted (never negative).
    """

    def add(self, at: float, raw: int, interval_s: int, reset_mark: str | None = None) -> None:
        """Take a sample of the power, in W."""
        if self.points and at < self.points[-1].at:
            return
        if self.raw is None or not self.points:
            self.points = [*self.points[-1:], Point(at, self.total)]
        else:
            last = self.points[-1]
            seconds = at - last.at
            rise = int((self.raw + raw) / 2 * seconds / 3.6)
            self._append(Point(at, last.total + rise, max(seconds, 1.0)), interval_s)
        self.raw = raw

    def hold(self, at: float, interval_s: int, *, fresh_s: float) -> None:
        """Say that the power has stood until ``at`` where it was last reported."""
        if self.raw is not None:
            self.add(at, self.raw, interval_s)


@dataclass(frozen=True, slots=True)
class Cut:
    """One interval of the home's meter: whole Wh, and registers at its end."""

    interval_start: int
    interval_s: int
    import_wh: int
    export_wh: int
    import_register_wh: int
    export_register_wh: int
    measured: bool


@dataclass(slots=True)
class _Direction:
    """Import or export: some sensors, and what sensors of earlier times had counted."""

    trackers: dict[str, EnergyTracker]
    offset: int = 0
    register_wh: int = 0

    def register_at(self, boundary: float) -> int:
        total = self.offset + sum(t.at_boundary(boundary) for t in self.trackers.values())
        # Rounded down; never below what was cut already.
        return max(total // 1000, self.register_wh)


def _is_power(key: str) -> bool:
    return key.startswith(("+", "-"))


class Meter:
    """The home's meter: import and export registers, cut at the ledger's intervals.

    Sensors are named by entity id; a power sensor to be integrated by ``+id`` (what it shows
    above zero) or ``-id`` (below).
    """

    def __init__(
        self,
        interval_s: int,
        import_keys: Collection[str],
        export_keys: Collection[str],
        stored: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin, or go on from what :meth:`as_dict` gave."""
        self.interval_s = interval_s
        self.cut_at: int | None = None
        """The end of the last cut interval; None until both registers have a start."""
        if stored and stored["cut_at"] is not None and stored["interval_s"] == interval_s:
            self.cut_at = int(stored["cut_at"])
        self._directions = tuple(
            self._direction(keys, stored and stored[name])
            for name, keys in (("import", import_keys), ("export", export_keys))
        )

    @staticmethod
    def _direction(keys: Collection[str], stored: Mapping[str, Any] | None) -> _Direction:
        known = stored["trackers"] if stored else {}
        trackers: dict[str, EnergyTracker] = {}
        for key in keys:
            kind = PowerTracker if _is_power(key) else EnergyTracker
            trackers[key] = kind.from_dict(known[key]) if key in known else kind()
        if not stored:
            return _Direction(trackers)
        # A sensor that the home no longer has leaves its count behind.
        gone = sum(
            EnergyTracker.from_dict(tracker).total
            for key, tracker in known.items()
            if key not in trackers
        )
        return _Direction(trackers, int(stored["offset"]) + gone, int(stored["register_wh"]))

    @property
    def keys(self) -> set[str]:
        """The sensors that this meter listens to."""
        return {key for direction in self._directions for key in direction.trackers}

    @property
    def registers_wh(self) -> tuple[int, int]:
        """Import and export registers at the last cut."""
        return self._directions[0].register_wh, self._directions[1].register_wh

    @property
    def totals_wh(self) -> tuple[int, int]:
        """Import and export registers as of now, rounded down."""
        return tuple(  # type: ignore[return-value]
            max(
                (d.offset + sum(t.total for t in d.trackers.values())) // 1000,
                d.register_wh,
            )
            for d in self._directions
        )

    @property
    def started(self) -> bool:
        """Whether every sensor has been seen."""
        return all(t.points for d in self._directions for t in d.trackers.values())

    def _of(self, key: str) -> list[EnergyTracker]:
        return [d.trackers[key] for d in self._directions if key in d.trackers]

    def sample(self, key: str, at: float, raw: int, reset_mark: str | None = None) -> None:
        """Take a sample: an energy total in mWh, or for ``+id``/``-id`` a power in W."""
        for tracker in self._of(key):
            tracker.add(at, raw, self.interval_s, reset_mark)

    def hold(self, key: str, at: float) -> None:
        """Say that an available sensor has reported nothing new until ``at``."""
        for tracker in self._of(key):
            tracker.hold(at, self.interval_s, fresh_s=max(self.interval_s, 600))

    @property
    def doubtful_gap_s(self) -> float:
        """A gap with energy in it that is wider than this makes an interval an estimate.

        Sensors may be slow, but an interval that nobody saw is a guess, however short it is.
        """
        return max(self.interval_s / 2, min(45.0, self.interval_s))

    def cut(self) -> list[Cut]:
        """Cut intervals whose end all sensors have passed, oldest first, 500 at most."""
        trackers = [t for d in self._directions for t in d.trackers.values()]
        if not trackers or not self.started:
            return []
        known_until = min(t.points[-1].at for t in trackers)
        if self.cut_at is None:
            first = max(t.points[0].at for t in trackers)
            boundary = -(-first // self.interval_s) * self.interval_s
            if boundary > known_until:
                return []
            for direction in self._directions:
                direction.register_wh = direction.register_at(boundary)
            self.cut_at = int(boundary)
        cuts: list[Cut] = []
        while self.cut_at + self.interval_s <= known_until and len(cuts) < CATCH_UP_LIMIT:
            start, end = self.cut_at, self.cut_at + self.interval_s
            before = self.registers_wh
            gap = max(t.widest_gap(start, end) for t in trackers)
            integrated = any(isinstance(t, PowerTracker) for t in trackers)
            for direction in self._directions:
                direction.register_wh = direction.register_at(end)
            after = self.registers_wh
            cuts.append(
                Cut(
                    start,
                    self.interval_s,
                    after[0] - before[0],
                    after[1] - before[1],
                    *after,
                    measured=gap <= self.doubtful_gap_s and not integrated,
                )
            )
            self.cut_at = end
            for tracker in trackers:
                tracker.forget_before(end)
        return cuts

    def skip_to(self, boundary: int, import_register_wh: int, export_register_wh: int) -> None:
        """Go on after intervals that the ledger has from elsewhere (a restored backup).

        Registers never fall behind the ledger's.
        """
        if self.cut_at is not None and boundary <= self.cut_at:
            return
        registers = (import_register_wh, export_register_wh)
        for direction, register_wh in zip(self._directions, registers, strict=True):
            now = direction.offset + sum(t.total for t in direction.trackers.values())
            direction.offset += max(0, register_wh * 1000 - now)
            direction.register_wh = max(direction.register_wh, register_wh)
            for tracker in direction.trackers.values():
                if tracker.points:
                    tracker.points = [Point(max(tracker.points[-1].at, boundary), tracker.total)]
        self.cut_at = boundary

    def as_dict(self) -> dict[str, Any]:
        """Return what has to survive a restart, as JSON can hold it."""
        return {
            "interval_s": self.interval_s,
            "cut_at": self.cut_at,
            **{
                name: {
                    "offset": direction.offset,
                    "register_wh": direction.register_wh,
                    "trackers": {k: t.as_dict() for k, t in direction.trackers.items()},
                }
                for name, direction in zip(("import", "export"), self._directions, strict=True)
            },
        }
