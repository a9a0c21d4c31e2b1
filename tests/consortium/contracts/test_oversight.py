"""What a regulator sees, and where every amount on the ledger comes from."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from benchmarks.theft import Feeder
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
from consortium.contracts.balance.reliability import Interruption, indices
from consortium.ledger.state import Version, VersionedValue
from tests.consortium.contracts.billing_world import billed_march
from tests.consortium.contracts.test_balance import START as BALANCE_START
from tests.consortium.contracts.test_balance import Watch
from tests.consortium.contracts.test_books import TERMS as PRODUCT
from tests.consortium.contracts.town import DAY, START, Town
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    HOME,
    NOON,
    OPERATOR,
    OTHER_HOME,
    SUPPLIER,
    World,
    energy_world,
    home,
    oversee,
)

REGULATOR = Creator("BorealMSP", b"rita's", "rita", "client", {})
AUDITOR = Creator("CieloMSP", b"ada's", "ada", "client", {})
DAY_S = 86_400


def explain(world: World, caller: Creator, kind: str, id_: str) -> Any:
    return world.evaluate(caller, "oversight:Explain", kind=kind, id=id_)


def overseen(world: World) -> None:
    oversee(world, REGULATOR, "regulator")
    oversee(world, AUDITOR, "auditor")


def sold() -> tuple[World, Any]:
    """A home that has sold to its supplier."""
    world = energy_world()
    world.submit(
        SUPPLIER,
        "market:PublishRate",
        supplier="AuroraMSP",
        day="2026-11-21",
        kind="buy",
        price_micro_per_kwh=81_000,
    )
    overseen(world)
    window = {"window_start": NOON + 3600, "window_end": NOON + 3 * 3600}
    quoted = world.evaluate(HOME, "market:Quote", connection_id="CP-0001", energy_wh=8000, **window)
    return world, world.submit(HOME, "market:Authorise", request_id="r-1", **quoted)


@cache
def _settled() -> Town:
    """Two homes that have traded in an auction, and whose day is settled."""
    town = Town.of("CP-1", "CP-2", product=True)
    town.order("CP-1", "offer", 1000, 90_000, 50)
    town.order("CP-2", "bid", 601, 110_000, 50)
    town.clear(50)
    town.read_day({"CP-1": {50: (0, 900)}, "CP-2": {50: (700, 0)}})
    town.settle()
    town.world.submit(OPERATOR, "settlement:CloseMarket", frozen=True, day=DAY)
    overseen(town.world)
    return town


def test_a_sale_is_computed_again_from_its_inputs() -> None:
    world, trade = sold()
    found = explain(world, REGULATOR, "trade", f"CP-0001/{NOON + 3600}/r-1")
    assert found["record"] == trade
    assert found["recomputed"] == {
        "gross_micro": "648000",
        "grid_fee_micro": "160000",
        "tax_micro": "0",
        "net_micro": "488000",
    }
    assert found["agrees"] is True
    assert {one["name"] for one in found["inputs"]} == {"rate", "settings", "connection"}
    for one in found["inputs"]:
        stored = world.state.public["energy", one["key"]]
        assert json.loads(stored.value) == one["value"]


def test_an_amount_that_does_not_follow_from_its_inputs_is_seen() -> None:
    world, trade = sold()
    place = ("energy", f"trade/CP-0001/{NOON + 3600:012d}/r-1")
    altered = canonical_json({**trade, "net_micro": str(int(trade["net_micro"]) + 1)})
    world.state.public[place] = VersionedValue(altered, b"", Version(9, 0))
    assert explain(world, AUDITOR, "trade", f"CP-0001/{NOON + 3600}/r-1")["agrees"] is False


def settled() -> Town:
    """A copy of that, to be changed."""
    return deepcopy(_settled())


def paid() -> World:
    """A home that has paid its bill, from the bank and from its account."""
    billing = billed_march()
    billing.deposit(5_000_000)
    billing.submit(
        OPERATOR,
        "billing:Receive",
        connection_id="CP-0001",
        amount_micro=1_000_000,
        bank_reference="BANK-2",
    )
    billing.submit(
        HOME, "billing:Pay", connection_id="CP-0001", amount_micro=2_000_000, request_id="pay-1"
    )
    overseen(billing.world)
    return billing.world


@pytest.mark.parametrize("made", ["sold", "settled", "paid"])
def test_every_posting_leads_to_where_it_comes_from(made: str) -> None:
    world = {"sold": lambda: sold()[0], "settled": lambda: settled().world, "paid": paid}[made]()
    seen: dict[str, int] = {}
    for namespace, key in sorted(world.state.public):
        if namespace != "energy" or not key.startswith("acct/") or "/post/" not in key:
            continue
        account, _, rest = key.removeprefix("acct/").partition("/post/")
        when, transaction_id, _ = rest.split("/")
        id_ = f"{account}/{10**12 - int(when)}/{transaction_id}"
        found = explain(world, REGULATOR, "posting", id_)
        assert found["inputs"], id_
        for document in found["documents"]:
            behind = explain(world, REGULATOR, document["kind"], document["id"])
            assert behind["record"], document
            assert behind["agrees"] is not False, document
            seen[document["kind"]] = seen.get(document["kind"], 0) + 1
        if not found["documents"]:
            kinds = [posting["kind"] for posting in found["record"]]
            seen[f"none for {kinds}"] = 1
    assert not [kind for kind in seen if kind.startswith("none")], seen
    assert (
        set(seen)
        == {
            "sold": {"trade"},
            "settled": {"bank", "settlement"},
            "paid": {"bank", "bill_payment"},
        }[made]
    )


def test_a_bill_rests_on_a_committed_record() -> None:
    world = paid()
    found = explain(world, HOME, "bill", "CP-0001/1")
    assert found["agrees"] is True
    assert found["recomputed"] == {"record": found["record"]["commitment"]}
    assert {one["name"] for one in found["inputs"]} == {
        "billed period",
        "what is due",
        "connection",
    }
    payment = explain(world, REGULATOR, "bill_payment", "CP-0001/home/pay-1")
    assert payment["documents"] == [{"kind": "bill", "id": "CP-0001/1"}]


def test_a_settled_day_shows_its_inputs_and_its_commitments() -> None:
    town = settled()
    found = explain(town.world, town.homes["CP-1"], "settlement", f"CP-1/{DAY}")
    posted = found["record"]
    assert found["agrees"] is True
    assert found["recomputed"]["summary"] == posted["commitment"]
    assert sha256_hex(canonical_json(posted["summary"])) == posted["commitment"]
    (inputs,) = [one["value"] for one in found["inputs"] if one["name"].startswith("terms")]
    (connection,) = inputs["connections"]
    assert [trade["energy_wh"] for trade in connection["trades"]] == ["-601"]
    assert inputs["terms"]["tariff"] == "300000"


def test_tokens_add_up() -> None:
    town = settled()
    found = explain(town.world, town.homes["CP-2"], "token", f"CP-1/{DAY}")
    assert (found["recomputed"], found["agrees"]) == ({"minted_wh": "900"}, True)


def test_the_clearing_house_s_day() -> None:
    found = explain(settled().world, HOME, "rounding", DAY)
    assert (found["recomputed"], found["agrees"]) == ({"amount_micro": "0"}, True)
    assert "over 2 connections" in found["rule"]
    assert "CP-" not in json.dumps(found)


def test_an_auction_and_an_order_of_it() -> None:
    town = settled()
    interval = START + 50 * 900
    order = explain(town.world, town.homes["CP-2"], "order", f"CP-2/{interval}/o-1")
    assert order["record"]["local_wh"] == "601"
    assert order["documents"] == [{"kind": "auction", "id": f"ANY/{interval}"}]
    auction = explain(town.world, HOME, "auction", f"ANY/{interval}")
    assert auction["record"]["zones"][0]["local"]["volume_wh"] == "601"
    names = [one["name"] for one in auction["inputs"]]
    assert names[:3] == ["state of the book", "product", "page of the book, by price"]
    assert "CP-" not in json.dumps(auction), "an auction shows no home"


def test_a_balance_and_an_alert() -> None:
    watch = Watch()
    watch.until(Feeder(7, tap=0.03), 13)
    balance = explain(watch.world, HOME, "balance", "T-1/3")
    assert balance["agrees"] is True
    assert [one["name"] for one in balance["inputs"]] == ["transformer", "share", "share"]
    alert = explain(watch.world, HOME, "alert", "T-1/1")
    assert [one["id"] for one in alert["documents"]] == ["T-1/11", "T-1/12", "T-1/13"]
    assert alert["inputs"][0]["name"] == "model"


def test_payments_deposits_and_rewards() -> None:
    world = energy_world()
    for name, caller in (("CP-0001", HOME), ("CP-0002", OTHER_HOME)):
        world.submit(
            OPERATOR,
            "wallet:Deposit",
            account=name,
            amount_micro=5_000_000,
            bank_reference=f"IN-{name}",
        )
        entries = world.evaluate(caller, "wallet:Incoming", account=name)["entries"]
        world.submit(caller, "wallet:Sweep", account=name, entries=entries)
    world.submit(
        HOME, "wallet:Pay", account="CP-0001", payee="CP-0002", amount_micro=7, request_id="p-1"
    )
    assert explain(world, OTHER_HOME, "payment", "CP-0001/p-1")["record"]["amount_micro"] == "7"
    bank = explain(world, HOME, "bank", "AuroraMSP/IN-CP-0001")
    assert bank["record"]["amount_micro"] == "5000000"
    with pytest.raises(Forbidden):
        explain(world, OTHER_HOME, "bank", "AuroraMSP/IN-CP-0001")


def test_whose_amount_it_is_and_who_oversees_may_ask() -> None:
    world, _ = sold()
    id_ = f"CP-0001/{NOON + 3600}/r-1"
    for allowed in (HOME, OPERATOR, SUPPLIER, REGULATOR, AUDITOR):
        explain(world, allowed, "trade", id_)
    for refused in (OTHER_HOME, BOREAL_OPERATOR, home("CP-0001", "BorealMSP")):
        with pytest.raises(Forbidden, match=r"may not have trade .* explained"):
            explain(world, refused, "trade", id_)


def test_overseers_are_agreed_by_several_utilities_and_certify_themselves_to_nobody() -> None:
    world, _ = sold()
    id_ = f"CP-0001/{NOON + 3600}/r-1"
    claims = {"gridledger.role": "regulator", "gridledger.participant": "REGULATOR"}
    self_styled = Creator("BorealMSP", b"", "rex", "client", claims)
    with pytest.raises(Forbidden, match="regulators and auditors may"):
        explain(world, self_styled, "trade", id_)
    with pytest.raises(InvalidArgument, match="kinds"):
        world.submit(
            BOREAL_OPERATOR,
            "roles:RegisterParticipant",
            participant_id="REGULATOR",
            utility="BorealMSP",
            name="The regulator",
            kinds=["regulator"],
        )
    rex = {"msp_id": "BorealMSP", "enrolment_id": "rex"}
    terms = {**rex, "kind": "regulator", "certificate": sha256_hex(b"rex's own")}
    for caller in (HOME, SUPPLIER, REGULATOR, self_styled):
        with pytest.raises(Forbidden, match="may not propose an overseer"):
            world.submit(caller, "oversight:ProposeOverseer", terms=terms,
                         effective_from=world.now + 9)  # fmt: skip
    proposed = world.submit(
        BOREAL_OPERATOR, "oversight:ProposeOverseer", terms=terms, effective_from=world.now + 9
    )
    again = world.submit(BOREAL_OPERATOR, "oversight:ApproveOverseer", **rex, version=1)
    assert (proposed["in_force"], again["in_force"]) == (False, False), "one utility is not enough"
    world.now += 9
    rightly = replace(self_styled, certificate=b"rex's own")
    with pytest.raises(Forbidden):
        explain(world, rightly, "trade", id_)
    with pytest.raises(Conflict, match="terms hold from a later instant on"):
        world.submit(OPERATOR, "oversight:ApproveOverseer", **rex, version=1)
    with pytest.raises(NotFound, match=r"overseer BorealMSP\.rex has no version 7"):
        world.submit(OPERATOR, "oversight:ApproveOverseer", **rex, version=7)
    with pytest.raises(InvalidArgument, match="but must be an enrolment id"):
        world.submit(OPERATOR, "oversight:ApproveOverseer", msp_id="BorealMSP",
                     enrolment_id="r.x/", version=1)  # fmt: skip
    oversee(world, rightly, "regulator", certificate=terms["certificate"])
    explain(world, rightly, "trade", id_)
    assert world.evaluate(rightly, "oversight:Me") == {"kind": "regulator"}
    named = world.evaluate(HOME, "oversight:Overseers")
    assert terms in named
    assert len(named) == 3
    world.evaluate(rightly, "export:Home", connection_id="CP-0001")
    for other in (
        self_styled,  # another certificate of the same id
        replace(rightly, msp_id="AuroraMSP"),
        replace(rightly, common_name="rexx"),
        replace(rightly, common_name="rex/1"),
    ):
        assert world.evaluate(other, "oversight:Me") == {"kind": None}
        with pytest.raises(Forbidden):
            explain(world, other, "trade", id_)
        with pytest.raises(Forbidden):
            world.evaluate(other, "export:Home", connection_id="CP-0001")
    oversee(world, rightly, "none")
    with pytest.raises(Forbidden):
        explain(world, rightly, "trade", id_)
    assert len(world.evaluate(HOME, "oversight:Overseers")) == 2
    assert len(world.evaluate(HOME, "oversight:Overseers", at=world.now - 1)) == 3


def test_the_rules_that_hold() -> None:
    town = Town.of("CP-1", product=True)
    before = town.world.evaluate(REGULATOR, "oversight:Rules")
    assert before["settings"]["grid_fee_micro_per_kwh"] == "20000"
    assert before["terms"] == [], "they begin tomorrow"
    rules = town.world.evaluate(REGULATOR, "oversight:Rules", at=START)
    assert [(one["kind"], one["name"], one["version"]) for one in rules["terms"]] == [
        ("product", "ANY", "1"),
        ("settlement", "AuroraMSP", "1"),
    ]
    assert rules["terms"][0]["terms"]["price_rule"] == PRODUCT["price_rule"]
    assert rules["terms"][0]["approved_by"] == ["AuroraMSP", "BorealMSP"]
    first = town.world.evaluate(REGULATOR, "oversight:Rules", at=START, limit=1)
    rest = town.world.evaluate(
        REGULATOR, "oversight:Rules", at=START, limit=1, bookmark=first["bookmark"]
    )
    assert first["terms"] + rest["terms"] == rules["terms"]
    assert rest["bookmark"] is None


def test_the_market_in_figures() -> None:
    town = settled()
    period: dict[str, Any] = {"from": START, "to": START + DAY_S}
    found = town.world.evaluate(REGULATOR, "oversight:Market", product="ANY", **period)
    assert (found["auctions"], found["void"]) == ("1", "0")
    (zone,) = [zone for zone in found["zones"] if zone["cleared"] != "0"]
    assert (zone["zone"], zone["volume_wh"], zone["cleared"]) == ("NORTH", "601", "1")
    assert "CP-" not in json.dumps(found)


def test_the_network_in_figures() -> None:
    watch, feeder = Watch(), Feeder(7, tap=0.03)
    watch.until(feeder, 13)
    period: dict[str, Any] = {"from": BALANCE_START, "to": BALANCE_START + 13 * DAY_S}
    found = watch.world.evaluate(REGULATOR, "oversight:Network", utility="AuroraMSP", **period)
    (node,) = found["nodes"]
    assert node["node_id"] == "T-1"
    assert int(node["delivered_wh"]) == sum(day.delivered_wh for day in feeder.days[:13])
    assert int(node["loss_wh"]) - int(node["expected_wh"]) > 0
    assert node["alerts"] == {"raised": "1"}
    other = watch.world.evaluate(REGULATOR, "oversight:Network", utility="BorealMSP", **period)
    assert other["nodes"] == []


def test_indices_of_interruptions() -> None:
    hour = 3600
    found = indices(
        [
            Interruption(10 * hour, 12 * hour, 40),
            Interruption(20 * hour, 20 * hour + 120, 100),  # momentary
            Interruption(-hour, hour, 10),  # began before
            Interruption(23 * hour, 25 * hour, 60),  # goes on
            Interruption(30 * hour, 31 * hour, 60),  # after
        ],
        1000,
        0,
        24 * hour,
    )
    seconds = 40 * 2 * hour + 10 * hour + 60 * hour
    assert (found.interruptions, found.momentary, found.homes_interrupted) == (2, 1, 100)
    assert (found.home_seconds, found.saidi_s) == (seconds, seconds // 1000)
    assert found.saifi_ppm == 100_000
    assert found.caidi_s == seconds // 100
    assert found.asai_ppm == 1_000_000 - seconds * 1_000_000 // (1000 * 24 * hour)
    assert indices([], 0, 0, 1).asai_ppm == 1_000_000


def test_how_reliable_a_grid_was() -> None:
    world = Watch().world
    outage = {
        "utility": "AuroraMSP",
        "kind": "transformer",
        "name": "T-1",
        "since": str(BALANCE_START),
        "meters": [f"M-{number}" for number in range(24)],
        "reported_at": str(BALANCE_START + 900),
        "delay_s": "900",
        "ended_at": str(BALANCE_START + 7200),
    }
    gateway = {**outage, "kind": "gateway", "name": "GW-1"}
    world.submit(Creator("AuroraMSP", b"", "admin", "admin", {}), "metering:Configure")
    for record in (outage, gateway):
        key = f"outage/AuroraMSP/{record['kind']}/{record['name']}/{BALANCE_START:012d}"
        world.state.public["metering", key] = VersionedValue(
            canonical_json(record), b"", Version(1, 0)
        )
    found = world.evaluate(
        REGULATOR,
        "oversight:Reliability",
        utility="AuroraMSP",
        **{"from": BALANCE_START, "to": BALANCE_START + DAY_S},
    )["figures"]
    assert (found["homes_served"], found["interruptions"]) == ("48", "1")
    assert (found["saifi_ppm"], found["saidi_s"], found["caidi_s"]) == ("500000", "3600", "7200")


PERIOD: dict[str, Any] = {"from": START, "to": START + 1}


@pytest.mark.parametrize(
    ("caller", "function", "argument", "error", "message"),
    [
        (HOME, "Explain", {"kind": "trade", "id": "CP-0001/1/r"}, NotFound, "there is no trade"),
        (HOME, "Explain", {"kind": "trade", "id": "CP-0001/1"}, InvalidArgument,
         "of a trade it is CONNECTION/WINDOW_START/REQUEST"),
        (HOME, "Explain", {"kind": "trade", "id": "CP-0001//r"}, InvalidArgument, "of a trade"),
        (HOME, "Explain", {"kind": "gift", "id": "X"}, InvalidArgument, "kind is"),
        (HOME, "Explain", {"kind": "trade", "id": ""}, InvalidArgument, "id is"),
        (HOME, "Explain", {"kind": "posting", "id": "CP-0001/x/y"}, NotFound, "has no posting"),
        (HOME, "Explain", {"kind": "order", "id": "CP-0001/1/x"}, NotFound, "no order"),
        (HOME, "Explain", {"kind": "auction", "id": "ANY/1"}, NotFound, "no result"),
        (HOME, "Explain", {"kind": "settlement", "id": "CP-0001/x"}, NotFound, "no posted day"),
        (HOME, "Explain", {"kind": "bill", "id": "CP-0001/1"}, NotFound, "no bill"),
        (HOME, "Explain", {"kind": "bill_payment", "id": "A/home/1"}, NotFound, "no payment of"),
        (HOME, "Explain", {"kind": "top_up", "id": "A/home/1"}, NotFound, "no top-up"),
        (HOME, "Explain", {"kind": "rounding", "id": "2019-03-01"}, NotFound, "no closed day"),
        (HOME, "Explain", {"kind": "token", "id": "A/2019-03-01"}, NotFound, "no lot of tokens"),
        (HOME, "Explain", {"kind": "contract", "id": "A"}, NotFound, "no contract"),
        (HOME, "Explain", {"kind": "bank", "id": "AuroraMSP/1"}, NotFound, "no bank movement"),
        (HOME, "Explain", {"kind": "payment", "id": "CP-0001/1"}, NotFound, "no payment"),
        (HOME, "Explain", {"kind": "response", "id": "E/CP-0001"}, NotFound, "no participation"),
        (HOME, "Explain", {"kind": "balance", "id": "T-1/1"}, NotFound, "no balance"),
        (HOME, "Explain", {"kind": "alert", "id": "T-1/1"}, NotFound, "no alert"),
        (HOME, "Rules", {"at": -1}, InvalidArgument, "at is -1"),
        (HOME, "Rules", {"limit": 0}, InvalidArgument, "limit is 0"),
        (HOME, "Market", {"product": "a", **PERIOD}, InvalidArgument, "product is"),
        (HOME, "Market", {"product": "A", "from": 1, "to": 1}, InvalidArgument, "after from"),
        (HOME, "Network", {"utility": "A", "from": 2, "to": 1}, InvalidArgument, "after from"),
        (HOME, "Network", {"utility": "A/B", **PERIOD}, InvalidArgument, "utility is"),
        (HOME, "Reliability", {"utility": "A", "from": 1, "to": 1}, InvalidArgument, "after from"),
        (HOME, "Reliability", {"utility": "A", "from": 1.5, "to": 2}, InvalidArgument, "integer"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(
    caller: Creator,
    function: str,
    argument: dict[str, object],
    error: type[ContractError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        energy_world().simulate(caller, f"oversight:{function}", argument)
