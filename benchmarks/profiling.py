"""Where the event loop's time goes, for a benchmark's report."""

import cProfile
import pstats
from pathlib import Path

LINES = 25


class Profile:
    """A profile of the thread that starts it; it costs about as much again as what it sees."""

    def __init__(self) -> None:
        self._profile: cProfile.Profile | None = None

    def start(self) -> None:
        """Begin anew."""
        self._profile = cProfile.Profile()
        self._profile.enable()

    def stop(self) -> list[tuple[str, int, float]]:
        """Where most time was spent: place, calls, and seconds in it without what it called."""
        profile, self._profile = self._profile, None
        if profile is None:
            return []
        profile.disable()
        rows = []
        for (file, line, function), (_, calls, own, *_) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
            place = function if file == "~" else f"{Path(file).name}:{line} {function}"
            rows.append((place, calls, own))
        rows.sort(key=lambda row: -row[2])
        return rows[:LINES]
