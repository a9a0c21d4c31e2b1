"""A month of 2019 through the whole ledger: readings, market, settlement, bills, certificates.

What flows is made of measured homes and prices (`demo.replay_data`), what it becomes is decided by
the contracts, on the ledgers of three utilities (`demo.replay_channel`). Each day of the replay:

* at noon of the day before, rates and the day-ahead prices are published, and homes place orders
  for some quarter hours of the day, by a forecast that is up to 15 % off; at two the books close
  and clear, in three zones and at the hub;
* at nine homes with panels sell a part of their afternoon to the supplier that pays best;
* the morning after, each utility submits its meters' signed readings, settles the day in private
  and posts it, and closes its transformer's balance.

After the month bills are computed and posted, certificates issued, and every day settled finally.
Then all sums are checked against the series that went in. `script/run --replay` calls it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from demo.homes import QUARTER_S
from demo.replay_channel import CHANNEL, UTILITIES, Call, ReplayChannel, ReplayError
from demo.replay_data import (
    DAY_S,
    MAX_HOMES,
    MONTHS,
    NO_LOAD_W,
    PLANT_W,
    REGION,
    Home,
    LocalDay,
    Month,
    calendar_terms,
    read_month,
    utc_days,
)
from gridledger_client import MeterKey, Reading, generate_key_pem
from gridledger_client.readings import BATCH_LIMIT, batch_transient

HOUR_S: Final = 3600
RATE: Final = QUARTER_S
"""A second of transaction time is a quarter hour of the channel's: a month is three quarters of an
hour, and no timestamp lies far from the day on which the replay runs."""
LEAD_S: Final = 4 * DAY_S
"""How long before the first day the channel begins."""
AUCTIONS: Final = 8
MAX_AUCTIONS: Final = 16
"""Orders of one home for so many quarter hours stand in a block, each out of a wallet shard."""
FIRST_AUCTION_HOUR: Final = 11
PRODUCT: Final = "LOCAL"
ZONES: Final = {"Aurora": "NORTH", "Boreal": "EAST", "Cielo": "SOUTH"}
HOMES_FOR_SUMS: Final = 10
"""Fewer homes behind a transformer, and its balance isn't public."""
LEAST_EXPORT_W: Final = 1_000
REGISTER_WH: Final = 1_000_000
GRID_FEE: Final = 5_000
SHARD_MICRO: Final = 40_000_000
PLANT_SHARD_MICRO: Final = 400_000_000
VAT_PPM: Final = 190_000
FINAL_DAYS: Final = 21
"""After the last day: ten working days and the holidays among them."""
DEFAULT_FOLDER: Final = Path(".gridledger/replay")

BANDS: Final = (
    {"name": "NIGHT", "days": "EVERY", "from_minute": 1320, "to_minute": 360, "price": 190_000},
    {"name": "DAY", "days": "EVERY", "from_minute": 0, "to_minute": 1440, "price": 260_000},
)


@dataclass(frozen=True, slots=True)
class Check:
    """A sum that must be right."""

    name: str
    detail: str
    holds: bool


