"""Whatever a client may get wrong, or try on: a gRPC status, a sentence to act on, no trace.

"No trace" is taken at its word: after each refusal the three ledgers have the same height and the
same last block and commit hash as before it.
"""

import asyncio
import base64
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from consortium.identity.certificates import generate_key, key_pem
from consortium.identity.signing import Signer
from consortium.node.network import Utility
from consortium.wire import (
    any_pb2,
    common_pb2,
    gateway_pb2,
    orderer_pb2,
    peer_pb2,
    rpc_pb2,
    services,
)
from gridledger_client import ConnectionFailed, GatewayClient, PreparedTransaction
from gridledger_client.enrolment import trusting
from gridledger_client.readings import MeterKey, Reading, batch_transient
from tests.windows import coming_window

from .conftest import RunningNetwork
from .forging import GARBAGE, HighS, impostor, member
from .tools import (
    Ledgers,
    Refusal,
    Tip,
    Wire,
    endorse_request,
    evaluate_request,
    orderer_address,
    seek_all,
    signed_proposal,
    submit_request,
)

pytestmark = [pytest.mark.network]

ABORTED = grpc.StatusCode.ABORTED
DENIED = grpc.StatusCode.PERMISSION_DENIED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
UNKNOWN = grpc.StatusCode.UNKNOWN
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED

ENDORSE_FAILED = "failed to endorse transaction, see attached details for more info"


class Acting:
    """A signer in the place of a client's identity."""

    def __init__(self, signer: Signer | HighS) -> None:
        self.serialized = signer.serialized
        self.sign = signer.sign


@dataclass
class World:
    """The running network, Aurora's operator, and every way in."""

    running: RunningNetwork
    operator: GatewayClient
    wire: Wire
    ledgers: Ledgers

    @property
    def aurora(self) -> Utility:
        return self.running.network.utilities[0]

    @property
    def gateway(self) -> str:
        return self.aurora.gateway_address

    @asynccontextmanager
    async def no_trace(self) -> AsyncIterator[Tip]:
        before = await self.ledgers.settled()
        yield before
        assert await self.ledgers.settled() == before

    def acting(self, signer: Signer | HighS) -> GatewayClient:
        """A client that signs as whoever is given; only what it prepares is used."""
        client = self.running.client()
        client.identity = Acting(signer)  # type: ignore[assignment]
        return client

    async def refused(self, path: str, raw: bytes, *, address: str = "") -> Refusal:
        answer = await self.wire.unary(address or self.gateway, path, raw)
        assert isinstance(answer, Refusal), f"accepted: {answer!r}"
        return answer

    async def endorse(
        self,
        chaincode: str,
        function: str,
        argument: Any = None,
        *,
        client: GatewayClient | None = None,
        **options: Any,
    ) -> Refusal:
        client = client or self.operator
        prepared = client.prepare(chaincode, function, argument, **options)
        return await self.refused(
            services.ENDORSE, endorse_request(client, prepared, prepared.endorsing_organizations)
        )

    async def evaluate(
        self,
        chaincode: str,
        function: str,
        argument: Any = None,
        *,
        client: GatewayClient | None = None,
        organizations: tuple[str, ...] = (),
    ) -> Refusal:
        client = client or self.operator
        prepared = client.prepare(chaincode, function, argument)
        return await self.refused(
            services.EVALUATE, evaluate_request(client, prepared, organizations)
        )


@pytest.fixture
def world(running: RunningNetwork, operator: GatewayClient, wire: Wire, ledgers: Ledgers) -> World:
    return World(running, operator, wire, ledgers)


def deposit(reference: str) -> dict[str, str]:
    return {
        "account": "SUPPLIER-AURORA",
        "amount_micro": "1000",
        "bank_reference": f"{reference}-{time.time_ns()}",
    }


def resigned(prepared: PreparedTransaction, client: GatewayClient) -> PreparedTransaction:
    """A proposal whose bytes were changed, signed again by its author."""
    return replace(prepared, signature=client.identity.sign(prepared.proposal))


def changed(
    client: GatewayClient,
    prepared: PreparedTransaction,
    change: Callable[
        [common_pb2.ChannelHeader, common_pb2.SignatureHeader, peer_pb2.Proposal], None
    ],
) -> PreparedTransaction:
    """The same proposal with its headers changed, and signed again."""
    proposal = peer_pb2.Proposal.FromString(prepared.proposal)
    header = common_pb2.Header.FromString(proposal.header)
    channel = common_pb2.ChannelHeader.FromString(header.channel_header)
    signature = common_pb2.SignatureHeader.FromString(header.signature_header)
    change(channel, signature, proposal)
    header.channel_header = channel.SerializeToString()
    header.signature_header = signature.SerializeToString()
    proposal.header = header.SerializeToString()
    return resigned(
        replace(prepared, proposal=proposal.SerializeToString(), transaction_id=channel.tx_id),
        client,
    )


# -- who asks ----------------------------------------------------------------------------------


class _WrongKey:
    """A member's certificate in the hands of somebody who has another key."""

    def __init__(self, signer: Signer) -> None:
        self.serialized = signer.serialized
        self.sign = impostor(signer.msp_id).sign


class _Garbled:
    """Somebody whose creator field is no identity at all."""

    def __init__(self, signer: Signer) -> None:
        self.serialized = GARBAGE
        self.sign = signer.sign


CALLERS: dict[str, tuple[Callable[[Utility], Any], str]] = {
    "unknown member": (lambda utility: impostor("DeltaMSP"), "DeltaMSP"),
    "foreign certificate": (lambda utility: impostor("AuroraMSP"), "certificate"),
    "expired certificate": (lambda utility: member(utility, valid_days=0), "expired"),
    "another's certificate": (lambda utility: _WrongKey(utility.signer("operator")), "signature"),
    "high S": (lambda utility: HighS(utility.signer("operator")), "signature"),
    "no identity": (lambda utility: _Garbled(utility.signer("operator")), ""),
}


