"""The generated messages know every field a real Fabric network sends, and keep to themselves."""

import importlib
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from consortium.wire import (
    common_pb2,
    etcdraft_pb2,
    gateway_pb2,
    kvrwset_pb2,
    lifecycle_pb2,
    msp_pb2,
    orderer_pb2,
    peer_pb2,
    rpc_pb2,
    rwset_pb2,
)

ROOT = Path(__file__).resolve().parents[3]
RECORDED = ROOT / "tests/data/fabric/recorded"
WIRE = ROOT / "consortium/wire"
CLIENT_WIRE = ROOT / "custom_components/gridledger/client/wire"

# Bytes fields that always hold one serialized message.
NESTED: dict[str, type[Message]] = {
    "common.Envelope.payload": common_pb2.Payload,
    "common.Header.channel_header": common_pb2.ChannelHeader,
    "common.Header.signature_header": common_pb2.SignatureHeader,
    "common.SignatureHeader.creator": msp_pb2.SerializedIdentity,
    "common.ConfigUpdateEnvelope.config_update": common_pb2.ConfigUpdate,
    "common.ConfigSignature.signature_header": common_pb2.SignatureHeader,
    "common.MetadataSignature.signature_header": common_pb2.SignatureHeader,
    "common.OrdererBlockMetadata.consenter_metadata": etcdraft_pb2.BlockMetadata,
    "msp.MSPConfig.config": msp_pb2.FabricMSPConfig,
    "orderer.ConsensusType.metadata": etcdraft_pb2.ConfigMetadata,
    "protos.SignedProposal.proposal_bytes": peer_pb2.Proposal,
    "protos.Proposal.header": common_pb2.Header,
    "protos.Proposal.payload": peer_pb2.ChaincodeProposalPayload,
    "protos.ChaincodeProposalPayload.input": peer_pb2.ChaincodeInvocationSpec,
    "protos.TransactionAction.header": common_pb2.SignatureHeader,
    "protos.TransactionAction.payload": peer_pb2.ChaincodeActionPayload,
    "protos.ChaincodeActionPayload.chaincode_proposal_payload": peer_pb2.ChaincodeProposalPayload,
    "protos.ChaincodeEndorsedAction.proposal_response_payload": peer_pb2.ProposalResponsePayload,
    "protos.ProposalResponse.payload": peer_pb2.ProposalResponsePayload,
    "protos.ProposalResponsePayload.extension": peer_pb2.ChaincodeAction,
    "protos.Endorsement.endorser": msp_pb2.SerializedIdentity,
    "protos.ChaincodeAction.results": rwset_pb2.TxReadWriteSet,
    "protos.ChaincodeAction.events": peer_pb2.ChaincodeEvent,
    "rwset.NsReadWriteSet.rwset": kvrwset_pb2.KVRWSet,
    "rwset.CollectionHashedReadWriteSet.hashed_rwset": kvrwset_pb2.HashedRWSet,
}

PAYLOADS: dict[int, type[Message]] = {
    common_pb2.CONFIG: common_pb2.ConfigEnvelope,
    common_pb2.CONFIG_UPDATE: common_pb2.ConfigUpdateEnvelope,
    common_pb2.ENDORSER_TRANSACTION: peer_pb2.Transaction,
}

CONFIG_VALUES: dict[str, type[Message]] = {
    "ACLs": peer_pb2.ACLs,
    "AnchorPeers": peer_pb2.AnchorPeers,
    "BatchSize": orderer_pb2.BatchSize,
    "BatchTimeout": orderer_pb2.BatchTimeout,
    "BlockDataHashingStructure": common_pb2.BlockDataHashingStructure,
    "Capabilities": common_pb2.Capabilities,
    "ChannelRestrictions": orderer_pb2.ChannelRestrictions,
    "ConsensusType": orderer_pb2.ConsensusType,
    "Consortium": common_pb2.Consortium,
    "Endpoints": common_pb2.OrdererAddresses,
    "HashingAlgorithm": common_pb2.HashingAlgorithm,
    "MSP": msp_pb2.MSPConfig,
    "OrdererAddresses": common_pb2.OrdererAddresses,
    "Orderers": common_pb2.Orderers,
}

POLICIES: dict[int, type[Message]] = {
    common_pb2.Policy.SIGNATURE: common_pb2.SignaturePolicyEnvelope,
    common_pb2.Policy.IMPLICIT_META: common_pb2.ImplicitMetaPolicy,
}

PRINCIPALS: dict[int, type[Message]] = {
    common_pb2.MSPPrincipal.ROLE: common_pb2.MSPRole,
    common_pb2.MSPPrincipal.ORGANIZATION_UNIT: common_pb2.OrganizationUnit,
    common_pb2.MSPPrincipal.IDENTITY: msp_pb2.SerializedIdentity,
}


class UnknownFieldError(Exception):
    """A message holds a field that its .proto file lacks."""


