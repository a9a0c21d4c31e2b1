"""The replay's report: one HTML file that a person can read, with plots as inline SVG.

Nothing is fetched: no script, no font, no image. Colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from demo.homes import QUARTER_S
from demo.replay_channel import UTILITIES
from demo.replay_data import ZONE

if TYPE_CHECKING:
    from demo.replay_outcome import Outcome

WIDTH: Final = 960
LEFT: Final = 58
RIGHT: Final = 14
TOP: Final = 24
BOTTOM: Final = 26
MICRO: Final = 1_000_000

STYLE: Final = """
:root { color-scheme: light dark; --page: #f6f7f5; --card: #ffffff; --ink: #1c2321; --soft: #5d6966;
  --line: #dfe4e1; --a: #2b6cb0; --b: #d98a00; --c: #2e8b57; --d: #8a5bb5; --e: #c0392b;
  --ok: #23774a; --shade: #0003; }
@media (prefers-color-scheme: dark) { :root { --page: #121615; --card: #1a201e; --ink: #e7ecea;
  --soft: #9aa7a3; --line: #2e3734; --a: #6aa9ec; --b: #f0b449; --c: #5cc28d; --d: #bb94e0;
  --e: #f0776a; --ok: #6fcf9b; --shade: #000a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 20px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 0 0 12px; max-width: 76ch; }
.lead, .note { color: var(--soft); }
.note { font-size: 14px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 22px 24px; margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px;
  margin-top: 20px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 16px; }
.tile b { display: block; font-size: 24px; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13.5px; }
/* What goes on beyond an edge casts a shadow there. */
.plot, .wide { overflow-x: auto; background:
  linear-gradient(to right, var(--card) 30%, transparent) 0 0 / 40px 100% no-repeat local,
  linear-gradient(to left, var(--card) 30%, transparent) 100% 0 / 40px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) 0 0 / 10px 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) 100% 0 / 10px 100% no-repeat scroll; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); } svg .zero { stroke: var(--soft); }
.keys { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13.5px; color: var(--soft);
  margin: 6px 0 8px; }
.keys i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
tr.sum td { font-weight: 650; border-top: 2px solid var(--line); }
.ok { color: var(--ok); font-weight: 650; white-space: nowrap; }
.bad { color: var(--e); font-weight: 650; white-space: nowrap; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 0 36px; }
.two > * { min-width: 0; }
@media (max-width: 620px) {
  main { padding: 20px 12px 40px; }
  h1 { font-size: 26px; }
  section { padding: 18px 16px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; }
  .tile { padding: 10px 12px; }
  .tile b { font-size: 20px; }
  .two { grid-template-columns: 1fr; }
  .stack tr { display: block; padding: 8px 0; border-bottom: 1px solid var(--line); }
  .stack tr:last-child { border: 0; }
  .stack td { display: inline; padding: 0 10px 0 0; border: 0; }
  .stack td:last-child { display: block; }
  svg { min-width: 760px; }
  .stack tr:has(th) { display: none; }
}
"""

KINDS: Final = {
    "standing": "Standing charge",
    "energy": "Energy",
    "index": "Energy at the day-ahead price",
    "feed_in": "Export to the supplier",
    "tax": "Tax",
    "rounding": "Rounded to the cent",
    "bought": "Bought",
    "sold": "Sold",
    "fee": "Grid fees of trades",
    "shortfall": "Sold, but not delivered",
    "surplus": "Bought, but not used",
    "shared": "Given to the community",
    "taken": "Taken from the community",
    "import": "Rest of import (billed)",
    "sale": "Sale to a supplier",
    "deposit": "Deposit",
    "settlement": "Settlement",
    "bill": "Bill",
}


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1
        return self.start + (value - self.low) / span * (self.end - self.start)


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values that lie around a span."""
    rough = (high - low or 1) / count
    unit = 10 ** floor(log10(rough))
    step = next(unit * one for one in (1, 2, 2.5, 5, 10) if unit * one >= rough)
    return [step * number for number in range(floor(low / step), ceil(high / step) + 1)]


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _bar(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(0.0, height):.1f}" '
        f'fill="var(--{colour})"><title>{escape(title)}</title></rect>'
    )


