"""One channel on a peer: who waits for what, and what is kept."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consortium.peer import channel as module
from consortium.peer.channel import RECENT_BLOCKS, ChannelStopped
from tests.consortium.ledger.recorded import HEIGHT, expected, ordered_block

from .recorded_peer import RecordedPeer, recorded_peer


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[RecordedPeer]:
    async with recorded_peer(tmp_path / "ledger", 9) as peer:
        yield peer


def _transaction(block: int) -> str:
    return str(expected()["blocks"][block]["txs"][0]["txid"])


async def test_a_transaction_asked_for_before_and_after_its_commit(peer: RecordedPeer) -> None:
    waiting = asyncio.create_task(peer.channel.wait_for_transaction(_transaction(9)))
    await asyncio.sleep(0)
    assert not waiting.done()
    await peer.commit_to(10)
    early, late = await waiting, await peer.channel.wait_for_transaction(_transaction(9))
    assert early == late
    assert (early.block, early.index, early.code) == (9, 0, 0)


async def test_who_gives_up_leaves_nothing_behind(peer: RecordedPeer) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await peer.channel.wait_for_transaction("nobody's")
    assert not peer.channel._transactions


async def test_a_block_that_comes_twice_changes_nothing(peer: RecordedPeer) -> None:
    await peer.commit_to(12)
    again = await peer.channel.commit(ordered_block(10))
    assert again.number == 10
    assert peer.channel.ledger.height == 12


async def test_reading_old_blocks_does_not_drive_out_new_ones(peer: RecordedPeer) -> None:
    await peer.commit_to(HEIGHT)
    newest = await peer.channel.committed(HEIGHT - 1)
    for number in range(HEIGHT - RECENT_BLOCKS):
        assert (await peer.channel.committed(number)).number == number
    assert await peer.channel.committed(HEIGHT - 1) is newest
    assert len(peer.channel._recent) == RECENT_BLOCKS


async def test_recent_blocks_are_limited_by_their_bytes(
    peer: RecordedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECENT_BYTES", 50_000)
    await peer.commit_to(HEIGHT)
    kept = peer.channel._recent.values()
    assert peer.channel._recent_bytes == sum(len(block.raw) for block in kept) <= 50_000
    assert (await peer.channel.committed(20)).number == 20


async def test_private_data_of_what_never_commits_is_dropped(
    peer: RecordedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRANSIENT_BLOCKS", 10)
    await peer.commit_to(10)
    peer.channel.ledger.store_transient("old", b"", 5)
    peer.channel.ledger.store_transient("new", b"", 15)
    await peer.commit_to(21)
    assert peer.channel.ledger.transient("old") == []
    assert peer.channel.ledger.transient("new") == [b""]


async def test_definitions_asked_for_are_not_kept_without_end(
    peer: RecordedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DEFINITIONS", 10)
    for number in range(100):
        assert peer.channel.definition(f"nothing-{number}") is None
    assert len(peer.channel._definitions) <= 10
    found = peer.channel.definition("gold")
    assert found is not None
    assert found.version == "1.0"


async def test_waiters_are_told_that_the_peer_stops(peer: RecordedPeer) -> None:
    waiting = [
        asyncio.create_task(peer.channel.wait_for_height(1_000)),
        asyncio.create_task(peer.channel.wait_for_transaction("nobody's")),
    ]
    await asyncio.sleep(0)
    peer.channel.stop_waiting()
    for each in waiting:
        with pytest.raises(ChannelStopped, match="stopping"):
            await each
