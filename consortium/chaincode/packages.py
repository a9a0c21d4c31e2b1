"""Chaincode packages in Fabric's format, and the folder where a peer keeps those installed on it.

A package is a .tar.gz with `metadata.json` (type and label) and `code.tar.gz`; it goes by
`label:SHA-256 of its bytes`. Two types run here: `ccaas` (Fabric's name, also `external`), whose
code is a `connection.json` that says where the chaincode is served, and `gridledger`, whose code
is the sources of one of our own contracts.
(Rules: Fabric core/chaincode/persistence, core/container/externalbuilder.)
"""

import contextlib
import gzip
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consortium.identity.certificates import write_private

from .remote import Connection

METADATA_FILE = "metadata.json"
CODE_FILE = "code.tar.gz"
CONNECTION_FILE = "connection.json"

SERVED_TYPES = frozenset({"ccaas", "external"})
SOURCES_TYPE = "gridledger"

MAX_PACKAGE_BYTES = 8 * 1024 * 1024
MAX_UNPACKED_BYTES = 32 * 1024 * 1024
MAX_FILES = 1000
MAX_INSTALLED = 1000

VARIABLES = "CHAINCODE_AS_A_SERVICE_BUILDER_CONFIG"
"""The environment variable with a peer's own values for packages; the name is Fabric's."""

_VARIABLE = re.compile(r"\{\{ *\.([A-Za-z0-9_]+) *\}\}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}")
_FILE_NAME = re.compile(r"(.+)\.([0-9a-f]{64})\.tar\.gz")
_STORED_BYTES = 65_535
"""Of one stored block in DEFLATE (RFC 1951, 3.2.4)."""


class PackageError(ValueError):
    """A package that cannot be read, made, installed or run; the sentence says why."""


class PackageNotFoundError(PackageError):
    """No such package is installed on this peer."""

    def __init__(self, package_id: str) -> None:
        super().__init__(f"chaincode install package '{package_id}' not found")


@dataclass(frozen=True, slots=True)
class Package:
    """A package, read."""

    package_id: str
    label: str
    type: str
    code: bytes
    """`code.tar.gz` as it is."""

    def files(self) -> dict[str, bytes]:
        """The files of its code by their paths; raises PackageError."""
        return _unpack(self.code, CODE_FILE)

    def connection(self, variables: Mapping[str, str] | None = None) -> Connection:
        """Where a package of type `ccaas` is served; raises PackageError.

        `variables` are this peer's own, for `{{.name}}` in the package, as in Fabric's builder.
        """
        if self.type not in SERVED_TYPES:
            raise PackageError(f"package {self.package_id} is of type {self.type}, not ccaas")
        stored = self.files().get(CONNECTION_FILE)
        if stored is None:
            raise PackageError(f"{CODE_FILE} holds no {CONNECTION_FILE}")
        return _connection(stored, self.package_id, variables or {})


def package_id(label: str, data: bytes) -> str:
    """What a package with this label and these bytes goes by."""
    return f"{label}:{hashlib.sha256(data).hexdigest()}"


def read_package(data: bytes) -> Package:
    """Take a package apart; raises PackageError."""
    if len(data) > MAX_PACKAGE_BYTES:
        raise PackageError(f"a package has {len(data)} bytes; {MAX_PACKAGE_BYTES} are allowed")
    files = _unpack(data, "the package")
    if CODE_FILE not in files:
        raise PackageError("did not find a code package inside the package")
    if METADATA_FILE not in files:
        raise PackageError(
            f"did not find any package metadata (missing {METADATA_FILE}) inside the package"
        )
    metadata = _json_object(files[METADATA_FILE], METADATA_FILE)
    label, kind = metadata.get("label", ""), metadata.get("type", "")
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise PackageError(
            f"invalid label {label!r}. Label must be non-empty, can only consist of "
            "alphanumerics, symbols from '.+-_', and can only begin with alphanumerics; "
            "128 characters at most"
        )
    if not isinstance(kind, str):
        raise PackageError(f"the type in {METADATA_FILE} must be a string")
    return Package(package_id(label, data), label, kind.lower(), files[CODE_FILE])


