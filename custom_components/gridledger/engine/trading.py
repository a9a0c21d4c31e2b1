"""What an owner's trading rules permit, and the orders that follow from a plan.

A rule that isn't enabled permits nothing. One that runs dry permits nothing either, but is planned
beside the real plan to show what it would have done and earned. Limits are hard: reserve, price,
hours and the daily limit bound what the planner may choose, and :func:`due_orders` looks again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, tzinfo
from enum import StrEnum
from math import floor
from typing import Final

from .model import Battery, Mode, Need, Slot, Span, local_time
from .planner import KEEP_FOR, NOTHING, Allowance, Plan, PlannedSlot, make_plan

_LEAST_ORDER_WH: Final = 50
_LONGEST_S: Final = 86_400.0

type Traded = Mapping[tuple[str, date], float]
"""What each rule has traded for a local day (Wh)."""


class RuleKind(StrEnum):
    """What a rule lets GridLedger do."""

    SELL = "sell"
    """Sell stored energy."""
    BUY = "buy"
    """Buy to charge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TradingRule:
    """An owner's permission, with its limits. Off, and dry, until the owner says otherwise."""

    id: str
    name: str
    kind: RuleKind
    enabled: bool = False
    dry_run: bool = True
    price_limit: float = 0.0
    """Per kWh after fees: the least for selling, the most for buying."""
    spread: float = 0.0
    """What each kWh must earn beyond its best other use, net of losses, fees and wear."""
    reserve_percent: float = 20.0
    """Selling leaves this much in the battery; buying ends at ``target_percent``."""
    hours: Span | None = None
    daily_limit_wh: float = 5000.0
    max_power_w: float | None = None

    def permits(self, slot: Slot, zone: tzinfo) -> bool:
        """Return whether hours and price permit a slot."""
        if self.hours is not None:
            # The whole slot has to lie in the hours.
            last = slot.start + slot.seconds - 1
            if not all(self.hours.holds(local_time(t, zone)) for t in (slot.start, last)):
                return False
        if self.kind is RuleKind.SELL:
            # Nobody pays to sell what is stored, whatever the limit.
            return slot.sell >= max(0.0, self.price_limit)
        return slot.buy <= self.price_limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Stored energy to be sold in one run of slots. Energy is Wh."""

    rule_id: str
    request_id: str
    """The same for the same rule and time, so that it is never sold twice."""
    start: float
    end: float
    energy_wh: int
    least_price: float
    dry_run: bool
    max_power_w: float | None = None


def _day(instant: float, zone: tzinfo) -> date:
    return local_time(instant, zone).date()


def request_prefix(rule_id: str) -> str:
    """Return what the request ids of a rule's orders begin with: a sale is known by it."""
    return f"RULE-{''.join(c for c in rule_id.upper() if c.isalnum())[:40]}-"


def allow(
    slots: Sequence[Slot],
    rules: Sequence[TradingRule],
    battery: Battery,
    *,
    zone: tzinfo,
    dry: bool = False,
    max_export_w: float | None = None,
) -> list[Allowance]:
    """Return what enabled rules permit in each slot, before daily limits.

    ``dry``: as if dry rules were in earnest. Of several rules for a slot the one with the smallest
    spread counts, its own limits with it.
    """
    active = [rule for rule in rules if rule.enabled and (dry or not rule.dry_run)]
    active.sort(key=lambda rule: rule.spread)
    found = []
    for slot in slots:
        allowance = NOTHING
        selling = buying = False
        for rule in active:
            if not rule.permits(slot, zone):
                continue
            reserve = battery.capacity_wh * rule.reserve_percent / 100
            if rule.kind is RuleKind.SELL and not selling:
                limits = [battery.max_discharge_w, rule.max_power_w, max_export_w]
                power = min(limit for limit in limits if limit is not None)
                selling = True
                allowance = replace(
                    allowance,
                    sell_wh=min(power * slot.seconds / 3600, rule.daily_limit_wh),
                    sell_reserve_wh=max(battery.reserve_wh, reserve),
                    sell_hurdle=rule.spread,
                    sell_rule=rule.id,
                )
            elif rule.kind is RuleKind.BUY and not buying:
                buying = True
                allowance = replace(allowance, buy=True, buy_hurdle=rule.spread, buy_rule=rule.id)
        found.append(allowance)
    return found


