"""The system contract `_lifecycle`: packages are installed on a peer, and definitions agreed on.

Installing concerns one peer and leaves nothing on a channel. An organisation's approval stands in
its implicit collection, the committed definition in the public state. Arguments, results and
sentences are Fabric's (core/chaincode/lifecycle/scc.go, facts only), so that its `peer lifecycle`
commands work here.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from google.protobuf.message import Message

from consortium.chaincode.packages import (
    PackageError,
    PackageNotFoundError,
    PackageStore,
    read_package,
)
from consortium.chaincode.simulator import StateReader, TransactionSimulator
from consortium.identity.msp import IdentityError
from consortium.identity.policies import PolicyError, SignaturePolicy
from consortium.ledger import lifecycle
from consortium.ledger.lifecycle import ChaincodeDefinition, LifecycleError
from consortium.wire import common_pb2, lifecycle_pb2, peer_pb2
from consortium.wire.envelopes import parse

from .contracts import Runnable, reader
from .system_call import WRITERS, PeerCall, SystemCall, SystemChaincodeError

LIFECYCLE = lifecycle.NAMESPACE

_NAME = re.compile(r"[A-Za-z0-9]+([-_][A-Za-z0-9]+)*")
_VERSION = re.compile(r"[A-Za-z0-9_.+-]+")
_COLLECTION = re.compile(r"[A-Za-z0-9-]+[A-Za-z0-9_-]*")
_RESERVED = frozenset({"cscc", "escc", "lscc", "qscc", "vscc"})


@dataclass(frozen=True, slots=True)
class _Function:
    """A function of the contract."""

    argument: type[Message]
    run: Callable[..., Message]
    channel: bool = True
    """Whether it concerns a channel; else the peer alone."""
    admin: bool = False
    """Whether it is for admins of the peer's own organisation; else for the channel's writers."""


def invoke_lifecycle(call: PeerCall, arguments: tuple[bytes, ...]) -> bytes:
    """Run one function; raises SystemChaincodeError, WireError and the ledger's errors."""
    if len(arguments) != 2:
        raise SystemChaincodeError(
            f"lifecycle scc operations require exactly two arguments but received {len(arguments)}"
        )
    name = arguments[0].decode(errors="replace")
    function = _FUNCTIONS.get(name)
    if function is None:
        raise SystemChaincodeError(
            f"_lifecycle has no function {name!r}; it has {', '.join(_FUNCTIONS)}"
        )
    if function.channel and not isinstance(call, SystemCall):
        raise SystemChaincodeError(f"{name} concerns a channel, and none is named")
    if function.admin:
        try:
            call.require_own(admin=True)
        except SystemChaincodeError as error:
            raise SystemChaincodeError(
                f"Failed to authorize invocation due to failed ACL check: {error}"
            ) from None
    elif isinstance(call, SystemCall):
        call.require(f"{LIFECYCLE}/{name}", WRITERS)
    argument = parse(function.argument, arguments[1], f"the argument of {name}")
    try:
        return function.run(call, argument).SerializeToString()
    except PackageNotFoundError as error:
        raise SystemChaincodeError(str(error), 404) from None
    except (SystemChaincodeError, LifecycleError, PackageError, OSError) as error:
        if isinstance(error, SystemChaincodeError) and error.status == 404:
            raise
        raise SystemChaincodeError(
            f"failed to invoke backing implementation of '{name}': {error}"
        ) from None


def collection_names(
    organizations: Collection[str], state: StateReader, chaincode: str
) -> Collection[str]:
    """The collections a contract may use: those of its definition and each organisation's own.

    The whole definition is read through `state`, so that a transaction with private data conflicts
    with a change of it.
    """
    implicit = {lifecycle.implicit_collection(msp_id) for msp_id in organizations}
    if chaincode == LIFECYCLE:
        return implicit
    found = lifecycle.recorded_definition(lambda key: state.get_state(LIFECYCLE, key), chaincode)
    explicit = found.collections.config if found else ()
    return implicit | {config.static_collection_config.name for config in explicit}


# ------------------------------------------------------------------------ installing packages


def _install(call: PeerCall, argument: lifecycle_pb2.InstallChaincodeArgs) -> Message:
    packages: PackageStore = call.contracts.packages
    try:
        package = read_package(argument.chaincode_install_package)
    except PackageError as error:
        raise PackageError(f"could not parse as a chaincode install package: {error}") from None
    if package.package_id not in packages:
        try:
            call.check_package(package)
        except PackageError as error:
            raise PackageError(f"could not build chaincode: {error}") from None
    packages.save(argument.chaincode_install_package)
    return lifecycle_pb2.InstallChaincodeResult(package_id=package.package_id, label=package.label)


