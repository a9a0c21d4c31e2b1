"""Hyperledger Fabric's own programs as processes, on the keys of one of our networks.

`FABRIC_BIN` names a folder with `peer`, `orderer`, `configtxgen` and `osnadmin`; docs/protocol.md
says how to build them. Everything listens on 127.0.0.1 and keeps its files below a test's folder.
"""

import asyncio
import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
    write_private,
)
from consortium.identity.signing import Signer
from consortium.node.contracts import ensure_contracts
from consortium.node.network import Network, NetworkError, Utility
from consortium.wire import common_pb2
from consortium.wire.blocks import COMMIT_HASH, TRANSACTIONS_FILTER
from gridledger_client import GatewayClient, GridLedgerError, Identity
from tests.ports import free_ports

PROGRAMS = ("peer", "orderer", "configtxgen", "osnadmin")
START_TIMEOUT_S = 60
COMMAND_TIMEOUT_S = 90
HOST = "127.0.0.1"


def fabric_bin() -> Path:
    """The folder with Fabric's programs; skips the test, saying why, where there is none."""
    named = os.environ.get("FABRIC_BIN")
    if not named:
        pytest.skip(
            "FABRIC_BIN is not set: give the folder with Hyperledger Fabric's peer, orderer, "
            "configtxgen and osnadmin (docs/protocol.md says how to build them)"
        )
    folder = Path(named)
    missing = [program for program in PROGRAMS if not (folder / program).exists()]
    if missing:
        pytest.fail(f"FABRIC_BIN={folder} lacks {', '.join(missing)}")
    return folder


# ------------------------------------------------------------------ keys


def issue(utility: Utility, folder: Path, purpose: str, role: str, name: str) -> None:
    """A certificate of a utility's authority: `<purpose>.cert.pem` and `<purpose>.key.pem`."""
    folder.mkdir(parents=True, exist_ok=True)
    key = generate_key()
    certificate = CertificateAuthority.load(utility.directory / "ca").issue(
        name, role, key.public_key(), hosts=(name, "localhost", HOST)
    )
    write_private(folder / f"{purpose}.key.pem", key_pem(key))
    (folder / f"{purpose}.cert.pem").write_bytes(certificate_pem(certificate))


def write_msp(folder: Path, utility: Utility, identity: Path | None = None) -> Path:
    """A utility as Fabric's programs read it, with someone's key where `identity` is given."""
    for name in ("cacerts", "tlscacerts"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "root.pem").write_bytes(utility.root_pem)
    units = {
        f"{kind}OUIdentifier": {
            "Certificate": "cacerts/root.pem",
            "OrganizationalUnitIdentifier": unit,
        }
        for kind, unit in (
            ("Client", "client"),
            ("Peer", "peer"),
            ("Admin", "admin"),
            ("Orderer", "orderer"),
        )
    }
    config = {"NodeOUs": {"Enable": True, **units}}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    if identity is not None:
        (folder / "signcerts").mkdir(exist_ok=True)
        (folder / "keystore").mkdir(exist_ok=True)
        shutil.copy(identity / "sign.cert.pem", folder / "signcerts" / "cert.pem")
        shutil.copy(identity / "sign.key.pem", folder / "keystore" / "key_sk")
    return folder


# ------------------------------------------------------------------ processes


class Program:
    """One long-running process with a log."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        env: Mapping[str, str],
        *ports: int,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self._command = command
        self._cwd = cwd or folder
        self._env = env
        self._ports = ports
        self._log = folder / "log"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when its ports answer."""
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=self._cwd,
                env={**os.environ, **self._env},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        for port in self._ports:
            while True:
                try:
                    _, writer = await asyncio.open_connection(HOST, port)
                except OSError:
                    if self.process.returncode is not None or time.monotonic() > deadline:
                        pytest.fail(f"{self.name} did not start:\n{self.log()}")
                    await asyncio.sleep(0.1)
                else:
                    writer.close()
                    break

    async def stop(self) -> None:
        """As the power goes."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def log(self, end: int = 6000) -> str:
        """The log's end."""
        return self._log.read_text(errors="replace")[-end:]


