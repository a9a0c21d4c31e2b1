"""Clients that take all they can get: nodes stay within bounds, and others are served meanwhile.

Everything stays on the loopback address, is bounded, and ends by itself.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from consortium.node.network import Network
from consortium.wire import orderer_pb2, services
from gridledger_client import GatewayClient

from .conftest import RunningNetwork
from .tools import Wire, orderer_address, seek_all

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(300)]

MEMORY = 600 * 1024 * 1024
"""Bytes that a network of nine nodes in one process may grow by under an attack."""


def memory(running: RunningNetwork) -> int:
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def open_files(running: RunningNetwork) -> int:
    return len(list(Path(f"/proc/{running.process.pid}/fd").iterdir()))


async def served(client: GatewayClient) -> None:
    """An honest deposit, and how it came out."""
    await client.submit(
        "energy",
        "wallet:Deposit",
        {
            "account": "SUPPLIER-AURORA",
            "amount_micro": "1",
            "bank_reference": f"R-{time.time_ns()}",
        },
    )


@asynccontextmanager
async def bounded(running: RunningNetwork, operator: GatewayClient) -> AsyncIterator[None]:
    """Others are served during and after what is done inside, and no memory is lost to it."""
    await served(operator)
    before, log = memory(running), running.log.stat().st_size
    yield
    await served(operator)
    grown = memory(running) - before
    assert grown < MEMORY, f"the nodes have grown by {grown >> 20} MiB"
    with running.log.open() as file:
        file.seek(log)
        assert "Traceback" not in file.read()


def connection(network: Network, address: str, number: int) -> grpc.aio.Channel:
    """A connection of its own, not one that gRPC shares."""
    return grpc.aio.secure_channel(
        address,
        grpc.ssl_channel_credentials(network.tls_bundle_pem),
        options=(("grpc.use_local_subchannel_pool", 1), ("attack", number)),
    )


async def test_ten_thousand_streams(running: RunningNetwork, operator: GatewayClient) -> None:
    """Of blocks and of envelopes, opened and left alone: a thousand or two each, no more."""
    network = running.network
    aurora = network.utilities[0]
    codes: Counter[str] = Counter()

    async def hold(channel: grpc.aio.Channel, path: str) -> None:
        call = channel.stream_stream(path)(timeout=250)
        try:
            await call.wait_for_connection()
            codes[(await call.code()).name] += 1
        except asyncio.CancelledError:
            codes["held"] += 1
            call.cancel()
        except grpc.aio.AioRpcError as error:
            codes[error.code().name] += 1

    async with bounded(running, operator):
        channels, tasks = [], []
        for address, path in (
            (aurora.gateway_address, services.DELIVER_FILTERED),
            (orderer_address(aurora), services.BROADCAST),
        ):
            for number in range(5):
                channel = connection(network, address, number)
                channels.append(channel)
                tasks += [asyncio.create_task(hold(channel, path)) for _ in range(1_000)]
        assert len(tasks) == 10_000
        # Until all that is over a limit is refused.
        async with asyncio.timeout(150):
            while codes.total() < 7_000:  # noqa: ASYNC110
                await asyncio.sleep(0.5)
        await served(operator)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in channels))
    # A stream that is refused while it is opened may look cancelled to its client.
    assert set(codes) <= {"RESOURCE_EXHAUSTED", "CANCELLED", "held"}, codes
    assert codes["held"] <= 3_000, codes
    assert codes.total() == 10_000, codes


async def test_readers_who_do_not_read(running: RunningNetwork, operator: GatewayClient) -> None:
    """The whole chain, asked for a thousand times over by clients that take none of it."""
    network = running.network
    aurora = network.utilities[0]
    signer = aurora.signer("operator")
    async with bounded(running, operator):
        seek = seek_all(network, signer)
        calls = []
        channels = [connection(network, aurora.gateway_address, n) for n in range(4)]
        for channel in channels:
            for _ in range(50):
                call = channel.stream_stream(services.DELIVER)(timeout=30)
                # Most are refused: one client may hold few. Writing meets the end this way or that.
                with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    for _ in range(20):
                        await call.write(seek.SerializeToString())
                calls.append(call)
        await served(operator)
        for call in calls:
            call.cancel()
        await asyncio.gather(*(channel.close() for channel in channels))


async def test_connections_that_never_finish_tls(
    running: RunningNetwork, operator: GatewayClient
) -> None:
    """Silent ones, ones that begin to speak, and ones that speak something else."""
    aurora = running.network.utilities[0]
    hello = bytes.fromhex("160301020001") + b"\x00\x01\xfc\x03\x03" + bytes(100)
    openings = (
        b"",
        hello[:3],
        hello,
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    )
    ports = (
        aurora.ports.peer,
        aurora.ports.peer_node,
        aurora.ports.orderer,
        aurora.ports.cluster,
    )
    async with bounded(running, operator):
        before = open_files(running)
        sockets = []
        for number in range(1_000):
            one = socket.create_connection(("127.0.0.1", ports[number % len(ports)]), timeout=60)
            one.setblocking(False)
            with contextlib.suppress(OSError):
                one.send(openings[number % len(openings)])
            sockets.append(one)
        await served(operator)
        # Aurora's CA is another kind of server; it gets a hundred.
        sockets += [
            socket.create_connection(("127.0.0.1", aurora.ports.ca), timeout=60) for _ in range(100)
        ]
        await asyncio.to_thread(running.register, "Aurora", f"tls-{time.time_ns()}")
        await served(operator)
        for one in sockets:
            one.close()
        async with asyncio.timeout(60):
            while open_files(running) > before + 50:  # noqa: ASYNC110
                await asyncio.sleep(0.2)


async def test_very_large_metadata(
    running: RunningNetwork, operator: GatewayClient, wire: Wire
) -> None:
    """gRPC refuses it by itself; so it does a hundred at once."""
    network = running.network
    address = network.utilities[0].gateway_address
    codes: Counter[grpc.StatusCode] = Counter()

    async def call(channel: grpc.aio.Channel, size: int) -> None:
        try:
            await channel.unary_unary(services.EVALUATE)(
                b"", metadata=(("x-large", "a" * size),), timeout=20
            )
        except grpc.aio.AioRpcError as error:
            codes[error.code()] += 1

    async with bounded(running, operator), connection(network, address, 0) as channel:
        await asyncio.gather(*(call(channel, 1_000_000) for _ in range(100)))
        await asyncio.gather(*(call(channel, 10) for _ in range(10)))
    assert codes == {
        grpc.StatusCode.RESOURCE_EXHAUSTED: 100,
        grpc.StatusCode.INVALID_ARGUMENT: 10,
    }


async def test_an_envelope_stream_that_is_not_read(
    running: RunningNetwork, operator: GatewayClient
) -> None:
    """Large envelopes to an orderer, answers never read: the sender is held up, nobody else."""
    network = running.network
    aurora = network.utilities[0]
    async with bounded(running, operator):
        channel = connection(network, orderer_address(aurora), 0)
        large = orderer_pb2.SeekInfo().SerializeToString() + os.urandom(4_000_000)

        async def pour() -> None:
            call = channel.stream_stream(services.BROADCAST)(timeout=20)
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                for _ in range(10):
                    await call.write(large)
            call.cancel()

        pouring = asyncio.gather(*(pour() for _ in range(20)))
        await served(operator)
        await pouring
        await channel.close()
