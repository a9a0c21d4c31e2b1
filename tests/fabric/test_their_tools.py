"""Fabric's own command line tools against our peers and orderers."""

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from consortium.ledger.channel_config import compute_update
from consortium.ledger.config_changes import PendingUpdate, change_setting, copied
from consortium.node.channel import current
from consortium.node.contracts import client as utility_client
from consortium.node.network import Network, Utility, create_network
from consortium.node.nodes import EmbeddedNetwork
from consortium.wire import common_pb2
from gridledger_client import GatewayClient
from tests.ports import first_port, free_ports

from .fabric import (
    HOST,
    FabricPeer,
    chaincode_package,
    configtxgen,
    fabric_bin,
    node_chaincode,
    osnadmin,
    put_contracts,
    run,
    running,
)

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]


@dataclass
class Ours:
    """Our network, and Fabric's `peer` command as each utility's admin."""

    network: Network
    tools: dict[str, FabricPeer]
    admin: GatewayClient
    package: Path
    package_id: str

    async def peer(self, utility: Utility, *arguments: str) -> str:
        """`peer …` as a utility's admin at its own peer of ours."""
        tool = self.tools[utility.msp_id]
        return await tool.cli(*arguments, address=utility.gateway_address)

    @property
    def ordering(self) -> list[str]:
        """Where `peer` sends what is to be ordered."""
        aurora = self.network.utility("Aurora")
        return [
            *("-o", f"{HOST}:{aurora.ports.orderer}"),
            *("--tls", "--cafile", str(self.network.directory / "tls-bundle.pem")),
        ]

    @property
    def everyone(self) -> list[str]:
        """All our peers, as `peer` is told of them."""
        roots = str(self.network.directory / "tls-bundle.pem")
        return [
            word
            for utility in self.network.utilities
            for word in ("--peerAddresses", utility.gateway_address, "--tlsRootCertFiles", roots)
        ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ours(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ours]:
    programs = fabric_bin()
    folder = tmp_path_factory.mktemp("tools")
    network = create_network(folder / "data", base_port=first_port(), interval_s=60)
    aurora = network.utility("Aurora")
    (port,) = free_ports(1)
    package = folder / "everything.tar.gz"
    package_id = chaincode_package(package, "everything_1", f"{HOST}:{port}", aurora.root_pem)
    (folder / "chaincode").mkdir()
    chaincode = node_chaincode(folder / "chaincode", aurora, package_id, port)
    tools = {
        utility.msp_id: FabricPeer.create(programs, folder / utility.name, network, utility)
        for utility in network.utilities
    }
    async with EmbeddedNetwork(network), running(chaincode):
        await put_contracts(network)
        admin = utility_client(network, aurora, "admin")
        yield Ours(network, tools, admin, package, package_id)
        await admin.close()


async def test_channels_and_blocks(ours: Ours, tmp_path: Path) -> None:
    """`peer channel list`, `getinfo` and `fetch`, from our peer and from our orderer."""
    aurora = ours.network.utility("Aurora")
    assert ours.network.channel in await ours.peer(aurora, "channel", "list")
    info = await ours.peer(aurora, "channel", "getinfo", "-c", ours.network.channel)
    assert int(json.loads(info[info.index("{") :])["height"]) > 5
    for source in ([], ours.ordering):
        for position in ("oldest", "newest", "config", "1"):
            file = tmp_path / f"{position}.block"
            await ours.peer(
                aurora, "channel", "fetch", position, str(file), "-c", ours.network.channel, *source
            )
            block = common_pb2.Block.FromString(file.read_bytes())
            assert block.HasField("header")
            if position == "oldest":
                assert block.header == ours.network.genesis_block.header


async def test_query_and_invoke(ours: Ours) -> None:
    """`peer chaincode query` and `invoke`, waiting for the event of its commit."""
    aurora = ours.network.utility("Aurora")
    call = json.dumps({"Args": ["registry:Settings", "{}"]})
    asked = ["chaincode", "query", "-C", ours.network.channel, "-n", "energy", "-c", call]
    assert json.loads(await ours.peer(aurora, *asked))["currency"] == "EUR"
    rate = {
        "supplier": "AuroraMSP",
        "day": time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86_400)),
        "kind": "sell",
        "price_micro_per_kwh": "3",
    }
    call = json.dumps({"Args": ["market:PublishRate", json.dumps(rate)]})
    await ours.peer(
        aurora,
        *("chaincode", "invoke", "-C", ours.network.channel, "-n", "energy", "-c", call),
        *ours.ordering,
        *ours.everyone,
        "--waitForEvent",
    )
    call = json.dumps({"Args": ["market:Rates", json.dumps({"day": rate["day"]})]})
    asked = ["chaincode", "query", "-C", ours.network.channel, "-n", "energy", "-c", call]
    assert '"price_micro_per_kwh":"3"' in await ours.peer(aurora, *asked)


