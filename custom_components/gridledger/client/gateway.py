"""The Gateway service of Hyperledger Fabric, as a home uses it.

A transaction takes four steps, each of which a caller may take by itself and store in between::

    prepared = client.prepare("energy", "market:Authorise", {...})   # signed proposal, no I/O
    signed = await client.endorse(prepared)                          # peers ran it; we signed
    await client.submit_signed(signed)                               # ordered, or on its way
    status = await client.commit_status(signed.transaction_id)       # valid, or why not

:meth:`GatewayClient.submit` does all four. ``SignedTransaction`` is plain data: store it before
submitting, and after an unknown outcome submit the *same bytes* again or ask by its id; the
ledger takes a transaction id once.
"""

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from .errors import (
    AuthenticationFailed,
    CommitFailed,
    ConnectionFailed,
    ErrorDetail,
    GridLedgerError,
    InvalidInput,
    Timeout,
    TransactionRefused,
)
from .identity import Identity
from .wire import common_pb2, gateway_pb2, orderer_pb2, peer_pb2, rpc_pb2

MESSAGE_LIMIT_BYTES: Final = 100 * 1024 * 1024
ADDRESS_LIMIT: Final = 16
_SERVICE: Final = "/gateway.Gateway/"
_HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
_NONCE_BYTES: Final = 24
_ENDORSER_TRANSACTION: Final = 3  # common.HeaderType

_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    # Finds a half-open connection under a long stream. A server that follows the recommendation
    # hangs up on clients that ping more often than each minute.
    ("grpc.keepalive_time_ms", 240_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
)


type Argument = Mapping[str, Any] | Sequence[bytes] | None


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that each kind of call may take."""

    evaluate_s: float = 15
    endorse_s: float = 30
    submit_s: float = 15
    commit_s: float = 60


@dataclass(frozen=True, slots=True)
class PreparedTransaction:
    """A proposal, signed by its caller and not yet shown to anybody."""

    transaction_id: str
    proposal: bytes
    signature: bytes
    endorsing_organizations: tuple[str, ...] = ()
    raw: bool = False
    """Whether the answer is bytes rather than JSON."""
    identity: Identity | None = None
    """Who proposed it and has to sign it, though a renewed identity may have taken over."""


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """An endorsed transaction signed by its caller: an envelope ready for ordering."""

    transaction_id: str
    envelope: bytes
    result: Any = None


@dataclass(frozen=True, slots=True)
class CommitStatus:
    """What the ledger made of a transaction. ``code`` is Fabric's name, such as ``VALID``."""

    transaction_id: str
    code: str
    block_number: int

    @property
    def valid(self) -> bool:
        """Whether the transaction's writes are in the ledger."""
        return self.code == "VALID"


@dataclass(frozen=True, slots=True)
class Committed:
    """A valid transaction in the ledger, and what its contract answered."""

    transaction_id: str
    block_number: int
    result: Any


@dataclass(frozen=True, slots=True)
class ClockBounds:
    """How far this machine's clock is ahead of a gateway's: between these seconds, surely."""

    least_s: float
    most_s: float


@dataclass(frozen=True, slots=True)
class Event:
    """An event that a contract set in a valid transaction."""

    block_number: int
    transaction_id: str
    chaincode: str
    name: str
    payload: bytes

    def json(self) -> Any:
        """Return the payload as JSON.

        Raises:
            ValueError: it is none.
        """
        return json.loads(self.payload)


def check_addresses(addresses: Sequence[str]) -> None:
    """Check a list of gateways.

    Raises:
        InvalidInput: there is none, there are too many, or one isn't ``host:port``.
    """
    if not 1 <= len(addresses) <= ADDRESS_LIMIT:
        raise InvalidInput(f"give 1 to {ADDRESS_LIMIT} gateway addresses, not {len(addresses)}")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InvalidInput(f"a gateway's address is host:port, not {address!r}")


