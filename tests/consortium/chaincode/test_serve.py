"""Our contracts served and dialled come to the same bytes as inside the peer."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import grpc
import pytest

from consortium.chaincode import remote
from consortium.chaincode.api import (
    Chaincode,
    Conflict,
    Context,
    Contract,
    Integer,
    query,
    transaction,
)
from consortium.chaincode.executor import (
    ExecutionError,
    Executor,
    ExecutorBusyError,
    InProcessExecutor,
)
from consortium.chaincode.packages import Package, PackageError, PackageStore, served_package
from consortium.chaincode.remote import ChaincodeUnavailableError, Connection, RemoteChaincode
from consortium.chaincode.routing import PackageExecutor
from consortium.chaincode.serve import ChaincodeServer
from consortium.chaincode.simulator import TransactionSimulator
from consortium.contracts import chaincodes
from consortium.identity.certificates import (
    certificate_pem,
    generate_key,
    key_pem,
)
from consortium.ledger.state import Version, VersionedValue
from consortium.wire import kvrwset_pb2, lifecycle_pb2, peer_pb2, rwset_pb2
from tests.consortium.chaincode.memory_state import MemoryState
from tests.consortium.chaincode.proposals import AUTHORITY, Member, invocation
from tests.consortium.contracts.world import CHANNEL, NOON, TestMeter, batch

ADMIN = Member("admin", "admin")
OPERATOR = Member("olga", role="operator")
SUPPLIER = Member("sue", role="supplier")
HOME = Member("home", role="home", connection="CP-0001")


class Demo(Contract):
    """What the energy contracts do not do: long ranges left early, and faults."""

    name: ClassVar[str] = "demo"

    @transaction
    def mark(self, context: Context) -> object:
        """Who calls, when, with what; and every kind of write."""
        context.put_state("a", b"1")
        context.put_state("a", b"2")
        context.put_state("b", b"1")
        context.del_state("b")
        context.put_private("secrets", "p", b"hidden")
        context.put_private("secrets", "q", b"hidden")
        context.del_private("secrets", "q")
        context.set_event("marked", b"\0\1")
        return {
            "who": [context.creator.msp_id, context.creator.common_name, context.creator.role],
            "attributes": dict(context.creator.attributes),
            "der": context.creator.certificate.hex(),
            "at": context.timestamp,
            "channel": context.channel_id,
            "transaction": context.transaction_id,
            "transient": {key: value.hex() for key, value in context.transient.items()},
            "a": (context.get_state("a") or b"none").decode(),
            "hash": (context.get_private_hash("secrets", "p") or b"").hex(),
            "private": (context.get_private("secrets", "p") or b"").hex(),
        }

    @transaction
    def many(self, context: Context, *, count: Annotated[int, Integer(0, 5000)]) -> object:
        for index in range(count):
            context.put_state(f"many/{index:05d}", b"x")
        return None

    @query
    def first(self, context: Context, *, count: Annotated[int, Integer(0, 5000)]) -> object:
        """The first keys of a long range; what comes after is not asked for."""
        found = context.range("item/", "item0")
        return [key for _, (key, _) in zip(range(count), found, strict=False)]

    @query
    def private(self, context: Context) -> object:
        return [key for key, _ in context.range_private("secrets", "a", "z")]

    @transaction
    def private_after_write(self, context: Context) -> object:
        context.put_state("a", b"1")
        return list(context.range_private("secrets", "a", "z"))

    @transaction
    def refuse(self, context: Context) -> object:
        context.put_state("a", b"1")
        raise Conflict("taken already")

    @transaction
    def fail(self, context: Context) -> object:
        raise RuntimeError("the secret is 42")

    @query
    def wait(self, context: Context) -> object:
        """Asks until it is stopped."""
        while True:
            context.get_state("a")


class BothWays:
    """Every call goes through the executor inside the peer and through the dialled one."""

    def __init__(self, local: Executor, served: Executor) -> None:
        self.state = MemoryState()
        self.local = local
        self.served = served
        self.compared = 0

    async def call(
        self,
        caller: Member,
        function: str,
        argument: object = None,
        transient: Mapping[str, bytes] | None = None,
        *,
        now: int = NOON,
    ) -> Any:
        name = function.partition(":")[0]
        chaincode = name if name in ("metering", "demo") else "energy"
        asked = invocation(caller, chaincode, function, argument, transient, now, self.local)
        outcomes = []
        for executor in (self.local, self.served):
            simulator = TransactionSimulator(self.state, CHANNEL)
            response, event = await executor.invoke(asked, simulator)
            results = simulator.results() if response.status < 400 else None
            outcomes.append((response, event, results))
        (response, event, results), (response_2, event_2, results_2) = outcomes
        assert response_2 == response
        assert event_2 == event
        if results and results_2:
            assert results_2.rwset == results.rwset
            assert results_2.private == results.private
            assert results_2.private_reads == results.private_reads
            assert self.state.commit(results_2) == [0]
        self.compared += 1
        return json.loads(response.payload) if response.status < 400 else response


def no_sources(package: Package) -> Executor:
    raise PackageError(f"{package.package_id} is not served")


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[BothWays]:
    """Three chaincodes served without TLS, and the same ones in this process."""
    known = {**chaincodes(), "demo": Chaincode("demo", (Demo(),))}
    async with AsyncExitStack() as stack:
        packages = PackageStore(tmp_path)
        installed: dict[str, str] = {}
        for at, (name, chaincode) in enumerate(known.items()):
            address = f"127.0.0.1:{18_820 + at}"
            package = packages.save(served_package(name, Connection(address)))
            installed[name] = package.package_id
            server = ChaincodeServer(chaincode, package.package_id, address)
            await server.start()
            stack.push_async_callback(server.stop)
        local = InProcessExecutor(known)
        stack.callback(local.close)
        served = PackageExecutor(packages, no_sources, lambda call, _: installed[call.chaincode])
        stack.push_async_callback(served.close)
        yield BothWays(local, served)


async def test_the_energy_contracts(both: BothWays) -> None:
    """A day of trading, with refusals, statements and pages."""
    settings = {"interval_s": 900, "currency": "EUR", "grid_fee_micro_per_kwh": 20_000}
    await both.call(ADMIN, "registry:Configure", settings)
    connection = {
        "connection_id": "CP-0001",
        "utility": "AuroraMSP",
        "zone": "NORTH",
        "max_export_w": "10000",
        "max_import_w": "20000",
    }
    await both.call(OPERATOR, "registry:RegisterConnection", connection)
    rate = {"supplier": "AuroraMSP", "day": "2026-11-21", "kind": "buy"}
    for price in range(80_000, 80_130):  # more versions than a batch holds
        published = {**rate, "price_micro_per_kwh": str(price)}
        await both.call(SUPPLIER, "market:PublishRate", published, now=NOON + price - 80_000)
    await both.call(OPERATOR, "market:Rates", {"day": "2026-11-21"})
    for index in range(3):
        window = {"window_start": NOON + 900 * (2 + index), "window_end": NOON + 900 * (6 + index)}
        asked = {"connection_id": "CP-0001", "energy_wh": "1001", **window}
        quoted = await both.call(HOME, "market:Quote", asked)
        agreed = {"request_id": f"r-{index}", "quote": quoted["quote"]}
        trade = await both.call(HOME, "market:Authorise", agreed)
        assert trade["status"] == "committed"
        assert await both.call(HOME, "market:Authorise", agreed) == trade
    refused = await both.call(HOME, "market:Authorise", {**agreed, "request_id": "r-0"})
    assert refused.status == 409
    refused = await both.call(SUPPLIER, "registry:RegisterConnection", connection)
    assert refused.status == 403
    assert (await both.call(HOME, "energy:Nothing")).status == 404
    await both.call(HOME, "wallet:Balance", {"account": "CP-0001"})
    page = await both.call(HOME, "wallet:Statement", {"account": "CP-0001", "limit": 2})
    rest = {"account": "CP-0001", "limit": 2, "bookmark": page["bookmark"]}
    assert len((await both.call(HOME, "wallet:Statement", rest))["entries"]) == 1
    await both.call(HOME, "market:Trades", {"connection_id": "CP-0001", "limit": 2})
    assert both.compared > 140


async def test_private_readings(both: BothWays) -> None:
    """Readings go to a private collection, from transient data, and come back by range."""
    meter = TestMeter()
    sequence = lifecycle_pb2.StateData(Int64=1).SerializeToString()
    field = "_lifecycle", "namespaces/fields/energy/Sequence"  # metering calls it
    both.state.public[field] = VersionedValue(sequence, b"", Version(1, 0))
    await both.call(ADMIN, "metering:Configure", {"interval_s": 900})
    registered = {
        "meter_id": meter.meter_id,
        "connection_id": "CP-0001",
        "utility": "AuroraMSP",
        "source_class": "declared",
        "public_key": meter.public_key,
    }
    await both.call(HOME, "metering:RegisterMeter", registered)
    first = NOON - 200 * 900
    readings = batch(*meter.day(first, 150), {"meter_id": "none"})
    answer = await both.call(HOME, "metering:SubmitReadings", {"utility": "AuroraMSP"}, readings)
    assert (answer["accepted"], len(answer["refused"])) == ("150", 1)
    asked = {"meter_id": meter.meter_id, "from": first, "to": NOON, "limit": 120}
    # A home would be asked for at the registry, which is no part of this channel.
    assert len(await both.call(OPERATOR, "metering:Readings", asked)) == 120
    await both.call(OPERATOR, "metering:LastReading", {"meter_id": meter.meter_id})


def put_items(state: MemoryState, count: int) -> None:
    for index in range(count):
        value = VersionedValue(b"v", b"", Version(1, index))
        state.public["demo", f"item/{index:05d}"] = value


@pytest.mark.parametrize("stored", [0, 1, 99, 100, 101, 250])
async def test_ranges_that_are_left_early(both: BothWays, stored: int) -> None:
    """What was read ahead is part of the read set, wherever the contract runs."""
    put_items(both.state, stored)
    for count in (0, 1, 99, 100, 101, 200, 201, 1000):
        asked = {"count": count}
        assert len(await both.call(HOME, "demo:First", asked)) == min(stored, count)


async def test_a_range_depends_on_what_was_read_ahead(both: BothWays) -> None:
    put_items(both.state, 250)
    asked = invocation(HOME, "demo", "demo:First", {"count": 3})
    simulator = TransactionSimulator(both.state, CHANNEL)
    await both.served.invoke(asked, simulator)
    (namespace,) = rwset_pb2.TxReadWriteSet.FromString(simulator.results().rwset).ns_rwset
    (info,) = kvrwset_pb2.KVRWSet.FromString(namespace.rwset).range_queries_info
    assert (info.end_key, info.itr_exhausted) == ("item/00100", False)  # the 101st key


async def test_every_kind_of_access(both: BothWays) -> None:
    """Creator, time, transient data, writes, private data, events, refusals and faults."""
    first = await both.call(HOME, "demo:Mark", transient={"t": b"\xff"})
    assert first["a"] == "none"
    assert first["attributes"]["gridledger.connection"] == "CP-0001"
    assert first["transient"] == {"t": "ff"}
    again = await both.call(ADMIN, "demo:Mark")
    assert (again["a"], again["private"]) == ("2", b"hidden".hex())
    assert again["who"] == ["AuroraMSP", "admin", "admin"]
    assert await both.call(HOME, "demo:Private") == ["p"]
    await both.call(HOME, "demo:Many", {"count": 2500})  # three batches of writes
    refused = await both.call(HOME, "demo:Refuse")
    assert (refused.status, refused.message) == (409, "taken already")
    failed = await both.call(HOME, "demo:Fail")
    assert (failed.status, failed.message) == (500, "demo failed; the peer's log has details")
    failed = await both.call(HOME, "demo:PrivateAfterWrite")
    assert "only in a transaction that writes nothing" in failed.message


async def test_a_peer_that_takes_no_batches(
    both: BothWays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fabric's peers before 3.1: every write is a message of its own."""
    monkeypatch.setattr(remote, "offer", peer_pb2.ChaincodeAdditionalParams)
    await both.call(HOME, "demo:Mark")
    await both.call(HOME, "demo:Many", {"count": 30})


