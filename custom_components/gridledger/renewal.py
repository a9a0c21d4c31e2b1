"""Renewal of the home's certificate, before it expires and without its owner.

The successor's key is stored before its certificate is asked for, and takes over between two
calls: nothing is reloaded and no stream ends. A wallet's identity comes from elsewhere and is
renewed there; its owner is told in time.
"""

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from homeassistant.core import HomeAssistant
from homeassistant.helpers import issue_registry as ir
from homeassistant.helpers.aiohttp_client import async_get_clientsession
from homeassistant.util import dt as dt_util

from . import vault
from .client import GridLedgerError, Identity, generate_key_pem, reenroll
from .const import CONF_BUNDLE, CONF_CA_URL, DOMAIN, LOGGER

if TYPE_CHECKING:
    from .coordinator import GridLedgerConfigEntry
    from .session import LedgerSession

LOOK_EACH: Final = timedelta(hours=6)
_TELL_BEFORE: Final = timedelta(days=7)


def renewal_due(identity: Identity) -> datetime:
    """Return when a certificate is to be renewed: once two thirds of its life are over."""
    certificate = identity.certificate
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - life / 3


async def async_renew_if_due(
    hass: HomeAssistant, entry: GridLedgerConfigEntry, session: LedgerSession
) -> bool:
    """Renew the certificate if it is due; return whether it was renewed."""
    identity = session.client.identity
    now = dt_util.utcnow()
    if now < renewal_due(identity):
        return False
    if CONF_CA_URL in entry.data:
        try:
            await _renew(hass, entry, session)
        except (GridLedgerError, vault.NotStored) as error:
            LOGGER.debug("The certificate isn't renewed yet: %s", error)
        else:
            ir.async_delete_issue(hass, DOMAIN, f"certificate_expires_{entry.entry_id}")
            return True
    if now > identity.certificate.not_valid_after_utc - _TELL_BEFORE:
        entry.async_start_reauth(hass)
        ir.async_create_issue(
            hass,
            DOMAIN,
            f"certificate_expires_{entry.entry_id}",
            is_fixable=False,
            severity=ir.IssueSeverity.ERROR,
            translation_key="certificate_expires",
            translation_placeholders={
                "home": entry.title,
                "date": identity.certificate.not_valid_after_utc.date().isoformat(),
            },
        )
    return False


async def _renew(hass: HomeAssistant, entry: GridLedgerConfigEntry, session: LedgerSession) -> None:
    unique_id, ca_url = str(entry.unique_id), entry.data[CONF_CA_URL]
    old = session.client.identity
    secrets = await vault.async_load_secrets(hass, unique_id)
    if secrets is None:
        raise GridLedgerError("the home's keys are gone")
    # Until the new certificate is stored the key belongs to the old one's successor.
    key_pem = await vault.async_pending_key(
        hass, ca_url, unique_id, f"{old.certificate.serial_number:x}", generate_key_pem()
    )
    credentials = await reenroll(
        ca_url,
        old,
        entry.data[CONF_BUNDLE].encode(),
        session=async_get_clientsession(hass),
        key_pem=key_pem,
    )
    identity = Identity(old.msp_id, credentials.certificate_pem, credentials.key_pem)
    replaced = secrets["key"]
    secrets["certificate"] = credentials.certificate_pem.decode()
    secrets["key"] = credentials.key_pem.decode()

    async def store() -> None:
        await vault.async_save_secrets(hass, unique_id, secrets)
        await vault.async_forget_pending(hass, replaced)
        await vault.async_forget_pending(hass, secrets["key"])

    # The entry waits for it before it ends: a removed home's keys must not come back.
    await asyncio.shield(entry.async_create_task(hass, store(), name=f"{entry.title} keys"))
    session.client.identity = identity
    LOGGER.info(
        "%s: the certificate is renewed until %s",
        entry.title,
        identity.certificate.not_valid_after_utc.date(),
    )
