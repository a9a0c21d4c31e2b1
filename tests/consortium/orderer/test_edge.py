"""What an orderer refuses, and how it says so."""

import time
from collections.abc import Callable, Sequence

import grpc
import pytest

from consortium.identity.msp import msp_config
from consortium.identity.policies import parse_policy
from consortium.identity.signing import Signer
from consortium.ledger.config_update import compute_update, sign_update, update_envelope
from consortium.ledger.mvcc import encode_field
from consortium.orderer.administration import JoinError
from consortium.orderer.follower import Follower
from consortium.orderer.node import Orderer
from consortium.wire import blocks, common_pb2, gridledger_pb2, orderer_pb2, services
from consortium.wire.envelopes import channel_header, signed_envelope
from tests.consortium.orderer.conftest import NetworkFactory
from tests.consortium.orderer.network import (
    CHANNEL,
    Network,
    Utility,
    broadcast,
    deliver,
    seek,
    until,
)

SUCCESS = common_pb2.SUCCESS


async def refused(network: Network, envelope: bytes, *, follower: bool = False) -> tuple[int, str]:
    """Status and info of the answer to one envelope, which leaves no trace in the chain."""
    number = await (network.follower() if follower else network.leader())
    async with network.channel(number) as channel:
        answers = await broadcast(channel, [envelope])
    assert len(answers.statuses) == 1
    assert len(network.blocks(number)) == 1
    return answers.statuses[0], answers.infos[0]


def with_payload(network: Network, signer: Signer, **header: object) -> bytes:
    fields = channel_header(common_pb2.ENDORSER_TRANSACTION, CHANNEL, "00")
    for name, value in header.items():
        setattr(fields, name, value)
    return signed_envelope(signer, fields, b"data").SerializeToString()


async def test_broken_and_foreign_envelopes(network: Network) -> None:
    home = network.client
    stranger = Utility("Drago").signer("thief", "client")
    peer = network.utilities[0].signer("peer", "peer")
    expired = network.utilities[0].signer("late", "client", valid_days=0)
    forged = common_pb2.Envelope.FromString(network.envelope())
    forged.signature = home.sign(forged.payload + b"!")
    unsigned = common_pb2.Envelope(payload=forged.payload)
    signature_first = (
        common_pb2.Envelope(signature=home.sign(forged.payload)).SerializeToString()
        + common_pb2.Envelope(payload=forged.payload).SerializeToString()
    )
    cases = {
        "forged signature": (forged.SerializeToString(), common_pb2.FORBIDDEN, "signature"),
        "no signature": (unsigned.SerializeToString(), common_pb2.FORBIDDEN, "signature"),
        "foreign organization": (
            network.envelope(signer=stranger),
            common_pb2.FORBIDDEN,
            "not a member of the channel",
        ),
        "no writer": (network.envelope(signer=peer), common_pb2.FORBIDDEN, "/Channel/Writers"),
        "expired": (network.envelope(signer=expired), common_pb2.BAD_REQUEST, "expired"),
        "unknown channel": (
            with_payload(network, home, channel_id="elsewhere"),
            common_pb2.NOT_FOUND,
            "'elsewhere' is not served",
        ),
        "configuration made by a client": (
            with_payload(network, home, type=common_pb2.CONFIG),
            common_pb2.BAD_REQUEST,
            "CONFIG_UPDATE",
        ),
        "empty": (b"", common_pb2.BAD_REQUEST, "empty"),
        "not protobuf": (b"\xff\xff\xff", common_pb2.BAD_REQUEST, "not a valid common.Envelope"),
        "bytes that do not marshal back": (signature_first, common_pb2.BAD_REQUEST, "marshal"),
        # They count nowhere: five hundred of these would make a block that nobody could be sent.
        "bytes beside": (
            network.envelope() + encode_field(15, bytes(1_000_000)),
            common_pb2.BAD_REQUEST,
            "beside payload and signature",
        ),
    }
    for name, (envelope, status, words) in cases.items():
        for follower in (False, True):
            answer = await refused(network, envelope, follower=follower)
            assert answer[0] == status, (name, answer)
            assert words in answer[1], (name, answer)


