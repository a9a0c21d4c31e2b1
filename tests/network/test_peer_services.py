"""Discovery, health and reflection of a running network, over its own listeners."""

from typing import Any

import grpc
import pytest

from consortium.identity.signing import Signer
from consortium.node.network import Utility
from consortium.wire import discovery_pb2, gossip_pb2, msp_pb2, peer_pb2, services
from consortium.wire.health_pb2 import HealthCheckRequest, HealthCheckResponse
from consortium.wire.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from .conftest import RunningNetwork
from .home import eventually
from .proxy import Link
from .tools import Refusal, Wire, orderer_address

pytestmark = [pytest.mark.network]

MEMBERS = {"AuroraMSP", "BorealMSP", "CieloMSP"}


async def _discover(
    wire: Wire, address: str, signer: Signer, *queries: discovery_pb2.Query
) -> list[discovery_pb2.QueryResult]:
    payload = discovery_pb2.Request(
        authentication=discovery_pb2.AuthInfo(client_identity=signer.serialized), queries=queries
    ).SerializeToString()
    signed = discovery_pb2.SignedRequest(payload=payload, signature=signer.sign(payload))
    raw = await wire.unary(address, services.DISCOVER, signed.SerializeToString())
    assert isinstance(raw, bytes), raw
    return list(discovery_pb2.Response.FromString(raw).results)


def _nodes(running: RunningNetwork) -> list[tuple[str, Utility, set[str]]]:
    """Every client listener, and the services it has of its own."""
    of_peer = {"gateway.Gateway", "protos.Endorser", "protos.Deliver", "discovery.Discovery"}
    nodes = []
    for utility in running.network.utilities:
        nodes.append((utility.gateway_address, utility, of_peer))
        nodes.append((orderer_address(utility), utility, {"orderer.AtomicBroadcast"}))
    return nodes


async def _known(running: RunningNetwork, wire: Wire, asked: Utility) -> dict[str, list[Any]]:
    """What one utility's peer says of each organization's peers."""
    query = discovery_pb2.Query(
        channel=running.network.channel, peer_query=discovery_pb2.PeerMembershipQuery()
    )
    (answer,) = await _discover(wire, asked.gateway_address, asked.signer("operator"), query)
    return {msp_id: list(of.peers) for msp_id, of in answer.members.peers_by_org.items()}


def _properties(peer: discovery_pb2.Peer) -> gossip_pb2.Properties:
    return gossip_pb2.GossipMessage.FromString(peer.state_info.payload).state_info.properties


@pytest.fixture
async def acquainted(running: RunningNetwork, wire: Wire) -> None:
    """Return once every peer knows how far the others are, which it asks every two seconds."""

    async def all_know() -> bool:
        for utility in running.network.utilities:
            peers = [one for of in (await _known(running, wire, utility)).values() for one in of]
            if any(len(_properties(peer).chaincodes) < 2 for peer in peers):
                return False
        return True

    await eventually(all_know)


async def test_discovery_knows_every_peer(
    running: RunningNetwork, wire: Wire, acquainted: None
) -> None:
    """Each peer says for itself where it is and how high its ledger is."""
    for utility in running.network.utilities:
        known = await _known(running, wire, utility)
        assert set(known) == MEMBERS
        for other in running.network.utilities:
            (peer,) = known[other.msp_id]
            assert msp_pb2.SerializedIdentity.FromString(peer.identity).mspid == other.msp_id
            alive = gossip_pb2.GossipMessage.FromString(peer.membership_info.payload)
            assert alive.alive_msg.membership.endpoint == other.gateway_address
            properties = _properties(peer)
            assert properties.ledger_height > 5
            assert {one.name for one in properties.chaincodes} >= {"energy", "metering"}


