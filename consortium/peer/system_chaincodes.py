"""The contracts every peer brings along.

`qscc` answers queries about the chain, `cscc` those about a peer's channels and their
configuration, and has it join one; `_lifecycle` has a module of its own. Arguments and rules are
Fabric's (`core/scc/`, facts only), so that its `peer channel` commands and explorers work here.
"""

import re
from collections.abc import Callable, Iterable

from consortium.chaincode.packages import PackageError
from consortium.identity.msp import IdentityError
from consortium.ledger.channel_config import config_of_block
from consortium.ledger.config_update import ConfigError
from consortium.ledger.ledger import Ledger, TransactionRecord
from consortium.ledger.state import LedgerError
from consortium.wire import common_pb2, peer_pb2
from consortium.wire.envelopes import WireError, parse

from .lifecycle import LIFECYCLE, invoke_lifecycle
from .system_call import READERS, PeerCall, SystemCall, SystemChaincodeError, require

QSCC = "qscc"
CSCC = "cscc"
SYSTEM_CHAINCODES = frozenset({LIFECYCLE, QSCC, CSCC})
PEERS_OWN = SYSTEM_CHAINCODES
"""Those that may be called without a channel: `peer channel getinfo` asks `qscc` so."""

NEWEST = 2**64 - 1
"""Asks `qscc` for the last block, as in Fabric."""


def invoke(name: str, call: SystemCall, arguments: Iterable[bytes]) -> peer_pb2.Response:
    """Run a system contract's function; a refusal is a response of its status."""
    return invoke_own(name, call, arguments)


def invoke_own(name: str, call: PeerCall, arguments: Iterable[bytes]) -> peer_pb2.Response:
    """Run a system contract's function where the caller may have named no channel."""
    run = _RUN[name]
    return _response(lambda: run(call, tuple(arguments)))


def _response(run: Callable[[], bytes]) -> peer_pb2.Response:
    try:
        return peer_pb2.Response(status=200, payload=run())
    except (SystemChaincodeError, WireError, LedgerError, ConfigError, PackageError) as error:
        status = error.status if isinstance(error, SystemChaincodeError) else 500
        return peer_pb2.Response(status=status, message=str(error))


# -------------------------------------------------------------------------------------- qscc


def _qscc(call: PeerCall, arguments: tuple[bytes, ...]) -> bytes:
    if len(arguments) < 2:
        raise SystemChaincodeError("qscc takes a function's name and a channel's")
    function, channel, *rest = arguments
    name = function.decode(errors="replace")
    channel_id = channel.decode(errors="replace")
    if channel_id not in call.ledgers:
        raise SystemChaincodeError(f"Invalid chain ID, {channel_id}")
    ledger = _readable(call, QSCC, name, channel)
    match name, rest:
        case "GetChainInfo", []:
            height = ledger.height
            info = common_pb2.BlockchainInfo(
                height=height,
                currentBlockHash=ledger.last_block_hash,
                previousBlockHash=ledger.previous_block_hash,
            )
            if ledger.base is not None:
                info.bootstrappingSnapshotInfo.lastBlockInSnapshot = ledger.base.last_block
            return info.SerializeToString()
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


def _cscc(call: PeerCall, arguments: tuple[bytes, ...]) -> bytes:
    function = arguments[0].decode(errors="replace") if arguments else ""
    match function, arguments[1:]:
        case "GetChannels", _:
            call.require_own(admin=False)
            return peer_pb2.ChannelQueryResponse(
                channels=[peer_pb2.ChannelInfo(channel_id=one) for one in sorted(call.ledgers)]
            ).SerializeToString()
        case "GetConfigBlock", [channel_id, *_]:
            ledger = _readable(call, CSCC, function, channel_id)
            return ledger.block(ledger.last_config_block())
        case "GetChannelConfig", [channel_id, *_]:
            return _readable(call, CSCC, function, channel_id).config.config.SerializeToString(
                deterministic=True
            )
        case "JoinBySnapshotStatus", _:
            call.require_own(admin=True)
            folder = call.snapshots.in_progress if call.snapshots else ""
            return peer_pb2.JoinBySnapshotStatus(
                in_progress=bool(folder), bootstrapping_snapshot_dir=folder
            ).SerializeToString()
        case "JoinChainBySnapshot", [folder_name, *_]:
            call.require_own(admin=True)
            if not folder_name:
                raise SystemChaincodeError(
                    "Cannot join the channel, no snapshot directory provided"
                )
            if call.snapshots is None:
                raise SystemChaincodeError("this peer joins channels when it starts")
            folder = folder_name.decode(errors="replace")
            try:
                call.snapshots.begin(folder)
            except (LedgerError, OSError) as error:
                raise SystemChaincodeError(
                    f"cannot create ledger from snapshot {folder}: {error}"
                ) from None
            return b""
        case "JoinChain", [raw, *_]:
            call.require_own(admin=True)
            block = parse(common_pb2.Block, raw, "the genesis block")
            joined, _ = config_of_block(block)
            if joined in call.ledgers:
                raise SystemChaincodeError(
                    f"cannot create ledger from genesis block: ledger [{joined}] already exists "
                    "with state [ACTIVE]: this peer has joined the channel"
                )
            call.join(block)
            return b""
        case (("GetConfigBlock" | "GetChannelConfig" | "JoinChain" | "JoinChainBySnapshot"), []):
            raise SystemChaincodeError(f"Incorrect number of arguments, {len(arguments)}")
        case _:
            raise SystemChaincodeError(f"Requested function {function} not found.")


def _readable(call: PeerCall, chaincode: str, function: str, channel: bytes) -> Ledger:
    """A channel's ledger, for one of its readers."""
    channel_id = channel.decode(errors="replace")
    ledger = call.ledgers.get(channel_id)
    if ledger is None:
        raise SystemChaincodeError(f"Unknown channel ID, {channel_id}")
    config = ledger.config
    try:
        # Who it is on one channel says nothing about another.
        reader = config.msps.identity(call.creator.serialized)
    except IdentityError as error:
        raise SystemChaincodeError(
            f"access denied for [{function}][{channel_id}]: {error}"
        ) from None
    require(config, config.acls.get(f"{chaincode}/{function}", READERS), reader)
    return ledger


_RUN: dict[str, Callable[[PeerCall, tuple[bytes, ...]], bytes]] = {
    LIFECYCLE: invoke_lifecycle,
    QSCC: _qscc,
    CSCC: _cscc,
}