@pytest.mark.parametrize("who", CALLERS)
async def test_a_caller_who_is_not_a_member(world: World, who: str) -> None:
    """At every service that a client can reach, with Fabric's code at each."""
    make, said = CALLERS[who]
    signer = make(world.aurora)
    client = world.acting(signer)
    network = world.running.network
    argument = deposit("CALLER")
    prepared = client.prepare("energy", "wallet:Deposit", argument)
    # A transaction that was endorsed honestly, then passed off as the caller's own.
    signed = await world.operator.endorse(
        world.operator.prepare("energy", "wallet:Deposit", argument)
    )
    envelope = common_pb2.Envelope.FromString(signed.envelope)
    payload = common_pb2.Payload.FromString(envelope.payload)
    header = common_pb2.SignatureHeader.FromString(payload.header.signature_header)
    header.creator = signer.serialized
    payload.header.signature_header = header.SerializeToString()
    envelope.payload = payload.SerializeToString()
    envelope.signature = signer.sign(envelope.payload)
    status = gateway_pb2.CommitStatusRequest(
        transaction_id=prepared.transaction_id,
        channel_id=network.channel,
        identity=signer.serialized,
    ).SerializeToString()
    events = gateway_pb2.ChaincodeEventsRequest(
        channel_id=network.channel, chaincode_id="energy", identity=signer.serialized
    ).SerializeToString()
    async with world.no_trace():
        evaluated = await world.refused(services.EVALUATE, evaluate_request(client, prepared))
        assert evaluated.code is PRECONDITION
        assert "error validating proposal: access denied: channel [neighbourhood] creator org" in (
            evaluated.message
        )
        endorsed = await world.refused(services.ENDORSE, endorse_request(client, prepared))
        assert endorsed.code is ABORTED
        assert endorsed.message == ENDORSE_FAILED
        assert [detail.msp_id for detail in endorsed.details] == ["AuroraMSP"]
        direct = await world.refused(
            services.PROCESS_PROPOSAL, signed_proposal(prepared).SerializeToString()
        )
        assert direct.code is UNKNOWN
        submitted = await world.refused(
            services.SUBMIT, submit_request(client, signed.transaction_id, envelope)
        )
        assert submitted.code is ABORTED
        assert "received unsuccessful response from orderer: status=" in submitted.message
        asked = await world.refused(
            services.COMMIT_STATUS,
            gateway_pb2.SignedCommitStatusRequest(
                request=status, signature=signer.sign(status)
            ).SerializeToString(),
        )
        assert asked.code is DENIED
        listened = await world.wire.events(
            world.gateway,
            gateway_pb2.SignedChaincodeEventsRequest(
                request=events, signature=signer.sign(events)
            ).SerializeToString(),
        )
        assert listened is not None
        assert listened.code is DENIED
        for refusal in (evaluated, endorsed, direct, submitted, asked, listened):
            assert said in refusal.text, refusal
        for address, path in (
            (world.gateway, services.DELIVER),
            (world.gateway, services.DELIVER_FILTERED),
            (orderer_address(world.aurora), services.ORDERER_DELIVER),
        ):
            answers = await world.wire.stream(
                address, path, [seek_all(network, signer).SerializeToString()]
            )
            assert isinstance(answers, list)
            (answer,) = (peer_pb2.DeliverResponse.FromString(raw) for raw in answers)
            assert answer.status in (common_pb2.FORBIDDEN, common_pb2.BAD_REQUEST), path
        (broadcast,) = await world.wire.broadcast(world.aurora, envelope)
        assert broadcast.status in (common_pb2.FORBIDDEN, common_pb2.BAD_REQUEST)
        assert said in broadcast.info
    await client.close()


async def test_a_home_of_another_utility_is_a_member_but_not_allowed(world: World) -> None:
    """A contract's own refusal: 403 and who may, not an error of the network."""
    boreal = world.running.client("Boreal")
    async with world.no_trace():
        refusal = await world.endorse("energy", "wallet:Deposit", deposit("OTHERS"), client=boreal)
        assert refusal.code is ABORTED
        assert "chaincode response 403, " in refusal.details[0].message
        assert "may not enter deposits to SUPPLIER-AURORA; " in refusal.details[0].message
        looked = await world.evaluate(
            "energy", "wallet:Balance", {"account": "SUPPLIER-AURORA"}, client=boreal
        )
        assert looked.code is UNKNOWN
        assert "evaluate call to endorser returned error: chaincode response 403, " in (
            looked.message
        )
    await boreal.close()


# -- proposals that don't hold together --------------------------------------------------------


def _another_id(
    channel: common_pb2.ChannelHeader, _signature: Any, _proposal: peer_pb2.Proposal
) -> None:
    channel.tx_id = "0" * 64


def _no_nonce(
    _channel: common_pb2.ChannelHeader,
    signature: common_pb2.SignatureHeader,
    _proposal: peer_pb2.Proposal,
) -> None:
    signature.nonce = b""


def _type_zero(
    channel: common_pb2.ChannelHeader, _signature: Any, _proposal: peer_pb2.Proposal
) -> None:
    channel.type = common_pb2.MESSAGE


def _epoch(
    channel: common_pb2.ChannelHeader, _signature: Any, _proposal: peer_pb2.Proposal
) -> None:
    channel.epoch = 3


def _an_hour_ago(
    channel: common_pb2.ChannelHeader, _signature: Any, _proposal: peer_pb2.Proposal
) -> None:
    channel.timestamp.seconds -= 3600


