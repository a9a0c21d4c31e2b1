"""Snapshots: the bytes that Fabric's peers made of the recorded channel, and what begins so."""

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consortium.ledger import snapshot
from consortium.ledger.ledger import TABLES, TRANSACTIONS, BeforeSnapshotError, Ledger
from consortium.ledger.mvcc import varint
from consortium.ledger.private_data import PrivateDataError, PrivatePlace
from consortium.ledger.snapshot import (
    ADDITIONAL,
    SIGNABLE,
    Snapshot,
    SnapshotError,
    Snapshots,
    completed,
    create_snapshot,
    join_by_snapshot,
)
from consortium.ledger.state import STATE, PrivateDataUnavailableError
from consortium.storage.environment import Environment, FormatError
from consortium.wire.blocks import header_hash

from .channel import Channel, public_set
from .recorded import (
    FOLDER,
    HEIGHT,
    expected,
    open_ledger,
    ordered_block,
    private_writes,
    replay,
    stored_block,
)

RECORDED = FOLDER / "snapshot"
RECORDED_MIDWAY = FOLDER / "snapshot-mid"
MIDWAY = 71


def _same_files(found: Path, recorded: Path) -> None:
    assert sorted(path.name for path in found.iterdir()) == sorted(
        path.name for path in recorded.iterdir()
    )
    for path in recorded.iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes(), path.name


def _entries(ledger: Ledger) -> list[tuple[bytes, bytes]]:
    with ledger.tables() as tables:
        return [entry for entry in tables.range(STATE) if b"$$p" not in entry[0]]


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with open_ledger(tmp_path_factory.mktemp("whole")) as ledger:
        replay(ledger)
        yield ledger


def test_the_recorded_snapshots_are_made_byte_for_byte(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger", "Org2MSP") as ledger:
        replay(ledger, MIDWAY)
        _same_files(create_snapshot(ledger, tmp_path).folder, RECORDED_MIDWAY)
        replay(ledger)
        made = create_snapshot(ledger, tmp_path)
        _same_files(made.folder, RECORDED)
        assert made.hash == hashlib.sha256((RECORDED / SIGNABLE).read_bytes()).digest()
        assert made.folder == tmp_path / "completed" / "goldenchannel" / "82"
        assert [one.last_block for one in completed(tmp_path)] == [70, 82]
        with pytest.raises(SnapshotError, match="already generated for block number 82"):
            create_snapshot(ledger, tmp_path)
    assert not list((tmp_path / "temp").iterdir())


@pytest.mark.parametrize("waiting_bytes", [1, 4_000, 16 * 1024 * 1024])
def test_ids_of_many_lengths_are_written_in_as_many_passes_as_those_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting_bytes: int
) -> None:
    """A writer of the channel chooses its ids: they must not make a snapshot take for ever."""
    monkeypatch.setattr(snapshot, "IDS_WAITING_BYTES", waiting_bytes)
    usual = [hashlib.sha256(bytes([number])).hexdigest().encode() for number in range(200)]
    odd = [
        (f"{number:02}" * length)[:length].encode()
        for length in (*range(2, 64), *range(65, 400, 3), 5_000)
        for number in (7, 42)
    ]
    environment = Environment(tmp_path / "index", TABLES, format_version=1, durable=False)
    passes: list[str] = []
    told: list[tuple[str, int]] = []

    class Counting:
        def range(self, table: str) -> Iterator[tuple[bytes, bytes]]:
            passes.append(table)
            return tables.range(table)

    for name, added in (("usual", usual), ("all", odd)):
        environment.write(lambda t, added=added: [t.put(TRANSACTIONS, one, b"x") for one in added])  # type: ignore[misc]
        (tmp_path / name).mkdir()
        with environment.read() as tables:
            hashes = snapshot._export_ids(
                Counting(),  # type: ignore[arg-type]
                tmp_path / name,
                lambda what, done: told.append((what, done)),
            )
    environment.close()
    assert passes == [TRANSACTIONS] * 2 * 2
    assert told[-1] == ("transaction ids written", len(usual + odd))
    in_order = sorted(usual + odd, key=lambda one: (len(one), one))
    data = b"\x01" + b"".join(varint(len(one)) + one for one in in_order)
    count = b"\x01" + varint(len(in_order))
    assert (tmp_path / "all" / "txids.data").read_bytes() == data
    assert (tmp_path / "all" / "txids.metadata").read_bytes() == count
    assert hashes == {
        "txids.data": hashlib.sha256(data).digest(),
        "txids.metadata": hashlib.sha256(count).digest(),
    }


