"""Utilities with several peers: their folders, ports, certificates and places in the channel."""

from pathlib import Path

import pytest

from consortium.identity.certificates import load_certificate
from consortium.ledger.channel_config import ChannelConfig
from consortium.node.network import Network, NetworkError, create_network
from consortium.node.nodes import PeerNode, kinds_of, make_node


def test_a_utility_with_two_peers(tmp_path: Path) -> None:
    create_network(tmp_path / "data", utilities=("Aurora", "Boreal"), peers={"Aurora": 2})
    network = Network.load(tmp_path / "data")
    aurora, boreal = network.utilities
    assert kinds_of(aurora) == ("ca", "orderer", "peer", "peer1")
    assert kinds_of(boreal) == ("ca", "orderer", "peer")
    block = network.genesis_block
    assert block is not None
    anchors = ChannelConfig.from_block(block).anchor_peers
    assert [port for _, port in anchors["AuroraMSP"]] == [one.node for one in aurora.peers.values()]
    ports = {aurora.address_of(kind) for kind in aurora.peers} | {boreal.gateway_address}
    assert len(ports) == 3
    pem = (aurora.directory / "peer1" / "sign.cert.pem").read_bytes()
    assert (
        "peer1.aurora.example" in load_certificate(pem, "the certificate").subject.rfc4514_string()
    )
    assert make_node(network, aurora, "peer").name == "peer0.aurora.example"
    second = make_node(network, aurora, "peer1")
    assert isinstance(second, PeerNode)
    assert second.name == "peer1.aurora.example"
    with pytest.raises(NetworkError, match="Boreal has no node 'peer1'; it has ca, orderer, peer"):
        make_node(network, boreal, "peer1")
    with pytest.raises(NetworkError, match="Boreal has no 'peer1'; it has peer"):
        boreal.address_of("peer1")


@pytest.mark.parametrize(
    ("peers", "sentence"),
    [
        ({"Nowhere": 2}, "peers are asked for Nowhere, which is none of the utilities"),
        ({"Aurora": 0}, "0 peers of Aurora; 1 to 8 are possible"),
        ({"Aurora": 9}, "9 peers of Aurora; 1 to 8 are possible"),
    ],
)
def test_peers_that_cannot_be(tmp_path: Path, peers: dict[str, int], sentence: str) -> None:
    with pytest.raises(NetworkError, match=sentence):
        create_network(tmp_path / "data", peers=peers)