def _path(points: Iterable[tuple[float, float]], colour: str, width: float = 1.4) -> str:
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{drawn}" fill="none" stroke="var(--{colour})" '
        f'stroke-width="{width}" stroke-linejoin="round"/>'
    )


def _frame(
    ticks: Sequence[float], unit: str, height: int, label: str
) -> tuple[_Scale, list[str], str]:
    """A vertical scale, its grid, and how the picture begins."""
    y = _Scale(ticks[0], ticks[-1], height - BOTTOM, TOP)
    grid = []
    for tick in ticks:
        kind = "zero" if tick == 0 and ticks[0] < 0 else "grid"
        at = y(tick)
        grid.append(
            f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
        words = f"{tick:,.10g}".replace("-", "\N{MINUS SIGN}")
        grid.append(_text(LEFT - 8, at + 4, words, "end"))
    grid.append(_text(LEFT - 8, 11, unit, "end"))
    opened = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    return y, grid, opened


def _keys(keys: Mapping[str, str]) -> str:
    items = "".join(
        f'<span><i style="background:var(--{colour})"></i>{escape(name)}</span>'
        for name, colour in keys.items()
    )
    return f'<div class="keys">{items}</div>'


def _plot(keys: Mapping[str, str], svg: str) -> str:
    return f'{_keys(keys) if keys else ""}<div class="plot">{svg}</div>'


def _day_labels(days: Sequence[Mapping[str, Any]], centre: Sequence[float], height: int) -> str:
    step = ceil(len(days) / 16)
    return "".join(
        _text(x, height - 8, str(int(day["day"][8:])))
        for number, (day, x) in enumerate(zip(days, centre, strict=True))
        if number % step == 0
    )


def _kwh(energy_wh: float) -> str:
    return f"{energy_wh / 1000:,.0f}\N{NARROW NO-BREAK SPACE}kWh"


def _eur(amount_micro: float, digits: int = 2) -> str:
    digits_shown = f"{abs(amount_micro) / MICRO:,.{digits}f}"
    minus = amount_micro < 0 and any(one in "123456789" for one in digits_shown)
    return f"{'\N{MINUS SIGN}' if minus else ''}{digits_shown}\N{NARROW NO-BREAK SPACE}€"


def _flows(days: Sequence[Mapping[str, Any]]) -> str:
    """Of each day, where imported energy came from and where exported energy went."""

    def parts(day: Mapping[str, Any]) -> tuple[list[tuple[str, str, float]], ...]:
        settled = day["settled"]
        bought = settled.get("bought", 0) - settled.get("surplus", 0)
        taken = settled.get("taken", 0)
        return (
            [
                ("b", "bought on the market", bought / 1000),
                ("d", "taken from the community", taken / 1000),
                ("a", "from the supplier", (day["import_wh"] - bought - taken) / 1000),
            ],
            [("c", "exported by homes", day["export_wh"] / 1000)],
        )

    up = [sum(one[2] for one in parts(day)[0]) for day in days]
    down = [sum(one[2] for one in parts(day)[1]) for day in days]
    height = 280
    y, drawn, opened = _frame(
        _ticks(-max(down, default=1), max(up, default=1)), "kWh", height, "Energy by day"
    )
    x = _Scale(0, len(days), LEFT, WIDTH - RIGHT)
    width = min(46.0, (x(1) - x(0)) * 0.72)
    centres = []
    for number, day in enumerate(days):
        centre = (x(number) + x(number + 1)) / 2
        centres.append(centre)
        for sign, stack in zip((1, -1), parts(day), strict=True):
            base = 0.0
            for colour, name, value in stack:
                top, bottom = sorted((y(sign * base), y(sign * (base + value))))
                title = f"{day['day']}: {value:,.1f} kWh {name}"
                drawn.append(_bar(centre - width / 2, top, width, bottom - top, colour, title))
                base += value
        if day["intervals"] != 96:
            short = f"{day['intervals']} \N{MULTIPLICATION SIGN} ¼ h"
            drawn.append(_text(centre, TOP - 8, short))
    drawn.append(_day_labels(days, centres, height))
    keys = {
        "import from the supplier": "a",
        "bought on the market": "b",
        "taken from the community": "d",
        "export": "c",
    }
    return _plot(keys, f"{opened}{''.join(drawn)}</svg>")


def _hour_axis(hours: Sequence[Mapping[str, int]], height: int) -> tuple[_Scale, str]:
    x = _Scale(hours[0]["start"], hours[-1]["start"] + 3600, LEFT, WIDTH - RIGHT)
    labels = []
    days: list[int] = []
    for hour in hours:
        local = datetime.fromtimestamp(hour["start"], ZONE)
        if local.hour == 0:
            days.append(hour["start"])
    step = ceil(len(days) / 16)
    for start in days[::step]:
        labels.append(
            f'<line class="grid" x1="{x(start):.1f}" x2="{x(start):.1f}" y1="{TOP}" '
            f'y2="{height - BOTTOM}"/>'
        )
        day = datetime.fromtimestamp(start, ZONE).day
        labels.append(_text(x(start) + 3, height - 8, str(day), "start"))
    return x, "".join(labels)


def _curve(
    hours: Sequence[Mapping[str, int]], name: str, unit: str, colour: str, label: str
) -> str:
    """A quantity in thousands, hour by hour."""
    height = 170
    y, drawn, opened = _frame(
        _ticks(0, max(hour[name] for hour in hours) / 1000, 4), unit, height, label
    )
    x, labels = _hour_axis(hours, height)
    drawn.append(labels)
    drawn.append(_path(((x(hour["start"] + 1800), y(hour[name] / 1000)) for hour in hours), colour))
    return _plot({}, f"{opened}{''.join(drawn)}</svg>")


def _prices(outcome: Outcome) -> str:
    hours, height = outcome.hours, 300
    cents = [hour["price"] / 10_000 for hour in hours]
    dots = [
        (one["interval_start"], price / 10_000)
        for one in outcome.auctions
        for price in (*one["prices"], one["hub_price"])
        if price is not None
    ]
    values = [*cents, *(price for _, price in dots), 0.0]
    y, drawn, opened = _frame(_ticks(min(values), max(values), 7), "ct", height, "Prices")
    x, labels = _hour_axis(hours, height)
    drawn.append(labels)
    drawn += [
        f'<circle cx="{x(start + 450):.1f}" cy="{y(price):.1f}" r="1.9" fill="var(--b)" '
        'fill-opacity=".65"/>'
        for start, price in dots
    ]
    points = []
    for hour, price in zip(hours, cents, strict=True):
        points += [(x(hour["start"]), y(price)), (x(hour["start"] + 3600), y(price))]
        if price < 0:
            title = f"{datetime.fromtimestamp(hour['start'], ZONE):%d %b %H:%M}: {price:.2f} ct"
            width = max(1.5, x(hour["start"] + 3600) - x(hour["start"]))
            drawn.append(_bar(x(hour["start"]), y(0), width, y(price) - y(0), "e", title))
    drawn.append(_path(points, "a"))
    keys = {"day-ahead market": "a", "below zero": "e", "local auctions": "b"}
    return _plot(keys, f"{opened}{''.join(drawn)}</svg>")


def _losses(outcome: Outcome) -> str:
    """Mean power lost between two balances, by transformer."""
    found = [(one, one["loss_wh"] * 3600 / (one["to"] - one["from"])) for one in outcome.balances]
    if not found:
        return (
            '<p class="note">Fewer than ten homes are behind each transformer, or one of them '
            "stands out: their sum isn't made public, so there is no balance to show.</p>"
        )
    height = 220
    y, drawn, opened = _frame(_ticks(0, max(watts for _, watts in found), 4), "W", height, "Losses")
    start = min(hour["start"] for hour in outcome.hours)
    end = max(hour["start"] for hour in outcome.hours) + 3600
    x, labels = _hour_axis(outcome.hours, height)
    drawn.append(labels)
    colours = dict(zip(UTILITIES, ("a", "b", "c"), strict=True))
    for utility, colour in colours.items():
        points = []
        for one, watts in found:
            if one["utility"] == utility:
                points += [
                    (x(max(start, one["from"])), y(watts)),
                    (x(min(end, one["to"])), y(watts)),
                ]
        if points:
            drawn.append(_path(points, colour, 2.2))
    plot = _plot(
        {f"transformer of {utility}": colour for utility, colour in colours.items()},
        f"{opened}{''.join(drawn)}</svg>",
    )
    rows = []
    for utility in UTILITIES:
        own = [one for one, _ in found if one["utility"] == utility]
        if own:
            delivered, taken, lost = (
                sum(one[name] for one in own) for name in ("delivered_wh", "homes_wh", "loss_wh")
            )
            rows.append(
                (
                    utility,
                    f"{len(own)}",
                    f"{delivered / 1000:,.1f} kWh",
                    f"{taken / 1000:,.1f} kWh",
                    f"{lost / 1000:,.1f} kWh",
                    f"{100 * lost / delivered:.1f} %" if delivered else "",
                )
            )
    head = ("transformer", "balances", "delivered", "to homes, net", "lost", "of it")
    return plot + _table(head, rows, range(1, 6))


def _readings(outcome: Outcome) -> str:
    """How readings came, and what that did."""
    found = outcome.readings
    accepted = found["accepted"] - found["corrected"]
    bills = found["bills_raised"] + found["bills_credited"]
    rows = [
        ("Accepted", f"{accepted:,}", "each of every meter and quarter hour, once"),
        (
            "Late",
            f"{found['late']:,}",
            "two days after the others; estimated until then, from a week or a day before",
        ),
        ("Repeated", f"{found['duplicate']:,}", "sent twice; the second changed nothing"),
        (
            "Corrected",
            f"{found['corrected']:,}",
            "by the next version; at first the operator had put another value in its place",
        ),
        (
            "After finality",
            f"{found['after_final']:,}",
            f"of them; {found['adjusted_days']:,} days of connections and {bills} bills adjusted",
        ),
    ]
    return f"""<h2>Readings</h2><p class="note">Not all come in time, once and right. Of
{found["days"]:,} days of connections, {found["days_changed"]:,} came to another amount finally
than the next morning, by {_eur(found["moved_micro"])} in all; late and corrected readings move
money by themselves, and in the end every account stands as if all had come at once.</p>
{_table(("", "readings", ""), rows, (1,), stack=True)}"""


def _community(outcome: Outcome) -> str:
    found = outcome.community
    return f"""<h2>A community</h2><p>{len(found["members"])} homes,
{found["members"][0]} to {found["members"][-1]}, share in every quarter hour what some export and
others import, after their trades: {found["shared_wh"] / 1000:,.1f} kWh at {
        found["price"] / 10_000:g} ct, {_eur(found["amount_micro"])} in all. What it leaves is
billed.</p>"""


def _bills(bills: Sequence[Mapping[str, Any]]) -> str:
    homes = sorted(
        (one for one in bills if one["tariff"] != "PLANT"), key=lambda one: -one["total_micro"]
    )
    height = 280
    totals = [one["total_micro"] / MICRO for one in homes]
    compared = [(one["regulated_micro"] or 0) / MICRO for one in homes]
    y, drawn, opened = _frame(
        _ticks(min(0.0, *totals, *compared), max(*totals, *compared, 1.0)), "€", height, "Bills"
    )
    x = _Scale(0, len(homes), LEFT, WIDTH - RIGHT)
    width = min(40.0, (x(1) - x(0)) * 0.74)
    for number, one in enumerate(homes):
        total = one["total_micro"] / MICRO
        centre = (x(number) + x(number + 1)) / 2
        top, bottom = sorted((y(0), y(total)))
        colour = "a" if one["tariff"].startswith("FLAT") else "d"
        title = f"{one['connection_id']}, {one['tariff']}: {total:,.2f} €"
        drawn.append(_bar(centre - width / 2, top, width, bottom - top, colour, title))
        if colour == "d":
            level = y(compared[number])
            drawn.append(
                f'<line x1="{centre - width / 2 - 1:.1f}" x2="{centre + width / 2 + 1:.1f}" '
                f'y1="{level:.1f}" y2="{level:.1f}" stroke="var(--ink)" stroke-width="2"/>'
            )
    drawn.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, "homes, by their bill"))
    keys = {
        "day and night tariff": "a",
        "day-ahead tariff": "d",
        "the same by day and night tariff": "ink",
    }
    return _plot(keys, f"{opened}{''.join(drawn)}</svg>")


