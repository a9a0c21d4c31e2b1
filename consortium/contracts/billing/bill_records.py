"""Contract `bill` of chaincode `metering`: bills as a utility computes them, in private.

The readings stay where they are. What comes out is a private record with every line, for the home
and its utility, and a statement of the total with the record's hash, which `energy` posts after
checking that it is the one committed to here. Where the tariff has a social one, a second private
record says what of the bill the home needn't bear (`Relief`).
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from consortium.chaincode.api import (
    Conflict,
    Context,
    Contract,
    Identifier,
    InvalidArgument,
    NotFound,
    query,
    transaction,
)

from ..common import access, commitments, settings
from ..common.clock import Day, utc_text
from ..common.commitments import called
from ..common.residence import residence
from ..common.settings import MeteringSettings
from ..meters.readings import Store, connection_intervals
from ..settlement.days import Row, Rows, rows_key
from .bill_basis import (
    MAX_PERIOD_DAYS,
    Basis,
    BillRecord,
    Metered,
    Relief,
    Run,
    Statement,
    compute,
    draw_credits,
    period_days,
    record_key,
    relief_key,
    relieve,
    statement_key,
)
from .protections import PermitCase, mark_of
from .tariffs import BillLine, Usage

MAX_FINDINGS = 100
"""Named by one audit."""


class Bills(Contract):
    """Computing bills, and looking at them."""

    name: ClassVar[str] = "bill"

    @transaction
    def compute(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        from_day: Day,
        to_day: Day,
        run: Run = 1,
    ) -> Statement:
        """Compute the bill of a period that is over, or once more after a correction.

        The answer travels in public: it holds what will be posted and nothing else.
        """
        basis = _basis(context, connection_id, from_day, to_day)
        _require_operator(context, basis)
        _, end = basis.bounds()
        channel = settings.read(context, MeteringSettings, "metering:Configure")
        now = settings.now(context, channel)
        if end > now:
            raise InvalidArgument(
                f"to_day is {to_day}, which begins at {utc_text(end)}, but the channel's time is "
                f"{utc_text(now)}; a bill is of days that are over"
            )
        metered, missing = _metered(context, basis, end, scan=False)
        if missing:
            raise Conflict(
                f"{len(missing)} intervals of {connection_id} have no accredited reading, the "
                f"first at {utc_text(missing[0])}; its bill waits for them"
            )
        key = record_key(connection_id, from_day, run)
        before = commitments.opened(context, basis.utility, key, BillRecord)
        posted_as = statement_key(connection_id, from_day, run)
        draws = None
        if before is not None:
            # What is left of a credit may have changed since then; what was drawn has not.
            basis = before.as_drawn(basis)
            stated = commitments.opened(context, basis.utility, posted_as, Statement)
            assert stated is not None, "a record has its statement"
            draws = stated.draws
        elif run > 1:
            earlier = record_key(connection_id, from_day, run - 1)
            if commitments.commitment(context, basis.utility, earlier) is None:
                raise Conflict(f"run {run - 1} of this period was not computed; it comes first")
        record = compute(basis, metered, run, commitments.salt(context, key, metered.secrets))
        if before is not None and before != record:
            raise Conflict(
                f"run {run} of the bill of {connection_id} from {from_day} on is computed already, "
                f"and readings or terms have changed since; compute run {run + 1}"
            )
        commitment = commitments.put(context, basis.utility, key, record)
        statement = Statement(
            connection_id,
            from_day,
            to_day,
            run,
            record.total_micro,
            record.drawn_wh,
            record.estimated_intervals > 0,
            commitment,
            record.banked_wh,
            draw_credits(basis.credits, record.credited_wh) if draws is None else draws,
        )
        commitments.put(context, basis.utility, posted_as, statement)
        if _has_social(basis):
            key = relief_key(connection_id, from_day, run)
            salt = commitments.salt(context, key, metered.secrets)
            relief = _relief(context, record.as_drawn(basis), metered, run, salt)
            commitments.put(context, basis.utility, key, relief)
        return statement

    @query
    def record(
        self, context: Context, *, connection_id: Identifier, from_day: Day, run: Run = 1
    ) -> BillRecord:
        """A bill with all its lines and the regulated tariff's, on a peer of its utility."""
        utility = _sight(context, connection_id, from_day)
        found = commitments.opened(
            context, utility, record_key(connection_id, from_day, run), BillRecord
        )
        if found is None:
            raise NotFound(f"run {run} of a bill of {connection_id} from {from_day} isn't computed")
        return found

    @query
    def relief(
        self, context: Context, *, connection_id: Identifier, from_day: Day, run: Run = 1
    ) -> Relief:
        """What of a bill the supplier owes the home by the social tariff; on a utility's peer."""
        utility = _sight(context, connection_id, from_day)
        found = commitments.opened(
            context, utility, relief_key(connection_id, from_day, run), Relief
        )
        if found is None:
            raise NotFound(
                f"run {run} of a bill of {connection_id} from {from_day} isn't computed, or its "
                "tariff has no social one"
            )
        return found

    @query
    def audit(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        from_day: Day,
        to_day: Day,
        run: Run = 1,
    ) -> dict[str, Any]:
        """Compute a committed bill again from the readings and name each line that differs."""
        utility = commitments.called(
            context, "energy", "permit:Case", PermitCase, connection_id=connection_id
        ).utility
        creator = context.creator
        access.require(
            residence(context, utility, connection_id).on(from_day)
            or access.is_supplier(creator, utility)
            or commitments.is_overseer(context),
            creator,
            f"audit bills of {connection_id}",
            f"its home, operators and suppliers of {utility}, and auditors",
        )
        basis = _basis(context, connection_id, from_day, to_day)
        key = record_key(connection_id, from_day, run)
        found = commitments.opened(context, utility, key, BillRecord)
        if found is None:
            raise NotFound(f"run {run} of a bill of {connection_id} from {from_day} isn't computed")
        basis = found.as_drawn(basis)
        metered, missing = _metered(context, basis, basis.bounds()[1], scan=True)
        salt = commitments.salt(context, key, metered.secrets) if metered.secrets else ""
        again = compute(basis, metered, run, salt)
        unchanged = salt == found.salt and not missing
        findings: list[dict[str, Any]] = []
        if unchanged:
            findings += list(_differences(found, again))[:MAX_FINDINGS]
            if not findings and found != again:
                findings.append({"bill": None, "line": None, "kind": "record", "off_by_micro": 0})
            key = relief_key(connection_id, from_day, run)
            shown = commitments.opened(context, basis.utility, key, Relief)
            if shown is not None:
                relief = _relief(context, basis, metered, run, shown.salt)
                # Who is entitled may have been told since; nobody has altered anything then.
                unchanged = relief.entitled == shown.entitled
                if unchanged and relief != shown:
                    findings.append(
                        _finding(None, None, "relief", shown.relief_micro, relief.relief_micro)
                    )
        verdict = "altered" if findings else "agrees" if unchanged else "changed_since"
        return {"connection_id": connection_id, "verdict": verdict, "findings": findings}

    @query
    def preview(
        self, context: Context, *, connection_id: Identifier, from_day: Day, to_day: Day
    ) -> dict[str, Any]:
        """What the readings so far come to, interval by interval up to now; nothing is written."""
        basis = _basis(context, connection_id, from_day, to_day)
        _sight(context, connection_id, from_day)
        channel = settings.read(context, MeteringSettings, "metering:Configure")
        now = settings.now(context, channel)
        metered, missing = _metered(context, basis, now, scan=True)
        return {
            "record": compute(basis, metered, 1, "0" * 64),
            "relief": _relief(context, basis, metered, 1, "0" * 64) if _has_social(basis) else None,
            "missing": len(missing),
        }


