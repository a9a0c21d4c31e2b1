"""An ordering node: its channels, its two listeners and its disk.

    orderer = Orderer(Settings(...))
    await orderer.start()
    await orderer.join(genesis_block)
    ...
    await orderer.stop()

Clients and peers use the client listener (server TLS): Broadcast and Deliver. Other orderers use
the cluster listener (mutual TLS): Step, and Deliver for one that has fallen behind.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.config_update import ConfigError
from consortium.storage.segments import SegmentError
from consortium.wire import blocks, common_pb2, services
from consortium.wire.introspection import introspection_handlers

from .blockstore import BlockStore
from .chain import Chain
from .cluster import SERVER_OPTIONS, Cluster, TlsIdentity, public_key
from .node_store import NodeStore
from .pending import Limits
from .raft_storage import ChannelLog, RaftStorageError
from .services import BroadcastService, DeliverService, ServiceLimits

_LOGGER = logging.getLogger(__name__)


type Handlers = dict[str, grpc.RpcMethodHandler[bytes, bytes]]


class JoinError(Exception):
    """The orderer cannot join a channel; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an orderer needs to know. Addresses are `host:port`; port 0 takes a free one."""

    data_dir: Path
    signer: Signer
    """Identity that signs blocks and requests to other orderers (OU orderer)."""
    tls_certificate_pem: bytes
    """For serving and for calling; the channels' configurations pin it as a consenter's."""
    tls_key_pem: bytes
    tls_roots_pem: bytes
    """Issuers of the other orderers' TLS certificates, who may connect to the cluster listener."""
    client_address: str
    cluster_address: str
    tick_interval_s: float | None = None
    """In place of the channels' own tick interval."""
    check_threads: int = 2
    """Threads that check signatures of arriving envelopes."""
    limits: Limits = field(default_factory=Limits)
    service_limits: ServiceLimits = field(default_factory=ServiceLimits)
    stop_grace_s: float = 1.0
    """How long open calls may go on when the node stops."""


