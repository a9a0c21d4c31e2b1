"""Our ledger on a chain that a Hyperledger Fabric network made: every answer must be equal.

The recording holds 171 transactions of which 58 are invalid in 14 different ways; its README says
what each block shows.
"""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from consortium.ledger import lifecycle
from consortium.ledger.ledger import CONFIG_HISTORY, TRANSACTIONS, Ledger
from consortium.ledger.private_data import PrivateDataError, PrivatePlace
from consortium.ledger.state import (
    STATE,
    PrivateDataUnavailableError,
    decode_value,
    key_hash,
)
from consortium.ledger.validator import open_block
from consortium.ledger.verify import verify_ledger
from consortium.wire import kvrwset_pb2

from .recorded import (
    FOLDER,
    HEIGHT,
    Writes,
    approval_writes,
    expected,
    open_ledger,
    ordered_block,
    private_rwset,
    private_writes,
    replay,
    requested_definition,
    state_entry,
    stored_block,
    text_key,
)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """The whole chain, without any private data."""
    with open_ledger(tmp_path_factory.mktemp("replayed")) as ledger:
        replay(ledger)
        yield ledger


def test_every_block_comes_to_what_fabric_made_of_it(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        assert ledger.block(0) == stored_block(0)
        for number in range(1, HEIGHT):
            known = expected()["blocks"][number]
            committed = ledger.commit(ordered_block(number))
            what = {tx["index"]: tx["what"] for tx in known["txs"]}
            for index, code in enumerate(committed.codes):
                assert code == known["filter"][index], (number, index, what[index])
            assert committed.commit_hash.hex() == known["commit_hash"], number
            assert ledger.last_block_hash.hex() == known["hash"]
            assert committed.raw == stored_block(number), number


def test_public_state_is_fabrics(ledger: Ledger) -> None:
    found = []
    with ledger.tables() as tables:
        for key, stored in tables.range(STATE):
            namespace, _, name = key.partition(b"\0")
            if b"$$" not in namespace:
                value = decode_value(stored)
                entry = (value.value, tuple(value.version), value.metadata)
                found.append((namespace.decode(), name.decode(), entry))
    known = [
        (entry[0], text_key(entry[1]), state_entry(entry)) for entry in expected()["public_state"]
    ]
    assert len(found) == 2800
    assert found == known


def test_hashed_state_is_fabrics(ledger: Ledger) -> None:
    found = []
    with ledger.tables() as tables:
        for key, stored in tables.range(STATE):
            namespace, _, digest = key.partition(b"\0")
            if b"$$h" in namespace:
                value = decode_value(stored)
                entry = [namespace.decode(), digest.hex(), value.value.hex(), [*value.version]]
                if value.metadata:
                    entry.append(base64.b64encode(value.metadata).decode())
                found.append(entry)
    assert found == expected()["private_hashes"]


def test_history_is_fabrics(ledger: Ledger) -> None:
    for key, modifications in expected()["history"].items():
        found = [
            {
                "txid": one.transaction_id,
                "is_delete": one.is_delete,
                "value_b64": base64.b64encode(one.value).decode(),
                "timestamp_seconds": one.timestamp_ns // 1_000_000_000,
            }
            for one in ledger.history("gold", key)
        ]
        assert found == modifications, key


def test_transaction_ids_are_those_of_fabrics_snapshot(ledger: Ledger) -> None:
    with ledger.tables() as tables:
        ids = [key.decode() for key, _ in tables.range(TRANSACTIONS)]
    assert sorted(ids, key=lambda one: (len(one), one)) == expected()["txids_in_snapshot_order"]


def test_collection_history_is_fabrics(ledger: Ledger) -> None:
    with ledger.tables() as tables:
        entries = [key for key, _ in tables.range(CONFIG_HISTORY)]
    positions = [int.from_bytes(key[-8:]) for key in entries if key.startswith(b"channel\0")]
    assert positions == [0, 1, 2, 71, 76, 77, 79, 81]
    before = ledger.collections_at("gold", 62)
    after = ledger.collections_at("gold", 63)
    assert before is not None
    assert after is not None
    assert [one.static_collection_config.name for one in before.config] == ["collA"]
    assert [one.static_collection_config.name for one in after.config] == ["collA", "collB"]
    assert ledger.collections_at("gold", 5) is None


def test_a_transaction_is_found_by_its_id(ledger: Ledger) -> None:
    block = expected()["blocks"][70]
    for tx in (block["txs"][0], block["txs"][1]):
        record = ledger.transaction(tx["txid"])
        assert record is not None
        assert (record.block, record.index, record.code) == (70, tx["index"], tx["code"])
        assert ledger.block_by_transaction(tx["txid"]) == stored_block(70)
        assert ledger.transaction_envelope(tx["txid"]) == ordered_block(70).data.data[tx["index"]]
    assert ledger.transaction("unknown") is None
    # Stripped of an endorsement by someone, then ordered as it was: the valid one counts.
    stripped = block["txs"][15]["txid"]
    record = ledger.transaction(stripped)
    assert record is not None
    assert (record.index, record.code) == (16, 0)


def test_configuration_at_each_block(ledger: Ledger) -> None:
    assert ledger.config.sequence == expected()["config_sequence"]
    assert "Org3MSP" not in ledger.config_at(71).application_orgs
    assert "Org3MSP" in ledger.config_at(72).application_orgs
    assert "Org3MSP" in ledger.config_at(79).application_orgs
    assert "Org3MSP" not in ledger.config_at(80).application_orgs
    assert ledger.last_config_block() == 81


def test_the_ledger_resumes_where_it_stopped(tmp_path: Path) -> None:
    for stop in (1, 45, 72, HEIGHT):
        with open_ledger(tmp_path) as ledger:
            replay(ledger, stop)
        with open_ledger(tmp_path) as ledger:
            assert ledger.height == stop
            assert ledger.last_block_hash.hex() == expected()["blocks"][stop - 1]["hash"]
    with open_ledger(tmp_path) as ledger:
        assert ledger.commit_hash.hex() == expected()["blocks"][-1]["commit_hash"]


# --- private data: what was hashed is known from the recorded proposals --------------------------


def _transaction_id(number: int, tx: int) -> str:
    return open_block(ordered_block(number))[tx].id


def test_what_we_know_of_private_data_has_the_recorded_hashes() -> None:
    found = {}
    for number in range(1, HEIGHT):
        codes = expected()["blocks"][number]["filter"]
        for one in open_block(ordered_block(number)):
            for namespace in one.namespaces if codes[one.index] == 0 else ():
                for collection in namespace.collections:
                    if collection.private_hash:
                        place = (namespace.name, collection.name, collection.private_hash)
                        found[number, one.index] = place
    known = {
        place: (namespace, collection, hashlib.sha256(data).digest())
        for place, (namespace, collection, data) in private_writes().items()
    }
    assert known == found


@pytest.mark.parametrize("org", [1, 2])
def test_private_state_is_what_each_fabric_peer_gave(tmp_path: Path, org: int) -> None:
    with open_ledger(tmp_path, f"Org{org}MSP") as ledger:
        for number in range(1, HEIGHT):
            for (block, tx), (namespace, collection, data) in private_writes().items():
                if block == number:
                    rwset = private_rwset(namespace, collection, data)
                    ledger.store_transient(_transaction_id(block, tx), rwset, ledger.height)
            if number == 66 and org == 1:
                with ledger.view() as view:
                    bk1 = view.get_private("gold", "collB", "bk1")
                assert bk1 is not None
                assert bk1.value == b"short lived"
            ledger.commit(ordered_block(number))
        assert ledger.missing_private() == []
        _assert_private_values(ledger, org)
        assert ledger.purge_transient(below_height=HEIGHT) == 0
        report = verify_ledger(ledger)
        assert report.problem is None
        assert report.private_values > 0
    with open_ledger(tmp_path, f"Org{org}MSP") as ledger:  # rewritten, as a key was purged
        _assert_private_values(ledger, org)


def _assert_private_values(ledger: Ledger, org: int) -> None:
    seen = expected()["private_data_seen_through_each_peer"][f"peer of Org{org}"]
    for name, known in seen.items():
        collection, key = name.split("/")
        with ledger.view() as view:
            if isinstance(known, dict):
                with pytest.raises(PrivateDataUnavailableError, match="is not on this peer"):
                    view.get_private("gold", collection, key)
                continue
            found = view.get_private("gold", collection, key)
        assert (found.value if found else b"") == base64.b64decode(known), name


def test_missing_private_data_arrive_later(tmp_path: Path) -> None:
    writes = private_writes()
    with open_ledger(tmp_path, "Org1MSP") as ledger:
        replay(ledger)
        missing = ledger.missing_private()
        # Others' implicit collections are not ours to have, and what was in collB expired.
        assert {(one.block, one.tx) for one in missing} == {
            (3, 0), (6, 0), (49, 0), (50, 0), (51, 0), (52, 0), (53, 0), (54, 0), (55, 0), (58, 0),
            (60, 0), (70, 24),
        }  # fmt: skip
        with pytest.raises(PrivateDataError, match="lacks 2 keys"):
            ledger.reconcile(missing[2], b"")
        for place in missing:
            ledger.reconcile(place, writes[place.block, place.tx][2])
        assert ledger.missing_private() == []
        _assert_private_values(ledger, 1)
        held = ledger.private_set(PrivatePlace(50, 0, "gold", "collA"))
        assert held == writes[50, 0][2]
        first = ledger.private_set(PrivatePlace(49, 0, "gold", "collA"))
        assert first is not None
        assert verify_ledger(ledger).problem is None


def test_a_purged_key_leaves_every_set_that_held_it(tmp_path: Path) -> None:
    with open_ledger(tmp_path, "Org1MSP") as ledger:
        for number in range(1, 60):
            for (block, tx), (namespace, collection, data) in private_writes().items():
                if block == number:
                    rwset = private_rwset(namespace, collection, data)
                    ledger.store_transient(_transaction_id(block, tx), rwset, ledger.height)
            ledger.commit(ordered_block(number))
        kept = ledger.private_set(PrivatePlace(49, 0, "gold", "collA"))
        assert kept is not None
        assert b"pk1" in kept
        assert b"pk2" in kept
        assert b"pk3" not in kept
    with open_ledger(tmp_path, "Org1MSP") as ledger, ledger.view() as view:
        assert view.get_private("gold", "collA", "pk3") is None
    written = kvrwset_pb2.KVWrite(key="pk3").SerializeToString()
    assert written not in (tmp_path / "index" / "data.mdb").read_bytes()


# --- lifecycle --------------------------------------------------------------------------------


def test_committed_definitions_are_read(ledger: Ledger) -> None:
    with ledger.view() as view:
        gold, gold2 = lifecycle.definitions(view)
    assert (gold.name, gold.sequence, gold.version) == ("gold", 2, "2.0")
    assert (gold2.name, gold2.sequence, gold2.version) == ("gold2", 1, "1.0")
    wanted, _ = requested_definition(60)
    assert gold == wanted
    members = gold.collection("collA")
    assert members is not None
    assert lifecycle.member_organizations(members) == {"Org1MSP", "Org2MSP"}
    assert gold2.endorsement_policy == lifecycle.policy_reference(lifecycle.DEFAULT_POLICY)


@pytest.mark.parametrize(("approved", "committed"), [(3, 5), (6, 8), (60, 62)])
def test_committing_a_definition_writes_what_fabric_wrote(
    ledger: Ledger, approved: int, committed: int
) -> None:
    wanted, _ = requested_definition(approved)
    records = Writes()
    for number in range(committed):
        for one in open_block(ordered_block(number)):
            for namespace in one.namespaces:
                if namespace.name == lifecycle.NAMESPACE:
                    records.update({w.key: w.value for w in namespace.public.writes})
    before = dict(records)
    lifecycle.commit(wanted, records)
    changed = {key: value for key, value in records.items() if before.get(key) != value}
    (transaction,) = open_block(ordered_block(committed))
    (writing,) = (n for n in transaction.namespaces if n.name == lifecycle.NAMESPACE)
    assert changed == {write.key: write.value for write in writing.public.writes}


def test_approvals_are_recognized_by_their_hashes(ledger: Ledger) -> None:
    def hashes(org: str):
        def get(key: str) -> bytes | None:
            with ledger.view() as view:
                found = view.get_private_hash(
                    lifecycle.NAMESPACE, lifecycle.implicit_collection(org), key_hash(key)
                )
            return found.value if found else None

        return get

    wanted, _ = requested_definition(60)
    organizations = {org: hashes(org) for org in ("Org1MSP", "Org2MSP", "Org3MSP")}
    assert lifecycle.approvals(wanted, organizations) == {
        "Org1MSP": True,
        "Org2MSP": True,
        "Org3MSP": False,
    }
    package_id = (FOLDER / "packages" / "gold.package-id").read_text().strip()
    assert lifecycle.approved_package("gold", 2, approval_writes(60).get) == package_id
    assert lifecycle.approved_package("gold", 3, approval_writes(60).get) is None


def test_verification_finds_nothing(ledger: Ledger) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_ledger(ledger, lambda done, total: seen.append((done, total)))
    assert report.problem is None
    assert (report.height, report.blocks, report.transactions) == (HEIGHT, HEIGHT, 171)
    assert seen[-1] == (HEIGHT, HEIGHT)
