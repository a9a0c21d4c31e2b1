"""The endorser: checks a proposal, runs its contract, and signs what came out.

Order of checks and their messages are Fabric's (`core/endorser/`, facts only).
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import grpc

from consortium.chaincode.api import Creator
from consortium.chaincode.executor import ExecutionError, Executor, Invocation
from consortium.chaincode.packages import Package
from consortium.chaincode.simulator import (
    Access,
    SimulationError,
    SimulationResults,
    TransactionSimulator,
)
from consortium.identity.msp import Identity, IdentityError, MspManager, check_not_expired
from consortium.identity.policies import PolicyError, PolicyNotFoundError, SignaturePolicy
from consortium.identity.signing import Signer
from consortium.ledger.ledger import Ledger
from consortium.ledger.lifecycle import Policies
from consortium.ledger.mvcc import Space
from consortium.ledger.state import LedgerError, StateView
from consortium.storage.environment import StorageError
from consortium.wire import common_pb2, msp_pb2, peer_pb2, rwset_pb2
from consortium.wire.envelopes import WireError, parse, transaction_id

from . import system_chaincodes
from .channel import ChannelPeer
from .contracts import Contracts, UndefinedError
from .lifecycle import collection_names
from .private_exchange import DistributionError, PrivateExchange, part_of, spaces
from .snapshots import SnapshotJoins
from .system_call import PeerCall, SystemCall, SystemChaincodeError
from .system_chaincodes import PEERS_OWN, SYSTEM_CHAINCODES

_LOGGER = logging.getLogger(__name__)

TIME_WINDOW_S = 15 * 60
"""How far a proposal's timestamp may be from this node's clock (Fabric's default)."""

MAX_SIMULATIONS = 32
"""Simulations at once. Each holds a view of the state, of which storage has a limited number."""
MAX_WAITING = 1_000
SYSTEM_DEADLINE_S = 30.0

OK = 200
ERROR_THRESHOLD = 400
ERROR = 500


type Join = Callable[[common_pb2.Block], Coroutine[object, object, None]]


class _OwnAffairs(TypedDict):
    """What every call of a system contract gets to see of this peer."""

    ledgers: Mapping[str, Ledger]
    check_package: Callable[[Package], None]
    join: Callable[[common_pb2.Block], None]
    snapshots: SnapshotJoins | None


class ProposalRefused(Exception):
    """A proposal that never reached a contract; the sentence says why."""


@dataclass(frozen=True, slots=True)
class OpenedProposal:
    """A proposal's parts, and the bytes that its hash covers."""

    signed: peer_pb2.SignedProposal
    header: common_pb2.Header
    channel_header: common_pb2.ChannelHeader
    signature_header: common_pb2.SignatureHeader
    payload: peer_pb2.ChaincodeProposalPayload
    chaincode: str
    """The chaincode to execute: the one that the channel header's extension names."""
    planned_chaincode: str
    """The chaincode named in the invocation; a gateway plans its endorsements from it."""
    arguments: tuple[bytes, ...]
    is_init: bool
    """Whether the chaincode is asked to initialize itself."""
    proposal_hash: bytes


def open_proposal(signed: peer_pb2.SignedProposal) -> OpenedProposal:
    """Take a proposal apart; raises WireError naming the part that is missing or broken."""
    if not signed.proposal_bytes:
        raise WireError("a signed proposal is required")
    proposal = parse(peer_pb2.Proposal, signed.proposal_bytes, "the proposal")
    header = parse(common_pb2.Header, proposal.header, "the proposal's header")
    channel = parse(common_pb2.ChannelHeader, header.channel_header, "the channel header")
    signature = parse(common_pb2.SignatureHeader, header.signature_header, "the signature header")
    extension = parse(
        peer_pb2.ChaincodeHeaderExtension, channel.extension, "the channel header's extension"
    )
    if not extension.chaincode_id.name:
        raise WireError("the channel header's extension names no chaincode")
    payload = parse(peer_pb2.ChaincodeProposalPayload, proposal.payload, "the proposal's payload")
    invocation = parse(peer_pb2.ChaincodeInvocationSpec, payload.input, "the chaincode invocation")
    if not invocation.HasField("chaincode_spec"):
        raise WireError("no chaincode spec is provided")
    if not invocation.chaincode_spec.HasField("input"):
        raise WireError("the chaincode spec has no input")
    without_transient = peer_pb2.ChaincodeProposalPayload(input=payload.input)
    digest = hashlib.sha256(header.channel_header)
    digest.update(header.signature_header)
    digest.update(without_transient.SerializeToString())
    return OpenedProposal(
        signed=signed,
        header=header,
        channel_header=channel,
        signature_header=signature,
        payload=payload,
        chaincode=extension.chaincode_id.name,
        planned_chaincode=invocation.chaincode_spec.chaincode_id.name,
        arguments=tuple(invocation.chaincode_spec.input.args),
        is_init=invocation.chaincode_spec.input.is_init,
        proposal_hash=digest.digest(),
    )


class Endorser:
    """Simulates proposals on this peer's state and endorses what they would change.

    `clock` gives epoch seconds; it decides nothing but whether a proposal is fresh and its
    creator's certificate not expired.
    """

    def __init__(
        self,
        channels: dict[str, ChannelPeer],
        signer: Signer,
        executor: Executor,
        contracts: Contracts,
        *,
        own_msp: MspManager | None = None,
        check_package: Callable[[Package], None] = lambda _package: None,
        join: Join | None = None,
        snapshots: SnapshotJoins | None = None,
        private_data: PrivateExchange | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`contracts` says what this peer runs; without `private_data` none goes to other peers.

        `own_msp` knows this peer's organisation before any channel does; `check_package` refuses
        what can't be installed (PackageError), `join` has the peer join a channel, `snapshots` by
        a snapshot.
        """
        self._channels = channels
        self._signer = signer
        self._private_data = private_data
        self._executor = executor
        self._contracts = contracts
        self._own_msp = own_msp
        self._check_package = check_package
        self._join = join
        self._snapshots = snapshots
        self._clock = clock
        self._running = asyncio.Semaphore(MAX_SIMULATIONS)
        self._proposals = 0
        # Their own threads: a long search of the chain must not keep other work waiting.
        self._system = ThreadPoolExecutor(2, thread_name_prefix="system-contract")

    async def close(self) -> None:
        """Wait for system contracts that still read the ledger."""
        await asyncio.to_thread(self._system.shutdown, wait=True, cancel_futures=True)

    async def process(self, signed: peer_pb2.SignedProposal) -> peer_pb2.ProposalResponse:
        """Endorse a proposal.

        Raises ProposalRefused before any contract runs (malformed, forged, replayed, not allowed).
        A contract's own refusal is a normal response: status 400 to 499 bare, 500 and above with
        the payload, both without an endorsement.
        """
        try:
            opened = open_proposal(signed)
        except WireError as error:
            raise ProposalRefused(f"error validating proposal: {error}") from None
        if not opened.channel_header.channel_id and opened.chaincode in PEERS_OWN:
            return await self._about_this_peer(opened)
        channel = self._channels.get(opened.channel_header.channel_id)
        if channel is None:
            return _failure(f"channel '{opened.channel_header.channel_id}' not found")
        creator = self._check(opened, channel)
        if self._proposals >= MAX_WAITING:
            return _busy()
        self._proposals += 1
        try:
            async with self._running:
                return await self._simulate(opened, channel, creator)
        except (ExecutionError, SimulationError, LedgerError, StorageError) as error:
            return _failure(f"error in simulation: {error}")
        finally:
            self._proposals -= 1

    async def _about_this_peer(self, opened: OpenedProposal) -> peer_pb2.ProposalResponse:
        """Answer a call without a channel, which is never endorsed.

        Members of this peer's organisation may ask; the channels that it has joined know them.
        """
        known = [channel.ledger.config.msps for channel in self._channels.values()]
        if self._own_msp is not None:
            known.append(self._own_msp)
        if not known:
            return _failure("this peer has joined no channel")
        creator = self._creator(opened, known[0])
        if self._proposals >= MAX_WAITING:
            return _busy()
        self._proposals += 1
        try:
            response = await asyncio.get_running_loop().run_in_executor(
                self._system,
                system_chaincodes.invoke_own,
                opened.chaincode,
                PeerCall(creator, self._contracts, **self._own_affairs()),
                opened.arguments,
            )
        finally:
            self._proposals -= 1
        return peer_pb2.ProposalResponse(response=response)

    def _own_affairs(self) -> _OwnAffairs:
        loop = asyncio.get_running_loop()

        def join(block: common_pb2.Block) -> None:
            if self._join is None:
                raise SystemChaincodeError("this peer joins channels when it starts")
            asyncio.run_coroutine_threadsafe(self._join(block), loop).result()

        return {
            "ledgers": {name: channel.ledger for name, channel in self._channels.items()},
            "check_package": self._check_package,
            "join": join,
            "snapshots": self._snapshots,
        }

    def _check(self, opened: OpenedProposal, channel: ChannelPeer) -> Identity:
        config = channel.ledger.config
        creator = self._creator(opened, config.msps)
        if channel.ledger.knows_transaction(opened.channel_header.tx_id):
            raise ProposalRefused(f"duplicate transaction found [{opened.channel_header.tx_id}]")
        policy = config.acls.get("peer/Propose", "/Channel/Application/Writers")
        try:
            allowed = config.policy(policy).satisfied_by([creator])
        except PolicyNotFoundError:
            allowed = False
        if not allowed:
            raise ProposalRefused(
                "error validating proposal: access denied: channel "
                f"[{channel.channel_id}] creator org [{creator.msp_id}], it is not among the "
                "channel's writers"
            )
        return creator

    def _creator(self, opened: OpenedProposal, msps: MspManager) -> Identity:
        """Who made a proposal; raises ProposalRefused unless it is theirs, whole and fresh."""
        header, signature = opened.channel_header, opened.signature_header
        prefix = "error validating proposal: "
        # CONFIG is let through as Fabric does; it reaches no more than an ENDORSER_TRANSACTION.
        if header.type not in (common_pb2.ENDORSER_TRANSACTION, common_pb2.CONFIG):
            raise ProposalRefused(f"{prefix}invalid header type {header.type}")
        if header.epoch:
            raise ProposalRefused(f"{prefix}epoch is non-zero")
        if not signature.nonce:
            raise ProposalRefused(f"{prefix}nonce is empty")
        if not signature.creator:
            raise ProposalRefused(f"{prefix}creator is empty")
        expected = transaction_id(signature.nonce, signature.creator)
        if header.tx_id != expected:
            raise ProposalRefused(
                f"{prefix}incorrectly computed txid '{header.tx_id}' -- expected '{expected}'"
            )
        channel_id = header.channel_id
        try:
            creator = msps.identity(signature.creator)
        except IdentityError as error:
            _LOGGER.info("proposal %s: %s", header.tx_id, error)
            msp_id = _claimed_msp(signature.creator)
            known = f"creator org [{msp_id}]" if msp_id in msps else "creator org unknown"
            raise ProposalRefused(
                f"{prefix}access denied: channel [{channel_id}] {known}, {error}"
            ) from None
        denied = f"{prefix}access denied: channel [{channel_id}] creator org [{creator.msp_id}]"
        if not creator.verify(opened.signed.signature, opened.signed.proposal_bytes):
            raise ProposalRefused(f"{denied}, the signature over the proposal does not hold")
        now = self._clock()
        try:
            check_not_expired(creator, now)
        except IdentityError as error:
            raise ProposalRefused(f"{denied}, {error}") from None
        if abs(header.timestamp.seconds - now) > TIME_WINDOW_S:
            raise ProposalRefused(
                f"{prefix}the timestamp {header.timestamp.seconds} is more than {TIME_WINDOW_S} s "
                "away from this peer's clock; check the client's clock"
            )
        return creator

    async def _simulate(
        self, opened: OpenedProposal, channel: ChannelPeer, creator: Identity
    ) -> peer_pb2.ProposalResponse:
        header = opened.channel_header
        with channel.ledger.view() as view:
            version, package_id = "syscc", ""
            simulator = _simulator(view, channel, creator)
            if opened.chaincode not in SYSTEM_CHAINCODES:
                try:
                    found = self._contracts.prepare(opened.chaincode, opened.is_init, simulator)
                except UndefinedError as error:
                    return _failure(
                        f"make sure the chaincode {opened.chaincode} has been successfully defined "
                        f"on channel {channel.channel_id} and try again: {error}"
                    )
                version, package_id = found.definition.version, found.package_id
            response, event = await self._execute(opened, channel, creator, simulator, package_id)
            if ERROR_THRESHOLD <= response.status < ERROR:
                return peer_pb2.ProposalResponse(response=response)
            results = simulator.results()
            interest = _interest(results)
            private = results.private
            configs = {}
            if private is not None and self._private_data is not None:
                try:
                    configs = self._private_data.collection_configs(view, channel, spaces(private))
                except DistributionError as error:
                    return _failure(f"error in simulation: {error}")
        payload = peer_pb2.ProposalResponsePayload(
            proposal_hash=opened.proposal_hash,
            extension=peer_pb2.ChaincodeAction(
                results=results.rwset,
                events=event.SerializeToString() if event is not None else b"",
                response=response,
                chaincode_id=peer_pb2.ChaincodeID(name=opened.chaincode, version=version),
            ).SerializeToString(),
        ).SerializeToString()
        if response.status >= ERROR:
            return peer_pb2.ProposalResponse(response=response, payload=payload, interest=interest)
        if private is not None:
            height = channel.ledger.height
            try:
                await self._keep(channel, header.tx_id, private, configs, height)
                if self._private_data is not None:
                    # What nobody else keeps would be lost with this peer, so this comes before
                    # the answer.
                    await self._private_data.distribute(
                        channel, header.tx_id, private, configs, height
                    )
            except DistributionError as error:
                return _failure(f"error in simulation: {error}")
        endorser = self._signer.serialized
        return peer_pb2.ProposalResponse(
            version=1,
            response=response,
            payload=payload,
            endorsement=peer_pb2.Endorsement(
                endorser=endorser, signature=self._signer.sign(payload + endorser)
            ),
            interest=interest,
        )

    async def _keep(
        self,
        channel: ChannelPeer,
        transaction_id: str,
        private: rwset_pb2.TxPvtReadWriteSet,
        configs: Mapping[Space, peer_pb2.StaticCollectionConfig],
        height: int,
    ) -> None:
        """Keep what a transaction writes until it commits: what this organisation is to have.

        Fabric's endorser keeps all of it.
        """
        if self._private_data is not None:
            ours = {space for space, config in configs.items() if self._private_data.keeps(config)}
            private = part_of(private, ours)
        if private.ns_pvt_rwset:
            data = private.SerializeToString()
            await asyncio.to_thread(channel.ledger.store_transient, transaction_id, data, height)

    @contextlib.contextmanager
    def _elsewhere(self, opened: OpenedProposal, channel_id: str) -> Iterator[TransactionSimulator]:
        """Another channel's state, for a contract that calls one there; nothing of it is kept.

        The creator needs to be allowed to call there (Fabric's ACL peer/ChaincodeToChaincode).
        Raises ExecutionError.
        """
        channel = self._channels.get(channel_id)
        if channel is None:
            raise ExecutionError(f"failed to find ledger for channel: {channel_id}")
        config = channel.ledger.config
        policy = config.acls.get("peer/ChaincodeToChaincode", "/Channel/Application/Writers")
        denied = ExecutionError(
            f"access denied for [peer/ChaincodeToChaincode] [{channel_id}]: the proposal's creator "
            f"does not satisfy {policy} there"
        )
        try:
            creator = config.msps.identity(opened.signature_header.creator)
            if not config.policy(policy).satisfied_by([creator]):
                raise denied
        except IdentityError, PolicyNotFoundError:
            raise denied from None
        with channel.ledger.view() as view:
            simulator = _simulator(view, channel, creator)
            try:
                yield simulator
            finally:
                simulator.close()

    async def _execute(
        self,
        opened: OpenedProposal,
        channel: ChannelPeer,
        creator: Identity,
        simulator: TransactionSimulator,
        package_id: str,
    ) -> tuple[peer_pb2.Response, peer_pb2.ChaincodeEvent | None]:
        if opened.chaincode in SYSTEM_CHAINCODES:
            call = SystemCall(
                creator,
                self._contracts,
                **self._own_affairs(),
                ledger=channel.ledger,
                config=channel.ledger.config,
                simulator=simulator,
            )
            work = asyncio.get_running_loop().run_in_executor(
                self._system, system_chaincodes.invoke, opened.chaincode, call, opened.arguments
            )
            try:
                return await asyncio.wait_for(work, SYSTEM_DEADLINE_S), None
            except TimeoutError:
                message = f"{opened.chaincode} did not finish within {SYSTEM_DEADLINE_S:g} s"
                simulator.close(message)
                raise ExecutionError(message) from None
            except asyncio.CancelledError:
                # The thread may go on; the view that it would read from is about to be closed.
                simulator.close("its caller has gone away")
                raise
        header = opened.channel_header
        return await self._executor.invoke(
            Invocation(
                chaincode=opened.chaincode,
                channel_id=channel.channel_id,
                transaction_id=header.tx_id,
                timestamp=header.timestamp.seconds,
                creator=Creator.from_identity(creator),
                args=list(opened.arguments),
                transient=dict(opened.payload.TransientMap),
                signed_proposal=opened.signed,
                package_id=package_id,
                is_init=opened.is_init,
                other_channels=partial(self._elsewhere, opened),
            ),
            simulator,
        )


def endorser_handler(
    endorser: Endorser, admit: Callable[[bytes], None] | None = None
) -> grpc.GenericRpcHandler:
    """The service for a gRPC server.

    `admit` looks at the caller's TLS certificate (PEM) and raises IdentityError for one that may
    not call here. A proposal that never reaches its contract fails the call; Fabric's clients and
    gateways expect the contract's own refusals inside the answer.
    """

    async def process(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        if admit is not None:
            try:
                admit(next(iter(context.auth_context().get("x509_pem_cert", ())), b""))
            except IdentityError as error:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        try:
            signed = parse(peer_pb2.SignedProposal, raw, "the signed proposal")
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        try:
            return (await endorser.process(signed)).SerializeToString()
        except ProposalRefused as error:
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))

    return grpc.method_handlers_generic_handler(
        "protos.Endorser", {"ProcessProposal": grpc.unary_unary_rpc_method_handler(process)}
    )


def _simulator(view: StateView, channel: ChannelPeer, creator: Identity) -> TransactionSimulator:
    """A transaction on a channel's state, held to what its creator may do there."""
    config = channel.ledger.config
    return TransactionSimulator(
        view,
        channel.channel_id,
        collections=partial(collection_names, config.application_orgs),
        access=partial(_access, Policies(view, config), creator),
        purging="V2_5" in config.application_capabilities,
        history=channel.ledger.history,
    )


def _access(policies: Policies, creator: Identity, namespace: str, collection: str) -> Access:
    """`memberOnlyRead` and `memberOnlyWrite` of a collection.

    (Rules: Fabric core/common/privdata/store.go, RetrieveReadWritePermission.)
    """
    config = policies.collection_config(namespace, collection)
    if config is None or not (config.member_only_read or config.member_only_write):
        return Access(True, True)
    try:
        member = SignaturePolicy(config.member_orgs_policy.signature_policy).satisfied_by([creator])
    except PolicyError:
        member = False
    return Access(member or not config.member_only_read, member or not config.member_only_write)


def _failure(message: str) -> peer_pb2.ProposalResponse:
    """Fabric's way of saying that the peer, not the contract, could not go on."""
    return peer_pb2.ProposalResponse(response=peer_pb2.Response(status=ERROR, message=message))


def _busy() -> peer_pb2.ProposalResponse:
    return _failure(
        f"{MAX_WAITING} proposals are being worked on, which is this peer's limit; try again, or "
        "ask another peer"
    )


def _claimed_msp(creator: bytes) -> str:
    try:
        return parse(msp_pb2.SerializedIdentity, creator, "the creator").mspid
    except WireError:
        return ""


def _interest(results: SimulationResults) -> peer_pb2.ChaincodeInterest:
    """What the transaction touched, so that a gateway can tell whose policies it must satisfy.

    Keys with a policy of their own need that one alone. A namespace whose public keys are not
    written, but whose collections are, needs the collections' policies alone; one that writes
    nothing needs its chaincode's. (Rules: Fabric core/endorser/endorser.go,
    buildChaincodeInterest.)
    """
    required: dict[str, dict[str, bool]] = {}
    own: dict[str, dict[bytes, None]] = {}
    for (name, collection), policies in results.written_policies.items():
        needs = required.setdefault(name, {})
        for policy in policies:
            if policy:
                own.setdefault(name, {})[policy] = None
            else:
                needs[collection] = True
    for namespace in rwset_pb2.TxReadWriteSet.FromString(results.rwset).ns_rwset:
        required.setdefault(namespace.namespace, {"": True})
    for name, collection in results.private_reads:
        required.setdefault(name, {})[collection] = True
    interest = peer_pb2.ChaincodeInterest()
    for name, needs in required.items():
        if name in SYSTEM_CHAINCODES:
            continue
        for collection in sorted(needs.keys() - {""}):
            interest.chaincodes.add(
                name=name,
                collection_names=[collection],
                no_private_reads=(name, collection) not in results.private_reads,
                disregard_namespace_policy=True,
            )
        key_policies = own.get(name, {})
        if "" in needs or key_policies:
            interest.chaincodes.add(
                name=name,
                key_policies=[
                    common_pb2.SignaturePolicyEnvelope.FromString(policy) for policy in key_policies
                ],
                disregard_namespace_policy="" not in needs,
            )
    return interest
