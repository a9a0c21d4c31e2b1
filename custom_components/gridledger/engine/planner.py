"""The plan of the next 24 hours: the battery by dynamic programming, runs by marginal cost.

A battery knows four modes (:class:`~.model.Mode`), so the plan holds nothing but those: what is
planned can be done. The cost-to-go over (slot, stored energy) is worked out backwards; stored
energy at the end of the horizon is worth what it is worth at its beginning, since tomorrow is
taken to be like today. The value function also gives each decision its reason: a kWh kept is worth
what the cost-to-go falls by it, and a mode was chosen because that beats the price.

Hurdles (a rule's spread, wear, a nudge towards automatic) are costs of the objective. So a sale
under a rule with a spread happens only where it earns that much more than its best alternative,
net of losses and fees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, tzinfo
from math import inf
from typing import Final, NamedTuple

from .model import Battery, Mode, Need, Slot, clock_text, local_time
from .reasons import Reason, price

LEVELS: Final = 40
"""Steps of stored energy between empty and full; in between it is interpolated."""
_NUDGE: Final = 0.0005
"""What a slot in another mode than automatic has to earn: commands wear inverters, too."""
_DOUBT_PER_KWH: Final = 0.02
"""What keeping energy for later has to promise beyond its price now: forecasts are wrong."""
_MISSED_FACTOR: Final = 2.0
"""Failing to deliver what is sold costs at least imbalance: this times the buying price."""
_TARGET_PENALTY: Final = 10.0
"""For each kWh that a car lacks at its deadline: more than any price."""
_OVER_PENALTY: Final = 10.0
"""For each kWh that is drawn beyond the permit's limit: more than any price."""
_STAY_PER_KWH: Final = 0.01
"""How much cheaper another time must be before a planned run moves."""
KEEP_FOR: Final = 0.05
"""A plan is kept until another one is better by this much money over the whole horizon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What trading rules permit in one slot; nothing unless a rule says so."""

    sell_wh: float = 0.0
    sell_reserve_wh: float = 0.0
    sell_hurdle: float = 0.0
    sell_rule: str = ""
    buy: bool = False
    buy_wh: float = inf
    buy_hurdle: float = 0.0
    buy_rule: str = ""


NOTHING: Final = Allowance()


class Flow(NamedTuple):
    """What a mode does in a slot (Wh, on the house's side but for ``stored``)."""

    stored: float
    grid: float
    given: float
    sold: float
    bought: float
    missed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSlot:
    """One slot of a plan. Energies are Wh; ``grid_wh`` is positive on import."""

    start: float
    seconds: float
    mode: Mode
    power_w: float
    stored_wh: float
    """At its end."""
    grid_wh: float
    sold_wh: float
    """Stored energy that is sold, beside what was sold before."""
    bought_wh: float
    """Bought from the microgrid to charge."""
    missed_wh: float
    runs_wh: float
    """What planned appliances take."""
    pv_wh: float
    load_wh: float
    buy: float
    sell: float
    house: str
    """Who feeds the house: ``sun``, ``battery`` or ``microgrid``."""
    surplus: str
    """What becomes of surplus: ``charge``, ``sell`` or, without any, ``none``."""
    cost: float
    sell_rule: str = ""
    reason: Reason


