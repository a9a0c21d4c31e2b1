"""A contract that does what none should, for tests of what becomes of it."""

import ctypes
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Chaincode,
    Context,
    Contract,
    Integer,
    Text,
    query,
    transaction,
)

Count = Annotated[int, Integer(0, 10**12)]
Name = Annotated[str, Text(".*", "text")]


class Unruly(Contract):
    name: ClassVar[str] = "unruly"

    @transaction
    def put(self, context: Context, *, key: Name, value: Name) -> object:
        context.put_state(key, value.encode())
        return (context.get_state(key) or b"").decode()

    @query
    def get(self, context: Context, *, key: Name) -> object:
        return (context.get_state(key) or b"").decode()

    @query
    def privates(self, context: Context, *, keys: Annotated[tuple[Name, ...], AtMost(9)]) -> object:
        found = context.get_privates("secrets", keys)
        return [None if value is None else value.decode() for value in found]

    # too much

    @query
    def answer(self, context: Context, *, size: Count) -> object:
        return "x" * size

    @transaction
    def announce(self, context: Context, *, size: Count) -> object:
        context.set_event("big", b"x" * size)
        return None

    @transaction
    def write(self, context: Context, *, count: Count, size: Count) -> object:
        for index in range(count):
            context.put_state(f"k{index:06d}", b"x" * size)
        return None

    @query
    def read(self, context: Context, *, count: Count) -> object:
        for index in range(count):
            context.get_state(f"{index:08d}")
        return None

    @query
    def scan(self, context: Context, *, times: Count) -> object:
        return sum(len(list(context.range("", ""))) for _ in range(times))

    # without end

    @query
    def loop(self, context: Context) -> object:
        while True:
            pass

    @query
    def loop_in_c(self, context: Context) -> object:
        return re.fullmatch("(a+)+b", "a" * 60) is None

    @query
    def power(self, context: Context) -> object:
        return (3 ** (10**8)) % 7

    @query
    def sleep(self, context: Context, *, seconds: Count) -> object:
        time.sleep(seconds)
        return None

    # out of order

    @query
    def fill_memory(self, context: Context, *, at_once: bool) -> object:
        if at_once:
            return len(bytearray(10**12))
        kept = []
        while True:
            kept.append(bytearray(10**6))

    @query
    def exit(self, context: Context) -> object:
        os._exit(7)

    @query
    def exit_politely(self, context: Context) -> object:
        sys.exit(7)

    @query
    def crash(self, context: Context) -> object:
        return ctypes.string_at(0).decode()

    @query
    def recurse(self, context: Context) -> object:
        return self.recurse(context)

    @query
    def print(self, context: Context, *, lines: Count) -> object:
        for index in range(lines):
            sys.stdout.write(f"line {index} {'x' * 1000}\n")
        sys.stderr.write("and an error\n")
        return None

    @query
    def shut(self, context: Context) -> object:
        os.closerange(0, 1000)
        return None

    @query
    def garble(self, context: Context) -> object:
        for descriptor in range(3, 100):
            try:
                os.write(descriptor, b"\0\0\0\5hello")
            except OSError:
                continue
        return None

    @query
    def flood(self, context: Context) -> object:
        for descriptor in range(3, 100):
            try:
                os.write(descriptor, b"\x7f\xff\xff\xff")
            except OSError:
                continue
        return None

    # out of bounds

    @query
    def look(self, context: Context, *, path: Name) -> object:
        """What can be seen from here."""
        found: dict[str, Any] = {
            "environment": sorted(os.environ),
            "folder": str(Path.cwd()),
            "hash_seed": os.environ.get("PYTHONHASHSEED"),
            "zone": list(time.tzname),
            "descriptors": sorted(_open_descriptors()),
        }
        for what, attempt in (
            ("read", lambda: Path(path).read_bytes().hex()),
            ("list", lambda: str(list(Path(path).parent.iterdir()))),
            ("write", lambda: _write("/tmp/written-by-a-contract")),
            ("connect", lambda: str(socket.create_connection(("127.0.0.1", 9), 1))),
            ("fork", lambda: str(_fork())),
            ("signal", lambda: str(os.kill(os.getppid(), 0))),
        ):
            try:
                found[what] = attempt()
            except Exception as error:
                found[what] = f"{type(error).__name__}"
        return found

    # calls

    @transaction
    def call(
        self, context: Context, *, chaincode: Name, function: Name, argument: Name, channel: Name
    ) -> object:
        context.put_state("caller", b"wrote")
        answer = context.call(chaincode, [function.encode(), argument.encode()], channel)
        return {
            "status": answer.status,
            "message": answer.message,
            "payload": answer.payload.decode(),
        }


def _open_descriptors() -> list[int]:
    found = []
    for descriptor in range(1000):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        found.append(descriptor)
    return found


def _write(path: str) -> int:
    return Path(path).write_bytes(b"x")


def _fork() -> int:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return child


CHAINCODE = Chaincode("unruly", (Unruly(),))
