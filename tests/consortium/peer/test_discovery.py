"""Discovery over the recorded chain: what it says of peers, endorsers and the configuration."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consortium.identity.msp import IdentityError
from consortium.identity.policies import SignaturePolicy, parse_policy
from consortium.identity.signing import Signer
from consortium.peer import discovery
from consortium.peer.channel import ChannelPeer
from consortium.peer.discovery import (
    Discovery,
    Member,
    OtherPeers,
    RequestRefused,
    _layouts,
    member_of,
)
from consortium.wire import discovery_pb2, gossip_pb2, peer_pb2
from consortium.wire.envelopes import WireError

from .recorded_peer import CHANNEL, RecordedPeer, member, recorded_peer

HEIGHT = 70
PEERS = discovery_pb2.Query(channel=CHANNEL, peer_query=discovery_pb2.PeerMembershipQuery())
LOCAL = discovery_pb2.Query(local_peers=discovery_pb2.LocalPeerQuery())
CONFIG = discovery_pb2.Query(channel=CHANNEL, config_query=discovery_pb2.ConfigQuery())


class Beside(OtherPeers):
    """Another organisation's peer at the same ledger, without a connection in between."""

    def __init__(self, other: Discovery, msp_id: str) -> None:
        self._other = other
        self._msp_id = msp_id

    async def of(self, channel: ChannelPeer) -> list[Member]:
        raw = _request(PEERS, signer=member("org1-peer0"))
        (answer,) = (await self._other.discover(raw)).results
        return [member_of(answer.members.peers_by_org[self._msp_id].peers[0], "Org2MSP", channel)]


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[RecordedPeer]:
    async with recorded_peer(tmp_path / "ledger", HEIGHT) as peer:
        yield peer


@pytest.fixture
def service(peer: RecordedPeer) -> Discovery:
    channels = {CHANNEL: peer.channel}
    org2 = Discovery(channels, member("org2-peer0", "Org2MSP"), "peer0.org2.example:2")
    beside = Beside(org2, "Org2MSP")
    return Discovery(channels, member("org1-peer0"), "peer0.org1.example:1", beside)


def _request(*queries: discovery_pb2.Query, signer: Signer | None = None) -> bytes:
    signer = signer or member("org1-user1")
    payload = discovery_pb2.Request(
        authentication=discovery_pb2.AuthInfo(client_identity=signer.serialized), queries=queries
    ).SerializeToString()
    signed = discovery_pb2.SignedRequest(payload=payload, signature=signer.sign(payload))
    return signed.SerializeToString()


def _endorsers(*calls: peer_pb2.ChaincodeCall) -> discovery_pb2.Query:
    interest = peer_pb2.ChaincodeInterest(chaincodes=calls)
    return discovery_pb2.Query(
        channel=CHANNEL, cc_query=discovery_pb2.ChaincodeQuery(interests=[interest])
    )


def _call(
    name: str,
    *collections: str,
    no_private_reads: bool = False,
    disregard_namespace_policy: bool = False,
) -> peer_pb2.ChaincodeCall:
    return peer_pb2.ChaincodeCall(
        name=name,
        collection_names=collections,
        no_private_reads=no_private_reads,
        disregard_namespace_policy=disregard_namespace_policy,
    )


async def _ask(service: Discovery, query: discovery_pb2.Query) -> discovery_pb2.QueryResult:
    (result,) = (await service.discover(_request(query))).results
    return result


async def test_peers_with_their_heights(service: Discovery) -> None:
    """Each says where it is, how high its ledger is, and what it can run."""
    members = (await _ask(service, PEERS)).members.peers_by_org
    assert set(members) == {"Org1MSP", "Org2MSP"}
    for msp_id, address in (
        ("Org1MSP", "peer0.org1.example:1"),
        ("Org2MSP", "peer0.org2.example:2"),
    ):
        (found,) = members[msp_id].peers
        alive = gossip_pb2.GossipMessage.FromString(found.membership_info.payload).alive_msg
        state = gossip_pb2.GossipMessage.FromString(found.state_info.payload).state_info
        assert alive.membership.endpoint == address
        assert alive.HasField("timestamp")
        assert state.HasField("timestamp")
        assert state.properties.ledger_height == HEIGHT
        assert [(one.name, one.version) for one in state.properties.chaincodes] == [
            ("gold", "2.0"),
            ("gold2", "1.0"),
        ]


