"""Contract `metering`: meters, and the readings that they signed.

Readings at interval resolution tell a life. They stand in the private collection
`readings-<MSP id>` of the home's utility, whose own policy endorses them; the channel carries
salted hashes. A submission writes nothing public, and its answer repeats no energy.

Where what is: `meters` meters, `readings` what is stored and its sums, `intake` what is accepted,
`silence` which meters say nothing and why.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Contract,
    Forbidden,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    LimitExceeded,
    MspId,
    NotFound,
    canonical_json,
    canonical_public_key,
    query,
    read_list,
    read_record,
    stored_json,
    stored_record,
    transaction,
    under,
)

from ..common import access, settings
from ..common.clock import DAY_S, Day, Replay, day_start, utc_text
from ..common.commitments import called, collection
from ..common.dated import check_instant
from ..common.pages import Bookmark, listed
from ..common.residence import EVERYBODY, residence
from ..common.settings import Currency, Deadline, IntervalLength, MeteringSettings
from . import meters, silence
from .intake import Intake
from .meters import (
    Certificate,
    Meter,
    Power,
    PublicKey,
    Purpose,
    Rollover,
    SourceClass,
    Verification,
    meter_of,
)
from .readings import (
    Arrival,
    Reading,
    Salt,
    Store,
    connection_intervals,
    fields_of,
    interval_key,
    late_arrivals,
)

MAX_READINGS = 1000
"""Readings of one submission, and of one answer."""
MAX_CHECKED = 10_000
"""Intervals of one check or comparison: a hundred days of quarter hours."""
MAX_WATCHED = 20_000
"""Meters that one query looks after."""
MAX_OUTAGE_METERS = 1_000
MAX_SILENCES = 10_000
"""Intervals of meters that a reported outage is checked for: each is a read of its transaction."""
_PATHS_AT_ONCE = 1_000
_COMPARE_FLOOR_WH = 50
_COMPARE_PPM = 20_000
"""Declared and accredited meters differ if by more than 50 Wh and more than 2 %."""
_EXCHANGE_AHEAD_S = 366 * DAY_S

FaultKind = Annotated[str, Choice("transformer", "gateway")]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a plant stands, exactly."""

    latitude_udeg: Annotated[int, Integer(-90_000_000, 90_000_000, "micro-degrees")]
    longitude_udeg: Annotated[int, Integer(-180_000_000, 180_000_000, "micro-degrees")]
    salt: Salt


@dataclass(frozen=True, slots=True)
class Outage:
    """Meters that fell silent together, as their utility has reported it."""

    utility: MspId
    kind: FaultKind
    name: Identifier
    since: Instant
    meters: Annotated[tuple[Identifier, ...], AtMost(MAX_OUTAGE_METERS)]
    reported_at: Instant
    delay_s: Annotated[int, Integer(0)]
    """From the outage to its report: the detection delay."""
    ended_at: Instant | None = None


@dataclass(frozen=True, slots=True)
class _Path:
    connection_id: Identifier
    at: Instant
    transformer_id: Identifier | None
    source_id: Identifier | None


@dataclass(frozen=True, slots=True)
class _Paths:
    paths: Annotated[tuple[_Path, ...], AtMost(_PATHS_AT_ONCE)]


@dataclass(slots=True)
class _Sight:
    """A meter and from when to when the caller may see its readings."""

    meter: Meter
    from_: int = 0
    to: int = 10**12


def _settings(context: Context) -> MeteringSettings:
    return settings.read(context, MeteringSettings, "metering:Configure")


def _now(context: Context) -> int:
    return settings.now(context, _settings(context))


def _require_owner(context: Context, meter: Meter, act: str) -> None:
    """Accredited meters are their utility's, declared ones their home's."""
    if meter.source_class == "accredited":
        access.require_operator(
            context.creator, meter.utility, f"{act} accredited meter {meter.meter_id}"
        )
        return
    own = residence(context, meter.utility, meter.connection_id)
    access.require(
        own == EVERYBODY or (own.ever and own.at(_now(context))),
        context.creator,
        f"{act} declared meter {meter.meter_id}",
        f"the home at {meter.connection_id} of {meter.utility}",
    )


