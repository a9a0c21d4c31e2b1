"""Messages between the orderers of a channel: `orderer.Cluster/Step` over mutual TLS.

A consenter is known by the TLS certificates that the channel's configuration pins: who calls must
show its client certificate, who is called its server certificate, whoever issued them. To each
other node there are two streams for all channels together, one for Raft's messages and one for
envelopes, so that a queue of envelopes holds up no heartbeat. Nothing here waits for a slow node:
a full queue drops Raft messages (the core sends again) and refuses envelopes.

Over each new connection this node first asks what the other one remembers of its promises
(`gridledger.Consenters/Recall`, see `raft.witness`), and says nothing in Raft until it has the
answer: so a disk that was lost or restored is found out before it is believed. Fabric's orderers
do not know the call; nothing is asked of them.
"""

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig, Consenter
from consortium.wire import common_pb2, gridledger_pb2, orderer_pb2, services
from consortium.wire import raftpb_pb2 as raftpb
from consortium.wire.envelopes import (
    WireError,
    channel_header,
    field_prefix,
    parse,
    signed_envelope,
    varint,
)

from .admission import Admission, Admitted, Refused
from .blockwriter import BlockRefused
from .membership import certificate_hash
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
RECALL_TIMEOUT_S = 5.0
RECALLED_CHANNELS = 1_000
"""Of how many channels one request asks."""