async def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end; returns what it said, and fails with it where it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **(env or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
    text = output.decode(errors="replace")
    assert process.returncode == 0, f"{' '.join(command)}\n{text}"
    return text


# ------------------------------------------------------------------ peers

_BUILDER = {
    # The peer's own way to a chaincode that runs as a service: what it was told in the package.
    "detect": 'grep -q \'"ccaas"\' "$2/metadata.json"',
    "build": 'cp "$1/connection.json" "$3/"',
    "release": 'mkdir -p "$2/chaincode/server" && cp "$1/connection.json" "$2/chaincode/server/"',
}


@dataclass
class FabricPeer:
    """A Fabric peer of one of our utilities."""

    bin: Path
    folder: Path
    network: Network
    utility: Utility
    port: int
    operations_port: int
    chaincode_port: int
    bootstrap: tuple[int, ...] = ()
    name: str = "peer1"
    settings: Mapping[str, Any] = field(default_factory=dict)
    program: Program | None = None

    @classmethod
    def create(
        cls, bin_folder: Path, folder: Path, network: Network, utility: Utility, **more: Any
    ) -> FabricPeer:
        """Keys and settings; nothing runs yet."""
        ports = more.pop("ports", None) or free_ports(3)
        peer = cls(bin_folder, folder, network, utility, *ports, **more)
        peer._prepare()
        return peer

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def _prepare(self) -> None:
        folder, name = self.folder, f"{self.name}.{self.utility.domain}"
        issue(self.utility, folder / "keys", "sign", "peer", name)
        issue(self.utility, folder / "keys", "tls", "peer", name)
        write_msp(folder / "msp", self.utility, folder / "keys")
        write_msp(folder / "admin", self.utility, self.utility.directory / "admin")
        (folder / "root.pem").write_bytes(self.utility.root_pem)
        builder = folder / "builder" / "bin"
        builder.mkdir(parents=True, exist_ok=True)
        for step, script in _BUILDER.items():
            (builder / step).write_text(f"#!/bin/sh\nset -e\n{script}\n")
            (builder / step).chmod(0o755)
        (folder / "core.yaml").write_text(json.dumps(self._settings(), indent=1))

    def _settings(self) -> dict[str, Any]:
        folder = self.folder
        second = "1s"
        peer = {
            "id": f"{self.name}.{self.utility.domain}",
            "networkId": "test",
            "listenAddress": self.address,
            "chaincodeListenAddress": f"{HOST}:{self.chaincode_port}",
            "address": self.address,
            "localMspId": self.utility.msp_id,
            "localMspType": "bccsp",
            "mspConfigPath": str(folder / "msp"),
            "fileSystemPath": str(folder / "data"),
            "BCCSP": {"Default": "SW", "SW": {"Hash": "SHA2", "Security": 256}},
            "tls": {
                "enabled": True,
                "clientAuthRequired": False,
                "cert": {"file": str(folder / "keys" / "tls.cert.pem")},
                "key": {"file": str(folder / "keys" / "tls.key.pem")},
                "rootcert": {"file": str(folder / "root.pem")},
            },
            "gateway": {"enabled": True, "endorsementTimeout": "30s", "dialTimeout": "2m"},
            "authentication": {"timewindow": "15m"},
            "client": {"connTimeout": "3s"},
            "discovery": {"enabled": True, "orgMembersAllowedAccess": False},
            "deliveryclient": {"policy": "cluster", "minimalReconnectInterval": "100ms"},
            "limits": {"concurrency": {"gatewayService": 500, "endorserService": 2500}},
            # Not the defaults, by which two peers know each other after half a minute.
            "gossip": {
                "bootstrap": " ".join(f"{HOST}:{port}" for port in self.bootstrap or (self.port,)),
                "useLeaderElection": False,
                "orgLeader": True,
                "endpoint": self.address,
                "externalEndpoint": self.address,
                "pullInterval": second,
                "requestStateInfoInterval": second,
                "publishStateInfoInterval": second,
                "membershipTrackerInterval": second,
                "aliveTimeInterval": second,
                "reconnectInterval": second,
                "digestWaitTime": "100ms",
                "requestWaitTime": "200ms",
                "responseWaitTime": "300ms",
                "state": {"enabled": False},
                "pvtData": {
                    # Members' data that no peer of Fabric's can send are not waited for.
                    "pullRetryThreshold": "0s",
                    "transientstoreMaxBlockRetention": 1000,
                    "pushAckTimeout": "3s",
                    "reconcileSleepInterval": "1m",
                    "reconciliationEnabled": True,
                    "btlPullMargin": 10,
                    "implicitCollectionDisseminationPolicy": {
                        "requiredPeerCount": 0,
                        "maxPeerCount": 1,
                    },
                },
            },
            "handlers": {
                "authFilters": [
                    {"name": "DefaultAuth"},
                    {"name": "ExpirationCheck"},
                    {"name": "TimeWindowCheck"},
                ],
                "decorators": [{"name": "DefaultDecorator"}],
                "endorsers": {"escc": {"name": "DefaultEndorsement"}},
                "validators": {"vscc": {"name": "DefaultValidation"}},
            },
            "maxRecvMsgSize": 104857600,
            "maxSendMsgSize": 104857600,
        }
        peer |= self.settings
        return {
            "peer": peer,
            "vm": {"endpoint": ""},
            "chaincode": {
                "mode": "net",
                "externalBuilders": [{"name": "ccaas", "path": str(folder / "builder")}],
                "installTimeout": "60s",
                "startuptimeout": "60s",
                "executetimeout": "30s",
                "system": dict.fromkeys(("_lifecycle", "cscc", "lscc", "qscc"), "enable"),
                "runtimeParams": {
                    "useWriteBatch": True,
                    "maxSizeWriteBatch": 1000,
                    "useGetMultipleKeys": True,
                    "maxSizeGetMultipleKeys": 1000,
                },
            },
            "ledger": {
                "state": {"stateDatabase": "goleveldb", "totalQueryLimit": 100000},
                "history": {"enableHistoryDatabase": True},
                "snapshots": {"rootDir": str(folder / "data" / "snapshots")},
                "pvtdataStore": {"purgeInterval": 100},
            },
            "operations": {"listenAddress": f"{HOST}:{self.operations_port}"},
            "metrics": {"provider": "disabled"},
        }

    async def start(self) -> None:
        """Listen."""
        self.program = Program(
            f"Fabric peer {self.name} of {self.utility.name}",
            [str(self.bin / "peer"), "node", "start"],
            self.folder,
            {"FABRIC_CFG_PATH": str(self.folder), "FABRIC_LOGGING_SPEC": "warning:gossip=error"},
            self.port,
        )
        await self.program.start()

    async def stop(self) -> None:
        if self.program is not None:
            await self.program.stop()

    async def cli(self, *arguments: str, address: str | None = None) -> str:
        """`peer …` as the utility's admin, against this peer or another one's address."""
        return await run(
            [str(self.bin / "peer"), *arguments],
            {
                "FABRIC_CFG_PATH": str(self.folder),
                "FABRIC_LOGGING_SPEC": "warning:grpc=error",
                "CORE_PEER_ADDRESS": address or self.address,
                "CORE_PEER_TLS_ENABLED": "true",
                "CORE_PEER_TLS_ROOTCERT_FILE": str(self.folder / "root.pem"),
                "CORE_PEER_LOCALMSPID": self.utility.msp_id,
                "CORE_PEER_MSPCONFIGPATH": str(self.folder / "admin"),
            },
        )

    async def join(self, block: Path) -> None:
        """`peer channel join` with a channel's first block."""
        await self.cli("channel", "join", "-b", str(block))

    def client(self, who: str = "admin") -> GatewayClient:
        """Our client at this peer's gateway, as one of the utility's own people."""
        folder = self.utility.directory / who
        identity = Identity(
            self.utility.msp_id,
            (folder / "sign.cert.pem").read_bytes(),
            (folder / "sign.key.pem").read_bytes(),
        )
        return GatewayClient(
            [self.address], self.network.channel, identity, self.network.tls_bundle_pem
        )

    @property
    def signer(self) -> Signer:
        """The peer's own identity."""
        keys = self.folder / "keys"
        return Signer.load(self.utility.msp_id, keys / "sign.cert.pem", keys / "sign.key.pem")


# ------------------------------------------------------------------ orderers


@dataclass
class FabricOrderer:
    """A Fabric orderer of one of our utilities, in place of ours: its keys and addresses."""

    bin: Path
    folder: Path
    network: Network
    utility: Utility
    admin_port: int
    operations_port: int
    one_listener: bool = False
    """Whether consenters come to the clients' listener, as Fabric does unless told otherwise."""
    program: Program | None = None

    @classmethod
    def create(
        cls,
        bin_folder: Path,
        folder: Path,
        network: Network,
        utility: Utility,
        *,
        one_listener: bool = False,
    ) -> FabricOrderer:
        """Settings; nothing runs yet."""
        orderer = cls(bin_folder, folder, network, utility, *free_ports(2), one_listener)
        orderer._prepare()
        return orderer

    def _prepare(self) -> None:
        folder, keys = self.folder, self.utility.directory / "orderer"
        folder.mkdir(parents=True, exist_ok=True)
        write_msp(folder / "msp", self.utility, keys)
        (folder / "bundle.pem").write_bytes(self.network.tls_bundle_pem)
        certificate, key = str(keys / "tls.cert.pem"), str(keys / "tls.key.pem")
        bundle = [str(folder / "bundle.pem")]
        ports = self.utility.ports
        cluster: dict[str, Any] = {
            "SendBufferSize": 100,
            "ClientCertificate": certificate,
            "ClientPrivateKey": key,
            "RootCAs": bundle,
        }
        if not self.one_listener:
            cluster |= {
                "ListenAddress": HOST,
                "ListenPort": ports.cluster,
                "ServerCertificate": certificate,
                "ServerPrivateKey": key,
            }
        settings = {
            "General": {
                "ListenAddress": HOST,
                "ListenPort": ports.cluster if self.one_listener else ports.orderer,
                "TLS": {
                    "Enabled": True,
                    "PrivateKey": key,
                    "Certificate": certificate,
                    "RootCAs": bundle,
                    "ClientAuthRequired": False,
                },
                "Keepalive": {
                    "ServerMinInterval": "60s",
                    "ServerInterval": "7200s",
                    "ServerTimeout": "20s",
                },
                "Cluster": cluster,
                "LocalMSPDir": str(folder / "msp"),
                "LocalMSPID": self.utility.msp_id,
                "BCCSP": {"Default": "SW", "SW": {"Hash": "SHA2", "Security": 256}},
                "Authentication": {"TimeWindow": "15m"},
                "BootstrapMethod": "none",
            },
            "FileLedger": {"Location": str(folder / "data")},
            "Operations": {"ListenAddress": f"{HOST}:{self.operations_port}"},
            "Metrics": {"Provider": "disabled"},
            "Admin": {
                "ListenAddress": f"{HOST}:{self.admin_port}",
                "TLS": {
                    "Enabled": True,
                    "Certificate": certificate,
                    "PrivateKey": key,
                    "ClientAuthRequired": True,
                    "ClientRootCAs": bundle,
                },
            },
            "ChannelParticipation": {"Enabled": True, "MaxRequestBodySize": "1 MB"},
            "Consensus": {
                "WALDir": str(folder / "data" / "wal"),
                "SnapDir": str(folder / "data" / "snap"),
            },
        }
        (folder / "orderer.yaml").write_text(json.dumps(settings, indent=1))

    @property
    def port(self) -> int:
        ports = self.utility.ports
        return ports.cluster if self.one_listener else ports.orderer

    async def start(self) -> None:
        """Listen."""
        self.program = Program(
            f"Fabric orderer of {self.utility.name}",
            [str(self.bin / "orderer")],
            self.folder,
            {
                "FABRIC_CFG_PATH": str(self.folder),
                "FABRIC_LOGGING_SPEC": "warning:orderer.consensus.etcdraft=info",
            },
            self.admin_port,
            self.port,
        )
        await self.program.start()

    async def stop(self) -> None:
        if self.program is not None:
            await self.program.stop()

    async def osnadmin(self, *arguments: str, address: str | None = None) -> str:
        """`osnadmin …` against this orderer's participation API, or another's address."""
        keys = self.utility.directory / "orderer"
        return await osnadmin(
            self.bin,
            address or f"{HOST}:{self.admin_port}",
            self.folder / "bundle.pem",
            keys,
            *arguments,
        )

    async def join(self, block: Path) -> str:
        """Join a channel by a configuration block."""
        return await self.osnadmin(
            "join", "--channelID", self.network.channel, "--config-block", str(block)
        )


async def osnadmin(
    bin_folder: Path,
    address: str,
    roots: Path,
    keys: Path,
    verb: str,
    *arguments: str,
    key: str = "tls",
) -> str:
    """`osnadmin channel <verb> …` with the key pair `key` of a folder."""
    return await run(
        [
            str(bin_folder / "osnadmin"),
            "channel",
            verb,
            *("-o", address),
            *("--ca-file", str(roots)),
            *("--client-cert", str(keys / f"{key}.cert.pem")),
            *("--client-key", str(keys / f"{key}.key.pem")),
            *arguments,
        ]
    )


# ------------------------------------------------------------------ channels and chaincodes


async def configtxgen(
    bin_folder: Path,
    folder: Path,
    network: Network,
    *,
    batch_timeout: str = "100ms",
    endpoints: Mapping[str, int] | None = None,
    snapshot_interval: str = "16 MB",
    anchors_are_fabrics: bool = False,
    orderers: int | None = None,
) -> Path:
    """A channel's first block, made by Fabric's tool from its own settings file.

    `anchors_are_fabrics`: the utilities' peers are, which talk to each other where clients call.
    `orderers`: of so many of the utilities; else of each.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def rule(text: str) -> dict[str, str]:
        return {"Type": "Signature", "Rule": text}

    def meta(text: str) -> dict[str, str]:
        return {"Type": "ImplicitMeta", "Rule": text}

    def organization(utility: Utility) -> dict[str, Any]:
        name = utility.msp_id
        port = (endpoints or {}).get(name, utility.ports.orderer)
        return {
            "Name": name,
            "ID": name,
            "MSPDir": str(write_msp(folder / name, utility)),
            "Policies": {
                "Readers": rule(f"OR('{name}.member')"),
                "Writers": rule(f"OR('{name}.member')"),
                "Admins": rule(f"OR('{name}.admin')"),
                "Endorsement": rule(f"OR('{name}.peer')"),
            },
            "OrdererEndpoints": [f"{HOST}:{port}"],
            "AnchorPeers": [
                {
                    "Host": HOST,
                    "Port": utility.ports.peer if anchors_are_fabrics else utility.ports.peer_node,
                }
            ],
        }

    general = {
        "Readers": meta("ANY Readers"),
        "Writers": meta("ANY Writers"),
        "Admins": meta("MAJORITY Admins"),
    }
    consenters = []
    for utility in network.utilities[:orderers]:
        certificate = str(utility.directory / "orderer" / "tls.cert.pem")
        consenters.append(
            {
                "Host": HOST,
                "Port": utility.ports.cluster,
                "ClientTLSCert": certificate,
                "ServerTLSCert": certificate,
            }
        )
    settings = {
        "Profiles": {
            "Test": {
                "Policies": general,
                "Capabilities": {"V3_0": True},
                "Orderer": {
                    "OrdererType": "etcdraft",
                    "BatchTimeout": batch_timeout,
                    "BatchSize": {
                        "MaxMessageCount": 500,
                        "AbsoluteMaxBytes": "10 MB",
                        "PreferredMaxBytes": "2 MB",
                    },
                    "EtcdRaft": {
                        "Consenters": consenters,
                        "Options": {
                            "TickInterval": "100ms",
                            "ElectionTick": 10,
                            "HeartbeatTick": 1,
                            "MaxInflightBlocks": 5,
                            "SnapshotIntervalSize": snapshot_interval,
                        },
                    },
                    "Organizations": [organization(utility) for utility in network.utilities],
                    "Policies": {**general, "BlockValidation": meta("ANY Writers")},
                    "Capabilities": {"V2_0": True},
                },
                "Application": {
                    "Organizations": [organization(utility) for utility in network.utilities],
                    "Policies": {
                        **general,
                        "Endorsement": meta("MAJORITY Endorsement"),
                        "LifecycleEndorsement": meta("MAJORITY Endorsement"),
                    },
                    "Capabilities": {"V2_5": True},
                },
            }
        }
    }
    (folder / "configtx.yaml").write_text(json.dumps(settings, indent=1))
    block = folder / "genesis.block"
    await run(
        [
            str(bin_folder / "configtxgen"),
            *("-profile", "Test"),
            *("-channelID", network.channel),
            *("-outputBlock", str(block)),
            *("-configPath", str(folder)),
        ]
    )
    return block


def chaincode_package(
    path: Path, label: str, address: str, tls_root_pem: bytes | None = None
) -> str:
    """Write a package that says where a chaincode runs as a service; returns its package id."""
    connection: dict[str, Any] = {
        "address": address,
        "dial_timeout": "10s",
        "tls_required": tls_root_pem is not None,
    }
    if tls_root_pem is not None:
        connection["root_cert"] = tls_root_pem.decode()

    def archive(files: Mapping[str, bytes]) -> bytes:
        raw = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                member.mode = 0o644
                tar.addfile(member, io.BytesIO(content))
        return raw.getvalue()

    package = archive(
        {
            "metadata.json": json.dumps({"type": "ccaas", "label": label}).encode(),
            "code.tar.gz": archive({"connection.json": json.dumps(connection).encode()}),
        }
    )
    path.write_bytes(package)
    return f"{label}:{sha256(package).hexdigest()}"


async def put_contracts(network: Network) -> None:
    """Our contracts on its channel, by its peers of ours; a busy machine may take its time."""
    deadline = time.monotonic() + 2 * COMMAND_TIMEOUT_S
    while True:
        try:
            await ensure_contracts(network)
        except NetworkError, GridLedgerError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)
        else:
            return


# ------------------------------------------------------------------ ledgers


async def height(client: GatewayClient) -> int:
    """How many blocks the peer behind a client has."""
    raw = await client.evaluate("qscc", "GetChainInfo", [client.channel.encode()])
    return int(common_pb2.BlockchainInfo.FromString(raw).height)


async def block(client: GatewayClient, number: int) -> common_pb2.Block:
    """One block as the peer behind a client keeps it."""
    raw = await client.evaluate(
        "qscc", "GetBlockByNumber", [client.channel.encode(), str(number).encode()]
    )
    return common_pb2.Block.FromString(raw)


async def wait_for_height(client: GatewayClient, wanted: int, program: Program | None) -> None:
    """Returns when the peer has so many blocks."""
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while (now := await height(client)) < wanted:
        assert time.monotonic() < deadline, (
            f"height {now}, wanted {wanted}\n{program.log() if program else ''}"
        )
        await asyncio.sleep(0.1)


async def same_ledgers(
    ours: GatewayClient, theirs: GatewayClient, program: Program | None = None, *, first: int = 0
) -> list[bytes]:
    """Both peers' blocks are equal, filters and commit hashes too; returns the filters."""
    heights = [await height(ours), await height(theirs)]
    for client in (ours, theirs):
        await wait_for_height(client, max(heights), program)
    filters = []
    for number in range(first, max(heights)):
        mine, other = await block(ours, number), await block(theirs, number)
        assert mine.header == other.header, f"block {number}"
        assert mine.data == other.data, f"block {number}"
        for slot in (TRANSACTIONS_FILTER, COMMIT_HASH):
            found = [
                each.metadata.metadata[slot] if slot < len(each.metadata.metadata) else b""
                for each in (mine, other)
            ]
            assert found[0] == found[1], f"block {number}, metadata {slot}: {found}"
        filters.append(mine.metadata.metadata[TRANSACTIONS_FILTER])
    return filters


@contextlib.asynccontextmanager
async def running(*nodes: Any) -> AsyncIterator[None]:
    """Start what has `start` and `stop`, and stop it all in the end."""
    started = []
    try:
        for node in nodes:
            started.append(node)
            await node.start()
        yield
    finally:
        for node in reversed(started):
            await node.stop()


# ------------------------------------------------------------------ chaincodes

EVERYTHING = Path(__file__).parents[1] / "consortium" / "chaincode" / "node_chaincode"


def node_with_packages(folder: Path) -> str:
    """Node.js, with a folder's packages installed as its lock file says."""
    if not (folder / "node_modules" / ".package-lock.json").exists():
        npm = shutil.which("npm")
        assert npm, "Node.js with npm is needed; script/setup installs it"
        subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True
        )
    node = shutil.which("node")
    assert node, "Node.js is needed; script/setup installs it"
    return node


