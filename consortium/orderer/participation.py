"""Channel participation over REST, as Fabric's `osnadmin` speaks it.

    GET    /participation/v1/channels          all channels that this orderer takes part in
    GET    /participation/v1/channels/{name}   one of them: relation, status, height
    POST   /participation/v1/channels          join one; multipart form with a file `config-block`
    PUT    /participation/v1/channels          change one; a file `config-update-envelope`
    DELETE /participation/v1/channels/{name}   leave it, and delete its blocks here
    GET    /participation/v1/channels/{name}/blocks/{newest|oldest|config|number}

Mutual TLS. Fabric trusts whatever certificate the configured roots have issued; our utilities have
one root for everyone, so that here it must be an admin's certificate of the orderer's own
organization. (Rules, and every word of the answers: Fabric
orderer/common/channelparticipation/restapi.go.)
"""

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from cryptography import x509

from consortium.identity.msp import IdentityError, Msp, check_standing
from consortium.ledger.channel_config import ChannelConfig, config_of_block
from consortium.ledger.config_update import ConfigError
from consortium.wire import blocks, common_pb2
from consortium.wire.envelopes import WireError, parse

from .administration import ChannelExistsError, ChannelMissingError, JoinError, NotReadyError
from .node import ChannelInfo, Orderer

CHANNELS = "/participation/v1/channels"
CONFIG_BLOCK = "config-block"
CONFIG_UPDATE = "config-update-envelope"
BODY_LIMIT_BYTES = 1024 * 1024
"""Of a request, Fabric's default (`MaxRequestBodySize`)."""
MAX_REQUESTS = 16
"""Requests at once."""

_CHANNEL_ID_LENGTH = 249
_CHANNEL_ID = re.compile(r"[a-z][a-z0-9.-]*")
_ALLOWED = ("GET, POST, PUT", "GET, DELETE", "GET")
"""Methods for all channels, for one, for its blocks."""


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, allow: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.allow = allow


