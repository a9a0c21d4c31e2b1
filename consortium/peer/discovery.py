"""Fabric's `discovery.Discovery`: who is on a channel, who can endorse what, how it is configured.

Peers here do not gossip: whoever is to be found is among its organisation's anchor peers in the
channel's configuration, the second peer of an organisation too. What is said of another peer is
what that peer says of itself, in Fabric's own signed messages (AliveMessage and StateInfo): the
anchor peers are asked at their listener for nodes, and the answer is believed for `MEMBERS_S`. A
peer that does not answer is not listed.
(Rules: Fabric discovery/service.go, discovery/endorsement, discovery/support.)
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import grpc

from consortium.identity.msp import IdentityError, check_not_expired
from consortium.identity.policies import (
    Policy,
    PolicyError,
    PolicyNotFoundError,
    SignaturePolicy,
)
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.lifecycle import NAMESPACE as LIFECYCLE
from consortium.ledger.lifecycle import Policies, definitions, member_organizations
from consortium.ledger.state import LedgerError
from consortium.wire import (
    common_pb2,
    discovery_pb2,
    gossip_pb2,
    msp_pb2,
    peer_pb2,
    services,
)
from consortium.wire.envelopes import WireError, parse

from .channel import ChannelPeer
from .contracts import Contracts

_LOGGER = logging.getLogger(__name__)

MEMBERS_S = 2.0
"""For how long another peer's answer about itself is believed."""
KNOWN_S = 30.0
"""For how long it is good enough for those who cannot wait for a new one."""
ASK_TIMEOUT_S = 2.0
MAX_QUERIES = 50
"""Queries in a request, interests in a query, and chaincodes in an interest."""
MAX_LAYOUTS = 100
"""Ways to satisfy a policy that an answer lists; those that need the fewest peers come first."""
MAX_COMBINATIONS = 20_000
"""Sets of organisations that are tried for them."""

type Credentials = Callable[[bytes], grpc.ChannelCredentials]
type Admit = Callable[[bytes], None]


class DiscoveryError(Exception):
    """A query that has no answer; the sentence says why and goes to the client."""


class RequestRefused(Exception):
    """A request that cannot be read or names nobody; it fails as a whole."""


@dataclass(frozen=True, slots=True)
class Member:
    """A peer of a channel, and what it has signed about itself."""

    msp_id: str
    peer: discovery_pb2.Peer
    chaincodes: frozenset[str]
    address: str = ""
    """Its listener for nodes, empty for this peer itself."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection to another peer, and the TLS certificate (PEM) that it shows there."""

    channel: grpc.aio.Channel
    certificate: bytes


