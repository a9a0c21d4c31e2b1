"""Private data on one peer's ledger: what a block needs, what comes later, what is taken away."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from consortium.ledger import private_data
from consortium.ledger.ledger import Ledger, ValidatedBlock
from consortium.ledger.private_data import (
    IncompleteSetError,
    PrivateDataError,
    PrivatePlace,
)
from consortium.ledger.state import PrivateDataUnavailableError, key_hash
from consortium.ledger.validator import BlockError
from consortium.ledger.verify import verify_ledger
from consortium.wire import common_pb2, kvrwset_pb2, rwset_pb2

from .channel import CHAINCODE, Channel, collection, private_set, public_set
from .recorded import private_rwset

BOTH = "AND('AuroraMSP.peer', 'BorealMSP.peer')"


@pytest.fixture(scope="module")
def channel() -> Channel:
    return Channel()


@pytest.fixture
def boreal(channel: Channel, tmp_path: Path) -> Iterator[Ledger]:
    """Boreal's peer; it belongs to "shared", and to "aurora" only later."""
    with channel.open(tmp_path / "ledger", "Boreal") as ledger:
        _deploy(channel, ledger)
        yield ledger


def _deploy(
    channel: Channel, ledger: Ledger, aurora: tuple[str, ...] = ("Aurora",), sequence: int = 1
) -> None:
    channel.deploy(
        ledger,
        policy=BOTH,
        sequence=sequence,
        collections=[
            collection("shared", ["Aurora", "Boreal"]),
            collection("aurora", aurora),
        ],
    )


def _write(
    channel: Channel,
    ledger: Ledger,
    name: str,
    writes: dict[str, bytes],
    *,
    purges: tuple[str, ...] = (),
    here: bool = False,
) -> tuple[PrivatePlace, bytes]:
    """Commit a block that writes to a collection; `here`: with the values."""
    rwset, private = private_set(name, writes, purges=purges)
    block = channel.block(ledger, [channel.transaction(rwset)])
    validated = ledger.validate(block)
    assert isinstance(validated, ValidatedBlock)
    place = PrivatePlace(block.header.number, 0, CHAINCODE, name)
    committed = ledger.commit_validated(validated, {place: private} if here else {})
    assert committed.codes == b"\0"
    return place, private


def _value(ledger: Ledger, name: str, key: str) -> bytes | None:
    with ledger.view() as view:
        found = view.get_private(CHAINCODE, name, key)
    return None if found is None else found.value


# --- what a block needs -----------------------------------------------------------------------


def test_a_block_names_what_it_needs_and_takes_what_fits(channel: Channel, boreal: Ledger) -> None:
    rwset, private = private_set("shared", {"k": b"value"})
    other, _ = private_set("aurora", {"k": b"not ours"})
    block = channel.block(boreal, [channel.transaction(rwset), channel.transaction(other)])
    validated = boreal.validate(block)
    assert isinstance(validated, ValidatedBlock)
    assert boreal.height == block.header.number  # nothing is stored yet
    (wanted,) = validated.wanted
    assert wanted.place == PrivatePlace(block.header.number, 0, CHAINCODE, "shared")
    assert wanted.expected.private_hash == hashlib.sha256(private).digest()
    assert wanted.endorsers == tuple(
        channel.peers[name].serialized for name in ("Aurora", "Boreal")
    )
    boreal.commit_validated(validated, {wanted.place: private})
    assert _value(boreal, "shared", "k") == b"value"
    assert boreal.missing_private() == []
    assert verify_ledger(boreal).problem is None


def test_what_does_not_have_the_blocks_hash_is_missing(channel: Channel, boreal: Ledger) -> None:
    rwset, _ = private_set("shared", {"k": b"value"})
    validated = boreal.validate(channel.block(boreal, [channel.transaction(rwset)]))
    assert isinstance(validated, ValidatedBlock)
    place = validated.wanted[0].place
    boreal.commit_validated(validated, {place: private_set("shared", {"k": b"forged"})[1]})
    assert boreal.missing_private() == [place]
    with pytest.raises(PrivateDataUnavailableError):
        _value(boreal, "shared", "k")


