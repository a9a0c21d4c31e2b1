"""Which contracts a channel has, and who must endorse what they write.

The `_lifecycle` namespace of the world state holds one record a contract, in Fabric's layout: the
record's field names under `namespaces/metadata/<name>`, each field's value under
`namespaces/fields/<name>/<field>`. An organization's approval stands in its own implicit
collection `_implicit_org_<MSP id>`, under the name `<contract>#<sequence>`; others see its hashes.
(Rules: Fabric core/chaincode/lifecycle.)

A write is judged by the policy of its key, if the key has one; else of its collection; else of its
contract. `Policies` finds those, for the state and configuration before a block.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from google.protobuf.message import DecodeError, Message

from consortium.identity.policies import (
    PolicyError,
    PolicyNotFoundError,
    SignaturePolicy,
    role_principal,
    signature_policy_any,
    signature_policy_n_out_of,
)
from consortium.wire import common_pb2, lifecycle_pb2, msp_pb2, peer_pb2

from .channel_config import ChannelConfig
from .state import VALIDATION_PARAMETER, LedgerError, StateView, metadata_entry

NAMESPACE = "_lifecycle"
IMPLICIT_PREFIX = "_implicit_org_"
DEFAULT_POLICY = "/Channel/Application/Endorsement"
LIFECYCLE_POLICY = "/Channel/Application/LifecycleEndorsement"

ENDORSEMENT_PLUGIN = "escc"
VALIDATION_PLUGIN = "vscc"

_NAMESPACES = "namespaces"
RECORDS_START = f"{_NAMESPACES}/metadata/"
RECORDS_END = f"{_NAMESPACES}/metadata0"
"""Where the keys stand that name definitions, in an implicit collection approvals; "0" is the
character after "/"."""
_SOURCES = "chaincode-sources"
_DEFINITION = "ChaincodeDefinition"
_PARAMETERS = "ChaincodeParameters"
_LOCAL_PACKAGE = "ChaincodeLocalPackage"


class LifecycleError(LedgerError):
    """A contract's definition is unreadable or may not be approved or committed like this."""


@dataclass(frozen=True, slots=True)
class ChaincodeDefinition:
    """What the channel's members agreed on for a contract."""

    name: str
    sequence: int
    version: str
    endorsement_policy: bytes = b""
    """`protos.ApplicationPolicy` bytes; empty stands for the channel's default when approving."""
    collections: peer_pb2.CollectionConfigPackage = field(
        default_factory=peer_pb2.CollectionConfigPackage
    )
    init_required: bool = False
    endorsement_plugin: str = ENDORSEMENT_PLUGIN
    validation_plugin: str = VALIDATION_PLUGIN

    def collection(self, name: str) -> peer_pb2.StaticCollectionConfig | None:
        """An explicit collection's configuration."""
        for config in self.collections.config:
            if config.static_collection_config.name == name:
                return config.static_collection_config
        return None


class Records(Protocol):
    """Keys and values that records are kept in: the namespace, or an implicit collection."""

    def get(self, key: str) -> bytes | None:
        """The value of a key."""

    def put(self, key: str, value: bytes) -> None:
        """Write a key."""

    def delete(self, key: str) -> None:
        """Delete a key."""


def implicit_collection(msp_id: str) -> str:
    """The name of an organization's implicit collection."""
    return IMPLICIT_PREFIX + msp_id


def implicit_organization(collection: str) -> str | None:
    """The MSP id that an implicit collection belongs to; None for an explicit collection."""
    if not collection.startswith(IMPLICIT_PREFIX):
        return None
    return collection.removeprefix(IMPLICIT_PREFIX)


def definition(view: StateView, name: str) -> ChaincodeDefinition | None:
    """The committed definition of a contract, or None; raises LifecycleError if unreadable."""

    def get(key: str) -> bytes | None:
        value = view.get(NAMESPACE, key)
        return None if value is None else value.value

    return recorded_definition(get, name)