def _an_hour_ahead(
    channel: common_pb2.ChannelHeader, _signature: Any, _proposal: peer_pb2.Proposal
) -> None:
    channel.timestamp.seconds += 3600


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_another_id, "incorrectly computed txid"),
        (_no_nonce, "nonce is empty"),
        (_type_zero, "invalid header type 0"),
        (_epoch, "epoch is non-zero"),
        (_an_hour_ago, "check the client's clock"),
        (_an_hour_ahead, "check the client's clock"),
    ],
)
async def test_a_proposal_that_cannot_be(world: World, change: Any, said: str) -> None:
    client = world.operator
    prepared = changed(
        client, client.prepare("energy", "wallet:Deposit", deposit("HEADER")), change
    )
    async with world.no_trace():
        evaluated = await world.refused(services.EVALUATE, evaluate_request(client, prepared))
        endorsed = await world.refused(services.ENDORSE, endorse_request(client, prepared))
    assert (evaluated.code, endorsed.code) == (PRECONDITION, ABORTED)
    assert said in evaluated.text
    assert said in endorsed.text


async def test_a_transaction_id_that_was_used(world: World) -> None:
    """Replayed to an endorser it is refused; submitted again it changes nothing."""
    client = world.operator
    prepared = client.prepare("energy", "wallet:Deposit", deposit("REPLAY"))
    signed = await client.endorse(prepared)
    await client.submit_signed(signed)
    first = await client.commit_status(signed.transaction_id)
    assert first.valid
    async with world.no_trace():
        again = await world.refused(services.ENDORSE, endorse_request(client, prepared))
        assert again.code is ABORTED
        assert f"duplicate transaction found [{signed.transaction_id}]" in again.text
        evaluated = await world.refused(services.EVALUATE, evaluate_request(client, prepared))
        assert evaluated.code is PRECONDITION
    balance = await client.evaluate("energy", "wallet:Balance", {"account": "SUPPLIER-AURORA"})
    await client.submit_signed(signed)  # a client that missed the answer does this
    assert await client.commit_status(signed.transaction_id) == first
    await world.ledgers.settled()
    assert balance == await client.evaluate(
        "energy", "wallet:Balance", {"account": "SUPPLIER-AURORA"}
    )


# -- what is asked for -------------------------------------------------------------------------


async def test_what_is_not_there(world: World) -> None:
    """Unknown contract, function, channel and organisation, at each call."""
    client = world.operator
    elsewhere = world.running.client()
    elsewhere.channel = "elsewhere"
    async with world.no_trace():
        refusal = await world.evaluate("nowhere", "any:Thing")
        assert refusal == Refusal(
            PRECONDITION,
            "no peers available to evaluate chaincode nowhere in channel neighbourhood",
        )
        refusal = await world.endorse("nowhere", "any:Thing")
        assert refusal.code is PRECONDITION
        assert refusal.message.startswith("no combination of peers can be derived")
        assert "nowhere" in refusal.message
        for function in ("wallet:Nothing", "nothing:Deposit", "Deposit", "", "wallet:deposit\0"):
            refusal = await world.endorse("energy", function, {})
            assert refusal.code is ABORTED
            assert refusal.details[0].message.startswith("chaincode response 4")
            refusal = await world.evaluate("energy", function, {})
            assert refusal.code is UNKNOWN
        refusal = await world.evaluate("energy", "market:Rates", {}, organizations=("DeltaMSP",))
        assert refusal.code is PRECONDITION
        refusal = await world.endorse(
            "energy", "wallet:Deposit", deposit("ORG"), endorsing_organizations=["DeltaMSP"]
        )
        assert refusal == Refusal(
            UNAVAILABLE, "failed to find any endorsing peers for org(s): DeltaMSP"
        )
        prepared = elsewhere.prepare("energy", "market:Rates")
        refusal = await world.refused(services.EVALUATE, evaluate_request(elsewhere, prepared))
        assert (refusal.code, "elsewhere" in refusal.message) == (UNAVAILABLE, True)
        refusal = await world.refused(services.ENDORSE, endorse_request(elsewhere, prepared))
        assert (refusal.code, "elsewhere" in refusal.message) == (PRECONDITION, True)
        refusal = await world.refused(
            services.SUBMIT,
            submit_request(elsewhere, "0" * 64, common_pb2.Envelope(payload=b"x", signature=b"x")),
        )
        assert (refusal.code, "elsewhere" in refusal.message) == (PRECONDITION, True)
        status = gateway_pb2.CommitStatusRequest(
            transaction_id="0" * 64, channel_id="elsewhere", identity=client.identity.serialized
        ).SerializeToString()
        refusal = await world.refused(
            services.COMMIT_STATUS,
            gateway_pb2.SignedCommitStatusRequest(
                request=status, signature=client.identity.sign(status)
            ).SerializeToString(),
        )
        assert (refusal.code, "elsewhere" in refusal.message) == (DENIED, True)
    await elsewhere.close()


WRONG_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "missing": ({"account": "SUPPLIER-AURORA"}, "amount_micro"),
    "unknown field": (deposit("X") | {"comment": "hello"}, "comment"),
    "a string": (deposit("X") | {"amount_micro": "much"}, "amount_micro"),
    "negative": (deposit("X") | {"amount_micro": "-1"}, "amount_micro"),
    "a fraction": (deposit("X") | {"amount_micro": 0.5}, "0.5 is not an integer"),
    "a boolean": (deposit("X") | {"amount_micro": True}, "amount_micro"),
    "null": (deposit("X") | {"account": None}, "account"),
    "beyond 64 bits": (deposit("X") | {"amount_micro": "9" * 30}, "amount_micro"),
    "an inexact number": (deposit("X") | {"amount_micro": 2**60}, "amount_micro"),
    "a long id": (deposit("X") | {"bank_reference": "A" * 65}, "bank_reference"),
    "a slash in an id": (deposit("X") | {"bank_reference": "A/B"}, "bank_reference"),
    "not JSON": ([b"{"], "JSON"),
    "not an object": ([b"[1]"], "object"),
    "not UTF-8": ([b'{"account":"\xff"}'], ""),
    "a name twice": ([b'{"account":"A-1","account":"A-2"}'], "twice"),
    "too deep": ([b'{"account":' + b"[" * 5000 + b"]" * 5000 + b"}"], ""),
    "not a number": ([b'{"account":NaN}'], ""),
    "two arguments": ([b"{}", b"{}"], "argument"),
    "no argument": ([], ""),
}


