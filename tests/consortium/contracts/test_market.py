"""Rates, quotes, trades and the accounts behind them, as a home and a supplier meet them."""

from typing import Any

import pytest

from consortium.chaincode.api import (
    Conflict,
    Forbidden,
    InvalidArgument,
    NotFound,
    canonical_json,
)
from consortium.ledger.state import Version, VersionedValue
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    BOREAL_SUPPLIER,
    HOME,
    NOON,
    OPERATOR,
    OTHER_HOME,
    SUPPLIER,
    World,
    energy_world,
    home,
    writes,
)

DAY = "2026-11-21"
WINDOW = {"window_start": NOON + 3600, "window_end": NOON + 3 * 3600}


@pytest.fixture
def world() -> World:
    world = energy_world()
    publish(world, "AuroraMSP", 81_000)
    return world


def publish(world: World, supplier: str, price: int, day: str = DAY, kind: str = "buy") -> Any:
    caller = SUPPLIER if supplier == "AuroraMSP" else BOREAL_SUPPLIER
    return world.submit(
        caller,
        "market:PublishRate",
        supplier=supplier,
        day=day,
        kind=kind,
        price_micro_per_kwh=price,
    )


def quote(world: World, energy_wh: int = 8000, caller: Any = HOME, **other: Any) -> Any:
    argument = {"connection_id": "CP-0001", "energy_wh": energy_wh, **WINDOW, **other}
    return world.evaluate(caller, "market:Quote", **argument)["quote"]


def authorise(world: World, quoted: Any, request_id: str = "r-1", caller: Any = HOME) -> Any:
    return world.submit(caller, "market:Authorise", request_id=request_id, quote=quoted)


def test_a_sale_from_rate_to_statement(world: World) -> None:
    quoted = quote(world)
    assert {**quoted, "quote_id": "", "schedule": []} == {
        "quote_id": "",
        "connection_id": "CP-0001",
        "supplier": "AuroraMSP",
        "rate_version": "1",
        "day": DAY,
        "energy_wh": "8000",
        "window_start": str(NOON + 3600),
        "window_end": str(NOON + 10_800),
        "schedule": [],
        "price_micro_per_kwh": "81000",
        "gross_micro": "648000",
        "grid_fee_micro": "160000",
        "net_micro": "488000",
        "currency": "EUR",
        "quoted_at": str(NOON),
        "valid_until": str(NOON + 300),
        "max_power_w": None,
        "tax_micro": "0",
    }
    # 10 kW for a quarter of an hour is 2,500 Wh.
    assert quoted["schedule"] == [
        {"interval_start": str(NOON + 3600 + index * 900), "energy_wh": energy}
        for index, energy in enumerate(("2500", "2500", "2500", "500"))
    ]

    world.now += 60
    answer = world.simulate(HOME, "market:Authorise", {"request_id": "r-1", "quote": quoted})
    world.state.commit(answer.results)
    trade = answer.value
    assert answer.event == ("trade", trade)
    assert trade["status"] == "committed"
    assert trade["transaction_id"] == answer.transaction_id
    assert trade["trade_id"] == f"T-{answer.transaction_id[:32].upper()}"
    assert trade["authorised_at"] == str(NOON + 60)

    balance = world.evaluate(HOME, "wallet:Balance", account="CP-0001")
    assert balance == {
        "account": "CP-0001",
        "currency": "EUR",
        "balance_micro": "488000",
        "available_micro": "0",
        "incoming_micro": "488000",
        "held_micro": "0",
        "shards": {},
        "credit_limit_micro": "0",
    }
    supplier = world.evaluate(SUPPLIER, "wallet:Balance", account="SUPPLIER-AURORA")
    assert supplier["balance_micro"] == "-648000"
    grid = world.evaluate(OPERATOR, "wallet:Balance", account="GRID-AURORA")
    assert grid["balance_micro"] == "160000"
    statement = world.evaluate(HOME, "wallet:Statement", account="CP-0001")
    assert statement["entries"] == [
        {
            "at": str(NOON + 60),
            "transaction_id": answer.transaction_id,
            "amount_micro": "488000",
            "kind": "sale",
            "reference": trade["trade_id"],
            "counterparty": "SUPPLIER-AURORA",
        }
    ]
    listed = world.evaluate(HOME, "market:Trades", connection_id="CP-0001")
    assert listed == {"trades": [trade], "bookmark": None}
    assert world.evaluate(SUPPLIER, "market:Trades", supplier="AuroraMSP") == listed


