"""Privacy on real ledgers: two utilities' peers commit the same blocks, and one is searched.

Aurora's homes are metered and settled and their days posted; Boreal's whole disk and every
block are then at the attacker's disposal.
"""

import hashlib
import json
import re
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from consortium.chaincode.api import Creator, canonical_json
from consortium.chaincode.executor import Invocation
from consortium.chaincode.simulator import TransactionSimulator
from consortium.contracts import chaincodes
from consortium.contracts.common.clock import DAY_S, day_start
from consortium.ledger.ledger import Ledger
from consortium.wire import common_pb2, kvrwset_pb2, peer_pb2, rwset_pb2
from consortium.wire.envelopes import open_envelope
from tests.consortium.contracts.ledger_world import MAJORITY
from tests.consortium.contracts.town import TERMS
from tests.consortium.contracts.world import (
    ADMIN,
    BOREAL_OPERATOR,
    NOON,
    OPERATOR,
    TestMeter,
    _chaincode_of,
    _Context,
    batch,
    home,
)
from tests.consortium.ledger.channel import CHANNEL_ID, UTILITIES, Channel, collection

HOUR_S = 3600
DAY = "2026-11-22"
START = day_start(DAY)
LARGEST_WH = 6_000
COLLECTIONS = [f"readings-{name}MSP" for name in UTILITIES]
HOMES = {"CP-1": "M-1", "CP-2": "M-2"}


class Peers:
    """A peer of Aurora, which has its homes' private data, and one of Boreal, which hasn't."""

    def __init__(self, folder: Path) -> None:
        self.now = NOON
        self.folders = {name: folder / name for name in ("Aurora", "Boreal")}
        self.channel = Channel()
        self.ledgers: dict[str, Ledger] = {
            name: self.channel.open(path, name) for name, path in self.folders.items()
        }
        self.aurora = self.ledgers["Aurora"]
        self.public = b""
        """Arguments, answers and events: on a network they stand in the transactions."""
        self._calls = 0
        self.channel.deploy(self.aurora, policy=MAJORITY)
        self.channel.deploy(
            self.aurora,
            policy=MAJORITY,
            chaincode="metering",
            collections=[
                collection(name, [utility], policy=f"OR('{utility}MSP.peer')")
                for name, utility in zip(COLLECTIONS, UTILITIES, strict=True)
            ],
        )
        self._follow()

    def _follow(self) -> None:
        boreal = self.ledgers["Boreal"]
        while boreal.height < self.aurora.height:
            block = common_pb2.Block.FromString(self.aurora.block(boreal.height))
            assert set(boreal.commit(block).codes) <= {0}

    def close(self) -> None:
        for ledger in self.ledgers.values():
            ledger.close()

    def call(
        self,
        caller: Creator,
        function: str,
        argument: Mapping[str, Any],
        transient: Mapping[str, bytes] | None = None,
        *,
        commit: bool = True,
        at: str = "Aurora",
    ) -> Any:
        name = _chaincode_of(function)
        self._calls += 1
        raw = json.dumps(argument).encode()
        invocation = Invocation(
            name,
            CHANNEL_ID,
            hashlib.sha256(f"call {self._calls}".encode()).hexdigest(),
            self.now,
            caller,
            [function.encode(), raw],
            transient or {},
        )
        assert at == "Aurora" or not commit
        with self.ledgers[at].view() as view:
            simulator = TransactionSimulator(
                view, CHANNEL_ID, collections=lambda _view, _name: COLLECTIONS
            )
            context = _Context(invocation, simulator)
            payload = chaincodes()[name].invoke(context, invocation.args)
            results = simulator.results()
        if commit:
            self.public += raw + payload + (context.event[1] if context.event else b"")
            envelope = self.channel.transaction(
                rwset_pb2.TxReadWriteSet.FromString(results.rwset),
                UTILITIES[:1] if results.private else UTILITIES[:2],
                chaincode=name,
            )
            if results.private:
                self.aurora.store_transient(
                    open_envelope(envelope).channel_header.tx_id,
                    results.private.SerializeToString(),
                    self.aurora.height,
                )
            assert self.channel.commit(self.aurora, envelope).codes == b"\0", function
            self._follow()
        return json.loads(payload)

    def files(self, name: str) -> list[bytes]:
        return [path.read_bytes() for path in self.folders[name].rglob("*") if path.is_file()]

    def hashes(self) -> tuple[set[bytes], set[bytes]]:
        """All hashes of private keys and values in all blocks of Boreal's ledger."""
        keys, values = set(), set()
        boreal = self.ledgers["Boreal"]
        for number in range(1, boreal.height):
            block = common_pb2.Block.FromString(boreal.block(number))
            for raw in block.data.data:
                transaction = peer_pb2.Transaction.FromString(open_envelope(raw).payload.data)
                for action in transaction.actions:
                    payload = peer_pb2.ChaincodeActionPayload.FromString(action.payload)
                    response = peer_pb2.ProposalResponsePayload.FromString(
                        payload.action.proposal_response_payload
                    )
                    done = peer_pb2.ChaincodeAction.FromString(response.extension)
                    for space in rwset_pb2.TxReadWriteSet.FromString(done.results).ns_rwset:
                        for part in space.collection_hashed_rwset:
                            hashed = kvrwset_pb2.HashedRWSet.FromString(part.hashed_rwset)
                            keys |= {one.key_hash for one in hashed.hashed_writes}
                            values |= {one.value_hash for one in hashed.hashed_writes}
                            values.add(part.pvt_rwset_hash)
        return keys, values


