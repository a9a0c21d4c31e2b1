"""Certificate chains: which authority of an organization issued a certificate, and is it revoked.

Go's `x509.Verify` as Fabric calls it (`msp/mspimpl.go`), with the same answers: candidates are
found by name and proved by signature, CA flag, key usage and path length count, usages are
checked for server authentication (Go's default), and there has to be exactly one chain. Time is
the moment one second after the certificate's own start, so that no clock is read.
"""

import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from consortium.identity.certificates import CERTIFICATE_FAULTS, certificate_der, pem_to_der
from consortium.identity.signing import low_s

CHAIN_LIMIT = 8
"""Certificates in a chain, root included."""

_ONE_SECOND = dt.timedelta(seconds=1)
_KNOWN_CRITICAL_EXTENSIONS = frozenset(
    (
        ExtensionOID.KEY_USAGE,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    )
)


class ChainError(ValueError):
    """A certificate that leads to no authority, to more than one, or that is revoked."""


def name_of(certificate: x509.Certificate) -> str:
    """The subject, for messages."""
    return certificate.subject.rfc4514_string()


def _serves_extended_usage(extensions: x509.Extensions) -> bool:
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return (
        ExtendedKeyUsageOID.SERVER_AUTH in usages
        or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages
    )


def _der_element(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


class Authority:
    """A root or intermediate certificate, with what chains ask of it."""

    def __init__(self, certificate: x509.Certificate) -> None:
        self.certificate = certificate
        self.der = certificate_der(certificate)
        self.subject = certificate.subject.public_bytes()
        self.not_before = certificate.not_valid_before_utc
        self.not_after = certificate.not_valid_after_utc
        self.public_key = certificate.public_key()
        extensions = certificate.extensions
        self.has_name_constraints = any(
            extension.oid == ExtensionOID.NAME_CONSTRAINTS for extension in extensions
        )
        try:
            constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
            self.is_authority, self.path_length = constraints.ca, constraints.path_length
        except x509.ExtensionNotFound:
            self.is_authority, self.path_length = False, None
        try:
            usage = extensions.get_extension_for_class(x509.KeyUsage).value
            self.signs_certificates = usage.key_cert_sign
        except x509.ExtensionNotFound:
            self.signs_certificates = True
        try:
            identifier = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            self.key_identifier: bytes | None = identifier.digest
        except x509.ExtensionNotFound:
            self.key_identifier = None
        self.serves_extended_usage = _serves_extended_usage(extensions)

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether its key made the certificate's signature, S high or low."""
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except InvalidSignature:
            return False
        except CERTIFICATE_FAULTS:
            return False
        return True

    def low_s_form(self, certificate: x509.Certificate) -> bytes:
        """The DER of a certificate that it issued, its signature rewritten to have a low S.

        Fabric hashes and compares certificates in this form (`msp/cert.go`), so that the twin of
        a signature does not make a second identity. Raises ChainError for a signature that is
        encoded otherwise than DER does.
        """
        der = certificate_der(certificate)
        old_signature = _der_element(0x03, b"\x00" + certificate.signature)
        if not der.endswith(old_signature):
            # Encoded as so many bits short of whole bytes: the same certificate in other bytes,
            # which would count as a second identity. Go reads another signature there.
            raise ChainError(f"the signature of {name_of(certificate)} is not in whole bytes")
        if not isinstance(self.public_key, ec.EllipticCurvePublicKey):
            return der
        signature = low_s(certificate.signature, self.public_key.curve)
        if signature == certificate.signature:
            return der
        signed_part = certificate.tbs_certificate_bytes
        algorithm = der[der.index(signed_part) + len(signed_part) : -len(old_signature)]
        return _der_element(0x30, signed_part + algorithm + _der_element(0x03, b"\x00" + signature))


class RevocationList:
    """A CRL of one authority."""

    def __init__(self, data: bytes) -> None:
        """Raises ChainError when it is neither a PEM nor a DER list."""
        try:
            der = pem_to_der(data) if data.startswith(b"-----BEGIN") else data
            self._list = x509.load_der_x509_crl(der)
            self._serial_numbers = frozenset(entry.serial_number for entry in self._list)
            extensions = self._list.extensions
        except CERTIFICATE_FAULTS as error:
            raise ChainError(f"a revocation list cannot be read: {error}") from None
        try:
            self.authority_key_identifier = extensions.get_extension_for_class(
                x509.AuthorityKeyIdentifier
            ).value.key_identifier
        except x509.ExtensionNotFound:
            self.authority_key_identifier = None

    def revokes(self, certificate: x509.Certificate, issuer: Authority) -> bool:
        """Whether the certificate's own issuer revoked it with this list."""
        if (
            self.authority_key_identifier != issuer.key_identifier
            or certificate.serial_number not in self._serial_numbers
            or not isinstance(
                issuer.public_key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
            )
        ):
            return False
        try:
            return self._list.is_signature_valid(issuer.public_key)
        except CERTIFICATE_FAULTS:
            return False


class Authorities:
    """An organization's authorities and revocation lists."""

    def __init__(
        self,
        roots: Sequence[x509.Certificate],
        intermediates: Sequence[x509.Certificate],
        revocation_lists: Iterable[bytes] = (),
    ) -> None:
        """Raises ChainError when Fabric would refuse one of them."""
        self._set(roots, intermediates)
        # From here on in the form with a low S, which the certificates are compared in.
        self._set(
            [self._sanitized(root, may_be_root=True) for root in roots],
            [self._sanitized(intermediate) for intermediate in intermediates],
        )
        self._revocation_lists = [RevocationList(data) for data in revocation_lists]
        inner: set[bytes] = set()
        for authority in (*self._roots, *self._intermediates):
            name = name_of(authority.certificate)
            if not authority.is_authority:
                raise ChainError(f"the certificate {name} is not an authority's (CA flag)")
            if authority.key_identifier is None:
                raise ChainError(f"the authority {name} has no subject key identifier")
            if authority.has_name_constraints:
                raise ChainError(f"the authority {name} has name constraints; not supported")
            above = self.chain(authority.certificate)
            if above:
                self.check_not_revoked(authority.certificate, above[0])
            if authority in self._intermediates:
                inner.update(one.der for one in above)
        self._inner = inner

    def _set(
        self, roots: Sequence[x509.Certificate], intermediates: Sequence[x509.Certificate]
    ) -> None:
        self._roots = [Authority(root) for root in roots]
        self._root_ders = {root.der for root in self._roots}
        self._intermediates = [Authority(intermediate) for intermediate in intermediates]

    def _sanitized(
        self, certificate: x509.Certificate, *, may_be_root: bool = False
    ) -> x509.Certificate:
        itself = Authority(certificate)
        if may_be_root and itself.is_authority and itself.issued(certificate):
            return x509.load_der_x509_certificate(itself.low_s_form(certificate))
        above = self.chain(certificate)
        if not above:
            return certificate
        return x509.load_der_x509_certificate(above[0].low_s_form(certificate))

    def _climb(
        self, certificate: x509.Certificate, below: list[Authority], at: dt.datetime
    ) -> Iterator[list[Authority]]:
        """All ways from a certificate (with the authorities `below` it) up to a root."""
        issuer = certificate.issuer.public_bytes()
        seen = {authority.der for authority in below}
        for candidates in (self._roots, self._intermediates):
            for candidate in candidates:
                if (
                    candidate.subject != issuer
                    or candidate.der in seen
                    or not candidate.is_authority
                    or not candidate.signs_certificates
                    or not candidate.not_before <= at <= candidate.not_after
                    or (candidate.path_length is not None and len(below) > candidate.path_length)
                    or not candidate.issued(certificate)
                ):
                    continue
                way = [*below, candidate]
                if candidates is self._roots:
                    yield way
                elif len(way) + 1 < CHAIN_LIMIT:
                    yield from self._climb(candidate.certificate, way, at)

    def chain(self, certificate: x509.Certificate) -> list[Authority]:
        """The authorities above a certificate, issuer first, root last; none above a root.

        Raises ChainError unless there is exactly one way up.
        """
        at = certificate.not_valid_before_utc + _ONE_SECOND
        if at > certificate.not_valid_after_utc:
            raise ChainError(f"the certificate {name_of(certificate)} is never valid")
        extensions = certificate.extensions
        for extension in extensions:
            if extension.critical and extension.oid not in _KNOWN_CRITICAL_EXTENSIONS:
                raise ChainError(
                    f"the certificate {name_of(certificate)} has the unknown critical extension "
                    f"{extension.oid.dotted_string}"
                )
        if certificate_der(certificate) in self._root_ders:
            return []
        ways = []
        if _serves_extended_usage(extensions):
            ways = [
                way
                for way in self._climb(certificate, [], at)
                if all(authority.serves_extended_usage for authority in way)
            ]
        if len(ways) != 1:
            raise ChainError(
                f"the certificate {name_of(certificate)} was issued by none of its authorities"
                if not ways
                else f"the certificate {name_of(certificate)} has {len(ways)} chains to its "
                "authorities; it must have one"
            )
        return ways[0]

    def issues_identities(self, authority: Authority) -> bool:
        """Authorities above other authorities certify no identities in Fabric."""
        return authority.der not in self._inner

    def check_not_revoked(self, certificate: x509.Certificate, issuer: Authority) -> None:
        """Raises ChainError when a list of the certificate's issuer names it."""
        for revocation in self._revocation_lists:
            if revocation.authority_key_identifier is None:
                raise ChainError("a revocation list has no authority key identifier")
            if revocation.revokes(certificate, issuer):
                raise ChainError(f"the certificate {name_of(certificate)} is revoked")

    def certifiers_identifier(self, certificate: x509.Certificate) -> bytes:
        """Fabric's name of one of these authorities; raises ChainError for another certificate."""
        der = certificate_der(self._sanitized(certificate, may_be_root=True))
        for authority in (*self._roots, *self._intermediates):
            if authority.der == der:
                return certifiers_identifier([authority, *self.chain(authority.certificate)])
        raise ChainError(f"{name_of(certificate)} is not among its authorities")


def certifiers_identifier(chain: Iterable[Authority]) -> bytes:
    """SHA-256 over a chain without its leaf: Fabric's name of who certified an identity."""
    digest = hashlib.sha256()
    for authority in chain:
        digest.update(authority.der)
    return digest.digest()
