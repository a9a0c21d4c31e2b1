"""Who has to endorse: rules of a contract, a collection and a key, by every kind of principal."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from consortium.identity.certificates import load_certificate
from consortium.identity.msp import Msp, msp_config
from consortium.identity.policies import parse_policy, role_principal, signature_policy_all
from consortium.wire import common_pb2, kvrwset_pb2, rwset_pb2

from .channel import CHAINCODE, Channel, _signer, collection, private_set, public_set

VALID, POLICY_FAILURE = 0, 10
RULES = {
    "member": ({"Aurora", "client", "admin"}, {"Boreal", "stranger"}),
    "role": ({"Aurora"}, {"client", "admin", "Boreal", "stranger"}),
    "unit": ({"Aurora"}, {"client", "admin", "Boreal", "stranger"}),
    "identity": ({"admin"}, {"Aurora", "client", "Boreal"}),
}
"""By kind of principal: by whom it is met alone, and by whom it isn't."""


@pytest.fixture(scope="module")
def channel() -> Channel:
    channel = Channel()
    channel.peers["client"] = channel.clients["Aurora"]
    for who, role in (("admin", "admin"), ("stranger", "peer")):
        authority = channel.authorities["Aurora"]
        if who == "stranger":
            authority = Channel().authorities["Aurora"]  # of the same name, and no member
        channel.peers[who] = _signer(authority, "AuroraMSP", who, role)
    return channel


def rule(channel: Channel, kind: str) -> common_pb2.SignaturePolicyEnvelope:
    """One endorsement by somebody of Aurora, told in one of four ways."""
    if kind in ("member", "role"):
        return signature_policy_all([role_principal("AuroraMSP", {"role": "peer"}.get(kind, kind))])
    identity = channel.peers["admin"].serialized
    kinds = common_pb2.MSPPrincipal
    principal = common_pb2.MSPPrincipal(principal_classification=kinds.IDENTITY, principal=identity)
    if kind == "unit":
        root = channel.authorities["Aurora"].certificate_pem
        msp = Msp.from_config(msp_config("AuroraMSP", root))
        certificate = load_certificate(channel.peers["Aurora"].certificate_pem)
        unit = common_pb2.OrganizationUnit(
            msp_identifier="AuroraMSP",
            organizational_unit_identifier="peer",
            certifiers_identifier=msp.identity_of(certificate).certifiers_identifier,
        )
        principal = common_pb2.MSPPrincipal(
            principal_classification=kinds.ORGANIZATION_UNIT, principal=unit.SerializeToString()
        )
    return signature_policy_all([principal])


@pytest.mark.parametrize("kind", RULES)
def test_by_every_kind_of_principal(channel: Channel, tmp_path: Path, kind: str) -> None:
    """Of a contract, of a collection where it has its own, of a key once it is set."""
    wanted = rule(channel, kind)
    enough, too_few = RULES[kind]
    everybody = parse_policy("OR('AuroraMSP.member', 'BorealMSP.member', 'CieloMSP.member')")
    own = collection("own", ["Aurora", "Boreal"])
    own.endorsement_policy.signature_policy.CopyFrom(wanted)
    with channel.open(tmp_path) as ledger:

        def code(rwset: rwset_pb2.TxReadWriteSet, endorsers: Iterable[str], chaincode: str) -> int:
            envelope = channel.transaction(rwset, endorsers, chaincode=chaincode)
            (found,) = channel.commit(ledger, envelope).codes
            return found

        channel.deploy(ledger, policy=wanted, collections=[collection("plain", ["Aurora"])])
        channel.deploy(ledger, policy=everybody, collections=[own], chaincode="open")
        key = public_set("open", writes={"kept": b"1"})
        key.ns_rwset[0].rwset = _with_policy(key.ns_rwset[0].rwset, wanted)
        assert code(key, ["Cielo"], "open") == VALID
        changes = {
            "the contract's": (CHAINCODE, public_set(writes={"k": b"v"})),
            "the contract's, for a collection": (CHAINCODE, private_set("plain", {"p": b"v"})[0]),
            "the collection's": ("open", private_set("own", {"p": b"v"}, namespace="open")[0]),
            "the key's": ("open", public_set("open", writes={"kept": b"2"})),
        }
        for whose, (chaincode, rwset) in changes.items():
            for who in sorted(enough):
                assert code(rwset, [who], chaincode) == VALID, (whose, who)
            for who in sorted(too_few):
                assert code(rwset, [who], chaincode) == POLICY_FAILURE, (whose, who)
            assert code(rwset, sorted(too_few), chaincode) == POLICY_FAILURE, whose
            assert code(rwset, [*sorted(too_few), min(enough)], chaincode) == VALID, whose
        # Another key of that contract is anybody's.
        assert code(public_set("open", writes={"free": b"1"}), ["Cielo"], "open") == VALID


def _with_policy(raw: bytes, policy: common_pb2.SignaturePolicyEnvelope) -> bytes:
    """A public read-write set that gives its key a policy as well."""
    rwset = kvrwset_pb2.KVRWSet.FromString(raw)
    entry = kvrwset_pb2.KVMetadataEntry(
        name="VALIDATION_PARAMETER", value=policy.SerializeToString()
    )
    rwset.metadata_writes.add(key="kept", entries=[entry])
    return rwset.SerializeToString()