def _query_installed(
    call: PeerCall, argument: lifecycle_pb2.QueryInstalledChaincodeArgs
) -> Message:
    if argument.package_id not in call.contracts.packages:
        raise SystemChaincodeError(
            f"could not find chaincode with package id '{argument.package_id}'"
        )
    result = lifecycle_pb2.QueryInstalledChaincodeResult(
        package_id=argument.package_id, label=_label(argument.package_id)
    )
    references = call.contracts.references(call.ledgers)
    _add_references(result, references.get(argument.package_id, {}))
    return result


def _add_references(
    result: lifecycle_pb2.QueryInstalledChaincodeResult
    | lifecycle_pb2.QueryInstalledChaincodesResult.InstalledChaincode,
    by_channel: Mapping[str, list[Runnable]],
) -> None:
    """Say which definitions of each channel use a package."""
    for channel_id, runnable in by_channel.items():
        used = result.references[channel_id].chaincodes
        for one in runnable:
            used.add(name=one.definition.name, version=one.definition.version)


def _query_all_installed(
    call: PeerCall, _argument: lifecycle_pb2.QueryInstalledChaincodesArgs
) -> Message:
    result = lifecycle_pb2.QueryInstalledChaincodesResult()
    references = call.contracts.references(call.ledgers)
    for package_id in call.contracts.packages.ids():
        installed = result.installed_chaincodes.add(package_id=package_id, label=_label(package_id))
        _add_references(installed, references.get(package_id, {}))
    return result


def _get_package(
    call: PeerCall, argument: lifecycle_pb2.GetInstalledChaincodePackageArgs
) -> Message:
    return lifecycle_pb2.GetInstalledChaincodePackageResult(
        chaincode_install_package=call.contracts.packages.load(argument.package_id)
    )


def _label(package_id: str) -> str:
    return package_id.rpartition(":")[0]


# --------------------------------------------------------------------------------- records


class _PublicRecords:
    """`_lifecycle`'s public state, as `ledger.lifecycle` keeps records in it."""

    def __init__(self, simulator: TransactionSimulator) -> None:
        self._simulator = simulator

    def get(self, key: str) -> bytes | None:
        """The value of a key; the read is recorded."""
        return self._simulator.get_state(LIFECYCLE, key)

    def put(self, key: str, value: bytes) -> None:
        """Write a key."""
        self._simulator.put_state(LIFECYCLE, key, value)

    def delete(self, key: str) -> None:
        """Delete a key."""
        self._simulator.del_state(LIFECYCLE, key)


class _OrganizationRecords:
    """An organization's implicit collection: its approvals."""

    def __init__(self, simulator: TransactionSimulator, msp_id: str) -> None:
        self._simulator = simulator
        self._collection = lifecycle.implicit_collection(msp_id)

    def get(self, key: str) -> bytes | None:
        """The value of a key; only a peer of the organisation has it."""
        return self._simulator.get_private(LIFECYCLE, self._collection, key)

    def hash_of(self, key: str) -> bytes | None:
        """The hash of a key's value, which every peer has."""
        return self._simulator.get_private_hash(LIFECYCLE, self._collection, key)

    def approved(self) -> list[tuple[str, int]]:
        """Contract and sequence of all approvals."""
        records = self._simulator.range_private(
            LIFECYCLE, self._collection, lifecycle.RECORDS_START, lifecycle.RECORDS_END
        )
        return list(lifecycle.approved_names(key for key, _ in records))

    def put(self, key: str, value: bytes) -> None:
        """Write a key."""
        self._simulator.put_private(LIFECYCLE, self._collection, key, value)

    def delete(self, key: str) -> None:
        """Delete a key."""
        self._simulator.del_private(LIFECYCLE, self._collection, key)


# ------------------------------------------------------------------- approving and committing

type _Definition = (
    lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs
    | lifecycle_pb2.CheckCommitReadinessArgs
    | lifecycle_pb2.CommitChaincodeDefinitionArgs
)


def _wanted(argument: _Definition) -> ChaincodeDefinition:
    return ChaincodeDefinition(
        name=argument.name,
        sequence=argument.sequence,
        version=argument.version,
        endorsement_policy=argument.validation_parameter,
        collections=argument.collections,
        init_required=argument.init_required,
        endorsement_plugin=argument.endorsement_plugin or lifecycle.ENDORSEMENT_PLUGIN,
        validation_plugin=argument.validation_plugin or lifecycle.VALIDATION_PLUGIN,
    )