def test_the_same_request_gives_the_same_trade(world: World) -> None:
    quoted = quote(world)
    trade = authorise(world, quoted)
    world.now += 100_000
    publish(world, "AuroraMSP", 1, day="2026-11-23")
    again = world.simulate(HOME, "market:Authorise", {"request_id": "r-1", "quote": quoted})
    assert again.value == trade
    assert not writes(again.results)
    assert again.event is None


def test_a_battery_may_give_less_than_its_connection(world: World) -> None:
    # 3 kW for a quarter of an hour is 750 Wh; what was sold already counts.
    authorise(world, quote(world, 500, max_power_w=3000))
    quoted = quote(world, 1500, max_power_w=3000)
    assert [part["energy_wh"] for part in quoted["schedule"]] == ["250", "750", "500"]
    with pytest.raises(Conflict, match=r"quote\.schedule is not what it would be"):
        authorise(world, {**quoted, "max_power_w": "4000"}, "r-2")
    trade = authorise(world, quoted, "r-2")
    assert trade["schedule"] == quoted["schedule"]
    assert authorise(world, quoted, "r-2") == trade
    # More than the connection's 10 kW stays at these.
    assert quote(world, 4000, max_power_w=50_000) == quote(world, 4000) | {
        "quote_id": quote(world, 4000, max_power_w=50_000)["quote_id"],
        "max_power_w": "50000",
    }
    with pytest.raises(Conflict, match="at most 4000 Wh between"):
        quote(world, 8000, max_power_w=3000)


def test_a_request_id_stands_for_one_quote(world: World) -> None:
    quoted = quote(world)
    authorise(world, quoted)
    with pytest.raises(Conflict, match=r"request_id r-1 was used for another quote, Q-"):
        authorise(world, quote(world, 100))
    with pytest.raises(Conflict, match="as it was authorised"):
        authorise(world, {**quoted, "net_micro": "1000000"})


def test_what_is_sold_is_no_longer_free(world: World) -> None:
    authorise(world, quote(world, 8000))
    second = quote(world, 8000)
    assert second["schedule"][0] == {
        "interval_start": str(NOON + 3600 + 3 * 900),
        "energy_wh": "2000",
    }
    with pytest.raises(
        Conflict,
        match=r"energy_wh is 12001, but connection CP-0001 can deliver at most 12000 Wh between "
        r"2026-11-21T13:00:00Z and 2026-11-21T15:00:00Z: 2500 Wh in each interval, of which 8000 "
        r"Wh are sold already",
    ):
        quote(world, 12_001)
    with pytest.raises(
        Conflict,
        match=r"can deliver at most 0 Wh in the interval starting 2026-11-21T13:00:00Z",
    ):
        quote(world, 1, window_end=NOON + 3600 + 900)
    assert quote(world, 12_000)["energy_wh"] == "12000"


def test_two_sales_of_the_same_capacity_cannot_both_happen(world: World) -> None:
    first, second = quote(world), quote(world, 7000)
    calls = [
        world.simulate(HOME, "market:Authorise", {"request_id": name, "quote": quoted}).results
        for name, quoted in (("a", first), ("b", second))
    ]
    assert world.state.commit(*calls) == [0, 11]
    with pytest.raises(Conflict, match=r"quote.schedule is not what it would be now"):
        authorise(world, second, "b")