@dataclass(frozen=True, slots=True)
class Plan:
    """The next 24 hours."""

    made_at: float
    slots: tuple[PlannedSlot, ...]
    runs: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    """By appliance: Wh by start of slot."""
    short_wh: Mapping[str, float] = field(default_factory=dict)
    """By appliance: what can't be had before the deadline (Wh)."""
    cost: float = 0.0
    """Money spent, negative if earned."""
    cost_automatic: float = 0.0
    """The same day if the battery were left alone."""
    objective: float = 0.0
    revision: int = 0
    """How often it has been changed for a better one."""
    cars: Mapping[str, Plan] = field(default_factory=dict)
    """By appliance: the plan of a car that can give back, until it leaves."""

    def slot_at(self, now: float) -> PlannedSlot | None:
        """Return the slot that holds an instant, None if the plan doesn't reach it."""
        for slot in self.slots:
            if slot.start <= now < slot.start + slot.seconds:
                return slot
        return None

    def run_wh(self, appliance_id: str, now: float) -> float:
        """Return what an appliance is to take in the slot that holds an instant (Wh)."""
        slot = self.slot_at(now)
        return 0.0 if slot is None else self.runs.get(appliance_id, {}).get(slot.start, 0.0)

    def next_run(self, appliance_id: str, now: float) -> float | None:
        """Return when an appliance's next planned run begins (epoch seconds)."""
        starts = [
            start
            for start, energy in self.runs.get(appliance_id, {}).items()
            if start > now and energy > 0
        ]
        return min(starts, default=None)


def flow_in(
    mode: Mode, stored: float, slot: Slot, net: float, b: Battery, allow: Allowance
) -> Flow:
    """Return what a mode does. ``net`` is the house's load beyond the sun (Wh)."""
    hours = slot.seconds / 3600
    available = max(0.0, stored - b.reserve_wh) * b.discharge_efficiency
    most_out = min(b.max_discharge_w * hours, available)
    if slot.committed_wh > 0:
        # What is sold comes first; surplus beyond it is sold as well.
        given = min(most_out, max(0.0, net + slot.committed_wh))
        grid = net - given
        missed = min(slot.committed_wh, max(0.0, slot.committed_wh + grid))
        return Flow(stored - given / b.discharge_efficiency, grid, given, 0.0, 0.0, missed)
    if mode is Mode.HOLD:
        return Flow(stored, net, 0.0, 0.0, 0.0, 0.0)
    room = max(0.0, b.capacity_wh - stored) / b.charge_efficiency
    if mode is Mode.AUTO:
        if net > 0:
            given = min(net, most_out)
            return Flow(stored - given / b.discharge_efficiency, net - given, given, 0.0, 0.0, 0.0)
        taken = min(-net, b.max_charge_w * hours, room)
        return Flow(stored + taken * b.charge_efficiency, net + taken, 0.0, 0.0, 0.0, 0.0)
    if mode is Mode.CHARGE:
        taken = min(b.max_charge_w * hours, room)
        if slot.limit_w is not None:
            taken = min(taken, max(0.0, slot.limit_w * hours - net))
        taken = min(taken, max(0.0, -net) + allow.buy_wh)
        bought = max(0.0, taken - max(0.0, -net))
        return Flow(stored + taken * b.charge_efficiency, net + taken, 0.0, 0.0, bought, 0.0)
    house = min(max(0.0, net), most_out)
    above = max(0.0, stored - max(b.reserve_wh, allow.sell_reserve_wh)) * b.discharge_efficiency
    sold = max(0.0, min(allow.sell_wh, most_out - house, above - house))
    given = house + sold
    return Flow(stored - given / b.discharge_efficiency, net - given, given, sold, 0.0, 0.0)


def money(flow: Flow, slot: Slot) -> float:
    """Return what a slot costs. Energy that was sold before is paid by its own trade."""
    if flow.grid >= 0:
        cost = flow.grid * slot.buy
    else:
        delivered = slot.committed_wh - flow.missed
        cost = -max(0.0, -flow.grid - delivered) * slot.sell
    return (cost + flow.missed * _MISSED_FACTOR * max(slot.buy, 0.0)) / 1000


def _extras(mode: Mode, flow: Flow, slot: Slot, b: Battery, allow: Allowance) -> float:
    """Return what an objective adds: wear, hurdles, doubt, rewards, the limit, the nudge."""
    extra = flow.given * b.wear_per_kwh + flow.grid * slot.adder
    if slot.limit_w is not None:
        extra += max(0.0, flow.grid - slot.limit_w * slot.seconds / 3600) * _OVER_PENALTY
    if mode is Mode.HOLD:
        extra += abs(flow.grid) * _DOUBT_PER_KWH
    if flow.sold:
        extra += flow.sold * allow.sell_hurdle
    if flow.bought:
        extra += flow.bought * allow.buy_hurdle
    return extra / 1000 + (0.0 if mode is Mode.AUTO else _NUDGE)


