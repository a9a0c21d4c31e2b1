"""Contract `token`: who holds the energy that was exported.

A token is the record of exported energy with its vintage. It is assigned once, at settlement, to
who bought it, or to who paid the base rate for it; the holder's own import of the same interval
retires it; a correction of the reading reverses it. Interval by interval that would tell a life, so
the public record is a *lot*: a connection's export of one day, by holder. The intervals stand in
the private rows of the same day (`days.Rows`), whose commitment is public.

For each lot, and so for all: minted = outstanding + retired + reversed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Context,
    Contract,
    Identifier,
    Integer,
    InvalidArgument,
    NotFound,
    canonical_json,
    ensure,
    query,
    stored_record,
)

from ..common.clock import DAY_S, Day, day_of, day_start
from ..common.pages import Bookmark, page
from ..settlement.days import MAX_LINES, Energy, Holding
from ..settlement.firm import Party

MAX_DAYS = 400
"""Of one sum."""


@dataclass(frozen=True, slots=True)
class Lot:
    """What a connection exported on a day, and in whose hands it is."""

    origin: Identifier
    day: Day
    minted_wh: Energy
    """All that was ever assigned, corrections upward included."""
    reversed_wh: Energy
    """What corrections took back."""
    holdings: Annotated[tuple[Holding, ...], AtMost(MAX_LINES)]

    @property
    def retired_wh(self) -> int:
        """What its holders used up."""
        return sum(one.retired_wh for one in self.holdings)

    @property
    def outstanding_wh(self) -> int:
        """What its holders have and didn't use up."""
        return sum(one.energy_wh - one.retired_wh for one in self.holdings)


def _key(origin: str, day: str) -> str:
    return f"tok/{origin}/{day}"


def lot_of(context: Context, origin: str, day: str) -> Lot | None:
    """A connection's lot of a day, if it was settled."""
    stored = context.get_state(_key(origin, day))
    return None if stored is None else stored_record(Lot, stored)


def assign(context: Context, origin: str, day: str, holdings: Sequence[Holding]) -> None:
    """Put a day's export into its holders' hands, or correct what was put there before."""
    before = lot_of(context, origin, day)
    had = {} if before is None else {one.holder: one.energy_wh for one in before.holdings}
    has = {one.holder: one.energy_wh for one in holdings}
    minted = 0 if before is None else before.minted_wh
    taken_back = 0 if before is None else before.reversed_wh
    for holder in sorted({**had, **has}):
        more = has.get(holder, 0) - had.get(holder, 0)
        if more > 0:
            minted += more
        else:
            taken_back -= more
        if holder in has and holder not in had:
            context.put_state(f"held/{holder}/{day}/{origin}", canonical_json({"lot": origin}))
        elif holder in had and holder not in has:
            context.del_state(f"held/{holder}/{day}/{origin}")
    lot = Lot(origin, day, minted, taken_back, tuple(holdings))
    ensure(
        lot.minted_wh == lot.outstanding_wh + lot.retired_wh + lot.reversed_wh,
        "what was minted is outstanding, retired or reversed",
    )
    if holdings or before is not None:
        context.put_state(_key(origin, day), canonical_json(lot))


def _shown(lot: Lot) -> dict[str, Any]:
    return {
        "origin": lot.origin,
        "day": lot.day,
        "minted_wh": lot.minted_wh,
        "outstanding_wh": lot.outstanding_wh,
        "retired_wh": lot.retired_wh,
        "reversed_wh": lot.reversed_wh,
        "holdings": lot.holdings,
    }


class Tokens(Contract):
    """Lots of exported energy."""

    name: ClassVar[str] = "token"

    @query
    def lot(self, context: Context, *, origin: Identifier, day: Day) -> dict[str, Any]:
        """What a connection exported on a day, by holder."""
        found = lot_of(context, origin, day)
        if found is None:
            raise NotFound(f"connection {origin} has no tokens of {day}: it exported nothing, or "
                           "the day isn't settled")  # fmt: skip
        return _shown(found)

    @query
    def held(
        self,
        context: Context,
        *,
        holder: Party,
        from_day: Day = "1970-01-01",
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """What an account holds, from a day on, the oldest first."""
        items, following = page(context, f"held/{holder}/", from_day, limit, bookmark)
        tokens = []
        for key, _ in items:
            day, origin = key.split("/")[2:]
            lot = lot_of(context, origin, day)
            assert lot is not None, "what is held stands in a lot"
            tokens += [
                {
                    "origin": origin,
                    "day": day,
                    "energy_wh": one.energy_wh,
                    "retired_wh": one.retired_wh,
                }
                for one in lot.holdings
                if one.holder == holder
            ]
        return {"holder": holder, "tokens": tokens, "bookmark": following}

    @query
    def supply(
        self, context: Context, *, origin: Identifier, from_day: Day, to_day: Day
    ) -> dict[str, Any]:
        """Sums of a connection's lots of the days in [from_day, to_day)."""
        days = (day_start(to_day) - day_start(from_day)) // DAY_S
        if not 0 < days <= MAX_DAYS:
            raise InvalidArgument(
                f"to_day is {to_day}, but must be 1 to {MAX_DAYS} days after from_day, {from_day}"
            )
        sums = {"minted_wh": 0, "outstanding_wh": 0, "retired_wh": 0, "reversed_wh": 0}
        for number in range(days):
            lot = lot_of(context, origin, day_of(day_start(from_day) + number * DAY_S))
            if lot is not None:
                sums["minted_wh"] += lot.minted_wh
                sums["outstanding_wh"] += lot.outstanding_wh
                sums["retired_wh"] += lot.retired_wh
                sums["reversed_wh"] += lot.reversed_wh
        return {"origin": origin, "from_day": from_day, "to_day": to_day, **sums}
