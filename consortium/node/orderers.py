"""Asking the orderers of a network's folder, and changing who orders, as the utilities' admins."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
    load_certificate,
    write_private,
)
from consortium.ledger.channel_config import Consenter
from consortium.ledger.config_changes import PendingUpdate, copied
from consortium.ledger.config_update import compute_update
from consortium.orderer.membership import FORCE_KEY, FORCE_QUORUM, certificate_hash
from consortium.wire import common_pb2, gridledger_pb2, services
from consortium.wire.envelopes import channel_header, signed_envelope
from gridledger_client import GatewayClient

from .channel import Current, UpdateRefused, current, signed_by_enough, submit_update
from .network import HOST, Network, NetworkError, Utility

ANSWER_TIMEOUT_S = 10.0
CHANGE_TIMEOUT_S = 120.0
"""How long a change of the consenters may take until the Raft group has followed it."""
POLL_S = 0.3


class OrdererError(NetworkError):
    """An orderer does not answer, or refuses; the sentence says why."""


class OrdererUnreachable(OrdererError):
    """An orderer does not answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a utility's orderer says of a channel; `problem` instead of it if it says nothing."""

    utility: Utility
    channel: gridledger_pb2.OrdererChannel | None
    problem: str = ""


def has_admin(utility: Utility) -> bool:
    """Whether the folder has the key of the utility's admin."""
    return (utility.directory / "admin" / "sign.key.pem").exists()


async def act(
    network: Network, utility: Utility, wanted: gridledger_pb2.OrdererAct
) -> gridledger_pb2.OrdererAnswer:
    """Have a utility's orderer do something, as its admin; raises OrdererError."""
    wanted.organization = utility.msp_id
    envelope = signed_envelope(
        utility.signer("admin"),
        channel_header(common_pb2.MESSAGE, network.channel),
        wanted.SerializeToString(),
    )
    address = f"{HOST}:{utility.ports.orderer}"
    credentials = grpc.ssl_channel_credentials(network.tls_bundle_pem)
    async with grpc.aio.secure_channel(
        address, credentials, options=services.NODE_CHANNEL_OPTIONS
    ) as connection:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.unary_unary(
            services.ORDERER_ACT
        )
        try:
            raw = await call(envelope.SerializeToString(), timeout=ANSWER_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
            ):
                raise OrdererUnreachable(
                    f"{utility.name}'s orderer at {address} does not answer; is it running?"
                ) from None
            raise OrdererError(f"{utility.name}'s orderer: {error.details()}") from None
    return gridledger_pb2.OrdererAnswer.FromString(raw)


async def ask_all(network: Network, utilities: Sequence[Utility] = ()) -> list[Asked]:
    """How the network's channel stands at each orderer whose admin is in the folder."""

    async def ask(utility: Utility) -> Asked:
        query = gridledger_pb2.OrdererAct(status=gridledger_pb2.OrdererStatusQuery())
        try:
            answer = await act(network, utility, query)
        except OrdererError as error:
            return Asked(utility, None, str(error))
        for channel in answer.channels:
            if channel.name == network.channel:
                return Asked(utility, channel)
        return Asked(utility, None, f"it has not joined channel {network.channel}")

    chosen = utilities or [utility for utility in network.utilities if has_admin(utility)]
    return list(await asyncio.gather(*(ask(utility) for utility in chosen)))


def leader_of(asked: Sequence[Asked]) -> Asked | None:
    """The orderer that leads, of those asked: of two that think so the one of the later term."""
    leaders = [
        one for one in asked if one.channel and one.channel.raft_id == one.channel.leader != 0
    ]
    return max(leaders, key=lambda one: one.channel.term if one.channel else 0, default=None)


def consenter_of(utility: Utility, certificate: bytes | None = None) -> Consenter:
    """A utility's orderer as a consenter, with the certificate in its folder by default."""
    pem = certificate or (utility.directory / "orderer" / "tls.cert.pem").read_bytes()
    return Consenter(HOST, utility.ports.cluster, pem, pem)


