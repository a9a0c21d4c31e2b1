"""A server's credentials that follow what is renewed."""

import asyncio
import socket
import ssl
import subprocess
import sys
import threading

import grpc.aio
import pytest

from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
)
from consortium.wire.tls import Shown, server_credentials

AUTHORITY = CertificateAuthority.create("Aurora", "aurora.example")


def issued() -> Shown:
    key = generate_key()
    certificate = AUTHORITY.issue(
        "peer.aurora.example", "peer", key.public_key(), hosts=("localhost", "127.0.0.1")
    )
    return Shown(key_pem(key), certificate_pem(certificate))


def greeted(port: int) -> bytes:
    """The certificate that a server shows, PEM."""
    return ssl.get_server_certificate(("127.0.0.1", port)).encode()


async def test_a_renewed_certificate_is_shown_to_the_next_one() -> None:
    shown = [issued()]
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", server_credentials(lambda: shown[-1]))
    await server.start()
    for _ in range(2):
        for _ in range(3):
            assert await asyncio.to_thread(greeted, port) == shown[-1].certificate_pem
        shown.append(issued())
    await server.stop(0)


@pytest.mark.slow
def test_servers_stop_and_start_while_many_connect() -> None:
    """In a process of its own: what went wrong here ended the process."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.consortium.wire.test_tls import storm; storm()"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr[-2000:]


def storm() -> None:
    """Servers one after another on one port, and clients that connect all the time."""
    over = threading.Event()
    context = ssl.create_default_context(cadata=AUTHORITY.certificate_pem.decode())

    def connect(port: int) -> None:
        while not over.is_set():
            try:
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=0.3) as plain,
                    context.wrap_socket(plain, server_hostname="localhost"),
                ):
                    pass
            except OSError:
                pass

    async def serve() -> None:
        shown, port = issued(), 0
        for _ in range(25):
            server = grpc.aio.server()
            address = f"127.0.0.1:{port}"
            port = server.add_secure_port(address, server_credentials(lambda: shown))
            await server.start()
            if address.endswith(":0"):
                for _ in range(8):
                    threading.Thread(target=connect, args=(port,), daemon=True).start()
            await asyncio.sleep(0.08)
            await server.stop(0)

    asyncio.run(serve())
    over.set()
    print("done", flush=True)
