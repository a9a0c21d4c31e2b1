"""A consortium's network as a folder: who takes part, where each node listens, and its keys.

<data-dir>/network.json             this description
<data-dir>/genesis.block            the channel's first block
<data-dir>/tls-bundle.pem           the roots of all utilities, what a home trusts
<data-dir>/<utility>/ca/            the enrolment authority: root certificate, key, registry
<data-dir>/<utility>/{peer,orderer}/  a node's identity, its TLS certificate, its ledger or log
<data-dir>/<utility>/peer1/ …       more peers of a utility that has several
<data-dir>/<utility>/{admin,operator}/  the identities of the utility's own people
"""

import json
import shutil
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from cryptography import x509

from consortium.ca.registry import Registry
from consortium.identity.certificates import (
    CertificateAuthority,
    CertificateError,
    certificate_pem,
    generate_key,
    key_pem,
    load_certificate,
    load_key,
    write_private,
)
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import (
    ChannelConfig,
    ChannelSpec,
    Consenter,
    OrganizationSpec,
    RaftOptions,
)
from consortium.ledger.channel_config import genesis_block as make_genesis_block
from consortium.wire import common_pb2
from consortium.wire.envelopes import parse
from gridledger_client import Invitation, fingerprint

FORMAT = 1
DEFAULT_CHANNEL = "neighbourhood"
DEFAULT_UTILITIES = ("Aurora", "Boreal", "Cielo")
DEFAULT_BASE_PORT = 17050
HOST = "127.0.0.1"
NEXT_AUTHORITY = "next"
PREVIOUS_AUTHORITY = "previous"
"""Folders of an authority that is being changed for another, in `ca/`."""
MAX_UTILITIES = 32
PORTS = 6
"""Of a utility: what `Ports` names."""
MAX_PEERS = 8
"""Peers of one utility."""
BATCH_ENVELOPES = 500
BATCH_TIMEOUT = "100ms"
"""A block is cut at so many envelopes, or so long after its first one."""
RAFT_TICK_S = 0.05
"""An election starts after 10 to 20 ticks without a leader, so within a second."""

Progress = Callable[[str], None]


class NetworkError(Exception):
    """A network folder that can't be made or read; the sentence says what to do."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a utility's nodes listen, on loopback."""

    ca: int
    peer: int
    peer_node: int
    orderer: int
    cluster: int
    admin: int = 0
    """The orderer's channel participation, for its own admins; 0 turns it off."""


@dataclass(frozen=True, slots=True)
class PeerPorts:
    """Where one more peer of a utility listens, on loopback."""

    client: int
    node: int


@dataclass(frozen=True, slots=True)
class Replay:
    """A channel's clock that replays the past.

    Channel time is `origin + (transaction time - anchor) * rate`, all in epoch seconds.
    """

    origin: int
    anchor: int
    rate: int = 1


@dataclass(frozen=True, slots=True)
class Utility:
    """One member of the consortium and its folder."""

    name: str
    ports: Ports
    directory: Path
    more_peers: tuple[PeerPorts, ...] = ()

    @property
    def peers(self) -> dict[str, PeerPorts]:
        """Its peers by kind: `peer`, then `peer1` and so on; the kind is also the folder's name."""
        first = PeerPorts(self.ports.peer, self.ports.peer_node)
        return {"peer": first} | {f"peer{at}": one for at, one in enumerate(self.more_peers, 1)}

    @property
    def all_ports(self) -> frozenset[int]:
        """Every port that its nodes listen on."""
        more = [port for one in self.more_peers for port in (one.client, one.node)]
        return frozenset([*asdict(self.ports).values(), *more])

    @property
    def msp_id(self) -> str:
        """Its name on the channel, such as `AuroraMSP`."""
        return f"{self.name}MSP"

    @property
    def domain(self) -> str:
        """Its internet domain (a reserved one)."""
        return f"{self.name.lower()}.example"

    @property
    def ca_url(self) -> str:
        """Where its enrolment authority answers."""
        return f"https://{HOST}:{self.ports.ca}"

    @property
    def gateway_address(self) -> str:
        """Where homes and tools reach its peer."""
        return self.address_of("peer")

    def address_of(self, kind: str) -> str:
        """Where homes and tools reach one of its peers; raises NetworkError if it has none such."""
        if kind not in self.peers:
            raise NetworkError(f"{self.name} has no {kind!r}; it has {', '.join(self.peers)}")
        return f"{HOST}:{self.peers[kind].client}"

    @property
    def root_pem(self) -> bytes:
        """Its root certificate."""
        return (self.directory / "ca" / CertificateAuthority.CERTIFICATE_FILE).read_bytes()

    def signer(self, who: str) -> Signer:
        """The signing identity of `peer`, `orderer`, `admin` or `operator`."""
        folder = self.directory / who
        return Signer.load(self.msp_id, folder / "sign.cert.pem", folder / "sign.key.pem")


