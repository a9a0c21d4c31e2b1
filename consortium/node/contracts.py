"""Putting the energy contracts on a channel: installed, approved by all, committed, configured.

For a folder that holds all utilities' admins, as a pilot's or a demo's. Utilities that run their
nodes apart do the same step by step: `gridledger contract package`, `install`, `approve`, `commit`.

Every step looks first whether it was done, so that a network interrupted half-way goes on.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from consortium.contracts import chaincodes
from consortium.contracts.package import VERSION, package, package_id
from consortium.identity.policies import parse_policy
from consortium.ledger.lifecycle import DEFAULT_POLICY, ChaincodeDefinition, policy_reference
from consortium.wire import peer_pb2
from gridledger_client import (
    CommitFailed,
    ConnectionFailed,
    GatewayClient,
    Identity,
    Timeout,
    TransactionRefused,
)

from .lifecycle import PeerAdmin
from .network import Network, Utility

READY_TIMEOUT_S = 60.0
RETRY_S = 0.2


def client(network: Network, utility: Utility, who: str, kind: str = "peer") -> GatewayClient:
    """A client that acts as one of a utility's own people, `admin` or `operator`.

    `kind` says which of the utility's peers it asks.
    """
    folder = utility.directory / who
    identity = Identity(
        utility.msp_id,
        (folder / "sign.cert.pem").read_bytes(),
        (folder / "sign.key.pem").read_bytes(),
    )
    return GatewayClient(
        [utility.address_of(kind)], network.channel, identity, network.tls_bundle_pem
    )


async def ensure_contracts(
    network: Network,
    progress: Callable[[str], None] = lambda _message: None,
    *,
    upgrade: bool = False,
) -> None:
    """Have `metering` and `energy` run at every utility, as far as they don't.

    What the channel has agreed on stays, unless nobody here has its code any more: a node whose
    sources are newer goes on with the package that was installed. With `upgrade` the definitions
    are brought to this node's sources and to the network's present utilities, each by one new
    sequence if anything changes. Raises the client's errors, or NetworkError, where a utility
    refuses or does not answer.
    """
    admins = [PeerAdmin(network, utility) for utility in network.utilities]
    deadline = time.monotonic() + READY_TIMEOUT_S
    try:
        while True:
            try:
                for name in chaincodes():
                    await _ensure(network, admins, name, progress, upgrade=upgrade)
                for name in chaincodes():
                    await _configure(network, admins[0].gateway, name)
            except ConnectionFailed:
                # On a busy machine a node may be up and a handshake still take too long.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                return
    finally:
        await asyncio.gather(*(admin.close() for admin in admins))


async def _ensure(
    network: Network,
    admins: Sequence[PeerAdmin],
    name: str,
    progress: Callable[[str], None],
    *,
    upgrade: bool,
) -> None:
    committed = await admins[0].committed(name)
    runs = {admin.utility.msp_id: await _package_in_use(network, admin, name) for admin in admins}
    wanted = _wanted(network, name)
    current = package_id(name)
    if committed is None:
        sequence = 1
    elif not any(runs.values()) or (
        upgrade and (set(runs.values()) != {current} or not _same(wanted, committed))
    ):
        sequence = committed.sequence + 1
    else:
        # Who has newly joined runs what the others run.
        in_use = next(found for found in runs.values() if found)
        code = await next(admin for admin in admins if runs[admin.utility.msp_id]).package(in_use)
        for admin in admins:
            if not runs[admin.utility.msp_id]:
                progress(f"contract {name}: approved by {admin.utility.name}")
                await _approve(admin, committed, in_use, code)
        return
    progress(f"contract {name}: approved and committed by the utilities, sequence {sequence}")
    wanted = replace(wanted, sequence=sequence)
    for admin in admins:
        await _approve(admin, wanted, current, package(name))
    await _commit(admins, wanted)


async def _package_in_use(network: Network, admin: PeerAdmin, name: str) -> str:
    """The package from which a utility's peer runs a contract, "" if it does not."""
    for found in await admin.installed():
        if any(run[:2] == (network.channel, name) for run in found.runs):
            return found.package_id
    return ""


def _wanted(network: Network, name: str) -> ChaincodeDefinition:
    return ChaincodeDefinition(
        name=name,
        sequence=0,
        version=VERSION,
        endorsement_policy=policy_reference(DEFAULT_POLICY),
        collections=_collections(network, name),
    )


def _same(wanted: ChaincodeDefinition, committed: ChaincodeDefinition) -> bool:
    return replace(wanted, sequence=committed.sequence) == committed


async def _approve(
    admin: PeerAdmin, definition: ChaincodeDefinition, package_id: str, code: bytes
) -> None:
    for kind in admin.utility.peers:
        async with PeerAdmin(admin.network, admin.utility, kind) as each:
            if package_id not in {found.package_id for found in await each.installed()}:
                await each.install(code)
    await admin.approve(definition, package_id, unless_done=True)


async def _commit(admins: Sequence[PeerAdmin], wanted: ChaincodeDefinition) -> None:
    last = admins[-1]
    # The last approval is committed at the last utility's peer; the others are a block behind at
    # most, and an endorsement of an older state is refused or conflicts, never wrong.
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            await last.commit(wanted, [admin.utility.msp_id for admin in admins])
        except TransactionRefused, CommitFailed, Timeout:
            # A commit whose answer got lost is refused the second time: it is there already.
            found = await last.committed(wanted.name)
            if found is not None and found.sequence >= wanted.sequence:
                return
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_S)
        else:
            return


def _collections(network: Network, name: str) -> peer_pb2.CollectionConfigPackage:
    """Readings stand in a collection of each metering utility.

    Its peers alone hold them, and its endorsement alone vouches for them.
    """
    package = peer_pb2.CollectionConfigPackage()
    if name != "metering":
        return package
    for utility in network.utilities:
        package.config.add(
            static_collection_config=peer_pb2.StaticCollectionConfig(
                name=f"readings-{utility.msp_id}",
                member_orgs_policy=peer_pb2.CollectionPolicyConfig(
                    signature_policy=parse_policy(f"OR('{utility.msp_id}.member')")
                ),
                required_peer_count=0,
                maximum_peer_count=1,
                block_to_live=0,
                member_only_read=True,
                member_only_write=True,
                endorsement_policy=peer_pb2.ApplicationPolicy(
                    signature_policy=parse_policy(f"OR('{utility.msp_id}.peer')")
                ),
            )
        )
    return package


async def _configure(network: Network, admin: GatewayClient, name: str) -> None:
    settings: dict[str, Any] = {
        "interval_s": network.interval_s,
        "replay": asdict(network.replay) if network.replay else None,
    }
    contract = "metering" if name == "metering" else "registry"
    if name == "energy":
        settings |= {
            "currency": "EUR",
            "quote_validity_s": 300,
            "grid_fee_micro_per_kwh": 50_000,
        }
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            await admin.submit(name, f"{contract}:Configure", settings)
        except TransactionRefused, CommitFailed, Timeout:
            # Another peer may not have committed the definition yet.
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
        else:
            return
