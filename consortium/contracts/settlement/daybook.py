"""Contract `daybook`: settles days of connections in private, and commits to them.

Runs where the readings are, on the utility's own peers, and writes nothing but private records, so
that the utility's endorsement alone is asked for and the channel carries two hashes for each day:

    str/{day}/{run}/{connection}   `days.Rows`: each interval, with every line
    st/{day}/{run}/{connection}    `days.Summary`: the sums that settlement:Post takes

Whoever holds the readings can compute a committed day again (`audit`): an auditor, or another peer
of the utility. Whoever doesn't can be shown a part of it (`open`), without the rest of the day.

What has no reading is estimated: by the same interval a week before, else a day before, else as
nothing. It is marked, and the reading counts as soon as it comes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    InvalidArgument,
    MspId,
    NotFound,
    canonical_json,
    query,
    transaction,
)

from ..common import access, commitments, settings
from ..common.clock import DAY_S, Day
from ..common.commitments import called
from ..common.residence import EVERYBODY, require_day, residence
from ..common.settings import MeteringSettings
from ..meters.meters import meters_of
from ..meters.pseudonyms import homes_of, split
from ..meters.readings import (
    MAX_VERSIONS,
    Arrival,
    Reading,
    Store,
    arrival_of,
    connection_intervals,
    fields_of,
)
from .days import (
    MAX_CONNECTIONS,
    DayInputs,
    MeteredInterval,
    Row,
    Rows,
    Run,
    Summary,
    check_run,
    check_size,
    check_written,
    compute,
    differences,
    follows,
    rows_key,
    summarize,
    summary_key,
    window_of,
    windows_beside,
)

ESTIMATED_FROM_S = (7 * DAY_S, DAY_S)
"""How long before a missing interval its estimate is taken from, the first that was read."""


def _inputs(context: Context, utility: str, day: str, connections: Sequence[str]) -> DayInputs:
    found = called(
        context,
        "energy",
        "settlement:Inputs",
        DayInputs,
        utility=utility,
        day=day,
        connections=list(connections),
    )
    own = settings.read(context, MeteringSettings, "metering:Configure").interval_s
    if own != found.interval_s:
        raise Conflict(
            f"interval_s is {own} in metering, but {found.interval_s} in energy; configure both "
            "alike"
        )
    check_size(found)
    return found


def _estimate(store: Store, meter_id: str, start: int) -> Reading | None:
    for back in ESTIMATED_FROM_S:
        if start >= back:
            found = store.latest(meter_id, start - back)
            if found is not None:
                return found
    return None


def metered_of(
    store: Store, connection_id: str, inputs: Times, until: int, *, scan: bool
) -> tuple[list[MeteredInterval], list[str]]:
    """A connection's intervals, estimated where they are missing before `until`; the salts."""
    found = connection_intervals(
        store, connection_id, inputs.from_, inputs.to, inputs.interval_s, scan=scan
    )
    intervals, secrets = [], []
    for one in found:
        if one.interval_start + inputs.interval_s > until:
            intervals.append(MeteredInterval(0, 0, "measured"))
            continue
        if one.missing == ("",):
            raise Conflict(
                f"{connection_id} has no accredited meter at {one.interval_start}; money settles "
                "on accredited readings"
            )
        import_wh, export_wh = one.import_wh, one.export_wh
        for meter_id in one.missing:
            guessed = _estimate(store, meter_id, one.interval_start)
            if guessed is not None:
                import_wh += guessed.import_wh
                export_wh += guessed.export_wh
                secrets.append(guessed.salt)
        quality = "estimated" if one.missing else one.quality
        intervals.append(MeteredInterval(import_wh, export_wh, quality))
        secrets += one.secrets
    return intervals, secrets


def all_metered(
    context: Context, store: Store, inputs: DayInputs, until: int, *, scan: bool
) -> tuple[dict[str, list[MeteredInterval]], dict[str, list[str]]]:
    """What each connection and each pseudonym has of the day, and the salts it rests on."""
    homes = homes_of(context, inputs)
    metered: dict[str, list[MeteredInterval]] = {}
    secrets: dict[str, list[str]] = {}
    for one in inputs.connections:
        name = one.connection_id
        if name not in homes:
            metered[name], secrets[name] = metered_of(store, name, inputs, until, scan=scan)
    for one in inputs.connections:
        home = homes.get(one.connection_id)
        if home is not None:
            if home in homes:
                raise Conflict(f"{one.connection_id} is a pseudonym of another pseudonym")
            taken, metered[home] = split(inputs, one, metered[home])
            metered[one.connection_id] = taken
            secrets[one.connection_id] = secrets[home]
    return metered, secrets


