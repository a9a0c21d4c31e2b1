"""Contract `wallet`: accounts in double entry.

A posting is a key of its own under `acct/{account}/cr|dr/{transaction id}/{n}`, so that any number
of transactions can post to one account in one block; the postings of each transaction sum to zero,
and so does the channel. A home's account is named like its connection; a utility has
`SUPPLIER-<NAME>`, `GRID-<NAME>` and, for money that comes from outside, `ext/bank/<MSP id>`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    Choice,
    Conflict,
    Context,
    Contract,
    Identifier,
    Instant,
    Integer,
    InvalidArgument,
    LimitExceeded,
    Text,
    TransactionId,
    canonical_json,
    query,
    stored_record,
    transaction,
    under,
)

from . import access, settings
from .pages import Bookmark
from .registry import RESERVED_PREFIXES, connection_of, energy_settings

_BANK = "ext/bank/"
MAX_POSTINGS = 100_000
"""Postings of one account that a balance can be summed from."""

Account = Annotated[
    str,
    Text(
        r"[A-Z0-9-]{1,64}|ext/bank/[A-Za-z0-9.-]{1,64}",
        "an account: a connection id, SUPPLIER-<NAME>, GRID-<NAME> or ext/bank/<MSP id>",
    ),
]
Amount = Annotated[int, Integer(1, 10**15, "micro-units")]


@dataclass(frozen=True, slots=True)
class Posting:
    """One side of a movement of money, as stored; the key says credit or debit."""

    amount_micro: Amount
    kind: Annotated[str, Choice("deposit", "sale", "grid_fee")]
    reference: Identifier
    """Bank reference or trade id."""
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
class Deposit:
    """A deposit as stored under its bank reference."""

    account: Account
    amount_micro: Amount
    bank_reference: Identifier
    transaction_id: TransactionId


def _account_name(msp_id: str) -> str:
    return msp_id.removesuffix("MSP").upper().replace(".", "-")


def supplier_account(msp_id: str) -> str:
    """Where a utility's trading pays from."""
    return f"SUPPLIER-{_account_name(msp_id)}"


def grid_account(msp_id: str) -> str:
    """Where a utility's grid fees go."""
    return f"GRID-{_account_name(msp_id)}"


def bank_account(msp_id: str) -> str:
    """Stands for money outside of the ledger."""
    return f"{_BANK}{msp_id}"


def post(context: Context, at: int, transfers: Sequence[Transfer]) -> None:
    """Write both postings of every transfer. Call once a transaction."""
    number = 0
    total = 0
    for transfer in transfers:
        for account, counterparty, amount in (
            (transfer.payer, transfer.payee, -transfer.amount_micro),
            (transfer.payee, transfer.payer, transfer.amount_micro),
        ):
            total += amount
            if amount == 0:
                continue
            side = "cr" if amount > 0 else "dr"
            posting = Posting(abs(amount), transfer.kind, transfer.reference, counterparty, at)
            context.put_state(
                f"acct/{account}/{side}/{context.transaction_id}/{number}",
                canonical_json(posting),
            )
            number += 1
    assert total == 0, "postings must sum to zero"


def _postings(context: Context, account: str) -> Iterator[tuple[int, str, str, Posting]]:
    """(signed amount, transaction id, number, posting) of an account."""
    count = 0
    for side, sign in (("cr", 1), ("dr", -1)):
        prefix = f"acct/{account}/{side}/"
        for key, value in context.range(*under(prefix)):
            count += 1
            if count > MAX_POSTINGS:
                raise LimitExceeded(
                    f"account {account} has more than {MAX_POSTINGS} postings, the limit of "
                    "what a balance is summed from"
                )
            transaction_id, _, number = key.removeprefix(prefix).partition("/")
            posting = stored_record(Posting, value)
            yield sign * posting.amount_micro, transaction_id, number, posting


def _require_sight(context: Context, account: str) -> None:
    """Raise Forbidden unless the caller may read the account; NotFound if there is none."""
    creator = context.creator
    msp_id = creator.msp_id
    if account.startswith((*RESERVED_PREFIXES, _BANK)):
        own = (supplier_account(msp_id), grid_account(msp_id), bank_account(msp_id))
        access.require(
            account in own and access.is_supplier(creator, msp_id),
            creator,
            f"read account {account}",
            "its utility's operators and suppliers",
        )
        return
    connection = connection_of(context, account)
    access.require(
        access.is_home(creator, connection.utility, account)
        or access.is_operator(creator, connection.utility),
        creator,
        f"read account {account}",
        f"its home and operators of {connection.utility}",
    )


class Wallet(Contract):
    """Deposits, balances and statements."""

    name: ClassVar[str] = "wallet"

    @transaction
    def deposit(
        self,
        context: Context,
        *,
        account: Account,
        amount_micro: Amount,
        bank_reference: Identifier,
    ) -> dict[str, Any]:
        """Enter money that arrived at the utility's bank; a bank reference counts once."""
        creator = context.creator
        utility = creator.msp_id
        if account.startswith(_BANK):
            raise InvalidArgument(f"account is {account}, but deposits come from there")
        if account.startswith(RESERVED_PREFIXES):
            allowed = account in (supplier_account(utility), grid_account(utility))
        else:
            allowed = connection_of(context, account).utility == utility
        access.require(
            allowed and access.is_operator(creator, utility),
            creator,
            f"enter deposits to {account}",
            "operators of the account's utility",
        )
        key = f"bank/{utility}/{bank_reference}"
        stored = context.get_state(key)
        if stored is not None:
            deposit = stored_record(Deposit, stored)
            if (deposit.account, deposit.amount_micro) != (account, amount_micro):
                raise Conflict(
                    f"bank_reference {bank_reference} of {utility} stands for a deposit of "
                    f"{deposit.amount_micro} micro-units to {deposit.account} already"
                )
        else:
            deposit = Deposit(account, amount_micro, bank_reference, context.transaction_id)
            context.put_state(key, canonical_json(deposit))
            post(
                context,
                settings.now(context, energy_settings(context)),
                [Transfer(bank_account(utility), account, amount_micro, "deposit", bank_reference)],
            )
        return {
            "account": deposit.account,
            "amount_micro": deposit.amount_micro,
            "bank_reference": deposit.bank_reference,
            "transaction_id": deposit.transaction_id,
            "status": "committed",
        }

    @query
    def balance(self, context: Context, *, account: Account) -> dict[str, Any]:
        """The sum of an account's postings."""
        _require_sight(context, account)
        return {
            "account": account,
            "balance_micro": sum(amount for amount, _, _, _ in _postings(context, account)),
            "currency": energy_settings(context).currency,
        }

    @query
    def statement(
        self,
        context: Context,
        *,
        account: Account,
        limit: Annotated[int, Integer(1, 200)] = 50,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """An account's postings, the newest first."""
        _require_sight(context, account)
        entries = [
            (
                f"{posting.at:012d}/{transaction_id}/{number}",
                {
                    "at": posting.at,
                    "transaction_id": transaction_id,
                    "amount_micro": amount,
                    "kind": posting.kind,
                    "reference": posting.reference,
                    "counterparty": posting.counterparty,
                },
            )
            for amount, transaction_id, number, posting in _postings(context, account)
        ]
        entries.sort(key=lambda entry: entry[0], reverse=True)
        left = [entry for entry in entries if not bookmark or entry[0] < bookmark]
        shown = left[:limit]
        return {
            "account": account,
            "currency": energy_settings(context).currency,
            "entries": [entry for _, entry in shown],
            "bookmark": shown[-1][0] if len(left) > limit else None,
        }
