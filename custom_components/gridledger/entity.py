"""What all entities share: which device they belong to, and their names."""

from collections.abc import Collection
from enum import StrEnum
from math import inf
from typing import Any, Final, override

from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers import device_registry as dr
from homeassistant.helpers.device_registry import DeviceEntryType, DeviceInfo
from homeassistant.helpers.entity import EntityDescription
from homeassistant.helpers.update_coordinator import CoordinatorEntity, DataUpdateCoordinator
from homeassistant.util import dt as dt_util

from .const import CONF_CHANNEL, CONF_CONNECTION, DOMAIN
from .coordinator import GridLedgerConfigEntry

NEWS_W: Final = 50.0
"""A power that has changed by so much is news."""

_APART_S: Final = 55.0
"""News are written this far apart at least, that is once a minute, as powers are measured."""
_LONG_RUN_S: Final = 240.0
"""And this far apart in the long run."""
_IN_A_ROW: Final = 10.0
"""So many may follow each other before they are that far apart."""
_SLOW_S: Final = 300.0
"""What is no news is written this often."""


@callback
def async_link_devices(hass: HomeAssistant, entry: GridLedgerConfigEntry) -> None:
    """Hang the home's other devices below the home."""
    registry = dr.async_get(hass)
    base = str(entry.unique_id)
    devices = dr.async_entries_for_config_entry(registry, entry.entry_id)
    home = next((d for d in devices if (DOMAIN, base) in d.identifiers), None)
    for device in devices:
        if home is not None and device.id != home.id and device.via_device_id != home.id:
            registry.async_update_device(device.id, via_device_id=home.id)


class Device(StrEnum):
    """The devices of one home."""

    HOME = "home"
    PV = "pv"
    BATTERY = "battery"
    MARKET = "market"


@callback
def async_drop_devices(
    hass: HomeAssistant, entry: GridLedgerConfigEntry, kept: Collection[Device]
) -> None:
    """Take the home's devices out that its plant has no sensors for any more."""
    registry = dr.async_get(hass)
    base = str(entry.unique_id)
    stale = {
        (DOMAIN, f"{base}_{device}") for device in (Device.PV, Device.BATTERY) if device not in kept
    }
    for device in dr.async_entries_for_config_entry(registry, entry.entry_id):
        if device.identifiers & stale:
            registry.async_update_device(device.id, remove_config_entry_id=entry.entry_id)


class GridLedgerEntity[C: DataUpdateCoordinator[Any]](CoordinatorEntity[C]):
    """Base of all entities."""

    _attr_has_entity_name = True

    def __init__(
        self,
        entry: GridLedgerConfigEntry,
        coordinator: C,
        description: EntityDescription,
        device: Device,
    ) -> None:
        """Name the entity after its entry and description."""
        super().__init__(coordinator)
        self.entity_description = description
        base = str(entry.unique_id)
        self._attr_unique_id = f"{base}_{description.key}"
        if device is Device.HOME:
            self._attr_device_info = DeviceInfo(
                identifiers={(DOMAIN, base)},
                name=entry.title,
                manufacturer="GridLedger",
                model=f"Home {entry.data[CONF_CONNECTION]}",
            )
        else:
            self._attr_device_info = DeviceInfo(
                identifiers={(DOMAIN, f"{base}_{device}")},
                manufacturer="GridLedger",
                model=f"Channel {entry.data[CONF_CHANNEL]}" if device is Device.MARKET else None,
                translation_key=device,
                translation_placeholders={"home": entry.title},
                entry_type=DeviceEntryType.SERVICE if device is Device.MARKET else None,
            )

    @property
    @override
    def available(self) -> bool:
        """Coordinators here never fail as a whole; entities decide by their value."""
        return True


class Sparing:
    """Says when a state is worth a row in the recorder.

    What matters is written at once. News (a power that has changed, another reason) wait for a
    minute, and for four minutes once there were ten in a row: a kettle is seen, and a windy day
    isn't written minute by minute. What is no news is written every five minutes.
    """

    _shown: tuple[Any, Any] | None = None
    _shown_at = -inf
    _left = _IN_A_ROW
    _counted_at = inf

    def _is_due(self, matters: Any, detail: Any = None, *, news: float = 0.0) -> bool:
        """Return whether to write now, and count it. Numbers are news from ``news`` on."""
        now = dt_util.utcnow().timestamp()
        ago_s = now - self._shown_at
        self._left = min(_IN_A_ROW, self._left + max(0.0, now - self._counted_at) / _LONG_RUN_S)
        self._counted_at = now
        if self._shown is not None and matters == self._shown[0] and ago_s >= 0:
            last = self._shown[1]
            if detail == last or (
                news and abs(detail - last) < news and (detail == 0) is (last == 0)
            ):
                if ago_s < _SLOW_S:
                    return False
            elif ago_s < _APART_S or self._left < 1:
                return False
        self._shown, self._shown_at = (matters, detail), now
        self._left = max(0.0, self._left - 1)
        return True