def _checked(call: SystemCall, argument: _Definition) -> ChaincodeDefinition:
    """The definition asked for; raises SystemChaincodeError for one that can't be used."""
    try:
        _check_names(argument)
        found = _static_collections(argument.collections)
        _check_collections(call, found)
        # No part of the transaction: it is to find mistakes, and holds for this moment.
        committed = lifecycle.recorded_definition(reader(call.simulator.view), argument.name)
        if committed is not None:
            _check_against(found, _static_collections(committed.collections))
    except SystemChaincodeError as error:
        raise SystemChaincodeError(f"error validating chaincode definition: {error}") from None
    return _wanted(argument)


def _check_names(argument: _Definition) -> None:
    if not _NAME.fullmatch(argument.name):
        raise SystemChaincodeError(
            f"invalid chaincode name '{argument.name}'. Names can only consist of alphanumerics, "
            "'_', and '-' and can only begin with alphanumerics"
        )
    if argument.name in _RESERVED:
        raise SystemChaincodeError(
            f"chaincode name '{argument.name}' is the name of a system chaincode"
        )
    if not _VERSION.fullmatch(argument.version):
        raise SystemChaincodeError(
            f"invalid chaincode version '{argument.version}'. Versions can only consist of "
            "alphanumerics, '_', '-', '+', and '.'"
        )


def _static_collections(
    package: peer_pb2.CollectionConfigPackage,
) -> dict[str, peer_pb2.StaticCollectionConfig]:
    found: dict[str, peer_pb2.StaticCollectionConfig] = {}
    for config in package.config:
        if not config.HasField("static_collection_config"):
            raise SystemChaincodeError("collection configuration is empty")
        collection = config.static_collection_config
        if collection.name in found:
            raise SystemChaincodeError(
                f"collection-name: {collection.name} -- found duplicate in collection configuration"
            )
        found[collection.name] = collection
    return found


def _check_collections(
    call: SystemCall, found: Mapping[str, peer_pb2.StaticCollectionConfig]
) -> None:
    for name, collection in found.items():
        if not _COLLECTION.fullmatch(name):
            raise SystemChaincodeError(
                f"invalid collection name '{name}'. Names can only consist of alphanumerics, '_', "
                "and '-' and cannot begin with '_'"
            )
        where = f"collection-name: {name} --"
        required, most = collection.required_peer_count, collection.maximum_peer_count
        if most < required:
            raise SystemChaincodeError(
                f"{where} maximum peer count ({most}) cannot be less than the required peer count "
                f"({required})"
            )
        if required < 0:
            raise SystemChaincodeError(
                f"{where} requiredPeerCount ({required}) cannot be less than zero"
            )
        if not collection.HasField("member_orgs_policy"):
            raise SystemChaincodeError(
                f"collection member policy is not set for collection '{name}'"
            )
        if not collection.member_orgs_policy.HasField("signature_policy"):
            raise SystemChaincodeError(
                f"collection member org policy is empty for collection '{name}'"
            )
        policy = collection.member_orgs_policy.signature_policy
        try:
            SignaturePolicy(policy)
        except PolicyError as error:
            raise SystemChaincodeError(
                f"invalid member org policy for collection '{name}': {error}"
            ) from None
        _check_alternatives(where, policy.rule)
        for principal in policy.identities:
            _check_member(call, where, principal)


def _check_alternatives(where: str, rule: common_pb2.SignaturePolicy) -> None:
    if rule.WhichOneof("Type") != "n_out_of":
        return
    if rule.n_out_of.n != 1:
        raise SystemChaincodeError(
            f"{where} error in member org policy: signature policy is not an OR concatenation, "
            f"NOutOf {rule.n_out_of.n}"
        )
    for inner in rule.n_out_of.rules:
        _check_alternatives(where, inner)


