"""What a chaincode may ask of its peer, message by message, and what it is told otherwise."""

import asyncio
from collections.abc import Sequence

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.chaincode.api import Creator
from consortium.chaincode.executor import Invocation
from consortium.chaincode.requests import MAX_KEYS_AT_ONCE, ChaincodeMessage, Requests
from consortium.chaincode.simulator import SimulationResults, TransactionSimulator
from consortium.ledger.history import KeyModification
from consortium.ledger.state import Version, VersionedValue
from consortium.wire import kvrwset_pb2, lifecycle_pb2, peer_pb2, queryresult_pb2, rwset_pb2
from tests.consortium.chaincode.memory_state import MemoryState

CREATOR = Creator("AuroraMSP", b"", "ann", "client", {})


def modifications(count: int) -> list[KeyModification]:
    return [
        KeyModification(f"tx{block}", block, 0, b"v", False, 1_500_000_000_000_000_007)
        for block in range(count, 0, -1)
    ]


class Asking:
    """A chaincode `cc` in the middle of a transaction."""

    def __init__(self, others: object = None) -> None:
        self.state = MemoryState()
        self.stored = modifications(0)
        self.asked_history: list[int] = []
        self.simulator = TransactionSimulator(self.state, "ch", history=self._history)
        invocation = Invocation(
            "cc",
            "ch",
            "tx",
            0,
            CREATOR,
            [b"f"],
            {},
            others=others,  # type: ignore[arg-type]
        )
        self.requests = Requests(invocation, self.simulator)

    def _history(self, namespace: str, key: str, limit: int) -> Sequence[KeyModification]:
        assert namespace == "cc"
        self.asked_history.append(limit)
        return self.stored[:limit]

    def put(self, *keys: str, namespace: str = "cc") -> None:
        for index, key in enumerate(keys):
            self.state.public[namespace, key] = VersionedValue(b"v", b"", Version(1, index))

    async def ask(self, kind: peer_pb2.ChaincodeMessage.Type, request: Message) -> bytes:
        answer = await self.send(kind, request.SerializeToString())
        assert answer.type == ChaincodeMessage.RESPONSE, answer.payload
        return answer.payload

    async def refused(self, kind: peer_pb2.ChaincodeMessage.Type, request: Message) -> str:
        answer = await self.send(kind, request.SerializeToString())
        assert answer.type == ChaincodeMessage.ERROR
        return answer.payload.decode()

    async def send(
        self, kind: peer_pb2.ChaincodeMessage.Type, payload: bytes
    ) -> peer_pb2.ChaincodeMessage:
        answer = await self.requests.answer(ChaincodeMessage(type=kind, payload=payload))
        assert (answer.channel_id, answer.txid) == ("ch", "tx")
        return answer

    def results(self) -> kvrwset_pb2.KVRWSet:
        results: SimulationResults = self.simulator.results()
        (namespace,) = rwset_pb2.TxReadWriteSet.FromString(results.rwset).ns_rwset
        return kvrwset_pb2.KVRWSet.FromString(namespace.rwset)


async def test_several_keys_at_once() -> None:
    asking = Asking()
    asking.put("a", "c")
    found = await asking.ask(
        ChaincodeMessage.GET_STATE_MULTIPLE, peer_pb2.GetStateMultiple(keys=["c", "b", "a"])
    )
    assert peer_pb2.GetStateMultipleResult.FromString(found).values == [b"v", b"", b"v"]
    too_many = peer_pb2.GetStateMultiple(keys=["k"] * (MAX_KEYS_AT_ONCE + 1))
    assert "1001 keys in one request, but it may have 1000" in await asking.refused(
        ChaincodeMessage.GET_STATE_MULTIPLE, too_many
    )
    assert [read.key for read in asking.results().reads] == ["a", "b", "c"]


async def test_a_batch_of_writes() -> None:
    """In its order: the last write of a key counts."""
    asking = Asking()
    record = peer_pb2.WriteRecord
    metadata = peer_pb2.StateMetadata(metakey="VALIDATION_PARAMETER", value=b"p")
    await asking.ask(
        ChaincodeMessage.WRITE_BATCH_STATE,
        peer_pb2.WriteBatchState(
            rec=[
                record(type=record.PUT_STATE, key="a", value=b"1"),
                record(type=record.DEL_STATE, key="a"),
                record(type=record.PUT_STATE, key="b", value=b"2"),
                record(type=record.PUT_STATE_METADATA, key="b", metadata=metadata),
                record(type=record.PURGE_PRIVATE_DATA, key="c", collection="secrets"),
            ]
        ),
    )
    written = asking.results()
    assert [(write.key, write.value, write.is_delete) for write in written.writes] == [
        ("a", b"", True),
        ("b", b"2", False),
    ]
    assert written.metadata_writes[0].entries[0].value == b"p"


