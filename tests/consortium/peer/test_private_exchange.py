"""Private data between peers over real mutual TLS: who is sent them, who gets them, who doesn't."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from consortium.chaincode.simulator import SimulationError
from consortium.identity.certificates import certificate_pem, generate_key, key_pem
from consortium.identity.signing import Signer
from consortium.ledger import private_data
from consortium.ledger.ledger import Ledger
from consortium.ledger.private_data import PrivatePlace
from consortium.peer import private_exchange
from consortium.peer.access import NodesOnly
from consortium.peer.channel import ChannelPeer
from consortium.peer.discovery import Discovery, Member, OtherPeers
from consortium.peer.endorser import _simulator
from consortium.peer.private_exchange import (
    DistributionError,
    PrivateDataSettings,
    PrivateExchange,
    SettingsError,
    certificate_hash,
)
from consortium.peer.reconciliation import Reconciler
from consortium.storage.environment import StorageError, WriteTransaction
from consortium.wire import (
    common_pb2,
    gossip_pb2,
    gridledger_pb2,
    peer_pb2,
    rwset_pb2,
    services,
)
from tests.consortium.ledger.channel import (
    CHAINCODE,
    CHANNEL_ID,
    Channel,
    collection,
    private_set,
)
from tests.consortium.ledger.recorded import private_rwset
from tests.ports import free_ports

PEERS = ("aurora0", "aurora1", "boreal0", "cielo0")
SETTINGS = PrivateDataSettings(pull_retry_s=30, push_timeout_s=30)
SPACE = (CHAINCODE, "shared")


def _utility(name: str) -> str:
    return name[:-1].capitalize()


@dataclass
class Peer:
    """A peer with its service, and what it calls others with."""

    name: str
    channel: ChannelPeer
    exchange: PrivateExchange
    others: OtherPeers

    @property
    def ledger(self) -> Ledger:
        return self.channel.ledger

    def value(self, key: str = "k", name: str = "shared") -> bytes | None:
        with self.ledger.view() as view:
            found = view.get_private(CHAINCODE, name, key)
        return None if found is None else found.value

    async def knows_all(self) -> None:
        """Wait until every other peer has said how it is."""
        for _ in range(600):
            if len(await self.others.known(self.channel)) == len(PEERS) - 1:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{self.name} does not know all others")

    async def member(self, name: str) -> Member:
        """Another peer as this one knows it."""
        wanted = f"{name}.{_utility(name).lower()}.example"
        for member in await self.others.known(self.channel):
            identity = self.ledger.config.msps.identity(member.peer.identity)
            if identity.common_name == wanted:
                return member
        raise AssertionError(f"{self.name} does not know {name}")

    async def call(self, to: str, path: str, content: gridledger_pb2.PrivateDataRequest) -> str:
        """A request of this peer; what it was refused with."""
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.exchange._call(self.channel, await self.member(to), path, content, 5)
        return f"{error.value.code().name}: {error.value.details()}"


@dataclass
class World:
    """Aurora's two peers, Boreal's and Cielo's, on one chain that the tests make."""

    channel: Channel
    peers: dict[str, Peer]

    def __getitem__(self, name: str) -> Peer:
        return self.peers[name]

    async def commit(self, *envelopes: bytes, on: Sequence[str] = PEERS) -> int:
        """The next block of whoever has fewest, committed by these peers; its number."""
        block = self.channel.block(self[on[0]].ledger, envelopes)
        for name in on:
            committed = await self[name].channel.commit(block)
            assert committed.codes == bytes(len(envelopes))
        return block.header.number

    async def define(self, *collections: peer_pb2.StaticCollectionConfig, sequence: int) -> None:
        """A definition of the contract, in the same block everywhere."""
        first = self["aurora0"].ledger
        self.channel.deploy(
            first, policy="OR('AuroraMSP.peer')", collections=collections, sequence=sequence
        )
        block = common_pb2.Block.FromString(first.block(first.height - 1))
        for name in PEERS[1:]:
            await self[name].channel.commit(block)

    def transaction(
        self, writes: dict[str, bytes], name: str = "shared"
    ) -> tuple[bytes, str, rwset_pb2.TxPvtReadWriteSet]:
        """An envelope, its id, and what it writes to a collection."""
        rwset, private = private_set(name, writes)
        envelope = self.channel.transaction(rwset, endorsers=("Aurora",))
        payload = common_pb2.Payload.FromString(common_pb2.Envelope.FromString(envelope).payload)
        header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
        return envelope, header.tx_id, private_sets(name, private)

    async def distribute(
        self, name: str, transaction_id: str, private: rwset_pb2.TxPvtReadWriteSet
    ) -> None:
        """Send as this peer's endorser does."""
        peer = self[name]
        with peer.ledger.view() as view:
            configs = peer.exchange.collection_configs(
                view, peer.channel, private_exchange.spaces(private)
            )
        await peer.exchange.distribute(
            peer.channel, transaction_id, private, configs, peer.ledger.height
        )

    def holders(self, transaction_id: str) -> set[str]:
        """Who keeps something for a transaction that has not committed."""
        return {name for name, peer in self.peers.items() if peer.ledger.transient(transaction_id)}


