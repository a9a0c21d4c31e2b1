"""The market's other people: suppliers who publish rates, homes that sell now and then.

Prices are a formula over a published series: the day's mean Swiss day-ahead price of 2019, plus
what each supplier adds. Each day another supplier pays best.
"""

from __future__ import annotations

import asyncio
import csv
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Final

from demo.files import write_atomically
from demo.homes import DATA, Home, HomesError, Mode, Neighbourhood
from gridledger_client import (
    Credentials,
    GatewayClient,
    GridLedgerError,
    Identity,
    TransactionRefused,
    enroll,
)

MICRO_PER_CENT_PER_MWH: Final = 10
"""A euro cent per MWh is ten micro-euros per kWh."""

PAY_MORE_MICRO: Final = (78_000, 86_000, 81_000)
ASK_MORE_MICRO: Final = (182_000, 196_000, 188_000)
LEAST_PRICE_MICRO: Final = 20_000

INITIAL_SUPPLIER_DEPOSIT_MICRO: Final = 5_000_000_000
INITIAL_HOME_DEPOSIT_MICRO: Final = 25_000_000

SALE_EVERY_S: Final = (20.0, 50.0)
"""Real seconds from one home's sale to the next home's, at random between these."""
LEAST_SALE_WH: Final = 50
CONFLICT: Final = 409
"""Status of a contract's refusal for what stands on the ledger already."""
LEAD_S: Final = 10
"""Real seconds that a quote and its authorisation may take before the window begins."""


@cache
def day_ahead_micro_per_kwh(folder: Path = DATA) -> Mapping[str, int]:
    """The mean price by ``MM-DD``."""
    with (folder / "smard_dayahead_ch_2019_daily.csv").open(newline="", encoding="utf-8") as file:
        return {
            row["day_utc"][5:]: int(row["mean_eurocent_per_mwh"]) * MICRO_PER_CENT_PER_MWH
            for row in csv.DictReader(file)
        }


def rates(day: str, supplier: int) -> dict[str, int]:
    """What a supplier, by its number, pays (``buy``) and asks (``sell``) for a kWh on a day.

    Micro-euros per kWh; the day is ``YYYY-MM-DD``.
    """
    series = day_ahead_micro_per_kwh()
    market = series.get(day[5:], series["02-28"])  # 2019 had no 29 February
    turn = (supplier + datetime.fromisoformat(day).toordinal()) % len(PAY_MORE_MICRO)
    return {
        "buy": max(LEAST_PRICE_MICRO, market + PAY_MORE_MICRO[turn]),
        "sell": max(LEAST_PRICE_MICRO, market) + ASK_MORE_MICRO[turn],
    }


def days(channel_time: int) -> tuple[str, str]:
    """The channel's day at a channel time, and the next one."""
    today = datetime.fromtimestamp(channel_time, UTC).date()
    return str(today), str(today + timedelta(days=1))


@dataclass(frozen=True, slots=True)
class Supplier:
    """One utility's trading desk."""

    number: int
    msp_id: str
    client: GatewayClient

    async def open_accounts(self, connection_ids: Sequence[str]) -> None:
        """Deposits the first money, once: a bank reference counts once."""
        name = self.msp_id.removesuffix("MSP").upper()
        deposits = {f"SUPPLIER-{name}": INITIAL_SUPPLIER_DEPOSIT_MICRO} | dict.fromkeys(
            connection_ids, INITIAL_HOME_DEPOSIT_MICRO
        )
        await asyncio.gather(
            *(
                self.client.submit(
                    "energy",
                    "wallet:Deposit",
                    {
                        "account": account,
                        "amount_micro": amount_micro,
                        "bank_reference": f"OPENING-{account}",
                    },
                )
                for account, amount_micro in deposits.items()
            )
        )

    async def publish(self, day: str) -> None:
        """Publishes the day's rates; the same again changes nothing."""
        for kind, price in rates(day, self.number).items():
            await self.client.submit(
                "energy",
                "market:PublishRate",
                {
                    "supplier": self.msp_id,
                    "day": day,
                    "kind": kind,
                    "price_micro_per_kwh": price,
                },
            )

    async def publish_deviations(self, day: str) -> None:
        """Publishes what a kWh costs that was sold and not delivered, or bought and not taken."""
        price = rates(day, self.number)
        await self.client.submit(
            "energy",
            "settlement:PublishPrices",
            {
                "day": day,
                "shortfall_price": price["sell"] * 13 // 10,
                "surplus_price": price["buy"] // 2,
            },
        )


async def publish_rates(
    suppliers: Sequence[Supplier], now: Callable[[], int], on_trouble: Callable[[str], None]
) -> None:
    """Publishes today's and tomorrow's rates as days come, until cancelled.

    And tomorrow's prices of deviations, which are published before the day or not at all.
    """
    published: set[str] = set()
    while True:
        today, tomorrow = days(now())
        for day in (today, tomorrow):
            if day not in published:
                try:
                    await asyncio.gather(*(supplier.publish(day) for supplier in suppliers))
                    if day == tomorrow:
                        await asyncio.gather(
                            *(supplier.publish_deviations(day) for supplier in suppliers)
                        )
                except GridLedgerError as error:
                    on_trouble(f"the rates of {day} wait: {error}")
                else:
                    published.add(day)
        await asyncio.sleep(10)