def corrected(context: Context, connection_id: str, from_day: str, to_day: str, run: int) -> bool:
    """Whether a billed period comes to something else by now; in queries only."""
    basis = _basis(context, connection_id, from_day, to_day)
    found = commitments.opened(
        context, basis.utility, record_key(connection_id, from_day, run), BillRecord
    )
    if found is None:
        return False
    basis = found.as_drawn(basis)
    metered, missing = _metered(context, basis, basis.bounds()[1], scan=True)
    if missing:
        return False
    again = compute(basis, metered, run, found.salt)
    return again != found


def _has_social(basis: Basis) -> bool:
    return any(stretch.social is not None for stretch in basis.stretches)


def _relief(context: Context, basis: Basis, metered: Metered, run: int, salt: str) -> Relief:
    mark = mark_of(context, basis.utility, basis.connection_id)
    return relieve(basis, metered, run, () if mark is None else mark.social, salt)


def _differences(shown: BillRecord, expected: BillRecord) -> Iterator[dict[str, Any]]:
    """Lines and totals of a bill that are not what they are computed to."""
    for number in range(max(len(shown.bills), len(expected.bills))):
        one, other = (
            each.bills[number] if number < len(each.bills) else None for each in (shown, expected)
        )
        left, right = one.lines if one else (), other.lines if other else ()
        for place in range(max(len(left), len(right))):
            line = left[place] if place < len(left) else None
            again = right[place] if place < len(right) else None
            if line != again:
                named = line or again
                assert named is not None
                yield _finding(number, place, named.kind, _micro(line), _micro(again))
        totals = [each.total_micro if each else 0 for each in (one, other)]
        if totals[0] != totals[1]:
            yield _finding(number, None, "total", *totals)
    if shown.total_micro != expected.total_micro:
        yield _finding(None, None, "total", shown.total_micro, expected.total_micro)


