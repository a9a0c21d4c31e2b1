"""Contract `export`: all that the public part of the ledger has of a home, record by record.

What is private of it, its utility has: `privacy:Export` of chaincode `metering`. Together, and with
the file that `gridledger export` writes, they are everything. To export another kind of record,
enter where it stands in `PLACES`.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from consortium.chaincode.api import (
    Context,
    Contract,
    Identifier,
    Integer,
    Json,
    query,
    stored_json,
    under,
)

from ..common import access
from ..common.pages import Bookmark
from ..registry import homes
from ..registry.registry import connection_of
from . import overseers

PLACES = (
    "connection/{}", "role/{}/", "switch/{}", "above/c/{}", "units/{}", "member/{}", "supply/{}",
    "supplyoffer/{}/", "consent/{}", "deleg/{}/", "request/{}/", "trade/{}/", "position/{}/",
    "order/{}/", "fill/{}/", "bilateral-of/{}", "day/{}/", "tok/{}/", "held/{}/", "credit/{}/",
    "credited/{}/", "challenge/{}/", "billing/{}", "bill/{}/", "due/{}/", "billperiod/{}/",
    "posted/{}/", "creditnote/{}/", "cancelled/{}/", "dispute/{}/", "billpayment/{}/", "topup/{}/",
    "prepaid/{}", "permit/{}", "certs/{}/", "payment/{}/", "withdrawal/{}/", "acct/{}/",
    "inpool/{}/", "guarantor/{}", "origin/{}",
)  # fmt: skip
"""Where records of a home stand, in the order of the export; what ends in "/" is a prefix."""
MAX_PAGE_BYTES = 500_000
"""After which a page ends."""
EVENTS = "respond/"
"""Demand response: under the event first, so each event is asked."""


class Exports(Contract):
    """Having what is kept of a home."""

    name: ClassVar[str] = "export"

    @query
    def home(
        self,
        context: Context,
        *,
        connection_id: Identifier,
        limit: Annotated[int, Integer(1, 2_000)] = 1_000,
        bookmark: Bookmark | None = None,
    ) -> dict[str, Any]:
        """All public records of a home, page by page."""
        connection = connection_of(context, connection_id)
        creator = context.creator
        access.require(
            homes.is_home(context, connection)
            or access.is_operator(creator, connection.utility)
            or overseers.kind_of(context) == "regulator",
            creator,
            f"export what is kept of {connection_id}",
            f"its home, operators of {connection.utility} and regulators",
        )
        records: list[dict[str, Json]] = []
        last, size = "", 0
        for section, key, value in _records(context, connection_id, bookmark or ""):
            if len(records) == limit or size > MAX_PAGE_BYTES:
                return {"connection_id": connection_id, "records": records, "bookmark": last}
            records.append({"key": key, "value": stored_json(value)})
            size += len(value)
            last = f"{section}/{key}"
        return {"connection_id": connection_id, "records": records, "bookmark": None}


def _records(
    context: Context, connection_id: str, bookmark: str
) -> Iterator[tuple[int, str, bytes]]:
    """(place, key, value) after a bookmark."""
    begun, _, after = bookmark.partition("/")
    first = int(begun) if begun.isdigit() else 0
    for number, shape in enumerate(PLACES):
        if number < first:
            continue
        place = shape.format(connection_id)
        beyond = f"{after}\0" if number == first and after else ""
        if place.endswith("/"):
            start, end = under(place)
            for key, value in context.range(max(start, beyond), end):
                yield number, key, value
        elif place >= beyond:
            stored = context.get_state(place)
            if stored is not None:
                yield number, place, stored
    start, end = under("event/")
    if first == len(PLACES):
        start = max(start, f"event/{after.split('/')[1]}\0" if after.count("/") > 1 else start)
    for key, _ in context.range(start, end):
        name = f"{EVENTS}{key.removeprefix('event/')}/{connection_id}"
        stored = context.get_state(name)
        if stored is not None:
            yield len(PLACES), name, stored
