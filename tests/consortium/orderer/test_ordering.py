"""Three orderers, real gRPC and TLS: what is acknowledged is in everybody's blocks."""

import asyncio
from collections import Counter

import grpc
import pytest

from consortium.identity.policies import SignedData, verified_signers
from consortium.ledger.channel_config import RaftOptions
from consortium.wire import blocks, common_pb2, etcdraft_pb2, gridledger_pb2, services
from tests.consortium.orderer.conftest import NetworkFactory
from tests.consortium.orderer.network import CHANNEL, Network, broadcast, until

SUCCESS = common_pb2.SUCCESS


def ordered(network: Network, number: int) -> Counter[bytes]:
    """Every envelope in an orderer's blocks, and how often."""
    return Counter(one for block in network.blocks(number)[1:] for one in block.data.data)


def assert_same_chain(network: Network) -> None:
    """Equal but for SIGNATURES, linked by their hashes, data as the header says."""
    chains = [
        network.blocks(number)
        for number, orderer in enumerate(network.orderers)
        if orderer is not None
    ]
    for copies in zip(*chains, strict=True):
        for block in copies:
            block.metadata.metadata[blocks.SIGNATURES] = b""
        assert len({copy.SerializeToString(deterministic=True) for copy in copies}) == 1
    for previous, block in zip(chains[0], chains[0][1:], strict=False):
        assert block.header.number == previous.header.number + 1
        assert block.header.previous_hash == blocks.header_hash(previous.header)
        assert block.header.data_hash == blocks.data_hash(block.data.data)


async def test_a_thousand_envelopes_by_leader_and_follower(network: Network) -> None:
    leader, follower = await network.leader(), await network.follower()
    envelopes = [network.envelope() for _ in range(1000)]
    async with network.channel(leader) as one, network.channel(follower) as other:
        answers = await asyncio.gather(
            broadcast(one, envelopes[:500]), broadcast(other, envelopes[500:])
        )
    assert [answer.statuses for answer in answers] == [[SUCCESS] * 500] * 2
    await network.same_height()
    assert_same_chain(network)
    for number in range(3):
        assert ordered(network, number) == Counter(envelopes)


async def test_blocks_are_signed_as_fabric_signs_them(network: Network) -> None:
    async with network.channel(await network.leader()) as channel:
        await broadcast(channel, [network.envelope()])
    await network.same_height()
    for number, orderer in enumerate(network.running()):
        block = network.blocks(number)[1]
        assert len(block.metadata.metadata) == 5
        assert [len(one) > 0 for one in block.metadata.metadata] == [True] + [False] * 4
        slot = common_pb2.Metadata.FromString(block.metadata.metadata[blocks.SIGNATURES])
        value = common_pb2.OrdererBlockMetadata.FromString(slot.value)
        assert value.last_config.index == 0
        raft = etcdraft_pb2.BlockMetadata.FromString(
            common_pb2.Metadata.FromString(value.consenter_metadata).value
        )
        # Three entries add the consenters, one is the leader's first of its term.
        assert list(raft.consenter_ids) == [1, 2, 3]
        assert raft.next_consenter_id == 4
        assert raft.raft_index >= 5
        (signature,) = slot.signatures
        creator = common_pb2.SignatureHeader.FromString(signature.signature_header).creator
        assert creator == network.settings[number].signer.serialized
        covered = slot.value + signature.signature_header + blocks.header_bytes(block.header)
        config = orderer.channels[CHANNEL].config
        signers = verified_signers(config.msps, [SignedData(covered, creator, signature.signature)])
        assert config.policy("/Channel/Orderer/BlockValidation").satisfied_by(signers)