def _home_day(statement: Mapping[str, Any]) -> str:
    """A home's day by quarter hour: what it took and gave, and what of it was traded."""
    taken, given = statement["import_wh"], statement["export_wh"]
    start = datetime.fromisoformat(statement["day"]).replace(tzinfo=ZONE).timestamp()
    bought: dict[int, int] = {}
    sold: dict[int, int] = {}
    for row in statement["rows"]:
        place = int((int(row["interval_start"]) - start) // QUARTER_S)
        for line in row["lines"]:
            into = {"bought": bought, "sold": sold}.get(line["kind"])
            if into is not None:
                into[place] = into.get(place, 0) + int(line["energy_wh"])
    height = 230
    y, drawn, opened = _frame(
        _ticks(-max(1, *given, *sold.values()), max(1, *taken, *bought.values())),
        "Wh",
        height,
        "A home's day",
    )
    x = _Scale(0, len(taken), LEFT, WIDTH - RIGHT)
    width = (x(1) - x(0)) * 0.8
    for place, (imported, exported) in enumerate(zip(taken, given, strict=True)):
        at = x(place) + (x(1) - x(0)) * 0.1
        moment = datetime.fromtimestamp(start + place * QUARTER_S, ZONE)
        clock = f"{moment:%H:%M}"
        drawn.append(
            _bar(at, y(imported), width, y(0) - y(imported), "a", f"{clock}: {imported} Wh")
        )
        drawn.append(_bar(at, y(0), width, y(-exported) - y(0), "c", f"{clock}: {exported} Wh"))
        for energy, sign in ((bought.get(place, 0), 1), (sold.get(place, 0), -1)):
            if energy:
                level = y(sign * energy)
                drawn.append(
                    f'<line x1="{at:.1f}" x2="{at + width:.1f}" y1="{level:.1f}" '
                    f'y2="{level:.1f}" stroke="var(--b)" stroke-width="2.4"/>'
                )
        if moment.minute == 0 and moment.hour % 3 == 0:
            drawn.append(_text(x(place), height - 8, f"{moment:%H}:00"))
    keys = {"import": "a", "export": "c", "bought or sold of it": "b"}
    return _plot(keys, f"{opened}{''.join(drawn)}</svg>")


def _home_battery(statement: Mapping[str, Any]) -> str:
    """What the home's battery holds on that day."""
    stored = [wh / 1000 for wh in statement["stored_wh"]]
    if not any(stored):
        return ""
    height = 130
    y, drawn, opened = _frame(_ticks(0, max(stored), 3), "kWh", height, "The home's battery")
    x = _Scale(0, len(stored), LEFT, WIDTH - RIGHT)
    drawn.append(_path(((x(place + 1), y(kwh)) for place, kwh in enumerate(stored)), "d", 2))
    return _plot({"in its battery": "d"}, f"{opened}{''.join(drawn)}</svg>")


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Iterable[int] = (),
    *,
    stack: bool = False,
) -> str:
    """A table; `stack` puts its cells below one another on a phone."""
    right = set(numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if at in right else ''}>{cell}</{tag}>"
            for at, cell in enumerate(row)
        )

    body = "".join(
        f"<tr{' class=sum' if row[0] == 'Total' else ''}>{cells('td', row)}</tr>" for row in rows
    )
    title = f"<tr>{cells('th', head)}</tr>" if any(head) else ""
    kind = ' class="stack"' if stack else ""
    return f'<div class="wide"><table{kind}>{title}{body}</table></div>'


