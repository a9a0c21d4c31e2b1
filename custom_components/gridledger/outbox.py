"""What the home must not lose: its meter's state, and readings on their way to the ledger.

One SQLite file, written through (WAL, synchronous FULL), readable by its owner alone. A cut
interval and the meter's advance are one transaction; a signed envelope is stored before it is
sent. So after a crash at any point each interval exists once, and what may have been sent is
asked for by its transaction id or sent again as the same bytes, never computed anew.

Every function blocks; the integration calls them in the executor. One lock serialises them.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE reading (
    interval_start INTEGER PRIMARY KEY,
    fields TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'sent', 'committed', 'refused')),
    transaction_id TEXT,
    note TEXT
);
CREATE INDEX reading_state ON reading (state, interval_start);
CREATE TABLE envelope (
    transaction_id TEXT PRIMARY KEY,
    envelope BLOB NOT NULL,
    created REAL NOT NULL
) WITHOUT ROWID;
"""


class OutboxError(Exception):
    """The file can't be used, and why."""


@dataclass(frozen=True, slots=True)
class StoredReading:
    """A signed reading and where it stands."""

    interval_start: int
    fields: Mapping[str, str]
    state: str
    transaction_id: str | None
    note: str | None


@dataclass(frozen=True, slots=True)
class StoredEnvelope:
    """A signed transaction whose outcome isn't known yet."""

    transaction_id: str
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Summary:
    """How many readings wait, how many were refused, and the last committed interval."""

    queued: int
    refused: int
    last_committed: int | None


class Outbox:
    """Readings and facts of one home, on disk."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            OutboxError: it was written by a newer version, or can't be read.
        """
        self._lock = Lock()
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        os.close(descriptor)
        path.chmod(0o600)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._open(path)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise OutboxError(f"{path} can't be used: {error}") from error
        except OutboxError:
            self._db.close()
            raise

    def _open(self, path: Path) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        elif version != FORMAT:
            raise OutboxError(
                f"{path} has format {version}, this version of GridLedger reads {FORMAT}: "
                "update the integration"
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _transaction(self, statements: Iterable[tuple[str, Sequence[Any]]]) -> None:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, values in statements:
                    self._db.execute(sql, values)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _all(self, sql: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    # Facts ----------------------------------------------------------------------------------

    def fact(self, name: str) -> Any:
        """Return a stored JSON value, None where there is none."""
        rows = self._all("SELECT value FROM fact WHERE name = ?", name)
        return json.loads(rows[0][0]) if rows else None

    def store_fact(self, name: str, value: Any) -> None:
        """Store a JSON value under a name."""
        self.store_facts({name: value})

    def store_facts(self, facts: Mapping[str, Any]) -> None:
        """Store JSON values by their names: all of them or none."""
        self._transaction([_fact(name, value) for name, value in facts.items()])

    # Readings -------------------------------------------------------------------------------

    def append(self, readings: Iterable[Mapping[str, str]], meter_state: Mapping[str, Any]) -> None:
        """Store signed readings together with the state of the meter that cut them.

        An interval that is there already stays as it is: it may have been sent.
        """
        self._transaction(
            [
                *(
                    (
                        (
                            "INSERT OR IGNORE INTO reading (interval_start, fields, state) "
                            "VALUES (?, ?, 'queued')"
                        ),
                        (int(fields["interval_start"]), json.dumps(dict(fields))),
                    )
                    for fields in readings
                ),
                _fact("meter", meter_state),
            ]
        )

    def queued(self, limit: int) -> list[StoredReading]:
        """Return the oldest readings that wait to be sent."""
        return self._readings("state = 'queued' ORDER BY interval_start LIMIT ?", limit)

    def recent(self, limit: int) -> list[StoredReading]:
        """Return the newest readings, newest first, whatever their state."""
        return self._readings("1 ORDER BY interval_start DESC LIMIT ?", limit)

    def between(self, start: int, end: int, limit: int) -> list[StoredReading]:
        """Return readings of intervals that begin within ``[start, end)``, oldest first."""
        return self._readings(
            "interval_start >= ? AND interval_start < ? ORDER BY interval_start LIMIT ?",
            start,
            end,
            limit,
        )

    def _readings(self, where: str, *values: Any) -> list[StoredReading]:
        rows = self._all(
            "SELECT interval_start, fields, state, transaction_id, note FROM reading WHERE "  # noqa: S608
            + where,
            *values,
        )
        return [StoredReading(row[0], json.loads(row[1]), *row[2:]) for row in rows]

    def store_envelope(
        self, transaction_id: str, envelope: bytes, interval_starts: Iterable[int]
    ) -> None:
        """Store a signed transaction before it is sent, and which readings it carries."""
        self._transaction(
            [
                (
                    "INSERT INTO envelope VALUES (?, ?, ?)",
                    (transaction_id, envelope, time.time()),
                ),
                *(
                    (
                        (
                            "UPDATE reading SET state = 'sent', transaction_id = ? "
                            "WHERE interval_start = ? AND state = 'queued'"
                        ),
                        (transaction_id, start),
                    )
                    for start in interval_starts
                ),
            ]
        )

    def undecided(self) -> list[StoredEnvelope]:
        """Return transactions that were, or may have been, sent, and whose outcome is open."""
        return [
            StoredEnvelope(*row)
            for row in self._all(
                "SELECT transaction_id, envelope FROM envelope ORDER BY created, transaction_id"
            )
        ]

    def decide(self, transaction_id: str, *, committed: bool) -> None:
        """Settle a transaction: its readings are in the ledger, or wait to be sent again."""
        state, kept_id = ("committed", transaction_id) if committed else ("queued", None)
        self._transaction(
            [
                (
                    (
                        "UPDATE reading SET state = ?, transaction_id = ? "
                        "WHERE transaction_id = ? AND state = 'sent'"
                    ),
                    (state, kept_id, transaction_id),
                ),
                ("DELETE FROM envelope WHERE transaction_id = ?", (transaction_id,)),
            ]
        )

    def refuse(self, interval_start: int, reason: str) -> None:
        """Note that the ledger will never take a reading, and why."""
        self._transaction(
            [
                (
                    (
                        "UPDATE reading SET state = 'refused', note = ?, transaction_id = NULL "
                        "WHERE interval_start = ? AND state IN ('queued', 'sent')"
                    ),
                    (reason[:500], interval_start),
                )
            ]
        )

    def found_in_ledger(self, interval_starts: Iterable[int]) -> None:
        """Note that the ledger holds these very readings, however they got there."""
        self._transaction(
            [
                (
                    (
                        "UPDATE reading SET state = 'committed' "
                        "WHERE interval_start = ? AND state = 'queued'"
                    ),
                    (start,),
                )
                for start in interval_starts
            ]
        )

    def summary(self) -> Summary:
        """Return how things stand."""
        counts = dict(self._all("SELECT state, COUNT(*) FROM reading GROUP BY state"))
        [(last,)] = self._all("SELECT MAX(interval_start) FROM reading WHERE state = 'committed'")
        waiting = counts.get("queued", 0) + counts.get("sent", 0)
        return Summary(waiting, counts.get("refused", 0), last)

    def prune(self, before: int) -> int:
        """Delete readings of intervals before an instant; return how many never got through."""
        [(lost,)] = self._all(
            "SELECT COUNT(*) FROM reading WHERE interval_start < ? AND state = 'queued'", before
        )
        self._transaction(
            [("DELETE FROM reading WHERE interval_start < ? AND state != 'sent'", (before,))]
        )
        return int(lost)


def _fact(name: str, value: Any) -> tuple[str, Sequence[Any]]:
    return ("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, json.dumps(value)))