async def test_lifecycle(ours: Ours) -> None:
    """Install, approve, commit and upgrade a chaincode with `peer lifecycle` alone."""
    first, *rest = ours.network.utilities
    for utility in ours.network.utilities:
        await ours.peer(utility, "lifecycle", "chaincode", "install", str(ours.package))
    installed = await ours.peer(
        first, "lifecycle", "chaincode", "queryinstalled", "--output", "json"
    )
    assert ours.package_id in {
        one["package_id"] for one in json.loads(installed)["installed_chaincodes"]
    }
    for sequence in ("1", "2"):
        definition = [
            *("--channelID", ours.network.channel, "--name", "everything"),
            *("--version", sequence, "--sequence", sequence),
            *(("--signature-policy", "OR('AuroraMSP.peer')") if sequence == "2" else ()),
        ]
        ready = ["lifecycle", "chaincode", "checkcommitreadiness", *definition, "--output", "json"]
        for utility in ours.network.utilities:
            await ours.peer(
                utility,
                *("lifecycle", "chaincode", "approveformyorg", *ours.ordering, *definition),
                *("--package-id", ours.package_id),
            )
            approvals = json.loads(await ours.peer(utility, *ready))["approvals"]
            assert approvals[utility.msp_id] is True
        await ours.peer(
            first,
            *("lifecycle", "chaincode", "commit", *ours.ordering, *definition, *ours.everyone),
        )
        for utility in (first, *rest):
            committed = await ours.peer(
                utility,
                *("lifecycle", "chaincode", "querycommitted", "-C", ours.network.channel),
                *("--name", "everything", "--output", "json"),
            )
            assert json.loads(committed)["sequence"] == int(sequence)
            approved = await ours.peer(
                utility,
                *("lifecycle", "chaincode", "queryapproved", "-C", ours.network.channel),
                *("--name", "everything", "--output", "json"),
            )
            assert json.loads(approved)["sequence"] == int(sequence)
    call = json.dumps({"Args": ["put", "key", "value"]})
    await ours.peer(
        first,
        *("chaincode", "invoke", "-C", ours.network.channel, "-n", "everything", "-c", call),
        *ours.ordering,
        *ours.everyone[:4],
        "--waitForEvent",
    )
    call = json.dumps({"Args": ["get", "key"]})
    asked = ["chaincode", "query", "-C", ours.network.channel, "-n", "everything", "-c", call]
    assert "value" in await ours.peer(rest[0], *asked)


async def test_configuration_update(ours: Ours, tmp_path: Path) -> None:
    """An update signed and submitted by `peer channel signconfigtx` and `update`."""
    before = await current(ours.admin, "AuroraMSP")
    wanted = copied(before.config.config)
    change_setting(wanted, "batch-size", "77")
    update = compute_update(ours.network.channel, before.config.config, wanted)
    pending = PendingUpdate(ours.network.channel, update.SerializeToString())
    file = tmp_path / "update.pb"
    file.write_bytes(pending.to_bytes())
    first, *rest = ours.network.utilities
    for utility in rest:
        await ours.peer(utility, "channel", "signconfigtx", "-f", str(file))
    await ours.peer(
        first, "channel", "update", "-f", str(file), "-c", ours.network.channel, *ours.ordering
    )
    for _ in range(100):
        after = await current(ours.admin, "AuroraMSP")
        if after.config.sequence > before.config.sequence:
            break
        await asyncio.sleep(0.1)
    assert after.config.orderer.max_message_count == 77


async def test_discovery(ours: Ours) -> None:
    """`discover peers`, `config` and `endorsers`, where the program was built too."""
    aurora = ours.network.utility("Aurora")
    tool = ours.tools["AuroraMSP"]
    program = tool.bin / "discover"
    if not program.exists():
        pytest.skip("FABRIC_BIN has no discover")
    who = [
        *("--peerTLSCA", str(tool.folder / "root.pem")),
        *("--userKey", str(tool.folder / "admin" / "keystore" / "key_sk")),
        *("--userCert", str(tool.folder / "admin" / "signcerts" / "cert.pem")),
        *("--MSP", "AuroraMSP"),
        *("--channel", ours.network.channel, "--server", aurora.gateway_address),
    ]

    async def ask(what: str, *more: str) -> Any:
        quiet = {"FABRIC_LOGGING_SPEC": "error"}
        return json.loads(await run([str(program), *who[:8], what, *who[8:], *more], quiet))

    assert {one["MSPID"] for one in await ask("peers")} == {
        one.msp_id for one in ours.network.utilities
    }
    config = await ask("config")
    assert {one.msp_id for one in ours.network.utilities} <= config["msps"].keys()
    (plan,) = await ask("endorsers", "--chaincode", "energy")
    assert plan["Chaincode"] == "energy"
    assert len(plan["Layouts"]) >= 3


async def test_osnadmin(ours: Ours, tmp_path: Path) -> None:
    """Our orderers join another channel, are asked about it and leave it again."""
    network = ours.network
    other = dataclasses.replace(network, channel="another")
    programs = ours.tools["AuroraMSP"].bin
    block = await configtxgen(programs, tmp_path / "configtx", other)
    bundle = network.directory / "tls-bundle.pem"

    async def ask(utility: Utility, verb: str, *more: str) -> tuple[int, dict[str, Any]]:
        said = await osnadmin(
            programs,
            f"{HOST}:{utility.ports.admin}",
            bundle,
            utility.directory / "admin",
            verb,
            *more,
            key="sign",
        )
        status, _, body = said.partition("\n")
        return int(status.removeprefix("Status: ")), json.loads(body) if body.strip() else {}

    for utility in network.utilities:
        status, found = await ask(
            utility, "join", "--channelID", "another", "--config-block", str(block)
        )
        assert (status, found["name"]) == (201, "another"), found
        status, found = await ask(utility, "list")
        assert status == 200
        assert {one["name"] for one in found["channels"]} == {"another", network.channel}
        status, found = await ask(utility, "list", "--channelID", "another")
        assert (found["consensusRelation"], found["height"]) == ("consenter", 1)
    for utility in network.utilities:
        status, _ = await ask(utility, "remove", "--channelID", "another")
        assert status == 204
    status, _ = await ask(network.utilities[0], "list", "--channelID", "another")
    assert status == 404
