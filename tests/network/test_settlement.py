"""A day is settled on a real network: private at one utility, checked and paid by all.

Channel time runs at a day in twenty seconds. Aurora's peers alone hold the readings; Boreal's and
Cielo's endorse the payment, by the commitments that they have.
"""

import asyncio
import copy
import time
from pathlib import Path
from typing import Any

import pytest

from consortium.contracts.clock import DAY_S, day_of
from consortium.identity.certificates import generate_key, key_pem
from consortium.node.network import Replay, create_network
from gridledger_client import GatewayClient, TransactionRefused
from gridledger_client.readings import MeterKey, Reading, batch_transient

from .conftest import RunningNetwork, start_network, stop_network

pytestmark = [pytest.mark.network, pytest.mark.slow]

HOUR_S = 3600
RATE = DAY_S // 20
ORIGIN = 1_795_219_200
"""2026-11-21T00:00:00Z."""
TERMS = {
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
HOMES = {"CP-BUY": (600, 0), "CP-SUN": (0, 1000)}
"""What each imports and exports at noon."""


def channel_time(replay: Replay) -> int:
    return replay.origin + (int(time.time()) - replay.anchor) * replay.rate


async def agreed_day(aurora: GatewayClient, boreal: GatewayClient, replay: Replay) -> int:
    """Agree on terms and return the first day on which they hold."""
    while True:
        start = (channel_time(replay) + DAY_S // 2) // DAY_S * DAY_S + DAY_S
        try:
            proposed = await aurora.submit(
                "energy", "settlement:ProposeTerms", {"terms": TERMS, "effective_from": start}
            )
            await boreal.submit(
                "energy",
                "settlement:ApproveTerms",
                {"supplier": "AuroraMSP", "version": proposed.result["version"]},
            )
        except TransactionRefused:  # the machine was too slow, and the day has come
            continue
        return start


async def read(aurora: GatewayClient, running: RunningNetwork, start: int) -> None:
    """Aurora's meters, and a day of signed readings."""
    readings = []
    for name, (import_wh, export_wh) in HOMES.items():
        await aurora.submit(
            "energy",
            "registry:RegisterConnection",
            {
                "connection_id": name,
                "utility": "AuroraMSP",
                "zone": "NORTH",
                "max_export_w": 10_000,
                "max_import_w": 20_000,
            },
        )
        key = MeterKey(key_pem(generate_key()), name.encode() * 4)
        await aurora.submit(
            "metering",
            "metering:RegisterMeter",
            {
                "meter_id": f"M-{name}",
                "connection_id": name,
                "utility": "AuroraMSP",
                "source_class": "accredited",
                "public_key": key.public_key_pem,
            },
        )
        readings += [
            key.sign(
                Reading(
                    f"M-{name}",
                    start + hour * HOUR_S,
                    HOUR_S,
                    import_wh if hour == 12 else 0,
                    export_wh if hour == 12 else 0,
                    import_wh if hour >= 12 else 0,
                    export_wh if hour >= 12 else 0,
                ),
                running.network.channel,
            )
            for hour in range(24)
        ]
    replay = running.network.replay
    assert replay is not None
    left_s = (start + DAY_S - channel_time(replay)) / replay.rate
    await asyncio.sleep(max(0, left_s) + 2)
    accepted = await aurora.submit(
        "metering",
        "metering:SubmitReadings",
        {"utility": "AuroraMSP"},
        transient=batch_transient(readings),
        endorsing_organizations=["AuroraMSP"],
    )
    assert accepted.result["accepted"] == str(24 * len(HOMES)), accepted.result


async def test_a_day_is_settled(tmp_path: Path) -> None:
    replay = Replay(origin=ORIGIN, anchor=int(time.time()), rate=RATE)
    network = create_network(tmp_path / "data", interval_s=HOUR_S, replay=replay, base_port=27_300)
    running = await asyncio.to_thread(start_network, network, tmp_path / "log")
    try:
        async with (
            running.client("Aurora") as aurora,
            running.client("Boreal") as boreal,
        ):
            start = await agreed_day(aurora, boreal, replay)
            await read(aurora, running, start)
            await settle(aurora, boreal, day_of(start))
    finally:
        await asyncio.to_thread(stop_network, running)


async def settle(aurora: GatewayClient, boreal: GatewayClient, day: str) -> None:
    where = {"utility": "AuroraMSP", "day": day, "run": "provisional"}
    committed = await aurora.submit(
        "metering",
        "daybook:Commit",
        {**where, "connections": sorted(HOMES)},
        endorsing_organizations=["AuroraMSP"],
    )
    records: list[dict[str, Any]] = committed.result["records"]
    # Boreal's peer has the hashes, and not the records.
    told = await boreal.evaluate(
        "metering",
        "commitment:Of",
        {"utility": "AuroraMSP", "keys": [one["key"] for one in records]},
        endorsing_organizations=["BorealMSP"],
    )
    assert [one["commitment"] for one in told["commitments"]] == [
        one["commitment"] for one in records
    ]
    summaries = [
        (await aurora.evaluate("metering", "daybook:Record", {**where, "connection_id": name}))[
            "summary"
        ]
        for name in sorted(HOMES)
    ]
    altered = copy.deepcopy(summaries)
    altered[0]["sums"][0]["amount_micro"] = "-179999"
    with pytest.raises(TransactionRefused, match="has committed to"):
        await aurora.submit("energy", "settlement:Post", {**where, "summaries": altered})
    posted = await aurora.submit("energy", "settlement:Post", {**where, "summaries": summaries})
    assert posted.result["posted"] == sorted(HOMES)
    for name, expected in (("CP-BUY", "-180000"), ("CP-SUN", "50000")):
        balance = await aurora.evaluate("energy", "wallet:Balance", {"account": name})
        assert balance["balance_micro"] == expected
    lot = await boreal.evaluate(
        "energy",
        "token:Lot",
        {"origin": "CP-SUN", "day": day},
        endorsing_organizations=["BorealMSP"],
    )
    assert lot["holdings"] == [
        {"holder": "SUPPLIER-AURORA", "energy_wh": "1000", "retired_wh": "0"}
    ]
