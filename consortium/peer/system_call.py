"""What the system contracts may look at, and how they refuse."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from consortium.chaincode.packages import Package
from consortium.chaincode.simulator import TransactionSimulator
from consortium.identity.msp import Identity
from consortium.identity.policies import PolicyNotFoundError
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.ledger import Ledger
from consortium.wire import common_pb2

from .contracts import Contracts
from .snapshots import SnapshotJoins

WRITERS = "/Channel/Application/Writers"
READERS = "/Channel/Application/Readers"


class SystemChaincodeError(Exception):
    """A system contract's refusal; `status` is 404 for what isn't there, else 500."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class PeerCall:
    """A call of this peer's own affairs, with or without a channel."""

    creator: Identity
    contracts: Contracts
    ledgers: Mapping[str, Ledger]
    """Those of all channels that this peer has joined."""
    check_package: Callable[[Package], None]
    """Raises PackageError for a package that this peer could not run."""
    join: Callable[[common_pb2.Block], None]
    """Joins a channel by its first block; returns when the peer follows it."""
    snapshots: SnapshotJoins | None
    """Joins channels by snapshots."""

    @property
    def msp_id(self) -> str:
        """This peer's own organisation."""
        return self.contracts.msp_id

    def require_own(self, *, admin: bool) -> None:
        """Raises SystemChaincodeError unless the caller is of this peer's organisation."""
        if self.creator.msp_id != self.msp_id or (admin and not self.creator.is_admin):
            who = "an admin" if admin else "a member"
            raise SystemChaincodeError(
                f"access denied: only {who} of {self.msp_id} may ask its peer this"
            )


@dataclass(frozen=True, slots=True)
class SystemCall(PeerCall):
    """A call on a channel."""

    ledger: Ledger
    config: ChannelConfig
    simulator: TransactionSimulator

    def require(self, resource: str, default: str) -> None:
        """Raises SystemChaincodeError unless the caller satisfies the channel's policy."""
        require(self.config, self.config.acls.get(resource, default), self.creator)


def require(config: ChannelConfig, policy: str, creator: Identity) -> None:
    """Raises SystemChaincodeError unless the identity satisfies a channel's policy."""
    try:
        satisfied = config.policy(policy).satisfied_by([creator])
    except PolicyNotFoundError as error:
        raise SystemChaincodeError(str(error)) from None
    if not satisfied:
        raise SystemChaincodeError(
            f"Failed to authorize invocation due to failed ACL check: {creator.msp_id}'s "
            f"{creator.common_name} does not satisfy {policy}"
        )
