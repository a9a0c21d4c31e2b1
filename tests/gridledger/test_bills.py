"""Bills, permit, credit, responses and settled days of a home, on a real network.

Channel time runs at a day in half a minute: tariffs hold from the next day on, and a day can be
settled and billed once it is over. All homes are supplied from the same day on, so what the later
tests wait for has mostly passed while the first one ran.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import Mock, patch

import pytest
import pytest_socket
from homeassistant.config_entries import ConfigEntryState
from homeassistant.core import HomeAssistant
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.helpers import entity_registry as er
from homeassistant.helpers import issue_registry as ir
from homeassistant.setup import async_setup_component
from homeassistant.util import dt as dt_util
from pytest_homeassistant_custom_component.components.recorder.common import do_adhoc_statistics

from consortium.contracts.common.clock import DAY_S, day_of
from consortium.identity.certificates import generate_key, key_pem
from consortium.node.network import Replay, create_network
from custom_components.gridledger import client as integration
from custom_components.gridledger.const import DOMAIN
from custom_components.gridledger.figures_sensor import FigureSensor
from gridledger_client import CommitFailed, GatewayClient, Identity, TransactionRefused, enroll
from gridledger_client.readings import MeterKey, Reading, batch_transient
from tests.gridledger.asking import calendar_events, holds, recorded, statistics
from tests.ports import first_port

from .conftest import PLANT, RunningNetwork, eventually, join, report_plant
from .test_actions import call
from .test_automations import _no_automation_stays, from_blueprint  # noqa: F401

HOUR_S = 3600
RATE = DAY_S // 30
FIRST = 1_750_377_600
"""2025-06-20T00:00:00Z, a Friday; the channel begins shortly after."""
HOME = "CP-BILL"
HOMES: dict[str, dict[str, Any]] = {
    HOME: {},
    "CP-PREPAID": {"payment": "prepaid"},
    "CP-ASKED": {},
    "CP-DAY": {},
    "CP-NEIGHBOUR": {},
}
"""Connection points, and what is special about their supply."""
IMPORT_WH = 250
TARIFF: dict[str, Any] = {
    "tariff": "FLAT",
    "supplier": "AuroraMSP",
    "standing_micro_per_day": 100_000,
    "bands": [
        {"name": "ALL", "days": "EVERY", "from_minute": 0, "to_minute": 1440, "price": 200_000}
    ],
    "blocks": [],
    "index": None,
    "index_ppm": 0,
    "markup": 0,
    "capacity_micro_per_kw_month": 0,
    "feed_in": 50_000,
    "feed_in_index_ppm": 0,
    "taxes": [],
    "rounding": "total",
}
SUPPLY: dict[str, Any] = {
    "supplier": "AuroraMSP",
    "region": "UTC",
    "tariff": "FLAT",
    "regulated_tariff": None,
    "period": "day",
    "payment": "postpaid",
    "term_days": 0,
    "emergency_micro": 0,
    "low_days": 3,
    "on_site": False,
}
RULES: dict[str, Any] = {
    "region": "UTC",
    "min_due_micro": 1,
    "reminder_days": 0,
    "final_days": 0,
    "warning_days": 0,
    "notice_days": 14,
    "prepaid_notice_days": 2,
    "grace_days": 7,
    "limit_w": 1000,
    "from_minute": 480,
    "to_minute": 840,
    "seasons": [],
}
SETTLEMENT: dict[str, Any] = {
    "supplier": "AuroraMSP",
    "region": None,
    "tariff": 300_000,
    "base_rate": 50_000,
    "rest": "settled",
    "shortfall_price": 350_000,
    "surplus_price": 40_000,
    "import_fee": 0,
    "shared_fee": 0,
    "netting_intervals": 1,
    "final_after_working_days": 10,
    "adjustable_days": 425,
}
PRODUCT: dict[str, Any] = {
    "product": "ANY",
    "zones": [{"zone": "NORTH", "local_fee": 20_000, "entry_fee": 0, "exit_fee": 0}],
    "price_min": 0,
    "price_max": 1_000_000,
    "price_tick": 1000,
    "price_rule": "middle",
    "gate_closure_s": 12 * HOUR_S,
    "shortfall_margin": 0,
}
"""An auction whose agents have some real seconds to clear it."""
FILLED_WH, OFFER_MICRO, BID_MICRO = 100, 100_000, 200_000
TRADED_MICRO = 140_000 + 20_000
"""The middle between the offer and the bid less its fee, and the fee."""
COST_MICRO = ((24 * IMPORT_WH - FILLED_WH) * 300_000 + FILLED_WH * TRADED_MICRO) // 1000
"""Of CP-DAY's first settled day: what it took beyond the neighbour's energy is the tariff's."""
BILL_MICRO = 24 * IMPORT_WH * 200_000 // 1000 + 100_000


