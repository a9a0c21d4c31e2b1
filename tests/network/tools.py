"""What the tests of a whole network share: calls with raw bytes, and a look into every ledger."""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import grpc

from consortium.identity.signing import Signer
from consortium.node.network import Network, Utility
from consortium.wire import common_pb2, gateway_pb2, orderer_pb2, peer_pb2, rpc_pb2, services
from consortium.wire.blocks import COMMIT_HASH, TRANSACTIONS_FILTER, header_hash
from consortium.wire.envelopes import channel_header, signed_envelope
from gridledger_client import GatewayClient, PreparedTransaction

CALL_TIMEOUT_S = 20
COMMIT_TIMEOUT_S = 20
LARGE = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@dataclass(frozen=True)
class Refusal:
    """A gRPC status, its sentence, and what the gateway's details say of each node."""

    code: grpc.StatusCode
    message: str
    details: tuple[gateway_pb2.ErrorDetail, ...] = ()

    @property
    def text(self) -> str:
        """All that a person gets to read."""
        return "; ".join([self.message, *(detail.message for detail in self.details)])


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    details: list[gateway_pb2.ErrorDetail] = []
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            assert isinstance(value, bytes)
            status = rpc_pb2.Status.FromString(value)
            assert (status.code, status.message) == (error.code().value[0], error.details())
            for packed in status.details:
                assert packed.type_url == "type.googleapis.com/gateway.ErrorDetail"
                details.append(gateway_pb2.ErrorDetail.FromString(packed.value))
    return Refusal(error.code(), error.details() or "", tuple(details))


class Wire:
    """gRPC to the network's nodes with bytes as they are."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._connections: dict[tuple[str, bool], grpc.aio.Channel] = {}

    def _connection(self, address: str, node: Utility | None) -> grpc.aio.Channel:
        key = (address, node is not None)
        if key not in self._connections:
            bundle = self.network.tls_bundle_pem
            folder = node.directory / "orderer" if node else None
            credentials = grpc.ssl_channel_credentials(
                bundle,
                (folder / "tls.key.pem").read_bytes() if folder else None,
                (folder / "tls.cert.pem").read_bytes() if folder else None,
            )
            self._connections[key] = grpc.aio.secure_channel(address, credentials, options=LARGE)
        return self._connections[key]

    async def close(self) -> None:
        await asyncio.gather(*(channel.close(None) for channel in self._connections.values()))

    async def unary(
        self, address: str, path: str, raw: bytes, *, node: Utility | None = None
    ) -> bytes | Refusal:
        """One call; `node` shows that utility's orderer's certificate, for mutual TLS."""
        call = self._connection(address, node).unary_unary(path)
        try:
            return await call(raw, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)

    async def stream(
        self,
        address: str,
        path: str,
        raws: Iterable[bytes],
        *,
        answers: int | None = None,
        node: Utility | None = None,
    ) -> list[bytes] | Refusal:
        """Send all, and return what came back until the end, or `answers` of them."""
        call = self._connection(address, node).stream_stream(path)(timeout=CALL_TIMEOUT_S)
        received: list[bytes] = []
        try:
            for raw in raws:
                await call.write(raw)
            if answers is None:
                await call.done_writing()
            while answers is None or len(received) < answers:
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    break
                received.append(answer)
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        except asyncio.InvalidStateError:
            # The server ended the stream while we were writing to it.
            return refusal_of(
                grpc.aio.AioRpcError(
                    await call.code(),
                    grpc.aio.Metadata(),
                    await call.trailing_metadata(),
                    await call.details(),
                )
            )
        finally:
            call.cancel()
        return received

    async def events(self, address: str, raw: bytes) -> Refusal | None:
        """Ask for chaincode events; None once the first one comes."""
        call = self._connection(address, None).unary_stream(services.CHAINCODE_EVENTS)(
            raw, timeout=CALL_TIMEOUT_S
        )
        try:
            async for _ in call:
                return None
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        finally:
            call.cancel()
        return None

    async def broadcast(
        self, utility: Utility, *envelopes: common_pb2.Envelope | bytes
    ) -> list[orderer_pb2.BroadcastResponse]:
        """Straight to a utility's orderer, past every gateway."""
        raws = [each if isinstance(each, bytes) else each.SerializeToString() for each in envelopes]
        answered = await self.stream(orderer_address(utility), services.BROADCAST, raws)
        assert not isinstance(answered, Refusal), answered
        return [orderer_pb2.BroadcastResponse.FromString(raw) for raw in answered]


def orderer_address(utility: Utility) -> str:
    return f"127.0.0.1:{utility.ports.orderer}"


# ----------------------------------------------------------------------------------- ledgers


@dataclass(frozen=True)
class Committed:
    """Where an envelope stands in a peer's ledger."""

    block: int
    index: int
    code: int
    changed_state: bool
    """Whether the block it stands in changed this peer's state in any way."""


@dataclass(frozen=True)
class Tip:
    """A ledger's end: two of the same tip hold the same blocks and, by its hash, the same state."""

    height: int
    block_hash: bytes
    commit_hash: bytes


