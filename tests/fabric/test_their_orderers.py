"""Our peers follow Fabric's orderers, on a channel that Fabric's configtxgen made.

A real Fabric peer follows them too, and both come to the same blocks and commit hashes.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from consortium.ledger.channel_config import compute_update
from consortium.ledger.config_changes import PendingUpdate, change_setting, copied
from consortium.node.channel import current, submit_update
from consortium.node.contracts import client as utility_client
from consortium.node.network import Network, create_network
from consortium.node.nodes import make_node
from gridledger_client import GatewayClient
from tests.ports import first_port

from .fabric import (
    FabricOrderer,
    FabricPeer,
    configtxgen,
    fabric_bin,
    put_contracts,
    running,
    same_ledgers,
)

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]


@dataclass
class Followed:
    """Fabric's orderers, our peers, and one of Fabric's."""

    network: Network
    orderers: list[FabricOrderer]
    peer: FabricPeer
    ours: GatewayClient
    theirs: GatewayClient

    async def deposit(self, reference: str) -> None:
        """A payment, through Aurora's own gateway."""
        aurora = self.network.utility("Aurora")
        async with utility_client(self.network, aurora, "operator") as operator:
            await operator.submit(
                "energy",
                "wallet:Deposit",
                {
                    "account": "SUPPLIER-AURORA",
                    "amount_micro": "5",
                    "bank_reference": reference,
                },
            )


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["two listeners", "one"])
async def followed(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Followed]:
    programs = fabric_bin()
    folder = tmp_path_factory.mktemp("followed")
    one = request.param == "one"
    network = create_network(folder / "data", base_port=first_port(), interval_s=60)
    block = await configtxgen(
        programs,
        folder / "configtx",
        network,
        endpoints={
            utility.msp_id: utility.ports.cluster if one else utility.ports.orderer
            for utility in network.utilities
        },
    )
    (network.directory / "genesis.block").write_bytes(block.read_bytes())
    orderers = [
        FabricOrderer.create(programs, folder / utility.name, network, utility, one_listener=one)
        for utility in network.utilities
    ]
    peer = FabricPeer.create(programs, folder / "peer", network, network.utility("Aurora"))
    peers = [make_node(network, utility, "peer") for utility in network.utilities]
    async with running(*orderers, peer):
        for orderer in orderers:
            await orderer.join(block)
        await peer.join(block)
        async with running(*peers):
            await put_contracts(network)
            ours = utility_client(network, network.utility("Aurora"), "admin")
            theirs = peer.client()
            yield Followed(network, orderers, peer, ours, theirs)
            await asyncio.gather(ours.close(), theirs.close())


async def test_follow_from_the_first_block(followed: Followed) -> None:
    await followed.deposit("B-1")
    await asyncio.gather(*(followed.deposit(f"B-2-{number}") for number in range(50)))
    filters = await same_ledgers(followed.ours, followed.theirs, followed.peer.program)
    assert set(b"".join(filters)) == {0}


async def test_configuration_update(followed: Followed) -> None:
    """Computed and signed by our tools, ordered by Fabric's orderers."""
    network = followed.network
    before = await current(followed.ours, "AuroraMSP")
    wanted = copied(before.config.config)
    change_setting(wanted, "batch-size", "10")
    update = compute_update(network.channel, before.config.config, wanted)
    pending = PendingUpdate(network.channel, update.SerializeToString()).signed_by(
        *(utility.signer("admin") for utility in network.utilities)
    )
    await submit_update(
        followed.ours, "AuroraMSP", pending, before, network.utility("Aurora").signer("admin")
    )
    await followed.deposit("B-3")
    await same_ledgers(followed.ours, followed.theirs, followed.peer.program)


async def test_an_orderer_dies(followed: Followed) -> None:
    """Whichever it is that we follow: the next one is found, and nothing is missed or doubled."""
    for orderer in followed.orderers:
        await orderer.stop()
        for number in range(3):
            await followed.deposit(f"B-4-{orderer.utility.name.upper()}-{number}")
        await orderer.start()
    filters = await same_ledgers(followed.ours, followed.theirs, followed.peer.program)
    assert set(b"".join(filters)) == {0}
