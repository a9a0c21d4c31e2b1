"""One orderer in a process of its own, driven over standard input; see `benchmarks.orderers`.

Commands are lines, a number and a word, and each gets a line of JSON with that number. The end of
the input (the parent is gone) and SIGTERM stop the orderer in order. `dial.json` in its folder says
which addresses are reached by another one, through a proxy of the test's.
"""

import asyncio
import contextlib
import json
import logging
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import uvloop

from benchmarks.profiling import Profile
from consortium.identity.signing import Signer
from consortium.orderer.cluster import ChannelTransport
from consortium.orderer.node import Orderer, Settings
from consortium.orderer.pending import Limits
from consortium.orderer.services import ServiceLimits
from consortium.wire import common_pb2
from consortium.wire import raftpb_pb2 as raftpb


def _redirect(dial: dict[str, str]) -> None:
    """Let connections to these addresses go elsewhere."""
    secure_channel = grpc.aio.secure_channel

    def redirected(target: str, *arguments: Any, **options: Any) -> grpc.aio.Channel:
        return secure_channel(dial.get(target, target), *arguments, **options)

    grpc.aio.secure_channel = redirected


def _count_sent() -> Counter[str]:
    """Raft messages that are sent from now on, by their type."""
    sent: Counter[str] = Counter()
    send = ChannelTransport.send

    def counted(
        self: ChannelTransport, consenter_id: int, message: raftpb.Message, metadata: bytes = b""
    ) -> bool:
        sent[raftpb.MessageType.Name(message.type)] += 1
        return send(self, consenter_id, message, metadata)

    ChannelTransport.send = counted  # type: ignore[method-assign]
    return sent


def _settings(folder: Path, orders: dict[str, Any]) -> Settings:
    return Settings(
        data_dir=Path(orders["data_dir"]),
        signer=Signer.load(orders["msp_id"], folder / "sign.cert.pem", folder / "sign.key.pem"),
        tls_certificate_pem=(folder / "tls.cert.pem").read_bytes(),
        tls_key_pem=(folder / "tls.key.pem").read_bytes(),
        tls_roots_pem=(folder.parent / "roots.pem").read_bytes(),
        client_address=orders["client_address"],
        cluster_address=orders["cluster_address"],
        stop_grace_s=0.1,
        limits=Limits(**orders["limits"]),
        service_limits=ServiceLimits(**orders["service_limits"]),
    )


async def _run(folder: Path) -> None:
    orders = json.loads((folder / "orders.json").read_text())
    if (folder / "dial.json").exists():
        _redirect(json.loads((folder / "dial.json").read_text()))
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    orderer = Orderer(_settings(folder, orders))
    await orderer.start()
    for path in sorted((folder.parent / "genesis").iterdir()):
        await orderer.join(common_pb2.Block.FromString(path.read_bytes()))
    profile = Profile()
    sent = _count_sent()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    _say({"started": True})

    async def obey() -> None:
        while line := await commands.readline():
            question, command = line.decode().split()
            answer: dict[str, object] = {"question": int(question)}
            match command:
                case "status":
                    answer |= orderer.status() | {"clock": time.time(), "sent": sent}
                case "profile":
                    profile.start()
                case "profiled":
                    answer["profile"] = profile.stop()
            _say(answer)
        stopping.set()

    obeying = asyncio.create_task(obey())
    await stopping.wait()
    obeying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await obeying
    await orderer.stop()


def _say(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Run the orderer whose folder is the argument."""
    logging.basicConfig(
        level="INFO",
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    uvloop.run(_run(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
