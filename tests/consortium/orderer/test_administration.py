"""What an orderer's own administrators may ask of it, and that nobody else may."""

import ssl
from pathlib import Path

import aiohttp
import grpc
import pytest

from consortium.identity.certificates import certificate_pem, generate_key, key_pem
from consortium.identity.signing import Signer
from consortium.orderer.participation import ParticipationService
from consortium.wire import common_pb2, gridledger_pb2, services
from consortium.wire.envelopes import channel_header, signed_envelope
from tests.consortium.orderer.consenters import PATIENCE_S, chain_of, send, update
from tests.consortium.orderer.network import CHANNEL, Network, until

type Act = gridledger_pb2.OrdererAct


def signed(signer: Signer, act: Act, *, timestamp_ns: int | None = None) -> bytes:
    header = channel_header(common_pb2.MESSAGE, CHANNEL, timestamp_ns=timestamp_ns)
    return signed_envelope(signer, header, act.SerializeToString()).SerializeToString()


async def ask(network: Network, number: int, request: bytes) -> gridledger_pb2.OrdererAnswer:
    async with network.channel(number) as connection:
        raw = await connection.unary_unary(services.ORDERER_ACT)(request, timeout=60)
    return gridledger_pb2.OrdererAnswer.FromString(raw)


def transfer(network: Network, number: int, to: int = 0) -> Act:
    return gridledger_pb2.OrdererAct(
        organization=network.utilities[number].msp_id,
        transfer=gridledger_pb2.TransferLeadership(channel=CHANNEL, to=to),
    )


async def test_leadership_is_handed_over(network: Network) -> None:
    leader = await network.leader()
    admin = network.utilities[leader].signer("admin", "admin")
    heir = await network.follower()
    request = signed(admin, transfer(network, leader, heir + 1))
    await ask(network, leader, request)
    await until(lambda: chain_of(network.orderers[heir]).is_leader, PATIENCE_S)
    # The same request is taken once; another one is no use at a follower.
    for again, words in (
        (request, "carried out already"),
        (signed(admin, transfer(network, leader)), "does not lead"),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match=words):
            await ask(network, leader, again)
    heirs = network.utilities[heir].signer("admin", "admin")
    for to, words in ((heir + 1, "leads already"), (9, "no voting consenter")):
        with pytest.raises(grpc.aio.AioRpcError, match=words):
            await ask(network, heir, signed(heirs, transfer(network, heir, to)))
    query = gridledger_pb2.OrdererAct(
        organization=network.utilities[heir].msp_id, status=gridledger_pb2.OrdererStatusQuery()
    )
    (channel,) = (await ask(network, heir, signed(heirs, query))).channels
    assert (channel.name, channel.status, channel.consensus_relation) == (
        CHANNEL,
        "active",
        "consenter",
    )
    assert (channel.raft_id, channel.leader) == (heir + 1, heir + 1)
    assert [one.part for one in channel.members] == ["voter"] * 3


async def test_only_administrators_of_the_orderers_own_organization(network: Network) -> None:
    own, other = network.utilities[0], network.utilities[1]
    act = transfer(network, 0)
    forged = common_pb2.Envelope.FromString(signed(own.signer("admin", "admin"), act))
    forged.signature = other.signer("admin", "admin").sign(forged.payload)
    denied, invalid = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT
    cases = {
        "another utility's admin": (signed(other.signer("admin", "admin"), act), denied),
        "a client of the own": (signed(own.signer("home", "client"), act), denied),
        "the orderer itself": (signed(own.signer("orderer", "orderer"), act), denied),
        "an expired admin": (signed(own.signer("late", "admin", valid_days=0), act), denied),
        "a forged signature": (forged.SerializeToString(), denied),
        "an old request": (signed(own.signer("admin", "admin"), act, timestamp_ns=1), invalid),
        "meant for another": (
            signed(own.signer("admin", "admin"), transfer(network, 1)),
            invalid,
        ),
        "not protobuf": (b"\xff", invalid),
    }
    for name, (request, code) in cases.items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(network, 0, request)
        assert refused.value.code() == code, (name, refused.value)


