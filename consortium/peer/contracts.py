"""Which contracts this peer can run, and from which package.

A channel's members agree on a definition; each organization approves it together with the package
that its own peers run. A peer runs a contract only if its own organization approved the committed
definition with a package that is installed here. So two versions may be installed at once, and all
peers change from one to the other with the block that commits the new sequence.
(Rules: Fabric core/chaincode/lifecycle/endorsement_info.go, cache.go; core/chaincode
CheckInvocation for initialization.)
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from consortium.chaincode.executor import ExecutionError, Invocation
from consortium.chaincode.packages import PackageStore
from consortium.chaincode.simulator import TransactionSimulator
from consortium.ledger.ledger import Ledger
from consortium.ledger.lifecycle import (
    NAMESPACE,
    ChaincodeDefinition,
    LifecycleError,
    approved_package_hash,
    committed_sequence,
    definition,
    definitions,
    implicit_collection,
    mismatches,
    package_hash,
)
from consortium.ledger.state import StateView, key_hash

INITIALIZED_KEY = "\0\U0010ffffinitialized"
"""Key in a contract's namespace whose value is the version that was initialized (as in Fabric)."""
MAX_KNOWN = 1_000


class NotRunnableError(ExecutionError):
    """This peer does not run the contract, or not like this; the sentence says why."""


class UndefinedError(NotRunnableError):
    """The channel has no such contract."""


@dataclass(frozen=True, slots=True)
class Runnable:
    """A contract that this peer can run."""

    definition: ChaincodeDefinition
    package_id: str


class Contracts:
    """What is approved and installed, for one peer."""

    def __init__(self, msp_id: str, packages: PackageStore) -> None:
        self.msp_id = msp_id
        self.packages = packages
        # A sequence's definition never changes; who approves which package for it may.
        self._known: dict[tuple[str, str, int, bytes], Runnable] = {}

    def find(self, channel_id: str, name: str, sequence: int, view: StateView) -> Runnable:
        """The contract of a committed sequence, as this peer runs it.

        Raises NotRunnableError, and LifecycleError for a definition that cannot be read.
        """
        hash_of = hash_reader(view, self.msp_id)
        package = approved_package_hash(name, sequence, hash_of)
        if package is None:
            raise self._not_approved(channel_id, name, sequence)
        key = (channel_id, name, sequence, package)
        found = self._known.get(key)
        if found is None:
            committed = definition(view, name)
            if committed is None:
                raise UndefinedError(f"chaincode {name} not found")
            if mismatches(committed, hash_of):
                raise self._not_approved(channel_id, name, sequence)
            package_id = self._installed(package)
            if package_id is None:
                raise NotRunnableError(
                    f"chaincode definition for '{name}' exists, but chaincode is not installed"
                )
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            found = self._known[key] = Runnable(committed, package_id)
        return found

    def _not_approved(self, channel_id: str, name: str, sequence: int) -> NotRunnableError:
        return NotRunnableError(
            f"chaincode definition for '{name}' at sequence {sequence} on channel '{channel_id}' "
            f"has not yet been approved by this org ({self.msp_id})"
        )

    def _installed(self, package: bytes) -> str | None:
        for package_id in self.packages.ids():
            if package_hash(package_id) == package:
                return package_id
        return None

    def prepare(self, name: str, is_init: bool, simulator: TransactionSimulator) -> Runnable:
        """Look up what a transaction invokes, and see to initialization.

        The sequence is recorded as read: an upgrade in between makes the transaction conflict.
        Raises NotRunnableError, LifecycleError.
        """
        sequence = committed_sequence(lambda key: simulator.get_state(NAMESPACE, key), name)
        if not sequence:
            raise UndefinedError(f"chaincode {name} not found")
        found = self.find(simulator.channel_id, name, sequence, simulator.view)
        version = found.definition.version.encode()
        needed = (
            found.definition.init_required and simulator.get_state(name, INITIALIZED_KEY) != version
        )
        if is_init and not found.definition.init_required:
            raise NotRunnableError(
                f"chaincode '{name}' does not require initialization but called as init"
            )
        if is_init and not needed:
            raise NotRunnableError(f"chaincode '{name}' is already initialized but called as init")
        if is_init:
            simulator.put_state(name, INITIALIZED_KEY, version)
        elif needed:
            raise NotRunnableError(
                f"chaincode '{name}' has not been initialized for this version, must call as init "
                "first"
            )
        return found

    def package_of(self, invocation: Invocation, simulator: TransactionSimulator) -> str:
        """For an executor: the package of a chaincode that another one calls."""
        return self.prepare(invocation.chaincode, invocation.is_init, simulator).package_id

    def runs(self, ledger: Ledger, name: str) -> bool:
        """Whether this peer can run a contract, by the newest state of its ledger."""
        with ledger.view() as view:
            sequence = committed_sequence(reader(view), name)
            try:
                return bool(sequence) and bool(self.find(ledger.channel_id, name, sequence, view))
            except NotRunnableError, LifecycleError:
                return False

    def runnable(self, ledger: Ledger) -> Iterator[Runnable]:
        """All contracts of a channel that this peer can run, by name."""
        with ledger.view() as view:
            for committed in definitions(view):
                try:
                    yield self.find(ledger.channel_id, committed.name, committed.sequence, view)
                except NotRunnableError, LifecycleError:
                    continue

    def references(self, ledgers: Mapping[str, Ledger]) -> dict[str, dict[str, list[Runnable]]]:
        """For each package that is in use: by channel, the contracts that run from it."""
        found: dict[str, dict[str, list[Runnable]]] = {}
        for channel_id in sorted(ledgers):
            for one in self.runnable(ledgers[channel_id]):
                found.setdefault(one.package_id, {}).setdefault(channel_id, []).append(one)
        return found


def reader(view: StateView) -> Callable[[str], bytes | None]:
    """Values of the public `_lifecycle` namespace."""

    def get(key: str) -> bytes | None:
        value = view.get(NAMESPACE, key)
        return None if value is None else value.value

    return get


def hash_reader(view: StateView, msp_id: str) -> Callable[[str], bytes | None]:
    """Hashes of the values in an organization's implicit collection of `_lifecycle`."""
    collection = implicit_collection(msp_id)

    def get(key: str) -> bytes | None:
        value = view.get_private_hash(NAMESPACE, collection, key_hash(key))
        return None if value is None else value.value

    return get