async def submit(client: GatewayClient, *call: Any, **options: Any) -> Any:
    """Submit; again while another peer hasn't got the block before yet."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return await client.submit(*call, **options)
        except TransactionRefused, CommitFailed:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.3)


@dataclass
class Town:
    """A network whose utilities have agreed on everything a bill needs."""

    running: RunningNetwork
    key: MeterKey = field(default_factory=lambda: MeterKey(key_pem(generate_key()), b"s" * 32))
    register: int = 0
    agreed_from: int = 0
    supplied_from: int = 0
    settled_from: int = 0

    @property
    def now(self) -> int:
        replay = self.running.network.replay
        assert replay is not None
        return replay.origin + int((time.time() - replay.anchor) * replay.rate)

    async def until(self, instant: int) -> None:
        """Wait until channel time has passed an instant."""
        await asyncio.sleep(max(0.0, (instant + 2 * HOUR_S - self.now) / RATE))

    def tomorrow(self) -> int:
        """The first day's start that there is time to agree on something for."""
        return (self.now + DAY_S // 2) // DAY_S * DAY_S + DAY_S

    async def agree(self, aurora: GatewayClient, boreal: GatewayClient) -> None:
        """Calendar, tariff, rules, supplies and settlement terms, which hold a day later."""
        soon = self.agreed_from = (self.now // HOUR_S + 12) * HOUR_S
        calendar = {
            "region": "UTC",
            "offsets": [{"from": FIRST - DAY_S, "offset_s": 0}],
            "known_until": FIRST + 400 * DAY_S,
            "holidays": [],
        }
        self.supplied_from = self.tomorrow()
        self.settled_from = self.supplied_from + DAY_S
        for contract, kind, terms, named, at in (
            ("tariff", "Calendar", calendar, {"region": "UTC"}, soon),
            ("tariff", "", TARIFF, {"tariff": "FLAT"}, soon),
            ("permit", "Rules", RULES, {"region": "UTC"}, soon),
            ("book", "Product", PRODUCT, {"product": "ANY"}, soon),
            ("settlement", "Terms", SETTLEMENT, {"supplier": "AuroraMSP"}, self.settled_from),
        ):
            await submit(
                aurora,
                "energy",
                f"{contract}:Propose{kind}",
                {"terms": terms, "effective_from": at},
            )
            await submit(boreal, "energy", f"{contract}:Approve{kind}", {**named, "version": 1})
        for connection_id, supply in HOMES.items():
            day = day_of(self.supplied_from)
            await self.connect(aurora, connection_id, from_day=day, **supply)

    async def connect(self, aurora: GatewayClient, connection_id: str, **supply: Any) -> None:
        """A connection with a supply from today on."""
        await submit(
            aurora,
            "energy",
            "registry:RegisterConnection",
            {
                "connection_id": connection_id,
                "utility": "AuroraMSP",
                "zone": "NORTH",
                "max_export_w": 5000,
                "max_import_w": 10_000,
            },
        )
        await submit(
            aurora,
            "energy",
            "billing:AgreeSupply",
            {"supply": {**SUPPLY, "connection_id": connection_id, **supply}},
        )

    async def trade(self, aurora: GatewayClient) -> None:
        """CP-DAY buys of its neighbour, for the second hour of its first settled day."""
        network = self.running.network
        utility = network.utility("Aurora")
        await self.until(self.agreed_from)
        for connection_id, side, price in (
            ("CP-NEIGHBOUR", "offer", OFFER_MICRO),
            ("CP-DAY", "bid", BID_MICRO),
        ):
            deposit = {"account": connection_id, "bank_reference": f"TRADE-{connection_id}"}
            await submit(aurora, "energy", "wallet:Deposit", {**deposit, "amount_micro": 1_000_000})
            name = f"{connection_id.lower()}-2"
            attributes = {"gridledger.connection": connection_id}
            secret = await asyncio.to_thread(
                network.register_identity, utility.msp_id, name, None, attributes
            )
            roots = network.tls_bundle_pem
            enrolled = await enroll(utility.ca_url, name, secret, roots)
            identity = Identity(utility.msp_id, enrolled.certificate_pem, enrolled.key_pem)
            async with GatewayClient(
                [utility.gateway_address], network.channel, identity, roots
            ) as home:
                order = {
                    "order_id": "NIGHT-1",
                    "connection_id": connection_id,
                    "product": "ANY",
                    "interval_start": self.settled_from + HOUR_S,
                    "side": side,
                    "price_micro_per_kwh": price,
                    "energy_wh": FILLED_WH,
                }
                account = {"account": connection_id}
                came_in = await home.evaluate("energy", "wallet:Incoming", account)
                entries = {"entries": came_in["entries"]}
                await submit(home, "energy", "wallet:Sweep", {**account, **entries})
                await submit(home, "energy", "book:Place", order)

    async def read(self, aurora: GatewayClient, connection_id: str, start: int) -> None:
        """A day of the accredited meter's readings."""
        meter = f"M-{connection_id}"
        await submit(
            aurora,
            "metering",
            "metering:RegisterMeter",
            {
                "meter_id": meter,
                "connection_id": connection_id,
                "utility": "AuroraMSP",
                "source_class": "accredited",
                "public_key": self.key.public_key_pem,
            },
        )
        readings = []
        for hour in range(24):
            self.register += IMPORT_WH
            readings.append(
                self.key.sign(
                    Reading(meter, start + hour * HOUR_S, HOUR_S, IMPORT_WH, 0, self.register, 0),
                    self.running.network.channel,
                )
            )
        answer = await submit(
            aurora,
            "metering",
            "metering:SubmitReadings",
            {"utility": "AuroraMSP"},
            transient=batch_transient(readings),
            endorsing_organizations=["AuroraMSP"],
        )
        assert not answer.result["refused"], answer.result

    async def bill(self, aurora: GatewayClient, connection_id: str, start: int) -> None:
        """Compute and post a day's bill."""
        statement = await submit(
            aurora,
            "metering",
            "bill:Compute",
            {
                "connection_id": connection_id,
                "from_day": day_of(start),
                "to_day": day_of(start + DAY_S),
            },
            endorsing_organizations=["AuroraMSP"],
        )
        await submit(aurora, "energy", "billing:Post", {"statement": statement.result})

    async def settle(self, aurora: GatewayClient, connection_id: str, start: int) -> str:
        """Settle a day of one connection."""
        where = {"utility": "AuroraMSP", "day": day_of(start), "run": "provisional"}
        await submit(
            aurora,
            "metering",
            "daybook:Commit",
            {**where, "connections": [connection_id]},
            endorsing_organizations=["AuroraMSP"],
        )
        record = await aurora.evaluate(
            "metering", "daybook:Record", {**where, "connection_id": connection_id}
        )
        await submit(
            aurora, "energy", "settlement:Post", {**where, "summaries": [record["summary"]]}
        )
        return day_of(start)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """A network with a fast clock, for this file alone."""
    directory = tmp_path_factory.mktemp("fast")
    pytest_socket.enable_socket()
    made = create_network(
        directory / "data",
        interval_s=HOUR_S,
        base_port=first_port(),
        # Before noon, so that there is time to agree on the next day.
        replay=Replay(origin=FIRST + 10 * HOUR_S, anchor=int(time.time()) + 20, rate=RATE),
    )
    running = RunningNetwork(made, directory / "log")
    running.start()
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield running
    running.kill()


@pytest.fixture(scope="module")
def town(network: RunningNetwork) -> Town:
    return Town(network)


@pytest.fixture(autouse=True)
def _our_integration(recorder_mock: Any, enable_custom_integrations: None) -> None:
    """As everywhere here, with a recorder before Home Assistant's core."""
    logging.getLogger("sqlalchemy.engine").setLevel(logging.WARNING)  # every statement else


@pytest.fixture
def all_entities() -> Iterator[None]:
    """Those too that an owner has to enable."""
    with patch("homeassistant.helpers.entity.Entity.entity_registry_enabled_default", True):
        yield


@pytest.fixture
async def home(
    hass: HomeAssistant,
    network: RunningNetwork,
    town: Town,
    sockets: None,
    all_entities: None,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Any]:
    """A supplied home that has joined, with all of its entities."""
    connection_id = getattr(request, "param", HOME)
    if not town.settled_from:
        async with network.client() as aurora, network.client("Boreal") as boreal:
            await town.agree(aurora, boreal)
            await town.trade(aurora)
    assert await async_setup_component(hass, "homeassistant", {})
    report_plant(hass)
    entry = await join(hass, network.invitation(connection_id.lower(), connection_id), PLANT)
    session = entry.runtime_data.session
    await eventually(lambda: session.data.connected and session.data.account)
    yield entry
    if entry.state is ConfigEntryState.LOADED:
        await hass.config_entries.async_unload(entry.entry_id)
        await hass.async_block_till_done()


TELL = {"action": "test.tell", "data": {"message": "{{ message }}"}}


def told_by(hass: HomeAssistant) -> list[str]:
    """Return what is told from here on."""
    told: list[str] = []

    async def tell(call: Any) -> None:
        told.append(call.data["message"])

    hass.services.async_register("test", "tell", tell)
    return told


def entity(hass: HomeAssistant, entry: Any, platform: str, key: str) -> Any:
    entity_id = er.async_get(hass).async_get_entity_id(platform, DOMAIN, f"{entry.unique_id}_{key}")
    return hass.states.get(entity_id)


def figures_of(hass: HomeAssistant) -> Any:
    """What the sensors of figures get them from."""
    sensors = hass.data["sensor"].entities
    return next(one.coordinator for one in sensors if isinstance(one, FigureSensor))


async def calendar(hass: HomeAssistant, entry: Any) -> list[str]:
    """What the home's calendar shows of the hours around now."""
    entity_id = entity(hass, entry, "calendar", "calendar").entity_id
    events = await calendar_events(hass, entity_id, before=timedelta(hours=1))
    return [event["summary"] for event in events]


async def test_from_a_bill_to_a_warning_and_a_payment(
    hass: HomeAssistant, home: Any, town: Town, network: RunningNetwork, hass_ws_client: Any
) -> None:
    session = home.runtime_data.session
    start = town.supplied_from
    assert entity(hass, home, "sensor", "permit").state == "granted"
    assert entity(hass, home, "binary_sensor", "bill_overdue").state == "off"
    assert entity(hass, home, "sensor", "prepaid_days").state == "unknown"
    with pytest.raises(ServiceValidationError) as error:
        await call(hass, "pay_bill")
    assert error.value.translation_key == "refused"
    messages = told_by(hass)
    await from_blueprint(hass, "tell_of_bills", {"before": "01:00:00", "tell": [TELL]})
    granted = {"condition": "gridledger.is_permit_granted"}
    assert await holds(hass, granted)
    client = await hass_ws_client(hass)
    async with network.client() as aurora:
        await town.until(start + DAY_S)
        await town.read(aurora, HOME, start)
        await town.bill(aurora, HOME, start)
        # Posted: the bill is there by itself, for an event told so.
        await eventually(lambda: session.data.account.bills)
        await eventually(
            lambda: float(entity(hass, home, "sensor", "bill_open").state) == BILL_MICRO / 1e6
        )
        due = entity(hass, home, "sensor", "bill_due").state
        figures = figures_of(hass)
        await figures.async_refresh()
        assert 28 <= round(figures.data["bill_forecast"] / BILL_MICRO * 1e6) <= 31  # days
        assert datetime.fromisoformat(due) < dt_util.utcnow() + timedelta(minutes=1)
        told = entity(hass, home, "event", "bill")
        assert told.attributes["event_type"] in ("issued", "due")
        assert told.attributes["open"] == BILL_MICRO / 1e6

        # Every line is explained, from the private record.
        answer = await call(hass, "get_bills", lines=True)
        [bill] = answer["bills"]
        assert (bill["total"], bill["open"]) == (BILL_MICRO / 1e6, BILL_MICRO / 1e6)
        assert bill["record"]["import_kwh"] == 24 * IMPORT_WH / 1000
        assert bill["record"]["relief"] == 0  # its tariff has no social one
        assert sum(line["amount"] for line in bill["record"]["lines"]) == pytest.approx(
            bill["total"]
        )
        await client.send_json_auto_id(
            {
                "type": "gridledger/bill",
                "entry_id": home.entry_id,
                "from_day": bill["from_day"],
                "run": bill["run"],
            }
        )
        lines = (await client.receive_json())["result"]["lines"]
        assert {line["kind"] for line in lines} >= {"standing", "energy"}
        await client.send_json_auto_id({"type": "gridledger/bills", "entry_id": home.entry_id})
        assert (await client.receive_json())["result"]["bills"][0]["number"] == bill["number"]

        # Not paid: reminder, final notice, warning.
        for step in (1, 2):
            await town.until(town.now)
            await submit(
                aurora,
                "energy",
                "billing:Dun",
                {"connection_id": HOME, "number": bill["number"], "step": step},
            )
        await eventually(
            lambda: entity(hass, home, "event", "bill").attributes["event_type"] == "final_notice"
        )
        await town.until(town.now)
        await submit(aurora, "energy", "permit:Warn", {"connection_id": HOME})
        await eventually(lambda: entity(hass, home, "sensor", "permit").state == "warned")
        permit = entity(hass, home, "sensor", "permit")
        assert (permit.attributes["reason"], permit.attributes["next_step"]) == (
            "unpaid",
            "limitation",
        )
        assert entity(hass, home, "binary_sensor", "bill_overdue").state == "on"
        assert entity(hass, home, "event", "permit").attributes["event_type"] == "warned"
        assert not await holds(hass, granted)
        issue = ir.async_get(hass).async_get_issue(DOMAIN, f"permit_{home.entry_id}")
        assert issue is not None
        assert issue.translation_key == "permit_warned"
        await client.send_json_auto_id({"type": "gridledger/supply", "entry_id": home.entry_id})
        supply = (await client.receive_json())["result"]
        assert (supply["permit"]["state"], supply["certificates"]) == ("warned", [])
        assert [one["number"] for one in supply["bills"]] == [bill["number"]]
        await client.send_json_auto_id({"type": "gridledger/plant", "entry_id": home.entry_id})
        plant = (await client.receive_json())["result"]
        assert plant["permit"] == supply["permit"]
        assert "permit_warned" not in plant["issues"]

        # The payment restores it.
        await submit(
            aurora,
            "energy",
            "wallet:Deposit",
            {"account": HOME, "amount_micro": 5_000_000, "bank_reference": "PAY-1"},
        )
    paid = await call(hass, "pay_bill", request_id="PAID-1")
    assert paid["paid"] == [{"number": bill["number"], "amount": BILL_MICRO / 1e6}]
    await eventually(lambda: entity(hass, home, "sensor", "permit").state == "granted")
    assert float(entity(hass, home, "sensor", "bill_open").state) == 0
    assert entity(hass, home, "event", "bill").attributes["event_type"] == "paid"
    assert ir.async_get(hass).async_get_issue(DOMAIN, f"permit_{home.entry_id}") is None
    await eventually(lambda: len(messages) >= 3)
    assert messages[0].startswith(f"Bill {bill['number']} of 1.30 EUR is due on ")
    assert messages[1].startswith("Supply is warned: 1.30 EUR are due. What comes next: limitation")
    assert messages[2:] == ["Supply is granted again."]  # and each bill once
    again = await call(hass, "pay_bill", amount=BILL_MICRO / 1e6, request_id="PAID-1")
    assert again["amount"] == paid["amount"]
    with pytest.raises(ServiceValidationError) as error:
        await call(hass, "top_up", amount=1)
    assert error.value.translation_key == "refused"


@pytest.mark.parametrize("home", ["CP-PREPAID"], indirect=True)
async def test_a_credit_is_topped_up(
    hass: HomeAssistant, home: Any, town: Town, network: RunningNetwork
) -> None:
    async with network.client() as aurora:
        await submit(
            aurora,
            "energy",
            "wallet:Deposit",
            {"account": "CP-PREPAID", "amount_micro": 5_000_000, "bank_reference": "TOP-1"},
        )
    await town.until(town.supplied_from)
    client = home.runtime_data.session.client
    refusals = [integration.CommitFailed("T", "ENDORSEMENT_POLICY_FAILURE", 1)]

    async def invalid_first(*given: Any, **options: Any) -> Any:
        if refusals and given[1] == "prepayment:TopUp":
            raise refusals.pop()
        return await submit_really(*given, **options)

    submit_really = client.submit
    with patch.object(client, "submit", invalid_first):
        with pytest.raises(HomeAssistantError) as error:
            await call(hass, "top_up", amount=3, request_id="TOP-1")
        assert error.value.translation_key == "commit_failed"
        # Another transaction came in between: that is tried once more.
        refusals.append(integration.CommitFailed("T", "MVCC_READ_CONFLICT", 1))
        added = await call(hass, "top_up", amount=3, request_id="TOP-1")
    assert (added["amount"], added["paid"]) == (3, [])
    await eventually(
        lambda: entity(hass, home, "sensor", "prepaid_days").attributes.get("credit") == 3.0
    )
    assert entity(hass, home, "sensor", "prepaid_days").state == "unknown"  # before any bill


@pytest.mark.parametrize("home", ["CP-ASKED"], indirect=True)
async def test_responses_delegations_and_certificates(
    hass: HomeAssistant, home: Any, town: Town, network: RunningNetwork
) -> None:
    session = home.runtime_data.session
    messages = told_by(hass)
    inputs: dict[str, Any] = {"before": "01:00:00", "least_reward": 0.4}
    for name in ("begin", "end"):
        data = {"message": f"{name} {{{{ event.kind }}}} {{{{ event.event_id }}}}"}
        inputs[name] = [{"action": "test.tell", "data": data}]
    await from_blueprint(hass, "join_response", inputs)
    start = town.now // HOUR_S * HOUR_S + 16 * HOUR_S
    async with network.client() as aurora:
        event = {
            "event_id": "EVENING-1",
            "operator": "AuroraMSP",
            "zone": "NORTH",
            "kind": "reduce",
            "window_start": start,
            "window_end": start + HOUR_S,
            "reward_micro_per_kwh": 500_000,
            "opt_in_until": start,
        }
        elsewhere = {**event, "event_id": "EVENING-2", "zone": "SOUTH", "kind": "absorb"}
        off = {**event, "event_id": "EVENING-3", "kind": "absorb"}
        for one in (elsewhere, off, event):
            await submit(aurora, "energy", "response:Announce", {"event": one})
        await submit(aurora, "energy", "response:Cancel", {"event_id": "EVENING-3"})
        await eventually(lambda: session.data.account.responses)
        # The blueprint opts in, and runs its owner's actions at the event's time.
        await eventually(
            lambda: entity(hass, home, "event", "response").attributes["event_type"] == "joined"
        )
        asked = [one for one in await calendar(hass, home) if one.startswith("Grid operator")]
        assert asked == ["Grid operator asks: Use less, 0.500 EUR/kWh"]
        again = await call(hass, "join_response_event", event_id="EVENING-1")
        assert (again["participation"], again["reward_per_kwh"]) == ("opted_in", 0.5)
        left = await call(hass, "join_response_event", event_id="EVENING-1", leave=True)
        assert left["participation"] == "left"
        await eventually(lambda: len(messages) == 2)
        assert messages == ["begin reduce EVENING-1", "end reduce EVENING-1"]

        given = await call(
            hass,
            "delegate",
            trader="TRADER-HELIO",
            acts=["order", "sell"],
            until=(dt_util.utcnow() + timedelta(hours=1)).isoformat(),
            max_energy=2,
            lowest_price=0.05,
            highest_price=0.2,
        )
        ended = await call(hass, "end_delegation", delegation_id=given["delegation_id"])
        assert ended["trader"] == "TRADER-HELIO"
        with pytest.raises(ServiceValidationError) as error:
            await call(hass, "end_delegation", delegation_id="NONE")
        assert error.value.translation_key == "refused"

        with pytest.raises(ServiceValidationError) as error:
            await call(hass, "claim_certificate", count=1, claimed_for="Us")
        assert error.value.translation_key == "refused"
        await submit(
            aurora,
            "energy",
            "certificate:RegisterPlant",
            {
                "plant": {
                    "plant_id": "SUN-1",
                    "connection_id": "CP-ASKED",
                    "utility": "AuroraMSP",
                    "source": "solar",
                    "capacity_w": 500_000,
                    "commissioned": "2019-05-01",
                    "support": "none",
                    "place": "Basel",
                }
            },
        )
        await submit(
            aurora,
            "energy",
            "certificate:Issue",
            {
                "plant_id": "SUN-1",
                "month": "2025-05",
                "generation_wh": 3_400_000,
                "export_wh": 3_400_000,
            },
        )
    claimed = await call(hass, "claim_certificate", count=2, claimed_for="Our own use in May")
    assert claimed["last_serial"] - claimed["first_serial"] == 1


async def check_figures(hass: HomeAssistant, home: Any) -> None:
    """Of a home that has bought of its neighbour, however late in the month it is."""
    used = entity(hass, home, "sensor", "consumption_energy")
    for energy in ("100", "102"):
        hass.states.async_set(used.entity_id, energy, used.attributes)
        await recorded(hass)
    now = dt_util.utcnow()
    begun = now.replace(minute=now.minute // 5 * 5, second=0, microsecond=0)
    for start in (begun - timedelta(minutes=5), begun):
        do_adhoc_statistics(hass, start=start)
    await recorded(hass)
    figures = figures_of(hass)
    since = now - timedelta(hours=1)
    outbox = home.runtime_data.session.outbox
    found: dict[str, Any] = {}
    for midnight in (since - timedelta(days=1), since):  # yesterday's tomorrow is today
        assert found.get("bought_today", 0) == 0

        def start_of(day: Any = None, midnight: datetime = midnight) -> datetime:
            return midnight if day is None else midnight + timedelta(days=1)

        with (
            patch("homeassistant.util.dt.start_of_local_day", start_of),
            patch.object(outbox, "between", return_value=[Mock(fields={"import_wh": "1000"})]),
        ):
            await figures.async_refresh()
        found = figures.data
    assert (found["bought_today"], found["bought_month"]) == (0.1, 0.1)
    assert round(found["cost_month"] * 1e9) == FILLED_WH * TRADED_MICRO
    assert found["clearing_price"] == 0.14
    assert (found["book_offers"], found["book_bids"]) == (0, 0)
    shares = [found[f"share_{whose}"] for whose in ("own", "neighbours", "utility")]
    assert shares == [50, 5, 45]


@pytest.mark.parametrize("home", ["CP-DAY"], indirect=True)
async def test_statistics_equal_what_was_settled(
    hass: HomeAssistant, home: Any, town: Town, network: RunningNetwork, hass_ws_client: Any
) -> None:
    """A day with energy of a neighbour, whose order is followed until it is settled."""
    from custom_components.gridledger.sales import OVER, SETTLED, SHORT, Sale, Sales
    from custom_components.gridledger.statistics import (
        _FACT_SETTLED,
        async_write_settled,
        settled_ids,
    )

    session, start = home.runtime_data.session, town.settled_from
    client = await hass_ws_client(hass)

    async def followed() -> list[tuple[str, float, str]]:
        await client.send_json_auto_id({"type": "gridledger/market", "entry_id": home.entry_id})
        orders = (await client.receive_json())["result"]["orders"]
        return [(one["order_id"], one["filled_kwh"], one["progress"]) for one in orders]

    sale = Sale("R", "R-1", "T-1", "t", "AuroraMSP", ((start, 100),), 100, 10_000, OVER)
    stored = asdict(sale)
    # What can't be read of what was stored is left out.
    sales = Sales(hass, session, session.outbox, [stored, {**stored, "schedule": []}, {"a": 1}])
    async with network.client() as aurora:
        await town.until(start + DAY_S)
        await town.read(aurora, "CP-DAY", start)
        away = patch.object(
            session.client, "evaluate", side_effect=integration.ConnectionFailed("gone")
        )
        with away:
            await sales.async_follow()
        await sales.async_follow()  # short where it was there to measure
        # Its utility's agent may have come first, where this machine is busy.
        assert [one["state"] for one in sales.as_list()] in ([OVER], [SHORT], [SETTLED])
        assert await followed() in (
            [("NIGHT-1", FILLED_WH / 1000, OVER)],
            [("NIGHT-1", FILLED_WH / 1000, SETTLED)],
        )
        await town.settle(aurora, "CP-DAY", start)
        await sales.async_follow()
        assert [one["state"] for one in sales.as_list()] == [SETTLED]
        assert await followed() == [("NIGHT-1", FILLED_WH / 1000, SETTLED)]
        await check_figures(hass, home)
        posted = await aurora.evaluate(
            "energy", "settlement:Posted", {"connection_id": "CP-DAY", "day": day_of(start)}
        )
    ids = settled_ids(home.unique_id)
    summary = posted["summary"]
    net = sum(int(one["amount_micro"]) for one in summary["sums"])

    async def check() -> None:
        for _ in range(2):  # written anew, not added
            await async_write_settled(hass, home, session)
        rows = await statistics(hass, ids.values(), "hour", "sum")
        sums = {key: rows[one][-1]["sum"] for key, one in ids.items() if rows[one]}
        assert sums.keys() == ids.keys() - {"billed"}  # by the day, and not yet
        assert round(sums["settled_import"] * 1000) == int(summary["import_wh"]) == 24 * IMPORT_WH
        assert round((sums["settled_revenue"] - sums["settled_cost"]) * 1e6) == net == -COST_MICRO

    # What the recorder was given and a power cut has taken is written again.
    given = patch("custom_components.gridledger.statistics.async_add_external_statistics")
    looks = patch("custom_components.gridledger.statistics._RECORDED_LOOKS", 1)
    with given, looks, pytest.raises(integration.GridLedgerError, match="the recorder"):
        await async_write_settled(hass, home, session)
    await check()
    # A peer that doesn't have the private record: the day's sums are the same.
    evaluate = session.client.evaluate

    async def without_record(chaincode: str, function: str, *rest: Any, **options: Any) -> Any:
        if function == "daybook:Record":
            raise integration.TransactionRefused("no record of that day is kept here")
        return await evaluate(chaincode, function, *rest, **options)

    await hass.async_add_executor_job(session.outbox.store_fact, _FACT_SETTLED, {})
    with patch.object(session.client, "evaluate", without_record):
        await check()
    # A ledger that knows nothing of settlement, and one whose days can't be read.
    for said, raised in (
        (integration.TransactionRefused("no such function"), None),
        ([], integration.GridLedgerError),
    ):

        async def otherwise(
            chaincode: str, function: str, *rest: Any, said: Any = said, **options: Any
        ) -> Any:
            if function != "settlement:Days":
                return await evaluate(chaincode, function, *rest, **options)
            if isinstance(said, Exception):
                raise said
            return said

        with patch.object(session.client, "evaluate", otherwise):
            if raised is None:
                await check()
                continue
            with pytest.raises(raised, match="a settled day can't be read"):
                await async_write_settled(hass, home, session)