async def test_many_at_once(both: BothWays) -> None:
    """Two hundred transactions share a stream, and none gets another's answer."""
    put_items(both.state, 150)
    before = both.compared
    calls = [both.call(HOME, "demo:First", {"count": 1 + index}) for index in range(150)]
    assert [len(found) for found in await asyncio.gather(*calls)] == list(range(1, 151))
    assert both.compared == before + 150


@pytest.fixture
async def demo() -> AsyncIterator[ChaincodeServer]:
    server = ChaincodeServer(Chaincode("demo", (Demo(),)), "demo:1", "127.0.0.1:18811")
    await server.start()
    yield server
    await server.stop()


def simulator() -> TransactionSimulator:
    return TransactionSimulator(MemoryState(), CHANNEL)


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff",
        peer_pb2.ChaincodeMessage(type=peer_pb2.ChaincodeMessage.READY, payload=b"\xff"),
        peer_pb2.ChaincodeMessage(type=peer_pb2.ChaincodeMessage.TRANSACTION, txid="t"),
        peer_pb2.ChaincodeMessage(
            type=peer_pb2.ChaincodeMessage.TRANSACTION, txid="t", payload=b"\xff"
        ),
        peer_pb2.ChaincodeMessage(
            type=peer_pb2.ChaincodeMessage.INIT,
            txid="t",
            proposal=peer_pb2.SignedProposal(proposal_bytes=b"\xff"),
        ),
        peer_pb2.ChaincodeMessage(type=peer_pb2.ChaincodeMessage.RESPONSE, txid="unknown"),
        peer_pb2.ChaincodeMessage(type=peer_pb2.ChaincodeMessage.COMPLETED),
    ],
)
async def test_a_peer_that_sends_nonsense(
    demo: ChaincodeServer, sent: bytes | peer_pb2.ChaincodeMessage
) -> None:
    """It is told so, or not answered; other peers are served on."""
    raw = sent if isinstance(sent, bytes) else sent.SerializeToString()
    async with grpc.aio.insecure_channel("127.0.0.1:18811") as channel:
        call = channel.stream_stream("/protos.Chaincode/Connect")()
        await call.read()
        await call.write(raw)
        await call.done_writing()
        status = grpc.StatusCode.OK
        try:
            while isinstance(answer := await call.read(), bytes):
                told = peer_pb2.ChaincodeMessage.FromString(answer)
                assert told.type == peer_pb2.ChaincodeMessage.ERROR
                assert b"the transaction cannot be run: " in told.payload
        except grpc.aio.AioRpcError as error:
            status = error.code()
        assert status in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
    dialled = RemoteChaincode("demo", Connection("127.0.0.1:18811"))
    try:
        response, _ = await dialled.invoke(invocation(HOME, "demo", "demo:Mark"), simulator())
        assert response.status == 200
    finally:
        await dialled.close()


