"""A consortium's life: contracts agreed on and upgraded, channels and utilities that come and go.

Each node is a process of its own. The chaincode with two versions is served by this process.
"""

import asyncio
import contextlib
import io
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest
import pytest_asyncio
from cryptography import x509

from consortium.chaincode.api import Chaincode, Context, Contract, query, transaction
from consortium.chaincode.packages import make_package, package_id, read_package, served_package
from consortium.chaincode.remote import Connection
from consortium.chaincode.serve import ChaincodeServer
from consortium.cli.main import REFUSALS, _parser
from consortium.contracts import package as own
from consortium.ledger.config_changes import change_setting, copied
from consortium.ledger.config_json import config_to_json
from consortium.ledger.config_update import compute_update, sign_update, update_envelope
from consortium.ledger.lifecycle import ChaincodeDefinition
from consortium.node.channel import current
from consortium.node.contracts import client as utility_client
from consortium.node.contracts import ensure_contracts
from consortium.node.lifecycle import PeerAdmin, PeerRefused
from consortium.node.network import Network, create_network
from consortium.node.processes import ProcessNetwork
from consortium.wire import common_pb2, msp_pb2
from gridledger_client import (
    AuthenticationFailed,
    CommitFailed,
    ConnectionFailed,
    GatewayClient,
    Timeout,
    TransactionRefused,
    enroll,
)
from gridledger_client import Identity as ClientIdentity
from gridledger_client.enrolment import fetch_bundle
from tests.consortium.ledger.recorded import FOLDER
from tests.ports import first_port, free_ports

from .conftest import run_cli
from .tools import Ledgers

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(240),
]

DEADLINE_S = 60
UPDATE = "config-update-envelope"
SERVED = dict(zip((1, 2), (f"127.0.0.1:{port}" for port in free_ports(2)), strict=True))
ALL = ["AuroraMSP", "BorealMSP", "CieloMSP"]


class Counting(Contract):
    """Says which version it is, and keeps what it was told."""

    name: ClassVar[str] = "counting"
    version: ClassVar[int]

    @transaction
    def note(self, context: Context) -> object:
        context.put_state(f"note/{context.transaction_id}", str(self.version).encode())
        return {"version": self.version}

    @query
    def which(self, context: Context) -> object:
        return {"version": self.version}


class CountingOne(Counting):
    version = 1


class CountingTwo(Counting):
    version = 2


def older_metering() -> bytes:
    """A package as an earlier release's would be: the same contract, with other words."""
    files = read_package(own.package("metering")).files()
    name = "consortium/contracts/meters/metering.py"
    changed = files[name].replace(
        b"the transient data has no entry named", b"in 0.9 there is no entry named"
    )
    changed += b"\n# an earlier release\n"
    return make_package("metering_0.9", "gridledger", {**files, name: changed})


@dataclass
class Consortium:
    """The running network, and what the tests share."""

    network: Network
    processes: ProcessNetwork
    served: dict[int, bytes] = field(default_factory=dict)

    async def run(self, *arguments: str, status: int = 0) -> Any:
        """`gridledger …` in this process (starting one takes longer), asked for JSON."""
        options = _parser().parse_args(
            [*arguments, "--data-dir", str(self.network.directory), "--json"]
        )
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                done = await options.run(options) or 0
        except REFUSALS as error:
            if status != 1:
                raise
            return {"error": str(error)}
        assert done == status, said.getvalue()
        return json.loads(said.getvalue())

    def client(self, utility: str = "Aurora", who: str = "operator") -> GatewayClient:
        return utility_client(self.network, self.network.utility(utility), who)

    def admin(self, utility: str = "Aurora") -> PeerAdmin:
        return PeerAdmin(self.network, self.network.utility(utility))

    @contextlib.asynccontextmanager
    async def ledgers(self, *utilities: str) -> AsyncIterator[Ledgers]:
        names = utilities or tuple(one.name for one in self.network.utilities)
        clients = {self.network.utility(name).msp_id: self.client(name, "admin") for name in names}
        try:
            yield Ledgers(self.network, clients)
        finally:
            await asyncio.gather(*(client.close() for client in clients.values()))

    async def restart(self, utility: str, kind: str) -> None:
        member = self.network.utility(utility)
        await self.processes.kill(member, kind)
        await self.processes.start_node(member, kind)