@dataclass(frozen=True, slots=True)
class Network:
    """A network folder, read."""

    directory: Path
    channel: str
    interval_s: int
    replay: Replay | None
    utilities: tuple[Utility, ...]
    beside_fabric: bool = False
    """Some orderers are Hyperledger Fabric's: consenters are added and removed as Fabric does."""

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `network.json`; raises NetworkError."""
        path = directory / "network.json"
        try:
            stored: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise NetworkError(
                f"there is no network in {directory}; make one with "
                f"`gridledger network init --data-dir {directory}`"
            ) from None
        except ValueError as error:
            raise NetworkError(f"{path} is not valid JSON: {error}") from None
        if stored.get("format") != FORMAT:
            raise NetworkError(
                f"{path} has format {stored.get('format')}; this version reads format {FORMAT}"
            )
        return cls(
            directory=directory,
            channel=stored["channel"],
            interval_s=stored["interval_s"],
            replay=Replay(**stored["replay"]) if stored["replay"] else None,
            utilities=tuple(
                Utility(
                    name=utility["name"],
                    ports=Ports(**utility["ports"]),
                    directory=directory / utility["name"].lower(),
                    more_peers=tuple(PeerPorts(**more) for more in utility.get("peers", ())),
                )
                for utility in stored["utilities"]
            ),
            beside_fabric=stored.get("beside_fabric", False),
        )

    @property
    def genesis_block(self) -> common_pb2.Block | None:
        """The first block of the channel that nodes join when they start, None for no such one."""
        try:
            raw = (self.directory / "genesis.block").read_bytes()
        except FileNotFoundError:
            return None
        return parse(common_pb2.Block, raw, f"{self.directory / 'genesis.block'}")

    @property
    def tls_bundle(self) -> Path:
        """The file with the root certificates of all utilities."""
        return self.directory / "tls-bundle.pem"

    @property
    def tls_bundle_pem(self) -> bytes:
        """The root certificates of all utilities."""
        return self.tls_bundle.read_bytes()

    def utility(self, name: str) -> Utility:
        """A utility by its name or MSP id, in any case; raises NetworkError."""
        for utility in self.utilities:
            if name.lower() in (utility.name.lower(), utility.msp_id.lower()):
                return utility
        known = ", ".join(utility.name for utility in self.utilities)
        raise NetworkError(f"there is no utility {name!r} in {self.directory}; there are {known}")

    def register_identity(
        self, msp_id: str, enrollment_id: str, secret: str | None, attributes: dict[str, str]
    ) -> str:
        """Let someone enrol once at a utility; returns the secret (made here unless given)."""
        registry = Registry.open(self.utility(msp_id).directory / "ca")
        return registry.register(enrollment_id, secret=secret, attributes=attributes)

    def invite(
        self, utility: Utility, enrollment_id: str, connection_id: str, *, again: bool = False
    ) -> Invitation:
        """Let a home enrol once at a utility; returns what its owner gets, own gateway first.

        `again` gives an id that is registered for this connection point a new secret. Raises
        RegistryError where the id is taken or can't be one, NetworkError where there is nothing to
        invite again.
        """
        registry = Registry.open(utility.directory / "ca")
        attributes = {"gridledger.role": "home", "gridledger.connection": connection_id}
        if again:
            registered = registry.get(enrollment_id)
            if registered is None or registered.attributes != attributes:
                raise NetworkError(
                    f"{enrollment_id} is not registered for {connection_id} at {utility.name}; "
                    "invite it without --again"
                )
            secret = registry.reset_secret(enrollment_id)
        else:
            secret = registry.register(enrollment_id, attributes=attributes)
        others = (one for one in self.utilities if one != utility)
        return Invitation(
            tuple(one.gateway_address for one in (utility, *others)),
            utility.ca_url,
            self.channel,
            fingerprint(self.tls_bundle_pem),
            enrollment_id,
            secret,
            utility.msp_id,
            connection_id,
        )


def create_network(
    directory: Path,
    *,
    channel: str = DEFAULT_CHANNEL,
    utilities: Sequence[str] = DEFAULT_UTILITIES,
    interval_s: int = 900,
    replay: Replay | None = None,
    base_port: int = DEFAULT_BASE_PORT,
    peers: Mapping[str, int] | None = None,
    max_message_count: int = BATCH_ENVELOPES,
    batch_timeout: str = BATCH_TIMEOUT,
    first_block: bool = True,
    progress: Progress = lambda _message: None,
) -> Network:
    """Make authorities, identities and the channel's first block in `directory`.

    Ports are the first free ones from `base_port` on. `peers` names utilities that have more than
    one peer; every peer stands in the channel's configuration as an anchor peer, which is how peers
    find one another. Without `first_block` the nodes belong to no channel until `adopt_channel`.
    Raises NetworkError where a network is there already or a name or interval can't be used.
    """
    if (directory / "network.json").exists():
        raise NetworkError(f"{directory} holds a network already; start it, or choose another")
    if not 1 <= len(utilities) <= MAX_UTILITIES:
        raise NetworkError(f"{len(utilities)} utilities; 1 to {MAX_UTILITIES} are possible")
    for name in utilities:
        _check_name(name)
    if len({name.lower() for name in utilities}) < len(utilities):
        raise NetworkError("two utilities have the same name")
    if interval_s < 1 or 3600 % interval_s:
        raise NetworkError(f"an interval of {interval_s} s does not divide an hour")
    more = {name: count - 1 for name, count in (peers or {}).items()}
    for name, count in more.items():
        if name not in utilities:
            raise NetworkError(f"peers are asked for {name}, which is none of the utilities")
        if not 0 <= count < MAX_PEERS:
            raise NetworkError(f"{count + 1} peers of {name}; 1 to {MAX_PEERS} are possible")
    directory.mkdir(parents=True, exist_ok=True)
    ports = iter(_free_ports(base_port, PORTS * len(utilities) + 2 * sum(more.values())))
    members = tuple(
        Utility(
            name,
            Ports(*(next(ports) for _ in range(PORTS))),
            directory / name.lower(),
            tuple(PeerPorts(next(ports), next(ports)) for _ in range(more.get(name, 0))),
        )
        for name in utilities
    )
    roots = []
    for utility in members:
        progress(f"{utility.name}: certificate authority, orderer, peer")
        roots.append(_create_utility(utility))
    (directory / "tls-bundle.pem").write_bytes(b"".join(roots))
    if first_block:
        progress(f"channel {channel}: first block")
        block = first_block_of(
            channel, members, max_message_count=max_message_count, batch_timeout=batch_timeout
        )
        (directory / "genesis.block").write_bytes(block.SerializeToString())
    return _saved(Network(directory, channel, interval_s, replay, members))


def first_block_of(
    channel: str,
    members: Sequence[Utility],
    *,
    max_message_count: int = BATCH_ENVELOPES,
    batch_timeout: str = BATCH_TIMEOUT,
) -> common_pb2.Block:
    """The first block of a channel whose members endorse, commit and order.

    `batch_timeout` as Fabric writes it, e.g. "2s". Raises ConfigError for a name that can't be a
    channel's.
    """
    return make_genesis_block(
        ChannelSpec(
            channel_id=channel,
            organizations=tuple(organization(utility) for utility in members),
            consenters=tuple(_consenter(utility) for utility in members),
            max_message_count=max_message_count,
            batch_timeout=batch_timeout,
            raft=RaftOptions(tick_interval_s=RAFT_TICK_S),
        )
    )


def _check_name(name: str) -> None:
    if not (name.isascii() and name.isalnum() and name[0].isupper()):
        raise NetworkError(f"the utility's name {name!r} must be letters and digits, as Aurora")


def _saved(network: Network) -> Network:
    """Write `network.json` and read it again."""
    directory = network.directory
    description = {
        "format": FORMAT,
        "channel": network.channel,
        "interval_s": network.interval_s,
        "replay": asdict(network.replay) if network.replay else None,
        "beside_fabric": network.beside_fabric,
        "utilities": [
            {
                "name": utility.name,
                "ports": asdict(utility.ports),
                "peers": [asdict(one) for one in utility.more_peers],
            }
            for utility in network.utilities
        ],
    }
    # Written last, and at once: a folder without it is no network, and may be made again.
    temporary = directory / "network.json.new"
    temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    temporary.replace(directory / "network.json")
    return Network.load(directory)


def adopt_channel(network: Network, block: common_pb2.Block) -> Network:
    """Let a network's nodes begin with this first block, from wherever it comes.

    A block that `configtxgen` made, or that of a consortium which these utilities join. The roots
    of its members are trusted from now on. Raises NetworkError where the nodes have begun with
    another, ConfigError for a block that begins no channel.
    """
    config = ChannelConfig.from_block(block)
    if block.header.number != 0:
        raise NetworkError(
            f"block {block.header.number} of {config.channel_id} is not its first: get that one "
            "with `gridledger channel fetch 0`"
        )
    present = network.genesis_block
    if present is not None and present != block:
        raise NetworkError(
            f"{network.directory} has begun with a first block of {network.channel} already"
        )
    (network.directory / "genesis.block").write_bytes(block.SerializeToString())
    _trust(network, *(config.msps.tls_roots_pem(msp_id) for msp_id in config.msps.msps))
    return _saved(replace(network, channel=config.channel_id))


def add_utility(
    network: Network, name: str, *, base_port: int = DEFAULT_BASE_PORT, peers: int = 1
) -> Network:
    """Make one more utility's authority, nodes and people in a network's folder.

    The channel knows nothing of it yet. Raises NetworkError for a name that can't be used.
    """
    _check_name(name)
    if any(name.lower() == utility.name.lower() for utility in network.utilities):
        raise NetworkError(f"there is a utility {name} in {network.directory} already")
    if len(network.utilities) >= MAX_UTILITIES:
        raise NetworkError(f"{MAX_UTILITIES} utilities are in {network.directory}, the limit")
    if not 1 <= peers <= MAX_PEERS:
        raise NetworkError(f"{peers} peers of {name}; 1 to {MAX_PEERS} are possible")
    directory = network.directory / name.lower()
    if directory.exists():
        raise NetworkError(
            f"{directory} is there already, of a utility that left perhaps; move it away first"
        )
    taken = {port for utility in network.utilities for port in utility.all_ports}
    ports = iter(_free_ports(base_port, PORTS + 2 * (peers - 1), taken))
    utility = Utility(
        name,
        Ports(*(next(ports) for _ in range(PORTS))),
        directory,
        tuple(PeerPorts(next(ports), next(ports)) for _ in range(peers - 1)),
    )
    _trust(network, _create_utility(utility))
    return _saved(replace(network, utilities=(*network.utilities, utility)))


def forget_utility(network: Network, utility: Utility) -> Network:
    """Leave a utility out of a network's description; its folder stays. Raises NetworkError."""
    rest = tuple(one for one in network.utilities if one.name != utility.name)
    if not rest:
        raise NetworkError(f"{utility.name} is the only utility in {network.directory}")
    return _saved(replace(network, utilities=rest))