async def test_history_is_read_as_far_as_it_is_asked_for() -> None:
    asking = Asking()
    asking.stored = modifications(150)
    raw = await asking.ask(ChaincodeMessage.GET_HISTORY_FOR_KEY, peer_pb2.GetHistoryForKey(key="k"))
    first = peer_pb2.QueryResponse.FromString(raw)
    assert (len(first.results), first.has_more, asking.asked_history) == (100, True, [101])
    newest = queryresult_pb2.KeyModification.FromString(first.results[0].resultBytes)
    assert (newest.tx_id, newest.timestamp.seconds, newest.timestamp.nanos) == (
        "tx150",
        1_500_000_000,
        7,
    )
    asking.stored = modifications(160)  # ten more were committed meanwhile
    raw = await asking.ask(ChaincodeMessage.QUERY_STATE_NEXT, peer_pb2.QueryStateNext(id=first.id))
    rest = peer_pb2.QueryResponse.FromString(raw)
    found = [
        queryresult_pb2.KeyModification.FromString(result.resultBytes).tx_id
        for result in (*first.results, *rest.results)
    ]
    assert found == [f"tx{block}" for block in range(150, 0, -1)]
    assert not rest.has_more


async def test_a_query_ends_once() -> None:
    asking = Asking()
    asking.put(*(f"k{index:03d}" for index in range(250)))
    raw = await asking.ask(
        ChaincodeMessage.GET_STATE_BY_RANGE, peer_pb2.GetStateByRange(startKey="k", endKey="l")
    )
    query = peer_pb2.QueryResponse.FromString(raw)
    assert query.has_more
    following = peer_pb2.QueryStateNext(id=query.id)
    await asking.ask(ChaincodeMessage.QUERY_STATE_NEXT, following)
    await asking.ask(ChaincodeMessage.QUERY_STATE_CLOSE, peer_pb2.QueryStateClose(id=query.id))
    await asking.ask(ChaincodeMessage.QUERY_STATE_CLOSE, peer_pb2.QueryStateClose(id=query.id))
    assert "there is no open query '1'" in await asking.refused(
        ChaincodeMessage.QUERY_STATE_NEXT, following
    )
    (info,) = asking.results().range_queries_info
    assert (info.end_key, info.itr_exhausted) == ("k200", False)


async def test_open_queries_have_a_limit() -> None:
    asking = Asking()
    asking.put(*(f"k{index:03d}" for index in range(101)))
    everything = peer_pb2.GetStateByRange(startKey="k", endKey="l")
    for _ in range(100):
        await asking.ask(ChaincodeMessage.GET_STATE_BY_RANGE, everything)
    assert "100 queries are open" in await asking.refused(
        ChaincodeMessage.GET_STATE_BY_RANGE, everything
    )


async def test_pages_depend_on_no_more_than_they_show() -> None:
    asking = Asking()
    asking.put("k1", "k2", "k3")
    page = peer_pb2.QueryMetadata(pageSize=2).SerializeToString()
    raw = await asking.ask(
        ChaincodeMessage.GET_STATE_BY_RANGE,
        peer_pb2.GetStateByRange(startKey="k", endKey="l", metadata=page),
    )
    answer = peer_pb2.QueryResponse.FromString(raw)
    metadata = peer_pb2.QueryResponseMetadata.FromString(answer.metadata)
    assert (metadata.fetched_records_count, metadata.bookmark, answer.has_more) == (2, "k3", False)
    assert "so it may not write" in await asking.refused(
        ChaincodeMessage.PUT_STATE, peer_pb2.PutState(key="a", value=b"1")
    )
    (info,) = asking.results().range_queries_info
    assert (info.end_key, info.itr_exhausted) == ("k2", False)
    written = Asking()
    await written.ask(ChaincodeMessage.PUT_STATE, peer_pb2.PutState(key="a", value=b"1"))
    assert "only in a transaction that writes nothing" in await written.refused(
        ChaincodeMessage.GET_STATE_BY_RANGE, peer_pb2.GetStateByRange(metadata=page)
    )
    negative = peer_pb2.QueryMetadata(pageSize=-1).SerializeToString()
    assert "a page cannot have -1 results" in await Asking().refused(
        ChaincodeMessage.GET_STATE_BY_RANGE, peer_pb2.GetStateByRange(metadata=negative)
    )


