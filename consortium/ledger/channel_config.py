"""A channel's configuration: reading it, starting a channel with it, and changing it.

The configuration is Fabric's `common.Config`: a tree of groups (`Channel` over `Application` and
`Orderer`, these over one group per organization), each with values, policies and sub-groups.
Every element has a version and a `mod_policy`, the policy that has to agree to change it. A
change is a `ConfigUpdate`: the versions it was made against (read set) and the elements it
rewrites, one version up (write set).

`ChannelConfig` is an immutable view of one sequence number of it, with the members and policies
ready to be asked. `genesis_block` starts a channel, `compute_update` finds the difference between
two configurations, `ChannelConfig.propose_update` and `.validate` apply one.

Source of the rules: hyperledger/fabric `common/channelconfig/*.go`, `common/configtx/*.go`,
`internal/configtxgen/encoder`, `internal/configtxlator/update`.
"""

import os
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, lru_cache

from google.protobuf.message import DecodeError, Message

from consortium.identity.msp import Msp, MspError, MspManager, msp_config
from consortium.identity.policies import (
    ImplicitMetaPolicy,
    Policy,
    PolicyError,
    PolicyNotFound,
    RejectPolicy,
    SignaturePolicy,
    implicit_meta,
    parse_policy,
    verified_signers,
)
from consortium.ledger.config_update import (
    ADMINS,
    APPLICATION,
    CHANNEL,
    GROUP_DEPTH_LIMIT,
    NAME_LIMIT,
    ORDERER,
    ConfigError,
    Element,
    apply_update,
    map_elements,
)
from consortium.ledger.config_update import compute_update as compute_update
from consortium.ledger.config_update import sign_update as sign_update
from consortium.ledger.config_update import update_envelope as update_envelope
from consortium.wire import common_pb2, etcdraft_pb2, msp_pb2, orderer_pb2, peer_pb2
from consortium.wire.blocks import SIGNATURES, new_block
from consortium.wire.envelopes import (
    NONCE_BYTES,
    WireError,
    channel_header,
    open_envelope,
    parse,
    transaction_id,
)

POLICY_CACHE_ENTRIES = 1024
ADDRESSES_TRIED = 8
"""Of one organization's ordering nodes, before all are tried anew."""
ANCHOR_PEERS = 32
"""Of one organization, that others ask what they are; further ones in its group don't count."""

# What this implementation can do; a channel that asks for more is refused, never half followed.
SUPPORTED_CAPABILITIES = {
    CHANNEL: frozenset(("V1_1", "V1_3", "V1_4_2", "V1_4_3", "V2_0", "V3_0")),
    ORDERER: frozenset(("V1_1", "V1_4_2", "V2_0")),
    APPLICATION: frozenset(("V1_1", "V1_2", "V1_3", "V1_4_2", "V2_0", "V2_5")),
}
_NEEDED_CAPABILITIES = {
    CHANNEL: frozenset(("V1_4_3", "V2_0", "V3_0")),
    ORDERER: frozenset(("V1_4_2", "V2_0")),
    APPLICATION: frozenset(("V2_0", "V2_5")),
}

# The values that each group may have. Another key is refused, as in Fabric ("Unexpected key").
_CHANNEL_VALUES: Mapping[str, type[Message]] = {
    "HashingAlgorithm": common_pb2.HashingAlgorithm,
    "BlockDataHashingStructure": common_pb2.BlockDataHashingStructure,
    "OrdererAddresses": common_pb2.OrdererAddresses,
    "Orderers": common_pb2.Orderers,
    "Consortium": common_pb2.Consortium,
    "Capabilities": common_pb2.Capabilities,
}
_APPLICATION_VALUES: Mapping[str, type[Message]] = {
    "ACLs": peer_pb2.ACLs,
    "Capabilities": common_pb2.Capabilities,
}
_APPLICATION_ORG_VALUES: Mapping[str, type[Message]] = {
    "AnchorPeers": peer_pb2.AnchorPeers,
    "MSP": msp_pb2.MSPConfig,
}
_ORDERER_VALUES: Mapping[str, type[Message]] = {
    "ConsensusType": orderer_pb2.ConsensusType,
    "BatchSize": orderer_pb2.BatchSize,
    "BatchTimeout": orderer_pb2.BatchTimeout,
    "KafkaBrokers": orderer_pb2.KafkaBrokers,
    "ChannelRestrictions": orderer_pb2.ChannelRestrictions,
    "Orderers": common_pb2.Orderers,
    "Capabilities": common_pb2.Capabilities,
}
_ORDERER_ORG_VALUES: Mapping[str, type[Message]] = {
    "Endpoints": common_pb2.OrdererAddresses,
    "MSP": msp_pb2.MSPConfig,
}
VALUE_TYPES: Mapping[str, type[Message]] = {
    **_CHANNEL_VALUES,
    **_APPLICATION_VALUES,
    **_APPLICATION_ORG_VALUES,
    **_ORDERER_VALUES,
    **_ORDERER_ORG_VALUES,
}
"""The message that stands in a value, by its key: a key means the same in every group."""
_HASHING_WIDTH = 2**32 - 1


