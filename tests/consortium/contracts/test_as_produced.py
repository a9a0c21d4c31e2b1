"""Contracts as produced: a share of what a plant's meters export, published and settled."""

from typing import Any

import pytest

from consortium.chaincode.api import Conflict, ContractError, Forbidden, InvalidArgument, NotFound
from consortium.contracts.billing import agenda
from consortium.contracts.common.clock import DAY_S
from consortium.contracts.meters.duties import REST_S
from tests.consortium.contracts.test_challenges import commit_instead
from tests.consortium.contracts.test_unattended import correct, work
from tests.consortium.contracts.town import DAY, START, Town, final_time
from tests.consortium.contracts.world import BOREAL_OPERATOR, NOON, OPERATOR, SUPPLIER

TERMS: dict[str, Any] = {
    "contract_id": "PPA-1",
    "seller": "PLANT",
    "buyer": "CP-2",
    "from_day": DAY,
    "to_day": "2027-11-22",
    "profile": [],
    "share_ppm": 400_000,
    "price_micro_per_kwh": 70_000,
}
ALL = ("duties:Due", "agenda:Due", "duties:Corrections")


def sign(town: Town, **changes: Any) -> None:
    terms = {**TERMS, **changes}
    town.world.submit(town.homes["PLANT"], "bilateral:Propose", terms=terms, proposed_by="PLANT")
    buyer = SUPPLIER if terms["buyer"] == "SUPPLIER-AURORA" else town.homes["CP-2"]
    town.world.submit(buyer, "bilateral:Sign", terms=terms)


def contracted(**changes: Any) -> Town:
    town = Town.of("PLANT", "CP-2")
    sign(town, **changes)
    town.read_day({"PLANT": {48: (0, 1001), 50: (0, 500)}, "CP-2": {48: (300, 0), 50: (300, 0)}})
    town.world.now = START + DAY_S
    return town


def deliver(town: Town, caller: Any = OPERATOR, **changes: Any) -> Any:
    energies = [0] * 96
    energies[48], energies[50] = 400, 200
    argument = {"contract_id": "PPA-1", "from": START, "energies_wh": energies, **changes}
    return town.world.submit(caller, "bilateral:Deliver", **argument)


def test_an_agent_publishes_and_settles_the_share_that_was_produced() -> None:
    town = contracted()
    before = town.world.money()
    with pytest.raises(Conflict, match="isn't published; who meters PLANT calls bilateral"):
        town.commit()
    done = work(town.world, *ALL)
    assert done[0] == "bilateral:Deliver"
    assert set(done[1:]) >= {"daybook:Commit", "settlement:Post"}
    # 40 % of 1001 Wh and of 500 Wh, rounded down; the buyer uses 300 of each and sells the rest.
    assert town.sums("PLANT")["sold"] == (600, 42_000)
    assert town.sums("PLANT")["feed_in"][0] == 901
    assert town.sums("CP-2")["bought"][0] == 600
    assert town.sums("CP-2")["surplus"][0] == 100
    assert town.sums("CP-2")["import"][0] == 100
    money = town.world.money()
    assert sum(money.values()) == 0
    assert money["PLANT"] - before["PLANT"] == 42_000 + 901 * 50
    assert town.lot("PLANT") is not None
    assert work(town.world, *ALL) == []


def test_a_supplier_buys_all_of_a_plant() -> None:
    town = contracted(buyer="SUPPLIER-AURORA", share_ppm=1_000_000)
    work(town.world, *ALL)
    assert town.sums("PLANT")["sold"] == (1501, 105_070)
    assert "shortfall" not in town.sums("PLANT")


def test_a_correction_is_published_again_and_adjusted() -> None:
    town = contracted(buyer="SUPPLIER-AURORA")
    work(town.world, *ALL)
    town.world.now = final_time()
    work(town.world, *ALL)
    town.world.now += 20 * DAY_S
    correct(town, "PLANT", 48, 0)
    assert town.sums("PLANT")["sold"][0] == 600
    town.world.now += REST_S
    done = work(town.world, "duties:Corrections")
    assert done == ["bilateral:Deliver", "daybook:Commit", "settlement:Post"]
    assert town.sums("PLANT")["sold"][0] == 200
    assert sum(town.world.money().values()) == 0


