"""Taking an honest transaction apart, and putting it together as its author never meant it."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from consortium.identity.certificates import CertificateAuthority, certificate_pem, generate_key
from consortium.identity.signing import Signer
from consortium.node.network import Network, Utility
from consortium.wire import common_pb2, kvrwset_pb2, peer_pb2, rwset_pb2

GARBAGE = b"\xff\xff\xff\xff"
"""No protobuf message begins like this."""


def high_s(signature: bytes) -> bytes:
    """The other signature that holds for the same key and message, which Fabric refuses."""
    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, SECP256R1.group_order - s)


class HighS:
    """A signer whose signatures all have a high S."""

    def __init__(self, signer: Signer) -> None:
        self.serialized = signer.serialized
        self._signer = signer

    def sign(self, message: bytes) -> bytes:
        return high_s(self._signer.sign(message))


def impostor(msp_id: str, role: str = "client", name: str = "operator@aurora.example") -> Signer:
    """Someone certified by a root of their own that claims to be `msp_id`'s."""
    key = generate_key()
    root = CertificateAuthority.create("Aurora", "aurora.example")
    certificate = root.issue(
        name, role, key.public_key(), attributes={"gridledger.role": "operator"}
    )
    return Signer(msp_id, certificate_pem(certificate), key)


def member(utility: Utility, role: str = "client", *, valid_days: int = 10) -> Signer:
    """Someone newly certified by the utility itself; 0 valid days have ended already."""
    key = generate_key()
    root = CertificateAuthority.load(utility.directory / "ca")
    certificate = root.issue(
        f"someone@{utility.domain}",
        role,
        key.public_key(),
        attributes={"gridledger.role": "operator"},
        valid_days=valid_days,
    )
    return Signer(utility.msp_id, certificate_pem(certificate), key)


@dataclass
class Parts:
    """A transaction, opened to the bottom. Change any part, then call `envelope`.

    Nothing is kept consistent: whoever changes a part says with `rehash` and `endorse` whether the
    proposal's hash and the endorsements follow.
    """

    network: Network
    author: Signer
    channel_header: common_pb2.ChannelHeader
    signature_header: common_pb2.SignatureHeader
    transaction: peer_pb2.Transaction
    action: peer_pb2.ChaincodeActionPayload
    response: peer_pb2.ProposalResponsePayload
    chaincode_action: peer_pb2.ChaincodeAction
    rwset: rwset_pb2.TxReadWriteSet
    action_header: bytes
    # Bytes that stand in for a part when it is put together again.
    raw_extension: bytes | None = None
    raw_results: bytes | None = None
    raw_data: bytes | None = None
    extra_actions: int = 0

    @classmethod
    def of(cls, network: Network, author: Signer, envelope: bytes) -> Parts:
        payload = common_pb2.Payload.FromString(common_pb2.Envelope.FromString(envelope).payload)
        transaction = peer_pb2.Transaction.FromString(payload.data)
        action = peer_pb2.ChaincodeActionPayload.FromString(transaction.actions[0].payload)
        response = peer_pb2.ProposalResponsePayload.FromString(
            action.action.proposal_response_payload
        )
        chaincode_action = peer_pb2.ChaincodeAction.FromString(response.extension)
        return cls(
            network,
            author,
            common_pb2.ChannelHeader.FromString(payload.header.channel_header),
            common_pb2.SignatureHeader.FromString(payload.header.signature_header),
            transaction,
            action,
            response,
            chaincode_action,
            rwset_pb2.TxReadWriteSet.FromString(chaincode_action.results),
            transaction.actions[0].header,
        )

    # -- what endorsers sign

    @property
    def response_bytes(self) -> bytes:
        """The `ProposalResponsePayload` as it stands now."""
        action = peer_pb2.ChaincodeAction()
        action.CopyFrom(self.chaincode_action)
        action.results = (
            self.rwset.SerializeToString() if self.raw_results is None else self.raw_results
        )
        response = peer_pb2.ProposalResponsePayload()
        response.CopyFrom(self.response)
        response.extension = (
            action.SerializeToString() if self.raw_extension is None else self.raw_extension
        )
        return response.SerializeToString()

    def rehash(self) -> Parts:
        """Make the proposal's hash that of the headers and arguments as they are now."""
        self.response.proposal_hash = sha256(
            self.channel_header.SerializeToString()
            + self.action_header
            + self.action.chaincode_proposal_payload
        ).digest()
        return self

    def endorse(self, *signers: Signer) -> Parts:
        """Replace all endorsements by these signers' own over what stands here now."""
        del self.action.action.endorsements[:]
        for signer in signers:
            self.action.action.endorsements.add(
                endorser=signer.serialized,
                signature=signer.sign(self.response_bytes + signer.serialized),
            )
        return self

    def peer(self, name: str) -> Signer:
        """A utility's peer that lends its key to a forgery."""
        return self.network.utility(name).signer("peer")

    # -- the read-write set

    def edit(
        self, change: Callable[[kvrwset_pb2.KVRWSet], None], namespace: str = "energy"
    ) -> None:
        """Change the public reads and writes of a namespace, which is added if it isn't there."""
        for found in self.rwset.ns_rwset:
            if found.namespace == namespace:
                break
        else:
            found = self.rwset.ns_rwset.add(namespace=namespace)
        public = kvrwset_pb2.KVRWSet.FromString(found.rwset)
        change(public)
        found.rwset = public.SerializeToString()

    # -- the envelope

    def payload(self) -> bytes:
        self.action.action.proposal_response_payload = self.response_bytes
        one = peer_pb2.TransactionAction(
            header=self.action_header, payload=self.action.SerializeToString()
        )
        transaction = peer_pb2.Transaction(actions=[one] * (1 + self.extra_actions))
        return common_pb2.Payload(
            header=common_pb2.Header(
                channel_header=self.channel_header.SerializeToString(),
                signature_header=self.signature_header.SerializeToString(),
            ),
            data=transaction.SerializeToString() if self.raw_data is None else self.raw_data,
        ).SerializeToString()

    def envelope(self, signer: Signer | HighS | None = None) -> common_pb2.Envelope:
        """Signed by its author, or by whoever is given."""
        payload = self.payload()
        return common_pb2.Envelope(payload=payload, signature=(signer or self.author).sign(payload))
