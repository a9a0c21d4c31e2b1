"""Copies of nodes' folders: what is in them, and what is said where they can't be made."""

import fcntl
import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from consortium.ca.registry import Registry
from consortium.identity.certificates import CertificateAuthority
from consortium.ledger.ledger import Ledger
from consortium.node import backup
from consortium.node.backup import RESTORE, BackupError, back_up
from tests.consortium.ledger.channel import CHANNEL_ID, Channel


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    """A peer's folder, with a ledger of one block."""
    folder = tmp_path / "peer"
    (folder / "packages").mkdir(parents=True)
    (folder / "packages" / "energy.tar.gz").write_bytes(b"package")
    _private(folder / "sign.key.pem", b"key")
    Channel().open(folder / "ledger" / CHANNEL_ID).close()
    return folder


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """An enrolment authority's folder, with one identity registered."""
    folder = tmp_path / "ca"
    folder.mkdir()
    CertificateAuthority.create("Aurora", "aurora.example").save(folder)
    Registry.open(folder).register("home-1")
    return folder


def _private(path: Path, content: bytes, mode: int = 0o600) -> None:
    path.write_bytes(content)
    path.chmod(mode)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_that_are_links_are_copied_as_files(peer: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    _private(tmp_path / "secrets" / "key", b"kept elsewhere", 0o444)
    (peer / "tls.key.pem").symlink_to(tmp_path / "secrets" / "key")
    (peer / "sign.cert.pem").write_bytes(b"certificate")
    (peer / "sign.cert.pem").chmod(0o644)
    os.utime(peer / "sign.cert.pem", ns=(1, 10**18))
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(os.path.relpath(peer / "socket"))
        made = back_up(peer, tmp_path / "copy")
    copy = tmp_path / "copy"
    assert (copy / "tls.key.pem").read_bytes() == b"kept elsewhere"
    assert not (copy / "tls.key.pem").is_symlink()
    assert _mode(copy / "tls.key.pem") == _mode(copy / "sign.key.pem") == 0o600
    assert _mode(copy / "sign.cert.pem") == 0o644
    assert (copy / "sign.cert.pem").stat().st_mtime_ns == 10**18
    assert (copy / "packages" / "energy.tar.gz").read_bytes() == b"package"
    assert not (copy / "socket").exists()
    assert made.heights == {CHANNEL_ID: 1}
    assert made.gone == ()
    assert "Backup of a peer" in (copy / RESTORE).read_text()


@pytest.mark.parametrize(
    ("target", "sentence"), [("elsewhere", "is a link to a folder"), ("nowhere", "leads nowhere")]
)
def test_links_that_are_no_files_are_refused(
    peer: Path, tmp_path: Path, target: str, sentence: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (peer / "keys").symlink_to(tmp_path / target)
    with pytest.raises(BackupError, match=sentence):
        back_up(peer, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "peer"]


def test_snapshots_and_ledgers_may_lie_on_another_disk(peer: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "snapshots").mkdir(parents=True)
    (peer / "snapshots").symlink_to(tmp_path / "disk" / "snapshots")
    (peer / "ledger").rename(tmp_path / "disk" / "ledger")
    (peer / "ledger").symlink_to(tmp_path / "disk" / "ledger")
    assert back_up(peer, tmp_path / "copy").heights == {CHANNEL_ID: 1}
    assert not (tmp_path / "copy" / "ledger").is_symlink()
    assert not (tmp_path / "copy" / "snapshots").exists()


def test_files_that_vanish_do_not_end_a_backup(
    peer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanishing = (".sign.key.pem.x1y2", "packages/old.tar.gz", "sign.key.pem.new")
    for name in vanishing:
        (peer / name).write_bytes(b"x")
    (peer / ".#an-editor's-lock").symlink_to("user@host.1")
    walk = backup._plain_files

    def late(source: Path) -> Iterator[Path]:
        for path in list(walk(source)):
            if str(path.relative_to(source)) in vanishing:
                path.unlink()
            yield path

    monkeypatch.setattr(backup, "_plain_files", late)
    made = back_up(peer, tmp_path / "copy")
    assert sorted(made.gone) == ["packages/old.tar.gz", "sign.key.pem.new"]
    assert (tmp_path / "copy" / "sign.key.pem").read_bytes() == b"key"
    assert made.heights == {CHANNEL_ID: 1}


def test_an_unreadable_folder_is_not_left_out_without_a_word(
    peer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refusing(path: str | int) -> object:
        if path == str(peer / "packages"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root, who runs tests in CI, may read anything
    with pytest.raises(PermissionError, match="packages"):
        back_up(peer, tmp_path / "copy")


def test_a_ledger_that_a_snapshot_has_not_filled_is_left_out(peer: Path, tmp_path: Path) -> None:
    shutil.copytree(peer / "ledger" / CHANNEL_ID, peer / "ledger" / "other~joining")
    assert back_up(peer, tmp_path / "copy").heights == {CHANNEL_ID: 1}
    assert [path.name for path in (tmp_path / "copy" / "ledger").iterdir()] == [CHANNEL_ID]


def test_a_link_in_the_way_is_seen_before_anything_is_copied(
    peer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "copy_environment", lambda *_: pytest.fail("copied"))
    (tmp_path / "copy").symlink_to(tmp_path / "not mounted")
    with pytest.raises(BackupError, match="is there already"):
        back_up(peer, tmp_path / "copy")
    assert (tmp_path / "copy").is_symlink()


def test_an_authority_is_restored_from_its_backup(authority: Path, tmp_path: Path) -> None:
    made = back_up(authority, tmp_path / "copy")
    assert made.heights == {}
    assert "Backup of an enrolment authority" in (made.folder / RESTORE).read_text()
    assert sorted(path.name for path in made.folder.iterdir()) == [
        RESTORE,
        "ca.cert.pem",
        "ca.key.pem",
        "registry.json",
    ]
    assert _mode(made.folder / "registry.json") == _mode(made.folder / "ca.key.pem") == 0o600
    # Put back, it goes on, and can be backed up again.
    shutil.rmtree(authority)
    shutil.copytree(made.folder, authority)
    CertificateAuthority.load(authority)
    registry = Registry.open(authority)
    registry.register("home-2")
    assert registry.enrollment_ids() == ("home-1", "home-2")
    assert back_up(authority, tmp_path / "again").files == made.files


def test_an_authority_is_copied_while_nobody_is_being_registered(
    authority: Path, tmp_path: Path
) -> None:
    made = threading.Event()

    def work() -> None:
        back_up(authority, tmp_path / "copy")
        made.set()

    with (authority / "registry.json.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as someone who registers
        thread = threading.Thread(target=work)
        thread.start()
        assert not made.wait(0.3)
        assert not (tmp_path / "copy.unfinished" / "registry.json").exists()
    thread.join(30)
    assert made.is_set()


def test_what_is_no_nodes_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "admin").mkdir()
    (tmp_path / "admin" / "sign.key.pem").write_bytes(b"key")
    with pytest.raises(BackupError, match="is no folder of a peer or an orderer with data, nor"):
        back_up(tmp_path / "admin", tmp_path / "copy")
    with pytest.raises(BackupError, match="there is no node in"):
        back_up(tmp_path / "peer7", tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["admin"]


def test_a_backup_is_a_ledger_of_the_same_height(peer: Path, tmp_path: Path) -> None:
    made = back_up(peer, tmp_path / "copy")
    with Ledger.open(made.folder / "ledger" / CHANNEL_ID, msp_id="AuroraMSP") as ledger:
        assert ledger.height == 1
