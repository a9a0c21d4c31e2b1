"""Verification names any change of what a peer has stored, wherever it was made."""

import random
import shutil
import time
from pathlib import Path

import lmdb
import pytest

from consortium.ledger.ledger import Ledger
from consortium.ledger.snapshot import create_snapshot, join_by_snapshot
from consortium.ledger.state import LedgerError
from consortium.ledger.verify import Report, verify_ledger
from consortium.storage.environment import FormatError, StorageError
from consortium.wire.envelopes import open_envelope

from .channel import (
    CHAINCODE,
    Channel,
    collection,
    private_set,
    public_set,
)
from .recorded import (
    FOLDER,
    HEIGHT,
    open_ledger,
    ordered_block,
    private_rwset,
    private_writes,
    replay,
)

CHANGES = 250
BUDGET_S = 4


def _private(
    channel: Channel, ledger: Ledger, name: str, writes: dict[str, bytes], *, held: bool = True
) -> None:
    rwset, data = private_set(name, writes)
    envelope = channel.transaction(rwset)
    if held:
        transaction_id = open_envelope(envelope).channel_header.tx_id
        stored = private_rwset(CHAINCODE, name, data)
        ledger.store_transient(transaction_id, stored, ledger.height)
    assert channel.commit(ledger, envelope).codes == b"\0"


@pytest.fixture(scope="module")
def channel() -> Channel:
    return Channel()


