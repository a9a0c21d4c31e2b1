"""The contracts every peer brings along.

`_lifecycle` keeps contracts' definitions, `qscc` answers queries about the chain, `cscc` those
about a peer's channels and their configuration. State layout, argument messages and rules are
Fabric's (`core/chaincode/lifecycle/`, `core/scc/`, facts only), so that its `peer lifecycle` and
`peer channel` commands and explorers work here.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from google.protobuf.message import Message

from consortium.chaincode.simulator import StateReader, TransactionSimulator
from consortium.identity.msp import Identity, IdentityError
from consortium.identity.policies import PolicyNotFoundError
from consortium.ledger import lifecycle
from consortium.ledger.channel_config import ChannelConfig, config_of_block
from consortium.ledger.config_update import ConfigError
from consortium.ledger.ledger import Ledger, TransactionRecord
from consortium.ledger.state import LedgerError
from consortium.wire import common_pb2, lifecycle_pb2, peer_pb2
from consortium.wire.blocks import header_hash
from consortium.wire.envelopes import WireError, parse

LIFECYCLE = "_lifecycle"
QSCC = "qscc"
CSCC = "cscc"
SYSTEM_CHAINCODES = frozenset({LIFECYCLE, QSCC, CSCC})

READERS = "/Channel/Application/Readers"
NEWEST = 2**64 - 1
"""Asks `qscc` for the last block, as in Fabric."""

_NAME = re.compile(r"[A-Za-z0-9]+([-_][A-Za-z0-9]+)*")
_VERSION = re.compile(r"[A-Za-z0-9_.+-]+")
_RESERVED = frozenset({"_lifecycle", "lscc", "qscc", "cscc", "escc", "vscc"})


class SystemChaincodeError(Exception):
    """A system contract's refusal; `status` is 404 for what isn't there, else 500."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class SystemCall:
    """What a system contract may look at."""

    ledger: Ledger
    config: ChannelConfig
    simulator: TransactionSimulator
    creator: Identity
    msp_id: str
    """This peer's own organisation."""
    ledgers: Mapping[str, Ledger]
    """Those of all channels that this peer has joined."""

    def require(self, policy: str) -> None:
        """Raises SystemChaincodeError unless the caller satisfies the channel's policy."""
        _require(self.config, policy, self.creator)


def _require(config: ChannelConfig, policy: str, creator: Identity) -> None:
    try:
        satisfied = config.policy(policy).satisfied_by([creator])
    except PolicyNotFoundError as error:
        raise SystemChaincodeError(str(error)) from None
    if not satisfied:
        raise SystemChaincodeError(
            f"Failed to authorize invocation due to failed ACL check: {creator.msp_id}'s "
            f"{creator.common_name} does not satisfy {policy}"
        )


def invoke(name: str, call: SystemCall, arguments: Iterable[bytes]) -> peer_pb2.Response:
    """Run a system contract's function; a refusal is a response of its status."""
    if name == CSCC:
        return invoke_cscc(call.ledgers, call.creator, call.msp_id, arguments)
    run = _lifecycle if name == LIFECYCLE else _qscc
    return _response(lambda: run(call, tuple(arguments)))


def invoke_cscc(
    ledgers: Mapping[str, Ledger], creator: Identity, msp_id: str, arguments: Iterable[bytes]
) -> peer_pb2.Response:
    """Run a function of `cscc`, the one system contract that may be called without a channel.

    `msp_id` is this peer's organisation.
    """
    return _response(lambda: _cscc(ledgers, creator, msp_id, tuple(arguments)))


def _response(run: Callable[[], bytes]) -> peer_pb2.Response:
    try:
        return peer_pb2.Response(status=200, payload=run())
    except (SystemChaincodeError, WireError, LedgerError, ConfigError) as error:
        status = error.status if isinstance(error, SystemChaincodeError) else 500
        return peer_pb2.Response(status=status, message=str(error))


# ------------------------------------------------------------------------------- _lifecycle


def _lifecycle(call: SystemCall, arguments: tuple[bytes, ...]) -> bytes:
    if len(arguments) != 2:
        raise SystemChaincodeError(
            f"lifecycle scc operations require exactly two arguments but received {len(arguments)}"
        )
    function = arguments[0].decode(errors="replace")
    found = _FUNCTIONS.get(function)
    if found is None:
        raise SystemChaincodeError(
            f"_lifecycle has no function {function!r}; it has {', '.join(_FUNCTIONS)}"
        )
    argument_type, run = found
    argument = parse(argument_type, arguments[1], f"the argument of {function}")
    return run(call, argument).SerializeToString()


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
    """An organisation's implicit collection: its approvals."""

    def __init__(self, simulator: TransactionSimulator, msp_id: str) -> None:
        self._simulator = simulator
        self._collection = lifecycle.implicit_collection(msp_id)

    def get(self, key: str) -> bytes | None:
        """The value of a key; only a peer of the organisation has it."""
        return self._simulator.get_private(LIFECYCLE, self._collection, key)

    def hash_of(self, key: str) -> bytes | None:
        """The hash of a key's value, which every peer has."""
        return self._simulator.get_private_hash(LIFECYCLE, self._collection, key)

    def put(self, key: str, value: bytes) -> None:
        """Write a key."""
        self._simulator.put_private(LIFECYCLE, self._collection, key, value)

    def delete(self, key: str) -> None:
        """Delete a key."""
        self._simulator.del_private(LIFECYCLE, self._collection, key)


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


