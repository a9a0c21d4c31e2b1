"""Policies: Fabric's language and its way of counting."""

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.identity.certificates import (
    CertificateAuthority,
    certificate_pem,
    generate_key,
)
from consortium.identity.msp import Identity, Msp, MspManager, msp_config
from consortium.identity.policies import (
    ImplicitMetaPolicy,
    PolicyError,
    RejectPolicy,
    SignaturePolicy,
    SignedData,
    implicit_meta,
    parse_policy,
    role_principal,
    signature_policy_all,
    signature_policy_any,
    signature_policy_n_out_of,
    verified_signers,
)
from consortium.identity.signing import Signer
from consortium.wire import common_pb2

UTILITIES = ("Aurora", "Boreal", "Cielo")
AUTHORITIES = {
    f"{name}MSP": CertificateAuthority.create(name, f"{name.lower()}.example") for name in UTILITIES
}
MANAGER = MspManager(
    {
        msp_id: Msp.from_config(msp_config(msp_id, authority.certificate_pem))
        for msp_id, authority in AUTHORITIES.items()
    }
)


def signer(utility: str, role: str, name: str = "someone") -> Signer:
    key = generate_key()
    msp_id = f"{utility}MSP"
    certificate = AUTHORITIES[msp_id].issue(name, role, key.public_key())
    return Signer(msp_id, certificate_pem(certificate), key)


SIGNERS = {
    f"{utility}.{role}": signer(utility, role)
    for utility in UTILITIES
    for role in ("peer", "client", "admin", "orderer")
} | {"Aurora.peer2": signer("Aurora", "peer", "second")}
WHO = {name: MANAGER.identity(one.serialized) for name, one in SIGNERS.items()}


def satisfied(policy: str, *names: str) -> bool:
    return SignaturePolicy(parse_policy(policy)).satisfied_by([WHO[name] for name in names])


def test_and_or_out_of() -> None:
    both = "AND('AuroraMSP.peer', 'BorealMSP.peer')"
    assert satisfied(both, "Aurora.peer", "Boreal.peer")
    assert satisfied(both, "Boreal.peer", "Cielo.peer", "Aurora.peer")
    assert not satisfied(both, "Aurora.peer", "Aurora.peer2")
    assert satisfied("OR('AuroraMSP.peer', 'BorealMSP.peer')", "Boreal.peer")
    assert not satisfied("OR('AuroraMSP.peer')", "Aurora.client")
    two = "OutOf(2, 'AuroraMSP.peer', 'BorealMSP.peer', 'CieloMSP.peer')"
    assert satisfied(two, "Aurora.peer", "Cielo.peer")
    assert not satisfied(two, "Aurora.peer")
    assert satisfied("OutOf(0, 'AuroraMSP.peer')")
    assert not satisfied("OutOf(2, 'AuroraMSP.peer')", "Aurora.peer")


@pytest.mark.parametrize("role", ["peer", "client", "admin", "orderer"])
def test_roles(role: str) -> None:
    for other in ("peer", "client", "admin", "orderer"):
        assert satisfied(f"OR('AuroraMSP.{role}')", f"Aurora.{other}") == (role == other)
    assert satisfied("OR('AuroraMSP.member')", f"Aurora.{role}")
    assert not satisfied("OR('AuroraMSP.member')", f"Boreal.{role}")


def test_an_identity_counts_once() -> None:
    twice = "AND('AuroraMSP.peer', 'AuroraMSP.peer')"
    assert not satisfied(twice, "Aurora.peer")
    assert satisfied(twice, "Aurora.peer", "Aurora.peer2")


def test_a_principal_takes_the_first_that_fits() -> None:
    """Greedy as in Fabric: `member` takes the admin, and nobody is left to be the admin."""
    policy = "AND('AuroraMSP.member', 'AuroraMSP.admin')"
    assert not satisfied(policy, "Aurora.admin", "Aurora.client")
    assert satisfied(policy, "Aurora.client", "Aurora.admin")


