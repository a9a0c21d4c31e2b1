"""Private data on its way between the peers of a collection's members.

Blocks hold hashes; the values themselves go from peer to peer by one service at the listener for
nodes (mutual TLS), in three ways:

* **Push.** Before an endorser answers, it sends what a transaction writes to a collection to other
  members' peers: up to `maxPeerCount` of them, and `requiredPeerCount` must have acknowledged.
  They keep it in their transient store.
* **Pull.** Before a block is committed, what this peer should keep of it and was never sent is
  asked of those who endorsed it, then of other members, for `pull_retry_s` at most. Then the block
  is committed without it (`Ledger.missing_private`).
* **Reconciliation**, see `reconciliation`, asks for the rest later.

Whoever asks is told what the member policy of a collection allows: of the collection as it is now,
or as it was at the block. Every request is signed by the peer's own identity and names the TLS
certificate that it came under, so that nobody can pass on another's request as its own. What
arrives counts only if it has the hash that the block holds.
(Rules: Fabric gossip/privdata, core/common/privdata.)
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import random
import re
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from consortium.identity.msp import Identity, IdentityError, check_not_expired
from consortium.identity.policies import PolicyError, SignaturePolicy
from consortium.identity.signing import Signer
from consortium.ledger.lifecycle import Policies, implicit_organization, member_organizations
from consortium.ledger.mvcc import Space
from consortium.ledger.private_data import PrivateDataError, PrivatePlace, WantedSet
from consortium.ledger.state import LedgerError, StateView
from consortium.storage.environment import StorageError
from consortium.wire import gossip_pb2, gridledger_pb2, kvrwset_pb2, peer_pb2, rwset_pb2, services
from consortium.wire.envelopes import WireError, parse

from .channel import ChannelPeer
from .discovery import Admit, Member, OtherPeers

_LOGGER = logging.getLogger(__name__)

PRIVATE_DATA_FILE = "private-data.json"
MAX_CALLS = 64
"""Requests served at once; each may hold as much as a push."""
MAX_SET_BYTES = 16 * 1024 * 1024
"""A private write set; no transaction may write more."""
MAX_PAYLOADS = 100
"""Write sets of a push."""
MAX_DIGESTS = 100
"""Write sets asked for at once."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""What one answer holds; whoever asked asks again for the rest."""
PULL_TIMEOUT_S = 5.0
"""How long one peer may take to answer."""
PULL_PAUSE_S = 0.2
AVOID_S = 60.0
"""A peer that sent wrong data isn't asked for so long."""
HOPELESS_S = 10.0
"""After nobody had what a block lacks, members are asked only once a block for so long, and may
take `HOPELESS_TRY_S`."""
HOPELESS_TRY_S = 0.5
_TRANSACTION_ID = re.compile(r"[0-9a-f]{64}")

type Config = peer_pb2.StaticCollectionConfig


class DistributionError(Exception):
    """Too few members' peers took what a transaction writes; the proposal fails with this."""


