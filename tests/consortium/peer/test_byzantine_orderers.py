"""Orderers that lie to a peer, as far as one honest orderer is left: it refuses, and goes there.

Aurora's peer follows Aurora's orderer first, which is the one that lies. Real gRPC and TLS.
"""

import asyncio
import datetime as dt
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from consortium.identity.certificates import certificate_pem, generate_key, key_pem
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import (
    ChannelSpec,
    Consenter,
    OrganizationSpec,
    genesis_block,
)
from consortium.peer import channel as module
from consortium.peer.channel import ChannelPeer
from consortium.wire import common_pb2, orderer_pb2, services
from consortium.wire.blocks import SIGNATURES, data_hash, header_bytes
from consortium.wire.envelopes import channel_header, open_envelope, signed_envelope
from tests.consortium.ledger.channel import Channel, public_set
from tests.consortium.orderer.network import Utility
from tests.ports import free_ports

BLOCKS = 6
CHANNEL_ID = "neighbourhood"
NAMES = ("Aurora", "Boreal")
type Context = grpc.aio.ServicerContext[bytes, bytes]
type Script = Callable[[Liar, Context], Awaitable[None]]


class _Channel(Channel):
    """Two utilities whose orderers listen where the configuration says."""

    def __init__(self, ports: list[int]) -> None:
        utilities = {name: Utility(name) for name in NAMES}
        self.utilities = utilities
        self.peers = {n: one.signer("peer", "peer") for n, one in utilities.items()}
        self.clients = {n: one.signer("home", "client") for n, one in utilities.items()}
        self.orderers = {n: one.signer("orderer", "orderer") for n, one in utilities.items()}
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        organizations = tuple(
            OrganizationSpec(
                one.msp_id, one.authority.certificate_pem, orderer_endpoints=(address,)
            )
            for one, address in zip(utilities.values(), self.addresses, strict=True)
        )
        consenters = tuple(
            Consenter("127.0.0.1", port, signer.certificate_pem, signer.certificate_pem)
            for port, signer in zip(ports, self.orderers.values(), strict=True)
        )
        self.genesis = genesis_block(ChannelSpec(CHANNEL_ID, organizations, consenters))


@dataclass
class Liar:
    """What a lying orderer has to hand."""

    channel: _Channel
    blocks: list[common_pb2.Block]
    calls: int = 0
    sent: int = field(default=0)

    def copy(self, number: int) -> common_pb2.Block:
        block = common_pb2.Block()
        block.CopyFrom(self.blocks[number])
        return block

    def sign(self, block: common_pb2.Block, signer: Signer) -> common_pb2.Block:
        """As an orderer signs, whoever that is."""
        metadata = common_pb2.Metadata.FromString(block.metadata.metadata[SIGNATURES])
        header = common_pb2.SignatureHeader(
            creator=signer.serialized, nonce=os.urandom(24)
        ).SerializeToString()
        del metadata.signatures[:]
        metadata.signatures.add(
            signature_header=header,
            signature=signer.sign(metadata.value + header + header_bytes(block.header)),
        )
        block.metadata.metadata[SIGNATURES] = metadata.SerializeToString()
        return block

    async def send(self, context: Context, block: common_pb2.Block) -> None:
        self.sent += 1
        await context.write(orderer_pb2.DeliverResponse(block=block).SerializeToString())


async def _honest(liar: Liar, context: Context) -> None:
    """What is asked for, from the blocks that there are."""
    raw = await context.read()
    assert isinstance(raw, bytes)
    seek = orderer_pb2.SeekInfo.FromString(open_envelope(raw).payload.data)
    start = seek.start.specified.number
    if seek.start.WhichOneof("Type") == "newest":
        start = len(liar.blocks) - 1
    for block in liar.blocks[start:]:
        await context.write(orderer_pb2.DeliverResponse(block=block).SerializeToString())
    if seek.behavior == orderer_pb2.SeekInfo.BLOCK_UNTIL_READY:
        await asyncio.sleep(60)


@dataclass
class Scene:
    channel: _Channel
    liar: Liar
    peer: ChannelPeer


