"""The actions over bills, credit, certificates, delegations and response events.

Registered at start, so this module imports nothing that needs installed requirements.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import voluptuous as vol
from homeassistant.core import (
    ServiceCall,
    ServiceResponse,
    SupportsResponse,
)
from homeassistant.helpers import config_validation as cv
from homeassistant.util import dt as dt_util

from .actions import HOME, Action
from .const import (
    ATTR_REQUEST_ID,
    SERVICE_CLAIM_CERTIFICATE,
    SERVICE_DELEGATE,
    SERVICE_END_DELEGATION,
    SERVICE_GET_BILLS,
    SERVICE_JOIN_RESPONSE_EVENT,
    SERVICE_PAY_BILL,
    SERVICE_TOP_UP,
)

if TYPE_CHECKING:
    from .coordinator import GridLedgerRuntime

ATTR_ACTS: Final = "acts"
ATTR_AMOUNT: Final = "amount"
ATTR_BATCH: Final = "batch_id"
ATTR_CLAIMED_FOR: Final = "claimed_for"
ATTR_COUNT: Final = "count"
ATTR_DELEGATION: Final = "delegation_id"
ATTR_EVENT: Final = "event_id"
ATTR_HIGHEST: Final = "highest_price"
ATTR_LEAVE: Final = "leave"
ATTR_LINES: Final = "lines"
ATTR_LOWEST: Final = "lowest_price"
ATTR_MAX_ENERGY: Final = "max_energy"
ATTR_NUMBER: Final = "number"
ATTR_TRADER: Final = "trader"
ATTR_UNTIL: Final = "until"
ACTS: Final = ("order", "sell", "respond")

_LINES_LIMIT: Final = 12
"""Bills whose lines are read for one call: each is a question to the utility's peer."""

_AMOUNT = vol.All(vol.Coerce(float), vol.Range(min=0.01, max=1_000_000))
_ID = vol.All(cv.string, vol.Match(r"^[A-Z0-9-]{1,64}$", msg="use A-Z, 0-9 and -"))
_REQUEST = vol.All(cv.string, vol.Match(r"^[A-Za-z0-9-]{1,64}$", msg="use letters, digits and -"))
_NUMBER = vol.All(vol.Coerce(int), vol.Range(min=1, max=999_999))
_PRICE = vol.All(vol.Coerce(float), vol.Range(min=-100, max=100))

BILLS_SCHEMA: Any = vol.Schema({**HOME, vol.Optional(ATTR_LINES, default=False): cv.boolean})
PAY_SCHEMA: Any = vol.Schema(
    {
        **HOME,
        vol.Optional(ATTR_AMOUNT): _AMOUNT,
        vol.Optional(ATTR_NUMBER): _NUMBER,
        vol.Optional(ATTR_REQUEST_ID): _REQUEST,
    }
)
TOP_UP_SCHEMA: Any = vol.Schema(
    {**HOME, vol.Required(ATTR_AMOUNT): _AMOUNT, vol.Optional(ATTR_REQUEST_ID): _REQUEST}
)
CLAIM_SCHEMA: Any = vol.Schema(
    {
        **HOME,
        vol.Required(ATTR_COUNT): vol.All(vol.Coerce(int), vol.Range(min=1, max=1_000_000)),
        vol.Required(ATTR_CLAIMED_FOR): vol.All(cv.string, vol.Length(min=1, max=200)),
        vol.Optional(ATTR_BATCH): _ID,
    }
)
DELEGATE_SCHEMA: Any = vol.Schema(
    {
        **HOME,
        vol.Required(ATTR_TRADER): _ID,
        vol.Required(ATTR_ACTS): vol.All(cv.ensure_list, vol.Length(min=1), [vol.In(ACTS)]),
        vol.Required(ATTR_UNTIL): cv.datetime,
        vol.Required(ATTR_MAX_ENERGY): vol.All(vol.Coerce(float), vol.Range(min=0.001, max=10_000)),
        vol.Required(ATTR_LOWEST): _PRICE,
        vol.Required(ATTR_HIGHEST): _PRICE,
        vol.Optional(ATTR_DELEGATION): _ID,
    }
)
END_SCHEMA: Any = vol.Schema({**HOME, vol.Required(ATTR_DELEGATION): _ID})
JOIN_SCHEMA: Any = vol.Schema(
    {**HOME, vol.Required(ATTR_EVENT): _ID, vol.Optional(ATTR_LEAVE, default=False): cv.boolean}
)


