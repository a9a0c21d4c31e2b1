"""Guarantees of origin: issued once, in whole units, and never used twice."""

import random
from typing import Any

import pytest

from consortium.chaincode.api import (
    Conflict,
    ContractError,
    Forbidden,
    InvalidArgument,
    NotFound,
)
from consortium.contracts.assets.certificates import whole_units
from consortium.contracts.assets.guarantees import month_end
from consortium.contracts.common.clock import day_start
from consortium.contracts.meters import meters
from consortium.contracts.meters.meters import Meter
from tests.consortium.contracts.cases import cases
from tests.consortium.contracts.town import PRODUCT, START, Town
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    HOME,
    OPERATOR,
    OTHER_HOME,
    SUPPLIER,
    World,
    energy_world,
)

PLANT = {
    "plant_id": "SUN-1",
    "connection_id": "CP-0001",
    "utility": "AuroraMSP",
    "source": "solar",
    "capacity_w": 500_000,
    "commissioned": "2019-05-01",
    "support": "none",
    "place": "Basel",
}


@pytest.fixture
def world() -> World:
    world = energy_world()
    world.submit(OPERATOR, "certificate:RegisterPlant", plant=PLANT)
    return world


def issue(world: World, month: str, export_wh: int, **other: Any) -> Any:
    return world.submit(
        OPERATOR,
        "certificate:Issue",
        frozen=True,
        **{
            "plant_id": "SUN-1",
            "month": month,
            "generation_wh": export_wh,
            "export_wh": export_wh,
            **other,
        },
    )


def holdings(world: World, owner: str = "CP-0001") -> list[dict[str, Any]]:
    batches = world.evaluate(HOME, "certificate:Holdings", owner=owner)["batches"]
    return [
        {name: batch[name] for name in ("batch_id", "first_serial", "count", "state", "month")}
        for batch in batches
    ]


def test_remainders_carry_over(world: World) -> None:
    case = cases("certificates")["carry_over"]
    for number, export_wh in enumerate(case["monthly_net_export_wh"]):
        issued = issue(world, f"2026-{number + 1:02d}", export_wh)
        assert int(issued["issued"]) == case["expected"]["issued"][number]
        assert int(issued["carry_wh"]) == case["expected"]["carry_wh"][number]
    assert sum(int(batch["count"]) for batch in holdings(world)) == 3
    assert sorted(int(batch["first_serial"]) for batch in holdings(world)) == [1, 2]


def test_half_of_a_batch_is_claimed(world: World) -> None:
    """`ew_partial_claim` in whole units: half is used, half is still there."""
    case = cases("certificates")["ew_partial_claim"]
    minted = case["minted"] // 10**6
    issue(world, "2026-01", case["minted"])
    [batch] = holdings(world)
    assert int(batch["count"]) == minted
    claim = {
        "batch_id": batch["batch_id"],
        "owner": "CP-0001",
        "count": case["claimed"] // 10**6,
        "claimed_for": "the bakery in 2026",
    }
    world.submit(HOME, "certificate:Claim", **claim)
    by_state = {batch["state"]: int(batch["count"]) for batch in holdings(world)}
    expected = case["expected"]
    assert by_state == {
        "issued": expected["owner_left"] // 10**6,
        "claimed": expected["claimed"] // 10**6,
    }
    with pytest.raises(Conflict, match="has 500"):
        world.submit(HOME, "certificate:Claim", **{**claim, "count": 501})


