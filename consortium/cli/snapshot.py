"""`gridledger snapshot`: a ledger's state in Fabric's snapshot format, made and joined by."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import grpc

from consortium.ledger.ledger import Ledger
from consortium.ledger.snapshot import (
    Snapshot,
    SnapshotError,
    completed,
    create_snapshot,
    join_by_snapshot,
    snapshot_folder,
)
from consortium.node.network import Network, Utility
from consortium.node.nodes import DataLock, NodeError
from consortium.peer.snapshots import ask_snapshots
from consortium.wire import common_pb2, peer_pb2, services

from .output import Patience, answer, table

_POLL_S = 0.2


def add_commands(rooms: Any, common: argparse.ArgumentParser) -> None:
    """Register `snapshot` and its verbs; `rooms` are the parser's sub-commands."""
    verbs = rooms.add_parser(
        "snapshot", help="a ledger's state in Fabric's snapshot format"
    ).add_subparsers(required=True, metavar="VERB")
    whose = argparse.ArgumentParser(add_help=False)
    whose.add_argument("--utility", help="whose peer (default: the first)")
    whose.add_argument("--peer", default="peer", help="peer1 and so on of a utility with several")
    whose.add_argument("--channel", help="which channel (default: the network's)")

    create = verbs.add_parser(
        "create",
        parents=[common, whose],
        help="make one, on a running peer or a stopped one",
        description="A running peer is asked as its admin, over protos.Snapshot; of a stopped "
        "peer the files are read.",
    )
    create.add_argument(
        "--block",
        type=int,
        default=0,
        help="after which block (default: the last). A block to come is noted, and the peer makes "
        "the snapshot when it has committed it",
    )
    create.set_defaults(run=_create)

    cancel = verbs.add_parser(
        "cancel", parents=[common, whose], help="take back what a running peer was asked for"
    )
    cancel.add_argument("block", type=int)
    cancel.set_defaults(run=_cancel)

    join = verbs.add_parser(
        "join", parents=[common, whose], help="begin a stopped peer's ledger with one"
    )
    join.add_argument("folder", type=Path, help="the snapshot, made here or by Fabric")
    join.set_defaults(run=_join)

    listed = verbs.add_parser(
        "list", parents=[common, whose], help="those that a peer has made and those it waits for"
    )
    listed.set_defaults(run=_list)


class _Peer:
    """A utility's peer: its folder, and its service if it runs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.network = Network.load(options.data_dir)
        network = self.network
        self.utility: Utility = (
            network.utility(options.utility) if options.utility else network.utilities[0]
        )
        self.kind: str = options.peer
        self.folder = self.utility.directory / self.kind
        if self.kind not in self.utility.peers:
            raise NodeError(
                f"{self.utility.name} has no {self.kind!r}; it has {', '.join(self.utility.peers)}"
            )
        self.channel: str = options.channel or network.channel
        self.ledger = self.folder / "ledger" / self.channel
        self.root = self.folder / "snapshots"
        self.lock = DataLock(f"{self.utility.name}'s {self.kind}", self.folder)

    def runs(self) -> bool:
        """Whether a process has the peer's data; if none, it is locked until this one ends."""
        try:
            self.lock.take()
        except NodeError:
            return True
        return False

    async def ask(
        self, path: str, message: peer_pb2.SnapshotRequest | peer_pb2.SnapshotQuery
    ) -> bytes:
        """Ask the running peer as its admin; raises NodeError."""
        signer = self.utility.signer("admin")
        message.channel_id = self.channel
        message.signature_header.CopyFrom(common_pb2.SignatureHeader(creator=signer.serialized))
        request = message.SerializeToString()
        address = self.utility.address_of(self.kind)
        async with grpc.aio.secure_channel(
            address, grpc.ssl_channel_credentials(self.network.tls_bundle_pem)
        ) as connection:
            try:
                return await ask_snapshots(connection, path, request, signer.sign(request))
            except grpc.aio.AioRpcError as error:
                reason = error.details() or error.code().name
                raise NodeError(f"{self.utility.name}'s peer at {address}: {reason}") from None

    async def pending(self) -> list[int]:
        """The blocks whose snapshots the running peer still has to make."""
        raw = await self.ask(services.SNAPSHOT_QUERY_PENDINGS, peer_pb2.SnapshotQuery())
        return list(peer_pb2.QueryPendingSnapshotsResponse.FromString(raw).block_numbers)

    def completed(self) -> list[Snapshot]:
        """The finished snapshots of the channel."""
        return [one for one in completed(self.root) if one.channel_id == self.channel]


