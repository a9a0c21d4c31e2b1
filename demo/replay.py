"""A month of 2019 through the whole ledger: readings, market, settlement, bills, certificates.

What flows is made of measured homes and prices (`demo.replay_data`), what it becomes is decided by
the contracts, on the ledgers of three utilities (`demo.replay_channel`). Each day of the replay:

* at noon of the day before, rates and the day-ahead prices are published, and homes place orders
  for some quarter hours of the day, by a forecast that is up to 15 % off; at two the books close
  and clear, in three zones and at the hub;
* at nine homes with panels sell a part of their afternoon to the supplier that pays best, and
  those with a battery what they expect to have in the evening;
* the morning after, each utility submits its meters' signed readings, of which some come late,
  twice or wrong (`demo.replay_readings`), settles the day in private and posts it, and closes its
  transformer's balance. Six homes share as a community what they have left.

After the month every day is settled finally, and bills are posted. Some readings are corrected only
then: each is an adjustment of its day, and of the bill. Then certificates are issued by the
readings, bills are paid, and all sums are checked against the series that went in.
`script/run --replay` calls it.
"""

from __future__ import annotations

import argparse
import json
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from demo.homes import QUARTER_S
from demo.replay_channel import CHANNEL, UTILITIES, Call, ReplayChannel, ReplayError
from demo.replay_checks import Checks
from demo.replay_data import (
    DAY_S,
    MAX_HOMES,
    MONTHS,
    NO_LOAD_W,
    PLANT_W,
    REGION,
    SELLING_HOUR,
    Home,
    LocalDay,
    Month,
    read_month,
    utc_days,
    utc_start,
)
from demo.replay_outcome import Outcome
from demo.replay_readings import (
    CLEAN,
    REGISTER_WH,
    Counts,
    Disorder,
    Readings,
    draw_ppm,
)
from demo.replay_terms import (
    COMMUNITY,
    HOUR_S,
    PRODUCT,
    ZONES,
    agreements,
    feeder_meter,
    tariff_of,
    utility_of,
)
from gridledger_client import MeterKey, generate_key_pem
from gridledger_client.readings import BATCH_LIMIT, batch_transient

RATE: Final = QUARTER_S
"""A second of transaction time is a quarter hour of the channel's: a month is three quarters of an
hour, and no timestamp lies far from the day on which the replay runs."""
LEAD_S: Final = 4 * DAY_S
"""How long before the first day the channel begins."""
AUCTIONS: Final = 8
MAX_AUCTIONS: Final = 16
"""Orders of one home for so many quarter hours stand in a block, each out of a wallet shard."""
FIRST_AUCTION_HOUR: Final = 11
HOMES_FOR_SUMS: Final = 10
"""Fewer homes behind a transformer, and its balance isn't public."""
LEAST_EXPORT_W: Final = 1_000
LATE_AFTER_S: Final = 36 * HOUR_S
"""Readings of a whole day come at six of the next morning."""
GRID_FEE: Final = 5_000
SHARD_MICRO: Final = 40_000_000
PLANT_SHARD_MICRO: Final = 400_000_000
FINAL_DAYS: Final = 21
"""After the last day: ten working days and the holidays among them."""
CORRECTED_DAYS: Final = 5
"""How long after its end as a final month its last corrections come."""
PAID_DAYS: Final = 10
"""How long after that bills are paid."""
BEFORE: Final = -1
"""The morning on which meters are read for the first time."""
DEFAULT_FOLDER: Final = Path(".gridledger/replay")


def _received(sums: Sequence[Mapping[str, Any]]) -> int:
    """What a day comes to for its connection."""
    return sum(int(one["amount_micro"]) for one in sums)


def _tell(_: str) -> None:
    pass