def test_a_ledger_begun_with_fabrics_snapshot_goes_on_as_the_whole_one(
    tmp_path: Path, whole: Ledger
) -> None:
    joined = join_by_snapshot(RECORDED_MIDWAY, tmp_path / "l", msp_id="Org1MSP", durable=False)
    assert joined.channel_id == "goldenchannel"
    for _ in range(2):
        with Ledger.open(tmp_path / "l", msp_id="Org1MSP", durable=False) as ledger:
            # Once from the snapshot alone, once more after some of the blocks.
            for number in range(ledger.height, min(ledger.height + 6, HEIGHT)):
                committed = ledger.commit(ordered_block(number))
                assert committed.commit_hash.hex() == expected()["blocks"][number]["commit_hash"]
                assert committed.raw == stored_block(number)
                assert ledger.last_block_hash.hex() == expected()["blocks"][number]["hash"]
    with Ledger.open(
        tmp_path / "l", msp_id="Org1MSP", genesis=ordered_block(0), durable=False
    ) as ledger:
        assert ledger.height == HEIGHT
        assert _entries(ledger) == _entries(whole)
        _same_files(create_snapshot(ledger, tmp_path).folder, RECORDED)


def test_what_lies_before_a_snapshot_is_said_to_be_elsewhere(tmp_path: Path) -> None:
    join_by_snapshot(RECORDED_MIDWAY, tmp_path / "l", msp_id="Org1MSP", durable=False)
    with Ledger.open(tmp_path / "l", msp_id="Org1MSP", durable=False) as ledger:
        known = expected()["blocks"]
        assert (ledger.height, ledger.first_block) == (MIDWAY, MIDWAY)
        assert ledger.last_block_hash.hex() == known[70]["hash"]
        assert ledger.previous_block_hash.hex() == known[69]["hash"]
        assert ledger.config.application_orgs == ("Org1MSP", "Org2MSP")
        for ask in (
            lambda: ledger.block(70),
            lambda: ledger.block(0),
            lambda: ledger.config_at(70),
            ledger.last_config_block,
            lambda: ledger.commit(ordered_block(70)),
            lambda: ledger.transaction(known[9]["txs"][0]["txid"]),
            lambda: ledger.block_by_transaction(known[9]["txs"][0]["txid"]),
        ):
            with pytest.raises(BeforeSnapshotError, match="its first block is 71"):
                ask()
        assert ledger.knows_transaction(known[9]["txs"][0]["txid"])
        assert ledger.transaction("unknown") is None
        assert ledger.block_by_hash(bytes.fromhex(known[70]["hash"])) is None
        replay(ledger)
        assert ledger.block(71) == stored_block(71)
        assert ledger.last_config_block() == 81
        assert "Org3MSP" not in ledger.config_at(71).application_orgs
        assert "Org3MSP" in ledger.config_at(72).application_orgs
        record = ledger.transaction(known[82]["txs"][0]["txid"])
        assert record is not None
        assert record.block == 82


def test_collections_are_known_from_before_the_snapshot(tmp_path: Path, whole: Ledger) -> None:
    join_by_snapshot(RECORDED, tmp_path / "l", msp_id="Org1MSP", durable=False)
    with Ledger.open(tmp_path / "l", msp_id="Org1MSP", durable=False) as ledger:
        for number in (6, 62, 63, HEIGHT):
            assert ledger.collections_at("gold", number) == whole.collections_at("gold", number)
        assert ledger.collections_at("gold2", HEIGHT) is None