# ------------------------------------------------------------------ what it says


@dataclass(frozen=True, slots=True)
class Consenter:
    """An ordering node that takes part in consensus. Its two certificates are pinned."""

    host: str
    port: int
    client_tls_certificate_pem: bytes
    server_tls_certificate_pem: bytes


ConsenterSpec = Consenter


@dataclass(frozen=True, slots=True)
class RaftOptions:
    """Raft's timing, the same for all consenters of the channel."""

    tick_interval_s: float = 0.5
    election_tick: int = 10
    heartbeat_tick: int = 1
    max_inflight_blocks: int = 5
    snapshot_interval_bytes: int = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class OrdererSettings:
    """How the channel is ordered."""

    consensus_type: str
    max_message_count: int
    absolute_max_bytes: int
    preferred_max_bytes: int
    batch_timeout_s: float
    consenters: tuple[Consenter, ...]
    raft: RaftOptions
    endpoints: Mapping[str, tuple[str, ...]]
    """`host:port` of the ordering nodes by MSP id."""
    organizations: tuple[str, ...]
    """MSP ids of the organizations that order."""
    in_maintenance: bool
    """In maintenance an orderer takes configuration updates of administrators only."""
    capabilities: frozenset[str]

    def addresses(self, first: str = "") -> list[tuple[str, str]]:
        """MSP id and `host:port` of ordering nodes, in the order in which to try them.

        Each organization names its own, as many as it likes: they take turns, at random but for
        the one that comes `first`, and of each no more than `ADDRESSES_TRIED` are there.
        """
        turns = [
            (turn, msp_id != first, random.random(), msp_id, address)  # noqa: S311
            for msp_id, named in self.endpoints.items()
            for turn, address in enumerate(random.sample(named, min(len(named), ADDRESSES_TRIED)))
        ]
        return [(msp_id, address) for *_, msp_id, address in sorted(turns)]


_DURATION_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Seconds of a duration as Go writes it, `1m30s` or `700ms`; raises ConfigError."""
    unsigned = text[1:] if text[:1] in ("-", "+") else text
    nanoseconds, position = Decimal(0), 0
    while match := _DURATION_PART.match(unsigned, position):
        nanoseconds += Decimal(match[1]) * _DURATION_UNITS_NS[match[2]]
        position = match.end()
    if unsigned != "0" and (not unsigned or position != len(unsigned)):
        raise ConfigError(f"{text[:40]!r} is not a duration such as 200ms or 2s")
    return float(int(nanoseconds) / Decimal(10**9)) * (-1 if text[0] == "-" else 1)


def format_duration(seconds: float) -> str:
    """A duration as Go reads it, in milliseconds where it is not whole seconds."""
    milliseconds = round(seconds * 1000)
    return f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"


def check_channel_id(channel_id: str) -> None:
    """Raises ConfigError unless the id is one that Fabric allows."""
    if len(channel_id) > NAME_LIMIT or not re.fullmatch(r"[a-z][a-z0-9.-]*", channel_id):
        raise ConfigError(
            f"{channel_id[:NAME_LIMIT]!r} is no channel id: it starts with a lower case letter, "
            f"then lower case letters, digits, dots and dashes, at most {NAME_LIMIT}"
        )


class _Values:
    """The values of one group, parsed as they are asked for."""

    def __init__(
        self, group: common_pb2.ConfigGroup, path: str, known: Mapping[str, type[Message]]
    ) -> None:
        self.path = path
        self._parsed: dict[str, Message] = {}
        for key, value in group.values.items():
            if key not in known:
                raise ConfigError(f"{path} has the unknown value {key}")
            try:
                self._parsed[key] = known[key].FromString(value.value)
            except DecodeError as error:
                raise ConfigError(f"the value {path}/{key} cannot be read: {error}") from None

    def get[M: Message](self, key: str, kind: type[M]) -> M:
        """The value, or an empty one where it isn't set."""
        value = self._parsed.get(key)
        return value if isinstance(value, kind) else kind()

    def __contains__(self, key: str) -> bool:
        return key in self._parsed

    def capabilities(self, group: str) -> frozenset[str]:
        """The group's capabilities; raises ConfigError for those that are not supported."""
        names = frozenset(self.get("Capabilities", common_pb2.Capabilities).capabilities)
        unknown = sorted(names - SUPPORTED_CAPABILITIES[group])
        if unknown:
            raise ConfigError(
                f"{self.path} asks for the capabilities {', '.join(unknown)}, which this version "
                "does not have; run a newer one"
            )
        if not names & _NEEDED_CAPABILITIES[group]:
            raise ConfigError(
                f"{self.path} needs one of the capabilities "
                f"{', '.join(sorted(_NEEDED_CAPABILITIES[group]))}; it has "
                f"{', '.join(sorted(names)) or 'none'}"
            )
        return names


