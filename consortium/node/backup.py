"""Copies of a node's data, made while it runs.

LMDB copies a consistent picture of its file beside a writer; the block segments that it points
into are only ever appended to, so what the picture counts as committed can be copied afterwards.
Keys, certificates and settings are copied as they are, those too that are kept elsewhere and
linked to: keep a backup as safe as the node. An enrolment authority has such files only, and its
registry isn't changed while they are copied.

A peer's backup is put back as it is and goes on from the orderers. An orderer's is not: it would
have forgotten votes that it gave after the copy was made. It notices that its database is a copy
(`orderer.raft_storage.MemberRecord`) and takes no part under its old Raft id; `RESTORE.txt` says
what to do.
"""

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from consortium.ca.registry import Registry
from consortium.identity.certificates import CertificateAuthority
from consortium.ledger.ledger import Ledger
from consortium.ledger.snapshot import is_unfinished
from consortium.orderer.blockstore import stored_end
from consortium.orderer.node_store import FORMAT_VERSION as ORDERER_FORMAT
from consortium.orderer.node_store import TABLES as ORDERER_TABLES
from consortium.storage.environment import Environment, copy_environment
from consortium.storage.segments import End, copy_segments

from .network import NetworkError

Progress = Callable[[str, int], None]

_REGISTRY_LOCK = f"{Registry.FILE}.lock"
_SKIPPED = {"lock", "lock.mdb", _REGISTRY_LOCK, "snapshots"}
RESTORE = "RESTORE.txt"

_PEER_RESTORE = """\
Backup of a peer. To restore: stop the peer, move its folder away, put this one in its place, start
the peer. It fetches the blocks since then from the orderers, and private data from other members.
Check it with `gridledger verify`.
"""
_ORDERER_RESTORE = """\
Backup of an orderer. Restore it only where the folder is lost: another orderer's blocks are newer.
Put this folder in its place and start the orderer. It sees that its database is a copy, and does
not vote again under its old Raft id, since it may have voted after this copy was made. It follows
the channel as a non-member until the other utilities' admins have removed its consenter and added
it again, which gives it a new Raft id.
"""
_CA_RESTORE = """\
Backup of an enrolment authority. To restore: stop the authority, move its folder away, put this one
in its place, start the authority. It does not know what came after this copy: register again who
was registered since, and revoke again who was revoked since. A secret that was used since can be
used once more: revoke and register again whom that concerns.
"""


class BackupError(NetworkError):
    """A backup that cannot be made; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Backup:
    """What was copied."""

    folder: Path
    heights: dict[str, int]
    """By channel: how many blocks are in the copy. An orderer's newest are in its Raft log."""
    files: int
    bytes: int
    gone: tuple[str, ...] = ()
    """Files of the node that were removed before they could be copied: paths in its folder."""


