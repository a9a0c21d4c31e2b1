"""Hypothesis strategies made from the protobuf descriptors: messages that look right, with parts
that are not.

A `bytes` field most often holds another message, which the descriptors do not say: `INSIDE` does.
Strings and numbers are drawn from what the network at hand knows (`Words`) as well as from what
nobody expects.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from consortium.wire import (
    common_pb2,
    discovery_pb2,
    etcdraft_pb2,
    gateway_pb2,
    kvrwset_pb2,
    lifecycle_pb2,
    msp_pb2,
    orderer_pb2,
    peer_pb2,
    raftpb_pb2,
    rwset_pb2,
)

type Kinds = Sequence[type[Message]]

INSIDE: dict[str, Kinds] = {
    "common.Envelope.payload": [common_pb2.Payload],
    "common.Header.channel_header": [common_pb2.ChannelHeader],
    "common.Header.signature_header": [common_pb2.SignatureHeader],
    "common.Payload.data": [
        peer_pb2.Transaction,
        orderer_pb2.SeekInfo,
        common_pb2.ConfigEnvelope,
        common_pb2.ConfigUpdateEnvelope,
    ],
    "common.SignatureHeader.creator": [msp_pb2.SerializedIdentity],
    "common.ChannelHeader.extension": [peer_pb2.ChaincodeHeaderExtension],
    "common.ConfigUpdateEnvelope.config_update": [common_pb2.ConfigUpdate],
    "common.ConfigSignature.signature_header": [common_pb2.SignatureHeader],
    "common.ConfigValue.value": [
        msp_pb2.MSPConfig,
        orderer_pb2.ConsensusType,
        orderer_pb2.BatchSize,
        common_pb2.Capabilities,
        peer_pb2.AnchorPeers,
    ],
    "common.Policy.value": [common_pb2.SignaturePolicyEnvelope, common_pb2.ImplicitMetaPolicy],
    "common.MSPPrincipal.principal": [common_pb2.MSPRole, common_pb2.OrganizationUnit],
    "common.BlockData.data": [common_pb2.Envelope],
    "common.BlockMetadata.metadata": [common_pb2.Metadata],
    "common.MetadataSignature.signature_header": [common_pb2.SignatureHeader],
    "msp.MSPConfig.config": [msp_pb2.FabricMSPConfig],
    "orderer.ConsensusType.metadata": [etcdraft_pb2.ConfigMetadata],
    "orderer.ConsensusRequest.payload": [raftpb_pb2.Message],
    "protos.SignedProposal.proposal_bytes": [peer_pb2.Proposal],
    "protos.Proposal.header": [common_pb2.Header],
    "protos.Proposal.payload": [peer_pb2.ChaincodeProposalPayload],
    "protos.ChaincodeProposalPayload.input": [peer_pb2.ChaincodeInvocationSpec],
    "protos.TransactionAction.header": [common_pb2.SignatureHeader],
    "protos.TransactionAction.payload": [peer_pb2.ChaincodeActionPayload],
    "protos.ChaincodeActionPayload.chaincode_proposal_payload": [peer_pb2.ChaincodeProposalPayload],
    "protos.ChaincodeEndorsedAction.proposal_response_payload": [peer_pb2.ProposalResponsePayload],
    "protos.ProposalResponsePayload.extension": [peer_pb2.ChaincodeAction],
    "protos.ChaincodeAction.results": [rwset_pb2.TxReadWriteSet],
    "protos.ChaincodeAction.events": [peer_pb2.ChaincodeEvent],
    "protos.Endorsement.endorser": [msp_pb2.SerializedIdentity],
    "protos.ChaincodeMessage.payload": [
        peer_pb2.ChaincodeInput,
        peer_pb2.GetState,
        peer_pb2.GetStateByRange,
        peer_pb2.PutState,
        peer_pb2.WriteBatchState,
        peer_pb2.Response,
        peer_pb2.QueryResponse,
        peer_pb2.ChaincodeID,
    ],
    "rwset.NsReadWriteSet.rwset": [kvrwset_pb2.KVRWSet],
    "rwset.CollectionHashedReadWriteSet.hashed_rwset": [kvrwset_pb2.HashedRWSet],
    "rwset.CollectionPvtReadWriteSet.rwset": [kvrwset_pb2.KVRWSet],
    "discovery.SignedRequest.payload": [discovery_pb2.Request],
    "gateway.SignedCommitStatusRequest.request": [gateway_pb2.CommitStatusRequest],
    "gateway.SignedChaincodeEventsRequest.request": [gateway_pb2.ChaincodeEventsRequest],
    "protos.ChaincodeInput.args": [lifecycle_pb2.QueryChaincodeDefinitionArgs],
}
"""What the bytes of a field hold, by the field's full name."""

_BYTES = (
    b"",
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x0a\x02",
    b"x" * 33,
    b"\x30\x06\x02\x01\x01\x02\x01\x01",
)
_STRINGS = ("", "\0", "a/../b", "\U0010ffff", "e" * 300, "_lifecycle", "qscc", "cscc", "%s{0}\n")
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (0, 1, -1, 2**31 - 1, -(2**31)),
    FieldDescriptor.CPPTYPE_UINT32: (0, 1, 2**31, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (0, 1, -1, 2**63 - 1, -(2**63)),
    FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2, 2**63, 2**64 - 1),
}


