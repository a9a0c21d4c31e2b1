"""Contract `wallet`: accounts in double entry.

Two transactions of one block must not touch one key, and thousands may concern one account. So:

- what an account receives, or is charged by a settlement, is **appended** under
  `acct/{account}/in/{transaction id}/{n}`; nobody reads that range to write;
- what its owner spends comes out of a **shard**, `acct/{account}/avail/{shard}`, that the owner
  alone writes; two payments at once name two shards. A *sweep* moves named entries from `in` to a
  shard, and shard `U` is the utility's, which sweeps for homes that don't;
- a **hold** sets money aside under `acct/{account}/hold/{hold id}` until it is posted, voided, or
  past its time; then it stands under `acct/{account}/ended/{hold id}`, since a year of orders ends
  more of them than one query can go through.

The balance is shards, holds and `in` together, and equals the sum of the account's postings,
`acct/{account}/post/…`, the newest first. The postings of each transaction sum to zero, and so does
the channel. Credit limits bind what an owner does by choice; settlement always posts.

A home's account is named like its connection; a utility has `SUPPLIER-<NAME>`, `GRID-<NAME>`,
`BALANCE-<NAME>` for what deviations cost, `TAX-<NAME>` for taxes that it has kept back and, for
money that comes from outside, `ext/bank/<MSP id>`. `CLEARING-MARKET` is the counterparty of every
fill, and `CLEARING-ROUNDING` where their roundings meet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    AtMost,
    Choice,
    Conflict,
    Context,
    Contract,
    Creator,
    Forbidden,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    RequestId,
    Text,
    TransactionId,
    canonical_json,
    ensure,
    query,
    stored_record,
    transaction,
    under,
)

from ..common import access, settings
from ..common.clock import real_seconds
from ..common.money import MICRO, convert_micro, half_even
from ..common.pages import Bookmark
from ..common.residence import Residence
from ..common.settings import Currency
from ..registry import homes
from ..registry.registry import RESERVED_PREFIXES, connection_of, energy_settings
from ..settlement.settle import MARKET, ROUNDING

_BANK = "ext/bank/"
CLEARING_PREFIX = "CLEARING-"
"""Of the clearing house's accounts, which belong to nobody and are everybody's to see."""
_LATEST = 10**12
"""Times are stored complemented to this, so that the newest comes first in a range."""
UTILITY_SHARD = "U"
OWNER_SHARDS = 16
MAX_SWEPT = 500
MAX_OPEN = 100_000
"""Entries not yet swept that a balance can be summed from."""
COLLATERAL = "collateral"
"""Id of the hold that answers for an account first."""
NEVER = 10**11
"""The last instant there is: a hold that only its purpose ends."""
WITHDRAWAL_S = 30 * 86_400
"""How long a requested withdrawal waits for the bank before its hold ends, a person's time."""

Account = Annotated[
    str,
    Text(
        r"[A-Z0-9-]{1,64}|ext/bank/[A-Za-z0-9.-]{1,64}",
        "an account: a connection id, SUPPLIER-<NAME>, GRID-<NAME> or ext/bank/<MSP id>",
    ),
]
MAX_AMOUNT = 10**15
Amount = Annotated[int, Integer(1, MAX_AMOUNT, "micro-units")]
SignedAmount = Annotated[int, Integer(-(10**18), 10**18, "micro-units")]
Shard = Annotated[int, Integer(0, OWNER_SHARDS - 1)]
HoldId = Annotated[str, Text(r"[A-Za-z0-9-]{1,80}", "a hold id: 1 to 80 letters, digits, hyphens")]
EntryName = Annotated[str, Text(r"[0-9a-f]{64}/[0-9]{1,6}", "an entry: transaction id/number")]
Kind = Annotated[str, Text(r"[a-z_]{1,32}", "a kind of posting")]
ConversionRate = Annotated[int, Integer(1, 10**12, "micro-units for one unit")]


@dataclass(frozen=True, slots=True)
class Posting:
    """One side of a movement of money, as stored; credits are positive."""

    amount_micro: SignedAmount
    kind: Kind
    """What for: deposit, sale, grid_fee, …"""
    reference: RequestId
    """Bank reference, trade id, bill or the like."""
    counterparty: Account
    at: Instant
    """Channel time."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Money from one account to another; a negative amount goes the other way."""

    payer: str
    payee: str
    amount_micro: int
    kind: str
    reference: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Money that an account has set aside."""

    account: Account
    hold_id: HoldId
    amount_micro: Amount
    purpose: Identifier
    expires_at: Instant
    """Channel time from which its owner may take it back."""
    state: Annotated[str, Choice("pending", "posted", "voided", "expired")]


@dataclass(frozen=True, slots=True)
class Deposit:
    """A deposit as stored under its bank reference."""

    account: Account
    amount_micro: Amount
    bank_reference: Identifier
    transaction_id: TransactionId
    currency: Currency
    paid_micro: Amount
    """What arrived, in its own currency; `amount_micro` is in the channel's."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Money on its way to the owner's bank."""

    account: Account
    request_id: RequestId
    amount_micro: Amount
    state: Annotated[str, Choice("requested", "paid", "rejected")]
    bank_reference: Identifier | None = None
    reason: Annotated[str, Text(r".{0,200}", "at most 200 characters")] = ""
    currency: Currency | None = None
    """What was paid out, if not the channel's currency."""
    paid_micro: Amount | None = None
    """How much of it."""


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment from one account to another, by its owner's choice."""

    account: Account
    payee: Account
    amount_micro: Amount
    request_id: RequestId
    transaction_id: TransactionId


