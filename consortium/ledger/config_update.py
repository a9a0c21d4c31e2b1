"""Changes of a channel's configuration: finding, signing and applying them.

A change is a `ConfigUpdate` with two trees. The read set names the versions that it was made
against; the write set holds the elements that it rewrites, each one version up. A group's own
version counts its membership: who adds or removes a member of a group writes the group one
version up, with all of its members listed.

Source of the rules: hyperledger/fabric `common/configtx/*.go`, `internal/configtxlator/update`.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from consortium.identity.msp import Identity
from consortium.identity.policies import Policy, SignedData
from consortium.wire import common_pb2
from consortium.wire.envelopes import (
    NONCE_BYTES,
    EnvelopeSigner,
    WireError,
    brief,
    channel_header,
    parse,
    shortened,
    signed_envelope,
)

CHANNEL, APPLICATION, ORDERER = "Channel", "Application", "Orderer"
ADMINS = "Admins"
NAME_LIMIT = 249
"""Characters of a channel's id and of a configuration element's key."""
GROUP_DEPTH_LIMIT = 16
SIGNATURE_LIMIT = 256
"""Signatures of one configuration update."""


class ConfigError(ValueError):
    """A configuration, or a change of one, that a channel may not have; the message says why."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


def _check_key(key: str) -> None:
    """The names that configuration elements may have (`validateConfigID`)."""
    if (
        not 1 <= len(key) <= NAME_LIMIT
        or key in (".", "..")
        or not re.fullmatch(r"[a-zA-Z0-9.-]+", key)
    ):
        raise ConfigError(
            f"{key[:NAME_LIMIT]!r} is no name for a configuration element: letters, digits, "
            f"dots and dashes, at most {NAME_LIMIT}"
        )


@dataclass(frozen=True, slots=True)
class Element:
    """A group, value or policy of a configuration, with its place."""

    kind: str
    group_path: str
    """Path of the group that its relative `mod_policy` starts from."""
    message: common_pb2.ConfigGroup | common_pb2.ConfigValue | common_pb2.ConfigPolicy

    @property
    def version(self) -> int:
        return self.message.version

    @property
    def mod_policy(self) -> str:
        return self.message.mod_policy

    @property
    def policy_path(self) -> str:
        """Absolute path of the policy that guards it."""
        name = self.mod_policy
        return name if name.startswith("/") else f"{self.group_path}/{name}"


def map_elements(root: common_pb2.ConfigGroup) -> dict[str, Element]:
    """All elements of a tree by `kind /path`; raises ConfigError for impossible names."""
    found: dict[str, Element] = {}

    def walk(group: common_pb2.ConfigGroup, path: str, depth: int) -> None:
        if depth > GROUP_DEPTH_LIMIT:
            raise ConfigError(f"configuration groups are nested deeper than {GROUP_DEPTH_LIMIT}")
        found[f"group {path}"] = Element("group", path, group)
        for key, value in group.values.items():
            _check_key(key)
            found[f"value {path}/{key}"] = Element("value", path, value)
        for key, policy in group.policies.items():
            _check_key(key)
            found[f"policy {path}/{key}"] = Element("policy", path, policy)
        for key, sub_group in group.groups.items():
            _check_key(key)
            walk(sub_group, f"{path}/{key}", depth + 1)

    walk(root, f"/{CHANNEL}", 0)
    return found


def _rebuild(elements: Mapping[str, Element]) -> common_pb2.ConfigGroup:
    """The tree again; members of a group are those that the group itself lists."""
    # Elements of channels that Fabric 1.0 created may lack a mod_policy; Fabric fills it in as
    # soon as the orderer has capabilities, so the result has to have it as well.
    fill = f"value /{CHANNEL}/{ORDERER}/Capabilities" in elements

    def element(kind: str, path: str) -> Message:
        found = elements.get(f"{kind} {path}")
        if found is None:
            raise ConfigError(f"the update leaves out the {kind} {path} that its group lists")
        return found.message

    def build(path: str) -> common_pb2.ConfigGroup:
        listed = element("group", path)
        assert isinstance(listed, common_pb2.ConfigGroup)
        group = common_pb2.ConfigGroup(version=listed.version, mod_policy=listed.mod_policy)
        for key in listed.groups:
            group.groups[key].CopyFrom(build(f"{path}/{key}"))
        for key in listed.values:
            group.values[key].CopyFrom(element("value", f"{path}/{key}"))  # type: ignore[arg-type]
        for key in listed.policies:
            group.policies[key].CopyFrom(element("policy", f"{path}/{key}"))  # type: ignore[arg-type]
        if fill:
            filled: list[common_pb2.ConfigGroup | common_pb2.ConfigValue | common_pb2.ConfigPolicy]
            filled = [group, *group.values.values(), *group.policies.values()]
            for one in filled:
                if not one.mod_policy:
                    one.mod_policy = ADMINS
        return group

    return build(f"/{CHANNEL}")