def renew_certificates(network: Network, utility: Utility, *, new_keys: bool = False) -> None:
    """Certify a utility's nodes and people anew, for their present keys or for new ones.

    Nodes show a renewed TLS certificate from the next handshake on, and sign with a renewed
    identity from their next start on. An orderer's keys stay in any case: the channel's
    configuration names them.
    """
    del network
    authority = CertificateAuthority.load(utility.directory / "ca")
    _issue_all(authority, utility, renew=True, new_keys=new_keys)


def rotate_authority(network: Network, utility: Utility) -> bytes:
    """Make a utility's next root, for the channel to trust beside the present one; its PEM.

    It certifies nobody before `use_next_authority`. Made once: asked again, it is the same, and a
    rotation that was interrupted goes on. Raises NetworkError while the root before the present
    one is trusted: there is room for one, and a second would stay trusted for good.
    """
    folder = utility.directory / "ca"
    present = _root_in(folder)
    previous, following = _root_in(folder / PREVIOUS_AUTHORITY), _root_in(folder / NEXT_AUTHORITY)
    if following is not None and following == present and previous is None:
        # Finished in spite of it, by an earlier version.
        _remove_next(folder)
        following = None
    if following is None:
        if previous not in (None, present):
            raise NetworkError(
                f"{utility.name} has changed its root, and the one before is trusted still: when "
                f"its nodes and homes have new certificates, run `{_finishing(utility)}`; then "
                "the root can be changed again"
            )
        CertificateAuthority.load(folder)  # It is to be kept, and has to be whole by then.
        authority = CertificateAuthority.create(utility.name, utility.domain)
        authority.save(folder / NEXT_AUTHORITY)
        following = authority.certificate
    elif present not in (None, following):
        if previous not in (None, present):
            raise NetworkError(
                f"{utility.name} has a root before the present one and a next one as well: move "
                f"{folder / NEXT_AUTHORITY} away, run `{_finishing(utility)}`, and change the root "
                "after that"
            )
        # The channel is to trust it next: it has to be whole by then.
        CertificateAuthority.load(folder / NEXT_AUTHORITY)
    root = certificate_pem(following)
    _trust(network, root)
    return root


