"""Contract `bilateral`: contracts between two accounts over longer times, such as a PPA.

One side proposes the terms and the other signs the same terms. They say who delivers to whom, on
which days, how much in each interval, and at what price (fixed, or an index with a markup).
Settlement reads them like any other firm trade; what they promise counts in both sides' positions.
A contract as produced has no profile: it sells a share of what the seller's meters export, which
its metering operator publishes by the interval.

    bilateral/{contract}                      Bilateral
    bilateral-of/{account}                    the contracts that an account has signed
    delivered/{contract}/{interval_start}     what a contract as produced has delivered
"""

from collections.abc import Iterator
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
    LimitExceeded,
    NotFound,
    TransactionId,
    canonical_json,
    query,
    sha256_hex,
    stored_record,
    transaction,
    under,
)

from ..assets.wallet import require_owner
from ..billing.tariff_book import index_of
from ..common import access, settings
from ..common.clock import DAY_S, Day, day_of, day_start, utc_text
from ..common.settings import Price
from ..registry import roles
from ..registry.registry import RESERVED_PREFIXES, connection_of, energy_settings
from ..settlement.firm import MAX_DELIVERED, MAX_SELLERS, Delivered, FirmTrade, Share, Shares
from . import caps, gates
from .positions import Position, capacity_wh, check_capacity, position_of

MAX_SLOTS = 48
MAX_DAYS = 366 * 25
MAX_CONTRACTS = 16
"""That an account may have signed at a time."""
CHECKED_S = 14 * 86_400
"""How much of its beginning is checked against what was sold in other ways already."""
_MILLION = 1_000_000

Energy = Annotated[int, Integer(1, 10**9, "Wh")]
Minute = Annotated[int, Integer(0, 1440, "minutes")]
ContractState = Annotated[str, Choice("proposed", "signed", "withdrawn")]


@dataclass(frozen=True, slots=True)
class Slot:
    """Energy of each interval within a part of every UTC day."""

    from_minute: Minute
    to_minute: Minute
    """Where the slot ends; 1440 is midnight."""
    energy_wh: Energy


@dataclass(frozen=True, slots=True)
class Terms:
    """What two sides agree on."""

    contract_id: Identifier
    seller: Identifier
    """A connection."""
    buyer: Identifier
    """A connection, or the account SUPPLIER-<NAME> of a utility."""
    from_day: Day
    to_day: Day
    """The day after the last."""
    profile: Annotated[tuple[Slot, ...], AtMost(MAX_SLOTS)]
    price_micro_per_kwh: Price
    """What the seller gets; the markup where there is an index."""
    index: Identifier | None = None
    """See tariff:PublishIndex."""
    index_ppm: Annotated[int, Integer(0, 10 * _MILLION, "ppm")] = 0
    notice_days: Annotated[int, Integer(0, 3660, "days")] = 0
    """How long before its end either side may say so."""
    share_ppm: Annotated[int, Integer(0, _MILLION, "ppm")] = 0
    """Above 0, and without a profile: as produced, so much of what the seller's meters export."""

    def energy_wh(self, interval_start: int) -> int:
        """What its profile has in an interval."""
        if not day_start(self.from_day) <= interval_start < day_start(self.to_day):
            return 0
        minute = interval_start % DAY_S // 60
        return sum(
            slot.energy_wh for slot in self.profile if slot.from_minute <= minute < slot.to_minute
        )


@dataclass(frozen=True, slots=True)
class Bilateral:
    """A contract and how far it has come."""

    terms: Terms
    proposed_by: Identifier
    state: ContractState
    signed_at: Instant = 0
    transaction_id: TransactionId | None = None
    """Of the signature."""
    ended_by: Identifier | None = None
    """Who gave notice; `terms.to_day` is then the end it gave."""


@dataclass(frozen=True, slots=True)
class _Delivered:
    """What a contract as produced has delivered in an interval."""

    energy_wh: Annotated[int, Integer(0, 10**9, "Wh")]


@dataclass(frozen=True, slots=True)
class _Signed:
    """The contracts of one account."""

    contracts: Annotated[tuple[Identifier, ...], AtMost(MAX_CONTRACTS)] = ()


def _key(contract_id: str) -> str:
    return f"bilateral/{contract_id}"


def _signed_key(account: str) -> str:
    return f"bilateral-of/{account}"


def contract_of(context: Context, contract_id: str) -> Bilateral:
    """A contract; raises NotFound."""
    stored = context.get_state(_key(contract_id))
    if stored is None:
        raise NotFound(f"there is no bilateral contract {contract_id}")
    return stored_record(Bilateral, stored)


