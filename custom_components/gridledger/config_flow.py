"""Joining a network: an invitation, a look at whom one trusts, what the home has, and enrolment.

Enrolment uses a secret that works once, so it comes last, once nothing is left to ask. Its key is
on disk before, so the same invitation works again wherever a dialog was closed or an answer lost.
"""

import asyncio
import json
import re
import secrets as random_secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, override

import voluptuous as vol
from cryptography import x509
from cryptography.x509.oid import NameOID
from homeassistant.components.file_upload import process_uploaded_file
from homeassistant.config_entries import (
    ConfigEntry,
    ConfigEntryState,
    ConfigFlow,
    ConfigFlowResult,
    ConfigSubentryFlow,
    OptionsFlow,
)
from homeassistant.core import callback
from homeassistant.data_entry_flow import SectionConfig, section
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
    SelectSelector,
    SelectSelectorConfig,
    TextSelector,
    TextSelectorConfig,
    TextSelectorType,
)
from homeassistant.helpers.service_info.zeroconf import ZeroconfServiceInfo

from . import vault
from .client import (
    AuthenticationFailed,
    AuthorityInfo,
    ConnectionFailed,
    GridLedgerError,
    Identity,
    InvalidInput,
    Invitation,
    Timeout,
    enroll,
    fetch_info,
    fingerprint,
    generate_key_pem,
)
from .client.enrolment import certificate_attributes, same_fingerprint
from .client.gateway import check_addresses
from .client.invitation import PREFIX
from .const import (
    CONF_ADMINISTRATORS_ONLY,
    CONF_BUNDLE,
    CONF_BUNDLE_FILE,
    CONF_BUY_PRICE,
    CONF_CA_URL,
    CONF_CHANNEL,
    CONF_CONNECTION,
    CONF_DAILY_LIMIT,
    CONF_ENROLLMENT_ID,
    CONF_FINGERPRINT,
    CONF_GATEWAYS,
    CONF_IDENTITY,
    CONF_INVITATION,
    CONF_MSP_ID,
    CONF_OTHER,
    CONF_PLANT,
    CONF_SECRET,
    CONF_SELL_PRICE,
    CONF_WAY,
    DOMAIN,
    LOGGER,
)
from .energy_preferences import plant_from_preferences
from .plant_form import (
    PLANT_FIELDS,
    Warned,
    async_live_text,
    plant_errors,
    plant_warnings,
    without_empty,
)
from .subentry_flow import SUBENTRY_FLOWS

_BUNDLE_LIMIT_BYTES: Final = 1 << 20
_REACHED_S: Final = 3
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN (EC )?PRIVATE KEY-----[^-]+-----END (EC )?PRIVATE KEY-----"
)
_LINE = TextSelector()
_PASSWORD = TextSelector(TextSelectorConfig(type=TextSelectorType.PASSWORD))
_MULTILINE = TextSelector(TextSelectorConfig(multiline=True))