def _require_sight(context: Context, meter: Meter) -> _Sight:
    """What the caller may read of a meter; raises Forbidden if nothing.

    A home sees what was read since its people moved in.
    """
    creator = context.creator
    if access.is_operator(creator, meter.utility):
        return _Sight(meter)
    own = residence(context, meter.utility, meter.connection_id)
    access.require(
        own.ever,
        creator,
        f"read meter {meter.meter_id}",
        f"the home at {meter.connection_id} and operators of {meter.utility}",
    )
    return _Sight(meter, *own.spans[-1])


def _check_place(context: Context, meter: Meter) -> None:
    """Raise Conflict for a meter at another utility's connection, where the registry knows it.

    A connection's list of meters is limited, and a stranger could fill it. Accredited ones are of
    who operates the metering now, or when they will be installed if that is later; declared ones
    of who certifies the home.
    """
    if meter.source_class != "accredited":
        utility, _ = _placed(context, meter, "registry:Connection", "utility", None)
    else:
        utility, now = _placed(context, meter, "roles:Parts", "metering_operator", None)
        if now < meter.installed_at:
            at = meter.installed_at
            utility, _ = _placed(context, meter, "roles:Parts", "metering_operator", at)
    if utility not in (None, meter.utility):
        raise Conflict(f"connection {meter.connection_id} is {utility}'s, not {meter.utility}'s")


def _placed(
    context: Context, meter: Meter, function: str, field: str, at: int | None
) -> tuple[str | None, int]:
    """Whose a meter's place is, as the registry has it, and the instant that holds for.

    None if it is no connection, as a transformer isn't, or isn't entered yet.
    """
    wanted: dict[str, Any] = {"connection_id": meter.connection_id}
    if at is not None:
        wanted["at"] = at
    answer = context.call("energy", [function.encode(), canonical_json(wanted)])
    found = stored_json(answer.payload) if answer.status < 400 else None
    if not isinstance(found, dict):
        return None, 0
    return str(found.get(field)), int(str(found.get("at", 0)))