def _collect_policies(
    group: common_pb2.ConfigGroup, path: str, found: dict[str, Policy], depth: int = 0
) -> None:
    """Compile the policies of a group and of all below it, by absolute path."""
    if depth > GROUP_DEPTH_LIMIT:
        raise ConfigError(f"the configuration's groups are nested deeper than {GROUP_DEPTH_LIMIT}")
    for name, sub_group in group.groups.items():
        _collect_policies(sub_group, f"{path}/{name}", found, depth + 1)
    for name, element in group.policies.items():
        where = f"{path}/{name}"
        if not element.HasField("policy"):
            raise ConfigError(f"the policy {where} is empty")
        kind, value = element.policy.type, element.policy.value
        try:
            if kind == common_pb2.Policy.SIGNATURE:
                found[where] = SignaturePolicy.from_bytes(value)
            elif kind == common_pb2.Policy.IMPLICIT_META:
                meta = common_pb2.ImplicitMetaPolicy.FromString(value)
                found[where] = ImplicitMetaPolicy(
                    meta.rule,
                    [
                        _sub_policy(found, f"{path}/{sub_group}", meta.sub_policy)
                        for sub_group in sorted(group.groups)
                    ],
                )
            else:
                raise ConfigError(f"the policy {where} is of the unknown type {kind}")
        except (PolicyError, DecodeError) as error:
            raise ConfigError(f"the policy {where} is not valid: {error}") from None


def _sub_policy(found: Mapping[str, Policy], path: str, name: str) -> Policy:
    """A sub-group's policy; one that isn't there is satisfied by nobody."""
    if name.startswith("/"):
        name = name.removeprefix(path + "/") if name.startswith(path + "/") else ""
    return found.get(f"{path}/{name}") or RejectPolicy()