async def until(what: Callable[[], Any], *errors: type[Exception]) -> Any:
    """Ask until the answer is true."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            if found := await what():
                return found
        except errors:
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def consortium(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Consortium]:
    folder = tmp_path_factory.mktemp("lifecycle")
    network = create_network(folder / "data", interval_s=60, base_port=first_port())
    consortium = Consortium(network, ProcessNetwork(network, log_dir=folder))
    servers = []
    for number, contract in ((1, CountingOne()), (2, CountingTwo())):
        data = served_package(f"counting_{number}.0", Connection(SERVED[number]))
        consortium.served[number] = data
        server = ChaincodeServer(
            Chaincode("counting", (contract,)),
            package_id(f"counting_{number}.0", data),
            SERVED[number],
        )
        await server.start()
        servers.append(server)
    earlier = older_metering()
    for utility in network.utilities:
        # As an earlier release left it on the peers.
        packages = utility.directory / "peer" / "packages"
        packages.mkdir()
        name = package_id("metering_0.9", earlier).replace(":", ".", 1)
        (packages / f"{name}.tar.gz").write_bytes(earlier)
    await consortium.processes.start()
    try:
        await ensure_contracts(network)
        yield consortium
    finally:
        await consortium.processes.stop()
        for server in servers:
            await server.stop()


# ---------------------------------------------------------------------------------- contracts


async def test_a_contract_step_by_step(consortium: Consortium, tmp_path: Path) -> None:
    """Package, install, approve, readiness, commit, list: as a person does it."""
    file = str(tmp_path / "counting.tar.gz")
    package = ("contract", "package", "counting_1.0", "--address", SERVED[1], "--out", file)
    made = await asyncio.to_thread(run_cli, *package, "--json")
    first = json.loads(made.stdout)["package_id"]
    assert first == package_id("counting_1.0", consortium.served[1])
    installed = await consortium.run("contract", "install", file)
    assert installed["package_id"] == first
    assert [one["state"] for one in installed["peers"]] == ["installed"] * 3
    again = await consortium.run("contract", "install", file, "--utility", "Boreal")
    assert again["peers"] == [{"utility": "Boreal", "state": "was there already"}]
    new = await consortium.run("contract", "approve", "counting", status=1)
    assert "is new on the channel: give it a --version" in new["error"]
    approved = await consortium.run(
        *("contract", "approve", "counting", "--version", "1.0", "--utility", "Aurora"),
        *("--policy", "OutOf(2,'AuroraMSP.peer','BorealMSP.peer','CieloMSP.peer')"),
    )
    assert (approved["sequence"], approved["approvals"][0]["package_id"]) == (1, first)
    readiness = await consortium.run("contract", "readiness", "counting")
    assert readiness["approvals"] == {"AuroraMSP": True, "BorealMSP": False, "CieloMSP": False}
    assert readiness["mismatches"]["BorealMSP"] == ["ChaincodeParameters"]
    early = await consortium.run("contract", "commit", "counting", status=1)
    assert early["error"]
    # Boreal agrees to something else, sees it, and corrects itself.
    await consortium.run(
        "contract", "approve", "counting", "--version", "1.1", "--utility", "Boreal"
    )
    differs = await consortium.run("contract", "readiness", "counting")
    assert differs["mismatches"]["BorealMSP"] == ["EndorsementInfo", "ValidationInfo"]
    for utility in ("Boreal", "Cielo"):
        await consortium.run(
            *("contract", "approve", "counting", "--version", "1.0", "--utility", utility),
            *("--policy", "OutOf(2,'AuroraMSP.peer','BorealMSP.peer','CieloMSP.peer')"),
        )
    done = await consortium.run("contract", "commit", "counting")
    assert (done["name"], done["sequence"]) == ("counting", 1)
    async with consortium.ledgers() as ledgers:
        await ledgers.settled()
    listed = {one["name"]: one for one in await consortium.run("contract", "list")}
    assert sorted(listed) == ["counting", "energy", "metering"]
    assert listed["counting"]["package_id"] == first
    assert listed["counting"]["policy"].startswith("OutOf(2, 'AuroraMSP.peer'")
    packages = await consortium.run("contract", "list", "--installed", "--utility", "Cielo")
    runs = {one["package_id"]: [run["name"] for run in one["runs"]] for one in packages}
    assert runs[first] == ["counting"]
    assert runs[own.package_id("energy")] == ["energy"]
    async with consortium.client() as operator:
        assert await operator.evaluate("counting", "counting:Which") == {"version": "1"}


async def test_an_upgrade_while_transactions_flow(consortium: Consortium) -> None:
    """All peers change from one version to the other with one block; nobody stops."""
    second = package_id("counting_2.0", consortium.served[2])
    results: list[tuple[int, int]] = []
    stopped = asyncio.Event()
    unexpected: list[str] = []

    async def write(utility: str) -> None:
        async with consortium.client(utility) as operator:
            while not stopped.is_set():
                try:
                    done = await operator.submit("counting", "counting:Note", {})
                except CommitFailed as error:
                    # Endorsed before the upgrade, ordered after it.
                    if error.code != "MVCC_READ_CONFLICT":
                        unexpected.append(str(error))
                except Timeout:
                    continue  # a machine under load; nothing follows from it
                except TransactionRefused as error:
                    # One endorser was a block ahead of the other.
                    if "do not match" not in " ".join([str(error), *map(str, error.details)]):
                        unexpected.append(f"{error} {error.details}")
                else:
                    results.append((done.block_number, int(done.result["version"])))

    writers = [asyncio.create_task(write(one.name)) for one in consortium.network.utilities * 2]
    try:
        for utility in consortium.network.utilities:
            async with consortium.admin(utility.name) as admin:
                await admin.install(consortium.served[2])
        committed = len(results)
        for utility in ("Aurora", "Boreal", "Cielo"):
            await consortium.run(
                *("contract", "approve", "counting", "--version", "2.0"),
                *("--package-id", second, "--utility", utility),
            )
        # Approved by all, and still the first version.
        async with consortium.client("Boreal") as operator:
            assert await operator.evaluate("counting", "counting:Which") == {"version": "1"}
        done = await consortium.run("contract", "commit", "counting", "--utility", "Cielo")
        assert done["sequence"] == 2
        seen = len(results)
        assert seen > committed
        await until(lambda: asyncio.sleep(0, len(results) > seen + 30))
    finally:
        stopped.set()
        await asyncio.gather(*writers)
    assert not unexpected
    versions = {version for _, version in results}
    assert versions == {1, 2}
    assert all((version == 2) == (block > done["block_number"]) for block, version in results), (
        done["block_number"],
        sorted(results),
    )
    async with consortium.ledgers() as ledgers:
        await ledgers.settled()
        for utility in consortium.network.utilities:
            async with consortium.client(utility.name) as operator:
                found = await operator.evaluate(
                    "counting", "counting:Which", endorsing_organizations=[utility.msp_id]
                )
                assert found == {"version": "2"}


async def test_our_own_contract_goes_back_and_forth(consortium: Consortium) -> None:
    """An earlier release's package runs beside newer sources until a new sequence says so."""
    earlier = package_id("metering_0.9", older_metering())
    current = own.package_id("metering")
    for utility in ("Aurora", "Boreal", "Cielo"):
        await consortium.run(
            *("contract", "approve", "metering", "--package-id", earlier, "--utility", utility)
        )
    back = await consortium.run("contract", "commit", "metering")
    async with consortium.client() as operator:
        await operator.evaluate("metering", "metering:Settings")
    runs = {one["name"]: one["package_id"] for one in await consortium.run("contract", "list")}
    assert runs["metering"] == earlier
    # Starting the network again changes nothing of that ...
    await ensure_contracts(consortium.network)
    assert (await consortium.run("contract", "list"))[2]["sequence"] == back["sequence"]
    # ... a person does.
    changes = (await consortium.run("contract", "deploy"))["changes"]
    assert len(changes) == 1
    assert f"sequence {back['sequence'] + 1}" in changes[0]
    assert (await consortium.run("contract", "deploy"))["changes"] == []
    async with consortium.ledgers() as ledgers:
        await ledgers.settled()
    runs = {one["name"]: one["package_id"] for one in await consortium.run("contract", "list")}
    assert runs["metering"] == current


