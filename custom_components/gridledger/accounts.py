"""How the home stands with its supplier: bills, permit, credit, certificates, delegations.

Read from the ledger whenever an event there concerns them, and every quarter of an hour. The
lines of a bill are private: the home reads them at a peer of the utility that meters it.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from http import HTTPStatus
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers import issue_registry as ir
from homeassistant.util import dt as dt_util

from .client import CommitFailed, Committed, TransactionRefused
from .clock import ChannelClock
from .const import (
    CHAINCODE_ENERGY,
    CHAINCODE_METERING,
    DOMAIN,
    LOGGER,
    SIGNAL_BILL,
    SIGNAL_PERMIT,
    SIGNAL_RESPONSE,
)
from .models import (
    AccountData,
    LedgerData,
    OpenBill,
    Permit,
    Prepaid,
    ResponseEvent,
    understood,
)

if TYPE_CHECKING:
    from .session import LedgerSession

EVENTS: Final = frozenset(
    {
        "bill",
        "credit_note",
        "dispute",
        "payment",
        "permit",
        "prepayment",
        "prepayment_low",
        "reminder",
        "supply",
        "response_announced",
        "response_cancelled",
        "response_settled",
    }
)
"""What the ledger tells that may change :class:`AccountData`."""
_EVENT_LISTED: Final = 50
_AHEAD_ASKED: Final = 20
_PAGE: Final = 200
_PAGES: Final = 20
_OVERLAP_S: Final = 96
"""An event's window is at most this many intervals, so one that runs began no earlier."""


# Reading ------------------------------------------------------------------------------------------


async def _optional(session: LedgerSession, function: str, **argument: Any) -> Any:
    """Evaluate; None where the contract knows nothing of the home, or isn't there."""
    try:
        return await session.client.evaluate(CHAINCODE_ENERGY, function, argument)
    except TransactionRefused as error:
        LOGGER.debug("%s: %s", function, error)
        return None


async def async_read_account(session: LedgerSession, zone: str | None) -> AccountData:
    """Read how the home stands.

    Raises:
        GridLedgerError: the ledger is away or answers nonsense.
    """
    home = {"connection_id": session.connection_id}
    with understood("the account's answer"):
        account, permit, prepaid, responses = await asyncio.gather(
            _optional(session, "billing:Account", **home),
            _optional(session, "permit:Status", **home),
            _optional(session, "prepayment:Status", **home),
            _responses(session, zone),
        )
        found = AccountData(responses=responses)
        if account is not None:
            bills = sorted(
                (OpenBill.from_json(one) for one in account["open"]),
                key=lambda bill: (bill.due_at, bill.number),
            )
            found = replace(
                found,
                open_micro=int(account["open_micro"]),
                due_micro=int(account["due_micro"]),
                disputed_micro=int(account["disputed_micro"]),
                billed_to=account["billed_to"],
                bills=tuple(bills),
            )
        if permit is not None:
            found = replace(found, permit=Permit.from_json(permit))
        if prepaid is not None and prepaid["payment"] != "postpaid":
            days = prepaid["days_left"]
            found = replace(
                found,
                prepaid=Prepaid(
                    int(prepaid["credit_micro"]),
                    int(prepaid["credit_wh"]),
                    None if days is None else int(days),
                    bool(prepaid["low"]),
                ),
            )
    return found


async def _responses(session: LedgerSession, zone: str | None) -> tuple[ResponseEvent, ...]:
    """Read the response events of the home's zone that aren't over."""
    clock = session.known_clock()
    now = int(clock.channel(dt_util.utcnow().timestamp()))
    since = max(0, now - _OVERLAP_S * clock.interval_s)
    page = await _optional(session, "response:Events", **{"from": since, "limit": _EVENT_LISTED})
    events = [
        one
        for one in (page or {}).get("events", ())
        if int(one.get("shift_until") or one["window_end"]) > now and one["zone"] == zone
    ][:_AHEAD_ASKED]
    parts = await asyncio.gather(
        *(
            _optional(
                session,
                "response:Participation",
                event_id=one["event_id"],
                connection_id=session.connection_id,
            )
            for one in events
        )
    )
    return tuple(
        ResponseEvent(
            str(one["event_id"]),
            str(one["operator"]),
            str(one["kind"]),
            int(one["window_start"]),
            int(one["window_end"]),
            int(one["reward_micro_per_kwh"]),
            int(one["opt_in_until"]),
            bool(one.get("cancelled")),
            None if part is None else str(part["state"]),
            None if one.get("shift_until") is None else int(one["shift_until"]),
        )
        for one, part in zip(events, parts, strict=True)
    )


