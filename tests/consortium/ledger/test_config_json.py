"""A channel's configuration as JSON and back: Fabric's recorded ones, and JSON that is none."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.ledger.config_json import (
    config_from_json,
    config_to_json,
    message_from_json,
    message_to_json,
)
from consortium.ledger.config_update import ConfigError, compute_update
from consortium.wire import common_pb2, msp_pb2, orderer_pb2, peer_pb2

from .recorded import FOLDER

UPDATES = FOLDER / "config-updates"
CONFIGS = sorted(path.name for path in UPDATES.glob("*.config"))
CHANGES = sorted(path.name.split(".")[0] for path in UPDATES.glob("*.config_update"))


def config(name: str) -> common_pb2.Config:
    return common_pb2.Config.FromString((UPDATES / name).read_bytes())


def as_text(tree: object) -> Any:
    """The tree after a journey through a file."""
    return json.loads(json.dumps(tree))


# ------------------------------------------------------------------ there and back


def test_there_are_recorded_configurations() -> None:
    assert len(CONFIGS) == 14
    assert len(CHANGES) == 7


@pytest.mark.parametrize("name", CONFIGS)
def test_a_recorded_configuration_comes_back(name: str) -> None:
    found = config(name)
    tree = as_text(config_to_json(found))
    assert config_from_json(tree) == found
    assert config_from_json(tree, found) == found
    with pytest.raises(ConfigError, match="nothing to update"):
        compute_update("goldenchannel", found, config_from_json(tree))
    assert config_to_json(config_from_json(tree)) == tree


@pytest.mark.parametrize("name", CHANGES)
def test_an_update_by_way_of_json_is_the_one_that_fabric_computed(name: str) -> None:
    original = config(f"{name}.original.config")
    wanted = config_from_json(as_text(config_to_json(config(f"{name}.updated.config"))), original)
    recorded = common_pb2.ConfigUpdate.FromString((UPDATES / f"{name}.config_update").read_bytes())
    assert compute_update(recorded.channel_id, original, wanted) == recorded


def test_what_a_person_finds_in_it() -> None:
    tree = config_to_json(config("04-revoke-user2-org1.updated.config"))
    channel = tree["channel_group"]
    orderer = channel["groups"]["Orderer"]
    assert orderer["values"]["BatchSize"]["value"] == {
        "max_message_count": 80,
        "absolute_max_bytes": 10 * 2**20,
        "preferred_max_bytes": 2 * 2**20,
    }
    consensus = orderer["values"]["ConsensusType"]["value"]
    assert (consensus["type"], consensus["state"]) == ("etcdraft", "STATE_NORMAL")
    assert consensus["metadata"]["options"]["tick_interval"] == "500ms"
    assert [(one["host"], one["port"]) for one in consensus["metadata"]["consenters"]] == [
        ("127.0.0.1", 7050)
    ]
    assert channel["policies"]["Admins"] == {
        "mod_policy": "Admins",
        "policy": {"type": 3, "value": {"rule": "MAJORITY", "sub_policy": "Admins"}},
        "version": "0",
    }
    member = channel["groups"]["Application"]["groups"]["Org1MSP"]
    assert member["policies"]["Endorsement"]["policy"] == {
        "type": 1,
        "value": {
            "identities": [
                {
                    "principal": {"msp_identifier": "Org1MSP", "role": "PEER"},
                    "principal_classification": "ROLE",
                }
            ],
            "rule": {"n_out_of": {"n": 1, "rules": [{"signed_by": 0}]}},
            "version": 0,
        },
    }
    msp = member["values"]["MSP"]["value"]
    assert (msp["type"], msp["config"]["name"]) == (0, "Org1MSP")
    assert len(msp["config"]["revocation_list"]) == 1
    units = msp["config"]["fabric_node_ous"]
    assert units["peer_ou_identifier"]["organizational_unit_identifier"] == "peer"
    # As configtxlator: what is not set, or empty, is null.
    assert msp["config"]["signing_identity"] is None
    assert orderer["values"]["ChannelRestrictions"]["value"] is None


# ------------------------------------------------------------------ nothing is lost


def test_a_field_from_the_future_stays_as_it_came() -> None:
    later = orderer_pb2.BatchSize(max_message_count=5).SerializeToString() + b"\xa2\x06\x03new"
    found = common_pb2.Config(sequence=2)
    found.channel_group.values["BatchSize"].value = later
    tree = as_text(config_to_json(found))
    assert isinstance(tree["channel_group"]["values"]["BatchSize"]["value"], str)
    assert config_from_json(tree) == found


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x08\x80\x00", b"\x08\x00"])
def test_bytes_that_are_not_what_they_should_be_stay_as_they_came(data: bytes) -> None:
    """Neither garbage nor numbers written longer than they need be."""
    found = common_pb2.Config()
    found.channel_group.values["BatchSize"].value = data
    assert config_from_json(as_text(config_to_json(found))) == found


def test_keys_that_are_not_known_stay_as_they_came() -> None:
    found = common_pb2.Config()
    found.channel_group.values["Unheard"].value = b"\x00\x01"
    found.channel_group.policies["Odd"].policy.CopyFrom(common_pb2.Policy(type=9, value=b"\x02"))
    assert config_from_json(as_text(config_to_json(found))) == found


def test_another_order_of_a_map_is_no_change() -> None:
    one, two = (peer_pb2.ACLs(acls={name: peer_pb2.APIResource(policy_ref=name)}) for name in "ab")
    found = common_pb2.Config()
    value = found.channel_group.values["ACLs"]
    value.value = two.SerializeToString() + one.SerializeToString()
    tree = as_text(config_to_json(found))
    assert list(tree["channel_group"]["values"]["ACLs"]["value"]["acls"]) != []
    assert config_from_json(tree, found) == found
    tree["channel_group"]["values"]["ACLs"]["value"]["acls"]["a"]["policy_ref"] = "c"
    changed = config_from_json(tree, found).channel_group.values["ACLs"].value
    assert peer_pb2.ACLs.FromString(changed).acls["a"].policy_ref == "c"


@pytest.mark.parametrize(
    ("classification", "principal"),
    [
        (0, common_pb2.MSPRole(msp_identifier="AuroraMSP", role=common_pb2.MSPRole.PEER)),
        (1, common_pb2.OrganizationUnit(msp_identifier="A", certifiers_identifier=b"\x01")),
        (2, msp_pb2.SerializedIdentity(mspid="AuroraMSP", id_bytes=b"pem")),
        (3, common_pb2.MSPIdentityAnonymity(anonymity_type=1)),
        (4, common_pb2.CombinedPrincipal(principals=[common_pb2.MSPPrincipal(principal=b"")])),
    ],
)
def test_every_kind_of_principal_is_opened(classification: int, principal: Any) -> None:
    found = common_pb2.MSPPrincipal(
        principal_classification=classification, principal=principal.SerializeToString()
    )
    tree = as_text(message_to_json(found))
    assert isinstance(tree["principal"], dict)
    assert message_from_json(common_pb2.MSPPrincipal, tree, "the principal") == found


# ------------------------------------------------------------------ JSON that is none


def edited(path: str, value: object) -> object:
    """A recorded configuration's JSON with one place replaced."""
    tree: Any = as_text(config_to_json(config(CONFIGS[0])))
    *steps, last = path.split(" ")
    inner = tree
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return tree


