"""What a home does by itself: one planner and one dispatcher, without Home Assistant.

``planner`` looks 24 hours ahead: when the battery feeds the house, keeps, charges from the
microgrid or sells, and when appliances and the car that need energy by a deadline get it. It runs
every quarter of an hour and changes its mind only where that is worth more than pennies.
``dispatcher`` decides every minute what is on now, from measurements, the plan, overrides and
minimum times. ``trading`` says what the owner's rules permit and which orders are due. ``forecast``
guesses sun and load from the home's own past.

What it promises: the order of priorities is safety and permit, the owner's override, committed
delivery, demand response, deadline, reserve, money. It never sells below a reserve or outside a
rule's limits, never starts an appliance while the battery drains, keeps minimum on and off times
(an override and fast-off excepted), and each decision carries a :class:`~.reasons.Reason` that is
true. What it never does: read a clock, a sensor or the network. All of that is an argument.

Units: W, Wh, seconds, epoch seconds (UTC), and prices per kWh in the currency. Money here is an
expectation, so it is a float; what is settled is counted in integers elsewhere.
"""

from .dispatcher import Decision, Dispatcher, SafeState
from .forecast import LoadForecast, SolarForecast
from .model import (
    Appliance,
    ApplianceReading,
    Battery,
    BatteryDecision,
    Kind,
    Mode,
    Need,
    Response,
    Settings,
    Slot,
    Snapshot,
    Span,
)
from .planner import Plan, PlannedSlot, make_plan
from .reasons import REASONS, Reason
from .trading import Car, Order, RuleKind, TradingRule, due_orders, plan_home

__all__ = [
    "REASONS",
    "Appliance",
    "ApplianceReading",
    "Battery",
    "BatteryDecision",
    "Car",
    "Decision",
    "Dispatcher",
    "Kind",
    "LoadForecast",
    "Mode",
    "Need",
    "Order",
    "Plan",
    "PlannedSlot",
    "Reason",
    "Response",
    "RuleKind",
    "SafeState",
    "Settings",
    "Slot",
    "Snapshot",
    "SolarForecast",
    "Span",
    "TradingRule",
    "due_orders",
    "make_plan",
    "plan_home",
]