def _check_member(call: SystemCall, where: str, principal: common_pb2.MSPPrincipal) -> None:
    msps = call.config.msps
    kind = common_pb2.MSPPrincipal.Classification
    match principal.principal_classification:
        case kind.ROLE:
            msp_id = parse(common_pb2.MSPRole, principal.principal, "a role").msp_identifier
        case kind.ORGANIZATION_UNIT:
            unit = parse(common_pb2.OrganizationUnit, principal.principal, "a unit")
            msp_id = unit.msp_identifier
        case kind.IDENTITY:
            try:
                msp_id = msps.identity(principal.principal).msp_id
            except IdentityError as error:
                raise SystemChaincodeError(
                    f"{where} contains an identity that is not part of the channel: {error}"
                ) from None
        case other:
            raise SystemChaincodeError(f"{where} principal type {other} is not supported")
    if msp_id not in msps:
        raise SystemChaincodeError(
            f"{where} collection member '{msp_id}' is not part of the channel"
        )


def _check_against(
    proposed: Mapping[str, peer_pb2.StaticCollectionConfig],
    committed: Mapping[str, peer_pb2.StaticCollectionConfig],
) -> None:
    if committed and not proposed:
        raise SystemChaincodeError(
            "the proposed collection config does not contain previously defined collections"
        )
    for name, before in committed.items():
        if name not in proposed:
            raise SystemChaincodeError(
                f"existing collection [{name}] missing in the proposed collection configuration"
            )
        if proposed[name].block_to_live != before.block_to_live:
            raise SystemChaincodeError(
                f"the BlockToLive in an existing collection [{name}] modified. Existing value "
                f"[{before.block_to_live}]"
            )


def _approve(
    call: SystemCall, argument: lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs
) -> Message:
    lifecycle.approve(
        _checked(call, argument),
        argument.source.local_package.package_id,
        _PublicRecords(call.simulator).get,
        _OrganizationRecords(call.simulator, call.msp_id),
    )
    return lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgResult()


def _approvals(call: SystemCall, wanted: ChaincodeDefinition) -> dict[str, tuple[str, ...]]:
    """In what each organisation's approval differs, nothing for one that approved."""
    return {
        msp_id: lifecycle.mismatches(wanted, _OrganizationRecords(call.simulator, msp_id).hash_of)
        for msp_id in call.config.application_orgs
    }


def _check_readiness(call: SystemCall, argument: lifecycle_pb2.CheckCommitReadinessArgs) -> Message:
    wanted = _wanted(argument)
    current = lifecycle.committed_sequence(_PublicRecords(call.simulator).get, wanted.name)
    if wanted.sequence != current + 1:
        raise SystemChaincodeError(
            f"requested sequence is {wanted.sequence}, but new definition must be sequence "
            f"{current + 1}"
        )
    found = _approvals(call, wanted)
    result = lifecycle_pb2.CheckCommitReadinessResult
    return result(
        approvals={msp_id: not items for msp_id, items in found.items()},
        mismatches={
            msp_id: result.Mismatches(items=items) for msp_id, items in found.items() if items
        },
    )


def _commit(call: SystemCall, argument: lifecycle_pb2.CommitChaincodeDefinitionArgs) -> Message:
    wanted = _checked(call, argument)
    lifecycle.commit(wanted, _PublicRecords(call.simulator))
    if _approvals(call, wanted).get(call.msp_id, ("",)):
        raise SystemChaincodeError(
            f"chaincode definition not agreed to by this org ({call.msp_id})"
        )
    return lifecycle_pb2.CommitChaincodeDefinitionResult()


# -------------------------------------------------------------------------------- querying


def _query_approved(
    call: SystemCall, argument: lifecycle_pb2.QueryApprovedChaincodeDefinitionArgs
) -> Message:
    own = _OrganizationRecords(call.simulator, call.msp_id)
    sequence = argument.sequence
    if sequence == 0:
        sequence = lifecycle.committed_sequence(_PublicRecords(call.simulator).get, argument.name)
        if lifecycle.approved_definition(argument.name, sequence + 1, own.get) is not None:
            sequence += 1
    found = lifecycle.approved_definition(argument.name, sequence, own.get)
    if found is None:
        raise SystemChaincodeError(
            f"could not fetch approved chaincode definition (name: '{argument.name}', sequence: "
            f"'{sequence}') on channel '{call.ledger.channel_id}'"
        )
    return lifecycle_pb2.QueryApprovedChaincodeDefinitionResult(
        sequence=found.sequence,
        version=found.version,
        endorsement_plugin=found.endorsement_plugin,
        validation_plugin=found.validation_plugin,
        validation_parameter=found.endorsement_policy,
        collections=found.collections,
        init_required=found.init_required,
        source=_source(found, own),
    )


