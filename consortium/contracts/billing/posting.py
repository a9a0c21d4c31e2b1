"""Posting bills, and taking something off them.

Not a contract: the part of contract `billing` that writes documents. A bill is entered once; what a
later computation of its period adds is an adjustment, what it takes off a credit note.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from consortium.chaincode.api import (
    Conflict,
    Context,
    Integer,
    InvalidArgument,
    canonical_json,
    stored_record,
)

from ..assets import credits
from ..assets.wallet import Ledger, Transfer, supplier_account
from ..common import access, agreements, commitments, settings
from ..common.clock import DAY_S, day_of, day_start, utc_text
from ..registry.registry import connection_of, energy_settings
from . import permit, prepayment, supply
from .bill_basis import (
    Statement,
    period_days,
    statement_key,
)
from .supply import (
    BilledPeriod,
    Document,
    Draw,
    Dues,
    Standing,
    Supplies,
    Supply,
)
from .supply_terms import check_period
from .tariff_book import TARIFF
from .tariffs import Tariff


@dataclass(frozen=True, slots=True)
class _Posted:
    """The gate of one run of a period: it is posted once."""

    statement: Statement
    number: Annotated[int, Integer(0, 10**6)]
    """Of its document; 0 where nothing changed."""


def post(context: Context, statement: Statement) -> dict[str, Any]:
    """Post a run of a period: its bill, or the difference to the run before; once.

    Raises:
        Forbidden: the caller is not of its supplier, nor operates its metering utility.
        NotFound, Conflict: the utility has committed to no such statement, or another comes next.
        InvalidArgument: its days aren't over, or one bill can't be of them.
    """
    connection_id, from_day = statement.connection_id, statement.from_day
    connection = connection_of(context, connection_id)
    supplies = supply.supplies_of(context, connection_id)
    terms = supply.supply_on(context, connection_id, from_day)
    creator = context.creator
    access.require(
        access.is_supplier(creator, terms.supplier)
        or access.is_operator(creator, connection.utility),
        creator,
        f"post bills of {connection_id}",
        f"operators and suppliers of {terms.supplier}, operators of {connection.utility}",
    )
    gate = f"posted/{connection_id}/{from_day}/{statement.run}"
    stored = context.get_state(gate)
    if stored is not None:
        posted = stored_record(_Posted, stored)
        if posted.statement != statement:
            raise Conflict(
                f"run {statement.run} of the bill of {connection_id} from {from_day} on is posted "
                "already, with another statement"
            )
        return _posted(context, posted)
    now = settings.now(context, energy_settings(context))
    dues = Dues(context, connection_id)
    period = supply.period_of(context, connection_id, from_day)
    _check_order(dues, period, supplies, statement)
    check_period(supplies, terms, from_day, statement.to_day)
    end = supply.calendar_at(context, terms.region, now).start_of(statement.to_day)
    if end > now:
        raise InvalidArgument(
            f"to_day is {statement.to_day}, which begins at {utc_text(end)}, but the channel's "
            f"time is {utc_text(now)}; a bill is of days that are over"
        )
    commitments.check(
        context,
        connection.utility,
        statement_key(connection_id, from_day, statement.run),
        statement,
    )
    before = period or BilledPeriod(from_day, statement.to_day, statement.run, 0, 0, ())
    ledger = Ledger(context, now)
    number = _enter(context, dues, ledger, terms, before, statement, now, first=period is None)
    if period is None:
        dues.billed_to(statement.to_day)
    for earlier in before.numbers:
        # Once measured readings have come, what was estimated counts: from a new term on.
        standing = dues.standing(earlier)
        if standing.estimated != statement.estimated:
            due_at = max(standing.due_at, _due_at(terms, now))
            dues.put(replace(standing, estimated=statement.estimated, due_at=due_at))
    claimed = number and statement.total_micro > before.total_micro
    put_period(
        context,
        connection_id,
        replace(
            before,
            run=statement.run,
            total_micro=statement.total_micro,
            drawn_wh=statement.drawn_wh,
            numbers=(*before.numbers, number) if claimed else before.numbers,
            banked_wh=statement.banked_wh,
            draws=statement.draws,
        ),
    )
    if statement.banked_wh or statement.draws or before.banked_wh or before.draws:
        reference = f"bill-{number or dues.account.last}"
        _settle_credits(context, ledger, terms, before, statement, reference)
    prepaid_before = supply.prepaid_of(context, connection_id)
    prepaid = prepayment.draw_energy(
        prepaid_before, terms.supplier, statement.drawn_wh - before.drawn_wh
    )
    credit = 0
    if terms.payment != "postpaid":
        credit = _pay_in_advance(context, dues, ledger, connection_id, number if claimed else 0)
        if period is None:
            days = period_days(from_day, statement.to_day)
            draw = Draw(from_day, days, statement.total_micro, statement.drawn_wh)
            prepaid = prepayment.after_bill(prepaid, draw)
        low = prepayment.is_low(terms, prepaid, credit, dues.open_micro())
        prepaid = replace(prepaid, low=low)
    ledger.write()
    dues.write()
    prepayment.put(context, connection_id, prepaid_before, prepaid)
    posted = _Posted(statement, number)
    context.put_state(gate, canonical_json(posted))
    _tell(context, dues, terms, posted, prepaid_before, prepaid, credit, now)
    return {
        "statement": statement,
        "number": number or None,
        "difference_micro": statement.total_micro - before.total_micro,
    }


def _settle_credits(
    context: Context,
    ledger: Ledger,
    terms: Supply,
    before: BilledPeriod,
    statement: Statement,
    reference: str,
) -> None:
    """Bank what a bill leaves of its export, and use what it takes of earlier bills' credits.

    Raises Conflict where the tariff banks nothing, or a credit hasn't that much left.
    """
    last_day = day_of(day_start(statement.to_day) - DAY_S)
    for day in (last_day, statement.from_day):
        at = supply.calendar_at(context, terms.region, day_start(day)).start_of(day)
        tariff = agreements.in_force(context, TARIFF, terms.tariff, at, Tariff)
        if tariff.banking_days:
            break
    else:
        if statement.banked_wh:
            raise Conflict(f"banked_wh is {statement.banked_wh}, but {terms.tariff} banks nothing")
    supplier = supplier_account(terms.supplier)
    credits.settle_bill(
        context,
        ledger,
        credits.of_bill(statement.connection_id, last_day, supplier, tariff),
        statement.banked_wh,
        (before.draws, statement.draws),
        reference,
    )


def _posted(context: Context, posted: _Posted) -> dict[str, Any]:
    difference = 0
    if posted.number:
        connection_id = posted.statement.connection_id
        difference = supply.document_of(context, connection_id, posted.number).total_micro
    return {
        "statement": posted.statement,
        "number": posted.number or None,
        "difference_micro": difference,
    }


def _check_order(
    dues: Dues, period: BilledPeriod | None, supplies: Supplies, statement: Statement
) -> None:
    """Raise Conflict unless the statement comes next: no day is billed twice or left out."""
    if period is not None:
        if statement.run <= period.run:
            raise Conflict(
                f"run {statement.run} of the bill from {period.from_day} on comes after run "
                f"{period.run} was posted"
            )
        if statement.to_day != period.to_day:
            raise Conflict(
                f"to_day is {statement.to_day}, but the bill from {period.from_day} on goes to "
                f"{period.to_day}"
            )
        return
    expected = dues.account.billed_to or supplies.versions[0].from_day
    if statement.from_day != expected:
        raise Conflict(
            f"from_day is {statement.from_day}, but {statement.connection_id} is billed up to "
            f"{expected}, and the next bill begins there"
        )


def _due_at(terms: Supply, now: int) -> int:
    return now if terms.payment != "postpaid" else now + terms.term_days * DAY_S


def _enter(
    context: Context,
    dues: Dues,
    ledger: Ledger,
    terms: Supply,
    before: BilledPeriod,
    statement: Statement,
    now: int,
    *,
    first: bool,
) -> int:
    """Enter the document of a statement, and pay out or take off what is negative; its number."""
    difference = statement.total_micro - before.total_micro
    if not first and difference == 0:
        return 0
    number = dues.next_number()
    paid_out = 0
    if difference > 0:
        dues.put(
            Standing(
                number,
                terms.supplier,
                difference,
                0,
                0,
                0,
                _due_at(terms, now),
                terms.payment != "postpaid",
                statement.estimated,
                0,
                0,
            )
        )
    elif difference < 0:
        left = -difference
        for earlier in reversed(before.numbers):
            part = min(left, dues.standing(earlier).claim_micro)
            if part:
                left -= part
                paid_out += dues.credit(ledger, earlier, part, f"bill-{number}")
        dues.pay_out(ledger, terms.supplier, left, f"bill-{number}")
        paid_out += left
    kind = "bill" if first else "adjustment" if difference > 0 else "credit_note"
    dues.add(
        Document(
            statement.connection_id,
            number,
            kind,
            terms.supplier,
            statement.from_day,
            statement.to_day,
            statement.run,
            difference,
            statement.estimated,
            statement.commitment,
            before.numbers[0] if before.numbers else None,
            paid_out,
            now,
            "",
        )
    )
    return number


def _pay_in_advance(
    context: Context, dues: Dues, ledger: Ledger, connection_id: str, number: int
) -> int:
    """Pay a posted bill out of the credit; what is left of the credit."""
    hold = supply.credit_of(context, connection_id)
    credit = hold.amount_micro if hold else 0
    if not number or not credit:
        return credit
    standing = dues.standing(number)
    part = min(credit, standing.open_micro)
    supplier = supplier_account(standing.supplier)
    transfer = Transfer(connection_id, supplier, part, "bill", f"bill-{number}")
    prepayment.pay_from_credit(ledger, context, connection_id, [transfer])
    dues.put(replace(standing, paid_micro=standing.paid_micro + part))
    return credit - part


def _tell(
    context: Context,
    dues: Dues,
    terms: Supply,
    posted: _Posted,
    prepaid_before: supply.Prepaid,
    prepaid: supply.Prepaid,
    credit: int,
    now: int,
) -> None:
    """Set the one event: a permit that changes, else a credit that became low, else the bill."""
    if permit.refresh(context, dues, terms, now, "credited") is not None:
        return
    connection_id = posted.statement.connection_id
    if prepaid.low and not prepaid_before.low:
        context.set_event(
            "prepayment_low",
            canonical_json(
                {
                    "connection_id": connection_id,
                    "credit_micro": credit,
                    "credit_wh": prepaid.energy_wh(terms.supplier),
                    "open_micro": dues.open_micro(),
                    "days_left": prepayment.days_left(
                        prepaid, terms.supplier, credit, dues.open_micro()
                    ),
                }
            ),
        )
        return
    context.set_event(
        "bill",
        canonical_json(
            {
                "connection_id": connection_id,
                "number": posted.number or None,
                "from_day": posted.statement.from_day,
                "to_day": posted.statement.to_day,
                "run": posted.statement.run,
                "total_micro": posted.statement.total_micro,
                "open_micro": dues.open_micro(),
            }
        ),
    )


def put_period(context: Context, connection_id: str, period: BilledPeriod) -> None:
    """Write what was billed for a period."""
    context.put_state(f"billperiod/{connection_id}/{period.from_day}", canonical_json(period))


# Credit notes


def credit_note(context: Context, document: Document, amount: int, reason: str) -> Document:
    """Write a credit note of its own, and restore the permit if that was what kept it."""
    now = settings.now(context, energy_settings(context))
    dues = Dues(context, document.connection_id)
    ledger = Ledger(context, now)
    note = add_credit_note(context, dues, ledger, document, amount, reason, now)
    ledger.write()
    dues.write()
    terms = supply.current_supply(context, document.connection_id, now)
    if permit.refresh(context, dues, terms, now, "credited") is None:
        context.set_event("credit_note", canonical_json(note))
    return note


def add_credit_note(
    context: Context,
    dues: Dues,
    ledger: Ledger,
    document: Document,
    amount: int,
    reason: str,
    now: int,
) -> Document:
    """Enter a credit note within a transaction that writes dues and ledger later.

    Raises InvalidArgument for more than the document has left.
    """
    number = dues.next_number()
    back = dues.credit(ledger, document.number, amount, f"bill-{number}")
    note = Document(
        document.connection_id,
        number,
        "credit_note",
        document.supplier,
        document.from_day,
        document.to_day,
        0,
        -amount,
        False,
        None,
        document.number,
        back,
        now,
        reason,
    )
    dues.add(note)
    return note
