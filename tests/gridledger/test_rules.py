"""A trading rule that really sells: a network in real time, a sale, and what becomes of it."""

import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_socket
from homeassistant.auth.const import GROUP_ID_USER
from homeassistant.config_entries import ConfigEntryState, ConfigSubentry
from homeassistant.core import Context, HomeAssistant
from homeassistant.exceptions import ServiceValidationError
from homeassistant.setup import async_setup_component
from homeassistant.util import dt as dt_util

from consortium.node.network import create_network
from custom_components.gridledger import vault
from custom_components.gridledger.clock import ChannelClock
from custom_components.gridledger.engine.trading import request_prefix
from custom_components.gridledger.sales import DELIVERED, DELIVERING, OVER
from tests.ports import first_port

from .conftest import PLANT, RunningNetwork, eventually, join, report_plant
from .test_keeper import add

INTERVAL_S = 300
PRICE_MICRO = 450_000
"""More than a kWh costs (0.25 and fees): worth selling, whatever comes."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """A network whose time is the world's."""
    directory = tmp_path_factory.mktemp("live")
    pytest_socket.enable_socket()
    made = create_network(
        directory / "data", interval_s=INTERVAL_S, base_port=first_port(), replay=None
    )
    running = RunningNetwork(made, directory / "log")
    running.start()
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield running
    running.kill()