def _choices(slot: Slot, b: Battery, allow: Allowance, *, away: bool) -> tuple[Mode, ...]:
    """Return the modes that may be planned, automatic first."""
    if slot.committed_wh > 0:
        return (Mode.DISCHARGE,)
    found = [Mode.AUTO]
    if Mode.HOLD in b.modes:
        found.append(Mode.HOLD)
    # A car has to leave charged: that is bought even without a rule.
    # Whoever takes part in an event that asks to use more, wants to.
    if Mode.CHARGE in b.modes and (allow.buy or away or slot.response == "absorb"):
        found.append(Mode.CHARGE)
    if Mode.DISCHARGE in b.modes and allow.sell_wh > 0:
        found.append(Mode.DISCHARGE)
    return tuple(found)


class _Values:
    """The cost-to-go after a slot, interpolated over stored energy."""

    __slots__ = ("_costs", "_step")

    def __init__(self, costs: list[float], step: float) -> None:
        self._costs = costs
        self._step = step

    def __call__(self, stored: float) -> float:
        position = stored / self._step
        low = int(position)
        if low >= len(self._costs) - 1:
            return self._costs[-1]
        if low < 0:
            return self._costs[0]
        part = position - low
        return self._costs[low] * (1 - part) + self._costs[low + 1] * part