@pytest.mark.parametrize("what", WRONG_ARGUMENTS)
async def test_wrong_arguments(world: World, what: str) -> None:
    """400 and the field's name, the same when evaluated and when endorsed."""
    argument, said = WRONG_ARGUMENTS[what]
    async with world.no_trace():
        endorsed = await world.endorse("energy", "wallet:Deposit", argument)
        assert endorsed.code is ABORTED
        assert endorsed.message == ENDORSE_FAILED
        (detail,) = endorsed.details
        assert (detail.msp_id, detail.address) == ("AuroraMSP", world.gateway)
        assert detail.message.startswith("chaincode response 400, ")
        assert said in detail.message
        evaluated = await world.evaluate("energy", "wallet:Deposit", argument)
        assert evaluated.code is UNKNOWN
        assert evaluated.message == (f"evaluate call to endorser returned error: {detail.message}")


async def test_requests_without_what_they_need(world: World) -> None:
    """INVALID_ARGUMENT and the missing part's name."""
    client = world.operator
    signed = await client.endorse(client.prepare("energy", "wallet:Deposit", deposit("PARTS")))
    unsigned = common_pb2.Envelope.FromString(signed.envelope)
    unsigned.ClearField("signature")
    identity = client.identity.serialized

    def status(**fields: Any) -> bytes:
        request = gateway_pb2.CommitStatusRequest(**fields).SerializeToString()
        return gateway_pb2.SignedCommitStatusRequest(
            request=request, signature=client.identity.sign(request)
        ).SerializeToString()

    cases: list[tuple[str, bytes, str]] = [
        (services.EVALUATE, b"", "proposal"),
        (services.ENDORSE, b"", "proposal"),
        (services.SUBMIT, b"", "a prepared transaction is required"),
        (
            services.SUBMIT,
            submit_request(client, signed.transaction_id, unsigned),
            "prepared transaction must be signed",
        ),
        (services.COMMIT_STATUS, b"", "a commit status request is required"),
        (services.COMMIT_STATUS, status(channel_id="neighbourhood"), "no identity"),
        (services.COMMIT_STATUS, status(identity=identity), "no channel ID"),
        (
            services.COMMIT_STATUS,
            status(identity=identity, channel_id="neighbourhood"),
            "transaction ID",
        ),
    ]
    async with world.no_trace():
        for path, raw, said in cases:
            refusal = await world.refused(path, raw)
            assert refusal.code is INVALID, (path, refusal)
            assert said in refusal.message
        listened = await world.wire.events(world.gateway, b"")
        assert listened is not None
        assert listened.code is INVALID
        assert "chaincode events request" in listened.message


# -- too large ---------------------------------------------------------------------------------


async def test_an_envelope_over_the_channels_limit(world: World) -> None:
    """AbsoluteMaxBytes is 10 MiB: the gateway says so, and the stream to the orderers lives on."""
    client = world.operator
    signed = await client.endorse(client.prepare("energy", "wallet:Deposit", deposit("LARGE")))
    envelope = common_pb2.Envelope.FromString(signed.envelope)
    payload = common_pb2.Payload.FromString(envelope.payload)
    payload.data += b"\x12" + b"\x80\x80\x80\x05" + bytes(10 * 1024 * 1024)
    envelope.payload = payload.SerializeToString()
    envelope.signature = client.identity.sign(envelope.payload)
    async with world.no_trace():
        refusal = await world.refused(
            services.SUBMIT, submit_request(client, signed.transaction_id, envelope)
        )
    assert refusal.code is ABORTED
    assert "the channel allows 10485760" in refusal.message
    await client.submit_signed(signed)
    await client.leave_gateway()  # which serves nothing else
    assert (await client.commit_status(signed.transaction_id)).valid


@pytest.mark.parametrize(
    "path", [services.EVALUATE, services.ENDORSE, services.SUBMIT, services.PROCESS_PROPOSAL]
)
async def test_a_message_over_the_listeners_limit(world: World, path: str) -> None:
    """gRPC itself ends the call, before the message is in memory twice."""
    async with world.no_trace():
        refusal = await world.refused(path, bytes(services.CLIENT_MESSAGE_LIMIT_BYTES + 1))
    assert refusal.code is EXHAUSTED
    assert "larger than max" in refusal.message


@pytest.mark.parametrize("path", [services.BROADCAST, services.ORDERER_DELIVER])
async def test_a_message_over_the_orderers_limit(world: World, path: str) -> None:
    async with world.no_trace():
        answer = await world.wire.stream(
            orderer_address(world.aurora), path, [bytes(services.CLIENT_MESSAGE_LIMIT_BYTES + 1)]
        )
    assert isinstance(answer, Refusal)
    assert answer.code is EXHAUSTED


async def test_a_large_argument(world: World) -> None:
    """Well within gRPC's limit, far beyond what a contract has use for."""
    async with world.no_trace():
        refusal = await world.endorse(
            "energy", "wallet:Deposit", [b'{"account":"' + b"A" * 8_000_000 + b'"}']
        )
    assert refusal.code is ABORTED
    assert refusal.details[0].message.startswith("chaincode response 4")
    assert len(refusal.text) < 2000, "what was sent is not sent back"


# -- bytes that are no messages ----------------------------------------------------------------

UNARY = (
    services.EVALUATE,
    services.ENDORSE,
    services.SUBMIT,
    services.COMMIT_STATUS,
    services.PROCESS_PROPOSAL,
)


