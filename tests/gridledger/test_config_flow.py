"""Joining a network through Home Assistant's dialogs, at a real certificate authority."""

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from homeassistant.config_entries import SOURCE_RECONFIGURE, SOURCE_USER, ConfigEntryState
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.helpers.json import save_json
from homeassistant.setup import async_setup_component

from custom_components.gridledger import vault
from custom_components.gridledger.client import (
    AuthorityInfo,
    ConnectionFailed,
    Credentials,
    enroll,
    fetch_info,
)
from custom_components.gridledger.const import DOMAIN

from .conftest import (
    EXPORT,
    IMPORT,
    PLANT,
    RunningNetwork,
    eventually,
    join,
    prepare_connection,
    report_plant,
)

pytestmark = pytest.mark.usefixtures("sockets")


@pytest.fixture(autouse=True)
async def _core(hass: HomeAssistant) -> None:
    assert await async_setup_component(hass, "homeassistant", {})


async def first_form(hass: HomeAssistant, given: dict[str, Any]) -> Any:
    step = await hass.config_entries.flow.async_init(DOMAIN, context={"source": SOURCE_USER})
    assert (step["type"], step["step_id"]) == (FlowResultType.FORM, "user")
    return await hass.config_entries.flow.async_configure(step["flow_id"], given)


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
        step = await first_form(hass, network.invite("flow-2", "H-FLOW-2"))
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
    assert step["step_id"] == "plant"


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
    step = await first_form(hass, {**invitation, "secret": "wrong"})
    step = await hass.config_entries.flow.async_configure(step["flow_id"], PLANT)
    assert (step["step_id"], step["errors"]) == ("user", {"secret": "invalid_auth"})
    step = await hass.config_entries.flow.async_configure(step["flow_id"], invitation)
    assert suggested(step)["battery_reserve"] == 20  # what was filled in is there again
    step = await hass.config_entries.flow.async_configure(step["flow_id"], PLANT)
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
        assert step["step_id"] == "plant"
        step = await hass.config_entries.flow.async_configure(step["flow_id"], PLANT)
    assert step["type"] is FlowResultType.CREATE_ENTRY
    assert step["result"].data["msp_id"] == "AuroraMSP"
    await hass.async_block_till_done()
    await hass.config_entries.async_unload(step["result"].entry_id)


async def test_a_ca_that_goes_away_costs_nothing(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    """Enrolment fails at the last step: the dialog stays, and then succeeds."""
    step = await first_form(hass, network.invite("flow-12", "H-FLOW-12"))
    with patch(
        "custom_components.gridledger.config_flow.enroll", side_effect=ConnectionFailed("gone")
    ):
        step = await hass.config_entries.flow.async_configure(step["flow_id"], PLANT)
    assert (step["step_id"], step["errors"]) == ("plant", {"base": "cannot_connect"})
    step = await hass.config_entries.flow.async_configure(step["flow_id"], PLANT)
    assert step["type"] is FlowResultType.CREATE_ENTRY
    await hass.async_block_till_done()
    await hass.config_entries.async_unload(step["result"].entry_id)


async def test_closing_the_dialog_at_any_step_keeps_the_secret(
    hass: HomeAssistant, network: RunningNetwork
) -> None:
    invitation = network.invite("flow-13", "H-FLOW-13")
    step = await hass.config_entries.flow.async_init(DOMAIN, context={"source": SOURCE_USER})
    hass.config_entries.flow.async_abort(step["flow_id"])
    step = await first_form(hass, invitation)
    assert step["step_id"] == "plant"
    hass.config_entries.flow.async_abort(step["flow_id"])
    entry = await join(hass, invitation, PLANT)
    await hass.config_entries.async_unload(entry.entry_id)


async def test_the_grid_must_be_measured(hass: HomeAssistant, network: RunningNetwork) -> None:
    step = await first_form(hass, network.invite("flow-6", "H-FLOW-6"))
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

    entry.async_start_reauth(hass)
    await hass.async_block_till_done()
    [flow] = hass.config_entries.flow.async_progress_by_handler(DOMAIN)
    step = await hass.config_entries.flow.async_configure(flow["flow_id"], {"secret": "wrong"})
    assert step["errors"] == {"base": "invalid_auth"}
    # Its utility lets it enrol anew under the same name; here another name of the same home.
    again = network.invite("flow-8b", "H-FLOW-8")
    hass.config_entries.async_update_entry(
        entry, data={**entry.data, "enrollment_id": again["enrollment_id"]}
    )
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
    await hass.config_entries.async_unload(entry.entry_id)
