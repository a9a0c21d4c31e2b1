"""Which executor runs which chaincode: our reviewed contracts here, others where they are served.

A peer's operator names the served ones in a small file, `chaincodes.json`:

    {"basic": {"address": "127.0.0.1:9999", "tls_root_pem": "-----BEGIN CERTIFICATE-----…"}}

`address` alone is required. `tls_root_pem` turns TLS on; `certificate_pem` and `key_file` (a path,
beside the file unless absolute) are for a server that asks for a certificate, `server_name` for one
whose certificate names another host, and `package_id` refuses a server that registers as another
package. A chaincode named there is run there, even if this node has code for it. The file is read
again when it changes, so that chaincodes come and go without a restart.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consortium.wire import peer_pb2

from .executor import Executor, Invocation
from .remote import Connection, RemoteChaincode
from .simulator import TransactionSimulator

_LOGGER = logging.getLogger(__name__)

CONNECTIONS_FILE = "chaincodes.json"
MAX_FILE_BYTES = 1024 * 1024
_FIELDS = {
    "address",
    "tls_root_pem",
    "certificate_pem",
    "key_file",
    "server_name",
    "package_id",
}


class ConnectionsError(ValueError):
    """A file of connections that cannot be used; the message says which entry and why."""


def read_connections(path: Path) -> dict[str, Connection]:
    """The connections in a file, none if there is no file; raises ConnectionsError."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConnectionsError(f"{path} has more than {MAX_FILE_BYTES} bytes")
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConnectionsError(f"{path} cannot be read: {error}") from None
    if not isinstance(entries, dict):
        raise ConnectionsError(f"{path} must be a JSON object of connections by chaincode name")
    return {name: _connection(path, name, entry) for name, entry in entries.items()}


def _connection(path: Path, name: str, entry: Any) -> Connection:
    where = f"{path}: chaincode {name!r}"
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise ConnectionsError(f"{where} must be a JSON object of strings")
    if unknown := sorted(entry.keys() - _FIELDS):
        raise ConnectionsError(
            f"{where}: {unknown[0]!r} is not known; known are {', '.join(sorted(_FIELDS))}"
        )
    if ":" not in entry.get("address", ""):
        raise ConnectionsError(f'{where} needs an "address", host:port')
    if ("certificate_pem" in entry) != ("key_file" in entry):
        raise ConnectionsError(f"{where} needs certificate_pem and key_file together, or neither")
    if "tls_root_pem" not in entry and entry.keys() & {"certificate_pem", "server_name"}:
        raise ConnectionsError(f"{where} needs tls_root_pem: without it there is no TLS")
    key = None
    if "key_file" in entry:
        try:
            key = (path.parent / entry["key_file"]).read_bytes()
        except OSError as error:
            raise ConnectionsError(f"{where}: its key cannot be read: {error}") from None
    return Connection(
        address=entry["address"],
        tls_root_pem=entry["tls_root_pem"].encode() if "tls_root_pem" in entry else None,
        certificate_pem=entry["certificate_pem"].encode() if key is not None else None,
        key_pem=key,
        server_name=entry.get("server_name", ""),
        package_id=entry.get("package_id", ""),
    )


class RoutingExecutor:
    """An Executor that hands each chaincode to its own.

    A chaincode in the file `connections` is dialled; every other one is `local`'s. Chaincodes call
    each other through here.
    """

    def __init__(
        self,
        local: Executor,
        connections: Path | Mapping[str, Connection],
    ) -> None:
        """Raises ConnectionsError for a file that cannot be used."""
        self._local = local
        self._path = connections if isinstance(connections, Path) else None
        self._seen: tuple[int, int] | None = None
        self._remote: dict[str, RemoteChaincode] = {}
        self._closing: set[asyncio.Task[None]] = set()
        if isinstance(connections, Path):
            self._seen = _mark(connections)
            self._connect(read_connections(connections))
        else:
            self._connect(connections)

    async def invoke(
        self, invocation: Invocation, simulator: TransactionSimulator
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        """See Executor."""
        self._look()
        executor = self._remote.get(invocation.chaincode, self._local)
        return await executor.invoke(invocation, simulator)

    async def close(self) -> None:
        """Hang up on every chaincode; the local executor is its owner's to close."""
        await asyncio.gather(*(remote.close() for remote in self._remote.values()), *self._closing)

    def _look(self) -> None:
        """Take up a file that has changed; one that cannot be used changes nothing."""
        if self._path is None or (mark := _mark(self._path)) == self._seen:
            return
        self._seen = mark
        try:
            self._connect(read_connections(self._path))
        except ConnectionsError as error:
            _LOGGER.error("%s; the connections stay as they were", error)

    def _connect(self, wanted: Mapping[str, Connection]) -> None:
        for name, remote in list(self._remote.items()):
            if wanted.get(name) != remote.connection:
                del self._remote[name]
                task = asyncio.get_running_loop().create_task(remote.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        for name, connection in wanted.items():
            if name not in self._remote:
                self._remote[name] = RemoteChaincode(name, connection, others=self)


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
