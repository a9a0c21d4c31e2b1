"""Contract `challenge`: what a utility settles and bills alone, put in question in public.

A utility settles days and computes bills where the readings are, alone; the channel has the
commitments. There are two ways to put that in question:

- *proved*: its home, or another member to whom a record was opened, shows it here: that it is the
  one committed to, and which line every peer computes otherwise. A part of a day is enough.
- *demanded*: the home, a member or an overseer wants one interval to be opened, or a bill.

The challenged utility answers by showing the record to the peers that endorse, within `ANSWER_S`.
What becomes of it stands on the ledger: it *holds*, it is *wrong* (with the line), it was *refuted*
(the readings were corrected only after the day was posted), *corrected* by a later run, or it is
*unanswered*. What is opened travels as transient data to the peers that endorse, and what stays on
the ledger names the interval and the line and no energy.

    challenge/{connection}/{settlement|bill}/{period}/{run}              a proved one, once
    challenge/{connection}/{settlement|bill}/{period}/{run}/{interval}   a demanded one, once
    demanded/{connection}/{day}         which intervals others than the home have demanded
    challenged/{utility}/…              what is not resolved, under the rest of its key
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
    LimitExceeded,
    MspId,
    NotFound,
    Text,
    TransactionId,
    canonical_json,
    query,
    read_record,
    stored_json,
    stored_record,
    transaction,
)

from ..billing.bill_basis import BillRecord, record_key
from ..billing.tariffs import Money
from ..common import access, settings
from ..common.clock import DAY_S, Day, utc_text
from ..common.commitments import Commitment
from ..common.pages import Bookmark, listed, page
from ..market import gates
from ..registry import homes
from ..registry.registry import connection_of, energy_settings
from ..settlement import communities
from ..settlement.days import Difference, summary_key
from ..settlement.settlement import Posted, day_inputs, day_key
from . import overseers
from .opened import (
    Found,
    Opening,
    check_as_read,
    check_bill,
    check_day,
    committed_to,
    covers,
    inputs_of,
    lacks_readings,
)

ANSWER_S = 7 * DAY_S
"""How long the challenged utility has."""
MAX_DEMANDED = 4
"""Intervals of a home's day that others than the home may demand: more would tell how it lives."""
RESOLVED = ("holds", "refuted", "corrected")
_ID = r"settlement/[0-9-]{10}/[a-z0-9-]{1,20}(/[0-9]{12})?|bill/[0-9-]{10}/[0-9]{1,2}(/demand)?"

ChallengeId = Annotated[
    str, Text(_ID, "a challenge's id such as settlement/2026-11-22/final/001795305600")
]
Outcome = Annotated[str, Choice("open", "holds", "wrong", "refuted", "corrected", "unanswered")]


@dataclass(frozen=True, slots=True)
class Named:
    """Which line is wrong, and by how much; no energy."""

    interval_start: Instant | None
    """None: it is in the sums, or of a bill."""
    kind: Annotated[str, Text(r"[a-z_]{1,16}", "a kind of line")]
    name: Annotated[str, Text(r"[A-Za-z0-9/. -]{0,100}", "a counterparty, meter or line")]
    off_by_micro: Money


@dataclass(frozen=True, slots=True)
class Challenge:
    """A committed record that is in question, and what has become of that."""

    challenge_id: ChallengeId
    connection_id: Identifier
    utility: MspId
    """Who committed to it."""
    of: Annotated[str, Choice("settlement", "bill")]
    period: Day
    """The day, or the first day of the bill."""
    run: Annotated[str, Text(r"[a-z0-9-]{1,20}", "a run")]
    commitment: Commitment
    begun: Annotated[str, Choice("proved", "demanded")]
    interval_start: Instant | None
    """Of a settlement: which is demanded, or wrong."""
    difference: Named | None
    """Which line is wrong; None: none is known to be."""
    raised_by: MspId
    raised_at: Instant
    answer_by: Instant
    transaction_id: TransactionId
    outcome: Outcome = "open"
    by_run: Annotated[str, Text(r"[a-z0-9-]{1,20}", "a run")] | None = None
    """Of a corrected one: the run that puts it right."""
    answered_at: Instant | None = None
    late: bool = False
    """The answer came after `answer_by`."""
    answer_id: TransactionId | None = None


