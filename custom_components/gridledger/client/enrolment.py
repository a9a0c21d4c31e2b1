"""Enrolment at a member's certificate authority, over fabric-ca's REST interface.

The private key is made here and stays here: only a signing request leaves. Trust begins with the
CA's bundle of TLS roots: either its owner has it as a file, or it is fetched unverified and its
fingerprint is compared with the one that the utility published.
"""

import binascii
import hashlib
import json
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from .errors import AuthenticationFailed, ConnectionFailed, GridLedgerError, InvalidInput, Timeout
from .identity import Identity, generate_key_pem, load_private_key

_ATTRIBUTES_OID = x509.ObjectIdentifier("1.2.3.4.5.6.7.8.1")
DEADLINE_S = 20
ANSWER_LIMIT_BYTES = 1 << 20
"""No CA answer is longer; what is, isn't a CA's."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an enrolment gives. ``msp_id`` is empty where the CA doesn't tell (a real fabric-ca)."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    msp_id: str = ""


@dataclass(frozen=True, slots=True)
class AuthorityInfo:
    """What a CA says of itself. ``msp_id`` is empty where it doesn't tell (a real fabric-ca)."""

    bundle_pem: bytes
    msp_id: str
    organization: str
    """The organisation in the name of the CA's own certificate, if it has one."""


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise InvalidInput(f"the CA bundle is not a list of PEM certificates: {error}") from error
    return certificates


def fingerprint(bundle_pem: bytes) -> str:
    """Return SHA-256 over the bundle's certificates (DER, sorted, joined) as colon-separated hex.

    Raises:
        InvalidInput: the bundle isn't a list of PEM certificates.
    """
    ders = sorted(
        certificate.public_bytes(serialization.Encoding.DER)
        for certificate in _certificates(bundle_pem)
    )
    return hashlib.sha256(b"".join(ders)).digest().hex(":").upper()


def certificate_attributes(certificate: x509.Certificate) -> dict[str, str]:
    """Return the attributes that a fabric-ca wrote into a certificate, empty without any."""
    try:
        extension = certificate.extensions.get_extension_for_oid(_ATTRIBUTES_OID).value
        stated = json.loads(extension.public_bytes())["attrs"]
        return {str(name): str(value) for name, value in stated.items()}
    except x509.ExtensionNotFound, ValueError, KeyError, TypeError, AttributeError:
        return {}


def same_fingerprint(one: str, other: str) -> bool:
    """Compare two fingerprints as people copy them: case, colons and spaces don't matter."""
    bare_one, bare_other = (
        "".join(char for char in text.lower() if char in "0123456789abcdef")
        for text in (one, other)
    )
    return len(bare_one) == 64 and bare_one == bare_other


