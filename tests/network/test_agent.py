"""A product's book closes, is cleared and applied by itself: the utilities' agents see to it."""

import asyncio
import time
from pathlib import Path
from typing import Any

from consortium.node.contracts import client, ensure_contracts
from consortium.node.network import Network, create_network
from consortium.node.nodes import EmbeddedNetwork, PeerNode
from gridledger_client import GatewayClient, GridLedgerError, Identity, enroll
from tests.ports import first_port

TERMS = {
    "product": "ANY",
    "zones": [{"zone": "NORTH", "local_fee": 0, "entry_fee": 0, "exit_fee": 0}],
    "price_min": 0,
    "price_max": 1_000_000,
    "price_tick": 1,
    "price_rule": "middle",
    "gate_closure_s": 20,
    "shortfall_margin": 0,
}
INTERVAL_S = 10


async def _home(network: Network, operator: GatewayClient, name: str) -> GatewayClient:
    """A home with money to spend."""
    await operator.submit(
        "energy",
        "registry:RegisterConnection",
        {
            "connection_id": name,
            "utility": "AuroraMSP",
            "zone": "NORTH",
            "max_export_w": 100_000,
            "max_import_w": 100_000,
        },
    )
    member = network.utility("Aurora")
    attributes = {"gridledger.role": "home", "gridledger.connection": name}
    secret = network.register_identity(member.msp_id, name, None, attributes)
    found = await enroll(member.ca_url, name, secret, network.tls_bundle_pem)
    identity = Identity(member.msp_id, found.certificate_pem, found.key_pem)
    home = GatewayClient(
        [member.gateway_address], network.channel, identity, network.tls_bundle_pem
    )
    deposit = {"account": name, "amount_micro": 10**9, "bank_reference": f"B-{name}"}
    await operator.submit("energy", "wallet:Deposit", deposit)
    waiting = await home.evaluate("energy", "wallet:Incoming", {"account": name})
    entries = {"account": name, "entries": waiting["entries"]}
    await home.submit("energy", "wallet:Sweep", entries)
    return home


async def _submit_until(gateway: GatewayClient, function: str, argument: dict[str, Any]) -> None:
    """Peers may be a block apart: what one has not seen yet it refuses."""
    async with asyncio.timeout(60):
        while True:
            try:
                await gateway.submit("energy", function, argument)
            except GridLedgerError:
                await asyncio.sleep(0.2)
            else:
                return


def _ahead(seconds: float) -> int:
    return (int(time.time() + seconds) // INTERVAL_S + 1) * INTERVAL_S


async def test_an_auction_runs_by_itself(tmp_path: Path) -> None:
    network = create_network(
        tmp_path / "data",
        utilities=("Aurora", "Boreal"),
        interval_s=INTERVAL_S,
        base_port=first_port(),
    )
    boreal = network.utility("Boreal").directory / "peer" / "agent.json"
    boreal.write_text('{"poll_s": 0.5, "patience_s": 1}')
    async with EmbeddedNetwork(network) as running:
        await ensure_contracts(network)
        operator = client(network, network.utility("Aurora"), "operator")
        other = client(network, network.utility("Boreal"), "operator")
        homes: list[GatewayClient] = []
        try:
            await operator.submit(
                "energy",
                "book:ProposeProduct",
                {"terms": TERMS, "effective_from": _ahead(20)},
            )
            await _submit_until(other, "book:ApproveProduct", {"product": "ANY", "version": 1})
            homes += [await _home(network, operator, name) for name in ("SELLER", "BUYER")]
            seller, buyer = homes

            async def order(home: GatewayClient, name: str, side: str, start: int) -> None:
                await home.submit(
                    "energy",
                    "book:Place",
                    {
                        "order_id": f"o-{start}",
                        "connection_id": name,
                        "product": "ANY",
                        "interval_start": start,
                        "side": side,
                        "price_micro_per_kwh": 100,
                        "energy_wh": 100,
                    },
                )

            filled: list[Any] = []
            async with asyncio.timeout(240):
                while not filled:
                    # On a busy machine a book may close before both orders are in it: once more.
                    start = _ahead(TERMS["gate_closure_s"] + 15)  # type: ignore[operator]
                    placed = await asyncio.gather(
                        order(seller, "SELLER", "offer", start),
                        order(buyer, "BUYER", "bid", start),
                        return_exceptions=True,
                    )
                    while not any(isinstance(one, GridLedgerError) for one in placed):
                        listed = await buyer.evaluate(
                            "energy", "book:Orders", {"connection_id": "BUYER", "from": start}
                        )
                        [found] = listed["orders"]
                        if found["state"] != "open":
                            filled = [found] if found["local_wh"] == "100" else []
                            break
                        await asyncio.sleep(0.5)
            assert filled[0]["state"] == "cleared"
            assert filled[0]["local_price"] == "100"
            assert filled[0]["matched_by"] in ("AuroraMSP", "BorealMSP")
            peers = [node for node in running.nodes.values() if isinstance(node, PeerNode)]
            counts = [node.scheduled.agent.counts for node in peers if node.scheduled is not None]
            assert len(counts) == 2
            for function in ("book:Close", "book:Aggregate", "book:Clear", "book:Apply"):
                assert sum(count.get((function, "done"), 0) for count in counts) >= 1
        finally:
            await asyncio.gather(*(one.close() for one in (operator, other, *homes)))
