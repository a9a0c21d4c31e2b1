"""Contracts in processes of their own: killed at their deadline, limited in memory, replaced.

A worker process speaks the chaincode stream of a service over a socket pair, so the peer's side is
the same (`requests`), and a worker can do no more than any chaincode. It runs one transaction at a
time: what happens to it costs that transaction and no other. It starts with an empty environment
(PYTHONHASHSEED and TZ fixed), in the root folder, with no open file but its socket and a pipe for
what it prints, and gives up the rest itself before it loads the contract (`sandbox`).
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from dataclasses import dataclass
from pathlib import Path

import consortium
from consortium.wire import peer_pb2
from consortium.wire.envelopes import WireError, parse

from .executor import (
    ERROR,
    EXECUTION_DEADLINE_S,
    MAX_EVENT_BYTES,
    MAX_RESULT_BYTES,
    MAX_WAITING,
    ExecutionError,
    ExecutorBusyError,
    Invocation,
    failure,
    read_outcome,
)
from .requests import ChaincodeMessage, Requests, offer
from .simulator import MAX_WRITE_BYTES, TransactionSimulator
from .worker_process import LENGTH

_LOGGER = logging.getLogger(__name__)

WORKERS = 2
"""Processes for one chaincode that run at once."""
MEMORY_BYTES = 256 * 1024 * 1024
"""Address space of a worker."""
START_TIMEOUT_S = 30.0
"""To start and load the code, on a small and busy machine."""
HANG_UP_S = 1.0
"""Between a worker's hanging up and its end."""
MAX_MESSAGE_BYTES = 2 * (MAX_WRITE_BYTES + MAX_RESULT_BYTES + MAX_EVENT_BYTES)
"""From a worker."""
_READ_AHEAD_BYTES = 1024 * 1024  # a batch of readings comes back at once
MAX_LOGGED_LINES = 20
"""Of what a contract prints in one transaction."""
MAX_LINE_CHARACTERS = 500

_ENDS = (ChaincodeMessage.COMPLETED, ChaincodeMessage.ERROR)


class WorkerError(ExecutionError):
    """A worker process that ended or broke the protocol."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a chaincode's workers are run."""

    workers: int = WORKERS
    memory_bytes: int = MEMORY_BYTES
    deadline_s: float = EXECUTION_DEADLINE_S
    max_waiting: int = MAX_WAITING
    max_result_bytes: int = MAX_RESULT_BYTES


@dataclass(frozen=True, slots=True)
class ContractCode:
    """Sources of a chaincode: a folder of modules, one of which has the `CHAINCODE`."""

    folder: Path
    module: str


