"""`gateway.Gateway`: Evaluate, Endorse, Submit, CommitStatus and ChaincodeEvents.

Codes, messages and details follow Fabric's gateway (`internal/pkg/gateway/`, facts only), since
its client libraries build their typed errors from them.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NoReturn

import grpc
from google.protobuf.message import Message

from consortium.identity.msp import Identity, IdentityError, check_not_expired
from consortium.identity.policies import (
    Policy,
    PolicyError,
    PolicyNotFoundError,
    SignaturePolicy,
)
from consortium.ledger.ledger import BeforeSnapshotError
from consortium.ledger.lifecycle import Policies, member_organizations
from consortium.peer.channel import ChannelPeer, ChannelStopped
from consortium.peer.contracts import Contracts
from consortium.peer.endorser import (
    ERROR,
    ERROR_THRESHOLD,
    Endorser,
    OpenedProposal,
    ProposalRefused,
    open_proposal,
)
from consortium.peer.places import NoMorePlaces, Places
from consortium.peer.system_call import READERS
from consortium.peer.system_chaincodes import SYSTEM_CHAINCODES
from consortium.wire import any_pb2, common_pb2, gateway_pb2, peer_pb2, rpc_pb2, services
from consortium.wire.envelopes import WireError, open_envelope, parse, shortened

from .broadcast import Broadcaster, BroadcastRefused, TooManyWaiting

_LOGGER = logging.getLogger(__name__)

PLANS_KEPT = 256
"""Endorsement plans remembered; those of a past height are never asked for again."""
ENDORSE_TIMEOUT_S = 30.0
REMOTE_ENDORSE_TIMEOUT_S = 10.0
"""Shorter than clients wait, so that another organisation's peer can still be asked."""
AVOID_S = 30.0
"""A peer that could not be reached is asked last for so long."""
SUBMIT_TIMEOUT_S = 30.0
MAX_CALLS = 2_500
"""Calls at once, waiting CommitStatus calls among them."""
MAX_WAITS_EACH = 500
"""CommitStatus calls of one client that wait for their transaction."""
MAX_EVENT_STREAMS = 1_000
MAX_EVENT_STREAMS_EACH = 50
type Context = grpc.aio.ServicerContext[bytes, bytes]
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
MISMATCH = "ProposalResponsePayloads do not match"
"""Fabric's words for a peer whose result is another one than that of those asked before."""
MESSAGE_CHARACTERS = 3_000
"""Of another node's sentence that is passed on; gRPC's trailers have to hold it."""
_ENDORSER_OPTIONS: services.ChannelOptions = tuple(
    (
        dict(services.NODE_CHANNEL_OPTIONS)
        # Twice the largest envelope: an answer is part of one, and the result stands in it twice.
        | {"grpc.max_receive_message_length": 2 * services.CLIENT_MESSAGE_LIMIT_BYTES}
    ).items()
)
CATCH_UP_PAUSES_S = (0.2, 1.0)
"""Peers that disagree may only be a block apart, so they are asked again after each of these."""
DETAIL_TYPE = "type.googleapis.com/gateway.ErrorDetail"


class GatewayError(Exception):
    """A gRPC status for the client, with one detail for each node that failed."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        details: Sequence[gateway_pb2.ErrorDetail] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.details = tuple(details)


class PeersDisagree(GatewayError):
    """One peer endorsed what another refuses or has another result for."""


@dataclass(frozen=True, slots=True)
class EndorserFailed(Exception):
    """One endorser's refusal: what to tell the client, and whether another peer may do better."""

    code: grpc.StatusCode
    message: str
    retry: bool


@dataclass(frozen=True, slots=True)
class EndorsingPeer:
    """A peer that the gateway can ask to endorse."""

    msp_id: str
    address: str
    ask: Callable[[peer_pb2.SignedProposal], Awaitable[peer_pb2.ProposalResponse]]

    def detail(self, message: str) -> gateway_pb2.ErrorDetail:
        """What went wrong at this peer, for the client."""
        return gateway_pb2.ErrorDetail(address=self.address, msp_id=self.msp_id, message=message)


