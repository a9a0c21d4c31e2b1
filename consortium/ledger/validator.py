"""Which of a block's transactions are valid: signatures, policies, then concurrency.

The stages stand in Fabric's order, because the first fault gives the code: envelope (1 to 3),
creator's signature (4), transaction id and proposal hash (8, 5, 7), id seen in an earlier block
(9), read-write set and names (19 to 25), policies (10, 25), id seen in this block (9), reads
(11, 12). Signatures are independent of each other and are checked in threads; the rest goes
through the block in order.

(Rules: Fabric core/committer/txvalidator/v20, core/common/validation, core/common/validation/
statebased, core/ledger/kvledger/txmgmt/validation.)
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from consortium.identity.msp import Identity, IdentityError
from consortium.identity.policies import (
    PolicyError,
    PolicyNotFoundError,
    SignaturePolicy,
    SignedData,
    verified_signers,
)
from consortium.wire import common_pb2, kvrwset_pb2, peer_pb2
from consortium.wire.blocks import SIGNATURES, data_hash, header_bytes
from consortium.wire.envelopes import WireError, parse

from .channel_config import ChannelConfig
from .config_update import ConfigError
from .lifecycle import Policies
from .mvcc import UpdateBatch, apply_writes, read_conflict
from .rwset import VALID, NamespaceSet, Transaction, open_transaction
from .state import LedgerError, StoredState, Version

BLOCK_VALIDATION_POLICY = "/Channel/Orderer/BlockValidation"
CONFIG_KEY = "CHANNEL_CONFIG_ENV_BYTES"
"""Where the configuration stands in the state, in the namespace ""."""

VERDICT_LIMIT = 20_000
"""Answers of policies remembered for one configuration."""

SIGNATURE_SHARES = 4
"""Parts that a block's signature checks are dealt out in."""

_THREADED_TRANSACTIONS = 4
"""Blocks of fewer transactions are checked without threads."""

Key = tuple[str, str, str | bytes]
"""Namespace, collection ("" for public) and key (or key hash)."""


class BlockError(LedgerError):
    """A block that no peer may commit; the message says why."""


