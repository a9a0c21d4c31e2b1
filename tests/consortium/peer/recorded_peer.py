"""A peer over the recorded chain, with its services on a real gRPC server (without TLS)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from consortium.chaincode.executor import InProcessExecutor
from consortium.chaincode.packages import PackageStore
from consortium.gateway.service import Gateway, PeerDirectory
from consortium.identity.signing import Signer
from consortium.ledger.ledger import Ledger
from consortium.peer.channel import ChannelPeer
from consortium.peer.contracts import Contracts
from consortium.peer.deliver import DeliverService
from consortium.peer.endorser import Endorser
from consortium.wire import common_pb2, orderer_pb2, peer_pb2, services
from consortium.wire.envelopes import channel_header, signed_envelope
from tests.consortium.ledger.recorded import FOLDER, ordered_block

CHANNEL = "goldenchannel"


def member(name: str, msp_id: str = "Org1MSP") -> Signer:
    """One of the recorded network's throw-away identities."""
    keys = FOLDER / "test-keys"
    return Signer.load(msp_id, keys / f"{name}.cert.pem", keys / f"{name}.key.pem")


def at(number: int) -> orderer_pb2.SeekPosition:
    return orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=number))


OLDEST = orderer_pb2.SeekPosition(oldest=orderer_pb2.SeekOldest())
NEWEST = orderer_pb2.SeekPosition(newest=orderer_pb2.SeekNewest())
NEXT = orderer_pb2.SeekPosition(next_commit=orderer_pb2.SeekNextCommit())


@dataclass
class RecordedPeer:
    """The peer and a connection to it."""

    channel: ChannelPeer
    gateway: Gateway
    connection: grpc.aio.Channel

    async def commit_to(self, height: int) -> None:
        """Commit recorded blocks until there are `height`."""
        while self.channel.ledger.height < height:
            await self.channel.commit(ordered_block(self.channel.ledger.height))

    def seek(
        self,
        start: orderer_pb2.SeekPosition | None,
        stop: orderer_pb2.SeekPosition | None,
        *,
        signer: Signer | None = None,
        fail_if_not_ready: bool = False,
        channel: str = CHANNEL,
        timestamp_ns: int | None = None,
    ) -> common_pb2.Envelope:
        """A signed request for blocks."""
        info = orderer_pb2.SeekInfo(start=start, stop=stop)
        if fail_if_not_ready:
            info.behavior = orderer_pb2.SeekInfo.FAIL_IF_NOT_READY
        header = channel_header(common_pb2.DELIVER_SEEK_INFO, channel, timestamp_ns=timestamp_ns)
        return signed_envelope(signer or member("org1-user1"), header, info.SerializeToString())

    async def deliver(
        self, *requests: common_pb2.Envelope, path: str = services.DELIVER
    ) -> list[peer_pb2.DeliverResponse]:
        """All answers to these requests on one stream."""
        call = self.stream(*requests, path=path)
        return [peer_pb2.DeliverResponse.FromString(raw) async for raw in call]

    def stream(
        self, *requests: common_pb2.Envelope, path: str = services.DELIVER
    ) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        open_stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = (
            self.connection.stream_stream(path)
        )
        return open_stream(iter([request.SerializeToString() for request in requests]), timeout=60)


@asynccontextmanager
async def recorded_peer(folder: Path, height: int) -> AsyncIterator[RecordedPeer]:
    """A peer that holds the recorded chain's first blocks and follows nobody."""
    ledger = Ledger.open(folder, msp_id="Org1MSP", genesis=ordered_block(0), durable=False)
    channel = ChannelPeer(ledger, member("org1-peer0"))
    channels = {CHANNEL: channel}
    contracts = Contracts("Org1MSP", PackageStore(folder / "packages"))
    endorser = Endorser(channels, channel.signer, InProcessExecutor({}), contracts)
    directory = PeerDirectory(
        endorser, "Org1MSP", "127.0.0.1:0", lambda _roots: grpc.ssl_channel_credentials()
    )
    gateway = Gateway(channels, directory)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((DeliverService(channels).handler(), gateway.handler()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as connection:
        peer = RecordedPeer(channel, gateway, connection)
        await peer.commit_to(height)
        try:
            yield peer
        finally:
            channel.stop_waiting()
            await server.stop(1)
            await channel.stop()