class PeerDirectory:
    """Who endorses on a channel: this peer itself, and all other anchor peers."""

    def __init__(
        self,
        endorser: Endorser,
        msp_id: str,
        address: str,
        credentials: Callable[[bytes], grpc.ChannelCredentials],
        node_address: str = "",
    ) -> None:
        """`node_address` is this peer's own listener for nodes, as the channel names it."""
        self._node_address = node_address
        self._local = EndorsingPeer(msp_id, address, endorser.process)
        self._credentials = credentials
        self._connections: dict[tuple[str, bytes], grpc.aio.Channel] = {}
        self._failed_at: dict[str, float] = {}

    async def close(self) -> None:
        """Close the connections to the other peers."""
        for connection in self._connections.values():
            await connection.close()

    @property
    def local(self) -> EndorsingPeer:
        """The peer that this gateway is part of."""
        return self._local

    def of(self, channel: ChannelPeer) -> dict[str, list[EndorsingPeer]]:
        """Endorsing peers by organisation, in the order in which to ask them.

        This gateway's own comes first (its peer, then that organisation's others), then those that
        follow it in the configuration, so that gateways of different organisations choose different
        ones; whom we could not reach of late comes last.
        """
        config = channel.ledger.config
        names = list(config.anchor_peers)
        if self._local.msp_id in names:
            own = names.index(self._local.msp_id)
            names = names[own:] + names[:own]
        others: dict[str, list[EndorsingPeer]] = {}
        for msp_id in names:
            roots = config.msps.tls_roots_pem(msp_id)
            addresses = [
                address
                for host, port in config.anchor_peers[msp_id]
                if (address := f"{host}:{port}") != self._node_address
            ]
            addresses.sort(key=self._avoided)
            if addresses:
                others[msp_id] = [
                    EndorsingPeer(msp_id, address, self._remote(address, roots))
                    for address in addresses
                ]
        # Without its own address this peer would ask itself over the network.
        own_others = others.pop(self._local.msp_id, []) if self._node_address else []
        others.pop(self._local.msp_id, None)
        order = sorted(others, key=lambda msp_id: self._avoided(others[msp_id][0].address))
        return {self._local.msp_id: [self._local, *own_others]} | {
            msp_id: others[msp_id] for msp_id in order
        }

    def _avoided(self, address: str) -> bool:
        failed_at = self._failed_at.get(address)
        return failed_at is not None and time.monotonic() - failed_at < AVOID_S

    def _remote(
        self, address: str, roots: bytes
    ) -> Callable[[peer_pb2.SignedProposal], Awaitable[peer_pb2.ProposalResponse]]:
        connection = self._connections.get((address, roots))
        if connection is None:
            connection = self._connections[address, roots] = grpc.aio.secure_channel(
                address, self._credentials(roots), options=_ENDORSER_OPTIONS
            )
        process: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.unary_unary(
            services.PROCESS_PROPOSAL
        )

        async def ask(proposal: peer_pb2.SignedProposal) -> peer_pb2.ProposalResponse:
            try:
                raw = await process(proposal.SerializeToString(), timeout=REMOTE_ENDORSE_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() in _UNREACHABLE:
                    self._failed_at[address] = time.monotonic()
                raise
            self._failed_at.pop(address, None)
            return parse(peer_pb2.ProposalResponse, raw, "the peer's answer")

        return ask


class Gateway:
    """The service that homes, tools and Fabric's own client libraries call."""

    def __init__(
        self,
        channels: dict[str, ChannelPeer],
        directory: PeerDirectory,
        clock: Callable[[], float] = time.time,
        contracts: Contracts | None = None,
    ) -> None:
        """`contracts` tells what this gateway's own peer runs; without it that is everything."""
        self._channels = channels
        self._directory = directory
        self._clock = clock
        self._contracts = contracts
        self._broadcasters: dict[str, Broadcaster] = {}
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._runnable: dict[tuple[str, str], tuple[int, int, bool]] = {}
        self._calls = 0
        self._streams = 0
        self._waits = Places(MAX_WAITS_EACH, "calls of CommitStatus")
        self._streams_each = Places(MAX_EVENT_STREAMS_EACH, "streams of events")

    async def stop(self) -> None:
        """Close the streams to the orderers and the connections to other peers."""
        for broadcaster in self._broadcasters.values():
            await broadcaster.stop()
        await self._directory.close()

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server.

        Requests are parsed here: a malformed one is answered with INVALID_ARGUMENT and a sentence.
        """

        def unary[M: Message](
            request_type: type[M], call: Callable[[M], Awaitable[Message]]
        ) -> grpc.RpcMethodHandler[bytes, bytes]:
            async def serve(raw: bytes, context: Context) -> bytes:
                try:
                    _check_limit(self._calls, MAX_CALLS, "calls")
                    self._calls += 1
                    try:
                        return (await call(_request(request_type, raw))).SerializeToString()
                    finally:
                        self._calls -= 1
                except GatewayError as error:
                    await _abort(context, error)
                except NoMorePlaces as error:
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
                except ChannelStopped as stopped:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, str(stopped))
                except BeforeSnapshotError as error:
                    await context.abort(grpc.StatusCode.NOT_FOUND, str(error))

            return grpc.unary_unary_rpc_method_handler(serve)

        async def events(raw: bytes, context: Context) -> AsyncIterator[bytes]:
            try:
                _check_limit(self._streams, MAX_EVENT_STREAMS, "streams of events")
                self._streams += 1
                try:
                    request = _request(gateway_pb2.SignedChaincodeEventsRequest, raw)
                    async for response in self.chaincode_events(request):
                        yield response.SerializeToString()
                finally:
                    self._streams -= 1
            except GatewayError as error:
                await _abort(context, error)
            except NoMorePlaces as error:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            except ChannelStopped as stopped:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(stopped))
            except BeforeSnapshotError as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, str(error))

        return grpc.method_handlers_generic_handler(
            "gateway.Gateway",
            {
                "Evaluate": unary(gateway_pb2.EvaluateRequest, self.evaluate),
                "Endorse": unary(gateway_pb2.EndorseRequest, self.endorse),
                "Submit": unary(gateway_pb2.SubmitRequest, self.submit),
                "CommitStatus": unary(gateway_pb2.SignedCommitStatusRequest, self.commit_status),
                "ChaincodeEvents": grpc.unary_stream_rpc_method_handler(events),
            },
        )

    async def evaluate(self, request: gateway_pb2.EvaluateRequest) -> gateway_pb2.EvaluateResponse:
        """Run a query on one peer: this one if it may, else another organisation's."""
        opened = _open(request.proposed_transaction)
        channel_id = opened.channel_header.channel_id
        channel = self._channels.get(channel_id)
        if channel is None:
            raise GatewayError(
                grpc.StatusCode.UNAVAILABLE,
                f"failed to create discovery client for channel {channel_id}: "
                "this gateway's peer has not joined it",
            )
        targets: Sequence[str] = request.target_organizations
        if opened.payload.TransientMap and not targets:
            # Transient data is confidential: without being told, it goes no further than here.
            targets = [self._directory.local.msp_id]
        name = opened.planned_chaincode
        by_organization = self._able(channel, name)
        candidates = [
            peer
            for msp_id, peers in by_organization.items()
            if not targets or msp_id in targets
            for peer in peers
        ]
        if not candidates or not _is_defined(channel, name):
            raise GatewayError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"no peers available to evaluate chaincode {name} in channel {channel_id}",
            )
        details = []
        for peer in candidates:
            try:
                response = await _process(peer, request.proposed_transaction)
            except EndorserFailed as failed:
                details.append(peer.detail(failed.message))
                if not failed.retry:
                    raise GatewayError(
                        failed.code,
                        f"evaluate call to endorser returned error: {failed.message}",
                        details,
                    ) from None
                code = failed.code
                continue
            result = peer_pb2.Response()
            result.CopyFrom(response.response)
            try:
                result.payload = _result(response.payload)
            except WireError as error:
                details.append(peer.detail(str(error)))
                code = grpc.StatusCode.UNAVAILABLE
                continue
            return gateway_pb2.EvaluateResponse(result=result)
        raise GatewayError(
            code, "failed to evaluate transaction, see attached details for more info", details
        )

    async def endorse(self, request: gateway_pb2.EndorseRequest) -> gateway_pb2.EndorseResponse:
        """Collect endorsements that satisfy every policy the transaction falls under.

        Peers whose answers don't go together are asked again: one that hasn't yet committed what a
        client has just been told is committed simulates on older state, and has it soon after.
        """
        for pause_s in CATCH_UP_PAUSES_S:
            try:
                return await self._endorse(request)
            except PeersDisagree:
                await asyncio.sleep(pause_s)
        return await self._endorse(request)

    async def _endorse(self, request: gateway_pb2.EndorseRequest) -> gateway_pb2.EndorseResponse:
        opened = _open(request.proposed_transaction)
        channel_id, name = opened.channel_header.channel_id, opened.planned_chaincode
        channel = self._channels.get(channel_id)
        if channel is None or not _is_defined(channel, name):
            raise GatewayError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "no combination of peers can be derived which satisfy the endorsement policy: "
                f"no metadata was found for chaincode {name} in channel {channel_id}",
            )
        peers = self._able(channel, name)
        check = partial(self._check_endorsement, channel, opened)
        if wanted := list(dict.fromkeys(request.endorsing_organizations)):
            missing = [msp_id for msp_id in wanted if not peers.get(msp_id)]
            if missing:
                raise GatewayError(
                    grpc.StatusCode.UNAVAILABLE,
                    "failed to find any endorsing peers for org(s): " + ", ".join(missing),
                )
            # The client says who endorses, and so who sees the proposal's transient data.
            plan = Plan(tuple(wanted), lambda _organizations: True, fixed=True)
            collected: dict[str, peer_pb2.ProposalResponse] = {}
        else:
            if not any(peers.values()):
                raise GatewayError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"no peers available to endorse chaincode {name} in channel {channel_id}",
                )
            # This gateway's own comes first; any other that runs the contract will do.
            own = self._directory.local.msp_id
            asked = peers.get(own) or [peer for found in peers.values() for peer in found]
            if opened.payload.TransientMap and not peers.get(own):
                raise GatewayError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "no endorsers found in the gateway's organization; retry specifying endorsing "
                    "organization(s) to protect transient data",
                )
            msp_id, first = await _first(asked, request.proposed_transaction, check)
            collected = {msp_id: first}
            plan = self._plan(
                channel, name, first.interest, tuple(peers), bool(opened.payload.TransientMap)
            )
        endorsements = await _collect(plan, peers, collected, request.proposed_transaction, check)
        return gateway_pb2.EndorseResponse(prepared_transaction=_prepare(opened, endorsements))

    def _able(self, channel: ChannelPeer, chaincode: str) -> dict[str, list[EndorsingPeer]]:
        """Endorsing peers by organisation, this peer only if it runs the contract."""
        peers = self._directory.of(channel)
        if (
            self._contracts is not None
            and chaincode not in SYSTEM_CHAINCODES
            and not self._runs(channel, chaincode)
        ):
            own = self._directory.local
            found = {msp_id: others for msp_id, others in peers.items() if msp_id != own.msp_id}
            rest = [peer for peer in peers.get(own.msp_id, ()) if peer is not own]
            return found | ({own.msp_id: rest} if rest else {})
        return peers

    def _runs(self, channel: ChannelPeer, chaincode: str) -> bool:
        """Whether this peer runs a contract; looked up once for each height."""
        assert self._contracts is not None
        key = (channel.channel_id, chaincode)
        packages = len(self._contracts.packages.ids())
        found = self._runnable.get(key)
        if found is None or found[:2] != (channel.ledger.height, packages):
            if len(self._runnable) >= PLANS_KEPT:
                self._runnable.clear()
            runs = self._contracts.runs(channel.ledger, chaincode)
            found = self._runnable[key] = (channel.ledger.height, packages, runs)
        return found[2]

    def _plan(
        self,
        channel: ChannelPeer,
        chaincode: str,
        interest: peer_pb2.ChaincodeInterest,
        organizations: tuple[str, ...],
        has_transient: bool,
    ) -> Plan:
        """As `_make_plan`; remembered, since most transactions of a block need the same."""
        key = (
            channel.channel_id,
            channel.ledger.height,
            chaincode,
            interest.SerializeToString(deterministic=True),
            organizations,
            has_transient,
        )
        plan = self._plans.get(key)
        if plan is None:
            plan = _make_plan(channel, chaincode, interest, organizations, has_transient)
            if len(self._plans) >= PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    async def submit(self, request: gateway_pb2.SubmitRequest) -> gateway_pb2.SubmitResponse:
        """Hand a signed transaction to the orderers; returns when one says it is ordered."""
        if not request.HasField("prepared_transaction"):
            raise GatewayError(
                grpc.StatusCode.INVALID_ARGUMENT, "a prepared transaction is required"
            )
        if not request.prepared_transaction.signature:
            raise GatewayError(
                grpc.StatusCode.INVALID_ARGUMENT, "prepared transaction must be signed"
            )
        channel = self._channels.get(request.channel_id)
        if channel is None:
            raise GatewayError(
                grpc.StatusCode.FAILED_PRECONDITION, f"channel {request.channel_id!r} not found"
            )
        envelope = request.prepared_transaction.SerializeToString()
        self._check_envelope(envelope, channel)
        broadcaster = self._broadcasters.get(request.channel_id)
        if broadcaster is None:
            broadcaster = self._broadcasters[request.channel_id] = Broadcaster(channel)
        try:
            async with asyncio.timeout(SUBMIT_TIMEOUT_S):
                await broadcaster.submit(envelope)
        except BroadcastRefused as error:
            raise GatewayError(grpc.StatusCode.ABORTED, str(error)) from None
        except TooManyWaiting as error:
            raise GatewayError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from None
        except TimeoutError:
            raise GatewayError(
                grpc.StatusCode.UNAVAILABLE,
                "no orderers could successfully process transaction",
                [
                    gateway_pb2.ErrorDetail(address=address, msp_id=msp_id, message=message)
                    for address, msp_id, message in broadcaster.last_errors
                ],
            ) from None
        return gateway_pb2.SubmitResponse()

    async def commit_status(
        self, request: gateway_pb2.SignedCommitStatusRequest
    ) -> gateway_pb2.CommitStatusResponse:
        """Wait until a transaction commits and give its validation code.

        The client's deadline bounds the wait.
        """
        if not request.request:
            raise GatewayError(
                grpc.StatusCode.INVALID_ARGUMENT, "a commit status request is required"
            )
        query = _request(gateway_pb2.CommitStatusRequest, request.request)
        if not query.identity:
            raise GatewayError(grpc.StatusCode.INVALID_ARGUMENT, "no identity provided")
        if not query.channel_id:
            raise GatewayError(grpc.StatusCode.INVALID_ARGUMENT, "no channel ID provided")
        if not query.transaction_id:
            raise GatewayError(
                grpc.StatusCode.INVALID_ARGUMENT, "transaction ID should not be empty"
            )
        channel = self._reader("CommitStatus", query, request)
        with self._waits.held_by(query.identity):
            record = await channel.wait_for_transaction(query.transaction_id)
        return gateway_pb2.CommitStatusResponse(
            result=peer_pb2.TxValidationCode.Name(record.code), block_number=record.block
        )

    async def chaincode_events(
        self, request: gateway_pb2.SignedChaincodeEventsRequest
    ) -> AsyncIterator[gateway_pb2.ChaincodeEventsResponse]:
        """Events of one chaincode's valid transactions, a response for each block that has any."""
        if not request.request:
            raise GatewayError(
                grpc.StatusCode.INVALID_ARGUMENT, "a chaincode events request is required"
            )
        query = _request(gateway_pb2.ChaincodeEventsRequest, request.request)
        channel = self._reader("ChaincodeEvents", query, request)
        with self._streams_each.held_by(query.identity):
            async for response in self._events(channel, query, request):
                yield response

    async def _events(
        self,
        channel: ChannelPeer,
        query: gateway_pb2.ChaincodeEventsRequest,
        request: gateway_pb2.SignedChaincodeEventsRequest,
    ) -> AsyncIterator[gateway_pb2.ChaincodeEventsResponse]:
        config = channel.ledger.config
        number, after = _events_start(channel, query)
        while True:
            await channel.wait_for_height(number + 1)
            block = await channel.committed(number)
            if channel.ledger.config is not config:
                config = channel.ledger.config
                self._reader("ChaincodeEvents", query, request)
            matching = [
                event
                for index, event in block.events
                if index > after and event.chaincode_id == query.chaincode_id
            ]
            after = -1
            if matching:
                yield gateway_pb2.ChaincodeEventsResponse(events=matching, block_number=number)
            number += 1

    def _check_endorsement(
        self,
        channel: ChannelPeer,
        opened: OpenedProposal,
        peer: EndorsingPeer,
        response: peer_pb2.ProposalResponse,
    ) -> None:
        """Raises EndorserFailed unless another peer's answer is its own, and to this proposal.

        A peer that signs wrongly would cost the client its transaction, which commits as invalid.
        """
        if peer is self._directory.local or peer.address == self._directory.local.address:
            return
        endorsement = response.endorsement
        try:
            payload = parse(peer_pb2.ProposalResponsePayload, response.payload, "its result")
            if payload.proposal_hash != opened.proposal_hash:
                raise IdentityError("its result is that of another proposal")
            identity = channel.ledger.config.msps.identity(endorsement.endorser)
            if identity.msp_id != peer.msp_id:
                raise IdentityError(f"it is signed by a member of {identity.msp_id}")
            if not identity.verify(endorsement.signature, response.payload + endorsement.endorser):
                raise IdentityError("its signature does not hold")
        except (WireError, IdentityError) as error:
            _LOGGER.warning("peer %s of %s: bad endorsement: %s", peer.address, peer.msp_id, error)
            raise EndorserFailed(
                grpc.StatusCode.UNAVAILABLE, f"this peer's endorsement is not valid: {error}", True
            ) from None

    def _reader(
        self,
        function: str,
        query: gateway_pb2.CommitStatusRequest | gateway_pb2.ChaincodeEventsRequest,
        signed: (gateway_pb2.SignedCommitStatusRequest | gateway_pb2.SignedChaincodeEventsRequest),
    ) -> ChannelPeer:
        """The channel, if its access list lets the caller ask this (its readers, if unnamed).

        Raises GatewayError(PERMISSION_DENIED).
        """
        channel_id = query.channel_id
        channel = self._channels.get(channel_id)
        try:
            if channel is None:
                raise IdentityError(f"channel {channel_id!r} is unknown to this peer")
            config = channel.ledger.config
            identity = config.msps.identity(query.identity)
            policy = config.policy(config.acls.get(f"gateway/{function}", READERS))
            self._check_member(identity, policy, signed.signature, signed.request)
        except (IdentityError, PolicyNotFoundError) as error:
            raise GatewayError(
                grpc.StatusCode.PERMISSION_DENIED,
                f"failed access check for channel [{channel_id}]: {error}",
            ) from None
        return channel

    def _check_member(
        self, identity: Identity, policy: Policy, signature: bytes, signed: bytes
    ) -> None:
        if not identity.verify(signature, signed):
            raise IdentityError("the signature does not hold")
        check_not_expired(identity, self._clock())
        if not policy.satisfied_by([identity]):
            raise IdentityError("the identity does not satisfy the channel's policy")

    def _check_envelope(self, raw: bytes, channel: ChannelPeer) -> None:
        """Refuse here what the orderer would refuse, since a refusal ends the shared stream."""
        config = channel.ledger.config
        limit = config.orderer.absolute_max_bytes
        status = "REQUEST_ENTITY_TOO_LARGE" if len(raw) > limit else "BAD_REQUEST"
        try:
            if len(raw) > limit:
                raise WireError(f"the envelope has {len(raw)} bytes; the channel allows {limit}")
            opened = open_envelope(raw)
            if opened.channel_header.channel_id != channel.channel_id:
                raise WireError(
                    f"the envelope is for channel {opened.channel_header.channel_id!r}, "
                    f"the request for {channel.channel_id!r}"
                )
            status = "FORBIDDEN"
            self._check_member(
                config.msps.identity(opened.signature_header.creator),
                config.policy("/Channel/Application/Writers"),
                opened.envelope.signature,
                opened.envelope.payload,
            )
        except (WireError, IdentityError) as error:
            raise GatewayError(
                grpc.StatusCode.ABORTED,
                "received unsuccessful response from orderer: "
                f"status={status}, info={error} (checked at the gateway)",
            ) from None