@dataclass(frozen=True)
class Words:
    """What the network at hand knows, mixed among what nobody expects."""

    strings: tuple[str, ...] = ()
    bytes: tuple[bytes, ...] = ()
    by_field: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values for one field, by its full name; drawn most of the time."""


def messages(kind: type[Message], words: Words, *, depth: int = 9) -> st.SearchStrategy[bytes]:
    """Serialized messages of this type."""
    return _Strategies(words).message(kind.DESCRIPTOR, depth)


class _Strategies:
    def __init__(self, words: Words) -> None:
        self._words = words
        self._made: dict[tuple[str, int], st.SearchStrategy[bytes]] = {}
        self._types = _types()

    def message(self, descriptor: Descriptor, depth: int) -> st.SearchStrategy[bytes]:
        key = (descriptor.full_name, depth)
        if key not in self._made:
            self._made[key] = self._message(descriptor, depth)
        return self._made[key]

    def _message(self, descriptor: Descriptor, depth: int) -> st.SearchStrategy[bytes]:
        members = list(descriptor.fields)

        @st.composite
        def build(draw: st.DrawFn) -> bytes:
            # Mostly whole, so that what lies deep is reached.
            missing = draw(st.sampled_from((0, 0, 0, 0, 0, 0, 1, 2)))
            left_out = {
                draw(st.sampled_from(members)).name for _ in range(missing if members else 0)
            }
            made = self._types[descriptor.full_name]()
            for member in members:
                if member.name in left_out:
                    continue
                one_of = member.containing_oneof
                if one_of is not None and draw(st.integers(0, len(one_of.fields) - 1)):
                    continue
                self._fill(draw, made, member, depth)
            raw = made.SerializeToString()
            if draw(st.integers(0, 60)) == 0:
                place = draw(st.integers(0, len(raw)))
                raw = raw[:place] + draw(st.sampled_from(_BYTES)) + raw[place:]
            return bytes(raw)

        return build()

    def _fill(self, draw: st.DrawFn, made: Message, member: FieldDescriptor, depth: int) -> None:
        if member.message_type is not None and member.message_type.GetOptions().map_entry:
            return self._fill_map(draw, made, member, depth)
        if member.is_repeated:
            values = [
                self._value(draw, member, depth) for _ in range(draw(st.sampled_from((0, 1, 1, 2))))
            ]
            target = getattr(made, member.name)
            if member.message_type is not None:
                for value in values:
                    _merge(target.add(), value)
            else:
                target.extend(values)
            return None
        value = self._value(draw, member, depth)
        if member.message_type is not None:
            sub = getattr(made, member.name)
            sub.SetInParent()
            _merge(sub, value)
        else:
            setattr(made, member.name, value)
        return None

    def _fill_map(
        self, draw: st.DrawFn, made: Message, member: FieldDescriptor, depth: int
    ) -> None:
        assert member.message_type is not None
        entry = member.message_type.fields_by_name
        target = getattr(made, member.name)
        for _ in range(draw(st.sampled_from((0, 1, 2)))):
            key = self._value(draw, entry["key"], depth)
            value = self._value(draw, entry["value"], depth)
            if entry["value"].message_type is not None:
                _merge(target[key], value)
            else:
                target[key] = value

    def _value(self, draw: st.DrawFn, member: FieldDescriptor, depth: int) -> Any:
        known = self._words.by_field.get(member.full_name)
        if known and draw(st.integers(0, 7)):
            return draw(st.sampled_from(known))
        match member.cpp_type:
            case FieldDescriptor.CPPTYPE_MESSAGE:
                assert member.message_type is not None
                return draw(self.message(member.message_type, depth - 1)) if depth > 0 else b""
            case FieldDescriptor.CPPTYPE_STRING if member.type == FieldDescriptor.TYPE_BYTES:
                inside = INSIDE.get(member.full_name)
                if inside and depth > 0 and draw(st.integers(0, 9)):
                    kind = draw(st.sampled_from(inside))
                    return draw(self.message(kind.DESCRIPTOR, depth - 1))
                return draw(st.sampled_from((*_BYTES, *self._words.bytes)))
            case FieldDescriptor.CPPTYPE_STRING:
                return draw(st.sampled_from((*_STRINGS, *self._words.strings)))
            case FieldDescriptor.CPPTYPE_ENUM:
                assert member.enum_type is not None
                known_values = [value.number for value in member.enum_type.values]
                # proto2's enumerations are closed: raftpb's take nothing else.
                unknown = () if member.enum_type.is_closed else (99, -1)
                return draw(st.sampled_from((*known_values, *unknown)))
            case FieldDescriptor.CPPTYPE_BOOL:
                return draw(st.booleans())
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return draw(st.sampled_from((0.0, -1.0, float("inf"), float("nan"))))
            case kind:
                return draw(st.sampled_from(_INTEGERS[kind]))


def _merge(target: Message, raw: bytes) -> None:
    """Take over what was drawn; where it was broken on purpose, as much as can be read."""
    try:
        target.MergeFromString(raw)
    except Exception:
        target.Clear()


@cache
def _types() -> _TypesByName:
    return _TypesByName()


class _TypesByName:
    """Message classes of the consortium's own descriptor pool."""

    def __init__(self) -> None:
        from google.protobuf.message_factory import GetMessageClass

        from consortium.wire._pool import POOL

        self._find: Callable[[str], Any] = POOL.FindMessageTypeByName
        self._class = GetMessageClass

    def __getitem__(self, name: str) -> type[Message]:
        return self._class(self._find(name))