class ParticipationService:
    """The REST service of one orderer; `start` it and `stop` it on the node's event loop."""

    def __init__(
        self,
        orderer: Orderer,
        *,
        host: str,
        port: int,
        tls_certificate: Path,
        tls_key: Path,
        client_roots_pem: bytes,
        administrators: Msp,
    ) -> None:
        """`administrators` is the orderer's own organization; `host` should be this machine.

        Raises OSError or ssl.SSLError for TLS files that can't be used.
        """
        self._orderer = orderer
        self._host = host
        self._port = port
        self._administrators = administrators
        self._files = (tls_certificate, tls_key)
        self._files_read_at = 0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.load_verify_locations(cadata=client_roots_pem.decode("ascii"))
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._load_certificate()
        self._tls.sni_callback = self._before_handshake
        self._requests = 0
        self._runner: web.AppRunner | None = None

    def _load_certificate(self) -> None:
        changed_at = max(path.stat().st_mtime_ns for path in self._files)
        if changed_at != self._files_read_at:
            self._tls.load_cert_chain(*self._files)
            self._files_read_at = changed_at

    def _before_handshake(self, socket: ssl.SSLObject, _name: str | None, _tls: object) -> None:
        """Take up a certificate that was renewed; every handshake comes by here."""
        with contextlib.suppress(OSError, ssl.SSLError):
            self._load_certificate()
            socket.context = self._tls

    @property
    def port(self) -> int:
        """Where it listens, once it is started."""
        assert self._runner
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Listen; raises OSError when the address is taken."""
        application = web.Application(
            client_max_size=BODY_LIMIT_BYTES, middlewares=[self._answering]
        )
        one = CHANNELS + "/{channel}"
        application.router.add_get(CHANNELS, self._list, allow_head=False)
        application.router.add_post(CHANNELS, self._join)
        application.router.add_put(CHANNELS, self._update)
        application.router.add_get(one, self._show, allow_head=False)
        application.router.add_delete(one, self._remove)
        application.router.add_get(one + "/blocks/{block}", self._block, allow_head=False)
        application.router.add_get("/participation/v1/", self._redirect, allow_head=False)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port, ssl_context=self._tls).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # -------------------------------------------------------------------------- every request

    @web.middleware
    async def _answering(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self._requests >= MAX_REQUESTS:
            return _error(
                Refused(503, f"{MAX_REQUESTS} requests are under way, the limit; try again")
            )
        self._requests += 1
        try:
            self._check_caller(request)
            return await handler(request)
        except Refused as error:
            return _error(error)
        except web.HTTPMethodNotAllowed:
            parts = request.path.removeprefix(CHANNELS).count("/")
            allow = _ALLOWED[min(parts, 2)]
            return _error(Refused(405, f"invalid request method: {request.method}", allow))
        except web.HTTPNotFound:
            return web.Response(status=404, text="404 page not found\n")
        finally:
            self._requests -= 1

    def _check_caller(self, request: web.Request) -> None:
        transport = request.transport
        secured = transport.get_extra_info("ssl_object") if transport is not None else None
        der = secured.getpeercert(binary_form=True) if secured is not None else None
        try:
            if not der:
                raise IdentityError("no client certificate was shown")
            identity = self._administrators.identity_of(x509.load_der_x509_certificate(der))
            self._administrators.validate(identity)
            if not identity.is_admin:
                raise IdentityError(f"{identity.common_name} is no admin")
            check_standing(
                self._administrators.id,
                identity.serialized,
                [chain.config.msps for chain in list(self._orderer.channels.values())],
            )
        except (IdentityError, ValueError) as error:
            raise Refused(
                403,
                f"this listener is for admins of {self._administrators.id}: {error}",
            ) from None

    # -------------------------------------------------------------------------------- requests

    async def _redirect(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(
            status=302,
            text=f'<a href="{CHANNELS}">Found</a>.\n\n',
            content_type="text/html",
            headers={"Location": CHANNELS},
        )

    async def _list(self, request: web.Request) -> web.StreamResponse:
        _check_accept(request)
        infos = self._orderer.channel_infos()
        listed = [{"name": one.name, "url": f"{CHANNELS}/{one.name}"} for one in infos]
        return _json({"systemChannel": None, "channels": listed or None}, uncached=True)

    async def _show(self, request: web.Request) -> web.StreamResponse:
        _check_accept(request)
        channel_id = _channel_id(request)
        try:
            info = self._orderer.channel_info(channel_id)
        except ChannelMissingError:
            raise Refused(404, "channel does not exist") from None
        return _json(_described(info), uncached=True)

    async def _join(self, request: web.Request) -> web.StreamResponse:
        _check_form(request)
        raw = await _file_in(request, CONFIG_BLOCK)
        try:
            block = parse(common_pb2.Block, raw, "the block")
        except WireError as error:
            raise Refused(
                400, f"cannot unmarshal file part {CONFIG_BLOCK} into a block: {error}"
            ) from None
        _check_join_block(block)
        try:
            info = await self._orderer.join_channel(block)
        except ChannelExistsError:
            raise Refused(405, "cannot join: channel already exists", "GET, DELETE") from None
        except (JoinError, ConfigError) as error:
            raise Refused(400, f"cannot join: {error}") from None
        location = f"{CHANNELS}/{info.name}"
        return _json(_described(info), status=201, location=location)

    async def _update(self, request: web.Request) -> web.StreamResponse:
        _check_form(request)
        raw = await _file_in(request, CONFIG_UPDATE)
        try:
            envelope = parse(common_pb2.Envelope, raw, "the envelope")
        except WireError as error:
            raise Refused(
                400, f"cannot unmarshal file part {CONFIG_UPDATE} into an envelope: {error}"
            ) from None
        channel_id = _updated_channel(envelope)
        try:
            info = await self._orderer.update_channel(channel_id, envelope)
        except ChannelMissingError as error:
            raise Refused(405, f"cannot update: {error}") from None
        except NotReadyError as error:
            raise Refused(403, f"cannot update: {error}") from None
        except JoinError as error:
            raise Refused(
                400, f"cannot update: failed update config of channel {channel_id}: {error}"
            ) from None
        location = f"{CHANNELS}/{info.name}"
        return _json(_described(info), status=201, location=location)

    async def _remove(self, request: web.Request) -> web.StreamResponse:
        _check_accept(request)
        channel_id = _channel_id(request)
        try:
            await self._orderer.remove_channel(channel_id)
        except ChannelMissingError:
            raise Refused(404, "cannot remove: channel does not exist") from None
        except JoinError as error:
            raise Refused(400, f"cannot remove: {error}") from None
        return web.Response(status=204)

    async def _block(self, request: web.Request) -> web.StreamResponse:
        _check_accept(request)
        channel_id, wanted = _channel_id(request), request.match_info["block"]
        number = (
            re.fullmatch(r"[+-]?\d{1,40}", wanted, re.ASCII) and -(2**63) <= int(wanted) < 2**63
        )
        if wanted not in ("newest", "oldest", "config") and not number:
            raise Refused(
                400,
                f"invalid block ID: '{wanted[:80]}' not equal <newest|oldest|config|(number)>",
            )
        try:
            raw = await self._fetch(channel_id, wanted)
        except ChannelMissingError:
            raise Refused(404, "channel does not exist") from None
        except LookupError as error:
            raise Refused(404, str(error)) from None
        return web.Response(
            body=raw,
            content_type="application/octet-stream",
            headers={"Cache-Control": "no-store"},
        )

    async def _fetch(self, channel_id: str, wanted: str) -> bytes:
        """A block of a channel; raises ChannelMissingError, LookupError."""
        self._orderer.channel_info(channel_id)
        chain = self._orderer.channels.get(channel_id)
        if chain is None or chain.height == 0:
            raise LookupError("channel is not ready, he is a follower")
        newest = chain.height - 1
        number = {"newest": newest, "oldest": 0}.get(wanted)
        if wanted == "config":
            last = await asyncio.to_thread(chain.block, newest)
            metadata = parse(common_pb2.Block, last, "the newest block").metadata.metadata
            stored = parse(common_pb2.Metadata, metadata[blocks.LAST_CONFIG], "its metadata")
            number = parse(common_pb2.LastConfig, stored.value, "its metadata").index
        elif number is None:
            number = int(wanted) % 2**64
            if number == 2**64 - 1:
                number = newest  # as Fabric's block store takes it
        if number > newest:
            raise LookupError(f"no such block number [{number}] in index")
        return await asyncio.to_thread(chain.block, number)


def _check_accept(request: web.Request) -> None:
    """Raises Refused where the answer's form would not be read."""
    accepted = request.headers.get("Accept", "")
    known = ("application/json", "application/*", "*/*")
    if accepted and not any(one in accepted for one in known):
        raise Refused(406, "response Content-Type is application/json only")