class ChannelConfig:
    """A channel's configuration at one sequence number. Immutable, shared between threads."""

    def __init__(self, channel_id: str, config: common_pb2.Config) -> None:
        """Raises ConfigError saying what is not valid and where."""
        check_channel_id(channel_id)
        if not config.HasField("channel_group"):
            raise ConfigError(f"the configuration of {channel_id} is empty")
        self.channel_id = channel_id
        self.config = config
        self.sequence: int = config.sequence
        root = config.channel_group
        for name in root.groups:
            if name not in (APPLICATION, ORDERER):
                raise ConfigError(f"/Channel has the group {name}, which is not supported")
        for name in (APPLICATION, ORDERER):
            if name not in root.groups:
                raise ConfigError(f"/Channel has no group {name}")
        values = _Values(root, "/Channel", _CHANNEL_VALUES)
        self.capabilities = values.capabilities(CHANNEL)
        self._check_channel_values(values)
        self._msp_configs: dict[str, msp_pb2.MSPConfig] = {}
        self._msps: dict[str, Msp] = {}
        self._org_msps: dict[str, dict[str, str]] = {APPLICATION: {}, ORDERER: {}}
        self._read_application(root.groups[APPLICATION])
        self.orderer = self._read_orderer(root.groups[ORDERER])
        self.msps = MspManager(self._msps)
        self._policies: dict[str, Policy] = {}
        _collect_policies(root, "/Channel", self._policies)
        self.application_policy = lru_cache(maxsize=POLICY_CACHE_ENTRIES)(self._application_policy)
        """`_application_policy`, cached."""

    @classmethod
    def from_config(cls, channel_id: str, config: common_pb2.Config) -> ChannelConfig:
        """The view of a configuration; raises ConfigError."""
        return cls(channel_id, config)

    @classmethod
    def from_block(cls, block: common_pb2.Block) -> ChannelConfig:
        """The configuration that a configuration block carries; raises ConfigError."""
        channel_id, envelope = config_of_block(block)
        return cls(channel_id, envelope.config)

    # -- reading

    def _check_channel_values(self, values: _Values) -> None:
        algorithm = values.get("HashingAlgorithm", common_pb2.HashingAlgorithm).name
        if algorithm != "SHA256":
            raise ConfigError(f"the channel hashes with {algorithm!r}; SHA256 is supported")
        width = values.get("BlockDataHashingStructure", common_pb2.BlockDataHashingStructure).width
        if width != _HASHING_WIDTH:
            raise ConfigError(
                f"the channel hashes block data at width {width}; {_HASHING_WIDTH} is supported"
            )
        addresses = values.get("OrdererAddresses", common_pb2.OrdererAddresses).addresses
        if "V3_0" in self.capabilities and addresses:
            raise ConfigError(
                "/Channel has OrdererAddresses, which capability V3_0 forbids; "
                "give the organizations Endpoints"
            )

    def _read_msp(self, group: str, name: str, values: _Values) -> str:
        """Take in an organization's MSP; the same organization may stand in both groups."""
        if "MSP" not in values:
            raise ConfigError(f"{values.path} has no MSP")
        definition = values.get("MSP", msp_pb2.MSPConfig)
        try:
            msp = Msp.from_config(definition, allow_ed25519="V3_0" in self.capabilities)
        except MspError as error:
            raise ConfigError(f"the MSP of {values.path} is not valid: {error}") from None
        known = self._msp_configs.setdefault(msp.id, definition)
        if known != definition:
            raise ConfigError(f"the channel defines the MSP {msp.id} in two different ways")
        self._msps.setdefault(msp.id, msp)
        self._org_msps[group][name] = msp.id
        return msp.id

    @staticmethod
    def _check_leaf(group: common_pb2.ConfigGroup, path: str) -> None:
        if group.groups:
            raise ConfigError(f"the organization {path} has sub-groups, which is not allowed")

    def _read_application(self, group: common_pb2.ConfigGroup) -> None:
        values = _Values(group, "/Channel/Application", _APPLICATION_VALUES)
        self.application_capabilities = values.capabilities(APPLICATION)
        acls = values.get("ACLs", peer_pb2.ACLs).acls
        self.acls: Mapping[str, str] = {name: acl.policy_ref for name, acl in acls.items()}
        """Policy by API resource, where it differs from Fabric's default."""
        anchors: dict[str, tuple[tuple[str, int], ...]] = {}
        for name, org in sorted(group.groups.items()):
            path = f"/Channel/Application/{name}"
            self._check_leaf(org, path)
            org_values = _Values(org, path, _APPLICATION_ORG_VALUES)
            msp_id = self._read_msp(APPLICATION, name, org_values)
            anchors[msp_id] = tuple(
                (anchor.host, anchor.port)
                for anchor in org_values.get("AnchorPeers", peer_pb2.AnchorPeers).anchor_peers[
                    :ANCHOR_PEERS
                ]
            )
        self.application_orgs = tuple(sorted(anchors))
        """MSP ids of the organizations that endorse and commit."""
        self.anchor_peers: Mapping[str, tuple[tuple[str, int], ...]] = anchors
        """Host and port of each organization's anchor peers, by MSP id."""

    def _read_orderer(self, group: common_pb2.ConfigGroup) -> OrdererSettings:
        path = "/Channel/Orderer"
        values = _Values(group, path, _ORDERER_VALUES)
        capabilities = values.capabilities(ORDERER)
        size = values.get("BatchSize", orderer_pb2.BatchSize)
        if not (size.max_message_count and size.absolute_max_bytes and size.preferred_max_bytes):
            raise ConfigError(f"{path}/BatchSize has a limit of 0")
        if size.preferred_max_bytes > size.absolute_max_bytes:
            raise ConfigError(
                f"{path}/BatchSize prefers {size.preferred_max_bytes} bytes, more than the "
                f"{size.absolute_max_bytes} that it allows at most"
            )
        timeout = values.get("BatchTimeout", orderer_pb2.BatchTimeout).timeout
        timeout_s = parse_duration(timeout)
        if timeout_s <= 0:
            raise ConfigError(f"{path}/BatchTimeout is {timeout}; it must be above 0")
        endpoints: dict[str, tuple[str, ...]] = {}
        for name, org in sorted(group.groups.items()):
            org_path = f"{path}/{name}"
            self._check_leaf(org, org_path)
            org_values = _Values(org, org_path, _ORDERER_ORG_VALUES)
            msp_id = self._read_msp(ORDERER, name, org_values)
            addresses = org_values.get("Endpoints", common_pb2.OrdererAddresses).addresses
            if not addresses and "V3_0" in self.capabilities:
                raise ConfigError(f"{org_path} has no Endpoints, which capability V3_0 asks for")
            endpoints[msp_id] = tuple(addresses)
        consensus = values.get("ConsensusType", orderer_pb2.ConsensusType)
        consenters, raft = _read_raft(consensus)
        return OrdererSettings(
            consensus_type=consensus.type,
            max_message_count=size.max_message_count,
            absolute_max_bytes=size.absolute_max_bytes,
            preferred_max_bytes=size.preferred_max_bytes,
            batch_timeout_s=timeout_s,
            consenters=consenters,
            raft=raft,
            endpoints=endpoints,
            organizations=tuple(sorted(endpoints)),
            in_maintenance=consensus.state == orderer_pb2.ConsensusType.STATE_MAINTENANCE,
            capabilities=capabilities,
        )

    # -- asking

    def policy(self, path: str) -> Policy:
        """The policy at a path such as `/Channel/Application/Writers`.

        A path without a leading slash is relative to /Channel. Raises PolicyNotFound (KeyError).
        """
        absolute = path if path.startswith("/") else f"/Channel/{path}"
        try:
            return self._policies[absolute]
        except KeyError:
            raise PolicyNotFound(path) from None

    def application_group(self, msp_id: str) -> str | None:
        """The name of the group under /Channel/Application that an MSP id stands in, or None."""
        return next(
            (name for name, found in self._org_msps[APPLICATION].items() if found == msp_id), None
        )

    def _application_policy(self, data: bytes) -> Policy:
        """The policy in a serialized `ApplicationPolicy`, or its reference's.

        For chaincode and collection endorsement policies. Raises PolicyError, PolicyNotFound.
        """
        try:
            policy = common_pb2.ApplicationPolicy.FromString(data)
        except DecodeError as error:
            raise PolicyError(f"an application policy cannot be read: {error}") from None
        kind = policy.WhichOneof("Type")
        if kind == "signature_policy":
            return SignaturePolicy(policy.signature_policy)
        if kind == "channel_config_policy_reference":
            return self.policy(policy.channel_config_policy_reference)
        raise PolicyError("an application policy is empty")

    # -- changing

    def with_revocation_lists(
        self, msp_id: str, revocation_lists: Iterable[bytes]
    ) -> common_pb2.Config:
        """This configuration with an organization's revocation lists replaced, for an update.

        In both groups, where the definitions have to be equal; the organization's own
        administrator can sign that alone. Raises ConfigError when it is no member.
        """
        if msp_id not in self._msp_configs:
            raise ConfigError(f"{msp_id} is not a member of {self.channel_id}")
        known = self._msp_configs[msp_id]
        definition = msp_pb2.FabricMSPConfig.FromString(known.config)
        definition.revocation_list[:] = list(revocation_lists)
        value = msp_pb2.MSPConfig(
            type=known.type, config=definition.SerializeToString(deterministic=True)
        ).SerializeToString(deterministic=True)
        wanted = common_pb2.Config()
        wanted.CopyFrom(self.config)
        for group, organizations in self._org_msps.items():
            for name, found in organizations.items():
                if found == msp_id:
                    org = wanted.channel_group.groups[group].groups[name]
                    org.values["MSP"].value = value
        return wanted

    @cached_property
    def _elements(self) -> dict[str, Element]:
        return map_elements(self.config.channel_group)

    def propose_update(self, envelope: common_pb2.Envelope) -> common_pb2.ConfigEnvelope:
        """The next configuration that a CONFIG_UPDATE envelope asks for, with the envelope in it.

        Checks that the update was made against the present versions, that every changed
        element's policy is satisfied by the update's signatures, and that the result is a valid
        configuration that may follow this one. The outer signature of the envelope is the
        caller's to check. Raises ConfigError.
        """
        proposed = common_pb2.ConfigEnvelope(
            config=common_pb2.Config(
                sequence=self.sequence + 1, channel_group=self._authorized_group(envelope)
            ),
            last_update=envelope,
        )
        self._check_successor(ChannelConfig(self.channel_id, proposed.config))
        return proposed

    def validate(self, proposed: common_pb2.ConfigEnvelope) -> ChannelConfig:
        """The configuration to go on with after a CONFIG transaction; raises ConfigError.

        Applies the update inside again and compares the meaning (never the bytes: maps have no
        order on the wire).
        """
        if proposed.config.sequence != self.sequence + 1:
            raise ConfigError(
                f"the configuration is at sequence {self.sequence}, so the next is "
                f"{self.sequence + 1}, not {proposed.config.sequence}"
            )
        if self._authorized_group(proposed.last_update) != proposed.config.channel_group:
            raise ConfigError("the configuration is not what its own update makes of the last one")
        successor = ChannelConfig(self.channel_id, proposed.config)
        self._check_successor(successor)
        return successor

    def _authorized_group(self, envelope: common_pb2.Envelope) -> common_pb2.ConfigGroup:
        """The channel group after the update in the envelope, if its signers may make it."""
        return apply_update(
            self.channel_id,
            self._elements,
            envelope,
            lambda signed: verified_signers(self.msps, signed),
            self._policies,
        )

    def _check_successor(self, new: ChannelConfig) -> None:
        """What no update may change, whoever signs it (`Bundle.ValidateNew`)."""
        for group in (ORDERER, APPLICATION):
            for name, msp_id in self._org_msps[group].items():
                new_id = new._org_msps[group].get(name, msp_id)
                if new_id != msp_id:
                    raise ConfigError(
                        f"/Channel/{group}/{name} may not change its MSP id from {msp_id} "
                        f"to {new_id}"
                    )