# News ---------------------------------------------------------------------------------------------

News = tuple[str, str, dict[str, Any]]
"""A signal, what happened, and its data."""


def news(
    before: LedgerData, after: AccountData, clock: ChannelClock, since: float, now: float
) -> list[News]:
    """Return what has changed in an account since a look; a first look finds nothing new.

    ``since`` and ``now`` are the channel times of the looks.
    """
    old = before.account
    if old is None:
        return []
    currency = before.currency
    found: list[News] = []
    known = {bill.number: bill for bill in old.bills}
    current = {bill.number: bill for bill in after.bills}
    for number, bill in current.items():
        was = known.get(number)
        told = bill.as_response(clock, currency)
        if was is None:
            found.append((SIGNAL_BILL, "issued", told))
        elif was.dunning < bill.dunning:
            kind = "reminder" if bill.dunning == 1 else "final_notice"
            found.append((SIGNAL_BILL, kind, told))
        if since < bill.due_at <= now:
            found.append((SIGNAL_BILL, "due", told))
    for number, bill in known.items():
        if number not in current:
            told = bill.as_response(clock, currency)
            found.append((SIGNAL_BILL, "paid", {**told, "open": 0.0}))
    if after.billed_to != old.billed_to and not current.keys() - known.keys():
        # Paid at once out of a credit, or nothing was to be paid.
        told = {"number": None, "open": 0.0, "currency": currency, "due": None}
        found.append((SIGNAL_BILL, "issued", told))
    permit, was_permit = after.permit, old.permit
    if permit is not None and was_permit is not None and permit.state != was_permit.state:
        told = permit_as_response(permit, clock, currency)
        told["from_state"] = was_permit.state
        found.append((SIGNAL_PERMIT, permit.state, told))
    asked = {event.event_id: event for event in old.responses}
    for event in after.responses:
        was_event = asked.get(event.event_id)
        told = event.as_response(clock, currency)
        if was_event is None:
            if not event.cancelled:
                found.append((SIGNAL_RESPONSE, "announced", told))
            continue
        if event.cancelled and not was_event.cancelled:
            found.append((SIGNAL_RESPONSE, "cancelled", told))
        if event.participation != was_event.participation:
            happened = {"opted_in": "joined", "left": "left", "settled": "settled"}
            if (how := happened.get(str(event.participation))) is not None:
                found.append((SIGNAL_RESPONSE, how, told))
    return found


def permit_as_response(permit: Permit, clock: ChannelClock, currency: str) -> dict[str, Any]:
    """Return a permit in the units of people."""
    return {
        "state": permit.state,
        "reason": permit.reason,
        "next_step": permit.next_step,
        "next_at": (
            None if permit.next_at is None else clock.real_datetime(permit.next_at).isoformat()
        ),
        "limit_w": permit.limit_w,
        "due": permit.due_micro / 1e6,
        "currency": currency,
    }


@callback
def async_show_issue(hass: HomeAssistant, session: LedgerSession, data: LedgerData) -> None:
    """Raise a repair issue while the permit isn't granted, and take it back afterwards."""
    if data.account is None or data.account.permit is None or session.clock is None:
        return
    entry, permit = session.config_entry, data.account.permit
    issue_id = f"permit_{entry.entry_id}"
    if permit.state == "granted":
        ir.async_delete_issue(hass, DOMAIN, issue_id)
        return
    at = (
        "-"
        if permit.next_at is None
        else dt_util.as_local(session.clock.real_datetime(permit.next_at)).strftime(
            "%Y-%m-%d %H:%M"
        )
    )
    ir.async_create_issue(
        hass,
        DOMAIN,
        issue_id,
        is_fixable=False,
        severity=(
            ir.IssueSeverity.WARNING if permit.state == "warned" else ir.IssueSeverity.CRITICAL
        ),
        translation_key=f"permit_{permit.state}",
        translation_placeholders={
            "home": entry.title,
            "due": f"{permit.due_micro / 1e6:.2f} {data.currency}",
            "at": at,
            "limit": str(permit.limit_w or 0),
        },
    )


