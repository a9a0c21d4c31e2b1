"""A real Fabric peer follows our orderers, endorses beside our peers, and comes to the same state.

The channel is one of `gridledger network init`. Its contracts, and a chaincode on Fabric's Node
runtime that both kinds of peers dial, are called so that every kind of read and write occurs.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from consortium.identity.certificates import CertificateAuthority, load_certificate
from consortium.identity.policies import parse_policy
from consortium.ledger.channel_config import ChannelConfig, compute_update
from consortium.ledger.config_changes import (
    PendingUpdate,
    add_organization,
    change_setting,
    copied,
    remove_organization,
)
from consortium.ledger.ledger import Ledger
from consortium.ledger.snapshot import join_by_snapshot
from consortium.node.channel import current, organization_of, submit_update
from consortium.node.contracts import client as utility_client
from consortium.node.lifecycle import PeerAdmin
from consortium.node.network import Network, create_network
from consortium.node.nodes import EmbeddedNetwork
from consortium.peer.channel import ChannelPeer
from consortium.wire import common_pb2, kvrwset_pb2, lifecycle_pb2, peer_pb2, rwset_pb2, services
from consortium.wire.blocks import COMMIT_HASH
from gridledger_client import CommitFailed, GatewayClient, SignedTransaction, TransactionRefused
from tests.ports import first_port, free_ports

from .fabric import (
    HOST,
    FabricPeer,
    Program,
    block,
    chaincode_package,
    fabric_bin,
    height,
    node_chaincode,
    put_contracts,
    running,
    same_ledgers,
)

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]


@dataclass(frozen=True)
class Served:
    """A chaincode as a service, and the package that tells peers of it."""

    package: Path
    package_id: str
    address: str
    process: Program


@dataclass
class Mixed:
    """Our network, and a Fabric peer of Aurora's beside ours."""

    network: Network
    peer: FabricPeer
    ours: dict[str, GatewayClient]
    theirs: GatewayClient

    async def submit(self, function: str, *args: str | list[str], **more: Any) -> bytes:
        """Through Aurora's own gateway."""
        committed = await self.ours["AuroraMSP"].submit(
            "everything", function, encoded(args), **more
        )
        return bytes(committed.result)

    async def same(self) -> list[bytes]:
        return await same_ledgers(self.ours["AuroraMSP"], self.theirs, self.peer.program)


def encoded(args: Sequence[str | list[str]]) -> list[bytes]:
    """Lists go as JSON."""
    return [(one if isinstance(one, str) else json.dumps(one)).encode() for one in args]


async def signed(
    mixed: Mixed, function: str, args: Sequence[str], endorsers: Sequence[str] = ()
) -> SignedTransaction:
    """Endorsed, signed, and not sent yet."""
    client = mixed.ours["AuroraMSP"]
    prepared = client.prepare(
        "everything", function, encoded(args), endorsing_organizations=endorsers
    )
    return await client.endorse(prepared)


async def one_block(mixed: Mixed, transactions: Sequence[SignedTransaction]) -> bytes:
    """Have all ordered at once; returns their codes, having seen that they share a block."""
    aurora = mixed.network.utility("Aurora")
    credentials = grpc.ssl_channel_credentials(mixed.network.tls_bundle_pem)
    async with grpc.aio.secure_channel(f"{HOST}:{aurora.ports.orderer}", credentials) as channel:
        call = channel.stream_stream(services.BROADCAST)()
        for one in transactions:
            await call.write(one.envelope)
        await call.done_writing()
        async for _ in call:
            pass
    client = mixed.ours["AuroraMSP"]
    found = [await client.commit_status(one.transaction_id) for one in transactions]
    assert len({one.block_number for one in found}) == 1, "the machine is too slow for this test"
    return bytes(peer_pb2.TxValidationCode.Value(one.code) for one in found)


