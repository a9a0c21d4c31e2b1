"""Private records that somebody shows: whether they are what was committed to, and what is wrong.

A part of a committed day (`daybook:Open`) or all of it, and bills. Whoever endorses computes them
again from themselves and from what is public.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    InvalidArgument,
    TransactionId,
    canonical_json,
    read_item,
    sha256_hex,
    stored_json,
    stored_record,
)

from ..billing.bill_basis import BillRecord, record_key
from ..billing.tariffs import Bill, BillLine
from ..common import commitments
from ..common.clock import utc_text
from ..common.commitments import Commitment
from ..common.money import amount_micro, half_even
from ..meters.meters import Meter
from ..meters.readings import Arrival, Reading, arrival_key, interval_key, stored_bytes
from ..registry.registry import connection_of
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
    window_number,
    window_root,
)
from ..settlement.settlement import day_inputs
from .explained import text

MAX_READINGS = 200
_PRICED = ("energy", "block", "netted", "credit", "banked")
"""Lines of a bill that are a quantity of energy at a price."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A part of a committed day, as `daybook:Open` gives it, or all of its parts."""

    summary: Summary
    windows: Annotated[tuple[Window, ...], AtMost(MAX_INTERVALS)]
    readings: Annotated[tuple[Reading, ...], AtMost(MAX_READINGS)] = ()
    """What the meters say of these intervals: all that the money of an interval settles on."""
    arrivals: Annotated[tuple[Arrival, ...], AtMost(MAX_READINGS)] = ()
    """To show that readings were corrected only after the day was posted: when that was."""


@dataclass(frozen=True, slots=True)
class Found:
    """What checking an opened record came to."""

    committed: bool
    commitment: str
    difference: Difference | None

    def answer(self) -> dict[str, Any]:
        """As queries tell it."""
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


def committed_to(context: Context, utility: str, key: str) -> str | None:
    """What a utility committed to under a key: as posted if it was, else as it stands."""
    posted = context.get_state(key)
    if posted is not None:
        return stored_record(_Gate, posted).commitment
    return commitments.commitments(context, utility, [key])[key]


def inputs_of(context: Context, opening: Opening) -> DayInputs:
    """What is public of an opened day."""
    summary = opening.summary
    members = communities.with_members(context, summary.connection_id, summary.day)
    return day_inputs(context, summary.utility, summary.day, members)


def check_day(context: Context, opening: Opening) -> Found:
    """Whether an opened part of a day is of the committed one, and what of it is wrong first."""
    summary = opening.summary
    inputs = inputs_of(context, opening)
    if not opening.windows:
        raise InvalidArgument("opening.windows is empty, but a part of the day must be shown")
    places = [window.index for window in opening.windows]
    if places != sorted(dict.fromkeys(places)):
        raise InvalidArgument("opening.windows must be in order, each once")
    if any(window.count != opening.windows[0].count for window in opening.windows):
        raise InvalidArgument("opening.windows must be of one tree: count differs")
    hashed = sha256_hex(canonical_json(summary))
    key = summary_key(summary.day, summary.run, summary.connection_id)
    committed = hashed == committed_to(context, summary.utility, key) and all(
        window_root(inputs, window) == summary.tree for window in opening.windows
    )
    found = next(_day_differences(context, inputs, opening), None) if committed else None
    return Found(committed, hashed, found)


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
    for start in sorted(dict.fromkeys(start for _, start in shown)):
        if not inputs.from_ <= start < inputs.to or (start not in by_start and not whole):
            raise InvalidArgument(f"opening.readings has one of {start}, which isn't opened")
        settling = _settling(context, inputs, name, start)
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


