"""What becomes of a node's data: snapshots, backups, a full disk; on processes of their own."""

import asyncio
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from consortium.ledger.ledger import Ledger
from consortium.ledger.verify import verify_ledger
from consortium.node.contracts import client, ensure_contracts
from consortium.node.lifecycle import PeerAdmin, PeerRefused
from consortium.node.network import Network, NetworkError, Utility, create_network
from consortium.node.processes import ProcessNetwork
from consortium.peer.snapshots import ask_snapshots
from consortium.wire import common_pb2, peer_pb2, services
from gridledger_client import GridLedgerError
from tests.ports import first_port

from .conftest import run_cli

DISK_BYTES = 24 * 1024 * 1024


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[ProcessNetwork]:
    network = create_network(tmp_path / "data", interval_s=60, base_port=first_port())
    processes = ProcessNetwork(network, log_dir=tmp_path)
    yield processes
    await processes.stop()


async def _cli(*arguments: str, check: bool = True) -> str:
    done = await asyncio.to_thread(run_cli, *arguments, check=False)
    if check:
        assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


async def _deposits(network: Network, utility: Utility, count: int, run: str) -> None:
    """Blocks, one after another; peers that have just started may take a while to be found."""
    async with client(network, utility, "operator") as gateway:
        for number in range(count):
            deadline = time.monotonic() + 90
            while True:
                try:
                    await gateway.submit(
                        "energy",
                        "wallet:Deposit",
                        {
                            "account": f"SUPPLIER-{utility.name.upper()}",
                            "amount_micro": "1",
                            "bank_reference": f"{run}-{number}".upper(),
                        },
                    )
                    break
                except GridLedgerError:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.2)


async def _height(network: Network, utility: Utility) -> tuple[int, bytes]:
    async with client(network, utility, "operator") as gateway:
        raw = await gateway.evaluate("qscc", "GetChainInfo", [network.channel.encode()])
    info = common_pb2.BlockchainInfo.FromString(raw)
    return info.height, info.currentBlockHash


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if await condition():
                return
        except GridLedgerError, OSError:
            pass
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def _contracts(network: Network) -> None:
    """Put the contracts on the channel; connections may take their time on a busy machine."""
    deadline = time.monotonic() + 120
    while True:
        try:
            await ensure_contracts(network, lambda _: None)
            return
        except NetworkError, GridLedgerError:
            assert time.monotonic() < deadline


async def _cscc(network: Network, utility: Utility, function: str, *arguments: bytes) -> bytes:
    """Ask a peer as its admin; a connection may take its time on a busy machine."""
    deadline = time.monotonic() + 90
    while True:
        try:
            async with PeerAdmin(network, utility) as admin:
                return await admin.ask("cscc", function, *arguments)
        except PeerRefused:
            raise
        except NetworkError:
            assert time.monotonic() < deadline


def _ledger(utility: Utility, channel: str) -> Path:
    return utility.directory / "peer" / "ledger" / channel


