"""The stories of tests/scenarios/raft/, each a cluster's whole conversation.

RAFT_REWRITE=1 writes what the core does now into the files; the diff is the review.
"""

import os
from pathlib import Path

import pytest

from tests.consortium.raft import datadriven
from tests.consortium.raft.interaction import Interaction

FOLDER = Path(__file__).parents[2] / "scenarios" / "raft"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    if os.environ.get("RAFT_REWRITE"):
        datadriven.rewrite(path, Interaction().handle)
    datadriven.run(path, Interaction().handle)
