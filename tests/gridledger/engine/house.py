"""A simulated house: sun, load, a battery that follows its mode, and appliances that obey."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from custom_components.gridledger.engine import (
    Appliance,
    ApplianceReading,
    Decision,
    Dispatcher,
    Kind,
    Mode,
    Plan,
    Response,
    Settings,
    Snapshot,
)
from custom_components.gridledger.engine.forecast import clear_sky

DAY = datetime(2026, 6, 20, tzinfo=UTC).timestamp()
LATITUDE, LONGITUDE = 45.5, 9.2

BOILER = Appliance(
    id="boiler", name="Boiler", kind=Kind.WATER_HEATER, power_w=2000, priority=1, daily_min_s=3600
)
PUMP = Appliance(id="pump", name="Pool pump", power_w=800, priority=3, daily_max_s=6 * 3600)
CAR = Appliance(
    id="car", name="Car", kind=Kind.CHARGER, priority=8, fast_off=True, min_on_s=300, min_off_s=600
)


def cloudy(seed: int, peak_w: float = 6000) -> Callable[[float], float]:
    """A day of sun with clouds of one to fifteen minutes, by instant."""
    rng = random.Random(seed)
    shade, until, series = 1.0, 0, []
    for minute in range(1440):
        if minute >= until:
            shade = rng.choice([1.0, 1.0, 0.95, 0.6, 0.25, 0.15])
            until = minute + rng.randint(1, 15)
        series.append(shade)

    def pv(now: float) -> float:
        minute = int((now - DAY) // 60) % 1440
        return peak_w * clear_sky(now, LATITUDE, LONGITUDE) / 1000 * series[minute]

    return pv


@dataclass
class House:
    settings: Settings
    pv: Callable[[float], float]
    base_w: Callable[[float], float] = lambda now: 350 + 150 * ((now // 600) % 3)
    stored_wh: float = 5000
    on: dict[str, bool] = field(default_factory=dict)
    current: dict[str, float] = field(default_factory=dict)
    mode: Mode = Mode.AUTO
    mode_power_w: float = 0.0
    committed: Callable[[float], float] = lambda now: 0.0
    grid_known: Callable[[float], bool] = lambda now: True
    needed_wh: float | None = None
    plan: Plan | None = None
    response: Response | None = None
    limit_w: float | None = None
    car_wh: float | None = None
    """What is in a car that can give back."""
    given_w: float = 0.0
    battery_w: float = 0.0
    grid_w: float = 0.0

    def __post_init__(self) -> None:
        self.dispatcher = Dispatcher(self.settings)
        for a in self.settings.appliances:
            self.on.setdefault(a.id, False)

    def power(self, a: Appliance) -> float:
        if a.car is not None and self.given_w > 0:
            return -self.given_w
        if not self.on[a.id]:
            return 0.0
        if a.variable:
            return self.current.get(a.id, a.min_current_a) * a.phases * a.voltage_v
        return a.power_w

    def flows(self, now: float, seconds: float) -> None:
        """Let energy flow for a while, the battery in its mode."""
        load = self.base_w(now) + sum(self.power(a) for a in self.settings.appliances)
        net, b = load - self.pv(now), self.settings.battery
        hours = seconds / 3600
        self.battery_w = 0.0
        if b is not None:
            out = min(b.max_discharge_w, max(0.0, self.stored_wh) * b.discharge_efficiency / hours)
            room = min(
                b.max_charge_w,
                max(0.0, b.capacity_wh - self.stored_wh) / b.charge_efficiency / hours,
            )
            match self.mode:
                case Mode.AUTO:
                    self.battery_w = min(max(net, -room), out)
                case Mode.CHARGE:
                    self.battery_w = -min(self.mode_power_w, room)
                case Mode.DISCHARGE:
                    self.battery_w = min(self.mode_power_w, out)
            if self.battery_w > 0:
                self.stored_wh -= self.battery_w * hours / b.discharge_efficiency
            else:
                self.stored_wh -= self.battery_w * hours * b.charge_efficiency
        self.grid_w = net - self.battery_w
        for a in self.settings.appliances:
            if a.car is not None and self.car_wh is not None:
                self.car_wh += self.power(a) * hours
                self.needed_wh = max(0.0, a.car.target_wh - self.car_wh)
                return
        if self.needed_wh is not None and self.on.get("car"):
            self.needed_wh = max(0.0, self.needed_wh - self.power(CAR) * hours)

    def snapshot(self, now: float) -> Snapshot:
        readings = {
            a.id: ApplianceReading(
                on=self.on[a.id],
                power_w=self.power(a),
                current_a=self.current.get(a.id) if self.on[a.id] else None,
                needed_wh=self.needed_wh if a.variable else None,
                stored_wh=self.car_wh if a.car is not None else None,
            )
            for a in self.settings.appliances
        }
        return Snapshot(
            now=now,
            grid_w=self.grid_w if self.grid_known(now) else None,
            battery_w=self.battery_w if self.settings.battery else None,
            stored_wh=self.stored_wh if self.settings.battery else None,
            appliances=readings,
            committed_w=self.committed(now),
            committed_until=now + 900,
            response=self.response,
            limit_w=self.limit_w,
        )

    def live(
        self, start: float, hours: float, step_s: float = 60
    ) -> Iterator[tuple[float, Snapshot, Decision]]:
        """Go on step by step; what is decided holds for the next one."""
        now = start
        while now < start + hours * 3600:
            self.flows(now, step_s)
            now += step_s
            snapshot = self.snapshot(now)
            decision = self.dispatcher.step(snapshot, self.plan)
            yield now, snapshot, decision
            for key, made in decision.appliances.items():
                if made.send_given:
                    self.given_w = made.given_w
                if made.send:
                    self.on[key] = made.on
                    if made.current_a is not None:
                        self.current[key] = made.current_a
            if decision.battery is not None and decision.battery.send:
                self.mode = decision.battery.mode
                self.mode_power_w = decision.battery.power_w