def _channel_id(request: web.Request) -> str:
    channel_id = request.match_info["channel"]
    if len(channel_id) > _CHANNEL_ID_LENGTH:
        problem = f"channel ID illegal, cannot be longer than {_CHANNEL_ID_LENGTH}"
    elif not _CHANNEL_ID.fullmatch(channel_id):
        problem = f"'{channel_id}' contains illegal characters"
    else:
        return channel_id
    raise Refused(400, f"invalid channel ID: {problem}")


def _check_form(request: web.Request) -> None:
    """Raises Refused for a body that is no multipart form."""
    given = request.headers.getall("Content-Type", [])
    # Fabric's pattern is multipart/form-data*, where the star repeats the last letter.
    if not any("multipart/form-dat" in one for one in given):
        raise Refused(400, f"unsupported Content-Type: [{' '.join(given)}]")
    _check_accept(request)


async def _file_in(request: web.Request, key: str) -> bytes:
    """The one file of a multipart form, under its key; raises Refused."""
    found: bytes | None = None
    parts = 0
    room = BODY_LIMIT_BYTES
    try:
        reader: MultipartReader = await request.multipart()
        async for part in reader:
            parts += 1
            if isinstance(part, BodyPartReader):
                data = await _read(part, room)
                room -= len(data)
                if part.name == key and part.filename and found is None:
                    found = data
            elif part is not None:
                await part.release()
    except (ValueError, AssertionError, KeyError, EOFError, HttpProcessingError) as error:
        raise Refused(400, f"cannot read form from request body: {error}") from None
    if found is None:
        raise Refused(400, f"form does not contains part key: {key}")
    if parts > 1:
        raise Refused(400, "form contains too many parts")
    return found


