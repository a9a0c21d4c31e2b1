"""Consenters are added, removed and rotated while transactions flow; others follow."""

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from consortium.identity.certificates import certificate_pem, generate_key
from consortium.ledger.channel_config import RaftOptions
from consortium.orderer.admission import opened
from consortium.orderer.chain import Chain
from consortium.orderer.cluster import TlsIdentity
from consortium.orderer.follower import Follower
from consortium.orderer.node import (
    ChannelExistsError,
    ChannelInfo,
    ChannelMissingError,
    JoinError,
    NotReadyError,
    Orderer,
)
from consortium.orderer.pending import Submission
from consortium.wire import blocks, common_pb2, gridledger_pb2, services
from tests.consortium.orderer.conftest import NetworkFactory
from tests.consortium.orderer.consenters import (
    PATIENCE_S,
    chain_of,
    consenter_of,
    consenters_update,
    send,
    settled,
    spare_node,
    update,
)
from tests.consortium.orderer.network import (
    CHANNEL,
    Network,
    Utility,
    broadcast,
    deliver,
    seek,
    until,
)
from tests.consortium.orderer.test_ordering import assert_same_chain, ordered

SUCCESS = common_pb2.SUCCESS
pytestmark = pytest.mark.timeout(600)


async def add_node(network: Network, name: str = "spare", utility: int = 0) -> int:
    """Start another orderer that follows the channel; its number in the network."""
    settings = spare_node(network, name, utility)
    network.settings.append(settings)
    network.orderers.append(None)
    number = len(network.settings) - 1
    await network.start(number)
    return number


@contextlib.asynccontextmanager
async def flow(network: Network, number: int) -> AsyncIterator[Counter[bytes]]:
    """Transactions that are sent to an orderer meanwhile, one after another; all succeed."""
    sent: Counter[bytes] = Counter()
    stop = asyncio.Event()

    async def work() -> None:
        while not stop.is_set():
            async with network.channel(number) as channel:
                envelopes = [network.envelope() for _ in range(5)]
                answers = await broadcast(channel, envelopes)
                assert all(one == SUCCESS for one in answers.statuses), answers
                sent.update(envelopes[: len(answers.statuses)])

    task = asyncio.create_task(work())
    try:
        yield sent
    finally:
        stop.set()
        await task


def infos(orderer: Orderer | None) -> list[ChannelInfo]:
    assert orderer is not None
    return orderer.channel_infos()


async def test_add_remove_and_add_again_while_transactions_flow(network: Network) -> None:
    await network.leader()
    spare = await add_node(network)
    assert isinstance(network.running()[spare].channels[CHANNEL], Follower)
    (info,) = infos(network.orderers[spare])
    assert (info.name, info.consensus_relation, info.status) == (CHANNEL, "follower", "active")
    follower = await network.follower()
    async with flow(network, follower) as sent:
        await until(lambda: len(sent) > 20, PATIENCE_S)
        # It follows without being one.
        await until(lambda: network.running()[spare].channels[CHANNEL].height > 3, PATIENCE_S)
        newcomer = consenter_of(network.settings[spare])
        answers = await send(network, consenters_update(network, lambda old: [*old, newcomer]))
        assert answers.statuses == [SUCCESS], answers
        await settled(network, [1, 2, 3, 4])
        assert chain_of(network.orderers[spare]).raft_id == 4
        (info,) = infos(network.orderers[spare])
        assert (info.consensus_relation, info.status) == ("consenter", "active")
        # Take it out again: it notices, stops ordering, and follows.
        answers = await send(
            network, consenters_update(network, lambda old: [one for one in old if one != newcomer])
        )
        assert answers.statuses == [SUCCESS], answers
        await settled(network, [1, 2, 3])
        node = network.orderers[spare]
        assert node is not None
        await until(lambda: isinstance(node.channels.get(CHANNEL), Follower), PATIENCE_S)
        # The same certificate again is another consenter, with another Raft id.
        answers = await send(network, consenters_update(network, lambda old: [*old, newcomer]))
        assert answers.statuses == [SUCCESS], answers
        await settled(network, [1, 2, 3, 5])
    await network.same_height()
    assert_same_chain(network)
    for number in range(4):
        transactions = ordered(network, number)
        assert all(transactions[one] for one in sent)
    # All of it is there after a restart.
    await network.stop()
    await network.start()
    await network.leader()
    await settled(network, [1, 2, 3, 5])
    assert chain_of(network.orderers[spare]).raft_id == 5


