"""Starting nodes from a network's folder: one in a process of its own, or all of them in one."""

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import grpc

from consortium.agent import Agent, AgentError, AgentSettings, asked_of
from consortium.ca.service import CaService
from consortium.chaincode.packages import PackageError, PackageStore, builder_variables
from consortium.chaincode.routing import PackageExecutor
from consortium.contracts import chaincodes
from consortium.gateway.service import Gateway, PeerDirectory
from consortium.identity.certificates import CertificateError, load_certificate
from consortium.identity.msp import Msp, MspManager, msp_config
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.config_update import ConfigError
from consortium.ledger.ledger import Ledger
from consortium.ledger.snapshot import Snapshots, is_unfinished
from consortium.ledger.state import LedgerError
from consortium.orderer.cluster import TlsIdentity
from consortium.orderer.node import Orderer
from consortium.orderer.node import Settings as OrdererSettings
from consortium.orderer.participation import ParticipationService
from consortium.peer.access import NodesOnly
from consortium.peer.channel import ChannelPeer
from consortium.peer.contracts import Contracts
from consortium.peer.deliver import DeliverService
from consortium.peer.discovery import Discovery, OtherPeers
from consortium.peer.endorser import Endorser, endorser_handler
from consortium.peer.private_exchange import (
    PRIVATE_DATA_FILE,
    PrivateDataSettings,
    PrivateExchange,
    SettingsError,
)
from consortium.peer.reconciliation import Reconciler
from consortium.peer.snapshots import SnapshotJoins, SnapshotService
from consortium.storage.environment import StorageError, disk_error
from consortium.storage.segments import SegmentError
from consortium.wire import common_pb2, services
from consortium.wire.introspection import introspection_handlers
from consortium.wire.tls import Shown, server_credentials
from gridledger_client import GatewayClient, Identity

from .executors import SETTINGS_FILE, ContractSettingsError, SourceExecutors
from .network import HOST, PREVIOUS_AUTHORITY, Network, NetworkError, Utility

_LOGGER = logging.getLogger(__name__)

STOP_GRACE_S = 1.0
EXPIRES_SOON = timedelta(days=30)
AGENT_FILE = "agent.json"
KINDS = ("ca", "orderer", "peer")
PEER_SERVICES = (
    "gateway.Gateway",
    "protos.Endorser",
    "protos.Deliver",
    "discovery.Discovery",
    "protos.Snapshot",
)
"""What a peer's clients find at its listener, besides health and reflection."""


class Node(Protocol):
    """Anything that `Network` starts and stops."""

    name: str
    failure: Failure
    certificates: tuple[Path, ...]
    """What it shows and signs with; without those that are valid it does nothing for anybody."""

    async def start(self) -> None:
        """Listen and work until `stop`."""

    async def stop(self) -> None:
        """Finish what is under way and leave everything on disk."""


def expiries(node: Node) -> Iterator[tuple[Path, datetime]]:
    """When each of a node's certificates ends, of those that are there."""
    for path in node.certificates:
        with contextlib.suppress(OSError, CertificateError):
            yield path, load_certificate(path.read_bytes()).not_valid_after_utc


def new_certificate_by(path: Path) -> str:
    """The command that makes a new one in a certificate's place."""
    utility = path.parent.parent.name  # its folder's name serves: case doesn't count
    return f"gridledger network {'rotate-ca' if path.name == 'ca.cert.pem' else 'renew'} {utility}"


def _tell_expiries(node: Node) -> None:
    """Nobody looks at certificates before they end, and then everything stops at once."""
    for path, end in expiries(node):
        if end < datetime.now(UTC) + EXPIRES_SOON:
            _LOGGER.warning(
                "%s: the certificate %s ends at %s; `%s` makes a new one",
                node.name,
                path,
                end.isoformat(),
                new_certificate_by(path),
            )