def test_homes_do_not_conflict_in_a_block() -> None:
    world = energy_world()
    publish(world, "AuroraMSP", 81_000)
    homes = [f"CP-1{number:03d}" for number in range(40)]
    for connection_id in homes:
        world.submit(
            OPERATOR,
            "registry:RegisterConnection",
            connection_id=connection_id,
            utility="AuroraMSP",
            zone="NORTH",
            max_export_w=5000,
            max_import_w=5000,
        )
    calls = []
    for connection_id in homes:
        seller = home(connection_id)
        quoted = quote(world, 1000, seller, connection_id=connection_id)
        argument = {"request_id": "same", "quote": quoted}
        calls.append(world.simulate(seller, "market:Authorise", argument).results)
    assert world.state.commit(*calls) == [0] * len(homes)
    assert sum(world.money().values()) == 0


def test_a_new_rate_closes_the_old_one(world: World) -> None:
    quoted = quote(world)
    selling = world.simulate(HOME, "market:Authorise", {"request_id": "r-1", "quote": quoted})
    publish(world, "AuroraMSP", 70_000)
    # Endorsed before, ordered after: the rate's key decides.
    assert world.state.commit(selling.results) == [11]
    with pytest.raises(
        Conflict, match=r"rate_version is 1, but AuroraMSP has published version 2 for 2026-11-21"
    ):
        authorise(world, quoted)


def test_a_quote_expires(world: World) -> None:
    quoted = quote(world)
    world.now += 300
    with pytest.raises(Conflict, match=r"valid until 2026-11-21T12:05:00Z.*ask for a new quote"):
        authorise(world, quoted)
    soon = quote(world, 100, window_start=NOON + 900, window_end=NOON + 1800)
    world.now = NOON + 880
    assert quote(world, 100, window_start=NOON + 900, window_end=NOON + 1800)["valid_until"] == str(
        NOON + 900
    )
    assert soon["valid_until"] == str(NOON + 600)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net_micro", "488001"),
        ("price_micro_per_kwh", "90000"),
        ("grid_fee_micro", "0"),
        ("tax_micro", "1"),
        ("valid_until", str(NOON + 301)),
        ("quoted_at", str(NOON - 1)),
        ("quoted_at", str(NOON + 1)),
        ("energy_wh", "8001"),
        ("window_end", str(NOON + 4 * 3600)),
        ("currency", "CHF"),
        ("day", "2026-11-22"),
        ("supplier", "BorealMSP"),
        ("quote_id", "Q-0"),
        ("schedule", []),
    ],
)
def test_a_quote_that_was_touched_is_refused(world: World, name: str, value: Any) -> None:
    quoted = quote(world)
    with pytest.raises((Conflict, InvalidArgument, NotFound)):
        authorise(world, {**quoted, name: value})
    authorise(world, quoted)


def test_the_best_supplier_is_chosen_and_the_named_one_respected(world: World) -> None:
    publish(world, "BorealMSP", 81_000)
    assert quote(world)["supplier"] == "AuroraMSP"  # of equals, the first by name
    publish(world, "BorealMSP", 82_000)
    assert quote(world)["supplier"] == "BorealMSP"
    assert quote(world, supplier="AuroraMSP")["price_micro_per_kwh"] == "81000"
    with pytest.raises(NotFound, match="CieloMSP has published no buy rate for 2026-11-21"):
        quote(world, supplier="CieloMSP")
    authorise(world, quote(world))
    assert world.money() == {
        "SUPPLIER-BOREAL": -656_000,
        "CP-0001": 496_000,
        "GRID-AURORA": 160_000,
    }


