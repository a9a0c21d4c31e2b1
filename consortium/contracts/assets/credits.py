"""Contract `credit`: net-metering credits, energy that a supplier keeps for a home.

Where a supplier's terms bank exports (`DayTerms.banking_days`), what is left of a day's export is
not paid but kept as credit. Credits set off import of a later day, or of the same one, at that
day's tariff, until they expire. Where a tariff nets over a bill's period and banks what is left
(`Tariff.banking_days`), the credit is that of a bill and stands under its last day; later bills use
it, the oldest first. Credits are no tokens: a token says whose the exported energy is, a credit
what the supplier owes for it.

For each lot: banked = outstanding + used + expired + reversed.

    credit/{connection}/{day}     the credit of a day's export
    credited/{connection}/{day}   what set off a day's import, and from which lots
    banked/{connection}           bills' credits of which something may be left
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Conflict,
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
    transaction,
)

from ..billing.bill_basis import MAX_CREDITS, CreditDraw
from ..billing.tariffs import MAX_BANKING_DAYS, Tariff
from ..common import settings
from ..common.clock import DAY_S, Day, day_of, day_start
from ..common.money import amount_micro
from ..common.pages import Bookmark, page
from ..common.settings import Price
from ..registry import homes
from ..registry.registry import connection_of, energy_settings
from ..settlement.days import DayInputs, Energy, Summary
from ..settlement.firm import Party
from .wallet import Ledger, Transfer

MAX_OPEN = MAX_BANKING_DAYS + 100
"""Bills' credits of which something is left: of daily bills, until they expire."""


@dataclass(frozen=True, slots=True)
class CreditLot:
    """The credit of one day's export."""

    connection_id: Identifier
    day: Day
    supplier: Party
    """Account of who owes it."""
    tariff: Price
    """Of the day: what a Wh is worth that was used and is taken back."""
    expired_price: Price
    expires_on: Day
    """The first day whose import it doesn't set off any more."""
    banked_wh: Energy
    """All that was ever banked, corrections upward included."""
    used_wh: Energy = 0
    expired_wh: Energy = 0
    reversed_wh: Energy = 0
    """What corrections took back."""
    billed: bool = False
    """Of a bill, and used by bills."""

    @property
    def outstanding_wh(self) -> int:
        """What can still be used."""
        return self.banked_wh - self.used_wh - self.expired_wh - self.reversed_wh


@dataclass(frozen=True, slots=True)
class _Banked:
    lots: Annotated[tuple[Day, ...], AtMost(MAX_OPEN)] = ()


@dataclass(frozen=True, slots=True)
class Credited:
    """What set off a day's import."""

    supplier: Party
    tariff: Price
    draws: Annotated[tuple[CreditDraw, ...], AtMost(MAX_CREDITS)]

    @property
    def energy_wh(self) -> int:
        """All of it."""
        return sum(draw.energy_wh for draw in self.draws)

    @property
    def amount_micro(self) -> int:
        """What it was worth, rounded once."""
        return amount_micro(self.energy_wh, self.tariff)


def _lot_key(connection_id: str, day: str) -> str:
    return f"credit/{connection_id}/{day}"


def _lot(context: Context, connection_id: str, day: str) -> CreditLot | None:
    stored = context.get_state(_lot_key(connection_id, day))
    return None if stored is None else stored_record(CreditLot, stored)


def _store(context: Context, lot: CreditLot) -> None:
    ensure(lot.outstanding_wh >= 0, "credits are used once")
    context.put_state(_lot_key(lot.connection_id, lot.day), canonical_json(lot))


def _credited(context: Context, connection_id: str, day: str) -> Credited | None:
    stored = context.get_state(f"credited/{connection_id}/{day}")
    return None if stored is None else stored_record(Credited, stored)


def _total(summary: Summary, kind: str) -> int:
    return sum(one.energy_wh for one in summary.sums if one.kind == kind)


