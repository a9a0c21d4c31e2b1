"""A channel that this orderer follows without being one of its consenters.

It fetches blocks from the consenters, checks them as a peer would, and keeps and hands them out. It
begins in one of three ways (Fabric's `orderer/common/follower`): the node joined with a block that
does not name it; it joined with a later block than the first one and has to fetch those before; or
it was a consenter and was removed. When a configuration names this node as a consenter, it is done
(`FollowerHooks.member`), and a `Chain` takes its place.

**The join block is what the administrator trusts.** Until it is reached nothing that was fetched
counts: the blocks are linked by their hashes, so if the fetched one of that number has the join
block's hash, all before it are the true ones. If not, they are thrown away and fetched again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig, Consenter
from consortium.ledger.config_update import ConfigError
from consortium.wire import blocks, common_pb2, gridledger_pb2
from consortium.wire import raftpb_pb2 as raftpb
from consortium.wire.envelopes import OpenedEnvelope, WireError, parse

from .admission import Admission, Admitted, Refused
from .blockstore import BlockStore
from .blockwriter import BlockRefused, BlockWriter, raft_metadata_of
from .chain import Transport
from .leading import Refuse
from .pending import Limits, Submission

_LOGGER = logging.getLogger(__name__)

POLL_S = 0.2
LONGEST_POLL_S = 2.0
"""How often the others are asked for blocks: soon after one came, more seldom when none comes."""
FAILED_POLLS = 20
"""After so many polls in a row without any answer it says so in its log, once."""


@dataclass(frozen=True, slots=True)
class FollowerHooks:
    """Who is told, on the event loop."""

    is_member: Callable[[Mapping[int, Consenter]], bool]
    """Whether this orderer is among these consenters, under a Raft id that it may use."""
    member: Callable[[str], None]
    """It does: a chain is to take over the channel of that name."""
    onboarded: Callable[[str], None]
    """The join block has been reached."""
    restart: Callable[[str], None]
    """What was fetched is not the chain of the join block: throw it away and begin again."""
    configured: Callable[[], None]
    """A channel has a new configuration."""


class Follower:
    """One channel that this orderer follows. `start` it on the loop that it is used from."""

    failure: str | None = None
    leader = 0
    is_leader = False
    tick_s = 0.0
    """It needs no ticks."""

    def __init__(
        self,
        *,
        channel_id: str,
        store: BlockStore,
        signer: Signer,
        transport: Transport,
        writer_threads: Executor,
        limits: Limits,
        hooks: FollowerHooks,
        join_block: common_pb2.Block | None,
        problem: str = "",
    ) -> None:
        """`join_block`: up to it nothing counts. `problem`: why this consenter may only follow.

        Raises ConfigError if the join block has no configuration.
        """
        self.channel_id = channel_id
        self.problem = problem
        self._store = store
        self._signer = signer
        self._transport = transport
        self._threads = writer_threads
        self._limits = limits
        self._hooks = hooks
        self._join_block = join_block
        self._writer = BlockWriter(store, signer) if store.height else None
        if join_block is not None and not self._onboarded():
            self.config = ChannelConfig.from_block(join_block)
        else:
            assert self._writer is not None, "a follower needs a first block or a join block"
            self.config = self._writer.config
        self.admission = Admission(self.config)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._over = False

    # What others ask

    @property
    def height(self) -> int:
        """How many blocks this orderer has."""
        return self._store.height

    def _onboarded(self) -> bool:
        return self._join_block is None or self._store.height > self._join_block.header.number

    @property
    def status_word(self) -> Literal["active", "onboarding", "failed"]:
        """Fabric's word for how far it is."""
        if self.failure is not None or self.problem:
            return "failed"
        return "active" if self._onboarded() else "onboarding"

    @property
    def relation(self) -> Literal["consenter", "follower"]:
        """Fabric's word for what it is to the channel: a consenter while it catches up as one."""
        return "consenter" if self._hooks.is_member(self.consenters()) else "follower"

    @property
    def available(self) -> bool:
        """Whether it hands out blocks."""
        return not self._stopping and self._onboarded()

    def block(self, number: int) -> bytes:
        """The stored bytes of a block; may read the disk."""
        return self._store.read(number)

    def cached_block(self, number: int) -> bytes | None:
        """The stored bytes of a block if they are in memory."""
        return self._store.cached(number)

    async def grown(self, height: int) -> None:
        """Return once there are more than `height` blocks, or the availability changed."""
        if self._store.height <= height:
            await self._changed.wait()

    def consenters(self) -> dict[int, Consenter]:
        """The channel's consenters by Raft id, as far as it knows."""
        if not self._onboarded():
            assert self._join_block is not None
            metadata = raft_metadata_of(self._join_block)
        else:
            assert self._writer is not None
            metadata = self._writer.raft
        consenters = self.config.orderer.consenters
        ids = metadata.consenter_ids if metadata else range(1, len(consenters) + 1)
        return dict(zip(ids, consenters, strict=True))

    def status(self) -> dict[str, object]:
        """State for operators, as plain values."""
        return {
            "channel": self.channel_id,
            "role": "follower",
            "height": self._store.height,
            "config_sequence": self.config.sequence,
            "consenters": list(self.consenters()),
            "onboarded": self._onboarded(),
            "failure": self.failure,
            "problem": self.problem,
        }

    def members(self) -> list[gridledger_pb2.OrdererMember]:
        """Nothing: it is in no Raft group."""
        return []

    def transfer_leadership(self, _to: int) -> int:
        """Refuse: it leads nothing."""
        raise ValueError(f"this orderer only follows channel {self.channel_id}")

    # Envelopes and messages, which are none of its business

    def admit(self, envelope: OpenedEnvelope) -> Admitted:
        """Refuse any envelope."""
        raise Refused(
            common_pb2.SERVICE_UNAVAILABLE,
            f"this orderer is no consenter of channel {envelope.channel_header.channel_id}; send"
            " the envelope to one that is",
        )

    def submit(self, submission: Submission, _admitted: Admitted) -> None:
        """Refuse an envelope that was admitted by the chain that was here before."""
        submission.answer(
            common_pb2.SERVICE_UNAVAILABLE,
            f"this orderer is no consenter of channel {self.channel_id} any more; send the"
            " envelope to one that is",
        )

    def step(self, _sender: int, _message: raftpb.Message, _metadata: bytes) -> None:
        """Ignore a Raft message."""

    def order(self, _admitted: Admitted, _refuse: Refuse, *, sent_again: bool = True) -> None:
        """Ignore an envelope: its sender looks for the leader itself."""

    def refuse_pending(self, _digest: bytes, _status: int, _info: str) -> None:
        """Nothing is pending here."""

    def redispatch(self, _leader: int) -> None:
        """Nothing is pending here."""

    def claim(self) -> gridledger_pb2.RecallClaim:
        """It has promised nothing."""
        return gridledger_pb2.RecallClaim(channel=self.channel_id)

    async def remembered(
        self, _sender: int, _claim: gridledger_pb2.RecallClaim
    ) -> gridledger_pb2.RecallMemory:
        """It remembers nobody."""
        return gridledger_pb2.RecallMemory(channel=self.channel_id)

    def recalled(self, _consenter_id: int, _memory: gridledger_pb2.RecallMemory) -> bool:
        """It has nothing to say in Raft."""
        return False

    async def trusted(self) -> None:
        """It has nothing to say in Raft."""

    def tick(self, *, late: bool = False) -> None:
        """Time is nothing to it."""

    # Life

    def start(self) -> None:
        """Begin to fetch."""
        self._transport.configure(self.consenters())
        self._task = asyncio.create_task(self._run(), name=f"{self.channel_id}-follow")

    async def stop(self) -> None:
        """Stop; what was fetched is on disk."""
        self._stopping = True
        self._signal_change()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._checkpoint()
        self._store.close()

    async def _run(self) -> None:
        wait_s = POLL_S
        failed = 0
        try:
            self._check_member()
            while not self._over:
                before = self._store.height
                await self._transport.pull(before, self._last())
                if self._over:
                    return
                if self._store.height > before:
                    wait_s, failed = POLL_S, 0
                else:
                    wait_s, failed = min(2 * wait_s, LONGEST_POLL_S), failed + 1
                    await self._checkpoint()
                if failed == FAILED_POLLS and not self._onboarded():
                    _LOGGER.warning(
                        "channel %s: no orderer hands out block %d; are they running, and may this"
                        " orderer's organization read the channel?",
                        self.channel_id,
                        self._store.height,
                    )
                await asyncio.sleep(wait_s)
        except Exception as error:
            _LOGGER.exception("channel %s", self.channel_id)
            self.failure = f"{type(error).__name__}: {error}"
            self._signal_change()

    def _last(self) -> int:
        if self._onboarded():
            return 2**63
        assert self._join_block is not None
        return self._join_block.header.number

    async def take_pulled(self, raw: bytes) -> None:
        """Append a fetched block; raises BlockRefused if it cannot follow."""
        if self._over:
            raise BlockRefused("this channel is no longer followed")
        onboarded = self._onboarded()
        try:
            config = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._append, raw
            )
        except BlockRefused:
            join = self._join_block
            if not onboarded and join is not None and self._store.height == join.header.number:
                # The block that we trust does not follow those before it: they were not true.
                self._over = True
                self._hooks.restart(self.channel_id)
            raise
        if not onboarded and self._onboarded():
            assert self._writer is not None
            config = self._writer.config
            await self._checkpoint()
            self._hooks.onboarded(self.channel_id)
            _LOGGER.info("channel %s: caught up with the join block", self.channel_id)
        if config is not None and self._onboarded():
            self._take_config(config)
        self._signal_change()
        if self._store.unflushed_bytes >= self._limits.checkpoint_bytes:
            await self._checkpoint()
        self._check_member()

    def _append(self, raw: bytes) -> ChannelConfig | None:
        """In a writer thread."""
        join = self._join_block
        if join is not None and self._store.height == join.header.number:
            header = parse(common_pb2.Block, raw, "the fetched block").header
            if blocks.header_hash(header) != blocks.header_hash(join.header):
                raise BlockRefused(f"block {header.number} is another one than the join block")
        if self._writer is None:
            self._append_first(raw)
            return None
        return self._writer.append_pulled(raw, want_digests=False).config

    def _append_first(self, raw: bytes) -> None:
        block = parse(common_pb2.Block, raw, "the fetched first block")
        try:
            config = ChannelConfig.from_block(block)
        except (ConfigError, WireError) as error:
            raise BlockRefused(f"the fetched first block is none: {error}") from None
        if block.header.number != 0 or config.channel_id != self.channel_id:
            raise BlockRefused(f"the fetched block is not the first of channel {self.channel_id}")
        if blocks.data_hash(block.data.data) != block.header.data_hash:
            raise BlockRefused("the data of the fetched first block does not have its data hash")
        self._store.append(0, raw)
        self._writer = BlockWriter(self._store, self._signer)

    def _take_config(self, config: ChannelConfig) -> None:
        self.config = config
        self.admission = Admission(config)
        self._transport.configure(self.consenters())
        self._hooks.configured()

    def _check_member(self) -> None:
        if self._over or self._writer is None or not self._onboarded():
            return
        if self._hooks.is_member(self.consenters()):
            self._over = True
            self._hooks.member(self.channel_id)

    def recheck(self) -> None:
        """This node has another TLS certificate: does the configuration name it?"""
        self._check_member()

    def _signal_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _checkpoint(self) -> None:
        flushed = await asyncio.get_running_loop().run_in_executor(self._threads, self._store.flush)
        await self._store.commit(flushed)
