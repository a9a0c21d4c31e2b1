"""A channel of three utilities with real keys, whose transactions and blocks tests make by hand."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from consortium.identity.certificates import CertificateAuthority, certificate_pem, generate_key
from consortium.identity.policies import (
    parse_policy,
)
from consortium.identity.signing import Signer
from consortium.ledger import lifecycle
from consortium.ledger.channel_config import (
    ChannelSpec,
    Consenter,
    OrganizationSpec,
    genesis_block,
)
from consortium.ledger.ledger import CommittedBlock, Ledger
from consortium.wire import common_pb2, kvrwset_pb2, peer_pb2, rwset_pb2
from consortium.wire.blocks import LAST_CONFIG, SIGNATURES, header_bytes, new_block
from consortium.wire.envelopes import channel_header, signed_envelope, transaction_id

CHANNEL_ID = "neighbourhood"
UTILITIES = ("Aurora", "Boreal", "Cielo")
CHAINCODE = "energy"


def _signer(authority: CertificateAuthority, msp_id: str, name: str, role: str) -> Signer:
    key = generate_key()
    certificate = authority.issue(name, role, key.public_key())
    return Signer(msp_id, certificate_pem(certificate), key)


class Channel:
    """The members' keys, and the next block to make."""

    def __init__(self, anchor_ports: Mapping[str, Sequence[int]] | None = None) -> None:
        """`anchor_ports`: where the peers of each utility listen for nodes."""
        authorities = {
            name: CertificateAuthority.create(name, f"{name.lower()}.example") for name in UTILITIES
        }
        self.authorities = authorities
        self.peers = {n: _signer(a, f"{n}MSP", "peer", "peer") for n, a in authorities.items()}
        self.clients = {n: _signer(a, f"{n}MSP", "home", "client") for n, a in authorities.items()}
        self.orderers = {
            n: _signer(a, f"{n}MSP", "orderer", "orderer") for n, a in authorities.items()
        }
        organizations = tuple(
            OrganizationSpec(
                f"{name}MSP",
                authority.certificate_pem,
                anchor_peers=tuple(
                    ("127.0.0.1", port) for port in (anchor_ports or {}).get(name, ())
                ),
                orderer_endpoints=(f"127.0.0.1:{7050 + at}",),
            )
            for at, (name, authority) in enumerate(authorities.items())
        )
        consenters = tuple(
            Consenter("127.0.0.1", 7050 + at, one.certificate_pem, one.certificate_pem)
            for at, one in enumerate(self.orderers.values())
        )
        self.genesis = genesis_block(ChannelSpec(CHANNEL_ID, organizations, consenters))

    def open(self, folder: Path, utility: str = "Aurora", *, durable: bool = False) -> Ledger:
        return Ledger.open(folder, msp_id=f"{utility}MSP", genesis=self.genesis, durable=durable)

    def transaction(
        self,
        rwset: rwset_pb2.TxReadWriteSet,
        endorsers: Iterable[str] = UTILITIES[:2],
        *,
        chaincode: str = CHAINCODE,
        creator: str = "Aurora",
        nonce: bytes | None = None,
        event: bytes = b"",
    ) -> bytes:
        """An envelope, endorsed and signed."""
        signer = self.clients[creator]
        nonce = nonce or os.urandom(24)
        chaincode_id = peer_pb2.ChaincodeID(name=chaincode, version="1.0")
        header = channel_header(
            common_pb2.ENDORSER_TRANSACTION,
            CHANNEL_ID,
            transaction_id(nonce, signer.serialized),
            extension=peer_pb2.ChaincodeHeaderExtension(
                chaincode_id=chaincode_id
            ).SerializeToString(),
        )
        signature_header = common_pb2.SignatureHeader(
            creator=signer.serialized, nonce=nonce
        ).SerializeToString()
        proposal = peer_pb2.ChaincodeProposalPayload(input=b"\x0a\x00").SerializeToString()
        events = b""
        if event:
            events = peer_pb2.ChaincodeEvent(
                chaincode_id=chaincode, tx_id=header.tx_id, event_name="test", payload=event
            ).SerializeToString()
        response = peer_pb2.ProposalResponsePayload(
            proposal_hash=hashlib.sha256(
                header.SerializeToString() + signature_header + proposal
            ).digest(),
            extension=peer_pb2.ChaincodeAction(
                results=rwset.SerializeToString(),
                response=peer_pb2.Response(status=200),
                chaincode_id=chaincode_id,
                events=events,
            ).SerializeToString(),
        ).SerializeToString()
        endorsements = [
            peer_pb2.Endorsement(
                endorser=self.peers[name].serialized,
                signature=self.peers[name].sign(response + self.peers[name].serialized),
            )
            for name in endorsers
        ]
        action = peer_pb2.ChaincodeActionPayload(
            chaincode_proposal_payload=proposal,
            action=peer_pb2.ChaincodeEndorsedAction(
                proposal_response_payload=response, endorsements=endorsements
            ),
        )
        transaction = peer_pb2.Transaction(
            actions=[
                peer_pb2.TransactionAction(
                    header=signature_header, payload=action.SerializeToString()
                )
            ]
        )
        return signed_envelope(
            signer, header, transaction.SerializeToString(), nonce=nonce
        ).SerializeToString()

    def block(self, ledger: Ledger, envelopes: Sequence[bytes]) -> common_pb2.Block:
        """The next block, signed by an ordering node."""
        block = new_block(ledger.height, ledger.last_block_hash, list(envelopes))
        orderer = self.orderers["Aurora"]
        value = common_pb2.OrdererBlockMetadata(
            last_config=common_pb2.LastConfig(index=0)
        ).SerializeToString()
        signature_header = common_pb2.SignatureHeader(
            creator=orderer.serialized, nonce=os.urandom(24)
        ).SerializeToString()
        signature = orderer.sign(value + signature_header + header_bytes(block.header))
        block.metadata.metadata[SIGNATURES] = common_pb2.Metadata(
            value=value,
            signatures=[
                common_pb2.MetadataSignature(signature_header=signature_header, signature=signature)
            ],
        ).SerializeToString()
        block.metadata.metadata[LAST_CONFIG] = b""
        return block

    def commit(self, ledger: Ledger, *envelopes: bytes) -> CommittedBlock:
        return ledger.commit(self.block(ledger, envelopes))

    def deploy(
        self,
        ledger: Ledger,
        *,
        policy: str | common_pb2.SignaturePolicyEnvelope = "",
        collections: Iterable[peer_pb2.StaticCollectionConfig] = (),
        chaincode: str = CHAINCODE,
        sequence: int = 1,
    ) -> None:
        """Commit a contract's definition."""
        rule = parse_policy(policy) if isinstance(policy, str) and policy else policy
        with ledger.view() as view:
            records = Records(
                {key: one.value for key, one in view.range(lifecycle.NAMESPACE, "", "")}
            )
        definition = lifecycle.ChaincodeDefinition(
            name=chaincode,
            sequence=sequence,
            version="1.0",
            endorsement_policy=lifecycle.signature_policy(rule) if rule else b"",
            collections=peer_pb2.CollectionConfigPackage(
                config=[
                    peer_pb2.CollectionConfig(static_collection_config=one) for one in collections
                ]
            ),
        )
        lifecycle.commit(definition, records)
        rwset = public_set(lifecycle.NAMESPACE, writes=records.written)
        committed = self.commit(ledger, self.transaction(rwset, chaincode=lifecycle.NAMESPACE))
        assert committed.codes == b"\0"


