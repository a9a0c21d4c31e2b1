"""A channel's configuration as JSON, and back.

The form is that of Fabric's `configtxlator proto_decode --type common.Config`, so that what its
users know (`jq '.channel_group.groups.Orderer.values.BatchSize'`) works here: fields by their
protobuf names, enumerations by name, 64-bit integers as text, bytes in base64, and every bytes
field that holds a message of its own (MSPs, policies, principals, consenters) opened up.

Nothing is lost: a bytes field is only opened where closing it gives the same message again;
otherwise (a field that this version does not know) it stays base64, which is read back as well.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from consortium.identity.msp import FABRIC_MSP
from consortium.ledger.channel_config import VALUE_TYPES
from consortium.ledger.config_update import ConfigError, map_elements
from consortium.wire import common_pb2, etcdraft_pb2, msp_pb2

DEPTH_LIMIT = 64
"""Objects within objects of a JSON configuration."""

type Tree = dict[str, Any]
type _Inner = type[Message] | None

_POLICIES: Mapping[Any, type[Message]] = {
    common_pb2.Policy.SIGNATURE: common_pb2.SignaturePolicyEnvelope,
    common_pb2.Policy.IMPLICIT_META: common_pb2.ImplicitMetaPolicy,
}
_PRINCIPALS: Mapping[Any, type[Message]] = {
    "ROLE": common_pb2.MSPRole,
    "ORGANIZATION_UNIT": common_pb2.OrganizationUnit,
    "IDENTITY": msp_pb2.SerializedIdentity,
    "ANONYMITY": common_pb2.MSPIdentityAnonymity,
    "COMBINED": common_pb2.CombinedPrincipal,
}


def _chosen(kinds: Mapping[Any, type[Message]], kind: object) -> _Inner:
    return kinds.get(kind) if isinstance(kind, str | int) else None


# Which message a bytes field holds, told by its neighbours or by the key that its message has.
_INNER: Mapping[tuple[str, str], Callable[[Tree, str], _Inner]] = {
    ("common.ConfigValue", "value"): lambda _tree, key: VALUE_TYPES.get(key),
    ("common.Policy", "value"): lambda tree, _key: _chosen(_POLICIES, tree.get("type", 0)),
    ("common.MSPPrincipal", "principal"): lambda tree, _key: _chosen(
        _PRINCIPALS, tree.get("principal_classification", "ROLE")
    ),
    ("msp.MSPConfig", "config"): lambda tree, _key: (
        msp_pb2.FabricMSPConfig if tree.get("type", 0) == FABRIC_MSP else None
    ),
    ("orderer.ConsensusType", "metadata"): lambda tree, _key: (
        etcdraft_pb2.ConfigMetadata if tree.get("type") == "etcdraft" else None
    ),
}


def message_to_json(message: Message, key: str = "") -> Tree:
    """A configuration message as JSON; `key` is its name in the map that it stands in."""
    tree: Tree = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _open(message, tree, key)
    return tree


def message_from_json[M: Message](
    message_type: type[M], tree: object, what: str, key: str = "", *, depth: int = 0
) -> M:
    """The message that `message_to_json` gave; raises ConfigError naming `what` and where."""
    closed = _closed(message_type, tree, what, key, depth)
    try:
        return json_format.ParseDict(closed, message_type())
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        # `json_format` lets some of what it stumbles over in odd JSON through as it is.
        raise ConfigError(f"{what} cannot be read: {error}") from None


def config_to_json(config: common_pb2.Config) -> Tree:
    """A channel's configuration as JSON."""
    return message_to_json(config)


def config_from_json(tree: object, like: common_pb2.Config | None = None) -> common_pb2.Config:
    """The configuration that a JSON object describes; raises ConfigError.

    Elements that say the same as in `like` keep its bytes: a map's entries have no order on the
    wire, and another order would be taken for a change.
    """
    config = message_from_json(common_pb2.Config, tree, "the configuration")
    if not config.HasField("channel_group"):
        raise ConfigError('the configuration has no "channel_group"')
    if like is not None:
        _keep_bytes(config, like)
    return config


def _keep_bytes(config: common_pb2.Config, like: common_pb2.Config) -> None:
    known = map_elements(like.channel_group)
    for path, element in map_elements(config.channel_group).items():
        old = known.get(path)
        if old is None:
            continue
        new_message, old_message = element.message, old.message
        name = path.rpartition("/")[2]
        if isinstance(new_message, common_pb2.ConfigValue):
            assert isinstance(old_message, common_pb2.ConfigValue)
            same = message_to_json(
                common_pb2.ConfigValue(value=new_message.value), name
            ) == message_to_json(common_pb2.ConfigValue(value=old_message.value), name)
            if same:
                new_message.value = old_message.value
        elif isinstance(new_message, common_pb2.ConfigPolicy):
            assert isinstance(old_message, common_pb2.ConfigPolicy)
            if message_to_json(new_message.policy) == message_to_json(old_message.policy):
                new_message.policy.CopyFrom(old_message.policy)


