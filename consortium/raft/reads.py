"""Linearizable reads that wait for a quorum to confirm their leader (Raft thesis 6.4)."""

from collections import deque
from dataclasses import dataclass

from consortium.wire import raftpb_pb2 as raftpb


@dataclass(frozen=True, slots=True)
class ReadState:
    """The answer to `read_index`: what is applied up to `index` may answer the read `context`."""

    index: int
    context: bytes


class ReadOnly:
    """Reads waiting for a quorum to confirm that the leader still leads (thesis 6.4).

    Reads are numbered as they come; a heartbeat carries the number of the latest one, so a
    quorum's answers to one heartbeat confirm all reads up to it.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[raftpb.Message, int]] = deque()
        self.confirmed = 0
        self.acknowledged: dict[int, int] = {}

    def add(self, request: raftpb.Message, commit: int) -> None:
        self.waiting.append((request, commit))

    def acknowledge(self, node: int, context: bytes) -> None:
        if len(context) == 8:
            number = int.from_bytes(context, "little")
            self.acknowledged[node] = max(self.acknowledged.get(node, 0), number)

    def context(self) -> bytes:
        """Return what a heartbeat has to carry: empty while no read waits."""
        if not self.waiting:
            return b""
        return (self.confirmed + len(self.waiting)).to_bytes(8, "little")

    def confirm(self, number: int) -> list[tuple[raftpb.Message, int]]:
        """Take out the reads up to `number`."""
        done = []
        while self.waiting and self.confirmed < number:
            done.append(self.waiting.popleft())
            self.confirmed += 1
        return done
