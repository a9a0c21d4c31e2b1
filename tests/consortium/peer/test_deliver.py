"""Deliver over the recorded chain: where a stream starts, where it ends, who may have it."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from consortium.identity.certificates import CertificateAuthority, generate_key
from consortium.identity.msp import Identity, Msp, msp_config
from consortium.identity.signing import Signer
from consortium.peer import deliver
from consortium.wire import common_pb2, kvrwset_pb2, peer_pb2, services
from tests.consortium.ledger.recorded import (
    expected,
    private_rwset,
    private_writes,
    stored_block,
)

from .recorded_peer import NEWEST, NEXT, OLDEST, RecordedPeer, at, member, recorded_peer

OK = common_pb2.SUCCESS
BAD = common_pb2.BAD_REQUEST
FORBIDDEN = common_pb2.FORBIDDEN
NOT_FOUND = common_pb2.NOT_FOUND
HEIGHT = 40


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[RecordedPeer]:
    async with recorded_peer(tmp_path / "ledger", HEIGHT) as peer:
        yield peer


def _numbers(answers: list[peer_pb2.DeliverResponse]) -> list[int]:
    """Numbers of the blocks, and the status at the end."""
    assert all(answer.WhichOneof("Type") == "block" for answer in answers[:-1])
    assert answers[-1].WhichOneof("Type") == "status"
    return [answer.block.header.number for answer in answers[:-1]] + [answers[-1].status]


async def test_positions(peer: RecordedPeer) -> None:
    """Fabric's rules (`common/deliver/deliver.go`)."""
    last = HEIGHT - 1
    for start, stop, numbers in (
        (at(3), at(5), [3, 4, 5, OK]),
        (OLDEST, at(1), [0, 1, OK]),
        (NEWEST, NEWEST, [last, OK]),
        (at(last - 1), NEWEST, [last - 1, last, OK]),
        (OLDEST, OLDEST, [0, OK]),
        (at(7), OLDEST, [7, OK]),
        (at(5), at(4), [BAD]),
        (None, at(4), [BAD]),
        (at(4), None, [BAD]),
    ):
        assert _numbers(await peer.deliver(peer.seek(start, stop))) == numbers


async def test_blocks_are_what_the_recorded_peer_stored(peer: RecordedPeer) -> None:
    # Orders of fields and of metadata are Fabric's, so the bytes are.
    answers = await peer.deliver(peer.seek(OLDEST, at(HEIGHT - 1)))
    for number, answer in enumerate(answers[:-1]):
        assert answer.block == common_pb2.Block.FromString(stored_block(number))


async def test_not_ready(peer: RecordedPeer) -> None:
    """Whoever will not wait is told so, after what there is."""
    asked = peer.seek(at(HEIGHT - 1), at(HEIGHT), fail_if_not_ready=True)
    assert _numbers(await peer.deliver(asked)) == [HEIGHT - 1, NOT_FOUND]


async def test_blocks_to_come(peer: RecordedPeer) -> None:
    answers = asyncio.create_task(peer.deliver(peer.seek(NEXT, at(HEIGHT + 1))))
    assert not (await asyncio.wait({answers}, timeout=0.2))[0]
    await peer.commit_to(HEIGHT + 2)
    assert _numbers(await answers) == [HEIGHT, HEIGHT + 1, OK]


async def test_a_stream_serves_requests_until_one_fails(peer: RecordedPeer) -> None:
    good, bad = peer.seek(at(1), at(1)), peer.seek(at(2), at(1))
    answers = await peer.deliver(good, good, bad, good)
    shown = [answer.WhichOneof("Type") for answer in answers]
    assert shown == ["block", "status", "block", "status", "status"]
    assert answers[-1].status == BAD


