"""Serve the dashboard's module and have Lovelace load it."""

from pathlib import Path
from typing import Any, Final

from homeassistant.components.http import StaticPathConfig
from homeassistant.core import HomeAssistant
from homeassistant.loader import async_get_integration

from .const import DOMAIN, LOGGER

_FOLDER_URL: Final = f"/{DOMAIN}"
MODULE_URL: Final = f"{_FOLDER_URL}/gridledger.js"
"""Imports the folder's other modules with its own version."""
_FOLDER: Final = Path(__file__).parent / "frontend"


async def async_serve_module(hass: HomeAssistant) -> None:
    """Serve the modules under a path of our own."""
    await hass.http.async_register_static_paths(
        [StaticPathConfig(_FOLDER_URL, str(_FOLDER), cache_headers=True)]
    )


def _resources(hass: HomeAssistant) -> Any:
    """Return Lovelace's list of resources where we may write to it."""
    lovelace = hass.data.get("lovelace")
    resources = getattr(lovelace, "resources", None)
    return resources if hasattr(resources, "async_create_item") else None


async def _url(hass: HomeAssistant) -> str:
    return f"{MODULE_URL}?v={(await async_get_integration(hass, DOMAIN)).version}"


async def async_add_resource(hass: HomeAssistant) -> None:
    """Register the module as a Lovelace resource, or bring its version up to date."""
    url = await _url(hass)
    resources = _resources(hass)
    if resources is None:
        if "frontend" in hass.config.components:
            # Resources in YAML are their owner's: load the module with every page instead.
            from homeassistant.components.frontend import add_extra_js_url

            LOGGER.debug("Lovelace resources can't be written, loading %s with every page", url)
            add_extra_js_url(hass, url)
        return
    await resources.async_get_info()  # loads the list
    for item in resources.async_items():
        if item["url"].partition("?")[0] == MODULE_URL:
            if item["url"] != url:
                await resources.async_update_item(item["id"], {"url": url})
            return
    await resources.async_create_item({"res_type": "module", "url": url})


async def async_remove_resource(hass: HomeAssistant) -> None:
    """Take the module out of Lovelace's resources, or of what each page loads."""
    if (resources := _resources(hass)) is None:
        if "frontend" in hass.config.components:
            from homeassistant.components.frontend import remove_extra_js_url

            remove_extra_js_url(hass, await _url(hass))
        return
    await resources.async_get_info()
    for item in list(resources.async_items()):
        if item["url"].partition("?")[0] == MODULE_URL:
            await resources.async_delete_item(item["id"])
