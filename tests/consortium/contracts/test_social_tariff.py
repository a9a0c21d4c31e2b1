"""The social tariff: private days, a private relief, and bills that look like everybody's."""

import json
from functools import cache
from typing import Any

import pytest

from consortium.chaincode.api import Conflict, Forbidden, InvalidArgument, NotFound, canonical_json
from tests.consortium.contracts.billing_world import CONNECTION, FLAT, BillingWorld, at
from tests.consortium.contracts.world import (
    BOREAL_OPERATOR,
    BOREAL_SUPPLIER,
    HOME,
    OPERATOR,
    OTHER_HOME,
    SUPPLIER,
    ranges,
    writes,
)

SOCIAL = {
    **FLAT,
    "tariff": "SOCIAL",
    "standing_micro_per_day": 40_000,
    "bands": [{**FLAT["bands"][0], "price": 125_000}],
}
PERIOD = {"connection_id": CONNECTION, "from_day": "2019-04-01", "to_day": "2019-04-04"}
BILL = {"connection_id": CONNECTION, "from_day": "2019-04-01"}
USUAL = 24 * 100 * 200 + 100_000
"""A day of 100 Wh in each hour at 0.20, and 0.10 a day."""
LESS = 24 * 100 * 75 + 60_000
"""What it is less under the social tariff, at 0.125 and 0.04 a day."""
ENTITLED = [{"from_day": "2019-04-02", "to_day": "2019-04-03"}]


def agree(billing: BillingWorld, terms: Any, day: str) -> None:
    agreement = billing.submit(OPERATOR, "tariff:Propose", terms=terms, effective_from=at(day))
    billing.submit(
        BOREAL_OPERATOR, "tariff:Approve", tariff=terms["tariff"], version=agreement["version"]
    )


@cache
def _metered(payment: str) -> BillingWorld:
    billing = BillingWorld(payment=payment, period="week", from_day="2019-04-01")
    agree(billing, SOCIAL, "2019-03-20")
    agree(billing, {**FLAT, "social": "SOCIAL"}, "2019-03-25")
    billing.read("2019-04-01", "2019-04-04", 100)
    billing.deposit(10_000_000)
    return billing


def metered(payment: str = "postpaid") -> BillingWorld:
    """Three days of readings under a tariff that has a social one."""
    return _metered(payment).clone()


def declare(billing: BillingWorld, social: list[Any], salt: str = "ab", **change: Any) -> Any:
    mark = {
        "connection_id": CONNECTION,
        "kind": "none",
        "until": "0",
        "salt": salt * 32,
        "social": social,
        **change,
    }
    return billing.submit(
        OPERATOR,
        "protection:Declare",
        utility="AuroraMSP",
        transient={"protections": json.dumps({"protections": [mark]}).encode()},
    )


def compute(billing: BillingWorld) -> Any:
    billing.world.now = max(billing.world.now, at("2019-04-04", 6))
    return billing.submit(OPERATOR, "bill:Compute", **PERIOD)


def relief(billing: BillingWorld, caller: Any = HOME) -> Any:
    return billing.evaluate(caller, "bill:Relief", **BILL)


def test_the_entitled_owe_the_social_price_on_their_days() -> None:
    billing = metered()
    declare(billing, ENTITLED)
    posted = billing.submit(OPERATOR, "billing:Post", statement=compute(billing))
    assert posted["statement"]["total_micro"] == str(3 * USUAL)
    found = relief(billing)
    assert found["relief_micro"] == str(LESS)
    assert [(one["from_day"], one["tariff"]) for one in found["bills"]] == [
        ("2019-04-01", "FLAT"),
        ("2019-04-02", "SOCIAL"),
        ("2019-04-03", "FLAT"),
    ]
    assert [(line["kind"], line["price"], line["amount_micro"])
            for line in found["bills"][1]["lines"]] == [
        ("standing", "40000", "40000"),
        ("energy", "125000", "300000"),
    ]  # fmt: skip
    export = billing.evaluate(HOME, "privacy:Export", connection_id=CONNECTION)["records"]
    assert f"relief/{CONNECTION}/2019-04-01/1" in [record["key"] for record in export]
    # The supplier gives it back as money that arrived at the bank, and the bill is paid.
    account = {"connection_id": CONNECTION}
    billing.submit(OPERATOR, "billing:Receive", **account, amount_micro=int(found["relief_micro"]),
                   bank_reference="IN-7")  # fmt: skip
    billing.submit(HOME, "billing:Pay", **account, amount_micro=3 * USUAL - LESS, request_id="p")
    assert billing.account()["open"] == []
    money = billing.world.money()
    assert money[CONNECTION] == 10_000_000 - (3 * USUAL - LESS)
    assert sum(money.values()) == 0


