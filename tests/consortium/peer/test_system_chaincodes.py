"""`qscc` and `cscc` over the recorded chain, asked through the endorser."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consortium.chaincode.executor import InProcessExecutor
from consortium.chaincode.packages import PackageStore
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig
from consortium.peer.contracts import Contracts
from consortium.peer.endorser import Endorser, ProposalRefused
from consortium.wire import common_pb2, peer_pb2
from consortium.wire.blocks import header_hash
from consortium.wire.envelopes import channel_header, transaction_id
from tests.consortium.ledger.recorded import expected, ordered_block, stored_block

from .recorded_peer import CHANNEL, RecordedPeer, member, recorded_peer

HEIGHT = 40
LAST_CONFIG = 2


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[RecordedPeer]:
    async with recorded_peer(tmp_path / "ledger", HEIGHT) as peer:
        yield peer


@pytest.fixture
async def endorser(peer: RecordedPeer, tmp_path: Path) -> AsyncIterator[Endorser]:
    contracts = Contracts("Org1MSP", PackageStore(tmp_path / "packages"))
    endorser = Endorser(
        {CHANNEL: peer.channel}, member("org1-peer0"), InProcessExecutor({}), contracts
    )
    yield endorser
    await endorser.close()


async def _call(
    endorser: Endorser,
    chaincode: str,
    *arguments: str | bytes,
    channel: str = CHANNEL,
    signer: Signer | None = None,
) -> peer_pb2.ProposalResponse:
    signer = signer or member("org1-user1")
    nonce = b"n" * 24
    named = peer_pb2.ChaincodeID(name=chaincode)
    header = channel_header(
        common_pb2.ENDORSER_TRANSACTION,
        channel,
        transaction_id(nonce, signer.serialized),
        extension=peer_pb2.ChaincodeHeaderExtension(chaincode_id=named).SerializeToString(),
    )
    spec = peer_pb2.ChaincodeSpec(
        chaincode_id=named,
        input=peer_pb2.ChaincodeInput(
            args=[one.encode() if isinstance(one, str) else one for one in arguments]
        ),
    )
    invocation = peer_pb2.ChaincodeInvocationSpec(chaincode_spec=spec)
    proposal = peer_pb2.Proposal(
        header=common_pb2.Header(
            channel_header=header.SerializeToString(),
            signature_header=common_pb2.SignatureHeader(
                creator=signer.serialized, nonce=nonce
            ).SerializeToString(),
        ).SerializeToString(),
        payload=peer_pb2.ChaincodeProposalPayload(
            input=invocation.SerializeToString()
        ).SerializeToString(),
    ).SerializeToString()
    return await endorser.process(
        peer_pb2.SignedProposal(proposal_bytes=proposal, signature=signer.sign(proposal))
    )


async def _ask(endorser: Endorser, chaincode: str, *arguments: str | bytes) -> bytes:
    response = (await _call(endorser, chaincode, *arguments)).response
    assert response.status == 200, response.message
    return response.payload


async def test_the_chain(endorser: Endorser) -> None:
    """Height and hashes, blocks by number, hash and transaction, transactions with their code."""
    info = common_pb2.BlockchainInfo.FromString(
        await _ask(endorser, "qscc", "GetChainInfo", CHANNEL)
    )
    last = common_pb2.Block.FromString(stored_block(HEIGHT - 1))
    assert info.height == HEIGHT
    assert info.currentBlockHash == header_hash(last.header)
    assert info.previousBlockHash == last.header.previous_hash
    block = common_pb2.Block.FromString(stored_block(9))
    transaction = expected()["blocks"][9]["txs"][0]["txid"]
    for arguments, wanted in (
        (("GetBlockByNumber", CHANNEL, "9"), block),
        (("GetBlockByNumber", CHANNEL, str(2**64 - 1)), last),
        (("GetBlockByHash", CHANNEL, header_hash(block.header)), block),
        (("GetBlockByTxID", CHANNEL, transaction), block),
    ):
        found = await _ask(endorser, "qscc", *arguments)
        assert common_pb2.Block.FromString(found) == wanted
    processed = peer_pb2.ProcessedTransaction.FromString(
        await _ask(endorser, "qscc", "GetTransactionByID", CHANNEL, transaction)
    )
    assert processed.validationCode == 0
    assert processed.transactionEnvelope.SerializeToString() == block.data.data[0]


async def test_the_chain_without_a_channel(endorser: Endorser) -> None:
    """`peer channel getinfo` names the channel in qscc's argument alone."""
    answer = await _call(endorser, "qscc", "GetChainInfo", CHANNEL, channel="")
    assert common_pb2.BlockchainInfo.FromString(answer.response.payload).height == HEIGHT
    answer = await _call(endorser, "qscc", "GetChainInfo", "another", channel="")
    assert "Invalid chain ID, another" in answer.response.message


