"""A utility's certificate authority: one root for identities and TLS, roles in the OU.

Certificates follow what Fabric's tools issue (cryptogen, fabric-ca): the role stands as
organizational unit `client`, `peer`, `orderer` or `admin`; attributes stand as JSON
`{"attrs": {...}}` in fabric-ca's extension 1.2.3.4.5.6.7.8.1.
"""

import base64
import binascii
import bisect
import contextlib
import datetime as dt
import ipaddress
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

ATTRIBUTES_OID = ObjectIdentifier("1.2.3.4.5.6.7.8.1")
ROLES = ("client", "peer", "orderer", "admin")
NODE_VALID_DAYS = 365
ROOT_VALID_DAYS = 10 * 365
ATTRIBUTES_LIMIT_BYTES = 4096
COMMON_NAME_LIMIT = 64
"""X.520's upper bound of a common name, in characters."""

# A certificate issued now must hold on a machine whose clock is a little behind.
_BACKDATE = dt.timedelta(minutes=5)

_PEM_BEGIN = re.compile(rb"(?:^|\n)-----BEGIN ([^\n]*?)-----[ \t\r]*(?=\n)")
_PEM_END = re.compile(rb"(?:^|\n)-----END ([^\n]*?)-----[ \t\r]*(?=\n|$)")


