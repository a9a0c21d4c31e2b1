"""What is said of a transformer's period in public, and what stays private.

A *node* is a transformer or a plant. For each period between two instants, a node's meter says
what it delivered, and each utility the signed sum of its homes behind it (import less export).
Both are private records of chaincode `metering` with commitments; chaincode `energy` publishes
what was committed to, once and never revised, since a revised sum less the first would be the
reading of one home.

A sum is published only where it hides every home in it: of at least ten homes, none of which is
more than 15 % of them all. Import and export are not published apart: among ten homes with one
roof of panels, the export would be that home's. What may not be published goes to the node's grid
operator under the same commitment, outside of the ledger (see `balance:Assess`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from consortium.chaincode.api import Identifier, Instant, Integer, MspId

from ..common.commitments import Commitment, Salt

MIN_HOMES = 10
MAX_SHARE_PPM = 150_000
MIN_PERIOD_S = 20 * 3600
"""A day, if it ends when meters were read: sums of less tell more of lives."""
MAX_PERIOD_S = 31 * 86_400
MAX_HOMES = 500
"""Of one utility behind one node."""

_MILLION = 1_000_000
NetEnergy = Annotated[int, Integer(-(10**15), 10**15, "Wh")]
Square = Annotated[int, Integer(0, 2**63 - 1, "Wh^2")]
Homes = Annotated[int, Integer(0, MAX_HOMES)]


@dataclass(frozen=True, slots=True)
class Share:
    """The sum of a utility's homes behind a node."""

    node_id: Identifier
    utility: MspId
    from_: Instant
    to: Instant
    net_wh: NetEnergy
    homes: Homes
    late: Homes
    """Of them, those that were not read at `to`: they count up to their last reading before."""
    public: bool
    """Whether it hides every home in it."""
    lines: Commitment
    """Of the registers that it was summed from."""
    salt: Salt


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a node's own meters counted: to its homes, less what flowed back."""

    node_id: Identifier
    utility: MspId
    """The grid operator."""
    from_: Instant
    to: Instant
    net_wh: NetEnergy
    square: Square
    """Sum over the intervals of their energy squared: copper heats with it."""
    salt: Salt


def share_key(node_id: str, to: int) -> str:
    """Where a utility's private record of its sum is."""
    return f"feeder/{node_id}/{to}/share"


def lines_key(node_id: str, to: int) -> str:
    """Where the registers are that it was summed from."""
    return f"feeder/{node_id}/{to}/lines"


def delivered_key(node_id: str, to: int) -> str:
    """Where the grid operator's private record of its own meter is."""
    return f"feeder/{node_id}/{to}/delivered"


def hides_each(energies_wh: Sequence[int]) -> bool:
    """Whether the sum of these homes may be published."""
    sizes = [abs(energy) for energy in energies_wh]
    return len(sizes) >= MIN_HOMES and max(sizes) * _MILLION <= sum(sizes) * MAX_SHARE_PPM
