"""Chaincode as a service, the chaincode's side: our contracts for any peer that dials.

A peer opens a stream (`protos.Chaincode/Connect`), we register with the chaincode's package id, and
it sends transactions. A contract runs in a thread; each access to the state is a message to the
peer and its answer. Writes wait until the contract has returned, then go in batches where the peer
takes them: a read never sees the transaction's own writes, so nothing else can tell.

The peer has checked who signed the proposal. What is told here of the creator comes from the
certificate alone: the role is the organizational unit named client, peer, admin or orderer, which
is what a channel's configuration says of it unless that renames the units.
"""

import asyncio
import contextlib
import functools
import logging
import queue
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import batched

import grpc
from cryptography.x509.oid import NameOID
from google.protobuf.message import Message

from consortium.identity.certificates import (
    certificate_attributes,
    certificate_der,
    load_certificate,
)
from consortium.wire import common_pb2, msp_pb2, peer_pb2, queryresult_pb2, services
from consortium.wire.envelopes import WireError, parse

from .api import Chaincode, Creator
from .executor import ERROR, EXECUTION_DEADLINE_S, EventHolder, failure, run_contract
from .requests import ChaincodeMessage
from .simulator import SimulationError

_LOGGER = logging.getLogger(__name__)

THREADS = 16
"""Contracts that run at once, for all peers together."""
MAX_WAITING = 1000
"""Transactions of one peer that run or wait for a thread."""
MAX_PEERS = 64
STOP_GRACE_S = 1.0
_ROLES = ("client", "peer", "admin", "orderer")


class PeerError(SimulationError):
    """The peer refused a request, or is gone."""


class _Proposal:
    """What a contract may know of the proposal that it runs for; raises WireError, ValueError."""

    def __init__(self, signed: peer_pb2.SignedProposal) -> None:
        proposal = parse(peer_pb2.Proposal, signed.proposal_bytes, "the proposal")
        header = parse(common_pb2.Header, proposal.header, "the proposal's header")
        channel = parse(common_pb2.ChannelHeader, header.channel_header, "the channel header")
        signature = parse(
            common_pb2.SignatureHeader, header.signature_header, "the signature header"
        )
        payload = parse(
            peer_pb2.ChaincodeProposalPayload, proposal.payload, "the proposal's payload"
        )
        self.timestamp: int = channel.timestamp.seconds
        self.creator = _creator(signature.creator)
        self.transient = dict(payload.TransientMap)


