"""What agents do by themselves: adjustments, reminders, warnings, and, if allowed, suspensions."""

import json
from typing import Any

import pytest

from consortium.agent import AgentSettings, asked_of
from consortium.chaincode.api import Forbidden, canonical_json, stored_record
from consortium.chaincode.simulator import TransactionSimulator
from consortium.contracts import chaincodes
from consortium.contracts.assets import origins
from consortium.contracts.billing import agenda
from consortium.contracts.common.clock import DAY_S, day_of
from consortium.contracts.meters import duties, meters
from consortium.contracts.meters.duties import REST_S
from consortium.contracts.meters.meters import Meter
from consortium.contracts.meters.readings import Arrival, Reading, Store
from consortium.wire import kvrwset_pb2, rwset_pb2
from tests.consortium.contracts.billing_world import CONNECTION, BillingWorld, at
from tests.consortium.contracts.test_billing import billed as billed_for_bills
from tests.consortium.contracts.test_certificates import NOVEMBER, OVER, PLANT, plant_town
from tests.consortium.contracts.test_permit import (
    FINAL,
    LIMITED,
    REMINDED,
    SUSPENDED,
    WARNED,
    billed,
)
from tests.consortium.contracts.test_permit import warn as warned_home
from tests.consortium.contracts.town import DAY, START, TERMS, Town, final_time
from tests.consortium.contracts.world import BOREAL_OPERATOR, HOME, OPERATOR, SUPPLIER, World

__all__ = ["billed", "billed_for_bills"]


def asked(world: World, *functions: str, caller: Any = OPERATOR) -> list[dict[str, Any]]:
    return [one for function in functions for one in world.evaluate(caller, function)]


def work(world: World, *functions: str) -> list[str]:
    """Do what is due until nothing is, as an agent does."""
    done: list[str] = []
    while due := asked(world, *functions):
        for one in due:
            world.submit(OPERATOR, one["function"], frozen=True, **one["argument"])
            done.append(one["function"])
        assert len(done) < 50
    return done


# Adjustments


def correct(town: Town, name: str, index: int, import_wh: int, version: int = 2) -> None:
    """A correction that the utility accepts now."""
    town.read(name, index, import_wh)
    context, simulator = town.metering()
    arrival = Arrival(f"M-{name}", START + index * 900, version, town.world.now, "adjustment")
    Store(context, "AuroraMSP").put_arrival(arrival)
    assert town.world.state.commit(simulator.results()) == [0]


def final_town(*names: str) -> Town:
    town = Town.of(*names)
    town.read_day({name: dict.fromkeys(range(96), (1000, 0)) for name in names})
    town.settle()
    town.world.now = final_time()
    town.settle("final")
    assert asked(town.world, "duties:Corrections") == []
    return town


def runs(town: Town, name: str) -> str:
    posted = town.world.evaluate(OPERATOR, "settlement:Posted", connection_id=name, day=DAY)
    return str(posted["run"])


