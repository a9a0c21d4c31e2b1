"""Fabric's `protos.Snapshot`, for a peer's administrators, and joining a channel by a snapshot."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import grpc

from consortium.identity.msp import (
    IdentityError,
    MspManager,
    check_not_expired,
    check_standing,
)
from consortium.ledger.ledger import Ledger
from consortium.ledger.snapshot import Snapshot, SnapshotError, Snapshots, join_by_snapshot
from consortium.ledger.state import LedgerError
from consortium.storage.environment import StorageError
from consortium.wire import common_pb2, empty_pb2, peer_pb2, services
from consortium.wire.envelopes import WireError, parse

_LOGGER = logging.getLogger(__name__)


class SnapshotRefused(Exception):
    """A request that is not carried out, with its gRPC status."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class SnapshotService:
    """Generate, Cancel and QueryPendings.

    A request is signed by an administrator of this peer's organization; who may ask is no matter
    of a channel. (Fabric core/ledger/snapshotgrpc.)
    """

    def __init__(
        self,
        snapshots: Mapping[str, Snapshots],
        own_msp: MspManager,
        channels: Callable[[], Sequence[MspManager]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`snapshots` are those of the channels that this peer has joined.

        `channels` gives the organizations of these channels, as they are now.
        """
        self._snapshots = snapshots
        self._own = own_msp
        self._channels = channels
        self._clock = clock

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for a gRPC server; messages pass as raw bytes."""
        generate = self._handler(self._generate)
        cancel = self._handler(self._cancel)
        pending = self._handler(self._pending)
        return grpc.method_handlers_generic_handler(
            "protos.Snapshot", {"Generate": generate, "Cancel": cancel, "QueryPendings": pending}
        )

    def _handler(
        self, act: Callable[[peer_pb2.SignedSnapshotRequest], bytes]
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def serve(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            try:
                signed = parse(peer_pb2.SignedSnapshotRequest, raw, "the request")
                return await asyncio.to_thread(act, signed)
            except WireError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except SnapshotRefused as refused:
                await context.abort(refused.code, str(refused))
            except SnapshotError as error:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            except StorageError as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(serve)

    def _generate(self, signed: peer_pb2.SignedSnapshotRequest) -> bytes:
        request = parse(peer_pb2.SnapshotRequest, signed.request, "the snapshot request")
        self._admit(request.signature_header, request.HasField("signature_header"), signed)
        self._channel(request.channel_id).submit(request.block_number)
        return empty_pb2.Empty().SerializeToString()

    def _cancel(self, signed: peer_pb2.SignedSnapshotRequest) -> bytes:
        request = parse(peer_pb2.SnapshotRequest, signed.request, "the snapshot request")
        self._admit(request.signature_header, request.HasField("signature_header"), signed)
        self._channel(request.channel_id).cancel(request.block_number)
        return empty_pb2.Empty().SerializeToString()

    def _pending(self, signed: peer_pb2.SignedSnapshotRequest) -> bytes:
        query = parse(peer_pb2.SnapshotQuery, signed.request, "the snapshot query")
        self._admit(query.signature_header, query.HasField("signature_header"), signed)
        pending = self._channel(query.channel_id).pending()
        return peer_pb2.QueryPendingSnapshotsResponse(block_numbers=pending).SerializeToString()

    def _admit(
        self,
        header: common_pb2.SignatureHeader,
        present: bool,
        signed: peer_pb2.SignedSnapshotRequest,
    ) -> None:
        """Raises SnapshotRefused unless an administrator of ours has signed the request."""
        if not present:
            raise SnapshotRefused(grpc.StatusCode.INVALID_ARGUMENT, "missing signature header")
        [own] = self._own.msps
        try:
            creator = self._own.identity(header.creator)
            check_standing(own, header.creator, self._channels())
        except IdentityError as error:
            raise SnapshotRefused(
                grpc.StatusCode.PERMISSION_DENIED, f"access denied: {error}"
            ) from None
        try:
            check_not_expired(creator, self._clock())
        except IdentityError as error:
            raise SnapshotRefused(
                grpc.StatusCode.PERMISSION_DENIED, f"client identity expired: {error}"
            ) from None
        if not creator.is_admin:
            raise SnapshotRefused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"access denied: only an admin of {own} may ask its peer for snapshots, and "
                f"{creator.common_name} is none",
            )
        if not creator.verify(signed.signature, signed.request):
            raise SnapshotRefused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"access denied: the signature of {creator.common_name} does not hold",
            )

    def _channel(self, channel_id: str) -> Snapshots:
        if not channel_id:
            raise SnapshotRefused(grpc.StatusCode.INVALID_ARGUMENT, "missing channel ID")
        found = self._snapshots.get(channel_id)
        if found is None:
            raise SnapshotRefused(
                grpc.StatusCode.NOT_FOUND, f"cannot find ledger for channel {channel_id[:256]}"
            )
        return found


class SnapshotJoins:
    """Joins channels by snapshots, one at a time, while the peer goes on with the others."""

    def __init__(
        self,
        ledgers: Path,
        msp_id: str,
        joined: Callable[[], Mapping[str, Ledger]],
        follow: Callable[[str], Awaitable[None]],
    ) -> None:
        """`follow` opens a channel's new ledger and follows its orderers. Use inside a loop."""
        self._ledgers = ledgers
        self._msp_id = msp_id
        self._joined = joined
        self._follow = follow
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._folder = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def in_progress(self) -> str:
        """The snapshot that is being loaded, empty for none."""
        return self._folder

    def begin(self, folder: str) -> None:
        """Begin to join; from any thread. Raises SnapshotError; later trouble is in the log."""
        snapshot = Snapshot.read(Path(folder))
        with self._lock:
            if self._folder:
                raise SnapshotError(
                    f"a ledger is being created from a snapshot at {self._folder}. Call ledger "
                    "creation again after it is done."
                )
            if snapshot.channel_id in self._joined():
                raise SnapshotError(
                    f"ledger [{snapshot.channel_id}] already exists with state [ACTIVE]: this peer "
                    "has joined the channel"
                )
            self._folder = folder
        self._loop.call_soon_threadsafe(self._start, snapshot)

    def _start(self, snapshot: Snapshot) -> None:
        task = self._loop.create_task(self._join(snapshot), name=f"join {snapshot.channel_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, snapshot: Snapshot) -> None:
        try:
            await asyncio.to_thread(
                join_by_snapshot,
                snapshot.folder,
                self._ledgers / snapshot.channel_id,
                msp_id=self._msp_id,
            )
            await self._follow(snapshot.channel_id)
            _LOGGER.info("joined %s by %s", snapshot.channel_id, snapshot.folder)
        except (LedgerError, StorageError, WireError, UnicodeDecodeError, OSError) as error:
            _LOGGER.error("channel %s was not joined: %s", snapshot.channel_id, error)
        finally:
            self._folder = ""

    async def close(self) -> None:
        """Wait for what is being loaded."""
        while self._tasks:
            await asyncio.wait(self._tasks)


async def ask_snapshots(
    connection: grpc.aio.Channel, path: str, request: bytes, signature: bytes
) -> bytes:
    """Call one of the service's methods; raises grpc.aio.AioRpcError."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.unary_unary(path)
    signed = peer_pb2.SignedSnapshotRequest(request=request, signature=signature)
    return await call(signed.SerializeToString(), timeout=services.SNAPSHOT_TIMEOUT_S)