async def test_joining_and_leaving(network: Network) -> None:
    admin = network.utilities[0].signer("admin", "admin")
    organization = network.utilities[0].msp_id
    join = gridledger_pb2.OrdererAct(
        organization=organization, join=network.genesis.SerializeToString()
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(network, 0, signed(admin, join))
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    remove = gridledger_pb2.OrdererAct(organization=organization, remove=CHANNEL)
    assert not (await ask(network, 0, signed(admin, remove))).channels
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(network, 0, signed(admin, remove))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert network.running()[0].has_left(network.genesis)
    # Its log is gone with it: under its old id it must not vote again.
    (channel,) = (await ask(network, 0, signed(admin, join))).channels
    assert channel.name == CHANNEL
    orderer = network.running()[0]
    await until(lambda: orderer.channel_info(CHANNEL).status == "failed", PATIENCE_S)
    assert "remove this consenter" in orderer.channel_info(CHANNEL).problem


async def test_an_administrator_whom_a_channel_calls_revoked(
    network: Network, tmp_path: Path
) -> None:
    """An orderer's own settings know no revocation list; its channels do."""
    await network.leader()
    utility, settings = network.utilities[0], network.settings[0]
    orderer = network.orderers[0]
    assert orderer is not None
    assert settings.administrators is not None
    (tmp_path / "tls.cert.pem").write_bytes(settings.tls_certificate_pem)
    (tmp_path / "tls.key.pem").write_bytes(settings.tls_key_pem)
    service = ParticipationService(
        orderer,
        host="127.0.0.1",
        port=0,
        tls_certificate=tmp_path / "tls.cert.pem",
        tls_key=tmp_path / "tls.key.pem",
        client_roots_pem=utility.authority.certificate_pem,
        administrators=settings.administrators,
    )
    await service.start()

    async def rest(name: str, certificate: bytes, key: bytes) -> tuple[int, str]:
        (tmp_path / f"{name}.pem").write_bytes(certificate + key)
        tls = ssl.create_default_context(cadata=network.roots.decode())
        tls.load_cert_chain(tmp_path / f"{name}.pem")
        url = f"https://127.0.0.1:{service.port}/participation/v1/channels"
        async with aiohttp.ClientSession() as session, session.get(url, ssl=tls) as answer:
            return answer.status, await answer.text()

    key = generate_key()
    stolen = utility.authority.issue("stolen", "admin", key.public_key())
    signer = Signer(utility.msp_id, certificate_pem(stolen), key)
    query = gridledger_pb2.OrdererAct(
        organization=utility.msp_id, status=gridledger_pb2.OrdererStatusQuery()
    )
    try:
        assert (await rest("stolen", certificate_pem(stolen), key_pem(key)))[0] == 200
        assert (await ask(network, 0, signed(signer, query))).channels

        def revoke(group: common_pb2.ConfigGroup) -> None:
            listed = [utility.authority.revocation_list([stolen.serial_number])]
            config = chain_of(network.orderers[0]).config
            wanted = config.with_revocation_lists(utility.msp_id, listed)
            group.CopyFrom(wanted.channel_group)

        answers = await send(network, update(network, revoke))
        assert answers.statuses == [common_pb2.SUCCESS], answers
        await network.same_height()
        status, text = await rest("stolen", certificate_pem(stolen), key_pem(key))
        assert (status, "is revoked" in text) == (403, True), text
        with pytest.raises(grpc.aio.AioRpcError, match="is revoked"):
            await ask(network, 0, signed(signer, query))
        other = generate_key()
        admin = utility.authority.issue("admin", "admin", other.public_key())
        assert (await rest("admin", certificate_pem(admin), key_pem(other)))[0] == 200
    finally:
        await service.stop()