def _draw(*parts: object) -> int:
    """A number from 0 to 999 that is the same in every run."""
    return draw_ppm(*parts) // 1000


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
        disorder: Disorder | None = None,
        tell: Callable[[str], None] = _tell,
    ) -> None:
        """`auctions` quarter hours of each day are traded, from eleven on."""
        self.channel = channel
        self.month = month
        self.outcome = Outcome(month.name)
        self._auctions = auctions
        self._tell = tell
        meters = [home.meter_id for home in month.connections]
        meters += [feeder_meter(utility) for utility in UTILITIES]
        self._keys = {
            meter: MeterKey(generate_key_pem(), secrets.token_bytes(32)) for meter in meters
        }
        self.readings = Readings(self._keys, CHANNEL, disorder or Disorder())
        self.answered = Counts()
        """What the ledger said of readings, summed up."""
        self.settled: dict[tuple[str, str], tuple[str, Any]] = {}
        """By day and connection, the last run and the sums it posted."""
        self._billed: dict[str, int] = {}
        """By connection, the last run of its bill."""
        self.adjusted: set[tuple[str, str]] = set()
        """Days of connections with a correction after finality, its own or a fellow member's."""
        self.owners = {
            home.connection_id: channel.home(home.utility, home.connection_id)
            for home in month.connections
        }
        self._balanced: dict[str, int] = {}
        """Where each transformer's last balance ended."""
        self._ended: dict[str, tuple[int, int]] = {}
        """The registers with which each home's part of the last balance ended."""
        self._published: list[str] = []
        """UTC days whose day-ahead prices are on the ledger."""
        self._sums_public = all(
            sum(home.utility == utility for home in month.homes) >= HOMES_FOR_SUMS
            for utility in UTILITIES
        )

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
            self._day_after(number, day)
            spent = time.monotonic() - began
            self._tell(
                f"{day.day}: {len(day.intervals)} intervals settled; {number + 1} of "
                f"{len(month.days)} days, {self.channel.transactions:,} transactions in "
                f"{self.channel.height:,} blocks, {spent:.0f} s"
            )
        self._read_the_rest()
        self._settle_finally()
        self._tell(f"all days are final, {time.monotonic() - began:.0f} s")
        self._bill(month.connections, 1)
        self._adjust()
        self._certify()
        self._pay()
        self._tell(f"bills are posted, adjusted and paid, {time.monotonic() - began:.0f} s")
        self._collect()
        Checks(self).run()
        self.outcome.facts.update(
            transactions=self.channel.transactions,
            conflicts=self.channel.conflicts,
            blocks=self.channel.height,
            seconds=round(time.monotonic() - began, 1),
            cpu_seconds=round(time.process_time() - cpu, 1),
            memory_kib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            homes=len(month.homes),
            with_panels=sum(home.peak_w > 0 for home in month.homes),
            peak_w=sum(home.peak_w for home in month.homes),
            batteries=sum(home.battery_wh > 0 for home in month.homes),
            battery_wh=sum(home.battery_wh for home in month.homes),
            first=month.days[0].day,
            last=month.days[-1].day,
            auctions=self._auctions,
        )
        return self.outcome

    # Before the month

    def _set_up(self) -> None:
        channel, admin = self.channel, self.channel.admin
        energy = {"interval_s": QUARTER_S, "replay": channel.replay}
        channel.submit(admin, "metering:Configure", **energy, late_after_s=LATE_AFTER_S)
        channel.submit(admin, "registry:Configure", **energy, grid_fee_micro_per_kwh=GRID_FEE)
        # Terms begin with a UTC day.
        since = (channel.now // DAY_S + 1) * DAY_S
        for propose, approve, terms, named in agreements():
            agreed = channel.submit(
                channel.operators[utility_of(terms)], propose, terms=terms, effective_from=since
            )
            other = UTILITIES[1] if utility_of(terms) != UTILITIES[1] else UTILITIES[2]
            channel.submit(channel.operators[other], approve, version=agreed["version"], **named)
        self._register()
        channel.now = since
        self._supply()
        channel.submit_all(
            [
                Call(
                    self.owners[home.connection_id],
                    "sharing:Join",
                    {
                        "community": COMMUNITY,
                        "connection_id": home.connection_id,
                        "from_day": self.month.days[0].day,
                    },
                )
                for home in self.month.community
            ]
        )

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
            meters.append(self._meter(home.utility, home.meter_id, home.connection_id, limit))
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
            meters.append(self._meter(utility, feeder_meter(utility), transformer, 1_000_000))
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

    def _meter(self, utility: str, meter_id: str, connection_id: str, max_power_w: int) -> Call:
        return Call(
            self.channel.operators[utility],
            "metering:RegisterMeter",
            {
                "meter_id": meter_id,
                "connection_id": connection_id,
                "utility": f"{utility}MSP",
                "source_class": "accredited",
                "public_key": self._keys[meter_id].public_key_pem,
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
            owner = self.owners[home.connection_id]
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
            start = utc_start(utc_day)
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
            self.owners[home.connection_id],
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
        """At nine: half of what is expected from two to four, to whoever pays best.

        Of what a battery will sell in the evening, nine tenths.
        """
        self.channel.now = day.at(9)
        sunny = day.at(14), day.at(16)
        evening = day.at(SELLING_HOUR), day.at(SELLING_HOUR + 1)
        batteries = [home for home in self.month.homes if home.battery_wh]
        self.channel.submit_all(
            [
                *self._sales(f"pm-{day.day}", self.month.homes, *sunny, 500),
                *self._sales(f"evening-{day.day}", batteries, *evening, 900),
            ]
        )

    def _sales(
        self, request_id: str, homes: Sequence[Home], start: int, end: int, per_mille: int
    ) -> list[Call]:
        """Sales of a part of what homes expect to export in some hours."""
        calls = []
        for home in homes:
            expected = sum(
                _forecast(home, at, home.export_wh[at]) for at in range(start, end, QUARTER_S)
            )
            energy = expected * per_mille // 1000
            if energy < 200:
                continue
            owner = self.owners[home.connection_id]
            quote = self.channel.evaluate(
                owner,
                "market:Quote",
                connection_id=home.connection_id,
                energy_wh=energy,
                window_start=start,
                window_end=end,
                max_power_w=energy * HOUR_S // (end - start) + 4,
            )["quote"]
            calls.append(
                Call(owner, "market:Authorise", {"request_id": request_id, "quote": quote})
            )
        return calls

    def _day_after(self, number: int, day: LocalDay) -> None:
        """At six: readings, settlement, the transformers' balance."""
        channel = self.channel
        channel.now = max(channel.now, day.end + 6 * HOUR_S)
        if number == 0:
            self._read_first()
        for home in self.month.connections:
            for at in day.intervals:
                self.readings.count_in_disorder(
                    home.utility, home.meter_id, number, at, home.import_wh[at], home.export_wh[at]
                )
        for utility in UTILITIES:
            for at in day.intervals:
                net = self.month.delivered_wh(utility, at)
                taken, given = max(0, net), max(0, -net)
                self.readings.count(utility, feeder_meter(utility), number, at, taken, given)
        self._read(number)
        self._settle(day, "provisional", self.month.connections)
        if self._sums_public:
            self._close_balance(day)
        self._note_day(day)

    def _read_first(self) -> None:
        """Where registers begin: a reading of nothing in the last interval before the month."""
        start = self.month.start - QUARTER_S
        for home in self.month.connections:
            self.readings.count(home.utility, home.meter_id, BEFORE, start, 0, 0)
        for utility in UTILITIES:
            self.readings.count(utility, feeder_meter(utility), BEFORE, start, 0, 0)
        self._read(BEFORE)

    def _read_the_rest(self) -> None:
        """What comes on the mornings after the month."""
        number = len(self.month.days)
        while self.readings.is_waiting():
            over = number + 1 - len(self.month.days)
            self.channel.now = self.month.end + over * DAY_S + 6 * HOUR_S
            self._read(number)
            number += 1

    def _read(self, morning: int) -> None:
        """Submit what reaches the utilities on a morning."""
        for utility in UTILITIES:
            self._submit(utility, self.readings.of_morning(utility, morning))

    def _submit(self, utility: str, rows: Sequence[Mapping[str, str]]) -> None:
        # A batch that goes on in the next one is held against it: one after the other.
        for first in range(0, len(rows), BATCH_LIMIT):
            call = Call(
                self.channel.operators[utility],
                "metering:SubmitReadings",
                {"utility": f"{utility}MSP"},
                batch_transient(rows[first : first + BATCH_LIMIT]),
                utility,
            )
            (answer,) = self.channel.submit_all([call])
            if answer["refused"]:
                raise ReplayError(f"a reading was refused: {answer['refused'][0]}")
            for name in ("accepted", "duplicate", "corrected", "late", "after_final"):
                before = getattr(self.answered, name)
                setattr(self.answered, name, before + int(answer[name]))

    def _settle(self, day: LocalDay, run: str, homes: Sequence[Home]) -> None:
        """Commit a day of some connections in private and post its sums, by their utilities."""
        channel = self.channel
        groups = {
            utility: sorted(
                (home for home in homes if home.utility == utility),
                key=lambda home: home.connection_id,
            )
            for utility in UTILITIES
        }
        settled = {utility: group for utility, group in groups.items() if group}
        channel.submit_all(
            [
                Call(
                    channel.operators[utility],
                    "daybook:Commit",
                    {
                        "utility": f"{utility}MSP",
                        "day": day.day,
                        "run": run,
                        "connections": [home.connection_id for home in group],
                    },
                    endorser=utility,
                )
                for utility, group in settled.items()
            ]
        )
        posts = []
        for utility, group in settled.items():
            # Without the rows that daybook:Record would show beside each of them.
            summaries = [
                channel.private(utility, f"st/{day.day}/{run}/{home.connection_id}")
                for home in group
            ]
            for home, summary in zip(group, summaries, strict=True):
                self.settled[day.day, home.connection_id] = run, summary["sums"]
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

    def last_record(self, home: Home, day: LocalDay) -> dict[str, Any]:
        return self._record(home, day, self.settled[day.day, home.connection_id][0])

    def _close_balance(self, day: LocalDay) -> None:
        """Each transformer's balance since the last one, where the homes' sum hides each of them.

        On a sunny day one home's export may stand out; then the period goes on into the next day.
        """
        channel = self.channel
        begins = {utility: self._balanced.get(utility, self.month.start) for utility in UTILITIES}
        arguments = {
            utility: {
                "node_id": f"T-{utility.upper()}",
                "utility": f"{utility}MSP",
                "from": begins[utility],
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
                    **self._expected(utility, begins[utility], day.end),
                    "loss_wh": int(closed["loss_wh"]),
                }
            )
            self._balanced[utility] = day.end

    def _expected(self, utility: str, start: int, end: int) -> dict[str, int]:
        """What a balance must come to: by the series, and by which readings have come.

        A home whose last reading is late counts up to the one before; the rest counts next time.
        """
        delivered = sum(self.month.delivered_wh(utility, at) for at in range(start, end, QUARTER_S))
        taken = 0
        for home in self.month.homes:
            if home.utility == utility:
                meter = home.meter_id
                begin = self._ended.get(meter, (REGISTER_WH, REGISTER_WH))
                found = self.readings.last_shown(meter, end)
                taken += found[0] - begin[0] - (found[1] - begin[1])
                self._ended[meter] = found
        return {
            "from": start,
            "to": end,
            "delivered_wh": delivered,
            "homes_wh": taken,
            "lost_wh": delivered - taken,
        }

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
                    "stored_wh": sum(home.stored_wh.get(span[-1], 0) for home in homes),
                }
            )

    # After the month

    def _certify(self) -> None:
        """Issue the month's certificates by its readings; half is given to the supplier, and used.

        Once they are corrected: what is issued stays.
        """
        channel, plant = self.channel, self.month.plant
        year, number = (int(part) for part in self.month.name.split("-"))
        over = utc_start(f"{year + number // 12:04d}-{number % 12 + 1:02d}-01")
        channel.now = max(channel.now, over + 6 * HOUR_S)
        operator = channel.operators[plant.utility]
        what = {"plant_id": "SUN-1", "month": self.month.name}
        own = {"utility": f"{plant.utility}MSP", **what}
        channel.submit_all([Call(operator, "origin:Commit", own, endorser=plant.utility)])
        produced = channel.evaluate(operator, "origin:Record", at=plant.utility, **own)
        issue = channel.submit(operator, "certificate:Issue", produced=produced, **what)
        found = {name: int(issue[name]) for name in ("export_wh", "issued", "carry_wh")}
        owner = self.owners[plant.connection_id]
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

    def _settle_finally(self) -> None:
        self.channel.now = self.month.end + FINAL_DAYS * DAY_S
        provisional = dict(self.settled)
        for day in self.month.days:
            self._settle(day, "final", self.month.connections)
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
        moved = [
            abs(_received(self.settled[place][1]) - _received(sums))
            for place, (_, sums) in provisional.items()
        ]
        self.outcome.readings["days"] = len(moved)
        self.outcome.readings["days_changed"] = sum(1 for one in moved if one)
        self.outcome.readings["moved_micro"] = sum(moved)

    def _bill(self, homes: Sequence[Home], run: int) -> None:
        """Compute and post bills."""
        channel, month = self.channel, self.month
        period = {"from_day": month.days[0].day, "to_day": month.to_day, "run": run}
        statements = channel.submit_all(
            [
                Call(
                    channel.operators[home.utility],
                    "bill:Compute",
                    {"connection_id": home.connection_id, **period},
                    endorser=home.utility,
                )
                for home in homes
            ]
        )
        posted = channel.submit_all(
            [
                Call(channel.operators[home.utility], "billing:Post", {"statement": statement})
                for home, statement in zip(homes, statements, strict=True)
            ]
        )
        for home, answer in zip(homes, posted, strict=True):
            self._billed[home.connection_id] = run
            if run > 1:
                changed = int(answer["difference_micro"])
                self.outcome.readings["bills_raised"] += changed > 0
                self.outcome.readings["bills_credited"] += changed < 0

    def _adjust(self) -> None:
        """Take the corrections that come after finality: settle these days again, and bill."""
        self.channel.now += CORRECTED_DAYS * DAY_S
        for utility in UTILITIES:
            self._submit(utility, self.readings.after_final(utility))
        self.outcome.readings |= asdict(self.answered)
        days: dict[str, dict[str, Home]] = {}
        for meter, start in self.readings.adjusted:
            home = next(one for one in self.month.connections if one.meter_id == meter)
            day = next(one for one in self.month.days if one.start <= start < one.end)
            # What one member of a community has, the others share.
            members = self.month.community
            for one in members if home in members else (home,):
                days.setdefault(day.day, {})[one.connection_id] = one
        again: dict[str, Home] = {}
        for day in self.month.days:
            if day.day in days:
                self._settle(day, "adjustment-1", list(days[day.day].values()))
                again |= days[day.day]
        self.adjusted = {(day, name) for day, homes in days.items() for name in homes}
        self.outcome.readings["adjusted_days"] = len(self.adjusted)
        self.outcome.readings |= {"bills_raised": 0, "bills_credited": 0}
        self._bill(list(again.values()), 2)

    def _pay(self) -> None:
        """Take the money that banks received for what is open of bills, and note the bills."""
        channel, month = self.channel, self.month
        channel.now += PAID_DAYS * DAY_S
        payments = []
        for home in month.connections:
            name = home.connection_id
            owner = self.owners[name]
            account = channel.evaluate(owner, "billing:Account", connection_id=name)
            if int(account["open_micro"]) > 0:
                payments.append(
                    Call(
                        channel.operators[home.utility],
                        "billing:Receive",
                        {
                            "connection_id": name,
                            "amount_micro": int(account["open_micro"]),
                            "bank_reference": f"BILL-{name}",
                        },
                    )
                )
        channel.submit_all(payments)
        for home in month.connections:
            name = home.connection_id
            owner = self.owners[name]
            record = channel.evaluate(
                owner,
                "bill:Record",
                at=home.utility,
                connection_id=name,
                from_day=month.days[0].day,
                run=self._billed[name],
            )
            account = channel.evaluate(owner, "billing:Account", connection_id=name)
            regulated = record["regulated_micro"]
            self.outcome.bills.append(
                {
                    "connection_id": name,
                    "tariff": tariff_of(home),
                    "total_micro": int(record["total_micro"]),
                    "regulated_micro": None if regulated is None else int(regulated),
                    "import_wh": int(record["import_wh"]),
                    "export_wh": int(record["export_wh"]),
                    "open_micro": int(account["open_micro"]),
                    "run": self._billed[name],
                    "lines": [line for part in record["bills"] for line in part["lines"]],
                }
            )

    # What came out

    def _collect(self) -> None:
        """A home's statement: one of the community, with a battery if one has."""
        members = [home for home in self.month.community if home.peak_w] or self.month.homes
        found = [home for home in members if home.battery_wh] or members
        names = {home.connection_id for home in found}
        bills = sorted(
            (one for one in self.outcome.bills if one["connection_id"] in names),
            key=lambda one: int(one["total_micro"]),
        )
        bill = bills[len(bills) // 2]
        name = bill["connection_id"]
        home = next(one for one in self.month.homes if one.connection_id == name)
        owner = self.owners[name]
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
            "battery_wh": home.battery_wh,
            "bill": bill,
            "net": net,
            "entries": postings["entries"][:12],
            "balance_micro": int(balance["balance_micro"]),
            "day": middle.day,
            "import_wh": [home.import_wh[at] for at in middle.intervals],
            "export_wh": [home.export_wh[at] for at in middle.intervals],
            "stored_wh": [home.stored_wh.get(at, 0) for at in middle.intervals],
            "rows": self.last_record(home, middle)["opened"]["rows"],
        }


# The command


def replay(
    month: Month,
    folder: Path,
    *,
    auctions: int = AUCTIONS,
    disorder: Disorder | None = None,
    tell: Callable[[str], None] = _tell,
) -> Outcome:
    """Run a month on new ledgers in a folder."""
    origin = month.start // DAY_S * DAY_S - LEAD_S
    with ReplayChannel(folder, origin=origin, anchor=int(time.time()), rate=RATE) as channel:
        return Replay(channel, month, auctions=auctions, disorder=disorder, tell=tell).run()


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
    parser.add_argument(
        "--clean", action="store_true", help="every reading in time, once and right"
    )
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

    # So that the ledgers are removed then as well; a month's are a gigabyte.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.out.mkdir(parents=True, exist_ok=True)
    ledgers = options.out / f"{options.month}-ledgers"
    if options.keep:
        shutil.rmtree(ledgers, ignore_errors=True)
    folder = ledgers if options.keep else Path(tempfile.mkdtemp(prefix="gridledger-replay-"))
    try:
        outcome = replay(
            month,
            folder,
            auctions=options.auctions,
            disorder=CLEAN if options.clean else None,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
    except ReplayError as error:
        print(f"the replay stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
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
