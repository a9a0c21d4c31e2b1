"""What an operator changes, and whose agreement it needs: on recorded configurations of Fabric."""

import json
from typing import Any

import pytest

from consortium.identity.policies import implicit_meta, parse_policy
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import ChannelConfig
from consortium.ledger.config_changes import (
    Lacking,
    PendingUpdate,
    add_organization,
    change_setting,
    changes,
    copied,
    describe_policy,
    organization_from_json,
    remove_organization,
)
from consortium.ledger.config_json import config_to_json
from consortium.ledger.config_update import ConfigError, compute_update
from consortium.wire import common_pb2
from consortium.wire.envelopes import WireError

from .recorded import FOLDER

UPDATES = FOLDER / "config-updates"
CHANNEL = "goldenchannel"


def config(name: str) -> common_pb2.Config:
    return common_pb2.Config.FromString((UPDATES / f"{name}.config").read_bytes())


def recorded_update(name: str) -> common_pb2.ConfigUpdate:
    return common_pb2.ConfigUpdate.FromString((UPDATES / f"{name}.config_update").read_bytes())


def signer(name: str, msp_id: str) -> Signer:
    keys = FOLDER / "test-keys"
    return Signer.load(msp_id, keys / f"{name}.cert.pem", keys / f"{name}.key.pem")


# ------------------------------------------------------------------ changing


def test_settings_give_the_update_that_fabric_computed() -> None:
    original = config("01-batchsize.original")
    size = ChannelConfig(CHANNEL, config("01-batchsize.updated")).orderer.max_message_count
    wanted = copied(original)
    change_setting(wanted, "batch-size", str(size))
    assert compute_update(CHANNEL, original, wanted) == recorded_update("01-batchsize")
    assert [str(one) for one in changes(original, wanted)] == [
        f"/Channel/Orderer/BatchSize max_message_count: 60 -> {size}"
    ]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("preferred-max-bytes", "512KiB", 512 * 1024),
        ("preferred-max-bytes", "1 MiB", 1024 * 1024),
        ("absolute-max-bytes", "20971520", 20 * 1024 * 1024),
        ("batch-timeout", "1m30s", 90.0),
    ],
)
def test_values_of_settings(name: str, text: str, found: float) -> None:
    wanted = copied(config("01-batchsize.original"))
    change_setting(wanted, name, text)
    orderer = ChannelConfig(CHANNEL, wanted).orderer
    assert found in (
        orderer.preferred_max_bytes,
        orderer.absolute_max_bytes,
        orderer.batch_timeout_s,
    )


@pytest.mark.parametrize("text", ["", "-1", "1.5", "4294967296", "5000 MiB", "9" * 50])
def test_sizes_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="absolute-max-bytes: "):
        change_setting(copied(config("01-batchsize.original")), "absolute-max-bytes", text)


def test_a_member_joins_as_fabric_let_it_join() -> None:
    """From the JSON that `configtxgen -printOrg` prints."""
    original, updated = config("03-add-org3.original"), config("03-add-org3.updated")
    tree: Any = config_to_json(updated)["channel_group"]["groups"]["Application"]["groups"]
    wanted = copied(original)
    group = organization_from_json(json.loads(json.dumps(tree["Org3MSP"])))
    assert add_organization(wanted, group) == "Org3MSP"
    assert compute_update(CHANNEL, original, wanted) == recorded_update("03-add-org3")
    with pytest.raises(ConfigError, match="Org3MSP is a member of the channel already"):
        add_organization(wanted, group)
    with pytest.raises(ConfigError, match="has no MSP"):
        add_organization(wanted, common_pb2.ConfigGroup())