def test_late_corrections_of_a_day_are_one_adjustment() -> None:
    town = final_town("CP-1", "CP-2")
    world = town.world
    before = world.money()["CP-1"]
    world.now += 20 * 86_400
    for number, index in enumerate((3, 40, 90)):
        correct(town, "CP-1", index, 1500 + number)
        world.now += REST_S - 1
        assert asked(world, "duties:Corrections") == [], "more may come"
    world.now += 1
    (commit,) = asked(world, "duties:Corrections")
    assert (commit["function"], commit["utility"]) == ("daybook:Commit", "AuroraMSP")
    assert commit["argument"] == {
        "utility": "AuroraMSP",
        "day": DAY,
        "run": "adjustment-1",
        "connections": ["CP-1"],
    }
    assert asked(world, "duties:Corrections", caller=BOREAL_OPERATOR) == []
    assert work(world, "duties:Corrections") == ["daybook:Commit", "settlement:Post"]
    assert (runs(town, "CP-1"), runs(town, "CP-2")) == ("adjustment-1", "final")
    added = -(-(500 + 501 + 502) * 300_000 // 1000)
    assert before - world.money()["CP-1"] == added
    assert sum(world.money().values()) == 0
    assert work(world, "duties:Corrections", "duties:Due") == []
    # Another one, days later, is the next.
    world.now += 86_400
    correct(town, "CP-1", 3, 1000, 3)
    world.now += REST_S
    assert work(world, "duties:Corrections") == ["daybook:Commit", "settlement:Post"]
    assert runs(town, "CP-1") == "adjustment-2"
    assert before - world.money()["CP-1"] == added - 500 * 300


def test_what_is_not_final_yet_waits_for_its_final_run() -> None:
    town = Town.of("CP-1")
    town.read_day({"CP-1": dict.fromkeys(range(96), (1000, 0))})
    town.settle()
    town.world.now += 26 * 3600
    correct(town, "CP-1", 5, 2000)
    town.world.now += REST_S
    assert asked(town.world, "duties:Corrections") == []
    town.world.now = final_time()
    assert work(town.world, "duties:Due", "duties:Corrections") == [
        "daybook:Commit",
        "settlement:Post",
    ]
    assert runs(town, "CP-1") == "final"
    assert town.sums("CP-1")["import"][0] == 97_000


def test_nothing_is_adjusted_beyond_its_time_nor_for_who_has_no_right() -> None:
    town = final_town("CP-1")
    town.world.now = START + 426 * 86_400 + 3600
    correct(town, "CP-1", 5, 2000)
    town.world.now += REST_S
    assert asked(town.world, "duties:Corrections") == []
    for function in ("duties:Corrections", "duties:Steps", "agenda:Steps", "agenda:Billed"):
        argument = {"agenda:Steps": {"utility": "AuroraMSP"},
                    "agenda:Billed": {"connection_id": "CP-1", "at": START}}  # fmt: skip
        with pytest.raises(Forbidden):
            town.world.evaluate(town.homes["CP-1"], function, **argument.get(function, {}))


# Plants


def test_months_of_plants_that_are_over_are_committed_to_once() -> None:
    town = plant_town()
    world = town.world
    for name, connection in (("SUN-0", "CP-2"), ("SUN-2", "CP-3")):  # of which nothing is read
        if connection == "CP-3":
            where = {"connection_id": connection, "utility": "AuroraMSP", "zone": "NORTH"}
            power = {"max_export_w": 1, "max_import_w": 1}
            world.submit(OPERATOR, "registry:RegisterConnection", **where, **power)
        plant = {**PLANT, "plant_id": name, "connection_id": connection}
        world.submit(OPERATOR, "certificate:RegisterPlant", plant=plant)

    def due(caller: Any = OPERATOR) -> list[dict[str, Any]]:
        found = asked(world, "duties:Due", caller=caller)
        return [one for one in found if one["function"] == "origin:Commit"]

    world.now = OVER - 1
    assert world.evaluate(OPERATOR, "agenda:Plants", utility="AuroraMSP") == {
        "months": [{"plant_id": name, "month": month}
                   for name in ("SUN-0", "SUN-1", "SUN-2") for month in ("2026-09", "2026-10")],
        "bookmark": None,
    }  # fmt: skip
    assert due() == []
    world.now = OVER + 6 * 3600 - 1
    assert due() == [], "a reading may still come in time"
    world.now += 1
    named = {"utility": "AuroraMSP", **NOVEMBER}
    assert due() == [
        {"function": "origin:Commit", "argument": named, "utility": "AuroraMSP"},
    ]
    assert due(BOREAL_OPERATOR) == []
    world.submit(OPERATOR, "origin:Commit", **named)
    assert due() == []
    # Once certificates are issued nobody looks at the plant's month any more.
    produced = world.evaluate(OPERATOR, "origin:Record", **named)
    world.submit(OPERATOR, "certificate:Issue", frozen=True, **NOVEMBER, produced=produced)
    months = world.evaluate(OPERATOR, "agenda:Plants", utility="AuroraMSP")["months"]
    assert [one["plant_id"] for one in months] == ["SUN-0", "SUN-0", "SUN-2", "SUN-2"]
    with pytest.raises(Forbidden):
        world.evaluate(town.homes["CP-1"], "agenda:Plants", utility="AuroraMSP")
    later = world.evaluate(OPERATOR, "agenda:Plants", utility="AuroraMSP", bookmark="SUN-0")
    assert [one["plant_id"] for one in later["months"]] == ["SUN-2", "SUN-2"]


def test_what_is_due_is_found_without_reading_whole_months(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a dozen plants with meters of their own would keep their utility's days from it."""
    town = plant_town()
    context, simulator = town.metering()
    own = Meter("M-CP-1-G", "CP-1", "AuroraMSP", "accredited", "key", 10**7, "generation")
    meters.enter(context, own)
    assert town.world.state.commit(simulator.results()) == [0]
    town.read_intervals("CP-1-G", {40: (0, 800_000)})
    town.world.now = OVER + 6 * 3600
    defaults = TransactionSimulator.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "max_reads", 2 * 30 * 96)
    named = {"utility": "AuroraMSP", **NOVEMBER}
    assert {"function": "origin:Commit", "argument": named, "utility": "AuroraMSP"} in asked(
        town.world, "duties:Due"
    )


def test_a_month_that_nobody_read_costs_a_key_for_each_meter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asked at each turn, for as long as nobody reads it."""
    town = plant_town()
    context, simulator = town.metering()
    generator = Meter("M-CP-1-G", "CP-1", "AuroraMSP", "accredited", "key", 10**7, "generation")
    meters.enter(context, generator)
    assert town.world.state.commit(simulator.results()) == [0]
    town.world.now = OVER + 6 * 3600
    read: list[str] = []
    by_range, counted = town.world.state.range_private, origins._counted

    def noted(*where: str) -> Any:
        for item in by_range(*where):  # type: ignore[arg-type]
            read.append(item[0])
            yield item

    monkeypatch.setattr(town.world.state, "range_private", noted)
    monkeypatch.setattr(duties.Duties, "_settle", staticmethod(lambda *_: []))
    monkeypatch.setattr(origins, "_counted", lambda *_, **__: pytest.fail("a day was read"))
    assert asked(town.world, "duties:Due") == []
    # The exchange was read, and nothing of what was generated: then nothing counts.
    assert read == []
    # Of one day it was: then that day is looked at, and no other.
    town.read_intervals("CP-1-G", {40: (0, 800_000)}, "2026-11-25")
    monkeypatch.setattr(origins, "_counted", counted)
    [call] = asked(town.world, "duties:Due")
    assert call["argument"] == {"utility": "AuroraMSP", **NOVEMBER}
    assert [key.split("/")[1] for key in read] == ["M-CP-1-G"] * 3


def test_plants_come_in_pages_that_cut_none_in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agenda, "MAX_OPEN_MONTHS", 3)
    town = Town.of("CP-1", "CP-2", "CP-3")
    for number in (1, 2, 3):
        plant = {**PLANT, "plant_id": f"SUN-{number}", "connection_id": f"CP-{number}"}
        town.world.submit(OPERATOR, "certificate:RegisterPlant", plant=plant)
    seen: list[str] = []
    bookmark = ""
    while bookmark is not None:
        page = town.world.evaluate(
            OPERATOR, "agenda:Plants", utility="AuroraMSP", bookmark=bookmark
        )
        assert len(page["months"]) == 2
        seen += [one["plant_id"] for one in page["months"]]
        bookmark = page["bookmark"]
    assert seen == ["SUN-1"] * 2 + ["SUN-2"] * 2 + ["SUN-3"] * 2


def test_a_bill_that_corrections_change_is_adjusted_too(billed_for_bills: BillingWorld) -> None:
    billing = billed_for_bills
    world = billing.world
    world.now = at("2019-04-20", 6)
    assert asked(world, "duties:Corrections") == []
    start = at("2019-03-10")
    found = world.evaluate(OPERATOR, "metering:Readings", meter_id=billing.meter.meter_id,
                           **{"from": start, "to": start + 3600})[0]  # fmt: skip
    wrong = {name: value for name, value in found.items() if name != "signature"}
    more = str(int(wrong["import_wh"]) + 250)
    again = billing.meter.sign({**wrong, "version": "2", "import_wh": more, "salt": "9" * 64,
                                "quality": "measured"})  # fmt: skip
    town = Town(world)
    context, simulator = town.metering()
    store = Store(context, "AuroraMSP")
    reading = stored_record(Reading, canonical_json(again))
    store.put(reading)
    store.put_corrected([reading])
    store.put_arrival(Arrival(reading.meter_id, start, 2, world.now, "adjustment"))
    assert world.state.commit(simulator.results()) == [0]
    world.now += REST_S
    assert work(world, "duties:Corrections") == ["bill:Compute", "billing:Post"]
    bills = billing.evaluate(HOME, "billing:Bills", connection_id=CONNECTION)["bills"]
    assert [one["document"]["run"] for one in bills] == ["1", "2"]
    assert bills[1]["document"]["kind"] == "adjustment"
    assert work(world, "duties:Corrections") == []


# Reminders, warnings, suspensions


def test_reminders_and_warnings_come_by_themselves(billed: BillingWorld) -> None:
    world = billed.world
    for now, function in (
        (REMINDED, "billing:Dun"),
        (FINAL, "billing:Dun"),
        (WARNED, "permit:Warn"),
    ):
        world.now = now
        (due,) = asked(world, "agenda:Due")
        assert due["function"] == function
        world.submit(OPERATOR, due["function"], **due["argument"])
        assert asked(world, "agenda:Due") == []
    assert billed.status()["state"] == "warned"
    for now in (LIMITED, SUSPENDED):
        world.now = now
        named = {one["function"] for one in asked(world, "agenda:Due", "duties:Due")}
        assert named <= {"bill:Compute"}, "what takes supply away is apart"


def test_steps_down_are_named_only_when_everything_allows_them(billed: BillingWorld) -> None:
    world = billed.world
    warned_home(billed)
    world.now = LIMITED - 86_400
    assert asked(world, "duties:Steps") == []
    world.now = LIMITED
    ready = world.evaluate(SUPPLIER, "permit:Ready", connection_id=CONNECTION)
    assert (ready["function"], ready["hindrance"]) == ("permit:Limit", None)
    assert asked(world, "duties:Steps", caller=BOREAL_OPERATOR) == []
    assert work_steps(world) == ["protection:Clear", "permit:Limit"]
    assert billed.status()["state"] == "limited"
    world.now = SUSPENDED + 17 * 3600  # at night
    assert asked(world, "duties:Steps") == []
    night = world.evaluate(SUPPLIER, "permit:Ready", connection_id=CONNECTION)
    assert "nobody is cut off at minute" in night["hindrance"]
    world.now = SUSPENDED + 86_400
    assert work_steps(world) == ["protection:Clear", "permit:Suspend"]
    assert billed.status()["state"] == "suspended"
    assert asked(world, "duties:Steps") == []
    last = world.evaluate(SUPPLIER, "permit:Ready", connection_id=CONNECTION)
    assert (last["function"], last["hindrance"]) == (None, "the next step is none")
    with pytest.raises(Forbidden, match="see what CP-0001 owes"):
        world.evaluate(BOREAL_OPERATOR, "permit:Ready", connection_id=CONNECTION)


def work_steps(world: World) -> list[str]:
    return work(world, "duties:Steps")


def declare(world: World, kind: str) -> None:
    mark = {"connection_id": CONNECTION, "kind": kind, "until": 10**10, "salt": "5" * 64}
    raw = json.dumps({"protections": [mark]}).encode()
    world.submit(
        OPERATOR, "protection:Declare", utility="AuroraMSP", transient={"protections": raw}
    )


def test_no_step_for_protected_homes_alerts_or_without_consent(billed: BillingWorld) -> None:
    world = billed.world
    warned_home(billed)
    world.now = LIMITED
    declare(world, "medical")
    assert asked(world, "duties:Steps") == []
    declare(world, "none")
    assert [one["function"] for one in asked(world, "duties:Steps")] == ["protection:Clear"]
    zone = world.evaluate(OPERATOR, "registry:Connection", connection_id=CONNECTION)["zone"]
    alert = {"alert_id": "A-1", "zone": zone, "kind": "heat", "from": world.now - 60,
             "until": world.now + 86_400, "declared_by": "BorealMSP"}  # fmt: skip
    world.submit(BOREAL_OPERATOR, "permit:DeclareAlert", alert=alert)
    assert asked(world, "duties:Steps") == []
    world.submit(BOREAL_OPERATOR, "permit:EndAlert", zone=zone, alert_id="A-1")
    key = ("energy", f"consent/{CONNECTION}")
    consent = world.state.public.pop(key)
    assert asked(world, "duties:Steps") == []
    ready = world.evaluate(SUPPLIER, "permit:Ready", connection_id=CONNECTION)
    assert "has not consented" in ready["hindrance"]
    world.state.public[key] = consent
    assert len(asked(world, "duties:Steps")) == 1


def test_suspending_is_asked_only_where_the_utility_allows_it() -> None:
    functions = chaincodes()["metering"].functions
    off, on = AgentSettings(), AgentSettings(suspend=True)
    assert off.suspend is False
    assert "duties:Steps" not in asked_of(functions, off)
    assert asked_of(functions, on) == [*asked_of(functions, off), "duties:Steps"]
    assert {"duties:Due", "duties:Corrections"} <= set(asked_of(functions, off))


# Much at once


def reads(world: World, function: str) -> int:
    """How many keys a query reads one by one: a transaction may read 100,000."""
    found = 0
    sets = rwset_pb2.TxReadWriteSet.FromString(
        world.simulate(OPERATOR, function).results.rwset
    ).ns_rwset
    for one in sets:
        found += len(kvrwset_pb2.KVRWSet.FromString(one.rwset).reads)
        for private in one.collection_hashed_rwset:
            hashed = kvrwset_pb2.HashedRWSet.FromString(private.hashed_rwset)
            found += len(hashed.hashed_reads)
    return found


def test_homes_that_are_silent_for_weeks_cost_one_read_a_day() -> None:
    """Else a tenth of 10,000 homes, or an outage of two days, would keep all days from it."""
    found = []
    for names, days in ((4, 3), (8, 3), (8, 6)):
        town = Town.of(*(f"CP-{number}" for number in range(names)), deposit=0)
        town.world.now = START + days * DAY_S + 7 * 3600
        found.append(reads(town.world, "duties:Due"))
    assert found[1] - found[0] == 4 * (3 + 1), "a summary each day, and whose pseudonym it is"
    assert found[2] - found[1] == 8 * 3


def test_late_readings_cost_nothing_until_their_day_is_final() -> None:
    """Where meters send once a day most of what they send is late: 70 readings of each home."""
    found = []
    for count in (1, 90):
        town = Town.of("CP-1", "CP-2")
        town.read_day({})
        town.settle()
        context, simulator = town.metering()
        for index in range(count):
            arrival = Arrival("M-CP-1", START + index * 900, 1, START + DAY_S + 3600, "late")
            Store(context, "AuroraMSP").put_arrival(arrival)
        assert town.world.state.commit(simulator.results()) == [0]
        town.world.now = START + 3 * DAY_S
        assert asked(town.world, "duties:Corrections") == []
        found.append(reads(town.world, "duties:Corrections"))
    assert found[0] == found[1] < 20


def test_what_is_never_read_keeps_nothing_from_being_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agenda, "MAX_OPEN_DAYS", 3)
    town = Town.of("CP-1")
    town.world.now = START + 6 * DAY_S + 7 * 3600
    seen = set()
    for _ in range(agenda.OPEN_FOR_DAYS + 1):
        days = town.world.evaluate(OPERATOR, "agenda:Days", utility="AuroraMSP")["days"]
        assert len(days) == 3
        assert days == sorted(days, key=lambda one: str(one["day"]))
        seen |= {one["day"] for one in days}
        town.world.now += agenda.TURN_S
    assert len(seen) == 6


def test_calls_that_are_refused_each_time_give_others_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duties, "MAX_CALLS", 1)
    town = Town.of("CP-1")
    for number in range(3):
        town.read_day({}, day_of(START + number * DAY_S))
    town.world.now = START + 3 * DAY_S + 7 * 3600
    named = set()
    for _ in range(3):
        [one] = asked(town.world, "duties:Due")
        named.add(one["argument"]["day"])
        town.world.now += agenda.TURN_S
    assert len(named) == 3


def test_who_cannot_be_settled_is_left_alone_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day that can't be settled because of one home goes on for the others it came with."""
    monkeypatch.setattr(duties, "_FEW", 2)
    names = [f"CP-{number}" for number in range(5)]
    town = Town.of(*names, deposit=0)
    town.read_day({})

    def parts() -> list[list[str]]:
        found = asked(town.world, "duties:Due")
        return [one["argument"]["connections"] for one in found]

    town.world.now = START + DAY_S + 3600
    assert parts() == [names]
    town.world.now = START + DAY_S + duties.SPLIT_AFTER_S
    assert parts() == [names[:2], names[2:4], names[4:]]
    town.world.now = START + DAY_S + duties.APART_AFTER_S
    assert parts() == [[name] for name in names]
    work(town.world, "duties:Due")
    assert {runs(town, name) for name in names} == {"final"}


def test_a_calendar_that_ends_keeps_no_others_waiting() -> None:
    """Two weeks before its end it doesn't know any more when a day becomes final."""
    town = Town.of("CP-1", "CP-2")
    world = town.world
    calendar = {"region": "ISLE", "offsets": [{"from": 0, "offset_s": 3600}],
                "known_until": START + 10 * DAY_S, "holidays": []}  # fmt: skip
    town.agree("tariff:ProposeCalendar", "tariff:ApproveCalendar", calendar, region="ISLE")
    terms = {**TERMS, "supplier": "BorealMSP", "region": "ISLE", "final_after_working_days": 10}
    world.submit(BOREAL_OPERATOR, "settlement:ProposeTerms", terms=terms, effective_from=START)
    world.submit(OPERATOR, "settlement:ApproveTerms", supplier="BorealMSP", version=1)
    world.submit(BOREAL_OPERATOR, "roles:RegisterParticipant", participant_id="BorealMSP",
                 utility="BorealMSP", name="Boreal", kinds=["supplier"])  # fmt: skip
    second = START + DAY_S
    wish: dict[str, object] = {"connection_id": "CP-2", "from": second}
    world.submit(town.homes["CP-2"], "roles:RequestSwitch", supplier="BorealMSP", **wish)
    world.submit(BOREAL_OPERATOR, "roles:ConfirmSwitch", **wish)
    for day in (START, second):
        town.read_day({}, day_of(day))
    world.now = second + DAY_S + 7 * 3600

    def named() -> list[tuple[str, list[str]]]:
        calls = [one["argument"] for one in asked(world, "duties:Due")]
        return [(one["day"], one["connections"]) for one in calls]

    others = [(DAY, ["CP-1", "CP-2"]), (day_of(second), ["CP-1"])]
    assert named() == others
    # The next version can't hold back in time, but it knows.
    later = {**calendar, "known_until": START + 400 * DAY_S}
    world.submit(OPERATOR, "tariff:ProposeCalendar", terms=later, effective_from=second + 3 * DAY_S)
    world.submit(BOREAL_OPERATOR, "tariff:ApproveCalendar", region="ISLE", version=2)
    assert named() == [*others, (day_of(second), ["CP-2"])]
    work(world, "duties:Due")
    posted = world.evaluate(OPERATOR, "settlement:Posted", connection_id="CP-2", day=day_of(second))
    assert posted["run"] == "provisional"


def test_a_value_that_is_not_on_this_peer_keeps_no_others_waiting() -> None:
    """As after an old backup was put back, of a utility that has one peer."""
    town = Town.of("CP-1", "CP-2", deposit=0)
    world = town.world
    town.read_day({})
    world.now = START + DAY_S + 3600
    [commit] = asked(world, "duties:Due")
    world.submit(OPERATOR, commit["function"], frozen=True, **commit["argument"])
    [lost] = [key for key in world.state.private if key[2] == f"st/{DAY}/provisional/CP-1"]
    del world.state.private[lost]
    [post] = asked(world, "duties:Due")
    assert [one["connection_id"] for one in post["argument"]["summaries"]] == ["CP-2"]
    town.read_day({}, day_of(START + DAY_S))
    world.now += DAY_S
    assert work(world, "duties:Due") == ["settlement:Post", "daybook:Commit", "settlement:Post"]