def definitions(view: StateView) -> Iterator[ChaincodeDefinition]:
    """All committed definitions that can be read, by name."""
    for key, _ in view.range(NAMESPACE, RECORDS_START, RECORDS_END):
        try:
            found = definition(view, key.removeprefix(RECORDS_START))
        except LifecycleError:
            continue  # one contract that nobody can use must not hide the others
        if found is not None:
            yield found


def committed_sequence(get: Callable[[str], bytes | None], name: str) -> int:
    """The sequence of the committed definition, 0 for none."""
    return _field(get, _NAMESPACES, name, "Sequence").Int64


def recorded_definition(
    get: Callable[[str], bytes | None], name: str
) -> ChaincodeDefinition | None:
    """As `definition`, read key by key through `get` (a simulator, which records the reads)."""
    stored = get(f"{_NAMESPACES}/metadata/{name}")
    if stored is None:
        return None
    metadata = _parse(lifecycle_pb2.StateMetadata, stored, name)
    if metadata.datatype != _DEFINITION:
        raise LifecycleError(
            f"the record of contract {name} is a {metadata.datatype!r}, not a {_DEFINITION}"
        )
    return _from_fields(get, name, name, committed_sequence(get, name))


def _from_fields(
    get: Callable[[str], bytes | None], record: str, name: str, sequence: int
) -> ChaincodeDefinition:
    endorsement = _parse(
        lifecycle_pb2.ChaincodeEndorsementInfo,
        _field(get, _NAMESPACES, record, "EndorsementInfo").Bytes,
        name,
    )
    validation = _parse(
        lifecycle_pb2.ChaincodeValidationInfo,
        _field(get, _NAMESPACES, record, "ValidationInfo").Bytes,
        name,
    )
    return ChaincodeDefinition(
        name=name,
        sequence=sequence,
        version=endorsement.version,
        endorsement_policy=validation.validation_parameter,
        collections=_parse(
            peer_pb2.CollectionConfigPackage,
            _field(get, _NAMESPACES, record, "Collections").Bytes,
            name,
        ),
        init_required=endorsement.init_required,
        endorsement_plugin=endorsement.endorsement_plugin,
        validation_plugin=validation.validation_plugin,
    )


def _field(
    get: Callable[[str], bytes | None], kind: str, record: str, name: str
) -> lifecycle_pb2.StateData:
    stored = get(f"{kind}/fields/{record}/{name}")
    return _parse(lifecycle_pb2.StateData, stored or b"", record)


def _parse[M: Message](message_type: type[M], data: bytes, name: str) -> M:
    try:
        return message_type.FromString(data)
    except DecodeError as error:
        raise LifecycleError(f"the record of contract {name} is unreadable: {error}") from None


# --- approving and committing definitions ----------------------------------------------------


def approve(
    wanted: ChaincodeDefinition,
    package_id: str,
    public: Callable[[str], bytes | None],
    organization: Records,
) -> None:
    """Record an organization's approval in its implicit collection.

    `package_id` is the package that it will run, "" for none. Raises LifecycleError if the
    sequence is not the current or the next one, or if nothing would change.
    """
    current = committed_sequence(public, wanted.name)
    if wanted.sequence <= 0 and current == 0:
        raise LifecycleError("requested sequence is 0, but first definable sequence number is 1")
    if wanted.sequence < current:
        raise LifecycleError(
            f"currently defined sequence {current} is larger than requested sequence "
            f"{wanted.sequence}: approve {current + 1}"
        )
    if wanted.sequence > current + 1:
        raise LifecycleError(
            f"requested sequence {wanted.sequence} is larger than the next available sequence "
            f"number {current + 1}"
        )
    wanted = with_defaults(wanted)
    if wanted.sequence == current and recorded_definition(public, wanted.name) != wanted:
        raise LifecycleError(
            f"attempted to redefine the current committed sequence ({current}) for namespace "
            f"{wanted.name} with different parameters: approve them as sequence {current + 1}"
        )
    record = f"{wanted.name}#{wanted.sequence}"
    if (
        organization.get(f"{_NAMESPACES}/metadata/{record}") is not None
        and _from_fields(organization.get, record, wanted.name, wanted.sequence) == wanted
        and _field(organization.get, _SOURCES, record, "PackageID").String == package_id
        and organization.get(f"{_SOURCES}/metadata/{record}") is not None
    ):
        if wanted.sequence == current:
            raise LifecycleError(
                f"attempted to redefine the current committed sequence ({current}) for namespace "
                f"{wanted.name}"
            )
        raise LifecycleError(
            f"attempted to redefine uncommitted sequence ({wanted.sequence}) for namespace "
            f"{wanted.name} with unchanged content"
        )
    _write_record(organization, _NAMESPACES, record, _PARAMETERS, _parameters(wanted))
    source = {"PackageID": lifecycle_pb2.StateData(String=package_id)}
    _write_record(organization, _SOURCES, record, _LOCAL_PACKAGE, source)


