"""How often random tests try: few in CI, as many as GRIDLEDGER_SEQUENCES says in a long run.

GRIDLEDGER_SEQUENCES=10000 script/test tests/consortium/contracts -k 'properties or auction'
"""

import os

import pytest

_WANTED = int(os.environ.get("GRIDLEDGER_SEQUENCES", "0"))


def sequences(few: int) -> int:
    """How many to try, `few` unless a long run is asked for."""
    return _WANTED or few


def in_time(few: int) -> pytest.MarkDecorator:
    """A test's time limit, by how many it tries: three seconds each, on a busy machine."""
    return pytest.mark.timeout(600 + 3 * sequences(few))