def _read_raft(
    consensus: orderer_pb2.ConsensusType,
) -> tuple[tuple[Consenter, ...], RaftOptions]:
    """Consenters and timing of an etcdraft channel; none for other kinds of consensus."""
    if consensus.type != "etcdraft":
        return (), RaftOptions()
    try:
        metadata = etcdraft_pb2.ConfigMetadata.FromString(consensus.metadata)
    except DecodeError as error:
        raise ConfigError(f"the consensus metadata of etcdraft cannot be read: {error}") from None
    options = metadata.options
    return (
        tuple(
            Consenter(one.host, one.port, one.client_tls_cert, one.server_tls_cert)
            for one in metadata.consenters
        ),
        RaftOptions(
            tick_interval_s=parse_duration(options.tick_interval),
            election_tick=options.election_tick,
            heartbeat_tick=options.heartbeat_tick,
            max_inflight_blocks=options.max_inflight_blocks,
            snapshot_interval_bytes=options.snapshot_interval_size,
        )
        if metadata.HasField("options")
        else RaftOptions(),
    )


def config_of_block(block: common_pb2.Block) -> tuple[str, common_pb2.ConfigEnvelope]:
    """Channel id and configuration of a configuration block; raises ConfigError for others."""
    number = block.header.number
    if len(block.data.data) != 1:
        raise ConfigError(
            f"block {number} is no configuration block: it has {len(block.data.data)} transactions"
        )
    try:
        opened = open_envelope(block.data.data[0])
        if opened.channel_header.type != common_pb2.CONFIG:
            raise ConfigError(
                f"block {number} is no configuration block: its transaction is of type "
                f"{opened.channel_header.type}"
            )
        envelope = parse(common_pb2.ConfigEnvelope, opened.payload.data, "the configuration")
    except WireError as error:
        raise ConfigError(f"block {number} is no configuration block: {error}") from None
    return opened.channel_header.channel_id, envelope


