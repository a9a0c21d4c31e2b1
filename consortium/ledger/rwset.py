"""Opening a block's envelopes: each is parsed once, down to its read-write set.

Parsing finds the faults that need neither a signature nor the state. They are kept with the stage
at which Fabric would report them, since an earlier stage's fault wins (see `validator`).
"""

import hashlib
from dataclasses import dataclass

from google.protobuf.message import DecodeError, Message

from consortium.wire import common_pb2, kvrwset_pb2, peer_pb2, rwset_pb2
from consortium.wire.envelopes import WireError, parse, transaction_id

VALID = peer_pb2.VALID
_NOT_TYPED = -1


@dataclass(frozen=True, slots=True)
class CollectionSet:
    """What a transaction did in a private collection, as hashes."""

    name: str
    hashed: kvrwset_pb2.HashedRWSet
    private_hash: bytes
    """SHA-256 of the collection's `KVRWSet` bytes; empty if nothing was written."""


@dataclass(frozen=True, slots=True)
class NamespaceSet:
    """What a transaction did in a namespace."""

    name: str
    public: kvrwset_pb2.KVRWSet
    collections: tuple[CollectionSet, ...]

    @property
    def writes(self) -> bool:
        """Whether anything is written: keys, hashed keys or the metadata of either."""
        return bool(
            self.public.writes
            or self.public.metadata_writes
            or any(c.hashed.hashed_writes or c.hashed.metadata_writes for c in self.collections)
        )


def parse_rwset(data: bytes) -> tuple[NamespaceSet, ...]:
    """Parse a `TxReadWriteSet` with all that it holds; raises WireError."""
    namespaces = []
    for namespace in parse(rwset_pb2.TxReadWriteSet, data, "the read-write set").ns_rwset:
        name = namespace.namespace
        namespaces.append(
            NamespaceSet(
                name,
                parse(kvrwset_pb2.KVRWSet, namespace.rwset, f"the set of namespace {name!r}"),
                tuple(map(_collection_set, namespace.collection_hashed_rwset)),
            )
        )
    return tuple(namespaces)


def _collection_set(collection: rwset_pb2.CollectionHashedReadWriteSet) -> CollectionSet:
    name = collection.collection_name
    hashed = parse(
        kvrwset_pb2.HashedRWSet, collection.hashed_rwset, f"the hashed set of collection {name!r}"
    )
    # Where nothing is written no policy is asked, so that anybody could have others look for ever
    # for what has this hash, in collections that don't even exist.
    written = hashed.hashed_writes or hashed.metadata_writes
    return CollectionSet(name, hashed, collection.pvt_rwset_hash if written else b"")


@dataclass(slots=True)
class Transaction:
    """One envelope of a block, opened. Codes are `protos.TxValidationCode`."""

    index: int
    type: int = _NOT_TYPED
    channel_id: str = ""
    id: str = ""
    """The transaction id; computed from nonce and creator where the header has none."""
    timestamp_ns: int = 0
    creator: bytes = b""
    signed: bytes = b""
    signature: bytes = b""
    chaincode: str = ""
    endorsed: bytes = b""
    """`ProposalResponsePayload` bytes, which endorsers sign together with their identity."""
    endorsements: tuple[tuple[bytes, bytes], ...] = ()
    """(endorser, signature) pairs."""
    namespaces: tuple[NamespaceSet, ...] = ()
    event: peer_pb2.ChaincodeEvent | None = None
    config: bytes = b""
    """A configuration transaction's `ConfigEnvelope` bytes."""
    fault_before_signature: int = VALID
    fault_before_duplicate: int = VALID
    fault_before_policy: int = VALID
    written: tuple[str, ...] = ()
    """Namespaces whose policy must be met: the invoked chaincode's, then those written."""


def open_transaction(index: int, raw: bytes) -> Transaction:
    """Open an envelope; never raises, faults are kept in the result."""
    transaction = Transaction(index)
    try:
        envelope = common_pb2.Envelope.FromString(raw)
    except DecodeError:
        transaction.fault_before_signature = peer_pb2.INVALID_OTHER_REASON
        return transaction
    try:
        payload = common_pb2.Payload.FromString(envelope.payload)
    except DecodeError:
        transaction.fault_before_signature = peer_pb2.BAD_PAYLOAD
        return transaction
    transaction.signed = envelope.payload
    transaction.signature = envelope.signature
    header = _common_header(transaction, payload)
    if transaction.type == common_pb2.CONFIG:
        transaction.config = payload.data
    if header is None:
        transaction.fault_before_signature = peer_pb2.BAD_COMMON_HEADER
    elif header.type == common_pb2.ENDORSER_TRANSACTION:
        _open_endorsed(transaction, payload, header)
    elif header.type != common_pb2.CONFIG:
        transaction.fault_before_duplicate = peer_pb2.UNSUPPORTED_TX_PAYLOAD
    return transaction