@pytest.mark.parametrize(
    ("kind", "payload", "problem"),
    [
        (ChaincodeMessage.GET_STATE, b"\xff", "the request is not a valid protos.GetState"),
        (ChaincodeMessage.REGISTER, b"", "REGISTER is nothing that a chaincode may ask for"),
        (77, b"", "77 is nothing that a chaincode may ask for"),
        (ChaincodeMessage.PUT_STATE, b"", "a key must not be empty"),
        (
            ChaincodeMessage.PURGE_PRIVATE_DATA,
            peer_pb2.PurgePrivateState(key="k").SerializeToString(),
            "only private data can be purged",
        ),
        (
            ChaincodeMessage.WRITE_BATCH_STATE,
            peer_pb2.WriteBatchState(rec=[peer_pb2.WriteRecord(key="k")]).SerializeToString(),
            "a write of the unknown type 0",
        ),
        (
            ChaincodeMessage.INVOKE_CHAINCODE,
            peer_pb2.ChaincodeSpec().SerializeToString(),
            "chaincodes cannot call each other here",
        ),
    ],
)
async def test_refused_requests(
    kind: peer_pb2.ChaincodeMessage.Type, payload: bytes, problem: str
) -> None:
    """A refusal names the request, the transaction and the reason; the transaction may go on."""
    asking = Asking()
    answer = await asking.send(kind, payload)
    assert answer.type == ChaincodeMessage.ERROR
    assert " failed: transaction ID: tx: " in answer.payload.decode()
    assert problem in answer.payload.decode()
    await asking.ask(ChaincodeMessage.GET_STATE, peer_pb2.GetState(key="k"))


KINDS = [kind for kind in ChaincodeMessage.Type.values() if kind]


@given(
    sent=st.lists(
        st.tuples(st.sampled_from(KINDS), st.binary(max_size=60)), min_size=1, max_size=20
    )
)
@settings(max_examples=200)
def test_any_bytes_get_an_answer(sent: list[tuple[int, bytes]]) -> None:
    """Whatever a chaincode sends, it gets RESPONSE or ERROR, and nothing else happens."""

    async def run() -> None:
        asking = Asking()
        asking.put("a", "b", "c")
        for kind, payload in sent:
            answer = await asking.send(kind, payload)  # type: ignore[arg-type]
            assert answer.type in (ChaincodeMessage.RESPONSE, ChaincodeMessage.ERROR)
        asking.simulator.results()

    asyncio.run(run())


class Echo:
    """Stands where the router of executors stands: notes who is called."""

    def __init__(self) -> None:
        self.called: list[Invocation] = []

    async def invoke(
        self, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        self.called.append(invocation)
        simulator.put_state(invocation.chaincode, "k", b"v")
        return peer_pb2.Response(status=201, payload=b"made"), peer_pb2.ChaincodeEvent()


async def test_a_call_of_another_chaincode() -> None:
    """Same transaction, its own namespace; what it was defined as is part of the reads."""
    echo = Echo()
    asking = Asking(echo)
    sequence = lifecycle_pb2.StateData(Int64=3).SerializeToString()
    asking.state.public["_lifecycle", "namespaces/fields/other/Sequence"] = VersionedValue(
        sequence, b"", Version(2, 1)
    )
    raw = await asking.ask(
        ChaincodeMessage.INVOKE_CHAINCODE,
        peer_pb2.ChaincodeSpec(
            chaincode_id=peer_pb2.ChaincodeID(name="other:1.0/ch"),
            input=peer_pb2.ChaincodeInput(args=[b"g", b"x"]),
        ),
    )
    answer = ChaincodeMessage.FromString(raw)
    assert answer.type == ChaincodeMessage.COMPLETED
    assert peer_pb2.Response.FromString(answer.payload).status == 201
    (called,) = echo.called
    assert (called.chaincode, called.args) == ("other", [b"g", b"x"])
    assert called.callers == (("ch", "cc"),)
    results = rwset_pb2.TxReadWriteSet.FromString(asking.simulator.results().rwset)
    assert [namespace.namespace for namespace in results.ns_rwset] == ["_lifecycle", "other"]
