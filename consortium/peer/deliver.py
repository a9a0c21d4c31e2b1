"""Fabric's `protos.Deliver`: blocks as they are, filtered, or with private data.

Filtered ones show no contents; private data go to members of their collection alone.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from consortium.identity.msp import Identity, IdentityError, check_not_expired
from consortium.identity.policies import PolicyError, PolicyNotFoundError, SignaturePolicy
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.ledger import CommittedBlock
from consortium.ledger.lifecycle import implicit_organization
from consortium.ledger.mvcc import encode_field
from consortium.ledger.private_data import PrivatePlace
from consortium.wire import common_pb2, orderer_pb2, peer_pb2, rwset_pb2, services
from consortium.wire.envelopes import OpenedEnvelope, WireError, open_envelope, parse

from .channel import ChannelPeer, ChannelStopped
from .endorser import TIME_WINDOW_S
from .places import NoMorePlaces, Places

MAX_STREAMS = 1_000
"""Streams of blocks at once; each costs a task and the block that it is sending."""
MAX_STREAMS_EACH = 50
"""Of one client."""
FIRST_REQUEST_S = 30.0
"""So long a stream may take to say what it wants."""

CONNECTION_ATTRIBUTE = "gridledger.connection"
ROLE_ATTRIBUTE, OPERATOR = "gridledger.role", "operator"

type Answer = Callable[[CommittedBlock, ChannelPeer, Identity], Awaitable[bytes]]


class DeliverRefused(Exception):
    """A request for blocks that ends the stream with a `common.Status`."""

    def __init__(self, status: common_pb2.Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class DeliverService:
    """The streams that tell clients what was committed.

    Every request is a signed `SeekInfo`; its creator must satisfy the channel's Readers, which is
    looked at again whenever the configuration has changed, and hold a certificate that is valid
    still when a block is sent.
    """

    def __init__(
        self, channels: dict[str, ChannelPeer], clock: Callable[[], float] = time.time
    ) -> None:
        self._channels = channels
        self._clock = clock
        self._streams = 0
        self._streams_each = Places(MAX_STREAMS_EACH, "streams of blocks")

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server; messages pass as raw bytes."""

        def stream(
            answer: Answer, resource: str = "event/Block"
        ) -> grpc.RpcMethodHandler[bytes, bytes]:
            async def serve(
                requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
            ) -> AsyncIterator[bytes]:
                if self._streams >= MAX_STREAMS:
                    await context.abort(
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        f"{MAX_STREAMS} streams of blocks are open here, which is this peer's "
                        "limit; ask another utility's peer",
                    )
                self._streams += 1
                try:
                    async for raw in _soon(requests):
                        try:
                            async for message in self._serve(raw, answer, resource):
                                yield message
                        except WireError:
                            yield _status(common_pb2.BAD_REQUEST)
                            return
                        except DeliverRefused as refused:
                            yield _status(refused.status)
                            return
                        yield _status(common_pb2.SUCCESS)
                except ChannelStopped as stopped:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, str(stopped))
                except NoMorePlaces as error:
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
                except TimeoutError:
                    await context.abort(
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                        f"this stream asked for no blocks within {FIRST_REQUEST_S:g} s",
                    )
                finally:
                    self._streams -= 1

            return grpc.stream_stream_rpc_method_handler(serve)

        return grpc.method_handlers_generic_handler(
            "protos.Deliver",
            {
                services.DELIVER.rsplit("/", 1)[1]: stream(_whole),
                services.DELIVER_FILTERED.rsplit("/", 1)[1]: stream(
                    _filtered, "event/FilteredBlock"
                ),
                services.DELIVER_WITH_PRIVATE_DATA.rsplit("/", 1)[1]: stream(_with_private_data),
            },
        )

    async def _serve(self, raw: bytes, answer: Answer, resource: str) -> AsyncIterator[bytes]:
        """The blocks of one request; raises WireError or DeliverRefused.

        `resource` is what the channel's access control list calls them.
        """
        opened = open_envelope(raw)
        channel = self._channels.get(opened.channel_header.channel_id)
        if channel is None:
            raise DeliverRefused(
                common_pb2.NOT_FOUND, f"channel {opened.channel_header.channel_id!r} not found"
            )
        seek = parse(orderer_pb2.SeekInfo, opened.payload.data, "the seek information")
        identity = self._authenticate(opened, channel, resource)
        with self._streams_each.held_by(opened.signature_header.creator):
            async for message in self._blocks(opened, channel, seek, identity, answer, resource):
                yield message

    async def _blocks(
        self,
        opened: OpenedEnvelope,
        channel: ChannelPeer,
        seek: orderer_pb2.SeekInfo,
        identity: Identity,
        answer: Answer,
        resource: str,
    ) -> AsyncIterator[bytes]:
        number, stop = seek_range(seek, channel.ledger.height)
        if number < channel.ledger.first_block:
            if seek.start.WhichOneof("Type") != "oldest" or stop < channel.ledger.first_block:
                raise DeliverRefused(
                    common_pb2.NOT_FOUND, f"the first block here is {channel.ledger.first_block}"
                )
            number = channel.ledger.first_block
        config = channel.ledger.config
        while number <= stop:
            if (
                seek.behavior == orderer_pb2.SeekInfo.FAIL_IF_NOT_READY
                and number >= channel.ledger.height
            ):
                raise DeliverRefused(common_pb2.NOT_FOUND, f"block {number} is not there yet")
            await channel.wait_for_height(number + 1)
            block = await channel.committed(number)
            if channel.ledger.config is not config:
                config = channel.ledger.config
                identity = self._authorize(opened.signature_header.creator, config, resource)
            self._check_not_expired(identity)
            yield await answer(block, channel, identity)
            number += 1

    def _authenticate(
        self, opened: OpenedEnvelope, channel: ChannelPeer, resource: str
    ) -> Identity:
        sent = opened.channel_header.timestamp.seconds
        if abs(sent - self._clock()) > TIME_WINDOW_S:
            raise DeliverRefused(common_pb2.BAD_REQUEST, f"the timestamp {sent} is too far off")
        identity = self._authorize(opened.signature_header.creator, channel.ledger.config, resource)
        self._check_not_expired(identity)
        if not identity.verify(opened.envelope.signature, opened.envelope.payload):
            raise DeliverRefused(common_pb2.FORBIDDEN, "the signature does not hold")
        return identity

    def _authorize(self, creator: bytes, config: ChannelConfig, resource: str) -> Identity:
        try:
            identity = config.msps.identity(creator)
            readers = config.policy(config.acls.get(resource, "/Channel/Application/Readers"))
        except (IdentityError, PolicyNotFoundError) as error:
            raise DeliverRefused(common_pb2.FORBIDDEN, str(error)) from None
        if not readers.satisfied_by([identity]):
            raise DeliverRefused(common_pb2.FORBIDDEN, "not among the channel's readers")
        return identity

    def _check_not_expired(self, identity: Identity) -> None:
        try:
            check_not_expired(identity, self._clock())
        except IdentityError as error:
            raise DeliverRefused(common_pb2.FORBIDDEN, str(error)) from None


