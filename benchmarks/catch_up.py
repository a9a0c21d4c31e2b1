"""How fast a peer that was away catches up, and that it then holds what the others hold.

A real network of processes runs; one utility's peer is killed, the others commit transactions
without it, and it is started again. It fetches the blocks from the orderers, checks every
signature and policy, and commits. Then all ledgers are compared: commit hashes at every height,
and the hash of a snapshot of each.
"""

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from consortium.ledger.ledger import Ledger
from consortium.ledger.snapshot import create_snapshot
from consortium.node.contracts import client, ensure_contracts
from consortium.node.network import Network, Utility, create_network
from consortium.node.processes import ProcessNetwork
from consortium.wire import common_pb2
from gridledger_client import GatewayClient, GridLedgerError
from tests.ports import first_port


@dataclass(frozen=True)
class Result:
    """One peer's return."""

    blocks: int
    transactions: int
    made_in_s: float
    """How long the others took for them."""
    caught_up_in_s: float
    """From its first answer to the same height."""
    start_s: float
    """From starting its process to its first answer."""

    @property
    def blocks_per_s(self) -> float:
        """Blocks committed a second."""
        return self.blocks / self.caught_up_in_s

    @property
    def transactions_per_s(self) -> float:
        """Transactions validated and committed a second."""
        return self.transactions / self.caught_up_in_s

    @property
    def times_real_time(self) -> float:
        """How much faster than they were made."""
        return self.made_in_s / self.caught_up_in_s


async def _height(network: Network, gateway: GatewayClient) -> int:
    raw = await gateway.evaluate("qscc", "GetChainInfo", [network.channel.encode()])
    return int(common_pb2.BlockchainInfo.FromString(raw).height)


async def _load(network: Network, count: int, in_flight: int) -> None:
    left = iter(range(count))
    async with client(network, network.utilities[0], "operator") as gateway:

        async def work() -> None:
            for number in left:
                await gateway.submit(
                    "energy",
                    "wallet:Deposit",
                    {
                        "account": "SUPPLIER-AURORA",
                        "amount_micro": "1",
                        "bank_reference": f"CATCH-UP-{number}",
                    },
                )

        await asyncio.gather(*(work() for _ in range(in_flight)))


async def _measure(folder: Path, count: int, in_flight: int) -> Result:
    network = create_network(folder / "data", interval_s=60, base_port=first_port())
    nodes = ProcessNetwork(network)
    first, last = network.utilities[0], network.utilities[-1]
    await nodes.start()
    try:
        await ensure_contracts(network, lambda _message: None)
        async with client(network, first, "operator") as gateway:
            before = await _height(network, gateway)
            await nodes.kill(last, "peer")
            started = time.monotonic()
            await _load(network, count, in_flight)
            made = time.monotonic() - started
            height = await _height(network, gateway)
        started = time.monotonic()
        await nodes.start_node(last, "peer")
        answered = 0.0
        seen = before
        async with client(network, last, "operator") as gateway:
            while seen < height:
                try:
                    seen = await _height(network, gateway)
                except GridLedgerError:
                    continue
                if not answered:
                    answered, first_seen = time.monotonic(), seen
                await asyncio.sleep(0.02)
        done = time.monotonic()
    finally:
        await nodes.stop()
    _compare(network, folder)
    blocks = height - first_seen
    share = blocks / max(1, height - before)
    return Result(
        blocks, round(count * share), made * share, max(done - answered, 0.001), answered - started
    )


def _compare(network: Network, folder: Path) -> None:
    """Raises AssertionError unless all ledgers are equal at every height."""
    hashes: dict[str, list[bytes]] = {}
    snapshots = set()
    for utility in network.utilities:
        with Ledger.open(_ledger(utility, network), msp_id=utility.msp_id) as ledger:
            hashes[utility.name] = [
                ledger.block_hash(number) + ledger.block_commit_hash(number)
                for number in range(ledger.height)
            ]
            snapshots.add(create_snapshot(ledger, folder / utility.name).hash)
    assert len({tuple(one) for one in hashes.values()}) == 1, "the ledgers differ"
    assert len(snapshots) == 1, "the states differ"


def _ledger(utility: Utility, network: Network) -> Path:
    return utility.directory / "peer" / "ledger" / network.channel


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="script/bench catch-up", description=__doc__)
    parser.add_argument("--count", type=int, default=3000, help="transactions made meanwhile")
    parser.add_argument("--in-flight", type=int, default=64, help="of them at once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gridledger-bench-") as folder:
        result = asyncio.run(_measure(Path(folder), options.count, options.in_flight))
    if options.json:
        print(json.dumps(asdict(result)))
        return
    print(
        f"{result.blocks} blocks, {result.transactions} transactions, made in "
        f"{result.made_in_s:.1f} s\n"
        f"caught up in {result.caught_up_in_s:.1f} s ({result.start_s:.1f} s after its start): "
        f"{result.blocks_per_s:.0f} blocks/s, {result.transactions_per_s:.0f} tx/s, "
        f"{result.times_real_time:.1f} times as fast as they were made\n"
        "commit hashes equal at every height, snapshots equal"
    )


if __name__ == "__main__":
    main()