CERTIFICATE_FAULTS: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises, at once or when a field is first looked at, for a certificate or
request that somebody malformed. Anyone can send one, so nobody may fail over it."""


class CertificateError(ValueError):
    """A certificate, key or request that is not what it should be."""


def encoded_attributes(common_name: str, attributes: Mapping[str, str]) -> bytes:
    """Attributes as a certificate carries them; raises CertificateError where they are too many."""
    encoded = json.dumps(
        {"attrs": dict(attributes)}, separators=(",", ":"), sort_keys=True
    ).encode()
    if len(encoded) > ATTRIBUTES_LIMIT_BYTES:
        raise CertificateError(
            f"the attributes of {common_name} take {len(encoded)} bytes; "
            f"{ATTRIBUTES_LIMIT_BYTES} are allowed"
        )
    return encoded


def generate_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as unencrypted PKCS#8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """An unencrypted PEM key on P-256; raises CertificateError."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"the private key is not unencrypted PEM: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError("the private key is not an ECDSA key on P-256")
    return key


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def certificate_der(certificate: x509.Certificate) -> bytes:
    """The certificate as DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all.

    The new content is on disk before it takes the old one's name, so that a power cut leaves
    one of the two.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:  # mkstemp creates it with mode 0600
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def pem_to_der(data: bytes) -> bytes:
    """The DER inside the first PEM block of `data`; raises CertificateError when there is none.

    Reads what Go's `encoding/pem` reads (text before and after the block, any label, headers),
    since that decides in Fabric which identities can be read at all. Anyone may send one, so no
    byte is looked at more than a few times, however the marks are arranged.
    """
    ends: dict[bytes, list[int]] = {}
    for end in _PEM_END.finditer(data):
        ends.setdefault(end.group(1), []).append(end.start())
    for begin in _PEM_BEGIN.finditer(data):
        start = begin.end() + 1
        found = ends.get(begin.group(1), [])
        place = bisect.bisect_left(found, start - 1)
        if place == len(found):
            continue
        stop = max(start, found[place])
        while start < stop:  # header lines
            line_end = data.find(b"\n", start, stop)
            line_end = stop if line_end < 0 else line_end
            if data.startswith(b"-----", start) or data.find(b":", start, line_end) < 0:
                break
            start = line_end + 1
        if data.find(b"-", start, stop) >= 0:
            continue  # another block begins in it
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(data[start:stop].translate(None, b" \t\r\n"), validate=True)
    raise CertificateError("there is no PEM block in it")


def load_certificate(data: bytes, what: str = "the certificate") -> x509.Certificate:
    """The first PEM certificate of `data`; raises CertificateError naming `what`."""
    try:
        return x509.load_der_x509_certificate(pem_to_der(data))
    except CERTIFICATE_FAULTS as error:
        raise CertificateError(f"{what} is not a PEM certificate: {error}") from None


def load_certificates(data: bytes, what: str = "the bundle") -> list[x509.Certificate]:
    """All PEM certificates of a bundle; raises CertificateError naming `what`."""
    try:
        return x509.load_pem_x509_certificates(data)
    except CERTIFICATE_FAULTS as error:
        raise CertificateError(f"{what} holds no PEM certificates: {error}") from None


def certificate_attributes(certificate: x509.Certificate) -> dict[str, str]:
    """fabric-ca's attributes of a certificate; empty where there are none or they are unreadable.

    An unreadable extension gives no rights; it does not make the certificate invalid (Fabric's
    `cid` library works the same way).
    """
    try:
        extension = certificate.extensions.get_extension_for_oid(ATTRIBUTES_OID).value
    except x509.ExtensionNotFound:
        return {}
    except CERTIFICATE_FAULTS:
        return {}
    if not isinstance(extension, x509.UnrecognizedExtension):
        return {}
    try:
        decoded = json.loads(extension.value)
        attributes = decoded["attrs"]
        return {str(name): value for name, value in attributes.items() if isinstance(value, str)}
    except ValueError, LookupError, TypeError, AttributeError, RecursionError:
        return {}


def _subject_alternative_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


class CertificateAuthority:
    """The root of one utility. Keep its directory off the machines that don't issue."""

    CERTIFICATE_FILE = "ca.cert.pem"
    KEY_FILE = "ca.key.pem"

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """Raises CertificateError when the key is not the certificate's."""
        if certificate.public_key() != key.public_key():
            raise CertificateError("the authority's key does not belong to its certificate")
        self.certificate = certificate
        self._key = key

    @property
    def certificate_pem(self) -> bytes:
        """The root certificate as PEM."""
        return certificate_pem(self.certificate)

    @property
    def key_identifier(self) -> bytes:
        """The subject key identifier of the root, which its certificates and lists point to."""
        return self.certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        ).value.digest

    @classmethod
    def create(
        cls, organization: str, domain: str, *, valid_days: int = ROOT_VALID_DAYS
    ) -> CertificateAuthority:
        """A new self-signed root for `organization` (CN `ca.<domain>`)."""
        key = generate_key()
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
                x509.NameAttribute(NameOID.COMMON_NAME, f"ca.{domain}"),
            ]
        )
        now = dt.datetime.now(dt.UTC)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(now + dt.timedelta(days=valid_days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
        )
        return cls(_signed(builder, key), key)

    @classmethod
    def load(cls, directory: Path) -> CertificateAuthority:
        """Read what `save` wrote; raises OSError, CertificateError."""
        certificate = load_certificate(
            (directory / cls.CERTIFICATE_FILE).read_bytes(), "the authority's certificate"
        )
        key = load_key((directory / cls.KEY_FILE).read_bytes())
        if certificate.public_key() != key.public_key():
            raise CertificateError(
                f"the authority's key does not belong to its certificate in {directory}; where "
                "`gridledger network rotate-ca` was interrupted, run it again, and it goes on"
            )
        return cls(certificate, key)

    def save(self, directory: Path) -> None:
        """Write key and certificate (mode 0600) into `directory`, each whole or not at all.

        The certificate comes last: where it is, its key is. Raises OSError.
        """
        write_private(directory / self.KEY_FILE, key_pem(self._key))
        write_private(directory / self.CERTIFICATE_FILE, self.certificate_pem)

    def issue(
        self,
        common_name: str,
        role_ou: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        hosts: Iterable[str] = (),
        attributes: Mapping[str, str] | None = None,
        valid_days: int = NODE_VALID_DAYS,
    ) -> x509.Certificate:
        """A certificate for a P-256 key in one role; `hosts` make it a TLS certificate as well.

        It never outlives the root. Raises CertificateError for an unknown role, another kind of
        key, an empty or overlong name, or attributes beyond 4,096 bytes.
        """
        if role_ou not in ROLES:
            raise CertificateError(f"the role {role_ou!r} is none of {', '.join(ROLES)}")
        if not 1 <= len(common_name) <= COMMON_NAME_LIMIT:
            raise CertificateError(
                f"the common name {common_name!r} has {len(common_name)} characters; "
                f"1 to {COMMON_NAME_LIMIT} are allowed"
            )
        if not isinstance(public_key.curve, ec.SECP256R1):
            raise CertificateError(
                f"the key of {common_name} is not an ECDSA key on P-256, the only kind issued for"
            )
        now = dt.datetime.now(dt.UTC)
        end = min(now + dt.timedelta(days=valid_days), self.certificate.not_valid_after_utc)
        organization = self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        builder = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name(
                    [
                        *organization,
                        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role_ou),
                        x509.NameAttribute(NameOID.COMMON_NAME, common_name),
                    ]
                )
            )
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            # Validity in Fabric is judged at one second after this moment, when the root must
            # hold already.
            .not_valid_before(max(now - _BACKDATE, self.certificate.not_valid_before_utc))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    self.certificate.extensions.get_extension_for_class(
                        x509.SubjectKeyIdentifier
                    ).value
                ),
                critical=False,
            )
        )
        names = _subject_alternative_names(hosts)
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(names), critical=False
            ).add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
        if attributes:
            encoded = encoded_attributes(common_name, attributes)
            builder = builder.add_extension(
                x509.UnrecognizedExtension(ATTRIBUTES_OID, encoded), critical=False
            )
        return _signed(builder, self._key)

    def issue_from_csr(
        self,
        csr: x509.CertificateSigningRequest,
        common_name: str,
        role_ou: str,
        *,
        hosts: Iterable[str] = (),
        attributes: Mapping[str, str] | None = None,
        valid_days: int = NODE_VALID_DAYS,
    ) -> x509.Certificate:
        """As `issue`, for a request's key. Name, role and attributes are never the request's own.

        Raises CertificateError when the request's signature does not hold.
        """
        if not csr.is_signature_valid:
            raise CertificateError(
                "the certificate request is not signed by its own key; make a new request"
            )
        key = csr.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise CertificateError(
                f"the key of {common_name} is not an ECDSA key on P-256, the only kind issued for"
            )
        return self.issue(
            common_name,
            role_ou,
            key,
            hosts=hosts,
            attributes=attributes,
            valid_days=valid_days,
        )

    def revocation_list(
        self, serial_numbers: Iterable[int], *, valid_days: int = ROOT_VALID_DAYS
    ) -> bytes:
        """A CRL (PEM) that names the certificates that no longer count."""
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(now + dt.timedelta(days=valid_days))
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    self.certificate.extensions.get_extension_for_class(
                        x509.SubjectKeyIdentifier
                    ).value
                ),
                critical=False,
            )
        )
        for serial_number in sorted(set(serial_numbers)):
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(serial_number)
                .revocation_date(now)
                .build()
            )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Sign until the signature has a low S, as one in two has.

    Fabric rewrites certificates to that form before it hashes or compares them.
    """
    while True:
        certificate = builder.sign(key, hashes.SHA256())
        _, s = decode_dss_signature(certificate.signature)
        if s <= key.curve.group_order >> 1:
            return certificate
