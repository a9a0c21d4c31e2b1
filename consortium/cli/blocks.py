"""A block as a person or a program wants to read it."""

from typing import Any

from google.protobuf.message import DecodeError

from consortium.wire import common_pb2, msp_pb2, peer_pb2
from consortium.wire.blocks import COMMIT_HASH, SIGNATURES, TRANSACTIONS_FILTER, header_hash
from consortium.wire.envelopes import WireError, open_envelope


def describe_block(block: common_pb2.Block) -> dict[str, Any]:
    """Hashes, who signed, and each transaction's contract, function, creator, endorsers, code."""
    metadata = block.metadata.metadata
    codes = metadata[TRANSACTIONS_FILTER]
    commit_hash = common_pb2.Metadata.FromString(metadata[COMMIT_HASH]).value
    return {
        "number": block.header.number,
        "hash": header_hash(block.header).hex(),
        "previous_hash": block.header.previous_hash.hex(),
        "data_hash": block.header.data_hash.hex(),
        "commit_hash": commit_hash.hex(),
        "signed_by": _signers(metadata[SIGNATURES]),
        "transactions": [
            _describe(raw, codes[index] if index < len(codes) else None)
            for index, raw in enumerate(block.data.data)
        ],
    }


def _signers(stored: bytes) -> str:
    signers = []
    for signature in common_pb2.Metadata.FromString(stored).signatures:
        header = common_pb2.SignatureHeader.FromString(signature.signature_header)
        signers.append(_msp_id(header.creator))
    return ", ".join(signers) or "nobody (a first block)"


def _msp_id(serialized: bytes) -> str:
    try:
        return msp_pb2.SerializedIdentity.FromString(serialized).mspid or "?"
    except DecodeError:
        return "?"


def _describe(raw: bytes, code: int | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "transaction_id": "",
        "type": "?",
        "code": "" if code is None else _code_name(code),
        "creator": "?",
        "chaincode": "",
        "function": "",
        "endorsers": [],
    }
    try:
        opened = open_envelope(raw)
        described["transaction_id"] = opened.channel_header.tx_id
        described["creator"] = _msp_id(opened.signature_header.creator)
        described["type"] = common_pb2.HeaderType.Name(opened.channel_header.type)
        if opened.channel_header.type != common_pb2.ENDORSER_TRANSACTION:
            return described
        action = peer_pb2.Transaction.FromString(opened.payload.data).actions[0]
        payload = peer_pb2.ChaincodeActionPayload.FromString(action.payload)
        proposal = peer_pb2.ChaincodeProposalPayload.FromString(payload.chaincode_proposal_payload)
        spec = peer_pb2.ChaincodeInvocationSpec.FromString(proposal.input).chaincode_spec
        described["chaincode"] = spec.chaincode_id.name
        if spec.input.args:
            described["function"] = spec.input.args[0].decode(errors="replace")
        described["endorsers"] = [
            _msp_id(endorsement.endorser) for endorsement in payload.action.endorsements
        ]
    except WireError, DecodeError, IndexError, ValueError:
        # Orderers take any signed bytes; what can't be read is shown as far as it goes.
        described["type"] += " (unreadable)"
    return described


def _code_name(code: int) -> str:
    try:
        return peer_pb2.TxValidationCode.Name(code)
    except ValueError:
        return str(code)