def _request[M: Message](request_type: type[M], raw: bytes) -> M:
    try:
        return parse(request_type, raw, "the request")
    except WireError as error:
        raise GatewayError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None


def _open(signed: peer_pb2.SignedProposal) -> OpenedProposal:
    try:
        opened = open_proposal(signed)
    except WireError as error:
        raise GatewayError(
            grpc.StatusCode.INVALID_ARGUMENT, f"failed to unpack transaction proposal: {error}"
        ) from None
    if not opened.channel_header.channel_id:
        raise GatewayError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "failed to unpack transaction proposal: no channel id provided",
        )
    if not opened.planned_chaincode:
        raise GatewayError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "failed to unpack transaction proposal: no chaincode name is provided, "
            f"channel id [{opened.channel_header.channel_id}]",
        )
    return opened


async def _abort(context: Context, error: GatewayError) -> NoReturn:
    metadata: tuple[tuple[str, bytes], ...] = ()
    if error.details:
        status = rpc_pb2.Status(
            code=error.code.value[0],
            message=str(error),
            details=[
                any_pb2.Any(type_url=DETAIL_TYPE, value=detail.SerializeToString())
                for detail in error.details
            ],
        )
        metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(error.code, str(error), trailing_metadata=metadata)


type EndorsementCheck = Callable[[EndorsingPeer, peer_pb2.ProposalResponse], None]