async def test_who_does_not_run_a_contract(consortium: Consortium) -> None:
    """Its peer refuses with Fabric's sentence, its gateway asks the others, discovery is silent."""
    async with consortium.admin("Cielo") as admin:
        definition, package = await admin.approved("counting")
        await admin.approve(definition, "")
    async with consortium.client("Cielo") as operator:
        done = await operator.submit("counting", "counting:Note", {})
        assert done.result == {"version": "2"}
        assert await operator.evaluate("counting", "counting:Which") == {"version": "2"}
        with pytest.raises(ConnectionFailed, match=r"endorsing peers for org\(s\): CieloMSP"):
            await operator.submit(
                "counting", "counting:Note", {}, endorsing_organizations=["CieloMSP", "AuroraMSP"]
            )
    async with consortium.client("Aurora") as operator:
        with pytest.raises(TransactionRefused) as refused:
            await operator.submit(
                "counting", "counting:Note", {}, endorsing_organizations=["CieloMSP", "AuroraMSP"]
            )
        assert "chaincode definition for 'counting' exists, but chaincode is not installed" in (
            " ".join(map(str, refused.value.details))
        )
    # Approved again, with a package that is not there: the same.
    async with consortium.admin("Cielo") as admin:
        await admin.approve(definition, "counting_3.0:" + 64 * "0")
        with pytest.raises(PeerRefused, match="'nothing:1' not found"):
            await admin.package("nothing:1")
        await admin.approve(definition, package)
        with pytest.raises(TransactionRefused, match="attempted to redefine the current"):
            await admin.approve(definition, package)
    async with consortium.client("Cielo") as operator:
        done = await operator.submit(
            "counting", "counting:Note", {}, endorsing_organizations=["CieloMSP", "AuroraMSP"]
        )
        assert done.result == {"version": "2"}


