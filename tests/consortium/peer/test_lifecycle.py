"""`_lifecycle` over the recorded chain: what a peer answers its admins, and what it refuses."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf.message import Message

from consortium.chaincode.executor import InProcessExecutor
from consortium.chaincode.packages import PackageStore, served_package
from consortium.chaincode.remote import Connection
from consortium.chaincode.routing import PackageExecutor
from consortium.identity.policies import parse_policy
from consortium.peer.contracts import Contracts
from consortium.peer.endorser import Endorser
from consortium.wire import lifecycle_pb2, peer_pb2
from tests.consortium.ledger.recorded import FOLDER

from .recorded_peer import CHANNEL, RecordedPeer, member, recorded_peer
from .test_system_chaincodes import _call

HEIGHT = 40
GOLD = (FOLDER / "packages" / "gold.tgz").read_bytes()
GOLD_ID = (FOLDER / "packages" / "gold.package-id").read_text().strip()
ADMIN = member("org1-admin")


@dataclass
class Peer:
    """Org1's peer at a height at which `gold` and `gold2` are committed, sequence 1 each."""

    recorded: RecordedPeer
    endorser: Endorser
    packages: PackageStore

    async def response(
        self, function: str, argument: Message, who: str = "org1-admin", channel: str = CHANNEL
    ) -> peer_pb2.Response:
        msp_id = f"Org{who[3]}MSP"
        answer = await _call(
            self.endorser,
            "_lifecycle",
            function,
            argument.SerializeToString(),
            channel=channel,
            signer=member(who, msp_id),
        )
        return answer.response

    async def ask[M: Message](
        self, function: str, argument: Message, result: type[M], channel: str = CHANNEL
    ) -> M:
        response = await self.response(function, argument, channel=channel)
        assert response.status == 200, response.message
        return result.FromString(response.payload)

    async def refused(
        self, function: str, argument: Message, who: str = "org1-admin", channel: str = CHANNEL
    ) -> str:
        response = await self.response(function, argument, who, channel)
        assert response.status in (404, 500)
        return response.message


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    async with recorded_peer(tmp_path / "ledger", HEIGHT) as recorded:
        packages = PackageStore(tmp_path / "packages")
        contracts = Contracts("Org1MSP", packages)
        local = InProcessExecutor({})
        executor = PackageExecutor(
            packages, lambda _package: local, contracts.package_of, {"gold": "7052"}
        )
        endorser = Endorser(
            {CHANNEL: recorded.channel},
            member("org1-peer0"),
            executor,
            contracts,
            check_package=executor.check,
        )
        yield Peer(recorded, endorser, packages)
        await endorser.close()
        await executor.close()
        local.close()


async def test_installing(peer: Peer) -> None:
    """With or without a channel; the package that the chain's approval names runs from then on."""
    nothing = await peer.ask(
        "QueryInstalledChaincodes",
        lifecycle_pb2.QueryInstalledChaincodesArgs(),
        lifecycle_pb2.QueryInstalledChaincodesResult,
        channel="",
    )
    assert not nothing.installed_chaincodes
    install = lifecycle_pb2.InstallChaincodeArgs(chaincode_install_package=GOLD)
    done = await peer.ask(
        "InstallChaincode", install, lifecycle_pb2.InstallChaincodeResult, channel=""
    )
    assert (done.package_id, done.label) == (GOLD_ID, "gold_1.0")
    again = await peer.refused("InstallChaincode", install)
    assert again == (
        "failed to invoke backing implementation of 'InstallChaincode': chaincode already "
        f"successfully installed (package ID '{GOLD_ID}')"
    )
    one = await peer.ask(
        "QueryInstalledChaincode",
        lifecycle_pb2.QueryInstalledChaincodeArgs(package_id=GOLD_ID),
        lifecycle_pb2.QueryInstalledChaincodeResult,
    )
    [contract] = one.references[CHANNEL].chaincodes
    assert (one.label, contract.name, contract.version) == ("gold_1.0", "gold", "1.0")
    everything = await peer.ask(
        "QueryInstalledChaincodes",
        lifecycle_pb2.QueryInstalledChaincodesArgs(),
        lifecycle_pb2.QueryInstalledChaincodesResult,
        channel="",
    )
    assert [each.package_id for each in everything.installed_chaincodes] == [GOLD_ID]
    package = await peer.ask(
        "GetInstalledChaincodePackage",
        lifecycle_pb2.GetInstalledChaincodePackageArgs(package_id=GOLD_ID),
        lifecycle_pb2.GetInstalledChaincodePackageResult,
    )
    assert package.chaincode_install_package == GOLD
    missing = await peer.response(
        "GetInstalledChaincodePackage",
        lifecycle_pb2.GetInstalledChaincodePackageArgs(package_id="x:1"),
    )
    assert (missing.status, missing.message) == (
        404,
        "chaincode install package 'x:1' not found",
    )
    unknown = await peer.refused(
        "QueryInstalledChaincode", lifecycle_pb2.QueryInstalledChaincodeArgs(package_id="x:1")
    )
    assert "could not find chaincode with package id 'x:1'" in unknown