class _Worker:
    """One process and the socket to it."""

    def __init__(
        self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._printed = 0
        self._log = asyncio.create_task(self._log_output())

    @classmethod
    async def start(cls, code: ContractCode, memory_bytes: int) -> _Worker:
        """Start a process and have it load the code; raises WorkerError."""
        ours, theirs = socket.socketpair()
        descriptor = theirs.fileno()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *_command(descriptor, code, memory_bytes),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                pass_fds=(descriptor,),
                cwd="/",
                env=environment(),
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_READ_AHEAD_BYTES)
        worker = cls(process, reader, writer)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                message = await worker.receive()
            if message.type == ChaincodeMessage.ERROR:
                reason = message.payload.decode(errors="replace")[:MAX_LINE_CHARACTERS]
                raise WorkerError(f"it cannot be run in a worker process: {reason}")
            ready = offer().SerializeToString()
            await worker.send(ChaincodeMessage(type=ChaincodeMessage.READY, payload=ready))
        except TimeoutError:
            await worker.kill()
            raise WorkerError(
                f"a worker process did not start within {START_TIMEOUT_S:g} s"
            ) from None
        except BaseException:
            await worker.kill()
            raise
        return worker

    @property
    def alive(self) -> bool:
        """Whether another transaction can be given to it."""
        return self._process.returncode is None and not self._reader.at_eof()

    def has_grown(self, memory_bytes: int) -> bool:
        """Whether it holds so much of its memory that a transaction would miss it."""
        try:
            resident = int(Path(f"/proc/{self._process.pid}/statm").read_bytes().split()[1])
        except OSError, IndexError, ValueError:
            return False
        return resident * os.sysconf("SC_PAGE_SIZE") > memory_bytes // 2

    def begin(self) -> None:
        """A transaction begins: it may print anew."""
        self._printed = 0

    async def send(self, message: peer_pb2.ChaincodeMessage) -> None:
        """Send a message; raises WorkerError."""
        raw = message.SerializeToString()
        try:
            self._writer.write(LENGTH.pack(len(raw)) + raw)
            await self._writer.drain()
        except OSError:
            raise WorkerError(await self._ending()) from None

    async def receive(self) -> peer_pb2.ChaincodeMessage:
        """The next message; raises WorkerError."""
        try:
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            if length > MAX_MESSAGE_BYTES:
                raise WorkerError(
                    f"its worker process sends a message of {length} bytes, but may send "
                    f"{MAX_MESSAGE_BYTES}"
                )
            raw = await self._reader.readexactly(length)
        except OSError, asyncio.IncompleteReadError:
            raise WorkerError(await self._ending()) from None
        try:
            return parse(ChaincodeMessage, raw, "its worker process's message")
        except WireError as error:
            raise WorkerError(str(error)) from None

    async def kill(self) -> None:
        """End the process at once, and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._writer.close()
        await self._process.wait()
        # What it printed last says why it ended; a process that it started may hold the pipe.
        await asyncio.wait([self._log], timeout=HANG_UP_S)
        self._log.cancel()

    async def _ending(self) -> str:
        """How the process ended; it is killed if it has only hung up."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), HANG_UP_S)
        status = self._process.returncode
        if status is None:
            return "its worker process hung up"
        if status >= 0:
            return f"its worker process ended with status {status}"
        return f"its worker process ended by {signal.Signals(-status).name}"

    async def _log_output(self) -> None:
        """Take what the contract prints, so that it never waits; log the first lines."""
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(64 * 1024):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[:MAX_LINE_CHARACTERS]
            for line in lines:
                if self._printed == MAX_LOGGED_LINES:
                    break
                self._printed += 1
                text = line.decode(errors="replace")[:MAX_LINE_CHARACTERS]
                _LOGGER.warning("worker %s: %s", self._process.pid, text)


def environment() -> dict[str, str]:
    """All that a worker has of an environment: nothing of the node's."""
    return {
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(Path(consortium.__file__).resolve().parent.parent),
        "PYTHONUTF8": "1",
        "PYTHONTZPATH": "",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }


def _command(descriptor: int, code: ContractCode, memory_bytes: int) -> tuple[str, ...]:
    return (
        *(sys.executable, "-P", "-s", "-B", "-m", "consortium.chaincode.worker_process"),
        *(str(descriptor), str(os.getpid()), str(memory_bytes)),
        *(str(code.folder), code.module),
    )


