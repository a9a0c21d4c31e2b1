"""The channel's time and its calendar, from integers alone.

Days are UTC days of the channel's time. The calendar is computed here, not by a library with a
time zone database, so that two peers never disagree. (Algorithm: Howard Hinnant, "chrono-Compatible
Low-Level Date Algorithms", days_from_civil and civil_from_days.)
"""

from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import Conflict, Instant, Integer, InvalidArgument, Text

DAY_S = 86_400
_EPOCH_SHIFT = 719_468  # days from 0000-03-01 to 1970-01-01
_ERA_DAYS = 146_097  # days of 400 years

Day = Annotated[str, Text(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", "a day as YYYY-MM-DD")]


@dataclass(frozen=True, slots=True)
class Replay:
    """A channel time that runs elsewhere and faster, for demonstrations and tests on past data."""

    origin: Instant
    """Channel time at `anchor`."""
    anchor: Instant
    """Transaction time at which the channel's time is `origin`."""
    rate: Annotated[int, Integer(1, 86_400)]
    """Seconds of channel time for each second of transaction time."""


def channel_time(replay: Replay | None, timestamp: int) -> int:
    """The channel's time at a transaction's timestamp; raises Conflict before time began."""
    if replay is None:
        return timestamp
    time = replay.origin + (timestamp - replay.anchor) * replay.rate
    if time < 0:
        raise Conflict(
            f"the channel's replay clock is before 1970 at {timestamp}; check the computer's clock"
        )
    return time


def real_seconds(replay: Replay | None, seconds: int) -> int:
    """What `seconds` of a person's time are in the channel's time."""
    return seconds if replay is None else seconds * replay.rate


def day_of(instant: int) -> str:
    """The day of an instant, YYYY-MM-DD."""
    days = instant // DAY_S + _EPOCH_SHIFT
    era, day_of_era = divmod(days, _ERA_DAYS)
    year_of_era = (
        day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153  # March is 0
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
    year = year_of_era + era * 400 + (1 if month <= 2 else 0)
    return f"{year:04d}-{month:02d}-{day:02d}"


def day_start(day: str) -> int:
    """The first instant of a day; raises InvalidArgument if there is no such day."""
    year, month, number = (int(part) for part in day.split("-"))
    shifted_year = year - 1 if month <= 2 else year
    era, year_of_era = divmod(shifted_year, 400)
    shifted_month = month - 3 if month > 2 else month + 9
    day_of_year = (153 * shifted_month + 2) // 5 + number - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    start = (era * _ERA_DAYS + day_of_era - _EPOCH_SHIFT) * DAY_S
    if start < 0 or day_of(start) != day:
        raise InvalidArgument(f"day is {day}, which is no day from 1970-01-01 on")
    return start


def utc_text(instant: int) -> str:
    """An instant for an error message, such as 2026-11-21T10:30:00Z."""
    minutes, second = divmod(instant % DAY_S, 60)
    hour, minute = divmod(minutes, 60)
    return f"{day_of(instant)}T{hour:02d}:{minute:02d}:{second:02d}Z"
