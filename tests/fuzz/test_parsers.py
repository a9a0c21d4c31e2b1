"""Whatever reads bytes from outside, on a few dozen spoiled inputs each; the same in each run."""

import random
from pathlib import Path

import pytest

from consortium.wire._pool import POOL
from tests.fuzz.messages import INSIDE
from tests.fuzz.parsers import parsers, pem_puzzles
from tests.fuzz.runner import try_parser

NAMES = [
    "open_envelope",
    "open_transaction",
    "open_proposal",
    "parse_rwset",
    "admission",
    "block",
    "commit_block",
    "commit",
    "commit_endorsed",
    "genesis",
    "configuration",
    "configuration_update",
    "pending_update",
    "config_json",
    "msp",
    "identity",
    "certificate",
    "certificate_request",
    "policy",
    "policy_text",
    "signature",
    "seek",
    "transient",
    "segments",
]


def test_the_parsers_are_these() -> None:
    assert list(parsers()) == NAMES
    assert len(pem_puzzles()) > 5


def test_what_bytes_hold_is_said_of_fields_that_are_there() -> None:
    for name in INSIDE:
        message, field = name.rsplit(".", 1)
        assert field in POOL.FindMessageTypeByName(message).fields_by_name, name


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("name", NAMES)
def test_no_input_does_more_than_raise_its_error(name: str, tmp_path: Path) -> None:
    try_parser(parsers()[name], random.Random(name), 40, tmp_path)
