"""The home's secrets on disk: readable by Home Assistant's user alone, written atomically.

They are not part of the config entry, whose file every user of the machine can read.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any, Final, TypedDict

from homeassistant.core import HomeAssistant
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers.storage import Store
from homeassistant.util import dt as dt_util
from homeassistant.util import slugify
from homeassistant.util.hass_dict import HassKey

from .const import DOMAIN

_VERSION: Final = 1


class Secrets(TypedDict):
    """What signs in the home's name."""

    msp_id: str
    certificate: str
    key: str
    meter_key: str
    salt_secret: str


class NotStored(HomeAssistantError):
    """Keys couldn't be written to the disk."""


async def _store_for_good(store: Store[dict[str, Any]], data: Mapping[str, Any]) -> None:
    """Store, and read it again: a store that can't write says so in the log alone.

    Raises:
        NotStored: it isn't on disk.
    """
    await store.async_save(dict(data))
    if await store.async_load() != data:
        raise NotStored(f"{store.path} can't be written: see whether the disk is full")


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
    """Store the home's secrets.

    Raises:
        NotStored: they aren't on disk.
    """
    await _store_for_good(_store(hass, unique_id), secrets)


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
_PENDING_LOCK: HassKey[asyncio.Lock] = HassKey(f"{DOMAIN}_pending_keys")
"""Several homes may join or be renewed at once, and their keys lie in one file."""


def _pending_store(hass: HomeAssistant) -> Store[dict[str, Any]]:
    return Store(hass, _VERSION, f"{DOMAIN}.pending.keys", private=True, atomic_writes=True)


def _pending_lock(hass: HomeAssistant) -> asyncio.Lock:
    return hass.data.setdefault(_PENDING_LOCK, asyncio.Lock())


def _pending_name(ca_url: str, enrollment_id: str, secret: str) -> str:
    return hashlib.sha256("\n".join((ca_url, enrollment_id, secret)).encode()).hexdigest()


async def async_pending_key(
    hass: HomeAssistant, ca_url: str, enrollment_id: str, secret: str, new_key_pem: bytes
) -> bytes:
    """Return the key that an invitation was tried with before, else store ``new_key_pem``.

    It is on disk before the secret is used: a CA gives the same key the same certificate again,
    so an invitation works even if its answer, the dialog, or Home Assistant was lost.

    Raises:
        NotStored: it can't be put on disk, so the secret must not be used.
    """
    store = _pending_store(hass)
    now = dt_util.utcnow().timestamp()
    name = _pending_name(ca_url, enrollment_id, secret)
    async with _pending_lock(hass):
        known = {
            each: one
            for each, one in (await store.async_load() or {}).items()
            if one["at"] > now - _PENDING_S
        }
        if name in known:
            return str(known[name]["key"]).encode()
        newest = sorted(known, key=lambda one: float(known[one]["at"]))[-_PENDING_LIMIT + 1 :]
        kept = {one: known[one] for one in newest}
        await _store_for_good(store, {**kept, name: {"key": new_key_pem.decode(), "at": now}})
    return new_key_pem


async def async_forget_pending(hass: HomeAssistant, key_pem: str) -> None:
    """Delete the pending copy of a key that its entry has stored for good."""
    store = _pending_store(hass)
    async with _pending_lock(hass):
        known = await store.async_load() or {}
        kept = {name: one for name, one in known.items() if one["key"] != key_pem}
        if not kept:
            await store.async_remove()
        elif len(kept) != len(known):
            await store.async_save(kept)
