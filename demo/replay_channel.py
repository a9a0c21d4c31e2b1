"""Three utilities' ledgers in one process: contracts run and committed for real, without a network.

A month of a neighbourhood is tens of thousands of transactions. So that it takes minutes, nothing
travels: a transaction is simulated on the ledgers of the utilities
that endorse it, their results are compared byte by byte and signed, and blocks of them, signed by
an ordering node, are validated and committed by all three ledgers (signatures, policies, conflicts,
private data), which must come to the same commit hash. What is left out: gRPC, gateways, and the
agreement of several ordering nodes, which have tests and benchmarks of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from consortium.chaincode.api import Answer, Chaincode, Creator
from consortium.chaincode.executor import Invocation, SimulatorContext, run_contract
from consortium.chaincode.simulator import TransactionSimulator
from consortium.contracts import chaincodes
from consortium.identity.certificates import CertificateAuthority, certificate_pem, generate_key
from consortium.identity.policies import parse_policy
from consortium.identity.signing import Signer
from consortium.ledger import lifecycle
from consortium.ledger.channel_config import (
    ChannelSpec,
    Consenter,
    OrganizationSpec,
    genesis_block,
)
from consortium.ledger.ledger import Ledger
from consortium.wire import common_pb2, kvrwset_pb2, peer_pb2, rwset_pb2
from consortium.wire.blocks import LAST_CONFIG, SIGNATURES, header_bytes, new_block
from consortium.wire.envelopes import channel_header, signed_envelope, transaction_id

CHANNEL: Final = "replay"
UTILITIES: Final = ("Aurora", "Boreal", "Cielo")
BLOCK_TRANSACTIONS: Final = 250
MAX_TRIES: Final = 8
"""How often a transaction is simulated anew after it met another one in its block."""
CONFLICTS: Final = (11, 12)
"""Validation codes MVCC_READ_CONFLICT and PHANTOM_READ_CONFLICT."""
NANOSECONDS: Final = 1_000_000_000


class ReplayError(Exception):
    """A call that was refused, or ledgers that disagree; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Call:
    """One transaction to be: who calls what, and what travels beside it in private."""

    caller: Signer
    function: str
    argument: Mapping[str, Any]
    transient: Mapping[str, bytes] | None = None
    endorser: str | None = None
    """The one utility that endorses private records; None: two, as the policy of money asks."""


@dataclass(frozen=True, slots=True)
class _Endorsed:
    envelope: bytes
    value: Any


class _Records(dict[str, bytes]):
    """What a definition writes."""

    def put(self, key: str, value: bytes) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        self[key] = b""


def _signer(
    authority: CertificateAuthority,
    utility: str,
    name: str,
    role: str,
    attributes: Mapping[str, str] | None = None,
) -> Signer:
    key = generate_key()
    certificate = authority.issue(name, role, key.public_key(), attributes=attributes)
    return Signer(f"{utility}MSP", certificate_pem(certificate), key)


class _Context(SimulatorContext):
    """What a contract sees, in the caller's own thread: a switch for each call would cost more."""

    def __init__(
        self,
        invocation: Invocation,
        simulator: TransactionSimulator,
        code: Mapping[str, Chaincode],
    ) -> None:
        super().__init__(invocation, simulator)
        self._code = code

    def call(self, chaincode: str, args: Sequence[bytes], channel: str = "") -> Answer:
        # Like a peer's executor: the call depends on the definition that it was made under.
        lifecycle.committed_sequence(
            lambda key: self._simulator.get_state(lifecycle.NAMESPACE, key), chaincode
        )
        called = replace(self._invocation, chaincode=chaincode, args=list(args))
        context = _Context(called, self._simulator, self._code)
        response, _ = run_contract(self._code[chaincode], context, args)
        return Answer(response.status, response.message, response.payload)


