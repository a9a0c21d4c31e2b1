"""Who the consenters of a channel are, and how one configuration's lead to the next one's.

Fabric's rules (hyperledger/fabric `orderer/consensus/etcdraft/membership.go`): a consenter is known
by its client TLS certificate; one may be added or removed in an update; one added and one removed
together is a rotation of certificates, and the Raft id stays. Ids are handed out by the blocks
themselves (`BlockMetadata`), so every orderer computes the same ones, and none is used twice.

The Raft group follows the configuration: first the block is committed, then the leader proposes
the change of the group (`next_change`). Where all orderers are GridLedger's a newcomer joins as a
learner and votes once it has caught up; Fabric's orderers know neither learners nor joint changes,
so beside them (`beside_fabric`) a newcomer votes at once.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes

from consortium.identity.certificates import CertificateError, load_certificate
from consortium.ledger.channel_config import ChannelConfig, Consenter
from consortium.ledger.config_update import ConfigError
from consortium.raft import Configuration
from consortium.wire import common_pb2, etcdraft_pb2
from consortium.wire import raftpb_pb2 as raftpb

FORCE_KEY = "gridledger.consenters"
"""In a ConfigUpdate's isolated_data: what its signers agree to give up (`FORCE_QUORUM`)."""
FORCE_QUORUM = b"quorum may be lost"


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """What a configuration does to the consenters; empty for most."""

    metadata: etcdraft_pb2.BlockMetadata
    """Ids for the new configuration's consenters, in its order."""
    added: int = 0
    """The Raft id of a new consenter, or 0."""
    removed: int = 0
    rotated: int = 0
    """The Raft id of a consenter that gets other certificates, or 0."""

    @property
    def subject(self) -> int:
        """Whom it is about; 0 if about nobody."""
        return self.added or self.removed or self.rotated


def membership_change(
    metadata: etcdraft_pb2.BlockMetadata, old: Sequence[Consenter], new: Sequence[Consenter]
) -> MembershipChange:
    """Compare the consenters of two configurations; `metadata` has the ids of the old ones.

    Raises ConfigError if more than one of them changes.
    """
    ids = {
        one.client_tls_certificate_pem: raft_id
        for raft_id, one in zip(metadata.consenter_ids, old, strict=True)
    }
    wanted = {one.client_tls_certificate_pem for one in new}
    added = [place for place, one in enumerate(new) if one.client_tls_certificate_pem not in ids]
    removed = [raft_id for certificate, raft_id in ids.items() if certificate not in wanted]
    if len(added) > 1 or len(removed) > 1:
        raise ConfigError(
            "update of more than one consenter at a time is not supported: this one adds"
            f" {len(added)} and removes {len(removed)}. Make one update after the other; a"
            " consenter added and another one removed in the same update is taken for a rotation"
            " of its certificates"
        )
    after = etcdraft_pb2.BlockMetadata(
        consenter_ids=[ids.get(one.client_tls_certificate_pem, 0) for one in new],
        next_consenter_id=metadata.next_consenter_id,
        raft_index=metadata.raft_index,
    )
    if added and removed:
        after.consenter_ids[added[0]] = removed[0]
        return MembershipChange(after, rotated=removed[0])
    if added:
        after.consenter_ids[added[0]] = metadata.next_consenter_id
        after.next_consenter_id += 1
        return MembershipChange(after, added=metadata.next_consenter_id)
    if removed:
        return MembershipChange(after, removed=removed[0])
    return MembershipChange(after)


def check_consenters(old: ChannelConfig, new: ChannelConfig, now: float | None = None) -> None:
    """Check the consenters that an update asks for; raises ConfigError.

    As Fabric does: at least one, no certificate twice, new ones issued under the TLS roots of the
    ordering organizations and not expired (`now` in seconds since 1970).
    """
    consenters = new.orderer.consenters
    if not consenters:
        raise ConfigError("empty consenter set: a channel needs at least one")
    if new.orderer.raft != old.orderer.raft:
        _check_options(new)
    # Raises for more than one change, whatever the ids are.
    count = len(old.orderer.consenters)
    ids = etcdraft_pb2.BlockMetadata(consenter_ids=range(1, count + 1), next_consenter_id=count + 1)
    membership_change(ids, old.orderer.consenters, consenters)
    seen: set[bytes] = set()
    known = set(old.orderer.consenters)
    roots = tls_roots(new)
    for one in consenters:
        where = f"consenter {one.host}:{one.port}"
        own = {one.client_tls_certificate_pem, one.server_tls_certificate_pem}
        if own & seen:
            raise ConfigError(f"duplicate {where}: another one has the same TLS certificate")
        seen |= own
        if one in known:
            # Pinned already, so trusted as it is, also when its root is taken out (Fabric refuses
            # that: there it has to be rotated first).
            continue
        if not one.host or not 0 < one.port < 65_536:
            raise ConfigError(f"{where} has no address that could be called")
        for kind, pem in (
            ("client", one.client_tls_certificate_pem),
            ("server", one.server_tls_certificate_pem),
        ):
            _check_certificate(
                f"{where}: its {kind} TLS certificate",
                pem,
                roots,
                time.time() if now is None else now,
            )