@pytest.fixture(scope="module")
def folder(channel: Channel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ledger with something in every table, a snapshot from its middle beside it."""
    folder = tmp_path_factory.mktemp("verify")
    with channel.open(folder / "ledger") as ledger:
        channel.deploy(
            ledger,
            collections=[
                collection("kept", ["Aurora"], policy="OR('AuroraMSP.peer')"),
                collection("short", ["Aurora"], policy="OR('AuroraMSP.peer')", block_to_live=4),
                collection("others", ["Boreal"], policy="OR('BorealMSP.peer')"),
            ],
        )
        long = {"k" * 600: b"a long key", "k" * 1200: b"a longer one", "": b"empty"}
        moved = public_set(
            writes={f"key {n}": b"value %d" % n for n in range(12)} | long,
            policies={"key 1": "OR('AuroraMSP.peer')"},
        )
        channel.commit(ledger, channel.transaction(moved))
        _private(channel, ledger, "kept", {"p1": b"one", "p2": b"two" * 900, "p3": b"three"})
        _private(channel, ledger, "others", {"o1": b"not ours"}, held=False)
        create_snapshot(ledger, folder)
        _private(channel, ledger, "kept", {"p1": b"one b"}, held=False)  # missed
        _private(channel, ledger, "kept", {"p4": b"four", "p5": b"five"})
        rwset, _ = private_set("kept", {}, purges=["p3", "p5"])
        channel.commit(ledger, channel.transaction(rwset))
        _private(channel, ledger, "short", {"s0": b"expires"})
        for number in range(6):
            change = public_set(writes={"key 0": b"again %d" % number, f"key {number}": b""})
            channel.commit(ledger, channel.transaction(change))
        _private(channel, ledger, "short", {"s1": b"will expire"})
        duplicate = channel.transaction(public_set(writes={"x": b"y"}))
        channel.commit(ledger, duplicate, duplicate)
        _, data = private_set("kept", {"w": b"waits"})
        ledger.store_transient("f" * 64, private_rwset(CHAINCODE, "kept", data), ledger.height)
        deadline = time.monotonic() + 60
        while not ledger.eraser.idle:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return folder


def _snapshot(folder: Path) -> Path:
    return next((folder / "completed").glob("*/*"))


def _verify(ledger: Path, snapshot: Path | None = None) -> Report:
    try:
        return verify_ledger(ledger, snapshot=snapshot)
    except (LedgerError, StorageError, FormatError) as error:
        return Report(0, 0, 0, 0, 0, str(error))


def test_a_sound_ledger_is_clean(folder: Path) -> None:
    report = _verify(folder / "ledger")
    assert report.problem is None
    assert (report.height, report.blocks, report.private_values) == (17, 17, 3)
    from_snapshot = _verify(folder / "ledger", _snapshot(folder))
    assert from_snapshot.problem is None
    assert from_snapshot.blocks == 12


def _entries(path: Path) -> list[tuple[bytes, bytes, bytes]]:
    """Every entry of every table: table, key, value."""
    environment = lmdb.open(str(path / "index"), readonly=True, lock=False, max_dbs=64)
    found = []
    try:
        with environment.begin() as transaction:
            for name, _ in transaction.cursor():
                table = environment.open_db(name, txn=transaction, create=False)
                found += [(name, key, value) for key, value in transaction.cursor(db=table)]
    finally:
        environment.close()
    return found


def _replace(path: Path, table: bytes, old: bytes, new: tuple[bytes, bytes] | None) -> None:
    environment = lmdb.open(str(path / "index"), max_dbs=64)
    try:
        handle = environment.open_db(table, create=False)
        with environment.begin(write=True, db=handle) as transaction:
            transaction.delete(old)
            if new is not None:
                transaction.put(*new)
    finally:
        environment.close()


def _flipped(dice: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("part", ["key", "value", "entry"])
def test_every_change_of_an_entry_is_named(folder: Path, tmp_path: Path, part: str) -> None:
    dice = random.Random(part)
    entries = _entries(folder / "ledger")
    by_table: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for table, key, value in entries:
        if (part != "value" or value) and key:
            by_table.setdefault(table, []).append((key, value))
    assert len(by_table) > 12
    # Each table gets its share, the small ones whole.
    chosen = [
        (table, *one)
        for table, rows in sorted(by_table.items())
        for one in dice.sample(rows, min(len(rows), 8))
    ]
    dice.shuffle(chosen)
    deadline = time.monotonic() + BUDGET_S
    tried = 0
    for table, key, value in chosen[:CHANGES]:
        if time.monotonic() > deadline:
            break
        path = tmp_path / f"{tried}"
        shutil.copytree(folder / "ledger", path)
        if part == "entry":
            _replace(path, table, key, None)
        else:
            new = (_flipped(dice, key), value) if part == "key" else (key, _flipped(dice, value))
            _replace(path, table, key, new)
        if (table, part) == (b"ledger", "entry") and key.startswith(b"private data"):
            continue
        assert _verify(path).problem is not None, (table, key, value)
        shutil.rmtree(path)
        tried += 1
    assert tried >= 4


def test_every_change_of_a_segment_is_named(folder: Path, tmp_path: Path) -> None:
    dice = random.Random(4)
    shutil.copytree(folder / "ledger", tmp_path / "l")
    [segment] = (tmp_path / "l" / "blocks").iterdir()
    sound = segment.read_bytes()
    for at in [0, 7, 8, 12, 16, len(sound) - 1, *(dice.randrange(len(sound)) for _ in range(24))]:
        damaged = bytearray(sound)
        damaged[at] ^= 1 << dice.randrange(8)
        segment.write_bytes(damaged)
        assert _verify(tmp_path / "l").problem is not None, at
    segment.write_bytes(sound[:-1])
    assert _verify(tmp_path / "l").problem is not None
    segment.unlink()
    assert "is missing" in str(_verify(tmp_path / "l").problem)


def test_bits_flipped_in_the_database_file_are_named(folder: Path, tmp_path: Path) -> None:
    """Raw bits anywhere in the file: named, unless every table still holds what it held."""
    dice = random.Random(5)
    shutil.copytree(folder / "ledger", tmp_path / "l")
    path = tmp_path / "l" / "index" / "data.mdb"
    sound = path.read_bytes()
    content = _entries(tmp_path / "l")
    deadline = time.monotonic() + BUDGET_S
    named = tried = 0
    while tried < 120 and time.monotonic() < deadline:
        at = dice.randrange(len(sound))
        if not sound[at] and dice.random() < 0.9:
            continue  # mostly gaps and free pages, which hold zeros
        tried += 1
        damaged = bytearray(sound)
        damaged[at] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        if _verify(tmp_path / "l").problem is not None:
            named += 1
            continue
        assert _entries(tmp_path / "l") == content, at
    assert named >= tried // 5


def test_a_ledger_begun_with_a_snapshot_is_verified_from_it(
    channel: Channel, folder: Path, tmp_path: Path
) -> None:
    snapshot = _snapshot(folder)
    join_by_snapshot(snapshot, tmp_path / "l", msp_id="AuroraMSP")
    with (
        channel.open(folder / "ledger") as whole,
        Ledger.open(tmp_path / "l", msp_id="AuroraMSP") as ledger,
    ):
        for number in range(ledger.height, whole.height):
            ledger.commit(whole._parsed(number))
        create_snapshot(ledger, tmp_path / "later")
        [after] = (tmp_path / "later" / "completed").glob("*/*")
        assert verify_ledger(ledger, snapshot=after).problem is None
        with pytest.raises(LedgerError, match="begins after block 4, with the snapshot"):
            verify_ledger(ledger)
        with pytest.raises(LedgerError, match="is a snapshot of goldenchannel"):
            verify_ledger(ledger, snapshot=FOLDER / "snapshot")
        join_by_snapshot(snapshot, tmp_path / "short", msp_id="AuroraMSP")
        with (
            Ledger.open(tmp_path / "short", msp_id="AuroraMSP") as short,
            pytest.raises(LedgerError, match="was made after block 16, and the ledger holds"),
        ):
            verify_ledger(short, snapshot=after)
        report = verify_ledger(ledger, snapshot=snapshot)
        assert (report.problem, report.blocks, report.height) == (None, 12, 17)
    dice = random.Random(6)
    for table, key, value in dice.sample(
        [
            one
            for one in _entries(tmp_path / "l")
            if one[2] and one[0] in (b"state", b"ledger", b"snapshot_hashes", b"transactions")
        ],
        15,
    ):
        path = tmp_path / "changed"
        shutil.copytree(tmp_path / "l", path)
        _replace(path, table, key, (key, _flipped(dice, value)))
        assert _verify(path, snapshot).problem is not None, (table, key)
        shutil.rmtree(path)


def test_a_running_ledger_is_verified(channel: Channel, tmp_path: Path) -> None:
    with channel.open(tmp_path) as ledger:
        channel.deploy(ledger)
        assert verify_ledger(ledger).problem is None


def test_the_recorded_chain_with_its_private_data(tmp_path: Path) -> None:
    """Held, missed, reconciled, deleted, purged and expired ones, policies of keys among them."""
    with open_ledger(tmp_path / "l") as ledger:
        held = private_writes()
        for number in range(1, HEIGHT):
            for (block, tx), (namespace, name, data) in held.items():
                if block == number and (block, tx) not in ((50, 0), (58, 0)):
                    transaction = _transaction_id(number, tx)
                    ledger.store_transient(
                        transaction, private_rwset(namespace, name, data), ledger.height
                    )
            replay(ledger, number + 1)
        report = verify_ledger(ledger)
        assert report.problem is None
        for place in ledger.missing_private():
            if (place.block, place.tx) in held:
                ledger.reconcile(place, held[place.block, place.tx][2])
        report = verify_ledger(ledger)
        assert report.problem is None
        assert report.private_values > 3


def _transaction_id(block: int, tx: int) -> str:
    return open_envelope(ordered_block(block).data.data[tx]).channel_header.tx_id


def test_what_waits_for_its_transaction(folder: Path, tmp_path: Path) -> None:
    """A change of its transaction's id, its sender, its height or its data; and its removal."""
    [(table, key, value)] = [
        one for one in _entries(folder / "ledger") if one[0] == b"transient" and one[1][0]
    ]
    seal = key.index(b"\0") + 1

    def flipped(data: bytes, at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    places = (0, seal - 2, seal - 1, seal, seal + 8, len(key) - 1)
    for change in (
        None,
        *((flipped(key, at), value) for at in places),
        *((key, flipped(value, at)) for at in (0, 7, 8, len(value) - 1)),
        (key, value + b"\0"),
    ):
        shutil.copytree(folder / "ledger", tmp_path / "l")
        _replace(tmp_path / "l", table, key, change)
        assert _verify(tmp_path / "l").problem is not None, change
        shutil.rmtree(tmp_path / "l")


def test_a_set_that_is_sent_again_waits_as_one(channel: Channel, tmp_path: Path) -> None:
    """From the later height on, whoever sent it; the sums stay right."""
    with channel.open(tmp_path) as ledger:
        channel.deploy(ledger)
        _, data = private_set("kept", {"w": b"waits"})
        waiting = private_rwset(CHAINCODE, "kept", data)
        for height, source in ((5, "AuroraMSP"), (9, "BorealMSP"), (7, "AuroraMSP")):
            ledger.store_transient("e" * 64, waiting, height, source)
        assert ledger.transient("e" * 64) == [waiting]
        assert verify_ledger(ledger).problem is None
        assert ledger.purge_transient(9) == 0
        assert ledger.purge_transient(10) == 1
        assert verify_ledger(ledger).problem is None
