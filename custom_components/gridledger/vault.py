"""The home's secrets on disk: readable by Home Assistant's user alone, written atomically.

They are not part of the config entry, whose file every user of the machine can read.
"""

import hashlib
from typing import Any, Final, TypedDict

from homeassistant.core import HomeAssistant
from homeassistant.helpers.storage import Store
from homeassistant.util import dt as dt_util
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


def keeper_store(hass: HomeAssistant, unique_id: str) -> Store[dict[str, Any]]:
    """Return where what the home does by itself is remembered; no secrets are in it."""
    return Store(hass, _VERSION, f"{DOMAIN}.{slugify(unique_id)}.keeper", atomic_writes=True)


# Keys of enrolments under way ---------------------------------------------------------------

_PENDING_S: Final = 30 * 86400
"""How long the key of an enrolment that never ended is kept."""
_PENDING_LIMIT: Final = 20


def _pending_store(hass: HomeAssistant) -> Store[dict[str, Any]]:
    return Store(hass, _VERSION, f"{DOMAIN}.pending.keys", private=True, atomic_writes=True)


def _pending_name(ca_url: str, enrollment_id: str, secret: str) -> str:
    return hashlib.sha256("\n".join((ca_url, enrollment_id, secret)).encode()).hexdigest()


async def async_pending_key(
    hass: HomeAssistant, ca_url: str, enrollment_id: str, secret: str, new_key_pem: bytes
) -> bytes:
    """Return the key that an invitation was tried with before, else store ``new_key_pem``.

    It is on disk before the secret is used: a CA gives the same key the same certificate again,
    so an invitation works even if its answer, the dialog, or Home Assistant was lost.
    """
    store = _pending_store(hass)
    now = dt_util.utcnow().timestamp()
    known = {
        name: one
        for name, one in (await store.async_load() or {}).items()
        if one["at"] > now - _PENDING_S
    }
    name = _pending_name(ca_url, enrollment_id, secret)
    if name in known:
        return str(known[name]["key"]).encode()
    newest = sorted(known, key=lambda one: float(known[one]["at"]))[-_PENDING_LIMIT + 1 :]
    kept = {one: known[one] for one in newest}
    await store.async_save({**kept, name: {"key": new_key_pem.decode(), "at": now}})
    return new_key_pem


async def async_forget_pending(hass: HomeAssistant, key_pem: str) -> None:
    """Delete the pending copy of a key that its entry has stored for good."""
    store = _pending_store(hass)
    known = await store.async_load() or {}
    kept = {name: one for name, one in known.items() if one["key"] != key_pem}
    if not kept:
        await store.async_remove()
    elif len(kept) != len(known):
        await store.async_save(kept)
