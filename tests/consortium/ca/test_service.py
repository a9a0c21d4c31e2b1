"""The enrolment service over real HTTPS, as fabric-ca's clients and ours call it."""

import asyncio
import base64
import contextlib
import json
import shutil
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from consortium.ca import service as service_module
from consortium.ca.service import BODY_LIMIT_BYTES, CaService, make_token
from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_attributes,
    certificate_pem,
    generate_key,
    key_pem,
    load_certificate,
    write_private,
)
from consortium.identity.msp import Msp, msp_config
from consortium.identity.signing import Signer
from consortium.node.channel import revocation_lists_of
from consortium.wire import msp_pb2
from custom_components.gridledger.client import enrolment

YEAR_S = 365 * 86400


class Clock:
    """The service's clock, which a test may move."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        import time

        return time.time() + self.offset


@dataclass
class Ca:
    """A running service, its authority and a client session that trusts it."""

    service: CaService
    authority: CertificateAuthority
    session: aiohttp.ClientSession
    clock: Clock
    url: str

    async def call(
        self, method: str, path: str, body: object = None, **options: Any
    ) -> tuple[int, dict[str, Any]]:
        data = b"" if body is None else json.dumps(body).encode()
        if auth := options.pop("auth", None):
            encoded = base64.b64encode(":".join(auth).encode()).decode()
            options["headers"] = {"Authorization": f"Basic {encoded}"}
        if signer := options.pop("signer", None):
            token = make_token(signer.sign, method, path, data, signer.certificate_pem)
            options["headers"] = {"Authorization": token}
        async with self.session.request(method, self.url + path, data=data, **options) as answer:
            return answer.status, await answer.json()

    def member(self, name: str, role: str, **attributes: str) -> Signer:
        key = generate_key()
        certificate = self.authority.issue(name, role, key.public_key(), attributes=attributes)
        return Signer("AuroraMSP", certificate_pem(certificate), key)

    @property
    def admin(self) -> Signer:
        return self.member("admin@aurora.example", "admin")

    @property
    def operator(self) -> Signer:
        return self.member("operator", "client", **{"gridledger.role": "operator"})


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncIterator[Ca]:
    authority = CertificateAuthority.create("Aurora", "aurora.example")
    authority.save(tmp_path)
    key = generate_key()
    tls = authority.issue("ca.aurora.example", "client", key.public_key(), hosts=("127.0.0.1",))
    (tmp_path / "tls.cert.pem").write_bytes(certificate_pem(tls))
    write_private(tmp_path / "tls.key.pem", key_pem(key))
    (tmp_path / "bundle.pem").write_bytes(authority.certificate_pem)
    clock = Clock()
    service = CaService(
        tmp_path,
        name="ca.aurora.example",
        host="127.0.0.1",
        port=0,
        tls_certificate=tmp_path / "tls.cert.pem",
        tls_key=tmp_path / "tls.key.pem",
        tls_bundle=tmp_path / "bundle.pem",
        previous_root=tmp_path / "previous.pem",
        msp_id="AuroraMSP",
        clock=clock,
    )
    await service.start()
    trust = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    connector = aiohttp.TCPConnector(ssl=trust)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Ca(service, authority, session, clock, f"https://127.0.0.1:{service.port}")
    await service.stop()


def csr(
    key: ec.EllipticCurvePrivateKey | None = None, curve: ec.EllipticCurve | None = None
) -> str:
    key = key or ec.generate_private_key(curve or ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "admin"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "admin"),
        ]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("peer")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM).decode()


def with_signature_of(
    request: x509.CertificateSigningRequest, other: x509.CertificateSigningRequest
) -> str:
    """A request that carries another one's signature."""
    info = request.tbs_certrequest_bytes
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    content = info + algorithm + bytes((3, len(other.signature) + 1, 0)) + other.signature
    size = 1 if len(content) < 256 else 2
    der = bytes((0x30, 0x80 | size)) + len(content).to_bytes(size, "big") + content
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


def issued(answer: dict[str, Any]) -> x509.Certificate:
    return x509.load_pem_x509_certificate(base64.b64decode(answer["result"]["Cert"]))