async def test_what_cannot_be_installed(peer: Peer) -> None:
    def install(data: bytes) -> lifecycle_pb2.InstallChaincodeArgs:
        return lifecycle_pb2.InstallChaincodeArgs(chaincode_install_package=data)

    said = await peer.refused("InstallChaincode", install(b"no package"))
    assert "could not parse as a chaincode install package: error reading" in said
    other = (FOLDER / "packages" / "gold2.tgz").read_bytes()
    said = await peer.refused("InstallChaincode", install(other))
    assert "could not build chaincode: connection.json wants this peer's own gold2" in said
    assert not peer.packages.ids()
    good = install(served_package("x", Connection("h:1")))
    for who in ("org1-user1", "org2-admin"):
        said = await peer.refused("InstallChaincode", good, who, "")
        assert "Failed to authorize invocation due to failed ACL check" in said
        assert "only an admin of Org1MSP" in said
    said = await peer.refused(
        "QueryChaincodeDefinitions", lifecycle_pb2.QueryChaincodeDefinitionsArgs(), channel=""
    )
    assert "concerns a channel" in said


async def test_running_only_what_is_approved_and_installed(peer: Peer) -> None:
    for chaincode, message in (
        ("gold", "chaincode definition for 'gold' exists, but chaincode is not installed"),
        ("silver", "make sure the chaincode silver has been successfully defined on channel "),
    ):
        answer = await _call(peer.endorser, chaincode, "get", "a")
        assert answer.response.status == 500
        assert message in answer.response.message
    peer.packages.save(GOLD)
    # It is dialled now, where nobody listens.
    answer = await _call(peer.endorser, "gold", "get", "a")
    assert "gold at 127.0.0.1:7052 cannot be reached" in answer.response.message


async def test_queries(peer: Peer) -> None:
    # This peer has the chain alone, and so the hashes of its organisation's approvals.
    said = await peer.refused(
        "QueryApprovedChaincodeDefinition",
        lifecycle_pb2.QueryApprovedChaincodeDefinitionArgs(name="gold"),
    )
    assert "in collection _implicit_org_Org1MSP of _lifecycle is not on this peer" in said
    committed = await peer.ask(
        "QueryChaincodeDefinitions",
        lifecycle_pb2.QueryChaincodeDefinitionsArgs(),
        lifecycle_pb2.QueryChaincodeDefinitionsResult,
    )
    assert [(one.name, one.sequence) for one in committed.chaincode_definitions] == [
        ("gold", 1),
        ("gold2", 1),
    ]
    said = await peer.refused(
        "QueryApprovedChaincodeDefinition",
        lifecycle_pb2.QueryApprovedChaincodeDefinitionArgs(name="gold", sequence=7),
    )
    assert "could not fetch approved chaincode definition (name: 'gold', sequence: '7')" in said
    ready = await peer.ask(
        "CheckCommitReadiness",
        lifecycle_pb2.CheckCommitReadinessArgs(name="gold", sequence=2, version="2.0"),
        lifecycle_pb2.CheckCommitReadinessResult,
    )
    assert dict(ready.approvals) == {"Org1MSP": False, "Org2MSP": False}
    assert list(ready.mismatches["Org2MSP"].items) == ["ChaincodeParameters"]


def collection(**changed: object) -> peer_pb2.StaticCollectionConfig:
    fields: dict[str, object] = {
        "name": "collA",
        "member_orgs_policy": peer_pb2.CollectionPolicyConfig(
            signature_policy=parse_policy("OR('Org1MSP.member','Org2MSP.member')")
        ),
        "maximum_peer_count": 1,
    }
    return peer_pb2.StaticCollectionConfig(**fields | changed)  # type: ignore[arg-type]


def members(rule: str) -> peer_pb2.CollectionPolicyConfig:
    return peer_pb2.CollectionPolicyConfig(signature_policy=parse_policy(rule))