def settle_day(context: Context, ledger: Ledger, inputs: DayInputs, summary: Summary) -> None:
    """Bank what a posted day leaves, or correct what it left before and what set it off."""
    name, day = summary.connection_id, summary.day
    lots: dict[str, CreditLot] = {}
    empty = CreditLot(
        name,
        day,
        inputs.supplier,
        inputs.terms.tariff,
        inputs.terms.expired_price,
        _expires(day, inputs.terms.banking_days),
        0,
    )
    banked = _banked(context, ledger, empty, _total(summary, "banked"), f"{day}-{summary.run}")
    if banked is not None:
        lots[day] = banked
    credited = _credited(context, name, day)
    if credited is not None and credited.energy_wh > _total(summary, "import"):
        _returned(context, ledger, credited, summary, lots)
    for one in lots.values():
        _store(context, one)


def _expires(day: str, banking_days: int) -> str:
    return day_of(day_start(day) + (banking_days + 1) * DAY_S)


def _banked(
    context: Context, ledger: Ledger, empty: CreditLot, energy_wh: int, reference: str
) -> CreditLot | None:
    """A lot with what its day or bill leaves by now; None as long as that is nothing."""
    lot = _lot(context, empty.connection_id, empty.day)
    if lot is None and not energy_wh:
        return None
    lot = lot or empty
    if lot.billed != empty.billed:
        raise Conflict(f"{lot.connection_id} has a day's and a bill's credit of {lot.day}")
    more = energy_wh - (lot.banked_wh - lot.reversed_wh)
    if more >= 0:
        return replace(lot, banked_wh=lot.banked_wh + more)
    return _taken_back(ledger, lot, -more, reference)


def _taken_back(ledger: Ledger, lot: CreditLot, energy_wh: int, reference: str) -> CreditLot:
    """Reverse credit: what is there first; what was used or paid out is paid back."""
    from_expired = min(max(0, energy_wh - lot.outstanding_wh), lot.expired_wh)
    from_used = max(0, energy_wh - lot.outstanding_wh - from_expired)
    for part, price in ((from_expired, lot.expired_price), (from_used, lot.tariff)):
        amount = amount_micro(part, price)
        ledger.transfer(
            Transfer(lot.connection_id, lot.supplier, amount, "credit_reversed", reference)
        )
    return replace(
        lot,
        reversed_wh=lot.reversed_wh + energy_wh,
        expired_wh=lot.expired_wh - from_expired,
        used_wh=lot.used_wh - from_used,
    )


def _returned(
    context: Context,
    ledger: Ledger,
    credited: Credited,
    summary: Summary,
    lots: dict[str, CreditLot],
) -> None:
    """Give credits back that set off import which a correction says there wasn't."""
    name, day = summary.connection_id, summary.day
    left = credited.energy_wh - _total(summary, "import")
    kept: list[CreditDraw] = []
    paid_wh = 0
    for draw in reversed(credited.draws):
        back = min(left, draw.energy_wh)
        left -= back
        if draw.energy_wh > back:
            kept.append(replace(draw, energy_wh=draw.energy_wh - back))
        if back:
            lot = lots.get(draw.lot) or _lot(context, name, draw.lot)
            assert lot is not None, "what was drawn has its lot"
            # What a correction of the lot took back meanwhile isn't there to be returned, and was
            # paid for then.
            paid_wh += max(0, back - lot.used_wh)
            lots[draw.lot] = replace(lot, used_wh=max(0, lot.used_wh - back))
    changed = replace(credited, draws=tuple(reversed(kept)))
    context.put_state(f"credited/{name}/{day}", canonical_json(changed))
    amount = credited.amount_micro - changed.amount_micro - amount_micro(paid_wh, credited.tariff)
    reference = f"{day}-{summary.run}"
    ledger.transfer(Transfer(name, credited.supplier, amount, "credit_returned", reference))