def test_transfers_split_and_claims_are_final(world: World) -> None:
    issue(world, "2026-01", 5_000_000)
    [batch] = holdings(world)
    move = {"batch_id": batch["batch_id"], "owner": "CP-0001", "to": "CP-0002", "count": 2}
    given = world.submit(HOME, "certificate:Transfer", **move)
    assert (given["first_serial"], given["count"], given["owner"]) == ("1", "2", "CP-0002")
    assert [(each["first_serial"], each["count"]) for each in holdings(world)] == [("3", "3")]
    with pytest.raises(Forbidden):
        world.submit(OTHER_HOME, "certificate:Transfer", **move)
    with pytest.raises(NotFound, match="connection CP-9999"):
        world.submit(HOME, "certificate:Transfer", **{**move, "to": "CP-9999"})
    with pytest.raises(InvalidArgument, match="holds them already"):
        world.submit(HOME, "certificate:Transfer", **{**move, "to": "CP-0001"})
    claim = {
        "batch_id": given["batch_id"],
        "owner": "CP-0002",
        "count": 2,
        "claimed_for": "my heat pump",
    }
    claimed = world.submit(OTHER_HOME, "certificate:Claim", **claim)
    with pytest.raises(NotFound, match="holds no batch"):
        world.submit(OTHER_HOME, "certificate:Claim", **claim)
    again = {**move, "batch_id": claimed["batch_id"], "owner": "CP-0002", "to": "CP-0001"}
    with pytest.raises(Conflict, match="is claimed, so it can't be used"):
        world.submit(OTHER_HOME, "certificate:Transfer", **again)
    to_supplier = {**move, "to": "SUPPLIER-AURORA", "count": 3}
    sold = world.submit(HOME, "certificate:Transfer", **to_supplier)
    world.submit(
        SUPPLIER,
        "certificate:Claim",
        batch_id=sold["batch_id"],
        owner="SUPPLIER-AURORA",
        count=3,
        claimed_for="green tariff",
    )


def test_time_runs_out(world: World) -> None:
    issue(world, "2026-01", 2_000_000)
    [batch] = holdings(world)
    argument = {"batch_id": batch["batch_id"], "owner": "CP-0001", "count": 1}
    with pytest.raises(Conflict, match="can be claimed until"):
        world.submit(HOME, "certificate:Expire", batch_id=batch["batch_id"], owner="CP-0001")
    world.now = day_start("2027-02-01")
    with pytest.raises(Conflict, match="could be transferred for 12 months after 2026-01"):
        world.submit(HOME, "certificate:Transfer", **argument, to="CP-0002")
    world.submit(HOME, "certificate:Claim", **argument, claimed_for="late")
    world.now = day_start("2027-08-01")
    with pytest.raises(Conflict, match="expired 18 months after 2026-01"):
        world.submit(HOME, "certificate:Claim", **argument, claimed_for="too late")
    expired = world.submit(
        BOREAL_OPERATOR, "certificate:Expire", batch_id=batch["batch_id"], owner="CP-0001"
    )
    assert expired["state"] == "expired"


def test_what_is_refused_when_issuing(world: World) -> None:
    for change, error, said in (
        ({"generation_wh": 1}, InvalidArgument, "no more than was generated is renewable"),
        ({"sold_green_wh": 10**9}, InvalidArgument, "more than export_wh"),
        ({"month": "2026-11"}, Conflict, "isn't over"),
        ({"month": "2026-13"}, InvalidArgument, "a month as YYYY-MM"),
        ({"plant_id": "SUN-2"}, NotFound, "is not registered"),
    ):
        with pytest.raises(error, match=said):
            issue(world, **{"month": "2026-03", "export_wh": 10**6, **change})
    issue(world, "2026-03", 10**6)
    assert issue(world, "2026-03", 10**6)["issued"] == "1"
    assert len(holdings(world)) == 1
    with pytest.raises(Conflict, match="were issued for an export of 1000000"):
        issue(world, "2026-03", 2 * 10**6)
    with pytest.raises(Conflict, match="issued up to 2026-03; months go in order"):
        issue(world, "2026-02", 10**6)
    with pytest.raises(Forbidden):
        world.submit(
            BOREAL_OPERATOR,
            "certificate:Issue",
            plant_id="SUN-1",
            month="2026-04",
            generation_wh=1,
            export_wh=1,
        )
    assert issue(world, "2026-05", 3_000_000, sold_green_wh=1_500_000)["issued"] == "1"


