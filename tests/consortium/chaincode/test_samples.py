"""Chaincodes of fabric-samples, unmodified, on our peers, over TLS with client certificates.

The samples aren't part of this repository. Have a checkout, make what is in it ready, and name it:

    (cd asset-transfer-basic/chaincode-javascript && npm ci --omit=dev)
    (cd asset-transfer-basic/chaincode-typescript && npm ci && npm run build)
    (cd asset-transfer-secured-agreement/chaincode-go && go build -o server .)
    FABRIC_SAMPLES=/path/to/fabric-samples pytest tests/consortium/chaincode/test_samples.py -rs

A chaincode that isn't ready is skipped, with what it wants.
"""

import asyncio
import hashlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from consortium.chaincode.packages import package_id as package_id_of
from consortium.chaincode.packages import served_package
from consortium.chaincode.remote import Connection
from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
    write_private,
)
from consortium.identity.policies import parse_policy
from consortium.ledger.lifecycle import ChaincodeDefinition, signature_policy
from consortium.node.contracts import client as utility_client
from consortium.node.lifecycle import PeerAdmin
from consortium.node.network import Network, NetworkError, create_network
from consortium.node.nodes import EmbeddedNetwork
from consortium.wire import peer_pb2
from gridledger_client import CommitFailed, Committed, GatewayClient, TransactionRefused
from tests.ports import first_port

SAMPLES = os.environ.get("FABRIC_SAMPLES", "")
START_TIMEOUT_S = 60
EITHER = "OR('Org1MSP.peer', 'Org2MSP.peer')"
"""The policy that the samples' own pages deploy them with, but for the basic one's."""

pytestmark = [
    pytest.mark.network,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        not SAMPLES, reason="FABRIC_SAMPLES does not name a checkout of fabric-samples"
    ),
]


