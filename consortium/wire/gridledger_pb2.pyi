from . import gossip_pb2 as _gossip_pb2
from . import orderer_pb2 as _orderer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeRequest(_message.Message):
    __slots__ = ("payload", "identity", "signature")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    identity: bytes
    signature: bytes
    def __init__(self, payload: _Optional[bytes] = ..., identity: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class PrivateDataRequest(_message.Message):
    __slots__ = ("channel_id", "tls_certificate_hash", "push", "pull")
    CHANNEL_ID_FIELD_NUMBER: _ClassVar[int]
    TLS_CERTIFICATE_HASH_FIELD_NUMBER: _ClassVar[int]
    PUSH_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    channel_id: str
    tls_certificate_hash: bytes
    push: PrivateDataPush
    pull: _gossip_pb2.RemotePvtDataRequest
    def __init__(self, channel_id: _Optional[str] = ..., tls_certificate_hash: _Optional[bytes] = ..., push: _Optional[_Union[PrivateDataPush, _Mapping[str, _Any]]] = ..., pull: _Optional[_Union[_gossip_pb2.RemotePvtDataRequest, _Mapping[str, _Any]]] = ...) -> None: ...

class PrivateDataPush(_message.Message):
    __slots__ = ("payloads",)
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    payloads: _containers.RepeatedCompositeFieldContainer[_gossip_pb2.PrivatePayload]
    def __init__(self, payloads: _Optional[_Iterable[_Union[_gossip_pb2.PrivatePayload, _Mapping[str, _Any]]]] = ...) -> None: ...

class PrivateDataPushed(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EnvelopeBatch(_message.Message):
    __slots__ = ("envelopes",)
    ENVELOPES_FIELD_NUMBER: _ClassVar[int]
    envelopes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, envelopes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class BroadcastAnswers(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[_orderer_pb2.BroadcastResponse]
    def __init__(self, answers: _Optional[_Iterable[_Union[_orderer_pb2.BroadcastResponse, _Mapping[str, _Any]]]] = ...) -> None: ...

class RecallRequest(_message.Message):
    __slots__ = ("claims",)
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    claims: _containers.RepeatedCompositeFieldContainer[RecallClaim]
    def __init__(self, claims: _Optional[_Iterable[_Union[RecallClaim, _Mapping[str, _Any]]]] = ...) -> None: ...

class RecallClaim(_message.Message):
    __slots__ = ("channel", "raft_id", "incarnation", "start", "process")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    RAFT_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    channel: str
    raft_id: int
    incarnation: bytes
    start: int
    process: bytes
    def __init__(self, channel: _Optional[str] = ..., raft_id: _Optional[int] = ..., incarnation: _Optional[bytes] = ..., start: _Optional[int] = ..., process: _Optional[bytes] = ...) -> None: ...

class RecallResponse(_message.Message):
    __slots__ = ("memories",)
    MEMORIES_FIELD_NUMBER: _ClassVar[int]
    memories: _containers.RepeatedCompositeFieldContainer[RecallMemory]
    def __init__(self, memories: _Optional[_Iterable[_Union[RecallMemory, _Mapping[str, _Any]]]] = ...) -> None: ...

class RecallMemory(_message.Message):
    __slots__ = ("channel", "member", "incarnation", "start", "process", "term", "acknowledged_term", "acknowledged_index", "vote_term", "raft_id", "sent_term", "sent_index", "acknowledged_log_term")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_TERM_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_INDEX_FIELD_NUMBER: _ClassVar[int]
    VOTE_TERM_FIELD_NUMBER: _ClassVar[int]
    RAFT_ID_FIELD_NUMBER: _ClassVar[int]
    SENT_TERM_FIELD_NUMBER: _ClassVar[int]
    SENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_LOG_TERM_FIELD_NUMBER: _ClassVar[int]
    channel: str
    member: bool
    incarnation: bytes
    start: int
    process: bytes
    term: int
    acknowledged_term: int
    acknowledged_index: int
    vote_term: int
    raft_id: int
    sent_term: int
    sent_index: int
    acknowledged_log_term: int
    def __init__(self, channel: _Optional[str] = ..., member: bool = ..., incarnation: _Optional[bytes] = ..., start: _Optional[int] = ..., process: _Optional[bytes] = ..., term: _Optional[int] = ..., acknowledged_term: _Optional[int] = ..., acknowledged_index: _Optional[int] = ..., vote_term: _Optional[int] = ..., raft_id: _Optional[int] = ..., sent_term: _Optional[int] = ..., sent_index: _Optional[int] = ..., acknowledged_log_term: _Optional[int] = ...) -> None: ...

class OrdererAct(_message.Message):
    __slots__ = ("organization", "status", "transfer", "join", "remove")
    ORGANIZATION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    organization: str
    status: OrdererStatusQuery
    transfer: TransferLeadership
    join: bytes
    remove: str
    def __init__(self, organization: _Optional[str] = ..., status: _Optional[_Union[OrdererStatusQuery, _Mapping[str, _Any]]] = ..., transfer: _Optional[_Union[TransferLeadership, _Mapping[str, _Any]]] = ..., join: _Optional[bytes] = ..., remove: _Optional[str] = ...) -> None: ...

class OrdererStatusQuery(_message.Message):
    __slots__ = ("channel",)
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    channel: str
    def __init__(self, channel: _Optional[str] = ...) -> None: ...

class TransferLeadership(_message.Message):
    __slots__ = ("channel", "to")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    channel: str
    to: int
    def __init__(self, channel: _Optional[str] = ..., to: _Optional[int] = ...) -> None: ...

class OrdererAnswer(_message.Message):
    __slots__ = ("channels",)
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    channels: _containers.RepeatedCompositeFieldContainer[OrdererChannel]
    def __init__(self, channels: _Optional[_Iterable[_Union[OrdererChannel, _Mapping[str, _Any]]]] = ...) -> None: ...

class OrdererChannel(_message.Message):
    __slots__ = ("name", "height", "status", "consensus_relation", "raft_id", "role", "leader", "term", "config_sequence", "problem", "members")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CONSENSUS_RELATION_FIELD_NUMBER: _ClassVar[int]
    RAFT_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    height: int
    status: str
    consensus_relation: str
    raft_id: int
    role: str
    leader: int
    term: int
    config_sequence: int
    problem: str
    members: _containers.RepeatedCompositeFieldContainer[OrdererMember]
    def __init__(self, name: _Optional[str] = ..., height: _Optional[int] = ..., status: _Optional[str] = ..., consensus_relation: _Optional[str] = ..., raft_id: _Optional[int] = ..., role: _Optional[str] = ..., leader: _Optional[int] = ..., term: _Optional[int] = ..., config_sequence: _Optional[int] = ..., problem: _Optional[str] = ..., members: _Optional[_Iterable[_Union[OrdererMember, _Mapping[str, _Any]]]] = ...) -> None: ...

class OrdererMember(_message.Message):
    __slots__ = ("raft_id", "address", "part", "active", "matched", "last", "certificate_hash")
    RAFT_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_HASH_FIELD_NUMBER: _ClassVar[int]
    raft_id: int
    address: str
    part: str
    active: bool
    matched: int
    last: int
    certificate_hash: bytes
    def __init__(self, raft_id: _Optional[int] = ..., address: _Optional[str] = ..., part: _Optional[str] = ..., active: bool = ..., matched: _Optional[int] = ..., last: _Optional[int] = ..., certificate_hash: _Optional[bytes] = ...) -> None: ...
