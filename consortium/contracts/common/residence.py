"""When a caller has lived at a connection: what it may do there now, and read of its past.

A home's certificate names its connection, and in `gridledger.resident` which of those who have
lived there it is. Who has left neither acts nor reads what came later; who comes sees nothing from
before. Where the registry knows one resident alone, a certificate needs not say who it is; after a
move it must.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import (
    AtMost,
    Context,
    Creator,
    Forbidden,
    canonical_json,
    stored_record,
)

from . import access, dated
from .clock import DAY_S, day_start
from .dated import Span

_FOREVER = 10**12


@dataclass(frozen=True, slots=True)
class Residence:
    """The times in which a caller has lived at a connection: half-open spans, in order."""

    spans: tuple[tuple[int, int], ...]

    @property
    def ever(self) -> bool:
        """Whether it ever did, or will."""
        return bool(self.spans)

    def at(self, instant: int) -> bool:
        """Whether it lives there at an instant."""
        return any(start <= instant < end for start, end in self.spans)

    def on(self, day: str) -> bool:
        """Whether a day is its own: local days are told apart by the noon of the UTC day."""
        return self.at(day_start(day) + DAY_S // 2)

    def during(self, from_: int, to: int) -> bool:
        """Whether all of [from_, to) is its own."""
        return any(start <= from_ and to <= end for start, end in self.spans)


NOBODY = Residence(())
EVERYBODY = Residence(((0, _FOREVER),))
"""Of who isn't bound to the times of residents, such as an operator."""


@dataclass(frozen=True, slots=True)
class Residents:
    """All who have lived at a connection, in order."""

    spans: Annotated[tuple[Span, ...], AtMost(dated.MAX_SPANS)]


def residence_of(
    creator: Creator, utility: str, connection_id: str, spans: Sequence[Span]
) -> Residence:
    """When the caller has lived at a connection of a utility, by all who have lived there."""
    if not access.is_home(creator, utility, connection_id):
        return NOBODY
    if not spans:
        return EVERYBODY
    resident = creator.attributes.get(access.RESIDENT)
    if resident is None and len(dict.fromkeys(span.holder for span in spans)) > 1:
        return NOBODY
    return Residence(
        tuple(
            (span.from_, _FOREVER if span.until is None else span.until)
            for span in spans
            if resident in (None, span.holder)
        )
    )


def residence(context: Context, utility: str, connection_id: str) -> Residence:
    """When the caller has lived there, in chaincode `metering`, which asks the registry."""
    if not access.is_home(context.creator, utility, connection_id):
        return NOBODY
    argument = canonical_json({"connection_id": connection_id})
    answer = context.call("energy", [b"roles:Residence", argument])
    # Until its operator has entered the connection, nobody has moved.
    spans = () if answer.status >= 400 else stored_record(Residents, answer.payload).spans
    return residence_of(context.creator, utility, connection_id, spans)


def require_day(creator: Creator, seen: Residence, day: str, act: str) -> None:
    """Raise Forbidden unless a day is the caller's to see."""
    if not seen.on(day):
        raise Forbidden(
            f"{access.described(creator)} may not {act} on {day}; who lived there then may"
        )