async def test_an_oversize_envelope(make_network: NetworkFactory) -> None:
    network = await make_network(
        1, absolute_max_bytes=10_000, preferred_max_bytes=5_000, max_message_count=100
    )
    status, info = await refused(network, network.envelope(10_000))
    assert status == common_pb2.BAD_REQUEST
    assert "the channel's limit (AbsoluteMaxBytes) is 10000" in info
    # Above the preferred size it is taken, in a block of its own.
    envelopes = [network.envelope(size) for size in (10, 6_000, 10)]
    async with network.channel(0) as channel:
        assert (await broadcast(channel, envelopes)).statuses == [SUCCESS] * 3
    assert [len(block.data.data) for block in network.blocks(0)] == [1, 1, 1, 1]


async def test_the_first_refusal_ends_the_stream(network: Network) -> None:
    envelopes = [network.envelope() for _ in range(4)]
    envelopes[2] = b"\xff"
    async with network.channel(await network.leader()) as channel:
        answers = await broadcast(channel, envelopes)
    assert answers.statuses == [SUCCESS, SUCCESS, common_pb2.BAD_REQUEST]


async def in_batches(channel: grpc.aio.Channel, *messages: bytes) -> list[list[tuple[int, str]]]:
    """(status, info) of the answers in each message that came back, until the stream ends."""
    call = channel.stream_stream(services.BROADCAST_BATCHES)()
    for one in messages:
        await call.write(one)
    await call.done_writing()
    answered = []
    while (raw := await call.read()) is not grpc.aio.EOF:
        answers = gridledger_pb2.BroadcastAnswers.FromString(raw).answers
        answered.append([(one.status, one.info) for one in answers])
    return answered


def batch(envelopes: Sequence[bytes]) -> bytes:
    return gridledger_pb2.EnvelopeBatch(envelopes=envelopes).SerializeToString()


async def test_batches(network: Network) -> None:
    """What a stream of them means is what Broadcast's means."""
    envelopes = [network.envelope() for _ in range(6)]
    number = await network.leader()
    async with network.channel(number) as channel:
        answered = await in_batches(channel, batch(envelopes[:4]), batch([]), batch(envelopes[4:]))
        assert [status for one in answered for status, _ in one] == [SUCCESS] * 6
        assert len(answered) < 6
        ordered = [raw for block in network.blocks(number)[1:] for raw in block.data.data]
        assert ordered == envelopes
        # The first refusal ends the stream.
        more = [network.envelope(), network.envelope(), b"\xff", network.envelope()]
        answered = await in_batches(channel, batch(more))
        statuses = [status for one in answered for status, _ in one]
        assert statuses == [SUCCESS, SUCCESS, common_pb2.BAD_REQUEST]
        for message, said in (
            (b"\xff", "the batch is not a valid gridledger.EnvelopeBatch"),
            (batch([b"x"] * 501), "the batch has 501 envelopes and the limit is 500"),
        ):
            (((status, info),),) = await in_batches(channel, message)
            assert status == common_pb2.BAD_REQUEST
            assert said in info


