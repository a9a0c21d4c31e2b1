"""Signed envelopes: building them, and opening them without ever serializing them again.

What was signed is kept as the bytes that arrived; the parsed message travels beside them.
"""

import hashlib
import os
import time
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError, Message

from . import common_pb2
from .timestamp_pb2 import Timestamp

NONCE_BYTES = 24


class WireError(ValueError):
    """Bytes that are not the message they should be."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class EnvelopeSigner(Protocol):
    """Whoever can sign: a certificate with its private key."""

    @property
    def serialized(self) -> bytes:
        """The `msp.SerializedIdentity`, as bytes."""

    def sign(self, message: bytes) -> bytes:
        """An ECDSA signature over SHA-256 of `message`, DER, low S."""


@dataclass(frozen=True, slots=True)
class OpenedEnvelope:
    """An envelope parsed down to its headers, next to the bytes it came from."""

    raw: bytes
    envelope: common_pb2.Envelope
    payload: common_pb2.Payload
    channel_header: common_pb2.ChannelHeader
    signature_header: common_pb2.SignatureHeader


def parse[M: Message](message_type: type[M], data: bytes, what: str) -> M:
    """Parse `data`; raises WireError naming `what` it should have been."""
    try:
        return message_type.FromString(data)
    except DecodeError as error:
        name = message_type.DESCRIPTOR.full_name
        raise WireError(f"{what} is not a valid {name}: {error}") from None


def brief(text: str, limit: int = 100) -> str:
    """A name that somebody sent, quoted for a sentence and cut: nobody is sent megabytes back."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}… ({len(text)} characters)"


def shortened(sentence: str, limit: int = 1000) -> str:
    """A sentence with names in it that others chose, without its middle where it gets too long."""
    if len(sentence) <= limit:
        return sentence
    return f"{sentence[: limit // 2]} … {sentence[-limit // 2 :]}"


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def field_prefix(number: int, length: int) -> bytes:
    """What protobuf writes before `length` bytes of field `number` (a string, bytes, a message).

    For putting together a large message from bytes that are there already: setting them in a
    message object, and serializing that, copies them at every level.
    """
    return varint(number << 3 | 2) + varint(length)


def transaction_id(nonce: bytes, creator: bytes) -> str:
    """Fabric's transaction id: hex SHA-256 of the nonce followed by the creator."""
    return hashlib.sha256(nonce + creator).hexdigest()


def timestamp(nanoseconds: int) -> Timestamp:
    """A protobuf timestamp of nanoseconds since the epoch (UTC)."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def channel_header(
    header_type: int,
    channel_id: str,
    tx_id: str = "",
    *,
    extension: bytes = b"",
    timestamp_ns: int | None = None,
    tls_cert_hash: bytes = b"",
) -> common_pb2.ChannelHeader:
    """A channel header of the given `common.HeaderType`, stamped with the present time."""
    return common_pb2.ChannelHeader(
        type=header_type,
        channel_id=channel_id,
        tx_id=tx_id,
        extension=extension,
        timestamp=timestamp(time.time_ns() if timestamp_ns is None else timestamp_ns),
        tls_cert_hash=tls_cert_hash,
    )


def signed_envelope(
    signer: EnvelopeSigner,
    header: common_pb2.ChannelHeader,
    data: bytes,
    *,
    nonce: bytes | None = None,
) -> common_pb2.Envelope:
    """Wrap `data` under `header` and sign it; the nonce is random unless given."""
    payload = common_pb2.Payload(
        header=common_pb2.Header(
            channel_header=header.SerializeToString(),
            signature_header=common_pb2.SignatureHeader(
                creator=signer.serialized,
                nonce=os.urandom(NONCE_BYTES) if nonce is None else nonce,
            ).SerializeToString(),
        ),
        data=data,
    ).SerializeToString()
    return common_pb2.Envelope(payload=payload, signature=signer.sign(payload))


def open_envelope(raw: bytes) -> OpenedEnvelope:
    """Parse an envelope and its two headers; raises WireError naming the part that is broken."""
    envelope = parse(common_pb2.Envelope, raw, "the envelope")
    if not envelope.payload:
        raise WireError("the envelope has no payload")
    payload = parse(common_pb2.Payload, envelope.payload, "the envelope's payload")
    return OpenedEnvelope(
        raw=raw,
        envelope=envelope,
        payload=payload,
        channel_header=parse(
            common_pb2.ChannelHeader, payload.header.channel_header, "the channel header"
        ),
        signature_header=parse(
            common_pb2.SignatureHeader, payload.header.signature_header, "the signature header"
        ),
    )
