"""Agreeing on supplies, and what their bills are computed from.

Not a contract: the part of contract `billing` that comes before a bill.
"""

from dataclasses import dataclass, replace

from consortium.chaincode.api import (
    Conflict,
    Context,
    InvalidArgument,
    NotFound,
    canonical_json,
    stored_record,
)

from ..assets import credits
from ..assets.wallet import supplier_account
from ..common import access, agreements
from ..common.clock import DAY_S, day_of, day_start
from ..registry import homes, roles
from ..registry.registry import Connection, connection_of, energy_settings
from ..settlement import settlement
from . import supply
from .bill_basis import (
    MAX_PERIOD_DAYS,
    Basis,
    SettledDay,
    Stretch,
    period_days,
)
from .supply import (
    Dues,
    Supplies,
    Supply,
)
from .tariff_book import TARIFF, index_of
from .tariffs import Index, Tariff, local_days


@dataclass(frozen=True, slots=True)
class SupplyOffer:
    """A supply that not everybody has agreed to yet."""

    supply: Supply
    by_supplier: bool
    by_home: bool
    in_force: bool


def offer_of(context: Context, connection_id: str, from_day: str) -> SupplyOffer | None:
    """A supply from a day on that was offered or agreed."""
    stored = context.get_state(f"supplyoffer/{connection_id}/{from_day}")
    return None if stored is None else stored_record(SupplyOffer, stored)


def agree(context: Context, wanted: Supply) -> SupplyOffer:
    """Offer a supply for the caller, or agree to the one that is offered.

    Raises:
        Forbidden: the caller is neither the home nor of the supplier.
        Conflict: another holds from that day on, the days before are billed already, or the
            registry has another supplier then.
    """
    connection_id = wanted.connection_id
    connection = connection_of(context, connection_id)
    creator = context.creator
    by_supplier = access.is_supplier(creator, wanted.supplier)
    by_home = homes.is_home(context, connection)
    access.require(
        by_supplier or by_home,
        creator,
        f"agree on the supply of {connection_id}",
        f"its home, operators and suppliers of {wanted.supplier}",
    )
    day_start(wanted.from_day)
    before = offer_of(context, connection_id, wanted.from_day)
    if before is not None and before.in_force:
        if before.supply != wanted:
            raise Conflict(f"{connection_id} has another supply from {wanted.from_day} on already")
        return before
    supplies = supply.supplies_of(context, connection_id)
    last = supplies.versions[-1].from_day if supplies.versions else ""
    billed_to = Dues(context, connection_id).account.billed_to or ""
    if wanted.from_day <= last or wanted.from_day < billed_to:
        raise Conflict(
            f"from_day is {wanted.from_day}, but {connection_id} has a supply from {last} on and "
            f"is billed up to {billed_to or last}; a new one begins later"
        )
    if wanted.emergency_micro and wanted.payment == "postpaid":
        raise InvalidArgument("emergency_micro is for prepaid supplies; a postpaid one has 0")
    if before is not None and before.supply == wanted:
        by_supplier, by_home = by_supplier or before.by_supplier, by_home or before.by_home
    first = not supplies.versions and wanted.supplier == connection.utility
    agreed = by_supplier and (by_home or first)
    offer = SupplyOffer(wanted, by_supplier, by_home, agreed)
    if offer == before:
        return offer
    context.put_state(f"supplyoffer/{connection_id}/{wanted.from_day}", canonical_json(offer))
    if agreed:
        at = _start_of(context, wanted.region, wanted.from_day)
        supplier = roles.role_at(context, connection, "supplier", at)
        if supplier != wanted.supplier:
            raise Conflict(
                f"supplier is {wanted.supplier}, but {supplier} supplies {connection_id} on "
                f"{wanted.from_day}; first its home asks for a switch (roles:RequestSwitch) and "
                "the new supplier confirms"
            )
        if len(supplies.versions) == supply.MAX_SUPPLIES:
            raise Conflict(f"{connection_id} has {supply.MAX_SUPPLIES} supplies, the limit")
        context.put_state(
            f"supply/{connection_id}", canonical_json(Supplies((*supplies.versions, wanted)))
        )
        context.set_event("supply", canonical_json(wanted))
    return offer


def _start_of(context: Context, region: str, day: str) -> int:
    """When a local day begins; of UTC where the calendar doesn't say."""
    try:
        return supply.calendar_at(context, region, day_start(day)).start_of(day)
    except NotFound:
        return day_start(day)


def _check_supplier(
    context: Context, connection: Connection, terms: Supply, stretches: tuple[Stretch, ...]
) -> None:
    """Raise Conflict for a day that begins with another supplier, as the registry has it."""
    for stretch in stretches:
        start = stretch.calendar.start_of(stretch.from_day)
        end = stretch.calendar.start_of(stretch.to_day)
        for since, until, holder in roles.periods(context, connection, "supplier", start, end):
            if holder == terms.supplier:
                continue
            days = local_days(stretch.calendar, start, end)
            begun = [day for day in days if since <= stretch.calendar.start_of(day) < until]
            if begun:
                raise Conflict(
                    f"{holder} supplies {connection.connection_id} on {begun[0]}, but the supply "
                    f"that is agreed is {terms.supplier}'s; agree on one from that day on "
                    "(billing:AgreeSupply)"
                )


