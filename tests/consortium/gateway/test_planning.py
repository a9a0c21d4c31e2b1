"""Whose endorsement is asked for, and who never gets to see a proposal."""

from collections.abc import Collection, Mapping

import grpc
import pytest

from consortium.chaincode.simulator import TransactionSimulator
from consortium.gateway.service import GatewayError, Plan, _make_plan
from consortium.identity.policies import parse_policy
from consortium.ledger.state import Version, VersionedValue, key_hash
from consortium.node.nodes import EmbeddedNetwork, PeerNode
from consortium.peer.channel import ChannelPeer
from consortium.peer.endorser import _interest
from consortium.wire import kvrwset_pb2, peer_pb2
from tests.consortium.chaincode.memory_state import MemoryState

pytestmark = pytest.mark.asyncio(loop_scope="session")

ALL = ("AuroraMSP", "BorealMSP", "CieloMSP")


def _majority(chosen: Collection[str]) -> bool:
    return len(chosen) >= 2


async def test_the_first_that_are_enough() -> None:
    plan = Plan(ALL, _majority)
    assert plan.layout(()) == ("AuroraMSP", "BorealMSP")
    assert plan.layout({"BorealMSP"}) == ("AuroraMSP", "CieloMSP")
    assert plan.layout({"BorealMSP", "CieloMSP"}) == ()


async def test_a_policy_that_leaves_out_the_first() -> None:
    plan = Plan(ALL, lambda chosen: "CieloMSP" in chosen)
    assert plan.layout(()) == ("CieloMSP",)


async def test_alternatives() -> None:
    """B and C, or A and D: whichever remains when one fails."""

    def enough(chosen: Collection[str]) -> bool:
        return {"B", "C"} <= set(chosen) or {"A", "D"} <= set(chosen)

    plan = Plan(("A", "B", "C", "D"), enough)
    assert plan.layout(()) == ("B", "C")
    assert plan.layout({"C"}) == ("A", "D")
    assert plan.layout({"C", "D"}) == ()


async def test_many_organizations_need_few_checks() -> None:
    checks = 0

    def enough(chosen: Collection[str]) -> bool:
        nonlocal checks
        checks += 1
        return len(chosen) >= 17

    plan = Plan(tuple(f"Org{number}" for number in range(32)), enough)
    assert plan.layout(()) == plan.organizations[:17]
    assert checks <= 33


async def test_named_organizations_are_all_of_them_or_none() -> None:
    plan = Plan(ALL, lambda _chosen: True, fixed=True)
    assert plan.layout(()) == ALL
    assert plan.layout({"CieloMSP"}) == ()


# -- what a simulation touched -----------------------------------------------------------------


@pytest.fixture
def channel(embedded: EmbeddedNetwork) -> ChannelPeer:
    peer = embedded.nodes["peer0.aurora.example"]
    assert isinstance(peer, PeerNode)
    return peer.channels["neighbourhood"]


def _collection(name: str, *, reads: bool) -> peer_pb2.ChaincodeCall:
    return peer_pb2.ChaincodeCall(
        name="metering",
        collection_names=[name],
        no_private_reads=not reads,
        disregard_namespace_policy=True,
    )


PUBLIC = peer_pb2.ChaincodeCall(name="metering")


def _planned(channel: ChannelPeer, *calls: peer_pb2.ChaincodeCall, transient: bool) -> Plan:
    interest = peer_pb2.ChaincodeInterest(chaincodes=calls)
    return _make_plan(channel, "metering", interest, ALL, transient)


async def test_two_of_three_for_public_state(channel: ChannelPeer) -> None:
    for transient in (False, True):
        plan = _planned(channel, PUBLIC, transient=transient)
        assert plan.organizations == ALL
        assert plan.layout(()) == ALL[:2]
    assert _planned(channel, transient=False).layout(()) == ALL[:2]


async def test_a_collections_own_policy(channel: ChannelPeer) -> None:
    """Boreal's readings are endorsed by Boreal alone."""
    written = _collection("readings-BorealMSP", reads=False)
    assert _planned(channel, written, transient=False).layout(()) == ("BorealMSP",)


@pytest.mark.parametrize("reads", [False, True])
async def test_transient_data_go_to_members_only(channel: ChannelPeer, reads: bool) -> None:
    readings = _collection("readings-AuroraMSP", reads=reads)
    plan = _planned(channel, readings, transient=True)
    assert plan.organizations == ("AuroraMSP",)
    assert plan.layout(()) == ("AuroraMSP",)
    assert plan.layout(("AuroraMSP",)) == ()


