"""A channel's settings: written once by an administrator, read by every function."""

from dataclasses import dataclass
from typing import Annotated, Protocol

from consortium.chaincode.api import (
    Conflict,
    Context,
    Integer,
    InvalidArgument,
    NotFound,
    Text,
    canonical_json,
    stored_record,
)

from . import access
from .clock import Replay, channel_time

_KEY = "settings"

IntervalLength = Annotated[int, Integer(1, 3600, "s")]
Currency = Annotated[str, Text(r"[A-Z]{3}", "an ISO 4217 code such as EUR")]
Deadline = Annotated[int, Integer(1, 10 * 366 * 86_400, "s")]
Price = Annotated[int, Integer(-(10**9), 10**9, "micro-units per kWh")]
"""A thousand currency units per kWh either way: beyond it, somebody mistook the unit."""
TaxRate = Annotated[int, Integer(0, 1_000_000, "ppm")]


@dataclass(frozen=True, slots=True)
class MeteringSettings:
    """The settings of chaincode `metering`. Times are the channel's."""

    interval_s: IntervalLength
    currency: Currency
    replay: Replay | None
    late_after_s: Deadline = 6 * 3600
    """A reading accepted later after its interval is late."""
    silent_after: Annotated[int, Integer(1, 96, "intervals")] = 4
    """A meter without a reading for so many intervals is silent."""
    final_after_s: Deadline = 14 * 86_400
    """What is corrected later after its interval becomes an adjustment (ten working days)."""
    correctable_s: Deadline = 425 * 86_400
    """What is later still is refused (fourteen months)."""


@dataclass(frozen=True, slots=True)
class EnergySettings:
    """The settings of chaincode `energy`."""

    interval_s: IntervalLength
    currency: Currency
    replay: Replay | None
    quote_validity_s: Annotated[int, Integer(10, 86_400, "s")]
    """How long a quote can be authorised, in a person's time even under a replay clock."""
    grid_fee_micro_per_kwh: Annotated[int, Integer(0, 10**9, "micro-units per kWh")]
    approvals: Annotated[int, Integer(1, 64)] = 2
    """How many utilities must approve products, tariffs and calendars before they hold."""
    sale_tax_ppm: TaxRate = 0
    """What is taken of the gross of a sale at a supplier's rate as tax, until utilities agree on
    another (market:ProposeTax)."""


class Settings(Protocol):
    """What both have."""

    @property
    def interval_s(self) -> int: ...
    @property
    def replay(self) -> Replay | None: ...


def configure[S: (MeteringSettings, EnergySettings)](context: Context, settings: S) -> S:
    """Write the settings. The same again changes nothing; raises Forbidden, Conflict."""
    access.require(
        access.is_admin(context.creator),
        context.creator,
        "configure the channel",
        "an administrator of a member (certificate with OU admin)",
    )
    if 3600 % settings.interval_s:
        raise InvalidArgument(
            f"interval_s is {settings.interval_s}, but must divide an hour: 900 and 3600 do"
        )
    stored = context.get_state(_KEY)
    if stored is None:
        context.put_state(_KEY, canonical_json(settings))
    elif stored_record(type(settings), stored) != settings:
        raise Conflict("the channel is configured already, and differently; settings never change")
    return settings


def read[S: (MeteringSettings, EnergySettings)](
    context: Context, kind: type[S], configured_by: str
) -> S:
    """The settings; raises NotFound before `configure`."""
    stored = context.get_state(_KEY)
    if stored is None:
        raise NotFound(f"the channel has no settings yet: an administrator calls {configured_by}")
    return stored_record(kind, stored)


def now(context: Context, settings: Settings) -> int:
    """The channel's time of this transaction."""
    return channel_time(settings.replay, context.timestamp)