def plan_with_rules(
    now: float,
    slots: Sequence[Slot],
    rules: Sequence[TradingRule],
    battery: Battery,
    stored_wh: float,
    *,
    zone: tzinfo,
    traded_wh: Traded | None = None,
    max_export_w: float | None = None,
    dry: bool = False,
    needs: Sequence[Need] = (),
    old: Plan | None = None,
    keep_for: float = KEEP_FOR,
) -> Plan:
    """Plan under the rules, within their daily limits (local days).

    Where a day's limit would be passed, its best priced slots keep theirs and the rest is planned
    anew without.
    """
    allowances = allow(slots, rules, battery, zone=zone, dry=dry, max_export_w=max_export_w)
    limits = {rule.id: rule.daily_limit_wh for rule in rules}
    done = traded_wh or {}
    # A limit that is used up needs no first try.
    for index, slot in enumerate(slots):
        a, day = allowances[index], _day(slot.start, zone)
        if a.sell_rule and limits[a.sell_rule] <= done.get((a.sell_rule, day), 0.0):
            a = replace(a, sell_wh=0.0, sell_rule="")
        if a.buy_rule and limits[a.buy_rule] <= done.get((a.buy_rule, day), 0.0):
            a = replace(a, buy=False, buy_rule="")
        allowances[index] = a

    def plan() -> Plan:
        return make_plan(
            now,
            slots,
            battery=battery,
            stored_wh=stored_wh,
            allowances=allowances,
            needs=needs,
            zone=zone,
            old=old,
            keep_for=keep_for,
        )

    made = plan()
    # Each round leaves less to trade, so this ends.
    for _ in range(8):
        changed = False
        used: dict[tuple[str, date], float] = {}
        sold = [(s.sell, i) for i, s in enumerate(made.slots) if s.sold_wh > 0]
        bought = [(-s.buy, i) for i, s in enumerate(made.slots) if s.bought_wh > 0]
        for kind, ranked in (("sell", sold), ("buy", bought)):
            for _, index in sorted(ranked, reverse=True):
                a, planned = allowances[index], made.slots[index]
                rule_id = a.sell_rule if kind == "sell" else a.buy_rule
                if not rule_id:
                    continue  # a car that has to leave charged
                day = _day(planned.start, zone)
                before = used.get((rule_id, day), done.get((rule_id, day), 0.0))
                energy = planned.sold_wh if kind == "sell" else planned.bought_wh
                room = limits[rule_id] - before
                if energy > room + 1e-6:
                    changed = True
                    energy = max(0.0, room)
                    if kind == "sell":
                        a = replace(a, sell_wh=energy)
                    elif energy > 0:
                        a = replace(a, buy_wh=energy)
                    else:
                        a = replace(a, buy=False, buy_rule="")
                    allowances[index] = a
                used[rule_id, day] = before + energy
        if not changed:
            return made
        # Slots that were not chosen may not take the place of those that were cut.
        chosen = {index for _, index in sold} | {index for _, index in bought}
        full = {key for key, energy in used.items() if energy >= limits[key[0]] - 1e-6}
        for index in range(len(made.slots)):
            a, day = allowances[index], _day(slots[index].start, zone)
            if index not in chosen and (a.sell_rule, day) in full:
                allowances[index] = replace(a, sell_wh=0.0, sell_rule="")
            if index not in chosen and (a.buy_rule, day) in full:
                allowances[index] = replace(allowances[index], buy=False, buy_rule="")
        old = None  # its modes would sell beyond the limit again
        made = plan()
    # Still beyond a limit after eight rounds: no trade at all is always within it.
    allowances[:] = [NOTHING] * len(slots)
    return plan()


@dataclass(frozen=True, slots=True, kw_only=True)
class Car:
    """A car that can give back, as it stands now. Its battery has a deadline."""

    appliance_id: str
    battery: Battery
    stored_wh: float


