"""Calendars as a utility would enter them, made from the host's time zone database."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from consortium.contracts.billing.calendars import Calendar, Offset


def calendar_of(zone: str, first_year: int, last_year: int, *holidays: str) -> Calendar:
    """The calendar of a zone for some years."""
    local = ZoneInfo(zone)
    start = datetime(first_year, 1, 1, tzinfo=UTC) - timedelta(days=2)
    end = datetime(last_year + 1, 1, 1, tzinfo=UTC) + timedelta(days=2)

    def offset(instant: int) -> int:
        found = datetime.fromtimestamp(instant, local).utcoffset()
        assert found is not None
        return int(found.total_seconds())

    first, last = int(start.timestamp()), int(end.timestamp())
    offsets = [Offset(first, offset(first))]
    for instant in range(first, last, 900):
        if offset(instant) != offsets[-1].offset_s:
            offsets.append(Offset(instant, offset(instant)))
    region = zone.upper().replace("/", "-").replace("_", "-")
    return Calendar(region, tuple(offsets), last, tuple(sorted(holidays)))
