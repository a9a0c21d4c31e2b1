"""Who is a member of the channel, and in which role: Fabric's membership service provider.

An `Msp` is one organization's definition in the channel configuration: root and intermediate
certificates, revocation lists, and which organizational unit means which role. It judges a
certificate from these alone. **No clock is read**: chains are judged one second after the
certificate's own start (Fabric's FAB-3678), so that an expired certificate still verifies what it
signed while it held. Edges (endorser, orderer, Deliver) ask `check_not_expired` besides.

Source of the rules: hyperledger/fabric `msp/mspimplsetup.go`, `msp/mspimplvalidate.go`,
`msp/mspimpl.go` at MSP version 1.4.3 (channel capabilities V1_4_3 and V2_0) and 3.0 (V3_0, which
adds Ed25519 keys).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from google.protobuf.message import DecodeError

from consortium.identity.certificates import (
    CERTIFICATE_FAULTS,
    certificate_attributes,
    certificate_der,
    certificate_pem,
    load_certificate,
)
from consortium.identity.chains import (
    Authorities,
    Authority,
    ChainError,
    certifiers_identifier,
    name_of,
)
from consortium.identity.signing import verify_signature
from consortium.wire import common_pb2, msp_pb2
from consortium.wire.envelopes import brief, shortened

FABRIC_MSP = 0
"""`MSPConfig.type` of an MSP of X.509 certificates, the only kind supported here."""
IDENTITY_CACHE_ENTRIES = 8192
CACHED_IDENTITY_BYTES = 8 * 1024
"""Longer serialized identities are read anew each time; one with a certificate has about 1 kB."""
"""Identities kept per channel configuration, about 6 kB each."""
COMBINED_PRINCIPAL_DEPTH = 16

MEMBER = common_pb2.MSPRole.MEMBER
ADMIN = common_pb2.MSPRole.ADMIN
CLIENT = common_pb2.MSPRole.CLIENT
PEER = common_pb2.MSPRole.PEER
ORDERER = common_pb2.MSPRole.ORDERER

_OU_ROLES = {"client": CLIENT, "peer": PEER, "admin": ADMIN, "orderer": ORDERER}


class _ShortError(ValueError):
    """Its message may name what others chose, at any length."""

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class IdentityError(_ShortError):
    """An identity that is not a member's, or no longer; the message says why."""


class MspError(_ShortError):
    """A definition of an organization that no channel may have; the message says why."""


class Identity:
    """A certificate of one organization, with what its MSP found out about it.

    Immutable and shared between threads. `problem` says why it is no valid member, or is None.
    """

    def __init__(
        self,
        *,
        msp: Msp,
        serialized: bytes,
        certificate: x509.Certificate,
        der: bytes,
        chain: Sequence[Authority],
        organizational_units: tuple[str, ...],
        problem: str | None,
        roles: frozenset[int],
    ) -> None:
        self.msp = msp
        self.msp_id = msp.id
        self.serialized = serialized
        self.certificate = certificate
        self.der = der
        self.chain = tuple(chain)
        self.organizational_units = organizational_units
        self.problem = problem
        self.roles = roles
        self.public_key: CertificatePublicKeyTypes = certificate.public_key()
        self.key = (msp.id, sha256(der).digest())
        """Equal for all serialized forms of the same certificate."""

    def __repr__(self) -> str:
        return f"Identity({self.msp_id}, {self.common_name!r})"

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether this identity's key signed the message; says nothing about membership."""
        return verify_signature(self.public_key, signature, message)

    @cached_property
    def attributes(self) -> Mapping[str, str]:
        """fabric-ca's attributes in the certificate."""
        return certificate_attributes(self.certificate)

    @cached_property
    def common_name(self) -> str:
        """The subject's common name, empty where there is none."""
        names = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[-1].value) if names else ""

    @cached_property
    def certifiers_identifier(self) -> bytes:
        """SHA-256 over the chain above the certificate, Fabric's name of who certified it."""
        return certifiers_identifier(self.chain)

    @property
    def is_admin(self) -> bool:
        """Whether it is an administrator of its organization."""
        return ADMIN in self.roles

    @property
    def role(self) -> str:
        """`client`, `peer`, `admin` or `orderer`; empty where roles are not told apart."""
        return next((name for name, role in _OU_ROLES.items() if role in self.roles), "")