async def test_a_configuration_update_takes_effect(network: Network) -> None:
    leader, follower = await network.leader(), await network.follower()
    chain = network.running()[leader].channels[CHANNEL]
    current = chain.config.config
    wanted = common_pb2.Config()
    wanted.CopyFrom(current)
    value = wanted.channel_group.groups["Orderer"].values["BatchSize"]
    size = orderer_pb2.BatchSize.FromString(value.value)
    size.max_message_count = 2
    value.value = size.SerializeToString()
    update = compute_update(CHANNEL, current, wanted).SerializeToString()
    admins = [one.signer("admin", "admin") for one in network.utilities]
    envelope = update_envelope(
        CHANNEL, update, [sign_update(update, one) for one in admins], admins[0]
    ).SerializeToString()
    too_few = update_envelope(
        CHANNEL, update, [sign_update(update, admins[0])], admins[0]
    ).SerializeToString()
    async with network.channel(follower) as channel:
        answers = await broadcast(channel, [too_few])
        assert answers.statuses == [common_pb2.BAD_REQUEST]
        assert "do not satisfy it" in answers.infos[0]
        assert (await broadcast(channel, [network.envelope()])).statuses == [SUCCESS]
        assert (await broadcast(channel, [envelope])).statuses == [SUCCESS]
        assert (await broadcast(channel, [network.envelope() for _ in range(4)])).statuses == [
            SUCCESS
        ] * 4
        # The same update again was made against an older configuration.
        assert (await broadcast(channel, [envelope])).statuses == [common_pb2.BAD_REQUEST]
    await network.same_height()
    for number in range(3):
        found = network.blocks(number)
        assert [len(block.data.data) for block in found] == [1, 1, 1, 2, 2]
        last = [
            common_pb2.LastConfig.FromString(
                common_pb2.Metadata.FromString(block.metadata.metadata[blocks.LAST_CONFIG]).value
            ).index
            for block in found
        ]
        assert last == [0, 0, 2, 2, 2]
    # It is still in force after a restart.
    await network.stop()
    await network.start()
    await network.leader()
    assert network.running()[0].channels[CHANNEL].config.sequence == 1


def _nobody(element: common_pb2.ConfigPolicy) -> None:
    element.policy.type = common_pb2.Policy.SIGNATURE
    element.policy.value = parse_policy("OutOf(2, 'AuroraMSP.client')").SerializeToString()


def _sizes(group: common_pb2.ConfigGroup, **sizes: int) -> None:
    value = group.groups["Orderer"].values["BatchSize"]
    size = orderer_pb2.BatchSize.FromString(value.value)
    for name, wanted in sizes.items():
        setattr(size, name, wanted)
    value.value = size.SerializeToString()


def _without_addresses(group: common_pb2.ConfigGroup) -> None:
    for one in group.groups["Orderer"].groups.values():
        one.values["Endpoints"].value = b""


def _another_root(group: common_pb2.ConfigGroup) -> None:
    """An authority that has issued nothing yet, in the place of the one of all its nodes."""
    root = Utility("Aurora").authority.certificate_pem
    definition = msp_config("AuroraMSP", root).SerializeToString()
    for kind in ("Orderer", "Application"):
        group.groups[kind].groups["AuroraMSP"].values["MSP"].value = definition


async def test_a_configuration_that_would_stop_the_channel_for_good(
    make_network: NetworkFactory,
) -> None:
    """However many administrators have signed it."""
    network = await make_network(1)
    admins = [one.signer("admin", "admin") for one in network.utilities]
    current = network.running()[0].channels[CHANNEL].config.config

    def signed(change: Callable[[common_pb2.ConfigGroup], object]) -> bytes:
        wanted = common_pb2.Config()
        wanted.CopyFrom(current)
        change(wanted.channel_group)
        update = compute_update(CHANNEL, current, wanted).SerializeToString()
        signatures = [sign_update(update, one) for one in admins]
        return update_envelope(CHANNEL, update, signatures, admins[1]).SerializeToString()

    cases: list[tuple[Callable[[common_pb2.ConfigGroup], object], str]] = [
        (lambda g: _sizes(g, absolute_max_bytes=1, preferred_max_bytes=1), "changes it again"),
        (lambda g: _sizes(g, absolute_max_bytes=2**31), "larger than any message"),
        (
            lambda g: _sizes(g, absolute_max_bytes=99 << 20, preferred_max_bytes=99 << 20),
            "PreferredMaxBytes would be",
        ),
        (_without_addresses, "no orderer's address"),
        (lambda g: g.policies.pop("Writers"), "nobody could send"),
        (lambda g: _nobody(g.policies["Writers"]), "could not be taken back"),
        (lambda g: g.groups["Orderer"].policies.pop("BlockValidation"), "check blocks"),
        (lambda g: _nobody(g.groups["Orderer"].policies["BlockValidation"]), "refuse the blocks"),
        (_another_root, "refuse the blocks"),
    ]
    async with network.channel(0) as channel:
        for change, words in cases:
            answers = await broadcast(channel, [signed(change)])
            assert answers.statuses == [common_pb2.BAD_REQUEST], words
            assert words in answers.infos[0]
        # What Fabric's own sample has.
        fine = signed(lambda g: _sizes(g, absolute_max_bytes=99 << 20))
        assert (await broadcast(channel, [fine, network.envelope()])).statuses == [SUCCESS] * 2