async def change_consenters(
    network: Network,
    gateway: GatewayClient,
    utility: Utility,
    change: Callable[[common_pb2.Config], None],
    *,
    force: bool = False,
) -> Current:
    """Have the folder's admins change the consenters; returns the configuration once in force.

    `utility` asks and submits. With `force` its signers agree that the quorum may be lost. Raises
    as `submit_update`.
    """
    now = await current(gateway, utility.msp_id)
    wanted = copied(now.config.config)
    change(wanted)
    update = compute_update(network.channel, now.config.config, wanted)
    if force:
        update.isolated_data[FORCE_KEY] = FORCE_QUORUM
    pending = signed_by_enough(
        network,
        PendingUpdate(network.channel, update.SerializeToString(deterministic=True)),
        now.config,
    )
    if lacking := pending.lacking(now.config):
        raise UpdateRefused(
            "the change of consenters is not agreed to yet: "
            + "; ".join(str(one) for one in lacking)
            + ". Have more utilities' admins in this folder, or make the update with"
            " `gridledger channel update --file … --out FILE` and let the others sign it"
        )
    return await submit_update(gateway, utility.msp_id, pending, now, utility.signer("admin"))


async def wait_for_group(
    network: Network,
    done: Callable[[gridledger_pb2.OrdererChannel], str],
    tell: Callable[[str], None],
) -> gridledger_pb2.OrdererChannel:
    """Wait until the leader says so: `done` returns what is still missing, or nothing.

    Raises OrdererError after CHANGE_TIMEOUT_S.
    """
    missing = told = "no orderer leads"
    try:
        async with asyncio.timeout(CHANGE_TIMEOUT_S):
            while True:
                leader = leader_of(await ask_all(network))
                if leader is not None and leader.channel is not None:
                    missing = done(leader.channel)
                    if not missing:
                        return leader.channel
                if missing != told:
                    told = missing
                    tell(missing)
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise OrdererError(
            f"the change is in the configuration, but after {CHANGE_TIMEOUT_S:g} s the orderers"
            f" have not followed it: {missing}. It goes on by itself; look with `gridledger orderer"
            " status`"
        ) from None


def next_certificate(utility: Utility, pinned: bytes) -> tuple[bytes, bool]:
    """The certificate that an orderer is to have next, and whether it has a new key.

    One that was renewed on disk with the same key is taken as it is; else one with a new key is
    made and laid beside it, where the orderer finds it once the configuration names it.
    """
    folder = utility.directory / "orderer"
    present = (folder / "tls.cert.pem").read_bytes()
    if certificate_hash(present) != certificate_hash(pinned):
        if _public_key(present) == _public_key(pinned):
            return present, False
        raise OrdererError(
            f"the certificate in {folder} is not the one that the channel names, and has another"
            " key; put back the one before, then rotate"
        )
    key_path, path = folder / "tls.next.key.pem", folder / "tls.next.cert.pem"
    if not path.exists():
        authority = CertificateAuthority.load(utility.directory / "ca")
        key = generate_key()
        name = f"orderer0.{utility.domain}"
        certificate = authority.issue(
            name, "orderer", key.public_key(), hosts=(name, "localhost", HOST)
        )
        write_private(key_path, key_pem(key))
        path.write_bytes(certificate_pem(certificate))
    return path.read_bytes(), True


def use_next_certificate(utility: Utility) -> None:
    """Make the next certificate the present one; the one before stays as `tls.previous`."""
    folder = utility.directory / "orderer"
    for part in ("key.pem", "cert.pem"):
        following = folder / f"tls.next.{part}"
        if following.exists():
            with contextlib.suppress(FileNotFoundError):
                (folder / f"tls.{part}").replace(folder / f"tls.previous.{part}")
            following.replace(folder / f"tls.{part}")


def _public_key(pem: bytes) -> object:
    return load_certificate(pem).public_key()


def read_certificate(path: Path) -> bytes:
    """A certificate in a file (PEM); raises CertificateError."""
    pem = path.read_bytes()
    load_certificate(pem)
    return pem
