"""A peer that lies, as a process of its own: `python -m tests.network.byzantine_peer MODE_FILE …`.

The rest of the command line is `gridledger`'s. How it lies stands in the file, which is read again
for each proposal, so that one process can lie in many ways.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from consortium.cli.main import main
from consortium.identity.signing import Signer
from consortium.peer import discovery, endorser
from consortium.wire import gossip_pb2, kvrwset_pb2, peer_pb2, rwset_pb2

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class _Raw:
    """Bytes in the place of an answer."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def SerializeToString(self) -> bytes:
        return self._raw


def _spoil(mode: str, response: peer_pb2.ProposalResponse, signer: Signer, other: Signer) -> Any:
    """The answer as this peer gives it."""
    endorsement = response.endorsement
    match mode:
        case "result" | "write":
            payload = peer_pb2.ProposalResponsePayload.FromString(response.payload)
            action = peer_pb2.ChaincodeAction.FromString(payload.extension)
            if mode == "result":
                action.response.payload = b'{"amount_micro":"9000"}'
            else:
                results = rwset_pb2.TxReadWriteSet.FromString(action.results)
                public = kvrwset_pb2.KVRWSet.FromString(results.ns_rwset[-1].rwset)
                public.writes.add(key="acct/MINE", value=b"1000000")
                results.ns_rwset[-1].rwset = public.SerializeToString()
                action.results = results.SerializeToString()
            payload.extension = action.SerializeToString()
            response.payload = payload.SerializeToString()
            endorsement.signature = signer.sign(response.payload + endorsement.endorser)
        case "proposal":
            payload = peer_pb2.ProposalResponsePayload.FromString(response.payload)
            payload.proposal_hash = bytes(32)
            response.payload = payload.SerializeToString()
            endorsement.signature = signer.sign(response.payload + endorsement.endorser)
        case "signature":
            endorsement.signature = signer.sign(b"something else")
        case "high S":
            r, s = decode_dss_signature(endorsement.signature)
            endorsement.signature = encode_dss_signature(r, P256_ORDER - s)
        case "another's certificate":
            endorsement.endorser = other.serialized
        case "another's identity":
            endorsement.endorser = other.serialized
            endorsement.signature = other.sign(response.payload + other.serialized)
        case "garbage":
            endorsement.endorser = endorsement.signature = b"\xff" * 100
        case "nothing":
            response.ClearField("endorsement")
        case "no message":
            return _Raw(b"\xff\xff\xff\xff")
        case "no payload":
            response.payload = b"\xff\xff\xff\xff"
        case "sermon":
            response.response.status = 500
            response.response.message = "a" * 5_000_000
        case "huge":
            response.payload += b"\x00" * 40_000_000
    return response


def _contract(response: peer_pb2.ProposalResponse) -> str:
    payload = peer_pb2.ProposalResponsePayload.FromString(response.payload)
    return peer_pb2.ChaincodeAction.FromString(payload.extension).chaincode_id.name


def run(mode_file: Path, arguments: list[str]) -> int:
    """Run the command with the peer's honesty taken out."""
    process = endorser.Endorser.process
    network = Path(arguments[arguments.index("--data-dir") + 1])
    certificate, key = (network / "cielo" / "peer" / f"sign.{one}.pem" for one in ("cert", "key"))
    other = Signer.load("CieloMSP", certificate, key)

    async def lie(self: Any, signed: peer_pb2.SignedProposal) -> Any:
        mode = mode_file.read_text()
        if mode == "silent":
            await asyncio.sleep(30)
        answer = await process(self, signed)
        # The tests look into this peer's ledger through `qscc`, which tells the truth.
        honest = mode in ("honest", "height") or _contract(answer) != "energy"
        return answer if honest else _spoil(mode, answer, self._signer, other)

    endorser.Endorser.process = lie  # type: ignore[method-assign]

    properties = gossip_pb2.Properties

    def tall(*positional: Any, **fields: Any) -> gossip_pb2.Properties:
        if mode_file.read_text() == "height" and "ledger_height" in fields:
            fields["ledger_height"] = 2**64 - 1
        return properties(*positional, **fields)

    discovery.gossip_pb2.Properties = tall  # type: ignore[misc,assignment]
    return main(arguments)


if __name__ == "__main__":
    raise SystemExit(run(Path(sys.argv[1]), sys.argv[2:]))
