"""Contract `billing`: supplies, posted bills, payments, disputes, credit notes, reminders.

A bill is computed in private by the utility that meters the home (`bill_records.py`); here its
total is posted, after every peer has checked that the utility committed to it. Nothing is ever
edited: a correction posts the difference between two computations of a period, a credit note takes
something off, and what was paid too much goes back at once. Periods follow one another without a
gap, so no day is billed twice and none is left out.

Everything that happens by the calendar (posting, reminding, warning, suspending) is an act that
whoever is entitled sends when it is due; sent twice it changes nothing. `billing:Acts` lists them.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    NotFound,
    RequestId,
    TransactionId,
    canonical_json,
    query,
    stored_record,
    transaction,
)

from ..assets.wallet import Amount, Ledger, Shard
from ..common import access, settings
from ..common.clock import DAY_S, Day, utc_text
from ..common.pages import Bookmark, page
from ..common.residence import require_day
from ..oversight import overseers
from ..registry.registry import Connection, connection_of, energy_settings
from . import permit, posting, supply
from .bill_basis import (
    Basis,
    Statement,
)
from .prepayment import Part, parts
from .supply import (
    Document,
    Dues,
    Number,
    Owed,
    Reason,
    Reasoned,
    Standing,
    Supplies,
    Supply,
)
from .supply_terms import SupplyOffer, agree, basis_of, offer_of

DISPUTE_TERM_DAYS = 7
"""After a dispute, its bill is due in so many days at the earliest."""


@dataclass(frozen=True, slots=True)
class Dispute:
    """What a home says is wrong with a bill."""

    connection_id: Identifier
    number: Number
    amount_micro: Amount
    """Frozen until the dispute ends."""
    reason: Reasoned
    opened_at: Instant
    state: Annotated[str, Choice("open", "resolved", "withdrawn")]
    credited_micro: Owed = 0
    answer: Reason = ""
    ended_at: Instant | None = None


@dataclass(frozen=True, slots=True)
class BillPayment:
    """A payment of bills."""

    connection_id: Identifier
    request_id: RequestId
    amount_micro: Amount
    paid: Annotated[tuple[Part, ...], AtMost(supply.MAX_OPEN)]
    left_micro: Owed
    """Of money from the bank: what no bill needed, and now is in the home's account."""
    transaction_id: TransactionId