async def test_snapshots_and_backups_of_running_nodes(
    running: ProcessNetwork, tmp_path: Path
) -> None:
    network = running.network
    aurora, boreal, cielo = network.utilities
    where = ("--data-dir", str(network.directory), "--json")
    await running.start()
    await _contracts(network)
    await _deposits(network, aurora, 3, "first")

    # The same snapshot of the same block from two utilities, one of a block still to come.
    height, _ = await _height(network, aurora)
    made = json.loads(await _cli("snapshot", "create", *where))
    assert made["block"] >= height - 1
    later = str(made["block"] + 3)
    asked = [
        json.loads(
            await _cli("snapshot", "create", *where, "--utility", one.name, "--block", later)
        )
        for one in (aurora, boreal)
    ]
    assert all(one["pending"] for one in asked)
    listed = json.loads(await _cli("snapshot", "list", *where))
    assert listed["pending"] == [int(later)]
    assert [one["hash"] for one in listed["completed"]] == [made["hash"]]
    await _cli("snapshot", "create", *where, "--block", "100000")
    await _cli("snapshot", "cancel", *where, "100000")
    refused = await _cli("snapshot", "cancel", *where, "100000", check=False)
    assert "no snapshot request exists for block number 100000" in refused
    await _deposits(network, aurora, 4, "second")

    async def both() -> bool:
        return all((Path(one["folder"]) / "txids.data").exists() for one in asked)

    await eventually(both)
    hashes = {
        (Path(one["folder"]) / "_snapshot_signable_metadata.json").read_bytes() for one in asked
    }
    assert len(hashes) == 1
    await _who_may_ask(network, aurora)

    # A backup of each kind of node, while it runs.
    for kind in ("peer", "orderer"):
        destination = tmp_path / f"backup-{kind}"
        copied = json.loads(await _cli("backup", *where, "cielo", kind, str(destination)))
        # An orderer's newest blocks are in its Raft log until the next checkpoint.
        assert copied["heights"][network.channel] > (3 if kind == "peer" else 0)
        assert (destination / "RESTORE.txt").exists()
        again = await _cli("backup", *where, "cielo", kind, str(destination), check=False)
        assert "is there already" in again
    copied = json.loads(await _cli("backup", *where, "cielo", "ca", str(tmp_path / "backup-ca")))
    assert (copied["heights"], copied["gone"]) == ({}, [])

    # Boreal's peer begins anew with Aurora's snapshot, Cielo's goes on from its backup.
    for utility in (boreal, cielo):
        await running.kill(utility, "peer")
    shutil.rmtree(_ledger(boreal, network.channel))
    joined = json.loads(
        await _cli("snapshot", "join", *where, "--utility", "boreal", asked[0]["folder"])
    )
    assert joined["block"] == int(later)
    shutil.rmtree(cielo.directory / "peer")
    shutil.copytree(tmp_path / "backup-peer", cielo.directory / "peer")
    await running.start_node(boreal, "peer")
    await _deposits(network, aurora, 2, "third")
    await running.start_node(cielo, "peer")

    async def level() -> bool:
        return len({await _height(network, one) for one in network.utilities}) == 1

    await eventually(level)
    await _deposits(network, boreal, 2, "fourth")
    await eventually(level)
    status = peer_pb2.JoinBySnapshotStatus.FromString(
        await _cscc(network, boreal, "JoinBySnapshotStatus")
    )
    assert not status.in_progress
    for folder, sentence in (
        (asked[0]["folder"], "already exists"),
        (str(tmp_path), "is no snapshot"),
        ("", "no snapshot directory"),
    ):
        with pytest.raises(PeerRefused, match=sentence):
            await _cscc(network, boreal, "JoinChainBySnapshot", folder.encode())
    await running.stop()
    commit_hashes = set()
    for utility in network.utilities:
        path = _ledger(utility, network.channel)
        snapshot = Path(asked[0]["folder"]) if utility is boreal else None
        assert verify_ledger(path, snapshot=snapshot).problem is None
        with Ledger.open(path, msp_id=utility.msp_id) as ledger:
            commit_hashes.add(ledger.commit_hash)
    assert len(commit_hashes) == 1
    # Of a stopped peer the files are read; a snapshot joins into a new folder only.
    offline = json.loads(await _cli("snapshot", "create", *where, "--utility", "cielo"))
    assert offline["commit_hash"] == commit_hashes.pop().hex()
    assert "there is a ledger" in await _cli(
        "snapshot", "join", *where, "--utility", "cielo", offline["folder"], check=False
    )


