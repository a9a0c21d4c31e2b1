"""Judging a batch of readings: each is accepted, known already, or refused by name.

A refusal carries a code from `REFUSALS` and a sentence. An answer of a transaction is public, so
no sentence repeats energy or a register: it names the field and the limit.

First each reading is judged by itself: its meter, its interval, what the meter can carry, its
signature, its version. Then registers are held against the neighbours that were accepted or stored
before, in order of time; and those that come before a stored reading against that one, backwards.
So the readings of a batch may come in any order, and a bad one costs its neighbours nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from consortium.chaincode.api import (
    Context,
    ContractError,
    Json,
    NotFound,
    canonical_json,
    read_item,
)

from ..common import access, settings
from ..common.clock import real_seconds, utc_text
from ..common.residence import residence
from ..common.settings import MeteringSettings
from .meters import Meter, meter_of
from .readings import (
    Anyone,
    Arrival,
    Reading,
    RegisterReading,
    Store,
    canonical_parts,
    corrected_key,
    key_of,
    signed_bytes,
    stored_bytes,
)
from .signatures import Signatures

CLOCK_TOLERANCE_S = 60
"""How far a meter's clock may be ahead of the channel's, in real time even under a replay clock."""
REGISTER_TOLERANCE_WH = 1
"""One digit of a register that counts Wh."""
LOOK_BACK = 96
"""Intervals of a gap over which registers are still held against each other."""
LOOK_BACKS = 4 * LOOK_BACK
"""Single reads that a batch may spend on that."""

REFUSALS = {
    "malformed": "a field is missing, unknown, of the wrong kind or beyond its limit",
    "unknown_meter": "no such meter is registered",
    "foreign_meter": "the meter belongs to another utility",
    "forbidden": "the caller is neither the meter's home nor an operator",
    "interval_length": "not the channel's interval",
    "misaligned": "not a multiple of the interval",
    "future": "the interval isn't over, or the instant hasn't come",
    "before_meter": "the meter wasn't there yet",
    "after_meter": "the meter wasn't there any more",
    "too_late": "beyond the deadline for corrections",
    "over_power": "more than fuse and meter can carry",
    "register_width": "a register beyond its declared rollover",
    "signature": "not signed by the meter for this channel and these fields",
    "different": "the interval has a different reading of this version",
    "version": "not the next version of the interval",
    "no_change": "a correction that corrects nothing",
    "register_backwards": "a register fell, without a declared rollover",
    "register_sum": "a register has not risen by what was counted",
}
"""What a reading can be refused for."""


class Refusal(ContractError):
    """What is wrong with one reading: raised with a code and a sentence."""


@dataclass(slots=True)
class _Judged:
    """A reading that is good by itself."""

    index: int
    """In the batch."""
    reading: Anyone
    meter: Meter
    key: str
    """Where it stands once it is stored."""
    parts: tuple[str, str]
    """Its canonical JSON, see `canonical_parts`."""


class Intake:
    """The readings of one submission."""

    def __init__(self, context: Context, utility: str, channel: MeteringSettings) -> None:
        self.refused: list[dict[str, Any]] = []
        self.duplicates = 0
        self._known: list[Anyone] = []
        self._repeated: list[tuple[int, Anyone]] = []
        self._context = context
        self._utility = utility
        self._store = Store(context, utility)
        self._channel = channel
        self._now = settings.now(context, channel)
        self._latest = self._now + real_seconds(channel.replay, CLOCK_TOLERANCE_S)
        self._meters: dict[str, Meter] = {}
        self._operates = access.is_operator(context.creator, utility)
        self._intervals: dict[tuple[str, int], _Judged] = {}
        self._registers: dict[tuple[str, int], _Judged] = {}
        self._look_backs = 0
        self._channel_json = canonical_json(context.channel_id).decode()
        self._signatures = Signatures(context.channel_id)
        self._stored: dict[tuple[str, int], Reading | None] = {}

    @property
    def accepted(self) -> list[Anyone]:
        """What is new and good, in order of submission."""
        return [one.reading for one in self._staged()]

    def _staged(self) -> list[_Judged]:
        staged = (*self._intervals.values(), *self._registers.values())
        return sorted(staged, key=lambda one: one.index)

    def take(self, items: Sequence[Json]) -> None:
        """Judge a batch; what is wrong with a reading is kept, never raised."""
        refusals: dict[int, ContractError] = {}
        judged: list[_Judged] = []
        for index, item in enumerate(items):
            try:
                judged.append(self._judge(index, item))
            except ContractError as error:
                refusals[index] = error
        self._store.read_ahead(list(dict.fromkeys(one.key for one in judged)))
        for one in judged:
            try:
                self._stage(one)
            except ContractError as error:
                refusals[one.index] = error
        self._read_neighbours_ahead()
        for table in (self._intervals, self._registers):
            dropped: dict[tuple[str, int], Refusal] = {}
            # Against what came before; then, backwards, against what had been stored after.
            for check, backwards in ((self._check_before, False), (self._check_after, True)):
                for key in sorted(table, reverse=backwards):
                    try:
                        check(table[key])
                    except Refusal as error:
                        dropped[key] = refusals[table.pop(key).index] = error
            # Whoever says the same twice is refused twice, or once.
            for index, reading in self._repeated:
                if self._table(reading) is table and (reading.meter_id, reading.at) in dropped:
                    refusals[index] = dropped[reading.meter_id, reading.at]
        repeated = [index for index, _ in self._repeated if index not in refusals]
        self.duplicates = len(self._known) + len(repeated)
        self.refused = [_named(items[index], refusals[index]) for index in sorted(refusals)]

    def write(self) -> dict[str, int]:
        """Write what is accepted, into the private collection alone; how many were special."""
        counts = {"corrected": 0, "late": 0, "after_final": 0}
        corrections = []
        for one in self._staged():
            reading = one.reading
            self._store.put_bytes(one.key, stored_bytes(reading, one.parts))
            counts["corrected"] += reading.version > 1
            if not isinstance(reading, Reading):
                continue
            if reading.version > 1:
                corrections.append(reading)
            age_s = self._now - _end(reading)
            kind = ""
            if age_s > self._channel.final_after_s:
                kind = "adjustment"
                counts["after_final"] += 1
            elif reading.version > 1:
                kind = "correction"
            elif age_s > self._channel.late_after_s:
                kind = "late"
            counts["late"] += age_s > self._channel.late_after_s and reading.version == 1
            if kind:
                self._store.put_arrival(
                    Arrival(reading.meter_id, reading.at, reading.version, self._now, kind)
                )
        self._store.put_corrected(corrections)
        return counts

    def write_again(self) -> None:
        """Write a reading that is there already, as it is.

        A transaction without a write falls under the chaincode's own policy, which the utility
        alone does not satisfy; the same value again keeps it under the collection's.
        """
        self._store.put(self._known[0])

    # One reading by itself

    def _judge(self, index: int, item: Json) -> _Judged:
        reading: Anyone
        if isinstance(item, dict) and "read_at" in item:
            reading = read_item(RegisterReading, item)
        else:
            reading = read_item(Reading, item)
        meter = self._meter(reading.meter_id)
        self._check_time(reading, meter)
        if isinstance(reading, Reading):
            self._check_power(reading, meter)
        self._check_width(reading, meter)
        parts = canonical_parts(reading)
        self._check_signature(reading, parts, meter)
        return _Judged(index, reading, meter, key_of(reading), parts)

    def _stage(self, one: _Judged) -> None:
        """Lay aside what is new, in order of the batch. Raises Refusal."""
        reading = one.reading
        table, place = self._table(reading), (reading.meter_id, reading.at)
        staged = table.get(place)
        if staged is not None and staged.reading.version == reading.version:
            self._check_same(reading, staged.reading)
            self._repeated.append((one.index, reading))
        elif self._is_new(one):
            if staged is not None:
                raise Refusal(
                    "version",
                    f"version {staged.reading.version} is in this batch; a correction of it comes "
                    "when it is stored",
                )
            table[place] = one

    def _table(self, reading: Anyone) -> dict[tuple[str, int], _Judged]:
        return self._intervals if isinstance(reading, Reading) else self._registers

    def _meter(self, meter_id: str) -> Meter:
        known = self._meters.get(meter_id)
        if known is None:
            try:
                meter = meter_of(self._context, meter_id)
            except NotFound as error:
                raise Refusal("unknown_meter", str(error)) from None
            if meter.utility != self._utility:
                raise Refusal(
                    "foreign_meter", f"meter {meter_id} is {meter.utility}'s, not {self._utility}'s"
                )
            creator = self._context.creator
            if not self._operates and not residence(
                self._context, meter.utility, meter.connection_id
            ).at(self._now):
                raise Refusal(
                    "forbidden",
                    f"{access.described(creator)} may not submit readings of meter {meter_id}; "
                    f"the home at {meter.connection_id} and operators of {meter.utility} may",
                )
            known = self._meters[meter_id] = meter
        return known

    def _check_time(self, reading: Anyone, meter: Meter) -> None:
        end = _end(reading)
        if isinstance(reading, Reading):
            interval_s = self._channel.interval_s
            if reading.interval_s != interval_s:
                raise Refusal(
                    "interval_length",
                    f"interval_s is {reading.interval_s}, but the channel's interval is "
                    f"{interval_s} s",
                )
            if reading.interval_start % interval_s:
                raise Refusal(
                    "misaligned",
                    f"interval_start is {reading.interval_start}, but must be a multiple of "
                    f"{interval_s}",
                )
        if end > self._latest:
            raise Refusal(
                "future",
                f"{_when(reading)}, but the channel's time is {utc_text(self._now)}",
            )
        if reading.at < meter.installed_at:
            raise Refusal(
                "before_meter",
                f"{_when(reading)}, but meter {meter.meter_id} was installed at "
                f"{utc_text(meter.installed_at)}",
            )
        if meter.removed_at is not None and end > meter.removed_at:
            raise Refusal(
                "after_meter",
                f"{_when(reading)}, but meter {meter.meter_id} was removed at "
                f"{utc_text(meter.removed_at)}",
            )
        if end + self._channel.correctable_s < self._now:
            raise Refusal(
                "too_late",
                f"{_when(reading)}, but readings are taken for "
                f"{self._channel.correctable_s // 86_400} days, and the channel's time is "
                f"{utc_text(self._now)}",
            )

    def _check_power(self, reading: Reading, meter: Meter) -> None:
        limit_wh = meter.max_power_w * reading.interval_s // 3600
        if reading.import_wh > limit_wh or reading.export_wh > limit_wh:
            name = "import_wh" if reading.import_wh > limit_wh else "export_wh"
            raise Refusal(
                "over_power",
                f"{name} is too much: meter {meter.meter_id} ({meter.max_power_w} W) can "
                f"count at most {limit_wh} Wh in the interval starting "
                f"{utc_text(reading.interval_start)}",
            )

    def _check_width(self, reading: Anyone, meter: Meter) -> None:
        if meter.rollover_wh is None:
            return
        for name, register_wh in (
            ("import_register_wh", reading.import_register_wh),
            ("export_register_wh", reading.export_register_wh),
        ):
            if register_wh >= meter.rollover_wh:
                raise Refusal(
                    "register_width",
                    f"{name} is beyond meter {meter.meter_id}'s declared rollover, "
                    f"{meter.rollover_wh} Wh",
                )

    def _check_signature(self, reading: Anyone, parts: tuple[str, str], meter: Meter) -> None:
        if not reading.signature:
            # A value put in a reading's place has no meter that could sign it: the operator's
            # transaction vouches for it.
            if reading.quality == "measured" or not self._operates:
                raise Refusal(
                    "signature",
                    "signature is empty: only operators of the utility put estimated or "
                    "substituted values in place of a meter's",
                )
            return
        signed = signed_bytes(self._channel_json, reading, parts)
        if not self._signatures.holds(meter.public_key, meter.meter_id, reading.signature, signed):
            raise Refusal(
                "signature",
                "signature does not hold for the registered public key over this channel and "
                "these fields",
            )

    # Versions

    def _is_new(self, one: _Judged) -> bool:
        """Whether it is the next version; False for one that is there. Raises Refusal."""
        reading = one.reading
        what = "interval" if isinstance(reading, Reading) else "instant"
        if self._store.holds(one.key):
            known = self._version(reading, reading.version)
            assert known is not None
            self._check_same(reading, known)
            self._known.append(known)
            return False
        if reading.version == 1:
            return True
        replaced = self._version(reading, reading.version - 1)
        if replaced is None:
            raise Refusal(
                "version",
                f"version is {reading.version}, but the {what} has no version "
                f"{reading.version - 1} that it could replace",
            )
        changed = replace(reading, version=replaced.version, salt=replaced.salt, signature="")
        if changed == replace(replaced, signature=""):
            raise Refusal(
                "no_change",
                f"version {reading.version} says the same as version {replaced.version}",
            )
        return True

    def _check_same(self, reading: Anyone, known: Anyone) -> None:
        # A signature is made with a random number, so two of one reading differ.
        if replace(known, signature="") != replace(reading, signature=""):
            what = "interval" if isinstance(reading, Reading) else "instant"
            raise Refusal(
                "different",
                f"the {what} already has a different reading of version {reading.version}; a "
                "correction names the next version",
            )

    def _version(self, reading: Anyone, version: int) -> Anyone | None:
        """A stored version of the same interval or instant."""
        if isinstance(reading, Reading):
            return self._store.version(reading.meter_id, reading.interval_start, version)
        return self._store.register_version(reading.meter_id, reading.read_at, version)

    # Registers against their neighbours

    def _read_neighbours_ahead(self) -> None:
        """The intervals before those of this batch that are measured: each is held against it."""
        starts = [
            (meter_id, start - self._channel.interval_s)
            for (meter_id, start), one in self._intervals.items()
            if one.reading.quality == "measured" and start >= self._channel.interval_s
        ]
        outside = [place for place in starts if place not in self._intervals]
        notes = [corrected_key(meter_id, start) for meter_id, start in outside]
        self._store.read_ahead(list(dict.fromkeys(notes)))
        self._store.read_ahead([self._store.latest_key(*place) for place in outside])

    def _interval(self, meter_id: str, start: int) -> Reading | None:
        """What counts for an interval once this batch is in."""
        staged = self._intervals.get((meter_id, start))
        if staged is not None:
            assert isinstance(staged.reading, Reading)
            return staged.reading
        key = (meter_id, start)
        if key not in self._stored:
            self._stored[key] = self._store.latest(meter_id, start)
        return self._stored[key]

    def _check_before(self, staged: _Judged) -> None:
        reading, meter = staged.reading, staged.meter
        if reading.quality != "measured":
            return
        if isinstance(reading, Reading):
            self._check_after_gap(reading, meter)
            return
        # Registers read at an instant: those of the interval that ends there, or before it.
        interval_s = self._channel.interval_s
        aligned = reading.read_at % interval_s == 0
        start = reading.read_at - reading.read_at % interval_s - interval_s
        before = self._interval(reading.meter_id, start) if start >= 0 else None
        if before is not None and before.quality == "measured":
            limit_wh = 0 if aligned else meter.max_power_w * interval_s // 3600
            for name in ("import", "export"):
                risen = meter.risen_wh(_register(before, name), _register(reading, name))
                _check_risen(name, risen, 0, limit_wh, "the interval before ended")

    def _check_after_gap(self, reading: Reading, meter: Meter) -> None:
        """An interval against the one before it, or the last before a gap."""
        start, interval_s = reading.interval_start, reading.interval_s
        if start < interval_s:
            return
        before = self._interval(reading.meter_id, start - interval_s)
        if before is not None:
            if before.quality == "measured":
                _check_counted(before, reading, meter, "the interval before")
            return
        found = self._before_gap(reading, meter)
        if found is None:
            return
        # Not bounded above: else an interval that no meter can have, refused itself, would cost
        # all that follow. Check shows how much is missing.
        for name in ("import", "export"):
            risen = meter.risen_wh(_register(found, name), _register(reading, name))
            _check_risen(name, risen, _energy(reading, name), None, "the last reading before a gap")

    def _before_gap(self, reading: Reading, meter: Meter) -> Anyone | None:
        """The last measured registers before a missing interval."""
        interval_s = reading.interval_s
        start = reading.interval_start
        read = self._registers.get((reading.meter_id, start))
        at_start = read.reading if read else self._store.register(reading.meter_id, start)
        if at_start is not None and at_start.quality == "measured":
            return at_start
        for intervals in range(2, LOOK_BACK + 1):
            earlier = start - intervals * interval_s
            if earlier < meter.installed_at or self._look_backs >= LOOK_BACKS:
                return None
            self._look_backs += 1
            found = self._interval(reading.meter_id, earlier)
            if found is not None:
                return found if found.quality == "measured" else None
        return None

    def _check_after(self, staged: _Judged) -> None:
        """A late one or a correction against what follows it; of this batch all has been checked.

        A first reading in time isn't, or two that are under way at once would conflict: it would
        depend on a key that the other writes.
        """
        reading, meter = staged.reading, staged.meter
        if not isinstance(reading, Reading) or reading.quality != "measured":
            return
        end = reading.interval_start + reading.interval_s
        in_time = reading.version == 1 and self._now - end <= self._channel.late_after_s
        if in_time or (reading.meter_id, end) in self._intervals:
            return
        after = self._interval(reading.meter_id, end)
        if after is not None and after.quality == "measured":
            _check_counted(reading, after, meter, "it up to the interval after")


def _end(reading: Anyone) -> int:
    if isinstance(reading, Reading):
        return reading.interval_start + reading.interval_s
    return reading.read_at


def _when(reading: Anyone) -> str:
    what = "the interval ends at" if isinstance(reading, Reading) else "read_at is"
    return f"{what} {utc_text(_end(reading))}"


def _register(reading: Anyone, direction: str) -> int:
    return reading.import_register_wh if direction == "import" else reading.export_register_wh


def _energy(reading: Reading, direction: str) -> int:
    return reading.import_wh if direction == "import" else reading.export_wh


def _check_counted(before: Reading, reading: Reading, meter: Meter, since: str) -> None:
    """Raise Refusal unless both registers rose by what was counted."""
    for direction, register_before, register_after, energy_wh in (
        ("import", before.import_register_wh, reading.import_register_wh, reading.import_wh),
        ("export", before.export_register_wh, reading.export_register_wh, reading.export_wh),
    ):
        risen = meter.risen_wh(register_before, register_after)
        _check_risen(direction, risen, energy_wh, energy_wh, since)


def _check_risen(
    direction: str, risen_wh: int, at_least: int, at_most: int | None, since: str
) -> None:
    """Raise Refusal unless a register rose by so much, within a digit."""
    name = f"{direction}_register_wh"
    if risen_wh < -REGISTER_TOLERANCE_WH:
        raise Refusal(
            "register_backwards",
            f"{name} has fallen since {since}; a register falls at a declared rollover alone",
        )
    if risen_wh < at_least - REGISTER_TOLERANCE_WH or (
        at_most is not None and risen_wh > at_most + REGISTER_TOLERANCE_WH
    ):
        raise Refusal(
            "register_sum",
            f"{name} has risen since {since} by something else than {direction}_wh, by more than "
            f"{REGISTER_TOLERANCE_WH} Wh",
        )


def _named(item: Json, error: ContractError) -> dict[str, Any]:
    fields = item if isinstance(item, dict) else {}
    at = "read_at" if "read_at" in fields else "interval_start"
    code, reason = error.args if isinstance(error, Refusal) else ("malformed", str(error))
    return {
        "meter_id": str(fields.get("meter_id", ""))[:64],
        at: str(fields.get(at, ""))[:20],
        "code": code,
        "reason": reason,
    }
