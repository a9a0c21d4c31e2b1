"""A client of orderers in a process of its own: sends signed envelopes and times their answers.

    python -m benchmarks.broadcaster < orders.json > answers.json

Envelopes are signed before the clock starts. With `rate` envelopes are sent at that pace (latency
counts from when each was due); without it as many as `in_flight` allows.
"""

import asyncio
import json
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import grpc
import uvloop

from consortium.identity.signing import Signer
from consortium.orderer.streams import read
from consortium.wire import common_pb2, orderer_pb2, services
from consortium.wire.envelopes import channel_header, signed_envelope, transaction_id

_SUCCESS = orderer_pb2.BroadcastResponse(status=common_pb2.SUCCESS).SerializeToString()


def envelopes(signer: Signer, channel: str, count: int, size: int) -> list[bytes]:
    """Signed envelopes of `size` bytes each, as near as it can be had."""

    def make(data: bytes) -> bytes:
        nonce = os.urandom(24)
        header = channel_header(
            common_pb2.ENDORSER_TRANSACTION, channel, transaction_id(nonce, signer.serialized)
        )
        return signed_envelope(signer, header, data, nonce=nonce).SerializeToString()

    data = os.urandom(max(0, size - len(make(b""))))
    return [make(data) for _ in range(count)]


class _Sender:
    """One Broadcast stream."""

    def __init__(
        self, channel: grpc.aio.Channel, raws: list[bytes], orders: dict[str, Any]
    ) -> None:
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(
            services.BROADCAST
        )()
        self._raws = raws
        self._window = max(1, orders["in_flight"] // orders["streams"])
        self._interval_s = orders["streams"] / orders["rate"] if orders["rate"] else 0.0
        self._sent: deque[float] = deque()
        self._room = asyncio.Event()
        self.latencies: list[float] = []
        self.refusal = ""

    async def run(self) -> None:
        reading = asyncio.create_task(self._read())
        started = time.perf_counter()
        for number, raw in enumerate(self._raws):
            if reading.done():
                break
            due = time.perf_counter()
            if self._interval_s:
                due = started + number * self._interval_s
                await asyncio.sleep(due - time.perf_counter())
            while len(self._sent) >= self._window:
                self._room.clear()
                await self._room.wait()
            self._sent.append(due)
            await self._call.write(raw)
        await self._call.done_writing()
        await reading

    async def _read(self) -> None:
        call = self._call
        while (raw := await read(call)) is not None:
            if raw != _SUCCESS:
                response = orderer_pb2.BroadcastResponse.FromString(raw)
                status = common_pb2.Status.Name(response.status)
                self.refusal = f"{status}: {response.info}"
                break
            self.latencies.append(time.perf_counter() - self._sent.popleft())
            self._room.set()


async def _run(orders: dict[str, Any]) -> dict[str, Any]:
    folder = Path(orders["folder"])
    roots = (folder / "roots.pem").read_bytes()
    signer = Signer.load(orders["msp_id"], folder / "client.cert.pem", folder / "client.key.pem")
    raws = envelopes(signer, orders["channel"], orders["count"], orders["size"])
    connections = [
        grpc.aio.secure_channel(
            address, grpc.ssl_channel_credentials(roots), options=services.NODE_CHANNEL_OPTIONS
        )
        for address in orders["addresses"]
    ]
    await asyncio.gather(*(one.channel_ready() for one in connections))
    streams = orders["streams"]
    senders = [
        _Sender(connections[number % len(connections)], raws[number::streams], orders)
        for number in range(streams)
    ]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one.run() for one in senders))
    measured = {
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - cpu,
        "latencies": [value for one in senders for value in one.latencies],
        "refusals": [one.refusal for one in senders if one.refusal],
    }
    for connection in connections:
        await connection.close()
    return measured


def main() -> None:
    """Read the orders, get ready, say so, wait for a line, send, and write what was measured."""
    orders = json.loads(sys.stdin.readline())
    sys.stdout.write(json.dumps(uvloop.run(_run(orders))) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