def energies(name: str, hour: int) -> tuple[int, int]:
    """What a home imports and exports, all within the range that is tried."""
    return (137 + 61 * hour, 0) if name == "CP-2" else (40 + hour, 2_211 if hour == 12 else 0)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    made = Peers(tmp_path_factory.mktemp("peers"))
    try:
        prepare(made)
        yield made
    finally:
        made.close()


def prepare(made: Peers) -> None:
    """A day of two homes, from their meters to the postings."""
    made.call(ADMIN, "metering:Configure", {"interval_s": HOUR_S})
    made.call(ADMIN, "registry:Configure", {"interval_s": HOUR_S})
    proposal = {"terms": TERMS, "effective_from": START}
    made.call(OPERATOR, "settlement:ProposeTerms", proposal)
    approval = {"supplier": "AuroraMSP", "version": 1}
    made.call(BOREAL_OPERATOR, "settlement:ApproveTerms", approval)
    readings = []
    for name, meter_id in HOMES.items():
        connection = {"connection_id": name, "utility": "AuroraMSP", "zone": "NORTH"}
        limits = {"max_export_w": 10_000, "max_import_w": 20_000}
        made.call(OPERATOR, "registry:RegisterConnection", {**connection, **limits})
        meter = TestMeter(meter_id)
        made.call(
            OPERATOR,
            "metering:RegisterMeter",
            {
                "meter_id": meter_id,
                "connection_id": name,
                "utility": "AuroraMSP",
                "source_class": "accredited",
                "public_key": meter.public_key,
            },
        )
        registers = [1_000_000, 1_000_000]
        for hour in range(24):
            energy = energies(name, hour)
            registers = [registers[0] + energy[0], registers[1] + energy[1]]
            readings.append(
                meter.reading(START + hour * HOUR_S, *energy, *registers, interval_s=str(HOUR_S))
            )
    made.now = START + DAY_S
    accepted = made.call(
        OPERATOR, "metering:SubmitReadings", {"utility": "AuroraMSP"}, batch(*readings)
    )
    assert accepted["accepted"] == "48", accepted
    where = {"utility": "AuroraMSP", "day": DAY, "run": "provisional"}
    made.call(OPERATOR, "daybook:Commit", {**where, "connections": sorted(HOMES)})
    summaries = [record(made, name)["summary"] for name in sorted(HOMES)]
    made.call(OPERATOR, "settlement:Post", {**where, "summaries": summaries})