async def enrolled_identity(
    folder: Path,
    connection_id: str,
    msp_id: str,
    ca_url: str,
    trust_pem: bytes,
    register: Callable[[str], str],
) -> Identity:
    """A home's market identity: enrolled at its utility once, then kept on disk.

    ``register`` lets an enrolment id in and returns its secret. An enrolment that broke off is
    begun anew under another id; what counts is the connection in the certificate.
    """
    certificate, key = folder / f"{connection_id}.cert.pem", folder / f"{connection_id}.key.pem"
    if not certificate.exists():
        enrollment_id = f"{connection_id.lower()}-{secrets.token_hex(3)}"
        secret = await asyncio.to_thread(register, enrollment_id)
        credentials: Credentials = await enroll(ca_url, enrollment_id, secret, trust_pem)
        await asyncio.to_thread(write_atomically, key, credentials.key_pem, 0o600)
        await asyncio.to_thread(write_atomically, certificate, credentials.certificate_pem)
    return Identity(msp_id, certificate.read_bytes(), key.read_bytes())


@dataclass(frozen=True, slots=True)
class Offer:
    """What a home wants to sell: energy in a window of channel time."""

    energy_wh: int
    window_start: int
    window_end: int


def offer(
    home: Home, interval_s: int, dice: random.Random, *, lead_s: int = LEAD_S
) -> Offer | None:
    """What a home can sell just now, from its battery or its surplus; None is often the answer.

    It begins ``lead_s`` of channel time from now or later, and lies within one UTC day, since
    rates are daily.
    """
    start = -(-(home.time + lead_s) // interval_s) * interval_s
    end = start + dice.randint(2, 6) * interval_s
    if start // 86_400 != (end - 1) // 86_400:
        return None
    if any(command.until > home.time for command in home.commands):
        return None  # one sale at a time
    hours = (end - start) / 3600
    from_battery = min(home.available_wh // 2, int(home.spec.battery_power_w * hours * 0.8))
    from_surplus = int(max(0, -home.power.grid_w) * hours * 0.8)
    energy_wh = int(max(from_battery, from_surplus) * dice.uniform(0.5, 1))
    energy_wh = min(energy_wh, int(home.spec.max_export_w * hours * 0.8))
    return Offer(energy_wh, start, end) if energy_wh >= LEAST_SALE_WH else None


class Sellers:
    """Homes that sell by themselves, each under its own identity."""

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        clients: Mapping[str, GatewayClient],
        on_trouble: Callable[[str], None],
        *,
        rate: int = 1,
        seed: int | None = None,
    ) -> None:
        """``clients`` are by connection id; only these homes sell. The clock runs at ``rate``."""
        self._neighbourhood = neighbourhood
        self._clients = clients
        self._on_trouble = on_trouble
        self._lead_s = LEAD_S * rate
        self._dice = random.Random(seed)  # noqa: S311 - who sells when is no secret

    async def run(self) -> None:
        """Sells now and then until cancelled."""
        while True:
            await asyncio.sleep(self._dice.uniform(*SALE_EVERY_S))
            homes = [
                home
                for home in self._neighbourhood.homes
                if home.spec.connection_id in self._clients
            ]
            self._dice.shuffle(homes)
            for home in homes:
                wanted = offer(
                    home, self._neighbourhood.interval_s, self._dice, lead_s=self._lead_s
                )
                if wanted is not None:
                    try:
                        await self.sell(home, wanted)
                    except (GridLedgerError, HomesError) as error:
                        if isinstance(error, TransactionRefused) and error.status == CONFLICT:
                            break  # it is promised to neighbours meanwhile
                        self._on_trouble(f"{home.spec.connection_id} could not sell: {error}")
                    break

    async def sell(self, home: Home, wanted: Offer) -> None:
        """Asks for a quote, authorises it exactly, and tells the battery to deliver."""
        client = self._clients[home.spec.connection_id]
        answer = await client.evaluate(
            "energy",
            "market:Quote",
            {
                "connection_id": home.spec.connection_id,
                "energy_wh": wanted.energy_wh,
                "window_start": wanted.window_start,
                "window_end": wanted.window_end,
            },
        )
        await client.submit(
            "energy",
            "market:Authorise",
            {"request_id": f"DEMO-{secrets.token_hex(8).upper()}", "quote": answer["quote"]},
        )
        if home.spec.battery_power_w:
            hours = (wanted.window_end - wanted.window_start) / 3600
            power_w = min(home.spec.battery_power_w, round(wanted.energy_wh / hours))
            home.command(Mode.DISCHARGE, power_w, wanted.window_end, wanted.window_start)