def _cost_to_go(
    slots: Sequence[Slot], nets: Sequence[float], b: Battery, allowances: Sequence[Allowance]
) -> list[_Values]:
    """Return the value functions at the start of each slot and at the end of the horizon."""
    step = b.capacity_wh / LEVELS
    away = b.deadline is not None
    choices = [_choices(s, b, a, away=away) for s, a in zip(slots, allowances, strict=True)]
    if away:
        missing = [max(0.0, b.target_wh - step * i) for i in range(LEVELS + 1)]
        last = [_TARGET_PENALTY * wh / 1000 for wh in missing]
    else:
        mean = sum(slot.buy for slot in slots) / max(1, len(slots))
        worth = max(0.0, mean) * b.discharge_efficiency / 1000
        last = [-worth * step * i for i in range(LEVELS + 1)]
    values: list[_Values] = []
    # The first round only finds what energy at the end is worth: every fourth level does.
    for stride in (1,) if away else (4, 1):
        value = _Values(last, step)
        values = [value]
        for index in range(len(slots) - 1, -1, -1):
            slot, net, allow = slots[index], nets[index], allowances[index]
            costs = []
            for level in range(0, LEVELS + 1, stride):
                stored, best = step * level, inf
                for mode in choices[index]:
                    flow = flow_in(mode, stored, slot, net, b, allow)
                    cost = money(flow, slot) + _extras(mode, flow, slot, b, allow)
                    cost += value(flow.stored)
                    if cost < best:
                        best = cost
                costs.append(best)
            value = _Values(costs, step * stride)
            values.append(value)
        values.reverse()
        # What was spent on the way is the same for all levels: only differences count.
        base = values[0](b.reserve_wh)
        # Never worth more than the dearest kWh: a limit that holds today need not hold tomorrow.
        most = max((max(slot.buy, slot.sell, 0.0) for slot in slots), default=0.0) / 1000
        last = [
            max(values[0](step * i) - base, -most * max(0.0, step * i - b.reserve_wh))
            for i in range(LEVELS + 1)
        ]
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A planning problem; every function below takes it whole."""

    now: float
    slots: Sequence[Slot]
    nets: Sequence[float]
    battery: Battery
    allowances: Sequence[Allowance]
    values: Sequence[_Values]
    zone: tzinfo

    def total(self, index: int, mode: Mode, stored: float) -> tuple[float, Flow]:
        """Return the objective from a slot on, if it is spent in a mode."""
        slot, allow = self.slots[index], self.allowances[index]
        flow = flow_in(mode, stored, slot, self.nets[index], self.battery, allow)
        cost = money(flow, slot) + _extras(mode, flow, slot, self.battery, allow)
        return cost + self.values[index + 1](flow.stored), flow

    def best(self, index: int, stored: float) -> Mode:
        """Return the best mode; automatic where another isn't better."""
        choices = _choices(
            self.slots[index],
            self.battery,
            self.allowances[index],
            away=self.battery.deadline is not None,
        )
        return min(choices, key=lambda mode: self.total(index, mode, stored)[0])

    def worth(self, index: int, stored: float, keeps: Mode, gives: Mode) -> float | None:
        """Return what a kWh is worth that one mode keeps and another gives away or doesn't get.

        With hurdles: ``keeps`` was the better choice where this exceeds the price.
        """
        cost_keeps, kept = self.total(index, keeps, stored)
        cost_gives, given = self.total(index, gives, stored)
        moved = kept.grid - given.grid
        if moved <= 0.5:
            return None
        slot = self.slots[index]
        spent = money(kept, slot) - money(given, slot)
        return (spent - (cost_keeps - cost_gives)) / moved * 1000

    def reason(self, index: int, mode: Mode, stored: float, flow: Flow) -> Reason:
        """Say why, and only what is true."""
        slot, net, b = self.slots[index], self.nets[index], self.battery
        if slot.committed_wh > 0:
            committed_w = round(slot.committed_wh * 3600 / slot.seconds)
            return Reason("delivers", {"committed_w": committed_w})
        if b.deadline is not None and mode is Mode.CHARGE:
            local = local_time(b.deadline, self.zone)
            return Reason(
                "charges_to_deadline",
                {
                    "buy": price(slot.buy),
                    "need_wh": round(max(0.0, b.target_wh - stored)),
                    "until": clock_text(local.hour * 60 + local.minute),
                },
            )
        if mode is Mode.CHARGE and slot.response == "absorb":
            return Reason("absorb_planned", {"reward": price(slot.reward)})
        automatic_keeps = net < 0
        pairs = {
            Mode.AUTO: (Mode.AUTO, Mode.HOLD) if automatic_keeps else (Mode.HOLD, Mode.AUTO),
            Mode.HOLD: (Mode.AUTO, Mode.HOLD) if automatic_keeps else (Mode.HOLD, Mode.AUTO),
            Mode.CHARGE: (Mode.CHARGE, Mode.AUTO if automatic_keeps else Mode.HOLD),
            Mode.DISCHARGE: (Mode.HOLD if automatic_keeps else Mode.AUTO, Mode.DISCHARGE),
        }
        keeps, gives = pairs[mode]
        worth = self.worth(index, stored, keeps, gives)
        if worth is None:
            if abs(net) <= 0.5:
                return Reason("balanced")
            if net > 0:
                return Reason(
                    "at_reserve", {"reserve_percent": round(100 * b.reserve_wh / b.capacity_wh)}
                )
            return Reason("battery_full", {"sell": price(slot.sell)})
        importing = mode is Mode.CHARGE or (mode is not Mode.DISCHARGE and net > 0)
        against = slot.buy if importing else slot.sell
        if (worth - against) * (1 if mode is keeps else -1) < -1e-4 and mode is not Mode.AUTO:
            lost = self.total(index, mode, stored)[0]
            lost -= self.total(index, self.best(index, stored), stored)[0]
            return Reason("plan_kept", {"saving": price(max(0.0, lost))})
        key = {
            (Mode.AUTO, True): "house_from_battery",
            (Mode.AUTO, False): "surplus_charges",
            (Mode.HOLD, True): "house_from_microgrid",
            (Mode.HOLD, False): "surplus_sells",
            (Mode.CHARGE, True): "buys_to_charge",
            (Mode.DISCHARGE, False): "sells_stored",
        }[mode, importing]
        name = "buy" if importing else "sell"
        return Reason(key, {name: price(against), "worth": price(worth)})