async def test_removing_the_leader(network: Network) -> None:
    leader = await network.leader()
    gone = consenter_of(network.settings[leader])
    follower = await network.follower()
    async with flow(network, follower) as sent:
        await until(lambda: len(sent) > 10, PATIENCE_S)
        answers = await send(
            network,
            consenters_update(network, lambda old: [one for one in old if one != gone]),
            leader,
        )
        assert answers.statuses == [SUCCESS], answers
        await settled(network, [one for one in (1, 2, 3) if one != leader + 1])
        node = network.orderers[leader]
        assert node is not None
        await until(lambda: isinstance(node.channels.get(CHANNEL), Follower), PATIENCE_S)
        count = len(sent)
        await until(lambda: len(sent) > count + 10, PATIENCE_S)
    # It follows what the others order.
    await network.same_height()
    answers = await send(network, network.envelope(), leader)
    assert answers.statuses == [common_pb2.SERVICE_UNAVAILABLE]
    assert "no consenter of channel" in answers.infos[0]


async def test_two_become_one_and_three_again(make_network: NetworkFactory) -> None:
    network = await make_network(2)
    leader = await network.leader()
    gone = consenter_of(network.settings[leader])
    answers = await send(
        network, consenters_update(network, lambda old: [one for one in old if one != gone])
    )
    assert answers.statuses == [SUCCESS], answers
    stays = 1 - leader
    await settled(network, [stays + 1])
    node = network.orderers[leader]
    assert node is not None
    await until(lambda: isinstance(node.channels.get(CHANNEL), Follower), PATIENCE_S)
    # One is enough now; each newcomer votes only once it has caught up.
    answers = await send(network, network.envelope(), stays)
    assert answers.statuses == [SUCCESS], answers
    answers = await send(network, consenters_update(network, lambda old: [*old, gone]), stays)
    assert answers.statuses == [SUCCESS], answers
    await settled(network, sorted([stays + 1, 3]))


async def test_a_newcomer_after_compaction_gets_a_snapshot(make_network: NetworkFactory) -> None:
    network = await make_network(
        3, raft=RaftOptions(tick_interval_s=0.05, snapshot_interval_bytes=20_000)
    )
    async with network.channel(await network.leader()) as channel:
        for _ in range(20):
            await broadcast(channel, [network.envelope(2_000) for _ in range(3)])
    leader = chain_of(network.orderers[await network.leader()])
    assert int(str(leader.status()["raft_first"])) > 1
    spare = await add_node(network)
    newcomer = consenter_of(network.settings[spare])
    answers = await send(network, consenters_update(network, lambda old: [*old, newcomer]))
    assert answers.statuses == [SUCCESS], answers
    await settled(network, [1, 2, 3, 4])
    await network.same_height()
    assert_same_chain(network)


async def test_a_rotation_keeps_the_raft_id(network: Network, tmp_path: Path) -> None:
    """The certificate on disk is taken up when the configuration names it, without a restart."""
    number = await network.leader()
    utility = network.utilities[number]
    current = TlsIdentity(
        network.settings[number].tls_certificate_pem, network.settings[number].tls_key_pem
    )
    candidates = [current]
    await network.stop(number)
    network.settings[number] = replace(
        network.settings[number], tls_candidates=lambda: list(candidates)
    )
    await network.start(number)
    candidates.append(TlsIdentity(*utility.tls("rotated")))
    old = consenter_of(network.settings[number])
    new = consenter_of(network.settings[number], candidates[1].certificate_pem)
    answers = await send(
        network, consenters_update(network, lambda all_: [new if o == old else o for o in all_])
    )
    assert answers.statuses == [SUCCESS], answers
    await settled(network, [1, 2, 3])
    chain = chain_of(network.orderers[number])
    assert chain.raft_id == number + 1
    # It is heard again: what only it and one other know of is ordered.
    other = next(one for one in range(3) if one != number)
    await until(lambda: chain.leader != 0, PATIENCE_S)
    await network.stop(other)
    answers = await send(network, network.envelope(), number)
    assert answers.statuses == [SUCCESS], answers
    # The old certificate is not let in any more, and a renewed one on disk is served at once.
    async with grpc.aio.secure_channel(
        network.settings[number].client_address,
        grpc.ssl_channel_credentials(candidates[1].certificate_pem),
    ) as connection:
        await asyncio.wait_for(connection.channel_ready(), 60)


