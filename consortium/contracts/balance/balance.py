"""Contract `balance`: what was lost between plant, transformer and homes, and what to look at.

For each period of a node (a transformer or a source) its grid operator closes a balance: what the
node's meter delivered less what everything behind it was metered for. Only sums take part that
hide every home in them (`sums.py`), each checked against its utility's commitment in `metering`;
so every peer works out the same loss, the same model of its technical part and the same alerts.
An alert is a reason to look, never an accusation: it names a node, a size and a beginning, no home.
Which meters changed then is a private question of their own utility (feeder:Suspects).

    share/{utility}/{to}/{node}         Share, once, by its utility
    balance/{node}/{number}             Balance, once, in order
    lossstate/{node}                    where that chain has come to
    lossmodel/{node}/{version}          Learned
    lossalert/{node}/{number}           Alert
    billed/{utility}/{from}/{to}        Billed, once
"""

from collections.abc import Sequence
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
    MspId,
    NotFound,
    Text,
    canonical_json,
    query,
    stored_record,
    transaction,
    under,
)

from ..common import access, settings
from ..common.clock import DAY_S, utc_text
from ..common.commitments import Commitment, check
from ..common.pages import Bookmark, listed, page
from ..registry.grid import Source, Transformer, connections_behind, transformers_behind
from ..registry.registry import connection_of, energy_settings
from ..registry.roles import role_at
from .losses import MIN_TRAINING_DAYS, DayBalance, Finding, LossModel, find, learn
from .sums import MAX_PERIOD_S, MIN_HOMES, Delivered, NetEnergy, Share, Square, share_key
from .sums import delivered_key as _delivered_key

MAX_LEARNED = 60
"""Balances that a model is learned from."""
MAX_WATCHED = 28
"""Balances that a loss is looked for in."""
MAX_NOTE = 500
_MILLION = 1_000_000
OVERSOLD_PPM = 10_000
"""Meters of class 1 and periods that end a quarter hour apart come to less than that."""

Number = Annotated[int, Integer(1, 99_999_999)]
Ppm = Annotated[int, Integer(-(10**12), 10**12, "ppm")]
Note = Annotated[str, Text(r"[^\x00-\x1f]{1,500}", f"1 to {MAX_NOTE} characters")]
Who = Annotated[str, Text(r"(?s).{0,64}", "at most 64 characters")]
Outcome = Annotated[str, Choice("theft", "meter", "topology", "technical", "nothing")]
"""What an alert turned out to be: theft; a faulty meter; a home or a tap that isn't where the
ledger has it; a technical loss that the model didn't know; nothing that was found."""
State = Annotated[str, Choice("raised", "acknowledged", "investigated", "closed")]
NoLoad = Annotated[int, Integer(0, 10**7, "W")]
Quadratic = Annotated[int, Integer(0, 10**9, "10^-9 of each Wh squared")]


@dataclass(frozen=True, slots=True)
class Node:
    """A transformer, or a source of several, as contract `grid` has it."""

    node_id: str
    utility: str
    """Its grid operator."""
    no_load_w: int
    is_source: bool


@dataclass(frozen=True, slots=True)
class Balance:
    """One period of a node."""

    node_id: Identifier
    number: Number
    from_: Instant
    to: Instant
    delivered_wh: NetEnergy
    metered_wh: NetEnergy
    homes: Annotated[int, Integer(0, 10**9)]
    square: Square

    def day(self) -> DayBalance:
        """As `losses` sees it."""
        return DayBalance(
            str(self.number),
            self.delivered_wh,
            self.metered_wh,
            self.square,
            seconds=self.to - self.from_,
        )


@dataclass(frozen=True, slots=True)
class _Last:
    """Where a node's chain has come to."""

    number: Annotated[int, Integer(0, 99_999_999)] = 0
    to: Instant = 0
    fresh: Number = 1
    """The first balance that may count for an alert: those before belong to a closed one."""
    alerts: Annotated[int, Integer(0, 99_999_999)] = 0
    open: Number | None = None
    """The alert that isn't closed."""
    models: Annotated[int, Integer(0, 99_999_999)] = 0