def test_a_quote_says_why_there_is_none(world: World) -> None:
    with pytest.raises(NotFound, match=r"no buy rate is published for 2026-11-22.*PublishRate"):
        quote(world, window_start=NOON + 86_400, window_end=NOON + 86_400 + 900)
    with pytest.raises(InvalidArgument, match=r"window_start is .* a multiple of the channel's"):
        quote(world, window_start=NOON + 3601)
    with pytest.raises(InvalidArgument, match="must be after window_start"):
        quote(world, window_end=NOON + 3600)
    with pytest.raises(InvalidArgument, match="the window has 97 intervals, but may have 96"):
        quote(world, window_end=NOON + 3600 + 97 * 900)
    with pytest.raises(InvalidArgument, match="must lie within one UTC day"):
        quote(world, window_end=NOON + 13 * 3600)
    with pytest.raises(InvalidArgument, match="the channel's time is 2026-11-21T12:00:00Z"):
        quote(world, window_start=NOON)
    with pytest.raises(NotFound, match="connection CP-0404 is not registered"):
        quote(world, connection_id="CP-0404")
    with pytest.raises(NotFound, match="an administrator calls registry:Configure"):
        World().evaluate(HOME, "market:Rates")


def test_a_window_may_end_at_midnight(world: World) -> None:
    assert quote(world, 100, window_end=NOON + 12 * 3600)


def test_only_the_home_sells(world: World) -> None:
    quoted = quote(world, caller=OPERATOR)
    for caller in (OPERATOR, OTHER_HOME, home("CP-0001", "BorealMSP"), SUPPLIER):
        with pytest.raises(Forbidden, match="may not sell for CP-0001; its home alone may"):
            authorise(world, quoted, caller=caller)
    for caller in (OTHER_HOME, BOREAL_OPERATOR):
        with pytest.raises(Forbidden):
            quote(world, caller=caller)
        with pytest.raises(Forbidden):
            world.evaluate(caller, "wallet:Balance", account="CP-0001")
        with pytest.raises(Forbidden):
            world.evaluate(caller, "market:Trades", connection_id="CP-0001")
        with pytest.raises(Forbidden):
            world.evaluate(caller, "market:Trades", supplier="AuroraMSP")
    for account in ("SUPPLIER-AURORA", "GRID-AURORA", "ext/bank/AuroraMSP"):
        with pytest.raises(Forbidden):
            world.evaluate(HOME, "wallet:Statement", account=account)


def test_rates(world: World) -> None:
    assert publish(world, "AuroraMSP", 81_000)["version"] == "1"
    assert publish(world, "AuroraMSP", 82_000)["version"] == "2"
    publish(world, "BorealMSP", 300_000, kind="sell")
    publish(world, "BorealMSP", -5000, day="2026-11-22")
    today = [
        {
            "supplier": supplier,
            "day": DAY,
            "kind": kind,
            "version": version,
            "price_micro_per_kwh": price,
        }
        for supplier, kind, version, price in (
            ("AuroraMSP", "buy", "2", "82000"),
            ("BorealMSP", "sell", "1", "300000"),
        )
    ]
    assert world.evaluate(HOME, "market:Rates", day=DAY) == today
    assert world.evaluate(HOME, "market:Rates") == today
    assert world.evaluate(HOME, "market:Rates", day="2026-11-22")[0]["price_micro_per_kwh"] == (
        "-5000"
    )
    assert world.evaluate(HOME, "market:Rates", day="2030-01-01") == []
    with pytest.raises(InvalidArgument, match="must be between 2026-11-21, the channel's current"):
        publish(world, "AuroraMSP", 1, day="2026-11-20")
    with pytest.raises(InvalidArgument, match="no day"):
        world.evaluate(HOME, "market:Rates", day="2026-02-30")
    with pytest.raises(Forbidden, match="suppliers and operators of AuroraMSP may"):
        world.submit(
            BOREAL_SUPPLIER,
            "market:PublishRate",
            supplier="AuroraMSP",
            day=DAY,
            kind="buy",
            price_micro_per_kwh=1,
        )


