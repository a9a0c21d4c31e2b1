"""A query's view of many homes: it may look each of them up, and still reads the ledger few times.

A transaction may read 100,000 keys one by one, so a question about 10,000 homes can't look a dozen
up for each, though most of them are the same: calendars, tariffs, rules. Here a key is read once,
and kinds of keys that each home has are read by one range when the first of them is asked for. For
queries alone: who writes must not depend on a range that others append to.
"""

from typing import Any, cast

from consortium.chaincode.api import Context, under


class _Remembered:
    """A `Context`, of which `get_state` alone is another."""

    def __init__(self, context: Context, kinds: tuple[str, ...]) -> None:
        self._context = context
        self._kinds = kinds
        self._ranges: dict[str, dict[str, bytes]] = {}
        self._values: dict[str, bytes | None] = {}

    def get_state(self, key: str) -> bytes | None:
        """See `api.Context`."""
        kind = key.partition("/")[0]
        if kind in self._kinds:
            if kind not in self._ranges:
                self._ranges[kind] = dict(self._context.range(*under(f"{kind}/")))
            return self._ranges[kind].get(key)
        if key not in self._values:
            self._values[key] = self._context.get_state(key)
        return self._values[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def remembered(context: Context, *kinds: str) -> Context:
    """The same context, which reads a key once, and `kind/…` by a range."""
    return cast("Context", _Remembered(context, kinds))
