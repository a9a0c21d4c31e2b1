"""The gateway client against a real network."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import serialization

from consortium.identity.certificates import CertificateAuthority, generate_key, key_pem
from consortium.node.contracts import client as utility_client
from consortium.node.network import Network
from gridledger_client import (
    AuthenticationFailed,
    CommitFailed,
    ConnectionFailed,
    Credentials,
    Deadlines,
    GatewayClient,
    GridLedgerError,
    Identity,
    InvalidInput,
    Timeout,
    TransactionRefused,
    enroll,
    fetch_bundle,
    fingerprint,
    generate_key_pem,
)
from gridledger_client.gateway import SignedTransaction, check_addresses
from gridledger_client.wire import any_pb2, common_pb2, gateway_pb2, peer_pb2, rpc_pb2

from .conftest import CONNECTION


@pytest.fixture
async def operator(network: Network) -> AsyncIterator[GatewayClient]:
    async with utility_client(network, network.utility("Aurora"), "operator") as client:
        yield client


def connection(number: int) -> dict[str, object]:
    return {
        "connection_id": f"{CONNECTION}-{number}",
        "utility": "AuroraMSP",
        "zone": "NORTH",
        "max_export_w": 5000,
        "max_import_w": 10_000,
    }


async def enrolled(network: Network, enrollment_id: str) -> Credentials:
    aurora = network.utility("Aurora")
    secret = network.register_identity(
        aurora.msp_id, enrollment_id, None, {"gridledger.connection": CONNECTION}
    )
    bundle = await fetch_bundle(aurora.ca_url)
    assert fingerprint(bundle) == fingerprint(network.tls_bundle_pem)
    return await enroll(aurora.ca_url, enrollment_id, secret, bundle)


async def test_enrolment(network: Network) -> None:
    credentials = await enrolled(network, "client-1")
    assert credentials.msp_id == "AuroraMSP"
    assert "PRIVATE" not in repr(credentials)
    Identity("AuroraMSP", credentials.certificate_pem, credentials.key_pem)


async def test_enrolment_fails_in_words(network: Network) -> None:
    aurora, bundle = network.utility("Aurora"), network.tls_bundle_pem
    with pytest.raises(AuthenticationFailed, match="Authentication failure"):
        await enroll(aurora.ca_url, "nobody", "nothing", bundle)
    with pytest.raises(ConnectionFailed, match="can't be reached"):
        await enroll("https://127.0.0.1:1", "a", "b", bundle)
    with pytest.raises(InvalidInput, match="https://"):
        await enroll("http://127.0.0.1", "a", "b", bundle)
    own = network.utility("Boreal").root_pem
    with pytest.raises(InvalidInput, match="doesn't vouch for"):
        await enroll(aurora.ca_url, "a", "b", own)


async def test_evaluates_and_submits(operator: GatewayClient) -> None:
    settings = await operator.evaluate("metering", "metering:Settings")
    assert settings["interval_s"] == "60"
    committed = await operator.submit("energy", "registry:RegisterConnection", connection(1))
    assert committed.result["connection_id"] == f"{CONNECTION}-1"
    status = await operator.commit_status(committed.transaction_id)
    assert (status.code, status.block_number) == ("VALID", committed.block_number)


async def test_each_step_alone_and_the_same_bytes_twice(operator: GatewayClient) -> None:
    prepared = operator.prepare("energy", "registry:RegisterConnection", connection(2))
    signed = await operator.endorse(prepared)
    stored = SignedTransaction(signed.transaction_id, signed.envelope)
    await operator.submit_signed(stored)
    first = await operator.commit_status(signed.transaction_id)
    await operator.submit_signed(stored)
    await asyncio.sleep(0.5)
    assert await operator.commit_status(signed.transaction_id) == first
    assert first.valid


async def test_a_contract_refuses_in_its_own_words(operator: GatewayClient) -> None:
    with pytest.raises(TransactionRefused) as error:
        await operator.evaluate("energy", "registry:Connection", {"connection_id": "NOWHERE"})
    assert error.value.status == 404
    assert error.value.reason.startswith("connection NOWHERE is not registered")
    with pytest.raises(TransactionRefused) as error:
        await operator.submit(
            "energy", "registry:RegisterConnection", {**connection(3), "utility": "BorealMSP"}
        )
    assert error.value.status == 403
    assert error.value.details
    assert error.value.details[0].msp_id.endswith("MSP")


async def test_an_unknown_contract(operator: GatewayClient) -> None:
    with pytest.raises(TransactionRefused, match=r"no peers available|no combination"):
        await operator.evaluate("weather", "weather:Tomorrow")


async def test_a_foreign_identity(network: Network) -> None:
    credentials = await enrolled(network, "client-2")
    # Aurora's certificate in Boreal's name.
    identity = Identity("BorealMSP", credentials.certificate_pem, credentials.key_pem)
    async with GatewayClient(
        [network.utility("Aurora").gateway_address],
        network.channel,
        identity,
        network.tls_bundle_pem,
    ) as client:
        with pytest.raises(AuthenticationFailed):
            await client.evaluate("metering", "metering:Settings")
        with pytest.raises(AuthenticationFailed):
            await client.submit("energy", "registry:RegisterConnection", connection(4))
        with pytest.raises(AuthenticationFailed):
            await client.commit_status("0" * 64)
        with pytest.raises(AuthenticationFailed):
            await anext(client.chaincode_events("energy", start_block=0))


async def test_an_invalid_transaction_says_why(operator: GatewayClient) -> None:
    # Two endorsed on the same state, of which one can be valid.
    one, other = [
        await operator.endorse(
            operator.prepare(
                "energy", "registry:RegisterConnection", {**connection(5), "zone": zone}
            )
        )
        for zone in ("NORTH", "SOUTH")
    ]
    await operator.submit_signed(one)
    assert (await operator.commit_status(one.transaction_id)).valid
    await operator.submit_signed(other)
    status = await operator.commit_status(other.transaction_id)
    assert status.code == "MVCC_READ_CONFLICT"
    assert not status.valid
    assert "MVCC" in str(CommitFailed(other.transaction_id, status.code, status.block_number))


async def test_an_outcome_that_does_not_come_is_a_timeout(operator: GatewayClient) -> None:
    with pytest.raises(Timeout) as error:
        await operator.commit_status("ab" * 32, timeout_s=0.3)
    assert error.value.transaction_id == "ab" * 32


async def test_signs_only_what_it_proposed(operator: GatewayClient) -> None:
    asked = operator.prepare("energy", "registry:RegisterConnection", connection(6))
    other = operator.prepare("energy", "registry:RegisterConnection", connection(7))
    # A gateway that answers with another transaction than the one that was asked for.
    from gridledger_client import gateway

    envelope = common_pb2.Envelope.FromString((await operator.endorse(other)).envelope)
    with pytest.raises(GridLedgerError, match="another transaction"):
        gateway._checked_result(asked, envelope.payload)
    with pytest.raises(GridLedgerError, match="can't be read"):
        gateway._checked_result(asked, b"\xff\xff\xff")
    # Or with ours, and one more act beside it.
    payload = common_pb2.Payload.FromString(envelope.payload)
    transaction = peer_pb2.Transaction.FromString(payload.data)
    transaction.actions.append(transaction.actions[0])
    payload.data = transaction.SerializeToString()
    with pytest.raises(GridLedgerError, match="2 actions"):
        gateway._checked_result(other, payload.SerializeToString())
    # What was stored and got damaged is never sent.
    with pytest.raises(InvalidInput, match="can't be read any more"):
        await operator.submit_signed(SignedTransaction("12" * 32, b"\xff\xff\xff"))


async def test_moves_on_to_a_gateway_that_answers(network: Network) -> None:
    aurora = utility_client(network, network.utility("Aurora"), "operator")
    async with GatewayClient(
        ["127.0.0.1:1", network.utility("Boreal").gateway_address],
        network.channel,
        aurora.identity,
        network.tls_bundle_pem,
    ) as client:
        assert client.address == "127.0.0.1:1"
        ask = client.evaluate
        assert all(await asyncio.gather(*(ask("metering", "metering:Settings") for _ in range(3))))
        assert client.address == network.utility("Boreal").gateway_address


async def test_a_call_goes_on_elsewhere_when_another_one_gives_its_gateway_up(
    network: Network,
) -> None:
    """Of several calls at once the first to fail closes the connection of all."""
    reached = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    aurora = utility_client(network, network.utility("Aurora"), "operator")
    boreal = network.utility("Boreal").gateway_address
    async with GatewayClient(
        [f"127.0.0.1:{port}", boreal], network.channel, aurora.identity, network.tls_bundle_pem
    ) as client:
        call = asyncio.create_task(client.evaluate("metering", "metering:Settings"))
        await reached.wait()
        await client.leave_gateway()
        assert (await call)["interval_s"] == "60"
        assert client.address == boreal
    silent.close()


@pytest.mark.parametrize("answered", [True, False])
async def test_a_gateway_without_nodes_keeps_its_connection(
    network: Network, answered: bool
) -> None:
    """Others are asked; who answers stays the gateway of calls that it can serve."""
    boreal = network.utility("Boreal").gateway_address
    aurora = utility_client(network, network.utility("Aurora"), "operator")
    server, address, roots = await _gateway_without_nodes(answered=answered)
    try:
        async with GatewayClient(
            [address, boreal], network.channel, aurora.identity, network.tls_bundle_pem + roots
        ) as client:
            assert await client.evaluate("metering", "metering:Settings")
            assert client.address == (address if answered else boreal)
            assert (address in client._connections) is answered
            await client.leave_gateway()
            assert client.address == (boreal if answered else address)
    finally:
        await server.stop(None)


type Reply = Callable[[str, bytes, grpc.aio.ServicerContext], Awaitable[bytes]]


async def _gateway_of_its_own(reply: Reply) -> tuple[grpc.aio.Server, str, bytes]:
    """A gateway that answers as no real one is made to: its address, and whom to trust."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            method = str(details.method).rpartition("/")[2]

            async def one(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
                return await reply(method, request, context)

            async def several(
                request: bytes, context: grpc.aio.ServicerContext
            ) -> AsyncIterator[bytes]:
                yield await reply(method, request, context)

            if method == "ChaincodeEvents":
                return grpc.unary_stream_rpc_method_handler(several)
            return grpc.unary_unary_rpc_method_handler(one)

    authority = CertificateAuthority.create("Test", "test.example")
    key = generate_key()
    certificate = authority.issue("peer", "peer", key.public_key(), hosts=("127.0.0.1",))
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key_pem(key), pem)]))
    await server.start()
    return server, f"127.0.0.1:{port}", authority.certificate_pem


