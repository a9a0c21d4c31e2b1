"""Membership: which certificates count, in which role, and that no clock is asked."""

import base64
import datetime as dt
from collections.abc import Iterable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_der,
    certificate_pem,
    generate_key,
)
from consortium.identity.msp import (
    ADMIN,
    CLIENT,
    MEMBER,
    PEER,
    IdentityError,
    Msp,
    MspError,
    MspManager,
    check_not_expired,
    check_standing,
    msp_config,
)
from consortium.identity.policies import SignedData, role_principal, verified_signers
from consortium.identity.signing import Signer
from consortium.wire import common_pb2, msp_pb2

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
YEAR = dt.timedelta(days=365)
AURORA = CertificateAuthority.create("Aurora", "aurora.example")
BOREAL = CertificateAuthority.create("Boreal", "boreal.example")
MSP = Msp.from_config(msp_config("AuroraMSP", AURORA.certificate_pem))
TLS_CERTIFICATE = AURORA.issue(
    "peer", "peer", generate_key().public_key(), hosts=("a", "1.2.3.4"), attributes={"a": "b"}
)


def name(common_name: str, *units: str) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


class Ca:
    """An authority that issues what a well-behaved one never would."""

    def __init__(
        self,
        common_name: str = "root",
        issuer: Ca | None = None,
        *,
        path_length: int | None = None,
        start: dt.datetime = NOW,
        end: dt.datetime = NOW + 10 * YEAR,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> None:
        self.key = key or generate_key()
        self.name = name(common_name)
        self.certificate = (issuer or self).make(
            self.name,
            self.key.public_key(),
            start=start,
            end=end,
            extensions=[
                x509.BasicConstraints(ca=True, path_length=path_length),
                x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()),
            ],
        )
        self.pem = certificate_pem(self.certificate)

    def make(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey,
        *,
        start: dt.datetime = NOW,
        end: dt.datetime = NOW + YEAR,
        extensions: Iterable[x509.ExtensionType] = (),
        critical: bool = False,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())


def member(ca: Ca, *units: str, **options: object) -> x509.Certificate:
    return ca.make(name("someone", *units), generate_key().public_key(), **options)  # type: ignore[arg-type]


def make_msp(*roots: Ca, intermediates: Iterable[Ca] = (), **options: object) -> Msp:
    config = msp_pb2.FabricMSPConfig(
        name="TestMSP",
        root_certs=[root.pem for root in roots],
        intermediate_certs=[one.pem for one in intermediates],
        fabric_node_ous=msp_pb2.FabricNodeOUs(
            enable=True,
            **{
                f"{role}_ou_identifier": msp_pb2.FabricOUIdentifier(
                    organizational_unit_identifier=role
                )
                for role in ("client", "peer", "admin", "orderer")
            },
        ),
    )
    config.MergeFrom(msp_pb2.FabricMSPConfig(**options))  # type: ignore[arg-type]
    return Msp(config)


def problem(msp: Msp, certificate: x509.Certificate) -> str | None:
    """Why a certificate is not a member, in the words of whoever found out."""
    try:
        return msp.identity_of(certificate).problem
    except IdentityError as error:
        return str(error)


def test_a_member_with_its_role() -> None:
    certificate = AURORA.issue(
        "home-1", "client", generate_key().public_key(), attributes={"gridledger.role": "home"}
    )
    identity = MSP.identity_of(certificate)
    MSP.validate(identity)
    assert identity.roles == {MEMBER, CLIENT}
    assert (identity.role, identity.common_name, identity.is_admin) == ("client", "home-1", False)
    assert identity.attributes == {"gridledger.role": "home"}
    assert MSP.satisfies(identity, role_principal("AuroraMSP", "client"))
    assert not MSP.satisfies(identity, role_principal("AuroraMSP", "peer"))
    assert not MSP.satisfies(identity, role_principal("BorealMSP", "client"))


def test_another_utilitys_certificate_is_no_member() -> None:
    certificate = BOREAL.issue("home-1", "client", generate_key().public_key())
    assert "issued by none" in (problem(MSP, certificate) or "")


def test_an_authority_of_the_same_name_is_not_the_same_authority() -> None:
    impostor = CertificateAuthority.create("Aurora", "aurora.example")
    certificate = impostor.issue("home-1", "client", generate_key().public_key())
    assert "issued by none" in (problem(MSP, certificate) or "")