class Judge:
    """Answers for one configuration whether signers satisfy a policy, and remembers it."""

    def __init__(self, config: ChannelConfig) -> None:
        """For `config` only: a new configuration needs a new judge."""
        self.config = config
        self._verdicts: dict[tuple[bool, bytes, tuple[tuple[str, bytes], ...]], bool] = {}

    def satisfied(self, policy: bytes, signers: Sequence[Identity]) -> bool:
        """Whether the signers satisfy an `ApplicationPolicy`."""
        return self._ask(False, policy, signers)

    def key_satisfied(self, policy: bytes, signers: Sequence[Identity]) -> bool:
        """Whether the signers satisfy a key's own `SignaturePolicyEnvelope`."""
        return self._ask(True, policy, signers)

    def _ask(self, of_key: bool, policy: bytes, signers: Sequence[Identity]) -> bool:
        question = (of_key, policy, tuple(signer.key for signer in signers))
        verdict = self._verdicts.get(question)
        if verdict is None:
            try:
                compiled = (
                    SignaturePolicy.from_bytes(policy)
                    if of_key
                    else self.config.application_policy(policy)
                )
                verdict = compiled.satisfied_by(signers)
            except PolicyError, PolicyNotFoundError:
                verdict = False
            if len(self._verdicts) >= VERDICT_LIMIT:
                self._verdicts.clear()
            self._verdicts[question] = verdict
        return verdict


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a block comes to."""

    codes: bytes
    """One `TxValidationCode` a transaction."""
    updates: UpdateBatch
    config: ChannelConfig | None
    """The configuration from the next block on, if this block changes it."""


@dataclass(frozen=True, slots=True)
class _Signatures:
    """Who really signed a transaction."""

    creator_holds: bool
    endorsers: tuple[Identity, ...] = ()


def validate_block(
    number: int,
    transactions: Sequence[Transaction],
    judge: Judge,
    state: StoredState,
    is_known: Callable[[str], bool],
    threads: ThreadPoolExecutor,
) -> Outcome:
    """Judge a block's transactions against the state and configuration before it.

    `is_known` tells whether an earlier block holds a transaction id. Raises BlockError for a
    configuration transaction that the channel's policies do not allow: there is no going on then.
    """
    config = judge.config
    signatures = _check_signatures(transactions, config, threads)
    policies = Policies(state, config)
    codes = bytearray(len(transactions))
    successor: ChannelConfig | None = None
    moved: set[Key] = set()
    for transaction, signed in zip(transactions, signatures, strict=True):
        code = _code_before_policy(transaction, signed, is_known)
        if code == VALID and transaction.type == common_pb2.CONFIG:
            successor = _successor(number, transaction, config)
        elif code == VALID:
            code = _policy_code(transaction, signed.endorsers, judge, policies, moved)
        codes[transaction.index] = code
    _mark_duplicates(transactions, codes)
    updates = UpdateBatch()
    for transaction in transactions:
        if codes[transaction.index] == VALID:
            code = read_conflict(transaction.namespaces, state, updates)
            codes[transaction.index] = code
            if code == VALID:
                version = Version(number, transaction.index)
                apply_writes(_writes(transaction), version, state, updates)
    return Outcome(bytes(codes), updates, successor)


def genesis_outcome(block: common_pb2.Block) -> Outcome:
    """The outcome of block 0, which is trusted as it is; raises BlockError, ConfigError."""
    transactions = open_block(block)
    updates = UpdateBatch()
    if len(transactions) != 1 or transactions[0].type != common_pb2.CONFIG:
        raise BlockError("block 0 is no genesis block: it must hold one configuration transaction")
    empty = _NothingStored()
    apply_writes(_writes(transactions[0]), Version(0, 0), empty, updates)  # type: ignore[arg-type]
    return Outcome(bytes(1), updates, ChannelConfig.from_block(block))


class _NothingStored:
    """The state before block 0."""

    def get(self, _namespace: str, _key: str) -> None:
        return None


def open_block(block: common_pb2.Block) -> list[Transaction]:
    """Open all envelopes of a block."""
    return [open_transaction(index, raw) for index, raw in enumerate(block.data.data)]


# --- the block as a whole --------------------------------------------------------------------


def check_block_form(block: common_pb2.Block) -> None:
    """Check that the data are what the header's hash covers, and cut in one way only.

    The hash covers the envelopes joined. Only because each of them is the one encoding of an
    envelope with payload and signature, nobody can cut the same bytes elsewhere. A configuration
    block is exempt: it has a single transaction. Raises BlockError.
    (Fabric protoutil/blockutils.go.)
    """
    number, envelopes = block.header.number, block.data.data
    if data_hash(envelopes) != block.header.data_hash:
        raise BlockError(f"the data of block {number} do not fit the data hash in its header")
    if not envelopes:
        raise BlockError(f"block {number} is empty")
    if len(envelopes) == 1 and open_transaction(0, envelopes[0]).type == common_pb2.CONFIG:
        return
    for index, raw in enumerate(envelopes):
        try:
            envelope = parse(common_pb2.Envelope, raw, f"transaction {index} of block {number}")
        except WireError as error:
            raise BlockError(str(error)) from None
        if not envelope.payload or not envelope.signature:
            raise BlockError(f"transaction {index} of block {number} lacks a payload or signature")
        if envelope.SerializeToString() != raw:
            raise BlockError(
                f"transaction {index} of block {number} is not in an envelope's one encoding"
            )


def verify_block_signature(block: common_pb2.Block, config: ChannelConfig) -> None:
    """Check that the orderers that the configuration before the block names have signed it.

    Raises BlockError.
    """
    number = block.header.number
    slots = block.metadata.metadata
    try:
        metadata = parse(
            common_pb2.Metadata,
            slots[SIGNATURES] if slots else b"",
            f"the signatures of block {number}",
        )
        header = header_bytes(block.header)
        signed = []
        for signature in metadata.signatures:
            creator = parse(
                common_pb2.SignatureHeader,
                signature.signature_header,
                f"a signature header of block {number}",
            ).creator
            covered = metadata.value + signature.signature_header + header
            signed.append(SignedData(covered, creator, signature.signature))
    except WireError as error:
        raise BlockError(str(error)) from None
    signers = verified_signers(config.msps, signed)
    try:
        policy = config.policy(BLOCK_VALIDATION_POLICY)
    except PolicyNotFoundError as error:
        raise BlockError(f"block {number} cannot be checked: {error}") from None
    if not policy.satisfied_by(signers):
        names = ", ".join(signer.msp_id for signer in signers) or "nobody"
        raise BlockError(
            f"block {number} is signed by {names}, which does not satisfy the channel's policy "
            f"{BLOCK_VALIDATION_POLICY}: fetch the block from another ordering node"
        )


# --- signatures ------------------------------------------------------------------------------


def _check_signatures(
    transactions: Sequence[Transaction], config: ChannelConfig, threads: ThreadPoolExecutor
) -> list[_Signatures]:
    if len(transactions) < _THREADED_TRANSACTIONS:
        return _check_some(transactions, config)
    share = -(-len(transactions) // SIGNATURE_SHARES)
    shares = [transactions[at : at + share] for at in range(0, len(transactions), share)]
    results = threads.map(_check_some, shares, [config] * len(shares))
    return [signatures for result in results for signatures in result]


def _check_some(transactions: Iterable[Transaction], config: ChannelConfig) -> list[_Signatures]:
    return [_check_one(transaction, config) for transaction in transactions]


def _check_one(transaction: Transaction, config: ChannelConfig) -> _Signatures:
    if transaction.fault_before_signature or transaction.channel_id != config.channel_id:
        return _Signatures(False)
    try:
        creator = config.msps.identity(transaction.creator)
    except IdentityError:
        return _Signatures(False)
    if not creator.verify(transaction.signature, transaction.signed):
        return _Signatures(False)
    if transaction.fault_before_duplicate or transaction.fault_before_policy:
        return _Signatures(True)
    signed = (
        SignedData(transaction.endorsed + endorser, endorser, signature)
        for endorser, signature in transaction.endorsements
    )
    return _Signatures(True, tuple(verified_signers(config.msps, signed)))


def _code_before_policy(
    transaction: Transaction, signed: _Signatures, is_known: Callable[[str], bool]
) -> int:
    if transaction.fault_before_signature:
        return transaction.fault_before_signature
    if not signed.creator_holds:
        return peer_pb2.BAD_CREATOR_SIGNATURE
    if transaction.fault_before_duplicate:
        return transaction.fault_before_duplicate
    if transaction.type == common_pb2.CONFIG:
        return VALID
    if is_known(transaction.id):
        return peer_pb2.DUPLICATE_TXID
    return transaction.fault_before_policy


def _successor(number: int, transaction: Transaction, config: ChannelConfig) -> ChannelConfig:
    try:
        envelope = parse(common_pb2.ConfigEnvelope, transaction.config, "the configuration")
        return config.validate(envelope)
    except (WireError, ConfigError) as error:
        raise BlockError(
            f"block {number} holds a configuration that the channel's members did not allow: "
            f"{error}. The ordering nodes are faulty or hostile; do not go on with this block."
        ) from error


def _mark_duplicates(transactions: Sequence[Transaction], codes: bytearray) -> None:
    """An id counts against later transactions of the block once a valid one has used it."""
    seen: set[str] = set()
    for transaction in transactions:
        if codes[transaction.index] == VALID and transaction.type != common_pb2.CONFIG:
            if transaction.id in seen:
                codes[transaction.index] = peer_pb2.DUPLICATE_TXID
            seen.add(transaction.id)


def _writes(transaction: Transaction) -> Sequence[NamespaceSet]:
    """A transaction's sets; those of a configuration transaction store the configuration."""
    if transaction.type != common_pb2.CONFIG:
        return transaction.namespaces
    public = kvrwset_pb2.KVRWSet(
        writes=[kvrwset_pb2.KVWrite(key=CONFIG_KEY, value=transaction.config)]
    )
    return [NamespaceSet("", public, ())]


