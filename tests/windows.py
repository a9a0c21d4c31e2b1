"""Windows of sale that may be quoted at any time of day."""

import time

DAY_S = 86_400


def coming_window(ahead_s: int, length_s: int, interval_s: int = 60) -> tuple[int, int]:
    """Start and end of a window that begins about `ahead_s` from now, in whole intervals.

    It lies within one UTC day, as rates are daily: shortly before midnight it begins there.
    """
    start = int(time.time()) // interval_s * interval_s + ahead_s
    if start // DAY_S != (start + length_s - 1) // DAY_S:
        start = (start + length_s) // DAY_S * DAY_S
    return start, start + length_s
