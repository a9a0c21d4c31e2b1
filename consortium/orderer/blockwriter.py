"""From a committed Raft entry to a block in the store, signed by this orderer.

An entry's data is a serialized `common.Block` with header, data and empty metadata. The block that
is stored is those bytes with the metadata filled in, as Fabric's blockwriter does
(hyperledger/fabric `orderer/common/multichannel/blockwriter.go`): SIGNATURES with this orderer's
signature over `OrdererBlockMetadata`, signature header and block header, and LAST_CONFIG.

Runs in the node's writer thread; the chain calls one method at a time.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from consortium.identity.policies import SignedData, verified_signers
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig, config_of_block
from consortium.ledger.config_update import ConfigError
from consortium.wire import blocks, common_pb2, etcdraft_pb2
from consortium.wire.envelopes import NONCE_BYTES, field_prefix, parse

from .blockstore import BlockStore
from .membership import MembershipChange, membership_change

# Field 3 of common.Block: a BlockMetadata with five empty slots.
_EMPTY_METADATA = common_pb2.Block(
    metadata=common_pb2.BlockMetadata(metadata=[b""] * blocks.METADATA_SLOTS)
).SerializeToString()


class BlockRefused(Exception):
    """A block that may not follow the chain as it is; it is never stored."""


@dataclass(frozen=True, slots=True)
class Written:
    """A block that was appended to the store."""

    number: int
    raft_index: int
    envelopes: int
    digests: Sequence[bytes]
    """SHA-256 of each envelope; empty when nobody asked."""
    config: ChannelConfig | None
    """The configuration it brought, if it is a configuration block."""
    change: MembershipChange | None = None
    """What that does to the consenters; None for a block that was fetched."""


def proposal(number: int, previous_hash: bytes, envelopes: list[bytes]) -> tuple[bytes, bytes]:
    """A new block as the data of a Raft entry, and its header's hash."""
    header = common_pb2.BlockHeader(
        number=number, previous_hash=previous_hash, data_hash=blocks.data_hash(envelopes)
    )
    header_bytes = header.SerializeToString()
    # A BlockData: field 1 is each envelope.
    data = b"".join(part for one in envelopes for part in (field_prefix(1, len(one)), one))
    block = b"".join(
        (
            field_prefix(1, len(header_bytes)),
            header_bytes,
            field_prefix(2, len(data)),
            data,
            _EMPTY_METADATA,
        )
    )
    return block, blocks.header_hash(header)


def header_type(envelope: bytes) -> int:
    """The common.HeaderType of an envelope; raises WireError."""
    payload = parse(
        common_pb2.Payload,
        parse(common_pb2.Envelope, envelope, "the envelope").payload,
        "the envelope's payload",
    )
    header = payload.header.channel_header
    return parse(common_pb2.ChannelHeader, header, "the channel header").type


def raft_metadata_of(block: common_pb2.Block) -> etcdraft_pb2.BlockMetadata | None:
    """Raft ids and index in a block's metadata; None in block 0."""
    signatures = parse(
        common_pb2.Metadata, block.metadata.metadata[blocks.SIGNATURES], "the block's signatures"
    )
    value = parse(common_pb2.OrdererBlockMetadata, signatures.value, "the orderer's metadata")
    if not value.consenter_metadata:
        return None
    wrapped = parse(common_pb2.Metadata, value.consenter_metadata, "the consenter metadata")
    return parse(etcdraft_pb2.BlockMetadata, wrapped.value, "the etcdraft metadata")


def last_config_of(block: common_pb2.Block) -> int:
    """Number of the configuration block in force after `block`."""
    if block.header.number == 0:
        return 0
    slot = parse(
        common_pb2.Metadata, block.metadata.metadata[blocks.LAST_CONFIG], "the last configuration"
    )
    return parse(common_pb2.LastConfig, slot.value, "the last configuration").index


