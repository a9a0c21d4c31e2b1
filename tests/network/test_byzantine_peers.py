"""One of three peers lies, or two of three are gone: nothing wrong becomes valid.

Boreal's peer is a process that endorses as `byzantine_peer` says. The others run under another
hash seed, time zone and locale than it does, so that every agreement of theirs is one of bytes.
"""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from consortium.identity.signing import Signer
from consortium.node.contracts import client as utility_client
from consortium.node.contracts import ensure_contracts
from consortium.node.network import Network, Utility, create_network
from consortium.node.processes import ProcessNetwork, _accepts
from consortium.wire import common_pb2, discovery_pb2, gateway_pb2, gossip_pb2, peer_pb2, services
from gridledger_client import GatewayClient
from tests.ports import first_port

from .forging import Parts
from .tools import Ledgers, Refusal, Wire, endorse_request, evaluate_request

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

MISMATCH = "ProposalResponsePayloads do not match"
ALL = ("AuroraMSP", "BorealMSP", "CieloMSP")
ELSEWHERE = {"PYTHONHASHSEED": "4711", "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8"}


@dataclass
class Cluster:
    """Nine processes, one of them a liar."""

    network: Network
    processes: ProcessNetwork
    mode: Path
    folder: Path
    wire: Wire
    clients: dict[str, GatewayClient]
    ledgers: Ledgers

    @property
    def aurora(self) -> Utility:
        return self.network.utilities[0]

    @property
    def boreal(self) -> Utility:
        return self.network.utilities[1]

    @property
    def cielo(self) -> Utility:
        return self.network.utilities[2]

    def lies(self, mode: str) -> None:
        self.mode.write_text(mode)

    async def start_liar(self) -> None:
        utility = self.boreal
        with (self.folder / "boreal-peer.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tests.network.byzantine_peer", str(self.mode)),
                *("--log-level", "warning", "node", "run"),
                *("--data-dir", str(self.network.directory), utility.name, "peer"),
                start_new_session=True,
                stderr=log,
                env=os.environ | ELSEWHERE,
                cwd=Path(__file__).parents[2],
            )
        self.processes.processes[utility.name, "peer"] = process
        async with asyncio.timeout(60):
            while not await _accepts(utility.ports.peer):
                assert process.returncode is None, "the liar did not start"
                await asyncio.sleep(0.05)

    async def endorse(
        self, utility: Utility, organizations: tuple[str, ...] = ()
    ) -> Refusal | common_pb2.Envelope:
        client = self.clients[utility.msp_id]
        prepared = client.prepare("energy", "wallet:Deposit", deposit(utility))
        answer = await self.wire.unary(
            utility.gateway_address,
            services.ENDORSE,
            endorse_request(client, prepared, organizations),
        )
        if isinstance(answer, Refusal):
            return answer
        return gateway_pb2.EndorseResponse.FromString(answer).prepared_transaction

    async def refused(self, utility: Utility, organizations: tuple[str, ...] = ()) -> Refusal:
        answer = await self.endorse(utility, organizations)
        assert isinstance(answer, Refusal), "endorsed"
        assert answer.code is grpc.StatusCode.ABORTED, answer
        return answer

    def no_trace_in_logs(self) -> None:
        for log in self.folder.glob("*.log"):
            assert "Traceback" not in log.read_text(), log.read_text()[-3000:]