async def _gateway_without_nodes(*, answered: bool) -> tuple[grpc.aio.Server, str, bytes]:
    """A gateway whose peers are all away: it says so in details, or goes away itself."""

    async def refuse(_: str, __: bytes, context: grpc.aio.ServicerContext) -> bytes:
        detail = gateway_pb2.ErrorDetail(address="peer:1", msp_id="AuroraMSP", message="gone")
        packed = any_pb2.Any(
            type_url="type.googleapis.com/gateway.ErrorDetail", value=detail.SerializeToString()
        )
        status = rpc_pb2.Status(code=14, message="no peer", details=[packed])
        metadata = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "no peer", metadata if answered else ())
        raise AssertionError

    return await _gateway_of_its_own(refuse)


class Between:
    """A gateway that stands before a real one, and answers in its place what it is told to."""

    def __init__(self, network: Network) -> None:
        aurora = network.utility("Aurora")
        self.client = utility_client(network, aurora, "operator")
        self._roots = network.tls_bundle_pem
        self._real = grpc.aio.secure_channel(
            aurora.gateway_address, grpc.ssl_channel_credentials(self._roots)
        )
        self.instead: dict[str, bytes | grpc.StatusCode] = {}
        """By method: an answer, or the status with which the call fails."""
        self.metadata: tuple[tuple[str, str | bytes], ...] = ()

    async def __aenter__(self) -> Between:
        self._server, address, roots = await _gateway_of_its_own(self._reply)
        made = self.client
        self.client = GatewayClient([address], made.channel, made.identity, self._roots + roots)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self._server.stop(None)
        await self._real.close(None)

    async def _reply(self, method: str, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        told = self.instead.get(method)
        if isinstance(told, grpc.StatusCode):
            await context.abort(told, "as told", self.metadata)
        if isinstance(told, bytes):
            return told
        answer: bytes = await self._real.unary_unary(f"/gateway.Gateway/{method}")(request)
        return answer


async def test_an_unknown_outcome_has_its_transaction(network: Network) -> None:
    """Whoever asks by its id, or sends the same bytes again, never does it twice."""
    async with Between(network) as between:
        client = between.client

        async def register(number: int) -> None:
            await client.submit("energy", "registry:RegisterConnection", connection(number))

        for number, (method, status, said) in enumerate(
            (
                ("Submit", grpc.StatusCode.UNAVAILABLE, "whether the transaction was taken"),
                ("Submit", grpc.StatusCode.CANCELLED, "whether the transaction was taken"),
                ("Submit", grpc.StatusCode.DEADLINE_EXCEEDED, "did not answer in time"),
                ("CommitStatus", grpc.StatusCode.UNAVAILABLE, "the outcome is unknown"),
                ("CommitStatus", grpc.StatusCode.DEADLINE_EXCEEDED, "did not answer in time"),
            ),
            start=20,
        ):
            between.instead = {method: status}
            with pytest.raises(Timeout, match=said) as error:
                await register(number)
            between.instead = {}
            transaction_id = error.value.transaction_id
            assert transaction_id is not None
            if method == "CommitStatus":  # it had been taken
                assert (await client.commit_status(transaction_id)).valid
            else:  # it hadn't
                with pytest.raises(Timeout):
                    await client.commit_status(transaction_id, timeout_s=0.2)

        for code, name in ((11, "MVCC_READ_CONFLICT"), (4711, "CODE_4711")):
            answer = gateway_pb2.CommitStatusResponse(block_number=7)
            answer.result = code
            between.instead = {"CommitStatus": answer.SerializeToString()}
            with pytest.raises(CommitFailed) as failed:
                await register(30)
            assert (failed.value.code, failed.value.block_number) == (name, 7)


async def test_what_can_be_read_of_a_failure_is_said(network: Network) -> None:
    async with Between(network) as between:
        between.instead = {"Evaluate": grpc.StatusCode.ABORTED}
        between.metadata = (("grpc-status-details-bin", b"\xff\xff"), ("else", "where"))
        with pytest.raises(TransactionRefused, match="as told") as error:
            await between.client.evaluate("metering", "metering:Settings")
        assert list(error.value.details) == []


async def test_answers_that_are_no_json(network: Network, operator: GatewayClient) -> None:
    raw = await operator.evaluate("metering", "metering:Settings", [b"{}"])
    assert raw.startswith(b"{")
    async with Between(network) as between:
        for payload in (b"", b"no JSON"):
            answer = gateway_pb2.EvaluateResponse()
            answer.result.payload = payload
            between.instead = {"Evaluate": answer.SerializeToString()}
            if not payload:
                assert await between.client.evaluate("metering", "metering:Settings") is None
                continue
            with pytest.raises(GridLedgerError, match="not JSON"):
                await between.client.evaluate("metering", "metering:Settings")


async def test_a_stream_that_its_gateway_ends(network: Network) -> None:
    answer = gateway_pb2.ChaincodeEventsResponse(block_number=3)
    answer.events.add(chaincode_id="energy", tx_id="ef" * 32, event_name="trade", payload=b"{}")
    async with Between(network) as between:
        between.instead = {"ChaincodeEvents": answer.SerializeToString()}
        stream = between.client.chaincode_events("energy")
        event = await anext(stream)
        assert (event.block_number, event.name) == (3, "trade")
        with pytest.raises(ConnectionFailed, match="ended the event stream"):
            await anext(stream)


async def test_nobody_answers(network: Network) -> None:
    aurora = utility_client(network, network.utility("Aurora"), "operator")
    async with GatewayClient(
        ["127.0.0.1:1"],
        network.channel,
        aurora.identity,
        network.tls_bundle_pem,
        deadlines=Deadlines(evaluate_s=2),
    ) as client:
        with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:1 can't be reached"):
            await client.evaluate("metering", "metering:Settings")
        with pytest.raises(ConnectionFailed):
            await anext(client.chaincode_events("energy"))
    with pytest.raises(ConnectionFailed, match="closed"):
        await client.evaluate("metering", "metering:Settings")


async def test_events_go_on_from_a_checkpoint(network: Network, operator: GatewayClient) -> None:
    from gridledger_client import MeterKey, Reading
    from gridledger_client.readings import batch_transient

    credentials = await enrolled(network, "client-3")
    identity = Identity("AuroraMSP", credentials.certificate_pem, credentials.key_pem)
    async with GatewayClient(
        [network.utility("Aurora").gateway_address],
        network.channel,
        identity,
        network.tls_bundle_pem,
    ) as home:
        key = MeterKey(generate_key_pem(), b"a secret of the home")
        await home.submit(
            "metering",
            "metering:RegisterMeter",
            {
                "meter_id": "HA-EVENTS",
                "connection_id": CONNECTION,
                "utility": "AuroraMSP",
                "source_class": "declared",
                "public_key": key.public_key_pem,
            },
        )
        sent = []
        before = int(time.time()) // 60 * 60 - 600
        for number in range(3):
            reading = Reading("HA-EVENTS", before + 60 * number, 60, 1, 0, 1 + number, 0)
            sent.append(
                await home.submit(
                    "metering",
                    "metering:SubmitReadings",
                    {"utility": "AuroraMSP"},
                    transient=batch_transient([key.sign(reading, network.channel)]),
                    endorsing_organizations=["AuroraMSP"],
                )
            )
        stream = home.chaincode_events("metering", start_block=sent[0].block_number)
        events = [await anext(stream) for _ in sent]
        await stream.aclose()
        assert [event.transaction_id for event in events] == [s.transaction_id for s in sent]
        assert events[0].json()["count"] == "1"
        # Go on after the first one.
        stream = home.chaincode_events(
            "metering",
            start_block=events[0].block_number,
            after_transaction_id=events[0].transaction_id,
        )
        assert (await anext(stream)).transaction_id == sent[1].transaction_id
        await stream.aclose()


@pytest.mark.parametrize("connected", [True, False])
async def test_closing_ends_streams(network: Network, connected: bool) -> None:
    """Those too that still look for their gateway."""
    client = utility_client(network, network.utility("Aurora"), "operator")
    if not connected:
        client.addresses = ("127.0.0.1:1",)
    reached = asyncio.Event()

    async def follow() -> None:
        async for _ in client.chaincode_events("energy", connected=reached.set):
            pass

    task = asyncio.create_task(follow())
    if connected:
        await reached.wait()
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises(ConnectionFailed):
        await asyncio.wait_for(task, 60)


async def test_cancelling_is_not_a_lost_connection(operator: GatewayClient) -> None:
    task = asyncio.create_task(operator.commit_status("cd" * 32))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await operator.evaluate("metering", "metering:Settings")


@pytest.mark.parametrize(
    "addresses",
    [[], ["peer"], ["peer:"], [":7051"], ["https://peer:7051"], ["peer:0"], ["a:1"] * 17],
)
def test_addresses(addresses: list[str]) -> None:
    with pytest.raises(InvalidInput):
        check_addresses(addresses)


async def test_a_changed_proposal_is_refused(operator: GatewayClient) -> None:
    prepared = operator.prepare("energy", "registry:RegisterConnection", connection(8))
    forged = replace(prepared, signature=operator.identity.sign(b"something else"))
    with pytest.raises(AuthenticationFailed):
        await operator.endorse(forged)