async def _who_may_ask(network: Network, utility: Utility) -> None:
    """Only admins of the peer's own utility, with a signature that holds."""
    boreal = network.utility("boreal")
    admin, other = utility.signer("admin"), boreal.signer("admin")
    operator = utility.signer("operator")
    request = peer_pb2.SnapshotQuery(channel_id=network.channel)
    async with grpc.aio.secure_channel(
        utility.gateway_address, grpc.ssl_channel_credentials(network.tls_bundle_pem)
    ) as connection:

        async def ask(creator: bytes, signer: object, channel: str = network.channel) -> bytes:
            request.channel_id = channel
            request.signature_header.creator = creator
            raw = request.SerializeToString()
            signature = signer.sign(raw)  # type: ignore[attr-defined]
            return await ask_snapshots(connection, services.SNAPSHOT_QUERY_PENDINGS, raw, signature)

        await ask(admin.serialized, admin)
        for creator, signer, channel, sentence in (
            (other.serialized, other, network.channel, "access denied"),
            (operator.serialized, operator, network.channel, "only an admin"),
            (admin.serialized, operator, network.channel, "signature"),
            (b"x", admin, network.channel, "access denied"),
            (admin.serialized, admin, "nowhere", "cannot find ledger"),
            (admin.serialized, admin, "", "missing channel ID"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(creator, signer, channel)
            assert sentence in (caught.value.details() or "")
        with pytest.raises(grpc.aio.AioRpcError, match="missing signature header"):
            await ask_snapshots(connection, services.SNAPSHOT_GENERATE, b"", b"")


def _ran(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _mount(folder: Path, image: Path | None = None) -> bool:
    """Put a folder's content on a small disk of its own, if this user may.

    `image`: a disk in a file, whose file system becomes read-only at its first error.
    """
    kept = folder.with_name(folder.name + "-kept")
    folder.rename(kept)
    folder.mkdir()
    if image is None:
        mounted = _ran("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder))
    else:
        with image.open("wb") as file:
            file.truncate(4 * DISK_BYTES)
        mounted = _ran("mkfs.ext4", "-q", "-F", str(image)) and _ran(
            "mount", "-o", "loop,errors=remount-ro", str(image), str(folder)
        )
    if not mounted:
        folder.rmdir()
        kept.rename(folder)
        return False
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    return _ran("sync", "-f", str(folder))


def _spoil(folder: Path) -> bool:
    """Let the file system under a folder meet an error, after which it is read-only."""
    device = subprocess.run(
        ["findmnt", "-n", "-o", "SOURCE", str(folder)], capture_output=True, text=True, check=True
    ).stdout.strip()
    trigger = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
    try:
        trigger.write_text("a test's\n")
    except OSError:
        return False
    return True


def _last_words(log: Path, *reasons: str) -> None:
    """The node said in one sentence why it stops, and no exception went astray."""
    text = log.read_text()
    said = [line for line in text.splitlines() if line.startswith("gridledger: ")]
    assert len(said) == 1, text
    known = [one for one in reasons if f"{one}. What was stored before is intact" in said[0]]
    assert known, said


@pytest.mark.parametrize("kind", ["peer", "orderer"])
async def test_a_disk_that_becomes_read_only_stops_a_node_with_its_data_intact(
    running: ProcessNetwork, tmp_path: Path, kind: str
) -> None:
    """As Linux makes it after an error, with the node's files open; `remount,ro` refuses that."""
    network = running.network
    aurora, boreal, cielo = network.utilities
    await running.start()
    await _contracts(network)
    await running.kill(cielo, kind)
    folder = cielo.directory / kind
    if not await asyncio.to_thread(_mount, folder, tmp_path / "disk"):
        pytest.skip(
            "only root, with loop devices and ext4, may mount the disk that this test harms"
        )
    try:
        await running.start_node(cielo, kind)
        process = running.processes["Cielo", kind]
        await _deposits(network, aurora, 2, "before")
        if not await asyncio.to_thread(_spoil, folder):
            pytest.skip("this kernel's ext4 has no trigger_fs_error, which makes it read-only")
        turn = 0
        deadline = time.monotonic() + 120
        while process.returncode is None:
            await _deposits(network, aurora, 1, f"read-only{turn}")
            turn += 1
            assert time.monotonic() < deadline
        assert process.returncode == 1
        log = tmp_path / f"cielo-{kind}.log"
        # What was being written as it happened fails with an error of its own.
        _last_words(log, "the disk is read-only", "the disk reports errors")
        assert "stops: " in log.read_text()
        # The same at a start, on a disk that is still so.
        log.write_text("")
        del running.processes["Cielo", kind]
        with contextlib.suppress(NetworkError):
            await running.start_node(cielo, kind)
        assert await running.processes["Cielo", kind].wait() == 1
        _last_words(log, "the disk is read-only")
        assert "cannot start: " in log.read_text()
        await _deposits(network, boreal, 2, "meanwhile")
        # Repaired, it goes on with what it had.
        assert await asyncio.to_thread(_ran, "umount", str(folder))
        await asyncio.to_thread(_ran, "e2fsck", "-p", str(tmp_path / "disk"))
        assert await asyncio.to_thread(
            _ran, "mount", "-o", "loop", str(tmp_path / "disk"), str(folder)
        )
        del running.processes["Cielo", kind]
        await running.start_node(cielo, kind)

        async def level() -> bool:
            return len({await _height(network, one) for one in network.utilities}) == 1

        await eventually(level)
        await _deposits(network, cielo, 2, "after")
        await eventually(level)
        await running.stop()
        assert verify_ledger(_ledger(cielo, network.channel)).problem is None
    finally:
        await running.stop()
        await asyncio.to_thread(_ran, "umount", str(folder))


@pytest.mark.parametrize("kind", ["peer", "orderer"])
async def test_a_full_disk_stops_a_node_with_its_data_intact(
    running: ProcessNetwork, tmp_path: Path, kind: str
) -> None:
    network = running.network
    aurora, boreal, cielo = network.utilities
    await running.start()
    await _contracts(network)
    await running.kill(cielo, kind)
    folder = cielo.directory / kind
    if not await asyncio.to_thread(_mount, folder):
        pytest.skip("only root may mount the small disk that this test fills")
    try:
        await running.start_node(cielo, kind)
        process = running.processes["Cielo", kind]
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file:
            for size in (1024 * 1024, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size):
                        pass
        turn = 0
        deadline = time.monotonic() + 120
        while process.returncode is None:
            # Pages that are free already take the first blocks.
            await _deposits(network, aurora, 3, f"full{turn}")
            turn += 1
            assert time.monotonic() < deadline
        assert process.returncode == 1
        log = tmp_path / f"cielo-{kind}.log"
        _last_words(log, "the disk is full")
        assert "stops: " in log.read_text()
        # The others go on without it; with room again it does too.
        await _deposits(network, boreal, 2, "meanwhile")
        filler.unlink()
        del running.processes["Cielo", kind]
        await running.start_node(cielo, kind)

        async def level() -> bool:
            return len({await _height(network, one) for one in network.utilities}) == 1

        await eventually(level)
        await _deposits(network, cielo, 2, "after")
        await eventually(level)
        await running.stop()
        path = _ledger(cielo, network.channel)
        assert verify_ledger(path).problem is None
    finally:
        await running.stop()
        await asyncio.to_thread(_ran, "umount", str(folder))
