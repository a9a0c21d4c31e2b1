"""Joining a network: where it is and who we are, what the home has, and only then enrolment.

Enrolment uses a secret that works once, so it comes last, once nothing is left to ask: a dialog
closed before has cost nothing, and a failure after it is repeated with what was gained.
"""

import secrets as random_secrets
from collections.abc import Mapping
from typing import Any, Final

import voluptuous as vol
from cryptography import x509
from homeassistant.components.file_upload import process_uploaded_file
from homeassistant.components.sensor import SensorDeviceClass
from homeassistant.config_entries import ConfigFlow, ConfigFlowResult
from homeassistant.helpers.aiohttp_client import async_get_clientsession
from homeassistant.helpers.selector import (
    BooleanSelector,
    EntitySelector,
    EntitySelectorConfig,
    FileSelector,
    FileSelectorConfig,
    NumberSelector,
    NumberSelectorConfig,
    NumberSelectorMode,
    TextSelector,
    TextSelectorConfig,
    TextSelectorType,
)

from . import vault
from .client import (
    AuthenticationFailed,
    AuthorityInfo,
    ConnectionFailed,
    Credentials,
    GridLedgerError,
    InvalidInput,
    Timeout,
    enroll,
    fetch_info,
    fingerprint,
    generate_key_pem,
)
from .client.enrolment import certificate_attributes, same_fingerprint
from .client.gateway import check_addresses
from .const import (
    CONF_BATTERY_CAPACITY,
    CONF_BATTERY_CHARGE,
    CONF_BATTERY_DISCHARGE,
    CONF_BATTERY_LEVEL,
    CONF_BATTERY_MAX_POWER,
    CONF_BATTERY_POWER,
    CONF_BATTERY_RESERVE,
    CONF_BUNDLE,
    CONF_BUNDLE_FILE,
    CONF_CA_URL,
    CONF_CHANNEL,
    CONF_CONNECTION,
    CONF_ENROLLMENT_ID,
    CONF_FINGERPRINT,
    CONF_GATEWAYS,
    CONF_GRID_EXPORT,
    CONF_GRID_IMPORT,
    CONF_GRID_POWER,
    CONF_INVERT_BATTERY_POWER,
    CONF_INVERT_GRID_POWER,
    CONF_MSP_ID,
    CONF_PLANT,
    CONF_PV_ENERGY,
    CONF_PV_POWER,
    CONF_SECRET,
    DEFAULT_RESERVE_PERCENT,
    DOMAIN,
    LOGGER,
)
from .energy_preferences import plant_from_preferences

_BUNDLE_LIMIT_BYTES: Final = 1 << 20
_LINE = TextSelector()
_PASSWORD = TextSelector(TextSelectorConfig(type=TextSelectorType.PASSWORD))
_MULTILINE = TextSelector(TextSelectorConfig(multiline=True))

USER_SCHEMA: Any = vol.Schema(
    {
        vol.Required(CONF_GATEWAYS): _LINE,
        vol.Required(CONF_CA_URL): TextSelector(TextSelectorConfig(type=TextSelectorType.URL)),
        vol.Required(CONF_CHANNEL): _LINE,
        vol.Required(CONF_ENROLLMENT_ID): _LINE,
        vol.Required(CONF_SECRET): _PASSWORD,
        vol.Optional(CONF_FINGERPRINT): _LINE,
        vol.Optional(CONF_BUNDLE): _MULTILINE,
        vol.Optional(CONF_BUNDLE_FILE): FileSelector(
            FileSelectorConfig(accept=".pem,.crt,application/x-pem-file")
        ),
    }
)


def _entities(device_class: SensorDeviceClass, *, multiple: bool = False) -> EntitySelector:
    return EntitySelector(
        EntitySelectorConfig(
            filter={"domain": "sensor", "device_class": device_class},
            multiple=multiple,
        )
    )


def _number(low: float, high: float, step: float, unit: str) -> NumberSelector:
    return NumberSelector(
        NumberSelectorConfig(
            min=low, max=high, step=step, unit_of_measurement=unit, mode=NumberSelectorMode.BOX
        )
    )


