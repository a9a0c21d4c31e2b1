"""What a worker process gives up before it loads a contract's code.

Everywhere: memory beyond a limit, writing to files, core dumps, more than a few open files, other
processes and threads (but for root), and outliving its node. Where Linux has Landlock (5.13 and
later): opening any file but Python's own libraries, the contract API and the contract's code; from
6.7 on TCP connections too; from 6.12 on signals to other processes. All of it is for good: nothing
that runs later in the process, or in a child of it, gets it back.

Not prevented: using the processor until the deadline, UDP sockets, sockets in the file system,
seeing names and sizes of files (not their contents), and without Landlock reading what the node's
user may read. Who runs contracts of strangers runs them as a service, on a machine of their own.
(Facts: Linux, Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h.)
"""

import ctypes
import os
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

MAX_OPEN_FILES = 32

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# How many rights to the file system there are, by the kernel's version of Landlock.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST_FILE_RIGHTS = 16
_TCP_RIGHTS = 0b11  # bind, connect
_SCOPES = 0b11  # abstract sockets, signals


def limit_process(memory_bytes: int, parent: int) -> None:
    """Limit what this process uses; it is killed when `parent` ends.

    Raises OSError, ValueError where a limit can't be set.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise OSError("the node has ended")
    libc.prctl(_PR_SET_DUMPABLE, 0)
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (most, most))


def restrict_files(readable: Iterable[Path]) -> int:
    """Let this process open nothing but files beneath these; the kernel's version of Landlock.

    0 where it has none: then nothing is restricted. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "giving up new privileges failed")
    version: int = libc.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    if version <= 0:
        return 0
    rights = (1 << _FILE_RIGHTS.get(version, _NEWEST_FILE_RIGHTS)) - 1
    # The kernel takes as much of it as its version knows.
    attributes = struct.pack("=QQQ", rights, _TCP_RIGHTS, _SCOPES)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset: int = libc.syscall(_CREATE_RULESET, attributes, size, 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "Landlock gives no set of rules")
    try:
        for path in readable:
            _allow(libc, ruleset, path)
        if libc.syscall(_RESTRICT_SELF, ruleset, 0):
            raise OSError(ctypes.get_errno(), "Landlock does not restrict this process")
    finally:
        os.close(ruleset)
    return version


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights = _READ_FILE | (_READ_DIR if path.is_dir() else 0)
        rule = struct.pack("=Qi", rights, descriptor)
        if libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0):
            raise OSError(ctypes.get_errno(), f"Landlock takes no rule for {path}")
    finally:
        os.close(descriptor)


def python_files() -> list[Path]:
    """What Python reads when it imports its own and installed libraries."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = {Path(sysconfig.get_path(name)).resolve() for name in names}
    folders |= {Path(entry).resolve() for entry in sys.path if entry.endswith("lib-dynload")}
    return [*sorted(folders), *map(Path, ("/lib", "/lib64", "/usr/lib", "/usr/lib64"))]