def _line_row(line: Mapping[str, Any]) -> tuple[str, str, str]:
    kind, quantity = line["kind"], int(line["quantity"])
    name = KINDS.get(kind, kind)
    if kind in ("energy", "tax"):
        name += f" ({line['name'].title() if kind == 'energy' else line['name']})"
    shown = {
        "standing": f"{quantity} {'day' if quantity == 1 else 'days'}",
        "tax": f"{int(line['price']) / 10_000:g} %",
        "rounding": "",
    }.get(kind, f"{quantity / 1000:,.1f} kWh")
    return escape(name), shown, _eur(int(line["amount_micro"]))


def _statement(outcome: Outcome) -> str:
    found = outcome.statement
    bill, net = found["bill"], found["net"]
    lines = [_line_row(line) for line in bill["lines"]]
    lines.append(("Total", "", _eur(bill["total_micro"])))
    sums: dict[str, tuple[int, int]] = {}
    for one in net["sums"]:
        energy, amount = sums.get(one["kind"], (0, 0))
        sums[one["kind"]] = energy + int(one["energy_wh"]), amount + int(one["amount_micro"])
    settled = [
        (KINDS.get(kind, kind), f"{energy / 1000:,.1f} kWh", _eur(amount))
        for kind, (energy, amount) in sums.items()
        if kind not in ("feed_in", "import")
    ]
    settled.append(("Total", "", _eur(int(net["net_micro"]))))
    entries = [
        (
            f"{datetime.fromtimestamp(int(one['at']), ZONE):%d %b %H:%M}",
            escape(KINDS.get(one["kind"], one["kind"].replace("_", " ").title())),
            "its bank"
            if one["counterparty"].startswith("ext/bank/")
            else escape(one["counterparty"]),
            _eur(int(one["amount_micro"]), 4),
        )
        for one in found["entries"]
    ]
    return f"""
<h2>A home's statement</h2>
<p class="note">{found["connection_id"]} at {found["utility"]}, {found["peak_w"] / 1000:g} kWp{
        f" and a battery of {found['battery_wh'] / 1000:g} kWh" if found["battery_wh"] else ""
    } on the measured house {found["house"]}; the tariff is {escape(bill["tariff"])}. Only the home
and its utility see the lines and the quarter hours; public are the bill's total and sums of whole
days.</p>
<div class="two">
<div><h3>The bill</h3>{_table(("", "", "to be paid"), lines, (1, 2))}</div>
<div><h3>What it traded and shared</h3>{_table(("", "", "received"), settled, (1, 2))}</div>
</div>
<h3>Its {datetime.fromisoformat(found["day"]):%d %B}, Wh in a quarter hour</h3>
{_home_day(found)}{_home_battery(found)}
<h3>The last postings on its account; its balance is {_eur(found["balance_micro"])}</h3>
{_table(("when", "what", "with whom", "amount"), entries, (3,), stack=True)}
"""


