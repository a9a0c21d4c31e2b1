"""The engine is pure: its tests need no Home Assistant."""

import pytest


@pytest.fixture(autouse=True)
def _our_integration() -> None:
    """Take the place of the fixture that starts Home Assistant."""
