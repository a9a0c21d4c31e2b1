"""A cluster of orderers, each a process of its own, for benchmarks and for tests of faults.

No peers: what is measured and harmed here is ordering alone. Every process can be killed, paused,
started again, asked for its state, and given addresses, proxies and disks of the test's own.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from benchmarks import usage
from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
)
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import (
    ChannelSpec,
    Consenter,
    OrganizationSpec,
    genesis_block,
)
from consortium.wire import common_pb2, orderer_pb2, services
from consortium.wire.envelopes import channel_header, signed_envelope, transaction_id
from tests.ports import free_ports

CHANNEL = "neighbourhood"
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0


class Utility:
    """An organization with its authority."""

    def __init__(self, name: str) -> None:
        self.domain = f"{name.lower()}.example"
        self.msp_id = f"{name}MSP"
        self.authority = CertificateAuthority.create(name, self.domain)

    def signer(self, name: str, role: str, folder: Path, file: str) -> Signer:
        """A new identity of this organization, kept as `<file>.cert.pem` and `<file>.key.pem`."""
        key = generate_key()
        certificate = certificate_pem(
            self.authority.issue(f"{name}.{self.domain}", role, key.public_key())
        )
        (folder / f"{file}.cert.pem").write_bytes(certificate)
        (folder / f"{file}.key.pem").write_bytes(key_pem(key))
        return Signer(self.msp_id, certificate, key)


@dataclass
class OrdererProcess:
    """One orderer: where it listens, how it is started, and its process while it runs."""

    number: int
    """From 0; its Raft id is one more."""
    folder: Path
    client_address: str
    cluster_address: str
    prefix: Sequence[str] = ()
    """Command before the interpreter's, such as `nsenter …`, that ends in becoming it."""
    environment: dict[str, str] = field(default_factory=dict)
    process: Process | None = None
    _questions: int = 0
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def pid(self) -> int:
        """Process id; the orderer must be running."""
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has told on standard error, over all its lives."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    async def start(self, *, wait: bool = True) -> None:
        """Start it; by default return when it takes part."""
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.prefix,
                sys.executable,
                "-m",
                "benchmarks.orderer_process",
                str(self.folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=16 * 1024 * 1024,
                env={"GRPC_EXPERIMENTS": services.GRPC_EXPERIMENTS} | os.environ | self.environment,
            )
        if wait:
            await self.started()

    async def started(self) -> None:
        """Wait until it takes part; raises RuntimeError if it has ended instead."""
        assert self.process is not None
        assert self.process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            if not await self.process.stdout.readline():
                raise RuntimeError(f"orderer {self.number} did not start:\n{self.log[-2000:]}")

    async def ask(self, command: str) -> dict[str, Any]:
        """Send a command to the process and read its answer."""
        async with self._asking:
            process = self.process
            if process is None or process.stdin is None or process.stdout is None:
                raise RuntimeError(f"orderer {self.number} is not running")
            self._questions += 1
            process.stdin.write(f"{self._questions} {command}\n".encode())
            while line := await process.stdout.readline():
                answer: dict[str, Any] = json.loads(line)
                # Others belong to questions whose asker gave up.
                if answer["question"] == self._questions:
                    return answer
        raise RuntimeError(f"orderer {self.number} has ended:\n{self.log[-2000:]}")

    async def status(self) -> dict[str, Any]:
        """`Orderer.status()`."""
        return await self.ask("status")

    def send_signal(self, number: int) -> None:
        """Such as SIGSTOP."""
        os.kill(self.pid, number)

    async def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL if it takes too long."""
        process = self.process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
            self.process = None
        except TimeoutError:
            await self.kill()

    def cpu_s(self) -> float:
        """CPU time that it has used, user and system, s."""
        return usage.cpu_s(self.pid)

    def memory_mb(self, kind: str = "VmRSS") -> float:
        """Resident set, MiB: `RssAnon` without files (LMDB's pages), so the heap and stacks."""
        return usage.memory_mb(self.pid, kind)


@dataclass(frozen=True)
class Place:
    """Where an orderer listens, and how its process is started."""

    host: str
    client_port: int
    cluster_port: int
    prefix: Sequence[str] = ()
    data_dir: Path | None = None
    """In place of `data` in its own folder."""


def on_loopback(count: int) -> list[Place]:
    """Places with free ports of 127.0.0.1."""
    ports = free_ports(2 * count)
    return [Place("127.0.0.1", ports[2 * n], ports[2 * n + 1]) for n in range(count)]


class OrdererCluster:
    """Orderers that share channels. Use it as a context manager: none outlives it."""

    def __init__(
        self,
        folder: Path,
        places: Sequence[Place],
        *,
        channels: Sequence[str] = (CHANNEL,),
        limits: Mapping[str, Any] | None = None,
        service_limits: Mapping[str, Any] | None = None,
        utilities: int = 3,
        **spec: Any,
    ) -> None:
        """`spec` replaces fields of each channel's ChannelSpec."""
        self.folder = folder
        self.channels = tuple(channels)
        self.utilities = [Utility(name) for name in ("Aurora", "Boreal", "Cielo")[:utilities]]
        self.roots = b"".join(one.authority.certificate_pem for one in self.utilities)
        self.orderers: list[OrdererProcess] = []
        (folder / "genesis").mkdir(parents=True)
        (folder / "roots.pem").write_bytes(self.roots)
        self.client = self.utilities[0].signer("home", "client", folder, "client")
        consenters = []
        for number, place in enumerate(places):
            utility = self.utilities[number % utilities]
            name = f"orderer{number}"
            own = folder / name
            own.mkdir()
            key = generate_key()
            certificate = certificate_pem(
                utility.authority.issue(
                    f"{name}.{utility.domain}",
                    "orderer",
                    key.public_key(),
                    hosts=("localhost", "127.0.0.1", place.host),
                )
            )
            (own / "tls.cert.pem").write_bytes(certificate)
            (own / "tls.key.pem").write_bytes(key_pem(key))
            utility.signer(name, "orderer", own, "sign")
            orders: dict[str, Any] = {
                "msp_id": utility.msp_id,
                "data_dir": str(place.data_dir or own / "data"),
                "client_address": f"{place.host}:{place.client_port}",
                "cluster_address": f"{place.host}:{place.cluster_port}",
                "limits": dict(limits or {}),
                "service_limits": dict(service_limits or {}),
            }
            (own / "orders.json").write_text(json.dumps(orders))
            consenters.append(Consenter(place.host, place.cluster_port, certificate, certificate))
            self.orderers.append(
                OrdererProcess(
                    number, own, orders["client_address"], orders["cluster_address"], place.prefix
                )
            )
        base = ChannelSpec(
            channel_id=CHANNEL,
            organizations=tuple(
                OrganizationSpec(
                    one.msp_id,
                    one.authority.certificate_pem,
                    orderer_endpoints=(self.orderers[number % len(places)].client_address,),
                )
                for number, one in enumerate(self.utilities)
            ),
            consenters=tuple(consenters),
        )
        for channel in self.channels:
            block = genesis_block(replace(base, **(spec | {"channel_id": channel})))
            (folder / "genesis" / channel).write_bytes(block.SerializeToString())

    def dial(self, source: int, addresses: Mapping[int, str]) -> None:
        """Let `source` reach the others' cluster listeners at these addresses, from its start."""
        (self.orderers[source].folder / "dial.json").write_text(
            json.dumps(
                {self.orderers[number].cluster_address: to for number, to in addresses.items()}
            )
        )

    async def __aenter__(self) -> OrdererCluster:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(one.stop() for one in self.orderers))

    async def start(self, *numbers: int) -> None:
        """Start all, or some."""
        chosen = [self.orderers[n] for n in numbers] or self.orderers
        await asyncio.gather(*(one.start() for one in chosen))

    async def kill(self, *numbers: int) -> None:
        """`kill -9` to all, or some, at once."""
        chosen = [self.orderers[n] for n in numbers] or self.orderers
        for one in chosen:
            if one.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    one.process.kill()
        await asyncio.gather(*(one.kill() for one in chosen))

    async def leader(self, channel: str | None = None, *, timeout_s: float = 30.0) -> int:
        """Number of the orderer that leads a channel, once there is one that others follow."""
        async with asyncio.timeout(timeout_s):
            while True:
                votes: dict[int, int] = {}
                for one in self.orderers:
                    if one.process is None or one.process.returncode is not None:
                        continue
                    with contextlib.suppress(RuntimeError, TimeoutError):
                        async with asyncio.timeout(1.0):
                            state = channel_status(await one.status(), channel or self.channels[0])
                            votes[state["leader"]] = votes.get(state["leader"], 0) + 1
                for raft_id, count in votes.items():
                    if raft_id and 2 * count > len(self.orderers):
                        return raft_id - 1
                await asyncio.sleep(0.02)

    def connect(self, number: int) -> grpc.aio.Channel:
        """A client's connection to an orderer."""
        return grpc.aio.secure_channel(
            self.orderers[number].client_address,
            grpc.ssl_channel_credentials(self.roots),
            options=services.NODE_CHANNEL_OPTIONS,
        )

    def envelope(
        self, data: bytes, channel: str | None = None, signer: Signer | None = None
    ) -> bytes:
        """A signed transaction with these contents."""
        signer = signer or self.client
        nonce = os.urandom(24)
        header = channel_header(
            common_pb2.ENDORSER_TRANSACTION,
            channel or self.channels[0],
            transaction_id(nonce, signer.serialized),
        )
        return signed_envelope(signer, header, data, nonce=nonce).SerializeToString()

    def seek(self, start: int, channel: str | None = None) -> bytes:
        """A signed Deliver request: every block from `start` on, and those to come."""
        info = orderer_pb2.SeekInfo(
            start=orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=start)),
            stop=orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=2**64 - 1)),
            behavior=orderer_pb2.SeekInfo.BLOCK_UNTIL_READY,
        )
        header = channel_header(common_pb2.DELIVER_SEEK_INFO, channel or self.channels[0])
        return signed_envelope(self.client, header, info.SerializeToString()).SerializeToString()


def channel_status(status: Mapping[str, Any], channel: str = CHANNEL) -> dict[str, Any]:
    """One channel's part of `Orderer.status()`."""
    for one in status["channels"]:
        if one["channel"] == channel:
            found: dict[str, Any] = one
            return found
    raise RuntimeError(f"channel {channel} is not there")
