"""Nodes killed under load: nothing that was acknowledged is lost, nothing counts twice.

Each node is a process of its own and dies by SIGKILL, in the middle of whatever it was doing. Homes
keep writing through any gateway that answers. At the end every transaction whose Submit returned
stands exactly once in every peer's ledger, the ledgers are equal to the byte, and `gridledger
verify` finds nothing to object to.
"""

import asyncio
import json
import re
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from consortium.cli.blocks import describe_block
from consortium.node.contracts import client as utility_client
from consortium.node.contracts import ensure_contracts
from consortium.node.network import Network, Utility, create_network
from consortium.node.processes import ProcessNetwork
from consortium.wire import common_pb2
from gridledger_client import (
    CommitFailed,
    ConnectionFailed,
    GatewayClient,
    Identity,
    Timeout,
    TransactionRefused,
)
from gridledger_client.gateway import Deadlines
from tests.ports import first_port

from .conftest import run_cli
from .tools import Ledgers

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

AMOUNT = 1000
RECOVERY_S = 20
WRITERS = 4
"""For each utility; each waits for one deposit to be committed before it makes the next."""
COMMITS = 15
"""That each utility's writers must see for the market to go on."""
PAUSE_S = 0.3
"""Of a writer that could reach no gateway."""
LEADS = re.compile(r": orderer \d leads in term (\d+) from block")
DEADLINES = Deadlines(evaluate_s=5, endorse_s=5, submit_s=5, commit_s=5)


@dataclass
class Load:
    """Writers of deposits, and what they were told."""

    network: Network
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Bank reference by the id of each transaction whose Submit returned."""
    committed: set[str] = field(default_factory=set)
    """Ids that a gateway called valid."""
    errors: Counter[str] = field(default_factory=Counter)
    commits: Counter[str] = field(default_factory=Counter)
    """How many deposits the writers of each utility saw committed."""
    _stopped: bool = False

    def _client(self, utility: Utility) -> GatewayClient:
        """The operator of a utility, who goes to its own gateway first and then to the others."""
        folder = utility.directory / "operator"
        own = self.network.utilities.index(utility)
        order = self.network.utilities[own:] + self.network.utilities[:own]
        return GatewayClient(
            [each.gateway_address for each in order],
            self.network.channel,
            Identity(
                utility.msp_id,
                (folder / "sign.cert.pem").read_bytes(),
                (folder / "sign.key.pem").read_bytes(),
            ),
            self.network.tls_bundle_pem,
            deadlines=DEADLINES,
        )

    async def _write(self, utility: Utility) -> None:
        async with self._client(utility) as client:
            while not self._stopped:
                try:
                    await self._deposit(client, utility)
                except (ConnectionFailed, Timeout, TransactionRefused, CommitFailed) as error:
                    self.errors[type(error).__name__] += 1
                    await asyncio.sleep(PAUSE_S)

    async def _deposit(self, client: GatewayClient, utility: Utility) -> None:
        reference = f"LOAD-{uuid.uuid4().hex.upper()}"
        signed = await client.endorse(
            client.prepare(
                "energy",
                "wallet:Deposit",
                {
                    "account": f"SUPPLIER-{utility.name.upper()}",
                    "amount_micro": str(AMOUNT),
                    "bank_reference": reference,
                },
            )
        )
        while True:
            try:
                # The same bytes again where the answer was lost: an id counts once.
                await client.submit_signed(signed)
                break
            except (ConnectionFailed, Timeout, TransactionRefused) as error:
                self.errors[f"submit: {type(error).__name__}"] += 1
                if self._stopped:
                    return
                await asyncio.sleep(PAUSE_S)
        self.acknowledged[signed.transaction_id] = reference
        while True:
            try:
                status = await client.commit_status(signed.transaction_id)
                break
            except (ConnectionFailed, Timeout) as error:
                self.errors[f"commit: {type(error).__name__}"] += 1
                if self._stopped:
                    return
                await asyncio.sleep(PAUSE_S)
        assert status.valid, status
        self.committed.add(signed.transaction_id)
        self.commits[utility.name] += 1

    @asynccontextmanager
    async def running(self, writers_each: int = WRITERS) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(self._write(utility))
            for utility in self.network.utilities
            for _ in range(writers_each)
        ]
        try:
            await self.goes_on()
            yield
            await self.goes_on()
        finally:
            self._stopped = True
            async with asyncio.timeout(60):
                await asyncio.gather(*tasks)

    async def goes_on(self, *, within_s: float = RECOVERY_S) -> None:
        """Return when the writers of every utility have seen commits again."""
        before = self.commits.copy()
        names = [utility.name for utility in self.network.utilities]
        async with asyncio.timeout(within_s):
            while any(self.commits[name] < before[name] + COMMITS for name in names):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@dataclass
class Cluster:
    """Nine processes, and a load on them."""

    network: Network
    processes: ProcessNetwork
    logs: Path
    load: Load

    async def restart(self, utility: Utility, kind: str) -> None:
        await self.processes.start_node(utility, kind)

    def leader(self) -> Utility:
        """Whose orderer leads: the one that said so last, in the highest term."""
        found = {
            int(term): utility
            for utility in self.network.utilities
            for term in LEADS.findall(
                (self.logs / f"{utility.name.lower()}-orderer.log").read_text()
            )
        }
        return found[max(found)]

    async def kill_all(self) -> None:
        """SIGKILL to all nine at the same moment."""
        processes = list(self.processes.processes.values())
        self.processes.processes.clear()
        for process in processes:
            process.kill()
        await asyncio.gather(*(process.wait() for process in processes))

    async def everything_is_equal(self) -> None:
        """Compare the three ledgers block by block, and count what was acknowledged."""
        network = self.network
        clients = {
            utility.msp_id: utility_client(network, utility, "admin")
            for utility in network.utilities
        }
        try:
            ledgers = Ledgers(network, clients)
            tip = await ledgers.settled()
            chains = await asyncio.gather(
                *(self._chain(ledgers, msp_id, tip.height) for msp_id in clients)
            )
        finally:
            await asyncio.gather(*(client.close() for client in clients.values()))
        first, *others = chains
        for other in others:
            assert [block.hashes for block in other] == [block.hashes for block in first]
        valid = Counter(tx_id for block in first for tx_id in block.valid)
        lost = set(self.load.acknowledged) - set(valid)
        assert not lost, f"{len(lost)} of {len(self.load.acknowledged)} were acknowledged and lost"
        assert self.load.committed <= set(valid)
        assert max(valid.values()) == 1
        assert len(self.load.acknowledged) > 3 * COMMITS, "that was no load"
        deposits = Counter(msp_id for block in first for msp_id in block.deposits)
        assert await self._balances() == {
            msp_id: AMOUNT * count for msp_id, count in deposits.items()
        }

    async def _chain(self, ledgers: Ledgers, msp_id: str, height: int) -> list[BlockFacts]:
        return [facts(await ledgers.block(msp_id, number)) for number in range(height)]

    async def _balances(self) -> dict[str, int]:
        """Of each utility's supplier account, the same wherever it is asked."""
        balances = {}
        for utility in self.network.utilities:
            account = {"account": f"SUPPLIER-{utility.name.upper()}"}
            answers = set()
            for asked in self.network.utilities:
                client = utility_client(self.network, utility, "operator")
                client.addresses = (asked.gateway_address,)
                async with client:
                    answer = await client.evaluate("energy", "wallet:Balance", account)
                answers.add(int(answer["balance_micro"]))
            assert len(answers) == 1, f"{account}: {answers}"
            balances[utility.msp_id] = answers.pop()
        return balances


