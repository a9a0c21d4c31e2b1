"""Contract `challenge`: whoever was shown a private record proves to all that it is wrong.

A utility settles days and computes bills where the readings are, alone; the channel has the
commitments. Its home, or another member to whom the record was opened, shows it here: that it is
the one committed to, and which line every peer computes otherwise. A part of a day is enough
(`daybook:Open`); what is opened travels as transient data to the peers that endorse, and what stays
on the ledger names the interval and the line and no energy.

    challenge/{connection}/{settlement|bill}/{period}/{run}     Challenge, once
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    MspId,
    Text,
    TransactionId,
    canonical_json,
    query,
    read_item,
    read_record,
    sha256_hex,
    stored_json,
    stored_record,
    transaction,
)

from ..billing.bill_basis import BillRecord, record_key
from ..billing.tariffs import Bill, BillLine, Money
from ..common import commitments, settings
from ..common.clock import Day
from ..common.commitments import Commitment
from ..common.money import amount_micro, half_even
from ..common.pages import Bookmark, listed
from ..meters.meters import Meter
from ..meters.readings import Reading, interval_key, stored_bytes
from ..registry.registry import connection_of, energy_settings
from ..settlement import communities
from ..settlement.days import (
    MAX_INTERVALS,
    DayInputs,
    Difference,
    Row,
    Summary,
    Window,
    summary_key,
    sums_of,
    window_differences,
    window_root,
)
from ..settlement.settlement import day_inputs
from .explained import text

MAX_READINGS = 200
_PRICED = ("energy", "block")
"""Lines of a bill that are a quantity of energy at a price."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A part of a committed day, as `daybook:Open` gives it, or all of its parts."""

    summary: Summary
    windows: Annotated[tuple[Window, ...], AtMost(MAX_INTERVALS)]
    readings: Annotated[tuple[Reading, ...], AtMost(MAX_READINGS)] = ()
    """What the meters say of these intervals: all that the money of an interval settles on."""


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
    """A record that its utility has committed to, and that is wrong."""

    connection_id: Identifier
    utility: MspId
    """Who committed to it."""
    of: Annotated[str, Choice("settlement", "bill")]
    period: Day
    """The day, or the first day of the bill."""
    run: Annotated[str, Text(r"[a-z0-9-]{1,20}", "a run")]
    commitment: Commitment
    difference: Named
    raised_by: MspId
    raised_at: Instant
    transaction_id: TransactionId


@dataclass(frozen=True, slots=True)
class _Found:
    """What checking an opened record came to."""

    committed: bool
    commitment: str
    difference: Difference | None

    def answer(self) -> dict[str, Any]:
        return {
            "committed": self.committed,
            "holds": self.difference is None,
            "difference": self.difference,
        }


# Days


@dataclass(frozen=True, slots=True)
class _Gate:
    commitment: Commitment
    transaction_id: TransactionId


def _committed(context: Context, utility: str, key: str) -> str | None:
    """What a utility committed to under a key: as posted if it was, else as it stands."""
    posted = context.get_state(key)
    if posted is not None:
        return stored_record(_Gate, posted).commitment
    return commitments.commitments(context, utility, [key])[key]


def _check_day(context: Context, opening: Opening) -> _Found:
    summary = opening.summary
    name, day = summary.connection_id, summary.day
    inputs = day_inputs(context, summary.utility, day, communities.with_members(context, name, day))
    if not opening.windows:
        raise InvalidArgument("opening.windows is empty, but a part of the day must be shown")
    places = [window.index for window in opening.windows]
    if places != sorted(dict.fromkeys(places)):
        raise InvalidArgument("opening.windows must be in order, each once")
    if any(window.count != opening.windows[0].count for window in opening.windows):
        raise InvalidArgument("opening.windows must be of one tree: count differs")
    hashed = sha256_hex(canonical_json(summary))
    committed = hashed == _committed(
        context, summary.utility, summary_key(day, summary.run, name)
    ) and all(window_root(inputs, window) == summary.tree for window in opening.windows)
    found = next(_day_differences(context, inputs, opening), None) if committed else None
    return _Found(committed, hashed, found)


