"""A network of real orderers on loopback, and clients that talk to it over gRPC and TLS."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
)
from consortium.identity.msp import Msp, msp_config
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import (
    ChannelSpec,
    Consenter,
    OrganizationSpec,
    RaftOptions,
    genesis_block,
)
from consortium.orderer.node import Orderer, Settings
from consortium.orderer.pending import Limits
from consortium.wire import common_pb2, orderer_pb2, raftpb_pb2, services
from consortium.wire.envelopes import channel_header, signed_envelope, transaction_id
from tests.ports import free_ports

CHANNEL = "neighbourhood"
UTILITIES = ("Aurora", "Boreal", "Cielo")


class Utility:
    """An organization with its authority."""

    def __init__(self, name: str) -> None:
        self.domain = f"{name.lower()}.example"
        self.msp_id = f"{name}MSP"
        self.authority = CertificateAuthority.create(name, self.domain)

    def signer(self, name: str, role: str, *, valid_days: int = 365) -> Signer:
        key = generate_key()
        certificate = self.authority.issue(
            f"{name}.{self.domain}", role, key.public_key(), valid_days=valid_days
        )
        return Signer(self.msp_id, certificate_pem(certificate), key)

    def tls(self, name: str) -> tuple[bytes, bytes]:
        """Certificate and key, PEM, for a node on this machine."""
        key = generate_key()
        hosts = ("localhost", "127.0.0.1", f"{name}.{self.domain}")
        certificate = self.authority.issue(
            f"{name}.{self.domain}", "orderer", key.public_key(), hosts=hosts
        )
        return certificate_pem(certificate), key_pem(key)


class Network:
    """Orderers with their settings; each may be stopped and started again."""

    def __init__(
        self,
        folder: Path,
        orderers: int,
        limits: dict[str, Any] | None = None,
        *,
        beside_fabric: bool = False,
        **spec: object,
    ) -> None:
        self.folder = folder
        self.utilities = [Utility(name) for name in UTILITIES]
        self.roots = b"".join(one.authority.certificate_pem for one in self.utilities)
        ports = free_ports(2 * orderers)
        self.settings: list[Settings] = []
        consenters = []
        for number in range(orderers):
            utility = self.utilities[number % len(self.utilities)]
            certificate, key = utility.tls(f"orderer{number}")
            self.settings.append(
                Settings(
                    data_dir=folder / f"orderer{number}",
                    signer=utility.signer(f"orderer{number}", "orderer"),
                    tls_certificate_pem=certificate,
                    tls_key_pem=key,
                    tls_roots_pem=self.roots,
                    client_address=f"127.0.0.1:{ports[2 * number]}",
                    cluster_address=f"127.0.0.1:{ports[2 * number + 1]}",
                    stop_grace_s=0.1,
                    limits=Limits(**(limits or {})),
                    beside_fabric=beside_fabric,
                    administrators=Msp.from_config(
                        msp_config(utility.msp_id, utility.authority.certificate_pem)
                    ),
                )
            )
            consenters.append(
                Consenter("127.0.0.1", ports[2 * number + 1], certificate, certificate)
            )
        base = ChannelSpec(
            channel_id=CHANNEL,
            organizations=tuple(
                OrganizationSpec(
                    one.msp_id,
                    one.authority.certificate_pem,
                    orderer_endpoints=tuple(
                        f"127.0.0.1:{port}" for port in ports[2 * number : 2 * number + 1]
                    ),
                )
                for number, one in enumerate(self.utilities)
            ),
            consenters=tuple(consenters),
            batch_timeout="50ms",
            raft=RaftOptions(tick_interval_s=0.05),
        )
        self.spec = replace(base, **spec)  # type: ignore[arg-type]
        self.genesis = genesis_block(self.spec)
        self.client = self.utilities[0].signer("home", "client")
        self.orderers: list[Orderer | None] = [None] * orderers

    async def start(self, *numbers: int) -> None:
        for number in numbers or range(len(self.settings)):
            orderer = Orderer(self.settings[number])
            await orderer.start()
            await orderer.join(self.genesis)
            self.orderers[number] = orderer

    async def stop(self, *numbers: int) -> None:
        for number in numbers or range(len(self.settings)):
            orderer, self.orderers[number] = self.orderers[number], None
            if orderer is not None:
                await orderer.stop()

    async def crash(self, *numbers: int) -> None:
        """Stop as a killed process would: nobody is told, nothing more is written."""
        for number in numbers or range(len(self.settings)):
            orderer = self.orderers[number]
            if orderer is not None:
                for chain in orderer.channels.values():
                    chain.failure = "killed by the test"
        await self.stop(*numbers)

    def spare_settings(self) -> Settings:
        """Of an orderer that is none of the consenters."""
        certificate, key = self.utilities[0].tls("spare")
        return replace(
            self.settings[0],
            data_dir=self.folder / "spare",
            tls_certificate_pem=certificate,
            tls_key_pem=key,
            client_address="127.0.0.1:0",
            cluster_address="127.0.0.1:0",
        )

    @staticmethod
    def raft_message() -> bytes:
        """A Step request with a Raft message that could come from consenter 1."""
        message = raftpb_pb2.Message(type=raftpb_pb2.MsgHeartbeat, to=1, term=99, **{"from": 2})
        return orderer_pb2.StepRequest(
            consensus_request=orderer_pb2.ConsensusRequest(
                channel=CHANNEL, payload=message.SerializeToString()
            )
        ).SerializeToString()

    def running(self) -> list[Orderer]:
        return [one for one in self.orderers if one is not None]

    async def leader(self) -> int:
        """Number of the orderer that leads, once there is one."""
        found: list[int] = []

        def leads() -> bool:
            found[:] = [
                number
                for number, one in enumerate(self.orderers)
                if one is not None and (chain := one.channels.get(CHANNEL)) and chain.is_leader
            ]
            return bool(found)

        await until(leads)
        return found[0]

    async def follower(self) -> int:
        leader = await self.leader()
        return next(
            number
            for number, one in enumerate(self.orderers)
            if one is not None and number != leader
        )

    async def same_height(self) -> int:
        """The height that all running orderers reach, once each has the channel open.

        One that was removed closes the channel for a moment, to follow it from then on.
        """
        heights: set[int | None] = set()

        def same() -> bool:
            heights.clear()
            for one in self.running():
                chain = one.channels.get(CHANNEL)
                heights.add(chain.height if chain is not None else None)
            return len(heights) == 1 and None not in heights

        await until(same)
        (height,) = heights
        assert height is not None
        return height

    def envelope(self, size: int = 200, signer: Signer | None = None) -> bytes:
        """A transaction with random contents."""
        signer = signer or self.client
        nonce = os.urandom(24)
        header = channel_header(
            common_pb2.ENDORSER_TRANSACTION, CHANNEL, transaction_id(nonce, signer.serialized)
        )
        return signed_envelope(signer, header, os.urandom(size), nonce=nonce).SerializeToString()

    def channel(self, number: int) -> grpc.aio.Channel:
        """A client's connection to an orderer."""
        return grpc.aio.secure_channel(
            self.settings[number].client_address,
            grpc.ssl_channel_credentials(self.roots),
            options=services.NODE_CHANNEL_OPTIONS,
        )

    def blocks(self, number: int) -> list[common_pb2.Block]:
        orderer = self.orderers[number]
        assert orderer is not None
        chain = orderer.channels[CHANNEL]
        return [common_pb2.Block.FromString(chain.block(n)) for n in range(chain.height)]


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  any condition
            await asyncio.sleep(0.01)