def test_the_buyers_day_follows_the_sellers_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its seller would be paid less than it pays, and the clearing house keep the rest."""
    monkeypatch.setattr(agenda, "MAX_OPEN_DAYS", 1)
    town = contracted()
    work(town.world, *ALL)
    town.world.now = final_time()
    work(town.world, *ALL)
    before = town.world.money()
    town.world.now += 20 * DAY_S
    correct(town, "PLANT", 48, 0)
    town.world.now += REST_S
    asked_for = {"utility": "AuroraMSP", "since": START}
    assert town.world.evaluate(OPERATOR, "agenda:Revised", **asked_for)["days"] == []
    done = work(town.world, "duties:Corrections")
    assert done == ["bilateral:Deliver", *2 * ["daybook:Commit", "settlement:Post"]]
    revised = town.world.evaluate(OPERATOR, "agenda:Revised", **asked_for)
    assert revised["days"] == [{"connection_id": "CP-2", "day": DAY}]
    more = town.world.evaluate(
        OPERATOR, "agenda:Revised", **asked_for, bookmark=revised["bookmark"]
    )
    assert more == {"days": [], "bookmark": None}
    # Of 600 Wh 200 are left, all used; what it used of the others comes from its supplier now.
    assert town.sums("PLANT")["sold"][0] == town.sums("CP-2")["bought"][0] == 200
    assert "surplus" not in town.sums("CP-2")
    assert town.sums("CP-2")["import"][0] == 400
    after = town.world.money()
    assert sum(after.values()) == 0
    assert after.get("CLEARING-MARKET", 0) == before.get("CLEARING-MARKET", 0)
    assert work(town.world, *ALL) == []


def test_what_is_published_must_be_the_share_and_is_checked_by_whoever_is_shown_it() -> None:
    town = contracted()
    energies = [0] * 96
    energies[48], energies[50] = 401, 200
    deliver(town, energies_wh=energies)
    with pytest.raises(Conflict, match="sells 400000 ppm of what PLANT exports"):
        town.commit()
    deliver(town)
    town.commit()
    record = town.record("PLANT")
    deliver(town, energies_wh=energies)
    row = next(
        one for one in record["opened"]["rows"] if one["interval_start"] == str(START + 48 * 900)
    )
    assert row["export_wh"] == "1001"
    commit_instead(town, "PLANT", record)
    opening = town.world.evaluate(
        town.homes["PLANT"], "daybook:Open", utility="AuroraMSP", day=DAY, run="provisional",
        connection_id="PLANT", interval_start=START + 48 * 900,
    )  # fmt: skip
    found = town.world.evaluate(BOREAL_OPERATOR, "challenge:Check", opening=opening)
    assert found["difference"]["kind"] == "delivered"
    assert (found["difference"]["shown"], found["difference"]["expected"]) == ("401 Wh", "400 Wh")


def test_homes_sell_profiles_and_nobody_more_than_all() -> None:
    town = Town.of("PLANT", "CP-2")
    sign(town)
    with pytest.raises(Conflict, match="1000001 ppm of what PLANT exports would be sold"):
        sign(town, contract_id="PPA-2", share_ppm=600_001)
    sign(town, contract_id="PPA-3", share_ppm=600_000)
    for change in (
        {"share_ppm": 0},
        {"profile": [{"from_minute": 0, "to_minute": 60, "energy_wh": 1}]},
        {"share_ppm": 1_000_001},
        {"share_ppm": -1},
    ):
        with pytest.raises(InvalidArgument, match="share_ppm"):
            sign(town, contract_id="PPA-4", **change)
    town.world.submit(OPERATOR, "roles:MoveIn",
                      **{"connection_id": "PLANT", "resident": "ANN", "from": NOON})  # fmt: skip
    with pytest.raises(InvalidArgument, match="somebody lives at PLANT"):
        sign(town, contract_id="PPA-5", share_ppm=1)


@pytest.mark.parametrize(
    ("change", "caller", "error", "sentence"),
    [
        ({}, BOREAL_OPERATOR, Forbidden, "the metering operator, AuroraMSP, may"),
        ({}, SUPPLIER, Forbidden, "publish what PLANT delivers"),
        ({"contract_id": "PPA-9"}, OPERATOR, NotFound, "no bilateral contract PPA-9"),
        ({"contract_id": "PPA/1"}, OPERATOR, InvalidArgument, "contract_id"),
        ({"from": START + 1}, OPERATOR, InvalidArgument, "must be a multiple of 900"),
        ({"from": START - 900}, OPERATOR, InvalidArgument, "is from 2026-11-22 to"),
        ({"from": START + 900}, OPERATOR, Conflict, "but the channel's time is"),
        ({"energies_wh": []}, OPERATOR, InvalidArgument, "energies_wh"),
        ({"energies_wh": [-1]}, OPERATOR, InvalidArgument, r"energies_wh\[0\] is -1"),
        ({"energies_wh": [1001]}, OPERATOR, Conflict, r"energies_wh\[0\] is 1001, but"),
        ({"energies_wh": [str(2**63)]}, OPERATOR, InvalidArgument, "energies_wh"),
    ],
)
def test_bad_deliveries(
    change: dict[str, Any], caller: Any, error: type[ContractError], sentence: str
) -> None:
    town = Town.of("PLANT", "CP-2")
    sign(town)
    town.world.now = START + DAY_S
    state = town.world.state.values()
    with pytest.raises(error, match=sentence):
        deliver(town, caller, **change)
    assert town.world.state.values() == state
    assert deliver(town)["written"] == "96"
    assert deliver(town)["written"] == "0"
