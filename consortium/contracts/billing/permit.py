"""Contract `permit`: whether a connection may be supplied, and what has to happen before it isn't.

A connection's switch follows its permit: *granted*, *warned* (notice was given), *limited* (to a
power) or *suspended*. Each step down is an act that a supplier sends, and the contract lets it pass
only if everything holds: enough is due (never an estimate or what is disputed), the home consented
to remote control in its contract, the notice was given and its time is over, it is a working hour
of a working day before another, no season and no alert protects the zone, and the utility has
cleared the home as not protected (`protections.py`). The rules are terms that several utilities
approve. The step back up follows payment in the payment's own transaction.

No step follows from missing readings: without readings there is no bill, and an estimated bill
doesn't count. Nor from a wrong clock: an instant counts only if it holds an hour earlier and an
hour later too, and no step comes without the one before, in a transaction of its own.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Contract,
    Forbidden,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    MspId,
    NotFound,
    Text,
    canonical_json,
    query,
    stored_record,
    transaction,
)

from ..common import access, agreements, commitments, settings
from ..common.agreements import Agreement, Version
from ..common.clock import DAY_S, day_of, day_start, utc_text
from ..registry import homes
from ..registry.registry import connection_of, energy_settings
from . import supply
from .calendars import Calendar
from .protections import CLEARANCE_S, Clearance, PermitCase, PermitReady, clearance_key
from .supply import Creditor, Days, Dues, Owed, Standing, Supply
from .tariffs import Minute

CLOCK_DOUBT_S = 3600
"""A transaction's time is its client's: what must be over has been over for so long."""
MAX_ALERTS = 50
MAX_ALERT_S = 31 * DAY_S
_RULES = "permitrules"

State = Annotated[str, Choice("granted", "warned", "limited", "suspended")]
Cause = Annotated[
    str,
    Choice(
        "begin", "unpaid", "credit_used_up", "paid", "credited", "disputed", "review", "goodwill"
    ),
]
"""Why a permit is as it is. paid, credited, disputed: too little is due any more. review: the
utility has taken its clearance back. goodwill: the supplier chose to."""
Step = Annotated[
    str,
    Choice("none", "payment", "reminder", "final_notice", "warning", "limitation", "suspension"),
]
YearDay = Annotated[str, Text(r"(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])", "a day as MM-DD")]


@dataclass(frozen=True, slots=True)
class Season:
    """Days of each year on which nobody is cut off; may go over the new year."""

    from_: YearDay
    to: YearDay
    """The last day."""

    def holds(self, day: str) -> bool:
        """Whether a day is one of them."""
        of_year = day[5:]
        if self.from_ <= self.to:
            return self.from_ <= of_year <= self.to
        return of_year >= self.from_ or of_year <= self.to


@dataclass(frozen=True, slots=True)
class PermitRules:
    """A region's rules."""

    region: Identifier
    min_due_micro: Annotated[int, Integer(1, 10**15, "micro-units")]
    """Less than this leads to nothing."""
    reminder_days: Days
    """From when a bill is due to its reminder."""
    final_days: Days
    """From the reminder to the final notice, which ends the time for a dispute."""
    warning_days: Days
    """From the final notice to the warning."""
    notice_days: Annotated[int, Integer(1, 365, "days")]
    """From the warning to a limit."""
    prepaid_notice_days: Annotated[int, Integer(1, 365, "days")]
    """The same where a credit is used up."""
    grace_days: Days
    """From there to the suspension."""
    limit_w: Annotated[int, Integer(0, 10_000_000, "W")]
    """What a limited connection may take; 0: none is limited."""
    from_minute: Minute
    """Of the wall clock's working day, when switches may open."""
    to_minute: Minute
    seasons: Annotated[tuple[Season, ...], AtMost(12)]


@dataclass(frozen=True, slots=True)
class Alert:
    """A time in which nobody of a zone is cut off."""

    alert_id: Identifier
    zone: Identifier
    kind: Annotated[str, Choice("heat", "cold", "emergency")]
    from_: Instant
    until: Instant
    declared_by: MspId


@dataclass(frozen=True, slots=True)
class _Alerts:
    alerts: Annotated[tuple[Alert, ...], AtMost(MAX_ALERTS)] = ()


