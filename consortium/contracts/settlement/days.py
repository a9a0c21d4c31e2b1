"""A day of a connection, settled: a pure function of public inputs and of metered intervals.

`energy` says what is public (`DayInputs`: prices, firm trades, who shares with whom), `metering`
knows the readings, and this module joins them to rows, one for each interval, and to their sums.

- `Rows` stand in private. Whoever may see them can compute every line again (`first_difference`).
- `Summary` is what becomes public: sums of a whole day by kind and counterparty, and the commitment
  of the rows. It can't be guessed from its own commitment, since it holds that of the salted rows.
- A `Window` of the rows can be opened without the others (`window_of`): the summary also holds the
  root of a tree over them, each salted by itself.

Energy in Wh, prices in micro-units per kWh, money in micro-units; positive amounts are received.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    MspId,
    Text,
    canonical_json,
    sha256_hex,
)

from ..common.clock import Day, utc_text
from ..common.commitments import Commitment, Salt
from ..common.money import amount_micro
from ..common.pages import Bookmark
from ..common.settings import IntervalLength, Price
from ..common.trees import Count, Hash, Index, Path, leaf_hash, path, root, root_by_path
from .firm import MAX_TRADES, FirmTrade, Money, Party
from .settle import MARKET, Community, Fill, Line, Metered, Terms, Token, settle
from .sharing import net_windows

MAX_CONNECTIONS = 40
"""Settled together by one call."""
MAX_INTERVALS = 1_500
"""Of one day: a quarter hour makes 100 at most, a minute 1,500."""
MAX_CELLS = 4_000
"""Connections times intervals of one call: what fits into 2 s and 2 MB."""
MAX_COMMUNITY_CELLS = 12_000
"""The same where a community is settled, which is computed as a whole by each call."""
MAX_WRITTEN_CELLS = 6_000
"""Of a community, what one call writes: 4 MB of private rows. The others' are further calls'."""
_LONGEST_DAY_S = 25 * 3600
MAX_LINES = 400
MAX_MEMBERS = MAX_CONNECTIONS
MAX_OPEN_DAYS = 500
"""Calls to settle days that are named at once."""
OPEN_FOR_DAYS = 21
"""How long after a day agents look at it: by then its final run is posted."""
TURN_S = 60
"""Where there is more to do than fits into one answer, the next turn begins elsewhere."""

Run = Annotated[
    str,
    Text(
        r"provisional|final|adjustment-[1-9][0-9]?",
        "provisional, final or adjustment-1 to adjustment-99",
    ),
]
Energy = Annotated[int, Integer(0, 10**12, "Wh")]
LineKind = Annotated[
    str,
    Choice(
        "bought", "sold", "fee", "shortfall", "surplus", "shared", "taken", "netted",
        "feed_in", "banked", "import",
    ),
]  # fmt: skip
SUPPLIER_PREFIX = "SUPPLIER-"
"""Of accounts that trade without a meter."""
_TRADED = ("bought", "sold")
"""What trades alone come to."""
Fee = Annotated[int, Integer(0, 10**9, "micro-units per kWh")]
Days = Annotated[int, Integer(0, 1_000, "days")]


@dataclass(frozen=True, slots=True)
class DayTerms:
    """What a supplier's homes settle at; agreed by several utilities."""

    supplier: MspId
    region: Identifier | None
    """Whose calendar cuts the days; None: UTC days."""
    tariff: Price
    """For import that wasn't bought."""
    base_rate: Price
    """For export that wasn't sold."""
    rest: Annotated[str, Choice("settled", "billed")]
    """Whether what is left after trades and sharing is paid here, or billed by the tariff."""
    shortfall_price: Price
    """Where none is published for the day; never below the tariff or the sale's price."""
    surplus_price: Price
    """Where none is published for the day; never above the base rate."""
    import_fee: Fee
    """To the grid for import that wasn't bought, whatever is netted."""
    shared_fee: Fee
    """To the grid for what is taken from a community."""
    netting_intervals: Annotated[int, Integer(1, MAX_INTERVALS, "intervals")]
    """What is left of import and export is set off within so many intervals; 1: not at all."""
    final_after_working_days: Days
    """When a day becomes final."""
    adjustable_days: Days
    """How long after a day corrections still change it."""
    banking_days: Days = 0
    """Above 0: what is left of an export is not paid but kept as credit, for so many days."""
    expired_price: Price = 0
    """What is paid for a credit that nobody used in time."""


@dataclass(frozen=True, slots=True)
class Key:
    """A member's part under static keys."""

    connection_id: Identifier
    parts: Annotated[int, Integer(0, 10**9)]