@dataclass(frozen=True)
class BlockFacts:
    """What all peers must agree on, and who deposited."""

    hashes: tuple[str, str, tuple[str, ...]]
    """Block hash, commit hash, validation codes."""
    valid: tuple[str, ...]
    deposits: tuple[str, ...]
    """The member behind each valid deposit."""


def facts(block: common_pb2.Block) -> BlockFacts:
    described = describe_block(block)
    valid = [each for each in described["transactions"] if each["code"] == "VALID"]
    return BlockFacts(
        (
            described["hash"],
            described["commit_hash"],
            tuple(each["code"] for each in described["transactions"]),
        ),
        tuple(each["transaction_id"] for each in valid),
        tuple(each["creator"] for each in valid if each["function"] == "wallet:Deposit"),
    )


async def verified(network: Network) -> None:
    """`gridledger verify` of all three ledgers: nothing to object to."""
    done = await asyncio.to_thread(
        run_cli, "verify", "--json", "--data-dir", str(network.directory), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reports = json.loads(done.stdout)
    assert [report["problem"] for report in reports] == [None] * 3
    assert all(report["transactions"] > 0 for report in reports)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Three authorities, three orderers and three peers, each a process."""
    folder = tmp_path_factory.mktemp("faults")
    network = create_network(folder / "data", interval_s=60, base_port=first_port())
    processes = ProcessNetwork(network, log_level="info", log_dir=folder)
    await processes.start()
    try:
        await ensure_contracts(network)
        yield Cluster(network, processes, folder, Load(network))
    finally:
        await processes.stop()


async def test_the_leader_is_killed(cluster: Cluster) -> None:
    """The two others elect one of them; the old leader comes back and follows."""
    load = cluster.load
    async with load.running():
        leader = cluster.leader()
        await cluster.processes.kill(leader, "orderer")
        await load.goes_on()
        assert cluster.leader() is not leader
        await cluster.restart(leader, "orderer")
        await load.goes_on()
        # And the new one, while the old one has just caught up.
        second = cluster.leader()
        await cluster.processes.kill(second, "orderer")
        await load.goes_on()
        await cluster.restart(second, "orderer")
    await cluster.everything_is_equal()


async def test_a_peer_is_killed(cluster: Cluster) -> None:
    """Each in turn: its homes go on through another's gateway; it comes back and catches up."""
    load = cluster.load = Load(cluster.network)
    async with load.running():
        for utility in cluster.network.utilities:
            await cluster.processes.kill(utility, "peer")
            await load.goes_on()
            await cluster.restart(utility, "peer")
        # Verifying only reads: it neither disturbs a peer that commits nor is disturbed by it.
        await verified(cluster.network)
    await cluster.everything_is_equal()


async def test_everything_is_killed(cluster: Cluster) -> None:
    """All nine at once, twice: the disks alone know what happened, and they know all of it."""
    load = cluster.load = Load(cluster.network)
    async with load.running():
        await cluster.kill_all()
        await verified(cluster.network)
        await cluster.processes.start()
        await load.goes_on()
        await cluster.kill_all()
        await cluster.processes.start()
    await cluster.everything_is_equal()
    await cluster.processes.stop()
    await verified(cluster.network)