def private_sets(name: str, private: bytes) -> rwset_pb2.TxPvtReadWriteSet:
    return rwset_pb2.TxPvtReadWriteSet.FromString(private_rwset(CHAINCODE, name, private))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    ports = dict(zip(PEERS, free_ports(len(PEERS)), strict=True))
    anchors: dict[str, list[int]] = {}
    for name, port in ports.items():
        anchors.setdefault(_utility(name), []).append(port)
    channel = Channel(anchors)
    bundle = b"".join(one.certificate_pem for one in channel.authorities.values())
    world = World(channel, {})
    async with AsyncExitStack() as stack:
        for name, port in ports.items():
            authority, msp_id = channel.authorities[_utility(name)], f"{_utility(name)}MSP"
            key, host = generate_key(), f"{name}.{_utility(name).lower()}.example"
            hosts = (host, "127.0.0.1")
            certificate = certificate_pem(
                authority.issue(host, "peer", key.public_key(), hosts=hosts)
            )
            signer = Signer(msp_id, certificate, key)
            if name == "aurora0":
                channel.peers["Aurora"] = signer  # who endorses what the tests commit
            ledger = Ledger.open(
                tmp_path / name, msp_id=msp_id, genesis=channel.genesis, durable=False
            )
            peer = ChannelPeer(ledger, signer)
            channels = {CHANNEL_ID: peer}
            pem = key_pem(key)

            def credentials(
                roots: bytes, pem: bytes = pem, certificate: bytes = certificate
            ) -> grpc.ChannelCredentials:
                return grpc.ssl_channel_credentials(roots, pem, certificate)

            address = f"127.0.0.1:{port}"
            others = OtherPeers(signer, credentials, address, lambda pem=certificate: pem)
            exchange = PrivateExchange(channels, signer, others, SETTINGS)
            peer.private_data = exchange
            admit = NodesOnly(channels)
            server = grpc.aio.server(options=services.NODE_SERVER_OPTIONS)
            server.add_generic_rpc_handlers(
                (exchange.handler(admit), Discovery(channels, signer, address).handler(admit))
            )
            server.add_secure_port(
                address,
                grpc.ssl_server_credentials([(pem, certificate)], bundle, require_client_auth=True),
            )
            await server.start()
            stack.push_async_callback(peer.stop)
            stack.push_async_callback(server.stop, 0)
            stack.push_async_callback(others.close)
            world.peers[name] = Peer(name, peer, exchange, others)
        await world.define(
            collection("shared", ["Aurora", "Boreal"], peers=(1, 3)),
            collection("strict", ["Aurora", "Boreal"], peers=(3, 3)),
            collection("boreal", ["Boreal"], peers=(0, 0)),
            sequence=1,
        )
        for peer in world.peers.values():
            await peer.knows_all()
        yield world