@dataclass(frozen=True, slots=True)
class CommunityDay:
    """A community on a day."""

    community: Identifier
    method: Annotated[str, Choice("static", "proportional")]
    price_micro_per_kwh: Price
    keys: Annotated[tuple[Key, ...], AtMost(MAX_MEMBERS)]
    members: Annotated[tuple[Identifier, ...], AtMost(MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class ConnectionDay:
    """What is public of a connection's day."""

    connection_id: Identifier
    community: Identifier | None
    trades: Annotated[tuple[FirmTrade, ...], AtMost(MAX_TRADES)]
    posted: Run | None
    """The last run that was posted."""


@dataclass(frozen=True, slots=True)
class DayInputs:
    """What is public of a day of some connections: one utility's meters, one supplier's homes."""

    utility: MspId
    """Who meters them: its private collection has the readings."""
    day: Day
    from_: Instant
    to: Instant
    final_at: Instant
    """When it can become final."""
    adjustable_until: Instant
    interval_s: IntervalLength
    terms_version: Annotated[int, Integer(1, 10**6)]
    terms: DayTerms
    shortfall_price: Price
    surplus_price: Price
    supplier: Party
    balancer: Party
    grid: Party
    connections: Annotated[tuple[ConnectionDay, ...], AtMost(MAX_CONNECTIONS)]
    communities: Annotated[tuple[CommunityDay, ...], AtMost(MAX_CONNECTIONS)]

    @property
    def intervals(self) -> int:
        """How many intervals the day has: 92, 96 or 100 quarter hours."""
        return (self.to - self.from_) // self.interval_s

    def settle_terms(self) -> Terms:
        """As one interval is settled with."""
        return Terms(
            self.terms.tariff,
            self.terms.base_rate,
            self.shortfall_price,
            self.surplus_price,
            self.supplier,
            self.balancer,
            self.grid,
            self.terms.import_fee,
            self.terms.shared_fee,
        )


@dataclass(frozen=True, slots=True)
class Holding:
    """Exported energy in somebody's hands."""

    holder: Party
    energy_wh: Energy
    retired_wh: Energy
    """Of it, what the holder's own import of the interval used up."""


@dataclass(frozen=True, slots=True)
class RowLine:
    """One amount of an interval, with what it is computed from."""

    kind: LineKind
    energy_wh: Energy
    price_micro_per_kwh: Annotated[int, Integer(-(10**12), 10**12, "micro-units per kWh")]
    amount_micro: Money
    counterparty: Party
    paid: bool
    """It was paid when it was traded, or stands with the counterparty's lines."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What of an interval was traded under the home's pseudonyms, and is settled with them."""

    import_wh: Energy
    export_wh: Energy


@dataclass(frozen=True, slots=True)
class Row:
    """One interval of a connection."""

    interval_start: Instant
    import_wh: Energy
    export_wh: Energy
    quality: Annotated[str, Choice("measured", "estimated", "substituted")]
    lines: Annotated[tuple[RowLine, ...], AtMost(MAX_LINES)]
    tokens: Annotated[tuple[Holding, ...], AtMost(MAX_LINES)]
    elsewhere: Elsewhere | None = None

    @property
    def metered(self) -> tuple[int, int]:
        """What the meters counted: import and export under all names."""
        other = self.elsewhere or Elsewhere(0, 0)
        return self.import_wh + other.import_wh, self.export_wh + other.export_wh


@dataclass(frozen=True, slots=True)
class Rows:
    """A connection's day, interval by interval; private. Intervals of nothing are left out."""

    connection_id: Identifier
    day: Day
    run: Run
    rows: Annotated[tuple[Row, ...], AtMost(MAX_INTERVALS)]
    salt: Salt


@dataclass(frozen=True, slots=True)
class Sum:
    """A day's lines of one kind with one counterparty."""

    kind: LineKind
    counterparty: Party
    paid: bool
    lines: Annotated[int, Integer(1, MAX_LINES * MAX_INTERVALS)]
    """How many there are: each was rounded by itself."""
    energy_wh: Energy
    amount_micro: Money


@dataclass(frozen=True, slots=True)
class Summary:
    """A connection's day as it is posted in public."""

    connection_id: Identifier
    utility: MspId
    day: Day
    run: Run
    terms_version: Annotated[int, Integer(1, 10**6)]
    import_wh: Energy
    export_wh: Energy
    estimated: Annotated[int, Integer(0, MAX_INTERVALS)]
    """Intervals whose energy isn't measured."""
    sums: Annotated[tuple[Sum, ...], AtMost(MAX_LINES)]
    tokens: Annotated[tuple[Holding, ...], AtMost(MAX_LINES)]
    rows: Commitment
    """Of the `Rows`."""
    tree: Hash
    """Over the windows of the rows, so that one can be opened without the others."""


@dataclass(frozen=True, slots=True)
class Window:
    """Rows of one netting window, most often of one interval: what can be computed by itself.

    With the proof that they are of a committed day.
    """

    rows: Annotated[tuple[Row, ...], AtMost(MAX_INTERVALS)]
    """All of the window; intervals of nothing are left out."""
    salt: Salt
    """Of this window alone."""
    index: Index
    count: Count
    """Windows of the day in which there was something."""
    path: Path


@dataclass(frozen=True, slots=True)
class MeteredInterval:
    """What a connection's meters counted."""

    import_wh: int
    export_wh: int
    quality: str
    elsewhere: Elsewhere | None = None


@dataclass(frozen=True, slots=True)
class OpenDay:
    """Connections of a day that is over and isn't posted by the run whose time has come."""

    day: Day
    run: Run
    to: Instant
    """When the day was over."""
    from_: Instant
    together: bool
    """They are a community: all at once, or none."""
    connections: Annotated[tuple[Identifier, ...], AtMost(MAX_MEMBERS)]


@dataclass(frozen=True, slots=True)
class RevisedDay:
    """A day of a connection: of a buyer whose seller as produced has had it adjusted, say."""

    connection_id: Identifier
    day: Day


@dataclass(frozen=True, slots=True)
class RevisedDays:
    """As `agenda:Revised` answers, in order of contracts, and `agenda:Settled`."""

    days: Annotated[tuple[RevisedDay, ...], AtMost(MAX_OPEN_DAYS)]
    bookmark: Bookmark | None


@dataclass(frozen=True, slots=True)
class OpenDays:
    """What is to be settled, the oldest day first."""

    days: Annotated[tuple[OpenDay, ...], AtMost(MAX_OPEN_DAYS)]


def rows_key(day: str, run: str, connection_id: str) -> str:
    """Where a day's rows stand among the private records."""
    return f"str/{day}/{run}/{connection_id}"


def summary_key(day: str, run: str, connection_id: str) -> str:
    """Where the part that is posted stands, so that every peer can check it."""
    return f"st/{day}/{run}/{connection_id}"


def follows(posted: str | None, run: str) -> bool:
    """Whether a run may come after the one that was posted last."""
    if run == "provisional":
        return posted is None
    if run == "final":
        return posted in (None, "provisional")
    number = int(run.removeprefix("adjustment-"))
    return posted == ("final" if number == 1 else f"adjustment-{number - 1}")


# Computing


def compute(
    inputs: DayInputs, metered: Mapping[str, Sequence[MeteredInterval]]
) -> dict[str, tuple[Row, ...]]:
    """Settle a day of connections that share a market: their rows.

    Args:
        inputs: What is public.
        metered: Each connection's intervals, all of the day.
    """
    terms = inputs.settle_terms()
    fills: dict[tuple[str, int], list[Fill]] = {}
    for connection in inputs.connections:
        for trade in connection.trades:
            place = connection.connection_id, trade.interval_start
            fills.setdefault(place, []).append(_fill(trade))
    communities = {
        one.community: Community(
            one.price_micro_per_kwh,
            cast("Literal['static', 'proportional']", one.method),
            {key.connection_id: key.parts for key in one.keys},
        )
        for one in inputs.communities
    }
    rows: dict[str, list[Row]] = {one.connection_id: [] for one in inputs.connections}
    for index in range(inputs.intervals):
        start = inputs.from_ + index * inputs.interval_s
        each = [
            Metered(
                one.connection_id,
                metered[one.connection_id][index].import_wh,
                metered[one.connection_id][index].export_wh,
                tuple(fills.get((one.connection_id, start), ())),
                terms,
                one.community or "",
            )
            for one in inputs.connections
        ]
        settlement = settle(each, communities)
        lines: dict[str, list[RowLine]] = {name: [] for name in rows}
        for line in settlement.lines:
            lines[line.connection].append(_row_line(line))
            if line.kind == "shared":
                lines[line.counterparty].append(_taken(line))
        tokens: dict[str, list[Token]] = {name: [] for name in rows}
        for token in settlement.tokens:
            tokens[token.origin].append(token)
        for one in each:
            found = metered[one.connection][index]
            rows[one.connection].append(
                Row(
                    start,
                    found.import_wh,
                    found.export_wh,
                    found.quality,
                    tuple(lines[one.connection]),
                    _holdings(
                        Holding(token.holder, token.energy_wh, token.retired_wh)
                        for token in tokens[one.connection]
                    ),
                    found.elsewhere,
                )
            )
    return {name: _kept(_netted(inputs, found)) for name, found in rows.items()}


def _fill(trade: FirmTrade) -> Fill:
    paid = None if trade.paid is None else (trade.paid.amount_micro, trade.paid.fee_micro)
    # Both sides of a contract between connections are settled with the clearing house, or each
    # would pay the other twice; the energy is the named one's all the same.
    named = trade.counterparty != MARKET and not trade.counterparty.startswith(SUPPLIER_PREFIX)
    return Fill(
        trade.energy_wh,
        trade.price_micro_per_kwh,
        trade.fee_micro_per_kwh,
        MARKET if named else trade.counterparty,
        paid,
        trade.counterparty if named else "",
    )


def _row_line(line: Line) -> RowLine:
    return RowLine(
        line.kind, line.energy_wh, line.price, line.amount_micro, line.counterparty, line.paid
    )


def _taken(shared: Line) -> RowLine:
    """The other side of what a member gave; the giver's line pays."""
    return RowLine(
        "taken", shared.energy_wh, shared.price, -shared.amount_micro, shared.connection, True
    )


def _holdings(each: Iterator[Holding]) -> tuple[Holding, ...]:
    """Summed by holder."""
    found: dict[str, Holding] = {}
    for one in each:
        before = found.get(one.holder, Holding(one.holder, 0, 0))
        found[one.holder] = Holding(
            one.holder, before.energy_wh + one.energy_wh, before.retired_wh + one.retired_wh
        )
    return tuple(found[holder] for holder in sorted(found))


def _netted(inputs: DayInputs, rows: Sequence[Row]) -> list[Row]:
    """Set off what is left of import and export within each netting window.

    What remains of a window is priced in the last of its intervals; fees stay with each interval.
    Where the rest is billed by a tariff, it is named and not paid.
    """
    length = inputs.terms.netting_intervals
    changed = list(rows)
    if length > 1:
        left = [(_energy(row, "import"), _energy(row, "feed_in")) for row in rows]
        nets = net_windows([one[0] for one in left], [one[1] for one in left], length)
        for number, net in enumerate(nets):
            window = range(number * length, min((number + 1) * length, len(rows)))
            for index in window:
                kept = tuple(x for x in rows[index].lines if x.kind not in ("import", "feed_in"))
                changed[index] = replace(rows[index], lines=kept)
            off = min(sum(left[i][0] for i in window), sum(left[i][1] for i in window))
            last = window[-1]
            changed[last] = replace(
                changed[last], lines=(*changed[last].lines, *_rest(inputs, net, off))
            )
    for index, row in enumerate(changed):
        changed[index] = replace(
            row, lines=tuple(_unpaid(inputs.terms, line) for line in row.lines)
        )
    return changed


def _unpaid(terms: DayTerms, line: RowLine) -> RowLine:
    """A line of what is left, where it is billed elsewhere, or banked."""
    billed, banked = terms.rest == "billed", terms.banking_days > 0
    if line.kind == "feed_in" and (billed or banked):
        kind = "feed_in" if billed else "banked"
        return replace(line, kind=kind, price_micro_per_kwh=0, amount_micro=0)
    if line.kind == "import" and billed:
        return replace(line, price_micro_per_kwh=0, amount_micro=0)
    return line


def _rest(inputs: DayInputs, net_wh: int, netted_wh: int) -> Iterator[RowLine]:
    supplier = inputs.supplier
    if netted_wh:
        yield RowLine("netted", netted_wh, 0, 0, supplier, False)
    if net_wh > 0:
        price = inputs.terms.tariff
        yield RowLine("import", net_wh, price, -amount_micro(net_wh, price), supplier, False)
    elif net_wh < 0:
        price = inputs.terms.base_rate
        yield RowLine("feed_in", -net_wh, price, amount_micro(-net_wh, price), supplier, False)


def _energy(row: Row, *kinds: str) -> int:
    return sum(line.energy_wh for line in row.lines if line.kind in kinds)


def _kept(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Without intervals in which nothing was."""
    return tuple(row for row in rows if any(row.metered) or row.lines)


def summarize(inputs: DayInputs, opened: Rows, commitment: str | None = None) -> Summary:
    """The part of a connection's day that is posted; `commitment` is that of the rows, if known."""
    return Summary(
        opened.connection_id,
        inputs.utility,
        opened.day,
        opened.run,
        inputs.terms_version,
        sum(row.import_wh for row in opened.rows),
        sum(row.export_wh for row in opened.rows),
        sum(1 for row in opened.rows if row.quality != "measured"),
        sums_of(opened.rows),
        _holdings(holding for row in opened.rows for holding in row.tokens),
        commitment or sha256_hex(canonical_json(opened)),
        tree_of(inputs, opened),
    )


# Opening a part


def window_number(inputs: DayInputs, interval_start: int) -> int:
    """Which netting window of the day an interval is in."""
    return (interval_start - inputs.from_) // (inputs.interval_s * inputs.terms.netting_intervals)


def _windows(inputs: DayInputs, opened: Rows) -> list[tuple[tuple[Row, ...], str]]:
    """The rows by netting window, in order, each window with a salt that tells no other's."""
    found: dict[int, list[Row]] = {}
    for row in opened.rows:
        found.setdefault(window_number(inputs, row.interval_start), []).append(row)
    return [
        (
            tuple(found[number]),
            sha256_hex(canonical_json({"salt": opened.salt, "window": number})),
        )
        for number in sorted(found)
    ]


def _leaf(rows: Sequence[Row], salt: str) -> str:
    return leaf_hash(canonical_json({"rows": list(rows), "salt": salt}))


def tree_of(inputs: DayInputs, opened: Rows) -> str:
    """The root of the tree over the windows of a day's rows."""
    return root([_leaf(rows, salt) for rows, salt in _windows(inputs, opened)])


def window_of(inputs: DayInputs, opened: Rows, interval_start: int) -> Window | None:
    """The window of an interval, with its proof; None if there was nothing in it."""
    windows = _windows(inputs, opened)
    wanted = window_number(inputs, interval_start)
    for index, (rows, salt) in enumerate(windows):
        if window_number(inputs, rows[0].interval_start) == wanted:
            leaves = [_leaf(*each) for each in windows]
            return Window(rows, salt, index, len(leaves), path(leaves, index))
    return None


def windows_beside(inputs: DayInputs, opened: Rows, interval_start: int) -> list[Window]:
    """The windows before and after an interval in which nothing was: they prove that."""
    wanted = window_number(inputs, interval_start)
    found: list[Window] = []
    for row in opened.rows:
        number = window_number(inputs, row.interval_start)
        window = window_of(inputs, opened, row.interval_start)
        if window is None or (found and found[-1].index == window.index):
            continue
        if number < wanted:
            found = [window]
        else:
            return [*found, window]
    return found


def window_root(inputs: DayInputs, window: Window) -> str:
    """What `Summary.tree` is if the window is of that day.

    Raises:
        InvalidArgument: its rows aren't those of one window, or the path doesn't fit.
    """
    starts = [row.interval_start for row in window.rows]
    numbers = [window_number(inputs, start) for start in starts]
    if (
        not starts
        or starts != sorted(dict.fromkeys(starts))
        or numbers[0] != numbers[-1]
        or not inputs.from_ <= starts[0] <= starts[-1] < inputs.to
        or any((start - inputs.from_) % inputs.interval_s for start in starts)
    ):
        raise InvalidArgument(
            f"window.rows must be the intervals of one netting window of {inputs.day}, in order"
        )
    return root_by_path(_leaf(window.rows, window.salt), window.index, window.count, window.path)


def sums_of(rows: Sequence[Row]) -> tuple[Sum, ...]:
    """Lines summed by kind and counterparty."""
    found: dict[tuple[str, str, bool], Sum] = {}
    for row in rows:
        for line in row.lines:
            key = (line.kind, line.counterparty, line.paid)
            before = found.get(key, Sum(*key, 0, 0, 0))
            found[key] = replace(
                before,
                lines=before.lines + 1,
                energy_wh=before.energy_wh + line.energy_wh,
                amount_micro=before.amount_micro + line.amount_micro,
            )
    if len(found) > MAX_LINES:
        raise Conflict(f"the day has sums with {len(found)} counterparties, but may {MAX_LINES}")
    return tuple(found[key] for key in sorted(found))


# Checking


def trade_sums(inputs: DayInputs, connection_id: str) -> tuple[Sum, ...]:
    """What a connection's trades alone come to: the part of a summary that anybody can compute."""
    lines = [
        RowLine("import", 0, 0, 0, inputs.supplier, False)  # so that the row is never left out
    ]
    rows = [Row(inputs.from_, 0, 0, "measured", tuple(lines), ())]
    rows += _trade_rows(inputs, connection_id)
    return tuple(one for one in sums_of(rows) if one.kind != "import")


def trades_changed(inputs: DayInputs, opened: Rows) -> bool:
    """Whether a connection's trades are others than those that its day was settled with.

    Trades are firm, but what a contract as produced delivers follows its seller's corrections.
    """

    def traded(rows: Iterable[Row]) -> list[bytes]:
        return sorted(
            canonical_json([row.interval_start, line])
            for row in rows
            for line in row.lines
            if line.kind in _TRADED
        )

    return traded(opened.rows) != traded(_trade_rows(inputs, opened.connection_id))


def _trade_rows(inputs: DayInputs, connection_id: str) -> Iterator[Row]:
    """A row for each of a connection's trades, of what it alone comes to."""
    (connection,) = [one for one in inputs.connections if one.connection_id == connection_id]
    terms = inputs.settle_terms()
    for trade in connection.trades:
        # Metered as traded: neither shortfall nor surplus.
        metered = Metered(
            connection_id,
            max(0, trade.energy_wh),
            max(0, -trade.energy_wh),
            (_fill(trade),),
            terms,
        )
        found = tuple(
            _row_line(line)
            for line in settle([metered]).lines
            if line.kind in _TRADED or line.kind == "fee"
        )
        yield Row(trade.interval_start, 0, 0, "measured", found, ())


def check_summary(inputs: DayInputs, summary: Summary) -> None:
    """Raise Conflict for a summary that can't be right, by what is public.

    Trades are computed again. What rests on readings is bounded: every Wh has one line, each line
    its price and its counterparty.
    """
    name = summary.connection_id
    (connection,) = [one for one in inputs.connections if one.connection_id == name]
    if summary.terms_version != inputs.terms_version:
        raise Conflict(
            f"the day of {name} was computed under version {summary.terms_version} of the terms, "
            f"but {inputs.terms_version} holds"
        )
    _check_form(inputs, summary)
    by_kind: dict[str, int] = {}
    for one in summary.sums:
        by_kind[one.kind] = by_kind.get(one.kind, 0) + one.energy_wh
        _check_sum(inputs, connection, one)
    _check_energy(name, summary, by_kind)
    traded = {(one.kind, one.counterparty, one.paid): one for one in trade_sums(inputs, name)}
    for one in summary.sums:
        key = (one.kind, one.counterparty, one.paid)
        if one.kind in _TRADED and traded.get(key) != one:
            raise Conflict(f"the day of {name} has {_text(one)}, but its trades say otherwise")
    shown = [(one.kind, one.counterparty, one.paid) for one in summary.sums]
    for key, one in traded.items():
        if one.kind in _TRADED and key not in shown:
            raise Conflict(f"the day of {name} lacks {_text(one)}, which was traded")
    _check_fees(inputs, summary, traded, by_kind)


def check_shared(summaries: Sequence[Summary]) -> None:
    """Raise Conflict unless what members gave others took, to the Wh and the micro-unit."""

    def sides(kind: str) -> dict[tuple[str, str], tuple[int, int]]:
        found = {}
        for summary in summaries:
            for one in summary.sums:
                if one.kind == kind:
                    ends = summary.connection_id, one.counterparty
                    giver, taker = ends if kind == "shared" else ends[::-1]
                    amount = one.amount_micro if kind == "shared" else -one.amount_micro
                    found[giver, taker] = one.energy_wh, amount
        return found

    given, taken = sides("shared"), sides("taken")
    for giver, taker in sorted({**given, **taken}):
        if given.get((giver, taker)) != taken.get((giver, taker)):
            raise Conflict(
                f"the days of {giver} and {taker} differ in what they share: "
                f"{given.get((giver, taker))} was given, {taken.get((giver, taker))} taken"
            )


def _check_form(inputs: DayInputs, summary: Summary) -> None:
    """Raise Conflict for what is named twice, and for more lines, so more roundings, than can be.

    Of most kinds an interval has one line with a counterparty at most.
    """
    name = summary.connection_id
    keys = [(one.kind, one.counterparty, one.paid) for one in summary.sums]
    holders = [one.holder for one in summary.tokens]
    if keys != sorted(dict.fromkeys(keys)) or holders != sorted(dict.fromkeys(holders)):
        raise Conflict(f"the day of {name} names sums or holders out of order, or twice")
    taken = sum(one.lines for one in summary.sums if one.kind == "taken")
    for one in summary.sums:
        if one.kind in _TRADED:
            continue  # computed again to the line
        most = inputs.intervals
        if one.kind == "fee":
            most += taken + _fee_lines(inputs, name, paid=one.paid)
        if one.lines > most:
            raise Conflict(
                f"the day of {name} has {_text(one)} in {one.lines} lines, but can have {most}"
            )


def _fee_lines(inputs: DayInputs, connection_id: str, *, paid: bool) -> int:
    """Of a connection's trades."""
    return sum(
        one.lines
        for one in trade_sums(inputs, connection_id)
        if one.kind == "fee" and one.paid == paid
    )


def _text(one: Sum) -> str:
    return (
        f"{one.kind} with {one.counterparty}: {one.energy_wh} Wh for {one.amount_micro} micro-units"
    )


def _check_energy(name: str, summary: Summary, by_kind: Mapping[str, int]) -> None:
    def total(*kinds: str) -> int:
        return sum(by_kind.get(kind, 0) for kind in kinds)

    exported = total("sold", "shared", "netted", "feed_in", "banked") - total("shortfall")
    imported = total("bought", "taken", "netted", "import") - total("surplus")
    for what, lines_wh, metered_wh in (
        ("export", exported, summary.export_wh),
        ("import", imported, summary.import_wh),
        ("tokens", sum(one.energy_wh for one in summary.tokens), summary.export_wh),
    ):
        if lines_wh != metered_wh:
            raise Conflict(
                f"the day of {name}: {what} adds up to {lines_wh} Wh, but {metered_wh} Wh were "
                "metered"
            )
    for part, whole in (("shortfall", "sold"), ("surplus", "bought")):
        if total(part) > total(whole):
            raise Conflict(
                f"the day of {name} has a {part} of {total(part)} Wh, but {total(whole)} were "
                f"{whole}"
            )
    for one in summary.tokens:
        if one.retired_wh > one.energy_wh:
            raise Conflict(f"the day of {name} retires more of {one.holder}'s tokens than it has")


def _check_sum(inputs: DayInputs, connection: ConnectionDay, one: Sum) -> None:
    name = connection.connection_id
    billed = inputs.terms.rest == "billed"
    settled: dict[str, tuple[str, int, int]] = {
        "feed_in": (inputs.supplier, 0 if billed else inputs.terms.base_rate, 1),
        "import": (inputs.supplier, 0 if billed else inputs.terms.tariff, -1),
        "netted": (inputs.supplier, 0, 1),
        "banked": (inputs.supplier, 0, 1),
        "surplus": (inputs.balancer, inputs.settle_terms().surplus, 1),
    }
    if one.kind == "banked" and (billed or not inputs.terms.banking_days):
        raise Conflict(f"the day of {name} has {_text(one)}, but the terms bank nothing")
    if one.kind == "feed_in" and not billed and inputs.terms.banking_days:
        raise Conflict(f"the day of {name} has {_text(one)}, but the terms bank it")
    if one.kind in ("shared", "taken"):
        price = _shared_price(inputs, connection, one.counterparty)
        if price is None:
            raise Conflict(f"the day of {name} has {_text(one)}, which is not of its community")
        _check_amount(name, one, price, 1 if one.kind == "shared" else -1)
    elif one.kind in settled:
        counterparty, price, sign = settled[one.kind]
        if one.counterparty != counterparty:
            raise Conflict(f"the day of {name} has {_text(one)}, which {counterparty} would pay")
        _check_amount(name, one, price, sign)
    elif one.kind == "shortfall":
        # Each interval has a price of its own: at least this one, at most what was sold dearest.
        least = max(inputs.shortfall_price, inputs.terms.tariff)
        sales = [x.price_micro_per_kwh + x.fee_micro_per_kwh for x in connection.trades
                 if x.energy_wh < 0]  # fmt: skip
        most = max(least, *sales) if sales else least
        lowest = one.energy_wh * least - 500 * one.lines
        highest = one.energy_wh * most + 500 * one.lines
        if one.counterparty != inputs.balancer or (
            not lowest <= -1000 * one.amount_micro <= highest
        ):
            raise Conflict(
                f"the day of {name} has {_text(one)}, but {inputs.balancer} gets {least} to {most} "
                "for each kWh"
            )
    must_be_paid = one.kind == "taken"
    if one.kind not in (*_TRADED, "fee") and one.paid != must_be_paid:
        raise Conflict(f"the day of {name} has {_text(one)}, which settlement pays")


def _shared_price(inputs: DayInputs, connection: ConnectionDay, counterparty: str) -> int | None:
    """What a connection shares with another one at; None if it doesn't."""
    for one in inputs.communities:
        if one.community == connection.community and counterparty in one.members:
            return one.price_micro_per_kwh
    return None


def _check_amount(name: str, one: Sum, price: int, sign: int) -> None:
    """Each line is rounded by half a micro-unit at most."""
    if abs(1000 * one.amount_micro * sign - one.energy_wh * price) > 500 * one.lines:
        raise Conflict(f"the day of {name} has {_text(one)}, but the price is {price}")


def _check_fees(
    inputs: DayInputs,
    summary: Summary,
    traded: Mapping[tuple[str, str, bool], Sum],
    by_kind: Mapping[str, int],
) -> None:
    """Fees of trades are computed again; those of import and sharing have one price each."""
    name = summary.connection_id
    for paid in (False, True):
        shown = [one for one in summary.sums if one.kind == "fee" and one.paid == paid]
        if any(one.counterparty != inputs.grid for one in shown):
            raise Conflict(f"the day of {name} has fees for others than {inputs.grid}")
        amount = -sum(one.amount_micro for one in shown)
        lines = sum(one.lines for one in shown)
        known = traded.get(("fee", inputs.grid, paid))
        if known is not None:
            amount += known.amount_micro
            lines -= known.lines
        expected = 0
        if not paid:
            # Netting leaves fees as they are: they are for all that was imported.
            imported = by_kind.get("import", 0) + by_kind.get("netted", 0)
            expected = imported * inputs.terms.import_fee
            expected += by_kind.get("taken", 0) * inputs.terms.shared_fee
        if abs(1000 * amount - expected) > 500 * max(0, lines):
            raise Conflict(
                f"the day of {name} has fees of {amount} micro-units beyond its trades', but "
                f"{expected // 1000} are due"
            )


@dataclass(frozen=True, slots=True)
class Difference:
    """Where an opened day is not what it should be."""

    interval_start: Instant | None
    """None: it is in the sums."""
    kind: str
    counterparty: str
    shown: str
    expected: str
    off_by_micro: int
    """Shown less expected."""


def first_difference(inputs: DayInputs, opened: Rows, summary: Summary) -> Difference | None:
    """The first of `differences`; None if each line and each sum is right."""
    return next(differences(inputs, opened, summary), None)


def differences(inputs: DayInputs, opened: Rows, summary: Summary) -> Iterator[Difference]:
    """Compute an opened day again: of each interval the first line that is wrong, sums, the tree.

    What was shared rests on other members' readings: its energy is taken as it is shown, and the
    rest is computed from it.
    """
    if opened.connection_id != summary.connection_id or (opened.day, opened.run) != (
        summary.day,
        summary.run,
    ):
        raise InvalidArgument("opened is of another connection, day or run than summary")
    starts = range(inputs.from_, inputs.to, inputs.interval_s)
    yield from _row_differences(inputs, opened.connection_id, opened.rows, starts)
    sums = {(one.kind, one.counterparty, one.paid): one for one in sums_of(opened.rows)}
    posted = {(one.kind, one.counterparty, one.paid): one for one in summary.sums}
    for key in sorted({**sums, **posted}):
        if sums.get(key) != posted.get(key):
            left, right = _micro(posted.get(key)), _micro(sums.get(key))
            yield Difference(None, key[0], key[1], str(left), str(right), left - right)
    tree = tree_of(inputs, opened)
    if summary.tree != tree:
        yield Difference(None, "tree", "", summary.tree, tree, 0)


def window_differences(
    inputs: DayInputs, connection_id: str, windows: Sequence[Window]
) -> Iterator[Difference]:
    """Compute opened windows again: of each interval the first line that is wrong.

    If all windows are shown, the intervals between them are known to be empty.
    """
    if windows and len(windows) == windows[0].count:
        rows = [row for window in windows for row in window.rows]
        starts = range(inputs.from_, inputs.to, inputs.interval_s)
        yield from _row_differences(inputs, connection_id, rows, starts)
        return
    length = inputs.interval_s * inputs.terms.netting_intervals
    for window in windows:
        number = window_number(inputs, window.rows[0].interval_start)
        start = inputs.from_ + number * length
        starts = range(start, min(start + length, inputs.to), inputs.interval_s)
        yield from _row_differences(inputs, connection_id, window.rows, starts)


def _share_differences(
    connection: ConnectionDay, start: int, row: Row | None
) -> Iterator[Difference]:
    """Contracts as produced whose published energy isn't their share of the row's export."""
    export_wh = 0 if row is None else row.metered[1]
    for trade in connection.trades:
        if trade.share_ppm and trade.interval_start == start:
            produced = trade.produced_wh(export_wh)
            if -trade.energy_wh != produced:
                yield Difference(
                    start,
                    "delivered",
                    trade.counterparty,
                    f"{-trade.energy_wh} Wh",
                    f"{produced} Wh",
                    0,
                )


def _row_differences(
    inputs: DayInputs, connection_id: str, rows: Sequence[Row], starts: Sequence[int]
) -> Iterator[Difference]:
    """Of each of these intervals the first line that isn't what its row's energy comes to.

    The intervals follow one another, and make up whole netting windows.
    """
    (connection,) = [one for one in inputs.connections if one.connection_id == connection_id]
    shown = {row.interval_start: row for row in rows}
    alone = replace(
        inputs,
        from_=starts[0],
        to=starts[-1] + inputs.interval_s,
        connections=(replace(connection, community=None),),
        communities=(),
    )
    metered = []
    for start in starts:
        row = shown.get(start) or Row(start, 0, 0, "measured", (), ())
        given, taken = _energy(row, "shared"), _energy(row, "taken")
        metered.append(
            MeteredInterval(
                max(0, row.import_wh - taken), max(0, row.export_wh - given), row.quality
            )
        )
    expected = {
        row.interval_start: row for row in compute(alone, {connection_id: metered})[connection_id]
    }
    for start in starts:
        known = shown.get(start)
        yield from _share_differences(connection, start, known)
        lines = list(expected[start].lines) if start in expected else []
        own: list[RowLine] = []
        for line in known.lines if known is not None else ():
            if line.kind not in ("shared", "taken"):
                own.append(line)
                continue
            price = _shared_price(inputs, connection, line.counterparty)
            sign = 1 if line.kind == "shared" else -1
            expected_micro = None if price is None else sign * amount_micro(line.energy_wh, price)
            if line.amount_micro != expected_micro:
                yield Difference(
                    start,
                    line.kind,
                    line.counterparty,
                    _line_text(line),
                    "no line" if expected_micro is None else str(expected_micro),
                    line.amount_micro - (expected_micro or 0),
                )
                break
            fee = inputs.terms.shared_fee
            if line.kind == "taken" and fee:
                lines.append(
                    RowLine(
                        "fee",
                        line.energy_wh,
                        fee,
                        -amount_micro(line.energy_wh, fee),
                        inputs.grid,
                        False,
                    )
                )
        else:
            found = _compare(start, own, lines)
            if found is not None:
                yield found


def _micro(one: Sum | RowLine | None) -> int:
    return 0 if one is None else one.amount_micro


def _compare(
    start: int, shown: Sequence[RowLine], expected: Sequence[RowLine]
) -> Difference | None:
    """The first line that differs; lines of one interval are compared in one order."""

    def place(line: RowLine) -> tuple[str, str, int, int, int]:
        return (
            line.kind,
            line.counterparty,
            line.price_micro_per_kwh,
            line.energy_wh,
            line.amount_micro,
        )

    left, right = sorted(shown, key=place), sorted(expected, key=place)
    for index in range(max(len(left), len(right))):
        one = left[index] if index < len(left) else None
        other = right[index] if index < len(right) else None
        if one != other:
            named = one or other
            assert named is not None
            return Difference(
                start,
                named.kind,
                named.counterparty,
                "no line" if one is None else _line_text(one),
                "no line" if other is None else _line_text(other),
                _micro(one) - _micro(other),
            )
    return None


def _line_text(line: RowLine) -> str:
    return f"{line.energy_wh} Wh at {line.price_micro_per_kwh}: {line.amount_micro} micro-units" + (
        ", paid before" if line.paid else ""
    )


def most_members(interval_s: int) -> int:
    """How many members a community may have, whose longest day one call can still compute."""
    return min(MAX_MEMBERS, max(1, MAX_COMMUNITY_CELLS * interval_s // _LONGEST_DAY_S))


def written_at_once(intervals: int) -> int:
    """How many members' days of a community one call writes."""
    return max(1, MAX_WRITTEN_CELLS // max(1, intervals))


def check_written(inputs: DayInputs, only: Sequence[str] | None) -> list[str]:
    """Whose days a call writes: all, or of a community `only` some.

    Raises:
        InvalidArgument: they aren't of those that are computed, or more than one call can write.
    """
    names = [one.connection_id for one in inputs.connections]
    wanted = names if only is None else list(only)
    if only is not None and (not only or [one for one in names if one in only] != wanted):
        raise InvalidArgument("only must name some of connections, in order, one at least")
    if only is not None and not inputs.communities:
        raise InvalidArgument("only is for communities; others are settled by calls of their own")
    if inputs.communities and len(wanted) > written_at_once(inputs.intervals):
        raise InvalidArgument(
            f"{len(wanted)} days of {inputs.intervals} intervals would be written, but one call "
            f"writes {written_at_once(inputs.intervals)}; name them in only, by several calls"
        )
    return wanted


def check_size(inputs: DayInputs) -> None:
    """Raise InvalidArgument for more than one call can settle."""
    if inputs.intervals > MAX_INTERVALS:
        raise InvalidArgument(
            f"day {inputs.day} has {inputs.intervals} intervals, but {MAX_INTERVALS} can be settled"
        )
    cells = inputs.intervals * len(inputs.connections)
    most = MAX_COMMUNITY_CELLS if inputs.communities else MAX_CELLS
    if cells > most:
        raise InvalidArgument(
            f"connections has {len(inputs.connections)} items of {inputs.intervals} intervals, "
            f"{cells} in all, but {most} can be settled at once; name fewer, and of communities "
            "one at a time"
        )


def check_run(inputs: DayInputs, run: str, now: int) -> None:
    """Raise Conflict for a run whose time hasn't come, or is over."""
    day, time = inputs.day, utc_text(now)
    if now < inputs.to:
        raise Conflict(f"day {day} ends at {utc_text(inputs.to)}, but the channel's time is {time}")
    if run != "provisional" and now < inputs.final_at:
        raise Conflict(
            f"day {day} becomes final at {utc_text(inputs.final_at)}, but the channel's time is "
            f"{time}"
        )
    if run.startswith("adjustment-") and now > inputs.adjustable_until:
        raise Conflict(
            f"day {day} could be adjusted until {utc_text(inputs.adjustable_until)}, and the "
            f"channel's time is {time}"
        )
