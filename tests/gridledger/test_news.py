"""What a home is told of its bills, its permit and its response events between two looks."""

from dataclasses import replace
from typing import Any

import pytest

from custom_components.gridledger.accounts import news
from custom_components.gridledger.clock import ChannelClock
from custom_components.gridledger.const import SIGNAL_BILL, SIGNAL_PERMIT, SIGNAL_RESPONSE
from custom_components.gridledger.models import (
    AccountData,
    LedgerData,
    OpenBill,
    Permit,
    ResponseEvent,
)

NOON = 1_750_420_800
BILL = OpenBill(number=7, open_micro=1_300_000, disputed_micro=0, due_at=NOON + 3600, dunning=0)
PERMIT = Permit("granted", "none", "none", None, None, 0)
EVENT = ResponseEvent("E-1", "A", "reduce", NOON, NOON + 900, 500_000, NOON, False, None)


def told(before: AccountData | None, after: AccountData, *, now: int = NOON) -> list[Any]:
    """What is said, without its details."""
    ledger = LedgerData(account=before)
    return [(name, what) for name, what, _ in news(ledger, after, ChannelClock(900), NOON, now)]


def account(*bills: OpenBill, **more: Any) -> AccountData:
    return AccountData(bills=bills, **more)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(None, account(BILL), [], id="a first look finds nothing new"),
        pytest.param(account(), account(BILL), ["issued"], id="a bill"),
        pytest.param(
            account(BILL), account(replace(BILL, dunning=1)), ["reminder"], id="a reminder"
        ),
        pytest.param(
            account(replace(BILL, dunning=1)),
            account(replace(BILL, dunning=2)),
            ["final_notice"],
            id="a final notice",
        ),
        pytest.param(
            account(BILL), account(replace(BILL, disputed_micro=1)), [], id="nothing of these"
        ),
        pytest.param(account(BILL), account(), ["paid"], id="paid"),
        pytest.param(
            account(billed_to=None),
            account(billed_to="2025-06-20"),
            ["issued"],
            id="paid at once out of a credit",
        ),
        pytest.param(
            account(billed_to=None),
            account(BILL, billed_to="2025-06-20"),
            ["issued"],
            id="a bill is told once",
        ),
    ],
)
def test_bills(before: AccountData | None, after: AccountData, expected: list[str]) -> None:
    assert told(before, after) == [(SIGNAL_BILL, what) for what in expected]


def test_a_bill_falls_due_once() -> None:
    assert told(account(BILL), account(BILL), now=BILL.due_at - 1) == []
    assert told(account(BILL), account(BILL), now=BILL.due_at) == [(SIGNAL_BILL, "due")]
    earlier = replace(BILL, due_at=NOON)
    assert told(account(earlier), account(earlier), now=NOON + 900) == [], "it was due before"


def test_a_paid_bill_is_told_with_nothing_open() -> None:
    [(_, _, data)] = news(LedgerData(account=account(BILL)), account(), ChannelClock(900), 0, 1)
    assert (data["number"], data["open"]) == (7, 0.0)


def test_a_permit_changes_its_state() -> None:
    before = account(permit=PERMIT)
    limited = replace(PERMIT, state="limited", limit_w=1000, next_at=NOON)
    assert told(before, account(permit=limited)) == [(SIGNAL_PERMIT, "limited")]
    [(_, _, data)] = news(
        LedgerData(account=before), account(permit=limited), ChannelClock(900), 0, 1
    )
    assert (data["from_state"], data["next_at"]) == ("granted", "2025-06-20T12:00:00+00:00")
    assert told(before, before) == told(before, account()) == told(account(), before) == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [EVENT], ["announced"]),
        ([], [replace(EVENT, cancelled=True)], []),
        ([EVENT], [replace(EVENT, cancelled=True)], ["cancelled"]),
        ([replace(EVENT, cancelled=True)], [replace(EVENT, cancelled=True)], []),
        ([EVENT], [replace(EVENT, participation="opted_in")], ["joined"]),
        (
            [replace(EVENT, participation="opted_in")],
            [replace(EVENT, participation="committed")],
            [],
        ),
        (
            [replace(EVENT, participation="opted_in")],
            [replace(EVENT, participation="left")],
            ["left"],
        ),
        (
            [replace(EVENT, participation="committed")],
            [replace(EVENT, participation="settled")],
            ["settled"],
        ),
        ([EVENT], [], []),
    ],
)
def test_response_events(
    before: list[ResponseEvent], after: list[ResponseEvent], expected: list[str]
) -> None:
    looks = (AccountData(responses=tuple(events)) for events in (before, after))
    assert told(*looks) == [(SIGNAL_RESPONSE, what) for what in expected]