def _day_differences(context: Context, inputs: DayInputs, opening: Opening) -> Iterator[Difference]:
    name = opening.summary.connection_id
    yield from window_differences(inputs, name, opening.windows)
    rows = [row for window in opening.windows for row in window.rows]
    whole = len(opening.windows) == opening.windows[0].count
    yield from _reading_differences(context, inputs, opening, rows, whole)
    if whole:
        left = {(one.kind, one.counterparty, one.paid): one for one in opening.summary.sums}
        right = {(one.kind, one.counterparty, one.paid): one for one in sums_of(rows)}
        for key in sorted({**left, **right}):
            if left.get(key) != right.get(key):
                shown, expected = (
                    0 if one is None else one.amount_micro
                    for one in (left.get(key), right.get(key))
                )
                yield Difference(None, key[0], key[1], str(shown), str(expected), shown - expected)


def _reading_differences(
    context: Context, inputs: DayInputs, opening: Opening, rows: Sequence[Row], whole: bool
) -> Iterator[Difference]:
    """Intervals whose energy isn't what all meters that settle it say.

    The utility itself holds each reading: its hash is on the channel, and a newer version's isn't.
    """
    if not opening.readings:
        return
    name, utility = opening.summary.connection_id, opening.summary.utility
    shown: dict[tuple[str, int], Reading] = {}
    for reading in opening.readings:
        key = interval_key(reading.meter_id, reading.interval_start, reading.version)
        newer = interval_key(reading.meter_id, reading.interval_start, reading.version + 1)
        found = commitments.commitments(context, utility, [key, newer])
        if found[key] != sha256_hex(stored_bytes(reading)):
            raise Conflict(f"the reading {key} is not the one that {utility} holds")
        if found[newer] is not None:
            raise Conflict(f"the reading {key} was corrected since; show the last version")
        shown[reading.meter_id, reading.interval_start] = reading
    by_start = {row.interval_start: row for row in rows}
    hung = [one for one in _meters(context, name) if one.utility == utility]
    for start in sorted(dict.fromkeys(start for _, start in shown)):
        if not inputs.from_ <= start < inputs.to or (start not in by_start and not whole):
            raise InvalidArgument(f"opening.readings has one of {start}, which isn't opened")
        settling = [one for one in hung if one.settles(start, start + inputs.interval_s)]
        read = [shown.get((one.meter_id, start)) for one in settling]
        there = [one for one in read if one is not None]
        if not there or len(there) != len(settling):
            continue
        row = by_start.get(start)
        counted = row.metered if row is not None else (0, 0)
        metered = (sum(one.import_wh for one in there), sum(one.export_wh for one in there))
        if counted != metered:
            yield Difference(
                start,
                "reading",
                there[0].meter_id,
                f"{counted[0]} Wh imported, {counted[1]} Wh exported",
                f"{metered[0]} Wh imported, {metered[1]} Wh exported",
                0,
            )


def _meters(context: Context, connection_id: str) -> list[Meter]:
    argument = canonical_json({"connection_id": connection_id})
    answer = context.call("metering", [b"metering:Meters", argument])
    if answer.status >= 400:
        raise Conflict(f"metering refused metering:Meters: {answer.message}")
    items = stored_json(answer.payload)
    assert isinstance(items, list)
    return [read_item(Meter, item) for item in items]


# Bills


def _check_bill(context: Context, record: BillRecord) -> _Found:
    connection = connection_of(context, record.connection_id)
    key = record_key(record.connection_id, record.from_day, record.run)
    hashed = sha256_hex(canonical_json(record))
    posted = context.get_state(f"posted/{record.connection_id}/{record.from_day}/{record.run}")
    if posted is not None:
        gate = stored_json(posted)
        statement = gate.get("statement") if isinstance(gate, dict) else None
        committed = hashed == text(statement, "commitment")
    else:
        committed = hashed == commitments.commitments(context, connection.utility, [key])[key]
    found = next(_bill_differences(record), None) if committed else None
    return _Found(committed, hashed, found)