async def test_who_may_not_read(peer: RecordedPeer) -> None:
    one = at(1)
    forged = peer.seek(one, one)
    forged.signature = member("org1-admin").sign(forged.payload)
    now = time.time_ns()
    for request, status in (
        (forged, FORBIDDEN),
        (peer.seek(one, one, signer=member("org3-user1", "Org3MSP")), FORBIDDEN),
        (peer.seek(one, one, channel="another"), NOT_FOUND),
        (peer.seek(one, one, timestamp_ns=now - 16 * 60 * 10**9), BAD),
        (peer.seek(one, one, timestamp_ns=now + 16 * 60 * 10**9), BAD),
        (common_pb2.Envelope(payload=b"\xff"), BAD),
    ):
        assert _numbers(await peer.deliver(request)) == [status]


async def test_a_member_that_is_revoked_on_the_way_gets_no_more(peer: RecordedPeer) -> None:
    """Block 76 revokes User2: what comes after it is not for them, in an open stream either."""
    request = peer.seek(at(74), at(80), signer=member("org1-user2-revoked"))
    answers = asyncio.create_task(peer.deliver(request))
    await asyncio.sleep(0.1)
    await peer.commit_to(80)
    numbers = _numbers(await answers)
    assert numbers[-1] == FORBIDDEN
    assert 77 not in numbers
    assert _numbers(await peer.deliver(request)) == [FORBIDDEN]


async def test_filtered_blocks(peer: RecordedPeer) -> None:
    """Ids, types and codes of all transactions; of events their names, never their contents."""
    await peer.commit_to(71)
    answers = await peer.deliver(peer.seek(OLDEST, at(70)), path=services.DELIVER_FILTERED)
    assert [answer.filtered_block.number for answer in answers[:-1]] == list(range(71))
    for answer in answers[1:-1]:
        known = expected()["blocks"][answer.filtered_block.number]
        assert answer.filtered_block.channel_id == "goldenchannel"
        assert [
            transaction.tx_validation_code
            for transaction in answer.filtered_block.filtered_transactions
        ] == known["filter"]
    event = (
        answers[31]
        .filtered_block.filtered_transactions[0]
        .transaction_actions.chaincode_actions[0]
        .chaincode_event
    )
    assert (event.chaincode_id, event.event_name, event.payload) == ("gold", "goldEvent", b"")


async def test_streams_are_limited(peer: RecordedPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "MAX_STREAMS", 1)
    waiting = peer.stream(peer.seek(NEWEST, at(10_000)))
    assert isinstance(await waiting.read(), bytes)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await peer.deliver(peer.seek(at(1), at(1)))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "limit" in str(error.value.details())
    waiting.cancel()
    async with asyncio.timeout(60):
        while True:  # the place is free again once the server has noticed
            try:
                assert _numbers(await peer.deliver(peer.seek(at(1), at(1)))) == [1, OK]
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
            else:
                break