def apply_update(
    channel_id: str,
    current: Mapping[str, Element],
    envelope: common_pb2.Envelope,
    verify: Callable[[Iterable[SignedData]], Sequence[Identity]],
    policies: Mapping[str, Policy],
) -> common_pb2.ConfigGroup:
    """The channel group after the update in a CONFIG_UPDATE envelope.

    `current` are the present elements, `policies` their policies by absolute path; `verify` gives
    the signers whose signatures hold. Raises ConfigError when the update was made against other
    versions, or its signers may not make it.
    """
    try:
        update_envelope = open_update(envelope)
        update = parse(
            common_pb2.ConfigUpdate, update_envelope.config_update, "the configuration update"
        )
        signed = list(update_signatures(update_envelope))
    except WireError as error:
        raise ConfigError(str(error)) from None
    if update.channel_id != channel_id:
        raise ConfigError(
            f"the update is for channel {brief(update.channel_id)}, not {channel_id!r}"
        )
    read = map_elements(update.read_set)
    for path, element in read.items():
        present = current.get(path)
        if present is None:
            raise ConfigError(f"the update was made against {path}, which does not exist")
        if present.version != element.version:
            raise ConfigError(
                f"the update was made against version {element.version} of {path}, which is "
                f"at version {present.version} now; compute it again"
            )
    written = map_elements(update.write_set)
    changed = {
        path: element
        for path, element in written.items()
        if path not in read or read[path].version != element.version
    }
    if not changed:
        raise ConfigError("the update changes nothing")
    signers = verify(signed)
    for path, element in sorted(changed.items()):
        _authorize(path, element, current.get(path), signers, policies)
    result = {**current, **changed}
    for path in written:
        if path not in result:
            raise ConfigError(f"the update names {path} but does not define it")
    return _rebuild(result)


def _authorize(
    path: str,
    element: Element,
    present: Element | None,
    signers: Sequence[Identity],
    policies: Mapping[str, Policy],
) -> None:
    """Whether one changed element is one version up and its policy agrees."""
    _check_mod_policy(path, element.mod_policy)
    if present is None:
        if element.version != 0:
            raise ConfigError(
                f"the update adds {path} at version {element.version}; new elements start at "
                "version 0"
            )
        return  # adding is decided by the policy of the group that now lists it
    if element.version != present.version + 1:
        raise ConfigError(
            f"the update sets {path} to version {element.version}; it is at version "
            f"{present.version}, so the next is {present.version + 1}; compute it again"
        )
    policy = policies.get(present.policy_path)
    if policy is None:
        raise ConfigError(
            f"{path} can only be changed by the policy {present.policy_path}, which does not exist"
        )
    if not policy.satisfied_by(signers):
        names = ", ".join(f"{one.common_name} ({one.msp_id})" for one in signers)
        raise ConfigError(
            f"changing {path} needs the policy {present.policy_path}; the signatures of "
            f"{names or 'nobody'} do not satisfy it"
        )


def _check_mod_policy(path: str, mod_policy: str) -> None:
    if not mod_policy:
        raise ConfigError(f"the update leaves {path} without a mod_policy")
    for part in mod_policy.removeprefix("/").split("/"):
        _check_key(part)


def open_update(envelope: common_pb2.Envelope) -> common_pb2.ConfigUpdateEnvelope:
    """The update and its signatures in a CONFIG_UPDATE envelope; raises ConfigError, WireError."""
    payload = parse(common_pb2.Payload, envelope.payload, "the update's payload")
    header = parse(
        common_pb2.ChannelHeader, payload.header.channel_header, "the update's channel header"
    )
    if header.type != common_pb2.CONFIG_UPDATE:
        raise ConfigError(
            f"the envelope is of type {header.type}, not a CONFIG_UPDATE "
            f"({common_pb2.CONFIG_UPDATE})"
        )
    return parse(common_pb2.ConfigUpdateEnvelope, payload.data, "the update's envelope")