def use_next_authority(utility: Utility) -> None:
    """Certify everyone by the next root from now on; `previous` keeps the one before.

    The channel has to trust the next one by now. The next root's folder goes last: as long as it
    is there, this may be called again after an interruption at any place, and completes it. Raises
    NetworkError where there is none, CertificateError, OSError.
    """
    folder = utility.directory / "ca"
    following = folder / NEXT_AUTHORITY
    root = _root_in(following)
    if root is None:
        raise NetworkError(f"{utility.name} has no next root; make one with rotate-ca first")
    # Where it is the present one already, `previous` has the one before, and keeps it.
    if _root_in(folder) != root:
        after = CertificateAuthority.load(following)
        _keep_as_previous(folder)
        after.save(folder)
    _issue_all(CertificateAuthority.load(folder), utility, renew=True, new_keys=False)
    _remove_next(folder)


def _keep_as_previous(folder: Path) -> None:
    """Copy the present authority of `ca/` to `ca/previous/`; raises CertificateError, OSError."""
    previous = folder / PREVIOUS_AUTHORITY
    try:
        authority = CertificateAuthority.load(folder)
    except CertificateError:
        # Interrupted between key and certificate: the copy was made before that.
        copied = _root_in(previous)
        if copied is None or _root_in(folder) not in (None, copied):
            raise
        CertificateAuthority.load(previous)
        return
    authority.save(previous)


