"""Tables of any key length, a map that grows, bounded readers, formats."""

import errno
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consortium.storage import environment as module
from consortium.storage.environment import (
    DiskError,
    Environment,
    FormatError,
    StorageBusyError,
    StorageError,
    WriteTransaction,
    disk_error,
)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    opened = Environment(tmp_path / "index", ["a", "b"], format_version=1, durable=False)
    yield opened
    opened.close()


def _all(environment: Environment, table: str = "a") -> list[tuple[bytes, bytes]]:
    with environment.read() as transaction:
        return list(transaction.range(table))


def test_values_stay_and_tables_are_apart(tmp_path: Path) -> None:
    first = Environment(tmp_path, ["a", "b"], format_version=1)
    first.write(lambda t: t.put("a", b"key", b"value"))
    first.write(lambda t: t.put("b", b"key", b"other"))
    first.close()
    second = Environment(tmp_path, ["a", "b"], format_version=1)
    with second.read() as transaction:
        assert transaction.get("a", b"key") == b"value"
        assert transaction.get("b", b"key") == b"other"
        assert transaction.get("a", b"none") is None
    second.close()


def test_a_failed_change_leaves_nothing(environment: Environment) -> None:
    def change(transaction: WriteTransaction) -> None:
        transaction.put("a", b"key", b"value")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        environment.write(change)
    assert _all(environment) == []


# Keys around the lengths at which they are cut, many of them sharing long beginnings.
KEYS = st.builds(
    lambda head, length, tail: (head * length)[:length] + tail,
    st.sampled_from([b"a", b"ab", b"\x00", b"\xff"]),
    st.sampled_from([1, 2, 509, 510, 511, 512, 513, 1013, 1014, 1015, 1600]),
    st.binary(max_size=3),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=4))), max_size=25),
    start=KEYS,
    end=st.one_of(st.none(), KEYS),
)
def test_keys_of_any_length_sort_as_bytes_do(
    environment: Environment,
    changes: list[tuple[bytes, bytes | None]],
    start: bytes,
    end: bytes | None,
) -> None:
    """Whatever is put and deleted: the table is a sorted dictionary."""
    model: dict[bytes, bytes] = {}

    def change(transaction: WriteTransaction) -> None:
        for key, _ in list(transaction.range("a")):
            assert transaction.delete("a", key)
        assert list(transaction.range("a")) == []
        for key, value in changes:
            if value is None:
                assert transaction.delete("a", key) == (model.pop(key, None) is not None)
            else:
                transaction.put("a", key, value)
                model[key] = value

    environment.write(change)
    assert _all(environment) == sorted(model.items())
    with environment.read() as transaction:
        assert transaction.stray_branch("a") is None
        for key, _ in changes:
            assert transaction.get("a", key) == model.get(key)
        found = list(transaction.range("a", start, end))
        prefixed = list(transaction.prefixed("a", start[:512]))
    assert found == sorted(
        item for item in model.items() if start <= item[0] and (end is None or item[0] < end)
    )
    assert prefixed == sorted(item for item in model.items() if item[0].startswith(start[:512]))


def test_very_long_keys(environment: Environment) -> None:
    """A key of a megabyte, which is thousands of pieces. Anybody may have one stored."""
    long = b"k" * 1_000_000
    environment.write(lambda t: t.put("a", long + b"1", b"one"))
    environment.write(lambda t: t.put("a", long + b"0", b"zero"))
    tracemalloc.start()
    try:
        assert _all(environment) == [(long + b"0", b"zero"), (long + b"1", b"one")]
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20 * len(long)
    assert environment.write(lambda t: t.delete("a", long + b"1"))
    assert environment.write(lambda t: t.delete("a", long + b"0"))
    assert _all(environment) == []


