"""Blocks are Fabric's to the byte: every vector is a block that a real network ordered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.wire import common_pb2
from consortium.wire.blocks import (
    METADATA_SLOTS,
    data_hash,
    header_bytes,
    header_hash,
    new_block,
)
from tests.consortium.ledger.recorded import HEIGHT, expected, ordered_block


@pytest.mark.parametrize("number", range(HEIGHT))
def test_hashes_are_those_of_the_recorded_chain(number: int) -> None:
    block, known = ordered_block(number), expected()["blocks"][number]
    assert header_hash(block.header).hex() == known["hash"]
    assert block.header.previous_hash.hex() == known["previous_hash"]
    assert data_hash(block.data.data).hex() == known["data_hash"]
    if number:
        assert block.header.previous_hash == header_hash(ordered_block(number - 1).header)


@pytest.mark.parametrize("number", [0, 9, 70])
def test_a_block_built_here_is_the_one_that_was_ordered(number: int) -> None:
    ordered = ordered_block(number)
    built = new_block(number, ordered.header.previous_hash, list(ordered.data.data))
    assert built.header == ordered.header
    assert built.data == ordered.data
    assert list(built.metadata.metadata) == [b""] * METADATA_SLOTS


@pytest.mark.parametrize(
    ("number", "der"),
    [
        (0, "3008 020100 040101 0400"),
        (127, "3008 02017f 040101 0400"),
        (128, "3009 02020080 040101 0400"),
        (255, "3009 020200ff 040101 0400"),
        (256, "3009 02020100 040101 0400"),
        (2**64 - 1, "3010 020900ffffffffffffffff 040101 0400"),
    ],
)
def test_numbers_are_der_integers(number: int, der: str) -> None:
    """A set top bit would make the number negative: a zero octet comes before it."""
    header = common_pb2.BlockHeader(number=number, previous_hash=b"\x01")
    assert header_bytes(header) == bytes.fromhex(der)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_long_hashes_have_long_form_lengths(previous: bytes, data: bytes) -> None:
    """Whatever a forged header holds, its DER can be read back, so no two headers share bytes."""
    encoded = header_bytes(common_pb2.BlockHeader(previous_hash=previous, data_hash=data))
    rest = _content(encoded, 0x30)
    rest = _skip(rest, 0x02, b"\x00")
    rest = _skip(rest, 0x04, previous)
    assert _skip(rest, 0x04, data) == b""


def _split(encoded: bytes, tag: int) -> tuple[bytes, bytes]:
    assert encoded[0] == tag
    length, start = encoded[1], 2
    if length & 0x80:
        start = 2 + (length & 0x7F)
        length = int.from_bytes(encoded[2:start])
        assert length >= 0x80
    return encoded[start : start + length], encoded[start + length :]


def _content(encoded: bytes, tag: int) -> bytes:
    content, rest = _split(encoded, tag)
    assert rest == b""
    return content


def _skip(encoded: bytes, tag: int, content: bytes) -> bytes:
    found, rest = _split(encoded, tag)
    assert found == content
    return rest