def _remove_next(folder: Path) -> None:
    """Remove `ca/next/`. Its certificate, which says that a rotation goes on, after the key."""
    following = folder / NEXT_AUTHORITY
    (following / CertificateAuthority.KEY_FILE).unlink(missing_ok=True)
    (following / CertificateAuthority.CERTIFICATE_FILE).unlink()
    shutil.rmtree(following)


def roots_to_finish(utility: Utility) -> tuple[bytes, bytes]:
    """The present root and the one before, PEM, whose trust may end as far as the folder tells.

    Raises NetworkError where a rotation hasn't begun, or was interrupted; CertificateError,
    OSError.
    """
    folder = utility.directory / "ca"
    previous = _root_in(folder / PREVIOUS_AUTHORITY)
    if _root_in(folder / NEXT_AUTHORITY) is not None:
        raise NetworkError(
            f"the change of {utility.name}'s root was interrupted: run `{_rotating(utility)}` "
            "again, without --finish, and it goes on"
        )
    if previous is None:
        raise NetworkError(f"{utility.name} has no previous root: begin without --finish")
    present = CertificateAuthority.load(folder).certificate
    if previous == present:
        raise NetworkError(
            f"{folder / PREVIOUS_AUTHORITY} has {utility.name}'s present root in it, whose trust "
            f"can't end. `{_rotating(utility)}` makes a new root"
        )
    return certificate_pem(present), certificate_pem(previous)


def forget_previous_authority(utility: Utility) -> None:
    """The root before the present one is trusted no longer; its key stays until the next change."""
    folder = utility.directory / "ca" / PREVIOUS_AUTHORITY
    (folder / CertificateAuthority.CERTIFICATE_FILE).unlink()


def _root_in(folder: Path) -> x509.Certificate | None:
    """An authority's root certificate; None where there is none, or nothing that can be read.

    Earlier versions left an empty file when the disk was full. Raises OSError.
    """
    try:
        return load_certificate((folder / CertificateAuthority.CERTIFICATE_FILE).read_bytes())
    except FileNotFoundError, CertificateError:
        return None


def _rotating(utility: Utility) -> str:
    return f"gridledger network rotate-ca {utility.name}"


def _finishing(utility: Utility) -> str:
    return f"{_rotating(utility)} --finish"


