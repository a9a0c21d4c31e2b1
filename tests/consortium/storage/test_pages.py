"""What was deleted is gone from the file; a damaged file is named before LMDB runs into it."""

import random
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consortium.storage.environment import Environment, check_environment
from consortium.storage.pages import PageError, PageFile

TABLES = ("a", "b")


def _content(environment: Environment) -> dict[str, list[tuple[bytes, bytes]]]:
    with environment.read() as transaction:
        return {table: list(transaction.range(table)) for table in TABLES}


def _marked(mark: int, length: int) -> bytes:
    """A value whose every part can be found in the file."""
    return (b"<secret %08d>" % mark * (length // 17 + 1))[:length] if length > 16 else b"x" * length


step = st.tuples(
    st.integers(0, 60),  # key
    st.sampled_from([0, 20, 300, 1500, 2100, 3900, 4090, 9000]),  # length; 0: delete
    st.booleans(),  # commit after it
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(step, min_size=1, max_size=120), st.data())
def test_what_was_deleted_is_not_in_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[int, int, bool]],
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("pages")
    environment = Environment(path, TABLES, format_version=1, durable=False)
    stored: dict[int, bytes] = {}
    batch: list[tuple[int, bytes]] = []

    def commit() -> None:
        def change(transaction: object) -> None:
            for key, value in batch:
                name = b"key %08d" % key * (50 if key % 10 == 0 else 1)  # some have overflow form
                if value:
                    transaction.put("a", name, value)  # type: ignore[attr-defined]
                    transaction.put("b", value[:24] + name, b"")  # type: ignore[attr-defined]
                else:
                    transaction.delete("a", name)  # type: ignore[attr-defined]
                old = stored.get(key)
                if old:
                    transaction.delete("b", old[:24] + name)  # type: ignore[attr-defined]
                if value:
                    stored[key] = value
                else:
                    stored.pop(key, None)

        environment.write(change)
        batch.clear()

    seen = set()
    for mark, (key, length, ends) in enumerate(steps, 1):
        batch.append((key, _marked(mark, length)))
        if length > 16:
            seen.add(b"<secret %08d>" % mark)
        if ends:
            commit()
        if ends and data.draw(st.booleans(), "erase"):
            assert environment.erase()
    commit()
    before = _content(environment)
    assert environment.erase()
    assert _content(environment) == before
    with PageFile(path / "data.mdb") as file:
        file.check()
    file_bytes = (path / "data.mdb").read_bytes()
    kept = {bytes(value[:17]) for value in stored.values() if len(value) > 16}
    for one in seen - kept:
        # Neither whole nor in part: a piece of it may stand at the edge of what is left.
        assert one not in file_bytes
        assert one[4:] not in file_bytes
    # LMDB itself goes on with it.
    environment.write(lambda t: t.put("a", b"more", b"x" * 5000))
    environment.close()
    reopened = Environment(path, TABLES, format_version=1, durable=False)
    assert _content(reopened)["a"] == sorted([*before["a"], (b"more", b"x" * 5000)])
    reopened.close()


def test_pages_that_somebody_reads_are_erased_afterwards(tmp_path: Path) -> None:
    environment = Environment(tmp_path, TABLES, format_version=1, durable=False)
    secret = b"held by a reader " * 10
    environment.write(lambda t: t.put("a", b"k", secret))
    with environment.read() as reading:
        environment.write(lambda t: t.delete("a", b"k"))
        assert not environment.erase()
        assert reading.get("a", b"k") == secret
    assert environment.erase()
    assert secret not in (tmp_path / "data.mdb").read_bytes()
    environment.close()


def _filled(path: Path) -> None:
    environment = Environment(path, TABLES, format_version=1, durable=False)
    dice = random.Random(1)

    def length() -> int:
        return dice.choice([5, 90, 5000])

    for _ in range(5):
        environment.write(
            lambda t: [
                t.put(
                    "a", b"%06d" % dice.randrange(3000), dice.randbytes(dice.choice([5, 90, 5000]))
                )
                for _ in range(150)
            ]
        )
    environment.write(lambda t: [t.delete("a", key) for key, _ in list(t.range("a"))[::3]])
    environment.close()


def test_a_sound_file_passes(tmp_path: Path) -> None:
    _filled(tmp_path)
    with PageFile(tmp_path / "data.mdb") as file:
        assert file.check() > 50


WRITER = """
import sys
from pathlib import Path
from consortium.storage.environment import Environment
environment = Environment(Path(sys.argv[1]), ["a", "b"], format_version=1)
environment.write(lambda t: t.put("b", b"large", bytes(4_000_000)))
environment.close()
"""


def test_a_file_that_grows_while_it_is_checked_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running peer commits beside `gridledger verify`: after the file was opened, say."""
    _filled(tmp_path)
    checked: list[int] = []
    check = PageFile.check

    def slow_check(file: PageFile) -> int:
        if not checked:
            checked.append(0)
            subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], check=True)
        checked.append(check(file))
        return checked[-1]

    monkeypatch.setattr(PageFile, "check", slow_check)
    check_environment(tmp_path)
    assert len(checked) == 2, "it was checked whole once, when it had grown"
    assert checked[1] > 4_000_000 // 4096


def test_flipped_bits_either_fail_the_check_or_leave_lmdb_a_file_to_read(tmp_path: Path) -> None:
    """What passes LMDB walks without harm; what a value should be is not known here."""
    _filled(tmp_path)
    path = tmp_path / "data.mdb"
    sound = path.read_bytes()
    dice = random.Random(2)
    found = 0
    deadline = time.monotonic() + 20
    for _ in range(400):
        if time.monotonic() > deadline:
            break
        damaged = bytearray(sound)
        page = dice.randrange(len(sound) // 4096) * 4096
        # Headers and pointers are where it hurts.
        at = page + dice.choice([dice.randrange(16), dice.randrange(200), dice.randrange(4096)])
        damaged[at] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            with PageFile(path) as file:
                file.check()
        except PageError:
            found += 1
            continue
        environment = lmdb.open(str(tmp_path), readonly=True, lock=False, max_dbs=8)
        try:
            with environment.begin() as transaction:
                for name, _ in transaction.cursor():
                    table = environment.open_db(name, txn=transaction, create=False)
                    for _ in transaction.cursor(db=table):
                        pass
        finally:
            environment.close()
    assert found > 20


@pytest.mark.parametrize("content", [b"", b"x" * 10_000, bytes(10_000)])
def test_what_is_no_database_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises(PageError):  # noqa: SIM117
        with PageFile(tmp_path / "data.mdb") as file:
            file.check()
