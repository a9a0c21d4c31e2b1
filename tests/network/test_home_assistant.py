"""A real Home Assistant beside a real ledger: killed and stopped in turn, and asked to sell."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from demo.home_assistant import Api, HomeAssistantError

from .home import (
    BATTERY_W,
    CONNECTION,
    DIRECTIONS,
    INTERVAL_S,
    LATENESS_S,
    RESERVE_PERCENT,
    SAMPLE_S,
    Site,
    check_quality,
    check_series,
    eventually,
    joined_home,
)
from .home_faults import kill_repeatedly

KILLS = 3

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.timeout(700),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """One home for all tests of this file, in debug mode."""
    folder = tmp_path_factory.mktemp("home-assistant")
    async with joined_home(folder, 24_000, "--debug") as there:
        yield there


async def test_killed_and_stopped_in_turn(site: Site) -> None:
    """Each interval is in the ledger once, and they add up to what the inverter counted."""
    inverter = site.inverter
    before = inverter.registers_wh()
    # A quarter of what a meter can count, since a late sample puts two intervals' energy in one.
    inverter.flow(27_000, 10_800)  # 37.5 and 15 Wh in an interval
    await site.catches_up_with(time.time())

    # Home Assistant, while readings are on their way, and for longer than an interval.
    await site.batch_is_on_its_way()
    await site.kill_home_assistant()
    inverter.flow(18_000, 0)
    await asyncio.sleep(INTERVAL_S)
    await site.start_home_assistant()

    # The ledger, while readings are on their way; then Home Assistant, which comes back first.
    await site.batch_is_on_its_way()
    await site.kill_ledger()
    await eventually(lambda: site.waiting() >= 2)
    await site.kill_home_assistant()
    inverter.flow(4_500, 27_000)
    waited = site.waiting()
    await site.start_home_assistant()
    await eventually(lambda: site.waiting() > waited)
    await site.start_ledger()
    await site.catches_up_with(time.time())

    # Home Assistant, then the ledger; both come back at once.
    await site.kill_home_assistant()
    await site.stop_ledger()
    inverter.flow(22_500, 9_000)
    await asyncio.gather(site.start_ledger(), site.start_home_assistant())

    # The ledger alone.
    await site.batch_is_on_its_way()
    await site.kill_ledger()
    await site.start_ledger()

    inverter.flow(0, 0)
    await site.catches_up_with(time.time() + 2 * SAMPLE_S + LATENESS_S)

    after = inverter.registers_wh()
    readings = await site.readings()
    assert not site.refused()
    check_series(readings)
    # Nothing flowed at the ends, so no sampling is between the sum and the truth.
    sums = tuple(sum(int(r[f"{name}_wh"]) for r in readings) for name in DIRECTIONS)
    assert sums == (after[0] - before[0], after[1] - before[1])
    assert min(sums) > 100
    assert sums == site.registers_wh()
    assert await site.counted_by_events() == len(readings)
    assert check_quality(site, readings) >= 2
    async with await site.house.connect() as api:
        states = await site.states(api)
    assert states["readings_queued"]["state"] == "0"
    assert states["ledger_connected"]["state"] == "on"
    site.read_log()
    assert not site.errors


async def test_killed_at_random(site: Site) -> None:
    """As `script/faults home` does fifty times."""
    seed = int(time.time())
    figures = await kill_repeatedly(site, KILLS, random.Random(seed))
    print(seed, figures)
    assert figures.kills == KILLS


async def call(api: Api, action: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Call an action over REST and return its response."""
    answer = await api.post(f"/api/services/gridledger/{action}?return_response", data)
    response: dict[str, Any] = answer["service_response"]
    return response