@dataclass(frozen=True, slots=True)
class Consent:
    """A home's agreement that its switch may be controlled from afar."""

    connection_id: Identifier
    remote_control: bool
    since: Instant


@dataclass(frozen=True, slots=True)
class Permit:
    """A connection's permit."""

    connection_id: Identifier
    state: State = "granted"
    reason: Cause = "begin"
    since: Instant = 0
    case: Annotated[int, Integer(0, 10**6)] = 0
    """How many warnings there were; each begins another case."""
    limit_w: Annotated[int, Integer(0, 10_000_000, "W")] | None = None
    limit_from: Instant | None = None
    """Not before it may the connection be limited."""
    suspend_from: Instant | None = None
    due_micro: Owed = 0
    """What was due when it changed."""
    on_site: bool = False
    """Of a permit that was suspended: whether somebody has to close the switch there."""


def check_rules(rules: PermitRules) -> None:
    """Raise InvalidArgument for rules under which no switch could ever open, or at odd times."""
    if rules.to_minute - rules.from_minute < 2 * CLOCK_DOUBT_S // 60 + 60:
        raise InvalidArgument(
            f"from_minute is {rules.from_minute} and to_minute {rules.to_minute}, but a working "
            "day has three hours at least in which switches may open"
        )


def permit_of(context: Context, connection_id: str) -> Permit:
    """A connection's permit; granted if nothing was ever said."""
    stored = context.get_state(f"permit/{connection_id}")
    return Permit(connection_id) if stored is None else stored_record(Permit, stored)


def rules_at(context: Context, region: str, at: int) -> PermitRules | None:
    """A region's rules in force, None if there are none: then no permit is ever touched."""
    try:
        return agreements.in_force(context, _RULES, region, at, PermitRules)
    except NotFound:
        return None


def required_rules(context: Context, region: str, at: int) -> PermitRules:
    """A region's rules in force; raises NotFound."""
    return agreements.in_force(context, _RULES, region, at, PermitRules)


def creditor_of(context: Context, terms: Supply) -> Creditor:
    """On whose bills a connection's permit depends, and what they may leave open."""
    prepaid = supply.prepaid_of(context, terms.connection_id)
    return Creditor(terms.supplier, terms.emergency_micro if prepaid.emergency else 0)


def refresh(
    context: Context,
    dues: Dues,
    terms: Supply,
    now: int,
    reason: str,
    *,
    emergency: bool = False,
) -> Permit | None:
    """Restore a permit if too little is due any more; None if it stays as it is.

    For all that lowers what is due, in its own transaction, with the dues as they are then, and
    with the emergency credit if that is what is asked for.
    """
    permit = permit_of(context, terms.connection_id)
    if permit.state == "granted":
        return None
    rules = rules_at(context, terms.region, now)
    creditor = creditor_of(context, terms)
    if emergency:
        creditor = replace(creditor, emergency_micro=terms.emergency_micro)
    due = dues.enforceable_micro(now, creditor)
    if due >= (rules.min_due_micro if rules else 1):
        return None
    return _change(context, permit, terms, "granted", reason, now, due)


def _change(
    context: Context,
    permit: Permit,
    terms: Supply,
    state: str,
    reason: str,
    now: int,
    due: int,
) -> Permit:
    changed = replace(
        permit,
        state=state,
        reason=reason,
        since=now,
        due_micro=due,
        on_site=terms.on_site and "suspended" in (state, permit.state),
    )
    if state == "granted":
        changed = replace(changed, limit_w=None, limit_from=None, suspend_from=None)
    context.put_state(f"permit/{permit.connection_id}", canonical_json(changed))
    context.set_event("permit", canonical_json(changed))
    return changed


def dunning_at(rules: PermitRules, standing: Standing, step: int) -> int:
    """When a bill's reminder (1), its final notice (2) or the warning (3) is due."""
    if step == 1:
        return standing.due_at + rules.reminder_days * DAY_S
    days = rules.final_days if step == 2 else rules.warning_days
    return standing.dunned_at + days * DAY_S


def warnable_micro(dues: Dues, rules: PermitRules, over: int, creditor: Creditor) -> int:
    """What a warning can be for: bills whose final notice is old enough, a credit used up."""
    later = sum(
        each.undisputed_micro
        for each in dues.enforceable(over, creditor)
        if not each.prepaid and each.dunning == 2 and dunning_at(rules, each, 3) <= over
    )
    return later + dues.prepaid_over_micro(over, creditor)