async def test_peers_that_satisfy_a_filter(service: Discovery) -> None:
    """A collection's members, where it is read; everyone with the chaincode, where it is not."""
    for call, expected in (
        (_call("gold", "collA"), {"Org1MSP", "Org2MSP"}),
        (_call("gold", "_implicit_org_Org2MSP"), {"Org2MSP"}),
        (_call("gold", "_implicit_org_Org2MSP", no_private_reads=True), {"Org1MSP", "Org2MSP"}),
    ):
        query = discovery_pb2.Query()
        query.CopyFrom(PEERS)
        query.peer_query.filter.chaincodes.append(call)
        assert set((await _ask(service, query)).members.peers_by_org) == expected


async def test_endorsers(service: Discovery) -> None:
    """Layouts satisfy the policies of contracts and collections together."""
    both = [{"Org1MSP": 1, "Org2MSP": 1}]
    for calls, layouts in (
        ([_call("gold")], both),
        ([_call("gold2")], both),  # the channel's majority
        ([_call("_lifecycle")], both),
        ([_call("gold", "collB", disregard_namespace_policy=True)], [{"Org1MSP": 1}]),
        ([_call("gold", "collA"), _call("gold2")], both),
        (
            [_call("gold", "_implicit_org_Org2MSP", disregard_namespace_policy=True)],
            [{"Org2MSP": 1}],
        ),
    ):
        (descriptor,) = (await _ask(service, _endorsers(*calls))).cc_query_res.content
        assert descriptor.chaincode == calls[0].name
        assert [dict(layout.quantities_by_group) for layout in descriptor.layouts] == layouts
        for group in layouts[0]:
            (endorser,) = descriptor.endorsers_by_groups[group].peers
            assert endorser.identity
            assert endorser.state_info.payload


async def test_endorsers_of_a_key_with_its_own_policy(service: Discovery) -> None:
    """A key's policy comes on top, or stands alone."""
    call = _call("gold", disregard_namespace_policy=True)
    call.key_policies.append(parse_policy("OR('Org2MSP.peer')"))
    (descriptor,) = (await _ask(service, _endorsers(call))).cc_query_res.content
    assert [dict(layout.quantities_by_group) for layout in descriptor.layouts] == [{"Org2MSP": 1}]


async def test_what_nobody_can_endorse(service: Discovery) -> None:
    """The answer says why, for this query alone."""
    for query, message in (
        (_endorsers(_call("nothing")), "No metadata was found for chaincode nothing"),
        (_endorsers(_call("gold", "collZ")), "collection collZ doesn't exist"),
        (_endorsers(_call("gold", disregard_namespace_policy=True)), "policies are missing"),
        (_endorsers(_call("gold", "_implicit_org_Org2MSP")), "no peer combination"),
        (_endorsers(_call("")), "cannot be empty"),
        (_endorsers(), "at least one chaincode"),
        (
            discovery_pb2.Query(channel=CHANNEL, cc_query=discovery_pb2.ChaincodeQuery()),
            "at least one chaincode interest",
        ),
        (discovery_pb2.Query(channel=CHANNEL), "unknown or missing request type"),
        (
            discovery_pb2.Query(channel=CHANNEL, local_peers=discovery_pb2.LocalPeerQuery()),
            "unknown or missing request type",
        ),
    ):
        answers = (await service.discover(_request(query, CONFIG))).results
        assert message in answers[0].error.content
        assert answers[1].WhichOneof("result") == "config_result"


