"""A member's signing identity: a P-256 key, its certificate, and the member that issued it."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from .errors import InvalidInput
from .wire import msp_pb2

# The order of P-256's group (FIPS 186-4, D.1.2.3). Fabric takes signatures with s <= n/2 only.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def load_private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted P-256 private key from PEM.

    Raises:
        InvalidInput: the PEM isn't one.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"the private key can't be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput("the private key is not an ECDSA key on the curve P-256")
    return key


def generate_key_pem() -> bytes:
    """Make a fresh P-256 private key, as unencrypted PKCS #8 PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def sign_low_s(
    key: ec.EllipticCurvePrivateKey, message: bytes, *, deterministic: bool = False
) -> bytes:
    """Sign with ECDSA and SHA-256; return DER with the lower of the two valid values of s."""
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=deterministic)
    r, s = decode_dss_signature(key.sign(message, algorithm))
    return encode_dss_signature(r, min(s, _P256_ORDER - s))


class Identity:
    """Signs in the name of one certificate of one member (``msp_id``, such as ``AuroraMSP``)."""

    def __init__(self, msp_id: str, certificate_pem: bytes, key_pem: bytes) -> None:
        """Read certificate and key.

        Raises:
            InvalidInput: either can't be read, or they don't belong together.
        """
        if not msp_id:
            raise InvalidInput("an identity needs the id of the member that issued it (MSP id)")
        self.msp_id = msp_id
        self.certificate_pem = certificate_pem
        self._key = load_private_key(key_pem)
        try:
            self.certificate = x509.load_pem_x509_certificate(certificate_pem)
        except ValueError as error:
            raise InvalidInput(f"the certificate can't be read: {error}") from error
        if self.certificate.public_key() != self._key.public_key():
            raise InvalidInput("certificate and private key don't belong together")
        self.serialized = msp_pb2.SerializedIdentity(
            mspid=msp_id, id_bytes=certificate_pem
        ).SerializeToString()

    def sign(self, message: bytes) -> bytes:
        """Sign ``message`` (ECDSA P-256, SHA-256, low s, DER)."""
        return sign_low_s(self._key, message)

    def __repr__(self) -> str:
        """Name the identity without its key."""
        return f"Identity({self.msp_id}, {self.certificate.subject.rfc4514_string()})"
