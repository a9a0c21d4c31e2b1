"""When which band of the home's tariff holds: the calendar's entries."""

import asyncio
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, Self

from .const import CHAINCODE_ENERGY
from .models import understood
from .session import LedgerSession

_DAY_S: Final = 86_400
_LONGEST_S: Final = 62 * _DAY_S
"""More than a calendar shows at once."""


@dataclass(frozen=True, slots=True)
class Band:
    """A time of use; of several that hold, the first counts."""

    name: str
    days: str
    from_minute: int
    to_minute: int
    price_micro_per_kwh: int

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Self:
        """Read a contract's band.

        Raises:
            KeyError, TypeError, ValueError: something is missing or no number.
        """
        return cls(
            str(stated["name"]),
            str(stated["days"]),
            int(stated["from_minute"]),
            int(stated["to_minute"]),
            int(stated["price"]),
        )

    def holds(self, day: date, minute: int, *, holiday: bool) -> bool:
        """Return whether it holds at a minute of a local day."""
        weekday = day.weekday()
        on_day = {
            "EVERY": True,
            "WORKDAY": weekday < 5 and not holiday,
            "SATURDAY": weekday == 5 and not holiday,
            "SUNDAY": weekday == 6 or holiday,
            "WEEKEND": weekday >= 5 or holiday,
            "HOLIDAY": holiday,
        }[self.days]
        if self.from_minute <= self.to_minute:
            return on_day and self.from_minute <= minute < self.to_minute
        return on_day and (minute >= self.from_minute or minute < self.to_minute)


@dataclass(frozen=True, slots=True)
class Region:
    """What local time is ahead of UTC, from instants on, and the holidays."""

    offsets: Sequence[tuple[int, int]]
    known_until: int
    holidays: frozenset[str]

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Self:
        """Read a contract's calendar.

        Raises:
            KeyError, TypeError, ValueError: something is missing or no number.
        """
        return cls(
            [(int(one["from"]), int(one["offset_s"])) for one in stated["offsets"]],
            int(stated["known_until"]),
            frozenset(map(str, stated["holidays"])),
        )

    def begin(self, day: date) -> int:
        """Return when a local day begins, by the offset that holds about then."""
        midnight = _midnight(day)
        version = bisect_right([at for at, _ in self.offsets], midnight) - 1
        return midnight - self.offsets[max(0, version)][1]


def spans(
    bands: Sequence[Band], region: Region, start: int, end: int
) -> Iterator[tuple[int, int, Band]]:
    """Yield which band holds from when to when (channel time), within ``[start, end)``."""
    edges = sorted({0, 1440, *(m for b in bands for m in (b.from_minute, b.to_minute))})
    changes = [at for at, _ in region.offsets]
    at = max(start, changes[0] if changes else end)
    end = min(end, region.known_until)
    running: tuple[int, Band | None] = (at, None)
    while at < end:
        version = bisect_right(changes, at) - 1
        local = at + region.offsets[version][1]
        day = datetime.fromtimestamp(local, UTC).date()
        minute = local % _DAY_S // 60
        holiday = day.isoformat() in region.holidays
        band = next((one for one in bands if one.holds(day, minute, holiday=holiday)), None)
        if band != running[1]:
            if running[1] is not None:
                yield running[0], at, running[1]
            running = (at, band)
        edge = edges[bisect_right(edges, minute)]
        following = at + edge * 60 - local % _DAY_S
        if version + 1 < len(changes):
            following = min(following, changes[version + 1])
        at = following
    if running[1] is not None and running[0] < end:
        yield running[0], end, running[1]


async def async_bands(session: LedgerSession, start: int, end: int) -> list[tuple[int, int, Band]]:
    """Return which band of the home's tariff holds from when to when (channel time).

    As tariff and calendar are in force when a supply's part of the span begins. Nothing for a home
    without a supply here, and for a tariff of one price, which never changes.

    Raises:
        GridLedgerError: the ledger is away, knows no such tariff, or answers nonsense.
    """
    evaluate, end = session.client.evaluate, min(end, start + _LONGEST_S)
    supplied = await evaluate(
        CHAINCODE_ENERGY, "billing:Supplies", {"connection_id": session.connection_id}
    )
    found: list[tuple[int, int, Band]] = []
    with understood("a supply"):
        versions = [
            (date.fromisoformat(one["from_day"]), str(one["tariff"]), str(one["region"]))
            for one in supplied["versions"]
        ]
    ends = [*(day for day, _, _ in versions[1:]), date.max]
    for (day, tariff, region_name), following in zip(versions, ends, strict=False):
        if _midnight(day) >= end + _DAY_S or _midnight(following) <= start - _DAY_S:
            continue
        at = max(start, _midnight(day))
        terms, calendar = await asyncio.gather(
            evaluate(CHAINCODE_ENERGY, "tariff:Tariff", {"tariff": tariff, "at": at}),
            evaluate(CHAINCODE_ENERGY, "tariff:Calendar", {"region": region_name, "at": at}),
        )
        with understood("a tariff"):
            bands = [Band.from_json(one) for one in terms["bands"]]
            region = Region.from_json(calendar)
            if len(bands) > 1:
                lower, upper = max(start, region.begin(day)), min(end, region.begin(following))
                found += spans(bands, region, lower, upper)
    return found


def _midnight(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
