"""ChaincodeEvents over the recorded chain, whose one event stands in block 31."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from consortium.gateway import service
from consortium.identity.signing import Signer
from consortium.peer.places import Places
from consortium.wire import gateway_pb2, orderer_pb2, services
from tests.consortium.ledger.recorded import expected
from tests.consortium.peer.recorded_peer import (
    CHANNEL,
    NEWEST,
    NEXT,
    RecordedPeer,
    at,
    member,
    recorded_peer,
)

EVENT_BLOCK = 31


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[RecordedPeer]:
    async with recorded_peer(tmp_path / "ledger", EVENT_BLOCK) as peer:
        yield peer


def _events(
    peer: RecordedPeer,
    start: orderer_pb2.SeekPosition | None = None,
    after: str = "",
    chaincode: str = "gold",
    signer: Signer | None = None,
) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
    signer = signer or member("org1-user1")
    query = gateway_pb2.ChaincodeEventsRequest(
        channel_id=CHANNEL,
        chaincode_id=chaincode,
        identity=signer.serialized,
        start_position=start,
        after_transaction_id=after,
    ).SerializeToString()
    request = gateway_pb2.SignedChaincodeEventsRequest(request=query, signature=signer.sign(query))
    call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = peer.connection.unary_stream(
        services.CHAINCODE_EVENTS
    )
    return call(request.SerializeToString(), timeout=60)


async def _first(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> tuple[int, list[str]]:
    response = gateway_pb2.ChaincodeEventsResponse.FromString(await call.read())
    call.cancel()
    return response.block_number, [event.event_name for event in response.events]


async def _nothing(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> bool:
    reading = asyncio.create_task(call.read())
    arrived, _ = await asyncio.wait({reading}, timeout=0.3)
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    return not arrived


def _transaction(block: int) -> str:
    return str(expected()["blocks"][block]["txs"][0]["txid"])


FOUND = (EVENT_BLOCK, ["goldEvent"])


async def test_from_the_next_commit_on(peer: RecordedPeer) -> None:
    calls = [_events(peer), _events(peer, NEXT)]
    reading = [asyncio.create_task(_first(call)) for call in calls]
    await asyncio.sleep(0.2)
    await peer.commit_to(EVENT_BLOCK + 1)
    assert await asyncio.gather(*reading) == [FOUND, FOUND]
    assert await _nothing(_events(peer))


async def test_from_a_block_on(peer: RecordedPeer) -> None:
    await peer.commit_to(EVENT_BLOCK + 5)
    for number in (0, EVENT_BLOCK):
        assert await _first(_events(peer, at(number))) == FOUND
    assert await _nothing(_events(peer, at(EVENT_BLOCK + 1)))
    assert await _nothing(_events(peer, at(2**64 - 1)))


async def test_after_a_transaction(peer: RecordedPeer) -> None:
    await peer.commit_to(EVENT_BLOCK + 5)
    # Block 30's transaction set no event, and is skipped all the same.
    assert await _first(_events(peer, after=_transaction(EVENT_BLOCK - 1))) == FOUND
    assert await _nothing(_events(peer, at(0), after=_transaction(EVENT_BLOCK)))


async def test_after_a_transaction_that_is_not_there(peer: RecordedPeer) -> None:
    """The start position counts then."""
    await peer.commit_to(EVENT_BLOCK + 5)
    assert await _first(_events(peer, at(0), after="unknown")) == FOUND
    assert await _nothing(_events(peer, after="unknown"))


async def test_of_another_contract(peer: RecordedPeer) -> None:
    await peer.commit_to(EVENT_BLOCK + 5)
    assert await _nothing(_events(peer, at(0), chaincode="gold2"))


async def test_what_is_refused(peer: RecordedPeer) -> None:
    stranger = member("org3-user1", "Org3MSP")
    for call, code in (
        (_events(peer, NEWEST), grpc.StatusCode.INVALID_ARGUMENT),
        (_events(peer, signer=stranger), grpc.StatusCode.PERMISSION_DENIED),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
        assert error.value.code() is code


async def test_a_member_that_is_revoked_on_the_way_gets_no_more(peer: RecordedPeer) -> None:
    call = _events(peer, signer=member("org1-user2-revoked"))
    reading = asyncio.create_task(call.read())
    await asyncio.sleep(0.1)
    await peer.commit_to(EVENT_BLOCK + 1)
    await reading
    reading = asyncio.create_task(call.read())
    await peer.commit_to(80)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await reading
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_streams_are_limited(peer: RecordedPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_EVENT_STREAMS", 0)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await _events(peer).read()
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "streams of events" in str(error.value.details())


async def test_one_client_cannot_hold_all_places(
    peer: RecordedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer.gateway, "_streams_each", Places(1, "streams of events"))
    await peer.commit_to(EVENT_BLOCK + 1)
    first = _events(peer, at(0))
    await first.read()
    with pytest.raises(grpc.aio.AioRpcError, match="1 streams of events of one client") as error:
        await _events(peer).read()
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await _first(_events(peer, at(0), signer=member("org1-admin"))) == FOUND
    first.cancel()


async def test_a_stopping_peer_ends_its_streams(peer: RecordedPeer) -> None:
    reading = asyncio.create_task(_events(peer).read())
    await asyncio.sleep(0.1)
    peer.channel.stop_waiting()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await reading
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