async def test_sell_energy_over_rest(site: Site) -> None:
    """The answer, the ledger, the event and the balance say the same."""

    async def balance_micro() -> int:
        account = await site.operator.evaluate("energy", "wallet:Balance", {"account": CONNECTION})
        return int(account["balance_micro"])

    async with await site.house.connect() as api:

        async def shown() -> dict[str, dict[str, Any]]:
            return await site.states(api)

        async def knows_the_market() -> bool:
            states = await shown()
            return states["balance"]["state"] not in ("unknown", "unavailable")

        await eventually(knows_the_market)
        before = await balance_micro()
        sold = await call(api, "sell_energy", {"energy": 0.05})
        assert sold["status"] == "committed"
        assert sold["energy_kwh"] == 0.05

        net_micro = round(sold["net"] * 1e6)
        assert net_micro > 0

        async def posted() -> bool:
            return await balance_micro() == before + net_micro

        await eventually(posted)
        page = await site.operator.evaluate(
            "energy", "market:Trades", {"connection_id": CONNECTION}
        )
        [trade] = page["trades"]
        assert (trade["trade_id"], int(trade["energy_wh"])) == (sold["trade_id"], 50)

        async def fired() -> bool:
            attributes = (await shown())["trade"]["attributes"]
            return (attributes.get("event_type"), attributes.get("trade_id")) == (
                "committed",
                sold["trade_id"],
            )

        await eventually(fired)

        async def paid() -> bool:
            state = (await shown())["balance"]["state"]
            return round(float(state) * 1e6) == before + net_micro

        await eventually(paid)

        # The connection bears 30 kW and the battery gives 5: 6 Wh in each interval, both sales.
        again = await call(api, "sell_energy", {"energy": 0.02})
        assert again["status"] == "committed"
        assert again["trade_id"] != sold["trade_id"]
        net_micro += round(again["net"] * 1e6)
        delivered: Counter[str] = Counter()

        async def both_are_there() -> bool:
            """The operator may ask another peer than the home did."""
            page = await site.operator.evaluate(
                "energy", "market:Trades", {"connection_id": CONNECTION}
            )
            delivered.clear()
            for trade in page["trades"]:
                for part in trade["schedule"]:
                    delivered[part["interval_start"]] += int(part["energy_wh"])
            return len(page["trades"]) == 2

        await eventually(both_are_there)
        assert sum(delivered.values()) == 70
        assert max(delivered.values()) <= BATTERY_W * INTERVAL_S // 3600

        await check_bad_sales(site, api)
        await eventually(posted)


async def check_bad_sales(site: Site, api: Api) -> None:
    """Each is answered by a sentence, and sells nothing."""
    with pytest.raises(HomeAssistantError, match=r"400 .*50\.000 kWh is more than can be promised"):
        await call(api, "sell_energy", {"energy": 50})

    soon = datetime.now(UTC) + timedelta(minutes=10)
    window = {
        "window_start": soon.isoformat(),
        "window_end": (soon + timedelta(seconds=INTERVAL_S)).isoformat(),
    }
    with pytest.raises(HomeAssistantError, match=r"400 .*more than can be promised: 0\.012 kWh"):
        await call(api, "sell_energy", {"energy": 0.1, **window})

    # 0.15 kWh above the reserve, and some of them are sold.
    site.inverter.level_percent = RESERVE_PERCENT + 1.5

    async def level_is_seen() -> bool:
        state = await api.get("/api/states/sensor.inverter_battery_level")
        return float(state["state"]) == site.inverter.level_percent

    await eventually(level_is_seen)
    with pytest.raises(HomeAssistantError, match=r"400 .*2\.000 kWh are its reserve"):
        await call(api, "sell_energy", {"energy": 0.2})
    site.inverter.level_percent = 80.0
    await eventually(level_is_seen)

    with pytest.raises(HomeAssistantError, match=r"400 .*ledger refused: .*CieloX"):
        await call(api, "sell_energy", {"energy": 0.1, "supplier": "CieloXMSP"})

    await site.stop_ledger()
    with pytest.raises(HomeAssistantError, match=r"500 .*ledger can't be reached"):
        await call(api, "sell_energy", {"energy": 0.1})
    await site.start_ledger()


async def control_battery(api: Api) -> None:
    """Add battery control: the owner's actions, which the inverter ends by itself."""
    [entry] = await api.get("/api/config/config_entries/entry?domain=gridledger")
    flows = "/api/config/config_entries/subentries/flow"
    step = await api.post(flows, {"handler": [entry["entry_id"], "battery_control"]})
    step = await api.post(f"{flows}/{step['flow_id']}", {"preset": "custom"})
    command = {
        "action": "rest_command.inverter_battery",
        "data": {name: f"{{{{ {name} }}}}" for name in ("mode", "power_w", "until")},
    }
    step = await api.post(
        f"{flows}/{step['flow_id']}",
        {
            "advise_only": False,
            "falls_back": True,
            "round_trip": 90,
            "wear": 0,
            "priority": 5,
            **{f"action_{mode}": [command] for mode in ("auto", "hold", "charge", "discharge")},
        },
    )
    assert step["type"] == "create_entry", step


