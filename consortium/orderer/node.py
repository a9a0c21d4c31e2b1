"""An ordering node: its channels, its two listeners and its disk.

    orderer = Orderer(Settings(...))
    await orderer.start()
    await orderer.join(genesis_block)
    ...
    await orderer.stop()

Clients and peers use the client listener (server TLS): Broadcast and Deliver. Other orderers use
the cluster listener (mutual TLS): Step, and Deliver for one that has fallen behind.

In each of its channels the node is a consenter (`chain.Chain`) or only follows
(`follower.Follower`), and changes from one to the other as the channel's configuration says. Both
listeners show the certificate that is on disk at the moment, and the cluster listener trusts the
TLS roots of the ordering organizations of the configurations in force.
"""

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc

from consortium.identity.certificates import write_private
from consortium.identity.msp import Msp
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig, Consenter
from consortium.ledger.config_update import ConfigError
from consortium.raft import InvariantBroken
from consortium.storage.environment import DiskError
from consortium.storage.segments import SegmentError
from consortium.wire import blocks, common_pb2, services
from consortium.wire.introspection import introspection_handlers
from consortium.wire.tls import Shown, server_credentials

from .administration import (
    AdministrationService,
    ChannelExistsError,
    ChannelMissingError,
    JoinError,
    NotReadyError,
)
from .admission import Refused, opened
from .blockstore import BlockStore
from .blockwriter import BlockWriter
from .chain import Chain, Hooks
from .cluster import SERVER_OPTIONS, Cluster, TlsIdentity, public_key
from .follower import Follower, FollowerHooks
from .membership import tls_roots
from .node_store import NodeStore
from .pending import Limits, Submission
from .raft_storage import ChannelLog, MemberRecord, RaftStorageError
from .services import BroadcastService, DeliverService, ServiceLimits

_LOGGER = logging.getLogger(__name__)


type Handlers = dict[str, grpc.RpcMethodHandler[bytes, bytes]]


TLS_CHECK_S = 2.0
"""How often the node looks whether its TLS certificate on disk is another one."""

JOIN_AGAIN_S = 2.0

CHANNELS = 1_000
"""A node takes part in no more channels than this."""