def approved_package(
    name: str, sequence: int, organization: Callable[[str], bytes | None]
) -> str | None:
    """The package id that an organization approved for a sequence, None if it did not approve."""
    record = f"{name}#{sequence}"
    if organization(f"{_SOURCES}/metadata/{record}") is None:
        return None
    return _field(organization, _SOURCES, record, "PackageID").String


def approved_package_hash(
    name: str, sequence: int, hash_of: Callable[[str], bytes | None]
) -> bytes | None:
    """The hash of the package id that an organization approved for a sequence (`package_hash`).

    `hash_of` gives the hash of the value of a key in its implicit collection, which every peer has.
    """
    return hash_of(f"{_SOURCES}/fields/{name}#{sequence}/PackageID")


def package_hash(package_id: str) -> bytes:
    """What `approved_package_hash` is for this package."""
    return hashlib.sha256(_string(package_id)).digest()


def _string(text: str) -> bytes:
    return lifecycle_pb2.StateData(String=text).SerializeToString()


def approved_definition(
    name: str, sequence: int, organization: Callable[[str], bytes | None]
) -> ChaincodeDefinition | None:
    """What an organization approved for a sequence, None if it did not approve."""
    record = f"{name}#{sequence}"
    if organization(f"{_NAMESPACES}/metadata/{record}") is None:
        return None
    return _from_fields(organization, record, name, sequence)