def test_a_negative_price_is_paid_by_the_home(world: World) -> None:
    publish(world, "AuroraMSP", -81_000)
    quoted = quote(world, 1000)
    assert (quoted["gross_micro"], quoted["net_micro"]) == ("-81000", "-101000")
    authorise(world, quoted)
    assert world.money() == {"CP-0001": -101_000, "SUPPLIER-AURORA": 81_000, "GRID-AURORA": 20_000}
    statement = world.evaluate(HOME, "wallet:Statement", account="CP-0001")
    assert statement["entries"][0]["amount_micro"] == "-101000"


def test_taxes_are_kept_back_by_the_supplier_and_shown() -> None:
    world = energy_world(sale_tax_ppm=26_015)
    publish(world, "BorealMSP", 81_000)
    # 2.6015 % of 250,209 is 6,509.187…; the supplier's utility keeps it, not the home's.
    quoted = quote(world, 3089)
    assert (quoted["gross_micro"], quoted["tax_micro"]) == ("250209", "6509")
    assert int(quoted["net_micro"]) == 250_209 - 61_780 - 6509
    for touched in ("0", "6508"):
        with pytest.raises(Conflict, match=r"quote\.(tax|net)_micro is not what it would be now"):
            authorise(world, {**quoted, "tax_micro": touched})
    untaxed = {**quoted, "tax_micro": "0", "net_micro": str(250_209 - 61_780)}
    with pytest.raises(Conflict, match=r"quote\.net_micro is not what it would be now"):
        authorise(world, untaxed)
    trade = authorise(world, quoted)
    assert (trade["tax_micro"], trade["net_micro"]) == (quoted["tax_micro"], quoted["net_micro"])
    assert authorise(world, quoted) == trade
    money = {
        "CP-0001": int(quoted["net_micro"]),
        "GRID-AURORA": 61_780,
        "TAX-BOREAL": 6509,
        "SUPPLIER-BOREAL": -250_209,
    }
    assert world.money() == money
    assert sum(money.values()) == 0

    # The supplier's utility sees what it keeps, where it is from, and pays it out.
    account = {"account": "TAX-BOREAL"}
    [entry] = world.evaluate(BOREAL_OPERATOR, "wallet:Statement", **account)["entries"]
    assert (entry["kind"], entry["reference"]) == ("tax", trade["trade_id"])
    explained = world.evaluate(
        BOREAL_OPERATOR,
        "oversight:Explain",
        kind="posting",
        id=f"TAX-BOREAL/{entry['at']}/{entry['transaction_id']}",
    )
    [document] = explained["documents"]
    assert document == {"kind": "trade", "id": f"CP-0001/{NOON + 3600}/r-1"}
    explained = world.evaluate(HOME, "oversight:Explain", **document)
    assert explained["agrees"] is True
    assert explained["recomputed"]["tax_micro"] == "6509"
    for caller in (HOME, OPERATOR):
        with pytest.raises(Forbidden):
            world.evaluate(caller, "wallet:Statement", **account)
    incoming = "acct/TAX-BOREAL/in/"
    entries = [
        key.removeprefix(incoming) for _, key in world.state.public if key.startswith(incoming)
    ]
    world.submit(BOREAL_SUPPLIER, "wallet:Sweep", **account, entries=entries)
    withdrawn = world.submit(
        BOREAL_SUPPLIER, "wallet:Withdraw", **account, amount_micro=6509, request_id="tax-1"
    )
    assert withdrawn["state"] == "requested"

    # A new rate makes a taxed quote stale as it does any.
    stale = quote(world, 100)
    publish(world, "BorealMSP", 90_000)
    with pytest.raises(Conflict, match="rate_version is 1, but BorealMSP has published version 2"):
        authorise(world, stale, "r-2")


