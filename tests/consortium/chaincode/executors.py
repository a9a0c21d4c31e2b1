"""The same contract behind each kind of executor."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

from consortium.chaincode.api import Chaincode
from consortium.chaincode.executor import Executor, InProcessExecutor, Invocation
from consortium.chaincode.remote import Connection, RemoteChaincode
from consortium.chaincode.serve import ChaincodeServer
from consortium.chaincode.simulator import TransactionSimulator
from consortium.chaincode.worker import ContractCode, WorkerExecutor, WorkerSettings
from consortium.wire import peer_pb2
from tests.consortium.chaincode.contract_sources import unruly

KINDS = ("in-process", "worker", "service")
SOURCES = Path(__file__).parent / "contract_sources"


@contextlib.asynccontextmanager
async def running(kind: str, name: str = "unruly") -> AsyncIterator[Executor]:
    """The unruly contract as a chaincode of this name."""
    chaincode = Chaincode(name, (unruly.Unruly(),))
    if kind == "in-process":
        local = InProcessExecutor({name: chaincode})
        yield local
        local.close()
    elif kind == "worker":
        worker = WorkerExecutor(name, ContractCode(SOURCES, "unruly"), WorkerSettings(workers=1))
        yield worker
        await worker.close()
    else:
        server = ChaincodeServer(chaincode, f"{name}:1", "127.0.0.1:0")
        port = await server.start()
        dialled = RemoteChaincode(name, Connection(f"127.0.0.1:{port}"))
        yield dialled
        await dialled.close()
        await server.stop()


class Router:
    """Hands each chaincode to its own executor, as a peer's router does."""

    def __init__(self, executors: Mapping[str, Executor]) -> None:
        self._executors = executors

    async def invoke(
        self, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        executor = self._executors[invocation.chaincode]
        return await executor.invoke(replace(invocation, others=self), simulator)
