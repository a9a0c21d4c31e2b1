"""What Home Assistant's own parts say of a home: its conditions, its calendar, its statistics."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from homeassistant.components.recorder import get_instance
from homeassistant.components.recorder.statistics import statistics_during_period
from homeassistant.components.recorder.tasks import SynchronizeTask
from homeassistant.core import HomeAssistant
from homeassistant.helpers import condition
from homeassistant.util import dt as dt_util

LISTED_ORDER = {
    "order_id": "A",
    "side": "offer",
    "product": "ANY",
    "interval_start": "1750420800",
    "energy_wh": "100",
    "price_micro_per_kwh": "100000",
}
"""An order as `book:Orders` lists it, without its state."""


async def holds(hass: HomeAssistant, config: dict[str, Any]) -> bool:
    """Whether a condition holds, as an automation asks."""
    validated = await condition.async_validate_condition_config(hass, config)
    check = await condition.async_from_config(hass, validated)
    return bool(check(hass))


async def calendar_events(
    hass: HomeAssistant,
    entity_id: str,
    *,
    before: timedelta = timedelta(0),
    after: timedelta = timedelta(hours=1),
) -> list[dict[str, Any]]:
    """What a calendar shows around now."""
    now = dt_util.utcnow()
    answer: Any = await hass.services.async_call(
        "calendar",
        "get_events",
        {
            "entity_id": entity_id,
            "start_date_time": (now - before).isoformat(),
            "end_date_time": (now + after).isoformat(),
        },
        blocking=True,
        return_response=True,
    )
    events: list[dict[str, Any]] = answer[entity_id]["events"]
    return events


async def recorded(hass: HomeAssistant) -> None:
    """Wait until the recorder has written everything.

    Its own way to wait for that does not count what has left the queue and is being written.
    """
    done: asyncio.Future[None] = hass.loop.create_future()
    get_instance(hass).queue_task(SynchronizeTask(done))
    await done


async def statistics(
    hass: HomeAssistant,
    ids: Iterable[str],
    period: Literal["hour", "day"],
    kind: Literal["sum", "change"],
) -> Any:
    """What the recorder's statistics of all time say, once everything is written."""
    await recorded(hass)
    return await get_instance(hass).async_add_executor_job(
        statistics_during_period,
        hass,
        datetime.fromtimestamp(0, UTC),
        None,
        set(ids),
        period,
        None,
        {kind},
    )
