"""One channel on this peer: its ledger, following the orderers, and who waits for what."""

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import grpc

from consortium.identity.signing import Signer
from consortium.ledger.ledger import CommittedBlock, Ledger, TransactionRecord, ValidatedBlock
from consortium.ledger.lifecycle import NAMESPACE as LIFECYCLE
from consortium.ledger.lifecycle import ChaincodeDefinition, definition
from consortium.ledger.private_data import PrivatePlace, WantedSet
from consortium.ledger.validator import BlockError, verify_block_signature
from consortium.storage.environment import DiskError
from consortium.wire import common_pb2, orderer_pb2, services
from consortium.wire.envelopes import WireError, channel_header, parse, shortened, signed_envelope

_LOGGER = logging.getLogger(__name__)

RETRY_FIRST_S = 0.1
RETRY_LONGEST_S = 5.0
RECENT_BLOCKS = 16
RECENT_BYTES = 64 * 1024 * 1024
STALLED_S = 10.0
"""Without a block for so long while someone waits for a transaction, another orderer is asked."""
COMPARE_S = 30.0
"""How often another orderer is asked for its newest block, to see whether ours holds some back."""
COMPARE_GRACE_S = 5.0
"""Time for what another orderer has to come from ours as well."""
AROUND_BYTES = 1024 * 1024
"""Header, signatures and other metadata of a block."""
TRANSIENT_BLOCKS = 1_000
"""Private data of transactions that never commit are kept for so many blocks (as in Fabric)."""
MAX_DEFINITIONS = 1_000
MAX_SEEK = 2**64 - 1


class ChannelStopped(Exception):
    """The node is stopping: what was waited for will not come from here."""

    def __init__(self) -> None:
        super().__init__(
            "this peer is stopping; connect to another utility's, or again in a moment"
        )


class PrivateDataSource(Protocol):
    """Where private data comes from that a block needs and this peer was never sent."""

    async def fetch(
        self, channel: ChannelPeer, wanted: Sequence[WantedSet]
    ) -> dict[PrivatePlace, bytes]:
        """What can be had within a bounded time."""