def _follow(
    case: _Case, stored: float, runs: Sequence[float], fixed: Mapping[float, Mode]
) -> tuple[list[PlannedSlot], float]:
    """Walk through the slots, in given modes where there are any; return them and the objective."""
    planned, objective = [], 0.0
    b = case.battery
    for index, slot in enumerate(case.slots):
        allow, net = case.allowances[index], case.nets[index]
        away = b.deadline is not None
        mode = fixed.get(slot.start, Mode.AUTO)
        if slot.start not in fixed or mode not in _choices(slot, b, allow, away=away):
            mode = case.best(index, stored)
        flow = flow_in(mode, stored, slot, net, b, allow)
        cost = money(flow, slot)
        objective += cost + _extras(mode, flow, slot, b, allow)
        hours = slot.seconds / 3600
        moved = flow.given or (flow.grid - net)
        planned.append(
            PlannedSlot(
                start=slot.start,
                seconds=slot.seconds,
                mode=mode,
                power_w=round(moved / hours) if mode in (Mode.CHARGE, Mode.DISCHARGE) else 0,
                stored_wh=flow.stored,
                grid_wh=flow.grid,
                sold_wh=flow.sold,
                bought_wh=flow.bought,
                missed_wh=flow.missed,
                runs_wh=runs[index],
                pv_wh=slot.pv_wh,
                load_wh=slot.load_wh,
                buy=slot.buy,
                sell=slot.sell,
                house="sun" if net <= 0 else "battery" if flow.given * 2 >= net else "microgrid",
                surplus=(
                    "none" if net >= 0 else "charge" if (flow.grid - net) * 2 >= -net else "sell"
                ),
                cost=cost,
                sell_rule=allow.sell_rule if flow.sold > 0 else "",
                reason=case.reason(index, mode, stored, flow),
            )
        )
        stored = flow.stored
    return planned, objective + case.values[-1](stored)


def place_runs(
    slots: Sequence[Slot],
    needs: Sequence[Need],
    before: Mapping[str, Mapping[float, float]] | None = None,
    *,
    stored_worth: float = 0.0,
) -> tuple[dict[str, dict[float, float]], dict[str, float]]:
    """Find the cheapest slots for each need, in the order given, within the permit's limit.

    Surplus costs what it would be sold for, or what it is worth to a battery that would take it
    (``stored_worth`` per kWh); the rest costs what it is bought for. A run that was planned
    before (``before``) stays unless another time is cheaper by a cent a kWh.

    Returns:
        Wh by slot for each appliance, and what doesn't fit before its deadline (Wh).
    """
    free = [slot.pv_wh - slot.load_wh - slot.committed_wh for slot in slots]
    runs: dict[str, dict[float, float]] = {}
    short: dict[str, float] = {}
    for need in needs:
        stay = (before or {}).get(need.appliance_id, {})
        room: list[float] = []
        for index, slot in enumerate(slots):
            begin, end = max(slot.start, need.earliest), slot.start + slot.seconds
            seconds = max(0.0, min(end, need.deadline) - begin)
            power = need.power_w
            if slot.limit_w is not None:
                power = min(power, slot.limit_w + free[index] * 3600 / slot.seconds)
                if power < (need.power_w if need.least_w is None else need.least_w):
                    power = 0.0
            room.append(power * seconds / 3600)

        def cost(index: int, energy: float, stay: Mapping[float, float] = stay) -> float:
            slot = slots[index]
            own = min(energy, max(0.0, free[index]))
            spent = own * max(slot.sell, stored_worth) + (energy - own) * slot.buy
            spent += energy * slot.adder
            return spent - (_STAY_PER_KWH * energy if stay.get(slot.start) else 0.0)

        left = need.energy_wh
        chosen: dict[int, float] = {}
        if need.whole:
            best = inf
            for first in range(len(slots)):
                taken, total, rest = {}, 0.0, need.energy_wh
                for index in range(first, len(slots)):
                    if rest <= 0 or room[index] <= 0:
                        break
                    taken[index] = min(rest, room[index])
                    total += cost(index, taken[index])
                    rest -= taken[index]
                # Unfinished runs only if no run can finish: the most energy first.
                total += max(0.0, rest) * 1e6
                if taken and total < best:
                    best, chosen, left = total, taken, max(0.0, rest)
        else:
            usable = [index for index in range(len(slots)) if room[index] > 0]
            usable.sort(key=lambda index: (cost(index, room[index]) / room[index], index))
            for index in usable:
                if left <= 0:
                    break
                chosen[index] = min(left, room[index])
                left -= chosen[index]
        for index, energy in chosen.items():
            free[index] -= energy
        runs[need.appliance_id] = {slots[i].start: wh for i, wh in sorted(chosen.items())}
        if left > 0.5:
            short[need.appliance_id] = left
    return runs, short


