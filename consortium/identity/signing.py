"""Signatures: ECDSA over SHA-256 in DER with a low S, as Hyperledger Fabric makes and checks them.

For each ECDSA signature (r, s) there is a twin (r, n - s) that holds as well. Fabric accepts only
the one with s <= n/2 (`bccsp/sw/ecdsa.go`), so that nobody but the signer can change the bytes of
a signed transaction.
"""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from consortium.wire import msp_pb2

_ECDSA_SHA256 = ec.ECDSA(hashes.SHA256())
_SEQUENCE, _INTEGER = 0x30, 0x02


class SigningError(ValueError):
    """A key and a certificate that cannot sign for a member."""


def _der_element(data: bytes, offset: int, tag: int) -> tuple[int, int]:
    """Start and end of the content of the DER element at `offset`; raises ValueError."""
    if offset + 2 > len(data) or data[offset] != tag:
        raise ValueError("unexpected DER element")
    length, start = data[offset + 1], offset + 2
    if length & 0x80:
        octets = length & 0x7F
        length = int.from_bytes(data[start : start + octets], "big")
        start += octets
        shortest = (length.bit_length() + 7) // 8
        if not 1 <= octets <= 4 or octets != shortest or length < 0x80:
            raise ValueError("a DER length is not in its shortest form")
    if start + length > len(data):
        raise ValueError("a DER element is cut off")
    return start, start + length


def _decode_with_trailing_bytes(signature: bytes) -> tuple[int, int]:
    """R and s of a signature that carries bytes after them; raises ValueError.

    Go's `asn1.Unmarshal`, and therefore Fabric, ignores bytes after s and after the sequence.
    A ledger that refused them would judge such a transaction differently from Fabric's peers.
    """
    position, end = _der_element(signature, 0, _SEQUENCE)
    integers = []
    for _ in range(2):
        start, stop = _der_element(signature[:end], position, _INTEGER)
        content = signature[start:stop]
        padded = len(content) > 1 and (content[0], content[1] >> 7) in ((0x00, 0), (0xFF, 1))
        if not content or padded:
            raise ValueError("a DER integer is not in its shortest form")
        integers.append(int.from_bytes(content, "big", signed=True))
        position = stop
    return integers[0], integers[1]


def low_s(signature: bytes, curve: ec.EllipticCurve) -> bytes:
    """The same signature with its S in the lower half; raises ValueError when malformed."""
    try:
        r, s = decode_dss_signature(signature)
    except ValueError:
        r, s = _decode_with_trailing_bytes(signature)
    order = curve.group_order
    return encode_dss_signature(r, order - s if s > order // 2 else s)


def verify_signature(
    public_key: CertificatePublicKeyTypes, signature: bytes, message: bytes
) -> bool:
    """Whether `signature` is the key's over `message`.

    False for a high S, a malformed signature and for keys that are neither ECDSA nor Ed25519.
    Releases the GIL while it computes.
    """
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        try:
            _, s = decode_dss_signature(signature)
        except ValueError:
            try:
                r, s = _decode_with_trailing_bytes(signature)
                signature = encode_dss_signature(r, s)
            except ValueError:
                return False
        if s > public_key.curve.group_order >> 1:
            return False
        try:
            public_key.verify(signature, message, _ECDSA_SHA256)
        except InvalidSignature:
            return False
        return True
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        try:
            public_key.verify(signature, message)
        except InvalidSignature:
            return False
        return True
    return False


class Signer:
    """A member that can sign: MSP id, certificate and private key (ECDSA P-256).

    `serialized` is the `msp.SerializedIdentity` that goes into every signature header.
    """

    __slots__ = ("_private_key", "certificate", "certificate_pem", "msp_id", "serialized")

    def __init__(
        self, msp_id: str, certificate_pem: bytes, private_key: ec.EllipticCurvePrivateKey
    ) -> None:
        """Raises SigningError when the key is not P-256 or not the certificate's."""
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
        except ValueError as error:
            raise SigningError(
                f"the signing certificate of {msp_id} is not a PEM certificate: {error}"
            ) from None
        if not isinstance(private_key.curve, ec.SECP256R1):
            raise SigningError(
                f"the signing key of {msp_id} is not an ECDSA key on P-256, the only kind that "
                "the channel's members sign with"
            )
        if private_key.public_key() != certificate.public_key():
            raise SigningError(
                f"the signing key of {msp_id} does not belong to the certificate of "
                f"{certificate.subject.rfc4514_string()}; give the key that it was issued for"
            )
        self.msp_id = msp_id
        self.certificate = certificate
        self.certificate_pem = certificate_pem
        self._private_key = private_key
        self.serialized = msp_pb2.SerializedIdentity(
            mspid=msp_id, id_bytes=certificate_pem
        ).SerializeToString()

    @classmethod
    def load(cls, msp_id: str, certificate_path: Path, key_path: Path) -> Signer:
        """Read a PEM certificate and an unencrypted PEM key; raises OSError, SigningError."""
        try:
            key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise SigningError(f"{key_path} is not an unencrypted PEM key: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SigningError(f"{key_path} is not an ECDSA key; members sign with P-256 keys")
        return cls(msp_id, certificate_path.read_bytes(), key)

    def sign(self, message: bytes) -> bytes:
        """ECDSA over SHA-256 of `message`, DER, low S. Releases the GIL while it computes."""
        signature = self._private_key.sign(message, _ECDSA_SHA256)
        r, s = decode_dss_signature(signature)
        order = ec.SECP256R1.group_order
        return signature if s <= order >> 1 else encode_dss_signature(r, order - s)