def node_chaincode(folder: Path, utility: Utility, package_id: str, port: int) -> Program:
    """The tests' chaincode on Fabric's Node runtime, that does whatever it is asked."""
    node = node_with_packages(EVERYTHING)
    issue(utility, folder, "tls", "peer", f"chaincode.{utility.domain}")
    return Program(
        "the Node chaincode",
        [
            node,
            str(EVERYTHING / "node_modules" / ".bin" / "fabric-chaincode-node"),
            "server",
            *("--chaincode-address", f"{HOST}:{port}"),
            *("--chaincode-id", package_id),
            *("--chaincode-tls-key-file", str(folder / "tls.key.pem")),
            *("--chaincode-tls-cert-file", str(folder / "tls.cert.pem")),
        ],
        folder,
        {},
        port,
        cwd=EVERYTHING,
    )


# ------------------------------------------------------------------ Fabric's Node client

NODE_CLIENT = Path(__file__).parents[1] / "network" / "fabric_client"


async def node_client(
    network: Network, address: str, utility: Utility, identity: Path, *steps: dict[str, Any]
) -> Any:
    """Run steps in Fabric's Node client, as the identity in a folder; returns what each gave."""
    node = await asyncio.to_thread(node_with_packages, NODE_CLIENT)
    options = {
        "address": address,
        "tlsRoots": str(network.directory / "tls-bundle.pem"),
        "mspId": utility.msp_id,
        "certificate": str(identity / "sign.cert.pem"),
        "key": str(identity / "sign.key.pem"),
        "channel": network.channel,
        "steps": steps,
    }
    process = await asyncio.create_subprocess_exec(
        node,
        str(NODE_CLIENT / "client.mjs"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(
            process.communicate(json.dumps(options).encode()), COMMAND_TIMEOUT_S
        )
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)
