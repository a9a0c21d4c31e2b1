import datetime

from . import common_pb2 as _common_pb2
from . import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BroadcastResponse(_message.Message):
    __slots__ = ("status", "info")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    status: _common_pb2.Status
    info: str
    def __init__(self, status: _Optional[_Union[_common_pb2.Status, str]] = ..., info: _Optional[str] = ...) -> None: ...

class SeekNewest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SeekOldest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SeekSpecified(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class SeekNextCommit(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SeekPosition(_message.Message):
    __slots__ = ("newest", "oldest", "specified", "next_commit")
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIELD_NUMBER: _ClassVar[int]
    SPECIFIED_FIELD_NUMBER: _ClassVar[int]
    NEXT_COMMIT_FIELD_NUMBER: _ClassVar[int]
    newest: SeekNewest
    oldest: SeekOldest
    specified: SeekSpecified
    next_commit: SeekNextCommit
    def __init__(self, newest: _Optional[_Union[SeekNewest, _Mapping[str, _Any]]] = ..., oldest: _Optional[_Union[SeekOldest, _Mapping[str, _Any]]] = ..., specified: _Optional[_Union[SeekSpecified, _Mapping[str, _Any]]] = ..., next_commit: _Optional[_Union[SeekNextCommit, _Mapping[str, _Any]]] = ...) -> None: ...

class SeekInfo(_message.Message):
    __slots__ = ("start", "stop", "behavior", "error_response", "content_type")
    class SeekBehavior(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        BLOCK_UNTIL_READY: _ClassVar[SeekInfo.SeekBehavior]
        FAIL_IF_NOT_READY: _ClassVar[SeekInfo.SeekBehavior]
    BLOCK_UNTIL_READY: SeekInfo.SeekBehavior
    FAIL_IF_NOT_READY: SeekInfo.SeekBehavior
    class SeekErrorResponse(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STRICT: _ClassVar[SeekInfo.SeekErrorResponse]
        BEST_EFFORT: _ClassVar[SeekInfo.SeekErrorResponse]
    STRICT: SeekInfo.SeekErrorResponse
    BEST_EFFORT: SeekInfo.SeekErrorResponse
    class SeekContentType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        BLOCK: _ClassVar[SeekInfo.SeekContentType]
        HEADER_WITH_SIG: _ClassVar[SeekInfo.SeekContentType]
    BLOCK: SeekInfo.SeekContentType
    HEADER_WITH_SIG: SeekInfo.SeekContentType
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    BEHAVIOR_FIELD_NUMBER: _ClassVar[int]
    ERROR_RESPONSE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    start: SeekPosition
    stop: SeekPosition
    behavior: SeekInfo.SeekBehavior
    error_response: SeekInfo.SeekErrorResponse
    content_type: SeekInfo.SeekContentType
    def __init__(self, start: _Optional[_Union[SeekPosition, _Mapping[str, _Any]]] = ..., stop: _Optional[_Union[SeekPosition, _Mapping[str, _Any]]] = ..., behavior: _Optional[_Union[SeekInfo.SeekBehavior, str]] = ..., error_response: _Optional[_Union[SeekInfo.SeekErrorResponse, str]] = ..., content_type: _Optional[_Union[SeekInfo.SeekContentType, str]] = ...) -> None: ...

class DeliverResponse(_message.Message):
    __slots__ = ("status", "block")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    status: _common_pb2.Status
    block: _common_pb2.Block
    def __init__(self, status: _Optional[_Union[_common_pb2.Status, str]] = ..., block: _Optional[_Union[_common_pb2.Block, _Mapping[str, _Any]]] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("consensus_request", "submit_request")
    CONSENSUS_REQUEST_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_REQUEST_FIELD_NUMBER: _ClassVar[int]
    consensus_request: ConsensusRequest
    submit_request: SubmitRequest
    def __init__(self, consensus_request: _Optional[_Union[ConsensusRequest, _Mapping[str, _Any]]] = ..., submit_request: _Optional[_Union[SubmitRequest, _Mapping[str, _Any]]] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("submit_res",)
    SUBMIT_RES_FIELD_NUMBER: _ClassVar[int]
    submit_res: SubmitResponse
    def __init__(self, submit_res: _Optional[_Union[SubmitResponse, _Mapping[str, _Any]]] = ...) -> None: ...

class ConsensusRequest(_message.Message):
    __slots__ = ("channel", "payload", "metadata")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    channel: str
    payload: bytes
    metadata: bytes
    def __init__(self, channel: _Optional[str] = ..., payload: _Optional[bytes] = ..., metadata: _Optional[bytes] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("channel", "last_validation_seq", "payload")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    LAST_VALIDATION_SEQ_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    channel: str
    last_validation_seq: int
    payload: _common_pb2.Envelope
    def __init__(self, channel: _Optional[str] = ..., last_validation_seq: _Optional[int] = ..., payload: _Optional[_Union[_common_pb2.Envelope, _Mapping[str, _Any]]] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("channel", "status", "info")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    channel: str
    status: _common_pb2.Status
    info: str
    def __init__(self, channel: _Optional[str] = ..., status: _Optional[_Union[_common_pb2.Status, str]] = ..., info: _Optional[str] = ...) -> None: ...

class ClusterNodeServiceStepRequest(_message.Message):
    __slots__ = ("node_conrequest", "node_tranrequest", "node_authrequest")
    NODE_CONREQUEST_FIELD_NUMBER: _ClassVar[int]
    NODE_TRANREQUEST_FIELD_NUMBER: _ClassVar[int]
    NODE_AUTHREQUEST_FIELD_NUMBER: _ClassVar[int]
    node_conrequest: NodeConsensusRequest
    node_tranrequest: NodeTransactionOrderRequest
    node_authrequest: NodeAuthRequest
    def __init__(self, node_conrequest: _Optional[_Union[NodeConsensusRequest, _Mapping[str, _Any]]] = ..., node_tranrequest: _Optional[_Union[NodeTransactionOrderRequest, _Mapping[str, _Any]]] = ..., node_authrequest: _Optional[_Union[NodeAuthRequest, _Mapping[str, _Any]]] = ...) -> None: ...

class ClusterNodeServiceStepResponse(_message.Message):
    __slots__ = ("tranorder_res",)
    TRANORDER_RES_FIELD_NUMBER: _ClassVar[int]
    tranorder_res: TransactionOrderResponse
    def __init__(self, tranorder_res: _Optional[_Union[TransactionOrderResponse, _Mapping[str, _Any]]] = ...) -> None: ...

class NodeConsensusRequest(_message.Message):
    __slots__ = ("payload", "metadata")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    metadata: bytes
    def __init__(self, payload: _Optional[bytes] = ..., metadata: _Optional[bytes] = ...) -> None: ...

class NodeTransactionOrderRequest(_message.Message):
    __slots__ = ("last_validation_seq", "payload")
    LAST_VALIDATION_SEQ_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    last_validation_seq: int
    payload: _common_pb2.Envelope
    def __init__(self, last_validation_seq: _Optional[int] = ..., payload: _Optional[_Union[_common_pb2.Envelope, _Mapping[str, _Any]]] = ...) -> None: ...

class TransactionOrderResponse(_message.Message):
    __slots__ = ("channel", "tx_id", "status", "info")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    channel: str
    tx_id: str
    status: _common_pb2.Status
    info: str
    def __init__(self, channel: _Optional[str] = ..., tx_id: _Optional[str] = ..., status: _Optional[_Union[_common_pb2.Status, str]] = ..., info: _Optional[str] = ...) -> None: ...

class NodeAuthRequest(_message.Message):
    __slots__ = ("version", "signature", "timestamp", "from_id", "to_id", "session_binding", "channel")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    FROM_ID_FIELD_NUMBER: _ClassVar[int]
    TO_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_BINDING_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    version: int
    signature: bytes
    timestamp: _timestamp_pb2.Timestamp
    from_id: int
    to_id: int
    session_binding: bytes
    channel: str
    def __init__(self, version: _Optional[int] = ..., signature: _Optional[bytes] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping[str, _Any]]] = ..., from_id: _Optional[int] = ..., to_id: _Optional[int] = ..., session_binding: _Optional[bytes] = ..., channel: _Optional[str] = ...) -> None: ...

class ConsensusType(_message.Message):
    __slots__ = ("type", "metadata", "state")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_NORMAL: _ClassVar[ConsensusType.State]
        STATE_MAINTENANCE: _ClassVar[ConsensusType.State]
    STATE_NORMAL: ConsensusType.State
    STATE_MAINTENANCE: ConsensusType.State
    TYPE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    type: str
    metadata: bytes
    state: ConsensusType.State
    def __init__(self, type: _Optional[str] = ..., metadata: _Optional[bytes] = ..., state: _Optional[_Union[ConsensusType.State, str]] = ...) -> None: ...

class BatchSize(_message.Message):
    __slots__ = ("max_message_count", "absolute_max_bytes", "preferred_max_bytes")
    MAX_MESSAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ABSOLUTE_MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_message_count: int
    absolute_max_bytes: int
    preferred_max_bytes: int
    def __init__(self, max_message_count: _Optional[int] = ..., absolute_max_bytes: _Optional[int] = ..., preferred_max_bytes: _Optional[int] = ...) -> None: ...

class BatchTimeout(_message.Message):
    __slots__ = ("timeout",)
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    timeout: str
    def __init__(self, timeout: _Optional[str] = ...) -> None: ...

class KafkaBrokers(_message.Message):
    __slots__ = ("brokers",)
    BROKERS_FIELD_NUMBER: _ClassVar[int]
    brokers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, brokers: _Optional[_Iterable[str]] = ...) -> None: ...

class ChannelRestrictions(_message.Message):
    __slots__ = ("max_count",)
    MAX_COUNT_FIELD_NUMBER: _ClassVar[int]
    max_count: int
    def __init__(self, max_count: _Optional[int] = ...) -> None: ...
