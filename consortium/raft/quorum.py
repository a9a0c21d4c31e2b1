"""Majorities, alone and joined.

Every decision of Raft is one of two questions to a set of voters: up to which index have most of
them acknowledged, and have most of them said yes. While a membership change is under way (Raft
thesis, section 4.3) there are two sets and both must agree.
"""

from collections.abc import Collection, Mapping
from enum import Enum

INFINITE_INDEX = (1 << 64) - 1
"""What an empty set of voters has acknowledged: it never holds back the other half of a joint."""


class VoteResult(Enum):
    """Where an election stands."""

    PENDING = "VotePending"
    LOST = "VoteLost"
    WON = "VoteWon"


def majority_committed_index(voters: Collection[int], acknowledged: Mapping[int, int]) -> int:
    """Return the largest index that most of `voters` have acknowledged.

    A voter missing from `acknowledged` counts as having acknowledged nothing.
    """
    if not voters:
        return INFINITE_INDEX
    indexes = sorted(acknowledged.get(voter, 0) for voter in voters)
    # Of n sorted values, the one with n//2 + 1 values at or above it.
    return indexes[(len(indexes) - 1) // 2]


def joint_committed_index(
    incoming: Collection[int], outgoing: Collection[int], acknowledged: Mapping[int, int]
) -> int:
    """Return the largest index acknowledged by a majority of each half."""
    if not outgoing:
        return majority_committed_index(incoming, acknowledged)
    return min(
        majority_committed_index(incoming, acknowledged),
        majority_committed_index(outgoing, acknowledged),
    )


def majority_vote(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    """Count `votes` (voter -> yes?) among `voters`; an empty set of voters agrees to anything."""
    if not voters:
        return VoteResult.WON
    yes = sum(1 for voter in voters if votes.get(voter) is True)
    missing = sum(1 for voter in voters if voter not in votes)
    needed = len(voters) // 2 + 1
    if yes >= needed:
        return VoteResult.WON
    return VoteResult.PENDING if yes + missing >= needed else VoteResult.LOST


def joint_vote(
    incoming: Collection[int], outgoing: Collection[int], votes: Mapping[int, bool]
) -> VoteResult:
    """Count votes of both halves: won when both are won, lost as soon as one is."""
    results = {majority_vote(incoming, votes), majority_vote(outgoing, votes)}
    if VoteResult.LOST in results:
        return VoteResult.LOST
    return VoteResult.PENDING if VoteResult.PENDING in results else VoteResult.WON
