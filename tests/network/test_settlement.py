"""A day is settled and billed by the utilities' agents: private at one, checked by all.

Channel time runs at a day in twenty seconds. Aurora's peers alone hold the readings; Boreal's and
Cielo's endorse payment and bill, by the commitments that they have.
"""

import asyncio
import copy
import time
from pathlib import Path
from typing import Any

import pytest

from consortium.contracts.common.clock import DAY_S, day_start
from consortium.identity.certificates import generate_key, key_pem
from consortium.node import agreements
from consortium.node.agreements import beginning, channel_time, ensure_agreements, supply
from consortium.node.network import Replay, create_network
from gridledger_client import GatewayClient, GridLedgerError, TransactionRefused
from gridledger_client.readings import MeterKey, Reading, batch_transient
from tests.ports import first_port

from .conftest import RunningNetwork, start_network, stop_network

pytestmark = [pytest.mark.network, pytest.mark.slow]

HOUR_S = 3600
RATE = DAY_S // 20
ORIGIN = 1_795_219_200
"""2026-11-21T00:00:00Z."""
MARGIN_S = 4.0
NOON = 13
"""The hour of a Central European day at which it is noon in UTC."""
HOMES = {"CP-BUY": (600, 0), "CP-SUN": (0, 1000)}
"""What each imports and exports at noon."""


async def read(aurora: GatewayClient, running: RunningNetwork, day: str) -> None:
    """Aurora's meters and supplies, and a day of signed readings."""
    readings = []
    start = day_start(day) - HOUR_S  # Central European Time
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
        await aurora.submit(
            "energy", "billing:AgreeSupply", {"supply": supply(name, "AuroraMSP", day)}
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
                    import_wh if hour == NOON else 0,
                    export_wh if hour == NOON else 0,
                    import_wh if hour >= NOON else 0,
                    export_wh if hour >= NOON else 0,
                ),
                running.network.channel,
            )
            for hour in range(24)
        ]
    left_s = (start + DAY_S - channel_time(running.network)) / RATE
    await asyncio.sleep(max(0, left_s) + 2)
    accepted = await aurora.submit(
        "metering",
        "metering:SubmitReadings",
        {"utility": "AuroraMSP"},
        transient=batch_transient(readings),
        endorsing_organizations=["AuroraMSP"],
    )
    assert accepted.result["accepted"] == str(24 * len(HOMES)), accepted.result


async def answered(client: GatewayClient, function: str, argument: dict[str, Any]) -> Any:
    """What a query answers, as soon as it does."""
    async with asyncio.timeout(120):
        while True:
            try:
                return await client.evaluate("energy", function, argument)
            except GridLedgerError:
                await asyncio.sleep(0.3)


async def test_a_day_is_settled_and_billed_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = {"rest": "settled", "tariff": 300_000, "base_rate": 50_000}
    usual = agreements.settlement_terms
    monkeypatch.setattr(agreements, "settlement_terms", lambda name: {**usual(name), **terms})
    replay = Replay(origin=ORIGIN, anchor=int(time.time()), rate=RATE)
    network = create_network(
        tmp_path / "data", interval_s=HOUR_S, replay=replay, base_port=first_port()
    )
    for utility in network.utilities:
        settings = utility.directory / "peer" / "agent.json"
        settings.write_text('{"poll_s": 0.5, "days_poll_s": 1}')
    running = await asyncio.to_thread(start_network, network, tmp_path / "log")
    try:
        async with (
            running.client("Aurora") as aurora,
            running.client("Boreal") as boreal,
        ):
            agreed = await ensure_agreements(network, margin_s=MARGIN_S)
            assert len(agreed) == 5 + 2 * len(network.utilities)
            day = beginning(network, MARGIN_S).first_day
            await read(aurora, running, day)
            await settled(aurora, boreal, day)
            await billed(aurora, day)
            await checked(aurora, boreal, day)
            assert await ensure_agreements(network, margin_s=MARGIN_S) == []
    finally:
        await asyncio.to_thread(stop_network, running)