_TRUST: dict[vol.Marker, Any] = {
    vol.Optional(CONF_FINGERPRINT): _LINE,
    vol.Optional(CONF_BUNDLE): _MULTILINE,
    vol.Optional(CONF_BUNDLE_FILE): FileSelector(
        FileSelectorConfig(accept=".pem,.crt,application/x-pem-file")
    ),
}
_OTHER_SCHEMA: Any = vol.Schema(
    {
        vol.Optional(CONF_WAY): SelectSelector(
            SelectSelectorConfig(options=["manual", "wallet"], translation_key="way")
        )
    }
)
USER_SCHEMA: Any = vol.Schema(
    {
        vol.Optional(CONF_INVITATION): _MULTILINE,
        vol.Optional(CONF_OTHER): section(_OTHER_SCHEMA, SectionConfig(collapsed=True)),
    }
)
MANUAL_SCHEMA: Any = vol.Schema(
    {
        vol.Required(CONF_GATEWAYS): _LINE,
        vol.Required(CONF_CA_URL): TextSelector(TextSelectorConfig(type=TextSelectorType.URL)),
        vol.Required(CONF_CHANNEL): _LINE,
        vol.Required(CONF_ENROLLMENT_ID): _LINE,
        vol.Required(CONF_SECRET): _PASSWORD,
        **_TRUST,
    }
)
WALLET_SCHEMA: Any = vol.Schema(
    {
        vol.Required(CONF_GATEWAYS): _LINE,
        vol.Required(CONF_CHANNEL): _LINE,
        vol.Required(CONF_IDENTITY): _MULTILINE,
        vol.Optional(CONF_MSP_ID): _LINE,
        vol.Optional(CONF_BUNDLE): _MULTILINE,
        vol.Optional(CONF_BUNDLE_FILE): _TRUST[vol.Optional(CONF_BUNDLE_FILE)],
    }
)
DISCOVERED_SCHEMA: Any = vol.Schema(
    {vol.Required(CONF_ENROLLMENT_ID): _LINE, vol.Required(CONF_SECRET): _PASSWORD}
)
CONFIRM_SCHEMA: Any = vol.Schema({})
PLANT_SCHEMA: Any = vol.Schema(PLANT_FIELDS)
MEMBER_SCHEMA: Any = vol.Schema({vol.Required(CONF_MSP_ID): _LINE})
REAUTH_SCHEMA: Any = vol.Schema({vol.Required(CONF_SECRET): _PASSWORD})
REAUTH_WALLET_SCHEMA: Any = vol.Schema(
    {vol.Required(CONF_IDENTITY): _MULTILINE, vol.Optional(CONF_MSP_ID): _LINE}
)
RECONFIGURE_SCHEMA: Any = vol.Schema({vol.Required(CONF_GATEWAYS): _LINE, **PLANT_FIELDS})
PRICE_SENSORS: Any = EntitySelector(EntitySelectorConfig(domain=["sensor", "event"], multiple=True))
OPTIONS_SCHEMA: Any = vol.Schema(
    {
        vol.Required(CONF_ADMINISTRATORS_ONLY, default=False): BooleanSelector(),
        vol.Optional(CONF_DAILY_LIMIT): NumberSelector(
            NumberSelectorConfig(
                min=0, max=1000, step=0.1, unit_of_measurement="kWh", mode=NumberSelectorMode.BOX
            )
        ),
        vol.Optional(CONF_BUY_PRICE): PRICE_SENSORS,
        vol.Optional(CONF_SELL_PRICE): PRICE_SENSORS,
    }
)


def split_addresses(text: str) -> list[str]:
    """Return the gateway addresses of a line, separated by commas or blanks."""
    return [part for part in text.replace(",", " ").replace(";", " ").split() if part]


def _error_key(error: Exception) -> str:
    if isinstance(error, AuthenticationFailed):
        return "invalid_auth"
    if isinstance(error, (ConnectionFailed, Timeout)):
        return "cannot_connect"
    if isinstance(error, InvalidInput):
        return "invalid_input"
    if isinstance(error, vault.NotStored):
        return "not_stored"
    return "unknown"


def read_identity(text: str, msp_id: str) -> Identity:
    """Read a wallet's identity: Fabric's JSON file of it, or certificate and key as PEM.

    Raises:
        InvalidInput: it is neither, or not an identity on P-256.
    """
    certificate = key = text
    if text.lstrip().startswith("{"):
        try:
            stated = json.loads(text)
            certificate = stated["credentials"]["certificate"]
            key = stated["credentials"]["privateKey"]
            msp_id = msp_id or stated["mspId"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"this is no identity of a Fabric wallet: {error!r}") from error
    return Identity(str(msp_id or ""), str(certificate).encode(), _private_key(key).encode())


def key_pem_of(text: str) -> str:
    """Return the private key's part of what :func:`read_identity` could read."""
    if text.lstrip().startswith("{"):
        text = json.loads(text)["credentials"]["privateKey"]
    return _private_key(text)