# --- push -------------------------------------------------------------------------------------


async def test_every_other_member_is_sent_it_and_nobody_else(world: World) -> None:
    envelope, transaction_id, private = world.transaction({"k": b"value"})
    await world.distribute("aurora0", transaction_id, private)
    assert world.holders(transaction_id) == {"aurora1", "boreal0"}
    world["aurora0"].ledger.store_transient(transaction_id, private.SerializeToString(), 1)
    await world.commit(envelope)
    for name in ("aurora0", "aurora1", "boreal0"):
        assert world[name].value() == b"value"
        assert world[name].ledger.missing_private() == []
    assert world.holders(transaction_id) == set()


async def test_fewer_peers_than_required_are_a_refusal(world: World) -> None:
    _, transaction_id, private = world.transaction({"k": b"value"}, "strict")
    with pytest.raises(DistributionError) as error:
        await world.distribute("aurora0", transaction_id, private)
    assert str(error.value) == (
        f"failed to distribute private collection, txID {transaction_id}, channel {CHANNEL_ID}: "
        "could not build private data dissemination plan for chaincode energy and collection "
        "strict: required to disseminate to at least 3 peers, but know of only 2 eligible peers"
    )
    assert world.holders(transaction_id) == set()


async def test_who_does_not_acknowledge_does_not_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boreal has no room; Aurora's second peer alone is not enough where two are required."""
    boreal = world["boreal0"].ledger
    await world.define(collection("shared", ["Aurora", "Boreal"], peers=(2, 2)), sequence=2)
    waiting = private_sets("shared", b"").SerializeToString()
    for number in range(private_data.TRANSIENT_SETS_PER_TRANSACTION):
        data = rwset_pb2.TxPvtReadWriteSet.FromString(waiting)
        data.ns_pvt_rwset[0].namespace = str(number)
        boreal.store_transient("0" * 64, data.SerializeToString(), 1, "AuroraMSP")
    _, _, private = world.transaction({"k": b"value"})
    with pytest.raises(DistributionError, match="Failed disseminating 1 out of 2 private") as error:
        await world.distribute("aurora0", "0" * 64, private)
    assert "64 private read-write sets of AuroraMSP waiting" in str(error.value)


async def test_an_endorser_outside_needs_a_member_that_keeps_it(world: World) -> None:
    """Aurora does not belong to Boreal's collection: it has nothing to keep, and Boreal all."""
    _, transaction_id, private = world.transaction({"k": b"value"}, "boreal")
    await world.distribute("aurora0", transaction_id, private)
    assert world.holders(transaction_id) == {"boreal0"}


async def test_an_organizations_own_collection_is_spread_as_its_operator_says(
    world: World,
) -> None:
    name = "_implicit_org_AuroraMSP"
    _, transaction_id, private = world.transaction({"k": b"value"}, name)
    await world.distribute("aurora0", transaction_id, private)
    assert world.holders(transaction_id) == {"aurora1"}
    world["aurora0"].exchange.settings = PrivateDataSettings(
        implicit_required_peers=2, implicit_maximum_peers=2
    )
    with pytest.raises(DistributionError, match="at least 2 peers, but know of only 1"):
        await world.distribute("aurora0", transaction_id, private)