def test_nothing_is_asked_for_an_invalid_transaction(channel: Channel, boreal: Ledger) -> None:
    """Else anybody could make peers wait for data that nobody has."""
    rwset, _ = private_set("shared", {"k": b"value"})
    unendorsed = channel.transaction(rwset, endorsers=("Aurora",))
    validated = boreal.validate(channel.block(boreal, [unendorsed]))
    assert isinstance(validated, ValidatedBlock)
    assert validated.outcome.codes != b"\0"
    assert validated.wanted == ()


def test_a_block_validated_before_another_one_was_committed(
    channel: Channel, boreal: Ledger
) -> None:
    block = channel.block(boreal, [channel.transaction(public_set(writes={"a": b"1"}))])
    validated = boreal.validate(block)
    assert isinstance(validated, ValidatedBlock)
    boreal.commit(block)
    with pytest.raises(BlockError, match="validate it again"):
        boreal.commit_validated(validated, {})


# --- what comes later -------------------------------------------------------------------------


def test_reconciling_twice_changes_nothing(channel: Channel, boreal: Ledger) -> None:
    place, old = _write(channel, boreal, "shared", {"k": b"old"})
    boreal.reconcile(place, old)
    assert _value(boreal, "shared", "k") == b"old"
    boreal.reconcile(place, old)
    boreal.reconcile(place, b"whatever comes for what is there already")
    assert _value(boreal, "shared", "k") == b"old"
    assert boreal.private_set(place) == old


def test_a_new_member_gets_what_was_written_before(channel: Channel, boreal: Ledger) -> None:
    """Places of the past become missing in bounded steps; values become state while current."""
    written = [
        _write(channel, boreal, "aurora", {"k": b"%d" % at, f"only-{at}": b"once"})
        for at in range(5)
    ]
    assert boreal.missing_private() == []
    assert boreal.make_eligible() == 0
    _deploy(channel, boreal, ("Aurora", "Boreal"), sequence=2)
    assert [boreal.make_eligible(2) for _ in range(4)] == [2, 2, 1, 0]
    assert boreal.missing_private() == [place for place, _ in written]
    assert boreal.missing_private(2, after=written[1][0]) == [place for place, _ in written[2:4]]
    for place, data in written:
        boreal.reconcile(place, data)
    assert _value(boreal, "aurora", "k") == b"4"
    assert [_value(boreal, "aurora", f"only-{at}") for at in range(5)] == [b"once"] * 5
    place, _ = _write(channel, boreal, "aurora", {"k": b"new"})
    assert boreal.missing_private() == [place]
    assert verify_ledger(boreal).problem is None


def test_who_was_a_member_already_lists_nothing_anew(channel: Channel, boreal: Ledger) -> None:
    _write(channel, boreal, "shared", {"k": b"value"}, here=True)
    _deploy(channel, boreal, sequence=2)
    assert boreal.make_eligible() == 0
    assert boreal.missing_private() == []


# --- purging ----------------------------------------------------------------------------------


def _keys(data: bytes | None) -> list[str]:
    assert data is not None
    return [write.key for write in kvrwset_pb2.KVRWSet.FromString(data).writes]


def test_a_purge_takes_a_key_out_of_all_that_is_kept(channel: Channel, boreal: Ledger) -> None:
    first, _ = _write(channel, boreal, "shared", {"k": b"one", "other": b"stays"}, here=True)
    second, _ = _write(channel, boreal, "shared", {"k": b"two"}, here=True)
    purge, _ = _write(channel, boreal, "shared", {}, purges=("k",), here=True)
    assert _value(boreal, "shared", "k") is None
    with boreal.view() as view:
        assert view.get_private_hash(CHAINCODE, "shared", key_hash("k")) is None
    assert _keys(boreal.private_set(first)) == ["other"]
    assert _keys(boreal.private_set(second)) == []
    assert _keys(boreal.private_set(purge)) == []
    after, _ = _write(channel, boreal, "shared", {"k": b"three"}, here=True)
    assert _value(boreal, "shared", "k") == b"three"
    assert _keys(boreal.private_set(after)) == ["k"]
    assert verify_ledger(boreal).problem is None


