"""A client of orderers in a process of its own: sends signed envelopes and times their answers.

    python -m benchmarks.broadcaster < orders.json > answers.json

Envelopes are signed before the clock starts. With `rate` envelopes are sent at that pace (latency
counts from when each was due); without it as many as `in_flight` allows. With `batches` they go as
a gateway of ours sends them, as many in a message as wait by then, else one by one as from any
client of Fabric's.
"""

import asyncio
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import uvloop

from consortium.identity.signing import Signer
from consortium.orderer.streams import read
from consortium.wire import common_pb2, gridledger_pb2, orderer_pb2, services
from consortium.wire.envelopes import channel_header, signed_envelope, transaction_id

_SUCCESS = orderer_pb2.BroadcastResponse(status=common_pb2.SUCCESS)
_SUCCESS_BYTES = _SUCCESS.SerializeToString()


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
        self._batches: bool = orders["batches"]
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(
            services.BROADCAST_BATCHES if self._batches else services.BROADCAST
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
        number = 0
        while number < len(self._raws) and not reading.done():
            while len(self._sent) >= self._window:
                self._room.clear()
                await self._room.wait()
            due = time.perf_counter()
            ready = self._window - len(self._sent) if self._batches else 1
            if self._interval_s:
                due = started + number * self._interval_s
                await asyncio.sleep(due - time.perf_counter())
                late = (time.perf_counter() - due) / self._interval_s
                ready = min(ready, 1 + int(late))
            batch = self._raws[number : number + min(ready, services.BROADCAST_BATCH)]
            self._sent.extend(due + n * self._interval_s for n in range(len(batch)))
            number += len(batch)
            if self._batches:
                message = gridledger_pb2.EnvelopeBatch(envelopes=batch).SerializeToString()
            else:
                (message,) = batch
            await self._call.write(message)
        await self._call.done_writing()
        await reading

    async def _read(self) -> None:
        call = self._call
        while (raw := await read(call)) is not None:
            for answer in self._answers(raw):
                if answer.status != common_pb2.SUCCESS:
                    status = common_pb2.Status.Name(answer.status)
                    self.refusal = f"{status}: {answer.info}"
                    return
                self.latencies.append(time.perf_counter() - self._sent.popleft())
            self._room.set()

    def _answers(self, raw: bytes) -> Iterable[orderer_pb2.BroadcastResponse]:
        if self._batches:
            return gridledger_pb2.BroadcastAnswers.FromString(raw).answers
        return (
            (_SUCCESS,)
            if raw == _SUCCESS_BYTES
            else (orderer_pb2.BroadcastResponse.FromString(raw),)
        )


async def _run(orders: dict[str, Any]) -> None:
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
    # Before gRPC is taken down with the loop, which has been seen to end the process.
    sys.stdout.write(json.dumps(measured) + "\n")
    sys.stdout.flush()
    for connection in connections:
        await connection.close()


def main() -> None:
    """Read the orders, get ready, say so, wait for a line, send, and write what was measured."""
    uvloop.run(_run(json.loads(sys.stdin.readline())))


if __name__ == "__main__":
    main()
