"""A chaincode on Fabric's own Node runtime, dialled by real peers, calls all that its stub has."""

import asyncio
import hashlib
import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from consortium.chaincode import remote
from consortium.chaincode.api import Creator
from consortium.chaincode.executor import Invocation
from consortium.chaincode.packages import package_id as package_id_of
from consortium.chaincode.packages import served_package
from consortium.chaincode.remote import ChaincodeUnavailableError, Connection, RemoteChaincode
from consortium.chaincode.simulator import TransactionSimulator
from consortium.contracts.package import package_id
from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
    write_private,
)
from consortium.identity.policies import parse_policy
from consortium.ledger.lifecycle import ChaincodeDefinition
from consortium.node.contracts import client as utility_client
from consortium.node.contracts import ensure_contracts
from consortium.node.lifecycle import PeerAdmin
from consortium.node.network import Network, create_network
from consortium.node.nodes import EmbeddedNetwork
from consortium.wire import peer_pb2
from gridledger_client import CommitFailed, Committed, GatewayClient, TransactionRefused
from tests.consortium.chaincode.memory_state import MemoryState
from tests.ports import first_port

FOLDER = Path(__file__).parent / "node_chaincode"
ADDRESS = f"127.0.0.1:{first_port(1)}"
START_TIMEOUT_S = 20

pytestmark = [pytest.mark.network, pytest.mark.asyncio(loop_scope="module")]


class NodeChaincode:
    """The chaincode's process."""

    def __init__(self, folder: Path, package_id: str) -> None:
        self.folder = folder
        self.package_id = package_id
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        node = shutil.which("node")
        assert node
        log = (self.folder / "chaincode.log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            node,
            str(FOLDER / "node_modules" / ".bin" / "fabric-chaincode-node"),
            "server",
            *("--chaincode-address", ADDRESS),
            *("--chaincode-id", self.package_id),
            *("--chaincode-tls-key-file", str(self.folder / "tls.key.pem")),
            *("--chaincode-tls-cert-file", str(self.folder / "tls.cert.pem")),
            *("--chaincode-tls-client-cacert-file", str(self.folder / "root.pem")),
            cwd=FOLDER,
            stdout=log,
            stderr=log,
        )
        host, port = ADDRESS.split(":")
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                assert self.process.returncode is None, self.log()
                assert time.monotonic() < deadline, self.log()
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def log(self) -> str:
        return (self.folder / "chaincode.log").read_text(errors="replace")[-4000:]


@dataclass
class Running:
    """A network whose peers dial the chaincode, under two names."""

    network: Network
    node: NodeChaincode
    clients: dict[str, GatewayClient]

    async def ask(
        self, function: str, *args: str | list[str], chaincode: str = "everything"
    ) -> Any:
        """Evaluate at Aurora's peer."""
        found = await self.clients["AuroraMSP"].evaluate(chaincode, function, encoded(args))
        return decoded(found)

    async def submit(
        self,
        function: str,
        *args: str | list[str],
        chaincode: str = "everything",
        transient: dict[str, bytes] | None = None,
        endorsers: Sequence[str] = (),
    ) -> Committed:
        return await self.clients["AuroraMSP"].submit(
            chaincode,
            function,
            encoded(args),
            transient=transient,
            endorsing_organizations=endorsers,
        )


def encoded(args: Sequence[str | list[str]]) -> list[bytes]:
    """Lists go as JSON."""
    return [(one if isinstance(one, str) else json.dumps(one)).encode() for one in args]


def decoded(result: Any) -> Any:
    """fabric-contract-api leaves strings as they are and sends all else as JSON."""
    text = bytes(result).decode()
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.fixture(scope="session")
def installed() -> None:
    """The runtime, as the lock file says."""
    if not (FOLDER / "node_modules" / ".package-lock.json").exists():
        npm = shutil.which("npm")
        assert npm, "Node.js with npm is needed; script/setup installs it"
        subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=FOLDER, check=True
        )