async def test_nobody_keeps_what_is_not_its_own(world: World) -> None:
    push = gridledger_pb2.PrivateDataPush(
        payloads=[
            gossip_pb2.PrivatePayload(
                namespace=CHAINCODE, collection_name="shared", tx_id="0" * 64, private_rwset=b""
            )
        ]
    )
    request = gridledger_pb2.PrivateDataRequest(push=push)
    refusal = await world["aurora0"].call("cielo0", services.PRIVATE_PUSH, request)
    assert "PERMISSION_DENIED: CieloMSP is no member of collection shared of energy" in refusal
    assert world.holders("0" * 64) == set()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tx_id": "no id"}, "INVALID_ARGUMENT: 'no id' is no transaction id"),
        ({"collection_name": "none"}, "FAILED_PRECONDITION: collection none of energy is not"),
        ({"private_rwset": b"\xff"}, "INVALID_ARGUMENT: the private write set is not a valid"),
        (
            {"private_rwset": bytes(private_exchange.MAX_SET_BYTES + 1)},
            "RESOURCE_EXHAUSTED: a private write set of 16777217 bytes is too large",
        ),
    ],
)
async def test_a_push_that_cannot_be(
    world: World, change: dict[str, object], sentence: str
) -> None:
    good = {"namespace": CHAINCODE, "collection_name": "shared", "tx_id": "0" * 64}
    payload = gossip_pb2.PrivatePayload(**(good | change))  # type: ignore[arg-type]
    request = gridledger_pb2.PrivateDataRequest(
        push=gridledger_pb2.PrivateDataPush(payloads=[payload])
    )
    assert sentence in await world["aurora0"].call("boreal0", services.PRIVATE_PUSH, request)


# --- pull -------------------------------------------------------------------------------------


async def test_what_was_never_sent_is_asked_for_before_the_commit(world: World) -> None:
    """Of who endorsed it, before its commit; and of who has committed it, after."""
    envelope, transaction_id, private = world.transaction({"k": b"value"})
    world["aurora0"].ledger.store_transient(transaction_id, private.SerializeToString(), 1)
    await world.commit(envelope, on=("boreal0", "aurora0", "aurora1", "cielo0"))
    for name in ("aurora0", "aurora1", "boreal0"):
        assert world[name].value() == b"value"
        assert world[name].ledger.missing_private() == []
    assert world["cielo0"].ledger.private_sets(world["cielo0"].ledger.height - 1) == []


async def test_a_block_does_not_wait_for_ever_and_the_rest_comes_later(world: World) -> None:
    """Nobody has it yet: the block is committed. Then somebody does: it is reconciled."""
    envelope, transaction_id, private = world.transaction({"k": b"value"})
    boreal = world["boreal0"]
    boreal.exchange.settings = PrivateDataSettings(pull_retry_s=0.5)
    number = await world.commit(envelope, on=("boreal0",))
    place = PrivatePlace(number, 0, *SPACE)
    assert boreal.ledger.missing_private() == [place]
    assert boreal.channel.data_missing.is_set()
    reconciler = Reconciler(boreal.channel, boreal.exchange)
    assert await reconciler.once() == 0
    block = common_pb2.Block.FromString(boreal.ledger.block(number))
    world["aurora1"].ledger.store_transient(transaction_id, private.SerializeToString(), 1)
    await world["aurora1"].channel.commit(block)
    assert await reconciler.once() == 1
    assert boreal.value() == b"value"
    assert await reconciler.once() == 0


async def test_a_new_member_is_given_the_past(world: World) -> None:
    numbers = []
    for at in range(3):
        envelope, transaction_id, private = world.transaction({"k": b"%d" % at})
        world["aurora0"].ledger.store_transient(transaction_id, private.SerializeToString(), 1)
        numbers.append(await world.commit(envelope))
    cielo = world["cielo0"]
    reconciler = Reconciler(cielo.channel, cielo.exchange)
    assert await reconciler.once() == 0
    await world.define(collection("shared", ["Aurora", "Boreal", "Cielo"]), sequence=2)
    assert await reconciler.once() == 3
    assert cielo.value() == b"2"
    assert [cielo.ledger.private_set(PrivatePlace(n, 0, *SPACE)) for n in numbers] == [
        world["boreal0"].ledger.private_set(PrivatePlace(n, 0, *SPACE)) for n in numbers
    ]