# Bills --------------------------------------------------------------------------------------------


async def async_bills(session: LedgerSession) -> list[dict[str, Any]]:
    """Return the home's bills, adjustments and credit notes, the newest first.

    Raises:
        GridLedgerError: the ledger is away or answers nonsense.
    """
    clock, currency = session.known_clock(), session.data.currency
    found: list[dict[str, Any]] = []
    bookmark = ""
    for _ in range(_PAGES):
        page = await _optional(
            session,
            "billing:Bills",
            connection_id=session.connection_id,
            limit=_PAGE,
            **({"bookmark": bookmark} if bookmark else {}),
        )
        if page is None:
            break
        with understood("a bill"):
            found.extend(_document(one, clock, currency) for one in page["bills"])
        bookmark = str(page.get("bookmark") or "")
        if not bookmark:
            break
    return found[::-1]


def _document(stated: Mapping[str, Any], clock: ChannelClock, currency: str) -> dict[str, Any]:
    document, standing, dispute = stated["document"], stated["standing"], stated["dispute"]
    bill = None if standing is None else OpenBill.from_json(standing)
    return {
        "number": int(document["number"]),
        "kind": str(document["kind"]),
        "supplier": str(document["supplier"]),
        "from_day": str(document["from_day"]),
        "to_day": str(document["to_day"]),
        "run": int(document["run"]),
        "total": int(document["total_micro"]) / 1e6,
        "open": 0.0 if bill is None else bill.open_micro / 1e6,
        "disputed": 0.0 if bill is None else bill.disputed_micro / 1e6,
        "due": None if bill is None else clock.real_datetime(bill.due_at).isoformat(),
        "estimated": bool(document["estimated"]),
        "corrects": None if document["corrects"] is None else int(document["corrects"]),
        "issued": clock.real_datetime(int(document["issued_at"])).isoformat(),
        "reason": str(document["reason"]),
        "dispute": None if dispute is None else str(dispute.get("state", "")),
        "commitment": document["commitment"],
        "currency": currency,
    }


async def async_bill_lines(session: LedgerSession, from_day: str, run: int) -> dict[str, Any]:
    """Return all lines of a bill from its private record, at a peer of the own utility.

    Raises:
        GridLedgerError: the ledger or that peer is away, or there is no such record.
    """
    which = {"connection_id": session.connection_id, "from_day": from_day, "run": run}
    ask = partial(
        session.client.evaluate, CHAINCODE_METERING, endorsing_organizations=[session.msp_id]
    )
    record = await ask("bill:Record", which)
    with understood("a bill's record"):
        regulated = record["regulated_micro"]
        found = {
            "total": int(record["total_micro"]) / 1e6,
            "regulated": None if regulated is None else int(regulated) / 1e6,
            "import_kwh": int(record["import_wh"]) / 1000,
            "export_kwh": int(record["export_wh"]) / 1000,
            "prepaid_kwh": int(record["drawn_wh"]) / 1000,
            "estimated_intervals": int(record["estimated_intervals"]),
            "currency": session.data.currency,
            "lines": [
                {
                    "from_day": str(part["from_day"]),
                    "to_day": str(part["to_day"]),
                    "tariff": str(part["tariff"]),
                    "kind": str(line["kind"]),
                    "name": str(line["name"]),
                    "quantity": int(line["quantity"]),
                    "price": int(line["price"]),
                    "amount": int(line["amount_micro"]) / 1e6,
                }
                for part in record["bills"]
                for line in part["lines"]
            ],
        }
    try:
        relief = await ask("bill:Relief", which)
    except TransactionRefused as refusal:
        if refusal.status != HTTPStatus.NOT_FOUND:
            raise
        return {**found, "relief": 0.0}  # its tariff has no social one
    with understood("a bill's relief"):
        return {**found, "relief": int(relief["relief_micro"]) / 1e6}


# Acts ---------------------------------------------------------------------------------------------