async def test_malformed_protobuf_to_every_service(world: World) -> None:
    """A status and a sentence each, at the listeners of clients and at those of nodes."""
    async with world.no_trace():
        for path in UNARY:
            refusal = await world.refused(path, GARBAGE)
            assert refusal.code is INVALID, (path, refusal)
            assert "is not a valid" in refusal.message
        listened = await world.wire.events(world.gateway, GARBAGE)
        assert listened is not None
        assert listened.code is INVALID
        for address, path in (
            (world.gateway, services.DELIVER),
            (world.gateway, services.DELIVER_FILTERED),
            (orderer_address(world.aurora), services.ORDERER_DELIVER),
            (orderer_address(world.aurora), services.BROADCAST),
        ):
            for raw in (GARBAGE, b"", b"\x0a\x04" + GARBAGE):
                answers = await world.wire.stream(address, path, [raw])
                assert isinstance(answers, list), (path, answers)
                (answer,) = answers
                assert orderer_pb2.BroadcastResponse.FromString(answer).status == (
                    common_pb2.BAD_REQUEST
                ), (path, raw)
        node = world.aurora
        refused = await world.wire.unary(
            f"127.0.0.1:{node.ports.peer_node}", services.PROCESS_PROPOSAL, GARBAGE, node=node
        )
        assert isinstance(refused, Refusal)
        assert refused.code is INVALID
        boreal = world.running.network.utility("Boreal")
        answers = await world.wire.stream(
            f"127.0.0.1:{boreal.ports.cluster}", services.CLUSTER_STEP, [GARBAGE], node=node
        )
        assert isinstance(answers, Refusal), answers
        assert answers.code is INVALID
    # The orderers' own streams, which the garbage came beside, still work.
    await world.operator.submit("energy", "wallet:Deposit", deposit("AFTER"))


async def test_garbage_at_every_depth_of_a_proposal(world: World) -> None:
    """Each part in turn replaced by bytes that are no message, and signed."""
    client = world.operator

    def proposal(
        *,
        header: bytes | None = None,
        channel: bytes | None = None,
        signature: bytes | None = None,
        extension: bytes | None = None,
        payload: bytes | None = None,
        invocation: bytes | None = None,
    ) -> PreparedTransaction:
        prepared = client.prepare("energy", "wallet:Deposit", deposit("DEPTH"))
        opened = peer_pb2.Proposal.FromString(prepared.proposal)
        headers = common_pb2.Header.FromString(opened.header)
        if extension is not None:
            stated = common_pb2.ChannelHeader.FromString(headers.channel_header)
            stated.extension = extension
            headers.channel_header = stated.SerializeToString()
        if channel is not None:
            headers.channel_header = channel
        if signature is not None:
            headers.signature_header = signature
        opened.header = headers.SerializeToString() if header is None else header
        if invocation is not None:
            stated_payload = peer_pb2.ChaincodeProposalPayload(input=invocation)
            opened.payload = stated_payload.SerializeToString()
        if payload is not None:
            opened.payload = payload
        return resigned(replace(prepared, proposal=opened.SerializeToString()), client)

    parts = ("header", "channel", "signature", "extension", "payload", "invocation")
    async with world.no_trace():
        for part in parts:
            for value in (GARBAGE, b""):
                prepared = proposal(**{part: value})
                for path, raw in (
                    (services.EVALUATE, evaluate_request(client, prepared)),
                    (services.ENDORSE, endorse_request(client, prepared)),
                ):
                    refusal = await world.refused(path, raw)
                    assert refusal.code in (INVALID, ABORTED, PRECONDITION), (part, refusal)
                    assert "Unexpected" not in refusal.text
                    assert len(refusal.text) > 20
                direct = await world.refused(
                    services.PROCESS_PROPOSAL, signed_proposal(prepared).SerializeToString()
                )
                assert direct.code is UNKNOWN
                assert direct.message.startswith("error validating proposal: ")


async def test_mutated_requests(world: World) -> None:
    """Honest requests with some bytes changed: never an unforeseen error, never a change.

    gRPC answers an exception that nobody caught with UNKNOWN and "Unexpected …". A change may leave
    an envelope's payload and signature as they were: that is then the same transaction, which was
    committed before.
    """
    client = world.operator
    chance = random.Random(20261121)
    prepared = client.prepare("energy", "wallet:Deposit", deposit("MUTATED"))
    signed = await client.endorse(client.prepare("energy", "wallet:Deposit", deposit("SAME")))
    await client.submit_signed(signed)
    await client.leave_gateway()  # which serves nothing else
    assert (await client.commit_status(signed.transaction_id)).valid
    status = gateway_pb2.CommitStatusRequest(
        transaction_id=signed.transaction_id,
        channel_id=client.channel,
        identity=client.identity.serialized,
    ).SerializeToString()
    signer = world.aurora.signer("operator")
    seek = seek_all(world.running.network, signer).SerializeToString()
    requests = {
        services.EVALUATE: evaluate_request(client, prepared),
        services.ENDORSE: endorse_request(client, prepared),
        services.SUBMIT: submit_request(
            client, signed.transaction_id, common_pb2.Envelope.FromString(signed.envelope)
        ),
        services.COMMIT_STATUS: gateway_pb2.SignedCommitStatusRequest(
            request=status, signature=client.identity.sign(status)
        ).SerializeToString(),
        services.PROCESS_PROPOSAL: signed_proposal(prepared).SerializeToString(),
    }
    streams = {
        (world.gateway, services.DELIVER): seek,
        (orderer_address(world.aurora), services.ORDERER_DELIVER): seek,
        (orderer_address(world.aurora), services.BROADCAST): signed.envelope,
    }
    account = {"account": "SUPPLIER-AURORA"}
    balance = await client.evaluate("energy", "wallet:Balance", account)
    for path, honest in requests.items():
        for raw in mutations(honest, chance, 40):
            answer = await world.wire.unary(world.gateway, path, raw)
            if isinstance(answer, Refusal):
                assert "Unexpected" not in answer.message, (path, raw.hex(), answer)
                assert answer.code is not grpc.StatusCode.DEADLINE_EXCEEDED, (path, raw.hex())
    for (address, path), honest in streams.items():
        for raw in mutations(honest, chance, 40):
            answers = await world.wire.stream(address, path, [raw], answers=1)
            assert isinstance(answers, list), (path, raw.hex(), answers)
            assert answers, (path, raw.hex())
            if path == services.BROADCAST:
                refused = orderer_pb2.BroadcastResponse.FromString(answers[0])
                assert refused.status != common_pb2.INTERNAL_SERVER_ERROR, raw.hex()
    await world.ledgers.settled()
    assert await client.evaluate("energy", "wallet:Balance", account) == balance