def _method() -> str:
    from demo import replay_data, replay_readings

    text = (replay_data.__doc__ or "").partition("\n\n")[2].rstrip()
    lists = (replay_readings.__doc__ or "").split("\n\n")
    text += "\n" + lists[1]
    items = []
    for part in text.split("\n* "):
        name, _, rest = part.removeprefix("* ").replace("\n", " ").partition(".** ")
        items.append(f"<p><b>{escape(name.strip('* '))}.</b> {escape(' '.join(rest.split()))}</p>")
    return "".join(items)


def page(outcome: Outcome) -> str:
    """The report as HTML."""
    facts, energy = outcome.facts, outcome.facts["energy"]
    name = datetime.fromisoformat(f"{outcome.month}-01").strftime("%B %Y")
    taken = sum(day["import_wh"] for day in outcome.days)
    given = sum(day["export_wh"] for day in outcome.days)
    plant = sum(day["plant_wh"] for day in outcome.days)
    negative = sum(hour["price"] < 0 for hour in outcome.hours)
    bills = [one for one in outcome.bills if one["tariff"] != "PLANT"]
    owed = sum(one["total_micro"] for one in bills)
    odd = [day for day in outcome.days if day["intervals"] != 96]
    volume = sum(one["local_wh"] + one["hub_wh"] for one in outcome.auctions)
    lost = sum(one["loss_wh"] for one in outcome.balances)
    changes = " ".join(
        f"{datetime.fromisoformat(day['day']):%A, %d %B} has {day['intervals']} quarter hours."
        for day in odd
    )
    tiles = [
        (_kwh(taken), "imported by homes"),
        (_kwh(given), "exported by homes"),
        (_kwh(plant), "exported by the plant"),
        (_kwh(energy.get("sold", 0)), "sold to neighbours and suppliers"),
        (_kwh(energy.get("shared", 0)), "shared in a community"),
        (_eur(owed, 0), f"in {len(bills)} homes' bills"),
        (f"{outcome.certificates['issued']} MWh", "of green certificates"),
        (f"{facts['transactions']:,}", f"transactions in {facts['blocks']:,} blocks"),
        (f"{negative} hours", "with a price below zero"),
        (
            f"{sum(one.holds for one in outcome.checks)} of {len(outcome.checks)}",
            "sums checked and right",
        ),
    ]
    checks = [
        (
            '<span class="ok">✓ holds</span>' if one.holds else '<span class="bad">✗ wrong</span>',
            f"<b>{escape(one.name)}</b>",
            escape(one.detail),
        )
        for one in outcome.checks
    ]
    plant_bill = next(one for one in outcome.bills if one["tariff"] == "PLANT")
    shown = outcome.certificates
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} on the ledger</title><style>{STYLE}</style></head><body><main>
<h1>{name} on the ledger</h1>
<p class="lead">{facts["homes"]} measured homes, {facts["with_panels"]} of them with panels
({facts["peak_w"] / 1000:g} kWp) and {facts["batteries"]} with a battery
({facts["battery_wh"] / 1000:g} kWh), a plant of 500 kWp and three utilities, from {facts["first"]}
to {facts["last"]}, through readings, market, settlement, bills and certificates. {changes}
Replayed in {facts["seconds"] / 60:,.1f} minutes, {
        facts["cpu_seconds"] / 60:,.1f} of them computing, with {
        facts["memory_kib"] / 1024:,.0f} MB of memory.</p>