class Orderer:
    """An ordering node. Construct, `start`, `stop` and use it on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.channels: dict[str, Chain] = {}
        self.failed_channels: dict[str, str] = {}
        """Why a channel that was joined could not be started."""
        self.client_port = 0
        """The port of the client listener once it is started."""
        self.cluster_port = 0
        self._store: NodeStore | None = None
        self._cluster: Cluster | None = None
        self._servers: list[grpc.aio.Server] = []
        self._check_threads: ThreadPoolExecutor | None = None
        self._disk_threads: ThreadPoolExecutor | None = None

    async def start(self) -> None:
        """Open the disk, take part in every channel that was joined, listen.

        Raises OSError when an address is taken, StorageError or FormatError when the files
        cannot be used.
        """
        settings = self.settings
        self._check_threads = ThreadPoolExecutor(
            settings.check_threads, thread_name_prefix="orderer-check"
        )
        self._disk_threads = ThreadPoolExecutor(2, thread_name_prefix="orderer-disk")
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        tls = TlsIdentity(settings.tls_certificate_pem, settings.tls_key_pem)
        self._store = NodeStore(settings.data_dir / "raft")
        self._cluster = Cluster(tls, settings.signer)
        try:
            for channel_id in self._joined():
                try:
                    await self._start_chain(channel_id)
                except (JoinError, ConfigError, RaftStorageError, SegmentError) as error:
                    # One channel's trouble must not stop the others.
                    self.failed_channels[channel_id] = str(error)
                    _LOGGER.error("channel %s is not started: %s", channel_id, error)
            await self._listen(tls)
        except BaseException:
            await self.stop()
            raise

    def _joined(self) -> list[str]:
        folder = self.settings.data_dir / "blocks"
        return sorted(one.name for one in folder.iterdir()) if folder.exists() else []

    async def _listen(self, tls: TlsIdentity) -> None:
        assert self._check_threads
        assert self._disk_threads
        assert self._cluster
        broadcast = BroadcastService(
            self.channels, self._check_threads, self.settings.service_limits
        )
        deliver = DeliverService(self.channels, self._disk_threads, self.settings.service_limits)
        key_pairs = [(tls.key_pem, tls.certificate_pem)]
        handlers: Handlers = {
            services.BROADCAST: grpc.stream_stream_rpc_method_handler(broadcast.handle),
            services.ORDERER_DELIVER: grpc.stream_stream_rpc_method_handler(deliver.handle),
        }
        self.client_port = await self._serve(
            self.settings.client_address,
            grpc.ssl_server_credentials(key_pairs),
            services.CLIENT_SERVER_OPTIONS,
            handlers,
            introspection_handlers(
                ("orderer.AtomicBroadcast",),
                lambda: all(chain.available for chain in self.channels.values()),
            ),
        )
        handlers = {
            services.CLUSTER_STEP: grpc.stream_stream_rpc_method_handler(self._cluster.step),
            services.ORDERER_DELIVER: grpc.stream_stream_rpc_method_handler(deliver.handle),
        }
        self.cluster_port = await self._serve(
            self.settings.cluster_address,
            grpc.ssl_server_credentials(
                key_pairs,
                root_certificates=self.settings.tls_roots_pem,
                require_client_auth=True,
            ),
            SERVER_OPTIONS,
            handlers,
        )

    async def _serve(
        self,
        address: str,
        credentials: grpc.ServerCredentials,
        options: services.ChannelOptions,
        handlers: Handlers,
        introspection: Sequence[grpc.GenericRpcHandler] = (),
    ) -> int:
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers(tuple(introspection))
        for path, handler in handlers.items():
            _, service, method = path.split("/")
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {method: handler}),)
            )
        try:
            port = server.add_secure_port(address, credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            raise OSError(f"the orderer cannot listen on {address}; is the port taken?")
        await server.start()
        self._servers.append(server)
        return port

    async def join(self, genesis_block: common_pb2.Block) -> Chain:
        """Begin a channel with its first block; does nothing if that has been done.

        Raises JoinError if this orderer is none of the channel's consenters, or has joined a
        channel of that name with another first block; ConfigError if the block is no genesis.
        """
        assert self._store
        config = ChannelConfig.from_block(genesis_block)
        channel_id = config.channel_id
        if genesis_block.header.number != 0:
            raise JoinError(
                f"block {genesis_block.header.number} of channel {channel_id} is not its first;"
                " join with block 0"
            )
        chain = self.channels.get(channel_id)
        if chain is not None:
            first = common_pb2.Block.FromString(chain.block(0))
            if blocks.header_hash(first.header) != blocks.header_hash(genesis_block.header):
                raise JoinError(
                    f"channel {channel_id} was joined with another first block; remove it before"
                    " joining a channel of the same name"
                )
            return chain
        self._raft_id(config)  # before anything is written
        store = BlockStore(self._store, self._blocks_folder(channel_id), channel_id)
        if store.height == 0:
            store.append(0, genesis_block.SerializeToString())
            await store.commit(store.flush())
        store.close()
        return await self._start_chain(channel_id)

    def _blocks_folder(self, channel_id: str) -> Path:
        return self.settings.data_dir / "blocks" / channel_id

    def _raft_id(self, config: ChannelConfig) -> int:
        """This orderer's place among the consenters, from 1, by its TLS certificate."""
        mine = public_key(self.settings.tls_certificate_pem)
        for place, consenter in enumerate(config.orderer.consenters, 1):
            if public_key(consenter.server_tls_certificate_pem) == mine:
                return place
        raise JoinError(
            f"this orderer's TLS certificate is none of the {len(config.orderer.consenters)}"
            f" consenters' of channel {config.channel_id}; have it added to the channel first"
        )

    async def _start_chain(self, channel_id: str) -> Chain:
        assert self._store
        assert self._cluster
        assert self._disk_threads
        store = BlockStore(self._store, self._blocks_folder(channel_id), channel_id)
        if store.height == 0:
            raise JoinError(f"joining {channel_id} was interrupted; join it again")
        log = ChannelLog(self._store, channel_id)
        if log.fresh:
            if store.height > 1:
                raise JoinError(
                    f"the Raft log of {channel_id} is gone, but {store.height} blocks are there;"
                    " under its old id this orderer could break its word: have it removed from the"
                    " channel and added anew"
                )
            genesis = common_pb2.Block.FromString(store.read(0))
            count = len(ChannelConfig.from_block(genesis).orderer.consenters)
            await log.bootstrap(range(1, count + 1))
        chain = Chain(
            own_place=self._raft_id,
            log=log,
            store=store,
            signer=self.settings.signer,
            transport=self._cluster.transport(channel_id),
            writer_threads=self._disk_threads,
            limits=self.settings.limits,
            tick_interval_s=self.settings.tick_interval_s,
        )
        self._cluster.attach(channel_id, chain)
        self.channels[channel_id] = chain
        self.failed_channels.pop(channel_id, None)
        chain.start()
        return chain

    async def stop(self) -> None:
        """Stop serving and taking part; what was acknowledged is on disk."""
        await asyncio.gather(*(chain.stop() for chain in self.channels.values()))
        await asyncio.gather(*(server.stop(self.settings.stop_grace_s) for server in self._servers))
        self._servers.clear()
        if self._cluster is not None:
            for channel_id in self.channels:
                self._cluster.detach(channel_id)
            await self._cluster.close()
        self.channels.clear()
        for threads in (self._check_threads, self._disk_threads):
            if threads is not None:
                threads.shutdown(wait=True)
        if self._store is not None:
            self._store.close()
            self._store = None

    def status(self) -> dict[str, object]:
        """State for operators, as plain values."""
        return {
            "client_port": self.client_port,
            "cluster_port": self.cluster_port,
            "connected": self._cluster.connected() if self._cluster else {},
            "log_commits": self._store.commits if self._store else 0,
            "failed_channels": dict(self.failed_channels),
            "channels": [chain.status() for chain in self.channels.values()],
        }