def approval(
    *collections: peer_pb2.StaticCollectionConfig, **changed: object
) -> lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs:
    fields: dict[str, object] = {"name": "silver", "version": "1.0", "sequence": 1}
    return lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs(
        **fields | changed,  # type: ignore[arg-type]
        collections=peer_pb2.CollectionConfigPackage(
            config=[peer_pb2.CollectionConfig(static_collection_config=one) for one in collections]
        ),
    )


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (approval(name="a b"), "invalid chaincode name 'a b'. Names can only consist of"),
        (approval(name="qscc"), "chaincode name 'qscc' is the name of a system chaincode"),
        (approval(version=""), "invalid chaincode version ''. Versions can only consist of"),
        (approval(sequence=0), "requested sequence is 0, but first definable sequence number is 1"),
        (approval(sequence=2), "requested sequence 2 is larger than the next available sequence"),
        (approval(name="gold2", sequence=-1), "currently defined sequence 1 is larger than"),
        (
            approval(name="gold2", sequence=1, version="3"),
            (
                "attempted to redefine the current committed sequence (1) for namespace gold2 "
                "with different parameters"
            ),
        ),
        (approval(name="gold", sequence=2), "does not contain previously defined collections"),
        (
            approval(collection(name="other"), name="gold", sequence=2),
            "existing collection [collA] missing in the proposed collection configuration",
        ),
        (
            approval(collection(block_to_live=9), name="gold", sequence=2),
            "the BlockToLive in an existing collection [collA] modified. Existing value [0]",
        ),
        (approval(collection(name="_x")), "invalid collection name '_x'"),
        (approval(collection(), collection()), "found duplicate in collection configuration"),
        (
            approval(collection(required_peer_count=2)),
            "maximum peer count (1) cannot be less than the required peer count (2)",
        ),
        (
            approval(collection(required_peer_count=-1)),
            "requiredPeerCount (-1) cannot be less than zero",
        ),
        (
            approval(collection(member_orgs_policy=None)),
            "collection member policy is not set for collection 'collA'",
        ),
        (
            approval(collection(member_orgs_policy=peer_pb2.CollectionPolicyConfig())),
            "collection member org policy is empty for collection 'collA'",
        ),
        (
            approval(
                collection(member_orgs_policy=members("AND('Org1MSP.member','Org2MSP.member')"))
            ),
            "signature policy is not an OR concatenation, NOutOf 2",
        ),
        (
            approval(collection(member_orgs_policy=members("OR('NoMSP.member')"))),
            "collection member 'NoMSP' is not part of the channel",
        ),
    ],
)
async def test_definitions_that_cannot_be_approved(
    peer: Peer, argument: lifecycle_pb2.ApproveChaincodeDefinitionForMyOrgArgs, said: str
) -> None:
    refused = await peer.refused("ApproveChaincodeDefinitionForMyOrg", argument)
    assert refused.startswith(
        "failed to invoke backing implementation of 'ApproveChaincodeDefinitionForMyOrg': "
    )
    assert said in refused


async def test_who_may_do_what(peer: Peer) -> None:
    said = await peer.refused("ApproveChaincodeDefinitionForMyOrg", approval(), "org1-user1")
    assert "only an admin of Org1MSP" in said
    commit = lifecycle_pb2.CommitChaincodeDefinitionArgs(name="silver", sequence=1, version="1.0")
    said = await peer.refused("CommitChaincodeDefinition", commit, "org1-user1")
    assert "chaincode definition not agreed to by this org (Org1MSP)" in said
    said = await peer.refused(
        "CommitChaincodeDefinition",
        lifecycle_pb2.CommitChaincodeDefinitionArgs(name="silver", sequence=3, version="1.0"),
    )
    assert "requested sequence is 3, but new definition must be sequence 1" in said


async def test_the_channels_own_access_rules(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what writers may ask; an admin's own matters stay the admin's."""
    admins = "/Channel/Application/Org1MSP/Admins"
    config = peer.recorded.channel.ledger.config
    monkeypatch.setattr(config, "acls", {"_lifecycle/QueryChaincodeDefinition": admins})
    query = lifecycle_pb2.QueryChaincodeDefinitionArgs(name="gold")
    assert (await peer.response("QueryChaincodeDefinition", query)).status == 200
    said = await peer.refused("QueryChaincodeDefinition", query, "org1-user1")
    assert admins in said