@pytest.mark.parametrize("units", [(), ("home",), ("client", "peer"), ("client", "client")])
def test_exactly_one_role(units: tuple[str, ...]) -> None:
    root = Ca()
    assert "organizational units" in (problem(make_msp(root), member(root, *units)) or "")
    assert problem(make_msp(root), member(root, "client", "kitchen")) is None


def test_an_authority_is_no_identity() -> None:
    root = Ca()
    certificate = member(
        root, "client", extensions=[x509.BasicConstraints(ca=True, path_length=None)]
    )
    assert "authority's" in (problem(make_msp(root), certificate) or "")
    assert problem(make_msp(root), root.certificate) is not None


def test_no_clock_is_asked() -> None:
    """A certificate that expired long ago still verifies what it signed."""
    past = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    root = Ca(start=past, end=past + YEAR)
    certificate = member(root, "client", start=past, end=past + dt.timedelta(days=1))
    msp = make_msp(root)
    identity = msp.identity_of(certificate)
    msp.validate(identity)
    check_not_expired(identity, past.timestamp() + 3600)
    with pytest.raises(IdentityError, match="expired at 2001-01-02"):
        check_not_expired(identity, past.timestamp() + 25 * 3600)


def test_the_authority_must_hold_when_the_certificate_starts() -> None:
    root = Ca(start=NOW, end=NOW + YEAR)
    msp = make_msp(root)
    assert problem(msp, member(root, "client", start=NOW, end=NOW + 5 * YEAR)) is None
    for start in (NOW - 2 * YEAR, NOW + 2 * YEAR):
        late = member(root, "client", start=start, end=start + YEAR)
        assert "issued by none" in (problem(msp, late) or "")


def test_intermediates_issue_and_roots_above_them_do_not() -> None:
    root = Ca()
    middle = Ca("middle", root)
    msp = make_msp(root, intermediates=[middle])
    assert problem(msp, member(middle, "client")) is None
    assert "does not issue identities" in (problem(msp, member(root, "client")) or "")
    assert problem(make_msp(root), member(root, "client")) is None
    assert "issued by none" in (problem(make_msp(root), member(middle, "client")) or "")


def test_path_length_is_kept() -> None:
    for path_length, expected in ((None, None), (1, None), (0, "issued by none")):
        root = Ca(path_length=path_length)
        middle = Ca("middle", root)
        found = problem(make_msp(root, intermediates=[middle]), member(middle, "client"))
        assert found is None if expected is None else expected in (found or "")


def test_more_than_one_chain_is_refused() -> None:
    root, other = Ca(), Ca("other")
    middle = Ca("middle", root)
    cross = Ca("middle", other, key=middle.key)
    msp = make_msp(root, other, intermediates=[middle, cross])
    assert "has 2 chains" in (problem(msp, member(middle, "client")) or "")


def test_usages_are_judged_as_gos_verifier_does() -> None:
    root = Ca()
    msp = make_msp(root)
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    client = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    assert problem(msp, member(root, "peer", extensions=[server])) is None
    assert problem(msp, member(root, "peer", extensions=[client])) is not None


def test_unknown_critical_extensions_are_refused() -> None:
    root = Ca()
    extension = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
    msp = make_msp(root)
    assert problem(msp, member(root, "client", extensions=[extension])) is None
    assert "critical" in (
        problem(msp, member(root, "client", extensions=[extension], critical=True)) or ""
    )


def test_kinds_of_keys() -> None:
    root = Ca()
    config = make_msp(root).config
    edwards = root.make(name("e", "client"), ed25519.Ed25519PrivateKey.generate().public_key())
    plain = root.make(name("r", "client"), rsa.generate_private_key(65537, 2048).public_key())
    assert "not an ECDSA key" in (problem(Msp(config), edwards) or "")
    assert problem(Msp(config, allow_ed25519=True), edwards) is None
    assert "not an ECDSA key" in (problem(Msp(config, allow_ed25519=True), plain) or "")