async def prepare(running: RunningNetwork, connection_id: str) -> None:
    async with running.client() as aurora:
        await aurora.submit(
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
        for ahead in (0, 86_400):
            day = datetime.fromtimestamp(time.time() + ahead, UTC).strftime("%Y-%m-%d")
            for kind, price in (("buy", PRICE_MICRO), ("sell", 250_000)):
                await aurora.submit(
                    "energy",
                    "market:PublishRate",
                    {
                        "supplier": "AuroraMSP",
                        "day": day,
                        "kind": kind,
                        "price_micro_per_kwh": price,
                    },
                )


@pytest.fixture
async def home(
    hass: HomeAssistant, live: RunningNetwork, sockets: None, request: pytest.FixtureRequest
) -> AsyncIterator[Any]:
    connection_id = f"H-{abs(hash(request.node.name)) % 10**9}"
    await prepare(live, connection_id)
    assert await async_setup_component(hass, "homeassistant", {})
    # It is about noon: a rule's limit is by its owner's day, and no sale may fall into two.
    ahead_h = 12 - dt_util.utcnow().hour
    await hass.config.async_set_time_zone(f"Etc/GMT{-ahead_h:+d}" if ahead_h else "Etc/GMT")
    report_plant(hass)
    entry = await join(hass, live.invitation(connection_id.lower(), connection_id), PLANT)
    await eventually(lambda: entry.runtime_data.session.data.connected)
    yield entry
    if entry.state is ConfigEntryState.LOADED:
        await hass.config_entries.async_unload(entry.entry_id)
        await hass.async_block_till_done()


async def trades(running: RunningNetwork, entry: Any) -> list[dict[str, Any]]:
    asked = {"connection_id": entry.data["connection_id"]}
    async with running.client() as aurora:
        page = await aurora.evaluate("energy", "market:Trades", asked)
        found: list[dict[str, Any]] = page["trades"]
        return found


def clock_of(entry: Any) -> ChannelClock:
    clock: ChannelClock = entry.runtime_data.session.clock
    return clock


async def test_rule_sells_once_and_is_followed_to_its_end(
    hass: HomeAssistant, home: Any, live: RunningNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = home.runtime_data
    begin = dt_util.utcnow()
    end = begin + timedelta(minutes=59)
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    if end > midnight:  # rates are by the day of Greenwich, and so are sales
        half = timedelta(minutes=30)
        begin, end = (begin, midnight) if midnight - begin > half else (midnight, midnight + half)
    begin, end = dt_util.as_local(begin), dt_util.as_local(end)
    rule = await add(
        hass,
        home,
        "trading_rule",
        "Soon",
        {
            "kind": "sell",
            "price_limit": 0.05,
            "spread": 0.0,
            "reserve": 30,
            "energy_limit": 1,
            "maximum_power": 2000,
            "dry_run": False,
            "window_start": begin.strftime("%H:%M:%S"),
            "window_end": end.strftime("%H:%M:%S"),
        },
    )
    keeper = runtime.keeper
    await keeper.async_replan()
    assert await trades(live, home) == [], "a rule is off until it is turned on"

    # Administrators only, as the owner has set: another member of the household may not.
    hass.config_entries.async_update_entry(home, options={"administrators_only": True})
    await hass.async_block_till_done()
    await hass.auth.async_create_user("owner")  # the first one owns Home Assistant
    guest = await hass.auth.async_create_user("guest", group_ids=[GROUP_ID_USER])
    switch = next(s.entity_id for s in hass.states.async_all("switch"))
    with pytest.raises(ServiceValidationError) as raised:
        await hass.services.async_call(
            "switch",
            "turn_on",
            {"entity_id": switch},
            blocking=True,
            context=Context(user_id=guest.id),
        )
    assert raised.value.translation_key == "administrators_only"
    assert not keeper.rule_enabled(rule)
    await hass.services.async_call("switch", "turn_on", {"entity_id": switch}, blocking=True)

    async def sold() -> list[dict[str, Any]]:
        await keeper.async_replan()
        return await trades(live, home)

    (trade,) = await eventually(sold)
    assert trade["request_id"].startswith(request_prefix(rule))
    energy = int(trade["energy_wh"])
    assert 0 < energy <= 1000
    assert int(trade["price_micro_per_kwh"]) == PRICE_MICRO
    assert all(int(part["energy_wh"]) <= 2000 * INTERVAL_S / 3600 for part in trade["schedule"])
    await eventually(lambda: keeper.sales.of_rule(rule))
    (sale,) = keeper.sales.of_rule(rule)
    assert (sale.energy_wh, sale.trade_id) == (energy, trade["trade_id"])
    assert keeper.rule_status(rule) == "sold"
    assert keeper.traded_wh(rule) == pytest.approx(energy)
    assert keeper.earned[rule] == pytest.approx(int(trade["net_micro"]) / 1e6)

    # Home Assistant dies before it has stored anything, and comes back.
    store = vault.keeper_store(hass, str(home.unique_id))
    assert await hass.config_entries.async_unload(home.entry_id)
    stored = await store.async_load()
    assert stored is not None
    forgotten = {"enabled": stored["enabled"]}
    await store.async_save(forgotten)
    assert await hass.config_entries.async_setup(home.entry_id)
    await hass.async_block_till_done()
    keeper = home.runtime_data.keeper
    await eventually(lambda: home.runtime_data.session.data.connected)
    await keeper.async_replan()
    assert keeper.traded_wh(rule) >= energy
    assert sum(int(one["energy_wh"]) for one in await trades(live, home)) <= 1000
    assert [s.trade_id for s in keeper.sales.of_rule(rule)][-1] == trade["trade_id"]

    # Time passes, as Home Assistant sees it.
    clock = clock_of(home)
    begins, ends = clock.real(sale.start), clock.real(sale.end(clock))
    real = dt_util.utcnow

    def at(instant: float) -> None:
        shift = timedelta(seconds=instant - time.time())
        monkeypatch.setattr(dt_util, "utcnow", lambda: real() + shift)

    (sale,) = [s for s in keeper.sales.of_rule(rule) if s.trade_id == trade["trade_id"]]
    at(begins + 1)
    await keeper.async_refresh()
    assert sale.state == DELIVERING
    assert keeper.rule_status(rule) == DELIVERING
    assert keeper.data.decision.battery.reason.key == "delivers"
    at(ends + 1)
    await keeper.sales.async_follow()
    assert sale.state == OVER, "its readings are not there yet"

    outbox = home.runtime_data.outbox
    readings = [
        {"interval_start": str(start), "export_wh": str(wh + 5), "import_wh": "0"}
        for start, wh in sale.schedule
    ]
    await hass.async_add_executor_job(outbox.append, readings, {})
    await keeper.sales.async_follow()
    assert sale.state == DELIVERED
    assert sale.delivered_wh == energy
    shown = sale.as_response(clock)
    assert shown["delivered_kwh"] == energy / 1000
    assert shown["transaction_id"] == trade["transaction_id"]


async def test_bad_price_sells_nothing(hass: HomeAssistant, home: Any, live: Any) -> None:
    before = len(await trades(live, home))
    rule = ConfigSubentry(
        data={
            "kind": "sell",
            "price_limit": 0.6,
            "spread": 0.0,
            "reserve": 30,
            "energy_limit": 1,
            "dry_run": False,
        },
        subentry_type="trading_rule",
        title="Dear",
        unique_id=None,
    )
    hass.config_entries.async_add_subentry(home, rule)
    await hass.async_block_till_done()
    keeper = home.runtime_data.keeper
    keeper.async_enable_rule(rule.subentry_id, True)
    await keeper.async_replan()
    assert keeper.rule_status(rule.subentry_id) == "waiting"
    assert len(await trades(live, home)) == before
