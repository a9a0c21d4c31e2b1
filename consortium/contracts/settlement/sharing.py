"""How a community shares energy: what some members export and others import at once.

Pure functions of integers, in Wh. Shares are rounded on running sums, so they add up exactly and
do not depend on anything but the members' sequence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Method = Literal["static", "proportional"]
"""static: each member's key, whatever it uses. proportional: by what each imports."""


def pro_rata(total: int, weights: Sequence[int]) -> list[int]:
    """Split a total by weights: exact sum, each share within one of its exact value.

    Rounded half up on the running sum of weights. All zero where the weights are.
    """
    whole = sum(weights)
    if whole == 0:
        return [0] * len(weights)
    shares: list[int] = []
    running = before = 0
    for weight in weights:
        running += weight
        up_to = (2 * running * total + whole) // (2 * whole)
        shares.append(up_to - before)
        before = up_to
    return shares


@dataclass(frozen=True, slots=True)
class Shared:
    """What was shared within one interval, by member."""

    given: Mapping[str, int]
    """Of each member's export."""
    taken: Mapping[str, int]
    """Of each member's import."""

    @property
    def total(self) -> int:
        """All that was shared."""
        return sum(self.taken.values())


def share(
    exports: Mapping[str, int],
    imports: Mapping[str, int],
    method: Method,
    keys: Mapping[str, int] | None = None,
) -> Shared:
    """Share what a community exports among what it imports in the same interval.

    Under "static" keys a member gets its key's part of all exports, but no more than it imports;
    what it can't use stays with those who exported it. Under "proportional" all that is imported
    is covered as far as exports reach. Those who export give in proportion to what they export.

    Args:
        exports: Energy by member.
        imports: Energy by member.
        method: How it is shared out.
        keys: Each member's part, for "static"; in parts of their sum.
    """
    offered = sum(exports.values())
    members = sorted(imports)
    if method == "static":
        weights = keys or {}
        parts = pro_rata(offered, [weights.get(member, 0) for member in members])
        taken = {
            member: min(part, imports[member]) for member, part in zip(members, parts, strict=True)
        }
    else:
        wanted = [imports[member] for member in members]
        parts = pro_rata(min(offered, sum(wanted)), wanted)
        taken = dict(zip(members, parts, strict=True))
    givers = sorted(exports)
    given = pro_rata(sum(taken.values()), [exports[giver] for giver in givers])
    return Shared(dict(zip(givers, given, strict=True)), taken)


def net_windows(imports: Sequence[int], exports: Sequence[int], length: int) -> list[int]:
    """Net energy (import positive) of each netting window of `length` intervals.

    The window is a term of the contract: netting over an hour and over a quarter of an hour are
    two different bills.
    """
    net = [imported - exported for imported, exported in zip(imports, exports, strict=True)]
    return [sum(net[start : start + length]) for start in range(0, len(net), length)]