async def test_a_contract_that_wants_to_be_initialized(consortium: Consortium) -> None:
    """Once for each version, before anything else."""
    package = package_id("counting_1.0", consortium.served[1])
    definition = ChaincodeDefinition("begun", 1, "1.0", init_required=True)
    await _agree(consortium, definition, package)
    async with consortium.client() as operator:
        with pytest.raises(TransactionRefused) as refused:
            await operator.submit("begun", "counting:Note", {})
        assert "has not been initialized for this version, must call as init first" in (
            " ".join(map(str, refused.value.details))
        )
    begun = await consortium.run(
        "contract", "invoke", "begun", "counting:Note", "--init", "--endorse", "AuroraMSP",
        "--endorse", "BorealMSP",
    )  # fmt: skip
    assert begun["result"] == {"version": "1"}
    async with consortium.client() as operator:
        await operator.submit("begun", "counting:Note", {})
    twice = await consortium.run("contract", "invoke", "begun", "counting:Note", "--init", status=1)
    assert "is already initialized but called as init" in twice["error"]
    never = await consortium.run(
        "contract", "invoke", "counting", "counting:Note", "--init", status=1
    )
    assert "does not require initialization but called as init" in never["error"]
    # The next version begins anew.
    await _agree(consortium, replace(definition, sequence=2, version="2.0"), package)
    async with consortium.client() as operator:
        with pytest.raises(TransactionRefused) as refused:
            await operator.submit("begun", "counting:Note", {})
        assert "must call as init first" in " ".join(map(str, refused.value.details))


async def _agree(consortium: Consortium, definition: ChaincodeDefinition, package: str) -> None:
    for utility in consortium.network.utilities:
        async with consortium.admin(utility.name) as admin:
            await admin.approve(definition, package)
    async with consortium.admin("Cielo") as admin:

        async def commit() -> bool:
            await admin.commit(definition, ALL)
            return True

        await until(commit, TransactionRefused, CommitFailed)
    async with consortium.ledgers() as ledgers:
        await ledgers.settled()


# ----------------------------------------------------------------------------------- channels


