"""Contract `oversight`: what a regulator looks at, and where every amount comes from.

Rules, market and grid in figures that show no home, for all members; and the explanation of single
amounts, for those whose amounts they are, for the utilities that are parties to them, and for
regulators and auditors. Who these are, several utilities agree; nothing else is written here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Choice,
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
    query,
    stored_json,
    stored_record,
    transaction,
    under,
)

from ..assets.wallet import MAX_OPEN, supplier_account
from ..balance.balance import Alert, Balance, Learned
from ..balance.reliability import Interruption, indices
from ..common import access, agreements, settings
from ..common.agreements import Agreement, Version
from ..common.commitments import called
from ..common.pages import Bookmark, page
from ..common.settings import EnergySettings
from ..market.auctions import Result
from ..registry import homes, roles
from ..registry.registry import Connection, energy_settings
from . import overseers
from .explained import KINDS, Explained, Reader, number, text
from .overseers import EnrolmentId, Overseer

MAX_CONNECTIONS = 100_000
MAX_RESULTS = 3_000
"""Auctions that are summed at once: a month of quarter hours."""
MAX_OUTAGES = 10_000
_OUTAGES_AT_ONCE = 200
MAX_BALANCES = 400

Kind = Annotated[str, Choice(*KINDS)]
Id = Annotated[
    str, Text(r"[A-Za-z0-9-][A-Za-z0-9./-]{0,299}", "an id of that kind, its parts parted by /")
]


@dataclass(frozen=True, slots=True)
class _Outage:
    """As `metering:Outages` has it."""

    utility: MspId
    kind: Annotated[str, Choice("transformer", "gateway")]
    name: Identifier
    since: Instant
    meters: Annotated[tuple[Identifier, ...], AtMost(1_000)]
    reported_at: Instant
    delay_s: Annotated[int, Integer(0)]
    ended_at: Instant | None


@dataclass(frozen=True, slots=True)
class _Outages:
    outages: Annotated[tuple[_Outage, ...], AtMost(_OUTAGES_AT_ONCE)]
    bookmark: Bookmark | None


def _check_period(from_: int, to: int) -> None:
    if not from_ < to:
        raise InvalidArgument(f"to is {to}, but must be after from, {from_}")


class Oversight(Contract):
    """Rules, aggregates and explanations."""

    name: ClassVar[str] = "oversight"

    @query
    def explain(self, context: Context, *, kind: Kind, id_: Id) -> dict[str, Any]:
        """Where an amount comes from: its record, its inputs, its rule, and the amount again."""
        shape, explainer = KINDS[kind]
        parts = id_.split("/")
        wanted = len(shape.split("/"))
        if (len(parts) != wanted and not (kind == "posting" and len(parts) > wanted)) or not all(
            parts
        ):
            raise InvalidArgument(f"id is {id_}, but of a {kind} it is {shape}")
        explained = explainer(Reader(context), parts)
        self._require_sight(context, kind, id_, explained)
        return {
            "kind": kind,
            "id": id_,
            "record": explained.record,
            "rule": explained.rule,
            "inputs": explained.inputs,
            "recomputed": explained.recomputed,
            "agrees": explained.agrees,
            "documents": explained.documents,
        }

    @staticmethod
    def _require_sight(context: Context, kind: str, id_: str, explained: Explained) -> None:
        """Public figures for all; a home's for itself, its utilities and overseers."""
        creator = context.creator
        if not (explained.connections or explained.utilities) or overseers.is_overseer(context):
            return
        allowed = any(access.is_supplier(creator, utility) for utility in explained.utilities)
        for name in explained.connections:
            stored = context.get_state(f"connection/{name}")
            if stored is not None:
                connection = stored_record(Connection, stored)
                allowed = allowed or access.is_operator(creator, connection.utility)
                allowed = allowed or homes.is_home(context, connection)
            else:  # An account of a utility: SUPPLIER-…, GRID-…, ext/bank/….
                own = supplier_account(creator.msp_id).removeprefix("SUPPLIER-")
                theirs = name in (f"ext/bank/{creator.msp_id}",) or name.partition("-")[2] == own
                allowed = allowed or (theirs and access.is_supplier(creator, creator.msp_id))
        access.require(
            allowed,
            creator,
            f"have {kind} {id_} explained",
            "whose amount it is, their utilities, regulators and auditors",
        )

    # Who oversees

    @transaction
    def propose_overseer(
        self, context: Context, *, terms: Overseer, effective_from: Instant
    ) -> Agreement:
        """Propose a regulator or auditor, or that one is none any more."""
        name = overseers.name_of(terms.msp_id, terms.enrolment_id)
        return agreements.propose(context, overseers.OVERSEER, name, effective_from, terms)

    @transaction
    def approve_overseer(
        self, context: Context, *, msp_id: MspId, enrolment_id: EnrolmentId, version: Version
    ) -> Agreement:
        """Approve a regulator or auditor for the caller's utility."""
        name = overseers.name_of(msp_id, enrolment_id)
        return agreements.approve(context, overseers.OVERSEER, name, version)

    @query
    def overseers(self, context: Context, *, at: Instant | None = None) -> list[Overseer]:
        """All who oversee the channel at an instant; without one, now."""
        instant = settings.now(context, energy_settings(context)) if at is None else at
        found = []
        for name in agreements.names(context, overseers.OVERSEER):
            try:
                terms = agreements.in_force(context, overseers.OVERSEER, name, instant, Overseer)
            except NotFound:
                continue
            if terms.kind != "none":
                found.append(terms)
        return found

    @query
    def me(self, context: Context) -> dict[str, str | None]:
        """What the caller oversees the channel as; chaincode `metering` asks it."""
        return {"kind": overseers.kind_of(context)}

    # Rules and figures

    @query
    def rules(
        self,
        context: Context,
        *,
        at: Instant | None = None,
        limit: Annotated[int, Integer(1, 200)] = 100,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """The channel's settings and all agreed terms that hold at an instant, by kind and name."""
        channel = energy_settings(context)
        instant = settings.now(context, channel) if at is None else at
        found: list[dict[str, Any]] = []
        after = bookmark
        for kind, name, place in self._terms(context, bookmark):
            if len(found) == limit:
                return self._rules(channel, instant, found, after)
            after = f"{kind}/{name}"
            stored = context.get_state(f"{place}/versions")
            versions = None if stored is None else stored_json(stored)
            approved = versions.get("approved", []) if isinstance(versions, dict) else []
            version, since = 0, 0
            for one in approved if isinstance(approved, list) else []:
                if isinstance(one, dict) and int(str(one["effective_from"])) <= instant:
                    version, since = int(str(one["version"])), int(str(one["effective_from"]))
            if not version:
                continue
            terms = context.get_state(f"{place}/{version:06d}")
            agreement = context.get_state(f"{place}/{version:06d}/agreement")
            approvals = {} if agreement is None else stored_json(agreement)
            found.append(
                {
                    "kind": kind,
                    "name": name,
                    "version": version,
                    "effective_from": since,
                    "approved_by": approvals.get("approved_by")
                    if isinstance(approvals, dict)
                    else None,
                    "terms": None if terms is None else stored_json(terms),
                }
            )
        return self._rules(channel, instant, found, None)

    @staticmethod
    def _rules(
        channel: EnergySettings, at: int, terms: list[dict[str, Any]], bookmark: str | None
    ) -> dict[str, Any]:
        return {"at": at, "settings": channel, "terms": terms, "bookmark": bookmark}

    @staticmethod
    def _terms(context: Context, bookmark: str | None) -> Iterator[tuple[str, str, str]]:
        """All (kind, name, place) of terms, in order; one key is read for each."""
        start = f"terms/{bookmark}0" if bookmark else "terms/"
        while True:
            key = next((key for key, _ in context.range(start, "terms0")), None)
            if key is None:
                return
            _, kind, name, *_ = key.split("/")
            yield kind, name, f"terms/{kind}/{name}"
            start = f"terms/{kind}/{name}0"

    @query
    def market(
        self, context: Context, *, product: Identifier, from_: Instant, to: Instant
    ) -> dict[str, Any]:
        """What a product's auctions came to in a period: volumes and prices by zone, no names."""
        _check_period(from_, to)
        zones: dict[str, list[int]] = {}
        hub = [0, 0, 0]
        auctions = void = 0
        prefix = f"book/{product}/"
        for key, value in context.range(f"{prefix}{from_:012d}", f"{prefix}{to:012d}"):
            if not key.endswith("/result"):
                continue
            if auctions == MAX_RESULTS:
                raise LimitExceeded(
                    f"{product} has more than {MAX_RESULTS} auctions in that period; ask for less"
                )
            auctions += 1
            result = stored_record(Result, value)
            void += result.void
            for zone in result.zones:
                _add(zones.setdefault(zone.zone, [0, 0, 0]), zone.local.volume_wh, zone.local.price)
            if result.hub is not None:
                _add(hub, result.hub.volume_wh, result.hub.price)
        return {
            "product": product,
            "from": from_,
            "to": to,
            "auctions": auctions,
            "void": void,
            "zones": [
                {"zone": name, **_prices(figures)} for name, figures in sorted(zones.items())
            ],
            "hub": _prices(hub),
        }

    @query
    def zero_sum(
        self,
        context: Context,
        *,
        limit: Annotated[int, Integer(1, 2_000)] = 500,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """What accounts hold, summed page by page: over all pages it is zero."""
        accounts = total = 0
        start, end = f"acct/{bookmark}0" if bookmark else "acct/", "acct0"
        last = bookmark
        while True:
            key = next((key for key, _ in context.range(start, end)), None)
            if key is None:
                return {"accounts": accounts, "sum_micro": total, "bookmark": None}
            if accounts == limit:
                return {"accounts": accounts, "sum_micro": total, "bookmark": last}
            parts = key.split("/")
            last = "/".join(parts[1:4] if parts[1] == "ext" else parts[1:2])
            total += _held(context, last)
            accounts += 1
            start = f"acct/{last}0"

    @query
    def network(
        self,
        context: Context,
        *,
        utility: MspId,
        from_: Instant,
        to: Instant,
        limit: Annotated[int, Integer(1, 100)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """Energy, losses and alerts of a grid operator's transformers and sources in a period."""
        _check_period(from_, to)
        items, after = page(context, "lossstate/", "", limit, bookmark)
        nodes = []
        for key, _ in items:
            node_id = key.removeprefix("lossstate/")
            stored = context.get_state(f"transformer/{node_id}") or context.get_state(
                f"source/{node_id}"
            )
            node = None if stored is None else stored_json(stored)
            if isinstance(node, dict) and node.get("utility") == utility:
                nodes.append(_node_figures(context, node_id, from_, to))
        return {"utility": utility, "from": from_, "to": to, "nodes": nodes, "bookmark": after}

    @query
    def reliability(
        self, context: Context, *, utility: MspId, from_: Instant, to: Instant
    ) -> dict[str, Any]:
        """How often and how long a grid operator's homes were without power, on average."""
        _check_period(from_, to)
        served = 0
        for count, (_, value) in enumerate(context.range(*under("connection/"))):
            if count == MAX_CONNECTIONS:
                raise LimitExceeded(f"there are more than {MAX_CONNECTIONS} connections")
            connection = stored_record(Connection, value)
            served += roles.role_at(context, connection, "grid_operator", from_) == utility
        now = settings.now(context, energy_settings(context))
        figures = indices(
            [
                Interruption(one.since, one.ended_at or now, len(one.meters))
                for one in _outages(context, utility)
                if one.kind == "transformer"
            ],
            served,
            from_,
            min(to, max(now, from_ + 1)),
        )
        return {"utility": utility, "from": from_, "to": to, "figures": figures}


def _outages(context: Context, utility: str) -> Iterator[_Outage]:
    """What a utility has reported; raises LimitExceeded."""
    bookmark: str | None = None
    for _ in range(MAX_OUTAGES // _OUTAGES_AT_ONCE):
        found = called(
            context,
            "metering",
            "metering:Outages",
            _Outages,
            utility=utility,
            limit=_OUTAGES_AT_ONCE,
            bookmark=bookmark,
        )
        yield from found.outages
        bookmark = found.bookmark
        if bookmark is None:
            return
    raise LimitExceeded(f"{utility} has reported more than {MAX_OUTAGES} outages")


def _held(context: Context, account: str) -> int:
    """What an account has: in shards, in entries not yet swept, in holds not yet ended."""
    held = count = 0
    for part in ("avail", "in", "hold"):
        for _, value in context.range(*under(f"acct/{account}/{part}/")):
            count += 1
            if count > MAX_OPEN:
                raise LimitExceeded(f"account {account} has more than {MAX_OPEN} open entries")
            record = stored_json(value)
            if part == "hold" and text(record, "state") != "pending":
                continue
            held += number(record, "amount_micro")
    return held


def _add(figures: list[int], volume_wh: int, price: int | None) -> None:
    """Add an auction to [volume, volume x price, auctions with a price]."""
    if price is not None:
        figures[0] += volume_wh
        figures[1] += volume_wh * price
        figures[2] += 1


def _prices(figures: list[int]) -> dict[str, Any]:
    volume, value, cleared = figures
    return {
        "volume_wh": volume,
        "average_price": value // volume if volume else None,
        "cleared": cleared,
    }


def _node_figures(context: Context, node_id: str, from_: int, to: int) -> dict[str, Any]:
    """A node's sums over the balances that lie in a period, and its alerts."""
    delivered = metered = expected = count = 0
    prefix = f"balance/{node_id}/"
    models = list(context.range(*under(f"lossmodel/{node_id}/")))
    learned = stored_record(Learned, models[-1][1]) if models else None
    for _, value in context.range(*under(prefix)):
        balance = stored_record(Balance, value)
        if balance.from_ < from_ or balance.to > to:
            continue
        if count == MAX_BALANCES:
            raise LimitExceeded(
                f"node {node_id} has more than {MAX_BALANCES} balances in that period; ask for less"
            )
        count += 1
        delivered += balance.delivered_wh
        metered += balance.metered_wh
        if learned is not None:
            expected += learned.model().expected_wh(balance.day())
    states: dict[str, int] = {}
    for _, value in context.range(*under(f"lossalert/{node_id}/")):
        alert = stored_record(Alert, value)
        if alert.since < to and alert.until > from_:
            word = alert.outcome or alert.state
            states[word] = states.get(word, 0) + 1
    return {
        "node_id": node_id,
        "balances": count,
        "delivered_wh": delivered,
        "metered_wh": metered,
        "loss_wh": delivered - metered,
        "expected_wh": None if learned is None else expected,
        "alerts": states,
    }