def trusting(trust_pem: bytes) -> ssl.SSLContext:
    """Return a TLS context that trusts the given roots alone.

    Raises:
        InvalidInput: the bundle can't be used.
    """
    _certificates(trust_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=trust_pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the CA bundle can't be used: {error}") from error
    return context


@asynccontextmanager
async def _session(given: aiohttp.ClientSession | None) -> AsyncIterator[aiohttp.ClientSession]:
    if given is not None:
        yield given
        return
    async with aiohttp.ClientSession() as session:
        yield session


async def _call(
    session: aiohttp.ClientSession | None,
    method: str,
    url: str,
    tls: ssl.SSLContext | bool,
    **options: Any,
) -> dict[str, Any]:
    """Call the CA and return the ``result`` of its answer."""
    if not url.startswith("https://"):
        raise InvalidInput(f"the CA's address must begin with https://, not {url!r}")
    try:
        async with (
            _session(session) as http,
            http.request(
                method,
                url,
                ssl=tls,
                timeout=aiohttp.ClientTimeout(total=DEADLINE_S),
                allow_redirects=False,
                **options,
            ) as response,
        ):
            raw = await response.content.read(ANSWER_LIMIT_BYTES + 1)
            while raw and len(raw) <= ANSWER_LIMIT_BYTES and not response.content.at_eof():
                raw += await response.content.read(ANSWER_LIMIT_BYTES + 1 - len(raw))
            if len(raw) > ANSWER_LIMIT_BYTES:
                raise GridLedgerError(f"{url} answered with more than {ANSWER_LIMIT_BYTES} bytes")
            status = response.status
    except TimeoutError as error:
        raise Timeout(f"the CA at {url} did not answer within {DEADLINE_S} s") from error
    except aiohttp.ClientSSLError as error:
        raise InvalidInput(
            f"the CA at {url} shows a certificate that the given bundle doesn't vouch for: {error}"
        ) from error
    except (aiohttp.InvalidURL, ValueError) as error:
        raise InvalidInput(f"{url!r} is not an address: {error}") from error
    except aiohttp.ClientError as error:
        raise ConnectionFailed(f"the CA at {url} can't be reached: {error}") from error
    try:
        answer = _json_object(raw)
    except ValueError as error:
        raise GridLedgerError(f"{url} answered {status} and not as a CA does") from error
    if answer.get("success") and isinstance(result := answer.get("result"), dict):
        return result
    said = _said(answer) or f"HTTP status {status}"
    if status in {401, 403}:
        raise AuthenticationFailed(f"the CA refused: {said}")
    raise GridLedgerError(f"the CA refused: {said}")


def _said(answer: dict[str, Any]) -> str:
    """Return the first of the CA's own error messages, empty without any."""
    match answer.get("errors"):
        case [{"message": str(message)}, *_]:
            return message
    return ""


def _json_object(raw: bytes) -> dict[str, Any]:
    answer = json.loads(raw)
    if not isinstance(answer, dict):
        raise ValueError("not an object")
    return answer


def _pem_field(result: dict[str, Any], name: str) -> bytes:
    try:
        return b64decode(str(result.get(name) or ""), validate=True)
    except binascii.Error as error:
        raise GridLedgerError(f"the CA's answer has an unreadable {name}") from error


async def fetch_info(
    ca_url: str,
    trust_pem: bytes | None = None,
    *,
    session: aiohttp.ClientSession | None = None,
) -> AuthorityInfo:
    """Ask a CA who it is and for its bundle of TLS roots.

    Without ``trust_pem`` the answer is **unverified**: compare the bundle's :func:`fingerprint`
    with the one that the utility published before using it. A fabric-ca has no bundle of its
    consortium: its own chain stands in.

    Raises:
        ConnectionFailed, Timeout: the CA can't be reached.
        InvalidInput: bundle, address or answer can't be used.
    """
    tls = False if trust_pem is None else trusting(trust_pem)
    result = await _call(session, "GET", ca_url.rstrip("/") + "/api/v1/cainfo", tls)
    chain = _pem_field(result, "CAChain")
    pem = _pem_field(result, "TLSBundle") or chain
    _certificates(pem)
    names = _certificates(chain or pem)[0].subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return AuthorityInfo(pem, str(result.get("MSPID") or ""), str(names[0].value) if names else "")


async def fetch_bundle(ca_url: str, *, session: aiohttp.ClientSession | None = None) -> bytes:
    """Fetch the CA's bundle of TLS roots as PEM, **unverified**: see :func:`fetch_info`."""
    return (await fetch_info(ca_url, session=session)).bundle_pem


async def enroll(
    ca_url: str,
    enrollment_id: str,
    secret: str,
    trust_pem: bytes,
    *,
    session: aiohttp.ClientSession | None = None,
    key_pem: bytes | None = None,
) -> Credentials:
    """Make a key, have its certificate issued for ``enrollment_id``, return both.

    ``key_pem`` continues an enrolment whose answer was lost with the key made then.

    Raises:
        AuthenticationFailed: the CA doesn't take id and secret.
        ConnectionFailed, Timeout: the CA can't be reached; the secret may or may not be used up.
        InvalidInput: bundle, address or answer can't be used.
    """
    key_pem = key_pem or generate_key_pem()
    login = f"{enrollment_id}:{secret}".encode()
    return await _certify(
        session,
        ca_url,
        "enroll",
        enrollment_id,
        key_pem,
        trust_pem,
        lambda _path, _body: f"Basic {b64encode(login).decode()}",
    )


async def reenroll(
    ca_url: str,
    identity: Identity,
    trust_pem: bytes,
    *,
    session: aiohttp.ClientSession | None = None,
    key_pem: bytes | None = None,
) -> Credentials:
    """Have a successor of a certificate issued that is still valid; no secret is needed.

    The request is signed with the certificate's key. ``key_pem`` is the successor's key, made
    here unless given.

    Raises:
        AuthenticationFailed: the CA doesn't take the certificate any more.
        ConnectionFailed, Timeout, InvalidInput: as for :func:`enroll`.
    """
    names = identity.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    certificate = b64encode(identity.certificate_pem).decode()

    def token(path: str, body: bytes) -> str:
        # fabric-ca's token: the certificate, and a signature over all that is asked.
        parts = (path.encode(), body, identity.certificate_pem)
        payload = ".".join(("POST", *(b64encode(part).decode() for part in parts)))
        return f"{certificate}.{b64encode(identity.sign(payload.encode())).decode()}"

    return await _certify(
        session,
        ca_url,
        "reenroll",
        str(names[0].value) if names else "",
        key_pem or generate_key_pem(),
        trust_pem,
        token,
    )


async def _certify(
    session: aiohttp.ClientSession | None,
    ca_url: str,
    verb: str,
    common_name: str,
    key_pem: bytes,
    trust_pem: bytes,
    authorization: Callable[[str, bytes], str],
) -> Credentials:
    """Ask a CA for a certificate; ``authorization`` makes the header from path and body."""
    key = load_private_key(key_pem)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    body = json.dumps(
        {
            "certificate_request": request.public_bytes(serialization.Encoding.PEM).decode(),
            "profile": "",
            "label": "",
            "caname": "",
        }
    ).encode()
    url = f"{ca_url.rstrip('/')}/api/v1/{verb}"
    result = await _call(
        session,
        "POST",
        url,
        trusting(trust_pem),
        headers={
            "Authorization": authorization(urlsplit(url).path, body),
            "Content-Type": "application/json",
        },
        data=body,
    )
    certificate_pem = _pem_field(result, "Cert")
    if _certificates(certificate_pem)[0].public_key() != key.public_key():
        raise GridLedgerError("the CA answered with a certificate for another key")
    server = result.get("ServerInfo")
    msp_id = server.get("MSPID") if isinstance(server, dict) else None
    return Credentials(certificate_pem, key_pem, str(msp_id or ""))