class Records(dict[str, bytes]):
    """Records that remember what was written to them."""

    def __init__(self, stored: Mapping[str, bytes]) -> None:
        super().__init__(stored)
        self.written: dict[str, bytes] = {}

    def put(self, key: str, value: bytes) -> None:
        self[key] = self.written[key] = value

    def delete(self, key: str) -> None:
        self[key] = self.written[key] = b""


def collection(
    name: str,
    members: Iterable[str],
    *,
    policy: str = "",
    block_to_live: int = 0,
    peers: tuple[int, int] = (0, 0),
) -> peer_pb2.StaticCollectionConfig:
    """An explicit collection; `peers` are the required and the maximum peer count."""
    principals = ", ".join(f"'{name}MSP.member'" for name in members)
    config = peer_pb2.StaticCollectionConfig(
        name=name,
        member_orgs_policy=peer_pb2.CollectionPolicyConfig(
            signature_policy=parse_policy(f"OR({principals})")
        ),
        block_to_live=block_to_live,
        required_peer_count=peers[0],
        maximum_peer_count=peers[1],
    )
    if policy:
        config.endorsement_policy.signature_policy.CopyFrom(parse_policy(policy))
    return config


def version(at: tuple[int, int] | None) -> kvrwset_pb2.Version | None:
    return None if at is None else kvrwset_pb2.Version(block_num=at[0], tx_num=at[1])


