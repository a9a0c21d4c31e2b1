"""The enrolment ids of one utility, in a file that only its owner can read.

`registry.json` is read again whenever it has changed and written whole under a lock, so that
`gridledger` on the command line and a running service can both change it. Secrets are kept as
salted scrypt hashes; a secret is shown once, when it is registered.
"""

import base64
import datetime as dt
import fcntl
import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from consortium.identity.certificates import (
    ROLES,
    CertificateError,
    encoded_attributes,
    write_private,
)

FORMAT = 1
ID_LIMIT = 64
"""Characters of an enrolment id; it becomes the certificate's common name."""
SECRET_LIMIT = 128
IDENTITY_LIMIT = 100_000
ATTRIBUTE_LIMIT = 32
ATTRIBUTE_NAME_LIMIT = 64
ATTRIBUTE_VALUE_LIMIT = 256
ISSUED_LIMIT = 64
"""Unexpired certificates of one identity."""
MAX_WRONG_SECRETS = 10
"""Wrong secrets in a row after which an id is locked."""
LOCK_S = 15 * 60
UNLIMITED = -1
SERIAL_NUMBER_LIMIT = 2**159
"""Serial numbers of certificates are below it (RFC 5280, 4.1.2.2: 20 octets, positive)."""

# 16 MiB and about 30 ms for each guess.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 1
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*")
_ATTRIBUTE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RegistryError(ValueError):
    """A registration that cannot be; the message says why."""


class AlreadyRegisteredError(RegistryError):
    """The enrolment id exists."""


class RefusedError(Exception):
    """An enrolment that is refused. The message is for the log, never for the caller."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was issued: enough to revoke it."""

    serial_number: str
    """Hexadecimal."""
    expires_s: int