def check_not_expired(identity: Identity, at_epoch_s: float) -> None:
    """Raises IdentityError when the certificate is expired at that time (s since 1970, UTC).

    For the edges alone. A certificate that is not valid yet passes, as in Fabric.
    """
    end = identity.certificate.not_valid_after_utc
    if at_epoch_s > end.timestamp():
        raise IdentityError(
            f"the certificate of {identity.common_name} ({identity.msp_id}) expired at "
            f"{end.isoformat()}; enrol it again"
        )


# ---------------------------------------------------------------------------- principals


@dataclass(frozen=True, slots=True)
class Principal:
    """A parsed `MSPPrincipal`: what an identity has to be. `admits` decides.

    `PeerOf` of the policy room stands in for a peer that isn't there yet, hence the protocol
    of plain attributes: `msp_id`, `roles`.
    """

    msp_id: str
    roles: frozenset[int]
    test: Callable[[Identity], bool] | None = None
    """A further test beyond organization and role, or None."""
    nominal: bool = False
    """Any identity that isn't anonymous, whoever's it is."""


def parse_principal(principal: common_pb2.MSPPrincipal) -> tuple[Principal, ...]:
    """All of these have to admit an identity. Raises MspError for one that nothing satisfies.

    Combined principals are flattened, as in `collectPrincipals`.
    """
    return tuple(_parse_principal(principal, COMBINED_PRINCIPAL_DEPTH))


def _parse_principal(principal: common_pb2.MSPPrincipal, depth: int) -> Iterator[Principal]:
    kinds = common_pb2.MSPPrincipal
    kind, data = principal.principal_classification, principal.principal
    try:
        if kind == kinds.ROLE:
            role = common_pb2.MSPRole.FromString(data)
            if role.role not in common_pb2.MSPRole.MSPRoleType.values():
                raise MspError(f"a principal names the unknown role {role.role}")
            yield Principal(role.msp_identifier, frozenset((role.role,)))
        elif kind == kinds.ORGANIZATION_UNIT:
            unit = common_pb2.OrganizationUnit.FromString(data)
            name, certifiers = unit.organizational_unit_identifier, unit.certifiers_identifier
            yield Principal(
                unit.msp_identifier,
                frozenset((MEMBER,)),
                lambda identity: (
                    name in identity.organizational_units
                    and identity.certifiers_identifier == certifiers
                ),
            )
        elif kind == kinds.IDENTITY:
            wanted = msp_pb2.SerializedIdentity.FromString(data)
            yield Principal(
                wanted.mspid,
                frozenset((MEMBER,)),
                lambda identity: identity.msp.deserialize(data).der == identity.der,
            )
        elif kind == kinds.ANONYMITY:
            anonymity = common_pb2.MSPIdentityAnonymity.FromString(data)
            if anonymity.anonymity_type != common_pb2.MSPIdentityAnonymity.NOMINAL:
                raise MspError("a principal asks for an anonymous identity; X.509 has none")
            yield Principal("", frozenset(), nominal=True)
        elif kind == kinds.COMBINED:
            parts = common_pb2.CombinedPrincipal.FromString(data).principals
            if not parts:
                raise MspError("a combined principal is empty")
            if depth == 0:
                raise MspError(
                    f"combined principals are nested deeper than {COMBINED_PRINCIPAL_DEPTH}"
                )
            for part in parts:
                yield from _parse_principal(part, depth - 1)
        else:
            raise MspError(f"a principal is of the unknown kind {kind}")
    except DecodeError as error:
        raise MspError(f"a principal cannot be read: {error}") from None


def admits(principals: Iterable[Principal], identity: Identity) -> bool:
    """Whether all of the parsed principals admit the identity."""
    for principal in principals:
        if principal.nominal:
            continue
        if principal.msp_id != identity.msp_id or not principal.roles <= identity.roles:
            return False
        if principal.test is not None:
            try:
                if not principal.test(identity):
                    return False
            except IdentityError:
                return False
    return True


# ---------------------------------------------------------------------------- one organization


@dataclass(frozen=True, slots=True)
class _RoleUnit:
    """An organizational unit that means a role, and who has to have certified it (or anyone)."""

    name: str
    role: int
    certifiers_identifier: bytes