@asynccontextmanager
async def scene(folder: Path, script: Script, count: int = BLOCKS) -> AsyncIterator[Scene]:
    """A peer that follows, a lying orderer and an honest one; the honest one has `count` blocks."""
    ports = free_ports(2)
    channel = _Channel(ports)
    blocks = [channel.genesis]
    with channel.open(folder / "source", "Boreal") as source:
        for number in range(1, count):
            envelope = channel.transaction(public_set(writes={f"k{number}": b"v"}), NAMES)
            block = channel.block(source, [envelope])
            source.commit(block)
            blocks.append(block)
    liar = Liar(channel, blocks)
    servers = []

    def handler(work: Script) -> grpc.GenericRpcHandler:
        async def handle(_: object, context: Context) -> None:
            liar.calls += 1
            await work(liar, context)

        deliver: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(handle)
        return grpc.method_handlers_generic_handler("orderer.AtomicBroadcast", {"Deliver": deliver})

    for name, address, work in zip(NAMES, channel.addresses, (script, _honest), strict=True):
        key = generate_key()
        certificate = channel.utilities[name].authority.issue(
            "orderer", "orderer", key.public_key(), hosts=("127.0.0.1",)
        )
        server = grpc.aio.server(options=(("grpc.max_send_message_length", -1),))
        server.add_generic_rpc_handlers((handler(work),))
        server.add_secure_port(
            address,
            grpc.ssl_server_credentials([(key_pem(key), certificate_pem(certificate))]),
        )
        await server.start()
        servers.append(server)
    peer = ChannelPeer(channel.open(folder / "peer"), channel.peers["Aurora"])
    peer.start()
    try:
        yield Scene(channel, liar, peer)
    finally:
        await peer.stop()
        for server in servers:
            await server.stop(0)


def _resident() -> int:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


# -- lies --------------------------------------------------------------------------------------


async def _by_a_stranger(liar: Liar, context: Context) -> None:
    await liar.send(context, liar.sign(liar.copy(1), Utility("Delta").signer("orderer", "orderer")))


async def _by_a_home(liar: Liar, context: Context) -> None:
    await liar.send(context, liar.sign(liar.copy(1), liar.channel.clients["Aurora"]))


async def _by_a_peer(liar: Liar, context: Context) -> None:
    await liar.send(context, liar.sign(liar.copy(1), liar.channel.peers["Aurora"]))


async def _by_nobody(liar: Liar, context: Context) -> None:
    block = liar.copy(1)
    block.metadata.metadata[SIGNATURES] = b""
    await liar.send(context, block)


async def _without_metadata(liar: Liar, context: Context) -> None:
    block = liar.copy(1)
    block.ClearField("metadata")
    await liar.send(context, block)


async def _another_value(liar: Liar, context: Context) -> None:
    block = liar.copy(1)
    metadata = common_pb2.Metadata.FromString(block.metadata.metadata[SIGNATURES])
    metadata.value += b"\x12\x00"
    block.metadata.metadata[SIGNATURES] = metadata.SerializeToString()
    await liar.send(context, block)


async def _another_signature_of_it(liar: Liar, context: Context) -> None:
    block = liar.copy(1)
    other = common_pb2.Metadata.FromString(liar.blocks[2].metadata.metadata[SIGNATURES])
    block.metadata.metadata[SIGNATURES] = other.SerializeToString()
    await liar.send(context, block)


async def _other_data(liar: Liar, context: Context) -> None:
    block = liar.copy(1)
    block.data.data[0] = liar.blocks[2].data.data[0]
    await liar.send(context, block)


async def _other_data_with_its_hash(liar: Liar, context: Context) -> None:
    block = liar.copy(1)
    block.data.data[0] = liar.blocks[2].data.data[0]
    block.header.data_hash = data_hash(block.data.data)
    await liar.send(context, block)


async def _another_history(liar: Liar, context: Context) -> None:
    block = liar.copy(1)
    block.header.previous_hash = bytes(32)
    await liar.send(context, liar.sign(block, liar.channel.orderers["Aurora"]))


async def _cut_elsewhere(liar: Liar, context: Context) -> None:
    """The same bytes as two envelopes: the data hash fits."""
    block = liar.copy(1)
    whole = block.data.data[0]
    del block.data.data[:]
    block.data.data.extend((whole[:100], whole[100:]))
    await liar.send(context, block)