def covers(inputs: DayInputs, opening: Opening, interval_start: int | None) -> bool:
    """Whether an opening tells all of an interval, or that nothing was there; None: of the day.

    Windows in which nothing was are left out, and those that follow one another in the tree have
    nothing between them.
    """
    windows = opening.windows
    if len(windows) == windows[0].count:
        return True
    if interval_start is None:
        return False
    wanted = window_number(inputs, interval_start)
    numbers = {window.index: window_number(inputs, window.rows[0].interval_start)
               for window in windows}  # fmt: skip
    if wanted in numbers.values():
        return True
    last = windows[0].count - 1
    return any(
        number < wanted
        and (index == last or (index + 1 in numbers and wanted < numbers[index + 1]))
        for index, number in numbers.items()
    ) or (0 in numbers and wanted < numbers[0])


def lacks_readings(context: Context, inputs: DayInputs, opening: Opening, start: int) -> list[str]:
    """The meters whose reading of a measured interval isn't shown; none where nothing was."""
    rows = [row for window in opening.windows for row in window.rows]
    row = next((row for row in rows if row.interval_start == start), None)
    if row is None or row.quality != "measured":
        return []
    shown = [one.meter_id for one in opening.readings if one.interval_start == start]
    return [
        meter.meter_id
        for meter in _settling(context, inputs, opening.summary.connection_id, start)
        if meter.meter_id not in shown
    ]


def _settling(context: Context, inputs: DayInputs, connection_id: str, start: int) -> list[Meter]:
    return [
        meter
        for meter in _meters(context, connection_id)
        if meter.utility == inputs.utility and meter.settles(start, start + inputs.interval_s)
    ]


def check_as_read(context: Context, opening: Opening, start: int, posted_at: int) -> None:
    """Let an interval pass that counts what its meters said until the day was posted.

    Raises:
        InvalidArgument: a reading or the time of its correction isn't shown.
        Conflict: what is shown isn't what the utility holds, or doesn't come to it.
    """
    inputs = inputs_of(context, opening)
    name, utility = opening.summary.connection_id, opening.summary.utility
    shown = {one.meter_id: one for one in opening.readings if one.interval_start == start}
    corrected = False
    energy = [0, 0]
    for meter in _settling(context, inputs, name, start):
        reading = shown.get(meter.meter_id)
        if reading is None:
            raise InvalidArgument(
                f"opening.readings has none of meter {meter.meter_id} for {utc_text(start)}"
            )
        newer = reading.version + 1
        arrival = next(
            (
                one
                for one in opening.arrivals
                if (one.meter_id, one.at, one.version) == (meter.meter_id, start, newer)
            ),
            None,
        )
        keys = [
            interval_key(meter.meter_id, start, reading.version),
            interval_key(meter.meter_id, start, newer),
        ]
        if arrival is not None:
            keys.append(arrival_key(arrival))
        found = commitments.commitments(context, utility, keys)
        if found[keys[0]] != sha256_hex(stored_bytes(reading)):
            raise Conflict(f"the reading {keys[0]} is not the one that {utility} holds")
        energy = [energy[0] + reading.import_wh, energy[1] + reading.export_wh]
        if found[keys[1]] is None:
            continue
        if arrival is None:
            raise InvalidArgument(f"opening.arrivals doesn't say when {keys[1]} was accepted")
        if found[keys[2]] != sha256_hex(canonical_json(arrival)):
            raise Conflict(f"the arrival {keys[2]} is not the one that {utility} holds")
        if arrival.accepted_at < posted_at:
            raise Conflict(
                f"the correction {keys[1]} was accepted at {utc_text(arrival.accepted_at)}, before "
                f"the day was posted at {utc_text(posted_at)}, so it should have counted"
            )
        corrected = True
    rows = [row for window in opening.windows for row in window.rows]
    counted = next((row.metered for row in rows if row.interval_start == start), (0, 0))
    if not corrected or counted != (energy[0], energy[1]):
        raise Conflict(
            f"the interval {utc_text(start)} of {name} doesn't count what its meters said when the "
            "day was posted, or they were not corrected since"
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


def check_bill(context: Context, record: BillRecord) -> Found:
    """Whether an opened bill is the committed one, and which line is wrong first."""
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
    return Found(committed, hashed, found)


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