async def _read(part: BodyPartReader, limit: int) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk():
        data += chunk
        if len(data) > limit:
            raise Refused(400, "cannot read form from request body: http: request body too large")
    return bytes(data)


def _updated_channel(envelope: common_pb2.Envelope) -> str:
    """The channel that an update is about, after Fabric's first checks of it; raises Refused."""
    problem = "bad payload"
    try:
        payload = parse(common_pb2.Payload, envelope.payload, "the payload")
        if not payload.header.channel_header:
            raise Refused(400, "invalid config update envelope: bad header")
        problem = "could not unmarshall channel header"
        header = parse(common_pb2.ChannelHeader, payload.header.channel_header, "its header")
        if header.type != common_pb2.CONFIG_UPDATE:
            raise Refused(400, "invalid config update envelope: bad type")
        if not header.channel_id:
            raise Refused(400, "invalid config update envelope: empty channel id")
        problem = "the update cannot be read"
        signed = parse(common_pb2.ConfigUpdateEnvelope, payload.data, "the update")
        return parse(common_pb2.ConfigUpdate, signed.config_update, "the update").channel_id
    except WireError:
        raise Refused(400, f"invalid config update envelope: {problem}") from None


def _check_join_block(block: common_pb2.Block) -> None:
    """Fabric's checks of a block to join with; raises Refused."""
    try:
        config_of_block(block)
    except ConfigError:
        raise Refused(400, "invalid join block: block is not a config block") from None
    if not block.metadata.metadata:
        raise Refused(400, "invalid join block: invalid block: does not have metadata")
    if blocks.data_hash(block.data.data) != block.header.data_hash:
        raise Refused(
            400,
            "invalid join block: invalid block: Header.DataHash is different from Hash(block.Data)",
        )
    try:
        config = ChannelConfig.from_block(block)
    except ConfigError as error:
        raise Refused(400, f"invalid join block: {error}") from None
    if not config.application_orgs:
        raise Refused(400, "invalid join block: invalid config: must contain application config")


def _described(info: ChannelInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "url": f"{CHANNELS}/{info.name}",
        "consensusRelation": info.consensus_relation,
        "status": info.status,
        "height": info.height,
    }


def _json(
    content: dict[str, Any], *, status: int = 200, uncached: bool = False, location: str = ""
) -> web.Response:
    headers = {"Cache-Control": "no-store"} if uncached else {}
    if location:
        headers["Location"] = location
    return web.Response(
        status=status,
        body=_encoded(content),
        content_type="application/json",
        headers=headers,
    )


def _error(error: Refused) -> web.Response:
    return web.Response(
        status=error.status,
        body=_encoded({"error": str(error)}),
        content_type="application/json",
        headers={"Allow": error.allow} if error.allow else {},
    )


def _encoded(content: dict[str, Any]) -> bytes:
    """As Go's encoder writes JSON: without spaces, marks of HTML by their numbers."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text.encode("utf-8", "replace") + b"\n"
