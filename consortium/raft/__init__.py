"""The consensus core: Raft as a pure state machine.

A `RawNode` is one member of a group. It is fed messages (`step`), time (`tick`) and proposals
(`propose`), and hands out work (`ready`): what to persist, what to send, what to apply. The caller
does that work and calls `advance`. Nothing in this package does I/O, waits, starts a thread, reads
a clock or draws randomness that the caller did not seed; so the same code runs in an orderer and,
thousands of times a minute, in a simulator that crashes it between any two steps.

It promises, as long as what it asked to be persisted is there after a crash:
- of one term there is at most one leader;
- two logs that have an entry of the same index and term are equal up to there;
- what was committed stays committed, in that order, on every member, for ever.

It makes progress whenever a majority of the voters can reach each other.

A node that has lost its storage, or was given an older copy of it, must not be started under its
old id: it could vote twice, and acknowledge entries that it no longer has. Remove it, and add it
under a new id.
"""

from consortium.raft.confchange import ConfChange, ConfChangeRefused
from consortium.raft.config import EVENTS, LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, NONE, Config
from consortium.raft.core import ProposalDropped, ReadState, StateRole
from consortium.raft.log import InvariantBroken
from consortium.raft.rawnode import (
    LocalMessageRefused,
    MessageRefused,
    RawNode,
    Ready,
    SoftState,
    Status,
    UnknownSenderRefused,
)
from consortium.raft.storage import (
    NO_LIMIT,
    Compacted,
    MemoryStorage,
    SnapshotOutOfDate,
    SnapshotTemporarilyUnavailable,
    Storage,
    StorageError,
    Unavailable,
)
from consortium.raft.tracker import Configuration, Progress, ProgressState

__all__ = [
    "EVENTS",
    "LOCAL_APPEND_THREAD",
    "LOCAL_APPLY_THREAD",
    "NONE",
    "NO_LIMIT",
    "Compacted",
    "ConfChange",
    "ConfChangeRefused",
    "Config",
    "Configuration",
    "InvariantBroken",
    "LocalMessageRefused",
    "MemoryStorage",
    "MessageRefused",
    "Progress",
    "ProgressState",
    "ProposalDropped",
    "RawNode",
    "ReadState",
    "Ready",
    "SnapshotOutOfDate",
    "SnapshotTemporarilyUnavailable",
    "SoftState",
    "StateRole",
    "Status",
    "Storage",
    "StorageError",
    "Unavailable",
    "UnknownSenderRefused",
]