def public_set(
    namespace: str = CHAINCODE,
    *,
    reads: Mapping[str, tuple[int, int] | None] | None = None,
    writes: Mapping[str, bytes] | None = None,
    policies: Mapping[str, str] | None = None,
) -> rwset_pb2.TxReadWriteSet:
    """A read-write set of one namespace's public keys; empty values delete."""
    metadata = [
        kvrwset_pb2.KVMetadataWrite(key=key, entries=policy_entries(policy))
        for key, policy in (policies or {}).items()
    ]
    public = kvrwset_pb2.KVRWSet(
        reads=[
            kvrwset_pb2.KVRead(key=key, version=version(at)) for key, at in (reads or {}).items()
        ],
        writes=[
            kvrwset_pb2.KVWrite(key=key, value=value, is_delete=not value)
            for key, value in (writes or {}).items()
        ],
        metadata_writes=metadata,
    )
    return rwset_pb2.TxReadWriteSet(
        ns_rwset=[rwset_pb2.NsReadWriteSet(namespace=namespace, rwset=public.SerializeToString())]
    )


def policy_entries(policy: str) -> list[kvrwset_pb2.KVMetadataEntry]:
    value = parse_policy(policy).SerializeToString()
    return [kvrwset_pb2.KVMetadataEntry(name="VALIDATION_PARAMETER", value=value)]


def private_set(
    collection_name: str,
    writes: Mapping[str, bytes],
    *,
    namespace: str = CHAINCODE,
    reads: Mapping[str, tuple[int, int] | None] | None = None,
    purges: Iterable[str] = (),
) -> tuple[rwset_pb2.TxReadWriteSet, bytes]:
    """The public set with a collection's hashes, and the collection's `KVRWSet` bytes."""
    purged = set(purges)
    items = {**writes, **dict.fromkeys(purged, b"")}
    private = kvrwset_pb2.KVRWSet(
        writes=[
            kvrwset_pb2.KVWrite(key=key, value=value, is_delete=not value)
            for key, value in sorted(items.items())
        ]
    ).SerializeToString()
    hashed = kvrwset_pb2.HashedRWSet(
        hashed_reads=[
            kvrwset_pb2.KVReadHash(key_hash=digest(key), version=version(at))
            for key, at in (reads or {}).items()
        ],
        hashed_writes=[
            kvrwset_pb2.KVWriteHash(
                key_hash=digest(key),
                value_hash=hashlib.sha256(value).digest() if value else b"",
                is_delete=not value,
                is_purge=key in purged,
            )
            for key, value in sorted(items.items())
        ],
    )
    rwset = rwset_pb2.TxReadWriteSet(
        ns_rwset=[
            rwset_pb2.NsReadWriteSet(
                namespace=namespace,
                collection_hashed_rwset=[
                    rwset_pb2.CollectionHashedReadWriteSet(
                        collection_name=collection_name,
                        hashed_rwset=hashed.SerializeToString(),
                        pvt_rwset_hash=hashlib.sha256(private).digest(),
                    )
                ],
            )
        ]
    )
    return rwset, private


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