# ------------------------------------------------------------------ starting a channel


@dataclass(frozen=True, slots=True)
class OrganizationSpec:
    """A member of a new channel."""

    msp_id: str
    root_pem: bytes
    """The root certificate of its identities and of its TLS certificates."""
    anchor_peers: tuple[tuple[str, int], ...] = ()
    orderer_endpoints: tuple[str, ...] = ()
    """`host:port` of its ordering nodes; without any it takes no part in ordering."""
    revocation_lists: tuple[bytes, ...] = ()

    @property
    def msp(self) -> msp_pb2.MSPConfig:
        """Its definition, the same in both groups."""
        return msp_config(self.msp_id, self.root_pem, revocation_lists=self.revocation_lists)


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """What a new channel starts with. The capabilities are those that Fabric 2.5 and 3 accept."""

    channel_id: str
    organizations: tuple[OrganizationSpec, ...]
    consenters: tuple[Consenter, ...]
    max_message_count: int = 500
    absolute_max_bytes: int = 10 * 1024 * 1024
    preferred_max_bytes: int = 2 * 1024 * 1024
    batch_timeout: str = "200ms"
    """As Go writes durations, the way it stands in the configuration."""
    raft: RaftOptions = field(default_factory=RaftOptions)
    channel_capability: str = "V2_0"
    orderer_capability: str = "V2_0"
    application_capability: str = "V2_5"


