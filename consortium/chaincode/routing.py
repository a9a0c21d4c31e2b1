"""Which executor runs which package: a chaincode server is dialled, our own contracts run here.

The peer says which package a transaction runs (its organization approved it for the definition in
force). A package of type `ccaas` names a server; one of our own sources goes to an executor of
this node. Chaincodes call each other through here.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from consortium.wire import peer_pb2

from .executor import ExecutionError, Executor, Invocation
from .packages import SERVED_TYPES, SOURCES_TYPE, Package, PackageError, PackageStore
from .remote import RemoteChaincode
from .simulator import TransactionSimulator

type PackageOf = Callable[[Invocation, TransactionSimulator], str]
"""The package in force for a chaincode that another one calls; raises ExecutionError."""


class PackageExecutor:
    """An Executor that runs each transaction from its package."""

    def __init__(
        self,
        packages: PackageStore,
        local: Callable[[Package], Executor],
        package_of: PackageOf,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`local` gives the executor of a package of our own sources (PackageError if it cannot).

        `variables` are this peer's own, for packages with `{{.name}}` in them.
        """
        self._packages = packages
        self._local = local
        self._package_of = package_of
        self._variables = dict(variables or {})
        self._executors: dict[tuple[str, str], Executor] = {}
        self._remote: list[RemoteChaincode] = []

    async def invoke(
        self, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        """See Executor."""
        found = invocation.package_id or self._package_of(invocation, simulator)
        invocation = replace(invocation, package_id=found, others=self)
        # Each contract has a stream of its own, so that two of one package can call each other.
        key = (found, invocation.chaincode)
        executor = self._executors.get(key)
        if executor is None:
            try:
                # Read and loaded in a thread; who comes meanwhile does it again, harmlessly.
                package = await asyncio.to_thread(self._packages.package, found)
                made = await asyncio.to_thread(self._make, package, invocation.chaincode)
            except (PackageError, OSError) as error:
                raise ExecutionError(
                    f"chaincode {invocation.chaincode} cannot be run here: {error}"
                ) from None
            executor = self._executors.setdefault(key, made)
            if executor is made and isinstance(made, RemoteChaincode):
                self._remote.append(made)
        return await executor.invoke(invocation, simulator)

    def check(self, package: Package) -> None:
        """Raises PackageError for a package that could not be run here (Fabric's "build")."""
        self._make(package, package.label)

    async def close(self) -> None:
        """Hang up on every chaincode; local executors are their owner's to close."""
        await asyncio.gather(*(remote.close() for remote in self._remote))

    def _make(self, package: Package, chaincode: str) -> Executor:
        if package.type in SERVED_TYPES:
            connection = package.connection(self._variables)
            return RemoteChaincode(chaincode, connection)
        if package.type == SOURCES_TYPE:
            return self._local(package)
        raise PackageError(
            f"a package of type {package.type!r} cannot be built here: serve the chaincode and "
            "package its address as type ccaas"
        )