PLANT_FIELDS: dict[vol.Marker, Any] = {
    vol.Optional(CONF_GRID_IMPORT): _entities(SensorDeviceClass.ENERGY, multiple=True),
    vol.Optional(CONF_GRID_EXPORT): _entities(SensorDeviceClass.ENERGY, multiple=True),
    vol.Optional(CONF_GRID_POWER): _entities(SensorDeviceClass.POWER),
    vol.Optional(CONF_INVERT_GRID_POWER, default=False): BooleanSelector(),
    vol.Optional(CONF_PV_ENERGY): _entities(SensorDeviceClass.ENERGY, multiple=True),
    vol.Optional(CONF_PV_POWER): _entities(SensorDeviceClass.POWER, multiple=True),
    vol.Optional(CONF_BATTERY_LEVEL): _entities(SensorDeviceClass.BATTERY),
    vol.Optional(CONF_BATTERY_CAPACITY): _number(0, 1000, 0.1, "kWh"),
    vol.Optional(CONF_BATTERY_RESERVE, default=DEFAULT_RESERVE_PERCENT): _number(0, 100, 1, "%"),
    vol.Optional(CONF_BATTERY_MAX_POWER): _number(0, 1_000_000, 1, "W"),
    vol.Optional(CONF_BATTERY_POWER): _entities(SensorDeviceClass.POWER),
    vol.Optional(CONF_INVERT_BATTERY_POWER, default=False): BooleanSelector(),
    vol.Optional(CONF_BATTERY_CHARGE): _entities(SensorDeviceClass.ENERGY, multiple=True),
    vol.Optional(CONF_BATTERY_DISCHARGE): _entities(SensorDeviceClass.ENERGY, multiple=True),
}
PLANT_SCHEMA: Any = vol.Schema(PLANT_FIELDS)
MEMBER_SCHEMA: Any = vol.Schema({vol.Required(CONF_MSP_ID): _LINE})
REAUTH_SCHEMA: Any = vol.Schema({vol.Required(CONF_SECRET): _PASSWORD})
RECONFIGURE_SCHEMA: Any = vol.Schema({vol.Required(CONF_GATEWAYS): _LINE, **PLANT_FIELDS})


def split_addresses(text: str) -> list[str]:
    """Return the gateway addresses of a line, separated by commas or blanks."""
    return [part for part in text.replace(",", " ").replace(";", " ").split() if part]


def _error_key(error: GridLedgerError) -> str:
    if isinstance(error, AuthenticationFailed):
        return "invalid_auth"
    if isinstance(error, (ConnectionFailed, Timeout)):
        return "cannot_connect"
    if isinstance(error, InvalidInput):
        return "invalid_input"
    return "unknown"