class RequestRefused(Exception):
    """What a node asks for and does not get, as a gRPC status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class SettingsError(Exception):
    """Settings that cannot be used; the sentence says which."""


@dataclass(frozen=True, slots=True)
class PrivateDataSettings:
    """What a peer's operator decides, by `private-data.json` in the peer's folder."""

    implicit_required_peers: int = 0
    """How many other peers of its own organization must acknowledge what goes into the
    organization's implicit collection (Fabric's implicitCollectionDisseminationPolicy)."""
    implicit_maximum_peers: int = 1
    """To how many it is sent."""
    push_timeout_s: float = 3.0
    """How long a peer may take to acknowledge (Fabric's pushAckTimeout)."""
    pull_retry_s: float = 5.0
    """How long a block may wait for private data (Fabric's pullRetryThreshold, 60 s there)."""
    reconcile_s: float = 60.0
    """The longest pause between two attempts to get what is missing."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file, defaults where there is none; raises SettingsError."""
        try:
            stored = json.loads(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except ValueError as error:
            raise SettingsError(f"{path} is not valid JSON: {error}") from None
        known = {field.name: field.type for field in fields(cls)}
        if not isinstance(stored, dict) or not stored.keys() <= known.keys():
            raise SettingsError(f"{path} must be a JSON object with some of {', '.join(known)}")
        for name, value in stored.items():
            kinds = (int,) if known[name] in (int, "int") else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or not 0 <= value <= 3600:
                raise SettingsError(f"{path}: {name} is {value!r}, but must be 0 to 3600")
        settings = cls(**{**asdict(cls()), **stored})
        if settings.implicit_maximum_peers < settings.implicit_required_peers:
            raise SettingsError(
                f"{path}: implicit_maximum_peers ({settings.implicit_maximum_peers}) is less than "
                f"implicit_required_peers ({settings.implicit_required_peers})"
            )
        return settings


@dataclass(frozen=True, slots=True)
class Caller:
    """A node that asks for something, and the channel that it asks about."""

    channel: ChannelPeer
    identity: Identity

    def __str__(self) -> str:
        return f"{self.identity.common_name} of {self.identity.msp_id}"


class PrivateExchange:
    """Both sides of the service, for all channels of a peer. `clock` gives epoch seconds."""

    def __init__(
        self,
        channels: dict[str, ChannelPeer],
        signer: Signer,
        peers: OtherPeers,
        settings: PrivateDataSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings or PrivateDataSettings()
        self._channels = channels
        self._signer = signer
        self._peers = peers
        self._clock = clock
        self._calls = 0
        self._avoided: dict[bytes, float] = {}
        self._hopeless: dict[tuple[str, Space], float] = {}

    # --- who belongs to a collection ---

    def collection_configs(
        self, view: StateView, channel: ChannelPeer, spaces: Iterable[Space]
    ) -> dict[Space, Config]:
        """The configurations of collections; raises DistributionError for one that is unknown."""
        policies = Policies(view, channel.ledger.config)
        configs = {}
        for space in spaces:
            config = policies.collection_config(*space)
            if config is None:
                raise DistributionError(
                    f"could not find collection access policy for {space[0]} and collection "
                    f"{space[1]}: the contract's definition has none"
                )
            if implicit_organization(space[1]) == self._signer.msp_id:
                config.required_peer_count = self.settings.implicit_required_peers
                config.maximum_peer_count = self.settings.implicit_maximum_peers
            configs[space] = config
        return configs

    def keeps(self, config: Config) -> bool:
        """Whether this peer's organization belongs to a collection."""
        return self._signer.msp_id in member_organizations(config)

    def _members(
        self, channel: ChannelPeer, known: Iterable[Member], configs: Iterable[Config | None]
    ) -> list[Member]:
        """Peers whose identity satisfies one of these configurations' member policies."""
        found = []
        policies = _policies(configs)
        for member in known:
            try:
                identity = channel.ledger.config.msps.identity(member.peer.identity)
            except IdentityError:
                continue  # the configuration has changed since it answered
            if any(policy.satisfied_by([identity]) for policy in policies):
                found.append(member)
        return found

    # --- push ---

    async def distribute(
        self,
        channel: ChannelPeer,
        transaction_id: str,
        private: rwset_pb2.TxPvtReadWriteSet,
        configs: Mapping[Space, Config],
        height: int,
    ) -> None:
        """Send what a transaction writes to other members' peers; raises DistributionError.

        Where this peer's own organization is no member, it keeps nothing, so that at least one
        member's peer has to take it.
        """
        known = await self._peers.known(channel)
        sends = []
        for namespace in private.ns_pvt_rwset:
            for collection in namespace.collection_pvt_rwset:
                config = configs[namespace.namespace, collection.collection_name]
                payload = gossip_pb2.PrivatePayload(
                    namespace=namespace.namespace,
                    collection_name=collection.collection_name,
                    tx_id=transaction_id,
                    private_rwset=collection.rwset,
                    private_sim_height=height,
                )
                sends.append(self._disseminate(channel, known, payload, config))
        results = await asyncio.gather(*sends, return_exceptions=True)
        for result in results:
            if isinstance(result, DistributionError):
                raise DistributionError(
                    f"failed to distribute private collection, txID {transaction_id}, channel "
                    f"{channel.channel_id}: {result}"
                )
            if isinstance(result, BaseException):
                raise result

    async def _disseminate(
        self,
        channel: ChannelPeer,
        known: Sequence[Member],
        payload: gossip_pb2.PrivatePayload,
        config: Config,
    ) -> None:
        least = 0 if self.keeps(config) else 1
        required = max(config.required_peer_count, least)
        maximum = max(config.maximum_peer_count, required)
        eligible = self._members(channel, known, [config])
        where = f"chaincode {payload.namespace} and collection {payload.collection_name}"
        if len(eligible) < required:
            raise DistributionError(
                f"could not build private data dissemination plan for {where}: required to "
                f"disseminate to at least {required} peers, but know of only {len(eligible)} "
                "eligible peers"
            )
        # Peers that answer in place of one that did not are asked as long as some are required.
        waiting = _across_organizations(eligible)
        push = gridledger_pb2.PrivateDataPush(payloads=[payload])
        acknowledged, problems, chosen = 0, list[str](), maximum
        while waiting and chosen > 0:
            targets, waiting = waiting[:chosen], waiting[chosen:]
            answers = await asyncio.gather(*(self._push(channel, to, push) for to in targets))
            problems += [answer for answer in answers if answer]
            acknowledged += sum(not answer for answer in answers)
            chosen = required - acknowledged
        if acknowledged < required:
            raise DistributionError(
                f"Failed disseminating {required - acknowledged} out of {required} private "
                f"dissemination plans for {where}: {'; '.join(problems)}"
            )

    async def _push(
        self, channel: ChannelPeer, member: Member, push: gridledger_pb2.PrivateDataPush
    ) -> str:
        """Send to one peer; empty, or why it did not work."""
        request = gridledger_pb2.PrivateDataRequest(push=push)
        try:
            await self._call(
                channel, member, services.PRIVATE_PUSH, request, self.settings.push_timeout_s
            )
        except grpc.aio.AioRpcError as error:
            _LOGGER.info("peer %s did not take private data: %s", member.address, error.details())
            return f"peer {member.address} of {member.msp_id}: {error.details()}"
        return ""

    async def _call(
        self,
        channel: ChannelPeer,
        member: Member,
        path: str,
        content: gridledger_pb2.PrivateDataRequest,
        timeout_s: float,
    ) -> bytes:
        """Sign a request for the connection to a peer, and send it; raises AioRpcError."""
        connection = self._peers.connection(channel, member)
        content.channel_id = channel.channel_id
        content.tls_certificate_hash = certificate_hash(connection.certificate)
        payload = content.SerializeToString()
        request = gridledger_pb2.NodeRequest(
            payload=payload,
            identity=self._signer.serialized,
            signature=self._signer.sign(payload),
        ).SerializeToString()
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.channel.unary_unary(path)
        return await call(request, timeout=timeout_s)

    # --- pull ---

    async def fetch(
        self, channel: ChannelPeer, wanted: Sequence[WantedSet]
    ) -> dict[PrivatePlace, bytes]:
        """Ask endorsers, then other members, for what a block needs; gives up after a while.

        What has not the hash that the block holds is left for reconciliation, which knows about
        purged keys.
        """
        groups: dict[Space, list[WantedSet]] = {}
        for one in wanted:
            groups.setdefault((one.place.namespace, one.place.collection), []).append(one)
        found: dict[PrivatePlace, bytes] = {}
        # Where one fails as the peer stops, `gather` would take the end from whoever waits here.
        async with asyncio.TaskGroup() as asking:
            for space, sets in groups.items():
                asking.create_task(self._fetch_space(channel, space, sets, found))
        if len(found) < len(wanted):
            _LOGGER.warning(
                "block %d is committed without %d of %d private write sets: nobody who answered "
                "has them yet; they will be asked for again",
                wanted[0].place.block,
                len(wanted) - len(found),
                len(wanted),
            )
        return found

    async def _fetch_space(
        self,
        channel: ChannelPeer,
        space: Space,
        sets: Sequence[WantedSet],
        found: dict[PrivatePlace, bytes],
    ) -> None:
        hopeless = time.monotonic() < self._hopeless.get((channel.channel_id, space), 0.0)
        limit_s = min(self.settings.pull_retry_s, HOPELESS_TRY_S if hopeless else float("inf"))
        missing = {one.place: one for one in sets}
        endorsers = {endorser for one in sets for endorser in one.endorsers}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while missing:
                    for member in await self._sources(channel, space, None, endorsers):
                        await self._take(channel, member, missing, found)
                        if not missing:
                            break
                    if hopeless:
                        break
                    await asyncio.sleep(PULL_PAUSE_S if missing else 0)
        if missing:
            self._hopeless[channel.channel_id, space] = time.monotonic() + HOPELESS_S

    async def _take(
        self,
        channel: ChannelPeer,
        member: Member,
        missing: dict[PrivatePlace, WantedSet],
        found: dict[PrivatePlace, bytes],
    ) -> None:
        """Ask one peer for all that is missing, and take what is right of it."""
        asked = [(one.place, one.transaction_id) for one in missing.values()]
        for at in range(0, len(asked), MAX_DIGESTS):
            answer = await self.ask(channel, member, asked[at : at + MAX_DIGESTS])
            for place, sets in answer.items():
                one = missing.get(place)
                if one is None:
                    continue
                for data in sets:
                    if hashlib.sha256(data).digest() == one.expected.private_hash:
                        found[place] = data
                        del missing[place]
                        break
                else:
                    if sets and not any(_only_expected(data, one) for data in sets):
                        self.distrust(member, f"the private write set of {place}")

    async def _sources(
        self, channel: ChannelPeer, space: Space, number: int | None, first: Iterable[bytes] = ()
    ) -> list[Member]:
        """Whom to ask for a collection's data: `first` (identities), then others at random.

        Members count as the collection is now, and with `number` as it was at that block.
        """

        def configs() -> list[Config | None]:
            with channel.ledger.view() as view:
                now = Policies(view, channel.ledger.config).collection_config(*space)
            then = None if number is None else channel.ledger.collection_at(*space, number)
            return [now, then]

        known = await self._peers.known(channel)
        members = self._members(channel, known, await asyncio.to_thread(configs))
        now = time.monotonic()
        members = [m for m in members if self._avoided.get(m.peer.identity, 0.0) <= now]
        random.shuffle(members)
        preferred = set(first)
        return sorted(members, key=lambda member: member.peer.identity not in preferred)

    def distrust(self, member: Member, what: str) -> None:
        """Say in the log who sent wrong data, and leave that peer alone for a while."""
        _LOGGER.warning(
            "peer %s of %s sent %s with values that are not those of the block; it is ignored and "
            "not asked again for %g s",
            member.address,
            member.msp_id,
            what,
            AVOID_S,
        )
        self._avoided[member.peer.identity] = time.monotonic() + AVOID_S

    async def sources(self, channel: ChannelPeer, space: Space, number: int) -> list[Member]:
        """Whom to ask for a collection's data of a block that is committed."""
        return await self._sources(channel, space, number)

    async def ask(
        self,
        channel: ChannelPeer,
        member: Member,
        wanted: Sequence[tuple[PrivatePlace, str]],
    ) -> dict[PrivatePlace, list[bytes]]:
        """What a peer has of some places (with transaction ids), unchecked; nothing if it fails."""
        places = {place for place, _ in wanted}
        pull = gossip_pb2.RemotePvtDataRequest(
            digests=[
                gossip_pb2.PvtDataDigest(
                    tx_id=transaction_id,
                    namespace=place.namespace,
                    collection=place.collection,
                    block_seq=place.block,
                    seq_in_block=place.tx,
                )
                for place, transaction_id in wanted
            ]
        )
        request = gridledger_pb2.PrivateDataRequest(pull=pull)
        try:
            raw = await self._call(channel, member, services.PRIVATE_PULL, request, PULL_TIMEOUT_S)
            response = parse(
                gossip_pb2.RemotePvtDataResponse, raw, f"the answer of {member.address}"
            )
            answered = {_place(one.digest): list(one.payload) for one in response.elements}
        except grpc.aio.AioRpcError as error:
            _LOGGER.info("peer %s gave no private data: %s", member.address, error.details())
            return {}
        except WireError as error:
            self.distrust(member, f"an answer that cannot be read ({error})")
            return {}
        return {place: sets for place, sets in answered.items() if place in places}

    # --- serving ---

    def handler(self, admit: Admit) -> grpc.GenericRpcHandler:
        """The service for the listener for nodes; `admit` as for the endorser."""

        def serve(
            call: Callable[[Caller, gridledger_pb2.PrivateDataRequest], bytes],
        ) -> grpc.RpcMethodHandler[bytes, bytes]:
            async def answer(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
                certificate = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
                if self._calls >= MAX_CALLS:
                    await context.abort(
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        f"this peer serves {MAX_CALLS} requests for private data at once, which "
                        "is its limit; try again in a second",
                    )
                self._calls += 1
                try:
                    admit(certificate)
                    return await asyncio.to_thread(self._serve, call, raw, certificate)
                except RequestRefused as refused:
                    _LOGGER.info("private data: %s", refused)
                    await context.abort(refused.code, str(refused))
                except IdentityError as error:
                    await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
                except WireError as error:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
                except PrivateDataError as error:
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
                except (LedgerError, StorageError) as error:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
                finally:
                    self._calls -= 1

            return grpc.unary_unary_rpc_method_handler(answer)

        return grpc.method_handlers_generic_handler(
            "gridledger.PrivateData",
            {"Push": serve(self._take_push), "Pull": serve(self._answer_pull)},
        )

    def _serve(
        self,
        call: Callable[[Caller, gridledger_pb2.PrivateDataRequest], bytes],
        raw: bytes,
        certificate_pem: bytes,
    ) -> bytes:
        signed = parse(gridledger_pb2.NodeRequest, raw, "the request")
        request = parse(gridledger_pb2.PrivateDataRequest, signed.payload, "the request's payload")
        channel = self._channels.get(request.channel_id)
        if channel is None:
            raise RequestRefused(
                grpc.StatusCode.NOT_FOUND, f"this peer has not joined channel {request.channel_id}"
            )
        config = channel.ledger.config
        identity = config.msps.identity(signed.identity)
        caller = Caller(channel, identity)
        if identity.role not in ("peer", "") or identity.msp_id not in config.application_orgs:
            raise IdentityError(f"{caller} is no peer of the channel's members")
        if not identity.verify(signed.signature, signed.payload):
            raise IdentityError(f"the signature of {caller} over its request does not hold")
        check_not_expired(identity, self._clock())
        if request.tls_certificate_hash != certificate_hash(certificate_pem):
            raise IdentityError(
                f"{caller} signed this request for another connection than the one it came by"
            )
        return call(caller, request)

    def _take_push(self, caller: Caller, request: gridledger_pb2.PrivateDataRequest) -> bytes:
        """Keep what another endorser simulated, if this organization is to have it."""
        payloads = request.push.payloads
        _check_count(len(payloads), MAX_PAYLOADS, "private write sets in a push")
        ledger = caller.channel.ledger
        with ledger.view() as view:
            policies = Policies(view, ledger.config)
            for one in payloads:
                if not _TRANSACTION_ID.fullmatch(one.tx_id):
                    raise WireError(f"{one.tx_id[:80]!r} is no transaction id")
                if len(one.private_rwset) > MAX_SET_BYTES:
                    raise RequestRefused(
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        f"a private write set of {len(one.private_rwset)} bytes is too large; "
                        f"{MAX_SET_BYTES} are allowed",
                    )
                parse(kvrwset_pb2.KVRWSet, one.private_rwset, "the private write set")
                config = policies.collection_config(one.namespace, one.collection_name)
                if config is None:
                    raise RequestRefused(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        f"collection {one.collection_name[:80]} of {one.namespace[:80]} is not "
                        f"defined at height {ledger.height} of this peer",
                    )
                if not self.keeps(config):
                    raise RequestRefused(
                        grpc.StatusCode.PERMISSION_DENIED,
                        f"{self._signer.msp_id} is no member of collection {one.collection_name} "
                        f"of {one.namespace}, so its peers keep nothing of it",
                    )
        for one in payloads:
            if ledger.transaction(one.tx_id) is not None:
                continue  # committed already: what is missing of it is reconciled
            kept = rwset_pb2.TxPvtReadWriteSet(
                data_model=rwset_pb2.TxReadWriteSet.KV,
                ns_pvt_rwset=[
                    rwset_pb2.NsPvtReadWriteSet(
                        namespace=one.namespace,
                        collection_pvt_rwset=[
                            rwset_pb2.CollectionPvtReadWriteSet(
                                collection_name=one.collection_name, rwset=one.private_rwset
                            )
                        ],
                    )
                ],
            )
            # Our height, not the one that the sender names, so that it goes in time.
            ledger.store_transient(
                one.tx_id, kept.SerializeToString(), ledger.height, caller.identity.msp_id
            )
        return gridledger_pb2.PrivateDataPushed().SerializeToString()

    def _answer_pull(self, caller: Caller, request: gridledger_pb2.PrivateDataRequest) -> bytes:
        """Give a member what this peer has of the collection; raises RequestRefused to others."""
        digests = request.pull.digests
        _check_count(len(digests), MAX_DIGESTS, "private write sets in a request")
        ledger = caller.channel.ledger
        response = gossip_pb2.RemotePvtDataResponse()
        size = 0
        for digest in digests:
            place = _place(digest)
            committed = place.block < ledger.height
            self._check_member(caller, place, committed)
            if committed:
                stored = ledger.private_set(place)
                payload = [] if stored is None else [stored]
            else:
                payload = ledger.waiting_sets(digest.tx_id, place.namespace, place.collection)
            size += sum(map(len, payload))
            if size > MAX_ANSWER_BYTES and response.elements:
                break
            if payload:
                response.elements.add(digest=digest, payload=payload)
        return response.SerializeToString()

    def _check_member(self, caller: Caller, place: PrivatePlace, committed: bool) -> None:
        ledger = caller.channel.ledger
        with ledger.view() as view:
            space = (place.namespace, place.collection)
            configs = [Policies(view, ledger.config).collection_config(*space)]
        if committed:
            configs.append(ledger.collection_at(*space, place.block))
        if not any(policy.satisfied_by([caller.identity]) for policy in _policies(configs)):
            raise RequestRefused(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{caller} does not belong to collection {place.collection[:80]} of "
                f"{place.namespace[:80]}, neither now nor at block {place.block}",
            )


def spaces(private: rwset_pb2.TxPvtReadWriteSet) -> list[Space]:
    """The collections that a transaction writes to."""
    return [
        (namespace.namespace, collection.collection_name)
        for namespace in private.ns_pvt_rwset
        for collection in namespace.collection_pvt_rwset
    ]


def part_of(
    private: rwset_pb2.TxPvtReadWriteSet, wanted: Container[Space]
) -> rwset_pb2.TxPvtReadWriteSet:
    """What a transaction writes to some collections, and nothing else."""
    kept = rwset_pb2.TxPvtReadWriteSet(data_model=private.data_model)
    for namespace in private.ns_pvt_rwset:
        collections = [
            collection
            for collection in namespace.collection_pvt_rwset
            if (namespace.namespace, collection.collection_name) in wanted
        ]
        if collections:
            kept.ns_pvt_rwset.add(namespace=namespace.namespace, collection_pvt_rwset=collections)
    return kept


def certificate_hash(pem: bytes) -> bytes:
    """SHA-256 of a certificate's DER; raises IdentityError for what is none."""
    try:
        der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    except ValueError:
        raise IdentityError("private data is for peers that show a TLS certificate") from None
    return hashlib.sha256(der).digest()


def _policies(configs: Iterable[Config | None]) -> list[SignaturePolicy]:
    found = []
    for config in configs:
        if config is not None:
            try:
                found.append(SignaturePolicy(config.member_orgs_policy.signature_policy))
            except PolicyError:
                continue  # nobody belongs to what cannot be read
    return found


def _across_organizations(members: Sequence[Member]) -> list[Member]:
    """One of each organization first, in random order, then the rest."""
    shuffled = random.sample(members, len(members))
    first: dict[str, Member] = {}
    for member in shuffled:
        first.setdefault(member.msp_id, member)
    chosen = list(first.values())
    return chosen + [member for member in shuffled if member not in chosen]


def _place(digest: gossip_pb2.PvtDataDigest) -> PrivatePlace:
    if digest.block_seq >= 2**63 or digest.seq_in_block >= 2**32:
        raise WireError(
            f"there is no transaction {digest.seq_in_block} in a block {digest.block_seq}"
        )
    return PrivatePlace(digest.block_seq, digest.seq_in_block, digest.namespace, digest.collection)


def _only_expected(data: bytes, wanted: WantedSet) -> bool:
    """Whether a write set holds nothing but expected values: its sender may have purged others."""
    try:
        writes = parse(kvrwset_pb2.KVRWSet, data, "the private write set").writes
    except WireError:
        return False
    expected = {one.key_hash: one.value_hash for one in wanted.expected.hashed.hashed_writes}
    return all(
        expected.get(hashlib.sha256(write.key.encode()).digest())
        == (hashlib.sha256(write.value).digest() if write.value else b"")
        for write in writes
    )


def _check_count(count: int, limit: int, what: str) -> None:
    if not 1 <= count <= limit:
        raise RequestRefused(
            grpc.StatusCode.INVALID_ARGUMENT, f"{count} {what}: 1 to {limit} are allowed"
        )