async def test_another_consenter_cannot_have_junk_ordered(network: Network) -> None:
    """No peer could commit such a block, and the channel would stand still for good."""
    leader, follower = await network.leader(), await network.follower()
    settings = network.settings[follower]
    current = network.running()[leader].channels[CHANNEL].config.config
    forged = common_pb2.Config()
    forged.CopyFrom(current)
    forged.sequence += 1
    forged.channel_group.groups["Orderer"].values["BatchSize"].value = orderer_pb2.BatchSize(
        max_message_count=1, absolute_max_bytes=1, preferred_max_bytes=1
    ).SerializeToString()
    update = compute_update(CHANNEL, current, forged).SerializeToString()
    config = common_pb2.ConfigEnvelope(
        config=forged, last_update=update_envelope(CHANNEL, update, [], settings.signer)
    )
    header = channel_header(common_pb2.CONFIG, CHANNEL)
    forged_config = signed_envelope(settings.signer, header, config.SerializeToString())
    unsigned = common_pb2.Envelope.FromString(network.envelope())
    unsigned.signature = b""
    elsewhere = signed_envelope(
        network.client, channel_header(common_pb2.MESSAGE, "elsewhere"), b"data"
    )
    junk = [
        (common_pb2.Envelope(), 0, "is empty"),
        (common_pb2.Envelope(signature=b"x"), 0, "no payload"),
        (common_pb2.Envelope(payload=b"\xff", signature=b"x"), 0, "payload"),
        (unsigned, 0, "no signature"),
        (elsewhere, 0, "another channel"),
        (
            common_pb2.Envelope.FromString(network.envelope() + encode_field(15, bytes(1000))),
            0,
            "beside payload and signature",
        ),
        (forged_config, 0, "configuration: "),
        # As if it had seen a configuration that the leader has not.
        (forged_config, 2**63, "still at configuration 0"),
        (signed_envelope(settings.signer, header, b"\xff"), 0, "configuration: "),
    ]
    async with grpc.aio.secure_channel(
        network.settings[leader].cluster_address,
        grpc.ssl_channel_credentials(
            network.roots, settings.tls_key_pem, settings.tls_certificate_pem
        ),
    ) as connection:
        call = connection.stream_stream(services.CLUSTER_STEP)()
        for envelope, sequence, reason in junk:
            request = orderer_pb2.SubmitRequest(
                channel=CHANNEL, last_validation_seq=sequence, payload=envelope
            )
            step = orderer_pb2.StepRequest(submit_request=request)
            await call.write(step.SerializeToString())
            answer = orderer_pb2.StepResponse.FromString(await call.read()).submit_res
            assert answer.status != SUCCESS
            assert reason in answer.info
        call.cancel()
    honest = network.envelope()
    async with network.channel(leader) as channel:
        assert (await broadcast(channel, [honest])).statuses == [SUCCESS]
    assert await network.same_height() == 2
    for number in range(3):
        assert network.blocks(number)[1].data.data == [honest]


async def test_deliver_seeks(network: Network) -> None:
    number = await network.follower()
    home = network.client
    async with network.channel(number) as channel:
        for _ in range(3):
            assert (await broadcast(channel, [network.envelope()])).statuses == [SUCCESS]
        stored = network.blocks(number)
        assert len(stored) == 4
        for start, stop, expected in (
            ("oldest", "newest", [0, 1, 2, 3]),
            ("newest", "newest", [3]),
            ("oldest", "oldest", [0]),
            (1, 2, [1, 2]),
            (2, "newest", [2, 3]),
        ):
            found, status = await deliver(channel, seek(home, start, stop))
            assert status == SUCCESS
            assert [block.header.number for block in found] == expected
            assert found == [stored[n] for n in expected]
        # Past the end: at once an error, or wait.
        found, status = await deliver(channel, seek(home, 2, 9))
        assert ([block.header.number for block in found], status) == (
            [2, 3],
            common_pb2.NOT_FOUND,
        )
        found, status = await deliver(channel, seek(home, "next_commit", 5))
        assert (found, status) == ([], common_pb2.NOT_FOUND)
        # Headers only, but configuration blocks whole.
        found, _ = await deliver(channel, seek(home, "oldest", "newest", headers_only=True))
        assert [len(block.data.data) for block in found] == [1, 0, 0, 0]
        assert [block.header for block in found] == [block.header for block in stored]