def plant_town() -> Town:
    """A plant of CP-1 that exported 700, 900 and 500 kWh in three quarter hours of November."""
    made = Town.of("CP-1", "CP-2")
    made.world.submit(
        OPERATOR, "certificate:RegisterPlant", plant={**PLANT, "connection_id": "CP-1"}
    )
    made.read_intervals("CP-1", {40: (0, 700_000), 41: (0, 900_000), 42: (0, 500_000)})
    return made


NOVEMBER = {"plant_id": "SUN-1", "month": "2026-11"}
OVER = day_start("2026-12-01")


def sum_up(made: Town) -> Any:
    own = {"utility": "AuroraMSP", **NOVEMBER}
    made.world.now = OVER
    made.world.submit(OPERATOR, "origin:Commit", **own)
    return made.world.evaluate(OPERATOR, "origin:Record", **own)


def test_what_a_battery_took_from_the_grid_is_not_renewable() -> None:
    """Each interval counts the lesser of export and generation; what wasn't read counts nothing."""
    made = plant_town()
    world = made.world
    with pytest.raises(Conflict, match="month 2026-11 ends at 2026-12-01T00:00:00Z"):
        world.submit(OPERATOR, "origin:Commit", utility="AuroraMSP", **NOVEMBER)
    before = sum_up(made)  # no battery is known: all export is the plant's
    assert (before["export_wh"], before["missing"]) == ("2100000", str(30 * 96 - 3))
    context, simulator = made.metering()
    meters.enter(
        context,
        Meter("M-CP-1-G", "CP-1", "AuroraMSP", "accredited", "key", 10**7, "generation"),
    )
    assert world.state.commit(simulator.results()) == [0]
    made.read_intervals("CP-1-G", {40: (0, 800_000), 41: (0, 400_000)})
    produced = sum_up(made)
    assert (produced["generation_wh"], produced["export_wh"]) == ("1200000", "1100000")
    assert produced["missing"] == str(30 * 96 - 2)
    for argument, error, said in (
        ({"produced": before}, Conflict, "has committed to"),
        ({"produced": {**produced, "export_wh": "1100001"}}, Conflict, "has committed to"),
        ({"produced": {**produced, "month": "2026-10"}}, InvalidArgument, "isn't of plant SUN-1"),
        ({"produced": produced, "export_wh": 1}, InvalidArgument, "leave these out"),
        ({}, InvalidArgument, "produced is missing"),
    ):
        with pytest.raises(error, match=said):
            world.submit(OPERATOR, "certificate:Issue", frozen=True, **NOVEMBER, **argument)
    issued = world.submit(OPERATOR, "certificate:Issue", frozen=True, **NOVEMBER, produced=produced)
    assert (issued["issued"], issued["carry_wh"], issued["measured"]) == ("1", "100000", True)
    [batch] = world.evaluate(made.homes["CP-1"], "certificate:Holdings", owner="CP-1")["batches"]
    assert batch["measured"] is True
    with pytest.raises(Forbidden, match="operators of AuroraMSP, and auditors"):
        world.evaluate(made.homes["CP-2"], "origin:Record", utility="AuroraMSP", **NOVEMBER)


def test_without_a_generation_meter_nothing_beside_a_battery_counts() -> None:
    made = plant_town()
    world = made.world
    plant = {
        "plant_id": "B-1",
        "connection_id": "CP-1",
        "kind": "battery",
        "peak_w": 0,
        "inverter_w": 5000,
        "battery_wh": 10_000,
        "battery_efficiency_ppm": 900_000,
    }
    world.submit(OPERATOR, "grid:RegisterPlant", plant=plant, **{"from": START})
    world.now = OVER
    with pytest.raises(Conflict, match="nothing of plant SUN-1 was read in 2026-11"):
        world.submit(OPERATOR, "origin:Commit", utility="AuroraMSP", **NOVEMBER)