def test_a_counter_of_an_earlier_version_is_left_out(tmp_path: Path) -> None:
    """Branches of long keys were counted; now the next one comes after the last that is there."""
    path = tmp_path / "index"
    first = Environment(path, ["a"], format_version=1)
    first.write(lambda t: t.put("a", b"k" * 600, b"one"))
    first.close()
    counter = bytes(8)
    file = lmdb.open(str(path), max_dbs=8)
    overflow = file.open_db(b"a~", create=False)
    with file.begin(write=True, db=overflow) as transaction:
        transaction.put(counter, (7).to_bytes(8))
    file.close()
    again = Environment(path, ["a"], format_version=1)
    with again.read() as reading:
        assert list(reading.range("a")) == [(b"k" * 600, b"one")]
        assert reading.stray_branch("a") is None
    again.write(lambda t: t.put("a", b"l" * 1200, b"two"))
    assert _all(again) == [(b"k" * 600, b"one"), (b"l" * 1200, b"two")]
    again.close()
    file = lmdb.open(str(path), max_dbs=8)
    with file.begin(db=file.open_db(b"a~", create=False)) as transaction:
        assert transaction.get(counter) is None
    file.close()


def test_the_map_grows_when_it_is_full(tmp_path: Path) -> None:
    environment = Environment(
        tmp_path, ["a"], format_version=1, durable=False, map_bytes=256 * 1024
    )
    before = environment.map_bytes
    calls = []

    def change(transaction: WriteTransaction) -> None:
        calls.append(1)
        for number in range(300):
            transaction.put("a", number.to_bytes(4), bytes(4000))

    environment.write(change)
    assert len(calls) > 1
    assert environment.map_bytes > before
    assert len(_all(environment)) == 300
    environment.close()


def test_growing_waits_for_readers(tmp_path: Path) -> None:
    environment = Environment(
        tmp_path, ["a"], format_version=1, durable=False, map_bytes=256 * 1024
    )
    writer = threading.Thread(
        target=lambda: environment.write(lambda t: t.put("a", b"big", bytes(2_000_000)))
    )
    with environment.read() as transaction:
        writer.start()
        time.sleep(0.1)
        assert writer.is_alive()
        assert transaction.get("a", b"big") is None
    writer.join(60)
    with environment.read() as transaction:
        assert transaction.get("a", b"big") == bytes(2_000_000)
    environment.close()


def test_a_reader_sees_one_picture(environment: Environment) -> None:
    environment.write(lambda t: t.put("a", b"key", b"1"))
    with environment.read() as transaction:
        environment.write(lambda t: t.put("a", b"key", b"2"))
        assert transaction.get("a", b"key") == b"1"
    with environment.read() as transaction:
        assert transaction.get("a", b"key") == b"2"


def test_readers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READER_WAIT_S", 0.05)
    environment = Environment(tmp_path, ["a"], format_version=1, reader_limit=2)
    with environment.read(), environment.read():
        busy = pytest.raises(StorageBusyError, match="2 read transactions are open")
        with busy, environment.read():
            pass
        with environment.read(privileged=True):
            pass
    with environment.read():
        pass
    environment.close()


def test_a_newer_format_is_refused_in_a_sentence(tmp_path: Path) -> None:
    Environment(tmp_path, ["a"], format_version=2).close()
    with pytest.raises(FormatError, match="has storage format 2, and this version reads up to 1"):
        Environment(tmp_path, ["a"], format_version=1)
    with pytest.raises(FormatError, match="has storage format 2, and this version reads 3 to 3"):
        Environment(tmp_path, ["a"], format_version=3)


def test_the_previous_format_is_migrated_in_one_step(tmp_path: Path) -> None:
    environment = Environment(tmp_path, ["a"], format_version=1)
    environment.write(lambda t: t.put("a", b"one", b"1"))
    environment.close()

    def index(transaction: WriteTransaction) -> None:
        for key, value in transaction.range("a"):
            transaction.put("b", value, key)

    def reopen(*, read_only: bool) -> Environment:
        return Environment(
            tmp_path, ["a", "b"], format_version=2, migrations={1: index}, read_only=read_only
        )

    # Looked at only, it stays as it is; the table that it lacks is empty.
    environment = reopen(read_only=True)
    with environment.read() as transaction:
        assert transaction.get("a", b"one") == b"1"
        assert transaction.get("b", b"1") is None
        assert list(transaction.range("b")) == []
    assert environment.stored_format == 1
    environment.close()
    for _ in range(2):
        environment = reopen(read_only=False)
        with environment.read() as transaction:
            assert transaction.get("b", b"1") == b"one"
        assert environment.stored_format == 2
        environment.close()
    with pytest.raises(FormatError, match="reads up to 1"):
        Environment(tmp_path, ["a"], format_version=1)