class TlsFiles:
    """A node's TLS certificate and key, and the roots it trusts other nodes by."""

    def __init__(self, utility: Utility, kind: str, bundle_pem: bytes) -> None:
        self._folder = utility.directory / kind
        self.bundle = bundle_pem
        self.certificate, self.key = b"", b""
        self._read_at = 0
        self.read()

    def read(self) -> None:
        """Take up a certificate and key that were renewed."""
        certificate, key = self._folder / "tls.cert.pem", self._folder / "tls.key.pem"
        changed_at = max(certificate.stat().st_mtime_ns, key.stat().st_mtime_ns)
        if changed_at != self._read_at:
            self.certificate, self.key = certificate.read_bytes(), key.read_bytes()
            self._read_at = changed_at

    def _served(self, roots: Callable[[], bytes] | None) -> Shown:
        """What to show and whom to trust, asked anew at each handshake."""
        with contextlib.suppress(OSError):
            self.read()
        return Shown(self.key, self.certificate, roots() if roots is not None else None)

    def clients_server(self) -> grpc.ServerCredentials:
        """Server TLS: whoever trusts us may connect, and signs what it asks."""
        return server_credentials(lambda: self._served(None))

    def nodes_server(self, roots: Callable[[], bytes] | None = None) -> grpc.ServerCredentials:
        """Mutual TLS, for the consortium's own nodes.

        `roots` are those trusted at the moment, by default the bundle's.
        """
        trusted = roots or (lambda: self.bundle)
        return server_credentials(lambda: self._served(trusted))

    def to_node(self, roots_pem: bytes) -> grpc.ChannelCredentials:
        """Mutual TLS towards a node whose roots are `roots_pem`."""
        return grpc.ssl_channel_credentials(roots_pem, self.key, self.certificate)


class NodeError(NetworkError):
    """A node that can't start; the sentence says what stands in its way."""


class Failure:
    """Why a node can't go on: the first reason counts, told from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failed = asyncio.Event()
        self.reason: Exception | None = None
        """None while it goes on."""

    def begin(self) -> None:
        """The node starts in the running loop."""
        self._loop = asyncio.get_running_loop()

    def tell(self, reason: Exception) -> None:
        """The node must stop."""
        if self.reason is None:
            self.reason = reason
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._failed.set)

    async def wait(self) -> NodeError:
        """What to say, once it has failed."""
        await self._failed.wait()
        return NodeError(f"{self._name} stops: {self.reason}")


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
        """Raises NodeError where another process has it, or the disk takes no writes."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            raise  # it says which folder there should be
        except OSError as error:
            refusal = disk_error(self._path.parent, error)
            raise NodeError(f"{self._name} cannot start: {refusal}") from None
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


class ScheduledActs:
    """A utility's agent, which works from when it is made until `stop`."""

    def __init__(
        self,
        network: Network,
        utility: Utility,
        channel: ChannelPeer,
        settings: AgentSettings,
    ) -> None:
        folder = utility.directory / "operator"
        identity = Identity(
            utility.msp_id,
            (folder / "sign.cert.pem").read_bytes(),
            (folder / "sign.key.pem").read_bytes(),
        )
        self._gateway = GatewayClient(
            [utility.gateway_address], network.channel, identity, network.tls_bundle_pem
        )
        asked = {
            name: asked_of(chaincode.functions, settings)
            for name, chaincode in chaincodes().items()
        }
        self.agent = Agent(
            self._gateway,
            utility.msp_id,
            lambda: channel.ledger.config.application_orgs,
            asked,
            settings,
        )
        self._running = asyncio.create_task(self.agent.run())

    async def stop(self) -> None:
        """Leave what is under way."""
        self._running.cancel()
        await asyncio.wait([self._running])
        await self._gateway.close()