def certificate_hash(pem: bytes) -> bytes:
    """SHA-256 of a certificate's DER."""
    return load_certificate(pem).fingerprint(hashes.SHA256())


def tls_roots(config: ChannelConfig) -> list[bytes]:
    """Issuers (PEM) of the TLS certificates of a channel's ordering organizations."""
    msps = config.msps.msps
    return [
        root
        for msp_id in config.orderer.organizations
        if msp_id in msps
        for root in msps[msp_id].tls_root_certificates
    ]


def _check_options(config: ChannelConfig) -> None:
    options = config.orderer.raft
    if not (options.heartbeat_tick and options.election_tick and options.max_inflight_blocks):
        raise ConfigError(
            f"none of HeartbeatTick ({options.heartbeat_tick}), ElectionTick"
            f" ({options.election_tick}) and MaxInflightBlocks ({options.max_inflight_blocks}) can"
            " be zero"
        )
    if options.election_tick <= options.heartbeat_tick:
        raise ConfigError(
            f"ElectionTick ({options.election_tick}) must be greater than HeartbeatTick"
            f" ({options.heartbeat_tick})"
        )
    if options.tick_interval_s <= 0:
        raise ConfigError("TickInterval cannot be zero")


def _check_certificate(
    what: str, pem: bytes, roots: Iterable[bytes], not_expired_at: float
) -> None:
    try:
        certificate = load_certificate(pem)
    except CertificateError as error:
        raise ConfigError(f"{what} cannot be read: {error}") from None
    until = certificate.not_valid_after_utc
    if until.timestamp() < not_expired_at:
        raise ConfigError(f"{what} has expired on {until.date()}; make a new one")
    for root in roots:
        try:
            certificate.verify_directly_issued_by(load_certificate(root))
        except Exception:  # noqa: S112  any failure says only that it was another one
            continue
        return
    raise ConfigError(
        f"{what} is issued by none of the TLS roots of the ordering organizations; add its"
        " organization to /Channel/Orderer first"
    )


def quorum_loss(
    change: MembershipChange, active: Collection[int], *, beside_fabric: bool
) -> str | None:
    """Say why a change would leave fewer living consenters than decide; None if it would not.

    `active` are the Raft ids heard of lately, the asking leader's among them. Fabric's rule
    (`UnacceptableQuorumLoss`), except that a learner costs no vote.
    """
    count = len(change.metadata.consenter_ids)
    quorum = count // 2 + 1
    living = set(active)
    if change.added:
        if not beside_fabric or count <= 2:
            return None
    elif change.rotated:
        living.discard(change.rotated)
        if count <= 2:
            return None
    elif change.removed:
        living.discard(change.removed)
    else:
        return None
    if len(living) >= quorum:
        return None
    return (
        f"{len(living)} out of {count} nodes would be alive, configuration will result in quorum"
        f" loss: {quorum} have to agree to every block. Start the others first, or force the"
        " change if you know that they come back"
    )


def is_forced(update: common_pb2.Envelope) -> bool:
    """Whether those who signed an update (`ConfigEnvelope.last_update`) agreed to lose a quorum."""
    try:
        payload = common_pb2.Payload.FromString(update.payload)
        signed = common_pb2.ConfigUpdateEnvelope.FromString(payload.data)
        config_update = common_pb2.ConfigUpdate.FromString(signed.config_update)
    except ValueError:
        return False
    return config_update.isolated_data.get(FORCE_KEY) == FORCE_QUORUM


def unfinished(wanted: Collection[int], configuration: Configuration) -> set[int]:
    """Raft ids whose place in the group is not yet what the configuration says."""
    return set(wanted) ^ set(configuration.voters) | set(
        configuration.voters_outgoing | configuration.learners
    ) - (set(wanted) & set(configuration.voters))


def next_change(
    wanted: Collection[int],
    configuration: Configuration,
    caught_up: Mapping[int, bool],
    *,
    beside_fabric: bool,
) -> raftpb.ConfChange | None:
    """The next single step that brings the Raft group nearer to the consenters `wanted`.

    None if there is none to make now: all is as wanted, or a learner still catches up.
    """
    voters, learners = configuration.voters, configuration.learners
    for raft_id in sorted((voters | learners) - set(wanted)):
        return raftpb.ConfChange(type=raftpb.ConfChangeRemoveNode, node_id=raft_id)
    for raft_id in sorted(set(wanted) - voters):
        if raft_id not in learners and not beside_fabric:
            return raftpb.ConfChange(type=raftpb.ConfChangeAddLearnerNode, node_id=raft_id)
        if beside_fabric or caught_up.get(raft_id, False):
            return raftpb.ConfChange(type=raftpb.ConfChangeAddNode, node_id=raft_id)
    return None
