"""A network with each node in a process of its own, on this machine."""

import asyncio
import contextlib
import sys
from asyncio.subprocess import Process
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .network import HOST, Network, NetworkError, Utility
from .nodes import KINDS, kinds_of

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


class NodeFailed(NetworkError):
    """A node's process ended, or did not come up in time."""


class ProcessNetwork:
    """Starts `gridledger node run` for every node, and stops them with SIGTERM.

    `processes` maps a node, such as ("Aurora", "peer"), to its process, so that a test can kill
    one and `start_node` it again.
    """

    def __init__(
        self, network: Network, *, log_level: str = "warning", log_dir: Path | None = None
    ) -> None:
        """What nodes tell goes to standard error, or to `<utility>-<kind>.log` in `log_dir`."""
        self.network = network
        self.processes: dict[tuple[str, str], Process] = {}
        self._log_level = log_level
        self._log_dir = log_dir

    async def start(self, progress: Callable[[str], None] = lambda _message: None) -> None:
        """Start every node and wait until each one listens; raises NodeFailed."""
        try:
            # Where one fails the others' starts are given up, so that none comes up after `stop`.
            async with asyncio.TaskGroup() as starts:
                for utility in self.network.utilities:
                    for kind in kinds_of(utility):
                        starts.create_task(self.start_node(utility, kind, progress))
        except BaseException as error:
            await self.stop()
            if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                raise error.exceptions[0] from None
            if isinstance(error, ExceptionGroup):
                failures = "; ".join(str(failure) for failure in error.exceptions)
                raise NodeFailed(failures) from error
            raise

    async def start_node(
        self,
        utility: Utility,
        kind: str,
        progress: Callable[[str], None] = lambda _message: None,
    ) -> None:
        """Start one node and wait until it listens; raises NodeFailed."""
        name = f"{kind} of {utility.name}"
        ports = {"ca": utility.ports.ca, "orderer": utility.ports.orderer}
        ports |= {name: one.client for name, one in utility.peers.items()}
        port = ports[kind]
        if await _accepts(port):
            raise NodeFailed(
                f"the {name} cannot start: something listens on its port {port} already"
            )
        with contextlib.ExitStack() as files:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "consortium.cli.main",
                "--log-level",
                self._log_level,
                "node",
                "run",
                "--data-dir",
                str(self.network.directory),
                utility.name,
                kind,
                # Ctrl-C reaches the parent alone, which then stops its nodes in order.
                start_new_session=True,
                stderr=files.enter_context(self._log(utility, kind)) if self._log_dir else None,
            )
        self.processes[utility.name, kind] = process
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await _accepts(port):
                    if process.returncode is not None:
                        raise NodeFailed(f"the {name} ended with status {process.returncode}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise NodeFailed(f"the {name} did not listen within {START_TIMEOUT_S:.0f} s") from None
        progress(f"{name} is up (process {process.pid})")

    def _log(self, utility: Utility, kind: str) -> BinaryIO:
        assert self._log_dir
        return (self._log_dir / f"{utility.name.lower()}-{kind}.log").open("ab")

    async def kill(self, utility: Utility, kind: str) -> None:
        """`kill -9` one node and wait until it is gone."""
        process = self.processes.pop((utility.name, kind))
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def stop(self) -> None:
        """SIGTERM to all, peers first; SIGKILL to those that do not end in time."""
        for kind in reversed(KINDS):
            of_kind = [key for key in self.processes if key[1].startswith(kind)]
            stopping = [self.processes.pop(key) for key in of_kind]
            await asyncio.gather(*(_stop(process) for process in stopping))


async def _stop(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _accepts(port: int) -> bool:
    try:
        _reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