class PeerNode:
    """A peer with its gateway: endorses, commits, delivers, and serves homes."""

    def __init__(self, network: Network, utility: Utility, kind: str = "peer") -> None:
        """`kind` tells a utility's peers apart: see `Utility.peers`."""
        self.name = f"{kind}{'0' if kind == 'peer' else ''}.{utility.domain}"
        self._network = network
        self._utility = utility
        self._kind = kind
        self._folder = utility.directory / kind
        self.certificates: tuple[Path, ...] = (
            self._folder / "tls.cert.pem",
            self._folder / "sign.cert.pem",
            utility.directory / "operator" / "sign.cert.pem",
        )
        self._ports = utility.peers[kind]
        self._exchange: PrivateExchange | None = None
        self._reconcilers: list[Reconciler] = []
        self.channels: dict[str, ChannelPeer] = {}
        self._servers: list[grpc.aio.Server] = []
        self._gateway: Gateway | None = None
        self._signer = utility.signer(kind)
        self._ledgers = self._folder / "ledger"
        self._sources: SourceExecutors | None = None
        self._routing: PackageExecutor | None = None
        self._endorser: Endorser | None = None
        self._discovery: Discovery | None = None
        self._joining: set[str] = set()
        self._snapshots: dict[str, Snapshots] = {}
        self._snapshot_joins: SnapshotJoins | None = None
        self._lock = DataLock(self.name, self._folder)
        self.scheduled: ScheduledActs | None = None
        self.failure = Failure(self.name)

    async def start(self) -> None:
        """Open the ledger, follow the orderers, and listen for clients and for nodes."""
        _tell_expiries(self)
        network, utility = self._network, self._utility
        self._lock.take()
        self.failure.begin()
        signer = self._signer
        tls = TlsFiles(utility, self._kind, network.tls_bundle_pem)
        await self._open_channels()
        try:
            packages = PackageStore(self._folder / "packages")
            contracts = Contracts(utility.msp_id, packages)
            self._sources = SourceExecutors(packages, self._folder / SETTINGS_FILE)
            self._routing = PackageExecutor(
                packages, self._sources, contracts.package_of, builder_variables(os.environ)
            )
        except (PackageError, ContractSettingsError, OSError) as error:
            raise NodeError(f"{self.name} cannot start: {error}") from None
        address, node_address = f"{HOST}:{self._ports.client}", f"{HOST}:{self._ports.node}"
        others = OtherPeers(signer, tls.to_node, node_address, lambda: tls.certificate)
        try:
            settings = PrivateDataSettings.load(self._folder / PRIVATE_DATA_FILE)
        except SettingsError as error:
            raise NodeError(f"{self.name} cannot start: {error}") from None
        self._exchange = PrivateExchange(self.channels, signer, others, settings)
        own = MspManager(
            {utility.msp_id: Msp.from_config(msp_config(utility.msp_id, utility.root_pem))}
        )
        self._snapshot_joins = SnapshotJoins(
            self._ledgers,
            utility.msp_id,
            lambda: {name: channel.ledger for name, channel in self.channels.items()},
            self._follow,
        )
        endorser = self._endorser = Endorser(
            self.channels,
            signer,
            self._routing,
            contracts,
            own_msp=own,
            check_package=self._routing.check,
            join=self.join,
            snapshots=self._snapshot_joins,
            private_data=self._exchange,
        )
        directory = PeerDirectory(endorser, utility.msp_id, address, tls.to_node, node_address)
        self._gateway = Gateway(self.channels, directory, contracts=contracts)
        self._discovery = Discovery(self.channels, signer, address, others, contracts=contracts)
        handlers = (
            self._gateway.handler(),
            endorser_handler(endorser),
            DeliverService(self.channels).handler(),
            self._discovery.handler(),
            SnapshotService(
                self._snapshots,
                own,
                lambda: [one.ledger.config.msps for one in self.channels.values()],
            ).handler(),
            *introspection_handlers(
                PEER_SERVICES, lambda: not any(one.stopping for one in self.channels.values())
            ),
        )
        clients = grpc.aio.server(options=services.CLIENT_SERVER_OPTIONS)
        clients.add_generic_rpc_handlers(handlers)
        nodes = grpc.aio.server(options=services.NODE_SERVER_OPTIONS)
        admit = NodesOnly(self.channels)
        nodes.add_generic_rpc_handlers(
            (
                endorser_handler(endorser, admit),
                Discovery(self.channels, signer, address, contracts=contracts).handler(admit),
                self._exchange.handler(admit),
            )
        )
        self._servers = [clients, nodes]
        with listening(self.name):
            clients.add_secure_port(address, tls.clients_server())
            nodes.add_secure_port(node_address, tls.nodes_server(self._roots))
        for server in self._servers:
            await server.start()
        for channel in self.channels.values():
            self._begin(channel)
        self.scheduled = self._scheduled_acts()

    def _scheduled_acts(self) -> ScheduledActs | None:
        """The utility's agent, which its first peer runs where it has an operator's identity."""
        channel = self.channels.get(self._network.channel)
        if self._kind != "peer" or channel is None:
            return None
        if not (self._utility.directory / "operator" / "sign.key.pem").exists():
            return None
        try:
            settings = AgentSettings.load(self._folder / AGENT_FILE)
        except AgentError as error:
            raise NodeError(f"{self.name} cannot start: {error}") from None
        if not settings.enabled:
            return None
        return ScheduledActs(self._network, self._utility, channel, settings)

    def _begin(self, channel: ChannelPeer) -> None:
        """Follow a channel, and see to its private data."""
        assert self._exchange is not None
        channel.private_data = self._exchange
        channel.start()
        reconciler = Reconciler(channel, self._exchange)
        reconciler.start()
        self._reconcilers.append(reconciler)

    async def _open_channels(self) -> None:
        """Open the network's channel, and those that were joined later."""
        await self._open(self._network.channel, self._network.genesis_block)
        joined = sorted(self._ledgers.iterdir()) if self._ledgers.is_dir() else []
        for channel_id in (folder.name for folder in joined if folder.is_dir()):
            if channel_id not in self.channels and not is_unfinished(channel_id):
                try:
                    await self._open(channel_id, None)
                except (LedgerError, StorageError, SegmentError) as error:
                    # One channel's trouble must not stop the others.
                    _LOGGER.error("channel %s is not served: %s", channel_id, error)

    async def _open(self, channel_id: str, genesis: common_pb2.Block | None) -> ChannelPeer | None:
        folder = self._ledgers / channel_id
        if genesis is None and not folder.is_dir():
            return None
        ledger = await asyncio.to_thread(
            Ledger.open, folder, msp_id=self._utility.msp_id, genesis=genesis
        )
        ledger.watch_disk(self.failure.tell)
        self._snapshots[channel_id] = Snapshots(ledger, self._folder / "snapshots")
        channel = self.channels[channel_id] = ChannelPeer(ledger, self._signer)
        return channel

    async def join(self, block: common_pb2.Block) -> None:
        """Join a channel by its first block, and follow its orderers from now on.

        Raises ConfigError for a block that begins no channel, LedgerError where it is joined.
        """
        config = ChannelConfig.from_block(block)
        if block.header.number != 0:
            raise ConfigError(
                f"block {block.header.number} of channel {config.channel_id} is not its first; a "
                "peer joins with block 0, or from a snapshot"
            )
        if config.channel_id in self.channels or config.channel_id in self._joining:
            raise LedgerError(f"ledger [{config.channel_id}] already exists with state [ACTIVE]")
        self._joining.add(config.channel_id)
        try:
            channel = await self._open(config.channel_id, block)
        finally:
            self._joining.discard(config.channel_id)
        assert channel is not None
        self._begin(channel)

    async def _follow(self, channel_id: str) -> None:
        """Open a ledger that a snapshot has filled, and follow its channel's orderers."""
        channel = await self._open(channel_id, None)
        assert channel is not None
        self._begin(channel)

    def _roots(self) -> bytes:
        """Whose nodes may connect: of those who are members now, and of the folder's bundle."""
        roots = dict.fromkeys([self._network.tls_bundle_pem])
        for channel in list(self.channels.values()):
            msps = channel.ledger.config.msps
            roots |= dict.fromkeys(msps.tls_roots_pem(msp_id) for msp_id in msps.msps)
        return b"".join(roots)

    async def stop(self) -> None:
        """Answer what is under way for a second, then close the ledger."""
        if self.scheduled is not None:
            await self.scheduled.stop()
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
        if self._snapshot_joins is not None:
            steps.append(self._snapshot_joins.close)
        steps += [reconciler.stop for reconciler in self._reconcilers]
        steps += [partial(asyncio.to_thread, one.close) for one in self._snapshots.values()]
        steps += [channel.stop for channel in self.channels.values()]
        try:
            for step in steps:
                try:
                    await step()
                except Exception:
                    # What is left open would keep the ledger from being opened again.
                    _LOGGER.exception("stopping %s", self.name)
            if self._sources is not None:
                await self._sources.close()
        finally:
            self._lock.release()


