"""Messages between the orderers of a channel: `orderer.Cluster/Step` over mutual TLS.

A consenter is known by the TLS certificates that the channel's configuration pins: who calls must
show its client certificate, who is called its server certificate, whoever issued them. To each
other node there are two streams for all channels together, one for Raft's messages and one for
envelopes, so that a queue of envelopes holds up no heartbeat. Nothing here waits for a slow node:
a full queue drops Raft messages (the core sends again) and refuses envelopes.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from consortium.identity.signing import Signer
from consortium.ledger.channel_config import Consenter
from consortium.wire import common_pb2, orderer_pb2, services
from consortium.wire import raftpb_pb2 as raftpb
from consortium.wire.envelopes import WireError, channel_header, parse, signed_envelope

from .admission import Admitted
from .blockwriter import BlockRefused
from .streams import read

type StreamCall = grpc.aio.StreamStreamCall[bytes, bytes]
type ServerContext = grpc.aio.ServicerContext[bytes, bytes]

_LOGGER = logging.getLogger(__name__)

QUEUE_MESSAGES = 50_000
QUEUE_BYTES = 128 * 1024 * 1024
"""Bounds of each stream's queue to another node."""
REFUSALS_WAITING = 1_000
FIRST_RETRY_S = 0.05
LONGEST_RETRY_S = 2.0
STALLED_WRITE_S = 5.0
"""A message that takes longer to hand to the network means that the stream is dead."""
PULL_TIMEOUT_S = 60.0
PULL_IDLE_S = 5.0

# Between orderers a dead connection must be found out in seconds, not minutes.
_OPTIONS = {
    "grpc.keepalive_time_ms": 5_000,
    "grpc.keepalive_timeout_ms": 3_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
}
CHANNEL_OPTIONS: services.ChannelOptions = tuple(
    (dict(services.NODE_CHANNEL_OPTIONS) | _OPTIONS).items()
)
SERVER_OPTIONS: services.ChannelOptions = tuple(
    (
        dict(services.NODE_SERVER_OPTIONS)
        | _OPTIONS
        | {"grpc.http2.min_ping_interval_without_data_ms": 2_000}
    ).items()
)


def public_key(certificate_pem: bytes) -> bytes:
    """What identifies a pinned certificate: its public key, so that a renewal keeps it."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """This node's TLS certificate and key, both PEM, for serving and calling."""

    certificate_pem: bytes
    key_pem: bytes


class ClusterChain(Protocol):
    """What the transport needs of a channel's chain."""

    def step(self, sender: int, message: raftpb.Message) -> None:
        """Take a Raft message."""

    def order(self, admitted: Admitted, refuse: Callable[[bytes, int, str], None]) -> None:
        """Take an envelope from another consenter."""

    def refuse_pending(self, digest: bytes, status: int, info: str) -> None:
        """The leader refused an envelope that was forwarded to it."""

    def redispatch(self, leader: int) -> None:
        """The way to a consenter is open again."""

    def take_pulled(self, raw: bytes) -> Awaitable[None]:
        """Append a fetched block."""