@dataclass(frozen=True, slots=True)
class Conversion:
    """What one unit of another currency is worth."""

    currency: Currency
    rate_micro: ConversionRate
    """Micro-units of the channel's currency for one unit of `currency`."""
    published_at: Instant


@dataclass(frozen=True, slots=True)
class Guarantee:
    """Who answers for an account, with a hold of its own account."""

    account: Account
    guarantor: Account
    amount_micro: Amount
    """At first; the hold has what is left."""


@dataclass(frozen=True, slots=True)
class _Amount:
    amount_micro: SignedAmount


# Names of accounts


def _account_name(party: str) -> str:
    """A utility's, by its MSP id; a company, which `roles` names in capitals, has none like it."""
    if party == party.upper():
        return f"COMPANY-{party.replace('.', '-')}"
    return party.removesuffix("MSP").upper().replace(".", "-")


def supplier_account(msp_id: str) -> str:
    """Where a utility's trading pays from."""
    return f"SUPPLIER-{_account_name(msp_id)}"


def grid_account(msp_id: str) -> str:
    """Where a utility's grid fees go."""
    return f"GRID-{_account_name(msp_id)}"


def balance_account(msp_id: str) -> str:
    """Where a balance responsible party pays and is paid for deviations."""
    return f"BALANCE-{_account_name(msp_id)}"


def tax_account(msp_id: str) -> str:
    """Where a supplier keeps taxes on what it buys, until it pays them to the state."""
    return f"TAX-{_account_name(msp_id)}"


def bank_account(msp_id: str) -> str:
    """Stands for money outside of the ledger."""
    return f"{_BANK}{msp_id}"


# What other contracts do with money