async def _process(
    peer: EndorsingPeer, proposal: peer_pb2.SignedProposal
) -> peer_pb2.ProposalResponse:
    """Ask one peer; raises EndorserFailed for whatever isn't a success."""
    try:
        async with asyncio.timeout(ENDORSE_TIMEOUT_S):
            response = await peer.ask(proposal)
    except ProposalRefused as error:
        raise EndorserFailed(grpc.StatusCode.FAILED_PRECONDITION, str(error), False) from None
    except TimeoutError:
        message = f"no answer within {ENDORSE_TIMEOUT_S:.0f} s"
        raise EndorserFailed(grpc.StatusCode.UNAVAILABLE, message, True) from None
    except grpc.aio.AioRpcError as error:
        raise EndorserFailed(
            grpc.StatusCode.UNAVAILABLE, shortened(error.details() or error.code().name), True
        ) from None
    except WireError as error:
        raise EndorserFailed(grpc.StatusCode.UNAVAILABLE, str(error), True) from None
    status = response.response.status
    if 200 <= status < ERROR_THRESHOLD:
        return response
    if status == ERROR and not response.payload:
        raise EndorserFailed(
            grpc.StatusCode.ABORTED, shortened(response.response.message, MESSAGE_CHARACTERS), True
        )
    raise EndorserFailed(
        grpc.StatusCode.UNKNOWN,
        shortened(f"chaincode response {status}, {response.response.message}", MESSAGE_CHARACTERS),
        False,
    )