@dataclass
class Ledgers:
    """Every peer's ledger, asked through `qscc` as the utility's own admin."""

    network: Network
    clients: dict[str, GatewayClient] = field(default_factory=dict)

    async def _ask(self, msp_id: str, function: str, *arguments: bytes) -> bytes:
        client = self.clients[msp_id]
        answer = await client.evaluate(
            "qscc",
            function,
            [self.network.channel.encode(), *arguments],
            endorsing_organizations=[msp_id],
        )
        assert isinstance(answer, bytes)
        return answer

    async def height(self, msp_id: str) -> int:
        info = common_pb2.BlockchainInfo.FromString(await self._ask(msp_id, "GetChainInfo"))
        return int(info.height)

    async def block(self, msp_id: str, number: int) -> common_pb2.Block:
        raw = await self._ask(msp_id, "GetBlockByNumber", str(number).encode())
        return common_pb2.Block.FromString(raw)

    async def transaction(self, msp_id: str, transaction_id: str) -> peer_pb2.ProcessedTransaction:
        raw = await self._ask(msp_id, "GetTransactionByID", transaction_id.encode())
        return peer_pb2.ProcessedTransaction.FromString(raw)

    async def settled(self) -> Tip:
        """The tip that all peers have come to; fails where two differ at the same height."""
        async with asyncio.timeout(COMMIT_TIMEOUT_S):
            while True:
                heights = {msp_id: await self.height(msp_id) for msp_id in self.clients}
                if len(set(heights.values())) == 1:
                    break
                await asyncio.sleep(0.02)
        height = next(iter(heights.values()))
        tips = {tip_of(await self.block(msp_id, height - 1)) for msp_id in self.clients}
        assert len(tips) == 1, f"the peers' ledgers differ at height {height}: {tips}"
        return tips.pop()

    async def find(
        self, msp_id: str, envelope: bytes, start: int, occurrence: int = 0
    ) -> Committed:
        """Where these bytes stand from block `start` on, once the peer has committed them."""
        number, seen = start, 0
        previous = b"" if start == 0 else commit_hash(await self.block(msp_id, start - 1))
        async with asyncio.timeout(COMMIT_TIMEOUT_S):
            while True:
                while await self.height(msp_id) <= number:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                block = await self.block(msp_id, number)
                for index, data in enumerate(block.data.data):
                    if data != envelope:
                        continue
                    if seen == occurrence:
                        code = block.metadata.metadata[TRANSACTIONS_FILTER][index]
                        changed = commit_hash(block) != _unchanged_hash(block, previous)
                        return Committed(number, index, code, changed)
                    seen += 1
                previous = commit_hash(block)
                number += 1


def commit_hash(block: common_pb2.Block) -> bytes:
    return common_pb2.Metadata.FromString(block.metadata.metadata[COMMIT_HASH]).value


def tip_of(block: common_pb2.Block) -> Tip:
    return Tip(block.header.number + 1, header_hash(block.header), commit_hash(block))


def _unchanged_hash(block: common_pb2.Block, previous: bytes) -> bytes:
    """The commit hash of this block if it changes nothing: Fabric's rule with no update in it."""
    codes = block.metadata.metadata[TRANSACTIONS_FILTER]
    length, varint = len(codes), bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return hashlib.sha256(bytes(varint) + codes + previous).digest()


# --------------------------------------------------------------------------------- proposals


def signed_proposal(prepared: PreparedTransaction) -> peer_pb2.SignedProposal:
    return peer_pb2.SignedProposal(proposal_bytes=prepared.proposal, signature=prepared.signature)


def endorse_request(
    client: GatewayClient,
    prepared: PreparedTransaction,
    organizations: Sequence[str] = (),
) -> bytes:
    return gateway_pb2.EndorseRequest(
        transaction_id=prepared.transaction_id,
        channel_id=client.channel,
        proposed_transaction=signed_proposal(prepared),
        endorsing_organizations=organizations,
    ).SerializeToString()


def evaluate_request(
    client: GatewayClient,
    prepared: PreparedTransaction,
    organizations: Sequence[str] = (),
) -> bytes:
    return gateway_pb2.EvaluateRequest(
        transaction_id=prepared.transaction_id,
        channel_id=client.channel,
        proposed_transaction=signed_proposal(prepared),
        target_organizations=organizations,
    ).SerializeToString()


def submit_request(
    client: GatewayClient, transaction_id: str, envelope: common_pb2.Envelope
) -> bytes:
    return gateway_pb2.SubmitRequest(
        transaction_id=transaction_id, channel_id=client.channel, prepared_transaction=envelope
    ).SerializeToString()


def seek_all(network: Network, signer: Signer, *, number: int = 0) -> common_pb2.Envelope:
    """A signed request for one block."""
    position = orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=number))
    seek = orderer_pb2.SeekInfo(start=position, stop=position)
    return signed_envelope(
        signer,
        channel_header(common_pb2.DELIVER_SEEK_INFO, network.channel),
        seek.SerializeToString(),
    )