class Ledger:
    """The movements of one transaction: make one, move, hold, and `write` once at the end."""

    def __init__(self, context: Context, at: int) -> None:
        """Begin; `at` is the channel's time."""
        self._context = context
        self._at = at
        self._number = 0
        self._total = 0
        self._shards: dict[tuple[str, str], int] = {}

    def transfer(
        self,
        transfer: Transfer,
        *,
        from_shard: str | None = None,
        into_shard: str | None = None,
    ) -> None:
        """Move money.

        It comes out of `from_shard` of the payer if one is named (an act of choice: it must be
        there), else it is charged to the payer whatever its balance is. The payee gets it as an
        entry to sweep, or in `into_shard`.

        Raises:
            Conflict: the shard doesn't hold that much.
        """
        if transfer.amount_micro < 0 and from_shard is None:
            self.transfer(
                replace(
                    transfer,
                    payer=transfer.payee,
                    payee=transfer.payer,
                    amount_micro=-transfer.amount_micro,
                )
            )
            return
        if transfer.amount_micro == 0:
            return
        if from_shard is not None:
            self._spend(transfer.payer, from_shard, transfer.amount_micro)
        else:
            self._append(transfer.payer, -transfer.amount_micro)
        self._receive(transfer.payee, transfer.amount_micro, into_shard)
        self._post_both(transfer)

    def hold(self, hold: Hold, shard: str) -> None:
        """Set money of a shard aside under a new hold.

        Raises:
            Conflict: the shard doesn't hold that much, or such a hold is pending.
        """
        key = _hold_key(hold.account, hold.hold_id)
        stored = self._context.get_state(key)
        if stored is not None and stored_record(Hold, stored).state == "pending":
            raise Conflict(f"account {hold.account} has a hold {hold.hold_id} already")
        self._spend(hold.account, shard, hold.amount_micro)
        self._context.put_state(key, canonical_json(hold))

    def end_hold(self, hold: Hold, state: str, transfers: Sequence[Transfer] = ()) -> None:
        """Pay `transfers` out of a pending hold and give the rest back to its account.

        More than the hold is charged to the account all the same: settlement always posts.
        """
        ensure(hold.state == "pending", "a hold ends once")
        self._end(hold, state)
        for transfer in transfers:
            ensure(transfer.payer == hold.account, "a hold pays for its own account")
            self._append(transfer.payee, transfer.amount_micro)
            self._post_both(transfer)
        left = hold.amount_micro - sum(transfer.amount_micro for transfer in transfers)
        self._append(hold.account, left)

    def end_holds(self, holds: Sequence[Hold], transfers: Sequence[Transfer]) -> None:
        """`end_hold` for several holds of one account at once: one payment, one entry back."""
        account = holds[0].account
        for hold in holds:
            ensure(hold.state == "pending", "a hold ends once")
            ensure(hold.account == account, "holds of one account end together")
            self._end(hold, "posted")
        for transfer in transfers:
            ensure(transfer.payer == account, "a hold pays for its own account")
            self._append(transfer.payee, transfer.amount_micro)
            self._post_both(transfer)
        left = sum(hold.amount_micro for hold in holds)
        self._append(account, left - sum(transfer.amount_micro for transfer in transfers))

    def change_hold(self, hold: Hold, amount_micro: int, shard: str) -> None:
        """Set more aside, out of a shard, or give a part back.

        Raises:
            Conflict: the shard doesn't hold what is to be added.
        """
        ensure(hold.state == "pending", "a hold ends once")
        more = amount_micro - hold.amount_micro
        if more > 0:
            self._spend(hold.account, shard, more)
        else:
            self._append(hold.account, -more)
        if more:
            self._context.put_state(
                _hold_key(hold.account, hold.hold_id),
                canonical_json(replace(hold, amount_micro=amount_micro)),
            )

    def gather_holds(
        self,
        hold: Hold | None,
        others: Sequence[Hold],
        hold_id: str,
        amount_micro: int,
        transfers: Sequence[Transfer] = (),
    ) -> None:
        """Make pending holds of an account one that holds `amount_micro`, or none.

        `transfers` are paid out of them, and what is left goes back; more than there is is charged
        to the account all the same.
        """
        holds = [*others] if hold is None else [hold, *others]
        account = holds[0].account
        for one in others:
            self._end(one, "voided")
        gathered = replace(holds[0], hold_id=hold_id)
        if amount_micro:
            gathered = replace(gathered, amount_micro=amount_micro)
            self._context.put_state(_hold_key(account, hold_id), canonical_json(gathered))
        elif hold is not None:
            self._end(gathered, "posted" if transfers else "voided")
        for transfer in transfers:
            ensure(transfer.payer == account, "a hold pays for its own account")
            self._append(transfer.payee, transfer.amount_micro)
            self._post_both(transfer)
        left = sum(one.amount_micro for one in holds) - amount_micro
        self._append(account, left - sum(transfer.amount_micro for transfer in transfers))

    def pay_from_hold(self, hold: Hold, transfers: Sequence[Transfer]) -> None:
        """Pay `transfers` out of a hold that has more than that; the rest stays held."""
        paid = sum(transfer.amount_micro for transfer in transfers)
        self.gather_holds(hold, (), hold.hold_id, hold.amount_micro - paid, transfers)

    def end_collateral(self, hold: Hold, owed: int) -> None:
        """Put what is owed into the utility's shard, where the debt is; the rest goes back."""
        self._end(hold, "posted")
        self._receive(hold.account, owed, UTILITY_SHARD)
        self._append(hold.account, hold.amount_micro - owed)

    def call_guarantee(self, hold: Hold, account: str, owed: int) -> None:
        """Pay what an account owes out of its guarantor's hold; what is left stays held."""
        left = hold.amount_micro - owed
        if left:
            rest = canonical_json(replace(hold, amount_micro=left))
            self._context.put_state(_hold_key(hold.account, hold.hold_id), rest)
        else:
            self._end(hold, "posted")
        self._receive(account, owed, UTILITY_SHARD)
        self._post_both(Transfer(hold.account, account, owed, "guarantee", account))

    def sweep(self, account: str, shard: str, names: Sequence[str]) -> tuple[int, int]:
        """Move entries from `in` to a shard; return how many, and their sum."""
        swept = total = 0
        for name in names:
            key = f"acct/{account}/in/{name}"
            stored = self._context.get_state(key)
            if stored is None:
                continue  # swept before
            total += stored_record(_Amount, stored).amount_micro
            swept += 1
            self._context.del_state(key)
        if swept:
            self._shards[account, shard] = self._shard(account, shard) + total
        return swept, total

    def write(self) -> None:
        """Write the shards. Raises InvariantError unless the postings sum to zero."""
        ensure(self._total == 0, "postings must sum to zero")
        for (account, shard), amount in sorted(self._shards.items()):
            self._context.put_state(
                f"acct/{account}/avail/{shard}", canonical_json(_Amount(amount))
            )

    def _end(self, hold: Hold, state: str) -> None:
        """Note what became of a hold, where the pending ones aren't."""
        self._context.del_state(_hold_key(hold.account, hold.hold_id))
        self._context.put_state(
            ended_key(hold.account, hold.hold_id), canonical_json(replace(hold, state=state))
        )

    def _shard(self, account: str, shard: str) -> int:
        if (account, shard) not in self._shards:
            self._shards[account, shard] = available(self._context, account, shard)
        return self._shards[account, shard]

    def _spend(self, account: str, shard: str, amount: int) -> None:
        there = self._shard(account, shard)
        limit = credit_limit(self._context, account) if shard == "0" else 0
        if there - amount < -limit:
            more = f" and a credit limit of {limit}" if limit else ""
            raise Conflict(
                f"account {account} has {there} micro-units in shard {shard}{more}, but "
                f"{amount} are needed; sweep what came in to this shard, or use another one"
            )
        self._shards[account, shard] = there - amount

    def _receive(self, account: str, amount: int, shard: str | None) -> None:
        if shard is None:
            self._append(account, amount)
        else:
            self._shards[account, shard] = self._shard(account, shard) + amount

    def _append(self, account: str, amount: int) -> None:
        if amount:
            self._context.put_state(
                f"acct/{account}/in/{self._context.transaction_id}/{self._number}",
                canonical_json(_Amount(amount)),
            )
            self._number += 1

    def _post_both(self, transfer: Transfer) -> None:
        self._post(transfer, transfer.payer, transfer.payee, -transfer.amount_micro)
        self._post(transfer, transfer.payee, transfer.payer, transfer.amount_micro)

    def _post(self, transfer: Transfer, account: str, counterparty: str, amount: int) -> None:
        posting = Posting(amount, transfer.kind, transfer.reference, counterparty, self._at)
        self._context.put_state(
            f"acct/{account}/post/{_LATEST - self._at:012d}/"
            f"{self._context.transaction_id}/{self._number}",
            canonical_json(posting),
        )
        self._number += 1
        self._total += amount