async def settled(aurora: GatewayClient, boreal: GatewayClient, day: str) -> None:
    """The day is posted without anybody's doing, and nothing else can be."""
    where = {"utility": "AuroraMSP", "day": day, "run": "provisional"}
    summaries = []
    for name in sorted(HOMES):
        posted = await answered(aurora, "settlement:Posted", {"connection_id": name, "day": day})
        found = await aurora.evaluate(
            "metering", "daybook:Record", {**where, "connection_id": name}
        )
        assert posted["summary"] == found["summary"]
        summaries.append(found["summary"])
        # Boreal's peer has the hash, and not the record.
        told = await boreal.evaluate(
            "metering",
            "commitment:Of",
            {"utility": "AuroraMSP", "keys": [f"st/{day}/provisional/{name}"]},
            endorsing_organizations=["BorealMSP"],
        )
        assert [one["commitment"] for one in told["commitments"]] == [posted["commitment"]]
    altered = copy.deepcopy(summaries)
    altered[0]["sums"][0]["amount_micro"] = "-179999"
    with pytest.raises(TransactionRefused, match="has committed to"):
        await aurora.submit("energy", "settlement:Post", {**where, "summaries": altered})
    again = await aurora.submit("energy", "settlement:Post", {**where, "summaries": summaries})
    assert again.result["known"] == sorted(HOMES)
    for name, expected in (("CP-BUY", "-180000"), ("CP-SUN", "50000")):
        statement = await aurora.evaluate("energy", "wallet:Statement", {"account": name})
        amounts = {one["kind"]: one["amount_micro"] for one in statement["entries"]}
        assert amounts["import" if name == "CP-BUY" else "feed_in"] == expected
    lot = await boreal.evaluate(
        "energy",
        "token:Lot",
        {"origin": "CP-SUN", "day": day},
        endorsing_organizations=["BorealMSP"],
    )
    assert lot["holdings"] == [
        {"holder": "SUPPLIER-AURORA", "energy_wh": "1000", "retired_wh": "0"}
    ]


async def billed(aurora: GatewayClient, day: str) -> None:
    """The bill is posted too: what settlement paid isn't in it again, only the standing charge."""
    for name in sorted(HOMES):
        found = await answered(aurora, "billing:Bill", {"connection_id": name, "number": 1})
        assert found["document"]["from_day"] == day
        # 0.23 and 8.1 % of tax, to the cent.
        assert found["document"]["total_micro"] == "250000"


async def checked(aurora: GatewayClient, boreal: GatewayClient, day: str) -> None:
    """Boreal, whose peer holds none of it, is shown one interval, and adds the money up."""
    where = {"utility": "AuroraMSP", "day": day, "run": "provisional"}
    sun = {**where, "connection_id": "CP-SUN"}
    (row,) = (await aurora.evaluate("metering", "daybook:Record", sun))["opened"]["rows"]
    opening = await aurora.evaluate(
        "metering", "daybook:Open", {**sun, "interval_start": row["interval_start"]}
    )
    own = {"endorsing_organizations": ["BorealMSP"]}
    found = await boreal.evaluate("energy", "challenge:Check", {"opening": opening}, **own)
    assert found == {"committed": True, "holds": True, "difference": None}
    opening["windows"][0]["rows"][0]["export_wh"] = "1001"
    found = await boreal.evaluate("energy", "challenge:Check", {"opening": opening}, **own)
    assert not found["committed"]
    audited = await aurora.evaluate(
        "metering", "daybook:Audit", {**where, "connections": sorted(HOMES)}
    )
    assert [one["verdict"] for one in audited] == ["agrees", "agrees"]
    summed = await boreal.evaluate("energy", "oversight:ZeroSum", {}, **own)
    assert (summed["sum_micro"], summed["bookmark"]) == ("0", None)