async def endorsed_by_both(
    mixed: Mixed, function: str, args: Sequence[str], transient: Mapping[str, bytes]
) -> list[peer_pb2.ProposalResponse]:
    """What our peer of Aurora and theirs answer to one and the same proposal."""
    prepared = mixed.ours["AuroraMSP"].prepare(
        "everything", function, encoded(args), transient=transient
    )
    proposal = peer_pb2.SignedProposal(
        proposal_bytes=prepared.proposal, signature=prepared.signature
    ).SerializeToString()
    credentials = grpc.ssl_channel_credentials(mixed.network.tls_bundle_pem)
    answers = []
    for address in (mixed.network.utility("Aurora").gateway_address, mixed.peer.address):
        async with grpc.aio.secure_channel(address, credentials) as channel:
            answer = await channel.unary_unary(services.PROCESS_PROPOSAL)(proposal, timeout=30)
        answers.append(peer_pb2.ProposalResponse.FromString(answer))
    return answers


def readable(payload: bytes) -> str:
    """A simulation's outcome, for a difference that can be read."""
    response = peer_pb2.ProposalResponsePayload.FromString(payload)
    action = peer_pb2.ChaincodeAction.FromString(response.extension)
    lines = [str(action.response), str(action.chaincode_id), action.events.hex()]
    for namespace in rwset_pb2.TxReadWriteSet.FromString(action.results).ns_rwset:
        lines += [namespace.namespace, str(kvrwset_pb2.KVRWSet.FromString(namespace.rwset))]
        for hashed in namespace.collection_hashed_rwset:
            lines.append(str(hashed))
            lines.append(str(kvrwset_pb2.HashedRWSet.FromString(hashed.hashed_rwset)))
    return "\n".join(lines)


COLLECTIONS = peer_pb2.CollectionConfigPackage(
    config=[
        peer_pb2.CollectionConfig(
            static_collection_config=peer_pb2.StaticCollectionConfig(
                name="shared",
                member_orgs_policy=peer_pb2.CollectionPolicyConfig(
                    signature_policy=parse_policy("OR('AuroraMSP.member','BorealMSP.member')")
                ),
                maximum_peer_count=1,
                block_to_live=3,
                endorsement_policy=peer_pb2.ApplicationPolicy(
                    signature_policy=parse_policy("OR('AuroraMSP.peer','BorealMSP.peer')")
                ),
            )
        )
    ]
)


async def define(clients: dict[str, GatewayClient], name: str, package_id: str) -> None:
    """Approve the chaincode for every utility and commit its definition."""
    parameters: dict[str, Any] = {
        "name": name,
        "version": "1",
        "sequence": 1,
        "collections": COLLECTIONS,
    }
    source = lifecycle_pb2.ChaincodeSource(
        local_package=lifecycle_pb2.ChaincodeSource.Local(package_id=package_id)
    )
    for msp_id, admin in clients.items():
        approval = lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs(**parameters, source=source)
        await admin.submit(
            "_lifecycle",
            "ApproveChaincodeDefinitionForMyOrg",
            [approval.SerializeToString()],
            endorsing_organizations=[msp_id],
        )
    commit = lifecycle_pb2.CommitChaincodeDefinitionArgs(**parameters)
    for attempt in range(50):
        try:
            await clients["CieloMSP"].submit(
                "_lifecycle",
                "CommitChaincodeDefinition",
                [commit.SerializeToString()],
                endorsing_organizations=list(clients),
            )
        except TransactionRefused, CommitFailed:
            if attempt == 49:
                raise
            await asyncio.sleep(0.1)
        else:
            return


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mixed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mixed]:
    programs = fabric_bin()
    folder = tmp_path_factory.mktemp("mixed")
    network = create_network(
        folder / "data", base_port=first_port(), batch_timeout="150ms", interval_s=60
    )
    aurora = network.utility("Aurora")
    served = {}
    # Two processes: a transaction of Fabric's runs once in a package, whatever calls it.
    for name in ("everything", "again"):
        (port,) = free_ports(1)
        address = f"{HOST}:{port}"
        (folder / name).mkdir()
        package = folder / f"{name}.tar.gz"
        package_id = chaincode_package(package, f"{name}_1", address, aurora.root_pem)
        process = node_chaincode(folder / name, aurora, package_id, port)
        served[name] = Served(package, package_id, address, process)
    peer = FabricPeer.create(programs, folder / "fabric", network, aurora)
    clients = {
        utility.msp_id: utility_client(network, utility, "admin") for utility in network.utilities
    }
    processes = [one.process for one in served.values()]
    async with EmbeddedNetwork(network), running(*processes, peer):
        await peer.join(network.directory / "genesis.block")
        for one in served.values():
            await peer.cli("lifecycle", "chaincode", "install", str(one.package))
            for utility in network.utilities:
                async with PeerAdmin(network, utility) as admin:
                    assert await admin.install(one.package.read_bytes()) == one.package_id
        await put_contracts(network)
        for name, one in served.items():
            await define(clients, name, one.package_id)
        theirs = peer.client()
        yield Mixed(network, peer, clients, theirs)
        await asyncio.gather(*(each.close() for each in (theirs, *clients.values())))


