"""What an orderer of ours has to mind beside Fabric's; tests/fabric/ has Fabric's own programs."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest

from consortium.ledger.channel_config import RaftOptions
from consortium.orderer import cluster
from consortium.orderer.admission import opened
from consortium.orderer.chain import Chain
from consortium.orderer.cluster import TlsIdentity
from consortium.orderer.follower import Follower
from consortium.orderer.node import Orderer
from consortium.wire import common_pb2, services
from consortium.wire import raftpb_pb2 as raftpb
from tests.consortium.orderer.conftest import NetworkFactory
from tests.consortium.orderer.consenters import (
    PATIENCE_S,
    chain_of,
    consenter_of,
    consenters_update,
    send,
    settled,
)
from tests.consortium.orderer.network import CHANNEL, Network, broadcast, until
from tests.consortium.orderer.test_consenters import add_node, flow
from tests.consortium.orderer.test_ordering import assert_same_chain, ordered

SUCCESS = common_pb2.SUCCESS

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


def log_of(chain: Chain) -> list[raftpb.Entry]:
    """All entries of a consenter's Raft log that is still whole."""
    first, last = chain._log.first_index(), chain._log.last_index()
    found: list[raftpb.Entry] = []
    while first + len(found) <= last:
        found += chain._log.entries(first + len(found), last + 1, 2**40)
    return found


def is_config(entry: raftpb.Entry) -> bool:
    """Whether an entry is a block with a configuration."""
    if entry.Type != raftpb.EntryNormal or not entry.Data:
        return False
    (first, *_) = common_pb2.Block.FromString(entry.Data).data.data
    return opened(first).channel_header.type == common_pb2.CONFIG


async def test_only_fabrics_changes_are_made(make_network: NetworkFactory) -> None:
    """Consenters added, removed and rotated under load: one voter a time, and nothing between.

    Fabric's orderers stop for ever at a learner or a joint change in the Raft log, and do not
    expect a block between the configuration and the group's change.
    """
    network = await make_network(beside_fabric=True)
    spare = await add_node(network)
    newcomer = consenter_of(network.settings[spare])
    # One that shows another certificate as soon as the channel names it.
    number = await network.follower()
    settings = network.settings[number]
    current = TlsIdentity(settings.tls_certificate_pem, settings.tls_key_pem)
    utility = network.utilities[number % len(network.utilities)]
    candidates = [current, TlsIdentity(*utility.tls("rotated"))]
    await network.stop(number)
    network.settings[number] = replace(settings, tls_candidates=lambda: list(candidates))
    await network.start(number)
    old = consenter_of(settings)
    rotated = consenter_of(settings, candidates[1].certificate_pem)
    busy = next(one for one in range(3) if one != number)
    async with flow(network, busy) as sent:
        await until(lambda: len(sent) > 20, PATIENCE_S)
        answers = await send(network, consenters_update(network, lambda all_: [*all_, newcomer]))
        assert answers.statuses == [SUCCESS], answers
        joined = network.running()[spare]
        await until(lambda: isinstance(joined.channels.get(CHANNEL), Chain), PATIENCE_S)
        await settled(network, [1, 2, 3, 4])
        answers = await send(
            network,
            consenters_update(
                network, lambda all_: [rotated if one == old else one for one in all_]
            ),
        )
        assert answers.statuses == [SUCCESS], answers
        await settled(network, [1, 2, 3, 4])
        answers = await send(
            network,
            consenters_update(network, lambda all_: [one for one in all_ if one != newcomer]),
        )
        assert answers.statuses == [SUCCESS], answers
        await until(lambda: isinstance(joined.channels.get(CHANNEL), Follower), PATIENCE_S)
        await settled(network, [1, 2, 3])
        answers = await send(network, consenters_update(network, lambda all_: [*all_, newcomer]))
        assert answers.statuses == [SUCCESS], answers
        await until(lambda: isinstance(joined.channels.get(CHANNEL), Chain), PATIENCE_S)
        await settled(network, [1, 2, 3, 5])
    assert chain_of(network.orderers[spare]).raft_id == 5
    await network.same_height()
    assert_same_chain(network)
    for one in range(4):
        transactions = ordered(network, one)
        assert all(transactions[each] for each in sent)
    entries = log_of(chain_of(network.orderers[busy]))
    changes = [
        raftpb.ConfChange.FromString(one.Data)
        for one in entries
        if one.Type == raftpb.EntryConfChange
    ]
    assert all(one.Type in (raftpb.EntryNormal, raftpb.EntryConfChange) for one in entries)
    kinds = [(one.type, one.node_id) for one in changes]
    assert kinds[-3:] == [
        (raftpb.ConfChangeAddNode, 4),
        (raftpb.ConfChangeRemoveNode, 4),
        (raftpb.ConfChangeAddNode, 5),
    ]
    assert {kind for kind, _ in kinds} <= {raftpb.ConfChangeAddNode, raftpb.ConfChangeRemoveNode}
    told = [one for one in entries if one.Type == raftpb.EntryConfChange or one.Data]
    after = {id(first): second for first, second in itertools.pairwise(told)}
    configs = [one for one in told if is_config(one)]
    followed = [after[id(one)].Type for one in configs]
    # All but the rotation, which changes nothing in the group.
    assert followed.count(raftpb.EntryConfChange) == 3
    assert len(configs) == 4