class _Stream:
    """One Step call to another node, opened again whenever it breaks."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        name: str,
        on_open: Callable[[], None],
        on_response: Callable[[bytes], None],
    ) -> None:
        self._channel = channel
        self._name = name
        self._on_open = on_open
        self._on_response = on_response
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._call_now: StreamCall | None = None
        self._writing_since = 0.0  # 0 while no write is under way
        self.connected = False
        self._task = asyncio.create_task(self._run(), name=f"cluster-{name}")

    def put(self, data: bytes) -> bool:
        """Queue a message; False if there is no connection or no room."""
        if self._writing_since and time.monotonic() - self._writing_since > STALLED_WRITE_S:
            self._writing_since = 0.0
            if self._call_now is not None:
                self._call_now.cancel()  # `_run` opens another one
        if (
            not self.connected
            or len(self._queue) >= QUEUE_MESSAGES
            or self._queued_bytes + len(data) > QUEUE_BYTES
        ):
            return False
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._wake.set()
        return True

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        wait_s = FIRST_RETRY_S
        while True:
            began = time.monotonic()
            try:
                await self._call()
            except grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError:
                pass  # the other node went away, or refused us; `_read` says why
            except asyncio.CancelledError:
                # Raised by a call that was cancelled because a write had stalled, too.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
            except Exception:
                _LOGGER.exception("the stream to orderer %s is opened again", self._name)
            if time.monotonic() - began > LONGEST_RETRY_S:
                wait_s = FIRST_RETRY_S
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_RETRY_S)

    async def _call(self) -> None:
        await self._channel.channel_ready()
        call: StreamCall = self._channel.stream_stream(services.CLUSTER_STEP)()
        self._call_now = call
        reader = asyncio.create_task(self._read(call))
        try:
            self._queue.clear()
            self._queued_bytes = 0
            self.connected = True
            self._on_open()
            while not reader.done():
                while self._queue:
                    data = self._queue.popleft()
                    self._queued_bytes -= len(data)
                    self._writing_since = time.monotonic()
                    await call.write(data)
                    self._writing_since = 0.0
                self._wake.clear()
                if not self._queue and not reader.done():
                    await self._wake.wait()
        finally:
            self.connected = False
            self._writing_since = 0.0
            call.cancel()
            reader.cancel()
            await asyncio.wait([reader])

    async def _read(self, call: StreamCall) -> None:
        try:
            while (response := await read(call)) is not None:
                self._on_response(response)
        except grpc.RpcError as error:
            if isinstance(error, grpc.aio.AioRpcError) and error.code() not in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.CANCELLED,
            ):
                _LOGGER.warning("orderer %s: %s: %s", self._name, error.code(), error.details())
        finally:
            self._wake.set()


class _Remote:
    """Another orderer node: a gRPC channel and its two streams."""

    def __init__(
        self,
        consenter: Consenter,
        tls: TlsIdentity,
        on_open: Callable[[], None],
        on_response: Callable[[bytes], None],
    ) -> None:
        credentials = grpc.ssl_channel_credentials(
            # The pinned certificate is its own root: nobody else's is accepted.
            root_certificates=consenter.server_tls_certificate_pem,
            private_key=tls.key_pem,
            certificate_chain=tls.certificate_pem,
        )
        self.name = f"{consenter.host}:{consenter.port}"
        self.channel = grpc.aio.secure_channel(self.name, credentials, options=CHANNEL_OPTIONS)
        self.consensus = _Stream(
            self.channel, f"{self.name} consensus", lambda: None, lambda _: None
        )
        self.submit = _Stream(self.channel, f"{self.name} submit", on_open, on_response)

    async def close(self) -> None:
        await self.consensus.close()
        await self.submit.close()
        await self.channel.close()


class Cluster:
    """The connections of this node to the other orderers of all its channels."""

    def __init__(self, tls: TlsIdentity, signer: Signer) -> None:
        self._tls = tls
        self._signer = signer
        self._remotes: dict[Consenter, _Remote] = {}
        self._members: dict[str, _Members] = {}
        self._closing: set[asyncio.Task[None]] = set()
        certificate = x509.load_pem_x509_certificate(tls.certificate_pem)
        self.certificate_hash = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()

    def transport(self, channel_id: str) -> ChannelTransport:
        """The view of one channel; its chain is attached with `attach`."""
        return ChannelTransport(self, channel_id)

    def attach(self, channel_id: str, chain: ClusterChain) -> None:
        """Give a channel's messages to its chain."""
        self._members[channel_id] = _Members(chain)

    def detach(self, channel_id: str) -> None:
        """Stop carrying a channel's messages."""
        self._members.pop(channel_id, None)
        self._close_unused()

    def member(self, channel_id: str, certificate: bytes) -> tuple[ClusterChain, int] | None:
        """The chain and the consenter whose client certificate has this public key."""
        members = self._members.get(channel_id)
        if members is None:
            return None
        consenter = members.ids.get(certificate)
        return None if consenter is None else (members.chain, consenter)

    def configure(self, channel_id: str, consenters: Mapping[int, Consenter]) -> None:
        """Set who the other consenters of a channel are."""
        members = self._members[channel_id]
        members.ids = {
            public_key(one.client_tls_certificate_pem): raft_id
            for raft_id, one in consenters.items()
        }
        members.remotes = {
            raft_id: self._remotes.get(one) or self._connect(one)
            for raft_id, one in consenters.items()
        }
        self._close_unused()

    def _connect(self, consenter: Consenter) -> _Remote:
        remote = _Remote(
            consenter,
            self._tls,
            on_open=lambda: self._opened(consenter),
            on_response=self._answered,
        )
        self._remotes[consenter] = remote
        return remote

    def _close_unused(self) -> None:
        used = {id(one) for members in self._members.values() for one in members.remotes.values()}
        for consenter, remote in list(self._remotes.items()):
            if id(remote) not in used:
                del self._remotes[consenter]
                task = asyncio.create_task(remote.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    def _opened(self, consenter: Consenter) -> None:
        remote = self._remotes.get(consenter)
        for members in self._members.values():
            for raft_id, other in members.remotes.items():
                if other is remote:
                    members.chain.redispatch(raft_id)

    def _answered(self, response: bytes) -> None:
        """A leader refused an envelope: its digest is the first word of the sentence."""
        try:
            answer = parse(orderer_pb2.StepResponse, response, "the answer").submit_res
            digest, _, info = answer.info.partition(" ")
            key = bytes.fromhex(digest)
        except WireError, ValueError:
            return
        members = self._members.get(answer.channel)
        if members is not None:
            members.chain.refuse_pending(key, answer.status, info)

    def remote(self, channel_id: str, consenter_id: int) -> _Remote | None:
        """The connection to a consenter of a channel."""
        members = self._members.get(channel_id)
        return None if members is None else members.remotes.get(consenter_id)

    def connected(self) -> dict[str, bool]:
        """Which other nodes can be reached at the moment."""
        return {one.name: one.consensus.connected for one in self._remotes.values()}

    async def pull(self, channel_id: str, first: int, last: int) -> None:
        """Fetch blocks from any other consenter, in turn, into the chain; see Transport.pull."""
        members = self._members[channel_id]
        # Whoever answers; the first may be the very node that is behind as well.
        for remote in list(members.remotes.values()):
            if not remote.consensus.connected:
                continue
            try:
                async with asyncio.timeout(PULL_TIMEOUT_S):
                    if await self._pull_from(remote, channel_id, first, last, members.chain):
                        return
            except (grpc.RpcError, TimeoutError, WireError, BlockRefused) as error:
                _LOGGER.warning(
                    "channel %s: fetching blocks from %s: %s", channel_id, remote.name, error
                )

    async def _pull_from(
        self, remote: _Remote, channel_id: str, first: int, last: int, chain: ClusterChain
    ) -> bool:
        """Fetch what the node has of the blocks; True if any came."""
        seek = orderer_pb2.SeekInfo(
            start=_position(first),
            stop=_position(last),
            behavior=orderer_pb2.SeekInfo.FAIL_IF_NOT_READY,
            error_response=orderer_pb2.SeekInfo.BEST_EFFORT,
        )
        header = channel_header(
            common_pb2.DELIVER_SEEK_INFO, channel_id, tls_cert_hash=self.certificate_hash
        )
        request = signed_envelope(self._signer, header, seek.SerializeToString())
        call: StreamCall = remote.channel.stream_stream(services.ORDERER_DELIVER)()
        try:
            await call.write(request.SerializeToString())
            some = False
            while True:
                async with asyncio.timeout(PULL_IDLE_S):
                    raw = await read(call)
                if raw is None:
                    return some
                response = parse(orderer_pb2.DeliverResponse, raw, "the delivered block")
                if response.WhichOneof("Type") != "block":
                    return some
                await chain.take_pulled(response.block.SerializeToString())
                some = True
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close all connections."""
        self._members.clear()
        self._close_unused()
        await asyncio.gather(*self._closing, return_exceptions=True)

    # The serving side

    async def step(self, _: object, context: ServerContext) -> None:
        """Handler of orderer.Cluster/Step (bytes in, bytes out)."""
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "a consenter must show its TLS certificate"
            )
            return
        certificate = public_key(next(iter(shown)))
        refusals = _Refusals(context)
        try:
            while (raw := await read(context)) is not None:
                problem = self._take(raw, certificate, refusals)
                if problem is not None:
                    await context.abort(*problem)
        finally:
            refusals.close()

    def _take(
        self, raw: bytes, certificate: bytes, refusals: _Refusals
    ) -> tuple[grpc.StatusCode, str] | None:
        """Handle one request; returns why the stream must end, if so."""
        try:
            request = parse(orderer_pb2.StepRequest, raw, "the request")
            kind = request.WhichOneof("payload")
            if kind == "consensus_request":
                channel_id = request.consensus_request.channel
            elif kind == "submit_request":
                channel_id = request.submit_request.channel
            else:
                raise WireError("the request is neither consensus nor submit")
            member = self.member(channel_id, certificate)
            if member is None:
                return self._stranger(certificate)
            chain, sender = member
            if kind == "consensus_request":
                message = parse(
                    raftpb.Message, request.consensus_request.payload, "the Raft message"
                )
                chain.step(sender, message)
                return None
            submit = request.submit_request
            envelope = submit.payload
            payload = parse(common_pb2.Payload, envelope.payload, "the envelope's payload")
            header = parse(
                common_pb2.ChannelHeader, payload.header.channel_header, "the channel header"
            )
        except WireError as error:
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        admitted = Admitted(
            raw=envelope.SerializeToString(),
            size_bytes=len(envelope.payload) + len(envelope.signature),
            sequence=submit.last_validation_seq,
            is_config=header.type == common_pb2.CONFIG,
        )
        chain.order(admitted, refusals.sender(channel_id))
        return None

    def _stranger(self, certificate: bytes) -> tuple[grpc.StatusCode, str] | None:
        """What to do about a message for a channel that its sender orders not, as we know it."""
        if any(certificate in members.ids for members in self._members.values()):
            return None  # dropped; other channels use the stream as well
        if not self._members:
            return grpc.StatusCode.UNAVAILABLE, "this orderer has not joined a channel yet"
        return (
            grpc.StatusCode.PERMISSION_DENIED,
            "this certificate is not a consenter's of any channel of this orderer",
        )


class _Refusals:
    """Late refusals on their way back to the orderer that forwarded the envelopes."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._queue: deque[bytes] = deque(maxlen=REFUSALS_WAITING)
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def sender(self, channel_id: str) -> Callable[[bytes, int, str], None]:
        """What tells the other side about an envelope of this channel."""

        def refuse(digest: bytes, status: int, info: str) -> None:
            if self._closed:
                return
            response = orderer_pb2.SubmitResponse(
                channel=channel_id,
                status=common_pb2.Status.Name(status),
                info=f"{digest.hex()} {info}",
            )
            self._queue.append(orderer_pb2.StepResponse(submit_res=response).SerializeToString())
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._send())

        return refuse

    async def _send(self) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            while self._queue and not self._closed:
                await self._context.write(self._queue.popleft())

    def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()