class ChannelPeer:
    """Follows one channel.

    `start` begins pulling blocks from the orderers that the channel's own configuration names and
    commits them one after another; everyone who waits for a height, a transaction or a block is
    woken by the commit. A block that fails its checks is never committed: it is asked again from
    another orderer.
    """

    def __init__(self, ledger: Ledger, signer: Signer) -> None:
        self.ledger = ledger
        self.signer = signer
        self.orderer_connected = False
        self._unconnected_since = time.monotonic()
        self.committed_blocks = 0
        """Since the start, as the two that follow."""
        self.committed_codes: Counter[int] = Counter()
        """How many transactions, by validation code."""
        self.commit_seconds = 0.0
        """From a block's arrival until it was committed, in all."""
        self.private_data: PrivateDataSource | None = None
        self.data_missing = asyncio.Event()
        """Set when private data may have to be reconciled that was not missing before."""
        self._definitions_changed = False
        self._commits = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._reads = ThreadPoolExecutor(2, thread_name_prefix="read-blocks")
        self._stopping = False
        self._height_changed = asyncio.Event()
        self._transactions: defaultdict[str, list[asyncio.Future[TransactionRecord]]] = defaultdict(
            list
        )
        self._recent: OrderedDict[int, CommittedBlock] = OrderedDict()
        self._recent_bytes = 0
        self._definitions: dict[str, ChaincodeDefinition | None] = {}
        self._definitions_height = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def channel_id(self) -> str:
        """The channel's name."""
        return self.ledger.channel_id

    @property
    def stopping(self) -> bool:
        """Whether what is waited for will not come from here any more."""
        return self._stopping

    def unconnected_for_s(self) -> float:
        """How long no orderer could be followed; 0 while one is."""
        return 0.0 if self.orderer_connected else time.monotonic() - self._unconnected_since

    def start(self) -> None:
        """Begin following the orderers; call it once, inside a running loop."""
        self._task = asyncio.create_task(self._follow(), name=f"follow {self.channel_id}")

    def stop_waiting(self) -> None:
        """Tell everyone who waits for what is still to come that it won't (ChannelStopped)."""
        self._stopping = True
        self._height_changed.set()
        for futures in self._transactions.values():
            for future in futures:
                if not future.done():
                    future.set_exception(ChannelStopped())

    async def stop(self) -> None:
        """Stop following and close the ledger; a commit under way is finished first."""
        self.stop_waiting()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self._commits.shutdown, wait=True)
        await asyncio.to_thread(self._reads.shutdown, wait=True, cancel_futures=True)
        self.ledger.close()

    async def wait_for_height(self, height: int) -> None:
        """Return once the ledger holds `height` blocks; raises ChannelStopped."""
        while True:
            if self._stopping:
                raise ChannelStopped
            if self.ledger.height >= height:
                return
            await self._height_changed.wait()

    async def wait_for_transaction(self, transaction_id: str) -> TransactionRecord:
        """The record of a transaction, now or when it commits; the caller sets the deadline.

        Raises ChannelStopped.
        """
        if self._stopping:
            raise ChannelStopped
        future: asyncio.Future[TransactionRecord] = asyncio.get_running_loop().create_future()
        # Listening starts before looking, so a commit in between isn't missed.
        self._transactions[transaction_id].append(future)
        try:
            record = self.ledger.transaction(transaction_id)
            return record if record is not None else await future
        finally:
            waiting = self._transactions[transaction_id]
            waiting.remove(future)
            if not waiting:
                del self._transactions[transaction_id]

    async def committed(self, number: int) -> CommittedBlock:
        """What became of block `number`; the newest blocks are at hand, older ones are read."""
        found = self._recent.get(number)
        if found is not None:
            return found
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reads, self.ledger.committed, number)

    async def private_sets(self, number: int) -> list[tuple[PrivatePlace, bytes]]:
        """The private write sets of block `number` that this peer holds."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reads, self.ledger.private_sets, number)

    def _remember(self, block: CommittedBlock) -> CommittedBlock:
        self._recent[block.number] = block
        self._recent_bytes += len(block.raw)
        while len(self._recent) > 1 and (
            len(self._recent) > RECENT_BLOCKS or self._recent_bytes > RECENT_BYTES
        ):
            _, oldest = self._recent.popitem(last=False)
            self._recent_bytes -= len(oldest.raw)
        return block

    def definition(self, chaincode: str) -> ChaincodeDefinition | None:
        """A contract's committed definition, or None; looked up once for each height."""
        # Anyone may ask for names that don't exist, so what was found is not kept without end.
        if self._definitions_height != self.ledger.height or len(self._definitions) >= (
            MAX_DEFINITIONS
        ):
            self._definitions_height = self.ledger.height
            self._definitions.clear()
        if chaincode not in self._definitions:
            with self.ledger.view() as view:
                self._definitions[chaincode] = definition(view, chaincode)
        return self._definitions[chaincode]

    async def commit(self, block: common_pb2.Block) -> CommittedBlock:
        """Check an orderer's block and commit it; raises BlockError and leaves nothing behind."""
        loop = asyncio.get_running_loop()
        arrived = time.monotonic()
        before = self.ledger.height
        committed = await loop.run_in_executor(self._commits, self._commit_or_ask, block)
        if isinstance(committed, ValidatedBlock):
            assert self.private_data is not None
            wanted = committed.wanted
            try:
                fetched = await self.private_data.fetch(self, wanted)
            except Exception:
                # A block that has been ordered is committed, whoever can be reached.
                _LOGGER.exception("fetching private data of block %d", block.header.number)
                fetched = {}
            committed = await loop.run_in_executor(
                self._commits, self.ledger.commit_validated, committed, fetched
            )
            if len(fetched) < len(wanted):
                self.data_missing.set()
        if committed.number < before:
            return committed  # had it already
        self._remember(committed)
        self.committed_blocks += 1
        self.committed_codes.update(committed.codes)
        self.commit_seconds += time.monotonic() - arrived
        if self._definitions_changed:
            self.data_missing.set()  # it may belong to more collections than before
        for index, transaction_id in enumerate(committed.transaction_ids):
            waiting = self._transactions.get(transaction_id)
            if not waiting:
                continue
            # A second copy of an id changes nothing about the first one's outcome.
            record = self.ledger.transaction(transaction_id) or TransactionRecord(
                committed.number, index, committed.codes[index]
            )
            for future in waiting:
                if not future.done():
                    future.set_result(record)
        changed, self._height_changed = self._height_changed, asyncio.Event()
        changed.set()
        if committed.number >= TRANSIENT_BLOCKS and committed.number % TRANSIENT_BLOCKS == 0:
            await loop.run_in_executor(
                self._commits, self.ledger.purge_transient, committed.number - TRANSIENT_BLOCKS
            )
        return committed

    def _commit_or_ask(self, block: common_pb2.Block) -> CommittedBlock | ValidatedBlock:
        """Commit a block, unless private data has to be asked for first."""
        validated = self.ledger.validate(block)
        if isinstance(validated, CommittedBlock):
            return validated
        self._definitions_changed = LIFECYCLE in validated.outcome.updates.public
        if validated.wanted and self.private_data is not None:
            return validated
        return self.ledger.commit_validated(validated, {})

    async def in_commit_thread[**P, R](
        self, work: Callable[P, R], *arguments: P.args, **options: P.kwargs
    ) -> R:
        """Do what writes to the ledger between two blocks."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._commits, partial(work, *arguments, **options))

    async def _follow(self) -> None:
        delay = RETRY_FIRST_S
        while True:
            # Our own organisation's orderer first: it is the nearest, and its operator is ours.
            for msp_id, address in self.ledger.config.orderer.addresses(self.signer.msp_id):
                height = self.ledger.height
                try:
                    await self._follow_orderer(msp_id, address)
                except grpc.aio.AioRpcError as error:
                    _LOGGER.info("orderer %s: %s", address, shortened(error.details() or ""))
                except (BlockError, WireError) as error:
                    _LOGGER.warning("orderer %s sent what cannot be committed: %s", address, error)
                except DiskError as error:
                    # The node stops; a commit that was refused must not be tried on and on.
                    _LOGGER.error("channel %s stands still: %s", self.channel_id, error)
                    return
                except Exception:
                    # A full disk may have room again, another orderer may send better: a peer
                    # that gave up following would look alive and never commit again.
                    _LOGGER.exception("following orderer %s at height %d", address, height)
                finally:
                    if self.orderer_connected:
                        self.orderer_connected = False
                        self._unconnected_since = time.monotonic()
                if self.ledger.height > height:
                    delay = RETRY_FIRST_S
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_LONGEST_S)

    async def _follow_orderer(self, msp_id: str, address: str) -> None:
        credentials = grpc.ssl_channel_credentials(self.ledger.config.msps.tls_roots_pem(msp_id))
        async with grpc.aio.secure_channel(
            address, credentials, options=services.NODE_CHANNEL_OPTIONS
        ) as channel:
            deliver: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
                services.ORDERER_DELIVER
            )
            seek = self._seek(self.ledger.height).SerializeToString()
            call = deliver(iter([seek]))
            watch = asyncio.create_task(self._held_back(address), name=f"watch {address}")
            connecting = asyncio.create_task(self._note_connection(call))
            try:
                while (raw := await self._next(call, address, watch)) is not None:
                    response = parse(orderer_pb2.DeliverResponse, raw, "the orderer's answer")
                    if response.WhichOneof("Type") != "block":
                        status = response.status
                        known = status in common_pb2.Status.values()
                        name = common_pb2.Status.Name(status) if known else str(status)
                        _LOGGER.info("orderer %s ended the stream: %s", address, name)
                        return
                    self._check_delivered(response.block)
                    await self.commit(response.block)
            finally:
                connecting.cancel()
                watch.cancel()

    async def _note_connection(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        """An orderer is followed once it has been reached: its next block may take its time."""
        with contextlib.suppress(grpc.aio.AioRpcError):  # which reading meets as well
            await call.wait_for_connection()
            self.orderer_connected = True

    def _check_delivered(self, block: common_pb2.Block) -> None:
        """Raises BlockError for what no honest orderer sends, before any work is put into it."""
        number, due = block.header.number, self.ledger.height
        if number != due:
            raise BlockError(f"block {number} came where block {due} is next")
        # Nobody signs all of this, so that an orderer could make it as large as it likes.
        around = block.ByteSize() - sum(map(len, block.data.data))
        if around > AROUND_BYTES + 16 * len(block.data.data):
            raise BlockError(
                f"block {number} has {around} bytes beside its transactions; {AROUND_BYTES} are "
                "more than any signatures need"
            )

    async def _held_back(self, address: str) -> str:
        """Return, with a sentence, once an orderer turns out to keep blocks to itself.

        It may be cut off from the others, or wish us not to know. Other orderers are asked for
        their newest block now and then: its signature shows that it exists.
        """
        while True:
            before = self.ledger.height
            await asyncio.sleep(COMPARE_S)
            elsewhere = await self._height_elsewhere(address)
            await asyncio.sleep(COMPARE_GRACE_S)
            after = self.ledger.height
            # Somebody far behind gets on by more than a twentieth of the way each time.
            if after < elsewhere and (after - before) * 20 < elsewhere - before:
                return (
                    f"it has sent {after - before} blocks in {COMPARE_S:g} s, to height {after}, "
                    f"while another orderer had {elsewhere}"
                )

    async def _height_elsewhere(self, address: str) -> int:
        """How high the channel is at the first other orderer that proves it; 0 if none does."""
        config = self.ledger.config
        newest = orderer_pb2.SeekPosition(newest=orderer_pb2.SeekNewest())
        seek = orderer_pb2.SeekInfo(
            start=newest,
            stop=newest,
            behavior=orderer_pb2.SeekInfo.FAIL_IF_NOT_READY,
            content_type=orderer_pb2.SeekInfo.HEADER_WITH_SIG,
        )
        for msp_id, other in config.orderer.addresses():
            if other == address:
                continue
            credentials = grpc.ssl_channel_credentials(config.msps.tls_roots_pem(msp_id))
            try:
                async with (
                    asyncio.timeout(COMPARE_GRACE_S),
                    grpc.aio.secure_channel(
                        other, credentials, options=services.NODE_CHANNEL_OPTIONS
                    ) as channel,
                ):
                    deliver: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = (
                        channel.stream_stream(services.ORDERER_DELIVER)
                    )
                    raw = await deliver(iter([self._request(seek).SerializeToString()])).read()
                if not isinstance(raw, bytes):
                    continue
                block = parse(orderer_pb2.DeliverResponse, raw, "the orderer's answer").block
                verify_block_signature(block, config)
            except (grpc.aio.AioRpcError, TimeoutError, WireError, BlockError) as error:
                _LOGGER.debug("orderer %s does not say how high it is: %s", other, error)
                continue
            return int(block.header.number) + 1
        return 0

    async def _next(
        self,
        call: grpc.aio.StreamStreamCall[bytes, bytes],
        address: str,
        watch: asyncio.Task[str],
    ) -> bytes | None:
        """The stream's next message; None at its end, or where another orderer should be asked.

        An orderer may be there and stuck, which looks as if nothing were ordered. While someone
        waits for a transaction another one is tried soon, else once `watch` has found it out.
        """
        reading = asyncio.ensure_future(call.read())
        try:
            while True:
                await asyncio.wait(
                    {reading, watch}, timeout=STALLED_S, return_when=asyncio.FIRST_COMPLETED
                )
                if watch.done():
                    _LOGGER.warning("orderer %s is left for another: %s", address, watch.result())
                    return None
                if reading.done():
                    break
                if self._transactions:
                    _LOGGER.info(
                        "orderer %s sent no block for %g s while one is waited for",
                        address,
                        STALLED_S,
                    )
                    return None
            raw = reading.result()
            return raw if isinstance(raw, bytes) else None
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait({reading})

    def _request(self, seek: orderer_pb2.SeekInfo) -> common_pb2.Envelope:
        header = channel_header(common_pb2.DELIVER_SEEK_INFO, self.channel_id)
        return signed_envelope(self.signer, header, seek.SerializeToString())

    def _seek(self, start: int) -> common_pb2.Envelope:
        seek = orderer_pb2.SeekInfo(
            start=orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=start)),
            stop=orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=MAX_SEEK)),
            behavior=orderer_pb2.SeekInfo.BLOCK_UNTIL_READY,
        )
        return self._request(seek)