@functools.lru_cache(maxsize=1024)
def _creator(serialized: bytes) -> Creator:
    identity = parse(msp_pb2.SerializedIdentity, serialized, "the proposal's creator")
    certificate = load_certificate(identity.id_bytes, "the creator's certificate")
    subject = certificate.subject
    units = [u.value for u in subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return Creator(
        msp_id=identity.mspid,
        certificate=certificate_der(certificate),
        common_name=str(names[-1].value) if names else "",
        role=next((role for role in _ROLES if role in units), ""),
        attributes=certificate_attributes(certificate),
    )


class _Context(EventHolder):
    """The contract's `Context` over messages to a peer; used in the contract's thread."""

    def __init__(
        self,
        peer: _Peer,
        opening: peer_pb2.ChaincodeMessage,
        answers: queue.SimpleQueue[peer_pb2.ChaincodeMessage | None],
    ) -> None:
        self.channel_id = opening.channel_id
        self.transaction_id = opening.txid
        self.args = list(parse(peer_pb2.ChaincodeInput, opening.payload, "the call").args)
        proposal = _Proposal(opening.proposal)
        self.timestamp = proposal.timestamp
        self.creator = proposal.creator
        self.transient: Mapping[str, bytes] = proposal.transient
        self._peer = peer
        self._answers = answers
        self._writes: list[peer_pb2.WriteRecord] = []

    # reading

    def get_state(self, key: str) -> bytes | None:
        return self._get(ChaincodeMessage.GET_STATE, peer_pb2.GetState(key=_checked(key)))

    def get_private(self, collection: str, key: str) -> bytes | None:
        return self._get(
            ChaincodeMessage.GET_STATE,
            peer_pb2.GetState(key=_checked(key), collection=_collection(collection)),
        )

    def get_private_hash(self, collection: str, key: str) -> bytes | None:
        return self._get(
            ChaincodeMessage.GET_PRIVATE_DATA_HASH,
            peer_pb2.GetState(key=_checked(key), collection=_collection(collection)),
        )

    def range(self, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        return self._query(peer_pb2.GetStateByRange(startKey=start, endKey=end))

    def range_private(self, collection: str, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        if self._writes:
            raise PeerError(
                "private data can be queried by range only in a transaction that writes nothing; "
                "read single private keys instead"
            )
        return self._query(
            peer_pb2.GetStateByRange(startKey=start, endKey=end, collection=_collection(collection))
        )

    def _get(self, kind: peer_pb2.ChaincodeMessage.Type, request: Message) -> bytes | None:
        # No value on a ledger is empty: an empty one is a deletion.
        return self._ask(kind, request) or None

    def _query(self, request: peer_pb2.GetStateByRange) -> Iterator[tuple[str, bytes]]:
        # The first batch is asked for at once, as a contract inside a peer reads it.
        return self._results(self._ask(ChaincodeMessage.GET_STATE_BY_RANGE, request))

    def _results(self, first: bytes) -> Iterator[tuple[str, bytes]]:
        response = parse(peer_pb2.QueryResponse, first, "the peer's answer")
        while True:
            for result in response.results:
                found = parse(queryresult_pb2.KV, result.resultBytes, "the peer's answer")
                yield found.key, found.value
            if not response.has_more:
                return
            following = self._ask(
                ChaincodeMessage.QUERY_STATE_NEXT, peer_pb2.QueryStateNext(id=response.id)
            )
            response = parse(peer_pb2.QueryResponse, following, "the peer's answer")

    # writing

    def put_state(self, key: str, value: bytes) -> None:
        self._write(peer_pb2.WriteRecord.PUT_STATE, key, value)

    def del_state(self, key: str) -> None:
        self._write(peer_pb2.WriteRecord.DEL_STATE, key)

    def put_private(self, collection: str, key: str, value: bytes) -> None:
        self._write(peer_pb2.WriteRecord.PUT_STATE, key, value, _collection(collection))

    def del_private(self, collection: str, key: str) -> None:
        self._write(peer_pb2.WriteRecord.DEL_STATE, key, collection=_collection(collection))

    def _write(
        self,
        kind: peer_pb2.WriteRecord.Type,
        key: str,
        value: bytes = b"",
        collection: str = "",
    ) -> None:
        self._writes.append(
            peer_pb2.WriteRecord(type=kind, key=_checked(key), value=value, collection=collection)
        )

    def send_writes(self) -> None:
        """Send what the contract wrote, in its order; raises PeerError."""
        limit = self._peer.writes_at_once
        if limit > 1:
            for writes in batched(self._writes, limit, strict=False):
                self._ask(ChaincodeMessage.WRITE_BATCH_STATE, peer_pb2.WriteBatchState(rec=writes))
            return
        for write in self._writes:
            if write.type == peer_pb2.WriteRecord.DEL_STATE:
                self._ask(
                    ChaincodeMessage.DEL_STATE,
                    peer_pb2.DelState(key=write.key, collection=write.collection),
                )
            else:
                self._ask(
                    ChaincodeMessage.PUT_STATE,
                    peer_pb2.PutState(
                        key=write.key, value=write.value, collection=write.collection
                    ),
                )

    def _ask(self, kind: peer_pb2.ChaincodeMessage.Type, request: Message) -> bytes:
        """Send a request and wait for its answer; raises PeerError."""
        self._peer.send_from_thread(
            ChaincodeMessage(
                type=kind,
                payload=request.SerializeToString(),
                txid=self.transaction_id,
                channel_id=self.channel_id,
            )
        )
        try:
            answer = self._answers.get(timeout=EXECUTION_DEADLINE_S)
        except queue.Empty:
            raise PeerError(f"the peer did not answer within {EXECUTION_DEADLINE_S:g} s") from None
        if answer is None:
            raise PeerError("the peer has gone away")
        if answer.type != ChaincodeMessage.RESPONSE:
            raise PeerError(answer.payload.decode(errors="replace"))
        return answer.payload


class _Peer:
    """One peer's stream and the transactions that run for it."""

    def __init__(self, chaincode: Chaincode, threads: ThreadPoolExecutor) -> None:
        self.writes_at_once = 1
        self._chaincode = chaincode
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        # Bounded by what runs: each transaction has one message under way.
        self.outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._running: dict[
            tuple[str, str], queue.SimpleQueue[peer_pb2.ChaincodeMessage | None]
        ] = {}

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        """Take the peer's messages until it hangs up; raises WireError for what is none."""
        async for raw in requests:
            message = parse(ChaincodeMessage, raw, "the peer's message")
            if message.type == ChaincodeMessage.READY:
                offered = parse(
                    peer_pb2.ChaincodeAdditionalParams, message.payload, "the peer's offer"
                )
                self.writes_at_once = offered.max_size_write_batch if offered.use_write_batch else 1
            elif message.type in (ChaincodeMessage.TRANSACTION, ChaincodeMessage.INIT):
                self._start(message)
            elif message.type in (ChaincodeMessage.RESPONSE, ChaincodeMessage.ERROR):
                answers = self._running.get((message.channel_id, message.txid))
                if answers is not None:
                    answers.put(message)

    def hang_up(self) -> None:
        """The peer is gone: whoever waits for it waits no more."""
        for answers in self._running.values():
            answers.put(None)

    def send(self, message: peer_pb2.ChaincodeMessage) -> None:
        """Queue a message for the peer."""
        self.outgoing.put_nowait(message.SerializeToString())

    def send_from_thread(self, message: peer_pb2.ChaincodeMessage) -> None:
        """As `send`, from a contract's thread; raises PeerError once the server has stopped."""
        try:
            self._loop.call_soon_threadsafe(self.outgoing.put_nowait, message.SerializeToString())
        except RuntimeError:
            raise PeerError("the server has stopped") from None

    def _start(self, opening: peer_pb2.ChaincodeMessage) -> None:
        key = (opening.channel_id, opening.txid)
        if key in self._running:
            _LOGGER.warning("%s was sent again while it runs; ignored", opening.txid)
            return
        if len(self._running) >= MAX_WAITING:
            busy = f"{MAX_WAITING} transactions are under way, which is this server's limit"
            self.send(_completed(opening, failure(ERROR, f"{busy}; try again"), None))
            return
        answers: queue.SimpleQueue[peer_pb2.ChaincodeMessage | None] = queue.SimpleQueue()
        self._running[key] = answers
        self._threads.submit(self._run, opening, answers)

    def _run(
        self,
        opening: peer_pb2.ChaincodeMessage,
        answers: queue.SimpleQueue[peer_pb2.ChaincodeMessage | None],
    ) -> None:
        try:
            context = _Context(self, opening, answers)
        except (WireError, ValueError) as error:
            outcome = ChaincodeMessage(
                type=ChaincodeMessage.ERROR,
                txid=opening.txid,
                channel_id=opening.channel_id,
                payload=f"the transaction cannot be run: {error}".encode(),
            )
        else:
            response, event = run_contract(
                self._chaincode, context, context.args, finish=context.send_writes
            )
            outcome = _completed(opening, response, event)
        with contextlib.suppress(RuntimeError):  # the server has stopped: nobody waits
            self._loop.call_soon_threadsafe(self._finish, outcome)

    def _finish(self, outcome: peer_pb2.ChaincodeMessage) -> None:
        del self._running[outcome.channel_id, outcome.txid]
        self.send(outcome)


class ChaincodeServer:
    """Serves one chaincode to any number of peers at one address.

    `package_id` is what peers know it by: the one that their organizations approved.
    """

    def __init__(
        self,
        chaincode: Chaincode,
        package_id: str,
        address: str,
        *,
        credentials: grpc.ServerCredentials | None = None,
        threads: int = THREADS,
    ) -> None:
        self._chaincode = chaincode
        self._package_id = package_id
        self._address = address
        self._credentials = credentials
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="contract")
        self._server: grpc.aio.Server | None = None
        self._peers = 0

    async def start(self) -> int:
        """Listen; returns the port. Raises RuntimeError if the address is taken."""
        server = grpc.aio.server(options=services.NODE_SERVER_OPTIONS)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Connect": grpc.stream_stream_rpc_method_handler(self._connect)
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("protos.Chaincode", handlers),)
        )
        if self._credentials is None:
            port = server.add_insecure_port(self._address)
        else:
            port = server.add_secure_port(self._address, self._credentials)
        await server.start()
        self._server = server
        return port

    async def stop(self) -> None:
        """Hang up on all peers after a second; contracts that still run are left behind."""
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _connect(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> None:
        if self._peers >= MAX_PEERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_PEERS} peers are connected, the limit"
            )
        self._peers += 1
        peer = _Peer(self._chaincode, self._threads)
        package_id = peer_pb2.ChaincodeID(name=self._package_id).SerializeToString()
        peer.send(ChaincodeMessage(type=ChaincodeMessage.REGISTER, payload=package_id))
        writing = asyncio.create_task(_write(context, peer.outgoing))
        try:
            await peer.read(requests)
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            self._peers -= 1
            writing.cancel()
            peer.hang_up()


async def _write(
    context: grpc.aio.ServicerContext[bytes, bytes], outgoing: asyncio.Queue[bytes]
) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while True:
            await context.write(await outgoing.get())


def _completed(
    opening: peer_pb2.ChaincodeMessage,
    response: peer_pb2.Response,
    event: peer_pb2.ChaincodeEvent | None,
) -> peer_pb2.ChaincodeMessage:
    return ChaincodeMessage(
        type=ChaincodeMessage.COMPLETED,
        txid=opening.txid,
        channel_id=opening.channel_id,
        payload=response.SerializeToString(),
        chaincode_event=event,
    )


def _checked(key: str) -> str:
    if not key:
        raise ValueError("a key must not be empty")
    return key


def _collection(name: str) -> str:
    if not name:
        raise ValueError("a collection must be named")
    return name
