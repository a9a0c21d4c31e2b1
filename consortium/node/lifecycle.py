"""A utility's own peer as its admin commands it: packages, approvals, definitions, channels.

The questions that concern one peer go straight to its endorser and need no channel; approvals and
commits are transactions, which its gateway takes.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from consortium.ledger.channel_config import config_of_block
from consortium.ledger.lifecycle import NAMESPACE as LIFECYCLE
from consortium.ledger.lifecycle import ChaincodeDefinition
from consortium.wire import common_pb2, lifecycle_pb2, peer_pb2, services
from consortium.wire.envelopes import channel_header, parse, transaction_id
from gridledger_client import (
    CommitFailed,
    Committed,
    GatewayClient,
    Identity,
    TransactionRefused,
)

from .network import Network, NetworkError, Utility

CALL_TIMEOUT_S = 60.0


class PeerRefused(NetworkError):
    """A peer's own refusal."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Installed:
    """A package on a peer, and what runs from it: (channel, contract, version)."""

    package_id: str
    label: str
    runs: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Who has approved a definition, and in what the others' approvals differ."""

    approvals: dict[str, bool]
    mismatches: dict[str, tuple[str, ...]]


class PeerAdmin:
    """A utility's admin at one of its own peers. Used as a context manager, or `close`d."""

    def __init__(self, network: Network, utility: Utility, kind: str = "peer") -> None:
        """`kind` tells a utility's peers apart: see `Utility.peers`."""
        self.network = network
        self.utility = utility
        self._address = utility.address_of(kind)
        self._signer = utility.signer("admin")
        folder = utility.directory / "admin"
        identity = Identity(
            utility.msp_id,
            (folder / "sign.cert.pem").read_bytes(),
            (folder / "sign.key.pem").read_bytes(),
        )
        self.gateway = GatewayClient(
            [self._address], network.channel, identity, network.tls_bundle_pem
        )
        self._connection = grpc.aio.secure_channel(
            self._address,
            grpc.ssl_channel_credentials(network.tls_bundle_pem),
            options=services.NODE_CHANNEL_OPTIONS,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self.gateway.close()
        await self._connection.close()

    # ------------------------------------------------------------------------ this peer's own

    async def ask(self, chaincode: str, function: str, *arguments: bytes) -> bytes:
        """Call a system contract without a channel; raises PeerRefused, NetworkError."""
        nonce = secrets.token_bytes(24)
        named = peer_pb2.ChaincodeID(name=chaincode)
        creator = self._signer.serialized
        proposal = peer_pb2.Proposal(
            header=common_pb2.Header(
                channel_header=channel_header(
                    common_pb2.ENDORSER_TRANSACTION,
                    "",
                    transaction_id(nonce, creator),
                    extension=peer_pb2.ChaincodeHeaderExtension(
                        chaincode_id=named
                    ).SerializeToString(),
                ).SerializeToString(),
                signature_header=common_pb2.SignatureHeader(
                    creator=creator, nonce=nonce
                ).SerializeToString(),
            ).SerializeToString(),
            payload=peer_pb2.ChaincodeProposalPayload(
                input=peer_pb2.ChaincodeInvocationSpec(
                    chaincode_spec=peer_pb2.ChaincodeSpec(
                        chaincode_id=named,
                        input=peer_pb2.ChaincodeInput(args=[function.encode(), *arguments]),
                    )
                ).SerializeToString()
            ).SerializeToString(),
        ).SerializeToString()
        process: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._connection.unary_unary(
            services.PROCESS_PROPOSAL
        )
        signed = peer_pb2.SignedProposal(
            proposal_bytes=proposal, signature=self._signer.sign(proposal)
        )
        try:
            raw = await process(signed.SerializeToString(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise NetworkError(
                f"{self.utility.name}'s peer at {self._address}: "
                f"{error.details() or error.code().name}"
            ) from None
        response = parse(peer_pb2.ProposalResponse, raw, "the peer's answer").response
        if response.status != 200:
            raise PeerRefused(
                f"{self.utility.name}'s peer refuses: {response.message}", response.status
            )
        return response.payload

    async def install(self, package: bytes) -> str:
        """Install a package; returns its id. Raises as `ask`."""
        raw = await self.ask(
            LIFECYCLE,
            "InstallChaincode",
            lifecycle_pb2.InstallChaincodeArgs(
                chaincode_install_package=package
            ).SerializeToString(),
        )
        return parse(lifecycle_pb2.InstallChaincodeResult, raw, "the peer's answer").package_id

    async def installed(self) -> list[Installed]:
        """All packages on the peer."""
        raw = await self.ask(LIFECYCLE, "QueryInstalledChaincodes", b"")
        found = parse(lifecycle_pb2.QueryInstalledChaincodesResult, raw, "the peer's answer")
        return [
            Installed(
                one.package_id,
                one.label,
                tuple(
                    (channel_id, contract.name, contract.version)
                    for channel_id in sorted(one.references)
                    for contract in one.references[channel_id].chaincodes
                ),
            )
            for one in found.installed_chaincodes
        ]

    async def package(self, package_id: str) -> bytes:
        """An installed package's bytes."""
        raw = await self.ask(
            LIFECYCLE,
            "GetInstalledChaincodePackage",
            lifecycle_pb2.GetInstalledChaincodePackageArgs(
                package_id=package_id
            ).SerializeToString(),
        )
        return parse(
            lifecycle_pb2.GetInstalledChaincodePackageResult, raw, "the peer's answer"
        ).chaincode_install_package

    async def channels(self) -> list[str]:
        """The channels that the peer has joined."""
        raw = await self.ask("cscc", "GetChannels")
        found = parse(peer_pb2.ChannelQueryResponse, raw, "the peer's answer")
        return [one.channel_id for one in found.channels]

    async def join(self, block: common_pb2.Block) -> str:
        """Have the peer join a channel by its first block; returns the channel's name."""
        channel_id, _ = config_of_block(block)
        await self.ask("cscc", "JoinChain", block.SerializeToString())
        return channel_id

    # ------------------------------------------------------------------------ the channel's

    async def approve(
        self, definition: ChaincodeDefinition, package_id: str, *, unless_done: bool = False
    ) -> Committed | None:
        """Approve a definition for this utility, with the package that its peers will run.

        With `unless_done` an approval of just that is left alone. Raises the client's errors.
        """
        source = lifecycle_pb2.ChaincodeSource()
        if package_id:
            source.local_package.package_id = package_id
        else:
            source.unavailable.SetInParent()
        arguments = _definition(
            lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs(source=source), definition
        )
        try:
            return await self._submit(
                "ApproveChaincodeDefinitionForMyOrg", arguments, [self.utility.msp_id]
            )
        except TransactionRefused as error:
            if unless_done and "attempted to redefine" in _whole(error):
                return None
            raise

    async def readiness(self, definition: ChaincodeDefinition) -> Readiness:
        """Who has approved a definition that is to be committed next."""
        found = await self._query(
            "CheckCommitReadiness",
            _definition(lifecycle_pb2.CheckCommitReadinessArgs(), definition),
            lifecycle_pb2.CheckCommitReadinessResult,
        )
        return Readiness(
            dict(sorted(found.approvals.items())),
            {msp_id: tuple(items.items) for msp_id, items in sorted(found.mismatches.items())},
        )

    async def commit(
        self, definition: ChaincodeDefinition, organizations: Sequence[str] = ()
    ) -> Committed:
        """Commit a definition, endorsed by those organizations, or by as many as are needed."""
        if not organizations:
            approvals = (await self.readiness(definition)).approvals
            organizations = [msp_id for msp_id, approved in approvals.items() if approved]
        return await self._submit(
            "CommitChaincodeDefinition",
            _definition(lifecycle_pb2.CommitChaincodeDefinitionArgs(), definition),
            organizations,
        )

    async def committed(self, name: str) -> ChaincodeDefinition | None:
        """A contract's definition on the channel, None for none."""
        try:
            found = await self._query(
                "QueryChaincodeDefinition",
                lifecycle_pb2.QueryChaincodeDefinitionArgs(name=name),
                lifecycle_pb2.QueryChaincodeDefinitionResult,
            )
        except TransactionRefused as error:
            if error.status == 404:
                return None
            raise
        return _read(found, name)

    async def definitions(self) -> list[ChaincodeDefinition]:
        """All contracts of the channel."""
        found = await self._query(
            "QueryChaincodeDefinitions",
            lifecycle_pb2.QueryChaincodeDefinitionsArgs(),
            lifecycle_pb2.QueryChaincodeDefinitionsResult,
        )
        return [_read(one, one.name) for one in found.chaincode_definitions]

    async def approved(self, name: str, sequence: int = 0) -> tuple[ChaincodeDefinition, str]:
        """What this utility approved for a sequence (0: the newest), and its package ("": none).

        Raises TransactionRefused where it has approved none.
        """
        found = await self._query(
            "QueryApprovedChaincodeDefinition",
            lifecycle_pb2.QueryApprovedChaincodeDefinitionArgs(name=name, sequence=sequence),
            lifecycle_pb2.QueryApprovedChaincodeDefinitionResult,
        )
        return _read(found, name), found.source.local_package.package_id

    async def _query[M: Message](self, function: str, argument: Message, result: type[M]) -> M:
        raw = await self.gateway.evaluate(
            LIFECYCLE,
            function,
            [argument.SerializeToString()],
            endorsing_organizations=[self.utility.msp_id],
        )
        return parse(result, raw, "the peer's answer")

    async def _submit(
        self, function: str, argument: Message, organizations: Sequence[str]
    ) -> Committed:
        return await self.gateway.submit(
            LIFECYCLE,
            function,
            [argument.SerializeToString()],
            endorsing_organizations=list(organizations),
        )


async def submit_init(
    gateway: GatewayClient,
    chaincode: str,
    function: str,
    argument: dict[str, Any],
    *,
    endorsing_organizations: Sequence[str] = (),
) -> Committed:
    """Call a contract to initialize itself, as one transaction; raises the client's errors."""
    prepared = gateway.prepare(
        chaincode, function, argument, endorsing_organizations=endorsing_organizations
    )
    proposal = parse(peer_pb2.Proposal, prepared.proposal, "the proposal")
    payload = parse(peer_pb2.ChaincodeProposalPayload, proposal.payload, "its payload")
    invocation = parse(peer_pb2.ChaincodeInvocationSpec, payload.input, "its invocation")
    invocation.chaincode_spec.input.is_init = True
    payload.input = invocation.SerializeToString()
    proposal.payload = payload.SerializeToString()
    raw = proposal.SerializeToString()
    signed = await gateway.endorse(
        replace(prepared, proposal=raw, signature=gateway.identity.sign(raw))
    )
    await gateway.submit_signed(signed)
    status = await gateway.commit_status(signed.transaction_id)
    if status.code != "VALID":
        raise CommitFailed(signed.transaction_id, status.code, status.block_number)
    return Committed(signed.transaction_id, status.block_number, signed.result)


def _whole(error: TransactionRefused) -> str:
    return "; ".join([str(error), *(str(detail) for detail in error.details)])


type _Written = (
    lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs
    | lifecycle_pb2.CheckCommitReadinessArgs
    | lifecycle_pb2.CommitChaincodeDefinitionArgs
)
type _Found = (
    lifecycle_pb2.QueryChaincodeDefinitionResult
    | lifecycle_pb2.QueryChaincodeDefinitionsResult.ChaincodeDefinition
    | lifecycle_pb2.QueryApprovedChaincodeDefinitionResult
)


def _definition[M: _Written](message: M, definition: ChaincodeDefinition) -> M:
    message.name = definition.name
    message.sequence = definition.sequence
    message.version = definition.version
    message.endorsement_plugin = definition.endorsement_plugin
    message.validation_plugin = definition.validation_plugin
    message.validation_parameter = definition.endorsement_policy
    message.collections.CopyFrom(definition.collections)
    message.init_required = definition.init_required
    return message


def _read(found: _Found, name: str) -> ChaincodeDefinition:
    return ChaincodeDefinition(
        name=name,
        sequence=found.sequence,
        version=found.version,
        endorsement_policy=found.validation_parameter,
        collections=found.collections,
        init_required=found.init_required,
        endorsement_plugin=found.endorsement_plugin,
        validation_plugin=found.validation_plugin,
    )