class _Asked(Protocol):
    """Waits for the ledger's answer and says in the owner's words why there is none."""

    async def __call__[T](self, question: Awaitable[T]) -> T: ...


def account_actions(
    runtime_of: Callable[[ServiceCall], GridLedgerRuntime],
    acting_for: Callable[[ServiceCall], Awaitable[GridLedgerRuntime]],
    asked: _Asked,
) -> tuple[Action, ...]:
    """Return the actions; ``acting_for`` finds the home if the caller may act for it."""

    async def get_bills(call: ServiceCall) -> ServiceResponse:
        """Return the home's bills, and with ``lines`` what the newest are made of."""
        from .accounts import async_bill_lines, async_bills

        session = runtime_of(call).session
        bills = await asked(async_bills(session))
        if call.data[ATTR_LINES]:
            computed = [bill for bill in bills if bill["run"]]
            for bill in computed[:_LINES_LIMIT]:
                bill["record"] = await asked(
                    async_bill_lines(session, bill["from_day"], bill["run"])
                )
        account = session.data.account
        return {
            "bills": bills,  # type: ignore[dict-item]
            "open": 0.0 if account is None else account.open_micro / 1e6,
            "due": 0.0 if account is None else account.due_micro / 1e6,
            "currency": session.data.currency,
        }

    async def pay_bill(call: ServiceCall) -> ServiceResponse:
        """Pay bills out of the home's account."""
        from .accounts import async_pay

        session = (await acting_for(call)).session
        amount = call.data.get(ATTR_AMOUNT)
        return await asked(
            async_pay(
                session,
                None if amount is None else round(amount * 1e6),
                call.data.get(ATTR_NUMBER),
                call.data.get(ATTR_REQUEST_ID),
            )
        )

    async def top_up(call: ServiceCall) -> ServiceResponse:
        """Add money to the prepaid credit."""
        from .accounts import async_top_up

        session = (await acting_for(call)).session
        return await asked(
            async_top_up(
                session, round(call.data[ATTR_AMOUNT] * 1e6), call.data.get(ATTR_REQUEST_ID)
            )
        )

    async def claim_certificate(call: ServiceCall) -> ServiceResponse:
        """Use guarantees of origin up."""
        from .accounts import async_claim

        session = (await acting_for(call)).session
        return await asked(
            async_claim(
                session,
                call.data[ATTR_COUNT],
                call.data[ATTR_CLAIMED_FOR],
                call.data.get(ATTR_BATCH),
            )
        )

    async def delegate(call: ServiceCall) -> ServiceResponse:
        """Let a trader act for the home."""
        from .accounts import async_delegate

        session = (await acting_for(call)).session
        return await asked(
            async_delegate(
                session,
                call.data[ATTR_TRADER],
                call.data[ATTR_ACTS],
                dt_util.as_utc(call.data[ATTR_UNTIL]),
                round(call.data[ATTR_MAX_ENERGY] * 1000),
                (round(call.data[ATTR_LOWEST] * 1e6), round(call.data[ATTR_HIGHEST] * 1e6)),
                call.data.get(ATTR_DELEGATION),
            )
        )

    async def end_delegation(call: ServiceCall) -> ServiceResponse:
        """Take a delegation back."""
        from .accounts import async_end_delegation

        session = (await acting_for(call)).session
        return await asked(async_end_delegation(session, call.data[ATTR_DELEGATION]))

    async def join_response_event(call: ServiceCall) -> ServiceResponse:
        """Take part in a response event, or no longer."""
        from .accounts import async_join

        session = (await acting_for(call)).session
        return await asked(async_join(session, call.data[ATTR_EVENT], leave=call.data[ATTR_LEAVE]))

    only, optional = SupportsResponse.ONLY, SupportsResponse.OPTIONAL
    return (
        (SERVICE_GET_BILLS, get_bills, BILLS_SCHEMA, only),
        (SERVICE_PAY_BILL, pay_bill, PAY_SCHEMA, optional),
        (SERVICE_TOP_UP, top_up, TOP_UP_SCHEMA, optional),
        (SERVICE_CLAIM_CERTIFICATE, claim_certificate, CLAIM_SCHEMA, optional),
        (SERVICE_DELEGATE, delegate, DELEGATE_SCHEMA, optional),
        (SERVICE_END_DELEGATION, end_delegation, END_SCHEMA, optional),
        (SERVICE_JOIN_RESPONSE_EVENT, join_response_event, JOIN_SCHEMA, optional),
    )
