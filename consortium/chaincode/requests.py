"""The peer's side of a chaincode's transaction: each request is answered from the simulator.

A request and its answer are `protos.ChaincodeMessage`s, whatever they travel on. (Facts: Fabric
core/chaincode/handler.go.)
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import batched

from google.protobuf.message import Message

from consortium.ledger.history import KeyModification
from consortium.ledger.state import LedgerError
from consortium.wire import peer_pb2, queryresult_pb2
from consortium.wire.envelopes import WireError, brief, parse, shortened

from .batches import Batches
from .executor import MAX_MESSAGE_CHARACTERS, ExecutionError, Invocation, call_chaincode
from .simulator import SimulationError, TransactionSimulator

MAX_MESSAGE_BYTES = 100 * 1024 * 1024
"""Fabric's limit of a message to or from a chaincode."""
MAX_NAME_CHARACTERS = 1024
"""Of a channel's and a transaction's name together; Fabric's have 249 and 64 at most."""
MAX_OPEN_QUERIES = 100
MAX_KEYS_AT_ONCE = 1000
"""Keys of one GET_STATE_MULTIPLE and writes of one WRITE_BATCH_STATE, Fabric's offer too."""

_KEYS_BETWEEN_CHECKS = 10  # of how much has been found: a value may have megabytes

ChaincodeMessage = peer_pb2.ChaincodeMessage


def offer() -> peer_pb2.ChaincodeAdditionalParams:
    """What READY says that this peer can do."""
    return peer_pb2.ChaincodeAdditionalParams(
        use_write_batch=True,
        max_size_write_batch=MAX_KEYS_AT_ONCE,
        use_get_multiple_keys=True,
        max_size_get_multiple_keys=MAX_KEYS_AT_ONCE,
    )


class RequestError(Exception):
    """A request that no chaincode may make; the message says why."""


