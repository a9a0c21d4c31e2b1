"""What the engine is told: a home's settings, its measurements, prices and forecasts.

Everything is frozen. Signs: grid power is positive on import, battery power on discharge.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from typing import TYPE_CHECKING

from .reasons import Reason

if TYPE_CHECKING:
    from .trading import TradingRule

DAY_S = 86_400


class Kind(StrEnum):
    """What an appliance is, and so how it is switched."""

    SWITCH = "switch"
    CLIMATE = "climate"
    WATER_HEATER = "water_heater"
    CHARGER = "charger"
    """An EV charger whose current can be set."""


class Mode(StrEnum):
    """What a battery is told to do."""

    AUTO = "auto"
    """Surplus charges it, and it feeds the house: what every inverter does by itself."""
    HOLD = "hold"
    """Neither: the microgrid feeds the house, and surplus is sold."""
    CHARGE = "charge"
    """From the microgrid, and from surplus first."""
    DISCHARGE = "discharge"
    """Into the microgrid, and into the house first."""


@dataclass(frozen=True, slots=True)
class Span:
    """A time of every day, in local minutes from midnight. It may run over midnight."""

    start_min: int
    end_min: int

    def holds(self, local: datetime) -> bool:
        """Return whether a local time lies in it. An empty span is the whole day."""
        minute = local.hour * 60 + local.minute
        if self.start_min == self.end_min:
            return True
        if self.start_min < self.end_min:
            return self.start_min <= minute < self.end_min
        return minute >= self.start_min or minute < self.end_min


def clock_text(minute: int) -> str:
    """Return a minute of the day as people write it, ``07:30``."""
    return f"{minute // 60 % 24:02d}:{minute % 60:02d}"


def local_time(instant: float, zone: tzinfo) -> datetime:
    """Return epoch seconds as a local time."""
    return datetime.fromtimestamp(instant, zone)


def next_at(minute: int, now: float, zone: tzinfo) -> float:
    """Return the next instant (epoch seconds) at which local clocks show a minute of the day."""
    local = local_time(now, zone)
    at = local.replace(hour=minute // 60 % 24, minute=minute % 60, second=0, microsecond=0)
    if at <= local:
        at += timedelta(days=1)
    # Through UTC: adding a day to a local time keeps its clock, not its offset.
    return at.astimezone(UTC).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class Appliance:
    """Something that may be switched on when energy is plentiful or cheap.

    Times are seconds, power W. ``priority`` 1 comes first. ``daily_min_s`` is reached before
    ``deadline_min`` (a local minute of the day; midnight if None) even if there is no sun.
    """

    id: str
    name: str
    kind: Kind = Kind.SWITCH
    power_w: float = 1000.0
    priority: int = 10
    min_on_s: float = 600.0
    min_off_s: float = 600.0
    daily_min_s: float = 0.0
    daily_max_s: float | None = None
    window: Span | None = None
    deadline_min: int | None = None
    fast_off: bool = False
    """Goes off as soon as there is no surplus, without averaging or minimum on time."""
    max_starts: int = 12
    """Times a day that surplus may start it."""
    responds: bool = True
    """Pauses in a response event."""
    automatic: bool = True
    # Chargers
    min_current_a: float = 6.0
    max_current_a: float = 16.0
    phases: int = 1
    voltage_v: float = 230.0
    car: Battery | None = None
    """The car's battery, where charger and car can give back; ``deadline`` is set when planned."""

    @property
    def variable(self) -> bool:
        """Whether its power can be set."""
        return self.kind is Kind.CHARGER

    @property
    def least_w(self) -> float:
        """The least power with which it runs."""
        if self.variable:
            return self.min_current_a * self.phases * self.voltage_v
        return self.power_w

    @property
    def most_w(self) -> float:
        """The greatest power with which it runs."""
        if self.variable:
            return self.max_current_a * self.phases * self.voltage_v
        return self.power_w


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """A battery, or a car that gives back what it doesn't need before its deadline."""

    capacity_wh: float
    reserve_wh: float = 0.0
    max_charge_w: float = 5000.0
    max_discharge_w: float = 5000.0
    charge_efficiency: float = 0.95
    discharge_efficiency: float = 0.95
    wear_per_kwh: float = 0.0
    """What moving a kWh out of it costs in battery life."""
    priority: int = 5
    """Appliances with a smaller number get surplus before the battery does."""
    modes: frozenset[Mode] = frozenset(Mode)
    """What it can be told. Without a way to tell it, the plan is advice."""
    drives: bool = False
    min_mode_s: float = 900.0
    max_writes: int = 40
    """Commands a day: inverters keep them in flash memory."""
    deadline: float | None = None
    """When a car leaves (epoch seconds): it is not there afterwards."""
    target_wh: float = 0.0
    """What a car must hold then."""

    def __post_init__(self) -> None:
        if not 0 <= self.reserve_wh <= self.capacity_wh or self.capacity_wh <= 0:
            raise ValueError(
                f"a battery of {self.capacity_wh} Wh can't have a reserve of {self.reserve_wh} Wh"
            )
        if not (0 < self.charge_efficiency <= 1 and 0 < self.discharge_efficiency <= 1):
            raise ValueError("a battery's efficiencies lie between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What is expected of one interval, and its prices.

    ``buy`` is what a kWh from the microgrid costs with all fees, ``sell`` what an exported one
    brings after fees. ``committed_wh`` is sold already and paid by its own trade.
    """

    start: float
    seconds: float = 900.0
    pv_wh: float = 0.0
    load_wh: float = 0.0
    buy: float = 0.0
    sell: float = 0.0
    committed_wh: float = 0.0
    limit_w: float | None = None
    """The most that the permit lets the home draw."""
    response: str = ""
    """``reduce`` or ``absorb`` while the home takes part in a response event."""
    reward: float = 0.0
    """What the event pays for each kWh less, or more, that is drawn."""

    @property
    def adder(self) -> float:
        """What a kWh drawn costs beyond its price: the reward it loses, or earns."""
        return {"reduce": self.reward, "absorb": -self.reward}.get(self.response, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Energy that an appliance or car needs between two instants (epoch seconds)."""

    appliance_id: str
    energy_wh: float
    power_w: float
    earliest: float
    deadline: float
    whole: bool = False
    """In one run, not in pieces."""
    least_w: float | None = None
    """The least power with which it runs; None: ``power_w``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A demand response event: this home uses less, or more, between two instants."""

    start: float
    end: float
    kind: str = "reduce"
    """``reduce`` or ``absorb``."""
    reward: float = 0.0
    """Per kWh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A home, as its owner has set it up."""

    zone: tzinfo = UTC
    appliances: tuple[Appliance, ...] = ()
    battery: Battery | None = None
    rules: tuple[TradingRule, ...] = ()
    on_window_s: float = 300.0
    off_window_s: float = 300.0
    margin_w: float = 100.0
    """Surplus beyond an appliance's power before it starts, and missing before it stops."""
    drain_tolerance_w: float = 100.0
    sensor_timeout_s: float = 300.0
    by_hand_s: float = 3600.0
    """How long what the owner switched by hand stays as it is."""
    plan_valid_s: float = 7200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplianceReading:
    """An appliance as it is now. ``power_w`` None: not measured."""

    available: bool = True
    on: bool = False
    power_w: float | None = None
    current_a: float | None = None
    connected: bool = True
    needed_wh: float | None = None
    """What a car still needs; None: not known, ``daily_min_s`` counts."""
    stored_wh: float | None = None
    """What is in a car that can give back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is measured at a moment. None: not known; unavailable isn't zero."""

    now: float
    grid_w: float | None
    battery_w: float | None = None
    stored_wh: float | None = None
    appliances: Mapping[str, ApplianceReading] = field(default_factory=dict)
    committed_w: float = 0.0
    """What trades have promised for the running interval."""
    committed_until: float = 0.0
    permit: bool = True
    limit_w: float | None = None
    """The most that the permit lets the home draw; None: it has no limit."""
    response: Response | None = None
    buy: float | None = None


@dataclass(frozen=True, slots=True)
class BatteryDecision:
    """What the battery is to do until an instant, and whether it has to be told now."""

    mode: Mode
    power_w: float
    until: float
    reason: Reason
    send: bool = False
    fault: bool = False
