"""What an orderer of ours has to mind beside Fabric's; tests/fabric/ has Fabric's own programs."""

from typing import Any

import pytest

from consortium.ledger.channel_config import RaftOptions
from consortium.orderer import cluster
from consortium.orderer.node import Orderer
from consortium.wire import common_pb2, services
from tests.consortium.orderer.conftest import NetworkFactory
from tests.consortium.orderer.network import CHANNEL, broadcast

FABRICS_SHORTEST_PING_MS = 60_000
"""`Keepalive.ServerMinInterval`: its nodes hang up on who pings more often."""


@pytest.mark.parametrize("options", [services.NODE_CHANNEL_OPTIONS, cluster.CHANNEL_OPTIONS])
def test_pings_are_rare_enough(options: services.ChannelOptions) -> None:
    assert int(dict(options)["grpc.keepalive_time_ms"]) > FABRICS_SHORTEST_PING_MS


async def test_blocks_are_fetched_where_clients_fetch_them(
    make_network: NetworkFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fabric's consenters' listener, where it is one of its own, has no Deliver."""
    serve = Orderer._serve

    async def without_blocks(self: Orderer, *arguments: Any) -> int:
        address, credentials, options, handlers, *more = arguments
        if options is cluster.SERVER_OPTIONS:
            handlers = {
                path: handler
                for path, handler in handlers.items()
                if path != services.ORDERER_DELIVER
            }
        return await serve(self, address, credentials, options, handlers, *more)

    monkeypatch.setattr(Orderer, "_serve", without_blocks)
    network = await make_network(
        raft=RaftOptions(tick_interval_s=0.05, snapshot_interval_bytes=20_000),
        max_message_count=10,
    )
    behind = await network.follower()
    await network.stop(behind)
    leader = await network.leader()
    async with network.channel(leader) as channel:
        for _ in range(4):
            envelopes = [network.envelope(1000) for _ in range(50)]
            answer = await broadcast(channel, envelopes)
            assert answer.statuses == [common_pb2.SUCCESS] * 50
    node = network.orderers[leader]
    assert node is not None
    first = node.channels[CHANNEL].status()["raft_first"]
    assert isinstance(first, int)
    assert first > 5, "the log must have been cut, or nothing is fetched"
    await network.start(behind)
    assert await network.same_height() >= 21
