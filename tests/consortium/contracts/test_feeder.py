"""Sums of homes behind a transformer, from registers that are never all read."""

import json
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.chaincode.api import (
    Conflict,
    ContractError,
    Creator,
    Forbidden,
    InvalidArgument,
    NotFound,
    canonical_json,
    sha256_hex,
)
from consortium.contracts.meters.readings import Reading, interval_key, stored_bytes
from consortium.ledger.state import Version, VersionedValue
from tests.consortium.contracts.test_balance import commit_private
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    HOME,
    NOON,
    OPERATOR,
    TestMeter,
    World,
    writes,
)

DAY_S = 86_400
START = NOON // DAY_S * DAY_S - 20 * DAY_S
HOMES = [f"CP-{home:02d}" for home in range(12)]
DAYS = 13


@cache
def _grid() -> World:
    """Twelve homes behind a transformer, all metered by Aurora."""
    world = World(now=START - DAY_S)
    begin: dict[str, Any] = {"from": START}
    for contract in ("registry", "metering"):
        world.submit(ADMIN, f"{contract}:Configure")
    transformer = {
        "transformer_id": "T-1",
        "utility": "AuroraMSP",
        "zone": "NORTH",
        "rated_va": 400_000,
        "no_load_w": 0,
    }
    world.submit(OPERATOR, "grid:RegisterTransformer", transformer=transformer)
    for name in HOMES:
        world.submit(
            OPERATOR,
            "registry:RegisterConnection",
            connection_id=name,
            utility="AuroraMSP",
            zone="NORTH",
            max_export_w=10_000,
            max_import_w=20_000,
        )
    world.submit(OPERATOR, "grid:Connect", transformer_id="T-1", connections=HOMES, **begin)
    for place in (*HOMES, "T-1"):
        world.submit(
            OPERATOR,
            "metering:RegisterMeter",
            meter_id=f"M-{place}",
            connection_id=place,
            utility="AuroraMSP",
            source_class="accredited",
            public_key=TestMeter(f"M-{place}").public_key,
        )
    world.now = NOON
    return world


@dataclass
class Street:
    """Registers of twelve homes and their transformer, put where submissions would put them."""

    world: World = field(default_factory=lambda: deepcopy(_grid()))

    def read(self, meter_id: str, at: int, import_register_wh: int, export: int = 0) -> None:
        """A reading of the interval that ends at an instant."""
        start = at - 900
        reading = Reading(
            meter_id, start, 900, 1, 0, 0, import_register_wh, export, "measured",
            sha256_hex(f"{meter_id}/{start}".encode()), "",
        )  # fmt: skip
        commit_private(self.world, "AuroraMSP", interval_key(meter_id, start), reading)
        place = ("metering", "readings-AuroraMSP", interval_key(meter_id, start))
        self.world.state.private[place] = VersionedValue(stored_bytes(reading), b"", Version(1, 0))

    def read_all(self, at: int, register_wh: int, *, but: tuple[str, ...] = ()) -> None:
        for index, name in enumerate(HOMES):
            if name not in but:
                self.read(f"M-{name}", at, register_wh + index)

    def sum(self, from_: int, to: int, caller: Creator = OPERATOR) -> Any:
        return self.world.simulate(
            caller,
            "feeder:SumHomes",
            {"node_id": "T-1", "utility": "AuroraMSP", "from": from_, "to": to},
        )

    def commit(self, answer: Any) -> Any:
        assert self.world.state.commit(answer.results) == [0]
        return answer.value

    def share(self, to: int) -> Any:
        return self.world.evaluate(
            OPERATOR, "feeder:Share", node_id="T-1", utility="AuroraMSP", to=to
        )