@pytest.mark.parametrize(
    ("price", "energy_wh", "tax"),
    [
        (1_000, 1, 0),  # half a micro-unit goes to the even one below
        (3_000, 1, 2),  # one and a half to the even one above
        (0, 100, 0),
        (-81_000, 1000, 0),  # who pays has earned nothing
    ],
)
def test_taxes_are_rounded_half_to_even_once(price: int, energy_wh: int, tax: int) -> None:
    world = energy_world(sale_tax_ppm=500_000, grid_fee_micro_per_kwh=0)
    publish(world, "AuroraMSP", price)
    quoted = quote(world, energy_wh)
    assert int(quoted["tax_micro"]) == tax
    assert int(quoted["net_micro"]) == int(quoted["gross_micro"]) - tax
    authorise(world, quoted)
    assert sum(world.money().values()) == 0


def agree_tax(world: World, rate_ppm: int, effective_from: int) -> Any:
    terms = {"rate_ppm": rate_ppm}
    agreement = world.submit(
        OPERATOR, "market:ProposeTax", terms=terms, effective_from=effective_from
    )
    return world.submit(BOREAL_OPERATOR, "market:ApproveTax", version=agreement["version"])


def test_a_running_channel_changes_its_tax_for_what_is_quoted_from_then_on() -> None:
    world = energy_world(sale_tax_ppm=100_000)
    publish(world, "BorealMSP", 100_000)

    def taxed() -> tuple[Any, int]:
        quoted = quote(world, 100)
        return quoted, int(quoted["tax_micro"])

    # Approved by one utility it holds nowhere, and a quote of before is still good.
    sold, tax = taxed()
    assert tax == 1_000
    alone = world.submit(
        OPERATOR, "market:ProposeTax", terms={"rate_ppm": 1}, effective_from=world.now + 50
    )
    assert alone["in_force"] is False
    first = authorise(world, sold, "r-1")
    before, _ = taxed()
    assert agree_tax(world, 200_000, world.now + 60)["in_force"] is True
    assert taxed()[1] == 1_000
    world.now += 60
    assert world.evaluate(HOME, "market:Tax") == {"rate_ppm": "200000"}
    assert world.evaluate(HOME, "market:Tax", at=world.now - 1) == {"rate_ppm": "100000"}
    # What was quoted before is sold as it was quoted, and nothing can be dated back far.
    second = authorise(world, before, "r-2")
    after, tax = taxed()
    assert tax == 2_000
    third = authorise(world, after, "r-3")
    dated_back = {**after, "quoted_at": before["quoted_at"]}
    with pytest.raises(Conflict, match="is not what it would be now"):
        authorise(world, dated_back, "r-4")
    agree_tax(world, 0, world.now + 1)
    world.now += 1
    fourth, tax = taxed()
    assert tax == 0
    authorise(world, fourth, "r-4")
    assert world.money()["TAX-BOREAL"] == 1_000 + 1_000 + 2_000
    assert authorise(world, sold, "r-1") == first  # sent again, long after
    # Each is explained by the tax that held when it was quoted.
    for trade, rate in ((first, None), (second, None), (third, "200000")):
        again = world.evaluate(HOME, "oversight:Explain", kind="trade",
                               id=f"CP-0001/{NOON + 3600}/{trade['request_id']}")  # fmt: skip
        assert again["agrees"] is True
        assert again["recomputed"]["tax_micro"] == trade["tax_micro"]
        rates = [one["value"]["rate_ppm"] for one in again["inputs"]
                 if one["name"] == "tax on sales"]  # fmt: skip
        assert rates == ([] if rate is None else [rate])
    assert sum(world.money().values()) == 0