async def test_a_stream_says_soon_what_it_wants(
    peer: RecordedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it needs no certificate, and takes a place all the same."""
    monkeypatch.setattr(deliver, "FIRST_REQUEST_S", 0.1)
    open_stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = peer.connection.stream_stream(
        services.DELIVER
    )

    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    with pytest.raises(grpc.aio.AioRpcError, match="asked for no blocks") as error:
        await open_stream(nothing()).read()
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_stopping_peer_ends_its_streams(peer: RecordedPeer) -> None:
    stream = peer.stream(peer.seek(NEXT, at(10_000)))
    reading = asyncio.create_task(stream.read())
    await asyncio.sleep(0.1)
    peer.channel.stop_waiting()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await reading
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "stopping" in str(error.value.details())


async def _private(
    peer: RecordedPeer, signer: Signer | None = None
) -> dict[tuple[int, int], list[tuple[str, str, bytes]]]:
    """What a reader is given of private data: by block and transaction, with its place."""
    last = peer.channel.ledger.height - 1
    answers = await peer.deliver(
        peer.seek(OLDEST, at(last), signer=signer), path=services.DELIVER_WITH_PRIVATE_DATA
    )
    assert answers.pop().status == OK
    found = {}
    for number, answer in enumerate(answers):
        sent = answer.block_and_private_data
        assert sent.block == common_pb2.Block.FromString(peer.channel.ledger.block(number))
        for tx, sets in sent.private_data_map.items():
            found[number, tx] = [
                (namespace.namespace, collection.collection_name, collection.rwset)
                for namespace in sets.ns_pvt_rwset
                for collection in namespace.collection_pvt_rwset
            ]
    return found


async def test_blocks_with_private_data(tmp_path: Path) -> None:
    """Members of a collection get what this peer holds of it, with the block as it is stored."""
    private = private_writes()
    async with recorded_peer(tmp_path / "ledger", 2) as peer:
        ledger = peer.channel.ledger
        for (block, tx), contents in private.items():
            transaction_id = expected()["blocks"][block]["txs"][tx]["txid"]
            ledger.store_transient(transaction_id, private_rwset(*contents), 2)
        await peer.commit_to(66)
        own = {place: [contents] for place, contents in private.items() if place[0] < 66}
        of_org2 = [place for place, [found] in own.items() if found[1] == "_implicit_org_Org2MSP"]
        for place in of_org2:
            del own[place]  # not this peer's to keep
        shown = await _private(peer)
        assert shown.keys() == own.keys()
        # Block 54 purges the key pk3: it is gone from the sets that wrote it, and only from those.
        changed = {place for place in own if shown[place] != own[place]}
        assert changed == {(49, 0), (54, 0)}
        left = kvrwset_pb2.KVRWSet.FromString(shown[49, 0][0][2])
        assert [write.key for write in left.writes] == ["pk1", "pk2"]
        # Another organisation's members: what they share with this one, not what is its own.
        shared = {place for place, [found] in own.items() if found[1] == "collA"}
        others = await _private(peer, member("org2-user1", "Org2MSP"))
        assert others.keys() == shared
        await peer.commit_to(72)  # block 71 adds Org3, which belongs to no collection
        assert await _private(peer, member("org3-user1", "Org3MSP")) == {}
        # collB lived for three blocks.
        assert (64, 0) not in await _private(peer)


def test_a_certificate_for_one_home_shows_no_neighbours() -> None:
    """Homes are clients of a member too; what contracts keep from them, a block must not show."""
    authority = CertificateAuthority.create("Org1", "org1.example")
    msp = Msp.from_config(msp_config("Org1MSP", authority.certificate_pem))
    key = generate_key().public_key()

    def reader(attributes: dict[str, str]) -> Identity:
        return msp.identity_of(authority.issue("one", "client", key, attributes=attributes))

    confined = deliver._sees_through_contracts_only
    assert confined(reader({"gridledger.role": "home", "gridledger.connection": "CP-1"}))
    assert confined(reader({"gridledger.connection": "CP-1"}))
    assert confined(reader({"gridledger.role": "supplier"}))
    assert not confined(reader({"gridledger.role": "operator"}))
    assert not confined(reader({}))


async def test_a_channels_own_access_rules(
    peer: RecordedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its access control list says who may have blocks; filtered ones have a line of their own."""
    one = at(1)
    config = peer.channel.ledger.config
    monkeypatch.setattr(config, "acls", {"event/Block": "/Channel/Application/Org1MSP/Admins"})
    request, admin = peer.seek(one, one), peer.seek(one, one, signer=member("org1-admin"))
    for path in (services.DELIVER, services.DELIVER_WITH_PRIVATE_DATA):
        assert (await peer.deliver(request, path=path))[-1].status == FORBIDDEN
        assert (await peer.deliver(admin, path=path))[-1].status == OK
    assert (await peer.deliver(request, path=services.DELIVER_FILTERED))[-1].status == OK
    monkeypatch.setattr(config, "acls", {"event/Block": "/Channel/Nothing"})
    assert (await peer.deliver(admin))[-1].status == FORBIDDEN