def use(
    context: Context,
    connection_id: str,
    summary: Summary,
    supplier: str,
    tariff: int,
    days: Sequence[str],
) -> Credited:
    """Set off a day's import with credits of some days, the oldest first.

    Raises:
        NotFound: a day has no credit.
        Conflict: a credit has expired, or another supplier owes it.
        InvalidArgument: the days are not in order.
    """
    if list(days) != sorted(dict.fromkeys(days)):
        raise InvalidArgument("lots must be in order of their days, each once")
    before = _credited(context, connection_id, summary.day) or Credited(supplier, tariff, ())
    open_wh = _total(summary, "import") - before.energy_wh
    draws = {draw.lot: draw.energy_wh for draw in before.draws}
    for day in days:
        lot = _lot(context, connection_id, day)
        if lot is None:
            raise NotFound(f"{connection_id} has no credit of {day}")
        if not lot.day <= summary.day < lot.expires_on:
            raise Conflict(
                f"the credit of {day} sets off import from then on until before {lot.expires_on}, "
                f"not of {summary.day}"
            )
        if lot.supplier != supplier:
            raise Conflict(f"the credit of {day} is owed by {lot.supplier}, not by {supplier}")
        if lot.billed:
            raise Conflict(f"the credit of {day} is a bill's; the next bills use it by themselves")
        taken = min(open_wh, lot.outstanding_wh)
        if taken:
            open_wh -= taken
            draws[day] = draws.get(day, 0) + taken
            _store(context, replace(lot, used_wh=lot.used_wh + taken))
    after = replace(before, draws=tuple(CreditDraw(day, draws[day]) for day in sorted(draws)))
    if after != before:
        context.put_state(f"credited/{connection_id}/{summary.day}", canonical_json(after))
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        ledger.transfer(
            Transfer(
                supplier,
                connection_id,
                after.amount_micro - before.amount_micro,
                "credit",
                f"{summary.day}-credit",
            )
        )
        ledger.write()
    return after


def usable(
    context: Context,
    connection_id: str,
    supplier: str,
    from_day: str,
    before: Sequence[CreditDraw],
) -> tuple[CreditDraw, ...]:
    """What a bill that begins on a day can take of earlier bills' credits, the oldest first.

    Args:
        context: The transaction.
        connection_id: Whose bill it is.
        supplier: Account of whose bill it is.
        from_day: Its first day, on which a credit must not have expired.
        before: What an earlier run of the same bill has taken; it can be taken anew.
    """
    own = {draw.lot: draw.energy_wh for draw in before}
    found = []
    for day in sorted({**dict.fromkeys(_open_lots(context, connection_id)), **own}):
        lot = _lot(context, connection_id, day)
        assert lot is not None, "a bill's credit has its lot"
        left = lot.outstanding_wh + own.get(day, 0)
        if left and lot.supplier == supplier and lot.day < from_day < lot.expires_on:
            found.append(CreditDraw(day, left))
    return tuple(found[:MAX_CREDITS])