<div class="tiles">{
        "".join(f'<div class="tile"><b>{a}</b><span>{b}</span></div>' for a, b in tiles)
    }</div>
<section><h2>Every sum, checked</h2>
<p class="note">{sum(one.holds for one in outcome.checks)} of {len(outcome.checks)} hold: against
another sum on the ledger, or against the series that went in.</p>
{_table(("", "", ""), checks, stack=True)}</section>
<section><h2>Flows</h2><p class="note">Of all homes, by day of the month. {changes}</p>
{_flows(outcome.days)}
<h3>The plant's power</h3>{_curve(outcome.hours, "plant_wh", "kW", "b", "The plant's power")}
<h3>What {facts["batteries"]} batteries hold</h3>
{_curve(outcome.hours, "stored_wh", "kWh", "d", "Energy in batteries")}</section>
<section>{_readings(outcome)}</section>
<section>{_community(outcome)}</section>
<section><h2>Prices</h2><p class="note">Cents per kWh: the day-ahead market of Germany and
Luxembourg, hour by hour, and what cleared in {len(outcome.auctions)} local call auctions,
{volume / 1000:,.1f} kWh in three zones and at the hub between them.</p>
{_prices(outcome)}</section>
<section><h2>Losses</h2><p class="note">Mean power lost at each transformer, from balances that
hide every home: where one home's export stands out on a sunny day, the balance goes on into the
next day, and one that is still open at the end isn't shown. {lost / 1000:,.1f} kWh in {
        len(outcome.balances)
    } balances.</p>
{_losses(outcome)}</section>
<section><h2>Bills</h2><p class="note">Of what trades and the community have left of each home,
with standing charge and VAT. The plant is paid {_eur(-plant_bill["total_micro"])} at day-ahead
prices, and pays for what it feeds in below zero.</p>
{_bills(outcome.bills)}</section>
<section>{_statement(outcome)}</section>
<section><h2>Certificates</h2><p>The plant exported {plant:,} Wh: {shown["issued"]} MWh in
certificates of 1 MWh each, and {shown["carry_wh"]:,} Wh that carry on to the next month. The
supplier was given {shown["claimed"]} of them and claimed them for its homes.</p></section>
<section><h2>How it was made</h2>{_method()}
<p class="note">The contracts ran through the real simulator, endorsed by two of three utilities
(private records by one), and were committed into the real ledgers of all three in one process,
without gRPC and without agreement among ordering nodes. Data: Hopf, Weigert, Weinig and Staake,
ResidentialEnergyConsumption (CC BY-SA 4.0); SimBench 1.6.3 (ODbL 1.0); Bundesnetzagentur, SMARD.de
(CC BY 4.0).</p></section>
</main></body></html>
"""


def write_report(outcome: Outcome, path: Path) -> Path:
    """Write the report; returns its path."""
    path.write_text(page(outcome), encoding="utf-8")
    return path
