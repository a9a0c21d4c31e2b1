"""What a bill leaves of its export: a credit that later bills use, the oldest first."""

import json
import random
from functools import cache
from typing import Any

import pytest

from consortium.chaincode.api import Conflict, InvalidArgument
from consortium.contracts.billing import tariffs
from consortium.contracts.billing.tariffs import Band, Block, Period, Usage
from tests.consortium.contracts.billing_world import CONNECTION, FLAT, HOUR_S, BillingWorld, at
from tests.consortium.contracts.test_tariffs import rome, tariff
from tests.consortium.contracts.world import BOREAL_OPERATOR, HOME, OPERATOR

NETTED: dict[str, Any] = {**FLAT, "netting": "period", "banking_days": 2}
STANDING = 100_000
EACH = ((100, 300), (100, 0), (200, 0), (100, 200), (300, 0), (0, 0))
"""(import, export) in each hour of a day of April from the first on."""


def day(number: int) -> str:
    return f"2019-04-{number:02d}"


@cache
def _metered() -> BillingWorld:
    billing = BillingWorld(period="day", from_day=day(1))
    billing.submit(OPERATOR, "tariff:Propose", terms=NETTED, effective_from=at("2019-03-25"))
    billing.submit(BOREAL_OPERATOR, "tariff:Approve", tariff="FLAT", version=2)
    for number, (import_wh, export_wh) in enumerate(EACH, 1):
        billing.read(day(number), day(number + 1), import_wh, export_wh)
    return billing


def bill(billing: BillingWorld, number: int, run: int = 1) -> tuple[int, int, list[Any]]:
    """Post a day's bill; its total without the standing charge, what it banks, what it takes."""
    found = billing.bill(day(number), day(number + 1), run)["statement"]
    draws = [(draw["lot"], int(draw["energy_wh"])) for draw in found["draws"]]
    check(billing)
    return int(found["total_micro"]) - STANDING, int(found["banked_wh"]), draws


def lots(billing: BillingWorld) -> dict[str, tuple[int, ...]]:
    """By day: outstanding, used, expired, reversed."""
    found = billing.evaluate(HOME, "credit:Lots", connection_id=CONNECTION)["lots"]
    names = ("outstanding_wh", "used_wh", "expired_wh", "reversed_wh")
    return {one["day"]: tuple(int(one[name]) for name in names) for one in found}


def check(billing: BillingWorld) -> None:
    """Each Wh of a credit is in one place, bills have used what is used, and money is zero."""
    used: dict[str, int] = {}
    for (_, key), stored in billing.world.state.public.items():
        if key.startswith("billperiod/"):
            for draw in json.loads(stored.value)["draws"]:
                used[draw["lot"]] = used.get(draw["lot"], 0) + int(draw["energy_wh"])
    for (_, key), stored in billing.world.state.public.items():
        if key.startswith("credit/"):
            lot = json.loads(stored.value)
            banked, *parts = (int(lot[f"{name}_wh"]) for name in
                              ("banked", "used", "expired", "reversed"))  # fmt: skip
            assert banked - sum(parts) == lots(billing)[lot["day"]][0] >= 0
            assert parts[0] <= used.get(lot["day"], 0)
    assert sum(billing.world.money().values()) == 0


def correct(billing: BillingWorld, number: int, import_wh: int, export_wh: int) -> None:
    """Other readings of all hours of a day."""
    start = at(day(number))
    readings = [
        billing.meter.reading(start + hour * HOUR_S, import_wh, export_wh, 10**7, 10**7,
                              interval_s=str(HOUR_S), version="2", quality="substituted")
        for hour in range(24)
    ]  # fmt: skip
    found = billing.submit(OPERATOR, "metering:SubmitReadings", utility="AuroraMSP",
                           transient={"readings": json.dumps({"readings": readings}).encode()},
                           )  # fmt: skip
    assert found["accepted"] == "24", found


def test_what_a_bill_leaves_sets_off_the_next_ones() -> None:
    billing = _metered().clone()
    assert bill(billing, 1) == (0, 4800, [])
    record = billing.evaluate(HOME, "bill:Record", connection_id=CONNECTION, from_day=day(1))
    assert [(line["kind"], line["quantity"]) for line in record["bills"][0]["lines"]] == [
        ("standing", "1"), ("netted", "2400"), ("banked", "4800"),
    ]  # fmt: skip
    assert bill(billing, 2) == (0, 0, [(day(1), 2400)])
    # 4,800 Wh are taken, 2,400 are left of the credit; the others are billed.
    assert bill(billing, 3) == (2400 * 200, 0, [(day(1), 2400)])
    assert bill(billing, 4) == (0, 2400, [])
    assert bill(billing, 5) == (4800 * 200, 0, [(day(4), 2400)])
    assert lots(billing) == {day(1): (0, 4800, 0, 0), day(4): (0, 2400, 0, 0)}
    # Posted again, nothing changes; and the audit comes to the same.
    before = billing.world.state.values()
    billing.bill(day(3), day(4))
    assert billing.world.state.values() == before
    for number in range(1, 6):
        found = billing.evaluate(HOME, "bill:Audit", connection_id=CONNECTION,
                                 from_day=day(number), to_day=day(number + 1))  # fmt: skip
        assert found["verdict"] == "agrees"
    assert billing.world.state.public["energy", f"banked/{CONNECTION}"].value == b'{"lots":[]}'