def settle_bill(
    context: Context,
    ledger: Ledger,
    empty: CreditLot,
    banked_wh: int,
    draws: tuple[Sequence[CreditDraw], Sequence[CreditDraw]],
    reference: str,
) -> None:
    """Bank what a bill leaves, and use what it takes; a correction changes both to what is so now.

    Args:
        context: The transaction.
        ledger: Pays for what was used and is taken back.
        empty: The lot of what the bill leaves, as it would begin.
        banked_wh: What it leaves.
        draws: What the run before took, and what this one takes.
        reference: Of the postings.

    Raises:
        Conflict: a credit hasn't that much left, or isn't this supplier's bills'.
    """
    name = empty.connection_id
    lots: dict[str, CreditLot] = {}
    banked = _banked(context, ledger, empty, banked_wh, reference)
    if banked is not None:
        lots[banked.day] = banked
    took, takes = ({draw.lot: draw.energy_wh for draw in each} for each in draws)
    for day in sorted({**took, **takes}):
        lot = _lot(context, name, day)
        more = takes.get(day, 0) - took.get(day, 0)
        if lot is None or not lot.billed or lot.supplier != empty.supplier or day >= empty.day:
            raise Conflict(f"{name} has no credit of an earlier bill of {empty.supplier} of {day}")
        if more > lot.outstanding_wh:
            raise Conflict(
                f"the bill takes {more} Wh of the credit of {day}, but {lot.outstanding_wh} are "
                "left; compute its next run"
            )
        # What a correction of the lot took back meanwhile was paid for then.
        paid_wh = max(0, -more - lot.used_wh)
        lots[day] = replace(lot, used_wh=max(0, lot.used_wh + more))
        amount = amount_micro(paid_wh, lot.tariff)
        ledger.transfer(Transfer(lot.supplier, name, amount, "credit_returned", reference))
    for lot in lots.values():
        _store(context, lot)
    known = _open_lots(context, name)
    expired = day_of(max(0, day_start(empty.day) - MAX_BANKING_DAYS * DAY_S))
    left = [day for day in known if day not in lots and day >= expired]
    left += [day for day, lot in lots.items() if lot.outstanding_wh]
    if tuple(sorted(left)) != known:
        context.put_state(f"banked/{name}", canonical_json(_Banked(tuple(sorted(left)))))


def _open_lots(context: Context, connection_id: str) -> tuple[str, ...]:
    stored = context.get_state(f"banked/{connection_id}")
    return () if stored is None else stored_record(_Banked, stored).lots


def of_bill(connection_id: str, last_day: str, supplier: str, tariff: Tariff) -> CreditLot:
    """The lot of what a bill leaves, as it begins.

    What was used and is taken back costs what it set off: the dearest energy comes first.
    """
    worth = max((band.price for band in tariff.bands), default=0)
    worth += max((block.price for block in tariff.blocks), default=0)
    expires = _expires(last_day, tariff.banking_days)
    return CreditLot(
        connection_id, last_day, supplier, worth, tariff.feed_in, expires, 0, billed=True
    )


class Credits(Contract):
    """Credits of exported energy."""

    name: ClassVar[str] = "credit"

    @transaction
    def expire(self, context: Context, *, connection_id: Identifier, day: Day) -> CreditLot:
        """End a credit whose time is over, at the price of the terms; again changes nothing."""
        homes.require_home_or_operator(
            context, connection_of(context, connection_id), f"expire credits of {connection_id}"
        )
        lot = _lot(context, connection_id, day)
        if lot is None:
            raise NotFound(f"{connection_id} has no credit of {day}")
        now = settings.now(context, energy_settings(context))
        if now < day_start(lot.expires_on):
            raise Conflict(f"the credit of {day} holds until {lot.expires_on}")
        left = lot.outstanding_wh
        if not left:
            return lot
        ended = replace(lot, expired_wh=lot.expired_wh + left)
        _store(context, ended)
        ledger = Ledger(context, now)
        amount = amount_micro(left, lot.expired_price)
        ledger.transfer(
            Transfer(lot.supplier, connection_id, amount, "credit_expired", f"{day}-expired")
        )
        ledger.write()
        return ended

    @query
    def lots(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        from_day: Day = "1970-01-01",
        limit: Annotated[int, Integer(1, 200)] = 62,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """A home's credits, the oldest first."""
        homes.require_home_or_operator(
            context, connection_of(context, connection_id), f"read credits of {connection_id}"
        )
        items, following = page(context, f"credit/{connection_id}/", from_day, limit, bookmark)
        lots = [stored_record(CreditLot, value) for _, value in items]
        return {
            "lots": [
                {
                    "day": lot.day,
                    "supplier": lot.supplier,
                    "expires_on": lot.expires_on,
                    "banked_wh": lot.banked_wh,
                    "outstanding_wh": lot.outstanding_wh,
                    "used_wh": lot.used_wh,
                    "expired_wh": lot.expired_wh,
                    "reversed_wh": lot.reversed_wh,
                }
                for lot in lots
            ],
            "bookmark": following,
        }
