"""The registry of enrolment ids: one file, hashed secrets, limits."""

import datetime as dt
import json
import stat
import threading
from pathlib import Path

import pytest

from consortium.ca import registry as registry_module
from consortium.ca.registry import (
    LOCK_S,
    MAX_WRONG_SECRETS,
    AlreadyRegisteredError,
    RefusedError,
    Registered,
    Registry,
    RegistryError,
)

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash with little memory here; what is hashed and compared stays the same."""
    monkeypatch.setattr(registry_module, "_SCRYPT_N", 2**4)


class Issuer:
    """Hands out numbered certificates."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, entry: Registered) -> tuple[str, int, dt.datetime]:
        self.count += 1
        end = dt.datetime.fromtimestamp(NOW, dt.UTC) + dt.timedelta(days=1)
        return f"{entry.enrollment_id} {self.count}", self.count, end


def test_secrets_are_made_shown_once_and_kept_hashed(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path)
    secret = registry.register("home-1", attributes={"gridledger.role": "home"})
    content = (tmp_path / Registry.FILE).read_text()
    assert len(secret) >= 24
    assert secret not in content
    assert stat.S_IMODE((tmp_path / Registry.FILE).stat().st_mode) == 0o600
    entry = registry.authenticate("home-1", secret, NOW)
    assert entry.attributes == {"gridledger.role": "home"}
    assert registry.register("home-2", secret="chosen") == "chosen"
    assert registry.enrollment_ids() == ("home-1", "home-2")


def test_two_registries_share_the_file(tmp_path: Path) -> None:
    """The command line registers while the service runs."""
    service, command = Registry.open(tmp_path), Registry.open(tmp_path)
    secret = command.register("home-1")
    assert service.authenticate("home-1", secret, NOW).enrollment_id == "home-1"
    with pytest.raises(AlreadyRegisteredError, match="already registered"):
        service.register("home-1")
    threads = [
        threading.Thread(target=one.register, args=(f"{name}-{n}",))
        for name, one in (("a", service), ("b", command))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Registry.open(tmp_path).enrollment_ids()) == 17


def test_enrolments_are_counted(tmp_path: Path) -> None:
    registry, issue = Registry.open(tmp_path), Issuer()
    secret = registry.register("home-1", max_enrollments=2)

    def enroll(key: bytes) -> str:
        return registry.enroll(registry.authenticate("home-1", secret, NOW), key, issue, NOW)

    assert enroll(b"key 1") == "home-1 1"
    assert enroll(b"key 1") == "home-1 1", "the answer was lost: the same certificate again"
    assert enroll(b"key 2") == "home-1 2"
    with pytest.raises(RefusedError, match="enrolled 2 times"):
        enroll(b"key 3")
    assert registry.reenroll("home-1", b"key 3", issue, NOW) == "home-1 3"
    again = registry.reset_secret("home-1")
    with pytest.raises(RefusedError, match="wrong secret"):
        enroll(b"key 4")
    secret = again
    assert enroll(b"key 4") == "home-1 4"
    with pytest.raises(RefusedError):
        enroll(b"key 5")


def test_without_limit(tmp_path: Path) -> None:
    registry, issue = Registry.open(tmp_path), Issuer()
    secret = registry.register("peer-1", role="peer", max_enrollments=-1)
    for n in range(5):
        entry = registry.authenticate("peer-1", secret, NOW)
        registry.enroll(entry, bytes((n,)), issue, NOW)
    assert issue.count == 5


def test_certificates_that_hold_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "ISSUED_LIMIT", 2)
    registry, issue = Registry.open(tmp_path), Issuer()
    registry.register("peer-1")
    for n in range(2):
        registry.reenroll("peer-1", bytes((n,)), issue, NOW)
    with pytest.raises(RefusedError, match="2 are allowed"):
        registry.reenroll("peer-1", b"third", issue, NOW)
    registry.reenroll("peer-1", b"third", issue, NOW + 2 * 86400)


def test_wrong_secrets_lock_for_a_while(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path)
    secret = registry.register("home-1")
    for _ in range(MAX_WRONG_SECRETS - 1):
        with pytest.raises(RefusedError, match="wrong secret"):
            registry.authenticate("home-1", "guess", NOW)
    written = (tmp_path / Registry.FILE).stat().st_mtime_ns
    with pytest.raises(RefusedError, match="10 in a row"):
        registry.authenticate("home-1", "guess", NOW)
    assert (tmp_path / Registry.FILE).stat().st_mtime_ns > written, "what locks is written"
    with pytest.raises(RefusedError, match="locked"):
        registry.authenticate("home-1", secret, NOW + LOCK_S - 1)
    Registry.open(tmp_path).authenticate("home-1", secret, NOW + LOCK_S + 1)
    # One more guess doesn't lock it anew, and the right secret ends a row.
    later = NOW + LOCK_S + 1
    for _ in range(2):
        for _ in range(MAX_WRONG_SECRETS - 1):
            with pytest.raises(RefusedError, match="wrong secret"):
                registry.authenticate("home-1", "guess", later)
        registry.authenticate("home-1", secret, later)


def test_guesses_write_nothing(tmp_path: Path) -> None:
    """Who guesses at many ids would have the whole file written anew each time."""
    registry = Registry.open(tmp_path)
    registry.register("home-1")
    before = (tmp_path / Registry.FILE).stat().st_mtime_ns
    for _ in range(MAX_WRONG_SECRETS - 1):
        with pytest.raises(RefusedError, match="wrong secret"):
            registry.authenticate("home-1", "guess", NOW)
    assert (tmp_path / Registry.FILE).stat().st_mtime_ns == before


