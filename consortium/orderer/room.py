"""How much of a queue is taken, in all and by each utility.

Half of a queue is for whoever comes. Of the other half each utility has an equal share: one that
sends more than is ordered fills the first half and is then refused, while the others still find
room.
"""

from collections import Counter


class Room:
    """Room for envelopes, counted and in bytes."""

    def __init__(self, where: str, envelopes: int, size_bytes: int) -> None:
        """`where` they wait is for the sentences."""
        self._where = where
        self._limit_envelopes = envelopes
        self._limit_bytes = size_bytes
        self._by_utility: Counter[str] = Counter()
        self._bytes_by_utility: Counter[str] = Counter()
        self.envelopes = 0
        self.bytes = 0

    def refusal(self, utility: str, utilities: int) -> str | None:
        """A sentence for the sender if a utility, one of so many, can put in nothing more."""
        limits = f"the limit is {self._limit_envelopes} envelopes or {self._limit_bytes} bytes"
        hint = "send more slowly and try again in a second"
        if self.envelopes >= self._limit_envelopes or self.bytes >= self._limit_bytes:
            return (
                f"{self.envelopes} envelopes ({self.bytes} bytes) wait {self._where}, and"
                f" {limits}; {hint}"
            )
        if 2 * self.envelopes < self._limit_envelopes and 2 * self.bytes < self._limit_bytes:
            return None
        parts = 2 * max(1, utilities)
        own, own_bytes = self._by_utility[utility], self._bytes_by_utility[utility]
        if parts * own < self._limit_envelopes and parts * own_bytes < self._limit_bytes:
            return None
        return (
            f"{own} envelopes ({own_bytes} bytes) of {utility} wait {self._where}, its share of a"
            f" queue that is half full ({limits}); {hint}"
        )

    def take(self, utility: str, size_bytes: int) -> None:
        """An envelope was put in."""
        self.envelopes += 1
        self.bytes += size_bytes
        self._by_utility[utility] += 1
        self._bytes_by_utility[utility] += size_bytes

    def give_back(self, utility: str, size_bytes: int) -> None:
        """It is out."""
        self.envelopes -= 1
        self.bytes -= size_bytes
        self._by_utility[utility] -= 1
        self._bytes_by_utility[utility] -= size_bytes
        if not self._by_utility[utility]:
            del self._by_utility[utility], self._bytes_by_utility[utility]