def _micro(line: BillLine | None) -> int:
    return 0 if line is None else line.amount_micro


def _finding(
    bill: int | None, line: int | None, kind: str, shown: int, expected: int
) -> dict[str, Any]:
    return {"bill": bill, "line": line, "kind": kind, "off_by_micro": shown - expected}


def _metered(
    context: Context, basis: Basis, until: int, *, scan: bool
) -> tuple[Metered, list[int]]:
    """What is to be billed of the intervals that end by `until`, and which have no reading.

    Days that were settled are taken from their rows: what trades and sharing have left. The others
    are all that was metered.
    """
    store = Store(context, basis.utility)
    usage: list[Usage] = []
    peaks: dict[int, int] = {}
    secrets: list[str] = []
    missing: list[int] = []
    estimated = 0
    for stretch in basis.stretches:
        for settled in basis.settled:
            if not stretch.from_day <= settled.day < stretch.to_day:
                continue
            start, end = stretch.calendar.bounds(settled.day)
            if settled.run is not None:
                key = rows_key(settled.day, settled.run, basis.connection_id)
                opened = commitments.opened(context, basis.utility, key, Rows)
                if opened is None:
                    raise NotFound(f"there is no record {key}, on which the bill rests")
                secrets.append(opened.salt)
                estimated += sum(1 for row in opened.rows if row.quality != "measured")
                peaks[start] = max((row.metered[0] for row in opened.rows), default=0)
                if settled.billed:
                    usage += [_rest(row) for row in opened.rows]
                continue
            intervals = connection_intervals(
                store,
                basis.connection_id,
                start,
                min(end, max(start, until - basis.interval_s + 1)),
                basis.interval_s,
                scan=scan,
            )
            missing += [each.interval_start for each in intervals if each.missing]
            there = [each for each in intervals if not each.missing]
            secrets += [secret for each in there for secret in each.secrets]
            estimated += sum(1 for each in there if each.quality != "measured")
            peaks[start] = max((each.import_wh for each in there), default=0)
            usage += [Usage(each.interval_start, each.import_wh, each.export_wh) for each in there]
    return Metered(tuple(usage), peaks, estimated, tuple(secrets)), missing


def _rest(row: Row) -> Usage:
    """What trades, sharing and netting have left of an interval."""
    imported = exported = 0
    for line in row.lines:
        if line.kind == "import":
            imported += line.energy_wh
        elif line.kind == "feed_in":
            exported += line.energy_wh
    return Usage(row.interval_start, imported, exported)


def _basis(context: Context, connection_id: str, from_day: str, to_day: str) -> Basis:
    if not 0 < period_days(from_day, to_day) <= MAX_PERIOD_DAYS:
        raise InvalidArgument(
            f"to_day is {to_day}, but must be 1 to {MAX_PERIOD_DAYS} days after from_day, "
            f"{from_day}"
        )
    return called(
        context,
        "energy",
        "billing:Basis",
        Basis,
        connection_id=connection_id,
        from_day=from_day,
        to_day=to_day,
    )


def _require_operator(context: Context, basis: Basis) -> None:
    access.require(
        access.is_supplier(context.creator, basis.utility),
        context.creator,
        f"compute bills of {basis.connection_id}",
        f"operators and suppliers of {basis.utility}, which meters it",
    )


def _sight(context: Context, connection_id: str, from_day: str) -> str:
    """The utility that meters a connection; raises Forbidden unless the caller may see bills."""
    utility = commitments.called(
        context, "energy", "permit:Case", PermitCase, connection_id=connection_id
    ).utility
    access.require(
        residence(context, utility, connection_id).on(from_day)
        or access.is_supplier(context.creator, utility),
        context.creator,
        f"see bills of {connection_id}",
        f"its home, operators and suppliers of {utility}",
    )
    return utility