def test_a_registry_that_is_gone_is_none_that_is_empty(tmp_path: Path) -> None:
    """Who was revoked would be valid again."""
    registry = Registry.open(tmp_path)
    registry.register("home-1")
    (tmp_path / Registry.FILE).unlink()
    for ask in (
        lambda: registry.get("home-1"),
        registry.revoked_serial_numbers,
        lambda: registry.register("home-2"),
    ):
        with pytest.raises(RegistryError, match="is gone"):
            ask()
    assert not (tmp_path / Registry.FILE).exists()


def test_the_same_key_again_gets_only_a_certificate_that_counts(tmp_path: Path) -> None:
    registry, issue = Registry.open(tmp_path), Issuer()
    secret = registry.register("home-1", max_enrollments=2)

    def enroll(now_s: float) -> str:
        return registry.enroll(registry.authenticate("home-1", secret, now_s), b"k", issue, now_s)

    first = enroll(NOW)
    assert enroll(NOW) == first
    registry.revoke_serial_number(1)
    assert enroll(NOW) != first
    with pytest.raises(RefusedError, match="2 times, all it may"):
        enroll(NOW + 400 * 86400)


def test_what_is_no_serial_number(tmp_path: Path) -> None:
    """One of them, taken by an earlier version, must not spoil the revocation list."""
    registry = Registry.open(tmp_path)
    for number in (0, -5, 2**256 - 1):
        with pytest.raises(RegistryError, match="no certificate's serial number"):
            registry.revoke_serial_number(number)
    registry.revoke_serial_number(7)
    path = tmp_path / Registry.FILE
    content = json.loads(path.read_text())
    content["revoked"] += ["0", "-5", "f" * 64]
    path.write_text(json.dumps(content))
    assert Registry.open(tmp_path).revoked_serial_numbers() == {7}


def test_an_enrolment_forgives_wrong_secrets(tmp_path: Path) -> None:
    registry, issue = Registry.open(tmp_path), Issuer()
    secret = registry.register("home-1")
    with pytest.raises(RefusedError):
        registry.authenticate("home-1", "guess", NOW)
    registry.enroll(registry.authenticate("home-1", secret, NOW), b"k", issue, NOW)
    entry = registry.get("home-1")
    assert entry is not None
    assert entry.wrong_secrets == 0


def test_revoked(tmp_path: Path) -> None:
    registry, issue = Registry.open(tmp_path), Issuer()
    secret = registry.register("home-1", max_enrollments=5)
    for n in range(2):
        registry.reenroll("home-1", bytes((n,)), issue, NOW)
    assert registry.revoke("home-1") == ("1", "2")
    registry.revoke_serial_number(255)
    assert registry.revoked_serial_numbers() == {1, 2, 255}
    with pytest.raises(RefusedError, match="revoked"):
        registry.authenticate("home-1", secret, NOW)
    with pytest.raises(RefusedError, match="revoked"):
        registry.reenroll("home-1", b"k", issue, NOW)
    with pytest.raises(RegistryError, match="revoked"):
        registry.reset_secret("home-1")
    with pytest.raises(RegistryError, match="not registered"):
        registry.revoke("home-2")


def test_unknown_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not registered"):
        Registry.open(tmp_path).authenticate("nobody", "secret", NOW)


def test_what_cannot_be_registered(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path)
    with pytest.raises(RegistryError, match="no enrolment id"):
        registry.register("../etc")
    with pytest.raises(RegistryError, match="no enrolment id"):
        registry.register("x" * 65)
    with pytest.raises(RegistryError, match="none of client"):
        registry.register("x", role="king")
    with pytest.raises(RegistryError, match="not starting with hf"):
        registry.register("x", attributes={"hf.Type": "admin"})
    with pytest.raises(RegistryError, match="256 are allowed"):
        registry.register("x", attributes={"a": "b" * 257})
    with pytest.raises(RegistryError, match="32 are allowed"):
        registry.register("x", attributes={f"a{n}": "" for n in range(33)})
    with pytest.raises(RegistryError, match="makes no sense"):
        registry.register("x", max_enrollments=0)
    with pytest.raises(RegistryError, match="1 to 128"):
        registry.register("x", secret="y" * 129)
    assert not (tmp_path / Registry.FILE).exists()


def test_a_failed_change_leaves_file_and_memory_alone(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path)
    registry.register("home-1")
    before = (tmp_path / Registry.FILE).read_bytes()

    def fails(entry: Registered) -> tuple[str, int, dt.datetime]:
        raise OSError("no entropy")

    with pytest.raises(OSError, match="no entropy"):
        registry.reenroll("home-1", b"k", fails, NOW)
    assert (tmp_path / Registry.FILE).read_bytes() == before
    entry = registry.get("home-1")
    assert entry is not None
    assert entry.issued == ()


def test_broken_and_newer_files(tmp_path: Path) -> None:
    path = tmp_path / Registry.FILE
    for content in ("", "[]", "{}", '{"format":1,"identities":[{}],"revoked":[]}'):
        path.write_text(content)
        with pytest.raises(RegistryError, match="restore it from a backup"):
            Registry.open(tmp_path)
    path.write_text(json.dumps({"format": 2}))
    with pytest.raises(RegistryError, match="format 2; this version reads format 1"):
        Registry.open(tmp_path)
