"""A channel's configuration: a recorded Fabric channel's, and those that we make ourselves."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
)
from consortium.identity.msp import IdentityError
from consortium.identity.policies import (
    PolicyError,
    PolicyNotFound,
    parse_policy,
    role_principal,
    signature_policy_any,
)
from consortium.identity.signing import Signer
from consortium.ledger.channel_config import (
    ChannelConfig,
    ChannelSpec,
    Consenter,
    OrganizationSpec,
    RaftOptions,
    application_organization_group,
    channel_group,
    check_channel_id,
    config_of_block,
    format_duration,
    genesis_block,
    parse_duration,
)
from consortium.ledger.config_update import (
    ConfigError,
    compute_update,
    sign_update,
    update_envelope,
)
from consortium.wire import common_pb2, msp_pb2, orderer_pb2, peer_pb2
from consortium.wire.blocks import data_hash

RECORDED = Path(__file__).parents[2] / "data" / "fabric" / "recorded"
CONFIG_BLOCKS = {
    1: "01-batchsize",
    2: "02-anchor-org2",
    71: "03-add-org3",
    76: "04-revoke-user2-org1",
    77: "05-open-writers",
    79: "06-remove-org3",
    81: "07-restore-writers",
}
CHANNEL = "neighbourhood"
UTILITIES = ("Aurora", "Boreal", "Cielo")


def recorded_block(number: int) -> common_pb2.Block:
    return common_pb2.Block.FromString((RECORDED / "blocks" / f"{number:04}.block").read_bytes())


def recorded_update(name: str, what: str) -> bytes:
    return (RECORDED / "config-updates" / f"{name}.{what}").read_bytes()


# ------------------------------------------------------------------ the recorded channel


def test_a_recorded_genesis_block_is_read() -> None:
    config = ChannelConfig.from_block(recorded_block(0))
    assert (config.channel_id, config.sequence) == ("goldenchannel", 0)
    assert config.capabilities == {"V3_0"}
    assert config.application_capabilities == {"V2_5"}
    assert config.application_orgs == ("Org1MSP", "Org2MSP")
    assert config.anchor_peers == {"Org1MSP": (("127.0.0.1", 7051),), "Org2MSP": ()}
    assert sorted(config.msps.msps) == ["OrdererMSP", "Org1MSP", "Org2MSP"]
    orderer = config.orderer
    assert orderer.consensus_type == "etcdraft"
    assert orderer.max_message_count == 60
    assert (orderer.absolute_max_bytes, orderer.preferred_max_bytes) == (10 * 2**20, 2 * 2**20)
    assert orderer.batch_timeout_s == 0.7
    assert orderer.endpoints == {"OrdererMSP": ("127.0.0.1:7050",)}
    assert [(one.host, one.port) for one in orderer.consenters] == [("127.0.0.1", 7050)]
    x509.load_pem_x509_certificate(orderer.consenters[0].server_tls_certificate_pem)
    assert orderer.raft == RaftOptions(0.5, 10, 1, 5, 16 * 2**20)
    assert not orderer.in_maintenance
    assert config.application_group("Org1MSP") == "Org1MSP"
    assert config.application_group("OrdererMSP") is None


def test_updates_are_those_that_fabric_computes() -> None:
    for name in CONFIG_BLOCKS.values():
        original = common_pb2.Config.FromString(recorded_update(name, "original.config"))
        updated = common_pb2.Config.FromString(recorded_update(name, "updated.config"))
        wanted = common_pb2.ConfigUpdate.FromString(recorded_update(name, "config_update"))
        assert compute_update("goldenchannel", original, updated) == wanted, name


def test_recorded_updates_give_the_recorded_configurations() -> None:
    config = ChannelConfig.from_block(recorded_block(0))
    for number, name in CONFIG_BLOCKS.items():
        envelope = common_pb2.Envelope.FromString(recorded_update(name, "envelope"))
        _, ordered = config_of_block(recorded_block(number))
        assert config.propose_update(envelope) == ordered, name
        config = config.validate(ordered)
        assert config.sequence == ordered.config.sequence
    assert config.sequence == 7


def test_a_recorded_update_holds_at_its_own_sequence_alone() -> None:
    envelope = common_pb2.Envelope.FromString(recorded_update("01-batchsize", "envelope"))
    _, ordered = config_of_block(recorded_block(1))
    later = ChannelConfig.from_block(recorded_block(1))
    with pytest.raises(ConfigError, match="is at version 1, so the next is 2"):
        later.propose_update(envelope)
    with pytest.raises(ConfigError, match="the next is 2, not 1"):
        later.validate(ordered)


def test_a_configuration_that_its_update_does_not_make_is_refused() -> None:
    config = ChannelConfig.from_block(recorded_block(0))
    _, ordered = config_of_block(recorded_block(1))
    ordered.config.channel_group.values["Capabilities"].version = 9
    with pytest.raises(ConfigError, match="not what its own update makes"):
        config.validate(ordered)


def test_other_blocks_carry_no_configuration() -> None:
    with pytest.raises(ConfigError, match="block 9 is no configuration block"):
        ChannelConfig.from_block(recorded_block(9))
    with pytest.raises(ConfigError, match="it has 33 transactions"):
        ChannelConfig.from_block(recorded_block(70))
    garbage = common_pb2.Block(data=common_pb2.BlockData(data=[b"\xff"]))
    with pytest.raises(ConfigError, match="no configuration block"):
        ChannelConfig.from_block(garbage)


# ------------------------------------------------------------------ a channel of our own

AUTHORITIES = {
    name: CertificateAuthority.create(name, f"{name.lower()}.example") for name in UTILITIES
}


def member(utility: str, role: str) -> Signer:
    key = generate_key()
    certificate = AUTHORITIES[utility].issue(f"{role}@{utility}", role, key.public_key())
    return Signer(f"{utility}MSP", certificate_pem(certificate), key)


ADMINS = {name: member(name, "admin") for name in UTILITIES}


def organization(name: str, port: int = 7050) -> OrganizationSpec:
    return OrganizationSpec(
        msp_id=f"{name}MSP",
        root_pem=AUTHORITIES[name].certificate_pem,
        anchor_peers=(("127.0.0.1", port + 1),),
        orderer_endpoints=(f"127.0.0.1:{port}",),
    )


def spec(**options: object) -> ChannelSpec:
    pem = certificate_pem(
        AUTHORITIES["Aurora"].issue("o", "orderer", generate_key().public_key(), hosts=("h",))
    )
    return ChannelSpec(
        channel_id=CHANNEL,
        organizations=tuple(organization(name) for name in UTILITIES),
        consenters=(Consenter("127.0.0.1", 7053, pem, pem),),
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
def config() -> ChannelConfig:
    return ChannelConfig.from_block(genesis_block(spec()))


def changed(
    config: ChannelConfig, change: Callable[[common_pb2.ConfigGroup], object]
) -> common_pb2.Config:
    wanted = common_pb2.Config()
    wanted.CopyFrom(config.config)
    change(wanted.channel_group)
    return wanted


def envelope(
    config: ChannelConfig, wanted: common_pb2.Config, *signers: Signer
) -> common_pb2.Envelope:
    update = compute_update(config.channel_id, config.config, wanted).SerializeToString()
    return update_envelope(
        config.channel_id,
        update,
        [sign_update(update, signer) for signer in signers],
        ADMINS["Aurora"],
    )


def set_batch(group: common_pb2.ConfigGroup, count: int = 7) -> None:
    size = orderer_pb2.BatchSize(
        max_message_count=count, absolute_max_bytes=2000, preferred_max_bytes=1000
    )
    group.groups["Orderer"].values["BatchSize"].value = size.SerializeToString()


def test_a_genesis_block_is_shaped_as_fabrics() -> None:
    block = genesis_block(spec(), timestamp_ns=5_000_000_123, nonce=b"n" * 24)
    theirs = recorded_block(0)
    assert block.header.number == 0
    assert block.header.previous_hash == b""
    assert block.header.data_hash == data_hash(block.data.data)
    assert list(block.metadata.metadata) == [*theirs.metadata.metadata[:2], b"", b"", b""]

    def shape(block: common_pb2.Block) -> tuple[object, ...]:
        payload = common_pb2.Payload.FromString(
            common_pb2.Envelope.FromString(block.data.data[0]).payload
        )
        header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
        fields = sorted(field.name for field, _ in header.ListFields())
        return header.type, header.version, fields, header.timestamp.nanos

    assert shape(block) == shape(theirs)

    def names(group: common_pb2.ConfigGroup) -> dict[str, object]:
        return {
            "mod_policy": group.mod_policy,
            "values": sorted(group.values),
            "policies": sorted(group.policies),
            "mods": {one.mod_policy for one in (*group.values.values(), *group.policies.values())},
        }

    ours = config_of_block(block)[1].config.channel_group
    known = config_of_block(theirs)[1].config.channel_group
    assert names(ours) == names(known)
    for group in ("Application", "Orderer"):
        assert names(ours.groups[group]) == names(known.groups[group])
    assert names(ours.groups["Application"].groups["AuroraMSP"]) == names(
        known.groups["Application"].groups["Org1MSP"]
    )
    assert names(ours.groups["Orderer"].groups["AuroraMSP"]) == names(
        known.groups["Orderer"].groups["OrdererOrg"]
    )


def test_a_genesis_block_is_the_same_for_the_same_input() -> None:
    once = spec()
    first, second = (genesis_block(once, timestamp_ns=1, nonce=b"n" * 24) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


def test_our_channel_says_what_was_asked_for(config: ChannelConfig) -> None:
    assert config.capabilities == {"V2_0"}
    assert config.application_orgs == ("AuroraMSP", "BorealMSP", "CieloMSP")
    assert config.orderer.organizations == config.application_orgs
    assert config.orderer.endpoints["BorealMSP"] == ("127.0.0.1:7050",)
    assert config.anchor_peers["CieloMSP"] == (("127.0.0.1", 7051),)
    assert config.orderer.batch_timeout_s == 0.2
    assert config.orderer.max_message_count == 500


def test_who_may_do_what_on_our_channel(config: ChannelConfig) -> None:
    def may(path: str, *signers: Signer) -> bool:
        found = [config.msps.identity(signer.serialized) for signer in signers]
        return config.policy(path).satisfied_by(found)

    home, peer = member("Aurora", "client"), member("Aurora", "peer")
    orderer = member("Boreal", "orderer")
    assert may("/Channel/Application/Writers", home)
    assert may("/Channel/Writers", home)
    assert not may("/Channel/Application/Writers", peer)
    assert may("/Channel/Readers", peer)
    assert may("/Channel/Application/Endorsement", peer, member("Boreal", "peer"))
    assert not may("/Channel/Application/Endorsement", peer)
    assert may("/Channel/Orderer/BlockValidation", orderer)
    for other in (home, peer, ADMINS["Aurora"]):
        assert not may("/Channel/Orderer/BlockValidation", other)
    assert may("/Channel/Writers", orderer)
    assert may("/Channel/Admins", ADMINS["Aurora"], ADMINS["Cielo"])
    assert not may("/Channel/Admins", ADMINS["Aurora"])
    assert config.policy("Application/Writers") is config.policy("/Channel/Application/Writers")
    with pytest.raises(PolicyNotFound, match="no policy /Channel/Application/Kings"):
        config.policy("/Channel/Application/Kings")


def test_application_policies(config: ChannelConfig) -> None:
    by_reference = common_pb2.ApplicationPolicy(
        channel_config_policy_reference="/Channel/Application/Endorsement"
    ).SerializeToString()
    policy = config.application_policy(by_reference)
    assert policy is config.application_policy(by_reference)
    assert policy.satisfied_by_peers_of(["AuroraMSP", "BorealMSP"])
    direct = common_pb2.ApplicationPolicy(
        signature_policy=signature_policy_any([role_principal("CieloMSP", "peer")])
    )
    assert config.application_policy(direct.SerializeToString()).satisfied_by_peers_of(["CieloMSP"])
    for broken in (b"", b"\xff"):
        with pytest.raises(PolicyError):
            config.application_policy(broken)


def test_a_majority_changes_the_batch_size(config: ChannelConfig) -> None:
    wanted = changed(config, set_batch)
    proposed = config.propose_update(envelope(config, wanted, ADMINS["Aurora"], ADMINS["Boreal"]))
    new = config.validate(proposed)
    assert new.orderer.max_message_count == 7
    assert new.sequence == 1
    assert config.orderer.max_message_count == 500
    value = new.config.channel_group.groups["Orderer"].values["BatchSize"]
    assert value.version == 1


def test_too_few_signatures_are_refused(config: ChannelConfig) -> None:
    wanted = changed(config, set_batch)
    for signers in ((), (ADMINS["Aurora"],), (ADMINS["Aurora"], ADMINS["Aurora"])):
        with pytest.raises(ConfigError, match="/Channel/Orderer/Admins"):
            config.propose_update(envelope(config, wanted, *signers))
    with pytest.raises(ConfigError, match="do not satisfy it"):
        config.propose_update(
            envelope(config, wanted, ADMINS["Aurora"], member("Boreal", "client"))
        )


def test_signatures_over_something_else_do_not_count(config: ChannelConfig) -> None:
    update = compute_update(CHANNEL, config.config, changed(config, set_batch))
    signed = [sign_update(b"another update", ADMINS[name]) for name in UTILITIES]
    with pytest.raises(ConfigError, match="the signatures of nobody"):
        config.propose_update(
            update_envelope(CHANNEL, update.SerializeToString(), signed, ADMINS["Aurora"])
        )


def test_a_utility_changes_its_own_anchor_peers_alone(config: ChannelConfig) -> None:
    def change(group: common_pb2.ConfigGroup) -> None:
        anchors = peer_pb2.AnchorPeers(anchor_peers=[peer_pb2.AnchorPeer(host="h", port=1)])
        org = group.groups["Application"].groups["BorealMSP"]
        org.values["AnchorPeers"].value = anchors.SerializeToString()

    wanted = changed(config, change)
    new = config.validate(config.propose_update(envelope(config, wanted, ADMINS["Boreal"])))
    assert new.anchor_peers["BorealMSP"] == (("h", 1),)
    with pytest.raises(ConfigError, match="/Channel/Application/BorealMSP/Admins"):
        config.propose_update(envelope(config, wanted, ADMINS["Aurora"], ADMINS["Cielo"]))


def test_a_utility_joins_and_leaves(config: ChannelConfig) -> None:
    dawn = CertificateAuthority.create("Dawn", "dawn.example")
    key = generate_key()
    home = Signer("DawnMSP", certificate_pem(dawn.issue("h", "client", key.public_key())), key)
    group = application_organization_group(OrganizationSpec("DawnMSP", dawn.certificate_pem))
    signers = (ADMINS["Aurora"], ADMINS["Boreal"])

    joined = config.validate(
        config.propose_update(
            envelope(
                config,
                changed(
                    config,
                    lambda root: root.groups["Application"].groups["DawnMSP"].CopyFrom(group),
                ),
                *signers,
            )
        )
    )
    assert "DawnMSP" in joined.application_orgs
    assert joined.config.channel_group.groups["Application"].version == 1
    joined.msps.identity(home.serialized)
    # Of four organizations, a majority is three.
    wanted = changed(joined, lambda root: root.groups["Application"].groups.pop("DawnMSP"))
    with pytest.raises(ConfigError, match="/Channel/Application/Admins"):
        joined.propose_update(envelope(joined, wanted, *signers))
    left = joined.validate(
        joined.propose_update(envelope(joined, wanted, *signers, ADMINS["Cielo"]))
    )
    assert left.application_orgs == config.application_orgs


def test_a_utility_revokes_a_certificate_of_its_own(config: ChannelConfig) -> None:
    home, other = member("Aurora", "client"), member("Aurora", "client")
    config.msps.identity(home.serialized)
    revocation = AUTHORITIES["Aurora"].revocation_list([home.certificate.serial_number])
    wanted = config.with_revocation_lists("AuroraMSP", [revocation])
    with pytest.raises(ConfigError, match="AuroraMSP/Admins"):
        config.propose_update(envelope(config, wanted, ADMINS["Boreal"], ADMINS["Cielo"]))
    new = config.validate(config.propose_update(envelope(config, wanted, ADMINS["Aurora"])))
    with pytest.raises(IdentityError, match="is revoked by AuroraMSP"):
        new.msps.identity(home.serialized)
    new.msps.identity(other.serialized)
    config.msps.identity(home.serialized)
    with pytest.raises(ConfigError, match="NobodyMSP is not a member"):
        config.with_revocation_lists("NobodyMSP", [])


def test_updates_that_cannot_be(config: ChannelConfig) -> None:
    both = (ADMINS["Aurora"], ADMINS["Boreal"])

    def refused(message: str, change: Callable[[common_pb2.ConfigGroup], object]) -> None:
        with pytest.raises(ConfigError, match=message):
            config.propose_update(envelope(config, changed(config, change), *both))

    def value(path: str, content: bytes) -> Callable[[common_pb2.ConfigGroup], object]:
        *groups, key = path.split("/")

        def change(group: common_pb2.ConfigGroup) -> None:
            for name in groups:
                group = group.groups[name]
            group.values[key].value = content
            group.values[key].mod_policy = "Admins"

        return change

    refused("unknown value Custom", value("Application/Custom", b""))
    refused("cannot be read", value("Orderer/BatchSize", b"\xff"))
    refused("limit of 0", value("Orderer/BatchSize", b""))
    timeout = orderer_pb2.BatchTimeout(timeout="soon").SerializeToString()
    refused("not a duration", value("Orderer/BatchTimeout", timeout))
    zero = orderer_pb2.BatchTimeout(timeout="0s").SerializeToString()
    refused("above 0", value("Orderer/BatchTimeout", zero))
    newer = common_pb2.Capabilities(capabilities={"V9_0": common_pb2.Capability()})
    refused("run a newer one", value("Capabilities", newer.SerializeToString()))
    older = common_pb2.Capabilities(capabilities={"V1_1": common_pb2.Capability()})
    refused("needs one of", value("Capabilities", older.SerializeToString()))
    other = msp_pb2.MSPConfig(
        config=msp_pb2.FabricMSPConfig(
            name="AuroraMSP", root_certs=[AUTHORITIES["Boreal"].certificate_pem]
        ).SerializeToString()
    )
    refused("not valid", value("Application/AuroraMSP/MSP", b""))
    refused("Application/AuroraMSP", value("Application/AuroraMSP/MSP", other.SerializeToString()))
    refused("names|no name", lambda root: root.groups["Application"].groups["a b"].SetInParent())
    refused("without a mod_policy", lambda root: setattr(root, "mod_policy", ""))

    def sub_group(root: common_pb2.ConfigGroup) -> None:
        root.groups["Application"].groups["AuroraMSP"].groups["x"].mod_policy = "Admins"

    with pytest.raises(ConfigError, match="sub-groups"):
        config.propose_update(envelope(config, changed(config, sub_group), ADMINS["Aurora"]))


def test_an_organization_keeps_its_msp_id(config: ChannelConfig) -> None:
    def change(root: common_pb2.ConfigGroup) -> None:
        for group in ("Application", "Orderer"):
            one = root.groups[group].groups
            definition = OrganizationSpec("OtherMSP", AUTHORITIES["Aurora"].certificate_pem).msp
            one["AuroraMSP"].values["MSP"].value = definition.SerializeToString()

    with pytest.raises(ConfigError, match="may not change its MSP id from AuroraMSP to OtherMSP"):
        config.propose_update(envelope(config, changed(config, change), ADMINS["Aurora"]))


def test_one_definition_for_both_groups(config: ChannelConfig) -> None:
    def change(root: common_pb2.ConfigGroup) -> None:
        revoked = AUTHORITIES["Aurora"].revocation_list([1])
        definition = OrganizationSpec(
            "AuroraMSP", AUTHORITIES["Aurora"].certificate_pem, revocation_lists=(revoked,)
        ).msp
        org = root.groups["Application"].groups["AuroraMSP"]
        org.values["MSP"].value = definition.SerializeToString()

    with pytest.raises(ConfigError, match="two different ways"):
        config.propose_update(envelope(config, changed(config, change), ADMINS["Aurora"]))


def test_envelopes_that_are_no_updates(config: ChannelConfig) -> None:
    wanted = changed(config, set_batch)
    good = envelope(config, wanted, *ADMINS.values())
    payload = common_pb2.Payload.FromString(good.payload)
    header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    header.type = common_pb2.CONFIG
    payload.header.channel_header = header.SerializeToString()
    with pytest.raises(ConfigError, match="of type 1, not a CONFIG_UPDATE"):
        config.propose_update(common_pb2.Envelope(payload=payload.SerializeToString()))
    with pytest.raises(ConfigError, match="payload is not a valid"):
        config.propose_update(common_pb2.Envelope(payload=b"\xff"))
    update = compute_update("other", config.config, wanted).SerializeToString()
    with pytest.raises(ConfigError, match="for channel 'other', not 'neighbourhood'"):
        config.propose_update(update_envelope(CHANNEL, update, [], ADMINS["Aurora"]))
    signature = common_pb2.ConfigSignature(signature_header=b"\xff")
    with pytest.raises(ConfigError, match="signature's header"):
        config.propose_update(
            update_envelope(
                CHANNEL,
                compute_update(CHANNEL, config.config, wanted).SerializeToString(),
                [signature],
                ADMINS["Aurora"],
            )
        )
    many = [common_pb2.ConfigSignature()] * 257
    with pytest.raises(ConfigError, match="256 are allowed"):
        config.propose_update(
            update_envelope(
                CHANNEL,
                compute_update(CHANNEL, config.config, wanted).SerializeToString(),
                many,
                ADMINS["Aurora"],
            )
        )


def test_forged_versions_are_refused(config: ChannelConfig) -> None:
    def propose(change: Callable[[common_pb2.ConfigUpdate], object]) -> None:
        update = compute_update(CHANNEL, config.config, changed(config, set_batch))
        change(update)
        raw = update.SerializeToString()
        config.propose_update(
            update_envelope(
                CHANNEL,
                raw,
                [sign_update(raw, one) for one in ADMINS.values()],
                ADMINS["Aurora"],
            )
        )

    def set_version(update: common_pb2.ConfigUpdate) -> None:
        update.write_set.groups["Orderer"].values["BatchSize"].version = 5

    def drop_all(update: common_pb2.ConfigUpdate) -> None:
        update.write_set.CopyFrom(update.read_set)

    def read_missing(update: common_pb2.ConfigUpdate) -> None:
        update.read_set.groups["Nobody"].version = 0

    def add_at_version(update: common_pb2.ConfigUpdate) -> None:
        update.write_set.groups["Orderer"].values["New"].version = 3
        update.write_set.groups["Orderer"].values["New"].mod_policy = "Admins"

    for change, message in (
        (set_version, "so the next is 1"),
        (drop_all, "changes nothing"),
        (read_missing, "which does not exist"),
        (add_at_version, "start at version 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            propose(change)


def test_an_element_that_is_not_listed_is_not_added(config: ChannelConfig) -> None:
    """New elements need no policy of their own: only the group's new version lists them."""
    update = compute_update(CHANNEL, config.config, changed(config, set_batch))
    one = update.write_set.groups["Orderer"].policies["Backdoor"]
    one.policy.type = common_pb2.Policy.SIGNATURE
    one.policy.value = parse_policy("OutOf(0, 'AuroraMSP.peer')").SerializeToString()
    one.mod_policy = "Admins"
    raw = update.SerializeToString()
    signatures = [sign_update(raw, admin) for admin in ADMINS.values()]
    proposed = config.propose_update(update_envelope(CHANNEL, raw, signatures, ADMINS["Aurora"]))
    assert "Backdoor" not in proposed.config.channel_group.groups["Orderer"].policies


