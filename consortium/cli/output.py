"""How commands answer: text for people, JSON for programs."""

import argparse
import json
from collections.abc import Sequence
from typing import Any


def answer(options: argparse.Namespace, value: Any, text: str) -> None:
    """Print the text, or with `--json` the value."""
    print(json.dumps(value, indent=2) if options.json else text)


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """Rows under their heads, in columns as wide as they need."""
    cells = [tuple(head), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