async def test_configuration(service: Discovery) -> None:
    config = (await _ask(service, CONFIG)).config_result
    assert set(config.msps) == {"Org1MSP", "Org2MSP", "OrdererMSP"}
    assert all(msp.name == msp_id and msp.root_certs for msp_id, msp in config.msps.items())
    assert [endpoint.port > 0 for endpoint in config.orderers["OrdererMSP"].endpoint] == [True]


async def test_who_may_ask(service: Discovery) -> None:
    """Members of the channel, about it; the peer's own admins, about all it knows."""
    stranger = member("org3-user1", "Org3MSP")  # its organisation joins at block 71
    forged = discovery_pb2.SignedRequest.FromString(_request(PEERS))
    forged.signature = member("org1-admin").sign(forged.payload)
    for raw in (
        _request(PEERS, signer=stranger),
        forged.SerializeToString(),
        _request(discovery_pb2.Query(channel="another", config_query=CONFIG.config_query)),
        _request(LOCAL),
        _request(LOCAL, signer=member("org2-admin", "Org2MSP")),
    ):
        (answer,) = (await service.discover(raw)).results
        assert answer.error.content == "access denied"
    (answer,) = (await service.discover(_request(LOCAL, signer=member("org1-admin")))).results
    (found,) = answer.members.peers_by_org["Org2MSP"].peers
    assert found.membership_info.payload
    assert not found.HasField("state_info")


async def test_requests_that_fail_as_a_whole(service: Discovery) -> None:
    unnamed = discovery_pb2.Request(queries=[PEERS])
    empty = discovery_pb2.Request(authentication=discovery_pb2.AuthInfo(), queries=[PEERS])
    for request, message in (
        (unnamed, "no authentication info"),
        (empty, "identity wasn't supplied"),
    ):
        signed = discovery_pb2.SignedRequest(payload=request.SerializeToString())
        with pytest.raises(RequestRefused, match=message):
            await service.discover(signed.SerializeToString())
    with pytest.raises(RequestRefused, match="too many"):
        await service.discover(_request(*[CONFIG] * (discovery.MAX_QUERIES + 1)))
    with pytest.raises(WireError):
        await service.discover(b"\xff")


async def test_a_peer_speaks_for_itself_alone(peer: RecordedPeer, service: Discovery) -> None:
    """What a peer hands out is believed for its own organisation, channel and key only."""
    own = (await _ask(service, PEERS)).members.peers_by_org
    first, second = own["Org1MSP"].peers[0], own["Org2MSP"].peers[0]
    assert member_of(first, "Org1MSP", peer.channel).chaincodes == {"gold", "gold2"}
    mixed = discovery_pb2.Peer()
    mixed.CopyFrom(first)
    mixed.state_info.CopyFrom(second.state_info)
    client = discovery_pb2.Peer()
    client.CopyFrom(first)
    client.identity = member("org1-user1").serialized
    for claimed, msp_id in ((first, "Org2MSP"), (mixed, "Org1MSP"), (client, "Org1MSP")):
        with pytest.raises(IdentityError):
            member_of(claimed, msp_id, peer.channel)


def test_layouts_are_minimal_and_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"Org{number}MSP" for number in range(1, 6)]
    text = ", ".join(f"'{name}.peer'" for name in names)
    two = SignaturePolicy(parse_policy(f"OutOf(2, {text})"))
    first = SignaturePolicy(parse_policy("OR('Org1MSP.peer')"))
    assert len(list(_layouts(names, [two]))) == 10
    assert list(_layouts(names, [two, first])) == [("Org1MSP", name) for name in names[1:]]
    assert list(_layouts(["Org1MSP"], [two])) == []
    monkeypatch.setattr(discovery, "MAX_LAYOUTS", 3)
    assert len(list(_layouts(names, [two]))) == 3
    monkeypatch.setattr(discovery, "MAX_COMBINATIONS", 6)
    assert len(list(_layouts(names, [two]))) == 1
