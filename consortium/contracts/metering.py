"""Chaincode `metering`: meters, and the readings that they signed.

Readings at interval resolution tell a life. They stand in the private collection
`readings-<MSP id>` of the home's utility, whose own policy endorses them; the channel carries
salted hashes. A submission writes nothing public.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    Chaincode,
    Choice,
    Conflict,
    Context,
    Contract,
    ContractError,
    Forbidden,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    Json,
    MspId,
    NotFound,
    Text,
    canonical_json,
    canonical_public_key,
    plain,
    query,
    read_item,
    read_list,
    stored_record,
    transaction,
    under,
    verify_p256,
)

from . import access, settings
from .clock import DAY_S, Replay, real_seconds, utc_text
from .settings import Currency, IntervalLength, MeteringSettings

MAX_READINGS = 1000
"""Readings of one submission, and of one answer."""
CLOCK_TOLERANCE_S = 60
"""How far a meter's clock may be ahead of the channel's, in real time even under a replay clock."""
REGISTER_TOLERANCE_WH = 1
"""One digit of a register that counts Wh."""

_Wh = Annotated[int, Integer(0, 10**9, "Wh")]
_Register = Annotated[int, Integer(0, 10**15, "Wh")]


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter: whose key its readings must be signed with."""

    meter_id: Identifier
    connection_id: Identifier
    utility: MspId
    source_class: Annotated[str, Choice("accredited", "declared")]
    public_key: Annotated[str, Text(r"[A-Za-z0-9+/=\n -]{1,512}", "a public key in PEM")]
    max_power_w: Annotated[int, Integer(1, 10_000_000, "W")]


@dataclass(frozen=True, slots=True)
class Reading:
    """One interval of one meter, as signed by it and stored."""

    meter_id: Identifier
    interval_start: Instant
    interval_s: IntervalLength
    version: Annotated[int, Integer(1, 1)]
    import_wh: _Wh
    export_wh: _Wh
    import_register_wh: _Register
    export_register_wh: _Register
    quality: Annotated[str, Choice("measured", "estimated", "substituted")]
    salt: Annotated[str, Text(r"[0-9a-f]{64}", "64 lower-case hex digits")]
    signature: Annotated[str, Text(r"[A-Za-z0-9+/]{1,124}={0,2}", "base64 of a DER signature")]


def signed_bytes(channel_id: str, reading: Reading) -> bytes:
    """What a meter signs: canonical JSON of the channel and all fields but the signature."""
    fields = plain(reading)
    assert isinstance(fields, dict)
    del fields["signature"]
    return canonical_json({"channel": channel_id, **fields})


def _collection(utility: str) -> str:
    return f"readings-{utility}"


def _key(meter_id: str, interval_start: int, version: int = 1) -> str:
    return f"r/{meter_id}/{interval_start:012d}/{version}"


def _meter(context: Context, meter_id: str) -> Meter:
    stored = context.get_state(f"meter/{meter_id}")
    if stored is None:
        raise NotFound(f"meter {meter_id} is not registered; see metering:RegisterMeter")
    return stored_record(Meter, stored)


def _settings(context: Context) -> MeteringSettings:
    return settings.read(context, MeteringSettings, "metering:Configure")


def _required_sight(context: Context, meter_id: str) -> Meter:
    """The meter; raises Forbidden unless the caller may read its readings."""
    meter = _meter(context, meter_id)
    access.require(
        access.is_home(context.creator, meter.utility, meter.connection_id)
        or access.is_operator(context.creator, meter.utility),
        context.creator,
        f"read meter {meter_id}",
        f"the home at {meter.connection_id} and operators of {meter.utility}",
    )
    return meter