def test_private_data_from_before_the_snapshot_are_fetched_against_its_hashes(
    tmp_path: Path,
) -> None:
    join_by_snapshot(RECORDED, tmp_path / "l", msp_id="Org1MSP", durable=False)
    with Ledger.open(tmp_path / "l", msp_id="Org1MSP", durable=False) as ledger:
        missing = ledger.missing_private()
        assert {place.collection for place in missing} == {"collA", "_implicit_org_Org1MSP"}
        # Of what a key held only the last hash is in a snapshot, so only that is asked for.
        assert PrivatePlace(70, 24, "gold", "collA") in missing
        assert PrivatePlace(58, 0, "gold", "collA") not in missing
        place = PrivatePlace(70, 24, "gold", "collA")
        with ledger.view() as view, pytest.raises(PrivateDataUnavailableError):
            view.get_private("gold", "collA", "pk4")
        data = private_writes()[70, 24][2]
        with pytest.raises(PrivateDataError, match="wrong value"):
            ledger.reconcile(place, data.replace(b"four b", b"four c"))
        ledger.reconcile(place, data)
        with ledger.view() as view:
            value = view.get_private("gold", "collA", "pk4")
            assert value is not None
            assert (value.value, tuple(value.version)) == (b"four b", (70, 24))
        assert place not in ledger.missing_private()
    # A utility that is no member of a collection asks for nothing of it.
    join_by_snapshot(RECORDED, tmp_path / "other", msp_id="Org3MSP", durable=False)
    with Ledger.open(tmp_path / "other", msp_id="Org3MSP", durable=False) as ledger:
        assert ledger.missing_private() == []


