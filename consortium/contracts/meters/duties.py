"""Contract `duties` of chaincode `metering`: the end of days, as calls for a utility's agent.

On the utility's own peers, where the readings are. A day is settled as soon as its last interval is
read, or once a reading would be late anyway; a settled period is billed. What was computed in
private is posted by the next call, with the part of it that is public.

What comes after a day is final is an adjustment: all that came of a day until nothing more has come
for an hour is one (`Corrections`). Limits and suspensions are named apart (`Steps`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    Contract,
    ContractError,
    Identifier,
    Unavailable,
    query,
    sha256_hex,
)

from ..assets.guarantees import OpenMonths, month_end
from ..assets.origins import to_be_committed
from ..billing.bill_basis import (
    MAX_RUNS,
    BilledDay,
    OpenBill,
    OpenBills,
    Statement,
    statement_key,
)
from ..billing.bill_records import corrected
from ..billing.protections import CLEARANCE_S, ReadySteps, clearance_of, mark_of
from ..common import access, commitments, settings
from ..common.clock import DAY_S, day_of, day_start
from ..common.commitments import called
from ..common.remembered import remembered
from ..common.settings import MeteringSettings
from ..settlement.daybook import all_metered, metered_of
from ..settlement.days import (
    MAX_MEMBERS,
    MAX_OPEN_DAYS,
    OPEN_FOR_DAYS,
    TURN_S,
    DayInputs,
    OpenDay,
    OpenDays,
    RevisedDay,
    RevisedDays,
    Rows,
    Summary,
    check_shared,
    rows_key,
    summary_key,
    trades_changed,
    written_at_once,
)
from ..settlement.firm import Shares
from .meters import meter_of
from .pseudonyms import together
from .readings import Store, connection_intervals, late_arrivals, late_days

LOOK_BACK_DAYS = 7
"""How long after it came a correction is looked at: by then it is posted."""
REST_S = 3600
"""Nothing more of a day must have come for so long, so that it is adjusted once."""
MAX_ADJUSTMENTS = 99
MAX_CORRECTIONS = 20
MAX_PLANTS = 20
"""Months of plants of one answer: each is read as a whole."""
MAX_CALLS = 50
"""Calls that settle, of one answer; the others are named once these are done."""
MAX_LOOKED_AT = 5_000
"""Days of connections, whether they were read: some seconds, where none of them was."""
MAX_ARRIVALS = 50_000
"""What came late within a day, while that lasts."""
MAX_LOOKED_UP = 5_000
"""Days of connections of which something came late: whether they are final."""
MAX_LOOKED_INTO = 200
"""Final ones, whether they come to something else now."""
_OF_EACH_METER = ("meter", "meters")
"""Kinds of keys of which each meter, or home, has one."""
SPLIT_AFTER_S = 2 * DAY_S
APART_AFTER_S = (OPEN_FOR_DAYS - 3) * DAY_S
"""When connections are settled by few, and by themselves: one that can't be keeps others waiting,
and these are the last days on which they are looked at."""
_FEW = 8


@dataclass(frozen=True, slots=True)
class _Together:
    connections: Annotated[tuple[Identifier, ...], AtMost(MAX_MEMBERS)]


def _is_read(
    store: Store, connection_id: str, one: OpenDay, own: MeteringSettings, now: int
) -> bool:
    """Whether a connection's day can be settled now."""
    [last] = connection_intervals(
        store, connection_id, one.to - own.interval_s, one.to, own.interval_s, scan=True
    )
    if not last.missing:
        return True
    if last.missing == ("",) or now < one.to + own.late_after_s:
        return False  # without an accredited meter money never settles
    day = connection_intervals(store, connection_id, one.from_, one.to, own.interval_s, scan=True)
    return any(interval.secrets for interval in day)


