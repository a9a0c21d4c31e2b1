"""Private data among real peers: who keeps them, who gets them later, and who never has them.

Aurora has two peers, Boreal and Cielo one each. The readings of Aurora's meters stand in a private
collection: Aurora's own at first, then Aurora's and Boreal's. Each node is a process of its own
with real TLS, and dies by SIGKILL.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import pytest_asyncio

from consortium.identity.certificates import generate_key, key_pem
from consortium.identity.policies import parse_policy
from consortium.ledger.ledger import Ledger
from consortium.ledger.private_data import PrivatePlace
from consortium.node.contracts import client as utility_client
from consortium.node.contracts import ensure_contracts
from consortium.node.lifecycle import PeerAdmin
from consortium.node.network import Network, Utility, create_network
from consortium.node.processes import ProcessNetwork
from gridledger_client import GatewayClient, Identity, TransactionRefused
from gridledger_client.readings import MeterKey, Reading, SignedReading, batch_transient
from tests.ports import first_port

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

COLLECTION = "readings-AuroraMSP"
METER = "M-PRIVATE"
WITHIN_S = 60
START = int(time.time()) // 60 * 60 - 36_000


@dataclass
class World:
    """The network, Aurora's operator, and the readings that were submitted."""

    network: Network
    processes: ProcessNetwork
    operator: GatewayClient
    key: MeterKey
    submitted: list[SignedReading] = field(default_factory=list)

    @property
    def aurora(self) -> Utility:
        return self.network.utility("Aurora")

    @property
    def boreal(self) -> Utility:
        return self.network.utility("Boreal")

    @property
    def cielo(self) -> Utility:
        return self.network.utility("Cielo")

    def signed(self, count: int) -> list[SignedReading]:
        """The meter's next readings."""
        first = len(self.submitted)
        return [
            self.key.sign(
                Reading(
                    meter_id=METER,
                    interval_start=START + 60 * number,
                    interval_s=60,
                    import_wh=1,
                    export_wh=0,
                    import_register_wh=100_000 + number,
                    export_register_wh=0,
                ),
                self.network.channel,
            )
            for number in range(first, first + count)
        ]

    async def submit(self, count: int = 1) -> None:
        """Submit the next readings in one transaction, and wait until it is committed."""
        readings = self.signed(count)
        await self.operator.submit(
            "metering",
            "metering:SubmitReadings",
            {"utility": "AuroraMSP"},
            transient=batch_transient(readings),
            endorsing_organizations=["AuroraMSP"],
        )
        self.submitted += readings

    async def redefine(self, members: Iterable[str], *, required: int, maximum: int) -> None:
        """Aurora's collection anew, agreed on by all."""
        admins = [PeerAdmin(self.network, utility) for utility in self.network.utilities]
        try:
            committed = await admins[0].committed("metering")
            assert committed is not None
            wanted = replace(committed, sequence=committed.sequence + 1)
            for each in wanted.collections.config:
                config = each.static_collection_config
                if config.name == COLLECTION:
                    principals = ", ".join(f"'{name}MSP.member'" for name in members)
                    config.member_orgs_policy.signature_policy.CopyFrom(
                        parse_policy(f"OR({principals})")
                    )
                    config.required_peer_count = required
                    config.maximum_peer_count = maximum
            installed = await admins[0].installed()
            package = next(
                one.package_id for one in installed if any(run[1] == "metering" for run in one.runs)
            )
            last = None
            for admin in admins:
                last = await admin.approve(wanted, package)
            assert last is not None
            await self.reach(last.block_number + 1)
            result = await admins[0].commit(wanted, ["AuroraMSP", "BorealMSP", "CieloMSP"])
            await self.reach(result.block_number + 1)
        finally:
            await asyncio.gather(*(admin.close() for admin in admins))

    async def reach(self, height: int) -> None:
        """Wait until every running peer has that many blocks."""
        for utility, kind in self.peers():
            await eventually(
                lambda utility=utility, kind=kind: self.look(utility, kind).height >= height
            )

    def peers(self) -> list[tuple[Utility, str]]:
        """The peers that run."""
        return [
            (self.network.utility(name), kind)
            for name, kind in self.processes.processes
            if kind.startswith("peer")
        ]

    def look(self, utility: Utility, kind: str = "peer") -> Look:
        """What a peer has on its disk, while it runs."""
        folder = utility.directory / kind / "ledger" / self.network.channel
        with Ledger.open(folder, msp_id=utility.msp_id, read_only=True) as ledger:
            with ledger.view() as view:
                values = [
                    value.value
                    for _, value in view.range_private("metering", COLLECTION, "r/", "r0")
                ]
            return Look(ledger.height, values, ledger.missing_private())

    async def has_all(self, utility: Utility, kind: str = "peer") -> None:
        """Wait until a peer has every reading that was committed, and misses nothing."""

        def complete() -> bool:
            look = self.look(utility, kind)
            return len(look.values) == len(self.submitted) and not look.missing

        await eventually(complete)
        salts = {json.loads(value)["salt"] for value in self.look(utility, kind).values}
        assert salts == {reading.fields["salt"] for reading in self.submitted}

    def plaintexts(self, folder: Path) -> int:
        """How many of the submitted readings can be read somewhere in a folder's files."""
        contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        salts = [reading.fields["salt"].encode() for reading in self.submitted]
        return sum(any(salt in content for content in contents) for salt in salts)


