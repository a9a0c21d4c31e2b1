"""A home with a meter, a tariff, a calendar and permit rules, ready to be billed."""

import json
from copy import copy
from datetime import UTC, datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from consortium.chaincode.api import Creator, canonical_json
from consortium.contracts.common.dated import Span
from consortium.ledger.state import Version, VersionedValue
from tests.consortium.contracts.test_tariff_book import rome
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    HOME,
    OPERATOR,
    TestMeter,
    World,
    energy_world,
)

HOUR_S = 3600
START = int(datetime(2019, 1, 5, tzinfo=UTC).timestamp())
CONNECTION = "CP-0001"
FLAT: dict[str, Any] = {
    "tariff": "FLAT",
    "supplier": "AuroraMSP",
    "standing_micro_per_day": 100_000,
    "bands": [
        {"name": "ALL", "days": "EVERY", "from_minute": 0, "to_minute": 1440, "price": 200_000}
    ],
    "blocks": [],
    "index": None,
    "index_ppm": 0,
    "markup": 0,
    "capacity_micro_per_kw_month": 0,
    "feed_in": 50_000,
    "feed_in_index_ppm": 0,
    "taxes": [],
    "rounding": "total",
}
SUPPLY: dict[str, Any] = {
    "connection_id": CONNECTION,
    "supplier": "AuroraMSP",
    "region": "EUROPE-ROME",
    "tariff": "FLAT",
    "regulated_tariff": "REGULATED",
    "from_day": "2019-03-01",
    "period": "month",
    "payment": "postpaid",
    "term_days": 14,
    "emergency_micro": 0,
    "low_days": 3,
    "on_site": False,
}
RULES: dict[str, Any] = {
    "region": "EUROPE-ROME",
    "min_due_micro": 1_000_000,
    "reminder_days": 7,
    "final_days": 14,
    "warning_days": 7,
    "notice_days": 14,
    "prepaid_notice_days": 2,
    "grace_days": 7,
    "limit_w": 1000,
    "from_minute": 480,
    "to_minute": 840,
    "seasons": [{"from": "11-01", "to": "03-31"}],
}


MARCH = 743 * 100 * 200_000 // 1000 + 31 * 100_000
"""100 Wh in each hour of a March of 743 hours, at 0.20 a kWh, and 0.10 a day."""


def at(day: str, hour: int = 0, minute: int = 0) -> int:
    """An instant by Rome's wall clock."""
    moment = datetime.fromisoformat(day).replace(
        hour=hour, minute=minute, tzinfo=ZoneInfo("Europe/Rome")
    )
    return int(moment.timestamp())