async def test_foreign_data_are_refused(world: World) -> None:
    """Committed or not, present in the chain or not: who doesn't belong learns nothing of it."""
    envelope, transaction_id, private = world.transaction({"k": b"value"})
    for name in ("aurora0", "aurora1", "boreal0"):
        world[name].ledger.store_transient(transaction_id, private.SerializeToString(), 1)

    async def refusal(number: int, name: str = "shared") -> str:
        digest = gossip_pb2.PvtDataDigest(
            tx_id=transaction_id, namespace=CHAINCODE, collection=name, block_seq=number
        )
        request = gridledger_pb2.PrivateDataRequest(
            pull=gossip_pb2.RemotePvtDataRequest(digests=[digest])
        )
        return await world["cielo0"].call("aurora0", services.PRIVATE_PULL, request)

    denied = (
        "PERMISSION_DENIED: cielo0.cielo.example of CieloMSP does not belong to collection "
        "{} of energy, neither now nor at block {}"
    )
    waiting = world["aurora0"].ledger.height
    assert denied.format("shared", waiting) in await refusal(waiting)
    number = await world.commit(envelope)
    assert denied.format("shared", number) in await refusal(number)
    assert denied.format("none", number) in await refusal(number, "none")
    place = PrivatePlace(number, 0, *SPACE)
    cielo = world["cielo0"]
    aurora = await cielo.member("aurora0")
    assert await cielo.exchange.ask(cielo.channel, aurora, [(place, transaction_id)]) == {}


async def test_who_was_a_member_at_the_block_still_gets_it(world: World) -> None:
    """And nothing of what was written after it left."""
    envelope, transaction_id, private = world.transaction({"k": b"then"})
    world["aurora0"].ledger.store_transient(transaction_id, private.SerializeToString(), 1)
    then = await world.commit(envelope, on=("aurora0", "aurora1", "cielo0"))
    block = common_pb2.Block.FromString(world["aurora0"].ledger.block(then))
    world["boreal0"].channel.private_data = None  # it was cut off at that moment
    await world["boreal0"].channel.commit(block)
    await world.define(collection("shared", ["Aurora"]), sequence=2)
    boreal = world["boreal0"]
    assert await Reconciler(boreal.channel, boreal.exchange).once() == 1
    envelope, transaction_id, private = world.transaction({"k": b"now"})
    world["aurora0"].ledger.store_transient(transaction_id, private.SerializeToString(), 1)
    now = await world.commit(envelope)
    aurora = await boreal.member("aurora0")
    for number, answer in ((then, True), (now, False)):
        place = PrivatePlace(number, 0, *SPACE)
        got = await boreal.exchange.ask(boreal.channel, aurora, [(place, "")])
        assert bool(got) is answer