class _Members:
    """The other consenters of one channel."""

    def __init__(self, chain: ClusterChain) -> None:
        self.chain = chain
        self.ids: dict[bytes, int] = {}
        self.remotes: dict[int, _Remote] = {}


class ChannelTransport:
    """One channel's use of the cluster's connections (`chain.Transport`)."""

    def __init__(self, cluster: Cluster, channel_id: str) -> None:
        self._cluster = cluster
        self._channel_id = channel_id

    def send(self, consenter_id: int, message: raftpb.Message) -> bool:
        """Queue a Raft message; False if it was dropped."""
        remote = self._cluster.remote(self._channel_id, consenter_id)
        if remote is None or not remote.consensus.connected:
            return False
        request = orderer_pb2.StepRequest(
            consensus_request=orderer_pb2.ConsensusRequest(
                channel=self._channel_id, payload=message.SerializeToString()
            )
        )
        return remote.consensus.put(request.SerializeToString())

    def forward(self, consenter_id: int, admitted: Admitted) -> bool:
        """Queue an envelope for the leader; False if there is no room.

        Without a connection it counts as queued: `Chain.redispatch` sends it when there is one.
        """
        remote = self._cluster.remote(self._channel_id, consenter_id)
        if remote is None or not remote.submit.connected:
            return True
        request = orderer_pb2.StepRequest(
            submit_request=orderer_pb2.SubmitRequest(
                channel=self._channel_id,
                last_validation_seq=admitted.sequence,
                payload=common_pb2.Envelope.FromString(admitted.raw),
            )
        )
        return remote.submit.put(request.SerializeToString())

    def reachable(self, consenter_id: int) -> bool:
        """Whether there is a connection to a consenter."""
        remote = self._cluster.remote(self._channel_id, consenter_id)
        return remote is not None and remote.consensus.connected

    def configure(self, consenters: dict[int, Consenter]) -> None:
        """From now on these are the other consenters."""
        self._cluster.configure(self._channel_id, consenters)

    async def pull(self, first: int, last: int) -> None:
        """Fetch blocks from another orderer."""
        await self._cluster.pull(self._channel_id, first, last)


def _position(number: int) -> orderer_pb2.SeekPosition:
    return orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=number))
