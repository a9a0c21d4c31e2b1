"""More than can be ordered, slow readers, and neighbours who send without measure."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from consortium.ledger.channel_config import ChannelConfig, genesis_block
from consortium.orderer.admission import Admitted
from consortium.orderer.leading import LeaderQueue, Queued
from consortium.orderer.pending import Limits
from consortium.orderer.room import Room
from consortium.orderer.services import ServiceLimits
from consortium.wire import common_pb2, orderer_pb2, services
from consortium.wire.envelopes import channel_header, signed_envelope, transaction_id
from tests.consortium.orderer.conftest import NetworkFactory
from tests.consortium.orderer.network import Network, broadcast, seek, until

SUCCESS = common_pb2.SUCCESS


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def test_half_of_a_queue_is_for_whoever_comes_the_other_half_is_shared() -> None:
    room = Room("here", 60, 10**9)
    taken = dict.fromkeys("ABC", 0)

    def fill(utility: str) -> str:
        while (problem := room.refusal(utility, 3)) is None:
            room.take(utility, 100)
            taken[utility] += 1
        return problem

    assert "30 envelopes (3000 bytes) of A wait here, its share" in fill("A")
    fill("B")
    fill("C")
    assert taken == {"A": 30, "B": 10, "C": 10}
    for _ in range(25):
        room.give_back("A", 100)
    fill("C")
    assert (room.envelopes, room.bytes) == (30, 3000)
    assert room.refusal("A", 3) is None, "it holds less than its share now"


def test_bytes_are_shared_as_envelopes_are() -> None:
    room = Room("here", 10**6, 6_000)
    for _ in range(3):
        room.take("A", 1_000)
    assert "its share" in str(room.refusal("A", 3))
    assert room.refusal("B", 3) is None
    for _ in range(3):
        room.take("B", 1_000)
    assert "6 envelopes (6000 bytes) wait here" in str(room.refusal("C", 3))


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[tuple[LeaderQueue, list[bytes]]]:
    """A leader's queue of blocks of four, of which two may be in flight, and what it proposed."""
    network = Network(tmp_path, 1, max_message_count=4)
    config = ChannelConfig.from_block(genesis_block(network.spec))
    made = LeaderQueue(config, 1, b"", Limits(), lambda: None)
    yield made, []
    made.close()


async def test_a_block_takes_of_each_utility_in_turn(
    queue: tuple[LeaderQueue, list[bytes]],
) -> None:
    leading, proposed = queue
    for number in range(40):
        leading.add(queued(f"a{number}", "A"))
    leading.add(queued("b0", "B"))
    leading.add(queued("b1", "B"))
    leading.add(queued("c0", "C"))
    leading.propose(proposed.append)
    blocks = [envelopes(one) for one in proposed]
    assert blocks[0] == ["a0", "a1", "a2", "a3"], "complete before the others came"
    assert blocks[1:3] == [["a4", "b0", "c0", "a5"], ["b1", "a6", "a7", "a8"]]
    assert leading.envelopes == 43 - 4 * len(blocks)


def queued(name: str, utility: str) -> Queued:
    return Queued(
        Admitted(name.encode(), len(name), 0, utility=utility), lambda _digest, _status, _info: None
    )


def envelopes(block: bytes) -> list[str]:
    return [one.decode() for one in common_pb2.Block.FromString(block).data.data]


async def test_a_flood_is_refused_and_takes_no_memory(make_network: NetworkFactory) -> None:
    network = await make_network(limits={"pending_envelopes": 40})
    number = await network.leader()
    flood = [network.envelope(10_000) for _ in range(1_000)]
    async with network.channel(number) as channel:
        await broadcast(channel, flood[:300])
        before = resident_mb()
        answers = await asyncio.gather(*(broadcast(channel, flood) for _ in range(4)))
    assert all(one.statuses[-1] == common_pb2.SERVICE_UNAVAILABLE for one in answers)
    assert any("send more slowly and try again in a second" in one.infos[-1] for one in answers)
    # Client, three orderers and their caches of blocks (16 MB each) share this process.
    assert resident_mb() - before < 150


async def test_a_stream_of_large_envelopes_is_not_read_past_its_window(
    make_network: NetworkFactory,
) -> None:
    network = await make_network(limits={"submit_timeout_s": 60.0})
    number = await network.leader()
    others = [other for other in range(3) if other != number]
    await network.stop(*others)  # nothing is ordered any more
    orderer = network.orderers[number]
    assert orderer is not None
    limit = ServiceLimits().stream_window_bytes
    raw = network.envelope(1024 * 1024)
    sent = 0
    async with network.channel(number) as channel:
        call = channel.stream_stream(services.BROADCAST)()
        with contextlib.suppress(TimeoutError, grpc.RpcError):
            async with asyncio.timeout(5):
                for _ in range(400):
                    await call.write(raw)
                    sent += len(raw)
        call.cancel()
    # What it took, and what lies in the buffers between, which gRPC makes larger as it learns.
    assert sent < limit + 64 * 1024 * 1024


