"""A consortium's network as a folder: who takes part, where each node listens, and its keys.

<data-dir>/network.json             this description
<data-dir>/genesis.block            the channel's first block
<data-dir>/tls-bundle.pem           the roots of all utilities, what a home trusts
<data-dir>/<utility>/ca/            the enrolment authority: root certificate, key, registry
<data-dir>/<utility>/{peer,orderer}/  a node's identity, its TLS certificate, its ledger or log
<data-dir>/<utility>/{admin,operator}/  the identities of the utility's own people
"""

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from consortium.ca.registry import Registry
from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
    write_private,
)
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import (
    ChannelSpec,
    Consenter,
    OrganizationSpec,
    RaftOptions,
)
from consortium.ledger.channel_config import genesis_block as make_genesis_block
from consortium.wire import common_pb2

FORMAT = 1
DEFAULT_CHANNEL = "neighbourhood"
DEFAULT_UTILITIES = ("Aurora", "Boreal", "Cielo")
DEFAULT_BASE_PORT = 17050
HOST = "127.0.0.1"
MAX_UTILITIES = 32
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
        return f"{HOST}:{self.ports.peer}"

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
                )
                for utility in stored["utilities"]
            ),
        )

    @property
    def genesis_block(self) -> common_pb2.Block:
        """The channel's first block."""
        return common_pb2.Block.FromString((self.directory / "genesis.block").read_bytes())

    @property
    def tls_bundle_pem(self) -> bytes:
        """The root certificates of all utilities."""
        return (self.directory / "tls-bundle.pem").read_bytes()

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


def create_network(
    directory: Path,
    *,
    channel: str = DEFAULT_CHANNEL,
    utilities: Sequence[str] = DEFAULT_UTILITIES,
    interval_s: int = 900,
    replay: Replay | None = None,
    base_port: int = DEFAULT_BASE_PORT,
    max_message_count: int = 500,
    batch_timeout: str = "100ms",
    progress: Progress = lambda _message: None,
) -> Network:
    """Make authorities, identities and the channel's first block in `directory`.

    Ports are the first free ones from `base_port` on. Raises NetworkError where a network is there
    already or a name or interval can't be used.
    """
    if (directory / "network.json").exists():
        raise NetworkError(f"{directory} holds a network already; start it, or choose another")
    if not 1 <= len(utilities) <= MAX_UTILITIES:
        raise NetworkError(f"{len(utilities)} utilities; 1 to {MAX_UTILITIES} are possible")
    for name in utilities:
        if not (name.isascii() and name.isalnum() and name[0].isupper()):
            raise NetworkError(f"the utility's name {name!r} must be letters and digits, as Aurora")
    if len({name.lower() for name in utilities}) < len(utilities):
        raise NetworkError("two utilities have the same name")
    if interval_s < 1 or 3600 % interval_s:
        raise NetworkError(f"an interval of {interval_s} s does not divide an hour")
    directory.mkdir(parents=True, exist_ok=True)
    ports = iter(_free_ports(base_port, 5 * len(utilities)))
    members = tuple(
        Utility(
            name,
            Ports(*(next(ports) for _ in range(5))),
            directory / name.lower(),
        )
        for name in utilities
    )
    roots = []
    for utility in members:
        progress(f"{utility.name}: certificate authority, orderer, peer")
        roots.append(_create_utility(utility))
    (directory / "tls-bundle.pem").write_bytes(b"".join(roots))
    progress(f"channel {channel}: first block")
    block = make_genesis_block(
        ChannelSpec(
            channel_id=channel,
            organizations=tuple(_organization(utility) for utility in members),
            consenters=tuple(_consenter(utility) for utility in members),
            max_message_count=max_message_count,
            batch_timeout=batch_timeout,
            raft=RaftOptions(tick_interval_s=RAFT_TICK_S),
        )
    )
    (directory / "genesis.block").write_bytes(block.SerializeToString())
    description = {
        "format": FORMAT,
        "channel": channel,
        "interval_s": interval_s,
        "replay": asdict(replay) if replay else None,
        "utilities": [
            {"name": utility.name, "ports": asdict(utility.ports)} for utility in members
        ],
    }
    # Written last, and at once: a folder without it is no network, and may be made again.
    temporary = directory / "network.json.new"
    temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    temporary.replace(directory / "network.json")
    return Network.load(directory)


def _create_utility(utility: Utility) -> bytes:
    authority = CertificateAuthority.create(utility.name, utility.domain)
    # Keys, and a ledger with its utility's private data: nobody else on this machine reads them.
    utility.directory.mkdir(exist_ok=True)
    utility.directory.chmod(0o700)
    folder = utility.directory / "ca"
    folder.mkdir(parents=True, exist_ok=True)
    authority.save(folder)
    _issue(authority, folder, "tls", "client", f"ca.{utility.domain}", hosts=True)
    for node in ("peer", "orderer"):
        _issue(authority, utility.directory / node, "sign", node, f"{node}0.{utility.domain}")
        _issue(
            authority,
            utility.directory / node,
            "tls",
            node,
            f"{node}0.{utility.domain}",
            hosts=True,
        )
    _issue(authority, utility.directory / "admin", "sign", "admin", f"admin@{utility.domain}")
    _issue(
        authority,
        utility.directory / "operator",
        "sign",
        "client",
        f"operator@{utility.domain}",
        attributes={"gridledger.role": "operator"},
    )
    return authority.certificate_pem


def _issue(
    authority: CertificateAuthority,
    folder: Path,
    purpose: str,
    role: str,
    common_name: str,
    *,
    hosts: bool = False,
    attributes: dict[str, str] | None = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    key = generate_key()
    certificate = authority.issue(
        common_name,
        role,
        key.public_key(),
        hosts=(common_name, "localhost", HOST) if hosts else (),
        attributes=attributes,
    )
    write_private(folder / f"{purpose}.key.pem", key_pem(key))
    (folder / f"{purpose}.cert.pem").write_bytes(certificate_pem(certificate))


def _organization(utility: Utility) -> OrganizationSpec:
    return OrganizationSpec(
        msp_id=utility.msp_id,
        root_pem=utility.root_pem,
        anchor_peers=((HOST, utility.ports.peer_node),),
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


def _free_ports(base: int, count: int) -> list[int]:
    if base < 1024:
        raise NetworkError(f"the first port, {base}, must be 1024 or higher")
    free: list[int] = []
    for port in range(base, 65_536):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        free.append(port)
        if len(free) == count:
            return free
    raise NetworkError(f"fewer than {count} free ports from {base} on")