async def test_a_deadline_ends_a_transaction_and_no_other(demo: ChaincodeServer) -> None:
    dialled = RemoteChaincode("demo", Connection("127.0.0.1:18811"), deadline_s=0.3)
    try:
        endless = dialled.invoke(invocation(HOME, "demo", "demo:Wait"), simulator())
        quick = dialled.invoke(invocation(HOME, "demo", "demo:Mark"), simulator())
        (late, _), (marked, event) = await asyncio.gather(endless, quick)
        assert (late.status, late.message) == (500, "demo did not finish within 0.3 s")
        assert marked.status == 200
        assert event is not None
        assert event.chaincode_id == "demo"
    finally:
        await dialled.close()


async def test_more_than_the_limit_at_once(demo: ChaincodeServer) -> None:
    dialled = RemoteChaincode("demo", Connection("127.0.0.1:18811"), deadline_s=0.3, max_waiting=1)
    try:
        waiting = asyncio.create_task(
            dialled.invoke(invocation(HOME, "demo", "demo:Wait"), simulator())
        )
        await asyncio.sleep(0)
        with pytest.raises(ExecutorBusyError, match="1 transactions of chaincode demo"):
            await dialled.invoke(invocation(HOME, "demo", "demo:Mark"), simulator())
        await waiting
    finally:
        await dialled.close()