class Billing(Contract):
    """Supplies and bills."""

    name: ClassVar[str] = "billing"

    # On what terms

    @transaction
    def agree_supply(self, context: Context, *, supply: Supply) -> SupplyOffer:
        """Offer a supply, or agree to exactly the one that is offered.

        It holds once supplier and home have agreed. The first supply of a connection by the
        utility that meters it holds without the home: somebody must supply it.
        """
        return agree(context, supply)

    @query
    def supplies(self, context: Context, *, connection_id: Identifier) -> Supplies:
        """The supplies that were agreed for a connection, the oldest first."""
        _sight(context, connection_id)
        return supply.supplies_of(context, connection_id)

    @query
    def offer(
        self, context: Context, *, connection_id: Identifier, from_day: Day
    ) -> SupplyOffer | None:
        """A supply from a day on that was offered or agreed; null if none was.

        Shown to whoever sees the connection's bills, and to whom the offer is from.
        """
        found = offer_of(context, connection_id, from_day)
        if found is None or found.supply.supplier != context.creator.msp_id:
            _sight(context, connection_id)
        return found

    @query
    def basis(
        self, context: Context, *, connection_id: Identifier, from_day: Day, to_day: Day
    ) -> Basis:
        """All that is public of what a bill is computed from."""
        if overseers.is_overseer(context):
            connection = connection_of(context, connection_id)
        else:
            connection = _sight(context, connection_id)
        return basis_of(context, connection, from_day, to_day)

    # Bills

    @transaction
    def post(self, context: Context, *, statement: Statement) -> dict[str, Any]:
        """Post a bill that was computed, or what a new computation adds or takes off."""
        return posting.post(context, statement)

    @transaction
    def credit(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        number: Number,
        amount_micro: Amount,
        reason: Reasoned,
        request_id: RequestId,
    ) -> Document:
        """Take something off a bill; a request counts once."""
        document = supply.document_of(context, connection_id, number)
        access.require_supplier(
            context.creator, document.supplier, f"credit bills of {connection_id}"
        )
        key = f"creditnote/{connection_id}/{request_id}"
        known = context.get_state(key)
        if known is not None:
            note = supply.document_of(context, connection_id, int(known))
            if (note.corrects, note.total_micro, note.reason) != (number, -amount_micro, reason):
                raise Conflict(f"request_id {request_id} is another credit note already")
            return note
        note = posting.credit_note(context, document, amount_micro, reason)
        context.put_state(key, str(note.number).encode())
        return note

    @transaction
    def cancel(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        number: Number,
        reason: Reasoned,
    ) -> Document:
        """Take a bill off in full, so that its period is billed anew by the next computation."""
        document = supply.document_of(context, connection_id, number)
        access.require_supplier(
            context.creator, document.supplier, f"cancel bills of {connection_id}"
        )
        key = f"cancelled/{connection_id}/{number}"
        known = context.get_state(key)
        if known is not None:
            return supply.document_of(context, connection_id, int(known))
        claim = Dues(context, connection_id).standing(number).claim_micro
        if not claim:
            raise Conflict(f"bill {number} of {connection_id} was credited in full already")
        note = posting.credit_note(context, document, claim, reason)
        context.put_state(key, str(note.number).encode())
        period = supply.period_of(context, connection_id, document.from_day)
        assert period is not None
        posting.put_period(
            context, connection_id, replace(period, total_micro=period.total_micro - claim)
        )
        return note

    # Disputes

    @transaction
    def dispute(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        number: Number,
        amount_micro: Amount,
        reason: Reasoned,
    ) -> Dispute:
        """Say that a bill is wrong by an amount, which isn't due until that is resolved.

        Until its final notice: that writes what this reads, so that of both in one block the
        second fails, whatever the clocks say.
        """
        supply.require_home(context, connection_id, f"dispute bills of {connection_id}")
        now = _now(context)
        before = _dispute(context, connection_id, number)
        if before is not None:
            if (before.amount_micro, before.reason) != (amount_micro, reason):
                raise Conflict(f"bill {number} of {connection_id} is disputed already: once each")
            return before
        dues = Dues(context, connection_id)
        standing = dues.standing(number)
        if amount_micro > standing.claim_micro:
            raise InvalidArgument(
                f"amount_micro is {amount_micro}, but bill {number} comes to {standing.claim_micro}"
            )
        if standing.dunning == 2:
            raise Conflict(
                f"bill {number} of {connection_id} had its final notice at "
                f"{utc_text(standing.dunned_at)}, until which it could be disputed"
            )
        dues.put(replace(standing, disputed_micro=amount_micro))
        dues.write()
        opened = Dispute(connection_id, number, amount_micro, reason, now, "open")
        _put_dispute(context, opened)
        terms = supply.current_supply(context, connection_id, now)
        if permit.refresh(context, dues, terms, now, "disputed") is None:
            context.set_event("dispute", canonical_json(opened))
        return opened

    @transaction
    def withdraw_dispute(
        self, context: Context, *, connection_id: Identifier, number: Number
    ) -> Dispute:
        """Take a dispute back; its amount is due as before. Again changes nothing."""
        supply.require_home(context, connection_id, f"withdraw disputes of {connection_id}")
        found = _required_dispute(context, connection_id, number)
        if found.state == "withdrawn":
            return found
        _require_open(found)
        dues = Dues(context, connection_id)
        dues.put(replace(dues.standing(number), disputed_micro=0))
        dues.write()
        ended = replace(found, state="withdrawn", ended_at=_now(context))
        _put_dispute(context, ended)
        context.set_event("dispute", canonical_json(ended))
        return ended

    @transaction
    def resolve(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        number: Number,
        credited_micro: Owed,
        answer: Reasoned,
    ) -> Dispute:
        """End a dispute: credit what was wrong; the rest is due again after a new term."""
        document = supply.document_of(context, connection_id, number)
        access.require_supplier(
            context.creator, document.supplier, f"resolve disputes of {connection_id}"
        )
        found = _required_dispute(context, connection_id, number)
        if found.state == "resolved":
            if (found.credited_micro, found.answer) != (credited_micro, answer):
                raise Conflict(f"the dispute of bill {number} was resolved already, differently")
            return found
        _require_open(found)
        if credited_micro > found.amount_micro:
            raise InvalidArgument(
                f"credited_micro is {credited_micro}, but {found.amount_micro} are disputed; "
                "billing:Credit takes off more"
            )
        now = _now(context)
        terms = supply.supply_on(context, connection_id, document.from_day)
        dues = Dues(context, connection_id)
        standing = dues.standing(number)
        days = max(terms.term_days, DISPUTE_TERM_DAYS)
        dues.put(
            replace(
                standing,
                disputed_micro=0,
                dunning=0,
                dunned_at=0,
                due_at=max(standing.due_at, now + days * DAY_S),
            )
        )
        # A correction may have taken off a part of it in the meantime.
        credited = min(credited_micro, standing.claim_micro)
        ledger = Ledger(context, now)
        if credited:
            posting.add_credit_note(context, dues, ledger, document, credited, answer, now)
        ledger.write()
        dues.write()
        ended = replace(
            found, state="resolved", credited_micro=credited_micro, answer=answer, ended_at=now
        )
        _put_dispute(context, ended)
        current = supply.current_supply(context, connection_id, now)
        if permit.refresh(context, dues, current, now, "credited") is None:
            context.set_event("dispute", canonical_json(ended))
        return ended

    # Payment

    @transaction
    def pay(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        amount_micro: Amount,
        request_id: RequestId,
        number: Number | None = None,
        shard: Shard = 0,
    ) -> BillPayment:
        """Pay bills out of the home's account, one by its number or those due first.

        The same request pays once. A permit that nothing keeps any more is restored with it.
        """
        supply.require_home(context, connection_id, f"pay bills of {connection_id}")
        key = f"billpayment/{connection_id}/home/{request_id}"
        known = _known_payment(context, key, amount_micro)
        if known is not None:
            return known
        now = _now(context)
        dues = Dues(context, connection_id)
        there = dues.open_micro() if number is None else dues.standing(number).open_micro
        if amount_micro > there:
            which = "its bills" if number is None else f"bill {number}"
            raise Conflict(
                f"amount_micro is {amount_micro}, but of {which} {there} are open for "
                f"{connection_id}"
            )
        ledger = Ledger(context, now)
        paid = dues.pay(ledger, amount_micro, number=number, shard=str(shard), reference=request_id)
        ledger.write()
        return _paid(context, dues, key, connection_id, amount_micro, paid, now)

    @transaction
    def receive(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        amount_micro: Amount,
        bank_reference: Identifier,
        number: Number | None = None,
    ) -> BillPayment:
        """Enter money that arrived at a supplier's bank for its bills; a reference counts once.

        What no bill needs stays in the home's account.
        """
        supplier = context.creator.msp_id
        connection_of(context, connection_id)
        suppliers = [each.supplier for each in supply.supplies_of(context, connection_id).versions]
        access.require(
            supplier in suppliers and access.is_operator(context.creator, supplier),
            context.creator,
            f"enter payments of {connection_id}",
            "operators of its suppliers",
        )
        key = f"billpayment/{connection_id}/{supplier}/{bank_reference}"
        known = _known_payment(context, key, amount_micro)
        if known is not None:
            return known
        now = _now(context)
        dues = Dues(context, connection_id)
        ledger = Ledger(context, now)
        if number is not None:
            dues.standing(number)
        arrived = supply.take_bank_reference(
            context, supplier, bank_reference, connection_id, amount_micro
        )
        wanted = sum(
            each.open_micro
            for each in dues.open()
            if each.supplier == supplier and number in (None, each.number)
        )
        used = min(wanted, amount_micro)
        ledger.transfer(replace(arrived, amount_micro=used), into_shard=supply.PASSING)
        ledger.transfer(replace(arrived, amount_micro=amount_micro - used))
        paid = dues.pay(
            ledger,
            used,
            number=number,
            supplier=supplier,
            shard=supply.PASSING,
            reference=bank_reference,
        )
        ledger.write()
        return _paid(context, dues, key, connection_id, amount_micro, paid, now)

    # Reminders

    @transaction
    def dun(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        number: Number,
        step: Annotated[int, Integer(1, 2)],
    ) -> Standing:
        """Remind of a bill (1) or give final notice (2), in order; again changes nothing."""
        dues = Dues(context, connection_id)
        standing = dues.standing(number)
        access.require_supplier(context.creator, standing.supplier, f"remind {connection_id}")
        if standing.dunning >= step:
            return standing
        now = _now(context)
        terms = supply.current_supply(context, connection_id, now)
        rules = permit.required_rules(context, terms.region, now)
        problem = _no_dunning(standing, step)
        if problem:
            raise Conflict(f"bill {number} of {connection_id} {problem}")
        due = permit.dunning_at(rules, standing, step)
        if now - permit.CLOCK_DOUBT_S < due:
            raise Conflict(
                f"step {step} of bill {number} comes at {utc_text(due)} and an hour more, but the "
                f"channel's time is {utc_text(now)}"
            )
        changed = replace(standing, dunning=step, dunned_at=now)
        dues.put(changed)
        dues.write()
        context.set_event(
            "reminder", canonical_json({"connection_id": connection_id, "standing": changed})
        )
        return changed

    # Looking

    @query
    def bill(
        self, context: Context, *, connection_id: Identifier, number: Number
    ) -> dict[str, Any]:
        """A bill, what has become of it, and its dispute."""
        seen = supply.seen_bills(context, connection_id)
        document = supply.document_of(context, connection_id, number)
        require_day(context.creator, seen, document.from_day, f"see bills of {connection_id}")
        return self._with_standing(context, document)

    @query
    def bills(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """A connection's bills and credit notes, the oldest first; for a home those of its time."""
        seen = supply.seen_bills(context, connection_id)
        items, following = page(context, f"bill/{connection_id}/", "", limit, bookmark)
        documents = [stored_record(Document, value) for _, value in items]
        return {
            "bills": [
                self._with_standing(context, document)
                for document in documents
                if seen.on(document.from_day)
            ],
            "bookmark": following,
        }

    @query
    def account(self, context: Context, *, connection_id: Identifier) -> dict[str, Any]:
        """What a connection owes: its open bills, those due first."""
        _sight(context, connection_id)
        now = _now(context)
        dues = Dues(context, connection_id)
        return {
            "connection_id": connection_id,
            "billed_to": dues.account.billed_to,
            "open_micro": dues.open_micro(),
            "due_micro": dues.due_micro(now),
            "disputed_micro": sum(each.disputed_micro for each in dues.open()),
            "open": dues.open(),
            "currency": energy_settings(context).currency,
        }

    @query
    def acts(
        self,
        context: Context,
        *,
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """What the caller's utility, as a supplier, should send now, connection by connection.

        `limit` is how many connections are looked at. Where an act's answer is for another one
        (bill:Compute's statement, protection:Clear's clearance), `then` names that.
        """
        supplier = context.creator.msp_id
        access.require_supplier(context.creator, supplier, f"see the acts of {supplier}")
        now = _now(context)
        items, following = page(context, "supply/", "", limit, bookmark)
        found: list[dict[str, Any]] = []
        for key, value in items:
            found += acts_of(
                context, key.removeprefix("supply/"), stored_record(Supplies, value), supplier, now
            )
        return {"acts": found, "bookmark": following}

    @staticmethod
    def _with_standing(context: Context, document: Document) -> dict[str, Any]:
        stored = context.get_state(f"due/{document.connection_id}/{document.number:06d}")
        return {
            "document": document,
            "standing": None if stored is None else stored_record(Standing, stored),
            "dispute": _dispute(context, document.connection_id, document.number),
        }


def _now(context: Context) -> int:
    return settings.now(context, energy_settings(context))


def _sight(context: Context, connection_id: str) -> Connection:
    return supply.require_sight(context, connection_id)


# Disputes


def _dispute(context: Context, connection_id: str, number: int) -> Dispute | None:
    stored = context.get_state(f"dispute/{connection_id}/{number}")
    return None if stored is None else stored_record(Dispute, stored)


def _required_dispute(context: Context, connection_id: str, number: int) -> Dispute:
    found = _dispute(context, connection_id, number)
    if found is None:
        raise NotFound(f"bill {number} of {connection_id} is not disputed")
    return found


def _require_open(found: Dispute) -> None:
    if found.state != "open":
        raise Conflict(
            f"the dispute of bill {found.number} of {found.connection_id} was {found.state} already"
        )


def _put_dispute(context: Context, found: Dispute) -> None:
    context.put_state(f"dispute/{found.connection_id}/{found.number}", canonical_json(found))


# Payments


def _known_payment(context: Context, key: str, amount: int) -> BillPayment | None:
    stored = context.get_state(key)
    if stored is None:
        return None
    known = stored_record(BillPayment, stored)
    if known.amount_micro != amount:
        raise Conflict(
            f"{known.request_id} is a payment of {known.amount_micro} micro-units already"
        )
    return known


def _paid(
    context: Context,
    dues: Dues,
    key: str,
    connection_id: str,
    amount: int,
    paid: list[tuple[int, int]],
    now: int,
) -> BillPayment:
    """Write a payment; restore the permit if that was what kept it."""
    dues.write()
    payment = BillPayment(
        connection_id,
        key.rpartition("/")[2],
        amount,
        parts(paid),
        amount - sum(part for _, part in paid),
        context.transaction_id,
    )
    context.put_state(key, canonical_json(payment))
    terms = supply.current_supply(context, connection_id, now)
    if permit.refresh(context, dues, terms, now, "paid") is None:
        context.set_event("payment", canonical_json(payment))
    return payment


# What is due to be done


def _no_dunning(standing: Standing, step: int) -> str:
    """Why a bill isn't reminded of, or nothing."""
    if not standing.undisputed_micro:
        return "has nothing open that isn't disputed"
    if standing.prepaid:
        return "is prepaid; permit:Warn follows when its credit is used up"
    if step == 2 and standing.estimated:
        return "is estimated; its final notice waits for measured readings"
    if step == 2 and standing.dunning != 1:
        return "was not reminded of yet, which is step 1"
    return ""


def acts_of(
    context: Context, connection_id: str, supplies: Supplies, supplier: str, now: int
) -> list[dict[str, Any]]:
    """The acts that a supplier should send for one connection."""
    dues = Dues(context, connection_id)
    found: list[dict[str, Any]] = []

    def act(function: str, since: int, then: str | None = None, **argument: object) -> None:
        found.append(
            {
                "function": function,
                "argument": {"connection_id": connection_id, **argument},
                "since": since,
                "then": then,
            }
        )

    first = dues.account.billed_to or supplies.versions[0].from_day
    terms = supplies.on(first)
    assert terms is not None
    if terms.supplier == supplier:
        end = supply.period_end(supplies, first)
        over = _known_start(context, terms.region, end, now)
        if over is not None and over <= now:
            act("bill:Compute", over, "billing:Post", from_day=first, to_day=end, run=1)
    current = supply.current_supply(context, connection_id, now)
    rules = permit.rules_at(context, current.region, now)
    if rules is None:
        return found
    sure = now - permit.CLOCK_DOUBT_S
    for each in dues.open():
        step = each.dunning + 1
        if each.supplier == supplier and step <= 2 and not _no_dunning(each, step):
            at = permit.dunning_at(rules, each, step)
            if at <= sure:
                act("billing:Dun", at, number=each.number, step=step)
    if current.supplier != supplier:
        return found
    found_permit = permit.permit_of(context, connection_id)
    creditor = permit.creditor_of(context, current)
    if found_permit.state == "granted":
        if permit.warnable_micro(dues, rules, sure, creditor) >= rules.min_due_micro:
            act("permit:Warn", now)
        return found
    if dues.enforceable_micro(now, creditor) < rules.min_due_micro:
        act("permit:Restore", now)
    elif found_permit.state != "suspended":
        step_name, at_next = permit.next_step(rules, found_permit, dues, now, creditor)
        then = {"limitation": "permit:Limit", "suspension": "permit:Suspend"}.get(step_name)
        if at_next is not None and at_next <= sure and then is not None:
            act("protection:Clear", at_next, then)
    return found


def _known_start(context: Context, region: str, day: str, now: int) -> int | None:
    """When a local day begins; None where the calendar doesn't say."""
    try:
        return supply.calendar_at(context, region, now).start_of(day)
    except NotFound:
        return None
