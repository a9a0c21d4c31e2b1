"""The boundary behind which contract code runs.

`InProcessExecutor` runs the contracts that come with this node, reviewed by us, in threads of the
node. A thread cannot be killed: at its deadline an invocation is answered with an error, its
simulation is closed, and its next access to the state ends it. A contract that never touches the
state again keeps its thread; code that nobody reviewed belongs into a process of its own.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from consortium.ledger.lifecycle import NAMESPACE as LIFECYCLE
from consortium.ledger.lifecycle import committed_sequence
from consortium.ledger.state import LedgerError, PrivateDataUnavailableError
from consortium.wire import peer_pb2
from consortium.wire.envelopes import WireError, parse

from .api import Answer, Chaincode, Context, ContractError, Creator, Unavailable
from .batches import in_batches
from .simulator import LimitError, SimulationError, TransactionSimulator

_LOGGER = logging.getLogger(__name__)

EXECUTION_DEADLINE_S = 30.0
"""Fabric's default."""
MAX_RESULT_BYTES = 4 * 1024 * 1024
MAX_EVENT_BYTES = 256 * 1024
"""An event's name and payload."""
MAX_WAITING = 256
"""Invocations that run or wait for a thread."""
MAX_MESSAGE_CHARACTERS = 2000

OK = 200
ERROR = 500


class ExecutionError(Exception):
    """A contract could not be run at all; the message says why."""


class UnknownChaincodeError(ExecutionError):
    """No code for this chaincode on this node."""


class ExecutorBusyError(ExecutionError):
    """More invocations than the node's limit."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of a chaincode."""

    chaincode: str
    channel_id: str
    transaction_id: str
    timestamp: int
    """Epoch seconds from the proposal's channel header."""
    creator: Creator
    args: list[bytes]
    transient: Mapping[str, bytes]
    signed_proposal: peer_pb2.SignedProposal | None = None
    """For executors that hand the proposal on; contracts don't see it."""
    callers: tuple[tuple[str, str], ...] = ()
    """(channel, chaincode) on whose behalf this one is called, outermost first."""
    others: Executor | None = None
    """Runs the chaincodes that this one calls."""
    other_channels: OtherChannels | None = None
    """Where it may call into another channel."""
    package_id: str = ""
    """The package that holds the code; empty lets the executor find the one in force."""
    is_init: bool = False
    """Whether the chaincode is called to initialize itself."""


