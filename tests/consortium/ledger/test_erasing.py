"""Private data that were purged, or whose time is over, are in none of the peer's files."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from consortium.ledger.ledger import Ledger
from consortium.wire.envelopes import open_envelope

from .channel import CHAINCODE, Channel, collection, private_set, public_set
from .recorded import private_rwset

COLLECTION = "readings"


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _in_files(folder: Path, needle: bytes) -> list[str]:
    """The files of a folder that hold some bytes, read as they are on disk."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and needle in path.read_bytes()
    ]


@pytest.fixture(scope="module")
def channel() -> Channel:
    return Channel()


def _deployed(channel: Channel, folder: Path, block_to_live: int = 0) -> Ledger:
    ledger = channel.open(folder)
    config = collection(COLLECTION, ["Aurora"], policy="OR('AuroraMSP.peer')")
    config.block_to_live = block_to_live
    channel.deploy(ledger, collections=[config])
    return ledger


def _write(channel: Channel, ledger: Ledger, writes: dict[str, bytes]) -> None:
    rwset, data = private_set(COLLECTION, writes)
    envelope = channel.transaction(rwset)
    transaction_id = open_envelope(envelope).channel_header.tx_id
    stored = private_rwset(CHAINCODE, COLLECTION, data)
    ledger.store_transient(transaction_id, stored, ledger.height)
    assert channel.commit(ledger, envelope).codes == b"\0"


def _purge(channel: Channel, ledger: Ledger, *keys: str) -> None:
    rwset, _ = private_set(COLLECTION, {}, purges=keys)
    assert channel.commit(ledger, channel.transaction(rwset)).codes == b"\0"


def _secret(number: int, length: int) -> bytes:
    return b"<the secret %06d>" % number + os.urandom(length)


@pytest.mark.parametrize("length", [10, 1_500, 9_000])
def test_purged_data_are_in_no_file(channel: Channel, tmp_path: Path, length: int) -> None:
    with _deployed(channel, tmp_path) as ledger:
        secrets = {f"meter {n:04d}": _secret(n, length) for n in range(40)}
        for key, value in secrets.items():
            _write(channel, ledger, {key: value, "kept": b"kept value"})
        _write(channel, ledger, {"meter 0007": b"a new value of it"})
        assert _in_files(tmp_path, b"<the secret 000007>") == ["index/data.mdb"]
        _purge(channel, ledger, *list(secrets)[:20])
        # While it runs, without closing it, and soon.
        wait_for(lambda: ledger.eraser.idle)
        for key, value in list(secrets.items())[:20]:
            for piece in (value[:19], value[19:29], key.encode(), value[-10:]):
                assert _in_files(tmp_path, piece) == [], piece
        assert _in_files(tmp_path, b"a new value of it") == []
        with ledger.view() as view:
            for key, value in list(secrets.items())[20:]:
                found = view.get_private(CHAINCODE, COLLECTION, key)
                assert found is not None
                assert found.value == value
            assert view.get_private(CHAINCODE, COLLECTION, "meter 0007") is None


def test_expired_data_are_in_no_file(channel: Channel, tmp_path: Path) -> None:
    with _deployed(channel, tmp_path, block_to_live=3) as ledger:
        for number in range(12):
            _write(channel, ledger, {f"meter {number:04d}": _secret(number, 300)})
        # Each lives for three blocks after its own.
        wait_for(lambda: ledger.eraser.idle)
        for number in range(8):
            assert _in_files(tmp_path, b"<the secret %06d>" % number) == [], number
            assert _in_files(tmp_path, b"meter %04d" % number) == [], number
        assert _in_files(tmp_path, b"<the secret 000011>") == ["index/data.mdb"]


def test_what_never_committed_is_in_no_file_once_it_is_given_up(
    channel: Channel, tmp_path: Path
) -> None:
    with _deployed(channel, tmp_path) as ledger:
        _, data = private_set(COLLECTION, {"meter": _secret(1, 300)})
        ledger.store_transient("tx", private_rwset(CHAINCODE, COLLECTION, data), ledger.height)
        assert _in_files(tmp_path, b"<the secret 000001>")
        assert ledger.purge_transient(ledger.height + 1) == 1
        wait_for(lambda: ledger.eraser.idle)
        assert _in_files(tmp_path, b"<the secret 000001>") == []


def test_data_that_somebody_reads_are_erased_when_he_has_ended(
    channel: Channel, tmp_path: Path
) -> None:
    with _deployed(channel, tmp_path) as ledger:
        _write(channel, ledger, {"meter": _secret(1, 300)})
        with ledger.view() as view:
            _purge(channel, ledger, "meter")
            time.sleep(0.3)
            assert not ledger.eraser.idle
            found = view.get_private(CHAINCODE, COLLECTION, "meter")
            assert found is not None
        wait_for(lambda: ledger.eraser.idle)
        assert _in_files(tmp_path, b"<the secret 000001>") == []


def test_a_peer_that_stopped_in_between_erases_at_its_next_start(
    channel: Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _deployed(channel, tmp_path) as ledger:
        _write(channel, ledger, {"meter": _secret(1, 300)})
        monkeypatch.setattr(ledger.eraser, "request", lambda: None)
        _purge(channel, ledger, "meter")
        assert _in_files(tmp_path, b"<the secret 000001>")
    with channel.open(tmp_path) as ledger:
        wait_for(lambda: ledger.eraser.idle)
        assert _in_files(tmp_path, b"<the secret 000001>") == []
        channel.commit(ledger, channel.transaction(public_set(writes={"a": b"1"})))