class Duties(Contract):
    """What is due where the readings are."""

    name: ClassVar[str] = "duties"

    @query
    def due(self, context: Context) -> list[dict[str, Any]]:
        """Calls that settle days, make bills and sum plants up, for the caller's utility alone."""
        utility = context.creator.msp_id
        self._require_operator(context, utility)
        context = remembered(context, *_OF_EACH_METER)
        open_days = called(context, "energy", "agenda:Days", OpenDays, utility=utility)
        found = self._settle(context, utility, open_days.days)
        open_bills = called(context, "energy", "agenda:Bills", OpenBills, utility=utility)
        for bill in open_bills.bills:
            try:
                found.append(self._bill(context, utility, bill, 1))
            except Unavailable:
                continue
        return found + _plants(context, utility)

    @query
    def corrections(self, context: Context) -> list[dict[str, Any]]:
        """Calls that adjust final days, and their bills, to what came since, each day once."""
        utility = context.creator.msp_id
        self._require_operator(context, utility)
        context = remembered(context, *_OF_EACH_METER)
        own = settings.read(context, MeteringSettings, "metering:Configure")
        days: list[OpenDay] = []
        bills: list[dict[str, Any]] = []
        seen: dict[tuple[str, str], None] = {}
        for name, at in _revised(context, utility, settings.now(context, own)):
            inputs = _final_inputs(context, utility, name, at)
            day = day_of(at) if inputs is None else inputs.day
            if (name, day) in seen:
                continue
            seen[name, day] = None
            try:
                following = None if inputs is None else _next_run(context, utility, inputs, name)
            except Unavailable:
                continue
            if inputs is not None and following is not None:
                group = tuple(one.connection_id for one in inputs.connections)
                if not any(one.day == inputs.day and name in one.connections for one in days):
                    days.append(OpenDay(inputs.day, following, inputs.to, inputs.from_,
                                        len(group) > 1, group))  # fmt: skip
                continue
            billed = _billed(context, name, at)
            if billed.from_day is None or billed.to_day is None or billed.run is None:
                continue
            try:
                if billed.run < MAX_RUNS and corrected(
                    context, name, billed.from_day, billed.to_day, billed.run
                ):
                    bill = OpenBill(name, billed.from_day, billed.to_day)
                    call = self._bill(context, utility, bill, billed.run + 1)
                    bills += [] if call in bills else [call]
            except Unavailable:
                continue
            if len(days) + len(bills) >= MAX_CORRECTIONS:
                break
        return self._settle(context, utility, days) + bills

    @query
    def steps(self, context: Context) -> list[dict[str, Any]]:
        """Calls that limit or suspend homes of the caller's utility that everything allows to.

        Of homes that are protected, or of which nobody has said that they aren't, none.
        """
        utility = context.creator.msp_id
        self._require_operator(context, utility)
        now = settings.now(context, settings.read(context, MeteringSettings, "metering:Configure"))
        found: list[dict[str, Any]] = []
        for step in called(context, "energy", "agenda:Steps", ReadySteps, utility=utility).steps:
            name = step.connection_id
            mark = mark_of(context, utility, name)
            if mark is None or (mark.kind != "none" and now < mark.until):
                continue
            clearance = clearance_of(context, utility, name)
            fresh = clearance is not None and clearance.case == step.case
            if (
                clearance is not None
                and fresh
                and (clearance.cleared_at <= now < clearance.cleared_at + CLEARANCE_S // 2)
            ):
                argument = {"connection_id": name, "cleared_at": clearance.cleared_at}
                found.append({"chaincode": "energy", "function": step.function,
                              "argument": argument, "utility": utility,
                              "endorsing": []})  # fmt: skip
            else:
                found.append({"function": "protection:Clear", "argument": {"connection_id": name},
                              "utility": utility})  # fmt: skip
        return found

    @staticmethod
    def _require_operator(context: Context, utility: str) -> None:
        access.require_operator(context.creator, utility, f"see what is due at {utility}")

    @staticmethod
    def _settle(context: Context, utility: str, days: Sequence[OpenDay]) -> list[dict[str, Any]]:
        """Calls that commit and post days."""
        own = settings.read(context, MeteringSettings, "metering:Configure")
        now = settings.now(context, own)
        store = Store(context, utility)
        found: list[dict[str, Any]] = []
        parts = together(context, utility, days)
        # Where the first ones are refused each time, the others have their turn too.
        first = now // TURN_S * MAX_CALLS % len(parts) if len(parts) > MAX_CALLS else 0
        looked_at = 0
        for one, homes in parts[first:] + parts[:first]:
            if len(found) >= MAX_CALLS or looked_at >= MAX_LOOKED_AT:
                break
            looked_at += len(one.connections)
            try:
                found += _calls(context, store, one, homes, own, now)
            except ContractError, Unavailable:
                continue  # one that can't be settled keeps no others waiting
        return found

    @staticmethod
    def _bill(context: Context, utility: str, bill: OpenBill, run: int) -> dict[str, Any]:
        """The call that computes a bill, or, once that is done, the one that posts it."""
        key = statement_key(bill.connection_id, bill.from_day, run)
        statement = commitments.opened(context, utility, key, Statement)
        if statement is None:
            argument = {
                "connection_id": bill.connection_id,
                "from_day": bill.from_day,
                "to_day": bill.to_day,
                **({} if run == 1 else {"run": run}),
            }
            return {"function": "bill:Compute", "argument": argument, "utility": utility}
        return {
            "chaincode": "energy",
            "function": "billing:Post",
            "argument": {"statement": statement},
            "utility": utility,
            "endorsing": [],
        }


def _calls(
    context: Context,
    store: Store,
    one: OpenDay,
    homes: Mapping[str, str],
    own: MeteringSettings,
    now: int,
) -> list[dict[str, Any]]:
    """Calls that commit and post a day of some connections; `homes` are those of pseudonyms."""
    utility = store.utility
    where = {"utility": utility, "day": one.day, "run": one.run}
    summaries: list[Summary] = []
    rest: list[str] = []
    known: dict[str, Summary | None] = {}
    for name in one.connections:
        key = summary_key(one.day, one.run, name)
        try:
            known[name] = commitments.opened(context, utility, key, Summary)
        except Unavailable:
            if one.together:
                raise
    # A home and its pseudonyms are computed together.
    waiting = [homes.get(name, name) for name in known if known[name] is None]
    for name, summary in known.items():
        home = homes.get(name, name)
        if summary is not None and home not in waiting:
            summaries.append(summary)
        elif _is_read(store, home, one, own, now):
            rest.append(name)
    if one.together:
        if len(summaries) + len(rest) < len(one.connections):
            return []
        if not rest and not _agree(summaries):
            rest = list(one.connections)  # a reading came in between
        summaries = [] if rest else summaries
    found: list[dict[str, Any]] = [
        {
            "chaincode": "energy",
            "function": "settlement:Post",
            "argument": {
                **where,
                "summaries": [each for each in summaries if each.connection_id in some],
            },
            "utility": utility,
            "endorsing": [],
        }
        for some in _few(one, homes, [each.connection_id for each in summaries], now)
    ]
    lacking = [] if not rest else _undelivered(context, utility, store, one, rest)
    found += lacking
    if rest and not lacking:
        for some in _few(one, homes, rest, now):
            for part in _parts(one, some, own.interval_s):
                found.append(
                    {
                        "function": "daybook:Commit",
                        "argument": {**where, **part},
                        "utility": utility,
                    }
                )
    return found


def _few(one: OpenDay, homes: Mapping[str, str], names: list[str], now: int) -> Iterator[list[str]]:
    """Connections that one call settles: fewer as time passes, a home with its pseudonyms."""
    late_s = now - one.to
    most = 1 if late_s >= APART_AFTER_S else _FEW if late_s >= SPLIT_AFTER_S else len(names)
    if one.together or one.run.startswith("adjustment-") or most >= len(names):
        if names:
            yield names
        return
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(homes.get(name, name), []).append(name)
    some: list[str] = []
    for family in families.values():
        if some and len(some) + len(family) > most:
            yield sorted(some)
            some = []
        some += family
    yield sorted(some)


def _plants(context: Context, utility: str) -> list[dict[str, Any]]:
    """Calls that commit to plants' months, once a reading of them would be late."""
    own = settings.read(context, MeteringSettings, "metering:Configure")
    last = settings.now(context, own) - own.late_after_s
    store = Store(context, utility)
    found: list[dict[str, Any]] = []
    bookmark: str | None = ""
    while bookmark is not None:
        answer = called(context, "energy", "agenda:Plants", OpenMonths,
                        utility=utility, bookmark=bookmark)  # fmt: skip
        for one in answer.months:
            if month_end(one.month) <= last and to_be_committed(
                context, store, one.plant_id, one.month, own
            ):
                argument = {"utility": utility, "plant_id": one.plant_id, "month": one.month}
                found.append(
                    {"function": "origin:Commit", "argument": argument, "utility": utility}
                )
            if len(found) == MAX_PLANTS:
                return found
        bookmark = answer.bookmark
    return found


def _agree(summaries: Sequence[Summary]) -> bool:
    """Whether a community's days, committed by several calls, share the same."""
    try:
        check_shared(summaries)
    except Conflict:
        return False
    return True


def _parts(one: OpenDay, names: list[str], interval_s: int) -> Iterator[dict[str, list[str]]]:
    """What the calls that commit a day name: a community as a whole, and whose records each writes.

    Once for all where it is small enough.
    """
    if not one.together:
        yield {"connections": names}
        return
    whole = list(one.connections)
    size = written_at_once((one.to - one.from_) // interval_s)
    for first in range(0, len(names), size):
        part = names[first : first + size]
        yield {"connections": whole} if part == whole else {"connections": whole, "only": part}


@dataclass(frozen=True, slots=True)
class _Span:
    from_: int
    to: int
    interval_s: int


def _undelivered(
    context: Context, utility: str, store: Store, one: OpenDay, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Calls that publish what contracts as produced have delivered, where that isn't yet so."""
    own = settings.read(context, MeteringSettings, "metering:Configure")
    found: list[dict[str, Any]] = []
    shares = called(context, "energy", "bilateral:Shares", Shares, connections=list(names),
                    **{"from": one.from_}, to=one.to).shares  # fmt: skip
    for share in shares:
        end = share.from_ + len(share.published_wh) * own.interval_s
        span = _Span(share.from_, end, own.interval_s)
        metered, _ = metered_of(store, share.connection_id, span, end, scan=True)
        energies = [each.export_wh * share.share_ppm // 1_000_000 for each in metered]
        if energies != list(share.published_wh):
            found.append(
                {
                    "chaincode": "energy",
                    "function": "bilateral:Deliver",
                    "argument": {
                        "contract_id": share.contract_id,
                        "from": share.from_,
                        "energies_wh": energies,
                    },
                    "utility": utility,
                    "endorsing": [],
                }
            )
    return found


def _revised(context: Context, utility: str, now: int) -> Iterator[tuple[str, int]]:
    """(connection, instant) of whose day, or bill, may come to something else than it did.

    Where there are more than one query can look into, they begin at another one each turn.
    """
    days = [
        RevisedDay(meter_of(context, meter_id).connection_id, day)
        for meter_id, day in _rested(context, utility, now)
    ]
    days = _settled(context, utility, _drawn(list(dict.fromkeys(days)), now, MAX_LOOKED_UP))
    bookmark: str | None = ""
    while bookmark is not None:
        answer = called(context, "energy", "agenda:Revised", RevisedDays,
                        utility=utility, since=_since(now), bookmark=bookmark)  # fmt: skip
        days += answer.days
        bookmark = answer.bookmark
    for one in _drawn(list(dict.fromkeys(days)), now, MAX_LOOKED_INTO):
        start = day_start(one.day)
        # A UTC day, as a seller's local day, may lie in two of the connection's.
        yield one.connection_id, start
        yield one.connection_id, start + DAY_S - 1


def _drawn[T](items: list[T], now: int, most: int) -> list[T]:
    """As many of them as one query can look into: from another one on each turn, drawn by hash."""
    if len(items) <= most:
        return items
    first = int(sha256_hex(str(now // TURN_S).encode()), 16) % len(items)
    return (items[first:] + items[:first])[:most]


def _settled(context: Context, utility: str, days: Sequence[RevisedDay]) -> list[RevisedDay]:
    """Those of which something is final or billed: what comes before is in the final run."""
    found: list[RevisedDay] = []
    for first in range(0, len(days), MAX_OPEN_DAYS):
        some = list(days[first : first + MAX_OPEN_DAYS])
        found += called(context, "energy", "agenda:Settled", RevisedDays,
                        utility=utility, days=some).days  # fmt: skip
    return found


def _since(now: int) -> int:
    """The first day of which is looked at what has changed."""
    return max(0, now - now % DAY_S - LOOK_BACK_DAYS * DAY_S)


def _rested(context: Context, utility: str, now: int) -> list[tuple[str, str]]:
    """(meter, UTC day) of what came late or as a correction and has rested, in order.

    Only once nothing more has come of it for `REST_S`.
    """
    store = Store(context, utility)
    found: dict[tuple[str, str], None] = {}
    fresh: dict[tuple[str, str], None] = {}
    for start in range(_since(now), now + 1, DAY_S):
        if start + DAY_S + REST_S <= now:
            found |= dict.fromkeys(late_days(store, day_of(start)))
            continue
        # Each by itself; of a day on which very much comes, the rest once it is over.
        for count, one in enumerate(late_arrivals(store, day_of(start))):
            if count == MAX_ARRIVALS:
                break
            found[one.meter_id, day_of(one.at)] = None
            if one.accepted_at > now - REST_S:
                fresh[one.meter_id, day_of(one.at)] = None
    # No day is final within a day; most of what is late comes before.
    return [one for one in found if one not in fresh and day_start(one[1]) < now - DAY_S]


def _billed(context: Context, name: str, at: int) -> BilledDay:
    """By which bill an instant was billed; by none where there is no supply or calendar."""
    try:
        return called(context, "energy", "agenda:Billed", BilledDay, connection_id=name, at=at)
    except ContractError:
        return BilledDay(name, None, None, None)


def _final_inputs(context: Context, utility: str, name: str, at: int) -> DayInputs | None:
    """The day of an instant, with all who are settled together; None unless all are final."""
    for day in (day_of(at), day_of(at + DAY_S), day_of(max(0, at - DAY_S))):
        try:
            group = called(context, "energy", "sharing:Together", _Together,
                           connection_id=name, day=day).connections  # fmt: skip
            inputs = called(context, "energy", "settlement:Inputs", DayInputs, utility=utility,
                            day=day, connections=list(group))  # fmt: skip
        except ContractError:
            continue  # a day without terms, or of another utility's meters
        if inputs.from_ <= at < inputs.to:
            runs = [one.posted for one in inputs.connections]
            return inputs if all(run not in (None, "provisional") for run in runs) else None
    return None


def _next_run(context: Context, utility: str, inputs: DayInputs, name: str) -> str | None:
    """The run that adjusts a day to what was read since; None if nothing changes, or can any more.

    The salt of a day's rows is made of the salts of its readings, so it tells which they were. Of
    trades only those change that are a share of what another one was read to export.
    """
    own = settings.read(context, MeteringSettings, "metering:Configure")
    (posted,) = [one.posted for one in inputs.connections if one.connection_id == name]
    assert posted is not None
    number = 0 if posted == "final" else int(posted.removeprefix("adjustment-"))
    if number == MAX_ADJUSTMENTS or settings.now(context, own) > inputs.adjustable_until:
        return None
    key = rows_key(inputs.day, posted, name)
    opened = commitments.opened(context, utility, key, Rows)
    if opened is None:
        return None
    _, secrets = all_metered(context, Store(context, utility), inputs, inputs.to, scan=True)
    if not secrets[name]:
        return None
    same = commitments.salt(context, key, secrets[name]) == opened.salt
    if same and not trades_changed(inputs, opened):
        return None
    return f"adjustment-{number + 1}"
