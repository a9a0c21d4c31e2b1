"""Neighbours who trade with one another: orders in call auctions, and bills that are paid.

A home forecasts its next intervals from what it measures, offers what it will export and bids for
what it will import, at prices between what its supplier pays and asks. The books are closed,
cleared and settled by the utilities' agents, not here.
"""

from __future__ import annotations

import asyncio
import copy
import random
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from consortium.node.agreements import PRODUCT, product
from consortium.node.network import Network
from demo.homes import Home, Neighbourhood
from gridledger_client import GatewayClient, GridLedgerError, TransactionRefused

TICK_MICRO: Final = 100
OFFER_MICRO: Final = (70_000, 150_000)
"""Between what suppliers pay and what neighbours find cheap."""
BID_MICRO: Final = (130_000, 260_000)
"""Fees included, below any tariff."""
LEAST_ORDER_WH: Final = 2
CAUTION_PER_MILLE: Final = 850
"""Of the forecast: who delivers less than it sold pays for the rest."""
BOOK_EVERY_S: Final = 10.0
"""Real seconds from one book to the next at least, however fast the channel's clock runs."""
SPREAD: Final = 0.4
"""Of the time between two books, in which homes place their orders."""
FORECAST_STEP_S: Final = 300
AT_ONCE: Final = 4
PAY_EVERY_S: Final = 45.0


@dataclass(frozen=True, slots=True)
class Order:
    """What a home wants to trade in one interval."""

    side: str
    energy_wh: int
    price_micro_per_kwh: int


def order(home: Home, start: int, interval_s: int, dice: random.Random) -> Order | None:
    """A home's order for an interval by its forecast; None where it would be too small."""
    if any(command.until > start for command in home.commands):
        return None  # its battery is sold to a supplier then
    import_wh, export_wh = forecast(home, start, interval_s)
    if export_wh >= import_wh:
        side, expected, prices = "offer", export_wh, OFFER_MICRO
        most = home.spec.max_export_w
    else:
        side, expected, prices = "bid", import_wh, BID_MICRO
        most = home.spec.max_import_w
    energy_wh = min(expected * CAUTION_PER_MILLE // 1000, most * interval_s // 3600)
    if energy_wh < LEAST_ORDER_WH:
        return None
    price = dice.randint(*prices)
    return Order(side, energy_wh, price - price % TICK_MICRO)


def forecast(home: Home, start: int, interval_s: int) -> tuple[int, int]:
    """What a home will import and export in an interval, Wh, if nothing is told to its battery."""
    ahead = copy.copy(home)
    ahead.flows, ahead.commands = copy.copy(home.flows), list(home.commands)
    before = ahead.registers()
    for until in (start, start + interval_s):
        before = ahead.registers()
        while ahead.time < until:
            ahead.step(min(until, ahead.time + FORECAST_STEP_S))
    after = ahead.registers()
    return after.import_wh - before.import_wh, after.export_wh - before.export_wh


class Neighbours:
    """Homes that trade with one another, each under its own identity."""

    def __init__(
        self,
        network: Network,
        neighbourhood: Neighbourhood,
        clients: Mapping[str, GatewayClient],
        now: Callable[[], int],
        on_trouble: Callable[[str], None],
        *,
        seed: int | None = None,
    ) -> None:
        """``clients`` are by connection id, ``now`` tells the channel's time."""
        self._neighbourhood = neighbourhood
        self._clients = clients
        self._now = now
        self._on_trouble = on_trouble
        self._rate = network.replay.rate if network.replay else 1
        self._gate_s: int = product(network)["gate_closure_s"]
        self._interval_s = network.interval_s
        every = -(-int(BOOK_EVERY_S * self._rate) // self._interval_s)
        self._step_s = max(1, every) * self._interval_s
        self._dice = random.Random(seed)  # noqa: S311 - who bids how much is no secret
        self._limit = asyncio.Semaphore(AT_ONCE)

    def next_book(self, now: int) -> int:
        """The interval whose orders are placed from ``now`` on: there is time until its gate."""
        return -(-(now + self._gate_s + self._step_s // 2) // self._step_s) * self._step_s

    async def trade(self) -> None:
        """Places orders book by book until cancelled."""
        await asyncio.gather(*(self.sweep(name) for name in self._clients))
        last = 0
        while True:
            start = self.next_book(self._now())
            if start > last:
                last = start
                await self.place_all(start)
            # Until the time for this book's orders is over.
            left = start - self._gate_s - self._step_s // 2 - self._now()
            await asyncio.sleep(max(0.2, left / self._rate))

    async def place_all(self, start: int) -> None:
        """Places every home's order for one interval, spread over some time."""
        spread_s = SPREAD * self._step_s / self._rate

        async def one(home: Home, client: GatewayClient) -> None:
            await asyncio.sleep(self._dice.uniform(0, spread_s))
            wanted = order(home, start, self._interval_s, self._dice)
            if wanted is not None:
                async with self._limit:
                    await self.place(client, home.spec.connection_id, start, wanted)

        await asyncio.gather(
            *(
                one(home, self._clients[home.spec.connection_id])
                for home in self._neighbourhood.homes
                if home.spec.connection_id in self._clients
            )
        )

    async def place(self, client: GatewayClient, name: str, start: int, wanted: Order) -> None:
        """Places an order; one that comes too late, or that a home can't carry, is left out."""
        try:
            await client.submit(
                "energy",
                "book:Place",
                {
                    "order_id": f"n-{start}",
                    "connection_id": name,
                    "product": PRODUCT,
                    "interval_start": start,
                    "side": wanted.side,
                    "price_micro_per_kwh": wanted.price_micro_per_kwh,
                    "energy_wh": wanted.energy_wh,
                },
            )
        except TransactionRefused as error:
            if error.status not in (404, 409):  # no product yet; closed, or no money: see to that
                self._on_trouble(f"{name} could not place an order: {error}")
            await self.sweep(name)
        except GridLedgerError as error:
            self._on_trouble(f"{name} could not place an order: {error}")

    async def sweep(self, name: str) -> None:
        """Makes what came into a home's account available to it."""
        client = self._clients[name]
        try:
            incoming = await client.evaluate("energy", "wallet:Incoming", {"account": name})
            if incoming["entries"]:
                await client.submit(
                    "energy", "wallet:Sweep", {"account": name, "entries": incoming["entries"]}
                )
        except GridLedgerError as error:
            self._on_trouble(f"the account of {name} waits: {error}")

    async def pay_bills(self) -> None:
        """Pays what is billed, now and then, until cancelled."""
        while True:
            await asyncio.sleep(PAY_EVERY_S)
            for name, client in self._clients.items():
                # Who has too little in its account pays later; that is what the term is for.
                with suppress(GridLedgerError):
                    account = await client.evaluate(
                        "energy", "billing:Account", {"connection_id": name}
                    )
                    if int(account["open_micro"]):
                        await self.sweep(name)
                        await client.submit(
                            "energy",
                            "billing:Pay",
                            {
                                "connection_id": name,
                                "amount_micro": account["open_micro"],
                                "request_id": f"DEMO-{secrets.token_hex(8).upper()}",
                            },
                        )
