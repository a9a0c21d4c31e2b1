"""The gateway of a running network: outcomes, events, limits, and peers that are away."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from consortium.gateway import service
from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
    key_pem,
)
from consortium.node import nodes
from consortium.node.contracts import client as utility_client
from consortium.node.nodes import EmbeddedNetwork, PeerNode, make_node
from consortium.wire import gateway_pb2, services
from gridledger_client import GatewayClient, TransactionRefused

pytestmark = pytest.mark.asyncio(loop_scope="session")

_references = itertools.count()


@pytest_asyncio.fixture(loop_scope="session")
async def operator(embedded: EmbeddedNetwork) -> AsyncIterator[GatewayClient]:
    """Aurora's operator at Aurora's gateway."""
    network = embedded.network
    async with utility_client(network, network.utility("Aurora"), "operator") as gateway:
        yield gateway


def _deposit() -> tuple[str, str, dict[str, str]]:
    argument = {
        "account": "SUPPLIER-AURORA",
        "amount_micro": "1",
        "bank_reference": f"GATEWAY-{next(_references)}",
    }
    return "energy", "wallet:Deposit", argument


async def test_an_outcome_asked_for_before_the_transaction(operator: GatewayClient) -> None:
    signed = await operator.endorse(operator.prepare(*_deposit()))
    asking = asyncio.create_task(operator.commit_status(signed.transaction_id))
    assert not (await asyncio.wait({asking}, timeout=0.3))[0]
    await operator.submit_signed(signed)
    early, late = await asking, await operator.commit_status(signed.transaction_id)
    assert early == late
    assert early.valid


async def test_a_transaction_submitted_again_keeps_its_outcome(operator: GatewayClient) -> None:
    signed = await operator.endorse(operator.prepare(*_deposit()))
    await operator.submit_signed(signed)
    first = await operator.commit_status(signed.transaction_id)
    await operator.submit_signed(signed)
    await operator.submit(*_deposit())
    assert await operator.commit_status(signed.transaction_id) == first


async def test_two_that_write_the_same_reference(operator: GatewayClient) -> None:
    """Both are endorsed on the same state; the one that is ordered second has no effect."""
    call = _deposit()
    both = [await operator.endorse(operator.prepare(*call)) for _ in range(2)]
    for signed in both:
        await operator.submit_signed(signed)
    outcomes = [await operator.commit_status(signed.transaction_id) for signed in both]
    assert [outcome.code for outcome in outcomes] == ["VALID", "MVCC_READ_CONFLICT"]


async def test_the_number_of_calls_is_limited(
    operator: GatewayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = asyncio.create_task(operator.commit_status("0" * 64))
    await asyncio.sleep(0.2)
    monkeypatch.setattr(service, "MAX_CALLS", 1)
    with pytest.raises(Exception, match="which is its limit"):
        await operator.evaluate("energy", "registry:Settings")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(60):
        while True:
            try:
                await operator.evaluate("energy", "registry:Settings")
            except Exception:
                await asyncio.sleep(0.02)
            else:
                break


async def test_a_home_may_not_call_the_listener_for_nodes(embedded: EmbeddedNetwork) -> None:
    """Its certificate comes from the same root as a node's; its role tells them apart."""
    network = embedded.network
    aurora, boreal = network.utilities[:2]
    authority = CertificateAuthority.load(boreal.directory / "ca")
    key = generate_key()
    cases = [
        (authority.issue("home", "client", key.public_key()), key_pem(key), "as client"),
        (authority.issue("boss", "admin", key.public_key()), key_pem(key), "as admin"),
    ]
    for certificate, private, said in cases:
        for path in (services.PROCESS_PROPOSAL, services.DISCOVER):
            code, text = await _process(
                network.tls_bundle_pem,
                aurora.ports.peer_node,
                certificate_pem(certificate),
                private,
                path,
            )
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert said in text
            assert "gateway's address" in text
    node = boreal.directory / "peer"
    code, text = await _process(
        network.tls_bundle_pem,
        aurora.ports.peer_node,
        (node / "tls.cert.pem").read_bytes(),
        (node / "tls.key.pem").read_bytes(),
    )
    assert (code, text) == (
        grpc.StatusCode.UNKNOWN,
        "error validating proposal: a signed proposal is required",
    )


async def _process(
    roots: bytes,
    port: int,
    certificate: bytes,
    key: bytes,
    path: str = services.PROCESS_PROPOSAL,
) -> tuple[grpc.StatusCode, str]:
    """What a listener answers to an empty proposal, or another empty request."""
    credentials = grpc.ssl_channel_credentials(roots, key, certificate)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as connection:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.unary_unary(path)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(b"", timeout=60)
    return error.value.code(), str(error.value.details())


async def test_another_peer_endorses_for_one_that_is_away(
    embedded: EmbeddedNetwork, operator: GatewayClient
) -> None:
    network = embedded.network
    boreal = network.utility("Boreal")
    away = embedded.nodes["peer0.boreal.example"]
    await away.stop()
    try:
        for _ in range(2):
            signed = await operator.endorse(operator.prepare(*_deposit()))
            assert _endorsers(signed.envelope) == ["AuroraMSP", "CieloMSP"]
        refused = operator.prepare(*_deposit(), endorsing_organizations=["BorealMSP"])
        with pytest.raises(TransactionRefused, match="failed to connect"):
            await operator.endorse(refused)
    finally:
        back = embedded.nodes[away.name] = make_node(network, boreal, "peer")
        await back.start()
    async with utility_client(network, boreal, "operator") as gateway:
        committed = await operator.submit(*_deposit())
        assert (await gateway.commit_status(committed.transaction_id)).valid


