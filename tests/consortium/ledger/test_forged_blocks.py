"""What a hostile orderer or member could put into a block: every peer gives it the same codes.

An honest orderer refuses an envelope whose author did not sign it (code 4). One that doesn't can
have it in a block, next to all others. Each of the three utilities' ledgers comes to the same
filter and the same commit hash, Fabric's, and nothing forged changes a key.

A member that endorses alone what goes into its own collection may sign any read-write set at all.
No such set stops a ledger, or what goes through it afterwards.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from consortium.identity.signing import Signer
from consortium.ledger import lifecycle
from consortium.ledger.ledger import Ledger
from consortium.ledger.snapshot import create_snapshot, join_by_snapshot
from consortium.ledger.state import key_hash
from consortium.ledger.verify import verify_ledger
from consortium.wire import common_pb2, kvrwset_pb2, peer_pb2, rwset_pb2
from consortium.wire.envelopes import transaction_id
from tests.network.forging import HighS, impostor

from .channel import (
    CHAINCODE,
    UTILITIES,
    Channel,
    Records,
    collection,
    private_set,
    public_set,
    version,
)
from .recorded import private_rwset

Codes = peer_pb2.TxValidationCode


def _signed_by(channel: Channel, raw: bytes, sign: Callable[[bytes], bytes]) -> bytes:
    envelope = common_pb2.Envelope.FromString(raw)
    envelope.signature = sign(envelope.payload)
    return envelope.SerializeToString()


def _headers(raw: bytes, change: Callable[[common_pb2.ChannelHeader], None], by: Signer) -> bytes:
    """With another channel header, signed again by its author."""
    payload = common_pb2.Payload.FromString(common_pb2.Envelope.FromString(raw).payload)
    header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    change(header)
    payload.header.channel_header = header.SerializeToString()
    data = payload.SerializeToString()
    return common_pb2.Envelope(payload=data, signature=by.sign(data)).SerializeToString()


def _created_by(raw: bytes, signer: Signer) -> bytes:
    """Passed off as someone else's, with an id that fits."""
    payload = common_pb2.Payload.FromString(common_pb2.Envelope.FromString(raw).payload)
    signature = common_pb2.SignatureHeader.FromString(payload.header.signature_header)
    signature.creator = signer.serialized
    payload.header.signature_header = signature.SerializeToString()
    header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    header.tx_id = transaction_id(signature.nonce, signature.creator)
    payload.header.channel_header = header.SerializeToString()
    data = payload.SerializeToString()
    return common_pb2.Envelope(payload=data, signature=signer.sign(data)).SerializeToString()


