"""Fabric's block: how it is put together, hashed and signed.

Source: hyperledger/fabric `protoutil/blockutils.go` (facts only).
"""

import hashlib
from collections.abc import Iterable

from . import common_pb2

# Slots of `BlockMetadata.metadata`. `ORDERER` is unused since Fabric 1.4 but keeps its place.
SIGNATURES, LAST_CONFIG, TRANSACTIONS_FILTER, ORDERER, COMMIT_HASH = range(5)
METADATA_SLOTS = 5


def _der_length(length: int) -> bytes:
    if length < 0x80:
        return bytes((length,))
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((0x80 | len(octets),)) + octets


def _der(tag: int, content: bytes) -> bytes:
    return bytes((tag,)) + _der_length(len(content)) + content


def header_bytes(header: common_pb2.BlockHeader) -> bytes:
    """DER SEQUENCE{INTEGER number, OCTET STRING previous hash, OCTET STRING data hash}.

    These are the bytes that the block's hash and the orderers' signatures cover.
    """
    number = header.number
    integer = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return _der(
        0x30,
        _der(0x02, integer) + _der(0x04, header.previous_hash) + _der(0x04, header.data_hash),
    )


def header_hash(header: common_pb2.BlockHeader) -> bytes:
    """SHA-256 of `header_bytes`; the next block's `previous_hash`."""
    return hashlib.sha256(header_bytes(header)).digest()


def data_hash(envelopes: Iterable[bytes]) -> bytes:
    """SHA-256 of the envelopes joined without separators."""
    digest = hashlib.sha256()
    for envelope in envelopes:
        digest.update(envelope)
    return digest.digest()


def new_block(number: int, previous_hash: bytes, envelopes: list[bytes]) -> common_pb2.Block:
    """A block with header and data filled in and its metadata slots empty."""
    return common_pb2.Block(
        header=common_pb2.BlockHeader(
            number=number, previous_hash=previous_hash, data_hash=data_hash(envelopes)
        ),
        data=common_pb2.BlockData(data=envelopes),
        metadata=common_pb2.BlockMetadata(metadata=[b""] * METADATA_SLOTS),
    )