async def test_who_sends_wrong_data_is_named_and_ignored(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one is asked, and the liar left alone for a while."""
    envelope, transaction_id, private = world.transaction({"k": b"value"})
    forged = private_set("shared", {"k": b"forged"})[1]
    world["aurora0"].ledger.store_transient(transaction_id, private.SerializeToString(), 1)
    number = await world.commit(envelope, on=("aurora0", "aurora1"))
    place = PrivatePlace(number, 0, *SPACE)

    def forge(transaction: WriteTransaction) -> None:
        transaction.put(private_data.SETS, place.to_key(), forged)

    world["aurora0"].ledger._environment.write(forge)
    block = common_pb2.Block.FromString(world["aurora0"].ledger.block(number))
    with caplog.at_level(logging.WARNING):
        await world["boreal0"].channel.commit(block)
    assert world["boreal0"].value() == b"value"
    liar = await world["boreal0"].member("aurora0")
    said = [
        one.getMessage() for one in caplog.records if "values that are not those" in one.message
    ]
    assert len(said) == 1
    assert f"peer {liar.address} of AuroraMSP sent the private write set" in said[0]
    sources = await world["boreal0"].exchange.sources(world["boreal0"].channel, SPACE, number)
    assert [one.address for one in sources] == [(await world["boreal0"].member("aurora1")).address]


async def test_limits_of_a_pull(world: World) -> None:
    digests = [gossip_pb2.PvtDataDigest(namespace=CHAINCODE, collection="shared", block_seq=1)] * (
        private_exchange.MAX_DIGESTS + 1
    )
    request = gridledger_pb2.PrivateDataRequest(
        pull=gossip_pb2.RemotePvtDataRequest(digests=digests)
    )
    refusal = await world["aurora0"].call("boreal0", services.PRIVATE_PULL, request)
    assert "INVALID_ARGUMENT: 101 private write sets in a request: 1 to 100 are allowed" in refusal
    beyond = gossip_pb2.PvtDataDigest(namespace=CHAINCODE, collection="shared", block_seq=2**63)
    request.pull.ClearField("digests")
    request.pull.digests.append(beyond)
    refusal = await world["aurora0"].call("boreal0", services.PRIVATE_PULL, request)
    assert "INVALID_ARGUMENT: there is no transaction 0 in a block" in refusal


# --- who asks ---------------------------------------------------------------------------------


async def test_a_request_is_of_use_to_its_sender_alone(world: World) -> None:
    """Cielo cannot pass on what Boreal signed, nor sign in Boreal's name, nor as a client."""
    boreal, cielo = world["boreal0"], world["cielo0"]
    envelope, transaction_id, private = world.transaction({"k": b"value"})
    world["aurora0"].ledger.store_transient(transaction_id, private.SerializeToString(), 1)
    number = await world.commit(envelope)
    aurora = await cielo.member("aurora0")
    connection = cielo.others.connection(cielo.channel, aurora)
    pull: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.channel.unary_unary(
        services.PRIVATE_PULL
    )
    own_certificate = boreal.channel.signer.certificate_pem

    async def refused(certificate: bytes, identity: Signer, signer: Signer) -> str:
        payload = gridledger_pb2.PrivateDataRequest(
            channel_id=CHANNEL_ID,
            tls_certificate_hash=certificate_hash(certificate),
            pull=gossip_pb2.RemotePvtDataRequest(
                digests=[
                    gossip_pb2.PvtDataDigest(
                        namespace=CHAINCODE, collection="shared", block_seq=number
                    )
                ]
            ),
        ).SerializeToString()
        request = gridledger_pb2.NodeRequest(
            payload=payload, identity=identity.serialized, signature=signer.sign(payload)
        ).SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await pull(request, timeout=60)
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
        return error.value.details() or ""

    signer, other = boreal.channel.signer, cielo.channel.signer
    assert "signed this request for another connection" in await refused(
        own_certificate, signer, signer
    )
    assert "does not hold" in await refused(other.certificate_pem, signer, other)
    client = world.channel.clients["Boreal"]
    assert "is no peer of the channel's members" in await refused(
        other.certificate_pem, client, client
    )


async def test_an_unknown_channel_and_broken_requests(world: World) -> None:
    aurora = world["aurora0"]
    boreal = await aurora.member("boreal0")
    connection = aurora.others.connection(aurora.channel, boreal)
    for path in (services.PRIVATE_PULL, services.PRIVATE_PUSH):
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.channel.unary_unary(path)
        for raw, code in (
            (b"", grpc.StatusCode.NOT_FOUND),
            (b"\xff", grpc.StatusCode.INVALID_ARGUMENT),
            (
                gridledger_pb2.NodeRequest(payload=b"\xff").SerializeToString(),
                grpc.StatusCode.INVALID_ARGUMENT,
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(raw, timeout=60)
            assert error.value.code() is code
            assert error.value.details()


async def test_too_many_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_exchange, "MAX_CALLS", 0)
    request = gridledger_pb2.PrivateDataRequest()
    refusal = await world["aurora0"].call("boreal0", services.PRIVATE_PULL, request)
    assert "RESOURCE_EXHAUSTED: this peer serves 0 requests for private data at once" in refusal


# --- what contracts may do --------------------------------------------------------------------


async def test_member_only_collections(world: World) -> None:
    """By way of a contract, and with Fabric's sentences; hashes are everybody's."""
    configs = []
    for name, read, write in (("readers", True, False), ("writers", False, True)):
        config = collection(name, ["Aurora"])
        config.member_only_read, config.member_only_write = read, write
        configs.append(config)
    await world.define(*configs, sequence=2)
    peer = world["aurora0"]
    msps = peer.ledger.config.msps
    ours = msps.identity(world.channel.clients["Aurora"].serialized)
    theirs = msps.identity(world.channel.clients["Cielo"].serialized)
    read = "tx creator does not have read access permission on privatedata in chaincodeName:energy"
    write = (
        "tx creator does not have write access permission on privatedata in chaincodeName:energy"
    )
    with peer.ledger.view() as view:
        simulator = _simulator(view, peer.channel, ours)
        assert simulator.get_private(CHAINCODE, "readers", "k") is None
        simulator.put_private(CHAINCODE, "writers", "k", b"v")
        simulator.purge_private(CHAINCODE, "writers", "k")
        simulator = _simulator(view, peer.channel, theirs)
        assert simulator.get_private_hash(CHAINCODE, "readers", "k") is None
        assert simulator.get_private(CHAINCODE, "writers", "k") is None
        for denied in (
            lambda: simulator.get_private(CHAINCODE, "readers", "k"),
            lambda: simulator.get_private_metadata(CHAINCODE, "readers", "k"),
            lambda: simulator.range_private(CHAINCODE, "readers", "", ""),
        ):
            with pytest.raises(SimulationError, match=f"{read} collectionName: readers"):
                denied()
        simulator.put_private(CHAINCODE, "readers", "k", b"v")
        for forbidden in (
            lambda: simulator.put_private(CHAINCODE, "writers", "k", b"v"),
            lambda: simulator.del_private(CHAINCODE, "writers", "k"),
            lambda: simulator.purge_private(CHAINCODE, "writers", "k"),
            lambda: simulator.put_private_metadata(CHAINCODE, "writers", "k", {}),
        ):
            with pytest.raises(SimulationError, match=f"{write} collectionName: writers"):
                forbidden()


# --- settings ---------------------------------------------------------------------------------


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "private-data.json"
    assert PrivateDataSettings.load(path) == PrivateDataSettings()
    path.write_text('{"reconcile_s": 2.5, "implicit_required_peers": 1}')
    assert PrivateDataSettings.load(path) == PrivateDataSettings(
        reconcile_s=2.5, implicit_required_peers=1
    )
    for text, sentence in (
        ("{", "is not valid JSON"),
        ("[]", "must be a JSON object with some of implicit_required_peers"),
        ('{"pull": 1}', "must be a JSON object with some of"),
        ('{"pull_retry_s": -1}', "pull_retry_s is -1, but must be 0 to 3600"),
        ('{"implicit_maximum_peers": 1.5}', "implicit_maximum_peers is 1.5, but must be"),
        ('{"implicit_required_peers": 2}', "is less than implicit_required_peers"),
    ):
        path.write_text(text)
        with pytest.raises(SettingsError, match=sentence):
            PrivateDataSettings.load(path)


async def test_a_peer_stops_although_asking_fails_at_that_moment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where the disk is what the peer stops for."""
    peer = world["boreal0"]
    asking = asyncio.Event()

    async def fail(*_: object) -> None:
        asking.set()
        try:
            await asyncio.sleep(300)
        except asyncio.CancelledError:
            raise StorageError("the disk is gone") from None

    monkeypatch.setattr(peer.exchange, "_fetch_space", fail)
    envelope, _, _ = world.transaction({"k": b"value"})
    block = world.channel.block(peer.ledger, [envelope])

    async def follow() -> None:
        await peer.channel.commit(block)
        await asyncio.sleep(300)

    following = asyncio.create_task(follow())
    await asking.wait()
    following.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait([following])
    assert following.cancelled()