# Between orderers a dead connection must be found out in seconds, not minutes. What was sent and is
# not acknowledged for as long as the timeout says (TCP_USER_TIMEOUT, which gRPC sets by it) ends a
# connection, and Raft sends all the time; pings cannot do it, since Fabric's orderers hang up on
# who pings more often than each minute. Towards those who call us they can.
CHANNEL_OPTIONS: services.ChannelOptions = tuple(
    (
        dict(services.NODE_CHANNEL_OPTIONS)
        | {"grpc.keepalive_timeout_ms": 3_000, "grpc.keepalive_permit_without_calls": 1}
    ).items()
)
SERVER_OPTIONS: services.ChannelOptions = tuple(
    (
        dict(services.NODE_SERVER_OPTIONS)
        | {
            "grpc.keepalive_time_ms": 5_000,
            "grpc.keepalive_timeout_ms": 3_000,
            "grpc.keepalive_permit_without_calls": 1,
            "grpc.http2.max_pings_without_data": 0,
            "grpc.http2.min_ping_interval_without_data_ms": 2_000,
        }
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

    @property
    def config(self) -> ChannelConfig:
        """The configuration in force."""

    @property
    def admission(self) -> Admission:
        """The checks under it."""

    def step(self, sender: int, message: raftpb.Message, metadata: bytes) -> None:
        """Take a Raft message, and what came with it; raises WireError."""

    def order(
        self,
        admitted: Admitted,
        refuse: Callable[[bytes, int, str], None],
        *,
        sent_again: bool = True,
    ) -> None:
        """Take an envelope from another consenter, which may send it to the next leader too."""

    def refuse_pending(self, digest: bytes, status: int, info: str) -> None:
        """The leader refused an envelope that was forwarded to it."""

    def redispatch(self, leader: int) -> None:
        """The way to a consenter is open again."""

    def take_pulled(self, raw: bytes) -> Awaitable[None]:
        """Append a fetched block."""

    def claim(self) -> gridledger_pb2.RecallClaim:
        """Who this consenter says that it is."""

    def remembered(
        self, sender: int, claim: gridledger_pb2.RecallClaim
    ) -> Awaitable[gridledger_pb2.RecallMemory]:
        """What is remembered of a consenter; 0 is one that is none."""

    def recalled(self, consenter_id: int, memory: gridledger_pb2.RecallMemory) -> bool:
        """Take what a consenter remembers of this one; True if it may be spoken to."""

    def trusted(self) -> Awaitable[None]:
        """Every other consenter was asked."""


@contextlib.contextmanager
def _over_a_connection_that_others_close() -> Iterator[None]:
    """Tell the end of a call by somebody else in this process from the task's own end.

    gRPC raises CancelledError for both: where a configuration or a certificate closes connections,
    and where a call is given up because a write has stalled. Whoever took that for its own end
    would never go on. Raises ConnectionError.
    """
    try:
        yield
    except grpc.aio.UsageError as error:
        raise ConnectionError("the connection was closed") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("the connection was closed meanwhile") from error


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
                with _over_a_connection_that_others_close():
                    await self._call()
            except grpc.RpcError, asyncio.InvalidStateError, ConnectionError:
                pass  # the other node went away, or refused us; `_read` says why
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
        on_consensus: Callable[[], None],
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
            self.channel, f"{self.name} consensus", on_consensus, lambda _: None
        )
        self.submit = _Stream(self.channel, f"{self.name} submit", on_open, on_response)
        self.recalling: asyncio.Task[None] | None = None
        self.fabrics = False
        """Whether it is an orderer of Fabric's: it does not know our question."""

    async def recall(
        self, claims: Sequence[gridledger_pb2.RecallClaim]
    ) -> Sequence[gridledger_pb2.RecallMemory] | None:
        """Ask what the node remembers; None if it is one that does not know the question.

        Raises grpc.RpcError, ConnectionError, WireError.
        """
        request = gridledger_pb2.RecallRequest(claims=claims).SerializeToString()
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            services.CONSENTERS_RECALL
        )
        try:
            with _over_a_connection_that_others_close():
                answer = await call(request, timeout=RECALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                return None
            raise
        return parse(gridledger_pb2.RecallResponse, answer, "what an orderer recalls").memories

    async def close(self) -> None:
        if self.recalling is not None:
            self.recalling.cancel()
            await asyncio.wait([self.recalling])
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
        self._asked_over: dict[tuple[bytes, str, int], str] = {}
        """By a consenter's public key, channel and Raft id, over which connection it asked last
        what is remembered. (Its key may go over to an orderer of Fabric's, which never asks.)"""
        self.certificate_hash = certificate_hash(tls.certificate_pem)

    def use(self, tls: TlsIdentity) -> None:
        """Call the others with another certificate from now on, over new connections."""
        self._tls = tls
        self.certificate_hash = certificate_hash(tls.certificate_pem)
        for consenter, remote in list(self._remotes.items()):
            self._close(consenter, remote)
        for channel_id, members in self._members.items():
            self.configure(channel_id, members.consenters)

    def transport(self, channel_id: str) -> ChannelTransport:
        """The view of one channel; its chain is attached with `attach`."""
        return ChannelTransport(self, channel_id)

    def attach(self, channel_id: str, chain: ClusterChain, *, takes_part: bool = True) -> None:
        """Give a channel's messages to its chain; `takes_part`: it is a consenter there."""
        self._members[channel_id] = _Members(chain, takes_part)

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
        before = members.remotes
        members.consenters = dict(consenters)
        members.ids = {
            public_key(one.client_tls_certificate_pem): raft_id
            for raft_id, one in consenters.items()
        }
        members.remotes = {
            raft_id: self._remotes.get(one) or self._connect(one)
            for raft_id, one in consenters.items()
        }
        members.cleared = {
            raft_id
            for raft_id in members.cleared
            if members.remotes.get(raft_id) is before.get(raft_id)
        }
        if members.expected is not None:
            members.expected &= members.remotes.keys()
        self._close_unused()
        for remote in members.remotes.values():
            self._recall(remote)

    def _connect(self, consenter: Consenter) -> _Remote:
        remote = _Remote(
            consenter,
            self._tls,
            on_consensus=lambda: self._consensus_opened(consenter),
            on_open=lambda: self._opened(consenter),
            on_response=self._answered,
        )
        self._remotes[consenter] = remote
        return remote

    def _close_unused(self) -> None:
        used = {id(one) for members in self._members.values() for one in members.remotes.values()}
        for consenter, remote in list(self._remotes.items()):
            if id(remote) not in used:
                self._close(consenter, remote)

    def _close(self, consenter: Consenter, remote: _Remote) -> None:
        del self._remotes[consenter]
        task = asyncio.create_task(remote.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _uses(self, remote: _Remote) -> list[tuple[str, _Members, int]]:
        """Each channel that has this node among its consenters, and its Raft id there."""
        return [
            (channel_id, members, raft_id)
            for channel_id, members in self._members.items()
            for raft_id, other in members.remotes.items()
            if other is remote
        ]

    def _consensus_opened(self, consenter: Consenter) -> None:
        """Over a new connection it is asked again: the node may have been another process."""
        remote = self._remotes.get(consenter)
        if remote is None:
            return
        for _, members, raft_id in self._uses(remote):
            members.cleared.discard(raft_id)
        self._recall(remote)

    def _recall(self, remote: _Remote) -> None:
        """Ask a node about the channels in which it was not asked yet."""
        if remote.recalling is None or remote.recalling.done():
            remote.recalling = asyncio.create_task(self._recall_all(remote))

    async def _recall_all(self, remote: _Remote) -> None:
        wait_s = FIRST_RETRY_S
        while remote.consensus.connected:
            asked = [
                (channel_id, members, raft_id)
                for channel_id, members, raft_id in self._uses(remote)
                if raft_id not in members.cleared and members.takes_part
            ][:RECALLED_CHANNELS]
            if not asked:
                return
            try:
                memories = await remote.recall([members.chain.claim() for _, members, _ in asked])
            except (grpc.RpcError, ConnectionError, WireError) as error:
                why = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
                _LOGGER.debug("asking orderer %s what it recalls: %s", remote.name, why)
                memories = []
            by_channel = {memory.channel: memory for memory in memories or ()}
            remote.fabrics = memories is None
            for channel_id, members, raft_id in asked:
                if self._members.get(channel_id) is not members:
                    continue
                memory = by_channel.get(channel_id)
                if memories is None or (
                    memory is not None and members.chain.recalled(raft_id, memory)
                ):
                    await self._clear(members, raft_id)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_RETRY_S)

    @staticmethod
    async def _clear(members: _Members, raft_id: int) -> None:
        members.cleared.add(raft_id)
        if members.expected is not None:
            members.expected.discard(raft_id)
            if not members.expected:
                members.expected = None
                await members.chain.trusted()

    async def recall(
        self, channel_id: str, consenter_id: int
    ) -> gridledger_pb2.RecallMemory | None:
        """What a consenter says now that it remembers; None without an answer."""
        members = self._members.get(channel_id)
        remote = members.remotes.get(consenter_id) if members else None
        if members is None or remote is None:
            return None
        try:
            memories = await remote.recall([members.chain.claim()])
        except grpc.RpcError, ConnectionError, WireError:
            return None
        return next((one for one in memories or () if one.channel == channel_id), None)

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

    def may_speak(self, channel_id: str, consenter_id: int) -> bool:
        """Whether a consenter was asked what it remembers, and all who have to be."""
        members = self._members[channel_id]
        return members.expected is None and consenter_id in members.cleared

    def expect_all(self, channel_id: str) -> None:
        """Nothing is said in a channel until all its consenters were asked."""
        members = self._members[channel_id]
        members.expected = set(members.remotes) or None

    def remote(self, channel_id: str, consenter_id: int) -> _Remote | None:
        """The connection to a consenter of a channel."""
        members = self._members.get(channel_id)
        return None if members is None else members.remotes.get(consenter_id)

    def connected(self) -> dict[str, bool]:
        """Which other nodes can be reached at the moment."""
        return {one.name: one.consensus.connected for one in self._remotes.values()}

    async def pull(self, channel_id: str, first: int, last: int) -> None:
        """Fetch blocks from any other orderer, in turn, into the chain; see Transport.pull.

        Consenters come first, over the connections that there are. Fabric's hand out blocks at
        their clients' listener alone, unless it is the consenters' too, so the addresses that the
        configuration gives to clients are next.
        """
        members = self._members[channel_id]
        # Whoever answers: the first may be behind as well, or worse, so that it isn't always the
        # same one.
        remotes = list(members.remotes.values())
        random.shuffle(remotes)
        for remote in remotes:
            if remote.consensus.connected and await self._pulled(
                remote.channel, remote.name, members.chain, (channel_id, first, last)
            ):
                return
        config = members.chain.config
        for msp_id, address in config.orderer.addresses():
            credentials = grpc.ssl_channel_credentials(
                config.msps.tls_roots_pem(msp_id), self._tls.key_pem, self._tls.certificate_pem
            )
            async with grpc.aio.secure_channel(
                address, credentials, options=CHANNEL_OPTIONS
            ) as channel:
                if await self._pulled(channel, address, members.chain, (channel_id, first, last)):
                    return

    async def _pulled(
        self,
        channel: grpc.aio.Channel,
        name: str,
        chain: ClusterChain,
        wanted: tuple[str, int, int],
    ) -> bool:
        """Whether an orderer had some of the blocks; what went wrong is told."""
        try:
            async with asyncio.timeout(PULL_TIMEOUT_S):
                with _over_a_connection_that_others_close():
                    return await self._pull_from(channel, chain, *wanted)
        except grpc.aio.AioRpcError as error:
            level = (
                logging.DEBUG if error.code() == grpc.StatusCode.UNIMPLEMENTED else logging.WARNING
            )
            _LOGGER.log(
                level, "channel %s: fetching blocks from %s: %s", wanted[0], name, error.details()
            )
        except (
            grpc.RpcError,
            asyncio.InvalidStateError,
            ConnectionError,
            TimeoutError,
            WireError,
            BlockRefused,
        ) as error:
            _LOGGER.warning("channel %s: fetching blocks from %s: %s", wanted[0], name, error)
        return False

    async def _pull_from(
        self, channel: grpc.aio.Channel, chain: ClusterChain, channel_id: str, first: int, last: int
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
        call: StreamCall = channel.stream_stream(services.ORDERER_DELIVER)()
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

    async def recall_service(self, raw: bytes, context: ServerContext) -> bytes:
        """Handler of gridledger.Consenters/Recall: who calls is known by its TLS certificate."""
        shown = context.auth_context().get("x509_pem_cert")
        try:
            request = parse(gridledger_pb2.RecallRequest, raw, "the request")
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if not shown:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "a consenter must show its TLS certificate"
            )
        assert shown
        certificate = public_key(next(iter(shown)))
        answer = gridledger_pb2.RecallResponse()
        for claim in request.claims[:RECALLED_CHANNELS]:
            members = self._members.get(claim.channel)
            if members is not None and members.takes_part:
                sender = members.ids.get(certificate, 0)
                if sender:
                    self._asked_over[certificate, claim.channel, sender] = context.peer()
                answer.memories.append(await members.chain.remembered(sender, claim))
        return answer.SerializeToString()

    async def step(self, _: object, context: ServerContext) -> None:
        """Handler of orderer.Cluster/Step (bytes in, bytes out)."""
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "a consenter must show its TLS certificate"
            )
            return
        certificate = public_key(next(iter(shown)))
        peer = context.peer()
        refusals = _Refusals(context)
        try:
            while (raw := await read(context)) is not None:
                problem = self._take(raw, certificate, peer, refusals)
                if problem is not None:
                    await context.abort(*problem)
        finally:
            refusals.close()

    def _outdated(
        self, consenter: tuple[bytes, str, int], peer: str
    ) -> tuple[grpc.StatusCode, str] | None:
        """Why nothing more is taken over a connection: the consenter has asked over another one.

        It may be another process by now, on an older copy of its disk, which was told that nobody
        remembers more than it knows. An acknowledgement that its former process sent must not be
        counted after that.
        """
        if self._asked_over.get(consenter, peer) == peer:
            return None
        return (
            grpc.StatusCode.UNAVAILABLE,
            (
                "this consenter has asked over another connection since what is remembered of it;"
                " open the stream again"
            ),
        )

    def _take(
        self, raw: bytes, certificate: bytes, peer: str, refusals: _Refusals
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
                consensus = request.consensus_request
                message = parse(raftpb.Message, consensus.payload, "the Raft message")
                outdated = self._outdated((certificate, channel_id, sender), peer)
                if outdated is None:
                    chain.step(sender, message, consensus.metadata)
                return outdated
        except WireError as error:
            return grpc.StatusCode.INVALID_ARGUMENT, str(error)
        submit = request.submit_request
        raw = submit.payload.SerializeToString()
        refuse = refusals.sender(channel_id)
        try:
            admitted = chain.admission.check_forwarded(raw, submit.last_validation_seq)
        except Refused as refused:
            _LOGGER.info("consenter %d forwards what is refused: %s", sender, refused.info)
            refuse(hashlib.sha256(raw).digest(), refused.status, refused.info)
            return None
        remote = self.remote(channel_id, sender)
        # Fabric's orderers send an envelope once, and have forgotten it then.
        chain.order(admitted, refuse, sent_again=remote is None or not remote.fabrics)
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

    def __init__(self, chain: ClusterChain, takes_part: bool) -> None:
        self.chain = chain
        self.takes_part = takes_part
        """Whether this node is a consenter; else it only fetches blocks from them."""
        self.consenters: dict[int, Consenter] = {}
        self.ids: dict[bytes, int] = {}
        self.remotes: dict[int, _Remote] = {}
        self.cleared: set[int] = set()
        """Raft ids that were asked, over the present connection, what they remember of us."""
        self.expected: set[int] | None = None
        """Raft ids that must be asked before anything is said to anybody; None: not so strict."""


class ChannelTransport:
    """One channel's use of the cluster's connections (`chain.Transport`)."""

    def __init__(self, cluster: Cluster, channel_id: str) -> None:
        self._cluster = cluster
        self._channel_id = channel_id
        name = channel_id.encode()
        self._channel_field = field_prefix(1, len(name)) + name

    def send(self, consenter_id: int, message: raftpb.Message, metadata: bytes = b"") -> bool:
        """Queue a Raft message; False if it was dropped."""
        remote = self._cluster.remote(self._channel_id, consenter_id)
        if remote is None or not remote.consensus.connected:
            return False
        if not self._cluster.may_speak(self._channel_id, consenter_id):
            return False
        payload = message.SerializeToString()
        # A StepRequest with a ConsensusRequest: fields 1 channel, 2 payload, 3 metadata.
        head = self._channel_field + field_prefix(2, len(payload))
        tail = field_prefix(3, len(metadata)) + metadata if metadata else b""
        size = len(head) + len(payload) + len(tail)
        return remote.consensus.put(b"".join((field_prefix(1, size), head, payload, tail)))

    def forward(self, consenter_id: int, admitted: Admitted) -> bool:
        """Queue an envelope for the leader; False if there is no room.

        Without a connection it counts as queued: `Chain.redispatch` sends it when there is one.
        """
        remote = self._cluster.remote(self._channel_id, consenter_id)
        if remote is None or not remote.submit.connected:
            return True
        raw = admitted.raw
        # A StepRequest with a SubmitRequest: fields 1 channel, 2 last_validation_seq, 3 payload.
        head = b"".join(
            (self._channel_field, b"\x10", varint(admitted.sequence), field_prefix(3, len(raw)))
        )
        return remote.submit.put(b"".join((field_prefix(2, len(head) + len(raw)), head, raw)))

    def reachable(self, consenter_id: int) -> bool:
        """Whether there is a connection to a consenter."""
        remote = self._cluster.remote(self._channel_id, consenter_id)
        return remote is not None and remote.consensus.connected

    def configure(self, consenters: dict[int, Consenter]) -> None:
        """From now on these are the other consenters."""
        self._cluster.configure(self._channel_id, consenters)

    async def recall(self, consenter_id: int) -> gridledger_pb2.RecallMemory | None:
        """Ask a consenter what it remembers of this one; None without an answer."""
        return await self._cluster.recall(self._channel_id, consenter_id)

    def expect_all(self) -> None:
        """Send nothing until every other consenter was asked what it remembers."""
        self._cluster.expect_all(self._channel_id)

    async def pull(self, first: int, last: int) -> None:
        """Fetch blocks from another orderer."""
        await self._cluster.pull(self._channel_id, first, last)


def _position(number: int) -> orderer_pb2.SeekPosition:
    return orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=number))
