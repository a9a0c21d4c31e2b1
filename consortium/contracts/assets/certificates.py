"""Contract `certificate`: guarantees of origin, one for each whole unit of renewable export.

A plant's utility issues them for a month of validated readings; what is less than a unit carries
on to the next month. They are held in batches of consecutive serial numbers, transferred and split
in whole units, and claimed once and for all. (Directive (EU) 2018/2001, article 19: one guarantee
for each MWh, valid for 12 months from the end of production, expired 18 months after it.)

Energy counts once: what was sold as green in its own right is taken off before issuing.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    Choice,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    MspId,
    NotFound,
    Text,
    canonical_json,
    query,
    stored_record,
    transaction,
)

from ..common import access, settings
from ..common.clock import Day, day_start
from ..common.pages import Bookmark, listed
from ..registry.registry import connection_of, energy_settings
from .wallet import Account, require_owner

UNIT_WH = 1_000_000
_TRANSFER_MONTHS = 12
_CLAIM_MONTHS = 18

Month = Annotated[str, Text(r"[0-9]{4}-(0[1-9]|1[0-2])", "a month as YYYY-MM")]
Energy = Annotated[int, Integer(0, 10**15, "Wh")]
Count = Annotated[int, Integer(1, 10**9, "certificates")]
Source = Annotated[str, Choice("solar", "wind", "hydro", "biomass")]
BatchState = Annotated[str, Choice("issued", "claimed", "expired", "withdrawn")]
Words = Annotated[str, Text(r"[^\x00-\x1f]{1,200}", "1 to 200 characters")]


@dataclass(frozen=True, slots=True)
class Plant:
    """A plant that certificates are issued for."""

    plant_id: Identifier
    connection_id: Identifier
    utility: MspId
    source: Source
    capacity_w: Annotated[int, Integer(1, 10**12, "W")]
    commissioned: Day
    support: Words
    """What public support it received; 'none' if none."""
    place: Words
    """As exact as its owner wants it public, such as a municipality."""


@dataclass(frozen=True, slots=True)
class Issue:
    """What was issued for a plant's month."""

    plant_id: Identifier
    month: Month
    generation_wh: Energy
    export_wh: Energy
    sold_green_wh: Energy
    carried_in_wh: Energy
    issued: Annotated[int, Integer(0, 10**9)]
    carry_wh: Energy


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far a plant's issues are; one role, its utility, writes it."""

    last_month: Month
    carry_wh: Energy
    next_serial: Annotated[int, Integer(1, 10**15)]


@dataclass(frozen=True, slots=True)
class Batch:
    """Certificates with consecutive serial numbers, in one hand and one state."""

    batch_id: Identifier
    plant_id: Identifier
    month: Month
    source: Source
    first_serial: Annotated[int, Integer(1, 10**15)]
    count: Count
    owner: Account
    state: BatchState
    transferable_until: Instant
    claimable_until: Instant
    claimed_for: Words | None = None
    """Whose use, where and when."""


def whole_units(carry_wh: int, energy_wh: int) -> tuple[int, int]:
    """Return the whole certificates in an energy with what was carried, and what carries on."""
    return divmod(carry_wh + energy_wh, UNIT_WH)


def month_end(month: str, later: int = 0) -> int:
    """The instant (UTC) at which a month, or the one so many months later, has ended."""
    year, number = int(month[:4]), int(month[5:])
    months = year * 12 + number + later  # number is 1 for January: the month after
    return day_start(f"{months // 12:04d}-{months % 12 + 1:02d}-01")


def _batch_id(transaction_id: str, part: str) -> str:
    return f"G{part}-{transaction_id[:40].upper()}"