# ------------------------------------------------------------------ opening and closing


@dataclass(frozen=True, slots=True)
class _Field:
    """What opening and closing have to know of a field that holds messages or bytes."""

    name: str
    holds: type[Message] | None
    """The message type of its value, elements or map values; None for bytes."""
    is_map: bool = False
    is_list: bool = False
    optional: bool = False
    """Shown as null where it isn't set, as configtxlator does."""


_known_fields: dict[str, tuple[_Field, ...]] = {}


def _fields(message_type: type[Message]) -> tuple[_Field, ...]:
    name = message_type.DESCRIPTOR.full_name
    if name not in _known_fields:
        _known_fields[name] = tuple(_find_fields(message_type))
    return _known_fields[name]


def _find_fields(message_type: type[Message]) -> Iterator[_Field]:
    for field in message_type.DESCRIPTOR.fields:
        inner = field.message_type
        if inner is None:
            if field.type == FieldDescriptor.TYPE_BYTES:
                yield _Field(field.name, None, is_list=field.is_repeated)
            continue
        is_map = inner.GetOptions().map_entry
        if is_map:
            inner = inner.fields_by_name["value"].message_type
            if inner is None:
                continue
        yield _Field(
            field.name,
            GetMessageClass(cast(Descriptor, inner)),
            is_map=is_map,
            is_list=field.is_repeated and not is_map,
            optional=field.containing_oneof is None,
        )


def _inner_type(message_type: type[Message], name: str, tree: Tree, key: str) -> _Inner:
    find = _INNER.get((message_type.DESCRIPTOR.full_name, name))
    return find(tree, key) if find else None


def _open(message: Message, tree: Tree, key: str) -> None:
    """Replace, in place, the base64 of bytes that hold a message by that message."""
    for field in _fields(type(message)):
        if field.holds is None:
            if not field.is_list:
                _open_bytes(message, field.name, tree, key)
            continue
        children = tree.get(field.name)
        value = getattr(message, field.name)
        if children is None:
            if field.optional:
                tree[field.name] = None
        elif field.is_map:
            for name, child in children.items():
                _open(value[name], child, name)
        elif field.is_list:
            for one, child in zip(value, children, strict=True):
                _open(one, child, "")
        else:
            _open(value, children, "")


def _open_bytes(message: Message, name: str, tree: Tree, key: str) -> None:
    inner = _inner_type(type(message), name, tree, key)
    if inner is None:
        return
    data: bytes = getattr(message, name)
    if not data:
        tree[name] = None
        return
    try:
        parsed = inner.FromString(data)
        opened = message_to_json(parsed)
        again = message_from_json(inner, opened, name)
    except DecodeError, ConfigError, json_format.Error, UnicodeError:
        return
    # Equal messages in as many bytes differ at most in the order of a map.
    if again == parsed and again.ByteSize() == len(data):
        tree[name] = opened


def _closed(message_type: type[Message], tree: object, what: str, key: str, depth: int) -> Tree:
    """A copy of the tree with opened bytes as base64 again; raises ConfigError."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{what} must be a JSON object, not {type(tree).__name__}")
    if depth > DEPTH_LIMIT:
        raise ConfigError(f"{what} is nested deeper than {DEPTH_LIMIT} objects")
    closed: Tree = dict(tree)
    for field in _fields(message_type):
        value = tree.get(field.name)
        if value is None:
            continue
        where = f"{what}, {field.name}"
        if field.holds is None:
            if isinstance(value, dict):
                closed[field.name] = _close_bytes(message_type, field.name, tree, where, key, depth)
            else:
                _check_base64(value, where)
        elif field.is_map:
            if not isinstance(value, dict):
                raise ConfigError(f"{where} must be a JSON object")
            closed[field.name] = {
                name: _closed(field.holds, child, f"{where}, {name}", name, depth + 1)
                for name, child in value.items()
            }
        elif field.is_list:
            if not isinstance(value, list):
                raise ConfigError(f"{where} must be a JSON list")
            closed[field.name] = [
                _closed(field.holds, child, f"{where} {index}", "", depth + 1)
                for index, child in enumerate(value)
            ]
        else:
            closed[field.name] = _closed(field.holds, value, where, "", depth + 1)
    return closed


def _close_bytes(
    message_type: type[Message], name: str, tree: Tree, where: str, key: str, depth: int
) -> str:
    inner = _inner_type(message_type, name, tree, key)
    if inner is None:
        raise ConfigError(f"{where} must be base64: what it holds is not known here")
    message = message_from_json(inner, tree[name], where, depth=depth + 1)
    return b64encode(message.SerializeToString(deterministic=True)).decode()


def _check_base64(value: object, where: str) -> None:
    """`json_format` passes over characters that are none of base64's."""
    for one in value if isinstance(value, list) else [value]:
        try:
            if not isinstance(one, str):
                raise TypeError
            b64decode(one, validate=True)
        except TypeError, ValueError:
            raise ConfigError(f"{where} must be base64") from None
