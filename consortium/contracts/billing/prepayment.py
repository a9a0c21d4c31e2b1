"""Contract `prepayment`: supply that is paid in advance, in money or in kWh.

The credit in money is a hold of the home's own account, `prepayment`; credit in energy are lots
bought at a published price. A posted bill comes out of them at once (`billing:Post`): first its
import out of the energy, then its amount out of the money. What isn't covered stays open and is
paid by the next top-up before anything else. Up to its emergency credit, which the home asks for,
an open amount has no consequence; and no switch opens outside of working hours, whatever is owed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    Integer,
    MspId,
    NotFound,
    RequestId,
    TransactionId,
    canonical_json,
    query,
    stored_record,
    transaction,
)

from ..assets.wallet import (
    NEVER,
    Amount,
    Hold,
    Ledger,
    Shard,
    Transfer,
    supplier_account,
)
from ..common import access, settings
from ..common.money import amount_micro
from ..registry.registry import energy_settings
from . import permit, supply
from .supply import CREDIT_HOLD, DRAWS, MAX_LOTS, Draw, Dues, Lot, Number, Prepaid, Supply

Price = Annotated[int, Integer(0, 10**9, "micro-units per kWh")]
BoughtEnergy = Annotated[int, Integer(1, 10**9, "Wh")]


@dataclass(frozen=True, slots=True)
class EnergyPrice:
    """What a supplier asks for energy in advance."""

    supplier: MspId
    price_micro_per_kwh: Price
    published_at: Instant


@dataclass(frozen=True, slots=True)
class Part:
    """Of a payment: what went to one bill."""

    number: Number
    amount_micro: Amount


@dataclass(frozen=True, slots=True)
class TopUp:
    """Money or energy that was added to a credit."""

    connection_id: Identifier
    request_id: RequestId
    amount_micro: Annotated[int, Integer(0, 10**15, "micro-units")]
    """What was paid in all."""
    paid: Annotated[tuple[Part, ...], AtMost(supply.MAX_OPEN)]
    """Open bills that were paid of it first."""
    energy_wh: Annotated[int, Integer(0, 10**9, "Wh")]
    """Energy that was bought."""
    transaction_id: TransactionId


def parts(paid: Sequence[tuple[int, int]]) -> tuple[Part, ...]:
    """Amounts by document as a record."""
    return tuple(Part(number, amount) for number, amount in paid)


def add_credit(ledger: Ledger, context: Context, connection_id: str, add: int, shard: str) -> None:
    """Set more money aside as credit, out of a shard."""
    if add == 0:
        return
    hold = supply.credit_of(context, connection_id)
    if hold is None:
        ledger.hold(
            Hold(connection_id, CREDIT_HOLD, add, "PREPAYMENT", NEVER, "pending"),
            shard,
        )
    else:
        ledger.change_hold(hold, hold.amount_micro + add, shard)


def pay_from_credit(
    ledger: Ledger, context: Context, connection_id: str, transfers: Sequence[Transfer]
) -> None:
    """Pay bills out of the credit in money, which holds that much."""
    hold = supply.credit_of(context, connection_id)
    assert hold is not None, "there is a credit to pay from"
    if sum(transfer.amount_micro for transfer in transfers) == hold.amount_micro:
        ledger.end_hold(hold, "posted", transfers)
    else:
        ledger.pay_from_hold(hold, transfers)


def draw_energy(prepaid: Prepaid, supplier: str, energy_wh: int) -> Prepaid:
    """Take energy out of a supplier's lots, the oldest first; negative: give some back.

    Raises Conflict for more than there is.
    """
    if energy_wh < 0:
        prices = [lot.price for lot in prepaid.lots if lot.supplier == supplier]
        return _with_lot(prepaid, Lot(supplier, -energy_wh, prices[-1] if prices else 0))
    there = prepaid.energy_wh(supplier)
    if energy_wh > there:
        raise Conflict(
            f"the bill draws {energy_wh} Wh, but {there} are left of what was bought of "
            f"{supplier} in advance; compute it once more"
        )
    left = []
    last = max((at for at, lot in enumerate(prepaid.lots) if lot.supplier == supplier), default=-1)
    for index, lot in enumerate(prepaid.lots):
        part = min(lot.energy_wh, energy_wh) if lot.supplier == supplier else 0
        energy_wh -= part
        # The last stays, used up or not: a correction gives energy back at its price.
        if part < lot.energy_wh or index == last:
            left.append(replace(lot, energy_wh=lot.energy_wh - part))
    return replace(prepaid, lots=tuple(left))


def _with_lot(prepaid: Prepaid, lot: Lot) -> Prepaid:
    """Add energy; lots of one price that follow one another are one."""
    lots = list(prepaid.lots)
    if lots and (lots[-1].supplier, lots[-1].price) == (lot.supplier, lot.price):
        lots[-1] = replace(lots[-1], energy_wh=lots[-1].energy_wh + lot.energy_wh)
    elif len(lots) == MAX_LOTS:
        raise Conflict(
            f"the credit has {MAX_LOTS} lots of energy at different prices, the limit; use some "
            "before buying more"
        )
    else:
        lots.append(lot)
    return replace(prepaid, lots=tuple(lots))


def days_left(prepaid: Prepaid, supplier: str, credit_micro: int, open_micro: int) -> int | None:
    """How many days the credit lasts if they are like the last ones; None if nothing is known.

    The lesser of what the money and what the energy allows, while there is some of each.
    """
    days = sum(draw.days for draw in prepaid.draws)
    spent = sum(draw.amount_micro for draw in prepaid.draws)
    drawn = sum(draw.energy_wh for draw in prepaid.draws)
    if open_micro > 0:
        return 0
    found = []
    if spent > 0:
        found.append(credit_micro * days // spent)
    energy_wh = prepaid.energy_wh(supplier)
    if drawn > 0 and energy_wh:
        found.append(energy_wh * days // drawn)
    return min(found, default=None)


def after_bill(prepaid: Prepaid, draw: Draw | None) -> Prepaid:
    """Note what a bill took, for the forecast."""
    if draw is None:
        return prepaid
    return replace(prepaid, draws=(*prepaid.draws, draw)[-DRAWS:])


def put(context: Context, connection_id: str, before: Prepaid, after: Prepaid) -> None:
    """Write what was paid in advance, if it changed."""
    if before != after:
        context.put_state(f"prepaid/{connection_id}", canonical_json(after))


def is_low(terms: Supply, prepaid: Prepaid, credit_micro: int, open_micro: int) -> bool:
    """Whether the credit lasts fewer days than the supply's terms say."""
    days = days_left(prepaid, terms.supplier, credit_micro, open_micro)
    return days is not None and days < terms.low_days


