"""A ledger's life: blocks in order, crashes, forks, private data, verification."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from consortium.ledger import ledger as ledger_module
from consortium.ledger.ledger import CommittedBlock, Ledger
from consortium.ledger.private_data import PrivateDataError, PrivatePlace
from consortium.ledger.state import (
    STATE,
    LedgerError,
    PrivateDataUnavailableError,
    hash_key,
    key_hash,
    private_namespace,
    state_key,
)
from consortium.ledger.validator import BlockError
from consortium.ledger.verify import verify_ledger
from consortium.storage.environment import WriteTransaction
from consortium.storage.segments import SegmentError
from consortium.wire import common_pb2, peer_pb2
from consortium.wire.blocks import SIGNATURES, TRANSACTIONS_FILTER
from consortium.wire.envelopes import signed_envelope

from .channel import CHAINCODE, Channel, collection, private_set, public_set
from .recorded import private_rwset

BOTH = "AND('AuroraMSP.peer', 'BorealMSP.peer')"


@pytest.fixture(scope="module")
def channel() -> Channel:
    return Channel()


@pytest.fixture
def ledger(channel: Channel, tmp_path: Path) -> Iterator[Ledger]:
    with channel.open(tmp_path / "ledger") as opened:
        channel.deploy(opened, policy=BOTH)
        yield opened


def _value(ledger: Ledger, key: str) -> bytes | None:
    with ledger.view() as view:
        found = view.get(CHAINCODE, key)
    return None if found is None else found.value


# --- blocks in order ------------------------------------------------------------------------------


def test_a_block_becomes_state(channel: Channel, ledger: Ledger) -> None:
    first = channel.transaction(public_set(writes={"a": b"1", "b": b"2"}), event=b"made")
    second = channel.transaction(public_set(writes={"c": b"3"}), endorsers=["Aurora"])
    committed = channel.commit(ledger, first, second)
    assert committed.number == 2
    assert committed.codes == bytes([0, peer_pb2.ENDORSEMENT_POLICY_FAILURE])
    assert [(index, event.payload) for index, event in committed.events] == [(0, b"made")]
    assert _value(ledger, "a") == b"1"
    assert _value(ledger, "c") is None
    with ledger.view() as view:
        assert [key for key, _ in view.range(CHAINCODE, "", "")] == ["a", "b"]
        assert [key for key, _ in view.range(CHAINCODE, "b", "")] == ["b"]
        assert [key for key, _ in view.range(CHAINCODE, "", "b")] == ["a"]
    stored = common_pb2.Block.FromString(ledger.block(2))
    assert stored.metadata.metadata[TRANSACTIONS_FILTER] == committed.codes
    assert stored.data.data[0] == first
    assert ledger.committed(2) == committed


def test_a_committed_block_again_changes_nothing(channel: Channel, ledger: Ledger) -> None:
    block = channel.block(ledger, [channel.transaction(public_set(writes={"a": b"1"}))])
    first = ledger.commit(block)
    assert ledger.commit(block) == first
    assert ledger.height == 3


def test_a_gap_is_an_error(channel: Channel, ledger: Ledger) -> None:
    block = channel.block(ledger, [channel.transaction(public_set(writes={"a": b"1"}))])
    block.header.number += 1
    with pytest.raises(BlockError, match="height 2, so block 2 is next"):
        ledger.commit(block)


def test_a_fork_is_an_error(channel: Channel, ledger: Ledger) -> None:
    one, other = (
        channel.block(ledger, [channel.transaction(public_set(writes={"a": value}))])
        for value in (b"1", b"2")
    )
    ledger.commit(one)
    with pytest.raises(BlockError, match="has forked"):
        ledger.commit(other)
    stranger = channel.block(ledger, [channel.transaction(public_set(writes={"a": b"3"}))])
    stranger.header.previous_hash = bytes(32)
    with pytest.raises(BlockError, match="does not follow block 2"):
        ledger.commit(stranger)


def test_who_may_make_blocks(channel: Channel, ledger: Ledger) -> None:
    envelope = channel.transaction(public_set(writes={"a": b"1"}))
    unsigned = channel.block(ledger, [envelope])
    unsigned.metadata.metadata[SIGNATURES] = b""
    with pytest.raises(BlockError, match="is signed by nobody"):
        ledger.commit(unsigned)
    by_a_peer = Channel.__new__(Channel)
    by_a_peer.__dict__ = {**channel.__dict__, "orderers": channel.peers}
    with pytest.raises(BlockError, match="is signed by AuroraMSP, which does not satisfy"):
        ledger.commit(by_a_peer.block(ledger, [envelope]))
    moved = channel.block(ledger, [envelope])
    moved.data.data.append(envelope)
    with pytest.raises(BlockError, match="do not fit the data hash"):
        ledger.commit(moved)
    assert ledger.height == 2


def test_envelopes_have_one_encoding(channel: Channel, ledger: Ledger) -> None:
    """Else the joined bytes that the data hash covers could be cut elsewhere."""
    envelope = channel.transaction(public_set(writes={"a": b"1"}))
    for broken, what in (
        (b"\x12\x01x\x0a\x01x", "one encoding"),  # the signature before the payload
        (b"\x0a\x01y\x0a\x01x\x12\x01x", "one encoding"),  # two payloads, the last counts
        (common_pb2.Envelope(signature=b"x").SerializeToString(), "lacks a payload"),
        (common_pb2.Envelope(payload=b"x").SerializeToString(), "lacks a payload or signature"),
        (b"\xff", "is not a valid"),
    ):
        with pytest.raises(BlockError, match=what):
            ledger.commit(channel.block(ledger, [envelope, broken]))
    with pytest.raises(BlockError, match="is empty"):
        ledger.commit(channel.block(ledger, []))


def test_an_unallowed_configuration_stops_the_chain(channel: Channel, ledger: Ledger) -> None:
    """Not a code: the ordering nodes must never let one through."""
    config = common_pb2.ConfigEnvelope(config=ledger.config.config)
    config.config.sequence += 1
    header = common_pb2.ChannelHeader(type=common_pb2.CONFIG, channel_id=ledger.channel_id)
    envelope = signed_envelope(
        channel.orderers["Aurora"], header, config.SerializeToString()
    ).SerializeToString()
    with pytest.raises(BlockError, match="did not allow"):
        channel.commit(ledger, envelope)
    assert ledger.height == 2


def test_the_folder_belongs_to_one_organization_and_channel(
    channel: Channel, ledger: Ledger, tmp_path: Path
) -> None:
    ledger.close()
    with pytest.raises(LedgerError, match="belongs to a peer of AuroraMSP, not of BorealMSP"):
        Ledger.open(tmp_path / "ledger", msp_id="BorealMSP")
    with pytest.raises(LedgerError, match="another genesis block"):
        Ledger.open(tmp_path / "ledger", msp_id="AuroraMSP", genesis=Channel().genesis)
    assert Ledger.owner(tmp_path / "ledger") == "AuroraMSP"
    with Ledger.open(tmp_path / "empty", msp_id="AuroraMSP") as empty:
        assert empty.height == 0
        with pytest.raises(LedgerError, match="open it with the channel's genesis block"):
            _ = empty.config


# --- concurrency within a block -------------------------------------------------------------------


def test_transactions_of_a_block_see_each_other(channel: Channel, ledger: Ledger) -> None:
    channel.commit(ledger, channel.transaction(public_set(writes={"a": b"0"})))
    same_nonce = os.urandom(24)
    codes = channel.commit(
        ledger,
        channel.transaction(public_set(reads={"a": (2, 0)}, writes={"a": b"1"})),
        channel.transaction(public_set(reads={"a": (2, 0)}, writes={"b": b"1"})),
        channel.transaction(public_set(writes={"a": b"blind"}), nonce=same_nonce),
        channel.transaction(public_set(writes={"a": b"again"}), nonce=same_nonce),
        channel.transaction(public_set(reads={"new": None}, writes={"new": b"1"})),
        channel.transaction(public_set(reads={"new": None}, writes={"other": b"1"})),
        channel.transaction(public_set("unknown", writes={"a": b"1"})),
    ).codes
    conflict, duplicate = peer_pb2.MVCC_READ_CONFLICT, peer_pb2.DUPLICATE_TXID
    unknown = peer_pb2.INVALID_CHAINCODE
    assert list(codes) == [0, conflict, 0, duplicate, 0, conflict, unknown]
    assert _value(ledger, "a") == b"blind"


def test_a_transaction_counts_once(channel: Channel, ledger: Ledger) -> None:
    envelope = channel.transaction(public_set(writes={"a": b"1"}))
    assert channel.commit(ledger, envelope).codes == b"\0"
    assert list(channel.commit(ledger, envelope).codes) == [peer_pb2.DUPLICATE_TXID]


def test_keys_of_any_length(channel: Channel, ledger: Ledger) -> None:
    """LMDB's keys end at 511 bytes; no legal block may be refused for that."""
    keys = {"k" * length + end: end.encode() for length in (400, 600, 2000) for end in "ab"}
    channel.commit(ledger, channel.transaction(public_set(writes=keys)))
    with ledger.view() as view:
        found = {key: value.value for key, value in view.range(CHAINCODE, "k", "l")}
    assert found == keys
    assert list(found) == sorted(keys)
    assert [one.value for one in ledger.history(CHAINCODE, "k" * 2000 + "a")] == [b"a"]
    channel.commit(ledger, channel.transaction(public_set(writes=dict.fromkeys(keys, b""))))
    with ledger.view() as view:
        assert list(view.range(CHAINCODE, "", "")) == []
    assert verify_ledger(ledger).problem is None


