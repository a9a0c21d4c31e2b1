"""Readings as they stand in a utility's private collection, and sums of them.

    r/{meter}/{interval_start}/{version}   Reading: energy of an interval, registers at its end
    g/{meter}/{read_at}/{version}          RegisterReading: registers at an instant
    v/{meter}/{day}                        which intervals of a UTC day have been corrected
    late/{day}/{meter}/{at}/{version}      what came late or as a correction, by day of acceptance

A correction is the next version of its interval and never replaces what was there. What counts is
the highest version. Other contracts of chaincode `metering` read through `Store`:

    store = Store(context, utility)
    store.latest(meter_id, interval_start)     one reading, by single reads: may write afterwards
    store.scan(meter_id, from_, to)            many, by a range: in queries only
    connection_intervals(store, connection_id, from_, to, interval_s)   what settles, by interval
    transformer_sums(store, connections, from_, to, interval_s)         their sums, for losses
    late_arrivals(store, day)                  what to post as adjustments: in queries only
    late_days(store, day)                      of which meters and days that is
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Context,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    Json,
    Rule,
    Text,
    Texts,
    canonical_json,
    plain,
    sha256_hex,
    stored_record,
    under,
)

from ..common.clock import DAY_S, Day, day_of
from ..common.commitments import collection
from ..common.settings import IntervalLength
from .meters import Meter, meters_of
from .signatures import Signature

MAX_VERSIONS = 9
"""Of one interval: a tenth value of it is a dispute, not a correction."""
QUALITIES = ("measured", "estimated", "substituted")
"""From the best to the worst."""


@dataclass(frozen=True, slots=True)
class Private:
    """A rule that doesn't repeat the value it refuses: answers of transactions are public."""

    rule: Rule
    what: str

    @property
    def texts(self) -> Texts | None:
        """See `api.Rule`."""
        return getattr(self.rule, "texts", None)

    def read(self, value: Json, where: str) -> object:
        """See `api.Rule`."""
        try:
            return self.rule.read(value, where)
        except InvalidArgument:
            raise InvalidArgument(
                f"{where} must be {self.what} (its value is private and not repeated here)"
            ) from None


Wh = Annotated[int, Private(Integer(0, 10**9), "an integer from 0 to 1000000000 Wh, as a string")]
Register = Annotated[
    int, Private(Integer(0, 10**15), "an integer from 0 to 1000000000000000 Wh, as a string")
]
Quality = Annotated[str, Choice(*QUALITIES)]
Salt = Annotated[str, Private(Text(r"[0-9a-f]{64}", ""), "64 lower-case hex digits")]
ReadingVersion = Annotated[int, Integer(1, MAX_VERSIONS)]


@dataclass(frozen=True, slots=True)
class Reading:
    """One interval of one meter, as signed by it and stored."""

    meter_id: Identifier
    interval_start: Instant
    interval_s: IntervalLength
    version: ReadingVersion
    import_wh: Wh
    export_wh: Wh
    import_register_wh: Register
    export_register_wh: Register
    quality: Quality
    salt: Salt
    signature: Signature
    last_gasp: bool | None = None
    """The meter sent it as its power went away."""

    @property
    def at(self) -> int:
        """What its keys are ordered by."""
        return self.interval_start


@dataclass(frozen=True, slots=True)
class RegisterReading:
    """A meter's registers at an instant, as signed by it and stored."""

    meter_id: Identifier
    read_at: Instant
    version: ReadingVersion
    import_register_wh: Register
    export_register_wh: Register
    quality: Quality
    salt: Salt
    signature: Signature
    last_gasp: bool | None = None

    @property
    def at(self) -> int:
        """What its keys are ordered by."""
        return self.read_at


type Anyone = Reading | RegisterReading


def fields_of(reading: Anyone) -> dict[str, Json]:
    """A reading as it travels: without optional fields that it doesn't have."""
    fields = plain(reading)
    assert isinstance(fields, dict)
    if fields["last_gasp"] is None:
        del fields["last_gasp"]
    return fields