def back_up(node: Path, destination: Path, progress: Progress = lambda _w, _d: None) -> Backup:
    """Copy a node's folder (of a peer, an orderer or an authority) to a new one.

    The node may run. A copy that was not finished is removed. Raises BackupError, OSError,
    StorageError, SegmentError.
    """
    # A link that leads nowhere is in the way as well, and would be noticed only at the end.
    if destination.exists(follow_symlinks=False):
        raise BackupError(f"{destination} is there already: a backup goes into a new folder")
    if destination.resolve().is_relative_to(node.resolve()):
        raise BackupError(f"{destination} lies in the folder that is to be copied")
    if not node.is_dir():
        raise BackupError(f"there is no node in {node}")
    unfinished = destination.with_name(destination.name + ".unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True, mode=0o700)
    try:
        copying = _Copying(node, unfinished, progress)
        copying.run()
        for path in (*sorted(unfinished.rglob("*")), unfinished):
            _flush(path)
        unfinished.rename(destination)
        _flush(destination.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    found = [path for path in destination.rglob("*") if path.is_file()]
    return Backup(
        destination,
        copying.heights,
        len(found),
        sum(path.stat().st_size for path in found),
        tuple(copying.gone),
    )


class _Copying:
    def __init__(self, source: Path, target: Path, progress: Progress) -> None:
        self._source, self._target = source, target
        self._progress = progress
        self._bytes = 0
        self.heights: dict[str, int] = {}
        self.gone: list[str] = []

    def run(self) -> None:
        """Databases first, then the segments that they point into, then everything else."""
        ledgers = self._source / "ledger"
        for ledger in sorted(ledgers.iterdir()) if ledgers.is_dir() else ():
            if (ledger / "index" / "data.mdb").exists() and not is_unfinished(ledger.name):
                self._ledger(ledger)
        data = self._source / "data"
        orderer = (data / "raft" / "data.mdb").exists()
        if orderer:
            self._orderer(data)
        if self.heights:
            text = _ORDERER_RESTORE if orderer else _PEER_RESTORE
        elif (self._source / CertificateAuthority.KEY_FILE).exists():
            text = _CA_RESTORE
        else:
            raise BackupError(
                f"{self._source} is no folder of a peer or an orderer with data, nor of an "
                "enrolment authority"
            )
        with _registry_unchanged(self._source):
            for path in _plain_files(self._source):
                self._file(path)
        (self._target / RESTORE).write_text(text, encoding="utf-8")

    def _file(self, path: Path) -> None:
        """Copy what is a file, or a link to one. Sockets and the like are made anew by the node."""
        target = self._target / path.relative_to(self._source)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return
            source = path.open("rb")
        except FileNotFoundError:
            temporary = path.name.startswith(".")  # see `identity.certificates.write_private`
            if path.is_symlink() and not temporary:
                raise BackupError(
                    f"{path} is a link that leads nowhere: mend or remove it, then back up again"
                ) from None
            if not temporary:
                self.gone.append(str(path.relative_to(self._source)))
            return
        with source:
            status = os.fstat(source.fileno())
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as copy:
                shutil.copyfileobj(source, copy)
                # Where a link leads others may guard the folder; in the copy only the mode does.
                mode = 0o600 if path.is_symlink() else stat.S_IMODE(status.st_mode)
                os.fchmod(copy.fileno(), mode)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _ledger(self, ledger: Path) -> None:
        target = self._target / ledger.relative_to(self._source)
        copy_environment(ledger / "index", target / "index")
        height, end = Ledger.stored_end(target)
        self._segments(ledger / "blocks", target / "blocks", end)
        self.heights[ledger.name] = height

    def _orderer(self, data: Path) -> None:
        target = self._target / "data"
        copy_environment(data / "raft", target / "raft")
        index = Environment(
            target / "raft", ORDERER_TABLES, format_version=ORDERER_FORMAT, read_only=True
        )
        blocks = data / "blocks"
        names = sorted(path.name for path in blocks.iterdir()) if blocks.is_dir() else []
        try:
            with index.read() as transaction:
                ends = {name: stored_end(transaction, name) for name in names}
        finally:
            index.close()
        for channel_id, (height, end) in ends.items():
            self._segments(blocks / channel_id, target / "blocks" / channel_id, end)
            self.heights[channel_id] = height

    def _segments(self, source: Path, target: Path, end: End) -> None:
        def copied(count: int) -> None:
            self._bytes += count
            self._progress("bytes of blocks copied", self._bytes)

        copy_segments(source, target, end, copied)


@contextmanager
def _registry_unchanged(node: Path) -> Iterator[None]:
    """Keep an authority's registry from being changed; other nodes have none.

    The lock's file is not made where it lacks: made by another user, the authority could not open
    it. Without it nobody was registered here yet; who begins now writes the registry whole.
    """
    path = node / _REGISTRY_LOCK
    with path.open("rb") if path.exists() else nullcontext() as lock:
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _plain_files(source: Path) -> Iterator[Path]:
    """What the node has besides its databases and segments, locks and folders.

    Raises BackupError for a link to a folder: it may lead anywhere, back into this folder too.
    """
    copied = (source / "ledger", source / "data" / "raft", source / "data" / "blocks")
    for folder, folders, files in os.walk(source, onerror=_unless_gone):
        here = Path(folder)
        folders[:] = [
            name for name in folders if name not in _SKIPPED and here / name not in copied
        ]
        for path in (here / name for name in folders):
            if path.is_symlink():
                raise BackupError(
                    f"{path} is a link to a folder, and a backup follows links to files only: move "
                    "the folder there, or mount it there"
                )
        yield from (here / name for name in files if name not in _SKIPPED)


def _unless_gone(error: OSError) -> None:
    """A folder that cannot be read would be lacking in the copy without a word."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
