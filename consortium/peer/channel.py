"""One channel on this peer: its ledger, following the orderers, and who waits for what."""

import asyncio
import contextlib
import logging
import random
from collections import OrderedDict, defaultdict
from concurrent.futures import ThreadPoolExecutor

import grpc

from consortium.identity.signing import Signer
from consortium.ledger.ledger import CommittedBlock, Ledger, TransactionRecord
from consortium.ledger.lifecycle import ChaincodeDefinition, definition
from consortium.ledger.validator import BlockError
from consortium.wire import common_pb2, orderer_pb2, services
from consortium.wire.envelopes import WireError, channel_header, parse, signed_envelope

_LOGGER = logging.getLogger(__name__)

RETRY_FIRST_S = 0.1
RETRY_LONGEST_S = 5.0
RECENT_BLOCKS = 64
MAX_SEEK = 2**64 - 1


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
        self._commits = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._height_changed = asyncio.Event()
        self._transactions: defaultdict[str, list[asyncio.Future[TransactionRecord]]] = defaultdict(
            list
        )
        self._recent: OrderedDict[int, CommittedBlock] = OrderedDict()
        self._definitions: dict[str, ChaincodeDefinition | None] = {}
        self._definitions_height = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def channel_id(self) -> str:
        """The channel's name."""
        return self.ledger.channel_id

    def start(self) -> None:
        """Begin following the orderers; call it once, inside a running loop."""
        self._task = asyncio.create_task(self._follow(), name=f"follow {self.channel_id}")

    async def stop(self) -> None:
        """Stop following and close the ledger; a commit under way is finished first."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for futures in self._transactions.values():
            for future in futures:
                future.cancel()
        await asyncio.to_thread(self._commits.shutdown, wait=True)
        self.ledger.close()

    async def wait_for_height(self, height: int) -> None:
        """Return once the ledger holds `height` blocks."""
        while self.ledger.height < height:
            changed = self._height_changed
            await changed.wait()

    async def wait_for_transaction(self, transaction_id: str) -> TransactionRecord:
        """The record of a transaction, now or when it commits; the caller sets the deadline."""
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

    def committed(self, number: int) -> CommittedBlock:
        """What became of block `number`; the newest blocks are kept taken apart."""
        found = self._recent.get(number)
        return found if found is not None else self._remember(self.ledger.committed(number))

    def _remember(self, block: CommittedBlock) -> CommittedBlock:
        self._recent[block.number] = block
        while len(self._recent) > RECENT_BLOCKS:
            self._recent.popitem(last=False)
        return block

    def definition(self, chaincode: str) -> ChaincodeDefinition | None:
        """A contract's committed definition, or None; looked up once for each height."""
        if self._definitions_height != self.ledger.height:
            self._definitions_height = self.ledger.height
            self._definitions.clear()
        if chaincode not in self._definitions:
            with self.ledger.view() as view:
                self._definitions[chaincode] = definition(view, chaincode)
        return self._definitions[chaincode]

    async def commit(self, block: common_pb2.Block, raw: bytes) -> CommittedBlock:
        """Check an orderer's block and commit it; raises BlockError and leaves nothing behind."""
        loop = asyncio.get_running_loop()
        committed = self._remember(
            await loop.run_in_executor(self._commits, self.ledger.commit, block, raw)
        )
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
        return committed

    async def _follow(self) -> None:
        delay = RETRY_FIRST_S
        while True:
            addresses = [
                (msp_id, address)
                for msp_id, addresses in self.ledger.config.orderer.endpoints.items()
                for address in addresses
            ]
            random.shuffle(addresses)
            # Our own organisation's orderer first: it is the nearest, and its operator is ours.
            addresses.sort(key=lambda item: item[0] != self.signer.msp_id)
            for msp_id, address in addresses:
                height = self.ledger.height
                try:
                    await self._follow_orderer(msp_id, address)
                except grpc.aio.AioRpcError as error:
                    _LOGGER.info("orderer %s: %s", address, error.details())
                except (BlockError, WireError, OSError) as error:
                    _LOGGER.warning("orderer %s sent what cannot be committed: %s", address, error)
                finally:
                    self.orderer_connected = False
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
            async for raw in deliver(iter([seek])):
                response = parse(orderer_pb2.DeliverResponse, raw, "the orderer's answer")
                if response.WhichOneof("Type") != "block":
                    status = common_pb2.Status.Name(response.status)
                    _LOGGER.info("orderer %s ended the stream: %s", address, status)
                    return
                self.orderer_connected = True
                await self.commit(response.block, response.block.SerializeToString())

    def _seek(self, start: int) -> common_pb2.Envelope:
        seek = orderer_pb2.SeekInfo(
            start=orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=start)),
            stop=orderer_pb2.SeekPosition(specified=orderer_pb2.SeekSpecified(number=MAX_SEEK)),
            behavior=orderer_pb2.SeekInfo.BLOCK_UNTIL_READY,
        )
        header = channel_header(common_pb2.DELIVER_SEEK_INFO, self.channel_id)
        return signed_envelope(self.signer, header, seek.SerializeToString())