async def _empty(liar: Liar, context: Context) -> None:
    block = liar.copy(1)
    del block.data.data[:]
    block.header.data_hash = data_hash([])
    await liar.send(context, liar.sign(block, liar.channel.orderers["Aurora"]))


async def _a_gap(liar: Liar, context: Context) -> None:
    await liar.send(context, liar.copy(3))


async def _the_first_again_and_again(liar: Liar, context: Context) -> None:
    while True:
        await liar.send(context, liar.copy(0))


async def _nothing_but_answers(_: Liar, context: Context) -> None:
    while True:
        await context.write(b"")


async def _success_again_and_again(_: Liar, context: Context) -> None:
    while True:
        status = orderer_pb2.DeliverResponse(status=common_pb2.SUCCESS)
        await context.write(status.SerializeToString())


async def _an_unknown_status(_: Liar, context: Context) -> None:
    await context.write(b"\x08\xe7\x07")  # 999


async def _garbage(_: Liar, context: Context) -> None:
    await context.write(b"\xff" * 1000)


async def _a_sermon(_: Liar, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNKNOWN, "a" * 5000)


async def _metadata_without_end(liar: Liar, context: Context) -> None:
    block = liar.copy(1)
    block.metadata.metadata.extend([b"x" * 1_000_000] * 8)
    await liar.send(context, block)


async def _unknown_fields(liar: Liar, context: Context) -> None:
    """Bytes that no hash and no signature covers, and that a careless peer would keep."""
    raw = liar.copy(1).SerializeToString() + b"\xfa\x7f\x80\x80\x80\x04" + bytes(8 * 1024 * 1024)
    block = common_pb2.Block.FromString(raw)
    await liar.send(context, block)


async def _huge(liar: Liar, context: Context) -> None:
    block = liar.copy(1)
    block.data.data.append(bytes(30 * 1024 * 1024))
    await liar.send(context, block)


async def _larger_than_any_message(liar: Liar, context: Context) -> None:
    block = liar.copy(1)
    block.data.data.append(bytes(services.MESSAGE_LIMIT_BYTES + 1))
    await liar.send(context, block)


async def _a_forbidden_configuration(liar: Liar, context: Context) -> None:
    """Signed by a real orderer, but no administrator agreed to it."""
    block = liar.copy(1)
    genesis = open_envelope(liar.blocks[0].data.data[0])
    wish = common_pb2.ConfigEnvelope.FromString(genesis.payload.data)
    wish.config.sequence += 1
    wish.config.channel_group.groups["Application"].groups.pop("BorealMSP")
    envelope = signed_envelope(
        liar.channel.orderers["Aurora"],
        channel_header(common_pb2.CONFIG, CHANNEL_ID),
        wish.SerializeToString(),
    )
    del block.data.data[:]
    block.data.data.append(envelope.SerializeToString())
    block.header.data_hash = data_hash(block.data.data)
    await liar.send(context, liar.sign(block, liar.channel.orderers["Aurora"]))


REFUSED: tuple[tuple[Script, str], ...] = (
    (_by_a_stranger, "BlockValidation"),
    (_by_a_home, "BlockValidation"),
    (_by_a_peer, "BlockValidation"),
    (_by_nobody, "BlockValidation"),
    (_without_metadata, "BlockValidation"),
    (_another_value, "BlockValidation"),
    (_another_signature_of_it, "BlockValidation"),
    (_other_data, "data hash"),
    (_other_data_with_its_hash, "BlockValidation"),
    (_another_history, "does not follow"),
    (_cut_elsewhere, ""),
    (_empty, "is empty"),
    (_a_gap, "block 3 came where block 1 is next"),
    (_the_first_again_and_again, "block 0 came where block 1 is next"),
    (_nothing_but_answers, "ended the stream"),
    (_success_again_and_again, "ended the stream: SUCCESS"),
    (_an_unknown_status, "ended the stream: 999"),
    (_garbage, "is not a valid orderer.DeliverResponse"),
    (_a_sermon, "aaaa"),
    (_metadata_without_end, "beside its transactions"),
    (_unknown_fields, "beside its transactions"),
    (_huge, ""),
    (_larger_than_any_message, "larger than max"),
    (_a_forbidden_configuration, "did not allow"),
)