class OtherPeers:
    """The other peers of a channel, asked for what they say of themselves."""

    def __init__(
        self,
        signer: Signer,
        credentials: Credentials,
        address: str = "",
        certificate: Callable[[], bytes] = bytes,
    ) -> None:
        """`credentials` are for a node's TLS, given the roots to trust.

        `address` is this peer's own listener for nodes, as the channel's configuration names it;
        `certificate` gives the TLS certificate (PEM) that new connections show.
        """
        self._certificate = certificate
        self._signer = signer
        self._credentials = credentials
        self._address = address
        self._connections: dict[tuple[str, bytes], Connection] = {}
        self._known: dict[str, tuple[float, asyncio.Task[list[Member]]]] = {}
        self._answered: dict[str, dict[str, tuple[float, Member]]] = {}

    async def close(self) -> None:
        """Close the connections."""
        for _, task in self._known.values():
            task.cancel()
        for connection in self._connections.values():
            await connection.channel.close()

    async def of(self, channel: ChannelPeer) -> list[Member]:
        """Those who answer; who asks while others wait for the same waits with them."""
        now = time.monotonic()
        asked_at, task = self._known.get(channel.channel_id, (0.0, None))
        if task is None or now - asked_at > MEMBERS_S or task.cancelled():
            task = asyncio.create_task(self._ask_all(channel))
            self._known[channel.channel_id] = (now, task)
        return await asyncio.shield(task)

    async def known(self, channel: ChannelPeer) -> list[Member]:
        """Those who answered within `KNOWN_S`, without waiting for those who may answer now.

        Who is called at one of these addresses must reckon with nobody being there.
        """
        now = time.monotonic()
        asked_at, task = self._known.get(channel.channel_id, (-KNOWN_S, None))
        if now - asked_at > KNOWN_S or channel.channel_id not in self._answered:
            await self.of(channel)
        elif now - asked_at > MEMBERS_S and (task is None or task.done()):
            task = asyncio.create_task(self._ask_all(channel))
            self._known[channel.channel_id] = (now, task)
        answered = self._answered.get(channel.channel_id, {})
        return [member for at, member in answered.values() if now - at <= KNOWN_S]

    def connection(self, channel: ChannelPeer, member: Member) -> Connection:
        """The connection to a peer's listener for nodes."""
        return self._connect(
            member.address, channel.ledger.config.msps.tls_roots_pem(member.msp_id)
        )

    async def _ask_all(self, channel: ChannelPeer) -> list[Member]:
        config = channel.ledger.config
        asked = [
            self._ask(channel, msp_id, f"{host}:{port}", config.msps.tls_roots_pem(msp_id))
            for msp_id, anchors in config.anchor_peers.items()
            for host, port in anchors
            if f"{host}:{port}" != self._address
        ]
        answers = await asyncio.gather(*asked)
        found = [
            member
            for member in answers
            if member is not None and member.peer.identity != self._signer.serialized
        ]
        answered = self._answered.setdefault(channel.channel_id, {})
        answered |= {member.address: (time.monotonic(), member) for member in found}
        return found

    def _connect(self, address: str, roots: bytes) -> Connection:
        connection = self._connections.get((address, roots))
        if connection is None:
            channel = grpc.aio.secure_channel(
                address, self._credentials(roots), options=services.NODE_CHANNEL_OPTIONS
            )
            connection = self._connections[address, roots] = Connection(
                channel, self._certificate()
            )
        return connection

    async def _ask(
        self, channel: ChannelPeer, msp_id: str, address: str, roots: bytes
    ) -> Member | None:
        connection = self._connect(address, roots).channel
        payload = discovery_pb2.Request(
            authentication=discovery_pb2.AuthInfo(client_identity=self._signer.serialized),
            queries=[
                discovery_pb2.Query(
                    channel=channel.channel_id, peer_query=discovery_pb2.PeerMembershipQuery()
                )
            ],
        ).SerializeToString()
        request = discovery_pb2.SignedRequest(payload=payload, signature=self._signer.sign(payload))
        discover: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.unary_unary(
            services.DISCOVER
        )
        try:
            raw = await discover(request.SerializeToString(), timeout=ASK_TIMEOUT_S)
            response = parse(discovery_pb2.Response, raw, f"the answer of {address}")
            peers = response.results[0].members.peers_by_org[msp_id].peers
            if not peers:
                return None
            return replace(member_of(peers[0], msp_id, channel), address=address)
        except grpc.aio.AioRpcError as error:
            _LOGGER.info("peer %s does not say how it is: %s", address, error.details())
        except (WireError, IdentityError, IndexError) as error:
            _LOGGER.warning("peer %s says of itself what cannot be true: %s", address, error)
        return None


def member_of(peer: discovery_pb2.Peer, msp_id: str, channel: ChannelPeer) -> Member:
    """What a peer says of itself, checked: its certificate, its signatures, the channel.

    Raises WireError or IdentityError.
    """
    identity = channel.ledger.config.msps.identity(peer.identity)
    if identity.msp_id != msp_id or identity.role not in ("peer", ""):
        raise IdentityError(f"{identity.common_name} of {identity.msp_id} is no peer of {msp_id}")
    for envelope in (peer.membership_info, peer.state_info):
        if not identity.verify(envelope.signature, envelope.payload):
            raise IdentityError(f"a signature of {identity.common_name} does not hold")
    state = parse(gossip_pb2.GossipMessage, peer.state_info.payload, "the state information")
    pki_id = _pki_id(peer.identity)
    if state.state_info.channel_MAC != _channel_mac(pki_id, channel.channel_id):
        raise WireError("the state information is about another channel")
    alive = parse(gossip_pb2.GossipMessage, peer.membership_info.payload, "the alive message")
    if alive.alive_msg.membership.pki_id != pki_id:
        raise WireError("the alive message is about another peer")
    return Member(
        msp_id, peer, frozenset(one.name for one in state.state_info.properties.chaincodes)
    )


def _pki_id(serialized: bytes) -> bytes:
    identity = parse(msp_pb2.SerializedIdentity, serialized, "the identity")
    return hashlib.sha256(identity.mspid.encode() + identity.id_bytes).digest()


def _channel_mac(pki_id: bytes, channel_id: str) -> bytes:
    return hashlib.sha256(pki_id + channel_id.encode()).digest()


