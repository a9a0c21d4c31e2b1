"""fabric-ca's REST interface over HTTPS, for one utility.

    GET  /api/v1/cainfo     who this authority is, its chain, the consortium's TLS roots
    POST /api/v1/enroll     id and secret (HTTP basic) and a CSR for a certificate
    POST /api/v1/reenroll   a certificate's token and a CSR for its successor
    POST /api/v1/register   a registrar's token: let someone enrol
    POST /api/v1/revoke     a registrar's token: end an identity or a certificate

Every answer is `{"result", "errors", "messages", "success"}` with fabric-ca's error codes
(`lib/caerrors`). A token is a certificate and a signature over the request, as fabric-ca's
clients make it; whoever may register is an administrator (OU admin) or an operator of the
utility (attribute gridledger.role=operator). Operators register clients alone, and no further
operators.

Names, roles and attributes of a certificate come from the registry, never from the CSR: what a
CSR asks for beside its key is ignored.

The authority's key and certificate, its TLS certificate and the consortium's roots are read again
when their files change: a running authority follows `gridledger network rotate-ca`, `renew` and
`add-utility`. While the root before the present one is still trusted, who was certified by it may
enrol again with its token.
"""

import asyncio
import base64
import datetime as dt
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from consortium.ca.registry import (
    SERIAL_NUMBER_LIMIT,
    AlreadyRegisteredError,
    RefusedError,
    Registered,
    Registry,
    RegistryError,
)
from consortium.identity.certificates import (
    CERTIFICATE_FAULTS,
    CertificateAuthority,
    CertificateError,
    certificate_attributes,
    certificate_pem,
    load_certificate,
    load_certificates,
    load_key,
)
from consortium.identity.chains import Authorities
from consortium.identity.signing import verify_signature

_LOGGER = logging.getLogger(__name__)

BODY_LIMIT_BYTES = 64 * 1024
SILENT_S = 20.0
"""So long a connection may take to ask, and to ask again; each costs a third of a megabyte."""
REQUEST_S = 60.0
"""So long a request may take with its body, and its turn."""
CERTIFICATE_VALID_DAYS = 365
MAX_WAITING = 64
"""Requests that may wait for a secret to be checked."""
CHECKS_AT_ONCE = 2
"""Secrets checked at once; each takes 16 MiB and a processor."""
VERSION = "1.5"
"""The fabric-ca whose interface this is."""

OPERATOR_ATTRIBUTE, OPERATOR = "gridledger.role", "operator"

_FILE_FAULTS: tuple[type[Exception], ...] = (OSError, *CERTIFICATE_FAULTS)

# fabric-ca's codes, `lib/caerrors/servererror.go`.
UNKNOWN, NO_AUTHORIZATION, BAD_BODY, CA_NOT_FOUND = 0, 2, 5, 19
AUTHENTICATION_FAILURE, BAD_REQUEST_CSR, AUTHORIZATION_FAILURE = 20, 31, 71
REVOKE_ID_NOT_FOUND, BUSY = 10, 50