def mutations(honest: bytes, chance: random.Random, count: int) -> Iterator[bytes]:
    """Bytes flipped, cut off, doubled, or set to the ends of their range."""
    for _ in range(count):
        data = bytearray(honest)
        # Most of a request is certificate: half of the changes go where the structure is.
        place = chance.randrange(len(data) if chance.random() < 0.5 else min(60, len(data)))
        match chance.randrange(4):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                data[place] = chance.choice((0x00, 0x7F, 0x80, 0xFF))
            case 2:
                del data[place : place + chance.randrange(1, 9)]
            case _:
                data[place:place] = data[place : place + chance.randrange(1, 9)]
        if bytes(data) != honest:
            yield bytes(data)


@pytest.mark.parametrize("number", ["x", "-1", "+1", "1_0", " 1", "", str(2**64), "9" * 400])
async def test_a_block_number_that_is_none(world: World, number: str) -> None:
    refusal = await world.evaluate("qscc", "GetBlockByNumber", [b"neighbourhood", number.encode()])
    assert refusal.code is UNKNOWN
    assert "chaincode response 500, Failed to parse block number" in refusal.message
    assert len(refusal.message) < 300


async def test_a_service_that_is_not_there(world: World) -> None:
    for path in ("/gateway.Gateway/Nothing", "/protos.Nothing/Evaluate", services.CLUSTER_STEP):
        refusal = await world.refused(path, b"")
        assert refusal.code is grpc.StatusCode.UNIMPLEMENTED


async def test_nodes_listeners_want_a_nodes_certificate(world: World) -> None:
    """Who shows none, or none of the channel's orderers', gets no word in."""
    aurora, boreal = world.running.network.utilities[:2]
    for port in (aurora.ports.peer_node, aurora.ports.cluster):
        refusal = await world.wire.unary(f"127.0.0.1:{port}", services.PROCESS_PROPOSAL, b"")
        assert isinstance(refusal, Refusal)
        assert refusal.code is UNAVAILABLE
    peer = grpc.ssl_channel_credentials(
        world.running.network.tls_bundle_pem,
        (boreal.directory / "peer" / "tls.key.pem").read_bytes(),
        (boreal.directory / "peer" / "tls.cert.pem").read_bytes(),
    )
    async with grpc.aio.secure_channel(f"127.0.0.1:{aurora.ports.cluster}", peer) as connection:
        call = connection.stream_stream(services.CLUSTER_STEP)(timeout=60)
        vote = orderer_pb2.StepRequest(
            consensus_request=orderer_pb2.ConsensusRequest(channel="neighbourhood")
        )
        await call.write(vote.SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
    assert error.value.code() in (DENIED, grpc.StatusCode.UNAUTHENTICATED)
    assert "certificate" in str(error.value.details())


async def test_a_gateway_without_orderers_gives_no_refusal(world: World) -> None:
    """It may have passed the transaction on before it gave up: the outcome is unknown."""
    detail = gateway_pb2.ErrorDetail(address="127.0.0.1:1", msp_id="BorealMSP", message="away")
    said = "no orderers could successfully process transaction"
    status = rpc_pb2.Status(
        code=14,
        message=said,
        details=[
            any_pb2.Any(
                type_url="type.googleapis.com/gateway.ErrorDetail",
                value=detail.SerializeToString(),
            )
        ],
    )

    async def submit(_request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        trailer = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(UNAVAILABLE, said, trailing_metadata=trailer)

    tls = world.aurora.directory / "peer"
    server = grpc.aio.server()
    handlers = {"Submit": grpc.unary_unary_rpc_method_handler(submit)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("gateway.Gateway", handlers),)
    )
    key_pair = ((tls / "tls.key.pem").read_bytes(), (tls / "tls.cert.pem").read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([key_pair]))
    await server.start()
    signed = await world.operator.endorse(
        world.operator.prepare("energy", "wallet:Deposit", deposit("AWAY"))
    )
    client = world.running.client()
    client.addresses = (f"127.0.0.1:{port}",)
    with pytest.raises(ConnectionFailed, match=r"no orderers could .*127\.0\.0\.1:1: away"):
        await client.submit_signed(signed)
    # Another gateway is asked next, with the same bytes.
    client.addresses = (f"127.0.0.1:{port}", world.gateway)
    await client.submit_signed(signed)
    await client.leave_gateway()  # which serves nothing else
    assert (await client.commit_status(signed.transaction_id)).valid
    await client.close()
    await server.stop(None)


# -- energy ------------------------------------------------------------------------------------


@dataclass
class Home:
    """A home that is enrolled, with a connection of 6 kW, a meter, and a supplier who buys."""

    connection: str
    meter: str
    client: GatewayClient
    key: MeterKey

    def reading(self, start: int, wh: int, **fields: Any) -> Reading:
        return Reading(
            **{
                "meter_id": self.meter,
                "interval_start": start,
                "interval_s": 60,
                "import_wh": wh,
                "export_wh": 0,
                "import_register_wh": 100_000 + wh,
                "export_register_wh": 0,
            }
            | fields
        )

    def batch(self, *readings: Reading) -> dict[str, bytes]:
        return batch_transient([self.key.sign(each, "neighbourhood").fields for each in readings])

    async def submit(self, *readings: Reading) -> Any:
        committed = await self.client.submit(
            "metering",
            "metering:SubmitReadings",
            {"utility": "AuroraMSP"},
            transient=self.batch(*readings),
            endorsing_organizations=["AuroraMSP"],
        )
        return committed.result

    async def quote(self, energy_wh: int, start: int, end: int) -> dict[str, Any]:
        answer = await self.client.evaluate(
            "energy",
            "market:Quote",
            {
                "connection_id": self.connection,
                "energy_wh": str(energy_wh),
                "window_start": str(start),
                "window_end": str(end),
            },
        )
        quote: dict[str, Any] = answer["quote"]
        return quote


_homes = iter(range(1000))


@pytest.fixture
async def home(world: World) -> AsyncIterator[Home]:
    number = next(_homes)
    connection, meter = f"CP-BAD-{number}", f"M-BAD-{number}"
    _, client = await world.running.enrolled(
        "Aurora", f"home-bad-{number}", role="home", connection=connection
    )
    key = generate_key()
    meter_key = MeterKey(key_pem(key), b"a secret of sixteen bytes or more")
    await world.operator.submit(
        "energy",
        "registry:RegisterConnection",
        {
            "connection_id": connection,
            "utility": "AuroraMSP",
            "zone": "Z1",
            "max_export_w": "6000",
            "max_import_w": "17000",
        },
    )
    await world.operator.submit(
        "metering",
        "metering:RegisterMeter",
        {
            "meter_id": meter,
            "connection_id": connection,
            "utility": "AuroraMSP",
            "source_class": "accredited",
            "public_key": meter_key.public_key_pem,
        },
    )
    now = time.time()
    for day in {time.strftime("%Y-%m-%d", time.gmtime(now + ahead)) for ahead in (0, 1800)}:
        await world.operator.submit(
            "energy",
            "market:PublishRate",
            {"supplier": "AuroraMSP", "day": day, "kind": "buy", "price_micro_per_kwh": "81000"},
        )
    yield Home(connection, meter, client, meter_key)
    await client.close()


async def test_a_second_different_reading_of_an_interval(world: World, home: Home) -> None:
    """Refused by name; the same again is no change; a good one beside it is not lost."""
    start = int(time.time()) // 60 * 60 - 600
    first = home.reading(start, 10)
    assert (await home.submit(first))["accepted"] == "1"
    different = home.reading(start, 11)
    before = await world.ledgers.settled()
    refusal = await world.endorse(
        "metering",
        "metering:SubmitReadings",
        {"utility": "AuroraMSP"},
        client=home.client,
        transient=home.batch(different),
        endorsing_organizations=["AuroraMSP"],
    )
    assert await world.ledgers.settled() == before
    assert refusal.code is ABORTED
    assert "already has a different reading of version 1" in refusal.text
    assert home.meter in refusal.text
    next_one = home.reading(start + 60, 12, import_register_wh=100_022, quality=first.quality)
    answer = await home.submit(different, first, next_one)
    assert (answer["accepted"], answer["duplicate"], len(answer["refused"])) == ("1", "1", 1)
    (refused,) = answer["refused"]
    assert refused["interval_start"] == str(start)
    assert refused["code"] == "different"
    kept = await home.client.evaluate(
        "metering",
        "metering:Readings",
        {"meter_id": home.meter, "from": str(start), "to": str(start + 120)},
    )
    assert [reading["import_wh"] for reading in kept] == ["10", "12"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("future", "the channel's time is"),
        ("another key", "signature does not hold"),
        ("another meter", "not registered"),
        ("more than possible", "can count at most"),
    ],
)
async def test_a_reading_that_cannot_be(world: World, home: Home, what: str, said: str) -> None:
    start = int(time.time()) // 60 * 60 - 600
    reading = home.reading(start, 10)
    if what == "future":
        reading = home.reading(start + 3600, 10)
    elif what == "another key":
        home.key = MeterKey(key_pem(generate_key()), b"a secret of sixteen bytes or more")
    elif what == "another meter":
        reading = home.reading(start, 10, meter_id="M-NOBODYS")
    else:
        reading = home.reading(start, 1_000_000)
    async with world.no_trace():
        refusal = await world.endorse(
            "metering",
            "metering:SubmitReadings",
            {"utility": "AuroraMSP"},
            client=home.client,
            transient=home.batch(reading),
            endorsing_organizations=["AuroraMSP"],
        )
    assert refusal.code is ABORTED
    assert said in refusal.text


