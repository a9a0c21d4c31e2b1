"""Our orderers and Fabric's are members of one Raft cluster.

Envelopes go in at either kind, either kind leads, dies and comes back, and who was away for long
catches up by a snapshot. Peers of both kinds follow, and come to the same commit hashes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio

from consortium.ledger.channel_config import compute_update
from consortium.ledger.config_changes import PendingUpdate, change_setting, copied
from consortium.node.channel import current, submit_update
from consortium.node.contracts import client as utility_client
from consortium.node.network import Network, Utility, create_network
from consortium.node.nodes import OrdererNode, make_node
from consortium.wire import common_pb2, orderer_pb2, services
from gridledger_client import GatewayClient, SignedTransaction
from tests.ports import first_port

from .fabric import (
    HOST,
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

LEADER_TIMEOUT_S = 60


class OurOrderer:
    """Ours, which can be stopped and started again as Fabric's can."""

    def __init__(self, network: Network, utility: Utility) -> None:
        self.utility = utility
        self._network = network
        self.node: OrdererNode | None = None

    async def start(self) -> None:
        node = make_node(self._network, self.utility, "orderer")
        assert isinstance(node, OrdererNode)
        await node.start()
        self.node = node

    async def stop(self) -> None:
        if self.node is not None:
            await self.node.stop()
            self.node = None

    @property
    def port(self) -> int:
        return self.utility.ports.orderer

    @property
    def leader(self) -> int:
        assert self.node is not None
        (chain,) = self.node.orderer.channels.values()
        return chain.leader

    @property
    def height(self) -> int:
        assert self.node is not None
        (chain,) = self.node.orderer.channels.values()
        return chain.height


@dataclass
class Cluster:
    """Three orderers of two kinds, our peers and one of Fabric's."""

    network: Network
    orderers: dict[int, FabricOrderer | OurOrderer]
    """By Raft id, which is the place among the consenters."""
    peer: FabricPeer
    ours: GatewayClient
    theirs: GatewayClient
    operator: GatewayClient

    async def leader(self, among: Iterable[int]) -> int:
        """The Raft id of who leads now, one of `among`, as ours see it."""
        deadline = time.monotonic() + LEADER_TIMEOUT_S
        while True:
            for one in self.orderers.values():
                if isinstance(one, OurOrderer) and one.node and one.leader in among:
                    return one.leader
            assert time.monotonic() < deadline, "no leader"
            await asyncio.sleep(0.05)

    async def deposit(self, reference: str) -> None:
        """A payment, through Aurora's own gateway."""
        await self.operator.submit("energy", "wallet:Deposit", payment(reference))

    async def endorsed(self, reference: str) -> SignedTransaction:
        """A payment that nobody has sent yet."""
        prepared = self.operator.prepare("energy", "wallet:Deposit", payment(reference))
        return await self.operator.endorse(prepared)

    async def broadcast(self, raft_id: int, one: SignedTransaction) -> int:
        """Send to one orderer; returns its answer once it says more than that it has no leader."""
        orderer = self.orderers[raft_id]
        credentials = grpc.ssl_channel_credentials(self.network.tls_bundle_pem)
        deadline = time.monotonic() + LEADER_TIMEOUT_S
        async with grpc.aio.secure_channel(f"{HOST}:{orderer.port}", credentials) as channel:
            while True:
                call = channel.stream_stream(services.BROADCAST)()
                await call.write(one.envelope)
                answer = orderer_pb2.BroadcastResponse.FromString(await call.read())
                call.cancel()
                if answer.status != common_pb2.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                    return answer.status
                await asyncio.sleep(0.2)

    async def same(self) -> None:
        filters = await same_ledgers(self.ours, self.theirs, self.peer.program)
        assert set(b"".join(filters)) == {0}


