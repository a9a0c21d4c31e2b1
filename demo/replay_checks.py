"""Every sum of a replayed month, held against another on the ledger or against what went in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import TYPE_CHECKING, Any

from demo.homes import QUARTER_S
from demo.replay_data import REGION, Home, Month, utc_start
from demo.replay_outcome import Check
from demo.replay_terms import COMMUNITY, COMMUNITY_PRICE, tariff_of, tariffs_of

if TYPE_CHECKING:
    from demo.replay import Replay


class Checks:
    """The checks of one month."""

    def __init__(self, replay: Replay) -> None:
        """`replay` has run."""
        self._replay = replay
        self.channel = replay.channel
        self.month = replay.month
        self.outcome = replay.outcome

    def run(self) -> None:
        """All of them; a month that was checked before is checked anew."""
        self.outcome.checks.clear()
        self._check_readings()
        self._check_days()
        self._check_prices()
        self._check_money()
        self._check_energy()
        self._check_community()
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
            right = sum(one["loss_wh"] == one["lost_wh"] for one in closed)
            self._note(
                "Losses are what the transformers delivered beyond the homes",
                right == len(closed),
                f"{len(closed)} balances of days or longer, "
                f"{sum(one['loss_wh'] for one in closed):,} Wh",
            )

    def _note(self, name: str, holds: bool, detail: str) -> None:
        self.outcome.checks.append(Check(name, detail, holds))

    def _check_readings(self) -> None:
        expected, found = self._replay.readings.expected, self._replay.answered
        self._note(
            "Each reading is accepted once, late, repeated and corrected ones as well",
            found == expected,
            f"{found.accepted:,} accepted, {found.late:,} of them late; {found.duplicate:,} "
            f"repeated, {found.corrected:,} corrected"
            + ("" if found == expected else f"; expected {expected}"),
        )
        runs = {
            (key.split("/")[2], key.split("/")[1]): posted["run"]
            for key, posted in self.channel.values("day/")
        }
        wanted = {
            (day.day, home.connection_id): "adjustment-1"
            if (day.day, home.connection_id) in self._replay.adjusted
            else "final"
            for day in self.month.days
            for home in self.month.connections
        }
        adjusted = len(self._replay.adjusted)
        self._note(
            "A correction after finality is one adjustment, and nothing else is adjusted",
            runs == wanted,
            f"corrections: {found.after_final}; days of connections adjusted for them: {adjusted}, "
            f"all others final: {len(wanted) - adjusted:,}",
        )

    def _check_days(self) -> None:
        """The calendar on the ledger against this host's."""
        home = self.month.homes[0]
        lengths = []
        for day in self.month.days:
            found = self.channel.evaluate(
                self._replay.owners[home.connection_id],
                "settlement:Inputs",
                utility=f"{home.utility}MSP",
                day=day.day,
                connections=[home.connection_id],
            )
            begin, end = int(found["from"]), int(found["to"])
            lengths.append((end - begin) // QUARTER_S if begin == day.start else 0)
        counted = sorted({length: lengths.count(length) for length in lengths}.items())
        self._note(
            "The ledger's days are as long as the wall clock's",
            lengths == [len(day.intervals) for day in self.month.days],
            ", ".join(
                f"{count} {'day' if count == 1 else 'days'} of {length} quarter hours"
                for length, count in counted
            ),
        )

    def _check_prices(self) -> None:
        """The published index against the series, and what was paid at prices below zero."""
        right, negative = True, 0
        for _, found in self.channel.values("index/DAY-AHEAD/day/"):
            start = utc_start(found["day"])
            for at, price in enumerate(found["prices"]):
                instant = start + at * QUARTER_S
                right = right and int(price) == self.month.price(instant)
                negative += int(price) < 0 and self.month.start <= instant < self.month.end
        expected = sum(
            self.month.price(at) < 0 for at in range(self.month.start, self.month.end, QUARTER_S)
        )
        plant = self.month.plant
        self._note(
            "Prices on the ledger are the market's, those below zero as well",
            right and negative == expected,
            f"{negative} quarter hours below zero, in which the plant exported "
            f"{sum(wh for at, wh in plant.export_wh.items() if self.month.price(at) < 0):,} Wh",
        )

    def _check_community(self) -> None:
        """What was shared in each quarter hour: as much as both sides had left."""
        names = {home.connection_id for home in self.month.community}
        sums = {"shared": 0, "taken": 0}
        amounts = {"shared": 0, "taken": 0}
        for (_, name), (_, posted) in self._replay.settled.items():
            for one in posted:
                if one["kind"] in sums and name in names:
                    sums[one["kind"]] += int(one["energy_wh"])
                    amounts[one["kind"]] += int(one["amount_micro"])
        left = self._left_of_trades(self.month.community)
        possible = 0
        for at in (at for day in self.month.days for at in day.intervals):
            rest = [left[name][at] for name in names]
            possible += min(sum(one[0] for one in rest), sum(one[1] for one in rest))
        self.outcome.community = {
            "name": COMMUNITY,
            "members": sorted(names),
            "shared_wh": sums["shared"],
            "amount_micro": amounts["shared"],
            "price": COMMUNITY_PRICE,
        }
        self._note(
            "The community shares what its members export and import at once",
            sums["shared"] == sums["taken"] == possible
            and amounts["shared"] + amounts["taken"] == 0,
            f"{sums['shared']:,} Wh among {len(names)} homes",
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
            postings.get("CLEARING-MARKET", 0) == 0,
            f"{postings.get('CLEARING-ROUNDING', 0)} micro-euros of rounding",
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
                self._replay.owners[home.connection_id],
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
                given = sum(sums.get(kind, 0) for kind in ("sold", "shared", "feed_in"))
                given -= sums.get("shortfall", 0)
                taken = sum(sums.get(kind, 0) for kind in ("bought", "taken", "import"))
                taken -= sums.get("surplus", 0)
                metered = (
                    sum(home.export_wh[at] for at in day.intervals),
                    sum(home.import_wh[at] for at in day.intervals),
                )
                summary = posted["summary"]
                shown = int(summary["export_wh"]), int(summary["import_wh"])
                wrong += (given, taken) != metered or shown != metered
                days += 1
        self._note(
            "Metered = traded + shared + rest",
            wrong == 0,
            f"{days:,} days of connections; {totals.get('bought', 0):,} Wh bought, "
            f"{totals.get('sold', 0):,} Wh sold, {totals.get('shared', 0):,} Wh shared, "
            f"{totals.get('import', 0):,} Wh of import and {totals.get('feed_in', 0):,} Wh of "
            "export left to bills",
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
                self._replay.owners[home.connection_id],
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
        left = self._rest()
        for home, posted in zip(self.month.connections, self.outcome.bills, strict=True):
            rest = left[home.connection_id]
            total = exact_total(home, rest, self.month)
            energies = sum(one[0] for one in rest.values()), sum(one[1] for one in rest.values())
            # Each interval's line is rounded by half a micro-unit, and the total to the cent.
            if energies != (posted["import_wh"], posted["export_wh"]) or not (
                abs(total - posted["total_micro"]) <= 5_000 + len(rest)
            ):
                wrong.append(home.connection_id)
            computed = self.channel.evaluate(
                self._replay.owners[home.connection_id],
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
            record = self._replay.last_record(home, day)
            found = self.channel.evaluate(
                self._replay.owners[name],
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

    def _left_of_trades(self, homes: Sequence[Home]) -> dict[str, dict[int, tuple[int, int]]]:
        """What trades left of connections' import and export, from public trades and series."""
        left: dict[str, dict[int, tuple[int, int]]] = {}
        for home in homes:
            traded: dict[int, tuple[int, int]] = {}
            for day in self.month.days:
                span: dict[str, Any] = {"from": day.start, "to": day.end}
                for trade in self.channel.evaluate(
                    self._replay.owners[home.connection_id],
                    "settlement:Trades",
                    connection_id=home.connection_id,
                    **span,
                ):
                    start, energy = int(trade["interval_start"]), int(trade["energy_wh"])
                    bought, sold = traded.get(start, (0, 0))
                    traded[start] = bought + max(0, energy), sold + max(0, -energy)
            left[home.connection_id] = {
                at: (
                    max(0, home.import_wh[at] - traded.get(at, (0, 0))[0]),
                    max(0, home.export_wh[at] - traded.get(at, (0, 0))[1]),
                )
                for day in self.month.days
                for at in day.intervals
            }
        return left

    def _rest(self) -> dict[str, dict[int, tuple[int, int]]]:
        """What trades and the community leave of import and export, for bills."""
        left = self._left_of_trades(self.month.connections)
        names = sorted(home.connection_id for home in self.month.community)
        for at in (at for day in self.month.days for at in day.intervals):
            imports = [left[name][at][0] for name in names]
            exports = [left[name][at][1] for name in names]
            shared = min(sum(imports), sum(exports))
            if shared:
                taken, given = split_exactly(shared, imports), split_exactly(shared, exports)
                for name, less, fewer in zip(names, taken, given, strict=True):
                    before = left[name][at]
                    left[name][at] = before[0] - less, before[1] - fewer
        return left


def split_exactly(total: int, weights: Sequence[int]) -> list[int]:
    """Split by weights, each running sum rounded half up: by fractions, unlike the contracts."""
    sums = [
        floor(Fraction(total * sum(weights[: number + 1]), sum(weights)) + Fraction(1, 2))
        for number in range(len(weights))
    ]
    return [sums[0], *(after - before for before, after in pairwise(sums))]


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