def test_hashes_from_a_snapshot_expire_in_their_block(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger") as ledger:
        replay(ledger, 66)  # collB's key was written in block 64 and ends with block 68
        made = create_snapshot(ledger, tmp_path)
    join_by_snapshot(made.folder, tmp_path / "l", msp_id="Org1MSP", durable=False)
    with Ledger.open(tmp_path / "l", msp_id="Org1MSP", durable=False) as ledger:
        assert PrivatePlace(64, 0, "gold", "collB") in ledger.missing_private()
        replay(ledger, MIDWAY)
        _same_files(create_snapshot(ledger, tmp_path / "s").folder, RECORDED_MIDWAY)
        assert PrivatePlace(64, 0, "gold", "collB") not in ledger.missing_private()


@pytest.mark.parametrize("name", sorted(path.name for path in RECORDED.iterdir()))
def test_a_changed_snapshot_is_refused(tmp_path: Path, name: str) -> None:
    shutil.copytree(RECORDED, tmp_path / "s")
    changed = bytearray((tmp_path / "s" / name).read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "s" / name).chmod(0o600)
    (tmp_path / "s" / name).write_bytes(changed)
    with pytest.raises(SnapshotError, match=r"hash|unreadable"):
        join_by_snapshot(tmp_path / "s", tmp_path / "l", msp_id="Org1MSP", durable=False)
    (tmp_path / "s" / name).unlink()
    with pytest.raises(SnapshotError, match="lacks"):
        join_by_snapshot(tmp_path / "s", tmp_path / "l", msp_id="Org1MSP", durable=False)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def _forged(folder: Path, name: str, content: bytes) -> Path:
    """The recorded snapshot with another file, all hashes made to fit."""
    shutil.copytree(RECORDED, folder)
    for path in folder.iterdir():
        path.chmod(0o600)
    before = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / name).write_bytes(content)
    signable = (folder / SIGNABLE).read_text()
    old = hashlib.sha256(signable.encode()).hexdigest()
    signable = signable.replace(before, hashlib.sha256(content).hexdigest())
    (folder / SIGNABLE).write_text(signable)
    additional = (folder / ADDITIONAL).read_text()
    (folder / ADDITIONAL).write_text(
        additional.replace(old, hashlib.sha256(signable.encode()).hexdigest())
    )
    return folder


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("txids.metadata", b"\x02\x01", "newer format"),
        ("txids.metadata", b"", "no snapshot file"),
        ("txids.metadata", b"\x01\xff", "ends too soon"),
        ("txids.metadata", b"\x01\xff\xff\x03", "ends too soon"),
        ("txids.data", b"\x01\xff\xff\xff\xff\x7f", "too long"),
        ("public_state.metadata", b"\x01\x01\x04gold\x05", "unknown field|lacks the channel"),
        ("public_state.metadata", b"\x01\x01\x05gold\x00\x05", "namespace"),
        ("public_state.metadata", b"\x01\x01\x01\xff\x05", "name that is not UTF-8"),
        ("public_state.data", b"\x01\x02\x0a\x05", "ends too soon"),
        ("public_state.data", b"\x01\x03\x2a\x01x", "unknown field"),
        ("public_state.data", b"\x01\x03\x22\x01\x05", "version"),
        ("private_state_hashes.metadata", b"\x01\x01\x04gold\x05", "namespace"),
        ("confighistory.data", b"\x01\x03abc\x00", "unknown configuration entry"),
        (
            "confighistory.data",
            b"\x01\x1dslscc\0gold~collection" + bytes(8) + b"\x01\xff",
            "message that cannot be read: a contract's collections is not a valid",
        ),
    ],
)
def test_a_forged_snapshot_is_refused_in_a_sentence(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    forged = _forged(tmp_path / "s", name, content)
    with pytest.raises(SnapshotError, match=sentence):
        join_by_snapshot(forged, tmp_path / "l", msp_id="Org1MSP", durable=False)
    assert not (tmp_path / "l").exists()
    assert not (tmp_path / "l~joining").exists()


def test_a_snapshot_fills_a_new_folder_only(tmp_path: Path) -> None:
    join_by_snapshot(RECORDED, tmp_path / "l", msp_id="Org1MSP", durable=False)
    with pytest.raises(SnapshotError, match="there is a ledger"):
        join_by_snapshot(RECORDED, tmp_path / "l", msp_id="Org1MSP", durable=False)
    with pytest.raises(SnapshotError, match="no snapshot"):
        join_by_snapshot(tmp_path, tmp_path / "m", msp_id="Org1MSP", durable=False)


def test_blocks_are_found_by_their_hash(tmp_path: Path, whole: Ledger) -> None:
    for number in (0, 1, 40, 82):
        digest = bytes.fromhex(expected()["blocks"][number]["hash"])
        assert whole.block_by_hash(digest) == stored_block(number)
    assert whole.block_by_hash(bytes(32)) is None


def test_a_ledger_of_the_previous_format_gets_the_index_of_hashes(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        replay(ledger, 5)
        digest = header_hash(ordered_block(3).header)

        def back_to_format_1(transaction: object) -> None:
            for key, _ in list(transaction.range("block_hashes")):  # type: ignore[attr-defined]
                transaction.delete("block_hashes", key)  # type: ignore[attr-defined]
            transaction.note_format(ledger._environment._meta, 1)  # type: ignore[attr-defined]

        ledger._environment.write(back_to_format_1)
    # Looked at only, it is read as it is.
    with Ledger.open(tmp_path, msp_id="Org1MSP", read_only=True) as ledger:
        assert ledger.block_by_hash(digest) == stored_block(3)
        assert ledger.block_by_hash(bytes(32)) is None
    for _ in range(2):
        with open_ledger(tmp_path) as ledger:
            with ledger.tables() as tables:
                assert len(list(tables.range("block_hashes"))) == 5
            assert ledger.block_by_hash(digest) == stored_block(3)
    with open_ledger(tmp_path) as ledger:
        ledger._environment.write(lambda t: t.note_format(ledger._environment._meta, 99))
    with pytest.raises(FormatError, match="has storage format 99, and this version reads up to"):
        open_ledger(tmp_path)


# --- requests --------------------------------------------------------------------------------


def test_a_snapshot_is_made_after_the_block_it_was_asked_for(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger") as ledger:
        replay(ledger, 60)
        snapshots = Snapshots(ledger, tmp_path)
        assert snapshots.submit(70) == 70
        assert snapshots.submit(82) == 82
        assert snapshots.submit(80) == 80
        snapshots.cancel(80)
        assert snapshots.pending() == [70, 82]
        with pytest.raises(SnapshotError, match="duplicate snapshot request for block number 70"):
            snapshots.submit(70)
        with pytest.raises(SnapshotError, match="cannot be less than the last committed block"):
            snapshots.submit(58)
        with pytest.raises(SnapshotError, match="no snapshot request exists for block number 80"):
            snapshots.cancel(80)
        replay(ledger)
        wait_for(lambda: not snapshots.pending())
        _same_files(tmp_path / "completed" / "goldenchannel" / "70", RECORDED_MIDWAY)
        _same_files(tmp_path / "completed" / "goldenchannel" / "82", RECORDED)
        with pytest.raises(SnapshotError, match="already generated for block number 82"):
            snapshots.submit(0)
        snapshots.close()


def test_requests_outlive_a_restart(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger") as ledger:
        replay(ledger, 3)
        snapshots = Snapshots(ledger, tmp_path)
        snapshots.submit(3)
        snapshots.submit(4)
        snapshots.submit(70)
        snapshots.close()
        replay(ledger, 5)  # without anyone who makes snapshots: those of 3 and 4 are missed
    with open_ledger(tmp_path / "ledger") as ledger:
        snapshots = Snapshots(ledger, tmp_path)
        wait_for(lambda: snapshots.pending() == [70])
        # The last block's can still be made, the one before can't.
        assert [one.last_block for one in completed(tmp_path)] == [4]
        snapshots.close()


def test_a_snapshot_under_way_is_not_cancelled_and_ends_with_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    original = Snapshots._go_on

    def slow(self: Snapshots, what: str, done: int) -> None:
        entered.set()
        go_on.wait(30)
        original(self, what, done)

    monkeypatch.setattr(Snapshots, "_go_on", slow)
    with open_ledger(tmp_path / "ledger") as ledger:
        replay(ledger, 71)
        snapshots = Snapshots(ledger, tmp_path)
        assert snapshots.submit(0) == 70
        entered.wait(30)
        with pytest.raises(SnapshotError, match="under processing"):
            snapshots.cancel(70)
        replay(ledger, 72)  # blocks go on meanwhile
        closing = threading.Thread(target=snapshots.close)
        closing.start()
        wait_for(lambda: snapshots._closing)
        go_on.set()
        closing.join()
        assert not list((tmp_path / "temp").iterdir())
        assert completed(tmp_path) == []
    monkeypatch.undo()
    with open_ledger(tmp_path / "ledger") as ledger:
        snapshots = Snapshots(ledger, tmp_path)
        assert snapshots.submit(0) == 71
        wait_for(lambda: not snapshots.pending())
        assert [one.last_block for one in completed(tmp_path)] == [71]
        snapshots.close()


def test_blocks_committed_meanwhile_are_not_in_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(Snapshots, "_go_on", lambda *_: go_on.wait(30))
    with open_ledger(tmp_path / "ledger") as ledger:
        replay(ledger, 60)
        snapshots = Snapshots(ledger, tmp_path)
        snapshots.submit(70)
        replay(ledger)
        go_on.set()
        wait_for(lambda: not snapshots.pending())
        _same_files(tmp_path / "completed" / "goldenchannel" / "70", RECORDED_MIDWAY)
        snapshots.close()


def test_ledgers_of_ours_give_equal_snapshots(tmp_path: Path) -> None:
    """Three utilities with different private data, and transactions after a snapshot."""
    channel = Channel()
    hashes = set()
    with (
        channel.open(tmp_path / "Aurora") as aurora,
        channel.open(tmp_path / "Boreal", "Boreal") as boreal,
    ):
        # A chain of one block has no commit hash yet.
        first = create_snapshot(aurora, tmp_path / "s0")
        assert (first.last_block, first.commit_hash, first.previous_block_hash) == (0, b"", b"")
        join_by_snapshot(first.folder, tmp_path / "early", msp_id="CieloMSP", durable=False)
        with Ledger.open(tmp_path / "early", msp_id="CieloMSP", durable=False) as early:
            channel.deploy(aurora)
            used = channel.transaction(public_set(writes={"k" * 600: b"long", "a": b"1"}))
            channel.commit(aurora, used)
            for number in (1, 2):
                block = aurora._parsed(number)
                boreal.commit(block)
                early.commit(block)
            hashes.add(create_snapshot(aurora, tmp_path / "s1").hash)
            hashes.add(create_snapshot(boreal, tmp_path / "s2").hash)
            hashes.add(create_snapshot(early, tmp_path / "s3").hash)
            assert len(hashes) == 1
        [made] = completed(tmp_path / "s1")
        join_by_snapshot(made.folder, tmp_path / "Cielo", msp_id="CieloMSP", durable=False)
        with Ledger.open(tmp_path / "Cielo", msp_id="CieloMSP", durable=False) as cielo:
            # An id that only the snapshot names counts as used.
            assert channel.commit(cielo, used).codes == b"\x09"
            assert cielo.knows_transaction(cielo.committed(3).transaction_ids[0])
            with pytest.raises(BeforeSnapshotError):
                cielo.transaction(cielo.committed(3).transaction_ids[0])


def test_metadata_are_read_without_the_files(tmp_path: Path) -> None:
    snapshot = Snapshot.read(RECORDED)
    assert (snapshot.channel_id, snapshot.last_block) == ("goldenchannel", 82)
    assert len(snapshot.files) == 8
    snapshot.check()