async def test_the_leader_says_who_is_active(make_network: NetworkFactory) -> None:
    """Fabric's orderers take no change of the consenters unless a leader has told them."""
    network = await make_network(beside_fabric=True)
    leader = await network.leader()
    followers = [one for one in range(3) if one != leader]
    chains = [chain_of(network.orderers[one]) for one in followers]
    await until(lambda: all(one._active_at_leader == {1, 2, 3} for one in chains), PATIENCE_S)
    # Ours judge by it too: a leader of Fabric's leaves that to whoever takes the update.
    gone = consenter_of(network.settings[followers[1]])
    await network.stop(followers[1])
    await until(lambda: len(chains[0]._active_at_leader) == 2, PATIENCE_S)
    alive = consenter_of(network.settings[leader])
    asked = consenters_update(network, lambda all_: [one for one in all_ if one != alive])
    answers = await send(network, asked, followers[0])
    assert answers.statuses == [common_pb2.BAD_REQUEST]
    assert "configuration will result in quorum loss" in answers.infos[0]
    asked = consenters_update(network, lambda all_: [one for one in all_ if one != gone])
    answers = await send(network, asked, followers[0])
    assert answers.statuses == [SUCCESS], answers


async def test_a_leaders_own_removal_sent_on_by_fabrics_orderer(
    make_network: NetworkFactory,
) -> None:
    """It hands over first, and then sends on what it has put off: its sender has forgotten it."""
    network: Network = await make_network(beside_fabric=True)
    leader = await network.leader()
    chain = chain_of(network.orderers[leader])
    await until(lambda: len(chain._active()) == 3, PATIENCE_S)
    gone = consenter_of(network.settings[leader])
    asked = consenters_update(network, lambda all_: [one for one in all_ if one != gone])
    admitted = await asyncio.to_thread(chain.admit, opened(asked))
    refused: list[str] = []
    chain.order(admitted, lambda *said: refused.append(str(said)), sent_again=False)
    while chain.is_leader:
        # As its ticks do; one may come when it is deposed and has not noticed.
        chain._retry_deferred()
        await asyncio.sleep(0)
    await settled(network, [one for one in (1, 2, 3) if one != leader + 1])
    node = network.orderers[leader]
    assert node is not None
    await until(lambda: isinstance(node.channels.get(CHANNEL), Follower), PATIENCE_S)
    assert not refused


async def test_a_key_goes_over_to_fabrics_orderer(
    make_network: NetworkFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of Fabric's in the place of ours, with its key: it never asks what is remembered."""
    network = await make_network(beside_fabric=True)
    number = await network.follower()
    place = consenter_of(network.settings[number])
    answers = await send(
        network, consenters_update(network, lambda all_: [one for one in all_ if one != place])
    )
    assert answers.statuses == [SUCCESS], answers
    stays = [one for one in (1, 2, 3) if one != number + 1]
    await settled(network, stays)
    await network.stop(number)
    network.settings[number] = replace(
        network.settings[number], data_dir=network.folder / "another kind"
    )

    async def does_not_ask(_self: object, _claims: object) -> None:
        """As Fabric's, which does not know the question either."""

    monkeypatch.setattr(cluster._Remote, "recall", does_not_ask)
    answers = await send(network, consenters_update(network, lambda all_: [*all_, place]))
    assert answers.statuses == [SUCCESS], answers
    joined = Orderer(network.settings[number])
    await joined.start()
    await joined.join_channel(network.blocks(stays[0] - 1)[-1])
    network.orderers[number] = joined
    await until(lambda: isinstance(joined.channels.get(CHANNEL), Chain), PATIENCE_S)
    await settled(network, [*stays, 4])
    # It is heard: with one of the others less, it is needed.
    await network.stop(next(one for one in range(3) if one != number))
    answers = await send(network, network.envelope())
    assert answers.statuses == [SUCCESS], answers