class ReplayChannel:
    """The members' keys, their ledgers, and the channel's clock, which the replay sets.

    Every transaction's timestamp is derived from `now`, so a month passes as fast as it computes.
    """

    def __init__(self, folder: Path, *, origin: int, anchor: int, rate: int) -> None:
        """Make the channel: channel time is `origin + (timestamp - anchor) * rate`."""
        self.now = origin
        self.replay = {"origin": origin, "anchor": anchor, "rate": rate}
        self._origin, self._anchor, self._rate = origin, anchor, rate
        self._authorities = {
            name: CertificateAuthority.create(name, f"{name.lower()}.example") for name in UTILITIES
        }
        self._peers = {n: self.signer(n, "peer", "peer") for n in UTILITIES}
        self._orderers = {n: self.signer(n, "orderer", "orderer") for n in UTILITIES}
        self.operators = {
            n: self.signer(n, "operator", "client", {"gridledger.role": "operator"})
            for n in UTILITIES
        }
        self.admin = self.signer(UTILITIES[0], "admin", "admin")
        genesis = self._genesis()
        self.ledgers = {
            name: Ledger.open(
                folder / name.lower(), msp_id=f"{name}MSP", genesis=genesis, durable=False
            )
            for name in UTILITIES
        }
        self._creators: dict[bytes, Creator] = {}
        self._code = chaincodes()
        self._threads = ThreadPoolExecutor(len(UTILITIES), thread_name_prefix="commit")
        self.transactions = 0
        self.conflicts = 0
        for name in self._code:
            self._define(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._threads.shutdown()
        for ledger in self.ledgers.values():
            ledger.close()

    def signer(
        self, utility: str, name: str, role: str, attributes: Mapping[str, str] | None = None
    ) -> Signer:
        """A new identity of a utility: `role` is its organizational unit."""
        return _signer(self._authorities[utility], utility, name, role, attributes)

    def home(self, utility: str, connection_id: str) -> Signer:
        """The identity of whoever lives behind a connection."""
        attributes = {"gridledger.role": "home", "gridledger.connection": connection_id}
        return self.signer(utility, f"home-{connection_id}", "client", attributes)

    @property
    def height(self) -> int:
        """Blocks so far."""
        return self.ledgers[UTILITIES[0]].height

    # Calling

    def submit(self, caller: Signer, function: str, **argument: Any) -> Any:
        """Commit one call; its answer."""
        return self.submit_all([Call(caller, function, argument)])[0]

    def submit_all(self, calls: Sequence[Call]) -> list[Any]:
        """Commit calls in as few blocks as can be; their answers, in order.

        Raises ReplayError if one is refused, or keeps meeting others.
        """
        values: list[Any] = [None] * len(calls)
        waiting = list(range(len(calls)))
        for _ in range(MAX_TRIES):
            left: list[int] = []
            for first in range(0, len(waiting), BLOCK_TRANSACTIONS):
                numbers = waiting[first : first + BLOCK_TRANSACTIONS]
                endorsed = [self._endorse(calls[n]) for n in numbers]
                codes = self._commit([one.envelope for one in endorsed])
                for number, one, code in zip(numbers, endorsed, codes, strict=True):
                    if code == 0:
                        values[number] = one.value
                    elif code in CONFLICTS:
                        left.append(number)
                    else:
                        raise ReplayError(f"{calls[number].function} was marked with code {code}")
            self.transactions += len(waiting)
            self.conflicts += len(left)
            if not left:
                return values
            waiting = left
        raise ReplayError(
            f"{len(waiting)} transactions met others {MAX_TRIES} times, the first of them "
            f"{calls[waiting[0]].function}"
        )

    def evaluate(
        self, caller: Signer, function: str, *, at: str | None = None, **argument: Any
    ) -> Any:
        """Ask a peer; `at` names the utility whose private records are looked at."""
        call = Call(caller, function, argument)
        _, _, _, value = self._simulate(call, at or UTILITIES[0], "0" * 64)
        return value

    def _endorse(self, call: Call) -> _Endorsed:
        nonce = os.urandom(24)
        identifier = transaction_id(nonce, call.caller.serialized)
        utilities = UTILITIES[:2] if call.endorser is None else (call.endorser,)
        found = [self._simulate(call, name, identifier) for name in utilities]
        for name, other in zip(utilities[1:], found[1:], strict=True):
            if other[:2] != found[0][:2]:
                raise ReplayError(f"{utilities[0]} and {name} endorse {call.function} differently")
        action, name, private, value = found[0]
        if private is not None:
            assert call.endorser is not None, "private records are endorsed by one utility"
            ledger = self.ledgers[call.endorser]
            ledger.store_transient(identifier, private, ledger.height)
        return _Endorsed(self._envelope(call, name, nonce, identifier, action, utilities), value)

    def _simulate(
        self, call: Call, utility: str, identifier: str
    ) -> tuple[bytes, str, bytes | None, Any]:
        """The signed part of what a peer answers, the chaincode, private writes, and the value."""
        name = next(one for one, code in self._code.items() if call.function in code.functions)
        ledger = self.ledgers[utility]
        invocation = Invocation(
            name,
            CHANNEL,
            identifier,
            self._timestamp(),
            self._creator(call.caller),
            [call.function.encode(), json.dumps(call.argument).encode()],
            call.transient or {},
        )
        with ledger.view() as view:
            simulator = TransactionSimulator(
                view, CHANNEL, collections=lambda _view, chaincode: _collections(chaincode)
            )
            context = _Context(invocation, simulator, self._code)
            response, event = run_contract(self._code[name], context, invocation.args)
            if response.status >= 400:
                raise ReplayError(f"{call.function} was refused: {response.message}")
            results = simulator.results()
        action = peer_pb2.ChaincodeAction(
            results=results.rwset,
            response=response,
            chaincode_id=peer_pb2.ChaincodeID(name=name, version="1.0"),
            events=event.SerializeToString() if event is not None else b"",
        ).SerializeToString()
        private = None if results.private is None else results.private.SerializeToString()
        return action, name, private, json.loads(response.payload)

    def _timestamp(self) -> int:
        seconds, rest = divmod(self.now - self._origin, self._rate)
        assert rest == 0, "the replay's clock steps by whole seconds of transaction time"
        return self._anchor + seconds

    def _creator(self, signer: Signer) -> Creator:
        known = self._creators.get(signer.serialized)
        if known is None:
            config = self.ledgers[UTILITIES[0]].config
            known = Creator.from_identity(config.msps.identity(signer.serialized))
            self._creators[signer.serialized] = known
        return known

    def _envelope(
        self,
        call: Call,
        name: str,
        nonce: bytes,
        identifier: str,
        action: bytes,
        utilities: Sequence[str],
    ) -> bytes:
        header = channel_header(
            common_pb2.ENDORSER_TRANSACTION,
            CHANNEL,
            identifier,
            extension=peer_pb2.ChaincodeHeaderExtension(
                chaincode_id=peer_pb2.ChaincodeID(name=name)
            ).SerializeToString(),
            timestamp_ns=self._timestamp() * NANOSECONDS,
        )
        signature_header = common_pb2.SignatureHeader(
            creator=call.caller.serialized, nonce=nonce
        ).SerializeToString()
        args = [call.function.encode(), json.dumps(call.argument).encode()]
        proposal = peer_pb2.ChaincodeProposalPayload(
            input=peer_pb2.ChaincodeInvocationSpec(
                chaincode_spec=peer_pb2.ChaincodeSpec(
                    chaincode_id=peer_pb2.ChaincodeID(name=name),
                    input=peer_pb2.ChaincodeInput(args=args),
                )
            ).SerializeToString()
        ).SerializeToString()
        digest = hashlib.sha256(header.SerializeToString() + signature_header + proposal).digest()
        response = peer_pb2.ProposalResponsePayload(
            proposal_hash=digest, extension=action
        ).SerializeToString()
        endorsements = []
        for utility in utilities:
            peer = self._peers[utility]
            endorsements.append(
                peer_pb2.Endorsement(
                    endorser=peer.serialized, signature=peer.sign(response + peer.serialized)
                )
            )
        payload = peer_pb2.ChaincodeActionPayload(
            chaincode_proposal_payload=proposal,
            action=peer_pb2.ChaincodeEndorsedAction(
                proposal_response_payload=response, endorsements=endorsements
            ),
        )
        transaction = peer_pb2.Transaction(
            actions=[
                peer_pb2.TransactionAction(
                    header=signature_header, payload=payload.SerializeToString()
                )
            ]
        )
        return signed_envelope(
            call.caller, header, transaction.SerializeToString(), nonce=nonce
        ).SerializeToString()

    # Committing

    def _commit(self, envelopes: Sequence[bytes]) -> bytes:
        """One block in all three ledgers; the transactions' validation codes."""
        first = self.ledgers[UTILITIES[0]]
        block = new_block(first.height, first.last_block_hash, list(envelopes))
        orderer = self._orderers[UTILITIES[0]]
        value = common_pb2.OrdererBlockMetadata(
            last_config=common_pb2.LastConfig(index=0)
        ).SerializeToString()
        signature_header = common_pb2.SignatureHeader(
            creator=orderer.serialized, nonce=os.urandom(24)
        ).SerializeToString()
        signature = orderer.sign(value + signature_header + header_bytes(block.header))
        block.metadata.metadata[SIGNATURES] = common_pb2.Metadata(
            value=value,
            signatures=[
                common_pb2.MetadataSignature(signature_header=signature_header, signature=signature)
            ],
        ).SerializeToString()
        block.metadata.metadata[LAST_CONFIG] = b""
        raw = block.SerializeToString()
        committed = list(
            self._threads.map(
                lambda ledger: ledger.commit(common_pb2.Block.FromString(raw)),
                self.ledgers.values(),
            )
        )
        hashes = {one.commit_hash for one in committed}
        if len(hashes) != 1 or len({one.codes for one in committed}) != 1:
            raise ReplayError(f"the ledgers disagree on block {block.header.number}")
        codes: bytes = committed[0].codes
        return codes

    def _define(self, name: str) -> None:
        """Commit a contract's definition, as the members' approvals would."""
        package = peer_pb2.CollectionConfigPackage()
        for collection in _collections(name):
            msp_id = collection.removeprefix("readings-")
            package.config.add(
                static_collection_config=peer_pb2.StaticCollectionConfig(
                    name=collection,
                    member_orgs_policy=peer_pb2.CollectionPolicyConfig(
                        signature_policy=parse_policy(f"OR('{msp_id}.member')")
                    ),
                    endorsement_policy=peer_pb2.ApplicationPolicy(
                        signature_policy=parse_policy(f"OR('{msp_id}.peer')")
                    ),
                )
            )
        peers = ", ".join(f"'{utility}MSP.peer'" for utility in UTILITIES)
        records = _Records()
        lifecycle.commit(
            lifecycle.ChaincodeDefinition(
                name=name,
                sequence=1,
                version="1.0",
                endorsement_policy=lifecycle.signature_policy(parse_policy(f"OutOf(2, {peers})")),
                collections=package,
            ),
            records,
        )
        public = kvrwset_pb2.KVRWSet(
            writes=[kvrwset_pb2.KVWrite(key=key, value=value) for key, value in records.items()]
        )
        rwset = rwset_pb2.TxReadWriteSet(
            ns_rwset=[
                rwset_pb2.NsReadWriteSet(
                    namespace=lifecycle.NAMESPACE, rwset=public.SerializeToString()
                )
            ]
        )
        action = peer_pb2.ChaincodeAction(
            results=rwset.SerializeToString(),
            response=peer_pb2.Response(status=200),
            chaincode_id=peer_pb2.ChaincodeID(name=lifecycle.NAMESPACE, version="1.0"),
        ).SerializeToString()
        nonce = os.urandom(24)
        call = Call(self.admin, "CommitChaincodeDefinition", {})
        identifier = transaction_id(nonce, self.admin.serialized)
        envelope = self._envelope(
            call, lifecycle.NAMESPACE, nonce, identifier, action, UTILITIES[:2]
        )
        if self._commit([envelope]) != b"\0":
            raise ReplayError(f"the definition of {name} wasn't accepted")

    # Reading what is on the ledger

    def private(self, utility: str, key: str) -> Any:
        """A record of a utility's own collection, as its peer holds it; KeyError without one."""
        collection = f"readings-{utility}MSP"
        with self.ledgers[utility].view() as view:
            found = view.get_private("metering", collection, key)
        if found is None:
            raise KeyError(key)
        return json.loads(found.value)

    def values(self, prefix: str, chaincode: str = "energy") -> list[tuple[str, Any]]:
        """Public records under a prefix that ends in a slash."""
        with self.ledgers[UTILITIES[0]].view() as view:
            return [
                (key, json.loads(found.value))
                for key, found in view.range(chaincode, prefix, prefix[:-1] + "0")
            ]

    def _genesis(self) -> common_pb2.Block:
        organizations = tuple(
            OrganizationSpec(
                f"{name}MSP",
                authority.certificate_pem,
                orderer_endpoints=(f"127.0.0.1:{7050 + at}",),
            )
            for at, (name, authority) in enumerate(self._authorities.items())
        )
        consenters = tuple(
            Consenter("127.0.0.1", 7050 + at, one.certificate_pem, one.certificate_pem)
            for at, one in enumerate(self._orderers.values())
        )
        return genesis_block(ChannelSpec(CHANNEL, organizations, consenters))


def _collections(chaincode: str) -> list[str]:
    return [f"readings-{name}MSP" for name in UTILITIES] if chaincode == "metering" else []