def admin_tls(network: Network, utility: str, who: str = "admin") -> ssl.SSLContext:
    """As osnadmin connects, with --ca-file, --client-cert and --client-key."""
    folder = network.utility(utility).directory / who
    context = ssl.create_default_context(cadata=network.tls_bundle_pem.decode())
    context.load_cert_chain(folder / "sign.cert.pem", folder / "sign.key.pem")
    return context


async def test_a_second_channel_while_nodes_run(consortium: Consortium, tmp_path: Path) -> None:
    """Orderers join it over osnadmin's REST, peers by cscc; both still have it after a restart."""
    network = consortium.network
    file = tmp_path / "valley.block"
    refused = await consortium.run("channel", "create", "Valley", "--out", str(file), status=1)
    assert "'Valley' is no channel id" in refused["error"]
    made = await consortium.run("channel", "create", "valley", "--out", str(file))
    assert made["members"] == [one.msp_id for one in network.utilities]
    async with aiohttp.ClientSession() as session:
        for utility in network.utilities:
            base = f"https://127.0.0.1:{utility.ports.admin}/participation/v1/channels"
            tls = admin_tls(network, utility.name)
            async with session.get(base, ssl=tls) as answer:
                assert answer.status == 200
                assert await answer.json() == {
                    "systemChannel": None,
                    "channels": [
                        {
                            "name": "neighbourhood",
                            "url": "/participation/v1/channels/neighbourhood",
                        }
                    ],
                }
            form = aiohttp.FormData()
            form.add_field("config-block", file.read_bytes(), filename="config.block")
            async with session.post(base, data=form, ssl=tls) as answer:
                assert answer.status == 201, await answer.text()
                found = await answer.json()
                assert (
                    answer.headers["Location"]
                    == found["url"]
                    == ("/participation/v1/channels/valley")
                )
                assert found["consensusRelation"] == "consenter"
    for utility in network.utilities:
        joined = await consortium.run("channel", "join", str(file), "--utility", utility.name)
        assert joined["channel"] == "valley"
    # One that Fabric's configtxgen made; its orderers are nowhere, so that it stays at its start.
    made = await consortium.run("channel", "join", str(FOLDER / "orderer-blocks" / "0000.block"))
    assert made["channel"] == "goldenchannel"
    twice = await consortium.run("channel", "join", str(file), status=1)
    assert "ledger [valley] already exists" in twice["error"]
    listed = await consortium.run("channel", "list", "--utility", "Boreal")
    assert listed["channels"] == ["neighbourhood", "valley"]
    shown = await consortium.run("channel", "show", "--channel", "valley")
    assert shown["sequence"] == "0"
    valley = replace(network, channel="valley")
    async with PeerAdmin(valley, valley.utility("Aurora")) as admin:

        async def approve() -> object:
            definition = ChaincodeDefinition("counting", 1, "1.0")
            return await admin.approve(definition, "", unless_done=True)

        await until(approve, TransactionRefused)
    await consortium.restart("Aurora", "peer")
    await consortium.restart("Boreal", "orderer")
    async with PeerAdmin(valley, valley.utility("Aurora")) as admin:
        assert (await admin.channels()) == ["goldenchannel", "neighbourhood", "valley"]
        definition, package = await until(lambda: admin.approved("counting"), TransactionRefused)
        assert (definition.version, package) == ("1.0", "")