def test_what_is_paid_in_advance_is_relieved_like_any_other() -> None:
    billing = metered("prepaid")
    declare(billing, [{"from_day": "2019-01-01", "to_day": "9999-12-31"}])
    account = {"connection_id": CONNECTION}
    billing.submit(HOME, "prepayment:TopUp", **account, amount_micro=5_000_000, request_id="t")
    billing.world.now = at("2019-04-02", 12)
    preview = billing.evaluate(HOME, "bill:Preview", **PERIOD)
    assert preview["record"]["total_micro"] == str(3 * 100_000 + 36 * 100 * 200)
    assert preview["relief"]["relief_micro"] == str(3 * 60_000 + 36 * 100 * 75)
    billing.submit(OPERATOR, "billing:Post", statement=compute(billing))
    found = relief(billing)
    assert found["entitled"] == [{"from_day": "2019-04-01", "to_day": "2019-04-04"}]
    assert found["relief_micro"] == str(3 * LESS)
    billing.submit(SUPPLIER, "prepayment:Receive", **account, amount_micro=3 * LESS,
                   bank_reference="IN-8")  # fmt: skip
    status = billing.evaluate(HOME, "prepayment:Status", **account)
    assert int(status["credit_micro"]) == 5_000_000 - 3 * (USUAL - LESS)
    assert sum(billing.world.money().values()) == 0

    # Energy in advance was bought at the usual price, so what it covers is relieved, too.
    billing = metered("prepaid_energy")
    declare(billing, ENTITLED)
    billing.submit(SUPPLIER, "prepayment:PublishPrice", supplier="AuroraMSP",
                   price_micro_per_kwh=200_000)  # fmt: skip
    billing.submit(HOME, "prepayment:BuyEnergy", **account, energy_wh=4_000,
                   price_micro_per_kwh=200_000, request_id="e")  # fmt: skip
    assert compute(billing)["drawn_wh"] == "4000"
    assert relief(billing)["relief_micro"] == str(LESS)


def test_nothing_public_tells_who_is_entitled() -> None:
    """Two ledgers, of which one knows an entitled home: the same to the byte."""
    worlds = []
    for social in ([], ENTITLED):
        billing = metered()
        declare(billing, social)
        billing.world.now = at("2019-04-04", 6)
        answer = billing.world.simulate(OPERATOR, "bill:Compute", PERIOD)
        assert writes(answer.results) == [
            f"readings-AuroraMSP:{kind}/{CONNECTION}/2019-04-01/1"
            for kind in ("bill", "billsum", "relief")
        ]
        assert not ranges(answer.results)
        assert billing.world.state.commit(answer.results) == [0]
        posted = billing.world.simulate(OPERATOR, "billing:Post", {"statement": answer.value})
        assert billing.world.state.commit(posted.results) == [0]
        shown = [answer.value, answer.event, posted.value, posted.event, posted.results.rwset]
        public = {key: stored.value for key, stored in billing.world.state.public.items()}
        worlds.append((billing, shown, public, list(billing.world.state.hashes)))
    (_, *without), (entitled, *with_one) = worlds
    assert without == with_one
    assert int(relief(entitled)["relief_micro"]) == LESS
    # Whoever has all hashes, and knows all but the salt, can't try out what they stand for.
    stored = entitled.world.state.private["metering", "readings-AuroraMSP",
                                          f"relief/{CONNECTION}/2019-04-01/1"]  # fmt: skip
    assert json.loads(stored.value)["salt"] != "0" * 64
    for caller in (OTHER_HOME, BOREAL_OPERATOR, BOREAL_SUPPLIER):
        for function in ("bill:Relief", "protection:Mark"):
            argument = BILL if function == "bill:Relief" else {"connection_id": CONNECTION}
            with pytest.raises(Forbidden):
                entitled.evaluate(caller, function, **argument)


