"""What a replayed month came to: plain values, written as JSON, of which the report is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """A sum that must be right."""

    name: str
    detail: str
    holds: bool


@dataclass(slots=True)
class Outcome:
    """What a report is made of; plain values, written beside it as JSON."""

    month: str
    days: list[dict[str, Any]] = field(default_factory=list)
    """Of each day: energies in Wh, money in micro-units, mean prices."""
    hours: list[dict[str, int]] = field(default_factory=list)
    """Of each hour: import and export of the homes, what their batteries hold at its end, the
    plant's export, the price."""
    auctions: list[dict[str, Any]] = field(default_factory=list)
    bills: list[dict[str, Any]] = field(default_factory=list)
    statement: dict[str, Any] = field(default_factory=dict)
    certificates: dict[str, Any] = field(default_factory=dict)
    balances: list[dict[str, Any]] = field(default_factory=list)
    readings: dict[str, int] = field(default_factory=dict)
    """How many came, and in which way; how many days and bills were adjusted."""
    community: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every sum is right."""
        return bool(self.checks) and all(one.holds for one in self.checks)