async def test_connections_that_close_amid_a_question_end_nothing_else(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the blocks that come name another certificate for who sends them.

    gRPC tells it as a cancellation, by which an orderer once took its own channel for stopped.
    """
    for _ in range(3):
        answers = await send(network, network.envelope())
        assert answers.statuses == [SUCCESS], answers
    height = await network.same_height()
    orderer = network.orderers[await network.follower()]
    assert orderer is not None
    cluster, chain = orderer._cluster, chain_of(orderer)
    assert cluster is not None
    taken: list[int] = []

    def close_all() -> None:
        cluster.use(cluster._tls)

    async def take(raw: bytes) -> None:
        taken.append(common_pb2.Block.FromString(raw).header.number)
        if len(taken) == 1:
            close_all()
            await asyncio.gather(*cluster._closing)

    monkeypatch.setattr(chain, "take_pulled", take)
    await cluster.pull(CHANNEL, 0, 2**63)
    assert taken == [0, *range(height)]
    others = [one for one in (1, 2, 3) if one != chain.raft_id]
    for _ in range(10):
        asking = [asyncio.create_task(cluster.recall(CHANNEL, one)) for one in others]
        await asyncio.sleep(0)
        close_all()
        await asyncio.wait(asking)
        assert not any(one.cancelled() or one.exception() for one in asking)


async def test_refused_changes(network: Network) -> None:
    await network.leader()
    a, b = spare_node(network, "a"), spare_node(network, "b", 1)
    stranger = spare_node(network, "c")
    foreign, _ = Utility("Drago").tls("orderer")
    cases = {
        "two at once": (
            lambda old: [*old, consenter_of(a), consenter_of(b)],
            "more than one consenter at a time",
        ),
        "two removed": (lambda old: old[:1], "more than one consenter at a time"),
        "none left": (lambda old: [], "empty consenter set"),
        "twice the same": (lambda old: [*old, replace(old[0], port=9)], "duplicate"),
        "foreign certificate": (
            lambda old: [*old, consenter_of(stranger, foreign)],
            "none of the TLS roots",
        ),
        "no certificate": (lambda old: [*old, consenter_of(stranger, b"none")], "cannot be read"),
    }
    for name, (change, words) in cases.items():
        answers = await send(network, consenters_update(network, change))  # type: ignore[arg-type]
        assert answers.statuses == [common_pb2.BAD_REQUEST], name
        assert words in answers.infos[0], (name, answers.infos)
    expired = network.utilities[0].authority
    late = certificate_pem(
        expired.issue("late", "orderer", generate_key().public_key(), valid_days=0)
    )
    answers = await send(
        network, consenters_update(network, lambda old: [*old, consenter_of(a, late)])
    )
    assert answers.statuses == [common_pb2.BAD_REQUEST]
    assert "has expired" in answers.infos[0]


async def test_no_second_change_while_one_is_under_way_and_none_that_loses_the_quorum(
    network: Network,
) -> None:
    await network.leader()
    # It is never started, so it stays a learner and costs no vote.
    absent, other = spare_node(network, "absent"), spare_node(network, "other")
    learner = consenter_of(absent)
    answers = await send(network, consenters_update(network, lambda old: [*old, learner]))
    assert answers.statuses == [SUCCESS], answers
    chain = chain_of(network.orderers[await network.leader()])
    await until(lambda: chain.status()["learners"] == [4], PATIENCE_S)
    assert [one.part for one in chain.members()] == ["voter", "voter", "voter", "learner"]
    answers = await send(
        network, consenters_update(network, lambda old: [*old, consenter_of(other)])
    )
    assert answers.statuses == [common_pb2.SERVICE_UNAVAILABLE]
    assert "consenter 4 is still being added or removed" in answers.infos[0]
    # That one itself may be taken out again.
    answers = await send(
        network, consenters_update(network, lambda old: [one for one in old if one != learner])
    )
    assert answers.statuses == [SUCCESS], answers
    await settled(network, [1, 2, 3])
    # With one of three dead, two would be left to agree, of whom one is dead.
    leader = await network.leader()
    dead = await network.follower()
    living = next(one for one in range(3) if one not in (leader, dead))
    await network.crash(dead)
    chain = chain_of(network.orderers[leader])
    await until(lambda: dead + 1 not in chain._active(), PATIENCE_S)
    gone = consenter_of(network.settings[living])

    def remove(force: bool) -> bytes:
        return consenters_update(
            network, lambda old: [one for one in old if one != gone], force=force
        )

    answers = await send(network, remove(False))
    assert answers.statuses == [common_pb2.BAD_REQUEST]
    assert "quorum loss" in answers.infos[0]
    answers = await send(network, remove(True))
    assert answers.statuses == [SUCCESS], answers
    # It was ordered, knowingly; when the dead one comes back they go on.
    await network.start(dead)
    await settled(network, sorted([leader + 1, dead + 1]))


async def test_joining_with_a_later_block(network: Network) -> None:
    async with network.channel(await network.leader()) as channel:
        for _ in range(3):
            await broadcast(channel, [network.envelope()])
    settings = spare_node(network)
    newcomer = consenter_of(settings)
    answers = await send(network, consenters_update(network, lambda old: [*old, newcomer]))
    assert answers.statuses == [SUCCESS], answers
    await network.same_height()
    config_block = network.blocks(0)[-1]
    assert config_block.header.number == 4
    orderer = Orderer(settings)
    await orderer.start()
    try:
        # A block that is not the chain's is found out when it is reached, and nothing is served.
        info = await orderer.join_channel(config_block)
        assert (info.status, info.consensus_relation) == ("onboarding", "consenter")
        with pytest.raises(ChannelExistsError, match="already exists"):
            await orderer.join_channel(config_block)
        await until(lambda: isinstance(orderer.channels.get(CHANNEL), Chain), PATIENCE_S)
        await until(lambda: chain_of(orderer).status()["voters"] == [1, 2, 3, 4], PATIENCE_S)
        assert [common_pb2.Block.FromString(chain_of(orderer).block(n)) for n in range(5)][:4] != []
        assert not (settings.data_dir / "join" / CHANNEL).exists()
        await orderer.remove_channel(CHANNEL)
        assert orderer.channel_infos() == []
        with pytest.raises(ChannelMissingError):
            await orderer.remove_channel(CHANNEL)
        assert not (settings.data_dir / "blocks" / CHANNEL).exists()
    finally:
        await orderer.stop()


async def test_a_false_join_block_is_never_reached(network: Network) -> None:
    answers = await send(
        network,
        consenters_update(network, lambda old: [*old, consenter_of(spare_node(network, "absent"))]),
    )
    assert answers.statuses == [SUCCESS], answers
    await network.same_height()
    false = network.blocks(0)[-1]
    false.header.previous_hash = b"\0" * 32
    settings = spare_node(network)
    orderer = Orderer(settings)
    await orderer.start()
    try:
        await orderer.join_channel(false)
        await asyncio.sleep(1.5)
        (info,) = orderer.channel_infos()
        assert info.status in ("onboarding", "failed")
        assert info.height <= 1
        chain = orderer.channels.get(CHANNEL)
        assert chain is None or not chain.available
        # A broken one isn't taken at all.
        await orderer.remove_channel(CHANNEL)
        false.data.data[0] = network.blocks(0)[0].data.data[0]
        with pytest.raises(JoinError, match="data hash"):
            await orderer.join_channel(false)
    finally:
        await orderer.stop()


async def test_a_follower_hands_out_blocks(network: Network) -> None:
    spare = await add_node(network)
    await send(network, network.envelope())
    node = network.running()[spare]
    await until(lambda: node.channels[CHANNEL].height == 2, PATIENCE_S)
    with pytest.raises(NotReadyError, match="channel is not ready, he is a follower"):
        await node.update_channel(CHANNEL, common_pb2.Envelope())
    async with network.channel(spare) as channel:
        found, status = await deliver(channel, seek(network.client, "oldest", "newest"))
    assert status == SUCCESS
    assert [one.header.number for one in found] == [0, 1]
    assert found[1].header.previous_hash == blocks.header_hash(found[0].header)


# Lost and restored disks


async def failed(orderer: Orderer | None) -> str:
    """Why an orderer only follows, once it does."""
    assert orderer is not None

    def refused() -> bool:
        info = orderer.channel_info(CHANNEL)
        return info.status == "failed" and isinstance(orderer.channels.get(CHANNEL), Follower)

    await until(refused, PATIENCE_S)
    return orderer.channel_info(CHANNEL).problem


@pytest.mark.parametrize("loss", ["wiped", "log lost", "restored", "restored within a start"])
async def test_a_disk_that_lost_promises_is_noticed(network: Network, loss: str) -> None:
    leader = await network.leader()
    number = await network.follower()
    folder = network.settings[number].data_dir
    copy = network.folder / "copy"
    await send(network, network.envelope())
    if loss == "restored within a start":
        await network.same_height()
        await network.crash(number)
        shutil.copytree(folder, copy)
        await network.start(number)
        # The copy's next start has the same number, but is another process.
    elif loss == "restored":
        await network.stop(number)
        shutil.copytree(folder, copy)
        await network.start(number)
    for _ in range(5):
        await send(network, network.envelope())
    await network.same_height()
    await network.crash(number)
    if loss == "log lost":
        shutil.rmtree(folder / "raft")
    else:
        shutil.rmtree(folder)
        if loss != "wiped":
            shutil.copytree(copy, folder)
    await network.start(number)
    problem = await failed(network.orderers[number])
    assert "remove this consenter" in problem
    # It follows, and votes no more: without it two of three are needed, and one is down.
    node = network.running()[number]
    height = chain_of(network.orderers[leader]).height
    await until(lambda: node.channels[CHANNEL].height >= height, PATIENCE_S)
    # Still so after a restart.
    await network.stop(number)
    await network.start(number)
    assert "remove this consenter" in await failed(network.orderers[number])
    # Removed and added again it takes part, under another Raft id.
    again = consenter_of(network.settings[number])
    answers = await send(
        network,
        consenters_update(network, lambda old: [one for one in old if one != again]),
    )
    assert answers.statuses == [SUCCESS], answers
    await settled(network, [one for one in (1, 2, 3) if one != number + 1])
    answers = await send(network, consenters_update(network, lambda old: [*old, again]))
    assert answers.statuses == [SUCCESS], answers
    await settled(network, sorted([4, *(one for one in (1, 2, 3) if one != number + 1)]))
    assert chain_of(network.orderers[number]).raft_id == 4
    assert infos(network.orderers[number])[0].status == "active"


async def test_a_moved_disk_takes_part_when_everybody_confirms_it(network: Network) -> None:
    number = await network.follower()
    await send(network, network.envelope())
    await network.same_height()
    await network.stop(number)
    folder = network.settings[number].data_dir
    shutil.copytree(folder, network.folder / "moved")
    shutil.rmtree(folder)
    shutil.copytree(network.folder / "moved", folder)
    await network.start(number)
    chain = chain_of(network.orderers[number])
    await until(lambda: chain.leader != 0, PATIENCE_S)
    others = [one for one in range(3) if one != number]
    await until(lambda: chain.record.place == chain._place, PATIENCE_S)
    await network.stop(others[0])
    assert (await send(network, network.envelope(), others[1])).statuses == [SUCCESS]


# Refusals


async def test_a_removed_consenter_is_refused_at_the_cluster_listener(network: Network) -> None:
    number = await network.follower()
    settings = network.settings[number]
    gone = consenter_of(settings)
    answers = await send(
        network, consenters_update(network, lambda old: [one for one in old if one != gone])
    )
    assert answers.statuses == [SUCCESS], answers
    stay = [one for one in range(3) if one != number]
    await settled(network, [one + 1 for one in stay])
    await network.same_height()
    async with grpc.aio.secure_channel(
        network.settings[stay[0]].cluster_address,
        grpc.ssl_channel_credentials(
            network.roots, settings.tls_key_pem, settings.tls_certificate_pem
        ),
    ) as connection:
        code = grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(PATIENCE_S):
            # Until its own connection has ended it is told to go on over that one.
            while code is grpc.StatusCode.UNAVAILABLE:
                call = connection.stream_stream(services.CLUSTER_STEP)(timeout=60)
                await call.write(network.raft_message())
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call.read()
                code = refused.value.code()
        assert code is grpc.StatusCode.PERMISSION_DENIED
        # Nor does anybody count it as a member.
        claim = gridledger_pb2.RecallClaim(channel=CHANNEL, raft_id=number + 1)
        raw = await connection.unary_unary(services.CONSENTERS_RECALL)(
            gridledger_pb2.RecallRequest(claims=[claim]).SerializeToString(), timeout=10
        )
        (memory,) = gridledger_pb2.RecallResponse.FromString(raw).memories
        assert not memory.member
        assert not memory.incarnation


async def test_an_organization_removed_while_its_envelope_is_queued(network: Network) -> None:
    leader = await network.leader()
    chain = chain_of(network.orderers[leader])
    raw = network.envelope(signer=network.utilities[2].signer("home", "client"))
    admitted = chain.admit(opened(raw))

    def leave(group: common_pb2.ConfigGroup) -> None:
        del group.groups["Application"].groups[network.utilities[2].msp_id]

    answers = await send(network, update(network, leave))
    assert answers.statuses == [SUCCESS], answers
    submission = Submission(raw, lambda: None)
    chain.submit(submission, admitted)
    assert submission.status == common_pb2.FORBIDDEN
    assert "access denied" in submission.info
    await network.same_height()
    assert raw not in ordered(network, leader)