def _common_header(
    transaction: Transaction, payload: common_pb2.Payload
) -> common_pb2.ChannelHeader | None:
    """The channel header, or None if either header is unusable; fills in what it says."""
    try:
        header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
        signature_header = common_pb2.SignatureHeader.FromString(payload.header.signature_header)
    except DecodeError:
        return None
    transaction.type = header.type
    transaction.channel_id = header.channel_id
    transaction.timestamp_ns = header.timestamp.seconds * 1_000_000_000 + header.timestamp.nanos
    transaction.creator = signature_header.creator
    transaction.id = header.tx_id or transaction_id(
        signature_header.nonce, signature_header.creator
    )
    known = (common_pb2.ENDORSER_TRANSACTION, common_pb2.CONFIG_UPDATE, common_pb2.CONFIG)
    if not payload.HasField("header") or header.type not in known or header.epoch != 0:
        return None
    if not signature_header.nonce or not signature_header.creator:
        return None
    if header.type == common_pb2.ENDORSER_TRANSACTION and header.tx_id != transaction_id(
        signature_header.nonce, signature_header.creator
    ):
        transaction.fault_before_duplicate = peer_pb2.BAD_PROPOSAL_TXID
    return header


def _open_endorsed(
    transaction: Transaction, payload: common_pb2.Payload, header: common_pb2.ChannelHeader
) -> None:
    """Open an endorser transaction's single action."""
    fault = peer_pb2.INVALID_ENDORSER_TRANSACTION
    try:
        actions = peer_pb2.Transaction.FromString(payload.data).actions
        if len(actions) == 1:
            signature_header = common_pb2.SignatureHeader.FromString(actions[0].header)
            action = peer_pb2.ChaincodeActionPayload.FromString(actions[0].payload)
            endorsed = action.action.proposal_response_payload
            response = peer_pb2.ProposalResponsePayload.FromString(endorsed)
            proposal_hash = hashlib.sha256(
                payload.header.channel_header
                + actions[0].header
                + action.chaincode_proposal_payload
            ).digest()
            if (
                signature_header.nonce
                and signature_header.creator
                and action.chaincode_proposal_payload
                and proposal_hash == response.proposal_hash
            ):
                fault = VALID
    except DecodeError:
        pass
    if fault != VALID:
        transaction.fault_before_duplicate = transaction.fault_before_duplicate or fault
        return
    transaction.endorsed = endorsed
    transaction.endorsements = tuple(
        (endorsement.endorser, endorsement.signature) for endorsement in action.action.endorsements
    )
    transaction.fault_before_policy = _open_response(transaction, header, response)


def _open_response(
    transaction: Transaction,
    header: common_pb2.ChannelHeader,
    response: peer_pb2.ProposalResponsePayload,
) -> int:
    """Open what the endorsers signed; the code of its first fault, in Fabric's order."""
    extension = _try(peer_pb2.ChaincodeHeaderExtension, header.extension)
    if extension is None:
        return peer_pb2.BAD_HEADER_EXTENSION
    action = _try(peer_pb2.ChaincodeAction, response.extension)
    if action is None or not response.extension:
        return peer_pb2.BAD_RESPONSE_PAYLOAD
    try:
        transaction.namespaces = parse_rwset(action.results)
    except WireError:
        return peer_pb2.BAD_RWSET
    if not extension.HasField("chaincode_id") or not action.HasField("chaincode_id"):
        return peer_pb2.INVALID_OTHER_REASON
    name = extension.chaincode_id.name
    if not name or name != action.chaincode_id.name or not action.chaincode_id.version:
        return peer_pb2.INVALID_CHAINCODE
    transaction.chaincode = name
    if action.events:
        event = _try(peer_pb2.ChaincodeEvent, action.events)
        if event is None or event.chaincode_id != name:
            return peer_pb2.INVALID_OTHER_REASON
        transaction.event = event
    names = [namespace.name for namespace in transaction.namespaces]
    if len(set(names)) != len(names) or not all(map(_is_public, names)):
        return peer_pb2.ILLEGAL_WRITESET
    transaction.written = tuple(
        dict.fromkeys([name, *(n.name for n in transaction.namespaces if n.writes)])
    )
    return VALID


def _is_public(namespace: str) -> bool:
    """Whether it can't be taken for a collection's, in which `state` keeps hashes and values.

    Who has read there what members alone hold would be judged otherwise by each peer.
    """
    return "$$" not in namespace and "\0" not in namespace


def _try[M: Message](message_type: type[M], data: bytes) -> M | None:
    try:
        return message_type.FromString(data)
    except DecodeError:
        return None
