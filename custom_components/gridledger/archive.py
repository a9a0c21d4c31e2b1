"""What was: a span's readings and trades, an account's postings, and a transaction's proof.

Readings come from the home's own outbox, which keeps 35 days; trades and postings from the ledger.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from homeassistant.util import dt as dt_util

from .client import GridLedgerError, TransactionRefused
from .client.wire import common_pb2, msp_pb2, peer_pb2
from .clock import ChannelClock
from .const import CHAINCODE_ENERGY, LOGGER
from .models import Trade, order_as_response, understood
from .outbox import Outbox, StoredReading
from .session import LedgerSession

READINGS_LIMIT: Final = 40_000
"""More than 35 days of intervals of 90 s; a demonstration's are thinned by its hours anyway."""
_PAGE: Final = 200
_DAY_PAGE: Final = 100
_PAGES: Final = 50
_TRANSACTIONS_FILTER: Final = 2


async def async_trades(session: LedgerSession, start: int, end: int) -> list[Trade]:
    """Return the home's trades whose delivery begins within channel times ``[start, end)``.

    Raises:
        GridLedgerError: the ledger is away or answers nonsense.
    """
    found: list[Trade] = []
    bookmark = ""
    for _ in range(_PAGES):
        page = await session.client.evaluate(
            CHAINCODE_ENERGY,
            "market:Trades",
            {
                "connection_id": session.connection_id,
                "from": max(0, start),
                "limit": _PAGE,
                **({"bookmark": bookmark} if bookmark else {}),
            },
        )
        with understood("a trade"):
            read = [Trade.from_json(stated) for stated in page["trades"]]
        found.extend(trade for trade in read if trade.window_start < end)
        bookmark = str(page.get("bookmark") or "")
        if not bookmark or (read and read[-1].window_start >= end):
            break
    return found


async def async_orders(session: LedgerSession, start: int, end: int) -> list[dict[str, Any]]:
    """Return the home's orders for intervals within channel times ``[start, end)``.

    Raises:
        GridLedgerError: the ledger is away or answers nonsense.
    """
    clock = session.known_clock()
    found: list[dict[str, Any]] = []
    bookmark = ""
    for _ in range(_PAGES):
        page = await session.client.evaluate(
            CHAINCODE_ENERGY,
            "book:Orders",
            {
                "connection_id": session.connection_id,
                "from": max(0, start),
                "limit": _PAGE,
                **({"bookmark": bookmark} if bookmark else {}),
            },
        )
        with understood("an order"):
            read = [(int(order["interval_start"]), order) for order in page["orders"]]
            found.extend(
                {**order_as_response(order, clock, session.data.currency), "amount": _amount(order)}
                for at, order in read
                if at < end
            )
        bookmark = str(page.get("bookmark") or "")
        if not bookmark or (read and read[-1][0] >= end):
            break
    return found