async def test_follows_from_the_first_block(mixed: Mixed) -> None:
    """Genesis, lifecycle of three contracts, their settings."""
    filters = await mixed.same()
    assert len(filters) > 10
    assert set(b"".join(filters)) == {0}


async def test_reads_and_writes_of_every_kind(mixed: Mixed) -> None:
    """Ranges of more than 50, empty values, deletions, composite keys, policies of keys."""
    await mixed.submit("fill", "r", "250")
    await asyncio.gather(
        mixed.submit("range", "r", "s", "1000"),  # 250 results: a Merkle summary of two levels
        mixed.submit("range", "r", "r00050", "1000"),  # 50: listed
        mixed.submit("range", "r", "r00051", "1000"),  # 51: a summary
        mixed.submit("range", "r", "s", "7"),
        mixed.submit("range", "x", "y", "1"),
        mixed.submit("put", "empty", ""),
        mixed.submit("put", "gone", "1"),
        mixed.submit("compose", "car", ["ann", "1"]),
    )
    await mixed.submit("remove", "gone")
    await mixed.submit("put", "gone", "")
    await mixed.submit("composed", "car", ["ann"])
    assert set((await mixed.same())[-1]) == {0}


async def test_a_key_policy_changed_and_used_in_one_block(mixed: Mixed) -> None:
    """Who may endorse a key changes within a block, for the transactions after it."""
    await mixed.submit("put", "guarded", "0")
    envelopes = [
        await signed(mixed, "setPolicy", ["guarded", json.dumps(["BorealMSP"])]),
        await signed(mixed, "put", ["guarded", "1"], ["AuroraMSP", "CieloMSP"]),
        await signed(mixed, "put", ["guarded", "2"], ["BorealMSP"]),
    ]
    codes = await one_block(mixed, envelopes)
    assert codes == bytes((0, 10, 10)), "the second and third are endorsed under the old policy"
    codes = await one_block(
        mixed,
        [
            await signed(mixed, "put", ["guarded", "3"], ["AuroraMSP", "CieloMSP"]),
            await signed(mixed, "put", ["guarded", "4"], ["BorealMSP"]),
        ],
    )
    assert codes == bytes((10, 0))
    await mixed.same()


async def test_conflicts(mixed: Mixed) -> None:
    """Reads and ranges that became old within their own block."""
    codes = await one_block(
        mixed,
        [
            await signed(mixed, "increment", ["counter"]),
            await signed(mixed, "increment", ["counter"]),
            await signed(mixed, "put", ["r00007x", "1"]),
            await signed(mixed, "range", ["r", "s", "1000"]),
        ],
    )
    assert codes == bytes((0, 11, 0, 12)), "a read and a summary of a range that are old"
    await mixed.same()