@dataclass
class Answers:
    """What a Broadcast stream answered, in order, to the first envelopes sent."""

    statuses: list[int]
    infos: list[str]


async def broadcast(channel: grpc.aio.Channel, envelopes: Iterable[bytes]) -> Answers:
    """Send all envelopes over one stream without waiting, then collect the answers."""
    call = channel.stream_stream(services.BROADCAST)()
    answers = Answers([], [])

    async def send() -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            for one in envelopes:
                await call.write(one)
            await call.done_writing()

    sender = asyncio.create_task(send())
    try:
        while (raw := await call.read()) is not grpc.aio.EOF:
            response = orderer_pb2.BroadcastResponse.FromString(raw)
            answers.statuses.append(response.status)
            answers.infos.append(response.info)
    except grpc.RpcError:
        pass  # the orderer went away; what was answered counts
    finally:
        sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sender
        call.cancel()
    return answers


def position(where: str | int) -> orderer_pb2.SeekPosition:
    match where:
        case int(number):
            return orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=number))
        case "oldest":
            return orderer_pb2.SeekPosition(oldest=orderer_pb2.SeekOldest())
        case "newest":
            return orderer_pb2.SeekPosition(newest=orderer_pb2.SeekNewest())
        case _:
            return orderer_pb2.SeekPosition(next_commit=orderer_pb2.SeekNextCommit())


def seek(
    signer: Signer,
    start: str | int | None,
    stop: str | int | None,
    *,
    channel_id: str = CHANNEL,
    wait: bool = False,
    headers_only: bool = False,
    timestamp_ns: int | None = None,
) -> bytes:
    """A signed Deliver request."""
    info = orderer_pb2.SeekInfo(
        start=None if start is None else position(start),
        stop=None if stop is None else position(stop),
        behavior=(
            orderer_pb2.SeekInfo.BLOCK_UNTIL_READY
            if wait
            else orderer_pb2.SeekInfo.FAIL_IF_NOT_READY
        ),
        content_type=(
            orderer_pb2.SeekInfo.HEADER_WITH_SIG if headers_only else orderer_pb2.SeekInfo.BLOCK
        ),
    )
    header = channel_header(common_pb2.DELIVER_SEEK_INFO, channel_id, timestamp_ns=timestamp_ns)
    return signed_envelope(signer, header, info.SerializeToString()).SerializeToString()


async def deliver(channel: grpc.aio.Channel, request: bytes) -> tuple[list[common_pb2.Block], int]:
    """The blocks and the status that end a Deliver request."""
    call = channel.stream_stream(services.ORDERER_DELIVER)()
    await call.write(request)
    blocks: list[common_pb2.Block] = []
    try:
        while True:
            response = orderer_pb2.DeliverResponse.FromString(await call.read())
            if response.WhichOneof("Type") == "status":
                return blocks, response.status
            blocks.append(response.block)
    finally:
        call.cancel()
