"""Actions, websocket commands and the calendar of a home on a real network."""

import csv
import io
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from homeassistant.core import Context, HomeAssistant
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError
from homeassistant.helpers import entity_registry as er
from homeassistant.util import dt as dt_util

from custom_components.gridledger import vault
from custom_components.gridledger.client import Committed, ConnectionFailed, TransactionRefused
from custom_components.gridledger.const import DOMAIN
from tests.gridledger.asking import LISTED_ORDER, calendar_events

from .conftest import PLANT, RunningNetwork, eventually, join, prepare_connection, report_plant
from .test_path import House

PROOF = {"transaction_id": "0" * 64}
CLAIM = {"count": 1, "claimed_for": "Us"}
BILLED = {
    "document": {
        "number": "1",
        "kind": "bill",
        "supplier": "AuroraMSP",
        "from_day": "2025-06-20",
        "to_day": "2025-06-21",
        "run": "1",
        "total_micro": "1300000",
        "estimated": False,
        "corrects": None,
        "issued_at": "1750420800",
        "reason": "",
        "commitment": "",
    },
    "standing": None,
    "dispute": None,
}
ORDER = {"side": "buy", "energy": 1e-3, "price": 0, "start": "2099-01-01T00:00:00+00:00"}


async def call(hass: HomeAssistant, name: str, **data: Any) -> Any:
    context = data.pop("context", None)
    return await hass.services.async_call(
        DOMAIN, name, data, blocking=True, return_response=True, context=context
    )


async def test_prices_of_days_ahead(hass: HomeAssistant, home: Any) -> None:
    answer = await call(hass, "get_prices", days=9)
    assert answer["currency"] == "EUR"
    today = [price for price in answer["prices"] if price["supplier"] == "BorealMSP"]
    assert [(price["kind"], price["price_per_kwh"]) for price in today] == [("buy", 0.13)]
    start, end = (datetime.fromisoformat(today[0][name]) for name in ("start", "end"))
    # The test's channel runs sixty times as fast: its day is 24 minutes of ours.
    assert end - start == timedelta(minutes=24)
    assert start <= dt_util.utcnow() < end


