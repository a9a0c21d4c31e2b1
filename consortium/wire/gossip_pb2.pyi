from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("payload", "signature", "secret_envelope")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SECRET_ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    signature: bytes
    secret_envelope: SecretEnvelope
    def __init__(self, payload: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., secret_envelope: _Optional[_Union[SecretEnvelope, _Mapping[str, _Any]]] = ...) -> None: ...

class SecretEnvelope(_message.Message):
    __slots__ = ("payload", "signature")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    signature: bytes
    def __init__(self, payload: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Secret(_message.Message):
    __slots__ = ("internalEndpoint",)
    INTERNALENDPOINT_FIELD_NUMBER: _ClassVar[int]
    internalEndpoint: str
    def __init__(self, internalEndpoint: _Optional[str] = ...) -> None: ...

class GossipMessage(_message.Message):
    __slots__ = ("nonce", "channel", "tag", "alive_msg", "state_info")
    class Tag(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNDEFINED: _ClassVar[GossipMessage.Tag]
        EMPTY: _ClassVar[GossipMessage.Tag]
        ORG_ONLY: _ClassVar[GossipMessage.Tag]
        CHAN_ONLY: _ClassVar[GossipMessage.Tag]
        CHAN_AND_ORG: _ClassVar[GossipMessage.Tag]
        CHAN_OR_ORG: _ClassVar[GossipMessage.Tag]
    UNDEFINED: GossipMessage.Tag
    EMPTY: GossipMessage.Tag
    ORG_ONLY: GossipMessage.Tag
    CHAN_ONLY: GossipMessage.Tag
    CHAN_AND_ORG: GossipMessage.Tag
    CHAN_OR_ORG: GossipMessage.Tag
    NONCE_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    ALIVE_MSG_FIELD_NUMBER: _ClassVar[int]
    STATE_INFO_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    channel: bytes
    tag: GossipMessage.Tag
    alive_msg: AliveMessage
    state_info: StateInfo
    def __init__(self, nonce: _Optional[int] = ..., channel: _Optional[bytes] = ..., tag: _Optional[_Union[GossipMessage.Tag, str]] = ..., alive_msg: _Optional[_Union[AliveMessage, _Mapping[str, _Any]]] = ..., state_info: _Optional[_Union[StateInfo, _Mapping[str, _Any]]] = ...) -> None: ...

class StateInfo(_message.Message):
    __slots__ = ("timestamp", "pki_id", "channel_MAC", "properties")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    PKI_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_MAC_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    timestamp: PeerTime
    pki_id: bytes
    channel_MAC: bytes
    properties: Properties
    def __init__(self, timestamp: _Optional[_Union[PeerTime, _Mapping[str, _Any]]] = ..., pki_id: _Optional[bytes] = ..., channel_MAC: _Optional[bytes] = ..., properties: _Optional[_Union[Properties, _Mapping[str, _Any]]] = ...) -> None: ...

class Properties(_message.Message):
    __slots__ = ("ledger_height", "left_channel", "chaincodes")
    LEDGER_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    LEFT_CHANNEL_FIELD_NUMBER: _ClassVar[int]
    CHAINCODES_FIELD_NUMBER: _ClassVar[int]
    ledger_height: int
    left_channel: bool
    chaincodes: _containers.RepeatedCompositeFieldContainer[Chaincode]
    def __init__(self, ledger_height: _Optional[int] = ..., left_channel: bool = ..., chaincodes: _Optional[_Iterable[_Union[Chaincode, _Mapping[str, _Any]]]] = ...) -> None: ...

class AliveMessage(_message.Message):
    __slots__ = ("membership", "timestamp", "identity")
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    membership: Member
    timestamp: PeerTime
    identity: bytes
    def __init__(self, membership: _Optional[_Union[Member, _Mapping[str, _Any]]] = ..., timestamp: _Optional[_Union[PeerTime, _Mapping[str, _Any]]] = ..., identity: _Optional[bytes] = ...) -> None: ...

class PeerTime(_message.Message):
    __slots__ = ("inc_num", "seq_num")
    INC_NUM_FIELD_NUMBER: _ClassVar[int]
    SEQ_NUM_FIELD_NUMBER: _ClassVar[int]
    inc_num: int
    seq_num: int
    def __init__(self, inc_num: _Optional[int] = ..., seq_num: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("endpoint", "metadata", "pki_id")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PKI_ID_FIELD_NUMBER: _ClassVar[int]
    endpoint: str
    metadata: bytes
    pki_id: bytes
    def __init__(self, endpoint: _Optional[str] = ..., metadata: _Optional[bytes] = ..., pki_id: _Optional[bytes] = ...) -> None: ...

class Chaincode(_message.Message):
    __slots__ = ("name", "version", "metadata")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    metadata: bytes
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., metadata: _Optional[bytes] = ...) -> None: ...

class PrivatePayload(_message.Message):
    __slots__ = ("collection_name", "namespace", "tx_id", "private_rwset", "private_sim_height")
    COLLECTION_NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_RWSET_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_SIM_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    collection_name: str
    namespace: str
    tx_id: str
    private_rwset: bytes
    private_sim_height: int
    def __init__(self, collection_name: _Optional[str] = ..., namespace: _Optional[str] = ..., tx_id: _Optional[str] = ..., private_rwset: _Optional[bytes] = ..., private_sim_height: _Optional[int] = ...) -> None: ...

class RemotePvtDataRequest(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedCompositeFieldContainer[PvtDataDigest]
    def __init__(self, digests: _Optional[_Iterable[_Union[PvtDataDigest, _Mapping[str, _Any]]]] = ...) -> None: ...

class PvtDataDigest(_message.Message):
    __slots__ = ("tx_id", "namespace", "collection", "block_seq", "seq_in_block")
    TX_ID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SEQ_FIELD_NUMBER: _ClassVar[int]
    SEQ_IN_BLOCK_FIELD_NUMBER: _ClassVar[int]
    tx_id: str
    namespace: str
    collection: str
    block_seq: int
    seq_in_block: int
    def __init__(self, tx_id: _Optional[str] = ..., namespace: _Optional[str] = ..., collection: _Optional[str] = ..., block_seq: _Optional[int] = ..., seq_in_block: _Optional[int] = ...) -> None: ...

class RemotePvtDataResponse(_message.Message):
    __slots__ = ("elements",)
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    elements: _containers.RepeatedCompositeFieldContainer[PvtDataElement]
    def __init__(self, elements: _Optional[_Iterable[_Union[PvtDataElement, _Mapping[str, _Any]]]] = ...) -> None: ...

class PvtDataElement(_message.Message):
    __slots__ = ("digest", "payload")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    digest: PvtDataDigest
    payload: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, digest: _Optional[_Union[PvtDataDigest, _Mapping[str, _Any]]] = ..., payload: _Optional[_Iterable[bytes]] = ...) -> None: ...
