"""A region's local time and holidays, as they stand on the ledger.

Days, tariff windows and bills are cut in local time: a day has 92, 96 or 100 quarter hours. The
offsets come from the ledger and never from a host's time zone database, or two peers with
different versions of it would make different bills.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import (
    AtMost,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    NotFound,
)

from ..common.clock import DAY_S, Day, day_of, day_start, utc_text

MAX_CHANGES = 400
MAX_HOLIDAYS = 1000


@dataclass(frozen=True, slots=True)
class Offset:
    """What local time is ahead of UTC, from an instant on."""

    from_: Instant
    offset_s: Annotated[int, Integer(-50_400, 50_400, "s")]


@dataclass(frozen=True, slots=True)
class Calendar:
    """Offsets and holidays of a region, for a stretch of time."""

    region: Identifier
    offsets: Annotated[tuple[Offset, ...], AtMost(MAX_CHANGES)]
    """In order; the first says from when on the calendar is known."""
    known_until: Instant
    holidays: Annotated[tuple[Day, ...], AtMost(MAX_HOLIDAYS)]
    """In order."""

    def offset_at(self, instant: int) -> int:
        """How far local time is ahead of UTC; raises NotFound outside of what is known."""
        if not self.offsets[0].from_ <= instant < self.known_until:
            raise NotFound(
                f"the calendar {self.region} is known from {utc_text(self.offsets[0].from_)} to "
                f"{utc_text(self.known_until)}, but not at {utc_text(instant)}"
            )
        return self.offsets[bisect_right(self.offsets, instant, key=lambda o: o.from_) - 1].offset_s

    def local(self, instant: int) -> int:
        """An instant as local seconds since 1970-01-01T00:00 of the wall clock."""
        return instant + self.offset_at(instant)

    def day_at(self, instant: int) -> str:
        """The local day of an instant."""
        return day_of(self.local(instant))

    def minute_at(self, instant: int) -> int:
        """The wall clock's minute of the day."""
        return self.local(instant) % DAY_S // 60

    def weekday_at(self, instant: int) -> int:
        """0 for Monday to 6 for Sunday."""
        return (self.local(instant) // DAY_S + 3) % 7

    def is_holiday(self, day: str) -> bool:
        """Whether a local day is a holiday."""
        index = bisect_right(self.holidays, day)
        return index > 0 and self.holidays[index - 1] == day

    def start_of(self, day: str) -> int:
        """The instant at which a local day begins: the first whose local day it is."""
        midnight = day_start(day)
        candidates = []
        for offset in self.offsets:
            instant = midnight - offset.offset_s
            if self.offsets[0].from_ <= instant < self.known_until and (
                self.local(instant) == midnight
            ):
                candidates.append(instant)
        if candidates:
            return min(candidates)
        # Midnight is left out on this day (a change of clocks at 0:00): it begins with the change.
        for offset in self.offsets:
            if self.offsets[0].from_ < offset.from_ and self.day_at(offset.from_) == day:
                return offset.from_
        raise NotFound(f"the calendar {self.region} does not know the day {day}")

    def bounds(self, day: str) -> tuple[int, int]:
        """Where a local day begins and ends."""
        return self.start_of(day), self.start_of(day_of(day_start(day) + DAY_S))


def check_terms(calendar: Calendar, interval_s: int) -> None:
    """Raise InvalidArgument for a calendar that can't be used with this interval."""
    starts = [offset.from_ for offset in calendar.offsets]
    if not starts or starts != sorted(starts) or len(starts) != len(dict.fromkeys(starts)):
        raise InvalidArgument("offsets must be one at least, in order of time, each time once")
    if calendar.known_until <= starts[-1]:
        raise InvalidArgument("known_until must lie after the last change of the offset")
    for offset in calendar.offsets:
        if offset.offset_s % interval_s:
            raise InvalidArgument(
                f"the offset of {offset.offset_s} s is not a multiple of the channel's interval of "
                f"{interval_s} s: local days would cut intervals in two"
            )
        if offset is not calendar.offsets[0] and offset.from_ % interval_s:
            raise InvalidArgument(f"the change at {utc_text(offset.from_)} lies within an interval")
    for day in calendar.holidays:
        day_start(day)
    if list(calendar.holidays) != sorted(dict.fromkeys(calendar.holidays)):
        raise InvalidArgument("holidays must be in order, each once")