def issue_tls(utility_folder: Path, folder: Path) -> None:
    """Certificates from Aurora's authority: the chaincode's, and what peers show to it."""
    authority = CertificateAuthority.load(utility_folder / "ca")
    for name in ("tls", "peer"):
        key = generate_key()
        certificate = authority.issue(
            f"{name}.aurora.example", "peer", key.public_key(), hosts=("127.0.0.1",)
        )
        write_private(folder / f"{name}.key.pem", key_pem(key))
        (folder / f"{name}.cert.pem").write_bytes(certificate_pem(certificate))
    (folder / "root.pem").write_bytes(authority.certificate_pem)


def collections() -> peer_pb2.CollectionConfigPackage:
    """`shared` is Aurora's and Boreal's, `own` Aurora's alone."""
    return peer_pb2.CollectionConfigPackage(
        config=[
            peer_pb2.CollectionConfig(
                static_collection_config=peer_pb2.StaticCollectionConfig(
                    name=name,
                    member_orgs_policy=peer_pb2.CollectionPolicyConfig(
                        signature_policy=parse_policy(members)
                    ),
                    maximum_peer_count=1,
                    endorsement_policy=peer_pb2.ApplicationPolicy(
                        signature_policy=parse_policy("OR('AuroraMSP.peer','BorealMSP.peer')")
                    ),
                )
            )
            for name, members in (
                ("shared", "OR('AuroraMSP.member','BorealMSP.member')"),
                ("own", "OR('AuroraMSP.member')"),
            )
        ]
    )


async def define(network: Network, name: str, package_id: str) -> None:
    """Approve the chaincode for every utility and commit its definition."""
    definition = ChaincodeDefinition(name, 1, "1", collections=collections())
    async with AsyncExitStack() as stack:
        admins = [
            await stack.enter_async_context(PeerAdmin(network, utility))
            for utility in network.utilities
        ]
        for admin in admins:
            await admin.approve(definition, package_id)
        for attempt in range(50):
            try:
                await admins[-1].commit(definition, [one.utility.msp_id for one in admins])
            except TransactionRefused, CommitFailed:
                if attempt == 49:
                    raise
                await asyncio.sleep(0.1)
            else:
                return


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    installed: None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    network = create_network(folder / "data", base_port=first_port(), batch_timeout="20ms")
    issue_tls(network.utility("Aurora").directory, folder)
    root = network.utility("Aurora").root_pem
    connection = Connection(
        ADDRESS,
        tls_root_pem=root,
        certificate_pem=(folder / "peer.cert.pem").read_bytes(),
        key_pem=(folder / "peer.key.pem").read_bytes(),
    )
    package = served_package("everything_1", connection)
    node = NodeChaincode(folder, package_id_of("everything_1", package))
    await node.start()
    clients = {
        utility.msp_id: utility_client(network, utility, "admin") for utility in network.utilities
    }
    try:
        async with EmbeddedNetwork(network):
            await ensure_contracts(network)
            for utility in network.utilities:
                async with PeerAdmin(network, utility) as admin:
                    assert await admin.install(package) == node.package_id
            for name in ("everything", "again"):
                await define(network, name, node.package_id)
            yield Running(network, node, clients)
            await asyncio.gather(*(client.close() for client in clients.values()))
    finally:
        await node.stop()


async def test_who_calls(running: Running) -> None:
    """The runtime reads identity, time and transient data from the proposal that we pass on."""
    found = decoded(
        await running.clients["AuroraMSP"].evaluate(
            "everything", "who", [], transient={"note": "für dich".encode()}
        )
    )
    assert (found["msp"], found["channel"]) == ("AuroraMSP", "neighbourhood")
    assert found["transient"] == {"note": "für dich"}
    assert found["proposal"] is True
    assert abs(found["seconds"] - time.time()) < 60


async def test_public_state(running: Running) -> None:
    await running.submit("put", "colour", "grün")
    assert await running.ask("get", "colour") == "grün"
    await running.submit("remove", "colour")
    assert await running.ask("get", "colour") == ""
    with pytest.raises(TransactionRefused, match="a key must not be empty"):
        await running.submit("put", "", "1")