def make_package(label: str, kind: str, files: Mapping[str, bytes]) -> bytes:
    """A package of these files; the same ones give the same bytes on every machine.

    Raises PackageError for a label that can't be used.
    """
    if not _LABEL.fullmatch(label):
        raise PackageError(
            f"the label {label!r} must be of letters, digits and '.+-_', and begin with a letter "
            "or digit; 128 characters at most"
        )
    metadata = json.dumps({"path": "", "type": kind, "label": label}, separators=(",", ":"))
    return _pack({METADATA_FILE: metadata.encode(), CODE_FILE: _pack(files)})


def served_package(label: str, connection: Connection) -> bytes:
    """A package of type `ccaas` for a chaincode served at `connection`; raises PackageError."""
    described: dict[str, Any] = {
        "address": connection.address,
        "dial_timeout": "10s",
        "tls_required": connection.tls_root_pem is not None,
    }
    if connection.tls_root_pem is not None:
        described["root_cert"] = connection.tls_root_pem.decode()
        described["client_auth_required"] = connection.key_pem is not None
        if connection.key_pem is not None and connection.certificate_pem is not None:
            described["client_key"] = connection.key_pem.decode()
            described["client_cert"] = connection.certificate_pem.decode()
    if connection.server_name:
        described["server_name"] = connection.server_name
    data = json.dumps(described, indent=2).encode()
    _connection(data, "", {})
    return make_package(label, "ccaas", {CONNECTION_FILE: data})