async def test_what_participation_refuses(consortium: Consortium) -> None:
    network = consortium.network
    utility = network.utility("Cielo")
    base = f"https://127.0.0.1:{utility.ports.admin}/participation/v1/channels"
    genesis = network.genesis_block
    assert genesis is not None
    broken = common_pb2.Block()
    broken.CopyFrom(genesis)
    broken.header.data_hash = bytes(32)

    def form(data: bytes, name: str = "config-block") -> aiohttp.FormData:
        fields = aiohttp.FormData()
        fields.add_field(name, data, filename="x.block")
        return fields

    both = form(b"a")
    both.add_field("more", b"b", filename="y.block")
    nowhere = common_pb2.ConfigUpdate(channel_id="nowhere").SerializeToString()
    stranger = update_envelope("nowhere", nowhere, [], utility.signer("admin")).SerializeToString()
    tls = admin_tls(network, "Cielo")
    cases: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("GET", "/nowhere", {}, 404, "channel does not exist"),
        ("GET", "/No_Name", {}, 400, "invalid channel ID"),
        ("GET", "", {"headers": {"Accept": "text/plain"}}, 406, "application/json only"),
        ("POST", "", {"data": b"x"}, 400, "unsupported Content-Type"),
        ("POST", "", {"data": form(b"x", "block")}, 400, "does not contains part key"),
        ("POST", "", {"data": both}, 400, "too many parts"),
        ("POST", "", {"data": form(b"\xff")}, 400, "cannot unmarshal file part"),
        ("POST", "", {"data": form(b"")}, 400, "block is not a config block"),
        ("POST", "", {"data": form(bytes(2**20 + 1))}, 400, "request body too large"),
        ("POST", "", {"data": form(broken.SerializeToString())}, 400, "Header.DataHash"),
        ("POST", "", {"data": form(genesis.SerializeToString())}, 405, "channel already exists"),
        ("PUT", "/neighbourhood", {}, 405, "invalid request method: PUT"),
        ("PUT", "", {"data": b"x"}, 400, "unsupported Content-Type"),
        ("PUT", "", {"data": form(b"x")}, 400, "does not contains part key: config-update"),
        ("PUT", "", {"data": form(b"\xff", UPDATE)}, 400, "into an envelope"),
        ("PUT", "", {"data": form(b"", UPDATE)}, 400, "invalid config update envelope: bad header"),
        ("PUT", "", {"data": form(stranger, UPDATE)}, 405, "cannot update: channel does not exist"),
        ("DELETE", "/nowhere", {}, 404, "cannot remove: channel does not exist"),
        ("GET", "/neighbourhood/blocks/best", {}, 400, "not equal \\u003cnewest|oldest|"),
        ("GET", "/neighbourhood/blocks/999999", {}, 404, "no such block number [999999] in index"),
    ]
    async with aiohttp.ClientSession() as session:
        for method, path, more, status, said in cases:
            async with session.request(method, base + path, ssl=tls, **more) as answer:
                text = await answer.text()
                assert (answer.status, said in text) == (status, True), (method, path, text)
                assert json.loads(text)["error"]
        async with session.get(base + "/neighbourhood/blocks/oldest", ssl=tls) as answer:
            assert common_pb2.Block.FromString(await answer.read()) == genesis
        async with session.get(base + "/neighbourhood", ssl=tls) as answer:
            found = await answer.json()
            assert (found["status"], found["consensusRelation"]) == ("active", "consenter")
            assert found["height"] > 1
        # An operator is none of its admins, nor is another utility's; no certificate, no answer.
        async with session.get(base, ssl=admin_tls(network, "Cielo", "operator")) as answer:
            assert answer.status == 403
        for context in (
            admin_tls(network, "Aurora"),
            ssl.create_default_context(cadata=network.tls_bundle_pem.decode()),
        ):
            with pytest.raises(aiohttp.ClientError):
                async with session.get(base, ssl=context) as answer:
                    await answer.read()


async def test_a_channel_is_changed_over_rest(consortium: Consortium) -> None:
    """A configuration update by PUT, in a block when the answer is there."""
    network = consortium.network
    async with consortium.client("Aurora", "admin") as admin:
        before = await current(admin, "AuroraMSP")
        wanted = copied(before.config.config)
        change_setting(wanted, "batch-size", "123")
        computed = compute_update(network.channel, before.config.config, wanted)
        raw = computed.SerializeToString()
        cielo = network.utility("Cielo")
        signers = [one.signer("admin") for one in network.utilities]
        base = f"https://127.0.0.1:{cielo.ports.admin}/participation/v1/channels"
        async with aiohttp.ClientSession() as session:
            for signed_by, status in ((signers[:1], 400), (signers, 201), (signers, 400)):
                envelope = update_envelope(
                    network.channel, raw, [sign_update(raw, one) for one in signed_by], signers[0]
                )
                form = aiohttp.FormData()
                form.add_field(UPDATE, envelope.SerializeToString(), filename="update")
                tls = admin_tls(network, "Cielo")
                async with session.put(base, data=form, ssl=tls) as answer:
                    found = await answer.json()
                    assert answer.status == status, found
                if status == 201:
                    assert answer.headers["Location"] == found["url"]
                    assert found["consensusRelation"] == "consenter"
                else:
                    said = f"cannot update: failed update config of channel {network.channel}: "
                    assert found["error"].startswith(said)

        async def changed() -> bool:
            now = await current(admin, "AuroraMSP")
            return now.config.orderer.max_message_count == 123

        await until(changed)