@pytest.mark.parametrize(
    ("script", "said"), [pytest.param(*each, id=each[0].__name__[1:]) for each in REFUSED]
)
async def test_a_lying_orderer_is_left_for_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, script: Script, said: str
) -> None:
    """The peer says what was wrong, keeps none of it, and has the honest blocks soon after."""
    caplog.set_level(logging.INFO, "consortium.peer.channel")
    before = _resident()
    async with scene(tmp_path, script) as found:
        async with asyncio.timeout(60):
            await found.peer.wait_for_height(BLOCKS)
        assert found.liar.calls >= 2
        ledger = found.peer.ledger
        assert ledger.height == BLOCKS
        stored = common_pb2.Block.FromString(ledger.block(BLOCKS - 1))
        assert stored.header == found.liar.blocks[-1].header
        assert max(len(ledger.block(number)) for number in range(1, BLOCKS)) < 100_000
        address = found.channel.addresses[0]
    blamed = [one for one in caplog.records if address in one.getMessage()]
    assert any(said in one.getMessage() for one in blamed), [one.getMessage() for one in blamed]
    assert all(len(one.getMessage()) < 2_000 for one in caplog.records)
    ours = [one for one in caplog.records if one.name.startswith("consortium")]
    assert not [one for one in ours if one.exc_info], "an exception that nobody expected"
    assert _resident() - before < 600 * 1024 * 1024


# -- an orderer that keeps blocks to itself ----------------------------------------------------


async def _first_then_silence(liar: Liar, context: Context) -> None:
    await liar.send(context, liar.copy(1))
    await asyncio.sleep(600)


async def _one_now_and_then(liar: Liar, context: Context) -> None:
    """Honest blocks, so slowly that the peer never gets there."""
    raw = await context.read()
    assert isinstance(raw, bytes)
    seek = orderer_pb2.SeekInfo.FromString(open_envelope(raw).payload.data)
    for number in range(seek.start.specified.number, len(liar.blocks)):
        await liar.send(context, liar.copy(number))
        await asyncio.sleep(0.6)


@pytest.mark.parametrize("script", [_first_then_silence, _one_now_and_then])
async def test_an_orderer_that_holds_blocks_back(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    script: Script,
) -> None:
    """Nobody waits for a transaction, and yet the peer finds out what others have."""
    monkeypatch.setattr(module, "COMPARE_S", 0.3)
    monkeypatch.setattr(module, "COMPARE_GRACE_S", 0.3)
    caplog.set_level(logging.INFO, "consortium.peer.channel")
    count = 60
    began = dt.datetime.now(dt.UTC)
    async with scene(tmp_path, script, count) as found:
        async with asyncio.timeout(60):
            await found.peer.wait_for_height(count)
        # Had it gone on with the liar, it would have taken more than half a minute.
        assert found.liar.sent < count / 2, dt.datetime.now(dt.UTC) - began
        (left,) = (one for one in caplog.records if "is left for another" in one.getMessage())
    assert f"while another orderer had {count}" in left.getMessage()


async def test_an_honest_orderer_is_stayed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Though the other one boasts of a height that it cannot show."""
    monkeypatch.setattr(module, "COMPARE_S", 0.1)
    monkeypatch.setattr(module, "COMPARE_GRACE_S", 0.2)
    caplog.set_level(logging.INFO, "consortium.peer.channel")

    async def boasting(liar: Liar, context: Context) -> None:
        """Follows the rules when followed; asked for its newest block it makes one up."""
        raw = await context.read()
        assert isinstance(raw, bytes)
        seek = orderer_pb2.SeekInfo.FromString(open_envelope(raw).payload.data)
        if seek.start.WhichOneof("Type") == "newest":
            block = liar.copy(1)
            block.header.number = 10**9
            await liar.send(context, block)
            return
        await context.abort(grpc.StatusCode.UNAVAILABLE, "ask the other one")

    async with scene(tmp_path, boasting) as found:
        async with asyncio.timeout(60):
            await found.peer.wait_for_height(BLOCKS)
            while found.liar.sent < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert found.peer.orderer_connected
    assert not [one for one in caplog.records if "is left for another" in one.getMessage()]
