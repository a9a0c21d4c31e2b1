"""The recorded channel of a real Hyperledger Fabric network, and what is known about it."""

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

from consortium.ledger import lifecycle
from consortium.ledger.ledger import Ledger
from consortium.wire import common_pb2, kvrwset_pb2, lifecycle_pb2, peer_pb2, rwset_pb2

FOLDER = Path(__file__).parents[2] / "data" / "fabric" / "recorded"
HEIGHT = 83


@cache
def expected() -> dict[str, Any]:
    return json.loads((FOLDER / "expected.json").read_text())


@cache
def _ordered(number: int) -> bytes:
    return (FOLDER / "orderer-blocks" / f"{number:04d}.block").read_bytes()


def ordered_block(number: int) -> common_pb2.Block:
    """A block as the ordering node delivered it."""
    return common_pb2.Block.FromString(_ordered(number))


def stored_block(number: int) -> bytes:
    """A block as the Fabric peer stored it."""
    return (FOLDER / "blocks" / f"{number:04d}.block").read_bytes()


def open_ledger(folder: Path, msp_id: str = "Org1MSP") -> Ledger:
    return Ledger.open(folder, msp_id=msp_id, genesis=ordered_block(0), durable=False)


def replay(ledger: Ledger, until: int = HEIGHT) -> None:
    """Commit the recorded blocks that the ledger lacks, below `until`."""
    for number in range(ledger.height, until):
        ledger.commit(ordered_block(number))


def text_key(key: str | dict[str, str]) -> str:
    """A key of expected.json: text, or hex where it is not printable."""
    return key if isinstance(key, str) else bytes.fromhex(key["hex"]).decode()


def state_entry(entry: list[Any]) -> tuple[bytes, tuple[int, int], bytes]:
    """Value, version and metadata of a public entry of expected.json."""
    metadata = base64.b64decode(entry[4]) if len(entry) > 4 else b""
    return base64.b64decode(entry[2]), tuple(entry[3]), metadata


class Writes(dict[str, bytes]):
    """Records that hold only what was written to them."""

    put = dict.__setitem__
    delete = dict.pop


def arguments(number: int, tx: int = 0) -> list[bytes]:
    """What a recorded transaction's contract was called with."""
    envelope = common_pb2.Envelope.FromString(ordered_block(number).data.data[tx])
    payload = common_pb2.Payload.FromString(envelope.payload)
    action = peer_pb2.Transaction.FromString(payload.data).actions[0]
    proposal = peer_pb2.ChaincodeProposalPayload.FromString(
        peer_pb2.ChaincodeActionPayload.FromString(action.payload).chaincode_proposal_payload
    )
    spec = peer_pb2.ChaincodeInvocationSpec.FromString(proposal.input).chaincode_spec
    return list(spec.input.args)


def requested_definition(number: int) -> tuple[lifecycle.ChaincodeDefinition, str]:
    """The definition and package id that a recorded approval asked for."""
    request = lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs.FromString(arguments(number)[1])
    wanted = lifecycle.ChaincodeDefinition(
        name=request.name,
        sequence=request.sequence,
        version=request.version,
        endorsement_policy=request.validation_parameter,
        collections=request.collections,
    )
    return wanted, request.source.local_package.package_id


def approval_writes(number: int) -> Writes:
    """What our lifecycle writes for a recorded approval."""
    wanted, package_id = requested_definition(number)
    public = Writes()
    if wanted.sequence > 1:
        before = lifecycle_pb2.StateData(Int64=wanted.sequence - 1)
        public[f"namespaces/fields/{wanted.name}/Sequence"] = before.SerializeToString()
    written = Writes()
    lifecycle.approve(wanted, package_id, public.get, written)
    return written


def _put(key: str, value: str) -> kvrwset_pb2.KVWrite:
    return kvrwset_pb2.KVWrite(key=key, value=value.encode())


def _delete(key: str) -> kvrwset_pb2.KVWrite:
    return kvrwset_pb2.KVWrite(key=key, is_delete=True)


def _policy_change() -> kvrwset_pb2.KVRWSet:
    """A change of a key's policy: the policy is in the block, only the key's name is private."""
    return kvrwset_pb2.KVRWSet(metadata_writes=[kvrwset_pb2.KVMetadataWrite(key="pk1")])


def _approval(number: int) -> kvrwset_pb2.KVRWSet:
    written = sorted(approval_writes(number).items())
    return kvrwset_pb2.KVRWSet(
        writes=[kvrwset_pb2.KVWrite(key=key, value=value) for key, value in written]
    )


def private_writes() -> dict[tuple[int, int], tuple[str, str, bytes]]:
    """What the recorded chain holds hashes of: namespace, collection and `KVRWSet` bytes.

    Written down from the recorded proposals; each has the hash that its block holds.
    """
    writes = {
        (49, 0): [_put("pk1", "secret one"), _put("pk2", "secret two"), _put("pk3", "secret two")],
        (50, 0): [_put("pk1", "secret one b")],
        (51, 0): [_delete("pk2")],
        (53, 0): [_put("pk1", "secret one c")],
        (54, 0): [_delete("pk3")],
        (58, 0): [_put("pk4", "four")],
        (70, 24): [_put("pk4", "four b")],
    }
    sets = {
        place: ("gold", "collA", kvrwset_pb2.KVRWSet(writes=written))
        for place, written in writes.items()
    }
    sets[52, 0] = ("gold", "collA", _policy_change())
    for place, org, put in (
        ((55, 0), "Org1MSP", _put("ik1", "org1 only")),
        ((57, 0), "Org2MSP", _put("ik2", "org2 only")),
    ):
        sets[place] = ("gold", f"_implicit_org_{org}", kvrwset_pb2.KVRWSet(writes=[put]))
    sets[64, 0] = ("gold", "collB", kvrwset_pb2.KVRWSet(writes=[_put("bk1", "short lived")]))
    for number, org in ((3, 1), (4, 2), (6, 1), (7, 2), (60, 1), (61, 2)):
        sets[number, 0] = ("_lifecycle", f"_implicit_org_Org{org}MSP", _approval(number))
    return {
        place: (namespace, collection, written.SerializeToString())
        for place, (namespace, collection, written) in sets.items()
    }


def private_rwset(namespace: str, collection: str, data: bytes) -> bytes:
    """`TxPvtReadWriteSet` bytes with one collection."""
    return rwset_pb2.TxPvtReadWriteSet(
        ns_pvt_rwset=[
            rwset_pb2.NsPvtReadWriteSet(
                namespace=namespace,
                collection_pvt_rwset=[
                    rwset_pb2.CollectionPvtReadWriteSet(collection_name=collection, rwset=data)
                ],
            )
        ]
    ).SerializeToString()