async def test_an_orderer_leaves_a_channel(consortium: Consortium) -> None:
    utility = consortium.network.utility("Cielo")
    base = f"https://127.0.0.1:{utility.ports.admin}/participation/v1/channels"
    tls = admin_tls(consortium.network, "Cielo")
    async with aiohttp.ClientSession() as session:
        async with session.delete(base + "/valley", ssl=tls) as answer:
            assert answer.status == 204
        async with session.get(base + "/valley", ssl=tls) as answer:
            assert answer.status == 404


# ----------------------------------------------------------------------------------- utilities


async def test_a_utility_joins_works_and_leaves(consortium: Consortium) -> None:
    """Its folders, its membership, its nodes, its contracts, its homes; then it is gone."""
    async with consortium.ledgers() as ledgers:
        before = await ledgers.settled()
    added = await consortium.run(
        "network", "add-utility", "Delta", "--base-port", str(first_port())
    )
    assert added["msp_id"] == "DeltaMSP"
    network = consortium.network = Network.load(consortium.network.directory)
    consortium.processes.network = network
    delta = network.utility("Delta")
    for kind in ("ca", "peer"):
        await consortium.processes.start_node(delta, kind)
    async with consortium.ledgers() as ledgers:
        after = await until(
            ledgers.settled, AuthenticationFailed, TransactionRefused, AssertionError
        )
        assert after.height > before.height
    # It endorses nothing yet, but its gateway serves its people through the others' peers.
    async with consortium.client("Delta") as operator:
        await operator.evaluate("energy", "registry:Settings")
    changes = (await consortium.run("contract", "deploy"))["changes"]
    assert any("metering" in change for change in changes)
    listed = {one["name"]: one for one in await consortium.run("contract", "list", "--utility",
                                                               "Delta")}  # fmt: skip
    assert "readings-DeltaMSP" in listed["metering"]["collections"]
    assert listed["energy"]["package_id"] == own.package_id("energy")
    async with consortium.client("Delta") as operator:
        connection = {
            "connection_id": "CP-DELTA",
            "utility": "DeltaMSP",
            "zone": "Z1",
            "max_export_w": "6000",
            "max_import_w": "17000",
        }
        done = await operator.submit(
            "energy",
            "registry:RegisterConnection",
            connection,
            endorsing_organizations=["DeltaMSP", "AuroraMSP", "BorealMSP"],
        )
        assert done.result["connection_id"] == "CP-DELTA"
    secret = await asyncio.to_thread(
        network.register_identity, "DeltaMSP", "home-delta", None,
        {"gridledger.role": "home", "gridledger.connection": "CP-DELTA"},
    )  # fmt: skip
    credentials = await enroll(delta.ca_url, "home-delta", secret, network.tls_bundle_pem)
    identity = ClientIdentity("DeltaMSP", credentials.certificate_pem, credentials.key_pem)
    home = GatewayClient(
        [network.utility("Aurora").gateway_address],
        network.channel,
        identity,
        network.tls_bundle_pem,
    )
    async with home:
        found = await home.evaluate("energy", "registry:Connection", {"connection_id": "CP-DELTA"})
        assert found["utility"] == "DeltaMSP"
        # Gone: what its people sign counts for nothing from that block on.
        removed = await consortium.run("network", "remove-utility", "Delta")
        async with consortium.ledgers("Aurora", "Boreal", "Cielo") as ledgers:
            assert (await ledgers.settled()).height > removed["block_number"]
        with pytest.raises(AuthenticationFailed, match="access denied"):
            await home.evaluate("energy", "market:Rates", {"day": "2026-11-21"})
    await consortium.processes.kill(delta, "peer")
    await consortium.processes.kill(delta, "ca")
    consortium.network = consortium.processes.network = Network.load(network.directory)
    async with consortium.client() as operator:
        await operator.submit("counting", "counting:Note", {})


