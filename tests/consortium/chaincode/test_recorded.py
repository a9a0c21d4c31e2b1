"""The simulator against a real Fabric peer: the same proposal on the same state, the same bytes.

The chaincode that was recorded takes a list of operations; `run` does them here.
"""

import base64
import json
from collections.abc import Collection
from pathlib import Path

import pytest

from consortium.chaincode.simulator import StateReader, TransactionSimulator
from consortium.ledger.rwset import open_transaction
from consortium.ledger.state import Version, VersionedValue, key_hash
from consortium.wire import common_pb2, kvrwset_pb2, peer_pb2, rwset_pb2
from tests.consortium.chaincode.memory_state import MemoryState

RECORDED = Path(__file__).resolve().parents[3] / "tests/data/fabric/recorded"
PROPOSALS = sorted(path.stem for path in RECORDED.glob("proposals/*.signed_proposal"))


class ReplayedState(MemoryState):
    """Built from blocks, so private values are unknown; their versions stand with the hashes."""

    def get_private(self, namespace: str, collection: str, key: str) -> VersionedValue | None:
        return self.get_private_hash(namespace, collection, key_hash(key))


def state_before(transaction_id: str) -> ReplayedState:
    state = ReplayedState()
    for path in sorted(RECORDED.glob("blocks/*.block")):
        block = common_pb2.Block.FromString(path.read_bytes())
        opened = [open_transaction(index, raw) for index, raw in enumerate(block.data.data)]
        if any(transaction.id == transaction_id for transaction in opened):
            return state
        for transaction, code in zip(opened, block.metadata.metadata[2], strict=True):
            if code == 0 and transaction.endorsed:
                response = peer_pb2.ProposalResponsePayload.FromString(transaction.endorsed)
                action = peer_pb2.ChaincodeAction.FromString(response.extension)
                version = Version(block.header.number, transaction.index)
                state.apply(action.results, None, version)
    raise AssertionError(f"transaction {transaction_id} was not recorded")


def lifecycle_collections(reader: StateReader, namespace: str) -> Collection[str]:
    """Reads what Fabric reads before the first touch of private data."""
    reader.get_state("_lifecycle", f"namespaces/metadata/{namespace}")
    for name in ("Sequence", "EndorsementInfo", "ValidationInfo", "Collections"):
        reader.get_state("_lifecycle", f"namespaces/fields/{namespace}/{name}")
    return ("collA", "collB", "_implicit_org_Org1MSP", "_implicit_org_Org2MSP")


def run(
    simulator: TransactionSimulator,
    chaincode: str,
    operations: list[list[str]],
    transient: dict[str, bytes],
    policies: dict[str, bytes],
) -> None:
    simulator.get_state("_lifecycle", f"namespaces/fields/{chaincode}/Sequence")
    for operation, *arguments in operations:
        match operation, arguments:
            case "put", (key, value):
                simulator.put_state(chaincode, key, value.encode())
            case "put64", (key, value):
                simulator.put_state(chaincode, key, base64.b64decode(value))
            case "get", (key,):
                simulator.get_state(chaincode, key)
            case "inc", (key, by):
                value = simulator.get_state(chaincode, key) or b"0"
                simulator.put_state(chaincode, key, str(int(value) + int(by)).encode())
            case "del", (key,):
                simulator.del_state(chaincode, key)
            case "range", (start, end):
                assert list(simulator.range(chaincode, start, end))
            case "vp", (key, _):
                metadata = {"VALIDATION_PARAMETER": policies[key]}
                simulator.put_metadata(chaincode, key, metadata)
            case "pput", (collection, key, name):
                simulator.put_private(chaincode, collection, key, transient[name])
            case "pget", (collection, key):
                simulator.get_private(chaincode, collection, key)
            case "phash", (collection, key):
                simulator.get_private_hash(chaincode, collection, key)
            case "ppurge", (collection, key):
                simulator.purge_private(chaincode, collection, key)
            case "invoke", (other, inner):
                run(simulator, other, inner, transient, policies)  # type: ignore[arg-type]
            case "event", _:
                pass
            case _:
                raise AssertionError(operation)


@pytest.mark.parametrize("name", PROPOSALS)
def test_the_read_write_set_is_what_fabric_made_of_the_same_proposal(name: str) -> None:
    signed = (RECORDED / f"proposals/{name}.signed_proposal").read_bytes()
    proposal = peer_pb2.Proposal.FromString(
        peer_pb2.SignedProposal.FromString(signed).proposal_bytes
    )
    header = common_pb2.ChannelHeader.FromString(
        common_pb2.Header.FromString(proposal.header).channel_header
    )
    payload = peer_pb2.ChaincodeProposalPayload.FromString(proposal.payload)
    spec = peer_pb2.ChaincodeInvocationSpec.FromString(payload.input).chaincode_spec
    answer = peer_pb2.ProposalResponse.FromString(
        (RECORDED / f"proposals/{name}.response-org1").read_bytes()
    )
    expected = peer_pb2.ChaincodeAction.FromString(
        peer_pb2.ProposalResponsePayload.FromString(answer.payload).extension
    ).results

    simulator = TransactionSimulator(
        state_before(header.tx_id), header.channel_id, collections=lifecycle_collections
    )
    run(
        simulator,
        spec.chaincode_id.name,
        json.loads(spec.input.args[1]),
        dict(payload.TransientMap),
        _policies(expected),
    )
    assert simulator.results().rwset == expected


def _policies(rwset: bytes) -> dict[str, bytes]:
    """The key policies that the recorded client library built."""
    return {
        write.key: write.entries[0].value
        for namespace in rwset_pb2.TxReadWriteSet.FromString(rwset).ns_rwset
        for write in kvrwset_pb2.KVRWSet.FromString(namespace.rwset).metadata_writes
    }