class Certificates(Contract):
    """Plants, issues, transfers and claims."""

    name: ClassVar[str] = "certificate"

    @transaction
    def register_plant(self, context: Context, *, plant: Plant) -> Plant:
        """Enter a plant; the same again changes nothing."""
        connection = connection_of(context, plant.connection_id)
        access.require(
            plant.utility == connection.utility
            and access.is_operator(context.creator, plant.utility),
            context.creator,
            f"register plants at {plant.connection_id}",
            f"operators of {connection.utility}",
        )
        day_start(plant.commissioned)
        key = f"plant/{plant.plant_id}"
        stored = context.get_state(key)
        if stored is None:
            context.put_state(key, canonical_json(plant))
        elif stored_record(Plant, stored) != plant:
            raise Conflict(f"plant {plant.plant_id} is registered already, and differently")
        return plant

    @query
    def plant(self, context: Context, *, plant_id: Identifier) -> Plant:
        """A plant."""
        return self._plant(context, plant_id)

    @transaction
    def issue(
        self,
        context: Context,
        *,
        plant_id: Identifier,
        month: Month,
        generation_wh: Energy,
        export_wh: Energy,
        sold_green_wh: Energy = 0,
    ) -> Issue:
        """Issue a month's certificates to the plant's connection; months go in order.

        Of the export, only what the plant generated in the same intervals is renewable: what a
        battery took from the grid before is not. `export_wh` is that lesser of the two, summed.
        """
        plant = self._plant(context, plant_id)
        access.require_operator(context.creator, plant.utility, f"issue certificates of {plant_id}")
        if export_wh > generation_wh:
            raise InvalidArgument(
                f"export_wh is {export_wh}, but no more than was generated is renewable, "
                f"{generation_wh}"
            )
        if sold_green_wh > export_wh:
            raise InvalidArgument(
                f"sold_green_wh is {sold_green_wh}, more than export_wh, {export_wh}"
            )
        channel = energy_settings(context)
        key = f"issue/{plant_id}/{month}"
        stored = context.get_state(key)
        if stored is not None:
            issued = stored_record(Issue, stored)
            if (issued.generation_wh, issued.export_wh, issued.sold_green_wh) != (
                generation_wh,
                export_wh,
                sold_green_wh,
            ):
                raise Conflict(
                    f"certificates of {plant_id} for {month} were issued for an export of "
                    f"{issued.export_wh} Wh; withdraw those that were too many"
                )
            return issued
        if settings.now(context, channel) < month_end(month):
            raise Conflict(f"month {month} isn't over in the channel's time")
        progress_key = f"plant/{plant_id}/progress"
        known = context.get_state(progress_key)
        progress = _Progress("0000-01", 0, 1) if known is None else stored_record(_Progress, known)
        if month <= progress.last_month:
            raise Conflict(
                f"certificates of {plant_id} are issued up to {progress.last_month}; months go in "
                "order"
            )
        count, carry = whole_units(progress.carry_wh, export_wh - sold_green_wh)
        issued = Issue(
            plant_id,
            month,
            generation_wh,
            export_wh,
            sold_green_wh,
            progress.carry_wh,
            count,
            carry,
        )
        context.put_state(key, canonical_json(issued))
        context.put_state(
            progress_key,
            canonical_json(_Progress(month, carry, progress.next_serial + count)),
        )
        if count:
            self._store(
                context,
                Batch(
                    _batch_id(context.transaction_id, "I"),
                    plant_id,
                    month,
                    plant.source,
                    progress.next_serial,
                    count,
                    plant.connection_id,
                    "issued",
                    month_end(month, _TRANSFER_MONTHS),
                    month_end(month, _CLAIM_MONTHS),
                ),
            )
        return issued

    @transaction
    def transfer(
        self, context: Context, *, batch_id: Identifier, owner: Account, to: Account, count: Count
    ) -> Batch:
        """Give certificates of a batch to another account; the rest stays a batch of its own."""
        require_owner(context, owner, f"transfer certificates of {owner}")
        batch = self._usable(context, owner, batch_id, count)
        if to == owner:
            raise InvalidArgument(f"to is {to}, who holds them already")
        now = settings.now(context, energy_settings(context))
        if now >= batch.transferable_until:
            raise Conflict(
                f"batch {batch_id} could be transferred for {_TRANSFER_MONTHS} months after "
                f"{batch.month}; it can still be claimed for {_CLAIM_MONTHS}"
            )
        if not to.startswith("SUPPLIER-"):
            connection_of(context, to)
        given = replace(
            batch, batch_id=_batch_id(context.transaction_id, "T"), count=count, owner=to
        )
        self._take(context, batch, count)
        self._store(context, given)
        return given

    @transaction
    def claim(
        self,
        context: Context,
        *,
        batch_id: Identifier,
        owner: Account,
        count: Count,
        claimed_for: Words,
    ) -> Batch:
        """Use certificates up: they never move again."""
        require_owner(context, owner, f"claim certificates of {owner}")
        batch = self._usable(context, owner, batch_id, count)
        claimed = replace(
            batch,
            batch_id=_batch_id(context.transaction_id, "C"),
            count=count,
            state="claimed",
            claimed_for=claimed_for,
        )
        self._take(context, batch, count)
        self._store(context, claimed)
        context.set_event("certificates_claimed", canonical_json(claimed))
        return claimed

    @transaction
    def expire(self, context: Context, *, batch_id: Identifier, owner: Account) -> Batch:
        """Mark a batch whose time is over; anyone may."""
        batch = self._batch(context, owner, batch_id)
        now = settings.now(context, energy_settings(context))
        if batch.state != "issued":
            raise Conflict(f"batch {batch_id} is {batch.state}")
        if now < batch.claimable_until:
            raise Conflict(f"batch {batch_id} can be claimed until {batch.claimable_until}")
        expired = replace(batch, state="expired")
        self._store(context, expired)
        return expired

    @transaction
    def withdraw(
        self, context: Context, *, batch_id: Identifier, owner: Account, count: Count
    ) -> Batch:
        """Take certificates back that should not have been issued."""
        batch = self._batch(context, owner, batch_id)
        utility = self._plant(context, batch.plant_id).utility
        access.require_operator(
            context.creator, utility, f"withdraw certificates of {batch.plant_id}"
        )
        batch = self._usable(context, owner, batch_id, count)
        withdrawn = replace(
            batch,
            batch_id=_batch_id(context.transaction_id, "W"),
            count=count,
            state="withdrawn",
        )
        self._take(context, batch, count)
        self._store(context, withdrawn)
        return withdrawn

    @query
    def holdings(
        self,
        context: Context,
        *,
        owner: Account,
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """The batches in an account's hands, in every state."""
        return listed(context, "batches", Batch, f"certs/{owner}/", "", limit, bookmark)

    @staticmethod
    def _plant(context: Context, plant_id: str) -> Plant:
        stored = context.get_state(f"plant/{plant_id}")
        if stored is None:
            raise NotFound(
                f"plant {plant_id} is not registered; its utility's operator calls "
                "certificate:RegisterPlant"
            )
        return stored_record(Plant, stored)

    @staticmethod
    def _batch(context: Context, owner: str, batch_id: str) -> Batch:
        stored = context.get_state(f"certs/{owner}/{batch_id}")
        if stored is None:
            raise NotFound(f"{owner} holds no batch {batch_id}")
        return stored_record(Batch, stored)

    def _usable(self, context: Context, owner: str, batch_id: str, count: int) -> Batch:
        """A batch that `count` certificates can be taken from."""
        batch = self._batch(context, owner, batch_id)
        if batch.state != "issued":
            raise Conflict(f"batch {batch_id} is {batch.state}, so it can't be used any more")
        now = settings.now(context, energy_settings(context))
        if now >= batch.claimable_until:
            raise Conflict(f"batch {batch_id} expired {_CLAIM_MONTHS} months after {batch.month}")
        if count > batch.count:
            raise Conflict(f"count is {count}, but batch {batch_id} has {batch.count}")
        return batch

    @staticmethod
    def _take(context: Context, batch: Batch, count: int) -> None:
        """Take the first `count` serial numbers out of a batch."""
        key = f"certs/{batch.owner}/{batch.batch_id}"
        if count == batch.count:
            context.del_state(key)
            return
        rest = replace(batch, first_serial=batch.first_serial + count, count=batch.count - count)
        context.put_state(key, canonical_json(rest))

    @staticmethod
    def _store(context: Context, batch: Batch) -> None:
        context.put_state(f"certs/{batch.owner}/{batch.batch_id}", canonical_json(batch))