async def earlier_sales_end(site: Site) -> float:
    """Return when the last interval of what is sold so far is over (real)."""
    page = await site.operator.evaluate("energy", "market:Trades", {"connection_id": CONNECTION})
    return max(
        (
            site.real(int(part["interval_start"]) + INTERVAL_S)
            for trade in page["trades"]
            for part in trade["schedule"]
        ),
        default=0.0,
    )


async def test_killed_while_it_sells_stored_energy(site: Site) -> None:
    """The inverter falls back by itself, above the reserve; a new start ends what is left."""
    inverter = site.inverter
    inverter.flow(0, 0)
    above_percent = 0.95  # what the battery gives in little more than a minute
    async with await site.house.connect() as api:
        await control_battery(api)
        # A command lasts a minute at least: from a sale to the next one it may simply go on.
        await asyncio.sleep(max(0.0, await earlier_sales_end(site) - time.time()))
        await eventually(lambda: inverter.command is None or inverter.command.mode != "discharge")
        # Two minutes of delivery, for which the battery has enough when they are sold. The window
        # begins with the interval that holds its start ...
        start = time.time() + 30 + INTERVAL_S
        sold = await call(
            api,
            "sell_energy",
            {"energy": 0.15, "window_start": datetime.fromtimestamp(start, UTC).isoformat()},
        )
        assert sold["status"] == "committed"
        begins = datetime.fromisoformat(sold["window_start"]).timestamp()
        # ... and not any more when they begin.
        await asyncio.sleep(max(0.0, begins - 15 - time.time()))
        assert inverter.command is None or inverter.command.mode != "discharge"
        inverter.level_percent = RESERVE_PERCENT + above_percent

        async def level_is_seen() -> bool:
            state = await api.get("/api/states/sensor.inverter_battery_level")
            return float(state["state"]) == inverter.level_percent

        await eventually(level_is_seen)
        level_seen_at = time.time()

    def discharges() -> bool:
        """Told with the level known: a step that began before may still command as it was."""
        command = inverter.command
        return command is not None and command.mode == "discharge" and command.at > level_seen_at

    await eventually(discharges, within_s=max(0.0, begins - time.time()) + 180)
    await site.kill_home_assistant()
    command = inverter.commands[-1]
    lasts_s = command.until - command.at
    assert lasts_s < 80, f"{lasts_s} s: the reserve is nearer than the end of the sale"
    await asyncio.sleep(max(0.0, command.until - time.time()) + 1)
    assert inverter.command is None
    left = inverter.level_percent
    assert RESERVE_PERCENT <= left < RESERVE_PERCENT + above_percent, left

    told = len(inverter.commands)
    await site.start_home_assistant()
    await eventually(lambda: len(inverter.commands) > told, within_s=180)
    assert {each.mode for each in inverter.commands[told:]} <= {"auto", "hold"}
    assert inverter.level_percent == left


async def test_debug_mode_reports_nothing(site: Site) -> None:
    """Set-up, a sale, unload and set-up again, while Home Assistant looks over our shoulder."""
    async with await site.house.connect() as api:
        entries = "/api/config/config_entries/entry"
        [entry] = await api.get(f"{entries}?domain=gridledger")
        assert (await api.command("get_config"))["debug"]
        for disabled_by in ("user", None):
            await api.command(
                "config_entries/disable", entry_id=entry["entry_id"], disabled_by=disabled_by
            )
        await api.post(f"{entries}/{entry['entry_id']}/reload", {})

        async def sells() -> bool:
            try:
                sold = await call(api, "sell_energy", {"energy": 0.01})
            except HomeAssistantError:  # it connects again
                return False
            return sold["status"] == "committed"

        site.inverter.level_percent = 80.0
        await eventually(sells)
    site.read_log()
    assert not site.errors, "\n".join(site.errors)