def _tls_on_disk(folder: Path) -> list[TlsIdentity]:
    """An orderer's certificate, and the one that is to follow it (`gridledger orderer rotate`)."""
    return [
        TlsIdentity(certificate.read_bytes(), (folder / f"{name}.key.pem").read_bytes())
        for name in ("tls", "tls.next")
        if (certificate := folder / f"{name}.cert.pem").exists()
    ]


class OrdererNode:
    """A utility's orderer: one member of the Raft group."""

    def __init__(self, network: Network, utility: Utility) -> None:
        self.name = f"orderer0.{utility.domain}"
        folder = utility.directory / "orderer"
        self.certificates: tuple[Path, ...] = (folder / "tls.cert.pem", folder / "sign.cert.pem")
        tls = TlsFiles(utility, "orderer", network.tls_bundle_pem)
        self._genesis = network.genesis_block
        self._lock = DataLock(self.name, utility.directory / "orderer")
        self.failure = Failure(self.name)
        own = Msp.from_config(msp_config(utility.msp_id, utility.root_pem))
        self.orderer = Orderer(
            OrdererSettings(
                data_dir=utility.directory / "orderer" / "data",
                signer=utility.signer("orderer"),
                tls_certificate_pem=tls.certificate,
                tls_key_pem=tls.key,
                tls_roots_pem=tls.bundle,
                client_address=f"{HOST}:{utility.ports.orderer}",
                cluster_address=f"{HOST}:{utility.ports.cluster}",
                tls_candidates=partial(_tls_on_disk, utility.directory / "orderer"),
                administrators=own,
                beside_fabric=network.beside_fabric,
            )
        )
        self._participation = None
        if utility.ports.admin:
            self._participation = ParticipationService(
                self.orderer,
                host=HOST,
                port=utility.ports.admin,
                tls_certificate=utility.directory / "orderer" / "tls.cert.pem",
                tls_key=utility.directory / "orderer" / "tls.key.pem",
                client_roots_pem=utility.root_pem,
                administrators=own,
            )

    async def start(self) -> None:
        """Join the channel, unless that was done before, and listen."""
        _tell_expiries(self)
        self._lock.take()
        self.failure.begin()
        self.orderer.disk_refused = self.failure.tell
        with listening(self.name):
            await self.orderer.start()
        if self._genesis is not None and not self.orderer.has_left(self._genesis):
            await self.orderer.join(self._genesis)
        if self._participation is not None:
            with listening(self.name):
                await self._participation.start()

    async def stop(self) -> None:
        """Stop ordering; the log is on disk."""
        if self._participation is not None:
            await self._participation.stop()
        await self.orderer.stop()
        self._lock.release()