class GridLedgerConfigFlow(ConfigFlow, domain=DOMAIN):
    """Joins a home to a network."""

    VERSION = 1
    MINOR_VERSION = 1

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._network: dict[str, Any] = {}
        self._secret = ""
        self._authority: AuthorityInfo | None = None
        self._msp_id = ""
        self._plant: dict[str, Any] = {}
        self._credentials: Credentials | None = None
        # Made before enrolment and kept for the whole dialog: if the CA's answer is lost, the
        # same key is offered again.
        self._key_pem: bytes = b""

    # Joining --------------------------------------------------------------------------------

    async def async_step_user(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask where the network is, who we are there, and what to trust."""
        errors: dict[str, str] = {}
        said = ""
        if user_input is not None:
            self._secret = user_input[CONF_SECRET]
            try:
                network = await self._checked_network(user_input)
            except _FormError as error:
                errors[error.field] = error.key
            except GridLedgerError as error:
                errors["base"], said = _error_key(error), str(error)
            else:
                self._network = network
                self._async_abort_entries_match(
                    {
                        CONF_CHANNEL: network[CONF_CHANNEL],
                        CONF_ENROLLMENT_ID: network[CONF_ENROLLMENT_ID],
                    }
                )
                assert self._authority is not None
                self._msp_id = self._authority.msp_id
                if not self._msp_id:
                    return await self.async_step_member()
                return await self.async_step_plant()
        return self._user_form(user_input, errors, said)

    def _user_form(
        self, values: Mapping[str, Any] | None, errors: dict[str, str], said: str = ""
    ) -> ConfigFlowResult:
        shown = {k: v for k, v in (values or {}).items() if k not in {CONF_BUNDLE_FILE}}
        return self.async_show_form(
            step_id="user",
            data_schema=self.add_suggested_values_to_schema(USER_SCHEMA, shown),
            errors=errors,
            description_placeholders={"reason": said},
        )

    async def _checked_network(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check the form, and that the CA is there and is the one that its owner means."""
        gateways = split_addresses(given[CONF_GATEWAYS])
        try:
            check_addresses(gateways)
        except InvalidInput as error:
            raise _FormError(CONF_GATEWAYS, "invalid_address") from error
        ca_url = given[CONF_CA_URL].strip().rstrip("/")
        if not ca_url.startswith("https://"):
            raise _FormError(CONF_CA_URL, "https_needed")
        bundle = given.get(CONF_BUNDLE, "").strip().encode()
        if file_id := given.get(CONF_BUNDLE_FILE):
            bundle = await self.hass.async_add_executor_job(self._uploaded, file_id)
        wanted = given.get(CONF_FINGERPRINT, "").strip()
        if bundle:
            try:
                bundle.decode("ascii")
                found = fingerprint(bundle)
            except (InvalidInput, UnicodeDecodeError) as error:
                field = CONF_BUNDLE_FILE if given.get(CONF_BUNDLE_FILE) else CONF_BUNDLE
                raise _FormError(field, "invalid_bundle") from error
        elif wanted:
            session = async_get_clientsession(self.hass, verify_ssl=False)
            self._authority = await fetch_info(ca_url, session=session)
            bundle = self._authority.bundle_pem
            found = fingerprint(bundle)
        else:
            raise _FormError(CONF_FINGERPRINT, "trust_needed")
        if wanted and not same_fingerprint(wanted, found):
            raise _FormError(CONF_FINGERPRINT, "fingerprint_mismatch")
        # Now over TLS that only the bundle's owner can speak.
        self._authority = await fetch_info(
            ca_url, bundle, session=async_get_clientsession(self.hass)
        )
        return {
            CONF_GATEWAYS: gateways,
            CONF_CA_URL: ca_url,
            CONF_CHANNEL: given[CONF_CHANNEL].strip(),
            CONF_ENROLLMENT_ID: given[CONF_ENROLLMENT_ID].strip(),
            CONF_BUNDLE: bundle.decode("ascii"),
        }

    def _uploaded(self, file_id: str) -> bytes:
        try:
            with process_uploaded_file(self.hass, file_id) as path:
                if path.stat().st_size > _BUNDLE_LIMIT_BYTES:
                    raise _FormError(CONF_BUNDLE_FILE, "invalid_bundle")
                return path.read_bytes()
        except (ValueError, OSError) as error:
            raise _FormError(CONF_BUNDLE_FILE, "invalid_bundle") from error

    async def async_step_plant(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Show what the Energy dashboard knows of the home; enrol when it is confirmed."""
        errors: dict[str, str] = {}
        said = ""
        if user_input is None:
            suggested = self._plant or plant_from_preferences(await self._energy_preferences())
        else:
            suggested = user_input
            errors = _plant_errors(user_input)
            if not errors:
                self._plant = _without_empty(user_input)
                try:
                    return await self._enrol()
                except AuthenticationFailed as error:
                    # The secret is on the first form.
                    LOGGER.debug("Enrolment refused: %s", error)
                    shown = {
                        **self._network,
                        CONF_GATEWAYS: ", ".join(self._network[CONF_GATEWAYS]),
                    }
                    return self._user_form(shown, {CONF_SECRET: "invalid_auth"})
                except GridLedgerError as error:
                    errors["base"], said = _error_key(error), str(error)
        return self.async_show_form(
            step_id="plant",
            data_schema=self.add_suggested_values_to_schema(PLANT_SCHEMA, suggested),
            errors=errors,
            description_placeholders={"reason": said},
            last_step=True,
        )

    async def _energy_preferences(self) -> Mapping[str, Any] | None:
        if "energy" not in self.hass.config.components:
            return None
        from homeassistant.components.energy.data import async_get_manager

        return (await async_get_manager(self.hass)).data

    async def _enrol(self) -> ConfigFlowResult:
        """Use the secret, once."""
        if self._credentials is None:
            self._key_pem = self._key_pem or generate_key_pem()
            self._credentials = await enroll(
                self._network[CONF_CA_URL],
                self._network[CONF_ENROLLMENT_ID],
                self._secret,
                self._network[CONF_BUNDLE].encode(),
                session=async_get_clientsession(self.hass),
                key_pem=self._key_pem,
            )
        return await self._finish(self._credentials.msp_id or self._msp_id)

    async def async_step_member(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for the member's id where its CA doesn't tell (a real fabric-ca)."""
        if user_input is not None:
            self._msp_id = user_input[CONF_MSP_ID].strip()
            return await self.async_step_plant()
        assert self._authority is not None
        # Members are mostly called <Organisation>MSP.
        name = self._authority.organization
        suggested = {CONF_MSP_ID: f"{name}MSP"} if name else {}
        return self.async_show_form(
            step_id="member",
            data_schema=self.add_suggested_values_to_schema(MEMBER_SCHEMA, suggested),
        )

    async def _finish(self, msp_id: str) -> ConfigFlowResult:
        assert self._credentials is not None
        connection_id = _connection_id(self._credentials, self._network[CONF_ENROLLMENT_ID])
        unique_id = f"{self._network[CONF_CHANNEL]}:{connection_id}"
        await self.async_set_unique_id(unique_id)
        self._abort_if_unique_id_configured()
        await vault.async_save_secrets(
            self.hass,
            unique_id,
            {
                "msp_id": msp_id,
                "certificate": self._credentials.certificate_pem.decode(),
                "key": self._credentials.key_pem.decode(),
                "meter_key": generate_key_pem().decode(),
                "salt_secret": random_secrets.token_hex(32),
            },
        )
        return self.async_create_entry(
            title=connection_id,
            data={
                **self._network,
                CONF_MSP_ID: msp_id,
                CONF_CONNECTION: connection_id,
                CONF_PLANT: self._plant,
            },
        )

    # Later ----------------------------------------------------------------------------------

    async def async_step_reauth(self, entry_data: Mapping[str, Any]) -> ConfigFlowResult:
        """The ledger doesn't take our identity any more."""
        return await self.async_step_reauth_confirm()

    async def async_step_reauth_confirm(
        self, user_input: dict[str, Any] | None = None
    ) -> ConfigFlowResult:
        """Enrol again with a fresh secret. The meter keeps its key."""
        entry = self._get_reauth_entry()
        errors: dict[str, str] = {}
        said = ""
        if user_input is not None:
            try:
                await self._enrol_again(entry.data, str(entry.unique_id), user_input[CONF_SECRET])
            except _FormError as error:
                errors[error.field] = error.key
            except GridLedgerError as error:
                errors["base"], said = _error_key(error), str(error)
            else:
                return self.async_update_reload_and_abort(entry)
        return self.async_show_form(
            step_id="reauth_confirm",
            data_schema=REAUTH_SCHEMA,
            errors=errors,
            description_placeholders={
                "reason": said,
                "home": entry.title,
                "enrollment_id": entry.data[CONF_ENROLLMENT_ID],
            },
        )

    async def _enrol_again(self, network: Mapping[str, Any], unique_id: str, secret: str) -> None:
        self._key_pem = self._key_pem or generate_key_pem()
        credentials = await enroll(
            network[CONF_CA_URL],
            network[CONF_ENROLLMENT_ID],
            secret,
            network[CONF_BUNDLE].encode(),
            session=async_get_clientsession(self.hass),
            key_pem=self._key_pem,
        )
        if _connection_id(credentials, network[CONF_ENROLLMENT_ID]) != network[CONF_CONNECTION]:
            raise _FormError("base", "wrong_home")
        known = await vault.async_load_secrets(self.hass, unique_id)
        await vault.async_save_secrets(
            self.hass,
            unique_id,
            {
                "msp_id": credentials.msp_id or network[CONF_MSP_ID],
                "certificate": credentials.certificate_pem.decode(),
                "key": credentials.key_pem.decode(),
                "meter_key": known["meter_key"] if known else generate_key_pem().decode(),
                "salt_secret": known["salt_secret"] if known else random_secrets.token_hex(32),
            },
        )

    async def async_step_reconfigure(
        self, user_input: dict[str, Any] | None = None
    ) -> ConfigFlowResult:
        """Change the gateways or the home's sensors."""
        entry = self._get_reconfigure_entry()
        errors: dict[str, str] = {}
        shown: Mapping[str, Any] = {
            CONF_GATEWAYS: ", ".join(entry.data[CONF_GATEWAYS]),
            **entry.data[CONF_PLANT],
        }
        if user_input is not None:
            shown = user_input
            plant = {k: v for k, v in user_input.items() if k != CONF_GATEWAYS}
            errors = _plant_errors(plant)
            gateways = split_addresses(user_input[CONF_GATEWAYS])
            try:
                check_addresses(gateways)
            except InvalidInput:
                errors[CONF_GATEWAYS] = "invalid_address"
            if not errors:
                return self.async_update_reload_and_abort(
                    entry,
                    data_updates={CONF_GATEWAYS: gateways, CONF_PLANT: _without_empty(plant)},
                )
        return self.async_show_form(
            step_id="reconfigure",
            data_schema=self.add_suggested_values_to_schema(RECONFIGURE_SCHEMA, shown),
            errors=errors,
        )


class _FormError(Exception):
    """A field of the form can't be used."""

    def __init__(self, field: str, key: str) -> None:
        super().__init__(f"{field}: {key}")
        self.field = field
        self.key = key


def _without_empty(plant: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plant.items() if value not in (None, "", [])}


def _plant_errors(plant: Mapping[str, Any]) -> dict[str, str]:
    """A home without any measurement at the grid has nothing to report."""
    if not any(plant.get(key) for key in (CONF_GRID_IMPORT, CONF_GRID_EXPORT, CONF_GRID_POWER)):
        return {CONF_GRID_IMPORT: "grid_needed"}
    return {}


def _connection_id(credentials: Credentials, enrollment_id: str) -> str:
    """Return the connection point that the certificate was issued for."""
    certificate = x509.load_pem_x509_certificate(credentials.certificate_pem)
    attributes = certificate_attributes(certificate)
    return attributes.get("gridledger.connection") or enrollment_id.upper()
