"""Putting the energy contracts on a new channel: approved by every utility, committed, configured.

Every step looks first whether it was done, so that a network interrupted half-way goes on.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from consortium.contracts import chaincodes
from consortium.contracts.package import VERSION, package_id
from consortium.identity.policies import parse_policy
from consortium.wire import lifecycle_pb2, peer_pb2
from gridledger_client import CommitFailed, GatewayClient, Identity, Timeout, TransactionRefused

from .network import Network, Utility

SEQUENCE = 1
READY_TIMEOUT_S = 60.0


def client(network: Network, utility: Utility, who: str) -> GatewayClient:
    """A client that acts as one of a utility's own people, `admin` or `operator`."""
    folder = utility.directory / who
    identity = Identity(
        utility.msp_id,
        (folder / "sign.cert.pem").read_bytes(),
        (folder / "sign.key.pem").read_bytes(),
    )
    return GatewayClient(
        [utility.gateway_address], network.channel, identity, network.tls_bundle_pem
    )


async def ensure_contracts(
    network: Network, progress: Callable[[str], None] = lambda _message: None
) -> None:
    """Define and configure `metering` and `energy` on the channel, unless they are.

    Raises the client's errors where a utility refuses or the network does not answer.
    """
    clients = {utility.msp_id: client(network, utility, "admin") for utility in network.utilities}
    first = next(iter(clients.values()))
    try:
        for name in chaincodes():
            if not await _is_committed(first, name):
                progress(f"contract {name}: approved and committed by the utilities")
                await _define(network, clients, name)
        for name in chaincodes():
            await _configure(network, first, name)
    finally:
        await asyncio.gather(*(each.close() for each in clients.values()))


async def _is_committed(admin: GatewayClient, name: str) -> bool:
    query = lifecycle_pb2.QueryChaincodeDefinitionArgs(name=name).SerializeToString()
    try:
        await admin.evaluate("_lifecycle", "QueryChaincodeDefinition", [query])
    except TransactionRefused as error:
        if error.status == 404:
            return False
        raise
    return True


async def _define(network: Network, clients: dict[str, GatewayClient], name: str) -> None:
    collections = _collections(network, name)
    policy = peer_pb2.ApplicationPolicy(
        channel_config_policy_reference="/Channel/Application/Endorsement"
    ).SerializeToString()
    for msp_id, admin in clients.items():
        approval = lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs(
            name=name,
            version=VERSION,
            sequence=SEQUENCE,
            validation_parameter=policy,
            collections=collections,
            source=lifecycle_pb2.ChaincodeSource(
                local_package=lifecycle_pb2.ChaincodeSource.Local(package_id=package_id(name))
            ),
        )
        try:
            await admin.submit(
                "_lifecycle",
                "ApproveChaincodeDefinitionForMyOrg",
                [approval.SerializeToString()],
                endorsing_organizations=[msp_id],
            )
        except TransactionRefused as error:
            if "unchanged content" not in str(error):
                raise
    commit = lifecycle_pb2.CommitChaincodeDefinitionArgs(
        name=name,
        version=VERSION,
        sequence=SEQUENCE,
        validation_parameter=policy,
        collections=collections,
    )
    last = list(clients.values())[-1]
    # The last approval is committed at the last utility's peer; the others are a block behind at
    # most, and an endorsement of an older state is refused or conflicts, never wrong.
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            await last.submit(
                "_lifecycle",
                "CommitChaincodeDefinition",
                [commit.SerializeToString()],
                endorsing_organizations=list(clients),
            )
        except TransactionRefused, CommitFailed, Timeout:
            # A commit whose answer got lost is refused the second time: it is there already.
            if await _is_committed(last, name):
                return
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
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
