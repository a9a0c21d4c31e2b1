"""Which envelopes make a block: Fabric's rules (hyperledger/fabric `orderer/common/blockcutter`).

A batch is cut when it holds `max_message_count` messages, when the next message would take it past
`preferred_max_bytes`, and by the caller when the batch timeout has passed. A message larger than
`preferred_max_bytes` gets a block of its own. `absolute_max_bytes` is not looked at here: larger
messages are refused at entry (`admission`).
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CutLimits:
    """Limits of one block, from the channel's BatchSize; all positive."""

    max_message_count: int
    preferred_max_bytes: int


class Message(Protocol):
    """Whatever waits to be ordered."""

    @property
    def size_bytes(self) -> int:
        """Size as Fabric counts it: payload plus signature, without the envelope's framing."""


class BlockCutter[M: Message]:
    """Collects messages and says when they make a block. No clock: the caller has the timer."""

    def __init__(self, limits: CutLimits) -> None:
        self.limits = limits
        self._pending: list[M] = []
        self._pending_bytes = 0

    def __len__(self) -> int:
        return len(self._pending)

    def ordered(self, message: M) -> list[list[M]]:
        """Take the next message; return the batches that are complete now (none, one or two).

        Whether messages are still waiting afterwards is `bool(len(cutter))`; if so, the batch
        timer must be running.
        """
        size = message.size_bytes
        batches: list[list[M]] = []
        if self._pending and self._pending_bytes + size > self.limits.preferred_max_bytes:
            batches.append(self.cut())
        self._pending.append(message)
        self._pending_bytes += size
        if (
            size > self.limits.preferred_max_bytes
            or len(self._pending) >= self.limits.max_message_count
        ):
            batches.append(self.cut())
        return batches

    def cut(self) -> list[M]:
        """Return the batch collected so far, which may be empty, and begin the next."""
        batch, self._pending, self._pending_bytes = self._pending, [], 0
        return batch