class BillingWorld:
    """Calls that tests make again and again."""

    def __init__(self, *, agree: bool = True, **change: Any) -> None:
        self.world: World = energy_world(interval_s=HOUR_S)
        self.world.now = START
        self.meter = TestMeter()
        self.registers = [1_000_000, 0]
        self.submit(ADMIN, "metering:Configure", interval_s=HOUR_S)
        self.submit(
            OPERATOR,
            "metering:RegisterMeter",
            meter_id=self.meter.meter_id,
            connection_id=CONNECTION,
            utility="AuroraMSP",
            source_class="accredited",
            public_key=self.meter.public_key,
        )
        begin = START + 86_400
        self.submit(
            OPERATOR,
            "tariff:ProposeCalendar",
            terms={**rome(), "holidays": ["2019-06-05"]},
            effective_from=begin,
        )
        self.submit(BOREAL_OPERATOR, "tariff:ApproveCalendar", region="EUROPE-ROME", version=1)
        regulated = {**FLAT, "tariff": "REGULATED", "standing_micro_per_day": 0}
        for terms in (FLAT, regulated):
            self.submit(OPERATOR, "tariff:Propose", terms=terms, effective_from=begin)
            self.submit(BOREAL_OPERATOR, "tariff:Approve", tariff=terms["tariff"], version=1)
        self.submit(OPERATOR, "permit:ProposeRules", terms=RULES, effective_from=begin)
        self.submit(BOREAL_OPERATOR, "permit:ApproveRules", region="EUROPE-ROME", version=1)
        self.world.now = at("2019-03-01")
        if agree:
            self.submit(OPERATOR, "billing:AgreeSupply", supply={**SUPPLY, **change})

    def clone(self) -> BillingWorld:
        """The same channel, to go on from here without changing this one."""
        other = copy(self)
        other.world = World(copy(self.world.state), self.world.now, self.world.calls)
        for table in ("public", "private", "hashes"):
            setattr(other.world.state, table, dict(getattr(self.world.state, table)))
        return other

    def switch(self, supplier: str, day: str) -> None:
        """Let the home have switched its supplier, from the beginning of a local day on."""
        key = ("energy", f"role/{CONNECTION}/supplier")
        span = Span(supplier, at(day))
        self.world.state.public[key] = VersionedValue(
            canonical_json({"spans": [span]}), b"", Version(1, 0)
        )

    def submit(self, caller: Creator, function: str, **argument: Any) -> Any:
        return self.world.submit(caller, function, **argument)

    def evaluate(self, caller: Creator, function: str, **argument: Any) -> Any:
        return self.world.evaluate(caller, function, **argument)

    def read(
        self, from_day: str, to_day: str, import_wh: int, export_wh: int = 0, **other: str
    ) -> None:
        """Readings of each hour of some days."""
        starts = range(at(from_day), at(to_day), HOUR_S)
        now, self.world.now = self.world.now, max(self.world.now, at(to_day))
        readings = []
        for start in starts:
            self.registers = [self.registers[0] + import_wh, self.registers[1] + export_wh]
            readings.append(
                self.meter.reading(
                    start, import_wh, export_wh, *self.registers, interval_s=str(HOUR_S), **other
                )
            )
        for first in range(0, len(readings), 1000):
            found = self.submit(
                OPERATOR,
                "metering:SubmitReadings",
                utility="AuroraMSP",
                transient={
                    "readings": json.dumps({"readings": readings[first : first + 1000]}).encode()
                },
            )
            assert not found["refused"], found["refused"][:2]
        self.world.now = now

    def compute(self, from_day: str, to_day: str, run: int = 1) -> Any:
        return self.submit(
            OPERATOR,
            "bill:Compute",
            connection_id=CONNECTION,
            from_day=from_day,
            to_day=to_day,
            run=run,
        )

    def bill(self, from_day: str, to_day: str, run: int = 1) -> Any:
        """Compute and post."""
        self.world.now = max(self.world.now, at(to_day, 6))
        statement = self.compute(from_day, to_day, run)
        return self.submit(OPERATOR, "billing:Post", statement=statement)

    def deposit(self, amount: int, reference: str = "BANK-1") -> None:
        """Give the home money to spend, in shard 0."""
        self.submit(
            OPERATOR,
            "wallet:Deposit",
            account=CONNECTION,
            amount_micro=amount,
            bank_reference=reference,
        )
        entries = self.evaluate(HOME, "wallet:Incoming", account=CONNECTION)["entries"]
        self.submit(HOME, "wallet:Sweep", account=CONNECTION, entries=entries)

    def status(self) -> Any:
        return self.evaluate(HOME, "permit:Status", connection_id=CONNECTION)

    def account(self) -> Any:
        return self.evaluate(HOME, "billing:Account", connection_id=CONNECTION)

    def protect(self, kind: str = "none", until: int = 10**11) -> Any:
        mark = {
            "connection_id": CONNECTION,
            "kind": kind,
            "until": str(until),
            "salt": "ab" * 32,
        }
        return self.submit(
            OPERATOR,
            "protection:Declare",
            utility="AuroraMSP",
            transient={"protections": json.dumps({"protections": [mark]}).encode()},
        )


@cache
def _march(payment: str) -> BillingWorld:
    found = BillingWorld(payment=payment)
    found.read("2019-03-01", "2019-04-01", 100)
    found.bill("2019-03-01", "2019-04-01")
    return found


def billed_march(payment: str = "postpaid") -> BillingWorld:
    """A connection with its bill of March, made once."""
    return _march(payment).clone()
