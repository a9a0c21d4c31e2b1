"""What Python's raftpb lacks: `from` is a keyword, so it can be neither read nor given plainly."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from consortium.wire import raftpb_pb2 as raftpb

sender_of: Callable[[raftpb.Message], int] = attrgetter("from")
"""Return who sent a message."""


def new_message(kind: raftpb.MessageType, sender: int, **fields: Any) -> raftpb.Message:
    """Return a message from `sender`; a field given as None stays unset."""
    return raftpb.Message(type=kind, **{"from": sender, **fields})