def _private_key(text: str) -> str:
    found = _PRIVATE_KEY.search(str(text))
    if found is None:
        raise InvalidInput("there is no private key in it")
    return found[0] + "\n"


class GridLedgerConfigFlow(ConfigFlow, domain=DOMAIN):
    """Joins a home to a network."""

    VERSION = 1
    MINOR_VERSION = 2

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._begun = "user"
        self._given: dict[str, Any] = {}
        self._network: dict[str, Any] = {}
        self._secret = ""
        self._home = ""
        self._authority: AuthorityInfo | None = None
        self._msp_id = ""
        self._plant: dict[str, Any] = {}
        self._warned: set[Warned] = set()
        self._identity: vault.Secrets | None = None

    @staticmethod
    @callback
    @override
    def async_get_options_flow(config_entry: ConfigEntry) -> GridLedgerOptionsFlow:
        """Return the options flow."""
        return GridLedgerOptionsFlow()

    @classmethod
    @callback
    @override
    def async_get_supported_subentry_types(
        cls, config_entry: ConfigEntry
    ) -> dict[str, type[ConfigSubentryFlow]]:
        """Return what can be set up beside the home."""
        return SUBENTRY_FLOWS

    # Screen 1: where the network is, and who we are there --------------------------------------

    async def async_step_user(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Take an invitation, or lead to the other ways."""
        errors: dict[str, str] = {}
        said = ""
        if user_input is not None:
            match user_input.get(CONF_OTHER, {}).get(CONF_WAY):
                case "manual":
                    return await self.async_step_manual()
                case "wallet":
                    return await self.async_step_wallet()
            try:
                invitation = Invitation.decode(user_input.get(CONF_INVITATION, ""))
            except InvalidInput as error:
                LOGGER.debug("Invitation refused: %s", error)
                errors[CONF_INVITATION] = "invalid_invitation"
            else:
                self._begun = "user"
                self._home = invitation.connection_id
                self._msp_id = invitation.msp_id
                result = await self._join(
                    {
                        CONF_GATEWAYS: ", ".join(invitation.gateways),
                        CONF_CA_URL: invitation.ca_url,
                        CONF_CHANNEL: invitation.channel,
                        CONF_ENROLLMENT_ID: invitation.enrollment_id,
                        CONF_SECRET: invitation.secret,
                        CONF_FINGERPRINT: invitation.fingerprint,
                    }
                )
                if isinstance(result, _FormError):
                    # On this form there is but one field to blame.
                    errors["base" if result.said else CONF_INVITATION] = result.key
                    said = result.said
                else:
                    return result
        return self._form("user", USER_SCHEMA, user_input, errors, said)

    async def async_step_manual(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Take everything that an invitation holds, by hand."""
        errors: dict[str, str] = {}
        said = ""
        if user_input is not None:
            self._begun = "manual"
            result = await self._join(user_input)
            if not isinstance(result, _FormError):
                return result
            errors[result.field], said = result.key, result.said
        return self._form("manual", MANUAL_SCHEMA, user_input, errors, said)

    async def async_step_wallet(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Take an identity that was made elsewhere: nothing is enrolled, and nothing renewed."""
        errors: dict[str, str] = {}
        said = ""
        if user_input is not None:
            try:
                await self._take_wallet(user_input)
            except _FormError as error:
                errors[error.field], said = error.key, error.said
            else:
                return await self.async_step_confirm()
        return self._form("wallet", WALLET_SCHEMA, user_input, errors, said)

    async def async_step_zeroconf(self, discovery_info: ZeroconfServiceInfo) -> ConfigFlowResult:
        """A gateway has announced itself in the home's own network."""
        stated = {name: str(value or "") for name, value in discovery_info.properties.items()}
        channel, ca_url = stated.get("channel", ""), stated.get("ca", "")
        host = f"[{discovery_info.host}]" if ":" in discovery_info.host else discovery_info.host
        address = stated.get("gateway") or f"{host}:{discovery_info.port}"
        if not channel or not ca_url.startswith("https://") or not stated.get("fingerprint"):
            return self.async_abort(reason="not_supported")
        for entry in self._async_current_entries():
            if entry.data[CONF_CHANNEL] != channel:
                continue
            # One more way to the same ledger; its TLS still has to be the bundle's.
            known = entry.data[CONF_GATEWAYS]
            if address not in known and entry.data.get(CONF_CA_URL) == ca_url:
                self._update(entry, {CONF_GATEWAYS: [*known, address]})
            return self.async_abort(reason="already_configured")
        await self.async_set_unique_id(f"discovered:{channel}:{ca_url}")
        self._abort_if_unique_id_configured()
        self._given = {
            CONF_GATEWAYS: address,
            CONF_CA_URL: ca_url,
            CONF_CHANNEL: channel,
            CONF_FINGERPRINT: stated["fingerprint"],
        }
        self.context["title_placeholders"] = {"name": stated.get("utility") or channel}
        return await self.async_step_discovered()

    async def async_step_discovered(
        self, user_input: dict[str, Any] | None = None
    ) -> ConfigFlowResult:
        """Take what a discovered network can't tell: who we are there."""
        errors: dict[str, str] = {}
        said = ""
        if user_input is not None:
            self._begun = "discovered"
            result = await self._join({**self._given, **user_input})
            if not isinstance(result, _FormError):
                return result
            field = result.field if result.field in user_input else "base"
            errors[field], said = result.key, result.said
        return self._form(
            "discovered",
            DISCOVERED_SCHEMA,
            user_input,
            errors,
            said,
            network=self._given[CONF_CHANNEL],
            gateway=self._given[CONF_GATEWAYS],
        )

    def _form(
        self,
        step: str,
        schema: Any,
        values: Mapping[str, Any] | None,
        errors: dict[str, str],
        said: str = "",
        **placeholders: str,
    ) -> ConfigFlowResult:
        shown = {k: v for k, v in (values or {}).items() if k not in {CONF_BUNDLE_FILE, CONF_OTHER}}
        return self.async_show_form(
            step_id=step,
            data_schema=self.add_suggested_values_to_schema(schema, shown),
            errors=errors,
            description_placeholders={"reason": said, **placeholders},
            last_step=False,
        )

    async def _join(self, given: Mapping[str, Any]) -> ConfigFlowResult | _FormError:
        """Check where to and as whom; go on to the second screen, or return what is wrong."""
        self._secret = given[CONF_SECRET].strip()
        try:
            network = await self._checked_network(given)
        except _FormError as error:
            return error
        except GridLedgerError as error:
            return _FormError("base", _error_key(error), str(error))
        self._given, self._network = dict(given), network
        self._async_abort_entries_match(
            {
                CONF_CHANNEL: network[CONF_CHANNEL],
                CONF_ENROLLMENT_ID: network[CONF_ENROLLMENT_ID],
            }
        )
        assert self._authority is not None
        self._msp_id = self._authority.msp_id or self._msp_id
        if not self._msp_id:
            return await self.async_step_member()
        return await self.async_step_confirm()

    async def _checked_network(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check the form, and that the CA is there and is the one that its owner means."""
        gateways = self._gateways(given)
        ca_url = given[CONF_CA_URL].strip().rstrip("/")
        if not ca_url.startswith("https://"):
            raise _FormError(CONF_CA_URL, "https_needed")
        bundle = await self._bundle(given)
        wanted = given.get(CONF_FINGERPRINT, "").strip()
        if not bundle:
            if not wanted:
                raise _FormError(CONF_FINGERPRINT, "trust_needed")
            session = async_get_clientsession(self.hass, verify_ssl=False)
            bundle = (await fetch_info(ca_url, session=session)).bundle_pem
        if wanted and not same_fingerprint(wanted, fingerprint(bundle)):
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

    def _gateways(self, given: Mapping[str, Any]) -> list[str]:
        gateways = split_addresses(given[CONF_GATEWAYS])
        try:
            check_addresses(gateways)
        except InvalidInput as error:
            raise _FormError(CONF_GATEWAYS, "invalid_address") from error
        return gateways

    async def _bundle(self, given: Mapping[str, Any]) -> bytes:
        """Return the bundle that was pasted or uploaded, empty without any."""
        bundle: bytes = given.get(CONF_BUNDLE, "").strip().encode()
        if file_id := given.get(CONF_BUNDLE_FILE):
            bundle = await self.hass.async_add_executor_job(self._uploaded, file_id)
        if bundle:
            try:
                bundle.decode("ascii")
                fingerprint(bundle)
            except (InvalidInput, UnicodeDecodeError) as error:
                field = CONF_BUNDLE_FILE if given.get(CONF_BUNDLE_FILE) else CONF_BUNDLE
                raise _FormError(field, "invalid_bundle") from error
        return bundle

    def _uploaded(self, file_id: str) -> bytes:
        try:
            with process_uploaded_file(self.hass, file_id) as path:
                if path.stat().st_size > _BUNDLE_LIMIT_BYTES:
                    raise _FormError(CONF_BUNDLE_FILE, "invalid_bundle")
                return path.read_bytes()
        except (ValueError, OSError) as error:
            raise _FormError(CONF_BUNDLE_FILE, "invalid_bundle") from error

    async def _take_wallet(self, given: Mapping[str, Any]) -> None:
        gateways = self._gateways(given)
        try:
            identity = read_identity(given[CONF_IDENTITY], given.get(CONF_MSP_ID, "").strip())
        except InvalidInput as error:
            raise _FormError(CONF_IDENTITY, "invalid_identity", str(error)) from error
        bundle = await self._bundle(given)
        if not bundle:
            raise _FormError(CONF_BUNDLE, "trust_needed")
        names = identity.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        enrollment_id = str(names[0].value) if names else ""
        self._msp_id = identity.msp_id
        self._home = _connection_id(identity.certificate_pem, enrollment_id)
        self._network = {
            CONF_GATEWAYS: gateways,
            CONF_CHANNEL: given[CONF_CHANNEL].strip(),
            CONF_ENROLLMENT_ID: enrollment_id,
            CONF_BUNDLE: bundle.decode("ascii"),
        }
        await self.async_set_unique_id(f"{self._network[CONF_CHANNEL]}:{self._home}")
        self._abort_if_unique_id_configured()
        self._identity = _secrets(
            identity.msp_id, identity.certificate_pem.decode(), key_pem_of(given[CONF_IDENTITY])
        )

    async def async_step_member(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for the member's id where its CA doesn't tell (a real fabric-ca)."""
        if user_input is not None:
            self._msp_id = user_input[CONF_MSP_ID].strip()
            return await self.async_step_confirm()
        assert self._authority is not None
        # Members are mostly called <Organisation>MSP.
        name = self._authority.organization
        suggested = {CONF_MSP_ID: f"{name}MSP"} if name else {}
        return self.async_show_form(
            step_id="member",
            data_schema=self.add_suggested_values_to_schema(MEMBER_SCHEMA, suggested),
            last_step=False,
        )

    # Screen 2: whom one trusts -----------------------------------------------------------------

    async def async_step_confirm(
        self, user_input: dict[str, Any] | None = None
    ) -> ConfigFlowResult:
        """Show utility, network, home and fingerprint, to be compared with the utility's."""
        if user_input is not None:
            return await self.async_step_plant()
        addresses = self._network[CONF_GATEWAYS]
        reached = await asyncio.gather(*(_is_reached(address) for address in addresses))
        organization = self._authority.organization if self._authority else ""
        return self.async_show_form(
            step_id="confirm",
            data_schema=CONFIRM_SCHEMA,
            description_placeholders={
                "utility": organization or self._msp_id.removesuffix("MSP"),
                "member": self._msp_id,
                "network": self._network[CONF_CHANNEL],
                "home": self._home or self._network[CONF_ENROLLMENT_ID],
                "fingerprint": _in_lines(fingerprint(self._network[CONF_BUNDLE].encode())),
                "gateways": ", ".join(
                    f"{address} {'✓' if there else '✗'}"
                    for address, there in zip(addresses, reached, strict=True)
                ),
            },
            last_step=False,
        )

    # Screen 3: the home, and enrolment ----------------------------------------------------------

    async def async_step_plant(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Show what the Energy dashboard knows of the home; enrol when it is confirmed."""
        errors: dict[str, str] = {}
        said = ""
        if user_input is None:
            shown = self._plant or plant_from_preferences(await self._energy_preferences())
        else:
            shown = user_input
            errors = plant_errors(user_input)
            self._plant = without_empty(user_input)
            if not errors and not self._warned.issuperset(plant_warnings(self.hass, self._plant)):
                errors["base"] = "look_again"
            if not errors:
                try:
                    return await self._enrol()
                except AuthenticationFailed as error:
                    # The secret is on the first form.
                    LOGGER.debug("Enrolment refused: %s", error)
                    return self._refused()
                except (GridLedgerError, vault.NotStored) as error:
                    errors["base"], said = _error_key(error), str(error)
        warnings = plant_warnings(self.hass, shown)
        self._warned.update(warnings)
        return self.async_show_form(
            step_id="plant",
            data_schema=self.add_suggested_values_to_schema(PLANT_SCHEMA, shown),
            errors=errors,
            description_placeholders={
                "reason": said,
                "live": await async_live_text(self.hass, shown, warnings),
            },
            last_step=True,
        )

    def _refused(self) -> ConfigFlowResult:
        match self._begun:
            case "user":
                return self._form("user", USER_SCHEMA, None, {CONF_INVITATION: "invalid_auth"})
            case "manual":
                errors = {CONF_SECRET: "invalid_auth"}
                return self._form("manual", MANUAL_SCHEMA, self._given, errors)
            case _:
                return self._form(
                    "discovered",
                    DISCOVERED_SCHEMA,
                    self._given,
                    {CONF_SECRET: "invalid_auth"},
                    network=self._given[CONF_CHANNEL],
                    gateway=self._given[CONF_GATEWAYS],
                )

    async def _energy_preferences(self) -> Mapping[str, Any] | None:
        if "energy" not in self.hass.config.components:
            return None
        from homeassistant.components.energy.data import async_get_manager

        return (await async_get_manager(self.hass)).data

    async def _enrol(self) -> ConfigFlowResult:
        """Use the secret, once, unless a wallet has brought an identity."""
        if self._identity is None:
            ca_url, enrollment_id = (
                self._network[CONF_CA_URL],
                self._network[CONF_ENROLLMENT_ID],
            )
            credentials = await enroll(
                ca_url,
                enrollment_id,
                self._secret,
                self._network[CONF_BUNDLE].encode(),
                session=async_get_clientsession(self.hass),
                key_pem=await vault.async_pending_key(
                    self.hass, ca_url, enrollment_id, self._secret, generate_key_pem()
                ),
            )
            self._home = _connection_id(credentials.certificate_pem, enrollment_id)
            self._identity = _secrets(
                credentials.msp_id or self._msp_id,
                credentials.certificate_pem.decode(),
                credentials.key_pem.decode(),
            )
        unique_id = f"{self._network[CONF_CHANNEL]}:{self._home}"
        await self.async_set_unique_id(unique_id)
        self._abort_if_unique_id_configured()
        await vault.async_save_secrets(self.hass, unique_id, self._identity)
        return self.async_create_entry(
            title=self._home,
            data={
                **self._network,
                CONF_MSP_ID: self._identity["msp_id"],
                CONF_CONNECTION: self._home,
                CONF_PLANT: self._plant,
            },
        )

    # Later -----------------------------------------------------------------------------------

    def _update(self, entry: ConfigEntry, data: Mapping[str, Any]) -> None:
        """Change an entry's data: its listener reloads it, or here if it isn't loaded."""
        self.hass.config_entries.async_update_entry(entry, data={**entry.data, **data})
        if entry.state is not ConfigEntryState.LOADED:
            self.hass.config_entries.async_schedule_reload(entry.entry_id)

    async def async_step_reauth(self, entry_data: Mapping[str, Any]) -> ConfigFlowResult:
        """The ledger doesn't take our identity any more."""
        if CONF_CA_URL not in entry_data:
            return await self.async_step_reauth_wallet()
        return await self.async_step_reauth_confirm()

    async def async_step_reauth_confirm(
        self, user_input: dict[str, Any] | None = None
    ) -> ConfigFlowResult:
        """Enrol again with a fresh secret or invitation. The meter keeps its key."""
        entry = self._get_reauth_entry()
        errors: dict[str, str] = {}
        said = ""
        if user_input is not None:
            try:
                await self._enrol_again(entry, user_input[CONF_SECRET].strip())
            except _FormError as error:
                errors[error.field], said = error.key, error.said
            except (GridLedgerError, vault.NotStored) as error:
                errors["base"], said = _error_key(error), str(error)
            else:
                self.hass.config_entries.async_schedule_reload(entry.entry_id)
                return self.async_abort(reason="reauth_successful")
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

    async def _enrol_again(self, entry: ConfigEntry, secret: str) -> None:
        network = entry.data
        if secret.startswith(PREFIX):
            try:
                invitation = Invitation.decode(secret)
            except InvalidInput as error:
                raise _FormError(CONF_SECRET, "invalid_invitation") from error
            if (invitation.channel, invitation.enrollment_id) != (
                network[CONF_CHANNEL],
                network[CONF_ENROLLMENT_ID],
            ):
                raise _FormError("base", "wrong_home")
            secret = invitation.secret
        ca_url, enrollment_id = network[CONF_CA_URL], network[CONF_ENROLLMENT_ID]
        credentials = await enroll(
            ca_url,
            enrollment_id,
            secret,
            network[CONF_BUNDLE].encode(),
            session=async_get_clientsession(self.hass),
            key_pem=await vault.async_pending_key(
                self.hass, ca_url, enrollment_id, secret, generate_key_pem()
            ),
        )
        if _connection_id(credentials.certificate_pem, enrollment_id) != network[CONF_CONNECTION]:
            raise _FormError("base", "wrong_home")
        await self._replace_identity(
            entry,
            credentials.msp_id or network[CONF_MSP_ID],
            credentials.certificate_pem.decode(),
            credentials.key_pem.decode(),
        )

    async def _replace_identity(
        self, entry: ConfigEntry, msp_id: str, certificate: str, key: str
    ) -> None:
        unique_id = str(entry.unique_id)
        fresh = _secrets(msp_id, certificate, key)
        known = await vault.async_load_secrets(self.hass, unique_id)
        if known is not None:
            fresh["meter_key"], fresh["salt_secret"] = known["meter_key"], known["salt_secret"]
        await vault.async_save_secrets(self.hass, unique_id, fresh)

    async def async_step_reauth_wallet(
        self, user_input: dict[str, Any] | None = None
    ) -> ConfigFlowResult:
        """Take a new certificate of a wallet's identity."""
        entry = self._get_reauth_entry()
        errors: dict[str, str] = {}
        said = ""
        if user_input is not None:
            text = user_input[CONF_IDENTITY]
            msp_id = user_input.get(CONF_MSP_ID, "").strip()
            if not text.lstrip().startswith("{"):
                msp_id = msp_id or entry.data[CONF_MSP_ID]
            try:
                identity = read_identity(text, msp_id)
            except InvalidInput as error:
                errors[CONF_IDENTITY], said = "invalid_identity", str(error)
            else:
                certificate = identity.certificate_pem
                home = _connection_id(certificate, entry.data[CONF_ENROLLMENT_ID])
                if home != entry.data[CONF_CONNECTION]:
                    errors["base"] = "wrong_home"
                else:
                    try:
                        await self._replace_identity(
                            entry, identity.msp_id, certificate.decode(), key_pem_of(text)
                        )
                    except vault.NotStored as error:
                        errors["base"], said = _error_key(error), str(error)
                    else:
                        self.hass.config_entries.async_schedule_reload(entry.entry_id)
                        return self.async_abort(reason="reauth_successful")
        return self.async_show_form(
            step_id="reauth_wallet",
            data_schema=REAUTH_WALLET_SCHEMA,
            errors=errors,
            description_placeholders={"reason": said, "home": entry.title},
        )

    async def async_step_reconfigure(
        self, user_input: dict[str, Any] | None = None
    ) -> ConfigFlowResult:
        """Change gateways or sensors."""
        entry = self._get_reconfigure_entry()
        errors: dict[str, str] = {}
        shown: Mapping[str, Any] = {
            CONF_GATEWAYS: ", ".join(entry.data[CONF_GATEWAYS]),
            **entry.data[CONF_PLANT],
        }
        if user_input is not None:
            shown = user_input
            plant = {k: v for k, v in user_input.items() if k != CONF_GATEWAYS}
            errors = plant_errors(plant)
            try:
                gateways = self._gateways(user_input)
            except _FormError as error:
                errors[error.field] = error.key
            if not errors:
                self._update(entry, {CONF_GATEWAYS: gateways, CONF_PLANT: without_empty(plant)})
                return self.async_abort(reason="reconfigure_successful")
        return self.async_show_form(
            step_id="reconfigure",
            data_schema=self.add_suggested_values_to_schema(RECONFIGURE_SCHEMA, shown),
            errors=errors,
            description_placeholders={
                "live": await async_live_text(self.hass, shown, plant_warnings(self.hass, shown))
            },
        )


class GridLedgerOptionsFlow(OptionsFlow):
    """What its owner lets the home do; applied without a reload."""

    async def async_step_init(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask who may trade, and how much a day."""
        if user_input is not None:
            return self.async_create_entry(data=without_empty(user_input))
        return self.async_show_form(
            step_id="init",
            data_schema=self.add_suggested_values_to_schema(
                OPTIONS_SCHEMA, self.config_entry.options
            ),
        )


class _FormError(Exception):
    """A field of the form can't be used."""

    def __init__(self, field: str, key: str, said: str = "") -> None:
        super().__init__(f"{field}: {key}")
        self.field = field
        self.key = key
        self.said = said


def _secrets(msp_id: str, certificate: str, key: str) -> vault.Secrets:
    """Return secrets of a home whose meter is new."""
    return {
        "msp_id": msp_id,
        "certificate": certificate,
        "key": key,
        "meter_key": generate_key_pem().decode(),
        "salt_secret": random_secrets.token_hex(32),
    }


def _connection_id(certificate_pem: bytes, enrollment_id: str) -> str:
    """Return the connection point that a certificate was issued for."""
    attributes = certificate_attributes(x509.load_pem_x509_certificate(certificate_pem))
    return attributes.get("gridledger.connection") or enrollment_id.upper()


def _in_lines(shown: str) -> str:
    """Break a fingerprint into lines of eight bytes, as people compare them."""
    pairs: Sequence[str] = shown.split(":")
    return "\n".join(":".join(pairs[at : at + 8]) for at in range(0, len(pairs), 8))


async def _is_reached(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_REACHED_S):
            _reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return True
    return False