def test_every_ledger_gives_forgeries_the_same_codes(tmp_path: Path) -> None:
    channel = Channel()
    author = channel.clients["Aurora"]
    ledgers = {name: channel.open(tmp_path / name, name) for name in UTILITIES}
    first = ledgers["Aurora"]

    def commit_everywhere(*envelopes: bytes) -> bytes:
        block = channel.block(first, list(envelopes))
        codes = {ledger.commit(block).codes for ledger in ledgers.values()}
        assert len(codes) == 1
        assert len({ledger.commit_hash for ledger in ledgers.values()}) == 1
        return codes.pop()

    records = Records({})
    lifecycle.commit(
        lifecycle.ChaincodeDefinition(name=CHAINCODE, sequence=1, version="1.0"), records
    )
    definition = public_set(lifecycle.NAMESPACE, writes=records.written)
    assert (
        commit_everywhere(channel.transaction(definition, chaincode=lifecycle.NAMESPACE)) == b"\0"
    )

    def write(key: str, **options: object) -> bytes:
        return channel.transaction(public_set(writes={key: b"v"}), **options)  # type: ignore[arg-type]

    nonce = os.urandom(24)
    honest, again = write("a", nonce=nonce), write("b", nonce=nonce)
    assert commit_everywhere(honest) == b"\0"

    def far_off(header: common_pb2.ChannelHeader) -> None:
        header.timestamp.seconds += 10 * 365 * 86400

    def another_channel(header: common_pb2.ChannelHeader) -> None:
        header.channel_id = "elsewhere"

    def another_id(header: common_pb2.ChannelHeader) -> None:
        header.tx_id = "0" * 64

    stale = channel.transaction(public_set(reads={"a": (0, 7)}, writes={"s": b"v"}))
    ranged = public_set(writes={"p": b"v"})
    public = kvrwset_pb2.KVRWSet.FromString(ranged.ns_rwset[0].rwset)
    public.range_queries_info.add(start_key="a", end_key="z", itr_exhausted=True)
    ranged.ns_rwset[0].rwset = public.SerializeToString()
    phantom = channel.transaction(ranged)
    forged: list[tuple[bytes, str]] = [
        (_signed_by(channel, write("1"), lambda _: b"x"), "BAD_CREATOR_SIGNATURE"),
        (_signed_by(channel, write("2"), HighS(author).sign), "BAD_CREATOR_SIGNATURE"),
        (
            _signed_by(channel, write("3"), channel.clients["Boreal"].sign),
            "BAD_CREATOR_SIGNATURE",
        ),
        (_created_by(write("4"), impostor("AuroraMSP")), "BAD_CREATOR_SIGNATURE"),
        (_created_by(write("5"), impostor("DeltaMSP")), "BAD_CREATOR_SIGNATURE"),
        (_headers(write("6"), another_channel, author), "BAD_CREATOR_SIGNATURE"),
        (_headers(write("7"), far_off, author), "INVALID_ENDORSER_TRANSACTION"),
        (_headers(write("8"), another_id, author), "BAD_PROPOSAL_TXID"),
        (honest, "DUPLICATE_TXID"),
        (again, "DUPLICATE_TXID"),
        (write("9", endorsers=("Aurora",)), "ENDORSEMENT_POLICY_FAILURE"),
        (stale, "MVCC_READ_CONFLICT"),
        (phantom, "PHANTOM_READ_CONFLICT"),
    ]
    codes = commit_everywhere(*(raw for raw, _ in forged), write("z"))
    assert [Codes.Name(code) for code in codes] == [name for _, name in forged] + ["VALID"]
    assert {4, 5, 8, 9, 10, 11, 12} <= set(codes)
    for ledger in ledgers.values():
        with ledger.view() as view:
            found = [key for key, _ in view.range(CHAINCODE, "", "")]
        assert found == ["a", "z"]
        ledger.close()


def _commit_everywhere(channel: Channel, ledgers: dict[str, Ledger], *envelopes: bytes) -> bytes:
    """The codes of the next block, the same at every utility as are all effects."""
    block = channel.block(ledgers["Aurora"], list(envelopes))
    codes = {ledger.commit(block).codes for ledger in ledgers.values()}
    assert len(codes) == 1
    assert len({ledger.commit_hash for ledger in ledgers.values()}) == 1
    return codes.pop()


def _reading(namespace: str, public: kvrwset_pb2.KVRWSet) -> rwset_pb2.NsReadWriteSet:
    return rwset_pb2.NsReadWriteSet(namespace=namespace, rwset=public.SerializeToString())


def _naming(namespace: str, collection_name: str) -> rwset_pb2.NsReadWriteSet:
    """Nothing written, and yet a private write set that is said to be there."""
    return rwset_pb2.NsReadWriteSet(
        namespace=namespace,
        collection_hashed_rwset=[
            rwset_pb2.CollectionHashedReadWriteSet(
                collection_name=collection_name, pvt_rwset_hash=bytes(32)
            )
        ],
    )


