"""`gridledger export`: all that the ledger has of a home, public and private, as one file.

The file is a JSON object, described in docs/contracts.md under "Export":

    format          "gridledger-export/1"
    channel, connection_id, utility
    exported_at     ISO 8601, UTC
    private         records of the utility's collection, {key, value}: readings, settled days, bills
    public          records of chaincode `energy`, {key, value}: trades, postings, bills, roles
"""

import argparse
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from consortium.identity.certificates import write_private
from consortium.node.network import Network, NetworkError
from gridledger_client import GatewayClient

from .output import Patience, answer

FORMAT = "gridledger-export/1"
PAGE = 1_000
MAX_PAGES = 10_000


class ExportError(NetworkError):
    """An export that can't be made; the sentence says why."""


def add_command(
    rooms: Any,
    parents: Sequence[argparse.ArgumentParser],
    client: Callable[[argparse.Namespace], GatewayClient],
) -> None:
    """Register `export`; `rooms` are the parser's commands, `client` acts as the options say."""
    export = rooms.add_parser(
        "export",
        parents=list(parents),
        help="all that the ledger has of a home, as one JSON file",
        description="Asks a peer of the home's utility, as its operator or, with --as, as the home "
        "itself. The file is only its owner's to read.",
    )
    export.add_argument("connection", help="the home's connection id, such as CP-0001")
    export.add_argument("--out", type=Path, required=True, help="the file to write")
    export.set_defaults(run=lambda options: _export(options, client))


async def _export(
    options: argparse.Namespace, client: Callable[[argparse.Namespace], GatewayClient]
) -> None:
    if options.out.exists():
        raise ExportError(f"{options.out} exists already; name another file with --out")
    async with client(options) as gateway:
        connection = await gateway.evaluate(
            "energy", "registry:Connection", {"connection_id": options.connection}
        )
        found = {
            "format": FORMAT,
            "channel": Network.load(options.data_dir).channel,
            "connection_id": options.connection,
            "utility": connection["utility"],
            "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "private": await _pages(gateway, "metering", "privacy:Export", options.connection),
            "public": await _pages(gateway, "energy", "export:Home", options.connection),
        }
    write_private(options.out, json.dumps(found, indent=1).encode())
    counts = {name: len(found[name]) for name in ("private", "public")}
    answer(
        options,
        {"file": str(options.out), **counts},
        f"{options.out} has {counts['private']} private and {counts['public']} public records of "
        f"{options.connection}.",
    )


async def _pages(
    gateway: GatewayClient, chaincode: str, function: str, connection_id: str
) -> list[Any]:
    records: list[Any] = []
    bookmark = None
    patience = Patience(function)
    for _ in range(MAX_PAGES):
        page = await gateway.evaluate(
            chaincode,
            function,
            {"connection_id": connection_id, "limit": PAGE, "bookmark": bookmark},
        )
        records += page["records"]
        patience("records", len(records))
        bookmark = page["bookmark"]
        if bookmark is None:
            return records
    raise ExportError(f"{connection_id} has more than {MAX_PAGES} pages of records")
