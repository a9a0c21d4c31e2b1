"""Contract `certificate`: guarantees of origin, one for each whole unit of renewable export.

A plant's utility issues them for a month, of what it has committed to by the readings (`origin`)
or, where no meter of this ledger tells, of what it declares, which each certificate says; what is
less than a unit carries on. They are held in batches of consecutive numbers, transferred and split
in whole units, and claimed once and for all. (Directive (EU) 2018/2001, article 19: one guarantee
for each MWh, valid for 12 months from the end of production, expired 18 months after it.)

Energy counts once: what was sold as green in its own right is taken off before issuing, on this
ledger (green products, offers with the attribute GREEN) and elsewhere.
"""

from collections.abc import Iterator, Sequence
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
    NotFound,
    canonical_json,
    query,
    stored_record,
    transaction,
    under,
)

from ..common import access, agreements, commitments, settings
from ..common.clock import day_start, utc_text
from ..common.pages import Bookmark, listed
from ..market.auctions import result_of
from ..market.orders import Order
from ..market.products import Product
from ..registry import grid, roles
from ..registry.registry import connection_of, energy_settings
from .guarantees import (
    Energy,
    Month,
    OpenMonth,
    Plant,
    Produced,
    ProducedBasis,
    Source,
    Words,
    month_end,
    produced_key,
)
from .wallet import Account, require_owner

UNIT_WH = 1_000_000
GREEN = "GREEN"
"""The attribute of offers that are sold as green."""
_TRANSFER_MONTHS = 12
_CLAIM_MONTHS = 18

Count = Annotated[int, Integer(1, 10**9, "certificates")]
BatchState = Annotated[str, Choice("issued", "claimed", "expired", "withdrawn")]


@dataclass(frozen=True, slots=True)
class Issue:
    """What was issued for a plant's month."""

    plant_id: Identifier
    month: Month
    generation_wh: Energy
    export_wh: Energy
    sold_green_wh: Energy
    """Elsewhere, as its utility says."""
    carried_in_wh: Energy
    issued: Annotated[int, Integer(0, 10**9)]
    carry_wh: Energy
    traded_green_wh: Energy = 0
    """On this ledger, by the plant's own orders."""
    measured: bool = False
    """By readings that were committed to; else as its utility says."""


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
    measured: bool = False
    """See `Issue`."""


def whole_units(carry_wh: int, energy_wh: int) -> tuple[int, int]:
    """Return the whole certificates in an energy with what was carried, and what carries on."""
    return divmod(carry_wh + energy_wh, UNIT_WH)


def _traded_green(context: Context, connection_id: str, month: str) -> int:
    """What a connection has sold as green on this ledger, for a month that is over.

    Raises:
        Conflict: a book is cleared, but its fills aren't noted yet.
    """
    green: dict[tuple[str, int], bool] = {}
    sold = 0
    prefix = f"order/{connection_id}/"
    start, end = month_end(month, -1), month_end(month)
    for _, value in context.range(f"{prefix}{start:012d}", f"{prefix}{end:012d}"):
        order = stored_record(Order, value)
        if order.side != "offer":
            continue
        version = agreements.version_at(context, "product", order.product, order.interval_start)
        known = (order.product, version)
        if known not in green:
            terms = agreements.terms_of(context, "product", *known, Product)
            green[known] = terms.green
        if not green[known] and GREEN not in order.attributes:
            continue
        if order.state == "open":
            result = result_of(context, order.product, order.interval_start)
            if result is not None and not result.void:
                raise Conflict(
                    f"order {order.order_id} of {connection_id} for "
                    f"{utc_text(order.interval_start)} isn't applied; book:Apply first"
                )
        sold += order.filled_wh
    return sold


def _batch_id(transaction_id: str, part: str) -> str:
    return f"G{part}-{transaction_id[:40].upper()}"


