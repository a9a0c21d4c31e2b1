"""Who or what held a place, and when: half-open spans in order, never two at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from consortium.chaincode.api import Conflict, Instant, InvalidArgument, MspId

from .clock import utc_text

MAX_SPANS = 200
"""Of one place, over all times."""


@dataclass(frozen=True, slots=True)
class Span:
    """A holder of a place in [from, until)."""

    holder: MspId
    from_: Instant
    until: Instant | None = None
    """None: until further notice."""


def holder_at(spans: Sequence[Span], at: int) -> str | None:
    """Who holds the place at an instant."""
    for span in spans:
        if span.from_ <= at and (span.until is None or at < span.until):
            return span.holder
    return None


def check_instant(name: str, instant: int, interval_s: int) -> None:
    """Raise InvalidArgument for an instant that would cut an interval in two."""
    if instant % interval_s:
        raise InvalidArgument(
            f"{name} is {instant}, but must be a multiple of {interval_s}: an interval belongs to "
            "one holder"
        )


def begin(
    spans: Sequence[Span],
    what: str,
    holder: str,
    from_: int,
    now: int,
    *,
    known_before: bool = False,
) -> tuple[Span, ...]:
    """Let a holder begin, and the one before end at the same instant.

    Nothing begins in the past but, with `known_before`, the first holder: it was there before the
    ledger knew. The same again changes nothing.

    Raises:
        Conflict: it would begin in the past, or before a later span.
    """
    if spans and (spans[-1].holder, spans[-1].from_) == (holder, from_):
        return tuple(spans)
    if len(spans) >= MAX_SPANS:
        raise Conflict(f"{what} has changed hands {MAX_SPANS} times, the limit")
    if not (known_before and not spans):
        _check_future(what, "from", from_, now)
    if not spans:
        return (Span(holder, from_),)
    last = spans[-1]
    if last.until is not None and from_ >= last.until:
        return (*spans, Span(holder, from_))
    if last.until is not None or from_ <= last.from_:
        raise Conflict(
            f"{what} is {last.holder}'s from {utc_text(last.from_)}"
            + (f" to {utc_text(last.until)}" if last.until is not None else "")
            + f", but from is {utc_text(from_)}: spans never overlap"
        )
    return (*spans[:-1], replace(last, until=from_), Span(holder, from_))


def finish(spans: Sequence[Span], what: str, at: int, now: int) -> tuple[Span, ...]:
    """Let the last holder end without another; the same again changes nothing.

    Raises:
        Conflict: nobody holds it, or the end lies in the past or before the beginning.
    """
    if spans and spans[-1].until == at:
        return tuple(spans)
    if not spans or spans[-1].until is not None:
        raise Conflict(f"{what} has no holder that could end")
    _check_future(what, "at", at, now)
    if at <= spans[-1].from_:
        raise Conflict(
            f"{what} is {spans[-1].holder}'s from {utc_text(spans[-1].from_)}, but at is "
            f"{utc_text(at)}"
        )
    return (*spans[:-1], replace(spans[-1], until=at))


def cancel(spans: Sequence[Span], what: str, from_: int, now: int) -> tuple[Span, ...]:
    """Take back a span that hasn't begun; who held before goes on.

    Raises:
        Conflict: it has begun, or there is none that begins then.
    """
    if not spans or spans[-1].from_ != from_:
        raise Conflict(f"{what}: nothing begins at {utc_text(from_)}")
    _check_future(what, "from", from_, now)
    left = list(spans[:-1])
    if left and left[-1].until == from_:
        left[-1] = replace(left[-1], until=None)
    return tuple(left)


def _check_future(what: str, name: str, instant: int, now: int) -> None:
    if instant < now:
        raise Conflict(
            f"{name} is {utc_text(instant)}, but the channel's time is {utc_text(now)}: {what} "
            "never changes back in time"
        )
