"""Contract `origin` of chaincode `metering`: what of a plant's month is renewable.

Energy that a battery took from the grid isn't, so each interval counts the lesser of what the
connection's meters exported and what its generation meters (metering:RegisterMeter, `purpose`
generation) counted. Behind a connection without a battery all export is the plant's. What wasn't
read counts nothing and is named: certificates are for what was measured.

    gen/{connection}/{month}/{plant}   `Produced`, private; certificate:Issue takes it
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from consortium.chaincode.api import (
    Conflict,
    Context,
    Contract,
    Identifier,
    LimitExceeded,
    MspId,
    NotFound,
    Unavailable,
    query,
    transaction,
)

from ..common import access, commitments, settings
from ..common.clock import DAY_S, utc_text
from ..common.commitments import called
from ..common.settings import MeteringSettings
from ..meters.meters import Meter, meters_of
from ..meters.readings import Reading, Store, connection_intervals
from .guarantees import Month, Produced, ProducedBasis, produced_key

MAX_INTERVALS = 10_000
"""Of one month: five minutes make 8,928."""


class Origins(Contract):
    """Months of plants."""

    name: ClassVar[str] = "origin"

    @transaction
    def commit(
        self, context: Context, *, utility: MspId, plant_id: Identifier, month: Month
    ) -> dict[str, Any]:
        """Sum a plant's month up from its readings and commit to it; tells no amounts.

        Again after a correction, as long as nothing is issued.
        """
        access.require_operator(context.creator, utility, f"sum up plants of {utility}")
        basis = called(
            context, "energy", "certificate:Basis", ProducedBasis, plant_id=plant_id, month=month
        )
        if basis.utility != utility:
            raise Conflict(f"plant {plant_id} is metered by {basis.utility}, not by {utility}")
        channel = settings.read(context, MeteringSettings, "metering:Configure")
        if settings.now(context, channel) < basis.to:
            raise Conflict(f"month {month} ends at {utc_text(basis.to)}")
        count = (basis.to - basis.from_) // channel.interval_s
        if count > MAX_INTERVALS:
            raise LimitExceeded(
                f"month {month} has {count} intervals of {channel.interval_s} s, but "
                f"{MAX_INTERVALS} can be summed up at once"
            )
        store = Store(context, utility)
        found = _produced(store, basis, month, channel.interval_s)
        key = produced_key(basis.connection_id, month, plant_id)
        committed = commitments.put(context, utility, key, found)
        return {"utility": utility, "plant_id": plant_id, "month": month, "commitment": committed}

    @query
    def record(
        self, context: Context, *, utility: MspId, plant_id: Identifier, month: Month
    ) -> Produced:
        """A plant's month as committed to: what certificate:Issue takes."""
        access.require(
            access.is_operator(context.creator, utility) or commitments.is_overseer(context),
            context.creator,
            f"read what plants of {utility} made",
            f"operators of {utility}, and auditors",
        )
        basis = called(
            context, "energy", "certificate:Basis", ProducedBasis, plant_id=plant_id, month=month
        )
        key = produced_key(basis.connection_id, month, plant_id)
        found = commitments.opened(context, utility, key, Produced)
        if found is None:
            raise NotFound(f"{utility} hasn't summed up {month} of plant {plant_id}")
        return found


def to_be_committed(
    context: Context, store: Store, plant_id: str, month: str, own: MeteringSettings
) -> bool:
    """Whether a plant's month was read, isn't committed to and can be. In queries only.

    Looks no further than the first day of which something counts, and of a month that nobody read
    at one key for each meter: it is asked time and again.
    """
    try:
        basis = called(
            context, "energy", "certificate:Basis", ProducedBasis, plant_id=plant_id, month=month
        )
        key = produced_key(basis.connection_id, month, plant_id)
        if commitments.opened(context, store.utility, key, Produced) is not None:
            return False
    except Conflict, Unavailable:
        return False
    if (basis.to - basis.from_) // own.interval_s > MAX_INTERVALS:
        return False
    start = _next_read(store, basis, basis.from_)
    while start is not None:
        end = min(start + DAY_S, basis.to)
        if _counted(store, basis, start, end, own.interval_s, scan=True).secrets:
            return True
        start = _next_read(store, basis, end)
    return False


def _next_read(store: Store, basis: ProducedBasis, start: int) -> int | None:
    """The first day of a month, from a day on, of which something may count; one key a meter.

    That takes readings of what was generated or, where all export is the plant's, of the exchange.
    """
    meters = [
        meter
        for meter in meters_of(store.context, basis.connection_id)
        if meter.utility == store.utility
    ]
    generators = [meter for meter in meters if meter.purpose == "generation"]
    counting = generators if generators or basis.battery else meters
    first = store.first(counting, start, basis.to)
    return None if first is None else first - (first - basis.from_) % DAY_S


@dataclass(frozen=True, slots=True)
class _Counted:
    """What a plant's meters counted within a month."""

    generation_wh: int
    export_wh: int
    missing: int
    secrets: Sequence[str]


def _counted(
    store: Store, basis: ProducedBasis, from_: int, to: int, interval_s: int, *, scan: bool = False
) -> _Counted:
    exchanged = connection_intervals(store, basis.connection_id, from_, to, interval_s, scan=scan)
    generators = [
        meter
        for meter in meters_of(store.context, basis.connection_id)
        if meter.utility == store.utility and meter.purpose == "generation"
    ]
    read = store.reader(generators, from_, to, scan=scan)
    generation_wh = export_wh = missing = 0
    secrets: list[str] = []
    for one in exchanged:
        end = one.interval_start + interval_s
        made = _generated(read, generators, one.interval_start, end, secrets)
        if made is None and not generators and not basis.battery:
            made = one.export_wh
        if made is None or one.missing:
            missing += 1
            continue
        secrets += one.secrets
        generation_wh += made
        export_wh += min(one.export_wh, made)
    return _Counted(generation_wh, export_wh, missing, secrets)


def _produced(store: Store, basis: ProducedBasis, month: str, interval_s: int) -> Produced:
    key = produced_key(basis.connection_id, month, basis.plant_id)
    found = _counted(store, basis, basis.from_, basis.to, interval_s)
    if not found.secrets:
        raise Conflict(f"nothing of plant {basis.plant_id} was read in {month}")
    return Produced(
        basis.plant_id,
        basis.connection_id,
        month,
        found.generation_wh,
        found.export_wh,
        found.missing,
        commitments.salt(store.context, key, found.secrets),
    )


def _generated(
    read: Callable[[str, int], Reading | None],
    meters: Sequence[Meter],
    start: int,
    end: int,
    secrets: list[str],
) -> int | None:
    """What generation meters counted in an interval; None without any, or if one wasn't read."""
    there = [meter for meter in meters if meter.in_place(start, end) and meter.verified(start, end)]
    made = 0
    for meter in there:
        reading = read(meter.meter_id, start)
        if reading is None:
            return None
        made += reading.export_wh
        secrets.append(reading.salt)
    return made if there else None
