"""What an operator changes in a channel's configuration, and who has to agree to it.

All of it is decided here without I/O: settings by name, members joining and leaving, what differs
between two configurations, an update on its way between administrators as a file, and which
policies it still fails.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from google.protobuf.message import DecodeError, Message

from consortium.identity.certificates import CertificateError, load_certificate
from consortium.identity.msp import Identity
from consortium.identity.policies import SignedData, verified_signers
from consortium.ledger.channel_config import ChannelConfig, parse_duration
from consortium.ledger.config_json import config_to_json, message_from_json
from consortium.ledger.config_update import (
    APPLICATION,
    CHANNEL,
    ORDERER,
    ConfigError,
    apply_update,
    map_elements,
    open_update,
    sign_update,
    update_envelope,
    update_signatures,
)
from consortium.wire import common_pb2, etcdraft_pb2, msp_pb2, orderer_pb2
from consortium.wire.envelopes import EnvelopeSigner, channel_header, parse

UINT32_LIMIT = 2**32
_SIZE = re.compile(r"(\d{1,10})\s*(|KiB|MiB)")
_SIZE_UNITS = {"": 1, "KiB": 1024, "MiB": 1024 * 1024}


# ------------------------------------------------------------------ settings


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,10}", text) or not 1 <= int(text) < UINT32_LIMIT:
        raise ConfigError(f"{text[:40]!r} is not a whole number from 1 to {UINT32_LIMIT - 1}")
    return int(text)


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text[:40]!r} is not a size such as 2097152, 512KiB or 2MiB")
    return _count(str(int(match[1]) * _SIZE_UNITS[match[2]]))


def _duration(text: str) -> str:
    parse_duration(text)
    return text


@dataclass(frozen=True, slots=True)
class _Setting:
    key: str
    message: type[Message]
    field: str
    read: Callable[[str], object]


_SETTINGS: Mapping[str, _Setting] = {
    "batch-size": _Setting("BatchSize", orderer_pb2.BatchSize, "max_message_count", _count),
    "absolute-max-bytes": _Setting("BatchSize", orderer_pb2.BatchSize, "absolute_max_bytes", _size),
    "preferred-max-bytes": _Setting(
        "BatchSize", orderer_pb2.BatchSize, "preferred_max_bytes", _size
    ),
    "batch-timeout": _Setting("BatchTimeout", orderer_pb2.BatchTimeout, "timeout", _duration),
}
SETTINGS = tuple(_SETTINGS)
"""Names that `change_setting` takes; all of them belong to ordering."""


def copied(config: common_pb2.Config) -> common_pb2.Config:
    """A configuration to change."""
    copy = common_pb2.Config()
    copy.CopyFrom(config)
    return copy


def change_setting(config: common_pb2.Config, name: str, text: str) -> None:
    """Set one setting in place; raises ConfigError for an unknown name or a value it can't have."""
    setting = _SETTINGS.get(name)
    if setting is None:
        raise ConfigError(f"there is no setting {name[:40]!r}; there are {', '.join(SETTINGS)}")
    try:
        wanted = setting.read(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    value = config.channel_group.groups[ORDERER].values[setting.key]
    message = setting.message.FromString(value.value)
    setattr(message, setting.field, wanted)
    value.value = message.SerializeToString(deterministic=True)


# ------------------------------------------------------------------ members


def organization_from_json(tree: object) -> common_pb2.ConfigGroup:
    """A member's group as `configtxgen -printOrg` prints it; raises ConfigError."""
    return message_from_json(common_pb2.ConfigGroup, tree, "the organization")


def _msp(group: common_pb2.ConfigGroup) -> msp_pb2.FabricMSPConfig:
    if "MSP" not in group.values:
        raise ConfigError("the organization's group has no MSP")
    try:
        definition = msp_pb2.MSPConfig.FromString(group.values["MSP"].value)
        return msp_pb2.FabricMSPConfig.FromString(definition.config)
    except DecodeError as error:
        raise ConfigError(f"the organization's MSP cannot be read: {error}") from None


def add_organization(config: common_pb2.Config, group: common_pb2.ConfigGroup) -> str:
    """Let an organization endorse and commit, in place; returns its MSP id. Raises ConfigError."""
    msp_id = _msp(group).name
    members = config.channel_group.groups[APPLICATION].groups
    if any(_msp(member).name == msp_id for member in members.values()):
        raise ConfigError(f"{msp_id} is a member of the channel already")
    members[msp_id].CopyFrom(group)
    return msp_id


def remove_organization(config: common_pb2.Config, msp_id: str) -> None:
    """Take a member out, in place. Raises ConfigError where it is none, the last, or orders."""
    members = config.channel_group.groups[APPLICATION].groups
    found = {key: _msp(member) for key, member in members.items()}
    name = next((key for key, definition in found.items() if definition.name == msp_id), None)
    if name is None:
        known = ", ".join(sorted(definition.name for definition in found.values()))
        raise ConfigError(f"{msp_id} is no member of the channel; there are {known}")
    if len(members) == 1:
        raise ConfigError(f"{msp_id} is the only member of the channel; it has to stay")
    nodes = _consenters(config, found[name])
    if nodes:
        raise ConfigError(
            f"{msp_id} orders for the channel, with {', '.join(nodes)}; take them out "
            "first (gridledger orderer remove)"
        )
    del members[name]
    orderers = config.channel_group.groups[ORDERER].groups
    for key in [key for key, member in orderers.items() if _msp(member).name == msp_id]:
        del orderers[key]


def add_root(config: common_pb2.Config, msp_id: str, root_pem: bytes) -> None:
    """Trust one more root of a member, for identities and TLS, in place. Raises ConfigError.

    Roles are told by organizational unit whichever of the roots certified it.
    """

    def change(definition: msp_pb2.FabricMSPConfig) -> None:
        if root_pem in definition.root_certs:
            raise ConfigError(f"{msp_id} has that root already")
        definition.root_certs.append(root_pem)
        definition.tls_root_certs.append(root_pem)
        for unit, identifier in definition.fabric_node_ous.ListFields():
            if unit.name.endswith("_ou_identifier"):
                identifier.certificate = b""

    _change_msp(config, msp_id, change)


def remove_root(config: common_pb2.Config, msp_id: str, root_pem: bytes) -> None:
    """Trust a member's root no longer, in place. Raises ConfigError if it is none or the last."""

    def change(definition: msp_pb2.FabricMSPConfig) -> None:
        for roots in (definition.root_certs, definition.tls_root_certs):
            if root_pem in roots:
                roots.remove(root_pem)
        if not definition.root_certs or not definition.tls_root_certs:
            raise ConfigError(f"that is the only root of {msp_id}; add the next one first")

    _change_msp(config, msp_id, change)


def _change_msp(
    config: common_pb2.Config,
    msp_id: str,
    change: Callable[[msp_pb2.FabricMSPConfig], None],
) -> None:
    """Change a member's definition in every group that has it, where they have to be equal."""
    found = False
    for kind in (APPLICATION, ORDERER):
        for group in config.channel_group.groups[kind].groups.values():
            definition = _msp(group)
            if definition.name != msp_id:
                continue
            found = True
            change(definition)
            wrapped = msp_pb2.MSPConfig.FromString(group.values["MSP"].value)
            wrapped.config = definition.SerializeToString(deterministic=True)
            group.values["MSP"].value = wrapped.SerializeToString(deterministic=True)
    if not found:
        raise ConfigError(f"{msp_id} is no member of the channel")


def _consenters(config: common_pb2.Config, definition: msp_pb2.FabricMSPConfig) -> list[str]:
    """Those whose TLS certificate the organization has issued, as `host:port`."""
    value = config.channel_group.groups[ORDERER].values["ConsensusType"].value
    consensus = orderer_pb2.ConsensusType.FromString(value)
    if consensus.type != "etcdraft":
        return []
    authorities = [*definition.tls_root_certs, *definition.tls_intermediate_certs]
    return [
        f"{one.host}:{one.port}"
        for one in etcdraft_pb2.ConfigMetadata.FromString(consensus.metadata).consenters
        if _issued(one.server_tls_cert, authorities)
    ]


def _issued(certificate: bytes, authorities: Sequence[bytes]) -> bool:
    try:
        loaded = load_certificate(certificate)
    except CertificateError:
        return False
    for authority in authorities:
        try:
            loaded.verify_directly_issued_by(load_certificate(authority))
        except Exception:  # noqa: S112  any failure says only that it was another one
            continue
        return True
    return False


# ------------------------------------------------------------------ what differs


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two configurations."""

    where: str
    """Path of the element, and the fields within it."""
    before: Any
    """JSON, None where it is added."""
    after: Any
    """JSON, None where it is removed."""

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.where}: {_brief(self.after)} added"
        if self.after is None:
            return f"{self.where}: {_brief(self.before)} removed"
        return f"{self.where}: {_brief(self.before)} -> {_brief(self.after)}"


_BRIEF_CHARACTERS = 60


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return f"{len(value)} fields"
    if isinstance(value, list):
        return f"[{', '.join(_brief(one) for one in value[:4])}{', …' * (len(value) > 4)}]"
    text = str(value)
    return text if len(text) <= _BRIEF_CHARACTERS else f"{text[: _BRIEF_CHARACTERS - 1]}…"


def changes(before: common_pb2.Config, after: common_pb2.Config) -> list[Change]:
    """What differs between two configurations, versions aside."""
    old, new = (config_to_json(one)["channel_group"] for one in (before, after))
    return list(_group_changes(old, new, f"/{CHANNEL}"))


def _group_changes(before: dict[str, Any], after: dict[str, Any], path: str) -> Iterator[Change]:
    for kind in ("values", "policies", "groups"):
        for name in sorted({*before[kind], *after[kind]}):
            old, new = before[kind].get(name), after[kind].get(name)
            where = f"{path}/{name}"
            if old is None or new is None:
                yield Change(where, old, new)
            elif kind == "groups":
                yield from _group_changes(old, new, where)
            else:
                yield from _field_changes(_unversioned(old), _unversioned(new), where)
    if before["mod_policy"] != after["mod_policy"]:
        yield Change(f"{path} mod_policy", before["mod_policy"], after["mod_policy"])


def _unversioned(element: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in element.items() if name != "version"}


# Names of levels that every element has; a person need not read them.
_FRAMES = frozenset(("value", "policy", "config"))


def _field_changes(before: Any, after: Any, where: str) -> Iterator[Change]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            inner = where if name in _FRAMES else f"{where} {name}"
            yield from _field_changes(before.get(name), after.get(name), inner)
    else:
        yield Change(where, before, after)


# ------------------------------------------------------------------ who has to agree


@dataclass(frozen=True, slots=True)
class Lacking:
    """A policy that an update's signatures don't satisfy yet."""

    policy: str
    needed: int
    """How many of `signed` and `missing` have to agree."""
    signed: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        everybody = sorted((*self.signed, *self.missing))
        more = self.needed - len(self.signed)
        return (
            f"{self.policy} needs {self.needed} of {', '.join(everybody) or 'nobody'}; "
            f"{' and '.join(self.signed) or 'nobody'} signed, so {more} of "
            f"{', '.join(self.missing) or 'nobody'} still {'has' if more == 1 else 'have'} to sign"
        )


class _Agreed:
    """A policy that is always satisfied: to see what an update would do."""

    def satisfied_by(self, _identities: Sequence[Identity]) -> bool:
        return True

    def satisfied_by_peers_of(self, _msp_ids: Collection[str]) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class PendingUpdate:
    """An update that is gathering signatures; as a file, what Fabric's `signconfigtx` takes."""

    channel_id: str
    update: bytes
    """A serialized `ConfigUpdate`."""
    signatures: tuple[common_pb2.ConfigSignature, ...] = field(default=())

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read a file; raises ConfigError, WireError."""
        envelope = parse(common_pb2.Envelope, raw, "the update's file")
        found = open_update(envelope)
        update = parse(common_pb2.ConfigUpdate, found.config_update, "the configuration update")
        list(update_signatures(found))  # each can be read
        return cls(update.channel_id, found.config_update, tuple(found.signatures))

    def to_bytes(self) -> bytes:
        """The file: a CONFIG_UPDATE envelope that nobody submits yet, so unsigned itself."""
        return common_pb2.Envelope(
            payload=common_pb2.Payload(
                header=common_pb2.Header(
                    channel_header=channel_header(
                        common_pb2.CONFIG_UPDATE, self.channel_id
                    ).SerializeToString()
                ),
                data=self._envelope().SerializeToString(),
            ).SerializeToString()
        ).SerializeToString()

    def _envelope(self) -> common_pb2.ConfigUpdateEnvelope:
        return common_pb2.ConfigUpdateEnvelope(
            config_update=self.update, signatures=self.signatures
        )

    def signed_by(self, *signers: EnvelopeSigner) -> Self:
        """With these signatures too; who has signed already does not sign again."""
        present = {one.identity for one in update_signatures(self._envelope())}
        added = [sign_update(self.update, one) for one in signers if one.serialized not in present]
        return type(self)(self.channel_id, self.update, (*self.signatures, *added))

    def envelope(self, submitter: EnvelopeSigner) -> common_pb2.Envelope:
        """What is sent to an orderer."""
        return update_envelope(self.channel_id, self.update, self.signatures, submitter)

    def signed(self) -> list[SignedData]:
        """What each signature covers."""
        return list(update_signatures(self._envelope()))

    def result(self, config: ChannelConfig) -> common_pb2.Config:
        """What the channel's configuration would be, whoever has signed; raises ConfigError."""
        present = map_elements(config.config.channel_group)
        group = apply_update(
            config.channel_id,
            present,
            common_pb2.Envelope.FromString(self.to_bytes()),
            lambda _signed: (),
            {element.policy_path: _Agreed() for element in present.values()},
        )
        return common_pb2.Config(sequence=config.sequence + 1, channel_group=group)

    def lacking(self, config: ChannelConfig) -> list[Lacking]:
        """The policies that have to agree and don't yet; raises ConfigError.

        Empty says nothing of whether the update fits the configuration: `propose_update` does.
        """
        update = parse(common_pb2.ConfigUpdate, self.update, "the configuration update")
        read = map_elements(update.read_set)
        present = map_elements(config.config.channel_group)
        guards = {
            present[path].policy_path
            for path, element in map_elements(update.write_set).items()
            if path in present and (path not in read or read[path].version != element.version)
        }
        signers = verified_signers(config.msps, self.signed())
        found: dict[str, Lacking] = {}
        for guard in sorted(guards):
            for one in _lacking(config, guard, signers):
                found.setdefault(one.policy, one)
        return list(found.values())


def _lacking(config: ChannelConfig, path: str, signers: Sequence[Identity]) -> Iterator[Lacking]:
    """What a policy lacks, down to the level where organizations are counted."""
    try:
        policy = config.policy(path)
    except KeyError:
        yield Lacking(path, 1, (), ())
        return
    if policy.satisfied_by(signers):
        return
    group_path, _, name = path.rpartition("/")
    group = config.config.channel_group
    for part in group_path.removeprefix(f"/{CHANNEL}").strip("/").split("/"):
        if part:
            group = group.groups[part]
    element = group.policies[name].policy
    if element.type != common_pb2.Policy.IMPLICIT_META:
        rule = common_pb2.SignaturePolicyEnvelope.FromString(element.value)
        yield Lacking(path, 1, (), tuple(sorted(_organizations(rule))))
        return
    meta = common_pb2.ImplicitMetaPolicy.FromString(element.value)
    count = len(group.groups)
    needed = {meta.ANY: 1, meta.ALL: count}.get(meta.rule, count // 2 + 1)
    subs = {key: f"{group_path}/{key}/{meta.sub_policy}" for key in sorted(group.groups)}
    satisfied = [key for key, sub in subs.items() if _satisfied(config, sub, signers)]
    if needed == count and any(group.groups[key].groups for key in subs):
        for sub in subs.values():
            yield from _lacking(config, sub, signers)
        return
    yield Lacking(
        path, needed, tuple(satisfied), tuple(key for key in subs if key not in satisfied)
    )


def _satisfied(config: ChannelConfig, path: str, signers: Sequence[Identity]) -> bool:
    try:
        return config.policy(path).satisfied_by(signers)
    except KeyError:
        return False


def _organizations(policy: common_pb2.SignaturePolicyEnvelope) -> Iterator[str]:
    for principal in policy.identities:
        if principal.principal_classification == common_pb2.MSPPrincipal.ROLE:
            role = common_pb2.MSPRole.FromString(principal.principal)
            yield f"{role.msp_identifier}.{common_pb2.MSPRole.MSPRoleType.Name(role.role).lower()}"
        else:
            yield b64encode(principal.principal).decode()[:_BRIEF_CHARACTERS]


def describe_policy(policy: common_pb2.Policy) -> str:
    """A policy as a person writes it: `MAJORITY Admins`, or Fabric's AND, OR and OutOf."""
    if policy.type == common_pb2.Policy.IMPLICIT_META:
        meta = common_pb2.ImplicitMetaPolicy.FromString(policy.value)
        return f"{common_pb2.ImplicitMetaPolicy.Rule.Name(meta.rule)} {meta.sub_policy}"
    envelope = common_pb2.SignaturePolicyEnvelope.FromString(policy.value)
    names = list(_organizations(envelope))

    def rule(one: common_pb2.SignaturePolicy) -> str:
        if one.WhichOneof("Type") == "signed_by":
            return f"'{names[one.signed_by]}'" if one.signed_by < len(names) else "?"
        parts = ", ".join(rule(inner) for inner in one.n_out_of.rules)
        if one.n_out_of.n == 1:
            return f"OR({parts})"
        if one.n_out_of.n == len(one.n_out_of.rules):
            return f"AND({parts})"
        return f"OutOf({one.n_out_of.n}, {parts})"

    return rule(envelope.rule)
