"""What is on now: one dispatcher for all appliances and the battery of a home.

:meth:`Dispatcher.step` is called every minute and after a significant change. It looks at a
:class:`~.model.Snapshot` and the plan, and returns for each appliance whether it is to be on, why,
and whether it has to be told now. It remembers what it has asked for, so it sees what the owner
switches by hand and leaves that alone for a while.

Surplus is ``export - import - max(battery discharge, committed) + power of what is on``; what
charges the battery counts only for appliances that come before it. Discharge and commitments are
not added up: a sale that is delivered from the battery takes nothing from the sun. An appliance
starts when the average and the moment both have enough, and stops when five minutes lack much or
fifteen lack a little: short clouds pass, a draining battery does not go on for long.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import floor, inf
from typing import Any, Final

from .model import (
    Appliance,
    ApplianceReading,
    Battery,
    BatteryDecision,
    Mode,
    Response,
    Settings,
    Snapshot,
    clock_text,
    local_time,
    next_at,
)
from .planner import Plan, PlannedSlot
from .reasons import Reason, minutes, price

_FOLLOW_S: Final = 180.0
"""A change this long after our command is taken for its effect."""
_RETRY_S: Final = 60.0
_ATTEMPTS: Final = 3
_RETRY_LATER_S: Final = 600.0
_HOLD_SAMPLE_S: Final = 120.0
_SAMPLES_KEPT: Final = 2000
_DEEP: Final = 0.7
"""Below this part of its power, averaged over the short window, an appliance stops."""
_COUNT_GAP_S: Final = 900.0
_CURRENT_APART_S: Final = 20.0
_VERIFY_S: Final = 120.0
_FAULT_S: Final = 3600.0
_COMMAND_LIMIT_S: Final = 7200.0
_POWER_APART_S: Final = 300.0
_RESERVE_BAND: Final = 0.02
_LEAST_COMMAND_S: Final = 60.0
"""A forced discharge that couldn't last so long isn't begun."""
_LOWER_S: Final = 120.0
"""A battery that is lower than thought by so much of its discharge is told an earlier end."""
_LEAST_CHARGE_W: Final = 100.0
"""What a permit's limit has to leave for the battery."""
_LEAST_GIVEN_W: Final = 300.0
"""A car gives back this much or nothing."""
_GIVEN_S: Final = 900.0
"""How long a car gives back before it has to be told again."""
_TIME_TO_SPARE_S: Final = 1800.0
"""A car that gives back could still be charged so long before its deadline."""
_URGENT: Final = frozenset(
    {"override_on", "override_off", "manual", "by_hand_on", "by_hand_off", "unavailable"}
)
"""Reasons that minimum times give way to."""


_INSTANTS: Final = (
    *("changed_at", "asked_at", "told_at", "override_until", "hand_at", "hand_until", "period"),
    *("current_at", "given_at", "given_until", "given_fault"),
    *("written_at", "until", "astray_since", "fault_at"),
)
"""What a clock that is set back takes along of an appliance, and of the battery."""


@dataclass(slots=True)
class _Track:
    """What is remembered of one appliance. Instants are epoch seconds."""

    on: bool | None = None
    changed_at: float | None = None
    asked: bool | None = None
    asked_at: float = -inf
    attempts: int = 0
    told: bool | None = None
    """What it was told last, whatever is wanted by now: its effect may come later."""
    told_at: float = -inf
    ours: bool = False
    override: bool | None = None
    override_until: float = -inf
    hand_at: float = -inf
    hand_until: float = -inf
    period: float = 0.0
    run_s: float = 0.0
    starts: int = 0
    current_a: float | None = None
    current_at: float = -inf
    automatic: bool | None = None
    """What the owner's switch says; None: as set up."""
    given_w: float = 0.0
    """What a car was told to give back."""
    given_at: float = -inf
    given_until: float = -inf
    given_fault: float = -inf

    def as_dict(self) -> dict[str, Any]:
        """Return what a restart needs; JSON knows no infinity."""
        return {name: value for name, value in asdict(self).items() if value not in (inf, -inf)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> _Track:
        """Go on from :meth:`as_dict`; what isn't known any more is left out."""
        names = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in names})


@dataclass(slots=True)
class _BatteryTrack:
    mode: Mode = Mode.AUTO
    power_w: float = 0.0
    changed_at: float = -inf
    written_at: float = -inf
    until: float = inf
    day: str = ""
    writes: int = 0
    untold: bool = False
    """A command couldn't be given: it is given again."""
    astray_since: float | None = None
    fault_at: float = -inf
    fault_mode: str = ""