class Msp:
    """One organization's definition: reads and judges the certificates of its members."""

    def __init__(self, config: msp_pb2.FabricMSPConfig, *, allow_ed25519: bool = False) -> None:
        """Raises MspError when Fabric would refuse the definition."""
        self.id = config.name
        self.config = config
        self._allow_ed25519 = allow_ed25519
        if not self.id:
            raise MspError("an organization's MSP has no name")
        crypto = config.crypto_config
        if crypto.signature_hash_family not in ("", "SHA2"):
            raise MspError(
                f"MSP {self.id} signs with the hash family {crypto.signature_hash_family!r}; "
                "SHA2 is supported"
            )
        if crypto.identity_identifier_hash_function not in ("", "SHA256"):
            raise MspError(
                f"MSP {self.id} names identities with "
                f"{crypto.identity_identifier_hash_function!r}; SHA256 is supported"
            )
        if not config.root_certs:
            raise MspError(f"MSP {self.id} has no root certificate")
        try:
            self._authorities = Authorities(
                self._load(config.root_certs, "root"),
                self._load(config.intermediate_certs, "intermediate"),
                config.revocation_list,
            )
            self.tls_root_certificates = self._load_tls_authorities(config)
            """PEM of the roots and intermediates that its nodes' TLS certificates come from."""
            self._allowed_units = {
                (unit.organizational_unit_identifier, self._certifiers_of(unit.certificate))
                for unit in config.organizational_unit_identifiers
            }
            self._load_role_units(config.fabric_node_ous)
            self._load_admins(config)
        except CERTIFICATE_FAULTS as error:
            raise MspError(f"MSP {self.id} is not valid: {error}") from None

    @classmethod
    def from_config(cls, config: msp_pb2.MSPConfig, *, allow_ed25519: bool = False) -> Msp:
        """The MSP of a channel configuration's `MSP` value; raises MspError."""
        if config.type != FABRIC_MSP:
            raise MspError(
                f"an organization's MSP is of type {config.type}; only X.509 (type 0) is supported"
            )
        try:
            parsed = msp_pb2.FabricMSPConfig.FromString(config.config)
        except DecodeError as error:
            raise MspError(f"an organization's MSP cannot be read: {error}") from None
        return cls(parsed, allow_ed25519=allow_ed25519)

    # -- setting up

    @staticmethod
    def _load(pems: Iterable[bytes], kind: str) -> list[x509.Certificate]:
        return [load_certificate(pem, f"a {kind} certificate") for pem in pems]

    def _load_tls_authorities(self, config: msp_pb2.FabricMSPConfig) -> tuple[bytes, ...]:
        roots = self._load(config.tls_root_certs, "TLS root")
        intermediates = self._load(config.tls_intermediate_certs, "TLS intermediate")
        # Building the set checks them: CA flag, key identifier, chains.
        Authorities(roots, intermediates)
        # Written anew: TLS stops reading a bundle at the first block that it can't read, and what
        # this organization has put behind its certificate would hide the next ones'.
        return tuple(map(certificate_pem, (*roots, *intermediates)))

    def _certifiers_of(self, pem: bytes) -> bytes:
        return self._authorities.certifiers_identifier(
            load_certificate(pem, "an organizational unit's authority")
        )

    def _load_role_units(self, config: msp_pb2.FabricNodeOUs) -> None:
        units: list[_RoleUnit] = []
        for field, role in _OU_ROLES.items():
            if not config.HasField(f"{field}_ou_identifier"):
                continue
            unit: msp_pb2.FabricOUIdentifier = getattr(config, f"{field}_ou_identifier")
            certifiers = self._certifiers_of(unit.certificate) if unit.certificate else b""
            units.append(_RoleUnit(unit.organizational_unit_identifier, role, certifiers))
        self.tells_roles_apart = config.enable and bool(units)
        self._role_units = units

    def _load_admins(self, config: msp_pb2.FabricMSPConfig) -> None:
        self._admins: frozenset[bytes] = frozenset()
        admins = [self._identity(pem, b"") for pem in config.admins]
        admin_unit = any(unit.role == ADMIN for unit in self._role_units)
        if not admins and not (self.tells_roles_apart and admin_unit):
            raise IdentityError(
                "it names neither administrators nor an organizational unit that makes one"
            )
        for admin in admins:
            if not self.tells_roles_apart:
                if admin.problem is not None:
                    raise IdentityError(f"its administrator is not valid: {admin.problem}")
            elif not any(
                unit.role in (CLIENT, ADMIN) and unit.name in admin.organizational_units
                for unit in self._role_units
            ):
                raise IdentityError("its administrator is in neither the client nor the admin unit")
        self._admins = frozenset(admin.der for admin in admins)

    # -- judging a certificate

    def _identity(self, pem: bytes, serialized: bytes) -> Identity:
        """Read and judge one certificate.

        Raises IdentityError when it cannot be read or isn't this organization's at all; whatever
        else is wrong with it goes into `problem`, since Fabric judges that later and only where
        a principal asks for it.
        """
        try:
            certificate = load_certificate(pem, "the certificate")
            key = certificate.public_key()
            chain = self._authorities.chain(certificate)
            der = chain[0].low_s_form(certificate) if chain else certificate_der(certificate)
        except CERTIFICATE_FAULTS as error:
            raise IdentityError(f"an identity of {self.id} is not valid: {error}") from None
        units = tuple(
            str(unit.value)
            for unit in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        )
        problem = self._problem(certificate, key, chain, units)
        return Identity(
            msp=self,
            serialized=serialized,
            certificate=certificate,
            der=der,
            chain=chain,
            organizational_units=units,
            problem=problem,
            roles=self._roles(der, units, problem),
        )

    def _problem(
        self,
        certificate: x509.Certificate,
        key: CertificatePublicKeyTypes,
        chain: Sequence[Authority],
        units: Sequence[str],
    ) -> str | None:
        if not isinstance(key, ec.EllipticCurvePublicKey) and not (
            self._allow_ed25519 and isinstance(key, ed25519.Ed25519PublicKey)
        ):
            return f"the key of {name_of(certificate)} is not an ECDSA key"
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
            if constraints.value.ca:
                return f"the certificate {name_of(certificate)} is an authority's, not an identity"
        except x509.ExtensionNotFound:
            pass
        if not chain or not self._authorities.issues_identities(chain[0]):
            return f"the issuer of {name_of(certificate)} does not issue identities of {self.id}"
        try:
            self._authorities.check_not_revoked(certificate, chain[0])
        except ChainError as error:
            return f"{error} by {self.id}"
        return self._unit_problem(certificate, chain, units)

    def _unit_problem(
        self, certificate: x509.Certificate, chain: Sequence[Authority], units: Sequence[str]
    ) -> str | None:
        certifiers = certifiers_identifier(chain)
        if self._allowed_units and not any(
            (unit, certifiers) in self._allowed_units for unit in units
        ):
            return (
                f"the organizational units of {name_of(certificate)} are none that {self.id} allows"
            )
        if not self.tells_roles_apart:
            return None
        # The last definition wins where two roles share a unit's name, as in Fabric's map.
        by_name = {unit.name: unit for unit in self._role_units}
        matching = [by_name[unit] for unit in units if unit in by_name]
        for unit in matching[:2]:
            if unit.certifiers_identifier and unit.certifiers_identifier != certifiers:
                return (
                    f"the role of {name_of(certificate)} was certified by another authority "
                    f"of {self.id}"
                )
        if len(matching) != 1:
            return (
                f"{name_of(certificate)} has {len(matching)} organizational units that give a "
                f"role in {self.id}; it must have one of client, peer, admin and orderer"
            )
        return None

    def _roles(self, der: bytes, units: Sequence[str], problem: str | None) -> frozenset[int]:
        roles: set[int] = set()
        if der in self._admins:
            roles.add(ADMIN)  # named in the configuration: holds whatever else is wrong with it
        if problem is None:
            roles.add(MEMBER)
            if self.tells_roles_apart:
                roles.update(unit.role for unit in self._role_units if unit.name in units)
        return frozenset(roles)

    # -- what others use

    def deserialize(self, serialized: bytes) -> Identity:
        """The identity in a `SerializedIdentity` of this MSP, valid or not.

        Raises IdentityError when it cannot be read, or was not issued under this MSP.
        """
        try:
            parsed = msp_pb2.SerializedIdentity.FromString(serialized)
        except DecodeError as error:
            raise IdentityError(f"an identity cannot be read: {error}") from None
        if parsed.mspid != self.id:
            raise IdentityError(f"an identity of {brief(parsed.mspid)} was given to {self.id}")
        return self._identity(parsed.id_bytes, serialized)

    def identity_of(self, certificate: x509.Certificate) -> Identity:
        """The identity of a certificate that did not come serialized; raises IdentityError."""
        pem = certificate.public_bytes(Encoding.PEM)
        return self.deserialize(
            msp_pb2.SerializedIdentity(mspid=self.id, id_bytes=pem).SerializeToString()
        )

    def validate(self, identity: Identity) -> None:
        """Raises IdentityError when the identity is not a valid member. Reads no clock."""
        if identity.problem is not None:
            raise IdentityError(identity.problem)

    def satisfies(self, identity: Identity, principal: common_pb2.MSPPrincipal) -> bool:
        """Whether the identity is what the principal asks for; False for a broken principal."""
        try:
            return admits(parse_principal(principal), identity)
        except MspError:
            return False