def test_a_sum_is_committed_to_in_private_and_its_answer_tells_no_amount() -> None:
    street = Street()
    street.read_all(START, 1_000)
    street.read_all(START + DAY_S, 11_000)
    answer = street.sum(START, START + DAY_S)
    end = START + DAY_S
    assert writes(answer.results) == [
        f"readings-AuroraMSP:feeder/T-1/{end}/lines",
        f"readings-AuroraMSP:feeder/T-1/{end}/share",
    ]
    value = street.commit(answer)
    assert set(value) == {"node_id", "utility", "from", "to", "homes", "public", "commitment"}
    share = street.share(end)
    assert (share["net_wh"], share["homes"], share["public"]) == ("120000", "12", True)
    assert sha256_hex(canonical_json(share)) == value["commitment"]
    lines = street.world.evaluate(
        OPERATOR, "feeder:Lines", node_id="T-1", utility="AuroraMSP", to=end
    )
    assert len(lines["lines"]) == 12
    assert sha256_hex(canonical_json(lines)) == share["lines"]


def test_the_same_again_changes_nothing_whatever_has_come_in_since() -> None:
    street = Street()
    street.read_all(START, 1_000)
    street.read_all(START + DAY_S - 900, 10_900)
    first = street.commit(street.sum(START, START + DAY_S))
    share = street.share(START + DAY_S)
    assert share["late"] == "12"
    street.read_all(START + DAY_S, 11_000)
    again = street.sum(START, START + DAY_S)
    assert again.value == first
    assert writes(again.results), "a private write keeps it under the collection's policy"
    street.commit(again)
    assert street.share(START + DAY_S) == share


def test_a_home_that_was_not_read_counts_later_and_nothing_is_lost() -> None:
    street = Street()
    street.read_all(START, 0)
    street.read_all(START + DAY_S, 10_000, but=("CP-03",))
    street.read("M-CP-03", START + DAY_S - 1_800, 9_700)
    street.commit(street.sum(START, START + DAY_S))
    share = street.share(START + DAY_S)
    assert share["late"] == "1"
    street.read("M-CP-03", START + DAY_S, 10_003)  # it comes after all
    street.read_all(START + 2 * DAY_S, 20_000)
    street.commit(street.sum(START + DAY_S, START + 2 * DAY_S))
    both = int(share["net_wh"]) + int(street.share(START + 2 * DAY_S)["net_wh"])
    assert both == 12 * 20_000


def test_a_home_that_was_not_read_for_hours_is_named_to_its_utility() -> None:
    street = Street()
    street.read_all(START, 0)
    street.read_all(START + DAY_S, 10_000, but=("CP-03",))
    street.read("M-CP-03", START + DAY_S - 5 * 3600, 9_000)
    with pytest.raises(Conflict, match=r"1 of 12 homes were not read .*CP-03 \(meter M-CP-03\)"):
        street.sum(START, START + DAY_S)


def test_an_exchanged_meter_counts_to_its_end_and_its_successor_from_its_beginning() -> None:
    street = Street()
    exchanged = START + DAY_S // 2
    street.read_all(START, 0)
    street.read_all(START + DAY_S, 10_000, but=("CP-00",))
    old = street.world.state.public["metering", "meter/M-CP-00"]
    world = street.world
    old_meter = json.loads(old.value)
    new_meter = {**old_meter, "meter_id": "M-NEW", "installed_at": str(exchanged)}
    old_meter = {**old_meter, "removed_at": str(exchanged), "replaced_by": "M-NEW"}
    for meter in (old_meter, new_meter):
        place = ("metering", f"meter/{meter['meter_id']}")
        world.state.public[place] = VersionedValue(canonical_json(meter), b"", Version(1, 0))
    listed = canonical_json({"meters": ["M-CP-00", "M-NEW"]})
    world.state.public["metering", "meters/CP-00/accredited"] = VersionedValue(
        listed, b"", Version(1, 0)
    )
    street.read("M-CP-00", exchanged, 6_000)
    street.read("M-NEW", exchanged, 77)
    street.read("M-NEW", START + DAY_S, 77 + 4_000)
    street.commit(street.sum(START, START + DAY_S))
    assert street.share(START + DAY_S)["net_wh"] == str(12 * 10_000)