def make_plan(
    now: float,
    slots: Sequence[Slot],
    *,
    battery: Battery | None = None,
    stored_wh: float = 0.0,
    allowances: Sequence[Allowance] | None = None,
    needs: Sequence[Need] = (),
    zone: tzinfo = UTC,
    old: Plan | None = None,
    keep_for: float = KEEP_FOR,
) -> Plan:
    """Return a plan; the old one, brought up to date, unless a new one is worth the change.

    ``slots`` begin with the running one and follow each other. Without a battery only runs are
    placed.
    """
    stored_worth = 0.0
    if battery is not None and slots:
        surplus = sum(max(0.0, slot.pv_wh - slot.load_wh) for slot in slots)
        if surplus * battery.charge_efficiency < battery.capacity_wh - stored_wh:
            stored_worth = sum(slot.buy for slot in slots) / len(slots)
            stored_worth *= battery.charge_efficiency * battery.discharge_efficiency
    before = None if old is None else old.runs
    runs, short = place_runs(slots, needs, before, stored_worth=stored_worth)
    taken = [sum(run.get(slot.start, 0.0) for run in runs.values()) for slot in slots]
    real = battery
    # A home without a battery is one whose battery can hold next to nothing.
    battery = battery or Battery(
        capacity_wh=1e-6, max_charge_w=0, max_discharge_w=0, modes=frozenset({Mode.AUTO})
    )
    if battery.deadline is not None:
        deadline = battery.deadline
        slots = [slot for slot in slots if slot.start + slot.seconds <= deadline] or slots[:1]
        taken = taken[: len(slots)]
    allowed = list(allowances or [NOTHING] * len(slots))[: len(slots)]
    nets = [slot.load_wh + wh - slot.pv_wh for slot, wh in zip(slots, taken, strict=True)]
    case = _Case(
        now=now,
        slots=slots,
        nets=nets,
        battery=battery,
        allowances=allowed,
        values=_cost_to_go(slots, nets, battery, allowed),
        zone=zone,
    )
    stored = min(max(stored_wh, 0.0), battery.capacity_wh)
    planned, objective = _follow(case, stored, taken, {})
    revision = 0 if old is None else old.revision + 1
    if old is not None:
        modes = {slot.start: slot.mode for slot in old.slots}
        kept, kept_objective = _follow(case, stored, taken, modes)
        if kept_objective - objective <= keep_for:
            planned, objective, revision = kept, kept_objective, old.revision
    automatic, _ = _follow(
        replace(case, allowances=[NOTHING] * len(slots)),
        stored,
        taken,
        {slot.start: Mode.AUTO for slot in slots},
    )
    if real is None:
        planned = [replace(slot, stored_wh=0.0) for slot in planned]
    return Plan(
        made_at=now,
        slots=tuple(planned),
        runs=runs,
        short_wh=short,
        cost=sum(slot.cost for slot in planned),
        cost_automatic=sum(slot.cost for slot in automatic),
        objective=objective,
        revision=revision,
    )
