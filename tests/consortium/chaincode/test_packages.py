"""Chaincode packages: Fabric's, ours, and what is neither."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

import consortium.contracts
from consortium.chaincode import packages
from consortium.chaincode.packages import (
    PackageError,
    PackageNotFoundError,
    PackageStore,
    make_package,
    package_id,
    read_package,
    served_package,
)
from consortium.chaincode.remote import Connection
from consortium.contracts import chaincodes
from consortium.contracts.package import chaincode_name, package, sources
from consortium.contracts.package import package_id as own_package_id
from tests.consortium.ledger.recorded import FOLDER

CONTRACTS = Path(consortium.contracts.__file__).parent
ROOT = CONTRACTS.parent.parent


def packed(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    """As another program would pack it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.type = len(content), kind
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def with_metadata(**fields: object) -> bytes:
    return packed(
        {"metadata.json": json.dumps(fields).encode(), "code.tar.gz": packed({"f": b"x"})}
    )


@pytest.mark.parametrize("name", ["gold", "gold2"])
def test_fabrics_packages(name: str) -> None:
    """Those of the recorded network: the same ids, and a peer's own port filled in."""
    data = (FOLDER / "packages" / f"{name}.tgz").read_bytes()
    found = read_package(data)
    assert found.package_id == (FOLDER / "packages" / f"{name}.package-id").read_text().strip()
    assert (found.label, found.type) == (f"{name}_1.0", "ccaas")
    with pytest.raises(PackageError, match=f"wants this peer's own {name}"):
        found.connection()
    variables = packages.builder_variables({packages.VARIABLES: json.dumps({name: 7052})})
    connection = found.connection(variables)
    assert (connection.address, connection.tls_root_pem) == ("127.0.0.1:7052", None)
    assert connection.package_id == found.package_id


def test_a_package_of_sources_is_the_same_everywhere(tmp_path: Path) -> None:
    for name in chaincodes():
        data = package(name)
        assert package_id(f"{name}_1.0", data) == own_package_id(name)
        # Ordinary tools read it.
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            assert archive.getnames() == ["code.tar.gz", "metadata.json"]
        store = PackageStore(tmp_path / name)
        found = store.save(data)
        assert chaincode_name(found) == name
        folder = store.unpacked(found)
        for source in sources(name):
            path = (CONTRACTS / source).resolve()
            assert (folder / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_tls_stands_in_the_package() -> None:
    wanted = Connection(
        "chaincode.example:9999",
        tls_root_pem=b"ROOT",
        certificate_pem=b"CERT",
        key_pem=b"KEY",
        server_name="other.example",
    )
    found = read_package(served_package("basic_1.0", wanted))
    connection = found.connection()
    assert connection.package_id == found.package_id
    assert (connection.tls_root_pem, connection.certificate_pem) == (b"ROOT", b"CERT")
    assert (connection.key_pem, connection.server_name) == (b"KEY", "other.example")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty file"),
        (b"no gzip", "gzip stream"),
        (gzip.compress(b"no tar at all"), "inspecting the package|did not find a code package"),
        (packed({"metadata.json": b"{}"}), "did not find a code package"),
        (packed({"code.tar.gz": b""}), "did not find any package metadata"),
        (packed({"code.tar.gz": b"", "metadata.json": b"{"}), "could not unmarshal metadata.json"),
        (packed({"code.tar.gz": b"", "metadata.json": b"[]"}), "it is no object"),
        (packed({"x": b""}, tarfile.SYMTYPE), "tar entry x is not a regular file"),
        (with_metadata(label="", type="ccaas"), "invalid label ''"),
        (with_metadata(label="../x", type="ccaas"), "invalid label '../x'"),
        (with_metadata(label="a" * 200, type="ccaas"), "128 characters at most"),
        (with_metadata(label="a", type=7), "must be a string"),
        (bytes(packages.MAX_PACKAGE_BYTES + 1), "are allowed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # archives hold the time
)
def test_what_is_no_package(data: bytes, problem: str) -> None:
    with pytest.raises(PackageError, match=problem):
        read_package(data)


def test_a_package_that_unpacks_to_too_much() -> None:
    bomb = gzip.compress(bytes(packages.MAX_UNPACKED_BYTES + 1))
    assert len(bomb) < 100_000
    with pytest.raises(PackageError, match="unpacks to more than"):
        read_package(bomb)


@pytest.mark.parametrize(
    ("connection", "problem"),
    [
        ("[]", "it is no object"),
        ("{}", "must be host:port"),
        ('{"address": 7}', "address in connection.json must be a string"),
        ('{"address": "nowhere"}', "must be host:port"),
        ('{"address": "h:1", "tls_required": "yes"}', "must be true or false"),
        ('{"address": "h:1", "tls_required": true}', "needs root_cert"),
        ('{"address": "h:1", "client_auth_required": true}', "needs tls_required"),
        (
            (
                '{"address": "h:1", "tls_required": true, "root_cert": "R", '
                '"client_auth_required": true}'
            ),
            "needs client_cert and client_key",
        ),
    ],
)
def test_connections_that_cannot_be_used(connection: str, problem: str) -> None:
    data = make_package("x", "ccaas", {"connection.json": connection.encode()})
    with pytest.raises(PackageError, match=problem):
        read_package(data).connection()


def test_a_peers_packages(tmp_path: Path) -> None:
    """Kept over a restart, private, each once, and refused where a file was changed."""
    folder = tmp_path / "packages"
    store = PackageStore(folder)
    data = served_package("basic_1.0", Connection("h:1"))
    found = store.save(data)
    assert found.package_id in store
    with pytest.raises(PackageError, match="already successfully installed"):
        store.save(data)
    again = PackageStore(folder)
    assert again.ids() == [found.package_id]
    assert again.load(found.package_id) == data
    assert again.package(found.package_id) == found
    [path] = folder.glob("*.tar.gz")
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(served_package("basic_1.0", Connection("h:2")))
    with pytest.raises(PackageError, match="was changed"):
        again.package(found.package_id)
    path.unlink()
    with pytest.raises(PackageNotFoundError, match="not found"):
        again.load(found.package_id)


def test_code_that_would_leave_its_folder(tmp_path: Path) -> None:
    store = PackageStore(tmp_path / "packages")
    found = store.save(make_package("x", "gridledger", {"../../outside.py": b""}))
    with pytest.raises(PackageError, match="outside"):
        store.unpacked(found)
    assert not list(tmp_path.rglob("outside.py"))