def test_what_was_sold_as_green_on_the_ledger_gets_no_certificate() -> None:
    made = plant_town()
    world = made.world
    made.agree(
        "book:ProposeProduct", "book:ApproveProduct", {**PRODUCT, "green": True}, product="ANY"
    )
    made.order("CP-1", "offer", 1000, 50_000, 41)
    made.order("CP-2", "bid", 1000, 100_000, 41)
    made.clear(41)
    issued = world.submit(
        OPERATOR, "certificate:Issue", frozen=True, **NOVEMBER, produced=sum_up(made)
    )
    assert (issued["issued"], issued["traded_green_wh"]) == ("2", "1000")
    assert issued["carry_wh"] == "99000"


def test_plants(world: World) -> None:
    assert world.evaluate(HOME, "certificate:Plant", plant_id="SUN-1")["place"] == "Basel"
    world.submit(OPERATOR, "certificate:RegisterPlant", plant=PLANT)
    with pytest.raises(Conflict, match="differently"):
        world.submit(OPERATOR, "certificate:RegisterPlant", plant={**PLANT, "capacity_w": 1})
    second = {**PLANT, "plant_id": "SUN-2"}
    with pytest.raises(Conflict, match="the export of CP-0001 is plant SUN-1's already"):
        world.submit(OPERATOR, "certificate:RegisterPlant", plant=second)
    for caller in (HOME, BOREAL_OPERATOR):
        with pytest.raises(Forbidden):
            world.submit(caller, "certificate:RegisterPlant", plant=second)


def test_withdrawing(world: World) -> None:
    issue(world, "2026-01", 3_000_000)
    [batch] = holdings(world)
    argument = {"batch_id": batch["batch_id"], "owner": "CP-0001", "count": 1}
    with pytest.raises(Forbidden, match="operators of AuroraMSP"):
        world.submit(HOME, "certificate:Withdraw", **argument)
    withdrawn = world.submit(OPERATOR, "certificate:Withdraw", **argument)
    assert withdrawn["state"] == "withdrawn"
    with pytest.raises(Conflict, match="is withdrawn"):
        world.submit(
            HOME,
            "certificate:Claim",
            batch_id=withdrawn["batch_id"],
            owner="CP-0001",
            count=1,
            claimed_for="x",
        )


@pytest.mark.parametrize("seed", range(10))
def test_each_serial_number_is_in_one_place(seed: int, world: World) -> None:
    chance = random.Random(seed)
    callers = {"CP-0001": HOME, "CP-0002": OTHER_HOME}
    months = iter(f"2026-{number:02d}" for number in range(1, 11))
    exported = issued = 0
    for _ in range(40):
        owner = chance.choice([*callers])
        batches = holdings(world, owner)
        try:
            if chance.random() < 0.25 and (month := next(months, None)):
                export_wh = chance.randint(0, 4_000_000)
                exported += export_wh
                issued += int(issue(world, month, export_wh)["issued"])
            elif batches:
                batch = chance.choice(batches)
                argument = {
                    "batch_id": batch["batch_id"],
                    "owner": owner,
                    "count": chance.randint(1, 4),
                }
                if chance.random() < 0.5:
                    other = "CP-0002" if owner == "CP-0001" else "CP-0001"
                    world.submit(callers[owner], "certificate:Transfer", **argument, to=other)
                else:
                    world.submit(callers[owner], "certificate:Claim", **argument, claimed_for="me")
        except ContractError:
            continue
    serials = [
        serial
        for owner in callers
        for batch in holdings(world, owner)
        for serial in range(
            int(batch["first_serial"]), int(batch["first_serial"]) + int(batch["count"])
        )
    ]
    assert sorted(serials) == list(range(1, issued + 1))
    assert issued == exported // 1_000_000


def test_months() -> None:
    assert month_end("2026-01") == day_start("2026-02-01")
    assert month_end("2026-12") == day_start("2027-01-01")
    assert month_end("2026-01", 12) == day_start("2027-02-01")
    assert month_end("2026-07", 18) == day_start("2028-02-01")
    assert whole_units(530_000, 1_480_000) == (2, 10_000)
