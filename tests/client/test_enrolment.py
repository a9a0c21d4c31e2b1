"""A CA that answers what no CA should, and addresses that are none."""

import asyncio
import json
import ssl
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from aiohttp import web

from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
)
from gridledger_client import (
    AuthenticationFailed,
    GridLedgerError,
    InvalidInput,
    Invitation,
    Timeout,
    enroll,
    enrolment,
    fetch_bundle,
)
from gridledger_client.invitation import PREFIX

AUTHORITY = CertificateAuthority.create("Aurora", "aurora.example")
BUNDLE = certificate_pem(AUTHORITY.certificate)


class OddAuthority:
    """An HTTPS server that answers what it is told to."""

    url = ""
    status = 200
    answer: Any = None
    wait_s = 0.0

    async def handle(self, _: web.Request) -> web.Response:
        await asyncio.sleep(self.wait_s)
        body = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
        return web.Response(status=self.status, body=body)

    def says(self, **result: str) -> None:
        """Answer in the shape that a CA has."""
        self.status, self.answer = 200, {"success": True, "result": result}


@pytest.fixture
async def authority(tmp_path: Path) -> AsyncIterator[OddAuthority]:
    key = generate_key()
    certificate = AUTHORITY.issue("ca", "peer", key.public_key(), hosts=("127.0.0.1",))
    (tmp_path / "server.pem").write_bytes(key_pem(key) + certificate_pem(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem")
    odd, app = OddAuthority(), web.Application()
    app.router.add_route("*", "/{path:.*}", odd.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    odd.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    yield odd
    await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "answer", "error", "said"),
    [
        (200, b"<html>", GridLedgerError, "answered 200 and not as a CA does"),
        (200, [], GridLedgerError, "answered 200 and not as a CA does"),
        (500, {}, GridLedgerError, "the CA refused: HTTP status 500"),
        (401, {"errors": [{"code": 20}]}, AuthenticationFailed, "HTTP status 401"),
        (403, {"errors": [{"message": "not you"}]}, AuthenticationFailed, "refused: not you"),
        (200, {"success": True, "result": {"CAChain": "?"}}, GridLedgerError, "unreadable CAChain"),
        (200, b"x" * (2 << 20), GridLedgerError, "answered with more than 1048576 bytes"),
    ],
)
async def test_what_is_no_answer_is_said_so(
    authority: OddAuthority, status: int, answer: Any, error: type[Exception], said: str
) -> None:
    authority.status, authority.answer = status, answer
    with pytest.raises(error, match=said):
        await fetch_bundle(authority.url)


async def test_an_answer_in_many_pieces_is_read_whole(authority: OddAuthority) -> None:
    authority.says(CAChain=b64encode(BUNDLE).decode(), Padding="x" * 500_000)
    assert await fetch_bundle(authority.url) == BUNDLE


async def test_a_certificate_for_another_key_is_not_taken(authority: OddAuthority) -> None:
    other = AUTHORITY.issue("h-1", "client", generate_key().public_key())
    authority.says(Cert=b64encode(certificate_pem(other)).decode())
    with pytest.raises(GridLedgerError, match="a certificate for another key"):
        await enroll(authority.url, "h-1", "secret", BUNDLE)


async def test_a_ca_that_never_answers(
    authority: OddAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "DEADLINE_S", 0.2)
    authority.wait_s = 2
    with pytest.raises(Timeout, match="did not answer within"):
        await fetch_bundle(authority.url)


@pytest.mark.parametrize("url", ["http://127.0.0.1", "https://", "https://[::1", "ca.example"])
async def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InvalidInput):
        await fetch_bundle(url)


async def test_bundles_that_vouch_for_nobody(authority: OddAuthority) -> None:
    authority.says()
    stranger = CertificateAuthority.create("Aurora", "aurora.example")
    for bundle, said in (
        (certificate_pem(stranger.certificate), "doesn't vouch for"),
        (BUNDLE + "é".encode(), "can't be used"),
    ):
        with pytest.raises(InvalidInput, match=said):
            await enroll(authority.url, "h-1", "secret", bundle)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (b"no JSON", "can't be read"),
        (b"[]", "can't be read"),
        (b'{"g":"one"}', "no list of addresses"),
        (b'{"g":["one:1"]}', "it has no"),
    ],
)
def test_invitations_of_nonsense(stated: bytes, said: str) -> None:
    text = urlsafe_b64encode(stated).decode().rstrip("=")
    with pytest.raises(InvalidInput, match=said):
        Invitation.decode(f"{PREFIX}{text}.{crc32(stated):08x}")
