"""Names and limits of the integration."""

from logging import Logger, getLogger
from typing import Final

from homeassistant.const import Platform

DOMAIN: Final = "gridledger"
LOGGER: Logger = getLogger(__package__)

PLATFORMS: Final = [Platform.BINARY_SENSOR, Platform.EVENT, Platform.SENSOR]

CONF_GATEWAYS: Final = "gateways"
CONF_CA_URL: Final = "ca_url"
CONF_CHANNEL: Final = "channel"
CONF_CONNECTION: Final = "connection_id"
CONF_ENROLLMENT_ID: Final = "enrollment_id"
CONF_SECRET: Final = "secret"  # noqa: S105
CONF_FINGERPRINT: Final = "fingerprint"
CONF_BUNDLE: Final = "ca_bundle"
CONF_BUNDLE_FILE: Final = "ca_bundle_file"
CONF_MSP_ID: Final = "msp_id"
CONF_PLANT: Final = "plant"

# The plant form. Energy sensors may be several (tariff registers, strings of panels).
CONF_GRID_IMPORT: Final = "grid_import_energy"
CONF_GRID_EXPORT: Final = "grid_export_energy"
CONF_GRID_POWER: Final = "grid_power"
CONF_PV_ENERGY: Final = "pv_energy"
CONF_PV_POWER: Final = "pv_power"
CONF_BATTERY_LEVEL: Final = "battery_level"
CONF_BATTERY_POWER: Final = "battery_power"
CONF_BATTERY_CHARGE: Final = "battery_charge_energy"
CONF_BATTERY_DISCHARGE: Final = "battery_discharge_energy"
CONF_BATTERY_CAPACITY: Final = "battery_capacity"
CONF_BATTERY_MAX_POWER: Final = "battery_max_power"
CONF_BATTERY_RESERVE: Final = "battery_reserve"
CONF_INVERT_GRID_POWER: Final = "invert_grid_power"
CONF_INVERT_BATTERY_POWER: Final = "invert_battery_power"

DEFAULT_RESERVE_PERCENT: Final = 20

CHAINCODE_METERING: Final = "metering"
CHAINCODE_ENERGY: Final = "energy"

RETENTION_S: Final = 35 * 86400
"""How long readings wait for their ledger, and how long sent ones are kept to look at."""
BATCH_READINGS: Final = 200
"""Readings in one transaction; the contract takes 1,000."""
PUBLISH_S: Final = 60
"""Own copies of power sensors change at most this often, for the recorder's sake."""
RECONCILE_S: Final = 900
"""How often the ledger is asked even if no event has come."""
TRADES_KEPT: Final = 200

ATTR_CONFIG_ENTRY: Final = "config_entry"
ATTR_ENERGY: Final = "energy"
ATTR_WINDOW_START: Final = "window_start"
ATTR_WINDOW_END: Final = "window_end"
ATTR_SUPPLIER: Final = "supplier"
ATTR_MIN_PRICE: Final = "minimum_price"
ATTR_QUOTE: Final = "quote"
ATTR_REQUEST_ID: Final = "request_id"

SERVICE_QUOTE_SALE: Final = "quote_sale"
SERVICE_SELL_ENERGY: Final = "sell_energy"

ISSUES: Final = ("foreign_reading", "readings_refused")
"""Kinds of repair issues; a home's own carries its entry's id behind."""

EVENT_TRADE_COMMITTED: Final = "committed"
