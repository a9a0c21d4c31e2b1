"""The summary of a long range read: a Merkle tree over the (key, version) pairs that it met.

Reads fill a batch; a batch that exceeds the degree is hashed into a leaf (so a leaf holds one read
more than the degree), and a level that exceeds the degree is folded into one hash of the level
above. Both the endorser that reads and the peer that validates build it, so it must be equal to
the byte.
(Rules: Fabric core/ledger/kvledger/txmgmt/rwsetutil/query_results_helper.go.)
"""

import hashlib

from consortium.wire import kvrwset_pb2

from .state import Version

DEGREE = 50
"""Fabric's degree. The results of a range of up to this many are listed one by one instead."""


class RangeSummary:
    """Takes the results of a range in order; ends in their list or in a Merkle summary."""

    def __init__(self, degree: int = DEGREE) -> None:
        """Raises ValueError for a degree below 2."""
        if degree < 2:
            raise ValueError(f"a Merkle summary of degree {degree} cannot be built: 2 is the least")
        self._degree = degree
        self._pending: list[kvrwset_pb2.KVRead] = []
        self._levels: dict[int, list[bytes]] = {}
        self._top = 1

    def add(self, key: str, version: Version) -> None:
        """Take the next result."""
        self._pending.append(
            kvrwset_pb2.KVRead(
                key=key,
                version=kvrwset_pb2.Version(block_num=version.block, tx_num=version.tx),
            )
        )
        if len(self._pending) > self._degree:
            self._hash_pending()

    def finish(
        self,
    ) -> tuple[list[kvrwset_pb2.KVRead], kvrwset_pb2.QueryReadsMerkleSummary | None]:
        """The reads and None if no batch was ever full, otherwise ([], the summary)."""
        if not self._levels:
            return self._pending, None
        if self._pending:
            self._hash_pending()
        for level in range(1, self._top):
            hashes = self._levels.pop(level, [])
            if hashes:
                # A single hash rises as it is.
                risen = hashes[0] if len(hashes) == 1 else _digest(hashes)
                self._levels.setdefault(level + 1, []).append(risen)
        if len(self._levels[self._top]) > self._degree:
            hashes = self._levels.pop(self._top)
            self._top += 1
            self._levels[self._top] = [_digest(hashes)]
        return [], self.present()

    def present(self) -> kvrwset_pb2.QueryReadsMerkleSummary:
        """The summary as far as full batches go."""
        return kvrwset_pb2.QueryReadsMerkleSummary(
            max_degree=self._degree,
            max_level=self._top,
            max_level_hashes=self._levels.get(self._top, ()),
        )

    def _hash_pending(self) -> None:
        reads = kvrwset_pb2.QueryReads(kv_reads=self._pending).SerializeToString(deterministic=True)
        self._pending = []
        level, risen = 1, hashlib.sha256(reads).digest()
        while True:
            hashes = self._levels.setdefault(level, [])
            hashes.append(risen)
            self._top = max(self._top, level)
            if len(hashes) <= self._degree:
                return
            risen = _digest(self._levels.pop(level))
            level += 1


def _digest(hashes: list[bytes]) -> bytes:
    return hashlib.sha256(b"".join(hashes)).digest()
