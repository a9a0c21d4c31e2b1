"""A whole network of Fabric's, with our contracts: peers, orderers, and the contracts served."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consortium.node.contracts import client as utility_client
from consortium.node.network import Network, create_network
from gridledger_client import GatewayClient, TransactionRefused
from tests.ports import free_ports

from .fabric import (
    HOST,
    FabricOrderer,
    FabricPeer,
    Program,
    chaincode_package,
    configtxgen,
    issue,
    running,
)

CONTRACTS = ("metering", "energy")


@dataclass
class FabricNetwork:
    """Its description is one of ours: a Fabric peer listens wherever clients look for ours."""

    network: Network
    peers: dict[str, FabricPeer]
    orderers: dict[str, FabricOrderer]
    contracts: dict[str, Program]


def served(network: Network, folder: Path, name: str, package_id: str, port: int) -> Program:
    """`gridledger contract serve`, with TLS."""
    folder.mkdir()
    issue(network.utilities[0], folder, "tls", "peer", f"{name}.aurora.example")
    return Program(
        f"the contract {name}",
        [
            sys.executable,
            *("-m", "consortium.cli.main", "contract", "serve", name),
            *("--address", f"{HOST}:{port}"),
            *("--package-id", package_id),
            *("--tls-cert", str(folder / "tls.cert.pem")),
            *("--tls-key", str(folder / "tls.key.pem")),
        ],
        folder,
        {},
        port,
        cwd=Path(__file__).parents[2],
    )


def collections(network: Network, path: Path) -> Path:
    """The collections of readings, as `peer lifecycle` takes them."""
    path.write_text(
        json.dumps(
            [
                {
                    "name": f"readings-{utility.msp_id}",
                    "policy": f"OR('{utility.msp_id}.member')",
                    "requiredPeerCount": 0,
                    "maxPeerCount": 1,
                    "blockToLive": 0,
                    "memberOnlyRead": True,
                    "memberOnlyWrite": True,
                    "endorsementPolicy": {"signaturePolicy": f"OR('{utility.msp_id}.peer')"},
                }
                for utility in network.utilities
            ]
        )
    )
    return path


async def define(
    network: Network, peers: dict[str, FabricPeer], name: str, package_id: str, extra: list[str]
) -> None:
    """Approve and commit with Fabric's own command line."""
    first = next(iter(peers.values()))
    ordering = [
        *("-o", f"{HOST}:{network.utilities[0].ports.orderer}"),
        *("--tls", "--cafile", str(first.folder / "root.pem")),
        *("--channelID", network.channel, "--name", name),
        *("--version", "1.0", "--sequence", "1", *extra),
    ]
    for peer in peers.values():
        await peer.cli(
            *("lifecycle", "chaincode", "approveformyorg", *ordering),
            *("--package-id", package_id),
        )
    everyone = []
    for peer in peers.values():
        everyone += ["--peerAddresses", peer.address]
        everyone += ["--tlsRootCertFiles", str(peer.folder / "root.pem")]
    await first.cli("lifecycle", "chaincode", "commit", *ordering, *everyone)


async def soon(client: GatewayClient, *call: Any, **more: Any) -> Any:
    """Submit, again while the peers do not know each other yet."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return await client.submit(*call, **more)
        except TransactionRefused as error:
            if time.monotonic() > deadline or "no combination of peers" not in str(error):
                raise
            await asyncio.sleep(0.3)


@contextlib.asynccontextmanager
async def fabric_network(
    programs: Path, folder: Path, *, base_port: int, **settings: Any
) -> AsyncIterator[FabricNetwork]:
    """Start it, and put our contracts on its channel with Fabric's own command line."""
    network = create_network(folder / "data", base_port=base_port, interval_s=60)
    aurora = network.utility("Aurora")
    block = await configtxgen(
        programs, folder / "configtx", network, anchors_are_fabrics=True, **settings
    )
    orderers = {
        utility.msp_id: FabricOrderer.create(
            programs, folder / "orderers" / utility.name, network, utility
        )
        for utility in network.utilities
    }
    peers = {
        utility.msp_id: FabricPeer.create(
            programs,
            folder / "peers" / utility.name,
            network,
            utility,
            ports=(utility.ports.peer, *free_ports(2)),
        )
        for utility in network.utilities
    }
    packages: dict[str, tuple[Path, str]] = {}
    contracts = {}
    for name in CONTRACTS:
        (port,) = free_ports(1)
        package = folder / f"{name}.tar.gz"
        package_id = chaincode_package(package, f"{name}_1", f"{HOST}:{port}", aurora.root_pem)
        packages[name] = package, package_id
        contracts[name] = served(network, folder / name, name, package_id, port)
    async with running(*contracts.values(), *orderers.values(), *peers.values()):
        for orderer in orderers.values():
            await orderer.join(block)
        for peer in peers.values():
            await peer.join(block)
            for package, _ in packages.values():
                await peer.cli("lifecycle", "chaincode", "install", str(package))
        for name, (_, package_id) in packages.items():
            file = collections(network, folder / "collections.json")
            extra = ["--collections-config", str(file)] if name == "metering" else []
            await define(network, peers, name, package_id, extra)
        given: dict[str, Any] = {"interval_s": 60, "replay": None}
        async with utility_client(network, aurora, "admin") as admin:
            await soon(admin, "metering", "metering:Configure", given)
            given |= {
                "currency": "EUR",
                "quote_validity_s": 300,
                "grid_fee_micro_per_kwh": 50_000,
            }
            await soon(admin, "energy", "registry:Configure", given)
        yield FabricNetwork(network, peers, orderers, contracts)
