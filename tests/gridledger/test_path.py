"""The whole path of a home: sensors, intervals, outbox, ledger and back, on a real network."""

import asyncio
import json
import sqlite3
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from homeassistant.config_entries import ConfigEntryState
from homeassistant.core import HomeAssistant
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.helpers import device_registry as dr
from homeassistant.helpers import entity_registry as er
from homeassistant.helpers import issue_registry as ir
from homeassistant.setup import async_setup_component
from homeassistant.util import dt as dt_util
from pytest_homeassistant_custom_component.common import MockConfigEntry

from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
)
from custom_components.gridledger import vault
from custom_components.gridledger.client import (
    AuthenticationFailed,
    ClockBounds,
    CommitStatus,
    ConnectionFailed,
    Deadlines,
    Event,
    GatewayClient,
    GridLedgerError,
    Identity,
    Timeout,
    TransactionRefused,
    generate_key_pem,
)
from custom_components.gridledger.client.readings import Reading
from custom_components.gridledger.client.wire import common_pb2
from custom_components.gridledger.clock_check import async_check_clock, clock_ahead_s
from custom_components.gridledger.const import DOMAIN
from custom_components.gridledger.coordinator import HomeCoordinator
from custom_components.gridledger.diagnostics import async_get_config_entry_diagnostics
from custom_components.gridledger.figures_sensor import FIGURES

from .conftest import (
    EXPORT,
    GRID_POWER,
    IMPORT,
    LEVEL,
    PLANT,
    PV_ENERGY,
    RunningNetwork,
    eventually,
    join,
    prepare_connection,
    report_plant,
    set_state,
)


async def readings_of(network: RunningNetwork, meter_id: str) -> list[dict[str, Any]]:
    async with network.client() as operator:
        return await operator.evaluate(
            "metering",
            "metering:Readings",
            {"meter_id": meter_id, "from": 0, "to": 4_000_000_000},
            endorsing_organizations=["AuroraMSP"],
        )


def check_readings(readings: list[dict[str, Any]]) -> None:
    """Each interval once, none missing, and their sum the register's difference."""
    starts = [int(reading["interval_start"]) for reading in readings]
    assert starts == list(range(starts[0], starts[-1] + 60, 60))
    for direction in ("import", "export"):
        energy = [int(reading[f"{direction}_wh"]) for reading in readings]
        registers = [int(reading[f"{direction}_register_wh"]) for reading in readings]
        assert sum(energy[1:]) == registers[-1] - registers[0]


class House:
    """Sensors that go on counting while a test waits."""

    def __init__(self, hass: HomeAssistant) -> None:
        self.hass = hass
        self.imported_wh = 1_000_000
        self.exported_wh = 500_000

    async def live(self, seconds: float) -> None:
        """Draw 180 Wh and give 60 Wh a second, which is an interval."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.imported_wh += 18
            self.exported_wh += 6
            set_state(self.hass, IMPORT, self.imported_wh, "Wh")
            set_state(self.hass, EXPORT, self.exported_wh / 1000, "kWh")
            await asyncio.sleep(0.1)


async def test_energy_reaches_the_ledger_to_the_wh(
    hass: HomeAssistant, home: Any, network: RunningNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    session = home.runtime_data.session
    house = House(hass)
    await house.live(2)
    full = sqlite3.OperationalError("database or disk is full")
    with patch.object(home.runtime_data.outbox, "append", side_effect=full):
        await house.live(1.5)
    assert "Readings can't be stored" in caplog.text
    await house.live(2)  # they go with the next interval
    await eventually(lambda: session.data.queued == 0 and session.data.last_committed)
    readings = await readings_of(network, session.meter_id)
    assert len(readings) >= 3
    check_readings(readings)
    assert sum(int(reading["import_wh"]) for reading in readings) > 300
    # A busy machine may leave single seconds unseen, which then are estimates.
    assert "measured" in {reading["quality"] for reading in readings}


async def test_ledger_and_home_assistant_go_away_in_turn(
    hass: HomeAssistant, home: Any, network: RunningNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(hass)
    await house.live(3)
    await eventually(lambda: home.runtime_data.session.data.last_committed)

    # The ledger dies; the home goes on metering and says so once.
    await asyncio.to_thread(network.kill)
    await house.live(4)
    session = home.runtime_data.session
    await eventually(lambda: not session.data.connected)
    await eventually(lambda: session.data.queued >= 3)
    assert caplog.text.count("the ledger is away") == 1

    # Home Assistant restarts while the ledger is still away: the entry loads and meters.
    assert await hass.config_entries.async_unload(home.entry_id)
    assert await hass.config_entries.async_setup(home.entry_id)
    assert home.state is ConfigEntryState.LOADED
    session = home.runtime_data.session
    assert session.data.queued >= 3
    await house.live(3)

    # The ledger returns: everything arrives, each interval once.
    await asyncio.to_thread(network.start)
    await eventually(lambda: session.data.connected)
    await house.live(2)
    await eventually(lambda: session.data.queued == 0)
    assert caplog.text.count("the ledger is back") == 1
    readings = await readings_of(network, session.meter_id)
    assert len(readings) >= 10
    check_readings(readings)
    assert session.data.refused == 0


async def test_unknown_outcome_is_asked_for_not_sent_anew(
    hass: HomeAssistant, home: Any, network: RunningNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Home Assistant dies after the envelope is stored: before, and after, it was sent."""
    monkeypatch.setattr("custom_components.gridledger.session._ASK_FIRST_S", 2.0)
    runtime = home.runtime_data
    session, outbox = runtime.session, runtime.outbox
    house = House(hass)
    await house.live(2.5)
    # With nothing under way: it would be committed in between, and the others conflict with it.
    await eventually(lambda: session.data.last_committed and session.data.queued == 0)
    await session.async_stop()  # nothing sends any more

    await house.live(4)
    waiting = await hass.async_add_executor_job(outbox.queued, 100)
    assert len(waiting) >= 3
    from gridledger_client.readings import batch_transient

    carried = {}
    async with network_client(session, network) as client:
        # The later one is sent: the earlier is endorsed without it, so both can be valid.
        for sent, reading in zip((False, True), waiting, strict=False):
            prepared = client.prepare(
                "metering",
                "metering:SubmitReadings",
                {"utility": "AuroraMSP"},
                transient=batch_transient([reading.fields]),
                endorsing_organizations=["AuroraMSP"],
            )
            signed = await client.endorse(prepared)
            await hass.async_add_executor_job(
                outbox.store_envelope,
                signed.transaction_id,
                signed.envelope,
                [reading.interval_start],
            )
            carried[reading.interval_start] = signed.transaction_id
            if sent:
                await client.submit_signed(signed)
        # One has a wrong signature, which the orderers will never take; one can't even be read.
        spoilt = waiting[2].interval_start
        envelope = common_pb2.Envelope.FromString(signed.envelope)
        envelope.signature = envelope.signature[:-1] + bytes([envelope.signature[-1] ^ 1])
        for transaction_id, damaged, starts in (
            ("e" * 64, envelope.SerializeToString(), [spoilt]),
            ("f" * 64, b"damaged", []),
        ):
            await hass.async_add_executor_job(
                outbox.store_envelope, transaction_id, damaged, starts
            )
    undecided = await hass.async_add_executor_job(outbox.undecided)
    assert set(carried.values()) < {envelope.transaction_id for envelope in undecided}

    assert await hass.config_entries.async_unload(home.entry_id)
    assert await hass.config_entries.async_setup(home.entry_id)
    session = home.runtime_data.session
    await eventually(lambda: session.data.connected)
    await eventually(lambda: session.data.queued == 0)
    stored = await hass.async_add_executor_job(home.runtime_data.outbox.recent, 1000)
    by_start = {reading.interval_start: reading for reading in stored}
    for interval_start, transaction_id in carried.items():
        assert by_start[interval_start].transaction_id == transaction_id
    assert by_start[spoilt].state == "committed"
    assert session.data.refused == 0
    check_readings(await readings_of(network, session.meter_id))

    # A backup of yesterday brings readings back that the ledger has: they are recognised.
    count = len(await readings_of(network, session.meter_id))
    assert await hass.config_entries.async_unload(home.entry_id)
    await hass.async_add_executor_job(
        _queue_again, vault.outbox_path(hass, home.unique_id), sorted(by_start)[-1]
    )
    assert await hass.config_entries.async_setup(home.entry_id)
    session = home.runtime_data.session
    await eventually(lambda: session.data.connected and session.data.queued == 0)
    assert session.data.refused == 0
    readings = await readings_of(network, session.meter_id)
    assert len(readings) >= count
    check_readings(readings)