def check_code(code: ContractCode, memory_bytes: int = MEMORY_BYTES) -> None:
    """Load a chaincode in a worker process and end it again; raises WorkerError if it can't be.

    Takes as long as starting Python: for threads.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(START_TIMEOUT_S)
        process = subprocess.Popen(
            _command(theirs.fileno(), code, memory_bytes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            cwd="/",
            env=environment(),
            start_new_session=True,
        )
        theirs.close()
        try:
            received = ours.recv(64 * 1024)
            message = parse(ChaincodeMessage, received[LENGTH.size :], "a worker's first message")
        except (OSError, WireError) as error:
            raise WorkerError(f"its code did not load in a worker process: {error}") from None
        finally:
            process.kill()
            process.wait()
    if message.type != ChaincodeMessage.REGISTER:
        reason = message.payload.decode(errors="replace")[:MAX_LINE_CHARACTERS]
        raise WorkerError(reason or "its worker process ended while it loaded the code")


class WorkerExecutor:
    """An Executor for one chaincode, whose `code` its worker processes load."""

    def __init__(
        self, name: str, code: ContractCode, settings: WorkerSettings | None = None
    ) -> None:
        self.name = name
        self.code = code
        self.settings = settings or WorkerSettings()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._free = asyncio.Semaphore(self.settings.workers)
        self._called = asyncio.Semaphore(self.settings.workers)
        self._waiting = 0
        self._starting: asyncio.Task[None] | None = None
        self._closed = False

    def prepare(self) -> None:
        """Start a worker in the background, so that the next transaction needs not wait for it."""
        if not (self._idle or self._starting or self._closed):
            self._starting = asyncio.create_task(self._prepare(), name=f"worker of {self.name}")

    async def invoke(
        self, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        """See Executor. Raises ExecutionError, WorkerError, ExecutorBusyError."""
        settings = self.settings
        if self._waiting >= settings.max_waiting:
            raise ExecutorBusyError(
                f"{self._waiting} transactions of chaincode {self.name} are being simulated, which "
                "is this node's limit; try again, or ask another peer"
            )
        # Whom another chaincode waits for must not wait for a worker that such a one holds.
        places = self._called if invocation.callers else self._free
        if invocation.callers and places.locked():
            raise ExecutorBusyError(
                f"{settings.workers} calls of chaincode {self.name} by others are under way, which "
                "is this node's limit; try again, or ask another peer"
            )
        self._waiting += 1
        problem = f"no worker process of {self.name} became free"
        try:
            async with contextlib.AsyncExitStack() as held:
                async with asyncio.timeout(settings.deadline_s):
                    await held.enter_async_context(places)
                worker = await self._take()
                problem = f"{self.name} did not finish"
                return await self._run(worker, invocation, simulator)
        except TimeoutError:
            message = f"{problem} within {settings.deadline_s:g} s"
            _LOGGER.warning("%s: %s", invocation.transaction_id, message)
            await asyncio.to_thread(simulator.close, message)
            return failure(ERROR, message), None
        except asyncio.CancelledError:
            simulator.close("its caller has gone away")
            raise
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """End all workers; what is under way fails."""
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await asyncio.gather(*(worker.kill() for worker in (*self._idle, *self._busy)))
        self._idle.clear()

    async def _run(
        self, worker: _Worker, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        """One transaction, from which the worker comes back whole or not at all."""
        self._busy.add(worker)
        whole = False
        try:
            worker.begin()
            async with asyncio.timeout(self.settings.deadline_s):
                requests = Requests(invocation, simulator)
                await worker.send(requests.opening())
                while (message := await self._next(worker, invocation)).type not in _ENDS:
                    await worker.send(await requests.answer(message))
            # What a contract keeps would be missing later.
            whole = not worker.has_grown(self.settings.memory_bytes)
        except WorkerError as error:
            raise WorkerError(
                f"chaincode {self.name} failed: {error}; the peer's log has what it printed"
            ) from None
        finally:
            self._busy.discard(worker)
            if whole:
                self._idle.append(worker)
            else:
                # It may be in its transaction still, for which nobody waits.
                await asyncio.shield(worker.kill())
                self.prepare()
        return read_outcome(invocation, message, self.settings.max_result_bytes)

    @staticmethod
    async def _next(worker: _Worker, invocation: Invocation) -> peer_pb2.ChaincodeMessage:
        message = await worker.receive()
        if (message.channel_id, message.txid) != (invocation.channel_id, invocation.transaction_id):
            # Else what one transaction left behind could be taken for the next one's answer.
            raise WorkerError("its worker process speaks of another transaction")
        return message

    async def _take(self) -> _Worker:
        """A worker to be given a transaction; raises WorkerError."""
        if self._starting is not None and not self._idle:
            await asyncio.wait([self._starting])
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
            await worker.kill()
        if self._closed:
            raise WorkerError("this node is stopping")
        try:
            return await _Worker.start(self.code, self.settings.memory_bytes)
        except WorkerError as error:
            raise WorkerError(f"chaincode {self.name}: {error}") from None

    async def _prepare(self) -> None:
        try:
            worker = await _Worker.start(self.code, self.settings.memory_bytes)
        except WorkerError as error:
            _LOGGER.error("chaincode %s: %s", self.name, error)
        else:
            self._idle.append(worker)
        finally:
            self._starting = None