# How the recorded chain breaks its own transactions: error here -> what it says about them.
BROKEN_ON_PURPOSE = {
    (DecodeError, "garbage chaincode action (kept last in the block)"),
    (DecodeError, "garbage creator"),
    (DecodeError, "garbage header extension"),
    (DecodeError, "garbage rwset"),
    (DecodeError, "good endorsements plus one garbage endorser"),
    (KeyError, "channel header type MESSAGE"),
    (UnknownFieldError, "payload with fields in reverse order and an unknown field 99"),
    (UnknownFieldError, "unknown field appended to the payload after signing"),
}


def read(name: str) -> bytes:
    return (RECORDED / name).read_bytes()


def files(pattern: str) -> list[str]:
    found = sorted(str(path.relative_to(RECORDED)) for path in RECORDED.glob(pattern))
    assert found, pattern
    return found


def opened(kind: type[Message], data: bytes) -> Message:
    message = kind()
    message.ParseFromString(data)
    return message


def inside(message: Message) -> Iterator[tuple[type[Message], bytes]]:
    """Yield the serialized messages that a message holds in its bytes fields, with their type."""
    match message:
        case common_pb2.Payload():
            header = common_pb2.ChannelHeader.FromString(message.header.channel_header)
            yield PAYLOADS[header.type], message.data
            if header.type == common_pb2.ENDORSER_TRANSACTION:
                yield peer_pb2.ChaincodeHeaderExtension, header.extension
        case common_pb2.ConfigGroup():
            for name, value in message.values.items():
                yield CONFIG_VALUES[name], value.value
        case common_pb2.Policy() if message.value:
            yield POLICIES[message.type], message.value
        case common_pb2.MSPPrincipal():
            yield PRINCIPALS[message.principal_classification], message.principal
        case rwset_pb2.NsReadWriteSet(namespace="_lifecycle"):
            for write in kvrwset_pb2.KVRWSet.FromString(message.rwset).writes:
                if write.key.startswith("namespaces/metadata/"):
                    yield lifecycle_pb2.StateMetadata, write.value
                else:
                    yield lifecycle_pb2.StateData, write.value
        case common_pb2.Block():
            yield from ((common_pb2.Envelope, envelope) for envelope in message.data.data)
            slots = dict(enumerate(message.metadata.metadata))
            for index in (common_pb2.SIGNATURES, common_pb2.LAST_CONFIG, common_pb2.COMMIT_HASH):
                yield common_pb2.Metadata, slots.get(index, b"")
            signed = common_pb2.Metadata.FromString(slots[common_pb2.SIGNATURES]).value
            yield common_pb2.OrdererBlockMetadata, signed
            last = common_pb2.Metadata.FromString(slots[common_pb2.LAST_CONFIG]).value
            yield common_pb2.LastConfig, last
    for field, value in message.ListFields():
        if kind := NESTED.get(field.full_name):
            yield kind, value


def messages_of(message: Message) -> Iterator[Message]:
    """Yield the messages that are fields of a message, in lists and maps too."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type:
                yield from value.values()
        elif field.is_repeated:
            yield from value
        else:
            yield value


def check(message: Message, where: str, seen: dict[str, int]) -> None:
    """Fail if this message, or one inside it at any depth, has a field we do not know."""
    name = message.DESCRIPTOR.full_name
    where = f"{where} > {name}"
    seen[name] = seen.get(name, 0) + 1
    fields = UnknownFieldSet(message)
    if unknown := [fields[index].field_number for index in range(len(fields))]:
        raise UnknownFieldError(f"{where}: unknown fields {unknown}")
    for child in messages_of(message):
        check(child, where, seen)
    for kind, data in inside(message):
        check(opened(kind, data), where, seen)


@pytest.mark.parametrize("folder", ["blocks", "orderer-blocks"])
def test_recorded_blocks_serialize_to_the_same_bytes(folder: str) -> None:
    names = files(f"{folder}/*.block")
    assert len(names) == 83
    for name in names:
        block = common_pb2.Block.FromString(read(name))
        assert block.SerializeToString() == read(name), name
        for data in block.data.data:
            assert common_pb2.Envelope.FromString(data).SerializeToString() == data, name


def test_no_field_of_the_recorded_blocks_is_unknown() -> None:
    broken = set()
    seen: dict[str, int] = {}
    for block_line in json.loads(read("expected.json"))["blocks"]:
        number = block_line["number"]
        block = common_pb2.Block.FromString(read(f"blocks/{number:04}.block"))
        for index, data in enumerate(block.data.data):
            try:
                envelope = common_pb2.Envelope.FromString(data)
                check(envelope, f"block {number} transaction {index}", seen)
            except (DecodeError, KeyError, UnknownFieldError) as error:
                broken.add((type(error), block_line["txs"][index]["what"]))
        del block.data.data[:]
        check(block, f"block {number}", seen)
    assert broken == BROKEN_ON_PURPOSE
    for name in (
        "common.ConfigUpdate",
        "etcdraft.BlockMetadata",
        "etcdraft.Consenter",
        "kvrwset.KVMetadataWriteHash",
        "kvrwset.QueryReadsMerkleSummary",
        "lifecycle.StateData",
        "msp.FabricNodeOUs",
        "protos.ChaincodeEvent",
    ):
        assert seen[name] > 0, name


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("proposals/*.signed_proposal*", peer_pb2.SignedProposal),
        ("proposals/*.response-org*", peer_pb2.ProposalResponse),
        ("config-updates/*.config_update*", common_pb2.ConfigUpdate),
        ("config-updates/*.original*", common_pb2.Config),
        ("config-updates/*.updat*", common_pb2.Config),
        ("config-updates/*.envelope*", common_pb2.Envelope),
    ],
)
def test_no_field_of_recorded_requests_is_unknown(pattern: str, kind: type[Message]) -> None:
    for name in files(pattern):
        check(opened(kind, read(name)), name, {})


def load(package: str) -> dict[str, ModuleType]:
    """Import all generated modules of a package: protobuf's name of the file -> module."""
    folder = CLIENT_WIRE if "client" in package else WIRE
    names = sorted(path.stem for path in folder.glob("*_pb2.py"))
    modules = [importlib.import_module(f"{package}.{name}") for name in names]
    return {module.DESCRIPTOR.name: module for module in modules}


