"""That a channel can go on after a change of its configuration, however many have signed it.

Fabric takes each of these, and then no block comes any more that a peer would commit, or no update
that could take the mistake back. Nothing is refused here that a channel could live with.
"""

from consortium.identity.msp import IdentityError
from consortium.identity.policies import PolicyNotFound
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.config_update import ConfigError, open_update, update_signatures
from consortium.ledger.validator import BLOCK_VALIDATION_POLICY
from consortium.wire import common_pb2, services
from consortium.wire.envelopes import WireError, parse

WRITERS = "/Channel/Writers"

LARGEST_ENVELOPE_BYTES = services.MESSAGE_LIMIT_BYTES - 1024 * 1024
"""With a block around it, and that in a message between nodes."""
LARGEST_BATCH_BYTES = services.MESSAGE_LIMIT_BYTES // 16 * 15
"""Envelopes of a block together; none is so small that its frame were a sixteenth of it."""


def check_limits(old: ChannelConfig, new: ChannelConfig, size: int) -> None:
    """Check the sizes that a change allows; raises ConfigError.

    `size` is that of the transaction that makes the change.
    """
    limits, before = new.orderer, old.orderer
    if limits.absolute_max_bytes < 2 * size:
        raise ConfigError(
            f"AbsoluteMaxBytes would be {limits.absolute_max_bytes}, and this configuration alone"
            f" has {size} bytes as a transaction: soon none would fit that changes it again. Set"
            f" it to {2 * size} at least"
        )
    for name, value, was, most in (
        (
            "AbsoluteMaxBytes",
            limits.absolute_max_bytes,
            before.absolute_max_bytes,
            LARGEST_ENVELOPE_BYTES,
        ),
        (
            "PreferredMaxBytes",
            limits.preferred_max_bytes,
            before.preferred_max_bytes,
            LARGEST_BATCH_BYTES,
        ),
    ):
        if value > most and value != was:
            raise ConfigError(
                f"{name} would be {value}, and a block of that size is larger than any message"
                f" between nodes; {most} is the most"
            )


def check_reachable(old: ChannelConfig, new: ChannelConfig, update: common_pb2.Envelope) -> None:
    """Check that blocks can be fetched and further updates sent; raises ConfigError.

    `update` is the envelope that asks for the change.
    """
    if any(old.orderer.endpoints.values()) and not any(new.orderer.endpoints.values()):
        raise ConfigError("no orderer's address would be left, so that no peer could find one")
    try:
        writers = new.policy(WRITERS)
        payload = parse(common_pb2.Payload, update.payload, "the update's payload")
        header = parse(
            common_pb2.SignatureHeader, payload.header.signature_header, "its signature header"
        )
        signers = [one.identity for one in update_signatures(open_update(update))]
    except PolicyNotFound as error:
        raise ConfigError(f"nobody could send anything any more: {error}") from None
    except WireError as error:
        raise ConfigError(str(error)) from None
    for serialized in (header.creator, *signers):
        try:
            if writers.satisfied_by([new.msps.deserialize(serialized)]):
                return
        except IdentityError:
            continue  # of an organization that leaves
    raise ConfigError(
        f"nobody who agreed to this update would satisfy {WRITERS} any more, so that it could not"
        " be taken back"
    )


def check_signer(new: ChannelConfig, signer: Signer) -> None:
    """Check that peers would take the blocks of the orderer that `signer` is; raises ConfigError.

    Of one that stops ordering with this change it is not asked.
    """
    try:
        policy = new.policy(BLOCK_VALIDATION_POLICY)
    except PolicyNotFound as error:
        raise ConfigError(f"no peer could check blocks any more: {error}") from None
    if signer.msp_id not in new.orderer.organizations:
        return
    try:
        if policy.satisfied_by([new.msps.deserialize(signer.serialized)]):
            return
        why = f"they would not satisfy {BLOCK_VALIDATION_POLICY}"
    except IdentityError as error:
        why = str(error)
    raise ConfigError(f"peers would refuse the blocks that this orderer signs: {why}")
