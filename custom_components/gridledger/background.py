"""What a loaded home looks after now and every so often."""

from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers.event import async_track_time_interval

if TYPE_CHECKING:
    from .coordinator import GridLedgerConfigEntry


@callback
def async_keep_doing(
    hass: HomeAssistant,
    entry: GridLedgerConfigEntry,
    what: str,
    apart: timedelta,
    work: Callable[[], Coroutine[Any, Any, object]],
) -> None:
    """Begin ``work`` now and each time ``apart``, in the background; it ends with the entry."""

    @callback
    def begin(_: datetime | None = None) -> None:
        entry.async_create_background_task(hass, work(), name=f"{entry.title} {what}")

    entry.async_on_unload(async_track_time_interval(hass, begin, apart, cancel_on_shutdown=True))
    begin()
