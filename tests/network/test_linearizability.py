"""The checker itself: examples, and agreement with trying every order."""

from collections.abc import Sequence
from itertools import combinations, permutations
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from .linearizability import NEVER, Operation, applied, linearizable


def write(value: object, called: float, answered: float = NEVER) -> Operation:
    return Operation("write", value, None, called, answered)


def read(value: object, called: float, answered: float) -> Operation:
    return Operation("read", None, value, called, answered)


def cas(old: object, new: object, swapped: bool, called: float, answered: float) -> Operation:
    return Operation("cas", (old, new), swapped, called, answered)


def test_one_after_another() -> None:
    assert linearizable([write(1, 0, 1), read(1, 2, 3), cas(1, 2, True, 4, 5), read(2, 6, 7)])
    assert not linearizable([write(1, 0, 1), read(None, 2, 3)]), "a write is lost"
    assert not linearizable([write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)]), "a stale read"
    assert not linearizable([read(1, 0, 1)]), "a value that nobody wrote"


def test_at_once_either_order_is_right() -> None:
    both = [write(1, 0, 10), write(2, 0, 10)]
    assert linearizable([*both, read(1, 11, 12)])
    assert linearizable([*both, read(2, 11, 12)])
    assert not linearizable([*both, read(1, 11, 12), read(2, 13, 14)]), "the order has changed"
    assert linearizable([*both, read(1, 3, 4), read(2, 5, 6)])


def test_a_swap_happens_once() -> None:
    assert not linearizable([write(1, 0, 1), cas(1, 2, True, 2, 5), cas(1, 3, True, 2, 5)])
    assert linearizable([write(1, 0, 1), cas(1, 2, True, 2, 5), cas(1, 3, False, 2, 5)])


def test_without_an_answer_it_may_have_happened_at_any_time_or_never() -> None:
    assert linearizable([write(1, 0, 1), write(2, 2), read(1, 3, 4)])
    assert linearizable([write(1, 0, 1), write(2, 2), read(1, 3, 4), read(2, 5, 6)])
    assert not linearizable([write(1, 0, 1), write(2, 2), read(2, 3, 4), read(1, 5, 6)]), (
        "once it was seen it stays"
    )
    assert not linearizable([read(2, 0, 1), write(2, 2)]), "but not before it was asked for"


def any_order(history: Sequence[Operation]) -> bool:
    """By trying every order of what was answered and any of the rest."""
    answered = [one for one in history if one.answered != NEVER]
    rest = [one for one in history if one.answered == NEVER]
    chosen = (part for count in range(len(rest) + 1) for part in combinations(rest, count))
    return any(_explains(order) for part in chosen for order in permutations([*answered, *part]))


def _explains(order: Sequence[Operation]) -> bool:
    state: object = None
    for place, one in enumerate(order):
        if any(later.answered < one.called for later in order[place + 1 :]):
            return False
        fits, state = applied(state, one)
        if not fits:
            return False
    return True


VALUES = st.sampled_from([None, 1, 2])


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    called = draw(st.integers(0, 8))
    lasts = draw(st.one_of(st.none(), st.integers(1, 6)))
    answered = NEVER if lasts is None else called + lasts + 0.5
    match draw(st.sampled_from(["write", "read", "cas"])):
        case "write":
            return write(draw(VALUES), called, answered)
        case "read":
            return Operation("read", None, draw(VALUES), called, answered)
        case _:
            pair = (draw(VALUES), draw(VALUES))
            return Operation("cas", pair, draw(st.booleans()), called, answered)


@settings(max_examples=400, deadline=None)
@given(st.lists(operations(), max_size=5))
def test_it_agrees_with_trying_every_order(history: list[Operation]) -> None:
    assert linearizable(history) == any_order(history)


def simulated(random: Random, count: int) -> list[Operation]:
    """What clients of a real register could have seen: each operation takes effect at a moment."""
    state: object = None
    history = []
    for moment in range(count):
        called = moment - random.expovariate(0.3)
        kind = random.choice(["write", "read", "cas"])
        argument = (random.randrange(4), random.randrange(4)) if kind == "cas" else moment % 4
        result: object = state
        if kind == "cas":
            result = state == argument[0]  # type: ignore[index]
        asked = Operation(kind, argument, result, called, moment + random.expovariate(0.3))
        happens = True
        if random.random() < 0.1:
            asked = Operation(kind, argument, None, called)
            happens = random.random() < 0.5
        if happens:
            _, state = applied(state, asked)
        history.append(asked)
    return history


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_what_a_register_did_is_linearizable(seed: int) -> None:
    assert linearizable(simulated(Random(seed), 60))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_a_value_that_nobody_wrote_is_found(seed: int) -> None:
    random = Random(seed)
    history = simulated(random, 30)
    reads = [place for place, one in enumerate(history) if one.kind == "read"]
    answered = [place for place in reads if history[place].answered != NEVER]
    if not answered:
        return
    place = random.choice(answered)
    one = history[place]
    history[place] = Operation("read", None, "?", one.called, one.answered)
    assert not linearizable(history)
