"""Contract `tariff`: calendars, tariffs and price indices, and what a usage costs under them.

Calendars and tariffs are terms that several utilities approve; they come in dated versions that
never change. An index is a series of prices, such as a day-ahead market's, published once for each
UTC day. A bill is a function of these and of readings: whoever may see the readings computes the
same.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    NotFound,
    canonical_json,
    query,
    stored_record,
    transaction,
)

from ..common import access, agreements, settings
from ..common.agreements import Agreement, Version
from ..common.clock import DAY_S, Day, day_of, day_start, utc_text
from ..common.settings import Price
from ..registry.registry import energy_settings
from . import calendars, tariffs
from .calendars import Calendar
from .tariffs import Bill, Index, Period, Tariff, Usage, bill

MAX_USAGE = 3_000
"""Intervals of one computation: a month of quarter hours."""
MAX_DAYS = 32
CALENDAR = "calendar"
TARIFF = "tariff"
"""Kinds of agreed terms."""

IntervalEnergy = Annotated[int, Integer(0, 10**9, "Wh")]


@dataclass(frozen=True, slots=True)
class UsageRow:
    """A connection's interval."""

    interval_start: Instant
    import_wh: IntervalEnergy
    export_wh: IntervalEnergy


def index_of(context: Context, index: str, day: str) -> Index:
    """A UTC day of a series; raises NotFound."""
    stored = context.get_state(f"index/{index}/day/{day}")
    if stored is None:
        raise NotFound(f"index {index} of {day} isn't published")
    return stored_record(Index, stored)


class TariffBook(Contract):
    """Terms of billing."""

    name: ClassVar[str] = "tariff"

    @transaction
    def propose_calendar(
        self, context: Context, *, terms: Calendar, effective_from: Instant
    ) -> Agreement:
        """Propose a version of a region's calendar."""
        calendars.check_terms(terms, energy_settings(context).interval_s)
        return agreements.propose(context, CALENDAR, terms.region, effective_from, terms)

    @transaction
    def approve_calendar(
        self, context: Context, *, region: Identifier, version: Version
    ) -> Agreement:
        """Approve a version of a calendar for the caller's utility."""
        return agreements.approve(context, CALENDAR, region, version)

    @query
    def calendar(
        self, context: Context, *, region: Identifier, at: Instant | None = None
    ) -> Calendar:
        """The calendar of a region in force at an instant; without one, now."""
        return agreements.in_force(context, CALENDAR, region, self._at(context, at), Calendar)

    @transaction
    def propose(self, context: Context, *, terms: Tariff, effective_from: Instant) -> Agreement:
        """Propose a version of a tariff."""
        access.require_supplier(
            context.creator, terms.supplier, f"propose tariffs of {terms.supplier}"
        )
        tariffs.check_terms(terms)
        if context.get_state(f"terms/{TARIFF}/{terms.tariff}/{1:06d}") is not None:
            first = agreements.terms_of(context, TARIFF, terms.tariff, 1, Tariff)
            if first.supplier != terms.supplier:
                raise Conflict(f"tariff {terms.tariff} is {first.supplier}'s; choose another name")
        if terms.social is not None:
            social = agreements.in_force(context, TARIFF, terms.social, effective_from, Tariff)
            if social.supplier != terms.supplier:
                raise Conflict(
                    f"social is {terms.social}, a tariff of {social.supplier}, not of "
                    f"{terms.supplier}"
                )
        return agreements.propose(context, TARIFF, terms.tariff, effective_from, terms)

    @transaction
    def approve(self, context: Context, *, tariff: Identifier, version: Version) -> Agreement:
        """Approve a version of a tariff for the caller's utility."""
        return agreements.approve(context, TARIFF, tariff, version)

    @query
    def tariff(self, context: Context, *, tariff: Identifier, at: Instant | None = None) -> Tariff:
        """A tariff as it is in force at an instant; without one, now."""
        return agreements.in_force(context, TARIFF, tariff, self._at(context, at), Tariff)

    @transaction
    def publish_index(
        self,
        context: Context,
        *,
        index: Identifier,
        day: Day,
        prices: Annotated[tuple[Price, ...], AtMost(DAY_S)],
    ) -> Index:
        """Publish a UTC day of a series, once; whose first day it was publishes the others."""
        utility = context.creator.msp_id
        access.require(
            access.is_supplier(context.creator, utility),
            context.creator,
            "publish indices",
            "suppliers and operators",
        )
        day_start(day)
        intervals = DAY_S // energy_settings(context).interval_s
        if len(prices) != intervals:
            raise InvalidArgument(
                f"prices has {len(prices)} values, but a day has {intervals} intervals"
            )
        owner_key = f"index/{index}/publisher"
        owner = context.get_state(owner_key)
        if owner is None:
            context.put_state(owner_key, utility.encode())
        elif owner.decode() != utility:
            raise Conflict(f"index {index} is published by {owner.decode()}; choose another name")
        published = Index(index, day, utility, prices)
        key = f"index/{index}/day/{day}"
        stored = context.get_state(key)
        if stored is None:
            context.put_state(key, canonical_json(published))
        elif stored_record(Index, stored) != published:
            raise Conflict(f"index {index} of {day} is published already; prices never change")
        return published

    @query
    def index(self, context: Context, *, index: Identifier, day: Day) -> Index:
        """A UTC day of a series."""
        return index_of(context, index, day)

    @query
    def compute(
        self,
        context: Context,
        *,
        tariff: Identifier,
        region: Identifier,
        from_day: Day,
        to_day: Day,
        usage: Annotated[tuple[UsageRow, ...], AtMost(MAX_USAGE)],
    ) -> Bill:
        """What a usage costs under a tariff, over whole local days: a bill, or a comparison.

        The tariff and the calendar must be one version each over the period; split it where
        one changes.
        """
        channel = energy_settings(context)
        if not 0 < day_start(to_day) - day_start(from_day) <= MAX_DAYS * DAY_S:
            raise InvalidArgument(
                f"to_day is {to_day}, but must be 1 to {MAX_DAYS} days after from_day, {from_day}"
            )
        # A day's start is within a day of the same day in UTC, whatever the region.
        local = agreements.in_force(context, CALENDAR, region, day_start(from_day), Calendar)
        period = Period(from_day, to_day)
        start, end = local.start_of(from_day), local.start_of(to_day)
        for kind, name in ((CALENDAR, region), (TARIFF, tariff)):
            first, last = (
                agreements.version_at(context, kind, name, instant) for instant in (start, end - 1)
            )
            if first != last:
                raise InvalidArgument(
                    f"{kind} {name} changes between {utc_text(start)} and {utc_text(end)}; compute "
                    "the days before and after the change apart"
                )
        terms = agreements.in_force(context, TARIFF, tariff, start, Tariff)
        prices: dict[int, int] = {}
        if terms.index is not None:
            for day in dict.fromkeys(day_of(row.interval_start) for row in usage):
                found = index_of(context, terms.index, day)
                for number, price in enumerate(found.prices):
                    prices[day_start(day) + number * channel.interval_s] = price
        return bill(
            terms,
            local,
            period,
            [Usage(row.interval_start, row.import_wh, row.export_wh) for row in usage],
            prices,
            interval_s=channel.interval_s,
        )

    @staticmethod
    def _at(context: Context, at: int | None) -> int:
        return settings.now(context, energy_settings(context)) if at is None else at