def approved_names(keys: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Contract and sequence of every approval among the keys of an implicit collection."""
    for key in keys:
        name, separator, sequence = key.removeprefix(RECORDS_START).rpartition("#")
        if separator and sequence.isdecimal():
            yield name, int(sequence)


def mismatches(
    wanted: ChaincodeDefinition, hash_of: Callable[[str], bytes | None]
) -> tuple[str, ...]:
    """In what an organization's approval differs from this definition; nothing if it is the same.

    "ChaincodeParameters" stands for an organization that has not approved the sequence at all.
    """
    wanted = with_defaults(wanted)
    record = f"{wanted.name}#{wanted.sequence}"
    fields = _parameters(wanted)

    def equal(key: str, value: bytes) -> bool:
        return hash_of(key) == hashlib.sha256(value).digest()

    if not equal(f"{_NAMESPACES}/metadata/{record}", _record_metadata(_PARAMETERS, fields)):
        return (_PARAMETERS,)
    return tuple(
        name
        for name, data in fields.items()
        if not equal(f"{_NAMESPACES}/fields/{record}/{name}", data.SerializeToString())
    )


def approvals(
    wanted: ChaincodeDefinition, organizations: Mapping[str, Callable[[str], bytes | None]]
) -> dict[str, bool]:
    """Which organizations approved exactly this definition.

    `organizations` gives, by MSP id, the hash of the value of a key in its implicit collection.
    """
    return {msp_id: not mismatches(wanted, hash_of) for msp_id, hash_of in organizations.items()}


def commit(wanted: ChaincodeDefinition, public: Records) -> None:
    """Write the definition that the channel runs from now on; raises LifecycleError.

    That enough organizations approved is theirs to check (`approvals`), and the namespace's
    endorsement policy sees to it.
    """
    current = committed_sequence(public.get, wanted.name)
    if wanted.sequence != current + 1:
        raise LifecycleError(
            f"requested sequence is {wanted.sequence}, but new definition must be sequence "
            f"{current + 1}"
        )
    wanted = with_defaults(wanted)
    fields = {
        "Sequence": lifecycle_pb2.StateData(Int64=wanted.sequence),
        **_parameters(wanted),
    }
    _write_record(public, _NAMESPACES, wanted.name, _DEFINITION, fields)


def with_defaults(wanted: ChaincodeDefinition) -> ChaincodeDefinition:
    """The definition with the channel's default policy if it names none."""
    if wanted.endorsement_policy:
        return wanted
    return ChaincodeDefinition(
        name=wanted.name,
        sequence=wanted.sequence,
        version=wanted.version,
        endorsement_policy=policy_reference(DEFAULT_POLICY),
        collections=wanted.collections,
        init_required=wanted.init_required,
        endorsement_plugin=wanted.endorsement_plugin,
        validation_plugin=wanted.validation_plugin,
    )


def policy_reference(path: str) -> bytes:
    """`ApplicationPolicy` bytes that name a policy of the channel's configuration."""
    return peer_pb2.ApplicationPolicy(channel_config_policy_reference=path).SerializeToString()


def signature_policy(policy: common_pb2.SignaturePolicyEnvelope) -> bytes:
    """`ApplicationPolicy` bytes of a signature policy."""
    return peer_pb2.ApplicationPolicy(signature_policy=policy).SerializeToString()


def _parameters(wanted: ChaincodeDefinition) -> dict[str, lifecycle_pb2.StateData]:
    endorsement = lifecycle_pb2.ChaincodeEndorsementInfo(
        version=wanted.version,
        init_required=wanted.init_required,
        endorsement_plugin=wanted.endorsement_plugin,
    )
    validation = lifecycle_pb2.ChaincodeValidationInfo(
        validation_plugin=wanted.validation_plugin,
        validation_parameter=wanted.endorsement_policy,
    )
    return {
        "EndorsementInfo": lifecycle_pb2.StateData(Bytes=endorsement.SerializeToString()),
        "ValidationInfo": lifecycle_pb2.StateData(Bytes=validation.SerializeToString()),
        "Collections": lifecycle_pb2.StateData(Bytes=wanted.collections.SerializeToString()),
    }


def _record_metadata(datatype: str, fields: Mapping[str, lifecycle_pb2.StateData]) -> bytes:
    return lifecycle_pb2.StateMetadata(datatype=datatype, fields=fields).SerializeToString()


def _write_record(
    records: Records,
    kind: str,
    record: str,
    datatype: str,
    fields: Mapping[str, lifecycle_pb2.StateData],
) -> None:
    """Write a record's metadata and fields, as far as they change."""
    metadata_key = f"{kind}/metadata/{record}"
    stored = records.get(metadata_key)
    before = _parse(lifecycle_pb2.StateMetadata, stored or b"", record)
    values = {name: records.get(f"{kind}/fields/{record}/{name}") for name in before.fields}
    for name, data in fields.items():
        value = data.SerializeToString()
        if values.get(name) != value:
            records.put(f"{kind}/fields/{record}/{name}", value)
    dropped = [name for name in before.fields if name not in fields]
    if dropped or before.datatype != datatype or len(before.fields) != len(fields):
        records.put(metadata_key, _record_metadata(datatype, fields))
    for name in dropped:
        records.delete(f"{kind}/fields/{record}/{name}")


# --- policies --------------------------------------------------------------------------------


class Policies:
    """The endorsement policies that hold for one state and configuration.

    They come as `ApplicationPolicy` bytes, for `ChannelConfig.application_policy` to compile.
    """

    def __init__(self, view: StateView, config: ChannelConfig) -> None:
        """`view` must stay open as long as this is used; contracts are looked up once."""
        self._view = view
        self._config = config
        self._definitions: dict[str, ChaincodeDefinition | None] = {}
        self._collections: dict[tuple[str, str], bytes | None] = {}

    def definition(self, name: str) -> ChaincodeDefinition | None:
        """A contract's committed definition; None too for one that is unreadable."""
        if name not in self._definitions:
            try:
                self._definitions[name] = definition(self._view, name)
            except LifecycleError:
                self._definitions[name] = None
        return self._definitions[name]

    def namespace(self, name: str) -> bytes | None:
        """The policy of a contract, or of `_lifecycle`; None if it cannot be validated here."""
        if name == NAMESPACE:
            return self._lifecycle()
        found = self.definition(name)
        if found is None or found.validation_plugin != VALIDATION_PLUGIN:
            return None
        return found.endorsement_policy or None

    def collection(self, name: str, collection: str) -> bytes | None:
        """The policy of a contract's collection (its contract's, if it has none of its own).

        None if there is no such collection.
        """
        found = self.definition(name)
        if found is None and name != NAMESPACE:
            return None
        msp_id = implicit_organization(collection)
        if msp_id is not None:
            return self._implicit(msp_id)
        space = (name, collection)
        if space not in self._collections:
            config = found.collection(collection) if found else None
            if found is None or config is None:
                self._collections[space] = None
            elif config.HasField("endorsement_policy"):
                self._collections[space] = config.endorsement_policy.SerializeToString()
            else:
                self._collections[space] = found.endorsement_policy
        return self._collections[space]

    def key(self, namespace: str, key: str) -> bytes:
        """A public key's own policy as `SignaturePolicyEnvelope` bytes, empty for none."""
        value = self._view.get(namespace, key)
        return metadata_entry(value.metadata, VALIDATION_PARAMETER) if value else b""

    def hashed_key(self, namespace: str, collection: str, key_hash: bytes) -> bytes:
        """A private key's own policy as `SignaturePolicyEnvelope` bytes, empty for none."""
        value = self._view.get_private_hash(namespace, collection, key_hash)
        return metadata_entry(value.metadata, VALIDATION_PARAMETER) if value else b""

    def collection_config(
        self, name: str, collection: str
    ) -> peer_pb2.StaticCollectionConfig | None:
        """An explicit or implicit collection's configuration, None if there is none."""
        msp_id = implicit_organization(collection)
        if msp_id is not None:
            members = signature_policy_any([role_principal(msp_id, "member")])
            return peer_pb2.StaticCollectionConfig(
                name=collection,
                member_orgs_policy=peer_pb2.CollectionPolicyConfig(signature_policy=members),
            )
        found = self.definition(name)
        return found.collection(collection) if found else None

    def _lifecycle(self) -> bytes:
        if self._has(LIFECYCLE_POLICY):
            return policy_reference(LIFECYCLE_POLICY)
        members = [role_principal(msp_id, "member") for msp_id in self._config.application_orgs]
        return signature_policy(signature_policy_n_out_of(len(members) // 2 + 1, members))

    def _implicit(self, msp_id: str) -> bytes | None:
        group = self._application_group(msp_id)
        if group is None:
            return None
        path = f"/Channel/Application/{group}/Endorsement"
        if self._has(path):
            return policy_reference(path)
        return signature_policy(signature_policy_any([role_principal(msp_id, "member")]))

    def _application_group(self, msp_id: str) -> str | None:
        """The name of an organization's group in the configuration, which need not be its id."""
        if msp_id in self._config.application_orgs:
            groups = self._config.config.channel_group.groups["Application"].groups
            for name, group in groups.items():
                msp = msp_pb2.MSPConfig.FromString(group.values["MSP"].value)
                if msp_pb2.FabricMSPConfig.FromString(msp.config).name == msp_id:
                    return name
        return None

    def _has(self, path: str) -> bool:
        try:
            self._config.policy(path)
        except PolicyNotFoundError:
            return False
        return True


def member_organizations(config: peer_pb2.StaticCollectionConfig) -> frozenset[str]:
    """MSP ids of a collection's members."""
    try:
        return SignaturePolicy(config.member_orgs_policy.signature_policy).organizations
    except PolicyError:
        return frozenset()  # an unreadable policy has no members, but must not stop the chain
