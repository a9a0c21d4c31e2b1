"""A channel moves from our orderers to Fabric's and back, one orderer at a time, as it goes on.

Each utility's orderer is taken out of the channel, its place given to the other kind with the same
keys and addresses, and joined by the newest configuration block: it fetches the blocks from the
others, whatever they are, and becomes a consenter.
"""

import asyncio
import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from consortium.ledger.channel_config import ChannelConfig, compute_update
from consortium.ledger.config_changes import PendingUpdate, copied
from consortium.ledger.consenter_changes import add_consenter, remove_consenter
from consortium.node.channel import current, submit_update
from consortium.node.contracts import client as utility_client
from consortium.node.network import Network, NetworkError, Utility, create_network
from consortium.node.nodes import OrdererNode, make_node
from consortium.wire import common_pb2
from gridledger_client import GatewayClient
from tests.ports import first_port

from .fabric import (
    HOST,
    FabricOrderer,
    FabricPeer,
    block,
    fabric_bin,
    put_contracts,
    running,
    same_ledgers,
)

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(600)]

CONSENTER_TIMEOUT_S = 90
VALID, DUPLICATE_TXID = 0, 9


async def change(
    network: Network, client: GatewayClient, edit: Callable[[common_pb2.Config], None]
) -> common_pb2.Block:
    """Have every admin sign a change; returns the block that brought it.

    A Fabric orderer that has just joined refuses while it hears of no other consenter, and what
    it has taken is queued and no more: if it is lost, it is sent again.
    """
    deadline = time.monotonic() + CONSENTER_TIMEOUT_S
    while True:
        before = await current(client, "AuroraMSP")
        wanted = copied(before.config.config)
        edit(wanted)
        update = compute_update(network.channel, before.config.config, wanted)
        pending = PendingUpdate(network.channel, update.SerializeToString()).signed_by(
            *(utility.signer("admin") for utility in network.utilities)
        )
        admin = network.utility("Aurora").signer("admin")
        try:
            now = await submit_update(client, "AuroraMSP", pending, before, admin)
        except NetworkError as error:
            passing = ("nodes are alive", "would be alive", "has not committed it")
            if not any(one in str(error) for one in passing) or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)
        else:
            return await block(client, now.block_number)


async def test_there_and_back(tmp_path: Path) -> None:
    """Three of ours, then none, then one again; a Fabric peer follows all the time."""
    programs = fabric_bin()
    network = create_network(tmp_path / "data", base_port=first_port(), interval_s=60)
    # Learners stand in the log for ever, and Fabric's orderers panic at the first one.
    network = dataclasses.replace(network, beside_fabric=True)
    aurora = network.utility("Aurora")
    genesis = network.directory / "genesis.block"
    ours: dict[str, OrdererNode] = {}
    for utility in network.utilities:
        node = make_node(network, utility, "orderer")
        assert isinstance(node, OrdererNode)
        ours[utility.name] = node
    theirs = {
        utility.name: FabricOrderer.create(
            programs, tmp_path / "fabric" / utility.name, network, utility
        )
        for utility in network.utilities
    }
    first = network.genesis_block
    assert first is not None
    places = {one.port: one for one in ChannelConfig.from_block(first).orderer.consenters}
    peers = [make_node(network, utility, "peer") for utility in network.utilities]
    follower = FabricPeer.create(programs, tmp_path / "peer", network, aurora)
    async with running(*ours.values(), *peers, follower):
        await follower.join(genesis)
        await put_contracts(network)
        async with (
            utility_client(network, aurora, "admin") as admin,
            utility_client(network, aurora, "operator") as operator,
            follower.client() as fabrics,
        ):
            genesis.unlink()  # who joins from now on joins by a later block

            async def deposits(reference: str) -> None:
                await asyncio.gather(
                    *(
                        operator.submit(
                            "energy",
                            "wallet:Deposit",
                            {
                                "account": "SUPPLIER-AURORA",
                                "amount_micro": "5",
                                "bank_reference": f"{reference}-{number}",
                            },
                        )
                        for number in range(10)
                    )
                )

            async def replaced(
                utility: Utility, old: OrdererNode | FabricOrderer
            ) -> common_pb2.Block:
                place = places[utility.ports.cluster]
                await change(
                    network,
                    admin,
                    lambda config: remove_consenter(config, HOST, utility.ports.cluster),
                )
                await deposits(f"WITHOUT-{utility.name.upper()}-{len(moved)}")
                # Before its key gets a new Raft id: it would take part under that one too.
                await old.stop()
                return await change(network, admin, lambda config: add_consenter(config, place))

            moved: list[str] = []
            try:
                for utility in network.utilities:
                    newest = await replaced(utility, ours[utility.name])
                    file = tmp_path / f"{utility.name}.block"
                    file.write_bytes(newest.SerializeToString())
                    await theirs[utility.name].start()
                    await theirs[utility.name].join(file)
                    moved.append(utility.name)
                    await _active(theirs[utility.name])
                    await deposits(f"WITH-{utility.name.upper()}")
                # And back, with an empty disk: it must not be taken for who it was.
                utility = network.utility("Cielo")
                newest = await replaced(utility, theirs[utility.name])
                shutil.rmtree(utility.directory / "orderer" / "data")
                back = make_node(network, utility, "orderer")
                assert isinstance(back, OrdererNode)
                await back.start()
                try:
                    await back.orderer.join_channel(newest)
                    deadline = time.monotonic() + CONSENTER_TIMEOUT_S
                    while ("consenter", "active") not in {
                        (one.consensus_relation, one.status) for one in back.orderer.channel_infos()
                    }:
                        assert time.monotonic() < deadline, back.orderer.channel_infos()
                        await asyncio.sleep(0.1)
                    # One of Fabric's less, so that ours is needed for a majority.
                    await theirs["Aurora"].stop()
                    await deposits("BACK")
                    filters = await same_ledgers(admin, fabrics, follower.program)
                finally:
                    await back.stop()
            finally:
                for orderer in theirs.values():
                    await orderer.stop()
    # What was sent again when an orderer left is ordered twice at times, and valid once.
    assert set(b"".join(filters)) <= {VALID, DUPLICATE_TXID}


async def _active(orderer: FabricOrderer) -> None:
    """Returns when Fabric's orderer says that it is a consenter with all blocks."""
    async with asyncio.timeout(CONSENTER_TIMEOUT_S):
        while True:
            said = await orderer.osnadmin("list", "--channelID", orderer.network.channel)
            if '"active"' in said and '"consenter"' in said:
                return
            await asyncio.sleep(0.3)