def _query_all_approved(
    call: SystemCall, _argument: lifecycle_pb2.QueryApprovedChaincodeDefinitionsArgs
) -> Message:
    own = _OrganizationRecords(call.simulator, call.msp_id)
    result = lifecycle_pb2.QueryApprovedChaincodeDefinitionsResult()
    for name, sequence in own.approved():
        found = lifecycle.approved_definition(name, sequence, own.get)
        assert found is not None
        result.approved_chaincode_definitions.add(
            name=found.name,
            sequence=found.sequence,
            version=found.version,
            endorsement_plugin=found.endorsement_plugin,
            validation_plugin=found.validation_plugin,
            validation_parameter=found.endorsement_policy,
            collections=found.collections,
            init_required=found.init_required,
            source=_source(found, own),
        )
    return result


def _source(found: ChaincodeDefinition, own: _OrganizationRecords) -> lifecycle_pb2.ChaincodeSource:
    package_id = lifecycle.approved_package(found.name, found.sequence, own.get)
    if not package_id:
        return lifecycle_pb2.ChaincodeSource(
            unavailable=lifecycle_pb2.ChaincodeSource.Unavailable()
        )
    return lifecycle_pb2.ChaincodeSource(
        local_package=lifecycle_pb2.ChaincodeSource.Local(package_id=package_id)
    )


def _query_definition(
    call: SystemCall, argument: lifecycle_pb2.QueryChaincodeDefinitionArgs
) -> Message:
    found = lifecycle.recorded_definition(_PublicRecords(call.simulator).get, argument.name)
    if found is None:
        raise SystemChaincodeError(f"namespace {argument.name} is not defined", 404)
    return lifecycle_pb2.QueryChaincodeDefinitionResult(
        sequence=found.sequence,
        version=found.version,
        endorsement_plugin=found.endorsement_plugin,
        validation_plugin=found.validation_plugin,
        validation_parameter=found.endorsement_policy,
        collections=found.collections,
        init_required=found.init_required,
        approvals={msp_id: not items for msp_id, items in _approvals(call, found).items()},
    )


def _query_definitions(
    call: SystemCall, _argument: lifecycle_pb2.QueryChaincodeDefinitionsArgs
) -> Message:
    result = lifecycle_pb2.QueryChaincodeDefinitionsResult()
    records = call.simulator.range(LIFECYCLE, lifecycle.RECORDS_START, lifecycle.RECORDS_END)
    for key, _ in records:
        name = key.removeprefix(lifecycle.RECORDS_START)
        found = lifecycle.recorded_definition(_PublicRecords(call.simulator).get, name)
        assert found is not None
        result.chaincode_definitions.add(
            name=found.name,
            sequence=found.sequence,
            version=found.version,
            endorsement_plugin=found.endorsement_plugin,
            validation_plugin=found.validation_plugin,
            validation_parameter=found.endorsement_policy,
            collections=found.collections,
            init_required=found.init_required,
        )
    return result


_FUNCTIONS: dict[str, _Function] = {
    "InstallChaincode": _Function(
        lifecycle_pb2.InstallChaincodeArgs, _install, channel=False, admin=True
    ),
    "QueryInstalledChaincode": _Function(
        lifecycle_pb2.QueryInstalledChaincodeArgs, _query_installed, channel=False, admin=True
    ),
    "QueryInstalledChaincodes": _Function(
        lifecycle_pb2.QueryInstalledChaincodesArgs, _query_all_installed, channel=False, admin=True
    ),
    "GetInstalledChaincodePackage": _Function(
        lifecycle_pb2.GetInstalledChaincodePackageArgs, _get_package, channel=False, admin=True
    ),
    "ApproveChaincodeDefinitionForMyOrg": _Function(
        lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs, _approve, admin=True
    ),
    "QueryApprovedChaincodeDefinition": _Function(
        lifecycle_pb2.QueryApprovedChaincodeDefinitionArgs, _query_approved, admin=True
    ),
    "QueryApprovedChaincodeDefinitions": _Function(
        lifecycle_pb2.QueryApprovedChaincodeDefinitionsArgs, _query_all_approved, admin=True
    ),
    "CheckCommitReadiness": _Function(lifecycle_pb2.CheckCommitReadinessArgs, _check_readiness),
    "CommitChaincodeDefinition": _Function(lifecycle_pb2.CommitChaincodeDefinitionArgs, _commit),
    "QueryChaincodeDefinition": _Function(
        lifecycle_pb2.QueryChaincodeDefinitionArgs, _query_definition
    ),
    "QueryChaincodeDefinitions": _Function(
        lifecycle_pb2.QueryChaincodeDefinitionsArgs, _query_definitions
    ),
}
