"""Trading under another name: which home a pseudonym is, known to its utility alone.

A pseudonym is a connection in the registry that has no meter: an account, orders and a certificate
of its own, so that neither blocks nor books say which home trades. Its utility keeps the link in
its private collection and settles both together: of what the home's meters count, a pseudonym gets
what it bought or sold, as far as there is so much; the rest stays with the home. Each of them has
its own rows, sums and postings.

    private alias/{pseudonym}     Link
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from consortium.chaincode.api import AtMost, Conflict, Context, Identifier

from ..common import commitments
from ..common.clock import Day
from ..common.commitments import Salt
from ..settlement.days import (
    ConnectionDay,
    DayInputs,
    Elsewhere,
    MeteredInterval,
    OpenDay,
)

MAX_LINKS = 500


@dataclass(frozen=True, slots=True)
class Link:
    """Whose pseudonym it is, on local days in [from_day, until_day)."""

    pseudonym: Identifier
    connection_id: Identifier
    from_day: Day
    until_day: Day | None
    """None: until further notice."""
    salt: Salt

    def holds(self, day: str) -> bool:
        """Whether it is the home's on a day."""
        return self.from_day <= day and (self.until_day is None or day < self.until_day)


@dataclass(frozen=True, slots=True)
class Links:
    """As they travel."""

    links: Annotated[tuple[Link, ...], AtMost(MAX_LINKS)]


def link_key(pseudonym: str) -> str:
    """Where the link stands among the private records."""
    return f"alias/{pseudonym}"


def link_of(context: Context, utility: str, name: str) -> Link | None:
    """Whose pseudonym a name is; None for a home's own name. Asked alike for every name."""
    return commitments.opened(context, utility, link_key(name), Link)


def homes_of(context: Context, inputs: DayInputs) -> dict[str, str]:
    """The homes of those pseudonyms that are settled here.

    Raises:
        Conflict: a pseudonym is nobody's on that day, or its home isn't settled with it.
    """
    names = [one.connection_id for one in inputs.connections]
    found = {}
    for name in names:
        link = link_of(context, inputs.utility, name)
        if link is None:
            continue
        if not link.holds(inputs.day):
            raise Conflict(f"{name} is nobody's pseudonym on {inputs.day}")
        if link.connection_id not in names:
            raise Conflict(
                f"{name} is a pseudonym, and its home isn't settled with it; settle many homes and "
                "their pseudonyms by one call"
            )
        found[name] = link.connection_id
    return found


def split(
    inputs: DayInputs, pseudonym: ConnectionDay, home: Sequence[MeteredInterval]
) -> tuple[list[MeteredInterval], list[MeteredInterval]]:
    """What of a home's intervals is its pseudonym's, and what stays."""
    bought: dict[int, int] = {}
    sold: dict[int, int] = {}
    for trade in pseudonym.trades:
        side = bought if trade.energy_wh > 0 else sold
        side[trade.interval_start] = side.get(trade.interval_start, 0) + abs(trade.energy_wh)
    taken, left = [], []
    for number, one in enumerate(home):
        start = inputs.from_ + number * inputs.interval_s
        import_wh = min(one.import_wh, bought.get(start, 0))
        export_wh = min(one.export_wh, sold.get(start, 0))
        taken.append(MeteredInterval(import_wh, export_wh, one.quality))
        elsewhere = one.elsewhere
        if import_wh or export_wh:
            before = elsewhere or Elsewhere(0, 0)
            elsewhere = Elsewhere(before.import_wh + import_wh, before.export_wh + export_wh)
        left.append(
            replace(
                one,
                import_wh=one.import_wh - import_wh,
                export_wh=one.export_wh - export_wh,
                elsewhere=elsewhere,
            )
        )
    return taken, left


def together(
    context: Context, utility: str, days: Sequence[OpenDay]
) -> list[tuple[OpenDay, dict[str, str]]]:
    """Open days with each pseudonym beside its home, and the homes of the pseudonyms.

    Parts stay as large as they were, so more may come of them; those with pseudonyms are filled
    with other homes. A pseudonym whose home isn't to be settled waits for the next run.
    """
    links: dict[str, Link | None] = {}
    for one in days:
        for name in one.connections:
            if name not in links:
                links[name] = link_of(context, utility, name)
    linked: dict[tuple[str, str, str], list[str]] = {}
    for one in days:
        for name in one.connections:
            link = links[name]
            if link is not None and link.holds(one.day):
                linked.setdefault((one.day, one.run, link.connection_id), []).append(name)
    found = []
    for one in days:
        names_of = {home: linked.get((one.day, one.run, home), []) for home in one.connections}
        homes = {name: home for home, names in names_of.items() for name in names}
        families = [
            [home, *sorted(names_of[home])] for home in one.connections if links[home] is None
        ]
        parts: list[list[str]] = [[]]
        for family in sorted(families, key=lambda names: (len(names) == 1, names)):
            full = len(parts[-1]) + len(family) > len(one.connections)
            if parts[-1] and full and not one.together:
                parts.append([])
            parts[-1] += family
        found += [
            (
                replace(one, connections=tuple(sorted(part))),
                {name: homes[name] for name in part if name in homes},
            )
            for part in parts
            if part
        ]
    return found