async def test_deliver_waits_for_blocks_to_come(network: Network) -> None:
    leader, follower = await network.leader(), await network.follower()
    async with network.channel(follower) as reader, network.channel(leader) as writer:
        call = reader.stream_stream("/orderer.AtomicBroadcast/Deliver")()
        await call.write(seek(network.client, "next_commit", 2**64 - 1, wait=True))
        for number in (1, 2, 3):
            assert (await broadcast(writer, [network.envelope()])).statuses == [SUCCESS]
            response = orderer_pb2.DeliverResponse.FromString(await call.read())
            assert response.block.header.number == number
        call.cancel()


async def test_deliver_refusals(network: Network) -> None:
    home = network.client
    stranger = Utility("Drago").signer("spy", "client")
    expired = network.utilities[0].signer("late", "client", valid_days=0)
    old = time.time_ns() - 16 * 60 * 10**9
    forged = common_pb2.Envelope.FromString(seek(home, "oldest", "newest"))
    forged.signature = home.sign(b"else")
    cases = {
        "unknown channel": (seek(home, 0, 0, channel_id="elsewhere"), common_pb2.NOT_FOUND),
        "foreign organization": (seek(stranger, 0, 0), common_pb2.FORBIDDEN),
        "forged": (forged.SerializeToString(), common_pb2.FORBIDDEN),
        "expired": (seek(expired, 0, 0), common_pb2.BAD_REQUEST),
        "old request": (seek(home, 0, 0, timestamp_ns=old), common_pb2.BAD_REQUEST),
        "start after stop": (seek(home, 3, 2), common_pb2.BAD_REQUEST),
        "no start": (seek(home, None, 2), common_pb2.BAD_REQUEST),
        "not protobuf": (b"\xff", common_pb2.BAD_REQUEST),
    }
    async with network.channel(0) as channel:
        for name, (request, expected) in cases.items():
            found, status = await deliver(channel, request)
            assert (found, status) == ([], expected), name


async def test_readers_are_told_when_the_orderer_is_cut_off(make_network: NetworkFactory) -> None:
    network = await make_network(limits={"leaderless_grace_s": 1.0})
    alone = await network.follower()
    async with network.channel(alone) as channel:
        call = channel.stream_stream("/orderer.AtomicBroadcast/Deliver")()
        await call.write(seek(network.client, "next_commit", 2**64 - 1, wait=True))
        await network.stop(*(number for number in range(3) if number != alone))
        response = orderer_pb2.DeliverResponse.FromString(await call.read())
        assert response.status == common_pb2.SERVICE_UNAVAILABLE
        answers = await broadcast(channel, [network.envelope()])
        assert answers.statuses == [common_pb2.SERVICE_UNAVAILABLE]
        assert "no leader" in answers.infos[0]


async def test_joining(network: Network, make_network: NetworkFactory) -> None:
    other = await make_network(1)
    orderer = network.running()[0]
    # Again: nothing happens.
    assert await orderer.join(network.genesis) is orderer.channels[CHANNEL]
    with pytest.raises(JoinError, match="another first block"):
        await orderer.join(other.genesis)
    # Whoever is no consenter follows.
    stranger = Orderer(network.spare_settings())
    await stranger.start()
    try:
        assert isinstance(await stranger.join(network.genesis), Follower)
    finally:
        await stranger.stop()
    await until(lambda: orderer.channels[CHANNEL].leader != 0)