def _bill_differences(record: BillRecord) -> Iterator[Difference]:
    """Lines whose amount isn't their quantity at their price, and totals that aren't the sum."""
    for bill in record.bills:
        for line, expected in _expected(bill):
            if line.amount_micro != expected:
                yield _off(line.kind, line.name, line.amount_micro, expected)
        total = sum(line.amount_micro for line in bill.lines)
        if bill.total_micro != total:
            yield _off("total", bill.tariff, bill.total_micro, total)
    total = sum(bill.total_micro for bill in record.bills)
    if record.total_micro != total:
        yield _off("total", "", record.total_micro, total)


def _off(kind: str, name: str, shown: int, expected: int) -> Difference:
    return Difference(None, kind, name, str(shown), str(expected), shown - expected)


def _expected(bill: Bill) -> Iterator[tuple[BillLine, int]]:
    """Lines that can be computed from themselves: an index has a price for each interval."""
    base = sum(line.amount_micro for line in bill.lines if line.kind not in _NOT_TAXED)
    for line in bill.lines:
        if line.kind in _PRICED:
            yield line, amount_micro(line.quantity, line.price)
        elif line.kind == "standing":
            yield line, line.quantity * line.price
        elif line.kind == "tax":
            yield line, half_even(base * line.price, 1_000_000)


_NOT_TAXED = ("tax", "feed_in", "rounding")


class Challenges(Contract):
    """Checking opened records, and putting on the ledger which line of one is wrong."""

    name: ClassVar[str] = "challenge"

    @query
    def check(self, context: Context, *, opening: Opening) -> dict[str, Any]:
        """Whether an opened part of a day is of the committed one, and what of it is wrong."""
        return _check_day(context, opening).answer()

    @query
    def check_bill(self, context: Context, *, bill: BillRecord) -> dict[str, Any]:
        """Whether an opened bill is the committed one, and which line is wrong."""
        return _check_bill(context, bill).answer()

    @transaction
    def raise_(self, context: Context) -> Challenge:
        """Name a wrong line of a committed day; the opening travels as transient data."""
        if "opening" not in context.transient:
            raise InvalidArgument("the transient data has no entry named opening")
        opening = read_record(Opening, context.transient["opening"], "opening")
        summary = opening.summary
        return self._raise(
            context,
            _check_day(context, opening),
            (summary.connection_id, summary.utility, "settlement", summary.day, summary.run),
        )

    @transaction
    def raise_bill(self, context: Context) -> Challenge:
        """Name a wrong line of a committed bill; the bill travels as transient data."""
        if "bill" not in context.transient:
            raise InvalidArgument("the transient data has no entry named bill")
        bill = read_record(BillRecord, context.transient["bill"], "bill")
        utility = connection_of(context, bill.connection_id).utility
        return self._raise(
            context,
            _check_bill(context, bill),
            (bill.connection_id, utility, "bill", bill.from_day, str(bill.run)),
        )

    def _raise(
        self, context: Context, found: _Found, record: tuple[str, str, str, str, str]
    ) -> Challenge:
        connection_id, utility, of, period, run = record
        what = f"the {of} of {connection_id} for {period}, run {run},"
        if not found.committed:
            raise Conflict(f"{what} is not the one that {utility} has committed to")
        if found.difference is None:
            raise Conflict(f"{what} holds as far as it was opened; there is nothing to challenge")
        key = f"challenge/{connection_id}/{of}/{period}/{run}"
        stored = context.get_state(key)
        if stored is not None:
            known = stored_record(Challenge, stored)
            if known.commitment == found.commitment:
                return known
        one = found.difference
        raised = Challenge(
            connection_id,
            utility,
            of,
            period,
            run,
            found.commitment,
            Named(one.interval_start, one.kind, one.counterparty, one.off_by_micro),
            context.creator.msp_id,
            settings.now(context, energy_settings(context)),
            context.transaction_id,
        )
        context.put_state(key, canonical_json(raised))
        context.set_event("challenge", canonical_json(raised))
        return raised

    @query
    def list_(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        limit: Annotated[int, Integer(1, 100)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """What was shown to be wrong of a connection's days and bills."""
        connection_of(context, connection_id)
        return listed(
            context, "challenges", Challenge, f"challenge/{connection_id}/", "", limit, bookmark
        )
