"""Fabric's cutting rules, on messages that are only sizes."""

from dataclasses import dataclass

import hypothesis
from hypothesis import strategies

from consortium.orderer.blockcutter import BlockCutter, CutLimits


@dataclass(frozen=True)
class Sized:
    size_bytes: int


def cut(limits: CutLimits, *sizes: int) -> tuple[list[list[int]], list[int]]:
    """Batches that were cut while the sizes came in, and what waits at the end."""
    cutter: BlockCutter[Sized] = BlockCutter(limits)
    batches = [batch for size in sizes for batch in cutter.ordered(Sized(size))]
    return (
        [[one.size_bytes for one in batch] for batch in batches],
        [one.size_bytes for one in cutter.cut()],
    )


def test_a_batch_is_cut_at_the_message_count() -> None:
    assert cut(CutLimits(3, 100), 1, 1, 1, 1) == ([[1, 1, 1]], [1])


def test_a_message_that_would_overflow_begins_the_next_batch() -> None:
    assert cut(CutLimits(10, 100), 60, 40, 1) == ([[60, 40]], [1])


def test_a_message_above_the_preferred_size_is_alone() -> None:
    assert cut(CutLimits(10, 100), 5, 101, 5) == ([[5], [101]], [5])
    assert cut(CutLimits(10, 100), 101) == ([[101]], [])


def test_overflow_and_count_may_cut_two_batches_at_once() -> None:
    assert cut(CutLimits(1, 100), 60, 60) == ([[60], [60]], [])


def test_cutting_nothing_gives_nothing() -> None:
    assert cut(CutLimits(10, 100)) == ([], [])


@hypothesis.given(
    strategies.lists(strategies.integers(1, 150)),
    strategies.integers(1, 10),
    strategies.integers(1, 100),
)
def test_nothing_is_lost_reordered_or_beyond_the_limits(
    sizes: list[int], count: int, preferred: int
) -> None:
    batches, waiting = cut(CutLimits(count, preferred), *sizes)
    assert [size for batch in batches for size in batch] + waiting == sizes
    assert all(batches)
    for batch in batches:
        assert len(batch) <= count
        assert len(batch) == 1 or sum(batch) <= preferred
    assert len(waiting) < count
    assert sum(waiting) <= preferred