class _Batch:
    """The readings of one submission: each is accepted, known already, or refused."""

    def __init__(self, context: Context, utility: str) -> None:
        self.accepted: dict[str, Reading] = {}
        self.duplicates: list[bytes] = []
        self.duplicate_keys: list[str] = []
        self.refused: list[dict[str, Any]] = []
        self._context = context
        self._utility = utility
        self._settings = _settings(context)
        self._now = settings.now(context, self._settings)
        self._meters: dict[str, Meter] = {}

    def take(self, item: Json) -> None:
        """Judge one reading; what is wrong with it is kept, never raised."""
        try:
            self._take(read_item(Reading, item))
        except ContractError as error:
            named = item if isinstance(item, dict) else {}
            self.refused.append(
                {
                    "meter_id": str(named.get("meter_id", ""))[:64],
                    "interval_start": str(named.get("interval_start", ""))[:20],
                    "reason": str(error),
                }
            )

    def _take(self, reading: Reading) -> None:
        meter = self._checked_meter(reading.meter_id)
        self._check_interval(reading, meter)
        if not verify_p256(
            meter.public_key,
            reading.signature,
            signed_bytes(self._context.channel_id, reading),
        ):
            raise InvalidArgument(
                "signature does not hold for the registered public key over this channel and "
                "these fields"
            )
        key = _key(reading.meter_id, reading.interval_start)
        existing = self._reading(key)
        if existing is not None:
            # A signature is made with a random number, so two of one reading differ.
            if replace(existing, signature="") != replace(reading, signature=""):
                raise Conflict(
                    "the interval already has a different reading; corrections are not accepted yet"
                )
            self.duplicates.append(canonical_json(existing))
            self.duplicate_keys.append(key)
            return
        self._check_registers(reading)
        self.accepted[key] = reading

    def _reading(self, key: str) -> Reading | None:
        if key in self.accepted:
            return self.accepted[key]
        stored = self._context.get_private(_collection(self._utility), key)
        return None if stored is None else stored_record(Reading, stored)

    def _checked_meter(self, meter_id: str) -> Meter:
        if meter_id not in self._meters:
            meter = _meter(self._context, meter_id)
            if meter.utility != self._utility:
                raise Forbidden(f"meter {meter_id} is {meter.utility}'s, not {self._utility}'s")
            creator = self._context.creator
            access.require(
                access.is_home(creator, meter.utility, meter.connection_id)
                or access.is_operator(creator, meter.utility),
                creator,
                f"submit readings of meter {meter_id}",
                f"the home at {meter.connection_id} and operators of {meter.utility}",
            )
            self._meters[meter_id] = meter
        return self._meters[meter_id]

    def _check_interval(self, reading: Reading, meter: Meter) -> None:
        interval_s = self._settings.interval_s
        if reading.interval_s != interval_s:
            raise InvalidArgument(
                f"interval_s is {reading.interval_s}, but the channel's interval is {interval_s} s"
            )
        if reading.interval_start % interval_s:
            raise InvalidArgument(
                f"interval_start is {reading.interval_start}, but must be a multiple of "
                f"{interval_s}"
            )
        end = reading.interval_start + interval_s
        if end > self._now + real_seconds(self._settings.replay, CLOCK_TOLERANCE_S):
            raise InvalidArgument(
                f"the interval ends at {utc_text(end)}, but the channel's time is "
                f"{utc_text(self._now)}"
            )
        limit_wh = meter.max_power_w * interval_s // 3600
        for name, energy_wh in (
            ("import_wh", reading.import_wh),
            ("export_wh", reading.export_wh),
        ):
            if energy_wh > limit_wh:
                raise InvalidArgument(
                    f"{name} is {energy_wh}, but meter {meter.meter_id} ({meter.max_power_w} W) "
                    f"can count at most {limit_wh} Wh in the interval starting "
                    f"{utc_text(reading.interval_start)}"
                )

    def _check_registers(self, reading: Reading) -> None:
        """Where both are measured, registers must have risen by what the interval counted."""
        if reading.interval_start < reading.interval_s:
            return
        before = self._reading(_key(reading.meter_id, reading.interval_start - reading.interval_s))
        if before is None or (before.quality, reading.quality) != ("measured", "measured"):
            return
        for direction, energy_wh, register_wh, register_before_wh in (
            ("import", reading.import_wh, reading.import_register_wh, before.import_register_wh),
            ("export", reading.export_wh, reading.export_register_wh, before.export_register_wh),
        ):
            risen_wh = register_wh - register_before_wh
            if abs(risen_wh - energy_wh) > REGISTER_TOLERANCE_WH:
                raise Conflict(
                    f"{direction}_register_wh is {register_wh}, {risen_wh} Wh more than one "
                    f"interval before, but {direction}_wh is {energy_wh}"
                )


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
    ) -> MeteringSettings:
        """Set the channel up, once."""
        return settings.configure(context, MeteringSettings(interval_s, currency, replay))

    @query
    def settings(self, context: Context) -> MeteringSettings:
        """The channel's settings."""
        return _settings(context)

    @transaction
    def register_meter(
        self,
        context: Context,
        *,
        meter_id: Identifier,
        connection_id: Identifier,
        utility: MspId,
        source_class: Annotated[str, Choice("accredited", "declared")],
        public_key: Annotated[str, Text(r"[A-Za-z0-9+/=\n\r -]{1,512}", "a public key in PEM")],
        max_power_w: Annotated[int, Integer(1, 10_000_000, "W")] = 100_000,
    ) -> Meter:
        """Enter a meter; the same again changes nothing."""
        creator = context.creator
        if source_class == "accredited":
            allowed, who = access.is_operator(creator, utility), f"operators of {utility}"
        else:
            allowed = access.is_home(creator, utility, connection_id)
            who = f"the home at {connection_id} of {utility}"
        access.require(allowed, creator, f"register {source_class} meter {meter_id}", who)
        meter = Meter(
            meter_id,
            connection_id,
            utility,
            source_class,
            canonical_public_key(public_key),
            max_power_w,
        )
        key = f"meter/{meter_id}"
        stored = context.get_state(key)
        if stored is None:
            context.put_state(key, canonical_json(meter))
        elif stored_record(Meter, stored) != meter:
            raise Conflict(f"meter {meter_id} is registered already, and differently")
        return meter

    @query
    def meter(self, context: Context, *, meter_id: Identifier) -> Meter:
        """A meter."""
        return _meter(context, meter_id)

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
        batch = _Batch(context, utility)
        for item in items:
            batch.take(item)
        if not batch.accepted and not batch.duplicates:
            first = batch.refused[0]
            raise InvalidArgument(
                f"none of {len(items)} readings is acceptable; the first (meter "
                f"{first['meter_id']}, interval {first['interval_start']}): {first['reason']}"
            )
        collection = _collection(utility)
        for key, reading in batch.accepted.items():
            context.put_private(collection, key, canonical_json(reading))
        if batch.accepted:
            starts = [reading.interval_start for reading in batch.accepted.values()]
            meters = {reading.meter_id: None for reading in batch.accepted.values()}
            context.set_event(
                "readings",
                canonical_json(
                    {
                        "utility": utility,
                        "count": len(batch.accepted),
                        "meters": len(meters),
                        "first_interval": min(starts),
                        "last_interval": max(starts),
                    }
                ),
            )
        else:
            # A transaction without a write falls under the chaincode's own policy, which the
            # utility alone does not satisfy; the same value again keeps it under the collection's.
            context.put_private(collection, batch.duplicate_keys[0], batch.duplicates[0])
        return {
            "accepted": len(batch.accepted),
            "duplicate": len(batch.duplicates),
            "refused": batch.refused,
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
    ) -> list[Reading]:
        """A meter's readings of intervals that begin in [from, to), the oldest first."""
        meter = _required_sight(context, meter_id)
        prefix = f"r/{meter_id}/"
        found: list[Reading] = []
        for _, value in context.range_private(
            _collection(meter.utility), f"{prefix}{from_:012d}", f"{prefix}{to:012d}"
        ):
            found.append(stored_record(Reading, value))
            if len(found) == limit:
                break
        return found

    @query
    def last_reading(self, context: Context, *, meter_id: Identifier) -> dict[str, Any]:
        """When a meter was last read, and its registers then; nulls if it never was."""
        meter = _required_sight(context, meter_id)
        last = self._last(context, meter, settings.now(context, _settings(context)))
        return {
            "meter_id": meter_id,
            "interval_start": last.interval_start if last else None,
            "import_register_wh": last.import_register_wh if last else None,
            "export_register_wh": last.export_register_wh if last else None,
        }

    def _last(self, context: Context, meter: Meter, now: int) -> Reading | None:
        """Look back from now in ever longer steps: a day, two, four, … until something is found."""
        prefix = f"r/{meter.meter_id}/"
        end = under(prefix)[1]
        start, step = max(0, now - DAY_S), DAY_S
        while True:
            last = None
            # A state range runs forward only, so the last of a step is met after its others.
            for _, value in context.range_private(
                _collection(meter.utility), f"{prefix}{start:012d}", end
            ):
                last = value
            if last is not None:
                return stored_record(Reading, last)
            if start == 0:
                return None
            end = f"{prefix}{start:012d}"
            step *= 2
            start = max(0, start - step)


CHAINCODE = Chaincode("metering", (Metering(),))
