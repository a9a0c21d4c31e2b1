"""Envelopes: what was signed stays as it arrived, and what can't be read says which part."""

from dataclasses import dataclass

import pytest

from consortium.wire import common_pb2
from consortium.wire.envelopes import (
    WireError,
    channel_header,
    open_envelope,
    parse,
    signed_envelope,
    timestamp,
    transaction_id,
)
from tests.consortium.ledger.recorded import HEIGHT, expected, ordered_block


@dataclass
class PlainSigner:
    """Signs by putting a mark in front."""

    serialized: bytes = b"somebody"

    def sign(self, message: bytes) -> bytes:
        return b"signed:" + message


def test_transaction_ids_of_the_recorded_chain() -> None:
    """Every well-formed transaction's id is the hash of its nonce and creator."""
    seen = 0
    for number in range(HEIGHT):
        block = ordered_block(number)
        for raw, known in zip(block.data.data, expected()["blocks"][number]["txs"], strict=True):
            try:
                opened = open_envelope(raw)
            except WireError:
                assert known["code"] != 0
                continue
            assert opened.raw == raw
            if known["code"] != 0 or opened.channel_header.type != common_pb2.ENDORSER_TRANSACTION:
                continue
            header = opened.signature_header
            assert opened.channel_header.tx_id == known["txid"]
            assert transaction_id(header.nonce, header.creator) == known["txid"]
            seen += 1
    assert seen > 80


def test_a_signed_envelope_opens_to_what_was_put_in() -> None:
    header = channel_header(
        common_pb2.MESSAGE, "street", "tx", extension=b"ext", timestamp_ns=1_500_000_000
    )
    envelope = signed_envelope(PlainSigner(), header, b"data", nonce=b"n" * 24)
    opened = open_envelope(envelope.SerializeToString())
    assert opened.channel_header == header
    assert (opened.channel_header.timestamp.seconds, opened.channel_header.timestamp.nanos) == (
        1,
        500_000_000,
    )
    assert opened.signature_header.creator == b"somebody"
    assert opened.signature_header.nonce == b"n" * 24
    assert opened.payload.data == b"data"
    assert opened.envelope.signature == b"signed:" + opened.envelope.payload


def test_nonces_are_new_each_time() -> None:
    header = channel_header(common_pb2.MESSAGE, "street")
    nonces = {
        open_envelope(
            signed_envelope(PlainSigner(), header, b"").SerializeToString()
        ).signature_header.nonce
        for _ in range(3)
    }
    assert len(nonces) == 3
    assert {len(nonce) for nonce in nonces} == {24}


def test_times_before_the_epoch_have_positive_nanoseconds() -> None:
    assert (timestamp(-1).seconds, timestamp(-1).nanos) == (-1, 999_999_999)


BROKEN = b"\xff\xff"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "the envelope has no payload"),
        (BROKEN, "the envelope is not a valid common.Envelope"),
        (
            common_pb2.Envelope(payload=BROKEN).SerializeToString(),
            "the envelope's payload is not a valid common.Payload",
        ),
        (
            common_pb2.Envelope(
                payload=common_pb2.Payload(
                    header=common_pb2.Header(channel_header=BROKEN)
                ).SerializeToString()
            ).SerializeToString(),
            "the channel header is not a valid common.ChannelHeader",
        ),
        (
            common_pb2.Envelope(
                payload=common_pb2.Payload(
                    header=common_pb2.Header(signature_header=BROKEN)
                ).SerializeToString()
            ).SerializeToString(),
            "the signature header is not a valid common.SignatureHeader",
        ),
    ],
)
def test_the_broken_part_is_named(raw: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        open_envelope(raw)


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(WireError, match="the header is not a valid"):
        parse(common_pb2.ChannelHeader, b"\x22\x01\xff", "the header")