def _check_shares(inputs: DayInputs, metered: Mapping[str, Sequence[MeteredInterval]]) -> None:
    """Raise Conflict where a contract's published deliveries aren't its share of the export."""
    for one in inputs.connections:
        for trade in one.trades:
            if not trade.share_ppm:
                continue
            found = metered[one.connection_id][
                (trade.interval_start - inputs.from_) // inputs.interval_s
            ]
            if trade.produced_wh(found.export_wh) != -trade.energy_wh:
                raise Conflict(
                    f"contract {trade.reference} sells {trade.share_ppm} ppm of what "
                    f"{one.connection_id} exports, and what was published for "
                    f"{trade.interval_start} isn't that; bilateral:Deliver comes first"
                )


class Times(Protocol):
    """From when to when, in which intervals."""

    @property
    def from_(self) -> int: ...
    @property
    def to(self) -> int: ...
    @property
    def interval_s(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Together:
    connections: Annotated[tuple[Identifier, ...], AtMost(MAX_CONNECTIONS)]


# Auditing

MAX_WAYS = 1_000
"""To combine the versions of several meters' readings."""
MAX_FINDINGS = 50
"""Of one connection, in one answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What in a committed day isn't what the readings come to."""

    interval_start: int | None
    """None: it is in the sums."""
    kind: str
    """Of the line, or `reading`, `tokens`, `total`."""
    counterparty: str
    shown: str
    expected: str
    off_by_micro: int


class _Auditor:
    """Computes a connection's day again."""

    def __init__(self, store: Store, inputs: DayInputs, connection_id: str) -> None:
        self._store = store
        self._inputs = inputs
        self._connection_id = connection_id

    def compare(
        self, opened: Rows, summary: Summary, expected: Sequence[Row], salt: str
    ) -> dict[str, Any]:
        """The committed day beside what its readings come to now."""
        name = self._connection_id
        same = opened.salt == salt
        altered: list[Finding] = []
        changed: list[int] = []
        shown = {row.interval_start: row for row in opened.rows}
        computed = {row.interval_start: row for row in expected}
        for start in range(self._inputs.from_, self._inputs.to, self._inputs.interval_s):
            row = shown.get(start) or Row(start, 0, 0, "measured", (), ())
            again = computed.get(start) or Row(start, 0, 0, "measured", (), ())
            if (row.metered, row.elsewhere) != (again.metered, again.elsewhere):
                if not same and self._was_read(row):
                    changed.append(start)
                    continue
                altered.append(Finding(start, "reading", name, _energies(row), _energies(again), 0))
            if same and row.tokens != again.tokens:
                left, right = (canonical_json(one.tokens).decode() for one in (row, again))
                altered.append(Finding(start, "tokens", name, left, right, 0))
        altered += [
            Finding(
                one.interval_start,
                one.kind,
                one.counterparty,
                one.shown,
                one.expected,
                one.off_by_micro,
            )
            for one in differences(self._inputs, opened, summary)
        ]
        if not altered and summary != summarize(self._inputs, opened):
            altered.append(Finding(None, "total", name, "other totals", "those of the rows", 0))
        verdict = "altered" if altered else "agrees" if same and not changed else "changed_since"
        return {
            "connection_id": name,
            "verdict": verdict,
            "findings": altered[:MAX_FINDINGS],
            "changed": changed[:MAX_FINDINGS],
        }

    def _was_read(self, row: Row) -> bool:
        """Whether some version of the readings, or an estimate, is what a row counts."""
        start = row.interval_start
        end = start + self._inputs.interval_s
        sums = [(0, 0)]
        for meter in meters_of(self._store.context, self._connection_id):
            if meter.utility != self._store.utility or not meter.settles(start, end):
                continue
            options: list[tuple[int, int]] = []
            for version in range(1, MAX_VERSIONS + 1):
                found = self._store.version(meter.meter_id, start, version)
                if found is None:
                    break
                options.append((found.import_wh, found.export_wh))
            if row.quality == "estimated" or not options:
                guessed = _estimate(self._store, meter.meter_id, start)
                options.append((guessed.import_wh, guessed.export_wh) if guessed else (0, 0))
            sums = [(before[0] + one[0], before[1] + one[1]) for before in sums for one in options]
        return row.metered in sums


def _energies(row: Row) -> str:
    other = "" if row.elsewhere is None else ", and more under other names"
    return f"{row.import_wh} Wh imported, {row.export_wh} Wh exported{other}"


def _as_counted(
    store: Store, meters: Sequence[str], row: Row
) -> tuple[list[Reading], list[Arrival]]:
    """The versions of an interval's readings that a row counts, and when they were corrected.

    Raises NotFound where none come to it.
    """
    start = row.interval_start
    ways: list[list[Reading]] = [[]]
    for meter_id in meters:
        versions = [store.version(meter_id, start, one) for one in range(1, MAX_VERSIONS + 1)]
        ways = [[*way, one] for way in ways for one in versions if one is not None][:MAX_WAYS]
    for way in ways:
        if (sum(x.import_wh for x in way), sum(x.export_wh for x in way)) == row.metered:
            newer = [
                arrival_of(store, one.meter_id, start, one.version + 1)
                for one in way
                if store.version(one.meter_id, start, one.version + 1) is not None
            ]
            return way, [one for one in newer if one is not None]
    raise NotFound(f"no versions of the readings at {start} come to what the day counts")


class Daybook(Contract):
    """Days of connections."""

    name: ClassVar[str] = "daybook"

    @transaction
    def commit(
        self,
        context: Context,
        *,
        utility: MspId,
        day: Day,
        run: Run,
        connections: Annotated[tuple[Identifier, ...], AtMost(MAX_CONNECTIONS)],
        only: Annotated[tuple[Identifier, ...], AtMost(MAX_CONNECTIONS)] | None = None,
    ) -> dict[str, Any]:
        """Settle a day of some connections together and commit to it; tells no amounts.

        A community whose day is too large for one transaction is settled by several, each of which
        computes all of it and writes `only` some members' records. What was read in between makes
        them differ in what they share, and then settlement:Post lets none of them pass.
        """
        access.require_operator(context.creator, utility, f"settle days of {utility}")
        inputs = _inputs(context, utility, day, connections)
        written = check_written(inputs, only)
        own = settings.read(context, MeteringSettings, "metering:Configure")
        check_run(inputs, run, settings.now(context, own))
        for one in inputs.connections:
            if not follows(one.posted, run):
                raise Conflict(
                    f"the last settlement of {one.connection_id} for {day} that was posted is "
                    f"{one.posted or 'none'}, which {run} doesn't follow"
                )
        store = Store(context, utility)
        metered, secrets = all_metered(context, store, inputs, inputs.to, scan=False)
        _check_shares(inputs, metered)
        records = []
        for name, rows in compute(inputs, metered).items():
            if name not in written:
                continue
            if not secrets[name]:
                raise Conflict(
                    f"{name} has no reading of {day}, nor of a day before to estimate it from"
                )
            key = rows_key(day, run, name)
            opened = Rows(name, day, run, rows, commitments.salt(context, key, secrets[name]))
            hashed = commitments.put(context, utility, key, opened)
            place = summary_key(day, run, name)
            committed = commitments.put(context, utility, place, summarize(inputs, opened, hashed))
            records.append({"connection_id": name, "key": place, "commitment": committed})
        return {"utility": utility, "day": day, "run": run, "records": records}

    @query
    def preview(
        self,
        context: Context,
        *,
        utility: MspId,
        day: Day,
        connections: Annotated[tuple[Identifier, ...], AtMost(MAX_CONNECTIONS)],
    ) -> list[dict[str, Any]]:
        """What a day comes to so far, interval by interval; for a home, its own alone."""
        inputs = _inputs(context, utility, day, connections)
        now = settings.now(context, settings.read(context, MeteringSettings, "metering:Configure"))
        store = Store(context, utility)
        metered, _ = all_metered(context, store, inputs, now, scan=True)
        creator = context.creator
        found = []
        for name, rows in compute(inputs, metered).items():
            if access.is_operator(creator, utility) or residence(context, utility, name).on(day):
                opened = Rows(name, day, "provisional", rows, "0" * 64)
                summary = summarize(inputs, opened)
                found.append(
                    {
                        "connection_id": name,
                        "day": day,
                        "import_wh": summary.import_wh,
                        "export_wh": summary.export_wh,
                        "estimated": summary.estimated,
                        "sums": summary.sums,
                        "rows": rows,
                    }
                )
        return found

    @query
    def record(
        self,
        context: Context,
        *,
        utility: MspId,
        day: Day,
        run: Run,
        connection_id: Identifier,
    ) -> dict[str, Any]:
        """A committed day: the sums to post, and the rows that explain each of them."""
        creator = context.creator
        own = access.is_operator(creator, utility)
        seen = EVERYBODY if own else residence(context, utility, connection_id)
        access.require(
            seen.ever,
            creator,
            f"read the days of {connection_id}",
            f"its home and operators of {utility}",
        )
        require_day(creator, seen, day, f"read settlements of {connection_id}")
        opened = commitments.opened(context, utility, rows_key(day, run, connection_id), Rows)
        summary = commitments.opened(
            context, utility, summary_key(day, run, connection_id), Summary
        )
        if opened is None or summary is None:
            raise NotFound(f"{utility} has no {run} settlement of {connection_id} for {day}")
        return {"summary": summary, "opened": opened}

    @query
    def open_(
        self,
        context: Context,
        *,
        utility: MspId,
        day: Day,
        run: Run,
        connection_id: Identifier,
        interval_start: Instant,
        beside: bool = False,
        as_posted: bool = False,
    ) -> dict[str, Any]:
        """One interval of a committed day, with the proof that it is of it, to be shown to others.

        Nothing else of the day can be told from it, unless nothing was there and what is `beside`
        proves that. With `as_posted` it has the readings that the day counts though they were
        corrected since, and when that was.
        """
        found = self.record(context, utility=utility, day=day, run=run, connection_id=connection_id)
        inputs = self._inputs_with_community(context, utility, day, connection_id)
        if (
            not inputs.from_ <= interval_start < inputs.to
            or (interval_start - inputs.from_) % inputs.interval_s
        ):
            raise InvalidArgument(
                f"interval_start is {interval_start}, but must be an interval of {day}"
            )
        window = window_of(inputs, found["opened"], interval_start)
        if window is None and not beside:
            raise NotFound(f"{connection_id} had neither energy nor trades at {interval_start}")
        windows = (
            windows_beside(inputs, found["opened"], interval_start) if window is None else [window]
        )
        store = Store(context, utility)
        readings: list[Reading] = []
        arrivals: list[Arrival] = []
        for row in [] if window is None else window.rows:
            start = row.interval_start
            settling = [
                meter.meter_id
                for meter in meters_of(context, connection_id)
                if meter.utility == utility and meter.settles(start, start + inputs.interval_s)
            ]
            if as_posted and start == interval_start:
                counted, since = _as_counted(store, settling, row)
                readings += counted
                arrivals += since
            else:
                latest = [store.latest(meter_id, start) for meter_id in settling]
                readings += [one for one in latest if one is not None]
        return {
            "summary": found["summary"],
            "windows": windows,
            "readings": [fields_of(reading) for reading in readings],
            **({"arrivals": arrivals} if as_posted else {}),
        }

    @staticmethod
    def _inputs_with_community(
        context: Context, utility: str, day: str, connection_id: str
    ) -> DayInputs:
        """A connection's public day, with all who share with it."""
        together = called(
            context, "energy", "sharing:Together", _Together, connection_id=connection_id, day=day
        )
        return _inputs(context, utility, day, together.connections)

    @query
    def audit(
        self,
        context: Context,
        *,
        utility: MspId,
        day: Day,
        run: Run,
        connections: Annotated[tuple[Identifier, ...], AtMost(MAX_CONNECTIONS)],
    ) -> list[dict[str, Any]]:
        """Compute committed days again from the readings and name each line that differs.

        On any peer that holds them; connections that were settled by one call belong together.
        """
        creator = context.creator
        access.require(
            access.is_operator(creator, utility) or commitments.is_overseer(context),
            creator,
            f"audit days of {utility}",
            f"operators of {utility}, and auditors",
        )
        inputs = _inputs(context, utility, day, connections)
        store = Store(context, utility)
        metered, secrets = all_metered(context, store, inputs, inputs.to, scan=True)
        found = []
        for name, rows in compute(inputs, metered).items():
            opened = commitments.opened(context, utility, rows_key(day, run, name), Rows)
            summary = commitments.opened(context, utility, summary_key(day, run, name), Summary)
            if opened is None or summary is None:
                raise NotFound(f"{utility} has no {run} settlement of {name} for {day}")
            salt = ""
            if secrets[name]:
                salt = commitments.salt(context, rows_key(day, run, name), secrets[name])
            found.append(_Auditor(store, inputs, name).compare(opened, summary, rows, salt))
        return found