async def test_what_needs_outsiders_is_refused_with_transient_data(channel: ChannelPeer) -> None:
    """Public writes need a second utility, and it must not see what Aurora's peer was told."""
    readings = _collection("readings-AuroraMSP", reads=False)
    assert _planned(channel, readings, PUBLIC, transient=False).layout(()) == ALL[:2]
    with pytest.raises(GatewayError, match="to protect transient data") as error:
        _planned(channel, readings, PUBLIC, transient=True)
    assert error.value.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_who_cannot_read_a_collection_is_not_asked(channel: ChannelPeer) -> None:
    readings = _collection("readings-AuroraMSP", reads=True)
    with pytest.raises(GatewayError, match="no combination of peers") as error:
        _planned(channel, readings, PUBLIC, transient=False)
    assert error.value.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_collection_that_is_not_there(channel: ChannelPeer) -> None:
    with pytest.raises(GatewayError, match="no combination of peers"):
        _planned(channel, _collection("nothing", reads=False), transient=False)


# -- keys with a policy of their own -------------------------------------------------------------


class _Keys(MemoryState):
    """A state in which some keys have policies."""

    def __init__(self, public: Mapping[str, str], private: Mapping[str, str]) -> None:
        super().__init__()
        for key, policy in public.items():
            self.public["metering", key] = _stored(policy)
        for key, policy in private.items():
            self.hashes["metering", "readings-AuroraMSP", key_hash(key)] = _stored(policy)


def _stored(policy: str) -> VersionedValue:
    entry = kvrwset_pb2.KVMetadataEntry(
        name="VALIDATION_PARAMETER", value=parse_policy(policy).SerializeToString()
    )
    metadata = kvrwset_pb2.KVMetadataWrite(entries=[entry]).SerializeToString()
    return VersionedValue(b"value", metadata, Version(1, 0))


def _interest_of(
    simulator: TransactionSimulator,
) -> list[tuple[tuple[str, ...], int, bool, bool]]:
    interest = _interest(simulator.results())
    return [
        (
            tuple(call.collection_names),
            len(call.key_policies),
            call.no_private_reads,
            call.disregard_namespace_policy,
        )
        for call in interest.chaincodes
    ]


def _simulated(public: Mapping[str, str], private: Mapping[str, str]) -> TransactionSimulator:
    return TransactionSimulator(_Keys(public, private))


CIELO = "OR('CieloMSP.peer')"
BOTH_OTHERS = "AND('BorealMSP.peer', 'CieloMSP.peer')"


async def test_what_a_transactions_keys_ask_for() -> None:
    """Keys with a policy ask for it alone; any other key for its collection's or its contract's."""
    simulator = _simulated({"k": CIELO, "l": BOTH_OTHERS}, {})
    simulator.put_state("metering", "k", b"1")
    assert _interest_of(simulator) == [((), 1, False, True)]

    simulator = _simulated({"k": CIELO, "l": BOTH_OTHERS}, {})
    simulator.del_state("metering", "k")
    simulator.put_metadata("metering", "l", {})
    simulator.put_state("metering", "plain", b"1")
    assert _interest_of(simulator) == [((), 2, False, False)]

    simulator = _simulated({}, {"p": CIELO})
    simulator.put_private("metering", "readings-AuroraMSP", "p", b"1")
    assert _interest_of(simulator) == [((), 1, False, True)]

    simulator = _simulated({}, {"p": CIELO})
    simulator.get_private("metering", "readings-AuroraMSP", "q")
    simulator.put_private("metering", "readings-AuroraMSP", "p", b"1")
    simulator.put_private("metering", "readings-AuroraMSP", "q", b"1")
    assert _interest_of(simulator) == [
        (("readings-AuroraMSP",), 0, False, True),
        ((), 1, False, True),
    ]

    simulator = _simulated({"k": CIELO}, {})
    simulator.get_state("metering", "k")
    simulator.get_private_hash("metering", "readings-AuroraMSP", "p")
    assert _interest_of(simulator) == [((), 0, False, False)]


async def test_private_data_that_are_only_queried() -> None:
    simulator = _simulated({}, {})
    assert list(simulator.range_private("metering", "readings-AuroraMSP", "a", "b")) == []
    assert _interest_of(simulator) == [(("readings-AuroraMSP",), 0, False, True)]


async def test_a_plan_for_keys_with_policies(channel: ChannelPeer) -> None:
    """Cielo alone, as its key says; with another key the contract's policy besides."""

    def plan(public: Mapping[str, str], *written: str) -> tuple[str, ...]:
        simulator = _simulated(public, {})
        for key in written:
            simulator.put_state("metering", key, b"1")
        interest = _interest(simulator.results())
        return _make_plan(channel, "metering", interest, ALL, False).layout(())

    assert plan({"k": CIELO}, "k") == ("CieloMSP",)
    assert plan({"k": CIELO}, "k", "plain") == ("AuroraMSP", "CieloMSP")
    assert plan({"k": CIELO, "l": BOTH_OTHERS}, "k", "l") == ("BorealMSP", "CieloMSP")
    with pytest.raises(GatewayError, match="no combination of peers") as error:
        plan({"k": "OR('NobodyMSP.peer')"}, "k")
    assert error.value.code is grpc.StatusCode.FAILED_PRECONDITION
