"""Signatures as Fabric takes them, and what can't be an identity."""

import datetime as dt
from base64 import b64decode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.contracts.meters.readings import Reading as ContractReading
from consortium.contracts.meters.readings import signed_bytes
from gridledger_client import Identity, InvalidInput, MeterKey, Quality, Reading, generate_key_pem
from gridledger_client.enrolment import certificate_attributes, fingerprint, same_fingerprint
from gridledger_client.identity import load_private_key, sign_low_s
from gridledger_client.readings import batch_transient
from gridledger_client.wire import msp_pb2

HALF = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551 // 2


def certificate(key_pem: bytes) -> bytes:
    key = load_private_key(key_pem)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "home")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


@settings(max_examples=30)
@given(st.binary(max_size=100))
def test_signatures_verify_and_have_a_low_s(message: bytes) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for deterministic in (False, True):
        signature = sign_low_s(key, message, deterministic=deterministic)
        assert decode_dss_signature(signature)[1] <= HALF
        key.public_key().verify(signature, message, ec.ECDSA(hashes.SHA256()))


def test_serialized_identity() -> None:
    key = generate_key_pem()
    identity = Identity("AuroraMSP", certificate(key), key)
    read = msp_pb2.SerializedIdentity.FromString(identity.serialized)
    assert (read.mspid, read.id_bytes) == ("AuroraMSP", identity.certificate_pem)
    assert "PRIVATE" not in repr(identity)


def test_what_is_no_identity() -> None:
    key = generate_key_pem()
    for msp_id, cert, private, words in (
        ("", certificate(key), key, "MSP id"),
        ("AuroraMSP", b"nothing", key, "certificate can't be read"),
        ("AuroraMSP", certificate(key), b"nothing", "private key can't be read"),
        ("AuroraMSP", certificate(key), generate_key_pem(), "don't belong together"),
        ("AuroraMSP", certificate(key), _rsa(), "not an ECDSA key"),
    ):
        with pytest.raises(InvalidInput, match=words):
            Identity(msp_id, cert, private)


def _rsa() -> bytes:
    return rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def test_fingerprint_is_of_the_set_of_certificates() -> None:
    one, other = certificate(generate_key_pem()), certificate(generate_key_pem())
    assert fingerprint(one + other) == fingerprint(other + one)
    assert fingerprint(one) != fingerprint(one + other)
    shown = fingerprint(one)
    assert same_fingerprint(shown, shown.lower().replace(":", ""))
    assert same_fingerprint(shown, f" {shown} ")
    assert not same_fingerprint(shown, shown[:-3])
    assert not same_fingerprint("", "")
    with pytest.raises(InvalidInput, match="PEM"):
        fingerprint(b"nothing")


def test_no_attributes() -> None:
    assert (
        certificate_attributes(x509.load_pem_x509_certificate(certificate(generate_key_pem())))
        == {}
    )


def reading(**changes: int) -> Reading:
    values = {
        "interval_start": 1_750_420_800,
        "interval_s": 900,
        "import_wh": 12,
        "export_wh": 0,
        "import_register_wh": 10_012,
        "export_register_wh": 7,
    }
    return Reading("HA-H-1", **(values | changes), quality=Quality.MEASURED)


def test_what_is_signed_is_what_the_contract_checks() -> None:
    key_pem = generate_key_pem()
    key = MeterKey(key_pem, b"a secret of the home")
    signed = key.sign(reading(), "neighbourhood")
    typed = {
        name: int(value) if name.endswith(("_wh", "_s", "_start", "version")) else value
        for name, value in signed.fields.items()
    }
    message = signed_bytes('"neighbourhood"', ContractReading(**typed))
    load_private_key(key_pem).public_key().verify(
        b64decode(signed.fields["signature"]), message, ec.ECDSA(hashes.SHA256())
    )


def test_the_same_reading_is_the_same_bytes() -> None:
    key = MeterKey(generate_key_pem(), b"a secret of the home")
    assert key.sign(reading(), "n") == key.sign(reading(), "n")
    assert key.sign(reading(), "n").fields != key.sign(reading(), "m").fields
    other = key.sign(reading(interval_start=1_750_421_700), "n")
    assert other.fields["salt"] != key.sign(reading(), "n").fields["salt"]


@pytest.mark.parametrize("changes", [{"import_wh": -1}, {"interval_start": 1}, {"interval_s": 0}])
def test_impossible_readings(changes: dict[str, int]) -> None:
    with pytest.raises(InvalidInput):
        reading(**changes)


def test_batches_are_bounded() -> None:
    signed = MeterKey(generate_key_pem(), b"a secret of the home").sign(reading(), "n")
    assert batch_transient([signed]) == batch_transient([signed.fields])
    for readings in ([], [signed] * 1001):
        with pytest.raises(InvalidInput, match="1 to 1000"):
            batch_transient(readings)
    with pytest.raises(InvalidInput, match="16 bytes"):
        MeterKey(generate_key_pem(), b"short")