def deposit(utility: Utility) -> dict[str, str]:
    return {
        "account": f"SUPPLIER-{utility.name.upper()}",
        "amount_micro": "1000",
        "bank_reference": f"B-{uuid.uuid4().hex.upper()}",
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("byzantine")
    network = create_network(folder / "data", interval_s=60, base_port=first_port())
    for utility in network.utilities:
        # The liar lies to whom it belongs to as well, and its agent asks it all the time.
        (utility.directory / "peer" / "agent.json").write_text('{"enabled": false}')
    processes = ProcessNetwork(network, log_dir=folder)
    clients = {
        utility.msp_id: utility_client(network, utility, "operator")
        for utility in network.utilities
    }
    admins = {
        utility.msp_id: utility_client(network, utility, "admin") for utility in network.utilities
    }
    wire = Wire(network)
    mode = folder / "mode"
    mode.write_text("honest")
    cluster = Cluster(network, processes, mode, folder, wire, clients, Ledgers(network, admins))
    await processes.start()
    try:
        await ensure_contracts(network)
        await processes.kill(cluster.boreal, "peer")
        await cluster.start_liar()
        yield cluster
    finally:
        for client in (*clients.values(), *admins.values()):
            await client.close()
        await wire.close()
        await processes.stop()


async def test_peers_of_different_surroundings_agree(cluster: Cluster) -> None:
    """Another hash seed, time zone and locale, and every byte of the three answers is the same."""
    cluster.lies("honest")
    envelope = await cluster.endorse(cluster.aurora, ALL)
    assert isinstance(envelope, common_pb2.Envelope)
    signer = cluster.aurora.signer("operator")
    parts = Parts.of(cluster.network, signer, envelope.SerializeToString())
    assert len(parts.action.action.endorsements) == 3


@pytest.mark.parametrize("mode", ["result", "write"])
async def test_a_peer_that_answers_differently_is_named(cluster: Cluster, mode: str) -> None:
    cluster.lies(mode)
    before = await cluster.ledgers.settled()
    refusal = await cluster.refused(cluster.aurora, ALL)
    assert refusal.message == (
        "failed to collect enough transaction endorsements, see attached details for more info"
    )
    nodes = {
        utility.msp_id: f"127.0.0.1:{utility.ports.peer_node}"
        for utility in cluster.network.utilities
    }
    assert (nodes["BorealMSP"], "BorealMSP", MISMATCH) in {
        (detail.address, detail.msp_id, detail.message) for detail in refusal.details
    }
    blamed = {detail.msp_id for detail in refusal.details if detail.message == MISMATCH}
    assert blamed == {"BorealMSP"}
    # Whose gateway it is comes first there, so that the others are the ones that differ.
    at_the_liar = await cluster.refused(cluster.boreal)
    assert {detail.msp_id for detail in at_the_liar.details if detail.message == MISMATCH} == {
        "AuroraMSP",
        "CieloMSP",
    }
    assert [detail.address for detail in at_the_liar.details if detail.msp_id == "BorealMSP"] == [
        cluster.boreal.gateway_address
    ]
    assert await cluster.ledgers.settled() == before, "something was ordered"
    # Where two are enough the honest ones find each other.
    committed = await cluster.clients["AuroraMSP"].submit(
        "energy", "wallet:Deposit", deposit(cluster.aurora)
    )
    assert committed.transaction_id
    cluster.no_trace_in_logs()


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("signature", "signature does not hold"),
        ("high S", "signature does not hold"),
        ("another's certificate", "signed by a member of CieloMSP"),
        ("another's identity", "signed by a member of CieloMSP"),
        ("garbage", "endorsement is not valid"),
        ("nothing", "endorsement is not valid"),
        ("proposal", "another proposal"),
        ("no message", "is not a valid protos.ProposalResponse"),
        ("no payload", "is not a valid protos.ProposalResponsePayload"),
        ("sermon", "aaa"),
        ("huge", "larger than max"),
    ],
)
async def test_an_endorsement_that_is_none(cluster: Cluster, mode: str, said: str) -> None:
    """The gateway says so before the client has signed and paid for it with its transaction."""
    cluster.lies(mode)
    before = await cluster.ledgers.settled()
    refusal = await cluster.refused(cluster.aurora, ALL)
    (detail,) = (detail for detail in refusal.details if detail.msp_id == "BorealMSP")
    assert said in detail.message, refusal
    assert len(refusal.text) < 5_000
    assert await cluster.ledgers.settled() == before
    await cluster.clients["AuroraMSP"].submit("energy", "wallet:Deposit", deposit(cluster.aurora))
    cluster.no_trace_in_logs()


async def test_a_query_at_a_peer_that_sends_nonsense(cluster: Cluster) -> None:
    client = cluster.clients["AuroraMSP"]
    for mode in ("no message", "no payload"):
        cluster.lies(mode)
        prepared = client.prepare("energy", "wallet:Balance", {"account": "SUPPLIER-AURORA"})
        answer = await cluster.wire.unary(
            cluster.aurora.gateway_address,
            services.EVALUATE,
            evaluate_request(client, prepared, ["BorealMSP"]),
        )
        assert isinstance(answer, Refusal)
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert [detail.msp_id for detail in answer.details] == ["BorealMSP"]
    cluster.no_trace_in_logs()