def error(answer: dict[str, Any]) -> tuple[bool, int, str]:
    return answer["success"], answer["errors"][0]["code"], answer["errors"][0]["message"]


AUTHENTICATION_FAILURE = (False, 20, "Authentication failure")


async def test_cainfo(ca: Ca) -> None:
    for method in ("GET", "POST"):
        status, answer = await ca.call(method, "/api/v1/cainfo")
        assert status == 200
        assert answer["success"] is True
        assert answer["errors"] == answer["messages"] == []
        result = answer["result"]
        assert result["CAName"] == "ca.aurora.example"
        assert base64.b64decode(result["CAChain"]) == ca.authority.certificate_pem
        assert base64.b64decode(result["TLSBundle"]) == ca.authority.certificate_pem


async def test_our_own_client_enrols(ca: Ca) -> None:
    secret = ca.service.registry.register(
        "home-1", attributes={"gridledger.role": "home", "gridledger.connection": "C-1"}
    )
    bundle = await enrolment.fetch_bundle(ca.url)
    credentials = await enrolment.enroll(ca.url, "home-1", secret, bundle)
    assert credentials.msp_id == "AuroraMSP"
    msp = Msp.from_config(msp_config("AuroraMSP", ca.authority.certificate_pem))
    certificate = x509.load_pem_x509_certificate(credentials.certificate_pem)
    identity = msp.identity_of(certificate)
    msp.validate(identity)
    assert (identity.common_name, identity.role) == ("home-1", "client")
    assert identity.attributes == {
        "gridledger.role": "home",
        "gridledger.connection": "C-1",
        "hf.EnrollmentID": "home-1",
        "hf.Type": "client",
        "hf.Affiliation": "",
    }
    again = await enrolment.enroll(ca.url, "home-1", secret, bundle, key_pem=credentials.key_pem)
    assert again.certificate_pem == credentials.certificate_pem


async def test_the_request_decides_nothing_but_the_key(ca: Ca) -> None:
    key = generate_key()
    secret = ca.service.registry.register("home-1")
    status, answer = await ca.call(
        "POST",
        "/api/v1/enroll",
        {"certificate_request": csr(key), "profile": "", "label": "", "caname": ""},
        auth=("home-1", secret),
    )
    certificate = issued(answer)
    assert status == 201
    assert certificate.public_key() == key.public_key()
    assert "CN=home-1,OU=client" in certificate.subject.rfc4514_string()
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert answer["result"]["ServerInfo"]["CAName"] == "ca.aurora.example"


async def test_refusals_tell_nothing_apart(ca: Ca) -> None:
    secret = ca.service.registry.register("home-1")
    body = {"certificate_request": csr()}

    async def enroll(name: str, password: str) -> tuple[int, dict[str, Any]]:
        return await ca.call("POST", "/api/v1/enroll", body, auth=(name, password))

    for name, password in (("home-1", "wrong"), ("nobody", secret), ("home-1", "x" * 5000)):
        status, answer = await enroll(name, password)
        assert (status, error(answer)) == (401, AUTHENTICATION_FAILURE)
    assert (await enroll("home-1", secret))[0] == 201
    body = {"certificate_request": csr()}
    status, answer = await enroll("home-1", secret)
    assert (status, error(answer)) == (401, AUTHENTICATION_FAILURE)
    status, answer = await ca.call("POST", "/api/v1/enroll", body)
    assert (status, error(answer)) == (401, (False, 2, "No authorization header"))
    status, answer = await ca.call(
        "POST", "/api/v1/enroll", body, headers={"Authorization": "Basic !!"}
    )
    assert (status, error(answer)) == (401, AUTHENTICATION_FAILURE)