class Requests:
    """Answers what the chaincode of one invocation asks for, one request after another.

    What a chaincode may read and write is its own namespace; another's it reaches by calling it.
    """

    def __init__(
        self,
        invocation: Invocation,
        simulator: TransactionSimulator,
    ) -> None:
        self._invocation = invocation
        self._simulator = simulator
        self._namespace = invocation.chaincode
        self._queries: dict[str, Batches[Message]] = {}
        self._query_count = 0

    def opening(self) -> peer_pb2.ChaincodeMessage:
        """The message that begins the transaction."""
        call = peer_pb2.ChaincodeInput(args=self._invocation.args)
        kind = ChaincodeMessage.INIT if self._invocation.is_init else ChaincodeMessage.TRANSACTION
        return self._message(kind, call.SerializeToString(), proposal=True)

    async def answer(self, request: peer_pb2.ChaincodeMessage) -> peer_pb2.ChaincodeMessage:
        """The answer to a request: RESPONSE with its result, or ERROR with a sentence."""
        kind = ChaincodeMessage.Type
        name = kind.Name(request.type) if request.type in kind.values() else str(request.type)
        try:
            handler = _HANDLERS.get(request.type)
            if handler is None:
                raise RequestError(f"{name} is nothing that a chaincode may ask for")
            message = self._message(ChaincodeMessage.RESPONSE, await handler(self, request.payload))
            if message.ByteSize() > MAX_MESSAGE_BYTES:
                raise RequestError(
                    f"the answer has more than {MAX_MESSAGE_BYTES} bytes; ask for less at once"
                )
        except (RequestError, SimulationError, LedgerError, ExecutionError, WireError) as error:
            problem = shortened(str(error), 2 * MAX_MESSAGE_CHARACTERS)
            text = f"{name} failed: transaction ID: {self._invocation.transaction_id}: {problem}"
            return self._message(ChaincodeMessage.ERROR, text.encode(errors="backslashreplace"))
        return message

    def _message(
        self, kind: peer_pb2.ChaincodeMessage.Type, payload: bytes, *, proposal: bool = False
    ) -> peer_pb2.ChaincodeMessage:
        return ChaincodeMessage(
            type=kind,
            payload=payload,
            txid=self._invocation.transaction_id,
            channel_id=self._invocation.channel_id,
            proposal=self._invocation.signed_proposal if proposal else None,
        )

    # reading

    async def _get_state(self, payload: bytes) -> bytes:
        asked = parse(peer_pb2.GetState, payload, "the request")
        return self._values(asked.collection, [asked.key])[0]

    async def _get_state_multiple(self, payload: bytes) -> bytes:
        asked = parse(peer_pb2.GetStateMultiple, payload, "the request")
        _check_count(len(asked.keys), "keys")
        found = peer_pb2.GetStateMultipleResult()
        found_bytes = 0
        # A thousand times the largest value would fill the memory before it is too long.
        for keys in batched(asked.keys, _KEYS_BETWEEN_CHECKS, strict=False):
            values = self._values(asked.collection, keys)
            found_bytes += sum(map(len, values))
            if found_bytes > MAX_MESSAGE_BYTES:
                raise RequestError(
                    f"the values have more than {MAX_MESSAGE_BYTES} bytes; ask for fewer at once"
                )
            found.values.extend(values)
        return found.SerializeToString()

    def _values(self, collection: str, keys: Sequence[str]) -> list[bytes]:
        if collection:
            found = self._simulator.get_privates(self._namespace, collection, keys)
        else:
            found = [self._simulator.get_state(self._namespace, key) for key in keys]
        return [value or b"" for value in found]

    async def _get_private_data_hash(self, payload: bytes) -> bytes:
        asked = parse(peer_pb2.GetState, payload, "the request")
        found = self._simulator.get_private_hash(self._namespace, asked.collection, asked.key)
        return found or b""

    async def _get_state_metadata(self, payload: bytes) -> bytes:
        asked = parse(peer_pb2.GetStateMetadata, payload, "the request")
        if asked.collection:
            found = self._simulator.get_private_metadata(
                self._namespace, asked.collection, asked.key
            )
        else:
            found = self._simulator.get_metadata(self._namespace, asked.key)
        return peer_pb2.StateMetadataResult(
            entries=[
                peer_pb2.StateMetadata(metakey=name, value=found[name]) for name in sorted(found)
            ]
        ).SerializeToString()

    # querying

    async def _get_state_by_range(self, payload: bytes) -> bytes:
        asked = parse(peer_pb2.GetStateByRange, payload, "the request")
        page = parse(peer_pb2.QueryMetadata, asked.metadata, "the request's page")
        if asked.collection:
            return await self._open_query(
                self._results(
                    self._simulator.range_private(
                        self._namespace, asked.collection, asked.startKey, asked.endKey
                    )
                )
            )
        if page.pageSize or page.bookmark:
            return await self._page(asked.startKey, asked.endKey, page)
        return await self._open_query(
            self._results(self._simulator.range(self._namespace, asked.startKey, asked.endKey))
        )

    async def _page(self, start: str, end: str, wanted: peer_pb2.QueryMetadata) -> bytes:
        page = await asyncio.to_thread(
            self._simulator.page, self._namespace, start, end, wanted.pageSize, wanted.bookmark
        )
        self._query_count += 1
        return peer_pb2.QueryResponse(
            results=_packed(self._results(iter(page.items))),
            id=str(self._query_count),
            metadata=peer_pb2.QueryResponseMetadata(
                fetched_records_count=len(page.items), bookmark=page.bookmark
            ).SerializeToString(),
        ).SerializeToString()

    async def _get_query_result(self, _payload: bytes) -> bytes:
        raise RequestError(
            "this peer keeps its state in key order, without an index for rich queries; read a "
            "range of keys instead"
        )

    async def _get_history_for_key(self, payload: bytes) -> bytes:
        asked = parse(peer_pb2.GetHistoryForKey, payload, "the request")
        return await self._open_query(
            _modification(one) for one in self._simulator.history(self._namespace, asked.key)
        )

    async def _query_state_next(self, payload: bytes) -> bytes:
        query_id = parse(peer_pb2.QueryStateNext, payload, "the request").id
        query = self._queries.get(query_id)
        if query is None:
            raise RequestError(f"there is no open query {brief(query_id)}; it ended or was closed")
        return await self._next_batch(query_id, query)

    async def _query_state_close(self, payload: bytes) -> bytes:
        query_id = parse(peer_pb2.QueryStateClose, payload, "the request").id
        self._queries.pop(query_id, None)
        return peer_pb2.QueryResponse(id=query_id).SerializeToString()

    def _results(self, items: Iterator[tuple[str, bytes]]) -> Iterator[Message]:
        return (
            queryresult_pb2.KV(namespace=self._namespace, key=key, value=value)
            for key, value in items
        )

    async def _open_query(self, results: Iterator[Message]) -> bytes:
        if len(self._queries) >= MAX_OPEN_QUERIES:
            raise RequestError(
                f"{MAX_OPEN_QUERIES} queries are open, the limit of a transaction; close some"
            )
        self._query_count += 1
        return await self._next_batch(
            str(self._query_count), Batches(results, lambda result: result.ByteSize())
        )

    async def _next_batch(self, query_id: str, query: Batches[Message]) -> bytes:
        # A history is read from blocks, a range from pages that may not be in memory.
        batch, more = await asyncio.to_thread(query.take)
        if more:
            self._queries[query_id] = query
        else:
            self._queries.pop(query_id, None)
        return peer_pb2.QueryResponse(
            results=_packed(batch), has_more=more, id=query_id
        ).SerializeToString()

    # writing

    async def _put_state(self, payload: bytes) -> bytes:
        asked = parse(peer_pb2.PutState, payload, "the request")
        self._put(asked.collection, asked.key, asked.value)
        return b""

    async def _del_state(self, payload: bytes) -> bytes:
        asked = parse(peer_pb2.DelState, payload, "the request")
        self._put(asked.collection, asked.key, b"")
        return b""

    async def _purge_private_data(self, payload: bytes) -> bytes:
        asked = parse(peer_pb2.PurgePrivateState, payload, "the request")
        self._purge(asked.collection, asked.key)
        return b""

    async def _put_state_metadata(self, payload: bytes) -> bytes:
        asked = parse(peer_pb2.PutStateMetadata, payload, "the request")
        self._put_metadata(asked.collection, asked.key, asked.metadata)
        return b""

    async def _write_batch_state(self, payload: bytes) -> bytes:
        writes = parse(peer_pb2.WriteBatchState, payload, "the request").rec
        _check_count(len(writes), "writes")
        for write in writes:
            if write.type == peer_pb2.WriteRecord.PUT_STATE:
                self._put(write.collection, write.key, write.value)
            elif write.type == peer_pb2.WriteRecord.DEL_STATE:
                self._put(write.collection, write.key, b"")
            elif write.type == peer_pb2.WriteRecord.PURGE_PRIVATE_DATA:
                self._purge(write.collection, write.key)
            elif write.type == peer_pb2.WriteRecord.PUT_STATE_METADATA:
                self._put_metadata(write.collection, write.key, write.metadata)
            else:
                raise RequestError(f"a write of the unknown type {write.type}")
        return b""

    def _put(self, collection: str, key: str, value: bytes) -> None:
        _check_key(key)
        if collection:
            self._simulator.put_private(self._namespace, collection, key, value)
        else:
            self._simulator.put_state(self._namespace, key, value)

    def _purge(self, collection: str, key: str) -> None:
        _check_key(key)
        if not collection:
            raise RequestError("only private data can be purged, and no collection is named")
        self._simulator.purge_private(self._namespace, collection, key)

    def _put_metadata(self, collection: str, key: str, entry: peer_pb2.StateMetadata) -> None:
        _check_key(key)
        metadata = {entry.metakey: entry.value}
        if collection:
            self._simulator.put_private_metadata(self._namespace, collection, key, metadata)
        else:
            self._simulator.put_metadata(self._namespace, key, metadata)

    # calling

    async def _invoke_chaincode(self, payload: bytes) -> bytes:
        """Run another chaincode; see `call_chaincode`."""
        spec = parse(peer_pb2.ChaincodeSpec, payload, "the request")
        # "name:version/channel", the last two optional; the version is not asked for.
        instance, _, channel_id = spec.chaincode_id.name.partition("/")
        response = await call_chaincode(
            self._invocation,
            self._simulator,
            instance.partition(":")[0],
            spec.input.args,
            channel_id,
        )
        return self._message(
            ChaincodeMessage.COMPLETED, response.SerializeToString()
        ).SerializeToString()