class BlockWriter:
    """Appends blocks to a channel's store and knows its tip."""

    def __init__(self, store: BlockStore, signer: Signer) -> None:
        """Read the tip of a store that holds at least block 0."""
        self._store = store
        self._signer = signer
        tip = parse(common_pb2.Block, store.read(store.height - 1), "the newest block")
        self.tip_hash = blocks.header_hash(tip.header)
        self.last_config = last_config_of(tip)
        config_block = (
            tip
            if self.last_config == tip.header.number
            else parse(common_pb2.Block, store.read(self.last_config), "the configuration block")
        )
        self.config = ChannelConfig.from_block(config_block)
        found = raft_metadata_of(tip)
        count = len(self.config.orderer.consenters)
        self.raft = found or etcdraft_pb2.BlockMetadata(
            consenter_ids=range(1, count + 1), next_consenter_id=count + 1
        )

    @property
    def height(self) -> int:
        """How many blocks there are."""
        return self._store.height

    def write(self, raft_index: int, entry: bytes, *, want_digests: bool) -> Written | None:
        """Append the block of a committed entry; None if the store has it already.

        Raises BlockRefused if it does not follow the tip.
        """
        block = parse(common_pb2.Block, entry, "the committed block")
        header = block.header
        if header.number < self._store.height:
            return None  # caught up from another orderer before the entry came
        self._check_follows(header)
        envelopes = block.data.data
        config = self._config_after(block)
        change = None
        if config is not None:
            change = self._membership_after(config, header.number)
            self.raft = change.metadata
            self.config = config
            self.last_config = header.number
        self.raft.raft_index = raft_index
        body = entry
        if block.HasField("metadata"):
            if entry.endswith(_EMPTY_METADATA):
                body = entry[: -len(_EMPTY_METADATA)]
            else:
                block.ClearField("metadata")
                body = block.SerializeToString()
        self._store.append(header.number, body + self._metadata(header))
        self.tip_hash = blocks.header_hash(header)
        digests = [hashlib.sha256(one).digest() for one in envelopes] if want_digests else ()
        return Written(header.number, raft_index, len(envelopes), digests, config, change)

    def _check_follows(self, header: common_pb2.BlockHeader) -> None:
        if header.number != self._store.height:
            raise BlockRefused(
                f"block {header.number} cannot follow block {self._store.height - 1}: blocks"
                " between them are missing"
            )
        if header.previous_hash != self.tip_hash:
            raise BlockRefused(
                f"block {header.number} names another block {header.number - 1} than ours as its"
                " predecessor: this orderer's chain has forked from the others'"
            )

    def _metadata(self, header: common_pb2.BlockHeader) -> bytes:
        last_config = common_pb2.LastConfig(index=self.last_config)
        value = common_pb2.OrdererBlockMetadata(
            last_config=last_config,
            consenter_metadata=common_pb2.Metadata(
                value=self.raft.SerializeToString()
            ).SerializeToString(),
        ).SerializeToString()
        signature_header = common_pb2.SignatureHeader(
            creator=self._signer.serialized, nonce=os.urandom(NONCE_BYTES)
        ).SerializeToString()
        signature = self._signer.sign(value + signature_header + blocks.header_bytes(header))
        slots = [b""] * blocks.METADATA_SLOTS
        slots[blocks.SIGNATURES] = common_pb2.Metadata(
            value=value,
            signatures=[
                common_pb2.MetadataSignature(signature_header=signature_header, signature=signature)
            ],
        ).SerializeToString()
        slots[blocks.LAST_CONFIG] = common_pb2.Metadata(
            value=last_config.SerializeToString()
        ).SerializeToString()
        return common_pb2.Block(
            metadata=common_pb2.BlockMetadata(metadata=slots)
        ).SerializeToString()

    def append_pulled(self, raw: bytes, *, want_digests: bool) -> Written:
        """Append a block fetched from another orderer, as it is; raises BlockRefused.

        Checked as a peer would: it follows the tip, its data hash holds, and its signature
        satisfies /Channel/Orderer/BlockValidation of the configuration before it.
        """
        block = parse(common_pb2.Block, raw, "the fetched block")
        self._check_follows(block.header)
        number = block.header.number
        if blocks.data_hash(block.data.data) != block.header.data_hash:
            raise BlockRefused(f"the data of fetched block {number} does not have its data hash")
        if len(block.metadata.metadata) <= blocks.LAST_CONFIG:
            raise BlockRefused(f"fetched block {number} has no signatures")
        self._check_signature(block)
        metadata = raft_metadata_of(block)
        if metadata is None:
            raise BlockRefused(f"fetched block {number} has no etcdraft metadata")
        config = self._config_after(block)
        self._store.append(number, raw)
        if config is not None:
            self.config = config
            self.last_config = number
        self.raft = metadata
        self.tip_hash = blocks.header_hash(block.header)
        digests = [hashlib.sha256(one).digest() for one in block.data.data] if want_digests else ()
        return Written(number, metadata.raft_index, len(block.data.data), digests, config)

    def _config_after(self, block: common_pb2.Block) -> ChannelConfig | None:
        """The configuration that a block brings, or None for a block of transactions."""
        if len(block.data.data) != 1:
            return None
        if header_type(block.data.data[0]) != common_pb2.CONFIG:
            return None
        try:
            return self.config.validate(config_of_block(block)[1])
        except ConfigError as error:
            raise BlockRefused(
                f"the configuration in block {block.header.number} cannot follow: {error}"
            ) from None

    def _membership_after(self, config: ChannelConfig, number: int) -> MembershipChange:
        before, after = self.config.orderer.consenters, config.orderer.consenters
        try:
            return membership_change(self.raft, before, after)
        except ConfigError as error:
            raise BlockRefused(f"the consenters in block {number} cannot follow: {error}") from None

    def _check_signature(self, block: common_pb2.Block) -> None:
        slot = parse(
            common_pb2.Metadata,
            block.metadata.metadata[blocks.SIGNATURES],
            "the block's signatures",
        )
        header = blocks.header_bytes(block.header)
        signed = []
        for one in slot.signatures:
            creator = parse(
                common_pb2.SignatureHeader, one.signature_header, "the orderer's signature header"
            ).creator
            data = slot.value + one.signature_header + header
            signed.append(SignedData(data, creator, one.signature))
        signers = verified_signers(self.config.msps, signed)
        if not self.config.policy("/Channel/Orderer/BlockValidation").satisfied_by(signers):
            raise BlockRefused(
                f"block {block.header.number} is not signed by an orderer of channel"
                f" {self.config.channel_id}"
            )