async def test_ranges_and_pages(running: Running) -> None:
    """Three batches, an early end, two iterators at once, pages and their bookmarks."""
    committed = await running.submit("fill", "r", "250")
    assert set(decoded(committed.result)) == {""}  # a read never sees the transaction's own write
    found = await running.ask("range", "r", "s", "1000")
    assert [key for key, _ in found] == [f"r{index:05d}" for index in range(250)]
    assert found[249] == ["r00249", "value of r00249"]
    assert len(await running.ask("range", "r", "s", "7")) == 7
    assert await running.ask("two", "r", "s") == [250, 250]
    assert await running.ask("range", "x", "y", "1") == []
    first = await running.ask("page", "r", "r00005", "3", "")
    assert first == {"keys": ["r00000", "r00001", "r00002"], "count": 3, "bookmark": "r00003"}
    last = await running.ask("page", "r", "r00005", "3", first["bookmark"])
    assert last == {"keys": ["r00003", "r00004"], "count": 2, "bookmark": ""}
    assert len((await running.ask("page", "r", "s", "200", ""))["keys"]) == 200
    with pytest.raises(TransactionRefused, match="read a range in pages, so it may not write"):
        await running.submit("pageAndPut", "r", "s")
    with pytest.raises(TransactionRefused, match="without an index for rich queries"):
        await running.ask("rich", '{"selector":{}}')


async def test_composite_keys(running: Running) -> None:
    for owner, number in (("ann", "1"), ("ann", "2"), ("bob", "1")):
        await running.submit("compose", "car", [owner, number])
    assert await running.ask("composed", "car", ["ann"]) == [
        [["ann", "1"], '["ann", "1"]'],
        [["ann", "2"], '["ann", "2"]'],
    ]
    page = await running.ask("composedPage", "car", "2", "")
    rest = await running.ask("composedPage", "car", "2", page["bookmark"])
    assert [*page["found"], *rest["found"]] == [["ann", "1"], ["ann", "2"], ["bob", "1"]]
    assert "ann" not in str(
        await running.ask("range", "", "", "1000")
    )  # composite keys stand apart


async def test_history(running: Running) -> None:
    """Every write of a key, newest first, with its transaction and time."""
    before = int(time.time())
    ids = [
        (await running.submit(*call)).transaction_id
        for call in (("put", "aged", "1"), ("remove", "aged"), ("put", "aged", "3"))
    ]
    found = await running.ask("history", "aged")
    assert [entry["txId"] for entry in found] == ids[::-1]
    assert [(entry["value"], entry["isDelete"]) for entry in found] == [
        ("3", False),
        ("", True),
        ("1", False),
    ]
    assert all(before <= entry["seconds"] <= time.time() for entry in found)
    assert await running.ask("history", "never") == []


async def test_private_data(running: Running) -> None:
    members = ["AuroraMSP"]
    secret = secrets.token_hex(16)
    await running.submit(
        "putPrivate",
        "own",
        "k",
        transient={"value": secret.encode()},
        endorsers=members,
    )
    assert await running.ask("getPrivate", "own", "k") == secret
    digest = hashlib.sha256(secret.encode()).hexdigest()
    hashes = [
        decoded(await client.evaluate("everything", "privateHash", [b"own", b"k"]))
        for client in running.clients.values()
    ]
    assert hashes[0] == digest
    with pytest.raises(TransactionRefused):
        await running.clients["CieloMSP"].evaluate("everything", "getPrivate", [b"own", b"k"])
    await running.submit("composePrivate", "own", "p", ["x", "1"], endorsers=members)
    assert await running.ask("composedPrivate", "own", "p", ["x"]) == [["x", "1"]]
    assert await running.ask("privateRange", "own", "a", "z") == [["k", secret]]
    await running.submit("removePrivate", "own", "k", endorsers=members)
    assert await running.ask("getPrivate", "own", "k") == ""
    await running.submit("putPrivate", "own", "k", transient={"value": b"again"}, endorsers=members)
    await running.submit("purgePrivate", "own", "k", endorsers=members)
    assert await running.ask("getPrivate", "own", "k") == ""
    with pytest.raises(TransactionRefused, match="has no collection 'none'"):
        await running.ask("getPrivate", "none", "k")