async def test_a_server_that_goes_away_and_comes_back(demo: ChaincodeServer) -> None:
    """What was under way fails with a reason; what comes later waits for the new server."""
    dialled = RemoteChaincode("demo", Connection("127.0.0.1:18811"))
    try:
        await dialled.invoke(invocation(HOME, "demo", "demo:Mark"), simulator())
        under_way = asyncio.create_task(
            dialled.invoke(invocation(HOME, "demo", "demo:Wait"), simulator())
        )
        await asyncio.sleep(0.1)
        await demo.stop()
        with pytest.raises(ChaincodeUnavailableError, match=r"18811 went away during this trans"):
            await under_way
        successor = ChaincodeServer(Chaincode("demo", (Demo(),)), "demo:1", "127.0.0.1:18811")
        starting = asyncio.create_task(
            dialled.invoke(invocation(HOME, "demo", "demo:Mark"), simulator())
        )
        await asyncio.sleep(0.2)
        await successor.start()
        response, _ = await starting
        assert response.status == 200
        await successor.stop()
    finally:
        await dialled.close()


async def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CONNECT_WAIT_S", 0.3)
    dialled = RemoteChaincode("demo", Connection("127.0.0.1:18812"))
    try:
        with pytest.raises(
            ChaincodeUnavailableError, match=r"demo at 127\.0\.0\.1:18812 cannot be reached: "
        ):
            await dialled.invoke(invocation(HOME, "demo", "demo:Mark"), simulator())
    finally:
        await dialled.close()