@dataclass(frozen=True, slots=True)
class Registered:
    """One enrolment id."""

    enrollment_id: str
    role: str
    salt: str
    hash: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Those that go into its certificates."""
    other_attributes: Mapping[str, str] = field(default_factory=dict)
    """Those that its certificates do not carry (fabric-ca's `ecert` false)."""
    affiliation: str = ""
    max_enrollments: int = 1
    enrollments: int = 0
    wrong_secrets: int = 0
    locked_until_s: int = 0
    revoked: bool = False
    last_key: str = ""
    """SHA-256 of the public key that it enrolled last, hexadecimal."""
    last_certificate: str = ""
    """The certificate issued for that key, PEM; whoever lost the answer gets it again."""
    issued: tuple[Issued, ...] = ()

    @property
    def certificate_attributes(self) -> dict[str, str]:
        """What its certificates carry: its own, and what fabric-ca adds."""
        return {
            **self.attributes,
            "hf.EnrollmentID": self.enrollment_id,
            "hf.Type": self.role,
            "hf.Affiliation": self.affiliation,
        }


def _new_secret() -> str:
    """120 random bits in lower case letters and digits, as people can type them."""
    return base64.b32encode(secrets.token_bytes(15)).decode().lower()


def _hash(secret: str, salt: str) -> str:
    return hashlib.scrypt(
        secret.encode(),
        salt=bytes.fromhex(salt),
        n=_SCRYPT_N,
        r=_SCRYPT_R,
        p=_SCRYPT_P,
        maxmem=64 * 1024 * 1024,
        dklen=32,
    ).hex()


def _from_json(entry: dict[str, Any]) -> Registered:
    issued = tuple(Issued(**one) for one in entry.pop("issued", ()))
    return Registered(**entry, issued=issued)


class Registry:
    """The enrolment ids of a utility. Safe between threads and between processes."""

    FILE = "registry.json"

    def __init__(self, directory: Path) -> None:
        self._path = directory / self.FILE
        self._lock_path = directory / f"{self.FILE}.lock"
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._identities: dict[str, Registered] = {}
        self._revoked: set[str] = set()
        self._is_there = False
        self._wrong: dict[str, int] = {}
        """Wrong secrets in a row, by id. Only what locks an id is worth writing."""

    @classmethod
    def open(cls, directory: Path) -> Self:
        """The registry of a CA's directory, empty where there is no file yet.

        Raises RegistryError for a file that is broken or newer than this program.
        """
        registry = cls(directory)
        with registry._lock:
            registry._refresh()
        return registry

    # -- the file

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            if self._is_there:
                raise RegistryError(
                    f"{self._path} is gone, and who is revoked stood in it; restore it from a "
                    "backup, then start again"
                ) from None
            return
        self._is_there = True
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        if version == self._seen:
            return
        try:
            content = json.loads(self._path.read_bytes())
            found = content["format"]
            if found == FORMAT:
                self._identities = {
                    entry["enrollment_id"]: _from_json(entry) for entry in content["identities"]
                }
                self._revoked = set(content["revoked"])
        except (ValueError, LookupError, TypeError) as error:
            raise RegistryError(
                f"{self._path} is not a registry of enrolments: {error}; restore it from a backup"
            ) from None
        if found != FORMAT:
            raise RegistryError(
                f"{self._path} has format {found}; this version reads format {FORMAT}. "
                "Use the version that wrote it"
            )
        self._seen = version

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock over read, change and write."""
        with self._lock:
            self._lock_path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock_path.open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._refresh()
                try:
                    yield
                    self._write()
                except BaseException:
                    self._seen = None  # what is in memory may be half changed: read it again
                    raise

    def _write(self) -> None:
        content = {
            "format": FORMAT,
            "identities": [asdict(one) for one in self._identities.values()],
            "revoked": sorted(self._revoked),
        }
        write_private(self._path, json.dumps(content, separators=(",", ":")).encode())
        status = self._path.stat()
        self._is_there = True
        self._seen = (status.st_ino, status.st_mtime_ns, status.st_size)

    # -- asking

    def get(self, enrollment_id: str) -> Registered | None:
        """The enrolment id's entry, None if it isn't registered."""
        with self._lock:
            self._refresh()
            return self._identities.get(enrollment_id)

    def enrollment_ids(self) -> tuple[str, ...]:
        """All enrolment ids, sorted."""
        with self._lock:
            self._refresh()
            return tuple(sorted(self._identities))

    def revoked_serial_numbers(self) -> frozenset[int]:
        """The serial numbers of revoked certificates, for a revocation list."""
        with self._lock:
            self._refresh()
            numbers = (int(serial_number, 16) for serial_number in self._revoked)
            # Earlier versions took what is none, and one of these would spoil the whole list.
            return frozenset(one for one in numbers if 0 < one < SERIAL_NUMBER_LIMIT)

    # -- registering

    def register(
        self,
        enrollment_id: str,
        *,
        secret: str | None = None,
        role: str = "client",
        attributes: Mapping[str, str] | None = None,
        other_attributes: Mapping[str, str] | None = None,
        affiliation: str = "",
        max_enrollments: int = 1,
    ) -> str:
        """Let someone enrol; returns the secret, made here unless given.

        Raises AlreadyRegisteredError, or RegistryError for what cannot be registered.
        """
        in_certificate, beside = dict(attributes or {}), dict(other_attributes or {})
        if twice := in_certificate.keys() & beside.keys():
            raise RegistryError(f"the attribute {min(twice)[:ATTRIBUTE_NAME_LIMIT]} is given twice")
        _check_registration(
            enrollment_id, secret, role, {**in_certificate, **beside}, affiliation, max_enrollments
        )
        secret = secret or _new_secret()
        salt = secrets.token_hex(16)
        entry = Registered(
            enrollment_id=enrollment_id,
            role=role,
            salt=salt,
            hash=_hash(secret, salt),
            attributes=in_certificate,
            other_attributes=beside,
            affiliation=affiliation,
            max_enrollments=max_enrollments,
        )
        try:
            encoded_attributes(enrollment_id, entry.certificate_attributes)
        except CertificateError as error:
            raise RegistryError(str(error)) from None
        with self._changing():
            if enrollment_id in self._identities:
                raise AlreadyRegisteredError(f"identity {enrollment_id!r} is already registered")
            if len(self._identities) >= IDENTITY_LIMIT:
                raise RegistryError(
                    f"the registry holds {IDENTITY_LIMIT} identities, its limit; "
                    "open a second authority"
                )
            self._identities[enrollment_id] = entry
        return secret

    def reset_secret(self, enrollment_id: str, *, secret: str | None = None) -> str:
        """A new secret for one more enrolment, when a key was lost; unlocks the id.

        Raises RegistryError when the id isn't registered or is revoked.
        """
        secret = secret or _new_secret()
        salt = secrets.token_hex(16)
        hashed = _hash(secret, salt)
        with self._changing():
            entry = self._identities.get(enrollment_id)
            if entry is None or entry.revoked:
                raise RegistryError(f"identity {enrollment_id!r} is not registered, or revoked")
            allowed = entry.max_enrollments
            self._identities[enrollment_id] = replace(
                entry,
                salt=salt,
                hash=hashed,
                wrong_secrets=0,
                locked_until_s=0,
                max_enrollments=allowed
                if allowed == UNLIMITED
                else max(allowed, entry.enrollments + 1),
            )
        return secret

    def revoke(self, enrollment_id: str) -> tuple[str, ...]:
        """Stop an id from enrolling and revoke its certificates; returns their serial numbers.

        The channel learns of it by a revocation list in its configuration. Raises RegistryError
        when the id isn't registered.
        """
        with self._changing():
            entry = self._identities.get(enrollment_id)
            if entry is None:
                raise RegistryError(f"identity {enrollment_id!r} is not registered")
            serial_numbers = tuple(one.serial_number for one in entry.issued)
            self._revoked.update(serial_numbers)
            self._identities[enrollment_id] = replace(entry, revoked=True)
            return serial_numbers

    def revoke_serial_number(self, serial_number: int) -> None:
        """Revoke one certificate; its identity may enrol again.

        Raises RegistryError for what is no serial number.
        """
        if not 0 < serial_number < SERIAL_NUMBER_LIMIT:
            raise RegistryError(f"{serial_number:x} is no certificate's serial number")
        with self._changing():
            self._revoked.add(f"{serial_number:x}")

    # -- enrolling

    def authenticate(self, enrollment_id: str, secret: str, now_s: float) -> Registered:
        """The entry of an id whose secret is right; counts wrong ones. Takes about 30 ms.

        Raises RefusedError. It takes as long for an unknown id, so that ids cannot be guessed.
        """
        entry = self.get(enrollment_id)
        if len(secret) > SECRET_LIMIT:
            raise RefusedError("the secret is too long")
        if entry is None:
            _hash(secret, "00" * 16)
            raise RefusedError(f"identity {enrollment_id[:ID_LIMIT]!r} is not registered")
        right = hmac.compare_digest(_hash(secret, entry.salt), entry.hash)
        if entry.locked_until_s > now_s:
            raise RefusedError(
                f"{enrollment_id} is locked after {entry.wrong_secrets} wrong secrets"
            )
        if not right:
            wrong = self._count_wrong(enrollment_id, now_s)
            raise RefusedError(f"wrong secret for {enrollment_id}, {wrong} in a row")
        with self._lock:
            self._wrong.pop(enrollment_id, None)
        if entry.revoked:
            raise RefusedError(f"{enrollment_id} is revoked")
        return entry

    def _count_wrong(self, enrollment_id: str, now_s: float) -> int:
        """Count a wrong secret, in memory, and lock an id that has had too many; how many."""
        with self._lock:
            wrong = self._wrong[enrollment_id] = self._wrong.get(enrollment_id, 0) + 1
            if wrong < MAX_WRONG_SECRETS:
                return wrong
            del self._wrong[enrollment_id]  # once the lock ends, it may be tried as often again
        with self._changing():
            if (current := self._identities.get(enrollment_id)) is not None:
                self._identities[enrollment_id] = replace(
                    current, wrong_secrets=wrong, locked_until_s=int(now_s) + LOCK_S
                )
        return wrong

    def enroll(
        self,
        entry: Registered,
        public_key_der: bytes,
        issue: Callable[[Registered], tuple[str, int, dt.datetime]],
        now_s: float,
    ) -> str:
        """Issue a certificate to an authenticated id and count it; returns PEM.

        `issue` returns PEM, serial number and end of validity. The same key again gets the
        certificate that it got before, uncounted: the answer may have been lost on its way.
        Raises RefusedError when the enrolments are used up.
        """
        return self._issue(entry.enrollment_id, public_key_der, issue, now_s, counted=True)

    def reenroll(
        self,
        enrollment_id: str,
        public_key_der: bytes,
        issue: Callable[[Registered], tuple[str, int, dt.datetime]],
        now_s: float,
    ) -> str:
        """As `enroll`, for one who has a valid certificate already; not counted."""
        return self._issue(enrollment_id, public_key_der, issue, now_s, counted=False)

    def _issue(
        self,
        enrollment_id: str,
        public_key_der: bytes,
        issue: Callable[[Registered], tuple[str, int, dt.datetime]],
        now_s: float,
        *,
        counted: bool,
    ) -> str:
        key = hashlib.sha256(public_key_der).hexdigest()
        with self._changing():
            entry = self._identities.get(enrollment_id)
            if entry is None or entry.revoked:
                raise RefusedError(f"{enrollment_id} is not registered, or revoked")
            if counted and entry.last_key == key and self._holds(entry, now_s):
                self._identities[enrollment_id] = replace(entry, wrong_secrets=0)
                return entry.last_certificate
            if counted and 0 <= entry.max_enrollments <= entry.enrollments:
                raise RefusedError(
                    f"{enrollment_id} has enrolled {entry.enrollments} times, all it may"
                )
            live = tuple(one for one in entry.issued if one.expires_s > now_s)
            if len(live) >= ISSUED_LIMIT:
                raise RefusedError(
                    f"{enrollment_id} has {len(live)} certificates that hold; "
                    f"{ISSUED_LIMIT} are allowed"
                )
            pem, serial_number, end = issue(entry)
            self._identities[enrollment_id] = replace(
                entry,
                enrollments=entry.enrollments + counted,
                wrong_secrets=0,
                locked_until_s=0,
                last_key=key,
                last_certificate=pem,
                issued=(*live, Issued(f"{serial_number:x}", int(end.timestamp()))),
            )
            return pem

    def _holds(self, entry: Registered, now_s: float) -> bool:
        """Whether the certificate that an id got last still counts."""
        return any(
            one.expires_s > now_s and one.serial_number not in self._revoked
            for one in entry.issued[-1:]
        )


def _check_registration(
    enrollment_id: str,
    secret: str | None,
    role: str,
    attributes: Mapping[str, str],
    affiliation: str,
    max_enrollments: int,
) -> None:
    if len(enrollment_id) > ID_LIMIT or not _ID.fullmatch(enrollment_id):
        raise RegistryError(
            f"{enrollment_id[:ID_LIMIT]!r} is no enrolment id: letters, digits and . _ @ -, "
            f"at most {ID_LIMIT}"
        )
    if secret is not None and not 1 <= len(secret) <= SECRET_LIMIT:
        raise RegistryError(f"a secret has 1 to {SECRET_LIMIT} characters")
    if role not in ROLES:
        raise RegistryError(f"the type {role!r} is none of {', '.join(ROLES)}")
    if len(attributes) > ATTRIBUTE_LIMIT:
        raise RegistryError(f"{len(attributes)} attributes; {ATTRIBUTE_LIMIT} are allowed")
    for name, value in attributes.items():
        if (
            len(name) > ATTRIBUTE_NAME_LIMIT
            or not _ATTRIBUTE_NAME.fullmatch(name)
            or name.startswith("hf.")
        ):
            raise RegistryError(
                f"{name[:ATTRIBUTE_NAME_LIMIT]!r} is no attribute that can be registered: letters, "
                f"digits and . _ -, at most {ATTRIBUTE_NAME_LIMIT}, not starting with hf."
            )
        if len(value) > ATTRIBUTE_VALUE_LIMIT:
            raise RegistryError(
                f"the attribute {name} has {len(value)} characters; "
                f"{ATTRIBUTE_VALUE_LIMIT} are allowed"
            )
    texts = (secret or "", affiliation, *attributes.values())
    if any("\ud800" <= one <= "\udfff" for text in texts for one in text):
        raise RegistryError("a secret, attribute or affiliation has half a character in it")
    if len(affiliation) > ATTRIBUTE_VALUE_LIMIT:
        raise RegistryError(f"the affiliation is longer than {ATTRIBUTE_VALUE_LIMIT} characters")
    if max_enrollments < UNLIMITED or max_enrollments == 0:
        raise RegistryError(
            f"{max_enrollments} enrolments at most makes no sense; -1 is without limit"
        )