def canonical_parts(reading: Anyone) -> tuple[str, str]:
    """Canonical JSON of a reading: all fields up to its salt, and its version.

    Between them stands the signature, in front of them the channel that it is for. Written out,
    since it takes most of a batch's time otherwise: names in order, and no value that its rule lets
    pass needs an escape.
    """
    gasp = (
        ""
        if reading.last_gasp is None
        else f'"last_gasp":{"true" if reading.last_gasp else "false"},'
    )
    version = f'"version":"{reading.version}"}}'
    if isinstance(reading, Reading):
        return (
            f'"export_register_wh":"{reading.export_register_wh}",'
            f'"export_wh":"{reading.export_wh}",'
            f'"import_register_wh":"{reading.import_register_wh}",'
            f'"import_wh":"{reading.import_wh}","interval_s":"{reading.interval_s}",'
            f'"interval_start":"{reading.interval_start}",{gasp}'
            f'"meter_id":"{reading.meter_id}","quality":"{reading.quality}",'
            f'"salt":"{reading.salt}",'
        ), version
    return (
        f'"export_register_wh":"{reading.export_register_wh}",'
        f'"import_register_wh":"{reading.import_register_wh}",{gasp}'
        f'"meter_id":"{reading.meter_id}","quality":"{reading.quality}",'
        f'"read_at":"{reading.read_at}","salt":"{reading.salt}",'
    ), version


def stored_bytes(reading: Anyone, parts: tuple[str, str] | None = None) -> bytes:
    """What stands in the collection: canonical JSON of all fields."""
    fields, version = parts or canonical_parts(reading)
    return f'{{{fields}"signature":"{reading.signature}",{version}'.encode()


def signed_bytes(channel: str, reading: Anyone, parts: tuple[str, str] | None = None) -> bytes:
    """What a meter signs: canonical JSON of the channel and all fields but the signature.

    `channel` is the channel's name in canonical JSON.
    """
    fields, version = parts or canonical_parts(reading)
    return f'{{"channel":{channel},{fields}{version}'.encode()


def interval_key(meter_id: str, interval_start: int, version: int = 1) -> str:
    """The key of an interval's reading; its hash says to everybody whether there is one."""
    return f"r/{meter_id}/{interval_start:012d}/{version}"


def register_key(meter_id: str, read_at: int, version: int = 1) -> str:
    """The key of a register reading."""
    return f"g/{meter_id}/{read_at:012d}/{version}"


def key_of(reading: Anyone) -> str:
    """Where a reading stands."""
    if isinstance(reading, Reading):
        return interval_key(reading.meter_id, reading.interval_start, reading.version)
    return register_key(reading.meter_id, reading.read_at, reading.version)


def corrected_key(meter_id: str, at: int) -> str:
    """Where it stands which intervals of the UTC day of an instant have been corrected."""
    return f"v/{meter_id}/{day_of(at)}"


@dataclass(frozen=True, slots=True)
class _Corrected:
    interval_start: Instant
    version: ReadingVersion


@dataclass(frozen=True, slots=True)
class _CorrectedDay:
    """The intervals of a UTC day that have more than one version."""

    intervals: Annotated[tuple[_Corrected, ...], AtMost(DAY_S)]
    salt: Salt


@dataclass(frozen=True, slots=True)
class Arrival:
    """A reading that came late, or as a correction."""

    meter_id: Identifier
    at: Instant
    """Start of the interval, or instant of the register reading."""
    version: ReadingVersion
    accepted_at: Instant
    kind: Annotated[str, Choice("late", "correction", "adjustment")]
    """adjustment: after the interval was final."""


def arrival_key(arrival: Arrival) -> str:
    """Where it stands that something came late or as a correction."""
    return (
        f"late/{day_of(arrival.accepted_at)}/{arrival.meter_id}/{arrival.at:012d}/{arrival.version}"
    )