async def test_discovery_knows_who_can_endorse(
    running: RunningNetwork, wire: Wire, acquainted: None
) -> None:
    """Two of three for what all share; one utility alone for readings of its own."""
    utility = running.network.utilities[1]
    readings = peer_pb2.ChaincodeCall(
        name="metering",
        collection_names=["readings-AuroraMSP"],
        no_private_reads=True,
        disregard_namespace_policy=True,
    )
    interests = [
        peer_pb2.ChaincodeInterest(chaincodes=[peer_pb2.ChaincodeCall(name="energy")]),
        peer_pb2.ChaincodeInterest(chaincodes=[readings]),
    ]
    channel = running.network.channel
    endorsers, config = await _discover(
        wire,
        utility.gateway_address,
        utility.signer("operator"),
        discovery_pb2.Query(
            channel=channel, cc_query=discovery_pb2.ChaincodeQuery(interests=interests)
        ),
        discovery_pb2.Query(channel=channel, config_query=discovery_pb2.ConfigQuery()),
    )
    energy, metering = endorsers.cc_query_res.content
    pairs = [set(layout.quantities_by_group) for layout in energy.layouts]
    assert len(pairs) == 3
    assert all(len(pair) == 2 and pair < MEMBERS for pair in pairs)
    assert [dict(one.quantities_by_group) for one in metering.layouts] == [{"AuroraMSP": 1}]
    assert set(config.config_result.msps) == MEMBERS
    for other in running.network.utilities:
        (orderer,) = config.config_result.orderers[other.msp_id].endpoint
        assert f"{orderer.host}:{orderer.port}" == orderer_address(other)


async def test_every_node_says_how_it_is(running: RunningNetwork, wire: Wire) -> None:
    for address, _, own in _nodes(running):
        for name in ("", *own):
            raw = await wire.unary(
                address,
                "/grpc.health.v1.Health/Check",
                HealthCheckRequest(service=name).SerializeToString(),
            )
            assert isinstance(raw, bytes), (address, name, raw)
            assert HealthCheckResponse.FromString(raw).status == HealthCheckResponse.SERVING
        unknown = await wire.unary(
            address,
            "/grpc.health.v1.Health/Check",
            HealthCheckRequest(service="nothing").SerializeToString(),
        )
        assert isinstance(unknown, Refusal)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_every_node_describes_its_services(
    running: RunningNetwork, wire: Wire, version: str
) -> None:
    """The list is complete, and every service on it is described."""
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for address, _, own in _nodes(running):
        asked = ServerReflectionRequest(list_services="")
        (raw,) = await _answers(wire, address, path, asked)
        listed = {one.name for one in raw.list_services_response.service}
        assert own <= listed
        files = await _answers(
            wire,
            address,
            path,
            *(ServerReflectionRequest(file_containing_symbol=name) for name in sorted(listed)),
        )
        assert all(one.file_descriptor_response.file_descriptor_proto for one in files)


async def _answers(
    wire: Wire, address: str, path: str, *requests: ServerReflectionRequest
) -> list[ServerReflectionResponse]:
    raws = await wire.stream(address, path, [one.SerializeToString() for one in requests])
    assert not isinstance(raws, Refusal), raws
    return [ServerReflectionResponse.FromString(raw) for raw in raws]


async def test_a_first_call_over_a_slow_line(running: RunningNetwork) -> None:
    """TCP's and TLS's rounds take time; a node does not give up on an attempt before they end."""
    aurora = running.network.utilities[0]
    host, _, port = aurora.gateway_address.partition(":")
    link = Link((host, int(port)))
    link.delay_s = 0.25
    credentials = grpc.ssl_channel_credentials(running.network.tls_bundle_pem)
    address = await link.start()
    try:
        async with grpc.aio.secure_channel(
            address, credentials, options=services.NODE_CHANNEL_OPTIONS
        ) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            answer = HealthCheckResponse.FromString(
                await check(HealthCheckRequest().SerializeToString(), timeout=60)
            )
        assert answer.status == HealthCheckResponse.SERVING
    finally:
        await link.close()
