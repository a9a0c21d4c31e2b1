"""Names and limits of the integration."""

from logging import Logger, getLogger
from typing import Final

from homeassistant.const import Platform

DOMAIN: Final = "gridledger"
LOGGER: Logger = getLogger(__package__)

PLATFORMS: Final = [
    Platform.BINARY_SENSOR,
    Platform.CALENDAR,
    Platform.EVENT,
    Platform.SELECT,
    Platform.SENSOR,
    Platform.SWITCH,
]

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
CONF_INVITATION: Final = "invitation"
CONF_OTHER: Final = "other"
CONF_WAY: Final = "way"
CONF_IDENTITY: Final = "identity"
CONF_ADMINISTRATORS_ONLY: Final = "administrators_only"
CONF_DAILY_LIMIT: Final = "daily_limit"
CONF_BUY_PRICE: Final = "buy_price"
CONF_SELL_PRICE: Final = "sell_price"

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
SERVICE_PLACE_ORDER: Final = "place_order"
SERVICE_CANCEL_ORDER: Final = "cancel_order"
SERVICE_LIST_ORDERS: Final = "list_orders"
SERVICE_GET_PRICES: Final = "get_prices"
SERVICE_GET_ARCHIVE: Final = "get_archive"
SERVICE_GET_PROOF: Final = "get_proof"
SERVICE_EXPORT_DATA: Final = "export_data"
SERVICE_LEAVE_NETWORK: Final = "leave_network"
SERVICE_GET_BILLS: Final = "get_bills"
SERVICE_PAY_BILL: Final = "pay_bill"
SERVICE_TOP_UP: Final = "top_up"
SERVICE_CLAIM_CERTIFICATE: Final = "claim_certificate"
SERVICE_DELEGATE: Final = "delegate"
SERVICE_END_DELEGATION: Final = "end_delegation"
SERVICE_JOIN_RESPONSE_EVENT: Final = "join_response_event"
SERVICE_GET_PLAN: Final = "get_plan"
SERVICE_RUN_APPLIANCE: Final = "run_appliance"
SERVICE_OVERRIDE: Final = "override"

ATTR_SIDE: Final = "side"
ATTR_PRICE: Final = "price"
ATTR_PRODUCT: Final = "product"
ATTR_PARTNER: Final = "partner"
ATTR_GIFT: Final = "gift"
ATTR_START: Final = "start"
ATTR_END: Final = "end"
ATTR_ORDER_ID: Final = "order_id"
ATTR_DAYS: Final = "days"
ATTR_FORMAT: Final = "format"
ATTR_TRANSACTION_ID: Final = "transaction_id"
ATTR_CONFIRM: Final = "confirm"

DEFAULT_PRODUCT: Final = "ANY"

ISSUES: Final = (
    "certificate_expires",
    "clock_off",
    "foreign_reading",
    "permit",
    "readings_refused",
    "sensors_disagree",
)
"""Kinds of repair issues; a home's own carries its entry's id behind."""

EVENT_TRADE_COMMITTED: Final = "committed"
SIGNAL_TRADE: Final = f"{DOMAIN}_trade"
SIGNAL_ORDER: Final = f"{DOMAIN}_order"
SIGNAL_PRICE: Final = f"{DOMAIN}_price"
SIGNAL_BILL: Final = f"{DOMAIN}_bill"
SIGNAL_PERMIT: Final = f"{DOMAIN}_permit"
SIGNAL_SURPLUS: Final = f"{DOMAIN}_surplus"
SIGNAL_RESPONSE: Final = f"{DOMAIN}_response"
"""Sent with an entry's id and data, for triggers."""
ORDER_EVENTS: Final = {"open": "placed", "cleared": "cleared", "cancelled": "cancelled"}
EVENTS_ORDER: Final = ("placed", "cleared", "cancelled", "changed")
PERMIT_STATES: Final = ("granted", "warned", "limited", "suspended")
EVENTS_BILL: Final = ("issued", "due", "reminder", "final_notice", "paid")
EVENTS_RESPONSE: Final = ("announced", "cancelled", "joined", "left", "settled")
EVENTS_FAULT: Final = ("appeared", "cleared")
