"""A channel on disk: contracts simulated against a real ledger, and committed in real blocks."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consortium.chaincode.api import Creator
from consortium.chaincode.executor import Invocation
from consortium.chaincode.simulator import TransactionSimulator
from consortium.contracts import chaincodes
from consortium.ledger.ledger import CommittedBlock
from consortium.ledger.state import StateView
from consortium.wire import rwset_pb2
from consortium.wire.envelopes import open_envelope
from tests.consortium.contracts.world import _chaincode_of, _Context
from tests.consortium.ledger.channel import (
    CHANNEL_ID,
    UTILITIES,
    Channel,
    collection,
    public_set,
)

MAJORITY = "OutOf(2, 'AuroraMSP.peer', 'BorealMSP.peer', 'CieloMSP.peer')"


@dataclass(frozen=True)
class Endorsed:
    """What a call wants to write, and what it answered."""

    chaincode: str
    rwset: bytes
    value: Any
    private: rwset_pb2.TxPvtReadWriteSet | None


class LedgerWorld:
    """The contracts over Aurora's ledger; every envelope signed and endorsed like on a network."""

    def __init__(self, folder: Path, now: int, *, durable: bool = False) -> None:
        self.now = now
        self.channel = Channel()
        self.ledger = self.channel.open(folder / "ledger", durable=durable)
        self.channel.deploy(self.ledger, policy=MAJORITY)
        self.channel.deploy(
            self.ledger,
            policy=MAJORITY,
            chaincode="metering",
            collections=[
                collection(f"readings-{name}MSP", [name], policy=f"OR('{name}MSP.peer')")
                for name in UTILITIES
            ],
        )
        self._chaincodes = chaincodes()
        self._calls = 0

    def close(self) -> None:
        self.ledger.close()

    @contextmanager
    def view(self) -> Iterator[StateView]:
        """The committed state; many calls can be simulated on one."""
        with self.ledger.view() as view:
            yield view

    def simulator(self, view: StateView) -> TransactionSimulator:
        """Of one transaction, with the utilities' collections."""
        return TransactionSimulator(
            view,
            CHANNEL_ID,
            collections=lambda _view, _name: [f"readings-{name}MSP" for name in UTILITIES],
        )

    def simulate(
        self,
        view: StateView,
        caller: Creator,
        function: str,
        argument: Mapping[str, Any],
        transient: Mapping[str, bytes] | None = None,
    ) -> Endorsed:
        name = _chaincode_of(function)
        self._calls += 1
        invocation = Invocation(
            name,
            CHANNEL_ID,
            hashlib.sha256(f"{self._calls}".encode()).hexdigest(),
            self.now,
            caller,
            [function.encode(), json.dumps(argument).encode()],
            transient or {},
        )
        simulator = self.simulator(view)
        context = _Context(invocation, simulator)
        payload = self._chaincodes[name].invoke(context, invocation.args)
        results = simulator.results()
        return Endorsed(name, results.rwset, json.loads(payload), results.private)

    def envelope(self, endorsed: Endorsed) -> bytes:
        """A transaction with two endorsements, or the metering utility's alone.

        What it wrote privately waits at Aurora's peer, as after its own endorsement.
        """
        envelope = self.channel.transaction(
            rwset_pb2.TxReadWriteSet.FromString(endorsed.rwset),
            UTILITIES[:1] if endorsed.private else UTILITIES[:2],
            chaincode=endorsed.chaincode,
        )
        if endorsed.private:
            self.ledger.store_transient(
                open_envelope(envelope).channel_header.tx_id,
                endorsed.private.SerializeToString(),
                self.ledger.height,
            )
        return envelope

    def commit(self, transactions: Sequence[Endorsed]) -> CommittedBlock:
        """One block of them all."""
        return self.channel.commit(self.ledger, *(self.envelope(one) for one in transactions))

    def submit(self, caller: Creator, function: str, **argument: Any) -> Any:
        """A block of one call."""
        with self.view() as view:
            endorsed = self.simulate(view, caller, function, argument)
        committed = self.commit([endorsed])
        assert committed.codes == b"\0", committed.codes
        return endorsed.value

    def evaluate(self, caller: Creator, function: str, **argument: Any) -> Any:
        with self.view() as view:
            return self.simulate(view, caller, function, argument).value

    def write(self, values: Mapping[str, bytes], chaincode: str = "energy") -> None:
        """Put values into the state without a contract: what a test begins with."""
        committed = self.channel.commit(
            self.ledger,
            self.channel.transaction(public_set(chaincode, writes=values), chaincode=chaincode),
        )
        assert committed.codes == b"\0"

    def values(self, prefix: str, chaincode: str = "energy") -> Iterator[tuple[str, Any]]:
        """Stored records under a prefix."""
        with self.view() as view:
            for key, found in view.range(chaincode, prefix, prefix[:-1] + "0"):
                yield key, json.loads(found.value)

    def money(self) -> dict[str, int]:
        """Sums of all postings, by account."""
        sums: dict[str, int] = {}
        for key, record in self.values("acct/"):
            account, part = _account(key)
            if part == "post":
                sums[account] = sums.get(account, 0) + int(record["amount_micro"])
        return sums

    def kept(self) -> dict[str, int]:
        """What accounts have in shards, pending holds and entries."""
        sums: dict[str, int] = {}
        for key, record in self.values("acct/"):
            account, part = _account(key)
            if part in ("avail", "in") or (part == "hold" and record["state"] == "pending"):
                sums[account] = sums.get(account, 0) + int(record["amount_micro"])
        return sums


def _account(key: str) -> tuple[str, str]:
    """The account of a key under `acct/`, and what of it."""
    parts = key.split("/")
    at = 4 if parts[1] == "ext" else 2
    return "/".join(parts[1:at]), parts[at]
