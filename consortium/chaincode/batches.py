"""How a peer hands the results of a query to a chaincode: in batches, with one result read ahead.

A result that was read ahead is part of what the transaction depends on, though the chaincode may
never ask for it. So contracts that run inside the peer read through here too: the read-write set
is the same wherever a contract runs. (Rule: Fabric core/chaincode/query_response_generator.go.)
"""

from collections.abc import Callable, Iterator

from .simulator import SimulationError

BATCH_RESULTS = 100
MAX_BATCH_BYTES = 64 * 1024 * 1024
"""Keys and values of one batch, so that it fits into a message."""


class Batches[R]:
    """The results of one query; `size` gives a result's bytes."""

    def __init__(self, results: Iterator[R], size: Callable[[R], int]) -> None:
        self._results = results
        self._size = size
        self._ahead: list[R] = []

    def take(self) -> tuple[list[R], bool]:
        """The next batch, and whether there are more results; raises SimulationError."""
        batch, self._ahead = self._ahead, []
        batch_bytes = sum(map(self._size, batch))
        for result in self._results:
            if len(batch) == BATCH_RESULTS:
                self._ahead = [result]
                return batch, True
            batch.append(result)
            batch_bytes += self._size(result)
            if batch_bytes > MAX_BATCH_BYTES:
                raise SimulationError(
                    f"{len(batch)} results of a query have more than {MAX_BATCH_BYTES} bytes; "
                    "ask for smaller ones, or in pages"
                )
        return batch, False


def key_value_size(item: tuple[str, bytes]) -> int:
    """Bytes of a key and its value, roughly: characters count once."""
    return len(item[0]) + len(item[1])


def in_batches(results: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Keys and values one by one, read in batches of which the first is read at once."""
    batches = Batches(results, key_value_size)
    return _one_by_one(batches, *batches.take())


def _one_by_one[R](batches: Batches[R], batch: list[R], more: bool) -> Iterator[R]:
    yield from batch
    while more:
        batch, more = batches.take()
        yield from batch