def payment(reference: str) -> dict[str, str]:
    return {"account": "SUPPLIER-AURORA", "amount_micro": "5", "bank_reference": reference}


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["one of ours", "two of ours", "one of ours, one listener"],
)
async def cluster(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Cluster]:
    programs = fabric_bin()
    folder = tmp_path_factory.mktemp("cluster")
    our_count = 2 if "two" in request.param else 1
    one_listener = "listener" in request.param
    network = create_network(folder / "data", base_port=first_port(), interval_s=60)
    # Ours first: one of ours that stops hands over to the last.
    theirs = network.utilities[our_count:]
    block = await configtxgen(
        programs,
        folder / "configtx",
        network,
        endpoints={utility.msp_id: utility.ports.cluster for utility in theirs if one_listener},
        snapshot_interval="20 KB",
    )
    (network.directory / "genesis.block").write_bytes(block.read_bytes())
    orderers: dict[int, FabricOrderer | OurOrderer] = {
        raft_id: FabricOrderer.create(
            programs, folder / utility.name, network, utility, one_listener=one_listener
        )
        if utility in theirs
        else OurOrderer(network, utility)
        for raft_id, utility in enumerate(network.utilities, 1)
    }
    peer = FabricPeer.create(programs, folder / "peer", network, network.utility("Aurora"))
    peers = [make_node(network, utility, "peer") for utility in network.utilities]
    async with running(*orderers.values(), peer):
        for orderer in orderers.values():
            if isinstance(orderer, FabricOrderer):
                await orderer.join(block)
        await peer.join(block)
        async with running(*peers):
            await put_contracts(network)
            aurora = network.utility("Aurora")
            clients = [utility_client(network, aurora, who) for who in ("admin", "operator")]
            theirs_client = peer.client()
            yield Cluster(network, orderers, peer, clients[0], theirs_client, clients[1])
            await asyncio.gather(*(each.close() for each in (theirs_client, *clients)))


async def test_envelopes_go_in_anywhere(cluster: Cluster) -> None:
    """At the leader and at followers of both kinds."""
    leader = await cluster.leader(cluster.orderers)
    for raft_id in cluster.orderers:
        one = await cluster.endorsed(f"D-1-{leader}-{raft_id}")
        assert await cluster.broadcast(raft_id, one) == common_pb2.SUCCESS
        status = await cluster.operator.commit_status(one.transaction_id)
        assert status.code == "VALID"
    await cluster.same()


async def test_every_leader_dies(cluster: Cluster) -> None:
    """Whoever leads is killed, a hundred more are ordered, and it comes back by a snapshot."""
    led = set()
    for turn in range(8):
        leader = await cluster.leader(cluster.orderers)
        kind = type(cluster.orderers[leader])
        await cluster.orderers[leader].stop()
        rest = set(cluster.orderers) - {leader}
        if any(isinstance(cluster.orderers[one], OurOrderer) for one in rest):
            await cluster.leader(rest)
        # In several blocks, so that the leader's log no longer has them all.
        for batch in range(8):
            await asyncio.gather(
                *(cluster.deposit(f"D-2-{turn}-{batch}-{number}") for number in range(8))
            )
        await cluster.orderers[leader].start()
        # In again, before the next one goes.
        one = await cluster.endorsed(f"D-3-{turn}")
        assert await cluster.broadcast(leader, one) == common_pb2.SUCCESS
        assert (await cluster.operator.commit_status(one.transaction_id)).valid
        led.add(kind)
        if turn > 2 and led == {FabricOrderer, OurOrderer}:
            break
    assert led == {FabricOrderer, OurOrderer}, "one kind never led"
    await cluster.same()


async def test_configuration_update(cluster: Cluster) -> None:
    """Ordered by both kinds, whoever computes and leads."""
    network = cluster.network
    for number, utility in enumerate(network.utilities):
        before = await current(cluster.ours, "AuroraMSP")
        wanted = copied(before.config.config)
        change_setting(wanted, "batch-size", str(10 + number))
        update = compute_update(network.channel, before.config.config, wanted)
        pending = PendingUpdate(network.channel, update.SerializeToString()).signed_by(
            *(one.signer("admin") for one in network.utilities)
        )
        await submit_update(cluster.ours, "AuroraMSP", pending, before, utility.signer("admin"))
        await cluster.deposit(f"D-4-{number}")
    await cluster.same()