async def async_submit(
    session: LedgerSession, function: str, argument: dict[str, Any]
) -> Committed:
    """Submit; once more where another transaction came in between.

    Raises:
        GridLedgerError: the ledger is away, or refuses.
    """
    try:
        return await session.client.submit(CHAINCODE_ENERGY, function, argument)
    except CommitFailed as error:
        if error.code != "MVCC_READ_CONFLICT":
            raise
    return await session.client.submit(CHAINCODE_ENERGY, function, argument)


async def _submit(session: LedgerSession, function: str, argument: dict[str, Any]) -> Any:
    committed = await async_submit(session, function, argument)
    session.async_account_changed()
    result = committed.result
    return {
        **(result if isinstance(result, dict) else {}),
        "transaction_id": committed.transaction_id,
        "block": committed.block_number,
    }


async def async_have_money(session: LedgerSession, amount_micro: int) -> None:
    """See that shard 0 holds an amount: sweep what came in if it doesn't."""
    account = {"account": session.connection_id}
    balance = await session.client.evaluate(CHAINCODE_ENERGY, "wallet:Balance", account)
    with understood("the balance"):
        if int(balance["shards"].get("0", 0)) >= amount_micro:
            return
    incoming = await session.client.evaluate(CHAINCODE_ENERGY, "wallet:Incoming", account)
    with understood("what came in"):
        entries = incoming["entries"]
    if entries:
        await session.client.submit(
            CHAINCODE_ENERGY, "wallet:Sweep", {**account, "entries": entries}
        )


async def _paid(
    session: LedgerSession, function: str, amount_micro: int, request_id: str | None, **more: Any
) -> dict[str, Any]:
    await async_have_money(session, amount_micro)
    answer = await _submit(
        session,
        function,
        {
            "connection_id": session.connection_id,
            "amount_micro": amount_micro,
            "request_id": request_id or f"HA-{token_hex(12).upper()}",
            **more,
        },
    )
    with understood("the payment"):
        return {
            "request_id": str(answer["request_id"]),
            "amount": int(answer["amount_micro"]) / 1e6,
            "paid": [
                {"number": int(part["number"]), "amount": int(part["amount_micro"]) / 1e6}
                for part in answer["paid"]
            ],
            "currency": session.data.currency,
            "transaction_id": answer["transaction_id"],
            "block": answer["block"],
        }


async def async_pay(
    session: LedgerSession, amount_micro: int | None, number: int | None, request_id: str | None
) -> dict[str, Any]:
    """Pay bills out of the home's account: one, or those due first; all that is open by default.

    Raises:
        GridLedgerError: the ledger is away, or refuses.
    """
    if amount_micro is None:
        account = await session.client.evaluate(
            CHAINCODE_ENERGY, "billing:Account", {"connection_id": session.connection_id}
        )
        with understood("an open bill"):
            bills = [OpenBill.from_json(one) for one in account["open"]]
        amount_micro = sum(
            bill.open_micro - bill.disputed_micro for bill in bills if number in (None, bill.number)
        )
        if amount_micro <= 0:
            raise TransactionRefused("nothing is to be paid")
    more = {} if number is None else {"number": number}
    return await _paid(session, "billing:Pay", amount_micro, request_id, **more)


async def async_top_up(
    session: LedgerSession, amount_micro: int, request_id: str | None
) -> dict[str, Any]:
    """Add money to the prepaid credit, after paying what is open.

    Raises:
        GridLedgerError: the ledger is away, or refuses.
    """
    return await _paid(session, "prepayment:TopUp", amount_micro, request_id)


async def async_claim(
    session: LedgerSession, count: int, claimed_for: str, batch_id: str | None
) -> dict[str, Any]:
    """Use certificates up: of a batch, or of the oldest that has as many.

    Raises:
        GridLedgerError: the ledger is away, or refuses.
    """
    if batch_id is None:
        page = await session.client.evaluate(
            CHAINCODE_ENERGY,
            "certificate:Holdings",
            {"owner": session.connection_id, "limit": _PAGE},
        )
        with understood("a guarantee of origin"):
            fitting = [
                (str(one["month"]), str(one["batch_id"]))
                for one in page["batches"]
                if one["state"] == "issued" and int(one["count"]) >= count
            ]
        if not fitting:
            raise TransactionRefused(f"no batch of yours holds {count} certificates to claim")
        _, batch_id = min(fitting)
    answer = await _submit(
        session,
        "certificate:Claim",
        {
            "owner": session.connection_id,
            "batch_id": batch_id,
            "count": count,
            "claimed_for": claimed_for,
        },
    )
    with understood("the claim"):
        first = int(answer["first_serial"])
        return {
            "batch_id": str(answer["batch_id"]),
            "plant_id": str(answer["plant_id"]),
            "month": str(answer["month"]),
            "source": str(answer["source"]),
            "first_serial": first,
            "last_serial": first + int(answer["count"]) - 1,
            "claimed_for": str(answer["claimed_for"]),
            "transaction_id": answer["transaction_id"],
            "block": answer["block"],
        }