async def test_anothers_readings(world: World, home: Home) -> None:
    """Neither submitted nor seen by another home of the same utility, nor by another utility."""
    start = int(time.time()) // 60 * 60 - 600
    await home.submit(home.reading(start, 10))
    _, stranger = await world.running.enrolled(
        "Aurora", f"{home.connection}-neighbour".lower(), role="home", connection="CP-OTHER"
    )
    wanted = {"meter_id": home.meter, "from": str(start), "to": str(start + 60)}
    boreal = world.running.client("Boreal")
    async with world.no_trace():
        refusal = await world.evaluate("metering", "metering:Readings", wanted, client=stranger)
        assert "chaincode response 403, " in refusal.message
        refusal = await world.endorse(
            "metering",
            "metering:SubmitReadings",
            {"utility": "AuroraMSP"},
            client=stranger,
            transient=home.batch(home.reading(start + 60, 10)),
            endorsing_organizations=["AuroraMSP"],
        )
        assert f"may not submit readings of meter {home.meter}" in refusal.text
        prepared = boreal.prepare("metering", "metering:Readings", wanted)
        for address in (world.gateway, world.running.network.utilities[1].gateway_address):
            answer = await world.wire.unary(
                address, services.EVALUATE, evaluate_request(boreal, prepared)
            )
            assert isinstance(answer, Refusal)
            assert answer.code in (UNKNOWN, UNAVAILABLE, ABORTED, PRECONDITION)
    await asyncio.gather(stranger.close(), boreal.close())


