"""Starting nodes from a network's folder: one in a process of its own, or all of them in one."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import grpc

from consortium.ca.service import CaService
from consortium.chaincode.executor import InProcessExecutor
from consortium.contracts import chaincodes
from consortium.gateway.service import Gateway, PeerDirectory
from consortium.identity.signing import Signer
from consortium.ledger.ledger import Ledger
from consortium.orderer.node import Orderer
from consortium.orderer.node import Settings as OrdererSettings
from consortium.peer.channel import ChannelPeer
from consortium.peer.deliver import DeliverService
from consortium.peer.endorser import Endorser, endorser_handler
from consortium.wire import services

from .network import HOST, Network, Utility

_LOGGER = logging.getLogger(__name__)

STOP_GRACE_S = 1.0
KINDS = ("ca", "orderer", "peer")


class Node(Protocol):
    """Anything that `Network` starts and stops."""

    name: str

    async def start(self) -> None:
        """Listen and work until `stop`."""

    async def stop(self) -> None:
        """Finish what is under way and leave everything on disk."""


class TlsFiles:
    """A node's TLS certificate and key, and the roots it trusts other nodes by."""

    def __init__(self, utility: Utility, kind: str, bundle_pem: bytes) -> None:
        folder = utility.directory / kind
        self.certificate = (folder / "tls.cert.pem").read_bytes()
        self.key = (folder / "tls.key.pem").read_bytes()
        self.bundle = bundle_pem

    def clients_server(self) -> grpc.ServerCredentials:
        """Server TLS: whoever trusts us may connect, and signs what it asks."""
        return grpc.ssl_server_credentials([(self.key, self.certificate)])

    def nodes_server(self) -> grpc.ServerCredentials:
        """Mutual TLS, for the consortium's own nodes."""
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)],
            root_certificates=self.bundle,
            require_client_auth=True,
        )

    def to_node(self, roots_pem: bytes) -> grpc.ChannelCredentials:
        """Mutual TLS towards a node whose roots are `roots_pem`."""
        return grpc.ssl_channel_credentials(roots_pem, self.key, self.certificate)


class PeerNode:
    """A peer with its gateway: endorses, commits, delivers, and serves homes."""

    def __init__(self, network: Network, utility: Utility) -> None:
        self.name = f"peer0.{utility.domain}"
        self._network = network
        self._utility = utility
        self.channels: dict[str, ChannelPeer] = {}
        self._servers: list[grpc.aio.Server] = []
        self._gateway: Gateway | None = None
        self._executor: InProcessExecutor | None = None

    async def start(self) -> None:
        """Open the ledger, follow the orderers, and listen for clients and for nodes."""
        network, utility = self._network, self._utility
        signer = Signer.load(
            utility.msp_id,
            utility.directory / "peer" / "sign.cert.pem",
            utility.directory / "peer" / "sign.key.pem",
        )
        tls = TlsFiles(utility, "peer", network.tls_bundle_pem)
        ledger = await asyncio.to_thread(
            Ledger.open,
            utility.directory / "peer" / "ledger" / network.channel,
            msp_id=utility.msp_id,
            genesis=network.genesis_block,
        )
        channel = ChannelPeer(ledger, signer)
        self.channels[network.channel] = channel
        self._executor = InProcessExecutor(chaincodes())
        endorser = Endorser(self.channels, signer, self._executor)
        directory = PeerDirectory(endorser, utility.msp_id, utility.gateway_address, tls.to_node)
        self._gateway = Gateway(self.channels, directory)
        handlers = (
            self._gateway.handler(),
            endorser_handler(endorser),
            DeliverService(self.channels).handler(),
        )
        clients = grpc.aio.server(options=services.CLIENT_SERVER_OPTIONS)
        clients.add_generic_rpc_handlers(handlers)
        nodes = grpc.aio.server(options=services.NODE_SERVER_OPTIONS)
        nodes.add_generic_rpc_handlers((endorser_handler(endorser),))
        self._servers = [clients, nodes]
        clients.add_secure_port(f"{HOST}:{utility.ports.peer}", tls.clients_server())
        nodes.add_secure_port(f"{HOST}:{utility.ports.peer_node}", tls.nodes_server())
        for server in self._servers:
            await server.start()
        channel.start()

    async def stop(self) -> None:
        """Answer what is under way for a second, then close the ledger."""
        await asyncio.gather(*(server.stop(STOP_GRACE_S) for server in self._servers))
        if self._gateway is not None:
            await self._gateway.stop()
        for channel in self.channels.values():
            await channel.stop()
        if self._executor is not None:
            self._executor.close()


class OrdererNode:
    """A utility's orderer: one member of the Raft group."""

    def __init__(self, network: Network, utility: Utility) -> None:
        self.name = f"orderer0.{utility.domain}"
        tls = TlsFiles(utility, "orderer", network.tls_bundle_pem)
        self._genesis = network.genesis_block
        self.orderer = Orderer(
            OrdererSettings(
                data_dir=utility.directory / "orderer" / "data",
                signer=utility.signer("orderer"),
                tls_certificate_pem=tls.certificate,
                tls_key_pem=tls.key,
                tls_roots_pem=tls.bundle,
                client_address=f"{HOST}:{utility.ports.orderer}",
                cluster_address=f"{HOST}:{utility.ports.cluster}",
            )
        )

    async def start(self) -> None:
        """Join the channel, unless that was done before, and listen."""
        await self.orderer.start()
        await self.orderer.join(self._genesis)

    async def stop(self) -> None:
        """Stop ordering; the log is on disk."""
        await self.orderer.stop()


class CaNode:
    """A utility's enrolment authority."""

    def __init__(self, network: Network, utility: Utility) -> None:
        self.name = f"ca.{utility.domain}"
        self._service = CaService(
            utility.directory / "ca",
            name=f"ca.{utility.domain}",
            host=HOST,
            port=utility.ports.ca,
            tls_certificate=utility.directory / "ca" / "tls.cert.pem",
            tls_key=utility.directory / "ca" / "tls.key.pem",
            tls_bundle_pem=network.tls_bundle_pem,
            msp_id=utility.msp_id,
        )

    async def start(self) -> None:
        """Listen for enrolments."""
        await self._service.start()

    async def stop(self) -> None:
        """Stop listening."""
        await self._service.stop()


def make_node(network: Network, utility: Utility, kind: str) -> Node:
    """One node of a utility: `ca`, `orderer` or `peer`."""
    makers: dict[str, Callable[[Network, Utility], Node]] = {
        "ca": CaNode,
        "orderer": OrdererNode,
        "peer": PeerNode,
    }
    return makers[kind](network, utility)


class EmbeddedNetwork:
    """Every node of a network in this process, with real gRPC and TLS between them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes: dict[str, Node] = {}

    async def start(self, progress: Callable[[str], None] = lambda _message: None) -> None:
        """Start authorities and orderers, then peers; stops all again if one fails."""
        try:
            for kind in KINDS:
                for utility in self.network.utilities:
                    node = make_node(self.network, utility, kind)
                    self.nodes[node.name] = node
                    await node.start()
                    progress(f"{node.name} is up")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop peers first, then orderers and authorities."""
        for node in reversed(self.nodes.values()):
            try:
                await node.stop()
            except Exception:
                _LOGGER.exception("stopping %s", node.name)
        self.nodes.clear()

    async def __aenter__(self) -> EmbeddedNetwork:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def run_node(node: Node, until: Awaitable[object]) -> None:
    """Run one node until `until` completes or is cancelled."""
    await node.start()
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await until
    finally:
        await node.stop()