def _trust(network: Network, *roots_pem: bytes) -> None:
    """Add roots to the bundle that homes and tools trust, unless they are in it."""
    path = network.tls_bundle
    bundle = path.read_bytes() if path.exists() else b""
    for root in roots_pem:
        if root and root.strip() not in bundle:
            bundle += root if root.endswith(b"\n") else root + b"\n"
    # Running authorities read it at any moment: it is there whole.
    written = path.with_suffix(".new")
    written.write_bytes(bundle)
    written.replace(path)


def _create_utility(utility: Utility) -> bytes:
    authority = CertificateAuthority.create(utility.name, utility.domain)
    # Keys, and a ledger with its utility's private data: nobody else on this machine reads them.
    utility.directory.mkdir(exist_ok=True)
    utility.directory.chmod(0o700)
    folder = utility.directory / "ca"
    folder.mkdir(parents=True, exist_ok=True)
    authority.save(folder)
    _issue_all(authority, utility, renew=False, new_keys=True)
    _write_msp(utility)
    return authority.certificate_pem


def _write_msp(utility: Utility) -> None:
    """The utility as a folder in Fabric's form, for `configtxgen` (MSPDir)."""
    folder = utility.directory / "msp"
    for name in ("cacerts", "tlscacerts"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "ca.pem").write_bytes(utility.root_pem)
    roles = "".join(
        f"  {role.capitalize()}OUIdentifier:\n    Certificate: cacerts/ca.pem\n"
        f"    OrganizationalUnitIdentifier: {role}\n"
        for role in ("client", "peer", "admin", "orderer")
    )
    (folder / "config.yaml").write_text(f"NodeOUs:\n  Enable: true\n{roles}", encoding="utf-8")


def _issue_all(
    authority: CertificateAuthority, utility: Utility, *, renew: bool, new_keys: bool
) -> None:
    folder = utility.directory / "ca"
    issue = partial(_issue, authority, keep_key=renew and not new_keys)
    issue(folder, "tls", "client", f"ca.{utility.domain}", hosts=True)
    for node in (*utility.peers, "orderer"):
        role = "orderer" if node == "orderer" else "peer"
        name = f"{node}{'0' if node == role else ''}.{utility.domain}"
        if role == "orderer":
            issue = partial(_issue, authority, keep_key=renew)
        issue(utility.directory / node, "sign", role, name)
        issue(utility.directory / node, "tls", role, name, hosts=True)
    issue = partial(_issue, authority, keep_key=renew and not new_keys)
    issue(utility.directory / "admin", "sign", "admin", f"admin@{utility.domain}")
    issue(
        utility.directory / "operator",
        "sign",
        "client",
        f"operator@{utility.domain}",
        attributes={"gridledger.role": "operator"},
    )


def _issue(
    authority: CertificateAuthority,
    folder: Path,
    purpose: str,
    role: str,
    common_name: str,
    *,
    hosts: bool = False,
    attributes: dict[str, str] | None = None,
    keep_key: bool = False,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{purpose}.key.pem"
    key = load_key(path.read_bytes()) if keep_key and path.exists() else generate_key()
    certificate = authority.issue(
        common_name,
        role,
        key.public_key(),
        hosts=(common_name, "localhost", HOST) if hosts else (),
        attributes=attributes,
    )
    write_private(path, key_pem(key))
    # Whole or not at all: an admin with half a certificate couldn't have a rotation completed.
    write_private(folder / f"{purpose}.cert.pem", certificate_pem(certificate))


def organization(utility: Utility) -> OrganizationSpec:
    """A utility as a channel's configuration names it."""
    return OrganizationSpec(
        msp_id=utility.msp_id,
        root_pem=utility.root_pem,
        anchor_peers=tuple((HOST, one.node) for one in utility.peers.values()),
        orderer_endpoints=(f"{HOST}:{utility.ports.orderer}",),
    )


def _consenter(utility: Utility) -> Consenter:
    certificate = (utility.directory / "orderer" / "tls.cert.pem").read_bytes()
    return Consenter(
        host=HOST,
        port=utility.ports.cluster,
        client_tls_certificate_pem=certificate,
        server_tls_certificate_pem=certificate,
    )


def _free_ports(base: int, count: int, taken: Collection[int] = ()) -> list[int]:
    if base < 1024:
        raise NetworkError(f"the first port, {base}, must be 1024 or higher")
    free: list[int] = []
    for port in range(base, 65_536):
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        free.append(port)
        if len(free) == count:
            return free
    raise NetworkError(f"fewer than {count} free ports from {base} on")