@dataclass(frozen=True, slots=True)
class _Demanded:
    intervals: Annotated[tuple[Instant, ...], AtMost(MAX_DEMANDED)] = ()


def _key(connection_id: str, challenge_id: str) -> str:
    return f"challenge/{connection_id}/{challenge_id}"


def _store(context: Context, challenge: Challenge) -> Challenge:
    """Write it, and whether it is resolved."""
    key = _key(challenge.connection_id, challenge.challenge_id)
    context.put_state(key, canonical_json(challenge))
    listed_as = f"challenged/{challenge.utility}/{key.removeprefix('challenge/')}"
    there = context.get_state(listed_as) is not None
    if challenge.outcome in RESOLVED:
        if there:
            context.del_state(listed_as)
    elif not there:
        context.put_state(listed_as, canonical_json({"answer_by": challenge.answer_by}))
    context.set_event("challenge", canonical_json(challenge))
    return challenge


def _named(one: Difference) -> Named:
    return Named(one.interval_start, one.kind, one.counterparty, one.off_by_micro)


def overdue(context: Context) -> list[dict[str, Any]]:
    """Calls that note which challenges nobody has answered in time. In queries only."""
    found = []
    for key, value in context.range("challenged/", "challenged0"):
        noted = stored_json(value)
        assert isinstance(noted, dict)
        if not gates.is_over(context, int(str(noted["answer_by"]))):
            continue
        _, _, connection_id, challenge_id = key.split("/", 3)
        stored = context.get_state(_key(connection_id, challenge_id))
        if stored is not None and stored_record(Challenge, stored).outcome == "open":
            argument = {"connection_id": connection_id, "challenge_id": challenge_id}
            found.append({"function": "challenge:Lapse", "argument": argument})
    return found


def _order(run: str) -> int:
    """A bill's runs are numbers; a day's are provisional, final, adjustment-1 and so on."""
    if run in ("provisional", "final"):
        return ("provisional", "final").index(run)
    return int(run) if run.isdigit() else 1 + int(run.rpartition("-")[2])


