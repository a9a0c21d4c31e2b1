"""A worker process: runs one chaincode, one transaction after another, for the node that made it.

    python -m consortium.chaincode.worker_process DESCRIPTOR PARENT MEMORY_BYTES FOLDER MODULE

DESCRIPTOR is one end of a socket pair; on it travel `protos.ChaincodeMessage`s as in a service's
stream, each behind its length (4 bytes, big-endian). FOLDER has the chaincode's modules, which see
each other by relative imports and this installation's contract API; MODULE has the `CHAINCODE`.
"""

import gc
import importlib
import os
import socket
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Never

import consortium
from consortium.wire import peer_pb2
from consortium.wire.envelopes import parse

from .api import Chaincode
from .requests import ChaincodeMessage
from .sandbox import limit_process, python_files, restrict_files
from .stub import offered_at_once, run_transaction

LENGTH = struct.Struct(">I")
_PACKAGE = "gridledger_contract"
_READ_AT_ONCE = 256 * 1024
_COLLECTED_AT = 50_000  # new objects, some megabytes


class CodeError(Exception):
    """A chaincode's code that can't be used; the message says why."""


class Channel:
    """The socket to the node, for one thread."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self.writes_at_once = self.reads_at_once = 1

    def send(self, message: peer_pb2.ChaincodeMessage) -> None:
        """Send a message; ends the process where the node is gone."""
        raw = message.SerializeToString()
        try:
            self._socket.sendall(LENGTH.pack(len(raw)) + raw)
        except OSError:
            os._exit(0)

    def receive(self) -> peer_pb2.ChaincodeMessage:
        """The next message; ends the process where the node is gone.

        Raises MemoryError for one that is too large here, and is ready for the next then.
        """
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        return parse(ChaincodeMessage, bytes(self._exactly(length)), "the node's message")

    def ask(self, request: peer_pb2.ChaincodeMessage) -> peer_pb2.ChaincodeMessage:
        """See `stub.Conversation`."""
        self.send(request)
        return self.receive()

    def _exactly(self, length: int) -> bytearray:
        try:
            received = bytearray(length)
        except MemoryError:
            while length:
                length -= self._into(memoryview(bytearray(min(length, _READ_AT_ONCE))))
            raise
        rest = memoryview(received)
        while rest:
            rest = rest[self._into(rest) :]
        return received

    def _into(self, buffer: memoryview) -> int:
        count = self._socket.recv_into(buffer)
        if not count:
            os._exit(0)
        return count


def load(folder: str, module: str) -> Chaincode:
    """The chaincode in a module of a folder; raises CodeError."""
    package = ModuleType(_PACKAGE)
    package.__path__ = [folder]
    sys.modules[_PACKAGE] = package
    try:
        loaded = importlib.import_module(f"{_PACKAGE}.{module}")
    except (Exception, SystemExit) as error:
        problem = f"{type(error).__name__}: {error}"
        raise CodeError(f"its module {module} cannot be imported: {problem}") from error
    chaincode = getattr(loaded, "CHAINCODE", None)
    if not isinstance(chaincode, Chaincode):
        raise CodeError(f"its module {module} has no CHAINCODE, which must be an api.Chaincode")
    return chaincode


def serve(channel: Channel, chaincode: Chaincode) -> Never:
    """Run transactions until the node is gone, or ends this process."""
    while True:
        message = channel.receive()
        if message.type == ChaincodeMessage.READY:
            channel.writes_at_once, channel.reads_at_once = offered_at_once(message)
        elif message.type == ChaincodeMessage.TRANSACTION:
            channel.send(run_transaction(chaincode, message, channel))


def main(arguments: list[str]) -> int:
    """See the page above; the exit status is 1 where the code can't be run."""
    descriptor, parent, memory_bytes, folder, module = arguments
    channel = Channel(int(descriptor))
    contract_api = Path(consortium.__file__).resolve().parent
    try:
        limit_process(int(memory_bytes), int(parent))
        restrict_files([*python_files(), contract_api, Path(folder)])
        chaincode = load(folder, module)
    except (CodeError, OSError, ValueError) as error:
        reason = str(error).encode(errors="backslashreplace")
        channel.send(ChaincodeMessage(type=ChaincodeMessage.ERROR, payload=reason))
        return 1
    # What is loaded stays, and a transaction leaves little behind that refers to itself: to look
    # for such took a twentieth of its time.
    gc.freeze()
    gc.set_threshold(_COLLECTED_AT)
    registration = peer_pb2.ChaincodeID(name=chaincode.name).SerializeToString()
    channel.send(ChaincodeMessage(type=ChaincodeMessage.REGISTER, payload=registration))
    serve(channel, chaincode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
