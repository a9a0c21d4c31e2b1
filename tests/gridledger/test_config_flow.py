"""Joining a network through Home Assistant's dialogs, at a real certificate authority."""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from homeassistant.components.zeroconf.discovery import info_from_service
from homeassistant.config_entries import (
    SOURCE_REAUTH,
    SOURCE_RECONFIGURE,
    SOURCE_USER,
    SOURCE_ZEROCONF,
    ConfigEntryState,
)
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.helpers import device_registry as dr
from homeassistant.helpers import issue_registry as ir
from homeassistant.helpers.json import save_json
from homeassistant.helpers.service_info.zeroconf import ZeroconfServiceInfo
from homeassistant.helpers.storage import Store
from homeassistant.setup import async_setup_component
from homeassistant.util import dt as dt_util
from homeassistant.util.file import WriteError

from consortium.ca.registry import Registry
from consortium.node.announce import service
from custom_components.gridledger import config_flow, vault
from custom_components.gridledger.client import (
    AuthenticationFailed,
    AuthorityInfo,
    ConnectionFailed,
    Credentials,
    GridLedgerError,
    InvalidInput,
    Invitation,
    enroll,
    fetch_info,
    fingerprint,
)
from custom_components.gridledger.const import DOMAIN
from custom_components.gridledger.renewal import async_renew_if_due

from .conftest import (
    BATTERY_POWER,
    EXPORT,
    GRID_POWER,
    IMPORT,
    LEVEL,
    PLANT,
    PV_ENERGY,
    PV_POWER,
    RunningNetwork,
    confirm,
    eventually,
    fill_in,
    first_form,
    join,
    prepare_connection,
    report_plant,
    set_state,
)

pytestmark = pytest.mark.usefixtures("sockets")


@pytest.fixture(autouse=True)
async def _core(hass: HomeAssistant) -> None:
    assert await async_setup_component(hass, "homeassistant", {})


def suggested(step: Any) -> dict[str, Any]:
    """The values that a form shows."""
    return {
        str(marker): marker.description["suggested_value"]
        for marker in step["data_schema"].schema
        if marker.description and "suggested_value" in marker.description
    }


async def test_joins_and_hides_its_keys(hass: HomeAssistant, network: RunningNetwork) -> None:
    report_plant(hass)
    entry = await join(hass, network.invite("flow-1", "H-FLOW-1"), PLANT)
    assert entry.unique_id == "neighbourhood:H-FLOW-1"
    assert entry.title == "H-FLOW-1"
    assert "secret" not in entry.data
    assert "PRIVATE" not in str(dict(entry.data))
    assert entry.data["plant"] == PLANT
    await hass.config_entries.async_unload(entry.entry_id)