@dataclass(slots=True)
class Outcome:
    """What a report is made of; plain values, written beside it as JSON."""

    month: str
    days: list[dict[str, Any]] = field(default_factory=list)
    """Of each day: energies in Wh, money in micro-units, mean prices."""
    hours: list[dict[str, int]] = field(default_factory=list)
    """Of each hour: import and export of the homes, the plant's export, the price."""
    auctions: list[dict[str, Any]] = field(default_factory=list)
    bills: list[dict[str, Any]] = field(default_factory=list)
    statement: dict[str, Any] = field(default_factory=dict)
    certificates: dict[str, Any] = field(default_factory=dict)
    balances: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every sum is right."""
        return bool(self.checks) and all(one.holds for one in self.checks)


def _tell(_: str) -> None:
    pass


def _draw(*parts: object) -> int:
    """A number from 0 to 999 that is the same in every run."""
    text = "/".join(str(one) for one in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) % 1000


def _forecast(home: Home, start: int, energy_wh: int) -> int:
    """An energy as its home expects it: up to 15 % off, the same in every run."""
    return energy_wh * (850 + 300 * _draw(home.connection_id, start) // 1000) // 1000


class Replay:
    """A month on its way through the ledger."""

    def __init__(
        self,
        channel: ReplayChannel,
        month: Month,
        *,
        auctions: int = AUCTIONS,
        final: bool = True,
        tell: Callable[[str], None] = _tell,
    ) -> None:
        """`auctions` quarter hours of each day are traded, from eleven on."""
        self.channel = channel
        self.month = month
        self.outcome = Outcome(month.name)
        self._auctions = auctions
        self._final = final
        self._tell = tell
        self._keys = {
            home.meter_id: MeterKey(generate_key_pem(), secrets.token_bytes(32))
            for home in month.connections
        }
        self._feeders = {
            utility: MeterKey(generate_key_pem(), secrets.token_bytes(32)) for utility in UTILITIES
        }
        self._owners = {
            home.connection_id: channel.home(home.utility, home.connection_id)
            for home in month.connections
        }
        self._balanced: dict[str, int] = {}
        """Where each transformer's last balance ended."""
        self._published: list[str] = []
        """UTC days whose day-ahead prices are on the ledger."""
        self._registers: dict[str, tuple[int, int]] = {}
        self._sums_public = all(
            sum(home.utility == utility for home in month.homes) >= HOMES_FOR_SUMS
            for utility in UTILITIES
        )

    @property
    def _last_run(self) -> str:
        return "final" if self._final else "provisional"

    def run(self) -> Outcome:
        """All of it; raises ReplayError where a call is refused."""
        began, cpu = time.monotonic(), time.process_time()
        self._set_up()
        self._tell(f"{len(self.month.connections)} connections are registered")
        month = self.month
        self._day_ahead(month.days[0])
        for number, day in enumerate(month.days):
            self._sell_to_suppliers(day)
            if number + 1 < len(month.days):
                self._day_ahead(month.days[number + 1])
            self._day_after(day)
            spent = time.monotonic() - began
            self._tell(
                f"{day.day}: {len(day.intervals)} intervals settled; {number + 1} of "
                f"{len(month.days)} days, {self.channel.transactions:,} transactions in "
                f"{self.channel.height:,} blocks, {spent:.0f} s"
            )
        self._certify()
        self._bill()
        self._tell("bills and certificates are posted")
        if self._final:
            self._settle_finally()
            self._tell("all days are final")
        self._collect()
        self.check()
        self.outcome.facts.update(
            transactions=self.channel.transactions,
            conflicts=self.channel.conflicts,
            blocks=self.channel.height,
            seconds=round(time.monotonic() - began, 1),
            cpu_seconds=round(time.process_time() - cpu, 1),
            homes=len(month.homes),
            with_panels=sum(home.peak_w > 0 for home in month.homes),
            peak_w=sum(home.peak_w for home in month.homes),
            first=month.days[0].day,
            last=month.days[-1].day,
            auctions=self._auctions,
            final=self._final,
        )
        return self.outcome

    # Before the month

    def _set_up(self) -> None:
        channel, admin = self.channel, self.channel.admin
        energy = {"interval_s": QUARTER_S, "replay": channel.replay}
        # Readings come once a day here.
        channel.submit(admin, "metering:Configure", **energy, late_after_s=2 * DAY_S)
        channel.submit(admin, "registry:Configure", **energy, grid_fee_micro_per_kwh=GRID_FEE)
        # Terms begin with a UTC day.
        since = (channel.now // DAY_S + 1) * DAY_S
        for propose, approve, terms, named in self._agreements():
            agreed = channel.submit(
                channel.operators[_utility_of(terms)], propose, terms=terms, effective_from=since
            )
            other = UTILITIES[1] if _utility_of(terms) != UTILITIES[1] else UTILITIES[2]
            channel.submit(channel.operators[other], approve, version=agreed["version"], **named)
        self._register()
        channel.now = since
        self._supply()

    def _agreements(self) -> list[tuple[str, str, dict[str, Any], dict[str, str]]]:
        found: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
            (
                "tariff:ProposeCalendar",
                "tariff:ApproveCalendar",
                calendar_terms(),
                {"region": REGION},
            ),
            ("book:ProposeProduct", "book:ApproveProduct", _product(), {"product": PRODUCT}),
        ]
        for utility in UTILITIES:
            supplier = f"{utility}MSP"
            found.append(
                (
                    "settlement:ProposeTerms",
                    "settlement:ApproveTerms",
                    _settlement_terms(supplier),
                    {"supplier": supplier},
                )
            )
            found += [
                ("tariff:Propose", "tariff:Approve", terms, {"tariff": terms["tariff"]})
                for terms in tariffs_of(utility)
            ]
        return found

    def _register(self) -> None:
        channel = self.channel
        connections, meters = [], []
        for home in self.month.connections:
            operator = channel.operators[home.utility]
            limit = PLANT_W if home.is_plant else 30_000
            connections.append(
                Call(
                    operator,
                    "registry:RegisterConnection",
                    {
                        "connection_id": home.connection_id,
                        "utility": f"{home.utility}MSP",
                        "zone": ZONES[home.utility],
                        "max_export_w": max(home.peak_w, LEAST_EXPORT_W),
                        "max_import_w": limit,
                    },
                )
            )
            meters.append(
                self._meter(home.utility, home.meter_id, home.connection_id, limit, self._keys)
            )
        channel.submit_all(connections)
        transformers = []
        for utility in UTILITIES:
            transformers.append(
                Call(
                    channel.operators[utility],
                    "grid:RegisterTransformer",
                    {
                        "transformer": {
                            "transformer_id": f"T-{utility.upper()}",
                            "utility": f"{utility}MSP",
                            "zone": ZONES[utility],
                            "rated_va": 400_000,
                            "no_load_w": NO_LOAD_W,
                        }
                    },
                )
            )
            names = [one.connection_id for one in self.month.of(utility) if not one.is_plant]
            transformer = f"T-{utility.upper()}"
            channel.submit_all(transformers[-1:])
            channel.submit(
                channel.operators[utility],
                "grid:Connect",
                transformer_id=transformer,
                connections=names,
                **{"from": channel.now},
            )
            keys = {f"M-{transformer}": self._feeders[utility]}
            meters.append(self._meter(utility, f"M-{transformer}", transformer, 1_000_000, keys))
        channel.submit_all(meters)
        self._fund()
        plant = self.month.plant
        channel.submit(
            channel.operators[plant.utility],
            "certificate:RegisterPlant",
            plant={
                "plant_id": "SUN-1",
                "connection_id": plant.connection_id,
                "utility": f"{plant.utility}MSP",
                "source": "solar",
                "capacity_w": PLANT_W,
                "commissioned": "2015-05-01",
                "support": "none",
                "place": "invented",
            },
        )

    def _meter(
        self,
        utility: str,
        meter_id: str,
        connection_id: str,
        max_power_w: int,
        keys: Mapping[str, MeterKey],
    ) -> Call:
        return Call(
            self.channel.operators[utility],
            "metering:RegisterMeter",
            {
                "meter_id": meter_id,
                "connection_id": connection_id,
                "utility": f"{utility}MSP",
                "source_class": "accredited",
                "public_key": keys[meter_id].public_key_pem,
                "max_power_w": max_power_w,
            },
        )

    def _fund(self) -> None:
        """Money for orders, in as many shards as a day has auctions."""
        channel = self.channel
        deposits, sweeps = [], []
        for home in self.month.connections:
            amount = PLANT_SHARD_MICRO if home.is_plant else SHARD_MICRO
            deposits += [
                Call(
                    channel.operators[home.utility],
                    "wallet:Deposit",
                    {
                        "account": home.connection_id,
                        "amount_micro": amount,
                        "bank_reference": f"IN-{home.connection_id}-{shard}",
                    },
                )
                for shard in range(self._auctions)
            ]
        channel.submit_all(deposits)
        for home in self.month.connections:
            owner = self._owners[home.connection_id]
            found = channel.evaluate(owner, "wallet:Incoming", account=home.connection_id)
            sweeps += [
                Call(
                    owner,
                    "wallet:Sweep",
                    {"account": home.connection_id, "entries": [entry], "shard": shard},
                )
                for shard, entry in enumerate(found["entries"])
            ]
        channel.submit_all(sweeps)

    def _supply(self) -> None:
        self.channel.submit_all(
            [
                Call(
                    self.channel.operators[home.utility],
                    "billing:AgreeSupply",
                    {"supply": self._supply_of(home)},
                )
                for home in self.month.connections
            ]
        )

    def _supply_of(self, home: Home) -> dict[str, Any]:
        return {
            "connection_id": home.connection_id,
            "supplier": f"{home.utility}MSP",
            "region": REGION,
            "tariff": tariff_of(home),
            "regulated_tariff": None if home.is_plant else f"FLAT-{home.utility.upper()}",
            "from_day": self.month.days[0].day,
            "period": "month",
            "payment": "postpaid",
            "term_days": 14,
            "emergency_micro": 0,
            "low_days": 3,
            "on_site": False,
        }

    # A day

    def _day_ahead(self, day: LocalDay) -> None:
        """At noon of the day before: prices, rates, orders; at two the books clear."""
        channel = self.channel
        channel.now = max(channel.now, day.start - 12 * HOUR_S)
        publisher = channel.operators[UTILITIES[0]]
        calls = []
        for utc_day in utc_days([day]):
            if utc_day in self._published:
                continue
            self._published.append(utc_day)
            start = _utc_start(utc_day)
            prices = [self.month.price(start + at * QUARTER_S) for at in range(DAY_S // QUARTER_S)]
            calls.append(
                Call(
                    publisher,
                    "tariff:PublishIndex",
                    {"index": "DAY-AHEAD", "day": utc_day, "prices": prices},
                )
            )
        noon = day.at(12)
        mean = sum(self.month.price(noon + hour * HOUR_S) for hour in range(6)) // 6
        for number, utility in enumerate(UTILITIES):
            own = mean * (900 + _draw("rate", utility, day.day) % 100) // 1000
            for kind, price in (("buy", max(20_000, own)), ("sell", max(60_000, own + 90_000))):
                calls.append(
                    Call(
                        channel.operators[utility],
                        "market:PublishRate",
                        {
                            "supplier": f"{utility}MSP",
                            "day": day.day,
                            "kind": kind,
                            "price_micro_per_kwh": price + number,
                        },
                    )
                )
        starts = [day.at(FIRST_AUCTION_HOUR) + at * QUARTER_S for at in range(self._auctions)]
        for shard, start in enumerate(starts):
            calls += [
                order
                for home in self.month.connections
                if (order := self._order(home, start, shard)) is not None
            ]
        channel.submit_all(calls)
        if not starts:
            return
        channel.now = max(channel.now, day.start - 10 * HOUR_S)
        operator = channel.operators[UTILITIES[0]]
        books = [{"product": PRODUCT, "interval_start": start} for start in starts]
        pages = [{**book, "zone": zone, "page": 0} for book in books for zone in ZONES.values()]
        for function, arguments in (
            ("book:Close", books),
            ("book:Aggregate", pages),
            ("book:Clear", books),
            ("book:Apply", pages),
        ):
            answers = channel.submit_all([Call(operator, function, one) for one in arguments])
            if function == "book:Clear":
                self._note_auctions(answers)

    def _order(self, home: Home, start: int, shard: int) -> Call | None:
        """What a home places for a quarter hour of tomorrow."""
        drawn = _draw("order", home.connection_id, start)
        if home.is_plant:
            side, energy = "offer", _forecast(home, start, home.export_wh[start]) // 20
            price = self.month.price(start)
        elif home.export_wh[start] > home.import_wh[start]:
            # No more than the connection can deliver.
            most = max(home.peak_w, LEAST_EXPORT_W) * QUARTER_S // HOUR_S
            side, energy = "offer", min(most, _forecast(home, start, home.export_wh[start]))
            price = 40_000 + 60 * drawn
        else:
            side, energy = "bid", _forecast(home, start, home.import_wh[start])
            price = 120_000 + 140 * drawn
        if energy < 50:
            return None
        return Call(
            self._owners[home.connection_id],
            "book:Place",
            {
                "order_id": f"o-{start}",
                "connection_id": home.connection_id,
                "product": PRODUCT,
                "interval_start": start,
                "side": side,
                "price_micro_per_kwh": price,
                "energy_wh": energy,
                "shard": shard,
            },
        )

    def _note_auctions(self, results: Sequence[Mapping[str, Any]]) -> None:
        for result in results:
            parts = [zone["local"] for zone in result["zones"]]
            hub = result["hub"]
            self.outcome.auctions.append(
                {
                    "interval_start": int(result["interval_start"]),
                    "void": result["void"],
                    "local_wh": sum(int(part["volume_wh"]) for part in parts),
                    "hub_wh": 0 if hub is None else int(hub["volume_wh"]),
                    "prices": [None if p["price"] is None else int(p["price"]) for p in parts],
                    "hub_price": None if hub is None or hub["price"] is None else int(hub["price"]),
                }
            )

    def _sell_to_suppliers(self, day: LocalDay) -> None:
        """At nine: half of what is expected from two to four, to whoever pays best."""
        channel = self.channel
        channel.now = day.at(9)
        start, end = day.at(14), day.at(16)
        calls = []
        for home in self.month.homes:
            expected = sum(
                _forecast(home, at, home.export_wh[at]) for at in range(start, end, QUARTER_S)
            )
            energy = expected // 2
            if energy < 200:
                continue
            owner = self._owners[home.connection_id]
            quote = channel.evaluate(
                owner,
                "market:Quote",
                connection_id=home.connection_id,
                energy_wh=energy,
                window_start=start,
                window_end=end,
                max_power_w=energy * HOUR_S // (end - start) + 4,
            )["quote"]
            calls.append(
                Call(owner, "market:Authorise", {"request_id": f"pm-{day.day}", "quote": quote})
            )
        channel.submit_all(calls)

    def _day_after(self, day: LocalDay) -> None:
        """At six: readings, settlement, the transformers' balance."""
        channel = self.channel
        channel.now = max(channel.now, day.end + 6 * HOUR_S)
        if not self._registers:
            self._read([self.month.start - QUARTER_S], baseline=True)
        self._read(day.intervals)
        self._settle(day, "provisional")
        if self._sums_public:
            self._close_balance(day)
        self._note_day(day)

    def _read(self, starts: Sequence[int], *, baseline: bool = False) -> None:
        """Sign and submit what all meters counted in some intervals."""
        calls = []
        for utility in UTILITIES:
            rows: list[dict[str, str]] = []
            for home in self.month.of(utility):
                key = self._keys[home.meter_id]
                for start in starts:
                    taken = 0 if baseline else home.import_wh[start]
                    given = 0 if baseline else home.export_wh[start]
                    rows.append(self._reading(key, home.meter_id, start, taken, given))
            feeder = f"M-T-{utility.upper()}"
            for start in starts:
                net = 0 if baseline else self.month.delivered_wh(utility, start)
                rows.append(
                    self._reading(self._feeders[utility], feeder, start, max(0, net), max(0, -net))
                )
            calls += [
                Call(
                    self.channel.operators[utility],
                    "metering:SubmitReadings",
                    {"utility": f"{utility}MSP"},
                    batch_transient(rows[first : first + BATCH_LIMIT]),
                    utility,
                )
                for first in range(0, len(rows), BATCH_LIMIT)
            ]
        # A batch that goes on in the next one is held against it: one after the other.
        for call in calls:
            (answer,) = self.channel.submit_all([call])
            if answer["refused"]:
                raise ReplayError(f"a reading was refused: {answer['refused'][0]}")

    def _reading(
        self, key: MeterKey, meter_id: str, start: int, import_wh: int, export_wh: int
    ) -> dict[str, str]:
        before = self._registers.get(meter_id, (REGISTER_WH, REGISTER_WH))
        registers = before[0] + import_wh, before[1] + export_wh
        self._registers[meter_id] = registers
        reading = Reading(meter_id, start, QUARTER_S, import_wh, export_wh, *registers)
        return dict(key.sign(reading, CHANNEL).fields)

    def _settle(self, day: LocalDay, run: str) -> None:
        """Commit a day in private and post its sums, by all utilities."""
        channel = self.channel
        calls, posts = [], []
        for utility in UTILITIES:
            names = [home.connection_id for home in self.month.of(utility)]
            calls.append(
                Call(
                    channel.operators[utility],
                    "daybook:Commit",
                    {
                        "utility": f"{utility}MSP",
                        "day": day.day,
                        "run": run,
                        "connections": names,
                    },
                    endorser=utility,
                )
            )
        channel.submit_all(calls)
        for utility in UTILITIES:
            summaries = [self._record(home, day, run)["summary"] for home in self.month.of(utility)]
            posts.append(
                Call(
                    channel.operators[utility],
                    "settlement:Post",
                    {
                        "utility": f"{utility}MSP",
                        "day": day.day,
                        "run": run,
                        "summaries": summaries,
                    },
                )
            )
        channel.submit_all(posts)

    def _record(self, home: Home, day: LocalDay, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.channel.evaluate(
            self.channel.operators[home.utility],
            "daybook:Record",
            at=home.utility,
            utility=f"{home.utility}MSP",
            day=day.day,
            run=run,
            connection_id=home.connection_id,
        )
        return found

    def _close_balance(self, day: LocalDay) -> None:
        """Each transformer's balance since the last one, where the homes' sum hides each of them.

        On a sunny day one home's export may stand out; then the period goes on into the next day.
        """
        channel = self.channel
        arguments = {
            utility: {
                "node_id": f"T-{utility.upper()}",
                "utility": f"{utility}MSP",
                "from": self._balanced.get(utility, self.month.start),
                "to": day.end,
            }
            for utility in UTILITIES
        }
        answers = {}
        for function in ("feeder:SumHomes", "feeder:Measure"):
            calls = [
                Call(channel.operators[utility], function, argument, endorser=utility)
                for utility, argument in arguments.items()
            ]
            answers[function] = channel.submit_all(calls)
        for utility, answer in zip(UTILITIES, answers["feeder:SumHomes"], strict=True):
            if not answer["public"]:
                continue
            node, operator = f"T-{utility.upper()}", channel.operators[utility]
            asked = {"node_id": node, "utility": f"{utility}MSP", "to": day.end}
            share = channel.evaluate(operator, "feeder:Share", at=utility, **asked)
            measured = channel.evaluate(operator, "feeder:Delivered", at=utility, **asked)
            channel.submit(operator, "balance:Report", share=share)
            closed = channel.submit(operator, "balance:Close", delivered=measured)
            self.outcome.balances.append(
                {
                    "utility": utility,
                    "from": arguments[utility]["from"],
                    "to": day.end,
                    "loss_wh": int(closed["loss_wh"]),
                }
            )
            self._balanced[utility] = day.end

    def _note_day(self, day: LocalDay) -> None:
        homes = self.month.homes
        self.outcome.days.append(
            {
                "day": day.day,
                "intervals": len(day.intervals),
                "import_wh": sum(home.import_wh[at] for home in homes for at in day.intervals),
                "export_wh": sum(home.export_wh[at] for home in homes for at in day.intervals),
                "plant_wh": sum(self.month.plant.export_wh[at] for at in day.intervals),
                "delivered_wh": sum(
                    self.month.delivered_wh(utility, at)
                    for utility in UTILITIES
                    for at in day.intervals
                ),
            }
        )
        for hour in range(day.start, day.end, HOUR_S):
            span = range(hour, hour + HOUR_S, QUARTER_S)
            self.outcome.hours.append(
                {
                    "start": hour,
                    "import_wh": sum(home.import_wh[at] for home in homes for at in span),
                    "export_wh": sum(home.export_wh[at] for home in homes for at in span),
                    "plant_wh": sum(self.month.plant.export_wh[at] for at in span),
                    "price": self.month.price(hour),
                }
            )

    # After the month

    def _certify(self) -> None:
        """Issue the month's certificates; one is given to the supplier and claimed."""
        channel, plant = self.channel, self.month.plant
        year, number = (int(part) for part in self.month.name.split("-"))
        over = _utc_start(f"{year + number // 12:04d}-{number % 12 + 1:02d}-01")
        channel.now = max(channel.now, over + 6 * HOUR_S)
        export = sum(plant.export_wh.values())
        issue = channel.submit(
            channel.operators[plant.utility],
            "certificate:Issue",
            plant_id="SUN-1",
            month=self.month.name,
            generation_wh=export,
            export_wh=export,
        )
        found = {name: int(issue[name]) for name in ("export_wh", "issued", "carry_wh")}
        owner = self._owners[plant.connection_id]
        claimed = 0
        if found["issued"]:
            (batch,) = channel.evaluate(owner, "certificate:Holdings", owner=plant.connection_id)[
                "batches"
            ]
            supplier = f"SUPPLIER-{plant.utility.upper()}"
            claimed = (found["issued"] + 1) // 2
            given = channel.submit(
                owner,
                "certificate:Transfer",
                batch_id=batch["batch_id"],
                owner=plant.connection_id,
                to=supplier,
                count=claimed,
            )
            channel.submit(
                channel.operators[plant.utility],
                "certificate:Claim",
                batch_id=given["batch_id"],
                owner=supplier,
                count=claimed,
                claimed_for=f"homes of {plant.utility}, {self.month.name}",
            )
        kept = {"issued": 0, "claimed": 0}
        for account in (plant.connection_id, f"SUPPLIER-{plant.utility.upper()}"):
            for batch in channel.evaluate(owner, "certificate:Holdings", owner=account)["batches"]:
                kept[batch["state"]] += int(batch["count"])
        self.outcome.certificates = {**found, "claimed": claimed, "kept": kept}

    def _bill(self) -> None:
        """Compute and post all bills, and take the money that banks received for them."""
        channel, month = self.channel, self.month
        period = {"from_day": month.days[0].day, "to_day": month.to_day}
        statements = channel.submit_all(
            [
                Call(
                    channel.operators[home.utility],
                    "bill:Compute",
                    {"connection_id": home.connection_id, **period},
                    endorser=home.utility,
                )
                for home in month.connections
            ]
        )
        channel.submit_all(
            [
                Call(channel.operators[home.utility], "billing:Post", {"statement": statement})
                for home, statement in zip(month.connections, statements, strict=True)
            ]
        )
        channel.submit_all(
            [
                Call(
                    channel.operators[home.utility],
                    "billing:Receive",
                    {
                        "connection_id": home.connection_id,
                        "amount_micro": int(statement["total_micro"]),
                        "bank_reference": f"BILL-{home.connection_id}",
                    },
                )
                for home, statement in zip(month.connections, statements, strict=True)
                if int(statement["total_micro"]) > 0
            ]
        )
        for home, statement in zip(month.connections, statements, strict=True):
            record = channel.evaluate(
                self._owners[home.connection_id],
                "bill:Record",
                at=home.utility,
                connection_id=home.connection_id,
                from_day=month.days[0].day,
            )
            account = channel.evaluate(
                self._owners[home.connection_id],
                "billing:Account",
                connection_id=home.connection_id,
            )
            self.outcome.bills.append(
                {
                    "connection_id": home.connection_id,
                    "tariff": tariff_of(home),
                    "total_micro": int(statement["total_micro"]),
                    "regulated_micro": None
                    if record["regulated_micro"] is None
                    else int(record["regulated_micro"]),
                    "import_wh": int(record["import_wh"]),
                    "export_wh": int(record["export_wh"]),
                    "open_micro": int(account["open_micro"]),
                    "lines": [line for part in record["bills"] for line in part["lines"]],
                }
            )

    def _settle_finally(self) -> None:
        self.channel.now = self.month.end + FINAL_DAYS * DAY_S
        for day in self.month.days:
            self._settle(day, "final")
        self.channel.submit_all(
            [
                Call(
                    self.channel.operators[UTILITIES[0]],
                    "settlement:CloseMarket",
                    {"day": day.day},
                )
                for day in self.month.days
            ]
        )

    # What came out

    def _collect(self) -> None:
        """A home's statement: the one with panels whose bill is in the middle."""
        panels = {home.connection_id for home in self.month.homes if home.peak_w}
        bills = sorted(
            (one for one in self.outcome.bills if one["connection_id"] in panels),
            key=lambda one: int(one["total_micro"]),
        )
        bill = bills[len(bills) // 2]
        name = bill["connection_id"]
        home = next(one for one in self.month.homes if one.connection_id == name)
        owner = self._owners[name]
        net = self.channel.evaluate(
            owner,
            "settlement:Net",
            connection_id=name,
            from_day=self.month.days[0].day,
            to_day=self.month.to_day,
        )
        postings = self.channel.evaluate(owner, "wallet:Statement", account=name, limit=200)
        balance = self.channel.evaluate(owner, "wallet:Balance", account=name)
        middle = self.month.days[len(self.month.days) // 2]
        self.outcome.statement = {
            "connection_id": name,
            "house": home.column,
            "utility": home.utility,
            "peak_w": home.peak_w,
            "bill": bill,
            "net": net,
            "entries": postings["entries"][:12],
            "balance_micro": int(balance["balance_micro"]),
            "day": middle.day,
            "import_wh": [home.import_wh[at] for at in middle.intervals],
            "export_wh": [home.export_wh[at] for at in middle.intervals],
            "rows": self._record(home, middle, self._last_run)["opened"]["rows"],
        }

    def check(self) -> None:
        """Hold every sum on the ledger against another one, or against what went in."""
        self.outcome.checks.clear()
        self._check_money()
        self._check_energy()
        self._check_tokens()
        self._check_bills()
        self._check_opened()
        found = self.outcome.certificates
        self._note(
            "Certificates are the plant's export",
            found["issued"] * 1_000_000 + found["carry_wh"]
            == sum(self.month.plant.export_wh.values())
            and found["kept"]
            == {
                "issued": found["issued"] - found["claimed"],
                "claimed": found["claimed"],
            },
            f"{found['issued']} of 1 MWh, {found['carry_wh']:,} Wh carried on; "
            f"{found['claimed']} claimed",
        )
        closed = self.outcome.balances
        if closed:
            right = sum(one["loss_wh"] == self._lost(one) for one in closed)
            self._note(
                "Losses are what the transformers delivered beyond the homes",
                right == len(closed),
                f"{len(closed)} balances of days or longer, "
                f"{sum(one['loss_wh'] for one in closed):,} Wh",
            )

    def _note(self, name: str, holds: bool, detail: str) -> None:
        self.outcome.checks.append(Check(name, detail, holds))

    def _lost(self, balance: Mapping[str, Any]) -> int:
        """What was lost in a balance's period, by the series."""
        utility = balance["utility"]
        return sum(
            self.month.delivered_wh(utility, at)
            - sum(
                home.import_wh[at] - home.export_wh[at]
                for home in self.month.homes
                if home.utility == utility
            )
            for at in range(balance["from"], balance["to"], QUARTER_S)
        )

    def _check_money(self) -> None:
        postings: dict[str, int] = {}
        held: dict[str, int] = {}
        count = 0
        for key, record in self.channel.values("acct/"):
            parts = key.split("/")
            at = 4 if parts[1] == "ext" else 2
            account, part = "/".join(parts[1:at]), parts[at]
            if part == "limit" or record.get("state", "pending") != "pending":
                continue
            sums = postings if part == "post" else held
            sums[account] = sums.get(account, 0) + int(record["amount_micro"])
            count += part == "post"
        self._note(
            "All postings together are zero",
            sum(postings.values()) == 0,
            f"{count:,} postings on {len(postings)} accounts",
        )
        kept = {name: amount for name, amount in held.items() if amount}
        self._note(
            "Each account has what was posted to it",
            kept == {name: amount for name, amount in postings.items() if amount},
            "shards, holds and entries against postings",
        )
        self._note(
            "The clearing house keeps nothing",
            not self._final or postings.get("CLEARING-MARKET", 0) == 0,
            f"{postings.get('CLEARING-ROUNDING', 0)} micro-euros of rounding"
            if self._final
            else "not closed: days aren't final",
        )

    def _check_energy(self) -> None:
        """Metered = traded + rest, of every connection's days; and of all auctions, both sides."""
        wrong = days = 0
        auction = 0
        totals: dict[str, int] = {}
        amounts: dict[str, int] = {}
        daily: dict[str, dict[str, int]] = {one.day: {} for one in self.month.days}
        for home in self.month.connections:
            found = self.channel.evaluate(
                self._owners[home.connection_id],
                "settlement:Days",
                connection_id=home.connection_id,
                from_day=self.month.days[0].day,
                limit=len(self.month.days),
            )["days"]
            for day, posted in zip(self.month.days, found, strict=True):
                sums: dict[str, int] = {}
                for one in posted["summary"]["sums"]:
                    kind, energy = one["kind"], int(one["energy_wh"])
                    sums[kind] = sums.get(kind, 0) + energy
                    totals[kind] = totals.get(kind, 0) + energy
                    amounts[kind] = amounts.get(kind, 0) + int(one["amount_micro"])
                    daily[day.day][kind] = daily[day.day].get(kind, 0) + energy
                    if one["counterparty"] == "CLEARING-MARKET":
                        auction += energy if kind == "bought" else -energy if kind == "sold" else 0
                given = sums.get("sold", 0) + sums.get("feed_in", 0) - sums.get("shortfall", 0)
                taken = sums.get("bought", 0) + sums.get("import", 0) - sums.get("surplus", 0)
                metered = (
                    sum(home.export_wh[at] for at in day.intervals),
                    sum(home.import_wh[at] for at in day.intervals),
                )
                summary = posted["summary"]
                shown = int(summary["export_wh"]), int(summary["import_wh"])
                wrong += (given, taken) != metered or shown != metered
                days += 1
        self._note(
            "Metered = traded + rest",
            wrong == 0,
            f"{days:,} days of connections; {totals.get('bought', 0):,} Wh bought, "
            f"{totals.get('sold', 0):,} Wh sold, {totals.get('import', 0):,} Wh of import and "
            f"{totals.get('feed_in', 0):,} Wh of export left to bills",
        )
        volume = sum(one["local_wh"] + one["hub_wh"] for one in self.outcome.auctions)
        self._note(
            "In auctions as much is bought as sold",
            auction == 0,
            f"{volume:,} Wh in {len(self.outcome.auctions)} auctions",
        )
        self.outcome.facts.update(energy=totals, amounts=amounts)
        for noted in self.outcome.days:
            noted["settled"] = daily[noted["day"]]

    def _check_tokens(self) -> None:
        minted = outstanding = retired = reversed_ = exported = 0
        alike = True
        for home in self.month.connections:
            found = self.channel.evaluate(
                self._owners[home.connection_id],
                "token:Supply",
                origin=home.connection_id,
                from_day=self.month.days[0].day,
                to_day=self.month.to_day,
            )
            parts = [
                int(found[f"{name}_wh"])
                for name in ("minted", "outstanding", "retired", "reversed")
            ]
            alike = alike and parts[0] == sum(parts[1:])
            own = sum(home.export_wh.values())
            alike = alike and parts[0] - parts[3] == own
            exported += own
            minted += parts[0]
            outstanding += parts[1]
            retired += parts[2]
            reversed_ += parts[3]
        self._note(
            "Minted = outstanding + retired + reversed, and minted is what was exported",
            alike,
            f"{minted:,} = {outstanding:,} + {retired:,} + {reversed_:,} Wh; exported "
            f"{exported:,} Wh",
        )

    def _check_bills(self) -> None:
        """Bills computed again: energies from settled rows, money by an exact calculation."""
        wrong: list[str] = []
        for home, posted in zip(self.month.connections, self.outcome.bills, strict=True):
            rest = self._rest(home)
            total = exact_total(home, rest, self.month)
            energies = sum(one[0] for one in rest.values()), sum(one[1] for one in rest.values())
            # Each interval's line is rounded by half a micro-unit, and the total to the cent.
            if energies != (posted["import_wh"], posted["export_wh"]) or not (
                abs(total - posted["total_micro"]) <= 5_000 + len(rest)
            ):
                wrong.append(home.connection_id)
            computed = self.channel.evaluate(
                self._owners[home.connection_id],
                "tariff:Compute",
                tariff=tariff_of(home),
                region=REGION,
                from_day=self.month.days[0].day,
                to_day=self.month.to_day,
                usage=[
                    {"interval_start": at, "import_wh": taken, "export_wh": given}
                    for at, (taken, given) in rest.items()
                    if taken or given
                ],
            )
            if int(computed["total_micro"]) != posted["total_micro"]:
                wrong.append(home.connection_id)
        total = sum(one["total_micro"] for one in self.outcome.bills)
        self._note(
            "Each bill is what its readings and trades come to",
            not wrong,
            f"{len(self.outcome.bills)} bills, {total / 1e6:,.2f} EUR"
            + (f"; not {', '.join(wrong[:5])}" if wrong else ""),
        )

    def _check_opened(self) -> None:
        """Let the ledger compute a home's opened days again, from rows that its utility kept."""
        name = self.outcome.statement["connection_id"]
        home = next(one for one in self.month.homes if one.connection_id == name)
        right = 0
        for day in self.month.days:
            record = self._record(home, day, self._last_run)
            found = self.channel.evaluate(
                self._owners[name],
                "settlement:Verify",
                opened=record["opened"],
                summary=record["summary"],
            )
            right += found["committed"] and found["holds"]
        self._note(
            "A home's opened days agree with their commitments, line by line",
            right == len(self.month.days),
            f"{right} of {len(self.month.days)} days of {name}",
        )

    def _rest(self, home: Home) -> dict[int, tuple[int, int]]:
        """What trades left of a connection's import and export, from public trades and series."""
        traded: dict[int, tuple[int, int]] = {}
        owner = self._owners[home.connection_id]
        for day in self.month.days:
            asked: dict[str, Any] = {"from": day.start, "to": day.end}
            for trade in self.channel.evaluate(
                owner, "settlement:Trades", connection_id=home.connection_id, **asked
            ):
                start, energy = int(trade["interval_start"]), int(trade["energy_wh"])
                bought, sold = traded.get(start, (0, 0))
                traded[start] = bought + max(0, energy), sold + max(0, -energy)
        rest = {}
        for day in self.month.days:
            for at in day.intervals:
                bought, sold = traded.get(at, (0, 0))
                rest[at] = max(0, home.import_wh[at] - bought), max(0, home.export_wh[at] - sold)
        return rest


def exact_total(home: Home, rest: Mapping[int, tuple[int, int]], month: Month) -> int:
    """A bill in micro-euros, by exact fractions and this host's calendar; rounded once."""
    terms = next(one for one in tariffs_of(home.utility) if one["tariff"] == tariff_of(home))
    total = Fraction(terms["standing_micro_per_day"] * len(month.days))
    night = {at for day in month.days for at in day.intervals if at < day.at(6) or at >= day.at(22)}
    for at, (taken, given) in rest.items():
        price = Fraction(0)
        if terms["bands"]:
            price += terms["bands"][0 if at in night else 1]["price"]
        if terms["index_ppm"]:
            price += month.price(at) * Fraction(terms["index_ppm"], 1_000_000) + terms["markup"]
        paid = terms["feed_in"] + month.price(at) * Fraction(terms["feed_in_index_ppm"], 1_000_000)
        total += (taken * price - given * paid) / 1000
    taxed = total + sum(
        given
        * (terms["feed_in"] + month.price(at) * Fraction(terms["feed_in_index_ppm"], 1_000_000))
        / 1000
        for at, (_, given) in rest.items()
    )
    for tax in terms["taxes"]:
        total += taxed * Fraction(tax["rate_ppm"], 1_000_000)
    return round(total)


# Terms


def tariff_of(home: Home) -> str:
    """The tariff of a connection: in turn, three pay the market's price."""
    if home.is_plant:
        return "PLANT"
    number = int(home.connection_id.removeprefix("CP-"))
    kind = "DYNAMIC" if (number - 1) // len(UTILITIES) % 2 else "FLAT"
    return f"{kind}-{home.utility.upper()}"


def tariffs_of(utility: str) -> list[dict[str, Any]]:
    """A supplier's tariffs."""
    common: dict[str, Any] = {
        "supplier": f"{utility}MSP",
        "standing_micro_per_day": 300_000,
        "bands": [],
        "blocks": [],
        "index": None,
        "index_ppm": 0,
        "markup": 0,
        "capacity_micro_per_kw_month": 0,
        "feed_in": 0,
        "feed_in_index_ppm": 0,
        "taxes": [{"name": "VAT", "rate_ppm": VAT_PPM}],
        "rounding": "total",
    }
    index = {"index": "DAY-AHEAD", "index_ppm": 1_000_000}
    found = [
        {**common, "tariff": f"FLAT-{utility.upper()}", "bands": list(BANDS), "feed_in": 60_000},
        {
            **common,
            "tariff": f"DYNAMIC-{utility.upper()}",
            **index,
            "markup": 140_000,
            "feed_in_index_ppm": 1_000_000,
        },
    ]
    if utility == UTILITIES[0]:
        plant = {"standing_micro_per_day": 0, "taxes": [], "feed_in_index_ppm": 1_000_000}
        found.append({**common, "tariff": "PLANT", **index, **plant})
    return found


def _product() -> dict[str, Any]:
    return {
        "product": PRODUCT,
        "zones": [
            {"zone": zone, "local_fee": 10_000, "entry_fee": 15_000, "exit_fee": 5_000}
            for zone in sorted(ZONES.values())
        ],
        "price_min": -500_000,
        "price_max": 4_000_000,
        "price_tick": 1,
        "price_rule": "middle",
        "gate_closure_s": DAY_S + 2 * HOUR_S,
        "shortfall_margin": 50_000,
    }


def _settlement_terms(supplier: str) -> dict[str, Any]:
    return {
        "supplier": supplier,
        "region": REGION,
        "tariff": 260_000,
        "base_rate": 60_000,
        "rest": "billed",
        "shortfall_price": 300_000,
        "surplus_price": 20_000,
        "import_fee": 0,
        "shared_fee": 0,
        "netting_intervals": 1,
        "final_after_working_days": 10,
        "adjustable_days": 425,
    }


def _utility_of(terms: Mapping[str, Any]) -> str:
    """Whose operator proposes terms."""
    supplier = terms.get("supplier")
    return UTILITIES[0] if supplier is None else str(supplier).removesuffix("MSP")


def _utc_start(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())


# The command


def replay(
    month: Month,
    folder: Path,
    *,
    auctions: int = AUCTIONS,
    final: bool = True,
    tell: Callable[[str], None] = _tell,
) -> Outcome:
    """Run a month on new ledgers in a folder."""
    origin = month.start // DAY_S * DAY_S - LEAD_S
    with ReplayChannel(folder, origin=origin, anchor=int(time.time()), rate=RATE) as channel:
        return Replay(channel, month, auctions=auctions, final=final, tell=tell).run()


def main() -> int:
    """The command line; 1 if a sum is wrong."""
    parser = argparse.ArgumentParser(
        prog="script/run --replay", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("month", choices=MONTHS)
    parser.add_argument("--days", type=int, help="so many days only")
    parser.add_argument("--first", type=int, default=1, help="from this day of the month on")
    parser.add_argument("--homes", type=int, default=MAX_HOMES, help=f"3 to {MAX_HOMES}")
    parser.add_argument("--auctions", type=int, default=AUCTIONS, help="quarter hours a day")
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="folder for the report")
    parser.add_argument("--keep", action="store_true", help="keep the ledgers in that folder")
    options = parser.parse_args()
    if not 0 < options.auctions <= MAX_AUCTIONS:
        parser.error(f"--auctions is {options.auctions}, but must be 1 to {MAX_AUCTIONS}")
    try:
        month = read_month(
            options.month, first=options.first, days=options.days, homes=options.homes
        )
    except ValueError as error:
        parser.error(str(error))
    from demo.replay_report import write_report

    options.out.mkdir(parents=True, exist_ok=True)
    ledgers = options.out / f"{options.month}-ledgers"
    if options.keep:
        shutil.rmtree(ledgers, ignore_errors=True)
    folder = ledgers if options.keep else Path(tempfile.mkdtemp(prefix="gridledger-replay-"))
    try:
        outcome = replay(
            month, folder, auctions=options.auctions, tell=lambda text: print(text, file=sys.stderr)
        )
    except ReplayError as error:
        print(f"the replay stopped: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    (options.out / f"{options.month}.json").write_text(json.dumps(asdict(outcome), indent=1))
    report = write_report(outcome, options.out / f"{options.month}.html")
    for check in outcome.checks:
        print(f"{'ok   ' if check.holds else 'WRONG'} {check.name}: {check.detail}")
    print(f"{report}, made in {outcome.facts['seconds']} s")
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