@dataclass(frozen=True)
class Look:
    height: int
    values: Sequence[bytes]
    missing: Sequence[PrivatePlace]


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Three utilities, one of them with two peers."""
    folder = tmp_path_factory.mktemp("private")
    network = create_network(
        folder / "data", interval_s=60, base_port=first_port(), peers={"Aurora": 2}
    )
    settings = json.dumps({"pull_retry_s": 1, "reconcile_s": 1})
    for utility in network.utilities:
        for kind in utility.peers:
            (utility.directory / kind / "private-data.json").write_text(settings)
        # Heights are compared; an agent writes a gate every five minutes.
        (utility.directory / "peer" / "agent.json").write_text('{"enabled": false}')
    processes = ProcessNetwork(network, log_level="info", log_dir=folder)
    await processes.start()
    try:
        await ensure_contracts(network)
        async with utility_client(network, network.utility("Aurora"), "operator") as operator:
            world = World(
                network,
                processes,
                operator,
                MeterKey(key_pem(generate_key()), b"a secret of sixteen bytes or more"),
            )
            await operator.submit(
                "metering",
                "metering:RegisterMeter",
                {
                    "meter_id": METER,
                    "connection_id": "CP-PRIVATE",
                    "utility": "AuroraMSP",
                    "source_class": "accredited",
                    "public_key": world.key.public_key_pem,
                },
            )
            yield world
    finally:
        await processes.stop()


async def test_a_utilitys_second_peer_is_sent_what_the_first_simulated(world: World) -> None:
    await world.submit(3)
    await world.submit()
    for kind in ("peer", "peer1"):
        await world.has_all(world.aurora, kind)
    height = world.look(world.aurora).height
    await world.reach(height)
    for utility in (world.boreal, world.cielo):
        assert world.look(utility) == Look(height, [], [])


async def test_a_second_peer_endorses_too(world: World) -> None:
    """Through its own gateway; the first one is sent what it simulated."""
    folder = world.aurora.directory / "operator"
    identity = Identity(
        "AuroraMSP",
        (folder / "sign.cert.pem").read_bytes(),
        (folder / "sign.key.pem").read_bytes(),
    )
    async with GatewayClient(
        [world.aurora.address_of("peer1")],
        world.network.channel,
        identity,
        world.network.tls_bundle_pem,
    ) as second:
        readings = world.signed(2)
        await second.submit(
            "metering",
            "metering:SubmitReadings",
            {"utility": "AuroraMSP"},
            transient=batch_transient(readings),
        )
        world.submitted += readings
    for kind in ("peer", "peer1"):
        await world.has_all(world.aurora, kind)


async def test_who_joins_a_collection_gets_what_it_held_before(world: World) -> None:
    await world.redefine(["Aurora", "Boreal"], required=1, maximum=2)
    await world.has_all(world.boreal)
    await world.submit(2)
    await world.has_all(world.boreal)


async def test_killed_members_peers_are_complete_again(world: World) -> None:
    """One dies while transactions are on their way, and misses more; then the other one too.

    Nobody is left then to keep what is required to be kept twice, which is a refusal.
    """
    killing = asyncio.create_task(world.processes.kill(world.boreal, "peer"))
    for _ in range(5):
        await world.submit()
    await killing
    await world.submit(2)
    height = world.look(world.aurora).height
    await world.processes.kill(world.aurora, "peer1")
    with pytest.raises(TransactionRefused) as refusal:
        await world.submit()
    told = " ".join([str(refusal.value), *(detail.message for detail in refusal.value.details)])
    assert "failed to distribute private collection" in told
    assert COLLECTION in told
    assert world.look(world.aurora).height == height
    await asyncio.gather(
        world.processes.start_node(world.boreal, "peer"),
        world.processes.start_node(world.aurora, "peer1"),
    )
    deadline = time.monotonic() + WITHIN_S
    while True:
        try:
            await world.submit()
            break
        except TransactionRefused:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
    for utility, kind in ((world.aurora, "peer"), (world.aurora, "peer1"), (world.boreal, "peer")):
        await world.has_all(utility, kind)


async def test_who_does_not_belong_never_has_a_value_on_disk(world: World) -> None:
    everything = len(world.submitted)
    assert world.plaintexts(world.boreal.directory) == everything
    assert world.plaintexts(world.aurora.directory / "peer1") == everything
    assert world.plaintexts(world.cielo.directory) == 0
    for utility in world.network.utilities:
        assert world.plaintexts(utility.directory / "orderer") == 0