async def test_keys_are_their_owners_alone(hass: HomeAssistant) -> None:
    # Tests never write Home Assistant's storage; so the store's own way of writing is used.
    store = vault._store(hass, "channel:H-1")
    path = Path(store.path)
    path.parent.mkdir(exist_ok=True)
    await hass.async_add_executor_job(save_json, store.path, {"key": "x"}, store._private)
    assert store._private
    assert store._atomic_writes
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_plant_is_prefilled_from_the_energy_dashboard(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    hass.config.components.add("energy")
    preferences = {
        "energy_sources": [
            {"type": "grid", "stat_energy_from": IMPORT, "stat_energy_to": EXPORT},
        ]
    }
    with patch(
        "homeassistant.components.energy.data.async_get_manager",
        return_value=type("Manager", (), {"data": preferences})(),
    ):
        step = await first_form(hass, network.invitation("flow-2", "H-FLOW-2"))
        step = await confirm(hass, step)
    assert step["step_id"] == "plant"
    assert suggested(step) == {"grid_import_energy": [IMPORT], "grid_export_energy": [EXPORT]}


@pytest.mark.parametrize(
    ("change", "errors"),
    [
        ({"gateways": "nowhere"}, {"gateways": "invalid_address"}),
        ({"gateways": "peer.example:70000"}, {"gateways": "invalid_address"}),
        ({"ca_url": "http://127.0.0.1:1"}, {"ca_url": "https_needed"}),
        ({"ca_url": "https://127.0.0.1:1"}, {"base": "cannot_connect"}),
        ({"fingerprint": "AB:" * 31 + "AB"}, {"fingerprint": "fingerprint_mismatch"}),
        ({"fingerprint": ""}, {"fingerprint": "trust_needed"}),
        ({"ca_bundle": "no certificates"}, {"ca_bundle": "invalid_bundle"}),
        ({"ca_bundle": "certificati della società"}, {"ca_bundle": "invalid_bundle"}),
        ({"ca_bundle_file": "0123456789abcdef" * 2}, {"ca_bundle_file": "invalid_bundle"}),
    ],
)
async def test_first_form_says_what_is_wrong(
    hass: HomeAssistant, network: RunningNetwork, change: dict[str, str], errors: dict[str, str]
) -> None:
    invitation = network.invite(f"flow-{abs(hash(str(change)))}", "H-FLOW-3")
    step = await first_form(hass, {**invitation, **change})
    assert step["errors"] == errors
    # The dialog goes on from there; the secret was not touched.
    step = await hass.config_entries.flow.async_configure(step["flow_id"], invitation)
    assert step["step_id"] == "confirm"


async def test_trusts_a_pasted_bundle(hass: HomeAssistant, network: RunningNetwork) -> None:
    invitation = network.invite("flow-4", "H-FLOW-4")
    del invitation["fingerprint"]
    bundle = network.network.tls_bundle_pem.decode()
    entry = await join(hass, {**invitation, "ca_bundle": bundle}, PLANT)
    assert entry.data["ca_bundle"].strip() == bundle.strip()
    await hass.config_entries.async_unload(entry.entry_id)


async def test_a_wrong_secret_leads_back_to_where_it_stands(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    invitation = network.invite("flow-5", "H-FLOW-5")
    step = await confirm(hass, await first_form(hass, {**invitation, "secret": "wrong"}))
    step = await fill_in(hass, step, PLANT)
    assert (step["step_id"], step["errors"]) == ("manual", {"secret": "invalid_auth"})
    step = await hass.config_entries.flow.async_configure(step["flow_id"], invitation)
    step = await confirm(hass, step)
    assert suggested(step)["battery_reserve"] == 20  # what was filled in is there again
    step = await fill_in(hass, step, PLANT)
    assert step["type"] is FlowResultType.CREATE_ENTRY
    await hass.async_block_till_done()
    await hass.config_entries.async_unload(step["result"].entry_id)


async def test_a_ca_that_does_not_name_its_member(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    """A real fabric-ca issues certificates and says nothing of MSPs."""

    async def enroll_at_fabric(*arguments: Any, **options: Any) -> Credentials:
        return replace(await enroll(*arguments, **options), msp_id="")

    async def info_of_fabric(*arguments: Any, **options: Any) -> AuthorityInfo:
        return replace(await fetch_info(*arguments, **options), msp_id="")

    with (
        patch("custom_components.gridledger.config_flow.enroll", enroll_at_fabric),
        patch("custom_components.gridledger.config_flow.fetch_info", info_of_fabric),
    ):
        step = await first_form(hass, network.invite("flow-11", "H-FLOW-11"))
        assert step["step_id"] == "member"  # before enrolment: nothing is asked after it
        [field] = step["data_schema"].schema
        assert field.description["suggested_value"] == "AuroraMSP"
        step = await hass.config_entries.flow.async_configure(
            step["flow_id"], {"msp_id": "AuroraMSP"}
        )
        step = await fill_in(hass, await confirm(hass, step), PLANT)
    assert step["type"] is FlowResultType.CREATE_ENTRY
    assert step["result"].data["msp_id"] == "AuroraMSP"
    await hass.async_block_till_done()
    await hass.config_entries.async_unload(step["result"].entry_id)


async def test_a_ca_that_goes_away_costs_nothing(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    """Enrolment fails at the last step: the dialog stays, and then succeeds."""
    step = await confirm(hass, await first_form(hass, network.invitation("flow-12", "H-FLOW-12")))
    with patch(
        "custom_components.gridledger.config_flow.enroll", side_effect=ConnectionFailed("gone")
    ):
        step = await fill_in(hass, step, PLANT)
    assert (step["step_id"], step["errors"]) == ("plant", {"base": "cannot_connect"})
    step = await hass.config_entries.flow.async_configure(step["flow_id"], PLANT)
    assert step["type"] is FlowResultType.CREATE_ENTRY
    await hass.async_block_till_done()
    await hass.config_entries.async_unload(step["result"].entry_id)


@contextmanager
def no_room_for(part: str) -> Iterator[None]:
    """Let the disk be full for those of Home Assistant's stores that have this in their names."""
    write = Store._async_write_data

    async def full(self: Store[Any], *given: Any) -> None:
        if part in self.key:
            raise WriteError("No space left on device")
        await write(self, *given)

    with patch.object(Store, "_async_write_data", full):
        yield


@pytest.mark.parametrize("key", ["pending", "flow_24"])
async def test_a_full_disk_costs_no_invitation(
    hass: HomeAssistant, network: RunningNetwork, key: str
) -> None:
    """Before the secret is used, and after it: what lacks is said, and the next try succeeds."""
    home = f"H-FLOW-24-{key.upper()}"
    invitation = network.invitation(f"flow-24-{key}", home)
    step = await confirm(hass, await first_form(hass, invitation))
    with no_room_for(key):
        step = await fill_in(hass, step, PLANT)
    assert (step["step_id"], step["errors"]) == ("plant", {"base": "not_stored"})
    assert not hass.config_entries.async_entries(DOMAIN)
    step = await hass.config_entries.flow.async_configure(step["flow_id"], PLANT)
    assert step["type"] is FlowResultType.CREATE_ENTRY
    await hass.async_block_till_done()
    entry = step["result"]
    secrets = await vault.async_load_secrets(hass, entry.unique_id)

    # The same where it enrols again: the old keys stay until the new ones are stored.
    entry.async_start_reauth(hass)
    await hass.async_block_till_done()
    [flow] = hass.config_entries.flow.async_progress_by_handler(DOMAIN)
    registry = Registry.open(network.network.utility("Aurora").directory / "ca")
    secret = {"secret": registry.reset_secret(f"flow-24-{key}")}
    with no_room_for(key):
        step = await hass.config_entries.flow.async_configure(flow["flow_id"], secret)
    assert step["errors"] == {"base": "not_stored"}
    assert await vault.async_load_secrets(hass, entry.unique_id) == secrets
    step = await hass.config_entries.flow.async_configure(flow["flow_id"], secret)
    assert (step["type"], step["reason"]) == (FlowResultType.ABORT, "reauth_successful")
    await hass.async_block_till_done()
    assert await vault.async_load_secrets(hass, entry.unique_id) != secrets
    await hass.config_entries.async_unload(entry.entry_id)


@pytest.mark.parametrize("closed_at", ["user", "confirm", "plant", "enrolled"])
async def test_an_invitation_works_again_wherever_the_dialog_was_closed(
    hass: HomeAssistant, network: RunningNetwork, closed_at: str
) -> None:
    invitation = network.invitation(f"flow-13-{closed_at}", f"H-FLOW-13-{closed_at.upper()}")
    if closed_at == "user":
        step = await hass.config_entries.flow.async_init(DOMAIN, context={"source": SOURCE_USER})
    else:
        step = await first_form(hass, invitation)
    if closed_at in ("plant", "enrolled"):
        step = await confirm(hass, step)
    if closed_at == "enrolled":
        # The secret is used up, and then Home Assistant dies before the entry is stored.
        with (
            patch.object(vault, "async_save_secrets", side_effect=OSError("power cut")),
            pytest.raises(OSError, match="power cut"),
        ):
            await fill_in(hass, step, PLANT)
    hass.config_entries.flow.async_abort(step["flow_id"])
    entry = await join(hass, invitation, PLANT)
    await hass.config_entries.async_remove(entry.entry_id)
    assert await vault._pending_store(hass).async_load() is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[:-9],
        lambda text: text.replace(".ey", ".eY"),
        lambda text: f"gridledger1.{'A' * 5000}.00000000",
    ],
)
async def test_what_is_no_invitation_is_said_at_once(
    hass: HomeAssistant, network: RunningNetwork, spoil: Any
) -> None:
    invitation = network.invitation(f"flow-14-{abs(hash(str(spoil)))}", "H-FLOW-14")
    step = await first_form(hass, spoil(invitation))
    assert (step["step_id"], step["errors"]) == ("user", {"invitation": "invalid_invitation"})
    # Pasted from a mail, with line breaks, as the end of a link.
    mailed = "https://aurora.example/join#" + invitation[:60] + "\r\n  " + invitation[60:]
    step = await hass.config_entries.flow.async_configure(step["flow_id"], {"invitation": mailed})
    shown = step["description_placeholders"]
    assert (shown["home"], shown["member"]) == ("H-FLOW-14", "AuroraMSP")
    assert shown["network"] == "neighbourhood"
    assert shown["gateways"].count("✓") == 3
    assert shown["fingerprint"].replace("\n", ":") == fingerprint(network.network.tls_bundle_pem)


async def test_an_invitation_to_elsewhere_is_not_trusted(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    invitation = Invitation.decode(network.invitation("flow-15", "H-FLOW-15"))
    for change, errors in (
        ({"fingerprint": "ab" * 32}, {"invitation": "fingerprint_mismatch"}),
        ({"ca_url": "https://127.0.0.1:1"}, {"base": "cannot_connect"}),
        ({"gateways": ("nowhere",)}, {"invitation": "invalid_address"}),
    ):
        step = await first_form(hass, replace(invitation, **change).encode())
        assert step["errors"] == errors
    used = replace(invitation, secret="another")
    step = await confirm(hass, await first_form(hass, used.encode()))
    step = await fill_in(hass, step, PLANT)
    assert (step["step_id"], step["errors"]) == ("user", {"invitation": "invalid_auth"})


async def test_odd_sensors_are_shown_and_forbid_nothing(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    report_plant(hass)
    set_state(hass, IMPORT, "1000", "kWh")
    set_state(hass, EXPORT, 3.5, "kWh", state_class="measurement")
    set_state(hass, GRID_POWER, 3.5, "V")
    set_state(hass, LEVEL, 180, "%")
    set_state(hass, PV_POWER, "much", "W")
    set_state(hass, PV_ENERGY, 1.5, "m")
    hass.states.async_set(BATTERY_POWER, "unavailable")
    step = await first_form(hass, network.invitation("flow-16", "H-FLOW-16"))
    step = await confirm(hass, step)
    step = await hass.config_entries.flow.async_configure(step["flow_id"], PLANT)
    assert step["errors"] == {"base": "look_again"}
    live = step["description_placeholders"]["live"]
    for text in ("large steps", "counts nothing", "doesn't fit", "no number", "no value now"):
        assert text in live
    assert "Grid import (energy): **1000 kWh**" in live
    set_state(hass, IMPORT, 1000.5)
    with patch("homeassistant.util.dt.utcnow", return_value=dt_util.utcnow() + timedelta(hours=1)):
        step = await hass.config_entries.flow.async_configure(step["flow_id"], PLANT)
        assert "15 minutes" in step["description_placeholders"]["live"]
        step = await hass.config_entries.flow.async_configure(step["flow_id"], PLANT)
    assert step["type"] is FlowResultType.CREATE_ENTRY
    await hass.async_block_till_done()
    await hass.config_entries.async_unload(step["result"].entry_id)


async def wallet(network: RunningNetwork, name: str) -> tuple[dict[str, Any], Credentials]:
    """An identity that was enrolled elsewhere, and what its owner types."""
    given = network.invite(name, f"H-{name.upper()}")
    bundle = network.network.tls_bundle_pem
    credentials = await enroll(given["ca_url"], name, given["secret"], bundle)
    stated = {
        "credentials": {
            "certificate": credentials.certificate_pem.decode(),
            "privateKey": credentials.key_pem.decode(),
        },
        "mspId": "AuroraMSP",
        "type": "X.509",
        "version": 1,
    }
    return {
        "gateways": given["gateways"],
        "channel": given["channel"],
        "identity": json.dumps(stated),
        "ca_bundle": bundle.decode(),
    }, credentials


async def wallet_form(hass: HomeAssistant, given: dict[str, Any]) -> Any:
    step = await hass.config_entries.flow.async_init(DOMAIN, context={"source": SOURCE_USER})
    step = await hass.config_entries.flow.async_configure(
        step["flow_id"], {"other": {"way": "wallet"}}
    )
    assert step["step_id"] == "wallet"
    return await hass.config_entries.flow.async_configure(step["flow_id"], given)


async def test_a_wallets_identity_joins_and_is_renewed_by_its_owner(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    await prepare_connection(network, "H-WALLET-1")
    given, _ = await wallet(network, "wallet-1")
    pem = json.loads(given["identity"])["credentials"]
    only_key = {**given, "identity": pem["certificate"]}
    for change, errors in (
        (only_key, {"identity": "invalid_identity"}),
        ({**given, "identity": "{}"}, {"identity": "invalid_identity"}),
        (
            {**given, "identity": pem["certificate"] + pem["privateKey"]},
            {"identity": "invalid_identity"},
        ),
        ({**given, "gateways": "nowhere"}, {"gateways": "invalid_address"}),
        ({**given, "ca_bundle": ""}, {"ca_bundle": "trust_needed"}),
    ):
        step = await wallet_form(hass, change)
        assert step["errors"] == errors
    step = await confirm(hass, await wallet_form(hass, given))
    step = await fill_in(hass, step, PLANT)
    assert step["type"] is FlowResultType.CREATE_ENTRY
    await hass.async_block_till_done()
    entry = step["result"]
    assert (entry.unique_id, "ca_url" in entry.data) == ("neighbourhood:H-WALLET-1", False)
    await eventually(lambda: entry.runtime_data.session.data.connected)
    meter_key = entry.runtime_data.session._meter_key.public_key_pem
    step = await wallet_form(hass, given)
    assert (step["type"], step["reason"]) == (FlowResultType.ABORT, "already_configured")

    entry.async_start_reauth(hass)
    await hass.async_block_till_done()
    flow = next(
        flow
        for flow in hass.config_entries.flow.async_progress_by_handler(DOMAIN)
        if flow["context"]["source"] == SOURCE_REAUTH
    )
    assert flow["step_id"] == "reauth_wallet"
    other, _ = await wallet(network, "wallet-2")
    for text, errors in (
        ("nonsense", {"identity": "invalid_identity"}),
        (other["identity"], {"base": "wrong_home"}),
    ):
        step = await hass.config_entries.flow.async_configure(flow["flow_id"], {"identity": text})
        assert step["errors"] == errors
    own = {"identity": pem["certificate"] + pem["privateKey"]}
    with no_room_for("wallet_1"):
        step = await hass.config_entries.flow.async_configure(flow["flow_id"], own)
    assert step["errors"] == {"base": "not_stored"}
    step = await hass.config_entries.flow.async_configure(flow["flow_id"], own)
    assert (step["type"], step["reason"]) == (FlowResultType.ABORT, "reauth_successful")
    await hass.async_block_till_done()
    await eventually(lambda: entry.runtime_data.session.data.connected)
    assert entry.runtime_data.session._meter_key.public_key_pem == meter_key
    await hass.config_entries.async_unload(entry.entry_id)


async def announced(network: RunningNetwork, **properties: str) -> ZeroconfServiceInfo:
    """What Home Assistant makes of what `gridledger network announce` tells."""
    given = network.network
    info = info_from_service(await service(given, given.utility("Aurora")))
    assert info is not None
    return replace(info, properties={**info.properties, **properties})


async def discover(hass: HomeAssistant, info: ZeroconfServiceInfo) -> Any:
    return await hass.config_entries.flow.async_init(
        DOMAIN, context={"source": SOURCE_ZEROCONF}, data=info
    )


async def test_a_network_is_discovered(hass: HomeAssistant, network: RunningNetwork) -> None:
    step = await discover(hass, await announced(network, ca=""))
    assert (step["type"], step["reason"]) == (FlowResultType.ABORT, "not_supported")
    given = network.invite("flow-17", "H-FLOW-17")
    step = await discover(hass, await announced(network, ca="https://127.0.0.1:1"))
    step = await hass.config_entries.flow.async_configure(
        step["flow_id"], {"enrollment_id": "flow-17", "secret": "x"}
    )
    assert step["errors"] == {"base": "cannot_connect"}
    step = await discover(hass, await announced(network))
    assert step["step_id"] == "discovered"
    again = await discover(hass, await announced(network))
    assert again["reason"] == "already_in_progress"
    for secret, expected in (("wrong", FlowResultType.FORM), (given["secret"], "create_entry")):
        step = await hass.config_entries.flow.async_configure(
            step["flow_id"], {"enrollment_id": "flow-17", "secret": secret}
        )
        step = await fill_in(hass, await confirm(hass, step), PLANT)
        assert step["type"] == expected
        if secret == "wrong":
            assert (step["step_id"], step["errors"]) == ("discovered", {"secret": "invalid_auth"})
    await hass.async_block_till_done()
    entry = step["result"]
    # Known already: another gateway of the same network is one more way to it.
    info = await announced(network, gateway="second.example:7051")
    for _ in range(2):
        step = await discover(hass, info)
        assert (step["type"], step["reason"]) == (FlowResultType.ABORT, "already_configured")
    await hass.async_block_till_done()
    assert entry.data["gateways"][-1] == "second.example:7051"
    assert len(entry.data["gateways"]) == 2
    # A network that the home isn't in is another one; without a name of its own the gateway is
    # where it answered.
    info = replace(
        await announced(network, channel="elsewhere", gateway="", utility=""),
        ip_address=ip_address("2001:db8::7"),
    )
    step = await discover(hass, info)
    assert step["step_id"] == "discovered"
    assert step["description_placeholders"]["network"] == "elsewhere"
    assert step["description_placeholders"]["gateway"] == f"[2001:db8::7]:{info.port}"
    hass.config_entries.flow.async_abort(step["flow_id"])
    await hass.config_entries.async_unload(entry.entry_id)


async def test_reauth_takes_an_invitation_of_the_same_home(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    entry = await join(hass, network.invitation("flow-18", "H-FLOW-18"), PLANT)
    entry.async_start_reauth(hass)
    await hass.async_block_till_done()
    [flow] = hass.config_entries.flow.async_progress_by_handler(DOMAIN)
    fresh = network.invitation("flow-18b", "H-FLOW-18")
    for secret, errors in (
        (fresh[:-4], {"secret": "invalid_invitation"}),
        (fresh, {"base": "wrong_home"}),
    ):
        step = await hass.config_entries.flow.async_configure(flow["flow_id"], {"secret": secret})
        assert step["errors"] == errors
    registry = Registry.open(network.network.utility("Aurora").directory / "ca")
    again = Invitation.decode(fresh)
    again = replace(again, enrollment_id="flow-18", secret=registry.reset_secret("flow-18"))
    step = await hass.config_entries.flow.async_configure(
        flow["flow_id"], {"secret": again.encode()}
    )
    assert (step["type"], step["reason"]) == (FlowResultType.ABORT, "reauth_successful")
    await hass.async_block_till_done()
    await hass.config_entries.async_unload(entry.entry_id)


async def test_options(hass: HomeAssistant, network: RunningNetwork) -> None:
    entry = await join(hass, network.invitation("flow-19", "H-FLOW-19"), PLANT)
    session = entry.runtime_data.session
    step = await hass.config_entries.options.async_init(entry.entry_id)
    step = await hass.config_entries.options.async_configure(
        step["flow_id"], {"administrators_only": True, "daily_limit": 2.5}
    )
    assert step["type"] is FlowResultType.CREATE_ENTRY
    await hass.async_block_till_done()
    assert entry.options == {"administrators_only": True, "daily_limit": 2.5}
    assert entry.runtime_data.session is session  # nothing was reloaded
    await hass.config_entries.async_unload(entry.entry_id)


async def test_a_certificate_is_renewed_without_its_owner_and_without_a_reload(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    await prepare_connection(network, "H-FLOW-20")
    entry = await join(hass, network.invitation("flow-20", "H-FLOW-20"), PLANT)
    session = entry.runtime_data.session
    await eventually(lambda: session.data.connected)
    first = session.client.identity
    assert not await async_renew_if_due(hass, entry, session)
    with patch(
        "custom_components.gridledger.renewal.renewal_due",
        return_value=first.certificate.not_valid_before_utc,
    ):
        assert await async_renew_if_due(hass, entry, session)
    second = session.client.identity
    assert second.certificate.serial_number != first.certificate.serial_number
    secrets = await vault.async_load_secrets(hass, entry.unique_id)
    assert secrets["certificate"].encode() == second.certificate_pem
    assert await vault._pending_store(hass).async_load() is None
    await session.async_refresh_market()  # with the new one
    assert entry.runtime_data.session is session

    # The CA is away until the end is near: its owner is told, and later it goes by itself.
    issue = f"certificate_expires_{entry.entry_id}"
    with (
        patch(
            "custom_components.gridledger.renewal.dt_util.utcnow",
            return_value=second.certificate.not_valid_after_utc - timedelta(days=2),
        ),
    ):
        with patch(
            "custom_components.gridledger.renewal.reenroll", side_effect=ConnectionFailed("away")
        ):
            assert not await async_renew_if_due(hass, entry, session)
        assert ir.async_get(hass).async_get_issue(DOMAIN, issue) is not None
        assert await async_renew_if_due(hass, entry, session)
    assert ir.async_get(hass).async_get_issue(DOMAIN, issue) is None

    # Without its keys nothing can be renewed, and nothing says that it was.
    third = session.client.identity
    await vault.async_remove_secrets(hass, entry.unique_id)
    with patch(
        "custom_components.gridledger.renewal.renewal_due",
        return_value=third.certificate.not_valid_before_utc,
    ):
        assert not await async_renew_if_due(hass, entry, session)
    assert session.client.identity is third
    await hass.config_entries.async_unload(entry.entry_id)


async def test_the_grid_must_be_measured(hass: HomeAssistant, network: RunningNetwork) -> None:
    step = await confirm(hass, await first_form(hass, network.invitation("flow-6", "H-FLOW-6")))
    step = await hass.config_entries.flow.async_configure(step["flow_id"], {})
    assert (step["step_id"], step["errors"]) == ("plant", {"grid_import_energy": "grid_needed"})


async def test_the_same_home_joins_once(hass: HomeAssistant, network: RunningNetwork) -> None:
    invitation = network.invite("flow-7", "H-FLOW-7")
    entry = await join(hass, invitation, PLANT)
    step = await first_form(hass, invitation)
    assert (step["type"], step["reason"]) == (FlowResultType.ABORT, "already_configured")
    await hass.config_entries.async_unload(entry.entry_id)


async def test_reauth_enrols_again_and_keeps_the_meter(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    await prepare_connection(network, "H-FLOW-8")
    report_plant(hass)
    entry = await join(hass, network.invite("flow-8", "H-FLOW-8"), PLANT)
    await eventually(lambda: entry.runtime_data.session.data.connected)
    meter_key = entry.runtime_data.session._meter_key.public_key_pem
    certificate = entry.runtime_data.session.client.identity.certificate_pem

    # Its utility lets it enrol anew under the same name; here another name of the same home.
    again = network.invite("flow-8b", "H-FLOW-8")
    hass.config_entries.async_update_entry(
        entry, data={**entry.data, "enrollment_id": again["enrollment_id"]}
    )
    await hass.async_block_till_done()
    entry.async_start_reauth(hass)
    await hass.async_block_till_done()
    [flow] = hass.config_entries.flow.async_progress_by_handler(DOMAIN)
    step = await hass.config_entries.flow.async_configure(flow["flow_id"], {"secret": "wrong"})
    assert step["errors"] == {"base": "invalid_auth"}
    step = await hass.config_entries.flow.async_configure(
        flow["flow_id"], {"secret": again["secret"]}
    )
    assert (step["type"], step["reason"]) == (FlowResultType.ABORT, "reauth_successful")
    await hass.async_block_till_done()
    assert entry.state is ConfigEntryState.LOADED
    session = entry.runtime_data.session
    assert session._meter_key.public_key_pem == meter_key
    assert session.client.identity.certificate_pem != certificate
    await eventually(lambda: session.data.connected)
    await hass.config_entries.async_unload(entry.entry_id)


async def test_reauth_refuses_another_home(hass: HomeAssistant, network: RunningNetwork) -> None:
    entry = await join(hass, network.invite("flow-9", "H-FLOW-9"), PLANT)
    other = network.invite("flow-9b", "H-OTHER")
    hass.config_entries.async_update_entry(
        entry, data={**entry.data, "enrollment_id": other["enrollment_id"]}
    )
    await hass.async_block_till_done()
    entry.async_start_reauth(hass)
    await hass.async_block_till_done()
    [flow] = hass.config_entries.flow.async_progress_by_handler(DOMAIN)
    step = await hass.config_entries.flow.async_configure(
        flow["flow_id"], {"secret": other["secret"]}
    )
    assert step["errors"] == {"base": "wrong_home"}
    await hass.config_entries.async_unload(entry.entry_id)


async def test_reconfigure_changes_gateways_and_sensors(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    entry = await join(hass, network.invite("flow-10", "H-FLOW-10"), PLANT)
    step = await hass.config_entries.flow.async_init(
        DOMAIN, context={"source": SOURCE_RECONFIGURE, "entry_id": entry.entry_id}
    )
    assert step["step_id"] == "reconfigure"
    step = await hass.config_entries.flow.async_configure(
        step["flow_id"], {"gateways": "nowhere", **PLANT}
    )
    assert step["errors"] == {"gateways": "invalid_address"}
    gateway = network.network.utility("Boreal").gateway_address
    step = await hass.config_entries.flow.async_configure(
        step["flow_id"], {"gateways": gateway, **PLANT, "battery_reserve": 35}
    )
    assert (step["type"], step["reason"]) == (FlowResultType.ABORT, "reconfigure_successful")
    await hass.async_block_till_done()
    assert entry.data["gateways"] == [gateway]
    assert entry.data["plant"]["battery_reserve"] == 35
    assert entry.runtime_data.session.client.address == gateway
    # What the form names no sensors for any more is no device any more.
    registry = dr.async_get(hass)

    def devices() -> set[str]:
        found = dr.async_entries_for_config_entry(registry, entry.entry_id)
        return {name for device in found for _, name in device.identifiers}

    panels, battery = f"{entry.unique_id}_pv", f"{entry.unique_id}_battery"
    assert devices() >= {panels, battery}
    bare = {key: value for key, value in PLANT.items() if not key.startswith("pv_")}
    hass.config_entries.async_update_entry(entry, data={**entry.data, "plant": bare})
    await hass.async_block_till_done()
    assert panels not in devices()
    assert battery in devices()
    await hass.config_entries.async_unload(entry.entry_id)


async def test_a_bundle_file_has_a_limit(
    hass: HomeAssistant, network: RunningNetwork, tmp_path: Path
) -> None:
    uploaded = tmp_path / "bundle.pem"
    given = {**network.invite("flow-30", "H-FLOW-30"), "ca_bundle_file": "0" * 32}
    with patch(
        "custom_components.gridledger.config_flow.process_uploaded_file",
        lambda hass, file_id: nullcontext(uploaded),
    ):
        uploaded.write_bytes(b"-" * ((1 << 20) + 1))
        assert (await first_form(hass, given))["errors"] == {"ca_bundle_file": "invalid_bundle"}
        uploaded.write_bytes(network.network.tls_bundle_pem)
        assert (await first_form(hass, given))["step_id"] == "confirm"


async def test_what_went_wrong_has_a_text(hass: HomeAssistant) -> None:
    """Each kind of the client's errors; a gateway that isn't there is none at all."""
    texts = json.loads((Path(config_flow.__file__).parent / "strings.json").read_text())["config"][
        "error"
    ]
    for error, key in (
        (AuthenticationFailed("no"), "invalid_auth"),
        (ConnectionFailed("gone"), "cannot_connect"),
        (InvalidInput("odd"), "invalid_input"),
        (GridLedgerError("new"), "unknown"),
    ):
        assert config_flow._error_key(error) == key
        assert key in texts
    assert not await config_flow._is_reached("127.0.0.1:1")


async def test_what_can_be_set_up_beside_a_home(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    entry = await join(hass, network.invitation("flow-31", "H-FLOW-31"), PLANT)
    flow = config_flow.GridLedgerConfigFlow
    assert set(flow.async_get_supported_subentry_types(entry)) == set(
        entry.supported_subentry_types
    )
    await hass.config_entries.async_unload(entry.entry_id)
