"""Changing a test network's consenters, as its utilities' admins do."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from consortium.ledger.channel_config import Consenter, raft_metadata
from consortium.ledger.config_update import compute_update, sign_update, update_envelope
from consortium.orderer.chain import Chain
from consortium.orderer.membership import FORCE_KEY, FORCE_QUORUM
from consortium.orderer.node import Orderer, Settings
from consortium.wire import common_pb2, orderer_pb2
from tests.consortium.orderer.network import (
    CHANNEL,
    Answers,
    Network,
    broadcast,
    until,
)
from tests.ports import free_ports

PATIENCE_S = 120.0
"""Tests wait for what must come; only how long is a matter of how busy the machine is."""


def spare_node(network: Network, name: str = "spare", utility: int = 0) -> Settings:
    """Settings of another orderer, which is no consenter yet, with addresses of its own."""
    client, cluster = free_ports(2)
    certificate, key = network.utilities[utility].tls(name)
    return replace(
        network.settings[0],
        data_dir=network.folder / name,
        signer=network.utilities[utility].signer(name, "orderer"),
        tls_certificate_pem=certificate,
        tls_key_pem=key,
        client_address=f"127.0.0.1:{client}",
        cluster_address=f"127.0.0.1:{cluster}",
    )


def consenter_of(settings: Settings, certificate: bytes | None = None) -> Consenter:
    host, _, port = settings.cluster_address.rpartition(":")
    pem = certificate or settings.tls_certificate_pem
    return Consenter(host, int(port), pem, pem)


def chain_of(orderer: Orderer | None) -> Chain:
    assert orderer is not None
    chain = orderer.channels[CHANNEL]
    assert isinstance(chain, Chain)
    return chain


def newest_config(network: Network) -> common_pb2.Config:
    """The configuration in force, by whichever orderer is furthest."""
    chains = [one.channels[CHANNEL] for one in network.running() if CHANNEL in one.channels]
    return max(chains, key=lambda one: one.config.sequence).config.config


def update(
    network: Network,
    change: Callable[[common_pb2.ConfigGroup], None],
    *,
    force: bool = False,
    admins: int = 3,
) -> bytes:
    """A signed CONFIG_UPDATE; `change` alters the channel group in place."""
    current = newest_config(network)
    wanted = common_pb2.Config()
    wanted.CopyFrom(current)
    change(wanted.channel_group)
    computed = compute_update(CHANNEL, current, wanted)
    if force:
        computed.isolated_data[FORCE_KEY] = FORCE_QUORUM
    raw = computed.SerializeToString()
    signers = [one.signer("admin", "admin") for one in network.utilities[:admins]]
    return update_envelope(
        CHANNEL, raw, [sign_update(raw, one) for one in signers], signers[0]
    ).SerializeToString()


def consenters_update(
    network: Network,
    change: Callable[[list[Consenter]], Sequence[Consenter]],
    *,
    force: bool = False,
) -> bytes:
    def alter(group: common_pb2.ConfigGroup) -> None:
        value = group.groups["Orderer"].values["ConsensusType"]
        consensus = orderer_pb2.ConsensusType.FromString(value.value)
        chains = [one.channels[CHANNEL] for one in network.running() if CHANNEL in one.channels]
        settings = max(chains, key=lambda one: one.config.sequence).config.orderer
        consensus.metadata = raft_metadata(
            change(list(settings.consenters)), settings.raft
        ).SerializeToString()
        value.value = consensus.SerializeToString()

    return update(network, alter, force=force)


async def send(network: Network, envelope: bytes, number: int | None = None) -> Answers:
    """Broadcast one envelope, to the leader unless told otherwise."""
    if number is None:
        number = await network.leader()
    node = network.orderers[number]
    chain = node.channels.get(CHANNEL) if node is not None else None
    if isinstance(chain, Chain) and chain.is_leader:
        # One that has just begun, or that a busy machine kept waiting, knows of nobody alive.
        leading = chain
        members = [one.channels.get(CHANNEL) for one in network.running()]
        running = {one.raft_id for one in members if isinstance(one, Chain) and not one.failure}
        with contextlib.suppress(TimeoutError):
            await until(lambda: running & leading._members <= leading._active(), 5)
    while True:
        async with network.channel(number) as channel:
            answers = await broadcast(channel, [envelope])
        if answers.statuses:
            return answers
        # A busy machine may fail to connect; what was sent is looked for by its effect.


async def settled(network: Network, voters: Sequence[int]) -> None:
    """Wait until every running consenter has this Raft group, without learners."""

    def done() -> bool:
        states = [
            chain.status()
            for one in network.running()
            if isinstance(chain := one.channels.get(CHANNEL), Chain)
        ]
        return bool(states) and all(
            one["voters"] == list(voters) and not one["learners"] for one in states
        )

    await until(done, PATIENCE_S)
