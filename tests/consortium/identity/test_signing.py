"""Signatures as Fabric takes them: low S, DER, and what Go's parser lets through."""

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from hypothesis import given
from hypothesis import strategies as st

from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
)
from consortium.identity.signing import Signer, SigningError, low_s, verify_signature
from consortium.wire import msp_pb2

ORDER = ec.SECP256R1.group_order
AUTHORITY = CertificateAuthority.create("Aurora", "aurora.example")
KEY = generate_key()
PEM = certificate_pem(AUTHORITY.issue("home-1", "client", KEY.public_key()))
SIGNER = Signer("AuroraMSP", PEM, KEY)


def test_serialized_is_msp_id_and_the_given_pem() -> None:
    parsed = msp_pb2.SerializedIdentity.FromString(SIGNER.serialized)
    assert (parsed.mspid, parsed.id_bytes) == ("AuroraMSP", PEM)


@given(message=st.binary(max_size=200))
def test_signatures_hold_and_have_a_low_s(message: bytes) -> None:
    signature = SIGNER.sign(message)
    assert verify_signature(KEY.public_key(), signature, message)
    assert decode_dss_signature(signature)[1] <= ORDER // 2
    assert not verify_signature(KEY.public_key(), signature, message + b".")


def test_the_twin_with_a_high_s_is_refused() -> None:
    r, s = decode_dss_signature(SIGNER.sign(b"message"))
    twin = encode_dss_signature(r, ORDER - s)
    assert not verify_signature(KEY.public_key(), twin, b"message")
    assert verify_signature(KEY.public_key(), low_s(twin, ec.SECP256R1()), b"message")


@given(garbage=st.binary(max_size=80))
def test_garbage_is_no_signature(garbage: bytes) -> None:
    assert not verify_signature(KEY.public_key(), garbage, b"message")


@pytest.mark.parametrize(("r", "s"), [(0, 1), (1, 0), (-1, 1), (1, -1), (ORDER, 1)])
def test_impossible_numbers_are_refused(r: int, s: int) -> None:
    def integer(value: int) -> bytes:
        content = value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)
        return bytes((2, len(content))) + content

    content = integer(r) + integer(s)
    assert not verify_signature(KEY.public_key(), bytes((0x30, len(content))) + content, b"message")


def test_bytes_behind_the_signature_are_ignored_as_in_go() -> None:
    """Fabric's peers accept them, so a ledger that did not would fork from them."""
    signature = SIGNER.sign(b"message")
    inside = bytes((0x30, signature[1] + 2)) + signature[2:] + b"\x05\x00"
    for tolerated in (signature + b"tail", inside, inside + b"tail"):
        assert verify_signature(KEY.public_key(), tolerated, b"message")
    padded = bytes((0x30, 0x81, signature[1])) + signature[2:]
    assert not verify_signature(KEY.public_key(), padded, b"message")
    assert not verify_signature(KEY.public_key(), signature[:-1], b"message")


def test_other_kinds_of_keys() -> None:
    edwards = ed25519.Ed25519PrivateKey.generate()
    assert verify_signature(edwards.public_key(), edwards.sign(b"m"), b"m")
    assert not verify_signature(edwards.public_key(), edwards.sign(b"m"), b"n")
    other = rsa.generate_private_key(65537, 2048)
    assert not verify_signature(other.public_key(), b"anything", b"m")


def test_a_key_that_is_not_the_certificates_is_refused() -> None:
    with pytest.raises(SigningError, match="does not belong to the certificate"):
        Signer("AuroraMSP", PEM, generate_key())


def test_only_p256_signs() -> None:
    with pytest.raises(SigningError, match="P-256"):
        Signer("AuroraMSP", PEM, ec.generate_private_key(ec.SECP384R1()))


def test_load_reads_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_bytes(PEM)
    (tmp_path / "key.pem").write_bytes(key_pem(KEY))
    loaded = Signer.load("AuroraMSP", tmp_path / "cert.pem", tmp_path / "key.pem")
    assert loaded.serialized == SIGNER.serialized
    digest = hashlib.sha256(b"x").digest()
    assert verify_signature(KEY.public_key(), loaded.sign(digest), digest)
    (tmp_path / "key.pem").write_bytes(b"no key")
    with pytest.raises(SigningError, match="not an unencrypted PEM key"):
        Signer.load("AuroraMSP", tmp_path / "cert.pem", tmp_path / "key.pem")