def test_what_arrives_late_is_kept_without_purged_keys(channel: Channel, boreal: Ledger) -> None:
    """Whether its sender has purged them or not."""
    writes = {"k": b"secret", "other": b"stays"}
    first, whole = _write(channel, boreal, "shared", writes)
    second, _ = _write(channel, boreal, "shared", writes)
    third, _ = _write(channel, boreal, "shared", {"k": b"secret"})
    _write(channel, boreal, "shared", {}, purges=("k",))
    trimmed = private_set("shared", {"other": b"stays"})[1]
    boreal.reconcile(first, whole)
    boreal.reconcile(second, trimmed)
    boreal.reconcile(third, b"")
    assert _keys(boreal.private_set(first)) == _keys(boreal.private_set(second)) == ["other"]
    assert b"secret" not in (boreal.private_set(first) or b"")
    assert _value(boreal, "shared", "k") is None
    assert _value(boreal, "shared", "other") == b"stays"


def test_a_sender_that_has_purged_more_than_we_know_of(channel: Channel, boreal: Ledger) -> None:
    """It is not lying: the purge is in a block that is not here yet."""
    writes = {"k": b"secret", "other": b"stays"}
    place, _ = _write(channel, boreal, "shared", writes)
    trimmed = private_set("shared", {"other": b"stays"})[1]
    with pytest.raises(IncompleteSetError, match="lacks 1 keys"):
        boreal.reconcile(place, trimmed)
    assert boreal.missing_private() == [place]
    with pytest.raises(PrivateDataError, match="wrong value"):
        boreal.reconcile(place, private_set("shared", {"other": b"forged"})[1])
    purge, _ = _write(channel, boreal, "shared", {}, purges=("k",))
    boreal.reconcile(place, trimmed)
    assert boreal.missing_private() == [purge]


# --- what waits for a commit ------------------------------------------------------------------


def _waiting(number: int) -> bytes:
    return rwset_pb2.TxPvtReadWriteSet(
        ns_pvt_rwset=[rwset_pb2.NsPvtReadWriteSet(namespace=f"{number:04d}")]
    ).SerializeToString()


def test_each_organization_has_its_own_share_of_the_transient_store(
    boreal: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that floods it cannot keep the others' data out."""
    size = len(_waiting(0))
    monkeypatch.setattr(private_data, "TRANSIENT_BYTES", 10 * size)
    for number in range(10):
        boreal.store_transient(f"{number}", _waiting(number), 1, "CieloMSP")
    with pytest.raises(PrivateDataError, match=f"{10 * size} bytes of private data of CieloMSP"):
        boreal.store_transient("more", _waiting(10), 1, "CieloMSP")
    boreal.store_transient("0", _waiting(0), 1, "CieloMSP")  # the same again is no more
    boreal.store_transient("more", _waiting(10), 2)
    boreal.store_transient("more", _waiting(11), 2, "AuroraMSP")
    assert len(boreal.transient("more")) == 2
    assert boreal.purge_transient(below_height=2) == 10
    boreal.store_transient("more", _waiting(12), 2, "CieloMSP")


def test_what_commits_makes_room(
    channel: Channel, boreal: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    rwset, private = private_set("shared", {"k": b"value"})
    data = private_rwset(CHAINCODE, "shared", private)
    monkeypatch.setattr(private_data, "TRANSIENT_BYTES", len(data))
    envelope = channel.transaction(rwset)
    payload = common_pb2.Payload.FromString(common_pb2.Envelope.FromString(envelope).payload)
    header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    boreal.store_transient(header.tx_id, data, boreal.height, "AuroraMSP")
    assert boreal.waiting_sets(header.tx_id, CHAINCODE, "shared") == [private]
    assert boreal.waiting_sets(header.tx_id, CHAINCODE, "aurora") == []
    with pytest.raises(PrivateDataError, match="try again when some of them have committed"):
        boreal.store_transient("other", data, boreal.height, "AuroraMSP")
    channel.commit(boreal, envelope)
    assert _value(boreal, "shared", "k") == b"value"
    boreal.store_transient("other", data, boreal.height, "AuroraMSP")
