"""Channel participation over REST, as Fabric's `osnadmin` speaks it.

    GET    /participation/v1/channels          all channels that this orderer takes part in
    GET    /participation/v1/channels/{name}   one of them: relation, status, height
    POST   /participation/v1/channels          join one; multipart form with a file `config-block`
    DELETE /participation/v1/channels/{name}   leave it, and delete its blocks here
    GET    /participation/v1/channels/{name}/blocks/{newest|oldest|config|number}

Mutual TLS. Fabric trusts whatever certificate the configured roots have issued; our utilities have
one root for everyone, so that here it must be an admin's certificate of the orderer's own
organization. (Rules: Fabric orderer/common/channelparticipation/restapi.go.)
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

from consortium.identity.msp import IdentityError, Msp
from consortium.ledger.channel_config import ChannelConfig, config_of_block
from consortium.ledger.config_update import ConfigError
from consortium.wire import blocks, common_pb2
from consortium.wire.envelopes import WireError, parse

from .node import ChannelExistsError, ChannelInfo, ChannelMissingError, JoinError, Orderer

CHANNELS = "/participation/v1/channels"
CONFIG_BLOCK = "config-block"
BODY_LIMIT_BYTES = 1024 * 1024
"""Of a request, Fabric's default (`MaxRequestBodySize`)."""
MAX_REQUESTS = 16
"""Requests at once."""

_CHANNEL_ID = re.compile(r"[a-z][a-z0-9.-]{0,248}")


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
            _check_accept(request)
            return await handler(request)
        except Refused as error:
            return _error(error)
        except web.HTTPMethodNotAllowed as error:
            allow = sorted(error.allowed_methods)
            return _error(
                Refused(405, f"invalid request method: {request.method}", ", ".join(allow))
            )
        except web.HTTPNotFound:
            return _error(Refused(404, f"there is nothing at {request.path}"))
        except web.HTTPRequestEntityTooLarge:
            return _error(Refused(400, f"a request may have {BODY_LIMIT_BYTES} bytes"))
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
        except (IdentityError, ValueError) as error:
            raise Refused(
                403,
                f"this listener is for admins of {self._administrators.id}: {error}",
            ) from None

    # -------------------------------------------------------------------------------- requests

    async def _redirect(self, _request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(CHANNELS)

    async def _list(self, _request: web.Request) -> web.StreamResponse:
        infos = self._orderer.channel_infos()
        listed = [{"name": one.name, "url": f"{CHANNELS}/{one.name}"} for one in infos]
        return _json({"systemChannel": None, "channels": listed or None}, uncached=True)

    async def _show(self, request: web.Request) -> web.StreamResponse:
        channel_id = _channel_id(request)
        try:
            info = self._orderer.channel_info(channel_id)
        except ChannelMissingError:
            raise Refused(404, "channel does not exist") from None
        return _json(_described(info), uncached=True)

    async def _join(self, request: web.Request) -> web.StreamResponse:
        block = await _block_in(request)
        _check_join_block(block)
        try:
            info = await self._orderer.join_channel(block)
        except ChannelExistsError:
            raise Refused(405, "cannot join: channel already exists", "GET, DELETE") from None
        except (JoinError, ConfigError) as error:
            raise Refused(400, f"cannot join: {error}") from None
        location = f"{CHANNELS}/{info.name}"
        return _json(_described(info), status=201, location=location)

    async def _remove(self, request: web.Request) -> web.StreamResponse:
        channel_id = _channel_id(request)
        try:
            await self._orderer.remove_channel(channel_id)
        except ChannelMissingError:
            raise Refused(404, "cannot remove: channel does not exist") from None
        except JoinError as error:
            raise Refused(400, f"cannot remove: {error}") from None
        return web.Response(status=204)

    async def _block(self, request: web.Request) -> web.StreamResponse:
        channel_id, wanted = _channel_id(request), request.match_info["block"]
        if wanted not in ("newest", "oldest", "config") and not re.fullmatch(r"\d{1,19}", wanted):
            raise Refused(
                400,
                f"invalid block ID: '{wanted[:40]}' not equal <newest|oldest|config|(number)>",
            )
        try:
            raw = await self._fetch(channel_id, wanted)
        except (ChannelMissingError, LookupError) as error:
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
            raise LookupError(f"channel {channel_id} holds no blocks here")
        newest = chain.height - 1
        number = {"newest": newest, "oldest": 0}.get(wanted, -1)
        if wanted == "config":
            last = await asyncio.to_thread(chain.block, newest)
            metadata = parse(common_pb2.Block, last, "the newest block").metadata.metadata
            stored = parse(common_pb2.Metadata, metadata[blocks.LAST_CONFIG], "its metadata")
            number = parse(common_pb2.LastConfig, stored.value, "its metadata").index
        elif number < 0:
            number = int(wanted)
        if number > newest:
            raise LookupError(f"block {number} of channel {channel_id} is not there")
        return await asyncio.to_thread(chain.block, number)


def _check_accept(request: web.Request) -> None:
    accepted = request.headers.get("Accept", "")
    known = ("application/json", "application/*", "*/*")
    if accepted and not any(one in accepted for one in known):
        raise Refused(406, "response Content-Type is application/json only")


def _channel_id(request: web.Request) -> str:
    channel_id = request.match_info["channel"]
    if not _CHANNEL_ID.fullmatch(channel_id):
        raise Refused(
            400, f"invalid channel ID: '{channel_id[:80]}' contains illegal characters or is long"
        )
    return channel_id


async def _block_in(request: web.Request) -> common_pb2.Block:
    """The block in a multipart form, its one part; raises Refused."""
    if not request.content_type.startswith("multipart/form-data"):
        raise Refused(400, f"unsupported Content-Type: [{request.headers.get('Content-Type', '')}]")
    found: bytes | None = None
    parts = 0
    try:
        reader: MultipartReader = await request.multipart()
        async for part in reader:
            parts += 1
            if parts > 1:
                raise Refused(400, "form contains too many parts")
            if isinstance(part, BodyPartReader) and part.name == CONFIG_BLOCK and part.filename:
                found = await _read(part)
            elif part is not None:
                await part.release()
    except (ValueError, AssertionError, KeyError, EOFError, HttpProcessingError) as error:
        raise Refused(400, f"cannot read form from request body: {error}") from None
    if found is None:
        raise Refused(400, f"form does not contains part key: {CONFIG_BLOCK}")
    try:
        return parse(common_pb2.Block, found, "the block")
    except WireError as error:
        raise Refused(
            400, f"cannot unmarshal file part {CONFIG_BLOCK} into a block: {error}"
        ) from None


async def _read(part: BodyPartReader) -> bytes:
    data = bytearray()
    while chunk := await part.read_chunk():
        data += chunk
        if len(data) > BODY_LIMIT_BYTES:
            raise Refused(
                400,
                "cannot read form from request body: http: request body too large, it may have "
                f"{BODY_LIMIT_BYTES} bytes",
            )
    return bytes(data)


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
        text=json.dumps(content) + "\n",
        content_type="application/json",
        headers=headers,
    )


def _error(error: Refused) -> web.Response:
    return web.Response(
        status=error.status,
        text=json.dumps({"error": str(error)}) + "\n",
        content_type="application/json",
        headers={"Allow": error.allow} if error.allow else {},
    )