def test_a_sum_with_one_large_home_is_not_for_the_public() -> None:
    street = Street()
    street.read_all(START, 0)
    street.read_all(START + DAY_S, 10_000, but=("CP-00",))
    street.read("M-CP-00", START + DAY_S, 30_000)
    assert street.commit(street.sum(START, START + DAY_S))["public"] is False


def test_from_registers_to_an_alert_and_to_the_meter_that_changed() -> None:
    street = Street()
    world = street.world
    registers = dict.fromkeys(HOMES, 0)
    delivered = 0
    street.read_all(START, 0)
    for name in HOMES:
        street.read(f"M-{name}", START, 0)
    street.read("M-T-1", START, 0)
    for day in range(DAYS):
        from_, to = START + day * DAY_S, START + (day + 1) * DAY_S
        for index, name in enumerate(HOMES):
            used = 10_000 + 37 * ((day * 5 + index * 3) % 7)
            delivered += used * 102 // 100
            counted = used // 2 if name == "CP-07" and day >= 10 else used
            registers[name] += counted
            street.read(f"M-{name}", to, registers[name])
        street.read("M-T-1", to, delivered)
        street.commit(street.sum(from_, to))
        world.submit(OPERATOR, "balance:Report", share=street.share(to))
        node: dict[str, Any] = {"node_id": "T-1", "utility": "AuroraMSP"}
        period: dict[str, Any] = {**node, "from": from_, "to": to}
        world.submit(OPERATOR, "feeder:Measure", **period)
        record = world.evaluate(OPERATOR, "feeder:Delivered", **node, to=to)
        closed = world.submit(OPERATOR, "balance:Close", delivered=record)
        assert (closed["alert"] is None) == (day < 11), day
        if day == 9:
            world.submit(OPERATOR, "balance:Learn", node_id="T-1", first=1, last=10)
    (alert,) = world.evaluate(HOME, "balance:Alerts", node_id="T-1")["alerts"]
    assert (alert["since"], alert["loss_wh"]) == (str(START + 10 * DAY_S), alert["loss_wh"])
    assert int(alert["loss_wh"]) == pytest.approx(5_050, rel=0.1)
    (suspect,) = world.evaluate(
        OPERATOR, "feeder:Suspects", node_id="T-1", utility="AuroraMSP", alert=1
    )
    assert suspect["meter"] == "M-CP-07"
    assert int(suspect["change_ppm"]) == pytest.approx(-500_000, rel=0.05)


def test_a_period_of_the_transformer_ends_when_it_was_read() -> None:
    street = Street()
    street.read("M-T-1", START, 0)
    argument = {"node_id": "T-1", "utility": "AuroraMSP", "from": START, "to": START + DAY_S}
    with pytest.raises(Conflict, match="M-T-1 of T-1 was not read at"):
        street.world.simulate(OPERATOR, "feeder:Measure", argument)


def test_the_square_of_a_load_spreads_what_is_missing_evenly() -> None:
    street = Street()
    street.read("M-T-1", START, 0)
    street.read("M-T-1", START + DAY_S, 95 * 8)  # the last of 96; its interval counted 0
    argument = {"node_id": "T-1", "utility": "AuroraMSP", "from": START, "to": START + DAY_S}
    street.commit(street.world.simulate(OPERATOR, "feeder:Measure", argument))
    record = street.world.evaluate(
        OPERATOR, "feeder:Delivered", node_id="T-1", utility="AuroraMSP", to=START + DAY_S
    )
    assert (record["net_wh"], record["square"]) == ("760", str(95 * 8**2))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(0, 17), min_size=12, max_size=12), min_size=2, max_size=4))