type _Definition = (
    lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs
    | lifecycle_pb2.CheckCommitReadinessArgs
    | lifecycle_pb2.CommitChaincodeDefinitionArgs
)


def _wanted(argument: _Definition) -> lifecycle.ChaincodeDefinition:
    """The definition asked for; raises SystemChaincodeError for names that can't be used."""
    if not _NAME.fullmatch(argument.name) or argument.name in _RESERVED:
        raise SystemChaincodeError(
            f"error validating chaincode definition: invalid chaincode name '{argument.name}'"
        )
    if not _VERSION.fullmatch(argument.version):
        raise SystemChaincodeError(
            f"error validating chaincode definition: invalid chaincode version '{argument.version}'"
        )
    return lifecycle.ChaincodeDefinition(
        name=argument.name,
        sequence=argument.sequence,
        version=argument.version,
        endorsement_policy=argument.validation_parameter,
        collections=argument.collections,
        init_required=argument.init_required,
        endorsement_plugin=argument.endorsement_plugin or lifecycle.ENDORSEMENT_PLUGIN,
        validation_plugin=argument.validation_plugin or lifecycle.VALIDATION_PLUGIN,
    )


def _approve(
    call: SystemCall, argument: lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs
) -> Message:
    if call.creator.msp_id != call.msp_id or not call.creator.is_admin:
        raise SystemChaincodeError(
            "Failed to authorize invocation due to failed ACL check: only an admin of "
            f"{call.msp_id} may approve for it at its peer"
        )
    lifecycle.approve(
        _wanted(argument),
        argument.source.local_package.package_id,
        _PublicRecords(call.simulator).get,
        _OrganizationRecords(call.simulator, call.msp_id),
    )
    return lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgResult()


def _approvals(call: SystemCall, wanted: lifecycle.ChaincodeDefinition) -> dict[str, bool]:
    return lifecycle.approvals(
        wanted,
        {
            msp_id: _OrganizationRecords(call.simulator, msp_id).hash_of
            for msp_id in call.config.application_orgs
        },
    )


def _check_commit_readiness(
    call: SystemCall, argument: lifecycle_pb2.CheckCommitReadinessArgs
) -> Message:
    call.require("/Channel/Application/Writers")
    wanted = _wanted(argument)
    current = lifecycle.committed_sequence(_PublicRecords(call.simulator).get, wanted.name)
    if wanted.sequence != current + 1:
        raise SystemChaincodeError(
            f"requested sequence is {wanted.sequence}, but new definition must be sequence "
            f"{current + 1}"
        )
    return lifecycle_pb2.CheckCommitReadinessResult(approvals=_approvals(call, wanted))


def _commit(call: SystemCall, argument: lifecycle_pb2.CommitChaincodeDefinitionArgs) -> Message:
    call.require("/Channel/Application/Writers")
    wanted = _wanted(argument)
    lifecycle.commit(wanted, _PublicRecords(call.simulator))
    if not _approvals(call, wanted).get(call.msp_id):
        raise SystemChaincodeError(
            f"chaincode definition not agreed to by this org ({call.msp_id})"
        )
    return lifecycle_pb2.CommitChaincodeDefinitionResult()


def _query_definition(
    call: SystemCall, argument: lifecycle_pb2.QueryChaincodeDefinitionArgs
) -> Message:
    call.require("/Channel/Application/Writers")
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
        approvals=_approvals(call, found),
    )


_FUNCTIONS: dict[str, tuple[type[Message], Callable[..., Message]]] = {
    "ApproveChaincodeDefinitionForMyOrg": (
        lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs,
        _approve,
    ),
    "CheckCommitReadiness": (lifecycle_pb2.CheckCommitReadinessArgs, _check_commit_readiness),
    "CommitChaincodeDefinition": (lifecycle_pb2.CommitChaincodeDefinitionArgs, _commit),
    "QueryChaincodeDefinition": (
        lifecycle_pb2.QueryChaincodeDefinitionArgs,
        _query_definition,
    ),
}


# -------------------------------------------------------------------------------------- qscc


