"""Large messages that are put together from bytes: the same as protobuf would write them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import pytest

from consortium.orderer.admission import Admitted
from consortium.orderer.blockwriter import proposal
from consortium.orderer.cluster import ChannelTransport, Cluster
from consortium.wire import blocks, common_pb2, orderer_pb2
from consortium.wire import raftpb_pb2 as raftpb
from consortium.wire.envelopes import field_prefix, varint


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**32, 2**64 - 1])
def test_numbers_are_protobufs(number: int) -> None:
    assert b"\x08" + varint(number) == orderer_pb2.SeekSpecified(
        number=number
    ).SerializeToString() or (number == 0)
    size = number % 100_000
    envelope = common_pb2.Envelope(signature=bytes(size))
    if size:
        assert field_prefix(2, size) + bytes(size) == envelope.SerializeToString()


@pytest.mark.parametrize("sizes", [[1], [0, 1, 127], [128, 20_000, 3]])
def test_a_proposed_block_is_the_block(sizes: list[int]) -> None:
    envelopes = [os.urandom(size) for size in sizes]
    previous = os.urandom(32)
    data, digest = proposal(77, previous, envelopes)
    block = blocks.new_block(77, previous, envelopes)
    assert data == block.SerializeToString()
    assert digest == blocks.header_hash(block.header)


@contextmanager
def sent_by(channel_id: str) -> Iterator[tuple[ChannelTransport, list[bytes]]]:
    """A channel's transport, and what it gives to its streams."""
    sent: list[bytes] = []

    def put(data: bytes) -> bool:
        sent.append(data)
        return True

    stream = SimpleNamespace(connected=True, put=put)
    remote = SimpleNamespace(consensus=stream, submit=stream)
    cluster = SimpleNamespace(remote=lambda *_: remote, may_speak=lambda *_: True)
    yield ChannelTransport(cast("Cluster", cluster), channel_id), sent


def test_a_raft_message_is_framed_as_a_step_request() -> None:
    message = raftpb.Message(
        type=raftpb.MsgApp, to=2, term=7, entries=[raftpb.Entry(Index=1, Data=os.urandom(300))]
    )
    with sent_by("region-1") as (transport, sent):
        assert transport.send(2, message)
    request = orderer_pb2.StepRequest.FromString(sent[0])
    assert request.consensus_request.channel == "region-1"
    assert request.consensus_request.payload == message.SerializeToString()
    assert request.SerializeToString() == sent[0]


def test_an_envelope_is_framed_as_a_step_request() -> None:
    envelope = common_pb2.Envelope(payload=os.urandom(500), signature=os.urandom(70))
    raw = envelope.SerializeToString()
    with sent_by("region-1") as (transport, sent):
        assert transport.forward(2, Admitted(raw, len(raw), sequence=300))
    request = orderer_pb2.StepRequest.FromString(sent[0])
    assert request.submit_request.channel == "region-1"
    assert request.submit_request.last_validation_seq == 300
    assert request.submit_request.payload == envelope
    assert request.SerializeToString() == sent[0]