class GatewayClient:
    """Calls one channel's contracts through the first gateway that can be reached.

    Addresses are ``host:port``. A call that can't reach its gateway moves on to the next address
    and stays there. One whose gateway answers, but reaches no node behind it that could go on,
    asks the others and leaves the connection as it is: other calls and streams may do well there.
    Safe for concurrent use within one event loop.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        channel: str,
        identity: Identity,
        tls_roots_pem: bytes,
        *,
        deadlines: Deadlines | None = None,
    ) -> None:
        """Remember how to connect; nothing is opened until the first call.

        Raises:
            InvalidInput: no address, too many, or one that isn't ``host:port``.
        """
        check_addresses(addresses)
        self.addresses = tuple(addresses)
        self.channel = channel
        self.identity = identity
        self.deadlines = deadlines or Deadlines()
        self._tls_roots_pem = tls_roots_pem
        self._current = 0
        self._connections: dict[str, grpc.aio.Channel] = {}
        self._closed = False

    @property
    def address(self) -> str:
        """The gateway that the next call goes to."""
        return self.addresses[self._current]

    async def __aenter__(self) -> GatewayClient:
        """Use as ``async with``; closes at the end."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls and streams in progress end with ConnectionFailed."""
        self._closed = True
        connections, self._connections = list(self._connections.values()), {}
        await asyncio.gather(*(connection.close(None) for connection in connections))

    # Transactions ---------------------------------------------------------------------------

    def prepare(
        self,
        chaincode: str,
        function: str,
        argument: Argument = None,
        *,
        transient: Mapping[str, bytes] | None = None,
        endorsing_organizations: Collection[str] = (),
    ) -> PreparedTransaction:
        """Build and sign a proposal to call ``function`` (``contract:Name``) of ``chaincode``.

        The energy contracts take one JSON object and answer in JSON. For any other contract give
        its arguments as a sequence of bytes; its answer comes back as bytes.

        ``transient`` reaches the endorsers only and is part of no transaction. The members to
        endorse are the gateway's choice unless named.
        """
        nonce = secrets.token_bytes(_NONCE_BYTES)
        creator = self.identity.serialized
        transaction_id = hashlib.sha256(nonce + creator).hexdigest()
        chaincode_id = peer_pb2.ChaincodeID(name=chaincode)
        now_ns = time.time_ns()
        channel_header = common_pb2.ChannelHeader(
            type=_ENDORSER_TRANSACTION,
            channel_id=self.channel,
            tx_id=transaction_id,
            extension=peer_pb2.ChaincodeHeaderExtension(
                chaincode_id=chaincode_id
            ).SerializeToString(),
        )
        channel_header.timestamp.seconds, channel_header.timestamp.nanos = divmod(now_ns, 10**9)
        invocation = peer_pb2.ChaincodeInvocationSpec(
            chaincode_spec=peer_pb2.ChaincodeSpec(
                chaincode_id=chaincode_id,
                input=peer_pb2.ChaincodeInput(
                    args=[
                        function.encode(),
                        *(
                            [_json_bytes(argument or {})]
                            if argument is None or isinstance(argument, Mapping)
                            else argument
                        ),
                    ]
                ),
            )
        )
        proposal = peer_pb2.Proposal(
            header=common_pb2.Header(
                channel_header=channel_header.SerializeToString(),
                signature_header=common_pb2.SignatureHeader(
                    creator=creator, nonce=nonce
                ).SerializeToString(),
            ).SerializeToString(),
            payload=peer_pb2.ChaincodeProposalPayload(
                input=invocation.SerializeToString(), TransientMap=dict(transient or {})
            ).SerializeToString(),
        ).SerializeToString()
        return PreparedTransaction(
            transaction_id,
            proposal,
            self.identity.sign(proposal),
            tuple(endorsing_organizations),
            raw=not (argument is None or isinstance(argument, Mapping)),
            identity=self.identity,
        )

    async def evaluate(
        self,
        chaincode: str,
        function: str,
        argument: Argument = None,
        *,
        transient: Mapping[str, bytes] | None = None,
        endorsing_organizations: Collection[str] = (),
    ) -> Any:
        """Run a function on one peer, without a transaction, and return its JSON answer.

        Raises:
            TransactionRefused: the contract or the network said no, and why.
            AuthenticationFailed, ConnectionFailed, Timeout: see :mod:`.errors`.
        """
        prepared = self.prepare(chaincode, function, argument, transient=transient)
        response = await self._call(
            "Evaluate",
            gateway_pb2.EvaluateRequest(
                transaction_id=prepared.transaction_id,
                channel_id=self.channel,
                proposed_transaction=_signed_proposal(prepared),
                target_organizations=list(endorsing_organizations),
            ),
            gateway_pb2.EvaluateResponse,
            self.deadlines.evaluate_s,
        )
        return _answer(response.result, raw=prepared.raw)

    async def endorse(self, prepared: PreparedTransaction) -> SignedTransaction:
        """Have the proposal run and endorsed; check that the answer is ours; sign it.

        Raises:
            TransactionRefused: a contract or an endorser said no. Nothing was written.
            AuthenticationFailed, ConnectionFailed, Timeout: nothing was written either.
        """
        response = await self._call(
            "Endorse",
            gateway_pb2.EndorseRequest(
                transaction_id=prepared.transaction_id,
                channel_id=self.channel,
                proposed_transaction=_signed_proposal(prepared),
                endorsing_organizations=list(prepared.endorsing_organizations),
            ),
            gateway_pb2.EndorseResponse,
            self.deadlines.endorse_s,
        )
        envelope = response.prepared_transaction
        result = _checked_result(prepared, envelope.payload)
        envelope.signature = (prepared.identity or self.identity).sign(envelope.payload)
        return SignedTransaction(prepared.transaction_id, envelope.SerializeToString(), result)

    async def submit_signed(self, signed: SignedTransaction) -> None:
        """Hand a signed transaction to the orderers. The same one may be submitted again.

        Raises:
            Timeout, ConnectionFailed: the outcome is unknown; ask :meth:`commit_status`.
            TransactionRefused: the orderers didn't take it.
            InvalidInput: its bytes were damaged since it was signed.
        """
        try:
            envelope = common_pb2.Envelope.FromString(signed.envelope)
        except DecodeError as error:
            raise InvalidInput(
                f"transaction {signed.transaction_id} can't be read any more: {error}"
            ) from error
        try:
            await self._call(
                "Submit",
                gateway_pb2.SubmitRequest(
                    transaction_id=signed.transaction_id,
                    channel_id=self.channel,
                    prepared_transaction=envelope,
                ),
                gateway_pb2.SubmitResponse,
                self.deadlines.submit_s,
            )
        except Timeout as error:
            raise Timeout(str(error), signed.transaction_id) from error

    async def commit_status(
        self, transaction_id: str, *, timeout_s: float | None = None
    ) -> CommitStatus:
        """Wait until the gateway's peer has committed a transaction; return what came of it.

        Raises:
            Timeout: not committed within the deadline (it still may be).
        """
        request = gateway_pb2.CommitStatusRequest(
            transaction_id=transaction_id,
            channel_id=self.channel,
            identity=self.identity.serialized,
        ).SerializeToString()
        try:
            response = await self._call(
                "CommitStatus",
                gateway_pb2.SignedCommitStatusRequest(
                    request=request, signature=self.identity.sign(request)
                ),
                gateway_pb2.CommitStatusResponse,
                self.deadlines.commit_s if timeout_s is None else timeout_s,
            )
        except Timeout as error:
            raise Timeout(str(error), transaction_id) from error
        return CommitStatus(transaction_id, _code_name(response.result), response.block_number)

    async def submit(
        self,
        chaincode: str,
        function: str,
        argument: Argument = None,
        *,
        transient: Mapping[str, bytes] | None = None,
        endorsing_organizations: Collection[str] = (),
    ) -> Committed:
        """Call a function as a transaction and wait until it is in the ledger.

        Raises:
            TransactionRefused: refused before ordering; nothing was written.
            CommitFailed: ordered and found invalid; nothing was written.
            Timeout: with ``transaction_id`` set, the outcome is unknown: ask for it.
            AuthenticationFailed, ConnectionFailed: see :mod:`.errors`.
        """
        prepared = self.prepare(
            chaincode,
            function,
            argument,
            transient=transient,
            endorsing_organizations=endorsing_organizations,
        )
        signed = await self.endorse(prepared)
        try:
            await self.submit_signed(signed)
        except ConnectionFailed as error:
            raise Timeout(
                f"{error}; whether the transaction was taken is unknown", signed.transaction_id
            ) from error
        try:
            status = await self.commit_status(signed.transaction_id)
        except ConnectionFailed as error:
            raise Timeout(f"{error}; the outcome is unknown", signed.transaction_id) from error
        if not status.valid:
            raise CommitFailed(signed.transaction_id, status.code, status.block_number)
        return Committed(signed.transaction_id, status.block_number, signed.result)

    # Events ---------------------------------------------------------------------------------

    async def chaincode_events(
        self,
        chaincode: str,
        *,
        start_block: int | None = None,
        after_transaction_id: str | None = None,
        connected: Callable[[], None] | None = None,
    ) -> AsyncIterator[Event]:
        """Follow a contract's events: from the next commit, or from a checkpoint.

        To go on after an event that was handled, give its block number and transaction id.
        ``connected`` is called once the gateway is reached and asked. The iterator ends
        only by an exception, ConnectionFailed where the stream was cut.
        """
        request = gateway_pb2.ChaincodeEventsRequest(
            channel_id=self.channel,
            chaincode_id=chaincode,
            identity=self.identity.serialized,
            after_transaction_id=after_transaction_id or "",
        )
        if start_block is not None:
            request.start_position.specified.number = start_block
        else:
            request.start_position.next_commit.CopyFrom(orderer_pb2.SeekNextCommit())
        raw = request.SerializeToString()
        address = self.address
        connection = self._connection(address)
        # A server may keep its headers until the first event: only the connection tells in time.
        try:
            async with asyncio.timeout(self.deadlines.evaluate_s):
                await connection.channel_ready()
        except TimeoutError as error:
            await self._move_on(address, connection)
            raise ConnectionFailed(f"the gateway {address} can't be reached") from error
        except grpc.aio.UsageError as error:  # closed while it was being made
            raise ConnectionFailed(f"the connection to {address} was closed") from error
        except asyncio.CancelledError as error:
            raise _connection_closed(error, address) from error
        call = connection.unary_stream(
            _SERVICE + "ChaincodeEvents",
            request_serializer=_serialize,
            response_deserializer=gateway_pb2.ChaincodeEventsResponse.FromString,
        )(gateway_pb2.SignedChaincodeEventsRequest(request=raw, signature=self.identity.sign(raw)))
        try:
            if connected is not None:
                connected()
            async for response in call:
                for event in response.events:
                    yield Event(
                        response.block_number,
                        event.tx_id,
                        event.chaincode_id,
                        event.event_name,
                        event.payload,
                    )
        except grpc.aio.AioRpcError as error:
            failure = _failure(error, address)
            if isinstance(failure, ConnectionFailed):
                await self._move_on(address, connection)
            raise failure from error
        except asyncio.CancelledError as error:
            raise _connection_closed(error, address) from error
        finally:
            call.cancel()
        raise ConnectionFailed(f"the gateway {address} ended the event stream")

    # Clocks ---------------------------------------------------------------------------------

    async def compare_clocks(self) -> list[ClockBounds]:
        """Ask each gateway for its time; return what those that tell it leave possible.

        The time is HTTP's ``date`` of the answer to gRPC's health check, which needs neither an
        identity nor a channel: it comes even where a proposal of our time is refused. Fabric's
        peers tell none, unless a proxy in front of them does. A slow answer says less, never
        something wrong.
        """
        asked = await asyncio.gather(*(self._compare_clock(each) for each in self.addresses))
        return [bounds for bounds in asked if bounds is not None]

    async def _compare_clock(self, address: str) -> ClockBounds | None:
        try:
            async with (
                asyncio.timeout(self.deadlines.evaluate_s),
                self._new_connection(address) as connection,
            ):
                await connection.channel_ready()
                asked_at = time.monotonic()
                check = connection.unary_unary(
                    _HEALTH_CHECK, request_serializer=bytes, response_deserializer=bytes
                )
                said = await check(b"").initial_metadata()
                # Older grpcio's metadata look like a mapping, which they are not.
                told = dict(iter(cast(Iterable[tuple[str, Any]], said)))
                here, took_s = time.time(), time.monotonic() - asked_at
                there = parsedate_to_datetime(told["date"]).timestamp()  # of which a second is cut
        except TimeoutError, grpc.RpcError, grpc.aio.UsageError, KeyError, TypeError, ValueError:
            return None
        return ClockBounds(here - took_s - there - 1, here - there)

    # Connections ----------------------------------------------------------------------------

    def _connection(self, address: str) -> grpc.aio.Channel:
        if self._closed:
            raise ConnectionFailed("this client has been closed")
        if address not in self._connections:
            self._connections[address] = self._new_connection(address)
        return self._connections[address]

    def _new_connection(self, address: str) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            address,
            grpc.ssl_channel_credentials(root_certificates=self._tls_roots_pem),
            options=_CHANNEL_OPTIONS,
        )

    async def leave_gateway(self) -> None:
        """Let the next call go to the next address, where the current one is found too slow.

        A process that hangs keeps its connection, so time alone tells. Streams from there end with
        ConnectionFailed, calls in progress are made again at the next address.
        """
        address = self.address
        if (connection := self._connections.get(address)) is not None:
            await self._move_on(address, connection)

    async def _move_on(self, address: str, connection: grpc.aio.Channel) -> None:
        """Drop a connection that failed, and let the next call try the next address."""
        if self._connections.get(address) is not connection:
            return  # another call has seen to it already
        del self._connections[address]
        if self.address == address:
            self._current = (self._current + 1) % len(self.addresses)
        await connection.close(None)

    async def _call[Answer: Message](
        self, method: str, request: Message, answer: type[Answer], deadline_s: float
    ) -> Answer:
        """Make one call, at each address in turn until one can be reached."""
        failure: GridLedgerError | None = None
        first = self._current
        for address in self.addresses[first:] + self.addresses[:first]:
            connection = self._connection(address)
            call = connection.unary_unary(
                _SERVICE + method,
                request_serializer=_serialize,
                response_deserializer=answer.FromString,
            )
            try:
                return await call(request, timeout=deadline_s)
            except grpc.aio.AioRpcError as error:
                failure = _failure(error, address)
                if not isinstance(failure, ConnectionFailed):
                    raise failure from error
                if not failure.gateway_answered:
                    await self._move_on(address, connection)
            except asyncio.CancelledError as error:
                failure = _connection_closed(error, address)  # by a call that failed before
        assert failure is not None
        raise failure


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _signed_proposal(prepared: PreparedTransaction) -> peer_pb2.SignedProposal:
    return peer_pb2.SignedProposal(proposal_bytes=prepared.proposal, signature=prepared.signature)


