"""The actions ``get_plan``, ``run_appliance`` and ``override``.

Registered at start, so this module imports nothing that needs installed requirements.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import voluptuous as vol
from homeassistant.core import (
    ServiceCall,
    ServiceResponse,
    SupportsResponse,
)
from homeassistant.helpers import config_validation as cv
from homeassistant.util import dt as dt_util

from .actions import HOME, Action, invalid
from .const import (
    SERVICE_GET_PLAN,
    SERVICE_OVERRIDE,
    SERVICE_RUN_APPLIANCE,
)
from .engine import Appliance, Plan
from .subentries import CONF_ENTITY

if TYPE_CHECKING:
    from .coordinator import GridLedgerRuntime
    from .keeper import HomeKeeper

ATTR_APPLIANCE: Final = "appliance"
ATTR_DURATION: Final = "duration"
ATTR_MODE: Final = "mode"

_DURATION: Any = vol.All(cv.positive_time_period, vol.Range(max=cv.time_period("24:00:00")))
GET_PLAN_SCHEMA: Any = vol.Schema(HOME)
RUN_SCHEMA: Any = vol.Schema(
    {
        **HOME,
        vol.Required(ATTR_APPLIANCE): cv.string,
        vol.Optional(ATTR_DURATION, default="01:00:00"): _DURATION,
    }
)
OVERRIDE_SCHEMA: Any = vol.Schema(
    {
        **HOME,
        vol.Required(ATTR_APPLIANCE): cv.string,
        vol.Required(ATTR_MODE): vol.In(("on", "off", "automatic")),
        vol.Optional(ATTR_DURATION, default="01:00:00"): _DURATION,
    }
)


def keeper_actions(
    runtime_of: Callable[[ServiceCall], GridLedgerRuntime],
) -> tuple[Action, ...]:
    """Return the actions; ``runtime_of`` finds the home that a call means."""

    async def get_plan(call: ServiceCall) -> ServiceResponse:
        runtime = runtime_of(call)
        keeper = runtime.keeper
        data = keeper.data
        names = {a.id: a.name for a in keeper.dispatcher.settings.appliances}
        return {
            "currency": runtime.session.data.currency,
            "plan": None if data.plan is None else plan_as_response(data.plan, names),
            "dry_run": None if data.dry_plan is None else plan_as_response(data.dry_plan, names),
            "appliances": {
                names[key]: {
                    "on": made.on,
                    "reason": made.reason.text,
                    "reason_key": made.reason.key,
                    "reason_values": dict(made.reason.values),
                }
                for key, made in data.decision.appliances.items()
                if key in names
            },
        }

    async def run(call: ServiceCall) -> ServiceResponse:
        keeper = runtime_of(call).keeper
        appliance = _appliance(keeper, call.data[ATTR_APPLIANCE])
        seconds = call.data[ATTR_DURATION].total_seconds()
        keeper.async_override(appliance.id, True, seconds)
        return _decided(keeper, appliance)

    async def override(call: ServiceCall) -> ServiceResponse:
        keeper = runtime_of(call).keeper
        appliance = _appliance(keeper, call.data[ATTR_APPLIANCE])
        on = {"on": True, "off": False}.get(call.data[ATTR_MODE])
        keeper.async_override(appliance.id, on, call.data[ATTR_DURATION].total_seconds())
        return _decided(keeper, appliance)

    return (
        (SERVICE_GET_PLAN, get_plan, GET_PLAN_SCHEMA, SupportsResponse.ONLY),
        (SERVICE_RUN_APPLIANCE, run, RUN_SCHEMA, SupportsResponse.OPTIONAL),
        (SERVICE_OVERRIDE, override, OVERRIDE_SCHEMA, SupportsResponse.OPTIONAL),
    )


def _appliance(keeper: HomeKeeper, wanted: str) -> Appliance:
    """Return the appliance with a name, or that switches an entity.

    Raises:
        ServiceValidationError: there is none, or more than one.
    """
    known = keeper.dispatcher.settings.appliances
    entry = keeper.config_entry
    found = [
        a
        for a in known
        if wanted == a.id
        or wanted.casefold() == a.name.casefold()
        or wanted == entry.subentries[a.id].data.get(CONF_ENTITY)
    ]
    if len(found) != 1:
        raise invalid(
            "appliance_not_found",
            appliance=wanted,
            known=", ".join(sorted(a.name for a in known)) or "–",
        )
    return found[0]


def _decided(keeper: HomeKeeper, appliance: Appliance) -> ServiceResponse:
    made = keeper.data.decision.appliances[appliance.id]
    until = made.override_until
    return {
        "appliance": appliance.name,
        "on": made.on,
        "reason": made.reason.text,
        "until": None if until is None else dt_util.utc_from_timestamp(until).isoformat(),
    }


def plan_as_response(plan: Plan, names: dict[str, str]) -> dict[str, Any]:
    """Return a plan in the units of people."""

    def iso(instant: float) -> str:
        return dt_util.utc_from_timestamp(instant).isoformat()

    return {
        "made_at": iso(plan.made_at),
        "cost": round(plan.cost, 4),
        "saving": round(plan.cost_automatic - plan.cost, 4),
        "runs": {
            names[key]: [
                {"start": iso(start), "energy_kwh": round(wh / 1000, 3)}
                for start, wh in run.items()
            ]
            for key, run in plan.runs.items()
            if key in names
        },
        "cars": {
            names[key]: [
                {
                    "start": iso(slot.start),
                    "mode": str(slot.mode),
                    "stored_kwh": round(slot.stored_wh / 1000, 3),
                    "reason": slot.reason.text,
                    "reason_key": slot.reason.key,
                    "reason_values": dict(slot.reason.values),
                }
                for slot in car.slots
            ]
            for key, car in plan.cars.items()
            if key in names
        },
        "slots": [
            {
                "start": iso(slot.start),
                "end": iso(slot.start + slot.seconds),
                "mode": str(slot.mode),
                "house": slot.house,
                "surplus": slot.surplus,
                "stored_kwh": round(slot.stored_wh / 1000, 3),
                "grid_kwh": round(slot.grid_wh / 1000, 3),
                "pv_kwh": round(slot.pv_wh / 1000, 3),
                "load_kwh": round(slot.load_wh / 1000, 3),
                "appliances_kwh": round(slot.runs_wh / 1000, 3),
                "sold_kwh": round(slot.sold_wh / 1000, 3),
                "buy_price": round(slot.buy, 5),
                "sell_price": round(slot.sell, 5),
                "reason": slot.reason.text,
                "reason_key": slot.reason.key,
                "reason_values": dict(slot.reason.values),
            }
            for slot in plan.slots
        ],
    }