def test_a_tax_that_is_refused(world: World) -> None:
    later = world.now + 60
    for caller, function, argument, error, said in (
        (HOME, "Propose", {"terms": {"rate_ppm": 1}}, Forbidden, "propose a tax"),
        (OPERATOR, "Propose", {"terms": {"rate_ppm": 1_000_001}}, InvalidArgument, "rate_ppm"),
        (OPERATOR, "Propose", {"terms": {"rate_ppm": -1}}, InvalidArgument, "rate_ppm"),
        (OPERATOR, "Propose", {"terms": {"rate_ppm": "0.2"}}, InvalidArgument, "rate_ppm"),
        (OPERATOR, "Propose", {"terms": {}}, InvalidArgument, "rate_ppm is missing"),
        (OPERATOR, "Propose", {"terms": {"rate_ppm": 1}, "effective_from": world.now}, Conflict,
         "never back in time"),
        (BOREAL_OPERATOR, "Approve", {"version": 9}, NotFound, "has no version 9"),
    ):  # fmt: skip
        if function == "Propose":
            argument = {"effective_from": later, **argument}
        with pytest.raises(error, match=said):
            world.submit(caller, f"market:{function}Tax", **argument)
    agree_tax(world, 5, later)
    with pytest.raises(Conflict, match="a later one begins after it"):
        agree_tax(world, 6, later)


def test_trades_of_before_there_were_taxes_are_read(world: World) -> None:
    quoted = quote(world)
    trade = authorise(world, quoted)
    place = ("energy", f"trade/CP-0001/{NOON + 3600:012d}/r-1")
    before = {name: value for name, value in trade.items() if name != "tax_micro"}
    world.state.public[place] = VersionedValue(canonical_json(before), b"", Version(9, 0))
    settings = {**world.evaluate(HOME, "registry:Settings")}
    del settings["sale_tax_ppm"]
    world.state.public["energy", "settings"] = VersionedValue(
        canonical_json(settings), b"", Version(9, 1)
    )
    assert world.evaluate(HOME, "market:Trades", connection_id="CP-0001")["trades"] == [trade]
    assert authorise(world, quoted) == trade
    assert quote(world, 100)["tax_micro"] == "0"
    again = world.evaluate(HOME, "oversight:Explain", kind="trade", id=f"CP-0001/{NOON + 3600}/r-1")
    assert again["agrees"] is True


def test_trades_come_in_pages_from_a_time_on(world: World) -> None:
    sold = [
        authorise(
            world,
            quote(world, 10, window_start=NOON + hour * 3600, window_end=NOON + hour * 3600 + 900),
            f"r-{hour}",
        )
        for hour in range(1, 8)
    ]
    for caller, who in (
        (HOME, {"connection_id": "CP-0001"}),
        (SUPPLIER, {"supplier": "AuroraMSP"}),
    ):
        seen, bookmark = [], ""
        while bookmark is not None:
            page = world.evaluate(
                caller,
                "market:Trades",
                **{"from": NOON + 7200, "limit": 2, "bookmark": bookmark, **who},
            )
            assert len(page["trades"]) <= 2
            seen += page["trades"]
            bookmark = page["bookmark"]
        assert seen == sold[1:]
    with pytest.raises(InvalidArgument, match="either connection_id or supplier"):
        world.evaluate(HOME, "market:Trades")
    with pytest.raises(InvalidArgument, match="limit is 201, but must be between 1 and 200"):
        world.evaluate(HOME, "market:Trades", connection_id="CP-0001", limit=201)


def test_deposits_count_once() -> None:
    world = energy_world()
    deposit = {"account": "CP-0001", "amount_micro": "25000000", "bank_reference": "BANK-1"}
    made = world.submit(OPERATOR, "wallet:Deposit", **deposit)
    again = world.simulate(OPERATOR, "wallet:Deposit", deposit)
    assert again.value == made
    assert not writes(again.results)
    with pytest.raises(Conflict, match="BANK-1 of AuroraMSP stands for a deposit of 25000000"):
        world.submit(OPERATOR, "wallet:Deposit", **{**deposit, "amount_micro": 1})
    world.submit(
        OPERATOR, "wallet:Deposit", account="SUPPLIER-AURORA", amount_micro=7, bank_reference="B-2"
    )
    assert world.money() == {
        "CP-0001": 25_000_000,
        "SUPPLIER-AURORA": 7,
        "ext/bank/AuroraMSP": -25_000_007,
    }
    bank = world.evaluate(OPERATOR, "wallet:Balance", account="ext/bank/AuroraMSP")
    assert bank["balance_micro"] == "-25000007"
    for caller in (HOME, SUPPLIER, BOREAL_OPERATOR):
        with pytest.raises(Forbidden, match="operators of the account's utility may"):
            world.submit(caller, "wallet:Deposit", **deposit)
    with pytest.raises(Forbidden):
        world.submit(OPERATOR, "wallet:Deposit", **{**deposit, "account": "GRID-BOREAL"})
    with pytest.raises(InvalidArgument, match="deposits come from there"):
        world.submit(OPERATOR, "wallet:Deposit", **{**deposit, "account": "ext/bank/AuroraMSP"})