def next_step(
    rules: PermitRules | None, permit: Permit, dues: Dues, now: int, creditor: Creditor
) -> tuple[str, int | None]:
    """What comes next if nothing is paid, and from when on."""
    if permit.state == "warned" and rules is not None and rules.limit_w:
        return "limitation", permit.limit_from
    if permit.state in ("warned", "limited"):
        return "suspension", permit.suspend_from
    if permit.state == "suspended":
        return "none", None
    steps: list[tuple[int, str]] = []
    for each in dues.open():
        if not each.undisputed_micro or each.supplier != creditor.supplier:
            continue
        if now < each.due_at:
            steps.append((each.due_at, "payment"))
        elif rules is None or each.estimated:
            continue
        elif each.prepaid:
            if dues.enforceable_micro(now, creditor) >= rules.min_due_micro:
                steps.append((each.due_at, "warning"))
        else:
            name = ("reminder", "final_notice", "warning")[each.dunning]
            steps.append((dunning_at(rules, each, each.dunning + 1), name))
    if not steps:
        return "none", None
    at, name = min(steps)
    return name, at


class Permits(Contract):
    """Rules, consents, alerts, and the steps down and up."""

    name: ClassVar[str] = "permit"

    # Rules

    @transaction
    def propose_rules(
        self, context: Context, *, terms: PermitRules, effective_from: Instant
    ) -> Agreement:
        """Propose a version of a region's rules."""
        check_rules(terms)
        return agreements.propose(context, _RULES, terms.region, effective_from, terms)

    @transaction
    def approve_rules(self, context: Context, *, region: Identifier, version: Version) -> Agreement:
        """Approve a version of a region's rules for the caller's utility."""
        return agreements.approve(context, _RULES, region, version)

    @query
    def rules(
        self, context: Context, *, region: Identifier, at: Instant | None = None
    ) -> PermitRules:
        """The rules of a region in force at an instant; without one, now."""
        return required_rules(context, region, self._now(context) if at is None else at)

    @transaction
    def declare_alert(self, context: Context, *, alert: Alert) -> Alert:
        """Protect a zone for a time; the same again changes nothing."""
        utility = context.creator.msp_id
        access.require(
            access.is_operator(context.creator, utility) and alert.declared_by == utility,
            context.creator,
            f"declare alerts of {alert.declared_by}",
            f"operators of {alert.declared_by}",
        )
        now = self._now(context)
        if not alert.from_ < alert.until <= alert.from_ + MAX_ALERT_S:
            raise InvalidArgument(
                f"an alert lasts up to {MAX_ALERT_S} s, but this one is from {alert.from_} until "
                f"{alert.until}"
            )
        key, stored = self._alerts(context, alert.zone)
        for each in stored.alerts:
            if each.alert_id == alert.alert_id:
                if each != alert:
                    raise Conflict(f"alert {alert.alert_id} of {alert.zone} is another one")
                return alert
        kept = tuple(each for each in stored.alerts if each.until > now - DAY_S)
        if len(kept) == MAX_ALERTS:
            raise Conflict(f"zone {alert.zone} has {MAX_ALERTS} alerts, the limit; end one first")
        context.put_state(key, canonical_json(_Alerts((*kept, alert))))
        return alert

    @transaction
    def end_alert(
        self, context: Context, *, zone: Identifier, alert_id: Identifier
    ) -> dict[str, Any]:
        """Take an alert back; again changes nothing."""
        key, stored = self._alerts(context, zone)
        found = [each for each in stored.alerts if each.alert_id == alert_id]
        for each in found:
            access.require_operator(
                context.creator, each.declared_by, f"end alerts of {each.declared_by}"
            )
        if found:
            kept = tuple(each for each in stored.alerts if each.alert_id != alert_id)
            context.put_state(key, canonical_json(_Alerts(kept)))
        return {"zone": zone, "alert_id": alert_id, "ended": bool(found)}

    @query
    def alerts(self, context: Context, *, zone: Identifier) -> list[Alert]:
        """The alerts of a zone."""
        return list(self._alerts(context, zone)[1].alerts)

    @staticmethod
    def _alerts(context: Context, zone: str) -> tuple[str, _Alerts]:
        key = f"alerts/{zone}"
        stored = context.get_state(key)
        return key, _Alerts() if stored is None else stored_record(_Alerts, stored)

    # A home's consent

    @transaction
    def consent(
        self, context: Context, *, connection_id: Identifier, remote_control: bool
    ) -> Consent:
        """Agree that the switch may be controlled from afar, or no longer."""
        supply.require_home(context, connection_id, f"consent for {connection_id}")
        now = self._now(context)
        before = self._consent(context, connection_id)
        if before is not None and before.remote_control == remote_control:
            return before
        if not remote_control:
            dues = Dues(context, connection_id)
            state = permit_of(context, connection_id).state
            if state != "granted" or dues.due_micro(now):
                raise Conflict(
                    f"connection {connection_id} owes {dues.due_micro(now)} micro-units that are "
                    f"due and its permit is {state}; consent is taken back once that is paid"
                )
        given = Consent(connection_id, remote_control, now)
        context.put_state(f"consent/{connection_id}", canonical_json(given))
        return given

    def _consent(self, context: Context, connection_id: str) -> Consent | None:
        """What who lives there now has said."""
        stored = context.get_state(f"consent/{connection_id}")
        if stored is None:
            return None
        consent = stored_record(Consent, stored)
        since = homes.lives_since(context, connection_id, self._now(context))
        return None if since is None or consent.since < since else consent

    # Steps down

    @transaction
    def warn(self, context: Context, *, connection_id: Identifier) -> Permit:
        """Give notice that a connection will be limited or suspended; again changes nothing."""
        now, terms, permit, rules = self._begin(context, connection_id, "warn")
        if permit.state != "granted":
            return permit
        dues = Dues(context, connection_id)
        over = now - CLOCK_DOUBT_S
        creditor = creditor_of(context, terms)
        due = warnable_micro(dues, rules, over, creditor)
        later = due - dues.prepaid_over_micro(over, creditor)
        if due < rules.min_due_micro:
            raise Conflict(
                f"connection {connection_id} has {due} micro-units due for which its final notice "
                f"was given {rules.warning_days} days and an hour ago, or its credit is used up, "
                f"but the rules of {rules.region} ask for {rules.min_due_micro}; see billing:Dun"
            )
        days = rules.notice_days if later else rules.prepaid_notice_days
        limit_from = now + days * DAY_S
        warned = replace(
            permit,
            case=permit.case + 1,
            limit_from=limit_from,
            suspend_from=limit_from + rules.grace_days * DAY_S,
        )
        reason = "unpaid" if later else "credit_used_up"
        return _change(context, warned, terms, "warned", reason, now, due)

    @transaction
    def limit(self, context: Context, *, connection_id: Identifier, cleared_at: Instant) -> Permit:
        """Limit a connection's power, after the notice; again changes nothing."""
        now, terms, permit, rules = self._begin(context, connection_id, "limit")
        if permit.state in ("limited", "suspended"):
            return permit
        if not rules.limit_w:
            raise Conflict(f"the rules of {rules.region} know no limited connections")
        due = self._require_all(context, terms, permit, rules, now, permit.limit_from, cleared_at)
        limited = replace(permit, limit_w=rules.limit_w)
        return _change(context, limited, terms, "limited", permit.reason, now, due)

    @transaction
    def suspend(
        self, context: Context, *, connection_id: Identifier, cleared_at: Instant
    ) -> Permit:
        """Suspend a connection, after notice and grace; again changes nothing."""
        now, terms, permit, rules = self._begin(context, connection_id, "suspend")
        if permit.state == "suspended":
            return permit
        due = self._require_all(context, terms, permit, rules, now, permit.suspend_from, cleared_at)
        return _change(context, permit, terms, "suspended", permit.reason, now, due)

    def _begin(
        self, context: Context, connection_id: str, act: str
    ) -> tuple[int, Supply, Permit, PermitRules]:
        now = self._now(context)
        connection_of(context, connection_id)
        terms = supply.current_supply(context, connection_id, now)
        access.require_supplier(context.creator, terms.supplier, f"{act} {connection_id}")
        rules = required_rules(context, terms.region, now)
        return now, terms, permit_of(context, connection_id), rules

    @staticmethod
    def _require_due(connection_id: str, due: int, rules: PermitRules) -> None:
        if due < rules.min_due_micro:
            raise Conflict(
                f"connection {connection_id} has {due} micro-units due that are neither estimated "
                f"nor disputed, but the rules of {rules.region} ask for {rules.min_due_micro}"
            )

    def _require_all(
        self,
        context: Context,
        terms: Supply,
        permit: Permit,
        rules: PermitRules,
        now: int,
        not_before: int | None,
        cleared_at: int,
    ) -> int:
        """What is due; raises Conflict unless everything allows to take supply away now."""
        due = self._require_time(context, terms, permit, rules, now, not_before)
        self._require_clearance(context, terms.connection_id, permit, now, cleared_at)
        return due

    def _require_time(
        self,
        context: Context,
        terms: Supply,
        permit: Permit,
        rules: PermitRules,
        now: int,
        not_before: int | None,
    ) -> int:
        """What is due; raises Conflict or Forbidden unless all but the clearance allows it now."""
        connection_id = terms.connection_id
        if permit.state not in ("warned", "limited") or not_before is None:
            raise Conflict(f"connection {connection_id} was not warned; permit:Warn comes first")
        if now - CLOCK_DOUBT_S < not_before:
            raise Conflict(
                f"the notice to {connection_id} ends at {utc_text(not_before)}, and an hour more "
                f"must be over, but the channel's time is {utc_text(now)}"
            )
        dues = Dues(context, connection_id)
        due = dues.enforceable_micro(now - CLOCK_DOUBT_S, creditor_of(context, terms))
        self._require_due(connection_id, due, rules)
        consent = self._consent(context, connection_id)
        if consent is None or not consent.remote_control:
            raise Forbidden(
                f"the home at {connection_id} has not consented to remote control of its switch"
            )
        calendar = supply.calendar_at(context, terms.region, now)
        _require_working_hours(calendar, rules, now)
        zone = connection_of(context, connection_id).zone
        for alert in self._alerts(context, zone)[1].alerts:
            if alert.from_ - CLOCK_DOUBT_S <= now < alert.until + CLOCK_DOUBT_S:
                raise Conflict(
                    f"zone {zone} is protected by the {alert.kind} alert {alert.alert_id} until "
                    f"{utc_text(alert.until)}"
                )
        return due

    @staticmethod
    def _require_clearance(
        context: Context, connection_id: str, permit: Permit, now: int, cleared_at: int
    ) -> None:
        if not cleared_at - CLOCK_DOUBT_S <= now < cleared_at + CLEARANCE_S:
            raise Conflict(
                f"cleared_at is {utc_text(cleared_at)}, but a clearance is used within "
                f"{CLEARANCE_S // DAY_S} days; see protection:Clear"
            )
        commitments.check(
            context,
            connection_of(context, connection_id).utility,
            clearance_key(connection_id),
            Clearance(connection_id, permit.case, cleared_at),
        )

    # The step up

    @transaction
    def restore(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        goodwill: bool = False,
    ) -> Permit:
        """Grant a permit again because nothing keeps it any more; again changes nothing.

        Payments do so by themselves. This is for what time and the utility's clearance change,
        and with `goodwill` for a supplier that chooses to.
        """
        now = self._now(context)
        supply.require_sight(context, connection_id)
        terms = supply.current_supply(context, connection_id, now)
        permit = permit_of(context, connection_id)
        if permit.state == "granted":
            return permit
        dues = Dues(context, connection_id)
        if goodwill:
            access.require_supplier(context.creator, terms.supplier, f"restore {connection_id}")
            due = dues.due_micro(now)
            return _change(context, permit, terms, "granted", "goodwill", now, due)
        restored = refresh(context, dues, terms, now, "paid")
        if restored is not None:
            return restored
        due = dues.enforceable_micro(now, creditor_of(context, terms))
        if permit.state in ("limited", "suspended"):
            utility = connection_of(context, connection_id).utility
            key = clearance_key(connection_id)
            if commitments.commitments(context, utility, [key])[key] is None:
                return _change(context, permit, terms, "granted", "review", now, due)
        raise Conflict(
            f"connection {connection_id} is {permit.state} and still has {due} micro-units due; "
            "its permit is restored when they are paid"
        )

    # Looking

    @query
    def status(self, context: Context, *, connection_id: Identifier) -> dict[str, Any]:
        """What a home follows: the permit, why it is so, what is due, and what comes next."""
        supply.require_sight(context, connection_id)
        now = self._now(context)
        permit = permit_of(context, connection_id)
        dues = Dues(context, connection_id)
        dues.show(supply.seen_bills(context, connection_id))
        versions = supply.supplies_of(context, connection_id).versions
        step: str = "none"
        at: int | None = None
        enforceable = 0
        if versions:
            terms = supply.current_supply(context, connection_id, now)
            creditor = creditor_of(context, terms)
            rules = rules_at(context, terms.region, now)
            step, at = next_step(rules, permit, dues, now, creditor)
            enforceable = dues.enforceable_micro(now, creditor)
        consent = self._consent(context, connection_id)
        return {
            "connection_id": connection_id,
            "state": permit.state,
            "reason": permit.reason,
            "since": permit.since,
            "case": permit.case,
            "limit_w": permit.limit_w,
            "on_site": permit.on_site,
            "next_step": step,
            "next_at": at,
            "amount_due_micro": dues.due_micro(now),
            "enforceable_micro": enforceable,
            "open_micro": dues.open_micro(),
            "disputed_micro": sum(each.disputed_micro for each in dues.open()),
            "currency": energy_settings(context).currency,
            "consent": consent is not None and consent.remote_control,
        }

    @query
    def ready(self, context: Context, *, connection_id: Identifier) -> PermitReady:
        """The next step down, and what stands against taking it now, but for the clearance."""
        now = self._now(context)
        connection = connection_of(context, connection_id)
        terms = supply.current_supply(context, connection_id, now)
        creator = context.creator
        access.require(
            access.is_supplier(creator, terms.supplier)
            or access.is_operator(creator, connection.utility),
            creator,
            f"see what {connection_id} owes",
            f"operators and suppliers of {terms.supplier}, operators of {connection.utility}",
        )
        permit = permit_of(context, connection_id)
        rules = required_rules(context, terms.region, now)
        step, _ = next_step(rules, permit, Dues(context, connection_id), now,
                            creditor_of(context, terms))  # fmt: skip
        function = {"limitation": "permit:Limit", "suspension": "permit:Suspend"}.get(step)
        if function is None:
            return PermitReady(connection_id, permit.case, None, f"the next step is {step}")
        not_before = permit.limit_from if step == "limitation" else permit.suspend_from
        try:
            self._require_time(context, terms, permit, rules, now, not_before)
        except (Conflict, Forbidden, NotFound) as error:
            return PermitReady(connection_id, permit.case, function, str(error))
        return PermitReady(connection_id, permit.case, function, None)

    @query
    def case(self, context: Context, *, connection_id: Identifier) -> PermitCase:
        """What chaincode `metering` needs to clear a connection: no amounts, no reason."""
        permit = permit_of(context, connection_id)
        utility = connection_of(context, connection_id).utility
        return PermitCase(connection_id, utility, permit.case, permit.state != "granted")

    @staticmethod
    def _now(context: Context) -> int:
        return settings.now(context, energy_settings(context))


def _require_working_hours(calendar: Calendar, rules: PermitRules, now: int) -> None:
    """Raise Conflict unless it is a working hour of a working day before another, whatever clock.

    The day after counts, so that whoever is cut off can have it put right tomorrow.
    """
    for instant in (now - CLOCK_DOUBT_S, now + CLOCK_DOUBT_S):
        day = calendar.day_at(instant)
        minute = calendar.minute_at(instant)
        following = day_of(day_start(day) + DAY_S)
        weekday = calendar.weekday_at(instant)
        if weekday >= 4 or calendar.is_holiday(day) or calendar.is_holiday(following):
            raise Conflict(
                f"nobody is cut off on {day}: it is no working day, or the day after is none"
            )
        if not rules.from_minute <= minute < rules.to_minute:
            raise Conflict(
                f"nobody is cut off at minute {minute} of the day; the rules of {rules.region} "
                f"allow it from {rules.from_minute} to {rules.to_minute}, an hour inside of that"
            )
        if any(season.holds(day) for season in rules.seasons):
            raise Conflict(f"nobody is cut off on {day}, by the seasons of {rules.region}")
