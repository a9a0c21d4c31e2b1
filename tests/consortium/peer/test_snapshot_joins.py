"""A peer that is to join by a snapshot says in its log why it didn't."""

import asyncio
import logging
from pathlib import Path

import pytest

from consortium.ledger.snapshot import SnapshotError
from consortium.peer.snapshots import SnapshotJoins
from consortium.wire.envelopes import WireError
from tests.consortium.ledger.test_snapshot import RECORDED, _forged


async def _join(folder: Path, ledgers: Path, trouble: Exception | None = None) -> list[str]:
    """Join by a snapshot; returns the channels that were followed."""
    followed: list[str] = []

    async def follow(channel_id: str) -> None:
        if trouble is not None:
            raise trouble
        followed.append(channel_id)

    joins = SnapshotJoins(ledgers, "Org1MSP", dict, follow)
    joins.begin(str(folder))
    with pytest.raises(SnapshotError, match="is being created from a snapshot"):
        joins.begin(str(folder))
    await asyncio.sleep(0)  # the task begins in the loop's next turn
    await joins.close()
    assert not joins.in_progress
    return followed


async def test_a_channel_is_joined(tmp_path: Path) -> None:
    assert await _join(RECORDED, tmp_path) == ["goldenchannel"]


async def test_a_name_that_is_not_utf_8_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forged = _forged(tmp_path / "s", "public_state.metadata", b"\x01\x01\x01\xff\x05")
    assert await _join(forged, tmp_path / "ledgers") == []
    [said] = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert said.startswith("channel goldenchannel was not joined: ")
    assert "a name that is not UTF-8" in said


@pytest.mark.parametrize(
    "trouble",
    [WireError("a block is none"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start")],
)
async def test_a_ledger_that_cannot_be_followed_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: Exception
) -> None:
    assert await _join(RECORDED, tmp_path, trouble) == []
    [said] = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert said == f"channel goldenchannel was not joined: {trouble}"
