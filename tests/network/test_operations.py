"""What nodes tell whoever watches over them: health, metrics, version."""

import asyncio
import re
from pathlib import Path

import aiohttp
import pytest

from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
)
from consortium.node.network import create_network
from consortium.node.nodes import EmbeddedNetwork, NodeError, PeerNode, make_node
from consortium.node.operations import (
    UNCONNECTED_GRACE_S,
    Metric,
    Operations,
    exposition,
    node_metrics,
    troubles,
)
from gridledger_client import GatewayClient
from tests.ports import first_port

from .conftest import RunningNetwork

pytestmark = [pytest.mark.network]

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="[^"]*",?)+)\})? (\d+(?:\.\d+)?(?:e[+-]\d+)?)')


def samples(text: str) -> dict[tuple[str, str], float]:
    """By name and labels; each line must be one that Prometheus reads."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) [a-z_]+ .+", line)
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, line
        found[sample[1], sample[2] or ""] = float(sample[3])
    return found


async def fetch(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, await answer.text()


async def test_metrics_say_what_was_committed(
    running: RunningNetwork, operator: GatewayClient
) -> None:
    valid = 'node="peer0.aurora.example",channel="neighbourhood",validation_code="VALID"'
    place = 'node="peer0.aurora.example",channel="neighbourhood"'
    before = samples((await fetch(running.operations_port, "/metrics"))[1])
    committed = await operator.submit(
        "energy",
        "wallet:Deposit",
        {
            "account": "SUPPLIER-AURORA",
            "amount_micro": "1000000",
            "bank_reference": "OPERATIONS-1",
        },
    )
    status, text = await fetch(running.operations_port, "/metrics")
    assert status == 200
    after = samples(text)
    assert after["ledger_transaction_count", valid] > before["ledger_transaction_count", valid]
    assert after["ledger_blockchain_height", place] > committed.block_number
    assert after["ledger_block_processing_time_count", place] > 0
    assert after["gridledger_orderer_connected", place] == 1
    leaders = [
        value for (name, _), value in after.items() if name == "consensus_etcdraft_is_leader"
    ]
    assert sorted(leaders) == [0, 0, 1]
    sizes = {
        value for (name, _), value in after.items() if name == "consensus_etcdraft_cluster_size"
    }
    assert sizes == {3}
    assert after["process_cpu_seconds_total", ""] >= before["process_cpu_seconds_total", ""] > 0


async def test_health_and_version(running: RunningNetwork) -> None:
    status, text = await fetch(running.operations_port, "/healthz")
    assert status == 200, text
    assert '"status": "OK"' in text
    status, text = await fetch(running.operations_port, "/version")
    assert status == 200
    assert '"Version": "' in text
    assert (await fetch(running.operations_port, "/metrics", "POST"))[0] == 405
    assert (await fetch(running.operations_port, "/nothing"))[0] == 404


async def test_an_orderer_without_the_others_says_what_is_wrong(tmp_path: Path) -> None:
    network = create_network(tmp_path / "data", base_port=first_port())
    node = make_node(network, network.utilities[0], "orderer")
    await node.start()
    operations = Operations([node], 0)
    try:
        await operations.start()
        async with asyncio.timeout(60):
            while (answer := await fetch(operations.port, "/healthz"))[0] == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert answer[0] == 503
        assert '"component": "orderer0.aurora.example"' in answer[1]
        assert "it has had no leader for" in answer[1]
        taken = Operations([node], operations.port)
        with pytest.raises(NodeError, match="the operations service cannot start"):
            await taken.start()
    finally:
        await operations.stop()
        await node.stop()


async def test_a_peer_without_orderers_says_so_after_a_while(tmp_path: Path) -> None:
    network = create_network(tmp_path / "data", base_port=first_port())
    node = make_node(network, network.utilities[0], "peer")
    assert isinstance(node, PeerNode)
    await node.start()
    try:
        assert list(troubles(node)) == []
        text = exposition(node_metrics([node]))
        assert samples(text)[
            "gridledger_orderer_connected",
            'node="peer0.aurora.example",channel="neighbourhood"',
        ] == 0  # fmt: skip
        assert 'gridledger_certificate_ends_seconds{node="peer0.aurora.example",' in text
        node.channels["neighbourhood"]._unconnected_since -= UNCONNECTED_GRACE_S
        (trouble,) = troubles(node)
        assert "stands at height 1: no orderer could be followed for 30 s" in trouble
        node.channels["neighbourhood"]._unconnected_since += UNCONNECTED_GRACE_S
        authority = CertificateAuthority.load(network.utilities[0].directory / "ca")
        ended = authority.issue("peer", "peer", generate_key().public_key(), valid_days=0)
        (node.certificates[1]).write_bytes(certificate_pem(ended))
        (trouble,) = troubles(node)
        assert "peer/sign.cert.pem ended at" in trouble
        assert "`gridledger network renew aurora` makes a new one" in trouble
    finally:
        await node.stop()


async def test_a_quiet_channel_is_followed_all_the_same(tmp_path: Path) -> None:
    network = create_network(tmp_path / "data", utilities=("Aurora",), base_port=first_port())
    async with EmbeddedNetwork(network) as running:
        peer = running.nodes["peer0.aurora.example"]
        assert isinstance(peer, PeerNode)
        channel = peer.channels["neighbourhood"]
        async with asyncio.timeout(60):
            while not channel.orderer_connected:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert channel.ledger.height == 1
        assert channel.unconnected_for_s() == 0


def test_labels_are_escaped() -> None:
    odd = Metric("height", "gauge", "Blocks.", (("", {"channel": 'a"b\\c\nd'}, 12),))
    assert exposition([odd]).splitlines()[2] == r'height{channel="a\"b\\c\nd"} 12'
