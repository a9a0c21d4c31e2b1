"""Fabric's `protos.Deliver`: blocks, and filtered blocks for who may not see their contents."""

import time
from collections.abc import AsyncIterator, Callable

import grpc

from consortium.identity.msp import Identity, IdentityError, check_not_expired
from consortium.identity.policies import PolicyNotFoundError
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.ledger import CommittedBlock
from consortium.wire import common_pb2, orderer_pb2, peer_pb2, services
from consortium.wire.envelopes import OpenedEnvelope, WireError, open_envelope, parse

from .channel import MAX_SEEK, ChannelPeer
from .endorser import TIME_WINDOW_S

type Answer = Callable[[CommittedBlock, str], bytes]


class DeliverRefused(Exception):
    """A request for blocks that ends the stream with a `common.Status`."""

    def __init__(self, status: common_pb2.Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class DeliverService:
    """The streams that tell clients what was committed.

    Every request is a signed `SeekInfo`; its creator must satisfy the channel's Readers, and is
    asked again whenever the configuration has changed.
    """

    def __init__(
        self, channels: dict[str, ChannelPeer], clock: Callable[[], float] = time.time
    ) -> None:
        self._channels = channels
        self._clock = clock

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server; messages pass as raw bytes."""

        def stream(answer: Answer) -> grpc.RpcMethodHandler[bytes, bytes]:
            async def serve(
                requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext[bytes, bytes]
            ) -> AsyncIterator[bytes]:
                async for raw in requests:
                    async for message in self._serve(raw, answer):
                        yield message

            return grpc.stream_stream_rpc_method_handler(serve)

        return grpc.method_handlers_generic_handler(
            "protos.Deliver",
            {
                services.DELIVER.rsplit("/", 1)[1]: stream(_whole),
                services.DELIVER_FILTERED.rsplit("/", 1)[1]: stream(_filtered),
            },
        )

    async def _serve(self, raw: bytes, answer: Answer) -> AsyncIterator[bytes]:
        try:
            opened = open_envelope(raw)
            channel = self._channels.get(opened.channel_header.channel_id)
            if channel is None:
                raise DeliverRefused(
                    common_pb2.NOT_FOUND, f"channel {opened.channel_header.channel_id!r} not found"
                )
            seek = parse(orderer_pb2.SeekInfo, opened.payload.data, "the seek information")
            reader = self._authenticate(opened, channel)
            start, stop = seek_range(seek, channel.ledger.height)
            config = channel.ledger.config
            if (
                seek.behavior == orderer_pb2.SeekInfo.FAIL_IF_NOT_READY
                and start >= channel.ledger.height
            ):
                raise DeliverRefused(common_pb2.NOT_FOUND, f"block {start} is not there yet")
            number = start
            while number <= stop:
                if (
                    seek.behavior == orderer_pb2.SeekInfo.FAIL_IF_NOT_READY
                    and number >= channel.ledger.height
                ):
                    raise DeliverRefused(common_pb2.NOT_FOUND, f"block {number} is not there yet")
                await channel.wait_for_height(number + 1)
                if channel.ledger.config is not config:
                    config = channel.ledger.config
                    self._authorize(reader, config)
                yield answer(channel.committed(number), channel.channel_id)
                number += 1
            yield _status(common_pb2.SUCCESS)
        except WireError:
            yield _status(common_pb2.BAD_REQUEST)
        except DeliverRefused as refused:
            yield _status(refused.status)

    def _authenticate(self, opened: OpenedEnvelope, channel: ChannelPeer) -> bytes:
        sent = opened.channel_header.timestamp.seconds
        if abs(sent - self._clock()) > TIME_WINDOW_S:
            raise DeliverRefused(common_pb2.BAD_REQUEST, f"the timestamp {sent} is too far off")
        creator = opened.signature_header.creator
        identity = self._authorize(creator, channel.ledger.config)
        if not identity.verify(opened.envelope.signature, opened.envelope.payload):
            raise DeliverRefused(common_pb2.FORBIDDEN, "the signature does not hold")
        return creator

    def _authorize(self, creator: bytes, config: ChannelConfig) -> Identity:
        try:
            identity = config.msps.identity(creator)
            check_not_expired(identity, self._clock())
            readers = config.policy("/Channel/Application/Readers")
        except (IdentityError, PolicyNotFoundError) as error:
            raise DeliverRefused(common_pb2.FORBIDDEN, str(error)) from None
        if not readers.satisfied_by([identity]):
            raise DeliverRefused(common_pb2.FORBIDDEN, "not among the channel's readers")
        return identity


def seek_range(seek: orderer_pb2.SeekInfo, height: int) -> tuple[int, int]:
    """First and last block number asked for; raises DeliverRefused where they make no sense."""
    start = _position(seek.start, height)
    stop = _position(seek.stop, height) if seek.HasField("stop") else MAX_SEEK
    if seek.stop.WhichOneof("Type") == "newest":
        stop = max(start, height - 1)
    if stop < start:
        raise DeliverRefused(common_pb2.BAD_REQUEST, f"stop {stop} comes before start {start}")
    return start, stop


def _position(position: orderer_pb2.SeekPosition, height: int) -> int:
    match position.WhichOneof("Type"):
        case "oldest":
            return 0
        case "newest":
            return max(0, height - 1)
        case "next_commit":
            return height
        case "specified":
            return position.specified.number
        case _:
            raise DeliverRefused(common_pb2.BAD_REQUEST, "the position to start from is missing")


def _status(status: common_pb2.Status) -> bytes:
    return peer_pb2.DeliverResponse(status=status).SerializeToString()


def _whole(block: CommittedBlock, _channel_id: str) -> bytes:
    return peer_pb2.DeliverResponse(
        block=common_pb2.Block.FromString(block.raw)
    ).SerializeToString()


def _filtered(block: CommittedBlock, channel_id: str) -> bytes:
    filtered = peer_pb2.FilteredBlock(channel_id=channel_id, number=block.number)
    events = dict(block.events)
    for index, data in enumerate(common_pb2.Block.FromString(block.raw).data.data):
        try:
            header = open_envelope(data).channel_header
        except WireError:
            continue
        transaction = filtered.filtered_transactions.add(
            txid=header.tx_id,
            type=header.type,
            tx_validation_code=peer_pb2.TxValidationCode.Name(block.codes[index]),
        )
        if header.type == common_pb2.ENDORSER_TRANSACTION:
            actions = transaction.transaction_actions
            actions.SetInParent()
            if (event := events.get(index)) is not None:
                shown = peer_pb2.ChaincodeEvent()
                shown.CopyFrom(event)
                shown.ClearField("payload")  # for those who may not see contents
                actions.chaincode_actions.add(chaincode_event=shown)
    return peer_pb2.DeliverResponse(filtered_block=filtered).SerializeToString()
