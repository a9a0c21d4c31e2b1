"""How commands answer: text for people, JSON for programs."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

PROGRESS_S = 2.0


def answer(options: argparse.Namespace, value: Any, text: str) -> None:
    """Print the text, or with `--json` the value."""
    print(json.dumps(value, indent=2) if options.json else text)


def progress(message: str) -> None:
    """A step of something longer, on standard error."""
    print(f"  {message}", file=sys.stderr, flush=True)


class Patience:
    """Tells how something goes that takes longer than two seconds, every two seconds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = time.monotonic()

    def __call__(self, what: str, done: int) -> None:
        """Told after each step; seldom says anything."""
        now = time.monotonic()
        if now - self._last >= PROGRESS_S:
            self._last = now
            progress(f"{self._name}: {done} {what}")


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """Rows under their heads, in columns as wide as they need."""
    cells = [tuple(head), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