def record(made: Peers, name: str) -> Any:
    where = {"utility": "AuroraMSP", "day": DAY, "run": "provisional", "connection_id": name}
    return made.call(OPERATOR, "daybook:Record", where, commit=False)


def private_records(made: Peers, name: str) -> dict[str, Any]:
    page = {"connection_id": name, "limit": 2_000}
    found = made.call(OPERATOR, "privacy:Export", page, commit=False)
    return {one["key"]: one["value"] for one in found["records"]}


def guesses(known: Mapping[str, Any], salts: Sequence[str]) -> Iterator[tuple[int, bytes]]:
    """Everything that a reading's commitment could be, if its energy were `energy_wh`.

    The attacker knows all of the reading but its energy and its salt: more than anybody does.
    """
    for energy_wh in range(LARGEST_WH + 1):
        text = str(energy_wh)
        yield energy_wh, text.encode()
        yield energy_wh, struct.pack(">I", energy_wh)
        yield energy_wh, struct.pack(">Q", energy_wh)
        for field in ("import_wh", "export_wh"):
            yield energy_wh, canonical_json({field: text})
            for salt in salts:
                yield energy_wh, canonical_json({**known, field: text, "salt": salt})
                yield energy_wh, f"{salt}{text}".encode()
                yield energy_wh, f"{text}{salt}".encode()


def test_no_interval_of_another_utilitys_home_can_be_recovered(peers: Peers) -> None:
    _, values = peers.hashes()
    public = b"".join(peers.files("Boreal")) + peers.public
    # Commitments stand in public records and answers too, as text.
    targets = values | {
        bytes.fromhex(one.decode()) for one in set(re.findall(rb"\b[0-9a-f]{64}\b", public))
    }
    assert len(values) > 50
    guessable = ["", "0" * 64, hashlib.sha256(b"").hexdigest()]
    for name, meter_id in HOMES.items():
        for hour in (0, 12):
            start = START + hour * HOUR_S
            place = f"r/{meter_id}/{start:012d}/1"
            reading = private_records(peers, name)[place]
            derived = [hashlib.sha256(one.encode()).hexdigest() for one in (place, meter_id, name)]
            found = [
                energy_wh
                for energy_wh, guess in guesses(reading, [*guessable, *derived])
                if hashlib.sha256(guess).digest() in targets
            ]
            assert found == [], (name, hour)
            # The search finds what it looks for: with the salt, there is one answer.
            known = [
                energy_wh
                for energy_wh, guess in guesses(reading, [reading["salt"]])
                if hashlib.sha256(guess).digest() in targets
            ]
            imported, exported = energies(name, hour)
            assert set(known) == {imported, exported}


def test_rows_can_not_be_guessed_from_sums_and_commitments(peers: Peers) -> None:
    """The day's sums are public: with them, and any energy for an hour, no record is met."""
    _, values = peers.hashes()
    opened = record(peers, "CP-2")["opened"]
    row = opened["rows"][5]
    for energy_wh in range(LARGEST_WH + 1):
        amount = str(-300 * energy_wh)
        line = {**row["lines"][0], "energy_wh": str(energy_wh), "amount_micro": amount}
        guess = {**row, "import_wh": str(energy_wh), "lines": [line]}
        for salt in ("", "0" * 64):
            leaf = canonical_json({"rows": [guess], "salt": salt})
            assert hashlib.sha256(b"\0" + leaf).digest() not in values
            assert hashlib.sha256(leaf).digest() not in values
    assert hashlib.sha256(canonical_json(opened)).digest() in values