def _answer(response: peer_pb2.Response, *, raw: bool) -> Any:
    if raw:
        return response.payload
    if not response.payload:
        return None
    try:
        return json.loads(response.payload)
    except ValueError as error:
        raise GridLedgerError("the contract's answer is not JSON") from error


def _checked_result(prepared: PreparedTransaction, payload: bytes) -> Any:
    """Return the contract's answer from a prepared transaction, if that is what we proposed.

    A gateway is one member's machine: what it hands back for signing must carry our own headers
    and our own call, or a signature given for one act would serve another.
    """
    try:
        proposal = peer_pb2.Proposal.FromString(prepared.proposal)
        header = common_pb2.Header.FromString(proposal.header)
        asked = peer_pb2.ChaincodeProposalPayload.FromString(proposal.payload)
        opened = common_pb2.Payload.FromString(payload)
        transaction = peer_pb2.Transaction.FromString(opened.data)
        if len(transaction.actions) != 1:
            raise GridLedgerError(
                f"the gateway returned a transaction of {len(transaction.actions)} actions, "
                "one was proposed"
            )
        action = peer_pb2.ChaincodeActionPayload.FromString(transaction.actions[0].payload)
        stated = peer_pb2.ChaincodeProposalPayload.FromString(action.chaincode_proposal_payload)
        response_payload = peer_pb2.ProposalResponsePayload.FromString(
            action.action.proposal_response_payload
        )
        chaincode_action = peer_pb2.ChaincodeAction.FromString(response_payload.extension)
    except DecodeError as error:
        raise GridLedgerError("the gateway returned a transaction that can't be read") from error
    if (
        opened.header.channel_header != header.channel_header
        or opened.header.signature_header != header.signature_header
        or stated.input != asked.input
    ):
        raise GridLedgerError("the gateway returned another transaction than the one proposed")
    return _answer(chaincode_action.response, raw=prepared.raw)


