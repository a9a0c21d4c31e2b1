"""What the actions have in common: whom they mean, who may ask, and how they say no.

Imported at start, so this module imports nothing that needs installed requirements.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final

import voluptuous as vol
from homeassistant.config_entries import ConfigEntry
from homeassistant.core import (
    Context,
    HomeAssistant,
    ServiceCall,
    ServiceResponse,
    SupportsResponse,
)
from homeassistant.exceptions import ServiceValidationError
from homeassistant.helpers import config_validation as cv

from .const import ATTR_CONFIG_ENTRY, CONF_ADMINISTRATORS_ONLY, DOMAIN

type Action = tuple[
    str, Callable[[ServiceCall], Coroutine[Any, Any, ServiceResponse]], Any, SupportsResponse
]
"""Name, handler, schema, and whether it answers."""

HOME: Final[dict[vol.Marker, Any]] = {vol.Optional(ATTR_CONFIG_ENTRY): cv.string}
"""Part of each action's schema: the home that is meant, if there are several."""


def invalid(key: str, **placeholders: str) -> ServiceValidationError:
    """Return the error for a call that cannot be followed, in the owner's language."""
    return ServiceValidationError(
        translation_domain=DOMAIN, translation_key=key, translation_placeholders=placeholders
    )


async def async_is_administrator(hass: HomeAssistant, context: Context | None) -> bool:
    """Whether an administrator asks, or an automation of theirs."""
    user_id = None if context is None else context.user_id
    if user_id is None:
        return True
    user = await hass.auth.async_get_user(user_id)
    return user is not None and user.is_admin


async def async_check_trader(
    hass: HomeAssistant, entry: ConfigEntry, context: Context | None
) -> None:
    """Check that whoever asks may trade in a home's name.

    Raises:
        ServiceValidationError: only administrators may, and this is none.
    """
    if entry.options.get(CONF_ADMINISTRATORS_ONLY) and not await async_is_administrator(
        hass, context
    ):
        raise invalid("administrators_only")
