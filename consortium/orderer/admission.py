"""What may be ordered and who may read: the checks at the orderer's edge.

Fabric's rules and their order (hyperledger/fabric `orderer/common/msgprocessor`): not empty, not
larger than AbsoluteMaxBytes, the creator's certificate not expired, the creator's signature under
/Channel/Writers. One `Admission` belongs to one configuration of a channel; with the next
configuration comes the next one, and what it remembered about creators goes with the old one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from consortium.identity.msp import Identity, IdentityError
from consortium.identity.policies import Policy, PolicyNotFound
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.config_update import ConfigError
from consortium.wire import common_pb2, msp_pb2
from consortium.wire.envelopes import (
    OpenedEnvelope,
    WireError,
    channel_header,
    open_envelope,
    parse,
    signed_envelope,
)

from .membership import check_consenters

CREATORS_REMEMBERED = 10_000
"""Identities whose standing is kept for each configuration."""

CREATOR_BYTES = 8 * 1024
"""Longer serialized identities are looked into anew each time."""

TIME_WINDOW_S = 15 * 60
"""How far a Deliver request's timestamp may be from this node's clock (Fabric's default)."""

WRITERS = "/Channel/Writers"
READERS = "/Channel/Readers"

_NO_ORDERING: dict[int, str] = {
    common_pb2.CONFIG: "configuration transactions are made by the orderer: send the CONFIG_UPDATE",
    common_pb2.ORDERER_TRANSACTION: "the system channel is not supported",
}


class Refused(Exception):
    """A request that is answered with a status other than SUCCESS."""

    def __init__(self, status: int, info: str) -> None:
        """`status` is a common.Status, `info` a sentence for the caller."""
        super().__init__(info)
        self.status = status
        self.info = info


@dataclass(frozen=True, slots=True)
class Admitted:
    """An envelope that may be ordered under the configuration of `sequence`."""

    raw: bytes
    size_bytes: int
    sequence: int
    is_config: bool = False
    utility: str = ""
    """MSP id of its creator; empty for a configuration transaction, which an orderer makes."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """Who a creator is, until when (s since 1970), and why a policy refuses it (empty: it doesn't).

    The signature is still to be checked: before that, nobody is told more.
    """

    identity: Identity | None
    expires: float
    refusal: str


class Admission:
    """The checks under one configuration of a channel. Safe to use from several threads."""

    def __init__(self, config: ChannelConfig, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970 (UTC)."""
        self.config = config
        self.sequence = config.sequence
        self._clock = clock
        self._standing = lru_cache(maxsize=CREATORS_REMEMBERED)(self._find_standing)

    def check(self, envelope: OpenedEnvelope) -> Admitted:
        """Admit an envelope for ordering or raise Refused.

        A CONFIG_UPDATE passes these checks too, then `config_transaction` takes its place.
        """
        size = len(envelope.envelope.payload) + len(envelope.envelope.signature)
        limit = self.config.orderer.absolute_max_bytes
        if size > limit:
            raise Refused(
                common_pb2.BAD_REQUEST,
                f"the envelope has {size} bytes and the channel's limit (AbsoluteMaxBytes) is"
                f" {limit}; send smaller transactions",
            )
        problem = _NO_ORDERING.get(envelope.channel_header.type)
        if problem is not None:
            raise Refused(common_pb2.BAD_REQUEST, problem)
        if self.config.orderer.in_maintenance and (
            envelope.channel_header.type != common_pb2.CONFIG_UPDATE
        ):
            raise Refused(
                common_pb2.SERVICE_UNAVAILABLE,
                f"channel {self.config.channel_id} is in maintenance; only configuration updates"
                " are taken",
            )
        utility = self._check_signed(envelope, WRITERS)
        return Admitted(envelope.raw, size, self.sequence, utility=utility)

    def config_transaction(self, update: OpenedEnvelope, signer: Signer) -> Admitted:
        """The CONFIG transaction that an admitted CONFIG_UPDATE leads to; raises Refused."""
        config = self.config
        try:
            proposed = config.propose_update(update.envelope)
            successor = config.validate(proposed)
        except ConfigError as error:
            raise Refused(common_pb2.BAD_REQUEST, f"configuration update: {error}") from None
        if successor.orderer.consensus_type != config.orderer.consensus_type:
            raise Refused(
                common_pb2.BAD_REQUEST, "configuration update: only etcdraft can order here"
            )
        try:
            check_consenters(config, successor, self._clock())
        except ConfigError as error:
            raise Refused(common_pb2.BAD_REQUEST, f"configuration update: {error}") from None
        envelope = signed_envelope(
            signer,
            channel_header(common_pb2.CONFIG, config.channel_id),
            proposed.SerializeToString(),
        )
        size = len(envelope.payload) + len(envelope.signature)
        if size > config.orderer.absolute_max_bytes:
            raise Refused(
                common_pb2.BAD_REQUEST,
                f"the new configuration has {size} bytes, more than the channel's limit"
                f" (AbsoluteMaxBytes) of {config.orderer.absolute_max_bytes}",
            )
        return Admitted(envelope.SerializeToString(), size, self.sequence, is_config=True)

    def check_reader(self, envelope: OpenedEnvelope) -> None:
        """Check that a Deliver request's creator may read the channel; raises Refused."""
        self._check_signed(envelope, READERS)

    def _check_signed(self, envelope: OpenedEnvelope, policy: str) -> str:
        """Return the creator's MSP id; raises Refused."""
        creator = envelope.signature_header.creator
        # Anyone may send one: ten thousand of a message's size must not stay in memory.
        find = self._standing if len(creator) <= CREATOR_BYTES else self._find_standing
        standing = find(creator, policy)
        identity = standing.identity
        if identity is None:
            raise Refused(common_pb2.FORBIDDEN, standing.refusal)
        if self._clock() > standing.expires:
            raise Refused(
                common_pb2.BAD_REQUEST,
                f"the certificate of {identity.common_name} ({identity.msp_id}) has expired;"
                " enrol it again",
            )
        if not identity.verify(envelope.envelope.signature, envelope.envelope.payload):
            raise Refused(
                common_pb2.FORBIDDEN,
                f"the signature is not one of {identity.common_name} ({identity.msp_id}) over the"
                " payload (ECDSA over SHA-256, low S)",
            )
        if standing.refusal:
            raise Refused(common_pb2.FORBIDDEN, standing.refusal)
        return identity.msp_id

    def _find_standing(self, creator: bytes, policy: str) -> _Standing:
        try:
            identity = self.config.msps.deserialize(creator)
            rule: Policy = self.config.policy(policy)
        except (IdentityError, PolicyNotFound) as error:
            return _Standing(None, 0.0, f"access denied: {error}")
        refusal = ""
        if identity.problem is not None:
            refusal = f"access denied: {identity.problem}"
        elif not rule.satisfied_by([identity]):
            refusal = (
                f"access denied: {identity.common_name} ({identity.msp_id}) does not satisfy"
                f" {policy} of channel {self.config.channel_id}"
            )
        expires = identity.certificate.not_valid_after_utc.timestamp()
        return _Standing(identity, expires, refusal)


def opened(raw: bytes) -> OpenedEnvelope:
    """Parse an envelope and check its form; raises Refused (BAD_REQUEST).

    It must re-marshal to the bytes that arrived: else two different lists of envelopes could have
    one data hash (hyperledger/fabric `protoutil/blockutils.go`).
    """
    if not raw:
        raise Refused(common_pb2.BAD_REQUEST, "the envelope is empty")
    try:
        envelope = open_envelope(raw)
    except WireError as error:
        raise Refused(common_pb2.BAD_REQUEST, str(error)) from None
    if envelope.envelope.SerializeToString() != raw:
        raise Refused(
            common_pb2.BAD_REQUEST,
            "the envelope does not marshal to the bytes that were sent; write payload and signature"
            " once, in this order",
        )
    if not envelope.channel_header.channel_id:
        raise Refused(common_pb2.BAD_REQUEST, "the channel header names no channel")
    return envelope


@lru_cache(maxsize=CREATORS_REMEMBERED)
def _utility_of(creator: bytes) -> str:
    try:
        return parse(msp_pb2.SerializedIdentity, creator, "the creator").mspid
    except WireError:
        return ""


def utility_of(signature_header: bytes) -> str:
    """MSP id that an envelope's signature header names, unchecked; empty if it names none."""
    try:
        creator = parse(common_pb2.SignatureHeader, signature_header, "the header").creator
    except WireError:
        return ""
    return _utility_of(creator) if len(creator) <= CREATOR_BYTES else ""


def check_timestamp(envelope: OpenedEnvelope, now: float) -> None:
    """Check that a Deliver request was made about now (s since 1970); raises Refused."""
    header = envelope.channel_header
    if not header.HasField("timestamp"):
        raise Refused(common_pb2.BAD_REQUEST, "the channel header has no timestamp")
    made = header.timestamp.seconds + header.timestamp.nanos / 1e9
    if abs(now - made) > TIME_WINDOW_S:
        raise Refused(
            common_pb2.BAD_REQUEST,
            f"the request's timestamp is {now - made:.0f} s from this orderer's clock, more than"
            f" {TIME_WINDOW_S} s; set the clocks",
        )