_HANDLERS: dict[int, Callable[[Requests, bytes], Awaitable[bytes]]] = {
    ChaincodeMessage.GET_STATE: Requests._get_state,
    ChaincodeMessage.GET_STATE_MULTIPLE: Requests._get_state_multiple,
    ChaincodeMessage.GET_PRIVATE_DATA_HASH: Requests._get_private_data_hash,
    ChaincodeMessage.GET_STATE_METADATA: Requests._get_state_metadata,
    ChaincodeMessage.GET_STATE_BY_RANGE: Requests._get_state_by_range,
    ChaincodeMessage.GET_QUERY_RESULT: Requests._get_query_result,
    ChaincodeMessage.GET_HISTORY_FOR_KEY: Requests._get_history_for_key,
    ChaincodeMessage.QUERY_STATE_NEXT: Requests._query_state_next,
    ChaincodeMessage.QUERY_STATE_CLOSE: Requests._query_state_close,
    ChaincodeMessage.PUT_STATE: Requests._put_state,
    ChaincodeMessage.DEL_STATE: Requests._del_state,
    ChaincodeMessage.PURGE_PRIVATE_DATA: Requests._purge_private_data,
    ChaincodeMessage.PUT_STATE_METADATA: Requests._put_state_metadata,
    ChaincodeMessage.WRITE_BATCH_STATE: Requests._write_batch_state,
    ChaincodeMessage.INVOKE_CHAINCODE: Requests._invoke_chaincode,
}


def _check_key(key: str) -> None:
    if not key:
        raise RequestError("a key must not be empty")


def _check_count(count: int, what: str) -> None:
    if count > MAX_KEYS_AT_ONCE:
        raise RequestError(f"{count} {what} in one request, but it may have {MAX_KEYS_AT_ONCE}")


def _packed(results: Iterator[Message] | list[Message]) -> list[peer_pb2.QueryResultBytes]:
    return [peer_pb2.QueryResultBytes(resultBytes=one.SerializeToString()) for one in results]


def _modification(one: KeyModification) -> queryresult_pb2.KeyModification:
    seconds, nanos = divmod(one.timestamp_ns, 10**9)
    found = queryresult_pb2.KeyModification(
        tx_id=one.transaction_id, value=one.value, is_delete=one.is_delete
    )
    found.timestamp.seconds = seconds
    found.timestamp.nanos = nanos
    return found