@dataclass(frozen=True, slots=True)
class Learned:
    """What a node loses for technical reasons, and from what that was learned."""

    node_id: Identifier
    version: Number
    first: Number
    """Balance."""
    last: Number
    no_load_wh: NetEnergy
    """A day."""
    proportional_ppm: Ppm
    quadratic_ppb_per_wh: Quadratic
    deviation_wh: NetEnergy
    """Of a clean day."""
    days: Annotated[int, Integer(1, 10_000)]

    def model(self) -> LossModel:
        """As `losses` sees it."""
        return LossModel(
            self.no_load_wh,
            self.proportional_ppm,
            self.quadratic_ppb_per_wh,
            10**9,
            self.deviation_wh,
            self.days,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What somebody did about an alert."""

    state: State
    utility: MspId
    by: Who
    at: Instant
    note: Annotated[str, Text(r"(?s).{0,500}", "at most 500 characters")]


@dataclass(frozen=True, slots=True)
class Alert:
    """A non-technical loss."""

    node_id: Identifier
    number: Number
    basis: Annotated[str, Choice("balances", "declared")]
    """balances: every peer worked it out; declared: its grid operator did, from private sums."""
    since: Instant
    until: Instant
    first: Number | None
    """Balance."""
    last: Number | None
    loss_wh: NetEnergy
    """A day, on average."""
    loss_ppm: Ppm
    """Of what was delivered."""
    confidence_ppm: Annotated[int, Integer(0, _MILLION, "ppm")]
    model: Number | None
    """Version."""
    commitment: Commitment | None
    """Of what a declared alert was computed from."""
    state: State
    outcome: Outcome | None
    steps: Annotated[tuple[Step, ...], AtMost(8)]


@dataclass(frozen=True, slots=True)
class Day:
    """A period's sums, for balance:Assess."""

    delivered_wh: NetEnergy
    metered_wh: NetEnergy
    square: Square = 0
    seconds: Annotated[int, Integer(1, MAX_PERIOD_S, "s")] = DAY_S


@dataclass(frozen=True, slots=True)
class Billed:
    """What a utility billed its homes in a period."""

    utility: MspId
    from_: Instant
    to: Instant
    net_wh: NetEnergy
    """Import that was billed less export that was credited."""
    homes: Annotated[int, Integer(MIN_HOMES, 10**9)]


def node_of(context: Context, node_id: str) -> Node:
    """A transformer or source; raises NotFound."""
    stored = context.get_state(f"transformer/{node_id}")
    if stored is not None:
        transformer = stored_record(Transformer, stored)
        return Node(node_id, transformer.utility, transformer.no_load_w, False)
    stored = context.get_state(f"source/{node_id}")
    if stored is not None:
        return Node(node_id, stored_record(Source, stored).utility, 0, True)
    raise NotFound(
        f"no transformer or source {node_id} is registered; its grid operator calls "
        "grid:RegisterTransformer or grid:RegisterSource"
    )


def homes_behind(context: Context, node_id: str, at: int) -> dict[str, list[str]]:
    """The connections behind a transformer at an instant, by who meters them, in order."""
    found: dict[str, list[str]] = {}
    for name in connections_behind(context, node_id, at):
        utility = role_at(context, connection_of(context, name), "metering_operator", at)
        if utility is not None:
            found.setdefault(utility, []).append(name)
    return found


def balance_of(context: Context, node_id: str, number: int) -> Balance:
    """A node's balance; raises NotFound."""
    stored = context.get_state(f"balance/{node_id}/{number:08d}")
    if stored is None:
        raise NotFound(f"node {node_id} has no balance {number}")
    return stored_record(Balance, stored)


def alert_of(context: Context, node_id: str, number: int) -> Alert:
    """An alert; raises NotFound."""
    stored = context.get_state(f"lossalert/{node_id}/{number:08d}")
    if stored is None:
        raise NotFound(f"node {node_id} has no alert {number}")
    return stored_record(Alert, stored)


def _last(context: Context, node_id: str) -> _Last:
    stored = context.get_state(f"lossstate/{node_id}")
    return _Last() if stored is None else stored_record(_Last, stored)


def _put_last(context: Context, node_id: str, last: _Last) -> None:
    context.put_state(f"lossstate/{node_id}", canonical_json(last))


def _put_alert(context: Context, alert: Alert) -> None:
    context.put_state(f"lossalert/{alert.node_id}/{alert.number:08d}", canonical_json(alert))


def _current_model(context: Context, node_id: str, last: _Last) -> Learned | None:
    if not last.models:
        return None
    stored = context.get_state(f"lossmodel/{node_id}/{last.models:08d}")
    return None if stored is None else stored_record(Learned, stored)


def _required(context: Context, node_id: str, act: str) -> Node:
    """The node; raises Forbidden unless the caller operates its grid operator."""
    node = node_of(context, node_id)
    access.require(
        access.is_operator(context.creator, node.utility),
        context.creator,
        f"{act} of node {node_id}",
        f"operators of its grid operator, {node.utility},",
    )
    return node


class Balances(Contract):
    """Balances, models and alerts."""

    name: ClassVar[str] = "balance"

    @query
    def homes(
        self, context: Context, *, node_id: Identifier, utility: MspId, at: Instant
    ) -> dict[str, Any]:
        """The connections behind a transformer that a utility meters at an instant."""
        node_of(context, node_id)
        return {"connections": homes_behind(context, node_id, at).get(utility, [])}

    @transaction
    def report(self, context: Context, *, share: Share) -> Share:
        """Publish the sum of a utility's homes behind a node, as committed to."""
        access.require_operator(context.creator, share.utility, f"report sums of {share.utility}")
        if not share.public or share.homes < MIN_HOMES:
            raise Conflict(
                f"the sum of {share.homes} homes of {share.utility} would show a home, so it is "
                f"not published: {MIN_HOMES} homes and none above 15 % of them all are needed; "
                "show it to the grid operator, who can use balance:Assess"
            )
        node_of(context, share.node_id)
        key = f"share/{share.utility}/{share.to:012d}/{share.node_id}"
        stored = context.get_state(key)
        if stored is None:
            check(context, share.utility, share_key(share.node_id, share.to), share)
            context.put_state(key, canonical_json(share))
        elif stored_record(Share, stored) != share:
            raise Conflict(
                f"{share.utility} has published another sum of node {share.node_id} to "
                f"{utc_text(share.to)}; a published sum is never revised"
            )
        return share

    @transaction
    def close(self, context: Context, *, delivered: Delivered) -> dict[str, Any]:
        """Close a node's balance over the next period, and look for losses that last."""
        node = _required(context, delivered.node_id, "close balances")
        node_id = delivered.node_id
        if delivered.utility != node.utility:
            raise InvalidArgument(
                f"delivered.utility is {delivered.utility}, but the grid operator of {node_id} is "
                f"{node.utility}"
            )
        last = _last(context, node_id)
        if last.number and delivered.to == last.to:
            known = balance_of(context, node_id, last.number)
            if (known.from_, known.delivered_wh) != (delivered.from_, delivered.net_wh):
                raise Conflict(f"balance {last.number} of node {node_id} was closed differently")
            return self._answer(context, known, last)
        if last.number and delivered.from_ != last.to:
            raise Conflict(
                f"delivered.from is {utc_text(delivered.from_)}, but the last balance of node "
                f"{node_id} ends at {utc_text(last.to)}: periods follow each other"
            )
        check(context, node.utility, _delivered_key(node_id, delivered.to), delivered)
        metered, homes = self._behind(context, node, delivered.from_, delivered.to)
        balance = Balance(
            node_id,
            last.number + 1,
            delivered.from_,
            delivered.to,
            delivered.net_wh,
            metered,
            homes,
            delivered.square,
        )
        context.put_state(f"balance/{node_id}/{balance.number:08d}", canonical_json(balance))
        last = replace(last, number=balance.number, to=balance.to)
        last = self._look(context, balance, last)
        _put_last(context, node_id, last)
        return self._answer(context, balance, last)

    @staticmethod
    def _answer(context: Context, balance: Balance, last: _Last) -> dict[str, Any]:
        model = _current_model(context, balance.node_id, last)
        expected = None if model is None else model.model().expected_wh(balance.day())
        return {
            "balance": balance,
            "loss_wh": balance.day().loss_wh,
            "expected_wh": expected,
            "alert": last.open,
        }

    def _behind(self, context: Context, node: Node, from_: int, to: int) -> tuple[int, int]:
        """What all behind a node was metered for, and of how many homes."""
        metered = count = 0
        if node.is_source:
            for transformer in transformers_behind(context, node.node_id, from_):
                net, homes = self._over(context, transformer, from_, to)
                metered += net
                count += homes
        else:
            for utility, connections in sorted(homes_behind(context, node.node_id, from_).items()):
                share = self._share(context, node.node_id, utility, from_, to)
                if share.homes != len(connections):
                    raise Conflict(
                        f"{utility} has summed {share.homes} homes behind node {node.node_id}, but "
                        f"meters {len(connections)} there at {utc_text(from_)}"
                    )
                metered += share.net_wh
                count += share.homes
        if count < MIN_HOMES:
            raise Conflict(
                f"{count} homes are behind node {node.node_id} at {utc_text(from_)}, but a balance "
                f"shows none of them only from {MIN_HOMES} on"
            )
        return metered, count

    @staticmethod
    def _share(context: Context, node_id: str, utility: str, from_: int, to: int) -> Share:
        stored = context.get_state(f"share/{utility}/{to:012d}/{node_id}")
        share = None if stored is None else stored_record(Share, stored)
        if share is None or share.from_ != from_:
            raise Conflict(
                f"{utility} has not published its sum of node {node_id} from {utc_text(from_)} to "
                f"{utc_text(to)}; its operator calls balance:Report"
            )
        return share

    @staticmethod
    def _over(context: Context, node_id: str, from_: int, to: int) -> tuple[int, int]:
        """What a node was delivered between two of its balances' ends."""
        last = _last(context, node_id)
        number, delivered, homes, end = last.number, 0, 0, to
        while number and number > last.number - MAX_LEARNED:
            balance = balance_of(context, node_id, number)
            if balance.to == end:
                delivered += balance.delivered_wh
                homes = max(homes, balance.homes)
                end = balance.from_
                if end == from_:
                    return delivered, homes
            elif balance.to < end:
                break
            number -= 1
        raise Conflict(
            f"node {node_id} has no balances from {utc_text(from_)} to {utc_text(to)}; close "
            "those first, ending when the meters of all nodes were read"
        )

    def _look(self, context: Context, balance: Balance, last: _Last) -> _Last:
        """Raise an alert, or follow the one that is open."""
        node_id = balance.node_id
        learned = _current_model(context, node_id, last)
        if learned is None:
            return last
        first = max(last.fresh, learned.last + 1, balance.number - MAX_WATCHED + 1)
        days = [
            balance_of(context, node_id, number).day() for number in range(first, balance.number)
        ]
        finding = find(learned.model(), [*days, balance.day()])
        if finding is None:
            return last
        since = int(finding.since)
        begun = balance if since == balance.number else balance_of(context, node_id, since)
        if last.open is not None:
            known = alert_of(context, node_id, last.open)
            if known.basis == "balances":
                _put_alert(context, _sized(known, finding, begun, balance, learned))
            return last
        number = last.alerts + 1
        now = settings.now(context, energy_settings(context))
        step = Step("raised", context.creator.msp_id, "", now, "")
        alert = Alert(
            node_id, number, "balances", 0, 0, None, None, 0, 0, 0, None, None,
            "raised", None, (step,),
        )  # fmt: skip
        alert = _sized(alert, finding, begun, balance, learned)
        _put_alert(context, alert)
        context.set_event("loss_alert", canonical_json(alert))
        return replace(last, alerts=number, open=number)

    @transaction
    def learn(
        self,
        context: Context,
        *,
        node_id: Identifier,
        first: Number,
        last: Number,
        quadratic_ppb_per_wh: Quadratic = 0,
    ) -> Learned:
        """Learn what a node loses for technical reasons from balances believed to be clean."""
        node = _required(context, node_id, "learn the losses")
        if not first <= last < first + MAX_LEARNED:
            raise InvalidArgument(
                f"last is {last}, but must be from first, {first}, to {first + MAX_LEARNED - 1}"
            )
        chain = _last(context, node_id)
        self._check_clean(context, node_id, chain, first, last)
        balances = [balance_of(context, node_id, number) for number in range(first, last + 1)]
        model = learn(
            [balance.day() for balance in balances],
            node.no_load_w * 24,
            quadratic_ppb_per_wh,
        )
        if model is None:
            raise Conflict(
                f"balances {first} to {last} teach nothing: {MIN_TRAINING_DAYS} are needed, and "
                "energy in them"
            )
        learned = Learned(
            node_id,
            chain.models + 1,
            first,
            last,
            model.no_load_wh,
            model.proportional_ppm,
            quadratic_ppb_per_wh,
            model.deviation_wh,
            model.days,
        )
        current = _current_model(context, node_id, chain)
        if current is not None and replace(learned, version=current.version) == current:
            return current
        context.put_state(f"lossmodel/{node_id}/{learned.version:08d}", canonical_json(learned))
        _put_last(context, node_id, replace(chain, models=learned.version))
        return learned

    @staticmethod
    def _check_clean(context: Context, node_id: str, chain: _Last, first: int, last: int) -> None:
        for number in range(max(1, chain.alerts - MAX_LEARNED), chain.alerts + 1):
            alert = alert_of(context, node_id, number)
            if alert.first is None or alert.last is None or alert.outcome in _HARMLESS:
                continue
            if alert.first <= last and first <= alert.last:
                raise Conflict(
                    f"balances {alert.first} to {alert.last} of node {node_id} belong to alert "
                    f"{number}, which is {alert.outcome or alert.state}: a model learned from "
                    "them would take the loss for technical"
                )

    @query
    def model(self, context: Context, *, node_id: Identifier) -> Learned:
        """What a node loses for technical reasons, as it is used now."""
        node_of(context, node_id)
        learned = _current_model(context, node_id, _last(context, node_id))
        if learned is None:
            raise NotFound(f"node {node_id} has no model yet; its operator calls balance:Learn")
        return learned

    @query
    def periods(
        self,
        context: Context,
        *,
        node_id: Identifier,
        from_: Annotated[int, Integer(1, 99_999_999)] = 1,
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """A node's balances in order, with what was lost and what was expected to be."""
        node_of(context, node_id)
        learned = _current_model(context, node_id, _last(context, node_id))
        items, following = page(context, f"balance/{node_id}/", f"{from_:08d}", limit, bookmark)
        balances = [stored_record(Balance, value) for _, value in items]
        return {
            "balances": [
                {
                    "balance": balance,
                    "loss_wh": balance.day().loss_wh,
                    "expected_wh": learned and learned.model().expected_wh(balance.day()),
                }
                for balance in balances
            ],
            "bookmark": following,
        }

    @query
    def assess(
        self,
        context: Context,
        *,
        training: Annotated[tuple[Day, ...], AtMost(MAX_LEARNED)],
        watched: Annotated[tuple[Day, ...], AtMost(MAX_WATCHED)],
        no_load_w: NoLoad = 0,
        quadratic_ppb_per_wh: Quadratic = 0,
    ) -> dict[str, Any]:
        """Look for a loss in sums that are not on the ledger; nothing is written."""
        model = learn(_named(training), no_load_w * 24, quadratic_ppb_per_wh)
        if model is None:
            raise InvalidArgument(
                f"training has {len(training)} periods, but {MIN_TRAINING_DAYS} are needed, and "
                "energy in them"
            )
        finding = find(model, _named(watched))
        return {
            "no_load_wh": model.no_load_wh,
            "proportional_ppm": model.proportional_ppm,
            "deviation_wh": model.deviation_wh,
            "days": model.days,
            "finding": None if finding is None else _found(finding),
        }

    @transaction
    def declare(
        self,
        context: Context,
        *,
        node_id: Identifier,
        since: Instant,
        until: Instant,
        loss_wh: Annotated[int, Integer(1, 10**12, "Wh")],
        confidence_ppm: Annotated[int, Integer(0, _MILLION, "ppm")],
        commitment: Commitment,
    ) -> Alert:
        """Raise an alert on a node whose sums may not be published."""
        node = _required(context, node_id, "declare alerts")
        now = settings.now(context, energy_settings(context))
        if not since < until <= now:
            raise InvalidArgument(
                f"until is {utc_text(until)}, but must lie after since, {utc_text(since)}, and "
                f"not after the channel's time, {utc_text(now)}"
            )
        last = _last(context, node_id)
        if last.open is not None:
            known = alert_of(context, node_id, last.open)
            if known.commitment == commitment:
                return known
            raise Conflict(
                f"alert {last.open} of node {node_id} is {known.state}; it is closed before "
                "another is raised"
            )
        number = last.alerts + 1
        step = Step("raised", node.utility, context.creator.common_name[:64], now, "")
        alert = Alert(
            node_id, number, "declared", since, until, None, None, loss_wh, 0, confidence_ppm,
            None, commitment, "raised", None, (step,),
        )  # fmt: skip
        _put_alert(context, alert)
        _put_last(context, node_id, replace(last, alerts=number, open=number))
        context.set_event("loss_alert", canonical_json(alert))
        return alert

    @transaction
    def acknowledge(
        self, context: Context, *, node_id: Identifier, number: Number, note: Note
    ) -> Alert:
        """Say that an alert has been seen, and by whom."""
        return self._step(context, node_id, number, "acknowledged", note)

    @transaction
    def investigate(
        self, context: Context, *, node_id: Identifier, number: Number, note: Note
    ) -> Alert:
        """Say that somebody has looked, and what was found; no names of homes."""
        return self._step(context, node_id, number, "investigated", note)

    @transaction
    def conclude(
        self,
        context: Context,
        *,
        node_id: Identifier,
        number: Number,
        outcome: Outcome,
        note: Note,
    ) -> Alert:
        """Close an alert with what it turned out to be."""
        return self._step(context, node_id, number, "closed", note, outcome)

    @staticmethod
    def _step(
        context: Context,
        node_id: str,
        number: int,
        state: str,
        note: str,
        outcome: str | None = None,
    ) -> Alert:
        node = _required(context, node_id, "follow alerts")
        alert = alert_of(context, node_id, number)
        if (alert.state, alert.outcome, alert.steps[-1].note) == (state, outcome, note):
            return alert
        if alert.state != _BEFORE[state]:
            raise Conflict(
                f"alert {number} of node {node_id} is {alert.state}, but must be "
                f"{_BEFORE[state]} to become {state}"
            )
        now = settings.now(context, energy_settings(context))
        step = Step(state, node.utility, context.creator.common_name[:64], now, note)
        alert = replace(alert, state=state, outcome=outcome, steps=(*alert.steps, step))
        _put_alert(context, alert)
        if state == "closed":
            last = _last(context, node_id)
            _put_last(context, node_id, replace(last, open=None, fresh=last.number + 1))
        context.set_event("loss_alert", canonical_json(alert))
        return alert

    @query
    def alerts(
        self,
        context: Context,
        *,
        node_id: Identifier,
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """A node's alerts, the oldest first."""
        node_of(context, node_id)
        return listed(context, "alerts", Alert, f"lossalert/{node_id}/", "", limit, bookmark)

    @query
    def basis(self, context: Context, *, node_id: Identifier, number: Number) -> dict[str, Any]:
        """The periods that an alert was raised from, with up to two weeks before it."""
        alert = alert_of(context, node_id, number)
        learned = _current_model(context, node_id, _last(context, node_id))
        if alert.first is None or alert.last is None or learned is None:
            raise Conflict(
                f"alert {number} of node {node_id} was declared from sums that are not on the "
                "ledger"
            )
        first = max(1, alert.first - 14, alert.last - 59)
        balances = [balance_of(context, node_id, count) for count in range(first, alert.last + 1)]
        model = learned.model()
        return {
            "ends": [balance.to for balance in balances],
            "since": alert.first - first,
            "loss_wh": sum(
                model.residual_wh(balance.day())
                for balance in balances
                if balance.number >= alert.first
            ),
        }

    @transaction
    def report_billed(self, context: Context, *, billed: Billed) -> Billed:
        """Publish what a utility has billed all its homes in a period, once."""
        access.require_operator(
            context.creator, billed.utility, f"report what {billed.utility} billed"
        )
        if not billed.from_ < billed.to:
            raise InvalidArgument(
                f"billed.to is {billed.to}, but must be after billed.from, {billed.from_}"
            )
        key = f"billed/{billed.utility}/{billed.from_:012d}/{billed.to:012d}"
        stored = context.get_state(key)
        if stored is None:
            context.put_state(key, canonical_json(billed))
        elif stored_record(Billed, stored) != billed:
            raise Conflict(
                f"{billed.utility} has reported other bills from {utc_text(billed.from_)} to "
                f"{utc_text(billed.to)}; credit notes count in a later period"
            )
        return billed

    @query
    def overselling(
        self, context: Context, *, utility: MspId, from_: Instant, to: Instant
    ) -> dict[str, Any]:
        """Compare what a utility has billed in a period with what its homes were metered for."""
        stored = context.get_state(f"billed/{utility}/{from_:012d}/{to:012d}")
        if stored is None:
            raise NotFound(
                f"{utility} has not reported what it billed from {utc_text(from_)} to "
                f"{utc_text(to)}; its operator calls balance:ReportBilled"
            )
        billed = stored_record(Billed, stored)
        delivered = 0
        homes: dict[str, int] = {}
        covered: dict[str, int] = {}
        prefix = f"share/{utility}/"
        # A period that ends at most an hour aside is the same one: meters are read when they are.
        for _, value in context.range(f"{prefix}{from_:012d}", under(prefix)[1]):
            share = stored_record(Share, value)
            if share.to > to + _ASIDE_S:
                break
            if share.from_ < from_ - _ASIDE_S:
                continue
            delivered += share.net_wh
            homes[share.node_id] = max(homes.get(share.node_id, 0), share.homes)
            covered[share.node_id] = covered.get(share.node_id, 0) + share.to - share.from_
        whole = min(covered.values(), default=0) >= to - from_ - 2 * _ASIDE_S
        comparable = whole and sum(homes.values()) == billed.homes
        excess = billed.net_wh - delivered
        return {
            "utility": utility,
            "from": from_,
            "to": to,
            "billed_wh": billed.net_wh,
            "delivered_wh": delivered,
            "excess_wh": excess,
            "homes_billed": billed.homes,
            "homes_delivered": sum(homes.values()),
            "comparable": comparable,
            "oversold": comparable and excess * _MILLION > abs(delivered) * OVERSOLD_PPM,
        }


_BEFORE = {"acknowledged": "raised", "investigated": "acknowledged", "closed": "investigated"}
_HARMLESS = ("technical", "nothing")
_ASIDE_S = 3600


def _named(days: Sequence[Day]) -> list[DayBalance]:
    return [
        DayBalance(str(index), day.delivered_wh, day.metered_wh, day.square, seconds=day.seconds)
        for index, day in enumerate(days)
    ]


def _found(finding: Finding) -> dict[str, Any]:
    """A finding in sums that were given, by their places in the list."""
    return {
        "first": int(finding.since),
        "last": int(finding.until),
        "loss_wh": finding.loss_wh,
        "loss_ppm": finding.loss_ppm,
        "confidence_ppm": finding.confidence_ppm,
    }


def _sized(
    alert: Alert, finding: Finding, begun: Balance, balance: Balance, learned: Learned
) -> Alert:
    """An alert as large as it was last found to be."""
    return replace(
        alert,
        since=begun.from_,
        until=balance.to,
        first=begun.number,
        last=balance.number,
        loss_wh=finding.loss_wh,
        loss_ppm=finding.loss_ppm,
        confidence_ppm=finding.confidence_ppm,
        model=learned.version,
    )