async def _create(options: argparse.Namespace) -> None:
    peer = _Peer(options)
    if options.block < 0:
        raise SnapshotError("a block's number is 0 or more; 0 stands for the last block")
    if peer.runs():
        await _ask_for(peer, options)
        return

    def make() -> Snapshot:
        with Ledger.open(peer.ledger, msp_id=Ledger.owner(peer.ledger), read_only=True) as ledger:
            last = ledger.height - 1
            if options.block not in (0, last):
                raise SnapshotError(
                    f"{peer.utility.name}'s peer is stopped after block {last}: start it, or ask "
                    "for a snapshot of that block"
                )
            return create_snapshot(ledger, peer.root, Patience("snapshot"))

    _print_snapshot(options, await asyncio.to_thread(make))


async def _ask_for(peer: _Peer, options: argparse.Namespace) -> None:
    """Ask the running peer, and wait for a snapshot that it makes at once."""
    pending = await peer.pending()
    done = {one.last_block for one in peer.completed()}
    await peer.ask(services.SNAPSHOT_GENERATE, peer_pb2.SnapshotRequest(block_number=options.block))
    told, waited = Patience("snapshot"), 0.0
    while True:
        made = [one for one in peer.completed() if one.last_block not in done]
        made = [one for one in made if options.block in (0, one.last_block)]
        if made:
            _print_snapshot(options, made[-1])
            return
        left = [number for number in await peer.pending() if number not in pending]
        if not left and waited:
            made = [one for one in peer.completed() if one.last_block not in done]
            if not made:
                raise SnapshotError(
                    f"{peer.utility.name}'s peer did not make the snapshot: see its log"
                )
            continue
        if options.block and left and await _last_block(peer) < options.block:
            folder = snapshot_folder(peer.root, peer.channel, options.block)
            answer(
                options,
                {"block": options.block, "pending": True, "folder": str(folder)},
                f"{peer.utility.name}'s peer makes it after block {options.block}: {folder}",
            )
            return
        await asyncio.sleep(_POLL_S)
        waited += _POLL_S
        told("seconds so far", int(waited))


async def _last_block(peer: _Peer) -> int:
    """The last block of the running peer's ledger."""

    def read() -> int:
        with Ledger.open(peer.ledger, msp_id=Ledger.owner(peer.ledger), read_only=True) as ledger:
            return ledger.height - 1

    return await asyncio.to_thread(read)


async def _cancel(options: argparse.Namespace) -> None:
    peer = _Peer(options)
    if not peer.runs():
        raise NodeError(f"{peer.utility.name}'s peer does not run: start it, then cancel")
    await peer.ask(services.SNAPSHOT_CANCEL, peer_pb2.SnapshotRequest(block_number=options.block))
    answer(
        options,
        {"block": options.block, "cancelled": True},
        f"{peer.utility.name}'s peer makes no snapshot after block {options.block}.",
    )


async def _join(options: argparse.Namespace) -> None:
    peer = _Peer(options)
    peer.lock.take()
    snapshot = Snapshot.read(options.folder)
    if options.channel and options.channel != snapshot.channel_id:
        raise SnapshotError(
            f"{options.folder} is a snapshot of {snapshot.channel_id}, not of {options.channel}"
        )
    path = peer.folder / "ledger" / snapshot.channel_id
    await asyncio.to_thread(
        join_by_snapshot,
        options.folder,
        path,
        msp_id=peer.utility.msp_id,
        progress=Patience("join"),
    )
    answer(
        options,
        {**_described(snapshot), "ledger": str(path)},
        f"{peer.utility.name}'s ledger of {snapshot.channel_id} begins after block "
        f"{snapshot.last_block}, with snapshot {snapshot.hash.hex()}.\n"
        "Compare that hash with other utilities' before you trust it, then start the peer.",
    )


async def _list(options: argparse.Namespace) -> None:
    peer = _Peer(options)
    pending = await peer.pending() if peer.runs() else []
    made = peer.completed()
    rows = [(one.last_block, one.hash.hex(), one.folder) for one in made]
    rows += [(number, "to be made", Path("-")) for number in pending]
    answer(
        options,
        {"completed": [_described(one) for one in made], "pending": pending},
        table(rows, ("BLOCK", "HASH", "FOLDER")),
    )


def _print_snapshot(options: argparse.Namespace, snapshot: Snapshot) -> None:
    answer(
        options,
        _described(snapshot),
        f"Snapshot of {snapshot.channel_id} after block {snapshot.last_block}: {snapshot.folder}\n"
        f"hash {snapshot.hash.hex()}",
    )


def _described(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "channel": snapshot.channel_id,
        "block": snapshot.last_block,
        "block_hash": snapshot.last_block_hash.hex(),
        "commit_hash": snapshot.commit_hash.hex(),
        "hash": snapshot.hash.hex(),
        "folder": str(snapshot.folder),
    }