async def test_policies_of_keys(running: Running) -> None:
    """A key that Boreal alone vouches for does not change without Boreal's endorsement."""
    await running.submit("put", "guarded", "1")
    await running.submit("setPolicy", "guarded", ["BorealMSP"])
    assert await running.ask("getPolicy", "guarded") == ["BorealMSP"]
    with pytest.raises(CommitFailed, match="ENDORSEMENT_POLICY_FAILURE"):
        await running.submit("put", "guarded", "2", endorsers=["AuroraMSP", "CieloMSP"])
    await running.submit("put", "guarded", "3", endorsers=["AuroraMSP", "BorealMSP"])
    assert await running.ask("get", "guarded") == 3
    member = ["AuroraMSP"]
    await running.submit(
        "putPrivate", "own", "guarded", transient={"value": b"1"}, endorsers=member
    )
    await running.submit("setPrivatePolicy", "own", "guarded", ["AuroraMSP"], endorsers=member)
    assert await running.ask("getPrivatePolicy", "own", "guarded") == ["AuroraMSP"]


async def test_events(running: Running) -> None:
    """An event carries the chaincode's name and the transaction's id, whatever it claims."""
    connected = asyncio.Event()
    events = running.clients["AuroraMSP"].chaincode_events("everything", connected=connected.set)
    first = asyncio.ensure_future(anext(events))
    await asyncio.wait_for(connected.wait(), 60)
    committed = await running.submit("event", "sunrise", "06:41")
    event = await asyncio.wait_for(first, 60)
    assert (event.name, event.payload) == ("sunrise", b"06:41")
    assert event.transaction_id == committed.transaction_id
    await events.aclose()


async def test_chaincodes_call_each_other(running: Running) -> None:
    """Into the same process, into a contract of this peer, and what is refused."""
    called = await running.ask("call", "energy", "", ["market:Rates", '{"day":"2026-11-21"}'])
    assert called["status"] == 200
    assert json.loads(called["payload"]) == []
    refused = await running.ask("call", "energy", "neighbourhood", ["market:Nothing", "{}"])
    assert refused["status"] == 404
    await running.submit("callAndPut", "again", "both", "1")
    assert await running.ask("get", "both") == "outer 1"
    assert await running.ask("get", "both", chaincode="again") == "inner 1"
    for chaincode, channel, problem in (
        ("everything", "", "takes part in a transaction once"),
        ("nothing", "", "chaincode nothing is not defined on channel neighbourhood"),
        ("again", "elsewhere", "failed to find ledger for channel: elsewhere"),
    ):
        with pytest.raises(TransactionRefused, match=problem):
            await running.ask("call", chaincode, channel, ["get", "both"])


async def test_refusals_and_limits(running: Running) -> None:
    with pytest.raises(TransactionRefused, match="not on a Sunday"):
        await running.submit("refuse", "not on a Sunday")
    with pytest.raises(TransactionRefused, match="the answer has 5000000 bytes"):
        await running.ask("big", "5000000")