async def test_a_server_of_another_package(
    demo: ChaincodeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CONNECT_WAIT_S", 0.3)
    dialled = RemoteChaincode("demo", Connection("127.0.0.1:18811", package_id="demo:2"))
    try:
        with pytest.raises(ChaincodeUnavailableError, match="registered as 'demo:1', but 'demo:2'"):
            await dialled.invoke(invocation(HOME, "demo", "demo:Mark"), simulator())
    finally:
        await dialled.close()


async def test_a_package_with_mutual_tls(tmp_path: Path) -> None:
    """The package holds what the peer shows; without it the server lets nobody in."""
    keys = {}
    for who in ("server", "peer"):
        key = generate_key()
        certificate = AUTHORITY.issue(who, "peer", key.public_key(), hosts=("chaincode.example",))
        keys[who] = (key_pem(key), certificate_pem(certificate))
    root = certificate_pem(AUTHORITY.certificate)
    address = "127.0.0.1:18830"
    packages = PackageStore(tmp_path)
    package = packages.save(
        served_package(
            "demo_1.0",
            Connection(
                address,
                tls_root_pem=root,
                certificate_pem=keys["peer"][1],
                key_pem=keys["peer"][0],
                server_name="chaincode.example",
            ),
        )
    )
    plain = packages.save(served_package("plain", Connection(address)))
    server = ChaincodeServer(
        Chaincode("demo", (Demo(),)),
        package.package_id,
        address,
        credentials=grpc.ssl_server_credentials(
            [keys["server"]], root_certificates=root, require_client_auth=True
        ),
    )
    await server.start()
    executor = PackageExecutor(packages, no_sources, lambda _call, _: package.package_id)
    call = invocation(HOME, "demo", "demo:Mark")
    try:
        response, _ = await executor.invoke(call, simulator())
        assert response.status == 200
        with pytest.raises(ExecutionError, match="cannot be reached"):
            await executor.invoke(replace(call, package_id=plain.package_id), simulator())
        with pytest.raises(ExecutionError, match="'gone:1' not found"):
            await executor.invoke(replace(call, package_id="gone:1"), simulator())
    finally:
        await executor.close()
        await server.stop()