def _queue_again(path: str, until: int) -> None:
    """Have the outbox think that its readings were never sent."""
    db = sqlite3.connect(path)
    with db:
        db.execute(
            "UPDATE reading SET state = 'queued', transaction_id = NULL WHERE interval_start <= ?",
            (until,),
        )
    db.close()


def network_client(session: Any, network: RunningNetwork) -> Any:
    """A second client with the home's own identity."""
    from gridledger_client import GatewayClient, Identity

    identity = session.client.identity
    key_pem = identity._key.private_bytes(*_PEM)
    return GatewayClient(
        session.client.addresses,
        session.client.channel,
        Identity(identity.msp_id, identity.certificate_pem, key_pem),
        network.network.tls_bundle_pem,
    )


def _pem_format() -> tuple[Any, ...]:
    from cryptography.hazmat.primitives import serialization

    return (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


_PEM = _pem_format()


async def test_a_restored_backup_goes_on_after_the_ledger(
    hass: HomeAssistant, home: Any, network: RunningNetwork
) -> None:
    house = House(hass)
    await house.live(4)
    session = home.runtime_data.session
    await eventually(lambda: session.data.queued == 0 and session.data.last_committed)
    assert await hass.config_entries.async_unload(home.entry_id)
    old = await hass.async_add_executor_job(
        _forget_readings, vault.outbox_path(hass, home.unique_id)
    )
    assert old
    assert await hass.config_entries.async_setup(home.entry_id)
    session = home.runtime_data.session
    await house.live(4)
    await eventually(lambda: session.data.queued == 0 and session.data.last_committed)
    check_readings_rise(await readings_of(network, session.meter_id))
    assert session.data.refused == 2  # what was cut a second time, never sent
    issues, named = ir.async_get(hass), f"foreign_reading_{home.entry_id}"
    assert issues.async_get_issue(DOMAIN, named) is not None

    # The whole file is lost: it goes on after the ledger, too, and its registers never fall.
    ir.async_delete_issue(hass, DOMAIN, named)
    assert await hass.config_entries.async_unload(home.entry_id)
    await hass.async_add_executor_job(_lose, vault.outbox_path(hass, home.unique_id))
    count = len(await readings_of(network, session.meter_id))
    hass.states.async_set(IMPORT, "unavailable")  # or an interval of a second is cut too soon
    assert await hass.config_entries.async_setup(home.entry_id)
    runtime = home.runtime_data
    session = runtime.session
    await eventually(lambda: runtime.home.meter and runtime.home.meter.cut_at)
    await house.live(2)
    await eventually(lambda: session.data.queued == 0 and session.data.last_committed)
    readings = await readings_of(network, session.meter_id)
    assert len(readings) > count
    check_readings_rise(readings)
    assert issues.async_get_issue(DOMAIN, named) is not None


def _lose(path: str) -> None:
    for file in Path(path).parent.glob(f"{Path(path).name}*"):
        file.unlink()


def _forget_readings(path: str) -> bool:
    """Bring the outbox back to where it was some intervals ago."""
    db = sqlite3.connect(path)
    with db:
        db.execute("DELETE FROM reading")
        [(state,)] = db.execute("SELECT value FROM fact WHERE name = 'meter'")
        cut_at = json.loads(state)["cut_at"] - 2 * 60
        db.execute(
            "UPDATE fact SET value = json_set(value, '$.cut_at', ?) WHERE name = 'meter'", (cut_at,)
        )
        changed = db.total_changes > 0
    db.close()
    return changed


def check_readings_rise(readings: list[dict[str, Any]]) -> None:
    registers = [int(reading["import_register_wh"]) for reading in readings]
    assert registers == sorted(registers)
    assert len({reading["interval_start"] for reading in readings}) == len(readings)


async def test_what_repeats_the_owners_sensors_is_disabled(hass: HomeAssistant, home: Any) -> None:
    entities = er.async_entries_for_config_entry(er.async_get(hass), home.entry_id)
    disabled = {
        entity.unique_id.removeprefix(f"{home.unique_id}_")
        for entity in entities
        if entity.disabled_by
    }
    assert {"pv_power", "battery_level", "grid_power", "grid_import_energy"} <= disabled
    assert {"co2_avoided", "reading_delay", *(figure.key for figure in FIGURES)} <= disabled
    assert not {"consumption_power", "stored_energy", "best_rate", "balance"} & disabled
    assert len(entities) - len(disabled) <= 25


async def test_entities(hass: HomeAssistant, home: Any) -> None:
    for entity in er.async_entries_for_config_entry(er.async_get(hass), home.entry_id):
        er.async_get(hass).async_update_entity(entity.entity_id, disabled_by=None)
    await hass.config_entries.async_reload(home.entry_id)
    await eventually(lambda: home.runtime_data.session.data.connected)
    await House(hass).live(2.5)
    report_plant(hass, imported=1001, exported=501)
    home.runtime_data.home._publish()
    registry = er.async_get(hass)
    entities = {
        entity.unique_id.removeprefix(f"{home.unique_id}_"): hass.states.get(entity.entity_id)
        for entity in er.async_entries_for_config_entry(registry, home.entry_id)
    }
    value = {key: state.state for key, state in entities.items()}
    assert float(value["pv_power"]) == 2500
    assert float(value["battery_level"]) == 80
    assert float(value["stored_energy"]) == 8
    assert float(value["grid_power"]) == -1500
    assert float(value["consumption_power"]) == 2500 - 400 - 1500
    assert value["ledger_connected"] == "on"
    assert float(value["best_rate"]) == 0.13
    assert entities["best_rate"].attributes["unit_of_measurement"] == "EUR/kWh"
    assert entities["best_rate"].attributes["supplier"] == "BorealMSP"
    assert float(value["balance"]) == 0
    assert float(value["energy_sold_today"]) == 0
    assert float(value["delivery_power"]) == 0
    assert float(value["grid_import_energy"]) > 0
    assert value["plant_fault"] == "off"
    assert value["open_orders"] == "0"
    assert dt_util.parse_datetime(value["certificate_expires"]) > dt_util.utcnow()
    assert float(value["co2_avoided"]) >= 0
    # What is asked for only while somebody has enabled it.
    asked = ("held", "tokens", "certificates", "energy_sold_month", "revenue_month", "cost_today")

    def known() -> bool:
        keys = (*asked, "ledger_height", "share_own", "bill_forecast")
        entities.update({key: hass.states.get(entities[key].entity_id) for key in keys})
        value.update({key: entities[key].state for key in keys})
        return not {"unknown", "unavailable"} & {value[key] for key in (*asked, "ledger_height")}

    await eventually(known)
    assert {float(value[key]) for key in asked} == {0}
    assert float(value["ledger_height"]) > 5
    assert entities["cost_today"].attributes["unit_of_measurement"] == "EUR"
    assert "last_reset" in entities["cost_today"].attributes
    assert value["share_own"] == "unknown", "there is no recorder here"
    assert value["bill_forecast"] == "unknown", "nothing was billed"
    devices = dr.async_entries_for_config_entry(dr.async_get(hass), home.entry_id)
    [root] = [device for device in devices if (DOMAIN, home.unique_id) in device.identifiers]
    assert {d.via_device_id for d in devices if d is not root} == {root.id}
    # Unavailable is not zero.
    hass.states.async_set("sensor.pv_power", "unavailable")
    home.runtime_data.home._publish()
    await hass.async_block_till_done()
    pv = next(e.entity_id for e in registry.entities.values() if e.unique_id.endswith("_pv_power"))
    assert hass.states.get(pv).state == "unavailable"
    await check_co2_avoided(hass, home)


async def check_co2_avoided(hass: HomeAssistant, home: Any) -> None:
    """Each kWh counts with what the grid emits as it is made; nobody's word is 250 g."""

    total = 7000

    async def made(pv_kwh: int) -> int:
        nonlocal total
        for _ in range(pv_kwh):  # no home makes 10 kWh at once
            total += 1
            set_state(hass, PV_ENERGY, total)
        await hass.async_block_till_done()
        return home.runtime_data.home.measure().co2_avoided_kg

    assert await made(20) == 5
    maps = MockConfigEntry(domain="co2signal", state=ConfigEntryState.LOADED)
    maps.add_to_hass(hass)
    intensity = er.async_get(hass).async_get_or_create(
        "sensor", "co2signal", f"{maps.entry_id}_co2intensity", config_entry=maps
    )
    hass.states.async_set(intensity.entity_id, "400", {"unit_of_measurement": "gCO2eq/kWh"})
    assert await made(10) == 5 + 4
    hass.states.async_set(intensity.entity_id, "unavailable")
    assert await made(10) == 5 + 4 + 4, "what was said last stands"
    maps.mock_state(hass, ConfigEntryState.NOT_LOADED)
    await hass.config_entries.async_reload(home.entry_id)
    assert await made(0) == 5 + 4 + 4, "it outlasts a restart"


async def test_a_start_from_a_slow_disk_loses_no_count(
    hass: HomeAssistant, home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is stored meanwhile, it isn't what was not loaded yet."""
    await eventually(lambda: home.runtime_data.session.meter_id)
    report_plant(hass)
    for total in range(7001, 7021):
        set_state(hass, PV_ENERGY, total)
    await hass.async_block_till_done()
    before = home.runtime_data.home.measure()
    assert before.co2_avoided_kg == 5
    load = HomeCoordinator._load_counters

    def slowly(self: HomeCoordinator) -> None:
        time.sleep(3)
        load(self)

    monkeypatch.setattr(HomeCoordinator, "_load_counters", slowly)
    for _ in range(2):
        await hass.config_entries.async_reload(home.entry_id)
    after = home.runtime_data.home.measure()
    assert after.co2_avoided_kg == 5
    assert after.consumption_energy == before.consumption_energy > 0


async def test_sells_stored_energy(hass: HomeAssistant, home: Any) -> None:
    async def call(name: str, **data: Any) -> dict[str, Any]:
        return await hass.services.async_call(
            DOMAIN, name, data, blocking=True, return_response=True
        )

    session = home.runtime_data.session
    quote = await call("quote_sale", energy=1.2)
    assert (quote["supplier"], quote["price_per_kwh"]) == ("BorealMSP", 0.13)
    assert quote["net"] == pytest.approx(quote["gross"] - quote["grid_fee"] - quote["tax"])
    sale = await call("sell_energy", quote=quote["quote"], request_id="EVENING-1")
    assert sale["status"] == "committed"
    assert sale["net"] == quote["net"]

    # The same request once more is the same sale, though another as large is impossible.
    again = await call("sell_energy", quote=quote["quote"], request_id="EVENING-1")
    assert again["trade_id"] == sale["trade_id"]
    set_state(hass, LEVEL, 21, "%")
    again = await call("sell_energy", energy=1.2, request_id="EVENING-1")
    assert (again["trade_id"], again["block"]) == (sale["trade_id"], sale["block"])
    set_state(hass, LEVEL, 80, "%")

    await eventually(lambda: session.data.balance_micro == round(sale["net"] * 1e6))
    event = await eventually(
        lambda: next((s for s in hass.states.async_all("event") if s.state != "unknown"), None)
    )
    assert event.attributes["event_type"] == "committed"
    assert event.attributes["trade_id"] == sale["trade_id"]
    named = await call("sell_energy", energy=0.1, supplier="AuroraMSP")
    assert named["price_per_kwh"] == 0.11


@pytest.mark.parametrize(
    ("service", "data", "key"),
    [
        ("quote_sale", {"energy": 7}, "too_much_energy"),
        ("quote_sale", {"energy": 0.5, "supplier": "CieloMSP"}, "refused"),
        ("sell_energy", {"energy": 0.5, "minimum_price": 0.5}, "price_too_low"),
        ("sell_energy", {"quote": {"price_micro_per_kwh": "1"}}, "unreadable_quote"),
        ("sell_energy", {"quote": {}}, "unreadable_quote"),
        ("quote_sale", {"energy": 0.5, "config_entry": "nobody"}, "entry_not_found"),
        ("quote_sale", {"energy": 0.5, "window_start": "2020-01-01 00:00"}, "window_in_past"),
    ],
)
async def test_a_sale_is_refused_in_words(
    hass: HomeAssistant, home: Any, service: str, data: dict[str, Any], key: str
) -> None:
    with pytest.raises(ServiceValidationError) as error:
        await hass.services.async_call(DOMAIN, service, data, blocking=True, return_response=True)
    assert error.value.translation_key == key


async def test_an_expired_or_changed_quote_is_refused(hass: HomeAssistant, home: Any) -> None:
    quote = await hass.services.async_call(
        DOMAIN, "quote_sale", {"energy": 0.5}, blocking=True, return_response=True
    )
    for change in ({"net_micro": "999999999"}, {"quoted_at": "0", "valid_until": "1"}):
        with pytest.raises(ServiceValidationError) as error:
            await hass.services.async_call(
                DOMAIN,
                "sell_energy",
                {"quote": {**quote["quote"], **change}},
                blocking=True,
                return_response=True,
            )
        assert error.value.translation_key == "refused"
        assert "quote" in error.value.translation_placeholders["reason"]


async def test_a_battery_that_gives_less_than_the_connection(
    hass: HomeAssistant, home: Any
) -> None:
    home.runtime_data.seller._plant = {**PLANT, "battery_max_power": 3000}  # 50 Wh a minute
    for _ in range(2):
        await hass.services.async_call(
            DOMAIN, "sell_energy", {"energy": 0.12}, blocking=True, return_response=True
        )
    sales = home.runtime_data.session.data.trades.values()
    schedule = [part for sale in sales for part in sale.schedule]
    assert sum(energy_wh for _, energy_wh in schedule) == 240
    for start, _ in schedule:
        assert sum(energy_wh for other, energy_wh in schedule if other == start) <= 50


async def test_selling_needs_battery_and_ledger(hass: HomeAssistant, home: Any) -> None:
    async def sell() -> None:
        await hass.services.async_call(
            DOMAIN, "sell_energy", {"energy": 0.5}, blocking=True, return_response=True
        )

    hass.states.async_set(LEVEL, "unavailable")
    with pytest.raises(ServiceValidationError) as error:
        await sell()
    assert error.value.translation_key == "battery_unknown"
    set_state(hass, LEVEL, 80, "%")
    await home.runtime_data.session.client.close()
    with pytest.raises(HomeAssistantError) as failure:
        await sell()
    assert failure.value.translation_key == "not_connected"
    await hass.config_entries.async_unload(home.entry_id)
    with pytest.raises(ServiceValidationError) as error:
        await sell()
    assert error.value.translation_key == "entry_not_loaded"


async def test_diagnostics_tell_no_secrets(hass: HomeAssistant, home: Any) -> None:
    await House(hass).live(2.5)
    secrets = await vault.async_load_secrets(hass, home.unique_id)
    diagnostics = await async_get_config_entry_diagnostics(hass, home)
    text = repr(diagnostics)
    assert diagnostics["ledger"]["connected"] is True
    for secret in secrets.values():
        if secret != "AuroraMSP":
            assert secret not in text
    for private in ("PRIVATE", "CERTIFICATE", home.data["connection_id"], "import_wh"):
        assert private not in text


async def test_the_cards_read_everything(
    hass: HomeAssistant, home: Any, hass_ws_client: Any
) -> None:
    await House(hass).live(2.5)
    await eventually(lambda: home.runtime_data.session.data.last_committed)
    client = await hass_ws_client(hass)
    await client.send_json_auto_id({"type": "gridledger/homes"})
    [shown] = (await client.receive_json())["result"]["homes"]
    assert shown["sources"]["battery_level"] == [LEVEL]
    assert {"consumption_power", "trade", "ledger_connected"} <= set(shown["entities"])
    await client.send_json_auto_id({"type": "gridledger/overview", "entry_id": home.entry_id})
    overview = (await client.receive_json())["result"]
    assert overview["connected"] is True
    assert overview["readings"][0]["quality"] == "measured"
    assert overview["channel_time"].startswith("2025-06-")
    await client.send_json_auto_id({"type": "gridledger/overview", "entry_id": "nobody"})
    assert (await client.receive_json())["error"]["code"] == "not_found"


async def test_no_secrets_means_reauth(hass: HomeAssistant, home: Any) -> None:
    await hass.config_entries.async_unload(home.entry_id)
    await vault.async_remove_secrets(hass, home.unique_id)
    await hass.config_entries.async_setup(home.entry_id)
    await hass.async_block_till_done()
    assert home.state is ConfigEntryState.SETUP_ERROR
    [flow] = hass.config_entries.flow.async_progress_by_handler(DOMAIN)
    assert flow["context"]["source"] == "reauth"


async def test_removal_leaves_nothing(hass: HomeAssistant, home: Any) -> None:
    path = vault.outbox_path(hass, home.unique_id)
    await home.runtime_data.session._refuse({60: "for the test"})
    await hass.config_entries.async_remove(home.entry_id)
    await hass.async_block_till_done()
    assert await vault.async_load_secrets(hass, home.unique_id) is None
    assert not [issue for issue in ir.async_get(hass).issues if issue[0] == DOMAIN]
    assert not list(Path(path).parent.glob("gridledger*"))


async def test_joining_again_is_a_meter_exchange(
    hass: HomeAssistant, network: RunningNetwork, sockets: None
) -> None:
    await prepare_connection(network, "H-AGAIN")
    report_plant(hass)
    meters = []
    for number in (1, 2):
        entry = await join(hass, network.invite(f"again-{number}", "H-AGAIN"), PLANT)
        session = entry.runtime_data.session
        meters.append(await eventually(lambda session=session: session.meter_id))
        await hass.config_entries.async_remove(entry.entry_id)
        await hass.async_block_till_done()
    assert meters == ["HA-H-AGAIN", "HA-H-AGAIN-2"]


async def test_a_day_counts_its_own_sales(hass: HomeAssistant, home: Any) -> None:
    sale = await hass.services.async_call(
        DOMAIN, "sell_energy", {"energy": 0.3}, blocking=True, return_response=True
    )
    entity = next(
        e.entity_id
        for e in er.async_get(hass).entities.values()
        if e.unique_id == f"{home.unique_id}_energy_sold_today"
    )
    start = dt_util.parse_datetime(sale["window_start"])
    today = dt_util.start_of_local_day()
    expected = 0.3 if today <= start < today + timedelta(days=1) else 0.0
    await eventually(lambda: float(hass.states.get(entity).state) == expected)
    assert hass.states.get(entity).attributes["last_reset"] == today.isoformat()


async def test_a_reading_that_no_meter_can_have_is_set_aside(
    hass: HomeAssistant, home: Any, network: RunningNetwork
) -> None:
    session = home.runtime_data.session
    house = House(hass)
    await house.live(2.5)
    for _ in range(2):  # more in a minute than the connection can carry
        house.imported_wh += 2300
        await house.live(0.1)
    await house.live(4)
    await eventually(lambda: session.data.queued == 0 and session.data.refused)
    readings = await readings_of(network, session.meter_id)
    starts = [int(reading["interval_start"]) for reading in readings]
    missing = set(range(starts[0], starts[-1] + 60, 60)) - set(starts)
    refused = [
        reading
        for reading in await hass.async_add_executor_job(home.runtime_data.outbox.recent, 1000)
        if reading.state == "refused"
    ]
    assert missing == {reading.interval_start for reading in refused}
    assert all("can count at most" in reading.note for reading in refused)
    issue = ir.async_get(hass).async_get_issue(DOMAIN, f"readings_refused_{home.entry_id}")
    assert "can count at most" in issue.translation_placeholders["reason"]


async def test_a_sale_whose_answer_is_lost_is_asked_for(
    hass: HomeAssistant, home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = home.runtime_data.session.client

    async def submit_and_lose_the_answer(*arguments: Any, **options: Any) -> None:
        committed = await submit(*arguments, **options)
        raise Timeout("no answer", committed.transaction_id)

    submit = client.submit
    with patch.object(client, "submit", submit_and_lose_the_answer):
        sale = await hass.services.async_call(
            DOMAIN, "sell_energy", {"energy": 0.2}, blocking=True, return_response=True
        )
    assert sale["status"] == "committed"
    assert sale["energy_kwh"] == 0.2

    # What can't be known is said to be unknown, and what was refused to be refused.
    monkeypatch.setattr("custom_components.gridledger.selling._OUTCOME_S", 1.0)
    never, invalid = "a" * 64, CommitStatus(sale["transaction_id"], "MVCC_READ_CONFLICT", 7)
    valid = CommitStatus(never, "VALID", 7)
    for raised, status, key in (
        (Timeout("no answer"), None, "not_connected"),
        (Timeout("no answer", never), None, "outcome_unknown"),
        (Timeout("no answer", never), valid, "outcome_unknown"),  # and not in the ledger
        (Timeout("no answer", never), invalid, "commit_failed"),
        (AuthenticationFailed("who is that"), None, "not_accepted"),
    ):
        asked = patch.object(client, "commit_status", return_value=status) if status else None
        with patch.object(client, "submit", side_effect=raised), asked or nullcontext():
            with pytest.raises(HomeAssistantError) as error:
                await hass.services.async_call(
                    DOMAIN, "sell_energy", {"energy": 0.1}, blocking=True, return_response=True
                )
            assert error.value.translation_key == key, raised


async def test_refused_readings_wait_or_go_again(
    hass: HomeAssistant, home: Any, network: RunningNetwork
) -> None:
    session, house = home.runtime_data.session, House(hass)
    await house.live(2.5)
    await eventually(lambda: session.data.last_committed)
    meter, endorse = session.meter_id, session.client.endorse
    # A peer that is out of order; then a ledger that was begun anew and knows no such meter.
    refusals = [
        TransactionRefused("chaincode response 404, no such meter"),
        TransactionRefused("chaincode response 500, out of order"),
    ]

    async def refusing(prepared: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await endorse(prepared)

    with patch.object(session.client, "endorse", refusing):
        await house.live(2)
        await eventually(lambda: not refusals and session.data.queued == 0)
    assert session.meter_id == meter
    assert session.data.refused == 0

    # What the ledger will never take is set aside: alone, and beside what it takes.
    ahead = session.clock.interval_at(session.clock.channel(time.time())) + 60 * 60 * 24

    async def bring(first: int, *, good: bool) -> None:
        await session.async_stop()
        if good:
            await house.live(2.5)
        bad = [
            session.sign(Reading(meter, start, 60, 1, 0, 1, 0)).fields
            for start in range(first, first + 180, 60)
        ]
        outbox = home.runtime_data.outbox
        state = await hass.async_add_executor_job(outbox.fact, "meter")
        await hass.async_add_executor_job(outbox.append, bad, state)
        assert await hass.config_entries.async_reload(home.entry_id)

    for count, good in ((3, True), (6, False)):
        await bring(ahead, good=good)
        ahead += 86_400
        await eventually(
            lambda count=count: (
                home.runtime_data.session.data.refused == count
                and home.runtime_data.session.data.queued == 0
            )
        )
    session = home.runtime_data.session
    check_readings(await readings_of(network, meter))

    # A name that can't be had, and a hundred that are taken.
    for status, raised in ((403, TransactionRefused), (409, GridLedgerError)):
        refused = TransactionRefused(f"chaincode response {status}, no")
        session.meter_id = None
        with patch.object(session.client, "submit", side_effect=refused), pytest.raises(raised):
            await session._register_meter()
        session.meter_id = meter


async def test_a_home_without_energy_sensors(
    hass: HomeAssistant, network: RunningNetwork, sockets: None
) -> None:
    """Its power at the grid is integrated, and marked as an estimate."""
    await prepare_connection(network, "H-POWER")
    report_plant(hass)
    plant = {"grid_power": GRID_POWER}
    entry = await join(hass, network.invitation("h-power", "H-POWER"), plant)
    session = entry.runtime_data.session

    async def committed() -> list[dict[str, Any]]:
        return await readings_of(network, session.meter_id) if session.data.last_committed else []

    async def has_interval_of(direction: str, energy_wh: int) -> bool:
        return any(int(one[f"{direction}_wh"]) >= energy_wh - 1 for one in await committed())

    # The interval in which the power changes is no whole one.
    set_state(hass, GRID_POWER, -1500, "W")
    await eventually(lambda: has_interval_of("export", 25))
    set_state(hass, GRID_POWER, 600, "W")
    await eventually(lambda: has_interval_of("import", 10))
    set_state(hass, GRID_POWER, "unavailable", "W")
    await eventually(lambda: session.data.queued == 0)
    readings = await committed()
    check_readings(readings)
    assert {reading["quality"] for reading in readings} == {"estimated"}
    assert max(int(reading["export_wh"]) for reading in readings) <= 25
    assert max(int(reading["import_wh"]) for reading in readings) <= 10
    assert await hass.config_entries.async_unload(entry.entry_id)


async def test_a_refused_identity_asks_its_owner(
    hass: HomeAssistant, home: Any, network: RunningNetwork
) -> None:
    session = home.runtime_data.session
    authority, key = CertificateAuthority.create("Aurora", "aurora.example"), generate_key()
    certificate = authority.issue("h-1", "client", key.public_key())
    session.client.identity = Identity("AuroraMSP", certificate_pem(certificate), key_pem(key))
    session.async_look_again()
    await eventually(lambda: not session.data.connected)
    flows = hass.config_entries.flow
    [flow] = await eventually(lambda: flows.async_progress_by_handler(DOMAIN))
    assert flow["context"]["source"] == "reauth"


async def test_readings_wait_for_their_utility_while_the_market_goes_on(
    hass: HomeAssistant, home: Any, network: RunningNetwork
) -> None:
    """The peer of the home's utility is down; the others' gateways say so and serve the rest."""
    session = home.runtime_data.session
    client = session.client
    house = House(hass)
    await house.live(2.5)
    await eventually(lambda: session.data.last_committed)

    def without_aurora(call: Any) -> Any:
        async def refuse(*arguments: Any, **options: Any) -> Any:
            wanted = options.get("endorsing_organizations") or getattr(
                arguments[0], "endorsing_organizations", ()
            )
            if "AuroraMSP" in wanted:
                raise ConnectionFailed("no node could go on", gateway_answered=True)
            return await call(*arguments, **options)

        return refuse

    with (
        patch.object(client, "evaluate", without_aurora(client.evaluate)),
        patch.object(client, "endorse", without_aurora(client.endorse)),
    ):
        await hass.config_entries.async_reload(home.entry_id)  # a start finds it so, too
        session = home.runtime_data.session
        with (
            patch.object(session.client, "evaluate", without_aurora(session.client.evaluate)),
            patch.object(session.client, "endorse", without_aurora(session.client.endorse)),
        ):
            await eventually(lambda: session.data.connected)
            await house.live(3)
            await eventually(lambda: session.data.queued >= 2)
            assert session.data.connected
            sale = await hass.services.async_call(
                DOMAIN, "sell_energy", {"energy": 0.1}, blocking=True, return_response=True
            )
            assert sale["status"] == "committed"
            assert session.data.connected
    await house.live(1)
    await eventually(lambda: session.data.queued == 0)
    check_readings(await readings_of(network, session.meter_id))


async def test_an_answer_of_nonsense_does_not_end_the_session(
    hass: HomeAssistant, home: Any, caplog: pytest.LogCaptureFixture
) -> None:
    session = home.runtime_data.session
    evaluate = session.client.evaluate
    settings: list[dict[str, str]] = []

    async def nonsense(chaincode: str, function: str, *rest: Any, **options: Any) -> Any:
        if function == "wallet:Balance":
            return ["nonsense"]
        if function == "metering:Settings":
            settings.append({"interval_s": "0"})
            return settings[-1]
        return await evaluate(chaincode, function, *rest, **options)

    with patch.object(session.client, "evaluate", nonsense):
        with pytest.raises(HomeAssistantError) as error:
            await hass.services.async_call(
                DOMAIN, "quote_sale", {"energy": 0.1}, blocking=True, return_response=True
            )
        assert error.value.translation_key == "unexpected"
        session._refresh_wanted.set()
        await eventually(lambda: not session.data.connected)
        await eventually(lambda: settings)
        assert not session.data.connected
    await eventually(lambda: session.data.connected)

    # Events of nonsense, and those of another home, are passed over.
    known = session.data.trades
    days = session.days_settled
    for name, payload in (
        *(("trade", b"{}"), ("trade", b"no JSON"), ("bill", b"[]")),
        *(("settled", b"no JSON"), ("settled", b'{"connection_id": "H-OTHER"}')),
    ):
        assert not session._handle_event(Event(1, "e" * 64, "energy", name, payload))
    assert caplog.text.count("has an unreadable event") == 2
    assert session.days_settled == days
    assert session.data.trades is known
    await eventually(lambda: not session._account_wanted)  # what it can't tell apart is read anew

    with patch.object(session, "_keep_asking", side_effect=RuntimeError("our mistake")):
        session._refresh_wanted.set()
        await session.client.leave_gateway()
        await eventually(lambda: "our mistake" in caplog.text)
    await eventually(lambda: session.data.connected)
    assert caplog.text.count("failed unexpectedly") == 1


async def test_an_entry_that_fails_to_load_leaves_nothing_running(
    hass: HomeAssistant, home: Any
) -> None:
    await hass.config_entries.async_unload(home.entry_id)
    with patch(
        "custom_components.gridledger.dashboard.async_add_resource", side_effect=OSError("full")
    ):
        await hass.config_entries.async_setup(home.entry_id)
    assert home.state is ConfigEntryState.SETUP_ERROR
    assert not home.runtime_data.home._unsubscribe
    with pytest.raises(sqlite3.ProgrammingError):
        home.runtime_data.outbox.summary()
    assert await hass.config_entries.async_reload(home.entry_id)


async def test_new_keys_are_another_meter(hass: HomeAssistant, home: Any) -> None:
    """The keys were lost and made anew: the old meter's name can't sign any more."""
    session = home.runtime_data.session
    old = await eventually(lambda: session.meter_id)
    secrets = await vault.async_load_secrets(hass, home.unique_id)
    await hass.config_entries.async_unload(home.entry_id)
    key = generate_key_pem().decode()
    await vault.async_save_secrets(hass, home.unique_id, {**secrets, "meter_key": key})
    submit = GatewayClient.submit

    async def slowly(client: Any, chaincode: str, function: str, *rest: Any) -> Any:
        if function == "metering:RegisterMeter":
            await asyncio.sleep(2)
        return await submit(client, chaincode, function, *rest)

    # What is cut before the ledger knows the new meter is signed once it does.
    with patch.object(GatewayClient, "submit", slowly):
        await hass.config_entries.async_setup(home.entry_id)
        session = home.runtime_data.session
        await House(hass).live(2.5)
        assert await eventually(lambda: session.meter_id) == f"{old}-2"
    await eventually(lambda: session.data.queued == 0 and session.data.last_committed)
    assert session.data.refused == 0


async def test_old_readings_go_even_while_the_ledger_is_away(
    hass: HomeAssistant, home: Any, caplog: pytest.LogCaptureFixture
) -> None:
    session, outbox = home.runtime_data.session, home.runtime_data.outbox
    await session.async_stop()
    old = {"interval_start": "60", "import_wh": "1"}
    await hass.async_add_executor_job(outbox.append, [old], {})
    session._pruned_at = -1e9
    await session.async_readings_stored()
    assert "1 readings older than 35 days" in caplog.text
    stored = await hass.async_add_executor_job(outbox.recent, 1000)
    assert 60 not in {reading.interval_start for reading in stored}


async def test_the_dashboards_module_comes_and_goes(
    hass: HomeAssistant, network: RunningNetwork, sockets: None, hass_client: Any
) -> None:
    assert await async_setup_component(hass, "lovelace", {})
    entry = await join(hass, network.invite("module", "H-MODULE"), PLANT)
    resources = hass.data["lovelace"].resources
    [item] = [i for i in resources.async_items() if "gridledger" in i["url"]]
    assert item["url"] == "/gridledger/gridledger.js?v=0.1.0"
    client = await hass_client()
    module = await (await client.get(item["url"])).text()
    assert "ll-strategy-dashboard-gridledger" in module
    # An older version's entry is brought up to date, not doubled.
    await resources.async_update_item(item["id"], {"url": "/gridledger/gridledger.js?v=0"})
    await hass.config_entries.async_reload(entry.entry_id)
    [item] = [i for i in resources.async_items() if "gridledger" in i["url"]]
    assert item["url"].endswith("?v=0.1.0")
    await hass.config_entries.async_remove(entry.entry_id)
    await hass.async_block_till_done()
    assert not [i for i in resources.async_items() if "gridledger" in i["url"]]


async def test_resources_in_yaml_are_left_to_their_owner(
    hass: HomeAssistant, network: RunningNetwork, sockets: None
) -> None:
    assert await async_setup_component(hass, "lovelace", {"lovelace": {"resource_mode": "yaml"}})
    assert await async_setup_component(hass, "frontend", {})
    entry = await join(hass, network.invite("yaml", "H-YAML"), PLANT)
    every_page = hass.data["frontend_extra_module_url"]
    assert "/gridledger/gridledger.js?v=0.1.0" in every_page.urls
    await hass.config_entries.async_remove(entry.entry_id)
    await hass.async_block_till_done()
    assert not [url for url in every_page.urls if "gridledger" in url]


async def test_a_newer_outbox_is_refused_in_words(hass: HomeAssistant, home: Any) -> None:
    await hass.config_entries.async_unload(home.entry_id)
    await hass.async_add_executor_job(_make_newer, vault.outbox_path(hass, home.unique_id))
    await hass.config_entries.async_setup(home.entry_id)
    assert home.state is ConfigEntryState.SETUP_ERROR
    assert "has format 99" in home.reason


def _make_newer(path: str) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


async def test_sensors_that_contradict_one_another_are_told(hass: HomeAssistant, home: Any) -> None:
    coordinator = home.runtime_data.home

    async def told(exported: float, made: float) -> str | None:
        set_state(hass, EXPORT, exported)
        set_state(hass, PV_ENERGY, made)
        await hass.async_block_till_done()
        coordinator.measure()
        name = f"sensors_disagree_{home.entry_id}"
        issue = ir.async_get(hass).async_get_issue(DOMAIN, name)
        return None if issue is None else (issue.translation_placeholders or {})["energy"]

    await eventually(lambda: coordinator.meter is not None and coordinator.meter.started)
    # What is exported may have come from the battery, whose energy nobody counts.
    assert await told(501.5, 7000.0) is None
    assert await told(503.0, 7000.0) is None
    coordinator.plant = {
        key: value for key, value in PLANT.items() if not key.startswith("battery")
    }
    assert await told(503.0, 7001.5) is None  # one may report before the other
    assert await told(503.0, 7003.0) is None
    assert await told(504.5, 7003.0) is None
    assert await told(506.0, 7003.0) == "3.0 kWh"
    assert await told(506.0, 7004.5) is not None
    assert await told(506.0, 7006.0) is None
    assert await told(507.5, 7006.0) is None
    assert await told(509.0, 7006.0) == "3.0 kWh"
    await hass.config_entries.async_reload(home.entry_id)  # as reconfiguring does
    assert not ir.async_get(hass).async_get_issue(DOMAIN, f"sensors_disagree_{home.entry_id}")


async def test_a_clock_that_is_off_is_told(
    hass: HomeAssistant, home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By real gateways, also where the ledger takes nothing any more for that very reason."""
    client = home.runtime_data.session.client

    async def told(skew_s: float) -> tuple[str, str] | None:
        skewed = SimpleNamespace(
            time=lambda: time.time() + skew_s,
            time_ns=lambda: time.time_ns() + round(skew_s * 1e9),
            monotonic=time.monotonic,
        )
        monkeypatch.setattr("custom_components.gridledger.client.gateway.time", skewed)
        await async_check_clock(hass, home, home.runtime_data.session)
        issue = ir.async_get(hass).async_get_issue(DOMAIN, f"clock_off_{home.entry_id}")
        if issue is None:
            return None
        return str(issue.translation_key), issue.translation_placeholders["offset"]

    assert await told(0) is None
    clocks = await client.compare_clocks()
    assert len(clocks) == len(client.addresses)
    assert all(each.least_s <= 0 <= each.most_s for each in clocks)
    assert await told(40) is None
    key, offset = await told(100)
    assert (key, offset[0], offset[-2:]) == ("clock_ahead", "1", " s")
    assert await told(-1000) == ("clock_behind", "17 min")
    with pytest.raises(TransactionRefused, match="timestamp"):
        await client.evaluate("energy", "registry:Settings")
    addresses, client.addresses = client.addresses, ("127.0.0.1:1",)
    client.deadlines = Deadlines(evaluate_s=0.3)
    assert await told(0) == ("clock_behind", "17 min"), "nobody says otherwise"
    client.addresses, client.deadlines = addresses, Deadlines()
    assert await told(0) is None


@pytest.mark.parametrize(
    ("clocks", "ahead_s"),
    [
        ([], None),
        ([(59, 62)], None),  # it may be less than a minute
        ([(60, 62)], 61),
        ([(-70, -66)], -68),
        ([(60, 62), (-1, 1), (-1, 1)], None),  # one gateway is wrong
        ([(70, 72), (70, 72), (-1, 1)], 71),  # another one is
        ([(70, 72), (-1, 1)], None),  # either may be
        ([(70, 72), (-80, -70)], None),
    ],
)
def test_most_gateways_tell_what_time_it_is(
    clocks: list[tuple[float, float]], ahead_s: float | None
) -> None:
    assert clock_ahead_s([ClockBounds(*each) for each in clocks]) == ahead_s
