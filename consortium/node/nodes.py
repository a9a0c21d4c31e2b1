"""Starting nodes from a network's folder: one in a process of its own, or all of them in one."""

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import grpc

from consortium.ca.service import CaService
from consortium.chaincode.executor import InProcessExecutor
from consortium.chaincode.routing import CONNECTIONS_FILE, ConnectionsError, RoutingExecutor
from consortium.contracts import chaincodes
from consortium.gateway.service import Gateway, PeerDirectory
from consortium.identity.signing import Signer
from consortium.ledger.ledger import Ledger
from consortium.orderer.node import Orderer
from consortium.orderer.node import Settings as OrdererSettings
from consortium.peer.access import NodesOnly
from consortium.peer.channel import ChannelPeer
from consortium.peer.deliver import DeliverService
from consortium.peer.discovery import Discovery, OtherPeers
from consortium.peer.endorser import Endorser, endorser_handler
from consortium.wire import services
from consortium.wire.introspection import introspection_handlers

from .network import HOST, Network, NetworkError, Utility

_LOGGER = logging.getLogger(__name__)

STOP_GRACE_S = 1.0
KINDS = ("ca", "orderer", "peer")
PEER_SERVICES = ("gateway.Gateway", "protos.Endorser", "protos.Deliver", "discovery.Discovery")
"""What a peer's clients find at its listener, besides health and reflection."""


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


class NodeError(NetworkError):
    """A node that can't start; the sentence says what stands in its way."""


class DataLock:
    """Keeps a node's data to one process.

    A second one would cut off what the first has written and not committed yet. The operating
    system lets go when the process ends, however it ends.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._path = folder / "lock"
        self._descriptor: int | None = None

    def take(self) -> None:
        """Raises NodeError where another process has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise NodeError(
                f"{self._name} runs already: another process uses {self._path.parent}; stop that "
                "one first"
            ) from None
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def listening(name: str) -> Iterator[None]:
    """Name the node whose address is taken; raises NodeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise NodeError(
            f"{name} cannot start, is another program using its port? {error}"
        ) from None


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
        self._routing: RoutingExecutor | None = None
        self._endorser: Endorser | None = None
        self._discovery: Discovery | None = None
        self._lock = DataLock(self.name, utility.directory / "peer")

    async def start(self) -> None:
        """Open the ledger, follow the orderers, and listen for clients and for nodes."""
        network, utility = self._network, self._utility
        self._lock.take()
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
        try:
            self._routing = RoutingExecutor(
                self._executor, utility.directory / "peer" / CONNECTIONS_FILE
            )
        except ConnectionsError as error:
            raise NodeError(f"{self.name} cannot start: {error}") from None
        endorser = self._endorser = Endorser(self.channels, signer, self._routing)
        directory = PeerDirectory(endorser, utility.msp_id, utility.gateway_address, tls.to_node)
        self._gateway = Gateway(self.channels, directory)
        address = utility.gateway_address
        self._discovery = Discovery(self.channels, signer, address, OtherPeers(signer, tls.to_node))
        handlers = (
            self._gateway.handler(),
            endorser_handler(endorser),
            DeliverService(self.channels).handler(),
            self._discovery.handler(),
            *introspection_handlers(PEER_SERVICES, lambda: not channel.stopping),
        )
        clients = grpc.aio.server(options=services.CLIENT_SERVER_OPTIONS)
        clients.add_generic_rpc_handlers(handlers)
        nodes = grpc.aio.server(options=services.NODE_SERVER_OPTIONS)
        admit = NodesOnly(self.channels)
        nodes.add_generic_rpc_handlers(
            (
                endorser_handler(endorser, admit),
                Discovery(self.channels, signer, address).handler(admit),
            )
        )
        self._servers = [clients, nodes]
        with listening(self.name):
            clients.add_secure_port(f"{HOST}:{utility.ports.peer}", tls.clients_server())
            nodes.add_secure_port(f"{HOST}:{utility.ports.peer_node}", tls.nodes_server())
        for server in self._servers:
            await server.start()
        channel.start()

    async def stop(self) -> None:
        """Answer what is under way for a second, then close the ledger."""
        # Streams and calls that wait for a commit are told at once: they would use up the second.
        for channel in self.channels.values():
            channel.stop_waiting()
        steps: list[Callable[[], Awaitable[object]]] = [
            partial(server.stop, STOP_GRACE_S) for server in self._servers
        ]
        if self._gateway is not None:
            steps.append(self._gateway.stop)
        if self._discovery is not None:
            steps.append(self._discovery.close)
        if self._endorser is not None:
            steps.append(self._endorser.close)
        if self._routing is not None:
            steps.append(self._routing.close)
        steps += [channel.stop for channel in self.channels.values()]
        try:
            for step in steps:
                try:
                    await step()
                except Exception:
                    # What is left open would keep the ledger from being opened again.
                    _LOGGER.exception("stopping %s", self.name)
            if self._executor is not None:
                self._executor.close()
        finally:
            self._lock.release()


class OrdererNode:
    """A utility's orderer: one member of the Raft group."""

    def __init__(self, network: Network, utility: Utility) -> None:
        self.name = f"orderer0.{utility.domain}"
        tls = TlsFiles(utility, "orderer", network.tls_bundle_pem)
        self._genesis = network.genesis_block
        self._lock = DataLock(self.name, utility.directory / "orderer")
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
        self._lock.take()
        with listening(self.name):
            await self.orderer.start()
        await self.orderer.join(self._genesis)

    async def stop(self) -> None:
        """Stop ordering; the log is on disk."""
        await self.orderer.stop()
        self._lock.release()


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
        with listening(self.name):
            await self._service.start()

    async def stop(self) -> None:
        """Stop listening."""
        await self._service.stop()


MAKERS: dict[str, type[CaNode] | type[OrdererNode] | type[PeerNode]] = {
    "ca": CaNode,
    "orderer": OrdererNode,
    "peer": PeerNode,
}


def make_node(network: Network, utility: Utility, kind: str) -> Node:
    """One node of a utility: `ca`, `orderer` or `peer`."""
    return MAKERS[kind](network, utility)


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
        for kind in reversed(KINDS):
            stopping = [node for node in self.nodes.values() if isinstance(node, MAKERS[kind])]
            results = await asyncio.gather(
                *(node.stop() for node in stopping), return_exceptions=True
            )
            for node, result in zip(stopping, results, strict=True):
                if isinstance(result, BaseException):
                    _LOGGER.error("stopping %s", node.name, exc_info=result)
        self.nodes.clear()

    async def __aenter__(self) -> EmbeddedNetwork:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def run_node(node: Node, until: Callable[[], Awaitable[object]]) -> None:
    """Run one node until `until` returns or is cancelled."""
    try:
        await node.start()
        with contextlib.suppress(asyncio.CancelledError):
            await until()
    finally:
        await node.stop()