def test_a_refused_newer_format_is_not_touched(tmp_path: Path) -> None:
    Environment(tmp_path, ["a"], format_version=2).close()
    before = (tmp_path / "data.mdb").read_bytes()
    with pytest.raises(FormatError):
        Environment(tmp_path, ["a", "another"], format_version=1)
    assert (tmp_path / "data.mdb").read_bytes() == before


READER = """
import sys
from pathlib import Path
from consortium.storage.environment import Environment
environment = Environment(Path(sys.argv[1]), ["a"], format_version=1, read_only=True)
for _ in sys.stdin:
    with environment.read() as transaction:
        print(*(len(value) for _, value in transaction.range("a")), flush=True)
"""


def test_another_process_reads_what_is_written_and_follows_the_map(tmp_path: Path) -> None:
    writer = Environment(tmp_path, ["a"], format_version=1, map_bytes=256 * 1024)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    for length in (1, 20, 3_000_000, 40):  # the third makes the map grow
        writer.write(lambda t, length=length: t.put("a", b"key", bytes(length)))
        reader.stdin.write("read\n")
        assert reader.stdout.readline() == f"{length}\n"
    reader.stdin.close()
    assert reader.wait(60) == 0
    reader.stdout.close()
    writer.close()


def test_closing_waits_for_readers_and_refuses_new_ones(environment: Environment) -> None:
    """LMDB would unmap the file under a reader, and the process would be gone."""
    environment.write(lambda t: t.put("a", b"key", b"value"))
    reading, go_on = threading.Event(), threading.Event()
    seen: list[bytes | None] = []

    def read() -> None:
        with environment.read() as transaction:
            reading.set()
            go_on.wait(60)
            seen.append(transaction.get("a", b"key"))

    reader = threading.Thread(target=read)
    reader.start()
    reading.wait(60)
    closing = threading.Thread(target=environment.close)
    closing.start()
    time.sleep(0.05)
    assert closing.is_alive()
    go_on.set()
    closing.join(60)
    reader.join(60)
    assert seen == [b"value"]
    with pytest.raises(StorageError, match="is closed"), environment.read():
        pass
    with pytest.raises(StorageError, match="is closed"):
        environment.write(lambda t: t.put("a", b"key", b"late"))


def test_a_write_cut_short_on_a_full_disk_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB reports it as an I/O error; only the free space tells it from a broken disk."""
    broken = OSError(errno.EIO, "")
    assert "the disk reports errors" in str(disk_error(tmp_path, broken))
    room = os.statvfs(tmp_path)
    full = os.statvfs_result((*room[:4], 0, *room[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    assert "the disk is full" in str(disk_error(tmp_path, broken))


def test_where_the_last_step_of_a_commit_is_refused_everybody_is_told_that_it_is_the_disk(
    tmp_path: Path,
) -> None:
    """LMDB panics then; the file that it writes meta pages to is replaced for that here."""
    environment = Environment(tmp_path, ["a"], format_version=1)
    told: list[DiskError] = []
    environment.on_disk_error = told.append
    environment.write(lambda t: t.put("a", b"key", b"value"))
    data = tmp_path / "data.mdb"
    opened = [
        int(one.name)
        for one in Path("/proc/self/fd").iterdir()
        if one.exists() and one.readlink() == data
    ]
    read_only = os.open(data, os.O_RDONLY)
    os.dup2(read_only, max(opened))
    os.close(read_only)
    for _ in range(2):
        with pytest.raises(DiskError):
            environment.write(lambda t: t.put("a", b"key", b"another"))
    with pytest.raises(DiskError, match="the disk reports errors"), environment.read():
        pass
    assert len(told) == 3
    environment.close()
    again = Environment(tmp_path, ["a"], format_version=1)
    with again.read() as transaction:
        assert transaction.get("a", b"key") == b"value"
    again.close()


def test_a_disk_that_is_read_only_when_deleted_data_are_erased_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Erasing opens the file anew, which such a disk refuses: nothing can be stored any more."""
    environment = Environment(tmp_path, ["a"], format_version=1)
    told: list[DiskError] = []
    environment.on_disk_error = told.append

    def refuse(path: str, **_: object) -> None:
        raise lmdb.Error(f"{path}: Read-only file system")

    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(DiskError, match="the disk is read-only"):
        environment.erase()
    assert len(told) == 1
    environment.close()