# ---------------------------------------------------------------------------- the channel


def check_standing(msp_id: str, serialized: bytes, channels: Iterable[MspManager]) -> None:
    """Check that no channel calls a member of an organization invalid; raises IdentityError.

    An organization's own MSP holds no revocation lists: they stand in the channels' configurations.
    One that doesn't know the certificate's issuer (yet, or any more) says nothing of it.
    """
    for msps in channels:
        if msp_id not in msps:
            continue
        try:
            known = msps.deserialize(serialized)
        except IdentityError:
            continue
        if known.problem is not None:
            raise IdentityError(known.problem)


class MspManager:
    """All organizations of one channel configuration. Safe to use from several threads.

    Identities are cached by their serialized bytes, since the same few certificates sign
    everything; the cache belongs to this configuration and goes with it.
    """

    def __init__(
        self, msps: Mapping[str, Msp], *, cache_entries: int = IDENTITY_CACHE_ENTRIES
    ) -> None:
        self.msps: Mapping[str, Msp] = dict(msps)
        self._cached: Callable[[bytes], Identity] = lru_cache(maxsize=cache_entries)(
            self._deserialize
        )

    def deserialize(self, serialized: bytes) -> Identity:
        """The identity in serialized bytes, valid or not; raises IdentityError if unreadable."""
        # Anyone may send one: a few thousand of a message's size must not stay in memory.
        if len(serialized) > CACHED_IDENTITY_BYTES:
            return self._deserialize(serialized)
        return self._cached(serialized)

    def _deserialize(self, serialized: bytes) -> Identity:
        try:
            msp_id = msp_pb2.SerializedIdentity.FromString(serialized).mspid
        except DecodeError as error:
            raise IdentityError(f"an identity cannot be read: {error}") from None
        msp = self.msps.get(msp_id)
        if msp is None:
            raise IdentityError(f"the organization {brief(msp_id)} is not a member of the channel")
        return msp.deserialize(serialized)

    def identity(self, serialized: bytes) -> Identity:
        """The valid member in serialized bytes; raises IdentityError saying what is wrong."""
        identity = self.deserialize(serialized)
        if identity.problem is not None:
            raise IdentityError(identity.problem)
        return identity

    def __contains__(self, msp_id: object) -> bool:
        return msp_id in self.msps

    def tls_roots_pem(self, msp_id: str) -> bytes:
        """The certificates that an organization's TLS certificates are trusted by.

        Empty for an organization that is not a member (any more).
        """
        msp = self.msps.get(msp_id)
        return b"".join(msp.tls_root_certificates) if msp else b""

    def satisfies(self, identity: Identity, principal: common_pb2.MSPPrincipal) -> bool:
        """Whether the identity is what the principal asks for."""
        return identity.msp.satisfies(identity, principal)


def msp_config(
    msp_id: str,
    root_pem: bytes,
    *,
    tls_root_pem: bytes | None = None,
    revocation_lists: Iterable[bytes] = (),
) -> msp_pb2.MSPConfig:
    """The definition of an organization with one root and roles by organizational unit.

    The root certifies identities and, unless another is given, TLS. The same bytes each time, as
    a definition that stands in two groups of a configuration has to be equal in both.
    """
    roles = {
        f"{name}_ou_identifier": msp_pb2.FabricOUIdentifier(
            organizational_unit_identifier=name, certificate=root_pem
        )
        for name in _OU_ROLES
    }
    config = msp_pb2.FabricMSPConfig(
        name=msp_id,
        root_certs=[root_pem],
        tls_root_certs=[tls_root_pem or root_pem],
        revocation_list=list(revocation_lists),
        crypto_config=msp_pb2.FabricCryptoConfig(
            signature_hash_family="SHA2", identity_identifier_hash_function="SHA256"
        ),
        fabric_node_ous=msp_pb2.FabricNodeOUs(enable=True, **roles),
    )
    return msp_pb2.MSPConfig(type=FABRIC_MSP, config=config.SerializeToString(deterministic=True))
