"""The certificates that an authority issues, and reading PEM as Go does."""

import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from consortium.identity.certificates import (
    ATTRIBUTES_OID,
    CertificateAuthority,
    CertificateError,
    certificate_attributes,
    certificate_der,
    certificate_pem,
    generate_key,
    load_certificate,
    pem_to_der,
    write_private,
)

AUTHORITY = CertificateAuthority.create("Aurora", "aurora.example")


def test_role_and_name_stand_in_the_subject() -> None:
    certificate = AUTHORITY.issue("peer.aurora.example", "peer", generate_key().public_key())
    subject = {one.oid: one.value for one in certificate.subject}
    assert subject[NameOID.COMMON_NAME] == "peer.aurora.example"
    assert subject[NameOID.ORGANIZATIONAL_UNIT_NAME] == "peer"
    assert subject[NameOID.ORGANIZATION_NAME] == "Aurora"
    certificate.verify_directly_issued_by(AUTHORITY.certificate)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert not constraints.value.ca
    assert constraints.critical
    assert certificate.not_valid_after_utc <= AUTHORITY.certificate.not_valid_after_utc
    assert certificate.not_valid_before_utc >= AUTHORITY.certificate.not_valid_before_utc


def test_signatures_of_certificates_have_a_low_s() -> None:
    for _ in range(8):
        certificate = AUTHORITY.issue("home", "client", generate_key().public_key())
        assert decode_dss_signature(certificate.signature)[1] <= ec.SECP256R1.group_order // 2


def test_hosts_make_it_a_tls_certificate() -> None:
    certificate = AUTHORITY.issue(
        "peer", "peer", generate_key().public_key(), hosts=("localhost", "127.0.0.1", "::1")
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert ExtendedKeyUsageOID.SERVER_AUTH in usage


def test_attributes_are_in_fabric_cas_extension() -> None:
    attributes = {"gridledger.role": "home", "gridledger.connection": "C-17"}
    certificate = AUTHORITY.issue(
        "home", "client", generate_key().public_key(), attributes=attributes
    )
    extension = certificate.extensions.get_extension_for_oid(ATTRIBUTES_OID).value
    assert isinstance(extension, x509.UnrecognizedExtension)
    assert json.loads(extension.value) == {"attrs": attributes}
    assert certificate_attributes(certificate) == attributes
    plain = AUTHORITY.issue("home", "client", generate_key().public_key())
    assert certificate_attributes(plain) == {}


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"attrs": 3}', b'{"attrs": {"a": 1}}'])
def test_unreadable_attributes_give_no_rights(value: bytes) -> None:
    key = generate_key()
    template = AUTHORITY.issue("home", "client", key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(template.subject)
        .issuer_name(template.issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(template.not_valid_before_utc)
        .not_valid_after(template.not_valid_after_utc)
        .add_extension(x509.UnrecognizedExtension(ATTRIBUTES_OID, value), critical=False)
        .sign(key, hashes.SHA256())
    )
    assert certificate_attributes(certificate) == {}


def test_what_is_not_issued() -> None:
    key = generate_key().public_key()
    with pytest.raises(CertificateError, match="none of client, peer"):
        AUTHORITY.issue("x", "root", key)
    with pytest.raises(CertificateError, match="characters"):
        AUTHORITY.issue("x" * 65, "client", key)
    with pytest.raises(CertificateError, match="characters"):
        AUTHORITY.issue("", "client", key)
    with pytest.raises(CertificateError, match="P-256"):
        AUTHORITY.issue("x", "client", ec.generate_private_key(ec.SECP384R1()).public_key())
    with pytest.raises(CertificateError, match="4096 are allowed"):
        AUTHORITY.issue("x", "client", key, attributes={"a": "b" * 5000})


def test_name_and_role_of_a_request_do_not_count() -> None:
    key = generate_key()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, "admin"),
                    x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "admin"),
                ]
            )
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate = AUTHORITY.issue_from_csr(request, "home-7", "client")
    assert "CN=home-7,OU=client" in certificate.subject.rfc4514_string()
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.public_key() == key.public_key()


def test_saved_and_loaded(tmp_path: Path) -> None:
    AUTHORITY.save(tmp_path)
    assert stat.S_IMODE((tmp_path / CertificateAuthority.KEY_FILE).stat().st_mode) == 0o600
    again = CertificateAuthority.load(tmp_path)
    assert again.certificate == AUTHORITY.certificate
    again.issue("x", "client", generate_key().public_key()).verify_directly_issued_by(
        AUTHORITY.certificate
    )
    CertificateAuthority.create("Aurora", "aurora.example").save(tmp_path / "other")
    (tmp_path / CertificateAuthority.KEY_FILE).write_bytes(
        (tmp_path / "other" / CertificateAuthority.KEY_FILE).read_bytes()
    )
    with pytest.raises(CertificateError, match="does not belong"):
        CertificateAuthority.load(tmp_path)


def test_write_private_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "secret"
    write_private(path, b"one")
    path.chmod(0o644)
    write_private(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]


def test_pem_is_read_as_go_reads_it() -> None:
    certificate = AUTHORITY.certificate
    pem, der = certificate_pem(certificate), certificate_der(certificate)
    lines = pem.decode().splitlines()
    body = "\n".join(lines[1:-1])
    for tolerated in (
        pem,
        b"some text before\n" + pem + b"and after",
        pem.replace(b"\n", b"\r\n"),
        f"-----BEGIN ANY THING-----\n{body}\n-----END ANY THING-----".encode(),
        f"-----BEGIN X-----\nProc-Type: 4\n\n{body}\n-----END X-----\n".encode(),
        f"-----BEGIN BAD-----\n!!!\n-----END BAD-----\n{pem.decode()}".encode(),
    ):
        assert pem_to_der(tolerated) == der
    for refused in (b"", b"text", pem[:-30], b"x" + pem):
        with pytest.raises(CertificateError):
            pem_to_der(refused)
    with pytest.raises(CertificateError, match="the root is not a PEM certificate"):
        load_certificate(b"-----BEGIN X-----\nAAAA\n-----END X-----\n", "the root")