def test_it_is_computed_again_by_whoever_may_see() -> None:
    billing = metered()
    declare(billing, ENTITLED)
    statement = compute(billing)
    audit = {"connection_id": CONNECTION, "from_day": "2019-04-01", "to_day": "2019-04-04"}
    assert billing.evaluate(HOME, "bill:Audit", **audit)["verdict"] == "agrees"
    # Entitled after all, from before: the bill stays, and the relief follows.
    declare(billing, [{"from_day": "2019-03-01", "to_day": "2019-05-01"}], "cd")
    assert billing.evaluate(HOME, "bill:Audit", **audit)["verdict"] == "changed_since"
    assert compute(billing) == statement
    assert relief(billing)["relief_micro"] == str(3 * LESS)
    assert billing.evaluate(HOME, "bill:Audit", **audit)["verdict"] == "agrees"
    # A peer that gives a micro-unit less is named.
    place = ("metering", "readings-AuroraMSP", f"relief/{CONNECTION}/2019-04-01/1")
    stored = billing.world.state.private[place]
    record = json.loads(stored.value)
    record["relief_micro"] = str(3 * LESS - 1)
    billing.world.state.private[place] = type(stored)(
        canonical_json(record), stored.metadata, stored.version
    )
    found = billing.evaluate(HOME, "bill:Audit", **audit)
    assert found["verdict"] == "altered"
    assert found["findings"] == [
        {"bill": None, "line": None, "kind": "relief", "off_by_micro": "-1"}
    ]


def test_a_dearer_social_tariff_takes_nothing() -> None:
    billing = metered()
    agree(billing, {**SOCIAL, "standing_micro_per_day": 9_000_000}, "2019-04-01")
    declare(billing, ENTITLED)
    compute(billing)
    assert relief(billing)["relief_micro"] == "0"


def test_what_is_refused() -> None:
    billing = metered()
    later = at("2019-04-20")
    boreal = {**FLAT, "tariff": "BOREAL", "supplier": "BorealMSP"}
    billing.submit(BOREAL_OPERATOR, "tariff:Propose", terms=boreal, effective_from=at("2019-04-10"))
    billing.submit(OPERATOR, "tariff:Approve", tariff="BOREAL", version=1)
    for social, error, said in (
        ("FLAT", InvalidArgument, "the tariff itself"),
        ("NONE", NotFound, "no tariff NONE is in force"),
        ("BOREAL", Conflict, "a tariff of BorealMSP, not of AuroraMSP"),
        ("a/b", InvalidArgument, "social is"),
    ):
        with pytest.raises(error, match=said):
            billing.submit(OPERATOR, "tariff:Propose", terms={**FLAT, "social": social},
                           effective_from=later)  # fmt: skip
    before = billing.world.state.values()
    for social, error, said in (
        ([{"from_day": "2019-04-02", "to_day": "2019-04-02"}], InvalidArgument, "must end after"),
        ([*ENTITLED, {"from_day": "2019-04-01", "to_day": "2019-04-05"}], InvalidArgument,
         r"social\[1\] must end after"),
        ([{"from_day": "2019-02-30", "to_day": "2019-04-05"}], InvalidArgument, "2019-02-30"),
        ([{"from_day": "2019-04-02"}], InvalidArgument, "to_day is missing"),
        (ENTITLED * 25, Exception, "24"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            declare(billing, social)
    assert billing.world.state.values() == before
    with pytest.raises(NotFound, match="isn't computed, or its tariff has no social one"):
        relief(billing)
    # Of who isn't declared at all there is one of nothing: being asked about must not tell.
    compute(billing)
    assert relief(billing)["relief_micro"] == "0"