def _with_neighbours(orders: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return what orders have brought from neighbours and given to them (kWh)."""
    sums = {"bid": 0.0, "offer": 0.0}
    for order in orders:
        sums[order["side"]] += order["filled_kwh"]
    return {"from_neighbours_kwh": sums["bid"], "to_neighbours_kwh": sums["offer"]}


async def async_traded_with_neighbours(session: LedgerSession, since: datetime) -> dict[str, float]:
    """Return what was traded with neighbours since an instant (kWh).

    Raises:
        GridLedgerError: the ledger is away or answers nonsense.
    """
    clock = session.known_clock()
    first, last = clock.channel(since.timestamp()), clock.channel(dt_util.utcnow().timestamp())
    return _with_neighbours(await async_orders(session, int(first), int(last)))


def _amount(order: Mapping[str, Any]) -> float:
    """Return what an order's fills come to, fees included: received if positive."""
    micro_wh = sum(
        int(order.get(f"{where}_wh") or 0) * int(order.get(f"{where}_price") or 0)
        for where in ("local", "hub")
    )
    amount = micro_wh / 1e9
    return amount if order["side"] == "offer" else -amount


async def async_statement(session: LedgerSession, start: int, end: int) -> list[dict[str, Any]]:
    """Return the wallet's postings within channel times ``[start, end)``, newest first.

    Raises:
        GridLedgerError: the ledger is away or answers nonsense.
    """
    found: list[dict[str, Any]] = []
    bookmark = ""
    for _ in range(_PAGES):
        page = await session.client.evaluate(
            CHAINCODE_ENERGY,
            "wallet:Statement",
            {
                "account": session.connection_id,
                "limit": _PAGE,
                **({"bookmark": bookmark} if bookmark else {}),
            },
        )
        with understood("a statement"):
            entries = [(int(entry["at"]), entry) for entry in page["entries"]]
        found.extend(dict(entry) for at, entry in entries if start <= at < end)
        bookmark = str(page.get("bookmark") or "")
        if not bookmark or (entries and entries[-1][0] < start):
            break
    return found


async def async_settled_days(session: LedgerSession, from_day: str) -> dict[str, dict[str, Any]]:
    """Return the days that are posted, from a day on, as they were posted last, the oldest first.

    There are none where the ledger knows nothing of settlement.

    Raises:
        GridLedgerError: the ledger is away or answers nonsense.
    """
    found: dict[str, dict[str, Any]] = {}
    bookmark = ""
    for _ in range(_PAGES):
        try:
            page = await session.client.evaluate(
                CHAINCODE_ENERGY,
                "settlement:Days",
                {
                    "connection_id": session.connection_id,
                    "from_day": from_day,
                    "limit": _DAY_PAGE,
                    **({"bookmark": bookmark} if bookmark else {}),
                },
            )
        except TransactionRefused as error:
            LOGGER.debug("No settled days: %s", error)
            break
        with understood("a settled day"):
            found |= {str(one["summary"]["day"]): one for one in page["days"]}
            bookmark = str(page.get("bookmark") or "")
        if not bookmark:
            break
    return found


def posting_as_response(posting: Mapping[str, Any], clock: ChannelClock) -> dict[str, Any]:
    """Return a posting in the units of people."""
    return {
        "at": clock.real_datetime(int(posting["at"])).isoformat(),
        "amount": int(posting["amount_micro"]) / 1e6,
        "kind": str(posting.get("kind", "")),
        "reference": str(posting.get("reference", "")),
        "counterparty": str(posting.get("counterparty", "")),
        "transaction_id": str(posting.get("transaction_id", "")),
    }


def reading_as_response(reading: StoredReading, clock: ChannelClock) -> dict[str, Any]:
    """Return a reading in the units of people."""
    return {
        "start": clock.real_datetime(reading.interval_start).isoformat(),
        "import_wh": int(reading.fields["import_wh"]),
        "export_wh": int(reading.fields["export_wh"]),
        "quality": reading.fields["quality"],
        "state": reading.state,
        "transaction_id": reading.transaction_id,
    }


async def async_archive(
    session: LedgerSession,
    outbox: Outbox,
    start: datetime,
    end: datetime,
    *,
    ledger: bool = True,
) -> dict[str, Any]:
    """Return a span of real time: readings by interval, trades, postings, and their sums.

    Without ``ledger`` there is only what the home keeps itself.

    Raises:
        GridLedgerError: the ledger is away.
    """
    clock = session.known_clock()
    first, last = (int(clock.channel(instant.timestamp())) for instant in (start, end))
    trades = await async_trades(session, first, last) if ledger else []
    orders = await async_orders(session, first, last) if ledger else []
    postings = await async_statement(session, first, last) if ledger else []
    readings = await session.hass.async_add_executor_job(
        outbox.between, first, last, READINGS_LIMIT
    )
    currency = session.data.currency
    return {
        "start": start.isoformat(),
        "end": end.isoformat(),
        "currency": currency,
        "readings": [reading_as_response(reading, clock) for reading in readings],
        "trades": [trade.as_response(clock, currency) for trade in trades],
        "orders": orders,
        "postings": [posting_as_response(posting, clock) for posting in postings],
        "totals": {
            "import_kwh": sum(int(one.fields["import_wh"]) for one in readings) / 1000,
            "export_kwh": sum(int(one.fields["export_wh"]) for one in readings) / 1000,
            "sold_kwh": sum(trade.energy_wh for trade in trades) / 1000,
            "gross": sum(trade.gross_micro for trade in trades) / 1e6,
            "grid_fee": sum(trade.grid_fee_micro for trade in trades) / 1e6,
            "tax": sum(trade.tax_micro for trade in trades) / 1e6,
            "net": sum(trade.net_micro for trade in trades) / 1e6,
            **_with_neighbours(orders),
            "received": sum(max(0, int(one["amount_micro"])) for one in postings) / 1e6,
            "paid": -sum(min(0, int(one["amount_micro"])) for one in postings) / 1e6,
        },
    }


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header; empty without any."""
    rows = list(rows)
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


async def async_proof(session: LedgerSession, transaction_id: str) -> dict[str, Any]:
    """Return where a transaction stands in the chain, and who endorsed it.

    Raises:
        GridLedgerError: the ledger is away, or doesn't know the transaction.
    """
    raw = await session.client.evaluate(
        "qscc",
        "GetBlockByTxID",
        [session.client.channel.encode(), transaction_id.encode()],
    )
    with understood("the block"):
        block = common_pb2.Block.FromString(raw)
        index, header, payload = _find(block, transaction_id)
        code = block.metadata.metadata[_TRANSACTIONS_FILTER][index]
        endorsements = [
            endorsement
            for action in peer_pb2.Transaction.FromString(payload.data).actions
            for endorsement in peer_pb2.ChaincodeActionPayload.FromString(
                action.payload
            ).action.endorsements
        ]
        names = [_signer(endorsement.endorser) for endorsement in endorsements]
    return {
        "transaction_id": transaction_id,
        "block": block.header.number,
        "position": index,
        "transactions_in_block": len(block.data.data),
        "previous_hash": block.header.previous_hash.hex(),
        "data_hash": block.header.data_hash.hex(),
        "code": peer_pb2.TxValidationCode.Name(code),
        "valid": code == peer_pb2.VALID,
        "submitted_at": header.timestamp.ToDatetime().isoformat() + "+00:00",
        "endorsed_by": names,
    }


def _find(
    block: common_pb2.Block, transaction_id: str
) -> tuple[int, common_pb2.ChannelHeader, common_pb2.Payload]:
    for index, data in enumerate(block.data.data):
        payload = common_pb2.Payload.FromString(common_pb2.Envelope.FromString(data).payload)
        header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
        if header.tx_id == transaction_id:
            return index, header, payload
    raise GridLedgerError(f"block {block.header.number} doesn't hold the transaction")


def _signer(serialized: bytes) -> dict[str, str]:
    identity = msp_pb2.SerializedIdentity.FromString(serialized)
    certificate = x509.load_pem_x509_certificate(identity.id_bytes)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return {"member": identity.mspid, "node": str(names[0].value) if names else ""}