LOST_LOG = (
    "the Raft log of {channel} is gone, but {height} blocks are there; under its old id {raft_id}"
    " this orderer could break its word: remove this consenter from the channel and add it again"
    " (gridledger orderer remove, then add)"
)


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """A channel of this orderer, in the words of Fabric's channel participation API."""

    name: str
    height: int
    status: Literal["onboarding", "active", "inactive", "failed"]
    consensus_relation: Literal["consenter", "follower", "config-tracker", "other"]
    problem: str = ""
    """Why it failed, or what it waits for."""


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
    """Issuers of the other orderers' TLS certificates, who may connect to the cluster listener
    besides those that the channels' configurations name."""
    client_address: str
    cluster_address: str
    tls_candidates: Callable[[], Sequence[TlsIdentity]] | None = None
    """Reads the TLS certificates that are on disk now, the preferred one first. The node shows the
    first one that a channel's configuration names, else the first. None: always the same."""
    administrators: Msp | None = None
    """The node's own organization, whose admins may transfer leadership, join and remove."""
    beside_fabric: bool = False
    """Some consenters are Fabric's orderers: newcomers vote at once, nobody is a learner."""
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
        self.channels: dict[str, Chain | Follower] = {}
        self.failed_channels: dict[str, str] = {}
        """Why a channel that was joined could not be started."""
        self._switched: set[str] = set()
        """Channels that are about to be opened again in another part."""
        self.client_port = 0
        """The port of the client listener once it is started."""
        self.cluster_port = 0
        self._store: NodeStore | None = None
        self._cluster: Cluster | None = None
        self._servers: list[grpc.aio.Server] = []
        self._check_threads: ThreadPoolExecutor | None = None
        self._disk_threads: ThreadPoolExecutor | None = None
        self._process = os.urandom(16)
        self._tls = TlsIdentity(settings.tls_certificate_pem, settings.tls_key_pem)
        self._pinned_tls = self._tls
        self._roots_pem = settings.tls_roots_pem
        self._tasks: list[asyncio.Task[None]] = []
        self._switching: set[asyncio.Task[None]] = set()
        self._channel_locks: dict[str, asyncio.Lock] = {}
        self._stopping = False
        self.disk_refused: Callable[[DiskError], None] = lambda _error: None
        """Told, on any thread, when the disk refuses a write: then the node must stop."""

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
        self._store = NodeStore(settings.data_dir / "raft")
        self._store.on_disk_error = lambda error: self.disk_refused(error)
        self._cluster = Cluster(self._pinned_tls, settings.signer)
        try:
            for channel_id in self._joined():
                await self._try_to_open(channel_id)
            await self._listen()
            self._tasks = [
                asyncio.create_task(self._tick(), name="orderer-tick"),
                asyncio.create_task(self._watch_tls(), name="orderer-tls"),
            ]
        except BaseException:
            await self.stop()
            raise

    def _joined(self) -> list[str]:
        names = set()
        for folder in (self.settings.data_dir / "blocks", self.settings.data_dir / "join"):
            if folder.exists():
                names |= {one.name for one in folder.iterdir()}
        return sorted(names)

    async def _listen(self) -> None:
        assert self._check_threads
        assert self._disk_threads
        assert self._cluster
        broadcast = BroadcastService(
            self.channels, self._check_threads, self.settings.service_limits
        )
        deliver = DeliverService(self.channels, self._disk_threads, self.settings.service_limits)
        administration = AdministrationService(self, self._check_threads)
        handlers: Handlers = {
            services.BROADCAST: grpc.stream_stream_rpc_method_handler(broadcast.handle),
            services.BROADCAST_BATCHES: grpc.stream_stream_rpc_method_handler(
                broadcast.handle_batches
            ),
            services.ORDERER_DELIVER: grpc.stream_stream_rpc_method_handler(deliver.handle),
            services.ORDERER_ACT: grpc.unary_unary_rpc_method_handler(administration.handle),
        }
        self.client_port = await self._serve(
            self.settings.client_address,
            server_credentials(self._shown),
            services.CLIENT_SERVER_OPTIONS,
            handlers,
            introspection_handlers(
                ("orderer.AtomicBroadcast",),
                lambda: all(chain.available for chain in self.channels.values()),
            ),
        )
        handlers = {
            services.CLUSTER_STEP: grpc.stream_stream_rpc_method_handler(self._cluster.step),
            services.CONSENTERS_RECALL: grpc.unary_unary_rpc_method_handler(
                self._cluster.recall_service
            ),
            services.ORDERER_DELIVER: grpc.stream_stream_rpc_method_handler(deliver.handle),
        }
        self.cluster_port = await self._serve(
            self.settings.cluster_address,
            server_credentials(self._shown_and_trusted),
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

    # Time, for all channels at once

    async def _tick(self) -> None:
        """Feed time to the chains: one task for all of them.

        Channels with the same interval tick together, so that the node wakes up once for them. One
        tick for each wake-up, however late it comes: when the whole process was busy, time passes
        more slowly for its orderers instead of in a burst that looks like a dead leader.
        """
        loop = asyncio.get_running_loop()
        due: dict[float, float] = {}
        while True:
            now = loop.time()
            intervals = {chain.tick_s for chain in self.channels.values() if chain.tick_s}
            due = {interval: due.get(interval, now + interval) for interval in intervals}
            await asyncio.sleep(max(0.0, min(due.values(), default=now + 0.1) - now))
            now = loop.time()
            for interval, when in due.items():
                if when > now:
                    continue
                late = now - when > interval
                due[interval] = (now if late else when) + interval
                for chain in list(self.channels.values()):
                    if chain.tick_s == interval:
                        chain.tick(late=late)

    # TLS

    def _shown(self) -> Shown:
        """What the client listener shows, asked anew at each handshake."""
        return Shown(self._tls.key_pem, self._tls.certificate_pem)

    def _shown_and_trusted(self) -> Shown:
        """The same for the cluster listener, with the roots that it trusts at the moment."""
        pinned = self._pinned_tls
        return Shown(pinned.key_pem, pinned.certificate_pem, self._roots_pem)

    def _configured(self) -> None:
        """A channel has a new configuration: other roots, perhaps another certificate of ours."""
        found: dict[bytes, None] = {}
        for chain in self.channels.values():
            found |= dict.fromkeys(tls_roots(chain.config))
            # A pinned certificate is trusted whatever became of its issuer.
            consenters = chain.config.orderer.consenters
            found |= dict.fromkeys(one.client_tls_certificate_pem for one in consenters)
        self._roots_pem = self.settings.tls_roots_pem + b"".join(found)
        self._take_tls()

    async def _watch_tls(self) -> None:
        while True:
            await asyncio.sleep(TLS_CHECK_S)
            try:
                self._take_tls()
            except Exception:
                # A certificate that is half written is whole the next time.
                _LOGGER.warning("this node's TLS certificate cannot be read", exc_info=True)

    def _take_tls(self) -> None:
        """Show and call with the certificate that is on disk and that the channels name.

        Others trust the very certificate that a configuration pins. So where the one on disk was
        renewed with the same key, the cluster listener goes on showing the pinned one, until a
        configuration names the new one.
        """
        try:
            candidates = {public_key(one.certificate_pem): one for one in self._candidates()}
        except (OSError, ValueError) as error:
            _LOGGER.warning("this node's TLS certificate cannot be read: %s", error)
            return
        named = {
            public_key(one.server_tls_certificate_pem): one.server_tls_certificate_pem
            for chain in self.channels.values()
            for one in chain.config.orderer.consenters
        }
        key = next((key for key in candidates if key in named), next(iter(candidates)))
        chosen = candidates[key]
        pinned = TlsIdentity(named.get(key, chosen.certificate_pem), chosen.key_pem)
        if (chosen, pinned) == (self._tls, self._pinned_tls):
            return
        if chosen != self._tls:
            _LOGGER.info("this node shows another TLS certificate from now on")
        self._tls = chosen
        if pinned != self._pinned_tls:
            self._pinned_tls = pinned
            if self._cluster is not None:
                self._cluster.use(pinned)
        for chain in list(self.channels.values()):
            if isinstance(chain, Follower):
                chain.recheck()

    def _candidates(self) -> Sequence[TlsIdentity]:
        settings = self.settings
        own = [TlsIdentity(settings.tls_certificate_pem, settings.tls_key_pem)]
        return (settings.tls_candidates() if settings.tls_candidates else own) or own

    # Channels

    async def join(self, block: common_pb2.Block) -> Chain | Follower:
        """Begin a channel with its first block; does nothing if that has been done.

        Raises JoinError if this orderer has joined a channel of that name with another first block;
        ConfigError if the block is no genesis.
        """
        config = ChannelConfig.from_block(block)
        channel_id = config.channel_id
        if block.header.number != 0:
            raise JoinError(
                f"block {block.header.number} of channel {channel_id} is not its first;"
                " join with block 0"
            )
        chain = self.channels.get(channel_id)
        if chain is None:
            if self.failed_channels.pop(channel_id, None) is not None:
                # Joining was interrupted, or the index of the blocks is lost: begin again.
                await self._begin(block)
            else:
                await self.join_channel(block)
            return self.channels[channel_id]
        if chain.height:
            first = common_pb2.Block.FromString(chain.block(0))
            if blocks.header_hash(first.header) != blocks.header_hash(block.header):
                raise ChannelExistsError(
                    f"channel {channel_id} was joined with another first block; remove it before"
                    " joining a channel of the same name"
                )
        return chain

    async def join_channel(self, config_block: common_pb2.Block) -> ChannelInfo:
        """Join a channel by any of its configuration blocks (Fabric's channel participation).

        With block 0 that names this orderer as a consenter it takes part at once; else it fetches
        the blocks from the consenters that the block names, and takes part as soon as a
        configuration says so.

        Raises JoinError (ChannelExistsError), ConfigError for a block that is no configuration.
        """
        assert self._store
        config = ChannelConfig.from_block(config_block)
        channel_id = config.channel_id
        async with self._lock(channel_id):
            if channel_id in self.channels or channel_id in self.failed_channels:
                raise ChannelExistsError(
                    f"channel {channel_id} already exists here; `gridledger orderer channels` "
                    "shows how far it is"
                )
            if len(self.channels) >= CHANNELS:
                raise JoinError(f"this orderer takes part in {CHANNELS} channels, its limit")
            if config.orderer.consensus_type != "etcdraft" or not config.orderer.consenters:
                raise JoinError(
                    f"channel {channel_id} is ordered by {config.orderer.consensus_type}; this"
                    " orderer knows etcdraft only"
                )
            header = config_block.header
            if header.number and blocks.data_hash(config_block.data.data) != header.data_hash:
                raise JoinError(f"the data of block {header.number} does not have its data hash")
            if header.number == 0:
                await self._begin(config_block)
            else:
                self._join_file(channel_id).parent.mkdir(mode=0o700, exist_ok=True)
                write_private(self._join_file(channel_id), config_block.SerializeToString())
                await self._open(channel_id)
        return self.channel_info(channel_id)

    async def _begin(self, genesis_block: common_pb2.Block) -> None:
        """Take part in a channel whose first block may be here already."""
        assert self._store
        channel_id = ChannelConfig.from_block(genesis_block).channel_id
        store = BlockStore(self._store, self._blocks_folder(channel_id), channel_id)
        if store.height == 0:
            store.append(0, genesis_block.SerializeToString())
            await store.commit(store.flush())
        store.close()
        await self._open(channel_id)

    async def remove_channel(self, channel_id: str) -> None:
        """Leave a channel and delete everything of it here; raises ChannelMissingError.

        It does not take this orderer out of the channel's consenters: do that first, or the others
        miss its vote.
        """
        assert self._store
        async with self._lock(channel_id):
            if channel_id not in self.channels and channel_id not in self.failed_channels:
                raise ChannelMissingError(f"channel {channel_id} does not exist")
            await self._close(channel_id)
            self.failed_channels.pop(channel_id, None)
            self._left_file(channel_id).parent.mkdir(mode=0o700, exist_ok=True)
            self._left_file(channel_id).touch()
            self._join_file(channel_id).unlink(missing_ok=True)
            await self._store.forget(channel_id)
            await asyncio.to_thread(shutil.rmtree, self._blocks_folder(channel_id), True)
        self._configured()

    async def update_channel(self, channel_id: str, update: common_pb2.Envelope) -> ChannelInfo:
        """Order a configuration update as Broadcast does; returns when it stands in a block.

        Raises ChannelMissingError, NotReadyError where this orderer is no consenter, JoinError for
        an update that is not ordered.
        """
        chain = self.channels.get(channel_id)
        if chain is None and channel_id not in self._switched:
            raise ChannelMissingError("channel does not exist")
        if not isinstance(chain, Chain):
            raise NotReadyError("channel is not ready, he is a follower")
        settled = asyncio.Event()
        submission = Submission(update.SerializeToString(), settled.set)
        try:
            admitted = await asyncio.get_running_loop().run_in_executor(
                self._check_threads, lambda: chain.admit(opened(submission.raw))
            )
        except Refused as refused:
            raise JoinError(refused.info) from None
        chain.submit(submission, admitted)
        await settled.wait()
        if submission.status != common_pb2.SUCCESS:
            raise JoinError(submission.info)
        return self.channel_info(channel_id)

    def channel_info(self, channel_id: str) -> ChannelInfo:
        """How one channel stands; raises ChannelMissingError."""
        chain = self.channels.get(channel_id)
        if chain is None:
            problem = self.failed_channels.get(channel_id)
            if channel_id in self._switched and problem is None:
                return ChannelInfo(channel_id, 0, "inactive", "follower")
            if problem is None:
                raise ChannelMissingError(f"channel {channel_id} does not exist")
            return ChannelInfo(channel_id, 0, "failed", "other", problem)
        if isinstance(chain, Follower):
            return ChannelInfo(
                channel_id,
                chain.height,
                chain.status_word,
                chain.relation,
                chain.failure or chain.problem,
            )
        if chain.failure is not None:
            return ChannelInfo(channel_id, chain.height, "failed", "consenter", chain.failure)
        return ChannelInfo(
            channel_id, chain.height, "active", "follower" if chain.removed else "consenter"
        )

    def channel_infos(self) -> list[ChannelInfo]:
        """How all channels stand that were joined, by name."""
        names = self.channels.keys() | self.failed_channels.keys() | self._switched
        return [self.channel_info(one) for one in sorted(names)]

    def _lock(self, channel_id: str) -> asyncio.Lock:
        return self._channel_locks.setdefault(channel_id, asyncio.Lock())

    def _blocks_folder(self, channel_id: str) -> Path:
        return self.settings.data_dir / "blocks" / channel_id

    def _join_file(self, channel_id: str) -> Path:
        return self.settings.data_dir / "join" / channel_id

    def _left_file(self, channel_id: str) -> Path:
        return self.settings.data_dir / "left" / channel_id

    def has_left(self, genesis_block: common_pb2.Block) -> bool:
        """Whether this orderer has left the channel that begins so, and not joined it again."""
        return self._left_file(ChannelConfig.from_block(genesis_block).channel_id).exists()

    def _own_id(self, consenters: Mapping[int, Consenter]) -> int:
        """This orderer's Raft id among consenters, by its TLS certificate; 0 if it is none."""
        mine = {public_key(self._tls.certificate_pem)}
        with contextlib.suppress(OSError, ValueError):
            mine |= {public_key(one.certificate_pem) for one in self._candidates()}
        for raft_id, one in consenters.items():
            if public_key(one.server_tls_certificate_pem) in mine:
                return raft_id
        return 0

    async def _try_to_open(self, channel_id: str) -> None:
        try:
            await self._open(channel_id)
        except (
            JoinError,
            ConfigError,
            RaftStorageError,
            SegmentError,
            InvariantBroken,
        ) as error:
            # One channel's trouble must not stop the others.
            self.failed_channels[channel_id] = str(error)
            _LOGGER.error("channel %s is not started: %s", channel_id, error)

    async def _open(self, channel_id: str) -> None:
        """Take part in a channel as its blocks say: as a consenter, or by following it."""
        assert self._store
        store = BlockStore(self._store, self._blocks_folder(channel_id), channel_id)
        log = ChannelLog(self._store, channel_id)
        join_block = self._join_block(channel_id)
        if store.height == 0 and join_block is None:
            raise JoinError(f"joining {channel_id} was interrupted; remove it and join it again")
        if join_block is not None and store.height > join_block.header.number:
            self._join_file(channel_id).unlink(missing_ok=True)
            join_block = None
        if log.record is None and store.height <= 1 and log.fresh:
            # From now on it is known that there was a log, or none because there was no promise.
            await log.save_record(MemberRecord(place=self._store.place))
        chain: Chain | Follower
        if join_block is not None:
            chain = self._follower(channel_id, store, join_block, "")
        else:
            chain = await self._chain_or_follower(channel_id, store, log)
        assert self._cluster
        self._cluster.attach(channel_id, chain, takes_part=isinstance(chain, Chain))
        self.channels[channel_id] = chain
        self.failed_channels.pop(channel_id, None)
        self._left_file(channel_id).unlink(missing_ok=True)
        self._configured()
        chain.start()

    def _join_block(self, channel_id: str) -> common_pb2.Block | None:
        try:
            return common_pb2.Block.FromString(self._join_file(channel_id).read_bytes())
        except FileNotFoundError:
            return None

    async def _chain_or_follower(
        self, channel_id: str, store: BlockStore, log: ChannelLog
    ) -> Chain | Follower:
        assert self._store
        place = self._store.place
        writer = BlockWriter(store, self.settings.signer)
        consenters = dict(
            zip(writer.raft.consenter_ids, writer.config.orderer.consenters, strict=True)
        )
        own = self._own_id(consenters)
        record = log.record
        if record is None:
            record = MemberRecord(place=place)
            if own and not log.fresh:
                record.begin(own)  # written before there were records
            elif own and store.height > 1:
                record.refuse(
                    own,
                    LOST_LOG.format(channel=channel_id, height=store.height, raft_id=own),
                )
                await log.save_record(record)
        if own in record.refused:
            return self._follower(channel_id, store, None, record.why)
        if not own:
            if not record.raft_id or log.fresh:
                return self._follower(channel_id, store, None, "")
            # Removed, but the others may still need it: the chain finds out.
            own = record.raft_id
        if own != record.raft_id:
            record.begin(own)
            record.place = place
            await log.clear(record)
            log = ChannelLog(self._store, channel_id)
            if store.height == 1:
                # The channel begins: every orderer starts from the same log.
                await log.bootstrap(list(writer.raft.consenter_ids))
        record.start += 1
        record.process = self._process
        await log.save_record(record)
        return self._chain(channel_id, store, log, record)

    def _chain(
        self, channel_id: str, store: BlockStore, log: ChannelLog, record: MemberRecord
    ) -> Chain:
        assert self._store
        assert self._cluster
        assert self._disk_threads
        return Chain(
            record=record,
            place=self._store.place,
            log=log,
            store=store,
            signer=self.settings.signer,
            transport=self._cluster.transport(channel_id),
            writer_threads=self._disk_threads,
            limits=self.settings.limits,
            hooks=Hooks(self._removed, self._stale, self._configured),
            beside_fabric=self.settings.beside_fabric,
            tick_interval_s=self.settings.tick_interval_s,
        )

    def _follower(
        self,
        channel_id: str,
        store: BlockStore,
        join_block: common_pb2.Block | None,
        problem: str,
    ) -> Follower:
        assert self._store
        assert self._cluster
        assert self._disk_threads
        record = ChannelLog(self._store, channel_id).record or MemberRecord()
        if problem:
            _LOGGER.error("channel %s: %s", channel_id, problem)

        def is_member(consenters: Mapping[int, Consenter]) -> bool:
            own = self._own_id(consenters)
            return own != 0 and own not in record.refused

        return Follower(
            channel_id=channel_id,
            store=store,
            signer=self.settings.signer,
            transport=self._cluster.transport(channel_id),
            writer_threads=self._disk_threads,
            limits=self.settings.limits,
            hooks=FollowerHooks(
                is_member=is_member,
                member=lambda name: self._switch(name, self._reopen(name)),
                onboarded=lambda name: self._join_file(name).unlink(missing_ok=True),
                restart=lambda name: self._switch(name, self._join_again(name)),
                configured=self._configured,
            ),
            join_block=join_block,
            problem=problem,
        )

    # From consenter to follower and back

    def _switch(self, channel_id: str, work: Coroutine[Any, Any, None]) -> None:
        """Do work on a channel that stops the chain that asks for it."""

        async def guarded() -> None:
            try:
                async with self._lock(channel_id):
                    if self._stopping or channel_id not in self.channels:
                        work.close()
                        return
                    self._switched.add(channel_id)
                    await work
            except Exception as error:
                _LOGGER.exception("channel %s", channel_id)
                self.failed_channels[channel_id] = f"{type(error).__name__}: {error}"
            finally:
                self._switched.discard(channel_id)

        task = asyncio.create_task(guarded(), name=f"{channel_id}-switch")
        self._switching.add(task)
        task.add_done_callback(self._switching.discard)

    async def _close(self, channel_id: str) -> None:
        assert self._cluster
        chain = self.channels.pop(channel_id, None)
        if chain is not None:
            await chain.stop()
        self._cluster.detach(channel_id)

    async def _reopen(self, channel_id: str) -> None:
        await self._close(channel_id)
        await self._try_to_open(channel_id)

    async def _join_again(self, channel_id: str) -> None:
        """What was fetched does not lead to the join block: throw it away."""
        assert self._store
        problem = (
            "the blocks that were fetched do not lead to the block that this orderer joined with;"
            " they are fetched again"
        )
        _LOGGER.error("channel %s: %s", channel_id, problem)
        await self._close(channel_id)
        self.failed_channels[channel_id] = problem
        await self._store.forget(channel_id)
        await asyncio.to_thread(shutil.rmtree, self._blocks_folder(channel_id), True)
        await asyncio.sleep(JOIN_AGAIN_S)
        await self._try_to_open(channel_id)

    def _removed(self, channel_id: str) -> None:
        """A consenter was removed, and the others have applied it."""
        self._switch(channel_id, self._leave_group(channel_id))

    async def _leave_group(self, channel_id: str) -> None:
        _LOGGER.warning(
            "channel %s: this orderer is no consenter any more; it stops ordering and follows",
            channel_id,
        )
        await self._forget_log(channel_id)
        await self._try_to_open(channel_id)

    def _stale(self, channel_id: str, problem: str) -> None:
        """The disk lacks what this consenter promised: it never takes part under that id again."""
        self._switch(channel_id, self._refuse(channel_id, problem))

    async def _refuse(self, channel_id: str, problem: str) -> None:
        await self._forget_log(channel_id, problem)
        await self._try_to_open(channel_id)

    async def _forget_log(self, channel_id: str, problem: str = "") -> None:
        assert self._store
        await self._close(channel_id)
        log = ChannelLog(self._store, channel_id)
        record = log.record or MemberRecord()
        if problem:
            record.refuse(record.raft_id, problem)
        record.raft_id = 0
        await log.clear(record)

    async def stop(self) -> None:
        """Stop serving and taking part; what was acknowledged is on disk."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._switching, return_exceptions=True)
        self._tasks.clear()
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
