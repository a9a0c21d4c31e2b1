"""Worked examples with known answers: tests/data/cases, whose SOURCE.md says where each is from."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

CASES = Path(__file__).resolve().parents[2] / "data" / "cases"


def cases(name: str) -> dict[str, dict[str, Any]]:
    """The cases of one file by their id."""
    content = json.loads((CASES / f"{name}.json").read_text(), parse_float=Fraction)
    return {case["id"]: case for case in content["cases"]}
