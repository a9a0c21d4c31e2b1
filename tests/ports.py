"""Ports for tests and benchmarks that run beside each other.

A port that was free a moment ago may be taken before it is listened on: by another run of tests, or
by the system for some outgoing connection. So each process claims whole blocks of ports, below
those the system hands out, and keeps a claim by listening on its block's first port.
"""

import socket
from itertools import count

HOST = "127.0.0.1"
FIRST = 18_000
LAST = 32_500
"""Linux hands out ports from 32,768 on for connections that name none (`ip_local_port_range`)."""
BLOCK = 500

_claims: list[socket.socket] = []
_next = count()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _claim() -> None:
    """One more block for this process. Raises RuntimeError if none is left."""
    global _next
    for first in range(FIRST, LAST, BLOCK):
        claim = socket.socket()
        try:
            claim.bind((HOST, first))
            claim.listen(1)
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        _next = count(first + 1)
        return
    raise RuntimeError(f"no block of {BLOCK} ports is free from {FIRST} to {LAST - 1}")


def first_port(ports: int = 60) -> int:
    """The first of `ports` ports in a row that this process alone will use, once."""
    while True:
        first = next(_next)
        if not _claims or first % BLOCK + ports > BLOCK:
            _claim()
        elif all(map(_is_free, range(first, first + ports))):
            for _ in range(ports - 1):
                next(_next)
            return first


def free_ports(count: int) -> list[int]:
    """`count` ports that this process alone will use, once."""
    first = first_port(count)
    return list(range(first, first + count))