def test_a_failed_branch_gives_back_what_it_took() -> None:
    policy = "OR(AND('AuroraMSP.peer', 'BorealMSP.peer'), 'AuroraMSP.peer')"
    assert satisfied(policy, "Aurora.peer")


def test_a_satisfied_rule_still_tries_the_rest() -> None:
    """`OR` of two takes both identities, so the outer rule finds none left: Fabric's way."""
    policy = "AND(OR('AuroraMSP.peer', 'BorealMSP.peer'), 'BorealMSP.peer')"
    assert not satisfied(policy, "Aurora.peer", "Boreal.peer")


def test_parsed_policies_are_fabrics_messages() -> None:
    parsed = parse_policy("AND('AuroraMSP.peer', OR('BorealMSP.peer', \"CieloMSP.admin\"))")
    assert parsed == common_pb2.SignaturePolicyEnvelope(
        rule={
            "n_out_of": {
                "n": 2,
                "rules": [
                    {"signed_by": 0},
                    {"n_out_of": {"n": 1, "rules": [{"signed_by": 1}, {"signed_by": 2}]}},
                ],
            }
        },
        identities=[
            role_principal("AuroraMSP", "peer"),
            role_principal("BorealMSP", "peer"),
            role_principal("CieloMSP", "admin"),
        ],
    )
    principals = [role_principal("AuroraMSP", "peer"), role_principal("BorealMSP", "peer")]
    assert signature_policy_all(principals) == parse_policy(
        "and('AuroraMSP.peer','BorealMSP.peer')"
    )
    assert signature_policy_any(principals) == parse_policy("Or('AuroraMSP.peer','BorealMSP.peer')")
    assert signature_policy_n_out_of(2, principals) == parse_policy(
        " OUTOF ( 2 , 'AuroraMSP.peer' , 'BorealMSP.peer' ) "
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected"),
        ("'AuroraMSP.peer'", "single principal"),
        ("AND('AuroraMSP.peer'", "',' or '\\)' expected"),
        ("AND('AuroraMSP.king')", "known role"),
        ("AND('Aurora MSP.peer')", "known role"),
        ("XOR('AuroraMSP.peer')", "AND, OR, OutOf"),
        ("OutOf('AuroraMSP.peer')", "starts with a number"),
        ("OutOf(3, 'AuroraMSP.peer')", "never be satisfied"),
        ("AND()", "AND, OR, OutOf"),
        ("AND('AuroraMSP.peer') extra", "nothing more"),
        ("AND('AuroraMSP.peer'; 'B.peer')", "unexpected character"),
        ("AND(" * 50 + "'AuroraMSP.peer'" + ")" * 50, "nested deeper"),
        ("OR(" + ",".join(["'A.peer'"] * 1100) + ")", "more than 1024"),
    ],
)
def test_unreadable_policies_say_where(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_policy(text)


@given(text=st.text(alphabet="ANDORut(),'0129.MSPper ", max_size=60))
def test_the_parser_never_fails_otherwise(text: str) -> None:
    with contextlib.suppress(PolicyError):
        SignaturePolicy(parse_policy(text)).satisfied_by([])


def test_policies_that_do_not_compile() -> None:
    with pytest.raises(PolicyError, match="principal 1 of 1"):
        SignaturePolicy(
            common_pb2.SignaturePolicyEnvelope(
                rule={"signed_by": 1}, identities=[role_principal("AuroraMSP", "peer")]
            )
        )
    with pytest.raises(PolicyError, match="version 1"):
        SignaturePolicy(common_pb2.SignaturePolicyEnvelope(version=1))
    with pytest.raises(PolicyError, match="empty rule"):
        SignaturePolicy(common_pb2.SignaturePolicyEnvelope())
    with pytest.raises(PolicyError, match="cannot be read"):
        SignaturePolicy.from_bytes(b"\xff")
    # Thousands of rules for thousands of signers would take hours.
    one, peer = common_pb2.SignaturePolicy(signed_by=0), role_principal("AuroraMSP", "peer")
    part = common_pb2.SignaturePolicy(n_out_of={"n": 1, "rules": [one] * 1000})
    for rules in ([one] * 2049, [part] * 3):
        many = common_pb2.SignaturePolicy(n_out_of={"n": 1, "rules": rules})
        with pytest.raises(PolicyError, match="more than 2048 rules"):
            SignaturePolicy(common_pb2.SignaturePolicyEnvelope(rule=many, identities=[peer]))
    few = common_pb2.SignaturePolicy(n_out_of={"n": 1, "rules": [part] * 2})
    SignaturePolicy(common_pb2.SignaturePolicyEnvelope(rule=few, identities=[peer]))


def test_a_principal_that_nobody_can_be_compiles() -> None:
    """Fabric accepts it in a policy, and then nobody satisfies it."""
    broken = common_pb2.MSPPrincipal(
        principal_classification=common_pb2.MSPPrincipal.ROLE, principal=b"\xff"
    )
    policy = SignaturePolicy(signature_policy_any([broken, role_principal("AuroraMSP", "peer")]))
    assert policy.satisfied_by([WHO["Aurora.peer"]])
    assert not policy.satisfied_by([WHO["Boreal.peer"]])


def implicit(rule: str, *policies: str) -> ImplicitMetaPolicy:
    return ImplicitMetaPolicy(
        implicit_meta(rule, "Endorsement").rule,
        [SignaturePolicy(parse_policy(policy)) for policy in policies],
    )


@pytest.mark.parametrize(
    ("rule", "enough", "too_few"),
    [("ANY", 1, 0), ("MAJORITY", 2, 1), ("ALL", 3, 2)],
)
def test_implicit_meta(rule: str, enough: int, too_few: int) -> None:
    policy = implicit(rule, *(f"OR('{name}MSP.peer')" for name in UTILITIES))
    peers = [WHO[f"{name}.peer"] for name in UTILITIES]
    assert policy.satisfied_by(peers[:enough])
    assert not policy.satisfied_by(peers[:too_few])
    assert policy.satisfied_by_peers_of([f"{name}MSP" for name in UTILITIES[:enough]])
    assert not policy.satisfied_by_peers_of([f"{name}MSP" for name in UTILITIES[:too_few]])


def test_implicit_meta_of_nothing_is_satisfied() -> None:
    for rule in ("ANY", "MAJORITY", "ALL"):
        assert implicit(rule).satisfied_by([])
    missing = ImplicitMetaPolicy(common_pb2.ImplicitMetaPolicy.ANY, [RejectPolicy()])
    assert not missing.satisfied_by(list(WHO.values()))
    with pytest.raises(PolicyError, match="ANY, ALL, MAJORITY"):
        implicit_meta("SOME", "Writers")


def test_planning_needs_no_identities() -> None:
    policy = SignaturePolicy(parse_policy("AND('AuroraMSP.peer', 'BorealMSP.member')"))
    assert policy.satisfied_by_peers_of({"AuroraMSP", "BorealMSP"})
    assert not policy.satisfied_by_peers_of({"AuroraMSP", "CieloMSP"})
    assert policy.organizations == {"AuroraMSP", "BorealMSP"}
    admins = SignaturePolicy(parse_policy("OR('AuroraMSP.admin')"))
    assert not admins.satisfied_by_peers_of({"AuroraMSP"})


def test_verified_signers() -> None:
    def signed(name: str, data: bytes, over: bytes | None = None) -> SignedData:
        one = SIGNERS[name]
        return SignedData(data, one.serialized, one.sign(data if over is None else over))

    found: Sequence[Identity] = verified_signers(
        MANAGER,
        [
            SignedData(b"x", b"\xffunreadable", b""),
            signed("Aurora.peer", b"x", over=b"y"),
            signed("Boreal.peer", b"x"),
            signed("Aurora.peer", b"x"),
            signed("Boreal.peer", b"x"),
            SignedData(b"x", SIGNERS["Cielo.peer"].serialized, SIGNERS["Cielo.admin"].sign(b"x")),
        ],
    )
    assert [one.msp_id for one in found] == ["BorealMSP", "AuroraMSP"]
