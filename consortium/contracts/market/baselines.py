"""Contract `baseline` of chaincode `metering`: what homes would have used, and what they did.

Runs where the readings are and writes private records alone, whose hashes every peer has:

    dr/{connection}/{window_start}/{event}/expected   `Expected`, before the event
    dr/{connection}/{window_start}/{event}/measured   `Measured`, after it

Each is written once. response:CommitBaseline notes the first one's hash before the event begins,
so nothing that comes later changes it; response:Settle shows both. Which days are similar follows
from what is public (`response:Basis`). A day that wasn't read in full doesn't count; nor do hours
before the event that weren't, and then nothing is adjusted; and a home that wasn't read in full
during the event isn't measured before it is, or its operator has put values in their place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    Contract,
    Identifier,
    MspId,
    NotFound,
    Unavailable,
    query,
    transaction,
)

from ..common import access, commitments, settings
from ..common.clock import utc_text
from ..common.commitments import called
from ..common.residence import residence
from ..common.settings import MeteringSettings
from ..meters.meters import meters_of
from ..meters.readings import Store, connection_intervals
from .baseline import (
    COMPARED_S,
    DAYS,
    LEAD_S,
    MAX_HOMES,
    Basis,
    Expected,
    HomeBasis,
    Measured,
    OpenPart,
    OpenParts,
    PastDay,
    baseline,
    expected_key,
    measured_key,
)

WAIT_S = 1800
"""Before an event, from which on a baseline no longer waits for the hours that adjust it."""
_NOTHING_SECRET = "0" * 64
"""The salt of a record that says that there is no baseline."""

Homes = Annotated[tuple[Identifier, ...], AtMost(MAX_HOMES)]


@dataclass(frozen=True, slots=True)
class _Hours:
    """What was read of a stretch of time, all of it."""

    energies_wh: tuple[int, ...]
    secrets: tuple[str, ...]


class _Reader:
    """Reads a home's hours, and computes with them."""

    def __init__(self, store: Store, basis: Basis, home: HomeBasis, *, scan: bool) -> None:
        self._store = store
        self._basis = basis
        self._home = home
        self._scan = scan
        channel = settings.read(store.context, MeteringSettings, "metering:Configure")
        self._interval_s = channel.interval_s
        self._used: list[tuple[int, int]] = []

    def hours(self, start: int, end: int) -> _Hours | None:
        """Import less export of each interval of [start, end); None if one wasn't read."""
        name = self._home.connection_id
        found = connection_intervals(
            self._store, name, start, end, self._interval_s, scan=self._scan
        )
        if any(one.missing for one in found):
            return None
        self._used.append((start, end))
        return _Hours(
            tuple(one.import_wh - one.export_wh for one in found),
            tuple(secret for one in found for secret in one.secrets),
        )

    @property
    def compared(self) -> tuple[int, int]:
        """The hours before the event by which its baseline is adjusted."""
        before, until = COMPARED_S[self._basis.adjustment]
        start = self._basis.window_start
        return start - before, start - until

    def compared_read(self) -> bool:
        """Whether they were read, all of them."""
        start, end = self.compared
        return self.hours(start, end) is not None

    def similar(self) -> Iterator[tuple[PastDay, tuple[str, ...]]]:
        """Similar days that were read in full, the newest first, with the readings' salts."""
        before, until = COMPARED_S[self._basis.adjustment]
        length = self._basis.end - self._basis.window_start
        for one in self._basis.past:
            if (
                one.working != self._basis.working
                or one.day in self._home.event_days
                or one.start - before < self._home.since
            ):
                continue
            event = self.hours(one.start, one.start + length)
            compared = self.hours(one.start - before, one.start - until)
            if event is None or compared is None:
                continue
            past = PastDay(one.day, one.working, False, event.energies_wh, compared.energies_wh)
            yield past, (*event.secrets, *compared.secrets)

    def expected(self, like: Expected | None = None) -> Expected:
        """The baseline; or, with the days of an earlier one and adjusted like it, once more."""
        past: list[PastDay] = []
        secrets: list[str] = []
        for one, salts in self.similar():
            if len(past) == DAYS:
                break
            if like is None or one.day in like.days:
                past.append(one)
                secrets += salts
        today = None
        if like is None or like.adjusted:
            today = self.hours(*self.compared)
        found = baseline(
            past,
            () if today is None else today.energies_wh,
            working=self._basis.working,
            adjustment=self._basis.adjustment,
        )
        event_id, name = self._basis.event_id, self._home.connection_id
        adjusted = today is not None
        if found is None:
            return Expected(event_id, name, (), adjusted, (), _NOTHING_SECRET)
        secrets += () if today is None else today.secrets
        key = expected_key(name, self._basis.window_start, event_id)
        salt = commitments.salt(self._store.context, key, secrets)
        return Expected(event_id, name, found.days, adjusted, found.adjusted_wh, salt)

    def measured(self) -> Measured | None:
        """What was counted during the event; None if not all of it was read."""
        found = self.hours(self._basis.window_start, self._basis.end)
        if found is None:
            return None
        event_id, name = self._basis.event_id, self._home.connection_id
        key = measured_key(name, self._basis.window_start, event_id)
        salt = commitments.salt(self._store.context, key, found.secrets)
        return Measured(event_id, name, found.energies_wh, salt)

    def corrected(self) -> bool:
        """Whether any of the hours that were looked at has a corrected reading."""
        for meter in meters_of(self._store.context, self._home.connection_id):
            for start, end in self._used:
                for at in range(start, end, self._interval_s):
                    if at in self._store.corrected(meter.meter_id, at):
                        return True
        return False