def _code_name(code: int) -> str:
    try:
        return peer_pb2.TxValidationCode.Name(code)
    except ValueError:
        return f"CODE_{code}"


def _details(error: grpc.aio.AioRpcError) -> list[ErrorDetail]:
    """Read the gateway's details out of the call's trailing metadata."""
    details = []
    for key, value in cast(Iterable[tuple[str, Any]], error.trailing_metadata() or ()):
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        try:
            for packed in rpc_pb2.Status.FromString(value).details:
                if packed.type_url.endswith("/gateway.ErrorDetail"):
                    detail = gateway_pb2.ErrorDetail.FromString(packed.value)
                    details.append(ErrorDetail(detail.address, detail.msp_id, detail.message))
        except DecodeError:
            continue  # the status and its message still say what matters
    return details


def _failure(error: grpc.aio.AioRpcError, address: str) -> GridLedgerError:
    """Say what a failed call means for its caller."""
    code, said = error.code(), error.details() or error.code().name
    details = _details(error)
    if code is grpc.StatusCode.UNAVAILABLE:
        if details:
            # The gateway is there, the nodes behind it are not. It may have sent a transaction on
            # before it gave up: that is no refusal, and another gateway may reach more.
            return ConnectionFailed(
                f"the gateway {address} reached no node that could go on: {said} "
                f"({'; '.join(f'{each.address}: {each.message}' for each in details)})",
                gateway_answered=True,
            )
        return ConnectionFailed(f"the gateway {address} can't be reached: {said}")
    if code is grpc.StatusCode.CANCELLED:
        # By a server that has too much to do, or stops: no refusal, and another one may answer.
        return ConnectionFailed(f"the gateway {address} dropped the call")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Timeout(f"the gateway {address} did not answer in time: {said}")
    # A gateway answers a foreign identity or a bad signature with these codes, or, where a peer
    # has found it, with Fabric's "access denied".
    refused_identity = "access denied" in f"{said} {' '.join(d.message for d in details)}"
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED) or (
        refused_identity and "chaincode response" not in f"{said} {details}"
    ):
        return AuthenticationFailed(details[0].message if details else said)
    return TransactionRefused(said, details)


def _connection_closed(error: asyncio.CancelledError, address: str) -> ConnectionFailed:
    """Tell a closed connection, which gRPC reports as a cancellation, from a cancelled task.

    Raises:
        CancelledError: the task was cancelled.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise error
    return ConnectionFailed(f"the connection to {address} was closed")
