"""A running channel's configuration: fetching it from a peer, and having it changed."""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from consortium.ca.registry import Registry
from consortium.gateway.broadcast import another_may_take_it
from consortium.identity.certificates import CertificateAuthority, pem_to_der
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import (
    ChannelConfig,
    OrganizationSpec,
    application_organization_group,
    config_of_block,
)
from consortium.ledger.config_changes import PendingUpdate, copied
from consortium.ledger.config_update import APPLICATION, ORDERER, compute_update
from consortium.wire import common_pb2, msp_pb2, orderer_pb2, services
from consortium.wire.blocks import LAST_CONFIG
from consortium.wire.envelopes import parse
from gridledger_client import GatewayClient

from .network import HOST, PREVIOUS_AUTHORITY, Network, NetworkError, Utility

ANSWER_TIMEOUT_S = 15.0
"""An orderer that does not answer for so long is left for another."""
COMMIT_TIMEOUT_S = 60.0
LATE_COMMIT_S = 5.0
"""How long to look for an update that an orderer took without telling."""
POLL_S = 0.1

_PEM_LIST = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


class UpdateRefused(NetworkError):
    """The ordering service does not take an update; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Current:
    """The configuration in force, and the block that holds it."""

    block_number: int
    config: ChannelConfig
    last_update: common_pb2.Envelope


async def current(gateway: GatewayClient, msp_id: str) -> Current:
    """The configuration in force at a utility's own peer.

    Raises the client's errors, ConfigError and WireError.
    """
    channel = gateway.channel.encode()

    async def ask(function: str, *arguments: bytes) -> bytes:
        answer = await gateway.evaluate(
            "qscc", function, [channel, *arguments], endorsing_organizations=[msp_id]
        )
        assert isinstance(answer, bytes)
        return answer

    async def block(number: int) -> common_pb2.Block:
        raw = await ask("GetBlockByNumber", str(number).encode())
        return parse(common_pb2.Block, raw, f"block {number}")

    info = parse(common_pb2.BlockchainInfo, await ask("GetChainInfo"), "the chain's state")
    newest = await block(info.height - 1)
    stored = parse(
        common_pb2.Metadata, newest.metadata.metadata[LAST_CONFIG], "the newest block's metadata"
    )
    number = parse(common_pb2.LastConfig, stored.value, "the newest block's metadata").index
    found = newest if number == newest.header.number else await block(number)
    channel_id, envelope = config_of_block(found)
    config = ChannelConfig.from_config(channel_id, envelope.config)
    return Current(number, config, envelope.last_update)


def organization_of(folder: Path) -> common_pb2.ConfigGroup:
    """The group of a utility whose folder another network has; raises NetworkError."""
    utility = Network.load(folder.parent).utility(folder.name)
    return application_organization_group(
        OrganizationSpec(
            utility.msp_id, utility.root_pem, anchor_peers=((HOST, utility.ports.peer_node),)
        )
    )


def revocation_lists(utility: Utility) -> list[bytes]:
    """What a utility has revoked so far: a list (PEM) of its root, and one of the root before.

    The root before has one while it is trusted. Each names all that is revoked, since the registry
    doesn't say which of the two certified whom; a list counts for certificates of the root that
    signed it alone. Raises OSError, CertificateError, RegistryError.
    """
    folder = utility.directory / "ca"
    revoked = Registry.open(folder).revoked_serial_numbers()
    authorities = [CertificateAuthority.load(folder)]
    previous = folder / PREVIOUS_AUTHORITY
    if (previous / CertificateAuthority.CERTIFICATE_FILE).exists():
        authorities.append(CertificateAuthority.load(previous))
    # By identifier: for a moment of a rotation both folders hold the same root.
    distinct = {authority.key_identifier: authority for authority in authorities}
    return [authority.revocation_list(revoked) for authority in distinct.values()]


def revocation_lists_of(data: bytes) -> list[bytes]:
    """The lists of a file: its PEM blocks one by one, or all of it where it has none (DER).

    A channel's configuration holds each list by itself; Fabric reads one block of an entry.
    """
    return [block + b"\n" for block in _PEM_LIST.findall(data)] or [data]


def trusted_root(config: ChannelConfig, msp_id: str, root_pem: bytes) -> bytes | None:
    """A root as the channel's configuration spells it (PEM); None where a member hasn't that root.

    Raises CertificateError where `root_pem` is no certificate.
    """
    wanted = pem_to_der(root_pem)
    for kind in (APPLICATION, ORDERER):
        for group in config.config.channel_group.groups[kind].groups.values():
            wrapped = parse(msp_pb2.MSPConfig, group.values["MSP"].value, "an MSP")
            definition = parse(msp_pb2.FabricMSPConfig, wrapped.config, "an MSP")
            if definition.name != msp_id:
                continue
            for known in definition.root_certs:
                if pem_to_der(known) == wanted:
                    return known
    return None


def signed_by_enough(
    network: Network, pending: PendingUpdate, config: ChannelConfig
) -> PendingUpdate:
    """With the signatures of as many of the folder's admins as are needed, or else of all."""
    signers = [
        utility.signer("admin")
        for utility in network.utilities
        if (utility.directory / "admin" / "sign.key.pem").exists()
    ]
    needed = signers
    if not pending.signed_by(*signers).lacking(config):
        for signer in reversed(signers):
            fewer = [one for one in needed if one is not signer]
            if not pending.signed_by(*fewer).lacking(config):
                needed = fewer
    return pending.signed_by(*needed)