@dataclass(frozen=True, slots=True)
class ApplianceDecision:
    """What one appliance is to do. ``send``: it has to be told now."""

    on: bool
    reason: Reason
    current_a: float | None = None
    send: bool = False
    run_s: float = 0.0
    automatic: bool = True
    override: bool | None = None
    override_until: float | None = None
    for_surplus: bool = False
    given_w: float = 0.0
    """What a car is to give back until ``given_until``. ``send_given``: it has to be told now."""
    given_until: float = 0.0
    send_given: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What the whole home is to do."""

    now: float
    appliances: Mapping[str, ApplianceDecision] = field(default_factory=dict)
    battery: BatteryDecision | None = None
    surplus_w: float | None = None
    """Averaged; what lies beyond everything that is on anyway."""


@dataclass(frozen=True, slots=True)
class SafeState:
    """How to leave the home when nobody decides any more."""

    turn_off: tuple[str, ...]
    battery_auto: bool
    stop_giving: tuple[str, ...] = ()
    """Cars that were told to give back."""


@dataclass(slots=True)
class _Claim:
    """A decision in the making."""

    on: bool
    reason: Reason
    power_w: float = 0.0
    fast: bool = False
    for_surplus: bool = False
    given_w: float = 0.0


class Dispatcher:
    """Decides for one home. Its state is small and can be stored."""

    def __init__(self, settings: Settings, stored: Mapping[str, Any] | None = None) -> None:
        """Begin, or go on from what :meth:`as_dict` gave."""
        stored = stored or {}
        self.settings = settings
        self._tracks = {
            key: _Track.from_dict(value) for key, value in stored.get("appliances", {}).items()
        }
        self._battery = _BatteryTrack()
        if known := stored.get("battery"):
            self._battery.mode = Mode(known.get("mode", Mode.AUTO))
            # Whoever was killed doesn't know what of a command is left: it is told again.
            self._battery.until = inf if self._battery.mode is Mode.AUTO else -inf
            self._battery.day = str(known.get("day", ""))
            self._battery.writes = int(known.get("writes", 0))
            self._battery.untold = bool(known.get("untold", False))
        # (instant, surplus without the battery's charge, the battery's charge)
        self._samples: deque[tuple[float, float | None, float]] = deque(maxlen=_SAMPLES_KEPT)
        self._last_step: float | None = stored.get("last_step")
        self._grid_seen: float | None = None
        self._drawn_w = 0.0
        """What the home draws beside what can be switched, as last known."""
        self.configure(settings)

    def as_dict(self) -> dict[str, Any]:
        """Return what a restart needs."""
        return {
            "appliances": {key: track.as_dict() for key, track in self._tracks.items()},
            "battery": {
                "mode": str(self._battery.mode),
                "day": self._battery.day,
                "writes": self._battery.writes,
                "untold": self._battery.untold,
            },
            "last_step": self._last_step,
        }

    # What the owner says --------------------------------------------------------------------

    def forget_devices(self, appliance_ids: Iterable[str]) -> None:
        """Know nothing of what devices did: others stand behind these appliances from now on."""
        kept = ("automatic", "override", "override_until", "period", "run_s", "starts")
        for key in self._tracks.keys() & set(appliance_ids):
            track = self._tracks[key]
            self._tracks[key] = _Track(**{name: getattr(track, name) for name in kept})

    def configure(self, settings: Settings) -> None:
        """Take other settings; what is remembered of appliances that stay, stays."""
        self.settings = settings
        known = {appliance.id for appliance in settings.appliances}
        self._tracks = {key: track for key, track in self._tracks.items() if key in known}
        for key in known:
            self._tracks.setdefault(key, _Track())

    def override(self, appliance_id: str, on: bool, now: float, seconds: float) -> None:
        """Keep an appliance on or off for a while, whatever else holds.

        Raises:
            KeyError: there is no such appliance.
        """
        track = self._tracks[appliance_id]
        track.override, track.override_until = on, now + seconds
        track.hand_until = -inf
        track.asked, track.attempts = None, 0

    def clear_override(self, appliance_id: str) -> None:
        """Decide again.

        Raises:
            KeyError: there is no such appliance.
        """
        track = self._tracks[appliance_id]
        track.override, track.override_until, track.hand_until = None, -inf, -inf

    def set_automatic(self, appliance_id: str, automatic: bool) -> None:
        """Say whether an appliance is to be switched at all.

        Raises:
            KeyError: there is no such appliance.
        """
        self._tracks[appliance_id].automatic = automatic

    def is_automatic(self, appliance: Appliance) -> bool:
        """Return whether an appliance is switched at all."""
        chosen = self._tracks[appliance.id].automatic
        return appliance.automatic if chosen is None else chosen

    def battery_untold(self) -> None:
        """Say that the battery's last command couldn't be given."""
        self._battery.untold = True

    def safe_state(self) -> SafeState:
        """Return what to switch before nobody decides any more: only what was switched by us."""
        return SafeState(
            tuple(
                key
                for key, track in self._tracks.items()
                # What was told to go on, and has not been seen to, may do so any moment.
                if (track.ours if track.on else track.asked)
            ),
            self._battery.mode is not Mode.AUTO or self._battery.untold,
            tuple(key for key, track in self._tracks.items() if track.given_w > 0),
        )

    def _set_back(self, seconds: float) -> None:
        """Let everything have happened, and end, so much earlier."""
        for track in (*self._tracks.values(), self._battery):
            for name in _INSTANTS:
                if (instant := getattr(track, name, None)) is not None:
                    setattr(track, name, instant - seconds)
        samples = [(at - seconds, surplus, charge) for at, surplus, charge in self._samples]
        self._samples = deque(samples, maxlen=_SAMPLES_KEPT)
        if self._grid_seen is not None:
            self._grid_seen -= seconds

    def set_going(self) -> tuple[SafeState, tuple[str, ...]]:
        """Return what has to be known of devices after a power cut, so stored when it changes."""
        ours = tuple(key for key, track in self._tracks.items() if track.ours)
        return self.safe_state(), ours

    # Needs ----------------------------------------------------------------------------------

    def _period(self, a: Appliance, now: float) -> float:
        """Return the end of an appliance's day: its deadline, or its window's end, or midnight."""
        minute = a.deadline_min
        if minute is None:
            minute = 0 if a.window is None else a.window.end_min
        return next_at(minute, now, self.settings.zone)

    def need_s(self, a: Appliance, reading: ApplianceReading) -> float:
        """Return how long an appliance still has to run before its deadline (seconds)."""
        if a.variable and reading.needed_wh is not None:
            return reading.needed_wh / a.most_w * 3600
        return max(0.0, a.daily_min_s - self._tracks[a.id].run_s)

    def usable_s(self, a: Appliance, start: float, end: float) -> float:
        """Return how much of a time lies in an appliance's window, to five minutes."""
        if a.window is None:
            return max(0.0, end - start)
        usable, at = 0.0, start
        while at < end:
            part = min(300.0, end - at)
            if a.window.holds(local_time(at, self.settings.zone)):
                usable += part
            at += part
        return usable

    def deadline(self, a: Appliance, now: float) -> float:
        """Return the next instant by which an appliance's need must be met."""
        return self._period(a, now)

    # Measurements ---------------------------------------------------------------------------

    def _power(self, a: Appliance, reading: ApplianceReading) -> float:
        if not reading.on or not reading.available:
            return 0.0
        if reading.power_w is not None:
            return max(0.0, reading.power_w)
        if a.variable and reading.current_a is not None:
            return reading.current_a * a.phases * a.voltage_v
        return a.most_w

    def _given(self, a: Appliance, reading: ApplianceReading | None) -> float:
        """Return what a car gives back now (W): measured, or else what it was told."""
        if a.car is None or reading is None or not reading.available:
            return 0.0
        if reading.power_w is not None:
            return max(0.0, -reading.power_w)
        return self._tracks[a.id].given_w

    def _sample(self, s: Snapshot) -> None:
        """Remember the surplus of this moment."""
        if s.grid_w is None:
            self._samples.append((s.now, None, 0.0))
            return
        self._grid_seen = s.now
        battery = s.battery_w or 0.0
        given = sum(self._given(a, s.appliances.get(a.id)) for a in self.settings.appliances)
        own = sum(
            self._power(a, s.appliances[a.id])
            for a in self.settings.appliances
            if a.id in s.appliances
        )
        self._drawn_w = s.grid_w - own - max(-battery, 0.0)
        surplus = -s.grid_w - max(battery + given, s.committed_w, 0.0) + own
        self._samples.append((s.now, surplus, max(-battery, 0.0)))

    def _average(self, now: float, window_s: float, *, charge: bool) -> tuple[float | None, float]:
        """Return the mean surplus over a window, and for how long of it it is known."""
        begin, until = now - window_s, now
        total = known = 0.0
        for at, surplus, charging in reversed(self._samples):
            start = max(at, begin)
            length = min(until, at + _HOLD_SAMPLE_S) - start
            if surplus is not None and length > 0:
                total += (surplus + (charging if charge else 0.0)) * length
                known += length
            until = at
            if at <= begin:
                break
        return (total / known if known else None), known

    def _now_value(self, *, charge: bool) -> float | None:
        _, surplus, charging = self._samples[-1]
        return None if surplus is None else surplus + (charging if charge else 0.0)

    # Deciding -------------------------------------------------------------------------------

    def step(self, s: Snapshot, plan: Plan | None = None) -> Decision:
        """Decide for this moment. A clock that was set back takes all that is remembered along."""
        if self._last_step is not None and s.now < self._last_step:
            self._set_back(self._last_step - s.now)
        for a in self.settings.appliances:
            self._observe(a, s)
        self._sample(s)
        self._last_step = s.now
        battery = self.settings.battery
        order = sorted(self.settings.appliances, key=lambda a: (a.priority, a.id))
        claims: dict[str, _Claim | None] = {}
        taken = 0.0
        for a in order:
            reading = s.appliances.get(a.id, ApplianceReading(available=False))
            claims[a.id] = claim = self._fixed(a, reading, s, plan)
            if claim is not None and (claim.on or reading.on):
                taken += max(claim.power_w, self._power(a, reading))
        spare: float | None = None
        for a in order:
            reading = s.appliances.get(a.id, ApplianceReading(available=False))
            if claims[a.id] is None:
                before = battery is None or a.priority < battery.priority
                claim = self._by_surplus(a, reading, s, plan, taken, charge=before)
                claims[a.id] = claim
                if claim.on or reading.on:
                    taken += max(claim.power_w, self._power(a, reading))
        mean, _ = self._average(s.now, self.settings.on_window_s, charge=False)
        if mean is not None and s.grid_w is not None:
            spare = mean - taken
        settled: dict[str, _Claim] = {}
        for a in order:
            made = claims[a.id]
            assert made is not None
            reading = s.appliances.get(a.id, ApplianceReading(available=False))
            settled[a.id] = self._with_minimum_times(a, reading, made, s.now)
        if s.limit_w is not None:
            self._limit(order, settled, s, s.limit_w)
        decided: dict[str, ApplianceDecision] = {}
        for a in order:
            reading = s.appliances.get(a.id, ApplianceReading(available=False))
            decided[a.id] = self._settle(a, reading, settled[a.id], s.now)
        return Decision(s.now, decided, self._decide_battery(s, plan), spare)

    def _limit(
        self, order: Iterable[Appliance], claims: dict[str, _Claim], s: Snapshot, limit_w: float
    ) -> None:
        """Keep what is switched here within what the permit lets the home draw.

        An override yields to it, too. What the owner switched by hand counts and is left alone:
        GridLedger never cuts the house.
        """
        left = limit_w - self._drawn_w
        yielding = []
        for a in order:
            claim = claims[a.id]
            if claim.reason.key in ("manual", "by_hand_on", "unavailable"):
                left -= self._power(a, s.appliances.get(a.id, ApplianceReading(available=False)))
            elif claim.on:
                yielding.append(a)
        for a in yielding:
            claim, reading = claims[a.id], s.appliances[a.id]
            margin = 0.0 if reading.on else self.settings.margin_w
            power = claim.power_w or a.least_w
            if not a.variable:
                power = max(a.power_w, self._power(a, reading))
            if power + margin > left and a.variable and a.least_w + margin <= left:
                power = left
                claim.power_w = left
            if power + margin <= left or power == left:
                left -= power
                continue
            values = {
                "limit_w": round(limit_w),
                "drawn_w": round(limit_w - left),
                "power_w": round(power),
            }
            claims[a.id] = _Claim(False, Reason("limited", values), fast=True)

    def _observe(self, a: Appliance, s: Snapshot) -> None:
        """See what has changed since the last step, and who did it."""
        track, reading = self._tracks[a.id], s.appliances.get(a.id)
        period = self._period(a, s.now)
        if period > track.period + 1:
            track.run_s, track.starts, track.period = 0.0, 0, period
        if reading is None or not reading.available:
            return
        if track.on and reading.on and self._last_step is not None:
            track.run_s += min(_COUNT_GAP_S, max(0.0, s.now - self._last_step))
        if track.on is None:
            if reading.on:
                self._by_hand(track, s.now)
        elif track.given_w > 0 or s.now - track.given_at <= _FOLLOW_S:
            pass  # what a charger's switch shows while the car gives back, nobody has switched
        elif reading.on != track.on:
            track.changed_at = s.now
            if track.told is reading.on and s.now - track.told_at <= _FOLLOW_S:
                track.ours, track.attempts = reading.on, 0
            else:
                self._by_hand(track, s.now)
        track.on = reading.on
        if reading.current_a is not None:
            track.current_a = reading.current_a

    def _by_hand(self, track: _Track, now: float) -> None:
        track.ours, track.asked, track.attempts = False, None, 0
        track.override, track.override_until = None, -inf
        track.hand_at, track.hand_until = now, now + self.settings.by_hand_s

    def _fixed(
        self, a: Appliance, reading: ApplianceReading, s: Snapshot, plan: Plan | None
    ) -> _Claim | None:
        """Decide what doesn't depend on surplus; None if surplus decides."""
        track, now = self._tracks[a.id], s.now
        if not reading.available:
            return _Claim(bool(track.on), Reason("unavailable"))
        if not self.is_automatic(a):
            return _Claim(reading.on, Reason("manual"))
        if track.override is not None:
            if now < track.override_until:
                key = "override_on" if track.override else "override_off"
                left = minutes(track.override_until - now)
                return _Claim(track.override, Reason(key, {"left_min": left}), a.most_w)
            track.override = None
        if now < track.hand_until:
            key = "by_hand_on" if reading.on else "by_hand_off"
            values = {
                "ago_min": int((now - track.hand_at) // 60),
                "left_min": minutes(track.hand_until - now),
            }
            return _Claim(reading.on, Reason(key, values))
        if a.variable and not reading.connected:
            return _Claim(False, Reason("not_connected"), fast=True)
        if a.car is not None and (giving := self._gives_back(a, a.car, reading, s, plan)):
            return giving
        if a.variable and reading.needed_wh is not None and reading.needed_wh <= 0:
            return _Claim(False, Reason("satisfied"))
        if a.daily_max_s is not None and track.run_s >= a.daily_max_s:
            values = {"run_min": int(track.run_s // 60), "maximum_min": int(a.daily_max_s // 60)}
            return _Claim(False, Reason("daily_max", values))
        if a.window is not None and not a.window.holds(local_time(now, self.settings.zone)):
            return _Claim(
                False,
                Reason(
                    "outside_window",
                    {
                        "start": clock_text(a.window.start_min),
                        "end": clock_text(a.window.end_min),
                    },
                ),
            )
        if a.responds and (event := self._event(s)) is not None:
            until = {"until": self._clock(event.end)}
            if event.kind == "reduce":
                return _Claim(False, Reason("response", until))
            if s.permit and s.committed_w <= 0:
                return _Claim(True, Reason("absorb", until), a.most_w)
        return self._needed(a, reading, s, plan)

    def _clock(self, instant: float) -> str:
        local = local_time(instant, self.settings.zone)
        return clock_text(local.hour * 60 + local.minute)

    @staticmethod
    def _event(s: Snapshot) -> Response | None:
        """Return the response event that runs now."""
        event = s.response
        return event if event is not None and event.start <= s.now < event.end else None

    def _gives_back(
        self, a: Appliance, car: Battery, reading: ApplianceReading, s: Snapshot, plan: Plan | None
    ) -> _Claim | None:
        """Decide whether a car gives back: what is sold, for an event, or as planned.

        Only what it can be charged with again before it has to leave, and never its reserve.
        """
        track, now, stored = self._tracks[a.id], s.now, reading.stored_wh
        if reading.power_w is not None and track.given_w > 0:
            # Half of what it was told, two minutes after, is not following.
            asked = now - track.given_at >= _VERIFY_S
            if asked and self._given(a, reading) < 0.5 * track.given_w:
                track.given_fault = now
        if (
            (stored is None or stored <= car.reserve_wh)
            or (s.grid_w is None or not s.permit)
            or (now - track.given_fault < _FAULT_S)
            or (plan is None or now - plan.made_at > self.settings.plan_valid_s)
        ):
            return None
        left = self.usable_s(a, now, self.deadline(a, now))
        if left < self.need_s(a, reading) + _TIME_TO_SPARE_S:
            return None
        others = s.grid_w + self._given(a, reading) - self._power(a, reading)
        planned = plan.cars.get(a.id)
        slot = None if planned is None else planned.slot_at(now)
        battery, event = self.settings.battery, self._event(s)
        values: dict[str, float | int | str]
        if s.committed_w > 0 and (battery is None or not battery.drives):
            others += s.committed_w
            key, values = "car_delivers", {}
        elif event is not None and event.kind == "reduce" and a.responds:
            key, values = "car_responds", {"until": self._clock(event.end)}
        elif slot is not None and slot.reason.key == "house_from_battery":
            key, values = "car_feeds", dict(slot.reason.values)
        else:
            return None
        power = min(car.max_discharge_w, others)
        if power < _LEAST_GIVEN_W:
            return None
        if track.given_w > 0 and now < track.given_until:
            near = abs(power - track.given_w) <= max(150.0, 0.1 * track.given_w)
            if near or now - track.given_at < _RETRY_S:
                power = track.given_w
        power = float(round(power))
        return _Claim(False, Reason(key, {"power_w": round(power), **values}), given_w=power)

    def _needed(
        self, a: Appliance, reading: ApplianceReading, s: Snapshot, plan: Plan | None
    ) -> _Claim | None:
        """Decide by the deadline and the plan."""
        need, now = self.need_s(a, reading), s.now
        if need <= 0 or not s.permit:
            return None
        deadline = self.deadline(a, now)
        local = local_time(deadline, self.settings.zone)
        until = clock_text(local.hour * 60 + local.minute)
        values: dict[str, float | int | str] = {"need_min": minutes(need), "until": until}
        left = self.usable_s(a, now, deadline)
        # Two minutes to spare: steps are a minute apart, and devices take their time.
        spare = 120.0
        changed = self._tracks[a.id].changed_at
        if not reading.on and changed is not None:
            spare += max(0.0, a.min_off_s - (now - changed))
        if left <= need + spare:
            return _Claim(True, Reason("deadline", values), a.most_w)
        if s.committed_w > 0 or plan is None or now - plan.made_at > self.settings.plan_valid_s:
            return None
        if plan.run_wh(a.id, now) > 0 and (slot := plan.slot_at(now)) is not None:
            power = plan.run_wh(a.id, now) * 3600 / slot.seconds
            cost = slot.buy if s.buy is None else s.buy
            return _Claim(
                True,
                Reason("planned", {"price": price(cost), **values}),
                min(a.most_w, max(a.least_w, power)),
            )
        return None

    def _by_surplus(
        self,
        a: Appliance,
        reading: ApplianceReading,
        s: Snapshot,
        plan: Plan | None,
        taken: float,
        *,
        charge: bool,
    ) -> _Claim:
        """Decide by what the sun leaves after everything that comes before."""
        settings, now, track = self.settings, s.now, self._tracks[a.id]
        current = self._now_value(charge=charge)
        if current is None:
            seen = self._grid_seen
            ago = now - (seen if seen is not None else self._samples[0][0])
            if ago <= settings.sensor_timeout_s and track.on is not None:
                return _Claim(reading.on, Reason("sensors_gap", {"ago_s": int(ago)}))
            return _Claim(False, Reason("sensors_lost", {"ago_min": int(ago // 60)}))
        current -= taken
        if reading.on:
            return self._keep(a, reading, now, current, taken, charge=charge)
        needed = a.least_w + settings.margin_w
        mean, known = self._average(now, settings.on_window_s, charge=charge)
        mean = 0.0 if mean is None else mean - taken
        if current >= needed and mean >= needed and known >= 0.9 * settings.on_window_s:
            if track.starts >= a.max_starts:
                values = {"starts": track.starts, "maximum": a.max_starts}
                return _Claim(False, Reason("starts_used", values))
            values = {"surplus_w": round(mean), "power_w": round(a.least_w)}
            power = min(a.most_w, max(a.least_w, current)) if a.variable else a.power_w
            return _Claim(True, Reason("surplus_on", values), power, for_surplus=True)
        return _Claim(False, self._why_off(a, reading, s, plan, current, needed, charge=charge))

    def _why_off(
        self,
        a: Appliance,
        reading: ApplianceReading,
        s: Snapshot,
        plan: Plan | None,
        current: float,
        needed: float,
        *,
        charge: bool,
    ) -> Reason:
        """Say why an appliance without enough surplus is off."""
        need = self.need_s(a, reading)
        if need > 0 and not s.permit:
            return Reason("permit")
        if need > 0 and s.committed_w > 0:
            return Reason("committed", {"committed_w": round(s.committed_w)})
        if need > 0 and plan is not None and (run := plan.next_run(a.id, s.now)) is not None:
            start = local_time(run, self.settings.zone)
            end = local_time(self.deadline(a, s.now), self.settings.zone)
            return Reason(
                "waits_planned",
                {
                    "start": clock_text(start.hour * 60 + start.minute),
                    "need_min": minutes(need),
                    "until": clock_text(end.hour * 60 + end.minute),
                },
            )
        if current >= needed:
            window = round(self.settings.on_window_s / 60)
            return Reason("averaging", {"surplus_w": round(current), "window_min": window})
        if (s.battery_w or 0.0) > self.settings.drain_tolerance_w and s.committed_w <= 0:
            return Reason("battery_drains", {"battery_w": round(s.battery_w or 0.0)})
        charging = max(-(s.battery_w or 0.0), 0.0)
        if not charge and charging > 0 and current + charging >= needed:
            return Reason("battery_first", {"battery_w": round(charging)})
        return Reason("waits_surplus", {"surplus_w": round(current), "limit_w": round(needed)})

    def _keep(
        self,
        a: Appliance,
        reading: ApplianceReading,
        now: float,
        current: float,
        taken: float,
        *,
        charge: bool,
    ) -> _Claim:
        """Decide whether what is on stays on."""
        settings = self.settings
        least = min(a.least_w, self._power(a, reading))
        limit = least - settings.margin_w
        if a.fast_off and current < limit:
            values = {"surplus_w": round(current)}
            return _Claim(False, Reason("fast_off", values), fast=True)
        short, _ = self._average(now, settings.off_window_s, charge=charge)
        long, known = self._average(now, 3 * settings.off_window_s, charge=charge)
        short = current if short is None else short - taken
        long = current if long is None else long - taken
        shallow = known >= 0.9 * 3 * settings.off_window_s and long < limit
        # Only what lacks now, too: an average still falls while the sun is back already.
        if current < limit and (short < _DEEP * least - settings.margin_w or shallow):
            mean = long if shallow else short
            values = {"surplus_w": round(mean), "limit_w": round(limit)}
            return _Claim(False, Reason("waits_surplus", values))
        values = {"surplus_w": round(short), "limit_w": round(limit)}
        power = min(a.most_w, max(a.least_w, current)) if a.variable else least
        return _Claim(True, Reason("surplus_kept", values), power, for_surplus=True)

    def _with_minimum_times(
        self, a: Appliance, reading: ApplianceReading, claim: _Claim, now: float
    ) -> _Claim:
        """Return the claim, or that the appliance stays as it is for its minimum time."""
        changed_at = self._tracks[a.id].changed_at
        if (
            not reading.available
            or claim.on == reading.on
            or changed_at is None
            or claim.reason.key in _URGENT
            or claim.fast
            or claim.given_w > 0
        ):
            return claim
        minimum = a.min_off_s if claim.on else a.min_on_s
        ago = now - changed_at
        if ago >= minimum:
            return claim
        on = reading.on
        values = {
            "left_min": minutes(minimum - ago),
            "ago_min": int(ago // 60),
            "minimum_min": round(minimum / 60),
        }
        reason = Reason("min_on" if on else "min_off", values)
        # A charger goes on with as little as it can.
        return _Claim(on, reason, a.least_w if on else 0.0, for_surplus=claim.for_surplus)

    def _settle(
        self, a: Appliance, reading: ApplianceReading, claim: _Claim, now: float
    ) -> ApplianceDecision:
        """See whether the appliance has to be told."""
        track = self._tracks[a.id]
        on, reason = claim.on, claim.reason
        if claim.given_w > 0:
            tell = claim.given_w != track.given_w or track.given_until - now < 90
            if tell:
                track.given_w, track.given_at = claim.given_w, now
                track.given_until = now + _GIVEN_S
            track.asked = None
            return ApplianceDecision(
                False,
                reason,
                run_s=track.run_s,
                automatic=self.is_automatic(a),
                given_w=track.given_w,
                given_until=track.given_until,
                send_given=tell,
            )
        stop, track.given_w = track.given_w > 0, 0.0
        if stop:
            track.given_at = now
        current = self._current(a, track, claim, on, now)
        send = False
        if reading.available and reason.key not in ("manual", "by_hand_on", "by_hand_off"):
            if on != reading.on:
                send, reason = self._ask(track, on, reason, now, claim)
            elif track.asked is not None and track.asked != on:
                track.asked = None  # it changed its mind before the appliance did
            if on and reading.on and current is not None and current != track.current_a:
                send = True
            if send and current is not None:
                track.current_a, track.current_at = current, now
        active = track.override is not None and now < track.override_until
        return ApplianceDecision(
            on,
            reason,
            current if on else None,
            send,
            track.run_s,
            self.is_automatic(a),
            track.override if active else None,
            track.override_until if active else None,
            claim.for_surplus,
            send_given=stop,
        )

    def _ask(
        self, track: _Track, on: bool, reason: Reason, now: float, claim: _Claim
    ) -> tuple[bool, Reason]:
        """Return whether to tell the appliance now: at first, then again a few times."""
        if track.asked is not on:
            track.asked, track.asked_at, track.attempts = on, now, 1
            track.told, track.told_at = on, now
            if on and claim.for_surplus:
                track.starts += 1
            return True, reason
        apart = _RETRY_S if track.attempts < _ATTEMPTS else _RETRY_LATER_S
        again = now - track.asked_at >= apart
        if track.attempts >= _ATTEMPTS and now - track.asked_at >= _RETRY_S:
            values = {
                "attempts": track.attempts,
                "ago_min": int((now - track.asked_at) // 60),
            }
            reason = Reason("no_response", values)
        if again:
            track.asked_at = track.told_at = now
            track.attempts += 1
        return again, reason

    def _current(
        self, a: Appliance, track: _Track, claim: _Claim, on: bool, now: float
    ) -> float | None:
        """Return a charger's current in whole amperes, which changes at most every 20 s."""
        if not a.variable or not on:
            return None
        wished = claim.power_w or a.least_w
        amperes = float(floor(wished / (a.phases * a.voltage_v) + 1e-6))
        amperes = min(a.max_current_a, max(a.min_current_a, amperes))
        if track.current_a is None or not track.on:
            return amperes
        if abs(amperes - track.current_a) < 1 or now - track.current_at < _CURRENT_APART_S:
            return track.current_a
        return amperes

    # Battery --------------------------------------------------------------------------------

    def _decide_battery(self, s: Snapshot, plan: Plan | None) -> BatteryDecision | None:
        battery, track, now = self.settings.battery, self._battery, s.now
        if battery is None:
            return None
        day = local_time(now, self.settings.zone).date().isoformat()
        if day != track.day:
            track.day, track.writes = day, 0
        fault = self._verify(s)
        mode, power, until, reason, urgent = self._wanted(s, plan)
        if mode is not Mode.AUTO and mode not in battery.modes:
            reason = Reason("cannot", {"mode": str(mode)})
            mode, power, until = Mode.AUTO, 0.0, inf
        quiet = {Mode.AUTO, Mode.HOLD}
        ago = now - track.changed_at
        waits = not urgent and {mode, track.mode} <= quiet and ago < battery.min_mode_s
        if mode is not track.mode and waits:
            reason = Reason(
                "mode_waits",
                {
                    "mode": str(track.mode),
                    "left_min": minutes(battery.min_mode_s - ago),
                    "ago_min": int(ago // 60),
                    "minimum_min": round(battery.min_mode_s / 60),
                },
            )
            mode, power, until = track.mode, track.power_w, max(track.until, now + 300)
        wanted_write = (
            mode is not track.mode
            or track.untold
            or (
                mode is not Mode.AUTO
                and (track.until <= now or track.until - now < 90 < until - now)
            )
            or (
                abs(power - track.power_w) > max(150.0, 0.1 * track.power_w)
                and now - track.written_at >= _POWER_APART_S
            )
            or (mode is Mode.DISCHARGE and track.until - self._empty_at(s, battery) > _LOWER_S)
        )
        if wanted_write and track.writes >= battery.max_writes and mode is not Mode.AUTO:
            reason = Reason("write_limit", {"writes": track.writes, "maximum": battery.max_writes})
            mode, power, until = Mode.AUTO, 0.0, inf
            wanted_write = mode is not track.mode or track.untold
        if wanted_write:
            track.untold = False
            if mode is not track.mode:
                track.changed_at, track.astray_since = now, None
            track.mode, track.power_w, track.until = mode, power, until
            track.written_at = now
            track.writes += 1
        return BatteryDecision(
            track.mode,
            track.power_w,
            track.until,
            reason,
            wanted_write and battery.drives,
            fault,
        )

    def _empty_at(self, s: Snapshot, battery: Battery) -> float:
        """Return when the discharge that was commanded comes to the reserve."""
        if s.stored_wh is None or self._battery.power_w <= 0:
            return inf
        usable = (s.stored_wh - battery.reserve_wh) * battery.discharge_efficiency
        return s.now + usable / self._battery.power_w * 3600

    def _wanted(self, s: Snapshot, plan: Plan | None) -> tuple[Mode, float, float, Reason, bool]:
        """Return mode, power (W), until, reason, and whether it may not wait."""
        battery, track, now = self.settings.battery, self._battery, s.now
        assert battery is not None
        automatic = (Mode.AUTO, 0.0, inf)
        if s.stored_wh is None:
            return *automatic, Reason("battery_unknown"), True
        if now - track.fault_at < _FAULT_S:
            ago = int((now - track.fault_at) // 60)
            reason = Reason("battery_fault", {"mode": track.fault_mode, "ago_min": ago})
            return *automatic, reason, True
        if not s.permit:
            return *automatic, Reason("permit_battery"), True
        event = self._event(s)
        if event is not None and event.kind == "absorb" and s.committed_w <= 0:
            named, end = {"until": self._clock(event.end)}, min(event.end, now + _COMMAND_LIMIT_S)
            power = min(battery.max_charge_w, self._chargeable(s))
            room = s.stored_wh < 0.995 * battery.capacity_wh and power >= _LEAST_CHARGE_W
            if room and Mode.CHARGE in battery.modes:
                return Mode.CHARGE, float(round(power)), end, Reason("absorb_charges", named), True
            if Mode.HOLD in battery.modes:
                return Mode.HOLD, 0.0, end, Reason("absorb_holds", named), True
        band = _RESERVE_BAND * battery.capacity_wh if track.mode is Mode.HOLD else 0.0
        empty = s.stored_wh <= battery.reserve_wh + band
        house = None if s.grid_w is None else s.grid_w + (s.battery_w or 0.0)
        if empty and (house is None or house > 0) and battery.reserve_wh > 0:
            percent = round(100 * battery.reserve_wh / battery.capacity_wh)
            mode = Mode.HOLD if Mode.HOLD in battery.modes else Mode.AUTO
            until = now + _COMMAND_LIMIT_S if mode is Mode.HOLD else inf
            return mode, 0.0, until, Reason("at_reserve", {"reserve_percent": percent}), True
        if s.committed_w > 0 and s.grid_w is not None:
            # What the house takes beyond the sun comes on top of what is sold.
            power = min(battery.max_discharge_w, s.committed_w + (house or 0.0))
            reason = Reason("delivers", {"committed_w": round(s.committed_w)})
            until = max(s.committed_until, now + 60)
            if power <= 0:
                return Mode.HOLD, 0.0, until, reason, True
            # The command ends before the reserve is touched, should nobody be there to end it.
            usable = (s.stored_wh - battery.reserve_wh) * battery.discharge_efficiency
            lasts = usable / power * 3600
            if lasts >= _LEAST_COMMAND_S:
                return Mode.DISCHARGE, float(round(power)), min(until, now + lasts), reason, True
            percent = round(100 * battery.reserve_wh / battery.capacity_wh)
            mode = Mode.HOLD if Mode.HOLD in battery.modes else Mode.AUTO
            until = until if mode is Mode.HOLD else inf
            return mode, 0.0, until, Reason("at_reserve", {"reserve_percent": percent}), True
        if plan is None or (slot := plan.slot_at(now)) is None:
            return *automatic, Reason("no_plan"), True
        if now - plan.made_at > self.settings.plan_valid_s:
            ago = int((now - plan.made_at) // 60)
            return *automatic, Reason("plan_old", {"ago_min": ago}), True
        if slot.mode is Mode.DISCHARGE:
            # Selling is what trades commit; a plan alone sells nothing.
            return *automatic, Reason("sale_missing"), True
        if slot.mode is Mode.CHARGE and s.stored_wh >= 0.995 * battery.capacity_wh:
            sell = price(slot.sell)
            return *automatic, Reason("battery_full", {"sell": sell}), True
        until = min(self._same_until(plan, slot), now + _COMMAND_LIMIT_S)
        power = slot.power_w if slot.mode is Mode.CHARGE else 0.0
        feeds = slot.mode is Mode.HOLD and house is not None and house > 0
        if event is not None and event.kind == "reduce" and (slot.mode is Mode.CHARGE or feeds):
            values = {"until": self._clock(event.end)}
            return *automatic, Reason("response_battery", values), True
        if s.limit_w is not None and house is not None:
            power = min(power, self._chargeable(s))
            over = feeds and house > s.limit_w
            if over or (slot.mode is Mode.CHARGE and power < _LEAST_CHARGE_W):
                taken = {"limit_w": round(s.limit_w), "house_w": round(house)}
                return *automatic, Reason("limited_battery", taken), True
        return slot.mode, power, until, slot.reason, False

    @staticmethod
    def _chargeable(s: Snapshot) -> float:
        """Return what the permit leaves for the battery beside the house (W)."""
        if s.limit_w is None or s.grid_w is None:
            return inf if s.limit_w is None else 0.0
        return max(0.0, s.limit_w - s.grid_w - (s.battery_w or 0.0))

    @staticmethod
    def _same_until(plan: Plan, slot: PlannedSlot) -> float:
        """Return until when the plan stays in a slot's mode."""
        end = slot.start + slot.seconds
        for later in plan.slots:
            if later.start == end and later.mode is slot.mode:
                end += later.seconds
        return end

    def _verify(self, s: Snapshot) -> bool:
        """Check by the measured power that the battery does what it was told; note a fault."""
        battery, track, now = self.settings.battery, self._battery, s.now
        assert battery is not None
        if not battery.drives or track.mode is Mode.AUTO or s.battery_w is None:
            track.astray_since = None
            return now - track.fault_at < _FAULT_S
        measured = s.battery_w
        stored = s.stored_wh
        match track.mode:
            case Mode.CHARGE:
                full = stored is not None and stored >= 0.97 * battery.capacity_wh
                good = full or -measured >= 0.5 * track.power_w
            case Mode.DISCHARGE:
                good = measured >= 0.5 * track.power_w
            case _:
                good = abs(measured) <= max(150.0, 0.05 * battery.max_discharge_w)
        if good:
            track.astray_since = None
        elif track.astray_since is None:
            track.astray_since = max(now, track.written_at)
        elif now - track.astray_since >= _VERIFY_S:
            track.fault_at, track.fault_mode, track.astray_since = now, str(track.mode), None
        return now - track.fault_at < _FAULT_S


def needs_of(
    dispatcher: Dispatcher, readings: Mapping[str, ApplianceReading], now: float
) -> Iterable[tuple[Appliance, float, float]]:
    """Yield (appliance, seconds that it still has to run, deadline) in order of priority."""
    for a in sorted(dispatcher.settings.appliances, key=lambda a: (a.priority, a.id)):
        reading = readings.get(a.id)
        if reading is None or not dispatcher.is_automatic(a):
            continue
        if a.car is not None and reading.stored_wh is not None:
            continue  # planned as a battery
        if (need := dispatcher.need_s(a, reading)) > 0 and reading.connected:
            yield a, need, dispatcher.deadline(a, now)