async def _first(
    peers: Sequence[EndorsingPeer], proposal: peer_pb2.SignedProposal, check: EndorsementCheck
) -> tuple[str, peer_pb2.ProposalResponse]:
    """The first of these peers that endorses, by its organisation, and its answer.

    Raises GatewayError.
    """
    details = []
    for peer in peers:
        try:
            response = await _process(peer, proposal)
            check(peer, response)
            return peer.msp_id, response
        except EndorserFailed as failed:
            details.append(peer.detail(failed.message))
            if not failed.retry:
                break
    raise GatewayError(
        grpc.StatusCode.ABORTED,
        "failed to endorse transaction, see attached details for more info",
        details,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Whose endorsements a transaction needs."""

    organizations: tuple[str, ...]
    """Whom the proposal may be shown to; who comes first is asked rather than who comes last."""
    enough: Callable[[tuple[str, ...]], bool]
    """Whether these organisations' endorsements satisfy every policy."""
    fixed: bool = False
    """Whether all of them have to endorse."""

    def layout(self, failed: Collection[str]) -> tuple[str, ...]:
        """Organisations that are enough, none of them superfluous; empty if there are none.

        Taking one after another away needs as many checks as there are organisations, where
        trying all combinations would need millions.
        """
        if self.fixed:
            return () if failed else self.organizations
        chosen = tuple(msp_id for msp_id in self.organizations if msp_id not in failed)
        if not self.enough(chosen):
            return ()
        for msp_id in reversed(chosen):
            rest = tuple(other for other in chosen if other != msp_id)
            if rest and self.enough(rest):
                chosen = rest
        return chosen


async def _collect(
    plan: Plan,
    peers: dict[str, list[EndorsingPeer]],
    collected: dict[str, peer_pb2.ProposalResponse],
    proposal: peer_pb2.SignedProposal,
    check: EndorsementCheck,
) -> list[peer_pb2.ProposalResponse]:
    """Equal answers of organisations that are enough; who fails is replaced if that is possible.

    Who answers differently is named, and so is whose answer the others' were compared with: a
    gateway cannot tell which of them is right.
    """
    details: list[gateway_pb2.ErrorDetail] = []
    failed: set[str] = set()
    differs: list[EndorsingPeer] = []
    refused = False

    async def ask(msp_id: str) -> None:
        nonlocal refused
        for peer in peers[msp_id]:
            try:
                response = await _process(peer, proposal)
                check(peer, response)
            except EndorserFailed as error:
                details.append(peer.detail(error.message))
                refused |= error.code not in _UNREACHABLE
                continue
            if any(response.payload != other.payload for other in collected.values()):
                details.append(peer.detail(MISMATCH))
                differs.append(peer)
                continue
            collected[msp_id] = response
            return
        failed.add(msp_id)

    while layout := plan.layout(failed):
        # The first answer is what the others are compared with, so two are never in a race.
        missing = [msp_id for msp_id in layout if msp_id not in collected]
        if missing and not collected:
            await ask(missing.pop(0))
        await asyncio.gather(*(ask(msp_id) for msp_id in missing))
        if all(msp_id in collected for msp_id in layout):
            return [collected[msp_id] for msp_id in layout]
    if differs:
        details += [
            peers[msp_id][0].detail(f"{MISMATCH}: this is the result that the others' differ from")
            for msp_id in collected
        ]
    disagree = differs or (refused and collected)
    raise (PeersDisagree if disagree else GatewayError)(
        grpc.StatusCode.ABORTED,
        "failed to collect enough transaction endorsements, see attached details for more info",
        details,
    )


def _is_defined(channel: ChannelPeer, chaincode: str) -> bool:
    return chaincode in SYSTEM_CHAINCODES or channel.definition(chaincode) is not None


def _make_plan(
    channel: ChannelPeer,
    chaincode: str,
    interest: peer_pb2.ChaincodeInterest,
    organizations: tuple[str, ...],
    has_transient: bool,
) -> Plan:
    """Who has to endorse what the first peer's simulation touched; raises GatewayError.

    A peer outside a collection can't read it, so it isn't asked to endorse what does. With
    transient data it isn't asked at all: those data are most often what goes into the collection.
    """
    calls = list(interest.chaincodes) or [peer_pb2.ChaincodeCall(name=chaincode)]
    config = channel.ledger.config
    allowed, protected, required = set(organizations), set[str](), set[bytes | None]()
    key_policies = set[bytes]()
    with channel.ledger.view() as view:
        lookup = Policies(view, config)
        for call in calls:
            key_policies.update(one.SerializeToString() for one in call.key_policies)
            wants_none = not call.collection_names and not call.key_policies
            if wants_none or not call.disregard_namespace_policy:
                required.add(lookup.namespace(call.name))
            for collection in call.collection_names:
                required.add(lookup.collection(call.name, collection))
                found = lookup.collection_config(call.name, collection)
                members = member_organizations(found) if found is not None else frozenset()
                if not call.no_private_reads:
                    allowed &= members
                elif has_transient:
                    protected |= set(organizations) - members
    try:
        own = [SignaturePolicy.from_bytes(policy) for policy in key_policies]
    except PolicyError as error:
        raise GatewayError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"no combination of peers can be derived which satisfy the endorsement policy of a "
            f"key that chaincode {chaincode} writes: {error}",
        ) from None
    policies: list[Policy] = [
        *(config.application_policy(policy) for policy in required if policy is not None),
        *own,
    ]
    complete = None not in required

    @cache
    def enough(chosen: tuple[str, ...]) -> bool:
        return complete and all(policy.satisfied_by_peers_of(chosen) for policy in policies)

    plan = Plan(
        tuple(msp_id for msp_id in organizations if msp_id in allowed - protected),
        enough,
    )
    if plan.layout(()):
        return plan
    if protected and enough(tuple(msp_id for msp_id in organizations if msp_id in allowed)):
        raise GatewayError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"chaincode {chaincode} requires endorsement from organisation(s) that are not in the "
            "distribution policy of the private data collection(s); retry specifying trusted "
            "endorsing organizations to protect transient data",
        )
    raise GatewayError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "no combination of peers can be derived which satisfy the endorsement "
        f"policy of chaincode {chaincode}; known organisations: {', '.join(organizations)}",
    )