async def test_a_peer_that_boasts_of_its_height(cluster: Cluster) -> None:
    """Others list what it says of itself; no gateway chooses whom to ask by it."""
    cluster.lies("height")
    signer = cluster.aurora.signer("operator")
    query = discovery_pb2.Query(
        channel=cluster.network.channel, peer_query=discovery_pb2.PeerMembershipQuery()
    )
    payload = discovery_pb2.Request(
        authentication=discovery_pb2.AuthInfo(client_identity=signer.serialized), queries=[query]
    ).SerializeToString()
    signed = discovery_pb2.SignedRequest(payload=payload, signature=signer.sign(payload))
    async with asyncio.timeout(60):
        while True:
            raw = await cluster.wire.unary(
                cluster.aurora.gateway_address, services.DISCOVER, signed.SerializeToString()
            )
            assert isinstance(raw, bytes), raw
            members = discovery_pb2.Response.FromString(raw).results[0].members.peers_by_org
            if [_height(peer) for peer in members["BorealMSP"].peers] == [2**64 - 1]:
                break
            await asyncio.sleep(0.5)
    assert _height(members["AuroraMSP"].peers[0]) < 2**32
    envelope = await cluster.endorse(cluster.aurora, ALL)
    assert isinstance(envelope, common_pb2.Envelope)
    await cluster.clients["AuroraMSP"].submit("energy", "wallet:Deposit", deposit(cluster.aurora))
    cluster.no_trace_in_logs()


def _height(peer: discovery_pb2.Peer) -> int:
    said = gossip_pb2.GossipMessage.FromString(peer.state_info.payload)
    return int(said.state_info.properties.ledger_height)


async def test_two_of_three_peers_are_gone(cluster: Cluster) -> None:
    """Killed: nothing is endorsed, and what one peer alone vouches for is ordered as invalid."""
    cluster.lies("honest")
    client = cluster.clients["AuroraMSP"]
    honest = await client.endorse(
        client.prepare(
            "energy", "wallet:Deposit", deposit(cluster.aurora), endorsing_organizations=list(ALL)
        )
    )
    before = await cluster.ledgers.settled()
    balance = await client.evaluate("energy", "wallet:Balance", {"account": "SUPPLIER-AURORA"})
    for utility in (cluster.boreal, cluster.cielo):
        await cluster.processes.kill(utility, "peer")
    refusal = await cluster.refused(cluster.aurora)
    assert refusal.message.startswith("failed to collect enough transaction endorsements")
    assert {detail.msp_id for detail in refusal.details} == {"BorealMSP", "CieloMSP"}
    alone = await cluster.endorse(cluster.aurora, ("AuroraMSP",))
    assert isinstance(alone, common_pb2.Envelope)
    signer: Signer = cluster.aurora.signer("operator")
    alone.signature = signer.sign(alone.payload)
    parts = Parts.of(cluster.network, signer, honest.envelope)
    parts.endorse(parts.peer("Aurora"))
    forged = parts.envelope()
    for envelope in (alone, forged):
        (answer,) = await cluster.wire.broadcast(cluster.cielo, envelope)
        assert answer.status == common_pb2.SUCCESS
    raws = [envelope.SerializeToString() for envelope in (alone, forged)]
    for raw in raws:
        found = await cluster.ledgers.find("AuroraMSP", raw, before.height)
        assert found.code == peer_pb2.ENDORSEMENT_POLICY_FAILURE
        assert not found.changed_state
    assert balance == await client.evaluate(
        "energy", "wallet:Balance", {"account": "SUPPLIER-AURORA"}
    )
    await cluster.processes.start_node(cluster.cielo, "peer")
    await cluster.start_liar()
    await cluster.ledgers.settled()
    for msp_id in ALL:
        for raw in raws:
            found = await cluster.ledgers.find(msp_id, raw, before.height)
            assert found.code == peer_pb2.ENDORSEMENT_POLICY_FAILURE
    committed = await client.submit("energy", "wallet:Deposit", deposit(cluster.aurora))
    assert committed.transaction_id
    cluster.no_trace_in_logs()