class Metering(Contract):
    """Meters and readings."""

    name: ClassVar[str] = "metering"

    @transaction
    def configure(
        self,
        context: Context,
        *,
        interval_s: IntervalLength = 900,
        currency: Currency = "EUR",
        replay: Replay | None = None,
        late_after_s: Deadline = 6 * 3600,
        silent_after: Annotated[int, Integer(1, 96, "intervals")] = 4,
        final_after_s: Deadline = 14 * DAY_S,
        correctable_s: Deadline = 425 * DAY_S,
    ) -> MeteringSettings:
        """Set the channel up, once."""
        if not late_after_s <= final_after_s <= correctable_s:
            raise InvalidArgument(
                f"late_after_s is {late_after_s}, final_after_s {final_after_s} and correctable_s "
                f"{correctable_s}, but they must come in this order"
            )
        return settings.configure(
            context,
            MeteringSettings(
                interval_s,
                currency,
                replay,
                late_after_s,
                silent_after,
                final_after_s,
                correctable_s,
            ),
        )

    @query
    def settings(self, context: Context) -> MeteringSettings:
        """The channel's settings."""
        return _settings(context)

    # Meters

    @transaction
    def register_meter(
        self,
        context: Context,
        *,
        meter_id: Identifier,
        connection_id: Identifier,
        utility: MspId,
        source_class: SourceClass,
        public_key: PublicKey,
        max_power_w: Power = 100_000,
        purpose: Purpose = "exchange",
        rollover_wh: Rollover | None = None,
        installed_at: Instant = 0,
        gateway: Identifier | None = None,
        certificate: Certificate | None = None,
        certified_until: Instant | None = None,
    ) -> Meter:
        """Enter a meter; the same again changes nothing."""
        meter = Meter(
            meter_id,
            connection_id,
            utility,
            source_class,
            canonical_public_key(public_key),
            max_power_w,
            purpose,
            rollover_wh,
            installed_at,
            None,
            None,
            gateway,
            _first_verification(source_class, certificate, installed_at, certified_until),
        )
        _require_owner(context, meter, "register")
        if installed_at:
            check_instant("installed_at", installed_at, _settings(context).interval_s)
        if context.get_state(f"meter/{meter_id}") is None:
            _check_place(context, meter)
        return meters.enter(context, meter)

    @transaction
    def certify_meter(
        self,
        context: Context,
        *,
        meter_id: Identifier,
        certificate: Certificate,
        from_: Instant,
        until: Instant | None = None,
    ) -> Meter:
        """Note a verification of an accredited meter; the one before ends where it begins."""
        meter = meter_of(context, meter_id)
        made = Verification(certificate, from_, until)
        if meter.verifications[-1:] == (made,):
            return meter
        known = self._verifications_until(context, meter, "from", from_)
        if until is not None and until <= from_:
            raise InvalidArgument(f"until is {until}, but must lie after from, {from_}")
        return self._verified(context, meter, (*known, made))

    @transaction
    def withdraw_certificate(self, context: Context, *, meter_id: Identifier, at: Instant) -> Meter:
        """Withdraw a meter's accreditation: from an instant on it only informs."""
        meter = meter_of(context, meter_id)
        if meter.verifications and meter.verifications[-1].until == at:
            return meter
        return self._verified(context, meter, self._verifications_until(context, meter, "at", at))

    def _verifications_until(
        self, context: Context, meter: Meter, name: str, at: int
    ) -> tuple[Verification, ...]:
        """A meter's verifications with the last one ended at an instant that is to come."""
        access.require_operator(context.creator, meter.utility, f"certify meter {meter.meter_id}")
        if meter.source_class == "declared":
            raise InvalidArgument(f"meter {meter.meter_id} is declared, and so never certified")
        channel = _settings(context)
        check_instant(name, at, channel.interval_s)
        now = settings.now(context, channel)
        # Without a certificate, registration was what counted until now.
        known = meter.verifications or (Verification("registration", meter.installed_at),)
        if at < now or at <= known[-1].from_:
            raise Conflict(
                f"{name} is {utc_text(at)}, but the channel's time is {utc_text(now)} and the last "
                f"verification begins at {utc_text(known[-1].from_)}: what has settled stays so"
            )
        last = known[-1]
        ends = at if last.until is None else min(last.until, at)
        return (*known[:-1], replace(last, until=ends))

    def _verified(
        self, context: Context, meter: Meter, verifications: tuple[Verification, ...]
    ) -> Meter:
        if len(verifications) > meters.MAX_VERIFICATIONS:
            raise LimitExceeded(
                f"meter {meter.meter_id} has {meters.MAX_VERIFICATIONS} verifications, the limit"
            )
        changed = replace(meter, verifications=verifications)
        if changed != meter:
            meters.store(context, changed)
        return changed

    @transaction
    def exchange_meter(
        self,
        context: Context,
        *,
        meter_id: Identifier,
        at: Instant,
        new_meter_id: Identifier,
        public_key: PublicKey,
        max_power_w: Power | None = None,
        rollover_wh: Rollover | None = None,
        gateway: Identifier | None = None,
        certificate: Certificate | None = None,
        certified_until: Instant | None = None,
    ) -> Meter:
        """Replace a meter by a new one at one instant.

        The final registers of the old and the first of the new are private: they come as register
        readings of that instant, see SubmitReadings.
        """
        old = meter_of(context, meter_id)
        _require_owner(context, old, "exchange")
        new = Meter(
            new_meter_id,
            old.connection_id,
            old.utility,
            old.source_class,
            canonical_public_key(public_key),
            max_power_w or old.max_power_w,
            old.purpose,
            rollover_wh,
            at,
            None,
            None,
            gateway,
            _first_verification(old.source_class, certificate, at, certified_until),
        )
        if new_meter_id == meter_id:
            raise InvalidArgument(
                "new_meter_id is the old meter's; a new meter has a name of its own"
            )
        if (old.removed_at, old.replaced_by) == (at, new_meter_id):
            return meters.enter(context, new)
        if context.get_state(f"meter/{new_meter_id}") is not None:
            raise Conflict(f"meter {new_meter_id} is registered already")
        self._remove(context, old, at, new_meter_id)
        return meters.enter(context, new)

    @transaction
    def remove_meter(self, context: Context, *, meter_id: Identifier, at: Instant) -> Meter:
        """Take a meter away without another in its place."""
        meter = meter_of(context, meter_id)
        _require_owner(context, meter, "remove")
        if (meter.removed_at, meter.replaced_by) == (at, None):
            return meter
        return self._remove(context, meter, at, None)

    def _remove(self, context: Context, meter: Meter, at: int, replaced_by: str | None) -> Meter:
        channel = _settings(context)
        check_instant("at", at, channel.interval_s)
        if meter.removed_at is not None:
            raise Conflict(f"meter {meter.meter_id} was removed at {utc_text(meter.removed_at)}")
        now = settings.now(context, channel)
        if not now - channel.final_after_s <= at <= now + _EXCHANGE_AHEAD_S:
            raise Conflict(
                f"at is {utc_text(at)}, but the channel's time is {utc_text(now)}: a meter goes "
                f"at most {channel.final_after_s // DAY_S} days ago, before its readings are "
                f"final, or {_EXCHANGE_AHEAD_S // DAY_S} days ahead"
            )
        if at <= meter.installed_at:
            raise Conflict(
                f"at is {utc_text(at)}, but meter {meter.meter_id} was installed at "
                f"{utc_text(meter.installed_at)}"
            )
        # Every peer has the hash of a reading, though not the reading.
        if context.get_private_hash(collection(meter.utility), interval_key(meter.meter_id, at)):
            raise Conflict(
                f"at is {utc_text(at)}, but meter {meter.meter_id} has a reading of the interval "
                "that begins then"
            )
        removed = replace(meter, removed_at=at, replaced_by=replaced_by)
        meters.store(context, removed)
        return removed

    @query
    def meter(self, context: Context, *, meter_id: Identifier) -> Meter:
        """A meter."""
        return meter_of(context, meter_id)

    @query
    def meters(self, context: Context, *, connection_id: Identifier) -> list[Meter]:
        """All meters that a connection has or had, accredited ones first."""
        return [
            meter
            for source_class in ("accredited", "declared")
            for meter in meters.meters_of(context, connection_id, source_class)
        ]

    # Readings

    @transaction
    def submit_readings(self, context: Context, *, utility: MspId) -> dict[str, Any]:
        """Store up to 1,000 readings from the transient data; a bad one is refused by name."""
        if context.creator.msp_id != utility:
            raise Forbidden(
                f"{access.described(context.creator)} may not submit readings to {utility}; its "
                "own members may"
            )
        if "readings" not in context.transient:
            raise InvalidArgument("the transient data has no entry named readings")
        items = read_list(context.transient["readings"], "readings", "readings", MAX_READINGS)
        intake = Intake(context, utility, _settings(context))
        intake.take(items)
        accepted = intake.accepted
        if not accepted and not intake.duplicates:
            first = intake.refused[0]
            at = first.get("interval_start") or first.get("read_at") or ""
            raise InvalidArgument(
                f"none of {len(items)} readings is acceptable; the first (meter "
                f"{first['meter_id']}, interval {at}): {first['reason']}"
            )
        counts = {"corrected": 0, "late": 0, "after_final": 0}
        if accepted:
            counts = intake.write()
            starts = [reading.at for reading in accepted]
            context.set_event(
                "readings",
                canonical_json(
                    {
                        "utility": utility,
                        "count": len(accepted),
                        "meters": len({reading.meter_id: None for reading in accepted}),
                        "first_interval": min(starts),
                        "last_interval": max(starts),
                        **counts,
                    }
                ),
            )
        else:
            intake.write_again()
        return {
            "accepted": len(accepted),
            "duplicate": intake.duplicates,
            **counts,
            "refused": intake.refused,
        }

    @query
    def readings(
        self,
        context: Context,
        *,
        meter_id: Identifier,
        from_: Instant,
        to: Instant,
        limit: Annotated[int, Integer(1, MAX_READINGS)] = MAX_READINGS,
        history: bool = False,
    ) -> list[dict[str, Any]]:
        """A meter's readings of intervals that begin in [from, to), the oldest first."""
        sight = _require_sight(context, meter_of(context, meter_id))
        store = Store(context, sight.meter.utility)
        found: list[dict[str, Any]] = []
        for reading in store.scan(
            meter_id, max(from_, sight.from_), min(to, sight.to), history=history
        ):
            found.append(dict(fields_of(reading)))
            if len(found) == limit:
                break
        return found

    @query
    def registers(
        self,
        context: Context,
        *,
        meter_id: Identifier,
        from_: Instant,
        to: Instant,
        limit: Annotated[int, Integer(1, MAX_READINGS)] = MAX_READINGS,
    ) -> list[dict[str, Any]]:
        """A meter's register readings of [from, to), the oldest first."""
        sight = _require_sight(context, meter_of(context, meter_id))
        store = Store(context, sight.meter.utility)
        found: list[dict[str, Any]] = []
        for reading in store.scan_registers(meter_id, max(from_, sight.from_), min(to, sight.to)):
            found.append(dict(fields_of(reading)))
            if len(found) == limit:
                break
        return found

    @query
    def last_reading(self, context: Context, *, meter_id: Identifier) -> dict[str, Any]:
        """When a meter was last read, and its registers then; nulls if it never was."""
        sight = _require_sight(context, meter_of(context, meter_id))
        last = Store(context, sight.meter.utility).last(meter_id, _now(context))
        if last is not None and not sight.from_ <= last.interval_start < sight.to:
            last = None
        return {
            "meter_id": meter_id,
            "interval_start": last.interval_start if last else None,
            "import_register_wh": last.import_register_wh if last else None,
            "export_register_wh": last.export_register_wh if last else None,
        }

    @query
    def check(
        self, context: Context, *, meter_id: Identifier, from_: Instant, to: Instant
    ) -> dict[str, Any]:
        """What a meter's readings of [from, to) lack, and where sums and registers differ."""
        sight = _require_sight(context, meter_of(context, meter_id))
        interval_s = _settings(context).interval_s
        start, end = _bounded(max(from_, sight.from_), min(to, sight.to), interval_s)
        return _check(Store(context, sight.meter.utility), sight.meter, start, end, interval_s)

    @query
    def compare(
        self, context: Context, *, connection_id: Identifier, from_: Instant, to: Instant
    ) -> list[dict[str, Any]]:
        """A connection's declared meters against its accredited ones, where both were read."""
        declared = meters.meters_of(context, connection_id, "declared")
        if not declared:
            return []
        sight = _require_sight(context, declared[0])
        interval_s = _settings(context).interval_s
        start, end = _bounded(max(from_, sight.from_), min(to, sight.to), interval_s)
        store = Store(context, sight.meter.utility)
        settled = {
            interval.interval_start: (interval.import_wh, interval.export_wh)
            for interval in connection_intervals(
                store, connection_id, start, end, interval_s, scan=True
            )
            if not interval.missing
        }
        return [
            _comparison(store, meter, settled, start, end)
            for meter in declared
            if meter.purpose == "exchange"
        ]

    @query
    def arrivals(self, context: Context, *, utility: MspId, day: Day) -> list[Arrival]:
        """What was accepted on a UTC day late, as a correction, or after it was final."""
        access.require_operator(context.creator, utility, f"list late readings of {utility}")
        day_start(day)
        return list(late_arrivals(Store(context, utility), day))

    # Silence

    @query
    def silent(self, context: Context, *, utility: MspId) -> dict[str, Any]:
        """Which accredited meters of a utility are silent, and what they have in common."""
        access.require_operator(context.creator, utility, f"look after meters of {utility}")
        channel = _settings(context)
        now = settings.now(context, channel)
        watched = _watched(context, utility, channel, now)
        faults = silence.classify(watched, channel.interval_s)
        return {
            "at": now,
            "meters": len(watched),
            "deadline_intervals": channel.silent_after,
            "faults": [
                {
                    "kind": fault.kind,
                    "name": fault.name,
                    "since": fault.since,
                    "silent_s": now - fault.since,
                    "meters": fault.meters,
                    "last_gasps": fault.last_gasps,
                    "alive": fault.alive,
                }
                for fault in faults
            ],
        }

    @transaction
    def report_outage(
        self,
        context: Context,
        *,
        utility: MspId,
        kind: FaultKind,
        name: Identifier,
        since: Instant,
        meters: Annotated[tuple[Identifier, ...], AtMost(MAX_OUTAGE_METERS)],
    ) -> Outage:
        """Put a common outage on the ledger; every peer checks that these meters are silent."""
        access.require_operator(context.creator, utility, f"report outages of {utility}")
        channel = _settings(context)
        now = settings.now(context, channel)
        key = _outage_key(utility, kind, name, since)
        stored = context.get_state(key)
        if stored is not None:
            known = stored_record(Outage, stored)
            if known.meters != meters:
                raise Conflict(f"the outage of {kind} {name} is reported already, and differently")
            return known
        if list(meters) != sorted(dict.fromkeys(meters)) or len(meters) < 2:
            raise InvalidArgument("meters must name two at least, in order, each once")
        self._check_silent(context, utility, meters, since, channel, now)
        self._check_common(context, kind, name, meters, since)
        outage = Outage(utility, kind, name, since, meters, now, now - since)
        context.put_state(key, canonical_json(outage))
        context.set_event(
            "outage",
            canonical_json(
                {
                    "utility": utility,
                    "kind": kind,
                    "name": name,
                    "since": since,
                    "meters": len(meters),
                    "delay_s": outage.delay_s,
                }
            ),
        )
        return outage

    @transaction
    def end_outage(
        self,
        context: Context,
        *,
        utility: MspId,
        kind: FaultKind,
        name: Identifier,
        since: Instant,
        at: Instant,
    ) -> Outage:
        """Note when an outage was over."""
        access.require_operator(context.creator, utility, f"end outages of {utility}")
        stored = context.get_state(_outage_key(utility, kind, name, since))
        if stored is None:
            raise NotFound(f"no outage of {kind} {name} since {utc_text(since)} was reported")
        outage = stored_record(Outage, stored)
        if outage.ended_at == at:
            return outage
        now = _now(context)
        if outage.ended_at is not None or not since < at <= now:
            raise Conflict(
                f"at is {utc_text(at)}, but the outage began at {utc_text(since)}, the channel's "
                f"time is {utc_text(now)}, and an outage ends once"
            )
        ended = replace(outage, ended_at=at)
        context.put_state(_outage_key(utility, kind, name, since), canonical_json(ended))
        return ended

    @query
    def outages(
        self,
        context: Context,
        *,
        utility: MspId,
        limit: Annotated[int, Integer(1, 200)] = 100,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """The outages that a utility has reported, by kind, name and beginning."""
        return listed(context, "outages", Outage, f"outage/{utility}/", "", limit, bookmark)

    def _check_silent(
        self,
        context: Context,
        utility: str,
        names: tuple[str, ...],
        since: int,
        channel: MeteringSettings,
        now: int,
    ) -> None:
        """By the hashes of readings, which every peer has."""
        interval_s = channel.interval_s
        first = -(-since // interval_s) * interval_s
        intervals = min(channel.silent_after, (now - first) // interval_s)
        if intervals < 1:
            raise Conflict(
                f"since is {utc_text(since)}, but no whole interval has passed since then, and the "
                f"channel's time is {utc_text(now)}"
            )
        if len(names) * intervals > MAX_SILENCES:
            raise LimitExceeded(
                f"{len(names)} meters of {intervals} intervals each are {len(names) * intervals} "
                f"to check, but one report may have {MAX_SILENCES}; name fewer meters"
            )
        for name in names:
            meter = meter_of(context, name)
            if meter.utility != utility or not meter.in_place(first, first + interval_s):
                raise Conflict(f"meter {name} was no meter of {utility} at {utc_text(first)}")
            for start in range(first, first + intervals * interval_s, interval_s):
                if context.get_private_hash(collection(utility), interval_key(name, start)):
                    raise Conflict(
                        f"meter {name} has a reading of the interval starting {utc_text(start)}, "
                        f"so it wasn't silent since {utc_text(since)}"
                    )

    def _check_common(
        self, context: Context, kind: str, name: str, names: tuple[str, ...], since: int
    ) -> None:
        found = {meter_id: meter_of(context, meter_id) for meter_id in names}
        if kind == "gateway":
            elsewhere = [meter_id for meter_id, meter in found.items() if meter.gateway != name]
        else:
            connections = [meter.connection_id for meter in found.values()]
            where = _transformers(context, connections, since)
            elsewhere = [
                meter_id
                for meter_id, meter in found.items()
                if where.get(meter.connection_id) != name
            ]
        if elsewhere:
            raise Conflict(f"meter {elsewhere[0]} was not behind {kind} {name}")

    # Places

    @transaction
    def place_plant(
        self, context: Context, *, plant_id: Identifier, utility: MspId
    ) -> dict[str, Any]:
        """Keep a plant's exact place in private; the answer is what may be public of it."""
        access.require_operator(context.creator, utility, f"place plants of {utility}")
        if "place" not in context.transient:
            raise InvalidArgument("the transient data has no entry named place")
        place = read_record(Place, context.transient["place"], "place")
        context.put_private(collection(utility), f"place/{plant_id}", canonical_json(place))
        return {
            "plant_id": plant_id,
            "latitude_udeg": _rounded(place.latitude_udeg),
            "longitude_udeg": _rounded(place.longitude_udeg),
        }

    @query
    def plant_place(self, context: Context, *, plant_id: Identifier, utility: MspId) -> Place:
        """A plant's exact place."""
        access.require_operator(context.creator, utility, f"see places of {utility}'s plants")
        stored = context.get_private(collection(utility), f"place/{plant_id}")
        if stored is None:
            raise NotFound(f"plant {plant_id} has no place; see metering:PlacePlant")
        return stored_record(Place, stored)


def _rounded(udeg: int) -> int:
    """To 0.01 degrees, halves up."""
    return (udeg + 5_000) // 10_000 * 10_000


def _first_verification(
    source_class: str, certificate: str | None, from_: int, until: int | None
) -> tuple[Verification, ...]:
    if certificate is None and until is None:
        return ()
    if source_class == "declared":
        raise InvalidArgument("certificate and certified_until are of accredited meters alone")
    if certificate is None:
        raise InvalidArgument(
            "certified_until says until when a certificate holds, which is missing"
        )
    if until is not None and until <= from_:
        raise InvalidArgument(
            f"certified_until is {until}, but must lie after the meter's beginning, {from_}"
        )
    return (Verification(certificate, from_, until),)


def _bounded(from_: int, to: int, interval_s: int) -> tuple[int, int]:
    start = -(-from_ // interval_s) * interval_s
    if (to - start) // interval_s > MAX_CHECKED:
        raise LimitExceeded(
            f"from and to are {(to - start) // interval_s} intervals apart, but may be "
            f"{MAX_CHECKED}"
        )
    return start, to


def _outage_key(utility: str, kind: str, name: str, since: int) -> str:
    return f"outage/{utility}/{kind}/{name}/{since:012d}"


def _transformers(context: Context, connections: list[str], at: int) -> dict[str, str | None]:
    """The transformers of connections, as `energy` knows them."""
    found: dict[str, str | None] = {}
    names = list(dict.fromkeys(connections))
    for first in range(0, len(names), _PATHS_AT_ONCE):
        answer = called(
            context,
            "energy",
            "grid:Paths",
            _Paths,
            connections=names[first : first + _PATHS_AT_ONCE],
            at=at,
        )
        found |= {path.connection_id: path.transformer_id for path in answer.paths}
    return found


def _watched(
    context: Context, utility: str, channel: MeteringSettings, now: int
) -> list[silence.Watched]:
    """All accredited meters of a utility that are in place, with their last signs of life."""
    fleet = []
    for _, value in context.range(*under("meter/")):
        meter = stored_record(Meter, value)
        if (
            meter.utility == utility
            and meter.source_class == "accredited"
            and meter.in_place(now, now + 1)
        ):
            fleet.append(meter)
            if len(fleet) > MAX_WATCHED:
                raise LimitExceeded(
                    f"{utility} has more than {MAX_WATCHED} accredited meters, which is what one "
                    "query looks after"
                )
    store = Store(context, utility)
    transformers = _transformers(context, [meter.connection_id for meter in fleet], now)
    watched = []
    for meter in fleet:
        last_end, gasp_at = _last_signs(store, meter, channel, now)
        watched.append(
            silence.Watched(
                meter.meter_id,
                transformers.get(meter.connection_id),
                meter.gateway,
                silence.silent_since(
                    last_end, gasp_at, now, channel.silent_after * channel.interval_s
                ),
                gasp_at is not None,
            )
        )
    return watched


def _last_signs(
    store: Store, meter: Meter, channel: MeteringSettings, now: int
) -> tuple[int, int | None]:
    """The end of a meter's last reading, and the instant of a last gasp after it."""
    interval_s = channel.interval_s
    # By ranges, as short as they can be: in an outage all meters of a utility are silent.
    last = store.last(meter.meter_id, now, 2 * interval_s)
    end = meter.installed_at if last is None else last.interval_start + interval_s
    gasps = [
        reading.read_at
        for reading in store.scan_registers(meter.meter_id, end, now + 1)
        if reading.last_gasp
    ]
    if last is not None and last.last_gasp:
        gasps.insert(0, end)
    return end, gasps[-1] if gasps else None


def _check(store: Store, meter: Meter, from_: int, to: int, interval_s: int) -> dict[str, Any]:
    """Go through a meter's readings once, from one measured register to the next."""
    found = {reading.interval_start: reading for reading in store.scan(meter.meter_id, from_, to)}
    missing: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    anchor: Reading | None = None
    counted = {"import": 0, "export": 0}
    gap: dict[str, Any] | None = None
    known_gaps = expected = 0
    for start in range(from_, to - interval_s + 1, interval_s):
        if not meter.in_place(start, start + interval_s):
            continue
        expected += 1
        reading = found.get(start)
        if reading is None:
            if gap is not None and gap["to"] == start:
                gap["to"] = start + interval_s
            else:
                gap = {
                    "from": start,
                    "to": start + interval_s,
                    "import_wh": None,
                    "export_wh": None,
                }
                missing.append(gap)
            continue
        counted["import"] += reading.import_wh
        counted["export"] += reading.export_wh
        if reading.quality != "measured":
            continue
        if anchor is not None:
            risen = {
                "import": meter.risen_wh(anchor.import_register_wh, reading.import_register_wh),
                "export": meter.risen_wh(anchor.export_register_wh, reading.export_register_wh),
            }
            open_gaps = missing[known_gaps:]
            for name in ("import", "export"):
                rest = risen[name] - counted[name]
                if len(open_gaps) == 1 and rest >= -1:
                    # The registers went on: they tell what was not read, within a digit.
                    open_gaps[0][f"{name}_wh"] = max(0, rest)
                elif abs(rest) > 1 and not (open_gaps and rest > 0):
                    differences.append(
                        {
                            "from": anchor.interval_start + interval_s,
                            "to": start + interval_s,
                            "direction": name,
                            "counted_wh": counted[name],
                            "risen_wh": risen[name],
                        }
                    )
        anchor, counted, gap = reading, {"import": 0, "export": 0}, None
        known_gaps = len(missing)
    readings = found.values()
    return {
        "meter_id": meter.meter_id,
        "expected": expected,
        "found": len(found),
        "estimated": sum(1 for one in readings if one.quality == "estimated"),
        "substituted": sum(1 for one in readings if one.quality == "substituted"),
        "corrected": sum(1 for one in readings if one.version > 1),
        "import_wh": sum(one.import_wh for one in readings),
        "export_wh": sum(one.export_wh for one in readings),
        "missing": missing[:MAX_READINGS],
        "differences": differences[:MAX_READINGS],
        "registers": _register_differences(store, meter, found, from_, to, interval_s),
    }


def _register_differences(
    store: Store,
    meter: Meter,
    found: dict[int, Reading],
    from_: int,
    to: int,
    interval_s: int,
) -> list[dict[str, Any]]:
    """Register readings that disagree with the interval which ends at the same instant."""
    differences = []
    for read in store.scan_registers(meter.meter_id, from_, to + 1):
        interval = found.get(read.read_at - interval_s)
        if interval is None or interval.quality != "measured" or read.quality != "measured":
            continue
        for name, by_interval, by_register in (
            ("import", interval.import_register_wh, read.import_register_wh),
            ("export", interval.export_register_wh, read.export_register_wh),
        ):
            if abs(by_interval - by_register) > 1:
                differences.append(
                    {
                        "read_at": read.read_at,
                        "direction": name,
                        "interval_wh": by_interval,
                        "register_wh": by_register,
                    }
                )
    return differences


def _comparison(
    store: Store, meter: Meter, settled: dict[int, tuple[int, int]], from_: int, to: int
) -> dict[str, Any]:
    accredited, declared, intervals = [0, 0], [0, 0], 0
    for reading in store.scan(meter.meter_id, from_, to):
        sums = settled.get(reading.interval_start)
        if sums is None:
            continue
        intervals += 1
        accredited[0] += sums[0]
        accredited[1] += sums[1]
        declared[0] += reading.import_wh
        declared[1] += reading.export_wh
    differs = [
        abs(ours - theirs) > max(_COMPARE_FLOOR_WH, theirs * _COMPARE_PPM // 1_000_000)
        for ours, theirs in zip(declared, accredited, strict=True)
    ]
    return {
        "meter_id": meter.meter_id,
        "intervals": intervals,
        "accredited_import_wh": accredited[0],
        "declared_import_wh": declared[0],
        "import_differs": differs[0],
        "accredited_export_wh": accredited[1],
        "declared_export_wh": declared[1],
        "export_differs": differs[1],
    }