async def test_one_utility_floods_and_another_is_served(make_network: NetworkFactory) -> None:
    network = await make_network(limits={"pending_envelopes": 60}, max_message_count=20)
    number = await network.leader()
    boreal = network.utilities[1].signer("home", "client")
    stop = False
    refused = 0

    async def flood(channel: grpc.aio.Channel) -> None:
        nonlocal refused
        envelopes = [network.envelope(500) for _ in range(600)]
        while not stop:
            answers = await broadcast(channel, envelopes)
            refused += answers.statuses[-1] == common_pb2.SERVICE_UNAVAILABLE

    async with network.channel(number) as channel, network.channel(number) as other:
        flooding = [asyncio.create_task(flood(channel)) for _ in range(3)]
        try:
            await asyncio.sleep(1)
            for _ in range(15):
                async with asyncio.timeout(60):
                    answers = await broadcast(other, [network.envelope(500, boreal)])
                assert answers.statuses == [SUCCESS], answers.infos
            async with asyncio.timeout(90):
                while not refused:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        finally:
            stop = True
            await asyncio.gather(*flooding)


async def test_a_busy_channel_does_not_hold_up_another(tmp_path: Path) -> None:
    network = Network(tmp_path, 1)
    await network.start()
    orderer = network.orderers[0]
    assert orderer is not None
    await orderer.join(genesis_block(replace(network.spec, channel_id="quiet")))
    await until(lambda: orderer.channels["quiet"].is_leader)
    try:
        async with network.channel(0) as busy, network.channel(0) as other:
            envelopes = [network.envelope(500) for _ in range(3000)]

            async def flood() -> None:
                while True:
                    await broadcast(busy, envelopes)

            flooding = asyncio.create_task(flood())
            for _ in range(10):
                async with asyncio.timeout(60):
                    answers = await broadcast(other, [_envelope_of(network, "quiet")])
                assert answers.statuses == [SUCCESS]
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
    finally:
        await network.stop()


def _envelope_of(network: Network, channel_id: str) -> bytes:
    nonce = os.urandom(24)
    header = channel_header(
        common_pb2.ENDORSER_TRANSACTION,
        channel_id,
        transaction_id(nonce, network.client.serialized),
    )
    return signed_envelope(network.client, header, os.urandom(200), nonce=nonce).SerializeToString()


async def test_a_reader_that_does_not_read_takes_no_memory(network: Network) -> None:
    number = await network.leader()
    # This process is the readers' as well: their own gRPC is not to take in what they do not read.
    idle = grpc.aio.secure_channel(
        network.settings[number].client_address,
        grpc.ssl_channel_credentials(network.roots),
        options=[*services.NODE_CHANNEL_OPTIONS, ("grpc.http2.bdp_probe", 0)],
    )
    async with idle as readers, network.channel(number) as writers:
        calls = []
        for _ in range(20):
            call = readers.stream_stream(services.ORDERER_DELIVER)()
            await call.write(seek(network.client, "oldest", 2**63, wait=True))
            response = orderer_pb2.DeliverResponse.FromString(await call.read())
            assert response.block.header.number == 0
            calls.append(call)
        await broadcast(writers, [network.envelope(20_000) for _ in range(300)])
        before = resident_mb()
        for _ in range(5):
            answers = await broadcast(writers, [network.envelope(20_000) for _ in range(300)])
            assert set(answers.statuses) == {SUCCESS}
        # 30 MB of blocks more, which nobody reads; 20 readers would hold 600 MB of them.
        assert resident_mb() - before < 250
        for call in calls:
            call.cancel()


async def test_readers_are_counted_and_refused_past_the_limit(tmp_path: Path) -> None:
    network = Network(tmp_path, 1)
    network.settings[0] = replace(network.settings[0], service_limits=ServiceLimits(readers=3))
    await network.start()
    try:
        async with network.channel(0) as channel:
            calls = [channel.stream_stream(services.ORDERER_DELIVER)() for _ in range(3)]
            for call in calls:
                await call.write(seek(network.client, "oldest", 2**63, wait=True))
                await call.read()
            refused = channel.stream_stream(services.ORDERER_DELIVER)()
            with pytest.raises(grpc.aio.AioRpcError, match="this orderer's limit") as caught:
                await refused.read()
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            calls[0].cancel()
            async with asyncio.timeout(60):
                while True:
                    again = channel.stream_stream(services.ORDERER_DELIVER)()
                    try:
                        await again.write(seek(network.client, "oldest", "oldest"))
                        await again.read()
                        break
                    except grpc.RpcError, asyncio.InvalidStateError:
                        await asyncio.sleep(0.05)
            for call in [*calls, again]:
                call.cancel()
    finally:
        await network.stop()
