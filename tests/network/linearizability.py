"""Is there an order of these operations that explains what clients were told?

A history is linearizable (Herlihy and Wing 1990) if each operation can be given one moment between
its call and its answer so that, one after another, they behave as one register. The search is
Wing and Gong's (1993) with Lowe's memory of what was tried (2017): take one of the operations that
may come next, see whether its answer fits, go on with the rest, take it back when stuck.

An operation without answer may have happened at any later moment, or never. It explains something
only if the next operation sees what it did: if that overwrites it, or nothing follows, the order
without it is as good. So only such orders are tried; else every set of unanswered operations would
be.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Operation:
    """What a client asked of a register, and what it was told."""

    kind: str
    """`write`, `read` or `cas`."""
    argument: object
    """The value written; for `cas` the pair (expected, new)."""
    result: object
    """The value read; for `cas` whether it was swapped. Unused where there was no answer."""
    called: float
    answered: float = NEVER


def applied(state: object, operation: Operation) -> tuple[bool, object]:
    """Whether the operation's answer fits a register of this value, and its value afterwards."""
    known = operation.answered != NEVER
    match operation.kind:
        case "write":
            return True, operation.argument
        case "read":
            return not known or operation.result == state, state
        case "cas":
            expected, new = operation.argument  # type: ignore[misc]
            swaps = state == expected
            return not known or operation.result == swaps, new if swaps else state
        case kind:
            raise ValueError(f"a register knows no {kind!r}")


def linearizable(history: Iterable[Operation], initial: object = None) -> bool:
    """Whether the history of one register is linearizable."""
    # What has no effect and no answer explains nothing.
    operations = sorted(
        (one for one in history if one.kind != "read" or one.answered != NEVER),
        key=lambda one: one.called,
    )
    must = sum(1 << place for place, one in enumerate(operations) if one.answered != NEVER)
    tried: set[tuple[int, object, bool]] = set()
    # Each level: what is done already (as bits), the value then, whether the last one must be seen
    # by the next, and what may come next.
    levels = [(0, initial, False, iter(_next(operations, 0)))]
    while levels:
        done, state, unseen, candidates = levels[-1]
        if done & must == must:
            return True
        for place in candidates:
            one = operations[place]
            answered = one.answered != NEVER
            if unseen and one.kind == "write":
                continue
            fits, after = applied(state, one)
            if not fits or (not answered and after == state):
                continue
            further = (done | 1 << place, after, not answered)
            if further not in tried:
                tried.add(further)
                levels.append((*further, iter(_next(operations, further[0]))))
                break
        else:
            levels.pop()
    return False


def _next(operations: Sequence[Operation], done: int) -> list[int]:
    """The operations that nothing else must come before: called before any answer that is left."""
    found: list[int] = []
    deadline = NEVER
    for place, one in enumerate(operations):
        if one.called > deadline:
            break
        if not done >> place & 1:
            found.append(place)
            deadline = min(deadline, one.answered)
    # Those without answer last: mostly they explain nothing.
    found.sort(key=lambda place: operations[place].answered)
    return found