@pytest.mark.parametrize("slow", [("Boreal", "Cielo"), ("Aurora",)])
async def test_peers_a_block_apart_are_asked_again(
    embedded: EmbeddedNetwork, slow: tuple[str, ...]
) -> None:
    """What is committed at a client's own peer can be built upon, though others have it later."""
    network = embedded.network
    asked = "Boreal" if "Aurora" in slow else "Aurora"
    connection_id = f"CP-SLOW-{len(slow)}"
    caught_up = threading.Event()
    for utility in slow:
        node = embedded.nodes[f"peer0.{utility.lower()}.example"]
        assert isinstance(node, PeerNode)
        # As a disk that takes its time: the next block is committed when this is over.
        node.channels["neighbourhood"]._commits.submit(caught_up.wait, 30)
    connection = {
        "connection_id": connection_id,
        "utility": f"{asked}MSP",
        "zone": "NORTH",
        "max_export_w": 6000,
        "max_import_w": 17_000,
    }
    async with utility_client(network, network.utility(asked), "operator") as gateway:
        call = ("energy", "registry:RegisterConnection", connection)
        prepared = gateway.prepare(*call, endorsing_organizations=[f"{asked}MSP", "CieloMSP"])
        signed = await gateway.endorse(prepared)
        await gateway.submit_signed(signed)
        assert (await gateway.commit_status(signed.transaction_id)).valid
        asyncio.get_running_loop().call_later(0.5, caught_up.set)
        wanted = [f"{utility}MSP" for utility in {asked, *slow}]
        agreed = gateway.prepare(
            *("energy", "registry:Connection", {"connection_id": connection_id}),
            endorsing_organizations=wanted,
        )
        await gateway.endorse(agreed)


def _endorsers(envelope: bytes) -> list[str]:
    from consortium.cli.blocks import describe_block
    from consortium.wire.blocks import new_block

    block = describe_block(new_block(1, b"", [envelope]))
    found = block["transactions"][0]["endorsers"]
    assert isinstance(found, list)
    return found


async def test_a_peer_that_stops_ends_its_streams_and_calls(
    embedded: EmbeddedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's stream and a waiting call don't use up the time that a stop grants."""
    monkeypatch.setattr(nodes, "STOP_GRACE_S", 120.0)
    network = embedded.network
    cielo = network.utility("Cielo")
    node = embedded.nodes["peer0.cielo.example"]
    assert isinstance(node, PeerNode)
    async with utility_client(network, cielo, "operator") as gateway:

        async def events() -> None:
            async for _ in gateway.chaincode_events("energy"):
                pass

        waiting = [
            asyncio.create_task(gateway.commit_status("0" * 64)),
            asyncio.create_task(events()),
        ]
        await asyncio.sleep(0.3)
        async with asyncio.timeout(60):
            await node.stop()
            await asyncio.wait({waiting[0]})
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    back = embedded.nodes[node.name] = make_node(network, cielo, "peer")
    await back.start()


async def test_a_peer_that_cannot_listen_lets_go_of_its_data(embedded: EmbeddedNetwork) -> None:
    """Starting it twice is refused, and the one that runs is none the worse."""
    network = embedded.network
    second = make_node(network, network.utility("Cielo"), "peer")
    with pytest.raises(Exception, match="runs already"):
        await second.start()
    await second.stop()
    async with utility_client(network, network.utility("Cielo"), "operator") as gateway:
        await gateway.evaluate("energy", "registry:Settings")


async def test_keys_are_their_owners_alone(embedded: EmbeddedNetwork) -> None:
    for utility in embedded.network.utilities:
        assert utility.directory.stat().st_mode & 0o077 == 0
        keys = list(utility.directory.rglob("*key*.pem"))
        assert len(keys) >= 6
        for key in keys:
            assert key.stat().st_mode & 0o077 == 0, key


async def test_events_are_for_readers(embedded: EmbeddedNetwork) -> None:
    """A request that somebody else signed is refused before anything is streamed."""
    utility = embedded.network.utility("Aurora")
    query = gateway_pb2.ChaincodeEventsRequest(
        channel_id="neighbourhood",
        identity=utility.signer("operator").serialized,
        chaincode_id="energy",
    ).SerializeToString()
    request = gateway_pb2.SignedChaincodeEventsRequest(
        request=query, signature=utility.signer("admin").sign(query)
    )
    credentials = grpc.ssl_channel_credentials(embedded.network.tls_bundle_pem)
    async with grpc.aio.secure_channel(utility.gateway_address, credentials) as connection:
        call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = connection.unary_stream(
            services.CHAINCODE_EVENTS
        )
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(request.SerializeToString(), timeout=60).read()
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_evaluate_asks_another_when_this_peer_cannot(
    embedded: EmbeddedNetwork, operator: GatewayClient
) -> None:
    """A contract's own refusal is final; a peer that is at its limit is passed over."""
    node = embedded.nodes["peer0.aurora.example"]
    assert isinstance(node, PeerNode)
    endorser = node._endorser
    assert endorser is not None
    endorser._proposals += 10**6
    try:
        assert await operator.evaluate("energy", "registry:Settings")
        with pytest.raises(TransactionRefused, match="which is this peer's limit"):
            await operator.evaluate(
                "energy", "registry:Settings", endorsing_organizations=["AuroraMSP"]
            )
        # With transient data it goes nowhere else unless the client says so.
        with pytest.raises(TransactionRefused, match="which is this peer's limit"):
            await operator.evaluate("energy", "registry:Settings", transient={"secret": b"1"})
    finally:
        endorser._proposals -= 10**6
