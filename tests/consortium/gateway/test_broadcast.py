"""Envelopes reach an orderer that works: past one that is away, one that hangs, one that fails."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
import pytest_asyncio

from consortium.gateway import broadcast
from consortium.gateway.broadcast import Broadcaster, BroadcastRefused, TooManyWaiting
from consortium.node.contracts import client as utility_client
from consortium.node.network import Utility
from consortium.node.nodes import EmbeddedNetwork, PeerNode, TlsFiles, make_node
from consortium.peer import channel as channel_module
from consortium.peer.channel import ChannelPeer
from consortium.wire import common_pb2, orderer_pb2
from gridledger_client import GatewayClient, SignedTransaction

pytestmark = pytest.mark.asyncio(loop_scope="session")

_references = itertools.count()


@pytest_asyncio.fixture(loop_scope="session")
async def operator(embedded: EmbeddedNetwork) -> AsyncIterator[GatewayClient]:
    network = embedded.network
    async with utility_client(network, network.utility("Aurora"), "operator") as gateway:
        yield gateway


@pytest.fixture
def channel(embedded: EmbeddedNetwork) -> ChannelPeer:
    peer = embedded.nodes["peer0.aurora.example"]
    assert isinstance(peer, PeerNode)
    return peer.channels["neighbourhood"]


@pytest_asyncio.fixture(loop_scope="session")
async def broadcaster(channel: ChannelPeer) -> AsyncIterator[Broadcaster]:
    broadcaster = Broadcaster(channel)
    yield broadcaster
    await broadcaster.stop()


async def _signed(operator: GatewayClient) -> SignedTransaction:
    argument = {
        "account": "SUPPLIER-AURORA",
        "amount_micro": "1",
        "bank_reference": f"BROADCAST-{next(_references)}",
    }
    return await operator.endorse(operator.prepare("energy", "wallet:Deposit", argument))


@asynccontextmanager
async def _instead_of_the_orderer(
    embedded: EmbeddedNetwork, utility: Utility, status: common_pb2.Status | None
) -> AsyncIterator[list[bytes]]:
    """At an orderer's address one that takes envelopes and gives each this answer, or none."""
    name = f"orderer0.{utility.domain}"
    await embedded.nodes[name].stop()
    taken: list[bytes] = []

    async def take(
        requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        async for raw in requests:
            taken.append(raw)
            if status is not None:
                answer = orderer_pb2.BroadcastResponse(status=status, info="made to fail")
                yield answer.SerializeToString()
                return
        return

    async def keep_waiting(
        requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        taken.append(await anext(requests))
        await asyncio.Event().wait()
        yield b""

    handler = grpc.method_handlers_generic_handler(
        "orderer.AtomicBroadcast",
        {
            "Broadcast": grpc.stream_stream_rpc_method_handler(take),
            "Deliver": grpc.stream_stream_rpc_method_handler(keep_waiting),
        },
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    tls = TlsFiles(utility, "orderer", embedded.network.tls_bundle_pem)
    server.add_secure_port(f"127.0.0.1:{utility.ports.orderer}", tls.clients_server())
    await server.start()
    try:
        yield taken
    finally:
        await server.stop(0)
        back = embedded.nodes[name] = make_node(embedded.network, utility, "orderer")
        await back.start()


def _ask_first(broadcaster: Broadcaster, utility: Utility) -> None:
    broadcaster._preferred = f"127.0.0.1:{utility.ports.orderer}"


async def test_many_at_once_are_each_ordered_once(
    operator: GatewayClient, broadcaster: Broadcaster, channel: ChannelPeer
) -> None:
    signed = [await _signed(operator) for _ in range(20)]
    await asyncio.gather(*(broadcaster.submit(one.envelope) for one in signed))
    for one in signed:
        assert (await channel.wait_for_transaction(one.transaction_id)).code == 0
    assert not broadcaster.last_errors
    assert not broadcaster._without_batches
    assert (broadcaster._callers, broadcaster._bytes) == (0, 0)


async def test_batches_end_at_a_limit(
    operator: GatewayClient,
    broadcaster: Broadcaster,
    channel: ChannelPeer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signed = [await _signed(operator) for _ in range(3)]
    size = len(signed[0].envelope)
    for limit in (2 * size, size - 10):  # two in a batch, and each more than one may have
        monkeypatch.setattr(broadcast, "BATCH_BYTES", limit)
        await asyncio.gather(*(broadcaster.submit(one.envelope) for one in signed))
    for one in signed:
        assert (await channel.wait_for_transaction(one.transaction_id)).code == 0


async def test_an_orderer_that_hangs_is_left(
    embedded: EmbeddedNetwork,
    operator: GatewayClient,
    broadcaster: Broadcaster,
    channel: ChannelPeer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Long enough to connect and to hear that it knows no batches.
    monkeypatch.setattr(broadcast, "ANSWER_TIMEOUT_S", 3.0)
    aurora = embedded.network.utility("Aurora")
    signed = [await _signed(operator) for _ in range(3)]
    async with _instead_of_the_orderer(embedded, aurora, None) as taken:
        _ask_first(broadcaster, aurora)
        async with asyncio.timeout(60):
            await asyncio.gather(*(broadcaster.submit(one.envelope) for one in signed))
        # Other gateways of the network, and peers, come to it as well.
        assert {one.envelope for one in signed} & set(taken)
        for one in signed:
            assert (await channel.wait_for_transaction(one.transaction_id)).code == 0
        assert "answered none for" in broadcaster.last_errors[0][2]
        # Those that answer are kept to.
        assert broadcaster._preferred != f"127.0.0.1:{aurora.ports.orderer}"


async def test_an_orderer_that_fails_over_an_envelope_is_not_the_last_word(
    embedded: EmbeddedNetwork,
    operator: GatewayClient,
    broadcaster: Broadcaster,
    channel: ChannelPeer,
) -> None:
    aurora = embedded.network.utility("Aurora")
    signed = await _signed(operator)
    async with _instead_of_the_orderer(embedded, aurora, common_pb2.INTERNAL_SERVER_ERROR) as taken:
        _ask_first(broadcaster, aurora)
        async with asyncio.timeout(60):
            await broadcaster.submit(signed.envelope)
        assert taken.count(signed.envelope) == 1
        # Like Fabric's, it knows nothing of batches.
        assert broadcaster._without_batches == {f"127.0.0.1:{aurora.ports.orderer}"}
    assert (await channel.wait_for_transaction(signed.transaction_id)).code == 0


async def test_a_refused_envelope_fails_alone(
    operator: GatewayClient, broadcaster: Broadcaster, channel: ChannelPeer
) -> None:
    """The orderer ends the stream over it; what was sent behind it is sent again."""
    signed = await _signed(operator)
    forged = common_pb2.Envelope.FromString(signed.envelope)
    forged.signature = forged.signature[:-1] + bytes((forged.signature[-1] ^ 1,))
    results = await asyncio.gather(
        broadcaster.submit(forged.SerializeToString()),
        broadcaster.submit(signed.envelope),
        return_exceptions=True,
    )
    assert isinstance(results[0], BroadcastRefused)
    assert "status=FORBIDDEN" in str(results[0])
    assert results[1] is None
    assert (await channel.wait_for_transaction(signed.transaction_id)).code == 0


async def test_who_gives_up_leaves_no_envelope_behind(
    broadcaster: Broadcaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcaster, "_orderers", list)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await broadcaster.submit(b"envelope")
    assert not broadcaster._waiting
    assert (broadcaster._callers, broadcaster._bytes) == (0, 0)


@pytest.mark.parametrize(("limit", "value"), [("MAX_WAITING", 1), ("MAX_WAITING_BYTES", 10)])
async def test_what_waits_is_limited(
    broadcaster: Broadcaster, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(broadcaster, "_orderers", list)
    monkeypatch.setattr(broadcast, limit, value)
    first = asyncio.create_task(broadcaster.submit(b"12345678"))
    await asyncio.sleep(0)
    with pytest.raises(TooManyWaiting, match="which is this gateway's limit"):
        await broadcaster.submit(b"12345678")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_submit_when_all_orderers_come_back(
    embedded: EmbeddedNetwork, operator: GatewayClient, broadcaster: Broadcaster
) -> None:
    """What was waiting while nobody was there is sent without anybody asking again."""
    signed = await _signed(operator)
    utilities = embedded.network.utilities
    names = [f"orderer0.{utility.domain}" for utility in utilities]
    await asyncio.gather(*(embedded.nodes[name].stop() for name in names))
    submitting = asyncio.create_task(broadcaster.submit(signed.envelope))
    try:
        await asyncio.sleep(0.5)
        assert not submitting.done()
        assert len(broadcaster.last_errors) == 3
    finally:
        for name, utility in zip(names, utilities, strict=True):
            embedded.nodes[name] = make_node(embedded.network, utility, "orderer")
        await asyncio.gather(*(embedded.nodes[name].start() for name in names))
    async with asyncio.timeout(60):
        await submitting


async def test_a_peer_leaves_an_orderer_that_sends_no_blocks(
    embedded: EmbeddedNetwork, operator: GatewayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aurora's peer follows Aurora's orderer, which hangs: it asks another once someone waits."""
    monkeypatch.setattr(channel_module, "STALLED_S", 0.5)
    aurora = embedded.network.utility("Aurora")
    name = "peer0.aurora.example"
    async with _instead_of_the_orderer(embedded, aurora, None) as taken:
        await embedded.nodes[name].stop()
        back = embedded.nodes[name] = make_node(embedded.network, aurora, "peer")
        await back.start()
        assert isinstance(back, PeerNode)
        signed = await _signed(operator)
        await operator.submit_signed(signed)
        async with asyncio.timeout(60):
            channel = back.channels["neighbourhood"]
            record = await channel.wait_for_transaction(signed.transaction_id)
        assert record.code == 0
        assert any(b"neighbourhood" in raw and raw != signed.envelope for raw in taken)


@pytest.mark.parametrize(
    ("status", "info", "elsewhere"),
    [
        (common_pb2.SERVICE_UNAVAILABLE, "no leader", True),
        (common_pb2.NOT_FOUND, "channel 'x' is not served by this orderer", True),
        # What Fabric's orderers say where they have not joined the channel, or have left it.
        (common_pb2.BAD_REQUEST, "channel does not exist", True),
        (common_pb2.BAD_REQUEST, "the envelope has no payload", False),
        (common_pb2.FORBIDDEN, "implicit policy evaluation failed", False),
    ],
)
async def test_what_another_orderer_may_take(
    status: common_pb2.Status, info: str, elsewhere: bool
) -> None:
    answer = orderer_pb2.BroadcastResponse(status=status, info=info)
    assert broadcast.another_may_take_it(answer) is elsewhere