def test_revocation_counts_for_the_issuers_own_list_alone() -> None:
    key = generate_key()
    certificate = AURORA.issue("home", "client", key.public_key())
    config = msp_config(
        "AuroraMSP",
        AURORA.certificate_pem,
        revocation_lists=[AURORA.revocation_list([certificate.serial_number, 5])],
    )
    revoked = Msp.from_config(config)
    identity = revoked.identity_of(certificate)
    assert "revoked" in (identity.problem or "")
    assert identity.roles == frozenset()
    with pytest.raises(IdentityError, match="is revoked by AuroraMSP"):
        revoked.validate(identity)
    assert problem(revoked, AURORA.issue("other", "client", key.public_key())) is None
    foreign = Msp.from_config(
        msp_config(
            "AuroraMSP",
            AURORA.certificate_pem,
            revocation_lists=[BOREAL.revocation_list([certificate.serial_number])],
        )
    )
    assert problem(foreign, certificate) is None


def test_standing_is_what_channels_say_of_a_member() -> None:
    """One that knows neither organization nor issuer accuses nobody."""
    certificate = AURORA.issue("admin", "admin", generate_key().public_key())
    serialized = MSP.identity_of(certificate).serialized
    revoking = Msp.from_config(
        msp_config(
            "AuroraMSP",
            AURORA.certificate_pem,
            revocation_lists=[AURORA.revocation_list([certificate.serial_number])],
        )
    )
    another = CertificateAuthority.create("Aurora", "aurora.example")
    later = Msp.from_config(msp_config("AuroraMSP", another.certificate_pem))
    channels = [MspManager({"AuroraMSP": one}) for one in (MSP, later)]
    check_standing("AuroraMSP", serialized, [MspManager({}), *channels])
    with pytest.raises(IdentityError, match="is revoked by AuroraMSP"):
        check_standing("AuroraMSP", serialized, [*channels, MspManager({"AuroraMSP": revoking})])
    check_standing("BorealMSP", serialized, [MspManager({"AuroraMSP": revoking})])


def test_a_signatures_twin_makes_no_second_identity() -> None:
    """The certificate with the other S is the same identity, and signs once."""
    key = generate_key()
    certificate = AURORA.issue("peer", "peer", key.public_key())
    r, s = decode_dss_signature(certificate.signature)
    signature = encode_dss_signature(r, ec.SECP256R1.group_order - s)
    der = certificate_der(certificate)
    tbs = certificate.tbs_certificate_bytes
    algorithm = der[der.index(tbs) + len(tbs) : -len(certificate.signature) - 3]
    content = tbs + algorithm + bytes((3, len(signature) + 1, 0)) + signature
    twin = x509.load_der_x509_certificate(b"\x30\x82" + len(content).to_bytes(2, "big") + content)
    twin.verify_directly_issued_by(AURORA.certificate)
    assert certificate_der(twin) != der
    assert MSP.identity_of(twin).key == MSP.identity_of(certificate).key
    manager = MspManager({"AuroraMSP": MSP})
    signers = [Signer("AuroraMSP", certificate_pem(one), key) for one in (certificate, twin)]
    signed = [SignedData(b"x", one.serialized, one.sign(b"x")) for one in signers]
    assert len(verified_signers(manager, signed)) == 1


def test_a_certificate_in_other_bytes_is_refused() -> None:
    """A signature said to be a bit short of whole bytes is the same signature to OpenSSL."""
    while True:
        certificate = AURORA.issue("peer", "peer", generate_key().public_key())
        if not certificate.signature[-1] & 1:
            break
    der = certificate_der(certificate)
    start = len(der) - len(certificate.signature)
    twin = x509.load_der_x509_certificate(der[: start - 1] + b"\x01" + der[start:])
    twin.verify_directly_issued_by(AURORA.certificate)
    assert "whole bytes" in (problem(MSP, twin) or "")


@settings(max_examples=300)
@given(data=st.data())
def test_malformed_certificates_are_refused_in_words(data: st.DataObject) -> None:
    """Anyone can send any bytes as an identity; whatever they are, the answer is IdentityError."""
    der = bytearray(certificate_der(TLS_CERTIFICATE))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(der) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                der[position] = data.draw(st.integers(0, 255))
            case 1:
                del der[position]
            case _:
                der.insert(position, data.draw(st.integers(0, 255)))
    body = base64.encodebytes(bytes(der))
    pem = b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"
    serialized = msp_pb2.SerializedIdentity(mspid="AuroraMSP", id_bytes=pem).SerializeToString()
    if bytes(der) == certificate_der(TLS_CERTIFICATE):
        return
    with pytest.raises(IdentityError):
        MSP.deserialize(serialized)