async def test_a_days_archive_and_its_proof(
    hass: HomeAssistant, home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = home.runtime_data.session
    house = House(hass)
    await house.live(2.5)
    sale = await call(hass, "sell_energy", energy=0.4)
    await eventually(lambda: session.data.queued == 0 and session.data.last_committed)
    start = dt_util.utcnow() - timedelta(minutes=30)
    span = {"start": start.isoformat(), "end": (start + timedelta(hours=2)).isoformat()}
    found = await call(hass, "get_archive", **span)
    assert [trade["trade_id"] for trade in found["trades"]] == [sale["trade_id"]]
    assert found["totals"]["net"] == sale["net"]
    assert found["totals"]["sold_kwh"] == 0.4
    assert found["totals"]["import_kwh"] * 1000 == sum(r["import_wh"] for r in found["readings"])
    [posting] = found["postings"]
    assert (posting["kind"], posting["amount"]) == ("sale", sale["net"])
    sheet = await call(hass, "get_archive", **span, format="csv")
    rows = list(csv.DictReader(io.StringIO(sheet["trades"])))
    assert rows[0]["transaction_id"] == sale["transaction_id"]
    assert sheet["postings"].count("\n") == 2
    empty = await call(hass, "get_archive", start="2020-01-01 00:00:00", format="csv")
    assert (empty["readings"], empty["totals"]["net"]) == ("", 0)
    with pytest.raises(ServiceValidationError) as error:
        await call(hass, "get_archive", start=span["end"], end=span["start"])
    assert error.value.translation_key == "window_empty"

    # Page by page it is the same.
    more = await call(hass, "sell_energy", energy=0.1)
    monkeypatch.setattr("custom_components.gridledger.archive._PAGE", 1)
    monkeypatch.setattr("custom_components.gridledger.session.TRADES_KEPT", 1)
    found = await call(hass, "get_archive", **span)
    both = {sale["trade_id"], more["trade_id"]}
    assert {trade["trade_id"] for trade in found["trades"]} == both
    assert found["totals"]["received"] == pytest.approx(sale["net"] + more["net"])
    await session.async_refresh_market()
    assert session.data.trades.keys() == both

    proof = await call(hass, "get_proof", transaction_id=sale["transaction_id"])
    assert (proof["block"], proof["valid"], proof["code"]) == (sale["block"], True, "VALID")
    members = {one["member"] for one in proof["endorsed_by"]}
    assert len(members) >= 2
    with pytest.raises(HomeAssistantError):
        await call(hass, "get_proof", transaction_id="0" * 64)

    export = await call(hass, "export_data")
    secrets = await vault.async_load_secrets(hass, home.unique_id)
    assert export["trades"] == found["trades"]
    assert export["plant"]["battery_capacity"] == 10
    assert not any(value in repr(export) for name, value in secrets.items() if name != "msp_id")


async def test_orders_are_refused_in_words(hass: HomeAssistant, home: Any) -> None:
    """No product has been agreed on here."""
    assert await call(hass, "list_orders") == {"orders": []}
    ahead = (dt_util.utcnow() + timedelta(minutes=2)).isoformat()
    for name, data in (
        (
            "place_order",
            {"side": "sell", "energy": 0.1, "price": 0.1, "start": ahead, "product": "NONE"},
        ),
        ("cancel_order", {"order_id": "NONE"}),
    ):
        with pytest.raises(ServiceValidationError) as error:
            await call(hass, name, **data)
        assert error.value.translation_key == "refused"


NONSENSE: tuple[tuple[str, dict[str, Any], dict[str, Any], str], ...] = (
    ("get_prices", {}, {"market:Rates": [{}]}, "a rate can't be read"),
    ("list_orders", {}, {"book:Orders": {"orders": [{}]}}, "an order can't be read"),
    ("export_data", {}, {"market:Trades": {"trades": [{}]}}, "a trade can't be read"),
    ("export_data", {}, {"book:Orders": []}, "an order can't be read"),
    ("export_data", {}, {"wallet:Statement": {}}, "a statement can't be read"),
    ("get_proof", PROOF, {"GetBlockByTxID": b"nonsense"}, "the block can't be read"),
    ("get_proof", PROOF, {"GetBlockByTxID": b""}, "block 0 doesn't hold the transaction"),
    ("get_bills", {}, {"billing:Bills": {"bills": [{}]}}, "a bill can't be read"),
    (
        "get_bills",
        {"lines": True},
        {"billing:Bills": {"bills": [BILLED]}, "bill:Record": {}},
        "a bill's record can't be read",
    ),
    ("pay_bill", {}, {"billing:Account": None}, "an open bill can't be read"),
    ("pay_bill", {"amount": 1}, {"wallet:Balance": {}}, "the balance can't be read"),
    ("pay_bill", {"amount": 1}, {"wallet:Incoming": []}, "what came in can't be read"),
    ("pay_bill", {"amount": 1}, {"billing:Pay": {}}, "the payment can't be read"),
    ("top_up", {"amount": 1}, {"prepayment:TopUp": "paid"}, "the payment can't be read"),
    ("place_order", ORDER, {"book:Place": {}}, "the order can't be read"),
    (
        "cancel_order",
        {"order_id": "A"},
        {"book:Orders": {"orders": [LISTED_ORDER]}, "book:Cancel": None},
        "the order can't be read",
    ),
    ("claim_certificate", CLAIM, {"certificate:Holdings": {}}, "a guarantee of origin can't be"),
    (
        "claim_certificate",
        {**CLAIM, "batch_id": "B"},
        {"certificate:Claim": {}},
        "the claim can't be read",
    ),
    (
        "end_delegation",
        {"delegation_id": "D"},
        {"delegation:Given": {"delegations": [{}]}},
        "a delegation can't be read",
    ),
    ("quote_sale", {"energy": 0.1}, {"market:Quote": []}, "the quote can't be read"),
    ("quote_sale", {"energy": 0.1}, {"market:Quote": {"quote": {}}}, "the quote can't be read"),
    ("sell_energy", {"energy": 0.1}, {"market:Authorise": {}}, "the sale can't be read"),
    (
        "join_response_event",
        {"event_id": "E"},
        {"response:OptIn": {}},
        "the participation can't be read",
    ),
)
"""Actions, and answers that their contracts never promised."""


async def test_answers_of_nonsense_are_said_to_be(
    hass: HomeAssistant, home: Any, hass_ws_client: Any
) -> None:
    """A gateway that lies, or contracts of another age."""
    client = home.runtime_data.session.client
    answers: dict[str, Any] = {}

    def saying(ask: Any, wrap: Any) -> Any:
        async def answer(chaincode: str, function: str, *rest: Any, **options: Any) -> Any:
            if function not in answers:
                return await ask(chaincode, function, *rest, **options)
            if isinstance(answers[function], Exception):
                raise answers[function]
            return wrap(answers[function])

        return answer

    with (
        patch.object(client, "evaluate", saying(client.evaluate, lambda said: said)),
        patch.object(client, "submit", saying(client.submit, lambda said: Committed("T", 1, said))),
    ):
        for name, data, said, reason in NONSENSE:
            answers.clear()
            answers.update(said)
            with pytest.raises(HomeAssistantError) as error:
                await call(hass, name, **data)
            assert error.value.translation_key == "unexpected", (name, said)
            assert reason in error.value.translation_placeholders["reason"]

        cards = await hass_ws_client(hass)
        product = {"book:Product": {"gate_closure_s": "60"}}
        for name, said, reason in (
            ("market", {"book:Product": {}}, "a product of the order book can't be read"),
            ("market", {**product, "book:Depth": {}}, "the order book can't be read"),
            ("market", {"book:Product": TransactionRefused("it is jammed")}, "it is jammed"),
            ("supply", {"certificate:Holdings": {"batches": [{}]}}, "a guarantee of origin can't"),
        ):
            answers.clear()
            await eventually(lambda: home.runtime_data.session.data.connected)
            answers.update(said)
            asked = {"type": f"gridledger/{name}", "entry_id": home.entry_id}
            await cards.send_json_auto_id(asked)
            assert reason in (await cards.receive_json())["error"]["message"]
        # Prices that can't be read leave the last ones as they were.
        prices, now = home.runtime_data.keeper._prices, dt_util.utcnow().timestamp()
        answers.clear()
        await eventually(lambda: home.runtime_data.session.data.connected)
        await prices.async_refresh(now + 1000)
        known = prices.at(now)
        answers["market:Rates"] = [{}]
        await prices.async_refresh(now + 2000)
        assert prices.at(now) == known != (None, None)
        answers.clear()
    # It may have met nonsense itself meanwhile.
    await eventually(lambda: home.runtime_data.session.data.connected)


async def test_what_its_owner_allows(
    hass: HomeAssistant, home: Any, hass_read_only_user: Any, hass_admin_user: Any
) -> None:
    # The limit is for the owner's day, where that is another date than in Greenwich, too.
    hour = dt_util.utcnow().hour
    zone = "Pacific/Pago_Pago" if hour < 8 else "Pacific/Kiritimati" if hour >= 12 else "UTC"
    await hass.config.async_set_time_zone(zone)
    guest = Context(user_id=hass_read_only_user.id)
    owner = Context(user_id=hass_admin_user.id)
    assert (await call(hass, "sell_energy", energy=0.1, context=guest))["status"] == "committed"
    hass.config_entries.async_update_entry(
        home, options={"administrators_only": True, "daily_limit": 0.5}
    )
    for name, data in (
        ("sell_energy", {"energy": 0.1}),
        ("cancel_order", {"order_id": "A"}),
        ("leave_network", {"confirm": True}),
    ):
        with pytest.raises(ServiceValidationError) as error:
            await call(hass, name, **data, context=guest)
        assert error.value.translation_key == "administrators_only"
    assert (await call(hass, "sell_energy", energy=0.1, context=owner))["status"] == "committed"
    client = home.runtime_data.session.client
    evaluate = client.evaluate

    async def lagging(chaincode: str, function: str, *rest: Any, **options: Any) -> Any:
        if function == "market:Trades":
            return {"trades": []}
        return await evaluate(chaincode, function, *rest, **options)

    # What was sold counts, whatever a peer that lags behind says.
    for answer in (evaluate, lagging):
        with (
            patch.object(client, "evaluate", answer),
            pytest.raises(ServiceValidationError) as error,
        ):
            await call(hass, "quote_sale", energy=0.4)
        assert error.value.translation_key == "daily_limit_reached"


async def test_leaving(hass: HomeAssistant, network: RunningNetwork, sockets: None) -> None:
    await prepare_connection(network, "H-LEAVE")
    report_plant(hass)
    entry = await join(hass, network.invitation("h-leave", "H-LEAVE"), PLANT)
    session = entry.runtime_data.session
    await eventually(lambda: session.data.connected)
    with pytest.raises(ServiceValidationError) as error:
        await call(hass, "leave_network", confirm=False)
    assert error.value.translation_key == "not_confirmed"
    await call(hass, "sell_energy", energy=0.2)
    with pytest.raises(ServiceValidationError) as error:
        await call(hass, "leave_network", confirm=True)
    assert error.value.translation_key == "still_promised"
    refresh = session.async_refresh_market

    async def delivered() -> None:
        await refresh()
        session.async_set_updated_data(_without_trades(session.data, queued=1))

    with patch.object(session, "async_refresh_market", delivered):
        with pytest.raises(ServiceValidationError) as error:
            await call(hass, "leave_network", confirm=True)
        assert error.value.translation_key == "still_queued"

    async def done() -> None:
        await refresh()
        session.async_set_updated_data(_without_trades(session.data, queued=0))

    with patch.object(session, "async_refresh_market", done):
        left = await call(hass, "leave_network", confirm=True)
    assert left["left"] is True
    assert left["balance"] > 0
    assert not hass.config_entries.async_entries(DOMAIN)
    assert await vault.async_load_secrets(hass, entry.unique_id) is None


def _without_trades(data: Any, queued: int) -> Any:
    from dataclasses import replace

    return replace(data, trades={}, queued=queued)


async def test_the_views_read_what_they_show(
    hass: HomeAssistant, home: Any, hass_ws_client: Any
) -> None:
    sale = await call(hass, "sell_energy", energy=0.3)
    client = await hass_ws_client(hass)

    async def ask(name: str, **data: Any) -> Any:
        await client.send_json_auto_id(
            {"type": f"gridledger/{name}", "entry_id": home.entry_id, **data}
        )
        return await client.receive_json()

    market = (await ask("market"))["result"]
    assert market["battery"]["stored_kwh"] == 8
    assert market["battery"]["sellable_kwh"] == pytest.approx(5.7)
    assert market["orders"] == []
    # Orders that neighbours have filled are followed: one delivers now, one is over.
    client_of_home = home.runtime_data.session.client
    now = int(home.runtime_data.session.clock.channel(dt_util.utcnow().timestamp())) // 60 * 60
    filled = [
        {
            **LISTED_ORDER,
            "order_id": name,
            "interval_start": str(at),
            "local_wh": "100",
            "state": "cleared",
        }
        for name, at in (("NOW", now), ("OVER", now - 3600))
    ]
    evaluate = client_of_home.evaluate
    settled: list[str] = []

    async def with_orders(chaincode: str, function: str, argument: Any, **options: Any) -> Any:
        if function == "settlement:Days":
            return {"days": [{"summary": {"day": day}} for day in settled]}
        if function != "book:Orders":
            return await evaluate(chaincode, function, argument, **options)
        return {"orders": [one for one in filled if int(one["interval_start"]) >= argument["from"]]}

    with patch.object(client_of_home, "evaluate", with_orders):
        for end in ("over", "settled"):
            market = (await ask("market"))["result"]
            followed = {one["order_id"]: one["progress"] for one in market["orders"]}
            assert followed.get("NOW", "over") in ("delivering", end)
            assert followed["OVER"] == end
            clock = home.runtime_data.session.clock
            settled += [clock.day(now - 3600), clock.day(now)]
    await home.runtime_data.keeper.async_refresh()
    followed = (await ask("sale", trade_id=sale["trade_id"]))["result"]["sale"]
    assert followed["state"] in ("committed", "delivering", "over")
    assert (await ask("sale", trade_id="NONE"))["result"]["sale"] is None
    plant = (await ask("plant"))["result"]
    assert plant["connected"] is True
    assert plant["renews_itself"] is True
    assert {sensor["odd"] for sensor in plant["sensors"]} == {None}
    now = dt_util.utcnow()
    span = {
        "start": (now - timedelta(hours=1)).isoformat(),
        "end": (now + timedelta(hours=1)).isoformat(),
    }
    archive = (await ask("archive", **span))["result"]
    assert archive["trades"][0]["trade_id"] == sale["trade_id"]
    wrong = await ask("archive", start=span["end"], end=span["start"])
    assert wrong["error"]["code"] == "invalid_format"
    proof = (await ask("proof", transaction_id=sale["transaction_id"]))["result"]
    assert proof["block"] == sale["block"]
    with patch.object(
        home.runtime_data.session.client, "evaluate", side_effect=ConnectionFailed("gone")
    ):
        assert (await ask("market"))["error"]["message"] == "gone"
    for name, data in (
        *((name, {}) for name in ("market", "plant", "bills", "supply", "neighbours", "rules")),
        ("archive", span),
        ("proof", {"transaction_id": sale["transaction_id"]}),
        ("sale", {"trade_id": sale["trade_id"]}),
        ("bill", {"from_day": "2025-06-20", "run": 1}),
    ):
        answer = await ask(name, **data, entry_id="nobody")
        assert answer["error"]["code"] == "not_found", name


async def test_the_calendar_shows_deliveries(hass: HomeAssistant, home: Any) -> None:
    entity_id = er.async_get(hass).async_get_entity_id(
        "calendar", DOMAIN, f"{home.unique_id}_calendar"
    )
    sale = await call(hass, "sell_energy", energy=0.3)
    await hass.async_block_till_done()
    state = hass.states.get(entity_id)
    assert state.attributes["message"] == "Delivers 0.30 kWh to Boreal"

    an_hour = timedelta(hours=1)
    [event] = await calendar_events(hass, entity_id, before=an_hour)
    assert dt_util.parse_datetime(event["start"]) == dt_util.parse_datetime(sale["window_start"])
    with patch.object(
        home.runtime_data.session.client, "evaluate", side_effect=ConnectionFailed("gone")
    ):
        # From what is known.
        assert await calendar_events(hass, entity_id, before=an_hour) == [event]
