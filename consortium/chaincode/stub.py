"""The chaincode's side of one transaction: a contract's `Context` over messages to a peer.

Whatever the messages travel on, a server's gRPC stream or a worker's socket, each access to the
state is a `protos.ChaincodeMessage` to the peer and its answer. Writes wait until the contract has
returned, then go in batches where the peer takes them: a read never sees the transaction's own
writes, so nothing else can tell.

The peer has checked who signed the proposal. What is told here of the creator comes from the
certificate alone: the role is the organizational unit named client, peer, admin or orderer, which
is what a channel's configuration says of it unless that renames the units.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from itertools import batched
from typing import Protocol

from cryptography.x509.oid import NameOID
from google.protobuf.message import Message

from consortium.identity.certificates import (
    CERTIFICATE_FAULTS,
    certificate_attributes,
    certificate_der,
    load_certificate,
)
from consortium.identity.msp import CACHED_IDENTITY_BYTES
from consortium.wire import common_pb2, msp_pb2, peer_pb2, queryresult_pb2
from consortium.wire.envelopes import WireError, parse, shortened

from .api import Answer, Chaincode, Creator
from .executor import EventHolder, run_contract
from .requests import ChaincodeMessage
from .simulator import MAX_RANGE_RESULTS, MAX_WRITE_BYTES, SimulationError, check_write_bytes

_ROLES = ("client", "peer", "admin", "orderer")


class Conversation(Protocol):
    """A way to a peer, for one transaction."""

    @property
    def writes_at_once(self) -> int:
        """How many writes one message may carry; 1 where the peer takes no batches."""

    @property
    def reads_at_once(self) -> int:
        """How many keys one message may ask for; 1 where the peer takes no lists of them."""

    def ask(self, request: peer_pb2.ChaincodeMessage) -> peer_pb2.ChaincodeMessage:
        """Send a request and wait for the answer; raises PeerError where none will come."""


class PeerError(SimulationError):
    """The peer refused a request, or is gone."""


def offered_at_once(ready: peer_pb2.ChaincodeMessage) -> tuple[int, int]:
    """How many writes, and how many reads, one message may hold, by a peer's READY.

    Raises WireError.
    """
    offered = parse(peer_pb2.ChaincodeAdditionalParams, ready.payload, "the peer's offer")
    return (
        offered.max_size_write_batch if offered.use_write_batch else 1,
        offered.max_size_get_multiple_keys if offered.use_get_multiple_keys else 1,
    )


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


def _creator(serialized: bytes) -> Creator:
    # As in an MSP: a thousand of a message's size must not stay in memory.
    if len(serialized) > CACHED_IDENTITY_BYTES:
        return _read_creator(serialized)
    return _cached_creator(serialized)


def _read_creator(serialized: bytes) -> Creator:
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


_cached_creator = functools.lru_cache(maxsize=1024)(_read_creator)


class _Context(EventHolder):
    """The contract's `Context` over messages to a peer; used in the contract's thread."""

    def __init__(
        self,
        conversation: Conversation,
        opening: peer_pb2.ChaincodeMessage,
    ) -> None:
        self.channel_id = opening.channel_id
        self.transaction_id = opening.txid
        self.args = list(parse(peer_pb2.ChaincodeInput, opening.payload, "the call").args)
        proposal = _Proposal(opening.proposal)
        self.timestamp = proposal.timestamp
        self.creator = proposal.creator
        self.transient: Mapping[str, bytes] = proposal.transient
        self._conversation = conversation
        self._writes: list[peer_pb2.WriteRecord] = []
        self._written_bytes = 0
        self._wrote = False

    # reading

    def get_state(self, key: str) -> bytes | None:
        return self._get(ChaincodeMessage.GET_STATE, peer_pb2.GetState(key=_checked(key)))

    def get_private(self, collection: str, key: str) -> bytes | None:
        return self._get(
            ChaincodeMessage.GET_STATE,
            peer_pb2.GetState(key=_checked(key), collection=_collection(collection)),
        )

    def get_privates(self, collection: str, keys: Sequence[str]) -> list[bytes | None]:
        limit = self._conversation.reads_at_once
        if limit <= 1:
            return [self.get_private(collection, key) for key in keys]
        values: list[bytes | None] = []
        for some in batched(map(_checked, keys), limit, strict=False):
            asked = peer_pb2.GetStateMultiple(keys=some, collection=_collection(collection))
            raw = self._ask(ChaincodeMessage.GET_STATE_MULTIPLE, asked)
            found = _answer(peer_pb2.GetStateMultipleResult, raw).values
            if len(found) != len(some):
                raise PeerError(f"the peer was asked for {len(some)} keys and sent {len(found)}")
            values += [value or None for value in found]
        return values

    def get_private_hash(self, collection: str, key: str) -> bytes | None:
        return self._get(
            ChaincodeMessage.GET_PRIVATE_DATA_HASH,
            peer_pb2.GetState(key=_checked(key), collection=_collection(collection)),
        )

    def range(self, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        return self._query(peer_pb2.GetStateByRange(startKey=start, endKey=end))

    def range_private(self, collection: str, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        if self._wrote:
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
        response = _answer(peer_pb2.QueryResponse, first)
        count = 0
        while True:
            count += len(response.results)
            if count > MAX_RANGE_RESULTS or (response.has_more and not response.results):
                raise PeerError(f"the peer's answer to a query has no end: {count} results so far")
            for result in response.results:
                found = _answer(queryresult_pb2.KV, result.resultBytes)
                yield found.key, found.value
            if not response.has_more:
                return
            following = self._ask(
                ChaincodeMessage.QUERY_STATE_NEXT, peer_pb2.QueryStateNext(id=response.id)
            )
            response = _answer(peer_pb2.QueryResponse, following)

    # writing

    def put_state(self, key: str, value: bytes) -> None:
        self._write(peer_pb2.WriteRecord.PUT_STATE, key, value)

    def del_state(self, key: str) -> None:
        self._write(peer_pb2.WriteRecord.DEL_STATE, key)

    def put_private(self, collection: str, key: str, value: bytes) -> None:
        self._write(peer_pb2.WriteRecord.PUT_STATE, key, value, _collection(collection))

    def del_private(self, collection: str, key: str) -> None:
        self._write(peer_pb2.WriteRecord.DEL_STATE, key, collection=_collection(collection))

    def purge_private(self, collection: str, key: str) -> None:
        kind = peer_pb2.WriteRecord.PURGE_PRIVATE_DATA
        self._write(kind, key, collection=_collection(collection))

    def _write(
        self,
        kind: peer_pb2.WriteRecord.Type,
        key: str,
        value: bytes = b"",
        collection: str = "",
    ) -> None:
        self._wrote = True
        self._written_bytes += len(key) + len(value)
        # The peer counts too, but not before all of it has been sent.
        check_write_bytes(self._written_bytes, MAX_WRITE_BYTES)
        self._writes.append(
            peer_pb2.WriteRecord(type=kind, key=_checked(key), value=value, collection=collection)
        )

    def send_writes(self) -> None:
        """Send what the contract wrote, in its order; raises PeerError."""
        written, self._writes = self._writes, []
        limit = self._conversation.writes_at_once
        if limit > 1:
            for writes in batched(written, limit, strict=False):
                self._ask(ChaincodeMessage.WRITE_BATCH_STATE, peer_pb2.WriteBatchState(rec=writes))
            return
        for write in written:
            if write.type == peer_pb2.WriteRecord.DEL_STATE:
                self._ask(
                    ChaincodeMessage.DEL_STATE,
                    peer_pb2.DelState(key=write.key, collection=write.collection),
                )
            elif write.type == peer_pb2.WriteRecord.PURGE_PRIVATE_DATA:
                self._ask(
                    ChaincodeMessage.PURGE_PRIVATE_DATA,
                    peer_pb2.PurgePrivateState(key=write.key, collection=write.collection),
                )
            else:
                self._ask(
                    ChaincodeMessage.PUT_STATE,
                    peer_pb2.PutState(
                        key=write.key, value=write.value, collection=write.collection
                    ),
                )

    # calling

    def call(self, chaincode: str, args: Sequence[bytes], channel: str = "") -> Answer:
        self.send_writes()  # so that the callee's come after them, as in a contract inside a peer
        spec = peer_pb2.ChaincodeSpec(
            chaincode_id=peer_pb2.ChaincodeID(
                name=f"{chaincode}/{channel}" if channel else chaincode
            ),
            input=peer_pb2.ChaincodeInput(args=args),
        )
        raw = self._ask(ChaincodeMessage.INVOKE_CHAINCODE, spec)
        completed = _answer(ChaincodeMessage, raw)
        if completed.type != ChaincodeMessage.COMPLETED:
            raise PeerError(completed.payload.decode(errors="replace"))
        response = _answer(peer_pb2.Response, completed.payload)
        return Answer(response.status, response.message, response.payload)

    def _ask(self, kind: peer_pb2.ChaincodeMessage.Type, request: Message) -> bytes:
        """Send a request and wait for its answer; raises PeerError."""
        answer = self._conversation.ask(
            ChaincodeMessage(
                type=kind,
                payload=request.SerializeToString(),
                txid=self.transaction_id,
                channel_id=self.channel_id,
            )
        )
        if answer.type != ChaincodeMessage.RESPONSE:
            raise PeerError(answer.payload.decode(errors="replace"))
        return answer.payload


def run_transaction(
    chaincode: Chaincode,
    opening: peer_pb2.ChaincodeMessage,
    conversation: Conversation,
) -> peer_pb2.ChaincodeMessage:
    """Run what a TRANSACTION message asks for; the message that ends it, COMPLETED or ERROR."""
    try:
        context = _Context(conversation, opening)
    except CERTIFICATE_FAULTS as error:
        return ChaincodeMessage(
            type=ChaincodeMessage.ERROR,
            txid=opening.txid,
            channel_id=opening.channel_id,
            payload=shortened(f"the transaction cannot be run: {error}").encode(
                errors="backslashreplace"
            ),
        )
    response, event = run_contract(chaincode, context, context.args, finish=context.send_writes)
    return completed(opening, response, event)


def completed(
    opening: peer_pb2.ChaincodeMessage,
    response: peer_pb2.Response,
    event: peer_pb2.ChaincodeEvent | None,
) -> peer_pb2.ChaincodeMessage:
    """The message that ends a transaction with a response."""
    return ChaincodeMessage(
        type=ChaincodeMessage.COMPLETED,
        txid=opening.txid,
        channel_id=opening.channel_id,
        payload=response.SerializeToString(),
        chaincode_event=event,
    )


def _answer[M: Message](kind: type[M], raw: bytes) -> M:
    """What a peer has answered; raises PeerError, for it is not the contract's fault."""
    try:
        return parse(kind, raw, "the peer's answer")
    except WireError as error:
        raise PeerError(str(error)) from None


def _checked(key: str) -> str:
    if not key:
        raise ValueError("a key must not be empty")
    return key


def _collection(name: str) -> str:
    if not name:
        raise ValueError("a collection must be named")
    return name
