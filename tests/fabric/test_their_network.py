"""Our contracts and our client on a network of nothing but Fabric's peers and orderers.

The contracts are served by `gridledger contract serve`, put on the channel by Fabric's own `peer`
command, and called by the library of the Home Assistant integration and by Fabric's Node client.
Homes enrol at our authority.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from consortium.identity.certificates import write_private
from consortium.node.contracts import client as utility_client
from consortium.node.network import Network
from consortium.node.nodes import make_node
from gridledger_client import (
    GatewayClient,
    Identity,
    MeterKey,
    Reading,
    TransactionRefused,
    enroll,
    generate_key_pem,
)
from gridledger_client.readings import batch_transient
from tests.ports import first_port
from tests.windows import coming_window

from .fabric import FabricPeer, fabric_bin, height, node_client, same_ledgers
from .networks import fabric_network

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]


@dataclass
class Theirs:
    """A Fabric network with our contracts, and a home of Aurora's."""

    network: Network
    peers: dict[str, FabricPeer]
    operator: GatewayClient
    home: GatewayClient
    home_folder: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def theirs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Theirs]:
    folder = tmp_path_factory.mktemp("theirs")
    async with fabric_network(fabric_bin(), folder, base_port=first_port()) as started:
        network = started.network
        aurora = network.utility("Aurora")
        authority = make_node(network, aurora, "ca")
        await authority.start()
        secret = await asyncio.to_thread(
            network.register_identity,
            "AuroraMSP",
            "home-1",
            None,
            {"gridledger.role": "home", "gridledger.connection": "CP-1"},
        )
        enrolled = await enroll(aurora.ca_url, "home-1", secret, network.tls_bundle_pem)
        home_folder = folder / "home"
        home_folder.mkdir()
        (home_folder / "sign.cert.pem").write_bytes(enrolled.certificate_pem)
        write_private(home_folder / "sign.key.pem", enrolled.key_pem)
        home = GatewayClient(
            [aurora.gateway_address],
            network.channel,
            Identity("AuroraMSP", enrolled.certificate_pem, enrolled.key_pem),
            network.tls_bundle_pem,
        )
        operator = utility_client(network, aurora, "operator")
        yield Theirs(network, started.peers, operator, home, home_folder)
        await asyncio.gather(home.close(), operator.close())
        await authority.stop()


async def test_a_home_meters_and_sells(theirs: Theirs) -> None:
    """Registration, readings, a quote, its authorisation, the event, the balance."""
    await theirs.operator.submit(
        "energy",
        "registry:RegisterConnection",
        {
            "connection_id": "CP-1",
            "utility": "AuroraMSP",
            "zone": "Z1",
            "max_export_w": "6000",
            "max_import_w": "17000",
        },
    )
    key = MeterKey(generate_key_pem(), b"a secret of the home")
    await theirs.home.submit(
        "metering",
        "metering:RegisterMeter",
        {
            "meter_id": "HA-1",
            "connection_id": "CP-1",
            "utility": "AuroraMSP",
            "source_class": "declared",
            "public_key": key.public_key_pem,
        },
    )
    before = int(time.time()) // 60 * 60 - 200 * 60
    readings = [
        Reading("HA-1", before + 60 * number, 60, 1, 0, number, 0) for number in range(1, 200)
    ]
    submitted = await theirs.home.submit(
        "metering",
        "metering:SubmitReadings",
        {"utility": "AuroraMSP"},
        transient=batch_transient([key.sign(one, theirs.network.channel) for one in readings]),
        endorsing_organizations=["AuroraMSP"],
    )
    assert submitted.result["accepted"] == "199", submitted.result
    found = await theirs.home.evaluate(
        "metering",
        "metering:Readings",
        {
            "meter_id": "HA-1",
            "from": str(before),
            "to": str(before + 200 * 60),
            "limit": 1000,
        },
        endorsing_organizations=["AuroraMSP"],
    )
    assert len(found["readings"] if isinstance(found, dict) else found) == 199

    for day in {time.strftime("%Y-%m-%d", time.gmtime(time.time() + wait)) for wait in (0, 900)}:
        await theirs.operator.submit(
            "energy",
            "market:PublishRate",
            {
                "supplier": "AuroraMSP",
                "day": day,
                "kind": "buy",
                "price_micro_per_kwh": "81000",
            },
        )
    start, end = coming_window(120, 300)
    asked = {
        "connection_id": "CP-1",
        "energy_wh": "400",
        "window_start": str(start),
        "window_end": str(end),
    }
    quote = (await theirs.home.evaluate("energy", "market:Quote", asked))["quote"]
    first = await height(theirs.operator)
    committed = await theirs.home.submit(
        "energy", "market:Authorise", {"request_id": "one", "quote": quote}
    )
    async for event in theirs.home.chaincode_events("energy", start_block=first):
        assert event.name == "trade"
        assert event.json() == committed.result
        break
    balance = await theirs.home.evaluate("energy", "wallet:Balance", {"account": "CP-1"})
    assert balance["balance_micro"] == quote["net_micro"]
    with pytest.raises(TransactionRefused, match="amount_micro"):
        await theirs.operator.submit("energy", "wallet:Deposit", {"account": "SUPPLIER-AURORA"})


async def test_fabrics_node_client(theirs: Theirs) -> None:
    """The same with Fabric's own client, on its own network, with our contracts."""
    aurora = theirs.network.utility("Aurora")
    start, end = coming_window(600, 300)
    window = {"window_start": str(start), "window_end": str(end)}
    asked = {"connection_id": "CP-1", "energy_wh": "300", **window}

    async def run(*steps: dict[str, Any]) -> Any:
        return await node_client(
            theirs.network, aurora.gateway_address, aurora, theirs.home_folder, *steps
        )

    (quoted,) = await run({"do": "evaluate", "function": "market:Quote", "args": [asked]})
    authorised = {"request_id": "node-1", "quote": json.loads(quoted)["quote"]}
    _, committed, event, balance = await run(
        {"do": "listen", "name": "events"},
        {"do": "submitAsync", "function": "market:Authorise", "args": [authorised]},
        {"do": "next", "name": "events"},
        {"do": "evaluate", "function": "wallet:Balance", "args": [{"account": "CP-1"}]},
    )
    assert committed["successful"] is True
    assert event["transactionId"] == committed["transactionId"]
    assert json.loads(event["payload"]) == json.loads(committed["result"])
    assert int(json.loads(balance)["balance_micro"]) > 0


async def test_all_peers_agree(theirs: Theirs) -> None:
    clients = [peer.client() for peer in theirs.peers.values()]
    for client in clients[1:]:
        filters = await same_ledgers(clients[0], client)
        assert set(b"".join(filters)) == {0}
    await asyncio.gather(*(client.close() for client in clients))