def open_months(
    context: Context, utility: str, months: Sequence[str], after: str
) -> Iterator[OpenMonth]:
    """Of these months, those of plants after one that a utility meters, where none is issued."""
    start, end = under("plant/")
    for key, value in context.range(max(start, f"plant/{after}\0"), end):
        name = key.removeprefix("plant/")
        if "/" in name:
            continue  # how far another plant is
        plant = stored_record(Plant, value)
        known = context.get_state(f"{key}/progress")
        issued = "" if known is None else stored_record(_Progress, known).last_month
        connection = connection_of(context, plant.connection_id)
        for month in months:
            begins = month_end(month, -1)
            if (
                month > issued
                and month >= plant.commissioned[:7]
                and roles.role_at(context, connection, "metering_operator", begins) == utility
            ):
                yield OpenMonth(name, month)


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
        # What a connection exports is one plant's: else its Wh would be certified twice.
        holder_key = f"origin/{plant.connection_id}"
        holder = context.get_state(holder_key)
        if holder is None:
            context.put_state(holder_key, plant.plant_id.encode())
        elif holder.decode() != plant.plant_id:
            raise Conflict(
                f"the export of {plant.connection_id} is plant {holder.decode()}'s already"
            )
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

    @query
    def basis(self, context: Context, *, plant_id: Identifier, month: Month) -> ProducedBasis:
        """What is public of a plant's month: `origin` sums its readings up by it."""
        return self._basis(context, self._plant(context, plant_id), month)

    @staticmethod
    def _basis(context: Context, plant: Plant, month: str) -> ProducedBasis:
        connection = connection_of(context, plant.connection_id)
        start, end = month_end(month, -1), month_end(month)
        stored = [
            unit.battery_wh
            for at in (start, end - 1)
            for unit in grid.plants_at(context, plant.connection_id, at)
        ]
        utility = roles.role_at(context, connection, "metering_operator", start)
        return ProducedBasis(
            plant.plant_id, plant.connection_id, str(utility), start, end, any(stored)
        )

    @transaction
    def issue(
        self,
        context: Context,
        *,
        plant_id: Identifier,
        month: Month,
        produced: Produced | None = None,
        generation_wh: Energy | None = None,
        export_wh: Energy | None = None,
        sold_green_wh: Energy = 0,
    ) -> Issue:
        """Issue a month's certificates to the plant's connection; months go in order.

        Of the export, only what the plant generated in the same intervals is renewable: what a
        battery took from the grid before is not. `export_wh` is that lesser of the two, summed.
        Both come from the readings (`produced`), or are the utility's word.
        """
        plant = self._plant(context, plant_id)
        access.require_operator(context.creator, plant.utility, f"issue certificates of {plant_id}")
        if produced is not None:
            if generation_wh is not None or export_wh is not None:
                raise InvalidArgument("produced has generation_wh and export_wh; leave these out")
            if (produced.plant_id, produced.month) != (plant_id, month):
                raise InvalidArgument(f"produced isn't of plant {plant_id} in {month}")
            generation_wh, export_wh = produced.generation_wh, produced.export_wh
        elif generation_wh is None or export_wh is None:
            raise InvalidArgument(
                "produced is missing, as origin:Record answers it; without readings on this ledger "
                "generation_wh and export_wh are"
            )
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
        if produced is not None:
            basis = self._basis(context, plant, month)
            place = produced_key(plant.connection_id, month, plant_id)
            commitments.check(context, basis.utility, place, produced)
        traded = _traded_green(context, plant.connection_id, month)
        progress_key = f"plant/{plant_id}/progress"
        known = context.get_state(progress_key)
        progress = _Progress("0000-01", 0, 1) if known is None else stored_record(_Progress, known)
        if month <= progress.last_month:
            raise Conflict(
                f"certificates of {plant_id} are issued up to {progress.last_month}; months go in "
                "order"
            )
        left = max(0, export_wh - sold_green_wh - traded)
        count, carry = whole_units(progress.carry_wh, left)
        issued = Issue(
            plant_id,
            month,
            generation_wh,
            export_wh,
            sold_green_wh,
            progress.carry_wh,
            count,
            carry,
            traded,
            produced is not None,
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
                    measured=produced is not None,
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
