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
from dataclasses import dataclass
from typing import Protocol

from consortium.ledger.state import LedgerError
from consortium.wire import peer_pb2

from .api import Chaincode, Context, ContractError, Creator
from .batches import in_batches
from .simulator import SimulationError, TransactionSimulator

_LOGGER = logging.getLogger(__name__)

EXECUTION_DEADLINE_S = 30.0
"""Fabric's default."""
MAX_RESULT_BYTES = 4 * 1024 * 1024
MAX_EVENT_BYTES = 256 * 1024
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
    callers: tuple[str, ...] = ()
    """The chaincodes on whose behalf this one is called, outermost first."""


class Executor(Protocol):
    """Runs an invocation against a simulator."""

    async def invoke(
        self, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        """The contract's response, with its event if it succeeded.

        Status 200 to 399: success. 400 to 499: the contract refused. From 500: it failed.
        When this returns or raises, nothing uses the simulator's view any more.
        """


class EventHolder:
    """The part of a `Context` that keeps the transaction's event."""

    event: tuple[str, bytes] | None = None

    def set_event(self, name: str, payload: bytes) -> None:
        """See `api.Context`; raises ValueError for a second event or too large a one."""
        if self.event is not None:
            raise ValueError(f"event {name!r}: the transaction has an event already")
        if len(payload) > MAX_EVENT_BYTES:
            raise ValueError(
                f"event {name!r} has {len(payload)} bytes, but may have {MAX_EVENT_BYTES}"
            )
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

    def __init__(self, invocation: Invocation, simulator: TransactionSimulator) -> None:
        self.channel_id = invocation.channel_id
        self.transaction_id = invocation.transaction_id
        self.timestamp = invocation.timestamp
        self.creator = invocation.creator
        self.transient = invocation.transient
        self._namespace = invocation.chaincode
        self._simulator = simulator

    def get_state(self, key: str) -> bytes | None:
        return self._simulator.get_state(self._namespace, _checked(key))

    def put_state(self, key: str, value: bytes) -> None:
        self._simulator.put_state(self._namespace, _checked(key), value)

    def del_state(self, key: str) -> None:
        self._simulator.del_state(self._namespace, _checked(key))

    def range(self, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        return in_batches(self._simulator.range(self._namespace, start, end))

    def get_private(self, collection: str, key: str) -> bytes | None:
        return self._simulator.get_private(self._namespace, collection, _checked(key))

    def get_private_hash(self, collection: str, key: str) -> bytes | None:
        return self._simulator.get_private_hash(self._namespace, collection, _checked(key))

    def put_private(self, collection: str, key: str, value: bytes) -> None:
        self._simulator.put_private(self._namespace, collection, _checked(key), value)

    def del_private(self, collection: str, key: str) -> None:
        self._simulator.del_private(self._namespace, collection, _checked(key))

    def range_private(self, collection: str, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        return self._simulator.range_private(self._namespace, collection, start, end)


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
        future = self._threads.submit(self._run, chaincode, invocation, simulator)
        # Counted until the thread is free, also where its caller has stopped waiting.
        self._waiting += 1
        loop = asyncio.get_running_loop()
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

    def _one_less(self) -> None:
        self._waiting -= 1

    def _run(
        self, chaincode: Chaincode, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        return run_contract(
            chaincode,
            SimulatorContext(invocation, simulator),
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
        if len(payload) <= max_result_bytes:
            finish()
    except ContractError as error:
        return failure(error.status, str(error)), None
    except (SimulationError, LedgerError) as error:
        return failure(ERROR, str(error)), None
    except Exception:
        # The contract's own fault. Its text may name private data, so it stays in our log.
        _LOGGER.exception("%s: %s failed", context.transaction_id, chaincode.name)
        return failure(ERROR, f"{chaincode.name} failed; the peer's log has details"), None
    if len(payload) > max_result_bytes:
        return failure(
            ERROR,
            f"the answer has {len(payload)} bytes, but may have {max_result_bytes}; "
            "ask for fewer items",
        ), None
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