def check_period(supplies: Supplies, terms: Supply, from_day: str, to_day: str) -> None:
    """Raise InvalidArgument for a period that one bill can't be of."""
    if not 0 < period_days(from_day, to_day) <= MAX_PERIOD_DAYS:
        raise InvalidArgument(
            f"to_day is {to_day}, but must be 1 to {MAX_PERIOD_DAYS} days after from_day, "
            f"{from_day}"
        )
    end = supply.period_end(supplies, from_day)
    if to_day > end:
        raise InvalidArgument(
            f"to_day is {to_day}, but a bill of {terms.connection_id} by the {terms.period} from "
            f"{from_day} on ends by {end}"
        )


def _stretches(
    context: Context, supplies: Supplies, from_day: str, to_day: str
) -> tuple[Stretch, ...]:
    """The period cut where a version changes. A day goes by what holds when it begins."""
    cuts: list[tuple[tuple[object, ...], Stretch]] = []
    day = from_day
    while day < to_day:
        terms = supplies.on(day)
        assert terms is not None, "a period begins within a supply"
        following = day_of(day_start(day) + DAY_S)
        # A day's start is within a day of the same day in UTC, whatever the region.
        calendar = supply.calendar_at(context, terms.region, day_start(day))
        start = calendar.start_of(day)
        names = [terms.tariff]
        if terms.regulated_tariff is not None:
            names.append(terms.regulated_tariff)
        versions = [agreements.version_at(context, TARIFF, name, start) for name in names]
        tariffs = [
            agreements.terms_of(context, TARIFF, name, version, Tariff)
            for name, version in zip(names, versions, strict=True)
        ]
        social = None
        if (name := tariffs[0].social) is not None:
            versions.append(agreements.version_at(context, TARIFF, name, start))
            social = agreements.terms_of(context, TARIFF, name, versions[-1], Tariff)
        same = (terms.region, calendar, *names, *versions)
        if cuts and cuts[-1][0] == same:
            cuts[-1] = (same, replace(cuts[-1][1], to_day=following))
        else:
            regulated = tariffs[1] if len(tariffs) > 1 else None
            cuts.append((same, Stretch(day, following, calendar, tariffs[0], regulated, social)))
        day = following
    return tuple(stretch for _, stretch in cuts)


def _settled(
    context: Context, terms: Supply, stretches: tuple[Stretch, ...]
) -> tuple[SettledDay, ...]:
    """How each day was settled; raises Conflict for one that will be and isn't yet."""
    found = []
    for stretch in stretches:
        for day in local_days(
            stretch.calendar,
            stretch.calendar.start_of(stretch.from_day),
            stretch.calendar.start_of(stretch.to_day),
        ):
            # As settlement asks: by the day's name, or their first local day would be paid twice.
            rules = settlement.terms_on(context, terms.supplier, day_start(day))
            if rules is None:
                found.append(SettledDay(day, None, True))
                continue
            utc_day = (day_start(day), day_start(day) + DAY_S)
            if rules.region != terms.region and (
                rules.region is not None or stretch.calendar.bounds(day) != utc_day
            ):
                raise Conflict(
                    f"days of {terms.supplier} are settled in region {rules.region}, but "
                    f"{terms.connection_id} is supplied in {terms.region}"
                )
            posted = settlement.posted_day(context, terms.connection_id, day)
            if posted is None:
                raise Conflict(
                    f"day {day} of {terms.connection_id} isn't settled yet; its bill comes after "
                    "settlement:Post"
                )
            found.append(SettledDay(day, posted.run, rules.rest == "billed"))
    return tuple(found)


def _indices(context: Context, stretches: tuple[Stretch, ...]) -> tuple[Index, ...]:
    """The published days of all indices that the tariffs use."""
    wanted: dict[tuple[str, str], None] = {}
    for stretch in stretches:
        start = stretch.calendar.start_of(stretch.from_day)
        end = stretch.calendar.start_of(stretch.to_day)
        for tariff in (stretch.tariff, stretch.regulated, stretch.social):
            if tariff is None or tariff.index is None:
                continue
            for instant in range(start - start % DAY_S, end, DAY_S):
                wanted[tariff.index, day_of(instant)] = None
    return tuple(index_of(context, index, day) for index, day in wanted)


def basis_of(context: Context, connection: Connection, from_day: str, to_day: str) -> Basis:
    """All that is public of what a bill is computed from.

    Raises:
        NotFound: there is no supply, tariff, calendar or index.
        InvalidArgument: one bill can't be of this period.
        Conflict: a day isn't settled yet, or begins with another supplier.
    """
    connection_id = connection.connection_id
    supplies = supply.supplies_of(context, connection_id)
    terms = supply.supply_on(context, connection_id, from_day)
    check_period(supplies, terms, from_day, to_day)
    period = supply.period_of(context, connection_id, from_day)
    prepaid = supply.prepaid_of(context, connection_id)
    stretches = _stretches(context, supplies, from_day, to_day)
    _check_supplier(context, connection, terms, stretches)
    return Basis(
        connection_id,
        connection.utility,
        terms.supplier,
        energy_settings(context).interval_s,
        stretches,
        _indices(context, stretches),
        _settled(context, terms, stretches),
        prepaid.energy_wh(terms.supplier) + (period.drawn_wh if period else 0)
        if terms.payment == "prepaid_energy"
        else 0,
        credits.usable(
            context,
            connection_id,
            supplier_account(terms.supplier),
            from_day,
            period.draws if period else (),
        )
        if any(stretch.tariff.banking_days for stretch in stretches)
        else (),
    )