async def test_who_dials_shows_a_certificate(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chaincode's server asks for one of its own authority's, and gets it from our peers."""
    monkeypatch.setattr(remote, "CONNECT_WAIT_S", 3)
    assert await running.ask("get", "nothing") == ""
    stranger = CertificateAuthority.create("Stranger", "stranger.example")
    key = generate_key()
    certificate = certificate_pem(stranger.issue("peer", "peer", key.public_key()))
    root = running.network.utility("Aurora").root_pem
    for shown in ({}, {"certificate_pem": certificate, "key_pem": key_pem(key)}):
        dialled = RemoteChaincode("everything", Connection(ADDRESS, tls_root_pem=root, **shown))
        creator = Creator("AuroraMSP", b"", "ann", "client", {})
        call = Invocation("everything", "neighbourhood", "tx", 0, creator, [b"get", b"k"], {})
        with pytest.raises(ChaincodeUnavailableError, match="cannot be reached"):
            await dialled.invoke(call, TransactionSimulator(MemoryState(), "neighbourhood"))
        await dialled.close()


async def test_concurrent_load(running: Running) -> None:
    """Three hundred transactions at once, from three gateways: each one's writes are its own."""
    clients = list(running.clients.values())
    started = time.monotonic()

    async def one(index: int) -> None:
        client = clients[index % len(clients)]
        key = f"load{index:04d}".encode()
        committed = await client.submit("everything", "increment", [key])
        assert decoded(committed.result) == 1

    await asyncio.gather(*(one(index) for index in range(300)))
    print(f"300 transactions in {time.monotonic() - started:.1f} s")
    # Ordered after them all: Aurora's peer, which is asked, then has the other gateways' too.
    await running.submit("put", "after", "1")
    found = await running.ask("range", "load", "loae", "1000")
    assert found == [[f"load{index:04d}", "1"] for index in range(300)]


async def test_our_contract_served_to_one_of_two_endorsers(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aurora's peer dials `gridledger contract serve`, Boreal's runs the contract in itself.

    Both endorse, so both came to the same bytes.
    """
    folder, address = running.node.folder, f"127.0.0.1:{first_port(1)}"
    utility = running.network.utility("Aurora")
    package = served_package("energy_served", Connection(address, tls_root_pem=utility.root_pem))
    served = package_id_of("energy_served", package)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "consortium.cli.main", "contract", "serve", "energy"),
        *("--address", address, "--package-id", served),
        *("--tls-cert", str(folder / "tls.cert.pem"), "--tls-key", str(folder / "tls.key.pem")),
        stdout=asyncio.subprocess.PIPE,
    )
    async with PeerAdmin(running.network, utility) as admin:
        await admin.install(package)
        definition, own = await admin.approved("energy")
        assert own == package_id("energy")
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)).decode()
        assert line == f"energy is served at {address} as {served}\n"
        # Which package a utility runs for the definition in force is its own choice.
        async with PeerAdmin(running.network, utility) as admin:
            await admin.approve(definition, served)
        home = {
            "connection_id": "CP-SERVED",
            "utility": "AuroraMSP",
            "zone": "Z1",
            "max_export_w": "6000",
            "max_import_w": "17000",
        }
        operator = utility_client(running.network, utility, "operator")
        async with operator:
            committed = await operator.submit(
                "energy",
                "registry:RegisterConnection",
                home,
                endorsing_organizations=["AuroraMSP", "BorealMSP"],
            )
            assert committed.result["connection_id"] == "CP-SERVED"
            with pytest.raises(TransactionRefused) as refused:
                await operator.submit("energy", "market:Nothing", {})
            assert refused.value.status == 404
        process.terminate()
        assert await process.wait() == 0
        monkeypatch.setattr(remote, "CONNECT_WAIT_S", 0.3)
        with pytest.raises(TransactionRefused, match=rf"energy at {address} cannot be reached"):
            await running.clients["AuroraMSP"].evaluate(
                "energy",
                "market:Rates",
                {"day": "2026-11-21"},
                endorsing_organizations=["AuroraMSP"],
            )
    finally:
        async with PeerAdmin(running.network, utility) as admin:
            await admin.approve(definition, own)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_chaincode_that_dies_and_returns(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was under way fails and says why; the next transaction waits for the restart."""
    monkeypatch.setattr(remote, "CONNECT_WAIT_S", 25)  # Node.js on a busy machine

    async def ask_aurora_alone(function: str, *args: str) -> None:
        # Else the gateway would try the other peers.
        client = running.clients["AuroraMSP"]
        await client.evaluate(
            "everything", function, encoded(args), endorsing_organizations=["AuroraMSP"]
        )

    sleeping = asyncio.create_task(ask_aurora_alone("sleep", "10000"))
    await asyncio.sleep(0.3)
    with pytest.raises(TransactionRefused, match="went away during this transaction"):
        await ask_aurora_alone("die")
    with pytest.raises(TransactionRefused, match="went away during this transaction"):
        await sleeping
    assert running.node.process is not None
    assert await running.node.process.wait() == 7
    waiting = asyncio.create_task(running.submit("put", "phoenix", "1"))
    await running.node.start()
    await waiting
    assert await running.ask("get", "phoenix") == 1
