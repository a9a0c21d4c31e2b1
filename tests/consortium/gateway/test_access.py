"""Whom the channel's access list lets ask the gateway about commits and events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from consortium.gateway.service import GatewayError
from consortium.wire import gateway_pb2, orderer_pb2
from tests.consortium.ledger.recorded import expected
from tests.consortium.peer.recorded_peer import CHANNEL, RecordedPeer, member, recorded_peer

HEIGHT = 12
ADMINS = "/Channel/Application/Org1MSP/Admins"


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[RecordedPeer]:
    async with recorded_peer(tmp_path / "ledger", HEIGHT) as peer:
        yield peer


def status_request(who: str) -> gateway_pb2.SignedCommitStatusRequest:
    signer = member(who)
    request = gateway_pb2.CommitStatusRequest(
        transaction_id=expected()["blocks"][9]["txs"][0]["txid"],
        channel_id=CHANNEL,
        identity=signer.serialized,
    ).SerializeToString()
    return gateway_pb2.SignedCommitStatusRequest(request=request, signature=signer.sign(request))


def events_request(who: str) -> gateway_pb2.SignedChaincodeEventsRequest:
    signer = member(who)
    request = gateway_pb2.ChaincodeEventsRequest(
        channel_id=CHANNEL,
        chaincode_id="gold",
        identity=signer.serialized,
        start_position=orderer_pb2.SeekPosition(
            specified=orderer_pb2.SeekSpecified(number=HEIGHT + 5)
        ),
    ).SerializeToString()
    return gateway_pb2.SignedChaincodeEventsRequest(request=request, signature=signer.sign(request))


async def ask(peer: RecordedPeer, who: str, call: str) -> None:
    """Who may ask for events waits for the next one; who may not is told at once."""
    if call == "CommitStatus":
        await peer.gateway.commit_status(status_request(who))
        return
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(anext(peer.gateway.chaincode_events(events_request(who))), 0.2)


async def test_the_channels_own_access_rules_for_the_gateway(
    peer: RecordedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call under its own resource; the channel's readers where none is named."""
    for call, other in (("CommitStatus", "ChaincodeEvents"), ("ChaincodeEvents", "CommitStatus")):
        monkeypatch.setattr(peer.channel.ledger.config, "acls", {})
        await ask(peer, "org1-user1", call)
        monkeypatch.setattr(peer.channel.ledger.config, "acls", {f"gateway/{call}": ADMINS})
        with pytest.raises(GatewayError, match="failed access check for channel") as refused:
            await ask(peer, "org1-user1", call)
        assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
        await ask(peer, "org1-admin", call)
        await ask(peer, "org1-user1", other)