class Challenges(Contract):
    """Checking opened records, putting them in question, and answering."""

    name: ClassVar[str] = "challenge"

    @query
    def check(self, context: Context, *, opening: Opening) -> dict[str, Any]:
        """Whether an opened part of a day is of the committed one, and what of it is wrong."""
        return check_day(context, opening).answer()

    @query
    def check_bill(self, context: Context, *, bill: BillRecord) -> dict[str, Any]:
        """Whether an opened bill is the committed one, and which line is wrong."""
        return check_bill(context, bill).answer()

    # Putting in question

    @transaction
    def raise_(self, context: Context) -> Challenge:
        """Name a wrong line of a committed day; the opening travels as transient data."""
        opening = self._opening(context)
        summary = opening.summary
        return self._raise(
            context,
            check_day(context, opening),
            (summary.connection_id, summary.utility, "settlement", summary.day, summary.run),
        )

    @transaction
    def raise_bill(self, context: Context) -> Challenge:
        """Name a wrong line of a committed bill; the bill travels as transient data."""
        bill = self._bill(context)
        utility = connection_of(context, bill.connection_id).utility
        return self._raise(
            context,
            check_bill(context, bill),
            (bill.connection_id, utility, "bill", bill.from_day, str(bill.run)),
        )

    @staticmethod
    def _opening(context: Context) -> Opening:
        if "opening" not in context.transient:
            raise InvalidArgument("the transient data has no entry named opening")
        return read_record(Opening, context.transient["opening"], "opening")

    @staticmethod
    def _bill(context: Context) -> BillRecord:
        if "bill" not in context.transient:
            raise InvalidArgument("the transient data has no entry named bill")
        return read_record(BillRecord, context.transient["bill"], "bill")

    def _raise(
        self, context: Context, found: Found, record: tuple[str, str, str, str, str]
    ) -> Challenge:
        connection_id, utility, of, period, run = record
        what = f"the {of} of {connection_id} for {period}, run {run},"
        if not found.committed:
            raise Conflict(f"{what} is not the one that {utility} has committed to")
        if found.difference is None:
            raise Conflict(f"{what} holds as far as it was opened; there is nothing to challenge")
        challenge_id = f"{of}/{period}/{run}"
        stored = context.get_state(_key(connection_id, challenge_id))
        if stored is not None:
            known = stored_record(Challenge, stored)
            if known.commitment == found.commitment:
                return known
        now = settings.now(context, energy_settings(context))
        named = _named(found.difference)
        return _store(
            context,
            Challenge(
                challenge_id,
                connection_id,
                utility,
                of,
                period,
                run,
                found.commitment,
                "proved",
                named.interval_start,
                named,
                context.creator.msp_id,
                now,
                now + ANSWER_S,
                context.transaction_id,
            ),
        )

    @transaction
    def demand(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        utility: MspId,
        day: Day,
        run: Annotated[str, Text(r"[a-z0-9-]{1,20}", "a run")],
        interval_start: Instant,
    ) -> Challenge:
        """Demand that a utility opens one interval of a committed day; again changes nothing."""
        at_home = self._require_demander(context, connection_id, "intervals", anybody=True)
        challenge_id = f"settlement/{day}/{run}/{interval_start:012d}"
        stored = context.get_state(_key(connection_id, challenge_id))
        if stored is not None:
            return stored_record(Challenge, stored)
        inputs = day_inputs(
            context, utility, day, communities.with_members(context, connection_id, day)
        )
        now = settings.now(context, energy_settings(context))
        if (
            not inputs.from_ <= interval_start < inputs.to
            or (interval_start - inputs.from_) % inputs.interval_s
        ):
            raise InvalidArgument(
                f"interval_start is {interval_start}, but must be an interval of {day}"
            )
        if now > inputs.adjustable_until:
            raise Conflict(
                f"day {day} could be put in question until {utc_text(inputs.adjustable_until)}, as "
                f"long as it is adjusted, and the channel's time is {utc_text(now)}"
            )
        commitment = committed_to(context, utility, summary_key(day, run, connection_id))
        if commitment is None:
            raise NotFound(f"{utility} has committed to no {run} settlement of {connection_id} "
                           f"for {day}")  # fmt: skip
        if not at_home:
            self._count_demand(context, connection_id, day, interval_start)
        return self._demanded(
            context, challenge_id, connection_id, utility, commitment, interval_start
        )

    @transaction
    def demand_bill(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        from_day: Day,
        run: Annotated[int, Integer(1, 99)] = 1,
    ) -> Challenge:
        """Demand that a bill is shown to the peers and computed again; again changes nothing."""
        self._require_demander(context, connection_id, "a bill", anybody=False)
        challenge_id = f"bill/{from_day}/{run}/demand"
        stored = context.get_state(_key(connection_id, challenge_id))
        if stored is not None:
            return stored_record(Challenge, stored)
        utility = connection_of(context, connection_id).utility
        key = record_key(connection_id, from_day, run)
        commitment = committed_to(context, utility, key)
        if commitment is None:
            raise NotFound(f"{utility} has committed to no run {run} of a bill of {connection_id} "
                           f"from {from_day}")  # fmt: skip
        return self._demanded(context, challenge_id, connection_id, utility, commitment, None)

    @staticmethod
    def _require_demander(
        context: Context, connection_id: str, what: str, *, anybody: bool
    ) -> bool:
        """Whether the home demands it; raises Forbidden."""
        connection = connection_of(context, connection_id)
        creator = context.creator
        at_home = homes.is_home(context, connection)
        access.require(
            at_home
            or (anybody and access.is_operator(creator, creator.msp_id))
            or overseers.is_overseer(context),
            creator,
            f"demand {what} of {connection_id} to be opened",
            "its home, operators of any utility, regulators and auditors"
            if anybody
            else "its home, regulators and auditors",
        )
        return at_home

    @staticmethod
    def _count_demand(context: Context, connection_id: str, day: str, interval_start: int) -> None:
        key = f"demanded/{connection_id}/{day}"
        stored = context.get_state(key)
        before = () if stored is None else stored_record(_Demanded, stored).intervals
        if interval_start in before:
            return
        if len(before) == MAX_DEMANDED:
            raise LimitExceeded(
                f"others than its home have demanded {MAX_DEMANDED} intervals of {connection_id} "
                f"on {day}, the limit"
            )
        context.put_state(key, canonical_json(_Demanded((*before, interval_start))))

    @staticmethod
    def _demanded(
        context: Context,
        challenge_id: str,
        connection_id: str,
        utility: str,
        commitment: str,
        interval_start: int | None,
    ) -> Challenge:
        of, period, run = challenge_id.split("/")[:3]
        now = settings.now(context, energy_settings(context))
        return _store(
            context,
            Challenge(
                challenge_id,
                connection_id,
                utility,
                of,
                period,
                run,
                commitment,
                "demanded",
                interval_start,
                None,
                context.creator.msp_id,
                now,
                now + ANSWER_S,
                context.transaction_id,
            ),
        )

    # Answering

    @transaction
    def answer(
        self, context: Context, *, connection_id: Identifier, challenge_id: ChallengeId
    ) -> Challenge:
        """Show what is in question, or the later run that puts it right; as transient data.

        Once it is resolved, again changes nothing.
        """
        found = self._found(context, connection_id, challenge_id)
        access.require_operator(
            context.creator, found.utility, f"answer challenges of {found.utility}"
        )
        if found.outcome in RESOLVED:
            return found
        if found.of == "bill":
            outcome, by_run, difference = self._bill_outcome(context, found)
        else:
            outcome, by_run, difference = self._day_outcome(context, found)
        now = settings.now(context, energy_settings(context))
        return _store(
            context,
            replace(
                found,
                outcome=outcome,
                by_run=by_run,
                difference=difference,
                answered_at=now,
                late=found.outcome == "unanswered" or gates.is_over(context, found.answer_by),
                answer_id=context.transaction_id,
            ),
        )

    def _day_outcome(
        self, context: Context, found: Challenge
    ) -> tuple[str, str | None, Named | None]:
        opening = self._opening(context)
        summary = opening.summary
        shown = (summary.connection_id, summary.day, summary.utility)
        if shown != (found.connection_id, found.period, found.utility):
            raise InvalidArgument("opening is of another connection, day or utility")
        what = f"the settlement of {found.connection_id} for {found.period}, run {summary.run},"
        if opening.arrivals:
            self._refute(context, found, opening)
            return "refuted", None, found.difference
        checked = check_day(context, opening)
        if not checked.committed:
            raise Conflict(f"{what} is not the one that {found.utility} has committed to")
        inputs = inputs_of(context, opening)
        if not covers(inputs, opening, found.interval_start):
            where = "all of the day" if found.interval_start is None else str(found.interval_start)
            raise InvalidArgument(f"opening.windows doesn't show {where}, which is in question")
        if found.interval_start is not None:
            lacking = lacks_readings(context, inputs, opening, found.interval_start)
            if lacking:
                raise InvalidArgument(
                    f"opening.readings has none of meter {lacking[0]} for "
                    f"{utc_text(found.interval_start)}"
                )
        difference = None if checked.difference is None else _named(checked.difference)
        if summary.run == found.run and checked.commitment == found.commitment:
            if found.begun == "proved":
                raise Conflict(
                    f"{what} was shown to be wrong; what answers that is a later run that was "
                    "posted, or that its readings were corrected later"
                )
            return ("holds" if difference is None else "wrong"), None, difference
        self._require_later(found, summary.run)
        if context.get_state(summary_key(summary.day, summary.run, summary.connection_id)) is None:
            raise Conflict(f"{what} is not posted")
        if difference is not None:
            raise Conflict(
                f"{what} is wrong itself, at {difference.interval_start}: {difference.kind} "
                f"{difference.name}"
            )
        return "corrected", summary.run, found.difference

    @staticmethod
    def _refute(context: Context, found: Challenge, opening: Opening) -> None:
        """Raise Conflict or InvalidArgument unless the readings were corrected only later."""
        named = found.difference
        if named is None or named.kind != "reading" or named.interval_start is None:
            raise InvalidArgument(
                "opening.arrivals is for a line of kind reading that was shown to be wrong"
            )
        # Its own readings are not the last, which is the point; the lines are checked without them.
        checked = check_day(context, replace(opening, readings=(), arrivals=()))
        if not checked.committed or checked.commitment != found.commitment:
            raise Conflict("opening is not of the record that is in question")
        if checked.difference is not None:
            raise Conflict(
                f"the line {checked.difference.kind} {checked.difference.counterparty} is wrong, "
                "whatever was read"
            )
        stored = context.get_state(day_key(found.connection_id, found.period))
        posted = None if stored is None else stored_record(Posted, stored)
        if posted is None or posted.run != found.run:
            raise Conflict(
                f"run {found.run} of {found.period} isn't the last that was posted, so it is "
                "answered by a later run, not by when readings were corrected"
            )
        check_as_read(context, opening, named.interval_start, posted.posted_at)

    def _bill_outcome(
        self, context: Context, found: Challenge
    ) -> tuple[str, str | None, Named | None]:
        bill = self._bill(context)
        if (bill.connection_id, bill.from_day) != (found.connection_id, found.period):
            raise InvalidArgument("bill is of another connection or period")
        what = f"the bill of {found.connection_id} from {found.period}, run {bill.run},"
        checked = check_bill(context, bill)
        if not checked.committed:
            raise Conflict(f"{what} is not the one that {found.utility} has committed to")
        difference = None if checked.difference is None else _named(checked.difference)
        if str(bill.run) == found.run and checked.commitment == found.commitment:
            if found.begun == "proved":
                raise Conflict(
                    f"{what} was shown to be wrong; what answers that is a later run that was "
                    "posted"
                )
            return ("holds" if difference is None else "wrong"), None, difference
        self._require_later(found, str(bill.run))
        if context.get_state(f"posted/{bill.connection_id}/{bill.from_day}/{bill.run}") is None:
            raise Conflict(f"{what} is not posted")
        if difference is not None:
            raise Conflict(f"{what} is wrong itself: {difference.kind} {difference.name}")
        return "corrected", str(bill.run), found.difference

    @staticmethod
    def _require_later(found: Challenge, run: str) -> None:
        if _order(run) <= _order(found.run):
            raise InvalidArgument(f"run {run} doesn't come after {found.run}, which is in question")

    @transaction
    def lapse(
        self, context: Context, *, connection_id: Identifier, challenge_id: ChallengeId
    ) -> Challenge:
        """Note that nobody has answered in time; again changes nothing."""
        found = self._found(context, connection_id, challenge_id)
        access.require_member(context.creator, "note what wasn't answered")
        if found.outcome != "open":
            return found
        now = settings.now(context, energy_settings(context))
        if now < found.answer_by or not gates.is_over(context, found.answer_by):
            raise Conflict(
                f"{found.utility} may answer until {utc_text(found.answer_by)}, and the channel's "
                f"time is {utc_text(now)}, or no agent has written that time's gate yet"
            )
        return _store(context, replace(found, outcome="unanswered"))

    @staticmethod
    def _found(context: Context, connection_id: str, challenge_id: str) -> Challenge:
        stored = context.get_state(_key(connection_id, challenge_id))
        if stored is None:
            raise NotFound(f"{connection_id} has no challenge {challenge_id}")
        return stored_record(Challenge, stored)

    # Looking

    @query
    def list_(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        limit: Annotated[int, Integer(1, 100)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """What was put in question of a connection's days and bills, and what became of it."""
        connection_of(context, connection_id)
        return listed(
            context, "challenges", Challenge, f"challenge/{connection_id}/", "", limit, bookmark
        )

    @query
    def unresolved(
        self,
        context: Context,
        *,
        utility: MspId,
        limit: Annotated[int, Integer(1, 100)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """What a utility has yet to answer, or to put right."""
        prefix = f"challenged/{utility}/"
        items, following = page(context, prefix, "", limit, bookmark)
        found = []
        for key, _ in items:
            connection_id, challenge_id = key.removeprefix(prefix).split("/", 1)
            found.append(self._found(context, connection_id, challenge_id))
        return {"utility": utility, "challenges": found, "bookmark": following}
