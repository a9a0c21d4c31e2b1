"""Meters that say nothing: one by itself, all behind a gateway, or all behind a transformer.

Pure functions. A meter is silent once a stated number of intervals have passed without a reading of
it; one whose power went away may have said so with its last message, and is silent from then on.
What many have in common tells where to look: many under one transformer, through more than one
gateway or with last gasps, is an outage of the transformer; all behind one gateway is the
gateway's; the rest are single faults. Meters that fell silent at other times are no part of a
common fault.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIN_GROUP = 3
"""Meters that make a common fault of a transformer; two can be a coincidence."""
MIN_GATEWAY_GROUP = 2
SHARE_PPM = 800_000
"""Of the meters under a transformer that were alive before: a meter that goes on proves power, but
may be wrongly placed or have a source of its own."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A meter as it is seen from the utility's desk."""

    meter_id: str
    transformer_id: str | None
    gateway: str | None
    silent_since: int | None
    """End of its last reading if it is silent; None: it goes on."""
    last_gasp: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """Meters that fell silent together, or one by itself."""

    kind: str
    """transformer, gateway or single."""
    name: str
    """Of the transformer, gateway or meter."""
    since: int
    """When the first of them was last heard."""
    meters: tuple[str, ...]
    last_gasps: int
    alive: int
    """Meters in the same place that go on."""


def silent_since(last_end: int, gasp_at: int | None, now: int, deadline_s: int) -> int | None:
    """Since when a meter is silent; None if it isn't.

    Args:
        last_end: The end of its last reading, or when it was installed.
        gasp_at: When its last gasp said that power went away, if nothing came after it.
        now: The channel's time.
        deadline_s: After how long without a reading it is silent.
    """
    if gasp_at is not None and gasp_at >= last_end:
        return gasp_at
    return last_end if now - last_end >= deadline_s else None


def classify(meters: Sequence[Watched], window_s: int) -> list[Fault]:
    """Tell faults apart; transformers first, then gateways, then single meters, by name.

    Args:
        meters: All that should send, silent or not.
        window_s: Meters that fell silent within so long of each other fell silent together.
    """
    open_ = {meter.meter_id: meter for meter in meters if meter.silent_since is not None}
    faults = []
    for name, group in _groups(meters, "transformer"):
        fault = _common("transformer", name, group, open_, window_s)
        if fault is not None:
            faults.append(fault)
            for meter_id in fault.meters:
                del open_[meter_id]
    for name, group in _groups(meters, "gateway"):
        fault = _common("gateway", name, group, open_, window_s)
        if fault is not None:
            faults.append(fault)
            for meter_id in fault.meters:
                del open_[meter_id]
    for meter_id in sorted(open_):
        meter = open_[meter_id]
        assert meter.silent_since is not None
        faults.append(
            Fault("single", meter_id, meter.silent_since, (meter_id,), int(meter.last_gasp), 0)
        )
    return faults


def _groups(meters: Sequence[Watched], kind: str) -> list[tuple[str, list[Watched]]]:
    found: dict[str, list[Watched]] = {}
    for meter in meters:
        name = meter.transformer_id if kind == "transformer" else meter.gateway
        if name is not None:
            found.setdefault(name, []).append(meter)
    return sorted(found.items())


def _common(
    kind: str, name: str, group: Sequence[Watched], open_: Mapping[str, Watched], window_s: int
) -> Fault | None:
    """The fault that a group's meters have in common, if they have one."""
    together = _together([meter for meter in group if meter.meter_id in open_], window_s)
    if len(together) < (MIN_GROUP if kind == "transformer" else MIN_GATEWAY_GROUP):
        return None
    alive = sum(1 for meter in group if meter.silent_since is None)
    gasps = sum(1 for meter in together if meter.last_gasp)
    if kind == "gateway":
        if alive:
            return None  # What one of its meters sends has gone through it.
    else:
        if len(together) * 1_000_000 < SHARE_PPM * (len(together) + alive):
            return None
        ways = list(dict.fromkeys(meter.gateway or meter.meter_id for meter in together))
        if len(ways) == 1 and not gasps:
            return None  # All went through one gateway: that, not power, is what they share.
    since = min(meter.silent_since for meter in together if meter.silent_since is not None)
    names = tuple(sorted(meter.meter_id for meter in together))
    return Fault(kind, name, since, names, gasps, alive)


def _together(silent: Sequence[Watched], window_s: int) -> list[Watched]:
    """The most meters that fell silent within a window; of equal ones the latest."""
    best: list[Watched] = []
    ordered = sorted(silent, key=lambda meter: (meter.silent_since or 0, meter.meter_id))
    times = [meter.silent_since or 0 for meter in ordered]
    for index, first in enumerate(times):
        end = bisect_right(times, first + window_s)
        if end - index >= len(best):
            best = ordered[index:end]
    return best
