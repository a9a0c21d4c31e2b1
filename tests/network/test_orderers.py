"""`gridledger orderer` on real processes: who orders is shown, handed over, changed, replaced."""

import asyncio
import json
import shutil
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from consortium.node.contracts import client
from consortium.node.network import Network, create_network
from consortium.node.orderers import ask_all, leader_of
from consortium.node.processes import ProcessNetwork
from tests.ports import first_port

from .conftest import run_cli

PATIENCE_S = 240
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[ProcessNetwork]:
    """Three utilities, each node in a process of its own."""
    network = create_network(tmp_path / "data", interval_s=60, base_port=first_port())
    running = ProcessNetwork(network, log_dir=tmp_path)
    await running.start()
    yield running
    await running.stop()


async def orderer(network: Network, *arguments: str, fails: bool = False) -> Any:
    """Run `gridledger orderer … --json`, and return what it answers."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "consortium.cli.main",
        "orderer",
        *arguments,
        "--data-dir",
        str(network.directory),
        "--json",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, told = await process.communicate()
    assert (process.returncode == 0) != fails, (arguments, out, told)
    return json.loads(out)


async def until_led(network: Network) -> str:
    """The name of the utility whose orderer leads, once one does."""
    async with asyncio.timeout(PATIENCE_S):
        while (leader := leader_of(await ask_all(network))) is None:  # noqa: ASYNC110  asks over the wire
            await asyncio.sleep(0.2)
    return leader.utility.name


async def status(network: Network, name: str) -> dict[str, Any]:
    found = await orderer(network, "status")
    return next(one for one in found["orderers"] if one["utility"] == name)


async def test_handed_over_removed_added_and_rotated(processes: ProcessNetwork) -> None:
    network = processes.network
    await until_led(network)
    found = await orderer(network, "status")
    assert [one["raft_id"] for one in found["orderers"]] == [1, 2, 3]
    assert [one["part"] for one in found["members"]] == ["voter"] * 3
    # Handed over to each.
    for utility in network.utilities:
        assert (await orderer(network, "transfer", "--to", utility.name))["leader"] == utility.name
    # The leader is removed: the others go on, it follows.
    removed = await orderer(network, "remove", "Cielo")
    assert removed["voters"] == [1, 2]
    async with asyncio.timeout(PATIENCE_S):
        while (await status(network, "Cielo"))["part"] != "follower":  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    refused = await orderer(network, "remove", "Cielo", fails=True)
    assert "is no consenter of the channel" in refused["error"]
    # With one of two dead the living one cannot be left alone without force.
    added = await orderer(network, "add", "Cielo")
    assert (added["raft_id"], added["voters"]) == (4, [1, 2, 4])
    refused = await orderer(network, "add", "Cielo", fails=True)
    assert "is a consenter of the channel already" in refused["error"]
    # Another certificate with another key, without a restart.
    folder = network.utility("Boreal").directory / "orderer"
    before = (folder / "tls.cert.pem").read_bytes()
    rotated = await orderer(network, "rotate", "Boreal")
    assert (rotated["raft_id"], rotated["new_key"]) == (2, True)
    assert (folder / "tls.cert.pem").read_bytes() != before
    assert (await orderer(network, "transfer", "--to", "Boreal"))["leader"] == "Boreal"
    (channel,) = (await orderer(network, "channels", "Boreal"))["channels"]
    assert (channel["status"], channel["consensus_relation"]) == ("active", "consenter")


@pytest.mark.parametrize("loss", ["wiped", "restored"])
async def test_a_dead_disk_is_noticed_and_replaced(processes: ProcessNetwork, loss: str) -> None:
    network = processes.network
    await until_led(network)
    cielo = network.utility("Cielo")
    data = cielo.directory / "orderer" / "data"
    await processes.kill(cielo, "orderer")
    copy = network.directory / "backup"
    shutil.copytree(data, copy)
    await processes.start_node(cielo, "orderer")
    # Promises that the copy does not know: whoever leads now, and blocks.
    await until_led(network)
    await orderer(network, "transfer")
    async with client(network, network.utilities[0], "admin") as gateway:
        await gateway.evaluate("qscc", "GetChainInfo", [network.channel.encode()])
    await processes.kill(cielo, "orderer")
    shutil.rmtree(data)
    if loss == "restored":
        shutil.copytree(copy, data)
    await processes.start_node(cielo, "orderer")
    async with asyncio.timeout(PATIENCE_S):
        while (found := await status(network, "Cielo"))["part"] != "failed":  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    assert "remove this consenter from the channel and add it again" in found["problem"]
    await orderer(network, "remove", "Cielo")
    added = await orderer(network, "add", "Cielo")
    assert (added["raft_id"], added["voters"]) == (4, [1, 2, 4])
    assert (await status(network, "Cielo"))["status"] == "active"


async def test_a_new_utility_orders_too(processes: ProcessNetwork) -> None:
    """As docs/operators.md says it: its node, `join`, `add`, `remove`, leaving, and once more."""
    await until_led(processes.network)
    folder = processes.network.directory
    added = await asyncio.to_thread(
        run_cli, "network", "add-utility", "Delta", "--data-dir", str(folder), "--json"
    )
    assert json.loads(added.stdout)["msp_id"] == "DeltaMSP"
    network = Network.load(folder)
    delta = network.utility("Delta")
    processes.network = network
    await processes.start_node(delta, "orderer")
    # It has begun with the first block in its folder, and follows.
    refused = await orderer(network, "join", "Delta", fails=True)
    assert "already exists here; `gridledger orderer channels` shows how far" in refused["error"]
    (channel,) = (await orderer(network, "channels", "Delta"))["channels"]
    assert (channel["status"], channel["consensus_relation"]) == ("active", "follower")
    done = await orderer(network, "add", "Delta")
    assert (done["raft_id"], done["voters"]) == (4, [1, 2, 3, 4])
    assert (await orderer(network, "remove", "Delta"))["voters"] == [1, 2, 3]
    async with asyncio.timeout(PATIENCE_S):
        while (await status(network, "Delta"))["part"] != "follower":  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    # It leaves the channel altogether, and joins it by its newest configuration.
    tls = ssl.create_default_context(cadata=network.tls_bundle_pem.decode())
    admin = delta.directory / "admin"
    tls.load_cert_chain(admin / "sign.cert.pem", admin / "sign.key.pem")
    url = f"https://127.0.0.1:{delta.ports.admin}/participation/v1/channels/{network.channel}"
    async with aiohttp.ClientSession() as session, session.delete(url, ssl=tls) as answer:
        assert answer.status == 204
    assert (await orderer(network, "channels", "Delta"))["channels"] == []
    joined = await orderer(network, "join", "Delta")
    assert (joined["name"], joined["consensus_relation"]) == (network.channel, "follower")
    done = await orderer(network, "add", "Delta")
    assert (done["raft_id"], done["voters"]) == (5, [1, 2, 3, 5])
    assert (await orderer(network, "transfer", "--to", "Delta"))["leader"] == "Delta"