class Prepayments(Contract):
    """Topping up, and how long it lasts."""

    name: ClassVar[str] = "prepayment"

    @transaction
    def publish_price(
        self, context: Context, *, supplier: MspId, price_micro_per_kwh: Price
    ) -> EnergyPrice:
        """Say what energy in advance costs from now on; the same again changes nothing."""
        access.require_supplier(context.creator, supplier, f"publish prices of {supplier}")
        before = self._price(context, supplier)
        if before is not None and before.price_micro_per_kwh == price_micro_per_kwh:
            return before
        published = EnergyPrice(supplier, price_micro_per_kwh, self._now(context))
        context.put_state(f"prepaidprice/{supplier}", canonical_json(published))
        return published

    @query
    def price(self, context: Context, *, supplier: MspId) -> EnergyPrice:
        """What a supplier asks for energy in advance."""
        found = self._price(context, supplier)
        if found is None:
            raise NotFound(f"{supplier} has published no price for energy in advance")
        return found

    @transaction
    def top_up(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        amount_micro: Amount,
        request_id: RequestId,
        shard: Shard = 0,
    ) -> TopUp:
        """Add money to a home's credit; open bills are paid first. The same request counts once."""
        supply.require_home(context, connection_id, f"top up {connection_id}")
        key = f"topup/{connection_id}/home/{request_id}"
        known = self._known(context, key, amount_micro, 0)
        if known is not None:
            return known
        now = self._now(context)
        ledger = Ledger(context, now)
        return self._add(context, ledger, now, connection_id, amount_micro, str(shard), key)

    @transaction
    def receive(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        amount_micro: Amount,
        bank_reference: Identifier,
    ) -> TopUp:
        """Add money that arrived at the supplier's bank or till; a bank reference counts once."""
        now = self._now(context)
        terms = supply.current_supply(context, connection_id, now)
        access.require_supplier(
            context.creator, terms.supplier, f"enter top-ups of {connection_id}"
        )
        key = f"topup/{connection_id}/bank/{bank_reference}"
        known = self._known(context, key, amount_micro, 0)
        if known is not None:
            return known
        ledger = Ledger(context, now)
        ledger.transfer(
            supply.take_bank_reference(
                context, terms.supplier, bank_reference, connection_id, amount_micro
            ),
            into_shard=supply.PASSING,
        )
        return self._add(context, ledger, now, connection_id, amount_micro, supply.PASSING, key)

    @transaction
    def buy_energy(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        energy_wh: BoughtEnergy,
        price_micro_per_kwh: Price,
        request_id: RequestId,
        shard: Shard = 0,
    ) -> TopUp:
        """Buy energy in advance at the published price, named exactly; a request counts once."""
        supply.require_home(context, connection_id, f"buy energy for {connection_id}")
        amount = amount_micro(energy_wh, price_micro_per_kwh)
        key = f"topup/{connection_id}/home/{request_id}"
        known = self._known(context, key, amount, energy_wh)
        if known is not None:
            return known
        now = self._now(context)
        terms = supply.current_supply(context, connection_id, now)
        if terms.payment != "prepaid_energy":
            raise Conflict(
                f"connection {connection_id} is supplied {terms.payment}, not prepaid_energy"
            )
        published = self._price(context, terms.supplier)
        if published is None or published.price_micro_per_kwh != price_micro_per_kwh:
            current = "none" if published is None else str(published.price_micro_per_kwh)
            raise Conflict(
                f"price_micro_per_kwh is {price_micro_per_kwh}, but the price of {terms.supplier} "
                f"is {current}"
            )
        ledger = Ledger(context, now)
        ledger.transfer(
            Transfer(
                connection_id,
                supplier_account(terms.supplier),
                amount,
                "prepaid_energy",
                request_id,
            ),
            from_shard=str(shard),
        )
        ledger.write()
        before = supply.prepaid_of(context, connection_id)
        after = replace(
            _with_lot(before, Lot(terms.supplier, energy_wh, price_micro_per_kwh)), low=False
        )
        put(context, connection_id, before, after)
        bought = TopUp(connection_id, request_id, amount, (), energy_wh, context.transaction_id)
        context.put_state(key, canonical_json(bought))
        context.set_event("prepayment", canonical_json(bought))
        return bought

    @transaction
    def refund_energy(
        self, context: Context, *, connection_id: Identifier, supplier: MspId
    ) -> dict[str, Any]:
        """Pay energy in advance back that a supplier's bills will not draw any more.

        Once the supply is another one and all days before it are billed; at the price at which it
        was bought. Again changes nothing.
        """
        supply.require_sight(context, connection_id)
        now = self._now(context)
        terms = supply.current_supply(context, connection_id, now)
        billed_to = Dues(context, connection_id).account.billed_to or ""
        if (terms.supplier, terms.payment) == (supplier, "prepaid_energy"):
            raise Conflict(f"{supplier} still supplies {connection_id} with energy in advance")
        if billed_to < terms.from_day:
            raise Conflict(
                f"{connection_id} is billed up to {billed_to or 'no day'}; what is left of its "
                f"energy is known once it is up to {terms.from_day}"
            )
        before = supply.prepaid_of(context, connection_id)
        lots = [lot for lot in before.lots if lot.supplier == supplier]
        amount = sum(amount_micro(lot.energy_wh, lot.price) for lot in lots)
        ledger = Ledger(context, now)
        ledger.transfer(
            Transfer(supplier_account(supplier), connection_id, amount, "prepaid_energy", "refund")
        )
        ledger.write()
        kept = tuple(lot for lot in before.lots if lot.supplier != supplier)
        put(context, connection_id, before, replace(before, lots=kept))
        return {
            "connection_id": connection_id,
            "energy_wh": sum(lot.energy_wh for lot in lots),
            "amount_micro": amount,
        }

    @transaction
    def use_emergency(self, context: Context, *, connection_id: Identifier) -> dict[str, Any]:
        """Ask for the emergency credit, until the next top-up pays it; again changes nothing."""
        supply.require_home(context, connection_id, f"use the emergency credit of {connection_id}")
        now = self._now(context)
        terms = supply.current_supply(context, connection_id, now)
        if terms.payment == "postpaid" or not terms.emergency_micro:
            raise Conflict(f"the supply of {connection_id} has no emergency credit")
        before = supply.prepaid_of(context, connection_id)
        dues = Dues(context, connection_id)
        if not before.emergency:
            hold = supply.credit_of(context, connection_id)
            credit = hold.amount_micro if hold else 0
            owed = dues.open_micro()
            if not owed and not is_low(terms, before, credit, owed):
                raise Conflict(
                    f"the credit of {connection_id} is not low: it lasts {terms.low_days} days "
                    "or more, or it isn't known how many"
                )
            permitted = permit.permit_of(context, connection_id)
            if permitted.state == "suspended":
                raise Conflict(
                    f"connection {connection_id} is suspended already; a top-up restores it"
                )
            put(context, connection_id, before, replace(before, emergency=True))
            # A warning that the emergency credit covers is taken back.
            permit.refresh(context, dues, terms, now, "credited", emergency=True)
        return {
            "connection_id": connection_id,
            "emergency": True,
            "emergency_micro": terms.emergency_micro,
        }

    @transaction
    def take_back(
        self, context: Context, *, connection_id: Identifier, amount_micro: Amount
    ) -> dict[str, Any]:
        """Take money out of the credit again, back into the home's account."""
        supply.require_home(context, connection_id, f"take back the credit of {connection_id}")
        hold = supply.credit_of(context, connection_id)
        there = hold.amount_micro if hold else 0
        if amount_micro > there:
            raise Conflict(
                f"amount_micro is {amount_micro}, but the credit of {connection_id} is {there}"
            )
        ledger = Ledger(context, self._now(context))
        if hold is not None and amount_micro == there:
            ledger.end_hold(hold, "voided")
        elif hold is not None:
            ledger.change_hold(hold, there - amount_micro, "0")
        ledger.write()
        return {"connection_id": connection_id, "credit_micro": there - amount_micro}

    @query
    def status(self, context: Context, *, connection_id: Identifier) -> dict[str, Any]:
        """What is left of a credit, and for how many days."""
        supply.require_sight(context, connection_id)
        now = self._now(context)
        terms = supply.current_supply(context, connection_id, now)
        prepaid = supply.prepaid_of(context, connection_id)
        dues = Dues(context, connection_id)
        hold = supply.credit_of(context, connection_id)
        credit = hold.amount_micro if hold else 0
        owed = dues.open_micro()
        emergency_left = max(0, terms.emergency_micro - owed) if prepaid.emergency else 0
        return {
            "connection_id": connection_id,
            "payment": terms.payment,
            "credit_micro": credit,
            "credit_wh": prepaid.energy_wh(terms.supplier),
            "open_micro": owed,
            "emergency": prepaid.emergency,
            "emergency_left_micro": emergency_left,
            "days_left": days_left(prepaid, terms.supplier, credit, owed),
            "low": is_low(terms, prepaid, credit, owed),
            "currency": energy_settings(context).currency,
        }

    # Inside

    def _add(
        self,
        context: Context,
        ledger: Ledger,
        now: int,
        connection_id: str,
        amount: int,
        shard: str,
        key: str,
    ) -> TopUp:
        terms = supply.current_supply(context, connection_id, now)
        if terms.payment == "postpaid":
            raise Conflict(f"connection {connection_id} is supplied postpaid; see billing:Pay")
        reference = key.rpartition("/")[2]
        dues = Dues(context, connection_id)
        paid = dues.pay(ledger, amount, shard=shard, reference=reference)
        rest = amount - sum(part for _, part in paid)
        add_credit(ledger, context, connection_id, rest, shard)
        ledger.write()
        dues.write()
        before = supply.prepaid_of(context, connection_id)
        after = replace(before, low=False)
        if not dues.open_micro():
            after = replace(after, emergency=False)
        put(context, connection_id, before, after)
        added = TopUp(connection_id, reference, amount, parts(paid), 0, context.transaction_id)
        context.put_state(key, canonical_json(added))
        if permit.refresh(context, dues, terms, now, "paid") is None:
            context.set_event("prepayment", canonical_json(added))
        return added

    @staticmethod
    def _known(context: Context, key: str, amount: int, energy_wh: int) -> TopUp | None:
        stored = context.get_state(key)
        if stored is None:
            return None
        known = stored_record(TopUp, stored)
        if (known.amount_micro, known.energy_wh) != (amount, energy_wh):
            raise Conflict(
                f"{key.rpartition('/')[2]} is a top-up of {known.amount_micro} micro-units and "
                f"{known.energy_wh} Wh already"
            )
        return known

    @staticmethod
    def _price(context: Context, supplier: str) -> EnergyPrice | None:
        stored = context.get_state(f"prepaidprice/{supplier}")
        return None if stored is None else stored_record(EnergyPrice, stored)

    @staticmethod
    def _now(context: Context) -> int:
        return settings.now(context, energy_settings(context))