def _qscc(call: SystemCall, arguments: tuple[bytes, ...]) -> bytes:
    if len(arguments) < 2:
        raise SystemChaincodeError("qscc takes a function's name and a channel's")
    function, *rest = (argument for argument in arguments)
    name = function.decode(errors="replace")
    call.require(call.config.acls.get(f"qscc/{name}", READERS))
    channel_id = rest.pop(0).decode(errors="replace")
    if channel_id != call.ledger.channel_id:
        raise SystemChaincodeError(f"Invalid chain ID, {channel_id}")
    ledger = call.ledger
    match name, rest:
        case "GetChainInfo", []:
            height = ledger.height
            header = common_pb2.Block.FromString(ledger.block(height - 1)).header
            return common_pb2.BlockchainInfo(
                height=height,
                currentBlockHash=header_hash(header),
                previousBlockHash=header.previous_hash,
            ).SerializeToString()
        case "GetBlockByNumber", [number]:
            wanted = _number(number)
            return ledger.block(ledger.height - 1 if wanted == NEWEST else wanted)
        case "GetBlockByHash", [block_hash]:
            block = ledger.block_by_hash(block_hash)
            if block is None:
                raise SystemChaincodeError(f"there is no block with hash {block_hash.hex()}")
            return block
        case "GetBlockByTxID", [transaction_id]:
            return ledger.block(_transaction(ledger, transaction_id).block)
        case "GetTransactionByID", [transaction_id]:
            record = _transaction(ledger, transaction_id)
            data = common_pb2.Block.FromString(ledger.block(record.block)).data.data
            return peer_pb2.ProcessedTransaction(
                transactionEnvelope=common_pb2.Envelope.FromString(data[record.index]),
                validationCode=record.code,
            ).SerializeToString()
        case _:
            raise SystemChaincodeError(
                f"qscc has no function {name} with {len(rest)} arguments after the channel"
            )


def _number(argument: bytes) -> int:
    # Fabric's strconv.ParseUint(…, 10, 64); `int` alone would take signs, spaces and underscores.
    if not re.fullmatch(rb"[0-9]{1,20}", argument) or int(argument) >= 2**64:
        raise SystemChaincodeError(
            f"Failed to parse block number with error {argument[:40]!r} is not a number"
        )
    return int(argument)


def _transaction(ledger: Ledger, argument: bytes) -> TransactionRecord:
    transaction_id = argument.decode(errors="replace")
    record = ledger.transaction(transaction_id)
    if record is None:
        raise SystemChaincodeError(f"Failed to get transaction with id {transaction_id}: not found")
    return record


# -------------------------------------------------------------------------------------- cscc


def _cscc(
    ledgers: Mapping[str, Ledger], creator: Identity, msp_id: str, arguments: tuple[bytes, ...]
) -> bytes:
    function = arguments[0].decode(errors="replace") if arguments else ""
    match function, arguments[1:]:
        case "GetChannels", _:
            _require_own(creator, msp_id, admin=False)
            return peer_pb2.ChannelQueryResponse(
                channels=[peer_pb2.ChannelInfo(channel_id=one) for one in sorted(ledgers)]
            ).SerializeToString()
        case "GetConfigBlock", [channel_id, *_]:
            ledger = _readable(ledgers, creator, function, channel_id)
            return ledger.block(ledger.last_config_block())
        case "GetChannelConfig", [channel_id, *_]:
            return _readable(
                ledgers, creator, function, channel_id
            ).config.config.SerializeToString(deterministic=True)
        case "JoinBySnapshotStatus", _:
            _require_own(creator, msp_id, admin=True)
            return peer_pb2.JoinBySnapshotStatus(in_progress=False).SerializeToString()
        case "JoinChain", [block, *_]:
            _require_own(creator, msp_id, admin=True)
            joined, _ = config_of_block(parse(common_pb2.Block, block, "the genesis block"))
            if joined in ledgers:
                raise SystemChaincodeError(
                    f"cannot create ledger from genesis block: ledger [{joined}] already exists "
                    "with state [ACTIVE]: this peer has joined the channel"
                )
            raise SystemChaincodeError(
                f"this peer cannot join {joined} while it runs: it serves the channels of its data "
                f"directory, {', '.join(sorted(ledgers))}"
            )
        case (("GetConfigBlock" | "GetChannelConfig" | "JoinChain"), []):
            raise SystemChaincodeError(f"Incorrect number of arguments, {len(arguments)}")
        case _:
            raise SystemChaincodeError(f"Requested function {function} not found.")


def _require_own(creator: Identity, msp_id: str, *, admin: bool) -> None:
    if creator.msp_id != msp_id or (admin and not creator.is_admin):
        who = "an admin" if admin else "a member"
        raise SystemChaincodeError(f"access denied: only {who} of {msp_id} may ask its peer this")


def _readable(
    ledgers: Mapping[str, Ledger], creator: Identity, function: str, channel: bytes
) -> Ledger:
    """A channel's ledger, for one of its readers."""
    channel_id = channel.decode(errors="replace")
    ledger = ledgers.get(channel_id)
    if ledger is None:
        raise SystemChaincodeError(f"Unknown channel ID, {channel_id}")
    config = ledger.config
    try:
        # Who it is on one channel says nothing about another.
        reader = config.msps.identity(creator.serialized)
    except IdentityError as error:
        raise SystemChaincodeError(
            f"access denied for [{function}][{channel_id}]: {error}"
        ) from None
    _require(config, config.acls.get(f"cscc/{function}", READERS), reader)
    return ledger