# --- policies --------------------------------------------------------------------------------


def _policy_code(
    transaction: Transaction,
    signers: Sequence[Identity],
    judge: Judge,
    policies: Policies,
    moved: set[Key],
) -> int:
    """VALID, or the code of the first namespace whose policy is not met.

    `moved` holds keys whose own policy an earlier transaction of the block changes. They may not
    be written any more in this block, whoever endorsed it, since who may is only known after it.
    """
    for name in transaction.written:
        policy = policies.namespace(name)
        if policy is None:
            return peer_pb2.INVALID_CHAINCODE
        namespace = next((n for n in transaction.namespaces if n.name == name), None)
        check = _NamespaceCheck(name, policy, signers, judge, policies, moved)
        if not check.passes(namespace):
            return peer_pb2.ENDORSEMENT_POLICY_FAILURE
        if namespace is not None:
            moved.update(_policy_changes(namespace))
    return VALID


def _policy_changes(namespace: NamespaceSet) -> Iterable[Key]:
    for write in namespace.public.metadata_writes:
        yield namespace.name, "", write.key
    for collection in namespace.collections:
        for hashed in collection.hashed.metadata_writes:
            yield namespace.name, collection.name, hashed.key_hash


class _NamespaceCheck:
    """Whether a transaction's signers may write what it writes in one namespace."""

    def __init__(
        self,
        name: str,
        policy: bytes,
        signers: Sequence[Identity],
        judge: Judge,
        policies: Policies,
        moved: set[Key],
    ) -> None:
        self._name = name
        self._policy = policy
        self._signers = signers
        self._judge = judge
        self._policies = policies
        self._moved = moved
        # Names of the collections whose policy was met, "" for the contract's own.
        self._met: set[str] = set()
        self._key_policy_met = False

    def passes(self, namespace: NamespaceSet | None) -> bool:
        """Check every written key; where none is, the contract's policy."""
        if namespace is not None:
            public = namespace.public
            keys = [write.key for write in public.writes]
            keys += [metadata.key for metadata in public.metadata_writes]
            if not all(self._key_passes(key) for key in keys):
                return False
            for collection in namespace.collections:
                hashes = [write.key_hash for write in collection.hashed.hashed_writes]
                hashes += [metadata.key_hash for metadata in collection.hashed.metadata_writes]
                if not all(self._hash_passes(collection.name, one) for one in hashes):
                    return False
        return bool(self._met) or self._key_policy_met or self._contract_passes()

    def _key_passes(self, key: str) -> bool:
        if (self._name, "", key) in self._moved:
            return False
        own = self._policies.key(self._name, key)
        return self._own_passes(own) if own else self._contract_passes()

    def _hash_passes(self, collection: str, key_hash: bytes) -> bool:
        if (self._name, collection, key_hash) in self._moved:
            return False
        policy = self._policies.collection(self._name, collection)
        if policy is None:
            return False  # no such collection
        own = self._policies.hashed_key(self._name, collection, key_hash)
        if own:
            return self._own_passes(own)
        if collection in self._met:
            return True
        if not policy:
            return self._contract_passes()
        if not self._judge.satisfied(policy, self._signers):
            return False
        self._met.add(collection)
        return True

    def _own_passes(self, policy: bytes) -> bool:
        if not self._judge.key_satisfied(policy, self._signers):
            return False
        self._key_policy_met = True
        return True

    def _contract_passes(self) -> bool:
        if "" not in self._met:
            if not self._judge.satisfied(self._policy, self._signers):
                return False
            self._met.add("")
        return True