def _connection(stored: bytes, registers_as: str, variables: Mapping[str, str]) -> Connection:
    """Fabric's `connection.json`, and beside its fields `server_name`, ours."""
    found = _json_object(stored, CONNECTION_FILE)

    def variable(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise PackageError(
                f"{CONNECTION_FILE} wants this peer's own {match[1]}; name it in {VARIABLES}, a "
                "JSON object, where the peer is started"
            )
        return variables[match[1]]

    def text(name: str) -> str:
        value = found.get(name, "")
        if not isinstance(value, str):
            raise PackageError(f"{name} in {CONNECTION_FILE} must be a string")
        return _VARIABLE.sub(variable, value)

    def flag(name: str) -> bool:
        value = found.get(name, False)
        if not isinstance(value, bool):
            raise PackageError(f"{name} in {CONNECTION_FILE} must be true or false")
        return value

    host, _, port = text("address").rpartition(":")
    if not host or not port.isdecimal():
        raise PackageError(
            f"the address in {CONNECTION_FILE}, {text('address')!r}, must be host:port"
        )
    secured, shown = flag("tls_required"), flag("client_auth_required")
    if shown and not secured:
        raise PackageError(f"client_auth_required in {CONNECTION_FILE} needs tls_required")
    for needed, names in ((secured, ("root_cert",)), (shown, ("client_cert", "client_key"))):
        if needed and not all(map(text, names)):
            raise PackageError(f"{CONNECTION_FILE} needs {' and '.join(names)} in PEM")
    return Connection(
        address=text("address"),
        tls_root_pem=text("root_cert").encode() if secured else None,
        certificate_pem=text("client_cert").encode() if shown else None,
        key_pem=text("client_key").encode() if shown else None,
        server_name=text("server_name"),
        package_id=registers_as,
    )


def builder_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """This peer's own values for `{{.name}}` in packages; raises PackageError."""
    found = _json_object(environment.get(VARIABLES, "{}").encode(), VARIABLES)
    return {name: str(value) for name, value in found.items()}


def _json_object(data: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"could not unmarshal {name} as json: {error}") from None
    if not isinstance(found, dict):
        raise PackageError(f"could not unmarshal {name} as json: it is no object")
    return found


def _unpack(data: bytes, what: str) -> dict[str, bytes]:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            raw = packed.read(MAX_UNPACKED_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise PackageError(f"error reading {what} as gzip stream: {error}") from None
    if len(raw) > MAX_UNPACKED_BYTES:
        raise PackageError(f"{what} unpacks to more than {MAX_UNPACKED_BYTES} bytes")
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
            for entry in archive:
                if what == CODE_FILE and entry.isdir():
                    continue
                if not entry.isreg():
                    raise PackageError(f"tar entry {entry.name} is not a regular file")
                if len(files) >= MAX_FILES:
                    raise PackageError(f"{what} holds more than {MAX_FILES} files")
                content = archive.extractfile(entry)
                assert content is not None
                files[entry.name.removeprefix("./")] = content.read()
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, PackageError):
            raise
        raise PackageError(f"error inspecting {what}: {error}") from None
    return files


def _pack(files: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(files[name]), 0o644
            tar.addfile(entry, io.BytesIO(files[name]))
    return _stored_gzip(archive.getvalue())


def _stored_gzip(data: bytes) -> bytes:
    """As gzip (RFC 1952), stored: compressors come to different bytes on different machines."""
    body = bytearray(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")
    for start in range(0, max(len(data), 1), _STORED_BYTES):
        block = data[start : start + _STORED_BYTES]
        body.append(start + _STORED_BYTES >= len(data))
        body += len(block).to_bytes(2, "little") + (len(block) ^ 0xFFFF).to_bytes(2, "little")
        body += block
    body += zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    return bytes(body)


class PackageStore:
    """The packages installed on a peer: a file for each, `<label>.<hash>.tar.gz`.

    Used from any thread; a package never changes once it is there.
    """

    def __init__(self, folder: Path) -> None:
        """What is there already is found; raises OSError."""
        self.folder = folder
        self._by_id: dict[str, Path] = {}
        if folder.is_dir():
            for path in folder.iterdir():
                if match := _FILE_NAME.fullmatch(path.name):
                    self._by_id[f"{match[1]}:{match[2]}"] = path

    def __contains__(self, package_id: object) -> bool:
        return package_id in self._by_id

    def ids(self) -> list[str]:
        """The package ids of all that are installed, in order."""
        return sorted(self._by_id)

    def load(self, package_id: str) -> bytes:
        """An installed package's bytes; raises PackageNotFoundError."""
        path = self._by_id.get(package_id)
        if path is None:
            raise PackageNotFoundError(package_id)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise PackageNotFoundError(package_id) from None

    def package(self, package_id: str) -> Package:
        """An installed package; raises PackageError where its file is gone or was changed."""
        package = read_package(self.load(package_id))
        if package.package_id != package_id:
            raise PackageError(
                f"the file of package {package_id} in {self.folder} was changed: it is "
                f"{package.package_id} now; install it again"
            )
        return package

    def save(self, data: bytes) -> Package:
        """Install a package; raises PackageError if it can't be read or is there already."""
        package = read_package(data)
        if package.package_id in self._by_id:
            raise PackageError(
                f"chaincode already successfully installed (package ID '{package.package_id}')"
            )
        if len(self._by_id) >= MAX_INSTALLED:
            raise PackageError(
                f"{MAX_INSTALLED} packages are installed, the limit; remove files of old ones from "
                f"{self.folder} and start this peer again"
            )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / f"{package.package_id.replace(':', '.', 1)}.tar.gz"
        # It may hold a key for mutual TLS.
        write_private(path, data)
        self._by_id[package.package_id] = path
        return package

    def unpacked(self, package: Package) -> Path:
        """A folder with the files of a package's code; raises PackageError, OSError."""
        folder = self.folder / package.package_id.replace(":", ".", 1)
        for name, content in package.files().items():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise PackageError(f"package {package.package_id} holds a file outside: {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if path.read_bytes() == content:
                    continue
            path.write_bytes(content)
        return folder