async def test_requests_that_cannot_be_signed(ca: Ca) -> None:
    secret = ca.service.registry.register("home-1", max_enrollments=-1)
    auth = ("home-1", secret)
    request = x509.load_pem_x509_csr(csr().encode())
    other = x509.load_pem_x509_csr(csr().encode())
    forged = with_signature_of(request, other)
    for body, message in (
        ({}, "certificate_request is missing"),
        ({"certificate_request": "x"}, "not a CSR in PEM"),
        ({"certificate_request": csr(curve=ec.SECP384R1())}, "P-256"),
        ({"certificate_request": forged}, "not signed by its own key"),
        ({"certificate_request": csr(), "profile": "tls"}, "profile 'tls'"),
        ([], "not a JSON object"),
    ):
        status, answer = await ca.call("POST", "/api/v1/enroll", body, auth=auth)
        assert status == 400
        assert message in error(answer)[2]
    status, answer = await ca.call(
        "POST", "/api/v1/enroll", {"certificate_request": csr(), "caname": "other"}, auth=auth
    )
    assert (status, error(answer)[1]) == (404, 19)
    entry = ca.service.registry.get("home-1")
    assert entry is not None
    assert entry.enrollments == 0


async def test_bodies_are_limited_and_other_paths_answer_alike(ca: Ca) -> None:
    status, answer = await ca.call("POST", "/api/v1/cainfo", "x" * BODY_LIMIT_BYTES)
    assert (status, answer["success"]) == (413, False)
    status, answer = await ca.call("GET", "/api/v1/nothing")
    assert (status, answer["success"]) == (404, False)
    status, answer = await ca.call("GET", "/api/v1/enroll")
    assert (status, answer["success"]) == (405, False)


async def test_an_administrator_registers_and_the_registered_enrols(ca: Ca) -> None:
    status, answer = await ca.call(
        "POST",
        "/api/v1/register",
        {
            "id": "peer-2",
            "type": "peer",
            "affiliation": "north",
            "max_enrollments": 3,
            "attrs": [
                {"name": "shown", "value": "yes", "ecert": True},
                {"name": "hidden", "value": "yes"},
            ],
        },
        signer=ca.admin,
    )
    assert status == 201
    auth = ("peer-2", answer["result"]["secret"])
    _, answer = await ca.call("POST", "/api/v1/enroll", {"certificate_request": csr()}, auth=auth)
    certificate = issued(answer)
    assert certificate_attributes(certificate) == {
        "shown": "yes",
        "hf.EnrollmentID": "peer-2",
        "hf.Type": "peer",
        "hf.Affiliation": "north",
    }
    assert "OU=peer" in certificate.subject.rfc4514_string()
    status, answer = await ca.call("POST", "/api/v1/register", {"id": "peer-2"}, signer=ca.admin)
    assert status == 409
    assert "already registered" in error(answer)[2]


async def test_who_registers_whom(ca: Ca) -> None:
    async def register(signer: Signer, **body: object) -> int:
        status, _ = await ca.call("POST", "/api/v1/register", body, signer=signer)
        return status

    operator_attribute = [{"name": "gridledger.role", "value": "operator", "ecert": True}]
    assert await register(ca.operator, id="home-1") == 201
    assert await register(ca.operator, id="peer-1", type="peer") == 403
    assert await register(ca.operator, id="admin-1", type="admin") == 403
    assert await register(ca.operator, id="operator-2", attrs=operator_attribute) == 403
    assert await register(ca.admin, id="operator-2", attrs=operator_attribute) == 201
    home = ca.member("home", "client", **{"gridledger.role": "home"})
    assert await register(home, id="home-3") == 403
    assert await register(ca.admin, id="../x") == 400
    assert await register(ca.admin, id="x", type="king") == 400
    assert await register(ca.admin, id=7) == 400
    assert await register(ca.admin, id="x", attrs=[{"name": 1}]) == 400
    # Named twice, once as what an operator may register.
    for beside in ({"value": "home"}, {"value": "home", "ecert": True}):
        both = [*operator_attribute, {"name": "gridledger.role", **beside}]
        assert await register(ca.operator, id="operator-3", attrs=both) == 400
        assert await register(ca.operator, id="operator-3", attrs=both[::-1]) == 400
    # What no certificate could carry, and what is no text.
    large = [{"name": f"a{n}", "value": "x" * 250, "ecert": True} for n in range(20)]
    assert await register(ca.admin, id="x", attrs=large) == 400
    assert await register(ca.admin, id="x", secret="\ud800") == 400
    assert ca.service.registry.get("x") is None