@dataclass
class Samples:
    """A network of Org1 and Org2, and the chaincodes that were put on it."""

    network: Network
    folder: Path
    clients: dict[str, GatewayClient]
    stack: AsyncExitStack
    next_port: int = field(default_factory=lambda: first_port(100))
    logs: list[Path] = field(default_factory=list)

    async def deploy(self, sample: str, name: str, policy: str = "") -> None:
        """Serve a sample for each organization, install, approve, commit."""
        folder = Path(SAMPLES) / sample
        command = command_of(folder)
        definition = ChaincodeDefinition(
            name,
            1,
            "1",
            endorsement_policy=signature_policy(parse_policy(policy)) if policy else b"",
            collections=collections_of(folder),
        )
        async with AsyncExitStack() as stack:
            admins = []
            for utility in self.network.utilities:
                admin = await stack.enter_async_context(PeerAdmin(self.network, utility))
                admins.append(admin)
                package_id = await self._serve(command, folder, name, admin)
                await admin.approve(definition, package_id)
            for attempt in range(50):
                try:
                    await admins[-1].commit(definition, [one.utility.msp_id for one in admins])
                except TransactionRefused, CommitFailed:
                    if attempt == 49:
                        raise
                    await asyncio.sleep(0.1)
                else:
                    break
            for admin in admins:
                while name not in {one.name for one in await admin.definitions()}:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    async def _serve(self, command: list[str], folder: Path, name: str, admin: PeerAdmin) -> str:
        utility = admin.utility
        port, self.next_port = self.next_port, self.next_port + 1
        address = f"127.0.0.1:{port}"
        place = self.folder / f"{name}-{utility.name}"
        place.mkdir()
        authority = CertificateAuthority.load(utility.directory / "ca")
        for who in ("server", "peer"):
            key = generate_key()
            issued = authority.issue(
                f"{name}-{who}", "peer", key.public_key(), hosts=("127.0.0.1",)
            )
            write_private(place / f"{who}.key.pem", key_pem(key))
            (place / f"{who}.cert.pem").write_bytes(certificate_pem(issued))
        (place / "root.pem").write_bytes(utility.root_pem)
        label = f"{name}_1"
        package = served_package(
            label,
            Connection(
                address,
                tls_root_pem=utility.root_pem,
                certificate_pem=(place / "peer.cert.pem").read_bytes(),
                key_pem=(place / "peer.key.pem").read_bytes(),
            ),
        )
        package_id = package_id_of(label, package)
        log = place / "log"
        self.logs.append(log)
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *[one.format(address=address, package=package_id, place=place) for one in command],
                cwd=folder,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(place),
                    "CORE_PEER_LOCALMSPID": utility.msp_id,
                    # As fabric-contract-api-go reads them, and the sample chaincode-external.
                    "CHAINCODE_SERVER_ADDRESS": address,
                    "CORE_CHAINCODE_ID_NAME": package_id,
                    "CORE_PEER_TLS_ENABLED": "true",
                    "CORE_PEER_TLS_ROOTCERT_FILE": str(place / "root.pem"),
                    "CORE_TLS_CLIENT_KEY_FILE": str(place / "server.key.pem"),
                    "CORE_TLS_CLIENT_CERT_FILE": str(place / "server.cert.pem"),
                    "CHAINCODE_ID": package_id,
                    "CHAINCODE_TLS_DISABLED": "false",
                    "CHAINCODE_TLS_KEY": str(place / "server.key.pem"),
                    "CHAINCODE_TLS_CERT": str(place / "server.cert.pem"),
                    "CHAINCODE_CLIENT_CA_CERT": str(place / "root.pem"),
                },
                stdout=output,
                stderr=output,
            )

        async def stop() -> None:
            if process.returncode is None:
                process.kill()
            await process.wait()

        self.stack.push_async_callback(stop)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.returncode is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                await asyncio.sleep(0.1)
            else:
                writer.close()
                break
        for attempt in range(10):
            try:
                assert await admin.install(package) == package_id
            except NetworkError:  # a busy machine's handshake
                if attempt == 9:
                    raise
            else:
                break
        return package_id

    async def submit(
        self,
        org: str,
        name: str,
        function: str,
        *args: str,
        transient: dict[str, object] | None = None,
        endorsers: Sequence[str] = (),
    ) -> Committed:
        committed = await self.clients[org].submit(
            name,
            function,
            [one.encode() for one in args],
            transient={key: compact(value) for key, value in (transient or {}).items()},
            endorsing_organizations=endorsers,
        )
        # What comes next may be asked of any peer.
        await asyncio.gather(
            *(one.commit_status(committed.transaction_id) for one in self.clients.values())
        )
        return committed

    async def ask(
        self,
        org: str,
        name: str,
        function: str,
        *args: str,
        transient: dict[str, object] | None = None,
    ) -> Any:
        """Evaluate at the organization's own peer."""
        found = await self.clients[org].evaluate(
            name,
            function,
            [one.encode() for one in args],
            transient={key: compact(value) for key, value in (transient or {}).items()},
            endorsing_organizations=[org],
        )
        text = bytes(found).decode()
        return json.loads(text) if text else None


def compact(value: object) -> bytes:
    """JSON as the samples' own clients write it, in JavaScript.

    A chaincode may keep such bytes as they are, and compare their hash with that of what Go's
    encoder made of the same value: so does asset-transfer-private-data in Go.
    """
    return json.dumps(value, separators=(",", ":")).encode()


def lower(found: dict[str, Any]) -> dict[str, Any]:
    """The languages' variants of a sample write their fields differently."""
    return {name.lower(): value for name, value in found.items()}