def test_a_member_leaves_as_fabric_let_it_leave() -> None:
    original = config("06-remove-org3.original")
    wanted = copied(original)
    remove_organization(wanted, "Org3MSP")
    assert compute_update(CHANNEL, original, wanted) == recorded_update("06-remove-org3")
    with pytest.raises(ConfigError, match="Org3MSP is no member of the channel; there are Org1MSP"):
        remove_organization(wanted, "Org3MSP")
    remove_organization(wanted, "Org2MSP")
    with pytest.raises(ConfigError, match="Org1MSP is the only member"):
        remove_organization(wanted, "Org1MSP")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("03-add-org3", ["/Channel/Application/Org3MSP: 5 fields added"]),
        ("06-remove-org3", ["/Channel/Application/Org3MSP: 5 fields removed"]),
    ],
)
def test_differences_in_a_line(name: str, lines: list[str]) -> None:
    found = changes(config(f"{name}.original"), config(f"{name}.updated"))
    assert [str(one) for one in found] == lines


# ------------------------------------------------------------------ agreeing


def pending(name: str) -> PendingUpdate:
    return PendingUpdate(CHANNEL, (UPDATES / f"{name}.config_update").read_bytes())


def test_who_still_has_to_sign() -> None:
    current = ChannelConfig(CHANNEL, config("03-add-org3.original"))
    update = pending("03-add-org3")
    admins = "/Channel/Application/Admins"
    (nobody,) = update.lacking(current)
    assert nobody == Lacking(admins, 2, (), ("Org1MSP", "Org2MSP"))
    assert str(nobody) == (
        f"{admins} needs 2 of Org1MSP, Org2MSP; nobody signed, so 2 of Org1MSP, Org2MSP still "
        "have to sign"
    )
    one = update.signed_by(signer("org1-admin", "Org1MSP"))
    assert one.lacking(current) == [Lacking(admins, 2, ("Org1MSP",), ("Org2MSP",))]
    # The same again adds nothing.
    assert one.signed_by(signer("org1-admin", "Org1MSP")) == one
    both = one.signed_by(signer("org2-admin", "Org2MSP"))
    assert both.lacking(current) == []
    proposed = current.propose_update(both.envelope(signer("org1-admin", "Org1MSP")))
    assert proposed.config == both.result(current)
    assert changes(proposed.config, config("03-add-org3.updated")) == []


def test_who_is_no_administrator_does_not_count() -> None:
    current = ChannelConfig(CHANNEL, config("02-anchor-org2.original"))
    update = pending("02-anchor-org2").signed_by(signer("org2-user1", "Org2MSP"))
    (lacking,) = update.lacking(current)
    assert (lacking.policy, lacking.missing) == (
        "/Channel/Application/Org2MSP/Admins",
        ("Org2MSP.admin",),
    )
    assert update.signed_by(signer("org2-admin", "Org2MSP")).lacking(current) == []


def test_a_file_that_goes_round() -> None:
    update = pending("01-batchsize").signed_by(signer("org1-admin", "Org1MSP"))
    assert PendingUpdate.from_bytes(update.to_bytes()) == update
    # Fabric's own file of the same update, with its administrators' signatures.
    recorded = PendingUpdate.from_bytes((UPDATES / "01-batchsize.envelope").read_bytes())
    assert recorded.update == update.update
    assert recorded.lacking(ChannelConfig(CHANNEL, config("01-batchsize.original"))) == []


@pytest.mark.parametrize("raw", [b"", b"\xff", b"\x0a\x02\x0a\x00"])
def test_files_that_are_no_update(raw: bytes) -> None:
    with pytest.raises((ConfigError, WireError)):
        PendingUpdate.from_bytes(raw)


@pytest.mark.parametrize(
    "text",
    [
        "OR('A.admin')",
        "AND('A.peer', 'B.member')",
        "OutOf(2, 'A.peer', 'B.peer', 'C.peer')",
        "OR('A.admin', AND('B.client', 'C.orderer'))",
    ],
)
def test_policies_as_they_are_written(text: str) -> None:
    written = common_pb2.Policy(
        type=common_pb2.Policy.SIGNATURE, value=parse_policy(text).SerializeToString()
    )
    assert describe_policy(written) == text


def test_meta_policies_as_they_are_written() -> None:
    value = implicit_meta("MAJORITY", "Admins").SerializeToString()
    written = common_pb2.Policy(type=common_pb2.Policy.IMPLICIT_META, value=value)
    assert describe_policy(written) == "MAJORITY Admins"