async def test_who_asks_nothing_is_hung_up_on(ca: Ca, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may connect, and each connection costs memory."""
    monkeypatch.setattr(service_module, "SILENT_S", 3.0)
    trust = ssl.create_default_context(cadata=ca.authority.certificate_pem.decode())
    silent, writer = await asyncio.open_connection("127.0.0.1", ca.service.port, ssl=trust)
    asking, other = await asyncio.open_connection("127.0.0.1", ca.service.port, ssl=trust)
    other.write(b"GET /api/v1/cainfo HTTP/1.1\r\nHost: ca\r\n\r\n")
    assert (await asking.readline()).startswith(b"HTTP/1.1 200")
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            assert await silent.read() == b""
        status, _ = await ca.call("GET", "/api/v1/cainfo")
    assert status == 200
    other.write(b"GET /api/v1/cainfo HTTP/1.1\r\nHost: ca\r\n\r\n")
    await other.drain()
    writer.close()
    other.close()


async def test_a_body_that_does_not_come_is_not_waited_for(
    ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "REQUEST_S", 0.2)
    trust = ssl.create_default_context(cadata=ca.authority.certificate_pem.decode())
    reader, writer = await asyncio.open_connection("127.0.0.1", ca.service.port, ssl=trust)
    writer.write(b"POST /api/v1/cainfo HTTP/1.1\r\nHost: ca\r\nContent-Length: 9\r\n\r\n{")
    async with asyncio.timeout(60):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    writer.close()


async def test_a_name_makes_no_line_of_the_log(ca: Ca, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    other = CertificateAuthority.create("Aurora", "aurora.example")
    key = generate_key()
    name = "x\n2026-01-01 INFO ca.aurora.example enrolled admin"
    certificate = certificate_pem(other.issue(name, "client", key.public_key()))
    stranger = Signer("AuroraMSP", certificate, key)
    status, _ = await ca.call("POST", "/api/v1/register", {"id": "x"}, signer=stranger)
    assert status == 401
    home = ca.member(name, "client")
    status, _ = await ca.call("POST", "/api/v1/register", {"id": "x"}, signer=home)
    assert status == 403
    assert not any("\n" in one.getMessage() for one in caplog.records)
    assert any("x\\x0a2026" in one.getMessage() for one in caplog.records)


async def test_tokens_that_do_not_count(ca: Ca) -> None:
    body = {"id": "home-1"}
    data = json.dumps(body).encode()
    admin = ca.admin
    stranger = CertificateAuthority.create("Aurora", "aurora.example")
    key = generate_key()
    false_admin = Signer(
        "AuroraMSP", certificate_pem(stranger.issue("admin", "admin", key.public_key())), key
    )
    path = "/api/v1/register"
    pem = admin.certificate_pem
    for token in (
        "x",
        "x.y",
        make_token(admin.sign, "POST", path, b"other", pem),
        make_token(admin.sign, "GET", path, data, pem),
        make_token(admin.sign, "POST", "/api/v1/revoke", data, pem),
        make_token(ca.operator.sign, "POST", path, data, pem),
        make_token(false_admin.sign, "POST", path, data, false_admin.certificate_pem),
    ):
        status, answer = await ca.call("POST", path, body, headers={"Authorization": token})
        assert (status, error(answer)) == (401, AUTHENTICATION_FAILURE)
    ca.clock.offset = 2 * YEAR_S
    status, answer = await ca.call("POST", path, body, signer=admin)
    assert (status, error(answer)) == (401, AUTHENTICATION_FAILURE)
    ca.clock.offset = 0
    ca.service.registry.revoke_serial_number(admin.certificate.serial_number)
    status, answer = await ca.call("POST", path, body, signer=admin)
    assert (status, error(answer)) == (401, AUTHENTICATION_FAILURE)
    assert ca.service.registry.enrollment_ids() == ()


async def test_reenrolment_with_a_new_key(ca: Ca) -> None:
    secret = ca.service.registry.register("home-1", attributes={"a": "b"})
    key, new_key = generate_key(), generate_key()
    _, answer = await ca.call(
        "POST",
        "/api/v1/enroll",
        {"certificate_request": csr(key)},
        auth=("home-1", secret),
    )
    signer = Signer("AuroraMSP", base64.b64decode(answer["result"]["Cert"]), key)
    status, answer = await ca.call(
        "POST", "/api/v1/reenroll", {"certificate_request": csr(new_key)}, signer=signer
    )
    certificate = issued(answer)
    assert status == 201
    assert certificate.public_key() == new_key.public_key()
    assert "CN=home-1,OU=client" in certificate.subject.rfc4514_string()
    assert certificate_attributes(certificate)["a"] == "b"


async def test_revocation_ends_an_identity(ca: Ca) -> None:
    secret = ca.service.registry.register("home-1")
    key = generate_key()
    _, answer = await ca.call(
        "POST",
        "/api/v1/enroll",
        {"certificate_request": csr(key)},
        auth=("home-1", secret),
    )
    certificate = issued(answer)
    signer = Signer("AuroraMSP", certificate_pem(certificate), key)
    status, _ = await ca.call("POST", "/api/v1/revoke", {"id": "home-1"}, signer=signer)
    assert status == 403
    status, answer = await ca.call(
        "POST", "/api/v1/revoke", {"id": "home-1", "gencrl": True}, signer=ca.operator
    )
    assert status == 200
    assert answer["result"]["RevokedCerts"] == [
        {
            "Serial": f"{certificate.serial_number:x}",
            "AKI": ca.authority.key_identifier.hex(),
        }
    ]
    revocation = base64.b64decode(answer["result"]["CRL"])
    msp = Msp.from_config(
        msp_config("AuroraMSP", ca.authority.certificate_pem, revocation_lists=[revocation])
    )
    assert "is revoked" in (msp.identity_of(certificate).problem or "")
    status, answer = await ca.call(
        "POST", "/api/v1/reenroll", {"certificate_request": csr()}, signer=signer
    )
    assert (status, error(answer)) == (401, AUTHENTICATION_FAILURE)
    status, _ = await ca.call("POST", "/api/v1/revoke", {"id": "nobody"}, signer=ca.admin)
    assert status == 404
    for serial in ("xyz", "0", "-5", "a" * 64):
        status, _ = await ca.call("POST", "/api/v1/revoke", {"serial": serial}, signer=ca.admin)
        assert status == 400
    status, answer = await ca.call("POST", "/api/v1/revoke", {"serial": "0fF"}, signer=ca.admin)
    assert answer["result"]["RevokedCerts"][0]["Serial"] == "ff"


async def test_a_list_of_each_root_that_is_trusted(ca: Ca, tmp_path: Path) -> None:
    """Who was certified by the root before stays revoked, and may be revoked."""
    before, after = ca.authority, CertificateAuthority.create("Aurora", "aurora.example")
    roots = before.certificate_pem, after.certificate_pem
    admin = ca.admin
    homes = [
        authority.issue(name, "client", generate_key().public_key())
        for name, authority in (("home-1", before), ("home-2", before), ("home-3", after))
    ]

    async def revoked(home: x509.Certificate) -> tuple[int, dict[str, Any]]:
        body = {"serial": f"{home.serial_number:x}", "gencrl": True}
        return await ca.call("POST", "/api/v1/revoke", body, signer=admin)

    status, answer = await revoked(homes[0])
    assert status == 200
    assert len(revocation_lists_of(base64.b64decode(answer["result"]["CRL"]))) == 1
    previous = tmp_path / "kept" / CertificateAuthority.CERTIFICATE_FILE
    before.save(previous.parent)
    ca.service._previous_root = previous
    after.save(tmp_path)
    for home in homes[1:]:
        status, answer = await revoked(home)
        assert status == 200
    lists = revocation_lists_of(base64.b64decode(answer["result"]["CRL"]))
    assert len(lists) == 2
    definition = msp_config("AuroraMSP", roots[0], revocation_lists=lists)
    inner = msp_pb2.FabricMSPConfig.FromString(definition.config)
    inner.root_certs.append(roots[1])
    for unit, identifier in inner.fabric_node_ous.ListFields():
        if unit.name.endswith("_ou_identifier"):
            identifier.certificate = b""
    definition.config = inner.SerializeToString()
    msp = Msp.from_config(definition)
    for home in homes:
        assert "is revoked" in (msp.identity_of(home).problem or "")
    # A list less would let revoked certificates back in: that is said instead.
    (previous.parent / CertificateAuthority.KEY_FILE).unlink()
    status, answer = await revoked(homes[0])
    assert (status, error(answer)[2]) == (
        500,
        "the root before the present one can't sign its revocation list",
    )
    previous.unlink()
    status, answer = await revoked(homes[2])
    # Nobody trusts the root before any more, and neither its administrator.
    assert status == 401


async def test_an_address_in_use_is_said(ca: Ca, tmp_path: Path) -> None:
    other = CaService(
        tmp_path,
        name="ca",
        host="127.0.0.1",
        port=ca.service.port,
        tls_certificate=tmp_path / "tls.cert.pem",
        tls_key=tmp_path / "tls.key.pem",
        tls_bundle=tmp_path / "bundle.pem",
    )
    with pytest.raises(OSError, match="in use"):
        await other.start()


async def test_files_that_change_are_taken_up(ca: Ca, tmp_path: Path) -> None:
    """A new root, TLS certificate and bundle, without a restart; half-written ones later."""
    ca.service.registry.register("home", secret="secret")
    key = generate_key()
    status, answer = await ca.call(
        "POST", "/api/v1/enroll", {"certificate_request": csr(key)}, auth=("home", "secret")
    )
    assert status == 201
    old = Signer("AuroraMSP", base64.b64decode(answer["result"]["Cert"]), key)
    after = CertificateAuthority.create("Aurora", "aurora.example")
    (tmp_path / "previous.pem").write_bytes(ca.authority.certificate_pem)
    # The key is there and the certificate isn't yet: it goes on as before.
    files = CertificateAuthority.KEY_FILE, CertificateAuthority.CERTIFICATE_FILE
    after.save(tmp_path / "next")
    shutil.copy(tmp_path / "next" / files[0], tmp_path / files[0])
    status, answer = await ca.call("GET", "/api/v1/cainfo")
    assert base64.b64decode(answer["result"]["CAChain"]) == ca.authority.certificate_pem
    shutil.copy(tmp_path / "next" / files[1], tmp_path / files[1])
    both = ca.authority.certificate_pem + after.certificate_pem
    (tmp_path / "bundle.pem").write_bytes(both)
    tls_key = generate_key()
    tls = after.issue("ca", "client", tls_key.public_key(), hosts=("127.0.0.1",))
    write_private(tmp_path / "tls.key.pem", key_pem(tls_key))
    (tmp_path / "tls.cert.pem").write_bytes(certificate_pem(tls))
    status, answer = await ca.call("GET", "/api/v1/cainfo")
    assert base64.b64decode(answer["result"]["CAChain"]) == after.certificate_pem
    assert base64.b64decode(answer["result"]["TLSBundle"]) == both
    # A new connection sees the new certificate, which the new root has issued.
    trust = ssl.create_default_context(cadata=after.certificate_pem.decode())
    connector = aiohttp.TCPConnector(ssl=trust)
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.get(ca.url + "/api/v1/cainfo") as found:
            assert found.status == 200
        # Whom the old root has certified enrols again, and is certified by the new one.
        now = replace(ca, session=session)
        again = {"certificate_request": csr()}
        status, answer = await now.call("POST", "/api/v1/reenroll", again, signer=old)
        assert status == 201
        renewed = load_certificate(base64.b64decode(answer["result"]["Cert"]))
        renewed.verify_directly_issued_by(after.certificate)
        # Until the old root is trusted no longer.
        (tmp_path / "previous.pem").unlink()
        again = {"certificate_request": csr()}
        status, answer = await now.call("POST", "/api/v1/reenroll", again, signer=old)
        assert status == 401