def test_views_go_on_while_blocks_commit(channel: Channel, ledger: Ledger) -> None:
    channel.commit(ledger, channel.transaction(public_set(writes={"a": b"0", "b": b"0"})))
    stop = threading.Event()
    torn: list[object] = []

    def watch() -> None:
        while not stop.is_set():
            with ledger.view() as view:
                a, b = view.get(CHAINCODE, "a"), view.get(CHAINCODE, "b")
            if a != b:
                torn.append((a, b))

    watchers = [threading.Thread(target=watch) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    for number in range(30):
        value = str(number).encode()
        channel.commit(ledger, channel.transaction(public_set(writes={"a": value, "b": value})))
    stop.set()
    for watcher in watchers:
        watcher.join()
    assert torn == []


# --- crashes --------------------------------------------------------------------------------------


def test_a_commit_that_fails_leaves_the_ledger_as_it_was(
    channel: Channel, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = channel.block(ledger, [channel.transaction(public_set(writes={"a": b"1"}))])

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "_write_config_history", fail)
        with pytest.raises(OSError, match="no space"):
            ledger.commit(block)
    assert ledger.height == 2
    assert _value(ledger, "a") is None
    assert ledger.commit(block).number == 2
    assert _value(ledger, "a") == b"1"
    assert verify_ledger(ledger).problem is None


COMMIT_UNTIL_KILLED = """
import sys
from pathlib import Path
from consortium.ledger.ledger import Ledger
from consortium.wire import common_pb2
folder = Path(sys.argv[1])
genesis = common_pb2.Block.FromString((folder / "0").read_bytes())
ledger = Ledger.open(folder / "ledger", msp_id="AuroraMSP", genesis=genesis)
while (path := folder / str(ledger.height)).exists():
    committed = ledger.commit(common_pb2.Block.FromString(path.read_bytes()))
    print(committed.number, flush=True)
"""


def test_killed_processes_leave_whole_blocks(channel: Channel, tmp_path: Path) -> None:
    """Kill the peer again and again; in the end the ledger is as if nothing had happened."""
    blocks = 40
    with channel.open(tmp_path / "reference") as reference:
        channel.deploy(reference, policy=BOTH)
        for number in range(2, blocks):
            writes = {f"key{at}": f"{number}".encode() * 100 for at in range(10)}
            channel.commit(reference, channel.transaction(public_set(writes=writes)))
        for number in range(blocks):
            (tmp_path / str(number)).write_bytes(reference.block(number))
        reported = 0
        for _ in range(30):
            process = subprocess.Popen(
                [sys.executable, "-c", COMMIT_UNTIL_KILLED, str(tmp_path)],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            for line in process.stdout:
                reported = max(reported, int(line))
                if reported % 9 == 0 and reported < blocks - 1:
                    reported += 1
                    process.kill()
            process.wait()
            process.stdout.close()
            if reported == blocks - 1:
                break
        with Ledger.open(tmp_path / "ledger", msp_id="AuroraMSP") as ledger:
            assert ledger.height == blocks
            assert ledger.commit_hash == reference.commit_hash
            assert verify_ledger(ledger).problem is None


# --- private data ---------------------------------------------------------------------------------


@pytest.fixture
def private_ledgers(channel: Channel, tmp_path: Path) -> Iterator[dict[str, Ledger]]:
    """The peers of two utilities; readings are Aurora's alone, and endorsed by it alone."""
    opened = {name: channel.open(tmp_path / name, name) for name in ("Aurora", "Boreal")}
    for one in opened.values():
        channel.deploy(
            one,
            policy=BOTH,
            collections=[
                collection(
                    "readings",
                    ["Aurora"],
                    policy="OR('AuroraMSP.peer')",
                    block_to_live=2,
                ),
                collection("shared", ["Aurora", "Boreal"]),
            ],
        )
        # The same definition transaction would do; each peer here has its own chain.
    yield opened
    for one in opened.values():
        one.close()


def _commit_private(
    channel: Channel,
    ledger: Ledger,
    name: str,
    writes: dict[str, bytes],
    *,
    known: bool = True,
    purges: tuple[str, ...] = (),
    endorsers: tuple[str, ...] = ("Aurora", "Boreal"),
) -> tuple[CommittedBlock, bytes]:
    rwset, private = private_set(name, writes, purges=purges)
    envelope = channel.transaction(rwset, endorsers=endorsers)
    block = channel.block(ledger, [envelope])
    if known:
        payload = common_pb2.Payload.FromString(common_pb2.Envelope.FromString(envelope).payload)
        header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
        data = private_rwset(CHAINCODE, name, private)
        ledger.store_transient(header.tx_id, data, ledger.height)
        assert ledger.transient(header.tx_id) == [data]
    return ledger.commit(block), private


def test_members_keep_values_others_hashes(
    channel: Channel, private_ledgers: dict[str, Ledger]
) -> None:
    aurora, boreal = private_ledgers["Aurora"], private_ledgers["Boreal"]
    for one in (aurora, boreal):
        committed, _ = _commit_private(
            channel, one, "readings", {"r": b"7 Wh"}, endorsers=("Aurora",)
        )
        assert committed.codes == b"\0"
        with one.view() as view:
            assert view.get_private_hash(CHAINCODE, "readings", key_hash("r")) is not None
    with aurora.view() as view:
        found = view.get_private(CHAINCODE, "readings", "r")
        assert found is not None
        assert found.value == b"7 Wh"
        assert [key for key, _ in view.range_private(CHAINCODE, "readings", "", "")] == ["r"]
    with boreal.view() as view:
        with pytest.raises(PrivateDataUnavailableError):
            view.get_private(CHAINCODE, "readings", "r")
        assert list(view.range_private(CHAINCODE, "readings", "", "")) == []
    assert boreal.missing_private() == []
    assert b"7 Wh" not in aurora.block(2)


def test_private_data_live_as_many_blocks_as_agreed(
    channel: Channel, private_ledgers: dict[str, Ledger], tmp_path: Path
) -> None:
    ledger = private_ledgers["Aurora"]
    committed, _ = _commit_private(channel, ledger, "readings", {"r": b"a secret reading"})
    place = PrivatePlace(committed.number, 0, CHAINCODE, "readings")
    for _ in range(2):
        assert ledger.private_set(place) is not None
        channel.commit(ledger, channel.transaction(public_set(writes={"x": os.urandom(8)})))
        with ledger.view() as view:
            assert view.get_private(CHAINCODE, "readings", "r") is not None
    channel.commit(ledger, channel.transaction(public_set(writes={"x": b"y"})))
    with ledger.view() as view:
        assert view.get_private(CHAINCODE, "readings", "r") is None
        assert view.get_private_hash(CHAINCODE, "readings", key_hash("r")) is None
    assert ledger.private_set(place) is None
    assert verify_ledger(ledger).problem is None
    deadline = time.monotonic() + 60
    while not ledger.eraser.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert b"a secret reading" not in (tmp_path / "Aurora" / "index" / "data.mdb").read_bytes()


def test_what_is_rewritten_lives_longer(
    channel: Channel, private_ledgers: dict[str, Ledger]
) -> None:
    ledger = private_ledgers["Aurora"]
    _commit_private(channel, ledger, "readings", {"r": b"1"})
    _commit_private(channel, ledger, "readings", {"r": b"2"})
    for _ in range(2):
        channel.commit(ledger, channel.transaction(public_set(writes={"x": b"y"})))
        with ledger.view() as view:
            found = view.get_private(CHAINCODE, "readings", "r")
        assert found is not None
        assert found.value == b"2"


def test_missing_values_are_reconciled_while_current(
    channel: Channel, private_ledgers: dict[str, Ledger]
) -> None:
    ledger = private_ledgers["Boreal"]
    first, old = _commit_private(channel, ledger, "shared", {"k": b"old"}, known=False)
    second, new = _commit_private(channel, ledger, "shared", {"k": b"new"}, known=False)
    places = [PrivatePlace(one.number, 0, CHAINCODE, "shared") for one in (first, second)]
    assert ledger.missing_private() == places
    with pytest.raises(PrivateDataError, match="has a wrong value"):
        ledger.reconcile(places[1], old)
    ledger.reconcile(places[0], old)  # outdated, but kept for others who miss it
    with ledger.view() as view, pytest.raises(PrivateDataUnavailableError):
        view.get_private(CHAINCODE, "shared", "k")
    ledger.reconcile(places[1], new)
    with ledger.view() as view:
        found = view.get_private(CHAINCODE, "shared", "k")
    assert found is not None
    assert found.value == b"new"
    assert ledger.private_set(places[0]) == old
    assert ledger.missing_private() == []


def test_transient_data_are_bounded_and_given_up(channel: Channel, ledger: Ledger) -> None:
    for number in range(64):
        data = private_rwset(CHAINCODE, "c", bytes([number]))
        ledger.store_transient("tx", data, height=number // 4)
    ledger.store_transient("tx", data, height=20)
    with pytest.raises(PrivateDataError, match="64 private read-write sets of AuroraMSP"):
        ledger.store_transient("tx", private_rwset(CHAINCODE, "c", b"more"), height=21)
    ledger.store_transient("other", data, height=1)
    assert ledger.purge_transient(below_height=20) == 64
    assert ledger.transient("tx") == [data]
    with pytest.raises(ValueError, match="the private read-write set is not a valid"):
        ledger.store_transient("tx", b"\xff", height=21)


# --- verification ---------------------------------------------------------------------------------


@pytest.fixture
def full_ledger(channel: Channel, tmp_path: Path) -> Iterator[Ledger]:
    with channel.open(tmp_path / "full") as opened:
        channel.deploy(opened, policy=BOTH, collections=[collection("shared", ["Aurora"])])
        channel.commit(opened, channel.transaction(public_set(writes={"a": b"1", "b": b"2"})))
        _commit_private(channel, opened, "shared", {"k": b"secret"})
        yield opened


def _tamper(ledger: Ledger, key: bytes, change: bytes | None) -> None:
    def write(transaction: WriteTransaction) -> None:
        stored = transaction.get(STATE, key) or bytes(17)
        if change is None:
            transaction.delete(STATE, key)
        else:
            transaction.put(STATE, key, stored[:16] + change)

    ledger._environment.write(write)


def test_changed_state_is_found_and_named(full_ledger: Ledger) -> None:
    assert verify_ledger(full_ledger).problem is None
    private = state_key(private_namespace(CHAINCODE, "shared"), "k")
    for key, change, sentence in (
        (state_key(CHAINCODE, "a"), b"9", "holds the key 'a' of energy otherwise than"),
        (state_key(CHAINCODE, "a"), b"9", "was written by transaction 0 of block 2"),
        (state_key(CHAINCODE, "b"), None, "lacks the key 'b' of energy, which a block wrote"),
        (state_key(CHAINCODE, "c"), b"9", "holds the key 'c' of energy, which no block wrote"),
        (hash_key(CHAINCODE, "shared", key_hash("k")), b"9", "holds the hashed key "),
        (private, b"forged", "the private value of 'k' in collection shared of energy does not"),
    ):
        before = None
        with full_ledger.tables() as tables:
            before = tables.get(STATE, key)
        _tamper(full_ledger, key, change)
        problem = verify_ledger(full_ledger).problem
        assert problem is not None
        assert sentence in problem
        if before is None:
            _tamper(full_ledger, key, None)
        else:
            restored = before
            full_ledger._environment.write(
                lambda t, key=key, value=restored: t.put(STATE, key, value)
            )
    assert verify_ledger(full_ledger).problem is None


def test_flipped_bytes_of_a_block_are_found_and_named(full_ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "full" / "blocks" / "000000.segment"
    raw = full_ledger.block(2)
    whole = path.read_bytes()
    position = whole.index(raw) + len(raw) // 2
    flipped = bytearray(whole)
    flipped[position] ^= 1
    path.write_bytes(flipped)
    report = verify_ledger(full_ledger)
    assert report.problem is not None
    assert report.problem.startswith("block 2 cannot be read")
    assert report.blocks == 2
    with pytest.raises(SegmentError, match="does not fit its checksum"):
        full_ledger.block(2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("code", "transaction 0 of block 2 is stored as MVCC_READ_CONFLICT (11), but validation"),
        ("commit hash", "the metadata of block 2 are not those that follow from the chain"),
        ("data", "block 2 is not valid: the data of block 2 do not fit the data hash"),
        ("signature", "block 2 is not valid: block 2 is signed by nobody"),
        ("number", "in the place of block 2 there is block 3"),
    ],
)
def test_a_forged_block_is_found_and_named(
    full_ledger: Ledger, change: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forged with a right checksum, as somebody with access to the disk could."""
    block = common_pb2.Block.FromString(full_ledger.block(2))
    slots = block.metadata.metadata
    if change == "code":
        slots[TRANSACTIONS_FILTER] = bytes([peer_pb2.MVCC_READ_CONFLICT])
    elif change == "commit hash":
        slots[-1] = common_pb2.Metadata(value=bytes(32)).SerializeToString()
    elif change == "data":
        block.data.data[0] = block.data.data[0][:-1] + b"\0"
    elif change == "signature":
        slots[SIGNATURES] = b""
    else:
        block.header.number = 3
    forged = block.SerializeToString()
    honest = full_ledger.block

    def read(number: int) -> bytes:
        return forged if number == 2 else honest(number)

    monkeypatch.setattr(full_ledger, "block", read)
    problem = verify_ledger(full_ledger).problem
    assert problem is not None
    assert problem.startswith(sentence)
