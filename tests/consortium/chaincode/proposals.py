"""Invocations with the signed proposal that they come from, as a chaincode outside gets it."""

import json
import secrets
from collections.abc import Mapping

from consortium.chaincode.api import Creator
from consortium.chaincode.executor import Executor, Invocation
from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_der,
    certificate_pem,
    generate_key,
)
from consortium.wire import common_pb2, msp_pb2, peer_pb2
from consortium.wire.envelopes import channel_header, transaction_id

CHANNEL = "neighbourhood"
NOON = 1_795_262_400
AUTHORITY = CertificateAuthority.create("Aurora", "aurora.example")


class Member:
    """Someone who signs proposals, with a certificate of Aurora's."""

    def __init__(self, name: str, ou: str = "client", **attributes: str) -> None:
        attributes = {f"gridledger.{key}": value for key, value in attributes.items()}
        certificate = AUTHORITY.issue(
            name, ou, generate_key().public_key(), attributes=attributes or None
        )
        self.serialized = msp_pb2.SerializedIdentity(
            mspid="AuroraMSP", id_bytes=certificate_pem(certificate)
        ).SerializeToString()
        self.creator = Creator("AuroraMSP", certificate_der(certificate), name, ou, attributes)


def invocation(
    caller: Member,
    chaincode: str,
    function: str,
    argument: object = None,
    transient: Mapping[str, bytes] | None = None,
    now: int = NOON,
    others: Executor | None = None,
) -> Invocation:
    """A call with its proposal (the signature is the endorser's care)."""
    nonce = secrets.token_bytes(24)
    tx_id = transaction_id(nonce, caller.serialized)
    args = [function.encode(), json.dumps(argument or {}).encode()]
    header = common_pb2.Header(
        channel_header=channel_header(
            common_pb2.ENDORSER_TRANSACTION, CHANNEL, tx_id, timestamp_ns=now * 10**9 + 5
        ).SerializeToString(),
        signature_header=common_pb2.SignatureHeader(
            nonce=nonce, creator=caller.serialized
        ).SerializeToString(),
    )
    payload = peer_pb2.ChaincodeProposalPayload(input=b"", TransientMap=dict(transient or {}))
    proposal = peer_pb2.Proposal(
        header=header.SerializeToString(), payload=payload.SerializeToString()
    )
    return Invocation(
        chaincode,
        CHANNEL,
        tx_id,
        now,
        caller.creator,
        args,
        dict(transient or {}),
        peer_pb2.SignedProposal(proposal_bytes=proposal.SerializeToString()),
        others=others,
    )