# -------------------------------------------------------------------------------- certificates


async def shown(port: int, bundle: bytes) -> int:
    """The serial number of the certificate that a node shows now."""
    context = ssl.create_default_context(cadata=bundle.decode())
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


async def test_certificates_are_renewed(consortium: Consortium) -> None:
    """TLS from the next handshake on, without a restart; identities with the next start."""
    network = consortium.network
    aurora = network.utility("Aurora")
    before = await shown(aurora.ports.peer, network.tls_bundle_pem)
    await consortium.run("network", "renew", "Aurora", "--new-keys")
    after = await shown(aurora.ports.peer, network.tls_bundle_pem)
    renewed = x509.load_pem_x509_certificate(
        (aurora.directory / "peer" / "tls.cert.pem").read_bytes()
    )
    assert before != after == renewed.serial_number
    async with consortium.client() as operator:
        await operator.submit("counting", "counting:Note", {})
    await consortium.restart("Aurora", "peer")
    async with consortium.client() as operator:
        done = await operator.submit(
            "counting", "counting:Note", {}, endorsing_organizations=["AuroraMSP", "BorealMSP"]
        )
        assert done.block_number


async def test_a_utility_changes_its_root(consortium: Consortium) -> None:
    """Both roots are trusted for a while, then the new one alone."""
    network = consortium.network
    boreal = network.utility("Boreal")
    old_root, old_admin = boreal.root_pem, boreal.signer("admin")
    await consortium.run("network", "rotate-ca", "Boreal")
    assert boreal.root_pem != old_root
    again = await consortium.run("network", "rotate-ca", "Boreal", status=1)
    assert "run `gridledger network rotate-ca Boreal --finish`" in again["error"]
    # Its own administrator alone publishes a list of each root.
    await consortium.run(
        "channel", "update", "--crl", "Boreal", "--utility", "Boreal", "--sign-as", "Boreal"
    )
    async with consortium.client("Aurora", "admin") as gateway:
        now = (await current(gateway, "AuroraMSP")).config
    definition = config_to_json(now.config)["channel_group"]["groups"]["Application"]["groups"]
    found = definition["BorealMSP"]["values"]["MSP"]["value"]["config"]["revocation_list"]
    assert len(found) == 2
    # The authorities that run hand out both roots, and Boreal's certifies by the new one.
    for utility in network.utilities:
        bundle = await fetch_bundle(f"https://127.0.0.1:{utility.ports.ca}")
        assert boreal.root_pem.strip() in bundle
        assert old_root.strip() in bundle
    # What runs goes on by the old one meanwhile; each node is started again by itself.
    async with consortium.client("Aurora") as operator:
        await operator.submit(
            "counting", "counting:Note", {}, endorsing_organizations=["AuroraMSP", "BorealMSP"]
        )
    for kind in ("ca", "orderer", "peer"):
        await consortium.restart("Boreal", kind)
        async with consortium.client("Cielo") as operator:

            async def submit(operator: GatewayClient = operator) -> object:
                return await operator.submit("counting", "counting:Note", {})

            await until(submit, TransactionRefused)
    finished = await consortium.run("network", "rotate-ca", "Boreal", "--finish")
    async with consortium.ledgers() as ledgers:
        assert (await ledgers.settled()).height > finished["block_number"]
    async with consortium.client("Boreal") as operator:
        await operator.submit(
            "counting", "counting:Note", {}, endorsing_organizations=["AuroraMSP", "BorealMSP"]
        )
    folder = boreal.directory / "admin"
    identity = ClientIdentity(
        "BorealMSP",
        msp_pb2.SerializedIdentity.FromString(old_admin.serialized).id_bytes,
        (folder / "sign.key.pem").read_bytes(),
    )
    stale = GatewayClient(
        [boreal.gateway_address], network.channel, identity, network.tls_bundle_pem
    )
    async with stale:
        with pytest.raises(AuthenticationFailed, match="access denied"):
            await stale.evaluate("energy", "market:Rates", {"day": "2026-11-21"})