def test_nothing_to_update(config: ChannelConfig) -> None:
    with pytest.raises(ConfigError, match="nothing to update"):
        compute_update(CHANNEL, config.config, config.config)


def test_v3_asks_for_endpoints() -> None:
    assert ChannelConfig.from_block(genesis_block(spec(channel_capability="V3_0")))
    config = common_pb2.Config(channel_group=channel_group(spec(channel_capability="V3_0")))
    org = config.channel_group.groups["Orderer"].groups["AuroraMSP"]
    org.values["Endpoints"].value = b""
    with pytest.raises(ConfigError, match="has no Endpoints"):
        ChannelConfig.from_config(CHANNEL, config)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("200ms", 0.2),
        ("2s", 2.0),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        ("10us", 1e-5),
        ("10µs", 1e-5),
        ("0", 0.0),
        ("-1s", -1.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "s", "2 s", "2x", "1s2", "-", "1e3s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="not a duration"):
        parse_duration(text)


def test_durations_are_written_as_go_reads_them() -> None:
    assert [format_duration(s) for s in (0.2, 2, 0.7, 90)] == ["200ms", "2s", "700ms", "90s"]


def test_channel_ids() -> None:
    check_channel_id("neighbourhood-1.a")
    for wrong in ("", "A", "1a", "a_b", "a" * 250, "a/b"):
        with pytest.raises(ConfigError, match="no channel id"):
            check_channel_id(wrong)


def test_a_channel_needs_a_consenter() -> None:
    with pytest.raises(ConfigError, match="no consenter"):
        genesis_block(
            ChannelSpec(channel_id=CHANNEL, organizations=(organization("Aurora"),), consenters=())
        )


def test_one_organizations_addresses_are_not_all_that_is_tried(config: ChannelConfig) -> None:
    """Its administrator alone decides on them: nobody's time is spent on thousands of them."""

    def change(root: common_pb2.ConfigGroup) -> None:
        for name in ("Boreal", "Cielo"):
            orderers = root.groups["Orderer"].groups[f"{name}MSP"]
            many = 10_000 if name == "Boreal" else 3
            orderers.values["Endpoints"].value = common_pb2.OrdererAddresses(
                addresses=[f"{name}:{at}" for at in range(many)]
            ).SerializeToString()
        peers = root.groups["Application"].groups["BorealMSP"]
        peers.values["AnchorPeers"].value = peer_pb2.AnchorPeers(
            anchor_peers=[peer_pb2.AnchorPeer(host="h", port=at) for at in range(10_000)]
        ).SerializeToString()

    signers = (ADMINS["Boreal"], ADMINS["Cielo"])
    new = config.validate(
        config.propose_update(envelope(config, changed(config, change), *signers))
    )
    assert len(new.anchor_peers["BorealMSP"]) == 32
    settings = new.orderer
    everybody = {msp_id for msp_id, named in settings.endpoints.items() if named}
    tried = settings.addresses("CieloMSP")
    assert tried[0][0] == "CieloMSP"
    assert {msp_id for msp_id, _ in tried[: len(everybody)]} == everybody
    assert all(address in settings.endpoints[msp_id] for msp_id, address in tried)
    assert sum(msp_id == "BorealMSP" for msp_id, _ in tried) == 8
    assert {address for msp_id, address in tried if msp_id == "CieloMSP"} == {
        f"Cielo:{at}" for at in range(3)
    }
    # Each time others of them, so that one that is there is found.
    assert settings.addresses() != settings.addresses()