class Executor(Protocol):
    """Runs an invocation against a simulator."""

    async def invoke(
        self, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        """The contract's response, with its event if it succeeded.

        Status 200 to 399: success. 400 to 499: the contract refused. From 500: it failed.
        When this returns or raises, nothing uses the simulator's view any more.
        """


class OtherChannels(Protocol):
    """What a peer has of other channels than the transaction's."""

    def __call__(self, channel_id: str) -> AbstractContextManager[TransactionSimulator]:
        """A simulator over a channel's state, for a call that only reads; closed afterwards.

        Raises ExecutionError where the peer has not joined the channel, or the creator may not call
        chaincodes there.
        """


async def call_chaincode(
    caller: Invocation,
    simulator: TransactionSimulator,
    name: str,
    args: Sequence[bytes],
    channel_id: str = "",
) -> peer_pb2.Response:
    """Run another chaincode for the one that is running; its event is dropped.

    On the same channel it takes part in the transaction. On another it gets a simulator of its own,
    of which nothing is kept. Raises ExecutionError, SimulationError. (Rules: Fabric
    core/chaincode/handler.go, HandleInvokeChaincode.)
    """
    channel_id = channel_id or caller.channel_id
    if caller.others is None:
        raise ExecutionError("chaincodes cannot call each other here")
    callers = (*caller.callers, (caller.channel_id, caller.chaincode))
    if (channel_id, name) in callers:
        chain = " by ".join(chaincode for _, chaincode in reversed(callers))
        raise ExecutionError(
            f"chaincode {name} is called by {chain}; a chaincode takes part in a transaction once"
        )
    called = replace(
        caller,
        chaincode=name,
        channel_id=channel_id,
        args=list(args),
        callers=callers,
        package_id="",
        is_init=False,
    )
    if channel_id == caller.channel_id:
        return await _call_defined(called, simulator)
    if caller.other_channels is None:
        raise ExecutionError(
            f"chaincode {name} is called on channel {channel_id}, but here a transaction stays on "
            f"its own, {caller.channel_id}"
        )
    with caller.other_channels(channel_id) as elsewhere:
        return await _call_defined(called, elsewhere)


async def _call_defined(called: Invocation, simulator: TransactionSimulator) -> peer_pb2.Response:
    # Recorded: the call depends on the definition that it was made under.
    if not committed_sequence(lambda key: simulator.get_state(LIFECYCLE, key), called.chaincode):
        raise ExecutionError(
            f"chaincode {called.chaincode} is not defined on channel {called.channel_id}"
        )
    assert called.others is not None
    response, _ = await called.others.invoke(called, simulator)
    return response


def check_event(name: str, payload: bytes) -> None:
    """Raises LimitError for an event that is too large."""
    size = len(name) + len(payload)
    if size > MAX_EVENT_BYTES:
        raise LimitError(f"event {name[:80]!r} has {size} bytes, but may have {MAX_EVENT_BYTES}")


def check_result(payload: bytes, limit: int) -> None:
    """Raises LimitError for an answer that is too large."""
    if len(payload) > limit:
        raise LimitError(
            f"the answer has {len(payload)} bytes, but may have {limit}; ask for fewer items"
        )


def read_outcome(
    invocation: Invocation, message: peer_pb2.ChaincodeMessage, max_result_bytes: int
) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
    """What a chaincode outside this process answered, held to the limits; raises ExecutionError."""
    name = invocation.chaincode
    if message.type == peer_pb2.ChaincodeMessage.ERROR:
        raise ExecutionError(
            "transaction returned with failure: "
            + message.payload.decode(errors="replace")[:MAX_MESSAGE_CHARACTERS]
        )
    try:
        response = parse(peer_pb2.Response, message.payload, "the chaincode's response")
    except WireError as error:
        raise ExecutionError(f"{name}: {error}") from None
    # What nobody knows would be signed and stored without a limit.
    response.DiscardUnknownFields()
    response.message = response.message[:MAX_MESSAGE_CHARACTERS]
    if response.status < OK:
        raise ExecutionError(
            f"{name} answered with status {response.status}; a success has {OK}, a refusal 400 to "
            f"499, a failure {ERROR} or more"
        )
    event = message.chaincode_event
    try:
        check_result(response.payload, max_result_bytes)
        if response.status >= 400 or not message.HasField("chaincode_event"):
            return response, None
        check_event(event.event_name, event.payload)
    except LimitError as error:
        return failure(ERROR, str(error)), None
    # A chaincode says what happened, not in whose name.
    event.DiscardUnknownFields()
    event.chaincode_id = name
    event.tx_id = invocation.transaction_id
    return response, event


class EventHolder:
    """The part of a `Context` that keeps the transaction's event."""

    event: tuple[str, bytes] | None = None

    def set_event(self, name: str, payload: bytes) -> None:
        """See `api.Context`; raises ValueError for a second event, LimitError."""
        if self.event is not None:
            raise ValueError(f"event {name!r}: the transaction has an event already")
        check_event(name, payload)
        self.event = (name, payload)


class RunnableContext(Context, Protocol):
    """A context that `run_contract` can take the event from."""

    @property
    def event(self) -> tuple[str, bytes] | None: ...


class SimulatorContext(EventHolder):
    """The contract's `Context` over a simulator; see `api.Context` for what each member means.

    Ranges are read from the state in batches, as a peer that answers a chaincode in another
    process has to read them: what a transaction depends on does not tell where its contract ran.
    """

    def __init__(
        self,
        invocation: Invocation,
        simulator: TransactionSimulator,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Without the node's `loop` the contract can call no other."""
        self.channel_id = invocation.channel_id
        self.transaction_id = invocation.transaction_id
        self.timestamp = invocation.timestamp
        self.creator = invocation.creator
        self.transient = invocation.transient
        self._namespace = invocation.chaincode
        self._invocation = invocation
        self._simulator = simulator
        self._loop = loop

    def get_state(self, key: str) -> bytes | None:
        return self._simulator.get_state(self._namespace, _checked(key))

    def put_state(self, key: str, value: bytes) -> None:
        self._simulator.put_state(self._namespace, _checked(key), value)

    def del_state(self, key: str) -> None:
        self._simulator.del_state(self._namespace, _checked(key))

    def range(self, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        return in_batches(self._simulator.range(self._namespace, start, end))

    def get_private(self, collection: str, key: str) -> bytes | None:
        return self.get_privates(collection, (key,))[0]

    def get_privates(self, collection: str, keys: Sequence[str]) -> list[bytes | None]:
        names = list(map(_checked, keys))
        try:
            return self._simulator.get_privates(self._namespace, collection, names)
        except PrivateDataUnavailableError as error:
            raise Unavailable(str(error)) from None

    def get_private_hash(self, collection: str, key: str) -> bytes | None:
        return self._simulator.get_private_hash(self._namespace, collection, _checked(key))

    def put_private(self, collection: str, key: str, value: bytes) -> None:
        self._simulator.put_private(self._namespace, collection, _checked(key), value)

    def del_private(self, collection: str, key: str) -> None:
        self._simulator.del_private(self._namespace, collection, _checked(key))

    def purge_private(self, collection: str, key: str) -> None:
        self._simulator.purge_private(self._namespace, collection, _checked(key))

    def range_private(self, collection: str, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        return self._simulator.range_private(self._namespace, collection, start, end)

    def call(self, chaincode: str, args: Sequence[bytes], channel: str = "") -> Answer:
        if self._loop is None:
            raise SimulationError("chaincodes cannot call each other here")
        calling = asyncio.run_coroutine_threadsafe(
            call_chaincode(self._invocation, self._simulator, chaincode, args, channel), self._loop
        )
        try:
            response = calling.result()
        except ExecutionError as error:
            raise SimulationError(str(error)) from None
        return Answer(response.status, response.message, response.payload)


class InProcessExecutor:
    """Runs reviewed contracts in threads; see the page above for what that cannot do."""

    def __init__(
        self,
        chaincodes: Mapping[str, Chaincode],
        *,
        threads: int = 4,
        deadline_s: float = EXECUTION_DEADLINE_S,
        max_result_bytes: int = MAX_RESULT_BYTES,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._chaincodes = dict(chaincodes)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="contract")
        # Whom another contract waits for must not wait for a thread that such a one holds.
        self._called = ThreadPoolExecutor(max_waiting, thread_name_prefix="called-contract")
        self._deadline_s = deadline_s
        self._max_result_bytes = max_result_bytes
        self._max_waiting = max_waiting
        self._waiting = 0

    async def invoke(
        self, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        """See Executor. Raises UnknownChaincodeError, ExecutorBusyError."""
        chaincode = self._chaincodes.get(invocation.chaincode)
        if chaincode is None:
            raise UnknownChaincodeError(
                f"this node has no code for chaincode {invocation.chaincode}; it has "
                f"{', '.join(sorted(self._chaincodes)) or 'none'}"
            )
        if self._waiting >= self._max_waiting:
            raise ExecutorBusyError(
                f"{self._waiting} transactions are being simulated, which is this node's limit; "
                "try again, or ask another peer"
            )
        loop = asyncio.get_running_loop()
        threads = self._called if invocation.callers else self._threads
        future = threads.submit(self._run, chaincode, invocation, simulator, loop)
        # Counted until the thread is free, also where its caller has stopped waiting.
        self._waiting += 1
        future.add_done_callback(lambda _: _call_soon(loop, self._one_less))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._deadline_s)
        except TimeoutError:
            _LOGGER.warning(
                "%s: %s took longer than %s s",
                invocation.transaction_id,
                invocation.chaincode,
                self._deadline_s,
            )
            message = f"{invocation.chaincode} did not finish within {self._deadline_s:g} s"
            await asyncio.to_thread(simulator.close, message)
            return peer_pb2.Response(status=ERROR, message=message), None
        except asyncio.CancelledError:
            simulator.close("its caller has gone away")
            raise

    def close(self) -> None:
        """Take no more invocations; those that wait are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._called.shutdown(wait=False, cancel_futures=True)

    def _one_less(self) -> None:
        self._waiting -= 1

    def _run(
        self,
        chaincode: Chaincode,
        invocation: Invocation,
        simulator: TransactionSimulator,
        loop: asyncio.AbstractEventLoop,
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        return run_contract(
            chaincode,
            SimulatorContext(invocation, simulator, loop),
            invocation.args,
            self._max_result_bytes,
        )


def run_contract(
    chaincode: Chaincode,
    context: RunnableContext,
    args: Sequence[bytes],
    max_result_bytes: int = MAX_RESULT_BYTES,
    finish: Callable[[], None] = lambda: None,
) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
    """Run a contract to its end: its response, whatever happens in it, and its event.

    `finish` does what is left to do after a success, and may fail as the contract may.
    """
    try:
        payload = chaincode.invoke(context, args)
        check_result(payload, max_result_bytes)
        finish()
    except ContractError as error:
        return failure(error.status, str(error)), None
    except (SimulationError, LedgerError, Unavailable) as error:
        return failure(ERROR, str(error)), None
    except MemoryError:
        return failure(ERROR, f"{chaincode.name} needs more memory than a contract may have"), None
    except Exception, SystemExit:
        # The contract's own fault. Its text may name private data, so it stays in our log.
        _LOGGER.exception("%s: %s failed", context.transaction_id, chaincode.name)
        return failure(ERROR, f"{chaincode.name} failed; the peer's log has details"), None
    event = None
    if context.event is not None:
        name, data = context.event
        event = peer_pb2.ChaincodeEvent(
            chaincode_id=chaincode.name,
            tx_id=context.transaction_id,
            event_name=name,
            payload=data,
        )
    return peer_pb2.Response(status=OK, payload=payload), event


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """From a worker thread; a loop that is closed by then needs no news."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)


def failure(status: int, message: str) -> peer_pb2.Response:
    """A refusal or fault for the caller, its sentence cut to the limit."""
    # A lone surrogate (from an escape in a client's JSON) could not be sent.
    text = message.encode(errors="backslashreplace").decode()
    return peer_pb2.Response(status=status, message=text[:MAX_MESSAGE_CHARACTERS])


def _checked(key: str) -> str:
    if not key:
        raise ValueError("a key must not be empty")
    return key