async def test_private_data(mixed: Mixed) -> None:
    """Hashes in the blocks are followed; they leave the state when their blocks have passed."""
    for _ in range(2):
        await mixed.submit(
            "putPrivate",
            "shared",
            "k",
            transient={"value": secrets.token_bytes(8)},
            endorsing_organizations=["AuroraMSP"],
        )
    for number in range(5):
        await mixed.submit("put", f"filler{number}", "1")
    await mixed.submit(
        "putPrivate",
        "shared",
        "k",
        transient={"value": b"2"},
        endorsing_organizations=["BorealMSP"],
    )
    await mixed.submit("removePrivate", "shared", "k", endorsing_organizations=["BorealMSP"])
    await mixed.submit(
        "putPrivate",
        "_implicit_org_AuroraMSP",
        "k",
        transient={"value": b"3"},
        endorsing_organizations=["AuroraMSP"],
    )
    await mixed.same()


async def test_both_kinds_endorse_the_same_bytes(mixed: Mixed) -> None:
    """The same proposal, simulated by our peer and by theirs, gives byte-equal payloads."""
    await mixed.same()
    calls: list[tuple[str, list[str], dict[str, bytes]]] = [
        ("get", ["gone"], {}),
        ("put", ["p", "ü"], {}),
        ("put", ["p", ""], {}),
        ("remove", ["never"], {}),
        ("fill", ["q", "120"], {}),
        ("range", ["r", "s", "1000"], {}),
        ("range", ["r", "r00050", "1000"], {}),
        ("range", ["r", "r00051", "1000"], {}),
        ("range", ["r", "s", "120"], {}),
        ("two", ["r", "s"], {}),
        ("page", ["r", "s", "60", ""], {}),
        ("compose", ["car", '["bob","1"]'], {}),
        ("composed", ["car", '["ann"]'], {}),
        ("history", ["counter"], {}),
        ("event", ["happened", "so"], {}),
        ("setPolicy", ["p", '["AuroraMSP"]'], {}),
        ("setPolicy", ["guarded", '["AuroraMSP"]'], {}),
        ("getPolicy", ["guarded"], {}),
        ("putPrivate", ["shared", "z"], {"value": b"zz"}),
        ("putPrivate", ["_implicit_org_AuroraMSP", "z"], {"value": b"zz"}),
        ("privateHash", ["shared", "k"], {}),
        ("removePrivate", ["shared", "k"], {}),
        ("purgePrivate", ["shared", "k"], {}),
        ("setPrivatePolicy", ["shared", "k", '["AuroraMSP"]'], {}),
        ("who", [], {"note": b"1"}),
        ("call", ["again", "", '["get","after"]'], {}),
        ("callAndPut", ["again", "called", "1"], {}),
    ]
    for function, args, transient in calls:
        ours, theirs = await endorsed_by_both(mixed, function, args, transient)
        assert ours.response == theirs.response, function
        assert readable(ours.payload) == readable(theirs.payload), function
        assert ours.payload == theirs.payload, function


