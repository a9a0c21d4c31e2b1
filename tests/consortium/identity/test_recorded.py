"""Identities and signatures of a recorded Fabric channel, against what its peers decided."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consortium.identity.msp import IdentityError
from consortium.identity.policies import SignedData, verified_signers
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig
from consortium.wire import common_pb2, peer_pb2
from consortium.wire.blocks import SIGNATURES, header_bytes

RECORDED = Path(__file__).parents[2] / "data" / "fabric" / "recorded"
EXPECTED: dict[str, Any] = json.loads((RECORDED / "expected.json").read_bytes())
BAD_COMMON_HEADER, BAD_CREATOR_SIGNATURE = 3, 4


def blocks() -> Iterator[tuple[common_pb2.Block, dict[str, Any], ChannelConfig]]:
    """Each block, what is known of it, and the configuration that judges it."""
    config: ChannelConfig | None = None
    for expected in EXPECTED["blocks"]:
        raw = (RECORDED / "blocks" / f"{expected['number']:04}.block").read_bytes()
        block = common_pb2.Block.FromString(raw)
        if config is None:
            config = ChannelConfig.from_block(block)
        yield block, expected, config
        if expected["txs"][0]["type"] == common_pb2.CONFIG:
            config = ChannelConfig.from_block(block)


def test_creators() -> None:
    judged = 0
    for block, expected, config in blocks():
        for raw, transaction in zip(block.data.data, expected["txs"], strict=True):
            if block.header.number == 0 or transaction["code"] == BAD_COMMON_HEADER:
                continue
            envelope = common_pb2.Envelope.FromString(raw)
            payload = common_pb2.Payload.FromString(envelope.payload)
            creator = common_pb2.SignatureHeader.FromString(payload.header.signature_header).creator
            try:
                identity = config.msps.identity(creator)
                good = identity.verify(envelope.signature, envelope.payload)
                assert identity.msp_id == transaction["creator_mspid"]
            except IdentityError:
                good = False
            judged += 1
            assert good == (transaction["code"] != BAD_CREATOR_SIGNATURE), transaction["what"]
    assert judged == 166


def test_endorsements() -> None:
    judged = 0
    for block, expected, config in blocks():
        for raw, transaction in zip(block.data.data, expected["txs"], strict=True):
            if not transaction.get("endorsers"):
                continue
            payload = common_pb2.Payload.FromString(common_pb2.Envelope.FromString(raw).payload)
            actions = peer_pb2.Transaction.FromString(payload.data).actions
            action = peer_pb2.ChaincodeActionPayload.FromString(actions[0].payload).action
            known = dict.fromkeys(EXPECTED["orgs"]) | {"Org3MSP": None}
            for endorsement, (msp_id, holds) in zip(
                action.endorsements, transaction["endorsers"], strict=True
            ):
                if msp_id not in known or msp_id not in config.msps.msps:
                    continue
                data = action.proposal_response_payload + endorsement.endorser
                found = verified_signers(
                    config.msps, [SignedData(data, endorsement.endorser, endorsement.signature)]
                )
                assert bool(found) == holds, transaction["what"]
                judged += 1
    assert judged > 200


def test_orderers_signatures_satisfy_block_validation() -> None:
    for block, _, config in blocks():
        metadata = common_pb2.Metadata.FromString(block.metadata.metadata[SIGNATURES])
        signed = [
            SignedData(
                metadata.value + one.signature_header + header_bytes(block.header),
                common_pb2.SignatureHeader.FromString(one.signature_header).creator,
                one.signature,
            )
            for one in metadata.signatures
        ]
        policy = config.policy("/Channel/Orderer/BlockValidation")
        signers = verified_signers(config.msps, signed)
        assert policy.satisfied_by(signers) == (block.header.number > 0)


MSP_IDS = {"org1": "Org1MSP", "org2": "Org2MSP", "org3": "Org3MSP", "orderer": "OrdererMSP"}


def members() -> dict[str, Signer]:
    found = {}
    for path in sorted((RECORDED / "test-keys").glob("*.cert.pem")):
        name = path.name.removesuffix(".cert.pem")
        found[name] = Signer.load(
            MSP_IDS[name.split("-")[0]], path, path.with_name(f"{name}.key.pem")
        )
    return found


@pytest.mark.parametrize("height", [0, 71, 76, 79])
def test_members_over_the_channels_life(height: int) -> None:
    """Org3 comes with block 71 and goes with 79; User2 of Org1 is revoked by 76."""
    raw = (RECORDED / "blocks" / f"{height:04}.block").read_bytes()
    config = ChannelConfig.from_block(common_pb2.Block.FromString(raw))
    for name, signer in members().items():
        left_out = (name.startswith("org3") and height not in (71, 76)) or (
            name == "org1-user2-revoked" and height >= 76
        )
        if left_out:
            with pytest.raises(IdentityError, match=r"not a member|is revoked"):
                config.msps.identity(signer.serialized)
            continue
        identity = config.msps.identity(signer.serialized)
        role = "client" if "user" in name else "peer" if "peer" in name else "admin"
        assert identity.role == role
        assert identity.verify(signer.sign(b"message"), b"message")


def test_the_channels_policies() -> None:
    raw = (RECORDED / "blocks" / "0000.block").read_bytes()
    config = ChannelConfig.from_block(common_pb2.Block.FromString(raw))
    who = {
        name: config.msps.deserialize(s.serialized)
        for name, s in members().items()
        if not name.startswith("org3")
    }

    def satisfied(path: str, *names: str) -> bool:
        return config.policy(path).satisfied_by([who[name] for name in names])

    assert satisfied("/Channel/Application/Writers", "org1-user1")
    assert not satisfied("/Channel/Application/Writers", "org1-peer0")
    assert satisfied("/Channel/Application/Readers", "org2-peer0")
    assert not satisfied("/Channel/Application/Readers", "orderer-admin")
    assert satisfied("/Channel/Writers", "orderer-admin")
    assert satisfied("/Channel/Application/Endorsement", "org1-peer0", "org2-peer0")
    assert not satisfied("/Channel/Application/Endorsement", "org1-peer0", "org2-user1")
    assert satisfied("/Channel/Application/Admins", "org1-admin", "org2-admin")
    assert not satisfied("/Channel/Application/Admins", "org1-admin")
    assert not satisfied("/Channel/Admins", "org1-admin", "org2-admin")
    assert satisfied("/Channel/Admins", "org1-admin", "org2-admin", "orderer-admin")