def test_a_member_on_its_own_stops_nobody(tmp_path: Path) -> None:
    """Aurora may write to "own" by itself, and adds to its sets what no contract would do."""
    channel = Channel()
    ledgers = {name: channel.open(tmp_path / name, name) for name in UTILITIES}
    first = ledgers["Aurora"]
    records = Records({})
    collections = [collection("own", UTILITIES[:2], policy="OR('AuroraMSP.peer')")]
    lifecycle.commit(
        lifecycle.ChaincodeDefinition(
            name=CHAINCODE,
            sequence=1,
            version="1.0",
            collections=peer_pb2.CollectionConfigPackage(
                config=[
                    peer_pb2.CollectionConfig(static_collection_config=one) for one in collections
                ]
            ),
        ),
        records,
    )
    # And a contract that enough members defined, whose record says nothing.
    records.put("namespaces/fields/broken/Collections", b"\xff")
    records.put("namespaces/fields/broken2/Collections", b"\x0a\x01\xff")
    records.put("namespaces/metadata/broken", b"\xff")
    definition = public_set(lifecycle.NAMESPACE, writes=records.written)
    defining = channel.transaction(definition, chaincode=lifecycle.NAMESPACE)
    assert _commit_everywhere(channel, ledgers, defining) == b"\0"
    for ledger in ledgers.values():
        with ledger.view() as view:
            assert [one.name for one in lifecycle.definitions(view)] == [CHAINCODE]

    def with_values(rwset: rwset_pb2.TxReadWriteSet, private: bytes) -> bytes:
        """A transaction of Aurora's whose private values have been sent to the members."""
        raw = channel.transaction(rwset, ["Aurora"])
        payload = common_pb2.Payload.FromString(common_pb2.Envelope.FromString(raw).payload)
        header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
        kept = private_rwset(CHAINCODE, "own", private)
        for name in UTILITIES[:2]:
            ledgers[name].store_transient(header.tx_id, kept, first.height)
        return raw

    honest = with_values(*private_set("own", {"k": b"value", "l": b"other"}))
    assert _commit_everywhere(channel, ledgers, honest) == b"\0"
    number = first.height - 1
    # Deletes what the block doesn't say is deleted.
    deleting, _ = private_set("own", {"m": b"value"})
    _, private = private_set("own", {"m": b"value", "l": b""})
    told = deleting.ns_rwset[0].collection_hashed_rwset[0]
    told.pvt_rwset_hash = hashlib.sha256(private).digest()
    assert _commit_everywhere(channel, ledgers, with_values(deleting, private)) == b"\0"

    everything = kvrwset_pb2.KVRWSet(
        range_queries_info=[kvrwset_pb2.RangeQueryInfo(itr_exhausted=True)]
    )
    of_members = kvrwset_pb2.KVRWSet(
        reads=[kvrwset_pb2.KVRead(key="k", version=version((number, 0)))]
    )
    attacks = [
        (_reading(f"{CHAINCODE}$$hown", everything), "ILLEGAL_WRITESET"),
        # Only members have it, so that only they would find it as it was read.
        (_reading(f"{CHAINCODE}$$pown", of_members), "ILLEGAL_WRITESET"),
        (_naming("a\0b", lifecycle.implicit_collection("BorealMSP")), "ILLEGAL_WRITESET"),
        (_naming("ab", lifecycle.implicit_collection("BorealMSP")), "VALID"),
        (_naming("ab", "c\0d"), "VALID"),
        (_naming("a" * 70_000, "c"), "VALID"),
    ]
    for attack, code in attacks:
        rwset, _ = private_set("own", {"m": os.urandom(8)})
        rwset.ns_rwset.append(attack)
        codes = _commit_everywhere(channel, ledgers, channel.transaction(rwset, ["Aurora"]))
        assert [Codes.Name(one) for one in codes] == [code], attack
    # A key's hash that is only the beginning of another one's.
    for purged in (b"", key_hash("k")[:4]):
        rwset, _ = private_set("own", {})
        hashed = kvrwset_pb2.HashedRWSet(
            hashed_writes=[kvrwset_pb2.KVWriteHash(key_hash=purged, is_delete=True, is_purge=True)]
        )
        rwset.ns_rwset[0].collection_hashed_rwset[0].hashed_rwset = hashed.SerializeToString()
        assert _commit_everywhere(channel, ledgers, channel.transaction(rwset, ["Aurora"])) == b"\0"

    for name, ledger in ledgers.items():
        places = ledger.missing_private()
        expected = {(CHAINCODE, "own")} if name != "Cielo" else set()
        assert {(one.namespace, one.collection) for one in places} == expected
        if name != "Cielo":
            with ledger.view() as view:
                values = [view.get_private(CHAINCODE, "own", key) for key in "kl"]
            assert [one and one.value for one in values] == [b"value", b"other"]
        assert verify_ledger(ledger).problem is None
        snapshot = create_snapshot(ledger, tmp_path / f"{name}-snapshots")
        join_by_snapshot(snapshot.folder, tmp_path / f"{name}-again", msp_id=ledger.msp_id)
        ledger.close()