async def test_what_qscc_does_not_have(endorser: Endorser) -> None:
    for arguments, message in (
        (("GetChainInfo",), "takes a function's name and a channel's"),
        (("GetChainInfo", "another"), "Invalid chain ID, another"),
        (("GetBlockByNumber", CHANNEL, "-1"), "Failed to parse block number"),
        (("GetBlockByNumber", CHANNEL, str(HEIGHT)), str(HEIGHT)),
        (("GetBlockByHash", CHANNEL, b"nothing"), "no block with hash"),
        (("GetTransactionByID", CHANNEL, "nothing"), "not found"),
        (("GetEverything", CHANNEL), "no function GetEverything"),
    ):
        response = (await _call(endorser, "qscc", *arguments)).response
        assert response.status == 500
        assert message in response.message


async def test_a_peers_channels_are_asked_for_without_one(endorser: Endorser) -> None:
    """As `peer channel list` does; the answer is no endorsement of anything."""
    for channel in ("", CHANNEL):
        answer = await _call(endorser, "cscc", "GetChannels", channel=channel)
        found = peer_pb2.ChannelQueryResponse.FromString(answer.response.payload)
        assert [one.channel_id for one in found.channels] == [CHANNEL]
        assert bool(answer.endorsement.signature) == bool(channel)


async def test_the_configuration(peer: RecordedPeer, endorser: Endorser) -> None:
    """The last block that changed it, and what it comes to."""
    block = await _ask(endorser, "cscc", "GetConfigBlock", CHANNEL)
    assert common_pb2.Block.FromString(block) == common_pb2.Block.FromString(
        stored_block(LAST_CONFIG)
    )
    config = common_pb2.Config.FromString(await _ask(endorser, "cscc", "GetChannelConfig", CHANNEL))
    assert config == ChannelConfig.from_block(ordered_block(LAST_CONFIG)).config
    assert config.sequence == peer.channel.ledger.config.sequence == 2


async def test_joining(endorser: Endorser) -> None:
    """What is there already is said to be there; how to join another is a node's own matter."""
    admin = member("org1-admin")
    block = ordered_block(0).SerializeToString()
    for arguments, signer, message in (
        (("JoinChain", block), admin, f"ledger [{CHANNEL}] already exists"),
        (("JoinChain", block), member("org1-user1"), "only an admin of Org1MSP"),
        (("JoinChain", b"\xff"), admin, "not a valid"),
        (("JoinChain",), admin, "Incorrect number of arguments"),
    ):
        answer = await _call(endorser, "cscc", *arguments, channel="", signer=signer)
        assert answer.response.status == 500
        assert message in answer.response.message
    status = await _call(endorser, "cscc", "JoinBySnapshotStatus", channel="", signer=admin)
    assert status.response.status == 200


async def test_what_cscc_refuses(endorser: Endorser) -> None:
    for arguments, message in (
        (("GetConfigBlock", "another"), "Unknown channel ID, another"),
        (("GetChannelConfig",), "Incorrect number of arguments"),
        (("GetEverything", CHANNEL), "Requested function GetEverything not found."),
        ((), "Requested function  not found."),
    ):
        response = (await _call(endorser, "cscc", *arguments)).response
        assert response.status == 500
        assert message in response.message
    # Another organisation's members ask their own peer for its channels.
    other = member("org2-user1", "Org2MSP")
    answer = await _call(endorser, "cscc", "GetChannels", channel="", signer=other)
    assert "only a member of Org1MSP" in answer.response.message
    # Whom no channel knows is not answered, and no other contract goes without a channel.
    with pytest.raises(ProposalRefused, match="access denied"):
        await _call(
            endorser, "cscc", "GetChannels", channel="", signer=member("org3-user1", "Org3MSP")
        )
    answer = await _call(endorser, "basic", "GetChainInfo", CHANNEL, channel="")
    assert answer.response.status == 500
    other = member("org3-user1", "Org3MSP")
    with pytest.raises(ProposalRefused, match="access denied"):
        await _call(endorser, "qscc", "GetChainInfo", CHANNEL, channel="", signer=other)


async def test_a_channels_own_access_rules(
    peer: RecordedPeer, endorser: Endorser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its access control list says who may ask, function by function, and who may propose."""
    admins = "/Channel/Application/Org1MSP/Admins"
    acls = {"qscc/GetChainInfo": admins, "cscc/GetChannelConfig": admins}
    monkeypatch.setattr(peer.channel.ledger.config, "acls", acls)
    for chaincode, function in (("qscc", "GetChainInfo"), ("cscc", "GetChannelConfig")):
        response = (await _call(endorser, chaincode, function, CHANNEL)).response
        assert response.status == 500
        assert admins in response.message
        admin = member("org1-admin")
        response = (await _call(endorser, chaincode, function, CHANNEL, signer=admin)).response
        assert response.status == 200
    await _ask(endorser, "cscc", "GetConfigBlock", CHANNEL)
    monkeypatch.setattr(peer.channel.ledger.config, "acls", {"peer/Propose": admins})
    with pytest.raises(ProposalRefused, match="not among the channel's writers"):
        await _ask(endorser, "cscc", "GetConfigBlock", CHANNEL)
