"""Why something was decided, as a person reads it.

A reason is a key and its numbers. The English text is here; other languages have the same keys in
``translations/*.json`` under ``common.reason_…``, and a test holds the two together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

REASONS: Final[Mapping[str, str]] = {
    # Appliances
    "unavailable": "not switched: the appliance is unavailable",
    "manual": "left alone: automatic is off",
    "override_on": "on for {left_min} min more: you said so",
    "override_off": "off for {left_min} min more: you said so",
    "by_hand_on": "on: switched by hand {ago_min} min ago, automatic again in {left_min} min",
    "by_hand_off": "off: switched by hand {ago_min} min ago, automatic again in {left_min} min",
    "no_response": "does not follow: asked {attempts} times, last {ago_min} min ago",
    "permit": "off: supply is suspended, so nothing is started from the microgrid",
    "sensors_lost": "off: the grid's power has not been known for {ago_min} min",
    "sensors_gap": "as it is: the grid's power has not been known for {ago_s} s",
    "not_connected": "off: no car is connected",
    "satisfied": "off: has the energy that it needs",
    "response": "off: a response event asks for less until {until}",
    "absorb": "on: a response event asks to use more until {until}",
    "limited": "off: at most {limit_w} W may be drawn, and {drawn_w} W are beside its {power_w} W",
    "committed": "off: {committed_w} W are sold for now and must be delivered",
    "daily_max": "off: has run {run_min} min today, at most {maximum_min}",
    "outside_window": "off: only between {start} and {end}",
    "starts_used": "off: started {starts} times today, at most {maximum}",
    "deadline": "on: needs {need_min} min before {until}",
    "planned": "on: planned for now at {price} per kWh, {need_min} min needed before {until}",
    "surplus_on": "on: {surplus_w} W of surplus for {power_w} W",
    "surplus_kept": "on: {surplus_w} W of surplus, off below {limit_w} W",
    "min_on": "stays on {left_min} min: switched {ago_min} min ago, minimum {minimum_min}",
    "min_off": "waits {left_min} min: switched {ago_min} min ago, minimum {minimum_min}",
    "averaging": "waits: {surplus_w} W of surplus now, its average over {window_min} min counts",
    "waits_surplus": "off: {surplus_w} W of surplus, {limit_w} W needed",
    "battery_drains": "off: the battery gives {battery_w} W",
    "battery_first": "off: the battery comes first and takes {battery_w} W of surplus",
    "fast_off": "off at once: surplus fell to {surplus_w} W",
    "waits_planned": "off: planned for {start}, {need_min} min needed before {until}",
    # Battery and the counter between house, battery and microgrid
    "surplus_charges": "surplus charges: stored it is worth {worth}, sold now {sell} per kWh",
    "surplus_sells": "surplus is sold at {sell} per kWh: stored it is worth {worth}",
    "battery_full": "surplus is sold at {sell} per kWh: the battery is full",
    "house_from_battery": "battery feeds the house: buying costs {buy}, keeping is worth {worth}",
    "house_from_microgrid": "microgrid feeds the house at {buy} per kWh: keeping is worth {worth}",
    "sale_missing": "automatic: a sale was planned for now, but nothing is sold",
    "at_reserve": "microgrid feeds the house: the battery is at its reserve of {reserve_percent} %",
    "buys_to_charge": "buys at {buy} per kWh to charge: stored it is worth {worth}",
    "charges_to_deadline": "charges at {buy} per kWh: {need_wh} Wh needed before {until}",
    "sells_stored": "sells stored energy at {sell} per kWh: keeping is worth {worth}",
    "delivers": "delivers {committed_w} W that are sold",
    "plan_kept": "as planned before: another way would save only {saving}",
    "balanced": "no surplus and no need is expected",
    "no_plan": "automatic: there is no plan yet",
    "plan_old": "automatic: the plan is {ago_min} min old",
    "battery_unknown": "automatic: the battery's level is not known",
    "battery_fault": "automatic: the battery did not follow {mode} {ago_min} min ago",
    "write_limit": "automatic: its mode was changed {writes} times today, at most {maximum}",
    "cannot": "automatic: this battery has no way to {mode}",
    "mode_waits": "stays in {mode} {left_min} min: changed {ago_min} min ago, "
    "minimum {minimum_min}",
    "permit_battery": "automatic: supply is suspended, so nothing is traded",
    "limited_battery": "automatic: at most {limit_w} W may be drawn, and the house takes "
    "{house_w} W",
    "response_battery": "automatic: a response event asks for less until {until}",
    "absorb_charges": "charges: a response event asks to use more until {until}",
    "absorb_holds": "microgrid feeds the house: a response event asks to use more until {until}",
    "absorb_planned": "charges: a response event pays {reward} for each kWh that is used more",
    # A car that gives back
    "car_feeds": "gives back {power_w} W: buying costs {buy}, keeping is worth {worth}",
    "car_delivers": "gives back {power_w} W of what is sold",
    "car_responds": "gives back {power_w} W: a response event asks for less until {until}",
}
"""Every reason there is, with its English text."""

type Value = float | int | str


@dataclass(frozen=True, slots=True)
class Reason:
    """A key of :data:`REASONS` with the values of its placeholders."""

    key: str
    values: Mapping[str, Value] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Return the reason in English.

        Raises:
            KeyError: the key or one of its placeholders doesn't exist: a mistake in the engine.
        """
        return REASONS[self.key].format_map(self.values)


def price(value: float) -> str:
    """Return a price per kWh with four decimals at most."""
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def minutes(seconds: float) -> int:
    """Return whole minutes, rounded up: a wait is never told shorter than it is."""
    return max(0, int(-(-seconds // 60)))