def with_extensions(extensions: bytes) -> bytes:
    """A self-signed certificate (PEM) whose list of extensions is the given DER."""

    def element(tag: int, *parts: bytes) -> bytes:
        content = b"".join(parts)
        return bytes((tag, 0x82)) + len(content).to_bytes(2, "big") + content

    def short(data: bytes) -> bytes:
        """The same element with its length in the shortest form."""
        length = int.from_bytes(data[2:4], "big")
        if length < 0x80:
            return data[:1] + bytes((length,)) + data[4:]
        return data[:1] + b"\x81" + bytes((length,)) + data[4:] if length < 0x100 else data

    key = generate_key()
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    subject = name("x", "client").public_bytes()
    validity = short(element(0x30, b"\x17\x0d260101000000Z", b"\x17\x0d270101000000Z"))
    public_key = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    tbs = short(
        element(
            0x30,
            bytes.fromhex("a003020102020101"),
            algorithm,
            subject,
            validity,
            subject,
            public_key,
            short(element(0xA3, short(element(0x30, extensions)))),
        )
    )
    signature = key.sign(tbs, ec.ECDSA(hashes.SHA256()))
    der = short(element(0x30, tbs, algorithm, short(element(0x03, b"\x00", signature))))
    return b"-----BEGIN X-----\n" + base64.encodebytes(der) + b"-----END X-----\n"


@pytest.mark.parametrize(
    "extensions",
    [
        # The same extension twice.
        bytes.fromhex("300906032a030404020500") * 2,
        # An alternative name of a kind that cryptography does not know (ediPartyName).
        bytes.fromhex("300f0603551d110408300" + "6a5048102" + "6869"),
    ],
)
def test_extensions_that_cannot_be_read(extensions: bytes) -> None:
    serialized = msp_pb2.SerializedIdentity(
        mspid="AuroraMSP", id_bytes=with_extensions(extensions)
    ).SerializeToString()
    with pytest.raises(IdentityError):
        MspManager({"AuroraMSP": MSP}).identity(serialized)


def test_named_administrators() -> None:
    root = Ca()
    admin, other = member(root, "client"), member(root, "client")
    msp = make_msp(root, admins=[certificate_pem(admin)])
    assert msp.identity_of(admin).roles == {MEMBER, CLIENT, ADMIN}
    assert msp.identity_of(other).roles == {MEMBER, CLIENT}
    with pytest.raises(MspError, match="neither the client nor the admin unit"):
        make_msp(root, admins=[certificate_pem(member(root, "peer"))])


def test_without_roles_all_are_members() -> None:
    root = Ca()
    admin = member(root)
    config = msp_pb2.FabricMSPConfig(
        name="TestMSP", root_certs=[root.pem], admins=[certificate_pem(admin)]
    )
    msp = Msp(config)
    assert msp.identity_of(admin).roles == {MEMBER, ADMIN}
    assert msp.identity_of(member(root, "peer")).roles == {MEMBER}
    config.ClearField("admins")
    with pytest.raises(MspError, match="neither administrators"):
        Msp(config)


def test_roles_certified_by_one_authority() -> None:
    root, other = Ca(), Ca("other")
    config = make_msp(root, other).config
    config.fabric_node_ous.peer_ou_identifier.certificate = root.pem
    msp = Msp(config)
    assert msp.identity_of(member(root, "peer")).roles == {MEMBER, PEER}
    assert "another authority" in (problem(msp, member(other, "peer")) or "")
    assert problem(msp, member(other, "client")) is None


