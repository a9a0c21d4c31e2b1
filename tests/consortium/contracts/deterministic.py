"""One endorser's work, to be done by processes that differ in all that must not matter.

Prints a hash over the read and write sets of a sale, of a community's day with an auction, and over
a bill of a local day that has 25 hours. `test_sources.py` compares them.
"""

import hashlib
from typing import Any

from consortium.contracts.common.clock import DAY_S
from tests.consortium.contracts.town import DAY, START, Town
from tests.consortium.contracts.world import (
    BOREAL_SUPPLIER,
    HOME,
    NOON,
    OPERATOR,
    SUPPLIER,
    World,
    energy_world,
)

LONG_DAY = "2026-11-23"
CALENDAR = {
    "region": "HERE",
    "offsets": [
        {"from": START - 30 * DAY_S, "offset_s": 7200},
        {"from": START + DAY_S + 3600, "offset_s": 3600},
    ],
    "known_until": START + 90 * DAY_S,
    "holidays": [LONG_DAY],
}
TARIFF = {
    "tariff": "T",
    "supplier": "AuroraMSP",
    "standing_micro_per_day": 1,
    "bands": [
        {"name": "NIGHT", "days": "HOLIDAY", "from_minute": 120, "to_minute": 180, "price": 7},
        {"name": "DAY", "days": "EVERY", "from_minute": 0, "to_minute": 1440, "price": 11},
    ],
    "blocks": [],
    "index": None,
    "index_ppm": 0,
    "markup": 0,
    "capacity_micro_per_kw_month": 3,
    "feed_in": 5,
    "feed_in_index_ppm": 0,
    "taxes": [{"name": "VAT", "rate_ppm": 220_000}],
    "rounding": "line",
}


class Hashed:
    """Calls, with what they read and write hashed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.digest = hashlib.sha256()

    def submit(self, caller: Any, function: str, **argument: Any) -> Any:
        answer = self.world.simulate(caller, function, argument)
        self.digest.update(answer.results.rwset)
        if answer.results.private is not None:
            self.digest.update(answer.results.private.SerializeToString())
        assert self.world.state.commit(answer.results) == [0]
        return answer.value


def sale() -> str:
    world = energy_world(replay={"anchor": 0, "origin": 0, "rate": 1})
    for supplier, caller in (("AuroraMSP", SUPPLIER), ("BorealMSP", BOREAL_SUPPLIER)):
        rate = {"day": "2026-11-21", "kind": "buy", "price_micro_per_kwh": 81_000}
        world.submit(caller, "market:PublishRate", supplier=supplier, **rate)
    hashed = Hashed(world)
    window = {"window_start": NOON + 3600, "window_end": NOON + 7200 + 3600}
    quoted = hashed.submit(HOME, "market:Quote", connection_id="CP-0001", energy_wh=8000, **window)
    hashed.submit(HOME, "market:Authorise", request_id="r", **quoted)
    for key, value in sorted(world.state.values().items()):
        hashed.digest.update(repr((key, value)).encode())
    return hashed.digest.hexdigest()


def days() -> str:
    terms = {"shared_fee": 10_000, "netting_intervals": 4}
    town = Town.of("CP-1", "CP-2", "CP-3", product=True, terms=terms)
    world = town.world
    town.found_community("HILL", 120_000)
    town.agree("tariff:ProposeCalendar", "tariff:ApproveCalendar", CALENDAR, region="HERE")
    town.agree("tariff:Propose", "tariff:Approve", TARIFF, tariff="T")
    world.now = START - 20 * 3600
    for name in ("CP-2", "CP-3"):
        joined = {"community": "HILL", "connection_id": name, "from_day": DAY}
        world.submit(town.homes[name], "sharing:Join", **joined)
    world.now = START
    town.order("CP-1", "offer", 900, 50_000, 40)
    town.order("CP-2", "bid", 700, 90_000, 40)
    town.clear(40)
    names = sorted(town.homes)
    town.read_day(
        {
            name: {at: (13 * at % 700, 7 * at * (number + 1) % 500) for at in range(96)}
            for number, name in enumerate(names)
        }
    )
    world.now = START + DAY_S
    hashed = Hashed(world)
    where = {"utility": "AuroraMSP", "day": DAY, "run": "provisional"}
    hashed.submit(OPERATOR, "daybook:Commit", **where, connections=names)
    summaries = [town.record(name)["summary"] for name in names]
    hashed.submit(OPERATOR, "settlement:Post", **where, summaries=summaries)
    assert {"shared", "sold", "netted"} <= town.sums("CP-3").keys() | town.sums("CP-1").keys()
    begin = START + DAY_S - 7200
    bill = world.evaluate(
        OPERATOR,
        "tariff:Compute",
        tariff="T",
        region="HERE",
        from_day=LONG_DAY,
        to_day="2026-11-24",
        usage=[
            {"interval_start": begin + 900 * at, "import_wh": 900 + at, "export_wh": at}
            for at in range(100)
        ],
    )
    # From two to three o'clock comes twice.
    night = next(line for line in bill["lines"] if line["name"] == "NIGHT")
    assert night["quantity"] == str(sum(900 + at for at in range(8, 16)))
    hashed.digest.update(repr(bill).encode())
    return hashed.digest.hexdigest()


if __name__ == "__main__":
    print(hashlib.sha256((sale() + days()).encode()).hexdigest())