def _check_limit(present: int, limit: int, what: str) -> None:
    if present >= limit:
        raise GatewayError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"this gateway serves {limit} {what} at once, which is its limit; try again in a "
            "second, or ask another utility's gateway",
        )


def _result(payload: bytes) -> bytes:
    """A query's result; raises WireError where a peer sent something else."""
    response = parse(peer_pb2.ProposalResponsePayload, payload, "the peer's result")
    action = parse(peer_pb2.ChaincodeAction, response.extension, "the peer's result")
    return action.response.payload


def _prepare(
    opened: OpenedProposal, responses: Sequence[peer_pb2.ProposalResponse]
) -> common_pb2.Envelope:
    """The transaction for the client to sign.

    It holds the proposal without its transient data, the result, and the endorsements.
    """
    action = peer_pb2.ChaincodeActionPayload(
        chaincode_proposal_payload=peer_pb2.ChaincodeProposalPayload(
            input=opened.payload.input
        ).SerializeToString(),
        action=peer_pb2.ChaincodeEndorsedAction(
            proposal_response_payload=responses[0].payload,
            endorsements=[response.endorsement for response in responses],
        ),
    )
    transaction = peer_pb2.Transaction(
        actions=[
            peer_pb2.TransactionAction(
                header=opened.header.signature_header, payload=action.SerializeToString()
            )
        ]
    )
    payload = common_pb2.Payload(header=opened.header, data=transaction.SerializeToString())
    return common_pb2.Envelope(payload=payload.SerializeToString())


def _events_start(
    channel: ChannelPeer, query: gateway_pb2.ChaincodeEventsRequest
) -> tuple[int, int]:
    """First block to look into, and the index of the transaction there to skip through (or -1)."""
    if query.after_transaction_id:
        record = channel.ledger.transaction(query.after_transaction_id)
        if record is not None:
            return record.block, record.index
    match query.start_position.WhichOneof("Type"):
        case "specified":
            return query.start_position.specified.number, -1
        case None | "next_commit":
            return channel.ledger.height, -1
        case other:
            raise GatewayError(
                grpc.StatusCode.INVALID_ARGUMENT, f"invalid start position type: {other}"
            )
