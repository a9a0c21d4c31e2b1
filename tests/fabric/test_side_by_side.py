"""What a transaction costs on Fabric's nodes and on ours: same client, same contract, by turns.

Not a test of anything but that both do the work; run it with `-s` on a quiet machine and read what
it prints.
"""

import statistics
from pathlib import Path

import pytest

from benchmarks.orderers import OrdererCluster, on_loopback
from benchmarks.ordering import send
from benchmarks.transactions import Result, _measure
from consortium.ledger.channel_config import RaftOptions
from consortium.node.network import RAFT_TICK_S, create_network
from consortium.node.processes import ProcessNetwork
from tests.ports import first_port

from .fabric import HOST, FabricOrderer, configtxgen, fabric_bin, issue, put_contracts, running
from .networks import fabric_network

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(1200)]

ROUNDS = 5
TRANSACTIONS = 400
IN_FLIGHT = 64


async def test_side_by_side(tmp_path: Path) -> None:
    """Three utilities each, all nodes processes of their own, batches of 100 ms."""
    ours = create_network(tmp_path / "ours", interval_s=60, base_port=first_port())
    nodes = ProcessNetwork(ours)
    results: dict[tuple[str, str], list[Result]] = {}
    async with fabric_network(fabric_bin(), tmp_path / "theirs", base_port=first_port()) as theirs:
        await nodes.start()
        try:
            await put_contracts(ours)
            pids = {
                "Fabric": {
                    f"{kind} {name}": program.process.pid
                    for kind, programs in (
                        ("peer", {key: one.program for key, one in theirs.peers.items()}),
                        ("orderer", {key: one.program for key, one in theirs.orderers.items()}),
                        ("contract", theirs.contracts),
                    )
                    for name, program in programs.items()
                    if program is not None and program.process is not None
                },
                "GridLedger": {
                    f"{kind} {name}": process.pid
                    for (name, kind), process in nodes.processes.items()
                    if kind != "ca"
                },
            }
            for turn in range(ROUNDS + 1):
                for which in ("own", "node"):
                    for kind, network in (("Fabric", theirs.network), ("GridLedger", ours)):
                        result = await _measure(
                            network, pids[kind], kind, which, TRANSACTIONS, IN_FLIGHT
                        )
                        if turn:  # the first round warms up
                            results.setdefault((kind, which), []).append(result)
        finally:
            await nodes.stop()
    for (kind, which), found in results.items():
        server = [
            sum(v for name, v in one.cpu_ms_per_transaction.items() if name != "client")
            for one in found
        ]
        print(
            f"\n{kind:10} {which:5} client: tx/s "
            f"{statistics.median(one.committed_per_s for one in found):.0f} "
            f"({', '.join(f'{one.committed_per_s:.0f}' for one in found)}), p50 "
            f"{statistics.median(one.p50_ms for one in found):.0f} ms, server CPU "
            f"{statistics.median(server):.1f} ms/tx "
            f"({', '.join(f'{each:.1f}' for each in server)}), memory "
            f"{sum(found[-1].memory_mb.values()):.0f} MB"
        )


ENVELOPES = 10_000


@pytest.mark.parametrize("count", [1, 3])
async def test_ordering_side_by_side(tmp_path: Path, count: int) -> None:
    """Envelopes of 4 kB a second through one leader, 1,000 in flight, blocks of up to 500.

    Fabric's answer says that the envelope waits in its leader's memory, ours that it is committed.
    """
    programs = fabric_bin()
    network = create_network(tmp_path / "theirs", base_port=first_port())
    block = await configtxgen(programs, tmp_path / "configtx", network, orderers=count)
    orderers = [
        FabricOrderer.create(programs, tmp_path / utility.name, network, utility)
        for utility in network.utilities[:count]
    ]
    client = tmp_path / "client"
    client.mkdir()
    issue(network.utility("Aurora"), client, "client", "client", "load.aurora.example")
    (client / "roots.pem").write_bytes(network.tls_bundle_pem)
    cluster = OrdererCluster(
        tmp_path / "ours",
        on_loopback(count),
        max_message_count=500,
        batch_timeout="100ms",
        raft=RaftOptions(tick_interval_s=RAFT_TICK_S),
    )
    rates: dict[str, list[float]] = {}
    async with running(*orderers), cluster:
        for orderer in orderers:
            await orderer.join(block)
        ours = cluster.orderers[await cluster.leader()].client_address
        arrangements = [("GridLedger", cluster.folder, "AuroraMSP", ours)]
        # Fabric's followers pass envelopes on: one of these is the leader, which is the fastest.
        arrangements += [
            (f"Fabric {one.utility.name}", client, "AuroraMSP", f"{HOST}:{one.port}")
            for one in orderers
        ]
        for turn in range(ROUNDS + 1):
            for name, folder, msp_id, address in arrangements:
                measured = await send(
                    folder, msp_id, [address], {"count": ENVELOPES, "size": 4000, "in_flight": 1000}
                )
                assert measured["refusals"] == []
                if turn:
                    rates.setdefault(name, []).append(ENVELOPES / measured["seconds"])
    for name, found in rates.items():
        print(
            f"\n{count} orderers, {name}: {statistics.median(found):.0f} envelopes/s "
            f"({', '.join(f'{each:.0f}' for each in found)})"
        )