def test_the_oldest_goes_first_and_what_is_old_expires() -> None:
    billing = _metered().clone()
    billing.world.now = at(day(3))
    correct(billing, 2, 0, 100)
    assert bill(billing, 1)[1:] == (4800, [])
    assert bill(billing, 2)[1:] == (2400, [])
    assert bill(billing, 3)[2] == [(day(1), 4800)]
    expire = {"connection_id": CONNECTION, "day": day(2)}
    with pytest.raises(Conflict, match="holds until 2019-04-05"):
        billing.submit(HOME, "credit:Expire", **expire)
    assert bill(billing, 4)[1:] == (2400, [])
    # Two days after the second of April it sets nothing off any more: the fifth takes the newer.
    assert bill(billing, 5)[2] == [(day(4), 2400)]
    money = billing.world.money()
    billing.submit(HOME, "credit:Expire", **expire)
    assert lots(billing)[day(2)] == (0, 0, 2400, 0)
    assert billing.world.money().get(CONNECTION, 0) - money.get(CONNECTION, 0) == 2400 * 50
    check(billing)


def test_corrections_take_back_and_give_back() -> None:
    billing = _metered().clone()
    for number in (1, 2, 3):
        bill(billing, number)
    # Nothing was left of the first day: both bills' credit was used already, and is paid for.
    correct(billing, 1, 100, 100)
    assert bill(billing, 1, 2) == (0, 0, [])
    assert lots(billing)[day(1)] == (0, 0, 0, 4800)
    assert billing.world.money()[CONNECTION] == -4800 * 200
    # The second day needed none: its credit was paid for then, so that comes back.
    correct(billing, 2, 0, 0)
    assert bill(billing, 2, 2) == (0, 0, [])
    assert billing.world.money()[CONNECTION] == -2400 * 200
    # What the third took was paid for, too, so it goes on setting off what it needs.
    correct(billing, 3, 100, 0)
    assert bill(billing, 3, 2) == (0, 0, [(day(1), 2400)])
    assert billing.world.money()[CONNECTION] == -2400 * 200

    billing = _metered().clone()
    for number in (1, 2):
        bill(billing, number)
    correct(billing, 2, 50, 0)
    assert bill(billing, 2, 2) == (0, 0, [(day(1), 1200)])
    assert lots(billing)[day(1)] == (3600, 1200, 0, 0)
    assert bill(billing, 3)[2] == [(day(1), 3600)]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_corrected_each_credit_is_used_once(seed: int) -> None:
    """`check` holds after each bill, and what is imported is set off or billed, to the Wh."""
    chance = random.Random(seed)
    billing = _metered().clone()
    billing.world.now = at(day(7))
    runs: dict[int, int] = {}
    corrected: list[int] = []
    for number in (1, 2, 3, 4, 5, 6, *chance.choices(range(1, 7), k=6)):
        if number in runs and number not in corrected:
            corrected.append(number)
            correct(billing, number, 50 * chance.randrange(6), 50 * chance.randrange(6))
        runs[number] = runs.get(number, 0) + 1
        bill(billing, number, runs[number])
        record = billing.evaluate(HOME, "bill:Record", connection_id=CONNECTION,
                                  from_day=day(number), run=runs[number])  # fmt: skip
        sums = {line["kind"]: int(line["quantity"]) for line in record["bills"][0]["lines"]}
        set_off = sums.get("netted", 0) + sums.get("credit", 0)
        assert int(record["import_wh"]) == set_off + sums.get("energy", 0)
        assert int(record["export_wh"]) == sums.get("netted", 0) + sums.get("banked", 0)


def test_what_is_refused() -> None:
    for terms, said in (
        ({"banking_days": 5}, "without netting nothing is left over"),
        ({"banking_days": -1, "netting": "period"}, "banking_days is -1"),
        ({"banking_days": 1001, "netting": "period"}, "banking_days is 1001"),
    ):
        billing = _metered().clone()
        with pytest.raises(InvalidArgument, match=said):
            billing.submit(OPERATOR, "tariff:Propose", terms={**FLAT, **terms},
                           effective_from=at("2019-06-01"))  # fmt: skip
    bill(billing, 1)
    billing.world.now = at(day(3), 6)
    statement = billing.compute(day(2), day(3))
    for change in ({"banked_wh": "1"}, {"draws": []}, {"draws": [{"lot": day(1), "energy_wh": 1}]}):
        with pytest.raises(Conflict, match="has committed to"):
            billing.submit(OPERATOR, "billing:Post", statement={**statement, **change})


def test_credits_go_to_the_dearest_band_like_the_export_of_the_bill() -> None:
    terms = tariff(
        bands=(Band("PEAK", "EVERY", 480, 1200, 400_000), Band("OFF", "EVERY", 0, 1440, 200_000)),
        netting="period",
        banking_days=365,
    )
    begin, _ = rome().bounds("2019-06-03")
    usage = [Usage(begin, 1_000, 0), Usage(begin + 12 * 3600, 1_000, 300)]
    period = Period("2019-06-03", "2019-06-04")
    for credit_wh, peak, off, taken in ((0, 700, 1000, 0), (200, 500, 1000, 200),
                                        (800, 0, 900, 800), (9_999, 0, 0, 1_700)):  # fmt: skip
        found = tariffs.bill(terms, rome(), period, usage, credit_wh=credit_wh)
        quantities = {line.name: line.quantity for line in found.lines}
        assert (quantities.get("PEAK", 0), quantities.get("OFF", 0)) == (peak, off)
        assert found.energy_wh("credit") == taken
        assert found.energy_wh("netted") == 300
    # Without banking, credits are none of the tariff's, and what is left is fed in.
    plain = tariff(blocks=(Block(0, 100_000),), netting="period", feed_in=50_000)
    found = tariffs.bill(plain, rome(), period, [Usage(begin, 100, 400)], credit_wh=50)
    assert [line.kind for line in found.lines if line.kind != "rounding"] == ["netted", "feed_in"]
