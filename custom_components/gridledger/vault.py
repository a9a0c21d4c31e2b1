"""The home's secrets on disk: readable by Home Assistant's user alone, written atomically.

They are not part of the config entry, whose file every user of the machine can read.
"""

from typing import Any, Final, TypedDict

from homeassistant.core import HomeAssistant
from homeassistant.helpers.storage import Store
from homeassistant.util import slugify

from .const import DOMAIN

_VERSION: Final = 1


class Secrets(TypedDict):
    """What signs in the home's name."""

    msp_id: str
    certificate: str
    key: str
    meter_key: str
    salt_secret: str


def _store(hass: HomeAssistant, unique_id: str) -> Store[dict[str, Any]]:
    key = f"{DOMAIN}.{slugify(unique_id)}.keys"
    return Store(hass, _VERSION, key, private=True, atomic_writes=True)


def outbox_path(hass: HomeAssistant, unique_id: str) -> str:
    """Return where the home's outbox lies."""
    return hass.config.path(".storage", f"{DOMAIN}.{slugify(unique_id)}.db")


async def async_load_secrets(hass: HomeAssistant, unique_id: str) -> Secrets | None:
    """Return the home's secrets, None where they are missing."""
    return await _store(hass, unique_id).async_load()  # type: ignore[return-value]


async def async_save_secrets(hass: HomeAssistant, unique_id: str, secrets: Secrets) -> None:
    """Store the home's secrets."""
    await _store(hass, unique_id).async_save(dict(secrets))


async def async_remove_secrets(hass: HomeAssistant, unique_id: str) -> None:
    """Delete the home's secrets."""
    await _store(hass, unique_id).async_remove()