async def test_configuration_updates(mixed: Mixed, tmp_path: Path) -> None:
    """Settings, a revoked certificate, a new member and its leave: their peer takes each."""
    operator = load_certificate(
        (mixed.network.utility("Cielo").directory / "operator" / "sign.cert.pem").read_bytes()
    )
    delta = create_network(tmp_path / "delta", utilities=("Delta",), base_port=first_port())

    def settings(config: ChannelConfig, wanted: common_pb2.Config) -> common_pb2.Config:
        change_setting(wanted, "batch-size", "50")
        change_setting(wanted, "batch-timeout", "70ms")
        return wanted

    def revoked(config: ChannelConfig, wanted: common_pb2.Config) -> common_pb2.Config:
        folder = mixed.network.utility("Cielo").directory / "ca"
        listed = CertificateAuthority.load(folder).revocation_list([operator.serial_number])
        return config.with_revocation_lists("CieloMSP", [listed])

    def joined(config: ChannelConfig, wanted: common_pb2.Config) -> common_pb2.Config:
        add_organization(wanted, organization_of(delta.utility("Delta").directory))
        return wanted

    def left(config: ChannelConfig, wanted: common_pb2.Config) -> common_pb2.Config:
        remove_organization(wanted, "DeltaMSP")
        return wanted

    client = mixed.ours["AuroraMSP"]
    submitter = mixed.network.utility("Aurora").signer("admin")
    admins = [utility.signer("admin") for utility in mixed.network.utilities]
    for number, change in enumerate((settings, revoked, joined, left)):
        before = await current(client, "AuroraMSP")
        wanted = change(before.config, copied(before.config.config))
        update = compute_update(mixed.network.channel, before.config.config, wanted)
        pending = PendingUpdate(mixed.network.channel, update.SerializeToString())
        await submit_update(client, "AuroraMSP", pending.signed_by(*admins), before, submitter)
        await mixed.submit("put", f"after{number}", "1")
    await mixed.same()


async def test_theirs_restarts_and_catches_up(mixed: Mixed) -> None:
    """What was ordered while their peer was away."""
    await mixed.peer.stop()
    await asyncio.gather(*(mixed.submit("put", f"away{number}", "1") for number in range(100)))
    await mixed.peer.start()
    await mixed.same()


async def test_snapshots(mixed: Mixed, tmp_path: Path) -> None:
    """Both kinds write the same snapshot, and each goes on from the other's."""
    await mixed.same()
    aurora, channel = mixed.network.utility("Aurora"), mixed.network.channel
    root = str(mixed.network.directory / "tls-bundle.pem")
    last = await height(mixed.theirs) - 1
    folders = []
    for address, folder in (
        (aurora.gateway_address, aurora.directory / "peer" / "snapshots"),
        (mixed.peer.address, mixed.peer.folder / "data" / "snapshots"),
    ):
        await mixed.peer.cli(
            *("snapshot", "submitrequest", "-c", channel, "-b", "0"),
            *("--peerAddress", address, "--tlsRootCertFile", root),
        )
        folders.append(folder / "completed" / channel / str(last))
    deadline = time.monotonic() + 60
    while not all((one / "_snapshot_signable_metadata.json").exists() for one in folders):
        assert time.monotonic() < deadline, [list(one.parent.iterdir()) for one in folders]
        await asyncio.sleep(0.1)
    ours, theirs = (
        {file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders
    )
    assert ours == theirs

    second = FabricPeer.create(
        mixed.peer.bin, tmp_path / "second", mixed.network, aurora, name="peer2"
    )
    path = tmp_path / "joined" / channel
    join_by_snapshot(folders[1], path, msp_id="AuroraMSP")
    joined = ChannelPeer(Ledger.open(path, msp_id="AuroraMSP"), aurora.signer("peer"))
    async with running(second):
        await second.cli("channel", "joinbysnapshot", "--snapshotpath", str(folders[0]))
        client = second.client()
        joined.start()
        for number in range(5):
            await mixed.submit("put", f"after-snapshot{number}", "1")
            await mixed.submit("increment", "counter")
        top = await height(mixed.ours["AuroraMSP"])
        await same_ledgers(mixed.ours["AuroraMSP"], client, second.program, first=last + 1)
        async with asyncio.timeout(60):
            await joined.wait_for_height(top)
        for number in range(last + 1, top):
            mine = common_pb2.Block.FromString(joined.ledger.block(number))
            other = await block(mixed.theirs, number)
            assert mine.metadata.metadata[COMMIT_HASH] == other.metadata.metadata[COMMIT_HASH]
        await joined.stop()
        await client.close()