def signed_contracts(context: Context, account: str) -> list[Bilateral]:
    """The contracts that an account has signed, ended ones included until it signs others."""
    stored = context.get_state(_signed_key(account))
    if stored is None:
        return []
    return [contract_of(context, one) for one in stored_record(_Signed, stored).contracts]


def sold_as_produced(context: Context) -> Iterator[Terms]:
    """Contracts of a share of what is exported whose buyer is a connection. In queries only."""
    for _, value in context.range(*under("bilateral/")):
        found = stored_record(Bilateral, value)
        bought_by = found.terms.buyer
        if (
            found.state == "signed"
            and found.terms.share_ppm
            and not bought_by.startswith(RESERVED_PREFIXES)
        ):
            yield found.terms


def contracted(context: Context, connection_id: str, interval_start: int) -> tuple[int, int]:
    """(sold, bought) of a connection in an interval, by the profiles of its contracts."""
    sold = bought = 0
    for contract in signed_contracts(context, connection_id):
        energy_wh = contract.terms.energy_wh(interval_start)
        if contract.terms.seller == connection_id:
            sold += energy_wh
        else:
            bought += energy_wh
    return sold, bought


def firm_contracts(
    context: Context, connection_id: str, start: int, end: int, fee_price: int
) -> Iterator[FirmTrade]:
    """What a connection trades by its contracts in [start, end); raises NotFound without an index.

    The buyer pays the grid's fee on top of the contract's price.
    """
    interval_s = energy_settings(context).interval_s
    for contract in signed_contracts(context, connection_id):
        terms = contract.terms
        sells = terms.seller == connection_id
        first = max(start, day_start(terms.from_day))
        for interval_start in range(first, min(end, day_start(terms.to_day)), interval_s):
            energy_wh = terms.energy_wh(interval_start)
            if terms.share_ppm:
                energy_wh = _delivered(context, terms, interval_start, interval_s)
            if not energy_wh:
                continue
            price = terms.price_micro_per_kwh
            if terms.index is not None:
                day = day_of(interval_start)
                prices = index_of(context, terms.index, day).prices
                index = prices[(interval_start - day_start(day)) // interval_s]
                price += index * terms.index_ppm // _MILLION
            yield FirmTrade(
                interval_start,
                -energy_wh if sells else energy_wh,
                price if sells else price + fee_price,
                0 if sells else fee_price,
                terms.buyer if sells else terms.seller,
                "bilateral",
                terms.contract_id,
                share_ppm=terms.share_ppm if sells else 0,
            )


def _delivered_key(contract_id: str, interval_start: int) -> str:
    return f"delivered/{contract_id}/{interval_start:012d}"


def _delivered(context: Context, terms: Terms, interval_start: int, interval_s: int) -> int:
    """What a contract as produced has delivered; 0 before the interval is over.

    Raises Conflict where it is over and nothing is published.
    """
    stored = context.get_state(_delivered_key(terms.contract_id, interval_start))
    if stored is not None:
        return stored_record(_Delivered, stored).energy_wh
    if interval_start + interval_s <= settings.now(context, energy_settings(context)):
        raise Conflict(
            f"what contract {terms.contract_id} has delivered at {utc_text(interval_start)} isn't "
            f"published; who meters {terms.seller} calls bilateral:Deliver"
        )
    return 0


def _check_terms(context: Context, terms: Terms) -> None:
    """Raise InvalidArgument for terms that nobody could settle."""
    interval_s = energy_settings(context).interval_s
    if terms.seller == terms.buyer:
        raise InvalidArgument(f"seller and buyer are both {terms.seller}")
    first, end = day_start(terms.from_day), day_start(terms.to_day)
    if not first < end <= first + MAX_DAYS * DAY_S:
        raise InvalidArgument(
            f"to_day is {terms.to_day}, but must be 1 to {MAX_DAYS} days after from_day, "
            f"{terms.from_day}"
        )
    if not terms.profile and not terms.share_ppm:
        raise InvalidArgument(
            "profile is empty and share_ppm 0; give one slot at least, or a share of what the "
            "seller exports"
        )
    if terms.profile and terms.share_ppm:
        raise InvalidArgument(
            f"share_ppm is {terms.share_ppm}, but there is a profile, too; give one of them"
        )
    if (terms.index is None) != (terms.index_ppm == 0):
        raise InvalidArgument("index and index_ppm belong together: both, or neither")
    before = 0
    for number, slot in enumerate(terms.profile):
        if slot.from_minute < before or slot.to_minute <= slot.from_minute:
            raise InvalidArgument(
                f"profile[{number}] is from minute {slot.from_minute} to {slot.to_minute}, but "
                "slots follow one another and don't overlap"
            )
        if slot.from_minute * 60 % interval_s or slot.to_minute * 60 % interval_s:
            raise InvalidArgument(
                f"profile[{number}] cuts an interval of {interval_s} s in two; begin and end at a "
                "whole one"
            )
        before = slot.to_minute
    for account in (terms.seller, terms.buyer):
        if account == terms.seller and account.startswith(RESERVED_PREFIXES):
            raise InvalidArgument(f"seller is {account}, but must be a connection")
        if account.startswith("GRID-"):
            raise InvalidArgument(f"buyer is {account}, a grid's account, which buys nothing")
        if account.startswith("TAX-"):
            raise InvalidArgument(f"buyer is {account}, an account of taxes, which buys nothing")
        if not account.startswith(RESERVED_PREFIXES):
            connection_of(context, account)
    seller = connection_of(context, terms.seller)
    if terms.share_ppm and roles.role_at(context, seller, "home", first) is not None:
        raise InvalidArgument(
            f"share_ppm is {terms.share_ppm}, but somebody lives at {terms.seller}, and what is "
            "delivered as produced is published by the interval; sell a profile"
        )


def _check_shares(context: Context, terms: Terms) -> None:
    """Raise Conflict if more than all of a seller's export would be sold as produced."""
    sold = terms.share_ppm + sum(
        one.terms.share_ppm
        for one in signed_contracts(context, terms.seller)
        if one.terms.seller == terms.seller
        and one.terms.from_day < terms.to_day
        and terms.from_day < one.terms.to_day
    )
    if sold > _MILLION:
        raise Conflict(
            f"{sold} ppm of what {terms.seller} exports would be sold as produced, more than all"
        )


class Bilaterals(Contract):
    """Proposing contracts, signing them, and giving notice."""

    name: ClassVar[str] = "bilateral"

    @transaction
    def propose(self, context: Context, *, terms: Terms, proposed_by: Identifier) -> Bilateral:
        """Propose a contract to the other side; the same again changes nothing."""
        self._require_side(context, terms, proposed_by, "propose contracts of")
        _check_terms(context, terms)
        now = settings.now(context, energy_settings(context))
        if day_start(terms.from_day) <= now:
            raise InvalidArgument(
                f"from_day is {terms.from_day}, but must be after {day_of(now)}, the channel's "
                "current day"
            )
        stored = context.get_state(_key(terms.contract_id))
        if stored is not None:
            found = stored_record(Bilateral, stored)
            if found.terms != terms or found.proposed_by != proposed_by:
                raise Conflict(f"contract_id {terms.contract_id} is another contract already")
            return found
        contract = Bilateral(terms, proposed_by, "proposed")
        context.put_state(_key(terms.contract_id), canonical_json(contract))
        return contract

    @transaction
    def sign(self, context: Context, *, terms: Terms) -> Bilateral:
        """Sign what the other side has proposed, exactly so; again changes nothing."""
        found = contract_of(context, terms.contract_id)
        other = found.terms.buyer if found.proposed_by == found.terms.seller else found.terms.seller
        require_owner(context, other, f"sign for {other}")
        if found.terms != terms:
            raise Conflict(
                f"the terms are not those of {terms.contract_id} as {found.proposed_by} proposed "
                "them; read bilateral:Contract"
            )
        if found.state == "signed":
            return found
        if found.state == "withdrawn":
            raise Conflict(f"contract {terms.contract_id} was withdrawn")
        now = settings.now(context, energy_settings(context))
        first = day_start(terms.from_day)
        if first <= now:
            raise Conflict(
                f"contract {terms.contract_id} was to begin at {utc_text(first)}, and the "
                f"channel's time is {utc_text(now)}; propose it anew"
            )
        gates.before(context, first)
        self._check_room(context, terms)
        signed = replace(
            found, state="signed", signed_at=now, transaction_id=context.transaction_id
        )
        for account in (terms.seller, terms.buyer):
            kept = [
                one.terms.contract_id
                for one in signed_contracts(context, account)
                if day_start(one.terms.to_day) > now - CHECKED_S * 30
            ]
            if len(kept) >= MAX_CONTRACTS:
                raise LimitExceeded(
                    f"{account} has signed {len(kept)} contracts, the limit is {MAX_CONTRACTS}"
                )
            context.put_state(
                _signed_key(account),
                canonical_json(_Signed(tuple(sorted((*kept, terms.contract_id))))),
            )
        context.put_state(_key(terms.contract_id), canonical_json(signed))
        context.set_event("contract_signed", canonical_json(signed))
        return signed

    @transaction
    def withdraw(self, context: Context, *, contract_id: Identifier) -> Bilateral:
        """Take a proposal back, or decline it; again changes nothing."""
        found = contract_of(context, contract_id)
        self._side_of(context, found.terms, "withdraw")
        if found.state == "withdrawn":
            return found
        if found.state == "signed":
            raise Conflict(f"contract {contract_id} is signed; bilateral:Terminate ends it")
        withdrawn = replace(found, state="withdrawn")
        context.put_state(_key(contract_id), canonical_json(withdrawn))
        return withdrawn

    @transaction
    def terminate(self, context: Context, *, contract_id: Identifier, to_day: Day) -> Bilateral:
        """Give notice: the contract ends on an earlier day; the same again changes nothing."""
        found = contract_of(context, contract_id)
        side = self._side_of(context, found.terms, "terminate")
        if found.state != "signed":
            raise Conflict(f"contract {contract_id} is {found.state}, not signed")
        if found.ended_by is not None and found.terms.to_day == to_day:
            return found
        now = settings.now(context, energy_settings(context))
        earliest = day_of(now + (found.terms.notice_days + 1) * DAY_S)
        day_start(to_day)
        if not max(earliest, found.terms.from_day) <= to_day < found.terms.to_day:
            raise InvalidArgument(
                f"to_day is {to_day}, but with {found.terms.notice_days} days' notice must be "
                f"{max(earliest, found.terms.from_day)} or later, and before {found.terms.to_day}"
            )
        gates.before(context, day_start(to_day) - found.terms.notice_days * DAY_S)
        ended = replace(found, terms=replace(found.terms, to_day=to_day), ended_by=side)
        context.put_state(_key(contract_id), canonical_json(ended))
        context.set_event("contract_ended", canonical_json(ended))
        return ended

    @transaction
    def deliver(
        self,
        context: Context,
        *,
        contract_id: Identifier,
        from_: Instant,
        energies_wh: Annotated[tuple[Delivered, ...], AtMost(MAX_DELIVERED)],
    ) -> dict[str, Any]:
        """Publish what a contract as produced has delivered, interval by interval."""
        terms = contract_of(context, contract_id).terms
        seller = connection_of(context, terms.seller)
        operator = roles.role_at(context, seller, "metering_operator", from_)
        access.require(
            roles.acts_for(context, context.creator, operator),
            context.creator,
            f"publish what {terms.seller} delivers",
            f"the metering operator, {operator},",
        )
        channel = energy_settings(context)
        if not terms.share_ppm:
            raise Conflict(f"contract {contract_id} has a profile; nothing is published of it")
        now = settings.now(context, channel)
        until = from_ + len(energies_wh) * channel.interval_s
        if from_ % channel.interval_s or not energies_wh:
            raise InvalidArgument(
                f"from is {from_}, but must be a multiple of {channel.interval_s}, and energies_wh "
                "have one at least"
            )
        if not day_start(terms.from_day) <= from_ < until <= day_start(terms.to_day):
            raise InvalidArgument(
                f"from is {utc_text(from_)} and energies_wh reach to {utc_text(until)}, but "
                f"contract {contract_id} is from {terms.from_day} to {terms.to_day}"
            )
        if until > now:
            raise Conflict(
                f"energies_wh reach to {utc_text(until)}, but the channel's time is {utc_text(now)}"
            )
        most = capacity_wh(seller, "offer", channel.interval_s) * terms.share_ppm // _MILLION
        written = 0
        for index, energy_wh in enumerate(energies_wh):
            if energy_wh > most:
                raise Conflict(
                    f"energies_wh[{index}] is {energy_wh}, but of what {terms.seller} can export "
                    f"the contract has {most} Wh"
                )
            key = _delivered_key(contract_id, from_ + index * channel.interval_s)
            made = canonical_json(_Delivered(energy_wh))
            if context.get_state(key) != made:
                context.put_state(key, made)
                written += 1
        return {"contract_id": contract_id, "from": from_, "written": written}

    @query
    def shares(
        self,
        context: Context,
        *,
        connections: Annotated[tuple[Identifier, ...], AtMost(MAX_SELLERS)],
        from_: Instant,
        to: Instant,
    ) -> Shares:
        """Contracts as produced of some sellers, with what is published of [from, to)."""
        interval_s = energy_settings(context).interval_s
        access.require_member(context.creator, "read what sellers deliver")
        if not from_ < to <= from_ + MAX_DELIVERED * interval_s:
            raise InvalidArgument(
                f"to is {to}, but must be after from, {from_}, by {MAX_DELIVERED} intervals at most"
            )
        found = []
        for name in connections:
            for contract in signed_contracts(context, name):
                terms = contract.terms
                if terms.seller != name or not terms.share_ppm:
                    continue
                start = max(from_, day_start(terms.from_day))
                end = min(to, day_start(terms.to_day))
                published = []
                for at in range(start, end, interval_s):
                    stored = context.get_state(_delivered_key(terms.contract_id, at))
                    published.append(
                        None if stored is None else stored_record(_Delivered, stored).energy_wh
                    )
                if published:
                    found.append(
                        Share(terms.contract_id, name, terms.share_ppm, start, tuple(published))
                    )
        return Shares(tuple(found))

    @query
    def contract(self, context: Context, *, contract_id: Identifier) -> Bilateral:
        """A contract."""
        found = contract_of(context, contract_id)
        if not access.is_operator(context.creator, context.creator.msp_id):
            self._side_of(context, found.terms, "read")
        return found

    @query
    def contracts(self, context: Context, *, account: Identifier) -> list[Bilateral]:
        """The contracts that an account has signed."""
        if not access.is_operator(context.creator, context.creator.msp_id):
            require_owner(context, account, f"read contracts of {account}")
        return signed_contracts(context, account)

    @query
    def terms_hash(self, context: Context, *, contract_id: Identifier) -> dict[str, Any]:
        """SHA-256 of a contract's terms as they stand, to compare with a paper's."""
        found = contract_of(context, contract_id)
        return {"contract_id": contract_id, "sha256": sha256_hex(canonical_json(found.terms))}

    @staticmethod
    def _require_side(context: Context, terms: Terms, side: str, doing: str) -> None:
        if side not in (terms.seller, terms.buyer):
            raise InvalidArgument(
                f"proposed_by is {side}, but must be seller {terms.seller} or buyer {terms.buyer}"
            )
        require_owner(context, side, f"{doing} {side}")

    @staticmethod
    def _side_of(context: Context, terms: Terms, doing: str) -> str:
        """The side that the caller acts for; raises Forbidden."""
        for side in (terms.seller, terms.buyer):
            try:
                require_owner(context, side, doing)
            except Forbidden:
                continue
            return side
        raise Forbidden(
            f"{access.described(context.creator)} may not {doing} contract {terms.contract_id}; "
            f"{terms.seller} and {terms.buyer} may"
        )

    @staticmethod
    def _check_room(context: Context, terms: Terms) -> None:
        """Raise Conflict if a connection can't carry the profile besides what it has promised."""
        interval_s = energy_settings(context).interval_s
        first = day_start(terms.from_day)
        if terms.share_ppm:
            _check_shares(context, terms)
            return
        for account, side in ((terms.seller, "offer"), (terms.buyer, "bid")):
            if account.startswith(RESERVED_PREFIXES):
                continue
            connection = connection_of(context, account)
            others = [one.terms for one in signed_contracts(context, account)]
            most = max(slot.energy_wh for slot in terms.profile)
            if most > capacity_wh(connection, side, interval_s):
                check_capacity(
                    connection,
                    Position(most, most),
                    side,
                    first + terms.profile[0].from_minute * 60,
                    interval_s,
                )
            end = min(first + CHECKED_S, day_start(terms.to_day))
            for start in range(first, end, interval_s):
                own = terms.energy_wh(start)
                if not own:
                    continue
                more = [other.energy_wh(start) for other in others if account == other.seller]
                less = [other.energy_wh(start) for other in others if account == other.buyer]
                position = replace(
                    position_of(context, account, start),
                    contract_sold_wh=sum(more) + (own if side == "offer" else 0),
                    contract_bought_wh=sum(less) + (own if side == "bid" else 0),
                )
                check_capacity(connection, position, side, start, interval_s)
                caps.check(
                    context,
                    connection,
                    position,
                    side,
                    start,
                    lambda name, at=start: position_of(context, name, at),  # type: ignore[misc]
                )