def test_both_folders_have_equal_descriptors() -> None:
    all_files = load("consortium.wire")
    client_files = load("custom_components.gridledger.client.wire")
    assert "gateway.proto" in client_files
    for name, module in client_files.items():
        assert module.DESCRIPTOR.serialized_pb == all_files[name].DESCRIPTOR.serialized_pb, name


SEVERAL_COPIES = """
import consortium.wire.gateway_pb2 as all_gateway
import custom_components.gridledger.client.wire.gateway_pb2 as home_assistants
import gridledger_client.wire.gateway_pb2 as gridledgers_own
from google.protobuf import descriptor_pb2, descriptor_pool

sent = all_gateway.ErrorDetail(address="peer0:7051", msp_id="Org1MSP").SerializeToString()
kinds = {module.ErrorDetail for module in (all_gateway, home_assistants, gridledgers_own)}
assert len(kinds) == 3
assert all(kind.FromString(sent).address == "peer0:7051" for kind in kinds)

pool = descriptor_pool.Default()
other = descriptor_pb2.FileDescriptorProto(name="common.proto", package="common")
other.message_type.add(name="Envelope").field.add(name="theirs", number=9, type=9, label=1)
pool.AddSerializedFile(other.SerializeToString())
assert [field.name for field in pool.FindMessageTypeByName("common.Envelope").fields] == ["theirs"]
from consortium.wire import common_pb2
assert "payload" in common_pb2.Envelope.DESCRIPTOR.fields_by_name
try:
    pool.FindMessageTypeByName("gateway.ErrorDetail")
except KeyError:
    print("private")
"""


def test_copies_under_several_names_and_a_stranger_live_in_one_process() -> None:
    """The stranger registers the same file and symbol, with other contents, in the default pool.

    In a process of its own, since what the default pool has learnt it keeps.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SEVERAL_COPIES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "private\n", done.stderr


def test_protobufs_own_types_work_from_the_private_pool() -> None:
    header = common_pb2.ChannelHeader()
    header.timestamp.FromSeconds(1_700_000_000)
    assert (header.timestamp.seconds, header.timestamp.nanos) == (1_700_000_000, 0)
    header.timestamp.GetCurrentTime()
    assert pickle.loads(pickle.dumps(header)) == header

    status = rpc_pb2.Status(code=10)
    status.details.add().Pack(gateway_pb2.ErrorDetail(msp_id="Org1MSP"))
    [detail] = rpc_pb2.Status.FromString(status.SerializeToString()).details
    assert detail.type_url == "type.googleapis.com/gateway.ErrorDetail"
    assert gateway_pb2.ErrorDetail.FromString(detail.value).msp_id == "Org1MSP"


def test_service_paths() -> None:
    found = {
        service.full_name: {method.name for method in service.methods}
        for module in load("consortium.wire").values()
        for service in module.DESCRIPTOR.services_by_name.values()
        if not module.DESCRIPTOR.package.startswith("gridledger")
    }
    assert found == {
        "discovery.Discovery": {"Discover"},
        "gateway.Gateway": {"Endorse", "Submit", "CommitStatus", "Evaluate", "ChaincodeEvents"},
        "grpc.health.v1.Health": {"Check", "Watch"},
        "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo"},
        "orderer.AtomicBroadcast": {"Broadcast", "Deliver"},
        "orderer.Cluster": {"Step"},
        "orderer.ClusterNodeService": {"Step"},
        "protos.Chaincode": {"Connect"},
        "protos.ChaincodeSupport": {"Register"},
        "protos.Deliver": {"Deliver", "DeliverFiltered", "DeliverWithPrivateData"},
        "protos.Endorser": {"ProcessProposal"},
        "protos.Snapshot": {"Generate", "Cancel", "QueryPendings"},
    }