async def _soon(requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A stream's requests; raises TimeoutError where the first doesn't come.

    Until then nobody knows who holds the stream, with a certificate or without.
    """
    async with asyncio.timeout(FIRST_REQUEST_S):
        first = await anext(aiter(requests), None)
    if first is not None:
        yield first
        async for raw in requests:
            yield raw


def seek_range(seek: orderer_pb2.SeekInfo, height: int) -> tuple[int, int]:
    """First and last block number asked for; raises DeliverRefused where they make no sense.

    Both must be there, and an oldest block to stop at is the one to start from, as in Fabric.
    """
    start = _position(seek.start, height)
    stop = start if seek.stop.WhichOneof("Type") == "oldest" else _position(seek.stop, height)
    if seek.stop.WhichOneof("Type") == "newest":
        stop = max(start, stop)
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
            raise DeliverRefused(
                common_pb2.BAD_REQUEST, "a position to start from or to stop at is missing"
            )


def _status(status: common_pb2.Status) -> bytes:
    return peer_pb2.DeliverResponse(status=status).SerializeToString()


async def _whole(block: CommittedBlock, _channel: ChannelPeer, _reader: Identity) -> bytes:
    # Put together by hand: the stored bytes need no parsing to be passed on.
    return encode_field(peer_pb2.DeliverResponse.BLOCK_FIELD_NUMBER, block.raw)


async def _filtered(block: CommittedBlock, channel: ChannelPeer, _reader: Identity) -> bytes:
    filtered = peer_pb2.FilteredBlock(channel_id=channel.channel_id, number=block.number)
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


async def _with_private_data(
    block: CommittedBlock, channel: ChannelPeer, reader: Identity
) -> bytes:
    message = peer_pb2.BlockAndPrivateData()
    if not _sees_through_contracts_only(reader):
        readable: dict[tuple[str, str], bool] = {}
        for place, data in await channel.private_sets(block.number):
            space = (place.namespace, place.collection)
            if space not in readable:
                readable[space] = _may_read(reader, channel, place)
            if not readable[space]:
                continue
            of_transaction = message.private_data_map[place.tx]
            namespaces = of_transaction.ns_pvt_rwset
            if not namespaces or namespaces[-1].namespace != place.namespace:
                namespaces.add(namespace=place.namespace)
            namespaces[-1].collection_pvt_rwset.append(
                rwset_pb2.CollectionPvtReadWriteSet(collection_name=place.collection, rwset=data)
            )
    # As with a whole block, its stored bytes are passed on; the map follows them.
    return encode_field(
        peer_pb2.DeliverResponse.BLOCK_AND_PRIVATE_DATA_FIELD_NUMBER,
        encode_field(peer_pb2.BlockAndPrivateData.BLOCK_FIELD_NUMBER, block.raw)
        + message.SerializeToString(),
    )


def _sees_through_contracts_only(reader: Identity) -> bool:
    """Whether a member's private data are shown to this client by its contracts alone.

    A utility certifies its operators and its homes alike. A contract tells them apart, a block
    does not: it would show every home all its neighbours' readings.
    """
    attributes = reader.attributes
    role = attributes.get(ROLE_ATTRIBUTE, OPERATOR)
    return role != OPERATOR or CONNECTION_ATTRIBUTE in attributes


def _may_read(reader: Identity, channel: ChannelPeer, place: PrivatePlace) -> bool:
    """Whether a client belongs to a collection, by its configuration before the block."""
    owner = implicit_organization(place.collection)
    if owner is not None:
        return reader.msp_id == owner
    package = channel.ledger.collections_at(place.namespace, place.block)
    for config in package.config if package is not None else ():
        collection = config.static_collection_config
        if collection.name == place.collection:
            try:
                members = SignaturePolicy(collection.member_orgs_policy.signature_policy)
            except PolicyError:
                return False
            return members.satisfied_by([reader])
    return False