def test_principals_of_other_kinds() -> None:
    kinds = common_pb2.MSPPrincipal
    certificate = AURORA.issue("peer", "peer", generate_key().public_key())
    identity = MSP.identity_of(certificate)
    other = MSP.identity_of(AURORA.issue("peer", "peer", generate_key().public_key()))

    def principal(kind: int, message: bytes) -> common_pb2.MSPPrincipal:
        return common_pb2.MSPPrincipal(principal_classification=kind, principal=message)  # type: ignore[arg-type]

    exactly = principal(kinds.IDENTITY, identity.serialized)
    assert MSP.satisfies(identity, exactly)
    assert not MSP.satisfies(other, exactly)
    unit = common_pb2.OrganizationUnit(
        msp_identifier="AuroraMSP",
        organizational_unit_identifier="peer",
        certifiers_identifier=identity.certifiers_identifier,
    )
    in_unit = principal(kinds.ORGANIZATION_UNIT, unit.SerializeToString())
    assert MSP.satisfies(identity, in_unit)
    unit.organizational_unit_identifier = "kitchen"
    assert not MSP.satisfies(identity, principal(kinds.ORGANIZATION_UNIT, unit.SerializeToString()))
    combined = common_pb2.CombinedPrincipal(
        principals=[in_unit, role_principal("AuroraMSP", "peer"), exactly]
    )
    assert MSP.satisfies(identity, principal(kinds.COMBINED, combined.SerializeToString()))
    assert not MSP.satisfies(other, principal(kinds.COMBINED, combined.SerializeToString()))
    assert not MSP.satisfies(identity, principal(kinds.COMBINED, b""))
    assert MSP.satisfies(identity, principal(kinds.ANONYMITY, b""))
    assert not MSP.satisfies(
        identity,
        principal(
            kinds.ANONYMITY,
            common_pb2.MSPIdentityAnonymity(
                anonymity_type=common_pb2.MSPIdentityAnonymity.ANONYMOUS
            ).SerializeToString(),
        ),
    )
    assert not MSP.satisfies(identity, principal(kinds.ROLE, b"\xff"))


def test_the_manager_reads_and_caches() -> None:
    manager = MspManager({"AuroraMSP": MSP}, cache_entries=2)
    key = generate_key()
    signer = Signer(
        "AuroraMSP", certificate_pem(AURORA.issue("a", "client", key.public_key())), key
    )
    identity = manager.identity(signer.serialized)
    assert manager.identity(signer.serialized) is identity
    assert identity.verify(signer.sign(b"x"), b"x")
    assert manager.satisfies(identity, role_principal("AuroraMSP", "member"))
    with pytest.raises(IdentityError, match="'BorealMSP' is not a member"):
        manager.identity(Signer("BorealMSP", signer.certificate_pem, key).serialized)
    with pytest.raises(IdentityError, match="cannot be read"):
        manager.identity(b"\xff\xff")
    with pytest.raises(IdentityError, match="not a PEM certificate"):
        manager.identity(
            msp_pb2.SerializedIdentity(mspid="AuroraMSP", id_bytes=b"x").SerializeToString()
        )


def test_definitions_that_no_channel_may_have() -> None:
    root = Ca()
    plain = certificate_pem(member(root, "client"))
    refused: list[tuple[dict[str, object], str]] = [
        ({"name": ""}, "no name"),
        ({"name": "X"}, "no root"),
        ({"name": "X", "root_certs": [b"nothing"]}, "not a PEM certificate"),
        ({"name": "X", "root_certs": [plain]}, "CA flag"),
        (
            {"name": "X", "root_certs": [root.pem], "revocation_list": [b"nothing"]},
            "revocation list",
        ),
        ({"name": "X", "root_certs": [root.pem], "tls_root_certs": [plain]}, "CA flag"),
        (
            {
                "name": "X",
                "root_certs": [root.pem],
                "crypto_config": msp_pb2.FabricCryptoConfig(signature_hash_family="SHA3"),
            },
            "hash family",
        ),
    ]
    for options, message in refused:
        with pytest.raises(MspError, match=message):
            Msp(msp_pb2.FabricMSPConfig(**options))  # type: ignore[arg-type]
    with pytest.raises(MspError, match="type 1"):
        Msp.from_config(msp_pb2.MSPConfig(type=1))
    with pytest.raises(MspError, match="cannot be read"):
        Msp.from_config(msp_pb2.MSPConfig(config=b"\xff"))


def test_what_stands_behind_a_tls_root_does_not_hide_the_next_one() -> None:
    """TLS reads a bundle up to the first block that it can't, and others' roots come behind."""
    root = Ca()
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert make_msp(root, tls_root_certs=[root.pem + broken]).tls_root_certificates == (root.pem,)
