"""GridLedger: a home's meter, battery and wallet on its microgrid's ledger.

This module is imported before the integration's requirements are installed: it must not import
``client`` or anything that does, nor grpc nor protobuf.
"""

import importlib
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from homeassistant.const import EVENT_HOMEASSISTANT_STOP
from homeassistant.core import Event, HomeAssistant
from homeassistant.exceptions import ConfigEntryAuthFailed, ConfigEntryError
from homeassistant.helpers import config_validation as cv
from homeassistant.helpers import issue_registry as ir
from homeassistant.helpers.typing import ConfigType

from . import dashboard, vault, websocket
from .const import (
    CONF_BUNDLE,
    CONF_CHANNEL,
    CONF_CONNECTION,
    CONF_GATEWAYS,
    CONF_PLANT,
    DOMAIN,
    ISSUES,
    PLATFORMS,
)
from .plant_form import SEVERAL_SENSORS
from .services import async_setup_services

if TYPE_CHECKING:
    from .coordinator import GridLedgerConfigEntry

CONFIG_SCHEMA = cv.config_entry_only_config_schema(DOMAIN)


async def async_setup(hass: HomeAssistant, config: ConfigType) -> bool:
    """Register actions, websocket commands and the dashboard's module."""
    async_setup_services(hass)
    websocket.async_setup_commands(hass)
    await dashboard.async_serve_module(hass)
    return True


async def async_setup_entry(hass: HomeAssistant, entry: GridLedgerConfigEntry) -> bool:
    """Set up a home. It loads whether or not its ledger can be reached."""
    unique_id = str(entry.unique_id)
    secrets = await vault.async_load_secrets(hass, unique_id)
    if secrets is None:
        raise ConfigEntryAuthFailed(translation_domain=DOMAIN, translation_key="secrets_missing")
    for module in ("archive", "coordinator", "keeper", "market"):
        await hass.async_add_import_executor_job(importlib.import_module, f"{__package__}.{module}")
    from . import clock_check, renewal
    from .background import async_keep_doing
    from .client import GatewayClient, GridLedgerError, Identity, MeterKey
    from .coordinator import GridLedgerRuntime, HomeCoordinator
    from .entity import async_link_devices
    from .keeper import HomeKeeper
    from .outbox import Outbox, OutboxError
    from .selling import Seller
    from .session import LedgerSession
    from .statistics import async_keep_statistics

    try:
        identity = Identity(
            secrets["msp_id"], secrets["certificate"].encode(), secrets["key"].encode()
        )
        client = GatewayClient(
            entry.data[CONF_GATEWAYS],
            entry.data[CONF_CHANNEL],
            identity,
            entry.data[CONF_BUNDLE].encode(),
        )
        meter_key = MeterKey(secrets["meter_key"].encode(), bytes.fromhex(secrets["salt_secret"]))
        outbox = await hass.async_add_executor_job(Outbox, Path(vault.outbox_path(hass, unique_id)))
    except (GridLedgerError, OutboxError, OSError, ValueError, KeyError) as error:
        raise ConfigEntryError(
            translation_domain=DOMAIN,
            translation_key="unusable",
            translation_placeholders={"reason": str(error)},
        ) from error
    plant = entry.data[CONF_PLANT]
    session = LedgerSession(hass, entry, client, outbox, meter_key, entry.data[CONF_CONNECTION])
    home = HomeCoordinator(hass, entry, session, outbox, plant)
    session.home = home
    seller = Seller(hass, session, plant)
    keeper = HomeKeeper(hass, entry, session, home, seller)
    entry.runtime_data = GridLedgerRuntime(session, home, seller, outbox, keeper)
    try:
        await session.async_load()
        await home.async_start()
        await keeper.async_start()
        await dashboard.async_add_resource(hass)
        await hass.config_entries.async_forward_entry_setups(entry, PLATFORMS)
        async_link_devices(hass, entry)
    except BaseException:
        await _async_stop(hass, entry)  # an entry that failed to load must not go on listening
        raise
    session.async_start()
    for what, apart, look in (
        ("certificate", renewal.LOOK_EACH, renewal.async_renew_if_due),
        ("clock", clock_check.LOOK_EACH, clock_check.async_check_clock),
    ):
        async_keep_doing(hass, entry, what, apart, partial(look, hass, entry, session))
    async_keep_statistics(hass, entry, session)

    async def stop(_: Event) -> None:
        await _async_stop(hass, entry)

    entry.async_on_unload(hass.bus.async_listen_once(EVENT_HOMEASSISTANT_STOP, stop))
    loaded = dict(entry.data)

    async def updated(hass: HomeAssistant, entry: GridLedgerConfigEntry) -> None:
        """Reload where to connect or what is measured has changed; all else applies in place."""
        if dict(entry.data) != loaded:
            hass.config_entries.async_schedule_reload(entry.entry_id)
        else:
            await keeper.async_configure()

    entry.async_on_unload(entry.add_update_listener(updated))
    return True


async def _async_stop(hass: HomeAssistant, entry: GridLedgerConfigEntry) -> None:
    """End everything, each part whatever another one raises.

    What was measured is stored while devices are waited for, which may take a minute.
    """
    runtime = entry.runtime_data
    storing = hass.async_create_task(runtime.home.async_stop())
    async with AsyncExitStack() as stack:  # from the last to the first
        stack.push_async_callback(hass.async_add_executor_job, runtime.outbox.close)
        stack.push_async_callback(runtime.session.async_stop)
        stack.push_async_callback(lambda: storing)
        await runtime.keeper.async_stop()


async def async_unload_entry(hass: HomeAssistant, entry: GridLedgerConfigEntry) -> bool:
    """Unload a home: nothing keeps running, everything cut is stored."""
    if not await hass.config_entries.async_unload_platforms(entry, PLATFORMS):
        return False
    await _async_stop(hass, entry)
    return True


async def async_remove_entry(hass: HomeAssistant, entry: GridLedgerConfigEntry) -> None:
    """Delete the home's keys and readings, and with the last home the dashboard's module."""
    unique_id = str(entry.unique_id)
    secrets = await vault.async_load_secrets(hass, unique_id)
    await vault.async_remove_secrets(hass, unique_id)
    if secrets is not None:
        await vault.async_forget_pending(hass, secrets["key"])
    await vault.keeper_store(hass, unique_id).async_remove()
    path = vault.outbox_path(hass, unique_id)

    def remove() -> None:
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                Path(path + suffix).unlink()

    await hass.async_add_executor_job(remove)
    for issue in ISSUES:
        ir.async_delete_issue(hass, DOMAIN, f"{issue}_{entry.entry_id}")
    if not hass.config_entries.async_entries(DOMAIN):
        await dashboard.async_remove_resource(hass)


async def async_migrate_entry(hass: HomeAssistant, entry: GridLedgerConfigEntry) -> bool:
    """Bring an older entry up to date. One of a newer major version is refused.

    1.2: a field of the plant that takes several sensors holds a list, whatever it held before.
    """
    if entry.version > 1:
        return False
    if entry.minor_version < 2:
        plant = {
            key: [given] if key in SEVERAL_SENSORS and isinstance(given, str) else given
            for key, given in entry.data[CONF_PLANT].items()
        }
        data = {**entry.data, CONF_PLANT: plant}
        hass.config_entries.async_update_entry(entry, data=data, minor_version=2)
    return True