class Discovery:
    """The service. Without `others` it knows this peer alone, which is what other peers ask.

    `address` is where clients reach this peer, `clock` gives epoch seconds.
    """

    def __init__(
        self,
        channels: dict[str, ChannelPeer],
        signer: Signer,
        address: str,
        others: OtherPeers | None = None,
        clock: Callable[[], float] = time.time,
        contracts: Contracts | None = None,
    ) -> None:
        """Without `contracts` this peer says that it runs all that are defined."""
        self._channels = channels
        self._signer = signer
        self._address = address
        self._others = others
        # Peers are among a channel's readers, and most often not among its writers.
        self._policy = f"/Channel/Application/{'Readers' if others is None else 'Writers'}"
        self._clock = clock
        self._contracts = contracts
        self._started = time.time_ns()
        self._said = 0

    async def close(self) -> None:
        """Close the connections to the other peers."""
        if self._others is not None:
            await self._others.close()

    def handler(self, admit: Admit | None = None) -> grpc.GenericRpcHandler:
        """The service for a gRPC server; `admit` as for the endorser."""

        async def discover(raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            try:
                if admit is not None:
                    admit(next(iter(context.auth_context().get("x509_pem_cert", ())), b""))
            except IdentityError as error:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            try:
                return (await self.discover(raw)).SerializeToString()
            except (RequestRefused, WireError) as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

        return grpc.method_handlers_generic_handler(
            "discovery.Discovery", {"Discover": grpc.unary_unary_rpc_method_handler(discover)}
        )

    async def discover(self, raw: bytes) -> discovery_pb2.Response:
        """Answer a `SignedRequest`, query by query; raises WireError or RequestRefused."""
        signed = parse(discovery_pb2.SignedRequest, raw, "the signed request")
        request = parse(discovery_pb2.Request, signed.payload, "the request")
        if not request.HasField("authentication"):
            raise RequestRefused("access denied, no authentication info in request")
        if not request.authentication.client_identity:
            raise RequestRefused("access denied, client identity wasn't supplied")
        _check_limit(len(request.queries), "queries in a request")
        for query in request.queries:
            _check_limit(len(query.cc_query.interests), "interests in a query")
            for interest in (*query.cc_query.interests, query.peer_query.filter):
                _check_limit(len(interest.chaincodes), "chaincodes in an interest")
        response = discovery_pb2.Response()
        for query in request.queries:
            try:
                channel = self._authorize(query.channel, signed, request.authentication)
                response.results.append(await self._answer(query, channel))
            except (DiscoveryError, LedgerError) as error:
                response.results.add(error=discovery_pb2.Error(content=str(error)))
        return response

    def _authorize(
        self,
        channel_id: str,
        signed: discovery_pb2.SignedRequest,
        authentication: discovery_pb2.AuthInfo,
    ) -> ChannelPeer:
        """The channel asked about, or any for a query about this peer; raises DiscoveryError."""
        about_peer = not channel_id
        channel = (
            next(iter(self._channels.values()), None)
            if about_peer
            else self._channels.get(channel_id)
        )
        if channel is None:
            raise DiscoveryError("access denied")
        config = channel.ledger.config
        try:
            caller = config.msps.identity(authentication.client_identity)
            check_not_expired(caller, self._clock())
            allowed = caller.verify(signed.signature, signed.payload) and (
                caller.msp_id == self._signer.msp_id and caller.is_admin
                if about_peer
                else config.policy(self._policy).satisfied_by([caller])
            )
        except (IdentityError, PolicyNotFoundError) as error:
            _LOGGER.info("discovery on %r: %s", channel_id, error)
            allowed = False
        if not allowed:
            raise DiscoveryError("access denied")
        return channel

    async def _answer(
        self, query: discovery_pb2.Query, channel: ChannelPeer
    ) -> discovery_pb2.QueryResult:
        kind = query.WhichOneof("query")
        if (kind == "local_peers") == bool(query.channel):
            kind = None
        match kind:
            case "config_query":
                return discovery_pb2.QueryResult(config_result=_config(channel.ledger.config))
            case "peer_query":
                members = await self._members(channel)
                found = _eligible(members, query.peer_query.filter, channel, with_chaincode=True)
                return _membership(found)
            case "local_peers":
                return _membership(await self._members(channel), with_state=False)
            case "cc_query":
                return await self._endorsers(query.cc_query, channel)
            case _:
                raise DiscoveryError("unknown or missing request type")

    async def _endorsers(
        self, query: discovery_pb2.ChaincodeQuery, channel: ChannelPeer
    ) -> discovery_pb2.QueryResult:
        if not query.interests:
            raise DiscoveryError("chaincode query must have at least one chaincode interest")
        for interest in query.interests:
            if not interest.chaincodes:
                raise DiscoveryError("chaincode interest must contain at least one chaincode")
            if not all(call.name for call in interest.chaincodes):
                raise DiscoveryError("chaincode name in interest cannot be empty")
        members = await self._members(channel)
        result = discovery_pb2.ChaincodeQueryResult()
        for interest in query.interests:
            try:
                result.content.append(_descriptor(members, interest, channel))
            except DiscoveryError as error:
                names = ", ".join(call.name for call in interest.chaincodes)
                raise DiscoveryError(
                    f"failed constructing descriptor for {names}: {error}"
                ) from None
        return discovery_pb2.QueryResult(cc_query_res=result)

    async def _members(self, channel: ChannelPeer) -> list[Member]:
        others = await self._others.of(channel) if self._others is not None else []
        return [self._myself(channel), *others]

    def _myself(self, channel: ChannelPeer) -> Member:
        self._said += 1
        now = gossip_pb2.PeerTime(inc_num=self._started, seq_num=self._said)
        pki_id = _pki_id(self._signer.serialized)
        if self._contracts is not None:
            listed = [one.definition for one in self._contracts.runnable(channel.ledger)]
        else:
            with channel.ledger.view() as view:
                listed = list(definitions(view))
        chaincodes = [gossip_pb2.Chaincode(name=one.name, version=one.version) for one in listed]
        alive = gossip_pb2.GossipMessage(
            tag=gossip_pb2.GossipMessage.EMPTY,
            alive_msg=gossip_pb2.AliveMessage(
                membership=gossip_pb2.Member(endpoint=self._address, pki_id=pki_id),
                timestamp=now,
            ),
        )
        state = gossip_pb2.GossipMessage(
            tag=gossip_pb2.GossipMessage.CHAN_OR_ORG,
            state_info=gossip_pb2.StateInfo(
                timestamp=now,
                pki_id=pki_id,
                channel_MAC=_channel_mac(pki_id, channel.channel_id),
                properties=gossip_pb2.Properties(
                    ledger_height=channel.ledger.height, chaincodes=chaincodes
                ),
            ),
        )
        peer = discovery_pb2.Peer(
            identity=self._signer.serialized,
            membership_info=self._signed(alive),
            state_info=self._signed(state),
        )
        names = frozenset(chaincode.name for chaincode in chaincodes)
        return Member(self._signer.msp_id, peer, names)

    def _signed(self, message: gossip_pb2.GossipMessage) -> gossip_pb2.Envelope:
        payload = message.SerializeToString()
        return gossip_pb2.Envelope(payload=payload, signature=self._signer.sign(payload))


def _check_limit(count: int, what: str) -> None:
    if count > MAX_QUERIES:
        raise RequestRefused(f"{count} {what} are too many; {MAX_QUERIES} are allowed")


def _membership(members: Iterable[Member], *, with_state: bool = True) -> discovery_pb2.QueryResult:
    result = discovery_pb2.PeerMembershipResult()
    for member in members:
        shown = result.peers_by_org[member.msp_id].peers.add()
        shown.CopyFrom(member.peer)
        if not with_state:
            shown.ClearField("state_info")
    return discovery_pb2.QueryResult(members=result)


def _config(config: ChannelConfig) -> discovery_pb2.ConfigResult:
    result = discovery_pb2.ConfigResult()
    for group in config.config.channel_group.groups.values():
        for organization in group.groups.values():
            definition = msp_pb2.MSPConfig.FromString(organization.values["MSP"].value)
            msp = msp_pb2.FabricMSPConfig.FromString(definition.config)
            result.msps[msp.name].CopyFrom(msp)
    for msp_id, addresses in config.orderer.endpoints.items():
        endpoints = result.orderers[msp_id].endpoint
        for address in addresses:
            host, _, port = address.rpartition(":")
            if port.isdecimal():  # nobody can connect to what the configuration misspells
                endpoints.add(host=host.strip("[]"), port=int(port))
    return result


# ----------------------------------------------------------------------------- who can endorse


def _eligible(
    members: Sequence[Member],
    interest: peer_pb2.ChaincodeInterest,
    channel: ChannelPeer,
    *,
    with_chaincode: bool,
) -> list[Member]:
    """Peers that may see what an interest reads; with `with_chaincode` those that have it all.

    Raises DiscoveryError for a chaincode or a collection that isn't defined.
    """
    wanted = {call.name for call in interest.chaincodes} - {LIFECYCLE}
    allowed = {member.msp_id for member in members}
    with channel.ledger.view() as view:
        lookup = Policies(view, channel.ledger.config)
        for call in interest.chaincodes:
            if call.name in wanted and lookup.definition(call.name) is None:
                raise DiscoveryError(
                    f"No metadata was found for chaincode {call.name} in channel "
                    f"{channel.channel_id}"
                )
            for collection in call.collection_names:
                config = lookup.collection_config(call.name, collection)
                if config is None:
                    raise DiscoveryError(
                        f"collection {collection} doesn't exist in collection config for "
                        f"chaincode {call.name}"
                    )
                if not call.no_private_reads:
                    allowed &= member_organizations(config)
    return [
        member
        for member in members
        if member.msp_id in allowed and (not with_chaincode or wanted <= member.chaincodes)
    ]


def _policies(interest: peer_pb2.ChaincodeInterest, channel: ChannelPeer) -> list[Policy]:
    """The policies that endorsements of an interest must satisfy, all of them."""
    config = channel.ledger.config
    required: dict[bytes, None] = {}
    policies: list[Policy] = []
    with channel.ledger.view() as view:
        lookup = Policies(view, config)
        for call in interest.chaincodes:
            namespace = lookup.namespace(call.name)
            found = [lookup.collection(call.name, name) for name in call.collection_names]
            if not call.disregard_namespace_policy:
                found.append(namespace)
            elif not found and not call.key_policies:
                raise DiscoveryError(
                    f"requested to disregard chaincode {call.name}'s policy but key and collection "
                    "policies are missing, either disable DisregardNamespacePolicy or specify at "
                    "least one key policy or at least one collection policy"
                )
            for policy in found:
                if policy is None:
                    raise DiscoveryError("policy not found")
                required[policy] = None
            policies += [_key_policy(policy) for policy in call.key_policies]
    try:
        return [config.application_policy(policy) for policy in required] + policies
    except (PolicyError, PolicyNotFoundError) as error:
        raise DiscoveryError(str(error)) from None


def _key_policy(envelope: common_pb2.SignaturePolicyEnvelope) -> Policy:
    try:
        return SignaturePolicy(envelope)
    except PolicyError as error:
        raise DiscoveryError(f"a key policy cannot be used: {error}") from None


def _descriptor(
    members: Sequence[Member], interest: peer_pb2.ChaincodeInterest, channel: ChannelPeer
) -> discovery_pb2.EndorsementDescriptor:
    """Who can endorse an interest, an organisation's peers being a group.

    One endorsement of an organisation counts once here, as it does when our gateway plans: a
    policy that wants two peers of one organisation has no layout.
    """
    endorsers = _eligible(members, interest, channel, with_chaincode=True)
    groups: dict[str, list[Member]] = {}
    for member in endorsers:
        groups.setdefault(member.msp_id, []).append(member)
    layouts = list(_layouts(sorted(groups), _policies(interest, channel)))
    if not layouts:
        raise DiscoveryError("no peer combination can satisfy the endorsement policy")
    result = discovery_pb2.EndorsementDescriptor(chaincode=interest.chaincodes[0].name)
    for layout in layouts:
        quantities = result.layouts.add().quantities_by_group
        for msp_id in layout:
            quantities[msp_id] = 1
    for msp_id in {msp_id for layout in layouts for msp_id in layout}:
        result.endorsers_by_groups[msp_id].peers.extend(member.peer for member in groups[msp_id])
    return result


def _layouts(organizations: Sequence[str], policies: Sequence[Policy]) -> Iterator[tuple[str, ...]]:
    """Smallest sets of organisations that satisfy all policies, none containing another."""
    found: list[frozenset[str]] = []
    tried = 0
    for size in range(1, len(organizations) + 1):
        for chosen in combinations(organizations, size):
            tried += 1
            if tried > MAX_COMBINATIONS:
                return
            if any(smaller.issubset(chosen) for smaller in found):
                continue
            if all(policy.satisfied_by_peers_of(chosen) for policy in policies):
                found.append(frozenset(chosen))
                yield chosen
                if len(found) >= MAX_LAYOUTS:
                    return