class CaError(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, code: int, message: str, log: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        # Names in it may be anybody's, and a line end would make up a line of the log.
        self.log = "".join(
            one if one.isprintable() else f"\\x{ord(one):02x}" for one in log or message
        )


def _authentication_failure(log: str) -> CaError:
    """One answer for all reasons, so that ids, secrets and locks cannot be told apart."""
    return CaError(401, AUTHENTICATION_FAILURE, "Authentication failure", log)


def _answer(result: object, errors: list[dict[str, object]], status: int) -> web.Response:
    return web.json_response(
        {"result": result, "errors": errors, "messages": [], "success": not errors}, status=status
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def token_payload(method: str, path: str, body: bytes, certificate: bytes) -> bytes:
    """What the signature of a fabric-ca token covers; `path` is the request's path and query."""
    return ".".join((method, _base64(path.encode()), _base64(body), _base64(certificate))).encode()


def make_token(
    sign: Callable[[bytes], bytes], method: str, path: str, body: bytes, certificate: bytes
) -> str:
    """The `authorization` header of a request by the owner of a certificate (PEM)."""
    signature = sign(token_payload(method, path, body, certificate))
    return f"{_base64(certificate)}.{_base64(signature)}"


class CaService:
    """The HTTPS service of one utility's enrolment authority."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str,
        host: str,
        port: int,
        tls_certificate: Path,
        tls_key: Path,
        tls_bundle: Path,
        previous_root: Path | None = None,
        msp_id: str = "",
        certificate_valid_days: int = CERTIFICATE_VALID_DAYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Reads the authority's key from `directory`; raises OSError, CertificateError.

        `tls_bundle` has the TLS roots of all members; at `previous_root`, while there is such a
        file, the root before the present one.
        """
        self.name = name
        self.registry = Registry.open(directory)
        self._directory = directory
        self._host, self._port = host, port
        self._tls_files = tls_certificate, tls_key
        self._tls_bundle = tls_bundle
        self._previous_root = previous_root
        self._read_at: tuple[tuple[int, int] | None, ...] = ()
        self._msp_id = msp_id
        self._valid_days = certificate_valid_days
        self._clock = clock
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.sni_callback = self._before_handshake
        self._read()
        self._checks = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._waiting = 0
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._silent: set[web.RequestHandler] = set()
        """Connections, of the last `SILENT_S`, that nobody has asked anything over."""

    def _read(self) -> None:
        """Read what has changed on disk; raises OSError, ssl.SSLError, CertificateError."""
        folder = self._directory
        files = [
            folder / CertificateAuthority.CERTIFICATE_FILE,
            folder / CertificateAuthority.KEY_FILE,
            *self._tls_files,
            self._tls_bundle,
        ]
        previous = self._previous_root
        now = tuple(_stamp(path) for path in (*files, *([previous] if previous else ())))
        if now == self._read_at:
            return
        authority = CertificateAuthority.load(folder)
        roots = [authority.certificate]
        if previous is not None and previous.exists():
            roots.append(load_certificate(previous.read_bytes(), "the root before the present one"))
        bundle = self._tls_bundle.read_bytes()
        load_certificates(bundle)
        self._tls.load_cert_chain(*self._tls_files)
        self._issuers = Authorities(roots, [])
        self._authority, self._tls_bundle_pem, self._read_at = authority, bundle, now

    def _follow_files(self) -> None:
        """As `_read`; what is half written is whole the next time."""
        try:
            self._read()
        except _FILE_FAULTS as error:
            _LOGGER.warning("%s goes on with what it has read before: %s", self.name, error)

    def _before_handshake(self, _socket: ssl.SSLObject, _name: str | None, _tls: object) -> None:
        """Show a TLS certificate that was renewed; every handshake comes by here."""
        self._follow_files()

    @property
    def port(self) -> int:
        """The port that it listens on, also where 0 was asked for."""
        return self._port

    async def start(self) -> None:
        """Listen; raises OSError when the address is taken."""
        app = web.Application(client_max_size=BODY_LIMIT_BYTES, middlewares=[self._errors])
        app.router.add_get("/api/v1/cainfo", self._cainfo)
        app.router.add_post("/api/v1/cainfo", self._cainfo)
        app.router.add_post("/api/v1/enroll", self._enroll)
        app.router.add_post("/api/v1/reenroll", self._reenroll)
        app.router.add_post("/api/v1/register", self._register)
        app.router.add_post("/api/v1/revoke", self._revoke)
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, keepalive_timeout=SILENT_S
        )
        await runner.setup()
        loop = asyncio.get_running_loop()
        accept = runner.server
        assert accept is not None

        def accepted() -> asyncio.BaseProtocol:
            protocol = accept()
            self._silent.add(protocol)
            loop.call_later(SILENT_S, self._hang_up_if_silent, protocol)
            return protocol

        try:
            self._listener = await loop.create_server(
                accepted,
                self._host,
                self._port,
                ssl=self._tls,
                ssl_handshake_timeout=SILENT_S,
                backlog=128,
            )
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self._port = self._listener.sockets[0].getsockname()[1]
        _LOGGER.info("%s listens on https://%s:%d", self.name, self._host, self._port)

    async def stop(self) -> None:
        """Answer what has been asked, then stop listening."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _hang_up_if_silent(self, protocol: web.RequestHandler) -> None:
        """End a connection that nobody has asked anything over."""
        if protocol in self._silent:
            self._silent.discard(protocol)
            if protocol.transport is not None:
                protocol.transport.abort()

    # -- answering

    @web.middleware
    async def _errors(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        self._follow_files()
        self._silent.discard(request.protocol)
        try:
            async with asyncio.timeout(REQUEST_S):
                return await handler(request)
        except TimeoutError:
            return _answer("", [{"code": UNKNOWN, "message": "the request took too long"}], 408)
        except CaError as error:
            _LOGGER.info("%s %s refused: %s", self.name, request.path, error.log)
            return _answer("", [{"code": error.code, "message": error.message}], error.status)
        except web.HTTPException as error:
            return _answer("", [{"code": UNKNOWN, "message": error.reason}], error.status)
        except Exception:
            _LOGGER.exception("%s %s failed", self.name, request.path)
            return _answer("", [{"code": UNKNOWN, "message": "internal error"}], 500)

    def _info(self) -> dict[str, str]:
        return {
            "CAName": self.name,
            "CAChain": _base64(self._authority.certificate_pem),
            "IssuerPublicKey": "",
            "IssuerRevocationPublicKey": "",
            "Version": VERSION,
            "TLSBundle": _base64(self._tls_bundle_pem),
            "MSPID": self._msp_id,
        }

    async def _body(self, request: web.Request) -> dict[str, Any]:
        try:
            body = json.loads(await request.read() or b"{}")
        except ValueError as error:
            raise CaError(400, BAD_BODY, f"the request body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise CaError(400, BAD_BODY, "the request body is not a JSON object")
        name = body.get("caname") or request.query.get("ca") or ""
        if name not in ("", self.name):
            raise CaError(
                404, CA_NOT_FOUND, f"CA {str(name)[:64]!r} does not exist; {self.name} does"
            )
        return body

    async def _in_thread[T](self, work: Callable[[], T]) -> T:
        """Run what takes time beside the loop, a few at once; refuse when too many wait."""
        if self._waiting >= MAX_WAITING:
            raise CaError(
                503, BUSY, f"{MAX_WAITING} requests are waiting, the limit; try again in a minute"
            )
        self._waiting += 1
        try:
            async with self._checks:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1

    async def _cainfo(self, request: web.Request) -> web.Response:
        await self._body(request)
        return _answer(self._info(), [], 200)

    # -- certificates

    def _request(self, body: Mapping[str, Any]) -> x509.CertificateSigningRequest:
        """The CSR of an enrolment, checked."""
        if body.get("profile"):
            raise CaError(
                400,
                BAD_REQUEST_CSR,
                f"the profile {str(body['profile'])[:64]!r} is not offered; certificates for "
                "nodes' TLS are made by the utility's operator",
            )
        pem = body.get("certificate_request")
        if not isinstance(pem, str):
            raise CaError(400, BAD_BODY, "certificate_request is missing")
        try:
            request = x509.load_pem_x509_csr(pem.encode())
            key = request.public_key()
            valid = request.is_signature_valid
        except CERTIFICATE_FAULTS:
            raise CaError(
                400, BAD_REQUEST_CSR, "the certificate request is not a CSR in PEM"
            ) from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
            key.curve, ec.SECP256R1
        ):
            raise CaError(
                400, BAD_REQUEST_CSR, "the key of the certificate request is not ECDSA on P-256"
            )
        if not valid:
            raise CaError(
                400, BAD_REQUEST_CSR, "the certificate request is not signed by its own key"
            )
        return request

    def _issuer(
        self, request: x509.CertificateSigningRequest
    ) -> Callable[[Registered], tuple[str, int, dt.datetime]]:
        def issue(entry: Registered) -> tuple[str, int, dt.datetime]:
            certificate = self._authority.issue_from_csr(
                request,
                entry.enrollment_id,
                entry.role,
                attributes=entry.certificate_attributes,
                valid_days=self._valid_days,
            )
            return (
                certificate_pem(certificate).decode(),
                certificate.serial_number,
                certificate.not_valid_after_utc,
            )

        return issue

    def _enrolled(self, pem: str) -> web.Response:
        return _answer({"Cert": _base64(pem.encode()), "ServerInfo": self._info()}, [], 201)

    async def _enroll(self, request: web.Request) -> web.Response:
        header = request.headers.get("Authorization", "")
        if not header:
            raise CaError(401, NO_AUTHORIZATION, "No authorization header")
        enrollment_id, secret = _basic_credentials(header)
        csr = self._request(await self._body(request))
        key = csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

        def enroll() -> str:
            now = self._clock()
            entry = self.registry.authenticate(enrollment_id, secret, now)
            return self.registry.enroll(entry, key, self._issuer(csr), now)

        try:
            pem = await self._in_thread(enroll)
        except RefusedError as error:
            raise _authentication_failure(str(error)) from None
        _LOGGER.info("%s enrolled %s", self.name, enrollment_id)
        return self._enrolled(pem)

    async def _reenroll(self, request: web.Request) -> web.Response:
        certificate = await self._token(request)
        csr = self._request(await self._body(request))
        key = csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        enrollment_id = _common_name(certificate)
        try:
            pem = await self._in_thread(
                lambda: self.registry.reenroll(enrollment_id, key, self._issuer(csr), self._clock())
            )
        except RefusedError as error:
            raise _authentication_failure(str(error)) from None
        _LOGGER.info("%s enrolled %s again", self.name, enrollment_id)
        return self._enrolled(pem)

    # -- registrars

    async def _token(self, request: web.Request) -> x509.Certificate:
        """The certificate of whoever signed the request; raises CaError."""
        header = request.headers.get("Authorization", "")
        if not header:
            raise CaError(401, NO_AUTHORIZATION, "No authorization header")
        body = await request.read()
        try:
            encoded, separator, encoded_signature = header.partition(".")
            if not separator:
                raise ValueError("it has no signature")
            pem = base64.b64decode(encoded, validate=True)
            signature = base64.b64decode(encoded_signature, validate=True)
            certificate = load_certificate(pem, "the token's certificate")
            payload = token_payload(request.method, request.raw_path, body, pem)
            if not verify_signature(certificate.public_key(), signature, payload):
                raise ValueError("its signature does not hold")
            self._issuers.chain(certificate)
        except CERTIFICATE_FAULTS as error:
            raise _authentication_failure(f"the token is not valid: {error}") from None
        now = dt.datetime.fromtimestamp(self._clock(), dt.UTC)
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise _authentication_failure(f"the certificate of {_common_name(certificate)} expired")
        # Whoever writes the registry holds its lock, and a large one takes its time.
        revoked = await self._in_thread(self.registry.revoked_serial_numbers)
        if certificate.serial_number in revoked:
            raise _authentication_failure(
                f"the certificate of {_common_name(certificate)} is revoked"
            )
        return certificate

    async def _registrar(self, request: web.Request) -> bool:
        """Whether the caller is an administrator (True) or an operator (False) of the utility."""
        certificate = await self._token(request)
        units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        if [unit.value for unit in units] == ["admin"]:
            return True
        if certificate_attributes(certificate).get(OPERATOR_ATTRIBUTE) == OPERATOR:
            return False
        raise CaError(
            403,
            AUTHORIZATION_FAILURE,
            "Authorization failure",
            f"{_common_name(certificate)} is neither administrator nor operator",
        )

    async def _register(self, request: web.Request) -> web.Response:
        is_admin = await self._registrar(request)
        body = await self._body(request)
        attributes: dict[str, str] = {}
        beside: dict[str, str] = {}
        given = body.get("attrs") or []
        if not isinstance(given, list):
            raise CaError(400, BAD_BODY, "attrs is not a list")
        for one in given:
            if not (
                isinstance(one, dict)
                and isinstance(one.get("name"), str)
                and isinstance(one.get("value"), str)
            ):
                raise CaError(400, BAD_BODY, "an attribute has no name and value, both text")
            if one["name"] in attributes or one["name"] in beside:
                raise CaError(400, BAD_BODY, "an attribute is given twice")
            (attributes if one.get("ecert") else beside)[one["name"]] = one["value"]
        role = body.get("type") or "client"
        if not is_admin and (
            role != "client" or OPERATOR in (attributes | beside).get(OPERATOR_ATTRIBUTE, "")
        ):
            raise CaError(
                403,
                AUTHORIZATION_FAILURE,
                "Authorization failure",
                "an operator registers clients that are no operators",
            )
        texts = {key: body.get(key) or "" for key in ("id", "secret", "affiliation")}
        limit = body.get("max_enrollments") or 1
        if not all(isinstance(text, str) for text in (*texts.values(), role)) or not (
            isinstance(limit, int)
        ):
            raise CaError(
                400, BAD_BODY, "id, type, secret, affiliation or max_enrollments is wrong"
            )
        try:
            secret = await self._in_thread(
                lambda: self.registry.register(
                    texts["id"],
                    secret=texts["secret"] or None,
                    role=role,
                    attributes=attributes,
                    other_attributes=beside,
                    affiliation=texts["affiliation"],
                    max_enrollments=limit,
                )
            )
        except AlreadyRegisteredError as error:
            raise CaError(409, UNKNOWN, f"Registration failed: {error}") from None
        except RegistryError as error:
            raise CaError(400, BAD_BODY, f"Registration failed: {error}") from None
        _LOGGER.info("%s registered %s", self.name, texts["id"])
        return _answer({"secret": secret}, [], 201)

    async def _revoke(self, request: web.Request) -> web.Response:
        is_admin = await self._registrar(request)
        body = await self._body(request)
        enrollment_id, serial = body.get("id") or "", body.get("serial") or ""
        if not isinstance(enrollment_id, str) or not isinstance(serial, str):
            raise CaError(400, BAD_BODY, "id and serial are text")
        entry = None
        if enrollment_id:
            entry = await self._in_thread(lambda: self.registry.get(enrollment_id))
        if not is_admin and (
            entry is None
            or entry.role != "client"
            or entry.attributes.get(OPERATOR_ATTRIBUTE) == OPERATOR
        ):
            raise CaError(
                403,
                AUTHORIZATION_FAILURE,
                "Authorization failure",
                "an operator revokes clients that are no operators, by their id",
            )
        try:
            if enrollment_id:
                serial_numbers = await self._in_thread(lambda: self.registry.revoke(enrollment_id))
            else:
                serial_number = _serial_number(serial)
                await self._in_thread(lambda: self.registry.revoke_serial_number(serial_number))
                serial_numbers = (f"{serial_number:x}",)
        except RegistryError as error:
            raise CaError(404, REVOKE_ID_NOT_FOUND, str(error)) from None
        _LOGGER.info("%s revoked %s", self.name, enrollment_id or serial_numbers[0])
        identifier = self._authority.key_identifier.hex()
        return _answer(
            {
                "RevokedCerts": [{"Serial": one, "AKI": identifier} for one in serial_numbers],
                "CRL": _base64(await self._in_thread(self.revocation_list))
                if body.get("gencrl")
                else "",
            },
            [],
            200,
        )

    def revocation_list(self) -> bytes:
        """The CRLs (PEM, one after another) to put into the channel's configuration.

        One of the present root, and one of the root before while that is trusted: a list counts
        for certificates of the root that signed it alone. Raises CaError.
        """
        revoked = self.registry.revoked_serial_numbers()
        listed = self._authority.revocation_list(revoked)
        path = self._previous_root
        try:
            if path is None or not path.exists():
                return listed
            previous = CertificateAuthority(
                load_certificate(path.read_bytes(), "the root before the present one"),
                load_key(path.with_name(CertificateAuthority.KEY_FILE).read_bytes()),
            )
        except (OSError, CertificateError) as error:
            problem = "the root before the present one can't sign its revocation list"
            raise CaError(500, UNKNOWN, problem, f"{problem}: {error}") from None
        if previous.key_identifier != self._authority.key_identifier:
            listed += previous.revocation_list(revoked)
        return listed


def _serial_number(text: str) -> int:
    """Of a certificate, in hexadecimal; raises CaError."""
    try:
        found = int(text, 16)
    except ValueError:
        found = 0
    if not 0 < found < SERIAL_NUMBER_LIMIT:
        raise CaError(400, BAD_BODY, "give an id, or a certificate's serial in hexadecimal")
    return found


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes with a file's content; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[-1].value) if names else ""


def _basic_credentials(header: str) -> tuple[str, str]:
    """Id and secret of an HTTP basic header; raises CaError."""
    scheme, _, encoded = header.partition(" ")
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode()
    except ValueError:
        decoded = ""
    enrollment_id, colon, secret = decoded.partition(":")
    if scheme.lower() != "basic" or not colon:
        raise _authentication_failure("no id and secret in the header")
    return enrollment_id, secret