def _set_value(group: common_pb2.ConfigGroup, key: str, value: Message) -> None:
    group.values[key].value = value.SerializeToString(deterministic=True)
    group.values[key].mod_policy = ADMINS


def _set_policy(
    group: common_pb2.ConfigGroup,
    name: str,
    policy: common_pb2.SignaturePolicyEnvelope | common_pb2.ImplicitMetaPolicy,
) -> None:
    kind = (
        common_pb2.Policy.IMPLICIT_META
        if isinstance(policy, common_pb2.ImplicitMetaPolicy)
        else common_pb2.Policy.SIGNATURE
    )
    group.policies[name].policy.type = kind
    group.policies[name].policy.value = policy.SerializeToString(deterministic=True)
    group.policies[name].mod_policy = ADMINS


def _capabilities(name: str) -> common_pb2.Capabilities:
    return common_pb2.Capabilities(capabilities={name: common_pb2.Capability()})


def _group_with_meta_policies() -> common_pb2.ConfigGroup:
    group = common_pb2.ConfigGroup(mod_policy=ADMINS)
    _set_policy(group, "Readers", implicit_meta("ANY", "Readers"))
    _set_policy(group, "Writers", implicit_meta("ANY", "Writers"))
    _set_policy(group, ADMINS, implicit_meta("MAJORITY", ADMINS))
    return group


def application_organization_group(organization: OrganizationSpec) -> common_pb2.ConfigGroup:
    """An organization's group under /Channel/Application, for a genesis block or to add it."""
    org = organization.msp_id
    group = common_pb2.ConfigGroup(mod_policy=ADMINS)
    _set_value(group, "MSP", organization.msp)
    if organization.anchor_peers:
        _set_value(
            group,
            "AnchorPeers",
            peer_pb2.AnchorPeers(
                anchor_peers=[
                    peer_pb2.AnchorPeer(host=host, port=port)
                    for host, port in organization.anchor_peers
                ]
            ),
        )
    for name, rule in {
        "Readers": f"OR('{org}.admin', '{org}.peer', '{org}.client')",
        "Writers": f"OR('{org}.admin', '{org}.client')",
        ADMINS: f"OR('{org}.admin')",
        "Endorsement": f"OR('{org}.peer')",
    }.items():
        _set_policy(group, name, parse_policy(rule))
    return group


def orderer_organization_group(organization: OrganizationSpec) -> common_pb2.ConfigGroup:
    """An organization's group under /Channel/Orderer.

    Its Writers are the ordering nodes alone: /Channel/Orderer/BlockValidation is "ANY Writers",
    and a utility's homes, whose certificates come from the same root, must not sign blocks.
    """
    org = organization.msp_id
    group = common_pb2.ConfigGroup(mod_policy=ADMINS)
    _set_value(group, "MSP", organization.msp)
    _set_value(
        group,
        "Endpoints",
        common_pb2.OrdererAddresses(addresses=organization.orderer_endpoints),
    )
    for name, rule in {
        "Readers": f"OR('{org}.orderer', '{org}.admin')",
        "Writers": f"OR('{org}.orderer')",
        ADMINS: f"OR('{org}.admin')",
    }.items():
        _set_policy(group, name, parse_policy(rule))
    return group