def post(context: Context, at: int, transfers: Sequence[Transfer]) -> None:
    """Write transfers that are charged whatever the payers' balances are. Once a transaction."""
    ledger = Ledger(context, at)
    for transfer in transfers:
        ledger.transfer(transfer)
    ledger.write()


def available(context: Context, account: str, shard: str) -> int:
    """What a shard holds, in micro-units."""
    stored = context.get_state(f"acct/{account}/avail/{shard}")
    return 0 if stored is None else stored_record(_Amount, stored).amount_micro


def credit_limit(context: Context, account: str) -> int:
    """How far shard 0 of an account may go below zero by its owner's choice."""
    stored = context.get_state(f"acct/{account}/limit")
    return 0 if stored is None else stored_record(_Amount, stored).amount_micro


def find_hold(context: Context, account: str, hold_id: str) -> Hold | None:
    """A hold, pending or ended, if there is one."""
    stored = context.get_state(_hold_key(account, hold_id))
    if stored is None:
        stored = context.get_state(ended_key(account, hold_id))
    return None if stored is None else stored_record(Hold, stored)


def hold_of(context: Context, account: str, hold_id: str) -> Hold:
    """A hold; raises NotFound."""
    hold = find_hold(context, account, hold_id)
    if hold is None:
        raise NotFound(f"account {account} has no hold {hold_id}")
    return hold


def pending_hold(context: Context, account: str, hold_id: str) -> Hold:
    """A hold that hasn't ended; raises NotFound, Conflict."""
    hold = hold_of(context, account, hold_id)
    if hold.state != "pending":
        raise Conflict(f"hold {hold_id} of account {account} was {hold.state} already")
    return hold


def _hold_key(account: str, hold_id: str) -> str:
    return f"acct/{account}/hold/{hold_id}"


def ended_key(account: str, hold_id: str) -> str:
    """Where a hold stands once it has ended."""
    return f"acct/{account}/ended/{hold_id}"


# Who may


def _utility_of(context: Context, account: str, creator: Creator) -> str:
    """The utility whose account it is; for a utility's own account, only the caller's are told."""
    if not account.startswith((*RESERVED_PREFIXES, _BANK)):
        return connection_of(context, account).utility
    msp_id = creator.msp_id
    own = (
        supplier_account(msp_id),
        grid_account(msp_id),
        balance_account(msp_id),
        tax_account(msp_id),
        bank_account(msp_id),
    )
    return msp_id if account in own else ""


def require_owner(context: Context, account: str, act: str) -> None:
    """Raise Forbidden unless the caller may spend from an account; NotFound if there is none."""
    creator = context.creator
    utility = _utility_of(context, account, creator)
    if account.startswith((*RESERVED_PREFIXES, _BANK)):
        allowed = utility == creator.msp_id and access.is_supplier(creator, utility)
        access.require(allowed, creator, act, "its utility's operators and suppliers")
    else:
        access.require(
            homes.is_home(context, connection_of(context, account)), creator, act, "its home alone"
        )


def require_sight(context: Context, account: str) -> None:
    """Raise Forbidden unless the caller may read the account; NotFound if there is none."""
    creator = context.creator
    utility = _utility_of(context, account, creator)
    if account.startswith(CLEARING_PREFIX):
        access.require(
            access.is_supplier(creator, creator.msp_id),
            creator,
            f"read account {account}",
            "every utility's operators and suppliers",
        )
        return
    if account.startswith((*RESERVED_PREFIXES, _BANK)):
        access.require(
            utility == creator.msp_id and access.is_supplier(creator, utility),
            creator,
            f"read account {account}",
            "its utility's operators and suppliers",
        )
        return
    access.require(
        access.is_operator(creator, utility)
        or homes.is_home(context, connection_of(context, account)),
        creator,
        f"read account {account}",
        f"its home and operators of {utility}",
    )


def _own_time(context: Context, account: str) -> Residence | None:
    """When the caller, a home, has lived where the account is; None for who sees all of it."""
    creator = context.creator
    if not account.startswith((*RESERVED_PREFIXES, _BANK)):
        connection = connection_of(context, account)
        own = homes.residence(context, connection)
        if own.ever and not access.is_operator(creator, connection.utility):
            return own
    require_sight(context, account)
    return None


def _require_operator(context: Context, account: str, act: str) -> str:
    """Return the account's utility; raise Forbidden unless the caller operates it."""
    utility = _utility_of(context, account, context.creator)
    access.require(
        bool(utility) and access.is_operator(context.creator, utility),
        context.creator,
        act,
        "operators of the account's utility",
    )
    return utility


