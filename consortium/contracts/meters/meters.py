"""Meters: whose key signs readings, since when, certified until when, and what replaced them.

A meter's record and the list of a connection's meters are public, in chaincode `metering`. Each
class of meters has its own list, so that a home which declares its sensors and a utility which
accredits its meter never write the same key.

    meter/{meter_id}                       Meter
    meters/{connection_id}/{source_class}  the meters at a connection, oldest first
"""

from dataclasses import dataclass, replace
from typing import Annotated

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Identifier,
    Instant,
    Integer,
    LimitExceeded,
    MspId,
    NotFound,
    Text,
    canonical_json,
    stored_record,
)

MAX_VERIFICATIONS = 32
MAX_METERS = 64
"""Of one class, at one connection, over all times."""

SourceClass = Annotated[str, Choice("accredited", "declared")]
Purpose = Annotated[str, Choice("exchange", "generation")]
"""exchange: what the connection takes from and gives to the grid; generation: what a plant makes
behind it."""
PublicKey = Annotated[str, Text(r"[A-Za-z0-9+/=\n\r -]{1,512}", "a public key in PEM")]
Power = Annotated[int, Integer(1, 10_000_000, "W")]
Rollover = Annotated[int, Integer(1_000, 10**15, "Wh")]
Certificate = Annotated[str, Text(r"[^\x00-\x1f]{1,100}", "1 to 100 characters")]


@dataclass(frozen=True, slots=True)
class Verification:
    """Of a meter's accreditation, by a certificate, in [from, until)."""

    certificate: Certificate
    from_: Instant
    until: Instant | None = None


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter: whose key its readings must be signed with."""

    meter_id: Identifier
    connection_id: Identifier
    utility: MspId
    """Its metering operator."""
    source_class: SourceClass
    public_key: PublicKey
    max_power_w: Power
    """What fuse and meter can carry, in either direction."""
    purpose: Purpose = "exchange"
    rollover_wh: Rollover | None = None
    """Where its registers begin again from 0: 10^8 for eight digits of Wh. None: never."""
    installed_at: Instant = 0
    removed_at: Instant | None = None
    replaced_by: Identifier | None = None
    gateway: Identifier | None = None
    """Through which it sends."""
    verifications: Annotated[tuple[Verification, ...], AtMost(MAX_VERIFICATIONS)] = ()
    """In order. Readings outside of them settle no money; without any, registration counts."""

    def in_place(self, start: int, end: int) -> bool:
        """Whether it hung at its connection from `start` to `end`."""
        return self.installed_at <= start and (self.removed_at is None or end <= self.removed_at)

    def settles(self, start: int, end: int) -> bool:
        """Whether money settles on its reading of [start, end)."""
        return (
            self.source_class == "accredited"
            and self.purpose == "exchange"
            and self.in_place(start, end)
            and self.verified(start, end)
        )

    def verified(self, start: int, end: int) -> bool:
        """Whether its accreditation held for all of [start, end)."""
        for one in self.verifications:
            if one.from_ <= start < (end if one.until is None else one.until):
                if one.until is None or end <= one.until:
                    return True
                start = one.until
        return not self.verifications

    def risen_wh(self, before_wh: int, after_wh: int) -> int:
        """What a register rose by, over a declared rollover too; negative: it ran backwards."""
        risen = after_wh - before_wh
        if risen < 0 and self.rollover_wh is not None:
            risen += self.rollover_wh
        return risen


@dataclass(frozen=True, slots=True)
class _List:
    meters: Annotated[tuple[Identifier, ...], AtMost(MAX_METERS)]


def meter_of(context: Context, meter_id: str) -> Meter:
    """A registered meter; raises NotFound."""
    stored = context.get_state(f"meter/{meter_id}")
    if stored is None:
        raise NotFound(f"meter {meter_id} is not registered; see metering:RegisterMeter")
    return stored_record(Meter, stored)


def meters_of(
    context: Context, connection_id: str, source_class: str = "accredited"
) -> tuple[Meter, ...]:
    """All meters of a class that a connection has or had, in order of registration."""
    stored = context.get_state(f"meters/{connection_id}/{source_class}")
    if stored is None:
        return ()
    names = stored_record(_List, stored).meters
    return tuple(meter_of(context, name) for name in names)


def _as_registered(meter: Meter) -> Meter:
    """Without what other functions change later."""
    return replace(meter, removed_at=None, replaced_by=None, verifications=())


def enter(context: Context, meter: Meter) -> Meter:
    """Write a new meter, as registered; the same again changes nothing.

    Raises:
        Conflict: the name stands for another meter.
        LimitExceeded: the connection has had too many meters.
    """
    stored = context.get_state(f"meter/{meter.meter_id}")
    if stored is not None:
        known = stored_record(Meter, stored)
        if _as_registered(known) != _as_registered(meter):
            raise Conflict(f"meter {meter.meter_id} is registered already, and differently")
        return known
    key = f"meters/{meter.connection_id}/{meter.source_class}"
    listed = context.get_state(key)
    names = () if listed is None else stored_record(_List, listed).meters
    if len(names) >= MAX_METERS:
        raise LimitExceeded(
            f"connection {meter.connection_id} has had {MAX_METERS} {meter.source_class} meters, "
            "the limit"
        )
    store(context, meter)
    context.put_state(key, canonical_json(_List((*names, meter.meter_id))))
    return meter


def store(context: Context, meter: Meter) -> None:
    """Write a meter's record."""
    context.put_state(f"meter/{meter.meter_id}", canonical_json(meter))