def test_the_others_add_up_the_money_on_their_own_copy(peers: Peers) -> None:
    """What was paid for readings that Boreal never sees is zero in all, by Boreal's own ledger."""
    found = peers.call(BOREAL_OPERATOR, "oversight:ZeroSum", {}, commit=False, at="Boreal")
    assert (found["sum_micro"], found["bookmark"]) == ("0", None)
    assert int(found["accounts"]) >= 3
    state = peers.ledgers["Boreal"]
    with state.view() as view:
        entries = {
            key: json.loads(stored.value)
            for key, stored in view.range("energy", "acct/", "acct0")
            if "/post/" in key
        }
    assert any(key.startswith("acct/CP-2/") for key in entries)
    by_transaction: dict[str, int] = {}
    for key, posting in entries.items():
        transaction = key.split("/post/")[1].split("/")[1]
        amount = int(posting["amount_micro"])
        by_transaction[transaction] = by_transaction.get(transaction, 0) + amount
    assert set(by_transaction.values()) == {0}


def test_nothing_private_is_in_another_utilitys_files(peers: Peers) -> None:
    boreal, aurora = peers.files("Boreal"), peers.files("Aurora")
    for name in HOMES:
        for key, value in private_records(peers, name).items():
            kind = key.split("/")[0]
            if kind in ("st", "late"):
                continue  # what was posted, and that something came late: no secrets
            secrets = [value["salt"]]
            if kind == "r":
                secrets += [
                    value["signature"],
                    f'"import_register_wh":"{value["import_register_wh"]}"',
                ]
            for secret in secrets:
                needle = secret.encode()
                assert not any(needle in data for data in boreal), key
                assert needle not in peers.public, key
                assert any(needle in data for data in aurora), key


def test_an_opened_interval_tells_no_other_one(peers: Peers) -> None:
    where = {"utility": "AuroraMSP", "day": DAY, "run": "provisional", "connection_id": "CP-2"}
    start = START + 3 * HOUR_S
    opening = peers.call(
        home("CP-2"), "daybook:Open", {**where, "interval_start": start}, commit=False
    )
    checked = peers.call(BOREAL_OPERATOR, "challenge:Check", {"opening": opening}, commit=False)
    assert (checked["committed"], checked["holds"]) == (True, True)
    beside = {bytes.fromhex(one) for one in opening["windows"][0]["path"]}
    opened = record(peers, "CP-2")["opened"]
    row = opened["rows"][2]  # hour 2 is the leaf beside hour 3
    salt = opening["windows"][0]["salt"]
    for energy_wh in range(LARGEST_WH + 1):
        amount = str(-300 * energy_wh)
        line = {**row["lines"][0], "energy_wh": str(energy_wh), "amount_micro": amount}
        guess = {**row, "import_wh": str(energy_wh), "lines": [line]}
        leaf = canonical_json({"rows": [guess], "salt": salt})
        assert hashlib.sha256(b"\0" + leaf).digest() not in beside


def test_what_was_erased_is_in_no_file_of_its_utility(peers: Peers) -> None:
    keys_before, values_before = peers.hashes()
    gone = private_records(peers, "CP-1")
    kept = private_records(peers, "CP-2")
    peers.now = START + 430 * DAY_S
    period = {"connection_id": "CP-1", "from_day": DAY, "to_day": "2026-11-24"}
    found = peers.call(OPERATOR, "privacy:Purgeable", period, commit=False)
    assert sorted(found["keys"]) == sorted(gone)
    keys = json.dumps({"keys": sorted(found["keys"])}).encode()
    peers.call(OPERATOR, "privacy:Purge", {"connection_id": "CP-1"}, {"keys": keys})
    deadline = time.monotonic() + 60
    while not peers.aurora.eraser.idle:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    aurora = peers.files("Aurora")
    for key, value in gone.items():
        if key.startswith(("st/", "late/")):
            continue
        assert not any(value["salt"].encode() in data for data in aurora), key
        if "signature" in value:
            assert not any(value["signature"].encode() in data for data in aurora), key
            register = f'"import_register_wh":"{value["import_register_wh"]}"'.encode()
            assert not any(register in data for data in aurora), key
    assert private_records(peers, "CP-1") == {}
    # The other home's records are all there, and the hashes stay in the blocks.
    assert private_records(peers, "CP-2") == kept
    keys_after, values_after = peers.hashes()
    assert keys_before <= keys_after
    assert values_before <= values_after