class Store:
    """One utility's readings, as this transaction sees them. Remembers what it has read."""

    def __init__(self, context: Context, utility: str) -> None:
        self.context = context
        self.utility = utility
        self._collection = collection(utility)
        self._corrected: dict[tuple[str, int], dict[int, int]] = {}
        self._ahead: dict[str, bytes | None] = {}

    def read_ahead(self, keys: Sequence[str]) -> None:
        """Read at once what will be read for certain: a read is part of the transaction."""
        self._ahead |= zip(keys, self.context.get_privates(self._collection, keys), strict=True)

    def holds(self, key: str) -> bool:
        """Whether there is a reading, or a note, under a key."""
        return self._get(key) is not None

    def _get(self, key: str) -> bytes | None:
        if key in self._ahead:
            return self._ahead[key]
        return self.context.get_private(self._collection, key)

    def version(self, meter_id: str, interval_start: int, version: int) -> Reading | None:
        """One version of an interval's reading."""
        stored = self._get(interval_key(meter_id, interval_start, version))
        return None if stored is None else stored_record(Reading, stored)

    def latest(self, meter_id: str, interval_start: int) -> Reading | None:
        """The reading of an interval that counts: its highest version. By single reads."""
        stored = self._get(self.latest_key(meter_id, interval_start))
        return None if stored is None else stored_record(Reading, stored)

    def latest_key(self, meter_id: str, interval_start: int) -> str:
        """Where the reading of an interval that counts would stand."""
        day = self.corrected(meter_id, interval_start)
        return interval_key(meter_id, interval_start, day.get(interval_start, 1))

    def corrected(self, meter_id: str, at: int) -> dict[int, int]:
        """The highest versions of the intervals corrected on the UTC day of an instant."""
        day = (meter_id, at // DAY_S)
        found = self._corrected.get(day)
        if found is None:
            stored = self._get(corrected_key(meter_id, at))
            noted = () if stored is None else stored_record(_CorrectedDay, stored).intervals
            found = {one.interval_start: one.version for one in noted}
            self._corrected[day] = found
        return found

    def register(self, meter_id: str, read_at: int) -> RegisterReading | None:
        """The registers read at an instant: the highest version. By single reads."""
        found = None
        for version in range(1, MAX_VERSIONS + 1):
            newer = self.register_version(meter_id, read_at, version)
            if newer is None:
                break
            found = newer
        return found

    def register_version(self, meter_id: str, read_at: int, version: int) -> RegisterReading | None:
        """One version of the registers read at an instant."""
        stored = self._get(register_key(meter_id, read_at, version))
        return None if stored is None else stored_record(RegisterReading, stored)

    def put(self, reading: Anyone) -> None:
        """Write a reading."""
        self.put_bytes(key_of(reading), stored_bytes(reading))

    def put_bytes(self, key: str, stored: bytes) -> None:
        """Write a reading by its `key_of` and `stored_bytes`, where they are known already."""
        self.context.put_private(self._collection, key, stored)

    def put_corrected(self, corrections: Sequence[Reading]) -> None:
        """Note which intervals have a newer version."""
        days: dict[str, list[Reading]] = {}
        for reading in corrections:
            key = corrected_key(reading.meter_id, reading.interval_start)
            days.setdefault(key, []).append(reading)
        for key, readings in days.items():
            versions = dict(self.corrected(readings[0].meter_id, readings[0].interval_start))
            versions |= {one.interval_start: one.version for one in readings}
            day = _CorrectedDay(
                tuple(_Corrected(start, versions[start]) for start in sorted(versions)),
                sha256_hex("".join(one.salt for one in readings).encode()),
            )
            self.context.put_private(self._collection, key, canonical_json(day))

    def put_arrival(self, arrival: Arrival) -> None:
        """Note what came late or as a correction."""
        self.context.put_private(self._collection, arrival_key(arrival), canonical_json(arrival))

    # By range: in queries only

    def scan(
        self, meter_id: str, from_: int, to: int, *, history: bool = False
    ) -> Iterator[Reading]:
        """Readings of intervals that begin in [from_, to), oldest first; `history`: all versions.

        In queries only: who reads private data by a range can't write.
        """
        prefix = f"r/{meter_id}/"
        waiting: Reading | None = None
        for _, value in self.context.range_private(
            self._collection, f"{prefix}{from_:012d}", f"{prefix}{to:012d}"
        ):
            reading = stored_record(Reading, value)
            if waiting is not None and (
                history or waiting.interval_start != reading.interval_start
            ):
                yield waiting
            waiting = reading
        if waiting is not None:
            yield waiting

    def first(self, meters: Sequence[Meter], from_: int, to: int) -> int | None:
        """Where the first interval of [from_, to) begins that any of these meters read.

        One key is read for each. In queries only.
        """
        found = []
        for meter in meters:
            prefix = f"r/{meter.meter_id}/"
            keys = self.context.range_private(
                self._collection, f"{prefix}{from_:012d}", f"{prefix}{to:012d}"
            )
            if (first := next(keys, None)) is not None:
                found.append(int(first[0].removeprefix(prefix).partition("/")[0]))
        return min(found, default=None)

    def reader(
        self, meters: Sequence[Meter], from_: int, to: int, *, scan: bool
    ) -> Callable[[str, int], Reading | None]:
        """Looks up what meters counted in intervals of [from_, to), by the highest versions.

        `scan` reads by ranges, once, in queries only; else by two single reads for each.
        """
        if not scan:
            return self.latest
        scanned = {
            (meter.meter_id, reading.interval_start): reading
            for meter in meters
            for reading in self.scan(meter.meter_id, from_, to)
        }
        return lambda meter_id, start: scanned.get((meter_id, start))

    def scan_registers(self, meter_id: str, from_: int, to: int) -> Iterator[RegisterReading]:
        """Register readings of [from_, to), the highest versions. In queries only."""
        prefix = f"g/{meter_id}/"
        waiting: RegisterReading | None = None
        for _, value in self.context.range_private(
            self._collection, f"{prefix}{from_:012d}", f"{prefix}{to:012d}"
        ):
            reading = stored_record(RegisterReading, value)
            if waiting is not None and waiting.read_at != reading.read_at:
                yield waiting
            waiting = reading
        if waiting is not None:
            yield waiting

    def last(self, meter_id: str, now: int, step_s: int = DAY_S) -> Reading | None:
        """The newest reading. Looks back from `now` in ever longer steps. In queries only."""
        prefix = f"r/{meter_id}/"
        end = under(prefix)[1]
        start, step = max(0, now - step_s), step_s
        while True:
            last = None
            # A state range runs forward only, so the last of a step is met after its others.
            for _, value in self.context.range_private(
                self._collection, f"{prefix}{start:012d}", end
            ):
                last = value
            if last is not None:
                return stored_record(Reading, last)
            if start == 0:
                return None
            end = f"{prefix}{start:012d}"
            step *= 2
            start = max(0, start - step)


def late_arrivals(store: Store, day: Day) -> Iterator[Arrival]:
    """What the utility accepted on a UTC day late or as a correction. In queries only."""
    start, end = under(f"late/{day}/")
    for _, value in store.context.range_private(collection(store.utility), start, end):
        yield stored_record(Arrival, value)


def late_days(store: Store, day: Day) -> Iterator[tuple[str, str]]:
    """(meter, UTC day) of what was accepted so; one key is read for each. In queries only."""
    prefix = f"late/{day}/"
    start, end = under(prefix)
    while True:
        found = store.context.range_private(collection(store.utility), start, end)
        key = next((key for key, _ in found), None)
        if key is None:
            return
        meter_id, at, _ = key.removeprefix(prefix).split("/")
        reached = int(at) - int(at) % DAY_S
        yield meter_id, day_of(reached)
        start = f"{prefix}{meter_id}/{reached + DAY_S:012d}"


LOOKED_BACK_S = 430 * DAY_S
"""So long after its interval a correction may have come."""


def arrival_of(store: Store, meter_id: str, at: int, version: int) -> Arrival | None:
    """When a reading came, if late or as a correction; by single reads, one for each day since."""
    for day in range(at - at % DAY_S, at + LOOKED_BACK_S, DAY_S):
        wanted = arrival_key(Arrival(meter_id, at, version, day, "late"))
        stored = store.context.get_private(collection(store.utility), wanted)
        if stored is not None:
            return stored_record(Arrival, stored)
    return None


@dataclass(frozen=True, slots=True)
class Interval:
    """What money settles on: a connection's interval by its accredited meters."""

    interval_start: int
    import_wh: int
    export_wh: int
    quality: str
    """The worst of its readings."""
    missing: tuple[str, ...]
    """Meters without a reading; never guessed. ("",) stands for no meter in place."""
    secrets: tuple[str, ...]
    """The salts of its readings, for the salt of what is computed from them."""


def connection_intervals(
    store: Store, connection_id: str, from_: int, to: int, interval_s: int, *, scan: bool = False
) -> list[Interval]:
    """A connection's intervals that begin in [from_, to), by the highest versions.

    Of accredited exchange meters of this utility that hung there and were certified for the whole
    interval. `scan` reads by ranges, in queries only; else by two single reads for each meter's
    interval and day.
    """
    hung = [
        meter for meter in meters_of(store.context, connection_id) if meter.utility == store.utility
    ]
    return _summed(store, hung, from_, to, interval_s, scan)


def transformer_sums(
    store: Store,
    connections: Sequence[str],
    from_: int,
    to: int,
    interval_s: int,
    *,
    scan: bool = False,
) -> list[Interval]:
    """Sums over connections, such as all behind a transformer, with what is missing by name.

    A connection without any meter in place is missing as `CP-0001/`.
    """
    parts = [
        connection_intervals(store, name, from_, to, interval_s, scan=scan) for name in connections
    ]
    sums = []
    for index, start in enumerate(range(_first(from_, interval_s), to, interval_s)):
        rows = [part[index] for part in parts]
        missing = [
            meter or f"{name}/"
            for name, row in zip(connections, rows, strict=True)
            for meter in row.missing
        ]
        sums.append(
            Interval(
                start,
                sum(row.import_wh for row in rows),
                sum(row.export_wh for row in rows),
                _worst([row.quality for row in rows]),
                tuple(missing),
                tuple(secret for row in rows for secret in row.secrets),
            )
        )
    return sums


def _first(from_: int, interval_s: int) -> int:
    return -(-from_ // interval_s) * interval_s


def _worst(qualities: Sequence[str]) -> str:
    return max(qualities, key=QUALITIES.index, default=QUALITIES[0])


def _summed(
    store: Store, meters: Sequence[Meter], from_: int, to: int, interval_s: int, scan: bool
) -> list[Interval]:
    read = store.reader(meters, from_, to, scan=scan)
    intervals = []
    for start in range(_first(from_, interval_s), to, interval_s):
        readings: list[Reading] = []
        missing = []
        settling = [meter for meter in meters if meter.settles(start, start + interval_s)]
        for meter in settling:
            reading = read(meter.meter_id, start)
            if reading is None:
                missing.append(meter.meter_id)
            else:
                readings.append(reading)
        intervals.append(
            Interval(
                start,
                sum(reading.import_wh for reading in readings),
                sum(reading.export_wh for reading in readings),
                _worst([reading.quality for reading in readings]),
                tuple(missing) if settling else ("",),
                tuple(reading.salt for reading in readings),
            )
        )
    return intervals