def test_whatever_is_missing_periods_add_up_to_the_registers(lateness: list[list[int]]) -> None:
    """`lateness`: for each day and home, how many quarter hours before its end it was read."""
    street = Street()
    street.read_all(START, 0)
    total = 0
    ended = START  # where the last period that could be closed ends
    for day, homes in enumerate([*lateness, [0] * 12], 1):
        to = START + day * DAY_S
        for index, (name, late) in enumerate(zip(HOMES, homes, strict=True)):
            street.read(f"M-{name}", to - late * 900, day * 10_000 + index - late * 7)
        try:
            street.commit(street.sum(ended, to))
        except Conflict as error:
            assert max(homes) == 17
            assert "were not read" in str(error)  # noqa: PT017
            continue
        total += int(street.share(to)["net_wh"])
        ended = to
    last = (len(lateness) + 1) * 10_000
    assert total == 12 * last + sum(range(12)) - sum(range(12))


PERIOD = {"node_id": "T-1", "utility": "AuroraMSP", "from": START, "to": START + DAY_S}
PLACE = {"node_id": "T-1", "utility": "AuroraMSP", "to": START + DAY_S}


@pytest.mark.parametrize(
    ("caller", "function", "argument", "error", "message"),
    [
        (HOME, "SumHomes", PERIOD, Forbidden, "may not sum the homes"),
        (BOREAL_OPERATOR, "SumHomes", PERIOD, Forbidden, "operators of AuroraMSP may"),
        (OPERATOR, "SumHomes", {**PERIOD, "from": START + 1}, InvalidArgument, "a multiple"),
        (OPERATOR, "SumHomes", {**PERIOD, "to": START + 900}, InvalidArgument, "a day or longer"),
        (OPERATOR, "SumHomes", {**PERIOD, "to": START}, InvalidArgument, "72000 to 26"),
        (OPERATOR, "SumHomes", {**PERIOD, "to": START + 32 * DAY_S}, InvalidArgument, "a day"),
        (OPERATOR, "SumHomes", {**PERIOD, "to": NOON + 900}, InvalidArgument, "not over yet"),
        (OPERATOR, "SumHomes", {**PERIOD, "node_id": "T/1"}, InvalidArgument, "node_id is"),
        (OPERATOR, "SumHomes", {**PERIOD, "node_id": "T-9"}, NotFound, "no transformer or source"),
        (OPERATOR, "SumHomes", {**PERIOD, "from": -1}, InvalidArgument, "between 0 and"),
        (OPERATOR, "SumHomes", {**PERIOD, "from": START - DAY_S}, Conflict, "meters no homes"),
        (OPERATOR, "SumHomes", PERIOD, Conflict, "12 of 12 homes were not read"),
        (HOME, "Measure", PERIOD, Forbidden, "may not measure nodes"),
        (OPERATOR, "Measure", {**PERIOD, "node_id": "T-9"}, NotFound, "no accredited meter"),
        (OPERATOR, "Measure", {**PERIOD, "to": 2**63}, ContractError, "2"),
        (HOME, "Share", PLACE, Forbidden, "may not read sums"),
        (OPERATOR, "Share", PLACE, NotFound, "has no record feeder/T-1/"),
        (HOME, "Lines", PLACE, Forbidden, "may not read sums"),
        (OPERATOR, "Lines", PLACE, NotFound, "has no record"),
        (HOME, "Delivered", PLACE, Forbidden, "may not read sums"),
        (OPERATOR, "Delivered", PLACE, NotFound, "has no record"),
        (HOME, "Suspects", {"node_id": "T-1", "utility": "AuroraMSP", "alert": 1},
         Forbidden, "may not look for suspects"),
        (OPERATOR, "Suspects", {"node_id": "T-1", "utility": "AuroraMSP", "alert": 1},
         NotFound, "no alert 1"),
        (OPERATOR, "Suspects", {"node_id": "T-1", "utility": "AuroraMSP", "alert": 0},
         InvalidArgument, "alert is 0"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name_and_changes_nothing(
    caller: Creator,
    function: str,
    argument: dict[str, object],
    error: type[ContractError],
    message: str,
) -> None:
    world = Street().world
    before = world.state.values()
    with pytest.raises(error, match=message):
        world.simulate(caller, f"feeder:{function}", argument)
    assert world.state.values() == before