@pytest.mark.parametrize("killed", [True, False])
async def test_nothing_acknowledged_is_lost_when_the_leader_goes(
    network: Network, killed: bool
) -> None:
    leader, follower = await network.leader(), await network.follower()
    envelopes = [network.envelope() for _ in range(1500)]
    async with network.channel(leader) as one, network.channel(follower) as other:
        at_leader = asyncio.create_task(broadcast(one, envelopes[:500]))
        at_follower = asyncio.create_task(broadcast(other, envelopes[500:]))
        chain = network.running()[follower].channels[CHANNEL]
        await until(lambda: chain.height > 1)
        await (network.crash if killed else network.stop)(leader)
        answered = {"leader": await at_leader, "follower": await at_follower}
        # The follower's clients notice nothing: what the old leader lost goes to the new one.
        assert answered["follower"].statuses == [SUCCESS] * 1000
        again = await broadcast(other, [network.envelope() for _ in range(50)])
        assert again.statuses == [SUCCESS] * 50
    await network.same_height()
    assert_same_chain(network)
    found = ordered(network, follower)
    acknowledged = answered["leader"].statuses.count(SUCCESS)
    assert all(found[one] for one in envelopes[:acknowledged])
    assert all(found[one] for one in envelopes[500:])
    # The one that was stopped learns what it missed.
    await network.start(leader)
    await network.same_height()
    assert_same_chain(network)


async def test_after_a_crash_of_all_what_was_acknowledged_is_there(network: Network) -> None:
    envelopes = [network.envelope() for _ in range(300)]
    for part in (envelopes[:100], envelopes[100:200], envelopes[200:]):
        async with network.channel(await network.follower()) as channel:
            assert (await broadcast(channel, part)).statuses == [SUCCESS] * 100
        await network.crash()
        # The blocks were on no disk by themselves: they come back from the Raft logs.
        await network.start()
    await network.leader()
    chains = [one.channels[CHANNEL] for one in network.running()]
    await until(lambda: all(sum(ordered(network, n).values()) == 300 for n in range(3)))
    assert len({chain.height for chain in chains}) == 1
    assert_same_chain(network)
    for number in range(3):
        assert ordered(network, number) == Counter(envelopes)


async def test_a_restart_from_disk_goes_on_where_it_was(network: Network) -> None:
    envelopes = [network.envelope() for _ in range(60)]
    async with network.channel(await network.leader()) as channel:
        assert (await broadcast(channel, envelopes[:40])).statuses == [SUCCESS] * 40
    await network.same_height()
    before = [[one.SerializeToString() for one in network.blocks(n)] for n in range(3)]
    await network.stop()
    await network.start()
    async with network.channel(await network.leader()) as channel:
        assert (await broadcast(channel, envelopes[40:])).statuses == [SUCCESS] * 20
    await network.same_height()
    assert_same_chain(network)
    for number in range(3):
        after = [one.SerializeToString() for one in network.blocks(number)]
        assert after[: len(before[number])] == before[number]
        assert ordered(network, number) == Counter(envelopes)


async def test_without_a_majority_nothing_is_acknowledged(make_network: NetworkFactory) -> None:
    network = await make_network(limits={"submit_timeout_s": 1.0, "leaderless_grace_s": 30.0})
    alone = await network.follower()
    await network.stop(*(number for number in range(3) if number != alone))
    async with network.channel(alone) as channel:
        answers = await broadcast(channel, [network.envelope()])
    assert answers.statuses == [common_pb2.SERVICE_UNAVAILABLE]
    assert "not ordered within 1 s" in answers.infos[0]
    assert len(network.blocks(alone)) == 1


async def test_one_orderer_alone_orders(make_network: NetworkFactory) -> None:
    network = await make_network(1)
    envelopes = [network.envelope() for _ in range(5)]
    async with network.channel(await network.leader()) as channel:
        assert (await broadcast(channel, envelopes)).statuses == [SUCCESS] * 5
    assert ordered(network, 0) == Counter(envelopes)