def plan_home(
    now: float,
    slots: Sequence[Slot],
    rules: Sequence[TradingRule],
    battery: Battery | None,
    stored_wh: float | None,
    *,
    zone: tzinfo,
    cars: Sequence[Car] = (),
    traded_wh: Traded | None = None,
    max_export_w: float | None = None,
    dry: bool = False,
    needs: Sequence[Need] = (),
    old: Plan | None = None,
) -> Plan:
    """Plan a home: its battery under the rules, appliances, and cars that can give back.

    A car is a battery with a deadline that is asked after the home's own: it feeds what that
    leaves to be bought, and is charged where that is cheapest. Then the home's battery is planned
    once more around it. Where a home has no battery of its own, rules sell from its first car.
    """
    has_battery = battery is not None and stored_wh is not None

    def home(around: Sequence[Slot]) -> Plan:
        if battery is None or stored_wh is None:
            return make_plan(now, around, needs=needs, zone=zone, old=old)
        return plan_with_rules(
            now,
            around,
            rules,
            battery,
            stored_wh,
            zone=zone,
            traded_wh=traded_wh,
            max_export_w=max_export_w,
            dry=dry,
            needs=needs,
            old=old,
        )

    made = home(slots)
    if not cars:
        return made
    planned: dict[str, Plan] = {}
    moved = [0.0] * len(slots)
    runs: dict[str, dict[float, float]] = {}
    for index, car in enumerate(cars):
        rest = [
            replace(slot, pv_wh=0.0, load_wh=at.grid_wh + more, committed_wh=0.0)
            for slot, at, more in zip(slots, made.slots, moved, strict=True)
        ]
        plan = plan_with_rules(
            now,
            rest,
            rules if not has_battery and index == 0 else (),
            car.battery,
            car.stored_wh,
            zone=zone,
            traded_wh=traded_wh,
            max_export_w=max_export_w,
            dry=dry,
            old=None if old is None else old.cars.get(car.appliance_id),
        )
        planned[car.appliance_id] = plan
        charged = {}
        for at, slot in enumerate(plan.slots):
            moved[at] += slot.grid_wh - rest[at].load_wh
            if slot.mode is Mode.CHARGE and slot.grid_wh > rest[at].load_wh:
                charged[slot.start] = slot.grid_wh - rest[at].load_wh
        runs[car.appliance_id] = charged
    around = [replace(s, load_wh=s.load_wh + more) for s, more in zip(slots, moved, strict=True)]
    made = home(around)

    def shown(planned: PlannedSlot, slot: Slot, more: float) -> PlannedSlot:
        return replace(planned, load_wh=slot.load_wh, runs_wh=planned.runs_wh + more)

    return replace(
        made,
        slots=tuple(shown(*parts) for parts in zip(made.slots, slots, moved, strict=True)),
        runs={**made.runs, **runs},
        cars=planned,
    )


def due_orders(
    plan: Plan,
    rules: Sequence[TradingRule],
    now: float,
    *,
    zone: tzinfo,
    gate_s: float,
    lead_s: float = 3600.0,
    longest_s: float = _LONGEST_S,
    traded_wh: Traded | None = None,
) -> list[Order]:
    """Return the orders that are to be placed now.

    A run of selling slots is ordered once its first slot begins within ``lead_s``: later plans may
    still change it until then. A slot whose gate (``gate_s`` before its start) has closed is left
    out. An order is at most ``longest_s`` long and lies within a local day, whose limit it counts
    for, and within a day of UTC, for which suppliers publish their rates.
    """
    by_id = {rule.id: rule for rule in rules}
    orders: list[Order] = []
    run: list[tuple[float, float, float, float, str]] = []
    spent = dict(traded_wh or {})

    def close() -> None:
        if not run:
            return
        rule = by_id[run[0][4]]
        key = (rule.id, _day(run[0][0], zone))
        left = rule.daily_limit_wh - spent.get(key, 0.0)
        energy = floor(min(sum(part[2] for part in run), left))
        if run[0][0] <= now + lead_s and energy >= _LEAST_ORDER_WH:
            spent[key] = spent.get(key, 0.0) + energy
            orders.append(
                Order(
                    rule_id=rule.id,
                    request_id=f"{request_prefix(rule.id)}{int(run[0][0])}",
                    start=run[0][0],
                    end=run[-1][0] + run[-1][1],
                    energy_wh=energy,
                    least_price=max(rule.price_limit, min(part[3] for part in run) - 1e-6),
                    dry_run=rule.dry_run,
                    max_power_w=rule.max_power_w,
                )
            )
        run.clear()

    for slot in plan.slots:
        rule = by_id.get(slot.sell_rule)
        usable = (
            rule is not None
            and rule.enabled
            and slot.sold_wh > 0
            and slot.start - gate_s > now
            and slot.sell >= rule.price_limit
        )
        follows = run and (
            run[-1][0] + run[-1][1] == slot.start
            and run[-1][4] == slot.sell_rule
            and _day(run[0][0], zone) == _day(slot.start, zone)
            and _day(run[0][0], UTC) == _day(slot.start, UTC)
            and slot.start + slot.seconds - run[0][0] <= longest_s
        )
        if run and not (usable and follows):
            close()
        if usable:
            run.append((slot.start, slot.seconds, slot.sold_wh, slot.sell, slot.sell_rule))
    close()
    return orders
