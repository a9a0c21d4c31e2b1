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

from .continuity import WRITERS, check_limits, check_reachable, check_signer
from .membership import check_consenters

CREATORS_REMEMBERED = 10_000
"""Identities whose standing is kept for each configuration."""

CREATOR_BYTES = 8 * 1024
"""Longer serialized identities are looked into anew each time."""

TIME_WINDOW_S = 15 * 60
"""How far a Deliver request's timestamp may be from this node's clock (Fabric's default)."""

_FRAMING_BYTES = 12
"""What protobuf puts before an envelope's payload and signature, at most, as these are limited."""

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
        size = self._checked_size(envelope.envelope, "send smaller transactions")
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

    def check_forwarded(self, raw: bytes, sequence: int) -> Admitted:
        """Take what another consenter has admitted under its configuration `sequence`.

        Consenters trust one another, but a block is for ever: what no peer could commit, or no
        orderer write, must not get into one, whoever sends it. Signatures count for nothing here,
        since each peer checks them. Raises Refused.
        """
        envelope = opened(raw)
        size = self._checked_size(envelope.envelope, "send smaller transactions")
        header = envelope.channel_header
        if header.channel_id != self.config.channel_id:
            raise Refused(common_pb2.BAD_REQUEST, "the envelope is another channel's")
        if not envelope.envelope.signature:
            raise Refused(common_pb2.BAD_REQUEST, "the envelope has no signature")
        is_config = header.type == common_pb2.CONFIG
        if is_config and sequence > self.sequence:
            raise Refused(
                common_pb2.SERVICE_UNAVAILABLE,
                f"the leader is still at configuration {self.sequence}; try again in a moment",
            )
        if is_config and sequence == self.sequence:
            try:
                proposed = parse(common_pb2.ConfigEnvelope, envelope.payload.data, "its content")
                self._check_change(proposed, size)
            except (WireError, ConfigError) as error:
                raise Refused(common_pb2.BAD_REQUEST, f"configuration: {error}") from None
        return Admitted(
            raw,
            size,
            # What a later configuration than ours admitted is checked again under that one.
            min(sequence, self.sequence),
            is_config=is_config,
            utility=_utility_of(envelope.signature_header.creator),
        )

    def _checked_size(self, envelope: common_pb2.Envelope, advice: str) -> int:
        """What counts of an envelope, in bytes; raises Refused where the channel has less room."""
        size = _counted_bytes(envelope)
        limit = self.config.orderer.absolute_max_bytes
        if size > limit:
            raise Refused(
                common_pb2.BAD_REQUEST,
                f"the envelope has {size} bytes and the channel's limit (AbsoluteMaxBytes) is"
                f" {limit}; {advice}",
            )
        return size

    def config_transaction(self, update: OpenedEnvelope, signer: Signer) -> Admitted:
        """The CONFIG transaction that an admitted CONFIG_UPDATE leads to; raises Refused."""
        config = self.config
        try:
            proposed = config.propose_update(update.envelope)
            envelope = signed_envelope(
                signer,
                channel_header(common_pb2.CONFIG, config.channel_id),
                proposed.SerializeToString(),
            )
            size = self._checked_size(envelope, "the new configuration is too large")
            successor = self._check_change(proposed, size)
            check_signer(successor, signer)
        except ConfigError as error:
            raise Refused(common_pb2.BAD_REQUEST, f"configuration update: {error}") from None
        return Admitted(envelope.SerializeToString(), size, self.sequence, is_config=True)

    def _check_change(self, proposed: common_pb2.ConfigEnvelope, size: int) -> ChannelConfig:
        """Check that a configuration can follow this one and be changed again; raises ConfigError.

        `size` is that of its transaction.
        """
        successor = self.config.validate(proposed)
        if successor.orderer.consensus_type != self.config.orderer.consensus_type:
            raise ConfigError("only etcdraft can order here")
        check_consenters(self.config, successor, self._clock())
        check_limits(self.config, successor, size)
        check_reachable(self.config, successor, proposed.last_update)
        return successor

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
    one data hash (hyperledger/fabric `protoutil/blockutils.go`). Nothing may stand in it beside
    payload and signature, which are all that counts where blocks are cut: a block could become
    larger than any message.
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
    beside = len(raw) - _counted_bytes(envelope.envelope)
    if beside > _FRAMING_BYTES:
        raise Refused(
            common_pb2.BAD_REQUEST,
            f"the envelope holds {beside} bytes beside payload and signature; leave out"
            " fields that an envelope does not have",
        )
    if not envelope.channel_header.channel_id:
        raise Refused(common_pb2.BAD_REQUEST, "the channel header names no channel")
    return envelope


def _counted_bytes(envelope: common_pb2.Envelope) -> int:
    """Its size as limits and blocks count it."""
    return len(envelope.payload) + len(envelope.signature)


def _utility_of(creator: bytes) -> str:
    """MSP id that an identity names, unchecked; empty if it names none."""
    return _named_by(creator) if len(creator) <= CREATOR_BYTES else ""


@lru_cache(maxsize=CREATORS_REMEMBERED)
def _named_by(creator: bytes) -> str:
    try:
        return parse(msp_pb2.SerializedIdentity, creator, "the creator").mspid
    except WireError:
        return ""


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
