"""What a hostile orderer could put into a block: every peer gives it the same codes, Fabric's.

An honest orderer refuses an envelope whose author did not sign it (code 4). One that doesn't can
have it in a block, next to all others. Each of the three utilities' ledgers comes to the same
filter and the same commit hash, and nothing forged changes a key.
"""

import os
from collections.abc import Callable
from pathlib import Path

from consortium.identity.signing import Signer
from consortium.ledger import lifecycle
from consortium.wire import common_pb2, kvrwset_pb2, peer_pb2
from consortium.wire.envelopes import transaction_id
from tests.network.forging import HighS, impostor

from .channel import CHAINCODE, UTILITIES, Channel, Records, public_set

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