ORDERER_VALUES = "channel_group groups Orderer values"


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (None, "must be a JSON object"),
        ([], "must be a JSON object"),
        ({}, 'has no "channel_group"'),
        ({"channel_group": 5}, "channel_group must be a JSON object"),
        ({"channel_group": {"groups": []}}, "groups must be a JSON object"),
        ({"channel_group": {"colour": 1}}, "colour"),
        (edited(f"{ORDERER_VALUES} BatchSize value", 5), "value must be base64"),
        (edited(f"{ORDERER_VALUES} BatchSize value", "%%"), "value must be base64"),
        (
            edited(f"{ORDERER_VALUES} BatchSize value max_message_count", "many"),
            "Orderer, values, BatchSize, value cannot be read",
        ),
        (edited(f"{ORDERER_VALUES} BatchSize value max_message_count", -1), "cannot be read"),
        (edited(f"{ORDERER_VALUES} BatchSize value max_mesage_count", 1), "max_mesage_count"),
        (edited(f"{ORDERER_VALUES} ConsensusType value metadata consenters", {}), "a JSON list"),
        (edited(f"{ORDERER_VALUES} Unheard", {"value": {}}), "must be base64"),
        (edited("channel_group policies Admins policy type", 7), "must be base64"),
    ],
)
def test_json_that_is_no_configuration(tree: object, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config_from_json(tree)
    assert said in str(refused.value)


def test_json_nested_too_deep() -> None:
    tree: dict[str, object] = {}
    for _ in range(200):
        tree = {"groups": {"deeper": tree}}
    with pytest.raises(ConfigError, match="nested deeper than"):
        config_from_json({"channel_group": tree})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["value", "policy", "type", "groups", "version", "BatchSize", "?"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
RECORDED = config_to_json(config(CONFIGS[-1]))


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


@settings(max_examples=150)
@given(st.sampled_from(places(RECORDED)), JSON)
def test_one_wrong_place_is_a_sentence_or_a_configuration(
    place: tuple[Any, ...], value: object
) -> None:
    tree: Any = copy.deepcopy(RECORDED)
    inner = tree
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    try:
        found = config_from_json(tree)
    except ConfigError:
        return
    assert config_from_json(as_text(config_to_json(found))) == found