async def test_a_follower_behind_the_log_fetches_blocks(make_network: NetworkFactory) -> None:
    network = await make_network(
        raft=RaftOptions(tick_interval_s=0.05, snapshot_interval_bytes=20_000),
        max_message_count=10,
    )
    behind = await network.follower()
    await network.stop(behind)
    leader = await network.leader()
    async with network.channel(leader) as channel:
        for _ in range(6):
            envelopes = [network.envelope(1000) for _ in range(50)]
            assert (await broadcast(channel, envelopes)).statuses == [SUCCESS] * 50
    node = network.orderers[leader]
    assert node is not None
    first = node.channels[CHANNEL].status()["raft_first"]
    assert isinstance(first, int)
    assert first > 5
    await network.start(behind)
    assert await network.same_height() >= 31
    assert_same_chain(network)
    # It takes part again, and remembers it all.
    await network.stop(leader)
    async with network.channel(behind) as channel:
        assert (await broadcast(channel, [network.envelope()])).statuses == [SUCCESS]
    await network.stop(behind)
    await network.start(behind, leader)
    await network.same_height()
    assert_same_chain(network)


async def test_a_full_queue_is_refused_with_a_hint(make_network: NetworkFactory) -> None:
    # No block is cut before more than twenty have come, however slow the machine is.
    network = await make_network(
        limits={"pending_envelopes": 20}, batch_timeout="3s", max_message_count=100
    )
    async with network.channel(await network.leader()) as channel:
        answers = await broadcast(channel, [network.envelope() for _ in range(500)])
    assert answers.statuses[-1] == common_pb2.SERVICE_UNAVAILABLE
    assert set(answers.statuses[:-1]) <= {SUCCESS}
    assert "the limit is 20 envelopes" in answers.infos[-1]


async def test_a_stranger_may_not_speak_as_a_consenter(network: Network) -> None:
    number = await network.leader()
    # A certificate of a member's authority, but none of the consenters'.
    certificate, key = network.utilities[0].tls("impostor")
    credentials = grpc.ssl_channel_credentials(network.roots, key, certificate)
    address = network.settings[number].cluster_address
    async with grpc.aio.secure_channel(address, credentials) as channel:
        call = channel.stream_stream(services.CLUSTER_STEP)()
        await call.write(network.raft_message())
        with pytest.raises(grpc.aio.AioRpcError, match="not a consenter's") as refused:
            await call.read()
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_nothing_is_taken_over_a_connection_from_before_a_consenter_asked(
    network: Network,
) -> None:
    """An acknowledgement that was under way when its sender's disk was replaced by a copy."""
    leader, follower = await network.leader(), await network.follower()
    settings = network.settings[follower]
    credentials = grpc.ssl_channel_credentials(
        network.roots, settings.tls_key_pem, settings.tls_certificate_pem
    )
    address = network.settings[leader].cluster_address
    own = (("grpc.use_local_subchannel_pool", 1),)
    claim = gridledger_pb2.RecallClaim(channel=CHANNEL, raft_id=follower + 1)
    async with (
        grpc.aio.secure_channel(address, credentials, options=own) as before,
        grpc.aio.secure_channel(address, credentials, options=own) as after,
    ):
        call: grpc.aio.StreamStreamCall[bytes, bytes] = before.stream_stream(services.CLUSTER_STEP)(
            timeout=10
        )
        await call.wait_for_connection()
        await after.unary_unary(services.CONSENTERS_RECALL)(
            gridledger_pb2.RecallRequest(claims=[claim]).SerializeToString(), timeout=10
        )
        await call.write(network.raft_message())
        with pytest.raises(grpc.aio.AioRpcError, match="asked over another connection") as refused:
            await call.read()
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    # The consenter itself asks again, over its own, and goes on.
    async with network.channel(leader) as channel:
        assert (await broadcast(channel, [network.envelope()])).statuses == [SUCCESS]
    await network.same_height()


async def test_the_cluster_listener_asks_for_a_certificate(network: Network) -> None:
    address = network.settings[0].cluster_address
    credentials = grpc.ssl_channel_credentials(network.roots)
    async with grpc.aio.secure_channel(address, credentials) as channel:
        call = channel.stream_stream(services.CLUSTER_STEP)(timeout=60)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