def update_signatures(update: common_pb2.ConfigUpdateEnvelope) -> Iterator[SignedData]:
    """What each of an update's signatures covers; raises ConfigError, WireError."""
    if len(update.signatures) > SIGNATURE_LIMIT:
        raise ConfigError(
            f"the update has {len(update.signatures)} signatures; {SIGNATURE_LIMIT} are allowed"
        )
    for one in update.signatures:
        header = parse(common_pb2.SignatureHeader, one.signature_header, "a signature's header")
        yield SignedData(one.signature_header + update.config_update, header.creator, one.signature)


def compute_update(
    channel_id: str, original: common_pb2.Config, updated: common_pb2.Config
) -> common_pb2.ConfigUpdate:
    """The update that leads from one configuration to the other; raises ConfigError if none.

    Versions in `updated` do not matter: they are worked out from `original`'s.
    """
    read, write, changed = _group_update(original.channel_group, updated.channel_group)
    if not changed:
        raise ConfigError("the two configurations are the same; there is nothing to update")
    return common_pb2.ConfigUpdate(channel_id=channel_id, read_set=read, write_set=write)


def _group_update(
    original: common_pb2.ConfigGroup, updated: common_pb2.ConfigGroup
) -> tuple[common_pb2.ConfigGroup, common_pb2.ConfigGroup, bool]:
    """Read set, write set and whether anything in the group or below it changed."""
    read = common_pb2.ConfigGroup(version=original.version)
    write = common_pb2.ConfigGroup(version=original.version)
    same = common_pb2.ConfigGroup()
    members_changed = False
    for key, value in original.values.items():
        if key not in updated.values:
            members_changed = True
            continue
        new_value = updated.values[key]
        if value.mod_policy == new_value.mod_policy and value.value == new_value.value:
            same.values[key].version = value.version
        else:
            write.values[key].CopyFrom(new_value)
            write.values[key].version = value.version + 1
    for key, policy in original.policies.items():
        if key not in updated.policies:
            members_changed = True
            continue
        new_policy = updated.policies[key]
        if policy.mod_policy == new_policy.mod_policy and policy.policy == new_policy.policy:
            same.policies[key].version = policy.version
        else:
            write.policies[key].CopyFrom(new_policy)
            write.policies[key].version = policy.version + 1
    for key, group in original.groups.items():
        if key not in updated.groups:
            members_changed = True
            continue
        group_read, group_write, group_changed = _group_update(group, updated.groups[key])
        if group_changed:
            read.groups[key].CopyFrom(group_read)
            write.groups[key].CopyFrom(group_write)
        else:
            same.groups[key].CopyFrom(group_read)
    for key, value in updated.values.items():
        if key not in original.values:
            members_changed = True
            write.values[key].CopyFrom(value)
            write.values[key].version = 0
    for key, policy in updated.policies.items():
        if key not in original.policies:
            members_changed = True
            write.policies[key].CopyFrom(policy)
            write.policies[key].version = 0
    for key, group in updated.groups.items():
        if key not in original.groups:
            members_changed = True
            _, group_write, _ = _group_update(common_pb2.ConfigGroup(), group)
            group_write.version = 0
            group_write.mod_policy = group.mod_policy
            write.groups[key].CopyFrom(group_write)
    if members_changed or original.mod_policy != updated.mod_policy:
        # A group's version counts its membership, so both sets then list all of its members.
        for target in (read, write):
            for key, value in same.values.items():
                target.values[key].CopyFrom(value)
            for key, policy in same.policies.items():
                target.policies[key].CopyFrom(policy)
            for key, group in same.groups.items():
                target.groups[key].CopyFrom(group)
        write.version = original.version + 1
        write.mod_policy = updated.mod_policy
        return read, write, True
    return read, write, bool(write.values or write.policies or write.groups)


def sign_update(update: bytes, signer: EnvelopeSigner) -> common_pb2.ConfigSignature:
    """One member's agreement to a serialized `ConfigUpdate`."""
    header = common_pb2.SignatureHeader(
        creator=signer.serialized, nonce=os.urandom(NONCE_BYTES)
    ).SerializeToString()
    return common_pb2.ConfigSignature(
        signature_header=header, signature=signer.sign(header + update)
    )


def update_envelope(
    channel_id: str,
    update: bytes,
    signatures: Iterable[common_pb2.ConfigSignature],
    submitter: EnvelopeSigner,
) -> common_pb2.Envelope:
    """The CONFIG_UPDATE envelope to broadcast: the update, who agreed, signed by the submitter."""
    return signed_envelope(
        submitter,
        channel_header(common_pb2.CONFIG_UPDATE, channel_id),
        common_pb2.ConfigUpdateEnvelope(
            config_update=update, signatures=signatures
        ).SerializeToString(),
    )