async def change_channel(
    network: Network,
    gateway: GatewayClient,
    utility: Utility,
    change: Callable[[common_pb2.Config], object],
) -> Current:
    """Have the folder's admins change the configuration; returns it once it is in force.

    `change` works on a copy. Raises as `submit_update`, and UpdateRefused where more signatures
    are needed than the folder has.
    """
    now = await current(gateway, utility.msp_id)
    wanted = copied(now.config.config)
    change(wanted)
    update = compute_update(network.channel, now.config.config, wanted)
    pending = signed_by_enough(
        network,
        PendingUpdate(network.channel, update.SerializeToString(deterministic=True)),
        now.config,
    )
    if lacking := pending.lacking(now.config):
        raise UpdateRefused(
            "the update is not agreed to yet: "
            + "; ".join(str(one) for one in lacking)
            + ". Make it with `gridledger channel update --out FILE` and let the others sign it"
        )
    return await submit_update(gateway, utility.msp_id, pending, now, utility.signer("admin"))


async def submit_update(
    gateway: GatewayClient, msp_id: str, pending: PendingUpdate, before: Current, submitter: Signer
) -> Current:
    """Have an update ordered, and return the configuration once the utility's peer has it.

    Raises ConfigError where it does not fit the present configuration, UpdateRefused where the
    orderers do not take it, NetworkError where they cannot be reached in time.
    """
    envelope = pending.envelope(submitter)
    before.config.propose_update(envelope)
    problems = await _broadcast(before.config, envelope.SerializeToString())
    try:
        async with asyncio.timeout(LATE_COMMIT_S if problems else COMMIT_TIMEOUT_S):
            while True:
                now = await current(gateway, msp_id)
                if now.config.sequence > before.config.sequence:
                    break
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        if problems:
            raise UpdateRefused("; ".join(problems)) from None
        raise NetworkError(
            f"the update was ordered, but {msp_id}'s peer has not committed it after "
            f"{COMMIT_TIMEOUT_S:g} s; look at it with `gridledger network status`"
        ) from None
    if now.last_update.payload != envelope.payload:
        raise UpdateRefused(
            f"another update came first, in block {now.block_number}; make this one again"
        )
    return now


async def _broadcast(config: ChannelConfig, envelope: bytes) -> Sequence[str]:
    """Send to one orderer after another until one takes it.

    Returns nothing on success. Returns what went wrong where the outcome is unknown: an orderer
    was lost on the way, and the update may be ordered all the same. Raises UpdateRefused.
    """
    problems: list[str] = []
    for msp_id, addresses in config.orderer.endpoints.items():
        credentials = grpc.ssl_channel_credentials(config.msps.tls_roots_pem(msp_id))
        for address in addresses:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    answer = await _send(address, credentials, envelope)
            except TimeoutError:
                problems.append(f"the orderer at {address} did not answer")
                continue
            except grpc.aio.AioRpcError as error:
                problems.append(f"the orderer at {address}: {error.details()}")
                continue
            if answer.status == common_pb2.SUCCESS:
                return ()
            problem = f"the orderer at {address} refuses the update: {answer.info}"
            if not another_may_take_it(answer) and not problems:
                raise UpdateRefused(problem)
            problems.append(problem)
    return problems or [f"the channel {config.channel_id} has no orderer"]


async def _send(
    address: str, credentials: grpc.ChannelCredentials, envelope: bytes
) -> orderer_pb2.BroadcastResponse:
    async with grpc.aio.secure_channel(
        address, credentials, options=services.NODE_CHANNEL_OPTIONS
    ) as connection:
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = connection.stream_stream(
            services.BROADCAST
        )
        call = stream(iter([envelope]))
        raw = await call.read()
    if not isinstance(raw, bytes):
        raise TimeoutError(f"the orderer at {address} closed the stream without an answer")
    return parse(orderer_pb2.BroadcastResponse, raw, "the orderer's answer")