class CaNode:
    """A utility's enrolment authority."""

    def __init__(self, network: Network, utility: Utility) -> None:
        self.name = f"ca.{utility.domain}"
        folder = utility.directory / "ca"
        self.certificates: tuple[Path, ...] = (folder / "tls.cert.pem", folder / "ca.cert.pem")
        self.failure = Failure(self.name)
        self._service = CaService(
            utility.directory / "ca",
            name=f"ca.{utility.domain}",
            host=HOST,
            port=utility.ports.ca,
            tls_certificate=utility.directory / "ca" / "tls.cert.pem",
            tls_key=utility.directory / "ca" / "tls.key.pem",
            tls_bundle=network.tls_bundle,
            previous_root=utility.directory / "ca" / PREVIOUS_AUTHORITY / "ca.cert.pem",
            msp_id=utility.msp_id,
        )

    async def start(self) -> None:
        """Listen for enrolments."""
        _tell_expiries(self)
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
    """One node of a utility: `ca`, `orderer`, `peer`, or `peer1` and so on of one with several.

    Raises NetworkError for a node that it does not have.
    """
    if kind in utility.peers:
        return PeerNode(network, utility, kind)
    if kind not in MAKERS:
        known = ", ".join(kinds_of(utility))
        raise NetworkError(f"{utility.name} has no node {kind!r}; it has {known}")
    return MAKERS[kind](network, utility)


def kinds_of(utility: Utility) -> tuple[str, ...]:
    """A utility's nodes, in the order in which they start."""
    return (*(kind for kind in KINDS if kind != "peer"), *utility.peers)


class EmbeddedNetwork:
    """Every node of a network in this process, with real gRPC and TLS between them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes: dict[str, Node] = {}

    async def start(self, progress: Callable[[str], None] = lambda _message: None) -> None:
        """Start authorities and orderers, then peers; stops all again if one fails."""
        try:
            nodes = [
                make_node(self.network, utility, kind)
                for utility in self.network.utilities
                for kind in kinds_of(utility)
            ]
            for maker in (CaNode, OrdererNode, PeerNode):
                for node in nodes:
                    if isinstance(node, maker):
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


async def run_node(node: Node, until: Callable[[], Coroutine[object, object, object]]) -> None:
    """Run one node until `until` returns or is cancelled; raises NodeError if it can't go on."""
    try:
        await node.start()
        with contextlib.suppress(asyncio.CancelledError):
            await until_failure([node], until)
    finally:
        await node.stop()


async def until_failure(
    nodes: Iterable[Node], until: Callable[[], Coroutine[object, object, object]]
) -> None:
    """Return when `until` does; raises NodeError as soon as one of the nodes can't go on."""
    ending = asyncio.create_task(until())
    failing = {asyncio.create_task(node.failure.wait()) for node in nodes}
    try:
        await asyncio.wait({ending, *failing}, return_when=asyncio.FIRST_COMPLETED)
        for task in failing:
            if task.done():
                raise task.result()
        await ending
    finally:
        ending.cancel()
        for waiting in failing:
            waiting.cancel()