def raft_metadata(
    consenters: Iterable[Consenter], options: RaftOptions
) -> etcdraft_pb2.ConfigMetadata:
    """The consensus metadata of an etcdraft channel."""
    return etcdraft_pb2.ConfigMetadata(
        consenters=[
            etcdraft_pb2.Consenter(
                host=one.host,
                port=one.port,
                client_tls_cert=one.client_tls_certificate_pem,
                server_tls_cert=one.server_tls_certificate_pem,
            )
            for one in consenters
        ],
        options=etcdraft_pb2.Options(
            tick_interval=format_duration(options.tick_interval_s),
            election_tick=options.election_tick,
            heartbeat_tick=options.heartbeat_tick,
            max_inflight_blocks=options.max_inflight_blocks,
            snapshot_interval_size=options.snapshot_interval_bytes,
        ),
    )


def channel_group(spec: ChannelSpec) -> common_pb2.ConfigGroup:
    """The configuration tree of a new channel, as Fabric's configtxgen builds it."""
    root = _group_with_meta_policies()
    _set_value(root, "HashingAlgorithm", common_pb2.HashingAlgorithm(name="SHA256"))
    _set_value(
        root,
        "BlockDataHashingStructure",
        common_pb2.BlockDataHashingStructure(width=_HASHING_WIDTH),
    )
    _set_value(root, "Capabilities", _capabilities(spec.channel_capability))

    orderer = _group_with_meta_policies()
    _set_policy(orderer, "BlockValidation", implicit_meta("ANY", "Writers"))
    _set_value(
        orderer,
        "BatchSize",
        orderer_pb2.BatchSize(
            max_message_count=spec.max_message_count,
            absolute_max_bytes=spec.absolute_max_bytes,
            preferred_max_bytes=spec.preferred_max_bytes,
        ),
    )
    _set_value(
        orderer,
        "BatchTimeout",
        orderer_pb2.BatchTimeout(timeout=spec.batch_timeout),
    )
    _set_value(orderer, "ChannelRestrictions", orderer_pb2.ChannelRestrictions())
    _set_value(orderer, "Capabilities", _capabilities(spec.orderer_capability))
    _set_value(
        orderer,
        "ConsensusType",
        orderer_pb2.ConsensusType(
            type="etcdraft",
            metadata=raft_metadata(spec.consenters, spec.raft).SerializeToString(),
        ),
    )

    application = _group_with_meta_policies()
    _set_policy(application, "Endorsement", implicit_meta("MAJORITY", "Endorsement"))
    _set_policy(application, "LifecycleEndorsement", implicit_meta("MAJORITY", "Endorsement"))
    _set_value(application, "Capabilities", _capabilities(spec.application_capability))

    for organization in spec.organizations:
        name = organization.msp_id
        application.groups[name].CopyFrom(application_organization_group(organization))
        if organization.orderer_endpoints:
            orderer.groups[name].CopyFrom(orderer_organization_group(organization))
    root.groups[APPLICATION].CopyFrom(application)
    root.groups[ORDERER].CopyFrom(orderer)
    return root


def genesis_block(
    spec: ChannelSpec, *, timestamp_ns: int | None = None, nonce: bytes | None = None
) -> common_pb2.Block:
    """Block 0 of a new channel, the same for all its members; raises ConfigError.

    The block is not signed: who joins a channel takes its first block on trust and compares its
    hash with the other members'.
    """
    if not spec.consenters:
        raise ConfigError(f"the channel {spec.channel_id} has no consenter to order it")
    config = common_pb2.Config(channel_group=channel_group(spec))
    ChannelConfig(spec.channel_id, config)
    nonce = os.urandom(NONCE_BYTES) if nonce is None else nonce
    header = channel_header(
        common_pb2.CONFIG,
        spec.channel_id,
        transaction_id(nonce, b""),
        timestamp_ns=timestamp_ns,
    )
    header.version = 1
    header.timestamp.nanos = 0
    envelope = common_pb2.Envelope(
        payload=common_pb2.Payload(
            header=common_pb2.Header(
                channel_header=header.SerializeToString(),
                signature_header=common_pb2.SignatureHeader(nonce=nonce).SerializeToString(),
            ),
            data=common_pb2.ConfigEnvelope(config=config).SerializeToString(deterministic=True),
        ).SerializeToString()
    )
    block = new_block(0, b"", [envelope.SerializeToString()])
    block.metadata.metadata[SIGNATURES] = common_pb2.Metadata(
        value=common_pb2.OrdererBlockMetadata(
            last_config=common_pb2.LastConfig(index=0)
        ).SerializeToString()
    ).SerializeToString()
    return block