async def test_a_sale_of_more_than_can_be_delivered(world: World, home: Home) -> None:
    """6 kW for five minutes are 500 Wh, less what is sold already."""
    start, end = coming_window(240, 300)
    asked = {
        "connection_id": home.connection,
        "window_start": str(start),
        "window_end": str(end),
    }
    async with world.no_trace():
        refusal = await world.evaluate(
            "energy", "market:Quote", asked | {"energy_wh": "501"}, client=home.client
        )
    assert refusal.code is UNKNOWN
    assert "energy_wh is 501" in refusal.message
    assert "can deliver at most 500 Wh" in refusal.message
    # Two quotes of 300 Wh each: both hold as long as neither is sold.
    first, second = [await home.quote(300, start, end) for _ in range(2)]
    authorise = {"request_id": "FIRST", "quote": first}
    sold = await home.client.submit("energy", "market:Authorise", authorise)
    assert sold.result["energy_wh"] == "300"
    async with world.no_trace():
        refusal = await world.endorse(
            "energy",
            "market:Authorise",
            {"request_id": "SECOND", "quote": second},
            client=home.client,
        )
    assert refusal.code is ABORTED
    assert "chaincode response 409, " in refusal.text
    balance = await home.client.evaluate("energy", "wallet:Balance", {"account": home.connection})
    assert balance["balance_micro"] == first["net_micro"]


async def test_two_sales_of_the_same_energy_at_once(world: World, home: Home) -> None:
    """Both are endorsed before either is committed: the second to be ordered is invalid."""
    quote = await home.quote(400, *coming_window(240, 300))
    first, second = [
        await home.client.endorse(
            home.client.prepare("energy", "market:Authorise", {"request_id": name, "quote": quote})
        )
        for name in ("ONE", "TWO")
    ]
    await asyncio.gather(home.client.submit_signed(first), home.client.submit_signed(second))
    outcomes = [await home.client.commit_status(each.transaction_id) for each in (first, second)]
    assert sorted(each.code for each in outcomes) == ["MVCC_READ_CONFLICT", "VALID"]
    trades = await home.client.evaluate(
        "energy", "market:Trades", {"connection_id": home.connection}
    )
    assert len(trades["trades"]) == 1


async def test_an_expired_quote(world: World, home: Home) -> None:
    """A quote holds for 300 s: one minute more by the transaction's own time is too late."""
    start = int(time.time()) // 60 * 60 + 900
    quote = await home.quote(100, start, start + 60)
    prepared = home.client.prepare(
        "energy", "market:Authorise", {"request_id": "LATE", "quote": quote}
    )

    def later(
        channel: common_pb2.ChannelHeader, _signature: Any, _proposal: peer_pb2.Proposal
    ) -> None:
        channel.timestamp.seconds += 360

    late = changed(home.client, prepared, later)
    async with world.no_trace():
        refusal = await world.refused(services.ENDORSE, endorse_request(home.client, late))
    assert refusal.code is ABORTED
    assert "chaincode response 4" in refusal.text
    assert "quote" in refusal.text
    assert "expired" in refusal.text or "valid until" in refusal.text


QUOTE_CHANGES: dict[str, dict[str, str]] = {
    "price": {"price_micro_per_kwh": "810000"},
    "money": {"net_micro": "999999999"},
    "energy": {"energy_wh": "200"},
    "later end": {"valid_until": "99999999999"},
    "another supplier": {"supplier": "CieloMSP"},
    "another version": {"rate_version": "7"},
}


@pytest.mark.parametrize("what", QUOTE_CHANGES)
async def test_a_quote_that_was_changed(world: World, home: Home, what: str) -> None:
    """Every term is computed again from the state; nothing in a quote is believed."""
    start = int(time.time()) // 60 * 60 + 300
    quote = await home.quote(100, start, start + 60)
    async with world.no_trace():
        refusal = await world.endorse(
            "energy",
            "market:Authorise",
            {"request_id": "CHANGED", "quote": quote | QUOTE_CHANGES[what]},
            client=home.client,
        )
    assert refusal.code is ABORTED
    assert "chaincode response 4" in refusal.text


async def test_a_window_that_is_over(world: World, home: Home) -> None:
    start = int(time.time()) // 60 * 60 - 60
    async with world.no_trace():
        refusal = await world.evaluate(
            "energy",
            "market:Quote",
            {
                "connection_id": home.connection,
                "energy_wh": "10",
                "window_start": str(start),
                "window_end": str(start + 60),
            },
            client=home.client,
        )
    assert "ask for a window that begins later" in refusal.message


# -- enrolment ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "body", "status", "said"),
    [
        ({}, b"{}", 401, "authorization"),
        ({"Authorization": "Basic !!!"}, b"{}", 401, "Authentication failure"),
        ({"Authorization": "nobody:secret"}, b"{}", 400, "certificate_request"),
        ({"Authorization": "nobody:secret"}, b"{", 400, "not JSON"),
        ({"Authorization": "nobody:secret"}, b"[]", 400, "not a JSON object"),
        ({"Authorization": "nobody:secret"}, b'{"certificate_request":"x"}', 400, "CSR"),
        ({"Authorization": "nobody:secret"}, b'{"certificate_request":1}', 400, "missing"),
        ({"Authorization": "nobody:secret"}, b"x" * 100_000, 413, "Too Large"),
        ({"Authorization": "nobody:secret"}, None, 401, "Authentication failure"),
    ],
)
async def test_enrolment(
    world: World, headers: dict[str, str], body: bytes | None, status: int, said: str
) -> None:
    """fabric-ca's shape of an error, whatever was sent."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    if "Basic" not in headers.get("Authorization", "Basic"):
        encoded = base64.b64encode(headers["Authorization"].encode()).decode()
        headers = {"Authorization": f"Basic {encoded}"}
    if body is None:
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .sign(generate_key(), hashes.SHA256())
        )
        pem = request.public_bytes(serialization.Encoding.PEM).decode()
        body = json.dumps({"certificate_request": pem}).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{world.aurora.ca_url}/api/v1/enroll",
            data=body,
            headers=headers,
            ssl=trusting(world.running.network.tls_bundle_pem),
        ) as response,
    ):
        answer = await response.json()
        assert response.status == status, answer
    assert answer["success"] is False
    assert said in answer["errors"][0]["message"]