async def async_certificates(session: LedgerSession) -> list[dict[str, Any]]:
    """Return the batches of guarantees of origin in the home's hands, by month.

    Raises:
        GridLedgerError: the ledger is away or answers nonsense.
    """
    page = await _optional(
        session, "certificate:Holdings", owner=session.connection_id, limit=_PAGE
    )
    with understood("a guarantee of origin"):
        found = [
            {
                "batch_id": str(one["batch_id"]),
                "month": str(one["month"]),
                "plant_id": str(one["plant_id"]),
                "source": str(one["source"]),
                "count": int(one["count"]),
                "state": str(one["state"]),
                "claimed_for": one.get("claimed_for"),
            }
            for one in (page or {}).get("batches", ())
        ]
    return sorted(found, key=lambda one: one["month"], reverse=True)


async def async_delegate(
    session: LedgerSession,
    trader: str,
    acts: list[str],
    until: datetime,
    max_energy_wh: int,
    prices_micro: tuple[int, int],
    delegation_id: str | None,
) -> dict[str, Any]:
    """Let a trader act for the home, within limits.

    Raises:
        GridLedgerError: the ledger is away, or refuses.
    """
    name = delegation_id or f"HA-{token_hex(8).upper()}"
    answer = await _submit(
        session,
        "delegation:Give",
        {
            "delegation": {
                "delegation_id": name,
                "connection_id": session.connection_id,
                "trader": trader,
                "acts": sorted(acts),
                "until": int(session.known_clock().channel(until.timestamp())),
                "max_energy_wh": max_energy_wh,
                "lowest_price": prices_micro[0],
                "highest_price": prices_micro[1],
            }
        },
    )
    return {
        "delegation_id": name,
        "trader": trader,
        "until": until.isoformat(),
        "transaction_id": answer["transaction_id"],
        "block": answer["block"],
    }


async def async_end_delegation(session: LedgerSession, delegation_id: str) -> dict[str, Any]:
    """Take a delegation back at once.

    Raises:
        GridLedgerError: the ledger is away, or there is no such delegation.
    """
    page = await session.client.evaluate(
        CHAINCODE_ENERGY,
        "delegation:Given",
        {"connection_id": session.connection_id, "limit": _PAGE},
    )
    with understood("a delegation"):
        traders = {one["delegation_id"]: str(one["trader"]) for one in page["delegations"]}
    if (trader := traders.get(delegation_id)) is None:
        raise TransactionRefused(f"there is no delegation {delegation_id}")
    answer = await _submit(
        session,
        "delegation:TakeBack",
        {
            "connection_id": session.connection_id,
            "trader": trader,
            "delegation_id": delegation_id,
        },
    )
    return {
        "delegation_id": delegation_id,
        "trader": trader,
        "transaction_id": answer["transaction_id"],
        "block": answer["block"],
    }


async def async_join(session: LedgerSession, event_id: str, *, leave: bool) -> dict[str, Any]:
    """Take part in a response event, or no longer.

    Raises:
        GridLedgerError: the ledger is away, or refuses.
    """
    answer = await _submit(
        session,
        "response:Leave" if leave else "response:OptIn",
        {"event_id": event_id, "connection_id": session.connection_id},
    )
    shown: dict[str, Any] = {}
    if session.data.account is not None and session.clock is not None:
        for event in session.data.account.responses:
            if event.event_id == event_id:
                shown = event.as_response(session.clock, session.data.currency)
    with understood("the participation"):
        return {
            **shown,
            "event_id": event_id,
            "participation": str(answer["state"]),
            "transaction_id": answer["transaction_id"],
            "block": answer["block"],
        }