def _basis(
    context: Context, event_id: str, connections: Sequence[str], *, past: bool = True
) -> Basis:
    return called(
        context,
        "energy",
        "response:Basis",
        Basis,
        event_id=event_id,
        connections=list(connections),
        past=past,
    )


class Baselines(Contract):
    """Baselines of demand response, and what was metered."""

    name: ClassVar[str] = "baseline"

    @transaction
    def commit(
        self, context: Context, *, utility: MspId, event_id: Identifier, connections: Homes
    ) -> dict[str, Any]:
        """Compute homes' baselines within the hour before an event; tells no amounts."""
        access.require_operator(context.creator, utility, f"compute baselines of {utility}")
        basis = _basis(context, event_id, connections)
        now = self._now(context)
        if not basis.window_start - LEAD_S <= now < basis.window_start:
            raise Conflict(
                f"baselines for {event_id} are computed from "
                f"{utc_text(basis.window_start - LEAD_S)} until it begins, at "
                f"{utc_text(basis.window_start)}"
            )
        store = Store(context, utility)
        committed = []
        for home in basis.homes:
            key = expected_key(home.connection_id, basis.window_start, event_id)
            if not store.holds(key):
                found = _Reader(store, basis, home, scan=False).expected()
                commitments.put(context, utility, key, found)
            committed.append(home.connection_id)
        return {"utility": utility, "event_id": event_id, "committed": committed}

    @transaction
    def measure(
        self, context: Context, *, utility: MspId, event_id: Identifier, connections: Homes
    ) -> dict[str, Any]:
        """Commit to what was metered during an event; homes that weren't read in full are named."""
        access.require_operator(context.creator, utility, f"measure homes of {utility}")
        basis = _basis(context, event_id, connections, past=False)
        if self._now(context) < basis.end:
            raise Conflict(f"event {event_id} ends at {utc_text(basis.end)}")
        store = Store(context, utility)
        measured, unread = [], []
        for home in basis.homes:
            name = home.connection_id
            key = measured_key(name, basis.window_start, event_id)
            if not store.holds(key):
                found = _Reader(store, basis, home, scan=False).measured()
                if found is None:
                    unread.append(name)
                    continue
                commitments.put(context, utility, key, found)
            measured.append(name)
        if not measured:
            raise Conflict(f"{unread[0] if unread else 'nobody'} wasn't read in full: {event_id}")
        return {"utility": utility, "event_id": event_id, "measured": measured, "unread": unread}

    @query
    def record(
        self, context: Context, *, utility: MspId, event_id: Identifier, connection_id: Identifier
    ) -> dict[str, Any]:
        """A home's baseline for an event, and what was then metered, as committed to."""
        self._require_sight(context, utility, connection_id)
        start = _basis(context, event_id, (connection_id,), past=False).window_start
        expected, measured = self._stored(context, utility, event_id, connection_id, start)
        if expected is None:
            raise NotFound(f"{utility} has computed no baseline of {connection_id} for {event_id}")
        return {"baseline": expected, "measured": measured}

    @query
    def audit(
        self, context: Context, *, utility: MspId, event_id: Identifier, connection_id: Identifier
    ) -> dict[str, Any]:
        """Compute a home's baseline and response again from the readings.

        `newer` are similar days that were read by now and aren't among those of the baseline.
        """
        if not commitments.is_overseer(context):
            self._require_sight(context, utility, connection_id)
        basis = _basis(context, event_id, (connection_id,))
        expected, measured = self._stored(
            context, utility, event_id, connection_id, basis.window_start
        )
        if expected is None:
            raise NotFound(f"{utility} has computed no baseline of {connection_id} for {event_id}")
        reader = _Reader(Store(context, utility), basis, basis.homes[0], scan=True)
        agrees = reader.expected(expected) == expected
        if measured is not None:
            agrees = agrees and reader.measured() == measured
        verdict = "agrees" if agrees else "changed_since" if reader.corrected() else "altered"
        days = [one.day for one, _ in reader.similar()][:DAYS]
        return {
            "connection_id": connection_id,
            "verdict": verdict,
            "adjusted": expected.adjusted,
            "newer": [day for day in days if day not in expected.days],
        }

    @query
    def due(self, context: Context) -> list[dict[str, Any]]:
        """Calls that commit to baselines and measure homes, for the caller's utility alone."""
        utility = context.creator.msp_id
        open_parts = called(context, "energy", "response:Open", OpenParts, utility=utility)
        now = self._now(context)
        store = Store(context, utility)
        found: list[dict[str, Any]] = []
        compute: dict[tuple[str, str], list[str]] = {}
        for part in open_parts.parts:
            name = part.connection_id
            try:
                expected, measured = self._stored(
                    context, utility, part.event_id, name, part.window_start
                )
            except Unavailable:
                continue  # what this peer has lost of one home is no other's trouble
            if part.state == "opted_in":
                if expected is not None:
                    argument = {"event_id": part.event_id, "connection_id": name}
                    found.append(_public("response:CommitBaseline", argument, utility))
                elif self._can_commit(store, part, now):
                    compute.setdefault(("baseline:Commit", part.event_id), []).append(name)
            elif expected is not None and expected.energies_wh:
                if measured is not None:
                    shown = {"baseline": expected, "measured": measured}
                    found.append(_public("response:Settle", shown, utility))
                elif self._was_read(store, part):
                    compute.setdefault(("baseline:Measure", part.event_id), []).append(name)
        for (function, event_id), names in compute.items():
            for first in range(0, len(names), MAX_HOMES):
                some = names[first : first + MAX_HOMES]
                asked = {"utility": utility, "event_id": event_id, "connections": some}
                found.append({"function": function, "argument": asked, "utility": utility})
        return found

    @staticmethod
    def _can_commit(store: Store, part: OpenPart, now: int) -> bool:
        if not part.window_start - LEAD_S <= now < part.window_start:
            return False
        if now >= part.window_start - WAIT_S:
            return True
        before, until = COMPARED_S[part.adjustment]
        return _read(store, part, part.window_start - before, part.window_start - until)

    @staticmethod
    def _was_read(store: Store, part: OpenPart) -> bool:
        return _read(store, part, part.window_start, part.end)

    @staticmethod
    def _stored(
        context: Context, utility: str, event_id: str, connection_id: str, start: int
    ) -> tuple[Expected | None, Measured | None]:
        return (
            commitments.opened(
                context, utility, expected_key(connection_id, start, event_id), Expected
            ),
            commitments.opened(
                context, utility, measured_key(connection_id, start, event_id), Measured
            ),
        )

    @staticmethod
    def _require_sight(context: Context, utility: str, connection_id: str) -> None:
        access.require(
            access.is_operator(context.creator, utility)
            or residence(context, utility, connection_id).ever,
            context.creator,
            f"read the baselines of {connection_id}",
            f"its home and operators of {utility}",
        )

    @staticmethod
    def _now(context: Context) -> int:
        channel = settings.read(context, MeteringSettings, "metering:Configure")
        return settings.now(context, channel)


def _read(store: Store, part: OpenPart, start: int, end: int) -> bool:
    channel = settings.read(store.context, MeteringSettings, "metering:Configure")
    found = connection_intervals(
        store, part.connection_id, start, end, channel.interval_s, scan=True
    )
    return not any(one.missing for one in found)


def _public(function: str, argument: dict[str, Any], utility: str) -> dict[str, Any]:
    return {
        "chaincode": "energy",
        "function": function,
        "argument": argument,
        "utility": utility,
        "endorsing": [],
    }