def test_a_statement_is_newest_first_and_comes_in_pages() -> None:
    world = energy_world()
    for number in range(7):
        world.now += 10
        world.submit(
            OPERATOR,
            "wallet:Deposit",
            account="CP-0001",
            amount_micro=1 + number,
            bank_reference=f"B-{number}",
        )
    seen, bookmark = [], None
    while True:
        page = world.evaluate(
            HOME, "wallet:Statement", account="CP-0001", limit=3, bookmark=bookmark
        )
        seen += [int(entry["amount_micro"]) for entry in page["entries"]]
        bookmark = page["bookmark"]
        if bookmark is None:
            break
    assert seen == [7, 6, 5, 4, 3, 2, 1]


def test_connections() -> None:
    world = energy_world()
    connection = world.evaluate(OTHER_HOME, "registry:Connection", connection_id="CP-0001")
    assert connection == {
        "connection_id": "CP-0001",
        "utility": "AuroraMSP",
        "zone": "NORTH",
        "max_export_w": "10000",
        "max_import_w": "20000",
    }
    again = world.simulate(OPERATOR, "registry:RegisterConnection", connection)
    assert not writes(again.results)
    with pytest.raises(Conflict, match="registered already, and differently"):
        world.submit(OPERATOR, "registry:RegisterConnection", **{**connection, "zone": "SOUTH"})
    with pytest.raises(Forbidden, match="operators of AuroraMSP may"):
        world.submit(BOREAL_OPERATOR, "registry:RegisterConnection", **connection)
    for account in ("GRID-AURORA", "TAX-AURORA"):
        with pytest.raises(InvalidArgument, match="begin the names of utilities' accounts"):
            world.submit(
                OPERATOR,
                "registry:RegisterConnection",
                **{**connection, "connection_id": account},
            )
    settings = world.evaluate(HOME, "registry:Settings")
    assert settings == {
        "interval_s": "900",
        "currency": "EUR",
        "replay": None,
        "quote_validity_s": "300",
        "grid_fee_micro_per_kwh": "20000",
        "approvals": "2",
        "sale_tax_ppm": "0",
    }


def test_under_a_replay_clock_a_person_has_as_long_to_accept() -> None:
    world = World()
    origin = 1_600_000_200
    replay = {"origin": origin, "anchor": NOON, "rate": 60}
    world.submit(ADMIN, "registry:Configure", replay=replay)
    world.submit(
        OPERATOR,
        "registry:RegisterConnection",
        connection_id="CP-0001",
        utility="AuroraMSP",
        zone="NORTH",
        max_export_w=10_000,
        max_import_w=0,
    )
    publish(world, "AuroraMSP", 1000, day="2020-09-13")
    window = {"window_start": 1_600_000_200 + 6 * 3600, "window_end": 1_600_000_200 + 7 * 3600}
    quoted = quote(world, **window)
    assert quoted["valid_until"] == str(origin + 300 * 60)
    world.now += 299
    authorise(world, quoted)
    assert world.evaluate(HOME, "market:Rates")[0]["day"] == "2020-09-13"