def command_of(folder: Path) -> list[str]:
    """How a sample is served; skips one that isn't ready."""
    if (folder / "package.json").exists():
        runtime = folder / "node_modules" / ".bin" / "fabric-chaincode-node"
        if not runtime.exists():
            pytest.skip(f"{folder} wants npm ci")
        if (folder / "tsconfig.json").exists() and not (folder / "dist").is_dir():
            pytest.skip(f"{folder} wants npm run build")
        node = shutil.which("node")
        assert node
        return [
            *(node, str(runtime), "server"),
            *("--chaincode-address", "{address}", "--chaincode-id", "{package}"),
            *("--chaincode-tls-key-file", "{place}/server.key.pem"),
            *("--chaincode-tls-cert-file", "{place}/server.cert.pem"),
            *("--chaincode-tls-client-cacert-file", "{place}/root.pem"),
        ]
    if not (folder / "server").is_file():
        pytest.skip(f"{folder} wants go build -o server .")
    return [str(folder / "server")]


def collections_of(folder: Path) -> peer_pb2.CollectionConfigPackage:
    """What the sample's collections_config.json says, if it has one."""
    package = peer_pb2.CollectionConfigPackage()
    file = folder / "collections_config.json"
    for one in json.loads(file.read_text()) if file.exists() else ():
        config = package.config.add().static_collection_config
        config.name = one["name"]
        config.member_orgs_policy.signature_policy.CopyFrom(parse_policy(one["policy"]))
        config.required_peer_count = one["requiredPeerCount"]
        config.maximum_peer_count = one["maxPeerCount"]
        config.block_to_live = one["blockToLive"]
        config.member_only_read = one["memberOnlyRead"]
        config.member_only_write = one["memberOnlyWrite"]
        config.endorsement_policy.signature_policy.CopyFrom(
            parse_policy(one["endorsementPolicy"]["signaturePolicy"])
        )
    return package


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def samples(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Samples]:
    folder = tmp_path_factory.mktemp("samples")
    network = create_network(
        folder / "data", utilities=("Org1", "Org2"), base_port=first_port(), batch_timeout="20ms"
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(EmbeddedNetwork(network))
        clients = {}
        for utility in network.utilities:
            clients[utility.msp_id] = utility_client(network, utility, "admin")
            stack.push_async_callback(clients[utility.msp_id].close)
        running = Samples(network, folder, clients, stack)
        yield running
        for log in running.logs:
            print(f"--- {log.parent.name}\n{log.read_text(errors='replace')[-1500:]}")


@pytest.mark.parametrize(
    "variant",
    ["chaincode-javascript", "chaincode-typescript", "chaincode-go", "chaincode-external"],
)
async def test_asset_transfer_basic(samples: Samples, variant: str) -> None:
    name = f"basic-{variant.removeprefix('chaincode-')}"
    await samples.deploy(f"asset-transfer-basic/{variant}", name)
    await samples.submit("Org1MSP", name, "InitLedger")
    assert len(await samples.ask("Org1MSP", name, "GetAllAssets")) == 6
    await samples.submit("Org1MSP", name, "CreateAsset", "asset13", "yellow", "5", "Tom", "1300")
    found = lower(await samples.ask("Org1MSP", name, "ReadAsset", "asset13"))
    assert (found["owner"], str(found["appraisedvalue"])) == ("Tom", "1300")
    await samples.submit("Org2MSP", name, "TransferAsset", "asset13", "Saptha")
    await samples.submit("Org1MSP", name, "UpdateAsset", "asset13", "red", "6", "Saptha", "1400")
    found = lower(await samples.ask("Org1MSP", name, "ReadAsset", "asset13"))
    assert (found["owner"], found["color"]) == ("Saptha", "red")
    assert await samples.ask("Org1MSP", name, "AssetExists", "asset13") is True
    await samples.submit("Org1MSP", name, "DeleteAsset", "asset13")
    assert await samples.ask("Org1MSP", name, "AssetExists", "asset13") is False
    with pytest.raises(TransactionRefused, match="asset70 does not exist"):
        await samples.submit("Org1MSP", name, "UpdateAsset", "asset70", "b", "5", "Tom", "1")
    started = time.monotonic()

    async def one(index: int) -> None:
        org = f"Org{index % 2 + 1}MSP"
        await samples.submit(org, name, "CreateAsset", f"load{index}", "blue", "1", "Ann", "1")

    await asyncio.gather(*(one(index) for index in range(30)))
    print(f"{name}: 30 transactions at once in {time.monotonic() - started:.1f} s")
    assert len(await samples.ask("Org1MSP", name, "GetAllAssets")) == 36


@pytest.mark.parametrize("variant", ["chaincode-javascript", "chaincode-go"])
async def test_asset_transfer_events(samples: Samples, variant: str) -> None:
    """Events, and private properties from transient data in an implicit collection."""
    name = f"events-{variant.removeprefix('chaincode-')}"
    await samples.deploy(f"asset-transfer-events/{variant}", name, EITHER)
    connected = asyncio.Event()
    events = samples.clients["Org1MSP"].chaincode_events(name, connected=connected.set)

    async def four() -> list[tuple[str, Any]]:
        seen = []
        async for event in events:
            seen.append((event.name, json.loads(event.payload)))
            if len(seen) == 4:
                break
        return seen

    listening = asyncio.create_task(four())
    await asyncio.wait_for(connected.wait(), 60)
    asset = ("asset1", "blue", "10", "Sam", "100")
    await samples.submit("Org1MSP", name, "CreateAsset", *asset)
    await samples.submit("Org1MSP", name, "TransferAsset", "asset1", "Mary")
    await samples.submit("Org1MSP", name, "UpdateAsset", "asset1", "green", "10", "Mary", "200")
    found = await samples.ask("Org1MSP", name, "ReadAsset", "asset1")
    found = lower(json.loads(found) if isinstance(found, str) else found)
    assert (found["owner"], found["color"]) == ("Mary", "green")
    await samples.submit("Org1MSP", name, "DeleteAsset", "asset1")
    seen = await asyncio.wait_for(listening, 30)
    assert [one for one, _ in seen] == [
        "CreateAsset",
        "TransferAsset",
        "UpdateAsset",
        "DeleteAsset",
    ]
    assert lower(seen[1][1])["owner"] == "Mary"
    await events.aclose()


@pytest.mark.parametrize("variant", ["chaincode-typescript", "chaincode-go"])
async def test_asset_transfer_private_data(samples: Samples, variant: str) -> None:
    """Collections shared and own, agreement by hashes, transfer, deletion and purge."""
    name = f"private-{variant.removeprefix('chaincode-')}"
    await samples.deploy(f"asset-transfer-private-data/{variant}", name, EITHER)
    for asset, color in (("asset1", "green"), ("asset2", "blue")):
        properties = {
            "objectType": "asset",
            "assetID": asset,
            "color": color,
            "size": 20,
            "appraisedValue": 100,
        }
        await samples.submit(
            "Org1MSP",
            name,
            "CreateAsset",
            transient={"asset_properties": properties},
            endorsers=["Org1MSP"],
        )
    own = ("Org1MSPPrivateCollection", "asset1")
    assert len(await samples.ask("Org1MSP", name, "GetAssetByRange", "asset1", "asset9")) == 2
    found = await samples.ask("Org1MSP", name, "ReadAssetPrivateDetails", *own)
    assert lower(found)["appraisedvalue"] == 100
    async with asyncio.timeout(60):  # the shared collection reaches the other member's peer
        while not await samples.ask("Org2MSP", name, "ReadAsset", "asset1"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    with pytest.raises(TransactionRefused):
        await samples.ask("Org2MSP", name, "ReadAssetPrivateDetails", *own)
    await samples.submit(
        "Org2MSP",
        name,
        "AgreeToTransfer",
        transient={"asset_value": {"assetID": "asset1", "appraisedValue": 100}},
        endorsers=["Org2MSP"],
    )
    agreed = await samples.ask("Org1MSP", name, "ReadTransferAgreement", "asset1")
    buyer = lower(agreed)["buyerid"]
    assert buyer
    await samples.submit(
        "Org1MSP",
        name,
        "TransferAsset",
        transient={"asset_owner": {"assetID": "asset1", "buyerMSP": "Org2MSP"}},
        endorsers=["Org1MSP"],
    )
    found = await samples.ask("Org2MSP", name, "ReadAsset", "asset1")
    assert lower(found)["owner"] == buyer
    assert not await samples.ask("Org1MSP", name, "ReadAssetPrivateDetails", *own)
    for function, key, asset in (
        ("DeleteAsset", "asset_delete", "asset2"),
        ("PurgeAsset", "asset_purge", "asset2"),
    ):
        await samples.submit(
            "Org1MSP",
            name,
            function,
            transient={key: {"assetID": asset}},
            endorsers=["Org1MSP"],
        )
    assert not await samples.ask("Org1MSP", name, "ReadAsset", "asset2")


async def test_asset_transfer_secured_agreement(samples: Samples) -> None:
    """Implicit collections of each organization, hashes of others', policies of keys."""
    name = "secured"
    await samples.deploy("asset-transfer-secured-agreement/chaincode-go", name, EITHER)
    properties = {
        "object_type": "asset_properties",
        "color": "blue",
        "size": 35,
        "salt": "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3",
    }
    price = {"asset_id": "", "trade_id": "109f4b3c50d7b0df729d299bc6f8e9ef9066971f", "price": 110}
    transient: dict[str, object] = {"asset_properties": properties}
    created = await samples.submit(
        "Org1MSP",
        name,
        "CreateAsset",
        "A new asset for Org1MSP",
        transient=transient,
        endorsers=["Org1MSP"],
    )
    asset = bytes(created.result).decode()
    assert asset == hashlib.sha256(compact(properties)).hexdigest()
    found = await samples.ask("Org2MSP", name, "ReadAsset", asset)
    assert found["ownerOrg"] == "Org1MSP"
    assert await samples.ask("Org1MSP", name, "GetAssetPrivateProperties", asset) == properties
    with pytest.raises(TransactionRefused):
        await samples.submit(
            "Org2MSP", name, "ChangePublicDescription", asset, "mine", endorsers=["Org2MSP"]
        )
    # The key's policy wants the owner's peer, whatever the chaincode's says.
    await samples.submit(
        "Org1MSP", name, "ChangePublicDescription", asset, "for sale", endorsers=["Org1MSP"]
    )
    verified = await samples.ask(
        "Org2MSP", name, "VerifyAssetProperties", asset, transient=transient
    )
    assert verified is True
    price["asset_id"] = asset
    await samples.submit(
        "Org1MSP",
        name,
        "AgreeToSell",
        asset,
        transient={"asset_price": price},
        endorsers=["Org1MSP"],
    )
    await samples.submit(
        "Org2MSP",
        name,
        "AgreeToBuy",
        asset,
        transient={"asset_price": {**price, "price": 100}, "asset_properties": properties},
        endorsers=["Org2MSP"],
    )
    both = ["Org1MSP", "Org2MSP"]
    with pytest.raises(TransactionRefused, match="buyer hasn't agreed"):
        await samples.submit(
            "Org1MSP",
            name,
            "TransferAsset",
            asset,
            "Org2MSP",
            transient={"asset_price": price},
            endorsers=both,
        )
    await samples.submit(
        "Org2MSP",
        name,
        "AgreeToBuy",
        asset,
        transient={"asset_price": price, "asset_properties": properties},
        endorsers=["Org2MSP"],
    )
    await samples.submit(
        "Org1MSP",
        name,
        "TransferAsset",
        asset,
        "Org2MSP",
        transient={"asset_price": price},
        endorsers=both,
    )
    assert (await samples.ask("Org1MSP", name, "ReadAsset", asset))["ownerOrg"] == "Org2MSP"
    history = await samples.ask("Org1MSP", name, "QueryAssetHistory", asset)
    assert len(history) == 3
    await samples.submit(
        "Org2MSP", name, "ChangePublicDescription", asset, "not for sale", endorsers=["Org2MSP"]
    )