class Wallet(Contract):
    """Deposits, payments, withdrawals, holds, balances and statements."""

    name: ClassVar[str] = "wallet"

    # Money from and to the bank

    @transaction
    def publish_conversion(
        self, context: Context, *, currency: Currency, rate_micro: ConversionRate
    ) -> Conversion:
        """Say what a unit of another currency is worth at the caller's utility's bank."""
        utility = context.creator.msp_id
        channel = energy_settings(context)
        access.require(
            access.is_operator(context.creator, utility),
            context.creator,
            "publish conversion rates",
            "operators",
        )
        if currency == channel.currency:
            raise InvalidArgument(f"currency is {currency}, the channel's own")
        conversion = Conversion(currency, rate_micro, settings.now(context, channel))
        context.put_state(f"conversion/{utility}/{currency}", canonical_json(conversion))
        return conversion

    @transaction
    def deposit(
        self,
        context: Context,
        *,
        account: Account,
        amount_micro: Amount,
        bank_reference: Identifier,
        currency: Currency | None = None,
    ) -> dict[str, Any]:
        """Enter money that arrived at the utility's bank; a bank reference counts once."""
        creator = context.creator
        utility = creator.msp_id
        channel = energy_settings(context)
        paid_in = currency or channel.currency
        if account.startswith(_BANK):
            raise InvalidArgument(f"account is {account}, but deposits come from there")
        access.require(
            _utility_of(context, account, creator) == utility
            and access.is_operator(creator, utility),
            creator,
            f"enter deposits to {account}",
            "operators of the account's utility",
        )
        key = f"bank/{utility}/{bank_reference}"
        stored = context.get_state(key)
        if stored is not None:
            deposit = stored_record(Deposit, stored)
            if (deposit.account, deposit.paid_micro, deposit.currency) != (
                account,
                amount_micro,
                paid_in,
            ):
                raise Conflict(
                    f"bank_reference {bank_reference} of {utility} stands for a deposit of "
                    f"{deposit.paid_micro} micro-units of {deposit.currency} to {deposit.account} "
                    "already"
                )
        else:
            received = amount_micro
            if paid_in != channel.currency:
                rate = _conversion(context, utility, paid_in).rate_micro
                received = convert_micro(amount_micro, rate)
                if not 0 < received <= MAX_AMOUNT:
                    raise Conflict(
                        f"{amount_micro} micro-units of {paid_in} come to {received} of "
                        f"{channel.currency}, but a deposit is of 1 to {MAX_AMOUNT}"
                    )
            deposit = Deposit(
                account, received, bank_reference, context.transaction_id, paid_in, amount_micro
            )
            context.put_state(key, canonical_json(deposit))
            post(
                context,
                settings.now(context, channel),
                [Transfer(bank_account(utility), account, received, "deposit", bank_reference)],
            )
        return {
            "account": deposit.account,
            "amount_micro": deposit.amount_micro,
            "bank_reference": deposit.bank_reference,
            "transaction_id": deposit.transaction_id,
            "status": "committed",
        }

    @transaction
    def withdraw(
        self,
        context: Context,
        *,
        account: Account,
        amount_micro: Amount,
        request_id: RequestId,
        shard: Shard = 0,
    ) -> Withdrawal:
        """Ask for money to be paid out; it is held until the utility's bank has done so."""
        require_owner(context, account, f"withdraw from {account}")
        key = f"withdrawal/{account}/{request_id}"
        stored = context.get_state(key)
        if stored is not None:
            withdrawal = stored_record(Withdrawal, stored)
            if withdrawal.amount_micro != amount_micro:
                raise Conflict(
                    f"request_id {request_id} is a withdrawal of {withdrawal.amount_micro} already"
                )
            return withdrawal
        channel = energy_settings(context)
        now = settings.now(context, channel)
        withdrawal = Withdrawal(account, request_id, amount_micro, "requested")
        ledger = Ledger(context, now)
        ledger.hold(
            Hold(
                account,
                f"withdrawal-{request_id}",
                amount_micro,
                "WITHDRAWAL",
                now + real_seconds(channel.replay, WITHDRAWAL_S),
                "pending",
            ),
            str(shard),
        )
        ledger.write()
        context.put_state(key, canonical_json(withdrawal))
        return withdrawal

    @transaction
    def confirm_withdrawal(
        self,
        context: Context,
        *,
        account: Account,
        request_id: RequestId,
        bank_reference: Identifier,
        currency: Currency | None = None,
    ) -> Withdrawal:
        """Say that the bank has paid a withdrawal out; a bank reference counts once.

        In another currency it is what the utility's published rate makes of it.
        """
        utility = _require_operator(context, account, f"confirm withdrawals of {account}")
        channel = energy_settings(context)
        withdrawal = self._withdrawal(context, account, request_id)
        if withdrawal.state == "paid" and withdrawal.bank_reference == bank_reference:
            return withdrawal
        reference_key = f"bank/{utility}/{bank_reference}"
        if context.get_state(reference_key) is not None:
            raise Conflict(f"bank_reference {bank_reference} of {utility} is in use already")
        hold = pending_hold(context, account, f"withdrawal-{request_id}")
        paid = replace(withdrawal, state="paid", bank_reference=bank_reference)
        if currency is not None and currency != channel.currency:
            rate = _conversion(context, utility, currency).rate_micro
            paid_micro = half_even(hold.amount_micro * MICRO, rate)
            if not 0 < paid_micro <= MAX_AMOUNT:
                raise Conflict(
                    f"{hold.amount_micro} micro-units of {channel.currency} come to {paid_micro} "
                    f"of {currency}, but a withdrawal is of 1 to {MAX_AMOUNT}"
                )
            paid = replace(paid, currency=currency, paid_micro=paid_micro)
        ledger = Ledger(context, settings.now(context, channel))
        ledger.end_hold(
            hold,
            "posted",
            [
                Transfer(
                    account, bank_account(utility), hold.amount_micro, "withdrawal", bank_reference
                )
            ],
        )
        ledger.write()
        context.put_state(reference_key, canonical_json(paid))
        context.put_state(f"withdrawal/{account}/{request_id}", canonical_json(paid))
        return paid

    @transaction
    def reject_withdrawal(
        self,
        context: Context,
        *,
        account: Account,
        request_id: RequestId,
        reason: Annotated[str, Text(r".{1,200}", "1 to 200 characters")],
    ) -> Withdrawal:
        """Give the money of a withdrawal back, because the bank didn't take it."""
        _require_operator(context, account, f"reject withdrawals of {account}")
        withdrawal = self._withdrawal(context, account, request_id)
        if withdrawal.state == "rejected":
            return withdrawal
        hold = pending_hold(context, account, f"withdrawal-{request_id}")
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        ledger.end_hold(hold, "voided")
        ledger.write()
        rejected = replace(withdrawal, state="rejected", reason=reason)
        context.put_state(f"withdrawal/{account}/{request_id}", canonical_json(rejected))
        return rejected

    @staticmethod
    def _withdrawal(context: Context, account: str, request_id: str) -> Withdrawal:
        stored = context.get_state(f"withdrawal/{account}/{request_id}")
        if stored is None:
            raise NotFound(f"account {account} has asked for no withdrawal {request_id}")
        return stored_record(Withdrawal, stored)

    # Money within the ledger

    @transaction
    def pay(
        self,
        context: Context,
        *,
        account: Account,
        payee: Account,
        amount_micro: Amount,
        request_id: RequestId,
        shard: Shard = 0,
    ) -> Payment:
        """Pay another home or one's own utility; the same request again pays once."""
        require_owner(context, account, f"pay from {account}")
        if payee == account:
            raise InvalidArgument(f"payee is {payee}, the payer itself")
        key = f"payment/{account}/{request_id}"
        stored = context.get_state(key)
        if stored is not None:
            payment = stored_record(Payment, stored)
            if (payment.payee, payment.amount_micro) != (payee, amount_micro):
                raise Conflict(
                    f"request_id {request_id} is a payment of {payment.amount_micro} to "
                    f"{payment.payee} already"
                )
            return payment
        utility = _utility_of(context, account, context.creator)
        if payee.startswith((*RESERVED_PREFIXES, _BANK)):
            if payee not in (supplier_account(utility), grid_account(utility)):
                raise Forbidden(
                    f"payee is {payee}, but {account} can pay homes, {supplier_account(utility)} "
                    f"and {grid_account(utility)}"
                )
        else:
            connection_of(context, payee)
        payment = Payment(account, payee, amount_micro, request_id, context.transaction_id)
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        ledger.transfer(
            Transfer(account, payee, amount_micro, "payment", request_id), from_shard=str(shard)
        )
        ledger.write()
        context.put_state(key, canonical_json(payment))
        return payment

    @transaction
    def sweep(
        self,
        context: Context,
        *,
        account: Account,
        entries: Annotated[tuple[EntryName, ...], AtMost(MAX_SWEPT)],
        shard: Shard = 0,
    ) -> dict[str, Any]:
        """Make what came in available to spend.

        The owner sweeps into a shard of its own, an operator of the utility into the utility's.
        The clearing house's accounts are nobody's, so any operator sweeps them. Entries that were
        swept before are left out.
        """
        creator = context.creator
        utility = _utility_of(context, account, creator)
        if account.startswith(CLEARING_PREFIX):
            access.require_member(creator, f"sweep {account}")
            into = UTILITY_SHARD
        elif account.startswith(RESERVED_PREFIXES) or access.is_home(creator, utility, account):
            require_owner(context, account, f"sweep {account}")
            into = str(shard)
        else:
            _require_operator(context, account, f"sweep {account}")
            into = UTILITY_SHARD
        for index, name in enumerate(entries):
            if name in entries[:index]:
                raise InvalidArgument(f"entries names {name} twice")
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        swept, total = ledger.sweep(account, into, entries)
        ledger.write()
        return {"account": account, "shard": into, "swept": swept, "amount_micro": total}

    @transaction
    def set_credit_limit(
        self,
        context: Context,
        *,
        account: Account,
        limit_micro: Annotated[int, Integer(0, 10**15, "micro-units")],
    ) -> dict[str, Any]:
        """Let an account's owner go below zero, in shard 0, down to a limit."""
        _require_operator(context, account, f"set the credit limit of {account}")
        context.put_state(f"acct/{account}/limit", canonical_json(_Amount(limit_micro)))
        return {"account": account, "limit_micro": limit_micro}

    @transaction
    def pledge(
        self, context: Context, *, account: Account, amount_micro: Amount, shard: Shard = 0
    ) -> Hold:
        """Set collateral aside, which answers first if the account defaults."""
        require_owner(context, account, f"pledge money of {account}")
        hold = Hold(account, COLLATERAL, amount_micro, "COLLATERAL", NEVER, "pending")
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        ledger.hold(hold, str(shard))
        ledger.write()
        return hold

    @transaction
    def release_collateral(self, context: Context, *, account: Account) -> Hold:
        """Give collateral back to its account."""
        _require_operator(context, account, f"release the collateral of {account}")
        hold = pending_hold(context, account, COLLATERAL)
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        ledger.end_hold(hold, "voided")
        ledger.write()
        return replace(hold, state="voided")

    @transaction
    def guarantee(
        self,
        context: Context,
        *,
        account: Account,
        guarantor: Account,
        amount_micro: Amount,
        shard: Shard = 0,
    ) -> Guarantee:
        """Answer for another account, after its collateral; one guarantor at a time."""
        require_owner(context, guarantor, f"guarantee with {guarantor}")
        if account == guarantor:
            raise InvalidArgument(f"account is {account}, the guarantor itself; see wallet:Pledge")
        connection_of(context, account)
        wanted = Guarantee(account, guarantor, amount_micro)
        before = _guarantee(context, account)
        if before is not None:
            known, _ = before
            if known == wanted:
                return known
            raise Conflict(f"{known.guarantor} answers for {account} already")
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        hold_id = guarantee_hold(account)
        hold = Hold(guarantor, hold_id, amount_micro, "GUARANTEE", NEVER, "pending")
        ledger.hold(hold, str(shard))
        ledger.write()
        context.put_state(f"guarantor/{account}", canonical_json(wanted))
        return wanted

    @transaction
    def release_guarantee(self, context: Context, *, account: Account) -> Guarantee:
        """Give a guarantee for an account back to its guarantor."""
        _require_operator(context, account, f"release the guarantee for {account}")
        found = _guarantee(context, account)
        if found is None:
            raise NotFound(f"nobody answers for account {account}")
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        ledger.end_hold(found[1], "voided")
        ledger.write()
        context.del_state(f"guarantor/{account}")
        return found[0]

    @transaction
    def cover_default(self, context: Context, *, account: Account) -> dict[str, Any]:
        """Cover what an account owes: from its collateral, by its guarantor, then its supplier.

        What it owes is what the utility's shard is below zero, with what the owner's own shards
        are: who sweeps charges into them is no less in debt.
        """
        utility = _require_operator(context, account, f"cover the default of {account}")
        owed = -available(context, account, UTILITY_SHARD)
        for shard in range(OWNER_SHARDS):
            limit = 0 if shard else credit_limit(context, account)
            owed -= min(0, available(context, account, str(shard)) + limit)
        if owed <= 0:
            raise Conflict(
                f"account {account} owes nothing in shard {UTILITY_SHARD}; sweep its charges first"
            )
        ledger = Ledger(context, settings.now(context, energy_settings(context)))
        from_collateral = 0
        stored = context.get_state(_hold_key(account, COLLATERAL))
        collateral = None if stored is None else stored_record(Hold, stored)
        if collateral is not None and collateral.state == "pending":
            from_collateral = min(owed, collateral.amount_micro)
            ledger.end_collateral(collateral, from_collateral)
        by_guarantor = 0
        guaranteed = _guarantee(context, account)
        if guaranteed is not None and from_collateral < owed:
            by_guarantor = min(owed - from_collateral, guaranteed[1].amount_micro)
            ledger.call_guarantee(guaranteed[1], account, by_guarantor)
        by_supplier = owed - from_collateral - by_guarantor
        ledger.transfer(
            Transfer(supplier_account(utility), account, by_supplier, "default", account),
            into_shard=UTILITY_SHARD,
        )
        ledger.write()
        return {
            "account": account,
            "owed_micro": owed,
            "from_collateral_micro": from_collateral,
            "by_guarantor_micro": by_guarantor,
            "by_supplier_micro": by_supplier,
        }

    @transaction
    def release_hold(self, context: Context, *, account: Account, hold_id: HoldId) -> Hold:
        """Take back what a hold set aside whose time is over."""
        require_sight(context, account)
        hold = pending_hold(context, account, hold_id)
        now = settings.now(context, energy_settings(context))
        if now < hold.expires_at:
            raise Conflict(
                f"hold {hold_id} of account {account} ends at {hold.expires_at}, and the channel's "
                f"time is {now}"
            )
        ledger = Ledger(context, now)
        ledger.end_hold(hold, "expired")
        ledger.write()
        return replace(hold, state="expired")

    # Looking

    @query
    def balance(self, context: Context, *, account: Account) -> dict[str, Any]:
        """What an account has: all of it, and what of that can be spent, waits, or is held."""
        require_sight(context, account)
        shards = {
            key.rpartition("/")[2]: stored_record(_Amount, value).amount_micro
            for key, value in context.range(*under(f"acct/{account}/avail/"))
        }
        incoming = sum(amount for _, amount in _incoming(context, account))
        held = sum(
            hold.amount_micro for hold in _holds(context, account) if hold.state == "pending"
        )
        return {
            "account": account,
            "balance_micro": sum(shards.values()) + incoming + held,
            "available_micro": sum(shards.values()),
            "incoming_micro": incoming,
            "held_micro": held,
            "shards": shards,
            "credit_limit_micro": credit_limit(context, account),
            "currency": energy_settings(context).currency,
        }

    @query
    def incoming(
        self,
        context: Context,
        *,
        account: Account,
        limit: Annotated[int, Integer(1, MAX_SWEPT)] = MAX_SWEPT,
    ) -> dict[str, Any]:
        """What can be swept: the entries to name, the oldest transaction ids in no order."""
        require_sight(context, account)
        entries: list[str] = []
        total = 0
        for name, amount in _incoming(context, account):
            if len(entries) == limit:
                break
            entries.append(name)
            total += amount
        return {"account": account, "entries": entries, "amount_micro": total}

    @query
    def due(self, context: Context) -> list[dict[str, Any]]:
        """Calls that sweep the accounts of the caller's utility, and of the clearing house.

        Of those that have as many entries as one call takes: each payment and settlement leaves
        one, and no balance could be summed any more after some days of 10,000 homes.
        """
        utility = context.creator.msp_id
        access.require_operator(context.creator, utility, f"see what is due at {utility}")
        found: list[dict[str, Any]] = []
        for name in (supplier_account, grid_account, balance_account, tax_account, bank_account):
            found += _full(context, name(utility), {"utility": utility, "endorsing": []})
        for account in (MARKET, ROUNDING):
            found += _full(context, account, {})
        return found

    @query
    def holds(self, context: Context, *, account: Account) -> list[Hold]:
        """The holds that haven't ended."""
        require_sight(context, account)
        return [hold for hold in _holds(context, account) if hold.state == "pending"]

    @query
    def statement(
        self,
        context: Context,
        *,
        account: Account,
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """An account's postings, the newest first; for a home those of its time there."""
        own = _own_time(context, account)
        prefix = f"acct/{account}/post/"
        start, end = under(prefix)
        if bookmark:
            start += bookmark + "\0"
        entries: list[dict[str, Any]] = []
        last = None
        for key, value in context.range(start, end):
            name = key.removeprefix(prefix)
            if len(entries) == limit:
                return {
                    "account": account,
                    "currency": energy_settings(context).currency,
                    "entries": entries,
                    "bookmark": last,
                }
            posting = stored_record(Posting, value)
            last = name
            if own is not None and not own.at(posting.at):
                continue
            entries.append(
                {
                    "at": posting.at,
                    "transaction_id": name.split("/")[1],
                    "amount_micro": posting.amount_micro,
                    "kind": posting.kind,
                    "reference": posting.reference,
                    "counterparty": posting.counterparty,
                }
            )
        return {
            "account": account,
            "currency": energy_settings(context).currency,
            "entries": entries,
            "bookmark": None,
        }


def _conversion(context: Context, utility: str, currency: str) -> Conversion:
    """What a utility has published of a currency; raises NotFound."""
    published = context.get_state(f"conversion/{utility}/{currency}")
    if published is None:
        raise NotFound(
            f"{utility} has published no conversion rate of {currency}; it does so with "
            "wallet:PublishConversion"
        )
    return stored_record(Conversion, published)


def guarantee_hold(account: str) -> str:
    """The hold in a guarantor's account that answers for an account."""
    return f"guarantee-{account}"


def _guarantee(context: Context, account: str) -> tuple[Guarantee, Hold] | None:
    """Who answers for an account, and with what is left; None if nobody does any more."""
    stored = context.get_state(f"guarantor/{account}")
    if stored is None:
        return None
    found = stored_record(Guarantee, stored)
    hold = hold_of(context, found.guarantor, guarantee_hold(account))
    return (found, hold) if hold.state == "pending" else None


def _incoming(context: Context, account: str) -> Iterator[tuple[str, int]]:
    """(name, amount) of what wasn't swept yet; raises LimitExceeded."""
    prefix = f"acct/{account}/in/"
    for count, (key, value) in enumerate(context.range(*under(prefix))):
        if count == MAX_OPEN:
            raise LimitExceeded(
                f"account {account} has more than {MAX_OPEN} entries that were never swept, the "
                "limit of what a balance is summed from; call wallet:Sweep"
            )
        yield key.removeprefix(prefix), stored_record(_Amount, value).amount_micro


def _full(context: Context, account: str, whose: dict[str, Any]) -> list[dict[str, Any]]:
    """The call that sweeps an account, if it has enough for one."""
    entries: list[str] = []
    for name, _ in _incoming(context, account):
        entries.append(name)
        if len(entries) == MAX_SWEPT:
            break
    else:
        return []
    # The owner's last shard, which people seldom name: two that spend out of one exclude each other
    argument = {"account": account, "entries": entries, "shard": OWNER_SHARDS - 1}
    return [{"function": "wallet:Sweep", "argument": argument, **whose}]


def _holds(context: Context, account: str) -> Iterator[Hold]:
    for _, value in context.range(*under(f"acct/{account}/hold/")):
        yield stored_record(Hold, value)
