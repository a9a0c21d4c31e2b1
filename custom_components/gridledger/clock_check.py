"""Whether this home's clock is right, by the clocks of its ledger's gateways.

Intervals are cut by this machine's clock: where it is off, energy is counted into the wrong ones,
and from a quarter of an hour on peers refuse whatever this home proposes (``TIME_WINDOW_S`` in
``consortium/peer/endorser.py``). The owner is told long before.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from homeassistant.core import HomeAssistant
from homeassistant.helpers import issue_registry as ir

from .client import ClockBounds
from .const import DOMAIN

if TYPE_CHECKING:
    from .coordinator import GridLedgerConfigEntry
    from .session import LedgerSession

CLOCK_OFF_S: Final = 60
LOOK_EACH: Final = timedelta(minutes=15)


def clock_ahead_s(clocks: Sequence[ClockBounds]) -> float | None:
    """Return by how many seconds this clock is ahead, negative where it is behind, if it is off.

    It is where more than half of the gateways that tell their time say so, in the same direction:
    one that is wrong itself, among others, neither accuses nor acquits.
    """
    ahead = [each for each in clocks if each.least_s >= CLOCK_OFF_S]
    behind = [each for each in clocks if each.most_s <= -CLOCK_OFF_S]
    for agreed in (ahead, behind):
        if 2 * len(agreed) > len(clocks):
            middles = sorted((each.least_s + each.most_s) / 2 for each in agreed)
            return middles[len(middles) // 2]
    return None


async def async_check_clock(
    hass: HomeAssistant, entry: GridLedgerConfigEntry, session: LedgerSession
) -> None:
    """Raise the issue, or take it back; leave it as it is where no gateway tells the time.

    Whether or not the ledger takes what we propose.
    """
    clocks = await session.client.compare_clocks()
    if not clocks:
        return
    issue_id = f"clock_off_{entry.entry_id}"
    ahead_s = clock_ahead_s(clocks)
    if ahead_s is None:
        ir.async_delete_issue(hass, DOMAIN, issue_id)
        return
    off_s = abs(ahead_s)
    ir.async_create_issue(
        hass,
        DOMAIN,
        issue_id,
        is_fixable=False,
        severity=ir.IssueSeverity.WARNING,
        translation_key="clock_ahead" if ahead_s > 0 else "clock_behind",
        translation_placeholders={
            "home": entry.title,
            "offset": f"{off_s:.0f} s" if off_s < 180 else f"{off_s / 60:.0f} min",
        },
    )
